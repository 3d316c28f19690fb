"""What is measured: cases x providers x passes, for every method; and the goals the results are held to.

A new method adds one row to :data:`METHODS`. Everything else follows from it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

import fastq
from fastq.dispatch import BACKENDS
from fastq.granularity import expand, normalize_axis
from fastq.reference.dampening import dampening_by_hand
from fastq.reference.frozen_lsq import frozen_lsq_surrogate
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


def few_cases(device: str = "cpu") -> list[Case]:
    """What a method is measured on whose loops are LSQ's: small, large, both dtypes, two granularities; what fills a GPU there."""
    return [
        Case("size", matrix(2**10), "fp32", "tensor"),
        Case("size", matrix(2**15), "fp32", "channel"),
        Case("size", matrix(2**22), "fp32", "tensor"),
        Case("size", matrix(2**22), "bf16", "channel"),
        *([Case("size", matrix(2**26), "fp32", "tensor")] if device == "cuda" else []),
    ]


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
        inputs: in place of ``x`` and ``parameters``: ``inputs(case, device)`` gives ``(inputs, g)``, where ``g`` is the gradient of
            the output or a tuple of those of the outputs, or None for an op without a backward pass. The inputs are detached.
        granularities: those that the method has; cases of others are left out.
        all_cases: measured on every case, and not on a few.
        own_cases: in place of these, the last of them for a quick look.
        core_note: what ``core`` is, where it is not torch core's op.
        timed: the baseline to time, where the one that is checked is spared something (noise that it is given).
        exact: fastq's backends have the reference's bits; False where the formula has a power, exp, log or tanh.
        reconstruction: what of the method is one, its equations not being published in the sources we had; empty: nothing.
    """

    name: str
    fast: Callable[[Case], Call]
    reference: Callable[[Case, str], Call]
    baseline: Callable[[Case], Call]
    core: Callable[[Case], Call] | None = None
    parameters: Callable[[torch.Tensor], tuple[torch.Tensor, ...]] = lambda step: (step,)
    inputs: Callable[[Case, str], tuple[tuple[torch.Tensor, ...], Any]] | None = None
    granularities: tuple[str, ...] = ("tensor", "channel", "group")
    all_cases: bool = False
    own_cases: tuple[Case, ...] = ()
    core_note: str = ""
    timed: Callable[[Case], Call] | None = None
    exact: bool = True
    reconstruction: str = ""

    def tensors(self, case: Case, device: str) -> tuple[tuple[torch.Tensor, ...], Any]:
        """The inputs, which require gradients, and the gradient of the output; or the inputs and None."""
        if self.inputs is None:
            x, g, steps = case.tensors(device)
            inputs: tuple[torch.Tensor, ...] = (x, *self.parameters(steps))
        else:
            inputs, g = self.inputs(case, device)
        return tuple(t.requires_grad_(g is not None and t.is_floating_point()) for t in inputs), g

    def cases(self, device: str) -> list[Case]:
        """What it is measured on."""
        found = self.own_cases or (cases() if self.all_cases else few_cases(device))
        return [case for case in found if case.granularity in self.granularities]

    def quick_cases(self) -> list[Case]:
        """What a test measures."""
        return [case for case in self.own_cases[-1:] or quick_cases() if case.granularity in self.granularities]


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


def resnet50_weights(width: int) -> list[tuple[int, ...]]:
    """The shapes of ResNet-50's 53 convolutions, at ``width`` channels after the first (the network has 64)."""
    shapes, before = [(width, 3, 7, 7)], width
    for stage, blocks in enumerate((3, 4, 6, 3)):
        inner = width * 2**stage
        for block in range(blocks):
            shapes += [(inner, before, 1, 1), (inner, inner, 3, 3), (4 * inner, inner, 1, 1)]
            if block == 0:
                shapes.append((4 * inner, before, 1, 1))
            before = 4 * inner
    return shapes


