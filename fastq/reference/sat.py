"""SAT weights in plain PyTorch: the specification in code.

DoReFa weights put to scale: Jin et al., Towards Efficient Training for Neural Network Quantization (scale-adjusted training),
https://arxiv.org/abs/1912.10207. Per tensor, N elements:

    t = tanh(w) ;  m = max|t| = tanh(max|w|) ;  Wh = t / m ;  v = L * ((Wh + 1) / 2)
    scheme       L          k                       code
    "round"      2**b - 1   round(v)                2k - L
    "floor"      2**b       min(floor(v), L - 1)    2k - L
    "centered"   2**b       min(floor(v), L - 1)    2k + 1 - L        b = 2 only
    Q = code / L
    kappa = 1 / sqrt(n_out * VAR[Q])  "constant";   std(w) / std(Q)  "std";   1  "none"
    y = kappa * Q = s * code ,  s = kappa / L       one rounding, and the integer network's step
    bits = None: Q = Wh, y = kappa * Wh             the clamped full-precision pretraining

    c   = kappa / m                                 kappa is a constant for the gradient, the rounding straight through
    dw  = (1 - t**2) * c * g ,  and at j = argmax|w|, the lowest index of several,
    dw_j = (1 - t_j**2) * (c * g_j - sign(w_j) * S) ,  S = c * sum(g * t) / m      the derivative through m (a switch)

VAR and std are unbiased (N - 1). VAR[Q] follows from the codes alone: sums of k and k**2 in int64, centred on the integer next to
their mean, then fp64. Where m or VAR is 0, y and dw are zeros; NaN anywhere in w gives NaN everywhere.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from .. import checks
from ..granularity import compute_dtype, divided, in_layout_of
from .dsq import sech2

__all__ = ["RESCALES", "SCHEMES", "sat_backward", "sat_forward", "sat_weight", "sat_weight_surrogate"]

#: As the operators number them.
SCHEMES = {"round": 0, "floor": 1, "centered": 2}
RESCALES = {"none": 0, "constant": 1, "std": 2}


def levels(bits: int, scheme: int) -> int:
    """``L``."""
    return 2**bits - (1 if scheme == SCHEMES["round"] else 0)


def default_n_out(w: torch.Tensor) -> int:
    """A linear layer's out_features, a convolution's ``out_channels * kh * kw``: ``w.numel() / w.shape[1]``."""
    return math.prod((*w.shape[:1], *w.shape[2:]))


def variance(total: torch.Tensor, squares: torch.Tensor, n: int) -> torch.Tensor:
    """Unbiased, from the sums of a number and its square, fp64; 0 for fewer than two numbers."""
    if n < 2:
        return total * 0.0
    return divided((squares - divided(total * total, n)).clamp(min=0.0), n - 1)


def code_variance(k: torch.Tensor, scale: int) -> torch.Tensor:
    """``VAR[Q]`` for integers ``k`` with ``Q = 2k / scale + constant``: exact in int64 up to the division."""
    n, one = k.numel(), k.sum(dtype=torch.int64)
    two = (k.to(torch.int64) * k.to(torch.int64)).sum()
    center = torch.div(one, max(n, 1), rounding_mode="floor")
    total, squares = one - n * center, two - 2 * center * one + n * center * center
    return divided(4.0 * variance(total.double(), squares.double(), n), float(scale) * scale)


def _max(w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``max|w|``, NaN if there is one, and the lowest index of its elements in row-major order, -1 if there is none."""
    magnitude = w.detach().abs().flatten()
    if w.numel() == 0:
        return magnitude.new_zeros(()), torch.full((), -1, device=w.device)
    largest = magnitude.max()
    index = (magnitude == largest).to(torch.int32).argmax()
    return largest, torch.where(largest == largest, index, -1)


def _codes(unit: torch.Tensor, bits: int, scheme: int) -> torch.Tensor:
    """``k`` as floats, for ``Wh`` in [-1, 1]."""
    top = levels(bits, scheme)
    v = ((unit + 1) * 0.5 * top).clamp(0, top)
    return v.round() + 0.0 if scheme == SCHEMES["round"] else v.floor().clamp(max=top - 1)


