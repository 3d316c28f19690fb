"""The integer engine's CUDA kernels without a GPU: compiled as plain C++ (tests/cuda/emulated.py), matrix products written out
over the fragments that the PTX ISA describes. Held against int64 arithmetic and the reference.

What stays unproven here is the instruction itself, the launch, and the speed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
from emulated import library
from engine_cases import Product, drawn_codes, products

import fastq.ops
from fastq.engine import table
from fastq.engine.call import Epilogue, Operand
from fastq.packing import pack_tiles, unpack_blocks
from fastq.reference import int_gemm as reference
from fastq.testing import same_bits

pytestmark = pytest.mark.source
ROWS = (1, 2, 7, 8, 9, 15, 16)


@pytest.fixture(scope="module")
def operators() -> Any:
    """The operators of the integer engine that the CUDA library has."""
    space = torch.library.Library("fastq_engine_emulated", "DEF")
    for name in ("int_conv2d", "int_linear", "quantize", "quantize_per_token"):
        space.define(str(getattr(torch.ops.fastq, name).default._schema).removeprefix("fastq::"))
    torch.ops.load_library(str(library(["codes.cu", "decode.cu"], ["decode", "elementwise", "gemm"], "decode_emulation.cpp")))
    yield torch.ops.fastq_engine_emulated
    del space


@pytest.fixture
def emulated(operators: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a kernel for ``fastq.int_linear``: this one, given the layout of a GPU."""

    def linear(x: torch.Tensor, w: Operand, e: Epilogue) -> torch.Tensor:
        tiles = pack_tiles(unpack_blocks(w.data, w.bits, w.n, w.k), w.bits)
        found: torch.Tensor = operators.int_linear(x, *w._replace(data=tiles).flat(), *e.flat())
        return found

    kernel = table.KERNELS["cuda_decode"]._replace(name="emulated", backend="reference", linear=linear)
    monkeypatch.setitem(table.KERNELS, "emulated", kernel)
    yield "emulated"


@pytest.mark.parametrize("m", ROWS)
def test_accumulators_equal_int64_arithmetic(emulated: str, m: int) -> None:
    for turn in range(2):  # products() takes its turns by the place of the row
        for product in products(rows=(m, m)[: turn + 1]):
            weight, _ = product.weight()
            acc = fastq.int_linear(product.x(), weight, x_zero_point=product.x_zero_point, out_dtype=torch.int32, kernel=emulated)
            assert torch.equal(acc.long(), product.accumulators()), product


def test_no_k_in_groups_reads_no_scale(emulated: str) -> None:
    weight = fastq.pack(torch.zeros(3, 0, dtype=torch.int8), 4, scale=torch.zeros(3, 0), group_size=16)
    y = fastq.int_linear(torch.zeros(2, 0, dtype=torch.int8), weight, bias=torch.ones(3), kernel=emulated)
    assert torch.equal(y, torch.ones(2, 3))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("x_dtype", [torch.int8, torch.uint8], ids=str)
def test_accumulators_over_several_tiles_of_a_warp_and_parts_of_k(emulated: str, bits: int, x_dtype: torch.dtype) -> None:
    """4 SMs are emulated: 20 rows of the weight are 2 blocks, and K is split; 130 rows are 9, and a warp has 7 tiles, more than
    are on their way at a time."""
    tile = 64 * 8 // bits
    for m, n, k in ((11, 20, 39 * tile + 5), (3, 130, 55 * tile + 7)):
        product = Product(m, n, k, bits, torch.int8, x_dtype, True, x_zero_point=3)
        weight, _ = product.weight()
        acc = fastq.int_linear(product.x(), weight, x_zero_point=3, out_dtype=torch.int32, kernel=emulated)
        assert torch.equal(acc.long(), product.accumulators())


def test_extreme_codes_of_a_k_so_long_that_a_warps_sum_could_overflow(emulated: str) -> None:
    """Sums are kept 16 times too large for fields of 4 bits: 2**17 elements of -128 * -8 would be 2**31."""
    k = 2**20 + 128 * 1024
    n = 65  # so many rows that the GPU is full without parts of K
    weight = fastq.pack(torch.full((n, k), -8, dtype=torch.int8), 4, scale=1.0)
    acc = fastq.int_linear(torch.full((1, k), -128, dtype=torch.int8), weight, out_dtype=torch.int32, kernel=emulated)
    assert acc.tolist() == [[k * 1024] * n]


