"""``python -m fastq predict MODEL IMAGES``: the classes that a saved network gives images, by ``fastq.runtime``."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .commands import positive_integer, put

__all__ = ["add_arguments", "read_images", "run"]

SUFFIXES = (".npy", ".npz", ".pgm", ".ppm")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        "IMAGES is a file, or a folder of such files, which are taken in the order of their names:\n"
        "  .npy         one array, (B, C, H, W) or (C, H, W) or (H, W); or (B, F) for a network of linear layers\n"
        "  .npz         the array --array in it, or its only one\n"
        "  .pgm, .ppm   a binary image (P5, P6) of 8 or 16 bits\n"
        "Numbers are taken as they are, times --scale: give the network what it was trained with. Each line of the output is an\n"
        "image, its class, that class's logit and its probability (softmax), with a tab between them."
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="a file that fastq.save wrote")
    parser.add_argument("images", type=Path, metavar="IMAGES", help="a file or a folder, see below")
    parser.add_argument("--array", metavar="NAME", help="which array of an .npz file")
    parser.add_argument("--scale", type=number, default=1.0, metavar="X", help="what numbers are multiplied with, such as 1/255")
    parser.add_argument("--names", type=Path, metavar="FILE", help="a text file with a line for each class, printed in its place")
    parser.add_argument("--batch", type=positive_integer, default=256, metavar="N", help="images at a time (default %(default)s)")
    parser.add_argument("--threads", type=positive_integer, default=None, metavar="N", help="default: one for each core")


def number(text: str) -> float:
    """A number or a fraction of two, that float32 holds."""
    above, _, below = text.partition("/")
    try:
        value = float(above) / (float(below) if below else 1.0)
    except (ValueError, ZeroDivisionError):
        value = np.nan
    if not abs(value) <= float(np.finfo(np.float32).max):
        raise argparse.ArgumentTypeError(f"must be a finite number of float32 or a fraction such as 1/255, got {text!r:.60}")
    return value


def read_netpbm(data: bytes) -> np.ndarray:
    """A binary PGM or PPM image as ``(C, H, W)``, uint8 or uint16; ``ValueError`` where it is none."""
    gap = rb"(?:\s|#[^\n]*\n)+"
    match = re.match(rb"P([56])" + gap + rb"(\d{1,9})" + gap + rb"(\d{1,9})" + gap + rb"(\d{1,5})\s", data)
    if match is None:
        raise ValueError("it is no binary PGM or PPM image")
    channels = 1 if match[1] == b"5" else 3
    width, height, highest = (int(match[i]) for i in (2, 3, 4))
    kind = np.dtype(np.uint8 if highest < 256 else ">u2")
    if not 0 < highest < 65536 or len(data) - match.end() != width * height * channels * kind.itemsize or not width * height:
        raise ValueError(f"it has {len(data) - match.end()} bytes for {width} x {height} pixels up to {highest}")
    return np.frombuffer(data, kind, -1, match.end()).reshape(height, width, channels).transpose(2, 0, 1)


def read_images(path: Path, array: str | None = None) -> np.ndarray:
    """What is in the file ``path``: a batch. ``ValueError`` where it is none that NumPy reads, ``OSError``."""
    suffix = path.suffix.lower()
    if suffix in (".pgm", ".ppm"):
        return read_netpbm(path.read_bytes())[None]
    if suffix not in SUFFIXES:
        raise ValueError(f"its name ends with none of {', '.join(SUFFIXES)}")
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.lib.npyio.NpzFile):
            with found as archive:
                found = array_of(archive, array)
    except (MemoryError, OSError):
        raise
    except Exception as error:  # zipfile and each of its decompressors have their own
        raise ValueError(str(error) or type(error).__name__) from None
    if found.dtype.kind not in "fiub":
        raise ValueError(f"it is an array of {found.dtype}, not of numbers")
    if found.ndim == 0 or found.ndim > 4:
        raise ValueError(f"it is an array of shape {found.shape}")
    return found


def array_of(archive: Any, name: str | None) -> np.ndarray:
    """The array ``name`` of an .npz file, or its only one; ``ValueError`` where there is none."""
    there = archive.files
    if not there:
        raise ValueError("it has no arrays")
    if name is None and len(there) != 1:
        raise ValueError(f"it has the arrays {', '.join(there)}; --array says which")
    if name is not None and name not in there:
        raise ValueError(f"it has no array {name!r} but {', '.join(there)}")
    found = archive[there[0] if name is None else name]
    if not isinstance(found, np.ndarray):
        raise ValueError(f"{there[0] if name is None else name!s} in it is no array")
    return found


def batches(path: Path, array: str | None, axes: int) -> Iterator[tuple[list[str], np.ndarray]]:
    """The images of a file or a folder with their names, a batch for each file, of so many axes."""
    files = sorted(f for f in path.iterdir() if f.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{path} has no file whose name ends with one of {', '.join(SUFFIXES)}")
    for file in files:
        try:
            found = read_images(file, array)
        except ValueError as error:
            raise ValueError(f"cannot read {file}: {error}") from None
        single = found.ndim < axes
        while found.ndim < axes:
            found = found[None]
        yield [file.name] if single or len(found) == 1 else [f"{file.name}[{i}]" for i in range(len(found))], found


def run(args: argparse.Namespace) -> int:
    """The command: 0; 2 for a file that cannot be used."""
    try:
        from . import runtime

        network = runtime.load(args.model, threads=args.threads)
        names = None if args.names is None else args.names.read_text().splitlines()
        axes = len(network.input_shape or (0,) * 4)
        for labels, images in batches(args.images, args.array, axes):
            for first in range(0, len(images), args.batch):
                these = labels[first : first + args.batch]
                with np.errstate(all="ignore"):  # what has no number in float32 is refused
                    x = images[first : first + args.batch].astype(np.float32) * np.float32(args.scale)
                for label, image in zip(these, x, strict=True):
                    if not np.isfinite(image).all():
                        raise ValueError(f"{label} has NaN, or numbers that times --scale are not finite in float32")
                write(these, network(x), names)
    except (ImportError, MemoryError, OSError, TypeError, ValueError) as error:
        print(f"predict: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return 2
    return 0


def write(labels: list[str], logits: np.ndarray, names: list[str] | None) -> None:
    """A line for each image."""
    if logits.ndim != 2:
        raise ValueError(f"the network gives {logits.shape}, no logits of classes (B, classes)")
    if names is not None and len(names) != logits.shape[1]:
        raise ValueError(f"--names has {len(names)} lines for {logits.shape[1]} classes")
    likely = np.exp(logits - logits.max(1, keepdims=True))
    likely /= likely.sum(1, keepdims=True)
    lines = []
    for label, row, chance in zip(labels, logits, likely, strict=True):
        best = int(row.argmax())
        lines.append(f"{label}\t{best if names is None else names[best]}\t{row[best]:.6g}\t{chance[best]:.4f}")
    put("predict", "\n".join(lines))
