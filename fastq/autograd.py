"""The ``torch.autograd.Function`` of every quantizer, for those who build their own ops on them."""

from .ops.affine import FakeQuantizeAffine
from .ops.channel_error import ChannelError
from .ops.dampening import Dampening
from .ops.direct import DirectWeight
from .ops.dsq import DSQ
from .ops.ewgs import EWGS
from .ops.foreach import ForeachDampening, ForeachLSQ
from .ops.frozen_lsq import FrozenLSQ
from .ops.lsq import LSQ
from .ops.noise_quant import NoiseQuant
from .ops.pact import PACT
from .ops.qil import QIL
from .ops.sat import SATWeight
from .ops.tempered import Tempered

__all__ = [
    "DSQ",
    "EWGS",
    "LSQ",
    "PACT",
    "QIL",
    "ChannelError",
    "Dampening",
    "DirectWeight",
    "FakeQuantizeAffine",
    "ForeachDampening",
    "ForeachLSQ",
    "FrozenLSQ",
    "NoiseQuant",
    "SATWeight",
    "Tempered",
]
