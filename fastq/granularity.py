"""Granularity: which elements of ``x`` share one quantizer parameter.

A parameter tensor (a step, an offset) holds one value

* **per tensor**: one element;
* **per channel**: ``(C,)`` with ``axis=``, ``C = x.shape[axis]``;
* **per group**: ``x.shape[:-1] + (K / group_size,)`` with ``group_size=``, for groups of ``group_size`` consecutive
  elements of the last axis, ``K = x.shape[-1]``.

Every backend sees the same thing: ``x`` read as ``[outer, channels, inner]``, where element ``i`` uses parameter
``(i // inner) % channels``. Inside the ops an absent axis is ``-1`` and an absent group size is ``0``.
"""

from __future__ import annotations

import torch

__all__ = [
    "channel_axis",
    "check_input",
    "check_parameter",
    "expand",
    "in_layout_of",
    "normalize_axis",
    "numel_per_parameter",
    "sum_to_parameter",
]

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def compute_dtype(x: torch.Tensor) -> torch.dtype:
    """The dtype of the arithmetic, of the parameters and of their gradients: fp64 for fp64 ``x``, else fp32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def divided(t: torch.Tensor, by: float) -> torch.Tensor:
    """``t / by``, rounded once, as kernels have it: by a number of Python torch divides tensors of a GPU as ``t * (1 / by)``."""
    return t / t.new_full((), by)


def check_input(op: str, x: torch.Tensor, name: str = "x") -> None:
    """``x``, the argument ``name``, is a dense tensor of a float dtype the kernels know; otherwise ``TypeError``."""
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(x).__name__}")
    if x.layout is not torch.strided:
        raise TypeError(f"{op}: {name} must be a dense (strided) tensor, got layout {x.layout}; call {name}.to_dense() first")
    if x.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{op}: {name} must be float32, bfloat16, float16 or float64, got {x.dtype}")


def _from_the_front(op: str, x: torch.Tensor, axis: int, of: str) -> int:
    n = x.dim()
    if not -n <= axis < n:
        raise ValueError(f"{op}: axis must be in [{-n}, {n - 1}] for {of} of {n} dimensions, got {axis}")
    return axis % n


def normalize_axis(op: str, x: torch.Tensor, axis: int | None, group_size: int | None, of: str = "x") -> tuple[int, int]:
    """``(axis, group_size)`` as the ops take them: axis in ``[0, x.dim())`` or -1, group size positive or 0; ``of`` names ``x``."""
    for name, value in (("axis", axis), ("group_size", group_size)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, torch.SymInt))):
            raise TypeError(f"{op}: {name} must be an int or None, got {value!r}")
    if axis is not None:
        if group_size is not None:
            raise ValueError(f"{op}: axis={axis} and group_size={group_size} exclude each other; give one of them")
        return _from_the_front(op, x, axis, of), 0
    if group_size is None:
        return -1, 0
    if group_size < 1:
        raise ValueError(f"{op}: group_size must be at least 1, got {group_size}")
    if x.dim() == 0 or x.shape[-1] % group_size != 0:
        last = "no axis" if x.dim() == 0 else f"the last axis of length {x.shape[-1]}"
        raise ValueError(f"{op}: group_size={group_size} must divide the last axis of {of}, but {of} has {last}")
    return -1, group_size


def channel_axis(op: str, x: torch.Tensor, axis: int, of: str = "x") -> int:
    """The axis of the channels, in ``[0, x.dim())``, where there must be one: None is no answer; ``of`` names ``x``."""
    if isinstance(axis, bool) or not isinstance(axis, (int, torch.SymInt)):
        raise TypeError(f"{op}: axis must be an int, the axis of the channels, got {axis!r}")
    return _from_the_front(op, x, axis, of)


def parameter_shape(x: torch.Tensor, axis: int, group_size: int) -> tuple[int, ...]:
    """The shape a parameter has (per tensor, any shape of one element does)."""
    if group_size:
        return (*x.shape[:-1], x.shape[-1] // group_size)
    return (x.shape[axis],) if axis >= 0 else ()


def check_parameter(op: str, name: str, p: torch.Tensor, x: torch.Tensor, axis: int, group_size: int, of: str = "x") -> None:
    """``p`` fits ``x``, the argument ``of``, in dtype and device, and the granularity in shape; ``TypeError`` or ``ValueError``."""
    if not isinstance(p, torch.Tensor):
        raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(p).__name__}")
    dtype = compute_dtype(x)
    if p.dtype != dtype:
        raise TypeError(f"{op}: {name} must be {dtype} for {of} of {x.dtype}, got {p.dtype}")
    if p.layout is not torch.strided:
        raise TypeError(f"{op}: {name} must be a dense (strided) tensor, got layout {p.layout}")
    if p.device != x.device:
        raise ValueError(f"{op}: {name} must be on the device of {of}, {x.device}, got {p.device}")
    if axis == -1 and not group_size:
        if p.numel() != 1:
            raise ValueError(
                f"{op}: {name} must have one element per tensor, got shape {tuple(p.shape)}; "
                "for one per channel give axis=, for one per group give group_size="
            )
    elif not -1 <= axis < x.dim():  # arguments that did not come through normalize_axis
        raise ValueError(f"{op}: axis must be in [0, {x.dim() - 1}] for {of} of {x.dim()} dimensions, or -1 for none, got {axis}")
    elif group_size and (x.dim() == 0 or x.shape[-1] % group_size != 0):
        raise ValueError(f"{op}: group_size={group_size} must divide the last axis of {of}, got shape {tuple(x.shape)}")
    elif p.shape != (shape := parameter_shape(x, axis, group_size)):
        kind = f"group_size={group_size}" if group_size else f"axis={axis}"
        raise ValueError(
            f"{op}: {name} must have shape {shape} for {of} of shape {tuple(x.shape)} and {kind}, got {tuple(p.shape)}"
        )


def numel_per_parameter(x: torch.Tensor, p: torch.Tensor) -> int:
    """How many elements of ``x`` share one element of ``p`` (the N of ``grad_scale="lsq"``); at least 1."""
    return max(x.numel() // max(p.numel(), 1), 1)


def expand(p: torch.Tensor, x: torch.Tensor, axis: int, group_size: int) -> torch.Tensor:
    """``p`` broadcast against ``x`` (per group: repeated to the shape of ``x``). Differentiable."""
    if group_size:
        return p.unsqueeze(-1).expand(*p.shape, group_size).reshape(x.shape)
    if axis >= 0:
        return p.reshape([-1 if d == axis else 1 for d in range(x.dim())])
    return p.reshape(())


def in_layout_of(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """``t`` with the dtype of ``x`` and the strides of ``torch.empty_like(x)``."""
    return like_strides(x, t.to(x.dtype))


def like_strides(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """``t``, of a dtype of its own, with the strides of ``torch.empty_like(x)``."""
    like = torch.empty_like(x, dtype=t.dtype)
    return t if t.stride() == like.stride() else like.copy_(t)


def sum_to_parameter(t: torch.Tensor, p: torch.Tensor, axis: int, group_size: int) -> torch.Tensor:
    """Sum ``t``, of the shape of ``x``, over the elements that share a parameter; result of the shape of ``p``."""
    if group_size:
        return t.reshape(*p.shape, group_size).sum(-1)
    if axis >= 0:
        others = [d for d in range(t.dim()) if d != axis]
        return t.sum(others) if others else t.clone()
    return t.sum().reshape(p.shape)
