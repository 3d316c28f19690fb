"""Direct quantization: every backend against the reference, the identities that define it, and bad input.

Run as a program under ``TRITON_INTERPRET=1`` it checks the Triton kernels: the interpreter is chosen before Triton is imported.
"""

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from device import BACKEND, DEVICE

import fastq
from fastq.autograd import DirectWeight
from fastq.reference.direct import nearest_level
from fastq.testing import LAYOUTS, same_bits

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES: tuple[tuple[int, ...], ...] = ((), (1,), (5,), (33,), (4096,), (3, 4099), (2, 3, 5, 7), (0, 4))
U8 = {"dtype": torch.uint8, "device": DEVICE}


def drawn_levels(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator("cpu").manual_seed(seed), device="cpu").sort().values.to(DEVICE)


def drawn_codes(shape: tuple[int, ...], high: int, seed: int = 0) -> torch.Tensor:
    made = torch.randint(high, shape, generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.uint8, device="cpu")
    return made.to(DEVICE)


def drawn(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed), device="cpu").to(DEVICE, dtype)


def laid_out(t: torch.Tensor, layout: str) -> torch.Tensor | None:
    if layout == "contiguous":
        return t.clone()
    if layout == "misaligned":
        return torch.empty(t.numel() + 1, dtype=t.dtype, device=t.device)[1:].view(t.shape).copy_(t)
    if layout == "channels_last":
        return t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else None
    if t.dim() < 2:
        return None
    return t.transpose(0, -1).contiguous().transpose(0, -1) if layout == "transposed" else torch.stack([t, t], -1)[..., 0]


def weight_and_gradient(codes: torch.Tensor, levels: torch.Tensor, g: torch.Tensor, backend: str) -> tuple[torch.Tensor, ...]:
    leaf = levels.detach().requires_grad_()
    with fastq.use_backend(backend):
        w = fastq.direct_weight(codes, leaf, dtype=g.dtype)
    return w.detach(), torch.autograd.grad(w, leaf, g)[0]


def cases(quick: bool) -> Iterator[tuple[tuple[int, ...], int, str]]:
    """Every shape and layout; the numbers of levels take turns. ``quick``: for the interpreter."""
    if quick:
        yield from [
            ((33,), 2, "contiguous"),
            ((3, 1400), 16, "contiguous"),
            ((2, 3, 5, 7), 8, "transposed"),
            ((40,), 256, "misaligned"),
        ]
        return
    for i, shape in enumerate(SHAPES):
        for j, layout in enumerate(LAYOUTS):
            yield shape, 2 ** (1 + (3 * i + j) % 8), layout


def check_weight(backend: str, quick: bool = False) -> int:
    count = 0
    for shape, K, layout in cases(quick):
        levels = drawn_levels(K)
        for dtype in DTYPES[: 2 if quick else None]:
            codes = laid_out(drawn_codes(shape, 256), layout)  # beyond the levels as well: modulo their number
            if codes is None:
                continue
            g = drawn(shape, dtype, 1)
            if g.numel() > 4:
                g.view(-1)[:3] = torch.tensor([math.inf, -math.inf, math.nan], dtype=dtype)
            where = f"{shape}, {K} levels, {layout}, {dtype}"
            w, dl = weight_and_gradient(codes, levels, g, backend)
            want, dwant = weight_and_gradient(codes, levels, g, "reference")
            assert same_bits(w, want) and w.stride() == torch.empty_like(codes).stride(), where
            # the reference adds in fp64; the kernels at most 256 in a row in fp32, and trees
            bound = (256 + 12) * torch.finfo(torch.float32).eps * float(g.float().nan_to_num(posinf=0, neginf=0).abs().sum())
            torch.testing.assert_close(dl, dwant, rtol=0, atol=bound + 1e-30, equal_nan=True, msg=where)
            whole = torch.arange(1, codes.numel() + 1, device=DEVICE).fmod(4).view(shape).to(dtype)
            exact = weight_and_gradient(codes, levels, whole, backend)[1]
            assert same_bits(exact, weight_and_gradient(codes, levels, whole, "reference")[1]), where  # no order rounds integers
            expanded = torch.ones((), dtype=dtype, device=DEVICE).expand(shape)
            counts = torch.bincount(codes.flatten().long() % K, minlength=K).float()
            assert same_bits(weight_and_gradient(codes, levels, expanded, backend)[1], counts), where
            count += 1
    return count


def update(backend: str, codes: torch.Tensor, residual: Any, levels: torch.Tensor, g: torch.Tensor, lr: float, rho: float) -> Any:
    with fastq.use_backend(backend):
        assert fastq.direct_update_(codes, residual, levels, g, lr=lr, rho=rho) is codes


