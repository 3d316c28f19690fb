"""From a trained, fake-quantized network to one that computes in integers: convert it, compare the two, save and load it."""

from .comparison import Comparison, LayerComparison, compare
from .conversion import convert
from .fusion import FusedLayer, Fusion, fusion_of
from .layers import (
    AffineNorm1d,
    AffineNorm2d,
    CodedLayer,
    Codes,
    IntegerConv,
    IntegerLayer,
    IntegerLinear,
    LookupConv,
    LookupLayer,
    LookupLinear,
    PackedLayer,
    WeightOnlyConv,
    WeightOnlyLayer,
    WeightOnlyLinear,
)
from .onnx import export_onnx
from .storage import FormatError, load, save

__all__ = [
    "AffineNorm1d",
    "AffineNorm2d",
    "CodedLayer",
    "Codes",
    "Comparison",
    "FormatError",
    "FusedLayer",
    "Fusion",
    "IntegerConv",
    "IntegerLayer",
    "IntegerLinear",
    "LayerComparison",
    "LookupConv",
    "LookupLayer",
    "LookupLinear",
    "PackedLayer",
    "WeightOnlyConv",
    "WeightOnlyLayer",
    "WeightOnlyLinear",
    "compare",
    "convert",
    "export_onnx",
    "fusion_of",
    "load",
    "save",
]
