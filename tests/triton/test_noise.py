"""Triton's noise: the quantizers that add it, interpreted, and Philox as Triton itself computes it."""

import os
import re
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(TESTS), "PYTHONWARNINGS": "ignore"}

RANDINT = """
import torch, triton, triton.language as tl
from fastq.reference.philox import words

@triton.jit
def kernel(seed, out, N: tl.constexpr):
    at = tl.arange(0, N)
    a, b, c, d = tl.randint4x(tl.load(seed), at)
    tl.store(out + 4 * at, a)
    tl.store(out + 4 * at + 1, b)
    tl.store(out + 4 * at + 2, c)
    tl.store(out + 4 * at + 3, d)

for value in (0, 1, -1, 2**40 + 7):
    seed, out = torch.tensor([value]), torch.empty(256, dtype=torch.int32)
    kernel[(1,)](seed, out, N=64)
    if not torch.equal(out.long() & 0xFFFFFFFF, words(seed, 256)):
        raise SystemExit(f"seed {value}: {out[:8]} {words(seed, 8)}")
"""


def test_interpreted_kernels_equal_the_reference() -> None:
    script = str(TESTS / "triton" / "interpreted_noise.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr[-6000:]
    counts = [int(count) for count in re.findall(r"^(\d+) results$", done.stdout, re.MULTILINE)]
    assert len(counts) == 2 and min(counts) > 50


def test_the_references_words_are_those_of_tritons_randint4x(tmp_path: Path) -> None:
    """Triton's own generator, for a 32-bit offset: Philox4x32-10 with that counter and the seed as its key."""
    script = tmp_path / "randint.py"
    script.write_text(RANDINT)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr[-3000:]
