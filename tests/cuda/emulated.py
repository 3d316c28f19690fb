"""The CUDA kernels as plain C++ (csrc/cuda/launch.cuh), with the bridge to torch, as a library of operators for CPU tensors."""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from sources import ROOT

FLAGS = ["-std=c++20", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-missing-field-initializers"]


@functools.cache
def objects() -> Path:
    """The folder of what was compiled, without what nobody used for a day."""
    folder = ROOT / "build" / "emulation"
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.stat().st_mtime < time.time() - 86400:
            path.unlink()
    return folder


def compiled(source: Path) -> Path:
    """Its object, made again when what the preprocessor makes of the source has changed."""
    if source.suffix == ".cu":
        how = ["-O1", "-ffp-contract=off", "-Wno-unknown-pragmas", "-x", "c++"]
    else:
        how = ["-O0", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-isystem", str(Path(torch.__file__).parent / "include")]
    command = [os.environ.get("CXX", "g++"), *FLAGS, *how, str(source)]
    made = subprocess.run([*command, "-E"], capture_output=True).stdout  # what does not pass here has its message below
    out = objects() / f"{source.stem}-{hashlib.sha256(' '.join(command).encode() + made).hexdigest()[:16]}.o"
    if out.exists():
        out.touch()
        return out
    new = Path(f"{out}.{os.getpid()}")
    done = subprocess.run([*command, "-c", "-o", str(new)], capture_output=True, text=True)
    if done.returncode != 0 or done.stderr:
        pytest.fail(f"{source.name}: {done.stderr}")
    return new.replace(out)


def library(kernels: list[str], bridge: list[str], registration: str, *further: Path) -> Path:
    """Of files of csrc/cuda, files of csrc/torch, and one of this folder that registers the operators."""
    sources = [ROOT / "csrc/cuda" / name for name in kernels] + [ROOT / "csrc/torch" / f"{name}.cpp" for name in bridge]
    with ThreadPoolExecutor(2) as pool:
        parts = list(pool.map(compiled, [*sources, *further, ROOT / "tests/cuda" / registration]))
    out = objects() / f"{hashlib.sha256(str(parts).encode()).hexdigest()[:16]}.so"
    new = Path(f"{out}.{os.getpid()}")
    libraries = [f"-L{Path(torch.__file__).parent / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
    subprocess.run([os.environ.get("CXX", "g++"), "-shared", "-o", str(new), *map(str, parts), *libraries], check=True)
    return new.replace(out)
