"""Noise in place of rounding: the public function, its ``torch.autograd.Function`` and the operators' schemas."""

from __future__ import annotations

from typing import Any

import torch

from .. import checks, dispatch
from ..granularity import check_input, check_parameter, normalize_axis
from ..ranges import check_eps, check_flag, integer_range
from ..reference.noise_quant import noise_quant_backward as reference_backward
from ..reference.noise_quant import noise_quant_forward as reference_forward
from ..reference.philox import NOISES
from ..seeds import check_seed
from . import _library
from .lsq import gradient_factor, lsq

__all__ = ["NoiseQuant", "noise_quant"]

#: The kinds, each with the noise it has where none is asked for.
KINDS = {"diffq": "normal", "nipq": "uniform", "uniform": "uniform"}


def check(op: str, x: torch.Tensor, step: torch.Tensor, seed: Any, axis: int, group_size: int) -> None:
    """The checks of the tensors, for every backend and for the fake kernels."""
    check_input(op, x)
    check_parameter(op, "step", step, x, axis, group_size)
    check_seed(op, seed, x)


def _fake_forward(
    x: Any, step: Any, seed: Any, qmin: int, qmax: int, axis: int, group_size: int, eps: float, clipped: bool, noise: int
) -> Any:
    check("noise_quant", x, step, seed, axis, group_size)
    return torch.empty_like(x)


def _fake_backward(
    grad: Any, x: Any, step: Any, seed: Any, qmin: int, qmax: int, axis: int, group_size: int, eps: float, clipped: bool,
    noise: int, grad_scale: float, grad_norm: int,
) -> Any:  # fmt: skip
    check("noise_quant", x, step, seed, axis, group_size)
    return torch.empty_like(x), torch.empty_like(step, memory_format=torch.contiguous_format)


_COMMON = "Tensor x, Tensor step, Tensor seed, int qmin, int qmax, int axis, int group_size, float eps, bool clipped, int noise"
_library.define("noise_quant_forward", f"({_COMMON}) -> Tensor", _fake_forward)
_library.define(
    "noise_quant_backward", f"(Tensor grad, {_COMMON}, float grad_scale, int grad_norm) -> (Tensor, Tensor)", _fake_backward
)

_forward = {"cpu": torch.ops.fastq.noise_quant_forward.default, "triton": torch.ops.fastq_triton.noise_quant_forward.default}
_backward = {"cpu": torch.ops.fastq.noise_quant_backward.default, "triton": torch.ops.fastq_triton.noise_quant_backward.default}
_forward["cuda"], _backward["cuda"] = _forward["cpu"], _backward["cpu"]  # one operator; the dispatcher knows the device


def _run_backward(backend: str, g: Any, x: Any, step: Any, seed: Any, arguments: tuple[Any, ...]) -> Any:
    return (reference_backward if backend == "reference" else _backward[backend])(g, x, step, seed, *arguments)


