"""Oscillations: the state machine by hand and in closed form, its fixed point, freezing, and every backend against the reference.

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
from device import BACKEND, DEVICE
from oscillation_cases import (
    FROZEN_CASES,
    check_dampening,
    check_steps,
    frozen_lsq,
    frozen_operators,
    frozen_reference,
    frozen_surrogate,
    state_for,
)

import fastq
from fastq.autograd import Dampening, FrozenLSQ
from fastq.oscillation import OscillationState, momentum_in_fp32, rounded_average, toward
from fastq.reference import OscillationTrace
from fastq.reference.dampening import dampening_by_hand
from fastq.testing import check_quantizer, same_bits

BACKENDS = pytest.mark.parametrize("backend", [BACKEND, "reference"])
ONE = torch.ones(1)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


# The state machine


def follow(codes: list[float], first: float, bits: Any = 3, **how: Any) -> list[tuple[Any, ...]]:
    """(frequency, direction, average, frozen, weight) after each step of one weight, with a step size of 1."""
    w = torch.tensor([float(first)])
    state = fastq.oscillation_step_(w, ONE, bits=bits)
    seen = []
    for code in codes:
        w.fill_(code)
        fastq.oscillation_step_(w, ONE, state, bits=bits, **how)
        seen.append((float(state.frequency), int(state.direction), float(state.average), bool(state.frozen), float(w)))
    return seen


@BACKENDS
def test_a_trace_by_hand(backend: str) -> None:
    with fastq.use_backend(backend):
        trace = follow([1, 0, 1, 5, 0.2], first=0, momentum=0.5, threshold=0.6)
    assert trace == [
        (0.0, 1, 0.5, False, 1.0),  # up: the first switch reverses none
        (0.5, -1, 0.25, False, 0.0),  # down: 0.5 does not exceed 0.6
        (0.75, 1, 0.0, True, 0.0),  # up: frozen at round(0.25), the average before this step
        (0.875, -1, 0.0, True, 0.0),  # the frozen code 0 after 1 turns back once more; the weight is pulled back
        (0.4375, -1, 0.0, True, 0.0),  # nothing moves; frozen weights stay so
    ]


@BACKENDS
@pytest.mark.parametrize(
    ("bits", "first", "held"), [(3, 0, 0), (3, 1, 2), (3, -1, 0), ((-3, 4), 0, 0), ((-3, 4), 1, 2), ((1, 6), 3, 4)]
)
def test_half_way_between_two_codes_the_even_one_is_frozen(backend: str, bits: Any, first: int, held: int) -> None:
    with fastq.use_backend(backend):
        trace = follow([first + 1, first], first, bits, momentum=0.5, threshold=0.4)
    assert trace[0][2] == first + 0.5 and trace[1][2:] == (held, True, held)


@BACKENDS
@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.9, 1.0])
def test_frozen_stays_frozen_when_the_threshold_is_raised_and_the_frequency_decays(backend: str, threshold: float) -> None:
    w = torch.tensor([0.0, 0.0])
    with fastq.use_backend(backend):
        state = fastq.oscillation_step_(w, ONE, bits=3)
        for code in (1.0, 0.0, 1.0):  # the first turns, the second rests
            w[0] = code
            fastq.oscillation_step_(w, ONE, state, bits=3, momentum=0.5, threshold=0.4)
        assert state.frozen.tolist() == [True, False]
        held = float(w[0])
        for _ in range(4):
            w.fill_(2.0)
            fastq.oscillation_step_(w, ONE, state, bits=3, momentum=0.5, threshold=threshold)
            assert state.frozen.tolist() == [True, False] and w.tolist() == [held, 2.0]
    assert float(state.frequency[0]) < 0.1


@BACKENDS
def test_only_a_turn_counts(backend: str) -> None:
    with fastq.use_backend(backend):
        steps = follow([1, 1, 3, 3, 2, 2, 1, -4, -9, -1], first=0, momentum=0.5)
    assert [direction for _, direction, *_ in steps] == [1, 1, 1, 1, -1, -1, -1, -1, -1, 1]
    turned = [2 * f - before for (f, *_), before in zip(steps, [0.0, *(f for f, *_ in steps)], strict=False)]
    assert turned == [0, 0, 0, 0, 1, 0, 0, 0, 0, 1]
    assert all(average == 0 and not frozen for _, _, average, frozen, _ in steps)  # no threshold: the average rests


@BACKENDS
def test_the_first_switch_is_a_choice(backend: str) -> None:
    with fastq.use_backend(backend):
        assert [f for f, *_ in follow([0, 1, 2, 1], 0, momentum=0.5)] == [0, 0, 0, 0.5]
        assert [f for f, *_ in follow([0, 1, 2, 1], 0, momentum=0.5, count_first=True)] == [0, 0.5, 0.25, 0.625]


@BACKENDS
@pytest.mark.parametrize("distance", [0.1, 0.25, 0.4])
def test_the_frequency_of_one_weight_is_twice_its_distance(backend: str, distance: float) -> None:
    """``w -= lr * (q(w) - target)``: the code is the upper neighbour for a fraction ``distance`` of the time, up and down again."""
    s = 0.3
    w, step = torch.tensor([0.01]), torch.tensor([s])
    with fastq.use_backend(backend):
        state = fastq.oscillation_step_(w, step, bits=4)
        average = 0.0
        for t in range(3000):
            w -= 0.01 * (s * (w / s).round() - distance * s)
            fastq.oscillation_step_(w, step, state, bits=4, momentum=0.01)
            average += float(state.frequency) / 1000 if t >= 2000 else 0.0
    # The code's pattern closes after some 1 / distance steps; 1000 steps of a moving average see the mean to a percent.
    assert abs(average - 2 * distance) < 0.01


@pytest.mark.parametrize("momentum", [0.001, 0.01, 0.3])
def test_fixed_point_stays_near_fp64(momentum: float) -> None:
    generator = torch.Generator().manual_seed(0)
    target, rate = torch.rand(400, generator=generator) * 6 - 3, torch.rand(400, generator=generator) * 0.3
    w = target.round()
    state, trace = fastq.oscillation_step_(w, ONE, bits=3), OscillationTrace.of(w)
    for t in range(2000):
        w = target + rate * torch.randn(400, generator=generator) * 2
        k = trace.step(w.clamp(-4, 3).round(), momentum, threshold=0.9999)  # nothing freezes, and the average moves
        fastq.oscillation_step_(w, ONE, state, bits=3, momentum=momentum, threshold=0.9999)
        if t % 500 == 499:
            assert torch.equal(state.codes, k.int()) and torch.equal(state.direction, trace.prev_dir.int())
            # Each step rounds once, by half a unit of 2^-24 (2^-21), and forgets all but 1 - momentum of what was before; the
            # momentum itself is rounded to fp32.
            allowed = 2**-25 / momentum + 2e-7, 2**-22 / momentum + 8e-7
            assert float((state.frequency.double() - trace.frequency).abs().max()) <= allowed[0]
            assert float((state.average - trace.ema_int).abs().max()) <= allowed[1]
    assert float(trace.frequency.max()) > 0.3 and not bool(state.frozen.any())


def test_freezing_in_fixed_point_is_freezing_in_fp64() -> None:
    generator = torch.Generator().manual_seed(1)
    w, step = torch.randn(30, 40, generator=generator), torch.tensor([0.25])
    state = fastq.oscillation_step_(w, step, bits=3)
    trace = OscillationTrace.of(state.codes)
    for t in range(300):
        w += 0.05 * torch.randn(30, 40, generator=generator)
        threshold = fastq.schedules.freezing_threshold(t, 300, first=0.1, last=0.03)
        trace.step((w / step).clamp(-4, 3).round(), 0.02, threshold)
        fastq.oscillation_step_(w, step, state, bits=3, momentum=0.02, threshold=threshold)
        assert torch.equal(state.frozen, trace.frozen)
    assert 0.3 < float(state.frozen.float().mean()) < 1
    assert torch.equal(state.frozen_codes[state.frozen], trace.frozen_int[trace.frozen].int())
    assert torch.equal(w[state.frozen], (step * trace.frozen_int.float())[state.frozen])


@pytest.mark.parametrize("bits", [3, (-3, 3), (0, 7), (-1, 4)], ids=str)
def test_the_average_rounds_half_to_even(bits: Any) -> None:
    qmin, qmax = (-4, 3) if bits == 3 else bits
    average = torch.arange((qmax - qmin) * 8 + 1)
    want = (average / 8 + qmin).round().int() - qmin
    assert torch.equal(rounded_average(average << 18, qmin), want)
    assert torch.equal(OscillationState((average << 18).int(), average.int(), qmin, qmax).frozen_codes, (want + qmin).int())


def test_moving_towards_a_target_is_exact() -> None:
    from fractions import Fraction

    generator = torch.Generator().manual_seed(0)
    for momentum in (0.001, 0.3, 2**-24, 1 - 2**-24, 0.5):
        m = Fraction(momentum_in_fp32("test", momentum))
        value, target = (torch.randint(0, 255 << 21, (50,), generator=generator) for _ in range(2))
        want = [a + math.floor((b - a) * m + Fraction(1, 2)) for a, b in zip(value.tolist(), target.tolist(), strict=True)]
        assert toward(value, target, float(m)).tolist() == want
    assert toward(value, target, 0.0).tolist() == value.tolist()


@BACKENDS
def test_fields_do_not_run_into_each_other(backend: str) -> None:
    """The ends of every field: 256 codes, a frequency that saturates, the direction beside both."""
    for bits, low, high in ((8, -128, 127), ((0, 255), 0, 255)):
        w = torch.tensor([float(low), float(high)])
        with fastq.use_backend(backend):
            state = fastq.oscillation_step_(w, ONE, bits=bits)
            for t in range(60):
                w = torch.tensor([float(high), float(low)]) if t % 2 else torch.tensor([float(low), float(high)])
                fastq.oscillation_step_(w, ONE, state, bits=bits, momentum=0.75, threshold=1.0)
        assert torch.equal(state.codes, torch.tensor([high, low], dtype=torch.int32)) and not bool(state.frozen.any())
        assert torch.equal(state.frequency, torch.full((2,), 1 - 2**-24))
        assert state.direction.tolist() == [1, -1]
        # alternating ends, three quarters of the way each time: 0.8 of the range from the end that is left
        torch.testing.assert_close(state.average, torch.tensor([low + 0.8 * 255, high - 0.8 * 255]).double(), rtol=0, atol=1e-5)


@BACKENDS
def test_a_weight_of_nan_did_not_move(backend: str) -> None:
    w = torch.tensor([1.0, 1.0])
    with fastq.use_backend(backend):
        state = fastq.oscillation_step_(w, ONE, bits=3)
        w[0] = math.nan
        fastq.oscillation_step_(w, ONE, state, bits=3, momentum=0.5)
        assert state.codes.tolist() == [1, 1] and state.direction.tolist() == [0, 0] and bool(w[0].isnan())
        fastq.oscillation_step_(w, torch.tensor([math.nan]), state, bits=3, momentum=0.5)
        assert state.codes.tolist() == [1, 1]


@BACKENDS
def test_what_is_frozen_is_the_integer(backend: str) -> None:
    w, step = torch.tensor([0.55, 0.0], requires_grad=True), torch.tensor([0.5])
    with fastq.use_backend(backend), torch.no_grad():
        state = fastq.oscillation_step_(w, step, bits=3)
        for code in (2.0, 1.0, 2.0):
            w[0] = code * 0.5
            fastq.oscillation_step_(w, step, state, bits=3, momentum=0.5, threshold=0.6)
        assert state.frozen.tolist() == [True, False] and w.tolist() == [0.5, 0.0] and w.requires_grad
        step.fill_(0.75)
        w.fill_(9.0)
        assert fastq.frozen_lsq(w, step, state, bits=3).tolist() == [0.75, 2.25]
        fastq.oscillation_step_(w, step, state, bits=3)
        assert w.tolist() == [0.75, 9.0]


def test_a_step_is_a_write_that_autograd_sees() -> None:
    w, step = torch.randn(6, requires_grad=True), torch.tensor([0.2])
    state = fastq.oscillation_step_(w, step, bits=3)
    versions = [t._version for t in (w, state.freeze, state.track)]
    y = fastq.frozen_lsq(w, step, state, bits=3)
    fastq.oscillation_step_(w, step, state, bits=3)
    assert all(t._version > before for t, before in zip((w, state.freeze, state.track), versions, strict=True))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


# Backends


def test_the_cpu_has_the_bits_of_the_reference() -> None:
    assert check_steps(BACKEND, DTYPES, steps=8) > 50
    assert check_dampening(BACKEND, DTYPES) > 100


def test_freeze_aware_lsq_equals_its_reference() -> None:
    operators = frozen_operators(torch.ops.fastq)
    with fastq.use_backend(BACKEND):
        report = check_quantizer(
            frozen_lsq, frozen_reference, FROZEN_CASES, operators=operators, device=DEVICE, large=70_000,
        )  # fmt: skip
    assert len(report.results) > 250


def test_freeze_aware_gradients_are_the_derivative_of_the_surrogate() -> None:
    report = check_quantizer(
        frozen_lsq, frozen_reference, FROZEN_CASES, surrogate=frozen_surrogate, dtypes=[torch.float64], layouts=["contiguous"],
        device=DEVICE, large=100,
    )  # fmt: skip
    assert sum(result.check == "finite differences" for result in report.results) > 25


def test_triton_equals_the_reference_in_its_interpreter() -> None:
    tests = str(Path(__file__).parents[1])
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONWARNINGS": "ignore", "PYTHONPATH": tests, "FASTQ_BACKEND": "triton"}
    done = subprocess.run([sys.executable, str(Path(__file__))], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]


def test_no_op_looks_at_a_value() -> None:
    # A fake tensor has none to look at: .item(), .tolist() or a branch on a value would raise.
    w, step = torch.randn(4, 6), torch.tensor([0.1])
    with torch._subclasses.FakeTensorMode() as mode:
        w, step = mode.from_tensor(w).requires_grad_(), mode.from_tensor(step).requires_grad_()
        state = fastq.oscillation_step_(w, step, bits=4)
        assert fastq.oscillation_step_(w, step, state, bits=4, threshold=0.1) is state
        fastq.frozen_lsq(w, step, state, bits=4).sum().backward()
        fastq.dampening(w, step, bits=4).backward()
        assert w.grad is not None and w.grad.shape == (4, 6) and step.grad is not None


@pytest.mark.parametrize("threads", [2, 3])
def test_results_do_not_depend_on_threads(threads: int) -> None:
    w, step = torch.randn(900, 101), torch.rand(101) + 0.1
    before, results = torch.get_num_threads(), []
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            x = w.clone().requires_grad_()
            state = fastq.oscillation_step_(x, step, bits=4, axis=1)
            with torch.no_grad():
                x += 0.1
            fastq.oscillation_step_(x, step, state, bits=4, axis=1, threshold=0.1)
            loss = fastq.dampening(x, step, bits=4, axis=1)
            results.append((state.freeze, state.track, loss, *torch.autograd.grad(loss, x)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


# Freeze-aware LSQ


@BACKENDS
@pytest.mark.parametrize("case", FROZEN_CASES, ids=lambda case: case.name)
def test_what_is_not_frozen_is_lsq(case: Any, backend: str) -> None:
    x = torch.randn(case.shape, device=DEVICE, requires_grad=True)
    step = (torch.rand(case.parameters[0], device=DEVICE) + 0.1).requires_grad_()
    free = state_for(x, case.keywords)
    free = OscillationState(free.freeze & 0x7FFFFFFF, free.track, free.qmin, free.qmax)
    with fastq.use_backend(backend):
        results = []
        for y in (fastq.frozen_lsq(x, step, free, **case.keywords), fastq.lsq(x, step, **case.keywords)):
            results.append((y, *torch.autograd.grad(y.sin().sum(), [x, step])))
    assert all(same_bits(a, b) for a, b in zip(*results, strict=True))


@BACKENDS
def test_a_frozen_weight_gets_no_gradient_and_its_share_goes_to_the_step(backend: str) -> None:
    x, step = torch.tensor([0.3, math.nan, math.inf], requires_grad=True), torch.tensor([-0.5], requires_grad=True)
    freeze = torch.tensor([(k + 4 << 21) - (1 << 31) for k in (-4, 1, 3)], dtype=torch.int64).int()
    state = OscillationState(freeze, torch.zeros_like(freeze), -4, 3)
    assert state.frozen_codes.tolist() == [-4, 1, 3] and bool(state.frozen.all())
    with fastq.use_backend(backend):
        y = fastq.frozen_lsq(x, step, state, bits=3, grad_scale=1.0)
    assert y.tolist() == [-2.0, 0.5, 1.5]
    dx, dstep = torch.autograd.grad(y, [x, step], torch.tensor([1.0, 2.0, 4.0]))
    assert dx.tolist() == [0, 0, 0] and dstep.tolist() == [-(-4 + 2 + 12)]


# Dampening


@BACKENDS
@pytest.mark.parametrize("reduction", ["sum", "mean", "kernel"])
def test_dampening_is_the_formula_by_autograd(backend: str, reduction: str) -> None:
    w = torch.randn(6, 5, 3, 3, dtype=torch.float64, requires_grad=True)
    step = torch.rand(6, dtype=torch.float64) * 0.2 + 0.1
    with fastq.use_backend(backend):
        loss = fastq.dampening(w, step.requires_grad_(), bits=3, axis=0, reduction=reduction)
    by_hand = dampening_by_hand(w, step, qmin=-4, qmax=3, axis=0, reduction=reduction)
    torch.testing.assert_close(loss, by_hand, rtol=1e-14, atol=0)  # fp64, 270 terms
    ours, theirs = (torch.autograd.grad(0.7 * x, w)[0] for x in (loss, by_hand))
    torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=1e-17)
    s = step.detach()[:, None, None, None]
    q = (w.detach() / s).clamp(-4, 3).round()
    inside = (w > -4 * s) & (w < 3 * s)
    c = {"sum": 1, "mean": 1 / 270, "kernel": 6 / 270}[reduction]
    torch.testing.assert_close(ours, torch.where(inside, 0.7 * 2 * c * (w.detach() - s * q), 0.0), rtol=1e-12, atol=1e-15)
    assert step.grad is None and (~inside).any()


def test_dampening_s_gradient_is_its_derivative() -> None:
    # With the middles held constant the loss is smooth but for the edges of the clip range.
    w, step = torch.randn(40, dtype=torch.float64), torch.tensor([0.3], dtype=torch.float64)
    w = w[((w / 0.3).frac().abs() - 0.5).abs() > 1e-3]  # not next to a tie
    middles = 0.3 * (w / 0.3).clamp(-4, 3).round()
    x = w.clone().requires_grad_()
    (dw,) = torch.autograd.grad(fastq.dampening(x, step, bits=3, reduction="sum"), x)
    for i in range(len(w)):
        sides = []
        for h in (-1e-6, 1e-6):
            moved = w.clone()
            moved[i] += h
            sides.append(dampening_by_hand(moved, step, qmin=-4, qmax=3, reduction="sum", center=middles))
        assert abs(float(sides[1] - sides[0]) / 2e-6 - float(dw[i])) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_dampening_keeps_and_makes_nothing_beside_the_gradient(dtype: torch.dtype) -> None:
    w, step = torch.randn(50, 40).to(dtype).requires_grad_(), torch.tensor([0.2])
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        loss = fastq.dampening(w, step, bits=4)
        assert [t.data_ptr() for t in kept] == [w.data_ptr(), step.data_ptr()]  # which are there anyway
        kept.clear()
        fastq.dampening(w.detach(), step.requires_grad_(), bits=4)
        assert kept == []
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        torch.autograd.grad(fastq.dampening(w, step, bits=4), w)
    made = [e.nbytes() for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]" and e.nbytes() > 0]
    assert [n for n in made if n >= w.nbytes // 2] == [w.nbytes]  # dw; the rest are numbers and partial sums
    loss.backward(retain_graph=True)
    first = w.grad.clone()
    w.grad = None
    loss.backward()
    assert torch.equal(w.grad, first)


def test_dampening_in_half_precision_keeps_what_small_factors_would_lose() -> None:
    """2 / N of a residual is below fp16's smallest number; the residual is not, and the loss is scaled as any is in fp16."""
    w, step = (torch.randn(64, 64) * 0.1).half().requires_grad_(), torch.tensor([0.01])
    (dw,) = torch.autograd.grad(fastq.dampening(w, step, bits=8, reduction="mean") * 2.0**14, w)
    x = w.detach().double()
    want = 2.0**14 * 2 / 4096 * (x - 0.01 * (x / 0.01).round())
    inside = (x.abs() / 0.01) < 127
    # one rounding of the residual to fp16, one of the product, and fp32's of w - w^
    torch.testing.assert_close(dw.double()[inside], want[inside], rtol=2 * 2**-11, atol=1e-6)


