"""Triton's integer products: exact in the interpreter, their table of configurations, and what they refuse."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch

import fastq
from fastq.engine import Problem, configurations, table
from fastq.engine.configurations import KINDS

sys.path.insert(0, str(Path(__file__).parent))
from products import interpreted


def test_interpreted_products_equal_int64_arithmetic_and_the_reference() -> None:
    printed = "\n".join(interpreted(program="interpreted_gemm.py"))
    counts = dict(re.findall(r"^(\w+) (\d+) results$", printed, re.MULTILINE))
    assert {name: int(count) for name, count in counts.items()} == {
        "accumulators": 44, "long_rows": 8, "finished": 20, "groups": 20, "storage": 2,
    }  # fmt: skip


def problem(**changed: object) -> Problem:
    common = Problem("linear", "cuda", 90, 4, torch.int8, "channel", 0, False, 128, 4096, 4096)
    return common._replace(**changed)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"activation": torch.bfloat16}, "it multiplies integers, and x is of torch.bfloat16"),
        ({"architecture": 75}, "it needs the int8 tensor cores of sm_80, and this GPU is sm_75"),
        ({"k": 2**17}, "K is 131072, and beyond 130816 the accumulator of unpacked fields could overflow; triton_splitk shares K"),
        ({"k": 2**19, "group_size": 2**18}, "a group has 262144 elements, and beyond 130816 the accumulator"),
        ({"m": 2**31}, "M, N and K must be less than 2**31, got 2147483648, 4096, 4096"),
        ({"bits": 8, "k": 2**17}, None),
        ({"k": 2**17, "group_size": 128}, None),
    ],
)
def test_what_it_refuses(changed: dict[str, object], reason: str | None) -> None:
    found = table.KERNELS["triton"].refuses(problem(**changed))
    assert found is None if reason is None else found is not None and reason in found


def test_few_rows_share_a_long_k() -> None:
    assert table.KERNELS["triton_splitk"].refuses(problem(k=2**17)) is None


def test_a_long_k_has_a_kernel_at_any_number_of_rows() -> None:
    for device in ("cuda", "cpu"):
        asked = problem(m=300, k=2**17, device=device)
        fit = [table.KERNELS[rule.kernel] for rule in table.RULES if rule.fits(asked)]
        assert [each.name for each in fit if each.backend == "triton" and each.refuses(asked) is None] == ["triton_splitk"]


def test_the_table_prefers_the_kernel_for_few_rows_up_to_256() -> None:
    def first(m: int) -> str:
        return next(rule.kernel for rule in table.RULES if rule.kernel.startswith("triton") and rule.fits(problem(m=m)))

    assert [first(m) for m in (1, 256, 257)] == ["triton_splitk", "triton_splitk", "triton"]
    with pytest.raises(RuntimeError, match=r"kernel 'triton' cannot serve this call: .*TRITON_INTERPRET=1"):
        weight = fastq.pack(torch.ones(2, 3, dtype=torch.int8), 4, scale=1.0)
        fastq.int_linear(torch.ones(1, 3, dtype=torch.int8), weight, kernel="triton")


@pytest.mark.parametrize("architecture", [80, 86, 90, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_there_is_a_configuration_for_every_kind_and_number_of_rows(kind: str, architecture: int) -> None:
    for rows in (1, 16, 17, 64, 65, 128, 8192):
        found = configurations.find(kind, architecture, rows)
        assert found.kind == kind and found.architecture == (80 if architecture < 90 else 90)
        enough = [c.rows for c in configurations.shipped() if c.kind == kind and c.architecture == found.architecture]
        assert found.rows == min((most for most in enough if most >= rows), default=0)


def test_a_table_of_ones_own_comes_before_the_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = configurations.find("w4a8", 90, 8192)
    named = tmp_path / "table.json"
    configurations.write(named, [configurations.Configuration(**{**vars(own), "stages": 2, "rows": 100})])
    monkeypatch.setenv("FASTQ_CONFIGURATIONS", str(named))
    assert configurations.find("w4a8", 90, 100).stages == 2
    assert configurations.find("w4a8", 90, 101) == own
    monkeypatch.setenv("FASTQ_CONFIGURATIONS", str(tmp_path / "missing.json"))
    with pytest.raises(ValueError, match=r"FASTQ_CONFIGURATIONS=.*missing.json: cannot be read: No such file"):
        configurations.find("w4a8", 90, 100)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    configurations.write(tmp_path / "table.json", configurations.shipped())
    assert configurations.load(tmp_path / "table.json") == configurations.shipped()
    assert (tmp_path / "table.json").read_text() == configurations.SHIPPED.read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update(version=2), "version 2 of the table is unknown; this fastq reads version 1"),
        (lambda t: t.update(configurations={}), "not a table of configurations: 'configurations' is no list"),
        (lambda t: t["configurations"][0].pop("warps"), "configuration 0 must have the fields kind, architecture, rows"),
        (lambda t: t["configurations"][1].update(warps="4"), "configuration 1: warps must be of type int, got '4'"),
        (lambda t: t["configurations"][1].update(block_m=48), "block_m must be a power of two from 16 to 256, got 48"),
        (lambda t: t["configurations"][1].update(stages=0), "stages must be from 1 to 12, got 0"),
        (lambda t: t["configurations"][1].update(kind="w5a8"), "kind must be one of w8a8, w8a8_few"),
    ],
)
def test_a_wrong_table_is_refused(change: object, message: str, tmp_path: Path) -> None:
    content = json.loads(configurations.SHIPPED.read_text())
    change(content)  # type: ignore[operator]
    (tmp_path / "table.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=re.escape(message)):
        configurations.load(tmp_path / "table.json")
    (tmp_path / "table.json").write_text("{")
    with pytest.raises(ValueError, match="not a table of configurations"):
        configurations.load(tmp_path / "table.json")
