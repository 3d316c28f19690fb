"""``fastq.int_linear``, ``int_conv2d``, ``quantize``: what they promise on every backend, and what they refuse.

Accumulators are held against int64 arithmetic, epilogues against the formula written out here, step by step.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))
from device import DEVICE, ENGINE, drawn
from engine_cases import EXTREMES, Product, drawn_codes, products

import fastq
from fastq.testing import same_bits

I8 = torch.int8


@pytest.fixture(autouse=True, params=["reference", ENGINE])
def backend(request: pytest.FixtureRequest) -> Iterator[str | None]:
    with fastq.use_backend(request.param) if request.param else contextlib.nullcontext():
        yield request.param


@pytest.mark.parametrize("product", products(), ids=repr)
def test_accumulators_equal_int64_arithmetic(product: Product) -> None:
    weight, _ = product.weight()
    acc = fastq.int_linear(product.x(), weight, x_zero_point=product.x_zero_point, out_dtype=torch.int32)
    assert acc.dtype == torch.int32 and torch.equal(acc.long(), product.accumulators())


@pytest.mark.parametrize("dtype", EXTREMES)
def test_extreme_codes_up_to_the_last_k_that_cannot_overflow(dtype: torch.dtype) -> None:
    # 255 * 128 * 65793 < 2**31 <= 255 * 128 * 65794, for uint8 inputs without zero-point; 128 * 128 * 131071 for int8
    k = 65793 if dtype == torch.uint8 else 131071
    weight = torch.full((2, k + 1), -128, dtype=I8, device=DEVICE)
    x = torch.full((1, k + 1), EXTREMES[dtype][1] if dtype == torch.uint8 else -128, dtype=dtype, device=DEVICE)
    acc = fastq.int_linear(x[:, :k], fastq.pack(weight[:, :k], 8, scale=1.0), out_dtype=torch.int32)
    assert acc.tolist() == [[k * int(x[0, 0]) * -128] * 2]
    with pytest.raises(ValueError, match=rf"{k + 1} products of up to \d+ x 128 could overflow the int32 accumulator; at most {k}"):
        fastq.int_linear(x, fastq.pack(weight, 8, scale=1.0))


def case(m: int = 5, n: int = 19, k: int = 40) -> tuple[torch.Tensor, fastq.PackedWeight, torch.Tensor, torch.Tensor]:
    """Codes, weight, accumulators and the weight's scale."""
    product = Product(m, n, k, bits=4, zeros=True)
    weight, _ = product.weight()
    return product.x(), weight, product.accumulators(), weight.scale


@pytest.mark.parametrize("activation", [None, "relu", "gelu", "silu"])
def test_the_epilogue_is_the_formula_step_by_step(activation: str | None) -> None:
    x, weight, acc, scale = case()
    bias, multiplier, addend, residual = drawn((19,), 1), drawn((19,), 2), drawn((19,), 3), drawn((5, 19), 4)
    keywords: dict[str, Any] = {"multiplier": multiplier, "addend": addend, "residual": residual, "activation": activation}
    y = fastq.int_linear(x, weight, x_scale=0.37, bias=bias, **keywords)
    want = acc.float() * (torch.tensor(0.37, device=DEVICE) * scale)
    want = want + bias
    want = want * multiplier
    want = want + addend
    want = want + residual
    if activation in ("gelu", "silu"):  # erf and exp are a few ulp from one another between libraries; near 0 gelu cancels
        want = getattr(F, activation)(want.double())
        assert (y.double() - want).abs().max() <= 4 * 2**-24 * want.abs().max()
    else:
        assert same_bits(y, want if activation is None else F.relu(want))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_output_is_rounded_once(dtype: torch.dtype) -> None:
    x, weight, acc, scale = case()
    want = acc.float() * (torch.tensor(0.37, device=DEVICE) * scale)
    assert same_bits(fastq.int_linear(x, weight, x_scale=0.37, out_dtype=dtype), want.to(dtype))


