"""SAT weights: the public function, its ``torch.autograd.Function`` and the operators' schemas."""

from __future__ import annotations

from typing import Any

import torch

from .. import checks, dispatch
from ..granularity import check_input
from ..ranges import check_flag
from ..reference.sat import RESCALES, SCHEMES, default_n_out
from ..reference.sat import sat_backward as reference_backward
from ..reference.sat import sat_forward as reference_forward
from . import _library

__all__ = ["SATWeight", "sat_weight"]


def check(w: torch.Tensor, bits: int, scheme: int, rescale: int, n_out: int) -> None:
    """The checks of the operators' arguments, for every backend and for the fake kernels."""
    check_input("sat_weight", w, "w")
    if not 0 <= bits <= 8:
        raise ValueError(f"sat_weight: bits must be from 1 to 8, or 0 for none, got {bits}")
    if not 0 <= scheme <= 2 or (scheme == SCHEMES["centered"] and bits != 2):
        raise ValueError(f"sat_weight: scheme must be 0, 1 or (with 2 bits) 2, got {scheme} with {bits} bits")
    if not 0 <= rescale <= 2:
        raise ValueError(f"sat_weight: rescale must be 0, 1 or 2, got {rescale}")
    if not n_out >= 1:
        raise ValueError(f"sat_weight: n_out must be at least 1, got {n_out}")


def _check_saved(grad: torch.Tensor, w: torch.Tensor, scale: torch.Tensor, index: torch.Tensor) -> None:
    check_input("sat_weight", w, "w")
    if grad.shape != w.shape or grad.dtype != w.dtype:
        raise ValueError(
            f"sat_weight: grad must have the shape and dtype of w, {tuple(w.shape)} and {w.dtype}, "
            f"got {tuple(grad.shape)} and {grad.dtype}"
        )
    for name, t, dtype, n in (("scale", scale, torch.float64, 3), ("index", index, torch.int64, 1)):
        if t.dtype != dtype or tuple(t.shape) != (n,):
            raise ValueError(f"sat_weight: {name} must be {dtype} of shape ({n},), got {t.dtype} of shape {tuple(t.shape)}")


def _fake_forward(w: Any, bits: int, scheme: int, rescale: int, n_out: int) -> Any:
    check(w, bits, scheme, rescale, n_out)
    return torch.empty_like(w), w.new_empty(3, dtype=torch.float64), w.new_empty(1, dtype=torch.int64)


def _fake_backward(grad: Any, w: Any, scale: Any, index: Any, grad_through_max: bool) -> Any:
    _check_saved(grad, w, scale, index)
    return torch.empty_like(w)


_library.define(
    "sat_forward", "(Tensor w, int bits, int scheme, int rescale, int n_out) -> (Tensor, Tensor, Tensor)", _fake_forward
)
_library.define(
    "sat_backward", "(Tensor grad, Tensor w, Tensor scale, Tensor index, bool grad_through_max) -> Tensor", _fake_backward
)

_forward = {"cpu": torch.ops.fastq.sat_forward.default, "triton": torch.ops.fastq_triton.sat_forward.default}
_backward = {"cpu": torch.ops.fastq.sat_backward.default, "triton": torch.ops.fastq_triton.sat_backward.default}
_forward["cuda"], _backward["cuda"] = _forward["cpu"], _backward["cpu"]  # one operator; the dispatcher knows the device


def _run_backward(backend: str, g: Any, w: Any, scale: Any, index: Any, grad_through_max: bool) -> Any:
    run = reference_backward if backend == "reference" else _backward[backend]
    return run(g, w, scale, index, grad_through_max)


def forward_with_scale(w: torch.Tensor, bits: int, scheme: int, rescale: int, n_out: int) -> tuple[Any, ...]:
    """``y``; max|tanh(w)|, kappa and VAR[Q] in fp64; the index of the maximum; and the backend that computed them."""
    check(w, bits, scheme, rescale, n_out)
    backend = dispatch.select(w)
    if backend == "triton":
        from .. import triton_kernels  # noqa: F401  registers the kernels
    run = reference_forward if backend == "reference" else _forward[backend]
    y, scale, index = run(w, bits, scheme, rescale, n_out)
    checks.check_sat("sat_weight", w, scale, rescale)
    return y, scale, index, backend


