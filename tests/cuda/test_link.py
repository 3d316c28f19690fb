"""The CUDA library, linked against a CUDA torch and loaded beside the CPU library on a machine without a GPU.

conftest.py builds it. Where it does not, what the package says about its missing library is checked instead.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from build_flags import build_module
from sources import ROOT

pytestmark = [pytest.mark.source, pytest.mark.cuda_compile]

REPORT = """
import json, sys
sys.path.insert(0, sys.argv[1])
import fastq.ops
import torch
from fastq.ops._library import OPERATORS as names
def registered(key):
    return [torch._C._dispatch_has_kernel_for_dispatch_key("fastq::" + name, key) for name in names]
before = registered("CUDA")
torch.ops.load_library(sys.argv[2])
step = torch.tensor([0.5])
with torch.no_grad():
    y = torch.ops.fastq.lsq_forward(torch.tensor([0.8]), step, None, -8, 7, -1, 0, 1e-8).tolist()
print(json.dumps({"torch": torch.__version__, "before": before, "CPU": registered("CPU"), "CUDA": registered("CUDA"), "y": y}))
"""


def test_loads_and_registers_without_a_gpu(cuda_build: Path | None) -> None:
    if cuda_build is None:
        return
    python, library = os.environ["FASTQ_CUDA_PYTHON"], cuda_build / "libfastq_cuda.so"
    done = subprocess.run([python, "-c", REPORT, str(ROOT), str(library)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["torch"] == build_module().Torch.of(python).version
    assert len(report["CUDA"]) > 20 and all(report["CUDA"]) and all(report["CPU"]) and not any(report["before"])
    assert report["y"] == [1.0]  # the CPU library goes on serving CPU tensors: 0.8 / 0.5 = 1.6, code 2

    symbols = subprocess.run(["nm", "-D", "--defined-only", str(library)], capture_output=True, text=True, check=True).stdout
    assert not [line for line in symbols.splitlines() if "fastq" in line], "a symbol that could clash with libfastq.so"
    needed = subprocess.run(["readelf", "-d", str(library)], capture_output=True, text=True, check=True).stdout
    assert "libcudart" not in needed
