"""Batch norm in evaluation as one multiplication and one addition, with the same two numbers in training and in deployment."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import nn

from .layers import taken_over

__all__ = ["AFFINE", "BatchNorm1d", "BatchNorm2d", "affine_of"]


def _affine(norm: Any) -> tuple[torch.Tensor, torch.Tensor]:
    deviation = (norm.running_var.double() + norm.eps).sqrt()
    multiplier = (torch.ones_like(deviation) if norm.weight is None else norm.weight.double()) / deviation
    shift = norm.running_mean.double() * multiplier
    addend = -shift if norm.bias is None else norm.bias.double() - shift
    return multiplier.float(), addend.float()


@torch.no_grad()
def affine_of(norm: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """``multiplier`` and ``addend``, float32 ``(C,)``: what a batch norm with running statistics computes in evaluation::

        y = x * multiplier + addend         multiplier = weight / sqrt(running_var + eps), addend = bias - running_mean * multiplier

    Both are computed in float64 and rounded once. torch's own kernels order these operations otherwise, an ulp or two away.
    ``norm``: a ``torch.nn.BatchNorm1d``, ``2d`` or ``3d``. Raises ``ValueError`` where it has no running statistics.
    """
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError(f"{type(norm).__name__} without running statistics is no affine: its output depends on the batch")
    return _affine(norm)


class _Affine:
    """What the two have in common."""

    _float: type[nn.Module]
    training: bool
    running_mean: torch.Tensor | None
    running_var: torch.Tensor | None
    _check_input_dim: Any

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.training or self.running_mean is None or self.running_var is None:
            return super().forward(input)  # type: ignore[misc, no-any-return]
        self._check_input_dim(input)
        multiplier, addend = (t.view(-1, *(1,) * (input.dim() - 2)) for t in _affine(self))
        x = input if input.dtype == torch.float64 else input.float()
        return (x * multiplier + addend).to(input.dtype)

    @classmethod
    def from_float(cls, module: Any) -> Self:
        """With the very parameters, buffers, hooks, attributes and mode of ``module``, torch's batch norm; it stays as it was.

        Raises ``TypeError`` for another type, ``ValueError`` for a forward that was replaced on the instance.
        """
        new: Self = taken_over(cls, module)
        return new


class BatchNorm1d(_Affine, nn.BatchNorm1d):
    """``torch.nn.BatchNorm1d``, in evaluation ``x * multiplier + addend`` with the numbers of :func:`affine_of`, float32.

    These are the bits of the affine that ``fastq.convert`` puts into the epilogue of an integer product. In training, and without
    running statistics, it is torch's. Its output has the dtype of its input.
    """

    _float = nn.BatchNorm1d


class BatchNorm2d(_Affine, nn.BatchNorm2d):
    """``torch.nn.BatchNorm2d``, in evaluation ``x * multiplier + addend`` with the numbers of :func:`affine_of`, float32.

    These are the bits of the affine that ``fastq.convert`` puts into the epilogue of an integer product. In training, and without
    running statistics, it is torch's. Its output has the dtype of its input.
    """

    _float = nn.BatchNorm2d


#: The form of each type in a network of integer forward passes.
AFFINE: dict[type[nn.Module], Any] = {norm._float: norm for norm in (BatchNorm1d, BatchNorm2d)}
