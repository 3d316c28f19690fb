"""Weights go to and from the formats of others with every number as it is, or not at all."""

import pytest
import torch
from device import DEVICE, drawn
from engine_cases import drawn_codes
from packing_cases import same, weight

import fastq
from fastq import packed_formats
from fastq.packed_formats import from_gptq, from_int4pack, to_gptq, to_int4pack
from fastq.packing import BITS

#: torch's product of its packing.
TORCH = torch.ops.aten._weight_int4pack_mm_for_cpu if DEVICE == "cpu" else torch.ops.aten._weight_int4pack_mm
#: Whole blocks of every processor, one and a part, a part alone.
SHAPES = [(64, 128), (80, 256), (16, 128), (144, 384)]


def int4(n, k, group_size=32, dtype=torch.uint8, zeros=True, held=torch.bfloat16):
    """A 4-bit weight whose scales ``held`` has."""
    packed = weight((n, k), 4, dtype, group_size, zeros)[1]
    scale = packed.scale.to(held).float()
    return fastq.pack(packed.unpack(), 4, scale=scale, zero_point=packed.zero_point, group_size=group_size)


@pytest.mark.parametrize(("n", "k"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8], ids=str)
def test_int4pack_and_back(n, k, dtype):
    for group_size, held in ((32, torch.bfloat16), (128, torch.float16), (64, torch.float32)):
        packed = int4(n, k, group_size, dtype, held=held)
        theirs = to_int4pack(packed, dtype=held)
        assert theirs.scales_and_zeros.shape == (k // group_size, n, 2) and theirs.scales_and_zeros.dtype == held
        assert theirs.data.numel() * theirs.data.element_size() == n * k // 2
        again = from_int4pack(*theirs, signed=dtype == torch.int8)
        same(again, packed)


def test_int4pack_of_symmetric_weights():
    """No zero-points: z is 0, and none come back."""
    packed = int4(16, 128, dtype=torch.int8, zeros=False)
    theirs = to_int4pack(packed)
    assert not theirs.scales_and_zeros[..., 1].any()
    same(from_int4pack(*theirs, signed=True), packed)
    unsigned = from_int4pack(*theirs)
    assert unsigned.unpack().dtype == torch.uint8 and unsigned.stored_zero is None and torch.equal(unsigned.data, packed.data)


@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_torchs_product_is_that_of_the_formula_and_ours(n, k):
    packed = int4(n, k)
    x = drawn((3, k), 5)
    exact = x.to(torch.bfloat16).double() @ packed.dequantize().double().t()
    theirs = to_int4pack(packed)
    out = TORCH(x.to(torch.bfloat16), theirs.data, theirs.group_size, theirs.scales_and_zeros)
    ours = fastq.int_linear(x.to(torch.bfloat16), packed, out_dtype=torch.float32)
    # torch rounds each weight to bf16, 2**-9 of at most 16 * scale: K * |x| * 16 * 2**-9, and the output, both far below what one
    # code in the wrong place would do; ours rounds fp32 sums alone
    largest = float(exact.abs().max())
    assert float((out.double() - exact).abs().max()) < 0.02 * largest
    assert float((ours.double() - exact).abs().max()) < 1e-5 * largest
    if DEVICE == "cpu":
        packed = int4(n, k, held=torch.float32)
        theirs = to_int4pack(packed, dtype=torch.float32)
        out = TORCH(x, theirs.data, theirs.group_size, theirs.scales_and_zeros)
        # sums of K fp32 terms, of w = (q - 8) * s + z, which rounds twice
        torch.testing.assert_close(out, fastq.int_linear(x, packed), rtol=1e-4, atol=1e-5 * largest)


def test_what_torch_packed_is_read():
    """From torch's own conversion, not ours: codes in plain order, scales and zeros as torch defines them."""
    n, k, size = 32, 128, 64
    q = drawn_codes((n, k), 4, torch.uint8)
    scale = torch.rand(k // size, n, device="cpu").to(DEVICE, torch.bfloat16)
    z = scale * torch.randint(-7, 9, (k // size, n), device="cpu").to(DEVICE)
    if DEVICE == "cpu":
        data = torch.ops.aten._convert_weight_to_int4pack_for_cpu(q.to(torch.int32), 8)
    else:
        data = torch.ops.aten._convert_weight_to_int4pack(q[:, ::2] << 4 | q[:, 1::2], 8)
    packed = from_int4pack(data, torch.stack([scale, z], 2), group_size=size)
    assert torch.equal(packed.unpack(), q) and packed.granularity == "group"
    wide = [t.float().t().repeat_interleave(size, 1) for t in (scale, z)]
    # s * (8 - zp) of a bf16 scale, in fp32, may differ from z by the rounding of z to bf16
    torch.testing.assert_close(packed.dequantize(), (q.float() - 8) * wide[0] + wide[1], rtol=0, atol=2**-8 * 8)
    assert packed.zero_point.min() >= 0 and packed.zero_point.max() <= 15


def test_int4pack_of_a_weight_per_channel():
    """It takes the largest group that divides K; what comes back is per group, with the same numbers."""
    packed = weight((16, 384), 4, torch.uint8, scale=0.5, zero_point=3)[1]
    theirs = to_int4pack(packed)
    assert theirs.group_size == 128
    again = from_int4pack(*theirs)
    assert torch.equal(again.unpack(), packed.unpack()) and torch.equal(again.dequantize(), packed.dequantize())
    assert again.scale.tolist() == [[0.5] * 3] * 16 and again.zero_point.tolist() == [[3] * 3] * 16


@pytest.mark.parametrize(
    ("packed", "given", "error", "message"),
    [
        (torch.zeros(16, 32), {}, TypeError, r"to_int4pack: weight must be a fastq\.PackedWeight, got a Tensor"),
        (weight((16, 32, 1), 4)[1], {}, ValueError, r"weight must have shape \(N, K\), got \(16, 32, 1\)"),
        (weight((16, 128), 3)[1], {}, ValueError, "weight must have 4 bits, got 3"),
        (int4(17, 128), {}, ValueError, r"weight must have N a multiple of \d+ and K one of \d+, got \(17, 128\)"),
        (int4(16, 129), {}, ValueError, r"weight must have N a multiple of \d+ and K one of \d+, got \(16, 129\)"),
        (int4(16, 256, 48), {}, ValueError, "weight must have groups of 32, 64, 128 or 256 that divide K, got PackedWeight"),
        (int4(16, 128, 256), {}, ValueError, "weight must have groups of 32, 64, 128 or 256 that divide K"),
        (int4(16, 128), {"inner_k_tiles": 3}, ValueError, "inner_k_tiles must be 2, 4 or 8, got 3"),
        (int4(16, 128), {"dtype": torch.int8}, TypeError, r"dtype must be float32, bfloat16 or float16, got torch\.int8"),
        (weight((16, 128), 4)[1], {}, ValueError, r"scale must hold torch\.bfloat16 numbers, got .*; dtype=torch\.float32 keeps"),
        (
            weight((16, 128), 4, scale=0.0, zero_point=1)[1], {}, ValueError,
            r"scale 0\.0 and zero-point 9 cannot be told from scale \* \(8 - zero_point\) in torch\.bfloat16",
        ),
        (weight((16, 128), 4, scale=2.0**127, zero_point=4)[1], {"dtype": torch.float32}, ValueError, "cannot be told"),
    ],
)  # fmt: skip
def test_what_int4pack_cannot_hold(packed, given, error, message):
    with pytest.raises(error, match=message):
        to_int4pack(packed, **given)


def changed(scale=None, z=None):
    """Scales and zeros of a weight, one of them another."""
    both = to_int4pack(int4(16, 128)).scales_and_zeros.clone()
    for i, value in enumerate((scale, z)):
        if value is not None:
            both[1, 3, i] = value
    return both


DATA = to_int4pack(int4(16, 128)).data
MULTIPLE = r"a zero must be scale \* \(8 - zero_point\) for an integer zero_point from 0 to 15, got scale"


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"data": DATA.float()}, TypeError, r"from_int4pack: data must be torch\.\w+, got torch\.float32"),
        ({"data": DATA.flatten()}, ValueError, r"data must have \d dimensions, got shape \(\d+,\)"),
        ({"data": DATA[:8]}, ValueError, r"data must be of N a multiple of|scales_and_zeros must have shape"),
        ({"scales_and_zeros": changed().int()}, TypeError, r"scales_and_zeros must be torch\.float32 or .* got torch\.int32"),
        ({"scales_and_zeros": changed()[:2]}, ValueError, r"scales_and_zeros must have shape \(4, 16, 2\), got \(2, 16, 2\)"),
        ({"scales_and_zeros": changed()[..., 0]}, ValueError, "scales_and_zeros must have 3 dimensions"),
        ({"scales_and_zeros": changed().to("meta")}, ValueError, "scales_and_zeros is on meta and data on"),
        ({"scales_and_zeros": changed(float("inf"))}, ValueError, "scales_and_zeros must be finite"),
        ({"scales_and_zeros": changed(0.5, 0.25)}, ValueError, MULTIPLE + r" 0\.5, zero 0\.25"),
        ({"scales_and_zeros": changed(0.5, 1.0078125)}, ValueError, MULTIPLE),  # an ulp of bf16 beside 2 * 0.5
        ({"scales_and_zeros": changed(0.5, 4.5)}, ValueError, MULTIPLE),  # zero-point -1
        ({"scales_and_zeros": changed(0.5, -4.0)}, ValueError, MULTIPLE),  # 16
        ({"scales_and_zeros": changed(0.0, 1.0)}, ValueError, MULTIPLE),
        ({"group_size": 16}, ValueError, "group_size must be 256, 128, 64 or 32, got 16"),
        ({"group_size": 32.0}, ValueError, r"group_size must be 256, 128, 64 or 32, got 32\.0"),
        ({"inner_k_tiles": 1}, ValueError, "inner_k_tiles must be 2, 4 or 8, got 1"),
    ],
)
def test_bad_int4pack(given, error, message):
    with pytest.raises(error, match=message):
        from_int4pack(**({"data": DATA, "scales_and_zeros": changed(), "group_size": 32} | given))


