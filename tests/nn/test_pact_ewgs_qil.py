"""The modules of PACT, QIL and EWGS: first values, state, precision, and the function each calls, bit for bit."""

import copy
import math

import pytest
import torch
from device import drawn
from torch import nn

import fastq
from fastq.nn import EWGS, PACT, QIL

pytestmark = pytest.mark.usefixtures("one_thread")

GRAINS = {
    "tensor": {},
    "axis0": {"axis": 0, "shape": (4,)},
    "last": {"axis": -1, "shape": (8,)},
    "group": {"group_size": 4, "shape": (4, 6, 2)},
}
MAKE = {
    "pact": lambda **grain: PACT(3, init=1.0, **grain),
    "pact plain, two-sided": lambda **grain: PACT(3, calibrated=False, two_sided=True, init=1.0, **grain),
    "qil weight": lambda **grain: QIL(3, weight=True, **grain),
    "qil weight, no gamma": lambda **grain: QIL(3, weight=True, learn_gamma=False, **grain),
    "qil activation": lambda **grain: QIL(3, weight=False, **grain),
    "ewgs weight": lambda **grain: EWGS(3, weight=True, delta=0.5, learn_scale=False, boundary="closed", **grain),
    "ewgs activation": lambda **grain: EWGS(3, weight=False, learn_scale=False, **grain),
}
FIRST_BATCH = [name for name in MAKE if not name.startswith("pact")]


def values(shape=(4, 6, 8), seed=0, scale=1.0):
    return drawn(shape, seed) * scale


def function(q, x, parameters):
    """What ``q`` computes, by the public function."""
    where = {"axis": q.axis, "group_size": q.group_size}
    if isinstance(q, PACT):
        return fastq.pact(x, *parameters, bits=q.bits, calibrated=q.calibrated, two_sided=q.two_sided, **where)
    if isinstance(q, QIL):
        return fastq.qil(x, *parameters, bits=q.bits, weight=q.weight, **where)
    # in full precision: 2 * (y - 0.5) would double what a level near 1/2 has lost to bf16
    y = fastq.ewgs(x.to(leaf_dtype(x)), *parameters, bits=q.bits, delta=q.delta, boundary=q.boundary, **where)
    return (2 * (y - 0.5) if q.weight else y).to(x.dtype)


def leaf_dtype(x):
    return torch.float64 if x.dtype == torch.float64 else torch.float32


@pytest.mark.parametrize("grain", GRAINS)
@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_output_and_gradients_are_those_of_the_function(dtype, kind, grain):
    q = MAKE[kind](**GRAINS[grain])
    with torch.no_grad():
        q(values().to(dtype))
        for p in q.parameters():
            p.mul_(0.75)  # so that some of x is outside
    x = values(seed=1).to(dtype)
    arithmetic = leaf_dtype(x)
    leaves = [p.detach().to(arithmetic).requires_grad_() for p in q.parameters()]
    left, right = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = q(left), function(q, right, leaves)
    assert y.dtype == dtype and torch.equal(y, expected)
    g = values(seed=2).to(dtype)
    y.backward(g)
    expected.backward(g)
    assert torch.equal(left.grad, right.grad)
    for parameter, leaf in zip(q.parameters(), leaves, strict=True):
        assert parameter.grad.dtype == torch.float32 and parameter.grad.any()
        assert torch.equal(parameter.grad, leaf.grad.float())


@pytest.mark.parametrize(("init", "first"), [("conv", 8.0), ("linear", 10.0), (2.5, 2.5)])
def test_pacts_first_clip(init, first):
    q = PACT(4, init=init)
    assert q.alpha.tolist() == [first] and repr(init) in q.extra_repr()
    with torch.no_grad():
        q.alpha.neg_()
    assert q.effective_alpha().item() == first


@pytest.mark.parametrize("grain", GRAINS)
def test_qil_begins_with_everything_inside(grain):
    q = QIL(4, weight=True, **GRAINS[grain])
    x = values()
    q(x)
    rows = {"tensor": x.reshape(1, -1), "axis0": x.reshape(4, -1), "last": x.reshape(-1, 8).T, "group": x.reshape(-1, 4)}[grain]
    assert torch.equal(q.center.flatten(), rows.abs().amax(1) / 2) and torch.equal(q.center, q.width)
    assert torch.equal(q.gamma, torch.ones_like(q.width))
    pruned, clipped = q.interval()
    assert not pruned.any() and torch.equal(clipped.flatten(), rows.abs().amax(1))


