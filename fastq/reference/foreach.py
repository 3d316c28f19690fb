"""Many tensors at once, in plain PyTorch: each by itself. The specification of what the fused kernels do in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

__all__ = ["foreach_dampening", "foreach_lsq", "foreach_oscillation_step_"]


def foreach_lsq(weights: Sequence[torch.Tensor], steps: Sequence[torch.Tensor], **keywords: Any) -> tuple[torch.Tensor, ...]:
    """``tuple(lsq(w, s, ...) for w, s in zip(weights, steps))``: arguments and errors as :func:`fastq.foreach_lsq`."""
    from ..ops.foreach import check_all, resolve  # the one set of checks; imported late because fastq.ops builds on this module
    from .lsq import LSQReference

    arguments = resolve(weights, steps, **keywords)
    check_all(weights, steps, arguments.axis, arguments.group_size)
    return tuple(
        LSQReference.apply(w, s, None, *arguments.of(i), arguments.boundary, arguments.grad_scale, 1.0, arguments.eps)
        for i, (w, s) in enumerate(zip(weights, steps, strict=True))
    )


def foreach_dampening(weights: Sequence[torch.Tensor], steps: Sequence[torch.Tensor], **keywords: Any) -> torch.Tensor:
    """The sum of the weights' losses: arguments and errors as :func:`fastq.foreach_dampening`."""
    from ..dispatch import use_backend
    from ..ops.foreach import foreach_dampening as fused

    with use_backend("reference"):
        return fused(weights, steps, **keywords)


def foreach_oscillation_step_(
    weights: Sequence[torch.Tensor], steps: Sequence[torch.Tensor], states: Any = None, **keywords: Any
) -> list[Any]:
    """:func:`fastq.reference.oscillation_step_` of each: arguments and errors as :func:`fastq.foreach_oscillation_step_`."""
    from ..dispatch import use_backend
    from ..ops.foreach import foreach_oscillation_step_ as fused

    with use_backend("reference"):
        return fused(weights, steps, states, **keywords)
