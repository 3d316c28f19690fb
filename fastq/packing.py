"""Weights as integer codes in as many bits as they have, with their scales: ``fastq.pack`` and :class:`PackedWeight`.

A code ``c`` of ``bits`` bits stands for ``scale * (c - zero_point)``. Signed codes (int8) go from ``-2**(bits-1)`` to
``2**(bits-1) - 1``, unsigned ones (uint8) from 0 to ``2**bits - 1``. What is packed is the *field*, ``c - middle`` as a
two's complement number of ``bits`` bits, with ``middle`` 0 for signed codes and ``2**(bits-1)`` for unsigned ones. A kernel
therefore knows one kind of field, sign-extends it, and subtracts the *stored zero*, ``zero_point - middle``, where that is
not 0 everywhere.

The elements of a row (an output channel) follow one another along K: those of a linear weight as they are, those of a convolution
``(O, C, [kh,] kw)`` with the channels last, ``[kh,] kw, C``, the order in which an implicit GEMM meets them. Layouts:

``rows``
    The canonical one, of files. Element k of a row is bits ``k * bits`` to ``(k + 1) * bits - 1`` of the row's
    bytes, lowest bit first; a row takes ``ceil(K * bits / 8)`` bytes.
``tiles``
    That of GPUs. K is padded with zeros to whole tiles of ``64 * f`` elements, ``f = 8 / bits`` fields per byte; byte j of a
    tile's 64 holds the elements j, j + 64, ..., j + 64 * (f - 1), the first one in the lowest bits. One mask then gives 64
    elements that are neighbours in K. Fields of 3 bits are widened to 4 there.
``blocks``
    That of CPUs: tiles of 16 rows by 64 elements, those of 16 rows one after another along K; N and K are padded with fields
    that are 0. A tile has 16 lines of 64 bytes, byte ``4*i + j`` of line r being element ``4*r + j`` of row i: of each row four
    neighbours in K, what one lane of a dot product takes. With 8 bits the bytes are fields. With fewer they are
    ``field + 2**(bits-1)``, numbers without a sign: of 4 bits, byte j of 64 has byte j of two lines, the first in the lower half;
    of 2 bits, of four lines; of 3 bits come the lower two bits of all lines and then the third ones, eight lines in 64 bytes.
"""

from __future__ import annotations

import functools
import math
import numbers
import os
from collections.abc import Callable
from typing import Any

import torch

from . import _native, container
from .engine.call import Operand

__all__ = ["BITS", "LAYOUTS", "PackedWeight", "layout_of", "pack"]

BITS = (2, 3, 4, 8)
LAYOUTS = ("rows", "tiles", "blocks")
#: Of the layouts and of what is packed; a file says which it was written with.
VERSION = 1
FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)
#: The metadata's key in a file, and the version of what it says.
FILE, FILE_VERSION = "fastq_weight", 1
#: Bytes in a tile of ``tiles``; rows and elements of one of ``blocks``.
TILE = 64
BLOCK_ROWS, BLOCK_DEPTH = 16, 64
#: Bytes of a block of rows on the CPU.
BLOCK = 2**18


def layout_of(device: torch.device | str) -> str:
    """The layout that the kernels of a device read."""
    return "tiles" if torch.device(device).type == "cuda" else "blocks"


def field_bits(bits: int, layout: str) -> int:
    """How many bits an element takes in ``layout``."""
    return 4 if bits == 3 and layout == "tiles" else bits


