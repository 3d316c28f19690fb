"""Compiles every kernel of the Triton backend for GPUs that are not here, and tells what came out, as JSON.

Run as a program of its own, since Triton cannot compile in a process that interprets:
``python compiled.py 90 skeleton|methods|all [dtype ...]``.
"""

from __future__ import annotations

import functools
import json
import re
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
import triton.language as tl
from fastq.triton_kernels import direct, elementwise, methods, sat
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

STORAGE = {"fp32": tl.float32, "bf16": tl.float32, "fp16": tl.float32, "fp64": tl.float64}
#: rows of 4096 (per tensor, long channels), short rows (group 128), columns (channels last); and the narrowest of both
TILES = {
    "tensor": (1, 4096, False),
    "group": (32, 128, False),
    "columns": (elementwise.ROW_BLOCK, 32, True),
    "single": (elementwise.MOST_ROWS, 1, False),
    "narrow": (elementwise.ROW_BLOCK, 4, True),
}
WIDE = 3  # of the tiles: those whose loads can be 16 bytes
POINTERS_ALIGNED = [["tt.divisibility", 16]]
EXECUTABLE = 4  # a flag of an ELF file's section
STL, LDL = 0x387, 0x983  # the low 12 bits of the 16 bytes of an instruction, from sm_70 to sm_90


def compile_kernel(kernel: Any, types: dict[str, Any], constants: dict[str, Any], capability: int, warps: int) -> Any:
    """``types``: argument to Triton type (a tuple of types for a tuple); ``constants``: the constexpr arguments."""
    signature = {name: "constexpr" if name in constants else types[name] for name in kernel.arg_names}
    place = {name: i for i, name in enumerate(kernel.arg_names)}
    attributes: dict[tuple[int, ...], Any] = {}
    for name, kind in types.items():
        if isinstance(kind, tuple) and "i64" not in kind:
            attributes.update({(place[name], j): POINTERS_ALIGNED for j in range(len(kind))})
        elif isinstance(kind, str) and (kind.startswith("*") or name in ("inner", "numel")):
            attributes[place[name],] = POINTERS_ALIGNED
    source = ASTSource(kernel, signature, {(place[name],): value for name, value in constants.items()}, attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps, "enable_fp_fusion": False})


def resources(cubin: bytes) -> dict[str, int]:
    """What ptxas gave the kernel, from the cubin itself: registers, and the stack and local memory where spills would go."""
    found = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", _dump(cubin, "-res-usage"))}
    return found | {"local instructions": local_instructions(cubin)}


def local_instructions(cubin: bytes) -> int:
    """How many instructions use local memory, by their opcodes. The disassembler takes half a second for each kernel."""
    (sections,), (size, count) = struct.unpack_from("<Q", cubin, 0x28), struct.unpack_from("<HH", cubin, 0x3A)
    instructions = []
    for i in range(count):
        _, _, flags, _, start, length = struct.unpack_from("<IIQQQQ", cubin, sections + i * size)
        if flags & EXECUTABLE:
            instructions += [int.from_bytes(cubin[at : at + 2], "little") for at in range(start, start + length, 16)]
    assert instructions
    return sum(instruction & 0xFFF in (STL, LDL) for instruction in instructions)


@functools.cache
def sass(cubin: bytes) -> str:
    """The machine code."""
    return _dump(cubin, "-sass")


def _dump(cubin: bytes, what: str) -> str:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tool, what, file.name], capture_output=True, text=True, check=True).stdout


def describe(compiled: Any) -> dict[str, Any]:
    ptx = compiled.asm["ptx"]
    loads = re.findall(r"ld\.global(?:\.[a-z0-9:]+)*?((?:\.v[248])?)\.(?:b|u|f|s)(8|16|32|64)", ptx)
    return {
        "vector load bits": max((int(v[2:] or 1) * int(width) for v, width in loads), default=0),
        "divisions": sorted(set(re.findall(r"\bdiv\.[a-z.]*f(?:32|64)", ptx))),
        "contracted": re.findall(r"\b(?:fma|mad)\.[a-z.]*f(?:32|64)", ptx),
        "lose NaN": re.findall(r"\b(?:min|max)\.[a-z.]*f(?:32|64)", ptx),
        "64-bit products": len(re.findall(r"\bmul\.lo\.s64", ptx)),
        "64-bit shifts": len(re.findall(r"\bshl\.b64", ptx)),
        "flushed": re.findall(r"\b[a-z]+\.[a-z.]*ftz[a-z0-9.]*", ptx),
        **resources(compiled.asm["cubin"]),
    }


