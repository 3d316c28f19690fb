"""Packed weights hold their codes exactly, in as many bits as these have, and refuse what is none."""

import copy
import io
import itertools
import pickle

import pytest
import torch
from device import DEVICE
from engine_cases import drawn_codes
from packing_cases import same, weight

import fastq
from fastq import packing
from fastq.packing import BITS, LAYOUTS, PackedWeight, layout_of, pack

SIGNS = (torch.int8, torch.uint8)
#: At and beside whole bytes, words and tiles of every width.
LENGTHS = (1, 2, 7, 8, 9, 63, 64, 65, 255, 257)


@pytest.mark.parametrize("dtype", SIGNS, ids=str)
@pytest.mark.parametrize("bits", BITS)
def test_unpack_gives_the_codes_again(bits, dtype):
    for n, k in itertools.product((1, 3), LENGTHS):
        codes, packed = weight((n, k), bits, dtype)
        for layout in LAYOUTS:
            again = packed.to(DEVICE, layout).unpack()
            assert torch.equal(again, codes) and again.dtype == dtype and again.is_contiguous()


@pytest.mark.parametrize("layout", ["rows", "tiles"])
@pytest.mark.parametrize("bits", BITS)
def test_every_field_lies_where_the_layout_says(bits, layout):
    """By the documentation's words, one element at a time."""
    codes, packed = weight((2, 203), bits, torch.uint8)
    wide = 4 if bits == 3 and layout == "tiles" else bits
    fields = (codes.int() - 2 ** (bits - 1)) % 2**wide
    data = packed.to(DEVICE, layout).data.int()
    seen = torch.zeros_like(data)
    for k in range(203):
        if layout == "rows":
            at = range(k * bits, (k + 1) * bits)
        else:
            tile, inside = divmod(k, 64 * (8 // wide))
            part, byte = divmod(inside, 64)
            first = (tile * 64 + byte) * 8 + part * wide
            at = range(first, first + wide)
        for i, bit in enumerate(at):
            value = (data[:, bit // 8] >> (bit % 8)) & 1
            assert torch.equal(value, (fields[:, k] >> i) & 1)
            seen[:, bit // 8] |= value << (bit % 8)
    assert torch.equal(seen, data)  # what pads is zeros


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_every_field_lies_in_its_block(bits):
    """By the documentation's words, one element at a time; what pads is 0, stored as the middle where there is no sign."""
    n, k = 19, 131
    codes, packed = weight((n, k), bits, torch.int8)
    data = packed.to(DEVICE, "blocks").data
    assert data.shape == (2, 3 * 128 * bits)
    assert torch.equal(packing.pack_blocks_in_torch(packed.fields(), bits), data)  # where there is no native library
    tiles = data.int().cpu().view(2, 3, 2 * bits, 64)
    plane = 2 if bits == 3 else bits
    for row in range(32):
        for column in range(192):
            line, byte = column % 64 // 4, 4 * (row % 16) + column % 4
            tile = tiles[row // 16, column // 64]
            stored = int(tile[line // (8 // plane), byte]) >> (line % (8 // plane) * plane) & (2**plane - 1)
            if bits == 3:
                stored |= (int(tile[4 + line // 8, byte]) >> line % 8 & 1) << 2
            field = int(codes[row, column]) if row < n and column < k else 0
            assert stored == (field % 256 if bits == 8 else field + 2 ** (bits - 1)), (row, column)


@pytest.mark.parametrize("shape", [(6, 5, 3), (6, 5, 3, 2), (6, 1, 3, 3), (4, 3, 1, 1)])
def test_a_convolution_has_its_channels_last(shape):
    codes, packed = weight(shape, 4)
    assert packed.shape == shape and packed.k == codes[0].numel()
    assert torch.equal(packed.unpack(), codes) and packed.unpack().is_contiguous()
    assert torch.equal(packed.fields(), codes.movedim(1, -1).flatten(1))
    expected = codes.float() * packed.scale.view(-1, *[1] * (len(shape) - 1))
    assert torch.equal(packed.dequantize(), expected)


@pytest.mark.parametrize("bits", BITS)
def test_a_width_takes_its_bits(bits):
    _, packed = weight((8, 64), bits)
    assert packed.canonical().nbytes == 8 * 64 * bits // 8
    _, ragged = weight((3, 45), bits)
    assert ragged.canonical().nbytes == 3 * -(-45 * bits // 8)
    assert ragged.to(DEVICE, "tiles").nbytes == 3 * -(-45 // (64 * (8 // (4 if bits == 3 else bits)))) * 64


@pytest.mark.parametrize("group_size", [None, 16, 48])
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("dtype", SIGNS, ids=str)
@pytest.mark.parametrize("bits", BITS)
def test_sums_and_numbers_are_the_formulas(bits, dtype, zeros, group_size):
    for extreme in (False, True):
        codes = drawn_codes((3, 109), bits, dtype, extreme=extreme)
        packed = weight((3, 109), bits, dtype, group_size, zeros)[1]
        packed = pack(codes, bits, scale=packed.scale, zero_point=packed.zero_point, group_size=group_size)
        size = group_size or 109
        zero = 0 if packed.zero_point is None else packed.zero_point.view(3, -1).repeat_interleave(size, 1)[:, :109]
        centred = codes.long() - zero
        groups = [part.sum(1) for part in centred.split(size, 1)]
        expected = torch.stack(groups, 1) if group_size else groups[0]
        assert torch.equal(packed.sums, expected.int())
        scale = packed.scale.view(3, -1).repeat_interleave(size, 1)[:, :109]
        for dtype_ in (torch.float32, torch.bfloat16):
            assert torch.equal(packed.dequantize(dtype_), (centred.float() * scale).to(dtype_))


def test_a_zero_that_is_none_is_not_kept():
    """Kernels skip what is None: signed codes without zero-points, and unsigned ones whose zero-points are all in the middle."""
    assert weight()[1].stored_zero is None
    codes = drawn_codes((5, 45), 4, torch.uint8)
    assert pack(codes, 4, scale=1.0, zero_point=8).stored_zero is None
    assert pack(codes, 4, scale=1.0).stored_zero.tolist() == [-8]
    assert pack(codes, 4, scale=torch.ones(5, device=DEVICE), zero_point=7).stored_zero.tolist() == [-1] * 5


def test_scales_and_zero_points_take_each_others_shape():
    codes, ones = drawn_codes((5, 45), 4, torch.int8), torch.ones(5, device=DEVICE)
    zeros = torch.arange(5, device=DEVICE)
    assert pack(codes, 4, scale=0.5).scale.tolist() == [0.5] and pack(codes, 4, scale=2).granularity == "tensor"
    assert pack(codes, 4, scale=torch.tensor(0.5), zero_point=3).zero_point.tolist() == [3]
    packed = pack(codes, 4, scale=0.5, zero_point=zeros)
    assert packed.scale.tolist() == [0.5] * 5 and packed.zero_point.tolist() == [0, 1, 2, 3, 4]
    assert pack(codes, 4, scale=ones, zero_point=torch.tensor([3], device=DEVICE)).zero_point.tolist() == [3] * 5
    one = pack(codes[:1, :16], 4, scale=torch.ones(1, 1, device=DEVICE), zero_point=3, group_size=16)
    assert one.zero_point.tolist() == [[3]] and one.granularity == "group"
    # what is packed is a copy: the caller's tensors may change
    before = packed.unpack(), zeros.clone()
    codes.zero_(), zeros.zero_()
    assert torch.equal(packed.unpack(), before[0]) and torch.equal(packed.zero_point, before[1].int())


@pytest.mark.parametrize("bits", BITS)
def test_a_group_may_be_longer_than_a_row(bits):
    """One group then, and nothing of its length is allocated."""
    codes = drawn_codes((5, 45), bits, torch.uint8)
    scale = torch.ones(5, 1, device=DEVICE)
    packed = pack(codes, bits, scale=scale, zero_point=3, group_size=2**31 - 16)
    assert torch.equal(packed.dequantize(), codes.float() - 3)
    assert torch.equal(packed.sums, (codes.int() - 3).sum(1, dtype=torch.int32, keepdim=True))


@pytest.mark.parametrize("bits", BITS)
def test_any_strides_and_offset(bits):
    for dtype in SIGNS:
        wide = drawn_codes((40, 50), bits, dtype)
        for codes in (wide.t(), wide[::2, 1::3], wide[3:, 5:], wide[:, :1].expand(40, 17), wide.flatten()[3:1603].view(40, 40)):
            for layout in LAYOUTS:
                assert torch.equal(pack(codes, bits, scale=1.0).to(DEVICE, layout).unpack(), codes)
    images = drawn_codes((4, 8, 3, 3), bits, torch.int8).to(memory_format=torch.channels_last)
    assert torch.equal(pack(images, bits, scale=1.0).unpack(), images)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0), (0, 3, 2, 2), (4, 0, 3, 3)])
def test_empty_weights(shape):
    for bits, layout in itertools.product(BITS, LAYOUTS):
        packed = pack(torch.empty(shape, dtype=torch.int8, device=DEVICE), bits, scale=1.0, zero_point=1).to(DEVICE, layout)
        assert packed.unpack().shape == shape and packed.dequantize().shape == shape
        assert packed.sums.shape == shape[:1] and not packed.sums.any() and packed.nbytes == 0
    if len(shape) == 2:
        groups = torch.ones(shape[0], -(-shape[1] // 16), device=DEVICE)
        assert pack(torch.empty(shape, dtype=torch.int8, device=DEVICE), 4, scale=groups, group_size=16).sums.shape == groups.shape


@pytest.mark.parametrize("group_size", [None, 16])
@pytest.mark.parametrize("dtype", SIGNS, ids=str)
def test_layouts_and_copies_are_the_same_weight(dtype, group_size):
    packed = weight((5, 45), 3, dtype, group_size, zeros=True)[1]
    assert packed.to(DEVICE) is packed and packed.to(DEVICE, layout_of(DEVICE)) is packed
    for layout in LAYOUTS:
        moved = packed.to(DEVICE, layout)
        assert moved.layout == layout and torch.equal(moved.unpack(), packed.unpack())
        same(moved.to(DEVICE), packed)
        same(copy.deepcopy(moved), moved)
        same(copy.copy(moved), moved)
        same(pickle.loads(pickle.dumps(moved)), moved)
        assert copy.deepcopy(moved).data.data_ptr() != moved.data.data_ptr()
        buffer = io.BytesIO()
        torch.save(moved, buffer)
        buffer.seek(0)
        same(torch.load(buffer, weights_only=False), moved)
    assert packed.canonical().layout == "rows" and packed.canonical().device.type == "cpu"
    meta = packed.to("meta")
    assert meta.device.type == "meta" and meta.shape == packed.shape and meta.sums.shape == packed.sums.shape
    assert "uint3" in repr(packed) if dtype == torch.uint8 else "int3" in repr(packed)


class Layer(torch.nn.Module):
    """A packed weight as an attribute."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, x):
        return fastq.int_linear(x, self.weight, x_scale=0.5, x_zero_point=3)


@pytest.mark.parametrize("group_size", [None, 16])
def test_compiled_functions_close_over_weights(group_size):
    """As a module's attribute and from an enclosing scope; no graph break, and one graph for any number of rows."""
    packed = weight((5, 45), 4, torch.uint8, group_size, zeros=True)[1]
    layer = Layer(packed)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    closed = torch.compile(lambda x: fastq.int_linear(x, packed), fullgraph=True, backend="aot_eager")
    for rows in (2, 5):
        x = drawn_codes((rows, 45), 8, torch.int8, rows)
        assert torch.equal(compiled(x), layer(x)) and torch.equal(closed(x), fastq.int_linear(x, packed))
    other = weight((5, 45), 2, torch.int8)[1]  # a weight put in its place is seen
    layer.weight = other
    assert torch.equal(compiled(x), fastq.int_linear(x, other, x_scale=0.5, x_zero_point=3))
    same(copy.deepcopy(layer).weight, other)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", SIGNS, ids=str)
@pytest.mark.parametrize("bits", BITS)
def test_packing_at_once_is_packing_and_moving(monkeypatch, bits, dtype, layout):
    """As on a GPU, whose layout pack() makes without the canonical one."""
    packed = weight((3, 200), bits, dtype, zeros=True)[1]
    monkeypatch.setattr(packing, "layout_of", lambda device: layout)
    same(weight((3, 200), bits, dtype, zeros=True)[1], packed.to(DEVICE, layout))


def test_a_foreign_layout_is_refused():
    foreign = next(layout for layout in LAYOUTS if layout != layout_of(DEVICE))
    x = drawn_codes((2, 45), 8, torch.int8)
    moved = weight()[1].to(DEVICE, foreign)
    with pytest.raises(
        ValueError, match=rf"int_linear: weight must be in the layout '{layout_of(DEVICE)}', .* got '{foreign}'; weight\.to"
    ):
        fastq.int_linear(x, moved)
    image = weight((4, 5, 3, 3))[1].to(DEVICE, foreign)
    with pytest.raises(ValueError, match=rf"int_conv2d: weight must be in the layout .* got '{foreign}'"):
        fastq.int_conv2d(drawn_codes((1, 5, 4, 4), 8, torch.int8), image)
    with pytest.raises(ValueError, match=r"PackedWeight\.to: layout must be one of rows, tiles, blocks, got 'columns'"):
        moved.to(DEVICE, "columns")


def test_what_is_no_device_and_no_floating_point_dtype_is_refused():
    _, packed = weight()
    with pytest.raises(TypeError, match=r"PackedWeight\.to: device must be a torch\.device or a string .*, got torch\.float16"):
        packed.to(torch.float16)
    for dtype in (torch.int8, "float32"):
        with pytest.raises(TypeError, match=r"PackedWeight\.dequantize: dtype must be a floating point torch\.dtype, got "):
            packed.dequantize(dtype)


CODES = drawn_codes((5, 45), 4, torch.int8)
GROUPS = torch.ones(5, 3, device=DEVICE)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"codes": [[1, 2]]}, TypeError, r"pack: codes must be a torch\.int8 \(signed\) or torch\.uint8 .* tensor, got list"),
        ({"codes": CODES.float()}, TypeError, r"codes must be .* got torch\.float32"),
        ({"codes": CODES.int()}, TypeError, r"codes must be .* got torch\.int32"),
        ({"codes": CODES.to_sparse()}, TypeError, r"codes must be .* got torch\.int8 in the layout torch\.sparse_coo"),
        ({"codes": CODES.to("meta")}, ValueError, "codes must have values, got a tensor on the device meta"),
        ({"codes": CODES[0]}, ValueError, r"codes must be \(N, K\), .* got shape \(45,\)"),
        ({"codes": CODES[None, None, None]}, ValueError, r"got shape \(1, 1, 1, 5, 45\)"),
        ({"codes": CODES + 8}, ValueError, "codes must be signed 4-bit codes, -8 to 7, got 0 to 15"),
        ({"codes": (CODES + 8).byte(), "bits": 3}, ValueError, "codes must be unsigned 3-bit codes, 0 to 7, got 0 to 15"),
        ({"bits": 5}, ValueError, "bits must be 2, 3, 4 or 8, got 5"),
        ({"bits": 4.0}, TypeError, r"bits must be an int, got 4\.0"),
        ({"bits": None}, TypeError, "bits must be an int, got None"),
        ({"bits": True}, TypeError, "bits must be an int, got True"),
        ({"scale": torch.ones(4, device=DEVICE)}, ValueError, r"scale must have one element or shape \(5,\), .* got \(4,\)"),
        ({"scale": torch.ones(5, 1, device=DEVICE)}, ValueError, r"scale must have one element or shape \(5,\), .* got \(5, 1\)"),
        ({"scale": torch.ones(0, device=DEVICE)}, ValueError, r"scale must have one element .* got \(0,\)"),
        ({"scale": float("nan")}, ValueError, r"scale must be finite in float32, got \[nan\]"),
        ({"scale": 10**400}, ValueError, r"scale must be finite in float32, got \[inf\]"),
        ({"scale": 1e300}, ValueError, r"scale must be finite in float32, got \[inf\]"),
        ({"scale": torch.tensor([1, 2, float("-inf"), 4, 5], device=DEVICE)}, ValueError, r"scale must be finite .* got \[-inf\]"),
        ({"scale": torch.ones(5, dtype=torch.int32)}, TypeError, r"scale must be floating point numbers, got torch\.int32"),
        ({"scale": "0.1"}, TypeError, "scale must be floating point numbers, got '0.1'"),
        ({"scale": None}, TypeError, "scale must be floating point numbers, got None"),
        ({"scale": torch.ones(5, device="meta")}, ValueError, "scale must be on the device of codes, .* got meta"),
        ({"zero_point": 8}, ValueError, "zero_point must be signed 4-bit codes, -8 to 7, got 8 to 8"),
        ({"zero_point": -9}, ValueError, "zero_point must be signed 4-bit codes, -8 to 7, got -9 to -9"),
        ({"zero_point": 10**30}, ValueError, "zero_point must be signed 4-bit codes, -8 to 7, got"),
        ({"zero_point": 1.0}, TypeError, r"zero_point must be integers, got 1\.0"),
        ({"zero_point": True}, TypeError, "zero_point must be integers, got True"),
        ({"zero_point": torch.zeros(5, device=DEVICE)}, TypeError, r"zero_point must be integers, got torch\.float32"),
        (
            {"zero_point": torch.zeros(4, dtype=torch.int32, device=DEVICE)}, ValueError,
            r"zero_point must have one element or shape \(5,\), .* got \(4,\)",
        ),
        ({"group_size": 24, "scale": GROUPS}, ValueError, r"group_size must be a multiple of 16 .* got 24"),
        ({"group_size": 0, "scale": GROUPS}, ValueError, r"group_size must be a multiple of 16 .* got 0"),
        ({"group_size": 2**31, "scale": GROUPS}, ValueError, r"group_size must be a multiple of 16 below 2\*\*31, got 2147483648"),
        ({"group_size": -16, "scale": GROUPS}, ValueError, r"group_size must be a multiple of 16 .* got -16"),
        ({"group_size": 16.0, "scale": GROUPS}, TypeError, r"group_size must be an int, got 16\.0"),
        ({"group_size": 16}, ValueError, r"scale must have shape \(5, 3\), one per group of 16, got \(\)"),
        ({"group_size": 16, "scale": GROUPS.t()}, ValueError, r"scale must have shape \(5, 3\), one per group of 16, got \(3, 5\)"),
        (
            {"group_size": 16, "scale": GROUPS, "zero_point": GROUPS[:, :2].int()}, ValueError,
            r"zero_point must have shape \(5, 3\), one per group of 16, got \(5, 2\)",
        ),
        (
            {"codes": CODES.view(5, 5, 3, 3), "group_size": 16, "scale": GROUPS}, ValueError,
            r"group_size is for weights of shape \(N, K\), got codes of shape \(5, 5, 3, 3\)",
        ),
    ],
)  # fmt: skip
def test_bad_input(given, error, message):
    arguments = {"codes": CODES, "bits": 4, "scale": 1.0} | given
    with pytest.raises(error, match=message):
        pack(arguments.pop("codes"), arguments.pop("bits"), **arguments)


def test_blocks_of_rows_are_the_whole(monkeypatch):
    """A large weight is packed a block of rows at a time on the CPU."""
    codes = drawn_codes((37, 45), 3, torch.uint8)
    scale = torch.ones(37, 3, device=DEVICE)
    whole = pack(codes, 3, scale=scale, group_size=16)
    monkeypatch.setattr(packing, "BLOCK", 200)
    for layout in LAYOUTS:
        again = pack(codes, 3, scale=scale, group_size=16).to(DEVICE, layout)
        same(again, whole.to(DEVICE, layout))
        assert torch.equal(again.unpack(), codes)
    assert isinstance(again, PackedWeight)
