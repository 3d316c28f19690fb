"""Integer layers that hand each other codes: what lies between two of them becomes the epilogue of the first.

The network is traced by :mod:`torch.fx` with its layers as leaves, and its forward method replaced by the traced program, in which
a layer is called with what follows it: a batch norm, a residual, a ReLU, the grid of the next layer's input. The modules stay
where and what they are, so that a layer or a part of the network that is called by itself computes as it did; the network's class
becomes a subclass of itself that has the new forward method.

In float32 the fused network has the bits of the other one, whose batch norms compute :func:`fastq.nn.batch_norm.affine_of`. In half
precision it rounds once where the other one rounds after each module.
"""

from __future__ import annotations

import copy
import operator
import sys
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import nn

from ..nn import batch_norm
from ..tables import table
from .layers import HOOKS, Affine, CodedLayer, IntegerConv, IntegerLayer, form_of

__all__ = ["FusedLayer", "Fusion", "fuse", "fused", "fusion_of", "unfuse"]

Node = torch.fx.Node


@dataclass(frozen=True)
class FusedLayer:
    """One call of an integer layer: what it does beside its product.

    ``norm``: the batch norm's name, or None. ``codes_from``: it takes codes of this layer (None: floating point); ``codes_to``: it
    gives codes to these.
    """

    name: str
    norm: str | None
    residual: bool
    activation: str | None
    codes_from: str | None
    codes_to: tuple[str, ...]


@dataclass(frozen=True)
class Fusion:
    """What :func:`fastq.convert` fused, call by call; ``str()`` is a table. ``reason``: why nothing, or None; ``apart``: layers
    that stay by themselves for the hooks that they, or modules around them, have."""

    layers: tuple[FusedLayer, ...] = ()
    reason: str | None = None
    apart: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.reason is not None:
            return f"not fused: {self.reason}"
        rows = []
        for x in self.layers:
            after = [x.norm, "residual" if x.residual else None, x.activation]
            to = ", ".join(x.codes_to)
            rows.append((x.name, x.codes_from or "", " + ".join(part for part in after if part), to))
        lines = [table(("layer", "takes codes of", "computes as well", "gives codes to"), rows)]
        if self.apart:
            lines.append(
                f"by themselves, for they have forward hooks or lie in a module that is not traced: {', '.join(self.apart)}"
            )
        return "\n".join(lines)


def fusion_of(network: nn.Module) -> Fusion:
    """The report of a network that :func:`fastq.convert` or :func:`fastq.load` returned; it is its attribute ``fusion`` too, unless
    its class has one of that name."""
    found: Fusion | None = vars(network).get("_fastq_fusion")
    return Fusion(reason="no network of fastq.convert") if found is None else found


def is_affine(module: nn.Module | None) -> bool:
    """Whether it is a batch norm that has the very bits of an epilogue."""
    return isinstance(module, Affine) or type(module).__module__ == batch_norm.__name__


def hooked(module: nn.Module) -> bool:
    return any(getattr(module, name) for name in HOOKS)


class FaithfulProxy(torch.fx.Proxy):
    """Refuses what torch's own gets wrong without a word: it makes ``x + y`` of ``x += y``, which changes ``x`` for all that hold
    it,
    and is no tensor where a forward method asks ``isinstance(x, torch.Tensor)``."""

    @property  # type: ignore[misc]  # isinstance looks at it where the type is none of those asked for
    def __class__(self) -> Any:
        if sys._getframe(1).f_globals.get("__name__", "").partition(".")[0] == "torch":
            return type(self)
        raise torch.fx.proxy.TraceError("its forward method asks for the type of a value")

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})


