"""The quantizers in Triton, for the GPUs that ``torch.cuda`` serves, also without a C++ compiler; imported as
``fastq.triton_kernels``.

Importing it registers every method's operators. A method is a file of its name; ``elementwise`` has the loops,
``numeric`` the exact arithmetic. Under ``TRITON_INTERPRET=1`` (set before the first import) the same code runs on the CPU.
"""

from . import direct as direct
from . import float_gemm as float_gemm
from . import foreach as foreach
from . import int_conv as int_conv
from . import int_gemm as _int_gemm  # noqa: F401  registers its operator
from . import quantize as quantize
from . import sat as _sat  # noqa: F401  registers its operators
from .affine import AFFINE, AFFINE_PER_CHANNEL, AFFINE_PER_TENSOR
from .channel_error import CHANNEL_ERROR, CHANNEL_STATS
from .dampening import DAMPENING, DAMPENING_GRADIENT
from .dsq import DSQ, DSQ_ALPHA
from .elementwise import Method
from .ewgs import EWGS
from .frozen_lsq import FROZEN_LSQ
from .lsq import LSQ, LSQ_OFFSET
from .noise_quant import NOISE_QUANT, NOISE_QUANT_CLIPPED
from .oscillation import OSCILLATION
from .pact import PACT, PACT_PLAIN, PACT_TWO_SIDED, PACT_TWO_SIDED_PLAIN
from .qil import QIL_ACTIVATION, QIL_POWER, QIL_WEIGHT
from .tempered import TEMPERED, TEMPERED_GRADIENT, TEMPERED_STILL

__all__ = ["methods"]


def methods() -> list[Method]:
    """Every method, for the tests that compile them all. A new method is one entry here."""
    return [
        LSQ,
        LSQ_OFFSET,
        EWGS,
        PACT,
        PACT_PLAIN,
        PACT_TWO_SIDED,
        PACT_TWO_SIDED_PLAIN,
        QIL_ACTIVATION,
        QIL_WEIGHT,
        QIL_POWER,
        AFFINE,
        AFFINE_PER_TENSOR,
        AFFINE_PER_CHANNEL,
        CHANNEL_ERROR,
        CHANNEL_STATS,
        DAMPENING,
        DAMPENING_GRADIENT,
        FROZEN_LSQ,
        OSCILLATION,
        DSQ,
        DSQ_ALPHA,
        NOISE_QUANT,
        NOISE_QUANT_CLIPPED,
        TEMPERED,
        TEMPERED_GRADIENT,
        TEMPERED_STILL,
    ]
