"""A reduced set of launches for compute-sanitizer: every kernel variant once, on small awkward shapes, results checked.

``compute-sanitizer --tool memcheck python -m benchmarks.sanitize --backend cuda``. Exits with 1 if a result is wrong; the
sanitizer's own findings are its exit code.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

import fastq
from fastq.engine import table
from fastq.granularity import normalize_axis, parameter_shape
from fastq.testing import same_bits

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SHAPES: tuple[tuple[tuple[int, ...], dict[str, Any]], ...] = (
    ((1,), {}),
    ((3, 1367), {}),
    ((5, 7, 129), {"axis": 0}),
    ((4, 37, 6, 5), {"axis": 1}),
    ((131, 33), {"axis": 1}),
    ((6, 384), {"group_size": 128}),
    ((0, 8), {}),
)
#: More than one chunk of partial sums, so that their second stage runs.
LARGE: tuple[tuple[tuple[int, ...], dict[str, Any]], ...] = (((257, 1031), {}), ((2, 3, 60_000), {"axis": 1}))


def layouts(x: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Contiguous; off the alignment of vector loads; transposed."""
    yield "contiguous", x
    moved = torch.empty(x.numel() + 1, dtype=x.dtype, device=x.device)[1:].view(x.shape)
    yield "misaligned", moved.copy_(x)
    if x.dim() > 1:
        yield "transposed", x.transpose(0, -1).contiguous().transpose(0, -1)


def seed(x: torch.Tensor) -> torch.Tensor:
    return torch.tensor([-7], device=x.device)


Quantizer = Callable[..., torch.Tensor]


def quantizers(granularity: dict[str, Any]) -> dict[str, tuple[Quantizer, int]]:
    """Every method as a function of ``x``, a scale and an offset, with the number of those that have a gradient."""
    found: dict[str, tuple[Quantizer, int]] = {
        "lsq": (lambda x, s, z: fastq.lsq(x, s, bits=4, **granularity), 1),
        "lsq+": (lambda x, s, z: fastq.lsq(x, s, bits=4, offset=z, **granularity), 2),
        "foreach_lsq": (lambda x, s, z: fastq.foreach_lsq([x], [s], bits=4, **granularity)[0], 1),
        "frozen_lsq": (lambda x, s, z: fastq.frozen_lsq(x, s, state_for(x), bits=4, **granularity), 1),
        "pact": (lambda x, s, z: fastq.pact(x, s, bits=4, **granularity), 1),
        "pact, plain": (lambda x, s, z: fastq.pact(x, s, bits=4, calibrated=False, **granularity), 1),
        "pact, two-sided": (lambda x, s, z: fastq.pact(x, s, bits=4, two_sided=True, **granularity), 1),
        "pact, two-sided and plain": (
            lambda x, s, z: fastq.pact(x, s, bits=4, two_sided=True, calibrated=False, **granularity),
            1,
        ),
        "ewgs": (lambda x, s, z: fastq.ewgs(x, s, 6 * s, bits=4, delta=0.5, **granularity), 1),
        "qil": (lambda x, s, z: fastq.qil(x, s, z, bits=4, weight=True, **granularity), 2),
        "qil, activation": (lambda x, s, z: fastq.qil(x, s, z, bits=4, weight=False, **granularity), 2),
        "qil, gamma": (lambda x, s, z: fastq.qil(x, s, z, s, bits=4, weight=True, **granularity), 2),
        "dsq": (lambda x, s, z: fastq.dsq(x, -3 * s, 5 * z, bits=4, alpha=0.2, **granularity), 2),
        "dsq, alpha": (lambda x, s, z: fastq.dsq(x, -3 * s, 5 * z, bits=4, alpha=s, **granularity), 2),
        "tempered": (lambda x, s, z: fastq.tempered(x, s, z, bits=4, decay=0.5, seed=seed(x), **granularity), 2),
        "tempered gradient": (
            lambda x, s, z: fastq.tempered(
                x, s, z, bits=4, decay=0.5, reading="gradient", noise="normal", seed=seed(x), **granularity
            ),
            2,
        ),
        "diffq": (lambda x, s, z: fastq.noise_quant(x, s, seed=seed(x), **granularity), 1),
        "nipq": (lambda x, s, z: fastq.noise_quant(x, s, kind="nipq", bits=4, seed=seed(x), **granularity), 1),
    }
    if "axis" in granularity:
        found["channel_error"] = (lambda x, s, z: _with_error(x, s.flatten()[:1], granularity["axis"]), 1)
    if not granularity:
        found["direct"] = (_direct, 1)
    if "axis" in granularity:
        channel, axis = fastq._fake_quantize_learnable_per_channel_affine, granularity["axis"]
        found["learnable"] = (lambda x, s, z: channel(x, s, z, axis, -8, 7, 0.5), 2)
        found["affine"] = (lambda x, s, z: fastq.fake_quantize_per_channel_affine(x, s.detach(), z.detach(), axis, -8, 7), 0)
    elif not granularity:
        found["sat"] = (lambda x, s, z: fastq.sat_weight(x, bits=4), 0)
        found["sat, std"] = (lambda x, s, z: fastq.sat_weight(x, bits=2, scheme="centered", rescale="std"), 0)
        found["sat, unquantized"] = (lambda x, s, z: fastq.sat_weight(x, bits=None, grad_through_max=False), 0)
        found["learnable"] = (lambda x, s, z: fastq._fake_quantize_learnable_per_tensor_affine(x, s, z, -8, 7, 0.5), 2)
        found["affine"] = (lambda x, s, z: fastq.fake_quantize_per_tensor_affine(x, s.detach(), z.detach().int(), -8, 7), 0)
    return found


