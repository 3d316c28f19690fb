"""The ``torch.autograd.Function`` of every quantizer, for those who build their own ops on them."""

from .ops.affine import FakeQuantizeAffine
from .ops.direct import DirectWeight
from .ops.foreach import ForeachLSQ
from .ops.lsq import LSQ

__all__ = [
    "LSQ",
    "DirectWeight",
    "FakeQuantizeAffine",
    "ForeachLSQ",
]
