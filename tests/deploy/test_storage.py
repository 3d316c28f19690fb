"""A saved network comes back bit for bit; any damage gives one error; and the comparison counts what differs."""

import copy
from pathlib import Path

import pytest
import safetensors.torch
import torch
from device import DEVICE
from torch import nn

import fastq
from fastq.deploy import FormatError, compare, convert, load, save
from fastq.deploy.storage import _pack, _unpack
from fastq.nn import LSQ, QuantConv2d, QuantLinear


def float_model():
    torch.manual_seed(0)
    features = (nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    return nn.Sequential(*features, nn.Linear(64, 3), nn.Linear(3, 3))


def quantized():
    net = float_model()
    net[0] = QuantConv2d.from_float(
        net[0], weight_quantizer=LSQ(2, axis=0, shape=(4,)), input_quantizer=LSQ(8, signed=False, offset=True)
    )
    net[4] = QuantLinear.from_float(
        net[4], weight_quantizer=LSQ(4, group_size=16, shape=(3, 4)), input_quantizer=LSQ(4, signed=False)
    )
    net(torch.randn(8, 2, 4, 4))
    return net


X = torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(1), device="cpu").to(DEVICE)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "net.safetensors"
    network = convert(quantized())
    assert save(network, path) == path.stat().st_size
    return network, path.read_bytes(), path


