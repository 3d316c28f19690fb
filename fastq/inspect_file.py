"""``python -m fastq inspect FILE``: what a file of ``fastq.save`` or ``PackedWeight.save`` holds; without torch.

The file is read whole and its checksum verified. What cannot be read is said in one line, with exit status 2.
"""

from __future__ import annotations

import argparse
import json
import math
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import container
from .commands import put
from .container import FormatError, Stored
from .tables import table

__all__ = ["add_arguments", "inspect_file", "run"]

#: Of the files that are read, by the key of their metadata: networks (``fastq/deploy/storage.py``), weights (``fastq/packing.py``).
VERSIONS = {"fastq": (1, 2, 3, 4), "fastq_weight": (1,)}
#: Of networks, whose header does not say how many tensors there are.
UNCOUNTED = (1, 2)
KINDS = {"fastq": "network", "fastq_weight": "packed weight"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("file", type=Path, metavar="FILE", help="written by fastq.save or PackedWeight.save")
    parser.add_argument("--json", action="store_true", help="print what there is as JSON")


def key_of(path: Path) -> str:
    """The metadata's key of a file, as its first bytes look; those of a foreign file look like a network's."""
    with path.open("rb") as file:
        first = file.read(8)
        size = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
        return "fastq_weight" if b'"fastq_weight"' in file.read(min(size, 2**16)) else "fastq"


def inspect_file(path: Path) -> dict[str, Any]:
    """What the file at ``path`` holds, as data for JSON.

    Keys: ``file``; ``kind``, ``"network"`` or ``"packed weight"``; ``version``, of the format; ``checksum``, SHA-256, which
    was verified; ``bytes`` of the file; ``layers``, of each what :func:`layer_of` says; ``other_tensors`` and ``other_bytes``, what
    is no layer's; ``float32_bytes``, of the same tensors with float32 in place of the layers' codes; ``compression``, that divided
    by the bytes of all tensors. Of a network ``fused`` and, where the file says, ``program``, whether it runs without torch, and
    ``program_reason``, why not.

    Raises ``FormatError`` if the file is damaged or foreign, ``OSError`` if it cannot be read.
    """
    key = key_of(path)
    what = " or ".join(KINDS.values())
    header, tensors = container.read_arrays(path, key, VERSIONS[key], what, uncounted=UNCOUNTED if key == "fastq" else ())
    report: dict[str, Any] = {"file": str(path), "kind": KINDS[key], "version": header["version"], "checksum": header["checksum"]}
    report["bytes"] = path.stat().st_size
    try:
        if key == "fastq":
            report["fused"] = bool(header.get("fused", False))
            if "program" in header:
                report |= {"program": header["program"] is not None, "program_reason": header.get("program_reason")}
            layers = {name: (numbers, own_tensors(name, tensors)) for name, numbers in header["layers"].items()}
        else:
            layers = {"": (weight_numbers(header), tensors)}
        report["layers"] = [layer_of(name, numbers, own) for name, (numbers, own) in layers.items()]
    except (ArithmeticError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise FormatError(f"load: {path} does not hold what it says: {reason:.300}") from None
    of_layers = {id(t) for _, own in layers.values() for t in own.values()}
    others = [t.array.nbytes for t in tensors.values() if id(t) not in of_layers]
    report |= {"other_tensors": len(others), "other_bytes": sum(others)}
    report["float32_bytes"] = sum(layer["float32_bytes"] for layer in report["layers"]) + sum(others)
    report["compression"] = ratio(report["float32_bytes"], sum(layer["bytes"] for layer in report["layers"]) + sum(others))
    return report


def own_tensors(layer: str, tensors: dict[str, Stored]) -> dict[str, Stored]:
    """The tensors of a layer, by their names in it."""
    return {name.rpartition(".")[2]: t for name, t in tensors.items() if name.rpartition(".")[0] == layer}


def weight_numbers(header: dict[str, Any]) -> dict[str, Any]:
    """Of a file of one weight, as a network's file has them of a layer."""
    return {"kind": "weight", "weight_groups": header["group_size"]} | {name: header[name] for name in ("shape", "bits", "signed")}


def layer_of(name: str, numbers: dict[str, Any], tensors: dict[str, Stored]) -> dict[str, Any]:
    """One layer: its ``name``, ``kind`` and ``shape``, that of the weight; ``weight_bits``, of its codes, and ``stored_bits``, what
    one takes in the file; ``input_codes``, lowest and highest, and ``input_bits``, or None; ``offset``, whether a grid has one, a
    zero-point, or no zero; ``granularity`` of the weight and ``scale``, its least and largest step, or of a look-up layer level;
    ``bytes`` of all its tensors, ``float32_bytes`` of its weight and bias in float32, and ``compression``, these divided by
    those."""
    shape, group, scale = [counted("shape", n) for n in numbers["shape"]], numbers.get("weight_groups"), steps_of(tensors)
    if not np.isfinite(scale).all():
        raise ValueError("a step is not finite")
    if group:
        counted("weight_groups", group)
    elif numbers.get("group_size"):  # a group's codes lie in rows of their own
        group = counted("group_size", numbers["group_size"])
        groups = scale.shape[0]
        shape = [shape[0] // groups, group * groups] if len(shape) == 4 else shape
    stored = bits_of(numbers["weight_range"]) if "bits" not in numbers else counted("bits", numbers["bits"])
    bits = bits_of(numbers["weight_range"]) if "weight_range" in numbers else stored
    codes = [int(numbers["qmin"]), int(numbers["qmax"])] if "qmin" in numbers else None
    odd = bool(numbers.get("odd_inputs", False) or numbers.get("odd_weights", False))
    offset = odd or any(part in tensors for part in ("input_offset", "weight_shift", "shift", "weight_zero", "zero_point"))
    if "levels" in tensors:
        granularity = "channel" if tensors["levels"].array.ndim == 2 and len(tensors["levels"].array) > 1 else "tensor"
    else:
        granularity = f"group of {group}" if group else "tensor" if scale.size == 1 else "channel"
    size = sum(t.array.nbytes for t in tensors.values())
    whole = 4 * (math.prod(shape) + (tensors["bias"].array.size if "bias" in tensors else 0))
    return {
        "name": name, "kind": str(numbers["kind"]), "shape": shape, "weight_bits": bits, "stored_bits": stored,
        "input_codes": codes, "input_bits": None if codes is None else bits_of(codes), "offset": offset,
        "granularity": granularity, "scale": [float(scale.min()), float(scale.max())] if scale.size else None,
        "bytes": size, "float32_bytes": whole, "compression": ratio(whole, size),
    }  # fmt: skip


def steps_of(tensors: dict[str, Stored]) -> np.ndarray[Any, Any]:
    """The steps of a weight, or its levels. A layer that is not plain has their products with the input's step instead."""
    if "levels" in tensors:
        return tensors["levels"].array
    if "data" in tensors:  # a weight by itself
        return tensors["scale"].array
    if "scale" in tensors:
        with np.errstate(all="ignore"):  # a step of 0 is refused with the quotient
            return tensors["scale"].array / float(tensors["input_step"].array.reshape(()))
    return tensors["weight_scale"].array


def bits_of(range_: Sequence[int]) -> int:
    low, high = (int(n) for n in range_)
    if not low < high:
        raise ValueError(f"codes are from {low} to {high}")
    return (high - low).bit_length()


def counted(what: str, number: Any) -> int:
    """How many there are of something, as a file says."""
    if type(number) is not int or not 0 < number < 2**63:
        raise ValueError(f"{what} has {number!r:.20}")
    return number


def printable(text: str) -> str:
    """``text`` with the escapes of what no terminal shows, or takes for more than a character."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def ratio(whole: int, part: int) -> float | None:
    return round(whole / part, 2) if part else None


COLUMNS = ("layer", "kind", "shape", "weight bits", "per", "scale", "input bits", "codes", "offset", "bytes", "float32", "smaller")


def row_of(layer: dict[str, Any]) -> tuple[str, ...]:
    bits, stored, codes, scale = layer["weight_bits"], layer["stored_bits"], layer["input_codes"], layer["scale"]
    least, most = scale or (math.nan, math.nan)
    return (
        printable(layer["name"]) or "(itself)", printable(layer["kind"]), "x".join(map(str, layer["shape"])),
        str(bits) if bits == stored else f"{bits} in {stored}", layer["granularity"],
        "-" if scale is None else f"{least:.3g}" if least == most else f"{least:.3g} to {most:.3g}",
        "-" if codes is None else str(layer["input_bits"]), "" if codes is None else f"{codes[0]} to {codes[1]}",
        "yes" if layer["offset"] else "", str(layer["bytes"]), str(layer["float32_bytes"]),
        "-" if layer["compression"] is None else f"{layer['compression']:.2f}x",
    )  # fmt: skip


def render(report: dict[str, Any]) -> str:
    """The report for people."""
    facts = [("file", report["file"]), ("kind", f"{report['kind']}, format version {report['version']}")]
    facts.append(("checksum", f"{report['checksum']} (SHA-256, verified)"))
    if "fused" in report:
        facts.append(("fused", "yes" if report["fused"] else "no"))
    if "program" in report:
        why_not = printable(str(report["program_reason"]))
        facts.append(("program", "yes, it runs without torch" if report["program"] else f"no: {why_not}"))
    others = f", {report['other_bytes']} of {report['other_tensors']} other tensors" if report["other_tensors"] else ""
    smaller = "" if report["compression"] is None else f"; {report['compression']:.2f}x smaller than in float32"
    facts.append(("bytes", f"{report['bytes']}{others}{smaller}"))
    width = max(len(name) for name, _ in facts)
    lines = [f"{name:<{width}}  {value}" for name, value in facts]
    rows = [row_of(layer) for layer in report["layers"]]
    try:
        return "\n".join([*lines, table(COLUMNS, rows)])
    except ModuleNotFoundError:  # rich, which a machine without torch need not have
        cells = [COLUMNS, *rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        plain = ("  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)).rstrip() for row in cells)
        return "\n".join([*lines, "", *plain])


def run(args: argparse.Namespace) -> int:
    """Print the report; 2 where the file cannot be read."""
    try:
        report = inspect_file(args.file)
    except FormatError as error:
        print(f"inspect: {str(error).removeprefix('load: ')}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"inspect: cannot read {args.file}: {error.strerror or error}", file=sys.stderr)
        return 2
    put("inspect", json.dumps(report, indent=2) if args.json else render(report))
    return 0
