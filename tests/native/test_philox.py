"""The CPU's noise by vectors is the noise by numbers, in each instruction set, beyond 2^32 elements too."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from sources import ROOT, module_of

pytestmark = pytest.mark.source


@pytest.mark.parametrize("level", ["v2", "v3", "v4"])
def test_vectors_make_the_noise_of_numbers(level: str, tmp_path: Path) -> None:
    setup, program = module_of("setup.py"), tmp_path / "philox"
    flags = ["-std=c++20", "-O1", *setup.EXACT, "-Wno-psabi", f"-march=x86-64-{level}", f"-DFASTQ_ISA={level}"]
    compiler = [os.environ.get("CXX", "g++"), *flags, "-Wall", "-Wextra", "-Werror"]
    subprocess.run([*compiler, str(ROOT / "tests/native/philox.cpp"), "-o", str(program)], check=True)
    needed = {"v2": "sse4_2", "v3": "avx2", "v4": "avx512vl"}[level]
    if needed not in Path("/proc/cpuinfo").read_text():
        return  # it compiled
    done = subprocess.run([str(program)], capture_output=True, text=True, check=True)
    wrong, count, *words = done.stdout.split()
    assert wrong == "0" and int(count) == 3 * 7 * (1 + 5 + 33 + 4096)
    assert words == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]  # Random123's for a counter and a key of zeros
