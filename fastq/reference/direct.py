"""Direct quantization in plain PyTorch: the specification in code.

Weights are stored as codes ``a``; there is no latent full-precision weight. ``K = 2**b`` levels ``l``, ascending, are learned.
A reconstruction from the idea of the paper: its equations are not published in the sources we had.

    w_i   = l[a_i]                                              forward
    dl[k] = sum over {i: a_i = k} of g_i                        levels

    u_i   = (l[a_i] + r_i) - lr * g_i                           update, each operation rounded to fp32
    h     = the number of levels of l[:K-1] below u_i, by binary search
    a_i   = h, or its lower neighbour (K-1 where u_i lies above all) where |u_i - l| there is no larger: a tie to the lower
    r_i   = rho * (u_i - l[a_i])

A code beyond the levels counts modulo K. NaN in g, l or r gives a residual of NaN and code 0, so that the fault shows there.
"""

from __future__ import annotations

from typing import Any

import torch

from .. import checks
from ..granularity import like_strides

__all__ = ["direct_update_", "direct_weight", "nearest_level"]


def index_of(codes: torch.Tensor, levels: int) -> torch.Tensor:
    """The codes as indices, modulo the number of levels."""
    return codes.long() & (levels - 1)


def nearest_level(u: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """The index of the level next to each ``u``, int64; of two equally near the lower one; 0 for NaN."""
    found = u.contiguous().nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    high = torch.searchsorted(levels[:-1].contiguous(), found)
    low = torch.where(levels[high] < u, high, (high - 1).clamp(min=0))
    return torch.where((u - levels[high]).abs() < (u - levels[low]).abs(), high, low)


def direct_weight_forward(codes: torch.Tensor, levels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``levels[codes]`` in ``dtype``, with the layout of ``codes``."""
    return like_strides(codes, levels[index_of(codes, levels.numel())].to(dtype))


def direct_weight_backward(g: torch.Tensor, codes: torch.Tensor, levels: int) -> torch.Tensor:
    """``dl``, fp32 (fp64 for fp64 ``g``): for each level the sum of the gradients of the weights that have it, added in fp64."""
    total = torch.zeros(levels, dtype=torch.float64, device=g.device)
    total.index_add_(0, index_of(codes, levels).flatten(), g.double().flatten())
    return total.to(torch.float64 if g.dtype == torch.float64 else torch.float32)


def direct_update_forward(
    codes: torch.Tensor, residual: torch.Tensor | None, levels: torch.Tensor, g: torch.Tensor, lr: float, rho: float
) -> None:
    """One step of the codes and residuals, in place."""
    # The factors are fp32 numbers, as those of the kernels are: torch would multiply a 16-bit tensor by a double.
    eta, keep = (torch.tensor(value, dtype=levels.dtype, device=levels.device) for value in (lr, rho))
    u = levels[index_of(codes, levels.numel())]
    if residual is not None:
        u = u + residual.to(u.dtype)
    u = u - eta * g.to(u.dtype)
    a = nearest_level(u, levels)
    codes.copy_(a)
    if residual is not None:
        residual.copy_(keep * (u - levels[a]))


class DirectWeightReference(torch.autograd.Function):
    """The first two functions above as one autograd node. Saves ``codes``."""

    @staticmethod
    def forward(ctx: Any, codes: Any, levels: Any, dtype: torch.dtype) -> torch.Tensor:
        ctx.save_for_backward(codes)
        ctx.levels = levels.numel()
        return direct_weight_forward(codes, levels, dtype)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        (codes,) = ctx.saved_tensors
        return None, direct_weight_backward(g, codes, ctx.levels), None


def direct_weight(codes: torch.Tensor, levels: torch.Tensor, *, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Arguments, formula and errors as :func:`fastq.direct_weight`, in plain PyTorch."""
    from ..ops.direct import check_weight, output_dtype  # the one set of checks; imported late because fastq.ops builds on this

    dtype = output_dtype(dtype)
    check_weight("direct_weight", codes, levels)
    checks.check_levels("direct_weight", codes, levels)
    return DirectWeightReference.apply(codes, levels, dtype)


def direct_update_(
    codes: torch.Tensor, residual: torch.Tensor | None, levels: torch.Tensor, grad: torch.Tensor, *, lr: float, rho: float
) -> torch.Tensor:
    """Arguments, formula and errors as :func:`fastq.direct_update_`, in plain PyTorch."""
    from ..ops.direct import check_factors, check_update

    check_factors(lr, rho, residual)
    check_update("direct_update_", codes, residual, levels, grad)
    checks.check_levels("direct_update_", codes, levels, residual, grad)
    with torch.no_grad():
        direct_update_forward(codes, residual, levels, grad, lr, rho)
    return codes
