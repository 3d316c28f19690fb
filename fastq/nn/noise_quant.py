"""The quantizer that adds noise while training, as a module."""

from __future__ import annotations

from typing import Any

import torch

from ..ops import noise_quant
from ..ops.noise_quant import check_kind
from ..seeds import new_seed, take_seed
from .quantizer import LSQ

__all__ = ["NoiseQuant"]


class NoiseQuant(LSQ):
    """Add noise of the size of a rounding error while training, and round in evaluation: :func:`fastq.noise_quant` with its state.

    In evaluation mode it is a :class:`fastq.nn.LSQ` with this step and the boundary "open", and so it is converted. In training
    mode each call draws new noise: it takes the seed and adds one to it, on its device, so that two runs from one state give the
    same numbers, and a captured CUDA graph draws anew each time it runs. (Activation checkpointing calls the module twice, and so
    gets other noise the second time.) The step stays positive by parametrisation, as in :class:`fastq.nn.LSQ`.

    Args:
        bits, signed, narrow, axis, group_size, shape, init, eps: as in :class:`fastq.nn.LSQ`; kinds without a range use ``bits`` in
            evaluation alone.
        kind, noise: as in :func:`fastq.noise_quant`.
        grad_scale: the factor of the step's gradient, by default 1: with noise it is a true derivative.
        seed: the first one, any int that 64 bits hold; None draws one from torch's generator, so ``torch.manual_seed`` settles it.

    Input: ``x`` as :func:`fastq.noise_quant` takes it. Output: of its shape, dtype and layout.

    Raises:
        TypeError, ValueError: an argument, or later an ``x``, does not fit; the message says what was expected.

    Attributes:
        step: parameter, float32 whatever ``.to()`` or ``.half()`` the model gets (float64 after ``.double()``).
        seed: buffer, one int64 element: of the next training call.
        initialized, is_signed: buffers, as in :class:`fastq.nn.LSQ`.
    """

    on_grid = False
    seed: torch.Tensor

    def __init__(
        self, bits: int | tuple[int, int], *, kind: str = "diffq", noise: str | None = None, signed: bool | None = True,
        narrow: bool = False, axis: int | None = None, group_size: int | None = None, shape: tuple[int, ...] = (1,),
        init: str = "lsq", grad_scale: float | str = 1.0, eps: float = 1e-8, seed: int | None = None,
    ) -> None:  # fmt: skip
        grain: dict[str, Any] = {"axis": axis, "group_size": group_size, "shape": shape}
        super().__init__(bits, signed=signed, narrow=narrow, init=init, grad_scale=grad_scale, eps=eps, **grain)
        self.noise = check_kind("NoiseQuant", kind, noise)
        self.kind = kind
        self.register_buffer("seed", new_seed("NoiseQuant", seed).to(self.step.device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._ready(x)
        step, _ = self._parameters_for(x)
        return noise_quant(
            x, step, bits=self._range(), kind=self.kind, noise=self.noise, training=self.training,
            seed=take_seed(self.seed) if self.training else None, axis=self.axis, group_size=self.group_size,
            grad_scale=self.grad_scale, eps=self.eps,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, kind={self.kind!r}, noise={self.noise!r}"