class NoiseQuant(torch.autograd.Function):
    """``NoiseQuant.apply(x, step, seed, qmin, qmax, axis, group_size, eps, clipped, noise, grad_scale)``.

    The node under :func:`fastq.noise_quant`, which documents the formula. Here every argument is given, already resolved: ``axis``
    -1 and ``group_size`` 0 where absent, ``clipped`` true for NIPQ, ``noise`` 0 uniform, 1 rademacher, 2 normal. Saves ``x``,
    ``step`` and the seed. The backward pass returns gradients for ``x`` and ``step``; a second one raises ``RuntimeError``.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Any, step: Any, seed: Any, qmin: int, qmax: int, axis: int, group_size: int, eps: float, clipped: bool,
        noise: int, grad_scale: float | str = 1.0,
    ) -> torch.Tensor:  # fmt: skip
        check("noise_quant", x, step, seed, axis, group_size)
        checks.check_values("noise_quant", x, step, None)
        factor, norm = gradient_factor(grad_scale, "noise_quant")
        backend = dispatch.select(x)
        ctx.save_for_backward(x, step, seed)
        common = (qmin, qmax, axis, group_size, eps, clipped, noise)
        ctx.backend = backend
        if backend == "reference":
            ctx.arguments = (*common, grad_scale)
            return reference_forward(x, step, seed, *common)
        if backend == "triton":
            from .. import triton_kernels  # noqa: F401  registers the kernels
        ctx.arguments = (*common, factor, norm)
        return _forward[backend](x, step, seed, *common)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        arguments = (ctx.backend, g, *ctx.saved_tensors, ctx.arguments)
        if torch.is_grad_enabled():  # under create_graph=True: computed, and not to be differentiated again
            gradients = _library.BackwardOnce.apply("noise_quant", _run_backward, *arguments)
        else:
            gradients = _run_backward(*arguments)
        return *gradients, *(None,) * 9


def check_kind(op: str, kind: str, noise: str | None) -> str:
    """The noise that ``kind`` has: the one asked for, or its own."""
    if kind not in KINDS:
        raise ValueError(f"{op}: kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if noise is not None and noise not in NOISES:
        raise ValueError(f"{op}: noise must be one of {', '.join(NOISES)} or None, got {noise!r}")
    if kind == "uniform" and noise not in (None, "uniform"):
        raise ValueError(f"{op}: kind='uniform' has uniform noise, got noise={noise!r}; kind='diffq' takes any")
    return noise or KINDS[kind]


def resolve(
    x: torch.Tensor, *, seed: Any, kind: str = "diffq", noise: str | None = None, bits: Any = None, signed: bool = True,
    narrow: bool = False, training: bool = True, axis: int | None = None, group_size: int | None = None,
    grad_scale: float | str = 1.0, eps: float = 1e-8,
) -> tuple[Any, ...]:  # fmt: skip
    """Check the public arguments, the tensors' values aside, and give those that follow ``step`` in :class:`NoiseQuant`."""
    check_input("noise_quant", x)
    check_flag("noise_quant", "training", training)
    axis_, group = (-1, 0) if axis is None and group_size is None else normalize_axis("noise_quant", x, axis, group_size)
    noise = check_kind("noise_quant", kind, noise)
    if bits is None:
        if kind == "nipq":
            raise ValueError("noise_quant: kind='nipq' clips to a range; give bits=")
        if gradient_factor(grad_scale, "noise_quant")[1]:
            raise ValueError(f"noise_quant: grad_scale={grad_scale!r} is about the highest code; give bits=, or a number")
    qmin, qmax = (-1, 1) if bits is None else integer_range("noise_quant", bits, signed, narrow)
    gradient_factor(grad_scale, "noise_quant")
    check_eps("noise_quant", eps)
    check_seed("noise_quant", seed, x)
    return seed, qmin, qmax, axis_, group, eps, kind == "nipq", NOISES[noise], grad_scale


def evaluation(
    x: torch.Tensor, *, seed: Any = None, kind: str = "diffq", noise: str | None = None, bits: Any = None, training: bool = False,
    grad_scale: float | str = 1.0, **where: Any,
) -> dict[str, Any]:  # fmt: skip
    """The keywords of :func:`fastq.lsq` for ``training=False``, which quantizes."""
    check_flag("noise_quant", "training", training)
    check_kind("noise_quant", kind, noise)
    if bits is None:
        raise ValueError("noise_quant: training=False rounds to codes; give bits=")
    if seed is not None:
        check_seed("noise_quant", seed, x)
    return {"bits": bits, "grad_scale": grad_scale, **where}


