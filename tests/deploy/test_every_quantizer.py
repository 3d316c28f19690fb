"""Every quantizer of ``fastq.nn``, of weights and of inputs, in every kind of layer: converted, its integers are the fake ones."""

import hashlib
import itertools
import json
import re
import struct

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from device import drawn
from quantizers import CONVOLUTIONS, INPUTS, WEIGHTS, WHOLE, product, trained
from torch import nn

import fastq
from fastq.deploy import LookupLayer, WeightOnlyLayer, compare, convert, load, save
from fastq.nn import LSQ, PACT, QUANTIZED, DirectConv1d, DirectConv2d, DirectLinear, DirectWeight, SATWeight

pytestmark = pytest.mark.usefixtures("one_thread")

EPSILON = torch.finfo(torch.float32).eps
BITS = (2, 3, 4, 8)
LAYERS = {
    "linear": (lambda: nn.Linear(12, 6), (2, 3, 12)),
    "linear per group": (lambda: nn.Linear(12, 6), (5, 12)),
    **CONVOLUTIONS,
}
DIRECT = {nn.Linear: DirectLinear, nn.Conv1d: DirectConv1d, nn.Conv2d: DirectConv2d}


def pair(kind, weight, source, bits, seed=0):
    """A layer of ``kind`` with these quantizers, and an input for it."""
    torch.manual_seed(seed)
    make, shape = LAYERS[kind]
    layer, x = make(), drawn(shape, seed) * 0.8 + 0.3  # most of it positive: one-sided quantizers have something to do
    channels, grain = layer.weight.shape[0], {}
    if weight not in WHOLE:
        grain = {"axis": 0, "shape": (channels,)}
        if kind == "linear per group":
            grain = {"group_size": 4, "shape": (channels, 3)}
    quantizers = {"weight_quantizer": WEIGHTS[weight](bits, **grain), "input_quantizer": INPUTS[source](bits)}
    layer = QUANTIZED[type(layer)].from_float(layer, **quantizers)
    trained(layer.weight_quantizer, layer.weight)
    trained(layer.input_quantizer, x)
    return layer.eval(), x


def integers(grid, codes):
    return (2 * codes + 1 if grid.odd else codes).double()


@torch.no_grad()
def check(layer, x):
    source, weight, converted = layer.input_quantizer, layer.weight_quantizer, convert(layer)
    x_codes, w_codes, x_grid, w_grid = source.codes(x), weight.codes(layer.weight), source.grid(), weight.grid(layer.weight)
    # the integers: those of the codes; with an offset, a weight's are counted from the middle of its range
    codes = converted.quantize(x)
    padded = x if getattr(layer, "padding_mode", "zeros") == "zeros" else F.pad(x, converted.padding, mode=layer.padding_mode)
    assert codes.dtype == torch.int8 and torch.equal(codes.int() + converted.zero, source.codes(padded))
    middle = 0 if w_grid.offset is None else (w_grid.qmin + w_grid.qmax + 1) // 2
    acc = converted.accumulate(codes)
    expected = product(layer, integers(x_grid, x_codes), integers(w_grid, w_codes) - middle)  # fp64 holds these sums exactly
    grouped = acc.dim() > expected.dim()
    assert acc.dtype == torch.int32
    assert torch.equal((acc.sum(-2) if grouped else acc).double(), expected)
    # the real numbers, in fp64, of the grids: one fp32 rounding for each product and sum, on at most these magnitudes
    axis, group = getattr(weight, "axis", None), getattr(weight, "group_size", None)
    fine = [None if t is None else t.double() for t in (w_grid.step, w_grid.offset)]
    w = type(w_grid)(w_grid.qmin, w_grid.qmax, *fine, w_grid.odd).decode(w_codes, axis, group)
    fine = [None if t is None else t.double() for t in (x_grid.step, x_grid.offset)]
    x_hat = type(x_grid)(x_grid.qmin, x_grid.qmax, *fine, x_grid.odd).decode(x_codes)
    bias = None if layer.bias is None else layer.bias.double()
    exact = product(layer, x_hat, w, bias)
    ones = torch.ones_like
    largest = (float(x_hat.abs().max()) + (0.0 if x_grid.offset is None else float(x_grid.offset.abs().max()))) * (
        float(w.abs().max()) + (0.0 if w_grid.offset is None else float(w_grid.offset.abs().max()))
    )
    magnitude = product(layer, ones(x_hat), ones(w)).max() * largest + (0.0 if bias is None else float(bias.abs().max()))
    y, fake = converted(x), layer(x)
    assert y.shape == fake.shape and y.dtype == fake.dtype
    # two roundings for the scale and its product, three for each of three shifts, one for the bias and for each group
    assert float((y - exact).abs().max()) <= (16 + 3 * grouped) * EPSILON * float(magnitude)
    # the fake layer rounds every product and sum, and QIL and EWGS their values by 4 ulp of the largest
    assert float((y - fake).abs().max()) <= (layer.weight[0].numel() + 32) * EPSILON * float(magnitude)
    return converted


