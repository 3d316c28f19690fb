"""The benchmarks are no part of the package: where only the wheel is installed there is nothing to test here."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
collect_ignore_glob = [] if (ROOT / "benchmarks" / "registry.py").exists() else ["test_*.py"]
sys.path[:0] = [folder for folder in (str(ROOT), str(Path(__file__).parent)) if folder not in sys.path]
