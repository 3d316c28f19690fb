"""The ``torch.autograd.Function`` of every quantizer, for those who build their own ops on them."""

from .ops.affine import FakeQuantizeAffine
from .ops.dampening import Dampening
from .ops.direct import DirectWeight
from .ops.foreach import ForeachLSQ
from .ops.frozen_lsq import FrozenLSQ
from .ops.lsq import LSQ

__all__ = [
    "LSQ",
    "Dampening",
    "DirectWeight",
    "FakeQuantizeAffine",
    "ForeachLSQ",
    "FrozenLSQ",
]
