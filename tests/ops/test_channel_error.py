"""The per-channel error: every backend against the reference, finite differences, identities, and what the weighing is for.

Run as a program under ``TRITON_INTERPRET=1`` it checks the Triton kernels: the interpreter is chosen before Triton is imported.
"""

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from device import BACKEND, DEVICE, drawn

import fastq
from fastq.autograd import ChannelError
from fastq.ops import ChannelStats
from fastq.reference.channel_error import channel_error_surrogate
from fastq.testing import DTYPES, Case, _Checker, check_quantizer, same_bits

CASES = [
    Case("channels in the middle", (3, 6, 5, 7), ((1,),), {"axis": 1, "bits": 4}, {"grad_scale": 1.0}),
    Case("channels first", (5, 4, 90), ((1,),), {"axis": 0, "bits": 3, "boundary": "closed"}, {"grad_scale": 1.0}),
    Case("channels last", (140, 37), ((1,),), {"axis": -1, "bits": (1, 6)}, {"grad_scale": 1.0}),  # no code is 0
    Case("one channel", (7, 1, 61), ((1,),), {"axis": 1, "bits": 8, "signed": False, "grad_scale": 0.5}, {"grad_scale": 1.0}),
    Case("a chunk and a bit", (2, 3, 4133), ((1,),), {"axis": 1, "bits": 2, "narrow": True}, {"grad_scale": 1.0}),
]


def y_alone(x: torch.Tensor, step: torch.Tensor, **keywords: Any) -> torch.Tensor:
    return fastq.channel_error(x, step, **keywords)[0]


def reference_y_alone(x: torch.Tensor, step: torch.Tensor, **keywords: Any) -> torch.Tensor:
    return fastq.reference.channel_error(x, step, **keywords)[0]


def everything(fn: Any, x: torch.Tensor, step: torch.Tensor, g: torch.Tensor, e: torch.Tensor, keywords: dict[str, Any]) -> Any:
    """``y, error, dx, dstep`` for gradients of both results."""
    leaf, s = x.detach().requires_grad_(), step.detach().requires_grad_()
    y, error = fn(leaf, s, **keywords)
    return y.detach(), error.detach(), *torch.autograd.grad([y, error], [leaf, s], [g, e])


def check(backend: str, cases: list[Case], dtypes: Any, layouts: Any) -> int:
    """Both results and both gradients at once."""
    count, maker = 0, _Checker(y_alone, reference_y_alone, None, 1.0, 3)
    for case in cases:
        axis = case.keywords["axis"] % len(case.shape)
        quantizer = {key: value for key, value in case.keywords.items() if key not in ("boundary", "grad_scale")}
        for dtype in dtypes:
            kind = DTYPES[dtype]
            for make in (maker.normal, maker.grid, maker.extremes):
                for layout in layouts:
                    x = maker.laid_out(make(case.shape, dtype), layout)
                    if x is None:
                        continue
                    g, step = maker.normal(case.shape, dtype), maker.parameters(case, kind)[0]
                    e = torch.randn(case.shape[axis], generator=maker.generator, dtype=torch.float64).to(kind)
                    e[0] = 0  # an error that nobody asked for
                    x, g, step, e = (t.to(DEVICE) if t.device.type != DEVICE else t for t in (x, g, step, e))
                    with fastq.use_backend(backend):
                        got = everything(fastq.channel_error, x, step, g, e, case.keywords)
                        stats = fastq.channel_stats(x, step, **quantizer)
                    with fastq.use_backend("reference"):
                        want = everything(fastq.channel_error, x, step, g, e, case.keywords)
                        sums = fastq.channel_stats(x, step, **quantizer)
                    where = f"{case.name}, {dtype}, {make.__name__}, {layout}"
                    assert same_bits(got[0], want[0]) and same_bits(got[2], want[2]), where
                    assert got[0].stride() == got[2].stride() == torch.empty_like(x).stride(), where
                    # Sums in fp64 of terms exact to fp64's rounding: what is left is the order of n additions, and fp32's one
                    # rounding of the error.
                    n = x.numel()
                    for mine, other in zip(stats[1:], sums[1:], strict=True):
                        bound = (
                            n * torch.finfo(torch.float64).eps * sums.xx.sqrt().nan_to_num(posinf=0) * 256 * math.sqrt(n) + 1e-30
                        )
                        near = (mine - other).abs() <= bound + 1e-12 * other.abs()
                        assert bool((near | (mine == other) | (mine.isnan() & other.isnan())).all()), where
                    torch.testing.assert_close(got[1], want[1], rtol=1e-6, atol=0, equal_nan=True, msg=where)
                    assert same_bits(got[1], stats.error.to(kind)), "one error, whether with the other sums or alone"
                    # a finite dstep: sums of n terms of at most 128 |g| and 2 |e (x - Q) q|, 128 in a row and a tree, on each side
                    if make == maker.extremes:
                        assert torch.equal(got[3].isfinite(), want[3].isfinite()), where
                        continue
                    size = 256 * float(g.double().abs().sum()) + 512 * float(e.abs().max()) * float(
                        x.double().abs().sum() + 300 * n
                    )
                    bound = 2 * (128 + math.log2(n)) * torch.finfo(kind).eps * size
                    torch.testing.assert_close(got[3], want[3], rtol=0, atol=bound, msg=where)
                    count += 1
    return count


