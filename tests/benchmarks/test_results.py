"""Result files: good ones pass, broken ones are named; ratios and goals are the arithmetic they say."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sample_results import benchmark, part, row, stage, unavailable

from benchmarks import report, results
from benchmarks.registry import BANDWIDTH_GOAL, CPU_GOALS

pytestmark = pytest.mark.source
WEIGHT, SMALL, LARGE = "weight/4096x4096/fp32/tensor", "size/4x256/fp32/tensor", "size/1024x65536/fp32/tensor"


def sample() -> dict[str, Any]:
    return benchmark([row(WEIGHT, "eager", 80.0), row(WEIGHT, "fastq-cpu", 10.0), unavailable(WEIGHT, "fastq-cuda")])


def test_good_results_are_written_and_read(tmp_path: Path) -> None:
    path = results.write(sample(), tmp_path)
    assert path.name == "sample.json" and results.read(path) == sample()
    results.write(stage("test", [part("cuda tests/ops"), part("triton tests/ops", "timeout")]), tmp_path)
    assert [r["kind"] for r in results.read_all(tmp_path, "test")] == ["test"]
    assert [r["name"] for r in results.read_all(tmp_path)] == ["sample"]


def test_rows_that_others_disturbed_are_named() -> None:
    rows = [row(WEIGHT, "fastq-cpu", 10.0, waited=0.01), row(SMALL, "fastq-cpu", 10.0, waited=0.4)]
    (note,) = [note for note in report.notes(benchmark(rows)) if "not to be trusted" in note]
    assert SMALL in note and WEIGHT not in note
    assert not any("trusted" in note for note in report.notes(benchmark(rows[:1], load=3.0)))
    assert any("load average 3.0" in note for note in report.notes(benchmark([row(WEIGHT, "eager", 1.0)], load=3.0)))
    with pytest.raises(results.BrokenResult, match="waited must be"):
        results.validate(benchmark([row(WEIGHT, "eager", 1.0, waited="long")]))


def change(*keys: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def apply(result: dict[str, Any]) -> None:
        for key in keys[:-1]:
            result = result[key]
        result[keys[-1]] = value

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change("schema", value=2), "schema must be 1, got 2"),
        (change("schema", value=True), "schema must be int, got True"),
        (change("kind", value="poem"), "kind must be one of benchmark, .*, got 'poem'"),
        (change("created", value="yesterday"), "created must be an ISO date, got 'yesterday'"),
        (change("environment", "cores", value="two"), "environment: cores must be int, got 'two'"),
        (lambda r: r["environment"].pop("source"), "environment: source is missing"),
        (lambda r: r.pop("rows"), "result: rows is missing"),
        (change("rows", 0, "status", value="fine"), r"rows\[0\]: status must be one of ok, failed, unavailable, got 'fine'"),
        (lambda r: r["rows"][0]["passes"].pop("both"), r"rows\[0\]: passes must be forward, backward, both"),
        (change("rows", 1, "passes", "both", "median_us", value=-1.0), r"rows\[1\]: both: times must be positive"),
        (change("rows", 1, "passes", "both", "rounds", value=None), r"rows\[1\]: both: rounds must be int, got None"),
        (change("rows", 2, "passes", value={}), r"rows\[2\]: a row that is not ok has no times"),
        (lambda r: r["rows"][2].pop("reason"), r"rows\[2\]: reason is missing"),
    ],
)
def test_broken_results_are_named(damage: Callable[[dict[str, Any]], None], message: str, tmp_path: Path) -> None:
    result = sample()
    damage(result)
    with pytest.raises(results.BrokenResult, match=message):
        results.validate(result)
    with pytest.raises(results.BrokenResult):
        results.write(result, tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "bad.json").write_text(json.dumps(result))
    with pytest.raises(results.BrokenResult, match=rf"bad\.json: .*{message}"):
        results.read(tmp_path / "bad.json")


def test_a_truncated_file_and_a_broken_part_are_named(tmp_path: Path) -> None:
    path = results.write(sample(), tmp_path)
    path.write_text(path.read_text()[:200])
    with pytest.raises(results.BrokenResult, match=r"sample\.json: "):
        results.read(path)
    with pytest.raises(results.BrokenResult, match=r"parts\[0\]: status must be one of passed, failed, timeout, got 'skipped'"):
        results.validate(stage("sanitize", [part("cuda memcheck", "skipped")]))


def test_the_committed_results_follow_the_schema() -> None:
    for path in results.FOLDER.rglob("*.json"):
        assert not results.read(path)["dry"], path


def test_the_environment_is_complete_and_names_no_folder() -> None:
    found = results.environment()
    results.validate(results.new("test", "here", parts=[]))
    assert found["cores"] >= 1 and found["fastq"] and found["torch"]
    assert str(results.ROOT) not in json.dumps(found)
    assert results.source_digest() == found["source"]


def test_ratios_are_of_medians_and_missing_times_give_none() -> None:
    group = report.by_case(sample()["rows"])[WEIGHT]
    assert report.ratio(group, "eager", "cpu") == pytest.approx(8.0)
    assert report.ratio(group, "eager", "cpu", "forward") == pytest.approx(8.0)
    assert report.ratio(group, "compiled", "cpu") is None and report.ratio(group, "eager", "cuda") is None


def test_on_a_gpu_cuda_is_taken_before_triton() -> None:
    rows = {"fastq-triton": row(LARGE, "fastq-triton", 9.0, "cuda"), "fastq-cuda": unavailable(LARGE, "fastq-cuda", "cuda")}
    ours = report.fastest(rows, "cuda")
    assert ours is not None and ours["provider"] == "fastq-triton"
    rows["fastq-cuda"] = row(LARGE, "fastq-cuda", 11.0, "cuda")
    assert report.fastest(rows, "cuda") == rows["fastq-cuda"]


def verdict(rows: list[dict[str, Any]], words: str, device: str = "cpu") -> report.Verdict:
    return next(v for v in report.verdicts(benchmark(rows, device)) if words in v.goal)


def test_goals_take_the_worst_case() -> None:
    other = "weight/4096x4096/fp32/channel"
    rows = [row(WEIGHT, "eager", 80.0), row(WEIGHT, "fastq-cpu", 10.0), row(other, "eager", 60.0), row(other, "fastq-cpu", 10.0)]
    found = verdict(rows, "7x faster than eager")
    assert found.met is False and found.worst == pytest.approx(6.0) and found.case == other
    rows[2] = row(other, "eager", 70.0)
    assert verdict(rows, "7x faster than eager").met is True  # exactly the goal is enough
    assert verdict(rows, "5x faster than torch core").met is None
    bf16 = "weight/4096x4096/bf16/group"  # every dtype and granularity counts
    assert verdict([*rows, row(bf16, "eager", 10.0), row(bf16, "fastq-cpu", 10.0)], "7x faster than eager").case == bf16


def test_goals_of_small_sizes_end_at_64k() -> None:
    large = "size/128x8192/fp32/tensor"
    rows = [row(SMALL, "compiled", 30.0), row(SMALL, "fastq-cpu", 10.0), row(large, "compiled", 5.0), row(large, "fastq-cpu", 10.0)]
    assert verdict(rows, "2x faster than torch.compile").worst == pytest.approx(3.0)
    assert {goal.at_least for goal in CPU_GOALS} == {1.0, 2.0, 5.0, 7.0}


def test_saved_memory_is_measured_against_the_inputs() -> None:
    ours = row(SMALL, "fastq-cpu", 10.0, saved_bytes=4096 + 4)
    assert verdict([ours], "saved memory").met is True
    assert verdict([{**ours, "saved_bytes": 4096 + 8}], "saved memory").met is False


def test_bandwidth_goal_takes_the_worse_pass() -> None:
    ours = row(LARGE, "fastq-cuda", 10.0, "cuda")
    ours["passes"]["forward"]["of_copy"], ours["passes"]["backward"]["of_copy"] = 0.9, 0.84
    found = verdict([ours], "copy bandwidth", "cuda")
    assert found.met is False and found.worst == 0.84 and found.needed == BANDWIDTH_GOAL and found.case.endswith("backward")
    small = row(SMALL, "fastq-cuda", 10.0, "cuda")
    assert verdict([small], "copy bandwidth", "cuda").met is None


def test_table_notes_and_plot_say_what_was_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = sample()
    report.show(result)
    printed = " ".join(capsys.readouterr().out.split())
    assert WEIGHT in printed and "8.00x" in printed and "no such thing here" in printed and "freed pages kept" in printed
    result["environment"]["malloc"] = {}
    assert "not kept: page faults are in the times" in report.notes(result)[1]
    assert report.plot(result, tmp_path / "plot.png") and (tmp_path / "plot.png").stat().st_size > 5000
