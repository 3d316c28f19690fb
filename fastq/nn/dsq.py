"""The DSQ quantizer as a module."""

from __future__ import annotations

import torch
from torch import nn

from ..granularity import normalize_axis
from ..ops import dsq
from ..ops.dsq import check, check_alpha, check_bits
from ..reference.dsq import codes, step_width
from .base import FirstBatch, Grid

__all__ = ["DSQ"]


class DSQ(FirstBatch):
    """Fake-quantize between learned bounds with the gradient of a soft staircase: :func:`fastq.dsq` with its state.

    The first batch sets the bounds to its smallest and largest value (per channel or group, each its own), so that nothing is
    clipped at first; where these are equal or not finite, to -1 and 1. The guards are those of the kernel: bounds act as at least
    1e-8 apart, and ``alpha`` as brought into [1e-4, 0.99], with the gradient at the value used. A projection would change a
    parameter behind the optimizer's back, and a sigmoid would change what the paper's values of alpha and a learning rate mean.

    Args:
        bits: 1 to 8.
        alpha: the first softness, between 0 (hard) and 1 (a straight line); the authors start at 0.2.
        learn_alpha: whether ``alpha`` is a parameter; False keeps the number.
        axis: one pair of bounds (and alpha) per index of this axis.
        group_size: one pair per so many consecutive elements of the last axis.
        shape: of each parameter: ``(C,)`` with ``axis``, ``x.shape[:-1] + (K // group_size,)`` with ``group_size``; else ``(1,)``.

    Input: ``x`` as :func:`fastq.dsq` takes it. Output: of its shape, dtype and layout.

    Raises:
        TypeError, ValueError: an argument, or later an ``x``, does not fit; the message says what was expected.

    Attributes:
        lower, upper, alpha: parameters, float32 whatever ``.to()`` or ``.half()`` the model gets (float64 after ``.double()``);
            ``alpha`` is None where it is not learned.
        initialized: buffer, uint8, 0 or 1.

    The gradients are a reconstruction, as :func:`fastq.dsq` says. Paper: Gong et al., ICCV 2019, https://arxiv.org/abs/1908.05033.
    """

    lower: nn.Parameter
    upper: nn.Parameter
    alpha: nn.Parameter | None
    learned = ("lower", "upper", "alpha")

    def __init__(
        self, bits: int, *, alpha: float = 0.2, learn_alpha: bool = True, axis: int | None = None, group_size: int | None = None,
        shape: tuple[int, ...] = (1,),
    ) -> None:  # fmt: skip
        check_bits("DSQ", bits)
        if isinstance(alpha, torch.Tensor):
            raise TypeError("DSQ: alpha must be a float between 0 and 1, got Tensor")
        check_alpha("DSQ", alpha)
        if not isinstance(learn_alpha, bool):
            raise TypeError(f"DSQ: learn_alpha must be True or False, got {learn_alpha!r}")
        super().__init__(axis, group_size, shape, {"lower": -1.0, "upper": 1.0, "alpha": alpha if learn_alpha else None})
        self.bits, self.first_alpha = bits, float(alpha)

    def _first_values(self, rows: torch.Tensor) -> list[torch.Tensor]:
        lower, upper = rows.amin(1), rows.amax(1)
        good = (upper > lower) & lower.isfinite() & upper.isfinite()
        values = [torch.where(good, lower, -1.0), torch.where(good, upper, 1.0)]
        return values if self.alpha is None else [*values, torch.full_like(lower, self.first_alpha)]

    def _change_bits(self, bits: int) -> None:
        check_bits("DSQ", bits)
        self.bits = bits

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._ready(x)
        lower, upper, alpha = self._parameters_for(x)
        soft = self.first_alpha if alpha is None else alpha
        return dsq(x, lower, upper, bits=self.bits, alpha=soft, axis=self.axis, group_size=self.group_size)

    @torch.no_grad()
    def codes(self, x: torch.Tensor) -> torch.Tensor:
        """The integer codes of ``x`` as int32, from 0; NaN has an arbitrary one.

        Raises ``RuntimeError`` before the first batch, ``TypeError`` or ``ValueError`` where ``x`` does not fit the quantizer.
        """
        self._require_first_batch("codes")
        lower, upper, _ = self._parameters_for(x)
        where = normalize_axis("DSQ", x, self.axis, self.group_size)
        check("DSQ", x, lower, upper, self.first_alpha, *where)
        return codes(x, lower, upper, check_bits("DSQ", self.bits), *where)

    def grid(self, x: torch.Tensor | None = None) -> Grid:
        """``y = D * k + lower``, ``k`` from 0 to L, ``D = max(upper - lower, eps) / L``. Raises as :meth:`codes`."""
        self._require_first_batch("grid")
        levels, lower = check_bits("DSQ", self.bits), self.lower.detach()
        return Grid(0, levels, step_width(lower, self.upper.detach(), levels), lower)

    def extra_repr(self) -> str:
        return (
            f"bits={self.bits}, {self._grain()}, bounds={self.lower.numel()}, alpha={self.first_alpha:.4g}, "
            f"learn_alpha={self.alpha is not None}, initialized={self._initialized}"
        )
