"""The checking mode: values that the kernels give a documented result for raise instead."""

from __future__ import annotations

import torch

__all__ = ["set_checks"]

_enabled = False


def set_checks(enabled: bool) -> None:
    """Turn the checking mode on or off (off at first), for all threads.

    On, every op looks at the values it is given and raises ``ValueError`` for a step that is zero, negative, infinite
    or NaN, and for a NaN in ``x`` or ``offset``. Looking synchronises with the device: a mode for finding a fault,
    not for training. Off, METHODS' documented results apply: ``max(|step|, eps)``, and NaN goes through.
    """
    global _enabled
    _enabled = bool(enabled)


def check_values(
    op: str, x: torch.Tensor, step: torch.Tensor, offset: torch.Tensor | None, names: tuple[str, str] = ("step", "offset")
) -> None:
    """In the checking mode, raise ``ValueError`` on the values it refuses."""
    if not _enabled:
        return
    if not bool((step.isfinite() & (step > 0)).all()):
        raise ValueError(f"{op}: {names[0]} must be positive and finite everywhere, got {step.detach().flatten()[:8].tolist()}")
    for name, t in (("x", x), (names[1], offset)):
        if t is not None and bool(t.isnan().any()):
            raise ValueError(f"{op}: {name} holds NaN ({int(t.isnan().sum())} of {t.numel()} elements)")
