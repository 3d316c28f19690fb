"""Noise tempering: the public function, its ``torch.autograd.Function`` and the operators' schemas."""

from __future__ import annotations

from typing import Any

import torch

from .. import checks, dispatch
from ..granularity import check_input, check_parameter, compute_dtype, normalize_axis
from ..ranges import BOUNDARIES, check_eps, check_flag, check_number, integer_range
from ..reference.philox import NOISES
from ..reference.tempered import READINGS, STILL
from ..reference.tempered import tempered_backward as reference_backward
from ..reference.tempered import tempered_forward as reference_forward
from ..seeds import check_seed
from . import _library
from .lsq import _forward as _lsq_forward
from .lsq import gradient_factor

__all__ = ["Tempered", "tempered"]


def check(op: str, x: torch.Tensor, step: torch.Tensor, a: torch.Tensor, seed: Any, decay: Any, axis: int, group_size: int) -> None:
    """The checks of the tensors, for every backend and for the fake kernels. No seed, no decay: no noise (``training=False``)."""
    check_input(op, x)
    check_parameter(op, "step", step, x, axis, group_size)
    check_parameter(op, "a", a, x, axis, group_size)
    if a.shape != step.shape:
        raise ValueError(f"{op}: a must have the shape of step, {tuple(step.shape)}, got {tuple(a.shape)}")
    if seed is not None:
        check_seed(op, seed, x)
    if decay is not None:
        check_parameter(op, "decay", decay, x, -1, 0)


def check_values(op: str, x: torch.Tensor, step: torch.Tensor, a: torch.Tensor, decay: torch.Tensor | None) -> None:
    """What the checking mode looks at."""
    checks.check_values(op, x, step, a, ("step", "a"))
    if decay is not None:
        checks.check_fraction(op, "decay", decay)


def check_decay(op: str, decay: torch.Tensor | float) -> None:
    """``decay`` is a number from 0 to 1, or one float element, whose value only the checking mode looks at."""
    if isinstance(decay, torch.Tensor):
        if decay.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"{op}: decay must be a float or a float32 tensor, got {decay.dtype}")
        if decay.numel() != 1:
            raise ValueError(f"{op}: decay must have one element, got shape {tuple(decay.shape)}")
        if decay.requires_grad:
            raise ValueError(f"{op}: decay gets no gradient and must not require one; pass decay.detach()")
        return
    if isinstance(decay, bool) or not isinstance(decay, (int, float, torch.SymFloat)):
        raise TypeError(f"{op}: decay must be a float from 0 to 1 or a tensor of one element, got {type(decay).__name__}")
    if not 0 <= decay <= 1:
        raise ValueError(f"{op}: decay must be from 0 to 1, got {decay}")


def _fake_forward(
    x: Any, step: Any, a: Any, seed: Any, decay: Any, qmin: int, qmax: int, axis: int, group_size: int, eps: float, boundary: int,
    noise: int,
) -> Any:  # fmt: skip
    check("tempered", x, step, a, seed, decay, axis, group_size)
    return torch.empty_like(x)


def _fake_backward(
    grad: Any, x: Any, step: Any, a: Any, seed: Any, decay: Any, qmin: int, qmax: int, axis: int, group_size: int, eps: float,
    boundary: int, noise: int, reading: int, grad_scale: float, grad_norm: int, a_grad_scale: float,
) -> Any:  # fmt: skip
    check("tempered", x, step, a, seed, decay, axis, group_size)
    return torch.empty_like(x), *(torch.empty_like(p, memory_format=torch.contiguous_format) for p in (step, a))


_library.define(
    "tempered_forward",
    "(Tensor x, Tensor step, Tensor a, Tensor seed, Tensor decay, int qmin, int qmax, int axis, int group_size, float eps, "
    "int boundary, int noise) -> Tensor",
    _fake_forward,
)
_library.define(
    "tempered_backward",
    "(Tensor grad, Tensor x, Tensor step, Tensor a, Tensor? seed, Tensor? decay, int qmin, int qmax, int axis, int group_size, "
    "float eps, int boundary, int noise, int reading, float grad_scale, int grad_norm, float a_grad_scale) "
    "-> (Tensor, Tensor, Tensor)",
    _fake_backward,
)

_forward = {"cpu": torch.ops.fastq.tempered_forward.default, "triton": torch.ops.fastq_triton.tempered_forward.default}
_backward = {"cpu": torch.ops.fastq.tempered_backward.default, "triton": torch.ops.fastq_triton.tempered_backward.default}
_forward["cuda"], _backward["cuda"] = _forward["cpu"], _backward["cpu"]  # one operator; the dispatcher knows the device


def _run_backward(backend: str, g: Any, x: Any, step: Any, a: Any, seed: Any, decay: Any, arguments: tuple[Any, ...]) -> Any:
    return (reference_backward if backend == "reference" else _backward[backend])(g, x, step, a, seed, decay, *arguments)