def test_ewgs_gives_8_bit_weights_in_bf16_to_their_rounding():
    """Levels lie 2/255 apart; rounded to bf16 before they are doubled, they would be off by half of that."""
    q, w = EWGS(8, weight=True), values((64, 64))
    q(w)
    rounded = w.bfloat16()
    torch.testing.assert_close(q(rounded).float(), q(rounded.float()), rtol=2**-8, atol=0.0)


@pytest.mark.parametrize("grain", ["tensor", "axis0", "last"])
@pytest.mark.parametrize("weight", [False, True])
def test_ewgs_begins_as_the_authors_do(weight, grain):
    q = EWGS(4, weight=weight, **GRAINS[grain])
    x = values() if weight else values().relu() + 0.25
    y = q(x)
    rows = {"tensor": x.reshape(1, -1), "axis0": x.reshape(4, -1), "last": x.reshape(-1, 8).T}[grain]
    spread = 3 * rows.std(1)
    lower, upper = (-spread, spread) if weight else (rows.amin(1), spread / math.sqrt(1 - 2 / math.pi))
    torch.testing.assert_close(q.lower, lower)
    torch.testing.assert_close(q.upper, upper)
    out = {"tensor": y.reshape(1, -1), "axis0": y.reshape(4, -1), "last": y.reshape(-1, 8).T}[grain]
    torch.testing.assert_close(out.abs().mean(1), rows.abs().mean(1))  # what the scale is for


def test_ewgs_weights_are_symmetric_and_scaled():
    q = EWGS(2, weight=True)
    with torch.no_grad():
        q.initialized.fill_(1)
        q.lower.fill_(-1.0)
        q.scale.fill_(-3.0)  # acts as its magnitude
    y = q(torch.tensor([-5.0, -0.4, 0.4, 5.0]))
    torch.testing.assert_close(y, torch.tensor([-3.0, -1.0, 1.0, 3.0]))
    (slope,) = torch.autograd.grad(y[3], q.scale)
    assert slope.item() == -1.0


@pytest.mark.parametrize("kind", FIRST_BATCH)
def test_the_first_batch_sets_the_parameters_once(kind):
    q = MAKE[kind]()
    assert "initialized=False" in q.extra_repr()
    empty = torch.zeros(0, 8)
    q(empty)
    assert not q.initialized  # an empty batch is not the first
    q(values().abs() + 0.1)
    before = copy.deepcopy(q.state_dict())
    assert q.initialized and "initialized=True" in q.extra_repr()
    q(values(seed=1, scale=9.0))
    assert all(torch.equal(before[name], value) for name, value in q.state_dict().items())
    again = MAKE[kind]()
    again.load_state_dict(before)
    x = values(seed=2)
    assert torch.equal(again(x), q(x)) and all(torch.equal(before[k], v) for k, v in again.state_dict().items())


@pytest.mark.parametrize("kind", FIRST_BATCH)
@pytest.mark.parametrize("x", [torch.zeros(9), torch.full((9,), math.nan), torch.tensor([math.inf, 1.0]), torch.ones(1)], ids=str)
def test_a_first_batch_that_says_nothing_leaves_numbers(kind, x):
    q = MAKE[kind]()
    q(x.to(values().device))
    assert all(bool(p.isfinite().all()) for p in q.parameters())


@pytest.mark.parametrize("kind", MAKE)
def test_half_precision_keeps_the_parameters_in_fp32(kind):
    q = MAKE[kind]()
    q(values())
    for convert in (nn.Module.half, nn.Module.bfloat16):
        convert(q)
        assert all(p.dtype == torch.float32 for p in q.parameters())
    assert q(values().bfloat16()).dtype == torch.bfloat16
    assert all(p.dtype == torch.float64 for p in q.double().parameters())