@pytest.mark.parametrize("fn", [lambda w, s: fastq.dampening(w, s, bits=4), lambda w, s: fastq.frozen_lsq(
    w, s, fastq.oscillation_step_(w, s, bits=4), bits=4).square().sum()], ids=["dampening", "frozen_lsq"])  # fmt: skip
def test_a_second_backward_pass_raises(fn: Any) -> None:
    w = torch.randn(9, requires_grad=True)
    (dw,) = torch.autograd.grad(fn(w, torch.tensor([0.2])), w, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not defined"):
        dw.sum().backward()


def test_the_functions_are_public() -> None:
    w, step = torch.randn(6), torch.tensor([0.2])
    state = fastq.oscillation_step_(w, step, bits=3)
    assert same_bits(FrozenLSQ.apply(w, step, state.freeze, -4, 3), fastq.frozen_lsq(w, step, state, bits=3))
    assert same_bits(Dampening.apply(w, step, -4, 3), fastq.dampening(w, step, bits=3, reduction="sum"))


# The state, and bad input


def test_a_state_moves_and_copies() -> None:
    w = torch.randn(5, 4)
    state = fastq.oscillation_step_(w, torch.tensor([0.3]), bits=3)
    other = state.clone()
    assert other.freeze.data_ptr() != state.freeze.data_ptr() and torch.equal(other.freeze, state.freeze)
    assert state.to("cpu").freeze is state.freeze and state.to("meta").device.type == "meta"
    assert state.shape == (5, 4) and state.freeze.nbytes + state.track.nbytes == 8 * w.numel()
    assert torch.equal(state.codes, (w / 0.3).clamp(-4, 3).round().int()) and torch.equal(state.frozen_codes, state.codes)
    assert not state.frequency.any() and state.frozen.dtype == torch.bool and state.frequency.dtype == torch.float32
    last = fastq.oscillation_step_(w.view(5, 4, 1, 1).to(memory_format=torch.channels_last), torch.tensor([0.3]), bits=3)
    assert last.freeze.stride() == w.view(5, 4, 1, 1).to(memory_format=torch.channels_last).stride()


W, S = torch.randn(4, 6), torch.tensor([0.2])
STATE = fastq.oscillation_step_(W, S, bits=4)


@pytest.mark.parametrize("space", [fastq, fastq.reference], ids=["op", "reference"])
@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, r"weight must be a torch\.Tensor, got list", {"weight": [1.0]}),
        (TypeError, r"weight must be float32, bfloat16, float16 or float64, got torch\.int64", {"weight": torch.ones(3).long()}),
        (ValueError, r"weight is written in place and must not overlap itself", {"weight": torch.ones(1).expand(4, 6)}),
        (TypeError, r"step must be torch\.float32 for weight of torch\.float32, got torch\.float64", {"step": S.double()}),
        (ValueError, r"step must have one element per tensor, got shape \(4,\)", {"step": torch.ones(4)}),
        (ValueError, r"step must have shape \(4,\) for weight of shape \(4, 6\) and axis=0, got \(1,\)", {"axis": 0}),
        (ValueError, r"axis must be in \[-2, 1\] for weight of 2 dimensions, got 2", {"axis": 2}),
        (ValueError, r"group_size=5 must divide the last axis of weight", {"group_size": 5}),
        (ValueError, r"bits must be from 1 to 8 \(or a pair \(qmin, qmax\)\), got 9", {"bits": 9}),
        (
            ValueError,
            r"bits must give at most 256 codes, which the state keeps in 8 bits, got the range \[-200, 200\]",
            {"bits": (-200, 200)},
        ),
        (TypeError, r"state must be a fastq\.OscillationState, got dict", {"state": {}}),
        (ValueError, r"state must have the shape of weight, \(4, 3\), got \(4, 6\)", {"weight": torch.ones(4, 3)}),
        (ValueError, r"state must be on the device of weight, cpu, got meta; move it", {"state": STATE.to("meta")}),
        (ValueError, r"state holds codes of the range \[-8, 7\], and bits gives \[-4, 3\]", {"bits": 3}),
        (ValueError, r"momentum must lie between 0 and 1, got 0", {"momentum": 0}),
        (ValueError, r"momentum must lie between 0 and 1, got 1", {"momentum": 1}),
        (ValueError, r"momentum must lie between 0 and 1, got nan", {"momentum": math.nan}),
        (ValueError, r"momentum must be at least 2\*\*-24", {"momentum": 1e-9}),
        (TypeError, r"momentum must be a float, got str", {"momentum": "0.1"}),
        (ValueError, r"threshold must be 0 \(nothing freezes\) or positive, got -0.1", {"threshold": -0.1}),
        (ValueError, r"threshold must be 0 \(nothing freezes\) or positive, got nan", {"threshold": math.nan}),
        (TypeError, r"threshold must be a float, got NoneType", {"threshold": None}),
        (ValueError, "eps must be positive and finite in float32, .* got 0", {"eps": 0}),
        (TypeError, "count_first must be True or False, got 'no'", {"count_first": "no"}),
        (TypeError, "count_first must be True or False, got 'no'", {"count_first": "no", "state": None}),
    ],
)
def test_bad_input_of_the_step_is_named(space: Any, error: type[Exception], message: str, arguments: dict[str, Any]) -> None:
    given = {"weight": W, "step": S, "state": STATE, "bits": 4} | arguments
    with pytest.raises(error, match=f"oscillation_step_: {message}"):
        space.oscillation_step_(**given)


