"""A packed weight's file has the size its bits say, gives the weight again, and is refused as a whole when it is anything else."""

import hashlib
import json
import re

import pytest
import safetensors
import safetensors.torch
import torch
from device import DEVICE
from engine_cases import drawn_codes
from packing_cases import parts, same, weight

import fastq
from fastq import container, packing
from fastq.deploy import FormatError
from fastq.packing import BITS, LAYOUTS, PackedWeight

load = PackedWeight.load


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "weight.safetensors"
    packed = weight((6, 45), 3, torch.uint8, 16, zeros=True)[1]
    assert packed.save(path) == path.stat().st_size and not path.with_name(path.name + ".part").exists()
    return packed, path.read_bytes(), path


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("group_size", [None, 16])
@pytest.mark.parametrize("bits", BITS)
def test_round_trip(tmp_path, bits, group_size, zeros):
    for dtype in (torch.int8, torch.uint8):
        packed = weight((5, 45), bits, dtype, group_size, zeros)[1]
        for layout in LAYOUTS:  # the file is the same whatever the layout in memory
            packed.to(DEVICE, layout).save(tmp_path / layout)
        data = (tmp_path / "rows").read_bytes()
        assert data == (tmp_path / "tiles").read_bytes()
        same(load(tmp_path / "rows").to(DEVICE), packed)
        same(load(data).to(DEVICE), packed)


@pytest.mark.parametrize("shape", [(6, 5, 3), (6, 1, 3, 3), (0, 5), (5, 0), (0, 3, 2, 2)])
def test_round_trip_of_other_shapes(tmp_path, shape):
    packed = fastq.pack(drawn_codes(shape, 4, torch.int8), 4, scale=0.25, zero_point=-3)
    packed.save(tmp_path / "w")
    same(load(tmp_path / "w").to(DEVICE), packed)


@pytest.mark.parametrize("bits", BITS)
def test_a_file_has_the_size_of_its_bits(tmp_path, bits):
    """Beside the codes: 4 bytes a scale, 1 a zero-point, and a header."""
    packed = weight((64, 4096), bits, torch.uint8, 64, zeros=True)[1]
    size = packed.save(tmp_path / "w")
    header = int.from_bytes((tmp_path / "w").read_bytes()[:8], "little") + 8
    assert size == header + 64 * 4096 * bits // 8 + 64 * 64 * (4 + 1) and header < 800


@pytest.mark.parametrize("bits", BITS)
def test_a_network_has_the_size_of_its_bits(tmp_path, bits):
    """Weights at the width they were trained at; beside them a scale for each output, the input's step and a header."""
    quantizers = {"weight_quantizer": fastq.nn.LSQ(bits, axis=0, shape=(256,)), "input_quantizer": fastq.nn.LSQ(8)}
    layer = fastq.nn.QuantLinear(512, 256, bias=False, **quantizers).to(DEVICE)
    layer(torch.ones(2, 512, device=DEVICE))
    size = fastq.save(fastq.convert(torch.nn.Sequential(layer).eval()), tmp_path / "network")
    header = int.from_bytes((tmp_path / "network").read_bytes()[:8], "little") + 8
    assert size == header + 512 * 256 * bits // 8 + 256 * 4 + 4 and header < 1000


def test_every_flipped_bit_is_found(saved):
    for position in range(len(saved[1])):
        broken = bytearray(saved[1])
        broken[position] ^= 1 << (position % 8)
        with pytest.raises(FormatError) as caught:
            load(bytes(broken))
        assert "\n" not in str(caught.value)


