"""Any weight goes through every layout and format and back; a broken or dishonest file gives FormatError and nothing else."""

import copy
import json
import tempfile
from pathlib import Path

import pytest
import torch
from device import DEVICE
from engine_cases import drawn_codes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packing_cases import same, weight
from torch import nn

import fastq
from fastq import container, packing
from fastq.deploy import FormatError
from fastq.nn import LSQ, QuantConv2d, QuantLinear
from fastq.packed_formats import from_gptq, from_int4pack, to_gptq, to_int4pack
from fastq.packing import BITS, LAYOUTS, PackedWeight, pack

FUZZ = settings(derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck), max_examples=80)
#: What stands in JSON, and what somebody might put there.
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 70), st.sampled_from([2**31, 2**63, -(2**63) - 1, 10**30]), st.floats(),
    st.sampled_from(["", "3", "linear", "conv", "lookup linear", "weight-only conv", "rows", "zeros", "same", "channel"]),
    st.lists(st.integers(-1, 40), max_size=4), st.just({}),
)  # fmt: skip


@st.composite
def weights(draw):
    """Codes and their weight, of any shape, width and granularity."""
    bits, dtype = draw(st.sampled_from(BITS)), draw(st.sampled_from([torch.int8, torch.uint8]))
    shape = draw(
        st.one_of(
            st.tuples(st.integers(0, 40), st.integers(0, 150)),
            st.tuples(*[st.sampled_from([16, 32, 64, 96])] * 2),
            st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 3)),
            st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 3), st.integers(0, 3)),
        )
    )
    group_size = draw(st.sampled_from([None, 16, 32, 48])) if len(shape) == 2 else None
    codes = drawn_codes(shape, bits, dtype, draw(st.integers(0, 9)), extreme=draw(st.booleans()))
    scales = (shape[0], -(-shape[1] // group_size)) if group_size else draw(st.sampled_from([(1,), shape[:1]]))
    zero = drawn_codes(scales, bits, dtype, 1) if draw(st.booleans()) else None
    scale = drawn_codes(scales, 8, torch.int8, 2) / 64  # numbers of bfloat16, of any sign, and 0
    return codes, pack(codes, bits, scale=scale, zero_point=zero, group_size=group_size)


@FUZZ
@given(weights())
def test_round_trips(drawn):
    codes, packed = drawn
    for layout in LAYOUTS:
        moved = packed.to(DEVICE, layout)
        assert torch.equal(moved.unpack(), codes)
        same(moved.to(DEVICE), packed)
        assert torch.equal(moved.dequantize(), packed.dequantize())
    with tempfile.TemporaryDirectory() as folder:
        packed.save(Path(folder) / "w")
        same(PackedWeight.load(Path(folder) / "w").to(DEVICE), packed)
    for there, back in ((lambda: to_gptq(packed, minus_one=False), from_gptq), (lambda: to_int4pack(packed), from_int4pack)):
        try:
            theirs = there()
        except ValueError:  # it cannot hold this one, and says so
            continue
        more = {"minus_one": False} if back is from_gptq else {}
        again = back(*theirs, signed=packed.signed, **more)
        assert torch.equal(again.unpack(), codes) and torch.equal(again.dequantize(), packed.dequantize())


def network():
    torch.manual_seed(0)
    conv = QuantConv2d(2, 4, 3, padding=1, weight_quantizer=LSQ(2, axis=0, shape=(4,)), input_quantizer=LSQ(4, signed=False))
    grouped = QuantLinear(32, 3, weight_quantizer=LSQ(4, group_size=16, shape=(3, 2)), input_quantizer=LSQ(4, signed=False))
    last = QuantLinear(3, 2, weight_quantizer=LSQ(3))
    return nn.Sequential(conv, nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 9, 32), grouped, last)


class Saved:
    """A kind of file: its bytes, how it is read, and what its header and tensors are."""

    def __init__(self, path, key, version, load):
        self.data, self.key, self.version, self.load = path.read_bytes(), key, version, load
        self.header, self.tensors = container.read(path, key, (version,), "file")

    def written(self, header, tensors):
        """The bytes of an intact file of these."""
        with tempfile.TemporaryDirectory() as folder:
            honest = {"version", "checksum"} | ({"tensors"} if header.get("tensors") == self.header["tensors"] else set())
            said = {k: v for k, v in header.items() if k not in honest}
            container.write(Path(folder) / "w", self.key, self.version, said, tensors)
            return (Path(folder) / "w").read_bytes()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    weight((6, 45), 3, torch.uint8, 16, zeros=True)[1].save(folder / "weight")
    model = network()
    model(torch.rand(4, 2, 6, 6))
    fastq.save(fastq.convert(model.eval().cpu()), folder / "network")
    plain = network().cpu()
    header = json.loads(_metadata((folder / "network").read_bytes())["fastq"])
    return {
        "weight": Saved(folder / "weight", packing.FILE, packing.FILE_VERSION, PackedWeight.load),
        "network": Saved(folder / "network", "fastq", header["version"], lambda data: fastq.load(data, plain)),
    }


def _metadata(data):
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]


def damaged(draw, data):
    """``data`` with bytes changed, removed or put in."""
    broken = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(broken) - 1))
        kind = draw(st.integers(0, 3))
        if kind == 0:
            broken[at] = draw(st.integers(0, 255))
        elif kind == 1:
            broken[at:at] = draw(st.binary(min_size=1, max_size=9))
        elif kind == 2:
            del broken[at : at + draw(st.integers(1, 9))]
        else:
            del broken[at:]
        if not broken:
            break
    return bytes(broken)


