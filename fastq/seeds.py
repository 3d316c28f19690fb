"""Seeds of the quantizers that add noise: tensors of one int64 element, so that a device draws anew without being waited for."""

from __future__ import annotations

import torch

__all__ = ["check_seed", "new_seed", "take_seed"]


def check_seed(op: str, seed: torch.Tensor | None, x: torch.Tensor) -> None:
    """``seed`` is one int64 element on the device of ``x``; ``TypeError`` or ``ValueError``."""
    if not isinstance(seed, torch.Tensor):
        raise TypeError(
            f"{op}: seed must be a torch.Tensor of one int64 element on the device of x, such as "
            f"torch.tensor(0, device=x.device), got {type(seed).__name__}"
        )
    if seed.dtype != torch.int64:
        raise TypeError(f"{op}: seed must be torch.int64, got {seed.dtype}")
    if seed.layout is not torch.strided:
        raise TypeError(f"{op}: seed must be a dense (strided) tensor, got layout {seed.layout}")
    if seed.device != x.device:
        raise ValueError(f"{op}: seed must be on the device of x, {x.device}, got {seed.device}")
    if seed.numel() != 1:
        raise ValueError(f"{op}: seed must have one element, got shape {tuple(seed.shape)}")


def new_seed(op: str, seed: int | None) -> torch.Tensor:
    """A module's seed, on the CPU: the number given (any that int64 holds), or one drawn from torch's generator."""
    if seed is None:
        return torch.randint(2**62, (1,), dtype=torch.int64, device="cpu")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"{op}: seed must be an int or None, got {type(seed).__name__}")
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"{op}: seed must fit in 64 bits with its sign, got {seed}")
    return torch.tensor([seed], dtype=torch.int64, device="cpu")


def take_seed(seed: torch.Tensor) -> torch.Tensor:
    """A copy of a module's seed, to be kept for the backward pass, and the next one in its place; nothing waits for the device."""
    with torch.no_grad():
        taken = seed.clone()
        seed += 1
    return taken