class SATWeight(torch.autograd.Function):
    """``SATWeight.apply(w, bits, scheme, rescale, n_out, grad_through_max)``.

    The node under :func:`fastq.sat_weight`, which documents the formula. Here every argument is given, already resolved: ``bits`` 0
    for none, ``scheme`` 0 round, 1 floor, 2 centered, ``rescale`` 0 none, 1 constant, 2 std, ``n_out`` an int. Saves ``w`` and four
    numbers. The backward pass returns the gradient of ``w``; a second one raises ``RuntimeError``.
    """

    @staticmethod
    def forward(ctx: Any, w: Any, bits: int, scheme: int, rescale: int, n_out: int, grad_through_max: bool = True) -> torch.Tensor:
        y, scale, index, backend = forward_with_scale(w, bits, scheme, rescale, n_out)
        ctx.save_for_backward(w, scale, index)
        ctx.backend, ctx.grad_through_max = backend, grad_through_max
        return y

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        arguments = (ctx.backend, g, *ctx.saved_tensors, ctx.grad_through_max)
        if torch.is_grad_enabled():
            dw = _library.BackwardOnce.apply("sat_weight", _run_backward, *arguments)
        else:
            dw = _run_backward(*arguments)
        return dw, None, None, None, None, None


def check_options(op: str, bits: int | None, scheme: str, rescale: str, n_out: int | None) -> None:
    """What is no tensor among the public arguments, of the function and of the module."""
    if bits is not None and (isinstance(bits, bool) or not isinstance(bits, int)):
        raise TypeError(f"{op}: bits must be an int from 1 to 8, or None for weights that are not quantized, got {bits!r}")
    if bits is not None and not 1 <= bits <= 8:
        raise ValueError(f"{op}: bits must be from 1 to 8, or None for weights that are not quantized, got {bits}")
    if scheme not in SCHEMES:
        raise ValueError(f"{op}: scheme must be one of {', '.join(SCHEMES)}, got {scheme!r}")
    if scheme == "centered" and bits not in (None, 2):
        raise ValueError(f"{op}: scheme 'centered' is for 2 bits, got bits={bits}")
    if rescale not in RESCALES:
        raise ValueError(f"{op}: rescale must be one of {', '.join(RESCALES)}, got {rescale!r}")
    if n_out is not None and (isinstance(n_out, bool) or not isinstance(n_out, (int, torch.SymInt))):
        raise TypeError(f"{op}: n_out must be an int or None, got {n_out!r}")
    if n_out is not None and n_out < 1:
        raise ValueError(f"{op}: n_out must be at least 1, got {n_out}")


def resolve(
    w: torch.Tensor, bits: int | None, scheme: str, rescale: str, grad_through_max: bool, n_out: int | None
) -> tuple[int, int, int, int, bool]:
    """Check the public arguments and give those that follow ``w`` in :class:`SATWeight`."""
    check_input("sat_weight", w, "w")
    check_options("sat_weight", bits, scheme, rescale, n_out)
    check_flag("sat_weight", "grad_through_max", grad_through_max)
    if n_out is None:
        n_out = max(default_n_out(w), 1)
    return bits or 0, SCHEMES[scheme] if bits else 0, RESCALES[rescale], n_out, grad_through_max


