"""The ways to call LSQ that its tests go through, its surrogate, and its sums by hand."""

import math
from collections.abc import Callable
from typing import Any

import torch
from device import DEVICE

import fastq
from fastq.granularity import expand, normalize_axis
from fastq.ranges import integer_range
from fastq.reference.lsq import lsq_surrogate
from fastq.testing import Case

_PLAIN: dict[str, Any] = {"grad_scale": 1.0}
_GRANULARITIES = [
    ("per tensor", (7, 61), (1,), {}),
    ("per tensor, 0-d", (), (), {}),
    ("per channel, first axis", (5, 4, 90), (5,), {"axis": 0}),
    ("per channel, middle axis", (3, 6, 5, 7), (6,), {"axis": 1}),
    ("per channel, last axis", (140, 37), (37,), {"axis": -1}),
    ("per group", (4, 3, 64), (4, 3, 2), {"group_size": 32}),
    ("per group of 5", (9, 20), (9, 4), {"group_size": 5}),
]
_RANGES: list[dict[str, Any]] = [
    {"bits": 4},
    {"bits": 2, "boundary": "closed"},
    {"bits": 8, "signed": False, "boundary": "rounded", "grad_scale": "lsq-full"},
    {"bits": 3, "narrow": True, "boundary": "rounded", "grad_scale": 0.5},
    {"bits": 1, "signed": False},
    {"bits": (-3, 6), "boundary": "closed"},
]


def lsq_cases(offset: bool, ranges: list[dict[str, Any]] = _RANGES) -> list[Case]:
    """Every granularity; the ranges, boundaries and gradient scales take turns."""
    cases = []
    for i, (name, shape, parameter, keywords) in enumerate(_GRANULARITIES):
        for j in range(2):
            how = ranges[(2 * i + j) % len(ranges)]
            label = f"{name}, {how}"
            cases.append(Case(label, shape, (parameter,) * (2 if offset else 1), keywords | how, _PLAIN))
    return cases


def lsq(x: torch.Tensor, step: torch.Tensor, offset: torch.Tensor | None = None, **keywords: Any) -> torch.Tensor:
    """``fastq.lsq`` with its parameters in the order ``check_quantizer`` gives them."""
    return fastq.lsq(x, step, offset=offset, **keywords)


def reference(x: torch.Tensor, step: torch.Tensor, offset: torch.Tensor | None = None, **keywords: Any) -> torch.Tensor:
    return fastq.reference.lsq(x, step, offset=offset, **keywords)


def surrogate(x: torch.Tensor, step: torch.Tensor, offset: torch.Tensor | None = None, **keywords: Any) -> Any:
    """``s * (clip(v) + r) + offset`` with ``r`` as it is at the given point."""
    qmin, qmax = integer_range("lsq", keywords["bits"], keywords.get("signed", True), keywords.get("narrow", False))
    how = {key: keywords[key] for key in ("axis", "group_size") if key in keywords}
    axis, group = normalize_axis("surrogate", x, keywords.get("axis"), keywords.get("group_size"))
    frozen = lsq_surrogate(x, step, qmin=qmin, qmax=qmax, offset=offset, residual=x.new_zeros(()), **how)
    residual = (fastq.reference.lsq(x, step, offset=offset, **keywords) - frozen).detach() / expand(step, x, axis, group)
    return lambda x, step, offset=None: lsq_surrogate(x, step, qmin=qmin, qmax=qmax, offset=offset, residual=residual, **how)


