"""``python -m fastq info`` on a healthy installation and on broken ones."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fastq

PACKAGE = Path(fastq.__file__).parent
SECTIONS = {
    "fastq",
    "machine",
    "packages",
    "torch",
    "runtime",
    "backends",
    "native build",
    "cpu kernels",
    "gpus",
    "tools",
    "environment",
}


def command(*arguments: str, folder: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment}
    if folder is not None:
        env["PYTHONPATH"] = str(folder)
    return subprocess.run([sys.executable, "-m", "fastq", *arguments], capture_output=True, text=True, env=env, cwd=folder)


def report(**kwargs: object) -> dict:
    done = command("info", "--json", **kwargs)  # type: ignore[arg-type]
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert set(result) == SECTIONS
    return result


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package as plain Python files in another folder: without the native library."""
    shutil.copytree(PACKAGE, tmp_path / "fastq", ignore=shutil.ignore_patterns("*.so", "lib", "__pycache__"))
    # An editable install would otherwise lend the copy its own.
    (tmp_path / "fastq" / "_runtime.py").write_text("raise ImportError('fastq._runtime was not built')\n")
    return tmp_path


def test_the_report_names_every_backend_with_a_reason() -> None:
    backends = report()["backends"]
    assert set(backends) == {"reference", "cpu", "cuda", "triton"}
    assert backends["cpu"] == {"available": True, "reason": "native CPU kernels loaded"}
    assert all(state["reason"] for state in backends.values())


def test_the_report_for_people_has_the_same_sections() -> None:
    done = command("info")
    assert done.returncode == 0
    assert {line for line in done.stdout.splitlines() if not line.startswith(" ")} == SECTIONS


def test_it_says_that_the_native_library_is_missing(copy: Path) -> None:
    result = report(folder=copy)
    assert result["fastq"]["folder"] == str(copy / "fastq")
    assert result["backends"]["cpu"]["available"] is False
    assert "libfastq.so is not installed" in result["backends"]["cpu"]["reason"]
    assert "nothing native was built" in result["native build"]["error"]
    assert "_runtime" in result["cpu kernels"]["error"]


def test_it_says_that_the_native_library_is_damaged(copy: Path) -> None:
    (copy / "fastq" / "lib").mkdir()
    (copy / "fastq" / "lib" / "libfastq.so").write_bytes(b"not a library")
    assert "libfastq.so does not load under torch" in report(folder=copy)["backends"]["cpu"]["reason"]


def test_it_runs_where_torch_does_not_import(copy: Path) -> None:
    (copy / "torch").mkdir()
    (copy / "torch" / "__init__.py").write_text("raise ImportError('libtorch_cpu.so: cannot open shared object file')\n")
    result = report(folder=copy)
    assert "libtorch_cpu.so" in result["torch"]["error"]
    assert "libtorch_cpu.so" in result["backends"]["error"]
    assert result["machine"]["cores"] >= 1


@pytest.mark.parametrize("isa", ["v9", "avx2"])
def test_a_wrong_instruction_set_is_a_reason(isa: str) -> None:
    result = report(FASTQ_CPU_ISA=isa)
    assert isa in result["backends"]["cpu"]["reason"]
    assert "FASTQ_CPU_ISA must be v2, v3, v4, vnni or amx" in result["cpu kernels"]["kernels in use"]["error"]


def test_a_wrong_option_is_one_line_and_exit_2() -> None:
    done = command("info", "--jsn")
    assert done.returncode == 2
    assert "unrecognized arguments: --jsn" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_lists_the_commands() -> None:
    done = command("--help")
    assert done.returncode == 0
    assert "info" in done.stdout and "demo" in done.stdout


def test_importing_fastq_imports_no_torch() -> None:
    script = "import sys, fastq; assert 'torch' not in sys.modules; fastq.lsq; assert 'torch' in sys.modules"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_every_public_name_is_there() -> None:
    assert {"lsq", "backends", "use_backend", "set_checks", "reference", "autograd"} <= set(fastq.__all__)
    missing = [name for name in fastq.__all__ if not hasattr(fastq, name)]
    assert missing == []


def test_tritons_own_package_keeps_its_name() -> None:
    script = "import importlib.util as u; s = u.find_spec('triton_kernels'); print(s.origin if s else '')"
    origin = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd="/").stdout.strip()
    assert str(PACKAGE.parent) not in origin
