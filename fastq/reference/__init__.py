"""Every quantizer in plain PyTorch, one file per method. Tests and benchmarks compare everything else with these."""

from .affine import (
    _fake_quantize_learnable_per_channel_affine,
    _fake_quantize_learnable_per_tensor_affine,
    fake_quantize_per_channel_affine,
    fake_quantize_per_tensor_affine,
)
from .channel_error import channel_error, channel_error_surrogate, channel_stats
from .dampening import dampening, dampening_by_hand
from .direct import direct_update_, direct_weight
from .dsq import dsq, dsq_surrogate
from .ewgs import ewgs, ewgs_surrogate
from .foreach import foreach_dampening, foreach_lsq, foreach_oscillation_step_
from .frozen_lsq import frozen_lsq, frozen_lsq_surrogate
from .lsq import lsq, lsq_surrogate
from .noise_quant import noise_quant
from .oscillation import OscillationTrace, oscillation_step_
from .pact import pact, pact_surrogate
from .qil import qil, qil_surrogate
from .sat import sat_weight, sat_weight_surrogate
from .tempered import tempered, tempered_surrogate

__all__ = [
    "OscillationTrace",
    "_fake_quantize_learnable_per_channel_affine",
    "_fake_quantize_learnable_per_tensor_affine",
    "channel_error",
    "channel_error_surrogate",
    "channel_stats",
    "dampening",
    "dampening_by_hand",
    "direct_update_",
    "direct_weight",
    "dsq",
    "dsq_surrogate",
    "ewgs",
    "ewgs_surrogate",
    "fake_quantize_per_channel_affine",
    "fake_quantize_per_tensor_affine",
    "foreach_dampening",
    "foreach_lsq",
    "foreach_oscillation_step_",
    "frozen_lsq",
    "frozen_lsq_surrogate",
    "lsq",
    "lsq_surrogate",
    "noise_quant",
    "oscillation_step_",
    "pact",
    "pact_surrogate",
    "qil",
    "qil_surrogate",
    "sat_weight",
    "sat_weight_surrogate",
    "tempered",
    "tempered_surrogate",
]
