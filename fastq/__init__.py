"""fastq: fused quantizers for quantization-aware training, and the integer network that comes out of it.

The public functions, each with a manual page (``help(fastq.lsq)``), their specification in plain PyTorch under
``fastq.reference``, modules under ``fastq.nn``, and ``python -m fastq --help`` for the shell.
"""

from __future__ import annotations

import importlib
from typing import Any

from . import autograd, reference
from .backends import backends, supports, use_backend
from .checks import set_checks
from .ops import lsq

__version__ = "0.1.0"

__all__ = [
    "autograd",
    "backends",
    "lsq",
    "reference",
    "set_checks",
    "supports",
    "use_backend",
]

#: Submodules and the functions in them that are imported on first use.
_LAZY = {
    "nn": None,
    "testing": None,
    "recipes": None,
    "deploy": None,
    "prepare": "recipes",
    "convert": "deploy",
    "save": "deploy",
    "load": "deploy",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'fastq' has no attribute {name!r}")
    module = importlib.import_module(f"fastq.{_LAZY[name] or name}")
    return module if _LAZY[name] is None else getattr(module, name)
