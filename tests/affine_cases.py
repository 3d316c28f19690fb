"""The ways to call the drop-ins for PyTorch core's fake-quantize operators, as ``check_quantizer`` calls them."""

from typing import Any

import torch

import fastq
from fastq.testing import Case

AFFINE_CASES = [
    Case("per tensor", (7, 61), ((1,),), {"qmin": -8, "qmax": 7, "zero_point": 2}),
    Case("per tensor, 0-d", (), ((1,),), {"qmin": 0, "qmax": 255, "zero_point": 0}),
    Case("per channel, first axis", (5, 4, 90), ((5,),), {"qmin": -8, "qmax": 7, "zero_point": -3, "axis": 0}),
    Case("per channel, middle axis", (3, 6, 5, 7), ((6,),), {"qmin": 0, "qmax": 15, "zero_point": 7, "axis": 1}),
    Case("per channel, last axis", (140, 37), ((37,),), {"qmin": -128, "qmax": 127, "zero_point": 0, "axis": -1}),
]


def _call(
    module: Any, x: torch.Tensor, scale: torch.Tensor, qmin: int, qmax: int, zero_point: int, axis: int | None
) -> torch.Tensor:
    if axis is None:
        return module._fake_quantize_learnable_per_tensor_affine(x, scale, torch.full_like(scale, zero_point), qmin, qmax, 0.5)
    return module._fake_quantize_learnable_per_channel_affine(x, scale, torch.full_like(scale, zero_point), axis, qmin, qmax, 0.5)


def affine(x: torch.Tensor, scale: torch.Tensor, *, qmin: int, qmax: int, zero_point: int, axis: int | None = None) -> torch.Tensor:
    return _call(fastq, x, scale, qmin, qmax, zero_point, axis)


def affine_reference(
    x: torch.Tensor, scale: torch.Tensor, *, qmin: int, qmax: int, zero_point: int, axis: int | None = None
) -> torch.Tensor:
    return _call(fastq.reference, x, scale, qmin, qmax, zero_point, axis)
