"""Batch norm's statistics, estimated anew before an evaluation."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

__all__ = ["reestimate_batch_norm"]


def _call(model: nn.Module, batch: Any) -> Any:
    return model(batch[0] if isinstance(batch, (tuple, list)) else batch)


@torch.no_grad()
def reestimate_batch_norm(
    model: nn.Module, batches: Iterable[Any], *, count: int = 50, forward: Callable[[nn.Module, Any], Any] = _call
) -> int:
    """Make the running mean and variance of every batch norm the plain averages over ``count`` training batches.

    While weights oscillate between two codes, the statistics that batch norm gathered belong to weights that are no more; before
    an evaluation they are estimated anew. All but the batch norms is in evaluation mode while the batches go through, so that the
    statistics are those of the network that is evaluated: no dropout, no noise, no state that moves.

    Args:
        model: any module. One without batch norm is left as it is.
        batches: training batches on the model's device: inputs, or tuples and lists that begin with them. The first ``count`` are
            taken; fewer do where there are fewer.
        count: at least 1; the paper takes 50.
        forward: ``forward(model, batch)`` runs one batch, where a batch is something else.

    Returns:
        How many batches were used; 0 if there is no batch norm with running statistics. In a process group every rank has the
        statistics of its own batches; ``torch.nn.SyncBatchNorm`` shares them.

    Raises:
        TypeError: model is no module, or count no int. ValueError: count is below 1, or ``batches`` is empty.

    Paper: Nagel et al., Overcoming Oscillations in Quantization-Aware Training, ICML 2022, https://arxiv.org/abs/2203.11086.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"reestimate_batch_norm: model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(count, bool) or not isinstance(count, int):
        raise TypeError(f"reestimate_batch_norm: count must be an int, got {count!r}")
    if count < 1:
        raise ValueError(f"reestimate_batch_norm: count must be at least 1, got {count}")
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None]
    if not norms:
        return 0
    modes = {m: m.training for m in model.modules()}
    momenta = [m.momentum for m in norms]
    kept = [(m.running_mean.clone(), m.running_var.clone(), m.num_batches_tracked.clone()) for m in norms]  # type: ignore[union-attr]
    used = 0
    try:
        model.eval()
        for norm in norms:
            norm.train()
            norm.reset_running_stats()
            norm.momentum = None  # the plain average
        for batch in itertools.islice(batches, count):
            forward(model, batch)
            used += 1
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
        if not used:
            for norm, values in zip(norms, kept, strict=True):
                for buffer, value in zip((norm.running_mean, norm.running_var, norm.num_batches_tracked), values, strict=True):
                    buffer.copy_(value)  # type: ignore[union-attr]
    if not used:
        raise ValueError("reestimate_batch_norm: batches must hold at least one batch")
    return used