@pytest.mark.parametrize(
    ("dtype", "range_", "zero"), [(I8, None, 0), (I8, (-7, 8), 3), (torch.uint8, (0, 15), 0), (torch.uint8, None, 128)]
)
def test_requantization_is_the_rounding_of_training(dtype: torch.dtype, range_: Any, zero: int) -> None:
    x, weight, acc, scale = case(m=33)
    step = torch.tensor([0.31], device=DEVICE)
    codes = fastq.int_linear(x, weight, x_scale=0.01, out_dtype=dtype, out_scale=step, out_range=range_, out_zero_point=zero)
    y = acc.float() * (torch.tensor(0.01, device=DEVICE) * scale)
    low, high = range_ or EXTREMES[dtype]
    want = fastq.reference.lsq(y, step, bits=(low - zero, high - zero)) / step
    assert codes.dtype == dtype and torch.equal(codes.float(), want.round() + zero)
    assert len(codes.unique()) > 8


def test_ties_go_to_even_and_nan_to_the_zero_point() -> None:
    identity = fastq.pack(torch.eye(4, dtype=I8, device=DEVICE), 8, scale=1.0)
    x = torch.tensor([[1, 3, 5, -1], [-3, -5, 127, -128]], dtype=I8, device=DEVICE)
    assert fastq.int_linear(x, identity, out_scale=2.0).tolist() == [[0, 2, 2, 0], [-2, -2, 64, -64]]
    bias = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0], device=DEVICE)
    got = fastq.int_linear(x, identity, bias=bias, out_scale=2.0, out_range=(-9, 9), out_zero_point=5)
    assert got.tolist() == [[5, 9, -9, 5], [5, 9, -9, -9]]


def test_any_leading_sizes_and_strides() -> None:
    x, weight, _, _ = case(m=12)
    y = fastq.int_linear(x, weight)
    assert torch.equal(fastq.int_linear(x.view(2, 3, 2, -1), weight), y.view(2, 3, 2, -1))
    assert torch.equal(fastq.int_linear(x[0], weight), y[0])
    apart = torch.stack([x, x], -1)[..., 0]
    assert not apart.is_contiguous() and torch.equal(fastq.int_linear(apart, weight), y)
    assert torch.equal(fastq.int_linear(x.t().contiguous().t(), weight), y)
    residual = drawn((12, 19), 5)
    strided = residual.t().contiguous().t()
    assert torch.equal(fastq.int_linear(x, weight, residual=strided), fastq.int_linear(x, weight, residual=residual))


def test_a_scale_for_each_row() -> None:
    x, weight, acc, scale = case(m=6)
    rows = drawn((2, 3), 6)
    y = fastq.int_linear(x.view(2, 3, -1), weight, x_scale=rows)
    assert same_bits(y, (acc.float() * (rows.view(6, 1) * scale)).view(2, 3, -1))
    apart = rows.view(6, 1).expand(6, 2).contiguous()[:, 0]
    assert not apart.is_contiguous() and same_bits(fastq.int_linear(x, weight, x_scale=apart), y.view(6, -1))


def test_dynamic_quantization_is_per_token() -> None:
    _, weight, _, _ = case()
    x = drawn((2, 3, 40), 7)
    codes, scale = fastq.quantize_per_token(x)
    assert same_bits(fastq.int_linear(x, weight, x_scale="dynamic"), fastq.int_linear(codes, weight, x_scale=scale))
    half = fastq.int_linear(x.bfloat16(), weight, x_scale="dynamic")
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize("group_size", [16, 32, 48])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_groups(bits: int, group_size: int) -> None:
    product = Product(7, 21, 72, bits=bits, zeros=True, granularity="group", group_size=group_size, x_zero_point=3)
    weight, exact = product.weight()
    x = product.x()
    scale = weight.scale.repeat_interleave(group_size, 1)[:, :72].double() * 0.01
    parts = (x.double() - 3)[:, None, :] * (exact.double() * scale)[None]
    y = fastq.int_linear(x, weight, x_scale=0.01, x_zero_point=3)
    # each group's product is rounded twice and each addition once: (groups + 2) roundings of partial sums below sum |parts|
    bound = (weight.scale.shape[1] + 2) * 2**-24 * parts.abs().sum(2)
    assert bool(((y.double() - parts.sum(2)).abs() <= bound).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("bits", "group_size"), [(4, None), (4, 32), (8, None), (2, 16), (3, None)])
