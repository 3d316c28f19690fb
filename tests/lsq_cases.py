"""The ways to call LSQ that its tests go through, and its surrogate."""

from typing import Any

import torch

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
    frozen = lsq_surrogate(x, step, qmin=qmin, qmax=qmax, offset=offset, residual=torch.zeros(()), **how)
    residual = (fastq.reference.lsq(x, step, offset=offset, **keywords) - frozen).detach() / expand(step, x, axis, group)
    return lambda x, step, offset=None: lsq_surrogate(x, step, qmin=qmin, qmax=qmax, offset=offset, residual=residual, **how)