def test_truncated(saved):
    for length in [0, 1, 7, 8, 9, 100, len(saved[1]) // 2, len(saved[1]) - 1]:
        with pytest.raises(FormatError, match=r"load: the data is (truncated|no fastq)"):
            load(saved[1][:length])
    with pytest.raises(FormatError, match="load: the data is truncated or corrupted: its checksum does not match"):
        load(saved[1] + b"\0")


def test_foreign_files(saved, tmp_path):
    torch.save({"a": torch.ones(3)}, tmp_path / "torch.pt")
    for data in (b"PK\3\4" * 40, (tmp_path / "torch.pt").read_bytes(), safetensors.torch.save({"a": torch.ones(3)})):
        with pytest.raises(FormatError, match=r"no fastq packed weight|no safetensors file"):
            load(data)
    layer = fastq.nn.QuantLinear(8, 3, weight_quantizer=fastq.nn.LSQ(4), input_quantizer=fastq.nn.LSQ(4)).to(DEVICE)
    layer(torch.ones(2, 8, device=DEVICE))
    network = fastq.convert(torch.nn.Sequential(layer))
    fastq.save(network, tmp_path / "network")
    with pytest.raises(FormatError, match="network is no fastq packed weight"):
        load(tmp_path / "network")
    with pytest.raises(FormatError, match=r"weight\.safetensors is no fastq network"):
        fastq.load(saved[2], torch.nn.Sequential(torch.nn.Linear(8, 3, device="cpu")))
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "absent")
    with pytest.raises(FileNotFoundError):
        saved[0].save(tmp_path / "absent" / "w")


def test_a_newer_version(saved):
    newer = saved[1].replace(rb"\"version\":1", rb"\"version\":2", 1)
    with pytest.raises(FormatError, match="load: the data has format version 2; this fastq reads version 1"):
        load(newer)


def test_a_failed_save_leaves_what_was_there(saved, tmp_path, monkeypatch):
    path = tmp_path / "w"
    saved[0].save(path)

    def full(self, data):
        self.open("wb").close()
        raise OSError("no space left")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match="no space left"):
        weight()[1].save(path)
    assert path.read_bytes() == saved[1] and [f.name for f in tmp_path.iterdir()] == ["w"]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"shape": [6, 46]}, None),  # 46 elements of 3 bits take 18 bytes, 45 take 17
        ({"shape": [5, 45]}, r"data of shape \(6, 17\) for a weight of shape \(5, 45\) in 3 bits"),
        ({"shape": [6, 44]}, "the bits that pad its rows are not 0"),
        ({"shape": [6, -45]}, r"its shape is \[6, -45\]"),
        ({"shape": [6, 45.0]}, r"its shape is \[6, 45\.0\]"),
        ({"shape": "6x45"}, "its shape is '6x45'"),
        ({"shape": [6]}, r"for a weight of shape \(6,\)"),
        ({"shape": []}, r"for a weight of shape \(\)"),
        ({"shape": [6, 5, 9]}, "group_size is for weights of shape"),
        ({"shape": [6, 0, 10**30]}, "data of shape"),
        ({"bits": 4}, "in 4 bits"),
        ({"bits": 5}, "its codes are of 5 bits"),
        ({"bits": "3"}, "its codes are of '3' bits"),
        ({"bits": True}, "its codes are of True bits"),
        ({"signed": True}, r"zero_point is of torch\.uint8, not torch\.int8"),
        ({"signed": 0}, "signed 0"),
        ({"group_size": 32}, r"scale must have shape \(6, 2\)"),
        ({"group_size": 24}, "group_size must be a multiple of 16"),
        ({"group_size": None}, r"scale has the shape \(6, 3\)"),
        ({"group_size": "16"}, "group_size must be an int"),
        ({"granularity": "channel"}, "it is quantized per group, not 'channel'"),
        ({"granularity": None}, "it is quantized per group, not None"),
        ({"layout": "tiles"}, "its layout is 'tiles' version 1; 'rows' version 1 is known"),
        ({"layout_version": 2}, "its layout is 'rows' version 2; 'rows' version 1 is known"),
    ],
)  # fmt: skip
def test_a_header_that_lies(saved, tmp_path, said, message):
    header, tensors = parts(saved[0])
    container.write(tmp_path / "lie", packing.FILE, packing.FILE_VERSION, header | said, tensors)
    if message is None:
        message = re.escape("data of shape (6, 17) for a weight of shape (6, 46) in 3 bits")
    with pytest.raises(FormatError, match=rf"^load: .*lie does not hold what it says: .*{message}"):
        load(tmp_path / "lie")


