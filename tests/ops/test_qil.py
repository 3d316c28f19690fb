"""QIL: held against its reference on each backend, by finite differences, and by hand.

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
from fastq.autograd import QIL
from fastq.granularity import expand, normalize_axis
from fastq.reference.qil import qil_surrogate
from fastq.testing import Case, check_quantizer, same_bits

GRAINS: list[tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ("per tensor", (7, 61), (1,), {}),
    ("per channel, middle axis", (3, 6, 5, 7), (6,), {"axis": 1}),
    ("per channel, last axis", (70, 37), (37,), {"axis": -1}),
    ("per group", (4, 3, 64), (4, 3, 2), {"group_size": 32}),
]
KINDS: list[dict[str, Any]] = [
    {"bits": 3, "weight": True},
    {"bits": 2, "weight": False},
    {"bits": 2, "weight": True},
    {"bits": 8, "weight": False},
]
#: center, width, gamma: centers above the widths, which no guard changes.
VALUES = (1.0, 0.6, 1.5)
CASES = [
    Case(f"{name}, {kind}", shape, (parameter, parameter), grain | kind, values=VALUES[:2])
    for i, (name, shape, parameter, grain) in enumerate(GRAINS)
    for kind in (KINDS[i % 4], KINDS[(i + 1) % 4])
]
WITH_GAMMA = [
    Case(f"{name}, gamma, {bits} bits", shape, (parameter,) * 3, grain | {"bits": bits, "weight": True}, values=VALUES)
    for (name, shape, parameter, grain), bits in zip(GRAINS, (3, 2, 8, 4), strict=True)
]


def hat(x: torch.Tensor, center: torch.Tensor, width: torch.Tensor, gamma: Any = None, **keywords: Any) -> torch.Tensor:
    """The transformed ``x``, before it is rounded."""
    where = normalize_axis("test", x, keywords.get("axis"), keywords.get("group_size"))
    c, d = expand(center.double(), x, *where), expand(width.double(), x, *where)
    x = x.double()
    u = (((x.abs() if keywords["weight"] else x) - (c - d)) / (2 * d)).clamp(0, 1)
    u = u if gamma is None else u ** expand(gamma.double(), x, *where)
    return u * x.sign() if keywords["weight"] else u


def levels(**keywords: Any) -> int:
    return 2 ** (keywords["bits"] - 1) - 1 if keywords["weight"] else 2 ** keywords["bits"] - 1


def surrogate(x: torch.Tensor, *parameters: torch.Tensor, **keywords: Any) -> Any:
    """``hat + r`` with ``r`` as it is at the given point."""
    h, count = hat(x, *parameters, **keywords), levels(**keywords)
    r = (h * count).round() / count - h
    return lambda x, *parameters: qil_surrogate(x, *parameters, residual=r, **keywords)


def scaled(x: torch.Tensor, *parameters: torch.Tensor, **keywords: Any) -> torch.Tensor:
    """Where the level is rounded: a tie is a half."""
    return hat(x, *parameters, **keywords) * levels(**keywords)


def check(
    backend: str, plain: list[Case], with_gamma: list[Case], device: str = "cpu", operators: Any = (), **keywords: Any
) -> int:
    how: dict[str, Any] = {"surrogate": surrogate, "term_bound": 4.0, "exact_sums": False, "device": device, **keywords}
    with fastq.use_backend(backend):
        report = check_quantizer(fastq.qil, fastq.reference.qil, plain, operators=operators, **how)
        other = check_quantizer(fastq.qil, fastq.reference.qil, with_gamma, ulps=8, position=scaled, **how)
    return len(report.results) + len(other.results)


def operators() -> list[tuple[Any, tuple[Any, ...]]]:
    x, g, width = drawn((4, 6)), drawn((4, 6), 1), drawn((6,), 2).abs() + 0.2
    forward, backward = torch.ops.fastq.qil_forward.default, torch.ops.fastq.qil_backward.default
    found: list[tuple[Any, tuple[Any, ...]]] = []
    for gamma in (None, width):
        how = (width + 0.1, width, gamma, 7, True, 1, 0, 1e-8)
        found += [(forward, (x, *how)), (backward, (g, x, *how))]
    return found


def test_it_equals_the_reference() -> None:
    few = {"dtypes": (torch.float32, torch.bfloat16, torch.float64), "large": 60_000}
    assert check(BACKEND, CASES, WITH_GAMMA, DEVICE, operators=operators(), **few) > 300
    x, width = drawn((4, 6)), drawn((6,), 1).abs() + 0.2
    assert same_bits(QIL.apply(x, width, width, None, 7, True, 1), fastq.qil(x, width, width, bits=4, weight=True, axis=1))


def test_triton_equals_the_reference_in_its_interpreter() -> None:
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONWARNINGS": "ignore", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, str(Path(__file__))], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]


BACKENDS = pytest.mark.parametrize("backend", [BACKEND, "reference"])


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, device=DEVICE)


@BACKENDS
def test_weights_by_hand(backend: str) -> None:
    """An interval from 1 to 3 and gamma = 2, so that u = (|w| - 1) / 2 and hat = sign * u^2; 3 bits have L = 3."""
    w = tensor(0.0, -0.0, 0.5, -1.0, 2.0, -2.0, 2.5, 3.0, -9.0).requires_grad_()
    u = [0.5, 0.5, 0.75]
    with fastq.use_backend(backend):
        p = [tensor(v).expand(9).clone().requires_grad_() for v in (2.0, 1.0, 2.0)]
        y = fastq.qil(w, *p, bits=3, weight=True, axis=0)
        torch.testing.assert_close(y, tensor(0, 0, 0, 0, 1 / 3, -1 / 3, 2 / 3, 1, -1))  # 0.25 * 3 and 0.5625 * 3, rounded
        assert not y[:4].signbit().any()
        dw, dc, dd, dgamma = torch.autograd.grad(y, [w, *p], torch.full_like(w, 2.0))
    outside = [0, 1, 2, 3, 7, 8]
    sign = [1, -1, 1]
    for got, want in (
        (dw, [2 * (2 * a) / 2 for a in u]),
        (dc, [-s * 2 * (2 * a) / 2 for a, s in zip(u, sign, strict=True)]),
        (dd, [-s * 2 * (2 * a) * (2 * a - 1) / 2 for a, s in zip(u, sign, strict=True)]),
        (dgamma, [2 * s * a**2 * math.log(a) for a, s in zip(u, sign, strict=True)]),
    ):
        # pow and log are right to a few ulp
        torch.testing.assert_close(got[4:7], tensor(*want), rtol=2e-6, atol=1e-7)
        assert not got[outside].any()


@BACKENDS
def test_activations_by_hand(backend: str) -> None:
    """No sign: what is below the interval is pruned, negative numbers too; an interval may begin below 0."""
    x = tensor(-3.0, -1.0, -0.25, 0.5, 2.0, 3.0, 5.0).requires_grad_()
    with fastq.use_backend(backend):
        y = fastq.qil(x, tensor(1.0), tensor(2.0), bits=2, weight=False)  # from -1 to 3
        torch.testing.assert_close(y, tensor(0, 0, 1 / 3, 1 / 3, 2 / 3, 1, 1))  # u = 0.1875, 0.375, 0.75
        assert torch.autograd.grad(y.sum(), x)[0].tolist() == [0, 0, 0.25, 0.25, 0.25, 0, 0]


@BACKENDS
def test_two_bits_are_ternary_weights(backend: str) -> None:
    with fastq.use_backend(backend):
        y = fastq.qil(drawn((500,)), tensor(0.7), tensor(0.6), tensor(1.3), bits=2, weight=True)
    assert y.unique().tolist() == [-1, 0, 1]


@BACKENDS
def test_guards_change_values_and_let_gradients_pass(backend: str) -> None:
    w, g = drawn((300,)), drawn((300,), 1)

    def run(*values: float) -> list[torch.Tensor]:
        leaves = [w.clone().requires_grad_(), *(tensor(v).requires_grad_() for v in values)]
        y = fastq.qil(*leaves, bits=4, weight=True)
        return [y.detach(), *torch.autograd.grad(y, leaves, g)]

    with fastq.use_backend(backend):
        want = run(0.5, 0.5, 1.5)
        for other in ((0.2, 0.5, 1.5), (-3.0, 0.5, 1.5)):  # the interval begins at 0 at the lowest
            assert all(same_bits(a, b) for a, b in zip(run(*other), want, strict=True))
        y, dw, dc, dd, dgamma = run(0.5, -0.5, -1.5)
        assert same_bits(y, want[0]) and same_bits(dw, want[1]) and same_bits(dc, want[2])
        assert same_bits(dd, -want[3]) and same_bits(dgamma, -want[4])
        for tiny in (0.0, -0.0, 1e-12, -1e-12):
            assert same_bits(run(0.5, tiny, 1.5)[0], run(0.5, 1e-8, 1.5)[0])
            assert same_bits(run(0.5, 0.5, tiny)[0], run(0.5, 0.5, 1e-8)[0])
            assert all(bool(t.isfinite().all()) for t in run(0.5, 0.5, tiny))


@BACKENDS
def test_not_finite(backend: str) -> None:
    with fastq.use_backend(backend):
        for gamma in (None, tensor(1.5).expand(4).clone().requires_grad_()):
            w = tensor(math.nan, math.inf, -math.inf, 0.3).requires_grad_()
            p = [tensor(v).expand(4).clone().requires_grad_() for v in (0.5, 0.4)]
            leaves = [w, *p, *([] if gamma is None else [gamma])]
            y = fastq.qil(w, *p, gamma, bits=3, weight=True, axis=0)
            gradients = torch.autograd.grad(y, leaves, tensor(1.0, math.inf, math.inf, 1.0))
            assert y[1:3].tolist() == [1, -1]
            for t in (y, *gradients):  # an infinite gradient where nothing passes is 0, not NaN
                assert t.isnan().tolist() == [True, False, False, False]
            assert all(t[1:3].tolist() == [0, 0] for t in gradients)
        values = tensor(-2.0, 0.0, 0.4, 2.0)
        for bad in (math.nan, math.inf, -math.inf):
            for i in range(3):
                q = [tensor(v) for v in (0.5, 0.4, 1.5)]
                q[i] = tensor(bad)
                assert fastq.qil(values, *q, bits=3, weight=True).isnan().all(), (bad, i)
                if i < 2:
                    assert fastq.qil(values, *q[:2], bits=3, weight=False).isnan().all(), (bad, i)


@BACKENDS
def test_u_log_u_goes_to_zero(backend: str) -> None:
    """Next to the pruned part, down to the smallest numbers: finite everywhere, and 0 at the edge."""
    u = torch.cat([torch.logspace(-37, -1, 300, device=DEVICE), tensor(0.0, 1e-45, 1e-40)])
    leaves = [u.requires_grad_(), *(tensor(v).requires_grad_() for v in (0.5, 0.5, 1.0))]
    with fastq.use_backend(backend):
        for gamma in (1.0, 2.0, 30.0):
            leaves[3].data.fill_(gamma)
            y = fastq.qil(*leaves, bits=4, weight=True)
            assert all(bool(t.isfinite().all()) for t in (y, *torch.autograd.grad(y.sum(), leaves)))


X, C, D = drawn((4, 6)), torch.ones(1, device=DEVICE), torch.ones(1, device=DEVICE) / 2
HOW: dict[str, Any] = {"bits": 4, "weight": True}


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (TypeError, r"qil: x must be float32, .*, got torch\.int64", lambda: fastq.qil(X.long(), C, D, **HOW)),
        (TypeError, r"qil: center must be torch.float32 .*, got torch.float64", lambda: fastq.qil(X, C.double(), D, **HOW)),
        (TypeError, r"qil: width must be a torch.Tensor, got float", lambda: fastq.qil(X, C, 1.0, **HOW)),
        (TypeError, r"qil: width must be a torch.Tensor, got NoneType", lambda: fastq.qil(X, C, None, **HOW)),
        (TypeError, r"qil: gamma must be a torch.Tensor, got float", lambda: fastq.qil(X, C, D, 1.0, **HOW)),
        (ValueError, r"qil: center must have one element per tensor, got .*\(3,\)", lambda: fastq.qil(X, C.expand(3), D, **HOW)),
        (ValueError, r"qil: gamma must have shape \(6,\)", lambda: fastq.qil(X, C.expand(6), D.expand(6), C, **HOW, axis=1)),
        (ValueError, r"qil: width must have the shape of center, \(1,\), got \(\)", lambda: fastq.qil(X, C, D.view(()), **HOW)),
        (ValueError, r"qil: gamma must have the shape of center, \(1,\), got \(\)", lambda: fastq.qil(X, C, D, C.view(()), **HOW)),
        (ValueError, r"qil: gamma is for weights \(weight=True\)", lambda: fastq.qil(X, C, D, C, bits=4, weight=False)),
        (ValueError, r"qil: group_size=4 must divide", lambda: fastq.qil(X, C, D, **HOW, group_size=4)),
        (ValueError, r"qil: bits must be from 2 to 8, got 1; 1 bit has no level beside 0",
         lambda: fastq.qil(X, C, D, bits=1, weight=True)),
        (ValueError, r"qil: bits must be from 1 to 8, got 9", lambda: fastq.qil(X, C, D, bits=9, weight=False)),
        (TypeError, r"qil: weight must be True or False, got None", lambda: fastq.qil(X, C, D, bits=4, weight=None)),
        (ValueError, r"qil: eps must be positive and finite in float32, .* got 0", lambda: fastq.qil(X, C, D, **HOW, eps=0)),
    ],
)  # fmt: skip
def test_bad_input_is_named(error: type[Exception], message: str, call: Any) -> None:
    with pytest.raises(error, match=message):
        call()


def test_checking_mode_refuses_what_the_guards_change() -> None:
    fastq.set_checks(True)
    try:
        for fn in (fastq.qil, fastq.reference.qil):
            for bad in (0.0, -1.0, math.nan, math.inf):
                with pytest.raises(ValueError, match="qil: width must be positive and finite everywhere, got"):
                    fn(X, C, D * bad, **HOW)
                with pytest.raises(ValueError, match="qil: gamma must be positive and finite everywhere, got"):
                    fn(X, C, D, C * bad, **HOW)
            with pytest.raises(ValueError, match=r"qil: center - width must be at least 0 everywhere for weights, got \[-0.5\]"):
                fn(X, D, C, **HOW)
            fn(X, D, C, bits=4, weight=False)  # an activation's interval may begin below 0
            with pytest.raises(ValueError, match="qil: center holds NaN"):
                fn(X, C * math.nan, D, **HOW)
            with pytest.raises(ValueError, match="qil: x holds NaN"):
                fn(X * math.nan, C, D, **HOW)
    finally:
        fastq.set_checks(False)


if __name__ == "__main__":
    quick: dict[str, Any] = {"threads": (1,), "large": 5000, "layouts": ("transposed",), "dtypes": (torch.float32, torch.bfloat16)}
    check("triton", CASES[3:5], WITH_GAMMA[2:3], **quick)
