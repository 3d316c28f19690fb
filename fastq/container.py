"""What every file of fastq is: safetensors, whose metadata has one JSON value with a version and a checksum of the whole file.

``checksum`` is the SHA-256 of the whole file with the checksum's digits as zeros, so that no damaged byte passes; ``tensors`` is a
number, of the file's tensors, so that one is missed which a layer could do without. A file is written beside its path and then
moved there. Nothing is unpickled.

A file is read here, with NumPy alone, for those who have a torch and those who do not; written by the safetensors library.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch

__all__ = ["FormatError", "Stored", "name_of", "read", "read_arrays", "write"]

_CHECKSUM = re.compile(rb'(\\"checksum\\":\s?\\")([0-9a-f]{64})(\\")')
#: safetensors' types: what NumPy reads them as and what torch calls them. Those that NumPy does not know stay the bits they are.
TYPES = {
    "F64": ("<f8", "float64"), "F32": ("<f4", "float32"), "F16": ("<f2", "float16"), "BF16": ("<u2", "bfloat16"),
    "I64": ("<i8", "int64"), "I32": ("<i4", "int32"), "I16": ("<i2", "int16"), "I8": ("i1", "int8"),
    "U64": ("<u8", "uint64"), "U32": ("<u4", "uint32"), "U16": ("<u2", "uint16"), "U8": ("u1", "uint8"),
    "BOOL": ("u1", "bool"), "C64": ("<c8", "complex64"),
    "F8_E4M3": ("u1", "float8_e4m3fn"), "F8_E4M3FNUZ": ("u1", "float8_e4m3fnuz"),
    "F8_E5M2": ("u1", "float8_e5m2"), "F8_E5M2FNUZ": ("u1", "float8_e5m2fnuz"),
}  # fmt: skip
#: Of a header, as the safetensors library has it; and of an array's axes, as NumPy has it.
MOST_HEADER, MOST_AXES = 100_000_000, 64


class FormatError(ValueError):
    """A file that is not an intact one of a version this fastq reads, or that does not fit what it is loaded into."""


class Stored(NamedTuple):
    """A file's tensor: what torch calls its dtype, and its elements, a view of the file; where NumPy has no such dtype, their bits
    as unsigned integers."""

    dtype: str
    array: np.ndarray


def write(path: str | os.PathLike[str], key: str, version: int, header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> int:
    """Write ``tensors`` and, under ``key`` of the metadata, ``header`` with its version and checksum; returns the bytes written.

    An interrupted write leaves no half file. Raises ``OSError`` if the file cannot be written.
    """
    import safetensors.torch

    header = {"version": version, "checksum": "0" * 64, "tensors": len(tensors), **header}
    data = safetensors.torch.save(tensors, {key: json.dumps(header, separators=(",", ":"))})
    digest = hashlib.sha256(data).hexdigest().encode()
    data = _CHECKSUM.sub(lambda match: match[1] + digest + match[3], data, count=1)
    put(path, data)
    return len(data)


def put(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a whole file or, where that is interrupted or fails, none."""
    from pathlib import Path  # here: reading, of which a process that starts has to wait for all imports, does without

    part = Path(f"{os.fspath(path)}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def name_of(source: str | os.PathLike[str] | bytes) -> str:
    """Of a file's path or bytes, for messages."""
    return "the data" if isinstance(source, bytes) else os.fspath(source)


def _bytes_of(path: str | os.PathLike[str]) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _digest(data: bytes, first: int, last: int) -> str:
    """SHA-256 of ``data`` with zeros for digits in the place of the bytes from ``first`` to ``last``; nothing is copied."""
    view = memoryview(data)
    digest = hashlib.sha256(view[:first])
    digest.update(b"0" * (last - first))
    digest.update(view[last:])
    return digest.hexdigest()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON's own reader takes the last of two values that have one name."""
    if len(found := dict(pairs)) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _json(text: bytes | str) -> Any:
    """``ValueError`` or ``RecursionError`` where it is none. Bytes are UTF-8, whatever they look like."""
    return json.loads(text.decode() if isinstance(text, bytes) else text, object_pairs_hook=_once)


def _arrays(data: bytes, start: int, entries: dict[str, Any]) -> dict[str, Stored]:
    """The tensors of safetensors' header, which fill ``data`` from ``start`` without gap or overlap; else ``ValueError``."""
    places = []
    for name, entry in entries.items():
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"the tensor {name!r:.60} does not have dtype, shape and data_offsets")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in TYPES:
            raise ValueError(f"the tensor {name!r:.60} has the unknown dtype {dtype!r:.20}")
        for numbers, what in ((shape, "shape"), (offsets, "data_offsets")):
            if not isinstance(numbers, list) or any(type(n) is not int or not 0 <= n < 2**63 for n in numbers):
                raise ValueError(f"the tensor {name!r:.60} has the {what} {numbers!r:.60}")
        if len(offsets) != 2 or len(shape) > MOST_AXES:
            raise ValueError(f"the tensor {name!r:.60} has {len(offsets)} offsets and {len(shape)} axes")
        places.append((*offsets, name, dtype, shape))
    end, found = 0, {}
    for first, last, name, dtype, shape in sorted(places, key=lambda place: place[:2]):
        kind = np.dtype(TYPES[dtype][0])
        if first != end or last - first != math.prod(shape) * kind.itemsize:
            raise ValueError(f"the tensor {name!r:.60}, {dtype} {tuple(shape)!r:.60}, does not fill the bytes {first} to {last}")
        if last > len(data) - start:
            raise ValueError(f"the tensor {name!r:.60} ends at byte {last} of {len(data) - start}")
        array = np.frombuffer(data, kind, math.prod(shape), start + first).reshape(shape)
        if dtype == "BOOL" and array.max(initial=0) > 1:
            raise ValueError(f"the tensor {name!r:.60} of booleans holds other numbers than 0 and 1")
        found[name] = Stored(TYPES[dtype][1], array)
        end = last
    if end != len(data) - start:
        raise ValueError(f"{len(data) - start - end} bytes belong to no tensor")
    return {name: found[name] for name in entries}


