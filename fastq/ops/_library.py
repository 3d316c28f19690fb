"""The private operators: one schema each, defined here for every backend that is an operator.

``fastq::NAME`` is served by the native libraries (CPU and CUDA), ``fastq_triton::NAME`` by Triton. Both take their
schema and their fake kernel (shapes for the compiler) from one ``define`` call. They have no autograd formula, on purpose:
differentiation is the business of the ``torch.autograd.Function`` on top, which costs a third of what
``register_autograd`` does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_libraries = {space: torch.library.Library(space, "FRAGMENT") for space in ("fastq", "fastq_triton")}


def define(name: str, schema: str, fake: Callable[..., Any]) -> None:
    """Define ``fastq::name`` and ``fastq_triton::name`` with one schema and one fake kernel."""
    for space, library in _libraries.items():
        library.define(name + schema, tags=(torch.Tag.needs_exact_strides, torch.Tag.pt2_compliant_tag))
        torch.library.register_fake(f"{space}::{name}", fake, lib=library)


class BackwardOnce(torch.autograd.Function):
    """``BackwardOnce.apply(op, run, *arguments)``: a backward pass under ``create_graph=True``.

    It computes, and refuses to be differentiated again, where plain operators would give silent zeros.
    """

    @staticmethod
    def forward(ctx: Any, op: str, run: Callable[..., Any], *arguments: Any) -> Any:
        ctx.set_materialize_grads(False)
        ctx.op = op
        return run(*arguments)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise RuntimeError(f"{ctx.op}: double backward is not defined: the straight-through gradient is not a derivative")


def refuse_grad_mode(name: str) -> None:
    """What the native kernels do as well: a private operator under grad mode is a gradient lost, so it raises."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"{name} is a private operator without an autograd formula; call the public function of fastq, "
            "or this one under torch.no_grad()"
        )


def implement_triton(name: str, kernel: Callable[..., Any]) -> None:
    """Register ``kernel`` as ``fastq_triton::name`` on every device (the interpreter runs CPU tensors)."""

    def guarded(*args: Any) -> Any:
        refuse_grad_mode(f"fastq_triton::{name}")
        return kernel(*args)

    for key in ("CPU", "CUDA", "XPU"):
        _libraries["fastq_triton"].impl(name, guarded, key)
