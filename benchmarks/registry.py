"""What is measured: cases x providers x passes, for every method; and the goals the results are held to.

A new method adds one row to :data:`METHODS`. Everything else follows from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

import fastq
from fastq.dispatch import BACKENDS
from fastq.reference.lsq import lsq_surrogate

PASSES = ("forward", "backward", "both")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
QMIN, QMAX = -8, 7  # 4 bits, signed
GROUP = 128


@dataclass(frozen=True)
class Case:
    """One input. ``family`` is weight, activation, resnet50 or size; ``granularity`` tensor, channel or group."""

    family: str
    shape: tuple[int, ...]
    dtype: str
    granularity: str
    axis: int = 0

    @property
    def name(self) -> str:
        return f"{self.family}/{'x'.join(map(str, self.shape))}/{self.dtype}/{self.granularity}"

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.elements * DTYPES[self.dtype].itemsize

    @property
    def keywords(self) -> dict[str, Any]:
        """The granularity as the ops' keywords."""
        return {"tensor": {}, "channel": {"axis": self.axis}, "group": {"group_size": GROUP}}[self.granularity]

    @property
    def step_shape(self) -> tuple[int, ...]:
        if self.granularity == "tensor":
            return (1,)
        return (self.shape[self.axis],) if self.granularity == "channel" else (*self.shape[:-1], self.shape[-1] // GROUP)

    def tensors(self, device: str, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """``x``, the gradient of ``y``, and steps near 0.3: a few percent of a normal ``x`` are clipped at 4 bits."""
        generator = torch.Generator(device).manual_seed(seed)
        dtype = DTYPES[self.dtype]
        x, g = (torch.randn(self.shape, device=device, generator=generator).to(dtype) for _ in range(2))
        return x, g, torch.rand(self.step_shape, device=device, generator=generator) * 0.1 + 0.25


def matrix(elements: int) -> tuple[int, int]:
    """A power of two as rows and columns; the columns are a multiple of the group."""
    rows = 2 ** ((int(math.log2(elements)) - 6) // 2)
    return rows, elements // rows


RESNET50 = ((64, 3, 7, 7), (64, 64, 3, 3), (512, 512, 3, 3), (2048, 512, 1, 1), (1000, 2048))
SIZES = tuple(2**k for k in range(10, 27, 2))  # 1 K to 64 M


def cases() -> list[Case]:
    """Every case. At 64 M elements one granularity: memory and time are finite."""
    found = [Case("weight", (4096, 4096), d, g) for g in ("tensor", "channel", "group") for d in DTYPES]
    found += [Case("activation", (32, 64, 56, 56), d, g, axis=1) for g in ("tensor", "channel") for d in DTYPES]
    found += [Case("resnet50", shape, "fp32", "channel") for shape in RESNET50]
    found += [Case("size", matrix(n), "fp32", "tensor") for n in SIZES]
    found += [Case("size", matrix(n), "bf16", "tensor") for n in (2**10, 2**16, 2**20, 2**26)]
    found += [Case("size", matrix(n), "fp32", "channel") for n in (2**10, 2**14, 2**16, 2**20)]
    found += [Case("size", matrix(n), "fp32", "group") for n in (2**16, 2**20)]
    return found


def quick_cases() -> list[Case]:
    """Two tiny ones, for the tests and the dry run; each costs a compilation."""
    return [Case("size", matrix(2**10), "fp32", "tensor"), Case("size", matrix(2**10), "bf16", "channel")]


Call = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Method:
    """One row per method.

    Args:
        name: of the method, and of its module in ``fastq.ops`` and ``fastq.reference``.
        fast: ``fast(case)`` gives ``fn(x, *parameters)``, on whatever backend is in use.
        reference: the same in plain PyTorch, ``reference(case, boundary)``: what every provider is checked against.
        baseline: the formula as it is coded by hand, left to autograd; eager and compiled.
        core: ``core(case)`` with torch core's own op, or None; its convention is the "rounded" boundary.
        parameters: ``parameters(step)`` gives every learned parameter, from steps that suit the case's ``x``.
    """

    name: str
    fast: Callable[[Case], Call]
    reference: Callable[[Case, str], Call]
    baseline: Callable[[Case], Call]
    core: Callable[[Case], Call] | None = None
    parameters: Callable[[torch.Tensor], tuple[torch.Tensor, ...]] = lambda step: (step,)


def _lsq(case: Case) -> Call:
    keywords = {"bits": (QMIN, QMAX), "boundary": "closed", "grad_scale": 1.0, **case.keywords}
    return lambda x, step: fastq.lsq(x, step, **keywords)


def _lsq_reference(case: Case, boundary: str) -> Call:
    keywords = {"bits": (QMIN, QMAX), "boundary": boundary, "grad_scale": 1.0, **case.keywords}
    return lambda x, step: fastq.reference.lsq(x, step, **keywords)


def _lsq_baseline(case: Case) -> Call:
    keywords = {"qmin": QMIN, "qmax": QMAX, **case.keywords}
    return lambda x, step: lsq_surrogate(x, step, **keywords)


def _lsq_core(case: Case) -> Call:
    if case.granularity == "tensor":
        return lambda x, step: torch._fake_quantize_learnable_per_tensor_affine(x, step, torch.zeros_like(step), QMIN, QMAX, 1.0)
    if case.granularity == "channel":
        axis = case.axis
        return lambda x, step: torch._fake_quantize_learnable_per_channel_affine(
            x, step, torch.zeros_like(step), axis, QMIN, QMAX, 1.0
        )

    def grouped(x: torch.Tensor, step: torch.Tensor) -> torch.Tensor:  # a group is a row of a view: no copy
        flat = step.reshape(-1)
        rows = x.reshape(-1, GROUP)
        return torch._fake_quantize_learnable_per_channel_affine(rows, flat, torch.zeros_like(flat), 0, QMIN, QMAX, 1.0).view_as(x)

    return grouped


METHODS = (
    Method("lsq", _lsq, _lsq_reference, _lsq_baseline, _lsq_core),
)  # fmt: skip


@dataclass(frozen=True)
class Provider:
    """One way to compute a method. ``backend`` is set for fastq's own; ``exact`` says that ``y`` and ``dx`` must have the
    reference's bits; ``boundary`` is its convention of where the gradient passes."""

    name: str
    title: str
    backend: str | None = None
    boundary: str = "closed"

    @property
    def exact(self) -> bool:
        return self.backend is not None

    def available(self, device: str) -> tuple[bool, str]:
        """Can it serve tensors on ``device`` here, and why not."""
        return (True, "") if self.backend is None else fastq.supports(self.backend, device)

    def build(self, method: Method, case: Case) -> Call | None:
        """A new callable (compiled ones compile on their first call), or None where the method has none."""
        if self.name == "eager":
            return method.baseline(case)
        if self.name == "compiled":
            return torch.compile(method.baseline(case), dynamic=False, fullgraph=True)
        if self.name == "core":
            return method.core(case) if method.core else None
        return method.fast(case)


PROVIDERS = (
    Provider("eager", "plain PyTorch, eager"),
    Provider("compiled", "plain PyTorch, torch.compile"),
    Provider("core", "torch core's learnable op", boundary="rounded"),
    *(Provider(f"fastq-{name}", f"fastq, backend {name}", backend=name) for name in BACKENDS),
)


@dataclass(frozen=True)
class Goal:
    """``baseline / fastq >= at_least`` on every case that ``applies``, for forward and backward together."""

    name: str
    baseline: str
    at_least: float
    applies: Callable[[Case], bool]


def _weight(case: Case) -> bool:
    return case.family == "weight"


def _small(case: Case) -> bool:
    return case.family == "size" and 2**10 <= case.elements <= 2**16


def _large(case: Case) -> bool:
    return case.elements >= 2**26


CPU_GOALS = (
    Goal("4096x4096: not slower than torch.compile", "compiled", 1.0, _weight),
    Goal("4096x4096: 5x faster than torch core", "core", 5.0, _weight),
    Goal("4096x4096: 7x faster than eager", "eager", 7.0, _weight),
    Goal("1 K to 64 K: 2x faster than eager", "eager", 2.0, _small),
    Goal("1 K to 64 K: 2x faster than torch.compile", "compiled", 2.0, _small),
)
GPU_GOALS = (Goal("64 M: not slower than torch.compile", "compiled", 1.0, _large),)
#: The share of the measured copy bandwidth that forward and backward reach each, from 64 M elements on.
BANDWIDTH_GOAL = 0.85


def traffic(case: Case, which: str) -> int:
    """The bytes a pass has to move: forward reads 1 and writes 1, backward reads 2 and writes 1."""
    return case.nbytes * {"forward": 2, "backward": 3, "both": 5}[which]


def select(pattern: str = "", sizes: Sequence[int] = (), quick: bool = False) -> list[Case]:
    """The cases whose name contains ``pattern`` and, if ``sizes`` are given, with as many elements as one of them."""
    chosen = quick_cases() if quick else cases()
    return [case for case in chosen if pattern in case.name and (not sizes or case.elements in sizes)]
