"""SAT weights: the reference against the page it was written from, every backend against the reference.

Run as a program under ``TRITON_INTERPRET=1`` it checks the Triton kernels: the interpreter is chosen before Triton is imported.
"""

import math
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from device import BACKEND, DEVICE, drawn

import fastq
from fastq.autograd import SATWeight
from fastq.reference.sat import code_variance, sat_weight_surrogate
from fastq.testing import same_bits

WAYS: list[dict[str, Any]] = [
    {"bits": 4},
    {"bits": 8, "rescale": "std", "grad_through_max": False},
    {"bits": 2, "scheme": "centered", "n_out": 7},
    {"bits": 3, "scheme": "floor"},
    {"bits": 1, "rescale": "none"},
    {"bits": None},
    {"bits": None, "rescale": "std"},
]
SHAPES = [(7, 61), (1,), (), (6, 5, 3, 3), (4099,), (3, 4, 2, 2, 2, 2)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def steps(w: torch.Tensor, bits: int, scheme: str) -> torch.Tensor:
    """``v`` in fp64, moved so that a rounding tie is an integer and half."""
    top = 2**bits - (1 if scheme == "round" else 0)
    t = w.double().tanh()
    v = (t / t.abs().max() + 1) / 2 * top
    return v if scheme == "round" else v + 0.5


def clear_of_ties(shape: tuple[int, ...], dtype: torch.dtype, way: dict[str, Any], seed: int = 0) -> torch.Tensor:
    """Normal numbers of which none comes so close to a tie that a few ulp of tanh decide.

    Wh is off by some 4 roundings, ``v`` by ``L`` times that.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    w = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu").to(dtype)
    if way["bits"] is None:
        return w
    eps = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    largest = w.abs() == w.abs().max()
    for _ in range(50):
        v = steps(w, way["bits"], way.get("scheme", "round"))
        close = ((v - v.floor() - 0.5).abs() < 8 * eps * 2 ** way["bits"]) & ~largest
        if not bool(close.any()):
            return w
        w = torch.where(close, torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu").to(dtype) / 4, w)
    raise RuntimeError("no such numbers were drawn")


def call(fn: Any, w: torch.Tensor, g: torch.Tensor, **way: Any) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = w.detach().requires_grad_()
    y = fn(leaf, **way)
    return y.detach(), torch.autograd.grad(y, leaf, g)[0]


def layouts(w: torch.Tensor) -> dict[str, torch.Tensor]:
    found = {"contiguous": w}
    if w.dim() >= 2:
        found["transposed"] = w.transpose(0, -1).contiguous().transpose(0, -1)
        found["strided"] = torch.stack([w, w], dim=-1)[..., 0]
    if w.dim() == 4:
        found["channels_last"] = w.contiguous(memory_format=torch.channels_last)
    found["misaligned"] = torch.empty(w.numel() + 1, dtype=w.dtype, device=w.device)[1:].view(w.shape).copy_(w)
    return found


def agree(what: str, w: torch.Tensor, g: torch.Tensor, got: Any, want: Any, exact: bool) -> None:
    """``exact``: ``y`` by its bits. Not so where kappa comes from sums of tanh, nor in fp64, where the order of any sum shows."""
    eps = torch.finfo(w.dtype).eps
    if exact:
        assert same_bits(got[0], want[0]), what
    torch.testing.assert_close(got[0], want[0], rtol=8 * eps, atol=0, msg=lambda m: f"{what} y: {m}")
    # At the maximum two numbers are subtracted, one of them a sum: relative to those, not to what is left of them.
    scale = float(want[1].double().abs().max()) + float(g.double().abs().sum()) * float(got[0].double().abs().max())
    torch.testing.assert_close(got[1], want[1], rtol=16 * eps, atol=4e-7 * scale, msg=lambda m: f"{what} dw: {m}")
    others = w.abs() < w.abs().max()
    torch.testing.assert_close(got[1][others], want[1][others], rtol=16 * eps, atol=torch.finfo(w.dtype).tiny)


def check(backend: str, shapes: list[tuple[int, ...]], dtypes: list[torch.dtype], ways: list[dict[str, Any]]) -> int:
    """``y`` by its bits, ``dw`` to the few ulp in which exp and tanh differ from torch's."""
    count = 0
    for shape in shapes:
        for dtype in dtypes:
            for way in ways:
                w, g = clear_of_ties(shape, dtype, way), drawn(shape, 1).to(dtype).cpu()
                want, dwant = call(fastq.reference.sat_weight, w, g, **way)
                for layout, moved in layouts(w.to(DEVICE)).items():
                    with fastq.use_backend(backend):
                        y, dw = call(fastq.sat_weight, moved, g.to(DEVICE), **way)
                    what = f"{backend} {shape} {dtype} {way} {layout}"
                    assert y.stride() == dw.stride() == torch.empty_like(moved).stride(), what
                    agree(what, w, g, (y.cpu(), dw.cpu()), (want, dwant), exact=way["bits"] is not None and dtype != torch.float64)
                    count += 1
    return count


def test_every_layout_and_dtype_equals_the_reference() -> None:
    assert check(BACKEND, SHAPES, DTYPES, WAYS[:3]) + check(BACKEND, SHAPES[3:5], DTYPES[:2], WAYS[3:]) > 200


def test_triton_equals_the_reference_in_its_interpreter() -> None:
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONWARNINGS": "ignore", "FASTQ_BACKEND": "triton"}
    env["PYTHONPATH"] = str(Path(__file__).parents[1])
    done = subprocess.run([sys.executable, str(Path(__file__))], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]


# The formula


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_gradient_is_the_derivative_of_the_surrogate(way: dict[str, Any]) -> None:
    """Central differences in fp64 of ``kappa * (Wh + rho)``, ``kappa`` and the rounding residual ``rho`` held constant."""
    how = {key: value for key, value in way.items() if key != "grad_through_max"}
    if how["bits"] is None:
        how["scheme"] = "round"
    w, g = clear_of_ties((4, 5), torch.float64, way), drawn((4, 5), 3).double().cpu()
    with fastq.use_backend("reference"):
        y, dw = call(fastq.sat_weight, w, g, **way)
        _, dw_full = call(fastq.sat_weight, w, g, **how)
    t = w.tanh()
    unit = t / t.abs().max()
    n_out = way.get("n_out", 4)
    none = fastq.reference.sat_weight(w, **{**how, "rescale": "none"})
    factor = {"none": 1.0, "constant": 1 / math.sqrt(n_out * float(none.var())), "std": float(w.std() / none.std())}
    kappa = torch.tensor(factor[way.get("rescale", "constant")], dtype=torch.float64)
    torch.testing.assert_close(y, kappa * none, rtol=1e-12, atol=0)
    numeric = torch.zeros_like(w).flatten()
    for i in range(w.numel()):
        moved = []
        for h in (1e-6, -1e-6):
            shifted = w.clone().flatten()
            shifted[i] += h
            f = sat_weight_surrogate(shifted.view_as(w), **how, residual=none - unit, kappa=kappa)
            moved.append((f * g).sum())
        numeric[i] = (moved[0] - moved[1]) / 2e-6
    # central differences of a smooth function at 1e-6 in fp64: h^2 and 1e-16 / 1e-6
    torch.testing.assert_close(dw_full.flatten(), numeric, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(dw_full, torch.autograd.grad((sat_weight_surrogate(w.requires_grad_(), **how) * g).sum(), w)[0])
    if way.get("grad_through_max") is False:
        others = w.abs() < w.abs().max()
        assert torch.equal(dw[others], dw_full[others]) and not torch.equal(dw[~others], dw_full[~others])


def test_levels_by_hand() -> None:
    """Wh of -1, -0.4, 0.1, 0.6 and 1: v = 1.5 * (Wh + 1) or 2 * (Wh + 1)."""
    w = (torch.tensor([-1.0, -0.4, 0.1, 0.6, 1.0], dtype=torch.float64) * 0.5).atanh().float().to(DEVICE)
    expected = {
        "round": [-1, -1 / 3, 1 / 3, 1 / 3, 1],  # 0, 0.9, 1.65, 2.4, 3
        "floor": [-1, -0.5, 0, 0.5, 0.5],  # 0, 1.2, 2.2, 3.2, 4
        "centered": [-0.75, -0.25, 0.25, 0.75, 0.75],
    }
    for scheme, q in expected.items():
        y = fastq.sat_weight(w, bits=2, scheme=scheme, rescale="none")
        torch.testing.assert_close(y.cpu(), torch.tensor(q), rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape, n_out", [((10, 40), 10), ((8, 4, 3, 3), 72), ((6, 5, 7), 42), ((9,), 9)], ids=str)
@pytest.mark.parametrize("bits", [None, 1, 2, 4, 8])
def test_effective_variance_is_one_over_the_neurons(bits: int | None, shape: tuple[int, ...], n_out: int) -> None:
    """The paper's rule: VAR of the rescaled weights is 1 / n_out, whatever they were. And "std" keeps what they had."""
    w = drawn(shape) * 3
    y = fastq.sat_weight(w, bits=bits)
    torch.testing.assert_close(y.double().var().cpu() * n_out, torch.tensor(1.0).double(), rtol=1e-6, atol=0)
    y = fastq.sat_weight(w, bits=bits, n_out=1000)
    torch.testing.assert_close(y.double().var().cpu() * 1000, torch.tensor(1.0).double(), rtol=1e-6, atol=0)
    y = fastq.sat_weight(w, bits=bits, rescale="std")
    torch.testing.assert_close(y.double().std(), w.double().std(), rtol=1e-6, atol=0)


def test_it_is_dorefa_without_rescaling() -> None:
    w = clear_of_ties((50, 60), torch.float32, {"bits": 5}).to(DEVICE)
    t = w.double().tanh()
    dorefa = 2 * (31 * (t / (2 * t.abs().max()) + 0.5)).round() / 31 - 1
    torch.testing.assert_close(fastq.sat_weight(w, bits=5, rescale="none").double(), dorefa, rtol=1e-6, atol=0)


def test_eight_bits_are_deployed_as_int8() -> None:
    """y = s * code with odd codes of at most 255; with k' = k - 128 the integer sum is (2 * sum x*k' + sum x) * s."""
    w, x = drawn((16, 30)), torch.randint(0, 256, (30,), generator=torch.Generator("cpu").manual_seed(0), device="cpu")
    y = fastq.sat_weight(w, bits=8).double().cpu()
    s = y.abs().max() / 255
    code = (y / s).round()
    torch.testing.assert_close(y, code * s, rtol=1e-6, atol=0)
    assert bool((code.abs() % 2 == 1).all()) and float(code.abs().max()) == 255
    k = ((code + 255) / 2 - 128).to(torch.int64)
    assert -128 <= int(k.min()) and int(k.max()) <= 127
    assert torch.equal(2 * (k * x).sum(1) + x.sum(), (code.to(torch.int64) * x).sum(1))


@pytest.mark.parametrize("bits", [2, 8])
def test_variance_of_the_codes_is_exact(bits: int) -> None:
    """Against fractions: hundreds of thousands of codes next to the largest, of which a sum of squares in fp32 would keep
    nothing."""
    k = torch.full((300_001,), 2**bits - 1, dtype=torch.uint8)
    k[::1000] -= 1
    n, one, two = k.numel(), int(k.long().sum()), int(k.long().square().sum())
    exact = Fraction(4, (2**bits - 1) ** 2) * (two - Fraction(one * one, n)) / (n - 1)
    assert float(code_variance(k, 2**bits - 1)) == pytest.approx(float(exact), rel=1e-14)
    w = torch.where(k == 2**bits - 1, 2.0, -2.0).to(DEVICE)
    w[0] = 2.0
    with fastq.use_backend(BACKEND):
        y = SATWeight.apply(w, bits, 0, 1, 1)
    low = int((w < 0).sum())
    variance = Fraction(4 * low * (n - low), n * (n - 1))  # Q is 1 or -1
    torch.testing.assert_close(y.cpu().double().abs().max(), torch.tensor(1 / math.sqrt(variance)).double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed"])
def test_of_several_maxima_the_first_in_row_major_order_gets_the_gradient(layout: str) -> None:
    w = drawn((4, 6, 3, 5)).clamp(-1, 1) * 0.5
    ties = [(1, 5, 2, 0), (2, 0, 0, 0), (1, 4, 2, 4)]  # the last comes first in row-major order, and in no other
    for at in ties:
        w[at] = -0.75
    w = layouts(w)[layout]
    g = drawn((4, 6, 3, 5), 1)
    for backend in {BACKEND, "reference"}:
        with fastq.use_backend(backend):
            _, dw = call(fastq.sat_weight, w, g, bits=4)
            _, plain = call(fastq.sat_weight, w, g, bits=4, grad_through_max=False)
        assert (dw != plain).nonzero().tolist() == [list(ties[2])], backend


# What is special


def test_not_finite() -> None:
    w, g = drawn((5, 40)), drawn((5, 40), 1)
    infinite, large = w.clone(), w.clone()
    infinite[1, 2], large[1, 2] = -math.inf, -40.0
    for backend in {BACKEND, "reference"}:
        with fastq.use_backend(backend):
            for a, b in zip(call(fastq.sat_weight, infinite, g, bits=3), call(fastq.sat_weight, large, g, bits=3), strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-30)  # saturated: tanh is -1, and its slope 0 or e^-80
            y, dw = call(fastq.sat_weight, infinite, g, bits=3, rescale="std")  # std(w) is not finite, and scales them all
            assert bool(y.isnan().all()) and bool(dw.isnan().all()) and "not finite" in str(fastq.sat_weight.__doc__)
            for bits in (3, None):
                for value, at in ((math.nan, 0), (math.nan, 39)):
                    broken = w.clone()
                    broken[4, at] = value
                    y, dw = call(fastq.sat_weight, broken, g, bits=bits)
                    assert bool(y.isnan().all()) and bool(dw.isnan().all())


@pytest.mark.parametrize("rescale", ["none", "constant", "std"])
@pytest.mark.parametrize("bits", [None, 1, 4])
def test_what_has_no_scale_gives_zeros(bits: int | None, rescale: str) -> None:
    g = drawn((3, 4), 1)
    for w in (torch.zeros(3, 4, device=DEVICE), torch.full((3, 4), 0.3, device=DEVICE), torch.full((3, 4), -0.3, device=DEVICE)):
        for backend in {BACKEND, "reference"}:
            with fastq.use_backend(backend):
                y, dw = call(fastq.sat_weight, w, g, bits=bits, rescale=rescale)
            if rescale == "none" and bool(w.any()):
                torch.testing.assert_close(y, w.sign())  # that needs no variance
                assert bool(dw.isfinite().all())
            else:
                assert same_bits(y, torch.zeros_like(y)) and not bool(dw.any()), backend


def test_empty_and_single() -> None:
    for shape in ((0,), (0, 5), (4, 0, 3, 3)):
        y, dw = call(fastq.sat_weight, torch.empty(shape, device=DEVICE), torch.empty(shape, device=DEVICE), bits=4)
        assert y.shape == dw.shape == shape
    y, _ = call(fastq.sat_weight, drawn((1, 1)), drawn((1, 1)), bits=4)
    assert not bool(y.any())  # one number has no variance


def test_an_expanded_gradient_and_one_of_other_strides() -> None:
    w, g = drawn((6, 5, 3, 4)), drawn((6, 5, 3, 4), 1)
    _, plain = call(fastq.sat_weight, w, torch.ones_like(w), bits=4)
    assert same_bits(call(fastq.sat_weight, w, torch.ones((), device=DEVICE).expand(w.shape), bits=4)[1], plain)
    _, plain = call(fastq.sat_weight, w, g, bits=4)
    assert same_bits(call(fastq.sat_weight, w, g.to(memory_format=torch.channels_last), bits=4)[1], plain)


@pytest.mark.parametrize("way", [{"bits": 4}, {"bits": None, "rescale": "std"}], ids=str)
def test_sums_do_not_depend_on_threads(way: dict[str, Any]) -> None:
    w, g = drawn((400, 701)), drawn((400, 701), 1)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            results.append(call(fastq.sat_weight, w, g, **way))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(same_bits(a, b) for a, b in zip(result, results[0], strict=True))


def test_only_the_weight_and_four_numbers_are_kept() -> None:
    kept: dict[int, int] = {}

    def pack(t: torch.Tensor) -> torch.Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    w = drawn((30, 50)).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = fastq.sat_weight(w, bits=4)
    assert sum(kept.values()) == w.numel() * 4 + 3 * 8 + 8
    del y


# The compiler and autograd


def test_operators_are_what_they_say() -> None:
    with fastq.use_backend(BACKEND):
        fastq.sat_weight(drawn((3, 4)), bits=4)  # triton registers its kernels with the first use
    space = torch.ops.fastq_triton if BACKEND == "triton" else torch.ops.fastq
    w, scale = drawn((4, 6)).T, torch.tensor([0.9, 1.0, 0.1], dtype=torch.float64, device=DEVICE)
    index = torch.tensor([3], device=DEVICE)
    utilities = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    with torch.no_grad():
        torch.library.opcheck(space.sat_forward.default, (w, 4, 0, 1, 6), test_utils=utilities)
        torch.library.opcheck(space.sat_backward.default, (w, w, scale, index, True), test_utils=utilities)


def test_compiles_as_one_graph() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda w: fastq.sat_weight(w * 1.5, bits=4) + 1, fullgraph=True)
    w, g = drawn((5, 8)), drawn((5, 8), 1)
    eager = call(lambda w: fastq.sat_weight(w * 1.5, bits=4) + 1, w, g)
    for a, b in zip(call(compiled, w, g), eager, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_double_backward_raises() -> None:
    w = drawn((4, 4)).requires_grad_()
    (dw,) = torch.autograd.grad(fastq.sat_weight(w, bits=4).square().sum(), w, create_graph=True)
    with pytest.raises(RuntimeError, match="sat_weight: double backward is not defined"):
        dw.sum().backward()


# Bad input


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (TypeError, r"w must be float32, bfloat16, float16 or float64, got torch\.int64", {"w": torch.arange(4)}),
        (TypeError, r"w must be a torch\.Tensor, got int", {"w": 3}),
        (TypeError, r"bits must be an int from 1 to 8, or None for weights that are not quantized, got 4\.0", {"bits": 4.0}),
        (TypeError, "bits must be an int from 1 to 8, or None for weights that are not quantized, got True", {"bits": True}),
        (ValueError, "bits must be from 1 to 8, or None for weights that are not quantized, got 9", {"bits": 9}),
        (ValueError, "bits must be from 1 to 8, or None for weights that are not quantized, got 0", {"bits": 0}),
        (ValueError, "scheme must be one of round, floor, centered, got 'ceil'", {"scheme": "ceil"}),
        (ValueError, "scheme 'centered' is for 2 bits, got bits=4", {"scheme": "centered"}),
        (ValueError, "rescale must be one of none, constant, std, got 'var'", {"rescale": "var"}),
        (ValueError, "n_out must be at least 1, got 0", {"n_out": 0}),
        (TypeError, r"n_out must be an int or None, got 2\.5", {"n_out": 2.5}),
        (TypeError, "grad_through_max must be True or False, got 'no'", {"grad_through_max": "no"}),
    ],
)
@pytest.mark.parametrize("fn", [fastq.sat_weight, fastq.reference.sat_weight], ids=["fastq", "reference"])
def test_bad_input_is_named(fn: Any, error: type[Exception], message: str, change: dict[str, Any]) -> None:
    arguments = {"w": torch.ones(3, 4), "bits": 4} | change
    with pytest.raises(error, match=f"sat_weight: {message}"):
        fn(arguments.pop("w"), **arguments)


def test_a_private_operator_guards_its_memory() -> None:
    forward, backward = torch.ops.fastq.sat_forward.default, torch.ops.fastq.sat_backward.default
    w, scale, index = torch.ones(3, 4), torch.ones(3, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    for arguments, message in (
        ((w.int(), 4, 0, 1, 1), "w must be float32, bfloat16, float16 or float64, got Int"),
        ((w, 9, 0, 1, 1), "bits must be from 1 to 8, or 0 for none, got 9"),
        ((w, 4, 2, 1, 1), r"scheme must be 0, 1 or \(with 2 bits\) 2, got 2 with 4 bits"),
        ((w, 4, 0, 3, 1), "rescale must be 0, 1 or 2, got 3"),
        ((w, 4, 0, 1, 0), "n_out must be at least 1, got 0"),
    ):
        with torch.no_grad(), pytest.raises(RuntimeError, match=f"fastq::sat_forward: {message}"):
            forward(*arguments)
    for arguments, message in (
        ((w.T, w, scale, index, True), "grad must have the shape, dtype and device of w"),
        ((w, w, scale.float(), index, True), "scale and index must be what sat_forward gave"),
        ((w, w, scale, index.int(), True), "scale and index must be what sat_forward gave"),
    ):
        with torch.no_grad(), pytest.raises(RuntimeError, match=f"fastq::sat_backward: {message}"):
            backward(*arguments)
    with torch.no_grad():  # an index of nothing corrects nothing
        for stray in (-1, 12, 10**12):
            assert bool(backward(w, w, scale, torch.tensor([stray]), True).isfinite().all())
    with pytest.raises(RuntimeError, match="private operator without an autograd formula"):
        forward(w.requires_grad_(), 4, 0, 1, 1)


def test_the_checking_mode_raises() -> None:
    fastq.set_checks(True)
    try:
        for fn in (fastq.sat_weight, fastq.reference.sat_weight):
            with pytest.raises(ValueError, match="sat_weight: w is 0 everywhere, so that it has no largest element to divide by"):
                fn(torch.zeros(3, 4, device=DEVICE), bits=4)
            with pytest.raises(ValueError, match=r"sat_weight: the codes of w have no variance to rescale by \(12 elements"):
                fn(torch.full((3, 4), 0.5, device=DEVICE), bits=4)
            with pytest.raises(ValueError, match=r"sat_weight: w holds NaN \(1 of 2 elements\)"):
                fn(torch.tensor([0.5, math.nan], device=DEVICE), bits=4)
            fn(torch.full((3, 4), 0.5, device=DEVICE), bits=4, rescale="none")
            fn(torch.empty(0, 4, device=DEVICE), bits=4)
    finally:
        fastq.set_checks(False)


if __name__ == "__main__":
    check("triton", [(7, 61)], DTYPES[:1], WAYS)
    check("triton", [(3, 5, 2, 2)], DTYPES[1:], WAYS[1:2])
    check("triton", [(4099,)], DTYPES[:1], WAYS[:1])
    test_of_several_maxima_the_first_in_row_major_order_gets_the_gradient("channels_last")
    test_of_several_maxima_the_first_in_row_major_order_gets_the_gradient("contiguous")
    test_levels_by_hand()
    test_not_finite()
    test_empty_and_single()
    for rescale in ("none", "constant", "std"):
        test_what_has_no_scale_gives_zeros(4, rescale)
        test_what_has_no_scale_gives_zeros(None, rescale)
