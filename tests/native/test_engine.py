"""The integer engine's CPU kernels beyond what every backend promises (test_contract.py): shapes larger than their blocks, the
reference's bits, any number of threads, every instruction set, and what the operators themselves refuse."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from engine_cases import Product, drawn_codes

import fastq
import fastq.ops  # defines the operators, which some tests call as they are
from fastq import _runtime
from fastq.engine import table
from fastq.testing import same_bits

I8 = torch.int8
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def both(function: Any, *arguments: Any, **keywords: Any) -> tuple[Any, Any]:
    """What the CPU kernels and the reference give."""
    found = []
    for backend in ("cpu", "reference"):
        with fastq.use_backend(backend):
            found.append(function(*arguments, **keywords))
    return found[0], found[1]


def test_the_table_gives_cpu_tensors_to_the_cpu_kernels() -> None:
    weight = fastq.pack(torch.ones(3, 4, dtype=I8), 4, scale=1.0)
    for x in (torch.ones(2, 4), torch.ones(2, 4, dtype=I8)):
        problem = table.problem_of("linear", x, weight.operand(), torch.float32, 2)
        assert table.choose(problem).name == "cpu"
        assert same_bits(fastq.int_linear(x, weight), fastq.int_linear(x, weight, kernel="reference"))


# A task has up to 256 rows, a panel 32 columns, a step along K 512 elements, 4096 of 8-bit weights (128 of floating point numbers).
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(
    ("m", "n", "k"), [(64, 32, 512), (65, 33, 513), (260, 67, 1100), (2, 97, 1024), (1, 31, 2049), (5, 17, 4200)]
)
def test_accumulators_of_several_blocks(m: int, n: int, k: int, bits: int) -> None:
    for zeros, x_dtype, x_zero in ((False, I8, 0), (True, torch.uint8, 200)):
        product = Product(m, n, k, bits, torch.uint8, x_dtype, zeros, x_zero_point=x_zero, extreme=k == 1100)
        acc = fastq.int_linear(product.x(), product.weight()[0], x_zero_point=x_zero, out_dtype=torch.int32)
        assert torch.equal(acc.long(), product.accumulators())


# Shape, kernel, stride, padding, dilation: channels in whole tiles, and by lines of the kernel; lines of several tasks, borders of
# their own; lines apart, of which some are not looked at, and pixels apart.
AS_THEY_LIE: Any = (
    ((2, 64, 9, 33), (3, 3), 1, (1, 0, 2, 1), 1), ((1, 128, 5, 4), (2, 3), 1, (2, 2, 0, 0), 2),
    ((3, 64, 1, 1), (3, 3), 1, (1, 1, 1, 1), 1), ((1, 64, 40, 3), (1, 1), 1, (0, 0, 0, 0), 1),
    ((1, 64, 3, 200), (3, 1), 1, (0, 3, 1, 1), 1), ((1, 64, 20, 20), (3, 3), 1, (9, 9, 9, 9), 9),
    ((2, 64, 9, 6), (3, 3), 1, (1, 0, 2, 1), 1), ((1, 64, 12, 12), (3, 3), 1, (2, 2, 2, 2), 2),
    ((2, 64, 9, 8), (1, 1), 2, (0, 0, 0, 0), 1), ((1, 64, 13, 11), (3, 3), 2, (1, 1, 1, 1), 1),
    ((1, 64, 9, 9), (2, 1), (3, 2), (3, 0, 1, 2), 1), ((1, 64, 14, 9), (3, 2), (2, 3), (0, 1, 2, 2), (2, 1)),
    ((2, 3, 23, 21), (7, 7), 2, (3, 3, 3, 3), 1), ((1, 16, 8, 8), (3, 3), 1, (1, 1, 1, 1), 1),
    ((1, 1, 9, 70), (5, 3), (3, 1), (2, 0, 0, 2), 1), ((1, 96, 7, 6), (3, 3), 2, (1, 1, 0, 0), 1),
    ((1, 37, 6, 7), (2, 2), (1, 2), (1, 0, 0, 1), (2, 1)), ((1, 5, 6, 6), (1, 1), (3, 2), (0, 0, 0, 0), 1),
    ((1, 3, 1, 5000), (1, 3), 1, (1, 1, 0, 0), 1), ((1, 64, 2, 4200), (1, 1), 1, (0, 0, 0, 0), 1),
    ((1, 2, 300, 1), (3, 1), 1, (0, 0, 1, 1), 1),
)  # fmt: skip


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_images_that_are_read_as_they_lie(bits: int) -> None:
    """Without a copy for each tap."""
    for shape, kernel, stride, padding, dilation in AS_THEY_LIE:
        for x_dtype, zero in ((I8, -3), (torch.uint8, 200)):
            x, codes = drawn_codes(shape, 8, x_dtype), drawn_codes((35, shape[1], *kernel), bits, torch.uint8)
            given = drawn_codes((35,), bits, torch.uint8).int()
            keywords: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "x_zero_point": zero}
            for weight in (fastq.pack(codes, bits, scale=1.0, zero_point=given), fastq.pack(codes, bits, scale=1.0)):
                acc, wanted = both(fastq.int_conv2d, x, weight, out_dtype=torch.int32, **keywords)
                assert torch.equal(acc, wanted), (shape, kernel)
                out = {"out_scale": 300.0, "activation": "relu", "residual": normal(*acc.shape) * 1000}
                assert same_bits(*both(fastq.int_conv2d, x, weight, x_scale=0.5, **keywords, **out))
                assert same_bits(*both(fastq.int_conv2d, x, weight, x_scale=0.5, out_scale=90.0, **keywords))


@pytest.mark.parametrize(
    "x", [torch.zeros(3, 0, dtype=I8), torch.zeros(3, 0), torch.zeros(3, 0).bfloat16()], ids=lambda x: str(x.dtype)
)
@pytest.mark.parametrize("group_size", [None, 16])
def test_rows_of_no_element(x: torch.Tensor, group_size: int | None) -> None:
    scale = torch.ones(5, 0) if group_size else torch.ones(5)
    weight = fastq.pack(torch.zeros(5, 0, dtype=torch.uint8), 4, scale=scale, group_size=group_size)
    bias = torch.arange(5.0)
    for found in both(fastq.int_linear, x, weight, bias=bias):
        assert torch.equal(found.float(), bias.expand(3, 5))
    image = fastq.pack(torch.zeros(5, 0, 3, 3, dtype=I8), 8, scale=1.0)
    empty = x.new_zeros((1, 0, 4, 4))
    for found in both(fastq.int_conv2d, empty, image, padding=1, bias=bias):
        assert torch.equal(found.float(), bias.view(1, 5, 1, 1).expand(1, 5, 4, 4))


@pytest.mark.parametrize("zero_point", [None, 3])
def test_sums_next_to_half_a_code_have_the_codes_of_the_division(zero_point: int | None) -> None:
    """Sums become codes by one factor, ``x_scale * scale / out_scale``, where there is a scale alone: all sums that one can be."""
    x = torch.arange(-128, 128, dtype=torch.int16).to(I8).view(-1, 1).expand(256, 64).contiguous()
    x[:, 1:] = 0
    codes = torch.arange(-40, 40, dtype=I8).view(-1, 1).expand(80, 64).contiguous()
    zero = None if zero_point is None else torch.full((80,), zero_point, dtype=torch.int32)
    for x_scale, scale, out_scale in (
        (0.3, 0.1, 0.06), (0.7, 1 / 3, 7 / 15), (1.1, 0.01, 0.022), (1e-20, 1e-20, 2e-40), (1e20, 1e18, 2e29), (1e-38, 1e-2, 2e-29),
        (0.3, 0.1, 0.02), (1.7, 3.0, 0.34),
    ):  # fmt: skip
        weight = fastq.pack(codes, 8, scale=scale, zero_point=zero)
        keywords = {"x_scale": x_scale, "out_scale": out_scale}
        for more in ({}, {"activation": "relu"}, {"out_dtype": torch.uint8, "out_zero_point": 7, "out_range": (3, 200)}):
            assert torch.equal(*both(fastq.int_linear, x, weight, **keywords, **more)), (x_scale, scale, out_scale, more)


def test_codes_next_to_half_a_code_are_those_of_the_division() -> None:
    """The kernels multiply by an inverse where that gives the same code: numbers on, above and below all ties, and far beyond."""
    for scale in (0.1, 3.0, 1 / 3, 1.7e-31, 2.0**-130, 2.0**120):
        ties = (torch.arange(-300, 300, dtype=torch.float64) + 0.5) * torch.tensor(scale, dtype=torch.float32).double()
        middle = ties.to(torch.float32)
        values = torch.cat([middle, middle.nextafter(torch.tensor(torch.inf)), middle.nextafter(torch.tensor(-torch.inf))])
        special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 3e38, -3e38, 1e-45])
        bias = torch.cat([values, special]).repeat(2)
        weight = fastq.pack(torch.zeros(len(bias), 8, dtype=I8), 8, scale=1.0)
        x = torch.ones(3, 8, dtype=I8)
        for range_, zero in (((-128, 127), 0), ((-100, 90), 7)):
            for activation in (None, "relu"):
                call = {"bias": bias, "out_scale": scale, "out_range": range_, "out_zero_point": zero, "activation": activation}
                assert same_bits(*both(fastq.int_linear, x, weight, **call))


def test_products_of_several_threads_and_libraries_at_once() -> None:
    """Each has its own memory and its own tile registers, also right after torch's products, which use them too."""
    cases = []
    for seed, (m, n, k, bits) in enumerate([(1, 70, 300, 4), (40, 33, 520, 8), (300, 64, 200, 3), (17, 200, 1030, 2)]):
        product = Product(m, n, k, bits, I8, I8, seed % 2 == 0, x_zero_point=0, extreme=False)
        a, b = normal(33, k, seed=seed).bfloat16(), normal(k, 48, seed=seed + 9).bfloat16()
        cases.append((product.x(), product.weight()[0], product.accumulators(), a, b, a @ b))
    problems: list[int] = []

    def run(first: int) -> None:
        for turn in range(40):
            x, weight, wanted, a, b, ab = cases[(first + turn) % len(cases)]
            if not torch.equal(fastq.int_linear(x, weight, out_dtype=torch.int32).long(), wanted) or not torch.equal(a @ b, ab):
                problems.append(turn)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, range(4)))
    assert not problems


