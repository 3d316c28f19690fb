"""Every quantizer in plain PyTorch, one file per method. Tests and benchmarks compare everything else with these."""

from .affine import (
    _fake_quantize_learnable_per_channel_affine,
    _fake_quantize_learnable_per_tensor_affine,
    fake_quantize_per_channel_affine,
    fake_quantize_per_tensor_affine,
)
from .direct import direct_update_, direct_weight
from .foreach import foreach_lsq
from .lsq import lsq, lsq_surrogate

__all__ = [
    "_fake_quantize_learnable_per_channel_affine",
    "_fake_quantize_learnable_per_tensor_affine",
    "direct_update_",
    "direct_weight",
    "fake_quantize_per_channel_affine",
    "fake_quantize_per_tensor_affine",
    "foreach_lsq",
    "lsq",
    "lsq_surrogate",
]
