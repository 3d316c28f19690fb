"""Direct quantization: the public functions, the ``torch.autograd.Function`` and the operators' schemas."""

from __future__ import annotations

from typing import Any

import torch

from .. import checks, dispatch
from ..ranges import LARGEST_FLOAT
from ..reference.direct import direct_update_forward as reference_update
from ..reference.direct import direct_weight_backward as reference_backward
from ..reference.direct import direct_weight_forward as reference_forward
from . import _library

__all__ = ["DirectWeight", "direct_update_", "direct_weight"]

#: The dtypes of weights, residuals and gradients.
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MOST_LEVELS = 256


def _check_dense(op: str, name: str, t: torch.Tensor, device: torch.device | None = None) -> None:
    if not isinstance(t, torch.Tensor):
        raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(t).__name__}")
    if t.layout is not torch.strided:
        raise TypeError(f"{op}: {name} must be a dense (strided) tensor, got layout {t.layout}")
    if device is not None and t.device != device:
        raise ValueError(f"{op}: {name} must be on the device of codes, {device}, got {t.device}")


def check_weight(op: str, codes: torch.Tensor, levels: torch.Tensor) -> None:
    """The checks of codes and levels, for every backend and for the fake kernels."""
    _check_dense(op, "codes", codes)
    if codes.dtype != torch.uint8:
        raise TypeError(f"{op}: codes must be uint8, got {codes.dtype}")
    _check_dense(op, "levels", levels, codes.device)
    if levels.dtype != torch.float32:
        raise TypeError(f"{op}: levels must be float32, got {levels.dtype}")
    check_count(op, levels.numel() if levels.dim() == 1 else 0, tuple(levels.shape))


def check_count(op: str, count: int, shape: tuple[int, ...]) -> None:
    """A power of two from 2 to 256, in one dimension."""
    if not 2 <= count <= MOST_LEVELS or count & (count - 1):
        raise ValueError(f"{op}: levels must have shape (2**b,) with b from 1 to 8, got {shape}")


def _check_like(op: str, name: str, t: torch.Tensor, codes: torch.Tensor) -> None:
    _check_dense(op, name, t, codes.device)
    if t.dtype not in DTYPES:
        raise TypeError(f"{op}: {name} must be float32, bfloat16 or float16, got {t.dtype}")
    if t.shape != codes.shape:
        raise ValueError(f"{op}: {name} must have the shape of codes, {tuple(codes.shape)}, got {tuple(t.shape)}")


def check_update(op: str, codes: torch.Tensor, residual: torch.Tensor | None, levels: torch.Tensor, grad: torch.Tensor) -> None:
    """The checks of what an update reads and writes."""
    check_weight(op, codes, levels)
    if residual is not None:
        _check_like(op, "residual", residual, codes)
    _check_like(op, "grad", grad, codes)
    for name, t in (("codes", codes), ("residual", residual)):
        if t is not None and any(size > 1 and stride == 0 for size, stride in zip(t.shape, t.stride(), strict=True)):
            raise ValueError(f"{op}: {name} is expanded (strides {t.stride()}), and cannot be written; call contiguous() first")


def check_factors(lr: float, rho: float, residual: torch.Tensor | None) -> None:
    """The numbers of an update."""
    for name, value in (("lr", lr), ("rho", rho)):
        if isinstance(value, bool) or not isinstance(value, (int, float, torch.SymFloat, torch.SymInt)):
            raise TypeError(f"direct_update_: {name} must be a float, got {type(value).__name__}")
    if not abs(lr) <= LARGEST_FLOAT:
        raise ValueError(f"direct_update_: lr must be finite in float32, got {lr}")
    if not 0 <= rho <= 1:
        raise ValueError(f"direct_update_: rho must be from 0 to 1, got {rho}")
    if residual is None and rho != 0:
        raise ValueError(f"direct_update_: without a residual rho must be 0, got {rho}")