class Tempered(torch.autograd.Function):
    """``Tempered.apply(x, step, a, seed, decay, qmin, qmax, axis, group_size, eps, boundary, noise, reading, grad_scale,
    a_grad_scale)``.

    The node under :func:`fastq.tempered`, which documents the formula. Here every argument is given, already resolved: ``seed`` and
    ``decay`` tensors, the latter of the dtype of ``step`` (None without noise), ``axis`` -1 and ``group_size`` 0 where absent,
    ``boundary`` 0 open, 1 closed, 2 rounded, ``noise`` 0 uniform, 1 rademacher, 2 normal, ``reading`` 0 noise, 1 gradient, 2
    neither (``training=False``). Saves ``x``, the parameters, the seed and ``decay``. The backward pass returns gradients for
    ``x``, ``step`` and ``a``; a second one raises ``RuntimeError``.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Any, step: Any, a: Any, seed: Any, decay: Any, qmin: int, qmax: int, axis: int, group_size: int, eps: float,
        boundary: int, noise: int, reading: int, grad_scale: float | str = "lsq", a_grad_scale: float = 1.0,
    ) -> torch.Tensor:  # fmt: skip
        check("tempered", x, step, a, seed, decay, axis, group_size)
        check_values("tempered", x, step, a, decay)
        factor, norm = gradient_factor(grad_scale, "tempered")
        backend = dispatch.select(x)
        ctx.save_for_backward(x, step, a, seed, decay)
        common = (qmin, qmax, axis, group_size, eps, boundary, noise)
        ctx.backend = backend
        if backend == "reference":
            ctx.arguments = (*common, reading, grad_scale, a_grad_scale)
            return reference_forward(x, step, a, seed, decay, *common, reading)
        if backend == "triton":
            from .. import triton_kernels  # noqa: F401  registers the kernels
        ctx.arguments = (*common, reading, factor, norm, a_grad_scale)
        if reading != READINGS["noise"]:
            return _lsq_forward[backend](x, step, None, qmin, qmax, axis, group_size, eps)
        return _forward[backend](x, step, a, seed, decay, *common)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        arguments = (ctx.backend, g, *ctx.saved_tensors, ctx.arguments)
        if torch.is_grad_enabled():  # under create_graph=True: computed, and not to be differentiated again
            gradients = _library.BackwardOnce.apply("tempered", _run_backward, *arguments)
        else:
            gradients = _run_backward(*arguments)
        return *gradients, *(None,) * 12


def resolve(
    x: torch.Tensor, *, bits: Any, decay: Any, seed: Any, signed: bool = True, narrow: bool = False, reading: str = "noise",
    noise: str = "uniform", training: bool = True, axis: int | None = None, group_size: int | None = None, boundary: str = "open",
    grad_scale: float | str = "lsq", a_grad_scale: float = 1.0, eps: float = 1e-8,
) -> tuple[Any, ...]:  # fmt: skip
    """Check the public arguments, the tensors' values aside, and give those that follow ``a`` in :class:`Tempered`."""
    check_input("tempered", x)
    axis_, group = (-1, 0) if axis is None and group_size is None else normalize_axis("tempered", x, axis, group_size)
    qmin, qmax = integer_range("tempered", bits, signed, narrow)
    for name, value, known in (("boundary", boundary, BOUNDARIES), ("reading", reading, READINGS), ("noise", noise, NOISES)):
        if value not in known:
            raise ValueError(f"tempered: {name} must be one of {', '.join(known)}, got {value!r}")
    check_decay("tempered", decay)
    gradient_factor(grad_scale, "tempered")
    check_number("tempered", "a_grad_scale", a_grad_scale)
    check_flag("tempered", "training", training)
    check_eps("tempered", eps)
    how = READINGS[reading] if training else STILL
    if training or seed is not None:
        check_seed("tempered", seed, x)
    common = (qmin, qmax, axis_, group, eps, BOUNDARIES[boundary], NOISES[noise], how, grad_scale, a_grad_scale)
    return (seed, _one_element(decay, x), *common) if training else (None, None, *common)


def _one_element(decay: torch.Tensor | float, x: torch.Tensor) -> torch.Tensor:
    """``decay`` as the kernels read it: one element of the arithmetic's dtype."""
    dtype = compute_dtype(x)
    if isinstance(decay, torch.Tensor):
        return decay if decay.dtype == dtype else decay.to(dtype)
    return torch.full((1,), decay, dtype=dtype, device=x.device)


