"""The committed comparison: what is kept of a run, and README's block of it."""

import json
from pathlib import Path
from typing import Any

import pytest
from sample_results import ENVIRONMENT

from benchmarks import compare, readme, results

pytestmark = pytest.mark.source


def sample(**more: Any) -> dict[str, Any]:
    contrast = {
        "text": "loss of |w|", "arm": "a", "metric": "loss", "other": "b", "other metric": "loss", "values": [1.0, 2.0],
        "other values": [2.0, 4.0], "lower": 2, "verdict": "shows", "difference": -1.5, "spread": 0.5,
    }  # fmt: skip
    price = {**contrast, "text": "price", "verdict": "not claimed", "lower": 0, "values": [None, 1.0], "spread": None}
    claim = {
        "name": "noise", "statement": "less is lost", "paper": "", "network": "residual", "reconstruction": "a reconstruction",
        "arms": {"a": [], "b": []}, "contrasts": [contrast, {**contrast, "text": "other", "verdict": "does not show"}, price],
    }  # fmt: skip
    recipe = {"training loss": 0.1, "test loss": 0.2, "accuracy": 0.5}
    identity = {"name": "one is one", "error": 0.0, "tolerance": 0.0, "holds": True}
    return {
        "schema": 1, "quick": False, "seeds": 2, "steps": 3, "pretraining": 4, "cpu seconds": 5.0, "claims": [claim],
        "recipes": {"lsq": recipe}, "reconstructions": {"lsq": "half of it"},
        "identities": [identity, {**identity, "holds": False, "error": None}], **more,
    }  # fmt: skip


def output(folder: Path, comparison: dict[str, Any]) -> Path:
    folder.mkdir()
    (folder / "compare.json").write_text(json.dumps(comparison))
    (folder / "compare.png").write_bytes(b"\x89PNG")
    return folder


def test_a_whole_run_is_kept_with_machine_and_picture(tmp_path: Path) -> None:
    path = compare.keep(output(tmp_path / "run", sample()), tmp_path)
    kept = results.read(path)
    assert kept["comparison"] == sample() and kept["environment"]["torch"] and kept["environment"]["cores"] >= 1
    assert path.with_suffix(".png").exists()


def test_a_quick_or_broken_run_is_refused_and_nothing_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(results.BrokenResult, match="a quick run says nothing"):
        compare.keep(output(tmp_path / "quick", sample(quick=True)), tmp_path)
    short = sample()
    short["claims"][0]["contrasts"][0]["values"] = [1.0]
    with pytest.raises(results.BrokenResult, match=r"claims\[0\]: contrasts\[0\]: values must be 2, one for each seed"):
        compare.keep(output(tmp_path / "short", short), tmp_path)
    strange = sample()
    strange["claims"][0]["contrasts"][0]["verdict"] = "perhaps"
    with pytest.raises(results.BrokenResult, match=r"verdict must be one of shows, .*, got 'perhaps'"):
        compare.keep(output(tmp_path / "strange", strange), tmp_path)
    assert list(tmp_path.glob("*.json")) == []
    assert compare.main([str(tmp_path / "nowhere")]) == 2
    assert "compare.json" in capsys.readouterr().err


def test_the_block_says_what_shows_and_what_does_not(tmp_path: Path) -> None:
    empty = readme.readme("# A\n", tmp_path)
    assert "No comparison yet: `make compare`." in empty
    made = {"schema": 1, "kind": "comparison", "name": "compare", "created": "2026-01-02T03:04:05+00:00", "dry": False}
    results.write({**made, "environment": dict(ENVIRONMENT), "comparison": sample()}, tmp_path)
    text = readme.readme(empty, tmp_path)
    assert r"| noise (a reconstruction): less is lost | loss of \|w\| | a / b | 1.5 | 3 | -1.5 ± 0.5 | 2/2 | **shows** |" in text
    assert "|  | other | a / b | 1.5 | 3 | -1.5 ± 0.5 | 2/2 | does not show |" in text
    assert "|  | price | a / b | not finite | 3 | -1.5 | 0/2 | not claimed |" in text
    assert "1 of 2 comparisons show" in text and "Identities that hold: 1 of 2" in text
    assert "| lsq (half of it) | 0.1 | 0.2 | 50.0% |" in text and "a CPU; torch 2.13.0; commit 0123456789ab" in text
    assert readme.readme(text, tmp_path) == text
