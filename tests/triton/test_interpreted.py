"""Triton's kernels, interpreted on the CPU, have the bits of the reference."""

import os
import re
import subprocess
import sys
from pathlib import Path

import torch

import fastq

sys.path.insert(0, str(Path(__file__).parent))
from products import interpreted


def test_interpreted_kernels_equal_the_reference() -> None:
    printed = "\n".join(interpreted(program="interpreted.py"))
    counts = [int(count) for count in re.findall(r"^(\d+) results$", printed, re.MULTILINE)]
    assert len(counts) == 3 and min(counts) > (20 if os.environ.get("FASTQ_TEST_QUICK") == "1" else 100)


def test_cpu_tensors_are_refused_without_the_interpreter() -> None:
    script = "import torch, fastq\nwith fastq.use_backend('triton'):\n    fastq.lsq(torch.ones(3), torch.tensor(0.5), bits=4)\n"
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env)
    assert done.returncode == 1
    assert "RuntimeError: backend 'triton' cannot serve this call: " in done.stderr


def test_tensors_beyond_32_bits_of_offset_are_covered() -> None:
    """Every element of 3 G has a program; that the offsets themselves are 64-bit stands in the PTX (test_compiled.py)."""
    from fastq.triton_kernels.elementwise import Geometry

    for geometry in (Geometry(1, 1, 3 * 2**30), Geometry(3 * 2**25, 1, 32), Geometry(3 * 2**28, 4, 1)):
        assert geometry.programs * geometry.rows * geometry.block >= 3 * 2**30
        assert geometry.programs < 2**31


def test_backends_name_the_reason() -> None:
    state = fastq.backends()["triton"]
    assert state.reason
    assert state.available == torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"