def _with_error(x: torch.Tensor, step: torch.Tensor, axis: int) -> torch.Tensor:
    """Both results, so that both have a gradient; the error is far from the last digit of ``y``, and added as a constant."""
    y, error = fastq.channel_error(x, step, bits=4, axis=axis)
    shape = [-1 if d == axis else 1 for d in range(x.dim())]
    return y + (error - error.detach()).to(x.dtype).view(shape)


def _direct(x: torch.Tensor, s: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Weights of codes that an update has made, from ``x`` as its gradient; ``x`` gets a gradient of zeros."""
    levels = torch.arange(-8, 8, device=x.device) * s.float().flatten()[0]
    g = x.detach().float() if x.dtype == torch.float64 else x.detach()
    codes, residual = torch.full_like(x, 7, dtype=torch.uint8), torch.zeros_like(g)
    fastq.direct_update_(codes, residual, levels.detach(), g, lr=1.0, rho=1.0)
    return fastq.direct_weight(codes, levels, dtype=g.dtype).to(x.dtype) + 0 * x.nan_to_num()


def state_for(x: torch.Tensor) -> fastq.OscillationState:
    """Of 4 bits; every third element is frozen."""
    i = torch.arange(x.numel(), device=x.device, dtype=torch.int32).view(x.shape)
    state = fastq.OscillationState.of(i * 7 % 16 - 8, -8, 7)
    return fastq.OscillationState(torch.where(i % 3 == 0, state.freeze | -(2**31), state.freeze), state.track, -8, 7)


def in_place(x: torch.Tensor, s: torch.Tensor, granularity: dict[str, Any]) -> list[torch.Tensor]:
    """What has no gradient, or changes what it is given: a step of oscillation tracking, the loss of dampening. On the CPU."""
    w, state = x.clone(), state_for(x)
    fastq.oscillation_step_(w, s, state, bits=4, momentum=0.5, threshold=0.1, **granularity)
    leaf = x.detach().requires_grad_()
    (dw,) = torch.autograd.grad(fastq.dampening(leaf, s, bits=4, reduction="sum", **granularity), leaf)
    fastq.dampening(x, s, bits=4, **granularity)
    return [t.cpu() for t in (w, state.freeze, state.track, dw)]


def call(fn: Quantizer, count: int, device: str, g: torch.Tensor, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """``y`` and the gradients of ``x`` and ``count`` parameters, on the CPU."""
    leaves = [t.detach().to(device).requires_grad_() for t in inputs]
    y = fn(*leaves)
    gradients = torch.autograd.grad(y, leaves[: 1 + count], g.to(device))
    return [t.cpu() for t in (y.detach(), *gradients)]


#: Methods with a power, exp, log or tanh in them.
INEXACT = ("dsq", "dsq, alpha", "qil, gamma", "sat", "sat, std", "sat, unquantized")


def nearly(a: torch.Tensor, b: torch.Tensor) -> bool:
    """16 roundings apart at most (a power has some, and the storage), but for the elements next to a tie: one in 1000."""
    off = (a - b).abs() > 16 * torch.finfo(b.dtype).eps * b.abs()
    return int(off.sum()) <= max(b.numel() // 1000, 1)


# The integer engine

#: Outputs, inputs; rows are below. Tails in every direction, and whole tiles.
LINEAR = ((37, 45), (65, 257), (64, 512))
ROWS = (1, 5, 17, 64)
#: Outputs, channels, kernel, stride, dilation, groups, images' size.
CONVS = ((24, 16, 3, 2, 1, 1, 9), (33, 5, 1, 1, 1, 1, 7), (32, 32, 3, 1, 2, 32, 8))
#: Name; output on a device by a kernel; whether its bits are due; what a kernel that writes the weight out rounds it to.
Try = tuple[str, Callable[[str, str | None], torch.Tensor], bool, torch.dtype]


def drawn(shape: tuple[int, ...], bits: int, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    low = 0 if dtype == torch.uint8 else -(2 ** (bits - 1))
    return torch.randint(low, low + 2**bits, shape, dtype=torch.int16, generator=generator).to(dtype)


def products(generator: torch.Generator, small: bool) -> Iterator[Try]:
    """Products of every width and kind of input, and convolutions, with zero-points, groups and each part of the epilogue."""
    for bits in (8, 4) if small else (8, 4, 3, 2):
        for i, (n, k) in enumerate(LINEAR):
            group = 16 if i == 2 else None
            scale = torch.rand((n, -(-k // 16)) if group else (n,), generator=generator) * 0.01 + 0.01
            codes = drawn((n, k), bits, torch.uint8, generator)
            zero = drawn(tuple(scale.shape), bits, torch.uint8, generator) if i else None
            for m in ROWS[: (2, 0, 1)[i]] if small else ROWS:
                for dtype in (torch.int8, torch.bfloat16):
                    yield _linear(m, codes, bits, scale, zero, group, dtype, generator)
        for n, c, kernel, stride, dilation, groups, size in CONVS[:1] if small else CONVS:
            weight = drawn((n, c // groups, kernel, kernel), bits, torch.int8, generator)
            yield _conv(weight, bits, (2, c, size, size), stride, dilation, groups, generator)


def _linear(
    m: int, codes: torch.Tensor, bits: int, scale: torch.Tensor, zero: torch.Tensor | None, group: int | None, dtype: torch.dtype,
    generator: torch.Generator,
) -> Try:  # fmt: skip
    n, k = codes.shape
    integer = dtype == torch.int8
    x = drawn((m, k), 8, dtype, generator) if integer else torch.randn(m, k, generator=generator).to(dtype)
    bias, residual = torch.randn(n, generator=generator), torch.randn(m, n, generator=generator)

    def run(device: str, kernel: str | None) -> torch.Tensor:
        at = [None if t is None else t.to(device) for t in (codes, scale, zero, x, bias, residual)]
        packed = fastq.pack(at[0], bits, scale=at[1], zero_point=at[2], group_size=group)  # type: ignore[arg-type]
        of_codes = {"x_scale": 0.5, "x_zero_point": 3} if integer else {}
        out = {"out_scale": 0.25} if integer and group is None else {"out_dtype": torch.float32}
        return fastq.int_linear(
            at[3], packed, bias=at[4], residual=at[5], activation="relu", kernel=kernel, **of_codes, **out  # type: ignore[arg-type]
        )  # fmt: skip

    return f"int_linear {m}x{n}x{k}, {bits} bits, {dtype}", run, integer and group is None, dtype if group else torch.float32


def _conv(
    weight: torch.Tensor, bits: int, shape: tuple[int, ...], stride: int, dilation: int, groups: int, generator: torch.Generator
) -> Try:
    x = drawn(shape, 8, torch.uint8, generator).to(memory_format=torch.channels_last)
    scale = torch.rand(len(weight), generator=generator) * 0.01 + 0.01
    padding = dilation * (weight.shape[-1] // 2)

    def run(device: str, kernel: str | None) -> torch.Tensor:
        packed = fastq.pack(weight.to(device), bits, scale=scale.to(device))
        keywords = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        return fastq.int_conv2d(
            x.to(device), packed, **keywords, x_scale=0.5, x_zero_point=100, out_scale=0.25, kernel=kernel
        )  # fmt: skip

    return f"int_conv2d {tuple(weight.shape)}, {groups} groups, {bits} bits", run, True, torch.float32


def engine(backend: str, device: str, small: bool, generator: torch.Generator) -> tuple[int, list[str]]:
    """How many calls of a backend's kernels there were, and those that went wrong: kernels that cannot serve are not asked."""
    count, wrong = 0, []
    for name, run, exact, rounded in products(generator, small):
        want = run("cpu", "reference")
        for kernel in (kernel for kernel in table.KERNELS.values() if kernel.backend == backend):
            try:
                got = run(device, kernel.name).cpu()
            except RuntimeError as error:
                if f"kernel {kernel.name!r} cannot serve this call" in str(error):
                    continue
                raise
            count += 1
            # In float32, up to 512 terms summed in another order; with zero-points the sum is smaller than its terms. Scaled
            # weights that are rounded to half precision are off by up to half a unit each, either way.
            written = kernel.name == "dequantize" and rounded in (torch.bfloat16, torch.float16)
            near = (torch.finfo(rounded).eps if written else 2e-5) * float(want.abs().max())
            if not (torch.equal(got, want) if exact else torch.allclose(got, want, rtol=1e-5, atol=near)):
                wrong.append(f"{kernel.name}: {name}")
    for shape in ((3, 130),) if small else ((1, 1), (3, 130), (17, 1031)):
        for dtype in DTYPES[:1] if small else DTYPES[:3]:
            x = torch.randn(shape, generator=generator).to(dtype)
            found = []
            for where, used in (("cpu", "reference"), (device, backend)):
                with fastq.use_backend(used):
                    at = x.to(where)
                    both = (fastq.quantize(at, 0.05, offset=0.3, zero_point=5), *fastq.quantize_per_token(at))
                found.append([t.cpu() for t in both])
            count += 2
            if not all(torch.equal(a, b) for a, b in zip(*found, strict=True)):
                wrong.append(f"quantize {shape} {dtype}")
    return count, wrong


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sanitize", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--backend", required=True, choices=("cpu", "cuda", "triton"))
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--small", action="store_true", help="float32 on three shapes, for the interpreter")
    args = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    count, wrong = 0, []
    for shape, granularity in SHAPES[1::2] if args.small else SHAPES + LARGE:
        for dtype in DTYPES[:1] if args.small else DTYPES:
            kind = torch.float64 if dtype == torch.float64 else torch.float32
            x, g = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
            where = normalize_axis("sanitize", x, granularity.get("axis"), granularity.get("group_size"))
            steps = parameter_shape(x, *where) or (1,)
            step = torch.rand(steps, generator=generator).to(kind) * 0.1 + 0.2
            for name, (fn, gradients) in quantizers(granularity).items():
                with fastq.use_backend("reference"):
                    want = call(fn, gradients, "cpu", g, [x, step, step * 0.3])
                for layout, data in layouts(x.to(args.device)):
                    with fastq.use_backend(args.backend):
                        got = call(fn, gradients, args.device, g, [data, step, step * 0.3])
                    count += 1
                    # The sums have terms of up to 15 |g|, added in another order; see fastq.testing.
                    bound = 15 * float(g.abs().sum()) * 2 * (128 + 20) * torch.finfo(kind).eps
                    close = all(torch.allclose(a, b, rtol=0, atol=bound) for a, b in zip(got[2:], want[2:], strict=True))
                    agree = nearly if name in INEXACT else same_bits
                    if not (agree(got[0], want[0]) and agree(got[1], want[1]) and close):
                        wrong.append(f"{name} {shape} {dtype} {granularity} {layout}")
            with fastq.use_backend("reference"):
                want = in_place(x, step, granularity)
            for layout, data in layouts(x.to(args.device)):
                with fastq.use_backend(args.backend):
                    got = in_place(data, step.to(args.device), granularity)
                count += 1
                if not all(same_bits(a, b) for a, b in zip(got, want, strict=True)):
                    wrong.append(f"oscillations {shape} {dtype} {granularity} {layout}")
    calls, more = engine(args.backend, args.device, args.small, generator)
    count, wrong = count + calls, wrong + more
    print(f"{args.backend} on {args.device}: {count} calls, {len(wrong)} wrong; {calls} of the integer engine")
    print("\n".join(wrong[:20]))
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