def test_a_packing_that_is_no_permutation_is_found(monkeypatch):
    real = packed_formats.arranged
    data = to_int4pack(int4(64, 128)).data
    monkeypatch.setattr(packed_formats, "arranged", lambda codes, tiles: real(codes & 14, tiles))
    with pytest.raises(RuntimeError, match="torch's packing on this device does more than move codes"):
        from_int4pack(data, to_int4pack(int4(64, 128)).scales_and_zeros, group_size=32)


def test_a_packing_in_larger_blocks_is_learned_whole(monkeypatch):
    """As if torch interleaved all rows: blocks of 64 do not tell, the whole does."""
    real = packed_formats.arranged
    monkeypatch.setattr(packed_formats, "arranged", lambda codes, tiles: real(codes.flip(0), tiles))
    packed = int4(128, 128)
    same(from_int4pack(*to_int4pack(packed)), packed)


def by_hand(values, bits):
    """Rows of int32 words of the values down a column, as GPTQ's definition has them, one word at a time."""
    rows = []
    mask = 2**32 - 1
    for start in range(0, len(values), 32):
        v = [values[start + i].long() for i in range(min(32, len(values) - start))]
        if bits == 3:
            first = sum(v[i] << (3 * i) for i in range(10)) | v[10] << 30
            second = v[10] >> 2 | sum(v[11 + i] << (3 * i + 1) for i in range(10)) | v[21] << 31
            third = v[21] >> 1 | sum(v[22 + i] << (3 * i + 2) for i in range(10))
            rows += [first & mask, second & mask, third & mask]
        else:
            each = 32 // bits
            rows += [sum(v[at + i] << (bits * i) for i in range(each)) for at in range(0, len(v), each)]
    words = torch.stack(rows)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


