"""Which implementation serves a call: ``reference``, ``cpu``, ``cuda`` or ``triton``.

Without a request the choice follows the device of ``x``: CPU tensors go to ``cpu``, GPU tensors to ``cuda`` and then
``triton``, and whatever has no kernel to ``reference``, which is said once in a warning. ``use_backend`` (or the
environment variable ``FASTQ_BACKEND``) asks for one by name; a backend that cannot serve then raises and says why.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from . import _native

__all__ = ["Availability", "backends", "supports", "use_backend"]

BACKENDS = ("reference", "cpu", "cuda", "triton")


@dataclass(frozen=True)
class Availability:
    """Whether a backend can serve at all, and why not."""

    available: bool
    reason: str


def triton_interpreted() -> bool:
    """Triton runs its kernels on the CPU, one program after another (``TRITON_INTERPRET=1`` before the import)."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def _cuda() -> Availability:
    if _native.cuda_error is not None:
        return Availability(False, _native.cuda_error)
    if not torch.cuda.is_available():
        return Availability(False, "no CUDA GPU is visible")
    return Availability(True, "CUDA kernels loaded")


def _triton() -> Availability:
    if importlib.util.find_spec("triton") is None:
        return Availability(False, "the package triton is not installed")
    if triton_interpreted():
        return Availability(True, "interpreted on the CPU (TRITON_INTERPRET=1)")
    if not torch.cuda.is_available():
        return Availability(False, "no GPU is visible; set TRITON_INTERPRET=1 before starting Python to run it on the CPU")
    return Availability(True, "compiled on first use")


def backends() -> dict[str, Availability]:
    """Every backend with whether it is available here and the reason. Starts no GPU context and compiles nothing."""
    cpu = Availability(False, _native.cpu_error) if _native.cpu_error else Availability(True, "native CPU kernels loaded")
    return {"reference": Availability(True, "plain PyTorch"), "cpu": cpu, "cuda": _cuda(), "triton": _triton()}


def supports(backend: str, device: str | torch.device) -> tuple[bool, str]:
    """``(bool, reason)``: can ``backend`` serve a tensor on ``device``?"""
    _known(backend)
    kind = torch.device(device).type
    state = backends()[backend]
    if not state.available:
        return False, state.reason
    if backend in ("cpu", "cuda") and kind != backend:
        return False, f"it serves {backend} tensors, and this one is on {kind}"
    if backend == "triton" and not triton_interpreted() and kind != "cuda":
        if kind == "cpu":
            return False, "Triton serves CPU tensors only in its interpreter (TRITON_INTERPRET=1)"
        return False, f"it serves the tensors of torch.cuda, and this one is on {kind}"
    return True, state.reason


def _known(name: str) -> None:
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}; choose one of {', '.join(BACKENDS)}")


_requested: str | None = os.environ.get("FASTQ_BACKEND") or None
_chosen: dict[tuple[str | None, str], str] = {}


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Within the block every fastq op runs on backend ``name``, in all threads.

    Raises ``ValueError`` for an unknown name at once, and ``RuntimeError`` from the op whose tensor ``name`` cannot
    serve. A backward pass runs on the backend of its forward pass, wherever it is called.
    """
    global _requested
    _known(name)
    before, _requested = _requested, name
    try:
        yield
    finally:
        _requested = before


def select(x: torch.Tensor) -> str:
    """The backend for ``x``: the one asked for, or the first that serves its device."""
    return _choice(_requested, x.device.type)


@torch.compiler.assume_constant_result  # the compiler asks once, and guards the request instead of the memory of answers
def _choice(requested: str | None, device: str) -> str:
    backend = _chosen.get((requested, device))
    return backend if backend is not None else _select(requested, device)


def _select(requested: str | None, device: str) -> str:
    if requested is not None:
        asked()
        able, reason = supports(requested, device)
        if not able:
            raise RuntimeError(f"backend {requested!r} cannot serve this call: {reason}")
        _chosen[requested, device] = requested
        return requested
    refused = []
    for name in ("cpu",) if device == "cpu" else ("cuda", "triton"):
        able, reason = supports(name, device)
        if able:
            _chosen[None, device] = name
            return name
        refused.append(f"{name}: {reason}")
    warn_of_reference(device, refused)
    _chosen[None, device] = "reference"
    return "reference"


def asked() -> str | None:
    """The backend asked for, or None; ``ValueError`` if the environment names an unknown one."""
    if _requested is not None and _requested not in BACKENDS:  # use_backend would have refused it
        raise ValueError(f"FASTQ_BACKEND={_requested}: unknown backend; choose one of {', '.join(BACKENDS)}")
    return _requested


def warn_of_reference(device: str, refused: list[str]) -> None:
    """Say that the slow reference serves because every kernel refused."""
    if device != "meta":
        warnings.warn(
            f"fastq has no kernel for {device} tensors here and uses the slow reference. {'; '.join(refused)}. "
            "`python -m fastq info` tells more.",
            stacklevel=6,
        )
