"""From a trained, fake-quantized network to one that computes in integers: convert it, compare the two, save and load it."""

from .comparison import Comparison, LayerComparison, compare
from .conversion import convert
from .layers import IntegerConv, IntegerLayer, IntegerLinear
from .storage import FormatError, load, save

__all__ = [
    "Comparison",
    "FormatError",
    "IntegerConv",
    "IntegerLayer",
    "IntegerLinear",
    "LayerComparison",
    "compare",
    "convert",
    "load",
    "save",
]