def noise_quant(
    x: torch.Tensor,
    step: torch.Tensor,
    *,
    seed: torch.Tensor | None,
    kind: str = "diffq",
    noise: str | None = None,
    bits: int | tuple[int, int] | None = None,
    signed: bool = True,
    narrow: bool = False,
    training: bool = True,
    axis: int | None = None,
    group_size: int | None = None,
    grad_scale: float | str = 1.0,
    eps: float = 1e-8,
) -> torch.Tensor:
    """Add noise of the size of a rounding error to ``x``, in place of rounding it.

    With ``s = max(|step|, eps)`` and ``z`` uniform on +-1/2, +-1/2 itself, or N(0, 1) / 2::

        "diffq", "uniform"    y     = x + s * z
                              dx    = g
                              dstep = G * sign(step) * sum g * z
        "nipq"                v     = x / s;  m = qmin < v < qmax
                              y     = x + s * z where m; else s * qmin where v <= qmin; else s * qmax
                              dx    = g where m, else 0
                              dstep = G * sign(step) * sum g * (z where m; else qmin where v <= qmin; else qmax)

    The gradients are the true ones: nothing is rounded. ``training=False`` rounds: :func:`fastq.lsq` with ``bits``.

    ``z`` belongs to the seed and the element's place in logical row-major order: Philox4x32-10 with key ``seed``, counter
    ``index // 4``, word ``index % 4``. It is the same for every backend, layout, dtype and number of threads, is made again in the
    backward pass and never stored; an ``x`` that is not contiguous is copied into that order. The bits of ``y`` and ``dx`` are the
    same on every backend; the sums are the same on every run and for any number of threads.

    Args:
        x: float32, bfloat16, float16 or float64, any shape and strides. Arithmetic is fp32 (fp64 for float64; ``z`` is fp32).
        step: float32 (float64 for float64 ``x``), in units of ``x``. One element per tensor; ``(C,)`` with ``axis``;
            ``x.shape[:-1] + (K // group_size,)`` with ``group_size``, ``K = x.shape[-1]``.
        seed: one int64 element on the device of ``x``; change it to draw new noise. Without ``training`` None will do.
        kind: ``"diffq"`` (no range), ``"nipq"`` (clipped outside of its range) or ``"uniform"`` (no range, uniform noise).
        noise: ``"uniform"``, ``"rademacher"`` or ``"normal"``; None is normal for diffq and uniform for the others.
        bits: as in :func:`fastq.lsq`; may be None for diffq and uniform, which look at it only without ``training`` and for
            ``grad_scale``.
        signed, narrow, eps: as in :func:`fastq.lsq`.
        training: False to quantize with ``bits`` instead.
        axis: one step per index of this axis. Excludes ``group_size``.
        group_size: one step per so many consecutive elements of the last axis, which it must divide.
        grad_scale: the factor G: a number, or as in :func:`fastq.lsq`.

    Returns:
        ``y``, with the shape, dtype and memory layout of ``x``.

    Not finite: NaN in ``x`` gives NaN in ``y``, ``dx`` and ``dstep``; a step of inf or NaN gives NaN; an infinite ``x`` saturates
    where there is a range.

    Raises:
        TypeError: ``x`` is not a dense float tensor of a dtype above; ``step`` or ``seed`` has another type than it should.
        ValueError: a shape, device, axis, group size, range or option does not fit; the message says what was expected.
        RuntimeError: the backend asked for cannot serve; a second backward pass is asked for.

    Papers: Defossez, Adi and Synnaeve, Differentiable model compression via pseudo quantization noise, TMLR 2022,
    https://arxiv.org/abs/2104.09987 (DiffQ); Shin et al., NIPQ, CVPR 2023, https://arxiv.org/abs/2206.00820.

    Example:
        >>> x, step = torch.randn(8, requires_grad=True), torch.tensor([0.1], requires_grad=True)
        >>> fastq.noise_quant(x, step, kind="nipq", bits=4, seed=torch.tensor(7)).sum().backward()
    """
    where: dict[str, Any] = {"signed": signed, "narrow": narrow, "axis": axis, "group_size": group_size, "eps": eps}
    how: dict[str, Any] = {"seed": seed, "kind": kind, "noise": noise, "bits": bits, "training": training, "grad_scale": grad_scale}
    if not training:
        return lsq(x, step, **evaluation(x, **how, **where))
    return NoiseQuant.apply(x, step, *resolve(x, **how, **where))
