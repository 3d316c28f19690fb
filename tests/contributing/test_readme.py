"""What the README shows runs as it stands, and prints what its comments say."""

import re
from pathlib import Path

import pytest
import torch

README = Path(__file__).parents[2] / "README.md"
pytestmark = pytest.mark.source


def test_the_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) >= 2
    seen: dict[str, object] = {}
    for block in blocks:  # one after the other, as a reader would
        exec(block, seen)
    x, step, y = (seen[name] for name in ("x", "step", "y"))
    assert isinstance(x, torch.Tensor) and isinstance(step, torch.Tensor) and isinstance(y, torch.Tensor)
    codes = (y / step[:, None]).round()
    assert codes.min() >= -8 and codes.max() <= 7 and step.grad is not None and x.grad is not None
    out = capsys.readouterr().out
    assert re.search(r"0\s.*Conv2d", out) and re.search(r"4\s.*Linear", out)  # the table of what was replaced
    assert "rounding costs" in out and "SAT's rule I," in out  # the diagnosis
    assert "largest logit difference" in out and "0 of 16 predictions differ" in out


def test_what_it_names_exists() -> None:
    import fastq

    text = README.read_text()
    names = set(re.findall(r"fastq((?:\.[a-z_]\w*)+)\(", text)) | set(re.findall(r"help\(fastq((?:\.\w+)+)\)", text))
    assert len(names) >= 7
    for name in names:
        found: object = fastq
        for part in name.removeprefix(".").split("."):
            found = getattr(found, part)
    assert (README.parent / "CONTRIBUTING.md").exists() and (README.parent / "fastq/reference/lsq.py").exists()
