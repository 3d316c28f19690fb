"""Noise in place of rounding: held against its reference on each backend, and against its own finite differences."""

import math
from typing import Any

import pytest
import torch
from device import BACKEND, DEVICE, drawn
from noise_cases import noise_quant, noise_quant_cases, noise_quant_reference, seed

import fastq
from fastq.autograd import NoiseQuant
from fastq.reference.philox import HALF_STEP, NOISES, noise
from fastq.testing import check_quantizer, same_bits

pytestmark = pytest.mark.usefixtures("one_thread")
BACKENDS = pytest.mark.parametrize("backend", [BACKEND, "reference"])
X, S = torch.randn(4, 6), torch.ones(1)


def gradients(fn: Any, x: torch.Tensor, step: torch.Tensor, **keywords: Any) -> Any:
    leaves = [t.detach().clone().requires_grad_() for t in (x, step)]
    y = fn(*leaves, **keywords)
    return y.detach(), *torch.autograd.grad(y, leaves, torch.ones_like(y))


def itself(x: torch.Tensor, step: torch.Tensor, **keywords: Any) -> Any:
    """Nothing is rounded, so the function is its own surrogate."""
    return lambda x, step: noise_quant_reference(x.detach(), step.detach(), **keywords)


def operators() -> list[tuple[Any, tuple[Any, ...]]]:
    x, g, step = torch.randn(4, 6), torch.randn(4, 6), torch.rand(6) + 0.1
    common = (seed(x), -8, 7, 1, 0, 1e-8, True, 1)
    return [
        (torch.ops.fastq.noise_quant_forward.default, (x, step, *common)),
        (torch.ops.fastq.noise_quant_backward.default, (g, x, step, *common, 1.0, 1)),
    ]


def test_equals_the_reference() -> None:
    with fastq.use_backend(BACKEND):
        report = check_quantizer(
            noise_quant, noise_quant_reference, noise_quant_cases(), operators=operators(), device=DEVICE, exact_sums=False,
            large=70_000,
        )  # fmt: skip
    assert len(report.results) > 400


def test_gradients_are_its_derivative() -> None:
    report = check_quantizer(
        noise_quant, noise_quant_reference, noise_quant_cases(), surrogate=itself, dtypes=[torch.float64], layouts=["contiguous"],
        device=DEVICE, exact_sums=False, large=10,
    )  # fmt: skip
    assert sum(result.check == "finite differences" for result in report.results) > 80


@BACKENDS
def test_the_formula_by_hand(backend: str) -> None:
    x = torch.tensor([0.5, 4.0, -8.0, 1.0], dtype=torch.float64)  # 2 steps; beyond the range; its edge; 4 steps
    step, g = torch.tensor([0.25], dtype=torch.float64), {}
    for kind, name in (("diffq", "normal"), ("uniform", "uniform"), ("diffq", "rademacher")):
        z = noise(seed(x), (4,), NOISES[name], HALF_STEP[NOISES[name]]).double()
        with fastq.use_backend(backend):
            y, dx, ds = gradients(fastq.noise_quant, x, step, kind=kind, noise=name, seed=seed(x), **g)
        assert torch.equal(y, x + 0.25 * z) and torch.equal(dx, torch.ones(4, dtype=torch.float64))
        torch.testing.assert_close(ds, z.sum().view(1), rtol=1e-14, atol=0)
    z = noise(seed(x), (4,), 0, 1.0).double()
    with fastq.use_backend(backend):
        y, dx, ds = gradients(fastq.noise_quant, x, step, kind="nipq", bits=4, seed=seed(x))
    assert torch.equal(y, torch.stack([x[0] + 0.25 * z[0], step[0] * 7, step[0] * -8, x[3] + 0.25 * z[3]]))
    assert dx.tolist() == [1, 0, 0, 1]
    torch.testing.assert_close(ds, (z[0] + 7 - 8 + z[3]).view(1), rtol=1e-14, atol=0)


@BACKENDS
def test_zeros_of_a_relu_stay_zeros_in_nipq(backend: str) -> None:
    x = drawn((20, 30), 1).relu()
    with fastq.use_backend(backend):
        y = fastq.noise_quant(x, S * 0.1, kind="nipq", bits=4, signed=False, seed=seed(x))
    assert bool((y[x == 0] == 0).all()) and bool((y[x > 0] != 0).all())


@BACKENDS
@pytest.mark.parametrize("kind", ["diffq", "nipq", "uniform"])
def test_without_training_it_is_lsq(kind: str, backend: str) -> None:
    x, step = drawn((8, 33), 1), drawn((33,), 2).abs() + 0.1
    with fastq.use_backend(backend):
        got = gradients(fastq.noise_quant, x, step, kind=kind, bits=3, axis=1, training=False, seed=None)
        want = gradients(fastq.lsq, x, step, bits=3, axis=1, grad_scale=1.0)
    assert all(same_bits(a, b) for a, b in zip(got, want, strict=True))


