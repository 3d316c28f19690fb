"""``torch.export`` of a converted network: exported, saved, loaded and run with batches of other sizes, it has the same bits."""

import io
import subprocess
import sys

import pytest
import torch
from device import DEVICE, drawn
from quantizers import INPUTS, WEIGHTS, trained
from torch import nn

import fastq
from fastq.demo import Digits
from fastq.deploy import IntegerConv, IntegerLinear, LookupLinear, WeightOnlyLinear, convert
from fastq.deploy.fusion import fused
from fastq.nn import LSQ, QUANTIZED

pytestmark = pytest.mark.usefixtures("one_thread")


def saved(network, x, **keywords):
    """The bytes of ``network`` exported with a dynamic batch."""
    batch = torch.export.Dim("batch", min=1, max=4096)
    file = io.BytesIO()
    torch.export.save(torch.export.export(network, (x[:2],), dynamic_shapes=({0: batch},), **keywords), file)
    return file.getvalue()


def loaded(data):
    return torch.export.load(io.BytesIO(data)).module()


@pytest.mark.parametrize(("fuse", "strict"), [(True, False), (False, True)])
def test_the_digits_network(fuse, strict):
    torch.manual_seed(0)
    x = drawn((7, 1, 8, 8), 1).abs()
    model = fastq.prepare(Digits().to(DEVICE), fastq.recipes.lsq(4, 4)).model
    model(x)
    network = convert(model, fuse=fuse)
    assert fused(network) == fuse
    again = loaded(saved(network, x, strict=strict))
    for rows in (1, 2, 7):
        assert torch.equal(again(x[:rows]), network(x[:rows]))


def every_kind():
    """A convolution with offsets, a linear layer per group, one of weights alone, one by look-up; and an input."""
    torch.manual_seed(0)
    x = drawn((5, 2, 4, 4), 2).abs()
    layers = (
        (nn.Conv2d(2, 4, 3, padding=1), WEIGHTS["lsq+"](4, axis=0, shape=(4,)), INPUTS["lsq+"](4), x),
        (nn.Linear(64, 32), LSQ(4, group_size=16, shape=(32, 4)), LSQ(8), drawn((5, 64), 3)),
        (nn.Linear(32, 32), LSQ(3, axis=0, shape=(32,)), None, None),
        (nn.Linear(32, 6), WEIGHTS["lsq+"](4), None, None),
    )
    made = []
    for layer, weight, source, given in layers:
        source = None if source is None else trained(source, given)
        weight = trained(weight, layer.weight)
        made.append(QUANTIZED[type(layer)].from_float(layer, weight_quantizer=weight, input_quantizer=source))
    return convert(nn.Sequential(made[0], nn.ReLU(), nn.Flatten(), *made[1:]).to(DEVICE)), x


def test_every_kind_of_layer_in_another_process(tmp_path):
    """The file needs the operators that ``import fastq.deploy`` registers, and no network."""
    network, x = every_kind()
    kinds = [type(m) for m in network if type(m).__module__.startswith("fastq")]
    assert kinds == [IntegerConv, IntegerLinear, WeightOnlyLinear, LookupLinear]
    expected = {
        rows: network(x[:rows]) for rows in (1, 5)
    }  # products of floating point depend on the number of rows and of threads
    (tmp_path / "net.pt2").write_bytes(saved(network, x))
    torch.save({"x": x, "expected": expected}, tmp_path / "tensors.pt")
    program = (
        "import sys, torch, fastq.deploy\n"
        "torch.set_num_threads(1)\n"
        "network, t = torch.export.load(sys.argv[1]).module(), torch.load(sys.argv[2])\n"
        "for rows, y in t['expected'].items():\n"
        "    assert torch.equal(network(t['x'][:rows]), y), rows\n"
    )
    arguments = [sys.executable, "-c", program, tmp_path / "net.pt2", tmp_path / "tensors.pt"]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