@pytest.mark.parametrize("low_high", [(-2, 1), (-1, 1), (-4, 3), (-8, 7), (-16, 15), (-128, 127), (0, 1)])
def test_packing_is_exact(low_high):
    low, high = low_high
    codes = torch.randint(low, high + 1, (5, 7), dtype=torch.int8)
    packed = _pack(codes, low_high)
    assert packed.numel() == -(-35 * (high - low).bit_length() // 8)
    assert torch.equal(_unpack(packed, (5, 7), low_high), codes.cpu())


@pytest.mark.parametrize("architecture", [float_model, quantized])
def test_round_trip(saved, architecture):
    network, data, path = saved
    model = architecture()
    before = copy.deepcopy(model.state_dict())
    for source in (path, data):
        again = fastq.load(source, model).to(DEVICE)
        assert torch.equal(again(X), network(X)) and not again.training
    after = model.state_dict()
    assert list(before) == list(after) and all(torch.equal(before[k], after[k]) for k in before)
    assert not path.with_name(path.name + ".part").exists()


def test_what_is_not_enabled_stays_so(tmp_path):
    net = quantized()
    for quantizer in (net[4].weight_quantizer, net[4].input_quantizer):
        quantizer.set_bits(None)
    network = convert(net.eval())
    save(network, tmp_path / "net")
    again = load(tmp_path / "net", quantized()).to(DEVICE)
    assert torch.equal(again(X), network(X)) and not again[4].weight_quantizer.enabled
    assert load(tmp_path / "net", net)[4].input_quantizer.enabled is False


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("recipe", ["lsq", "direct"])
def test_half_precision_finds_the_codes_of_the_fake_quantized_network(recipe, dtype):
    net = fastq.prepare(float_model(), fastq.recipes.RECIPES[recipe]()).model.eval()
    net(X.cpu())
    network = convert(net)
    x = torch.randn(64, 2, 4, 4, generator=torch.Generator().manual_seed(2))
    codes = network[0].quantize(x.to(dtype))
    for half in (network.to(dtype), convert(net.to(dtype))):
        assert torch.equal(half[0].quantize(x.to(dtype)), codes)
        y = half(x.to(dtype))
        # half precision between the layers may put a value on the other side of a later rounding: a code, not more
        assert y.dtype == dtype and torch.allclose(y.float(), net(x.to(dtype)).float(), rtol=0, atol=0.04)


def test_saving_twice_gives_the_same_bytes(saved, tmp_path):
    save(load(saved[2], float_model()), tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == saved[1]


def test_a_model_that_is_none(saved):
    with pytest.raises(TypeError, match=r"load: model must be a torch\.nn\.Module, got NoneType"):
        load(saved[2], None)


def test_every_flipped_bit_is_found(saved):
    data, model = saved[1], float_model()
    for position in range(0, len(data), 3):
        broken = bytearray(data)
        broken[position] ^= 1 << (position % 8)
        with pytest.raises(FormatError) as caught:
            load(bytes(broken), model)
        assert "\n" not in str(caught.value)


def test_truncated(saved):
    data, model = saved[1], float_model()
    for length in [0, 1, 7, 8, 9, 100, len(data) // 2, len(data) - 1]:
        with pytest.raises(FormatError):
            load(data[:length], model)
    with pytest.raises(FormatError):
        load(data + b"\0", model)


def test_foreign_and_other_versions(saved, tmp_path):
    torch.save({"a": torch.ones(3)}, tmp_path / "torch.pt")
    for data in (b"PK\3\4" * 40, (tmp_path / "torch.pt").read_bytes(), safetensors.torch.save({"a": torch.ones(3)})):
        with pytest.raises(FormatError, match=r"no fastq network|no safetensors file"):
            load(data, float_model())
    newer = saved[1].replace(rb"\"version\":4", rb"\"version\":5", 1)
    with pytest.raises(FormatError, match="format version 5; this fastq reads versions 1 and 2 and 3 and 4"):
        load(newer, float_model())
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "absent", float_model())


def test_a_file_of_version_1_is_read(tmp_path):
    """Written when there were no odd grids and no look-up layers: an input with an offset, weights per channel and group."""
    old = load(Path(__file__).with_name("version1.safetensors"), float_model())
    x = torch.linspace(-1, 1, 64, device="cpu").view(2, 2, 4, 4)
    logits = torch.tensor(
        [[0.0789059, -0.3661225, -0.4564636], [-0.0443456, -0.5175331, -0.5273668]], device="cpu"
    )  # what it gave then
    torch.testing.assert_close(old(x), logits, rtol=0, atol=1e-5)  # sums of at most 64 terms of order 1
    save(old, tmp_path / "new")
    assert torch.equal(load(tmp_path / "new", float_model())(x), old(x))


def test_a_model_that_does_not_fit(saved):
    with pytest.raises(FormatError, match="does not fit the model"):
        load(saved[1], nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="no integer layer"):
        save(float_model(), "never-written")
    with pytest.raises(TypeError, match=r"save: model must be a torch.nn.Module, a result of fastq.convert, got str"):
        save("network", "never-written")


def test_a_bias_is_where_the_architecture_has_one(tmp_path):
    for bias in (True, False):
        model = nn.Sequential(QuantLinear(4, 3, bias=bias, weight_quantizer=LSQ(4), input_quantizer=LSQ(4)))
        model(torch.randn(8, 4))
        save(convert(model), tmp_path / "net")
        load(tmp_path / "net", model)
        message = "a bias in the place of none$" if bias else "no bias in the place of one$"
        with pytest.raises(FormatError, match=message):
            load(tmp_path / "net", nn.Sequential(nn.Linear(4, 3, bias=not bias)))


def test_batch_norms_are_those_of_the_saved_network(tmp_path):
    """Whatever the architecture was prepared for."""
    recipe = fastq.recipes.lsq(4, 4)
    for forward in ("fake", "integer"):
        model = fastq.prepare(float_model(), recipe, forward=forward).model
        model(X)
        network = convert(model, fuse=False)
        save(network, tmp_path / "net")
        for other in ("fake", "integer"):
            again = load(tmp_path / "net", fastq.prepare(float_model(), recipe, forward=other).model)
            assert torch.equal(again.to(DEVICE)(X), network(X)), (forward, other)
            assert (type(again[1]) is nn.BatchNorm2d) == (forward == "fake")


def test_compare_counts(saved):
    model = quantized()
    network = convert(model)
    report = compare(model, network, X)
    assert model.training and [layer.name for layer in report.layers] == ["0", "4"]
    assert report.layers[0].codes == X.numel() and report.layers[0].flips == 0
    assert report.layers[0].largest_accumulator_difference == 0
    # fp32 sums of at most 64 terms of order 1
    assert report.largest_logit_difference < 1e-4 and report.differing_predictions == 0 and report.predictions == 6
    assert "largest logit difference" in str(report) and "total" in str(report)

    network[1].bias.data.add_(1.0)
    changed = compare(model, network, X)
    assert changed.layers[1].flips > 0 and changed.layers[1].largest_accumulator_difference > 0
    assert changed.largest_logit_difference > 1e-3


def test_compare_names_what_it_cannot_compare():
    model = quantized()
    network = convert(model)
    for given, message in (
        (("model", network, X), "model must be a torch.nn.Module, got str"),
        ((model, X, X), "converted must be a torch.nn.Module, got Tensor"),
        ((model, network, [X]), "x must be a tensor, the networks' input, got list"),
    ):
        with pytest.raises(TypeError, match=f"compare: {message}"):
            compare(*given)


class ByKeyword(nn.Module):
    """Calls its layer by keyword, as torch's layers allow."""

    def __init__(self):
        super().__init__()
        self.fc = QuantLinear(8, 3, weight_quantizer=LSQ(4), input_quantizer=LSQ(4))

    def forward(self, x):
        return self.fc(input=x)


def test_compare_knows_inputs_that_are_given_by_keyword():
    torch.manual_seed(2)
    model, x = ByKeyword().to(DEVICE), X.flatten(1)[:, :8]
    model(x)
    report = compare(model, convert(model), x)
    assert [(layer.name, layer.codes, layer.flips) for layer in report.layers] == [("fc", x.numel(), 0)]
