"""exp, log, power and tanh with the bits of ``csrc/methods/functions.h``, which says how exact they are; fp64: Triton's own."""

from __future__ import annotations

import triton
import triton.language as tl

from .numeric import clip, divide, nan_of, round_clipped


@triton.jit
def _from_bits(i):
    return i.to(tl.float32, bitcast=True)


@triton.jit
def _scaled_exp(x, m):
    """``2**m * e**x`` for an integer ``m``."""
    n = round_clipped(clip(x, -300.0, 300.0) * 1.44269504088896341)
    r = (clip(x, -300.0, 300.0) - n * 0.693359375) - n * -2.12194440e-4
    p = r * 1.9875691500e-4 + 1.3981999507e-3
    p = p * r + 8.3334519073e-3
    p = p * r + 4.1665795894e-2
    p = p * r + 1.6666665459e-1
    p = p * r + 5.0000001201e-1
    e = (p * (r * r) + r) + 1.0
    exponent = clip(m + n, -252.0, 254.0)
    k = tl.where(exponent == exponent, exponent, 0.0).to(tl.int32)
    half = k >> 1
    return (e * _from_bits((half + 127) << 23)) * _from_bits((k - half + 127) << 23) + nan_of(x)


@triton.jit
def exp(x):
    """``e**x``: 0 below -103.97, inf above 88.72, NaN of NaN."""
    if x.dtype == tl.float64:
        return tl.exp(x)
    else:
        return _scaled_exp(x, 0.0)


@triton.jit
def _mantissa(x):
    """``m - 1`` and ``e`` of ``x = m * 2**e``, ``m`` from sqrt(1/2) to sqrt(2)."""
    tiny = x < 1.17549435e-38
    b = tl.where(tiny, x * 8388608.0, x).to(tl.int32, bitcast=True)
    e = ((b >> 23) - 126).to(tl.float32)
    e = tl.where(tiny, e - 23.0, e)
    m = _from_bits((b & 0x007FFFFF) | 0x3F000000)
    low = m < 0.707106781186547524
    return tl.where(low, m + m, m) - 1.0, tl.where(low, e - 1.0, e)


@triton.jit
def _log_rest(m):
    """``ln(1 + m) - m + m**2 / 2``."""
    p = m * 7.0376836292e-2 + -1.1514610310e-1
    p = p * m + 1.1676998740e-1
    p = p * m + -1.2420140846e-1
    p = p * m + 1.4249322787e-1
    p = p * m + -1.6668057665e-1
    p = p * m + 2.0000714765e-1
    p = p * m + -2.4999993993e-1
    p = p * m + 3.3333331174e-1
    return p * m * (m * m)


@triton.jit
def log(x):
    """``ln x``: -inf of 0, NaN of a negative number."""
    if x.dtype == tl.float64:
        return tl.log(x)
    else:
        m, e = _mantissa(x)
        z = m * m
        y = _log_rest(m)
        y = y + e * -2.12194440e-4
        y = y - z * 0.5
        y = (m + y) + e * 0.693359375
        y = tl.where(x == float("inf"), float("inf"), y)
        y = tl.where(x == 0.0, float("-inf"), y)
        return tl.where(x < 0.0, float("nan"), y) + nan_of(x)


@triton.jit
def power(x, y):
    """``x**y`` for ``0 < x <= 1`` and ``y > 0``."""
    if x.dtype == tl.float64:
        return tl.exp(y * tl.log(x))
    else:
        m, e = _mantissa(x)
        ln_m = m + (_log_rest(m) - (m * m) * 0.5)
        high = _from_bits(y.to(tl.int32, bitcast=True) & -4096)
        low = (y - high) * e
        whole = high * e
        n = round_clipped(clip(whole, -1000.0, 1000.0))
        rest = y * ln_m
        found = _scaled_exp(((whole - n) + low) * 0.693147180559945309 + rest, n)
        return tl.where((whole + low) * 0.693147180559945309 + rest < -104.0, 0.0, found)


@triton.jit
def tanh(x):
    """``tanh x``."""
    if x.dtype == tl.float64:
        a = tl.exp(-2.0 * tl.abs(x))
        large = (1.0 - a) / (1.0 + a)
        z = x * x
        small = x * (
            1.0 - z * (0.3333333333333333 - z * (0.13333333333333333 - z * (0.05396825396825397 - z * 0.021869488536155203)))
        )
        return tl.where(z < 1e-4, small, tl.where(x < 0, -large, large))
    else:
        a = tl.abs(x)
        z = x * x
        p = z * -5.70498872745e-3 + 2.06390887954e-2
        p = p * z + -5.37397155531e-2
        p = p * z + 1.33314422036e-1
        p = p * z + -3.33332819422e-1
        small = p * z * x + x
        large = 1.0 - divide(tl.zeros_like(x) + 2.0, exp(a + a) + 1.0)
        return tl.where(a < 0.625, small, tl.where(x < 0, -large, large)) + nan_of(x)


@triton.jit
def sech2(x):
    """``1 / cosh(x)**2``."""
    a = tl.abs(x)
    e = exp(a + a)
    r = divide(tl.zeros_like(e) + 1.0, e + 1.0)
    return (r * 4.0) * (1.0 - r)