def stored(converted, layer, path):
    save(converted, path)
    return load(path, layer).to(next(layer.parameters()).device)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("weight", WEIGHTS)
def test_weights(weight, kind, tmp_path):
    if kind == "linear per group" and weight in WHOLE:
        kind = "linear"
    for bits, source in zip(BITS, ("lsq+", "pact two-sided", "qil", "lsq"), strict=True):
        layer, x = pair(kind, weight, source, bits)
        converted = check(layer, x)
    again = stored(converted, layer, tmp_path / "layer")
    assert torch.equal(again(x), converted(x))


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("source", INPUTS)
def test_inputs(source, kind, tmp_path):
    for bits, weight in zip(BITS, ("dsq", "pact two-sided", "lsq+", "lsq"), strict=True):
        layer, x = pair(kind, weight, source, bits)
        converted = check(layer, x)
    again = stored(converted, layer, tmp_path / "layer")
    assert torch.equal(again(x), converted(x))


def test_8_bit_weights_without_a_sign():
    """0 to 255 do not fit int8 as they are."""
    layer = QUANTIZED[nn.Conv2d].from_float(
        nn.Conv2d(2, 3, 3, padding=1), weight_quantizer=LSQ(8, signed=False), input_quantizer=LSQ(8, signed=False)
    )
    x = drawn((2, 2, 5, 5))
    layer.eval()(x)
    layer.weight_quantizer.step.data.div_(20)
    assert layer.weight_quantizer.codes(layer.weight).max() > 127
    check(layer, x)


@pytest.mark.parametrize(
    ("weight", "source"), list(itertools.product(("sat round", "dsq"), ("pact two-sided", "qil signed", "dsq")))
)
def test_nan_shows_infinity_saturates_and_nothing_is_nothing(weight, source):
    layer, x = pair("padded", weight, source, 4)
    converted = convert(layer)
    x[0, 1, 2, 2], x[1, 0, 1, 1] = float("nan"), -float("inf")
    y = converted(x)
    assert y[0].isnan().all() and y[1].isfinite().all()
    assert converted(x[:0]).shape == layer(x[:0]).shape


@pytest.mark.parametrize(
    ("weight", "source", "most"),
    [  # X and W up to 255 where odd, and what is stored up to 128: 2**31 - 1 divided by (2 * 128 + 1) ** 2, 257 * 128, 256 * 257
        (SATWeight(8), PACT(8, two_sided=True), 32513),
        (LSQ(8), PACT(8, two_sided=True), 65280),
        (SATWeight(8), LSQ(8, signed=False), 32640),
    ],
)
def test_an_accumulator_that_could_overflow_is_refused(weight, source, most):
    def layer(length):
        made = QUANTIZED[nn.Linear].from_float(nn.Linear(length, 1), weight_quantizer=weight, input_quantizer=source)
        made.weight.data.fill_(1.0)[0, 0] = -1.0
        made(torch.full((1, length), 100.0))
        return made

    with pytest.raises(ValueError, match=f"{most + 1} products of up to .* could overflow int32; at most {most} fit"):
        convert(layer(most + 1))
    longest = layer(most).eval()
    x = torch.full((1, most), 100.0)
    expected = product(
        longest, integers(source.grid(), source.codes(x)), integers(weight.grid(longest.weight), weight.codes(longest.weight))
    )
    converted = convert(longest)
    assert torch.equal(converted.accumulate(converted.quantize(x)).double(), expected)


