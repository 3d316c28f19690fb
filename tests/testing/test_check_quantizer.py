"""``check_quantizer`` lets LSQ pass and refuses each of these faults, by the check that is there for it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import fastq
from fastq.reference.lsq import lsq_backward, lsq_forward
from fastq.testing import Case, CheckFailed, _enlarged, check_quantizer

#: Faults that fp64 parameters would show by their small tolerance have to show in the dtypes that training uses.
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def reference(x: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    return fastq.reference.lsq(x, step, bits=4)


def run_backward(g: torch.Tensor, x: torch.Tensor, step: torch.Tensor, boundary: int = 0, scale: Any = "lsq") -> Any:
    return lsq_backward(g, x, step, None, -8, 7, -1, 0, 1e-8, boundary, scale, 1.0)[:2]


def quantizer(forward: Callable[..., Any] | None = None, backward: Callable[..., Any] = run_backward, save: int = 0) -> Any:
    class Faulty(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(x, step, *(x + i for i in range(save)))
            y = lsq_forward(x, step, None, -8, 7, -1, 0, 1e-8)
            return y if forward is None else forward(x, step, y)

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, g: torch.Tensor) -> Any:
            return backward(g, *ctx.saved_tensors[:2])

    return lambda x, step: Faulty.apply(x, step)


def half_up(x: torch.Tensor, step: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return ((x.to(step.dtype) / step + 0.5).floor().clamp(-8, 7) * step).to(x.dtype)


def changes_step(g: torch.Tensor, x: torch.Tensor, step: torch.Tensor) -> Any:
    result = run_backward(g, x, step)
    step.data.mul_(1.5)
    return result


def first(g: torch.Tensor, n: int) -> torch.Tensor:
    return torch.where(torch.arange(g.numel()).view(g.shape) < n, g, 0)


def of_step(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., Any]:
    def backward(g: torch.Tensor, x: torch.Tensor, step: torch.Tensor) -> Any:
        dx, dstep = run_backward(g, x, step)
        return dx, change(dstep)

    return backward


FAULTS = {
    "the scale is missing": ("exact sums", quantizer(backward=lambda g, x, s: run_backward(g, x, s, scale=1.0))),
    "one per cent": ("exact sums", quantizer(backward=of_step(lambda d: d * 1.01))),
    "summed in fp16": ("exact sums", quantizer(backward=of_step(lambda d: d.half().to(d.dtype)))),
    "summed in bf16": ("exact sums", quantizer(backward=of_step(lambda d: d.bfloat16().to(d.dtype)))),
    "the sign of a negative step is lost": (
        "exact sums",
        quantizer(backward=lambda g, x, s: (run_backward(g, x, s)[0], run_backward(g, x, s)[1] * torch.where(s < 0, -1, 1))),
    ),
    "the last element is left out of the sum": (
        "exact sums",
        quantizer(backward=lambda g, x, s: (run_backward(g, x, s)[0], run_backward(first(g, g.numel() - 1), x, s)[1])),
    ),
    "only two chunks are summed": (
        "exact sums",
        quantizer(backward=lambda g, x, s: (run_backward(g, x, s)[0], run_backward(first(g, 8192), x, s)[1])),
    ),
    "closed boundary": ("ties and edges", quantizer(backward=lambda g, x, s: run_backward(g, x, s, boundary=1))),
    "ties round up": ("ties and edges", quantizer(half_up)),
    "negative zeros": ("ties and edges", quantizer(lambda x, s, y: torch.where(y == 0, -0.0, y))),
    "NaN becomes 0": ("extreme inputs", quantizer(lambda x, s, y: torch.where(x.isnan(), 0.0, y))),
    "strides are not kept": ("layouts", quantizer(lambda x, s, y: y.contiguous())),
    "a second tensor is saved": ("saved memory", quantizer(save=1)),
    "the step is changed": ("layouts", quantizer(backward=changes_step)),
}


def test_a_right_quantizer_passes() -> None:
    report = check_quantizer(quantizer(), reference, dtypes=DTYPES, threads=(1,), name="right")
    assert report.passed and str(report).startswith("check_quantizer(right)")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_refused(fault: str) -> None:
    check, fn = FAULTS[fault]
    with pytest.raises(CheckFailed, match=rf"{check} +failed") as raised:
        check_quantizer(fn, reference, dtypes=DTYPES, threads=(1,))
    assert check in {result.check for result in raised.value.report.failures}


def raises_without_gradients(x: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    if not (x.requires_grad and step.requires_grad):
        raise ZeroDivisionError("a path that nobody tried")
    return quantizer()(x, step)


def test_what_a_quantizer_raises_is_in_the_report() -> None:
    with pytest.raises(CheckFailed, match=r"one gradient alone +failed.*(?s:.*)raised ZeroDivisionError: a path") as raised:
        check_quantizer(raises_without_gradients, reference, dtypes=DTYPES, threads=(1,))
    assert {result.check for result in raised.value.report.failures} == {"one gradient alone"}


@pytest.mark.parametrize(
    ("case", "shape", "parameters"),
    [
        (Case("tensor", (7, 61), ((1,),)), (1639, 61), ((1,),)),
        (Case("first axis", (5, 4, 90), ((5,),), {"axis": 0}), (5, 4, 5000), ((5,),)),
        (Case("middle axis", (3, 6, 5), ((6,),), {"axis": 1}), (3333, 6, 5), ((6,),)),
        (Case("vector", (5,), ((5,),), {"axis": 0}), (100000,), ((100000,),)),
        (Case("group", (4, 3, 64), ((4, 3, 2),), {"group_size": 32}), (520, 3, 64), ((520, 3, 2),)),
        (Case("no axis", (), ((),)), (), ((),)),
        (Case("empty", (0, 3), ((1,),)), (0, 3), ((1,),)),
    ],
    ids=lambda value: value.name if isinstance(value, Case) else "",
)
def test_determinism_is_checked_on_large_tensors(case: Case, shape: tuple[int, ...], parameters: Any) -> None:
    # Small ones are not spread over threads.
    large = _enlarged(case, 100_000)
    assert large.shape == shape and large.parameters == parameters and large.keywords == case.keywords


@pytest.mark.parametrize("shape", [(5, 6), (300,)], ids=str)
def test_a_parameter_of_one_element_stays_so_along_an_axis(shape: tuple[int, ...]) -> None:
    def of(lsq: Any) -> Any:
        def shared(x: torch.Tensor, step: torch.Tensor, gain: torch.Tensor, axis: int) -> torch.Tensor:
            if gain.shape != (1,):
                raise ValueError(f"gain must have one element, got {tuple(gain.shape)}")
            return lsq(x, step * gain, bits=4, grad_scale=1.0, axis=axis)

        return shared

    for axis in (0, -len(shape)):
        case = Case("shared", shape, (shape[:1], (1,)), {"axis": axis}, values=(0.25, 1.0))
        report = check_quantizer(
            of(fastq.lsq), of(fastq.reference.lsq), [case], dtypes=[torch.float32], layouts=["contiguous"], large=2000
        )
        assert {"empty input", "determinism"} <= {result.check for result in report.results}