def test_quantizers_alone_train_with_the_weights_frozen():
    """As QIL's documentation says: nothing but requires_grad_."""
    model = nn.Sequential(nn.Linear(8, 8), QIL(3, weight=False), nn.Linear(8, 2))
    x = values((16, 8))
    model(x)
    for p in model.parameters():
        p.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, QIL):
            module.requires_grad_(True)
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    before = [p.clone() for p in model[1].parameters()]
    model(x).square().sum().backward()
    optimizer.step()
    assert len(frozen) == 4 and all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)
    assert all(not torch.equal(a, b) for a, b in zip(model[1].parameters(), before, strict=True))

    w, q = values((8, 8)), QIL(3, weight=True)  # a weight that needs no gradient gets none, its interval does
    q(w)
    with torch.no_grad():
        q.width.mul_(0.7)
    q(w).square().sum().backward()
    assert all(bool(p.grad.any()) for p in q.parameters())


def quadratic(curvature):
    """A loss with a known Hessian ``diag(curvature)``, and the point to take it at."""
    y = values((curvature.numel(),), seed=3).requires_grad_()
    return (curvature * y.square() / 2).sum(), y


def test_hessian_delta_of_a_diagonal_hessian_is_exact():
    """With random signs v, v . H v is the trace of a diagonal H for every v."""
    pairs = []
    expected = []
    for scale in (1.0, 2.0, 4.0):
        curvature = values((40,), seed=7).abs() * scale
        loss, y = quadratic(curvature)
        pairs.append((loss, y))
        expected.append(float(curvature.mean() / (3 * (curvature * y.detach()).std())))
    assert fastq.nn.hessian_delta(pairs) == pytest.approx(sum(expected) / 3, rel=1e-5)  # fp32 sums of 40 terms
    assert fastq.nn.hessian_delta([quadratic(-values((40,)).abs())]) == 0.0  # never negative


def test_hessian_delta_of_any_hessian_is_the_trace():
    a = values((12, 12), seed=5)
    h = a @ a.T
    y = values((12,), seed=6).requires_grad_()
    loss = y @ h @ y / 2
    want = float(h.trace() / 12 / (3 * (h @ y.detach()).std()))
    generator = torch.Generator(y.device).manual_seed(0)
    got = fastq.nn.hessian_delta([(loss, y)], probes=4000, tolerance=0.0, generator=generator)
    assert got == pytest.approx(want, rel=0.05)  # 4000 probes: the estimator's deviation is 1 % of the trace here
    linear = values((9,)).requires_grad_()
    assert fastq.nn.hessian_delta([(linear @ values((9,), seed=1), linear)]) == 0.0  # no curvature


def test_set_hessian_deltas_is_hessian_delta_of_each_quantizer():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), EWGS(2, weight=False), nn.Linear(5, 3), nn.Tanh(), EWGS(3, weight=False))
    batches = [values((7, 6), seed) for seed in range(5)]
    model(batches[0])
    with torch.no_grad():
        model[1].upper.mul_(0.6)
    before = copy.deepcopy(model.state_dict())

    def loss(model, x):
        return (model(x) - 1).pow(4).sum()

    generator = torch.Generator(batches[0].device)
    deltas = fastq.nn.set_hessian_deltas(model, batches, loss, probes=400, tolerance=0.0, generator=generator.manual_seed(0))
    assert deltas.keys() == {"1", "4"} and model[1].delta == deltas["1"] and model[4].delta == deltas["4"]
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters()) and all(value >= 0 for value in deltas.values())
    # the last one by hand: loss = sum (scale * y - 1)^4, so H is diagonal and its trace exact
    ratios = []
    for x in batches[:3]:
        y = fastq.ewgs(model[:4](x), model[4].lower, model[4].upper, bits=3, delta=0.0).detach()
        s = model[4].scale.detach().abs()
        gradient, curvature = 4 * s * (s * y - 1) ** 3, 12 * s**2 * (s * y - 1) ** 2
        ratios.append(float(curvature.mean() / (3 * gradient.std())))
    assert deltas["4"] == pytest.approx(max(0.0, sum(ratios) / 3), rel=1e-4)
    assert model[1]._watch is None and f"delta={deltas['1']:.4g}" in model[1].extra_repr()


MODEL, LAYER = EWGS(2, weight=True), nn.Linear(2, 2)
delta_of, set_deltas = fastq.nn.hessian_delta, fastq.nn.set_hessian_deltas


