"""CONTRIBUTING.md's recipe for a method, followed to the letter in a copy of the sources: it builds, and its tests pass."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SOURCES = ("csrc", "fastq", "benchmarks", "setup.py", "pyproject.toml", "README.md", ".clang-format")
#: A line that begins with a path in backticks, with the blocks that follow it until the next one.
INTRODUCED = re.compile(r"^`([\w.]+(?:/[\w.]+)+)`[^\n]*:\n((?:\n```\w+\n.*?\n```\n)+)", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"```(\w+)\n(.*?)\n```\n", re.DOTALL)
pytestmark = pytest.mark.source


def steps() -> list[tuple[str, str, str]]:
    """``(path, language, text)`` of every block of the recipe, in its order."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    recipe = text[text.index("## Adding a method") :]
    found = [(path, *block) for path, blocks in INTRODUCED.findall(recipe) for block in BLOCK.findall(blocks)]
    if len(found) != len(BLOCK.findall(recipe)):
        pytest.fail("CONTRIBUTING.md: a block of the recipe is not introduced by its path")
    return found


def insert(path: Path, diff: str) -> None:
    """Insert the ``+`` lines after the one context line, which the file must have exactly once."""
    after, *added = diff.split("\n")
    if not after.startswith(" ") or not added or not all(line.startswith("+") for line in added):
        pytest.fail(f"CONTRIBUTING.md: for {path.name} a line to insert after and then + lines, got\n{diff}")
    lines = path.read_text().split("\n")
    if lines.count(after[1:]) != 1:
        pytest.fail(f"CONTRIBUTING.md says to insert after {after[1:]!r}, which {path.name} has {lines.count(after[1:])} times")
    at = lines.index(after[1:]) + 1
    path.write_text("\n".join([*lines[:at], *(line[1:] for line in added), *lines[at:]]))


def run(tree: Path, *command: str, **env: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(tree), "FASTQ_BUILD_CUDA": "0", **env}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.fail(f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    return done.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources with the recipe followed, built."""
    tree = tmp_path_factory.mktemp("recipe")
    left_out = shutil.ignore_patterns("__pycache__", "*.so", "lib", "triton_kernels", "results")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=left_out)
        else:
            shutil.copy(ROOT / name, tree / name)
    shutil.copytree(ROOT / "triton_kernels", tree / "triton_kernels", ignore=shutil.ignore_patterns("__pycache__"))
    (tree / "tests" / "ops").mkdir(parents=True)
    # An installed package has it here (pyproject.toml); in a bare copy of the sources a link does the same.
    (tree / "fastq" / "triton_kernels").symlink_to(tree / "triton_kernels")
    for path, language, text in steps():
        if language == "diff":
            insert(tree / path, text)
        elif (tree / path).exists():
            pytest.fail(f"CONTRIBUTING.md: {path} is there already")
        else:
            (tree / path).write_text(text + "\n")
    # x86-64-v2 runs everywhere, and one level is enough; little optimisation, which changes no result, takes half as long.
    setup = tree / "setup.py"
    setup.write_text(setup.read_text().replace('"-O3"', '"-O1"').replace('"-O2"', '"-O0"'))
    run(tree, sys.executable, "setup.py", "-q", "build_ext", "--inplace", FASTQ_CPU_LEVELS="v2")
    return tree


def test_the_recipe_names_every_list_of_methods() -> None:
    """Where the sources name LSQ's operators or its struct, a new method has its line."""
    named = {path for path, _, _ in steps()}
    folders = ("csrc", "triton_kernels", "fastq/ops", "fastq/reference", "benchmarks")
    sources = {".h", ".cpp", ".cu", ".cuh", ".py"}
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in sources]
    lists = re.compile(r"LSQ<true>|&lsq_|LSQ_OFFSET,|from \.lsq import lsq\b|Method\(\"lsq\"|\"lsq\+\":")
    own = {"csrc/torch/lsq.h", "triton_kernels/lsq.py"}
    naming = {str(path.relative_to(ROOT)) for path in files if lists.search(path.read_text())} - own
    assert len(naming) >= 7 and naming <= named


def test_the_method_passes_its_tests(tree: Path) -> None:
    where = run(tree, sys.executable, "-c", "import fastq; print(fastq.__file__, fastq.ternary, fastq.backends()['cpu'].reason)")
    assert where.startswith(str(tree)) and "native CPU kernels loaded" in where
    out = run(tree, sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/ops/test_ternary.py")
    assert re.search(r"\b11 passed", out), out


def test_its_cuda_side_compiles(tree: Path) -> None:
    include = ["-isystem", str(Path(torch.__file__).parent / "include")]
    how = [os.environ.get("CXX", "g++"), "-std=c++20", "-fsyntax-only", "-Wall", "-Wextra", "-Wno-missing-field-initializers"]
    run(tree, *how, "-Wno-unknown-pragmas", "-x", "c++", "csrc/cuda/ternary.cu")
    run(tree, *how, "-DTORCH_TARGET_VERSION=0x020a000000000000", *include, "csrc/torch/register_cuda.cpp")


def test_its_benchmark_is_registered_and_right(tree: Path) -> None:
    script = (
        "import torch\n"
        "from benchmarks.registry import METHODS, quick_cases\n"
        "method, case = {m.name: m for m in METHODS}['ternary'], quick_cases()[0]\n"
        "x, g, step = case.tensors('cpu')\n"
        "results = [f(x, step) for f in (method.fast(case), method.reference(case, 'closed'), method.baseline(case))]\n"
        "assert torch.equal(results[0], results[1])\n"
        "torch.testing.assert_close(results[0], results[2])\n"
    )
    run(tree, sys.executable, "-c", script)


def test_the_sanitizers_meet_it(tree: Path) -> None:
    named = "from benchmarks.sanitize import quantizers; print([n for n in ({}, {'axis': 1}) if 'ternary' in quantizers(n)])"
    assert run(tree, sys.executable, "-c", named) == "[{}, {'axis': 1}]\n"
    out = run(tree, sys.executable, "-m", "benchmarks.sanitize", "--backend", "cpu", "--device", "cpu", "--small")
    assert re.search(r"\d+ calls, 0 wrong", out)


def test_it_is_written_as_the_house_is(tree: Path) -> None:
    files = sorted({path for path, _, _ in steps()})
    for command in (["check"], ["format", "--check"]):
        run(tree, sys.executable, "-m", "ruff", *command, *(path for path in files if path.endswith(".py")))
    formatter = shutil.which("clang-format", path=str(Path(sys.executable).parent))
    if formatter:
        run(tree, formatter, "--dry-run", "--Werror", *(path for path in files if not path.endswith(".py")))
