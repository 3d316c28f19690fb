"""Noise that belongs to a seed and a place, in Triton: ``fastq/reference/philox.py`` has the formulas, which everything here gives
the bits of. Element ``i`` in logical row-major order has word ``i % 4`` of Philox4x32-10 with counter ``i // 4``; all in fp32.
"""

from __future__ import annotations

import triton
import triton.language as tl

UNIFORM, RADEMACHER = tl.constexpr(0), tl.constexpr(1)


@triton.jit
def words(counter, seed):
    """Four words, as unsigned 32-bit integers, for 64-bit counters."""
    low, high = counter.to(tl.uint32), (counter >> 32).to(tl.uint32)
    zero = tl.zeros_like(low)
    return tl.philox(seed, low, high, zero, zero, n_rounds=10)


@triton.jit
def _uniform(word):
    """``(k + 0.5) * 2**-23 - 0.5``, ``k = word >> 9``, exactly: ``1 + k * 2**-23`` has the bits of k behind those of 1."""
    return ((word >> 9) | 0x3F800000).to(tl.float32, bitcast=True) - 1.5 + 5.9604644775390625e-8


@triton.jit
def _rademacher(word):
    return ((word & 0x80000000) | 0x3F800000).to(tl.float32, bitcast=True)


@triton.jit
def _log(u):
    """``log(u)``, u in (0, 1]: the series of ``2 * atanh((m - 1) / (m + 1))``, ``u = 2**e * m`` with sqrt(1/2) <= m < sqrt(2)."""
    bits = u.to(tl.int32, bitcast=True)
    e = (bits - (0x3FB504F3 - 0x00800000)) >> 23
    m = (bits - (e << 23)).to(tl.float32, bitcast=True)
    f = tl.div_rn(m - 1.0, m + 1.0)
    h = f * f
    series = h * (0.6666666666666666 + h * (0.4 + h * (0.2857142857142857 + h * 0.2222222222222222)))
    return e.to(tl.float32) * 0.6931471805599453 + (2.0 * f + f * series)


@triton.jit
def _radius(word):
    return tl.sqrt_rn(_log(_uniform(word) + 0.5) * -2.0)


@triton.jit
def _sine_and_cosine(word):
    t = _uniform(word << 2) * 1.5707963267948966
    h = t * t
    s = t + t * (h * (-0.16666666666666666 + h * (0.008333333333333333 + h * (-0.0001984126984126984 + h * 2.7557319223985893e-6))))
    c = 1.0 + h * (
        -0.5 + h * (0.041666666666666664 + h * (-0.001388888888888889 + h * (2.48015873015873e-5 + h * -2.755731922398589e-7)))
    )
    crossed = (word & 0x40000000) != 0  # odd quadrants: sine and cosine change places
    sine, cosine = tl.where(crossed, c, s), tl.where(crossed, s, c)
    turned, other = (word >> 31) != 0, (((word >> 30) + 1) & 2) != 0
    return tl.where(turned, -sine, sine), tl.where(other, -cosine, cosine)


@triton.jit
def _pair(a, b):
    r = _radius(a)
    sine, cosine = _sine_and_cosine(b)
    return r * cosine, r * sine


@triton.jit
def noise(index, seed, scale, KIND: tl.constexpr):
    """Of elements anywhere: each makes four words and uses one (or two), which is four times the work of :func:`noise_of_quads`."""
    w0, w1, w2, w3 = words(index >> 2, seed)
    second, odd = (index & 2) != 0, (index & 1) != 0
    a, b = tl.where(second, w2, w0), tl.where(second, w3, w1)
    if KIND == UNIFORM:
        unit = _uniform(tl.where(odd, b, a))
    elif KIND == RADEMACHER:
        unit = _rademacher(tl.where(odd, b, a))
    else:
        even, uneven = _pair(a, b)
        unit = tl.where(odd, uneven, even)
    return unit * scale


@triton.jit
def noise_of_quads(counter, seed, scale, KIND: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Of ``[ROWS, BLOCK]`` elements, four consecutive ones for each of ``[ROWS, BLOCK // 4]`` counters."""
    w0, w1, w2, w3 = words(counter, seed)
    if KIND == UNIFORM:
        f0, f1, f2, f3 = _uniform(w0), _uniform(w1), _uniform(w2), _uniform(w3)
    elif KIND == RADEMACHER:
        f0, f1, f2, f3 = _rademacher(w0), _rademacher(w1), _rademacher(w2), _rademacher(w3)
    else:
        f0, f1 = _pair(w0, w1)
        f2, f3 = _pair(w2, w3)
    return tl.reshape(tl.join(tl.join(f0, f2), tl.join(f1, f3)), (ROWS, BLOCK)) * scale