def _in_place(target: Any) -> Any:
    def run(self: Any, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", target, (self, other), {})

    return run


for _name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor"):
    setattr(FaithfulProxy, f"__{_name}__", _in_place(getattr(operator, _name)))


class Tracer(torch.fx.Tracer):
    """Layers of fastq and modules with hooks, which a program of functions would not run, are leaves."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        own = type(m).__module__.startswith(("fastq.nn", "fastq.deploy")) and not isinstance(m, FusedModule)
        return own or hooked(m) or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: Node) -> torch.fx.Proxy:
        return FaithfulProxy(node, self)


class FusedModule:
    """The first base of a fused network's class; ``_fastq_unfused`` is the other one."""

    _fastq_unfused: type[nn.Module]

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        new = self._fastq_unfused.__new__(type(self))  # type: ignore[call-overload]
        memo[id(self)] = new
        vars(new).update(copy.deepcopy(vars(self), memo))
        return new

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _rebuilt, (self._fastq_unfused, vars(self))

    def load_state_dict(self, *arguments: Any, **keywords: Any) -> Any:
        result = super().load_state_dict(*arguments, **keywords)  # type: ignore[misc]
        fuse(self)  # type: ignore[arg-type]  # steps that were equal may be so no more
        return result


def _rebuilt(base: type[nn.Module], state: dict[str, Any]) -> nn.Module:
    network: nn.Module = base.__new__(base)
    network.__setstate__(state)
    return fuse(network)


def unfuse(network: nn.Module) -> nn.Module:
    """Give ``network`` its own forward method back; its batch norms stay as they are."""
    if isinstance(network, FusedModule):
        network.__class__ = network._fastq_unfused  # type: ignore[assignment]
    vars(network).pop("_fastq_fusion", None)
    if isinstance(vars(network).get("fusion"), Fusion):
        del network.fusion
    return network


def fused(network: nn.Module) -> bool:
    """Whether its layers hand each other codes or compute what follows them."""
    return isinstance(network, FusedModule)


def report(network: nn.Module, fusion: Fusion) -> nn.Module:
    vars(network)["_fastq_fusion"] = fusion
    if not hasattr(network, "fusion"):
        vars(network)["fusion"] = fusion
    return network


@torch.no_grad()
def fuse(network: nn.Module) -> nn.Module:
    """Fuse ``network``, an integer one in eval mode, in place; where it cannot be traced it stays, and its report says why."""
    unfuse(network)
    if isinstance(network, CodedLayer):
        return report(network, Fusion(reason="it is a single layer"))
    if type(network).__call__ is not nn.Module.__call__ or "forward" in vars(network):
        return report(network, Fusion(reason="its forward method was replaced on the instance, or its class has its own __call__"))
    before, reason = set(vars(network)), None
    try:
        graph = Tracer().trace(network)
    except Exception as error:  # whatever a forward method raises when it meets a proxy
        text = " ".join(str(error).split())
        reason = f"torch.fx cannot trace it: {type(error).__name__}: {text:.200}"
    constants = [name for name in vars(network) if name not in before]
    for name in constants:
        delattr(network, name)
    if reason is not None:
        return report(network, Fusion(reason=reason))
    if constants:
        return report(network, Fusion(reason="its forward method makes tensors, which a traced program would hold on to"))
    plan = Plan(network, graph)
    plan.write()
    if not plan.done:
        return report(network, Fusion(reason="no layer has anything to fuse", apart=plan.apart))
    code = graph.python_code("self")
    space: dict[str, Any] = dict(code.globals)
    exec(compile(code.src, f"<fastq: {type(network).__name__} fused>", "exec"), space)
    base: Any = type(network)
    body = {"forward": space["forward"], "_fastq_unfused": base, "__module__": base.__module__, "__doc__": base.__doc__}
    network.__class__ = type(base)(base.__name__, (FusedModule, base), body)
    return report(network, Fusion(tuple(plan.done), None, plan.apart))


#: What gives the same codes as it would give numbers, and leaves the layout as it is; and what may change it.
SAME_MODULES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d)
MOVING_MODULES = (nn.Flatten, nn.Unflatten)
SAME_CALLS = (F.dropout, F.dropout2d)
MOVING_METHODS = ("view", "reshape", "flatten", "unflatten", "contiguous", "permute", "transpose", "squeeze", "unsqueeze")
MOVING_CALLS = tuple(getattr(torch, name) for name in MOVING_METHODS if hasattr(torch, name))
#: What looks at the shape alone.
SHAPES = ("size", "dim", "numel", "shape", "ndim", "device")
ADDS = (operator.add, torch.add, operator.iadd, "add", "add_")
IN_PLACE_ADDS = (operator.iadd, "add_")
RELUS = (F.relu, torch.relu, F.relu_, torch.relu_, "relu", "relu_")


@dataclass
class Chain:
    """A call of an integer layer and what follows it, in order, as far as its epilogue has it."""

    head: Node
    layer: IntegerLayer
    nodes: list[Node]
    norm: str | None = None
    add: Node | None = None
    activation: str | None = None
    consumers: list[Node] = field(default_factory=list)  # that take its codes
    moved: bool = False  # something between that depends on the layout

    @property
    def tail(self) -> Node:
        return self.nodes[-1]