@BACKENDS
def test_the_error_has_the_size_of_a_rounding_error(backend: str) -> None:
    """Mean 0 and variance step^2 / 12 of uniform noise, as rounding to a fine grid has; 5 standard deviations of each."""
    x, step = drawn((300, 400), 1).double(), torch.tensor([0.125], dtype=torch.float64)
    with fastq.use_backend(backend):
        error = (fastq.noise_quant(x, step, kind="uniform", seed=seed(x)) - x) / step
    n = x.numel()
    assert abs(float(error.mean())) < 5 / math.sqrt(12 * n)
    assert abs(float(error.square().mean()) * 12 - 1) < 5 * math.sqrt(0.8 / n)


def test_layouts_seeds_and_dtypes() -> None:
    x = drawn((6, 8, 5, 9), 1)
    want = fastq.noise_quant(x, S, seed=seed(x))
    for turned in (x.to(memory_format=torch.channels_last), x.transpose(0, 3).contiguous().transpose(0, 3)):
        y = fastq.noise_quant(turned, S, seed=seed(x))
        assert same_bits(y, want) and y.stride() == turned.stride()
    assert float((fastq.noise_quant(x, S, seed=seed(x, 1)) != want).float().mean()) > 0.99
    zero = torch.zeros_like(x)
    full, half = fastq.noise_quant(zero, S, seed=seed(x)), fastq.noise_quant(zero.bfloat16(), S, seed=seed(x))
    assert same_bits(half, full.bfloat16())


def test_double_backward_raises() -> None:
    x = drawn((8,), 1).requires_grad_()
    (dx,) = torch.autograd.grad(fastq.noise_quant(x, S, seed=seed(x)).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="noise_quant: double backward is not defined"):
        dx.sum().backward()


def test_compiles_and_is_the_function() -> None:
    torch._dynamo.reset()
    x, step = drawn((6, 8), 1).requires_grad_(), torch.full((6,), 0.2, requires_grad=True)

    def f(x: torch.Tensor) -> torch.Tensor:
        return fastq.noise_quant(x, step, kind="nipq", bits=4, axis=0, seed=seed(X))

    results = [torch.autograd.grad(h(x).sum(), [x, step]) for h in (f, torch.compile(f, fullgraph=True))]
    assert all(same_bits(p, q) for p, q in zip(*results, strict=True))
    assert same_bits(NoiseQuant.apply(x, step, seed(X), -8, 7, 0, 0, 1e-8, True, 0), f(x))


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (TypeError, "x must be float32.*got torch.int64", {"x": torch.arange(4)}),
        (TypeError, "step must be torch.float32 for x of torch.float32, got torch.float64", {"step": S.double()}),
        (ValueError, r"step must have shape \(6,\).*got \(1,\)", {"axis": 1}),
        (ValueError, "kind must be one of diffq, nipq, uniform, got 'pqn'", {"kind": "pqn"}),
        (ValueError, "noise must be one of uniform, rademacher, normal or None, got 'cauchy'", {"noise": "cauchy"}),
        (ValueError, "kind='uniform' has uniform noise, got noise='normal'", {"kind": "uniform", "noise": "normal"}),
        (ValueError, "kind='nipq' clips to a range; give bits=", {"kind": "nipq"}),
        (ValueError, "bits must be from 1 to 8", {"kind": "nipq", "bits": 9}),
        (ValueError, "grad_scale='lsq' is about the highest code; give bits=", {"grad_scale": "lsq"}),
        (ValueError, "training=False rounds to codes; give bits=", {"training": False}),
        (ValueError, "eps must be positive and finite in float32, .* got 0", {"eps": 0}),
        (TypeError, "seed must be a torch.Tensor of one int64 element on the device of x.*got int", {"seed": 3}),
        (TypeError, "training must be True or False, got 'no'", {"training": "no"}),
        (TypeError, "training must be True or False, got 0", {"training": 0, "bits": 4}),
        (TypeError, "seed must be torch.int64, got torch.float32", {"seed": torch.tensor(3.0)}),
        (ValueError, r"seed must have one element, got shape \(0,\)", {"seed": torch.zeros(0, dtype=torch.int64)}),
        (ValueError, "seed must be on the device of x, .*got meta", {"seed": torch.tensor(3, device="meta")}),
    ],
)
def test_bad_input(error: type[Exception], message: str, change: dict[str, Any]) -> None:
    for op in (fastq.noise_quant, fastq.reference.noise_quant):
        with pytest.raises(error, match="noise_quant: .*" + message):
            op(**({"x": X, "step": S, "seed": torch.tensor(0)} | change))
