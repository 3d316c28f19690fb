"""Runs convolutions of codes, products of floating point inputs and quantization on Triton's interpreter, beside the reference.

A program of its own: the interpreter must be chosen before Triton is imported.
``python interpreted_products.py conv|float|quantize|tune`` prints one line for each case, and the worst error of float products.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import torch
from engine_cases import drawn_codes, products

import fastq
from fastq.engine.configurations import KINDS
from fastq.tune import Bench, candidates, rows_of

#: B, C, H, W, O, groups, kernel, stride, padding (left, right, top, bottom), dilation
IMAGES: tuple[tuple[Any, ...], ...] = (
    (2, 3, 7, 6, 5, 1, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    (1, 5, 9, 8, 18, 1, (3, 2), (2, 1), (0, 2, 1, 0), (1, 2)),
    (1, 64, 5, 4, 17, 1, (3, 3), (1, 2), (1, 1, 1, 1), (1, 1)),
    (1, 16, 6, 5, 8, 2, (2, 2), (1, 1), (0, 0, 0, 0), (2, 1)),
    (2, 16, 6, 6, 20, 1, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1)),
    (1, 6, 7, 7, 12, 6, (3, 3), (2, 2), (1, 1, 1, 1), (1, 1)),  # depthwise, two outputs each
    (1, 2, 9, 8, 2, 2, (9, 8), (1, 1), (1, 0, 0, 1), (1, 1)),  # depthwise, more places than a part of a tile
)
INPUTS = ((torch.int8, 0), (torch.uint8, 131), (torch.int8, -128), (torch.uint8, 0))


def expect(name: str, found: torch.Tensor, wanted: torch.Tensor) -> None:
    if not torch.equal(found, wanted) or found.dtype != wanted.dtype or found.stride() != wanted.stride():
        raise SystemExit(
            f"{name}: {found.dtype} {found.stride()} {found} where {wanted.dtype} {wanted.stride()} {wanted} is expected"
        )
    print(name)


def convolutions() -> None:
    turn = 0
    for b, c, height, width, o, groups, kernel, stride, padding, dilation in IMAGES:
        for bits in (8, 4, 3, 2)[: 4 if groups == 1 and kernel == (3, 3) else 2]:
            turn += 1
            x_dtype, x_zero = INPUTS[turn % 4]
            codes = drawn_codes((o, c // groups, *kernel), bits, (torch.int8, torch.uint8)[turn % 2], 1, turn % 3 == 0)
            zero = drawn_codes((o,), bits, codes.dtype, 2, turn % 3 == 0) if turn % 5 < 3 else None
            scale = torch.rand(o if turn % 4 else 1).add(0.1)
            weight = fastq.pack(codes, bits, scale=scale, zero_point=zero if turn % 4 else None)
            x = drawn_codes((b, c, height, width), 8, x_dtype, 3, turn % 3 == 0)
            given: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
            given |= {"x_zero_point": x_zero}
            of_output = {**given, "out_dtype": torch.int32}
            shape = fastq.int_conv2d(x, weight, kernel="reference", **of_output).shape
            codes_out = {
                "bias": torch.randn(o),
                "activation": "relu",
                "out_scale": 0.5,
                "out_dtype": torch.uint8,
                "out_zero_point": 3,
            }
            residual = {"multiplier": torch.randn(o), "addend": torch.randn(o), "residual": torch.randn(shape)}
            kinds: tuple[dict[str, Any], ...] = ({"out_dtype": torch.int32}, codes_out, residual, {"out_dtype": torch.bfloat16})
            given |= kinds[turn % 4] | ({} if turn % 4 in (0, 2) else {"x_scale": 0.02})
            with fastq.use_backend("triton"):
                found = fastq.int_conv2d(x, weight, kernel="triton_conv" if turn % 2 else None, **given)
            expect(f"conv {c} {o} {groups} {kernel} w{bits}", found, fastq.int_conv2d(x, weight, kernel="reference", **given))


def float_products() -> None:
    """Errors are relative to ``sum |x * w|``, which bounds what the order of a float32 sum can do."""
    worst = 0.0
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    for turn, p in enumerate(products(rows=(1, 65))):
        size = (None, 16, 128, 48, None, 64, 256)[turn % 7]
        k = 208 if p.k == 200 else p.k  # a multiple of 16 that is no whole tile is read as it is
        p = dataclasses.replace(p, k=k, group_size=size, granularity="group" if size else p.granularity)
        weight, _ = p.weight()
        x = torch.randn(p.m, p.k).to(dtypes[turn % 3])
        given: dict[str, Any] = {"bias": torch.randn(p.n), "out_dtype": torch.float32}
        bound = x.double().abs() @ weight.dequantize().double().abs().t() + given["bias"].abs() + 1e-30
        wanted = x.double() @ weight.dequantize(torch.float64).t() + given["bias"]
        with fastq.use_backend("triton"):
            for kernel in ("triton_float", "dequantize") if turn % 4 == 0 else ("triton_float",):
                found = fastq.int_linear(x, weight, kernel=kernel, **given)
                # groups: the weight is rounded to the dtype of x, by half a unit in the last place
                rounds = kernel == "dequantize" and size is not None and x.dtype != torch.float32
                error = float(((found - wanted).abs() / bound).max())
                if error > (torch.finfo(x.dtype).eps if rounds else 2e-6):
                    raise SystemExit(f"{p} {x.dtype} {kernel}: relative error {error}")
                worst = max(worst, 0.0 if rounds else error)
                print(f"float {kernel} {p.m} {p.n} {p.k} w{p.bits} {x.dtype} groups of {size}")
            if turn % 3:
                continue
            given = {"activation": "relu", "out_scale": 0.5, "residual": torch.randn(p.m, p.n)}
            codes = fastq.int_linear(x, weight, **given)
            apart = (codes.int() - fastq.int_linear(x, weight, kernel="reference", **given).int()).abs()
            # a sum a few ulp away can lie on the other side of a tie, and hardly ever does
            if int(apart.max()) > 1 or int((apart > 0).sum()) > 1 + codes.numel() // 500:
                raise SystemExit(f"{p} {x.dtype}: codes differ in {int((apart > 0).sum())} places")
    print("worst", worst)
    # few rows of a long K: its programs' sums are added in their order, twice the same
    weight = fastq.pack(drawn_codes((65, 3000), 4, torch.uint8, 5), 4, scale=0.01, zero_point=7)
    x = torch.randn(3, 3000).bfloat16()
    with fastq.use_backend("triton"):
        found = [fastq.int_linear(x, weight, activation="gelu", out_dtype=torch.float32) for _ in range(2)]
    expect("float split", *found)
    wanted = fastq.int_linear(x, weight, activation="gelu", out_dtype=torch.float32, kernel="reference")
    torch.testing.assert_close(found[0], wanted, rtol=1e-5, atol=1e-5)
    # a row's end is not the next one's beginning
    weight = fastq.pack(drawn_codes((5, 80), 4, torch.uint8, 6), 4, scale=0.1, zero_point=3)
    x = torch.randn(2, 80)
    x[1] = float("nan")
    with fastq.use_backend("triton"):
        found = fastq.int_linear(x, weight)
    wanted = fastq.int_linear(x, weight, kernel="reference")
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5, equal_nan=True)
    print("float rows apart")
    image = torch.randn(2, 6, 7, 5)
    for turn, (dtype, groups) in enumerate(((torch.float32, 2), (torch.bfloat16, 6), (torch.float16, 1))):
        weight = fastq.pack(drawn_codes((12, 6 // groups, 3, 2), 4, torch.uint8, turn), 4, scale=torch.rand(12), zero_point=7)
        given = {"stride": 2, "padding": (1, 0, 2, 1), "groups": groups, "bias": torch.randn(12), "out_dtype": torch.float32}
        with fastq.use_backend("triton"):
            found = [fastq.int_conv2d(image.to(dtype), weight, **given)]
        wanted = fastq.int_conv2d(image.to(dtype), weight, kernel="reference", **given)
        # torch rounds its sums to the dtype of x before the epilogue
        epsilon = float(wanted.abs().max()) * torch.finfo(dtype).eps
        torch.testing.assert_close(found[0], wanted, rtol=0, atol=max(epsilon, 1e-5))
        if found[0].stride() != wanted.stride():
            raise SystemExit("a float convolution is not channels_last")
        print(f"float conv {dtype} in {groups} groups")


def same(name: str, found: torch.Tensor, wanted: torch.Tensor) -> None:
    """NaN for NaN."""
    if not torch.equal(found.isnan(), wanted.isnan()):
        raise SystemExit(f"{name}: NaN elsewhere")
    expect(name, found.nan_to_num(), wanted.nan_to_num())


def quantization() -> None:
    special = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 0.125, 0.375, -0.125, 1e30])
    for turn, dtype in enumerate((torch.float32, torch.bfloat16, torch.float16)):
        x = torch.randn(3, 6, 7, 9).mul(3)
        x[0, 0, 0, :8] = special
        x = x.to(dtype)
        zero, range_, codes = ((0, None, torch.int8), (3, (0, 15), torch.uint8), (-2, (-8, 7), torch.int8))[turn]
        for layout, t in (("contiguous", x), ("channels_last", x.contiguous(memory_format=torch.channels_last)),
                          ("strided", x[:, ::2]), ("permuted", x.permute(3, 1, 0, 2))):  # fmt: skip
            given: dict[str, Any] = {"offset": None if layout == "strided" else 0.25, "zero_point": zero, "range": range_}
            with fastq.use_backend("triton"):
                found = fastq.quantize(t, 0.25, dtype=codes, **given)
            with fastq.use_backend("reference"):
                wanted = fastq.quantize(t, 0.25, dtype=codes, **given)
            expect(f"quantize {dtype} {layout}", found, torch.empty_like(t, dtype=codes).copy_(wanted))
        for shape in ((1, 1), (5, 33), (70, 17), (2, 9000), (3, 0), (0, 4)):
            x = torch.randn(shape)
            if x.numel() > 100:
                x[0, 3], x[1, 1:] = float("nan"), 0.0
                x[-1, :2] = 127.0  # the scale is 1, and half of its codes are ties
                if len(x) > 4:
                    x[2, 1] = float("inf")
                    x[3] = 0
            for bits in (2, 8):
                with fastq.use_backend("triton"):
                    found, scale = fastq.quantize_per_token(x.to(dtype), bits=bits)
                with fastq.use_backend("reference"):
                    wanted, of = fastq.quantize_per_token(x.to(dtype), bits=bits)
                expect(f"per token {dtype} {shape} {bits}", found, wanted)
                same(f"scales {dtype} {shape} {bits}", scale, of)


class Wrong(Bench):
    """A kernel's results are all a thousandth off."""

    def product(self, kind: str, rows: int) -> Any:
        runs, first, wanted, exact = super().product(kind, rows)
        return runs, first, wanted * 1.001, exact

    def convolution(self, kind: str, rows: int) -> Any:
        runs, first, wanted, exact = super().convolution(kind, rows)
        return runs, first, wanted * 1.001, exact


def tuning() -> None:
    """What ``python -m fastq tune`` runs and compares before it times, with the first candidate of each kind."""
    bench, wrong = (made(torch.device("cpu"), size=128) for made in (Bench, Wrong))
    for kind in KINDS:
        for rows in rows_of(kind):
            c = next(candidates(kind, 90, rows, 132))
            print(f"tune {kind} {rows}: {len(bench.checked(c, 2))} copies")
        try:
            wrong.checked(c, 2)
        except ArithmeticError:
            continue
        raise SystemExit(f"tune {kind}: a wrong result is taken")


if __name__ == "__main__":
    torch.manual_seed(0)
    {"conv": convolutions, "float": float_products, "quantize": quantization, "tune": tuning}[sys.argv[1]]()
