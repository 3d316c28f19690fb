"""The suite of integer products: its registry is whole, what is wrong gets no time, goals are the arithmetic they say."""

import argparse
import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sample_results import integer, part, product, stage

from benchmarks import gpu, measure, peers, readme, results, sanitize
from benchmarks import integer as suite
from benchmarks import integer_report as report
from benchmarks.__main__ import add_arguments
from benchmarks.peers import Built, Peer, Weights
from benchmarks.products import GOALS, KINDS, LARGE, LLAMA, RESNET50, ROWS, Layer, Work, layer, plan, problem, tiny
from fastq.engine import table

pytestmark = [pytest.mark.source, pytest.mark.usefixtures("one_thread")]
CODES = Work(KINDS["W4A8"], Layer(24, 48), (1, 3))
H200 = "NVIDIA H200, sm_90, 132 SMs, 140 GiB"


def ran(work: Work, rotate: bool = False) -> dict[str, dict[str, Any]]:
    """Rows of the most inputs, by provider."""
    rows = [row for row in suite.Run(work, "cpu", 0.001, rotate, quick=True).rows() if row["rows"] == max(work.rows)]
    return {row["provider"]: row for row in rows}


# What is measured


def test_the_layers_are_llama_s_and_resnet_50_s() -> None:
    assert {one.weight_shape for one in LLAMA} == {(4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336)}
    assert len(RESNET50) == 23 and RESNET50[0].weight_shape == (64, 3, 7, 7)
    # Each with the size of its input: multiply-adds of all 53 are 4.09e9; of the different ones, by hand from the paper's table 1
    assert {(one.kernel, one.stride) for one in RESNET50} == {(7, 2), (1, 1), (3, 1), (3, 2), (1, 2)}
    assert {one.window.size(one.size, one.size)[0] for one in RESNET50} == {112, 56, 28, 14, 7}
    assert RESNET50[0].operations(1) == 2 * 112 * 112 * 64 * 147


def test_every_kind_is_planned_on_both_devices_and_goals_look_at_something() -> None:
    for device in ("cpu", "cuda"):
        works = plan(device)
        assert {work.kind.name for work in works} == set(KINDS)
        assert len({work.name for work in works}) == len(works)
        assert all(layer(work.layer.name) == work.layer for work in works)
    assert {1, 16, 17, 64, 65, 128, 129, 256, 300, 8192} <= set(ROWS)
    cases = [(work.kind.name, work.layer.name, rows) for work in plan("cuda") for rows in work.rows]
    assert all(any(goal.fits(*case) for case in cases) for goal in GOALS)
    assert [work.name for work in plan("cuda", kind="W4A16", pattern="8192")] == ["W4A16 8192x8192"]
    assert plan("cpu", kind="W5A5") == []


def test_bytes_and_operations_are_those_of_the_product() -> None:
    one = Layer(64, 256)
    assert one.operations(3) == 2 * 3 * 64 * 256 and one.m(3) == 3
    assert one.bytes_moved(3, KINDS["W4A16"]) == 64 * 256 // 2 + 3 * 256 * 2 + 3 * 64 * 2
    conv = Layer(24, 16 * 9, 3, 2, 8)
    assert conv.m(2) == 2 * 4 * 4 and conv.bytes_moved(2, KINDS["conv-W8A8"]) == 24 * 144 + 2 * 16 * 64 + 2 * 16 * 24


