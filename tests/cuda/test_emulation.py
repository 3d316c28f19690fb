"""The CUDA kernels without a GPU: compiled as plain C++ (csrc/cuda/launch.cuh has the loops that take the place of a
launch) and held against the CPU kernels, bit for bit, sums included: the two share the order of every addition.

What stays unproven here is the launch and the hardware.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from emulated import library, objects
from sources import ROOT

import fastq.ops  # noqa: F401  (loads the CPU kernels and defines the schemas)
from fastq import testing
from fastq.ops._library import OPERATORS

pytestmark = pytest.mark.source


def build(methods: set[str]) -> Path:
    """The operators over the kernels of ``methods``, as one library; a call of another method's crashes."""
    lists = {path.stem for path in (ROOT / "csrc" / "cuda").glob("*.cu")} - {"codes", "decode", "direct", "kernels", "sat"}
    assert methods <= lists, methods - lists
    text = (
        f'#include "{ROOT}/csrc/cuda/kernels.h"\n#define NONE(name, ...) extern const Launchers name##_launchers = {{}};\n'
        f"namespace fastq::cuda {{ {' '.join(f'FASTQ_{name.upper()}(NONE)' for name in sorted(lists - methods))} }}\n"
    )
    left_out = objects() / f"left_out_{hashlib.sha256(text.encode()).hexdigest()[:16]}.cu"
    left_out.write_text(text)
    kernels = [f"{name}.cu" for name in sorted({"direct", "kernels", "sat", *methods})]
    return library(kernels, ["direct", "elementwise"], "emulation.cpp", left_out)