def network(weight, source, bits=3):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(72, 5),
    )  # fmt: skip
    for i in (0, 3, 7):
        if weight == "direct":
            net[i] = DIRECT[type(net[i])].from_float(net[i], DirectWeight(bits), INPUTS[source](bits))
        else:
            quantizers = {"weight_quantizer": WEIGHTS[weight](bits), "input_quantizer": INPUTS[source](bits)}
            net[i] = QUANTIZED[type(net[i])].from_float(net[i], **quantizers)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    if weight == "direct":
        optimizer = fastq.DirectOptimizer(optimizer, net)
    for step in range(3):
        optimizer.zero_grad()
        F.cross_entropy(net(drawn((16, 1, 6, 6), step)), torch.arange(16) % 5).backward()
        optimizer.step()
    return net


@pytest.mark.parametrize(
    ("weight", "source"),
    [(name, "lsq") for name in WEIGHTS] + [("sat round", name) for name in INPUTS] + [("dsq", "dsq"), ("direct", "pact")],
)
def test_a_trained_network_keeps_its_predictions(weight, source, tmp_path):
    net, x = network(weight, source), drawn((40, 1, 6, 6), 9)
    integer = convert(net)
    report = compare(net, integer, x)
    assert report.differing_predictions == 0 and report.predictions == 40
    assert [layer.name for layer in report.layers] == ["0", "3", "7"] and report.layers[0].flips == 0
    if report.flips == 0:  # fp32 sums of at most 72 terms of order 1
        assert report.largest_logit_difference < 1e-4
        assert {layer.largest_accumulator_difference for layer in report.layers} == {None if weight == "direct" else 0}
    if weight == "direct":
        assert report.flips == 0 and report.largest_logit_difference == 0 and str(report).count(" -\n") == 3
    again = stored(integer, net, tmp_path / "net")
    assert torch.equal(again(x), integer(x))


def direct(kind, source, bits, dtype=torch.float32):
    torch.manual_seed(0)
    make, shape = LAYERS[kind]
    layer, x = make().to(dtype), (drawn(shape) * 0.8 + 0.3).to(dtype)
    quantizer = None if source is None else trained(INPUTS[source](bits), x)
    return DIRECT[type(layer)].from_float(layer, DirectWeight(bits, dtype=dtype), quantizer).eval(), x


@pytest.mark.parametrize("kind", ["linear", "depthwise", "padded", "reflected", "conv1d", "one sample"])
@pytest.mark.parametrize("source", [None, *INPUTS])
def test_look_up_gives_the_same_bits(source, kind, tmp_path):
    for bits, dtype in zip(BITS, (torch.float32, torch.bfloat16, torch.float32, torch.bfloat16), strict=True):
        layer, x = direct(kind, source, bits, dtype)
        converted = convert(layer)
        assert not list(converted.parameters()) and converted.codes.dtype == torch.uint8
        y = converted(x)
        assert y.dtype == dtype and torch.equal(y, layer(x))
        if source is not None:
            codes = converted.quantize(x)
            assert torch.equal(codes.int() + converted.zero, layer.input_quantizer.codes(x))
    assert torch.equal(stored(converted, layer, tmp_path / "layer")(x), y)


@torch.no_grad()
def agrees(converted, layer, x):
    """The engine rounds the weight once to fp32, as LSQ does (QIL by 4 ulp), and the output; sums differ in their order."""
    y, fake = converted(x), layer(x)
    w = layer.weight_quantizer(layer.weight).double()
    magnitude = product(layer, x.double().abs(), w.abs(), None if layer.bias is None else layer.bias.double().abs())
    terms = layer.weight[0].numel() + 8
    # in bf16 the fake-quantized weight is rounded to 8 bits, and so are both outputs and, in torch's conv1d, parts of the sums
    error = 2**-6 if x.dtype == torch.bfloat16 else terms * EPSILON
    assert y.dtype == x.dtype and y.shape == fake.shape
    assert ((y.double() - fake.double()).abs() <= error * magnitude).all()


