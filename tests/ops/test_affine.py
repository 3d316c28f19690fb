"""The drop-ins against PyTorch core by number, and against their reference by ``check_quantizer``."""

import inspect
import math
from typing import Any

import pytest
import torch
from affine_cases import AFFINE_CASES, affine, affine_reference
from device import BACKEND, DEVICE

import fastq
from fastq.testing import check_quantizer, same_bits

RANGES = [(-8, 7), (0, 255), (-128, 127), (0, 1)]


def near_ties(shape: tuple[int, ...], scale: float, seed: int) -> torch.Tensor:
    """Codes and half-codes, a few ulp to either side: where multiplying by 1/scale and dividing part ways."""
    generator = torch.Generator("cpu").manual_seed(seed)
    k = torch.randint(-300, 300, shape, generator=generator, device="cpu").float() / 2
    ulp = torch.randint(-3, 4, shape, generator=generator, device="cpu").float() * torch.finfo(torch.float32).eps
    return (k * scale * (1 + ulp)).to(DEVICE)


def both(name: str, x: torch.Tensor, g: torch.Tensor, *args: Any, grads: tuple[int, ...] = ()) -> list[list[torch.Tensor]]:
    """Output and gradients of torch's function on the CPU and of ours of the same name; ``grads``: which of ``args`` learn."""
    results = []
    for module, device in ((torch, "cpu"), (fastq, DEVICE)):
        leaves = [
            a.detach().to(device).clone().requires_grad_(i in grads) if isinstance(a, torch.Tensor) else a
            for i, a in enumerate(args)
        ]
        leaf = x.detach().to(device).requires_grad_()
        y = getattr(module, name)(leaf, *leaves)
        gradients = torch.autograd.grad(y, [leaf, *(leaves[i] for i in grads)], g.to(device))
        results.append([t.detach().cpu() for t in (y, *gradients)])
    return results