@pytest.mark.parametrize("out_dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.uint8], ids=str)
@pytest.mark.parametrize("k", [70, 2048])
def test_epilogues_have_the_bits_of_the_reference(emulated: str, k: int, out_dtype: torch.dtype) -> None:
    """k 2048: the sums of two parts of K, finished by a kernel of its own."""
    product = Product(13, 21, k, x_dtype=torch.uint8, zeros=True, x_zero_point=9)
    weight, _ = product.weight()
    generator = torch.Generator().manual_seed(5)
    bias, multiplier, addend = (torch.randn(21, generator=generator) for _ in range(3))
    bias[3] = float("nan")
    rows = torch.rand(13, generator=generator) * 1e-4
    codes: dict[str, Any] = {}
    if not out_dtype.is_floating_point:
        codes = {"out_scale": 0.11, "out_range": (1, 13), "out_zero_point": 2}
    for activation, each, residual in ((None, 0, torch.float32), ("relu", 1, torch.bfloat16), (None, 2, torch.float16)):
        given: dict[str, Any] = {"x_scale": (1e-4, rows, None)[each], "x_zero_point": 9, "out_dtype": out_dtype, **codes}
        if each < 2:
            given |= {"bias": bias, "multiplier": multiplier, "addend": addend, "activation": activation}
            given["residual"] = torch.randn(13, 21, generator=generator).to(residual)
        got = fastq.int_linear(product.x(), weight, **given, kernel=emulated)
        want = fastq.int_linear(product.x(), weight, **given, kernel="reference")
        assert got.dtype == out_dtype and (torch.equal(got, want) if codes else same_bits(got, want))


@pytest.mark.parametrize("activation", ["gelu", "silu"])
def test_gelu_and_silu_are_a_few_ulp_from_the_reference(emulated: str, activation: str) -> None:
    product = Product(16, 20, 40)
    given: dict[str, Any] = {"x_scale": 1e-4, "activation": activation}
    got, want = (
        fastq.int_linear(product.x(), product.weight()[0], **given, kernel=kernel).double() for kernel in (emulated, "reference")
    )
    assert (got - want).abs().max() <= 4 * 2**-24 * want.abs().max()


def test_groups_of_integers_over_parts_of_k(emulated: str) -> None:
    for bits, group_size, zero_point in ((8, 256, 77), (8, 48, 0), (4, 128, 77), (4, 32, 0), (4, 1024, 0)):
        product = Product(9, 18, 2400, bits, torch.int8, torch.uint8, True, "group", group_size, x_zero_point=zero_point)
        weight, exact = product.weight()
        y = fastq.int_linear(product.x(), weight, x_zero_point=zero_point, kernel=emulated).double()
        scale = weight.scale.repeat_interleave(group_size, 1)[:, :2400].double()
        terms = (product.x().double() - zero_point)[:, None] * (exact * scale)
        # As below, of at most 75 groups, some of them in two parts
        assert ((y - terms.sum(2)).abs() <= 80 * 2**-24 * terms.abs().sum(2)).all(), (bits, group_size)


@pytest.mark.parametrize("group_size", [16, 32, 48, 64, 80, 128, 320])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_groups_of_integers(emulated: str, bits: int, group_size: int) -> None:
    """Shorter than the 64 elements of a product, longer, not of one another's size, and longer than K."""
    product = Product(9, 18, 307, bits, torch.uint8, torch.uint8, True, "group", group_size, x_zero_point=77)
    weight, exact = product.weight()
    y = fastq.int_linear(product.x(), weight, x_scale=0.01, x_zero_point=77, kernel=emulated).double()
    scale = weight.scale.repeat_interleave(group_size, 1)[:, :307].double() * 0.01
    terms = (product.x().double() - 77)[:, None] * (exact * scale)
    # A group rounds its accumulator, its scale and their product, and is one of at most 20 summands: some 24 roundings
    assert ((y - terms.sum(2)).abs() <= 24 * 2**-24 * terms.abs().sum(2)).all()


def float_case(
    dtype: torch.dtype, bits: int, m: int, n: int, k: int, group_size: int | None, zeros: bool
) -> tuple[torch.Tensor, fastq.PackedWeight, torch.Tensor]:
    """``x``, the weight, and the terms of the sum, exactly."""
    product = Product(m, n, k, bits, torch.uint8 if zeros else torch.int8, zeros=zeros, group_size=group_size,
                      granularity="channel" if group_size is None else "group")  # fmt: skip
    weight, exact = product.weight()
    x = torch.randn(m, k, generator=torch.Generator().manual_seed(6)).to(dtype)
    scale = weight.scale.double() if group_size is None else weight.scale.double().repeat_interleave(group_size, 1)[:, :k]
    return x, weight, x.double()[:, None] * (exact * (scale.view(n, -1)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_floating_point_inputs(emulated: str, bits: int, dtype: torch.dtype) -> None:
    shapes = [(1, 16, 64, None), (9, 17, 301, None), (16, 33, 320, 128), (5, 7, 200, 16), (8, 16, 450, 96), (2, 20, 4608, 256)]
    shapes.append((1, 130, 64 * 8 // (4 if bits == 3 else bits) * 33, 256))  # 5 tiles for the last warp, without parts of K
    for i, (m, n, k, group_size) in enumerate(shapes):
        x, weight, terms = float_case(dtype, bits, m, n, k, group_size, zeros=i % 2 == 1)
        got = fastq.int_linear(x, weight, out_dtype=torch.float32, kernel=emulated).double()
        # A product is exact and added up in float32, in no order that is ours: k roundings of what all terms together reach
        assert ((got - terms.sum(2)).abs() <= k * 2**-24 * terms.abs().sum(2)).all(), (m, n, k)
        assert fastq.int_linear(x, weight, kernel=emulated).dtype == dtype


def test_every_field_of_floating_point_products_is_exact(emulated: str) -> None:
    """One element of x is 1: the output is field less zero, for every pair of them."""
    for bits in (2, 3, 4, 8):
        codes = torch.arange(2**bits, dtype=torch.uint8).view(-1, 1).expand(-1, 64).contiguous()
        for zero in (0, 1, 2 ** (bits - 1), 2**bits - 1):
            weight = fastq.pack(codes, bits, scale=1.0, zero_point=zero)
            for dtype in (torch.bfloat16, torch.float16):
                for k in (0, 17, 63):
                    x = torch.zeros(1, 64, dtype=dtype)
                    x[0, k] = 1
                    got = fastq.int_linear(x, weight, out_dtype=torch.float32, kernel=emulated)
                    assert torch.equal(got[0], torch.arange(2.0**bits) - zero)


def test_infinite_and_nan_inputs_show(emulated: str) -> None:
    weight = fastq.pack(torch.ones(3, 80, dtype=torch.int8), 4, scale=torch.full((3, 5), 0.5), group_size=16)
    x = torch.zeros(3, 80, dtype=torch.bfloat16)
    x[0, 70], x[1, 2], x[2, 5] = float("inf"), float("nan"), 2.0
    got = fastq.int_linear(x, weight, out_dtype=torch.float32, kernel=emulated)
    assert got[0].tolist() == [float("inf")] * 3 and got[1].isnan().all() and got[2].tolist() == [1.0] * 3


def test_no_elements_to_add(emulated: str) -> None:
    weight = fastq.pack(torch.zeros(5, 0, dtype=torch.int8), 4, scale=1.0)
    bias = torch.arange(5.0)
    for x in (torch.zeros(2, 0, dtype=torch.int8), torch.zeros(2, 0, dtype=torch.float16)):
        got = fastq.int_linear(x, weight, bias=bias, out_dtype=torch.float32, kernel=emulated)
        assert torch.equal(got, bias.expand(2, 5))


def test_the_order_of_sums_is_fixed(emulated: str) -> None:
    x, weight, _ = float_case(torch.bfloat16, 4, 4, 40, 4100, 32, True)
    first = fastq.int_linear(x, weight, out_dtype=torch.float32, kernel=emulated)
    assert all(same_bits(fastq.int_linear(x, weight, out_dtype=torch.float32, kernel=emulated), first) for _ in range(2))
    # nor does it depend on the rows beside one
    assert same_bits(fastq.int_linear(x[2:3], weight, out_dtype=torch.float32, kernel=emulated), first[2:3])


def test_what_it_cannot_serve_is_said(emulated: str, operators: Any) -> None:
    weight = fastq.pack(drawn_codes((4, 32), 4, torch.int8), 4, scale=1.0)
    with pytest.raises(RuntimeError, match="'emulated' cannot serve this call: it takes at most 16 rows, and here are 17"):
        fastq.int_linear(torch.zeros(17, 32, dtype=torch.int8), weight, kernel=emulated)
    with pytest.raises(RuntimeError, match=r"it takes codes, bfloat16 and float16, and x is of torch\.float32"):
        fastq.int_linear(torch.zeros(1, 32), weight, kernel=emulated)
    refuses = table.KERNELS["cuda_decode"].refuses
    old = table.Problem("linear", "cuda", 75, 4, torch.int8, "tensor", 0, False, 1, 4, 32)
    assert refuses(old) == "it needs a GPU of architecture 80 or later, and this one has 75"
    new = old._replace(architecture=90)
    assert refuses(new) is None
    assert refuses(new._replace(k=2**24 + 1)) == "it takes rows of at most 2**24 elements, and here are 16777217"
    long = new._replace(k=2**18, group_size=2**17)
    assert refuses(long) == "it takes groups of at most 2**16 elements, and here are 131072"
    assert refuses(long._replace(k=2**17)) is None  # a single one
    assert next(rule.kernel for rule in table.RULES if rule.fits(new._replace(m=16))) == "cuda_decode"
    assert "cuda_decode" not in [rule.kernel for rule in table.RULES if rule.fits(new._replace(m=17))]

    w = weight.to("cpu", "tiles").operand()
    epilogue = Epilogue(None, 0, None, None, None, None, 0, torch.float32, None, (0, 0, 0))

    def call(x: torch.Tensor, w: Operand = w, e: Epilogue = epilogue) -> Any:
        return operators.int_linear(x, *w.flat(), *e.flat())

    x = torch.zeros(3, 32, dtype=torch.int8)
    assert call(x).shape == (3, 4)
    beside = torch.zeros(257, dtype=torch.uint8)[1:].view(4, 64)
    groups = w._replace(group_size=2**16 + 16, k=2**17, scale=torch.ones(4, 2), sums=torch.zeros(4, 2, dtype=torch.int32))
    groups = groups._replace(data=torch.zeros(4, 2**16, dtype=torch.uint8))
    for message, arguments in {
        "the CUDA kernels take at most 16 rows, got 17; Triton's take any number": (torch.zeros(17, 32, dtype=torch.int8), w),
        "the CUDA kernels take codes, bfloat16 and float16 as x, got float32": (x.float(), w),
        "weight must lie at a multiple of 16 bytes": (x, w._replace(data=beside)),
        "the CUDA kernels take groups of at most 65536, got 65552": (torch.zeros(1, 2**17, dtype=torch.int8), groups),
        r"weight must have shape \(4, 64\)": (x, w._replace(data=w.data[:3])),
    }.items():
        with pytest.raises(RuntimeError, match=f"fastq::int_linear: {message}"):
            call(*arguments)
    kernel = fastq.pack(drawn_codes((4, 2, 3, 3), 4, torch.int8), 4, scale=1.0).to("cpu", "tiles").operand()
    image, window = torch.zeros(1, 2, 5, 5, dtype=torch.int8).to(memory_format=torch.channels_last), [2, 3, 3, *[1] * 9]
    with pytest.raises(RuntimeError, match="int_conv2d: the CUDA library has no convolutions; Triton's kernels serve them"):
        operators.int_conv2d(image, *kernel.flat(), window, *epilogue.flat())


SPECIAL = torch.tensor([0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e-40, 0.5, 1.5, -2.5, 3e38, 126.5, -127.5])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(1,), (37,), (4096,), (5, 1717), (2, 3, 4, 5)], ids=str)
def test_codes_have_the_reference_s_bits(operators: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    n = torch.Size(shape).numel()
    for shift in (0, 1):  # 16-byte loads, and elements one by one
        values = torch.randn(n + shift, generator=torch.Generator().manual_seed(n)) * 40
        values[::5] = SPECIAL.repeat(n)[: len(values[::5])]
        x = values.to(dtype)[shift:].view(shape)
        if len(shape) == 4:
            x = x.to(memory_format=torch.channels_last) if shift else x.transpose(1, 3)[:, ::2]
        for codes, kind in (((-128, 127, 0), torch.int8), ((-7, 7, 0), torch.int8), ((0, 255, 128), torch.uint8)):
            for offset in (None, torch.tensor([0.3])):
                given = (torch.tensor([0.37]), offset, codes, kind)
                got, want = operators.quantize(x, *given), reference.quantize(x, *given)
                assert got.stride() == torch.empty_like(x, dtype=kind).stride() and torch.equal(got, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (3, 37), (2, 4096), (4, 5000), (2, 0), (0, 3)], ids=str)
def test_codes_per_token_have_the_reference_s_bits(operators: Any, shape: tuple[int, int], dtype: torch.dtype) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    if x.numel() > 9:
        x[0], x[1, -1] = 0, float("nan")
        x[-1, 0] = float("inf") if shape[0] == 4 else x[-1, 0]
    for bits in (8, 4, 2):
        (codes, scale), (want, want_scale) = operators.quantize_per_token(x, bits), reference.quantize_per_token(x, bits)
        assert torch.equal(codes, want) and same_bits(scale, want_scale)
