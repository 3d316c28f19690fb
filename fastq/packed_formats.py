"""Packed weights to and from what others pack: torch's ``_weight_int4pack_mm`` and GPTQ's int32 words. Nothing is rounded.

Every function moves the same numbers; what a format cannot hold exactly is a ``ValueError``.

``int4pack``
    4-bit codes q (0 to 15) of a weight ``(N, K)`` in groups of 32, 64, 128 or 256 along K, and ``scales_and_zeros``
    ``(K / group_size, N, 2)``: ``w = (q - 8) * s + z``. fastq's is ``w = s * (q - zero_point)``: ``z = s * (8 - zero_point)``.
``GPTQ``
    2, 3, 4 or 8-bit codes in int32 words, lowest bits first: ``qweight`` ``(K * bits / 32, N)``, with the codes of a column one
    after another down the rows (3 bits: 32 codes in 3 words), ``qzeros`` ``(G, N * bits / 32)``, with the zero-points of a group
    one after another, ``scales`` ``(G, N)``, and ``g_idx`` ``(K,)``, the group of each k: ``w = scales * (q - zero)``. The first
    version of the format stores ``zero - 1``; readers differ in whether it wraps, so it cannot hold a zero-point of 0.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from .packing import BITS, PackedWeight, pack, pack_rows, unpack_rows

__all__ = ["GPTQ", "Int4Pack", "from_gptq", "from_int4pack", "to_gptq", "to_int4pack"]

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
#: Group sizes of ``_weight_int4pack_mm``; the largest one first.
INT4_GROUPS = (256, 128, 64, 32)
#: Rows whose packing is learned: every processor's blocks, and the GPU's, are whole in them.
SLAB = 64


class Int4Pack(NamedTuple):
    """What ``torch.ops.aten._weight_int4pack_mm(x, data, group_size, scales_and_zeros)`` takes (``..._for_cpu`` on the CPU)."""

    data: torch.Tensor  # CPU: uint8 (N, K / 2), in an order that depends on the processor; CUDA: int32, in tiles
    scales_and_zeros: torch.Tensor  # (K / group_size, N, 2)
    group_size: int


class GPTQ(NamedTuple):
    """The tensors of a GPTQ layer, and its ``bits`` and ``group_size`` (-1: one group)."""

    qweight: torch.Tensor  # int32 (K * bits / 32, N)
    qzeros: torch.Tensor  # int32 (G, N * bits / 32)
    scales: torch.Tensor  # (G, N)
    g_idx: torch.Tensor  # int32 (K,)
    bits: int
    group_size: int


def parts(op: str, weight: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes from 0 on, uint8 ``(N, K)``, and for each row and group a scale and such a code's zero-point, int32."""
    if not isinstance(weight, PackedWeight):
        raise TypeError(f"{op}: weight must be a fastq.PackedWeight, got a {type(weight).__name__}")
    if len(weight.shape) != 2:
        raise ValueError(f"{op}: weight must have shape (N, K), got {weight.shape}")
    middle = 2 ** (weight.bits - 1)
    codes = weight.fields().view(torch.uint8).bitwise_xor_(middle).bitwise_and_(2**weight.bits - 1)
    scale = weight.scale.view(-1, 1) if weight.group_size is None else weight.scale
    zero = torch.zeros_like(weight.scale, dtype=torch.int32) if weight.stored_zero is None else weight.stored_zero
    shape = (weight.n, scale.shape[1])
    return codes, scale.expand(shape), (zero + middle).view(scale.shape).expand(shape)


def packed(
    codes: torch.Tensor, bits: int, scale: torch.Tensor, zero: torch.Tensor, group_size: int | None, signed: bool
) -> PackedWeight:
    """The inverse of :func:`parts`; signed codes are those from 0 on less the middle."""
    if group_size is None:
        scale, zero = scale.flatten(), zero.flatten()
    if signed:
        middle = 2 ** (bits - 1)
        zero = zero - middle
        codes = (codes ^ 128).view(torch.int8) if bits == 8 else codes.view(torch.int8) - middle
        return pack(codes, bits, scale=scale, zero_point=zero if bool(zero.any()) else None, group_size=group_size)
    return pack(codes, bits, scale=scale, zero_point=zero, group_size=group_size)


