"""Runs Triton's integer products on its interpreter against int64 arithmetic and the reference, and prints how many were right.

A program of its own: the interpreter must be chosen before Triton is imported.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from engine_cases import Product, products
from fastq.triton_kernels import int_gemm

import fastq
from fastq.engine import Epilogue, Operand
from fastq.engine.call import ACTIVATIONS
from fastq.engine.configurations import Configuration
from fastq.reference import int_gemm as reference
from fastq.testing import same_bits

RAW = Epilogue(None, 0, None, None, None, None, 0, torch.int32, None, (0, 0, 0))


def check(name: str, right: bool) -> int:
    if not right:
        raise SystemExit(f"{name}: differs")
    return 1


def drawn(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def small(architecture: int, **sizes: Any) -> Configuration:
    """Tiles of which ragged shapes need several, and two programs that walk them. 80 reads with pointers, 90 with descriptors."""
    common = {"block_m": 32, "block_n": 64, "block_k": 64, "warps": 4, "stages": 3, "parts": 2, "programs": 2, "flatten": False}
    return Configuration(kind="w8a8", architecture=architecture, rows=0, **common | sizes)


def accumulators() -> int:
    """Every width at every number of rows, by the table; the kernel for many rows on some, with pointers and with descriptors."""
    right = 0
    for i, p in enumerate(products()):
        weight, x, want = p.weight()[0], p.x(), p.accumulators()
        got = fastq.int_linear(x, weight, x_zero_point=p.x_zero_point, out_dtype=torch.int32)
        right += check(repr(p), torch.equal(got.long(), want))
        if p.bits == 8 or i % 4 == 1:
            got = int_gemm.int_linear(
                False, x, weight.operand(), RAW._replace(x_zero_point=p.x_zero_point), small((80, 90)[i // 4 % 2])
            )
            right += check(f"many rows of {p}", torch.equal(got.long(), want))
    for architecture, k, extreme in itertools.product((80, 90), (64, 208), (False, True)):
        p = Product(70, 90, k, bits=8, x_dtype=torch.uint8, x_zero_point=9, extreme=extreme)
        got = int_gemm.int_linear(
            False, p.x(), p.weight()[0].operand(), RAW._replace(x_zero_point=9), small(architecture, block_k=128)
        )
        right += check(f"uint8 in registers, {p}", torch.equal(got.long(), p.accumulators()))
    return right


def long_rows() -> int:
    """Rows so long that programs share them, with the last share shorter; and K of 0."""
    right = 0
    for bits, k, architecture in ((8, 1096, 90), (4, 1613, 80), (3, 2050, 90), (2, 3600, 80)):
        p = Product(
            3, 70, k, bits=bits, weight_dtype=torch.uint8, x_dtype=torch.uint8, zeros=True, x_zero_point=7, extreme=bits == 4
        )
        operand = p.weight()[0].operand()
        chosen = small(architecture, programs=64)
        shares, _ = int_gemm.shares_of(operand, 2, chosen.programs)
        got = int_gemm.int_linear(True, p.x(), operand, RAW._replace(x_zero_point=7), chosen)
        right += check(f"{shares} shares of {p}", shares > 1 and torch.equal(got.long(), p.accumulators()))
    for bits, group_size, many in ((8, None, True), (8, 16, False), (4, None, False), (4, 16, True)):
        scale = torch.full((5, 0) if group_size else (5,), 0.5)
        weight = fastq.pack(torch.empty(5, 0, dtype=torch.int8), bits, scale=scale, group_size=group_size)
        got = fastq.int_linear(
            torch.empty(2, 0, dtype=torch.int8), weight, bias=torch.arange(5.0), kernel="triton" if many else "triton_splitk"
        )
        right += check(f"K of 0, {bits} bits, groups of {group_size}", torch.equal(got, torch.arange(5.0).expand(2, 5)))
    return right


def epilogues() -> Iterator[tuple[str, Epilogue]]:
    """Every activation and output, in turn with all of the epilogue's terms and with none."""
    m, n = 19, 37
    for i, (activation, dtype) in enumerate(
        itertools.product(range(len(ACTIVATIONS)), (torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.uint8))
    ):
        codes = {torch.int8: (-100, 127, -5), torch.uint8: (0, 255, 255)}.get(dtype, (0, 0, 0))
        step = torch.tensor([0.37]) if codes != (0, 0, 0) else None
        e = Epilogue((None, torch.tensor([0.013]))[i // 2 % 2], 3, None, None, None, None, activation, dtype, step, codes)
        if i % 2 == 1:
            yield f"{ACTIVATIONS[activation]} {dtype}", e
        else:
            bias, residual = drawn((n,), 1), drawn((m, n), 4).to((torch.float32, torch.bfloat16, torch.float16)[i % 3])
            bias[3] = float("nan")
            e = e._replace(
                x_scale=drawn((m,), 5),
                bias=bias,
                multiplier=drawn((n,), 2),
                addend=drawn((n,), 3),
                residual=residual.mT.contiguous().mT,
            )
            yield f"all terms, {ACTIVATIONS[activation]} {dtype}", e


def close(found: torch.Tensor, wanted: torch.Tensor, e: Epilogue) -> bool:
    """The bits of the reference. exp and erf are others in each library, and below 0 gelu cancels: 4 fp32 ulp of the largest
    output, then an ulp of a narrower one, or a code."""
    if ACTIVATIONS[e.activation] not in ("gelu", "silu"):
        return same_bits(found, wanted) if wanted.is_floating_point() else torch.equal(found, wanted)
    if not wanted.is_floating_point():
        return bool(((found.int() - wanted.int()).abs() <= 1).all())
    ulp = {torch.float32: 2**-23, torch.bfloat16: 2**-7, torch.float16: 2**-10}[e.out_dtype]
    there = wanted.isfinite()
    difference, size = (found.double() - wanted.double()).abs()[there], wanted.double().abs()[there]
    return (
        torch.equal(found.isnan(), wanted.isnan())
        and torch.equal(found.isinf(), wanted.isinf())
        and bool((difference <= ulp * size + 4 * 2**-24 * size.max()).all())
    )


def finished() -> int:
    """Each kernel in turn, the one that adds shares up among them."""
    right = 0
    weights = [Product(19, 37, k, bits=bits, zeros=bits == 4) for bits, k in ((8, 45), (4, 45), (8, 1096))]
    for i, (name, e) in enumerate(epilogues()):
        p = weights[i % 3]
        operand, x = p.weight()[0].operand(), p.x()
        chosen = small((80, 90)[i % 2], programs=64)
        found = int_gemm.int_linear(i % 3 == 2, x, operand, e, chosen)
        right += check(f"{name} of {p}", close(found, reference.int_linear(x, operand, e), e))
    return right


def grouped(w: Operand, x: torch.Tensor, e: Epilogue) -> int:
    """In one program the reference's bits. Shares of groups are added in another order: some ulp of the largest sum."""
    wanted = reference.int_linear(x, w, e)
    right = check(f"groups of {w.group_size}, {w.bits} bits", same_bits(int_gemm.int_linear(False, x, w, e, small(90)), wanted))
    shared = int_gemm.int_linear(True, x, w, e, small(80, programs=64))
    tolerance = 8 * 2**-24 * wanted.abs().max()
    return right + check(f"shares of groups of {w.group_size}, {w.bits} bits", bool(((shared - wanted).abs() <= tolerance).all()))


def groups() -> int:
    """Groups of whole tiles, of whole pieces and of parts of pieces, with and without zeros; the last one shorter."""
    right = 0
    cases = ((8, 64), (8, 16), (4, 128), (4, 64), (4, 48), (3, 32), (2, 256), (2, 192), (2, 80))
    for i, (bits, size) in enumerate(cases):
        k = 2 * size + 23 if size > 32 else 150
        p = Product(
            5, 70, k, bits=bits, weight_dtype=(torch.int8, torch.uint8)[i % 2], x_dtype=torch.uint8, zeros=i % 3 != 1,
            granularity="group", group_size=size, extreme=i % 4 == 3,
        )  # fmt: skip
        e = RAW._replace(x_scale=drawn((5,), 5), x_zero_point=9, bias=drawn((70,), 1), out_dtype=torch.float32)
        right += grouped(p.weight()[0].operand(), p.x(), e)
    p = Product(2, 5, 2000, bits=4, granularity="group", group_size=128)
    return right + grouped(p.weight()[0].operand(), p.x(), RAW._replace(out_dtype=torch.float32))


def storage() -> int:
    """Codes that begin at no multiple of 16 bytes, and one row with a stride that is none."""
    p = Product(4, 9, 64)
    weight, x, wanted = p.weight()[0], p.x(), p.accumulators()
    apart = torch.empty(4 * 64 + 1, dtype=torch.int8)[1:].view(4, 64).copy_(x)
    right = check("misaligned codes", torch.equal(fastq.int_linear(apart, weight, out_dtype=torch.int32).long(), wanted))
    row = x[:1].as_strided((1, 64), (1, 1))
    return right + check("one row", torch.equal(int_gemm.int_linear(True, row, weight.operand(), RAW).long(), wanted[:1]))


def main() -> None:
    with fastq.use_backend("triton"):
        for each in (accumulators, long_rows, finished, groups, storage):
            print(each.__name__, each(), "results")


if __name__ == "__main__":
    main()
