"""``fastq.diagnose``: its numbers against ones made by hand, what it says in words, and that it leaves no trace."""

import itertools
import json
import math
import re

import pytest
import torch
import torch.nn.functional as F
from device import DEVICE, drawn
from quantizers import INPUTS, WEIGHTS, WHOLE, trained
from torch import nn

import fastq
from fastq.diagnosis import Diagnosis
from fastq.nn import (
    EWGS,
    LSQ,
    QIL,
    ChannelError,
    DirectLinear,
    DirectWeight,
    NoiseQuant,
    OscillationLSQ,
    QuantConv2d,
    QuantLinear,
    SATWeight,
    Tempered,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def fixed(bits, step, **keywords):
    """An LSQ quantizer with that step, initialised."""
    step = torch.as_tensor(step, dtype=torch.float32).reshape(-1)
    q = LSQ(bits, shape=tuple(step.shape), **keywords).to(DEVICE)
    with torch.no_grad():
        q.step.copy_(step)
        q.initialized.fill_(1)
    q._initialized = True
    return q


def linear(weight, weight_quantizer=None, input_quantizer=None):
    """A layer with that very weight and without a bias."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return QuantLinear.from_float(layer, weight_quantizer=weight_quantizer, input_quantizer=input_quantizer)


def network(recipe=None):
    """Convolution, batch norm, convolution, linear: prepared, and trained by one step."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(6, 4),
    ).to(DEVICE)  # fmt: skip
    model = fastq.prepare(model, recipe or fastq.recipes.lsq(4, 4)).model
    loss(model, batch()).backward()
    return model


def batch(seed=0):
    return drawn((5, 3, 8, 8), seed), torch.arange(5, device=DEVICE) % 4


def loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


# --- Error, clipping, codes -------------------------------------------------------------------------------------------


def test_error_clipping_and_dead_codes_are_those_counted_by_hand():
    # v = -12 .. 11 in row 0 at step 0.5: 4 below -8, 4 above 7; row 1 at step 0.25 uses -2 .. 2 alone, half-way between codes
    w = torch.stack([torch.arange(-12, 12) * 0.5, torch.arange(24) % 4 * 0.25 - 0.375]).to(DEVICE)
    d = fastq.diagnose(linear(w, fixed(4, [0.5, 0.25], axis=0)))
    t = d.layer("").weight
    y = w.clone()
    y[0].clamp_(-4, 3.5)
    y[1] = (w[1] / 0.25).round() * 0.25
    x = w.double()
    error = (y - x).square().mean(1) / x.var(1, correction=0)
    assert t.channel_errors == pytest.approx(error.tolist(), rel=1e-12)
    assert t.error == pytest.approx(float((y - x).square().mean() / x.var(correction=0)), rel=1e-12)
    assert t.sqnr == pytest.approx(-10 * math.log10(t.error)) and t.worst_channel == int(error.argmax())
    assert (t.clipped_below, t.clipped_above, t.clipped) == (4 / 48, 4 / 48, 8 / 48)
    assert (t.codes, t.dead_codes, t.elements, t.nonfinite) == (16, 0, 48, 0)
    assert (t.quantizer, t.bits) == ("LSQ", "4")
    narrow = fastq.diagnose(linear(w[1:], fixed(4, 0.25))).layer("").weight
    assert narrow.dead_codes == 16 - len((w[1] / 0.25).round().unique()) and narrow.clipped == 0


def test_channels_without_an_error_or_a_variance():
    w = torch.tensor([[1.0, 2.0, -1.0], [0.3, 0.3, 0.3]], device=DEVICE)
    t = fastq.diagnose(linear(w, fixed(4, 1.0))).layer("").weight
    assert t.channel_sqnr[0] == math.inf and math.isnan(t.channel_errors[1])
    assert t.worst_channel == 0
    constant = fastq.diagnose(linear(w[1:], fixed(4, 1.0)))
    assert constant.layer("").weight.worst_channel is None and "-" in str(constant)


