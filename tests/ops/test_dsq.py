"""DSQ: every backend against its reference, the reference by finite differences and by what holds of any such quantizer.

Run as a program under ``TRITON_INTERPRET=1`` it checks the Triton kernels: the interpreter is chosen before Triton is imported.
"""

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from device import BACKEND, DEVICE, drawn

import fastq
from fastq.autograd import DSQ
from fastq.granularity import expand, normalize_axis
from fastq.reference.dsq import dsq_surrogate
from fastq.testing import Case, check_quantizer, same_bits

VALUES = (-1.0, 0.5, 0.25)  # at 2 bits a step of 1/2
LEARNED, FIXED = {"bits": 2}, {"bits": 4, "alpha": 0.2}
CASES = [
    Case("per tensor", (7, 61), ((1,),) * 3, LEARNED, values=VALUES),
    Case("per tensor, fixed alpha", (7, 61), ((1,),) * 2, FIXED, values=VALUES),
    Case("per channel, middle axis", (3, 6, 5, 7), ((6,),) * 3, LEARNED | {"axis": 1}, values=VALUES),
    Case("per channel, last axis, fixed alpha", (140, 37), ((37,),) * 2, FIXED | {"axis": -1}, values=VALUES),
    Case("per group", (4, 3, 64), ((4, 3, 2),) * 3, {"bits": 3, "group_size": 32}, values=VALUES),
    Case("per channel, first axis, 1 bit", (5, 4, 90), ((5,),) * 3, {"bits": 1, "axis": 0}, values=VALUES),
]


def dsq(x: Any, lower: Any, upper: Any, learned: Any = None, *, alpha: Any = None, **keywords: Any) -> torch.Tensor:
    return fastq.dsq(x, lower, upper, alpha=alpha if learned is None else learned, **keywords)


def reference(x: Any, lower: Any, upper: Any, learned: Any = None, *, alpha: Any = None, **keywords: Any) -> torch.Tensor:
    return fastq.reference.dsq(x, lower, upper, alpha=alpha if learned is None else learned, **keywords)


def surrogate(x: Any, lower: Any, upper: Any, learned: Any = None, *, alpha: Any = None, **keywords: Any) -> Any:
    """``lower + D * (phi + rho)`` with ``rho`` as it is at the given point."""
    soft = alpha if learned is None else learned
    d = (upper - lower) / (2 ** keywords["bits"] - 1)
    where = normalize_axis("surrogate", x, keywords.get("axis"), keywords.get("group_size"))
    zero = dsq_surrogate(x, lower, upper, soft, **keywords, residual=x.new_zeros(()))
    residual = (fastq.reference.dsq(x, lower, upper, alpha=soft, **keywords) - zero).detach() / expand(d, x, *where)
    return lambda x, lower, upper, learned=None: dsq_surrogate(
        x, lower, upper, alpha if learned is None else learned, **keywords, residual=residual
    )


def check(backend: str, cases: list[Case], **keywords: Any) -> int:
    """Within 8 ulp: exp is within 2 of the true value, torch's as well, and a quotient has its square."""
    with fastq.use_backend(backend):
        # a term is at most 1 and twice the slope at a = 0.2
        report = check_quantizer(
            dsq, reference, cases, surrogate=surrogate, exact_sums=False, ulps=8, term_bound=4, device=DEVICE, **keywords
        )
    return len(report.results)


def test_equals_the_reference() -> None:
    x, g, low = drawn((4, 6)), drawn((4, 6), 1), torch.full((6,), -1.0, device=DEVICE)
    forward, backward = torch.ops.fastq.dsq_forward.default, torch.ops.fastq.dsq_backward.default
    operators = [
        (forward, (x, low, -low, 3, 1, 0)),
        (backward, (g, x, low, -low, -low / 4, 0.0, 3, 1, 0)),
        (backward, (g, x, low, -low, None, 0.2, 3, 1, 0)),
    ]
    every, some = {"operators": operators if BACKEND != "triton" else []}, {"dtypes": (torch.float32, torch.bfloat16)}
    assert check(BACKEND, CASES[:1], **every) + check(BACKEND, CASES[1:], **some, large=100_000) > 250


