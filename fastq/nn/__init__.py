"""Modules: the quantizer with its state, and layers that have one on their input and one on their weight."""

from .base import Grid, Quantizer
from .batch_norm import BatchNorm1d, BatchNorm2d
from .channel_error import ChannelError
from .direct import DIRECT, DirectConv1d, DirectConv2d, DirectLinear, DirectOptimizer, DirectWeight, open_deltas
from .dsq import DSQ
from .ewgs import EWGS, hessian_delta, set_hessian_deltas
from .layers import QUANTIZED, QuantConv1d, QuantConv2d, QuantLinear
from .noise_quant import NoiseQuant
from .oscillation import OscillationLSQ, step_oscillations_
from .pact import PACT
from .qil import QIL
from .quantizer import LSQ
from .sat import SATWeight
from .tempered import Tempered

__all__ = [
    "DIRECT",
    "DSQ",
    "EWGS",
    "LSQ",
    "PACT",
    "QIL",
    "QUANTIZED",
    "BatchNorm1d",
    "BatchNorm2d",
    "ChannelError",
    "DirectConv1d",
    "DirectConv2d",
    "DirectLinear",
    "DirectOptimizer",
    "DirectWeight",
    "Grid",
    "NoiseQuant",
    "OscillationLSQ",
    "QuantConv1d",
    "QuantConv2d",
    "QuantLinear",
    "Quantizer",
    "SATWeight",
    "Tempered",
    "hessian_delta",
    "open_deltas",
    "set_hessian_deltas",
    "step_oscillations_",
]