def sat_weight(
    w: torch.Tensor,
    *,
    bits: int | None,
    scheme: str = "round",
    rescale: str = "constant",
    grad_through_max: bool = True,
    n_out: int | None = None,
) -> torch.Tensor:
    """Fake-quantize a weight tensor as DoReFa does, at a scale at which the network trains (SAT, scale-adjusted training).

    Forward, per tensor of N elements, with ``m = max|tanh(w)|`` and ``v = L * (tanh(w) / m + 1) / 2``::

        scheme       L              Q
        "round"      2**bits - 1    2 * round(v) / L - 1                          the paper; half to even; 2**bits values, none is 0
        "floor"      2**bits        2 * min(floor(v), L - 1) / L - 1
        "centered"   4 (2 bits)     2 * (min(floor(v), L - 1) + 0.5) / L - 1

        y = kappa * Q,   kappa = 1 / sqrt(n_out * VAR[Q])   rescale="constant"
                         kappa = std(w) / std(Q)            rescale="std"
                         kappa = 1                          rescale="none"

    ``bits=None`` leaves ``Q = tanh(w) / m``: the clamped full-precision weights that the paper trains first.

    Backward, for the gradient ``g`` of ``y``, ``kappa`` a constant and the rounding passed straight through::

        dw   = (1 - tanh(w)**2) * kappa / m * g
        dw_j = (1 - tanh(w_j)**2) * kappa / m * (g_j - sign(w_j) * sum(g * tanh(w)) / m)      at the maximum j

    Passes. Forward three: the maximum is a function of all of ``w``, and so is ``kappa`` of all codes. (1) max|w|, of which tanh
    is taken once, as it is monotonic; (2) the codes, into one byte an element, with the int64 sums of the code and its square;
    (3) ``y`` from the codes, the scale folded in: five bytes an element for float32 where a second evaluation of tanh would move
    eight. Without bits the third pass recomputes tanh. Backward one: ``dw`` for every element without the maximum's term, and the
    sum of ``g * tanh(w)``; then one element, the maximum, is corrected. The codes' sums are integers, exact in any order; the
    others are added in an order that depends on nothing but the shape, so no result depends on the number of threads.

    Where no ``v`` lies within a few ulp of a rounding tie, ``y`` has the same bits on every backend; on CPU, CUDA and Triton
    always, for float32 arithmetic with bits. ``dw`` is within a few ulp of the reference, which takes torch's tanh and exp.

    Args:
        w: float32, bfloat16, float16 or float64, any shape and strides. Arithmetic is fp32 (fp64 for float64).
        bits: 1 to 8, or None for weights that are not quantized.
        scheme: ``"round"``, ``"floor"`` or ``"centered"`` (2 bits only), above.
        rescale: ``"constant"``, for a layer with no normalization behind it: the effective weights have the variance ``1 / n_out``;
            ``"std"``; ``"none"``, for a layer with one.
        grad_through_max: whether the derivative through ``m`` is part of the gradient. Of several maxima the one of the lowest
            row-major index gets it.
        n_out: the neurons that read one weight's layer. Default: of a linear weight ``(out, in)`` ``out``; of a convolution's
            ``(out, in, kh, kw)`` ``out * kh * kw``. For other layouts (transposed convolutions) give the number.

    Returns:
        ``y``, with the shape, dtype and memory layout of ``w``. With bits it is ``s * code`` with one step ``s = kappa / L`` and
        the integer codes ``L * Q`` (scheme "round": odd ones, up to ±255 at 8 bits), rounded once.

    Not finite: NaN in ``w`` gives NaN everywhere, since every element depends on it. An infinite element is a saturated one; but
    with ``rescale="std"`` it gives NaN everywhere, since ``std(w)`` is not finite. Weights that are all 0, or whose codes have no
    variance (unless ``rescale="none"``), give zeros for ``y`` and ``dw``, or raise in the checking mode (:func:`fastq.set_checks`).
    An empty ``w`` gives an empty ``y``.

    Raises:
        TypeError: ``w`` is not a dense float tensor of a dtype above; an argument has the wrong type.
        ValueError: an option or number does not fit; the message says what was expected.
        RuntimeError: the backend asked for cannot serve; a second backward pass is asked for.

    Paper: Jin et al., Towards Efficient Training for Neural Network Quantization, 2019, https://arxiv.org/abs/1912.10207; the
    weights of Zhou et al., DoReFa-Net, 2016, https://arxiv.org/abs/1606.06160.

    Example:
        >>> w = torch.randn(10, 64, requires_grad=True)
        >>> y = fastq.sat_weight(w, bits=4)
        >>> round(float(y.var() * 10), 4)
        1.0
    """
    return SATWeight.apply(w, *resolve(w, bits, scheme, rescale, grad_through_max, n_out))
