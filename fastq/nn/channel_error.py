"""A quantizer with one step that every channel has its say in, as a module."""

from __future__ import annotations

from typing import Any

import torch

from ..channels import channel_weights, step_gradient, update_step_
from ..granularity import normalize_axis
from ..ops.channel_error import ChannelError as Function
from ..ops.channel_error import ChannelStats, stats_of
from ..ranges import BOUNDARIES
from .base import in_group
from .quantizer import LSQ

__all__ = ["ChannelError"]

UPDATES = ("closed", "gradient")


class _AddGradient(torch.autograd.Function):
    """``y`` as it is; the gradient of ``step`` gets ``extra`` besides what comes through ``y``."""

    @staticmethod
    def forward(ctx: Any, y: torch.Tensor, step: torch.Tensor, extra: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(extra)
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> Any:  # type: ignore[override]
        (extra,) = ctx.saved_tensors
        return g, extra, None


def _of_all_ranks(x: torch.Tensor, axis: int, sums: torch.Tensor) -> ChannelStats:
    """The means over the elements that all ranks saw, as sums over one: how many those are is known on the device alone."""
    totals = torch.cat([sums.detach().flatten(), sums.new_tensor([x.numel() // max(x.shape[axis], 1)])])
    torch.distributed.all_reduce(totals)
    return ChannelStats(1, *(totals[:-1] / totals[-1].clamp(min=1)).view(sums.shape).unbind(0))


class ChannelError(LSQ):
    """Fake-quantize with one step for all channels, trained on an objective that weighs each channel by its own variance.

    A layer's activations have channels of very different spread; the squared error of the largest decides a step. Here channel c
    counts with ``w_c = 1 / (N_c * (var_c + eps))``, of the current batch (:mod:`fastq.channels`). A reconstruction; the equations
    are not published in the sources we had. In training each forward pass is one pass over ``x``, which gives ``y`` and all sums.

    ``update="closed"``: after it the step moves to ``momentum * step + (1 - momentum) * s_new``, where ``s_new`` is best for the
    codes at hand; the step gets no gradient. In a process group the sums are those of all ranks, which have to take part in every
    forward pass of training, as for ``torch.nn.SyncBatchNorm``: no gradient would keep their steps equal. ``moves``, an attribute,
    is False while a recipe trains the network alone. ``update="gradient"``: the step is learned as LSQ's, and its gradient gets
    ``strength * dJ/ds`` in addition. In evaluation it is :class:`fastq.nn.LSQ`.

    Args:
        bits, signed, narrow, init, boundary, grad_scale, eps: as in :class:`fastq.nn.LSQ`. The step stays positive as there: the
            kernels use ``max(|step|, eps)``, and the closed form gives positive steps alone.
        axis: of the channels.
        update: ``"closed"`` or ``"gradient"``.
        momentum: of the closed form.
        strength: of the gradient form.
        weighing: whether channels are weighed; False is the plain squared error, all weights ``1 / N_c``.
        variance_eps: the eps of the weights, in squared units of ``x``.

    Raises:
        TypeError, ValueError: an argument, or later an ``x``, does not fit; the message says what was expected.
    """

    moves: bool = True

    def __init__(
        self, bits: int | tuple[int, int], *, signed: bool | None = True, narrow: bool = False, axis: int = 1,
        update: str = "closed", momentum: float = 0.9, strength: float = 1.0, weighing: bool = True, variance_eps: float = 1e-8,
        init: str = "lsq", boundary: str = "open", grad_scale: float | str = "lsq", eps: float = 1e-8,
    ) -> None:  # fmt: skip
        super().__init__(bits, signed=signed, narrow=narrow, init=init, boundary=boundary, grad_scale=grad_scale, eps=eps)
        if isinstance(axis, bool) or not isinstance(axis, int):
            raise TypeError(f"ChannelError: axis must be an int, got {axis!r}")
        if update not in UPDATES:
            raise ValueError(f"ChannelError: update must be one of {', '.join(UPDATES)}, got {update!r}")
        if not 0 <= momentum < 1:
            raise ValueError(f"ChannelError: momentum must be from 0 to below 1, got {momentum}")
        if not 0 <= strength < float("inf"):
            raise ValueError(f"ChannelError: strength must be at least 0 and finite, got {strength}")
        if not 0 < variance_eps < float("inf"):
            raise ValueError(f"ChannelError: variance_eps must be positive and finite, got {variance_eps}")
        self.channel_axis, self.update, self.momentum, self.strength = axis, update, momentum, strength
        self.weighing, self.variance_eps = weighing, variance_eps
        self.step.requires_grad_(update == "gradient")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._ready(x)
        closed, group = self.update == "closed", self.update == "closed" and in_group()
        if not self.training or (closed and not self.moves) or (x.numel() == 0 and not group):
            return super().forward(x)
        step, _ = self._parameters_for(x)
        axis, _ = normalize_axis("ChannelError", x, self.channel_axis, None)
        # the step is changed before the backward pass, which needs the one of this forward pass
        held = step.detach().clone() if closed else step
        how = (*self._range(), axis, BOUNDARIES[self.boundary], self.grad_scale, self.eps)
        y, sums = Function.apply(x, held, *how, True)
        stats = _of_all_ranks(x, axis, sums) if group else stats_of(x, axis, sums)
        if self.weighing:
            weights = channel_weights(stats, eps=self.variance_eps)
        else:
            weights = torch.full_like(stats.qq, 1.0 / max(stats.elements, 1))
        if closed:
            update_step_(self.step, stats, weights, momentum=self.momentum)
            return y
        return _AddGradient.apply(y, step, self.strength * step_gradient(step, stats, weights))

    def extra_repr(self) -> str:
        how = f"momentum={self.momentum}" if self.update == "closed" else f"strength={self.strength}"
        return f"{super().extra_repr()}, channels={self.channel_axis}, update={self.update!r}, {how}, weighing={self.weighing}"
