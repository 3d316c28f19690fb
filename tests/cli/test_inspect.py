"""``python -m fastq inspect``: what a file holds, as a table and as JSON; one line and exit status 2 for what cannot be read."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from device import DEVICE, drawn
from torch import nn

import fastq
from fastq import container, inspect_file
from fastq.__main__ import main
from fastq.deploy import storage
from fastq.nn import LSQ, DirectLinear, DirectWeight, QuantConv2d, QuantLinear

VERSION1 = Path(__file__).parents[1] / "deploy" / "version1.safetensors"


def network():
    """A convolution with an offset and 5-bit weights, a layer per group, one of weights alone, one by look-up, and a batch norm."""
    torch.manual_seed(0)
    conv = QuantConv2d(2, 4, 3, padding=1, weight_quantizer=LSQ(5, axis=0, shape=(4,)), input_quantizer=LSQ(4, offset=True))
    grouped = QuantLinear(64, 32, weight_quantizer=LSQ(4, group_size=16, shape=(32, 4)), input_quantizer=LSQ(8, signed=False))
    only = QuantLinear(32, 16, bias=False, weight_quantizer=LSQ(3), input_quantizer=None)
    direct = DirectLinear.from_float(nn.Linear(16, 6), DirectWeight(2))
    model = nn.Sequential(conv, nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), grouped, only, direct).to(DEVICE)
    model(drawn((8, 2, 4, 4), 1))
    return fastq.convert(model)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    fastq.save(network(), folder / "net.fastq")
    codes = torch.randint(0, 16, (8, 40), dtype=torch.uint8, device="cpu")
    fastq.pack(codes, 4, scale=torch.linspace(0.5, 2.0, 8, device="cpu"), zero_point=8).save(folder / "weight.fastq")
    return folder


def report(path, capsys):
    assert main(["inspect", str(path), "--json"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    return json.loads(printed.out)


def test_a_network(files, capsys):
    path = files / "net.fastq"
    found = report(path, capsys)
    header, tensors = container.read(path, "fastq", storage.VERSIONS, "network")
    assert found["kind"] == "network" and found["version"] == header["version"] and found["checksum"] == header["checksum"]
    assert found["fused"] == header["fused"] and found["bytes"] == path.stat().st_size
    assert ("program" in found) == ("program" in header)
    conv, grouped, only, direct = found["layers"]
    assert [layer["name"] for layer in found["layers"]] == ["0", "4", "5", "6"]
    assert [layer["kind"] for layer in found["layers"]] == ["conv", "linear", "weight-only linear", "lookup linear"]
    assert [layer["shape"] for layer in found["layers"]] == [[4, 2, 3, 3], [32, 64], [16, 32], [6, 16]]
    assert [(layer["weight_bits"], layer["stored_bits"]) for layer in found["layers"]] == [(5, 8), (4, 4), (3, 3), (2, 2)]
    assert [layer["granularity"] for layer in found["layers"]] == ["channel", "group of 16", "tensor", "tensor"]
    assert [layer["offset"] for layer in found["layers"]] == [True, False, False, False]
    assert conv["input_codes"] == [-8, 7] and conv["input_bits"] == 4
    assert grouped["input_codes"] == [0, 255] and grouped["input_bits"] == 8
    assert only["input_codes"] is None and only["input_bits"] is None
    # sizes: 3 bits of each of 32 codes of a row, a step; 2 bits of each code, a level of each, a bias
    assert only["bytes"] == 16 * 32 * 3 // 8 + 4 and only["float32_bytes"] == 16 * 32 * 4
    assert direct["bytes"] == 6 * 16 * 2 // 8 + 4 * 4 + 6 * 4 and direct["float32_bytes"] == (6 * 16 + 6) * 4
    whole = sum(layer["bytes"] for layer in found["layers"]) + found["other_bytes"]
    assert whole == sum(t.numel() * t.element_size() for t in tensors.values())
    assert found["other_tensors"] == 5  # the batch norm's
    assert found["compression"] == round(found["float32_bytes"] / whole, 2) > 3


def test_scales_are_those_of_the_weights(files, capsys):
    """Of a layer that is not plain, whose file has their products with the input's step, as well."""
    model = network()
    layers = report(files / "net.fastq", capsys)["layers"]
    conv, grouped = model[0], model[4]
    steps = [conv.scale / conv.input_step, grouped.weight.scale, model[5].weight.scale, model[6].levels]
    for layer, step in zip(layers, steps, strict=True):
        assert layer["scale"] == pytest.approx([float(step.min()), float(step.max())], rel=1e-6)  # an ulp or two of float32


def test_groups_of_a_layer_with_an_offset_are_those_of_its_rows(tmp_path, capsys):
    torch.manual_seed(0)
    model = QuantLinear(
        64, 8, weight_quantizer=LSQ(4, group_size=32, shape=(8, 2), offset=True), input_quantizer=LSQ(8)
    ).to(DEVICE)  # fmt: skip
    model(drawn((8, 64), 1))
    fastq.save(fastq.convert(model), tmp_path / "net")
    (layer,) = report(tmp_path / "net", capsys)["layers"]
    assert layer["shape"] == [8, 64] and layer["granularity"] == "group of 32" and layer["name"] == "" and layer["offset"]


def test_a_packed_weight(files, capsys):
    found = report(files / "weight.fastq", capsys)
    (layer,) = found["layers"]
    assert found["kind"] == "packed weight" and "fused" not in found and "program" not in found
    assert layer["shape"] == [8, 40] and layer["weight_bits"] == 4 and layer["granularity"] == "channel" and layer["offset"]
    assert layer["scale"] == [0.5, 2.0] and layer["bytes"] == 8 * 20 + 8 * 4 + 8