REFUSED_STATE = """
import ctypes
class Stack(ctypes.Structure):
    _fields_ = [("memory", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]
memory = ctypes.create_string_buffer(8192)
assert ctypes.CDLL(None).sigaltstack(ctypes.byref(Stack(ctypes.addressof(memory), 0, 8192)), None) == 0
from fastq import _runtime
print(_runtime.best()[0], _runtime.isa())
print(_runtime.best()[1])
"""


@pytest.mark.skipif(_runtime.isa() != "amx", reason="no AMX runs here that could be refused")
def test_without_the_systems_leave_vnni_serves_and_says_why() -> None:
    # Linux gives the state of tiles to no process whose signals would find no room for it on their stack.
    done = subprocess.run(
        [sys.executable, "-c", REFUSED_STATE], capture_output=True, text=True, env={**os.environ, "FASTQ_CPU_ISA": ""}
    )
    assert done.stdout.splitlines()[0] == "vnni vnni", done.stderr
    assert "refuses the state of AMX tiles" in done.stdout


def test_every_combination_of_extremes_at_the_longest_k() -> None:
    # of |x - zx| * |code - z| = 255 * 255 the last K that int32 holds; both signs, and zeros at the other end
    k = (2**31 - 1) // (255 * 255)
    for x_code, x_zero in ((0, 255), (255, 0)):
        x = torch.full((2, k), x_code, dtype=torch.uint8)
        for code, zero in ((-128, 127), (127, -128)):
            weight = fastq.pack(torch.full((3, k), code, dtype=I8), 8, scale=1.0, zero_point=zero)
            acc = fastq.int_linear(x, weight, x_zero_point=x_zero, out_dtype=torch.int32)
            assert acc.tolist() == [[k * (x_code - x_zero) * (code - zero)] * 3] * 2


