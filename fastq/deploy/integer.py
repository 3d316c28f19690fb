"""Exact integer products: int8 x int8 -> int32, as a matrix product and as a convolution (im2col).

``torch._int_mm`` multiplies int8 matrices into int32, but on x86 CPUs without VNNI oneDNN may add pairs of products in
saturating int16 (``vpmaddubsw``: 127*127*64 gives 8160). It is therefore used where it was seen to be exact: on GPUs, and on
CPUs with VNNI that pass a probe of the extreme values. Elsewhere the product is a floating point one that cannot round:
fp32 while every partial sum is an integer below 2^24, else fp64. (A reduced fp32 matmul precision, TF32 or bf16, holds 8-bit
codes exactly and accumulates in fp32, so it changes nothing.)
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F

__all__ = ["conv2d", "matmul"]

#: Sums up to here are exact in fp32 (a 24-bit significand).
FP32_EXACT = 2**24
INT32_MAX = 2**31 - 1
#: im2col is cut along the batch into pieces of about this many elements.
PATCH_ELEMENTS = 2**24


@functools.lru_cache(maxsize=None)
def int_mm_is_exact(device_type: str) -> bool:
    """Does ``torch._int_mm`` give exact sums on this device (and at a useful speed)? CPUs are probed once."""
    if device_type == "cuda":
        return True
    if device_type != "cpu" or not getattr(torch.cpu, "_is_vnni_supported", lambda: False)():
        return False
    return probe()


def probe() -> bool:
    """``torch._int_mm`` on the codes that saturate first, over a few shapes, against int64."""
    for m, k, n in ((32, 64, 32), (1, 9, 5), (130, 288, 24)):
        for a in (127, -128):
            for w in (127, -128):
                x, y = (torch.full(size, value, dtype=torch.int8, device="cpu") for size, value in (((m, k), a), ((n, k), w)))
                got = torch._int_mm(x, y.t())
                if not bool((got == a * w * k).all()):
                    return False
    return True


def matmul(a: torch.Tensor, w: torch.Tensor, largest: int = 2**14) -> torch.Tensor:
    """``a @ w.T`` in int32, exactly: ``a`` int8 ``(M, K)``, ``w`` int8 ``(N, K)``; result int32 ``(M, N)``.

    ``largest`` bounds ``|a| * |w|``. ``ValueError`` where ``K * largest`` could leave int32; ``TypeError`` for other dtypes.
    """
    if a.dtype != torch.int8 or w.dtype != torch.int8:
        raise TypeError(f"integer matmul: a and w must be torch.int8, got {a.dtype} and {w.dtype}")
    (m, k), n = a.shape, w.shape[0]
    if k * largest > INT32_MAX:
        raise ValueError(f"integer matmul: {k} products of up to {largest} do not fit int32; at most {INT32_MAX // largest} do")
    if m == 0 or n == 0 or k == 0:
        return torch.zeros(m, n, dtype=torch.int32, device=a.device)
    if not int_mm_is_exact(a.device.type):
        dtype = torch.float32 if k * largest <= FP32_EXACT else torch.float64
        return (a.to(dtype) @ w.to(dtype).t()).to(torch.int32)
    if a.device.type == "cuda":  # cuBLASLt wants M > 16 and multiples of 8; a zero adds nothing
        rows = max(32, -(-m // 8) * 8)
        a = F.pad(a, (0, -k % 8, 0, rows - m))
        w = F.pad(w, (0, -k % 8, 0, -n % 8))
    return torch._int_mm(a.contiguous(), w.contiguous().t())[:m, :n]


def conv2d(
    codes: torch.Tensor,
    w: torch.Tensor,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    fill: int = 0,
    largest: int = 2**14,
) -> torch.Tensor:
    """Convolution of int8 codes in int32, exactly: ``codes`` ``(N, C, H, W)``, ``w`` ``(O, C/groups, kh, kw)``.

    ``padding`` is (left, right, top, bottom), of the code ``fill``. Result int32 ``(N, O, oh, ow)`` with channels last strides.
    ``largest`` as in :func:`matmul`.
    """
    out, per_group, kh, kw = w.shape
    x = F.pad(codes, padding, value=fill).permute(0, 2, 3, 1).contiguous()
    n, h, width, channels = x.shape
    oh = (h - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    ow = (width - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    if oh < 1 or ow < 1:
        raise ValueError(f"integer convolution: the kernel {(kh, kw)} at dilation {dilation} exceeds the padded input {(h, width)}")
    k = kh * kw * per_group
    weights = w.permute(0, 2, 3, 1).reshape(groups, out // groups, k)
    result = torch.empty(n, oh, ow, out, dtype=torch.int32, device=codes.device)
    sn, sh, sw, sc = x.stride()
    strides = (sn, sh * stride[0], sw * stride[1], sh * dilation[0], sw * dilation[1], sc)
    windows = x.as_strided((n, oh, ow, kh, kw, channels), strides) if n else x.new_empty(0, oh, ow, kh, kw, channels)
    at_once = max(1, PATCH_ELEMENTS // max(oh * ow * k, 1))
    for g in range(groups):
        own = slice(g * (out // groups), (g + 1) * (out // groups))
        for start in range(0, n, at_once):
            part = windows[start : start + at_once, ..., g * per_group : (g + 1) * per_group]
            product = matmul(part.reshape(-1, k), weights[g], largest)
            result[start : start + at_once, ..., own] = product.view(-1, oh, ow, out // groups)
    return result.permute(0, 3, 1, 2)
