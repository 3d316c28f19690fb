"""EWGS: held against its reference on each backend, and its gradient a straight-through one of a scaled gradient.

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
from fastq.autograd import EWGS
from fastq.granularity import expand, normalize_axis
from fastq.reference.ewgs import ewgs_surrogate
from fastq.testing import Case, check_quantizer, same_bits

GRAINS: list[tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ("per tensor", (7, 61), (1,), {}),
    ("per channel, middle axis", (3, 6, 5, 7), (6,), {"axis": 1}),
    ("per channel, last axis", (70, 37), (37,), {"axis": -1}),
    ("per group", (4, 3, 64), (4, 3, 2), {"group_size": 32}),
]
KINDS: list[dict[str, Any]] = [
    {"bits": 2, "delta": 0.0},
    {"bits": 4, "delta": 0.3, "boundary": "closed"},
    {"bits": 1, "delta": 0.0, "boundary": "closed"},
    {"bits": 8, "delta": 5.0},
]
#: lower near -1, upper near 1.5
VALUES = (-1.0, 1.5)
CASES = [
    Case(f"{name}, {kind}", shape, (parameter, parameter), grain | kind, values=VALUES)
    for i, (name, shape, parameter, grain) in enumerate(GRAINS)
    for kind in (KINDS[i % 4], KINDS[(i + 1) % 4])
]


def position(x: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, **keywords: Any) -> torch.Tensor:
    where = normalize_axis("test", x, keywords.get("axis"), keywords.get("group_size"))
    low, high = expand(lower, x, *where), expand(upper, x, *where)
    return ((x - low) / (high - low)).clamp(0, 1)


def surrogate(x: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, **keywords: Any) -> Any:
    """``c + r``, ``r`` as it is at the given point: straight-through, so for ``delta = 0``."""
    levels = 2 ** keywords["bits"] - 1
    c = position(x, lower, upper, **keywords)
    r = (c * levels).round() / levels - c
    how = {name: keywords[name] for name in ("bits", "axis", "group_size") if name in keywords}
    return lambda x, lower, upper: ewgs_surrogate(x, lower, upper, residual=r, **how)


def check(backend: str, cases: list[Case], device: str = "cpu", **keywords: Any) -> int:
    count = 0
    for straight in (True, False):
        some = [case for case in cases if (case.keywords["delta"] == 0.0) == straight]
        with fastq.use_backend(backend):
            report = check_quantizer(
                fastq.ewgs, fastq.reference.ewgs, some, surrogate=surrogate if straight else None, device=device,
                # h / W, with |h| <= 3.5 |g| and W >= 1e-8 in "extreme parameters"; about 2 elsewhere
                term_bound=4.0, exact_sums=False, **keywords,
            )  # fmt: skip
        count += len(report.results)
    return count


def operators() -> list[tuple[Any, tuple[Any, ...]]]:
    x, g, upper = drawn((4, 6)), drawn((4, 6), 1), drawn((6,), 2).abs() + 0.5
    forward, backward = torch.ops.fastq.ewgs_forward.default, torch.ops.fastq.ewgs_backward.default
    how = (15, 1, 0, 1e-8)
    return [(forward, (x, -upper, upper, *how)), (backward, (g, x, -upper, upper, *how, 1, 0.5))]


def test_it_equals_the_reference() -> None:
    few = {"dtypes": (torch.float32, torch.bfloat16, torch.float64), "large": 60_000}
    assert check(BACKEND, CASES, DEVICE, operators=operators(), **few) > 200
    x, upper = drawn((4, 6)), drawn((6,), 1).abs() + 0.5
    assert same_bits(EWGS.apply(x, -upper, upper, 15, 1), fastq.ewgs(x, -upper, upper, bits=4, delta=0.5, axis=1))


def test_triton_equals_the_reference_in_its_interpreter() -> None:
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONWARNINGS": "ignore", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, str(Path(__file__))], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]


BACKENDS = pytest.mark.parametrize("backend", [BACKEND, "reference"])


def leaves_of(case: Case) -> list[torch.Tensor]:
    lower = -drawn(case.parameters[0], 1).abs() - 0.2
    return [t.requires_grad_() for t in (drawn(case.shape), lower, drawn(case.parameters[0], 2).abs() + 0.2)]


@BACKENDS
@pytest.mark.parametrize("case", [case for case in CASES if case.keywords["delta"]], ids=lambda case: case.name)
def test_it_is_straight_through_for_a_scaled_gradient(case: Case, backend: str) -> None:
    """``delta`` multiplies each element's gradient by ``1 + delta * sign(g) * (c - y)`` before anything else happens to it."""
    leaves = leaves_of(case)
    g = drawn(case.shape, 3)
    with fastq.use_backend(backend):
        y = fastq.ewgs(*leaves, **case.keywords)
        got = torch.autograd.grad(y, leaves, g)
        with torch.no_grad():
            scaled = g * (1 + case.keywords["delta"] * g.sign() * (position(*leaves, **case.keywords) - y))
        straight = torch.autograd.grad(fastq.ewgs(*leaves, **case.keywords | {"delta": 0.0}), leaves, scaled)
    assert (scaled != g).any()
    for a, b in zip(got, straight, strict=True):
        # the factor's roundings, and for the sums those of up to 630 terms
        torch.testing.assert_close(a, b, rtol=2e-6, atol=1e-4)


