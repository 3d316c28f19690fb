"""Compiles convolutions of codes, float products and quantization for GPUs that are not here, and tells what came out, as JSON.

Run as a program of its own, since Triton cannot compile in a process that interprets:
``python compiled_products.py 90 float|conv few|all``.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import compiled
import torch
import triton
from fastq.triton_kernels import float_gemm, int_conv, quantize
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

EPILOGUE: dict[str, Any] = dict.fromkeys(("bias", "multiplier", "addend"), "*fp32") | {"residual": "*bf16", "out_scale": "*fp32"}
EPILOGUE |= dict.fromkeys(("low", "high", "code_zero"), "fp32")
#: Of what the launchers pass: sizes that are multiples of 16 wherever the layout allows.
ALIGNED = ("n", "k", "row_bytes", "of_group", "channels", "all_channels", "length")


def compile_for(
    capability: int,
    kernel: Any,
    types: dict[str, Any],
    constants: dict[str, Any],
    warps: int,
    stages: int = 1,
    aligned: bool = True,
) -> dict[str, Any]:
    """``constants``: the constexpr arguments, and those that are None."""
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    attributes: dict[tuple[int, ...], Any] = {
        (i,): compiled.POINTERS_ALIGNED
        for i, name in enumerate(names)
        if signature[name] != "constexpr" and (signature[name].startswith("*") or (aligned and name in ALIGNED))
    }
    source = ASTSource(kernel, signature, {(names.index(name),): value for name, value in constants.items()}, attributes)
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": False}
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    ptx = made.asm["ptx"]
    return {
        "products": sorted(set(re.findall(r"(?:wgmma\.mma_async|mma\.sync)[\w.]*", ptx))),
        "asynchronous bytes": [int(n, 0) for n in re.findall(r"cp\.async\.c[ga][\w.:]*\s+\[[^\]]*\],\s*\[[^\]]*\],\s*(\w+)", ptx)],
        "shared": made.metadata.shared,
        "divisions": sorted(set(re.findall(r"\bdiv\.[a-z.]*f(?:32|64)", ptx))),
        "contracted": re.findall(r"\b(?:fma|mad)\.[a-z.]*f32\b", ptx),
        "conversions": len(re.findall(r"\bcvt\.rn\.(?:b?f16|f32)\.[su](?:8|16|32)", ptx)),
        **compiled.resources(made.asm["cubin"]),
    }


def float_products(capability: int, every: bool) -> dict[str, Any]:
    report = {}
    types = EPILOGUE | {"weight": "*i8", "scale": "*fp32", "zero": "*i32", "partial": "*fp32"}
    # widths, scales of groups, dtypes and the sizes of tiles take turns
    shapes = [(4, 4096, 2, torch.bfloat16), (8, 4096, 0, torch.float16), (4, 16, 0, torch.bfloat16), (4, 16, 0, torch.float32)]
    if every:
        shapes += [(2, 4096, 0, torch.bfloat16), (4, 4096, 0, torch.bfloat16), (4, 4096, 1, torch.bfloat16)]
        shapes += [(4, 32, 2, torch.float16), (8, 64, 1, torch.bfloat16), (2, 16, 2, torch.bfloat16), (4, 4096, 0, torch.float32)]
        shapes += [(2, 64, 0, torch.bfloat16), (2, 64, 2, torch.float16), (2, 64, 0, torch.float32)]
    for bits, rows, groups, dtype in shapes:
        c = float_gemm.configuration(rows, dtype, bits, groups > 0, capability)
        storage = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[dtype]
        few = rows <= 64
        ends = {"multiplier": None, "addend": None, "residual": None, "out_scale": None} | ({} if few else {"partial": None})
        constants: dict[str, Any] = ends | {
            "BITS": bits, "GROUPS": groups, "EACH": True, "SPLITS": 4 if few else 1, "EVEN": True, "BM": c.block_m, "BN": c.block_n,
            "BYTES": 32 if groups == 1 else 64, "NEAR": 8, "ACTIVATION": 3, "INTERPRETED": False,
        }  # fmt: skip
        if groups == 0:
            constants["zero"] = None
        found = compile_for(
            capability,
            float_gemm.float_gemm_kernel,
            types | {"x": f"*{storage}", "out": f"*{storage}"},
            constants,
            c.warps,
            c.stages,
        )
        report[f"float w{bits} {storage} rows {rows} groups {groups}"] = found
    constants |= {"EVEN": False, "BITS": 4, "SPLITS": 1, "partial": None}  # whatever came last
    ragged = types | {"x": "*bf16", "out": "*bf16"}
    for rows in (16, 4096) if every else ():
        c = float_gemm.configuration(rows, torch.bfloat16, 4, False, capability)
        found = compile_for(
            capability,
            float_gemm.float_gemm_kernel,
            ragged,
            constants | {"BM": c.block_m, "BN": c.block_n},
            c.warps,
            c.stages,
        )
        report[f"float ragged bf16 rows {rows}"] = found
    none = dict.fromkeys(("multiplier", "addend", "residual", "out_scale"))
    finish = none | {"SPLITS": 16, "EACH": True, "BM": 4, "BN": 256, "ACTIVATION": 2, "INTERPRETED": False}
    report["finish"] = compile_for(capability, float_gemm.float_finish_kernel, types | {"out": "*bf16"}, finish, 4)
    one = {"BITS": 4, "GROUPED": True, "EACH": True, "ROWS": 32, "INTERPRETED": False}
    report["dequantize"] = compile_for(capability, float_gemm.dequantize_kernel, types | {"out": "*bf16"}, one, 4)
    return report


def convolutions(capability: int, every: bool) -> dict[str, Any]:
    report = {}
    types = EPILOGUE | {
        "x": "*i8",
        "weight": "*i8",
        "scale": "*fp32",
        "zero": "*i32",
        "sums": "*i32",
        "x_scale": "*fp32",
        "rows": "i64",
    }
    none = {"addend": None, "multiplier": None, "residual": None}
    for name, bits, of_group, channels, out, more in (
        ("w8", 8, 256, 128, "*i8", {}),
        ("w8 unsigned", 8, 256, 128, "*i8", {"UNSIGNED": True, "FILLED": True}),
        ("w8 narrow", 8, 64, 128, "*i8", {"INSIDE": True}),
        ("w8 residual", 8, 256, 128, "*bf16", {"multiplier": "*fp32", "addend": "*fp32", "residual": "*bf16"}),
        ("w4 zeros", 4, 256, 64, "*i8", {"zero": "*i32"}),
        ("w8 zeros", 8, 64, 64, "*i8", {"zero": "*i32"}),
        ("w2", 2, 64, 64, "*i8", {}),
        ("w4 32 channels", 4, 64, 32, "*i8", {"UNIFORM": False, "EVEN": False, "FILLED": True}),
        ("w8 3 channels", 8, 64, 3, "*i8", {"UNIFORM": False, "EVEN": False, "FILLED": True, "UNSIGNED": True}),
        ("w8 accumulators", 8, 256, 128, "*i32", {}),
    )[:: 1 if every else 4]:
        c = int_conv.configuration(2**16, of_group, 1, bits, channels % 16 != 0, capability)
        size = c.block_k
        constants: dict[str, Any] = {
            "zero": None, **none, "BITS": bits, "EACH": True, "UNSIGNED": False, "FILLED": False, "INSIDE": False,
            "UNIFORM": channels % size == 0, "EVEN": True, "ALIGNED": 1 if channels < 16 else min(channels, size),
            "BM": c.block_m, "BN": c.block_n, "BYTES": size, "ACTIVATION": 1, "INTERPRETED": False,
        }  # fmt: skip
        constants |= {key: value for key, value in more.items() if not isinstance(value, str)}
        constants = {key: value for key, value in constants.items() if not isinstance(more.get(key), str)}
        if out == "*i32":
            constants |= dict.fromkeys(("bias", "residual", "out_scale", "x_scale"))
        report[f"conv {name}"] = compile_for(
            capability, int_conv.conv_kernel, types | {"out": out}, constants, c.warps, c.stages, aligned=channels % 16 == 0
        )
    each = none | {"zero": None, "BITS": 8, "EACH": True, "ACTIVATION": 1, "INTERPRETED": False}
    for channels in (32, 512) if every else (32,):
        bm, bn = int_conv.depthwise_tile(channels)
        found = compile_for(capability, int_conv.depthwise_kernel, types | {"out": "*i8"}, each | {"BM": bm, "BN": bn}, 4)
        report[f"depthwise {channels}"] = found
    return report


def codes(capability: int, every: bool) -> dict[str, Any]:
    report = {}
    types = {"x": "*bf16", "codes": "*i8", "scale": "*fp32", "scales": "*fp32", "offset": "*fp32"}
    types |= dict.fromkeys(("numel", "rows"), "i64") | dict.fromkeys(("low", "high", "code_zero", "highest"), "fp32")
    report["quantize"] = compile_for(
        capability, quantize.quantize_kernel, types, {"BLOCK": quantize.TILE, "BY_BITS": False}, quantize.WARPS
    )
    for length in (64, 4096, 20000) if every else (4096,):
        rows, block = quantize.token_tile(length)
        constants = {"ROWS": rows, "BLOCK": block, "ONCE": length <= block, "BY_BITS": False}
        report[f"quantize per token {length}"] = compile_for(capability, quantize.token_kernel, types, constants, quantize.WARPS)
    return report


if __name__ == "__main__":
    which = int(sys.argv[1])
    every = sys.argv[3] == "all"
    print(json.dumps(float_products(which, every) if sys.argv[2] == "float" else convolutions(which, every) | codes(which, every)))
