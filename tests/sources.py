"""Python files that no package holds (setup.py, .ci/mutants.py), as modules."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]


def module_of(path: str) -> ModuleType:
    """The file at ``path``, from the root of the sources, run as a module of its own."""
    name = "fastq_source_" + Path(path).stem
    spec = importlib.util.spec_from_file_location(name, ROOT / path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not where it was")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