@BACKENDS
def test_the_formula_by_hand(backend: str) -> None:
    """Two bits between -1 and 2, so that L = 3 levels lie at whole numbers."""
    x = torch.tensor([-1.5, -1.0, -0.4, 0.3, 0.5, 1.6, 2.0, 2.5], device=DEVICE, requires_grad=True)
    c = [0.0, 0.0, 0.2, 1.3 / 3, 0.5, 2.6 / 3, 1.0, 1.0]
    y = [0.0, 0.0, 1 / 3, 1 / 3, 2 / 3, 1.0, 1.0, 1.0]
    with fastq.use_backend(backend):
        for boundary, inside in (("open", [0, 0, 1, 1, 1, 1, 0, 0]), ("closed", [0, 1, 1, 1, 1, 1, 1, 0])):
            for g in (2.0, -2.0):
                lower, upper = (torch.full((8,), v, device=DEVICE, requires_grad=True) for v in (-1.0, 2.0))
                out = fastq.ewgs(x, lower, upper, bits=2, delta=0.5, axis=0, boundary=boundary)
                got = torch.autograd.grad(out, [x, lower, upper], torch.full_like(x, g))
                h = [m * g * (1 + 0.5 * math.copysign(1, g) * (a - b)) / 3 for a, b, m in zip(c, y, inside, strict=True)]
                want = [h, [k * (a - 1) for k, a in zip(h, c, strict=True)], [-k * a for k, a in zip(h, c, strict=True)]]
                torch.testing.assert_close(out, torch.tensor(y, device=DEVICE), rtol=1e-6, atol=0)
                for a, b in zip(got, want, strict=True):  # c has fp32's rounding, relative to 1
                    torch.testing.assert_close(a, torch.tensor(b, device=DEVICE), rtol=1e-5, atol=1e-6)


@BACKENDS
def test_bounds_that_are_no_interval(backend: str) -> None:
    """``upper < lower`` is the interval above ``lower`` of that width, and the width's share of the gradients turns."""
    x, g = drawn((200,)), drawn((200,), 1)
    with fastq.use_backend(backend):
        found = []
        for low, high in ((-0.5, 1.0), (-0.5, -2.0)):
            lower, upper = (torch.tensor([v], device=DEVICE, requires_grad=True) for v in (low, high))
            leaf = x.clone().requires_grad_()
            y = fastq.ewgs(leaf, lower, upper, bits=3, delta=0.0)
            found.append((y, *torch.autograd.grad(y, [leaf, lower, upper], g)))
        (y, dx, dlower, dupper), (crossed, dcrossed, clower, cupper) = found
        assert same_bits(y, crossed) and same_bits(dx, dcrossed) and same_bits(dupper, -cupper)
        torch.testing.assert_close(dlower + clower, -2 * dx.sum().view(1), rtol=1e-5, atol=1e-4)  # of 200 terms
        at = torch.tensor([0.25], device=DEVICE)
        values = torch.tensor([0.2, 0.25, 0.3], device=DEVICE)
        assert fastq.ewgs(values, at, at, bits=3, delta=0.0).tolist() == [0, 0, 1]  # a width of eps
        for bad in (math.nan, math.inf, -math.inf):
            for pair in ((at * bad, at), (at, at * bad)):
                assert fastq.ewgs(values, *pair, bits=3, delta=0.0).isnan().all()