EPILOGUES: list[dict[str, Any]] = [
    {"out_dtype": dtype, "activation": activation} for dtype in FLOATS for activation in (None, "relu", "gelu", "silu")
] + [
    {"out_dtype": I8, "out_scale": 0.7, "activation": "relu"},
    {"out_dtype": torch.uint8, "out_scale": 0.3, "out_range": (0, 15), "out_zero_point": 4},
    {"out_dtype": I8, "out_scale": 0.9, "out_range": (-8, 7), "out_zero_point": -3},
]


@pytest.mark.parametrize("keywords", EPILOGUES, ids=lambda e: f"{e['out_dtype']}-{e.get('activation')}-{e.get('out_scale')}")
def test_epilogues_have_the_references_bits(keywords: dict[str, Any]) -> None:
    product = Product(70, 45, 96, 4, zeros=True, x_zero_point=3)
    parts = {"bias": normal(45, seed=1), "multiplier": normal(45, seed=2), "addend": normal(45, seed=3)}
    for i, dtype in enumerate((None, *FLOATS)):
        given = dict(list(parts.items())[: i if i else 3])
        if dtype is not None:
            given["residual"] = (normal(70, 45, seed=4) * 9).to(dtype)
        x_scale = normal(70, seed=5) if i % 2 else 0.01
        own, wanted = both(fastq.int_linear, product.x(), product.weight()[0], x_scale=x_scale, x_zero_point=3, **given, **keywords)
        if keywords.get("activation") in ("gelu", "silu"):
            # fp32: erf and exp are a few ulp from torch's, relative to the argument's size (gelu cancels near -5); then one
            # rounding to the output's dtype, which may fall to the other side
            size = wanted.double().abs().max()
            assert (own.double() - wanted.double()).abs().max() <= (4 * 2**-24 + torch.finfo(own.dtype).eps) * size
        else:
            assert same_bits(own, wanted)


