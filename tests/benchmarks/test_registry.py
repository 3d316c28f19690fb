"""The registry lists what it must, its tensors are what the ops take, and a wrong provider gets no time."""

import dataclasses
import math
from typing import Any

import pytest
import torch

from benchmarks import measure
from benchmarks.registry import DTYPES, METHODS, PASSES, PROVIDERS, Case, Method, cases, matrix, quick_cases, select, traffic
from fastq.dispatch import BACKENDS
from fastq.granularity import check_parameter, normalize_axis

pytestmark = pytest.mark.source
TINY = Case("size", (4, 256), "fp32", "channel")
LSQ = next(method for method in METHODS if method.name == "lsq")


def test_every_kind_of_case_is_there() -> None:
    found = cases()
    names = [case.name for case in found]
    assert len(set(names)) == len(names)
    assert {case.dtype for case in found} == {"fp32", "bf16"}
    assert {case.granularity for case in found} == {"tensor", "channel", "group"}
    assert "weight/4096x4096/bf16/group" in names and "activation/32x64x56x56/fp32/channel" in names
    sizes = {case.elements for case in found if case.family == "size"}
    assert min(sizes) == 2**10 and max(sizes) == 2**26
    assert sum(case.family == "resnet50" for case in found) >= 5
    assert sum(case.elements == 2**26 for case in found) == 2  # one granularity: bounded memory and time


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_steps_have_the_shape_the_ops_want(case: Case) -> None:
    x = torch.empty(case.shape, dtype=DTYPES[case.dtype], device="meta")
    axis, group = normalize_axis("case", x, case.keywords.get("axis"), case.keywords.get("group_size"))
    check_parameter("case", "step", torch.empty(case.step_shape, device="meta"), x, axis, group)
    assert case.nbytes == x.numel() * x.element_size()


def test_sizes_are_matrices_of_whole_groups() -> None:
    for k in range(10, 27):
        rows, columns = matrix(2**k)
        assert rows * columns == 2**k and columns % 128 == 0


def test_every_backend_is_a_provider_and_says_why_it_is_not_there() -> None:
    assert [p.backend for p in PROVIDERS if p.backend] == list(BACKENDS)
    able, reason = next(p for p in PROVIDERS if p.backend == "cuda").available("cpu")
    assert not able and reason
    assert all(p.exact == (p.backend is not None) for p in PROVIDERS)


def test_bytes_are_counted_as_the_formula_needs_them() -> None:
    case = Case("size", (4, 256), "bf16", "tensor")
    assert [traffic(case, which) for which in PASSES] == [2 * 2048, 3 * 2048, 5 * 2048]


def test_select_by_name_and_size() -> None:
    assert {case.dtype for _, case in select("/bf16/")} == {"bf16"}
    assert {case.elements for _, case in select(sizes=[2**16])} == {2**16}
    assert {method.name for method, _ in select("size/", method="lsq")} == {"lsq"}
    assert select("no such case") == [] and {case for _, case in select(quick=True, method="lsq")} == set(quick_cases())
    assert select(method="foreach_lsq")[0][1].elements == 23_454_912  # ResNet-50's, without its last layer
    assert all(max(case.elements for case in m.cases("cuda")) >= 2**24 for m in METHODS)


def test_a_row_has_times_saved_bytes_and_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "PROVIDERS", [p for p in PROVIDERS if p.name in ("eager", "core", "fastq-cpu", "fastq-cuda")])
    rows, times = measure.run_case(LSQ, TINY, "cpu", budget=0.02)
    by_name = {row["provider"]: row for row in rows}
    assert by_name["fastq-cuda"]["status"] == "unavailable" and "passes" not in by_name["fastq-cuda"]
    ours = by_name["fastq-cpu"]
    assert ours["status"] == "ok" and set(ours["passes"]) == set(PASSES) and ours["first_call_s"] > 0
    assert ours["saved_bytes"] == TINY.nbytes + 4 * 4  # x and the four steps
    assert 2 * TINY.nbytes < ours["peak_bytes"] < 2.2 * TINY.nbytes  # y and dx, and the partial sums
    assert by_name["eager"]["saved_bytes"] > 2 * ours["saved_bytes"]
    for name, samples in times.items():
        together = [f + b for f, b in zip(samples["forward"], samples["backward"], strict=True)]
        assert samples["both"] == together and len(together) == by_name[name]["passes"]["both"]["rounds"]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_method_and_its_baseline_agree(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "PROVIDERS", [p for p in PROVIDERS if p.name in ("eager", "core", "fastq-cpu")])
    for case in method.quick_cases():
        rows, _ = measure.run_case(method, case, "cpu", budget=0.001)
        wrong = {row["provider"]: row["reason"] for row in rows if row["status"] == "failed"}
        assert wrong == {} and {row["provider"] for row in rows if row["status"] == "ok"} >= {"eager", "fastq-cpu"}


def test_a_wrong_result_gets_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    method = LSQ

    def wrong(case: Case) -> Any:
        fast = method.fast(case)
        return lambda x, step: fast(x, step) * (1 + 2**-20)  # one code in a million parts: other bits, nearly the same numbers

    def raising(case: Case) -> Any:
        def fn(x: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("out of order")

        return fn

    monkeypatch.setattr(measure, "PROVIDERS", [p for p in PROVIDERS if p.name in ("core", "fastq-cpu")])
    broken: Method = dataclasses.replace(method, fast=wrong, core=raising)
    rows, times = measure.run_case(broken, TINY, "cpu", budget=0.02)
    assert times == {} and all(row["status"] == "failed" and "passes" not in row for row in rows)
    assert rows[0]["reason"] == "raised RuntimeError: out of order"
    assert rows[1]["reason"] == "y has other bits than the reference"


def test_check_sees_a_wrong_step_gradient_and_codes_that_move() -> None:
    x, g, p = TINY.tensors("cpu")
    want = measure.step(LSQ.reference(TINY, "closed"), ((x.requires_grad_(), p.requires_grad_()), g))
    y, dx, dstep = want
    assert measure.check(TINY, want, want, g, exact=True) == ""
    # 1 % of the sum of the magnitudes is a hundred times what the order of summation can do.
    off = dstep + 0.01 * 8 * g.abs().sum() / 4
    assert measure.check(TINY, (y, dx, off), want, g, exact=False).startswith("gradient of parameter 0 is off by")
    moved = y.detach().clone()
    moved[0, :2] += 0.3  # two codes of a thousand elements: more than one in 10,000
    assert measure.check(TINY, (moved, dx, dstep), want, g, exact=False) == "y differs from the reference in 2 of 1024 elements"
    assert measure.check(TINY, (y.double(), dx, dstep), want, g, exact=False).startswith("shapes or dtypes")
    nan = y.detach().clone()
    nan[0, 0] = math.nan
    assert measure.check(TINY, (nan, dx, dstep), want, g, exact=False)
