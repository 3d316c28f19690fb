"""Counter-based noise in plain PyTorch: the specification in code.

Philox4x32-10 (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011) makes four 32-bit words of a 128-bit counter
and a 64-bit key. Element ``i`` of a tensor, counted in logical row-major order, has

    word_i = philox(counter = i // 4, key = seed)[i % 4]

whatever the layout, the dtype, the backend and the number of threads, so that nothing is stored: a backward pass makes the noise of
its forward pass again. From words to numbers, all in fp32:

    uniform      u = (k + 0.5) * 2**-23 - 0.5,  k = word >> 9        exact; symmetric, |u| < 1/2, never 0
    rademacher   +1 where the word's top bit is 0, else -1
    normal       Box-Muller of the words (a, b) of elements 2j and 2j + 1
                 r = sqrt(-2 log(u(a) + 0.5)),  angle = pi/2 * ((b >> 30) + u(b << 2))
                 element 2j: r * cos(angle), element 2j + 1: r * sin(angle);  |z| < 5.77

and ``xi = scale * that``, rounded once. The logarithm, sine and cosine are the short polynomials below, of additions, products, a
division and a square root that IEEE 754 rounds the same everywhere: normal noise has the same bits on every backend too, and lies
within a few ulp of what the true functions would give.
"""

from __future__ import annotations

import math

import torch

__all__ = ["HALF_STEP", "NOISES", "UNIT_VARIANCE", "noise", "philox4x32", "words"]

#: The kinds of noise, as the operators number them.
NOISES = {"uniform": 0, "rademacher": 1, "normal": 2}
#: The scale that gives each kind a variance of 1: uniform on +-sqrt(3), +-1, N(0, 1).
UNIT_VARIANCE = (2 * math.sqrt(3.0), 1.0, 1.0)
#: The scale that gives each kind the size of a rounding error, in steps: uniform on +-1/2, +-1/2, N(0, 1) / 2.
HALF_STEP = (1.0, 0.5, 0.5)

PIECE = 2**16
_MASK = 0xFFFFFFFF
_LN2 = 0.6931471805599453
_SQRT2_BITS = 0x3FB504F3  # of fp32's sqrt(2)


def philox4x32(counter: tuple[torch.Tensor, ...], key: tuple[torch.Tensor, ...], rounds: int = 10) -> tuple[torch.Tensor, ...]:
    """Four words for four counter words and two key words: int64 tensors that hold 32-bit unsigned integers."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        # 64 bits that wrap as int64 are the product's all the same.
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = ((b >> 32) & _MASK) ^ c1 ^ k0, b & _MASK, ((a >> 32) & _MASK) ^ c3 ^ k1, a & _MASK
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return c0, c1, c2, c3


def words(seed: torch.Tensor, count: int, start: int = 0) -> torch.Tensor:
    """The words of ``count`` elements from ``start``, a multiple of 4: int64, 32 bits each, on the device of ``seed``."""
    block = torch.arange(start // 4, start // 4 + (count + 3) // 4, dtype=torch.int64, device=seed.device)
    zero, key = torch.zeros_like(block), seed.reshape(())
    four = philox4x32((block & _MASK, block >> 32, zero, zero), (key & _MASK, (key >> 32) & _MASK))
    return torch.stack(four, -1).reshape(-1)[:count]


def _uniform(word: torch.Tensor) -> torch.Tensor:
    return ((word & _MASK) >> 9).to(torch.float32).add(0.5).mul(2.0**-23).sub(0.5)


def _log(u: torch.Tensor) -> torch.Tensor:
    """``log(u)`` for fp32 in (0, 1]: ``u = 2**e * m`` with m about 1, and the series of ``2 * atanh((m - 1) / (m + 1))``."""
    bits = u.view(torch.int32)
    e = (bits - (_SQRT2_BITS - 0x00800000)) >> 23  # such that sqrt(1/2) <= m < sqrt(2)
    m = (bits - (e << 23)).view(torch.float32)
    f = (m - 1.0) / (m + 1.0)
    h = f * f
    series = h * (2 / 3 + h * (2 / 5 + h * (2 / 7 + h * (2 / 9))))
    return e.to(torch.float32) * (_LN2) + (2.0 * f + f * series)


def _sine_and_cosine(word: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the angle of ``word``: its quadrant in the top two bits, the rest uniform within it."""
    t = _uniform(word << 2) * (math.pi / 2)
    h = t * t
    sine = t + t * (h * (-1 / 6 + h * (1 / 120 + h * (-1 / 5040 + h * (1 / 362880)))))
    cosine = 1.0 + h * (-1 / 2 + h * (1 / 24 + h * (-1 / 720 + h * (1 / 40320 + h * (-1 / 3628800)))))
    odd, turned, other = (word >> 30) & 1 == 1, (word >> 31) & 1 == 1, ((word >> 30) + 1 >> 1) & 1 == 1
    s, c = torch.where(odd, cosine, sine), torch.where(odd, sine, cosine)
    return torch.where(turned, -s, s), torch.where(other, -c, c)


def _normal(word: torch.Tensor) -> torch.Tensor:
    a, b = word.view(-1, 2).unbind(-1)
    # by fp64, which rounds to fp32's correctly rounded root; torch's own of fp32 is an ulp off for a fifth of all numbers on a CPU
    r = (_log(_uniform(a) + 0.5) * -2.0).double().sqrt().float()
    sine, cosine = _sine_and_cosine(b)
    return torch.stack((r * cosine, r * sine), -1).reshape(-1)


def noise(seed: torch.Tensor, shape: torch.Size | tuple[int, ...], kind: int, scale: float) -> torch.Tensor:
    """``scale`` times the noise of ``kind`` (:data:`NOISES`), float32, contiguous, on the device of ``seed``."""
    count = math.prod(shape)
    # a piece at a time: what the words are made of has 20 times their elements
    whole = count + count % 2  # the last normal number may need its neighbour's word
    pieces = [_unit(words(seed, min(PIECE, whole - i), i), kind) * scale for i in range(0, whole, PIECE)]
    return (torch.cat(pieces)[:count] if pieces else torch.empty(0, device=seed.device)).view(shape)


def _unit(word: torch.Tensor, kind: int) -> torch.Tensor:
    if kind == NOISES["normal"]:
        return _normal(word)
    return 1.0 - 2.0 * (word >> 31).to(torch.float32) if kind == NOISES["rademacher"] else _uniform(word)
