"""Integer layers that hand each other codes: what lies between two of them becomes the epilogue of the first.

The network is traced by :mod:`torch.fx` with its layers as leaves, and its forward method replaced by the traced program, in which
a layer is called with what follows it: a batch norm, a residual, a ReLU, the grid of the next layer's input. The modules stay
where and what they are, so that a layer or a part of the network that is called by itself computes as it did; the network's class
becomes a subclass of itself that has the new forward method.

A trace is what the forward method did once, with proxies for tensors. The program is run where that is what it would do again:
arguments that have defaults have them, the others are tensors, the modules are those that were there and are in eval mode. Else
the network's own forward method runs.

In float32 the fused network has the bits of the other one, whose batch norms compute :func:`fastq.nn.batch_norm.affine_of`. In half
precision it rounds once where the other one rounds after each module.
"""

from __future__ import annotations

import copy
import functools
import inspect
import operator
import sys
from abc import ABCMeta
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import nn

from ..nn import batch_norm, weights
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
    that stay by themselves for the hooks that they, or modules around them, have. What was fused runs while the network has the
    modules that it had then."""

    layers: tuple[FusedLayer, ...] = ()
    reason: str | None = None
    apart: tuple[str, ...] = ()

    def __str__(self) -> str:
        rows = []
        for x in self.layers:
            after = [x.norm, "residual" if x.residual else None, x.activation]
            to = ", ".join(x.codes_to)
            rows.append((x.name, x.codes_from or "", " + ".join(part for part in after if part), to))
        lines = [table(("layer", "takes codes of", "computes as well", "gives codes to"), rows)]
        if self.reason is not None:
            lines = [f"not fused: {self.reason}"]
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


def ungroup(network: nn.Module) -> None:
    """Drop the hooks that :func:`fastq.prepare` puts on the model it is given, for weights that are quantized no more: they would
    make a leaf of a part of ``network`` that was prepared by itself."""
    for module in network.modules():
        registered = (*module._forward_pre_hooks.items(), *module._forward_hooks.items())
        for key in [key for key, hook in registered if hook in (weights._begin, weights._end)]:
            for name in HOOKS:
                getattr(module, name).pop(key, None)


class FaithfulProxy(torch.fx.Proxy):
    """Refuses what torch's own gets wrong without a word: it makes ``x + y`` of ``x += y``, which changes ``x`` for all that hold
    it, is no tensor where a forward method asks ``isinstance(x, torch.Tensor)``, and has every attribute that is asked for, where
    an argument has those of a tensor."""

    @property  # type: ignore[misc]  # isinstance looks at it where the type is none of those asked for
    def __class__(self) -> Any:
        asking = sys._getframe(1).f_globals.get("__name__", "")
        if asking == __name__ or asking.partition(".")[0] == "torch":
            return type(self)
        raise torch.fx.proxy.TraceError("its forward method asks for the type of a value")

    def __getattr__(self, name: str) -> Any:
        if "node" not in vars(self):  # as in a copy that is being made
            raise AttributeError(name)
        node = self.node
        if node.op == "placeholder":
            self.tracer.tensors.add(str(node.target))  # type: ignore[attr-defined]
        while node.op == "call_function" and node.target is operator.getitem and isinstance(node.args[0], Node):
            node = node.args[0]
        if node.op == "placeholder" and not hasattr(torch.Tensor, name):
            raise AttributeError(f"an argument is taken for a tensor, which has no attribute {name!r}")
        return super().__getattr__(name)

    @property
    def keys(self) -> Any:  # type: ignore[override]  # which torch's own has
        raise AttributeError("keys")

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})


def _in_place(target: Any) -> Any:
    def run(self: Any, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", target, (self, other), {})

    return run


for _name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor"):
    setattr(FaithfulProxy, f"__{_name}__", _in_place(getattr(operator, _name)))


def autocast() -> tuple[bool, ...]:
    return tuple(torch.is_autocast_enabled(device) for device in ("cpu", "cuda"))


class Tracer(torch.fx.Tracer):
    """Layers of fastq and modules with hooks, which a program of functions would not run, are leaves. ``parameters``: of the
    network's forward method; what has a default has it in the trace."""

    def __init__(self, parameters: Iterable[inspect.Parameter]) -> None:
        super().__init__()
        self.required = [p for p in parameters if p.default is p.empty]
        self.tensors: set[str] = set()  # arguments whose attributes are asked for
        self.autocast = autocast()

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        args: list[Any] = [self.root]
        keywords: dict[str, Any] = {}
        for p in self.required:
            proxy = self.create_proxy("placeholder", p.name, (), {})
            if p.kind is p.KEYWORD_ONLY:
                keywords[p.name] = proxy
            else:
                args.append(proxy)
        return functools.partial(root_fn, **keywords), args

    def create_node(self, *arguments: Any, **keywords: Any) -> Node:
        if autocast() != self.autocast:
            raise torch.fx.proxy.TraceError("its forward method switches autocast, which a traced program does not")
        return super().create_node(*arguments, **keywords)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        own = type(m).__module__.startswith(("fastq.nn", "fastq.deploy")) and not isinstance(m, FusedModule)
        return own or hooked(m) or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: Node) -> torch.fx.Proxy:
        return FaithfulProxy(node, self)


