"""From a trained, fake-quantized network to one that computes in integers: convert it, compare the two, save and load it."""

from .comparison import Comparison, LayerComparison, compare
from .conversion import convert
from .layers import CodedLayer, Codes, IntegerConv, IntegerLayer, IntegerLinear, LookupConv, LookupLayer, LookupLinear
from .storage import FormatError, load, save

__all__ = [
    "CodedLayer",
    "Codes",
    "Comparison",
    "FormatError",
    "IntegerConv",
    "IntegerLayer",
    "IntegerLinear",
    "LayerComparison",
    "LookupConv",
    "LookupLayer",
    "LookupLinear",
    "compare",
    "convert",
    "load",
    "save",
]
