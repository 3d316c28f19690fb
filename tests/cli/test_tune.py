"""``python -m fastq tune``, without a GPU: what it tries, chooses, writes and says."""

from pathlib import Path

import pytest
import torch

import fastq.tune
from fastq.__main__ import main
from fastq.engine import configurations
from fastq.engine.configurations import KINDS, Configuration
from fastq.tune import candidates, rows_of, tune


def test_dry_it_writes_a_table_of_every_kind_that_the_engine_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "table.json"
    assert main(["tune", "--dry", "--output", str(output)]) == 0
    number = sum(len(rows_of(kind)) for kind in KINDS)
    assert (
        f"{number} configurations chosen, {number} in {output}; use them with FASTQ_CONFIGURATIONS={output}"
        in capsys.readouterr().out
    )
    table = configurations.load(output)
    assert {(c.kind, c.rows) for c in table} == {(kind, rows) for kind in KINDS for rows in rows_of(kind)}
    monkeypatch.setenv("FASTQ_CONFIGURATIONS", str(output))
    for kind in KINDS:
        assert configurations.find(kind, 90, 16) in table


@pytest.mark.parametrize("architecture", [80, 90, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_candidates_could_all_run_and_begin_with_the_shipped_one(kind: str, architecture: int) -> None:
    for rows in rows_of(kind):
        tried = list(candidates(kind, architecture, rows, 132))
        assert len(tried) == len(set(tried)) and 10 <= len(tried) <= 100
        assert {(c.kind, c.architecture, c.rows) for c in tried} == {(kind, architecture, rows)}
        assert [c.reason_against() for c in tried] == [None] * len(tried)
        shipped = configurations.find(kind, architecture, rows or 2**31 - 1)
        assert (tried[0].block_m, tried[0].block_n, tried[0].stages) == (shipped.block_m, shipped.block_n, shipped.stages)


def test_it_takes_the_fastest_over_all_rows_and_leaves_out_what_fails() -> None:
    def measure(c: Configuration, rows: int) -> float:
        if c.stages == 3:
            raise RuntimeError("out of resource: shared memory")
        # 256 columns are twice as fast for 2048 rows and more, and a third slower for 256: 4/3 * 1/2 * 1/2 < 1
        return 1e-3 * (1.0 if c.block_n < 256 else 4 / 3 if rows == 256 else 0.5) * (1.5 if c.flatten else 1.0)

    said: list[str] = []
    (best,) = tune(["w4a8"], 90, 132, measure, said.append)
    assert best.block_n == 256 and best.stages != 3 and not best.flatten
    served = sum(c.stages != 3 for c in candidates("w4a8", 90, 0, 132))
    total = len(list(candidates("w4a8", 90, 0, 132)))
    assert f"{served} of {total}" in said[0]


def test_a_table_is_written_kind_by_kind_and_added_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "table.json"
    assert main(["tune", "--dry", "--kinds", "w8a8", "--output", str(output)]) == 0
    first = configurations.load(output)
    seen: list[int] = []

    def interrupted(c: Configuration, rows: int) -> float:
        if c.kind == "a32":
            seen.append(len(configurations.load(output)))
            raise KeyboardInterrupt
        return 1.0

    monkeypatch.setattr(fastq.tune, "made_up", interrupted)
    assert main(["tune", "--dry", "--kinds", "w4a8_few", "a32", "--output", str(output)]) == 130
    assert seen == [1 + len(rows_of("w4a8_few"))] and set(first) < set(configurations.load(output))
    (tmp_path / "other").write_text("[]")
    assert main(["tune", "--dry", "--output", str(tmp_path / "other")]) == 1
    assert "tune: cannot add to --output: " in capsys.readouterr().err


def test_it_says_why_none_served() -> None:
    def measure(c: Configuration, rows: int) -> float:
        raise ArithmeticError("its result is not exact")

    said: list[str] = []
    assert tune(["w8a8"], 90, 132, measure, said.append) == []
    assert said[0].startswith("w8a8, rows any: none of ") and said[0].endswith(
        "because of ArithmeticError: its result is not exact"
    )


def test_without_a_gpu_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["tune", "--output", str(tmp_path / "table.json")]) == 1
    assert capsys.readouterr().err.startswith("tune: needs a GPU")
    assert not (tmp_path / "table.json").exists()


def test_a_place_where_nothing_can_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "--dry", "--kinds", "w8a8", "--output", str(tmp_path / "no" / "table.json")]) == 1
    assert "tune: cannot write to --output" in capsys.readouterr().err