def test_an_old_file(capsys):
    found = report(VERSION1, capsys)
    assert found["version"] == 1 and [layer["shape"] for layer in found["layers"]] == [[4, 2, 3, 3], [3, 64]]
    assert [layer["granularity"] for layer in found["layers"]] == ["channel", "group of 16"]


def test_the_table(files, capsys):
    assert main(["inspect", str(files / "net.fastq")]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = report(files / "net.fastq", capsys)
    assert any(line.split()[:2] == ["checksum", found["checksum"]] and "verified" in line for line in lines)
    rows = [line.split() for line in lines]
    for layer in found["layers"]:
        (row,) = [row for row in rows if row[:1] == [layer["name"]]]
        assert {"x".join(map(str, layer["shape"])), str(layer["bytes"]), f"{layer['compression']:.2f}x"} <= set(row)
    assert "5 in 8" in "\n".join(lines)


@pytest.mark.parametrize("program", [{"steps": []}, None])
def test_whether_it_runs_without_torch(tmp_path, capsys, program):
    header = {
        "layers": {},
        "fused": True,
        "program": program,
        "program_reason": None if program else "layer 3 is no layer of fastq's",
    }
    container.write(tmp_path / "net", "fastq", storage.VERSIONS[-1], header, {})
    found = report(tmp_path / "net", capsys)
    assert found["program"] is (program is not None) and found["compression"] is None and found["fused"] is True
    assert main(["inspect", str(tmp_path / "net")]) == 0
    out = capsys.readouterr().out
    assert ("yes, it runs without torch" if program else "no: layer 3 is no layer of fastq's") in out


def refused(path, capsys):
    """The line on stderr."""
    assert main(["inspect", str(path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("inspect: ") and printed.err.count("\n") == 1
    return printed.err


def test_damaged_files(files, tmp_path, capsys):
    path = tmp_path / "damaged"
    for name in ("net.fastq", "weight.fastq"):
        data = (files / name).read_bytes()
        for position in range(0, len(data), 41):
            broken = bytearray(data)
            broken[position] ^= 1 << (position % 8)
            path.write_bytes(broken)
            assert str(path) in refused(path, capsys)
        for length in (0, 7, 8, 100, len(data) // 2, len(data) - 1):
            path.write_bytes(data[:length])
            assert str(path) in refused(path, capsys)


def test_foreign_files_and_none(tmp_path, capsys):
    path = tmp_path / "file"
    path.write_bytes(safetensors.torch.save({"a": torch.ones(3, device="cpu")}))
    assert "is no fastq network or packed weight" in refused(path, capsys)
    path.write_bytes(b"PK\3\4" * 40)
    assert "is truncated or no safetensors file" in refused(path, capsys)
    container.write(path, "fastq", 9, {"layers": {}}, {})
    assert "has format version 9; this fastq reads" in refused(path, capsys)
    assert f"cannot read {tmp_path / 'absent'}: No such file" in refused(tmp_path / "absent", capsys)
    assert f"cannot read {tmp_path}: Is a directory" in refused(tmp_path, capsys)


@pytest.mark.parametrize(
    "layers", [None, [1], {"a": 1}, {"a": {"kind": "linear"}}, {"a": {"kind": "conv", "shape": [1, 1], "bits": 4, "signed": True}}]
)
def test_an_intact_file_that_contradicts_itself(tmp_path, capsys, layers):
    container.write(tmp_path / "net", "fastq", storage.VERSIONS[-1], {"layers": layers}, {})
    assert "does not hold what it says" in refused(tmp_path / "net", capsys)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": [-8, 40]}, "shape has -8"),
        ({"shape": [8, True]}, "shape has True"),
        ({"bits": 0}, "bits has 0"),
        ({"bits": 4.5}, "bits has 4.5"),
        ({"weight_groups": -16}, "weight_groups has -16"),
        ({"weight_range": [7, 7]}, "codes are from 7 to 7"),
        ({"qmin": 3, "qmax": -3}, "codes are from 3 to -3"),
        ({"scale": float("nan")}, "a step is not finite"),
    ],
)
def test_numbers_that_are_none(tmp_path, capsys, change, message):
    step = torch.tensor([change.pop("scale", 1.0)], device="cpu")
    numbers = {"kind": "linear", "shape": [8, 40], "bits": 4, "signed": True, "weight_groups": None, **change}
    container.write(tmp_path / "net", "fastq", storage.VERSIONS[-1], {"layers": {"a": numbers}}, {"a.weight_scale": step})
    assert f"does not hold what it says: {message}" in refused(tmp_path / "net", capsys)


def test_names_that_no_terminal_shows(tmp_path, capsys):
    numbers = {"kind": "lin\near", "shape": [8, 40], "bits": 4, "signed": True, "weight_groups": None}
    scale = {"a\x1b[31m.weight_scale": torch.ones(1, device="cpu")}
    header = {"layers": {"a\x1b[31m": numbers}, "program": None, "program_reason": "\ud800\r"}
    container.write(tmp_path / "net", "fastq", storage.VERSIONS[-1], header, scale)
    assert main(["inspect", str(tmp_path / "net")]) == 0
    out = capsys.readouterr().out
    assert "a\\x1b[31m" in out and "lin\\near" in out and "no: \\ud800\\r" in out


def test_it_needs_neither_torch_nor_rich(files):
    program = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['rich'] = None\n"
        "from fastq.__main__ import main\n"
        "sys.exit(main(['inspect', sys.argv[1]]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, files / "net.fastq"], capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 0, done.stderr
    assert "weight-only linear" in done.stdout and "verified" in done.stdout


def test_it_reads_what_is_written():
    assert inspect_file.VERSIONS["fastq"] == storage.VERSIONS
    assert inspect_file.VERSIONS["fastq_weight"] == (fastq.packing.FILE_VERSION,)