def check_update(backend: str, quick: bool = False) -> int:
    count = 0
    for i, (shape, K, layout) in enumerate(cases(quick)):
        levels = drawn_levels(K)
        if K > 2:
            levels[1] = levels[0]  # two levels may fall together
        for dtype in (*DTYPES, None)[i % 2 :: 2]:
            for gradient in DTYPES[: 2 if quick else None]:
                codes = laid_out(drawn_codes(shape, 256), layout)
                residual = None if dtype is None else laid_out(drawn(shape, dtype, 1) * 0.2, layout)
                if codes is None:
                    continue
                g = drawn(shape, gradient, 2)
                if g.numel() > 4:
                    g.view(-1)[:3] = torch.tensor([math.inf, -math.inf, math.nan], dtype=gradient)
                strides = (codes.stride(), None if residual is None else residual.stride())
                want, rest = codes.clone(), None if residual is None else residual.clone()
                kept = g.clone()
                lr, rho = (0.3, 0.7) if dtype is not None else (0.1, 0.0)
                update(backend, codes, residual, levels, g, lr, rho)
                update("reference", want, rest, levels, g, lr, rho)
                where = f"{shape}, {K} levels, {layout}, residual {dtype}, gradient {gradient}"
                assert torch.equal(codes, want), where
                assert residual is None or (rest is not None and same_bits(residual, rest)), where
                assert (codes.stride(), None if residual is None else residual.stride()) == strides, where
                assert same_bits(g, kept), where
                count += 1
    # ties, levels met exactly, and their neighbours
    levels = torch.arange(-4, 4, dtype=torch.float32, device=DEVICE) / 2
    u = torch.arange(-40, 41, dtype=torch.float32, device=DEVICE) / 16
    for moved in (u, u.nextafter(u + 1), u.nextafter(u - 1)):
        codes, zero = torch.full(u.shape, 4, **U8), torch.zeros_like(u)  # code 4 is level 0
        update(backend, codes, moved.clone(), levels, zero, 0.0, 1.0)
        want = torch.full(u.shape, 4, **U8)
        update("reference", want, moved.clone(), levels, zero, 0.0, 1.0)
        assert torch.equal(codes, want)
        distance = (moved[:, None].double() - levels.double()).abs()
        assert torch.equal(codes.long(), distance.argmin(1)), "the first of the nearest levels"
    return count


def test_weights_equal_the_reference() -> None:
    assert check_weight(BACKEND) > 60


def test_updates_equal_the_reference() -> None:
    assert check_update(BACKEND) > 60


def test_triton_equals_the_reference_in_its_interpreter() -> None:
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, str(Path(__file__))], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]