def test_inputs_are_counted_over_all_batches():
    xs = [drawn((4, 6), seed) * (1 + seed) for seed in range(3)]
    model = linear(drawn((2, 6)), None, fixed(3, 0.7))
    t = fastq.diagnose(model, xs, count=2).layer("").input
    x = torch.cat(xs[:2]).double()
    y = (x / 0.7).round().clamp(-4, 3) * 0.7
    error = (y - x).square().mean(0) / x.var(0, correction=0)
    # fp32 steps and quotients, fp64 sums
    assert t.channel_errors == pytest.approx(error.tolist(), rel=1e-5)
    assert t.elements == 48 and t.dead_codes == 8 - len((y / 0.7).round().unique())
    assert t.clipped_below == float((x / 0.7 < -4).double().mean()) and t.clipped_above == float((x / 0.7 > 3).double().mean())


def test_the_channels_of_a_convolutions_input():
    conv = nn.Conv2d(3, 2, 1, device=DEVICE)
    model = QuantConv2d.from_float(conv, weight_quantizer=LSQ(4), input_quantizer=fixed(4, 0.2))
    x = drawn((2, 3, 4, 4)) * torch.tensor([0.1, 1.0, 9.0], device=DEVICE).view(3, 1, 1)
    for given in (x, x.contiguous(memory_format=torch.channels_last), x[0]):
        t = fastq.diagnose(model, [given]).layer("").input
        assert len(t.channel_errors) == 3 and t.worst_channel == 2


@pytest.mark.parametrize("name", WEIGHTS)
def test_every_weight_quantizer_is_diagnosed(name):
    w = drawn((4, 16)) * 0.2
    quantizer = trained(WEIGHTS[name](3, **({} if name in WHOLE else {"axis": 0, "shape": (4,)})).to(DEVICE), w)
    model = linear(w, quantizer, LSQ(4).to(DEVICE))
    model(drawn((8, 16)))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x = drawn((8, 16))
    d = fastq.diagnose(model, [x], lambda model, x: model(x).square().mean())
    layer = d.layer("")
    # a few levels at least, and an error that is less than the variance: the scale was found where a quantizer has its own
    assert 0 < layer.weight.error < 0.9 and layer.weight.codes in (4, 7, 8) and layer.weight.dead_codes < layer.weight.codes - 2
    assert (
        layer.weight.clipped is not None
        and layer.weight.clipped < 0.5
        and (not name.startswith("sat") or layer.weight.clipped == 0)
    )
    assert layer.gradient > 0 and layer.trace > 0
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert str(d) and json.loads(d.to_json())


@pytest.mark.parametrize("name", INPUTS)
def test_every_input_quantizer_is_diagnosed(name):
    x = drawn((8, 16)).abs() if name not in ("noise", "qil signed", "pact two-sided") else drawn((8, 16))
    quantizer = trained(INPUTS[name](4).to(DEVICE), x)
    d = fastq.diagnose(linear(drawn((4, 16)), None, quantizer), [x], lambda model, x: model(x).square().mean())
    t = d.layer("").input
    assert 0 < t.error < 0.5 and t.codes in (15, 16) and t.clipped < 0.5, (t.error, t.codes, t.clipped)
    assert d.layer("").weight is None and d.layer("").trace > 0


def test_a_scale_of_its_own_is_no_error():
    w = drawn((4, 16)) * 0.01
    assert fastq.diagnose(linear(w, SATWeight(8))).layer("").weight.sqnr > 30
    assert fastq.diagnose(linear(w, QIL(8, weight=True))).layer("").weight.sqnr > 30
    assert fastq.diagnose(linear(w, EWGS(8, weight=True, learn_scale=False))).layer("").weight.sqnr > 20
    assert fastq.diagnose(linear(w, SATWeight(None))).layer("").weight.codes is None


