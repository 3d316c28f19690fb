"""Starts the programs that interpret and compile the engine's Triton kernels, each with its own environment."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]


def interpreted(*part: str, program: str = "interpreted_products.py") -> list[str]:
    """The lines that ``program part`` prints."""
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(TESTS), "PYTHONWARNINGS": "ignore"}
    script = str(TESTS / "triton" / program)
    done = subprocess.run([sys.executable, script, *part], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-6000:]
    return done.stdout.splitlines()


def compiled(architecture: int, which: str, part: str, cache: Path) -> dict[str, dict[str, Any]]:
    """The report of ``compiled_products.py architecture part which``."""
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    env["TRITON_CACHE_DIR"] = str(cache)
    script = str(TESTS / "triton" / "compiled_products.py")
    done = subprocess.run([sys.executable, script, str(architecture), part, which], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    report: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return report
