"""Compiles Triton's integer products for GPUs that are not here, and tells what came out, as JSON.

A program of its own: ``python compiled_gemm.py 90 some|all``. ``all``: every shipped configuration of an architecture, with the
barest and the fullest epilogue, with groups of tiles and of parts of pieces; ``some``: what ``make test`` has time for.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from typing import Any

import triton
import triton.language as tl
from compiled import POINTERS_ALIGNED, resources, sass
from fastq.triton_kernels import int_gemm
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastq.engine import configurations
from fastq.engine.configurations import Configuration
from fastq.packing import TILE

POINTERS = {"scale": "*fp32", "weight_sums": "*i32", "x_scale": "*fp32"}
#: What the fullest epilogue has and the barest has not.
TERMS = dict.fromkeys(("bias", "multiplier", "addend", "out_scale"), "*fp32") | {"residual": "*bf16"}
ZEROS = dict.fromkeys(("zero", "row_sums"), "*i32")
NUMBERS = dict.fromkeys(("low", "high", "code_zero"), "fp32") | dict.fromkeys(
    ("x_zero_point", "M", "N", "K", "x_stride", "w_stride", "size", "share", "shares", "stride", "groups"), "i32"
)
DIVISIBLE = ("N", "K", "x_stride", "w_stride", "stride")


@triton.jit
def unpack_kernel(packed, out, BITS: tl.constexpr, BY_BYTES: tl.constexpr):
    """A tile of 128 rows, unpacked as the products unpack it, and byte by byte."""
    at = tl.arange(0, 128)[:, None] * 64 + tl.arange(0, 64)[None, :]
    value = tl.load(packed + at)
    for i in tl.static_range(8 // BITS):
        if BY_BYTES:
            unpacked = ((value << (8 - BITS - i * BITS)) & (256 - (1 << (8 - BITS)))).to(tl.int8, bitcast=True)
        else:
            unpacked = int_gemm.field(value, 8 - BITS - i * BITS, BITS, False)
        tl.store(out + i * 128 * 64 + at, unpacked)


def build(kernel: Any, types: dict[str, str], constants: dict[str, Any], capability: int, warps: int, stages: int) -> Any:
    signature = {name: "constexpr" if name in constants else types[name] for name in kernel.arg_names}
    place = {name: i for i, name in enumerate(kernel.arg_names)}
    attributes = {
        (place[name],): POINTERS_ALIGNED
        for name, kind in types.items()
        if name in place and name not in constants and (kind.startswith("*") or name in DIVISIBLE)
    }
    source = ASTSource(kernel, signature, {(place[name],): value for name, value in constants.items()}, attributes)
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": False}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def describe(compiled: Any) -> dict[str, Any]:
    ptx, cubin = compiled.asm["ptx"], compiled.asm["cubin"]
    return {
        "matrix": sorted(set(re.findall(r"\b(?:wgmma\.mma_async|mma\.sync)[.a-z0-9]*", ptx))),
        "left in registers": re.findall(r"wgmma\.mma_async\S*\s+\{[^}]*\},\s*(\{)?", ptx).count("{"),
        "copies": sorted(set(re.findall(r"\bcp\.async(?:\.bulk\.tensor)?", ptx))),
        "divisions": sorted(set(re.findall(r"\bdiv\.[a-z.]*f(?:32|64)", ptx))),
        "contracted": re.findall(r"\b(?:fma|mad)\.[a-z.]*f(?:32|64)", ptx),
        "shared": compiled.metadata.shared,
        "instructions": dict(Counter(re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?([A-Z0-9_]+)", sass(cubin), re.MULTILINE))),
        **resources(cubin),
    }


def arguments(full: bool, split: bool, groups: bool) -> tuple[dict[str, str], dict[str, Any]]:
    """Types and constants of what the kernels have in common. ``full``: requantized, with every term, after a silu."""
    types = POINTERS | NUMBERS | {"out": "*i8" if full else "*bf16"}
    if split:
        types["out"] = "*fp32" if groups else "*i32"
    constants: dict[str, Any] = {"EACH": True, "EACH_ROW": full, "RAW": False, "ACTIVATION": 3 if full else 0, "INTERPRETED": False}
    return types | (TERMS | ZEROS if full else {}), constants | ({} if full else dict.fromkeys({**TERMS, **ZEROS}))


def of(c: Configuration, full: bool, split: bool, group: int = 0, flip: bool = False) -> dict[str, Any]:
    """A product of ``c``'s kind; ``group``: GROUPS; ``flip``: of uint8 inputs."""
    bits = int(c.kind[1])
    types, constants = arguments(full, split, group > 0)
    constants |= {"BLOCK_M": c.block_m, "BLOCK_N": c.block_n, "PARTS": c.parts, "FLATTEN": c.flatten, "TMA": c.architecture >= 90}
    types |= {"x": "*i8", "w": "*i8" if bits == 8 else "*u8"}
    rows_left = c.kind == "w8a8"
    block_k = c.block_k if rows_left else TILE
    if c.architecture >= 90:
        types |= {"x": f"tensordesc<i8[{c.block_m}, {block_k}]>", "w": f"tensordesc<{types['w'][1:]}[{c.block_n}, {block_k}]>"}
    if rows_left:
        kernel, constants = int_gemm.rows_left_kernel, constants | {"BLOCK_K": block_k, "FLIP": flip}
    else:
        kernel, constants = int_gemm.weights_left_kernel, constants | {"BITS": bits, "GROUPS": group, "SPLIT": split}
    return describe(build(kernel, types, constants, c.architecture, c.warps, c.stages))