def sat_forward(
    w: torch.Tensor, bits: int, scheme: int, rescale: int, n_out: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``y`` of the dtype and layout of ``w``; ``[m, kappa, VAR[Q]]`` in fp64; the index of max|w|, int64 of one element.

    ``bits`` 0 leaves out the rounding.
    """
    x = w.to(compute_dtype(w))
    largest, index = _max(x)
    m = largest.tanh()
    unit = torch.where(m == 0, 0.0, x.tanh() / m)
    top = levels(bits, scheme)
    if bits:
        k = _codes(unit, bits, scheme)
        var = code_variance(k.nan_to_num(), top)
        code = 2 * k - top + (1 if scheme == SCHEMES["centered"] else 0)
    else:
        wide = unit.double()
        var = variance(wide.sum(), (wide * wide).sum(), w.numel())
    kappa = torch.ones_like(var)
    if rescale == RESCALES["constant"]:
        kappa = torch.where(var > 0, 1.0 / (n_out * var).sqrt(), 0.0)
    elif rescale == RESCALES["std"]:
        wide = x.double()
        spread = variance(wide.sum(), (wide * wide).sum(), w.numel())
        kappa = torch.where(var > 0, (spread / var).sqrt(), 0.0)
    kappa = torch.where(m == 0, 0.0, kappa + (m - m))  # a NaN in w
    if bits:
        y = divided(kappa, top).to(x.dtype) * code + 0.0
    else:
        y = kappa.to(x.dtype) * unit + 0.0
    return in_layout_of(w, y), torch.stack([m.double(), kappa, var]), index.reshape(1)


def sat_backward(
    g: torch.Tensor, w: torch.Tensor, scale: torch.Tensor, index: torch.Tensor, grad_through_max: bool
) -> torch.Tensor:
    """``dw`` for the gradient ``g`` of ``y``, with what the forward pass gave."""
    x = w.to(compute_dtype(w))
    gf = g.to(x.dtype)
    m, kappa = scale[0], scale[1]
    ratio = torch.where(m == 0, 0.0, kappa / m)
    inner = ratio.to(x.dtype) * gf
    if grad_through_max and w.numel():
        through = torch.where(m == 0, 0.0, ratio * (gf * x.tanh()).sum(dtype=torch.float64) / m).to(x.dtype)
        here = torch.arange(w.numel(), device=w.device).view(w.shape) == index.reshape(())
        inner = torch.where(here, inner - torch.where(x < 0, -through, through), inner)
    return in_layout_of(w, sech2(x) * inner)


class SATWeightReference(torch.autograd.Function):
    """The two functions above as one autograd node. Saves ``w`` and four numbers."""

    @staticmethod
    def forward(ctx: Any, w: Any, bits: int, scheme: int, rescale: int, n_out: int, grad_through_max: bool) -> torch.Tensor:
        y, scale, index = sat_forward(w, bits, scheme, rescale, n_out)
        checks.check_sat("sat_weight", w, scale, rescale)
        ctx.save_for_backward(w, scale, index)
        ctx.grad_through_max = grad_through_max
        return y

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        w, scale, index = ctx.saved_tensors
        return sat_backward(g, w, scale, index, ctx.grad_through_max), None, None, None, None, None


def sat_weight(
    w: torch.Tensor,
    *,
    bits: int | None,
    scheme: str = "round",
    rescale: str = "constant",
    grad_through_max: bool = True,
    n_out: int | None = None,
) -> torch.Tensor:
    """SAT weights in plain PyTorch: arguments, formula and errors as :func:`fastq.sat_weight`."""
    from ..ops.sat import resolve  # the one set of checks; imported late because fastq.ops builds on this module

    return SATWeightReference.apply(w, *resolve(w, bits, scheme, rescale, grad_through_max, n_out))


def sat_weight_surrogate(
    w: torch.Tensor, *, bits: int | None, scheme: str = "round", rescale: str = "constant", n_out: int | None = None,
    residual: torch.Tensor | None = None, kappa: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """The function whose ordinary derivative SAT's gradient is: ``kappa * (Wh + rho)``, ``rho = Q - Wh`` and ``kappa`` constant.

    By default both are computed from ``w`` and detached: how SAT is coded by hand, and so the eager and compiled baseline of the
    benchmarks. The derivative through ``m`` is autograd's of ``max``.
    """
    x = w.to(compute_dtype(w))
    t = x.tanh()
    unit = t / t.abs().max()
    if residual is None:
        q = unit.detach()
        if bits is not None:
            top = levels(bits, SCHEMES[scheme])
            q = (2 * _codes(q, bits, SCHEMES[scheme]) - top + (1 if scheme == "centered" else 0)) / top
        residual = q - unit.detach()
    if kappa is None:
        q = (unit + residual).detach()
        n = default_n_out(w) if n_out is None else n_out
        kappa = x.new_ones(())
        if rescale != "none":
            kappa = (n * q.var()).rsqrt() if rescale == "constant" else x.detach().std() / q.std()
    return (kappa * (unit + residual)).to(w.dtype)