def test_codes_that_are_the_weights():
    base = nn.Linear(32, 8, device=DEVICE)
    w = base.weight.detach().clone()
    kept, lost = (DirectLinear.from_float(base, DirectWeight(3, rho=rho).to(DEVICE)) for rho in (1.0, 0.0))
    t = fastq.diagnose(kept).layer("").weight
    y = kept.weight.detach()
    assert t.error == pytest.approx(float((y - w).square().mean() / w.var(correction=0)), rel=1e-5)
    assert (t.codes, t.clipped, t.bits) == (8, None, "3")
    d = fastq.diagnose(lost, [drawn((4, 32))], lambda model, x: model(x).square().mean())
    assert math.isnan(d.layer("").weight.error) and d.layer("").trace > 0 and d.layer("").weight.nonfinite == 0


def test_weights_in_floating_point_and_quantizers_that_rest():
    model = network()
    model[0].weight_quantizer.enabled = False
    model[3].weight_quantizer = None
    d = fastq.diagnose(model, [batch()], loss)
    assert d.layer("0").weight is None and d.layer("3").weight is None and d.layer("7").weight is not None
    assert all(layer.trace is not None and layer.gradient > 0 for layer in d.layers)
    assert all(type(p) is nn.Parameter for p in model.parameters())


def test_nan_and_infinity_are_left_out_and_told():
    w = drawn((4, 8))
    clean = fastq.diagnose(linear(w[:3], fixed(4, 0.5))).layer("").weight
    w[3] = torch.tensor([math.nan, math.inf] * 4)
    d = fastq.diagnose(linear(w, fixed(4, 0.5)))
    t = d.layer("").weight
    assert t.nonfinite == 8 and t.error == pytest.approx(clean.error) and t.dead_codes == clean.dead_codes
    assert d.findings[0] == "(model): 8 of its weights are NaN or infinite, and left out here"


# --- Sharpness and gradients ------------------------------------------------------------------------------------------------


def test_the_trace_of_a_quadratic_loss():
    """``sum (W x_i)^2 / 2`` over one-hot inputs: the Hessian is diagonal, so that every probe gives its trace."""
    scales = torch.tensor([1.0, 2.0, 3.0], device=DEVICE)
    model = linear(drawn((4, 3)), fixed(4, 0.3), fixed(8, 0.5))
    d = fastq.diagnose(model, [torch.diag(scales)], lambda model, x: model(x).square().sum() / 2, probes=2)
    layer = d.layer("")
    assert layer.trace == pytest.approx(4 * float(scales.square().sum()), rel=1e-6) and layer.trace_error == pytest.approx(
        0, abs=1e-4
    )
    w = model.weight_quantizer(model.weight).detach()
    assert d.loss == pytest.approx(float((w * scales).square().sum() / 2), rel=1e-6)
    assert layer.gradient == pytest.approx(float((w * scales.square()).square().mean().sqrt()), rel=1e-6)
    rounded = float((w - model.weight.detach()).square().sum())
    assert layer.rounding_loss == pytest.approx(layer.trace / 12 * rounded / 2, rel=1e-5)


def test_hutchinson_finds_the_trace_of_a_full_hessian():
    x = drawn((6, 5))
    model = linear(drawn((3, 5)), fixed(4, 0.3))
    layer = fastq.diagnose(model, [x], lambda model, x: model(x).square().sum() / 2, probes=200).layer("")
    exact = 3 * float(x.square().sum())
    assert abs(layer.trace - exact) < 4 * layer.trace_error < exact  # four standard errors of the mean of 200 probes


