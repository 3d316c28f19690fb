"""An integer network as a list of steps: what a file says for those who have no torch, and what ``fastq.runtime`` runs.

A program is ``{"steps": [...], "output": i}``. A step is a dict with ``op`` and its numbers, and names those before it by their
place in the list; the first one is the network's input. A value is float32 ``(B, C, H, W)`` or ``(B, F)``, or codes of those, int8:

=====================  ==========================================================================================================
``input``
``layer``              ``layer``: the name of an integer or weight-only layer; ``input``. An integer layer takes codes, or makes
                       them of floating point. ``norm``: what follows as ``{"name", "eps"}`` of a batch norm; ``residual``: a
                       step; ``activation``; ``codes_for``: the layer for whose input it gives codes
``norm``               ``input``; ``name``, ``eps``
``relu, relu6``        ``input``
``add``                ``input``, ``other``
``flatten``            ``input``; ``features``: how many there must be, or null
``max_pool``           ``input``; ``kernel``, ``stride``, ``padding``, ``dilation``: of two numbers each; ``ceil``
``avg_pool``           ``input``; ``kernel``, ``stride``, ``padding``; ``ceil``; ``count_padding``; ``divisor``: a number or null
``adaptive_avg_pool``  ``input``; ``size``
``mean``               ``input``; ``keep``: over height and width, which stay as 1 or not
=====================  ==========================================================================================================

Only what gives the bits of torch without torch is there: a layer in floating point is not, for the sums of torch's libraries have
an order of their own. The graph is traced without an input, so what depends on its shape is refused when the program is called: an
input of other axes than those two, and a view that changes the batch.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .fusion import (
    ADDS,
    IN_PLACE_ADDS,
    RELUS,
    SAME_CALLS,
    SAME_MODULES,
    SHAPES,
    Apart,
    Plan,
    evaluated,
    fused,
    fusion_of,
    hooked,
    is_affine,
    parameters_of,
    traced,
)
from .layers import CodedLayer, IntegerConv, IntegerLayer, IntegerLinear, WeightOnlyConv, WeightOnlyLinear, form_of

__all__ = ["NoProgram", "program_of"]

Node = torch.fx.Node

RELUS_IN_PLACE = (F.relu_, torch.relu_, "relu_")
FLATTENS = (torch.flatten, "flatten")
VIEWS = (torch.reshape, "view", "reshape")
MEANS = (torch.mean, "mean")
MAX_POOLS = (F.max_pool2d, torch.max_pool2d, torch.nn.functional._max_pool2d)  # type: ignore[attr-defined]


class NoProgram(Exception):
    """Why a network is no program."""


@torch.no_grad()
def program_of(network: nn.Module) -> dict[str, Any]:
    """The program of ``network``, a result of :func:`fastq.convert`; :class:`NoProgram` says why there is none."""
    if isinstance(network, CodedLayer):
        check_layer("the network", network)
        return {"steps": [{"op": "input"}, {"op": "layer", "layer": "", "input": 0}], "output": 1}
    base: Any = getattr(network, "_fastq_unfused", type(network))
    twin = base.__new__(base)  # the very modules, under the class whose forward method can be traced
    vars(twin).update(vars(network))
    with evaluated(twin):
        try:
            graph, _ = traced(twin, parameters_of(twin))
        except Apart as why:
            raise NoProgram(str(why)) from None
        plan = Plan(twin, graph)
        if fused(network):
            plan.write()
        elif any(len(chain.nodes) > 1 or chain.consumers for chain in plan.chains):
            raise NoProgram(f"it is not fused: {fusion_of(network).reason}")
        if hooked(network):
            raise NoProgram("the network has forward hooks")
        return Lowering(twin, graph).program()


def check_layer(name: str, layer: nn.Module) -> None:
    """:class:`NoProgram` where the runtime does not have the like of ``layer``."""
    if hooked(layer):
        raise NoProgram(f"{name} has forward hooks")
    if not isinstance(layer, (IntegerLinear, IntegerConv, WeightOnlyLinear, WeightOnlyConv)):
        raise NoProgram(f"{name} is a {type(layer).__name__}, which computes with torch")
    if isinstance(layer, (IntegerConv, WeightOnlyConv)) and (layer.dims != 2 or layer.padding_mode != "zeros"):
        raise NoProgram(f"{name} is a convolution of {layer.dims} dimension(s) with padding_mode {layer.padding_mode!r}")
    if isinstance(layer, IntegerLayer) and not (layer.plain and layer.takes_codes):
        raise NoProgram(f"{name} has a grid of its inputs or weights that is more than a step")
    if layer.bias is not None and layer.bias.dtype != torch.float32:
        raise NoProgram(f"{name} has a bias of {layer.bias.dtype}")


def name_of(target: Any) -> str:
    """What a node calls, without a function's address in memory: the same network gives the same file."""
    return target if isinstance(target, str) else str(getattr(target, "__name__", type(target).__name__))


