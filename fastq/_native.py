"""Finds and loads the native libraries that ``setup.py`` built; remembers why, when it cannot.

They are plain shared libraries on torch's stable C++ ABI, so that one build serves every torch >= 2.10 and every Python.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

LIBRARY_FOLDER = Path(__file__).parent / "lib"


def _load(name: str, build_hint: str) -> str | None:
    """Load one library; None when it is there and works, else the reason why it is not."""
    path = LIBRARY_FOLDER / name
    if not path.exists():
        return f"{name} is not installed ({build_hint})"
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"{name} does not load under torch {torch.__version__}: {str(error).splitlines()[0]}"
    return None


def _cpu() -> str | None:
    isa = os.environ.get("FASTQ_CPU_ISA", "")
    if isa not in ("", "v2", "v3", "v4", "vnni", "amx"):
        return f"FASTQ_CPU_ISA must be v2, v3, v4, vnni or amx, got {isa!r}"
    return _load("libfastq.so", "built without a C++ compiler, before torch was there or with FASTQ_BUILD_NATIVE=0")


def _cuda() -> str | None:
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    return _load("libfastq_cuda.so", "built without nvcc or a CUDA torch; FASTQ_BUILD_CUDA=1 asks for it")


#: Why the CPU kernels cannot be used; None when they can.
cpu_error: str | None = _cpu()
#: Why the CUDA kernels cannot be used, GPUs aside; None when they can.
cuda_error: str | None = _cuda()
