"""Starts the programs that interpret and compile the engine's Triton kernels, each with its own environment."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
#: Triton names a kernel here by all that goes into it: one that changed is compiled anew, one that several tests look at only once.
CACHE = TESTS.parent / "build" / "triton"


def interpreted(*part: str, program: str = "interpreted_products.py") -> list[str]:
    """The lines that ``program part`` prints."""
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(TESTS), "PYTHONWARNINGS": "ignore"}
    script = str(TESTS / "triton" / program)
    done = subprocess.run([sys.executable, script, *part], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-6000:]
    return done.stdout.splitlines()


def compiled(program: str, *arguments: object) -> dict[str, dict[str, Any]]:
    """The report that ``program arguments`` prints."""
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    env["TRITON_CACHE_DIR"] = str(CACHE)
    script = str(TESTS / "triton" / program)
    done = subprocess.run([sys.executable, script, *map(str, arguments)], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    report: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return report
