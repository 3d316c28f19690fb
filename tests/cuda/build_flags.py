"""What the tests of the CUDA build share: setup.py's flags, the compiler, and what to say where there is none."""

from __future__ import annotations

import functools
import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
from sources import module_of

import fastq

#: The architectures whose kernels are looked at in the built library: they differ most.
LOOKED_AT = ("80", "90a")


@functools.cache
def build_module() -> ModuleType:
    """``setup.py`` as a module, for its lists of flags."""
    return module_of("setup.py")


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


def cuobjdump() -> str:
    """The toolkit's, or the one that comes with triton."""
    spec = find_spec("triton")
    inside = Path(spec.origin).parent / "backends/nvidia/bin/cuobjdump" if spec and spec.origin else None
    found = shutil.which("cuobjdump") or (str(inside) if inside and inside.exists() else None)
    if found is None:
        pytest.fail("cuobjdump is neither on PATH nor in the triton package")
    return found
