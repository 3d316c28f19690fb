"""The command as a user meets it: a quick run, an interrupted one that goes on, and its refusals."""

import functools
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


def compare(*options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fastq", "compare", *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, int, subprocess.CompletedProcess[str], int]:
    """A quick run that was interrupted, and then went on: folder, its last words, exit status, the second run, units kept."""
    output = tmp_path_factory.mktemp("compare") / "out"
    units = output / "quick-units"
    command = [sys.executable, "-m", "fastq", "compare", "--quick", "--workers", "2", "--output", str(output)]
    # Whoever started the tests in the background may have had them ignore interrupts, and a child would inherit that.
    attend = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, preexec_fn=attend, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            deadline = time.monotonic() + 300
            while len(list(units.glob("*.json"))) < 3 and time.monotonic() < deadline and process.poll() is None:
                time.sleep(0.1)
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=120)
        finally:
            process.kill()
    kept = sorted(units.glob("*.json"))
    done = compare("--quick", "--workers", "2", "--output", output)
    assert done.returncode == 0, done.stderr
    return output, stderr, process.returncode, done, len(kept)


def test_an_interrupt_is_one_line_and_what_is_done_is_kept(runs):
    _, stderr, status, done, kept = runs
    assert status == 130 and stderr == "compare: interrupted\n"
    assert kept >= 3
    assert f"{kept} of 50 parts were there already" in done.stdout


def test_a_quick_run_gives_table_picture_and_numbers(runs):
    output, _, _, done, _ = runs
    assert (output / "compare.png").read_bytes()[:4] == b"\x89PNG"
    result = json.loads((output / "compare.json").read_text())
    assert (result["schema"], result["quick"], result["seeds"]) == (1, True, 2)
    for claim in result["claims"]:
        assert claim["name"] in done.stdout
        assert all(len(values) == 2 for values in claim["arms"].values())
        for c in claim["contrasts"]:
            assert all(math.isfinite(v) for v in [*c["values"], *c["other values"]]), c["text"]
            assert c["lower"] == sum(a < b for a, b in zip(c["values"], c["other values"], strict=True))
            assert c["text"] in done.stdout and c["verdict"].split(",")[0] in done.stdout
    assert "does not show" in done.stdout  # ten steps cannot show it all
    assert done.stdout.count("a reconstruction)") == 4 + 4  # claims and recipes
    assert len(result["recipes"]) == 11 and all(0 <= m["accuracy"] <= 1 for m in result["recipes"].values())


def test_the_identities_hold_and_the_same_seed_gives_the_same_codes(runs):
    result = json.loads((runs[0] / "compare.json").read_text())
    names = [i["name"] for i in result["identities"]]
    assert len(names) == 6 and sum(name.startswith("the same seed gives the same codes") for name in names) == 3
    assert all(i["holds"] and i["error"] <= i["tolerance"] for i in result["identities"])


def test_the_calibrated_gradient_is_the_surrogates_derivative(runs):
    result = json.loads((runs[0] / "compare.json").read_text())
    (claim,) = [c for c in result["claims"] if c["name"] == "PACT"]
    # central differences in fp64 of a loss that is smooth but for kinks, which 1e-6 of a clip seldom reaches
    assert all(m["gradient error"] < 1e-5 for m in claim["arms"]["calibrated"])
    assert all(m["gradient error"] > 0.1 for m in claim["arms"]["plain"])


def test_what_is_missing_damaged_or_of_other_code_is_done_again(runs):
    output = runs[0]
    units = output / "quick-units"
    before = json.loads((output / "compare.json").read_text())
    (units / "sat-not-0.json").unlink()
    (units / "qil-direct-1.json").write_text("{")
    other = json.loads((units / "pact-plain-0.json").read_text())
    other["key"]["source"], other["metrics"]["test loss"] = "of another day", 123.0
    (units / "pact-plain-0.json").write_text(json.dumps(other))
    again = compare("--quick", "--workers", "1", "--output", output)
    assert again.returncode == 0 and "47 of 50 parts were there already" in again.stdout
    after = json.loads((output / "compare.json").read_text())
    # the numbers are those of the first time, with one process instead of two
    assert [after[k] for k in ("claims", "recipes", "identities")] == [before[k] for k in ("claims", "recipes", "identities")]


def test_an_identity_that_does_not_hold_is_exit_status_1(runs):
    script = (
        "import sys, fastq.compare.identities as i; from fastq.__main__ import main\n"
        "i.sat_variance = lambda: i.Identity('broken', float('nan'), 1e-6)\n"
        f"sys.exit(main(['compare', '--quick', '--output', {str(runs[0])!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and done.stderr == ""
    assert "does not hold" in done.stdout and "50 of 50 parts were there already" in done.stdout


def test_a_missing_package_is_named(tmp_path):
    script = "import sys; sys.modules['sklearn'] = None; from fastq.__main__ import main; sys.exit(main(['compare']))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, env=dict(os.environ))
    assert done.returncode == 2 and list(tmp_path.iterdir()) == []
    assert done.stderr == "compare: needs the package sklearn; install it with: pip install 'fastq[demo]'\n"


@pytest.mark.parametrize("arguments", [["--workers", "0"], ["--workers", "many"], ["--no-such-option"]])
def test_wrong_options(arguments, tmp_path):
    done = compare("--output", tmp_path, *arguments)
    assert done.returncode == 2 and "Traceback" not in done.stderr


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    done = compare("--output", tmp_path / "file" / "below")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "cannot write to --output" in done.stderr
