"""Noise tempering: held against its reference on each backend, LSQ without noise, and EWGS where its scale is."""

import itertools
import math
from typing import Any

import pytest
import torch
from device import BACKEND, DEVICE, drawn
from noise_cases import SEED, drawn_noise, seed, surrogate, tempered, tempered_cases, tempered_reference

import fastq
from fastq.autograd import Tempered
from fastq.reference.philox import NOISES, UNIT_VARIANCE, noise
from fastq.testing import check_quantizer, same_bits

pytestmark = pytest.mark.usefixtures("one_thread")
BACKENDS = pytest.mark.parametrize("backend", [BACKEND, "reference"])
X, S = torch.randn(4, 6), torch.ones(1)


def gradients(fn: Any, x: torch.Tensor, *parameters: torch.Tensor, g: torch.Tensor | None = None, **keywords: Any) -> Any:
    leaves = [t.detach().clone().requires_grad_() for t in (x, *parameters)]
    y = fn(*leaves, **keywords)
    return y.detach(), *torch.autograd.grad(y, leaves, torch.ones_like(y) if g is None else g)


def operators() -> list[tuple[Any, tuple[Any, ...]]]:
    forward, backward = torch.ops.fastq.tempered_forward.default, torch.ops.fastq.tempered_backward.default
    x, g, step, a = torch.randn(4, 6), torch.randn(4, 6), torch.rand(6) + 0.1, torch.rand(6)
    common = (-8, 7, 1, 0, 1e-8, 0)
    with_noise = (seed(x), torch.tensor([0.5]))
    samples: list[tuple[Any, tuple[Any, ...]]] = [(forward, (x, step, a, *with_noise, *common, 2))]
    noises = [with_noise, with_noise, (None, None)]
    return samples + [(backward, (g, x, step, a, *noises[how], *common, 0, how, 1.0, 1, 1.0)) for how in range(3)]


def test_equals_the_reference() -> None:
    with fastq.use_backend(BACKEND):
        report = check_quantizer(
            tempered, tempered_reference, tempered_cases(), operators=operators(), device=DEVICE, exact_sums=False, large=70_000
        )
    assert len(report.results) > 400


def test_gradients_are_the_derivative_of_the_surrogate() -> None:
    report = check_quantizer(
        tempered, tempered_reference, tempered_cases(), surrogate=surrogate, dtypes=[torch.float64], layouts=["contiguous"],
        device=DEVICE, exact_sums=False, large=10,
    )  # fmt: skip
    assert sum(result.check == "finite differences" for result in report.results) > 100


@BACKENDS
@pytest.mark.parametrize("boundary", ["open", "closed", "rounded"])
@pytest.mark.parametrize("reading", ["noise", "gradient"])
def test_without_noise_and_scale_it_is_lsq(reading: str, boundary: str, backend: str) -> None:
    step = drawn((33,), 1).abs() * 0.2 + 0.1
    for dtype in (torch.float32, torch.bfloat16):
        x, g = drawn((40, 33), 2).to(dtype), drawn((40, 33), 3).to(dtype)
        x[0, :9] = (torch.arange(9) - 4.0) * step[:9]  # codes themselves, at both edges too
        x[1, :3] = torch.tensor([math.nan, math.inf, -math.inf])
        common: dict[str, Any] = {"g": g, "bits": 3, "axis": 1, "boundary": boundary}
        with fastq.use_backend(backend):
            want = gradients(fastq.lsq, x, step, **common)
            for how in ({"decay": 0.0}, {"decay": 1.0, "training": False}):
                got = gradients(fastq.tempered, x, step, torch.ones_like(step), seed=seed(x), reading=reading, **how, **common)
                assert all(same_bits(a, b) for a, b in zip(got[:3], want, strict=True)), (dtype, how)