def test_floating_point_inputs(dtype: torch.dtype, bits: int, group_size: int | None) -> None:
    granularity = "group" if group_size else "channel"
    weight, exact = Product(1, 21, 72, bits=bits, zeros=True, granularity=granularity, group_size=group_size).weight()
    x, bias = drawn((9, 72), 8).to(dtype), drawn((21,), 9)
    scale = weight.scale.repeat_interleave(group_size, 1)[:, :72] if group_size else weight.scale.view(-1, 1)
    parts = x.double()[:, None, :] * (exact.double() * scale.double())[None]
    y = fastq.int_linear(x, weight, bias=bias)
    assert y.dtype == dtype
    want = parts.sum(2) + bias.double()
    # K products and additions in fp32 in any order, the scale's and the bias' roundings; then one of the output's dtype
    bound = (72 + 4) * 2**-24 * (parts.abs().sum(2) + bias.abs().double()) + want.abs() * torch.finfo(dtype).eps
    assert bool(((y.double() - want).abs() <= bound).all())


CONVOLUTIONS = [
    # B, C, H, W, O, kernel, keywords
    (2, 5, 9, 8, 7, (3, 3), {"padding": 1}),
    (1, 3, 11, 13, 17, (5, 3), {"stride": (2, 1), "padding": (1, 2, 0, 3)}),
    (3, 8, 6, 7, 6, (1, 1), {"stride": 2}),
    (2, 6, 9, 9, 4, (3, 2), {"groups": 2, "dilation": (1, 2), "padding": "same"}),
    (2, 9, 7, 6, 9, (3, 3), {"groups": 9, "padding": 1}),
    (1, 4, 8, 8, 8, (3, 3), {"groups": 4, "stride": 2, "padding": 1, "dilation": 2}),
    (1, 70, 5, 5, 33, (3, 3), {"padding": "valid"}),
]


