"""The public ops. Each file: the public function, its ``torch.autograd.Function``, the operators' schemas and fakes."""

from .affine import (
    _fake_quantize_learnable_per_channel_affine,
    _fake_quantize_learnable_per_tensor_affine,
    fake_quantize_per_channel_affine,
    fake_quantize_per_tensor_affine,
)
from .channel_error import ChannelStats, channel_error, channel_stats
from .dampening import dampening
from .direct import direct_update_, direct_weight
from .dsq import dsq
from .ewgs import ewgs
from .foreach import foreach_dampening, foreach_lsq, foreach_oscillation_step_
from .frozen_lsq import frozen_lsq
from .int_conv2d import int_conv2d
from .int_linear import int_linear
from .lsq import lsq
from .noise_quant import noise_quant
from .oscillation import oscillation_step_
from .pact import pact
from .qil import qil
from .quantize import quantize, quantize_per_token
from .sat import sat_weight
from .tempered import tempered

__all__ = [
    "ChannelStats",
    "_fake_quantize_learnable_per_channel_affine",
    "_fake_quantize_learnable_per_tensor_affine",
    "channel_error",
    "channel_stats",
    "dampening",
    "direct_update_",
    "direct_weight",
    "dsq",
    "ewgs",
    "fake_quantize_per_channel_affine",
    "fake_quantize_per_tensor_affine",
    "foreach_dampening",
    "foreach_lsq",
    "foreach_oscillation_step_",
    "frozen_lsq",
    "int_conv2d",
    "int_linear",
    "lsq",
    "noise_quant",
    "oscillation_step_",
    "pact",
    "qil",
    "quantize",
    "quantize_per_token",
    "sat_weight",
    "tempered",
]