@pytest.mark.parametrize("kind", ["linear", "padded", "reflected", "conv1d"])
@pytest.mark.parametrize("weight", WEIGHTS)
def test_a_layer_whose_weight_alone_is_quantized_is_packed_or_looked_up(weight, kind, tmp_path):
    """It may be loaded into the float network then: SAT's weights have no state by which a missing quantizer would show."""
    for bits, dtype in zip(BITS, (torch.float32, torch.float64, torch.float32, torch.bfloat16), strict=True):
        layer, x = pair(kind, weight, "lsq", bits)
        plain = LAYERS[kind][0]().to(dtype)
        layer.input_quantizer, layer, x = None, layer.to(dtype), x.to(dtype)
        converted, grid = convert(layer), layer.weight_quantizer.grid(layer.weight)
        if grid.odd or grid.offset is not None or dtype == torch.float64:
            assert isinstance(converted, LookupLayer) and torch.equal(converted(x), layer(x))
        else:
            assert isinstance(converted, WeightOnlyLayer)
            assert torch.equal(converted.codes.flatten().int(), layer.weight_quantizer.codes(layer.weight).flatten())
            agrees(converted, layer, x)
        for architecture in (layer, plain):
            assert torch.equal(stored(converted, architecture, tmp_path / "layer")(x), converted(x))


def test_a_weight_alone_per_group_is_packed_in_groups_of_16(tmp_path):
    weight = LSQ(4, group_size=16, shape=(6, 3))
    layer = QUANTIZED[nn.Linear].from_float(nn.Linear(48, 6), weight_quantizer=weight, input_quantizer=None).eval()
    converted = convert(layer)
    assert isinstance(converted, WeightOnlyLayer) and converted.weight.group_size == 16
    agrees(converted, layer, x := drawn((5, 48)))
    assert torch.equal(stored(converted, layer, tmp_path / "layer")(x), converted(x))


def test_integers_per_group_of_16_are_one_product():
    weight = LSQ(4, group_size=16, shape=(6, 3))
    layer = QUANTIZED[nn.Linear].from_float(nn.Linear(48, 6), weight_quantizer=weight, input_quantizer=LSQ(8, signed=False))
    trained(layer.input_quantizer, x := drawn((5, 48)))
    converted = check(layer.eval(), x)
    assert converted.plain and converted.weight.group_size == 16


def test_a_weight_alone_per_group_stays_as_it_is():
    layer, x = pair("linear per group", "lsq", "lsq", 4)
    layer.input_quantizer = None
    integer = convert(nn.Sequential(layer, pair("linear", "lsq", "lsq", 4)[0]))
    assert type(integer[0]) is type(layer) and torch.equal(integer[0](x), layer(x))


def forged(data, change, change_tensors=lambda tensors: None):
    """The file with ``change(header)`` done to its header, and a checksum and number of tensors that fit."""
    (size,) = struct.unpack("<Q", data[:8])
    top = json.loads(data[8 : 8 + size])
    header = json.loads(top["__metadata__"]["fastq"])
    change(header)
    header["checksum"] = "0" * 64
    tensors = safetensors.torch.load(data)
    change_tensors(tensors)
    header["tensors"] = len(tensors)
    text = json.dumps(header, separators=(",", ":"))
    data = safetensors.torch.save(tensors, {"fastq": text})
    return data.replace(b"0" * 64, hashlib.sha256(data).hexdigest().encode(), 1)


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("'no such kind'", {"kind": "no such kind"}),
        ("16 levels for codes from 0 to 7", {"weight_range": [0, 7]}),
        ("16 input levels for 8 codes of the input", {"qmax": 7}),
        ("codes from 0 to 256 do not fit 8 bits", {"qmax": 256}),
        ("bytes of codes for the shape", {"shape": [6, 13]}),
        ("unexpected keyword argument 'group_size'", {"group_size": 4}),
    ],
)
def test_a_header_that_does_not_fit_its_tensors(message, change, tmp_path):
    layer, _ = direct("linear", "lsq", 4)
    save(convert(layer), tmp_path / "layer")
    data = (tmp_path / "layer").read_bytes()
    assert isinstance(load(forged(data, lambda header: None), layer), LookupLayer)
    with pytest.raises(fastq.deploy.FormatError, match=f"does not fit the model: .*{message}"):
        load(forged(data, lambda header: header["layers"][""].update(change)), layer)
    with pytest.raises(fastq.deploy.FormatError, match="input_step goes with the input's codes"):
        load(forged(data, lambda header: header["layers"][""].pop("qmin")), layer)