def read_arrays(
    source: str | os.PathLike[str] | bytes, key: str, versions: tuple[int, ...], what: str, uncounted: tuple[int, ...] = ()
) -> tuple[dict[str, Any], dict[str, Stored]]:
    """The header and the tensors of an intact file that :func:`write` wrote with ``key`` and one of ``versions``; without torch.

    ``source``: a path, or the file's bytes. ``what``: what such a file holds, for messages. ``uncounted``: versions whose header
    does not say how many tensors there are. The arrays are read-only views, which keep the file's bytes alive.

    Raises ``FormatError`` if the file is anything else, ``OSError`` if it cannot be read.
    """
    name = name_of(source)
    data = source if isinstance(source, bytes) else _bytes_of(source)
    if len(data) < 8 or not 2 <= (size := struct.unpack("<Q", data[:8])[0]) <= min(len(data) - 8, MOST_HEADER):
        raise FormatError(f"load: {name} is truncated or no safetensors file")
    try:
        entries = _json(data[8 : 8 + size])
        metadata = entries.pop("__metadata__")
        header = _json(metadata[key])
        version, checksum = header["version"], header["checksum"]
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        raise FormatError(f"load: {name} is no fastq {what} (or its header is corrupted)") from None
    if type(version) is not int or version not in versions:
        known = f"version{'s' if len(versions) > 1 else ''} {' and '.join(map(str, versions))}"
        raise FormatError(f"load: {name} has format version {version!r:.20}; this fastq reads {known}")
    match = _CHECKSUM.search(data, 8, 8 + size)
    if match is None or match[2].decode() != checksum or _digest(data, *match.span(2)) != checksum:
        raise FormatError(f"load: {name} is truncated or corrupted: its checksum does not match")
    try:
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("its metadata are not strings")
        tensors = _arrays(data, 8 + size, entries)
    except (ValueError, OverflowError) as error:
        raise FormatError(f"load: {name} is no valid safetensors file: {error}") from None
    if version not in uncounted and (count := header.get("tensors")) != len(tensors):
        raise FormatError(f"load: {name} has {len(tensors)} tensors where its header says {count!r:.20}")
    return header, tensors


def read(
    source: str | os.PathLike[str] | bytes, key: str, versions: tuple[int, ...], what: str, uncounted: tuple[int, ...] = ()
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """:func:`read_arrays` with torch's tensors, which are copies."""
    import torch

    header, arrays = read_arrays(source, key, versions, what, uncounted)
    tensors = {}
    for name, (dtype, array) in arrays.items():
        bits = torch.from_numpy(array.reshape(-1).copy())  # of one dimension: view() minds the strides of empty ones
        tensors[name] = bits.view(getattr(torch, dtype)).reshape(array.shape)
    return header, tensors