@pytest.mark.parametrize("work", tiny(), ids=lambda work: work.name)
def test_the_engine_is_asked_for_what_is_measured(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(table, "choose", lambda p, name=None: asked.append(p) or table.KERNELS["reference"])
    weights = Weights(work.kind, work.layer, "cpu")
    built = peers.fastq_kernel(weights, "reference")
    built.run(weights.given(weights.inputs(2), built.takes))
    assert asked == [problem(work.kind, work.layer, 2, "cpu")]


# Right, then timed


@pytest.mark.parametrize("work", tiny(), ids=lambda work: work.name)
def test_fastq_and_what_torch_has_are_right_and_timed(work: Work) -> None:
    found = ran(work)
    assert {"torch-bf16", "torch-fp32"} <= set(found)
    wrong = {name: row.get("reason") for name, row in found.items() if row["status"] == "failed"}
    assert wrong == {}
    assert all(row["time"]["median_us"] > 0 and row["copies"] == 1 for row in found.values() if row["status"] == "ok")
    (own,) = [row for row in found.values() if row.get("chosen")]
    assert own["provider"].startswith("fastq-")
    results.validate(integer(list(found.values())))


def test_only_fastq_s_choice_is_timed_where_a_jump_is_looked_for() -> None:
    work = dataclasses.replace(CODES, rows=(1,), sweep=(1, 2))
    rows = list(suite.Run(work, "cpu", 0.001, rotate=True, quick=True).rows())
    assert {row["provider"] for row in rows if row["rows"] == 2} == {row["provider"] for row in rows if row.get("chosen")}
    assert len({row["provider"] for row in rows if row["rows"] == 1}) > 2
    assert all(row["copies"] == 2 for row in rows if row["status"] == "ok")


def numbers(change: Callable[[torch.Tensor], torch.Tensor], weights: Weights) -> Built:
    w = weights.values(torch.float32).t()
    return Built(lambda x: change(x @ w), torch.float32)


def one_off(y: torch.Tensor) -> torch.Tensor:
    y[-1, -1] += y.square().mean().sqrt() / 2
    return y


def raising(y: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("out of order\nand more")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (one_off, "differs from the reference in 1 of 72 elements"),
        (lambda y: y * torch.nan, "differs from the reference in 72 of 72 elements"),
        (lambda y: y[:, 1:], "shape (3, 23), expected (3, 24)"),
        (raising, "raised RuntimeError: out of order"),
    ],
)
def test_what_is_wrong_gets_no_time(change: Any, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "PEERS", (Peer("other", ("W4A8",), ("cpu",), functools.partial(numbers, change)),))
    row = ran(CODES)["other"]
    assert row["status"] == "failed" and row["reason"] == reason and "time" not in row
    results.validate(integer([row]))


def test_fastq_s_codes_need_the_reference_s_bits_and_others_do_not() -> None:
    weights = Weights(CODES.kind, CODES.layer, "cpu")
    reference = suite.Reference(weights, 3)
    y = reference.rounded.clone()
    assert reference.check(Built(lambda x: x), y, 3, exact=True) == ""
    y.view(torch.int16)[1, 1] ^= 1  # the last bit of one element
    assert reference.check(Built(lambda x: x), y, 3, exact=True) == "other bits than the reference"
    assert reference.check(Built(lambda x: x), y, 3, exact=False) == ""
    sums = torch._int_mm(reference.x, weights.codes.t())
    assert reference.check(Built(lambda x: x, gives="sums"), sums, 3, exact=False) == ""
    sums[2, 3] += 1
    assert reference.check(Built(lambda x: x, gives="sums"), sums, 3, exact=False) == "other sums than the reference"
    assert reference.check(Built(lambda x: x, gives="sums"), sums.float(), 3, exact=False) == "dtype torch.float32, expected int32"


def test_a_peer_with_a_grid_of_its_own_is_held_to_that() -> None:
    weights = Weights(CODES.kind, CODES.layer, "cpu")
    reference, own = suite.Reference(weights, 3), weights.values() * 1.5
    y = weights.as_numbers(reference.x, torch.float32) @ own.t()
    assert reference.check(Built(lambda x: x, torch.float32, own=own), y, 3, exact=False) == ""
    assert reference.check(Built(lambda x: x, torch.float32), y, 3, exact=False).startswith("differs from the reference in")


def test_who_is_absent_says_why_once_for_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "PEERS", (Peer("other", ("W4A8",), ("cpu",), lambda weights: Built(abs), needs="no_such_package"),))
    rows = [row for row in suite.Run(CODES, "cpu", 0.001, rotate=False, quick=True).rows() if row["provider"] == "other"]
    assert [(row["rows"], row["status"]) for row in rows] == [(1, "unavailable")]
    assert rows[0]["reason"] == "no_such_package cannot be imported: No module named 'no_such_package'"


