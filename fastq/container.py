"""What every file of fastq is: safetensors, whose metadata has one JSON value with a version and a checksum of the whole file.

``checksum`` is the SHA-256 of the whole file with the checksum's digits as zeros, so that no damaged byte passes; ``tensors`` is a
number, of the file's tensors, so that one is missed which a layer could do without. A file is written beside its path and then
moved there. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

__all__ = ["FormatError", "name_of", "read", "write"]

_CHECKSUM = re.compile(rb'(\\"checksum\\":\s?\\")([0-9a-f]{64})(\\")')


class FormatError(ValueError):
    """A file that is not an intact one of a version this fastq reads, or that does not fit what it is loaded into."""


def write(path: str | os.PathLike[str], key: str, version: int, header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> int:
    """Write ``tensors`` and, under ``key`` of the metadata, ``header`` with its version and checksum; returns the bytes written.

    An interrupted write leaves no half file. Raises ``OSError`` if the file cannot be written.
    """
    header = {"version": version, "checksum": "0" * 64, "tensors": len(tensors), **header}
    data = safetensors.torch.save(tensors, {key: json.dumps(header, separators=(",", ":"))})
    digest = hashlib.sha256(data).hexdigest().encode()
    data = _CHECKSUM.sub(lambda match: match[1] + digest + match[3], data, count=1)
    part = Path(f"{os.fspath(path)}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return len(data)


def name_of(source: str | os.PathLike[str] | bytes) -> str:
    """Of a file's path or bytes, for messages."""
    return "the data" if isinstance(source, bytes) else os.fspath(source)


def read(
    source: str | os.PathLike[str] | bytes, key: str, versions: tuple[int, ...], what: str, uncounted: tuple[int, ...] = ()
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The header and the tensors of an intact file that :func:`write` wrote with ``key`` and one of ``versions``.

    ``source``: a path, or the file's bytes. ``what``: what such a file holds, for messages. ``uncounted``: versions whose header
    does not say how many tensors there are.

    Raises ``FormatError`` if the file is anything else, ``OSError`` if it cannot be read.
    """
    name = name_of(source)
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    if len(data) < 8 or not 2 <= (size := struct.unpack("<Q", data[:8])[0]) <= len(data) - 8:
        raise FormatError(f"load: {name} is truncated or no safetensors file")
    try:
        text = json.loads(data[8 : 8 + size])["__metadata__"][key]
        header = json.loads(text)
        version, checksum = header["version"], header["checksum"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise FormatError(f"load: {name} is no fastq {what} (or its header is corrupted)") from None
    if type(version) is not int or version not in versions:
        known = f"version{'s' if len(versions) > 1 else ''} {' and '.join(map(str, versions))}"
        raise FormatError(f"load: {name} has format version {version!r:.20}; this fastq reads {known}")
    match = _CHECKSUM.search(data, 8, 8 + size)
    zeroed = b"" if match is None else data[: match.start(2)] + b"0" * 64 + data[match.end(2) :]
    if match is None or match[2].decode() != checksum or hashlib.sha256(zeroed).hexdigest() != checksum:
        raise FormatError(f"load: {name} is truncated or corrupted: its checksum does not match")
    try:
        tensors = safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise FormatError(f"load: {name} is no valid safetensors file: {error}") from None
    if version not in uncounted and (count := header.get("tensors")) != len(tensors):
        raise FormatError(f"load: {name} has {len(tensors)} tensors where its header says {count!r:.20}")
    return header, tensors
