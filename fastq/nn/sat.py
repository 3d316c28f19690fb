"""SAT's weight quantizer as a module."""

from __future__ import annotations

import torch

from ..ops import sat_weight
from ..ops.sat import check_options
from .base import Quantizer

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

    @torch.no_grad()
    def effective_variance(self, w: torch.Tensor) -> torch.Tensor:
        """VAR of the weights that the layer computes with, unbiased, fp64: ``1 / n_out`` with ``rescale="constant"``."""
        return self(w).double().var()

    def extra_repr(self) -> str:
        return (
            f"bits={self.bits}, scheme={self.scheme!r}, rescale={self.rescale!r}, grad_through_max={self.grad_through_max}, "
            f"n_out={self.n_out}"
        )