@pytest.mark.parametrize("space", [fastq, fastq.reference], ids=["op", "reference"])
@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, r"x must be float32.*got torch\.int32", {"x": W.int()}),
        (ValueError, r"step must have one element per tensor", {"step": torch.ones(4)}),
        (TypeError, r"state must be a fastq\.OscillationState, got NoneType", {"state": None}),
        (ValueError, r"state must have the shape of x, \(3,\), got \(4, 6\)", {"x": torch.ones(3)}),
        (ValueError, r"state must be on the device of x, cpu, got meta", {"state": STATE.to("meta")}),
        (ValueError, r"state holds codes of the range \[-8, 7\], and bits gives \[0, 15\]", {"signed": False}),
        (ValueError, r"boundary must be one of open, closed, rounded, got 'shut'", {"boundary": "shut"}),
        (ValueError, r"grad_scale must be a float, 'lsq' or 'lsq-full', got 'x'", {"grad_scale": "x"}),
        (ValueError, "eps must be positive and finite in float32, .* got -1", {"eps": -1}),
        (ValueError, r"group_size=5 must divide the last axis of x", {"group_size": 5}),
    ],
)
def test_bad_input_of_freeze_aware_lsq_is_named(
    space: Any, error: type[Exception], message: str, arguments: dict[str, Any]
) -> None:
    given = {"x": W, "step": S, "state": STATE, "bits": 4} | arguments
    with pytest.raises(error, match=f"frozen_lsq: {message}"):
        space.frozen_lsq(given.pop("x"), given.pop("step"), given.pop("state"), **given)