@pytest.mark.parametrize("group_size", [16, 112, 528])
def test_groups_have_the_references_bits(group_size: int) -> None:
    for bits, k in ((4, 1100), (8, 97), (2, 528)):
        product = Product(9, 35, k, bits, zeros=True, granularity="group", group_size=group_size, x_zero_point=-7)
        own, wanted = both(fastq.int_linear, product.x(), product.weight()[0], x_scale=0.1, x_zero_point=-7, activation="relu")
        assert same_bits(own, wanted)  # the order of the groups is the reference's, too


@pytest.mark.parametrize("dtype", FLOATS)
def test_floating_point_products_of_several_blocks(dtype: torch.dtype) -> None:
    for m, n, k, group_size in ((67, 35, 777, None), (5, 40, 600, 48), (1, 33, 513, 272)):
        granularity = "group" if group_size else "channel"
        weight, codes = Product(m, n, k, 4, zeros=True, granularity=granularity, group_size=group_size).weight()
        scale = weight.scale.repeat_interleave(group_size, 1)[:, :k] if group_size else weight.scale.view(-1, 1)
        x, values = normal(m, k).to(dtype), codes.double() * scale.double()
        y = fastq.int_linear(x, weight, out_dtype=torch.float32).double()
        exact, size = F.linear(x.double(), values), F.linear(x.double().abs(), values.abs())
        # fp32: K products and additions, whatever their order, and the scale's rounding
        assert bool(((y - exact).abs() <= (k + 2) * 2**-24 * size).all())


@pytest.mark.parametrize("dtype", FLOATS)
def test_sums_of_small_whole_numbers_are_exact(dtype: torch.dtype) -> None:
    # everything is below 2**24, so that the order of additions is no excuse
    shapes = ((1, 33, 777, None), (2, 40, 100, None), (5, 16, 64, 32), (17, 70, 513, None), (40, 35, 520, 96), (33, 19, 40, 16))
    for index, (m, n, k, group_size) in enumerate(shapes * 2):
        granularity = "group" if group_size else "channel"
        bits, zeros = (4, 8, 3, 2)[index % 4], index >= len(shapes)
        weight, codes = Product(m, n, k, bits, zeros=zeros, granularity=granularity, group_size=group_size).weight()
        weight.scale.fill_(1.0)
        x = drawn_codes((m, k), 4, I8, 1).to(dtype)
        assert torch.equal(fastq.int_linear(x, weight, out_dtype=torch.float32).double(), x.double() @ codes.double().t())


@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("dtype", FLOATS)
def test_products_of_floating_point_inputs_are_exact(dtype: torch.dtype, rows: int) -> None:
    # of each row one number that is not 0, by powers of two: no bit of it may be lost
    numbers = (normal(40) * 2.0 ** torch.arange(-14, 6).repeat(2)).to(dtype)
    numbers[0], numbers[1] = torch.finfo(dtype).max / 4, torch.finfo(torch.float16).tiny / 1024 * 333  # in fp16 a denormal
    x = torch.diag(numbers)
    codes = torch.tensor([-4, -2, -1, 1, 2], dtype=I8)[torch.arange(33 * 40).view(33, 40) * 7 % 5]
    for bits in (3, 4, 8):
        weight = fastq.pack(codes, bits, scale=1.0)
        y = torch.cat([fastq.int_linear(part, weight, out_dtype=torch.float32) for part in x.split(rows)])
        assert torch.equal(y.double(), F.linear(x.double(), codes.double()))