def main(capability: int, what: str) -> None:
    report = {}
    shipped = [c for c in configurations.shipped() if c.architecture == capability and "a8" in c.kind and "conv" not in c.kind]
    for c in shipped:
        few, grouped = c.kind.endswith("_few"), "_group" in c.kind
        if what == "some" and c.kind not in (("w8a8", "w4a8") if capability == 90 else ("w4a8",)):
            continue
        # The most that a kernel holds is the fullest epilogue on the largest tile; shares of few rows have none.
        variants = [(True, False)] if what == "all" and c.rows == 0 else []
        if few or not grouped:
            variants.insert(0, (False, few))
        for full, split in variants:
            for group in (1, 3) if grouped else (0,):
                report[f"{c.kind} {c.rows or 'any'} {'full' if full else 'bare'} {group}"] = of(c, full, split, group)
        if c.kind == "w8a8":
            full = variants[-1][0]
            report[f"{c.kind} any {'full' if full else 'bare'} uint8"] = of(c, full, False, flip=True)
    for groups in (False, True)[: 1 if what == "some" else 2]:
        types, constants = arguments(True, False, groups)
        rows, columns = int_gemm.REDUCE
        constants |= {"GROUPS": groups, "BLOCK_M": rows, "BLOCK_N": columns}
        compiled = build(int_gemm.reduce_kernel, types | {"partial": "*fp32" if groups else "*i32"}, constants, capability, 4, 3)
        report[f"reduce full {groups}"] = describe(compiled)
    constants = {"FLIP": True, "COPY": True, "SUMS": True, "ROWS": 1, "BLOCK": 2048, "INTERPRETED": False}
    types = NUMBERS | {"x": "*u8", "codes": "*i8", "sums": "*i32"}
    report["codes"] = describe(build(int_gemm.codes_kernel, types, constants, capability, 4, 3))
    for bits in (4, 2)[: 1 if what == "some" else 2]:
        for by_bytes in (False, True):
            types = {"packed": "*u8", "out": "*i8"}
            compiled = build(unpack_kernel, types, {"BITS": bits, "BY_BYTES": by_bytes}, capability, 4, 3)
            report[f"unpack {bits} {'by bytes' if by_bytes else ''}".strip()] = describe(compiled)
    print(json.dumps(report))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
