"""The suite of integer products: its registry is whole, what is wrong gets no time, goals are the arithmetic they say."""

import argparse
import dataclasses
import functools
import json
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sample_results import integer, part, product, stage

from benchmarks import forced, gpu, measure, networks, peers, products, readme, results, sanitize
from benchmarks import integer as suite
from benchmarks import integer_plot as picture
from benchmarks import integer_report as report
from benchmarks.__main__ import add_arguments
from benchmarks.peers import Built, Peer, Weights
from benchmarks.products import GOALS, KINDS, LARGE, LLAMA, RESNET18, RESNET50, ROWS, Layer, Work, layer, plan, problem, tiny
from fastq.engine import table

pytestmark = [pytest.mark.source, pytest.mark.usefixtures("one_thread")]
CODES = Work(KINDS["W4A8"], Layer(24, 48), (1, 3))
ROOFS = {"cache": 50e9, "memory": 20e9, "int8": 3e12}
H200 = "NVIDIA H200, sm_90, 132 SMs, 140 GiB"


def ran(work: Work, rotate: bool = False) -> dict[str, dict[str, Any]]:
    """Rows of the most inputs, by provider."""
    rows = [row for row in suite.Run(work, "cpu", 0.001, rotate, quick=True).rows() if row["rows"] == max(work.rows)]
    return {row["provider"]: row for row in rows}


# What is measured


def test_the_layers_are_llama_s_and_the_resnets_() -> None:
    # By hand from table 1 of He et al.: 1.81e9 multiply-adds of all 20 convolutions; the 3x3 that a stage repeats 4 times or 3
    assert len(RESNET18) == 11 and RESNET18[0] == RESNET50[0]
    repeated = {1: 4, 4: 3, 7: 3, 10: 3}
    assert sum(repeated.get(i, 1) * one.operations(1) for i, one in enumerate(RESNET18)) == pytest.approx(2 * 1.814e9, rel=1e-3)
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
        cases = [(work.kind.name, work.layer.name, rows) for work in works for rows in work.rows]
        goals = [goal for goal in GOALS if goal.device == device and goal.measure != "packing"]
        assert goals and all(any(goal.fits(*case) for case in cases) for goal in goals)
    assert {1, 16, 17, 64, 65, 128, 129, 256, 300, 8192} <= set(ROWS)
    assert [work.name for work in plan("cuda", kind="W4A16", pattern="8192")] == ["W4A16 8192x8192"]
    assert plan("cpu", kind="W5A5") == []
    for work in plan("cpu", isa="v3"):  # what is forced is also measured as it comes
        assert any(work.kind == own.kind and work.layer == own.layer and {*work.rows} <= {*own.rows} for own in plan("cpu"))


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
    provider = suite.Provider("other", False, lambda: Built(abs), 1, last=(16, 0.3))
    assert provider.why_not(256) == "left out: 0.3 s a call for 16 rows" and provider.why_not(20) == ""
    assert dataclasses.replace(provider, last=(1, 0.05)).why_not(256) == ""  # of one row the time is that of the weights


def test_who_takes_seconds_at_once_is_called_twice_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def slow(x: torch.Tensor, weights: Weights) -> torch.Tensor:
        seen.append(len(x))
        time.sleep(0.002)
        return x @ weights.values().t()

    def build(weights: Weights) -> Built:
        return Built(functools.partial(slow, weights=weights), torch.float32)

    monkeypatch.setattr(suite, "SLOW", 0.001)
    monkeypatch.setattr(suite, "SLOWISH", 0.001)
    monkeypatch.setattr(peers, "PEERS", (Peer("other", ("W4A8",), ("cpu",), build),))
    row = ran(dataclasses.replace(CODES, rows=(3,)))["other"]
    assert row["status"] == "unavailable" and row["reason"].startswith("left out: 0.00") and seen == [3, 3]
    results.validate(integer([row]))


def test_torchaos_product_is_its_own_functions() -> None:
    weights = Weights(KINDS["W8A8"], Layer(24, 48), "cpu")
    reference, built = suite.Reference(weights, 3), peers._torchao(weights)
    y = built.run(reference.x)
    assert reference.check(built, y, 3, exact=False) == "" and peers.versions("cuda") == {}
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


