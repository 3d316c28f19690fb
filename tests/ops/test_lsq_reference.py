"""The reference of LSQ against the page it was written from: finite differences of the surrogate, edges, bad input."""

import math

import pytest
import torch
from device import DEVICE

import fastq
from fastq.ranges import BOUNDARIES, integer_range, mask_bounds
from fastq.reference.lsq import lsq_surrogate

GRANULARITIES = {
    "tensor": ({}, ()),
    "channel0": ({"axis": 0}, (6,)),
    "last": ({"axis": -1}, (8,)),
    "group": ({"group_size": 4}, (6, 2)),
}


@pytest.fixture(autouse=True)
def on_reference():
    with fastq.use_backend("reference"):
        yield


def inputs(shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    how = {"dtype": dtype, "generator": generator, "device": "cpu"}
    x = torch.randn(6, 8, **how) * 0.5
    step = torch.rand(shape, **how) * 0.1 + 0.05
    offset = torch.rand(shape, **how) * 0.1
    return x.to(DEVICE), step.to(DEVICE), offset.to(DEVICE)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("with_offset", [False, True])
def test_gradient_is_the_derivative_of_the_surrogate(granularity, with_offset):
    keywords, shape = GRANULARITIES[granularity]
    x, step, offset = inputs(shape)
    leaves = [t.requires_grad_() for t in ((x, step, offset) if with_offset else (x, step))]
    offset = offset if with_offset else None
    g = torch.randn_like(x)
    y = fastq.lsq(x, step, bits=3, offset=offset, grad_scale=1.0, boundary="closed", **keywords)
    got = torch.autograd.grad(y, leaves, g)
    qmin, qmax = integer_range("lsq", 3)

    with torch.no_grad():
        s = step if shape != (6, 2) else step.repeat_interleave(4, -1)
        s = s[:, None] if shape == (6,) else s
        b = torch.zeros(()) if offset is None else offset if shape != (6, 2) else offset.repeat_interleave(4, -1)
        b = b[:, None] if shape == (6,) and offset is not None else b
        c = ((x - b) / s).clamp(qmin, qmax)
        residual = c.round() - c

    def surrogate(*tensors):
        return lsq_surrogate(
            tensors[0], tensors[1], qmin=qmin, qmax=qmax, residual=residual,
            offset=tensors[2] if with_offset else None, **keywords,
        )  # fmt: skip

    assert torch.equal(surrogate(*leaves), y)
    for number, leaf in enumerate(leaves):
        flat = torch.zeros(leaf.numel(), dtype=torch.float64)
        for i in range(leaf.numel()):
            moved = []
            for h in (1e-7, -1e-7):
                shifted = [t.detach().clone() for t in leaves]
                shifted[number].view(-1)[i] += h
                moved.append((surrogate(*shifted) * g).sum())
            flat[i] = (moved[0] - moved[1]) / 2e-7
        # central differences at h = 1e-7 in fp64: rounding of the sum, about 1e-15 / 1e-7
        torch.testing.assert_close(got[number].reshape(-1), flat, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_gradient_at_the_edges(boundary):
    v = torch.tensor([-9.0, -8.5, -8.0, -7.5, 0.0, -0.0, 6.5, 7.0, 7.25, 7.5, 7.75])
    passes = {
        "open": [0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0],
        "closed": [0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        "rounded": [0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0],
    }[boundary]
    x = v.clone().requires_grad_()
    fastq.lsq(x, torch.ones(1), bits=4, boundary=boundary).sum().backward()
    assert x.grad.tolist() == passes


def test_ties_and_edges_by_hand():
    """A tie goes to the even code. At an edge, which "open" leaves outside, the step's gradient is that of the edge's code."""
    v = torch.tensor([-9.0, -8.5, -8.0, -7.5, -1.5, -0.5, 0.5, 1.5, 2.5, 6.5, 7.0, 7.5, 8.0])
    q = [-8, -8, -8, -8, -2, 0, 0, 2, 2, 6, 7, 7, 7]
    dstep = {
        "open": [-8, -8, -8, -0.5, -0.5, 0.5, -0.5, 0.5, -0.5, -0.5, 7, 7, 7],
        "closed": [-8, -8, 0, -0.5, -0.5, 0.5, -0.5, 0.5, -0.5, -0.5, 0, 7, 7],
        "rounded": [-8, 0.5, 0, -0.5, -0.5, 0.5, -0.5, 0.5, -0.5, -0.5, 0, 7, 7],
    }
    for boundary, expected in dstep.items():
        step = torch.ones(13, requires_grad=True)
        y = fastq.lsq(v, step, bits=4, axis=0, boundary=boundary, grad_scale=1.0)
        y.sum().backward()
        assert y.tolist() == q and step.grad.tolist() == expected, boundary


def test_ranges_by_hand():
    of = {(4, True, False): (-8, 7), (4, True, True): (-7, 7), (4, False, False): (0, 15), (1, False, False): (0, 1)}
    assert {key: integer_range("lsq", *key) for key in of} == of


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mask_bounds_say_what_the_boundary_means(dtype):
    number = torch.linspace(-12, 12, 24 * 8 + 1, dtype=dtype)
    for qmin, qmax in [(-8, 7), (0, 15), (-3, 3), (0, 1), (-1, 4)]:
        meaning = {
            "open": (number > qmin) & (number < qmax),
            "closed": (number >= qmin) & (number <= qmax),
            "rounded": (number.round() >= qmin) & (number.round() <= qmax),
        }
        for name, mask in meaning.items():
            lower, upper = mask_bounds(qmin, qmax, BOUNDARIES[name], dtype)
            assert torch.equal((number > lower) & (number < upper), mask), (name, qmin, qmax)


def test_not_finite():
    x = torch.tensor([math.nan, math.inf, -math.inf, 0.3], requires_grad=True)
    step = torch.tensor([0.1], requires_grad=True)
    y = fastq.lsq(x, step, bits=4)
    y.backward(torch.ones(4))
    assert y.isnan().tolist() == [True, False, False, False]
    assert y[1] == 0.1 * torch.tensor(7.0) and y[2] == 0.1 * torch.tensor(-8.0)
    assert x.grad.isnan().tolist() == [True, False, False, False] and x.grad[1:].tolist() == [0, 0, 1]
    assert step.grad.isnan().all()
    for bad in (math.nan, math.inf, -math.inf):
        assert fastq.lsq(torch.ones(3), torch.tensor([bad]), bits=4).isnan().all()


def test_negative_zero_and_tiny_steps():
    x = torch.randn(50, requires_grad=True)
    for step in (0.0, 1e-12, -1e-12):
        assert torch.equal(fastq.lsq(x, torch.tensor([step]), bits=4), fastq.lsq(x, torch.tensor([1e-8]), bits=4))
    plus, minus = (torch.tensor([s], requires_grad=True) for s in (0.1, -0.1))
    for step in (plus, minus):
        fastq.lsq(x, step, bits=4).sum().backward()
    assert torch.equal(plus.grad, -minus.grad)
    y = fastq.lsq(torch.tensor([-0.0, -0.01]), torch.ones(1), bits=4)
    assert not y.signbit().any()


def test_masked_gradient_is_a_select():
    x = torch.tensor([100.0, 0.1], requires_grad=True)
    fastq.lsq(x, torch.ones(1), bits=4).backward(torch.tensor([math.inf, 1.0]))
    assert x.grad.tolist() == [0, 1]


def test_gradient_scales():
    x = torch.randn(6, 8)
    grads = {}
    for scale in (1.0, "lsq", "lsq-full"):
        step = torch.full((6,), 0.1, requires_grad=True)
        fastq.lsq(x, step, bits=4, axis=0, grad_scale=scale).sum().backward()
        grads[scale] = step.grad
    torch.testing.assert_close(grads["lsq"], grads[1.0] / math.sqrt(8 * 7))
    torch.testing.assert_close(grads["lsq-full"], grads[1.0] / math.sqrt(48 * 7))


X, S = torch.randn(4, 6), torch.ones(1)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (TypeError, "x must be float32.*got torch.int64", lambda: fastq.lsq(torch.arange(4), S, bits=4)),
        (TypeError, "layout torch.sparse_coo", lambda: fastq.lsq(X.to_sparse(), S, bits=4)),
        (TypeError, "got torch.float8_e4m3fn", lambda: fastq.lsq(X.to(torch.float8_e4m3fn), S, bits=4)),
        (TypeError, "step must be torch.float32", lambda: fastq.lsq(X, S.double(), bits=4)),
        (TypeError, "step must be torch.float64", lambda: fastq.lsq(X.double(), S, bits=4)),
        (TypeError, "step must be a torch.Tensor, got float", lambda: fastq.lsq(X, 0.1, bits=4)),
        (ValueError, "must be on the device of x", lambda: fastq.lsq(X, S.to("meta"), bits=4)),
        (ValueError, "one element per tensor", lambda: fastq.lsq(X, torch.ones(4), bits=4)),
        (ValueError, r"shape \(4,\).*axis=0, got \(6,\)", lambda: fastq.lsq(X, torch.ones(6), bits=4, axis=0)),
        (ValueError, r"axis must be in \[-2, 1\]", lambda: fastq.lsq(X, S, bits=4, axis=2)),
        (ValueError, "group_size=4 must divide", lambda: fastq.lsq(X, S, bits=4, group_size=4)),
        (ValueError, "exclude each other", lambda: fastq.lsq(X, S, bits=4, axis=0, group_size=2)),
        (ValueError, "bits must be from 1 to 8", lambda: fastq.lsq(X, S, bits=9)),
        (ValueError, "bits must be from 1 to 8", lambda: fastq.lsq(X, S, bits=0)),
        (ValueError, "needs qmin < qmax", lambda: fastq.lsq(X, S, bits=(3, 3))),
        (ValueError, "no positive code", lambda: fastq.lsq(X, S, bits=1)),
        (ValueError, "boundary must be one of", lambda: fastq.lsq(X, S, bits=4, boundary="half")),
        (ValueError, "grad_scale must be", lambda: fastq.lsq(X, S, bits=4, grad_scale="sqrt")),
        (TypeError, "grad_scale must be.*got NoneType", lambda: fastq.lsq(X, S, bits=4, grad_scale=None)),
        (TypeError, "grad_scale must be.*got Tensor", lambda: fastq.lsq(X, S, bits=4, grad_scale=S)),
        (TypeError, "axis must be an int or None, got 0.0", lambda: fastq.lsq(X, S, bits=4, axis=0.0)),
        (TypeError, "group_size must be an int or None, got True", lambda: fastq.lsq(X, S, bits=4, group_size=True)),
        (TypeError, "bits must be an int from 1 to 8 or a pair", lambda: fastq.lsq(X, S, bits=4.0)),
        (ValueError, "offset must have", lambda: fastq.lsq(X, S, bits=4, offset=torch.zeros(2))),
    ],
)
def test_bad_input(error, message, call):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("step", [0.0, -1.0, math.nan, math.inf])
def test_checking_mode(step):
    fastq.set_checks(True)
    try:
        with pytest.raises(ValueError, match="step must be positive and finite"):
            fastq.lsq(X, torch.tensor([step]), bits=4)
        with pytest.raises(ValueError, match="x holds NaN"):
            fastq.lsq(X * math.nan, S, bits=4)
    finally:
        fastq.set_checks(False)


def test_empty_and_zero_dimensional():
    step = torch.ones(1, requires_grad=True)
    fastq.lsq(torch.empty(0, 3), step, bits=4).sum().backward()
    assert step.grad.tolist() == [0]
    assert fastq.lsq(torch.tensor(2.4), torch.ones(()), bits=4).item() == 2


def test_double_backward_raises():
    x = torch.randn(8, requires_grad=True)
    (dx,) = torch.autograd.grad(fastq.lsq(x, S, bits=4).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not defined"):
        torch.autograd.grad(dx.sum(), x)