def test_equals_the_reference() -> None:
    assert check(BACKEND, CASES, tuple(DTYPES), ("contiguous", "transposed", "channels_last", "misaligned")) > 60


def test_the_quantizer_is_held_against_the_reference_everywhere_quantizers_go_wrong() -> None:
    x, step, e, g = torch.randn(4, 6), torch.tensor([0.2]), torch.randn(6), torch.randn(4, 6)
    forward, backward = torch.ops.fastq.channel_error_forward.default, torch.ops.fastq.channel_error_backward.default
    operators = [
        (forward, (x, step, -8, 7, 1, 1e-8, False)),
        (forward, (x, step, -8, 7, 0, 1e-8, True)),
        (backward, (g, x, step, e, -8, 7, 1, 1e-8, 1, 1.0, 1)),
    ]
    with fastq.use_backend(BACKEND):
        check_quantizer(
            y_alone, reference_y_alone, [CASES[0], CASES[2]], dtypes=(torch.float32, torch.bfloat16),
            layouts=("contiguous", "transposed"), large=60_000, operators=operators if DEVICE == "cpu" else (), device=DEVICE,
        )  # fmt: skip


def test_triton_equals_the_reference_in_its_interpreter() -> None:
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, str(Path(__file__))], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("shape", [(8, 16, 30, 40), (9000, 30)], ids=str)
def test_sums_do_not_depend_on_threads(threads: int, shape: tuple[int, ...]) -> None:
    x, g, e, step = drawn(shape), drawn(shape, 1), drawn(shape[1:2], 2), torch.tensor([0.2], device=DEVICE)
    before, results = torch.get_num_threads(), []
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            results.append(
                (*everything(fastq.channel_error, x, step, g, e, {"bits": 3}), *fastq.channel_stats(x, step, bits=3)[1:])
            )
    finally:
        torch.set_num_threads(before)
    assert all(same_bits(a, b) for a, b in zip(*results, strict=True))


# What it is


