"""What the tests of oscillation tracking, of freeze-aware LSQ and of dampening share, on every backend."""

import math
from typing import Any

import torch
from device import DEVICE

import fastq
from fastq.granularity import normalize_axis
from fastq.oscillation import AVERAGE_BITS, OscillationState
from fastq.ranges import integer_range
from fastq.reference.frozen_lsq import frozen_lsq_surrogate
from fastq.testing import Case, bits, same_bits

_PLAIN: dict[str, Any] = {"grad_scale": 1.0}
FROZEN_CASES = [
    Case("per tensor", (7, 61), ((1,),), {"bits": 4}, _PLAIN, kept=4),
    Case("per channel, first axis", (5, 4, 90), ((5,),), {"bits": 2, "axis": 0, "boundary": "closed"}, _PLAIN, kept=4),
    Case("per channel, middle axis", (3, 6, 5, 7), ((6,),), {"bits": (-3, 6), "axis": 1}, _PLAIN, kept=4),
    Case("per channel, last axis", (140, 37), ((37,),), {"bits": 3, "narrow": True, "axis": -1, "grad_scale": 0.5}, _PLAIN, kept=4),
    Case("per group", (4, 3, 64), ((4, 3, 2),), {"bits": 4, "signed": False, "group_size": 32}, _PLAIN, kept=4),
]


def state_for(x: torch.Tensor, keywords: dict[str, Any]) -> OscillationState:
    """About a third is frozen, at every code of the range; the averages of the others are anything."""
    qmin, qmax = integer_range("state", keywords["bits"], keywords.get("signed", True), keywords.get("narrow", False))
    i = torch.arange(x.numel(), device="cpu").view(x.shape)
    frozen, code, rest = i * 7 % 3 == 0, i * 13 % (qmax - qmin + 1), i * 40503 % (1 << AVERAGE_BITS)
    free = torch.where(code < qmax - qmin, (code << AVERAGE_BITS) + rest, 0)
    word = torch.where(frozen, (code << AVERAGE_BITS) - (1 << 31), free)
    freeze = (word | (i % 3) << 29).to(torch.int32).to(x.device)
    return OscillationState(freeze, torch.zeros_like(freeze), qmin, qmax)


def frozen_lsq(x: torch.Tensor, step: torch.Tensor, **keywords: Any) -> torch.Tensor:
    return fastq.frozen_lsq(x, step, state_for(x, keywords), **keywords)


def frozen_reference(x: torch.Tensor, step: torch.Tensor, **keywords: Any) -> torch.Tensor:
    return fastq.reference.frozen_lsq(x, step, state_for(x, keywords), **keywords)


def frozen_surrogate(x: torch.Tensor, step: torch.Tensor, **keywords: Any) -> Any:
    """``s * (frozen ? frozen_int : clip(v) + r)`` with ``r`` as it is at the given point."""
    state = state_for(x, keywords)
    how = {key: keywords[key] for key in ("axis", "group_size") if key in keywords}
    s = fastq.granularity.expand(step, x, *normalize_axis("surrogate", x, keywords.get("axis"), keywords.get("group_size")))
    c = (x / s).clamp(state.qmin, state.qmax)
    residual = c.round() - c
    return lambda x, step: frozen_lsq_surrogate(x, step, state, residual=residual, **how)


def frozen_operators(space: Any) -> list[tuple[Any, tuple[Any, ...]]]:
    x, g, step = torch.randn(4, 6), torch.randn(4, 6), torch.rand(6) + 0.1
    freeze = state_for(x, {"bits": 4}).freeze
    return [
        (space.frozen_lsq_forward.default, (x, step, freeze, -8, 7, 1, 0, 1e-8)),
        (space.frozen_lsq_backward.default, (g, x, step, freeze, -8, 7, 1, 0, 1e-8, 1, 1.0, 1)),
        (space.dampening_forward.default, (x, step, -8, 7, 1, 0, 1e-8)),
        (space.dampening_backward.default, (torch.tensor(0.5), x, step, -8, 7, 1, 0, 1e-8, 0.25)),
        (space.oscillation_step.default, (x.clone(), step, freeze.clone(), freeze.clone(), -8, 7, 1, 0, 1e-8, 0.5, 0.5, 9, False)),
    ]


# (shape, shape of the step, keywords): every granularity, and runs that no vector and no tile divides.
GRANULARITIES: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((7, 61), (1,), {}),
    ((), (), {}),
    ((3, 5000), (3,), {"axis": 0}),
    ((3, 6, 5, 7), (6,), {"axis": 1}),
    ((140, 37), (37,), {"axis": -1}),
    ((4, 3, 64), (4, 3, 2), {"group_size": 32}),
    ((9, 20), (9, 4), {"group_size": 5}),
    ((0, 4), (4,), {"axis": 1}),
]
LAYOUTS = ("contiguous", "transposed", "strided", "misaligned", "planes transposed")
RANGES: list[dict[str, Any]] = [
    {"bits": 3}, {"bits": 4, "signed": False}, {"bits": (-3, 4)}, {"bits": 8}, {"bits": 8, "signed": False},
    {"bits": 3, "narrow": True},
]  # fmt: skip


def laid_out(x: torch.Tensor, layout: str) -> torch.Tensor:
    """A copy of ``x`` with other strides and the same values."""
    if layout == "transposed" and x.dim() > 1:
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "strided":
        return torch.stack([x, x], -1)[..., 0]
    if layout == "misaligned":
        return torch.empty(x.numel() + 1, dtype=x.dtype, device=x.device)[1:].view(x.shape).copy_(x)
    return x.clone()