def test_quantized_inputs_are_linear_where_they_are():
    """Two layers, quantized inputs, against the Hessian of the same network written out with fixed values and slopes."""
    w1, w2, x = drawn((4, 3)).double(), drawn((2, 4), 1).double(), drawn((7, 3), 2).double()
    model = nn.Sequential(linear(w1, fixed(4, 0.3), fixed(4, 0.2)), nn.Tanh(), linear(w2, fixed(3, 0.4), fixed(4, 0.1)))
    d = fastq.diagnose(model.double(), [x], lambda model, x: model(x).pow(4).mean(), probes=400)

    def grid(t, bits, step):
        step = float(torch.tensor(step))  # as fp32 has it
        return (t / step).clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1).round() * step

    q1, q2, qx = grid(w1, 4, 0.3), grid(w2, 3, 0.4), grid(x, 4, 0.2)
    hidden = torch.tanh(qx @ q1.T)
    value, slope = grid(hidden, 4, 0.1), ((hidden / 0.1 > -8) & (hidden / 0.1 < 7)).double()
    assert 0 < slope.mean() < 1

    def written_out(v1, v2):
        moved = torch.tanh(qx @ v1.T) - hidden
        return ((value + slope * moved) @ v2.T).pow(4).mean()

    h = torch.autograd.functional.hessian(written_out, (q1, q2))
    for i, (layer, w) in enumerate(zip(d.layers, (w1, w2), strict=True)):
        exact = float(h[i][i].reshape(w.numel(), w.numel()).trace())
        assert abs(layer.trace - exact) < 4 * layer.trace_error, (layer.trace, exact, layer.trace_error)
        assert layer.trace_error < 0.3 * abs(exact)
    a, b = torch.autograd.functional.jacobian(written_out, (q1, q2))
    assert [layer.gradient for layer in d.layers] == pytest.approx([float(g.square().mean().sqrt()) for g in (a, b)], rel=1e-9)
    assert d.loss == pytest.approx(float(written_out(q1, q2)), rel=1e-12)


@pytest.mark.parametrize("name", INPUTS)
def test_gradients_are_those_of_training(name):
    """Of a layer before a quantizer: what the quantizer's own backward pass lets through."""
    first = linear(drawn((16, 6)) * 0.4, None, fixed(8, 0.05))
    x = drawn((8, 6), 1)
    quantizer = trained(INPUTS[name](4).to(DEVICE), first(x).detach())
    model = nn.Sequential(first, linear(drawn((4, 16)), None, quantizer)).eval()
    d = fastq.diagnose(model, [x], lambda model, x: model(x).square().mean())
    model(x).square().mean().backward()
    # the same products in the same order but for the slope, which is rounded before it is multiplied: 1e-7 of an element
    assert d.layer("0").gradient == pytest.approx(float(first.weight.grad.square().mean().sqrt()), rel=1e-5)


def test_the_scaling_of_gradients_by_ewgs_is_no_slope():
    """Slopes are those of ``delta = 0``, as the docstring says: with ones for a gradient the scaling would be part of them."""
    first, x = linear(drawn((16, 6)) * 0.4, None, fixed(8, 0.05)), drawn((8, 6), 1)
    quantizer = trained(EWGS(2, weight=False).to(DEVICE), first(x).detach())
    model = nn.Sequential(first, linear(drawn((4, 16)), None, quantizer))
    found = []
    for quantizer.delta in (0.0, 0.7):
        delta = quantizer.delta
        d = fastq.diagnose(model, [x], lambda model, x: model(x).pow(4).mean(), probes=4).layer("0")
        found.append((d.gradient, d.trace))
        assert quantizer.delta == delta, "it is put back"
    assert found[0] == found[1]


@pytest.mark.parametrize("shared", [False, True], ids=["two quantizers", "one quantizer"])
def test_layers_that_share_a_weight_keep_their_own_quantized_one(shared):
    model = nn.Sequential(linear(drawn((3, 3)), fixed(8, 0.05)), nn.Tanh(), linear(drawn((3, 3)), fixed(2, 0.6)))
    model[2].weight = model[0].weight
    if shared:
        model[2].weight_quantizer = model[0].weight_quantizer
    x = drawn((5, 3), 1)
    d = fastq.diagnose(model, [x], lambda model, x: model(x).pow(4).mean(), probes=2)
    v1, v2 = (model[i].weight_quantizer(model[i].weight).detach().requires_grad_() for i in (0, 2))
    if shared:
        v2 = v1
    value = (torch.tanh(x @ v1.T) @ v2.T).pow(4).mean()
    assert d.loss == pytest.approx(float(value.detach()), rel=1e-6)
    for i, v in ((0, v1), (2, v2)):
        (g,) = torch.autograd.grad(value, v, retain_graph=True)
        assert d.layer(str(i)).gradient == pytest.approx(float(g.square().mean().sqrt()), rel=1e-5)  # fp32 products of 15 terms


