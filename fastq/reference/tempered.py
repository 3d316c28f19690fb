"""Noise tempering in plain PyTorch: the specification in code.

A reconstruction of quantization with decaying, error-aware noise and a learned gradient scale: the equations were not published in
the sources we had.

    v, q, m as LSQ;  e = q - v where m, else 0            xi: zero-mean, unit-variance noise (fastq.reference.philox)
    k = decay * xi

    reading "noise"      y  = s * (q + k * e)
                         dx = a * g where m, else 0
                         dstep = G * sign(step) * sum g * (e * (1 + k) where m; else qmin where v <= qmin; else qmax)
    reading "gradient"   y  = s * q
                         dx = g * (a + k * |e|) where m, else 0
                         dstep as with k = 0
    without training     y  = s * q, and the gradients with k = 0
    all three            da = G_a * sum g * (x - s * q) where m

NaN in x, step or a gives NaN where it is used; +-inf saturates.
"""

from __future__ import annotations

from typing import Any

import torch

from ..granularity import compute_dtype, expand, in_layout_of, normalize_axis, sum_to_parameter
from ..ranges import mask_bounds
from .lsq import effective_step, gradient_scale
from .philox import UNIT_VARIANCE, noise

__all__ = ["READINGS", "tempered", "tempered_backward", "tempered_forward", "tempered_surrogate"]

#: The readings of the method, as the operators number them; without training it is a third one.
READINGS = {"noise": 0, "gradient": 1}
STILL = 2


def _quantize(
    x: torch.Tensor, step: torch.Tensor, qmin: int, qmax: int, axis: int, group_size: int, eps: float, boundary: int
) -> tuple[torch.Tensor, ...]:
    """``v``, ``q``, ``m``, ``e`` and the broadcast step, in the arithmetic dtype."""
    s = expand(effective_step(step, eps), x, axis, group_size)
    v = x.to(compute_dtype(x)) / s
    q = v.clamp(qmin, qmax).round() + 0.0
    lower, upper = mask_bounds(qmin, qmax, boundary, v.dtype)
    m = (v > lower) & (v < upper)
    return v, q, m, torch.where(m, q - v, 0.0), s


def scaled_noise(x: torch.Tensor, seed: torch.Tensor, kind: int, decay: torch.Tensor | float) -> torch.Tensor:
    """``k = decay * xi`` of the shape and arithmetic dtype of ``x``; ``xi`` itself is fp32 for every dtype."""
    xi = noise(seed, x.shape, kind, UNIT_VARIANCE[kind]).to(compute_dtype(x))
    return xi * (decay.reshape(()) if isinstance(decay, torch.Tensor) else decay)


def tempered_forward(
    x: torch.Tensor, step: torch.Tensor, a: torch.Tensor, seed: torch.Tensor | None, decay: torch.Tensor | None, qmin: int,
    qmax: int, axis: int, group_size: int, eps: float, boundary: int, kind: int, reading: int,
) -> torch.Tensor:  # fmt: skip
    """``y``, of the dtype and layout of ``x``."""
    _, q, _, e, s = _quantize(x, step, qmin, qmax, axis, group_size, eps, boundary)
    if reading == READINGS["noise"] and seed is not None and decay is not None:
        q = q + scaled_noise(x, seed, kind, decay) * e
    return in_layout_of(x, s * q)


def tempered_backward(
    g: torch.Tensor, x: torch.Tensor, step: torch.Tensor, a: torch.Tensor, seed: torch.Tensor | None,
    decay: torch.Tensor | None, qmin: int, qmax: int, axis: int, group_size: int, eps: float, boundary: int, kind: int,
    reading: int, grad_scale: float | str, a_grad_scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """``(dx, dstep, da)`` for the gradient ``g`` of ``y``."""
    v, q, m, e, s = _quantize(x, step, qmin, qmax, axis, group_size, eps, boundary)
    nan = torch.where(v.isnan(), v, 0.0)
    gf = g.to(v.dtype)
    k = torch.zeros_like(v)
    if seed is not None and decay is not None and reading != STILL:
        k = scaled_noise(x, seed, kind, decay)
    scale, inner = expand(a, x, axis, group_size), e
    if reading == READINGS["noise"]:
        inner = e * (1.0 + k)
    else:
        scale = scale + k * e.abs()
    dx = in_layout_of(x, torch.where(m, scale * gf, nan))
    t = torch.where(m, inner, torch.where(v <= qmin, float(qmin), float(qmax)) + nan)
    sign = torch.where(step < 0, -1.0, 1.0).to(step.dtype)
    dstep = sum_to_parameter(gf * t, step, axis, group_size) * gradient_scale(x, step, qmax, grad_scale) * sign
    da = sum_to_parameter(torch.where(m, gf * (x.to(v.dtype) - s * q), nan), a, axis, group_size) * a_grad_scale
    return dx, dstep, da


class TemperedReference(torch.autograd.Function):
    """The two functions above as one autograd node."""

    @staticmethod
    def forward(ctx: Any, x: Any, step: Any, a: Any, seed: Any, decay: Any, *arguments: Any) -> torch.Tensor:
        ctx.save_for_backward(x, step, a, seed, decay)
        ctx.arguments = arguments
        return tempered_forward(x, step, a, seed, decay, *arguments[:8])

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        return *tempered_backward(g, *ctx.saved_tensors, *ctx.arguments), *(None,) * 12


def tempered(x: torch.Tensor, step: torch.Tensor, a: torch.Tensor, **keywords: Any) -> torch.Tensor:
    """Arguments, formula and errors as :func:`fastq.tempered`, in plain PyTorch."""
    from ..ops.tempered import (
        check,
        check_values,
        resolve,
    )  # the one set of checks; imported late because fastq.ops builds on this module

    seed, decay, *arguments = resolve(x, **keywords)
    check("tempered", x, step, a, seed, decay, *arguments[2:4])
    check_values("tempered", x, step, a, decay)
    return TemperedReference.apply(x, step, a, seed, decay, *arguments)


def tempered_surrogate(
    x: torch.Tensor, step: torch.Tensor, a: torch.Tensor, *, qmin: int, qmax: int, k: torch.Tensor | float = 0.0,
    boundary: int = 0, reading: int = 0, axis: int | None = None, group_size: int | None = None, eps: float = 1e-8,
    at: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:  # fmt: skip
    """The function whose ordinary derivative the gradient is, for noise ``k = decay * xi`` of the shape of ``x``.

    In range, with what ``sg`` holds and ``e`` constant::

        sg(s * q) + A * (x - sg(s * q)) + s * e * (1 + k)      A = a, or a + k * |e| and no k in the last term (reading "gradient")

    and ``s * q`` outside. ``at`` is the ``(x, step)`` at which the constants are taken; None: here. Its value is ``y`` where
    ``A = 1``. Written this way it is also how the method is coded by hand, with autograd for the rest.
    """
    where = normalize_axis("tempered_surrogate", x, axis, group_size)
    with torch.no_grad():
        _, q, m, e, frozen = _quantize(*(at or (x, step)), qmin, qmax, *where, eps, boundary)
        grid = frozen * q
    s, scale = expand(step, x, *where), expand(a, x, *where)
    inner = e if reading else e * (1.0 + k)
    if reading:
        scale = scale + k * e.abs()
    return torch.where(m, grid + scale * (x.to(grid.dtype) - grid) + s * inner, s * q).to(x.dtype)