@pytest.fixture
def unplanned(monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole run is what was measured."""
    monkeypatch.setattr(report, "plan", lambda device, isa="": [])


@pytest.mark.usefixtures("unplanned")
def test_goals_are_an_h200_s_and_take_the_worst_case() -> None:
    of = LARGE.name
    rows = [product("W4A16", of, m, "fastq-a", us, "cuda") for m, us in ((1, 9.0), (2, 14.0), (16, 12.0), (17, 40.0), (256, 50.0))]
    decode, jump = verdict(rows, "4-bit weights"), verdict(rows, "no row more")
    assert decode.worst == 14.0 and decode.met is True and decode.case == f"W4A16 {of} M=2"
    assert jump.worst == pytest.approx(40 / 12) and jump.met is False and jump.case == f"W4A16 {of} M=16"
    assert verdict(rows, "8-bit weights").met is None
    assert verdict(rows, "4-bit weights", "NVIDIA A100, sm_80") is None
    assert not any(v.worst for v in report.verdicts(integer([product("W4A16", of, 1, "fastq-a", 9.0)])))  # a CPU has others


@pytest.mark.usefixtures("unplanned")
def test_goals_in_tops_and_against_others() -> None:
    of, cube = LARGE.name, 2 * 8192**3
    rows = [
        product("W8A8", of, 8192, "fastq-a", cube / 1300e6, "cuda"),
        product("W8A8", of, 8192, "fastq-b", cube / 1400e6, "cuda", chosen=False),
        product("W8A8", of, 8192, "torch-int_mm", cube / 1350e6, "cuda"),
        product("W4A8", of, 8192, "fastq-a", cube / 1200e6, "cuda"),
    ]
    assert verdict(rows, "1250 TOPS").worst == pytest.approx(1300.0) and verdict(rows, "1250 TOPS").met is True
    assert verdict(rows, "best peer").worst == pytest.approx(1350 / 1300) and verdict(rows, "best peer").met is False
    assert verdict(rows, "90 %").worst == pytest.approx(1300 / 1200) and verdict(rows, "90 %").met is True
    conv = RESNET50[0].name
    rows = [product("conv-W8A8", conv, 32, who, us, "cuda") for who, us in (("fastq-a", 10.0), ("torch-bf16", 9.0))]
    assert verdict(rows, "cuDNN").worst == pytest.approx(10 / 9) and verdict(rows, "cuDNN").met is False


@pytest.mark.usefixtures("unplanned")
def test_a_cpu_s_goals_are_shares_of_another_s_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "PACKED_BITS", (8, 4))
    of, conv = "4096x4096", RESNET18[1].name
    rows = [
        *(product("W8A8", of, 16, who, us) for who, us in (("fastq-cpu", 340.0), ("onednn-int8", 400.0), ("torch-bf16", 900.0))),
        *(product("W8A8", of, 4, who, us) for who, us in (("fastq-cpu", 900.0), ("onednn-int8", 400.0))),  # no goal at 4 rows
        *(product("W4A8", of, 16, who, us) for who, us in (("fastq-cpu", 330.0), ("onnxruntime", 1320.0), ("openvino", 700.0))),
        product("W4A8", of, 16, report.IN_8_BITS, 300.0, chosen=False),
        *(product("conv-W8A8", conv, 8, who, us) for who, us in (("fastq-cpu", 70.0), ("onednn-int8", 100.0), ("torch-bf16", 60))),
    ]
    time = product("W8A8", of, 1, "fastq-cpu", 49e3)["time"]
    packed = [{"layer": of, "bits": bits, "status": "ok", "pack": time, "first row": time} for bits in (8, 4)]
    result = results.validate(integer(rows, packing=packed))
    found = {v.goal: (v.worst and round(v.worst, 3), v.met) for v in report.verdicts(result)}
    assert found == {
        "W8A8, M >= 16: at most 0.85 of the best peer's time": (0.85, True),
        "W8A8, M = 1: at most the best peer's time": (None, None),
        "W4A8, M >= 16: at most the time of our W8A8": (1.1, False),  # in turns with it, not that of the other case
        "W4A8, M = 1: at most onnxruntime's time": (None, None),
        "W4A8, M = 16: at most a third of onnxruntime's time": (0.25, True),
        "W4A8, M = 256: at most a 17th of onnxruntime's time": (None, None),
        "convolutions: at most oneDNN's time with int8": (0.7, True),
        "packing 4096x4096, 8 to 2 bits: under 50 ms": (49.0, True),
    }
    assert not any(v.worst for v in report.verdicts({**result, "quick": True}) if "packing" not in v.goal)  # of other layers
    late = {
        "kind": "W8A8",
        "layer": of,
        "rows": 64,
        "provider": "fastq-cpu",
        "device": "cpu",
        "status": "unavailable",
        "reason": "slow",
    }
    (left,) = [v for v in report.verdicts({**result, "rows": [*rows, late]}) if v.goal.startswith("W8A8, M >= 16")]
    assert left.met is False and left.case.endswith(f"M=16; no time of ours in W8A8 {of} 64")
    text = report.block(result)
    assert "| 4096x4096, M = | W8A8 | W4A8 | W4A8 of our W8A8 | W4A8 of onnxruntime |" in text
    assert "| 16 | 340 (0.85 onednn-int8) | 330 (0.47 openvino) | 1.10 | 0.25 |" in text
    assert "| W8A8, M >= 16: at most 0.85 of the best peer's time | 0.85 (goal at most 0.85), W8A8 4096x4096 M=16 | met |" in text


def test_a_goal_is_met_where_all_that_is_planned_was_measured() -> None:
    """Rows without a ratio are named: not measured, without a peer, packing that failed."""
    goal = next(goal for goal in GOALS if goal.name.startswith("W8A8, M = 1:"))
    first, second = (work.layer.name for work in plan("cpu", kind="W8A8") if 1 in work.rows)
    both = [product("W8A8", of, 1, who, us) for of in (first, second) for who, us in (("fastq-cpu", 9.96), ("torch-bf16", 10.0))]
    assert report.verdict(goal, integer(both)).met is True
    for rows in (both[:2], both[:3]):
        v = report.verdict(goal, integer(rows))
        assert v.met is None and v.case == f"W8A8 {first} M=1; 1 of 2 cases, without W8A8 {second} M=1"
    assert report.verdict(goal, integer([*both[:2], {**both[2], "status": "failed", "reason": "wrong"}])).met is False
    slow = report.verdict(goal, integer([both[0], {**both[1], "time": {**both[1]["time"], "median_us": 9.92}}]))
    assert slow.met is False and slow.case.endswith(f"without W8A8 {second} M=1")
    packing = next(goal for goal in GOALS if goal.measure == "packing")
    done = {"layer": "4096x4096", "bits": 8, "status": "ok", "pack": both[0]["time"], "first row": both[0]["time"]}
    v = report.verdict(packing, integer([], packing=[done, {**done, "bits": 4, "status": "failed", "reason": "another"}]))
    assert v.met is None and "; 1 of 4 cases, without 4096x4096, 4 bits" in v.case
    swept = next(goal for goal in GOALS if goal.measure == "jump")
    names = report.planned(swept)
    assert f"W8A8 {LARGE.name} M=299" in names and f"W8A8 {LARGE.name} M=300" not in names
    assert f"W8A8 {LLAMA[0].name} M=16" in names and f"W8A8 {LLAMA[0].name} M=17" not in names


def test_forced_kernels_have_goals_of_their_own() -> None:
    rows = [
        product(work.kind.name, work.layer.name, m, who, us)
        for work in plan("cpu", isa="v3")
        for m in work.rows
        for who, us in (("fastq-cpu", 1.004), ("torch-bf16", 2.0 if work.kind.conv else 1.0))
    ]
    held = [
        {"isa": "v3", "settings": {}, "rows": rows, "reason": ""},
        {"isa": "vnni", "settings": {}, "rows": [], "reason": "none"},
    ]
    found = {v.goal: v.met for v in report.verdicts(integer([], forced=held)) if v.goal.startswith("kernels of")}
    what = ("W8A8", "W4A8", "convolutions")
    expected = {f"kernels of v3: {one}: at most the best peer's time": one == "convolutions" for one in what}
    assert found == expected | {f"kernels of vnni: {one}: at most the best peer's time": None for one in what}
    held[0]["reason"] = "killed"
    assert any("Kernels of v3: : ended early: killed." in note for note in report.notes(integer([], forced=held)))


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
    assert "| 1 | 250 (0.25 torch-bf16) | - | - |\n| 256 | 5000 | - | - |" in text
    assert f"| {RESNET50[0].name} | 50.0 (2.00 torch-bf16) | - |" in text
    assert "not to be trusted: W4A8 4096x4096 M=256." in text and "![sample](a.png)" in text
    assert "torch-int_mm, W4A8 4096x4096 M=1: left out where a call takes seconds." in text
    assert "The goals are AMX's; the kernels here are of v3." in text
    report.show(result)
    assert "250 (0.25 torch-bf16)" in capsys.readouterr().out
    on_gpu = integer([{**row, "device": "cuda"} for row in sample()], "cuda", H200)
    assert "| W4A8 4096x4096 | 250 (0.25 torch-bf16) | 5000 |" in report.block(on_gpu)
    every = [
        product(k, "4096x4096", 1, peer.name, 9.0) for k in KINDS if "conv" not in k for peer in peers.candidates(KINDS[k], "cpu")
    ]
    for drawn in (integer([*sample(), *every], roofs=ROOFS), on_gpu):
        assert picture.plot(drawn, tmp_path / "plot.png") and (tmp_path / "plot.png").stat().st_size > 5000
    assert not picture.plot(integer([]), tmp_path / "none.png")


def test_what_is_measured_besides_is_in_the_tables_and_the_file_of_every_time(tmp_path: Path) -> None:
    time = product("W8A8", "4096x4096", 1, "fastq-cpu", 2000.0)["time"]
    whole = [{"network": "digits", "batch": 1, "provider": "fastq-W8A8", "status": "ok", "first_call_s": 0.1, "time": time}]
    whole.append({**whole[0], "provider": "torch-fp32", "time": {**time, "median_us": 4000.0}})
    whole.append({"network": "digits", "batch": 1, "provider": "fastq-W4A8", "status": "failed", "reason": "differs"})
    held = [
        {"isa": "v3", "settings": {"FASTQ_CPU_ISA": "v3"}, "rows": sample(), "reason": ""},
        {"isa": "vnni", "settings": {"FASTQ_CPU_ISA": "vnni"}, "rows": [], "reason": "no such kernels"},
    ]
    result = results.validate(integer(sample(), name="integer-cpu", forced=held, networks=whole, roofs=ROOFS))
    text = report.block(result, every="all.md")
    assert "| network, batch: ms | W8A8 | torch-fp32 |\n|---|---:|---:|\n| digits, 1 | 2 (0.50 torch-fp32) | 4 |" in text
    assert "| kernels of v3 | W4A8 | W8A8 |" in text and "| 4096x4096, 1 | 250 (0.25 torch-bf16) | - |" in text
    assert "Kernels of vnni: FASTQ_CPU_ISA=vnni: not measured: no such kernels." in text and "digits, fastq-W4A8: differs." in text
    assert "at 50 GB/s, 512 MB at 20 GB/s, the fastest int8 product does 4.72 TOPS (fastq-cpu, conv-W8A8" in text
    assert "[Every provider's times](all.md)." in text
    every = report.every_time(result)
    assert "## W4A8 4096x4096\n\n| M = | 1 | 256 |\n|---|---:|---:|\n| fastq-cpu | 250 | 5000 |\n| torch-bf16 | 1000 | - |" in every
    assert "## Kernels of v3: conv-W8A8" in every
    fast = product("W8A8", "4096x4096", 64, "onednn-int8", 2 * 64 * 4096**2 / 5e6)
    assert report.int8_roof(integer([fast], roofs=ROOFS)) == (pytest.approx(5e12), "onednn-int8, W8A8 4096x4096 with 64")
    assert report.int8_roof(integer([])) == (None, "oneDNN's int8 product of 1024^3")
    for damage, message in (
        ({"roofs": {"cache": 1.0}}, "roofs: memory is missing"),
        ({"networks": [{**whole[0], "batch": "1"}]}, r"networks\[0\]: batch must be int"),
        ({"forced": [{**held[0], "rows": [{**sample()[0], "copies": None}]}]}, r"forced\[0\]: rows\[0\]: copies must be int"),
        ({"packing": [{"layer": "a", "bits": 4, "status": "ok", "pack": time}]}, r"packing\[0\]: first row is missing"),
    ):
        with pytest.raises(results.BrokenResult, match=message):
            results.validate({**result, **damage})


def test_threads_that_wait_by_spinning_are_waited_for() -> None:
    end = time.perf_counter() + 0.03

    def spin() -> None:
        while time.perf_counter() < end:
            pass

    spinning = threading.Thread(target=spin)
    spinning.start()
    measure.settle()
    assert not spinning.is_alive() or not Path("/proc/self/task").exists()
    spinning.join()


def test_roofs_are_speeds() -> None:
    assert measure.read_bandwidth(2**16) > 1e6 and measure.int8_speed(64) > 1e6


def test_pools_take_turns_as_a_whole_and_come_to_rest_between(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(measure, "settle", lambda: seen.append("rest"))
    calls = {name: [functools.partial(lambda name: (time.sleep(6e-3), seen.append(name)), name)] for name in "abc"}
    measure.called(calls, 0.0, {"a": "one", "b": "two", "c": "one"})
    assert seen[:3] == ["a", "b", "c"]  # once each, for how long it takes
    rounds = "".join("|" if one == "rest" else one for one in seen[3:])
    assert rounds.startswith("|ac|b") and set(rounds.split("|")) <= {"", "a", "ac", "ca", "c", "b"}


@pytest.mark.parametrize("short", [True, False])
def test_all_of_a_case_are_warm_where_one_is_short(monkeypatch: pytest.MonkeyPatch, short: bool) -> None:
    monkeypatch.setattr(measure, "SHORT", 2e-3 if short else 0.0)
    seen: list[str] = []
    calls: dict[str, measure.Calls] = {"a": [lambda: seen.append("a")], "b": [lambda: (time.sleep(4e-3), seen.append("b"))]}
    found = measure.called(calls, 0.0)
    assert seen.count("b") == 1 + (1 + len(found["b"])) * (2 if short else 1)  # once, a round that warms up, and the rounds


def test_packing_and_networks_are_checked_before_they_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "PACKED", Layer(32, 64))
    row = suite.packing(3, 0.0)
    assert row["bits"] == 3 and 0 < row["pack"]["median_us"] and 0 < row["first row"]["median_us"]
    found = networks.rows("digits", 0.0, quick=True)
    assert {row["provider"]: row.get("reason", "ok") for row in found} == dict.fromkeys(networks.ARMS, "ok")
    monkeypatch.setattr(networks, "equals_converted", lambda model, x: "differs from the converted network by 1")
    broken = networks.rows("digits", 0.0, quick=True)
    assert [row["status"] for row in broken if row["provider"].startswith("fastq-")] == ["failed"] * 3
    results.validate(integer([], packing=[row], networks=[*found, *broken]))
    monkeypatch.setattr(suite.fastq, "int_linear", lambda *given, **named: torch.zeros(1, 32, dtype=torch.bfloat16))
    assert suite.packing(8, 0.0) == {"layer": "32x64", "bits": 8, "status": "failed", "reason": "another product"}


def test_a_forced_instruction_set_is_measured_in_its_process_or_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def finished(command: list[str], env: dict[str, str], **rest: Any) -> subprocess.CompletedProcess[str]:
        assert env["FASTQ_CPU_ISA"] == command[command.index("--isa") + 1] and "--quick" in command
        if env["FASTQ_CPU_ISA"] != "v3":
            return subprocess.CompletedProcess(command, 2, "", "warning\nvnni: no such kernels\n")
        results.write(integer(sample(), name="v3"), Path(command[command.index("--out") + 1]))
        return subprocess.CompletedProcess(command, next(statuses), "", "")

    monkeypatch.setattr(forced.subprocess, "run", finished)
    statuses = iter((1, -9, 0))  # a row of ours failed; killed after it had written some
    for reason in ("", "exit status -9"):
        ended = forced.measured("v3", 1.0, quick=True)
        assert ended["rows"] == sample() and ended["reason"] == reason
    there, absent = forced.measured("v3", 1.0, quick=True), forced.measured("vnni", 1.0, quick=True)
    assert there["rows"] == sample() and there["settings"]["ONEDNN_MAX_CPU_ISA"] == "AVX2" and there["reason"] == ""
    assert absent["rows"] == [] and absent["reason"] == "vnni: no such kernels"


def test_kernels_of_another_instruction_set_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    used = results.environment()["isa"]
    assert forced.refusal(used) == "" and forced.refusal("v1") == f"the kernels are of {used}"
    assert suite.run(parsed(["--isa", "v3" if used != "v3" else "vnni"])) == 2
    assert f"the kernels are of {used}" in capsys.readouterr().err


def test_readme_and_pending_have_what_ran_and_what_did_not(tmp_path: Path) -> None:
    empty = readme.readme("# A\n", tmp_path)
    assert "Not measured yet: `make bench-integer`." in empty
    results.write(integer(sample(), name="integer-cpu"), tmp_path)
    again = readme.readme(empty, tmp_path)
    assert "| 1 | 250 (0.25 torch-bf16) | - | - |" in again and readme.readme(again, tmp_path) == again
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
