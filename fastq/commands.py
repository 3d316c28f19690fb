"""What the commands of ``python -m fastq`` share: an argument, the packages they need, the folder they write to, their output."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

__all__ = ["can_write", "has_packages", "positive_integer", "put"]


def positive_integer(text: str) -> int:
    """What argparse calls for a number of things; its name is part of the message."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def has_packages(command: str) -> bool:
    """Whether the packages of ``fastq[demo]`` are here; says on stderr which is not."""
    try:
        import matplotlib  # noqa: F401
        import sklearn  # noqa: F401
    except ImportError as error:
        print(f"{command}: needs the package {error.name}; install it with: pip install 'fastq[demo]'", file=sys.stderr)
        return False
    return True


def can_write(command: str, output: Path, folder: Path) -> bool:
    """Make ``folder``, in ``output``, and see whether files can be written there; says on stderr why not."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").write_text("")
        (folder / ".writable").unlink()
    except OSError as error:
        print(f"{command}: cannot write to --output {output}: {error.strerror or error}", file=sys.stderr)
        return False
    return True


def put(command: str, text: str) -> None:
    """Print ``text`` now. ``SystemExit``: 0 where its reader has gone, who has seen enough; 2, after a line on stderr that says
    why, where it cannot be written."""
    try:
        print(text, flush=True)
    except (OSError, UnicodeEncodeError) as error:
        if isinstance(error, OSError):  # what is left in the buffer goes nowhere when the process ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise SystemExit(0) from None
        print(f"{command}: cannot print: {getattr(error, 'strerror', None) or error}", file=sys.stderr)
        raise SystemExit(2) from None
