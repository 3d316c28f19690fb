"""What the functions and modules of torch become in an ONNX file: those of a network that are no layers of fastq.

Each is a function of the :class:`~fastq.deploy.onnx.Network` that is being written, the node, and what the node is called with, by
the names that torch has for it. It gives the name of the tensor. Shapes and numbers are those of the examples; ``Refused`` says
why there is no form.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.fx
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from .onnx import Network

__all__ = ["FUNCTIONS", "TORCH_MODULES", "Refused", "called"]

Node = torch.fx.Node


class Refused(Exception):
    """Why a node has no form in the file."""


def called(node: Node) -> str:
    """What a node calls, for messages."""
    return str(node.target) if isinstance(node.target, str) else getattr(node.target, "__name__", repr(node.target))


def unary(kind: str, **attributes: Any) -> Callable[..., str]:
    """A function of one tensor."""

    def write(n: Network, node: Node, input: Node) -> str:
        return n.add(kind, [n.tensor(input)], node.name, **attributes)

    return write


def binary(kind: str) -> Callable[..., str]:
    """A function of two tensors, or a tensor and a number."""

    def write(n: Network, node: Node, input: Any, other: Any, *, alpha: Any = 1) -> str:
        if alpha != 1:
            raise Refused(f"alpha is {alpha!r:.60}")
        return n.add(kind, [n.tensor(input, node), n.tensor(other, node)], node.name)

    return write


def same(n: Network, node: Node, input: Node, *arguments: Any, **keywords: Any) -> str:
    """What gives the numbers that it takes."""
    if n.value(node).dtype != n.value(input).dtype:
        raise Refused("it changes the dtype")
    return n.tensor(input)


def dropout(n: Network, node: Node, input: Node, p: float = 0.5, training: bool = True, inplace: bool = False) -> str:
    if n.plain(training):
        raise Refused("it drops numbers at random")
    return n.tensor(input)


def reshape(n: Network, node: Node, input: Node, *arguments: Any, **keywords: Any) -> str:
    """Any function that gives the same numbers in the same order."""
    return n.reshaped(node, n.tensor(input))


def permute(n: Network, node: Node, input: Node, *dims: Any, **keywords: Any) -> str:
    order = n.plain(keywords.get("dims", dims[0] if dims and isinstance(dims[0], (tuple, list)) else dims))
    rank = n.dim(input)
    return n.add("Transpose", [n.tensor(input)], node.name, perm=[axis % rank for axis in order])


def transpose(n: Network, node: Node, input: Node, dim0: int, dim1: int) -> str:
    rank = n.dim(input)
    order = list(range(rank))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return n.add("Transpose", [n.tensor(input)], node.name, perm=order)


def reduction(kind: str) -> Callable[..., str]:
    def write(n: Network, node: Node, input: Node, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> str:
        if dtype not in (None, n.value(input).dtype):
            raise Refused("it changes the dtype")
        dim = n.plain(dim)
        axes = [] if dim is None or dim == () else [n.number([dim] if isinstance(dim, int) else list(dim), "int64")]
        return n.add(kind, [n.tensor(input), *axes], node.name, keepdims=int(n.plain(keepdim)))

    return write


def concatenate(n: Network, node: Node, tensors: Sequence[Node], dim: int = 0) -> str:
    return n.add("Concat", [n.tensor(t) for t in tensors], node.name, axis=n.plain(dim))


def getitem(n: Network, node: Node, input: Node, index: Any) -> str:
    """Indices and slices with a positive step; and a part of what ``chunk`` and ``split`` gave."""
    whole = n.value(input)
    if isinstance(whole, (tuple, list)):
        if input.target not in SPLITS:
            raise Refused(f"of what {called(input)} gives, which has no form in ONNX here")
        dim = n.plain(input.args[2] if len(input.args) > 2 else input.kwargs.get("dim", 0))
        source: Any = input.args[0] if input.args else input.kwargs.get("input", input.kwargs.get("tensor"))
        if n.dynamic and dim % n.dim(source) == 0:
            raise Refused("it splits the batch")
        sizes = [part.shape[dim] for part in whole]
        at = range(len(sizes))[n.plain(index)]
        return sliced(n, node, n.tensor(source), [(dim % n.dim(source), sum(sizes[:at]), sum(sizes[: at + 1]), 1)])
    rank, parts = whole.dim(), []
    indices = n.plain(index if isinstance(index, tuple) else (index,))
    kept = sum(part is not None and part is not ... for part in indices)
    axis = 0
    for part in indices:
        if part is ...:
            axis += rank - kept
        elif isinstance(part, slice):
            step = 1 if part.step is None else part.step
            parts.append((axis, part.start or 0, 2**31 - 1 if part.stop is None else part.stop, step))
            axis += 1
        elif type(part) is int:
            parts.append((axis, part, part + 1 if part != -1 else 2**31 - 1, 1))
            axis += 1
        elif part is not None:
            raise Refused(f"an index is {part!r:.60}")
    x = sliced(n, node, n.tensor(input), parts)
    return n.reshaped(node, x) if any(part is None or type(part) is int for part in indices) else x


def sliced(n: Network, node: Node, x: str, parts: Sequence[tuple[int, int, int, int]]) -> str:
    """``parts``: (axis, start, stop, step)."""
    if parts:
        axes, starts, stops, steps = zip(*parts, strict=True)
        x = n.add("Slice", [x, *(n.number(numbers_, "int64") for numbers_ in (starts, stops, axes, steps))], node.name)
    return x


def matmul(n: Network, node: Node, input: Node, other: Node) -> str:
    return n.add("MatMul", [n.tensor(input), n.tensor(other)], node.name)


def clip(n: Network, node: Node, input: Node, min: Any = None, max: Any = None) -> str:
    x, ends = n.tensor(input), ["" if end is None else n.tensor(end, input) for end in (min, max)]
    if not any(n.is_tensor(end) and n.dim(end) for end in (min, max)):
        return n.add("Clip", [x, *ends], node.name)
    for kind, end in zip(("Max", "Min"), ends, strict=True):  # Clip has numbers for bounds
        x = n.add(kind, [x, end], node.name) if end else x
    return x


def relu6(n: Network, node: Node, input: Node, inplace: bool = False) -> str:
    return clip(n, node, input, 0, 6)


def hardtanh(n: Network, node: Node, input: Node, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> str:
    return clip(n, node, input, min_val, max_val)


def relu(n: Network, node: Node, input: Node, inplace: bool = False) -> str:
    return n.add("Relu", [n.tensor(input)], node.name)


def leaky_relu(n: Network, node: Node, input: Node, negative_slope: float = 0.01, inplace: bool = False) -> str:
    return n.add("LeakyRelu", [n.tensor(input)], node.name, alpha=n.plain(negative_slope))


def silu(n: Network, node: Node, input: Node, inplace: bool = False) -> str:
    x = n.tensor(input)
    return n.add("Mul", [x, n.add("Sigmoid", [x], node.name)], node.name)


def hardsigmoid(n: Network, node: Node, input: Node, inplace: bool = False) -> str:
    return n.add("HardSigmoid", [n.tensor(input)], node.name, alpha=1 / 6, beta=0.5)


def hardswish(n: Network, node: Node, input: Node, inplace: bool = False) -> str:
    return n.add("HardSwish", [n.tensor(input)], node.name)


def gelu(n: Network, node: Node, input: Node, *, approximate: str = "none") -> str:
    return n.add("Gelu", [n.tensor(input)], node.name, approximate=approximate)


def softmax(n: Network, node: Node, input: Node, dim: Any = None, _stacklevel: int = 3, dtype: Any = None) -> str:
    if dim is None or dtype is not None:
        raise Refused("it needs dim, and no dtype")
    return n.add("Softmax", [n.tensor(input)], node.name, axis=n.plain(dim))


def each(size: Any, dims: int) -> list[int]:
    """A number or ``dims`` numbers, as these."""
    return (
        [int(size)] * dims
        if not isinstance(size, (tuple, list))
        else [int(s) for s in (size if len(size) == dims else size * dims)]
    )


def pool(dims: int, kind: str) -> Callable[..., str]:
    def write(
        n: Network,
        node: Node,
        input: Node,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        *arguments: Any,
        **keywords: Any,
    ) -> str:
        names = (
            ("dilation", "ceil_mode", "return_indices")
            if kind == "MaxPool"
            else ("ceil_mode", "count_include_pad", "divisor_override")
        )
        given = dict(zip(names, arguments, strict=False)) | keywords
        given = {name: n.plain(value) for name, value in given.items()}
        if n.dim(input) != dims + 2:
            raise Refused(f"it takes a single sample of {n.dim(input)} dimensions; give the network a batch")
        kernel = each(n.plain(kernel_size), dims)
        strides = each(n.plain(stride), dims) if stride not in (None, (), []) else kernel
        pads, dilation = each(n.plain(padding), dims), each(given.get("dilation", 1), dims)
        if given.get("return_indices") or given.get("divisor_override") is not None:
            raise Refused("it gives indices, or divides by a number of its own")
        for size, out, k, s, p, d in zip(
            n.value(input).shape[2:], n.value(node).shape[2:], kernel, strides, pads, dilation, strict=True
        ):
            if (size + 2 * p - d * (k - 1) - 1) // s + 1 != out:  # torch and ONNX differ in which windows it adds
                raise Refused("its ceil_mode adds a window that does not lie inside")
        attributes: dict[str, Any] = {"kernel_shape": kernel, "strides": strides, "pads": pads * 2}
        if kind == "MaxPool":
            attributes["dilations"] = dilation
        else:
            attributes["count_include_pad"] = int(given.get("count_include_pad", True))
        return n.add(kind, [n.tensor(input)], node.name, **attributes)

    return write


def adaptive_pool(dims: int) -> Callable[..., str]:
    """The mean of windows of one size."""

    def write(n: Network, node: Node, input: Node, output_size: Any) -> str:
        if n.dim(input) != dims + 2:
            raise Refused(f"it takes a single sample of {n.dim(input)} dimensions; give the network a batch")
        sizes, outs = n.value(input).shape[2:], n.value(node).shape[2:]
        if all(out == 1 for out in outs):
            return n.add("GlobalAveragePool", [n.tensor(input)], node.name)
        if any(size % out for size, out in zip(sizes, outs, strict=True)):
            raise Refused(f"its windows, {tuple(sizes)} to {tuple(outs)}, are of more than one size")
        kernel = [size // out for size, out in zip(sizes, outs, strict=True)]
        return n.add("AveragePool", [n.tensor(input)], node.name, kernel_shape=kernel, strides=kernel)

    return write


SPLITS = (torch.chunk, torch.split, "chunk", "split")


def with_methods(table: dict[Any, Callable[..., str]]) -> dict[Any, Callable[..., str]]:
    """``table``, where a string stands for a function of torch of that name, its form in place, and the methods of both."""
    found: dict[Any, Callable[..., str]] = {}
    for name, write in table.items():
        if not isinstance(name, str):
            found[name] = write
            continue
        for form in (name, f"{name}_"):
            found[form] = write
            for module in (torch, F):
                if callable(function := getattr(module, form, None)):
                    found[function] = write
    return found


UNARY = {"sigmoid": "Sigmoid", "tanh": "Tanh", "abs": "Abs", "neg": "Neg", "exp": "Exp", "sqrt": "Sqrt", operator.neg: "Neg"}
BINARY = {
    "add": "Add", operator.add: "Add", operator.iadd: "Add", "sub": "Sub", operator.sub: "Sub", operator.isub: "Sub",
    "mul": "Mul", operator.mul: "Mul", operator.imul: "Mul", "div": "Div", operator.truediv: "Div", operator.itruediv: "Div",
}  # fmt: skip
#: By the function, or by the name of one of torch and of the method.
NAMED: dict[Any, Callable[..., str]] = {
    **{name: unary(kind) for name, kind in UNARY.items()},
    **{name: binary(kind) for name, kind in BINARY.items()},
    "relu": relu, "relu6": relu6, "leaky_relu": leaky_relu, "silu": silu, "hardsigmoid": hardsigmoid, "hardswish": hardswish,
    "gelu": gelu, "hardtanh": hardtanh, "clamp": clip, "clip": clip, "softmax": softmax,
    "dropout": dropout, "dropout1d": dropout, "dropout2d": dropout,
    "mean": reduction("ReduceMean"), "sum": reduction("ReduceSum"), "amax": reduction("ReduceMax"),
    "matmul": matmul, "bmm": matmul, operator.matmul: matmul,
    "cat": concatenate, "concat": concatenate, "permute": permute, "transpose": transpose, operator.getitem: getitem,
    **dict.fromkeys(("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze"), reshape),
    **dict.fromkeys(("contiguous", "clone", "detach", "float", "to"), same),
    **dict.fromkeys((torch.max_pool1d, F.max_pool1d), pool(1, "MaxPool")),
    **dict.fromkeys((torch.max_pool2d, F.max_pool2d), pool(2, "MaxPool")),
    torch.avg_pool1d: pool(1, "AveragePool"), F.avg_pool2d: pool(2, "AveragePool"),
    F.adaptive_avg_pool1d: adaptive_pool(1), F.adaptive_avg_pool2d: adaptive_pool(2),
}  # fmt: skip
FUNCTIONS = with_methods(NAMED)


def by_function(function: Any, *names: str) -> Callable[..., str]:
    """A module that calls ``function`` with its attributes ``names``."""

    def write(n: Network, node: Node, x: Node, module: Any) -> str:
        return FUNCTIONS[function](n, node, x, **{name: getattr(module, name) for name in names})

    return write


POOLS = ("kernel_size", "stride", "padding", "ceil_mode")


def layer_norm(n: Network, node: Node, x: Node, norm: Any) -> str:
    name, shape = str(node.target), tuple(norm.normalized_shape)
    weight = np.ones(shape, np.float32) if norm.weight is None else norm.weight
    parts = [n.tensor(x), n.constant(f"{name}.weight", weight)]
    if norm.bias is not None:
        parts.append(n.constant(f"{name}.bias", norm.bias))
    return n.add("LayerNormalization", parts, name, axis=-len(shape), epsilon=norm.eps)


def embedding(n: Network, node: Node, x: Node, layer: Any) -> str:
    name = str(node.target)
    if layer.max_norm is not None:
        raise Refused("it has a max_norm")
    return n.add("Gather", [n.constant(f"{name}.weight", layer.weight), n.tensor(x)], name)


TORCH_MODULES: dict[type[nn.Module], Callable[..., str]] = {
    nn.LayerNorm: layer_norm, nn.Embedding: embedding,
    nn.ReLU: by_function(F.relu), nn.ReLU6: by_function(F.relu6), nn.Hardtanh: by_function(F.hardtanh, "min_val", "max_val"),
    nn.LeakyReLU: by_function(F.leaky_relu, "negative_slope"), nn.SiLU: by_function(F.silu),
    nn.Hardsigmoid: by_function(F.hardsigmoid), nn.Hardswish: by_function(F.hardswish), nn.GELU: by_function(F.gelu, "approximate"),
    nn.Sigmoid: by_function(torch.sigmoid), nn.Tanh: by_function(torch.tanh), nn.Softmax: by_function(F.softmax, "dim"),
    **dict.fromkeys((nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d), by_function("contiguous")),
    **dict.fromkeys((nn.Flatten, nn.Unflatten), by_function("reshape")),
    nn.MaxPool1d: by_function(F.max_pool1d, *POOLS, "dilation", "return_indices"),
    nn.MaxPool2d: by_function(F.max_pool2d, *POOLS, "dilation", "return_indices"),
    nn.AvgPool1d: by_function(torch.avg_pool1d, *POOLS, "count_include_pad"),
    nn.AvgPool2d: by_function(F.avg_pool2d, *POOLS, "count_include_pad", "divisor_override"),
    nn.AdaptiveAvgPool1d: by_function(F.adaptive_avg_pool1d, "output_size"),
    nn.AdaptiveAvgPool2d: by_function(F.adaptive_avg_pool2d, "output_size"),
}  # fmt: skip
