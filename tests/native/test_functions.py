"""exp, log, tanh and power of the kernels: near the true values, and the same bits in every instruction set and in Triton."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sources import ROOT, module_of

pytestmark = pytest.mark.source

TRITON = """
import sys, numpy as np, torch, triton, triton.language as tl
import fastq.triton_kernels.functions as f

@triton.jit
def kernel(x, b, y, e, l, t, p, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    v = tl.load(x + at, mask=at < n, other=0.0)
    tl.store(e + at, f.exp(v), mask=at < n)
    tl.store(l + at, f.log(v), mask=at < n)
    tl.store(t + at, f.tanh(v), mask=at < n)
    power = f.power(tl.load(b + at, mask=at < n, other=1.0), tl.load(y + at, mask=at < n, other=1.0))
    tl.store(p + at, power, mask=at < n)

arguments = torch.from_numpy(np.fromfile(sys.argv[1], np.float32).reshape(-1, 7)[:, :3].T.copy()).unbind(0)
out = [torch.empty_like(arguments[0]) for _ in range(4)]
n = len(arguments[0])
kernel[(triton.cdiv(n, 65536),)](*arguments, *out, n, BLOCK=65536)
torch.stack([*arguments, *out], 1).numpy().tofile(sys.argv[2])
"""


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(((a.view(np.int32) == b.view(np.int32)) | (np.isnan(a) & np.isnan(b))).all())


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> list[np.ndarray]:
    """Arguments and results, of each instruction set that runs everywhere this library does, and of the interpreter."""
    folder, setup = tmp_path_factory.mktemp("functions"), module_of("setup.py")
    found = []
    for level in ("v2", "v3"):
        program, table = folder / level, folder / f"{level}.f32"
        flags = ["-std=c++20", "-O1", *setup.EXACT, "-Wno-psabi", f"-march=x86-64-{level}", f"-DFASTQ_ISA={level}"]
        source = str(ROOT / "tests/native/functions.cpp")
        subprocess.run([os.environ.get("CXX", "g++"), *flags, source, "-o", str(program)], check=True)
        if level == "v3" and "avx2" not in Path("/proc/cpuinfo").read_text():
            continue
        done = subprocess.run([str(program), str(table)], capture_output=True, text=True, check=True)
        alike, *ulps = done.stdout.split()
        assert alike == "1", "a vector gives what a number does"
        # Cephes' polynomials leave about one rounding; tanh one more, where the two formulas meet. Those of ln m, which is
        # at most 0.35, count as often in a power as its exponent says.
        assert float(ulps[0]) < 1.0 and float(ulps[1]) < 1.0 and float(ulps[2]) < 1.5 and float(ulps[3]) < 1.0, done.stdout
        found.append(np.fromfile(table, np.float32))
    script, table = folder / "interpreted.py", folder / "triton.f32"
    script.write_text(TRITON)
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONWARNINGS": "ignore"}
    subprocess.run([sys.executable, str(script), str(folder / "v2.f32"), str(table)], check=True, env=env)
    return [*found, np.fromfile(table, np.float32)]


def test_the_bits_are_the_same_everywhere(tables: list[np.ndarray]) -> None:
    assert len(tables) >= 2 and tables[0].size > 8_000_000
    assert all(same_bits(table, tables[0]) for table in tables)