@pytest.mark.parametrize("backend", [BACKEND, "reference"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_gradients_are_derivatives_of_the_surrogates(case: Case, backend: str) -> None:
    keywords = case.keywords | case.unscaled
    axis = case.keywords["axis"] % len(case.shape)
    shape = (2, 3, 41) if len(case.shape) == 3 and case.shape[-1] > 1000 else case.shape
    x, g = drawn(shape).double(), drawn(shape, 1).double()
    e, step = drawn(shape[axis : axis + 1], 2).double(), torch.tensor([0.31], dtype=torch.float64, device=DEVICE)
    with fastq.use_backend(backend):
        _, _, dx, dstep = everything(fastq.channel_error, x, step, g, e, keywords)
    qmin, qmax = fastq.ranges.integer_range("test", keywords["bits"], keywords.get("signed", True), keywords.get("narrow", False))
    codes = (x / step).clamp(qmin, qmax).round()
    residual = codes - (x / step).clamp(qmin, qmax)

    def f(x: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        y, error = channel_error_surrogate(x, step, qmin=qmin, qmax=qmax, axis=axis, residual=residual, codes=codes)
        return (y * g).sum() + (error * e).sum()

    h = 1e-6
    slope = (f(x, step + h) - f(x, step - h)) / (2 * h)
    torch.testing.assert_close(dstep[0], slope, rtol=1e-6, atol=1e-4)  # central differences in fp64 of numbers near 1e4
    for at in range(0, x.numel(), max(x.numel() // 25, 1)):
        moved = torch.zeros_like(x)
        moved.view(-1)[at] = h
        v = float(x.view(-1)[at] / step)
        if min(abs(v - qmin), abs(v - qmax)) < 1e-4:
            continue  # an edge of the clip range, where there is no derivative
        torch.testing.assert_close(dx.view(-1)[at], (f(x + moved, step) - f(x - moved, step)) / (2 * h), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("backend", [BACKEND, "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_it_is_lsq_where_the_error_is_not_used(backend: str, dtype: torch.dtype) -> None:
    results = []
    for fn in (y_alone, lambda x, s, axis, **k: fastq.lsq(x, s, **k)):
        x, step = drawn((4, 6, 33)).to(dtype).requires_grad_(), torch.tensor([0.3], device=DEVICE, requires_grad=True)
        with fastq.use_backend(backend):
            y = fn(x, step, axis=1, bits=3)
            results.append((y, *torch.autograd.grad(y, [x, step], drawn((4, 6, 33), 1).to(dtype))))
    assert all(same_bits(a, b) for a, b in zip(*(r[:2] for r in results), strict=True))
    # the sums: channels' partial sums instead of the tensor's; 792 terms of at most 4 |g|
    torch.testing.assert_close(results[0][2], results[1][2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", [BACKEND, "reference"])
def test_the_sums_are_those_of_the_formula(backend: str) -> None:
    x, step = drawn((4, 6, 5, 7)), torch.tensor([0.3], device=DEVICE)
    with fastq.use_backend(backend):
        stats = fastq.channel_stats(x, step, bits=3)
        y, error = fastq.channel_error(x, step, bits=3)
    rows = x.double().movedim(1, 0).reshape(6, -1)
    q = (rows.float() / 0.3).clamp(-4, 3).round().double()
    rest = rows - (q.float() * step).double()
    for mine, want in zip(stats[1:], (rows, rows**2, rows * q, q**2, rest**2), strict=True):
        torch.testing.assert_close(mine, want.sum(1), rtol=1e-14, atol=1e-12)  # fp64's roundings of 140 additions
    assert stats.elements == 140 and isinstance(stats, ChannelStats)
    torch.testing.assert_close(stats.mean, rows.mean(1))
    torch.testing.assert_close(stats.var, rows.var(1, correction=0))
    torch.testing.assert_close(stats.mse, rest.square().mean(1))
    torch.testing.assert_close(error, ((x - y) ** 2).sum((0, 2, 3)))  # fp32's roundings of the differences


@pytest.mark.parametrize("backend", [BACKEND, "reference"])
def test_a_variance_far_below_the_mean_square_is_found(backend: str) -> None:
    """What fp32 sums would lose: a mean of 1000 standard deviations."""
    x = drawn((64, 3, 50)) + 1000
    with fastq.use_backend(backend):
        stats = fastq.channel_stats(x, torch.tensor([10.0], device=DEVICE), bits=8)
    want = x.double().var((0, 2), correction=0)
    torch.testing.assert_close(stats.var, want, rtol=1e-8, atol=0)  # fp64's eps times (mean / deviation)^2, a few times
    single = (x * x).mean((0, 2)) - x.mean((0, 2)) ** 2
    assert ((single - want).abs() / want).max() > 1e-3, "the test tells nothing"


# What it is for


def planted(wild: float = 30.0) -> torch.Tensor:
    """16 channels of which two have ``wild`` times the spread of the others."""
    x = drawn((32, 16, 40))
    x[:, 3] *= wild
    x[:, 9] *= wild
    return x


def settle(x: torch.Tensor, weighing: bool, bits: int = 4) -> float:
    step = torch.tensor([1.0], device=DEVICE)
    for _ in range(300):
        stats = fastq.channel_stats(x, step, bits=bits)
        weights = fastq.channel_weights(stats) if weighing else torch.ones_like(stats.qq) / stats.elements
        fastq.update_step_(step, stats, weights, momentum=0.5)
    return float(step)


def test_a_few_channels_of_high_variance_do_not_decide_the_step_with_the_weighing_on_and_do_with_it_off() -> None:
    calm = drawn((32, 16, 40))
    alone, on, off = settle(calm, False), settle(planted(), True), settle(planted(), False)
    assert 0.8 < on / alone < 1.3, "14 of 16 channels want that step"
    assert off / alone > 10, "two channels of 30 times the spread have 900 times the error"


def test_the_closed_form_reaches_the_optimum_of_the_objective_for_fixed_codes() -> None:
    x, step = planted(), torch.tensor([0.5], device=DEVICE)
    stats = fastq.channel_stats(x, step, bits=4)
    weights = fastq.channel_weights(stats)
    best = fastq.update_step_(step.clone(), stats, weights, momentum=0.0)

    def objective(s: torch.Tensor) -> torch.Tensor:  # of the codes as they are, from the sums alone
        return (weights * (stats.xx - 2 * s.double() * stats.xq + s.double() ** 2 * stats.qq)).mean()

    assert all(objective(best) < objective(best * factor) for factor in (0.9, 0.999, 1.001, 1.1))
    slow = step.clone()
    for _ in range(200):
        fastq.update_step_(slow, stats, weights)  # 0.9^200 of the way is left
    torch.testing.assert_close(slow, best, rtol=1e-5, atol=0)
    once = fastq.update_step_(step.clone(), stats, weights, momentum=0.9)
    torch.testing.assert_close(once, 0.9 * step + 0.1 * best)


def test_the_gradient_form_is_that_of_autograd_and_of_finite_differences_and_rests_where_the_closed_form_does() -> None:
    x = planted().double()
    for value in (0.4, -0.4):
        step = torch.tensor([value], dtype=torch.float64, device=DEVICE, requires_grad=True)
        _, error = fastq.channel_error(x, step, bits=4)
        stats = fastq.channel_stats(x, step, bits=4)
        weights = fastq.channel_weights(stats)
        objective = fastq.channel_objective(error, weights)
        torch.testing.assert_close(objective, (weights * stats.error).mean())
        (by_autograd,) = torch.autograd.grad(objective, step)
        slope = fastq.step_gradient(step, stats, weights)
        torch.testing.assert_close(slope, by_autograd)
        q = (x / abs(value)).clamp(-8, 7).round()
        h = 1e-5

        def J(s: float, q: torch.Tensor = q, weights: torch.Tensor = weights) -> torch.Tensor:
            return (weights * (x - abs(s) * q).square().sum((0, 2))).mean()

        torch.testing.assert_close(slope[0], (J(value + h) - J(value - h)) / (2 * h), rtol=1e-6, atol=1e-9)
    x, step = planted(), torch.tensor([1.0], device=DEVICE)
    for _ in range(200):
        stats = fastq.channel_stats(x, step, bits=4)
        step -= 0.02 * fastq.step_gradient(step, stats, fastq.channel_weights(stats))
    stats = fastq.channel_stats(x, step, bits=4)
    closed = fastq.update_step_(step.clone(), stats, fastq.channel_weights(stats), momentum=0.0)
    torch.testing.assert_close(step, closed, rtol=0.05, atol=0)  # it rests where the closed form does, codes changing to and fro


def test_the_gradient_of_the_error_in_x_is_twice_the_residual() -> None:
    x, step = drawn((3, 4, 5)).requires_grad_(), torch.tensor([0.3], device=DEVICE)
    y, error = fastq.channel_error(x, step, bits=4)
    (dx,) = torch.autograd.grad(error.sum(), x)
    assert same_bits(dx, 2 * (x.detach() - y.detach()))


def test_an_update_that_has_nothing_to_go_by_leaves_the_step() -> None:
    step = torch.tensor([5.0], device=DEVICE)
    for x in (
        torch.zeros(2, 3, 4, device=DEVICE),
        torch.full((2, 3, 4), math.nan, device=DEVICE),
        torch.zeros(0, 3, 4, device=DEVICE),
    ):
        stats = fastq.channel_stats(x, step, bits=4)
        assert float(fastq.update_step_(step, stats, fastq.channel_weights(stats))) == 5.0
    y, error = fastq.channel_error(torch.zeros(0, 3, 4, device=DEVICE), step, bits=4)
    assert y.shape == (0, 3, 4) and error.tolist() == [0.0, 0.0, 0.0]


def test_compiled_and_a_second_backward() -> None:
    def f(x: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        y, error = fastq.channel_error(x, step, bits=3)
        return y.sin().sum() + error.square().sum()

    x, step = drawn((4, 6, 9)).requires_grad_(), torch.tensor([0.3], device=DEVICE, requires_grad=True)
    gradients = [torch.autograd.grad(g(x, step), [x, step]) for g in (f, torch.compile(f, backend="aot_eager", fullgraph=True))]
    assert all(same_bits(a, b) for a, b in zip(*gradients, strict=True))
    (dx,) = torch.autograd.grad(f(x, step), x, create_graph=True)
    with pytest.raises(RuntimeError, match="channel_error: double backward is not defined"):
        dx.sum().backward()
    assert same_bits(ChannelError.apply(x, step, -4, 3)[1], fastq.channel_error(x, step, bits=3)[1])


def test_the_manual_says_what_is_a_reconstruction() -> None:
    for thing in (fastq.channel_error, fastq.channels, fastq.channel_weights, fastq.update_step_, fastq.nn.ChannelError):
        assert "econstruction" in str(thing.__doc__)


@pytest.mark.parametrize("backend", [BACKEND, "reference"])
@pytest.mark.parametrize(("shape", "axis"), [((0, 5), 0), ((3, 0), 1), ((0,), 0), ((3, 0), 0)], ids=str)
def test_no_channels_or_empty_ones_have_no_error(backend: str, shape: tuple[int, ...], axis: int) -> None:
    step = torch.ones(1, device=DEVICE, requires_grad=True)
    for space in (fastq, fastq.reference):
        x = torch.zeros(shape, device=DEVICE, requires_grad=True)
        with fastq.use_backend(backend):
            y, error = space.channel_error(x, step, bits=4, axis=axis)
            stats = space.channel_stats(x, step, bits=4, axis=axis)
        assert same_bits(error, torch.zeros(shape[axis], device=DEVICE)) and y.shape == shape
        assert stats.error.shape == (shape[axis],) and not bool(stats.error.any())
        dx, dstep = torch.autograd.grad(y.sum() + error.sum(), [x, step])
        assert dx.shape == shape and dstep.tolist() == [0.0]


# Bad input

X, S = torch.zeros(3, 4, 5, device=DEVICE), torch.ones(1, device=DEVICE)


@pytest.mark.parametrize("backend", [BACKEND, "reference"])
@pytest.mark.parametrize(
    ("error", "message", "x", "step", "keywords"),
    [
        (TypeError, "x must be float32, bfloat16, float16 or float64, got torch.int64", X.long(), S, {}),
        (TypeError, "step must be torch.float32 for x of torch.float32, got torch.float64", X, S.double(), {}),
        (ValueError, r"step must have one element per tensor, got shape \(4,\)", X, S.repeat(4), {}),
        (ValueError, r"axis must be in \[-3, 2\] for x of 3 dimensions, got 3", X, S, {"axis": 3}),
        (TypeError, "axis must be an int, the axis of the channels, got None", X, S, {"axis": None}),
        (TypeError, "axis must be an int, the axis of the channels, got 1.0", X, S, {"axis": 1.0}),
        (ValueError, r"axis must be in \[0, -1\] for x of 0 dimensions, got 0|axis must be in", torch.tensor(1.0), S, {"axis": 0}),
        (ValueError, "bits must be from 1 to 8", X, S, {"bits": 9}),
        (ValueError, "eps must be positive and finite in float32, .* got 0", X, S, {"eps": 0}),
    ],
)
def test_bad_input_is_named(
    backend: str, error: type[Exception], message: str, x: torch.Tensor, step: torch.Tensor, keywords: dict[str, Any]
) -> None:
    for name in ("channel_error", "channel_stats"):
        for fn in (getattr(fastq, name), getattr(fastq.reference, name)):
            with fastq.use_backend(backend), pytest.raises(error, match=f"{name}: {message}"):
                fn(x, step, **({"bits": 4} | keywords))
    if "step" not in message and x.dim() == 3:
        return
    with fastq.use_backend(backend), pytest.raises(error):
        ChannelError.apply(x, step, -8, 7, 0)


def test_bad_options_are_named() -> None:
    with pytest.raises(ValueError, match="channel_error: boundary must be one of open, closed, rounded, got 'shut'"):
        fastq.channel_error(X, S, bits=4, boundary="shut")
    with pytest.raises(ValueError, match="channel_error: grad_scale must be a float, 'lsq' or 'lsq-full', got 'big'"):
        fastq.channel_error(X, S, bits=4, grad_scale="big")
    stats = fastq.channel_stats(X, S, bits=4)
    weights = fastq.channel_weights(stats)
    for error, message, call in (
        (TypeError, r"channel_weights: stats must be a .*ChannelStats, got tuple", lambda: fastq.channel_weights(tuple(stats))),
        (ValueError, "channel_weights: eps must be positive and finite, got 0", lambda: fastq.channel_weights(stats, eps=0)),
        (ValueError, r"channel_objective: error must have shape \(C,\), one per channel, got \(1, 4\)",
         lambda: fastq.channel_objective(stats.error[None], weights)),
        (TypeError, "channel_objective: error must be a float tensor, got torch.int64",
         lambda: fastq.channel_objective(torch.ones(4, dtype=torch.int64), weights)),
        (TypeError, "channel_objective: error must be a float tensor, got list", lambda: fastq.channel_objective([1.0], weights)),
        (TypeError, "channel_weights: eps must be a float, got NoneType", lambda: fastq.channel_weights(stats, eps=None)),
        (ValueError, r"channel_objective: weights must have shape \(4,\), one per channel, got \(3,\)",
         lambda: fastq.channel_objective(stats.error, weights[:3])),
        (TypeError, "update_step_: weights must be a float tensor, got list", lambda: fastq.update_step_(S.clone(), stats, [1.0])),
        (TypeError, r"update_step_: step must be a float tensor of one element, got torch\.float32 \(2,\)",
         lambda: fastq.update_step_(S.repeat(2), stats, weights)),
        (ValueError, "update_step_: momentum must be from 0 to below 1, got 1",
         lambda: fastq.update_step_(S, stats, weights, momentum=1)),
        (TypeError, "step_gradient: step must be a float tensor of one element, got float",
         lambda: fastq.step_gradient(1.0, stats, weights)),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            call()


def check_gradients_of_the_error(backend: str) -> None:
    """Of the error alone: ``dx`` by its bits, ``dstep``, a sum of 210 terms, to the rounding of a sum."""
    x, e, step = drawn((6, 5, 7)), drawn((5,), 1), torch.tensor([0.2], device=DEVICE)
    found = []
    for name in (backend, "reference"):
        leaves = x.detach().requires_grad_(), step.detach().requires_grad_()
        with fastq.use_backend(name):
            _, error = fastq.channel_error(*leaves, bits=4, signed=True)
            found.append(torch.autograd.grad(error, leaves, e.to(error.dtype)))
    (dx, dstep), (dx_wanted, dstep_wanted) = found
    if not same_bits(dx, dx_wanted):
        raise SystemExit("dx of the error has other bits than the reference's")
    torch.testing.assert_close(dstep, dstep_wanted, rtol=1e-4, atol=1e-5)


def test_the_gradients_of_the_error_are_the_references() -> None:
    check_gradients_of_the_error(BACKEND)


if __name__ == "__main__":
    check("triton", CASES[:3], (torch.float32, torch.bfloat16), ("contiguous",))
    check_gradients_of_the_error("triton")
