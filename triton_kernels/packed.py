"""Fields of packed weights in registers: bytes of the layout ``tiles`` (``fastq/packing.py``) as int8 or floating point numbers.

Byte j of a tile's 64 holds f = 8 / BITS fields, those of the elements j, j + 64, ... of the tile; BITS is 2, 4 or 8 (3 are widened
to 4 in this layout). Part p is the field of element j + 64 * p.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastq.engine.call import Operand
from fastq.packing import layout_of, pack_tiles, unpack


def tiles_of(w: Operand) -> torch.Tensor:
    """The packed bytes as int8 in the layout ``tiles``: a weight on a GPU has it, one on the CPU (for the interpreter) has not."""
    layout = layout_of(w.data.device)
    data = w.data if layout == "tiles" else pack_tiles(unpack(layout, w.data, w.bits, w.n, w.k), w.bits)
    return data.view(torch.int8)


@triton.jit
def field(stored, PART: tl.constexpr, BITS: tl.constexpr):
    """Fields of part PART of int8 ``stored``, sign-extended: int8."""
    if BITS == 8:
        return stored
    else:
        return (stored << (8 - BITS - PART * BITS)).to(tl.int8) >> (8 - BITS)


@triton.jit
def centred(stored, zero, PART: tl.constexpr, BITS: tl.constexpr, S: tl.constexpr):
    """``f - t`` as ``S``, exactly: float32, float16 or bfloat16. ``zero`` is ``t`` as float32, integers of at most 255.

    The field without its sign, ``u = f + 2**(BITS-1)``, goes into the low bits of a number of exponent 0 in units of the last
    place; what is subtracted then is ``2**(BITS-1) + t`` and that number. No conversion from integers, which are slow.
    """
    MIDDLE: tl.constexpr = 2 ** (BITS - 1)
    if S == tl.float32 or (BITS == 8 and S == tl.bfloat16):
        # bfloat16 has 8 bits of significand: 128 + u would not be exact for u >= 128, f - t is
        u = ((stored.to(tl.int32) >> (PART * BITS)) & (2**BITS - 1)) ^ MIDDLE
        return ((u | 0x4B000000).to(tl.float32, bitcast=True) - (zero + (8388608.0 + MIDDLE))).to(S)
    else:
        u = ((stored.to(tl.int16) >> (PART * BITS)) & (2**BITS - 1)) ^ MIDDLE
        if S == tl.bfloat16:
            return (u | 0x4300).to(tl.bfloat16, bitcast=True) - (zero + (128.0 + MIDDLE)).to(tl.bfloat16)
        else:
            return (u | 0x6400).to(tl.float16, bitcast=True) - (zero + (1024.0 + MIDDLE)).to(tl.float16)
