"""What the compiler made of the CPU kernels: packed division, nothing contracted, no symbol that a lesser processor could run."""

import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

import fastq

LIBRARY = Path(fastq.__file__).parent / "lib" / "libfastq.so"
PACKED = {"v2": "divps xmm", "v3": "vdivps ymm", "v4": "vdivps zmm"}


@pytest.fixture(scope="module")
def divisions() -> dict[str, Counter[str]]:
    """Instructions that divide, by function."""
    command = ["objdump", "-d", "-C", "--no-show-raw-insn", str(LIBRARY)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[str, Counter[str]] = {}
    function = ""
    for line in listing.splitlines():
        if start := re.match(r"[0-9a-f]+ <(.*)>:$", line):
            function = start[1]
        elif re.search(r"\tvfn?m(add|sub)", line):
            # What contraction makes of products and sums. One asks for it: of floating point inputs and weights.
            assert re.search("Float|FewRows", function), function
        elif division := re.search(r"\t(v?div[sp][sd]) .*%([xyz]mm)\d+$", line):
            found.setdefault(function, Counter())[f"{division[1]} {division[2]}"] += 1
    return found


@pytest.mark.parametrize("isa", PACKED)
@pytest.mark.parametrize("method", ["LSQ<false>", "LSQ<true>"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_divisions_are_packed(divisions: dict[str, Counter[str]], isa: str, method: str, direction: str) -> None:
    start = f"fastq::{isa}::Elementwise<fastq::{isa}::{method}, fastq::{isa}::Float32>::{direction}("
    seen: Counter[str] = sum((count for name, count in divisions.items() if name.startswith(start)), Counter())
    assert set(seen) == {PACKED[isa]}, seen


def test_no_shared_symbol_is_compiled_for_one_instruction_set() -> None:
    # The linker keeps one copy of a weak function: out of a v4 object it would be an illegal instruction elsewhere. Weak
    # symbols of std belong to the files that are compiled for every x86-64, whose addresses hold no wider registers.
    listing = subprocess.run(
        ["objdump", "-d", "-C", "--no-show-raw-insn", str(LIBRARY)], capture_output=True, text=True, check=True
    ).stdout
    function, wide = "", set()
    for line in listing.splitlines():
        if start := re.match(r"[0-9a-f]+ <(.*)>:$", line):
            function = start[1]
        elif re.search(r"%[yz]mm\d", line):
            wide.add(function)
    assert wide and all(re.search(r"fastq::(v3|v4|vnni|amx)::", name) for name in wide), wide