def test_who_takes_seconds_is_not_waited_for() -> None:
    provider = suite.Provider("other", False, lambda: Built(abs), 1, last=(16, 0.4))
    assert provider.why_not(256) == "left out: 0.4 s a call for 16 rows" and provider.why_not(20) == ""
    assert dataclasses.replace(provider, last=(1, 0.05)).why_not(256) == ""  # of one row the time is that of the weights


def test_torchaos_product_is_its_own_functions() -> None:
    weights = Weights(KINDS["W8A8"], Layer(24, 48), "cpu")
    reference, built = suite.Reference(weights, 3), peers._torchao(weights)
    y = built.run(reference.x)
    assert reference.check(built, y, 3, exact=False) == "" and peers.versions("cpu") == {}
    intmm = pytest.importorskip("torchao.kernel.intmm")
    own = intmm.int_scaled_matmul(reference.x, weights.codes.t(), torch.full((3, 1), peers.X_SCALE, dtype=torch.bfloat16))
    assert torch.equal(y, own * weights.scale.to(torch.bfloat16))


def test_every_call_of_a_replay_has_weights_of_its_own() -> None:
    seen: list[int] = []
    times, failed = measure.replayed({"three": [functools.partial(seen.append, i) for i in range(3)]}, 0.0)
    assert seen == [0, 1, 2] * 2 and len(times["three"]) == 1 and not failed  # once to warm up
    weights = Weights(KINDS["W4A16"], Layer(64, 256), "cpu")
    assert suite.copies_of(weights, 4) == 100  # a small one: as many as there may be
    large = dataclasses.replace(CODES.layer, n=2**13, k=2**13)
    codes = torch.empty(1, dtype=torch.int8).expand(large.n, large.k)
    weights.codes = codes
    assert suite.copies_of(weights, 4) == 5 and suite.copies_of(weights, 4) * large.n * large.k / 2 > 150e6
    assert suite.copies_of(weights, 16) == 2


def test_what_cannot_be_captured_has_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refused:
        def __init__(self, copies: Any) -> None:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(measure, "Replay", Refused)
    row = ran(CODES, rotate=True)["torch-bf16"]
    assert row["reason"] == "cannot be captured in a CUDA graph: operation not permitted when stream is capturing"
    assert row["status"] == "failed" and "time" not in row
    results.validate(integer([row]))


# What it says


def verdict(rows: list[dict[str, Any]], words: str, name: str | None = H200) -> Any:
    return next((v for v in report.verdicts(integer(rows, "cuda", name)) if words in v.goal), None)


def test_goals_are_an_h200_s_and_take_the_worst_case() -> None:
    of = LARGE.name
    rows = [product("W4A16", of, m, "fastq-a", us, "cuda") for m, us in ((1, 9.0), (2, 14.0), (16, 12.0), (17, 40.0), (256, 50.0))]
    decode, jump = verdict(rows, "4-bit weights"), verdict(rows, "no row more")
    assert decode.worst == 14.0 and decode.met is True and decode.case == f"W4A16 {of} M=2"
    assert jump.worst == pytest.approx(40 / 12) and jump.met is False and jump.case == f"W4A16 {of} M=16"
    assert verdict(rows, "8-bit weights").met is None
    assert verdict(rows, "4-bit weights", "NVIDIA A100, sm_80") is None
    assert report.verdicts(integer([product("W4A16", of, 1, "fastq-a", 9.0)])) == []


