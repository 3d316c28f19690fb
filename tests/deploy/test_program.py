"""What a saved network says of itself runs without torch to the very bits of the network; what cannot is refused with a reason."""

import json
from pathlib import Path

import numpy as np
import program_networks
import pytest
import torch
import torch.nn.functional as F
from program_networks import Convolutions, Means, Pools, drawn, integers, perceptron, quantized_layers
from torch import nn

import fastq
from fastq import container, runtime
from fastq.demo import Digits
from fastq.deploy import FormatError
from fastq.deploy.program import program_of
from fastq.nn import LSQ, QuantLinear

pytestmark = pytest.mark.usefixtures("one_thread")


def header_of(data):
    return container.read_arrays(data, "fastq", (4,), "network")[0]


def check(network, model, *inputs, folder):
    """The runtime has the bits of the network that is loaded from the same file, on one thread and on two."""
    fastq.save(network, folder / "net")
    data = (folder / "net").read_bytes()
    assert header_of(data)["program_reason"] is None
    loaded = fastq.load(data, model)
    for threads in (1, 2):
        run = runtime.load(data, threads=threads)
        for x in inputs:
            y, expected = run(x.numpy()), loaded(x).numpy()
            assert y.shape == expected.shape == run.output_shape(x.shape) and y.dtype == np.float32
            assert y.flags.c_contiguous and y.tobytes() == expected.tobytes()
    return run


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
@pytest.mark.parametrize(
    ("architecture", "shape"),
    [(perceptron, (45,)), (Convolutions, (3, 14, 17)), (Digits, (1, 8, 8))],
    ids=lambda a: getattr(a, "__name__", ""),
)
def test_networks(architecture, shape, bits, tmp_path):
    torch.manual_seed(bits)
    model = architecture()
    x = drawn(9, *shape)
    run = check(integers(model, x, bits), model, x, x[:1], x[:0], drawn(70, *shape, seed=4), folder=tmp_path)
    assert run.input_shape == (None, shape[0], None, None)[: len(shape) + 1]


@pytest.mark.parametrize("size", [(9, 10), (21, 15)])
def test_pools(size, tmp_path):
    torch.manual_seed(0)
    model, x = Pools(), drawn(3, 2, *size)
    check(integers(model, x), model, x, drawn(1, 2, 30, 17), folder=tmp_path)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 4), (5, 5), (7, 7), (14, 14), (31, 33), (56, 57)])
def test_means_are_summed_in_the_order_of_torch(size, tmp_path):
    """Of fewer numbers than a vector has, of many; of one channel and of more than torch has side by side."""
    torch.manual_seed(0)
    model, x = Means(), drawn(2, 3, *size)
    check(integers(model, x), model, x, x[:1], folder=tmp_path)


def test_granularities_zero_points_and_layers_without_codes(tmp_path):
    model, x = quantized_layers(), drawn(5, 2, 6, 6)
    model(x)
    network = fastq.convert(model.eval().cpu())
    run = check(network, model, x, folder=tmp_path)
    assert run.layers == ("0", "2", "4", "7", "8")
    for place, dtype in ((0, torch.uint8), (2, torch.int8), (7, torch.uint8)):
        old = network[place].weight
        low, high = (0, 2**old.bits) if dtype == torch.uint8 else (-(2 ** (old.bits - 1)), 2 ** (old.bits - 1))
        draw = torch.Generator("cpu").manual_seed(place)
        codes = torch.randint(low, high, old.shape, generator=draw, device="cpu").to(dtype)
        zero = torch.randint(low, high, old.scale.shape, generator=draw, device="cpu")
        network[place].weight = fastq.pack(codes, old.bits, scale=old.scale, zero_point=zero, group_size=old.group_size)
    check(network, model, x, drawn(1, 2, 6, 6, seed=9), folder=tmp_path)


def test_a_layer_by_itself(tmp_path):
    layer = QuantLinear(8, 5, weight_quantizer=LSQ(4), input_quantizer=LSQ(4))
    layer(drawn(4, 8))
    check(fastq.convert(layer.cpu()), layer, drawn(4, 8), folder=tmp_path)


def test_a_sample_with_nan_is_nan_whole(tmp_path):
    """Where a layer takes numbers and gives numbers, as it says there; infinities are clipped."""
    model, x = nn.Sequential(nn.Conv2d(2, 3, 3)), drawn(4, 2, 5, 5)
    network = integers(model, x)
    x[1, 0, 0, 0], x[2, 1, 4, 4], x[3, 1, 2, 2] = torch.nan, torch.inf, -torch.inf
    run = check(network, model, x, folder=tmp_path)
    y = run(x.numpy())
    assert np.isnan(y[1]).all() and np.isfinite(y[[0, 2, 3]]).all()


class Calls(nn.Module):
    """One layer, and a function of what it gives."""

    def __init__(self, function, **modules):
        super().__init__()
        self.layer, self.function = nn.Conv2d(2, 4, 3), function
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.function(self, self.layer(x))