@pytest.mark.parametrize(
    "missing", ["shape", "bits", "signed", "granularity", "group_size", "layout", "layout_version", "data", "scale"]
)
def test_a_part_that_is_missing(saved, tmp_path, missing):
    header, tensors = parts(saved[0])
    container.write(
        tmp_path / "w", packing.FILE, 1, {k: v for k, v in header.items() if k != missing},
        {k: v for k, v in tensors.items() if k != missing},
    )  # fmt: skip
    with pytest.raises(FormatError, match=rf"does not hold what it says: it has no '{missing}'"):
        load(tmp_path / "w")


def test_a_tensor_that_could_be_done_without_is_missed(saved, tmp_path):
    header, tensors = parts(saved[0])
    del tensors["zero_point"]
    container.write(tmp_path / "w", packing.FILE, 1, header | {"tensors": 3}, tensors)
    with pytest.raises(FormatError, match=r"^load: .*w has 2 tensors where its header says 3$"):
        load(tmp_path / "w")


BAD = torch.full((6, 3), float("nan"), device="cpu")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"scale": BAD}, "pack: scale must be finite"),
        ({"scale": BAD.double()}, r"scale is of torch\.float64, not torch\.float32"),
        ({"scale": torch.ones(3, 6, device="cpu")}, r"zero_point has the shape \(6, 3\)"),
        ({"scale": torch.ones((), device="cpu")}, r"scale has the shape \(\)"),
        ({"zero_point": torch.full((6, 3), 8, dtype=torch.uint8, device="cpu")}, "zero_point must be unsigned 3-bit codes, 0 to 7"),
        ({"zero_point": torch.zeros(6, dtype=torch.uint8, device="cpu")}, r"zero_point has the shape \(6,\)"),
        ({"data": torch.zeros(6, 16, dtype=torch.uint8, device="cpu")}, r"data of shape \(6, 16\)"),
        ({"data": torch.zeros(102, dtype=torch.uint8, device="cpu")}, r"data of shape \(102,\)"),
        ({"data": torch.zeros(6, 17, dtype=torch.int8, device="cpu")}, r"data is of torch\.int8, not torch\.uint8"),
        ({"data": torch.full((6, 17), 255, dtype=torch.uint8, device="cpu")}, "the bits that pad its rows are not 0"),
        ({"sums": torch.zeros(6, 3, device="cpu")}, r"it has the unknown tensors \['sums'\]"),
    ],
)
def test_tensors_that_do_not_fit(saved, tmp_path, changed, message):
    header, tensors = parts(saved[0])
    container.write(tmp_path / "w", packing.FILE, 1, header, tensors | changed)
    with pytest.raises(FormatError, match=rf"does not hold what it says: .*{message}"):
        load(tmp_path / "w")


def test_what_a_file_says(saved):
    """The format, as the documentation has it."""
    header, tensors = parts(saved[0])
    with safetensors.safe_open(saved[2], "pt") as file:
        said = json.loads(file.metadata()["fastq_weight"])
        assert sorted(file.keys()) == sorted(tensors) and all(torch.equal(file.get_tensor(name), t) for name, t in tensors.items())
    assert (said.pop("version"), len(said.pop("checksum")), said.pop("tensors")) == (1, 64, 3) and said == header


def file_of(entries, body, key=packing.FILE, **said):
    """The bytes of a file with safetensors' header as given, and a checksum that holds."""
    header = {"version": packing.FILE_VERSION, "checksum": "0" * 64, "tensors": len(entries)} | said
    text = json.dumps({"__metadata__": {key: json.dumps(header, separators=(",", ":"))}} | entries).encode()
    data = len(text).to_bytes(8, "little") + text + body
    return data.replace(b"0" * 64, hashlib.sha256(data).hexdigest().encode(), 1)


