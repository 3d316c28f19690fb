"""``python -m benchmarks`` and ``python -m benchmarks.gpu``: planning, resuming, what is generated from their files."""

import argparse
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sample_results import benchmark, integer, part, row, stage, unavailable

from benchmarks import gpu, measure, readme, results
from benchmarks.__main__ import add_arguments, positive
from benchmarks.registry import METHODS, cases, select

pytestmark = pytest.mark.source


def test_the_generated_files_are_true() -> None:
    assert readme.main(["--check"]) == 0, "run: python -m benchmarks.readme"


def test_readme_block_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    empty = readme.readme("# A\n\ntext\n", tmp_path)
    assert empty.startswith("# A\n\ntext\n\n## Speed\n") and "Not measured yet" in empty
    case = "size/4x256/fp32/tensor"
    results.write(benchmark([row(case, "compiled", 30.0), row(case, "fastq-cpu", 10.0)]), tmp_path)
    again = readme.readme(empty + "\nafter\n", tmp_path)
    assert "Not measured yet: `make bench`" not in again and again.endswith("\nafter\n") and again.startswith("# A\n\ntext\n")
    assert "| size/4x256/fp32/tensor | 10.0 | - | 3.00x |" in again
    assert readme.readme(again, tmp_path) == again


def test_the_readme_has_the_training_steps_of_both_devices(tmp_path: Path) -> None:
    empty = readme.readme("# A\n", tmp_path)
    assert "Not measured yet: `make bench-training`." in empty
    arms = [row("batch 8", arm, us) | {"method": "digits"} for arm, us in (("full precision", 1000.0), ("integer", 1500.0))]
    results.write(benchmark(arms, name="cpu"), tmp_path / "training")
    arms = [one | {"device": "cuda", "method": "block"} for one in arms]
    results.write({**stage("training", [part("block")]), **benchmark(arms, "cuda"), "kind": "training"}, tmp_path / "gpu")
    text = readme.readme(empty, tmp_path)
    line = "batch 8 | integer | 0.50 | 1.00 | 1.50 | 1.50x |"
    assert f"| digits, {line}" in text and f"| block, {line}" in text and readme.readme(text, tmp_path) == text


def test_quick_and_dry_runs_are_not_shown(tmp_path: Path) -> None:
    results.write(benchmark([], quick=True, name="a"), tmp_path)
    results.write(benchmark([], dry=True, name="b"), tmp_path)
    assert readme.newest(tmp_path) is None


def test_pending_is_the_registry_minus_what_ran(tmp_path: Path) -> None:
    nothing = readme.pending(tmp_path)
    every = sum(len(method.cases("cuda")) for method in METHODS) * 6 * 3
    assert f"{every} of {every} measurements" in nothing and "- cuda racecheck\n" in nothing
    case = cases()[0].name
    rows = [row(case, "fastq-cuda", 10.0, "cuda"), unavailable(case, "fastq-triton", "cuda"), row(case, "eager", 10.0, "cpu")]
    results.write(benchmark(rows, "cuda"), tmp_path)
    results.write(stage("sanitize", [part("cuda racecheck", "failed"), part("cuda memcheck", "timeout")]), tmp_path)
    left = readme.pending(tmp_path)
    assert f"- lsq {case}: eager, compiled, core, fastq-reference, fastq-triton\n" in left
    assert f"{every - 3} of {every} measurements" in left
    assert "- cuda racecheck\n" not in left and "- cuda memcheck\n" in left  # one that ran out of time has not run


def test_a_case_that_was_disturbed_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(shares: list[float]) -> tuple[Any, float | None, int]:
        clock = iter([reading for share in shares for reading in (0.0, share * 1e9)])
        attempts: list[int] = []
        monkeypatch.setattr(measure, "waited", lambda: next(clock, None))
        monkeypatch.setattr(measure, "cpu_rounds", lambda *_: attempts.append(len(attempts)) or {"attempt": len(attempts)})
        seconds = itertools.count(step=1e9)
        monkeypatch.setattr(measure.time, "perf_counter", lambda: float(next(seconds)))
        times, share = measure.undisturbed_rounds({}, ((), None), 1.0)  # type: ignore[arg-type]
        return times["attempt"], share, len(attempts)

    assert run([0.01]) == (1, 0.01, 1)
    assert run([0.4, 0.02]) == (2, 0.02, 2)
    assert run([0.4, 0.2, 0.3]) == (2, 0.2, 3)  # the best there was
    assert run([]) == (1, None, 1)  # a system that does not say