def convolution(index: int, bits: int, x_dtype: torch.dtype, zeros: bool, x_zero: int, extreme: bool = False) -> tuple[Any, ...]:
    b, c, h, w, o, kernel, keywords = CONVOLUTIONS[index]
    groups = keywords.get("groups", 1)
    codes = drawn_codes((o, c // groups, *kernel), bits, I8, 1, extreme)
    zero = drawn_codes((o,), bits, I8, 2) if zeros else None
    scale = torch.rand(o, generator=torch.Generator("cpu").manual_seed(3), device="cpu").to(DEVICE)
    x = drawn_codes((b, c, h, w), 8, x_dtype, 4, extreme)
    weight = codes.double() - (0 if zero is None else zero.double().view(-1, 1, 1, 1))
    padding = keywords.get("padding", 0)
    if padding == "same":
        (th, tw) = (d * (k - 1) for d, k in zip(keywords.get("dilation", (1, 1)), kernel, strict=True))
        padding = (tw // 2, tw - tw // 2, th // 2, th - th // 2)
    elif padding == "valid" or isinstance(padding, int):
        padding = (0 if padding == "valid" else padding,) * 4
    full = F.pad(x.double() - x_zero, padding)  # doubles hold these sums exactly
    acc = F.conv2d(full, weight, None, keywords.get("stride", 1), 0, keywords.get("dilation", 1), groups)
    return x, fastq.pack(codes, bits, scale=scale, zero_point=zero), acc, keywords


@pytest.mark.parametrize("index", range(len(CONVOLUTIONS)))
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_convolutions_equal_exact_arithmetic(index: int, bits: int) -> None:
    turn = index + bits
    x_dtype, x_zero = ((torch.int8, 0), (torch.uint8, 0), (torch.uint8, 77), (torch.int8, -5))[turn % 4]
    x, weight, acc, keywords = convolution(index, bits, x_dtype, turn % 3 == 0, x_zero, turn % 5 == 0)
    got = fastq.int_conv2d(x, weight, x_zero_point=x_zero, out_dtype=torch.int32, **keywords)
    assert torch.equal(got.double(), acc) and got.is_contiguous(memory_format=torch.channels_last)
    bias, residual = drawn((acc.shape[1],), 5), drawn(tuple(acc.shape), 6)
    y = fastq.int_conv2d(x, weight, x_zero_point=x_zero, x_scale=0.02, bias=bias, residual=residual, activation="relu", **keywords)
    scale = (torch.tensor(0.02, device=DEVICE) * weight.scale).view(-1, 1, 1)
    assert same_bits(y.contiguous(), F.relu(acc.float() * scale + bias.view(-1, 1, 1) + residual))
    contiguous = fastq.int_conv2d(x.contiguous(), weight, x_zero_point=x_zero, x_scale=0.02, **keywords)
    last = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(fastq.int_conv2d(last, weight, x_zero_point=x_zero, x_scale=0.02, **keywords), contiguous)


@pytest.mark.parametrize("index", [0, 3, 4])
def test_convolutions_of_floating_point_inputs(index: int) -> None:
    x, weight, _, keywords = convolution(index, 4, torch.int8, True, 0)
    x = drawn(tuple(x.shape), 9)
    y = fastq.int_conv2d(x, weight, **keywords)
    exact = {**keywords} if keywords.get("padding") != "valid" else {**keywords, "padding": 0}
    want = F.conv2d(x.double(), weight.dequantize().double(), None, **exact)
    size = F.conv2d(x.double().abs(), weight.dequantize().double().abs(), None, **exact)
    bound = (weight.k + 4) * 2**-24 * size  # as for linear products
    assert bool(((y.double() - want).abs() <= bound).all())


@pytest.mark.parametrize(("m", "n", "k"), [(0, 5, 7), (3, 0, 7), (3, 5, 0), (0, 0, 0)])
def test_empty_sizes(m: int, n: int, k: int) -> None:
    weight = fastq.pack(torch.zeros(n, k, dtype=I8, device=DEVICE), 4, scale=1.0)
    bias = torch.ones(n, device=DEVICE)
    for x in (torch.zeros(m, k, dtype=I8, device=DEVICE), torch.zeros(m, k, device=DEVICE)):
        y = fastq.int_linear(x, weight, bias=bias)
        assert torch.equal(y, torch.ones(m, n, device=DEVICE))


def test_quantize_keeps_layout_and_rounds_as_training() -> None:
    x = drawn((2, 3, 4, 5), 10) * 3
    step = torch.tensor([0.21], device=DEVICE)
    for t in (x, x.contiguous(memory_format=torch.channels_last), x.transpose(0, 3), x[:, ::2], x.bfloat16(), x.half()):
        codes = fastq.quantize(t, step, range=(-8, 7))
        want = (fastq.reference.lsq(t.float(), step, bits=4) / step).round()
        assert torch.equal(codes.float(), want)
        if t.is_contiguous() or t.is_contiguous(memory_format=torch.channels_last):
            assert codes.stride() == t.stride()
    odd = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.5, 1.5, -0.5], device=DEVICE)
    assert fastq.quantize(odd, 1.0, zero_point=3, range=(0, 9), dtype=torch.uint8).tolist() == [3, 9, 0, 3, 5, 3]
    assert fastq.quantize(odd[3:], 1.0, offset=0.5).tolist() == [0, 1, -1]
    assert fastq.quantize(x[:0], 1.0).shape == (0, 3, 4, 5)


def test_a_scale_may_be_a_number_of_any_kind() -> None:
    x, weight, _, _ = case()
    for number in (np.float32(0.25), np.float64(0.25), Fraction(1, 4)):  # fastq.pack takes them as well
        assert torch.equal(fastq.quantize(x.float(), number), fastq.quantize(x.float(), 0.25))
        assert torch.equal(fastq.int_linear(x, weight, x_scale=number), fastq.int_linear(x, weight, x_scale=0.25))


def test_quantize_per_token_uses_the_largest_of_a_row() -> None:
    x = torch.tensor([[1.0, -2.0, 0.0], [0.0, 0.0, 0.0], [float("nan"), 1.0, 0.0], [float("inf"), 1.0, 0.0]], device=DEVICE)
    codes, scale = fastq.quantize_per_token(x)
    assert codes[:2].tolist() == [[64, -127, 0], [0, 0, 0]]  # 63.5 goes to even
    assert scale[:2].tolist() == [float(torch.tensor(2.0) / 127), 1.0]
    assert bool(scale[2].isnan()) and bool(scale[3].isinf())
    weight = fastq.pack(torch.ones(2, 3, dtype=I8, device=DEVICE), 8, scale=1.0)
    assert bool(fastq.int_linear(x, weight, x_scale="dynamic")[2:].isnan().all())
    four, _ = fastq.quantize_per_token(x, bits=4)
    assert four[0].tolist() == [3, -7, 0]  # 2 / 7 is rounded up, so that 1 lies below 3.5 steps
    assert fastq.quantize_per_token(x[:, :0])[1].tolist() == [1.0] * 4


def test_compiled_whole_with_any_number_of_rows() -> None:
    x, weight, _, _ = case(m=9)
    bias = drawn((19,), 1)

    def layer(x: torch.Tensor) -> torch.Tensor:
        return fastq.int_linear(x, weight, x_scale=0.1, bias=bias, activation="relu") + 1

    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for m in (9, 4, 2):
            rows = x[:m].clone()
            assert torch.equal(compiled(rows), layer(rows))


def test_compiled_whole_with_numbers_that_change() -> None:
    x, weight, _, _ = case(m=3)

    def layer(x: torch.Tensor, scale: float) -> torch.Tensor:
        return fastq.int_linear(x, weight, x_scale=scale)

    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for scale in (0.5, 0.3, 2.0):
        assert torch.equal(compiled(x, scale), layer(x, scale))


WRONG: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    ("tensor", {}, TypeError, "int_linear: weight must be a fastq.PackedWeight, got a Tensor; fastq.pack"),
    ("conv", {}, ValueError, r"weight must have shape \(N, K\), got \(4, 2, 3, 3\); int_conv2d takes"),
    ("k", {}, ValueError, r"x must be \(..., 40\) for a weight of shape \(19, 40\), got \(5, 39\)"),
    ("int32 x", {}, TypeError, "x must be int8 or uint8 codes, or float32, bfloat16 or float16, got torch.int32"),
    ("", {"x_zero_point": 128}, ValueError, "x_zero_point must be a code of torch.int8, -128 to 127, got 128"),
    ("", {"x_zero_point": 1.0}, TypeError, "x_zero_point must be an int, one for the tensor, got 1.0"),
    ("", {"x_scale": "static"}, ValueError, "'dynamic'; got 'static'"),
    ("", {"x_scale": "dynamic"}, ValueError, "for a floating point x, 'dynamic'; got 'dynamic' for x of torch.int8"),
    ("sparse x", {}, TypeError, "x must be a strided tensor, got the layout torch.sparse_coo"),
    ("", {"x_scale": 10**400}, ValueError, "x_scale must be finite in float32, got 1000"),
    ("", {"x_scale": float("nan")}, ValueError, "x_scale must be finite in float32, got nan"),
    ("", {"x_scale": float("inf")}, ValueError, "x_scale must be finite in float32, got inf"),
    ("", {"x_scale": torch.ones(4)}, ValueError, r"x_scale must have one element or shape \(5,\), one for each row, got \(4,\)"),
    ("", {"x_scale": torch.ones(1).int()}, TypeError, "x_scale must be a floating point tensor or a number, got torch.int32"),
    ("", {"bias": torch.ones(18)}, ValueError, r"bias must have shape \(19,\), one element per output, got \(18,\)"),
    ("", {"bias": 1.0}, TypeError, "bias must be a floating point tensor, got 1.0"),
    ("", {"residual": torch.ones(5, 18)}, ValueError, r"residual must have the output's shape \(5, 19\), got \(5, 18\)"),
    ("", {"residual": torch.ones(5, 19).int()}, TypeError, "residual must be float32, bfloat16 or float16, got torch.int32"),
    ("", {"activation": "tanh"}, ValueError, "activation must be None, 'relu', 'gelu' or 'silu', got 'tanh'"),
    ("", {"out_dtype": torch.float64}, TypeError, "out_dtype must be float32, .*, got torch.float64"),
    ("", {"out_dtype": torch.int8}, ValueError, "out_dtype torch.int8 is one of codes, which need out_scale"),
    (
        "",
        {"out_range": (0, 1)},
        ValueError,
        "out_scale, out_range and out_zero_point are for codes, and out_dtype is torch.float32",
    ),
    ("", {"out_scale": 1.0, "out_range": (0, 128)}, ValueError, "out_range must lie within -128 to 127"),
    ("", {"out_scale": 1.0, "out_range": (3, -3)}, ValueError, "the lowest code first, got 3 to -3"),
    ("", {"out_scale": 1.0, "out_zero_point": 2.0}, TypeError, "out_zero_point must be an int, got 2.0"),
    ("", {"out_dtype": torch.int32, "activation": "relu"}, ValueError, "to which activation would not be applied"),
    ("float x", {"out_dtype": torch.int32}, ValueError, "the accumulators of integers, and x is of torch.float32"),
    ("float x", {"x_scale": 0.5}, ValueError, "x_scale is one of codes, and x is of torch.float32"),
    ("float x", {"x_zero_point": 1}, ValueError, "x_zero_point is one of codes, and x is of torch.float32"),
    ("", {"kernel": "fastest"}, ValueError, "int_linear: unknown kernel 'fastest'; choose one of reference"),
    ("", {"kernel": 3}, TypeError, r"int_linear: kernel must be a name of fastq.kernels\(...\) or None, got 3"),
]