@pytest.mark.parametrize("kind", ["weight", "network"])
def test_damaged_bytes(saved, kind):
    file = saved[kind]

    @FUZZ
    @given(st.data())
    def damage(data):
        broken = damaged(data.draw, file.data)
        if broken != file.data:
            with pytest.raises(FormatError):
                file.load(broken)

    damage()


def places(value, path=()):
    """The paths to everything in a header."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def put(value, path, new, remove):
    """``value`` with what is at ``path`` replaced or removed."""
    value = copy.deepcopy(value)
    at = value
    for key in path[:-1]:
        at = at[key]
    if remove:
        del at[path[-1]]
    else:
        at[path[-1]] = new
    return value


@pytest.mark.parametrize("kind", ["weight", "network"])
def test_dishonest_headers(saved, kind):
    """With a checksum that holds: refused, or no contradiction, as a number that is another of its kind."""
    file = saved[kind]
    paths = sorted((path for path in places(file.header) if path and path[0] not in ("version", "checksum")), key=str)

    @FUZZ
    @given(st.sampled_from(paths), VALUES, st.booleans())
    def lie(path, new, remove):
        computes(file, file.written(put(file.header, path, new, remove), file.tensors))

    lie()


@pytest.mark.parametrize(
    ("path", "new", "message"),
    [
        (("0", "stride", 0), 2, r"stride \(2, 1\) in the place of \(1, 1\)"),
        (("0", "padding", 3), 0, r"padding \(1, 1, 1, 0\) in the place of \[1, 1, 1, 1\]"),
        (("0", "groups"), 2, "groups 2 in the place of 1"),
        (("0", "dims"), 1, "dims 1 in the place of 2"),
        (("0", "padding_mode"), "circular", "padding_mode 'circular' in the place of 'zeros'"),
        (("0", "shape"), [4, 2, 1, 9], r"a weight of shape \(4, 2, 1, 9\) in the place of \(4, 2, 3, 3\)"),
        (("0", "bits"), 4, r"20 bytes of codes for the shape \(4, 2, 3, 3\) in 4 bits"),
        (("6", "kind"), "weight-only conv", ""),
        (("6", "qmax"), 0, r"codes of the input in the range \(0, 0\)"),
        (("6", "qmax"), 10**30, "codes from 0 to 10* do not fit 8 bits"),
        (("6", "qmax"), float("inf"), "cannot convert float infinity to integer"),
        (("6", "odd_inputs"), True, "takes codes of an even grid without an offset, with a zero among them; got "),
    ],
)
def test_a_network_that_is_another(saved, path, new, message):
    file = saved["network"]
    with pytest.raises(FormatError, match=rf"^load: the data does not fit the model: .*{message}"):
        file.load(file.written(put(file.header, ("layers", *path), new, False), file.tensors))


@pytest.mark.parametrize("kind", ["weight", "network"])
def test_dishonest_tensors(saved, kind):
    file = saved[kind]
    dtypes = [torch.int8, torch.uint8, torch.int32, torch.int64, torch.float16, torch.float32, torch.bool]

    @FUZZ
    @given(
        st.sampled_from(sorted(file.tensors)),
        st.sampled_from(["drop", "add", "cast", "cut", "wrap", "nan", "max"]),
        st.sampled_from(dtypes),
    )
    def lie(name, what, dtype):
        t = file.tensors[name]
        tensors = {k: v for k, v in file.tensors.items() if k != name or what != "drop"}
        if what == "add":
            tensors[name + "_"] = t.clone()
        elif what == "cast":
            tensors[name] = t.to(dtype)
        elif what == "cut":
            tensors[name] = t[: len(t) // 2].contiguous() if t.dim() else t.expand(2).contiguous()
        elif what == "wrap":
            tensors[name] = t.unsqueeze(0)
        elif what in ("nan", "max"):
            tensors[name] = torch.full_like(t, float("nan") if what == "nan" else torch.inf) if t.is_floating_point() else ~t
        computes(file, file.written(file.header, tensors))

    lie()


@pytest.mark.parametrize(
    ("name", "new", "message"),
    [
        ("0.bias", torch.ones(3), r"bias of torch\.float32 \(3,\) for 4 outputs"),
        ("0.bias", torch.ones(4, dtype=torch.int32), r"bias of torch\.int32 \(4,\) for 4 outputs"),
        ("0.input_step", torch.ones(2), r"input_step of torch\.float32 \(2,\) for 4 outputs"),
        ("0.weight_scale", torch.full((4,), float("nan")), "one that is not finite"),
    ],
)
def test_tensors_of_another_network(saved, name, new, message):
    file = saved["network"]
    assert name in file.tensors
    with pytest.raises(FormatError, match=rf"^load: the data does not fit the model: .*{message}"):
        file.load(file.written(file.header, file.tensors | {name: new.cpu()}))


def computes(file, data):
    """``data`` is refused, or what it gives is whole: a weight that packs to itself, a network that computes."""
    try:
        loaded = file.load(data)
    except FormatError:
        return
    if isinstance(loaded, PackedWeight):
        same(
            pack(loaded.unpack(), loaded.bits, scale=loaded.scale, zero_point=loaded.zero_point, group_size=loaded.group_size),
            loaded,
        )
        assert loaded.dequantize().shape == loaded.shape
    else:
        with torch.no_grad():
            assert len(loaded(torch.rand(2, 2, 6, 6, device="cpu"))) == 2