@pytest.mark.parametrize("rows", [1, 40])
@pytest.mark.parametrize("dtype", FLOATS)
def test_infinities_nan_and_denormals_of_floating_point_inputs(dtype: torch.dtype, rows: int) -> None:
    codes = torch.tensor([[1] * 40, [-8] * 40, [0] * 40], dtype=I8)
    weight = fastq.pack(codes, 4, scale=1.0)
    special = torch.tensor([float("inf"), -float("inf"), float("nan")]).to(dtype)
    if dtype == torch.float32:
        lowest_bit = torch.tensor([0x7F800001], dtype=torch.int32).view(torch.float32)  # a NaN whose upper half is an infinity
        special = torch.cat([special, lowest_bit])
    for number in special:
        x = torch.ones(rows, 40, dtype=dtype)
        x[rows // 2, 21] = number
        y = fastq.int_linear(x, weight, out_dtype=torch.float32).double()
        want = (x.double()[:, None] * codes.double()).sum(2)
        assert torch.equal(y.nan_to_num(nan=1e300), want.nan_to_num(nan=1e300))
    x = torch.full((rows, 40), 2.0**-130 if dtype != torch.float16 else 2.0**-24).to(dtype)
    y, want = fastq.int_linear(x, weight, out_dtype=torch.float32).double(), F.linear(x.double(), codes.double())
    # tiles count numbers below 2**-126, and sums, as 0
    assert bool(((y - want).abs() <= (0 if dtype == torch.float16 else 2.0**-126 * codes.double().abs().sum(1))).all())


IMAGES = [
    # B, C, H, W, O, groups, kernel, keywords
    (1, 64, 9, 10, 40, 1, (3, 3), {"padding": 1}),
    (3, 3, 17, 15, 33, 1, (7, 5), {"padding": (4, 3, 2, 1), "stride": (2, 3)}),
    (1, 24, 12, 9, 66, 3, (2, 3), {"dilation": (3, 2), "padding": (2, 2, 3, 3)}),
    (1, 150, 7, 8, 150, 150, (3, 3), {"padding": 1}),
    (1, 131, 8, 7, 262, 131, (3, 2), {"stride": 2, "dilation": (2, 1), "padding": 1}),
    (1, 2, 9, 9, 2, 2, (7, 7), {"padding": 3}),
    (1, 1, 6, 6, 5, 1, (3, 3), {"padding": "same"}),
]


@pytest.mark.parametrize("index", range(len(IMAGES)))
def test_convolutions_have_the_references_bits(index: int) -> None:
    b, c, h, w, o, groups, kernel, keywords = IMAGES[index]
    codes = drawn_codes((o, c // groups, *kernel), (4, 8, 3, 2)[index % 4], I8, 1, index % 3 == 0)
    zero = drawn_codes((o,), (4, 8, 3, 2)[index % 4], I8, 2).int() if index % 2 else None
    weight = fastq.pack(codes, (4, 8, 3, 2)[index % 4], scale=normal(o).abs() + 0.1, zero_point=zero)
    x = drawn_codes((b, c, h, w), 8, torch.uint8, 3)
    shape = fastq.int_conv2d(x, weight, groups=groups, **keywords).shape
    residual = normal(*shape).half()
    for extra in (
        {"out_dtype": torch.int32},
        {"x_scale": 0.1, "bias": normal(o, seed=4), "residual": residual, "activation": "relu"},
        {"x_scale": 0.1, "out_scale": 21.0, "multiplier": normal(o, seed=5), "addend": normal(o, seed=6)},
    ):
        own, wanted = both(fastq.int_conv2d, x, weight, x_zero_point=111, groups=groups, **keywords, **extra)
        assert same_bits(own, wanted) and own.is_contiguous(memory_format=torch.channels_last)
    number = normal(b, c, h, w).to(FLOATS[index % 3])
    own, wanted = both(fastq.int_conv2d, number, weight, groups=groups, out_dtype=torch.float32, **keywords)
    size = fastq.int_conv2d(number.abs(), magnitudes(weight), groups=groups, out_dtype=torch.float32, **keywords)
    # fp32 sums of k products in any order; the reference's are fp64, rounded once
    assert bool(((own - wanted).abs() <= (weight.k + 3) * 2**-24 * size).all())


def magnitudes(weight: fastq.PackedWeight) -> fastq.PackedWeight:
    """``|code - zero_point|`` as 8-bit codes."""
    codes = weight.unpack().int()
    if weight.zero_point is not None:
        codes -= weight.zero_point.view(-1, 1, 1, 1)
    return fastq.pack(codes.abs().to(torch.uint8), 8, scale=weight.scale)


@pytest.mark.parametrize("dtype", FLOATS)
def test_codes_have_the_references_bits(dtype: torch.dtype) -> None:
    odd = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.5, -0.5, 1.5, -0.0, 2.5])
    for shape in ((0,), (1,), (15,), (3, 4097), (2, 3, 5, 7)):
        x = (normal(*shape) * 40).to(dtype)
        x.view(-1)[: min(x.numel(), 8)] = odd[: min(x.numel(), 8)]
        for t in (x, x.to(memory_format=torch.channels_last) if x.dim() == 4 else x, x.transpose(0, -1), x[..., ::2]):
            for keywords in (
                {"scale": 1.0},
                {"scale": 0.3, "offset": -2.0, "zero_point": 100, "range": (3, 200), "dtype": torch.uint8},
                {"scale": -0.7, "range": (-7, 7), "zero_point": 2},
            ):
                own, wanted = both(fastq.quantize, t, **keywords)
                assert torch.equal(own, wanted) and own.stride() == torch.empty_like(t).stride()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("bits", [2, 5, 8])
def test_codes_per_token_have_the_references_bits(bits: int, dtype: torch.dtype) -> None:
    x = (normal(9, 1037) * 3).to(dtype)
    x[0] = 0
    x[1, 1036], x[2, 5], x[3, 0] = float("nan"), float("inf"), -float("inf")
    for rows in (x, x[:, :1], x[:, :0], x[:0], x[:, ::3], torch.cat([x] * 5)):
        own, wanted = both(fastq.quantize_per_token, rows, bits=bits)
        assert torch.equal(own[0], wanted[0]) and same_bits(own[1], wanted[1])


def everything() -> Iterator[torch.Tensor]:
    """Results of all kernels, each with several tasks."""
    for group_size in (None, 48):
        product = Product(130, 101, 700, 4, zeros=True, granularity="group" if group_size else "channel", group_size=group_size)
        weight, _ = product.weight()
        yield fastq.int_linear(product.x(), weight, x_scale=0.1, activation="silu")
        yield fastq.int_linear(normal(130, 700), weight)
    for o, c, groups in ((70, 16, 1), (200, 200, 200)):
        weight = fastq.pack(drawn_codes((o, c // groups, 3, 3), 8, I8, 1), 8, scale=0.5)
        yield fastq.int_conv2d(drawn_codes((2, c, 20, 20), 8, I8, 2), weight, padding=1, groups=groups, out_scale=99.0)
        yield fastq.int_conv2d(normal(2, c, 20, 20), weight, padding=1, groups=groups)
    yield fastq.quantize(normal(100_000), 0.1)
    yield from fastq.quantize_per_token(normal(300, 333))


def test_any_number_of_threads_gives_the_same_bits() -> None:
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(list(everything()))
    finally:
        torch.set_num_threads(before)
    assert all(same_bits(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


LEVEL = """
import sys, torch
sys.path[:0] = sys.argv[1:3]
import fastq, test_engine
for m, n, k in ((65, 33, 513), (1, 31, 2049)):
    for bits in (2, 3, 4, 8):
        test_engine.test_accumulators_of_several_blocks(m, n, k, bits)
for bits in (3, 8):
    test_engine.test_images_that_are_read_as_they_lie(bits)
test_engine.test_codes_next_to_half_a_code_are_those_of_the_division()
test_engine.test_sums_next_to_half_a_code_have_the_codes_of_the_division(None)
test_engine.test_products_of_several_threads_and_libraries_at_once()
for keywords in test_engine.EPILOGUES:
    test_engine.test_epilogues_have_the_references_bits(keywords)
for index in (0, 4):
    test_engine.test_convolutions_have_the_references_bits(index)
for dtype in test_engine.FLOATS:
    test_engine.test_floating_point_products_of_several_blocks(dtype)
    test_engine.test_sums_of_small_whole_numbers_are_exact(dtype)
    test_engine.test_codes_have_the_references_bits(dtype)
    test_engine.test_codes_per_token_have_the_references_bits(8, dtype)
print(test_engine._runtime.isa())
"""


@pytest.mark.parametrize("level", ["v2", "v3", "v4", "vnni", "amx"])
def test_every_instruction_set(level: str) -> None:
    order = ("v2", "v3", "v4", "vnni", "amx")
    runs = order.index(level) <= order.index(_runtime.best()[0])
    built = json.loads((Path(fastq.__file__).parent / "lib" / "build.json").read_text())["cpu"]  # fewer in a build for development
    if not runs or (level if level[0] == "v" and level[1:].isdigit() else "v4") not in built or level == _runtime.isa():
        return  # tests/native/test_library.py looks at its code; or it served the tests above
    here = Path(__file__).parent
    environment = {**os.environ, "FASTQ_CPU_ISA": level, "FASTQ_BACKEND": ""}
    command = [sys.executable, "-c", LEVEL, str(here), str(here.parent)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and done.stdout.strip() == level, done.stderr[-3000:]


# What stands between a caller of the operators and foreign memory: each row changes one argument of a call that works.
LINEAR = {
    "x": torch.ones(3, 40, dtype=I8), "weight": torch.zeros(1, 512, dtype=torch.uint8), "weight_scale": torch.ones(5),
    "weight_zero": None, "weight_sums": torch.zeros(5, dtype=torch.int32), "form": [5, 40, 4, 0], "x_scale": None,
    "x_zero_point": 0, "bias": None, "multiplier": None, "addend": None, "residual": None, "activation": 0,
    "out_dtype": torch.float32, "out_scale": None, "out_codes": [0, 0, 0],
}  # fmt: skip
CONVOLUTION = {
    **LINEAR, "x": torch.ones(2, 4, 6, 7, dtype=I8).contiguous(memory_format=torch.channels_last),
    "weight": torch.zeros(1, 512, dtype=torch.uint8), "weight_scale": torch.ones(6), "form": [6, 18, 4, 0],
    "weight_sums": torch.zeros(6, dtype=torch.int32), "window": [2, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 2],
}  # fmt: skip

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"form": [5, 40, 4]}, "form must be four numbers"),
    ({"form": [5, 40, 5, 0]}, "form must have 2, 3, 4 or 8 bits, got 5"),
    ({"form": [5, -1, 4, 0]}, "form must have n and k from 0"),
    ({"form": [5, 2**40, 4, 0]}, "form must have n and k from 0"),
    ({"form": [5, 40, 4, 24]}, "a multiple of 16 as group_size"),
    ({"form": [5, 40, 8, 0]}, r"weight must have shape \(1, 1024\) for 5 rows of 40 fields of 8 bits, got \(1, 512\)"),
    ({"form": [17, 40, 4, 0]}, r"weight must have shape \(2, 512\)"),
    ({"form": [5, 65, 4, 0]}, r"weight must have shape \(1, 1024\)"),
    ({"form": [5, 40, 4, 16]}, "weight_scale must have 15 elements, got"),
    ({"weight": torch.zeros(1, 1024, dtype=torch.uint8)[:, ::2]}, "weight must be contiguous"),
    ({"weight": torch.zeros(1, 512, dtype=I8)}, "weight must be Byte"),
    ({"weight_scale": torch.ones(4)}, "weight_scale must have 5 elements or one"),
    ({"weight_scale": torch.ones(5, dtype=torch.float64)}, "weight_scale must be Float"),
    ({"weight_zero": torch.zeros(1, dtype=torch.int32)}, "weight_zero must have 5 elements"),
    ({"weight_zero": torch.zeros(5)}, "weight_zero must be Int"),
    ({"weight_sums": torch.zeros(4, dtype=torch.int32)}, "weight_sums must have 5 elements"),
    ({"x": torch.ones(3, 41, dtype=I8)}, r"x must have shape \(M, 40\), got \(3, 41\)"),
    ({"x": torch.ones(40, dtype=I8)}, r"x must have shape \(M, 40\)"),
    ({"x": torch.ones(40, 3, dtype=I8).t()}, "x must be contiguous"),
    ({"x": torch.ones(3, 40, dtype=torch.int32)}, "x must be int8, uint8, float32, bfloat16 or float16"),
    ({"x": torch.ones(3, 40, dtype=torch.float64)}, "x must be int8, uint8, float32, bfloat16 or float16"),
    ({"x_scale": torch.ones(2)}, "x_scale must have 3 elements or one"),
    ({"x_zero_point": 128}, "x_zero_point must be a code of Char, got 128"),
    ({"x": torch.ones(3, 40), "x_scale": torch.ones(1)}, "are for codes, and x is Float"),
    ({"bias": torch.ones(1)}, "bias must have 5 elements"),
    ({"multiplier": torch.ones(5).half()}, "multiplier must be Float"),
    ({"addend": torch.ones(10)[::2]}, "addend must be contiguous"),
    ({"residual": torch.ones(5, 3).t()}, "residual must be contiguous"),
    ({"residual": torch.ones(3, 4)}, "residual must have the output's shape"),
    ({"residual": torch.ones(3, 5, dtype=I8)}, "residual must be float32, bfloat16 or float16"),
    ({"activation": 4}, "activation must be a number from 0 to 3, got 4"),
    ({"out_dtype": torch.float64}, "out_dtype must be float32, bfloat16, float16, int8, uint8 or int32"),
    ({"out_dtype": I8}, "out_scale must be given for codes"),
    ({"out_dtype": I8, "out_scale": torch.ones(2)}, "out_scale must have 1 elements"),
    ({"out_dtype": I8, "out_scale": torch.ones(1), "out_codes": [0, 128, 0]}, "within -128 to 127, got 0, 0 and 128"),
    ({"out_dtype": I8, "out_scale": torch.ones(1), "out_codes": [0]}, "codes must be three numbers"),
    ({"x": torch.ones(3, 40), "out_dtype": torch.int32}, "out_dtype int32 is the accumulators of codes"),
]


@pytest.mark.parametrize(("changed", "message"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_a_linear_call_that_lies_about_its_tensors_is_refused(changed: dict[str, Any], message: str) -> None:
    assert torch.ops.fastq.int_linear(**LINEAR).shape == (3, 5)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fastq.int_linear(**{**LINEAR, **changed})


def window(**changed: int) -> dict[str, list[int]]:
    names = ("channels", "kh", "kw", "sh", "sw", "left", "right", "top", "bottom", "dh", "dw", "groups")
    return {"window": [changed.get(name, value) for name, value in zip(names, CONVOLUTION["window"], strict=True)]}


REFUSED_WINDOWS: list[tuple[dict[str, Any], str]] = [
    ({"window": [1] * 11}, "window must be 12 numbers"),
    (window(sh=0), "window must have numbers from 1 to .*, got 0 at place 3"),
    (window(left=-1), "window must have numbers from 0 to"),
    (window(kh=4), "form must have k = 2 \\* 4 \\* 3 by the window, got 18"),
    (window(kh=2**31 - 1, kw=2**31 - 1), "form must have k ="),
    (window(groups=1), "x must have 2 channels"),
    (window(groups=4, channels=1), "form must have k ="),
    (window(dh=4), "the kernel must not exceed the padded image"),
    (window(dw=2**31 - 1), "the kernel must not exceed the padded image"),
    ({"form": [6, 18, 4, 16], "weight_scale": torch.ones(6, 2), "weight_sums": torch.zeros(12, dtype=torch.int32)}, "no group_s"),
    ({"x": torch.ones(2, 4, 6, 7, dtype=I8)}, "x must be contiguous, with the channels last"),
    ({"x": torch.ones(2, 4, 6, dtype=I8)}, r"x must have shape \(B, C, H, W\)"),
    ({"x_scale": torch.ones(84)}, "x_scale must have 1 elements"),
    ({"residual": torch.ones(2, 6, 6, 7)}, "residual must be contiguous, with the channels last"),
    ({"form": [5, 18, 4, 0], "weight_scale": torch.ones(1),
      "weight_sums": torch.zeros(5, dtype=torch.int32)}, "n divided by the 2 groups"),
]  # fmt: skip


@pytest.mark.parametrize(("changed", "message"), REFUSED_WINDOWS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_convolution_that_lies_about_its_tensors_is_refused(changed: dict[str, Any], message: str) -> None:
    assert torch.ops.fastq.int_conv2d(**CONVOLUTION).shape == (2, 6, 6, 7)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fastq.int_conv2d(**{**CONVOLUTION, **changed})


def test_operators_of_codes_refuse_what_does_not_fit() -> None:
    x, one = torch.ones(3, 4), torch.ones(1)
    for arguments, message in (
        ((x.double(), one, None, [-128, 127, 0], I8), "x must be float32, bfloat16 or float16"),
        ((x, torch.ones(2), None, [-128, 127, 0], I8), "scale must have 1 elements"),
        ((x, one, torch.ones(2), [-128, 127, 0], I8), "offset must have 1 elements"),
        ((x, one, None, [0, 256, 0], torch.uint8), "within 0 to 255"),
        ((x, one, None, [0, 9, 10], torch.uint8), "codes must be lowest <= zero-point <= highest"),
        ((x, one, None, [0, 9, 1], torch.int32), "dtype must be int8 or uint8"),
    ):
        with pytest.raises(RuntimeError, match=message):
            torch.ops.fastq.quantize(*arguments)
    for arguments, message in (((x[0], 8), r"x must have shape \(M, K\)"), ((x, 1), "bits must be from 2 to 8"), ((x, 9), "bits")):
        with pytest.raises(RuntimeError, match=message):
            torch.ops.fastq.quantize_per_token(*arguments)
    with pytest.raises(RuntimeError, match="quantize is a private operator without an autograd formula"):
        torch.ops.fastq.quantize(x.requires_grad_(), one, None, [-128, 127, 0], I8)