@pytest.mark.parametrize(("what", "keywords", "error", "message"), WRONG, ids=lambda v: str(v)[:40])
def test_bad_input_says_what_was_expected_and_what_came(what: str, keywords: Any, error: type[Exception], message: str) -> None:
    x, weight, _, _ = case()
    given: Any = weight
    if what == "tensor":
        given = weight.unpack()
    elif what == "conv":
        given = fastq.pack(torch.zeros(4, 2, 3, 3, dtype=I8, device=DEVICE), 8, scale=1.0)
    x = {"k": x[:, :39], "int32 x": x.int(), "float x": x.float(), "sparse x": x.float().to_sparse()}.get(what, x)
    keywords = {key: v.to(DEVICE) if isinstance(v, torch.Tensor) else v for key, v in keywords.items()}
    with pytest.raises(error, match=message):
        fastq.int_linear(x, given, **keywords)


WRONG_CONVOLUTIONS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"groups": 2}, ValueError, r"x must be \(B, 10, H, W\) for a weight of shape \(8, 5, 3, 3\) in 2 group\(s\)"),
    ({"groups": 3}, ValueError, "groups must be at least 1 and divide the 8 output channels, got 3"),
    ({"stride": 0}, ValueError, "stride must be at least 1, got 0"),
    ({"stride": 1.5}, TypeError, r"stride must be an int or two, \(height, width\), got 1.5"),
    ({"padding": -1}, ValueError, "padding must be at least 0, got -1"),
    ({"padding": "full"}, ValueError, "padding must be ints, 'same' or 'valid', got 'full'"),
    ({"padding": "same", "stride": 2}, ValueError, "padding 'same' needs stride 1"),
    ({"dilation": 9}, ValueError, r"the kernel \(3, 3\) at dilation \(9, 9\) exceeds the padded image"),
]