def misfit():
    return QIL(4, weight=True, axis=0, shape=(4,))(values((5, 2)))


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ValueError, r"PACT: bits must be from 1 to 8, got 9", lambda: PACT(9)),
        (TypeError, r"PACT: calibrated must be True or False, got 1", lambda: PACT(4, calibrated=1)),
        (ValueError, r"PACT: init must be one of conv, linear, or a positive number, got 'dense'", lambda: PACT(4, init="dense")),
        (ValueError, r"PACT: init must be one of conv, linear, or a positive number, got 0", lambda: PACT(4, init=0)),
        (TypeError, r"PACT: init must be .* got None", lambda: PACT(4, init=None)),
        (ValueError, r"PACT: eps must be positive and finite in float32.* got 0", lambda: PACT(4, eps=0.0)),
        (ValueError, r"PACT: eps must be positive and finite in float32.* got inf", lambda: PACT(4, eps=math.inf)),
        (
            ValueError,
            r"EWGS: eps must be positive and finite in float32.* got inf",
            lambda: EWGS(4, weight=True, eps=math.inf),
        ),
        (
            ValueError,
            r"QIL: eps must be positive and finite in float32.* got inf",
            lambda: QIL(4, weight=True, eps=math.inf),
        ),
        (ValueError, r"PACT: axis=0 and group_size=4 exclude each other", lambda: PACT(4, axis=0, group_size=4)),
        (TypeError, r"PACT: axis must be an int or None, got 1.0", lambda: PACT(4, axis=1.0)),
        (ValueError, r"PACT: group_size must be at least 1, got 0", lambda: PACT(4, group_size=0)),
        (ValueError, r"PACT: shape must be of one element without axis and group_size, got \(3,\)", lambda: PACT(4, shape=(3,))),
        (ValueError, r"QIL: bits must be from 2 to 8, got 1; 1 bit has no level beside 0", lambda: QIL(1, weight=True)),
        (TypeError, r"QIL: weight must be True or False, got None", lambda: QIL(4, weight=None)),
        (TypeError, r"QIL: learn_gamma must be True or False, got 1.0", lambda: QIL(4, weight=True, learn_gamma=1.0)),
        (
            ValueError,
            r"QIL: eps must be positive and finite in float32.* got -1",
            lambda: QIL(4, weight=True, eps=-1.0),
        ),
        (
            ValueError,
            r"QIL: center must have shape \(5,\) .* got \(4,\)",
            misfit,
        ),
        (
            ValueError,
            r"EWGS: delta must be at least 0 and finite, got -1",
            lambda: EWGS(4, weight=True, delta=-1.0),
        ),
        (
            ValueError,
            r"EWGS: boundary must be one of open, closed, got 'rounded'",
            lambda: EWGS(4, weight=True, boundary="rounded"),
        ),
        (TypeError, r"EWGS: weight must be True or False, got 'yes'", lambda: EWGS(4, weight="yes")),
        (ValueError, r"EWGS: group_size needs learn_scale=False", lambda: EWGS(4, weight=True, group_size=4)),
        (TypeError, r"EWGS: x must be float32.*got torch.int64", lambda: EWGS(4, weight=True)(torch.arange(4))),
        (ValueError, r"hessian_delta: batches must give at least one pair", lambda: delta_of([])),
        (ValueError, r"hessian_delta: probes must be an int of at least 1, got 0", lambda: delta_of([], probes=0)),
        (ValueError, r"hessian_delta: tolerance must be at least 0, got -1", lambda: delta_of([], tolerance=-1)),
        (
            TypeError,
            r"hessian_delta: batches must give pairs \(loss, quantized\) of tensors, got int",
            lambda: delta_of([3]),
        ),
        (
            ValueError,
            r"hessian_delta: loss must be a scalar, got shape \(2,\)",
            lambda: delta_of([(values((2,)), values())]),
        ),
        (ValueError, r"set_hessian_deltas: model has no fastq.nn.EWGS quantizer", lambda: set_deltas(LAYER, [], None)),
        (
            ValueError,
            r"set_hessian_deltas: count must be .* got 0",
            lambda: set_deltas(MODEL, [], None, count=0),
        ),
        (ValueError, r"set_hessian_deltas: batches must hold", lambda: set_deltas(MODEL, [], None)),
    ],
)
def test_bad_input(error, message, call):
    with pytest.raises(error, match=message):
        call()