@BACKENDS
def test_a_scale_of_each_elements_error_is_ewgs(backend: str) -> None:
    """With a scale per element, ``a = 1 - delta * sign(g) * e``, ``dx`` is EWGS's ``g * (1 + delta * sign(g) * (v - q))``."""
    x, g, delta = drawn((6, 50), 1), drawn((6, 50), 2), 0.2
    step = torch.full((6, 50), 0.25)
    v = x / step
    q = v.clamp(-8, 7).round()
    inside = (v > -8) & (v < 7)
    a = 1 - delta * g.sign() * (q - v)
    with fastq.use_backend(backend):
        _, dx, _, _ = gradients(
            fastq.tempered, x, step, a, g=g, bits=4, group_size=1, reading="gradient", training=False, decay=0.0, seed=None
        )
    ewgs = torch.where(inside, g * (1 + delta * g.sign() * (v - q)), 0.0)
    torch.testing.assert_close(dx, ewgs, rtol=4 * 2.0**-23, atol=0)  # 1 - t and 1 + (-t) agree; two more roundings each


@BACKENDS
def test_the_formula_by_hand(backend: str) -> None:
    """One element of each kind, in numbers that are exact but for the noise: v = 1.25 (in range), 9 (above), -8 (the edge)."""
    x = torch.tensor([1.25, 9.0, -8.0], dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    g = torch.tensor([2.0, 3.0, 5.0], dtype=torch.float64)
    xi = noise(seed(x), (3,), 0, UNIT_VARIANCE[0])[0].double()
    k = xi * 0.5
    common: dict[str, Any] = {"g": g, "bits": 4, "decay": 0.5, "seed": seed(x), "grad_scale": 1.0, "a_grad_scale": 2.0}
    with fastq.use_backend(backend):
        y, dx, ds, da = gradients(fastq.tempered, x, one, one * 3, **common)
        assert torch.equal(y, torch.stack([1 + k * -0.25, one[0] * 7, one[0] * -8]))
        assert dx.tolist() == [6.0, 0.0, 0.0]
        torch.testing.assert_close(ds, (2 * -0.25 * (1 + k) + 3 * 7 + 5 * -8).view(1), rtol=1e-15, atol=0)
        assert da.tolist() == [2.0 * 2 * 0.25]
        y, dx, ds, da = gradients(fastq.tempered, x, one, one * 3, reading="gradient", **common)
        assert y.tolist() == [1, 7, -8]
        torch.testing.assert_close(dx, torch.stack([2 * (3 + k * 0.25), k * 0, k * 0]), rtol=1e-15, atol=0)
        assert ds.tolist() == [2 * -0.25 + 3 * 7 + 5 * -8] and da.tolist() == [1.0]


@BACKENDS
@pytest.mark.parametrize("kind", NOISES)
def test_the_noise_is_philoxs(kind: str, backend: str) -> None:
    with fastq.use_backend(backend):
        for shape in ((1,), (7,), (4096 * 2 + 5,), (33, 5), (3, 4, 130)):
            want = noise(torch.tensor(SEED), shape, NOISES[kind], UNIT_VARIANCE[NOISES[kind]])
            assert torch.equal(drawn_noise(shape, kind).cpu(), want.double()), shape


@pytest.mark.parametrize("kind", NOISES)
def test_the_noise_does_not_depend_on_layout_or_granularity(kind: str) -> None:
    x, a = drawn((6, 8, 5, 9), 1), torch.ones(8)
    common: dict[str, Any] = {"bits": 4, "decay": 1.0, "noise": kind, "seed": seed(x)}
    with fastq.use_backend(BACKEND):
        want = fastq.tempered(x, a[:1] * 0.3, a[:1], **common)
        assert same_bits(fastq.tempered(x, a * 0.3, a, axis=1, **common), want)
        for turned in (x.to(memory_format=torch.channels_last), x.transpose(0, 3).contiguous().transpose(0, 3)):
            for granularity in ({}, {"axis": 1}):
                p = a if granularity else a[:1]
                y = fastq.tempered(turned, p * 0.3, p, **granularity, **common)
                assert same_bits(y, want) and y.stride() == turned.stride()


@pytest.mark.parametrize("kind", NOISES)
@pytest.mark.parametrize("shape", [(2, 3, 1027), (40, 3, 45)], ids=["long runs", "short runs"])
def test_a_run_may_begin_within_a_counters_words(shape: tuple[int, ...], kind: str) -> None:
    x, a = drawn(shape, 1), torch.ones(3)
    common: dict[str, Any] = {"bits": 4, "decay": 1.0, "noise": kind, "seed": seed(x)}
    with fastq.use_backend(BACKEND):
        whole = fastq.tempered(x, a[:1] * 0.3, a[:1], **common)
        assert same_bits(fastq.tempered(x, a * 0.3, a, axis=1, **common), whole)


@BACKENDS
def test_a_new_seed_gives_new_noise_and_the_same_one_the_same(backend: str) -> None:
    x, one = drawn((50, 40), 1), torch.ones(1)
    with fastq.use_backend(backend):
        first, again, other = (fastq.tempered(x, one, one, bits=4, decay=1.0, seed=seed(x, s)) for s in (1, 1, 2))
    assert same_bits(first, again)
    assert float((first != other).float().mean()) > 0.99


@BACKENDS
@pytest.mark.parametrize("kind", NOISES)
def test_the_noise_is_as_large_as_the_error_times_the_decay(kind: str, backend: str) -> None:
    x, one = drawn((300, 400), 1), torch.ones(1)
    q = x.round()
    with fastq.use_backend(backend):
        y = fastq.tempered(x, one, one, bits=8, decay=0.5, noise=kind, seed=seed(x))
    ratio = ((y - q) / (0.5 * (q - x)))[(q - x).abs() > 0.1].double()  # y's last place, 2^-22, is nothing beside the error then
    n = ratio.numel()
    fourth = {"uniform": 1.8, "rademacher": 1.0, "normal": 3.0}[kind]
    assert abs(float(ratio.mean())) < 5 / math.sqrt(n)  # 5 standard deviations
    assert abs(float(ratio.square().mean()) - 1) < 5 * math.sqrt((fourth - 1) / n) + 1e-4


def test_backward_uses_the_seed_of_its_forward_pass() -> None:
    x, one, s = drawn((9, 9), 1).requires_grad_(), torch.ones(1), seed(X)
    y = fastq.tempered(x, one, one, bits=4, decay=1.0, reading="gradient", seed=s)
    s += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_double_backward_raises() -> None:
    x = drawn((8,), 1).requires_grad_()
    y = fastq.tempered(x, S, S, bits=4, decay=1.0, seed=seed(X))
    (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="tempered: double backward is not defined"):
        dx.sum().backward()


def test_compiles_and_is_the_function() -> None:
    torch._dynamo.reset()
    x, step, a = drawn((6, 8), 1).requires_grad_(), torch.full((6,), 0.2, requires_grad=True), torch.ones(6, requires_grad=True)

    def f(x: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        return fastq.tempered(x, step, a, bits=4, axis=0, decay=0.5, noise="normal", seed=s)

    results = [torch.autograd.grad(h(x, seed(X)).sum(), [x, step, a]) for h in (f, torch.compile(f, fullgraph=True))]
    assert all(same_bits(p, q) for p, q in zip(*results, strict=True))
    y = Tempered.apply(x, step, a, seed(X), torch.tensor([0.5]), -8, 7, 0, 0, 1e-8, 0, 2, 0)
    assert same_bits(y, f(x, seed(X)))


@BACKENDS
@pytest.mark.parametrize("reading", ["noise", "gradient"])
@pytest.mark.parametrize("granularity", [{}, {"axis": 1}, {"axis": 0}, {"group_size": 4}], ids=str)
def test_a_decay_on_the_device_has_the_bits_of_a_number(granularity: dict[str, Any], reading: str, backend: str) -> None:
    x, g = drawn((40, 12), 1), drawn((40, 12), 2)
    shape = {"axis": (x.shape[granularity.get("axis", 0)],), "group_size": (40, 3)}.get(next(iter(granularity), ""), (1,))
    for dtype, kind in ((torch.float32, torch.float32), (torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        step, a = (torch.full(shape, value, dtype=kind) for value in (0.3, 0.7))
        common: dict[str, Any] = {"g": g.to(dtype), "bits": 4, "seed": seed(x), "reading": reading, **granularity}
        number = float(torch.tensor(0.3))  # what fp32 holds
        with fastq.use_backend(backend):
            want = gradients(fastq.tempered, x.to(dtype), step, a, decay=number, **common)
            for decay in (torch.tensor(number), torch.tensor([number]), torch.tensor([[number]], dtype=kind)):
                got = gradients(fastq.tempered, x.to(dtype), step, a, decay=decay, **common)
                assert all(same_bits(p, q) for p, q in zip(got, want, strict=True)), (dtype, decay)


def test_a_decay_that_changes_is_not_compiled_anew() -> None:
    torch._dynamo.reset()
    x, step, a = drawn((6, 8), 1).requires_grad_(), torch.full((6,), 0.2, requires_grad=True), torch.ones(6, requires_grad=True)
    compiled = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    def f(decay: torch.Tensor) -> torch.Tensor:
        return fastq.tempered(x, step, a, bits=4, axis=0, decay=decay, seed=seed(X))

    fast, decay = torch.compile(f, fullgraph=True, backend=backend), torch.ones(1)
    seen = []
    for t in range(4):
        decay.fill_(fastq.tempering_decay(t, 4))
        results = [torch.autograd.grad(h(decay).square().sum(), [x, step, a]) for h in (f, fast)]
        assert all(same_bits(p, q) for p, q in zip(*results, strict=True))
        seen.append(results[0][1])
    assert len(compiled) == 1 and not any(same_bits(p, q) for p, q in itertools.pairwise(seen))


def test_backward_uses_the_decay_of_its_forward_pass() -> None:
    x, one, decay = drawn((9, 9), 1).requires_grad_(), torch.ones(1), torch.ones(1)
    y = fastq.tempered(x, one, one, bits=4, decay=decay, seed=seed(X))
    decay.fill_(0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_decay_falls_exponentially() -> None:
    assert fastq.tempering_decay is fastq.schedules.tempering_decay
    assert fastq.tempering_decay(0, 100) == 1 and fastq.tempering_decay(0, 100, initial=0.5) == 0.5
    assert fastq.tempering_decay(20, 100) == pytest.approx(math.exp(-1)) == fastq.tempering_decay(20, 100, rate=5.0)
    assert fastq.tempering_decay(100, 100) == pytest.approx(math.exp(-5)) == fastq.tempering_decay(400, 100)
    assert fastq.tempering_decay(7, 10, rate=0) == 1
    for match, call in (
        ("tempering_decay: total must be finite and at least 1 step, got 0", lambda: fastq.tempering_decay(0, 0)),
        ("tempering_decay: step must be at least 0, got -1", lambda: fastq.tempering_decay(-1, 10)),
        ("tempering_decay: total must be finite and at least 1 step, got nan", lambda: fastq.tempering_decay(0, math.nan)),
        ("tempering_decay: step must be at least 0, got nan", lambda: fastq.tempering_decay(math.nan, 10)),
        ("tempering_decay: initial must be from 0 to 1, got 2", lambda: fastq.tempering_decay(1, 10, initial=2)),
        ("tempering_decay: rate must be finite and not negative, got nan", lambda: fastq.tempering_decay(1, 10, rate=math.nan)),
    ):
        with pytest.raises(ValueError, match=match):
            call()


GOOD: dict[str, Any] = {"bits": 4, "decay": 0.5, "seed": torch.tensor(0)}


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (TypeError, "x must be float32.*got torch.int64", {"x": torch.arange(4)}),
        (TypeError, "step must be torch.float32 for x of torch.float32, got torch.float64", {"step": S.double()}),
        (TypeError, "a must be torch.float32 for x of torch.float32, got torch.float64", {"a": S.double()}),
        (TypeError, "a must be a torch.Tensor, got float", {"a": 1.0}),
        (ValueError, "a must have one element per tensor", {"a": torch.ones(2)}),
        (ValueError, r"a must have the shape of step, \(1,\), got \(\)", {"a": torch.tensor(1.0)}),
        (ValueError, r"step must have shape \(6,\).*got \(1,\)", {"axis": 1}),
        (ValueError, "group_size=4 must divide", {"group_size": 4}),
        (ValueError, "exclude each other", {"group_size": 2, "axis": 0}),
        (ValueError, "bits must be from 1 to 8", {"bits": 9}),
        (ValueError, "reading must be one of noise, gradient, got 'both'", {"reading": "both"}),
        (ValueError, "noise must be one of uniform, rademacher, normal, got 'cauchy'", {"noise": "cauchy"}),
        (ValueError, "boundary must be one of open, closed, rounded, got 'half'", {"boundary": "half"}),
        (ValueError, "grad_scale must be a float, 'lsq' or 'lsq-full', got 'sqrt'", {"grad_scale": "sqrt"}),
        (ValueError, "eps must be positive and finite in float32, .* got 0", {"eps": 0}),
        (TypeError, "a_grad_scale must be a float, got str", {"a_grad_scale": "lsq"}),
        (TypeError, "a_grad_scale must be a float, got NoneType", {"a_grad_scale": None}),
        (TypeError, "a_grad_scale must be a float, got bool", {"a_grad_scale": True}),
        (TypeError, "training must be True or False, got 'no'", {"training": "no"}),
        (TypeError, "signed must be True or False, got 'no'", {"signed": "no"}),
        (ValueError, "decay must be from 0 to 1, got 1.5", {"decay": 1.5}),
        (ValueError, "decay must be from 0 to 1, got -0.1", {"decay": -0.1}),
        (ValueError, "decay must be from 0 to 1, got nan", {"decay": math.nan}),
        (TypeError, "decay must be a float from 0 to 1 or a tensor of one element, got str", {"decay": "0.5"}),
        (TypeError, "decay must be a float or a float32 tensor, got torch.int64", {"decay": torch.tensor(1)}),
        (ValueError, r"decay must have one element, got shape \(2,\)", {"decay": torch.ones(2)}),
        (ValueError, "decay must be on the device of x, .*got meta", {"decay": torch.ones(1, device="meta")}),
        (ValueError, "decay gets no gradient and must not require one", {"decay": torch.ones(1, requires_grad=True)}),
        (TypeError, "seed must be a torch.Tensor of one int64 element on the device of x.*got int", {"seed": 3}),
        (TypeError, "seed must be a torch.Tensor.*got NoneType", {"seed": None}),
        (TypeError, "seed must be torch.int64, got torch.int32", {"seed": torch.tensor(3, dtype=torch.int32)}),
        (ValueError, r"seed must have one element, got shape \(2,\)", {"seed": torch.tensor([1, 2])}),
        (ValueError, "seed must be on the device of x, .*got meta", {"seed": torch.tensor(3, device="meta")}),
    ],
)
def test_bad_input(error: type[Exception], message: str, change: dict[str, Any]) -> None:
    for op in (fastq.tempered, fastq.reference.tempered):
        with pytest.raises(error, match="tempered: .*" + message):
            op(**({"x": X, "step": S, "a": S} | GOOD | change))


def test_the_checking_mode_names_what_is_not_finite() -> None:
    fastq.set_checks(True)
    try:
        with pytest.raises(ValueError, match="tempered: step must be positive and finite"):
            fastq.tempered(X, -S, S, **GOOD)
        with pytest.raises(ValueError, match="tempered: a holds NaN"):
            fastq.tempered(X, S, S * math.nan, **GOOD)
        for op in (fastq.tempered, fastq.reference.tempered):
            for value in (1.5, -0.5, math.nan):
                with pytest.raises(ValueError, match=rf"tempered: decay must be from 0 to 1, got \[{value}\]"):
                    op(X, S, S, **GOOD | {"decay": torch.tensor(value)})
    finally:
        fastq.set_checks(False)