@pytest.mark.parametrize(("keywords", "error", "message"), WRONG_CONVOLUTIONS, ids=str)
def test_bad_windows(keywords: Any, error: type[Exception], message: str) -> None:
    weight = fastq.pack(torch.zeros(8, 5, 3, 3, dtype=I8, device=DEVICE), 8, scale=1.0)
    with pytest.raises(error, match=f"int_conv2d: {message}"):
        fastq.int_conv2d(torch.zeros(1, 5, 9, 9, dtype=I8, device=DEVICE), weight, **keywords)
    with pytest.raises(ValueError, match=r"weight must have shape \(O, C/groups, kh, kw\), .*; int_linear takes \(N, K\)"):
        fastq.int_conv2d(torch.zeros(1, 5, 9, 9, dtype=I8, device=DEVICE), case()[1])
    row = fastq.pack(torch.zeros(8, 5, 3, dtype=I8, device=DEVICE), 8, scale=1.0)
    with pytest.raises(ValueError, match=r"of one dimension: pack \(O, C/groups, 1, kw\) and give x as \(B, C, 1, W\)"):
        fastq.int_conv2d(torch.zeros(1, 5, 1, 9, dtype=I8, device=DEVICE), row)


def test_what_requires_a_gradient_is_refused() -> None:
    _, weight, _, _ = case()
    x = torch.ones(2, 40, device=DEVICE, requires_grad=True)
    window = fastq.pack(torch.zeros(3, 2, 1, 1, dtype=I8, device=DEVICE), 8, scale=1.0)
    calls: dict[str, Callable[[torch.Tensor], Any]] = {
        "int_linear": lambda x: fastq.int_linear(x, weight),
        "int_conv2d": lambda x: fastq.int_conv2d(x.view(1, 2, 5, 8), window),
        "quantize": lambda x: fastq.quantize(x, 1.0),
        "quantize_per_token": fastq.quantize_per_token,
    }
    for op, call in calls.items():  # the public functions: none may send the caller to "the public function"
        with pytest.raises(RuntimeError, match=rf"^{op}: x requires a gradient, .* {op} does not have; give x.detach\(\)"):
            call(x)
        with torch.no_grad():
            call(x)
    with pytest.raises(RuntimeError, match=r"^int_linear: residual requires a gradient, .*; give residual\.detach"):
        fastq.int_linear(x.detach(), weight, residual=torch.zeros(2, 19, device=DEVICE, requires_grad=True))