def _all_weights(width: int) -> Case:
    return Case("all-weights", (sum(math.prod(shape) for shape in resnet50_weights(width)),), "fp32", "channel")


FULL, SMALL = _all_weights(64), _all_weights(8)


def _foreach_inputs(case: Case, device: str) -> tuple[tuple[torch.Tensor, ...], Any]:
    shapes = resnet50_weights(64 if case == FULL else 8)
    generator = torch.Generator(device).manual_seed(0)
    draw = functools.partial(torch.randn, device=device, generator=generator)
    steps = [torch.rand(shape[0], device=device, generator=generator) * 0.1 + 0.25 for shape in shapes]
    return (*(draw(shape) for shape in shapes), *steps), tuple(draw(shape) for shape in shapes)


def _halves(fn: Callable[[Any, Any], Any]) -> Call:
    return lambda *tensors: fn(tensors[: len(tensors) // 2], tensors[len(tensors) // 2 :])


_PLAIN: dict[str, Any] = {"bits": (QMIN, QMAX), "grad_scale": 1.0}
_EACH: dict[str, Any] = {"bits": (QMIN, QMAX), "axis": 0, "grad_scale": 1.0}


def _one_by_one(quantize: Call, **keywords: Any) -> Call:
    return _halves(lambda ws, ss: tuple(quantize(w, s, **keywords) for w, s in zip(ws, ss, strict=True)))


def _float(step: torch.Tensor) -> torch.Tensor:
    """A step that came as integers, as what requires no gradient has to."""
    return step.view(torch.float32)


def _dampening_inputs(case: Case, device: str) -> tuple[tuple[torch.Tensor, ...], Any]:
    x, _, step = case.tensors(device)
    return (x, step.view(torch.int32)), torch.tensor(0.5, device=device)


def _state(case: Case, x: torch.Tensor, step: torch.Tensor) -> fastq.OscillationState:
    """Of a weight that has not moved yet, but for every eighth, which is frozen."""
    state = fastq.oscillation_step_(x, step, bits=(QMIN, QMAX), **case.keywords)
    frozen = torch.arange(x.numel(), device=x.device).view(x.shape) % 8 == 0
    return fastq.OscillationState(torch.where(frozen, state.freeze | -(2**31), state.freeze), state.track, QMIN, QMAX)


def _frozen_inputs(case: Case, device: str) -> tuple[tuple[torch.Tensor, ...], Any]:
    x, g, step = case.tensors(device)
    return (x, step, _state(case, x, step).freeze), g


def _frozen(fn: Call, **keywords: Any) -> Call:
    return lambda x, step, freeze: fn(x, step, fastq.OscillationState(freeze, freeze, QMIN, QMAX), **keywords)


def _oscillation_inputs(case: Case, device: str) -> tuple[tuple[torch.Tensor, ...], Any]:
    """Weights on the grid that a step leaves as they are, so that every round measures the same; the state packed and unpacked."""
    x, _, step = case.tensors(device)
    x = fastq.reference.lsq(x, step, bits=(QMIN, QMAX), **case.keywords)
    state = _state(case, x, step)
    code = state.codes.float()
    unpacked = (code.clone(), torch.zeros_like(code), torch.zeros_like(code), code.clone(), state.frozen, code.clone())
    return (x, step, state.freeze, state.track, *unpacked), None


def _oscillation(fn: Call, case: Case) -> Call:
    def run(
        x: torch.Tensor, step: torch.Tensor, freeze: torch.Tensor, track: torch.Tensor, *unpacked: torch.Tensor
    ) -> torch.Tensor:
        state = fastq.OscillationState(freeze, track, QMIN, QMAX)
        fn(x, step, state, bits=(QMIN, QMAX), momentum=0.01, threshold=0.02, **case.keywords)
        return x

    return run


def _oscillation_by_hand(case: Case) -> Call:
    """The state machine as it is coded by hand, a float tensor for each variable, updated in place."""
    axis, group = case.keywords.get("axis", -1), case.keywords.get("group_size", 0)

    def run(
        x: torch.Tensor, step: torch.Tensor, freeze: torch.Tensor, track: torch.Tensor, prev: torch.Tensor, direction: torch.Tensor,
        f: torch.Tensor, ema: torch.Tensor, frozen: torch.Tensor, frozen_int: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        s = expand(step, x, axis, group)
        k = torch.where(frozen, frozen_int, (x / s).clamp(QMIN, QMAX).round())
        d = torch.sign(k - prev)
        f.copy_(0.01 * (direction * d == -1) + 0.99 * f)
        direction.copy_(torch.where(d != 0, d, direction))
        prev.copy_(k)
        newly = (f > 0.02) & ~frozen
        frozen_int.copy_(torch.where(newly, ema.round(), frozen_int))
        frozen.copy_(frozen | newly)
        ema.copy_(0.01 * k + 0.99 * ema)
        return x.copy_(torch.where(frozen, s * frozen_int, x))

    return run


def _pact(fn: Call, case: Case) -> Call:
    return functools.partial(fn, bits=4, **case.keywords)


# delta = 0: what a gradient is scaled by is the same work for every delta, and the baseline is spared it.
def _ewgs(fn: Call, case: Case, boundary: str = "closed") -> Call:
    boundary = "open" if boundary == "open" else "closed"
    return functools.partial(fn, bits=4, delta=0.0, boundary=boundary, **case.keywords)


def _qil(fn: Call, case: Case) -> Call:
    return functools.partial(fn, bits=4, weight=True, **case.keywords)


def _direct_inputs(case: Case, device: str) -> tuple[tuple[torch.Tensor, ...], Any]:
    """Codes of 16 levels, and the gradient of the weights."""
    _, g, _ = case.tensors(device)
    codes = torch.randint(16, case.shape, dtype=torch.uint8, device=device, generator=torch.Generator(device).manual_seed(1))
    return (codes, torch.linspace(-2, 2, 16, device=device)), g


def _update_inputs(case: Case, device: str) -> tuple[tuple[torch.Tensor, ...], Any]:
    (codes, levels), g = _direct_inputs(case, device)
    return (codes, torch.zeros(case.shape, device=device), levels, g), None


def _update(fn: Callable[..., Any]) -> Call:
    """On copies, so that every call has the same to do; what is coded by hand makes new tensors anyway."""

    def call(codes: torch.Tensor, residual: torch.Tensor, levels: torch.Tensor, g: torch.Tensor) -> Any:
        a, r = codes.clone(), residual.clone()
        fn(a, r, levels, g, lr=0.1, rho=1.0)
        return a, r

    return call


def _update_by_hand(codes: torch.Tensor, residual: torch.Tensor, levels: torch.Tensor, g: torch.Tensor) -> Any:
    u = levels[codes.long()] + residual - 0.1 * g.float()
    a = torch.bucketize(u, (levels[1:] + levels[:-1]) / 2)
    return a.to(torch.uint8), u - levels[a]


def _channel_inputs(case: Case, device: str) -> tuple[tuple[torch.Tensor, ...], Any]:
    x, g, _ = case.tensors(device)
    return (x, torch.full((1,), 0.3, device=device)), (g, torch.ones(case.shape[case.axis], device=device))


def _channel_error(fn: Callable[..., Any], case: Case, boundary: str = "closed") -> Call:
    keywords: dict[str, Any] = {"bits": (QMIN, QMAX), "axis": case.axis, "boundary": boundary, "grad_scale": 1.0}
    return lambda x, step: fn(x, step, **keywords)


def _channel_by_hand(case: Case) -> Call:
    others = [d for d in range(len(case.shape)) if d != case.axis]

    def call(x: torch.Tensor, step: torch.Tensor) -> Any:
        f = x.float()
        v = f / step
        c = v.clamp(QMIN, QMAX)
        q = c.round().detach()
        return (step * (c + (q - c).detach())).to(x.dtype), (f - step * q).square().sum(others)

    return call


DECAY = 0.5


def _seed(x: torch.Tensor) -> torch.Tensor:
    return torch.zeros(1, dtype=torch.int64, device=x.device)


# What a baseline adds as noise on +-1/2: fastq's own while its results are checked; drawn by torch while it is timed.
Noise = Callable[[torch.Tensor], torch.Tensor]


def _given_noise(case: Case) -> Noise:
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    zero, one = ({d: make(shape, device=d) for d in devices} for make, shape in ((torch.zeros, case.shape), (torch.ones, 1)))
    given = {d: fastq.noise_quant(zero[d], one[d], kind="uniform", seed=_seed(one[d])) for d in devices}
    return lambda x: given[x.device.type]


def _drawn_noise(x: torch.Tensor) -> torch.Tensor:
    return torch.rand_like(x, dtype=torch.float32) - 0.5


def _tempered(case: Case) -> Call:
    keywords = {"bits": (QMIN, QMAX), "boundary": "closed", "grad_scale": 1.0, "decay": DECAY, **case.keywords}
    return lambda x, step, a: fastq.tempered(x, step, a, seed=_seed(x), **keywords)


def _tempered_reference(case: Case, boundary: str) -> Call:
    keywords = {"bits": (QMIN, QMAX), "boundary": boundary, "grad_scale": 1.0, "decay": DECAY, **case.keywords}
    return lambda x, step, a: fastq.reference.tempered(x, step, a, seed=_seed(x), **keywords)


def _tempered_baseline(case: Case, noise: Noise) -> Call:
    scale = DECAY * 2 * math.sqrt(3.0)

    def tempered(x: torch.Tensor, step: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        where = normalize_axis("tempered", x, case.keywords.get("axis"), case.keywords.get("group_size"))
        s, b, xf = expand(step, x, *where), expand(a, x, *where), x.float()
        c = (b.detach() * xf + (1 - b.detach()) * xf.detach()).div(s).clamp(QMIN, QMAX)
        r = (c.round() - c).detach()
        inside = (c > QMIN) & (c < QMAX)
        y = s * ((c + r) + noise(x) * scale * r)
        error = torch.where(inside, xf - s * (c + r), 0.0).detach()
        return (y + (b - b.detach()) * error).to(x.dtype)

    return tempered


def _noise_quant(case: Case) -> Call:
    return lambda x, step: fastq.noise_quant(x, step, kind="nipq", bits=(QMIN, QMAX), seed=_seed(x), **case.keywords)


def _noise_quant_reference(case: Case, boundary: str) -> Call:
    return lambda x, step: fastq.reference.noise_quant(x, step, kind="nipq", bits=(QMIN, QMAX), seed=_seed(x), **case.keywords)


def _noise_quant_baseline(case: Case, noise: Noise) -> Call:
    def nipq(x: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        s = expand(step, x, *normalize_axis("nipq", x, case.keywords.get("axis"), case.keywords.get("group_size")))
        xf = x.float()
        v = xf / s
        inside = (v > QMIN) & (v < QMAX)
        return torch.where(inside, xf + s * noise(x), s * v.clamp(QMIN, QMAX)).to(x.dtype)

    return nipq


def _dsq(fn: Call, case: Case) -> Call:
    return functools.partial(fn, bits=4, **case.keywords)


def _with_alpha(fn: Call) -> Call:
    return lambda x, lower, upper, alpha, **keywords: fn(x, lower, upper, alpha=alpha, **keywords)


def _sat_inputs(case: Case, device: str) -> tuple[tuple[torch.Tensor, ...], Any]:
    """Of a weight's size: autograd's derivative of tanh, 1 - t**2, has lost digits for normal numbers."""
    w, g, _ = case.tensors(device)
    return (w / 4,), g


METHODS = (
    Method(
        "channel_error",
        lambda case: _channel_error(fastq.channel_error, case),
        lambda case, boundary: _channel_error(fastq.reference.channel_error, case, boundary),
        _channel_by_hand,
        inputs=_channel_inputs,
        granularities=("tensor", "channel"),  # its step is one for the tensor, its error one for each channel
        reconstruction="all of it",
    ),
    Method(
        "direct_weight",
        lambda case: lambda codes, levels: fastq.direct_weight(codes, levels, dtype=DTYPES[case.dtype]),
        lambda case, boundary: lambda codes, levels: fastq.reference.direct_weight(codes, levels, dtype=DTYPES[case.dtype]),
        lambda case: lambda codes, levels: levels[codes.long()].to(DTYPES[case.dtype]),
        inputs=_direct_inputs,
        granularities=("tensor",),
        reconstruction="all of it",
    ),
    Method(
        "direct_update_",
        lambda case: _update(fastq.direct_update_),
        lambda case, boundary: _update(fastq.reference.direct_update_),
        lambda case: _update_by_hand,
        inputs=_update_inputs,
        granularities=("tensor",),
        reconstruction="all of it",
    ),
    Method(
        "dampening",
        lambda case: lambda x, step: fastq.dampening(x, _float(step), bits=(QMIN, QMAX), **case.keywords),
        lambda case, boundary: lambda x, step: fastq.reference.dampening(x, _float(step), bits=(QMIN, QMAX), **case.keywords),
        lambda case: lambda x, step: dampening_by_hand(x, _float(step), qmin=QMIN, qmax=QMAX, **case.keywords),
        inputs=_dampening_inputs,
    ),
    Method(
        "frozen_lsq",
        lambda case: _frozen(fastq.frozen_lsq, boundary="closed", **_PLAIN, **case.keywords),
        lambda case, boundary: _frozen(fastq.reference.frozen_lsq, boundary=boundary, **_PLAIN, **case.keywords),
        lambda case: _frozen(frozen_lsq_surrogate, **case.keywords),
        inputs=_frozen_inputs,
    ),
    Method(
        "oscillation",
        lambda case: _oscillation(fastq.oscillation_step_, case),
        lambda case, boundary: _oscillation(fastq.reference.oscillation_step_, case),
        _oscillation_by_hand,
        inputs=_oscillation_inputs,
    ),
    Method(
        "ewgs",
        lambda case: _ewgs(fastq.ewgs, case),
        lambda case, boundary: _ewgs(fastq.reference.ewgs, case, boundary),
        lambda case: functools.partial(fastq.reference.ewgs_surrogate, bits=4, **case.keywords),
        parameters=lambda step: (-6 * step, 6 * step),
    ),
    Method(
        "dsq",
        lambda case: _dsq(_with_alpha(fastq.dsq), case),
        lambda case, boundary: _dsq(_with_alpha(fastq.reference.dsq), case),
        lambda case: _dsq(fastq.reference.dsq_surrogate, case),
        parameters=lambda step: (-6 * step, 6 * step, 0.8 * step),
        exact=False,
        reconstruction="the gradients of its bounds",
    ),
    Method(
        "foreach_lsq",
        lambda case: _halves(lambda ws, ss: fastq.foreach_lsq(ws, ss, boundary="closed", **_EACH)),
        lambda case, boundary: _halves(lambda ws, ss: fastq.reference.foreach_lsq(ws, ss, boundary=boundary, **_EACH)),
        lambda case: _one_by_one(lsq_surrogate, qmin=QMIN, qmax=QMAX, axis=0),
        lambda case: _one_by_one(fastq.lsq, boundary="rounded", **_EACH),
        inputs=_foreach_inputs,
        own_cases=(FULL, SMALL),
        core_note="fastq.lsq, a call for each weight",
    ),
    Method("lsq", _lsq, _lsq_reference, _lsq_baseline, _lsq_core, all_cases=True),
    Method(
        "pact",
        lambda case: _pact(fastq.pact, case),
        lambda case, boundary: _pact(fastq.reference.pact, case),
        lambda case: _pact(fastq.reference.pact_surrogate, case),
        parameters=lambda step: (6 * step,),
    ),
    Method(
        "qil",
        lambda case: _qil(fastq.qil, case),
        lambda case, boundary: _qil(fastq.reference.qil, case),
        lambda case: _qil(fastq.reference.qil_surrogate, case),
        parameters=lambda step: (3 * step, 2.5 * step, 4 * step),
        exact=False,
    ),
    Method(
        "sat",
        lambda case: functools.partial(fastq.sat_weight, bits=4),
        lambda case, boundary: functools.partial(fastq.reference.sat_weight, bits=4),
        lambda case: functools.partial(fastq.reference.sat_weight_surrogate, bits=4),
        inputs=_sat_inputs,
        granularities=("tensor",),
        exact=False,
    ),
    Method(
        "noise_quant",
        _noise_quant,
        _noise_quant_reference,
        lambda case: _noise_quant_baseline(case, _given_noise(case)),
        timed=lambda case: _noise_quant_baseline(case, _drawn_noise),
    ),
    Method(
        "tempered",
        _tempered,
        _tempered_reference,
        lambda case: _tempered_baseline(case, _given_noise(case)),
        parameters=lambda step: (step, torch.ones_like(step)),
        timed=lambda case: _tempered_baseline(case, _drawn_noise),
        reconstruction="all of it",
    ),
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
    """``baseline / fastq >= at_least`` on every method and case that ``applies``, for forward and backward together."""

    name: str
    baseline: str
    at_least: float
    applies: Callable[[str, Case], bool]


def _weight(method: str, case: Case) -> bool:
    return case.family == "weight"


def _small(method: str, case: Case) -> bool:
    return method == "lsq" and case.family == "size" and 2**10 <= case.elements <= 2**16


def _large(method: str, case: Case) -> bool:
    return case.elements >= 2**26


CPU_GOALS = (
    Goal("LSQ, 4096x4096: not slower than torch.compile", "compiled", 1.0, _weight),
    Goal("LSQ, 4096x4096: 5x faster than torch core", "core", 5.0, _weight),
    Goal("LSQ, 4096x4096: 7x faster than eager", "eager", 7.0, _weight),
    Goal("LSQ, 1 K to 64 K: 2x faster than eager", "eager", 2.0, _small),
    Goal("LSQ, 1 K to 64 K: 2x faster than torch.compile", "compiled", 2.0, _small),
    Goal("foreach_lsq, small weights: 2x faster than a call for each", "core", 2.0, lambda method, case: case == SMALL),
    Goal("every method, 4 M and more: not slower than torch.compile", "compiled", 1.0, lambda _, case: case.elements >= 2**22),
    Goal("every method, below 64 K: 2x faster than torch.compile", "compiled", 2.0, lambda _, case: case.elements < 2**16),
)
GPU_GOALS = (Goal("64 M: not slower than torch.compile", "compiled", 1.0, _large),)
#: The share of the measured copy bandwidth that forward and backward reach each, from 64 M elements on.
BANDWIDTH_GOAL = 0.85


def traffic(case: Case, which: str) -> int:
    """The bytes a pass has to move: forward reads 1 and writes 1, backward reads 2 and writes 1."""
    return case.nbytes * {"forward": 2, "backward": 3, "both": 5}[which]


def select(
    pattern: str = "", sizes: Sequence[int] = (), quick: bool = False, device: str = "cpu", method: str = ""
) -> list[tuple[Method, Case]]:
    """What is measured: of ``method`` (of all), the cases whose name contains ``pattern`` and that have as many elements as one of
    ``sizes``, if given."""
    return [
        (m, case)
        for m in METHODS
        for case in (m.quick_cases() if quick else m.cases(device))
        if method in ("", m.name) and pattern in case.name and (not sizes or case.elements in sizes)
    ]