@pytest.mark.parametrize("space", [fastq, fastq.reference], ids=["op", "reference"])
@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, r"w must be float32.*got torch\.int32", {"w": W.int()}),
        (TypeError, r"step must be torch\.float32 for w of torch\.float32", {"step": S.double()}),
        (TypeError, r"step must be a torch\.Tensor, got float", {"step": 0.1}),
        (TypeError, r"step must be a torch\.Tensor, got NoneType", {"step": None}),
        (ValueError, r"step must have shape \(4,\) for w of shape \(4, 6\) and axis=0, got \(1,\)", {"axis": 0}),
        (ValueError, r"reduction must be one of sum, mean, kernel, got 'max'", {"reduction": "max"}),
        (ValueError, r"bits must be from 1 to 8", {"bits": 0}),
        (ValueError, "eps must be positive and finite in float32, .* got 0", {"eps": 0}),
    ],
)
def test_bad_input_of_dampening_is_named(space: Any, error: type[Exception], message: str, arguments: dict[str, Any]) -> None:
    given = {"w": W, "step": S, "bits": 4} | arguments
    with pytest.raises(error, match=f"dampening: {message}"):
        space.dampening(given.pop("w"), given.pop("step"), **given)


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, r"freeze must be a dense int32 tensor, got torch\.int64", (torch.zeros(3).long(), torch.zeros(3).int(), -8, 7)),
        (TypeError, r"track must be a dense int32 tensor, got list", (torch.zeros(3).int(), [], -8, 7)),
        (ValueError, r"freeze and track must have one shape and device", (torch.zeros(3).int(), torch.zeros(4).int(), -8, 7)),
        (ValueError, r"at most 256 codes", (torch.zeros(3).int(), torch.zeros(3).int(), 0, 256)),
    ],
)
def test_bad_planes_are_named(error: type[Exception], message: str, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(error, match=f"OscillationState: .*{message}|OscillationState: {message}"):
        OscillationState(*arguments)


def test_the_operator_checks_what_it_is_given() -> None:
    run = torch.ops.fastq.oscillation_step.default
    plane = torch.zeros(4, 6, dtype=torch.int32)
    for message, freeze, tail in (
        ("freeze must have the shape of x", plane[:3], (-8, 7, -1, 0, 1e-8, 0.5, 0.5, 9, False)),
        ("freeze must be int32", plane.long(), (-8, 7, -1, 0, 1e-8, 0.5, 0.5, 9, False)),
        ("at most 256 codes", plane, (-200, 100, -1, 0, 1e-8, 0.5, 0.5, 9, False)),
        ("momentum must be from", plane, (-8, 7, -1, 0, 1e-8, 1.5, 0.5, 9, False)),
        ("limit must be from", plane, (-8, 7, -1, 0, 1e-8, 0.5, 0.5, -1, False)),
    ):
        with torch.no_grad(), pytest.raises(RuntimeError, match=message):
            run(W.clone(), S, freeze, plane.clone(), *tail)


def test_the_checking_mode_raises() -> None:
    fastq.set_checks(True)
    try:
        with pytest.raises(ValueError, match="oscillation_step_: step must be positive and finite everywhere"):
            fastq.oscillation_step_(W, -S, bits=4)
        with pytest.raises(ValueError, match="dampening: w holds NaN"):
            fastq.dampening(W * math.nan, S, bits=4)
        with pytest.raises(ValueError, match="frozen_lsq: x holds NaN"):
            fastq.frozen_lsq(W * math.nan, S, STATE, bits=4)
    finally:
        fastq.set_checks(False)


if __name__ == "__main__":
    import fastq.triton_kernels

    two = (torch.float32, torch.bfloat16)
    check_steps("triton", two, steps=5, layouts=("contiguous", "planes transposed"))
    check_dampening("triton", two, layouts=("transposed",))
    quick: dict[str, Any] = {"threads": (1,), "large": 6000, "layouts": ("contiguous", "transposed"), "dtypes": two[:1]}
    check_quantizer(frozen_lsq, frozen_reference, FROZEN_CASES[2:4], operators=frozen_operators(torch.ops.fastq_triton), **quick)