@pytest.fixture(scope="module")
def emulated(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The operators, of the methods that the tests to be run say they need: a few of the tests take a part of the minute."""
    library = torch.library.Library("fastq_emulated", "DEF")
    for name in OPERATORS:
        library.define(str(getattr(torch.ops.fastq, name).default._schema).removeprefix("fastq::"))
    tests = [item for item in request.session.items if "emulated" in getattr(item, "fixturenames", ())]
    torch.ops.load_library(str(build({method for item in tests for mark in item.iter_markers("emulates") for method in mark.args})))
    yield torch.ops.fastq_emulated


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """The bits and the strides."""
    return a.stride() == b.stride() and testing.same_bits(a, b)


# (shape, axis, group_size). What each is there for: the walk that it takes and where its tiles end.
SHAPES = {
    "one element": ((1,), -1, 0),
    "0-d": ((), -1, 0),
    "less than a lane each": ((5,), -1, 0),
    "one chunk exactly": ((4096,), -1, 0),
    "chunks and a ragged end": ((3, 4099), -1, 0),
    "more chunks than lanes of the finish": ((1_060_000,), -1, 0),
    "channels of one chunk, aligned": ((2, 3, 4096), 1, 0),
    "channels of several chunks": ((2, 3, 5000), 1, 0),
    "channels of half a tile": ((2, 3, 2048), 1, 0),
    "channels misaligned": ((2, 3, 2311), 1, 0),
    "rows 7x7": ((5, 30, 7, 7), 1, 0),
    "rows of 128": ((6, 50, 128), 1, 0),
    "rows of 33": ((3, 333, 33), 1, 0),
    "very short rows": ((700, 3), 0, 0),
    "rows of one": ((600,), 0, 0),
    "groups of 128": ((40, 512), -1, 128),
    "groups of 5": ((31, 20), -1, 5),
    "columns": ((300, 96), 1, 0),
    "columns, ragged block": ((130, 50), 1, 0),
    "columns, odd width": ((257, 37), 1, 0),
    "columns, three": ((1000, 3), 1, 0),
    "columns of runs": ((140, 9, 4), 1, 0),
}
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
SPECIAL = [0.0, -0.0, float("inf"), float("-inf"), 1e-40, -1e-40, 0.5, 1.5, -0.5, 2.5, 7.5, -8.5, 3e38]


def inputs(name: str, dtype: torch.dtype, offset: bool, shift: int, special: bool) -> tuple[Any, ...]:
    shape, axis, group = SHAPES[name]
    generator = torch.Generator().manual_seed(len(name) * 7 + shift)
    arithmetic = torch.float64 if dtype == torch.float64 else torch.float32

    def tensor() -> torch.Tensor:
        n = torch.Size(shape).numel()
        storage = torch.randn(n + shift, generator=generator, dtype=torch.float64) * 3
        if special:
            every = torch.arange(0, n, 5) + shift
            storage[every] = torch.tensor(SPECIAL, dtype=torch.float64).repeat(len(every) // len(SPECIAL) + 1)[: len(every)]
        return storage.to(dtype)[shift:].view(shape)

    parameter = (*shape[:-1], shape[-1] // group) if group else (shape[axis],) if axis >= 0 else (1,)
    step = (torch.rand(parameter, generator=generator, dtype=torch.float64) * 0.5 + 0.25).to(arithmetic)
    if special:
        step.view(-1)[-1] = -0.5
        step.view(-1)[0] = 1.0
    b = torch.randn(parameter, generator=generator, dtype=torch.float64).to(arithmetic) if offset else None
    return tensor(), tensor(), step, b, axis, group


def compare(emulated: Any, x: Any, g: Any, step: Any, b: Any, axis: int, group: int, boundary: int = 0) -> None:
    forward = (x, step, b, -8, 7, axis, group, 1e-8)
    backward = (g, *forward, boundary, 0.25, 1, 0.75)
    with torch.no_grad():
        assert same_bits(emulated.lsq_forward(*forward), torch.ops.fastq.lsq_forward(*forward)), "y"
        ours, theirs = emulated.lsq_backward(*backward), torch.ops.fastq.lsq_backward(*backward)
    for what, mine, other in zip(("dx", "dstep", "doffset"), ours, theirs, strict=True):
        assert same_bits(mine, other), what


@pytest.mark.emulates("lsq")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_same_bits_as_the_cpu(emulated: Any, name: str, dtype: torch.dtype) -> None:
    if name.startswith("more chunks"):
        compare(emulated, *inputs(name, dtype, offset=False, shift=0, special=False))
        return
    for i, (offset, shift, special) in enumerate([(False, 0, False), (True, 0, True), (True, 1, False), (False, 3, True)]):
        compare(emulated, *inputs(name, dtype, offset, shift, special), boundary=i % 3)


@pytest.mark.emulates("lsq")
def test_nan_and_infinite_parameters(emulated: Any) -> None:
    x, g, step, b, axis, group = inputs("rows of 33", torch.float32, offset=True, shift=0, special=False)
    step[:5] = torch.tensor([float("nan"), float("inf"), 0.0, -1e-12, 1e30])
    b[2:8] = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e30, -0.0, 0.0])
    x[1, :, 7] = float("nan")
    compare(emulated, x, g, step, b, axis, group)


@pytest.mark.emulates("lsq")
def test_layouts(emulated: Any) -> None:
    x, g, step, b, axis, group = inputs("rows 7x7", torch.bfloat16, offset=True, shift=0, special=True)
    compare(emulated, x.to(memory_format=torch.channels_last), g, step, b, axis, group)
    compare(emulated, x.transpose(2, 3), g.expand(5, 30, 7, 7), step, b, axis, group)
    compare(emulated, x, torch.ones((), dtype=x.dtype).expand(x.shape), step, b, axis, group)


@pytest.mark.emulates("lsq")
def test_empty(emulated: Any) -> None:
    x, step = torch.empty(0, 4), torch.ones(1)
    compare(emulated, x, x, step, None, -1, 0)


@pytest.mark.emulates("lsq")
def test_a_16_bit_value_rounds_as_torch_rounds_it(emulated: Any) -> None:
    """The conversions over every 16-bit value: step 1 leaves the code of an integer; offset 0 the sign and NaN."""
    every = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.bfloat16, torch.float16):
        x = every.view(dtype).clone()
        step = torch.linspace(0.01, 3, 65536)
        compare(emulated, x, x.flip(0), step, None, 0, 0)


@pytest.mark.emulates("affine")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("shape, axis", [((5000,), -1), ((6, 700), 0), ((300, 33), 1), ((4, 6, 5, 5), 1)], ids=str)
@torch.no_grad()
def test_affine_has_the_bits_of_the_cpu(emulated: Any, shape: tuple[int, ...], axis: int, dtype: torch.dtype) -> None:
    x, g = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    x.view(-1)[:4] = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0])
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    n = 1 if axis < 0 else shape[axis]
    scale, zero_point = torch.rand(n).to(kind) * 0.1 + 0.05, (torch.rand(n) * 9 - 5).to(kind)
    ours = emulated.affine_forward(x, scale, zero_point, -8, 7, axis)
    assert same_bits(ours, torch.ops.fastq.affine_forward(x, scale, zero_point, -8, 7, axis))
    for learnable in (False, True):
        args = (g, x, scale, zero_point, -8, 7, axis, learnable, 0.5)
        for a, b in zip(emulated.affine_backward(*args), torch.ops.fastq.affine_backward(*args), strict=True):
            assert same_bits(a, b)


@pytest.mark.emulates("lsq", "dampening", "oscillation")
@torch.no_grad()
def test_many_tensors_have_the_bits_of_the_cpu(emulated: Any) -> None:
    """Every walk and dtype in one launch, and more jobs of sums than one launch takes."""
    names = [*(name for name in SHAPES if not name.startswith("more chunks")), "one chunk exactly"]
    x, g, step, axis, group = [], [], [], [], []
    for i in range(110):
        dtype = DTYPES[0] if i < 100 else DTYPES[i % 4]
        one = inputs(names[i % len(names)], dtype, offset=False, shift=i % 2, special=i % 3 == 0)
        for values, value in zip((x, g, step, axis, group), (*one[:3], *one[4:]), strict=True):
            values.append(value)
    each = ([-8] * len(x), [7] * len(x), axis, group, 1e-8)
    for ours, theirs in (
        (emulated.foreach_lsq_forward(x, step, *each), torch.ops.fastq.foreach_lsq_forward(x, step, *each)),
        (
            emulated.foreach_lsq_backward(g, x, step, *each, 0, 0.5, 1),
            torch.ops.fastq.foreach_lsq_backward(g, x, step, *each, 0, 0.5, 1),
        ),
    ):
        assert all(same_bits(a, b) for a, b in zip(ours, theirs, strict=True))

    ours, theirs = (space.foreach_dampening_forward(x, step, *each) for space in (emulated, torch.ops.fastq))
    assert all(same_bits(a, b) for a, b in zip(ours, theirs, strict=True))
    scalars = [torch.tensor(0.3 + i, dtype=s.dtype) for i, s in enumerate(step)]
    factors = [1 / (i + 1) for i in range(len(x))]
    ours, theirs = (space.foreach_dampening_backward(scalars, x, step, *each, factors) for space in (emulated, torch.ops.fastq))
    assert all(same_bits(a, b) for a, b in zip(ours, theirs, strict=True))
    moving = [[t.clone() for t in x] for _ in range(2)]
    planes = [[[torch.zeros_like(t, dtype=torch.int32) for t in x] for _ in range(2)] for _ in range(2)]
    for operators, w, (freeze, track) in zip((emulated, torch.ops.fastq), moving, planes, strict=True):
        for _ in range(3):
            operators.foreach_oscillation_step(w, step, freeze, track, *each, 0.25, 0.25, 2**20, True)
    for ours, theirs in zip([*moving[:1], *planes[0]], [*moving[1:], *planes[1]], strict=True):
        assert all(same_bits(a, b) if a.is_floating_point() else torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def moved(t: torch.Tensor) -> torch.Tensor:
    """A copy that lies as far beside 16 bytes as ``t`` does."""
    start = t.storage_offset()
    return torch.empty(start + t.numel(), dtype=t.dtype)[start:].view(t.shape).copy_(t)


@pytest.mark.parametrize("levels", [2, 8, 32, 256])
@pytest.mark.parametrize("shape", [(1,), (4096,), (3, 4099), (150_001,)], ids=str)
@torch.no_grad()
def test_direct_has_the_bits_of_the_cpu(emulated: Any, shape: tuple[int, ...], levels: int) -> None:
    generator = torch.Generator().manual_seed(levels)
    level = torch.randn(levels, generator=generator).sort().values
    for i, dtype in enumerate(DTYPES[:3]):
        n = torch.Size(shape).numel()
        # `i` elements further on: 16-byte loads, and loads one by one
        codes = torch.randint(256, (n + i,), generator=generator, dtype=torch.uint8)[i:].view(shape)
        g = torch.randn(n + i, generator=generator).to(dtype)[i:].view(shape)
        g.view(-1)[::7] = torch.tensor([float("nan"), float("inf"), 0.0]).repeat(n)[: len(g.view(-1)[::7])]
        assert same_bits(
            emulated.direct_weight_forward(codes, level, dtype), torch.ops.fastq.direct_weight_forward(codes, level, dtype)
        )
        for gradient in (g, g.nan_to_num(posinf=1.0)):
            ours = emulated.direct_weight_backward(gradient, codes, levels)
            assert same_bits(ours, torch.ops.fastq.direct_weight_backward(gradient, codes, levels))
        for residual_dtype in (*DTYPES[:3], None):
            residual, rho = None, 0.0
            if residual_dtype is not None:
                residual, rho = (torch.randn(n + i, generator=generator) / 4).to(residual_dtype)[i:].view(shape), 0.75
            results = []
            for operators in (emulated, torch.ops.fastq):
                a, r = moved(codes), None if residual is None else moved(residual)
                operators.direct_update_(a, r, level, g, 0.3, rho)
                results.append((a, r))
            assert torch.equal(results[0][0], results[1][0])
            assert residual is None or same_bits(results[0][1], results[1][1])


@pytest.mark.emulates("frozen_lsq", "dampening", "oscillation")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["one element", "chunks and a ragged end", "rows 7x7", "groups of 5", "columns, odd width"])
@torch.no_grad()
def test_oscillations_have_the_bits_of_the_cpu(emulated: Any, name: str, dtype: torch.dtype) -> None:
    for shift in (0, 1):
        x, g, step, _, axis, group = inputs(name, dtype, offset=False, shift=shift, special=True)
        # Any state: codes of 4 bits, directions 0 to 2, averages between codes where nothing is frozen.
        held, code, direction, f = (torch.randint(0, n, x.shape) for n in (2, 15, 3, 2**24))
        freeze = (code << 21) + (1 - held) * (f >> 3) | direction << 29 | -(held << 31)
        planes = torch.stack([freeze, f - (f >> 23 << 24) << 8 | code]).int()
        where = (-8, 7, axis, group, 1e-8)
        frozen = (x, step, planes[0], *where)
        assert same_bits(emulated.frozen_lsq_forward(*frozen), torch.ops.fastq.frozen_lsq_forward(*frozen))
        ours, theirs = (space.frozen_lsq_backward(g, *frozen, 0, 0.25, 1) for space in (emulated, torch.ops.fastq))
        assert all(same_bits(a, b) for a, b in zip(ours, theirs, strict=True))
        ours, theirs = (space.dampening_forward(x, step, *where) for space in (emulated, torch.ops.fastq))
        assert same_bits(ours, theirs)
        scalar = torch.tensor(0.7, dtype=step.dtype)
        ours, theirs = (space.dampening_backward(scalar, x, step, *where, 0.3) for space in (emulated, torch.ops.fastq))
        assert same_bits(ours, theirs)
        x[..., -1] = float("nan")
        for rates in ((0.25, 0.25, 2**22, False), (0.0009765625, 0.0, 2**24, True), (0.3, 0.3, 0, True)):
            results = []
            for space in (emulated, torch.ops.fastq):
                w, state = x.clone(), planes.clone()
                space.oscillation_step(w, step, *state, *where, *rates)
                results.append((w, state))
            assert same_bits(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


def learned(name: str, shape: tuple[int, ...], axis: int, group: int, dtype: torch.dtype) -> list[tuple[str, tuple[Any, ...], Any]]:
    """``(operator, arguments after x, further ones of its backward pass)`` for each variant of a method."""
    arithmetic = torch.float64 if dtype == torch.float64 else torch.float32
    parameter = (*shape[:-1], shape[-1] // group) if group else (shape[axis],) if axis >= 0 else (1,)
    a, b, c = ((torch.rand(parameter, dtype=torch.float64) + 0.5).to(arithmetic) for _ in range(3))
    a.view(-1)[-1], b.view(-1)[0] = -0.75, float("nan")
    where = (axis, group, 1e-8)
    if name == "pact":
        return [("pact", (a, 15, two_sided, *where), (calibrated,)) for two_sided in (False, True) for calibrated in (False, True)]
    if name == "ewgs":
        return [("ewgs", (-a, b, 15, *where), (boundary, 0.5)) for boundary in (0, 1)]
    return [("qil", (a, b, gamma, 7, weight, *where), ()) for gamma, weight in ((None, False), (None, True), (c, True))]


@pytest.mark.emulates("pact", "ewgs", "qil")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("shape, axis, group", [((5000,), -1, 0), ((6, 70), 0, 0), ((300, 33), 1, 0), ((9, 20), -1, 5)], ids=str)
@pytest.mark.parametrize("name", ["pact", "ewgs", "qil"])
@torch.no_grad()
def test_learned_intervals_have_the_bits_of_the_cpu(
    emulated: Any, name: str, shape: tuple[int, ...], axis: int, group: int, dtype: torch.dtype
) -> None:
    x, g = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    x.view(-1)[:4] = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0])
    for op, forward, further in learned(name, shape, axis, group, dtype):
        forward_op, backward_op = f"{op}_forward", f"{op}_backward"
        theirs = getattr(torch.ops.fastq, forward_op)(x, *forward)
        assert same_bits(getattr(emulated, forward_op)(x, *forward), theirs)
        ours = getattr(emulated, backward_op)(g, x, *forward, *further)
        for mine, other in zip(ours, getattr(torch.ops.fastq, backward_op)(g, x, *forward, *further), strict=True):
            assert same_bits(mine, other), (op, forward[-5:], further)


@pytest.mark.emulates("channel_error")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@torch.no_grad()
def test_channel_error_has_the_bits_of_the_cpu(emulated: Any, dtype: torch.dtype) -> None:
    for name in ("channels misaligned", "rows 7x7", "rows of 33", "columns, odd width", "columns of runs", "very short rows"):
        shape, axis, _ = SHAPES[name]
        x, g, step, _, _, _ = inputs(name, dtype, offset=False, shift=0, special=True)
        error = torch.randn(shape[axis], generator=torch.Generator().manual_seed(1)).to(step.dtype)
        error[0] = 0
        one = step.view(-1)[-1:]
        backward = (g, x, one, error, -8, 7, axis, 1e-8, 1, 0.25, 1)
        for op, args in (
            ("channel_error_forward", (x, one, -8, 7, axis, 1e-8, False)),
            ("channel_error_forward", (x, one, 1, 6, axis, 1e-8, True)),
            ("channel_error_backward", backward),
            ("channel_error_backward", (*backward[:4], 1, 6, *backward[6:])),  # no code is 0
        ):
            ours, theirs = (getattr(operators, op)(*args) for operators in (emulated, torch.ops.fastq))
            assert all(same_bits(a, b) for a, b in zip(ours, theirs, strict=True)), (name, op)


@pytest.mark.emulates("dsq")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["chunks and a ragged end", "rows 7x7", "columns, ragged block", "groups of 5"])
@torch.no_grad()
def test_dsq_has_the_bits_of_the_cpu(emulated: Any, name: str, dtype: torch.dtype) -> None:
    x, g, alpha, _, axis, group = inputs(name, dtype, offset=False, shift=0, special=True)
    lower, upper = -alpha.abs() * 3, alpha * 4  # where alpha is negative the bounds cross
    ours = emulated.dsq_forward(x, lower, upper, 7, axis, group)
    assert same_bits(ours, torch.ops.fastq.dsq_forward(x, lower, upper, 7, axis, group))
    for soft in (alpha, None):
        args = (g, x, lower, upper, soft, 0.3, 7, axis, group)
        for a, b in zip(emulated.dsq_backward(*args), torch.ops.fastq.dsq_backward(*args), strict=True):
            assert same_bits(a, b)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1,), (5,), (4096,), (3, 4099), (300_001,), (5, 30, 7, 7)], ids=str)
@torch.no_grad()
def test_sat_has_the_bits_of_the_cpu(emulated: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    w, g = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    w.view(-1)[1:3] = w.abs().max()  # of the maxima the first in row-major order
    if w.dim() == 4:
        w = w.to(memory_format=torch.channels_last)
    broken = w.clone()
    broken[(-1,) * w.dim()] = float("nan") if w.dim() < 4 else float("inf")
    for weight in (w, broken, torch.zeros_like(w)) if len(shape) > 1 else (w,):
        for arguments in ((4, 0, 1, 9), (8, 1, 2, 9), (2, 2, 0, 9), (0, 0, 2, 9)):
            ours, theirs = emulated.sat_forward(weight, *arguments), torch.ops.fastq.sat_forward(weight, *arguments)
            assert all(same_bits(a, b) for a, b in zip(ours, theirs, strict=True)), arguments
            for through_max in (True, False):
                a, b = (space.sat_backward(g, weight, *theirs[1:], through_max) for space in (emulated, torch.ops.fastq))
                assert same_bits(a, b), arguments


@pytest.mark.emulates("tempered", "noise_quant")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "name", ["chunks and a ragged end", "rows 7x7", "groups of 5", "columns", "columns, three", "columns, odd width"]
)
@torch.no_grad()
def test_noise_has_the_bits_of_the_cpu(emulated: Any, name: str, dtype: torch.dtype) -> None:
    """Aligned and not, every kind: pieces that share a counter's words, and elements that make their own."""
    cpu, seed = torch.ops.fastq, torch.tensor([-(2**40) - 5])
    for shift in (0, 1):
        x, g, step, _, axis, group = inputs(name, dtype, offset=False, shift=shift, special=shift == 1)
        for kind in range(3):
            how = (-8, 7, axis, group, 1e-8)
            for backend in ("tempered", "noise_quant"):
                if backend == "tempered":
                    decay = torch.full((1,), 0.7, dtype=step.dtype)
                    forward: tuple[Any, ...] = (x, step, step * 2, seed, decay, *how, kind, kind)
                    backward = [(g, *forward, reading, 0.25, 1, 0.75) for reading in range(3)]
                else:
                    forward = (x, step, seed, *how, kind == 1, kind)
                    backward = [(g, *forward, 0.25, 1)]
                assert same_bits(getattr(emulated, f"{backend}_forward")(*forward), getattr(cpu, f"{backend}_forward")(*forward))
                for arguments in backward:
                    ours = getattr(emulated, f"{backend}_backward")(*arguments)
                    theirs = getattr(cpu, f"{backend}_backward")(*arguments)
                    assert all(same_bits(a, b) for a, b in zip(ours, theirs, strict=True)), (backend, kind, shift)
