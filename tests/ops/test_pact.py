"""PACT: held against its reference on each backend, by hand, and equal to LSQ.

Run as a program under ``TRITON_INTERPRET=1`` it checks the Triton kernels: the interpreter is chosen before Triton is imported.
"""

import functools
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
from fastq.autograd import PACT
from fastq.granularity import expand, normalize_axis
from fastq.reference.pact import pact_surrogate
from fastq.testing import Case, check_quantizer, same_bits

GRAINS: list[tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ("per tensor", (7, 61), (1,), {}),
    ("per channel, middle axis", (3, 6, 5, 7), (6,), {"axis": 1}),
    ("per channel, last axis", (70, 37), (37,), {"axis": -1}),
    ("per group", (4, 3, 64), (4, 3, 2), {"group_size": 32}),
]
KINDS: list[dict[str, Any]] = [
    {"bits": 2},
    {"bits": 4, "calibrated": False},
    {"bits": 3, "two_sided": True},
    {"bits": 1, "two_sided": True, "calibrated": False},
]
#: Two of the four kinds for each granularity: the kernels see them apart from each other.
CASES = [
    Case(f"{name}, {kind}", shape, (parameter,), grain | kind)
    for i, (name, shape, parameter, grain) in enumerate(GRAINS)
    for kind in (KINDS[i % 4], KINDS[(i + 2) % 4])
]