def by_blocks(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """``function(t, ...)``, which treats each row of ``t`` by itself, a block of rows at a time: all stays in the cache."""

    @functools.wraps(function)
    def blocked(t: torch.Tensor, *arguments: Any) -> torch.Tensor:
        rows = BLOCK // max(t.shape[1], 1) + 1
        if t.device.type != "cpu" or len(t) <= rows:
            return function(t, *arguments)
        return torch.cat([function(block, *arguments) for block in t.split(rows)])

    return blocked


def words_of(fields: torch.Tensor, multiple: int) -> tuple[torch.Tensor, int]:
    """``(N, K)`` bytes as int64 ``(N * K' / 8,)`` and ``K'``, K padded with zeros to a multiple of ``multiple``."""
    short = -fields.shape[1] % multiple
    fields = torch.nn.functional.pad(fields, (0, short)) if short else fields
    flat = fields.reshape(-1)  # of one dimension: view() minds the strides of empty ones with two
    return (flat.clone() if flat.storage_offset() % 8 else flat).view(torch.int64), fields.shape[1]


def lanes(mask: int, width: int) -> int:
    """``mask`` in every lane of ``width`` bits of an int64."""
    return sum(mask << at for at in range(0, 64, width))


@by_blocks
def pack_rows(fields: torch.Tensor, bits: int) -> torch.Tensor:
    """``(N, K)`` int8 fields as ``(N, ceil(K * bits / 8))`` bytes of the layout ``rows``."""
    n, k = fields.shape
    if bits == 8:
        return fields.contiguous().view(torch.uint8).clone()
    words, padded = words_of(fields, 8)
    words = words & lanes(2**bits - 1, 8)
    for width in (8, 16, 32):  # the fields of two lanes become neighbours in one of twice the width
        words |= words >> (8 - bits) * width // 8
        words &= lanes(2 ** (bits * width // 4) - 1, 2 * width)
    octets = words.view(torch.uint8).view(n, padded // 8, 8)[:, :, :bits]
    return octets.flatten(1)[:, : -(-k * bits // 8)].contiguous()


@by_blocks
def unpack_rows(data: torch.Tensor, bits: int, k: int) -> torch.Tensor:
    """The inverse of :func:`pack_rows`: ``(N, K)`` int8 fields."""
    if bits == 8:
        return data.view(torch.int8).clone()
    n, octets = len(data), -(-k // 8)
    short = octets * bits - data.shape[1]
    whole = torch.nn.functional.pad(data, (0, short)) if short else data
    bytes_ = data.new_zeros((n, octets, 8))
    bytes_[:, :, :bits] = whole.reshape(n, octets, bits)
    words = bytes_.view(-1).view(torch.int64)
    for width in (32, 16, 8):
        words |= words << (8 - bits) * width // 8
        words &= lanes(2 ** (bits * width // 8) - 1, width)
    return sign_extended(words.view(torch.uint8).view(n, octets * 8), bits)[:, :k].contiguous()


def sign_extended(values: torch.Tensor, bits: int) -> torch.Tensor:
    """uint8 fields of ``bits`` bits as int8, in their place."""
    fields, sign = values.view(torch.int8), 2 ** (bits - 1)
    return fields if bits == 8 else fields.bitwise_xor_(sign).sub_(sign)


@by_blocks
def pack_tiles(fields: torch.Tensor, bits: int) -> torch.Tensor:
    """``(N, K)`` int8 fields as bytes of the layout ``tiles``, ``(N, 64 * number of tiles)``."""
    n, bits = len(fields), field_bits(bits, "tiles")
    per_byte = 8 // bits
    words, padded = words_of(fields, TILE * per_byte)
    if bits == 8:
        return words.view(torch.uint8).view(n, padded).clone()
    parts = words.view(n, padded // (per_byte * TILE), per_byte, TILE // 8)
    packed = parts[:, :, 0] & lanes(2**bits - 1, 8)
    for i in range(1, per_byte):
        packed |= (parts[:, :, i] & lanes(2**bits - 1, 8)) << (i * bits)
    return packed.view(-1).view(torch.uint8).view(n, padded // per_byte)


@by_blocks
def unpack_tiles(data: torch.Tensor, bits: int, k: int) -> torch.Tensor:
    """The inverse of :func:`pack_tiles`: ``(N, K)`` int8 fields."""
    bits = field_bits(bits, "tiles")
    if bits == 8:
        return data.view(torch.int8)[:, :k].clone(memory_format=torch.contiguous_format)
    n, per_byte = len(data), 8 // bits
    words = words_of(data, TILE)[0].view(n, data.shape[1] // TILE, TILE // 8)
    parts = torch.stack([(words >> (i * bits)).bitwise_and_(lanes(2**bits - 1, 8)) for i in range(per_byte)], 2)
    return sign_extended(parts.view(-1).view(torch.uint8).view(n, data.shape[1] * per_byte), bits)[:, :k].contiguous()


@by_blocks
def row_sums(fields: torch.Tensor, size: int | None) -> torch.Tensor:
    """int32 sums of ``(N, K)`` int8 fields over rows, ``(N,)``, or over groups of ``size``, ``(N, G)``; without an int32 copy.

    Four neighbours are added at a time, as unsigned bytes of an int64 (``f + 128``) in lanes of 16 and then of 32 bits.
    """
    words, padded = words_of(fields, 8)
    words = words ^ (lanes(0x80, 8) - 2**64)
    for width in (8, 16):
        mask = lanes(2**width - 1, 2 * width)
        words = (words & mask).add_((words >> width).bitwise_and_(mask))
    fours = words.view(torch.int32).view(len(fields), padded // 4).sub_(4 * 128)
    if size is None:
        return fours.sum(1, dtype=torch.int32)
    if size >= padded > 0:
        return fours.sum(1, dtype=torch.int32, keepdim=True)
    fours = torch.nn.functional.pad(fours, (0, -fours.shape[1] % (size // 4)))
    return fours.view(len(fours), -(-fields.shape[1] // size), size // 4).sum(2, dtype=torch.int32)


def pack_blocks(fields: torch.Tensor, bits: int) -> torch.Tensor:
    """``(N, K)`` int8 fields as bytes of the layout ``blocks``, ``(ceil(N / 16), 128 * bits * ceil(K / 64))``."""
    if fields.device.type == "cpu" and _native.cpu_error is None:
        from .ops import _library  # noqa: F401  defines the operator

        return torch.ops.fastq.pack_blocks.default(fields.contiguous(), bits)  # type: ignore[no-any-return]
    return pack_blocks_in_torch(fields, bits)


def pack_blocks_in_torch(fields: torch.Tensor, bits: int) -> torch.Tensor:
    """The same where there is no native library."""
    n, k = fields.shape
    fields = torch.nn.functional.pad(fields, (0, -k % BLOCK_DEPTH, 0, -n % BLOCK_ROWS))
    blocks, tiles = len(fields) // BLOCK_ROWS, fields.shape[1] // BLOCK_DEPTH
    lines = fields.view(blocks, BLOCK_ROWS, tiles, 16, 4).permute(0, 2, 3, 1, 4).contiguous().view(-1).view(torch.uint8)
    if bits == 8:
        return lines.view(blocks, tiles * BLOCK_ROWS * BLOCK_DEPTH)
    # as words of eight bytes, no bit of which leaves its byte
    words = (lines.view(torch.int64) & lanes(2**bits - 1, 8)) ^ lanes(2 ** (bits - 1), 8)
    words = words.view(blocks, tiles, 16, 8)
    if bits == 3:
        planes = [joined_lines(words & lanes(3, 8), 2), joined_lines((words >> 2) & lanes(1, 8), 1)]
    else:
        planes = [joined_lines(words, bits)]
    return torch.cat(planes, 2).view(-1).view(torch.uint8).view(blocks, tiles * 128 * bits)


def joined_lines(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Of ``(..., 16, 8)`` words, whose bytes have ``bits`` bits, as many lines in one as it has room for."""
    each = 8 // bits
    parts = words.unflatten(2, (16 // each, each))
    joined = parts[:, :, :, 0].clone()
    for i in range(1, each):
        joined |= parts[:, :, :, i] << (i * bits)
    return joined


def unpack_blocks(data: torch.Tensor, bits: int, n: int, k: int) -> torch.Tensor:
    """The inverse of :func:`pack_blocks`: ``(N, K)`` int8 fields."""
    blocks, tiles = len(data), -(-k // BLOCK_DEPTH)
    flat = data.reshape(-1)
    if bits == 8:
        lines = flat.clone() if flat.storage_offset() % 4 else flat
    else:
        words = (flat.clone() if flat.storage_offset() % 8 else flat).view(torch.int64).view(blocks, tiles, 2 * bits, 8)
        plane = 2 if bits == 3 else bits
        fields = split_lines(words[:, :, : 2 * plane], plane)
        if bits == 3:
            fields |= split_lines(words[:, :, 2 * plane :], 1) << 2
        lines = sign_extended((fields ^ lanes(2 ** (bits - 1), 8)).view(-1).view(torch.uint8), bits)
    fours = lines.view(torch.int32).view(blocks, tiles, 16, BLOCK_ROWS).permute(0, 3, 1, 2).contiguous()
    return fours.view(-1).view(torch.int8).view(blocks * BLOCK_ROWS, tiles * BLOCK_DEPTH)[:n, :k].contiguous()


def split_lines(words: torch.Tensor, bits: int) -> torch.Tensor:
    """The inverse of :func:`joined_lines`."""
    parts = [(words >> (i * bits)) & lanes(2**bits - 1, 8) for i in range(8 // bits)]
    return torch.stack(parts, 3).flatten(2, 3)


_PACK = {"rows": pack_rows, "tiles": pack_tiles, "blocks": pack_blocks}


def unpack(layout: str, data: torch.Tensor, bits: int, n: int, k: int) -> torch.Tensor:
    """``(N, K)`` int8 fields of what lies in ``layout``."""
    if layout == "blocks":
        return unpack_blocks(data, bits, n, k)
    return (unpack_rows if layout == "rows" else unpack_tiles)(data, bits, k)


class PackedWeight:
    """Integer codes of a weight, packed, with their scales. Made by :func:`pack`; it does not change.

    Attributes:
        shape: of the weight: ``(N, K)``, ``(O, C/groups, kw)`` or ``(O, C/groups, kh, kw)``.
        bits: 2, 3, 4 or 8.
        signed: whether codes are int8 or uint8.
        group_size: elements of a row that share a scale, or None.
        scale: float32; ``(1,)`` per tensor, ``(N,)`` per channel, ``(N, G)`` per group, ``G = ceil(K / group_size)``.
        zero_point: int32 codes of the shape of ``scale``, or None for 0.
        layout: ``rows``, ``tiles`` or ``blocks``, which the module's documentation describes; ``version``: of the layouts.
        data: uint8, in that layout: ``(N, bytes of a row)``; of ``blocks``, ``(ceil(N / 16), bytes of 16 rows)``.
        stored_zero: int32, ``zero_point - middle`` of the shape of ``scale``; None where it is 0 everywhere.
        sums: int32 ``(N,)``, per group ``(N, G)``: the sums of ``field - stored_zero``, what a zero-point of the input is
            multiplied with.
    """

    version = VERSION

    def __init__(
        self, data: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | None, shape: tuple[int, ...], bits: int,
        signed: bool, group_size: int | None, layout: str, sums: torch.Tensor | None = None, fields: torch.Tensor | None = None,
    ) -> None:  # fmt: skip
        self.data, self.scale, self.zero_point = data, scale, zero_point
        self.shape, self.bits, self.signed = tuple(shape), bits, signed
        self.group_size, self.layout = group_size, layout
        middle = 0 if signed else 2 ** (bits - 1)
        zero = torch.full_like(scale, -middle, dtype=torch.int32) if zero_point is None else zero_point - middle
        self.stored_zero = None if zero_point is None and middle == 0 else zero
        if self.stored_zero is not None and not zero.is_meta and not bool(zero.any()):
            self.stored_zero = None
        self.sums = self._sums(self.fields() if fields is None else fields) if sums is None else sums

    @property
    def n(self) -> int:
        """Rows: output features or channels."""
        return self.shape[0]

    @property
    def k(self) -> int:
        """Elements of a row."""
        size = 1
        for length in self.shape[1:]:
            size *= length
        return size

    @property
    def granularity(self) -> str:
        """``tensor``, ``channel`` or ``group``."""
        return "group" if self.group_size is not None else "tensor" if self.scale.numel() == 1 else "channel"

    @property
    def device(self) -> torch.device:
        return self.data.device

    @property
    def nbytes(self) -> int:
        """Of the codes as they lie in memory here, padding included; scales and zero-points are not counted."""
        return self.data.numel()

    def operand(self) -> Operand:
        """What a kernel is given."""
        return Operand(self.data, self.scale, self.stored_zero, self.sums, self.n, self.k, self.bits, self.group_size or 0)

    #: The same, kept: for calls like earlier ones.
    kept_operand = functools.cached_property(operand)

    @functools.cached_property
    def form(self) -> tuple[Any, ...]:
        """What two weights have in common that a call is checked alike for."""
        zeros = self.stored_zero is not None
        return self.shape, self.bits, self.group_size, zeros, self.scale.numel(), self.layout, self.device

    def fields(self) -> torch.Tensor:
        """``(N, K)`` int8: what is packed, sign-extended."""
        return unpack(self.layout, self.data, self.bits, self.n, self.k)

    def unpack(self) -> torch.Tensor:
        """The codes, as :func:`pack` took them: int8 or uint8, of ``shape``."""
        fields = self.fields()
        if self.signed:
            return self._shaped(fields)
        return self._shaped(fields.view(torch.uint8).bitwise_xor_(2 ** (self.bits - 1)).bitwise_and_(2**self.bits - 1))

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """``scale * (code - zero_point)``, rounded once from float32 to ``dtype``, of ``shape``.

        Raises ``TypeError`` for a ``dtype`` that is not of floating point.
        """
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise TypeError(f"PackedWeight.dequantize: dtype must be a floating point torch.dtype, got {dtype!r:.60}")
        size = max(min(self.group_size or self.k, self.k), 1)
        values = torch.nn.functional.pad(self.fields(), (0, -self.k % size)).to(torch.float32)
        groups = values.view(self.n, values.shape[1] // size, size)
        each = (-1, 1, 1) if self.group_size is None else (*self.scale.shape, 1)
        if self.stored_zero is not None:
            groups -= self.stored_zero.view(each)
        groups *= self.scale.view(each)
        return self._shaped(values[:, : self.k].to(dtype))

    def _shaped(self, t: torch.Tensor) -> torch.Tensor:
        """``(N, K)`` as ``shape``."""
        if len(self.shape) <= 2:
            return t.contiguous()
        o, c, *kernel = self.shape
        return t.reshape(o, *kernel, c).movedim(-1, 1).contiguous()

    def _sums(self, fields: torch.Tensor) -> torch.Tensor:
        sums = row_sums(fields, self.group_size)
        if self.stored_zero is None:
            return sums
        length: int | torch.Tensor = self.k
        if self.group_size is not None:
            starts = torch.arange(0, self.k, self.group_size, dtype=torch.int32, device=self.device)
            length = (self.k - starts).clamp_(max=self.group_size)
        return sums - self.stored_zero * length

    def to(self, device: torch.device | str, layout: str | None = None) -> PackedWeight:
        """The same weight on ``device``, in the layout of its kernels or the one given; itself where nothing changes.

        Raises ``TypeError`` for what is no device (a dtype: codes have none to change), ``ValueError`` for an unknown layout.
        """
        if not isinstance(device, str | int | torch.device):
            raise TypeError(f"PackedWeight.to: device must be a torch.device or a string such as 'cuda', got {device!r:.60}")
        device = torch.device(device)
        layout = layout_of(device) if layout is None else layout
        if layout not in LAYOUTS:
            raise ValueError(f"PackedWeight.to: layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
        data = self.data
        if layout != self.layout:
            # where it is fastest, and what crosses the bus is as small as it gets
            fields = unpack(self.layout, data.to(device) if device.type == "cuda" else data, self.bits, self.n, self.k)
            data = _PACK[layout](fields, self.bits)
        data = data.to(device)
        if data is self.data:
            return self
        new = object.__new__(type(self))
        new.__dict__.update(self.__dict__, data=data, layout=layout)
        for name in ("form", "kept_operand"):
            new.__dict__.pop(name, None)
        for name in ("scale", "zero_point", "stored_zero", "sums"):
            if (t := getattr(self, name)) is not None:
                setattr(new, name, t.to(device))
        return new

    def canonical(self) -> PackedWeight:
        """The same weight in the layout ``rows`` on the CPU."""
        return self.to("cpu", "rows")

    def save(self, path: str | os.PathLike[str]) -> int:
        """Write the weight to a safetensors file, in the layout ``rows`` wherever it lies; returns the bytes written.

        Tensors: ``data`` uint8 ``(N, ceil(K * bits / 8))``, ``scale`` float32, ``zero_point`` int8 or uint8 (where there are some).
        The metadata's ``"fastq_weight"`` is JSON: ``version`` of the file, ``checksum``, ``shape``, ``bits``, ``signed``,
        ``granularity``, ``group_size``, ``layout`` and ``layout_version``. An interrupted write leaves no half file. Raises
        ``OSError`` if the file cannot be written.
        """
        own = self.canonical()
        header = {"shape": list(own.shape), "bits": own.bits, "signed": own.signed, "granularity": own.granularity}
        header |= {"group_size": own.group_size, "layout": own.layout, "layout_version": own.version}
        tensors = {"data": own.data, "scale": own.scale}
        if own.zero_point is not None:
            tensors["zero_point"] = own.zero_point.to(torch.int8 if own.signed else torch.uint8)
        return container.write(path, FILE, FILE_VERSION, header, tensors)

    @staticmethod
    def load(source: str | os.PathLike[str] | bytes) -> PackedWeight:
        """The weight that :meth:`save` wrote to ``source``, a path or the file's bytes; on the CPU, ``.to(device)`` moves it.

        Raises:
            fastq.deploy.FormatError: the file is truncated, damaged, foreign, of a newer version, without one of its tensors, or
                what it says of itself does not fit its tensors.
            OSError: the file cannot be read.
        """
        header, tensors = container.read(source, FILE, (FILE_VERSION,), "packed weight")
        try:
            return _from_parts(header, tensors)
        except KeyError as error:
            reason = f"it has no {error}"
        except (TypeError, ValueError, OverflowError, RuntimeError) as error:
            reason = " ".join(str(error).split())
        raise container.FormatError(f"load: {container.name_of(source)} does not hold what it says: {reason:.300}")

    def __repr__(self) -> str:
        kind = f"{'' if self.signed else 'u'}int{self.bits}"
        per = self.granularity if self.group_size is None else f"group of {self.group_size}"
        return f"PackedWeight({kind} {self.shape}, per {per}, {self.layout}, {self.nbytes} bytes, {self.device})"

    def __reduce__(self) -> Any:
        own = (self.data, self.scale, self.zero_point, self.shape, self.bits, self.signed, self.group_size, self.layout, self.sums)
        return PackedWeight, own


def pack(
    codes: torch.Tensor, bits: int, *, scale: torch.Tensor | float, zero_point: torch.Tensor | int | None = None,
    group_size: int | None = None,
) -> PackedWeight:  # fmt: skip
    """Pack integer codes of a weight: ``bits`` bits each, with what turns them into numbers, ``scale * (code - zero_point)``.

    Args:
        codes: int8 (signed, ``-2**(bits-1)`` to ``2**(bits-1) - 1``) or uint8 (unsigned, 0 to ``2**bits - 1``); ``(N, K)`` of a
            linear layer, ``(O, C/groups, kw)`` or ``(O, C/groups, kh, kw)`` of a convolution; any sizes and strides.
        bits: 2, 3, 4 or 8.
        scale: in units of the weight, finite; a number or one element per tensor, ``(N,)`` per channel, ``(N, ceil(K/group_size))``
            per group. Made float32.
        zero_point: integer codes in the range of ``codes``: a number, one element, or of the shape of ``scale``. None: 0.
        group_size: a multiple of 16: so many consecutive elements of a row share a scale; the last group of a row may be shorter.
            For ``(N, K)`` alone.

    Returns:
        A :class:`PackedWeight` on the device of ``codes``, in the layout that its kernels read. ``unpack()`` gives ``codes`` again.

    Raises:
        TypeError: ``codes`` is no int8 or uint8 tensor; ``zero_point`` is not of integers; ``bits`` or ``group_size`` is no int.
        ValueError: a code or zero-point lies outside the width; a scale is not finite; a shape, width or group size does not fit;
            tensors lie on different devices.
    """
    if not isinstance(codes, torch.Tensor) or codes.dtype not in (torch.int8, torch.uint8) or codes.layout != torch.strided:
        got = type(codes).__name__
        if isinstance(codes, torch.Tensor):
            got = str(codes.dtype) if codes.layout == torch.strided else f"{codes.dtype} in the layout {codes.layout}"
        raise TypeError(f"pack: codes must be a torch.int8 (signed) or torch.uint8 (unsigned) tensor, got {got}")
    if codes.is_meta:
        raise ValueError("pack: codes must have values, got a tensor on the device meta")
    for name, value in (("bits", bits), ("group_size", group_size)):
        if isinstance(value, bool) or not isinstance(value, int | None) or (name == "bits" and value is None):
            raise TypeError(f"pack: {name} must be an int, got {value!r:.60}")
    if bits not in BITS:
        raise ValueError(f"pack: bits must be 2, 3, 4 or 8, got {bits}")
    if codes.dim() not in (2, 3, 4):
        raise ValueError(f"pack: codes must be (N, K), (O, C, kw) or (O, C, kh, kw), got shape {tuple(codes.shape)}")
    signed = codes.dtype == torch.int8
    lowest, highest = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)

    def check_width(name: str, t: torch.Tensor) -> None:
        if t.numel() == 0 or (t.dtype == codes.dtype and bits == 8):
            return
        least, most = (int(end) for end in torch.aminmax(t))
        if least < lowest or most > highest:
            kind = "signed" if signed else "unsigned"
            raise ValueError(f"pack: {name} must be {kind} {bits}-bit codes, {lowest} to {highest}, got {least} to {most}")

    check_width("codes", codes)
    n, k = codes.shape[0], torch.Size(codes.shape[1:]).numel()
    if group_size is not None:
        if codes.dim() != 2:
            raise ValueError(f"pack: group_size is for weights of shape (N, K), got codes of shape {tuple(codes.shape)}")
        if not 16 <= group_size < 2**31 or group_size % 16:
            raise ValueError(f"pack: group_size must be a multiple of 16 below 2**31, got {group_size}")
    shape = (n, -(-k // group_size)) if group_size is not None else None

    def shaped(name: str, value: torch.Tensor) -> torch.Tensor:
        if shape is not None and tuple(value.shape) != shape:
            raise ValueError(f"pack: {name} must have shape {shape}, one per group of {group_size}, got {tuple(value.shape)}")
        if shape is None and value.numel() != 1 and tuple(value.shape) != (n,):
            raise ValueError(f"pack: {name} must have one element or shape {(n,)}, one per channel, got {tuple(value.shape)}")
        return value.reshape(-1).clone() if shape is None else value.contiguous().clone()

    def as_tensor(name: str, value: Any, kind: Any, dtypes: tuple[torch.dtype, ...], expected: str) -> torch.Tensor:
        if not isinstance(value, torch.Tensor):
            if not isinstance(value, kind) or isinstance(value, bool):
                raise TypeError(f"pack: {name} must be {expected}, got {value!r:.60}")
            # beyond int64 is beyond every code as well, and beyond float64 beyond float32
            if kind is numbers.Integral:
                value = max(min(int(value), 2**63 - 1), -(2**63))
            else:
                value = math.inf if isinstance(value, int) and abs(value) > 2**1000 else float(value)
            return torch.tensor(value, dtype=dtypes[-1], device=codes.device)
        if value.dtype not in dtypes:
            raise TypeError(f"pack: {name} must be {expected}, got {value.dtype}")
        if value.device != codes.device and value.dim():
            raise ValueError(f"pack: {name} must be on the device of codes, {codes.device}, got {value.device}")
        return value.detach().to(codes.device)

    steps = as_tensor("scale", scale, numbers.Real, FLOATS, "floating point numbers")
    steps = shaped("scale", steps.to(torch.float32))
    if not bool((finite := steps.isfinite()).all()):
        raise ValueError(f"pack: scale must be finite in float32, got {steps[~finite][:8].tolist()}")
    zero = None
    if zero_point is not None:
        zero = as_tensor("zero_point", zero_point, numbers.Integral, INTEGERS, "integers")
        check_width("zero_point", zero)
        if zero.numel() == 1 and (shape is not None or steps.numel() != 1):
            zero = zero.reshape(()).expand(steps.shape)
        zero = shaped("zero_point", zero.to(torch.int32))
        if zero.shape != steps.shape:
            steps = steps.expand(zero.shape).contiguous()
    fields = codes if signed else sign_extended(codes.contiguous() ^ 2 ** (bits - 1), bits)
    if codes.dim() > 2:
        fields = fields.movedim(1, -1)
    layout = layout_of(codes.device)
    fields = fields.reshape((n, k))
    return PackedWeight(
        _PACK[layout](fields, bits), steps, zero, tuple(codes.shape), bits, signed, group_size, layout, fields=fields
    )


def _from_parts(header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> PackedWeight:
    """The weight of a file; any error says that the parts do not fit. It is packed again, so that ``pack`` has the last word."""
    bits, group_size, signed = header["bits"], header["group_size"], header["signed"]
    if (header["layout"], header["layout_version"]) != ("rows", VERSION):
        raise ValueError(
            f"its layout is {header['layout']!r} version {header['layout_version']!r}; 'rows' version {VERSION} is known"
        )
    shape = header["shape"]
    if not isinstance(shape, list) or any(type(length) is not int or length < 0 for length in shape):
        raise ValueError(f"its shape is {shape!r}")
    if type(signed) is not bool or type(bits) is not int or bits not in BITS:
        raise ValueError(f"its codes are of {bits!r} bits, signed {signed!r}")
    data, scale, zero = tensors["data"], tensors["scale"], tensors.get("zero_point")
    if unknown := set(tensors) - {"data", "scale", "zero_point"}:
        raise ValueError(f"it has the unknown tensors {sorted(unknown)}")
    dtype = torch.int8 if signed else torch.uint8
    for name, t, expected in (("data", data, torch.uint8), ("scale", scale, torch.float32), ("zero_point", zero, dtype)):
        if t is not None and t.dtype != expected:
            raise ValueError(f"{name} is of {t.dtype}, not {expected}")
    bytes_ = -(-math.prod(shape[1:]) * bits // 8)
    if len(shape) < 2 or tuple(data.shape) != (shape[0], bytes_):
        raise ValueError(f"data of shape {tuple(data.shape)} for a weight of shape {tuple(shape)} in {bits} bits")
    for name, t in (("scale", scale), ("zero_point", zero)):
        if t is not None and (t.dim() != (1 if group_size is None else 2) or t.shape != scale.shape):
            raise ValueError(f"{name} has the shape {tuple(t.shape)}")
    raw = PackedWeight(data, scale, None, tuple(shape), bits, signed, None, "rows", data.new_zeros(0))
    packed = pack(raw.unpack(), bits, scale=scale, zero_point=zero, group_size=group_size)
    if not torch.equal(packed.canonical().data, data):
        raise ValueError("the bits that pad its rows are not 0")
    if packed.granularity != header["granularity"]:
        raise ValueError(f"it is quantized per {packed.granularity}, not {header['granularity']!r:.60}")
    return packed