@pytest.mark.parametrize("minus_one", [True, False])
@pytest.mark.parametrize("bits", BITS)
def test_gptq_words_are_those_of_its_definition(bits, minus_one):
    codes, zero = drawn_codes((64, 96), bits, torch.uint8), drawn_codes((64, 3), bits, torch.uint8, 2).clamp(min=1)
    scale = torch.rand(64, 3, device=DEVICE)
    packed = fastq.pack(codes, bits, scale=scale, zero_point=zero, group_size=32)
    theirs = to_gptq(packed, minus_one=minus_one)
    assert torch.equal(theirs.qweight, by_hand(codes.t(), bits)) and theirs.qweight.shape == (96 * bits // 32, 64)
    assert torch.equal(theirs.qzeros, by_hand(zero - int(minus_one), bits).t()) and theirs.qzeros.shape == (3, 64 * bits // 32)
    assert torch.equal(theirs.scales, scale.t()) and theirs.g_idx.tolist() == [k // 32 for k in range(96)]
    assert theirs.bits == bits and theirs.group_size == 32
    for g_idx in (None, theirs.g_idx, theirs.g_idx.long()):
        again = from_gptq(*theirs[:3], g_idx, bits=bits, group_size=32, minus_one=minus_one)
        same(again, packed)


@pytest.mark.parametrize("group_size", [None, 48, 128])
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8], ids=str)
@pytest.mark.parametrize("bits", BITS)
def test_gptq_and_back(bits, dtype, group_size):
    """Of any granularity; signed codes as signed ones."""
    for zeros in (False, True):
        packed = weight((32, 64), bits, dtype, group_size, zeros)[1]
        theirs = to_gptq(packed, minus_one=False)
        again = from_gptq(*theirs, minus_one=False, signed=dtype == torch.int8)
        if zeros or dtype == torch.int8:
            same(again, packed)
        assert torch.equal(again.data, packed.data) and torch.equal(again.dequantize(), packed.dequantize())
        half = fastq.pack(packed.unpack(), bits, scale=packed.scale.half().float(), group_size=group_size)
        assert to_gptq(half, minus_one=False, dtype=torch.float16).scales.dtype == torch.float16


def test_gptq_of_a_weight_per_tensor_is_one_per_channel():
    packed = weight((32, 64), 4, scale=0.5)[1]
    again = from_gptq(*to_gptq(packed), signed=True)
    assert again.scale.tolist() == [0.5] * 32 and again.zero_point is None and torch.equal(again.unpack(), packed.unpack())


@pytest.mark.parametrize("bits", BITS)
def test_a_zero_point_of_0_is_not_stored_less_one(bits):
    packed = weight((32, 64), bits, torch.uint8, scale=1.0, zero_point=0)[1]
    with pytest.raises(ValueError, match=r"to_gptq: a zero-point of 0 .* cannot be stored less one; minus_one=False"):
        to_gptq(packed)
    theirs = to_gptq(packed, minus_one=False)
    assert from_gptq(*theirs, minus_one=False).zero_point.tolist() == [0] * 32
    full = torch.full_like(theirs.qzeros, -1)
    with pytest.raises(ValueError, match=rf"from_gptq: qzeros holds {2**bits - 1}, a zero-point of {2**bits} or 0 less one"):
        from_gptq(*theirs._replace(qzeros=full))


def test_what_gptq_cannot_hold():
    with pytest.raises(
        ValueError, match=r"to_gptq: weight must have N and K that fill int32 words with 3 bits each, got \(32, 48\)"
    ):
        to_gptq(weight((32, 48), 3)[1])
    with pytest.raises(ValueError, match=r"to_gptq: weight must have N and K that fill .* got \(5, 64\)"):
        to_gptq(weight((5, 64), 4)[1])
    with pytest.raises(ValueError, match=r"to_gptq: scale must hold torch\.float16 numbers, got 9.99.*e-10; dtype=torch"):
        to_gptq(weight((32, 64), 4, scale=1e-9)[1], dtype=torch.float16)
    with pytest.raises(TypeError, match=r"to_gptq: weight must be a fastq\.PackedWeight, got a Tensor"):
        to_gptq(torch.zeros(32, 64))


THEIRS = to_gptq(weight((32, 64), 4, torch.uint8, 16, scale=torch.ones(32, 4, device=DEVICE), zero_point=3)[1])
REORDERED = torch.arange(64, device=DEVICE) % 4


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"g_idx": REORDERED}, ValueError, r"g_idx must be k // group_size for each of 64; one in order of activation \(act-order"),
        ({"g_idx": THEIRS.g_idx[:32]}, ValueError, "g_idx must be k // group_size for each of 64"),
        ({"g_idx": THEIRS.g_idx.float()}, TypeError, r"g_idx must be torch\.int32 or torch\.int64, got torch\.float32"),
        ({"bits": 5}, ValueError, "bits must be 2, 3, 4 or 8, got 5"),
        ({"bits": 4.0}, ValueError, r"bits must be 2, 3, 4 or 8, got 4\.0"),
        ({"bits": 3}, ValueError, r"qweight must be \(K \* 3 / 32, N\) with N \* 3 a multiple of 32, got \(8, 32\)"),
        ({"bits": 8}, ValueError, r"qzeros must have shape \(2, 8\) for K = 32, N = 32 and 2 group\(s\), got \(4, 4\)"),
        ({"group_size": 20}, ValueError, "group_size must be -1 or a multiple of 16, got 20"),
        ({"group_size": 0}, ValueError, "group_size must be -1 or a multiple of 16, got 0"),
        ({"group_size": 32}, ValueError, r"qzeros must have shape \(2, 4\) for K = 64, N = 32 and 2 group\(s\), got \(4, 4\)"),
        ({"scales": THEIRS.scales[:, :31]}, ValueError, r"scales must have shape \(4, 32\) .* got \(4, 31\)"),
        ({"scales": THEIRS.scales / 0}, ValueError, r"from_gptq: scales must be finite in float32, got \[inf, "),
        ({"scales": THEIRS.scales.int()}, TypeError, r"scales must be torch\.float32 or .* got torch\.int32"),
        ({"scales": THEIRS.scales.to("meta")}, ValueError, "scales is on meta and qweight on"),
        ({"qweight": THEIRS.qweight.long()}, TypeError, r"qweight must be torch\.int32, got torch\.int64"),
        ({"qweight": None}, TypeError, r"qweight must be torch\.int32, got NoneType"),
        ({"qzeros": THEIRS.qzeros[0]}, ValueError, r"qzeros must have 2 dimensions, got shape \(4,\)"),
    ],
)
def test_bad_gptq(given, error, message):
    fields = {
        "qweight": THEIRS.qweight,
        "qzeros": THEIRS.qzeros,
        "scales": THEIRS.scales,
        "g_idx": None,
        "bits": 4,
        "group_size": 16,
    }
    with pytest.raises(error, match=message):
        from_gptq(**(fields | given))


@pytest.mark.parametrize("shape", [(0, 64), (64, 0)])
def test_empty_weights(shape):
    packed = fastq.pack(
        torch.empty(shape, dtype=torch.uint8, device=DEVICE), 4, scale=torch.ones(shape[0], device=DEVICE), zero_point=3
    )
    again = from_gptq(*to_gptq(packed))
    assert again.shape == shape and torch.equal(again.zero_point, packed.zero_point)
    if DEVICE == "cpu":  # of what torch's conversion for GPUs makes of none, nothing is promised
        assert from_int4pack(*to_int4pack(packed)).shape == shape
