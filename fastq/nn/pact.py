"""The PACT quantizer as a module."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..granularity import divided, normalize_axis
from ..ops import pact
from ..ops.pact import check
from ..ranges import check_eps, check_flags, level_count
from ..reference.lsq import effective_step
from ..reference.pact import codes
from .base import FirstBatch, Grid

__all__ = ["PACT"]

#: The first clip before a layer of either kind (Jin et al., https://arxiv.org/abs/1912.10207).
INITIAL = {"conv": 8.0, "linear": 10.0}


class PACT(FirstBatch):
    """Clip to a learned range and fake-quantize: :func:`fastq.pact` with its state.

    The clip stays positive by parametrisation: the kernel uses ``max(|alpha|, eps)``, with the sign of alpha on its gradient.
    A projection would change a parameter behind the optimizer's back, and a logarithm would change what a learning rate and
    the paper's values of alpha mean. No weight decay belongs on ``alpha``.

    Args:
        bits: 1 to 8.
        calibrated, two_sided, eps: as in :func:`fastq.pact`. ``two_sided=None``: the first batch decides, and where it has a
            negative element, both sides are quantized.
        init: the first clip, positive: ``"conv"`` 8.0 and ``"linear"`` 10.0, for the input of such a layer; or a number.
        axis: one clip per index of this axis.
        group_size: one clip per so many consecutive elements of the last axis.
        shape: of alpha: ``(C,)`` with ``axis``, ``x.shape[:-1] + (K // group_size,)`` with ``group_size``; default ``(1,)``.

    Input: ``x`` as :func:`fastq.pact` takes it. Output: of its shape, dtype and layout.

    Raises:
        TypeError, ValueError: an argument, or later an ``x``, does not fit; the message says what was expected.

    Attributes:
        alpha: parameter, float32 whatever ``.to()`` or ``.half()`` the model gets (float64 after ``.double()``).
        two_sided: bool; with None given, what the first batch has decided, and False before.
        initialized: buffer, uint8; 1 from the start unless ``two_sided`` is None. is_signed: buffer, if it is.
    """

    alpha: nn.Parameter
    learned = ("alpha",)

    def __init__(
        self, bits: int, *, calibrated: bool = True, two_sided: bool | None = False, init: float | str = "conv",
        axis: int | None = None, group_size: int | None = None, shape: tuple[int, ...] = (1,), eps: float = 1e-8,
    ) -> None:  # fmt: skip
        level_count("PACT", bits)
        check_flags("PACT", calibrated=calibrated, two_sided=bool(two_sided) if two_sided is None else two_sided)
        check_eps("PACT", eps)
        super().__init__(axis, group_size, shape, {"alpha": _first(init)}, signed=two_sided)
        self.bits, self.calibrated, self.init, self.eps = bits, calibrated, init, eps
        if two_sided is not None:
            self.initialized.fill_(True)
            self._initialized = True

    @property
    def two_sided(self) -> bool:
        return self._signed

    def _first_values(self, rows: torch.Tensor) -> list[torch.Tensor]:
        return [self.alpha.detach().float().flatten()]  # what ``init`` says, not the batch

    def _change_bits(self, bits: int) -> None:
        level_count("PACT", bits)
        self.bits = bits

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._ready(x)
        (alpha,) = self._parameters_for(x)
        return pact(
            x, alpha, bits=self.bits, calibrated=self.calibrated, two_sided=self.two_sided, axis=self.axis,
            group_size=self.group_size, eps=self.eps,
        )  # fmt: skip

    @torch.no_grad()
    def codes(self, x: torch.Tensor) -> torch.Tensor:
        """The integer codes of ``x`` as int32, from 0, two-sided from ``-2**(bits-1)``; NaN has an arbitrary one."""
        self._require_first_batch("codes")
        (alpha,) = self._parameters_for(x)
        where = normalize_axis("PACT", x, self.axis, self.group_size)
        check(x, alpha, *where)
        return codes(x, alpha, level_count("PACT", self.bits), self.two_sided, *where, self.eps)

    def grid(self, x: torch.Tensor | None = None) -> Grid:
        """``y = A/L * k``, ``k`` from 0 to L; two-sided ``y = A/L * (2*k + 1)``, ``k`` from ``-2**(bits-1)``."""
        self._require_first_batch("grid")
        levels = level_count("PACT", self.bits)
        low = -(2 ** (self.bits - 1)) if self.two_sided else 0
        return Grid(low, low + levels, divided(self.effective_alpha(), levels), odd=self.two_sided)

    def effective_alpha(self) -> torch.Tensor:
        """``max(|alpha|, eps)``: the clip that the kernels use."""
        return effective_step(self.alpha.detach(), self.eps)

    def extra_repr(self) -> str:
        return (
            f"bits={self.bits}, {self._grain()}, clips={self.alpha.numel()}, calibrated={self.calibrated}, "
            f"two_sided={self.two_sided}, init={self.init!r}"
        )


def _first(init: Any) -> float:
    if isinstance(init, str):
        if init in INITIAL:
            return INITIAL[init]
        raise ValueError(f"PACT: init must be one of {', '.join(INITIAL)}, or a positive number, got {init!r}")
    if isinstance(init, bool) or not isinstance(init, (int, float)):
        raise TypeError(f"PACT: init must be one of {', '.join(INITIAL)}, or a positive number, got {init!r}")
    if not 0 < init < float("inf"):
        raise ValueError(f"PACT: init must be one of {', '.join(INITIAL)}, or a positive number, got {init}")
    return float(init)