@BACKENDS
def test_not_finite(backend: str) -> None:
    x = torch.tensor([math.nan, math.inf, -math.inf, 0.3], device=DEVICE, requires_grad=True)
    with fastq.use_backend(backend):
        lower, upper = (torch.full((4,), v, device=DEVICE, requires_grad=True) for v in (-1.0, 1.0))
        y = fastq.ewgs(x, lower, upper, bits=4, delta=0.1, axis=0)
        gradients = torch.autograd.grad(y, [x, lower, upper], torch.tensor([1.0, math.inf, -math.inf, 1.0], device=DEVICE))
        assert y[1:3].tolist() == [1, 0]
        for t in (y, *gradients):  # an infinite gradient where nothing passes is 0, not NaN
            assert t.isnan().tolist() == [True, False, False, False]
        assert all(t[1:3].tolist() == [0, 0] for t in gradients)


X, L, U = drawn((4, 6)), -torch.ones(1, device=DEVICE), torch.ones(1, device=DEVICE)
HOW: dict[str, Any] = {"bits": 4, "delta": 0.1}


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (TypeError, r"ewgs: x must be float32, .*, got torch\.int64", lambda: fastq.ewgs(X.long(), L, U, **HOW)),
        (TypeError, r"ewgs: lower must be torch.float32 .*, got torch.float64", lambda: fastq.ewgs(X, L.double(), U, **HOW)),
        (TypeError, r"ewgs: upper must be a torch.Tensor, got float", lambda: fastq.ewgs(X, L, 1.0, **HOW)),
        (ValueError, r"ewgs: lower must have one element per tensor, got .*\(3,\)", lambda: fastq.ewgs(X, L.expand(3), U, **HOW)),
        (ValueError, r"ewgs: upper must have shape \(6,\)", lambda: fastq.ewgs(X, L.expand(6), U, **HOW, axis=1)),
        (ValueError, r"ewgs: upper must have the shape of lower, \(1,\), got \(\)", lambda: fastq.ewgs(X, L, U.view(()), **HOW)),
        (ValueError, r"ewgs: group_size=4 must divide", lambda: fastq.ewgs(X, L, U, **HOW, group_size=4)),
        (ValueError, r"ewgs: bits must be from 1 to 8, got 9", lambda: fastq.ewgs(X, L, U, bits=9, delta=0.1)),
        (ValueError, r"ewgs: delta must be at least 0 and finite, got -0.1", lambda: fastq.ewgs(X, L, U, bits=4, delta=-0.1)),
        (ValueError, r"ewgs: delta must be at least 0 and finite, got nan", lambda: fastq.ewgs(X, L, U, bits=4, delta=math.nan)),
        (ValueError, r"ewgs: delta must be at least 0 and finite, got inf", lambda: fastq.ewgs(X, L, U, bits=4, delta=math.inf)),
        (TypeError, r"ewgs: delta must be a float, got None", lambda: fastq.ewgs(X, L, U, bits=4, delta=None)),
        (ValueError, r"ewgs: boundary must be one of open, closed, got 'rounded'",
         lambda: fastq.ewgs(X, L, U, **HOW, boundary="rounded")),
        (ValueError, r"ewgs: eps must be positive and finite in float32, .* got -1", lambda: fastq.ewgs(X, L, U, **HOW, eps=-1)),
    ],
)  # fmt: skip
def test_bad_input_is_named(error: type[Exception], message: str, call: Any) -> None:
    with pytest.raises(error, match=message):
        call()


def test_checking_mode_refuses_what_is_no_interval() -> None:
    fastq.set_checks(True)
    try:
        for fn in (fastq.ewgs, fastq.reference.ewgs):
            for pair in ((U, L), (U, U), (L, U * math.inf), (L * math.nan, U)):
                with pytest.raises(ValueError, match="ewgs: upper - lower must be positive and finite everywhere, got"):
                    fn(X, *pair, **HOW)
        with pytest.raises(ValueError, match="ewgs: x holds NaN"):
            fastq.ewgs(X * math.nan, L, U, **HOW)
    finally:
        fastq.set_checks(False)


if __name__ == "__main__":
    quick: dict[str, Any] = {"threads": (1,), "large": 5000, "layouts": ("transposed",), "dtypes": (torch.float32, torch.bfloat16)}
    check("triton", [CASES[3], CASES[5]], **quick)