def surrogate(x: torch.Tensor, alpha: torch.Tensor, **keywords: Any) -> Any:
    """``s * (clip(v) + r)`` with ``r`` as it is at the given point; plain PACT's ``s * r`` as it is there."""
    levels, two_sided = 2 ** keywords["bits"] - 1, keywords.get("two_sided", False)
    where = normalize_axis("surrogate", x, keywords.get("axis"), keywords.get("group_size"))
    s = expand(alpha, x, *where) / levels
    c = (x / s).clamp(-levels if two_sided else 0, levels)
    r = (2 * ((c + levels) / 2).round() - levels if two_sided else c.round()) - c
    if keywords.get("calibrated", True):
        return lambda x, alpha: pact_surrogate(x, alpha, residual=r, **keywords)

    def plain(x: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
        a = expand(alpha, x, *where)
        return torch.minimum(torch.maximum(x, -a if two_sided else torch.zeros_like(a)), a) + s * r

    return plain


def check(backend: str, cases: list[Case], device: str = "cpu", **keywords: Any) -> int:
    with fastq.use_backend(backend):
        report = check_quantizer(
            fastq.pact, fastq.reference.pact, cases, surrogate=surrogate, term_bound=1.0, device=device, **keywords
        )
    return len(report.results)


def operators() -> list[tuple[Any, tuple[Any, ...]]]:
    x, g, alpha = drawn((4, 6)), drawn((4, 6), 1), drawn((6,), 2).abs() + 0.5
    forward, backward = torch.ops.fastq.pact_forward.default, torch.ops.fastq.pact_backward.default
    how = (15, True, 1, 0, 1e-8)
    return [(forward, (x, alpha, *how)), (backward, (g, x, alpha, *how, True)), (backward, (g, x, alpha, *how, False))]


def test_it_equals_the_reference() -> None:
    few = {"dtypes": (torch.float32, torch.bfloat16, torch.float64), "large": 60_000}
    assert check(BACKEND, CASES, DEVICE, operators=operators(), **few) > 200
    x, alpha = drawn((4, 6)), drawn((6,), 1).abs() + 0.5
    assert same_bits(PACT.apply(x, alpha, 15, False, 1), fastq.pact(x, alpha, bits=4, axis=1))


def test_triton_equals_the_reference_in_its_interpreter() -> None:
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONWARNINGS": "ignore", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, str(Path(__file__))], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]


BACKENDS = pytest.mark.parametrize("backend", [BACKEND, "reference"])


def results(f: Any, *inputs: torch.Tensor) -> list[torch.Tensor]:
    """``y`` and the gradients of ``sum sin(y)``."""
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    y = f(*leaves)
    return [y.detach(), *torch.autograd.grad(y.sin().sum(), leaves)]


@BACKENDS
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("case", [case for case in CASES if case.keywords["bits"] == 2], ids=lambda case: case.name)
def test_calibrated_pact_is_lsq(case: Case, bits: int, backend: str) -> None:
    """With ``step = alpha / L``: the bits of ``y`` and ``dx``, and ``dalpha = dstep / L``, here by LSQ's own gradient scale."""
    levels = 2**bits - 1
    x = drawn(case.shape) * 2
    where = {name: case.keywords[name] for name in ("axis", "group_size") if name in case.keywords}
    for sign in (1, -1):
        alpha = (drawn(case.parameters[0], 1).abs() + 1) * sign
        a = expand(alpha.abs(), x, *normalize_axis("lsq", x, where.get("axis"), where.get("group_size")))
        assert not ((x - a).abs() < 1e-6 * a).any()  # nothing next to the edge, where LSQ's quotient may round to either side
        with fastq.use_backend(backend):
            y, dx, dalpha = results(functools.partial(fastq.pact, bits=bits, **where), x, alpha)
            lsq = functools.partial(fastq.lsq, bits=bits, signed=False, grad_scale=1 / levels, **where)
            want, dwant, dstep = results(lsq, x, alpha / levels)
        assert same_bits(y, want) and same_bits(dx, dwant) and same_bits(dalpha, dstep)
        assert (x > a).any() and (x < 0).any() and dalpha.any()


@BACKENDS
def test_the_edges_by_hand(backend: str) -> None:
    """At ``x == A`` exactly one of ``dx`` and ``dalpha`` is not 0, also where the quotient x / s rounds below L."""
    for alpha in (8.0, 10.0, 3.0, 0.7, 6.1):
        for bits in (2, 3, 4, 8):
            a = torch.tensor([alpha], device=DEVICE)
            edge = a.repeat(4)
            x = torch.stack([edge[0], edge[0].nextafter(0 * a[0]), 0 * edge[0], -edge[0]])
            with fastq.use_backend(backend):
                for calibrated in (True, False):
                    leaves = [x.clone().requires_grad_(), a.expand(4).clone().requires_grad_()]
                    y = fastq.pact(*leaves, bits=bits, axis=0, calibrated=calibrated)
                    dx, dalpha = torch.autograd.grad(y.sum(), leaves)
                    assert dx.tolist() == [0, 1, 0, 0] and dalpha[0] == 1 and dalpha[2:].tolist() == [0, 0]
                    assert abs(dalpha[1].item()) < 1e-6
                    y = fastq.pact(*leaves, bits=bits, axis=0, calibrated=calibrated, two_sided=True)
                    dx, dalpha = torch.autograd.grad(y.sum(), leaves)
                    assert dx.tolist() == [0, 1, 1, 0] and dalpha[[0, 3]].tolist() == [1, -1]


@BACKENDS
def test_two_sided_codes_are_odd_and_have_no_zero(backend: str) -> None:
    with fastq.use_backend(backend):
        for bits in (1, 2, 3, 8):
            levels = 2**bits - 1
            alpha = torch.tensor([float(levels)], device=DEVICE)  # a step of 1: y is the code
            x = torch.linspace(-levels - 1, levels + 1, 4001, device=DEVICE)
            codes = fastq.pact(x, alpha, bits=bits, two_sided=True).unique().tolist()
            assert codes == [2 * k - levels for k in range(2**bits)]
            # zero is a tie between two levels; the even k wins
            k = levels // 2 + (levels // 2) % 2
            assert fastq.pact(torch.zeros(1, device=DEVICE), alpha, bits=bits, two_sided=True).item() == 2 * k - levels


@BACKENDS
def test_both_gradients_by_hand(backend: str) -> None:
    x = torch.tensor([-1.0, 0.4, 0.6, 1.4, 2.2, 3.0, 7.0], device=DEVICE)
    rows = {
        (True, False): [0.0, -0.4 / 3, 0.4 / 3, -0.4 / 3, -0.2 / 3, 1.0, 1.0],
        (False, False): [0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0],
        (True, True): [0.0, 0.6 / 3, 0.4 / 3, -0.4 / 3, 0.8 / 3, 1.0, 1.0],
    }
    with fastq.use_backend(backend):
        for (calibrated, two_sided), want in rows.items():
            for sign in (1.0, -1.0):
                alpha = torch.full((7,), 3.0 * sign, device=DEVICE, requires_grad=True)
                fastq.pact(x, alpha, bits=2, calibrated=calibrated, two_sided=two_sided, axis=0).sum().backward()
                # fp32: x / s and q - v round
                torch.testing.assert_close(alpha.grad, sign * torch.tensor(want, device=DEVICE), rtol=1e-5, atol=1e-6)


@BACKENDS
def test_not_finite_and_not_positive(backend: str) -> None:
    x = torch.tensor([math.nan, math.inf, -math.inf, 0.3], device=DEVICE, requires_grad=True)
    with fastq.use_backend(backend):
        alpha = torch.ones(4, device=DEVICE, requires_grad=True)
        y = fastq.pact(x, alpha, bits=4, axis=0)
        dx, dalpha = torch.autograd.grad(y, [x, alpha], torch.ones_like(x))
        assert y.isnan().tolist() == dx.isnan().tolist() == dalpha.isnan().tolist() == [True, False, False, False]
        assert y[1:3].tolist() == [1, 0] and dx[1:].tolist() == [0, 0, 1] and dalpha[1:3].tolist() == [1, 0]
        # an infinite gradient where nothing passes is 0, not NaN
        low = torch.tensor([-1.0, 0.5], device=DEVICE, requires_grad=True)
        alpha = torch.ones(2, device=DEVICE, requires_grad=True)
        g = torch.tensor([math.inf, 1.0], device=DEVICE)
        dx, dalpha = torch.autograd.grad(fastq.pact(low, alpha, bits=4, axis=0), [low, alpha], g)
        assert dx.tolist() == [0, 1] and dalpha[0] == 0 and bool(dalpha.isfinite().all())
        values = drawn((50,))
        for bad in (0.0, -0.0, 1e-12, -1e-12):
            tiny, same = (torch.tensor([v], device=DEVICE) for v in (bad, 1e-8))
            assert same_bits(fastq.pact(values, tiny, bits=4), fastq.pact(values, same, bits=4))
        for bad in (math.nan, math.inf, -math.inf):
            assert fastq.pact(values, torch.tensor([bad], device=DEVICE), bits=4).isnan().all()


X, A = drawn((4, 6)), torch.ones(1, device=DEVICE)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (TypeError, r"pact: x must be float32, bfloat16, .*, got torch\.int64", lambda: fastq.pact(X.long(), A, bits=4)),
        (TypeError, r"pact: alpha must be torch.float32 for x of torch.float32, got torch.float64",
         lambda: fastq.pact(X, A.double(), bits=4)),
        (TypeError, r"pact: alpha must be a torch.Tensor, got float", lambda: fastq.pact(X, 8.0, bits=4)),
        (ValueError, r"pact: alpha must have one element per tensor, got shape \(3,\)", lambda: fastq.pact(X, A.expand(3), bits=4)),
        (ValueError, r"pact: alpha must have shape \(6,\).*axis=1, got \(1,\)", lambda: fastq.pact(X, A, bits=4, axis=1)),
        (ValueError, r"pact: axis must be in \[-2, 1\]", lambda: fastq.pact(X, A, bits=4, axis=2)),
        (ValueError, r"pact: group_size=4 must divide", lambda: fastq.pact(X, A, bits=4, group_size=4)),
        (ValueError, r"pact: bits must be from 1 to 8, got 0", lambda: fastq.pact(X, A, bits=0)),
        (ValueError, r"pact: bits must be from 1 to 8, got 9", lambda: fastq.pact(X, A, bits=9)),
        (TypeError, r"pact: bits must be an int from 1 to 8, got \(0, 15\)", lambda: fastq.pact(X, A, bits=(0, 15))),
        (TypeError, r"pact: calibrated must be True or False, got 'yes'", lambda: fastq.pact(X, A, bits=4, calibrated="yes")),
        (TypeError, r"pact: two_sided must be True or False, got 1", lambda: fastq.pact(X, A, bits=4, two_sided=1)),
        (ValueError, r"pact: eps must be positive and finite in float32, .* got 0.0", lambda: fastq.pact(X, A, bits=4, eps=0.0)),
    ],
)  # fmt: skip
def test_bad_input_is_named(error: type[Exception], message: str, call: Any) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("alpha", [0.0, -1.0, math.nan, math.inf])
def test_checking_mode_refuses_what_is_no_clip(alpha: float) -> None:
    fastq.set_checks(True)
    try:
        for fn in (fastq.pact, fastq.reference.pact):
            with pytest.raises(ValueError, match="pact: alpha must be positive and finite everywhere, got"):
                fn(X, A * alpha, bits=4)
        with pytest.raises(ValueError, match="pact: x holds NaN"):
            fastq.pact(X * math.nan, A, bits=4)
    finally:
        fastq.set_checks(False)


if __name__ == "__main__":
    quick: dict[str, Any] = {"threads": (1,), "large": 5000, "layouts": ("transposed",), "dtypes": (torch.float32, torch.bfloat16)}
    check("triton", CASES[2:6], **quick)
