"""What nvcc makes of the CUDA kernels: no spill, no local memory, 16-byte loads, true division, nothing contracted.

By default some of LSQ's kernels for sm_90a; under the marker ``cuda_compile`` every method's for sm_80 and sm_90a, which differ
most, as the library has them (conftest.py), and LSQ's for those between.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from build_flags import LOOKED_AT, build_module, compiler, cuobjdump
from sources import ROOT

pytestmark = pytest.mark.source
SOURCES = ROOT / "csrc" / "cuda"
METHODS = sorted(path.stem for path in SOURCES.glob("*.cu") if path.stem not in ("codes", "decode", "kernels"))
#: Between those of LOOKED_AT.
BETWEEN = ("86", "89")
LSQ_OF_TWO_DTYPES = f"""
#include "{ROOT}/csrc/methods/lsq.h"
#include "{SOURCES}/launch.cuh"
namespace fastq::cuda {{
using Of = LaunchersOf<LSQ<true>>;
extern const decltype(&Of::forward) some[] = {{Of::run<Float32Storage, false>, Of::run<Float32Storage, true>,
                                              Of::run<BFloat16Storage, false>, Of::run<BFloat16Storage, true>}};
}}
"""


def compiled(nvcc: str, source: Path, arch: str, folder: Path) -> Path:
    """A source file, compiled for one architecture alone."""
    file = folder / f"{source.stem}.fatbin"
    target = [f"-gencode=arch=compute_{arch},code=[sm_{arch},compute_{arch}]", "-Werror", "all-warnings"]
    command = [nvcc, *build_module().NVCC_FLAGS, *target, "-fatbin", str(source), "-o", str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return file


def contents(file: Path, arch: str) -> tuple[str, dict[str, str]]:
    """The PTX and the SASS of each kernel that a file has for an architecture; none has a stack or spills."""

    def dump(what: str) -> str:
        command = [cuobjdump(), "-arch", f"sm_{arch}", what, str(file)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    ptx, functions = dump("-ptx"), dict(part.split("\n", 1) for part in dump("-sass").split("Function : ")[1:])
    used = re.findall(r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", dump("-res-usage"))
    assert functions and f".target sm_{arch}\n" in ptx, f"{file} has nothing for sm_{arch}: is it in TORCH_CUDA_ARCH_LIST?"
    assert functions.keys() == {name for name, *_ in used} == set(re.findall(r"\.entry (\w+)\(", ptx))
    registers = [int(n) for _, n, *_ in used]
    print(f"{file.name} sm_{arch}: {len(used)} kernels, {min(registers)} to {max(registers)} registers")
    assert [name for name, _, stack, local in used if (stack, local) != ("0", "0")] == [], "a stack or spills"
    assert not [name for name, function in functions.items() if re.search(r"\b(?:LDL|STL)\b", function)], "local memory"
    return ptx, functions


def check_arithmetic(text: str) -> set[str]:
    """That PTX rounds as the formula says; its divisions."""
    divisions = set(re.findall(r"\b(?:div|rcp|sqrt)\.[a-z.]*f(?:32|64)", text))
    assert all(".rn." in division for division in divisions), divisions
    assert not re.findall(r"\b(?:fma|mad)\.[a-z.]*f(?:32|64)", text), "contracted"
    assert not re.findall(r"\b[a-z]+\.[a-z.]*ftz[a-z0-9.]*", text), "flushed to zero"
    assert not re.findall(r"\b[a-z0-9]+\.approx[a-z0-9.]*", text), "approximate"
    assert not re.findall(r"\b(?:red|atom)\.", text), "an atomic"
    return divisions


def check_method(method: str, file: Path, arch: str) -> None:
    text, functions = contents(file, arch)
    assert len(functions) >= 12
    if "functions.h" in (ROOT / "csrc" / "methods" / f"{method}.h").read_text():
        # fp64's exp, log and tanh are the CUDA library's, with approximations and fused steps of their own inside
        text = "".join(part for part in text.split(".entry ") if "Float64Storage" not in part.split("(", 1)[0])
    divisions = check_arithmetic(text)
    assert divisions or method == "direct", "it looks levels up, and divides by nothing"
    for name, function in functions.items():
        if "4Tile" not in name:
            continue
        backward = "ELb1EEEEE" in name
        loads = len(re.findall(r"LDG\.E\.(?:EF\.)?128", function))
        # Two pieces of 16-bit elements or four of the others, of x and in the backward pass of g.
        assert loads == (2 if "16Storage" in name else 4) * (2 if backward else 1), (name, loads)
        written = 0 if "DampeningILb0" in name else loads // (2 if backward else 1)  # that one is made for its sum
        assert len(re.findall(r"STG\.E\.(?:EF\.)?128", function)) == written, name


def test_lsq_for_one_architecture(tmp_path: Path) -> None:
    source = tmp_path / "lsq.cu"
    source.write_text(LSQ_OF_TWO_DTYPES)
    if nvcc := compiler():
        check_method("lsq", compiled(nvcc, source, "90a", tmp_path), "90a")


@pytest.mark.cuda_compile
@pytest.mark.parametrize("arch", LOOKED_AT)
@pytest.mark.parametrize("method", METHODS)
def test_every_method(method: str, arch: str, cuda_build: Path | None) -> None:
    if cuda_build:
        check_method(method, cuda_build / f"{method}.cu.o", arch)


@pytest.mark.cuda_compile
@pytest.mark.parametrize("arch", BETWEEN)
def test_lsq_for_the_architectures_between(arch: str, tmp_path: Path) -> None:
    if nvcc := compiler():
        check_method("lsq", compiled(nvcc, SOURCES / "lsq.cu", arch, tmp_path), arch)


def check_decode(file: Path, arch: str) -> None:
    text, functions = contents(file, arch)
    assert len(functions) == 14
    # erff has fused and approximate steps of its own (gelu is a few ulp from other backends'), and nothing else has any
    kernels = [part for part in text.split(".entry ")[1:] if "Decode" in part.split("(", 1)[0]]
    fused = {len(re.findall(r"\b(?:(?:fma|mad)\.[a-z.]*f32|[a-z0-9]+\.approx[a-z0-9.]*)", kernel)) for kernel in kernels}
    assert len(kernels) == 13 and len(fused) == 1 and fused.pop() <= 20
    assert not re.findall(r"\b(?:red|atom)\.|\bdiv\.full", text)
    for name, function in functions.items():
        if "6Decode" not in name:
            continue
        bits = int(re.findall(r"ELi(\d)E", name)[0])
        halves = "6Halves" in name
        count = {what: len(re.findall(rf"\b{what}\b", function)) for what in ("IMMA", "HMMA", "SHFL")}
        instructions = len(re.findall("/[*][0-9a-f]{4,5}[*]/", function))
        print(f"sm_{arch} {name[20:60]}: {instructions} instructions, {count}")
        # 3 tiles of 8 / bits fields; with 16 rows of x, with 8, and where groups end with 16: 5 times 8 rows. Of 64 elements
        # a product takes 16, or 32 codes, of which there is another product for the sums of x
        times = 3 * (8 // bits) * 5
        assert count["HMMA" if halves else "IMMA"] == times * 4 and count["SHFL"] == 0, (name, count)
        # Weights: 2 rows of 3 tiles, ahead of the loop and in it. x: a lane's 16 elements
        loads = len(re.findall(r"LDG\.E\.(?:EF\.)?128", function))
        assert loads == 2 * 6 + times * (2 if halves else 1), (name, loads)


@pytest.mark.cuda_compile
@pytest.mark.parametrize("arch", LOOKED_AT)
def test_decode(arch: str, cuda_build: Path | None) -> None:
    if cuda_build:
        check_decode(cuda_build / "decode.cu.o", arch)


@pytest.mark.cuda_compile
@pytest.mark.parametrize("arch", BETWEEN)
def test_decode_for_the_architectures_between(arch: str, tmp_path: Path) -> None:
    if nvcc := compiler():
        check_decode(compiled(nvcc, SOURCES / "decode.cu", arch, tmp_path), arch)


@pytest.mark.cuda_compile
@pytest.mark.parametrize("arch", LOOKED_AT)
def test_codes(arch: str, cuda_build: Path | None) -> None:
    if cuda_build:
        text, functions = contents(cuda_build / "codes.cu.o", arch)
        assert len(functions) == 6 and check_arithmetic(text)
        for name, function in functions.items():
            assert re.search(r"LDG\.E\.(?:EF\.)?128", function) and re.search(r"STG\.E\.(?:EF\.)?128", function), name
