"""The demo as a user meets it: a quick run and its refusals."""

import json
import subprocess
import sys

import pytest


def demo(*options):
    command = [sys.executable, "-m", "fastq", "demo", *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_quick_run(tmp_path):
    done = demo("--quick", "--device", "cpu", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "demo.png").read_bytes()[:4] == b"\x89PNG"
    result = json.loads((tmp_path / "out" / "demo.json").read_text())
    for name in ("W4A4", "W2A2"):
        row = result["networks"][name]
        assert row["differing predictions"] == 0
        assert row["accuracy"] == row["integer accuracy"]
        assert row["bytes"] < result["networks"]["full precision"]["bytes"] / 3
    assert "differing" in done.stdout and "fastq" in done.stdout


@pytest.mark.parametrize("arguments", [["--epochs", "0"], ["--no-such-option"], ["--device", "nonsense"]])
def test_wrong_options(arguments, tmp_path):
    done = demo("--output", tmp_path, *arguments)
    assert done.returncode == 2 and "Traceback" not in done.stderr


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    done = demo("--output", tmp_path / "file" / "below")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "cannot write to --output" in done.stderr
