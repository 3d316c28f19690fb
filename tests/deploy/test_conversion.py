"""Converted layers against the fake-quantized ones: codes and accumulators exactly, outputs to the rounding of fp32."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fastq
from fastq.deploy import convert
from fastq.nn import LSQ, PACT, QIL, QuantConv1d, QuantConv2d, QuantLinear, SATWeight

EPSILON = torch.finfo(torch.float32).eps


def double(layer, x):
    """The layer's integer accumulators in int64 and, in fp64, its exact output and the sum of its terms' magnitudes."""
    source, weight = layer.input_quantizer, layer.weight_quantizer
    q, w = source.codes(x).double(), weight.codes(layer.weight).double()
    s_x = source.effective_step().double()
    b = torch.zeros(()) if source.offset is None else source.offset.detach().double()
    s_w = weight.effective_step().double()
    if weight.group_size:
        s_w = s_w.repeat_interleave(weight.group_size, -1)
    elif s_w.numel() > 1:
        s_w = s_w.view(-1, *(1,) * (w.dim() - 1))
    bias = None if layer.bias is None else layer.bias.detach().double()

    def product(a, c, d=None):
        return F.linear(a, c, d) if isinstance(layer, nn.Linear) else copy.deepcopy(layer).double()._conv_forward(a, c, d)

    exact = product(s_x * q + b, s_w * w, bias)
    # every real number of the fake-quantized layer comes from |s*q| and |b| first added, so these bound its roundings
    magnitude = product((s_x * q).abs() + b.abs(), (s_w * w).abs(), None if bias is None else bias.abs())
    return product(q, w).long(), exact, magnitude


def check(layer, x):
    layer(x)  # sets the quantizers
    before = copy.deepcopy(layer.state_dict())
    converted = convert(layer)
    codes = converted.quantize(x)
    padded = x if getattr(layer, "padding_mode", "zeros") == "zeros" else F.pad(x, converted.padding, mode=layer.padding_mode)
    assert codes.dtype == torch.int8
    assert torch.equal(codes.int() + converted.zero, layer.input_quantizer.codes(padded))
    acc, exact, magnitude = double(layer, x)
    got = converted.accumulate(codes)
    assert got.dtype == torch.int32
    assert torch.equal(got.long().sum(-2) if layer.weight_quantizer.group_size else got.long(), acc)
    y, fake = converted(x), layer(x).detach()
    assert y.shape == fake.shape and y.dtype == fake.dtype
    # integer: the scale, the accumulator as float, their product, the shift's two products and the additions round once each;
    # bias and groups add one each. fake: s*q, + b and the weight round once, then K products and K additions.
    terms = layer.weight[0].numel() + 8
    groups = terms // (layer.weight_quantizer.group_size or terms)
    assert ((y.double() - exact).abs() <= (8 + groups) * EPSILON * magnitude + 1e-30).all()
    assert ((y - fake).abs() <= (terms + 8 + groups) * EPSILON * magnitude + 1e-30).all()
    after = layer.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in after)
    return converted


def quantizers(weight, w_bits, x_bits, signed, offset, channel, group=None):
    out = weight.shape[0]
    if group:
        grain = {"group_size": group, "shape": (out, weight.shape[-1] // group)}
    else:
        grain = {"axis": 0, "shape": (out,)} if channel else {}
    source = LSQ(x_bits, signed=signed, offset=offset)
    return {"weight_quantizer": LSQ(w_bits, **grain), "input_quantizer": source}


def prepared(layer, *arguments, **keywords):
    kind = {nn.Linear: QuantLinear, nn.Conv1d: QuantConv1d, nn.Conv2d: QuantConv2d}[type(layer)]
    new = kind.from_float(layer, **quantizers(layer.weight, *arguments, **keywords))
    return new


def shifted(layer, x, value=0.37):
    layer(x)
    if layer.input_quantizer.offset is not None:
        with torch.no_grad():
            layer.input_quantizer.offset.fill_(value)
    return layer


common = (st.integers(2, 8), st.integers(2, 8), st.booleans(), st.booleans(), st.booleans())


@settings(max_examples=30, deadline=None)
@given(*common, st.integers(1, 5), st.integers(1, 40), st.integers(1, 20), st.booleans(), st.integers(0, 99))
def test_linear(w_bits, x_bits, signed, offset, channel, rows, k, n, bias, seed):
    torch.manual_seed(seed)
    layer, x = nn.Linear(k, n, bias=bias), torch.randn(2, rows, k)
    check(shifted(prepared(layer, w_bits, x_bits, signed, offset, channel), x), x)


@settings(max_examples=30, deadline=None)
@given(
    *common, st.integers(1, 3), st.integers(1, 2), st.integers(1, 3), st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.integers(1, 2), st.one_of(st.tuples(st.integers(0, 2), st.integers(0, 2)), st.just("same"), st.just("valid")),
    st.integers(1, 2), st.integers(0, 99),
)  # fmt: skip
def test_conv2d(w_bits, x_bits, signed, offset, channel, groups, ins, outs, kernel, stride, padding, dilation, seed):
    torch.manual_seed(seed)
    stride = 1 if padding == "same" else stride
    layer = nn.Conv2d(groups * ins, groups * outs, kernel, stride, padding, dilation, groups)
    x = torch.randn(2, groups * ins, 8, 7)
    check(shifted(prepared(layer, w_bits, x_bits, signed, offset, channel), x), x)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("keywords", [{"padding": 2, "stride": 2, "groups": 2, "dilation": 2}, {"padding": "same"}])
def test_conv1d(keywords, signed):
    x = torch.randn(3, 4, 15)
    check(shifted(prepared(nn.Conv1d(4, 6, 3, **keywords), 4, 8, signed, True, True), x), x)
    single = convert(prepared_on(nn.Conv1d(4, 6, 3, **keywords), x))
    assert torch.equal(single(x[0]), single(x)[0])


def prepared_on(layer, x):
    new = prepared(layer, 4, 8, False, True, True)
    new(x)
    return new


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_that_copies(mode):
    x = torch.randn(2, 3, 6, 7)
    check(shifted(prepared(nn.Conv2d(3, 4, 3, padding=(1, 2), padding_mode=mode), 4, 8, False, True, True), x), x)


@pytest.mark.parametrize("offset", [True, False])
def test_linear_per_group(offset):
    x = torch.randn(5, 32)
    check(shifted(prepared(nn.Linear(32, 7), 4, 8, False, offset, False, group=8), x), x)


@pytest.mark.parametrize("range_", [(0, 1), (-1, 1), (-3, 4), (0, 15), (-1, 14), (-20, 5), (0, 255), (-1, 254), (-128, 127)])
def test_any_range_of_weights(range_):
    layer = QuantLinear.from_float(nn.Linear(20, 5), weight_quantizer=LSQ(range_), input_quantizer=LSQ(8, signed=False))
    layer.weight.data.add_(0.1)
    layer(x := torch.randn(7, 20))
    layer.weight_quantizer.step.data.fill_(0.4 / (range_[1] - range_[0]))
    converted = check(layer, x)
    width = (range_[1] - range_[0]).bit_length()
    assert converted.weight.bits == next(bits for bits in (2, 3, 4, 8) if bits >= width)
    assert converted.weight.unpack().unique().numel() == layer.weight_quantizer.codes(layer.weight).unique().numel() > 1


def test_network_with_batch_norm_stays_what_it_was():
    torch.manual_seed(0)
    conv = prepared(nn.Conv2d(3, 8, 3, padding=1), 4, 8, True, False, True)
    net = nn.Sequential(conv, nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))
    for _ in range(3):
        net(torch.randn(4, 3, 6, 6))
    assert net.training
    integers = fastq.convert(net)
    assert net.training and not integers.training and net[0] is conv
    assert isinstance(integers[4], nn.Linear) and isinstance(integers[1], nn.BatchNorm2d)
    x = torch.randn(4, 3, 6, 6)
    # fp32 sums of 27 and 288 terms of order 1
    torch.testing.assert_close(integers(x), net.eval()(x), rtol=1e-5, atol=1e-5)


def test_a_shared_layer_stays_shared():
    layer = prepared(nn.Linear(4, 4), 4, 8, True, False, False)
    net = nn.Sequential(layer, nn.ReLU(), layer)
    net(torch.randn(3, 4))
    integers = convert(net)
    assert integers[0] is integers[2]


def test_nan_shows_and_infinity_saturates():
    x = torch.randn(3, 4)
    layer = prepared(nn.Linear(4, 2), 4, 8, True, False, False)
    layer(x)
    x[1, 2], x[2, 0] = float("nan"), float("inf")
    y = convert(layer)(x)
    assert y.isnan().all(1).tolist() == [False, True, False]
    assert y[2].isfinite().all()


def test_forward_hooks_stay(tmp_path):
    layer = prepared(nn.Linear(4, 2), 4, 8, True, False, False)
    layer.register_forward_pre_hook(lambda module, arguments: (arguments[0] + 1,))
    layer.register_forward_hook(lambda module, arguments, output: 2 * output)
    x = torch.randn(3, 4)
    fake = layer(x)
    converted = convert(layer)
    torch.testing.assert_close(converted(x), fake.detach())
    assert fastq.deploy.compare(layer, converted, x).flips == 0
    fastq.save(converted, tmp_path / "layer.safetensors")
    again = fastq.load(tmp_path / "layer.safetensors", layer).to(x.device)
    assert torch.equal(again(x), converted(x))


def test_a_half_precision_network_agrees_to_its_own_rounding():
    """The fake-quantized layer rounds x, w and y to bf16, the integer one y alone: fp32 rounding it is not."""
    layer = prepared(nn.Linear(64, 8), 4, 8, True, False, True).to(torch.bfloat16)
    x = torch.randn(32, 64, dtype=torch.bfloat16)
    fake = layer(x).detach()
    converted = convert(layer)
    assert converted.codes.dtype == torch.int8 and converted(x).dtype == torch.bfloat16
    assert torch.equal(converted.quantize(x).int() + converted.zero, layer.input_quantizer.codes(x))
    # three roundings to 8 bits of each of 64 terms, on terms that add up to a few times the result
    torch.testing.assert_close(converted(x).float(), fake.float(), rtol=0, atol=3 * 2**-8 * float(fake.abs().max()))


def test_conv2d_with_an_offset_at_every_border():
    for groups, padding, dilation in ((1, 2, 1), (2, (1, 2), (2, 1)), (4, 1, 1)):
        layer = nn.Conv2d(4, 8, 3, stride=2, padding=padding, dilation=dilation, groups=groups)
        check(prepared(layer, 4, 4, False, True, True), torch.randn(3, 4, 7, 9) + 1)


def test_channels_last_stays_channels_last():
    x = torch.randn(2, 3, 6, 6).contiguous(memory_format=torch.channels_last)
    layer = prepared(nn.Conv2d(3, 4, 3), 4, 8, True, False, False)
    layer(x)
    assert convert(layer)(x).is_contiguous(memory_format=torch.channels_last)


def unready():
    return prepared(nn.Linear(4, 2), 4, 8, True, False, False)


def ready(layer, **keywords):
    layer = QuantLinear.from_float(layer, **keywords)
    layer(torch.randn(3, layer.in_features))
    return layer


def used(layer, x):
    layer(x)
    return layer


def resting(layer):
    """As in a phase of full precision."""
    layer.weight_quantizer.set_bits(None)
    layer.input_quantizer.set_bits(None)
    return layer


def spoilt_step():
    layer = ready(nn.Linear(4, 2), weight_quantizer=PACT(4, two_sided=True), input_quantizer=LSQ(4))
    layer.weight_quantizer.alpha.data.fill_(float("inf"))
    return layer


def spoilt():
    layer = ready(nn.Linear(4, 2), weight_quantizer=LSQ(4), input_quantizer=LSQ(4))
    layer.weight.data[1, 2] = float("nan")
    return layer


@pytest.mark.parametrize(
    ("error", "message", "model"),
    [
        (ValueError, "its weight holds NaN", spoilt),
        (TypeError, "must be a torch.nn.Module, got int", lambda: 3),
        (
            ValueError, "convert: model is a converted network already; give the one that was trained",
            lambda: convert(ready(nn.Linear(4, 2), weight_quantizer=LSQ(4), input_quantizer=LSQ(4))),
        ),
        (ValueError, "no layer with a weight and an input quantizer", lambda: nn.Sequential(nn.Linear(3, 3))),
        (
            ValueError, "convert: layer 1: its weight quantizer is not enabled, as in a phase of full precision",
            lambda: nn.Sequential(nn.ReLU(), resting(ready(nn.Linear(4, 2), weight_quantizer=LSQ(4), input_quantizer=LSQ(4)))),
        ),
        (ValueError, "layer 0: its input quantizer is not initialised", lambda: nn.Sequential(unready())),
        (
            ValueError, "along axis 1; integers need axis 0",
            lambda: ready(nn.Linear(4, 2), weight_quantizer=LSQ(4, axis=1, shape=(4,)), input_quantizer=LSQ(4)),
        ),
        (
            ValueError, "input quantizer has more than one step",
            lambda: ready(nn.Linear(4, 2), weight_quantizer=LSQ(4), input_quantizer=LSQ(4, axis=1, shape=(4,))),
        ),
        (
            ValueError, "weight codes, -1 to 255, do not fit 8 bits",
            lambda: ready(nn.Linear(4, 2), weight_quantizer=LSQ((-1, 255)), input_quantizer=LSQ(4)),
        ),
        (
            ValueError, "input codes, 0 to 256, do not fit 8 bits",
            lambda: ready(nn.Linear(4, 2), weight_quantizer=LSQ(4), input_quantizer=LSQ((0, 256))),
        ),
        (
            ValueError, "quantized per group, which only linear layers have",
            lambda: used(QuantConv1d.from_float(
                nn.Conv1d(2, 2, 4), weight_quantizer=LSQ(4, group_size=2, shape=(2, 2, 2)), input_quantizer=LSQ(4)
            ), torch.randn(1, 2, 8)),
        ),
        (
            ValueError, "its input quantizer, QIL, is one of weights",
            lambda: ready(nn.Linear(4, 2), weight_quantizer=LSQ(4), input_quantizer=QIL(4, weight=True)),
        ),
        (
            ValueError, "grid needs the weight",
            lambda: ready(nn.Linear(4, 2), weight_quantizer=LSQ(4), input_quantizer=SATWeight(4)),
        ),
        (
            ValueError, "layer 1: SATWeight: it has no integer codes with bits=None",
            lambda: nn.Sequential(nn.ReLU(), ready(nn.Linear(4, 2), weight_quantizer=SATWeight(None), input_quantizer=LSQ(4))),
        ),
        (
            ValueError, "its weight quantizer has a step of inf or NaN",
            lambda: spoilt_step(),
        ),
        (
            ValueError, "could overflow int32",
            lambda: ready(nn.Linear(66000, 1), weight_quantizer=LSQ(8), input_quantizer=LSQ(8, signed=False)),
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_converted_says_why(error, message, model):
    with pytest.raises(error, match=message):
        convert(model())
