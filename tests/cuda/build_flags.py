"""What the tests of the CUDA build share: setup.py's flags, the compiler, and what to say where there is none."""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

import fastq

ROOT = Path(__file__).parents[2]


@functools.cache
def build_module() -> ModuleType:
    """``setup.py`` as a module, for its lists of flags."""
    spec = importlib.util.spec_from_file_location("fastq_setup_cuda", ROOT / "setup.py")
    if spec is None or spec.loader is None:
        raise ImportError("setup.py is not where it was")
    module = importlib.util.module_from_spec(spec)
    sys.modules["fastq_setup_cuda"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def compiler() -> str | None:
    """nvcc; or None, once it is sure that fastq itself says what is missing. ``FASTQ_REQUIRE_CUDA=1`` fails instead."""
    nvcc = build_module().nvcc_path()
    if nvcc is None:
        if os.environ.get("FASTQ_REQUIRE_CUDA") == "1":
            pytest.fail("FASTQ_REQUIRE_CUDA=1, but there is no nvcc on PATH or under CUDA_HOME")
        state = fastq.backends()["cuda"]
        assert not state.available
        assert "without nvcc" in state.reason or "built without CUDA" in state.reason or "no CUDA GPU" in state.reason
    return nvcc