def pair(value: Any) -> list[int]:
    """An int or two, as torch takes them, as a list of two."""
    values = [value, value] if type(value) is int else list(value)
    values = values * 2 if len(values) == 1 else values
    if len(values) != 2 or any(type(n) is not int for n in values):
        raise ValueError(f"{value!r:.60} is no int or two")
    return values


class Lowering:
    """From a fused graph to steps. ``places``: of the step that computes a node."""

    def __init__(self, network: nn.Module, graph: torch.fx.Graph) -> None:
        self.modules = dict(network.named_modules(remove_duplicate=False))
        self.graph = graph
        self.steps: list[dict[str, Any]] = []
        self.places: dict[Node, int] = {}

    def program(self) -> dict[str, Any]:
        """The whole."""
        for node in self.graph.nodes:
            if node.op == "output":
                if not isinstance(node.args[0], Node) or node.args[0] not in self.places:
                    raise NoProgram("its output is not one tensor that it computes")
                return {"steps": self.steps, "output": self.places[node.args[0]]}
            try:
                self.lower(node)
            except (ValueError, TypeError, IndexError) as error:
                raise NoProgram(f"{name_of(node.target)} is called in a way that the runtime does not know: {error}") from None
        raise NoProgram("it has no output")

    def step(self, node: Node, op: str, **numbers: Any) -> None:
        self.steps.append({"op": op, **numbers})
        self.places[node] = len(self.steps) - 1

    def of(self, value: Any) -> int:
        """The step that computes ``value``."""
        if not isinstance(value, Node) or value not in self.places:
            raise ValueError(f"{value!r:.60} is none of its tensors")
        return self.places[value]

    def lower(self, node: Node) -> None:
        if node.op == "placeholder":
            if self.steps:
                raise NoProgram("it takes more than one tensor")
            self.step(node, "input")
        elif node.op == "call_module":
            self.lower_module(node, str(node.target), self.modules[str(node.target)])
        elif node.op in ("call_function", "call_method") and not self.is_shape(node):
            self.lower_call(node)

    def is_shape(self, node: Node) -> bool:
        """Whether it is none of the tensors: a number or a tuple of them, of which a step that takes it makes sure itself."""
        if node.target is form_of or (node.op == "call_method" and node.target in SHAPES):
            return True
        if node.target is getattr:
            return node.args[1] in SHAPES
        return node.target is operator.getitem and node.args[0] not in self.places

    # ---- modules

    def lower_module(self, node: Node, name: str, module: Any) -> None:
        if isinstance(module, CodedLayer):
            return self.lower_layer(node, name, module)
        if hooked(module):
            raise NoProgram(f"{name} has forward hooks")
        kind = type(module)
        x = node.args[0] if len(node.args) == 1 and not node.kwargs else None
        if getattr(module, "inplace", False):
            self.check_alone(name, x)
        if is_affine(module):
            self.step(node, "norm", input=self.of(x), **self.norm(name))
        elif isinstance(module, SAME_MODULES):
            self.places[node] = self.of(x)
        elif kind is nn.ReLU or kind is nn.ReLU6:
            self.step(node, kind.__name__.lower(), input=self.of(x))
        elif kind is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1):
            self.step(node, "flatten", input=self.of(x), features=None)
        elif kind is nn.MaxPool2d and not module.return_indices:
            self.max_pool(node, x, module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode)
        elif kind is nn.AvgPool2d:
            p = module
            self.avg_pool(node, x, p.kernel_size, p.stride, p.padding, p.ceil_mode, p.count_include_pad, p.divisor_override)
        elif kind is nn.AdaptiveAvgPool2d:
            self.adaptive_avg_pool(node, x, module.output_size)
        elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            raise NoProgram(
                f"{name} is a batch norm by itself that torch computes; fastq.prepare(..., forward='integer') makes one"
            )
        else:
            raise NoProgram(f"{name} is a {kind.__name__}, which the runtime does not have")

    def norm(self, name: str) -> dict[str, Any]:
        """What ``affine_of`` needs besides tensors of the file."""
        norm: Any = self.modules[name]
        for tensor in ("running_mean", "running_var", "weight", "bias"):
            if (t := getattr(norm, tensor)) is not None and t.dtype != torch.float32:
                raise NoProgram(f"{name} has a {tensor} of {t.dtype}")
        return {"name": name, "eps": float(norm.eps)}

    def lower_layer(self, node: Node, name: str, layer: CodedLayer) -> None:
        check_layer(name, layer)
        more = dict(node.kwargs)
        given = node.args[0] if node.args else more.pop("input")
        numbers: dict[str, Any] = {"layer": name, "input": self.of(given)}
        more.pop("form", None)  # of the input: float32, and the channels last in memory or not, which changes no number
        if (multiplier := more.pop("multiplier", None)) is not None:
            numbers["norm"] = self.norm(str(multiplier.target).rpartition(".")[0])  # type: ignore[union-attr]
            more.pop("addend")
        if (residual := more.pop("residual", None)) is not None:
            numbers["residual"] = self.of(residual)
        if (activation := more.pop("activation", None)) is not None:
            numbers["activation"] = activation
        if (scale := more.pop("out_scale", None)) is not None:
            numbers["codes_for"] = str(scale.target).rpartition(".")[0]  # type: ignore[union-attr]
            more.pop("out_codes")
        if more:
            raise ValueError(f"the arguments {sorted(more)}")
        self.step(node, "layer", **numbers)

    # ---- functions and methods

    def lower_call(self, node: Node) -> None:
        target, arguments, more = node.target, node.args, dict(node.kwargs)
        x: Any = arguments[0] if arguments else more.pop("input")
        rest = arguments[1:]

        def argument(place: int, name: str, default: Any = None) -> Any:
            return rest[place] if len(rest) > place else more.pop(name, default)

        if target in ADDS:
            if target in IN_PLACE_ADDS:
                self.check_alone(str(target), x)
            other = argument(0, "other")
            self.step(node, "add", input=self.of(x), other=self.of(other))
        elif target in RELUS:
            if target in RELUS_IN_PLACE or argument(0, "inplace", False):
                self.check_alone(str(target), x)
            self.step(node, "relu", input=self.of(x))
        elif target is F.relu6:
            if argument(0, "inplace", False):
                self.check_alone(str(target), x)
            self.step(node, "relu6", input=self.of(x))
        elif target in SAME_CALLS and argument(1, "training", True) is False:
            more.pop("p", None)
            if argument(2, "inplace", False):
                raise ValueError("in place")
            self.places[node] = self.of(x)
        elif target == "contiguous" and not rest:
            self.places[node] = self.of(x)
        elif target in FLATTENS and (argument(0, "start_dim", 0), argument(1, "end_dim", -1)) == (1, -1):
            self.step(node, "flatten", input=self.of(x), features=None)
        elif target in VIEWS:
            self.step(node, "flatten", input=self.of(x), features=self.features(x, rest))
        elif target in MEANS:
            dims, keep = argument(0, "dim"), argument(1, "keepdim", False)
            if not isinstance(dims, (tuple, list)) or sorted(d % 4 for d in dims) != [2, 3] or type(keep) is not bool:
                raise ValueError("a mean over other axes than the last two of four")
            self.step(node, "mean", input=self.of(x), keep=keep)
        elif target in MAX_POOLS:
            names: Any = (("kernel_size", None), ("stride", None), ("padding", 0), ("dilation", 1), ("ceil_mode", False))
            self.max_pool(node, x, *(argument(i, name, default) for i, (name, default) in enumerate(names)))
            if argument(5, "return_indices", False):
                raise ValueError("indices are asked for")
        elif target is F.avg_pool2d:
            names = (
                ("kernel_size", None), ("stride", None), ("padding", 0), ("ceil_mode", False), ("count_include_pad", True),
                ("divisor_override", None),
            )  # fmt: skip
            self.avg_pool(node, x, *(argument(i, name, default) for i, (name, default) in enumerate(names)))
        elif target is F.adaptive_avg_pool2d:
            self.adaptive_avg_pool(node, x, argument(0, "output_size"))
        else:
            raise NoProgram(f"it calls {name_of(target)}, which the runtime does not have")
        if any(value is not None for value in more.values()):
            raise ValueError(f"the arguments {sorted(more)}")

    def features(self, x: Any, sizes: tuple[Any, ...]) -> int | None:
        """Of a view that flattens all but the batch: how many, where it says so."""
        sizes = tuple(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes
        if len(sizes) == 2 and sizes[1] == -1 and self.is_batch(sizes[0], x):
            return None
        if len(sizes) == 2 and type(sizes[1]) is int and (self.is_batch(sizes[0], x) or sizes[0] == -1):
            return int(sizes[1])
        raise ValueError(f"a view as {sizes!r:.60}")

    def is_batch(self, size: Any, x: Any) -> bool:
        """Whether it is the length of the first axis of a tensor of the network, all of which have the batch there."""
        if not isinstance(size, Node):
            return False
        if size.op == "call_method" and size.target == "size" and len(size.args) == 2:
            return bool(size.args[1] == 0) and size.args[0] in self.places
        if size.target is not operator.getitem or size.args[1] != 0 or not isinstance(size.args[0], Node):
            return False
        whole = size.args[0]
        asked = (whole.target == "size" and len(whole.args) == 1) or (whole.target is getattr and whole.args[1] == "shape")
        return asked and whole.args[0] in self.places

    def check_alone(self, name: str, x: Any) -> None:
        """:class:`NoProgram` where what is changed in place has other users, which see the change."""
        place = self.of(x)
        if sum(len(node.users) for node, p in self.places.items() if p == place) > sum(
            p == place for p in self.places.values()
        ) or self.steps[place]["op"] in ("input", "flatten"):
            raise NoProgram(f"{name} changes in place what others use too, or may")

    def max_pool(self, node: Node, x: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: Any) -> None:
        numbers = {"kernel": pair(kernel), "stride": pair(kernel if stride is None or stride == [] else stride)}
        numbers |= {"padding": pair(padding), "dilation": pair(dilation)}
        self.step(node, "max_pool", input=self.of(x), **numbers, ceil=bool(ceil))

    def avg_pool(self, node: Node, x: Any, kernel: Any, stride: Any, padding: Any, ceil: Any, count: Any, divisor: Any) -> None:
        numbers = {"kernel": pair(kernel), "stride": pair(kernel if stride is None or stride == [] else stride)}
        numbers |= {"padding": pair(padding)}
        more = {"ceil": bool(ceil), "count_padding": bool(count), "divisor": divisor}
        self.step(node, "avg_pool", input=self.of(x), **numbers, **more)

    def adaptive_avg_pool(self, node: Node, x: Any, size: Any) -> None:
        numbers = pair(size)
        if numbers == [1, 1]:  # torch computes a mean
            self.step(node, "mean", input=self.of(x), keep=True)
        else:
            self.step(node, "adaptive_avg_pool", input=self.of(x), size=numbers)