def test_operators() -> None:
    codes, levels, g = drawn_codes((6, 5), 8), drawn_levels(8), drawn((6, 5), torch.bfloat16, 0)
    how = {"test_utils": ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")}
    ops = torch.ops.fastq
    with torch.no_grad():
        for layout in (codes, codes.t(), codes[::2]):
            torch.library.opcheck(ops.direct_weight_forward.default, (layout, levels, torch.bfloat16), **how)
            torch.library.opcheck(ops.direct_weight_backward.default, (g.new_ones(layout.shape), layout, 8), **how)
        for residual, rho in ((torch.zeros(6, 5, device=DEVICE), 0.5), (None, 0.0)):
            torch.library.opcheck(ops.direct_update_.default, (codes.clone(), residual, levels, g, 0.1, rho), **how)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("levels", [2, 16, 256])
def test_sums_do_not_depend_on_threads(threads: int, levels: int) -> None:
    codes, g = drawn_codes((500_000,), levels), drawn((500_000,), torch.float32, 1)
    results = []
    before = torch.get_num_threads()
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            results.append(weight_and_gradient(codes, drawn_levels(levels), g, BACKEND)[1])
    finally:
        torch.set_num_threads(before)
    assert same_bits(*results)


# What the method is


@pytest.mark.parametrize("backend", [BACKEND, "reference"])
def test_the_gradient_is_the_derivative(backend: str) -> None:
    """``w`` is linear in the levels, so a difference quotient is exact where nothing rounds."""
    codes, g = drawn_codes((9, 14), 8), drawn_codes((9, 14), 5).float() - 2
    levels = torch.arange(8, dtype=torch.float32, device=DEVICE) / 4
    _, dl = weight_and_gradient(codes, levels, g, backend)
    for k in range(8):
        moved = levels.clone()
        moved[k] += 0.125
        with fastq.use_backend(backend):
            slope = ((fastq.direct_weight(codes, moved) - fastq.direct_weight(codes, levels)) * g).sum() / 0.125
        assert slope == dl[k]
    assert dl.sum() == g.sum()  # every weight has one level


@pytest.mark.parametrize("backend", [BACKEND, "reference"])
def test_rho_1_with_fixed_levels_is_straight_through_training_of_a_latent_weight(backend: str) -> None:
    """Multiples of 1/64 that fp32 holds exactly, so that equality is exact: ``levels[codes] + residual`` is the latent weight."""
    levels = torch.tensor([-1.5, -0.25, 0.5, 2.0], device=DEVICE)
    latent = (drawn_codes((7, 9), 255).float() - 128) / 64
    codes = nearest_level(latent, levels).to(torch.uint8)
    residual = latent - levels[codes.long()]
    for step in range(40):
        g = (drawn_codes((7, 9), 33, seed=step).float() - 16) / 16
        latent = latent - 0.25 * g
        update(backend, codes, residual, levels, g, 0.25, 1.0)
        assert torch.equal(codes.long(), nearest_level(latent, levels))
        assert torch.equal(levels[codes.long()] + residual, latent)


@pytest.mark.parametrize("backend", [BACKEND, "reference"])
def test_a_latent_weight_that_fp32_rounds_is_followed_within_its_roundings(backend: str) -> None:
    levels = drawn_levels(16)
    latent = drawn((1000,), torch.float32, 3)
    codes = nearest_level(latent, levels).to(torch.uint8)
    residual = latent - levels[codes.long()]
    for step in range(50):
        g = drawn((1000,), torch.float32, 10 + step)
        latent = latent - 0.05 * g
        update(backend, codes, residual, levels, g, 0.05, 1.0)
    kept = levels[codes.long()] + residual
    # five roundings a step, each of half an eps of numbers below 8
    assert (kept - latent).abs().max() <= 50 * 5 * 8 * torch.finfo(torch.float32).eps / 2
    assert (codes.long() == nearest_level(latent, levels)).float().mean() > 0.99


@pytest.mark.parametrize("backend", [BACKEND, "reference"])
def test_rho_0_is_projected_descent(backend: str) -> None:
    levels = drawn_levels(8)
    codes, kept = drawn_codes((50, 3), 8), torch.zeros(50, 3, device=DEVICE)
    bare = codes.clone()
    for step in range(5):
        g = drawn((50, 3), torch.float32, step)
        projected = nearest_level(levels[codes.long()] - 0.3 * g, levels)
        update(backend, codes, kept, levels, g, 0.3, 0.0)
        update(backend, bare, None, levels, g, 0.3, 0.0)
        assert torch.equal(codes.long(), projected) and torch.equal(codes, bare) and not bool(kept.any())


def test_a_residual_of_lower_precision_loses_small_steps_and_says_so_in_numbers() -> None:
    """Why the default residual is fp32: bf16 forgets steps below 1/256 of what it holds."""
    levels = torch.tensor([-1.0, 1.0], device=DEVICE)
    kept = {}
    for dtype in (torch.float32, torch.bfloat16):
        codes, residual = torch.zeros(1, **U8), torch.full((1,), 0.5, dtype=dtype, device=DEVICE)
        for _ in range(600):
            update(BACKEND, codes, residual, levels, torch.full((1,), -1.0, device=DEVICE), 0.0009, 1.0)
        kept[dtype] = int(codes)
    assert kept == {torch.float32: 1, torch.bfloat16: 0}  # 0.5 + 0.54 crosses the middle; in bf16 every step rounds away


# What autograd and the compiler see


def test_a_change_of_codes_that_a_backward_pass_needs_is_noticed() -> None:
    codes, levels = drawn_codes((5, 5), 4), drawn_levels(4).requires_grad_()
    w = fastq.direct_weight(codes, levels)
    fastq.direct_update_(codes, None, levels.detach(), torch.ones_like(w), lr=0.1, rho=0.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        w.sum().backward()


def test_double_backward_raises() -> None:
    levels = drawn_levels(4).requires_grad_()
    w = fastq.direct_weight(drawn_codes((5,), 4), levels)
    (dl,) = torch.autograd.grad(w.square().sum(), levels, create_graph=True)
    with pytest.raises(RuntimeError, match="direct_weight: double backward is not defined"):
        dl.sum().backward()


def test_nothing_but_the_codes_is_kept() -> None:
    kept = []
    codes = drawn_codes((64, 64), 16)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        fastq.direct_weight(codes, drawn_levels(16).requires_grad_())
    assert len(kept) == 1 and kept[0].data_ptr() == codes.data_ptr()


def test_compiled() -> None:
    codes, levels, residual = drawn_codes((40, 3), 4), drawn_levels(4), torch.zeros(40, 3, device=DEVICE)

    def loss(codes: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        return fastq.direct_weight(codes, levels).square().sum()

    def update(codes: torch.Tensor, residual: torch.Tensor, levels: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        fastq.direct_update_(codes, residual, levels, g, lr=0.5, rho=1.0)
        return fastq.direct_weight(codes, levels)

    results = []
    for compiled in (False, True):
        first, second = (torch.compile(f, backend="aot_eager", fullgraph=True) if compiled else f for f in (loss, update))
        a, r, leaf = codes.clone(), residual.clone(), levels.clone().requires_grad_()
        (dl,) = torch.autograd.grad(first(a, leaf), leaf)
        w = second(a, r, levels, drawn((40, 3), torch.float32, 4))
        results.append((dl, r, a.float(), w))
    assert not torch.equal(results[0][2], codes.float())
    assert all(same_bits(x, y) for x, y in zip(*results, strict=True))


def test_the_function_is_public() -> None:
    codes, levels = drawn_codes((6,), 4), drawn_levels(4)
    assert same_bits(DirectWeight.apply(codes, levels), fastq.direct_weight(codes, levels))
    assert "DirectWeight.apply(codes, levels, dtype)" in str(DirectWeight.__doc__)
    for doc in (fastq.direct_weight.__doc__, fastq.direct_update_.__doc__):
        assert doc is not None and "Reconstruction" in doc and "not published" in doc.replace("\n    ", " ")


# Bad input

CODES, LEVELS = torch.zeros(3, 4, **U8), torch.arange(4, dtype=torch.float32, device=DEVICE)
GRAD = torch.zeros(3, 4, device=DEVICE)


@pytest.mark.parametrize("backend", [BACKEND, "reference"])
@pytest.mark.parametrize(
    ("error", "message", "codes", "levels", "keywords"),
    [
        (TypeError, "codes must be uint8, got torch.int64", CODES.long(), LEVELS, {}),
        (TypeError, "codes must be a torch.Tensor, got list", [0, 1], LEVELS, {}),
        (TypeError, r"codes must be a dense \(strided\) tensor, got layout torch.sparse_coo", CODES.to_sparse(), LEVELS, {}),
        (TypeError, "levels must be a torch.Tensor, got float", CODES, 1.0, {}),
        (TypeError, "levels must be float32, got torch.float64", CODES, LEVELS.double(), {}),
        (ValueError, r"levels must have shape \(2\*\*b,\) with b from 1 to 8, got \(3,\)", CODES, LEVELS[:3], {}),
        (ValueError, r"levels must have shape .*, got \(1,\)", CODES, LEVELS[:1], {}),
        (ValueError, r"levels must have shape .*, got \(512,\)", CODES, LEVELS.repeat(128), {}),
        (ValueError, r"levels must have shape .*, got \(2, 2\)", CODES, LEVELS.view(2, 2), {}),
        (ValueError, "levels must be on the device of codes, .*, got meta", CODES, LEVELS.to("meta"), {}),
        (TypeError, "dtype must be torch.float32, torch.bfloat16 or torch.float16, got torch.float64", CODES, LEVELS,
         {"dtype": torch.float64}),
    ],
)  # fmt: skip
def test_bad_weights_are_named(
    backend: str, error: type[Exception], message: str, codes: Any, levels: Any, keywords: dict[str, Any]
) -> None:
    for fn in (fastq.direct_weight, fastq.reference.direct_weight):
        with fastq.use_backend(backend), pytest.raises(error, match=f"direct_weight: {message}"):
            fn(codes, levels, **keywords)


@pytest.mark.parametrize("backend", [BACKEND, "reference"])
@pytest.mark.parametrize(
    ("error", "message", "changed"),
    [
        (TypeError, "codes must be uint8, got torch.int32", {"codes": CODES.int()}),
        (TypeError, "residual must be float32, bfloat16 or float16, got torch.float64", {"residual": GRAD.double()}),
        (ValueError, r"residual must have the shape of codes, \(3, 4\), got \(4, 3\)", {"residual": GRAD.t()}),
        (ValueError, "residual must be on the device of codes, .*, got meta", {"residual": GRAD.to("meta")}),
        (TypeError, "grad must be a torch.Tensor, got NoneType", {"grad": None}),
        (TypeError, "grad must be float32, bfloat16 or float16, got torch.int64", {"grad": GRAD.long()}),
        (ValueError, r"grad must have the shape of codes, \(3, 4\), got \(3,\)", {"grad": GRAD[:, 0]}),
        (TypeError, "lr must be a float, got str", {"lr": "0.1"}),
        (ValueError, "lr must be finite in float32, got inf", {"lr": math.inf}),
        (ValueError, "lr must be finite in float32, got nan", {"lr": math.nan}),
        (ValueError, r"lr must be finite in float32, got 1e\+39", {"lr": 1e39}),
        (ValueError, r"lr must be finite in float32, got -1e\+39", {"lr": -1e39}),
        (ValueError, "lr must be finite in float32, got 1000", {"lr": 10**400}),
        (TypeError, "rho must be a float, got bool", {"rho": True}),
        (ValueError, "rho must be from 0 to 1, got 1.5", {"rho": 1.5}),
        (ValueError, "rho must be from 0 to 1, got -0.1", {"rho": -0.1}),
        (ValueError, "rho must be from 0 to 1, got nan", {"rho": math.nan}),
        (ValueError, "without a residual rho must be 0, got 0.5", {"residual": None, "rho": 0.5}),
        (ValueError, r"codes is expanded \(strides \(0, 0\)\), and cannot be written", {"codes": CODES[:1, :1].expand(3, 4)}),
        (ValueError, r"residual is expanded \(strides \(0, 1\)\)", {"residual": GRAD[:1].expand(3, 4)}),
    ],
)  # fmt: skip
def test_bad_updates_are_named(backend: str, error: type[Exception], message: str, changed: dict[str, Any]) -> None:
    arguments = {"codes": CODES.clone(), "residual": GRAD.clone(), "levels": LEVELS, "grad": GRAD, "lr": 0.1, "rho": 0.5} | changed
    for fn in (fastq.direct_update_, fastq.reference.direct_update_):
        with fastq.use_backend(backend), pytest.raises(error, match=f"direct_update_: {message}"):
            fn(**arguments)


@pytest.mark.parametrize("backend", [BACKEND, "reference"])
def test_levels_that_do_not_ascend_are_refused_where_looking_costs_nothing(backend: str) -> None:
    for levels in (LEVELS.flip(0), LEVELS * math.nan):
        with fastq.use_backend(backend):
            fastq.set_checks(DEVICE != "cpu")  # on a GPU looking waits for the device: in the checking mode alone
            try:
                with pytest.raises(ValueError, match=r"direct_weight: levels must be in ascending order without NaN, got \["):
                    fastq.direct_weight(CODES, levels)
                with pytest.raises(ValueError, match=r"direct_update_: levels must be in ascending order without NaN, got \["):
                    fastq.direct_update_(CODES.clone(), None, levels, GRAD, lr=0.1, rho=0.0)
            finally:
                fastq.set_checks(False)


def test_the_checking_mode_refuses_codes_beyond_the_levels_and_values_that_are_not_finite() -> None:
    codes = CODES + 4
    assert bool((fastq.direct_weight(codes, LEVELS) == 0).all())  # modulo 4
    fastq.set_checks(True)
    try:
        with pytest.raises(ValueError, match="direct_weight: codes must be below the number of levels, 4, got 4"):
            fastq.direct_weight(codes, LEVELS)
        with pytest.raises(ValueError, match=r"direct_weight: levels must be finite, got \[.*inf\]"):
            fastq.direct_weight(CODES, torch.tensor([0.0, math.inf], device=DEVICE))
        with pytest.raises(ValueError, match=r"direct_update_: grad holds NaN \(12 of 12 elements\)"):
            fastq.direct_update_(CODES.clone(), None, LEVELS, GRAD * math.nan, lr=0.1, rho=0.0)
        with pytest.raises(ValueError, match=r"direct_update_: residual holds NaN \(12 of 12 elements\)"):
            fastq.direct_update_(CODES.clone(), GRAD * math.nan, LEVELS, GRAD, lr=0.1, rho=1.0)
    finally:
        fastq.set_checks(False)


def test_what_is_not_finite_shows_in_the_residual() -> None:
    codes, residual = torch.full((3,), 2, **U8), torch.zeros(3, device=DEVICE)
    fastq.direct_update_(codes, residual, LEVELS, torch.tensor([math.nan, math.inf, -math.inf], device=DEVICE), lr=1.0, rho=0.5)
    assert codes.tolist() == [0, 0, 3]
    assert bool(residual[0].isnan()) and residual[1:].tolist() == [-math.inf, math.inf]


if __name__ == "__main__":
    check_weight("triton", quick=True)
    check_update("triton", quick=True)