@contextmanager
def evaluated(network: nn.Module) -> Iterator[None]:
    """Within it all modules are in eval mode: the program runs in no other."""
    training = [module for module in network.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


class Held:
    """What the modules of ``network`` hold: attributes, what is in their lists, dicts and sets, and tensors that are no parameters.

    A forward method that is traced is run, and what it stores would be proxies.
    """

    def __init__(self, network: nn.Module) -> None:
        self.containers: dict[int, tuple[str, Any, Any]] = {}
        self.tensors: dict[int, tuple[str, torch.Tensor, int, torch.Tensor]] = {}
        for name, module in network.named_modules():
            if not isinstance(module, CodedLayer):  # a leaf, whose own forward method is not run
                self.note(name or "the network itself", vars(module))
            else:
                self.containers[id(vars(module))] = name, vars(module), dict(vars(module))

    def note(self, name: str, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            if not isinstance(value, nn.Parameter) and not value.is_inference() and id(value) not in self.tensors:
                self.tensors[id(value)] = name, value, value._version, value.clone()
        elif isinstance(value, (dict, list, set, deque)) and id(value) not in self.containers:
            self.containers[id(value)] = name, value, copy.copy(value)
            for part in value.values() if isinstance(value, dict) else value:
                self.note(name, part)
        elif type(value) is tuple:
            for part in value:
                self.note(name, part)

    def restore(self) -> str | None:
        """Undo what changed; the name of a module in which something did, or None."""
        changed = None
        for name, value, before in self.containers.values():
            if parts(value) == parts(before):
                continue
            changed = changed or name
            value.clear()
            if isinstance(value, (list, deque)):
                value.extend(before)
            else:
                value.update(before)
        for name, tensor, version, saved in self.tensors.values():
            if tensor._version != version:
                changed = changed or name
                tensor.copy_(saved)
        return changed


def parts(container: Any) -> Any:
    """What is in it, to compare: numbers and strings by value, all else by identity, for the ``==`` of a proxy is a proxy."""
    values = [v if type(v) in (bool, int, float, str) else id(v) for v in container]
    if isinstance(container, dict):
        return values, parts(list(container.values()))
    return set(values) if isinstance(container, set) else values


def built(network: nn.Module) -> tuple[Any, ...]:
    """The modules of ``network`` that its program relies on, each with the names of those in it and with these: not layers and
    other leaves, which run as they are, but dropout, which does not run."""
    found, tracer = [], Tracer(())
    for name, module in network.named_modules():
        if not isinstance(module, CodedLayer):
            if module._modules or isinstance(module, SAME_MODULES) or not tracer.is_leaf_module(module, name):
                found.append((module, tuple(module._modules), tuple(module._modules.values())))
    return tuple(found)


def ready(network: Any, tensors: tuple[Any, ...], given: tuple[Any, ...]) -> bool:
    """Whether the traced program computes what the forward method of ``network`` would, called with ``tensors`` and ``given``.

    Modules may have been put in, taken out or replaced, and dropout may be on. In a trace no argument is None, True or a number,
    and those whose attributes were asked for are no containers.
    """
    for module, names, children in network._fastq_built:
        now = module._modules
        if module.training or len(now) != len(names):
            return False
        if names:
            if tuple(now) != names:
                return False
            for child, other in zip(children, now.values(), strict=True):
                if child is not other:
                    return False
    for value in given:
        if isinstance(value, dict):
            tensors += tuple(value.values())
        elif isinstance(value, (tuple, list)):
            tensors += tuple(value)
        else:
            tensors += (value,)
    for value in tensors:
        if not isinstance(value, torch.Tensor):
            return False
    return True


class Apart(Exception):
    """Why a network is not fused."""


def parameters_of(network: nn.Module) -> list[inspect.Parameter]:
    """Of its class's forward method, without ``self``."""
    try:
        _, *parameters = inspect.signature(type(network).forward).parameters.values()
    except (TypeError, ValueError) as error:
        raise Apart(f"its forward method tells no arguments: {error}") from None
    for p in parameters:
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            raise Apart(f"its forward method takes any number of arguments, {p}")
        if isinstance(p.default, (list, dict, set)):
            raise Apart(f"the default of its argument {p.name!r} is a {type(p.default).__name__}, which may change")
    return parameters


class Verbatim:
    """Stands in a signature for what is printed as ``text``."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def forward_of(base: Any, parameters: list[inspect.Parameter], tensors: set[str], program: Any) -> Any:
    """A forward method with ``parameters``: ``program``, a function of those that have no default, where that computes what the
    forward method of ``base`` would, which runs else. ``tensors``: the parameters that can be no containers."""
    space = {"_fastq_base": base, "_fastq_program": program, "_fastq_ready": ready}
    signature, asked, required, every = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)], [], ["self"], ["self"]
    for p in parameters:
        p = p.replace(annotation=p.empty)
        if p.default is p.empty:
            required.append(p.name)
        else:
            space[f"_fastq_{p.name}"] = p.default
            asked.append(f"{p.name} is _fastq_{p.name}")
            p = p.replace(default=Verbatim(f"_fastq_{p.name}"))
        signature.append(p)
        every.append(f"{p.name}={p.name}" if p.kind is p.KEYWORD_ONLY else p.name)
    parts_of = ("".join(f"{name}, " for name in required[1:] if (name in tensors) == of) for of in (True, False))
    asked.append(f"_fastq_ready(self, {', '.join(f'({names})' for names in parts_of)})")
    text = (
        f"def forward{inspect.Signature(signature)}:\n"
        f"    if {' and '.join(asked)}:\n"
        f"        return _fastq_program({', '.join(required)})\n"
        f"    return _fastq_base.forward({', '.join(every)})\n"
    )
    return defined(text, space, base)


def defined(text: str, space: dict[str, Any], base: type) -> Any:
    """The function ``forward`` of the program ``text``."""
    exec(compile(text, f"<fastq: {base.__name__} fused>", "exec"), space)
    return space["forward"]


class FusedModule:
    """The first base of a fused network's class; ``_fastq_unfused`` is the other one.

    The class belongs to one network. Called, as a ``torch.nn.Sequential`` does to slice itself, it gives a network of the other
    one; a class of its own cannot be made of it.
    """

    _fastq_unfused: type[nn.Module]
    _fastq_built: tuple[Any, ...]

    def __new__(cls, *arguments: Any, **keywords: Any) -> Any:
        return cls._fastq_unfused(*arguments, **keywords)

    def __init_subclass__(cls, **keywords: Any) -> None:  # that of the other base is for the classes that people write
        if "_fastq_unfused" not in vars(cls):
            raise TypeError(
                f"{cls.__name__}: a fused network's class has no subclasses; take that of the network that was converted"
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        new = self._fastq_unfused.__new__(type(self))  # type: ignore[call-overload]
        memo[id(self)] = new
        vars(new).update(copy.deepcopy(vars(self), memo))
        return new

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _rebuilt, (self._fastq_unfused, {name: value for name, value in vars(self).items() if name != "_fastq_built"})

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
        object.__setattr__(network, "__class__", network._fastq_unfused)
    for name in ("_fastq_fusion", "_fastq_built"):
        vars(network).pop(name, None)
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
    """Fuse ``network``, an integer one, in place; where it cannot be traced it stays, and its report says why."""
    unfuse(network)
    if isinstance(network, CodedLayer):
        return report(network, Fusion(reason="it is a single layer"))
    ungroup(network)
    with evaluated(network):
        try:
            return report(network, fused_in_place(network))
        except Apart as why:
            return report(network, Fusion(reason=str(why)))


def fused_in_place(network: nn.Module) -> Fusion:
    """Give ``network`` the class that runs it fused; :class:`Apart` says why not."""
    base: Any = type(network)
    if base.__call__ is not nn.Module.__call__ or "forward" in vars(network):
        raise Apart("its forward method was replaced on the instance, or its class has its own __call__")
    parameters = parameters_of(network)
    graph, tensors = traced(network, parameters)
    made = class_of(base)
    plan = Plan(network, graph)
    plan.write()
    if not plan.done:
        return Fusion(reason="no layer has anything to fuse", apart=plan.apart)
    code = graph.python_code("self")
    made.forward = forward_of(base, parameters, tensors, defined(code.src, dict(code.globals), base))
    vars(network)["_fastq_built"] = built(network)
    object.__setattr__(network, "__class__", made)
    return Fusion(tuple(plan.done), None, plan.apart)


def traced(network: nn.Module, parameters: list[inspect.Parameter]) -> tuple[torch.fx.Graph, set[str]]:
    """What its forward method does, and the arguments that are no containers; the modules hold what they did before."""
    held, before, reason = Held(network), set(vars(network)), None
    tracer = Tracer(parameters)
    try:
        graph = tracer.trace(network)
    except Exception as error:  # whatever a forward method raises when it meets a proxy
        text = " ".join(str(error).split())
        reason = f"torch.fx cannot trace it: {type(error).__name__}: {text:.200}"
    constants = [name for name in vars(network) if name not in before and name.startswith(("_tensor_constant", "_torchbind_obj"))]
    changed = held.restore()
    if reason is None and constants:
        reason = "its forward method makes tensors, which a traced program would hold on to"
    elif reason is None and changed is not None:
        reason = f"its forward method changes what a module holds ({changed}), which a traced program does not"
    if reason is not None:
        raise Apart(reason)
    return graph, tracer.tensors


def class_of(base: Any) -> Any:
    """A subclass of ``base`` for one fused network."""
    if type(base) not in (type, ABCMeta):  # it may register, refuse or call what is made
        raise Apart(f"its class has a metaclass, {type(base).__name__}")
    body = {"_fastq_unfused": base, "__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
    try:
        return type(base)(base.__name__, (FusedModule, base), body)
    except Exception as error:  # whatever a class does when a subclass is made
        text = " ".join(str(error).split())
        raise Apart(f"its class has no subclass: {type(error).__name__}: {text:.200}") from None


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
        seen = {self.module(n) for n in calls if not hooked(self.modules[str(n.target)])}  # by whichever of their names
        self.apart = tuple(name for name, m in self.modules.items() if isinstance(m, IntegerLayer) and m not in seen)
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
            return any(
                getattr(m, "inplace", False) or hooked(m) or not type(m).__module__.startswith(("torch.nn", "fastq."))
                for m in module.modules()
            )
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
            return node.target in MOVING_METHODS and not any(
                isinstance(a, torch.dtype) for a in (*node.args, *node.kwargs.values())
            )
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