def test_the_checking_mode_refuses_what_is_not_finite() -> None:
    x, weight, _, _ = case()
    fastq.set_checks(True)
    try:
        with pytest.raises(ValueError, match="x_scale must be finite"):
            fastq.int_linear(x, weight, x_scale=torch.tensor([float("nan")], device=DEVICE))
        with pytest.raises(ValueError, match="quantize: x must be finite"):
            fastq.quantize(torch.tensor([1.0, float("inf")], device=DEVICE), 1.0)
        for step in (0.0, -0.5):
            with pytest.raises(ValueError, match="quantize: scale must be positive and finite, got "):
                fastq.quantize(torch.ones(2, device=DEVICE), step)
            with pytest.raises(ValueError, match="int_linear: out_scale must be positive and finite, got "):
                fastq.int_linear(x, weight, out_scale=step)
        for name, shape in (("bias", (19,)), ("multiplier", (19,)), ("addend", (19,)), ("residual", (5, 19))):
            with pytest.raises(ValueError, match=f"int_linear: {name} must be finite"):
                fastq.int_linear(x, weight, **{name: torch.full(shape, float("nan"), device=DEVICE)})
    finally:
        fastq.set_checks(False)


def test_kernels_refuses_what_no_product_has() -> None:
    _, weight, _, _ = case()
    wrong: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
        (weight.unpack(), {"rows": 3}, TypeError, "weight must be a fastq.PackedWeight, got a Tensor"),
        (weight, {"rows": -1}, ValueError, "rows must be an int from 0 on, got -1"),
        (weight, {"rows": "3"}, TypeError, "rows must be an int from 0 on, got '3'"),
        (weight, {"rows": 3, "groups": 0}, ValueError, "groups must be an int from 1 on, got 0"),
        (weight, {"rows": 3, "x_dtype": torch.float64}, TypeError, "x_dtype must be int8, .*, got torch.float64"),
    ]
    for given, keywords, error, message in wrong:
        with pytest.raises(error, match=f"kernels: {message}"):
            fastq.kernels(given, **keywords)


def test_a_kernel_can_be_asked_for_by_name(backend: str) -> None:
    x, weight, acc, _ = case()
    assert torch.equal(fastq.int_linear(x, weight, out_dtype=torch.int32, kernel="reference").long(), acc)
    told = fastq.kernels(weight, rows=5)
    assert told["reference"] == (True, "it serves")
    for name, (able, reason) in told.items():
        if able:
            assert torch.equal(fastq.int_linear(x, weight, out_dtype=torch.int32, kernel=name).long(), acc), name
        else:
            with pytest.raises(RuntimeError, match=f"int_linear: kernel '{name}' cannot serve this call: "):
                fastq.int_linear(x, weight, out_dtype=torch.int32, kernel=name)
            assert reason