@pytest.mark.parametrize(
    ("message", "change", "tensors"),
    [
        ("36 bytes of codes for the shape (6, 12) in 2 bits", {"bits": 2}, {}),
        ("36 bytes of codes for the shape (6, 13) in 4 bits", {"shape": [6, 13]}, {}),
        ("a weight of shape (-6, 12) in 4 bits", {"shape": [-6, 12]}, {}),
        ("a weight of shape () in 4 bits", {"shape": []}, {}),
        ("a weight of shape (6, 12) in 5 bits", {"bits": 5}, {}),
        ("groups of 7 for the shape (6, 12)", {"weight_groups": 7}, {}),
        ("a scale of torch.float32 (6,) for the shape (6, 12)", {"weight_groups": 16}, {}),
        ("groups of 16 for a weight of", {"group_size": 16}, {}),
        ("for a layer of the kind 'conv'", {"kind": "conv"}, {}),
        ("codes in the range (7, 7)", {"weight_range": [7, 7]}, {}),
        ("or one that is not finite", {}, {"weight_scale": torch.full((6,), torch.inf)}),
        ("a scale of torch.float64", {}, {"weight_scale": torch.ones(6, dtype=torch.float64)}),
        ("a zero-point of torch.int32 (6,)", {}, {"weight_zero": torch.full((6,), 8, dtype=torch.int32)}),
        ("bytes of codes for the shape", {}, {"weight": torch.zeros(6, 5, dtype=torch.uint8)}),
        ("a weight of shape", {}, {"weight": None}),
    ],
)
def test_a_file_that_lies_about_a_packed_weight(message, change, tensors, tmp_path):
    grain = {"axis": 0, "shape": (6,)}
    layer = QUANTIZED[nn.Linear].from_float(nn.Linear(12, 6), weight_quantizer=LSQ(4, **grain), input_quantizer=LSQ(4))
    layer(drawn((3, 12)))
    save(convert(layer), tmp_path / "layer")

    def lie(stored):
        for name, t in tensors.items():
            stored.pop(name, None)
            if t is not None:
                stored[name] = t.cpu()

    data = forged((tmp_path / "layer").read_bytes(), lambda header: header["layers"][""].update(change), lie)
    with pytest.raises(fastq.deploy.FormatError, match=f"does not fit the model: .*{re.escape(message)}"):
        load(data, layer)


def test_look_up_packs_its_codes_and_shows_nan(tmp_path):
    layer, x = direct("linear", "lsq+", 2)
    converted = convert(layer)
    size = {}
    for bits in (2, 4, 8):
        size[bits] = save(convert(direct("linear", "lsq+", bits)[0]), tmp_path / str(bits))
    assert size[4] - size[2] > 72 * 2 // 8 - 8 and size[8] - size[4] > 72 * 4 // 8 - 8  # 72 codes, headers aligned to 8 bytes
    x[1, 2, 3] = float("nan")
    assert torch.equal(converted(x).isnan().all(-1), torch.tensor([[False] * 3, [False, False, True]]))
    with pytest.raises(TypeError, match="its input is not quantized"):
        convert(direct("linear", None, 2)[0]).quantize(x)


@pytest.mark.parametrize(
    ("message", "spoil"),
    [
        ("its weight has a level of inf or NaN", lambda layer: layer.direct.free.data.fill_(float("nan"))),
        ("its weight has no codes yet", lambda layer: setattr(layer, "direct", DirectWeight(2))),
        ("its input quantizer has a step of inf or NaN", lambda layer: layer.input_quantizer.step.data.fill_(float("nan"))),
    ],
)
def test_what_cannot_be_looked_up_says_why(message, spoil):
    layer, _ = direct("linear", "lsq", 2)
    spoil(layer)
    with pytest.raises(ValueError, match=f"layer 0: {message}"):
        convert(nn.Sequential(layer))


def test_a_quantizer_that_is_not_enabled_leaves_its_layer_in_floating_point():
    net = network("lsq", "lsq")
    net[3].input_quantizer.set_bits(None)
    net[0].weight_quantizer.set_bits(None)
    integer, x = convert(net), drawn((4, 1, 6, 6))
    assert type(integer[0]) is type(net[0]) and isinstance(integer[3], WeightOnlyLayer)
    torch.testing.assert_close(integer(x), net.eval()(x), rtol=1e-4, atol=1e-4)  # fp32 sums of terms of order 1
