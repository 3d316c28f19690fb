"""SAT's weight quantizer as a module."""

from __future__ import annotations

import torch

from ..granularity import check_input, compute_dtype, divided
from ..ops import sat_weight
from ..ops.sat import check_options, forward_with_scale, resolve
from ..reference.sat import levels
from .base import Grid, Quantizer

__all__ = ["SATWeight"]


class SATWeight(Quantizer):
    """Quantize a weight tensor at a scale at which the network trains: :func:`fastq.sat_weight` as a module. It has no state.

    Nothing is learned but the weight, and so there is no first batch and nothing to guard. ``bits`` is an attribute that may be
    changed: None for the clamped full-precision pretraining, then the number of bits to finetune at.

    Args:
        bits, scheme, rescale, grad_through_max, n_out: as in :func:`fastq.sat_weight`. ``rescale="constant"`` is for a layer with
            no normalization behind it, ``"none"`` for one with.

    Input: a weight. Output: of its shape, dtype and layout.

    Raises:
        TypeError, ValueError: an argument, or later a weight, does not fit; the message says what was expected.

    Paper: Jin et al., https://arxiv.org/abs/1912.10207.
    """

    def __init__(
        self, bits: int | None, *, scheme: str = "round", rescale: str = "constant", grad_through_max: bool = True,
        n_out: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        check_options("SATWeight", bits, scheme, rescale, n_out)
        self.bits, self.scheme, self.rescale, self.grad_through_max, self.n_out = bits, scheme, rescale, grad_through_max, n_out

    def set_bits(self, bits: int | None) -> None:
        """Go on with another width, or, with None, with the clamped weights of full-precision pretraining."""
        check_options("SATWeight", bits, self.scheme, self.rescale, self.n_out)
        self.bits = bits

    def forward(self, w: torch.Tensor) -> torch.Tensor:
        return sat_weight(
            w, bits=self.bits, scheme=self.scheme, rescale=self.rescale, grad_through_max=self.grad_through_max, n_out=self.n_out
        )

    def _quantized(self, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """``y`` unrounded by a half precision, ``s = kappa / L``, and ``y / s``, an integer."""
        if self.bits is None:
            raise TypeError("SATWeight: it has no integer codes with bits=None, in full-precision pretraining; give it bits first")
        check_input("SATWeight", w)
        w = w.detach().to(compute_dtype(w))
        arguments = resolve(w, self.bits, self.scheme, self.rescale, self.grad_through_max, self.n_out)
        y, scale, _, _ = forward_with_scale(w, *arguments[:4])
        step = divided(scale[1], levels(self.bits, arguments[1])).to(w.dtype).reshape(1)
        return y, step, torch.where(step == 0, 0.0, y / step).round()

    @torch.no_grad()
    def codes(self, x: torch.Tensor) -> torch.Tensor:
        """The integer codes of the weight ``x`` as int32, from ``-2**(bits-1)`` to ``2**(bits-1) - 1``.

        They are those of the forward pass, whose tanh is not torch's to the last bit. NaN anywhere gives arbitrary ones. Where
        ``y`` is 0 throughout, they are 0. Raises ``TypeError`` with ``bits=None``, and as the forward pass.
        """
        return (self._quantized(x)[2] / 2).floor().to(torch.int32)

    @torch.no_grad()
    def grid(self, x: torch.Tensor | None = None) -> Grid:
        """Schemes "round" and "centered": ``y = kappa/L * (2*k + 1)``; "floor": ``y = 2*kappa/L * k``; ``kappa`` as for ``x``.

        Raises ``TypeError`` with ``bits=None`` or without ``x``, and as the forward pass.
        """
        if x is None:
            raise TypeError("SATWeight: grid needs the weight, grid(weight): the scale follows from it")
        step, half = self._quantized(x)[1], 2 ** (self.bits - 1) if self.bits else 0
        even = self.scheme == "floor"
        return Grid(-half, half - 1, 2 * step if even else step, odd=not even, formula=False)

    @torch.no_grad()
    def effective_variance(self, w: torch.Tensor) -> torch.Tensor:
        """VAR of the weights that the layer computes with, unbiased, fp64: ``1 / n_out`` with ``rescale="constant"``."""
        return self(w).double().var()

    def extra_repr(self) -> str:
        return (
            f"bits={self.bits}, scheme={self.scheme!r}, rescale={self.rescale!r}, grad_through_max={self.grad_through_max}, "
            f"n_out={self.n_out}"
        )