def output_dtype(dtype: torch.dtype | None) -> torch.dtype:
    """The dtype of the weights; None is float32."""
    if dtype is None:
        return torch.float32
    if dtype not in DTYPES:
        raise TypeError(f"direct_weight: dtype must be torch.float32, torch.bfloat16 or torch.float16, got {dtype}")
    return dtype


def _fake_forward(codes: Any, levels: Any, dtype: torch.dtype) -> Any:
    check_weight("direct_weight", codes, levels)
    return torch.empty_like(codes, dtype=dtype)


def _fake_backward(grad: Any, codes: Any, levels: int) -> Any:
    _check_like("direct_weight", "grad", grad, codes)
    check_count("direct_weight", levels, (levels,))
    return grad.new_empty((levels,), dtype=torch.float32)


def _fake_update(codes: Any, residual: Any, levels: Any, grad: Any, lr: float, rho: float) -> None:
    check_update("direct_update_", codes, residual, levels, grad)


_library.define("direct_weight_forward", "(Tensor codes, Tensor levels, ScalarType dtype) -> Tensor", _fake_forward)
_library.define("direct_weight_backward", "(Tensor grad, Tensor codes, int levels) -> Tensor", _fake_backward)
_library.define(
    "direct_update_",
    "(Tensor(a!) codes, Tensor(b!)? residual, Tensor levels, Tensor grad, float lr, float rho) -> ()",
    _fake_update,
)

_forward = {"cpu": torch.ops.fastq.direct_weight_forward.default, "triton": torch.ops.fastq_triton.direct_weight_forward.default}
_backward = {"cpu": torch.ops.fastq.direct_weight_backward.default, "triton": torch.ops.fastq_triton.direct_weight_backward.default}
_update = {"cpu": torch.ops.fastq.direct_update_.default, "triton": torch.ops.fastq_triton.direct_update_.default}
for _operators in (_forward, _backward, _update):
    _operators["cuda"] = _operators["cpu"]  # one operator; the dispatcher knows the device


def _run_backward(backend: str, g: Any, codes: Any, levels: int) -> Any:
    return (reference_backward if backend == "reference" else _backward[backend])(g, codes, levels)


