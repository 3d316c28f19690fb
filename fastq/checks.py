"""The checking mode: values that the kernels give a documented result for raise instead."""

from __future__ import annotations

import operator

import torch

__all__ = ["set_checks"]

_enabled = False


def set_checks(enabled: bool) -> None:
    """Turn the checking mode on or off (off at first), for all threads.

    On, every op looks at the values it is given and raises ``ValueError`` for a step that is zero, negative, infinite
    or NaN, for a NaN in ``x`` or ``offset``, for levels that do not ascend and for codes that name none. Looking
    synchronises with the device: a mode for finding a fault, not for training. Off, METHODS' documented results apply:
    ``max(|step|, eps)``, and NaN goes through.
    """
    global _enabled
    _enabled = bool(enabled)


def enabled() -> bool:
    """Whether the checking mode is on: what needs arithmetic to be checked asks first."""
    return _enabled


def check_values(
    op: str, x: torch.Tensor, step: torch.Tensor, offset: torch.Tensor | None, names: tuple[str, str] = ("step", "offset"),
    of: str = "x",
) -> None:  # fmt: skip
    """In the checking mode, raise ``ValueError`` on the values it refuses."""
    if not _enabled:
        return
    if not bool((step.isfinite() & (step > 0)).all()):
        raise ValueError(f"{op}: {names[0]} must be positive and finite everywhere, got {step.detach().flatten()[:8].tolist()}")
    for name, t in ((of, x), (names[1], offset)):
        if t is not None and bool(t.isnan().any()):
            raise ValueError(f"{op}: {name} holds NaN ({int(t.isnan().sum())} of {t.numel()} elements)")


def check_levels(
    op: str, codes: torch.Tensor, levels: torch.Tensor, residual: torch.Tensor | None = None, grad: torch.Tensor | None = None
) -> None:
    """Raise ``ValueError`` where levels do not ascend: on the CPU always, on a GPU, where looking waits, in the checking mode.

    The checking mode also refuses levels that are not finite, codes that name no level, and NaN in ``residual`` and ``grad``.
    """
    if torch.compiler.is_compiling():
        return  # a compiled program does not look at values
    if levels.device.type == "cpu":  # a list of so few numbers costs less to look at than one torch operator
        values = levels.tolist()
        ascending = all(map(operator.le, values, values[1:]))
    else:
        ascending = not _enabled or bool((levels[1:] >= levels[:-1]).all())
    if not ascending:
        raise ValueError(f"{op}: levels must be in ascending order without NaN, got {levels.detach()[:16].tolist()}")
    if not _enabled:
        return
    if not bool(levels.isfinite().all()):
        raise ValueError(f"{op}: levels must be finite, got {levels.detach()[:16].tolist()}")
    if codes.numel() and int(codes.max()) >= levels.numel():
        raise ValueError(f"{op}: codes must be below the number of levels, {levels.numel()}, got {int(codes.max())}")
    for name, t in (("residual", residual), ("grad", grad)):
        if t is not None and bool(t.isnan().any()):
            raise ValueError(f"{op}: {name} holds NaN ({int(t.isnan().sum())} of {t.numel()} elements)")


def check_fraction(op: str, name: str, t: torch.Tensor) -> None:
    """In the checking mode, raise ``ValueError`` for what is not from 0 to 1."""
    if _enabled and not bool(((t >= 0) & (t <= 1)).all()):
        raise ValueError(f"{op}: {name} must be from 0 to 1, got {t.detach().flatten()[:8].tolist()}")


def _no_nan(op: str, **tensors: torch.Tensor) -> None:
    for name, t in tensors.items():
        if bool(t.isnan().any()):
            raise ValueError(f"{op}: {name} holds NaN ({int(t.isnan().sum())} of {t.numel()} elements)")


def check_finite(op: str, **tensors: torch.Tensor | None) -> None:
    """In the checking mode, raise ``ValueError`` for inf or NaN in a floating point tensor."""
    if not _enabled:
        return
    for name, t in tensors.items():
        if t is not None and t.is_floating_point() and not bool(t.isfinite().all()):
            raise ValueError(f"{op}: {name} must be finite, got {t.detach()[~t.isfinite()][:8].tolist()}")


def check_positive(op: str, **scales: torch.Tensor | None) -> None:
    """In the checking mode, raise ``ValueError`` for a step that is zero, negative, infinite or NaN."""
    if not _enabled:
        return
    for name, t in scales.items():
        if t is not None and not bool((t.isfinite() & (t > 0)).all()):
            raise ValueError(f"{op}: {name} must be positive and finite, got {t.detach().flatten()[:8].tolist()}")


def check_dsq(op: str, x: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, alpha: torch.Tensor | float) -> None:
    """In the checking mode, raise ``ValueError`` for bounds that are not finite or not apart, ``alpha`` outside (0, 1), a NaN in
    ``x``."""
    if not _enabled:
        return
    if not bool((lower.isfinite() & upper.isfinite() & (upper > lower)).all()):
        seen = [(float(a), float(b)) for a, b in zip(lower.detach().flatten()[:8], upper.detach().flatten()[:8], strict=True)]
        raise ValueError(f"{op}: lower must be below upper and both finite everywhere, got {seen}")
    if isinstance(alpha, torch.Tensor) and not bool(((alpha > 0) & (alpha < 1)).all()):
        raise ValueError(
            f"{op}: alpha must lie between 0 and 1 (both excluded) everywhere, got {alpha.detach().flatten()[:8].tolist()}"
        )
    _no_nan(op, x=x)


def check_sat(op: str, w: torch.Tensor, scale: torch.Tensor, rescale: int) -> None:
    """In the checking mode, raise ``ValueError`` for a NaN in ``w``, weights that are all 0, codes without variance.

    ``scale`` is what the forward pass found: max|tanh(w)|, kappa and the variance.
    """
    if not _enabled or w.numel() == 0:
        return
    _no_nan(op, w=w)
    largest, _, variance = scale.tolist()
    if largest == 0:
        raise ValueError(f"{op}: w is 0 everywhere, so that it has no largest element to divide by")
    if rescale and not variance > 0:
        raise ValueError(f"{op}: the codes of w have no variance to rescale by ({w.numel()} elements, all of one code)")