def of_direct(capability: int, storages: list[str]) -> dict[str, Any]:
    """The kernels of direct quantization: the dtypes of weights alone, and the fewest and the most levels."""
    report = {}
    for storage in [storage for storage in storages if storage != "fp64"]:
        types: dict[str, Any] = {"codes": "*u8", "levels": "*fp32", "w": f"*{storage}", "g": f"*{storage}", "partial": "*fp32"}
        types |= {"residual": f"*{storage}", "dlevels": "*fp32", "numel": "i64", "tiles": "i64", "lr": "fp64", "rho": "fp64"}
        for levels in (2, 256):
            part = direct.part_of(levels)
            common = {"LEVELS": levels, "BY_BITS": False}
            for kernel, constants in (
                (direct.weight_kernel, common | {"BLOCK": direct.TILE}),
                (direct.gradient_kernel, common | {"BLOCK": part, "PARTS": direct.TILE // part}),
                (direct.direct_finish_kernel, {"LEVELS": levels, "BLOCK": 1024}),
                (direct.update_kernel, {"LEVELS": levels, "BITS": levels.bit_length() - 1, "KEEPS": True, "BLOCK": direct.TILE,
                                        "R_BY_BITS": False, "G_BY_BITS": False}),
            ):  # fmt: skip
                used = {n: t for n, t in types.items() if n in kernel.arg_names}
                name = f"direct {storage} {levels} {kernel.fn.__name__}"
                report[name] = describe(compile_kernel(kernel, used, constants, capability, elementwise.WARPS))
    return report


def of_sat(capability: int, storages: list[str]) -> dict[str, Any]:
    """The kernels of SAT's weights: codes and none, in row-major order and not. Not in fp64, where tanh is the library's."""
    report = {}
    for storage in [storage for storage in storages if storage != "fp64"]:
        F = STORAGE[storage]
        types: dict[str, Any] = dict.fromkeys(("w", "y", "g", "dw"), f"*{storage}") | dict.fromkeys(("numel", "blocks"), "i64")
        types |= dict.fromkeys(("scale", "sums", "partial"), "*fp64") | dict.fromkeys(("code_sums", "candidates", "index"), "*i64")
        types |= {"largest": "*fp32", "codes": "*u8", "n_out": "fp64"}
        each, gather = {"F": F, "BLOCK": sat.BLOCK, "BY_BITS": False}, {"BLOCK": sat.GATHER}
        for name, kernel, constants in (
            ("", sat.largest_kernel, each),
            ("", sat.find_largest_kernel, gather | {"F": F}),
            ("round", sat.codes_kernel, each | {"LEVELS": 15, "FLOORS": False, "STD": False}),
            ("floor", sat.codes_kernel, each | {"LEVELS": 16, "FLOORS": True, "STD": True}),
            ("none", sat.codes_kernel, each | {"LEVELS": 0, "FLOORS": False, "STD": True}),
            ("round", sat.find_scale_kernel, gather | {"LEVELS": 15, "RESCALE": 1}),
            ("none", sat.find_scale_kernel, gather | {"LEVELS": 0, "RESCALE": 2}),
            ("round", sat.scale_kernel, each | {"LEVELS": 15, "CENTERED": 0}),
            ("none", sat.scale_kernel, each | {"LEVELS": 0, "CENTERED": 0}),
            ("", sat.backward_kernel, each | {"THROUGH_MAX": True}),
            ("", sat.correct_kernel, each | gather),
        ):
            # in row-major order the tuples are empty
            order = dict.fromkeys(("sizes", "strides", "places"), ("i64", "i64") if name == "round" else ())
            used = {n: t for n, t in (types | order).items() if n in kernel.arg_names}
            warps = 4 if constants["BLOCK"] == sat.GATHER else sat.MORE_WARPS if used.get("sizes") else sat.WARPS
            report[f"sat {storage} {name or '-'} {kernel.fn.__name__}"] = describe(
                compile_kernel(kernel, used, constants, capability, warps)
            )
    return report


def main(capability: int, storages: list[str], what: str) -> None:
    """``skeleton``: LSQ+ with every dtype and tile, which are the skeleton's affair, and LSQ with every tile; ``methods``: all of
    them, with one dtype and two tiles; ``all``: both, and LSQ with every dtype."""
    report = {}
    for number, method in enumerate(methods()[:2] if what == "skeleton" else methods()):
        skeleton = number < 2 and what != "methods"
        for storage in storages[: 4 if skeleton and (number == 1 or what == "all") else 1]:
            arithmetic = "fp64" if storage == "fp64" else "fp32"
            F = STORAGE[storage]
            parameters = tuple(f"*{arithmetic}" for _ in range(method.parameters))
            scalars: dict[str, Any] = dict.fromkeys(("qmin", "qmax", "lower", "upper", "eps", *"abcd"), "fp64")
            scalars |= {"outer": "i64", "channels": "i64", "inner": "i32", "chunks": "i32", "partials": "i64"}
            scalars["noise_scale"] = "fp32"
            # the narrow tiles differ in registers alone, so one dtype shows them
            tiles = list(TILES.items())[: None if storage == "fp32" else WIDE]
            for name, (rows, block, columns) in tiles if skeleton else [tiles[0], tiles[2]]:
                common = {"PREPARE": method.prepare, "F": F, "ROWS": rows, "BLOCK": block, "COLUMNS": columns, "BY_BITS": False,
                          "WORDS": method.words, "SHARED": 0}  # fmt: skip
                # random numbers: the cheapest, four for a counter; and in columns the dearest, each by itself
                common |= {"NOISE": 2 if columns else 0, "QUADS": not columns and block % 4 == 0}
                words = {"none": f"*{storage}", "noise": "*i64", "memory": "*i32", "state": "*i32"}[method.word]
                tensors = {"x": f"*{storage}", "y": f"*{storage}", "g": f"*{storage}", "dx": f"*{storage}", "words": words,
                           "second": words, "partial": f"*{arithmetic}", "parameters": parameters}  # fmt: skip
                forward = {"FORWARD": method.forward, "SUMS": method.sums, "OUTPUT": method.output, "SCALED": method.scaled}
                directions = [(elementwise.forward_kernel, forward)]
                if method.backward is not None:
                    directions.append((elementwise.backward_kernel, {"BACKWARD": method.backward}))
                for kernel, formula in directions:
                    constants = common | formula
                    types = {n: t for n, t in (tensors | scalars).items() if n in kernel.arg_names}
                    if kernel is elementwise.forward_kernel and method.sums:
                        types["partial"] = "*fp64"
                    compiled = compile_kernel(kernel, types, constants, capability, method.warps)
                    report[f"{method.name} {storage} {name} {kernel.__name__}"] = describe(compiled)
            if method.gradients:
                types = {"partial": f"*{arithmetic}", "gradient": f"*{arithmetic}", "parameters": parameters, "scale": "fp64"}
                types |= dict.fromkeys(("channels", "count"), "i64") | dict.fromkeys(("a", "s"), "i32")
                for width, block in ((1, 1024), (1024, 1))[: 2 if storage == "fp32" and skeleton else 1]:
                    constants = {"INDEX": 0, "FINISH": method.finish, "SHARED": 0, "F": F, "CHANNELS": width, "BLOCK": block}
                    compiled = compile_kernel(elementwise.finish_kernel, types, constants, capability, 4)
                    report[f"{method.name} {storage} {width} finish_kernel"] = describe(compiled)
    if what != "skeleton":
        some = storages if what == "all" else storages[:1]
        report |= of_direct(capability, some) | of_sat(capability, some)
    print(json.dumps(report))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[3:] or list(STORAGE), sys.argv[2])
