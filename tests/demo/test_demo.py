"""The demo as a user meets it: a quick run and its refusals."""

import functools
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from device import DEVICE

from fastq.demo import Digits, prepared, recipe_for


def demo(*options):
    command = [sys.executable, "-m", "fastq", "demo", *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_quick_run(tmp_path):
    done = demo("--quick", "--device", DEVICE, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "demo.png").read_bytes()[:4] == b"\x89PNG"
    result = json.loads((tmp_path / "out" / "demo.json").read_text())
    for name in ("W4A4", "W2A2"):
        row = result["networks"][name]
        assert row["differing predictions"] == 0
        assert row["accuracy"] == row["integer accuracy"]
        assert row["flips"] == 0 and row["codes"] > 10**6 and row["largest logit difference"] == 0  # to the last bit
        assert row["bytes"] < result["networks"]["full precision"]["bytes"] / 3
    assert "differing" in done.stdout and "fastq" in done.stdout
    assert all(isinstance(result["step_ms"][name], float) for name in ("none (fp32)", "eager", "fastq", "fastq, integers"))
    again = demo("--quick", "--device", DEVICE, "--output", tmp_path / "again")
    repeated = json.loads((tmp_path / "again" / "demo.json").read_text())
    assert again.returncode == 0 and [repeated[k] for k in ("networks", "curves")] == [result[k] for k in ("networks", "curves")]


def test_an_interrupt_is_one_line(tmp_path):
    output = tmp_path / "out"
    command = [sys.executable, "-m", "fastq", "demo", "--device", DEVICE, "--epochs", "500", "--output", str(output)]
    # Whoever started the tests in the background may have had them ignore interrupts, and a child would inherit that.
    attend = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, preexec_fn=attend, **pipes) as process:
        try:
            deadline = time.monotonic() + 60
            while not output.exists() and time.monotonic() < deadline and process.poll() is None:
                time.sleep(0.1)
            time.sleep(2)  # now it loads the images, or trains
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130 and stderr == "demo: interrupted\n"


def test_a_missing_package_is_named(tmp_path):
    script = "import sys; sys.modules['sklearn'] = None; from fastq.__main__ import main; sys.exit(main(['demo']))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, env=dict(os.environ))
    assert done.returncode == 2
    assert done.stderr == "demo: needs the package sklearn; install it with: pip install 'fastq[demo]'\n"


@pytest.mark.parametrize("arguments", [["--epochs", "0"], ["--epochs", "many"], ["--no-such-option"], ["--device", "nonsense"]])
def test_wrong_options(arguments, tmp_path):
    done = demo("--output", tmp_path, *arguments)
    assert done.returncode == 2 and "Traceback" not in done.stderr


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    done = demo("--output", tmp_path / "file" / "below")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "cannot write to --output" in done.stderr


def test_another_recipe(tmp_path):
    done = demo("--quick", "--device", DEVICE, "--recipe", "sat", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out" / "demo.json").read_text())
    assert result["recipe"] == "sat" and "recipe sat" in done.stdout
    assert [result["networks"][name]["differing predictions"] for name in ("W4A4", "W2A2")] == [0, 0]
    assert [result["networks"][name]["flips"] for name in ("W4A4", "W2A2")] == [0, 0]
    assert "In floating point: stem; the recipe leaves the input as it comes." in done.stdout


def test_a_recipe_without_an_integer_forward_pass_is_trained_in_the_fake_one():
    model, forward, why = prepared(Digits(), recipe_for("noise_tempering", 4), "integer")
    assert forward == "fake" and "adds noise in training" in why and model.stem.forward_kind == "fake"
    model, forward, why = prepared(Digits(), recipe_for("lsq", 4), "integer")
    assert (forward, why) == ("integer", "") and model.stem.forward_kind == "integer"


def test_an_unknown_recipe_is_told_its_nearest(tmp_path):
    done = demo("--recipe", "lsqplus", "--output", tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("demo: there is no recipe 'lsqplus'; did you mean 'lsq_plus'? known are lsq, lsq_plus, pact")