class Plan:
    """Which calls of ``graph`` are fused, and the program that comes of it."""

    def __init__(self, network: nn.Module, graph: torch.fx.Graph) -> None:
        self.network, self.graph = network, graph
        self.modules = dict(network.named_modules(remove_duplicate=False))
        self.done: list[FusedLayer] = []
        self.place = {node: i for i, node in enumerate(graph.nodes)}
        self.nodes = list(graph.nodes)
        calls = [n for n in graph.nodes if isinstance(self.module(n), IntegerLayer) and self.input(n) is not None]
        seen = {str(n.target) for n in calls if not hooked(self.modules[str(n.target)])}
        self.apart = tuple(name for name, m in self.modules.items() if isinstance(m, IntegerLayer) and name not in seen)
        claimed: set[Node] = set()
        chains = {}
        for node in reversed(calls):  # of two that a sum adds, the one that is ready last has the other as its residual
            chains[node] = self.chain(node, claimed)
        self.chains = [chains[node] for node in calls]
        for chain in self.chains:
            self.find_consumers(chain)
            self.settle_relu6(chain)

    def module(self, node: Node) -> nn.Module | None:
        return self.modules.get(str(node.target)) if node.op == "call_module" else None

    def input(self, node: Node) -> Node | None:
        """What a layer is called with, where that is all."""
        if len(node.args) + len(node.kwargs) != 1:
            return None
        given = node.args[0] if node.args else node.kwargs.get("input")
        return given if isinstance(given, Node) else None

    # ---- what follows a layer

    def chain(self, head: Node, claimed: set[Node]) -> Chain:
        layer: Any = self.module(head)
        chain = Chain(head, layer, [head])
        if not layer.plain or hooked(layer):
            return chain
        while len(users := list(chain.tail.users)) == 1:
            node = users[0]
            if node in claimed or self.disturbed(chain, node) or not self.follows(chain, node):
                break
            chain.nodes.append(node)
            if chain.activation is not None:
                break
        while len(chain.nodes) > 1 and self.is_same(chain.tail):
            chain.nodes.pop()
        claimed.update(chain.nodes)
        return chain

    def follows(self, chain: Chain, node: Node) -> bool:
        """Whether ``node`` is the next part of the epilogue; ``chain`` notes which."""
        if self.is_same(node):
            return True
        if chain.norm is None and chain.add is None and self.is_norm(node, chain.layer):
            chain.norm = str(node.target)
            return True
        if chain.add is None and self.is_add(node, chain.tail):
            chain.add = node
            return True
        if self.is_relu(node):
            chain.activation = "relu"
        elif self.is_relu6(node):
            chain.activation = "relu6"
        return chain.activation is not None

    def settle_relu6(self, chain: Chain) -> None:
        """Leave a ReLU6 to torch, but where 6 has the highest code: then what is clipped to 6 is what codes are clipped to."""
        if chain.activation != "relu6":
            return
        if chain.consumers:
            layer: Any = self.module(chain.consumers[0])
            if float(6 / layer.input_step) >= layer.inputs.qmax:
                return
        chain.activation, chain.consumers = None, []
        chain.nodes.pop()
        while len(chain.nodes) > 1 and self.is_same(chain.tail):
            chain.nodes.pop()

    def is_same(self, node: Node) -> bool:
        module = self.module(node)
        if module is not None:
            return isinstance(module, SAME_MODULES) and not hooked(module) and not module.training and self.input(node) is not None
        if node.op != "call_function" or node.target not in SAME_CALLS:
            return False
        training = node.args[2] if len(node.args) > 2 else node.kwargs.get("training", True)
        return training is False

    def is_norm(self, node: Node, layer: IntegerLayer) -> bool:
        norm: Any = self.module(node)
        dims = 2 if isinstance(layer, IntegerConv) and layer.dims == 2 else 1
        kind = nn.BatchNorm2d if dims == 2 else nn.BatchNorm1d
        if not isinstance(norm, kind) or hooked(norm) or self.input(node) is None or norm.running_mean is None:
            return False
        if norm.training and not isinstance(norm, Affine):
            return False
        own = type(norm) is kind or is_affine(norm)
        outputs = layer.weight.n
        return own and norm.num_features == outputs and norm.running_mean.dtype != torch.float64

    def is_add(self, node: Node, value: Node) -> bool:
        if node.op not in ("call_function", "call_method") or node.target not in ADDS or len(node.args) != 2 or node.kwargs:
            return False
        left, right = node.args
        if not isinstance(left, Node) or not isinstance(right, Node) or left is right:
            return False
        # what is added to in place has other users, which would miss it
        return value is left or (value is right and node.target not in IN_PLACE_ADDS)

    def is_relu(self, node: Node) -> bool:
        module = self.module(node)
        if module is not None:
            return type(module) is nn.ReLU and not hooked(module) and self.input(node) is not None
        if node.op not in ("call_function", "call_method") or node.target not in RELUS:
            return False
        return len(node.args) == 1 or node.target is F.relu

    def is_relu6(self, node: Node) -> bool:
        module = self.module(node)
        if module is not None:
            return type(module) is nn.ReLU6 and not hooked(module) and self.input(node) is not None
        return node.op == "call_function" and node.target is F.relu6

    def disturbed(self, chain: Chain, node: Node) -> bool:
        """Whether the layer cannot run where ``node`` does: something between may change its input, or is the same layer."""
        between = self.nodes[self.place[chain.head] + 1 : self.place[node]]
        return any(n not in chain.nodes and (n.target == chain.head.target or self.in_place(n)) for n in between)

    def in_place(self, node: Node) -> bool:
        module = self.module(node)
        if module is not None:
            return bool(getattr(module, "inplace", False)) or not type(module).__module__.startswith(("torch.nn", "fastq."))
        if node.kwargs.get("inplace") or "out" in node.kwargs or any(argument is True for argument in node.args[1:]):
            return True
        name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
        return name.endswith("_") or name in ("setitem", "setattr") or (name[:1] == "i" and hasattr(operator, f"__{name}__"))

    # ---- where codes go

    def find_consumers(self, chain: Chain) -> None:
        """Note the layers that take codes of ``chain``, where all that use it do and have the same grid."""
        if not chain.layer.plain or hooked(chain.layer):
            return
        found, moved = self.consumers(chain.tail)
        if not found:
            return
        layers: list[Any] = [self.module(node) for node in found]
        first = layers[0]
        for other in layers[1:]:
            if other.inputs != first.inputs or not torch.equal(other.input_step, first.input_step):
                return
        chain.consumers, chain.moved = found, moved

    def consumers(self, value: Node) -> tuple[list[Node] | None, bool]:
        found: list[Node] = []
        any_moved = False
        for user in value.users:
            module = self.module(user)
            if isinstance(module, IntegerLayer):
                if not module.takes_codes or hooked(module) or self.input(user) is not value:
                    return None, False
                found.append(user)
            elif self.is_same(user) or self.moves(user, value):
                further, moved = self.consumers(user)
                if further is None:
                    return None, False
                found += further
                any_moved = any_moved or moved or not self.is_same(user)
            elif not self.looks_at_shape(user):
                return None, False
        return found, any_moved

    def moves(self, node: Node, value: Node) -> bool:
        if node.all_input_nodes.count(value) != 1 or not node.args or node.args[0] is not value:
            return False
        module = self.module(node)
        if module is not None:
            return isinstance(module, MOVING_MODULES) and not hooked(module)
        if node.op == "call_method":
            return node.target in MOVING_METHODS and not any(isinstance(a, torch.dtype) for a in node.args)
        return node.op == "call_function" and node.target in MOVING_CALLS

    def looks_at_shape(self, node: Node) -> bool:
        if node.op == "call_method":
            return node.target in SHAPES
        return node.op == "call_function" and node.target is getattr and node.args[1] in SHAPES

    # ---- the program

    def write(self) -> None:
        """Rewrite the graph."""
        origins = {node: chain for chain in self.chains for node in chain.consumers}
        forms: dict[int, Node] = {}  # by chain: the form of the floating point input that its codes come from
        fresh: list[Node] = []
        for chain in self.chains:
            source = origins.get(chain.head)
            if len(chain.nodes) == 1 and not chain.consumers and source is None:
                continue
            given: Any = self.input(chain.head)
            with self.graph.inserting_before(chain.tail):
                if source is None:
                    form = self.graph.call_function(form_of, (given,))
                    fresh.append(form)
                else:
                    form = forms[id(source)]
                keywords = self.keywords(chain)
                if chain.moved or (source is not None and not chain.consumers):
                    keywords["form"] = form
                call = self.graph.call_module(str(chain.head.target), (given,), keywords)
            forms[id(chain)] = form
            chain.tail.replace_all_uses_with(call)
            for node in reversed(chain.nodes):
                self.graph.erase_node(node)
            if chain.norm is not None and not isinstance(self.modules[chain.norm], Affine):
                Affine.of(self.modules[chain.norm])
            to = tuple(str(node.target) for node in chain.consumers)
            by = None if source is None else str(source.head.target)
            self.done.append(FusedLayer(str(chain.head.target), chain.norm, chain.add is not None, chain.activation, by, to))
        for form in fresh:
            if not form.users:
                self.graph.erase_node(form)
        self.graph.lint()

    def keywords(self, chain: Chain) -> dict[str, Any]:
        """What the layer is called with besides its input."""
        keywords: dict[str, Any] = {}
        if chain.norm is not None:
            for name in ("multiplier", "addend"):
                keywords[name] = self.graph.get_attr(f"{chain.norm}.{name}")
        if chain.add is not None:
            left, right = chain.add.args
            keywords["residual"] = right if left in chain.nodes else left
        if chain.activation is not None:
            keywords["activation"] = "relu"
        if chain.consumers:
            first = chain.consumers[0]
            inputs = self.modules[str(first.target)].inputs
            keywords["out_scale"] = self.graph.get_attr(f"{first.target}.input_step")
            keywords["out_codes"] = (inputs.qmin, inputs.qmax)  # type: ignore[union-attr]
        return keywords
