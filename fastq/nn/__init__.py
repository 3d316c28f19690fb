"""Modules: the quantizer with its state, and layers that have one on their input and one on their weight."""

from .direct import DirectConv1d, DirectConv2d, DirectLinear, DirectOptimizer, DirectWeight
from .layers import QUANTIZED, QuantConv1d, QuantConv2d, QuantLinear
from .quantizer import LSQ

__all__ = [
    "LSQ",
    "QUANTIZED",
    "DirectConv1d",
    "DirectConv2d",
    "DirectLinear",
    "DirectOptimizer",
    "DirectWeight",
    "QuantConv1d",
    "QuantConv2d",
    "QuantLinear",
]
