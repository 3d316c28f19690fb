"""Which kernel serves a product: one table, read from the top; the first row that fits and whose kernel can serve is taken.

``fastq.use_backend`` leaves only the rows of that backend, ``kernel=`` only that kernel; what then cannot serve raises and says
why.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from .. import dispatch
from ..packing import PackedWeight
from .call import FLOATS, Epilogue, Operand, Problem, Window

__all__ = ["KERNELS", "RULES", "Kernel", "Rule", "choose", "explain", "kernels", "problem_of"]


class Kernel(NamedTuple):
    """One implementation. ``refuses(problem)`` is the reason why it cannot serve one, or None."""

    name: str
    backend: str
    refuses: Callable[[Problem], str | None]
    linear: Callable[[torch.Tensor, Operand, Epilogue], torch.Tensor] | None
    conv2d: Callable[[torch.Tensor, Operand, Window, Epilogue], torch.Tensor] | None


class Rule(NamedTuple):
    """A row: for these problems, that kernel. None: any."""

    kernel: str
    device: str | None = None
    op: str | None = None
    integer: bool | None = None  # the input: codes, or floating point numbers
    bits: tuple[int, ...] | None = None  # of the weight
    m: tuple[int, int] | None = None  # rows, both ends included
    activations: tuple[torch.dtype, ...] | None = None  # dtypes of the input

    def fits(self, p: Problem) -> bool:
        asked = ((self.device, p.device), (self.op, p.op), (self.integer, p.integer))
        if any(want is not None and want != have for want, have in asked):
            return False
        if self.activations is not None and p.activation not in self.activations:
            return False
        return (self.bits is None or p.bits in self.bits) and (self.m is None or self.m[0] <= p.m <= self.m[1])


def serves_all(problem: Problem) -> str | None:
    return None


def _reference(name: str) -> Callable[..., torch.Tensor]:
    def run(*arguments: Any) -> torch.Tensor:
        from ..reference import int_gemm

        found: torch.Tensor = getattr(int_gemm, name)(*arguments)
        return found

    return run


def _cuda_decode_refuses(p: Problem) -> str | None:
    """csrc/cuda/decode.cuh."""
    if p.m > 16:
        return f"it takes at most 16 rows, and here are {p.m}"
    if p.activation not in (torch.int8, torch.uint8, torch.bfloat16, torch.float16):
        return f"it takes codes, bfloat16 and float16, and x is of {p.activation}"
    if p.device == "cuda" and p.architecture < 80:
        return f"it needs a GPU of architecture 80 or later, and this one has {p.architecture}"
    if 2**16 < p.group_size < p.k:
        return f"it takes groups of at most 2**16 elements, and here are {p.group_size}"
    if p.k > 2**24:
        return f"it takes rows of at most 2**24 elements, and here are {p.k}"
    return None


def _native_linear(x: torch.Tensor, w: Operand, e: Epilogue) -> torch.Tensor:
    """``fastq::int_linear`` of the library that serves the device of ``x``."""
    return torch.ops.fastq.int_linear.default(x, *w.flat(), *e.flat())  # type: ignore[no-any-return]


def _native_conv2d(x: torch.Tensor, w: Operand, window: Window, e: Epilogue) -> torch.Tensor:
    return torch.ops.fastq.int_conv2d.default(x, *w.flat(), window.flat(), *e.flat())  # type: ignore[no-any-return]


def _triton(module: str, name: str, *first: Any) -> Callable[..., Any]:
    """A function of ``fastq.triton_kernels``, which is imported when it is called: where Triton is."""

    def run(*arguments: Any) -> Any:
        return getattr(importlib.import_module(f"fastq.triton_kernels.{module}"), name)(*first, *arguments)

    return run


KERNELS: dict[str, Kernel] = {
    kernel.name: kernel
    for kernel in (
        Kernel("reference", "reference", serves_all, _reference("int_linear"), _reference("int_conv2d")),
        Kernel("cpu", "cpu", serves_all, _native_linear, _native_conv2d),
        Kernel("triton", "triton", _triton("int_gemm", "refuses", False), _triton("int_gemm", "int_linear", False), None),
        Kernel("triton_splitk", "triton", _triton("int_gemm", "refuses", True), _triton("int_gemm", "int_linear", True), None),
        Kernel("triton_float", "triton", _triton("float_gemm", "refuses"), _triton("float_gemm", "linear"), None),
        # the weight is written by Triton, the product is torch's
        Kernel(
            "dequantize", "triton", _triton("float_gemm", "refuses"), _triton("float_gemm", "dequantized_linear"),
            _triton("float_gemm", "dequantized_conv2d"),
        ),
        Kernel("triton_conv", "triton", _triton("int_conv", "refuses"), None, _triton("int_conv", "conv2d")),
        Kernel("cuda_decode", "cuda", _cuda_decode_refuses, _native_linear, None),
    )
}  # fmt: skip

#: The table. Rows further down are the choice where those above do not fit or cannot serve.
RULES: tuple[Rule, ...] = (
    Rule("cpu", device="cpu"),
    # Few rows: reading the weights is what takes the time
    Rule("cuda_decode", device="cuda", op="linear", m=(1, 16)),
    Rule("triton_splitk", device="cuda", op="linear", integer=True, m=(1, 256)),
    Rule("triton", device="cuda", op="linear", integer=True),
    Rule("triton_splitk", device="cuda", op="linear", integer=True),  # K too long for one accumulator
    # A weight unpacked for each tile of rows costs more than one written out once; with float32 tensor cores have no part in it.
    Rule("dequantize", device="cuda", op="linear", activations=(torch.float32,), m=(65, 2**31)),
    Rule("dequantize", device="cuda", op="linear", integer=False, m=(1025, 2**31)),
    Rule("triton_float", device="cuda", op="linear", integer=False),
    Rule("dequantize", device="cuda", op="conv2d", integer=False),
    Rule("triton_conv", device="cuda", op="conv2d", integer=True),
    Rule("reference"),
    # only where they are asked for: Triton's interpreter
    Rule("triton_splitk", device="cpu", op="linear", integer=True, m=(1, 256)),
    Rule("triton", device="cpu", op="linear", integer=True),
    Rule("triton_splitk", device="cpu", op="linear", integer=True),
    Rule("triton_float", device="cpu", op="linear", integer=False),
    Rule("dequantize", device="cpu", op="conv2d", integer=False),
    Rule("triton_conv", device="cpu", op="conv2d", integer=True),
)


def problem_of(op: str, x: torch.Tensor, w: Operand, out_dtype: torch.dtype, m: int, groups: int = 1) -> Problem:
    """What the choice depends on, of a call."""
    granularity = "group" if w.group_size else "tensor" if w.scale.numel() == 1 else "channel"
    architecture = architecture_of(x)
    zeros = w.zero is not None
    return Problem(
        op, x.device.type, architecture, w.bits, x.dtype, granularity, w.group_size, zeros, m, w.n, w.k, groups, out_dtype
    )


def architecture_of(x: torch.Tensor) -> int:
    """Of the GPU that ``x`` is on: 80, 90; 0 elsewhere."""
    return _architecture(x.device.index) if x.device.type == "cuda" else 0


@functools.lru_cache(maxsize=None)
def _architecture(index: int | None) -> int:
    major, minor = torch.cuda.get_device_capability(index)
    return 10 * major + minor


def refusal(kernel: Kernel, problem: Problem) -> str | None:
    """Why ``kernel`` cannot serve, or None."""
    able, reason = dispatch.supports(kernel.backend, problem.device)
    if not able:
        return reason
    if (kernel.linear if problem.op == "linear" else kernel.conv2d) is None:
        return f"it has no {problem.op}"
    return kernel.refuses(problem)


def explain(problem: Problem) -> dict[str, tuple[bool, str]]:
    """Every kernel with whether it can serve ``problem``, and why not."""
    found = {}
    for kernel in KERNELS.values():
        why = refusal(kernel, problem)
        found[kernel.name] = (why is None, why or "it serves")
    return found


def kernels(weight: PackedWeight, *, rows: int, x_dtype: torch.dtype = torch.int8, groups: int = 1) -> dict[str, tuple[bool, str]]:
    """Which kernels can serve a product with ``weight``: by name ``(bool, reason)``.

    Args:
        weight: of :func:`fastq.int_linear`, or, with more than two dimensions, of :func:`fastq.int_conv2d`.
        rows: of the input; of a convolution, the positions of its output, ``B * oh * ow``.
        x_dtype: the input's: int8 or uint8 codes; float32, bfloat16 or float16.
        groups: of a convolution.

    Raises ``TypeError`` where ``weight`` is not packed or a type does not fit, ``ValueError`` for numbers out of range.

    A name can be given to ``kernel=``. The first of the table's rows that fits is what serves without it.
    """
    op = "kernels"
    if not isinstance(weight, PackedWeight):
        raise TypeError(f"{op}: weight must be a fastq.PackedWeight, got a {type(weight).__name__}; fastq.pack makes one")
    for name, value, lowest in (("rows", rows, 0), ("groups", groups, 1)):
        if type(value) is not int or value < lowest:
            kind = ValueError if type(value) is int else TypeError
            raise kind(f"{op}: {name} must be an int from {lowest} on, got {value!r:.60}")
    if x_dtype not in (torch.int8, torch.uint8, *FLOATS):
        raise TypeError(f"{op}: x_dtype must be int8, uint8, float32, bfloat16 or float16, got {x_dtype!r:.60}")
    w, x = weight.operand(), torch.empty(0, dtype=x_dtype, device=weight.device)
    return explain(problem_of("linear" if len(weight.shape) == 2 else "conv2d", x, w, torch.float32, rows, groups))


def choose(problem: Problem, name: str | None = None) -> Kernel:
    """The kernel for ``problem``: ``name``, or the table's.

    Raises ``ValueError`` for an unknown one, ``RuntimeError`` if none can serve.
    """
    if name:
        op = f"int_{problem.op}"
        if name not in KERNELS:
            raise ValueError(f"{op}: unknown kernel {name!r}; choose one of {', '.join(KERNELS)}")
        why = refusal(KERNELS[name], problem)
        if why is not None:
            raise RuntimeError(f"{op}: kernel {name!r} cannot serve this call: {why}")
        return KERNELS[name]
    return _choose(problem, dispatch.asked())


@functools.lru_cache(maxsize=1024)
def _choose(problem: Problem, backend: str | None) -> Kernel:
    refused: list[tuple[str, str]] = []
    for rule in RULES:
        kernel = KERNELS[rule.kernel]
        if (backend is not None and kernel.backend != backend) or not rule.fits(problem):
            continue
        why = refusal(kernel, problem)
        if why is None:
            if kernel.backend == "reference" and backend is None:
                dispatch.warn_of_reference(problem.device, [f"{name}: {reason}" for name, reason in refused])
            return kernel
        refused.append((kernel.name, why))
    reasons = "; ".join(f"{name}: {reason}" for name, reason in refused) or "no row of the table is for such a call"
    raise RuntimeError(f"int_{problem.op}: backend {backend!r} cannot serve this call: {reasons}")