class DirectWeight(torch.autograd.Function):
    """``DirectWeight.apply(codes, levels, dtype)``.

    The node under :func:`fastq.direct_weight`, which documents the formula. Saves ``codes``, one byte a weight. The backward
    pass returns a gradient for ``levels``; a second one raises ``RuntimeError``.
    """

    @staticmethod
    def forward(ctx: Any, codes: Any, levels: Any, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        check_weight("direct_weight", codes, levels)
        checks.check_levels("direct_weight", codes, levels)
        backend = dispatch.select(codes)
        ctx.save_for_backward(codes)
        ctx.backend, ctx.levels = backend, levels.numel()
        if backend == "reference":
            return reference_forward(codes, levels, dtype)
        if backend == "triton":
            from .. import triton_kernels  # noqa: F401  registers the kernels
        return _forward[backend](codes, levels, dtype)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        arguments = (ctx.backend, g, *ctx.saved_tensors, ctx.levels)
        if torch.is_grad_enabled():
            dlevels = _library.BackwardOnce.apply("direct_weight", _run_backward, *arguments)
        else:
            dlevels = _run_backward(*arguments)
        return None, dlevels, None


def direct_weight(codes: torch.Tensor, levels: torch.Tensor, *, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The weights that codes stand for, with learned levels: ``w = levels[codes]``.

    Reconstruction of direct quantization (training without a latent full-precision weight); its equations are not published in
    the sources we had. Forward and backward, for the gradient ``g`` of ``w``::

        w_i        = levels[codes_i]
        dlevels[k] = sum over {i: codes_i = k} of g_i

    One pass each. The sums are the same on every run and for any number of threads: fixed pieces, no atomics.

    Args:
        codes: uint8, any shape and strides; below ``2**b``. A code beyond counts modulo ``2**b`` (no memory outside ``levels`` is
            read); :func:`fastq.set_checks` makes it raise.
        levels: ``(2**b,)``, b from 1 to 8, float32, ascending (equal neighbours may be), in units of the weights.
        dtype: of ``w``: float32 (None), bfloat16 or float16, rounded to nearest, ties to even.

    Returns:
        ``w``, with the shape and memory layout of ``codes``.

    Raises:
        TypeError: a dtype or layout does not fit.
        ValueError: not ``2**b`` levels, another device; levels that do not ascend (on the CPU always, on a GPU, where looking would
            wait for it, in the checking mode).
        RuntimeError: the backend asked for cannot serve; a second backward pass is asked for.

    :func:`fastq.direct_update_` trains the codes, :class:`fastq.nn.DirectWeight` is the module of both.

    Example:
        >>> codes = torch.randint(0, 4, (64, 128), dtype=torch.uint8)
        >>> levels = torch.tensor([-0.3, -0.1, 0.1, 0.3], requires_grad=True)
        >>> fastq.direct_weight(codes, levels).square().sum().backward()
        >>> levels.grad.shape
        torch.Size([4])
    """
    return DirectWeight.apply(codes, levels, output_dtype(dtype))


def direct_update_(
    codes: torch.Tensor, residual: torch.Tensor | None, levels: torch.Tensor, grad: torch.Tensor, *, lr: float, rho: float
) -> torch.Tensor:
    """One step of gradient descent on codes, in place and in one pass, for the gradient of the quantized weights.

    Reconstruction of direct quantization; its equations are not published in the sources we had. In fp32, each operation
    rounded::

        u_i     = (levels[codes_i] + residual_i) - lr * grad_i
        codes_i = argmin_k |u_i - levels[k]|                        binary search, then the nearer neighbour; a tie to the lower
        residual_i = rho * (u_i - levels[codes_i])

    ``rho = 1`` with levels that stay is straight-through training of a latent weight ``levels[codes] + residual`` (exactly so as
    long as fp32 holds the residual); ``rho = 0`` is projected descent, which forgets what is less than half a level.

    Args:
        codes: uint8, any shape and strides. Changed. A code beyond the levels counts modulo ``2**b``.
        residual: float32, bfloat16 or float16, of the shape of ``codes``. Changed, rounded to its dtype. None with ``rho = 0``:
            nothing is carried over, and nothing is kept beside the codes.
        levels: ``(2**b,)``, float32, ascending, as in :func:`fastq.direct_weight`. Read.
        grad: the gradient of the weights, or what an optimizer makes of it (:class:`fastq.DirectOptimizer`); float32, bfloat16 or
            float16. Read.
        lr: the step along ``grad``. Used as an fp32 number, as ``rho`` is, and finite as one.
        rho: the share of the rest that is kept, from 0 to 1.

    Returns:
        ``codes``.

    Not finite: NaN in ``grad`` or ``residual`` gives code 0 and a residual of NaN; an infinite ``u`` the outermost level and a
    residual that is not finite. The bits are the same on every backend.

    Raises:
        TypeError: a dtype or layout does not fit.
        ValueError: a shape, device or number does not fit, levels do not ascend (as for :func:`fastq.direct_weight`), codes or
            residual are expanded.
        RuntimeError: the backend asked for cannot serve.
    """
    check_factors(lr, rho, residual)
    check_update("direct_update_", codes, residual, levels, grad)
    checks.check_levels("direct_update_", codes, levels, residual, grad)
    backend = dispatch.select(codes)
    with torch.no_grad():
        if backend == "reference":
            reference_update(codes, residual, levels, grad, lr, rho)
            return codes
        if backend == "triton":
            from .. import triton_kernels  # noqa: F401  registers the kernels
        _update[backend](codes, residual, levels, grad, lr, rho)
    return codes
