"""What must hold exactly, whatever the scale: the identities that METHODS.md names."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..ops import lsq, oscillation_step_, pact, sat_weight

__all__ = ["Identity", "identities"]


@dataclass(frozen=True)
class Identity:
    """``error``, the largest deviation found, may be as large as ``tolerance``."""

    name: str
    error: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether it does; not with NaN."""
        return self.error <= self.tolerance


def sat_variance() -> Identity:
    """``n_out VAR[Q*] = 1``; each weight is rounded to fp32 once, 6e-8 relative."""
    worst, generator = 0.0, torch.Generator().manual_seed(0)
    for shape in ((10, 32), (32, 16, 3, 3), (64, 1, 3, 3)):
        weight = torch.randn(shape, generator=generator) / 4
        outputs = shape[0] * weight[0, 0].numel()
        for bits in (2, 3, 4, 8):
            worst = max(worst, abs(float(sat_weight(weight, bits=bits).double().var()) * outputs - 1))
    return Identity("SAT: the variance of rescaled weights is 1/n", worst, 1e-6)


def pact_gradient() -> Identity:
    """With ``s = alpha / L``, ``dalpha = ds / L``; the terms are the same numbers, the factor 1/L is rounded once more."""
    worst, generator = 0.0, torch.Generator().manual_seed(0)
    for bits in (2, 3, 4, 8):
        levels = 2**bits - 1
        x, g = torch.randn(2, 64, 128, generator=generator)
        alpha = torch.tensor([1.7], requires_grad=True)
        step = (alpha.detach() / levels).requires_grad_()
        (wanted,) = torch.autograd.grad(lsq(x, step, bits=bits, signed=False, grad_scale=1.0), step, g)
        (found,) = torch.autograd.grad(pact(x, alpha, bits=bits), alpha, g)
        worst = max(worst, float((found * levels - wanted).abs() / wanted.abs()))
    return Identity("calibrated PACT: the gradient of the clip is LSQ's of the step / L", worst, 1e-6)


def oscillation_frequency(steps: int = 4000) -> Identity:
    """Weights, each pulled by ``Q(w) - w*`` with w* a fraction d of a step from a grid point, reverse 2d times per step.

    The tracked average has a memory of 1 / momentum steps, so that it wanders by about its square root.
    """
    target = torch.tensor([0.1, 0.25, 0.4])
    weight, step, state = torch.full((3,), 0.1), torch.ones(1), None
    found = torch.zeros(3)
    for number in range(steps):
        weight -= 0.01 * (weight.round() - target)
        state = oscillation_step_(weight, step, state, bits=4, momentum=0.01, threshold=0.0)
        if number >= steps // 2:
            found += state.frequency / (steps - steps // 2)
    worst = float((found - 2 * target).abs().max())
    return Identity("oscillations: a weight d steps off its grid point reverses 2d times per step", worst, 0.01)


def identities() -> list[Identity]:
    """All of them, checked now."""
    return [sat_variance(), pact_gradient(), oscillation_frequency()]
