"""From a trained, fake-quantized network to one that computes in integers: convert it, compare the two, save and load it."""

from .conversion import convert
from .layers import IntegerConv, IntegerLayer, IntegerLinear

__all__ = ["IntegerConv", "IntegerLayer", "IntegerLinear", "convert"]
