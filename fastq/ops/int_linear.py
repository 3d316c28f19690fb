"""The integer product as a public function, and the operators below it: ``int_linear``, ``int_conv2d``, codes of inputs.

``fastq::int_linear`` is the C++ and CUDA kernels', ``fastq_engine::int_linear`` the one that chooses among these and Triton's: an
operator, so that a compiled program with a dynamic number of rows chooses when it runs. So it is with ``int_conv2d``.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from .. import checks
from ..engine import table
from ..engine.call import ACTIVATIONS, EPILOGUE, FLOATS, OPERAND, OUT_DTYPES, WINDOW, Epilogue, Operand, Problem, Window
from ..packing import PackedWeight, layout_of
from . import _calls, _library
from .quantize import check_codes, check_scale, plain, quantize_per_token

__all__ = ["int_linear"]

INT32_MAX = 2**31 - 1


def _fake_linear(x: Any, weight: Any, scale: Any, zero: Any, sums: Any, form: Any, *epilogue: Any) -> Any:
    return x.new_empty((x.shape[0], form[0]), dtype=epilogue[7])


def _fake_conv2d(x: Any, weight: Any, scale: Any, zero: Any, sums: Any, form: Any, window: Any, *epilogue: Any) -> Any:
    h, w = Window.of(window).size(x.shape[2], x.shape[3])
    out = x.new_empty((x.shape[0], h, w, form[0]), dtype=epilogue[7])
    return out.permute(0, 3, 1, 2)


LINEAR = f"(Tensor x, {OPERAND}, {EPILOGUE}) -> Tensor"
CONV2D = f"(Tensor x, {OPERAND}, {WINDOW}, {EPILOGUE}) -> Tensor"
_library.define("int_linear", LINEAR, _fake_linear, triton=False)
_library.define("int_conv2d", CONV2D, _fake_conv2d, triton=False)


def problem_of(x: torch.Tensor, w: Operand, window: Window | None, out_dtype: torch.dtype) -> Problem:
    if window is None:
        return table.problem_of("linear", x, w, out_dtype, x.shape[0])
    return table.problem_of("conv2d", x, w, out_dtype, x.shape[0] * math.prod(window.size(*x.shape[2:])), window.groups)


def _run(x: Any, w: Operand, window: Window | None, e: Epilogue, name: str) -> torch.Tensor:
    problem = problem_of(x, w, window, e.out_dtype)
    op, m = f"int_{problem.op}", problem.m
    _library.refuse_gradients(op, x, e.residual)
    kernel = table.choose(problem, name)
    if m == 0 or w.n == 0:
        empty = _fake_linear(x, *w.flat(), *e.flat()) if window is None else _fake_conv2d(x, *w.flat(), window.flat(), *e.flat())
        return empty  # type: ignore[no-any-return]
    return kernel.linear(x, w, e) if window is None else kernel.conv2d(x, w, window, e)  # type: ignore[misc]


def _run_linear(x: Any, *arguments: Any) -> torch.Tensor:
    return _run(x, Operand(*arguments[:4], *arguments[4]), None, Epilogue.of(arguments[5:-1]), arguments[-1])


def _run_conv2d(x: Any, *arguments: Any) -> torch.Tensor:
    w, window = Operand(*arguments[:4], *arguments[4]), Window.of(arguments[5])
    return _run(x, w, window, Epilogue.of(arguments[6:-1]), arguments[-1])


_engine = torch.library.Library("fastq_engine", "FRAGMENT")
for _name, _schema, _fake, _implementation in (
    ("int_linear", LINEAR, _fake_linear, _run_linear),
    ("int_conv2d", CONV2D, _fake_conv2d, _run_conv2d),
):
    _engine.define(_name + _schema.replace(") ->", ", str kernel) ->"), tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.register_fake(f"fastq_engine::{_name}", lambda *a, fake=_fake: fake(*a[:-1]), lib=_engine)
    for _key in ("CPU", "CUDA"):
        _engine.impl(_name, _implementation, _key)

_linear = torch.ops.fastq_engine.int_linear.default
_conv2d = torch.ops.fastq_engine.int_conv2d.default


def product(x: torch.Tensor, w: Operand, window: Window | None, e: Epilogue, kernel: str = "") -> torch.Tensor:
    """By the kernel that is chosen at once, or, for a compiler, by the operator that chooses when it runs."""
    if torch.compiler.is_compiling() or type(x) is not torch.Tensor:
        if window is None:
            return _linear(x, *w.flat(), *e.flat(), kernel)  # type: ignore[no-any-return]
        return _conv2d(x, *w.flat(), window.flat(), *e.flat(), kernel)  # type: ignore[no-any-return]
    return _run(x, w, window, e, kernel)  # an operator written in Python would take as long again as a small product


def run_known(
    call: _calls.Known, op: str, x: torch.Tensor, weight: PackedWeight, x_scale: torch.Tensor | None, bias: Any, multiplier: Any,
    addend: Any, residual: torch.Tensor | None, out_scale: Any, kernel: str | None,
) -> torch.Tensor:  # fmt: skip
    """A call like one that was checked: what is left to look at are the tensors."""
    e = Epilogue(
        x_scale, call.x_zero_point, channels(op, "bias", bias, weight), channels(op, "multiplier", multiplier, weight),
        channels(op, "addend", addend, weight), residual, call.activation, call.out_dtype,
        check_scale(op, "out_scale", out_scale, x.device), call.out_codes,
    )  # fmt: skip
    chosen = table.choose(call.problem, kernel)
    if call.window is None:
        return chosen.linear(x, weight.kept_operand, e)  # type: ignore[misc]
    return chosen.conv2d(x, weight.kept_operand, call.window, e)  # type: ignore[misc]


def kept(key: Any, x: torch.Tensor, weight: PackedWeight, window: Window | None, e: Epilogue, shape: tuple[int, ...]) -> None:
    """What the arguments of a call came to, for the next like it."""
    if key is not None and 0 not in shape:
        problem = problem_of(x, weight.operand(), window, e.out_dtype)
        _calls.keep(key, _calls.Known(problem, window, shape, e.x_zero_point, e.activation, e.out_dtype, e.out_codes))


def check_operands(op: str, x: Any, weight: Any, x_zero_point: Any, kernel: Any) -> None:
    """What ``int_linear`` and ``int_conv2d`` ask of their input and weight."""
    if not isinstance(weight, PackedWeight):
        kind = type(weight).__name__
        raise TypeError(f"{op}: weight must be a fastq.PackedWeight, got a {kind}; fastq.pack(codes, bits, scale=...) makes one")
    if not isinstance(x, torch.Tensor) or x.dtype not in (torch.int8, torch.uint8, *FLOATS):
        got = x.dtype if isinstance(x, torch.Tensor) else type(x).__name__
        raise TypeError(f"{op}: x must be int8 or uint8 codes, or float32, bfloat16 or float16, got {got}")
    if x.layout != torch.strided:
        raise TypeError(f"{op}: x must be a strided tensor, got the layout {x.layout}")
    if kernel is not None and not isinstance(kernel, str):
        raise TypeError(f"{op}: kernel must be a name of fastq.kernels(...) or None, got {kernel!r:.60}")
    _library.refuse_to_train(op, x=x)
    if x.device != weight.device:
        raise ValueError(f"{op}: x is on {x.device} and weight on {weight.device}; weight.to(device) moves it")
    if weight.layout != layout_of(x.device):
        expected = f"{layout_of(x.device)!r}, that of {x.device.type}, got {weight.layout!r}"
        raise ValueError(f"{op}: weight must be in the layout {expected}; weight.to({x.device.type!r}) makes it")
    if x_zero_point is None:
        return
    if isinstance(x_zero_point, bool) or not isinstance(x_zero_point, int):
        raise TypeError(f"{op}: x_zero_point must be an int, one for the tensor, got {x_zero_point!r:.60}")
    if x.is_floating_point():
        raise ValueError(f"{op}: x_zero_point is one of codes, and x is of {x.dtype}")
    range_ = torch.iinfo(x.dtype)
    if not range_.min <= x_zero_point <= range_.max:
        raise ValueError(f"{op}: x_zero_point must be a code of {x.dtype}, {range_.min} to {range_.max}, got {x_zero_point}")


def check_overflow(op: str, x: torch.Tensor, weight: PackedWeight, x_zero_point: int) -> None:
    """``ValueError`` where an accumulator could leave int32."""
    if x.is_floating_point():
        return
    codes = torch.iinfo(x.dtype)
    of_x = max(codes.max - x_zero_point, x_zero_point - codes.min)
    of_w = 2**weight.bits - 1 if weight.stored_zero is not None else 2 ** (weight.bits - 1)
    products = min(weight.k, weight.group_size or weight.k)
    if products * of_x * of_w > INT32_MAX:
        raise ValueError(
            f"{op}: {products} products of up to {of_x} x {of_w} could overflow the int32 accumulator; at most "
            f"{INT32_MAX // (of_x * of_w)} cannot: split K and add the outputs"
        )


def channels(op: str, name: str, t: Any, weight: PackedWeight) -> torch.Tensor | None:
    """``bias``, ``multiplier`` or ``addend``: float32 ``(N,)``."""
    if t is None:
        return None
    if not isinstance(t, torch.Tensor) or not t.is_floating_point():
        raise TypeError(f"{op}: {name} must be a floating point tensor, got {t.dtype if isinstance(t, torch.Tensor) else t!r:.60}")
    if t.shape != (weight.n,):
        raise ValueError(f"{op}: {name} must have shape {(weight.n,)}, one element per output, got {tuple(t.shape)}")
    if t.device != weight.device:
        raise ValueError(f"{op}: {name} is on {t.device} and weight on {weight.device}")
    return plain(t).contiguous()


def epilogue(
    op: str, x: torch.Tensor, weight: PackedWeight, x_scale: torch.Tensor | None, x_zero_point: int, bias: Any, multiplier: Any,
    addend: Any, residual: Any, shape: tuple[Any, ...], activation: Any, out_dtype: Any, out_scale: Any, out_range: Any,
    out_zero_point: Any,
) -> Epilogue:  # fmt: skip
    """The checks of what follows the product, and its :class:`Epilogue`; ``shape``: of the output."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"{op}: activation must be None, 'relu', 'gelu' or 'silu', got {activation!r:.60}")
    if out_dtype is None:
        out_dtype = torch.int8 if out_scale is not None else x.dtype if x.is_floating_point() else torch.float32
    if out_dtype not in OUT_DTYPES:
        raise TypeError(f"{op}: out_dtype must be float32, bfloat16, float16, int8, uint8 or int32, got {out_dtype!r:.60}")
    codes = out_dtype in (torch.int8, torch.uint8)
    if codes and out_scale is None:
        raise ValueError(f"{op}: out_dtype {out_dtype} is one of codes, which need out_scale")
    if not codes and (out_scale is not None or out_range is not None or out_zero_point != 0):
        raise ValueError(f"{op}: out_scale, out_range and out_zero_point are for codes, and out_dtype is {out_dtype}")
    out_codes = (0, 0, 0)
    if codes:
        out_codes = check_codes(op, out_dtype, out_range, out_zero_point, "out_")
        out_scale = check_scale(op, "out_scale", out_scale, x.device)
    if out_dtype == torch.int32:
        if x.is_floating_point() or weight.group_size is not None:
            why = f"x is of {x.dtype}" if x.is_floating_point() else "the sums of groups have different scales"
            raise ValueError(f"{op}: out_dtype int32 is the accumulators of integers, and {why}")
        given = {"x_scale": x_scale, "bias": bias, "multiplier": multiplier, "addend": addend}
        given |= {"residual": residual, "activation": activation}
        which = ", ".join(name for name, value in given.items() if value is not None)
        if which:
            raise ValueError(f"{op}: out_dtype int32 is the accumulators, to which {which} would not be applied")
    if residual is not None:
        if not isinstance(residual, torch.Tensor) or residual.dtype not in FLOATS:
            got = residual.dtype if isinstance(residual, torch.Tensor) else type(residual).__name__
            raise TypeError(f"{op}: residual must be float32, bfloat16 or float16, got {got}")
        if tuple(residual.shape) != shape:
            raise ValueError(f"{op}: residual must have the output's shape {shape}, got {tuple(residual.shape)}")
        if residual.device != x.device:
            raise ValueError(f"{op}: residual is on {residual.device} and x on {x.device}")
        _library.refuse_to_train(op, residual=residual)
    return Epilogue(
        x_scale, x_zero_point, channels(op, "bias", bias, weight), channels(op, "multiplier", multiplier, weight),
        channels(op, "addend", addend, weight), residual, ACTIVATIONS.index(activation), out_dtype, out_scale, out_codes,
    )  # fmt: skip


