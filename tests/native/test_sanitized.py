"""The C++ tests and the integer engine's CPU code under the address and undefined behaviour sanitizers (``make sanitize``)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from sources import ROOT, module_of

from fastq import _runtime

pytestmark = [pytest.mark.source, pytest.mark.sanitize]

#: The first one is what a processor gets that is no x86-64.
LEVELS = ("generic", "v2", "v3", "v4", "vnni", "amx")


def built(name: str, level: str, folder: Path, *more: str) -> Path:
    flags = [
        "-std=c++20",
        "-O1",
        "-g1",
        *module_of("setup.py").EXACT,
        "-Wno-psabi",
        *module_of("setup.py").machine(level),
    ]
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
    program = folder / name
    compiler = [os.environ.get("CXX", "g++"), *flags, *sanitizers]
    subprocess.run([*compiler, str(ROOT / f"tests/native/{name}.cpp"), "-o", str(program)], check=True)
    return program


def output(*command: str | Path) -> list[str]:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    return done.stdout.split()


@pytest.mark.parametrize("level", LEVELS)
def test_the_integer_engine_stays_within_its_arrays(level: str, tmp_path: Path) -> None:
    if LEVELS.index(level) <= LEVELS.index(_runtime.best()[0]):
        assert int(output(built("engine", level, tmp_path))[0]) > 150


@pytest.mark.parametrize("level", ["generic", "v2"])
@pytest.mark.parametrize("name", ["functions", "philox"])
def test_vectors_of_numbers(name: str, level: str, tmp_path: Path) -> None:
    first = output(built(name, level, tmp_path))[0]
    assert first == {"functions": "1", "philox": "0"}[name]  # alike; none wrong


def test_a_fault_is_found(tmp_path: Path) -> None:
    source = tmp_path / "fault.cpp"
    source.write_text("#include <cstdlib>\nint main(int n, char**) { return (new char[4])[3 + n]; }\n")
    program = tmp_path / "fault"
    subprocess.run([os.environ.get("CXX", "g++"), "-fsanitize=address,undefined", str(source), "-o", str(program)], check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True)
    assert done.returncode != 0 and "heap-buffer-overflow" in done.stderr
