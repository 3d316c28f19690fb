"""``python -m fastq info``: what is installed here, what works, and why the rest does not.

It is for broken installations, so every part is asked on its own and none may stop the others: an answer that cannot be had
is replaced by the error that prevented it.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

VARIABLES = ("FASTQ_BACKEND", "FASTQ_CPU_ISA", "TRITON_INTERPRET", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "ONEDNN_MAX_CPU_ISA")
PACKAGES = ("torch", "triton", "numpy", "pybind11", "ninja", "safetensors")


def _try(question: Callable[[], Any]) -> Any:
    try:
        return question()
    except BaseException as error:  # a report on what is broken survives whatever is broken
        if isinstance(error, KeyboardInterrupt):
            raise
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0]}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _fastq() -> dict[str, Any]:
    import fastq

    return {"version": fastq.__version__, "folder": str(Path(fastq.__file__).parent)}


def _machine() -> dict[str, Any]:
    names = [line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": f"{platform.python_version()} ({sys.executable})",
        "cpu": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _torch_free() -> bool:
    return importlib.util.find_spec("torch") is None


def _backends() -> dict[str, Any]:
    if _torch_free():
        return {"reason": "not without torch"}
    from . import dispatch

    return {name: {"available": state.available, "reason": state.reason} for name, state in dispatch.backends().items()}


def _build() -> Any:
    record = Path(__file__).parent / "lib" / "build.json"
    if not record.exists():
        return {"error": "nothing native was built (no C++ compiler, FASTQ_BUILD_NATIVE=0, or the files were removed)"}
    return json.loads(record.read_text())


def _cpu() -> dict[str, Any]:
    runtime = importlib.import_module("fastq._runtime")
    return {
        "kernels in use": _try(runtime.isa),
        "best here": _best(*runtime.best()),
        "features": [name for name, there in runtime.cpu_features().items() if there],
        "missing": [name for name, there in runtime.cpu_features().items() if not there],
    }


def _runtime() -> dict[str, Any]:
    from . import runtime

    state = {"available": True, "reason": "saved networks run on NumPy arrays, without torch"}
    return {runtime.__name__: state}


def _best(level: str, reason: str) -> str:
    text = {
        "": "none",
        "generic": "generic (code for any processor)",
        "vnni": "vnni (x86-64-v4 and AVX512-VNNI)",
        "amx": "amx (vnni and AMX)",
    }.get(level, f"x86-64-{level}")
    return f"{text}; {reason}" if reason else text


def _torch() -> dict[str, Any]:
    if _torch_free():
        return {"reason": "torch is not installed; pip install 'fastq[torch]', and build fastq again, for more than fastq.runtime"}
    import torch

    return {"version": torch.__version__, "cuda": torch.version.cuda, "threads": torch.get_num_threads()}


def _gpus() -> Any:
    if _torch_free():
        return {"reason": "not without torch"}
    import torch

    if not torch.cuda.is_available():
        return []
    gpus = []
    for i in range(torch.cuda.device_count()):
        p = torch.cuda.get_device_properties(i)
        gpus.append(f"{p.name}, sm_{p.major}{p.minor}, {p.total_memory / 2**30:.0f} GiB, {p.multi_processor_count} SMs")
    return gpus


def _tools() -> dict[str, str]:
    found = {}
    for name in (os.environ.get("CXX") or "g++", "nvcc", "ninja"):
        path = shutil.which(name)
        text = "not found"
        if path:
            answer = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20).stdout.strip().splitlines()
            text = next((line for line in answer if "release" in line), answer[0] if answer else "no version") + f" ({path})"
        found[name] = text
    return found


def collect() -> dict[str, Any]:
    """The report as data. Never raises; what failed holds ``{"error": message}``."""
    return {
        "fastq": _try(_fastq),
        "machine": _try(_machine),
        "packages": {name: _try(partial(_version, name)) for name in PACKAGES},
        "torch": _try(_torch),
        "runtime": _try(_runtime),
        "backends": _try(_backends),
        "native build": _try(_build),
        "cpu kernels": _try(_cpu),
        "gpus": _try(_gpus),
        "tools": _try(_tools),
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def render(report: dict[str, Any]) -> str:
    """The report for people: one section per part, one line per fact."""
    lines = []
    for title, part in report.items():
        lines.append(title)
        rows = part.items() if isinstance(part, dict) else [("", item) for item in part]
        facts = [(str(key), _fact(value)) for key, value in rows]
        width = max((len(key) for key, _ in facts), default=0)
        lines += [f"  {key:<{width}}  {value}".rstrip() for key, value in facts] or ["  none"]
    return "\n".join(lines)


def _fact(value: Any) -> str:
    if isinstance(value, dict) and "available" in value:
        return f"{'yes' if value['available'] else 'no '}  {value['reason']}"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {item}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the report as JSON, for a bug report")


def run(args: argparse.Namespace) -> int:
    report = collect()
    print(json.dumps(report, indent=2, default=str) if args.json else render(report))
    return 0