def test_the_same_seed_gives_the_same_numbers():
    model = network()
    first, second, other = (fastq.diagnose(model, [batch()], loss, seed=seed) for seed in (3, 3, 4))
    assert first == second and first != other


def test_a_loss_that_is_linear_has_no_curvature():
    d = fastq.diagnose(linear(drawn((3, 5)), fixed(4, 0.3)), [drawn((2, 5))], lambda model, x: model(x).sum())
    assert d.layer("").trace == 0 and d.layer("").gradient > 0
    assert fastq.diagnose(network(), [batch()], loss, probes=0).layer("0").trace is None


def test_attention_is_differentiated_twice():
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True).to(DEVICE)
    model = fastq.prepare(model, fastq.recipes.lsq(4, 4)).model
    x = drawn((2, 5, 8))
    model(x)
    d = fastq.diagnose(model, [x], lambda model, x: model(x).pow(3).mean())
    assert {layer.name for layer in d.layers} >= {"linear1", "linear2"} and all(layer.trace is not None for layer in d.layers)


class Once(torch.autograd.Function):
    """x^2, differentiable once."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return 2 * g * ctx.saved_tensors[0]


def test_a_loss_that_is_differentiable_once():
    model = linear(drawn((3, 5)), fixed(4, 0.3))

    def once(model, x):
        return Once.apply(model(x)).sum()

    with pytest.raises(RuntimeError, match="diagnose: the loss is not twice differentiable; probes=0 leaves out sharpness"):
        fastq.diagnose(model, [drawn((2, 5))], once)
    assert "forward" not in vars(model.weight_quantizer)
    assert fastq.diagnose(model, [drawn((2, 5))], once, probes=0).layer("").gradient > 0


# --- The model stays as it was ------------------------------------------------------------------------------------------------


class Everything(nn.Module):
    """All that has a state: batch norm, oscillations, noise, a step that follows its input, dropout, a module that counts."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        conv = [nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1)]
        first = OscillationLSQ(4, signed=True)
        self.one = QuantConv2d.from_float(conv[0], weight_quantizer=first, input_quantizer=LSQ(4))
        self.norm = nn.BatchNorm2d(4)
        self.two = QuantConv2d.from_float(conv[1], weight_quantizer=Tempered(4), input_quantizer=NoiseQuant(4))
        self.three = QuantConv2d.from_float(conv[2], weight_quantizer=LSQ(4), input_quantizer=ChannelError(4, update="closed"))
        self.drop, self.direct = nn.Dropout(0.5), DirectLinear.from_float(nn.Linear(4, 4), DirectWeight(3))
        self.head = linear(torch.randn(3, 4), EWGS(4, weight=True), QIL(4, weight=False))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.calls += 1
        x = self.three(self.two(F.relu(self.norm(self.one(x)))))
        return self.head(F.relu(self.direct(self.drop(x.mean((2, 3))))))