def setting(tmp_path: Path, dry: bool = False) -> gpu.Setting:
    return gpu.Setting(dry, tmp_path)


def test_the_plan_covers_both_backends_every_tool_and_every_family(tmp_path: Path) -> None:
    tests = gpu.parts("test", setting(tmp_path))
    asked = {(p.name.split()[0], p.environment["FASTQ_BACKEND"], p.environment["FASTQ_TEST_DEVICE"]) for p in tests}
    assert asked == {("cuda", "", "cuda"), ("triton", "triton", "cuda")}  # CUDA is what GPU tensors get first
    assert {"cuda tests/ops/test_lsq.py", "triton tests/nn/test_layers.py"} <= {p.name for p in tests}
    assert not any("tests/cuda/" in p.name or "tests/benchmarks/" in p.name for p in tests)
    assert len(gpu.names("sanitize")) == 2 * 4
    assert all(p.command[0] == "compute-sanitizer" for p in gpu.parts("sanitize", setting(tmp_path)))
    found = []
    for one in gpu.parts("bench", setting(tmp_path)):
        arguments = argparse.ArgumentParser()
        add_arguments(arguments)
        chosen = arguments.parse_args(one.command[3:])
        found += [(m.name, c.name) for m, c in select(chosen.filter, device=chosen.device, method=chosen.method)]
    assert sorted(found) == sorted((method.name, case.name) for method, case in select(device="cuda"))  # none twice, none left out
    with pytest.raises(ValueError, match="unknown stage 'paint'"):
        gpu.parts("paint", setting(tmp_path))


def test_the_dry_plan_needs_no_gpu(tmp_path: Path) -> None:
    for name in gpu.STAGES:
        found = gpu.parts(name, setting(tmp_path, dry=True))
        assert found and all("cuda" not in p.command and p.command[0] == sys.executable for p in found)
    assert [p.environment.get("TRITON_INTERPRET") for p in gpu.parts("sanitize", setting(tmp_path, dry=True))] == [None, "1"]