def entry(dtype="U8", shape=(4,), offsets=(0, 4), **more):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets} | more


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"a": entry(offsets=(1, 5))}, "does not fill the bytes 1 to 5"),
        ({"a": entry(offsets=(0, 5))}, "does not fill the bytes 0 to 5"),
        ({"a": entry(shape=(5,), offsets=(0, 5)), "b": entry(offsets=(4, 8))}, "does not fill the bytes 4 to 8"),
        ({"a": entry(), "b": entry()}, "does not fill the bytes 0 to 4"),
        ({"a": entry(), "b": entry(offsets=(5, 9))}, "does not fill the bytes 5 to 9"),
        ({"a": entry()}, "4 bytes belong to no tensor"),
        ({"a": entry(shape=(9,), offsets=(0, 9))}, "ends at byte 9 of 8"),
        ({"a": entry(offsets=(4, 0))}, "does not fill the bytes 4 to 0"),
        ({"a": entry("F32", (2**62, 4))}, "does not fill the bytes"),
        ({"a": entry("F32", (0, 2**62, 2**62), (0, 0)), "b": entry(shape=(8,), offsets=(0, 8))}, ""),
        ({"a": entry(shape=(-4,))}, r"has the shape \[-4\]"),
        ({"a": entry(shape=(4.0,))}, r"has the shape \[4.0\]"),
        ({"a": entry(shape=(True, 4))}, r"has the shape \[True, 4\]"),
        ({"a": entry(shape=4)}, "has the shape 4"),
        ({"a": entry(shape=(1,) * 65 + (4,))}, "2 offsets and 66 axes"),
        ({"a": entry(offsets=(0, 2, 4))}, "3 offsets and 1 axes"),
        ({"a": entry(offsets=(0, 10**30))}, "has the data_offsets"),
        ({"a": entry("I128")}, "has the unknown dtype 'I128'"),
        ({"a": entry(["U8"])}, r"has the unknown dtype \['U8'\]"),
        ({"a": entry(more=1)}, "does not have dtype, shape and data_offsets"),
        ({"a": [1]}, "does not have dtype, shape and data_offsets"),
        ({"a": entry("BOOL", (8,), (0, 8))}, "holds other numbers than 0 and 1"),
    ],
)
def test_what_safetensors_may_not_hold(entries, message):
    """Read without its library: whatever a header says, no byte is read that is not the tensor's."""
    with pytest.raises(FormatError, match=f"^load: the data is no valid safetensors file: .*{message}"):
        load(file_of(entries, bytes(range(8))))


def test_a_name_that_occurs_twice_and_other_json():
    good = file_of({"a": entry(shape=(8,), offsets=(0, 8))}, bytes(8))
    assert container.read_arrays(good, packing.FILE, (1,), "weight")[1]["a"].array.tolist() == [0] * 8
    for text in (
        b'{"a":1,"a":2}', b'{"__metadata__":{"fastq_weight":"{\\"version\\":1,\\"version\\":1}"}}', b"[" * 100_000, b"[]", b"{}",
        b'{"__metadata__":{"fastq_weight":7}}', b'{"__metadata__":[]}', b'{"a":' + b"9" * 5000 + b"}",
        b'{"a":NaN}', "{}".encode("utf-16"),
    ):  # fmt: skip
        with pytest.raises(FormatError, match="is no fastq weight"):
            container.read_arrays(len(text).to_bytes(8, "little") + text, packing.FILE, (1,), "weight")


def test_every_dtype_is_read_as_the_library_reads_it(tmp_path):
    """Those that NumPy has not as well, and tensors without elements or axes."""
    tensors = {}
    for dtype in safetensors.torch._TYPES.values():
        values = torch.arange(6, device="cpu") % 2 if dtype == torch.bool else torch.arange(6, device="cpu")
        tensors |= {f"{dtype}": values.to(dtype).reshape(2, 3), f"{dtype} none": torch.empty((0, 5), dtype=dtype, device="cpu")}
        tensors[f"{dtype} one"] = torch.ones((), device="cpu").to(dtype)
    container.write(tmp_path / "all", "x", 1, {}, tensors)
    read, arrays = (f(tmp_path / "all", "x", (1,), "file")[1] for f in (container.read, container.read_arrays))
    library = safetensors.torch.load_file(tmp_path / "all")
    assert set(read) == set(arrays) == set(library) == set(tensors)
    for name, t in library.items():
        assert read[name].dtype == t.dtype and read[name].shape == t.shape == arrays[name].array.shape
        assert read[name].reshape(-1).view(torch.uint8).tolist() == t.reshape(-1).view(torch.uint8).tolist()
        assert arrays[name].array.tobytes() == bytes(t.reshape(-1).view(torch.uint8).tolist())
        assert f"torch.{arrays[name].dtype}" == str(t.dtype) and not arrays[name].array.flags.writeable