def test_goals_in_tops_and_against_others() -> None:
    of, cube = LARGE.name, 2 * 8192**3
    rows = [
        product("W8A8", of, 8192, "fastq-a", cube / 1300e6, "cuda"),
        product("W8A8", of, 8192, "fastq-b", cube / 1400e6, "cuda", chosen=False),
        product("W8A8", of, 8192, "torch-int_mm", cube / 1350e6, "cuda"),
        product("W4A8", of, 8192, "fastq-a", cube / 1200e6, "cuda"),
    ]
    assert verdict(rows, "1250 TOPS").worst == pytest.approx(1300.0) and verdict(rows, "1250 TOPS").met is True
    assert verdict(rows, "best peer").worst == pytest.approx(1300 / 1350) and verdict(rows, "best peer").met is False
    assert verdict(rows, "90 %").worst == pytest.approx(1200 / 1300) and verdict(rows, "90 %").met is True
    conv = RESNET50[0].name
    rows = [product("conv-W8A8", conv, 32, who, us, "cuda") for who, us in (("fastq-a", 10.0), ("torch-bf16", 9.0))]
    assert verdict(rows, "cuDNN").worst == pytest.approx(0.9) and verdict(rows, "cuDNN").met is False


def sample() -> list[dict[str, Any]]:
    base = {"kind": "W4A8", "layer": "4096x4096", "rows": 1, "device": "cpu"}
    conv = RESNET50[0].name
    return [
        product("W4A8", "4096x4096", 1, "fastq-cpu", 250.0),
        product("W4A8", "4096x4096", 1, "torch-bf16", 1000.0),
        product("W4A8", "4096x4096", 1, "torch-fp32", 2000.0),
        product("W4A8", "4096x4096", 256, "fastq-cpu", 5000.0, waited=0.4),
        product("conv-W8A8", conv, 1, "fastq-cpu", 50.0),
        product("conv-W8A8", conv, 1, "torch-bf16", 25.0, note="oneDNN"),
        {**base, "provider": "torch-int_mm", "status": "unavailable", "reason": "left out: 2 s a call for 16 rows"},
    ]


def test_table_notes_and_plot_say_what_was_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = results.validate(integer(sample()))
    text = report.block(result, "a.png")
    assert "| W4A8 4096x4096 | 250 (4.00x torch-bf16) | 5000 |" in text and "| kind, layer | M = 1 | M = 256 |" in text
    assert f"| {RESNET50[0].name} | 50.0 (0.50x torch-bf16) | - |" in text
    assert "not to be trusted: W4A8 4096x4096 M=256." in text and "![sample](a.png)" in text
    assert "torch-int_mm, W4A8 4096x4096 M=1: left out where a call takes seconds." in text and "| goal" not in text
    report.show(result)
    assert "250 (4.00x torch-bf16)" in capsys.readouterr().out
    assert report.plot(result, tmp_path / "plot.png") and (tmp_path / "plot.png").stat().st_size > 5000
    assert not report.plot(integer([]), tmp_path / "none.png")


def test_readme_and_pending_have_what_ran_and_what_did_not(tmp_path: Path) -> None:
    empty = readme.readme("# A\n", tmp_path)
    assert "Not measured yet: `make bench-integer`." in empty
    results.write(integer(sample(), name="integer-cpu"), tmp_path)
    again = readme.readme(empty, tmp_path)
    assert "| W4A8 4096x4096 | 250 (4.00x torch-bf16) | 5000 |" in again and readme.readme(again, tmp_path) == again
    nothing = "\n".join(readme.pending_products(tmp_path))
    assert f"- {GOALS[0].name}" in nothing and "- W4A8 4096x4096: fastq, " in nothing  # a CPU's rows are not a GPU's
    rows = [product("W4A8", "4096x4096", m, who, 9.0, "cuda") for m in ROWS for who in ("fastq-new", "torch-bf16") if m != 17]
    results.write(integer(rows, "cuda", H200, name="integer"), tmp_path)
    left = "\n".join(readme.pending_products(tmp_path))
    assert f"- W4A8 4096x4096: fastq (1 of {len(ROWS)})" in left and f"torch-bf16 (1 of {len(ROWS)}), torch-fp16" in left