def script(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def test_a_stage_resumes_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    note = f"open({str(log)!r}, 'a').write"
    plan = [gpu.Part("good", script(f"{note}('g')")), gpu.Part("bad", script(f"{note}('b'); print('sorry'); raise SystemExit(3)"))]
    monkeypatch.setattr(gpu, "parts", lambda stage, setting: plan)
    here = setting(tmp_path, dry=True)
    assert gpu.run_stage("test", here, limit=60, again=False) == 1
    record = {p["name"]: p for p in results.read(tmp_path / "test.json")["parts"]}
    assert record["good"]["status"] == "passed" and record["bad"]["status"] == "failed" and record["bad"]["detail"] == "sorry"
    assert gpu.run_stage("test", here, limit=60, again=False) == 1
    assert log.read_text() == "gbb"  # what passed is not run again, what failed is
    plan[1] = gpu.Part("bad", script(f"{note}('B')"))
    assert gpu.run_stage("test", here, limit=60, again=False) == 0
    monkeypatch.setattr(results, "source_digest", lambda: "other sources")
    assert gpu.run_stage("test", here, limit=60, again=False) == 0
    assert log.read_text() == "gbbBgB"


def test_time_limits_stop_a_part_and_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = "[sys.executable, '-c', 'import time; time.sleep(60)']"
    sleeper = f"import subprocess, sys; print('before', flush=True); subprocess.run({child})"
    plan = [gpu.Part("long", script(sleeper)), gpu.Part("next", script("pass"))]
    monkeypatch.setattr(gpu, "parts", lambda stage, setting: plan)
    assert gpu.run_stage("sanitize", setting(tmp_path), limit=2.0, again=False) == gpu.UNFINISHED
    (only,) = results.read(tmp_path / "sanitize.json")["parts"]
    assert only["status"] == "timeout" and only["seconds"] < 20 and only["detail"] == "before"


def test_a_part_that_others_left_no_time_is_not_done_and_goes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    plan = [gpu.Part(name, []) for name in ("slow", "late", "never")]
    clock = itertools.count()
    monkeypatch.setattr(gpu.time, "monotonic", lambda: float(next(clock)) * 2.0)  # the end is read at 0
    monkeypatch.setattr(gpu, "parts", lambda stage, setting: plan)

    def run(part: gpu.Part, setting: gpu.Setting, seconds: float) -> dict[str, Any]:
        order.append(part.name)
        return {"name": part.name, "status": "timeout" if seconds < 7 else "passed", "seconds": 1.0, "detail": ""}

    monkeypatch.setattr(gpu, "run", run)
    # "slow" has 8 of 10 seconds and passes, "late" has 6 and is stopped; "never" has 4, and is stopped as well
    assert gpu.run_stage("test", setting(tmp_path), limit=10.0, again=False) == gpu.UNFINISHED
    assert order == ["slow", "late", "never"]
    plan.append(gpu.Part("new", []))
    clock = itertools.count()
    assert gpu.run_stage("test", setting(tmp_path), limit=10.0, again=False) == gpu.UNFINISHED
    assert order[3:] == ["new", "late", "never"]


def test_untried_levels_are_those_above_the_best_that_ran(tmp_path: Path) -> None:
    assert readme.untried_levels(tmp_path) == ["v2", "v3", "v4", "vnni", "amx"]
    results.write(benchmark([]), tmp_path)
    assert readme.untried_levels(tmp_path) == ["v4", "vnni", "amx"]
    products = integer([], name="products")
    products["environment"]["isa"] = "amx"
    results.write(products, tmp_path)
    assert readme.untried_levels(tmp_path) == []


def test_a_missing_program_is_a_failed_part(tmp_path: Path) -> None:
    record = gpu.run(gpu.Part("x", ["no-such-program-here"]), setting(tmp_path), 5.0)
    assert record["status"] == "failed" and "No such file" in record["detail"]


def test_benchmark_rows_replace_earlier_ones(tmp_path: Path) -> None:
    here = setting(tmp_path)
    result: dict[str, Any] = benchmark([row("a", "eager", 9.0, "cuda"), row("b", "eager", 9.0, "cuda")], "cuda")
    new = benchmark([row("a", "eager", 5.0, "cuda")], "cuda", name="bench-weight", copy_bytes_per_s=4e12)
    results.write(new, tmp_path / "parts")
    gpu.take_rows(result, here, "abc")
    assert {r["case"]: r["passes"]["both"]["median_us"] for r in result["rows"]} == {"a": 5.0, "b": 9.0}
    assert result["copy_bytes_per_s"] == 4e12 and not (tmp_path / "parts").exists()


def test_sizes_are_read_as_people_write_them() -> None:
    assert [positive(text) for text in ("1000", "64k", "1M")] == [1000, 2**16, 2**20]
    for text in ("0", "-1", "1G", "many"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected a number of elements"):
            positive(text)


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    # what tests side by side is no test itself: pytest-benchmark does not measure in a worker
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    env = {**own, **environment}
    return subprocess.run([sys.executable, "-m", *arguments], cwd=results.ROOT, env=env, capture_output=True, text=True)


def test_wrong_options_say_what_is_right() -> None:
    done = run("benchmarks", "--filter", "no-such-case")
    assert done.returncode == 2 and "no case has such a name and size" in done.stderr
    done = run("benchmarks.gpu", "paint")
    assert done.returncode == 2 and "unknown stage 'paint'" in done.stderr


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    done = run("benchmarks.gpu", "environment", PATH=str(tmp_path))
    assert done.returncode == 1 and "make gpu DRY=1" in done.stderr
    done = run("benchmarks.gpu", "--plan", "sanitize", PATH=str(tmp_path))
    assert done.returncode == 0 and json.loads(done.stdout)["sanitize"][0]["name"] == "cuda memcheck"


def test_a_quick_run_end_to_end(tmp_path: Path) -> None:
    done = run("benchmarks", "--quick", "--out", str(tmp_path), "--filter", "fp32", "--method", "lsq")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    result = results.read(tmp_path / "quick.json")
    state = {r["provider"]: r["status"] for r in result["rows"]}
    assert state["eager"] == state["compiled"] == state["core"] == state["fastq-cpu"] == "ok"
    assert set(result["environment"]["malloc"]) == set(results.MALLOC)  # it started itself again with the allocator set
    assert (tmp_path / "quick.png").exists() and "benchmark 'lsq size/4x256/fp32/tensor both'" in done.stdout
