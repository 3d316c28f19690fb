"""Packed weights that the tests of packing, of files and of other formats go through."""

import torch
from device import DEVICE
from engine_cases import drawn_codes

from fastq.packing import pack


def weight(shape=(5, 45), bits=4, dtype=torch.int8, group_size=None, zeros=False, **given):
    """Of ``shape``: codes that differ, a scale for each channel or group, zero-points where asked."""
    scales = (shape[0],) if group_size is None else (shape[0], -(-shape[1] // group_size))
    scale = torch.rand(scales, generator=torch.Generator("cpu").manual_seed(1), device="cpu").add(0.01).to(DEVICE)
    zero = drawn_codes(scales, bits, dtype, 2) if zeros else None
    codes = drawn_codes(shape, bits, dtype)
    return codes, pack(codes, bits, **({"scale": scale, "zero_point": zero, "group_size": group_size} | given))


def same(a, b):
    """Every tensor and number of two weights."""
    for name in ("data", "scale", "zero_point", "stored_zero", "sums"):
        left, right = getattr(a, name), getattr(b, name)
        assert (left is None) == (right is None) and (left is None or torch.equal(left, right)), name
        assert left is None or left.dtype == right.dtype
    for name in ("shape", "bits", "signed", "group_size", "layout", "device", "granularity"):
        assert getattr(a, name) == getattr(b, name), name


def parts(packed):
    """What a file of ``packed`` holds: header and tensors."""
    own = packed.canonical()
    tensors = {"data": own.data, "scale": own.scale, "zero_point": own.zero_point.to(torch.int8 if own.signed else torch.uint8)}
    header = {"shape": list(own.shape), "bits": own.bits, "signed": own.signed, "granularity": own.granularity}
    return header | {"group_size": own.group_size, "layout": "rows", "layout_version": 1}, tensors