def check_choice(op: str, name: str, value: Any, choices: tuple[int, ...]) -> None:
    """``ValueError`` unless ``value`` is one of ``choices``."""
    if type(value) is not int or value not in choices:
        raise ValueError(f"{op}: {name} must be {', '.join(map(str, choices[:-1]))} or {choices[-1]}, got {value!r:.60}")


def as_dtype(op: str, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``scale`` in ``dtype``, or ``ValueError`` where that would round."""
    if dtype not in FLOATS:
        raise TypeError(f"{op}: dtype must be float32, bfloat16 or float16, got {dtype!r:.60}")
    held = scale.to(dtype)
    if not torch.equal(held.to(torch.float32), scale):
        wrong = scale[held.to(torch.float32) != scale]
        raise ValueError(f"{op}: scale must hold {dtype} numbers, got {float(wrong[0])!r}; dtype=torch.float32 keeps any")
    return held


def check_tensor(op: str, name: str, t: Any, dtypes: tuple[torch.dtype, ...], dims: int) -> None:
    """``TypeError`` unless ``t`` is a tensor of one of ``dtypes``, ``ValueError`` unless it has ``dims`` dimensions."""
    if not isinstance(t, torch.Tensor) or t.dtype not in dtypes:
        expected = " or ".join(str(dtype) for dtype in dtypes)
        raise TypeError(f"{op}: {name} must be {expected}, got {t.dtype if isinstance(t, torch.Tensor) else type(t).__name__}")
    if t.dim() != dims:
        raise ValueError(f"{op}: {name} must have {dims} dimensions, got shape {tuple(t.shape)}")


def zeros_of(scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
    """``z = s * (8 - zero_point)``, rounded once to the dtype of ``scale``."""
    return (scale.to(torch.float64) * (8 - zero)).to(scale.dtype)


def points_of(scale: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """The zero-points that :func:`zeros_of` makes ``z`` of; what no zero-point makes is found by making it again."""
    quotient = z.to(torch.float64) / scale.to(torch.float64)
    quotient = torch.where(scale == 0, torch.zeros_like(quotient), quotient)
    return 8 - quotient.round().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).clamp(-8, 9).to(torch.int32)


def to_int4pack(weight: PackedWeight, *, inner_k_tiles: int = 8, dtype: torch.dtype = torch.bfloat16) -> Int4Pack:
    """A 4-bit weight for ``torch.ops.aten._weight_int4pack_mm``.

    Args:
        weight: ``(N, K)``; N a multiple of 16 (CUDA: 8), K of the group size (CUDA: and of ``16 * inner_k_tiles``). Groups of 32,
            64, 128 or 256; a weight quantized per tensor or channel gets the largest of these that divides K.
        inner_k_tiles: 2, 4 or 8; of the layout on CUDA, without effect on the CPU.
        dtype: of ``scales_and_zeros``; what the product takes together with inputs of that dtype.

    Returns:
        :class:`Int4Pack` on the weight's device. :func:`from_int4pack` gives the same codes, zero-points and scales again.

    Raises:
        TypeError: ``weight`` is not packed, or ``dtype`` is not one of three.
        ValueError: it has not 4 bits, its shape or group size does not fit, a scale is no number of ``dtype``, or
            ``s * (8 - zero_point)`` does not tell the zero-point any more (a scale of 0, an overflow).
    """
    op = "to_int4pack"
    codes, scale, zero = parts(op, weight)
    n, k = weight.shape
    if weight.bits != 4:
        raise ValueError(f"{op}: weight must have 4 bits, got {weight.bits}")
    check_choice(op, "inner_k_tiles", inner_k_tiles, (2, 4, 8))
    cuda = weight.device.type == "cuda"
    rows, columns = (8, 16 * inner_k_tiles) if cuda else (16, 2)
    if n % rows or k % columns:
        raise ValueError(f"{op}: weight must have N a multiple of {rows} and K one of {columns}, got {weight.shape}")
    size = weight.group_size or next((g for g in INT4_GROUPS if k % g == 0), 0)
    if size not in INT4_GROUPS or k % size:
        raise ValueError(f"{op}: weight must have groups of 32, 64, 128 or 256 that divide K, got {weight!r}")
    if weight.group_size is None:
        scale, zero = (t.expand(n, k // size) for t in (scale, zero))
    held = as_dtype(op, scale, dtype)
    z = zeros_of(held, zero)
    if not torch.equal(points_of(held, z), zero):
        wrong = points_of(held, z) != zero
        pair = f"scale {float(held[wrong][0])!r} and zero-point {int(zero[wrong][0])}"
        raise ValueError(f"{op}: {pair} cannot be told from scale * (8 - zero_point) in {dtype}")
    return Int4Pack(arranged(codes, inner_k_tiles), torch.stack([held, z], 2).transpose(0, 1).contiguous(), size)


def arranged(codes: torch.Tensor, inner_k_tiles: int) -> torch.Tensor:
    """``(N, K)`` uint8 codes as torch's operator arranges them."""
    if codes.device.type == "cuda":
        pairs = codes[:, ::2] << 4 | codes[:, 1::2]
        return torch.ops.aten._convert_weight_to_int4pack(pairs.contiguous(), inner_k_tiles)  # type: ignore[no-any-return]
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.to(torch.int32), inner_k_tiles)  # type: ignore[no-any-return]