def check_sums(fn: Callable[..., torch.Tensor]) -> None:
    """``y`` and all gradients against the formula by hand, the sums as near as fp32 can be.

    ``check_quantizer`` compares with the reference, which could have the same fault; here nothing but the formula is used. Steps
    are powers of two, so that every term is exact, and the gradients have the terms' sign, so that none cancel.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    shape, qmin, qmax = (24, 325), -8, 7  # no multiple of any vector or tile
    granularities: list[tuple[tuple[int, ...], dict[str, int]]] = [
        ((1,), {}), ((24,), {"axis": 0}), ((325,), {"axis": 1}), ((24, 5), {"group_size": 65}),
    ]  # fmt: skip
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for parameter, where in granularities:
            axis, group = where.get("axis", -1), where.get("group_size", 0)
            step = torch.tensor([0.25, 0.5]).repeat(-(-math.prod(parameter) // 2))[: math.prod(parameter)].view(parameter).cpu()
            offset = torch.full(parameter, 0.125, device="cpu")
            # multiples of 1/16 from -4 to 4: exact in every dtype, half of them clipped at a step of 1/4
            x = torch.randint(-64, 65, shape, generator=generator, device="cpu") / 16
            s = expand(step, x, axis, group).double()
            v = (x.double() - 0.125) / s
            inside = (v > qmin) & (v < qmax)
            terms = torch.where(inside, v.clamp(qmin, qmax).round() - v, torch.where(v <= qmin, qmin, qmax).double())
            g = (torch.rand(shape, generator=generator, device="cpu") + 0.5).to(dtype) * torch.where(terms < 0, -1, 1).to(dtype)
            n = x.numel() // step.numel()
            factors = {1.0: 1.0, "lsq": 1 / math.sqrt(n * qmax), "lsq-full": 1 / math.sqrt(x.numel() * qmax)}
            for scale, G in factors.items() if dtype == torch.float32 else [(1.0, 1.0)]:
                leaves = [t.to(DEVICE).requires_grad_() for t in (x.to(dtype), step, offset)]
                y = fn(*leaves, bits=4, grad_scale=scale, offset_grad_scale=0.5, **where)
                dx, *got = torch.autograd.grad(y, leaves, g.to(DEVICE))
                assert torch.equal(y.cpu(), (v.clamp(qmin, qmax).round() * s + 0.125).to(dtype)), f"y, {dtype}, {where}"
                assert torch.equal(dx.cpu(), torch.where(inside, g, 0.0)), f"dx, {dtype}, {where}"
                outside = torch.where(inside, 0.0, g.double())
                for name, each, mine in (("step", g * terms * G, got[0]), ("offset", outside * 0.5, got[1])):
                    want, magnitude = (_sum(t, parameter, axis, group) for t in (each.double(), each.double().abs()))
                    # at most 128 additions in a row and a tree over the rest, and a few roundings of the factor
                    bound = (128 + math.log2(n) + 4) * torch.finfo(torch.float32).eps * magnitude
                    off = (mine.cpu().double() - want).abs()
                    assert (off <= bound).all(), f"{name}, {dtype}, {where}, {scale}: off by {off.max()}"


def check_division(fn: Callable[..., torch.Tensor]) -> None:
    """Next to a tie a product with ``1 / step`` gives another code than the division: the codes against the formula by hand."""
    step = torch.rand(400, generator=torch.Generator("cpu").manual_seed(0), device="cpu") + 0.05
    ties = (torch.arange(-7, 7, device="cpu") + 0.5).repeat_interleave(7)
    ulp = torch.arange(-3, 4, device="cpu").repeat(14) * torch.finfo(torch.float32).eps
    x = step[:, None] * ties * (1 + ulp)
    code, other = (x / step[:, None]).round(), (x * (1 / step[:, None])).round()
    assert (code != other).any(), "the test tells nothing"
    y = fn(x.to(DEVICE), step.to(DEVICE), bits=4, axis=0).cpu()
    wrong = y != step[:, None] * code
    assert not wrong.any(), f"{int(wrong.sum())} of {x.numel()} codes are wrong"


def _sum(t: torch.Tensor, parameter: tuple[int, ...], axis: int, group: int) -> torch.Tensor:
    if group:
        return t.view(*parameter, group).sum(-1)
    return t.sum(1 - axis) if axis >= 0 else t.sum().view(1)