def change(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda row: row.update({key: value})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change("status", "fine"), r"rows\[0\]: status must be one of ok, failed, unavailable, got 'fine'"),
        (change("rows", "one"), r"rows\[0\]: rows must be int, got 'one'"),
        (change("chosen", 1), r"rows\[0\]: chosen must be bool, got 1"),
        (lambda row: row.pop("copies"), r"rows\[0\]: copies is missing"),
        (lambda row: row["time"].update(median_us=0.0), r"rows\[0\]: time: times must be positive"),
        (lambda row: row["time"].pop("rounds"), r"rows\[0\]: time: rounds is missing"),
        (change("status", "failed"), r"rows\[0\]: reason is missing"),
        (lambda row: row.update(status="failed", reason="wrong"), r"rows\[0\]: a row that is not ok has no times"),
    ],
)
def test_broken_rows_are_named(damage: Callable[[dict[str, Any]], None], message: str) -> None:
    result = json.loads(json.dumps(integer(sample())))
    damage(result["rows"][0])
    with pytest.raises(results.BrokenResult, match=message):
        results.validate(result)


# The commands


def parsed(command: list[str]) -> argparse.Namespace:
    arguments = argparse.ArgumentParser()
    add_arguments(arguments)
    return arguments.parse_args(command)


def test_the_gpu_s_parts_are_the_plan(tmp_path: Path) -> None:
    found = []
    for one in gpu.parts("integer", gpu.Setting(False, tmp_path)):
        chosen = parsed(one.command[3:])
        assert chosen.suite == "integer" and chosen.name == f"integer-{one.name}"
        found += suite.plan(chosen)
    assert sorted(work.name for work in found) == sorted(work.name for work in plan("cuda"))  # none twice, none left out
    assert [work.layer for work in found[:5]] == [LARGE] * 5
    (dry,) = gpu.parts("integer", gpu.Setting(True, tmp_path))
    assert {work.kind.name for work in suite.plan(parsed(dry.command[3:]))} == set(KINDS) and "--rotate" in dry.command


def test_rows_of_a_part_replace_earlier_ones(tmp_path: Path) -> None:
    rows = [product("W4A8", "4096x4096", m, "fastq-a", 9.0, "cuda") for m in (1, 2)]
    before = {**stage("integer", [part("W4A8")]), **integer(rows, "cuda", name="integer")}
    fresh = integer([product("W4A8", "4096x4096", 1, "fastq-a", 5.0, "cuda")], "cuda", name="integer-W4A8", copy_bytes_per_s=4e12)
    results.write(fresh, tmp_path / "parts")
    gpu.take_rows(before, gpu.Setting(False, tmp_path), "abc")
    assert {row["rows"]: row["time"]["median_us"] for row in before["rows"]} == {1: 5.0, 2: 9.0}
    assert before["copy_bytes_per_s"] == 4e12 and before["matmul_per_s"] == 7e11


def test_a_quick_run_writes_a_valid_result_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert suite.run(parsed(["--quick", "--rotate", "--method", "W4A8", "--out", str(tmp_path)])) == 0
    result = results.read(tmp_path / "integer-quick.json")
    assert result["quick"] and {row["kind"] for row in result["rows"]} == {"W4A8"}
    assert (tmp_path / "integer-quick.png").exists() and "W4A8 64x256" in capsys.readouterr().out


# The sanitizer's reduced set


def test_the_sanitizer_s_set_has_every_product_and_names_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    calls, wrong = sanitize.engine("cpu", "cpu", False, generator)
    # 4 widths of 3 layers at 4 numbers of rows with codes and numbers, 3 convolutions; two functions of 3 shapes in 3 dtypes
    assert calls == 4 * (3 * 4 * 2 + 3) + 2 * 9 and wrong == []
    right = table.KERNELS["cpu"]
    shifted = right._replace(linear=lambda *given: right.linear(*given) + 1)  # type: ignore[misc]
    narrow = right._replace(name="narrow", refuses=lambda p: "it has no int8" if p.integer else None)
    monkeypatch.setattr(table, "KERNELS", {"reference": table.KERNELS["reference"], "cpu": shifted, "narrow": narrow})
    calls, wrong = sanitize.engine("cpu", "cpu", True, generator)
    assert "cpu: int_linear 1x37x45, 8 bits, torch.int8" in wrong and not any(one.startswith("narrow") for one in wrong)
    assert calls == 2 * (3 * 2 + 1) + 2 * 3 + 2  # narrow: numbers only