def nibbles(data: torch.Tensor) -> torch.Tensor:
    """The 4-bit numbers of ``data``'s memory, in their order; uint8."""
    each = data.contiguous().view(-1).view(torch.uint8)
    return torch.stack([each & 15, each >> 4], 1).flatten()


def from_int4pack(
    data: torch.Tensor, scales_and_zeros: torch.Tensor, group_size: int, *, signed: bool = False, inner_k_tiles: int = 8
) -> PackedWeight:
    """The weight of ``torch.ops.aten._weight_int4pack_mm``'s tensors.

    torch has no inverse of its packing, and on the CPU that depends on the processor. So it is learned: the base-16 digits of every
    position are packed as codes are, and tell where each has gone; what comes out is packed again and compared. On the CPU, the
    processor must be of the kind that packed.

    Args:
        data: CPU: uint8 ``(N, K / 2)``; CUDA: int32 ``(N / 8, K / (16 * inner_k_tiles), 32, inner_k_tiles / 2)``.
        scales_and_zeros: floating point, ``(K / group_size, N, 2)``, on the device of ``data``.
        group_size: 32, 64, 128 or 256.
        signed: codes are int8, ``q - 8``, with zero-points where they are not all 8; else uint8 with zero-points.
        inner_k_tiles: 2, 4 or 8; of the CPU's packing, on CUDA the shape of ``data`` says it.

    Returns:
        A :class:`fastq.PackedWeight` per group: ``s * (q - zero_point)`` with ``zero_point = 8 - z / s``.

    Raises:
        TypeError: a dtype is another one.
        ValueError: a shape does not fit; a scale is not finite; a ``z`` is not ``s * (8 - zero_point)``, rounded to its dtype, for
            a zero-point from 0 to 15: such a weight has no exact form with integer zero-points.
        RuntimeError: what is found does not pack to ``data`` again.
    """
    op = "from_int4pack"
    cuda = isinstance(data, torch.Tensor) and data.device.type == "cuda"
    check_tensor(op, "data", data, (torch.int32,) if cuda else (torch.uint8,), 4 if cuda else 2)
    check_tensor(op, "scales_and_zeros", scales_and_zeros, FLOATS, 3)
    check_choice(op, "group_size", group_size, INT4_GROUPS)
    check_choice(op, "inner_k_tiles", inner_k_tiles, (2, 4, 8))
    if cuda:
        inner_k_tiles = 2 * data.shape[3]
        n, k = 8 * data.shape[0], 16 * inner_k_tiles * data.shape[1]
    else:
        n, k = data.shape[0], 2 * data.shape[1]
    if n % (8 if cuda else 16) or k % group_size:
        raise ValueError(f"{op}: data must be of N a multiple of 16 and K one of {group_size}, got {tuple(data.shape)}")
    if tuple(scales_and_zeros.shape) != (k // group_size, n, 2):
        expected = (k // group_size, n, 2)
        raise ValueError(f"{op}: scales_and_zeros must have shape {expected}, got {tuple(scales_and_zeros.shape)}")
    if scales_and_zeros.device != data.device:
        raise ValueError(f"{op}: scales_and_zeros is on {scales_and_zeros.device} and data on {data.device}")
    scale, z = scales_and_zeros.detach().transpose(0, 1).contiguous().unbind(2)
    if not bool(scales_and_zeros.isfinite().all()):
        raise ValueError(f"{op}: scales_and_zeros must be finite")
    zero = points_of(scale, z)
    exact = (zeros_of(scale, zero) == z) & (zero >= 0) & (zero <= 15)
    if not bool(exact.all()):
        pair = f"scale {float(scale[~exact][0])!r}, zero {float(z[~exact][0])!r}"
        raise ValueError(f"{op}: a zero must be scale * (8 - zero_point) for an integer zero_point from 0 to 15, got {pair}")
    return packed(recovered(data, n, k, inner_k_tiles), 4, scale.to(torch.float32), zero, group_size, signed)


def recovered(data: torch.Tensor, n: int, k: int, inner_k_tiles: int) -> torch.Tensor:
    """The ``(N, K)`` uint8 codes that :func:`arranged` makes ``data`` of."""
    each = nibbles(data)
    if not n * k:
        return each.view(n, k)
    for height in (min(SLAB, n), n):  # of all rows at once if torch packs in larger blocks
        pieces, whole = [], n - n % height
        for rows, part in ((height, each[: whole * k]), (n - whole, each[whole * k :])):
            if rows:
                slabs = part.view(part.numel() // (rows * k), rows * k)
                pieces.append(slabs.index_select(1, learned(rows, k, data.device, inner_k_tiles)).flatten())
        codes = torch.cat(pieces).view(n, k)
        if torch.equal(arranged(codes, inner_k_tiles), data):
            return codes
    raise RuntimeError("from_int4pack: torch's packing on this device does more than move codes")


def learned(n: int, k: int, device: torch.device, inner_k_tiles: int) -> torch.Tensor:
    """For each code of ``(N, K)`` its position among the 4-bit numbers of torch's packing: int64 ``(N * K,)``."""
    positions = torch.arange(n * k, device=device)
    found = torch.zeros_like(positions)
    for shift in range(0, max((n * k - 1).bit_length(), 1), 4):
        digits = (positions >> shift).bitwise_and_(15).to(torch.uint8).view(n, k)
        found |= nibbles(arranged(digits, inner_k_tiles)).to(torch.int64) << shift
    return torch.zeros_like(found).index_copy_(0, found.clamp_(max=n * k - 1), positions)


def to_gptq(weight: PackedWeight, *, minus_one: bool = True, dtype: torch.dtype = torch.float32) -> GPTQ:
    """A weight as GPTQ's int32 words.

    Args:
        weight: ``(N, K)`` with ``K * bits`` and ``N * bits`` multiples of 32; any granularity (per tensor: the scale is repeated).
        minus_one: store ``zero - 1``, as the first version of the format (``"checkpoint_format": "gptq"``); else the zero itself
            (``"gptq_v2"``).
        dtype: of ``scales``; many readers expect float16.

    Returns:
        :class:`GPTQ` on the weight's device. :func:`from_gptq` gives the same codes, zero-points and scales again.

    Raises:
        TypeError: ``weight`` is not packed, or ``dtype`` is not one of three.
        ValueError: its shape does not fit, a scale is no number of ``dtype``, or a zero-point is 0 where ``zero - 1`` is stored.
    """
    op = "to_gptq"
    codes, scale, zero = parts(op, weight)
    n, k = weight.shape
    if n * weight.bits % 32 or k * weight.bits % 32:
        raise ValueError(f"{op}: weight must have N and K that fill int32 words with {weight.bits} bits each, got {weight.shape}")
    if minus_one and not bool(zero.all()):
        raise ValueError(
            f"{op}: a zero-point of 0 (of codes from 0 on) cannot be stored less one; minus_one=False stores it as it is"
        )
    size = weight.group_size or max(k, 1)
    g_idx = torch.arange(k, dtype=torch.int32, device=weight.device) // size
    scales = as_dtype(op, scale, dtype).t().contiguous()
    return GPTQ(
        words(codes, weight.bits).t().contiguous(), words((zero - int(minus_one)).t().to(torch.uint8), weight.bits), scales, g_idx,
        weight.bits, weight.group_size or -1,
    )  # fmt: skip


def words(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Rows of uint8 values as rows of int32 words."""
    data = pack_rows(values.contiguous().view(torch.int8), bits)
    return data.flatten().view(torch.int32).view(len(data), data.shape[1] // 4)


def values(words_: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """The inverse of :func:`words`: uint8, ``count`` in a row."""
    data = words_.contiguous().flatten().view(torch.uint8).view(len(words_), 4 * words_.shape[1])
    return unpack_rows(data, bits, count).view(torch.uint8).bitwise_and_(2**bits - 1)


def from_gptq(
    qweight: torch.Tensor, qzeros: torch.Tensor, scales: torch.Tensor, g_idx: torch.Tensor | None, bits: int,
    group_size: int, *, minus_one: bool = True, signed: bool = False,
) -> PackedWeight:  # fmt: skip
    """The weight of a GPTQ layer's tensors.

    Args:
        qweight: int32 ``(K * bits / 32, N)``.
        qzeros: int32 ``(G, N * bits / 32)``, with ``G = ceil(K / group_size)``.
        scales: ``(G, N)``, floating point.
        g_idx: int ``(K,)`` or None; only ``k // group_size``: a layer whose columns were put in order of activation ("act-order",
            ``desc_act``) has groups that no kernel here reads.
        bits: 2, 3, 4 or 8.
        group_size: as in ``quantize_config.json``: a multiple of 16, or -1 for one group, which becomes a weight per channel.
        minus_one: ``qzeros`` holds ``zero - 1`` (``"checkpoint_format": "gptq"``) or the zero itself (``"gptq_v2"``).
        signed: codes are int8, less ``2**(bits - 1)``, with zero-points where they are not all that; else uint8 with zero-points.

    Returns:
        A :class:`fastq.PackedWeight` ``(N, K)``: ``scale * (q - zero)``.

    Raises:
        TypeError: a dtype is another one.
        ValueError: a width, shape or device does not fit; ``g_idx`` is not trivial; a scale is not finite; a zero-point would be
            ``2**bits``.
    """
    op = "from_gptq"
    check_choice(op, "bits", bits, BITS)
    if type(group_size) is not int or (group_size != -1 and (group_size < 16 or group_size % 16)):
        raise ValueError(f"{op}: group_size must be -1 or a multiple of 16, got {group_size!r:.60}")
    check_tensor(op, "qweight", qweight, (torch.int32,), 2)
    check_tensor(op, "qzeros", qzeros, (torch.int32,), 2)
    check_tensor(op, "scales", scales, (*FLOATS, torch.float64), 2)
    rows, n = qweight.shape
    k = rows * 32 // bits
    if rows * 32 % bits or n * bits % 32:
        raise ValueError(f"{op}: qweight must be (K * {bits} / 32, N) with N * {bits} a multiple of 32, got {tuple(qweight.shape)}")
    groups = 1 if group_size == -1 else -(-k // group_size)
    for name, t, shape in (("qzeros", qzeros, (groups, n * bits // 32)), ("scales", scales, (groups, n))):
        if tuple(t.shape) != shape:
            raise ValueError(
                f"{op}: {name} must have shape {shape} for K = {k}, N = {n} and {groups} group(s), got {tuple(t.shape)}"
            )
        if t.device != qweight.device:
            raise ValueError(f"{op}: {name} is on {t.device} and qweight on {qweight.device}")
    if not bool((finite := scales.detach().to(torch.float32).isfinite()).all()):
        raise ValueError(f"{op}: scales must be finite in float32, got {scales.detach()[~finite][:8].tolist()}")
    if g_idx is not None:
        check_tensor(op, "g_idx", g_idx, (torch.int32, torch.int64), 1)
        trivial = torch.arange(k, device=g_idx.device) // (k or 1 if group_size == -1 else group_size)
        if g_idx.shape != trivial.shape or not torch.equal(g_idx.to(torch.int64), trivial):
            raise ValueError(
                f"{op}: g_idx must be k // group_size for each of {k}; one in order of activation (act-order, desc_act) has no "
                "packed form here: requantize without it"
            )
    zero = values(qzeros, bits, n).to(torch.int32) + int(minus_one)
    if zero.numel() and int(zero.max()) == 2**bits:
        raise ValueError(
            f"{op}: qzeros holds {2**bits - 1}, a zero-point of {2**bits} or 0 less one, which readers take differently; "
            "minus_one=False reads zeros as they are"
        )
    codes = values(qweight.t(), bits, k)
    scale = scales.detach().to(torch.float32).t().contiguous()
    return packed(codes, bits, scale, zero.t().contiguous(), None if group_size == -1 else group_size, signed)