def check_numbers(op: str, x: torch.Tensor, e: Epilogue) -> None:
    """In the checking mode: what is given is finite, the output's step positive."""
    given = {"bias": e.bias, "multiplier": e.multiplier, "addend": e.addend, "residual": e.residual}
    checks.check_finite(op, x=x, x_scale=e.x_scale, **given)
    checks.check_positive(op, out_scale=e.out_scale)


def int_linear(
    x: torch.Tensor, weight: PackedWeight, *, x_scale: torch.Tensor | float | str | None = None, x_zero_point: int | None = None,
    bias: torch.Tensor | None = None, activation: str | None = None, out_dtype: torch.dtype | None = None,
    out_scale: torch.Tensor | float | None = None, out_range: tuple[int, int] | None = None, out_zero_point: int = 0,
    multiplier: torch.Tensor | None = None, addend: torch.Tensor | None = None, residual: torch.Tensor | None = None,
    kernel: str | None = None,
) -> torch.Tensor:  # fmt: skip
    """A linear layer on a packed weight, ``y = x W^T``: exact in integers for codes, in float32 for floating point inputs.

    For codes ``x``, with the weight's codes ``c``, scale ``s`` and zero-point ``z``::

        acc = sum over k of (x - x_zero_point) * (c - z)                     int32, exact
        y   = float(acc) * (x_scale * s) + bias                              per group: the sum over the groups, in their order
        y   = y * multiplier + addend                                        where given; a batch norm's affine
        y   = activation(y + residual)
        out = y, rounded once to out_dtype; or the codes
              round(clip(y / out_scale, lo - zp, hi - zp)) + zp              half to even; NaN gives zp

    For floating point ``x``: ``y = sum over k of x * s * (c - z)``, accumulated in float32; what follows is the same. AMX takes
    ``x`` apart into bfloat16 numbers, whose products are exact, and counts numbers and sums below ``2**-126`` as 0. A GPU's large
    products (:func:`fastq.kernels` says which kernel) are torch's, of the weight written out in the dtype of ``x``: scales of
    groups are then rounded with it, and float32 obeys ``torch.backends.cuda.matmul.allow_tf32``.

    Args:
        x: int8 or uint8 codes, float32, bfloat16 or float16; ``(..., K)``, any strides.
        weight: a :class:`PackedWeight` of shape ``(N, K)`` on the device of ``x``.
        x_scale: of the codes ``x``: a number, one element, or one for each row, of shape ``x.shape[:-1]``; float32; None: 1.
            ``"dynamic"``: floating point ``x`` is quantized to int8 first, per token (:func:`fastq.quantize_per_token`).
        x_zero_point: the code of ``x`` that stands for 0.
        bias, multiplier, addend: ``(N,)``, floating point; used as float32.
        activation: None, ``"relu"``, ``"gelu"`` (by erf) or ``"silu"``.
        out_dtype: float32, bfloat16, float16; int8 or uint8 codes (with ``out_scale``); int32, the accumulators, to which nothing
            is applied. None: the dtype of a floating point ``x``, int8 with ``out_scale``, else float32.
        out_scale: step of the output's codes, a number or one element.
        out_range: lowest and highest code of the output; None: those of its dtype.
        out_zero_point: the output's code for 0.
        residual: added before the activation; floating point, of the output's shape.
        kernel: the name of a kernel (:func:`fastq.kernels` lists them); None: the table's choice.

    Returns:
        ``(..., N)``, contiguous. Integers and what follows them have the same bits on every backend, but for gelu and silu (a few
        ulp), and sums over groups, whose order may differ. Not differentiable.

    Raises:
        TypeError: ``weight`` is not packed; a dtype does not fit.
        ValueError: a shape, range, code or device does not fit; K is so long that int32 could overflow.
        RuntimeError: the backend or kernel asked for cannot serve; ``x`` or ``residual`` requires a gradient.
    """
    op = "int_linear"
    numbers = (x_zero_point, activation, out_dtype, out_range, out_zero_point, kernel)
    given = (x_scale is None, bias is None, multiplier is None, addend is None, out_scale is None)
    key = None if isinstance(x_scale, str) else _calls.key_of(x, weight, residual, numbers, given)
    if (call := _calls.known(key)) is not None:
        flat = x.reshape(call.problem.m, weight.k).contiguous()
        scale = check_scale(op, "x_scale", x_scale, x.device, call.shape[:-1])
        residual = None if residual is None else residual.reshape(call.problem.m, weight.n).contiguous()
        y = run_known(call, op, flat, weight, scale, bias, multiplier, addend, residual, out_scale, kernel)
        return y.view(call.shape)
    check_operands(op, x, weight, x_zero_point, kernel)
    if len(weight.shape) != 2:
        raise ValueError(f"{op}: weight must have shape (N, K), got {weight.shape}; int_conv2d takes those of convolutions")
    if x.dim() < 1 or x.shape[-1] != weight.k:
        raise ValueError(f"{op}: x must be (..., {weight.k}) for a weight of shape {weight.shape}, got {tuple(x.shape)}")
    lead, rows = x.shape[:-1], math.prod(x.shape[:-1])
    shape = (*lead, weight.n)
    flat = x.reshape(rows, weight.k)
    if isinstance(x_scale, str):
        if x_scale != "dynamic" or not x.is_floating_point():
            expected = "a number, a tensor or, for a floating point x, 'dynamic'"
            raise ValueError(f"{op}: x_scale must be {expected}; got {x_scale!r:.60} for x of {x.dtype}")
        if out_dtype is None and out_scale is None:
            out_dtype = x.dtype
        flat, scale = quantize_per_token(flat)
    else:
        scale = check_scale(op, "x_scale", x_scale, x.device, tuple(lead))
        if scale is not None and x.is_floating_point():
            raise ValueError(f"{op}: x_scale is one of codes, and x is of {x.dtype}; x_scale='dynamic' quantizes it")
    check_overflow(op, flat, weight, x_zero_point or 0)
    e = epilogue(
        op, flat, weight, scale, x_zero_point or 0, bias, multiplier, addend, residual, shape, activation, out_dtype, out_scale,
        out_range, out_zero_point,
    )  # fmt: skip
    if residual is not None:
        e = e._replace(residual=residual.reshape(rows, weight.n).contiguous())
    check_numbers(op, x, e)
    flat = flat.contiguous()
    y = product(flat, weight.operand(), None, e, kernel or "").view(shape)
    kept(key, flat, weight, None, e, shape)
    return y