def everything(model):
    """What a diagnosis must not change, copied."""
    tensors = {name: t.detach().clone() for name, t in [*model.named_parameters(), *model.named_buffers()]}
    gradients = {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    modes = {name: module.training for name, module in model.named_modules()}
    own = {name: sorted(vars(module)) for name, module in model.named_modules()}
    hooks = {name: [len(module._forward_pre_hooks), len(module._forward_hooks)] for name, module in model.named_modules()}
    return tensors, gradients, modes, own, hooks, torch.get_rng_state(), {name: id(p) for name, p in model.named_parameters()}


def bits(t):
    return t.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and bits(a) == bits(b)
    return a == b


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_bit_for_bit_as_it_was(fails):
    model = Everything().to(DEVICE)
    x = drawn((4, 3, 8, 8))
    model.train()
    model(x).square().mean().backward()
    for p in itertools.islice(model.parameters(), 2):
        p.grad = None
    model.two.eval()  # a mixture
    before = everything(model)

    def measured(model, x):
        torch.rand(3)  # a loss that draws
        if fails:
            raise ArithmeticError("no")
        return model(x).square().mean()

    if fails:
        with pytest.raises(ArithmeticError):
            fastq.diagnose(model, [x], measured)
    else:
        d = fastq.diagnose(model, [x, x], measured, probes=2)
        assert d.batches == 2 and all(layer.called == 2 for layer in d.layers)
        assert fastq.diagnose(model, [x]).layer("one").oscillating == 0
    after = everything(model)
    assert all(same(a, b) for a, b in zip(before, after, strict=True))


def test_batches_that_never_end_are_asked_for_no_more_than_count():
    asked = []
    endless = (asked.append(i) or batch(i) for i in itertools.count())
    assert fastq.diagnose(network(), endless, count=3).batches == 3 and asked == [0, 1, 2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    model = network().to(dtype)
    d = fastq.diagnose(model, [(batch()[0].to(dtype), batch()[1])], loss)
    assert all(math.isfinite(layer.trace) and 5 < layer.weight.sqnr < 40 for layer in d.layers)


def test_a_compiled_model():
    model = network()
    assert fastq.diagnose(torch.compile(model), [batch()], loss) == fastq.diagnose(model, [batch()], loss)


# --- Oscillations and the two rules ------------------------------------------------------------------------------------------


def test_oscillating_and_frozen_fractions():
    layer = linear(drawn((10, 20)), OscillationLSQ(4)).train()
    layer(drawn((2, 20)))
    state = layer.weight_quantizer.state
    state.track[0] += 200 << 8  # 200 / 2**24 of a frequency: seldom
    state.track[1, :10] += int(0.006 * 2**24) << 8
    state.track[2, :15] += int(0.4 * 2**24) << 8
    state.freeze[3, :5] |= -(2**31)
    state.freeze[2, :3] |= -(2**31)  # these did oscillate, and are held now
    d = fastq.diagnose(layer)
    assert (d.layer("").oscillating, d.layer("").frozen) == (22 / 200, 8 / 200)
    assert (
        "(model): 11 % of weights oscillate: freeze (fastq.recipes.oscillation_freeze) or re-estimate batch norm" in d.findings[0]
    )
    plain = fastq.diagnose(linear(drawn((10, 20)), LSQ(4))).layer("")
    assert plain.oscillating is None and plain.frozen is None


class OutOfOrder(nn.Module):
    """The batch norm is listed after the head, and used after the first layer."""

    def __init__(self):
        super().__init__()
        self.first, self.head, self.norm = nn.Linear(6, 8), nn.Linear(8, 8), nn.BatchNorm1d(8)

    def forward(self, x):
        return self.head(F.relu(self.norm(self.first(x))))


def test_what_follows_is_judged_by_the_order_of_execution():
    model = fastq.prepare(OutOfOrder().to(DEVICE), fastq.recipes.lsq(4, 4)).model
    x = drawn((8, 6))
    model(x)
    assert {layer.name: layer.batch_norm for layer in fastq.diagnose(model, [x]).layers} == {"first": True, "head": False}
    assert {layer.name: layer.batch_norm for layer in fastq.diagnose(model).layers} == {"first": False, "head": True}


def test_rule_two():
    w = drawn((50, 20))
    for scale, holds in ((0.15, True), (1.0, False), (0.01, False)):
        layer = fastq.diagnose(linear(w * scale, SATWeight(8, rescale="std"))).layer("")
        assert layer.neurons == 50 and layer.rule_two is holds
        assert layer.variance == pytest.approx(float((w * scale).double().var()), rel=1e-3)  # "std" keeps that of the weights
    good = fastq.diagnose(linear(w, SATWeight(4))).layer("")
    assert good.variance * good.neurons == pytest.approx(1, rel=1e-5) and good.rule_two
    d = fastq.diagnose(linear(w, SATWeight(8, rescale="std")))
    assert any("variance times neurons is" in finding and "SAT's rule II" in finding for finding in d.findings)


def test_gradients_of_another_order():
    model = nn.Sequential(
        linear(drawn((8, 6)) * 100, fixed(8, 1.0)), linear(drawn((8, 8)), fixed(8, 0.05)), linear(drawn((3, 8)), None)
    )
    d = fastq.diagnose(model, [drawn((4, 6))], lambda model, x: model(x).square().mean())
    assert any(finding.startswith("0: its weights' gradient") and "is below those" in finding for finding in d.findings)


def test_rule_one_knows_the_pooling():
    model = network()
    one = fastq.diagnose(model, [batch()]).rule_one
    assert (one.name, one.pooled, one.inputs) == ("7", 16, 6), "a map of 4x4 is averaged"
    w = model[7].weight_quantizer(model[7].weight).detach().double()
    assert one.ratio == pytest.approx(float(w.var()) * 6 / 16, rel=1e-6) and one.holds is (one.ratio < 0.1)
    assert fastq.diagnose(model).rule_one.pooled == 1 and fastq.diagnose(model, pooled=49).rule_one.pooled == 49
    with torch.no_grad():
        model[7].weight.mul_(20)
        model[7].weight_quantizer.step.mul_(20)
    broken = fastq.diagnose(model, [batch()])
    assert not broken.rule_one.holds and any("SAT's rule I," in finding for finding in broken.findings)


def test_rule_one_is_about_the_last_layer_quantized_or_not():
    model = network(fastq.recipes.lsq(4, 4, skip=["7"]))
    one = fastq.diagnose(model, [batch()]).rule_one
    assert one.name == "7" and one.variance == pytest.approx(float(model[7].weight.detach().double().var()), rel=1e-12)


# --- What it says -------------------------------------------------------------------------------------------------------------


def test_findings_in_words():
    x = drawn((80, 32))
    x[:, 5] *= 100
    model = nn.Sequential(
        linear(drawn((32, 32)) * 0.2, fixed(4, 0.03, axis=None), fixed(8, 6.0)),
        nn.BatchNorm1d(32).to(DEVICE),
        linear(drawn((32, 32)) * 0.2, fixed(8, 0.02), fixed(4, 6.0, signed=False)),
        linear(drawn((4, 32)) * 0.01, fixed(8, 0.02)),
    )
    d = fastq.diagnose(model, [x])
    text = "\n".join(d.findings)
    assert "0: the error of its weights is" in text and "% of its weights are clipped: its range is too small" in text
    assert re.search(r"\n2: \d\d % of its inputs are clipped from below: a signed range, or an offset", text)
    assert "of its inputs has" in text and "dB less than the layer: fastq.nn.ChannelError weighs channels" in text
    assert "0: its inputs use " in text and 'of 256 codes: a smaller step (init="mse"), or fewer bits' in text
    assert "3: its weights use" not in text, "128 elements do not fill 256 codes"
    assert text in "\n".join(line[2:] for line in str(d).splitlines())


def test_a_layer_that_is_not_called():
    model = nn.ModuleDict({"used": linear(drawn((3, 5)), LSQ(4)), "idle": linear(drawn((3, 5)), LSQ(4))})
    d = fastq.diagnose(model, [drawn((2, 5))], lambda model, x: model["used"](x).square().mean())
    assert d.layer("idle").called == 0 and d.layer("idle").trace is None and d.layer("idle").gradient is None
    assert "idle: not called by these batches" in d.findings


def test_the_loss_that_is_no_number():
    d = fastq.diagnose(linear(drawn((3, 5)), LSQ(4)), [drawn((2, 5))], lambda model, x: model(x).sum() * math.nan)
    assert "the loss is nan: gradients and sharpness say nothing" in d.findings
    assert json.loads(d.to_json())["loss"] is None


def test_nothing_stands_out():
    d = fastq.diagnose(linear(drawn((40, 200)) * 0.02, LSQ(4, init="mse")))
    assert not any("error" in finding or "oscillate" in finding for finding in d.findings)
    quiet = Diagnosis((), d.rule_one, None, 0)
    assert quiet.findings == () or "rule I" in quiet.findings[0]


def test_table_dictionary_and_json_say_the_same():
    d = fastq.diagnose(network(), [batch()], loss)
    text, plain = str(d), json.loads(d.to_json())
    assert plain == json.loads(json.dumps(d.to_dict())) and plain["findings"] == list(d.findings)
    for layer, row in zip(d.layers, plain["layers"], strict=True):
        assert row["name"] == layer.name and row["trace"] == layer.trace and row["rule_two"] == layer.rule_two
        assert row["weight"]["channel_errors"] == list(layer.weight.channel_errors) and row["weight"]["sqnr"] == layer.weight.sqnr
        lines = [line.split() for line in text.splitlines() if line.split()[:1] == [layer.name]]
        assert len(lines) >= 2 and f"{layer.weight.sqnr:.1f}" in lines[0] and f"{layer.trace:.3g}" in lines[1]
    assert f"Loss {d.loss:.4g}" in text and "Rule I " in text
    with pytest.raises(KeyError, match="no layer 'x'; there are 0, 3, 7"):
        d.layer("x")


def test_the_picture(tmp_path):
    from matplotlib import image

    for i, d in enumerate((fastq.diagnose(network(), [batch()], loss), fastq.diagnose(linear(drawn((4, 6)), OscillationLSQ(4))))):
        path = d.picture(tmp_path / f"{i}.png")
        pixels = image.imread(path)
        assert (
            pixels.shape[0] > 300 and pixels.shape[1] > 1000 and len({tuple(p) for p in pixels[::9, ::9, :3].reshape(-1, 3)}) > 10
        )
    only = fastq.diagnose(linear(drawn((4, 6)), None, fixed(4, 0.5)))  # no weights, no inputs: nothing to draw but rule II
    assert only.picture(str(tmp_path / "2.svg")).stat().st_size > 1000


# --- Bad input ------------------------------------------------------------------------------------------------------------------


def test_bad_input_is_named():
    model, x = network(), batch()

    def refused(kind, message, *arguments, **keywords):
        with pytest.raises(kind, match=message):
            fastq.diagnose(*arguments, **keywords)

    refused(TypeError, "diagnose: model must be a torch.nn.Module, got list", [])
    refused(ValueError, "diagnose: model has no quantized layer; give one that fastq.prepare returned", nn.Linear(2, 2))
    refused(ValueError, "no quantized layer", fastq.convert(model))
    refused(ValueError, r"diagnose: loss needs batches, diagnose\(model, batches, loss\)", model, None, loss)
    refused(TypeError, r"diagnose: loss must be a function of \(model, batch\), got float", model, [x], 0.5)
    refused(TypeError, r"batches must be an iterable of batches, got a tensor; give \[x\]", model, x[0])
    refused(TypeError, "batches must be an iterable of batches, got int", model, 3)
    refused(ValueError, "batches must hold at least one batch", model, [])
    refused(ValueError, "got an empty one", model, [()])
    refused(ValueError, "count must be an int of at least 1, got 0", model, [x], count=0)
    refused(TypeError, "probes must be an int of at least 0, got 1.5", model, [x], loss, probes=1.5)
    refused(ValueError, "pooled must be an int of at least 1, got 0", model, pooled=0)
    refused(TypeError, "seed must be an int of at least 0, got True", model, seed=True)
    refused(TypeError, "loss must give a tensor of one element, got float", model, [x], lambda m, b: 1.0)
    refused(ValueError, r"got shape \(5, 4\)", model, [x], lambda m, b: m(b[0]))
    refused(ValueError, "got one without a gradient", model, [x], lambda m, b: m(b[0]).sum().detach())


def test_quantizers_that_have_seen_nothing_are_named():
    fresh = fastq.prepare(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).to(DEVICE), fastq.recipes.lsq(4, 4)).model
    assert len(fastq.diagnose(fresh).layers) == 2, "weights are known before the first batch"
    with pytest.raises(ValueError, match="layer '0': its input quantizer is not initialised; run a batch through the model first"):
        fastq.diagnose(fresh, [drawn((2, 4))])
    fresh[1].weight_quantizer._forget()
    with pytest.raises(ValueError, match="layer '1': its weight quantizer is not initialised"):
        fastq.diagnose(fresh)
    with pytest.raises(ValueError, match="layer '0' is on the meta device and has no values"):
        fastq.diagnose(fresh.to("meta"))