@pytest.mark.parametrize(
    ("function", "modules", "reason"),
    [
        (lambda net, x: torch.sigmoid(x), {}, "it calls sigmoid, which the runtime does not have"),
        (lambda net, x: net.act(x), {"act": nn.Hardswish()}, "act is a Hardswish, which the runtime does not have"),
        (lambda net, x: (x, x), {}, "its output is not one tensor that it computes"),
        (lambda net, x: x.mean(1), {}, "a mean over other axes than the last two of four"),
        (lambda net, x: x.view(2, -1), {}, r"a view as \(2, -1\)"),
        (lambda net, x: x + 1, {}, "add is called in a way that the runtime does not know: 1 is none of its tensors"),
        (lambda net, x: x + F.relu_(x), {}, "changes in place what others use too"),
        (lambda net, x: torch.flatten(x, 2), {}, "it calls flatten"),
        (lambda net, x: F.adaptive_avg_pool2d(x, (None, 2)), {}, "adaptive_avg_pool2d is called in a way that"),
    ],
)
def test_what_has_no_program_says_why(function, modules, reason, tmp_path):
    model, x = Calls(function, **modules), drawn(2, 2, 6, 6)
    network = integers(model, x)
    fastq.save(network, tmp_path / "net")
    with pytest.raises(FormatError, match=f"has no program, for the network is not all fastq's: .*{reason}"):
        runtime.load(tmp_path / "net")
    assert torch.equal(fastq.load(tmp_path / "net", model)(x)[0], network(x)[0])


def test_other_layers_have_no_program(tmp_path):
    x = drawn(3, 2, 6, 6)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    prepared = fastq.prepare(model, fastq.recipes.RECIPES["direct"]()).model
    prepared(x)
    fastq.save(fastq.convert(prepared.eval()), tmp_path / "net")
    assert header_of((tmp_path / "net").read_bytes())["program_reason"] == "1 is a LookupConv, which computes with torch"
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU())
    prepared = fastq.prepare(model, fastq.recipes.lsq(4, 4)).model
    prepared(x)
    fastq.save(fastq.convert(prepared.eval(), fuse=False), tmp_path / "net")
    assert "it is not fused" in header_of((tmp_path / "net").read_bytes())["program_reason"]
    hooked = fastq.convert(prepared.eval())
    hooked[0].register_forward_hook(lambda *a: None)
    fastq.save(hooked, tmp_path / "net")
    assert "0 has forward hooks" in header_of((tmp_path / "net").read_bytes())["program_reason"]


def test_older_files_have_none():
    with pytest.raises(FormatError, match="format version 1, which has no program"):
        runtime.load(Path(__file__).with_name("version1.safetensors"))


def rewritten(data, change, folder):
    """The file with its header and tensors changed, and a checksum that holds."""
    header, tensors = container.read(data, "fastq", (4,), "network")
    header, tensors = json.loads(json.dumps(header)), dict(tensors)
    change(header, tensors)
    said = {k: v for k, v in header.items() if k not in ("version", "checksum", "tensors")}
    container.write(folder / "lie", "fastq", 4, said, tensors)
    return (folder / "lie").read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, t: h["program"].update(output=9), "takes the value of step 9 of"),
        (lambda h, t: h["program"].update(output=0, steps=[{"op": "input"}, {}]), "it has no 'op'"),
        (lambda h, t: h["program"]["steps"][1].update(input=1), "takes the value of step 1 of 1 before it"),
        (lambda h, t: h["program"]["steps"][1].update(op="exec"), "unknown step 'exec'"),
        (lambda h, t: h["program"]["steps"][1].update(activation="gelu"), "the activation 'gelu'"),
        (lambda h, t: h["program"]["steps"][-1].update(layer="9"), "it has no '9'"),
        (lambda h, t: h["layers"]["7"].update(weight_groups=32, group_size=32), "a scale of"),
        (lambda h, t: h["layers"]["2"].update(qmin=1), "takes codes from 1 to 15"),
        (lambda h, t: h["program"]["steps"][1].update(codes_for="7"), "2 is given codes of another grid than its own"),
        (lambda h, t: h["layers"]["2"].update(stride=[0, 1]), "a number of the window must be from 1"),
        (lambda h, t: h["layers"]["2"].update(dilation=[2**40, 1]), r"dilation must be an integer below 2\*\*31"),
        (lambda h, t: t.update({"2.weight_scale": t["2.weight_scale"] * torch.nan}), "one that is not finite"),
        (lambda h, t: t.update({"2.bias": torch.ones(3)}), "bias has 3 elements for 6"),
        (lambda h, t: t.update({"2.weight": t["2.weight"][:, 1:].contiguous()}), "codes of shape"),
        (lambda h, t: t.update({"2.input_step": torch.ones(1, dtype=torch.bfloat16)}), "2.input_step is of bfloat16, not float32"),
        (lambda h, t: t.update({"2.scale": torch.ones(6)}), "2 has scale, which this runtime does not know"),
    ],
)  # fmt: skip
def test_a_file_that_lies_is_refused(change, message, tmp_path):
    model, x = quantized_layers(), drawn(5, 2, 6, 6)
    model(x)
    fastq.save(fastq.convert(model.eval().cpu()), tmp_path / "net")
    lie = rewritten((tmp_path / "net").read_bytes(), change, tmp_path)
    with pytest.raises(FormatError, match=f"^load: the data does not hold a network: .*({message})"):
        runtime.load(lie)


@pytest.mark.parametrize("name", program_networks.NETWORKS)
def test_the_fixtures_are_current(name):
    """Those of tests/runtime, which runs without torch: the file is what is written today, its outputs are those of torch."""
    data = (program_networks.FIXTURES / f"{name}.safetensors").read_bytes()
    model, network, _ = program_networks.network_of(name)
    arrays = np.load(program_networks.FIXTURES / f"{name}.npz")
    assert fastq.load(data, model)(torch.from_numpy(arrays["x"])).numpy().tobytes() == arrays["y"].tobytes()
    header = header_of(data)
    assert header["program"] == program_of(network) and header["layers"].keys() == {
        n for n, m in network.named_modules() if hasattr(m, "codes")
    }
