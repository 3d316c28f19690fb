"""LSQ as it is written by hand in the style of the lsq-net repository, by the paper's formula (that one is on no registry)."""

import torch
from torch import nn


def scaled_gradient(t: torch.Tensor, factor: float) -> torch.Tensor:
    """``t``, whose gradient is multiplied by ``factor``: the detach trick of hand-written LSQ."""
    part = t * factor
    return (t - part).detach() + part


class HandWritten(nn.Module):
    """Eager LSQ: a parameter ``s``, autograd through clamp, rounding passed straight through."""

    def __init__(self, bit: int, all_positive: bool = False, symmetric: bool = False, per_channel: bool = True) -> None:
        super().__init__()
        self.low = 0 if all_positive else -(2 ** (bit - 1)) + int(symmetric)
        self.high = 2**bit - 1 if all_positive else 2 ** (bit - 1) - 1
        self.per_channel = per_channel
        self.s = nn.Parameter(torch.ones(1))

    def init_from(self, x: torch.Tensor) -> None:
        absolute = x.detach().abs()
        mean = absolute.mean(tuple(range(1, x.dim())), keepdim=True) if self.per_channel else absolute.mean()
        self.s = nn.Parameter(2 * mean / self.high**0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        s = scaled_gradient(self.s, (self.high * x.numel()) ** -0.5)
        v = torch.clamp(x / s, self.low, self.high)
        return ((v.round() - v).detach() + v) * s