@pytest.mark.parametrize("backend", [BACKEND, "reference"])
@pytest.mark.parametrize("qmin, qmax", RANGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_per_tensor_is_cores(dtype: torch.dtype, qmin: int, qmax: int, backend: str) -> None:
    for scale in (0.1, 0.037, 3.0, 1e-3):
        for zero_point in (qmin, (qmin + qmax) // 2, qmax):
            x = near_ties((40, 50), scale, zero_point).to(dtype)
            g = torch.randn(x.shape).to(dtype)
            with fastq.use_backend(backend):
                for args in (
                    (scale, zero_point, qmin, qmax),
                    (torch.tensor(scale), torch.tensor(zero_point), qmin, qmax),
                    (torch.tensor([scale]), torch.tensor([zero_point], dtype=torch.int32), qmin, qmax),
                ):
                    core, ours = both("fake_quantize_per_tensor_affine", x, g, *args)
                    assert all(torch.equal(a, b) for a, b in zip(core, ours, strict=True)), (scale, zero_point, args)


@pytest.mark.parametrize("backend", [BACKEND, "reference"])
@pytest.mark.parametrize("kind", [torch.int32, torch.float32], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_per_channel_is_cores_on_every_axis(dtype: torch.dtype, kind: torch.dtype, backend: str) -> None:
    for shape in ((6, 33), (4, 5, 6, 7), (300, 3)):
        for axis in range(len(shape)):
            n = shape[axis]
            x = near_ties(shape, 0.05, axis).to(dtype)
            g = torch.randn(shape).to(dtype)
            scale = torch.rand(n) * 0.1 + 0.01
            zero_point = torch.randint(-8, 8, (n,)).to(kind)
            with fastq.use_backend(backend):
                core, ours = both("fake_quantize_per_channel_affine", x, g, scale, zero_point, axis, -8, 7)
            assert all(torch.equal(a, b) for a, b in zip(core, ours, strict=True)), (shape, axis)


@pytest.mark.parametrize("backend", [BACKEND, "reference"])
@pytest.mark.parametrize("zero", [0.0, 1.3, -2.5, 2.5, -3.0, 40.0, -9.0])
def test_learnable_is_cores(zero: float, backend: str) -> None:
    for shape, axis in (((50, 40), None), ((6, 5, 33), 0), ((6, 5, 33), 1), ((6, 5, 33), -1)):
        n = 1 if axis is None else shape[axis]
        scale = torch.rand(n) * 0.1 + 0.01
        along = scale.cpu().view([-1 if d == (axis or 0) % len(shape) else 1 for d in range(len(shape))])
        x, g = near_ties(shape, 1.0, int(zero)) * along.to(DEVICE), torch.randn(shape)
        zero_point = torch.full((n,), zero)
        name = f"_fake_quantize_learnable_per_{'tensor' if axis is None else 'channel'}_affine"
        # Core counts a negative axis of the learnable operator only from the front.
        args = (scale, zero_point, *(() if axis is None else (axis % len(shape),)), -8, 7, 0.25)
        with fastq.use_backend(backend):
            core, ours = both(name, x, g, *args, grads=(0, 1))
        assert torch.equal(core[0], ours[0]) and torch.equal(core[1], ours[1]), (shape, axis)
        for a, b in zip(core[2:], ours[2:], strict=True):
            # Both add numel terms of at most |g| * 50 in fp32; core's are rounded once more, by the factor, before the sum.
            torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-6 * float(g.abs().sum()))


def test_the_reference_is_held_on_every_case() -> None:
    with fastq.use_backend(BACKEND):
        report = check_quantizer(affine, affine_reference, AFFINE_CASES, operators=operators(), device=DEVICE)
    assert len(report.results) > 200


def operators() -> list[tuple[Any, tuple[Any, ...]]]:
    x, g, scale, zero_point = torch.randn(4, 6), torch.randn(4, 6), torch.rand(6) + 0.1, torch.zeros(6)
    forward, backward = torch.ops.fastq.affine_forward.default, torch.ops.fastq.affine_backward.default
    samples: list[tuple[Any, tuple[Any, ...]]] = [(forward, (x, scale, zero_point, -8, 7, 1))]
    return samples + [(backward, (g, x, scale, zero_point, -8, 7, 1, learnable, 1.0)) for learnable in (False, True)]


def test_where_core_is_odd() -> None:
    x = torch.tensor([math.nan, math.inf, -math.inf, 1e30, -1e30, 0.0, -0.0], requires_grad=True)
    y = fastq.fake_quantize_per_tensor_affine(x, 0.5, 2, -8, 7)
    expected = torch.tensor([math.nan, 2.5, -5.0, 2.5, -5.0, 0.0, 0.0])
    assert same_bits(y, expected)
    y.backward(torch.tensor([1.0, math.inf, 1.0, 1.0, 1.0, 1.0, 1.0]))
    assert x.grad is not None
    assert same_bits(x.grad, torch.tensor([math.nan, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0]))
    assert fastq.fake_quantize_per_tensor_affine(torch.tensor([1.0, 0.0]), 0.0, 0, -8, 7).tolist() == [0.0, 0.0]
    core = torch.fake_quantize_per_tensor_affine
    for fn, gradient in (
        (fastq.fake_quantize_per_tensor_affine, 1.0),
        (fastq.reference.fake_quantize_per_tensor_affine, 1.0),
        (core, 0.0),
    ):
        x = torch.tensor([1.0, 0.0, -3.0], requires_grad=True)
        y = fn(x, 0.0, 2, -8, 7)
        y.sum().backward()
        assert x.grad is not None and y.tolist() == [0.0] * 3 and x.grad.tolist() == [gradient] * 3
    x, scale, beyond = torch.randn(3, 4) * 9, torch.ones(3), torch.tensor([7, 9, -9], dtype=torch.int32)
    y = fastq.fake_quantize_per_channel_affine(x, scale, beyond, 0, -8, 7)
    assert torch.equal(y, fastq.fake_quantize_per_channel_affine(x, scale, beyond.clamp(-8, 7), 0, -8, 7))
    with pytest.raises(RuntimeError, match="must be between"):
        torch.fake_quantize_per_channel_affine(x, scale, beyond, 0, -8, 7)
    tiny = fastq.fake_quantize_per_tensor_affine(torch.tensor([0.0, 1.0]), 1e-40, 0, -8, 7)
    assert tiny.isnan().tolist() == [True, False] and not bool(core(torch.tensor([0.0, 1.0]), 1e-40, 0, -8, 7).isnan().any())
    wide = torch.linspace(-1, 1, 999, dtype=torch.float64)  # core would round 0.1 and the result to fp32
    expected = (wide * (1 / 0.1)).round().clamp(-8, 7) * 0.1
    assert torch.equal(fastq.fake_quantize_per_tensor_affine(wide, 0.1, 0, -8, 7), expected)


def test_signatures_are_cores() -> None:
    assert list(inspect.signature(fastq.fake_quantize_per_tensor_affine).parameters) == [
        "input", "scale", "zero_point", "quant_min", "quant_max",
    ]  # fmt: skip
    assert list(inspect.signature(fastq._fake_quantize_learnable_per_channel_affine).parameters) == [
        "input", "scale", "zero_point", "axis", "quant_min", "quant_max", "grad_factor",
    ]  # fmt: skip
    x = torch.randn(5)
    by_name = {"scale": 0.1, "zero_point": 0, "quant_min": -8, "quant_max": 7}
    assert torch.equal(fastq.fake_quantize_per_tensor_affine(x, **by_name), torch.fake_quantize_per_tensor_affine(x, **by_name))


def test_compiles_and_sums() -> None:
    torch._dynamo.reset()
    x, scale = torch.randn(6, 8, requires_grad=True), torch.tensor([0.1], requires_grad=True)
    zero_point = torch.tensor([1.0], requires_grad=True)

    def f(x: torch.Tensor) -> torch.Tensor:
        return fastq._fake_quantize_learnable_per_tensor_affine(x, scale, zero_point, -8, 7, 0.5)

    results = []
    for g in (f, torch.compile(f, fullgraph=True)):
        results.append(torch.autograd.grad(g(x).sum(), [x, scale, zero_point]))
    assert all(same_bits(a, b) for a, b in zip(*results, strict=True))


def test_double_backward_raises() -> None:
    x = torch.randn(4, requires_grad=True)
    y = fastq.fake_quantize_per_tensor_affine(x, 0.1, 0, -8, 7)
    (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="fake_quantize_affine: double backward is not defined"):
        dx.sum().backward()


@pytest.mark.parametrize(
    ("error", "message", "args"),
    [
        (ValueError, "zero_point must lie between quant_min and quant_max, [-8, 7], got 9", (0.1, 9, -8, 7)),
        (ValueError, "quant_min must not exceed quant_max, got 7 and -8", (0.1, 0, 7, -8)),
        (ValueError, "must lie within ±65536", (0.1, 0, -(2**31), 2**31 - 1)),
        (ValueError, "scale must be finite, got nan", (math.nan, 0, -8, 7)),
        (ValueError, "scale must have one element per tensor", (torch.ones(2), torch.zeros(2), -8, 7)),
        (TypeError, "scale must be a number or a tensor, got str", ("0.1", 0, -8, 7)),
        (TypeError, "quant_min and quant_max must be ints", (0.1, 0, -8.0, 7)),
    ],
)
def test_bad_input(error: type[Exception], message: str, args: Any) -> None:
    with pytest.raises(error) as raised:
        fastq.fake_quantize_per_tensor_affine(torch.ones(3), *args)
    assert message in str(raised.value) and "fake_quantize_per_tensor_affine: " in str(raised.value)


def test_bad_channels() -> None:
    x = torch.ones(3, 4)
    with pytest.raises(ValueError, match=r"scale must have shape \(4,\) for input of shape \(3, 4\) and axis=1, got \(3,\)"):
        fastq.fake_quantize_per_channel_affine(x, torch.ones(3), torch.zeros(3), 1, -8, 7)
    with pytest.raises(ValueError, match=r"axis must be in \[-2, 1\] for input of 2 dimensions, got 2"):
        fastq.fake_quantize_per_channel_affine(x, torch.ones(3), torch.zeros(3), 2, -8, 7)
    with pytest.raises(TypeError, match="input must be float32"):
        fastq.fake_quantize_per_channel_affine(x.int(), torch.ones(3), torch.zeros(3), 0, -8, 7)


@pytest.mark.parametrize("axis", [None, 1.0, "a", True])
def test_an_axis_that_is_no_int_is_refused(axis: Any) -> None:
    x, scale, zero_point = torch.ones(3, 4), torch.ones(1), torch.zeros(1)
    for name in ("fake_quantize_per_channel_affine", "_fake_quantize_learnable_per_channel_affine"):
        for space in (fastq, fastq.reference):
            with pytest.raises(TypeError, match=f"{name}: axis must be an int, the axis of the channels, got {axis!r}"):
                getattr(space, name)(x, scale, zero_point, axis, -8, 7)


@pytest.mark.parametrize("factor", [None, "lsq", True, torch.ones(1)], ids=str)
def test_a_factor_that_is_no_number_is_refused_at_the_call(factor: Any) -> None:
    x, kind = torch.ones(3, 4), type(factor).__name__
    for name, place in (("per_tensor", ()), ("per_channel", (0,))):
        scale, zero_point = torch.ones(3 if place else 1), torch.zeros(3 if place else 1)
        for space in (fastq, fastq.reference):
            with pytest.raises(TypeError, match=f"_affine: grad_factor must be a float, got {kind}"):
                getattr(space, f"_fake_quantize_learnable_{name}_affine")(x, scale, zero_point, *place, -8, 7, factor)
