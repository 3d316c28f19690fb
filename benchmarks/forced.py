"""The integer suite with the kernels held to an instruction set, in a process of its own: it is chosen once in a process's life."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from . import results

__all__ = ["FORCED", "environment_of", "measured", "refusal"]

#: Instruction sets, and what does to torch and oneDNN what FASTQ_CPU_ISA does to our kernels.
FORCED: dict[str, dict[str, str]] = {
    "vnni": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"},
    "v3": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
}


def environment_of(isa: str) -> dict[str, str]:
    """The variables that must be there when a process starts; none of no instruction set."""
    return {"FASTQ_CPU_ISA": isa, **FORCED[isa]} if isa else {}


def refusal(isa: str) -> str:
    """Why the kernels of this process are not those of ``isa``; empty if they are."""
    from fastq import dispatch

    able, why = dispatch.supports("cpu", "cpu")
    if not able:
        return why
    try:
        from fastq import _runtime  # type: ignore[attr-defined]

        used = str(_runtime.isa())
    except (ImportError, RuntimeError) as error:
        return str(error)
    return "" if used == isa else f"the kernels are of {used}"


def measured(isa: str, budget: float, quick: bool) -> dict[str, Any]:
    """The rows of another process, whose kernels are held to ``isa``, and the reason why there are none, or not all."""
    settings = environment_of(isa)
    found: dict[str, Any] = {"isa": isa, "settings": settings, "rows": [], "reason": ""}
    options = ["--suite", "integer", "--isa", isa, "--budget", str(budget), *(["--quick"] if quick else [])]
    with tempfile.TemporaryDirectory(prefix="fastq-forced-") as folder:
        command = [sys.executable, "-m", "benchmarks", *options, "--out", folder, "--name", isa]
        done = subprocess.run(command, cwd=results.ROOT, env={**os.environ, **settings}, capture_output=True, text=True)
        path = Path(folder) / f"{isa}.json"
        if path.exists():
            found["rows"] = results.read(path)["rows"]
        if not path.exists() or done.returncode not in (0, 1):  # 1: of a row of ours that failed, which says so itself
            found["reason"] = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
    return found
