"""The training step's benchmark: every arm runs, the integer one only where it equals its converted form."""

import pytest
import torch

from benchmarks import results, training

pytestmark = [pytest.mark.source, pytest.mark.usefixtures("one_thread")]


def measured() -> dict:
    rows = training.run_network("digits", "cpu", 4, False, False, 0)
    return results.validate(results.new("benchmark", "cpu", device="cpu", quick=True, copy_bytes_per_s=None, load=0.0, rows=rows))


def test_three_arms_and_what_they_keep() -> None:
    found = measured()
    kept = {row["provider"]: row["saved_bytes"] for row in found["rows"]}
    assert list(kept) == ["full precision", "fake", "integer"]
    # codes take a quarter of what fake quantization keeps besides the activations themselves; steps and sums are small
    extra = {arm: kept[arm] - kept["full precision"] for arm in ("fake", "integer")}
    assert 0 < extra["integer"] < 0.3 * extra["fake"]
    assert all(f"| {arm} |" in training.table(found) for arm in kept)


def test_an_arm_that_is_not_what_it_becomes_shows_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training.fastq, "convert", lambda model: lambda x: model(x) + torch.tensor(0.5))
    found = measured()
    (row,) = [row for row in found["rows"] if row["provider"] == "integer"]
    assert row["status"] == "failed" and "passes" not in row
    assert "| integer | differs from the converted network by 0.5 |" in training.table(found)
