"""The sizes of tiles that Triton's integer kernels run with: a table in ``configurations.json``, data for each architecture.

The environment variable ``FASTQ_CONFIGURATIONS`` names another table, such as ``python -m fastq tune`` writes on the GPU at hand.
Nothing is measured when a kernel is first called. A table is ``{"version": 1, "configurations": [...]}``, each entry with the
fields of :class:`Configuration`; of those of a kind and architecture the one with the fewest ``rows`` that are enough is taken.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

__all__ = ["KINDS", "Configuration", "architecture_of", "find", "load", "shipped", "write"]

VERSION = 1
#: By the widths of the weight's fields and of the input (``a16``: bfloat16 or float16; ``a32``: float32, weights of any width).
#: ``_group``: scales of groups; ``_few``: few rows make programs share K. ``_conv``: convolutions, ``_narrow`` with few channels or
#: little work, ``gathered`` with channels that are no multiple of 16.
KINDS = (
    *(f"w{bits}a{x}{group}{few}" for x in (8, 16) for bits in (8, 4, 2) for group in ("", "_group") for few in ("", "_few")),
    *("a32", "a32_few", "conv_gathered"),
    *(f"w{bits}a8_conv{narrow}" for bits in (8, 4, 2) for narrow in ("", "_narrow")),
)
SHIPPED = Path(__file__).with_name("configurations.json")


@dataclass(frozen=True)
class Configuration:
    """How a kernel is launched for one kind of product.

    ``rows``: the most it is for; 0: any number. ``block_k``: elements of K at a time, where weights are not unpacked; of a
    convolution, bytes of packed weights. ``parts``: in which the epilogue takes a tile, so that its registers suffice.
    ``programs``: on each processor of the GPU, to walk the tiles, 0 for one program for each tile. For few rows it is how many
    there are to be in all, which K is shared for: a number of its own, so that the order of a float sum is not the GPU's affair.
    """

    kind: str
    architecture: int
    rows: int
    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int
    parts: int
    programs: int
    flatten: bool

    def reason_against(self) -> str | None:
        """Why no kernel could run with this, or None."""
        if self.kind not in KINDS:
            return f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}"
        sizes = {"block_m": (16, 256), "block_n": (64, 256), "block_k": (64, 256), "warps": (1, 16), "parts": (1, 16)}
        for name, (least, most) in sizes.items():
            value = getattr(self, name)
            if not least <= value <= most or value & (value - 1):
                return f"{name} must be a power of two from {least} to {most}, got {value}"
        for name, (least, most) in {"stages": (1, 12), "rows": (0, 2**31 - 1), "programs": (0, 2**20)}.items():
            if not least <= getattr(self, name) <= most:
                return f"{name} must be from {least} to {most}, got {getattr(self, name)}"
        return None


def load(path: Path) -> tuple[Configuration, ...]:
    """A table. ``ValueError`` says what is wrong with which entry; ``OSError`` where the file cannot be read."""
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: not a table of configurations: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("configurations"), list):
        raise ValueError(f"{path}: not a table of configurations: 'configurations' is no list")
    if content.get("version") != VERSION:
        raise ValueError(f"{path}: version {content.get('version')!r} of the table is unknown; this fastq reads version {VERSION}")
    return tuple(_entry(path, i, each) for i, each in enumerate(content["configurations"]))


def _entry(path: Path, i: int, entry: Any) -> Configuration:
    types = {field.name: {"str": str, "int": int, "bool": bool}[str(field.type)] for field in fields(Configuration)}
    if not isinstance(entry, dict) or set(entry) != set(types):
        raise ValueError(f"{path}: configuration {i} must have the fields {', '.join(types)}, got {entry!r:.200}")
    for name, kind in types.items():
        if type(entry[name]) is not kind:
            raise ValueError(f"{path}: configuration {i}: {name} must be of type {kind.__name__}, got {entry[name]!r:.60}")
    found = Configuration(**entry)
    why = found.reason_against()
    if why is not None:
        raise ValueError(f"{path}: configuration {i}: {why}")
    return found


def write(path: Path, configurations: Iterable[Configuration]) -> None:
    """A table that :func:`load` reads, an entry a line."""
    ordered = sorted(configurations, key=lambda c: (c.architecture, c.kind, c.rows or 2**31))
    lines = ",\n".join("    " + json.dumps(asdict(each)) for each in ordered)
    path.write_text(f'{{\n  "version": {VERSION},\n  "configurations": [\n{lines}\n  ]\n}}\n')


@functools.lru_cache(maxsize=1)
def shipped() -> tuple[Configuration, ...]:
    """The table that comes with fastq."""
    return load(SHIPPED)


@functools.lru_cache(maxsize=8)
def _tables(named: str) -> tuple[tuple[Configuration, ...], ...]:
    """The one that is named, and fastq's for what it lacks."""
    if not named:
        return (shipped(),)
    try:
        return load(Path(named)), shipped()
    except OSError as error:
        raise ValueError(f"FASTQ_CONFIGURATIONS={named}: cannot be read: {error.strerror or error}") from error


@functools.lru_cache(maxsize=4096)
def _find(named: str, kind: str, architecture: int, rows: int) -> Configuration:
    older = sorted({c.architecture for c in shipped() if c.architecture < architecture}, reverse=True)
    for sought in (architecture, *older):
        for table in _tables(named):
            fit = [c for c in table if c.kind == kind and c.architecture == sought and (c.rows >= rows or c.rows == 0)]
            if fit:
                return min(fit, key=lambda c: c.rows or 2**31)
    raise LookupError(f"no configuration for {kind} on architecture {architecture}")


def architecture_of(device: torch.device) -> int:
    """Whose configurations are taken. Those of sm_90 need 227 KB of shared memory: sm_120, with 99 KB, has those of sm_80."""
    if device.type == "cpu":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 80 if major == 12 else 10 * major + minor


def find(kind: str, architecture: int, rows: int) -> Configuration:
    """For a product of ``kind`` with so many ``rows``. An architecture that the table lacks has those of the next older one.

    Raises ``ValueError`` if the table that ``FASTQ_CONFIGURATIONS`` names cannot be read.
    """
    named = os.environ.get("FASTQ_CONFIGURATIONS", "")
    return _find(named, kind, architecture, rows)
