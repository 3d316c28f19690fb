"""The integer engine in plain PyTorch: the specification of every kernel of ``fastq.int_linear`` and ``fastq.int_conv2d``.

    acc[m, n] = sum over k of (x[m, k] - x_zero_point) * (code[n, k] - zero_point[n])         int32, exact
    y = float(acc) * (x_scale * scale)  + bias,  * multiplier + addend,  + residual,  activation
    out = y, or round(clip(y / out_scale, ...)): see fastq.engine.Epilogue

Products are float64 ones, which cannot round below 2**53: an int32 accumulator comes out whatever the order.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..engine.call import ACTIVATIONS, Epilogue, Operand, Window
from ..granularity import divided
from ..packing import layout_of, unpack

__all__ = ["finish", "int_conv2d", "int_linear", "quantize", "quantize_per_token"]


def spread(t: torch.Tensor, w: Operand) -> torch.Tensor:
    """One number per tensor, channel or group of ``w`` as one that broadcasts over ``(N, K)``."""
    return t.repeat_interleave(w.group_size, 1)[:, : w.k] if w.group_size else t.view(-1, 1)


def centred(w: Operand) -> torch.Tensor:
    """``f - t``: ``(N, K)`` float64."""
    fields = unpack(layout_of(w.data.device), w.data, w.bits, w.n, w.k).to(torch.float64)
    return fields if w.zero is None else fields - spread(w.zero, w)


def finish(y: torch.Tensor, e: Epilogue) -> torch.Tensor:
    """The epilogue from ``+ bias`` on; ``y`` float32 with the channels last."""
    if e.bias is not None:
        y = y + e.bias
    if e.multiplier is not None:
        y = y * e.multiplier
    if e.addend is not None:
        y = y + e.addend
    if e.residual is not None:
        y = y + e.residual
    activation = ACTIVATIONS[e.activation]
    if activation is not None:
        y = getattr(F, activation)(y)
    if e.out_scale is None:
        return y.to(e.out_dtype)
    return quantize(y, e.out_scale, None, e.out_codes, e.out_dtype)


def quantize(
    x: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor | None, codes: tuple[int, int, int], dtype: torch.dtype
) -> torch.Tensor:
    """``round(clip((x - offset) / scale, lo - zp, hi - zp)) + zp``; NaN gives ``zp``. ``codes``: lo, hi, zp."""
    low, high, zero = codes
    v = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    v = v if offset is None else v - offset
    return (v / scale).clamp(low - zero, high - zero).round().nan_to_num(nan=0.0).add(zero).to(dtype)


def quantize_per_token(x: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of ``x`` ``(M, K)`` and their scales ``(M,)``: ``scale = max |x| / (2**(bits-1) - 1)``, 1 where that is 0."""
    highest = 2 ** (bits - 1) - 1
    largest = x.to(torch.float32).abs().amax(1) if x.shape[1] else x.new_zeros(len(x), dtype=torch.float32)
    scale = divided(largest, highest)
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    return quantize(x, scale.view(-1, 1), None, (-highest, highest, 0), torch.int8), scale


def int_linear(x: torch.Tensor, w: Operand, e: Epilogue) -> torch.Tensor:
    """``x`` ``(M, K)`` codes or floats; the output is ``(M, N)``."""
    weight, xd = centred(w), x.to(torch.float64)
    if not x.is_floating_point():
        xd = xd - e.x_zero_point
    if e.out_dtype == torch.int32:
        return (xd @ weight.t()).to(torch.int32)
    size = w.group_size or max(w.k, 1)
    scales = w.scale if w.group_size else w.scale.view(-1, 1)
    y = torch.zeros(len(x), w.n, dtype=torch.float64 if x.is_floating_point() else torch.float32, device=x.device)
    for g in range(w.groups):
        part = xd[:, g * size : (g + 1) * size] @ weight[:, g * size : (g + 1) * size].t()
        if x.is_floating_point():
            y = y + part * scales[:, g].to(torch.float64)
        else:
            x_scale = 1.0 if e.x_scale is None else e.x_scale.view(-1, 1)
            product = (part + 0.0).to(torch.float32) * (x_scale * scales[:, g])  # an integer's 0 has no sign
            y = product if g == 0 else y + product
    return finish(y.to(torch.float32), e)


def int_conv2d(x: torch.Tensor, w: Operand, window: Window, e: Epilogue) -> torch.Tensor:
    """``x`` ``(B, C, H, W)`` codes or floats; the output is ``(B, N, oh, ow)`` with the strides of channels_last."""
    weight = centred(w).view(w.n, *window.kernel, window.channels).permute(0, 3, 1, 2)
    xd = x.to(torch.float64)
    if not x.is_floating_point():
        xd = xd - e.x_zero_point
    if window.channels:
        acc = F.conv2d(F.pad(xd, window.padding), weight, None, window.stride, 0, window.dilation, window.groups)
    else:  # which torch gives no channels
        acc = xd.new_zeros((len(x), w.n, *window.size(*x.shape[2:])))
    acc = acc.permute(0, 2, 3, 1)
    if not x.is_floating_point():
        acc = acc.round() + 0.0  # of integers, whose 0 has no sign: an algorithm of cuDNN's may transform them on the way
    if e.out_dtype == torch.int32:
        out = acc.to(torch.int32)
    else:
        if x.is_floating_point():
            y = (acc * w.scale.to(torch.float64)).to(torch.float32)
        else:
            y = acc.to(torch.float32) * (w.scale if e.x_scale is None else e.x_scale * w.scale)
        residual = None if e.residual is None else e.residual.permute(0, 2, 3, 1)
        out = finish(y, e._replace(residual=residual))
    return out.contiguous().permute(0, 3, 1, 2)
