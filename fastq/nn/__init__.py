"""Modules: the quantizer with its state, and layers that have one on their input and one on their weight."""

from .layers import QUANTIZED, QuantConv1d, QuantConv2d, QuantLinear
from .quantizer import LSQ

__all__ = ["LSQ", "QUANTIZED", "QuantConv1d", "QuantConv2d", "QuantLinear"]
