"""MIGRATING.md: each script runs before and after the import is changed, with the same loss curve; what it names exists."""

import re
import sys
import types
from pathlib import Path

import pytest
import torch
from hand_written_lsq import HandWritten

GUIDE = Path(__file__).parents[2] / "MIGRATING.md"
pytestmark = [pytest.mark.source, pytest.mark.usefixtures("one_thread")]

#: How far the curves may be apart, relative to the loss, and why.
BOUNDS = {
    "torch.ao.quantization": 1e-5,  # sums of a scale's gradient in another order
    "torchao": 5e-3,  # the last bit of a gradient turns the codes of the groups' largest weights: test_torchao.py measures it
    "Brevitas": 1e-3,  # a scale's gradient as a difference of sums; the largest weight carries it, and codes flip
    "lsq-net": 1e-3,  # by hand s is a last bit off, which flips codes next to ties
}


def section(name: str) -> dict[str, str]:
    text = GUIDE.read_text().split(f"\n## {name}\n", 1)[1].split("\n## ", 1)[0]
    blocks = re.findall(r"```python\n# (before|after|script)\n(.*?)```", text, re.DOTALL)
    assert [kind for kind, _ in blocks] == ["before", "after", "script"]
    return dict(blocks)


def run(imports: str, script: str) -> torch.Tensor:
    seen: dict[str, list[float]] = {}
    exec(imports + script, seen)
    return torch.tensor(seen["losses"])


@pytest.mark.parametrize("name", BOUNDS)
def test_the_script_has_one_loss_curve(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("quan", "quan.quantizer", "quan.quantizer.lsq"):  # the repository that is on no registry, written anew
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
    sys.modules["quan.quantizer.lsq"].LsqQuan = HandWritten  # type: ignore[attr-defined]
    parts = section(name)
    assert "fastq" not in parts["before"] + parts["script"] and "from fastq.compat." in parts["after"]
    before, after = run(parts["before"], parts["script"]), run(parts["after"], parts["script"])
    assert len(before) == 10 and before[-1] < 0.95 * before[0]  # it learns
    assert torch.allclose(before[0], after[0], rtol=1e-6, atol=0)
    assert torch.allclose(before, after, rtol=BOUNDS[name], atol=0)


def test_every_library_has_a_section_and_the_glossary_its_words() -> None:
    import fastq.compat

    text = GUIDE.read_text()
    assert set(re.findall(r"fastq\.compat\.([a-z_]\w*)", text)) == set(fastq.compat.__all__)
    glossary = text.split("\n## Glossary\n")[1]
    for word in ("`step`", "scale", "`offset`", "`zero_point`", "`bits=(a, b)`", "quant_min=a, quant_max=b", "`boundary`"):
        assert word in glossary
    assert "(MIGRATING.md)" in (GUIDE.parent / "README.md").read_text()