def test_triton_equals_the_reference_in_its_interpreter() -> None:
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONWARNINGS": "ignore", "FASTQ_BACKEND": "triton"}
    env["PYTHONPATH"] = str(Path(__file__).parents[1])
    done = subprocess.run([sys.executable, str(Path(__file__))], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_output_has_the_references_bits() -> None:
    """No tanh in it: what lets ``dx`` be a few ulp off is no excuse for ``y``."""
    for case in [*CASES, Case("8 bits", (40, 30), ((1,),) * 3, {"bits": 8}, values=VALUES)]:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            x = drawn(case.shape).to(dtype)
            p = [torch.full(shape, v, device=DEVICE) * 1.01 for shape, v in zip(case.parameters, case.values, strict=False)]
            y = dsq(x, *p, **case.keywords)
            assert same_bits(y.cpu(), reference(x.cpu(), *(t.cpu() for t in p), **case.keywords)), case.name


def equals_the_cpu(case: Case, dtype: torch.dtype) -> None:
    """``y`` and ``dx`` have the same bits: exp and tanh are the same polynomials. Sums are added in another order."""
    x, g = drawn(case.shape).to(dtype), drawn(case.shape, 1).to(dtype)
    results = []
    for backend in ("cpu", BACKEND):
        with fastq.use_backend(backend):
            leaves = [x.clone(), *(torch.full(s, v * 1.01) for s, v in zip(case.parameters, case.values, strict=False))]
            y = dsq(*(t.requires_grad_() for t in leaves), **case.keywords)
            results.append((y.detach(), *torch.autograd.grad(y, leaves, g)))
    for i, (a, b) in enumerate(zip(*results, strict=True)):
        assert same_bits(a, b) if i < 2 else torch.allclose(a, b, rtol=1e-4, atol=1e-4), f"{case.name}, result {i}"


# The formula


@pytest.mark.parametrize("alpha", [1e-4, 0.05, 0.2, 0.5, 0.9, 0.99])
def test_the_soft_staircase_rounds_to_the_same_codes(alpha: float) -> None:
    """round(phi) is round(c), phi goes through the integers, never falls, and rises by 1 over each step."""
    v = torch.linspace(0, 7, 7 * 1000 + 1, dtype=torch.float64)
    f = v.floor()
    phi = f + 0.5 + 0.5 / (1 - alpha) * (math.log(2 / alpha - 1) * (v - f - 0.5)).tanh()
    tie = (v - f) == 0.5
    assert torch.equal(phi.round()[~tie], v.round()[~tie])
    assert torch.allclose(phi[::1000], v[::1000], rtol=0, atol=1e-12) and bool((phi.diff() >= -1e-12).all())
    with fastq.use_backend("reference"):
        x = v.clone().requires_grad_()
        bound = torch.tensor([7.0], dtype=torch.float64)
        y = fastq.dsq(x, bound * 0, bound, bits=3, alpha=alpha)
        y.sum().backward()
    assert torch.equal(y.detach(), v.round())
    assert x.grad is not None
    slope = x.grad[1:-1]
    torch.testing.assert_close(slope, (phi[2:] - phi[:-2]) / 2e-3, rtol=5e-3, atol=1e-3)  # h^2 times the third derivative
    torch.testing.assert_close(slope.mean(), torch.tensor(1.0, dtype=torch.float64), rtol=2e-3, atol=0)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_moving_or_stretching_everything_does_the_same_to_the_output(case: Case) -> None:
    """y(x + t, lower + t, upper + t) = y + t and y(s*x, s*lower, s*upper) = s*y: so dx + dlower + dupper sum to g, and with x,
    lower and upper as weights to g*y. Exact for the formulas; here in fp64."""
    x, g = drawn(case.shape).double().requires_grad_(), drawn(case.shape, 1).double()
    p = [torch.full(s, v, device=DEVICE).double().requires_grad_() for s, v in zip(case.parameters, VALUES, strict=False)]
    y = dsq(x, *p, **case.keywords)
    dx, dlower, dupper = torch.autograd.grad(y, [x, p[0], p[1]], g)
    torch.testing.assert_close(dx.sum() + dlower.sum() + dupper.sum(), g.sum(), rtol=1e-10, atol=1e-10)
    stretched = (dx * x).sum() + (dlower * p[0]).sum() + (dupper * p[1]).sum()
    torch.testing.assert_close(stretched, (g * y).sum(), rtol=1e-10, atol=1e-10)


def test_the_ends_by_hand() -> None:
    """Outside, and at the ends themselves, the bound has the gradient; inside at 1 bit, r = 0: slope 0.5 * S * k."""
    low, high = torch.tensor([0.0], device=DEVICE), torch.tensor([1.0], device=DEVICE)
    leaves = [t.requires_grad_() for t in (torch.tensor([-1.0, 0.0, 0.5, 1.0, 2.0], device=DEVICE), low, high)]
    y = fastq.dsq(*leaves, bits=1, alpha=0.2)
    assert y.tolist() == [0, 0, 0, 1, 1]  # a tie goes to the even code
    g = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0], device=DEVICE)
    dx, dlower, dupper = (t.cpu() for t in torch.autograd.grad(y, leaves, g))
    slope = 0.5 / 0.8 * math.log(9)
    torch.testing.assert_close(dx, torch.tensor([0, 0, 4 * slope, 0, 0]))
    torch.testing.assert_close(dlower, torch.tensor([1 + 2 + 4 * (1 - slope / 2)]))
    torch.testing.assert_close(dupper, torch.tensor([8 + 16 - 4 * slope / 2]))


