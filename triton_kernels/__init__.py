"""The quantizers in Triton, for GPUs of any make and for machines without a compiler; imported as ``fastq.triton_kernels``.

Importing it registers every method's operators. A method is a file of its name; ``elementwise`` has the loops,
``numeric`` the exact arithmetic. Under ``TRITON_INTERPRET=1`` (set before the first import) the same code runs on the CPU.
"""

from . import affine, elementwise, lsq

__all__ = ["methods"]


def methods() -> list[elementwise.Method]:
    """Every method, for the tests that compile them all. A new method is one entry here."""
    return [lsq.LSQ, lsq.LSQ_OFFSET, affine.AFFINE, affine.AFFINE_PER_TENSOR, affine.AFFINE_PER_CHANNEL]
