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

#: The names of the operators that each backend has to serve.
OPERATORS: list[str] = []


def define(name: str, schema: str, fake: Callable[..., Any], triton: bool = True) -> None:
    """Define ``fastq::name`` and, with ``triton``, ``fastq_triton::name`` with one schema and one fake kernel."""
    OPERATORS.append(name)
    for space, library in _libraries.items():
        if space == "fastq_triton" and not triton:
            continue
        library.define(name + schema, tags=(torch.Tag.needs_exact_strides, torch.Tag.pt2_compliant_tag))
        torch.library.register_fake(f"{space}::{name}", fake, lib=library)
        if "!" in schema:
            _count_changes(library, getattr(getattr(torch.ops, space), name).default)


def _count_changes(library: torch.library.Library, operator: Any) -> None:
    """Autograd learns of the arguments that ``operator`` changes: who saved one for a backward pass must not use it."""
    changed = [i for i, a in enumerate(operator._schema.arguments) if a.alias_info is not None and a.alias_info.is_write]

    def count(keys: Any, *args: Any) -> Any:
        for given in (args[i] for i in changed if args[i] is not None):
            torch.autograd.graph.increment_version(given)  # a tensor, or a list of them
        return operator.redispatch(keys & torch._C._after_ADInplaceOrView_keyset, *args)

    library.impl(operator._schema.name.split("::")[1], count, "ADInplaceOrView", with_keyset=True)


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


def requires_grad(t: torch.Tensor) -> bool:
    """What the native operators ask, under grad mode alone: their ABI has no way to see it."""
    return t.requires_grad


# Of the layout of CPUs, which fastq/packing.py describes: no other device has it.
_libraries["fastq"].define("pack_blocks(Tensor fields, int bits) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
torch.library.register_fake(
    "fastq::pack_blocks",
    lambda fields, bits: fields.new_empty((-(-fields.shape[0] // 16), -(-fields.shape[1] // 64) * 128 * bits), dtype=torch.uint8),
    lib=_libraries["fastq"],
)

_libraries["fastq"].define("requires_grad(Tensor t) -> bool")
_libraries["fastq"].impl("requires_grad", requires_grad, "CompositeExplicitAutograd")


def refuse_gradients(name: str, *arguments: Any) -> None:
    """What the native operators do as well: a private operator would lose a gradient in silence, so it raises."""
    tensors = [t for each in arguments for t in (each if isinstance(each, (list, tuple)) else (each,))]
    if torch.is_grad_enabled() and any(isinstance(t, torch.Tensor) and t.requires_grad for t in tensors):
        raise RuntimeError(
            f"{name} is a private operator without an autograd formula, and an input requires a gradient; call the public "
            "function of fastq, or this one under torch.no_grad()"
        )


def refuse_to_train(op: str, **tensors: Any) -> None:
    """The same for a public function that has no gradient: what requires one must not lose it in silence."""
    for name, t in tensors.items():
        if isinstance(t, torch.Tensor) and t.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                f"{op}: {name} requires a gradient, which {op} does not have; give {name}.detach(), or call it under "
                "torch.no_grad(); layers with forward='integer' are what trains"
            )


def implement_triton(name: str, kernel: Callable[..., Any]) -> None:
    """Register ``kernel`` as ``fastq_triton::name`` for GPUs, and for CPU tensors, which the interpreter takes."""

    def guarded(*args: Any) -> Any:
        refuse_gradients(f"fastq_triton::{name}", *args)
        return kernel(*args)

    for key in ("CPU", "CUDA"):
        _libraries["fastq_triton"].impl(name, guarded, key)