def test_the_softest_staircase_is_the_straight_through_gradient() -> None:
    x = drawn((50,)).double().requires_grad_()
    bounds = [torch.tensor([v], dtype=torch.float64, device=DEVICE).requires_grad_() for v in (-1.0, 1.0)]
    dx, _, dupper = torch.autograd.grad(fastq.dsq(x, *bounds, bits=4, alpha=0.99).sum(), [x, *bounds])
    v = (x.detach() + 1) / 2 * 15
    inside = (v > 0) & (v < 15)
    torch.testing.assert_close(dx, inside.double(), rtol=1e-3, atol=0)
    plain = torch.where(inside, (v.round() - v) / 15, (v > 0).double()).sum()
    torch.testing.assert_close(dupper, plain.reshape(1), rtol=1e-3, atol=1e-3)


def test_guards() -> None:
    """Bounds that meet act as 1e-8 apart; alpha outside its range as the end of it, with the gradient there."""
    x, g = drawn((40,)), drawn((40,), 1)

    def run(lower: float, upper: float, alpha: float) -> list[torch.Tensor]:
        leaves = [x.clone().requires_grad_(), *(torch.tensor([v], device=DEVICE).requires_grad_() for v in (lower, upper, alpha))]
        y = fastq.dsq(*leaves[:3], bits=3, alpha=leaves[3])
        return [y.detach(), *torch.autograd.grad(y, leaves, g)]

    for upper in (0.25, 0.0):
        y, *gradients = run(0.25, upper, 0.2)
        torch.testing.assert_close(y, torch.full_like(y, 0.25), rtol=1e-6, atol=0)
        assert all(bool(t.isfinite().all()) for t in gradients)
    for outside, end in ((0.0, 1e-4), (-3.0, 1e-4), (1.0, 0.99), (7.0, 0.99)):
        for a, b in zip(run(-1.0, 1.0, outside), run(-1.0, 1.0, end), strict=True):
            assert same_bits(a, b)
    for broken in ((math.inf, 1.0, 0.2), (-1.0, math.nan, 0.2), (-math.inf, math.inf, 0.2)):
        assert bool(run(*broken)[0].isnan().all())
    assert bool(run(-1.0, 1.0, math.nan)[1].isnan()[x.abs() < 1].all())


def test_a_float_alpha_is_the_tensor_without_its_gradient() -> None:
    x, g = drawn((5, 30)), drawn((5, 30), 1)
    low = torch.full((5,), -1.0, device=DEVICE)
    leaves = [t.clone().requires_grad_() for t in (x, low, -low)]
    number = torch.autograd.grad(fastq.dsq(*leaves, bits=3, alpha=0.3, axis=0), leaves, g)
    tensor = torch.autograd.grad(fastq.dsq(*leaves, bits=3, alpha=torch.full_like(low, 0.3), axis=0), leaves, g)
    assert all(same_bits(a, b) for a, b in zip(number, tensor, strict=True))
    assert same_bits(DSQ.apply(x, low, -low, 0.3, 7, 0), fastq.dsq(x, low, -low, bits=3, alpha=0.3, axis=0))


