"""``LsqQuan`` as in the lsq-net repository (https://github.com/zhutmost/lsq-net), as one kernel forward and one backward.

The common way in which LSQ (Esser et al., ICLR 2020, https://arxiv.org/abs/1902.08153) is written by hand: a module with a
parameter ``s``, set from the weight by ``init_from``, whose gradient is scaled by all elements of the tensor. Change ::

    from quan.quantizer.lsq import LsqQuan        # before
    from fastq.compat.lsq_net import LsqQuan      # after

The formula is :func:`fastq.lsq` with ``boundary="closed"`` and ``grad_scale="lsq-full"``. Written by hand, ``(s - s*g) + s*g``
and ``(round(v) - v) + v`` are not quite ``s`` and ``round(v)`` in floats; here they are. Outputs thus agree to a few units in
the last place of the largest output, except where ``v`` is within that of a tie, where the codes may differ by one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..granularity import check_input, compute_dtype
from ..ops.lsq import LSQ
from ..ranges import BOUNDARIES, integer_range

__all__ = ["IdentityQuan", "LsqQuan", "Quantizer"]

#: lsq-net divides by s as it is; the kernels by max(|s|, eps). So small that it never shows beside a step that was trained.
EPS = 1e-30


class Quantizer(nn.Module):
    """The base class: ``bit``, ``init_from(x)`` (does nothing) and ``forward(x)``."""

    def __init__(self, bit: int | None) -> None:
        super().__init__()
        self.bit = bit

    def init_from(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        """Set the quantizer's parameters from a tensor; here there are none."""

    def extra_repr(self) -> str:
        return f"bit={self.bit}"


class IdentityQuan(Quantizer):
    """No quantization. ``ValueError`` where ``bit`` is given, which would be lost."""

    def __init__(self, bit: int | None = None, *args: Any, **kwargs: Any) -> None:
        super().__init__(bit)
        if bit is not None:
            raise ValueError(f"IdentityQuan: bit must be None, as nothing is quantized, got {bit}")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class LsqQuan(Quantizer):
    """LSQ with a step ``s``, state dict key ``s``::

        v  = x / s,  y = s * round(clip(v, thd_neg, thd_pos))                         round half to even
        dx = g where thd_neg <= v <= thd_pos, else 0
        ds = 1 / sqrt(thd_pos * x.numel()) * sum g * (round(v) - v inside; thd_neg below; thd_pos above)

    Args:
        bit: 1 to 8.
        all_positive: codes ``0 .. 2**bit - 1``, for activations behind a ReLU.
        symmetric: signed codes without the lowest one; excludes ``all_positive``.
        per_channel: ``s`` of shape ``(C, 1, ...)`` for the first axis of what ``init_from`` gets; before ``init_from`` and
            otherwise one element.

    ``s`` must be positive: where it is not, the kernels use ``max(|s|, 1e-30)`` (:func:`fastq.set_checks` makes it raise).

    Raises:
        TypeError, ValueError: a range that cannot be, an ``x`` that does not fit ``s``; the message says what was expected.
    """

    def __init__(self, bit: int, all_positive: bool = False, symmetric: bool = False, per_channel: bool = True) -> None:
        super().__init__(bit)
        if all_positive and symmetric:
            raise ValueError(
                "LsqQuan: all_positive=True and symmetric=True exclude each other; a positive range has no symmetric form"
            )
        self.thd_neg, self.thd_pos = integer_range("LsqQuan", bit, signed=not all_positive, narrow=symmetric)
        self.per_channel = per_channel
        self.s = nn.Parameter(torch.ones(1))

    def init_from(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        """``s = 2 * mean|x| / sqrt(thd_pos)`` as a new parameter; per channel the mean of each index of the first axis."""
        magnitude = x.detach().abs()
        mean = magnitude.mean(dim=list(range(1, x.dim())), keepdim=True) if self.per_channel else magnitude.mean()
        self.s = nn.Parameter(mean * 2 / (self.thd_pos**0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        check_input("LsqQuan", x)
        step: torch.Tensor = self.s
        axis = -1
        if step.dim() > 0 and step.numel() > 1:
            if step.dim() != x.dim() or step.shape[0] != x.shape[0] or step.numel() != step.shape[0]:
                raise ValueError(
                    f"LsqQuan: s must be one element or of shape ({x.shape[0] if x.dim() else 1}, 1, ...) for x of shape "
                    f"{tuple(x.shape)}, got {tuple(step.shape)}"
                )
            step, axis = step.reshape(-1), 0
        dtype = compute_dtype(x)
        if step.dtype != dtype:
            step = step.to(dtype)
        return LSQ.apply(x, step, None, self.thd_neg, self.thd_pos, axis, 0, BOUNDARIES["closed"], "lsq-full", 1.0, EPS)

    def extra_repr(self) -> str:
        return f"bit={self.bit}, range=[{self.thd_neg}, {self.thd_pos}], per_channel={self.per_channel}, steps={self.s.numel()}"