def tempered(
    x: torch.Tensor,
    step: torch.Tensor,
    a: torch.Tensor,
    *,
    bits: int | tuple[int, int],
    decay: torch.Tensor | float,
    seed: torch.Tensor | None,
    signed: bool = True,
    narrow: bool = False,
    reading: str = "noise",
    noise: str = "uniform",
    training: bool = True,
    axis: int | None = None,
    group_size: int | None = None,
    boundary: str = "open",
    grad_scale: float | str = "lsq",
    a_grad_scale: float = 1.0,
    eps: float = 1e-8,
) -> torch.Tensor:
    """Fake-quantize ``x`` with noise as large as each rounding error, times ``decay``, and a learned scale ``a`` of its gradient.

    A reconstruction of noise tempering (decaying, error-aware noise and a learned gradient scale): the equations were not published
    in the sources we had, so where they leave a choice it is an argument (``reading``, ``noise``, ``boundary``).

    With ``s = max(|step|, eps)``, rounding half to even, and ``m`` where ``v`` lies inside the clip range::

        v = x / s;  q = round(clip(v, qmin, qmax));  e = q - v where m, else 0;  k = decay * xi

        y     = s * (q + k * e)
        dx    = a * g where m, else 0
        dstep = G * sign(step) * sum g * (e * (1 + k) where m; else qmin where v <= qmin; else qmax)
        da    = a_grad_scale * sum g * (x - s * q) where m

    ``reading="gradient"`` puts the noise into the gradient instead: ``y = s * q``, ``dx = g * (a + k * |e|)`` where m, and
    ``dstep`` without ``k``. ``training=False`` has none: ``y = s * q``, and the gradients with ``k = 0``. With ``a = 1`` and
    ``decay = 0`` it is :func:`fastq.lsq`, bit for bit.

    ``xi`` has zero mean and unit variance, and belongs to the seed and the element's place in logical row-major order:
    Philox4x32-10 with key ``seed``, counter ``index // 4``, word ``index % 4``. It is the same for every backend, layout, dtype
    and number of threads, is made again in the backward pass and never stored; an ``x`` that is not contiguous is copied into that
    order. The bits of ``y`` and ``dx`` are the same on every backend; the sums are the same on every run and for any number of
    threads.

    Args:
        x: float32, bfloat16, float16 or float64, any shape and strides. Arithmetic is fp32 (fp64 for float64; ``xi`` is fp32).
        step: float32 (float64 for float64 ``x``), in units of ``x``. One element per tensor; ``(C,)`` with ``axis``;
            ``x.shape[:-1] + (K // group_size,)`` with ``group_size``, ``K = x.shape[-1]``.
        a: the gradient's scale, without unit, of the shape and dtype of ``step``; 1 at first.
        bits: 1 to 8 (1 with ``signed=False``), or the integer range itself as ``(qmin, qmax)``, ``qmin < qmax``, ``qmax >= 1``.
        decay: the factor of the noise, from 0 to 1; :func:`fastq.tempering_decay` gives it for a training step. A number, or a
            float32 tensor of one element on the device of ``x``: fill that in place, and neither does ``torch.compile`` compile
            anew for each value nor a captured CUDA graph keep the first one. Its value is only looked at in the checking mode.
        seed: one int64 element on the device of ``x``; change it to draw new noise. Without ``training`` None will do.
        signed, narrow: as in :func:`fastq.lsq`.
        reading: ``"noise"`` (in the forward pass) or ``"gradient"``.
        noise: ``"uniform"`` on +-sqrt(3), ``"rademacher"`` (+-1) or ``"normal"`` (Box-Muller with polynomials of our own, a few ulp
            from what true logarithms and cosines give).
        training: False for evaluation.
        axis: one step and one ``a`` per index of this axis. Excludes ``group_size``.
        group_size: one of each per so many consecutive elements of the last axis, which it must divide.
        boundary, grad_scale, eps: as in :func:`fastq.lsq`; ``m`` decides where there is noise, too.
        a_grad_scale: the factor of ``da``.

    Returns:
        ``y``, with the shape, dtype and memory layout of ``x``.

    Not finite: as in :func:`fastq.lsq`; an ``a`` of NaN gives NaN in ``dx`` where m.

    Raises:
        TypeError: ``x`` is not a dense float tensor of a dtype above; a parameter, ``seed``, ``decay`` or an option has another
            type than it should.
        ValueError: a shape, device, axis, group size, range or option does not fit; ``decay`` is not from 0 to 1, or requires a
            gradient.
        RuntimeError: the backend asked for cannot serve; a second backward pass is asked for.

    Example:
        >>> x = torch.randn(64, 128, requires_grad=True)
        >>> step, a = torch.full((64,), 0.1, requires_grad=True), torch.ones(64, requires_grad=True)
        >>> decay = fastq.tempering_decay(100, 1000)
        >>> y = fastq.tempered(x, step, a, bits=4, axis=0, decay=decay, seed=torch.tensor(100))
        >>> y.square().sum().backward()
        >>> a.grad.shape
        torch.Size([64])
    """
    arguments = resolve(
        x, bits=bits, decay=decay, seed=seed, signed=signed, narrow=narrow, reading=reading, noise=noise, training=training,
        axis=axis, group_size=group_size, boundary=boundary, grad_scale=grad_scale, a_grad_scale=a_grad_scale, eps=eps,
    )  # fmt: skip
    return Tempered.apply(x, step, a, *arguments)