# The compiler, and bad input


def test_compiles_as_one_graph() -> None:
    torch._dynamo.reset()

    def f(x: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
        return fastq.dsq(x * 1.5, lower, upper, bits=3, alpha=alpha) + 1

    leaves = [t.to(DEVICE).requires_grad_() for t in (drawn((5, 8)), *(torch.tensor([v]) for v in VALUES))]
    results = [torch.autograd.grad(fn(*leaves).sin().sum(), leaves) for fn in (f, torch.compile(f, fullgraph=True))]
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


X, ONE = torch.ones(3, 4), torch.ones(1)


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (TypeError, r"x must be float32, bfloat16, float16 or float64, got torch\.int64", {"x": torch.arange(4)}),
        (TypeError, r"lower must be torch\.float32 for x of torch\.float32, got torch\.float64", {"lower": ONE.double()}),
        (TypeError, r"upper must be a torch\.Tensor, got float", {"upper": 1.0}),
        (ValueError, r"upper must have one element per tensor, got shape \(3,\)", {"upper": torch.ones(3)}),
        (ValueError, r"alpha must have one element per tensor, got shape \(2,\)", {"alpha": torch.ones(2)}),
        (ValueError, r"upper must have the shape of lower, \(1,\), got \(1, 1\)", {"upper": torch.ones(1, 1)}),
        (ValueError, r"lower must have shape \(4,\).*got \(1,\)", {"axis": 1}),
        (ValueError, "axis=0 and group_size=2 exclude each other", {"axis": 0, "group_size": 2}),
        (ValueError, "group_size=3 must divide the last axis of x", {"group_size": 3}),
        (TypeError, "bits must be an int from 1 to 8, got 2.5", {"bits": 2.5}),
        (TypeError, "bits must be an int from 1 to 8, got True", {"bits": True}),
        (ValueError, "bits must be from 1 to 8, got 0", {"bits": 0}),
        (ValueError, r"alpha must lie between 0 and 1 \(both excluded\), got 0", {"alpha": 0.0}),
        (ValueError, r"alpha must lie between 0 and 1 \(both excluded\), got 1.5", {"alpha": 1.5}),
        (TypeError, "alpha must be a torch.Tensor or a float between 0 and 1, got str", {"alpha": "soft"}),
    ],
)
@pytest.mark.parametrize("fn", [fastq.dsq, fastq.reference.dsq], ids=["fastq", "reference"])
def test_bad_input_is_named(fn: Any, error: type[Exception], message: str, change: dict[str, Any]) -> None:
    arguments = {"x": X, "lower": -ONE, "upper": ONE, "bits": 2, "alpha": 0.2} | change
    x, lower, upper = (arguments.pop(name) for name in ("x", "lower", "upper"))
    with pytest.raises(error, match=f"dsq: {message}"):
        fn(x, lower, upper, **arguments)


def test_the_checking_mode_raises() -> None:
    fastq.set_checks(True)
    try:
        for fn in (fastq.dsq, fastq.reference.dsq):
            for lower, upper in ((1.0, 1.0), (2.0, 1.0), (0.0, math.inf), (math.nan, 1.0)):
                with pytest.raises(ValueError, match="dsq: lower must be below upper and both finite everywhere, got"):
                    fn(X, ONE * lower, ONE * upper, bits=2, alpha=0.2)
            with pytest.raises(ValueError, match=r"dsq: alpha must lie between 0 and 1 \(both excluded\) everywhere, got \[1.0\]"):
                fn(X, -ONE, ONE, bits=2, alpha=ONE)
            with pytest.raises(ValueError, match=r"dsq: x holds NaN \(12 of 12 elements\)"):
                fn(X * math.nan, -ONE, ONE, bits=2, alpha=0.2)
            fn(X, -ONE, ONE, bits=2, alpha=ONE / 4)
    finally:
        fastq.set_checks(False)


if __name__ == "__main__":
    check("triton", CASES[:1], dtypes=(torch.float32,), threads=(1,), large=5000, layouts=("contiguous",))
    for number, each in enumerate(CASES):
        equals_the_cpu(each, torch.bfloat16 if number % 2 else torch.float32)
    test_guards()