def check_steps(backend: str, dtypes: tuple[torch.dtype, ...], steps: int = 12, layouts: tuple[str, ...] = LAYOUTS) -> int:
    """The state machine on ``backend`` against the reference, on jittering weights: bits of weights and states. How many ran."""
    generator = torch.Generator("cpu").manual_seed(0)
    count = froze = 0
    for dtype in dtypes:
        kind = torch.float64 if dtype == torch.float64 else torch.float32
        for shape, parameter, where in GRANULARITIES:
            for layout in layouts if dtype == dtypes[0] else layouts[:1]:
                how = {**where, **RANGES[count % len(RANGES)]}
                first, count_first = torch.randn(shape, generator=generator, device="cpu"), count % 2 == 1
                step = (torch.rand(parameter, generator=generator, device="cpu") * 0.1 + 0.2).to(kind)
                ours, theirs = laid_out(first.to(DEVICE, dtype), layout), first.to(dtype)
                mine = step.to(DEVICE)
                with fastq.use_backend("reference"):
                    want = fastq.oscillation_step_(theirs, step, **how)
                with fastq.use_backend(backend):
                    state = fastq.oscillation_step_(ours, mine, **how)
                    if layout == "planes transposed":
                        planes = (laid_out(t, "transposed") for t in (state.freeze, state.track))
                        state = OscillationState(*planes, state.qmin, state.qmax)
                for t in range(steps):
                    jitter = (torch.randn(shape, generator=generator, device="cpu") * 0.15).to(dtype)
                    if t == 3 and jitter.numel() > 20:  # no code, and codes at the ends of the range
                        jitter.view(-1)[:15:5], jitter.view(-1)[1:15:5], jitter.view(-1)[2:15:5] = math.nan, math.inf, -math.inf
                    if t == 4:
                        theirs.copy_(theirs.nan_to_num(0.0, 1.0, -1.0))
                        ours.copy_(theirs)
                    ours += jitter.to(DEVICE)
                    theirs += jitter
                    # Once above every frequency: what is frozen stays so.
                    threshold = 0.0 if t < 3 else 1.0 if t == steps - 1 else 0.15
                    rates = {"momentum": 0.3 / (t + 1), "threshold": threshold, "count_first": count_first}
                    with fastq.use_backend("reference"):
                        fastq.oscillation_step_(theirs, step, want, **rates, **how)
                    with fastq.use_backend(backend):
                        assert fastq.oscillation_step_(ours, mine, state, **rates, **how) is state
                    name = f"{dtype} {shape} {layout} {how} step {t}"
                    for what, a, b in (("freeze", state.freeze, want.freeze), ("track", state.track, want.track)):
                        assert torch.equal(a.cpu(), b), f"{what}: {name}: {int((a.cpu() != b).sum())} differ"
                    assert same_bits(ours.cpu(), theirs), f"weight: {name}"
                froze += int(want.frozen.sum())
                count += 1
    assert froze > 100, "the test tells nothing"
    return count


def check_dampening(backend: str, dtypes: tuple[torch.dtype, ...], layouts: tuple[str, ...] = LAYOUTS[:4]) -> int:
    """Loss and gradient on ``backend`` against the reference: bits of the gradient, the loss to two roundings. How many ran."""
    generator = torch.Generator("cpu").manual_seed(0)
    count = 0
    for dtype in dtypes:
        kind = torch.float64 if dtype == torch.float64 else torch.float32
        for shape, parameter, where in GRANULARITIES:
            for layout in layouts:
                how = {**where, **RANGES[count % len(RANGES)], "reduction": ("sum", "mean", "kernel")[count % 3]}
                w = torch.randn(shape, generator=generator, device="cpu").to(dtype)
                if w.numel() > 20 and count % 2:
                    w.view(-1)[:4] = torch.tensor([math.inf, -math.inf, 0.0, -0.0], dtype=dtype, device="cpu")
                step = (torch.rand(parameter, generator=generator, device="cpu") * 0.1 + 0.1).to(kind)
                ours = laid_out(w.to(DEVICE), layout).requires_grad_()
                theirs = w.requires_grad_()
                with fastq.use_backend(backend):
                    loss = fastq.dampening(ours, step.to(DEVICE), **how)
                    (dw,) = torch.autograd.grad(loss * 0.3, ours)
                    alone = fastq.dampening(ours.detach(), step.to(DEVICE), **how)
                want = fastq.reference.dampening(theirs, step, **how)
                (dwant,) = torch.autograd.grad(want * 0.3, theirs)
                name = f"{dtype} {shape} {layout} {how}"
                assert torch.equal(bits(dw.cpu()), bits(dwant)), f"gradient: {name}"
                assert not w.numel() or dw.stride() == torch.empty_like(ours).stride(), f"strides: {name}"
                assert same_bits(alone, loss.detach()) and not alone.requires_grad, f"loss alone: {name}"
                assert loss.dtype == kind and loss.shape == ()
                # fp64 sums of the same terms in another order: what differs is the rounding to the dtype of the loss
                torch.testing.assert_close(loss.detach().cpu(), want.detach(), rtol=2 * torch.finfo(kind).eps + 1e-13, atol=0)
                count += 1
    return count
