"""What nvcc makes of the CUDA kernels: no spill, no local memory, 16-byte loads, true division, nothing contracted.

By default LSQ's kernels for sm_90a; under the marker ``cuda_compile`` every method's for sm_80 and sm_90a, which differ most, and
LSQ's for those between.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from build_flags import build_module, compiler
from sources import ROOT

pytestmark = pytest.mark.source
METHODS = sorted(path.stem for path in (ROOT / "csrc" / "cuda").glob("*.cu") if path.stem not in ("codes", "decode", "kernels"))
EVERY = [(method, arch) for method in METHODS for arch in ("80", "90a") if (method, arch) != ("lsq", "90a")]
EVERY += [("lsq", "86"), ("lsq", "89")]


def cuobjdump() -> str:
    """The toolkit's, or the one that comes with triton."""
    spec = find_spec("triton")
    inside = Path(spec.origin).parent / "backends/nvidia/bin/cuobjdump" if spec and spec.origin else None
    found = shutil.which("cuobjdump") or (str(inside) if inside and inside.exists() else None)
    if found is None:
        pytest.fail("cuobjdump is neither on PATH nor in the triton package")
    return found


def compiled(nvcc: str, method: str, arch: str, folder: Path) -> tuple[list[str], str, dict[str, str]]:
    """The names of the kernels of a source file, its PTX and the SASS of each kernel; none has a stack or spills."""
    cubin, ptx = folder / f"{method}.cubin", folder / f"{method}.ptx"
    source, flags = ROOT / "csrc" / "cuda" / f"{method}.cu", build_module().NVCC_FLAGS
    target = ["-arch", f"sm_{arch}", "-Werror", "all-warnings"]
    command = [nvcc, *flags, *target, "-Xptxas", "-v", "--keep", "--keep-dir", str(folder), "-cubin", str(source), "-o", str(cubin)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    entries = re.findall(r"Compiling entry function '(\w+)'", done.stderr)
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", done.stderr)]
    print(f"{method} sm_{arch}: {len(entries)} kernels, {min(registers)} to {max(registers)} registers")
    assert len(entries) == len(frames) == len(registers)
    assert set(frames) == {("0", "0", "0")}, done.stderr
    sass = subprocess.run([cuobjdump(), "-sass", str(cubin)], capture_output=True, text=True, check=True).stdout
    functions = dict(part.split("\n", 1) for part in sass.split("Function : ")[1:])
    assert functions.keys() == set(entries)
    assert not [name for name, function in functions.items() if re.search(r"\b(?:LDL|STL)\b", function)], "local memory"
    return entries, ptx.read_text(), functions


def check_arithmetic(text: str) -> set[str]:
    """That PTX rounds as the formula says; its divisions."""
    divisions = set(re.findall(r"\b(?:div|rcp|sqrt)\.[a-z.]*f(?:32|64)", text))
    assert all(".rn." in division for division in divisions), divisions
    assert not re.findall(r"\b(?:fma|mad)\.[a-z.]*f(?:32|64)", text), "contracted"
    assert not re.findall(r"\b[a-z]+\.[a-z.]*ftz[a-z0-9.]*", text), "flushed to zero"
    assert not re.findall(r"\b[a-z0-9]+\.approx[a-z0-9.]*", text), "approximate"
    assert not re.findall(r"\b(?:red|atom)\.", text), "an atomic"
    return divisions


def compile_and_check(nvcc: str, method: str, arch: str, folder: Path) -> None:
    entries, text, functions = compiled(nvcc, method, arch, folder)
    assert len(entries) >= 12
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
    if nvcc := compiler():
        compile_and_check(nvcc, "lsq", "90a", tmp_path)


@pytest.mark.cuda_compile
@pytest.mark.parametrize(("method", "arch"), EVERY)
def test_every_architecture(method: str, arch: str, tmp_path: Path) -> None:
    if nvcc := compiler():
        compile_and_check(nvcc, method, arch, tmp_path)


def check_decode(nvcc: str, arch: str, folder: Path) -> None:
    entries, text, functions = compiled(nvcc, "decode", arch, folder)
    assert len(entries) == 14
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
@pytest.mark.parametrize("arch", ["80", "86", "89", "90a"])
def test_decode_for_every_architecture(arch: str, tmp_path: Path) -> None:
    if nvcc := compiler():
        check_decode(nvcc, arch, tmp_path)


@pytest.mark.cuda_compile
@pytest.mark.parametrize("arch", ["80", "90a"])
def test_codes_for_every_architecture(arch: str, tmp_path: Path) -> None:
    if nvcc := compiler():
        entries, text, functions = compiled(nvcc, "codes", arch, tmp_path)
        assert len(entries) == 6 and check_arithmetic(text)
        for name, function in functions.items():
            assert re.search(r"LDG\.E\.(?:EF\.)?128", function) and re.search(r"STG\.E\.(?:EF\.)?128", function), name
