"""The ways to call the quantizers that add noise which their tests go through, and the surrogate of ``fastq.tempered``."""

from typing import Any

import torch
from device import DEVICE

import fastq
from fastq.ranges import BOUNDARIES, integer_range
from fastq.reference.philox import NOISES
from fastq.reference.tempered import READINGS, scaled_noise, tempered_surrogate
from fastq.testing import Case

SEED = -6_148_914_691_236_517_206  # both halves of the key have a meaning

_GRANULARITIES: list[tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ("per tensor", (7, 61), (1,), {}),
    ("per tensor, 0-d", (), (), {}),
    ("per channel, first axis", (5, 4, 33), (5,), {"axis": 0}),  # runs that begin anywhere within a block of four words
    ("per channel, middle axis", (3, 6, 5, 7), (6,), {"axis": 1}),
    ("per channel, last axis", (140, 37), (37,), {"axis": -1}),
    ("per group", (4, 3, 64), (4, 3, 2), {"group_size": 32}),
    ("per group of 5", (9, 20), (9, 4), {"group_size": 5}),
]
_TEMPERED: list[dict[str, Any]] = [
    {"bits": 4, "decay": 1.0},
    {"bits": 2, "decay": 0.3, "reading": "gradient", "noise": "normal"},
    {"bits": 3, "decay": 0.7, "noise": "rademacher", "boundary": "closed", "a_grad_scale": 0.5},
    {"bits": 4, "decay": 0.5, "training": False},
    {"bits": 8, "signed": False, "decay": 0.6, "noise": "normal", "boundary": "rounded", "grad_scale": "lsq-full"},
    {"bits": (-3, 6), "decay": 0.9, "reading": "gradient", "noise": "rademacher"},
    {"bits": 4, "narrow": True, "decay": 0.8, "reading": "gradient", "boundary": "rounded"},
]
_NOISE_QUANT: list[dict[str, Any]] = [
    {"kind": "diffq"},
    {"kind": "nipq", "bits": 3},
    {"kind": "uniform", "grad_scale": 0.5},
    {"kind": "nipq", "bits": 4, "noise": "normal", "grad_scale": "lsq"},
    {"kind": "diffq", "noise": "rademacher", "bits": 4, "grad_scale": "lsq-full"},
    {"kind": "nipq", "bits": 2, "signed": False, "noise": "rademacher"},
]


def tempered_cases() -> list[Case]:
    """Every granularity; readings, noises, ranges and boundaries take turns."""
    return _cases(_TEMPERED, 2, {"grad_scale": 1.0, "a_grad_scale": 1.0})


def noise_quant_cases() -> list[Case]:
    return _cases(_NOISE_QUANT, 1, {"grad_scale": 1.0})


def _cases(ways: list[dict[str, Any]], parameters: int, unscaled: dict[str, Any]) -> list[Case]:
    cases = []
    for i, (name, shape, parameter, keywords) in enumerate(_GRANULARITIES):
        for how in (ways[i % len(ways)], ways[(i + 3) % len(ways)]):
            cases.append(Case(f"{name}, {how}", shape, (parameter,) * parameters, keywords | how, unscaled))
    return cases


def seed(x: torch.Tensor, value: int = SEED) -> torch.Tensor:
    return torch.tensor(value, device=x.device)


def tempered(x: torch.Tensor, step: torch.Tensor, a: torch.Tensor, **keywords: Any) -> torch.Tensor:
    """``fastq.tempered`` with the tests' seed."""
    return fastq.tempered(x, step, a, seed=seed(x), **keywords)


def tempered_reference(x: torch.Tensor, step: torch.Tensor, a: torch.Tensor, **keywords: Any) -> torch.Tensor:
    return fastq.reference.tempered(x, step, a, seed=seed(x), **keywords)


def noise_quant(x: torch.Tensor, step: torch.Tensor, **keywords: Any) -> torch.Tensor:
    return fastq.noise_quant(x, step, seed=seed(x), **keywords)


def noise_quant_reference(x: torch.Tensor, step: torch.Tensor, **keywords: Any) -> torch.Tensor:
    return fastq.reference.noise_quant(x, step, seed=seed(x), **keywords)


def surrogate(x: torch.Tensor, step: torch.Tensor, a: torch.Tensor, **keywords: Any) -> Any:
    """The surrogate with its residual, its codes and its noise as they are at the given point."""
    qmin, qmax = integer_range("tempered", keywords["bits"], keywords.get("signed", True), keywords.get("narrow", False))
    training = keywords.get("training", True)
    k = scaled_noise(x, seed(x), NOISES[keywords.get("noise", "uniform")], keywords["decay"]) if training else 0.0
    how: dict[str, Any] = {key: keywords[key] for key in ("axis", "group_size") if key in keywords}
    how |= {"boundary": BOUNDARIES[keywords.get("boundary", "open")], "reading": READINGS[keywords.get("reading", "noise")]}
    return lambda x_, step_, a_: tempered_surrogate(x_, step_, a_, qmin=qmin, qmax=qmax, k=k, at=(x, step), **how)


def drawn_noise(shape: tuple[int, ...], kind: str, value: int = SEED) -> torch.Tensor:
    """The noise of unit variance that ``fastq.tempered`` uses, seen from outside: ``x`` one quarter of a step off the grid.

    There ``y - s * q = s * decay * xi * e`` with ``e = -1/4`` and powers of two for the rest; but for the sum's rounding it is
    ``xi``.
    """
    x, step = torch.full(shape, 0.25, dtype=torch.float64, device=DEVICE), torch.ones(1, dtype=torch.float64, device=DEVICE)
    y = fastq.tempered(x, step, torch.ones_like(step), bits=4, decay=1.0, noise=kind, seed=seed(x, value))
    return y * -4
