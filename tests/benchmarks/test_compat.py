"""The drop-ins' benchmark: every pair is made alike and agrees; the table in MIGRATING.md is the committed result's."""

from typing import Any

import pytest

from benchmarks import compat, results

pytestmark = [pytest.mark.source, pytest.mark.usefixtures("one_thread")]


@pytest.mark.parametrize("pair", compat.PAIRS)
def test_every_pair_agrees_and_is_measured(pair: str) -> None:
    rows = compat.run_pair(pair, (8, 64), 0)
    assert [row["provider"] for row in rows] == ["library", "fastq-cpu"] and all(row["status"] == "ok" for row in rows), rows
    result = results.new("benchmark", "cpu", device="cpu", quick=True, copy_bytes_per_s=None, load=0.0, rows=rows)
    assert pair in compat.table(results.validate(result))


def test_a_pair_that_disagrees_shows_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(compat.PAIRS, "wrong", lambda x: (lambda t: t * 1, lambda t: t * 2))
    rows = compat.run_pair("wrong", (8, 64), 0)
    assert all(row["status"] == "failed" and "passes" not in row for row in rows)
    assert rows[0]["reason"] == "differs in 512 of 512 elements"
    result = results.new("benchmark", "cpu", device="cpu", quick=True, copy_bytes_per_s=None, load=0.0, rows=rows)
    assert "| wrong | differs in 512 of 512 elements | | |" in compat.table(results.validate(result))


def test_the_guide_s_table_is_the_committed_result_s() -> None:
    found: list[dict[str, Any]] = results.read_all(compat.FOLDER)
    text = compat.GUIDE.read_text()
    assert compat.guide(text, found[-1] if found else None) == text
    assert all({row["method"] for row in result["rows"]} == set(compat.PAIRS) for result in found[-1:])


def test_an_unknown_filter_names_the_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        compat.main(["--quick", "--filter", "nothing"])
    assert "no pair has 'nothing' in its name; there are: torch.ao FakeQuantize, per tensor, observing; " in capsys.readouterr().err
