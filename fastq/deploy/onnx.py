"""``fastq.export_onnx``: a converted network as an ONNX file of QuantizeLinear and DequantizeLinear, for other runtimes.

The forward method of the network that is not fused is traced (:mod:`fastq.deploy.fusion`) and each node becomes operators of ONNX.
Shapes are not derived but seen: the network runs on the example, and on one with a sample more where the batch is dynamic. What
has the same size in both is written as it is, what has not is the batch. So ``x.view(x.size(0), -1)`` needs no arithmetic of shapes
in the file. An operation in place gives its name to a new tensor, which is right as long as no other view of the old one is read
later; that is refused.
"""

from __future__ import annotations

import copy
import numbers
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.fx
from torch import nn

from .. import container
from ..nn.batch_norm import AFFINE, affine_of
from ..nn.layers import QUANTIZED
from .conversion import input_coding, padding_of, quantizer_of
from .fusion import Apart, hooked, parameters_of, traced, unfuse, ungroup
from .layers import (
    AffineNorm1d,
    AffineNorm2d,
    CodedLayer,
    Codes,
    IntegerConv,
    IntegerLinear,
    LookupConv,
    LookupLayer,
    LookupLinear,
    WeightOnlyConv,
    WeightOnlyLinear,
)
from .onnx_functions import FUNCTIONS, TORCH_MODULES, Refused, called

if TYPE_CHECKING:
    import onnx

__all__ = ["export_onnx"]

#: The first with int4 and blocked DequantizeLinear, and the file format that came with it.
OPSET, IR_VERSION = 21, 10
Node = torch.fx.Node
Array = np.ndarray[Any, Any]


def export_onnx(
    model: nn.Module, path: str | os.PathLike[str], example: torch.Tensor | Sequence[torch.Tensor], *,
    dynamic_batch: bool = True, int4: bool = True,
) -> int:  # fmt: skip
    """Write the integer network ``model``, a result of :func:`fastq.convert`, fused or not, as an ONNX file (opset 21, IR version
    10); returns the bytes written. Needs the package ``onnx`` (``pip install 'fastq[onnx]'``).

    What a layer becomes, with ``Q`` QuantizeLinear, ``DQ`` DequantizeLinear, ``X`` codes of the input and ``W`` of the weight::

        integer      y = product(DQ(Q(Clip(x))), DQ(W)) + bias            DQ(X) = s_x * (X - z_x)       DQ(W) = s_w * (W - z_w)
        weight-only  y = product(x, DQ(W)) + bias
        look-up      y = product(x', Gather(levels, W)) + bias            x' = x, or Gather(input_levels, Q(...))
        batch norm   y = x * multiplier + addend                          product: MatMul, Gemm or Conv

    ``W`` is an int4 or uint4 tensor in 2, 3 and 4 bits, else int8 or uint8 (so it always is without ``int4``), with ``s_w`` per
    tensor, per channel or per group (DQ's ``block_size``). ``X`` is int8 where the range of the codes fits it, else uint8; Q
    saturates at the ends of the type, and Clip, to ``s_x`` times the lowest and highest code, is there where the range is narrower.
    Grids that are not multiples of a step keep their codes, and what they lack is added in float32: an offset is taken from ``x``
    before Q and added after DQ, one of the weights is added after DQ, and odd grids and intervals (QIL) find their codes by Sub,
    Div, Clip and Mul before a Q of scale 1. Weights by look-up have 4-bit indices where they fit, else 8-bit ones.

    Biases stand in an Add and are not the third input of Conv, and batch norms are a Mul and an Add: onnxruntime rounds the first
    to multiples of ``s_x * s_w`` where it fuses the layer, and would lose the bits of the second. Other layers, which stayed in
    floating point, and functions become their float32 operators: activations, pools, reshapes, means, sums of branches.

    Exact: the codes of the weights, and ``X`` wherever the input has the same bits, for a runtime that divides by ``s_x`` and
    rounds half to even, as ONNX asks. Not exact: the sum, which fastq has in int32 and a runtime may have in float32 of products
    ``DQ(X) * DQ(W)``. Its rounding, about ``sqrt(K) * 2**-24`` of the largest partial sum of K products, moves a code of the next
    layer where that lies so near a tie: none of 2.1 million in each of five networks of 2 to 8 bits for the 450 test images of the
    demo, in onnxruntime 1.31 on a CPU, whose logits were within 5e-7. It has float32 sums for most of it, and by default rounds the
    input of weight-only linear layers to int8, block by block, an error of a half percent; not so with the session's option
    ``session.qdq_matmulnbits_accuracy_level`` at ``"1"``. OpenVINO 2026.4 multiplies integers, 4-bit weights without ``int4``, and
    gave the very logits, with ``INFERENCE_PRECISION_HINT`` at ``f32``: else it rounds what lies between to bfloat16 where the CPU
    has that. A sample that holds NaN is not made NaN whole.

    Args:
        model: the network, in float32. It stays as it is.
        path: of the file; it is written beside it and then moved there.
        example: what its forward method takes without defaults: a float32 (or int64) tensor, or a sequence of them.
        dynamic_batch: whether axis 0 of every input may have any size from 1; else all shapes are those of ``example``.
        int4: whether weights of 2 to 4 bits are int4 tensors. As int8 they take twice the space, and runtimes whose integer
            products know no int4 have those for them.

    Inputs have the names of the forward method's arguments; outputs are ``output``, ``output_0``, ... of a tuple or list, or the
    keys of a dict. Sizes that follow the batch are ``batch`` where they are equal to it, and have names of their own elsewhere.

    Raises:
        ImportError: ``onnx`` is not installed.
        TypeError: ``model`` is no ``torch.nn.Module``, ``example`` no tensors of these dtypes, ``dynamic_batch`` or
            ``int4`` no bool.
        ValueError: ``model`` has no layer of :func:`fastq.convert`, cannot be traced, or does not run on ``example``; a layer or
            function has no form in ONNX here, a hook, or another dtype; an output has the name of an input. The message names it.
        OSError: the file cannot be written.
    """
    op = "export_onnx"
    try:
        import onnx
    except ImportError as error:
        raise ImportError(f"{op}: needs the package onnx ({error}); pip install onnx, or pip install 'fastq[onnx]'") from None
    if not isinstance(model, nn.Module):
        raise TypeError(f"{op}: model must be a torch.nn.Module, a result of fastq.convert, got {type(model).__name__}")
    for name, value in (("dynamic_batch", dynamic_batch), ("int4", int4)):
        if not isinstance(value, bool):
            raise TypeError(f"{op}: {name} must be a bool, got {value!r:.60}")
    examples = [example] if isinstance(example, torch.Tensor) else example
    if not isinstance(examples, (tuple, list)) or not examples:
        raise TypeError(f"{op}: example must be a tensor or a sequence of tensors, got {example!r:.60}")
    for i, t in enumerate(examples):
        if not isinstance(t, torch.Tensor) or t.dtype not in (torch.float32, torch.int64):
            got = t.dtype if isinstance(t, torch.Tensor) else type(t).__name__
            raise TypeError(f"{op}: example {i} must be a tensor of float32 (or int64), got {got}")
    if not any(isinstance(module, CodedLayer) for module in model.modules()):
        raise ValueError(f"{op}: model has no integer layer; give the network that fastq.convert returns")
    with torch.inference_mode(False), torch.no_grad():  # tensors of the inference mode do not count what changes them in place
        inputs = [t.detach().cpu().clone() for t in examples]
        network = Network(model, inputs, dynamic_batch, int4)
        made = network.export()
    try:
        onnx.checker.check_model(made, full_check=True)
        data = made.SerializeToString()
    except (ValueError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ValueError(f"{op}: the network makes no valid file: {' '.join(str(error).split()):.300}") from None
    container.put(path, data)
    return len(data)


class Network:
    """The traced network, what its nodes gave for the examples, and the graph that is made of it."""

    def __init__(self, model: nn.Module, inputs: list[torch.Tensor], dynamic_batch: bool, int4: bool) -> None:
        self.network = copied(model)
        if hooked(self.network):
            raise ValueError("export_onnx: the model itself has forward hooks, which a file does not run")
        self.modules = dict(self.network.named_modules(remove_duplicate=False))
        self.dynamic, self.int4 = dynamic_batch, int4
        try:
            self.graph = traced(self.network, parameters_of(self.network))[0]
        except Apart as why:
            raise ValueError(f"export_onnx: {why}") from None
        takes = [node for node in self.graph.nodes if node.op == "placeholder"]
        if len(takes) != len(inputs):
            names = ", ".join(str(node.target) for node in takes)
            raise ValueError(f"export_onnx: the network takes {len(takes)} arguments ({names}), got {len(inputs)} examples")
        self.changed: dict[Node, list[Node]] = {}
        self.seen = [self.run(inputs)]
        if dynamic_batch:
            if any(t.dim() == 0 or len(t) != len(inputs[0]) or len(t) == 0 for t in inputs):
                shapes = ", ".join(str(tuple(t.shape)) for t in inputs)
                raise ValueError(f"export_onnx: a dynamic batch needs examples of one size along axis 0, got {shapes}")
            self.seen.append(self.run([torch.cat([t, t[:1]]) for t in inputs]))
        self.batches = [len(inputs[0]), len(inputs[0]) + 1] if dynamic_batch else []
        self.names: dict[Node, str] = {}
        self.used: set[str] = set()
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.place = {node: i for i, node in enumerate(self.graph.nodes)}

    def run(self, inputs: list[torch.Tensor]) -> dict[Node, Any]:
        """What every node gives."""
        runner = Recording(self.network, self.graph)
        try:
            runner.run(*(t.clone() for t in inputs))
        except Exception as error:  # whatever a network raises for a shape that it does not take
            text = " ".join(str(error).split())
            shapes = ", ".join(str(tuple(t.shape)) for t in inputs)
            raise ValueError(f"export_onnx: the network does not run on {shapes}: {type(error).__name__}: {text:.300}") from None
        self.changed |= runner.changed
        return runner.seen

    # ---- what the examples tell

    def value(self, node: Node) -> Any:
        return self.seen[0][node]

    def is_tensor(self, node: Any) -> bool:
        return isinstance(node, Node) and isinstance(self.value(node), torch.Tensor)

    def dim(self, node: Node) -> int:
        return int(self.value(node).dim())

    def sizes(self, node: Node) -> list[int]:
        """The shape of a node's tensor, with -1 for what follows the batch."""
        shapes = [tuple(seen[node].shape) for seen in self.seen]
        if len({len(shape) for shape in shapes}) > 1:
            raise Refused("the rank of its result depends on the batch")
        return [sizes[0] if len(set(sizes)) == 1 else -1 for sizes in zip(*shapes, strict=True)]

    def plain(self, argument: Any) -> Any:
        """An argument that is no tensor: a number, or numbers in a tuple; ``Refused`` where it depends on the batch."""
        if isinstance(argument, (tuple, list)):
            return tuple(self.plain(part) for part in argument)
        if isinstance(argument, slice):
            return slice(*(self.plain(part) for part in (argument.start, argument.stop, argument.step)))
        if not isinstance(argument, Node):
            return argument
        first, *others = (seen[argument] for seen in self.seen)
        if isinstance(first, torch.Tensor):
            raise Refused("a tensor stands where a number is needed")
        if any(other != first for other in others):
            raise Refused("it computes with the size of the batch")
        return first

    # ---- what is written

    def fresh(self, name: str) -> str:
        """``name``, or it with a number, where it is taken."""
        found, i = name, 1
        while found in self.used:
            found, i = f"{name}_{i}", i + 1
        self.used.add(found)
        return found

    def add(self, kind: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """A node of ``kind``, and the name of its output, which begins with ``name``."""
        from onnx import helper

        out = self.fresh(f"{name}/{kind}")
        self.nodes.append(helper.make_node(kind, list(inputs), [out], name=out, **attributes))
        return out

    def constant(self, name: str, value: Any, dtype: str | None = None) -> str:
        """The name of an initializer: ``name``, or it with a number where another one has that. ``value``: a tensor of float32 or
        integers, an array, or numbers; ``dtype``: NumPy's name of another one for integers, or int4 or uint4, whose numbers lie two
        in a byte."""
        from onnx import TensorProto, helper, numpy_helper

        if isinstance(value, torch.Tensor):
            if value.is_floating_point() and value.dtype != torch.float32:
                raise Refused(f"{name} is {value.dtype}; export the network in float32")
            value = value.detach().contiguous().numpy()
        if dtype in ("int4", "uint4"):
            array = np.asarray(value)
            nibbles = array.reshape(-1).astype(np.uint8) & 15
            nibbles = np.append(nibbles, np.zeros(nibbles.size % 2, np.uint8))
            kind = TensorProto.INT4 if dtype == "int4" else TensorProto.UINT4
            made = helper.make_tensor(name, kind, array.shape, (nibbles[::2] | nibbles[1::2] << 4).tobytes(), raw=True)
        else:
            array = np.asarray(value, dtype) if dtype else np.asarray(value)
            made = numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
        if self.constants.get(name) != made:
            made.name = self.fresh(name)
            self.constants[made.name] = made
        return str(made.name)

    def number(self, value: Any, dtype: str = "float32") -> str:
        """An initializer of numbers that belong to no layer."""
        array = np.asarray(value, dtype)
        digits = "x".join(map(str, array.reshape(-1).tolist())) or "none"
        return self.constant(f"{dtype}{'' if array.ndim == 0 else list(array.shape)}:{digits}", array)

    def tensor(self, argument: Any, like: Node | None = None) -> str:
        """The name of a node's tensor, or of a constant of the dtype that ``like`` has."""
        if self.is_tensor(argument):
            return self.names[argument]
        value = self.plain(argument)
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise Refused(f"an argument is {value!r:.60}, where a tensor or a number is needed")
        dtype = torch.float32 if like is None else self.value(like).dtype
        return self.number(value, str(dtype).removeprefix("torch."))

    # ---- the walk

    def export(self) -> onnx.ModelProto:
        from onnx import helper

        from .. import __version__

        inputs: list[Any] = []
        outputs: list[Any] = []
        returned: list[tuple[str, Node]] = []
        for node in self.graph.nodes:
            if node.op == "placeholder":
                self.names[node] = self.fresh(str(node.target))
                inputs.append(self.declared(self.names[node], node))
            elif node.op == "output":  # its names are its user's: what is written later gives way
                returned = self.returned(node.args[0])
        for node in self.graph.nodes:
            if node.op == "output":
                for own, result in returned:
                    self.nodes.append(helper.make_node("Identity", [self.names[result]], [own], name=f"{own}/Identity"))
                    outputs.append(self.declared(own, result))
            elif node.op != "placeholder":
                try:
                    self.walk(node)
                except (Refused, TypeError, ValueError) as why:
                    what = f"layer {self.label(node)}" if node.op == "call_module" else f"{node.name}, a call of {called(node)}"
                    raise ValueError(f"export_onnx: {what}: {why}") from None
        graph = helper.make_graph(self.nodes, type(self.network).__name__, inputs, outputs, list(self.constants.values()))
        opset = helper.make_opsetid("", OPSET)
        return helper.make_model(
            graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="fastq", producer_version=__version__
        )

    def returned(self, value: Any) -> list[tuple[str, Node]]:
        """The outputs by their names in the file."""
        found = []
        for name, result in results(value):
            if not self.is_tensor(result):
                raise ValueError(f"export_onnx: the network returns {result!r:.60}, which is no tensor")
            if isinstance(value, dict) and name in self.used:
                raise ValueError(f"export_onnx: the output {name!r:.60} has the name of an input or of another output")
            found.append((self.fresh(name), result))
        return found

    def declared(self, name: str, node: Node) -> Any:
        """An input or output of the graph."""
        from onnx import helper

        dtype = self.value(node).dtype
        if dtype not in (torch.float32, torch.int64):
            raise ValueError(f"export_onnx: {name} is {dtype}; export the network in float32")
        shapes = [seen[node].shape for seen in self.seen]
        sizes = [
            size if size >= 0 else "batch" if [shape[axis] for shape in shapes] == self.batches else f"{name}_axis_{axis}"
            for axis, size in enumerate(self.sizes(node))
        ]
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(str(dtype).removeprefix("torch.")))
        return helper.make_tensor_value_info(name, kind, sizes)

    def label(self, node: Node) -> str:
        return "(the model itself)" if isinstance(self.network, Alone) else str(node.target)

    def walk(self, node: Node) -> None:
        """Write what ``node`` computes, if that is a tensor."""
        changed = self.changed.get(node, [])
        if not self.is_tensor(node):
            if changed:
                raise Refused("it changes a tensor in place and gives none")
            return  # a number, which its users have of the examples, or parts of a tensor, which they take themselves
        if (dtype := self.value(node).dtype) not in (torch.float32, torch.int64):
            raise Refused(f"it gives {dtype}; export the network in float32")
        self.names[node] = self.emit(node)
        for old in changed:
            self.rename(old, node)

    def rename(self, old: Node, new: Node) -> None:
        """What was changed in place has the name of the tensor that it became."""
        before = self.value(old)
        for other in list(self.names):
            t = self.value(other)
            if t.untyped_storage().data_ptr() != before.untyped_storage().data_ptr():
                continue
            if (t.shape, t.stride(), t.storage_offset()) == (before.shape, before.stride(), before.storage_offset()):
                self.names[other] = self.names[new]
            elif any(self.place[user] > self.place[new] for user in other.users):
                raise Refused(f"it changes in place what {other.name}, which is used later, is another view of")

    def emit(self, node: Node) -> str:
        """Write a node; the name of its tensor."""
        if node.op == "get_attr":
            return self.constant(str(node.target), self.value(node))
        if node.op == "call_module":
            module = self.modules[str(node.target)]
            if hooked(module):
                raise Refused("it has forward hooks, which a file does not run")
            if (write := MODULES.get(type(module))) is None:
                raise Refused(f"a {type(module).__name__} has no form in ONNX here")
            given = node.args[0] if node.args else node.kwargs.get("input")
            if len(node.args) + len(node.kwargs) != 1 or not isinstance(given, Node) or not self.is_tensor(given):
                raise Refused("it is called with more than one tensor")
            return write(self, node, given, module)
        if (function := FUNCTIONS.get(node.target)) is None:
            raise Refused("it has no form in ONNX here")
        return function(self, node, *node.args, **{name: value for name, value in node.kwargs.items() if name != "inplace"})

    # ---- parts that many nodes have

    def reshaped(self, node: Node, x: str) -> str:
        """``x`` in the shape of what ``node`` gives."""
        sizes = self.sizes(node)
        if sizes.count(-1) > 1:
            raise Refused("more than one size of its result depends on the batch")
        return self.add("Reshape", [x, self.number(sizes, "int64")], node.name)

    def affine(self, name: str, x: str, multiplier: torch.Tensor, addend: torch.Tensor, dims: int) -> str:
        """``x * multiplier + addend`` along axis 1 of ``dims``."""
        shape = (-1, *(1,) * (dims - 2))
        x = self.add("Mul", [x, self.constant(f"{name}.multiplier", multiplier.view(shape))], name)
        return self.add("Add", [x, self.constant(f"{name}.addend", addend.view(shape))], name)

    def rows(self, given: Node, name: str) -> str:
        """The input of a Gemm: its samples as the rows of a matrix. Before they are quantized: onnxruntime's optimizations refuse a
        Reshape between DequantizeLinear and Gemm."""
        x = self.names[given]
        if self.dim(given) == 2:
            return x
        return self.add("Reshape", [x, self.number([-1, int(self.value(given).shape[-1])], "int64")], name)

    def product(self, node: Node, x: str, weight: str, name: str, bias: torch.Tensor | None, transposed: bool) -> str:
        """A linear layer's. ``weight``: ``(K, N)`` where it is ``transposed``, for MatMul, else ``(N, K)``, for Gemm, whose ``x``
        is of :meth:`rows`.

        The weight of a Gemm is one that onnxruntime leaves as it is. In a MatMul it would take one of codes, whose other factor is
        no DequantizeLinear, for that of a weight-only layer, whose input it may round by itself; and 8-bit codes with a scale per
        group for ones with a scale per channel, which then fails as it runs.
        """
        if transposed:
            y = self.add("MatMul", [x, weight], name)
        else:
            y = self.add("Gemm", [x, weight], name, transB=1)
            y = y if self.dim(node) == 2 else self.reshaped(node, y)
        return y if bias is None else self.add("Add", [y, self.constant(f"{name}.bias", bias)], name)

    def convolution(self, x: str, given: Node, weight: str, name: str, layer: Any, padding: Sequence[int]) -> str:
        """A convolution; ``padding``: (left, right[, top, bottom]); ``layer`` has the other numbers."""
        dims = len(layer.stride)
        if self.dim(given) != dims + 2:
            raise Refused(f"it takes a single sample of {self.dim(given)} dimensions; give the network a batch")
        pads = [*padding[-2::-2], *padding[::-2]]  # of every dimension the first, then of every one the last
        if layer.padding_mode != "zeros" and any(pads):
            whole = [0, 0, *pads[:dims], 0, 0, *pads[dims:]]
            x = self.add("Pad", [x, self.number(whole, "int64")], name, mode=PAD_MODES[layer.padding_mode])
            pads = [0] * len(pads)
        numbers_of = {"strides": list(layer.stride), "dilations": list(layer.dilation), "pads": pads, "group": layer.groups}
        y = self.add("Conv", [x, weight], name, **numbers_of)
        if layer.bias is None:
            return y
        return self.add("Add", [y, self.constant(f"{name}.bias", layer.bias.view(-1, *(1,) * dims))], name)

    # ---- codes of an input

    def codes(self, name: str, x: str, source: Source) -> Coded:
        """The codes of ``x``, exactly those of :meth:`fastq.deploy.CodedLayer.quantize`."""
        c, t = source.codes, source.tensors
        step, offset, lower, width = (t.get(f"input_{part}") for part in ("step", "offset", "lower", "width"))
        if step is None or step.dtype != torch.float32:
            raise Refused(f"the step of its input is {None if step is None else step.dtype}; export the network in float32")
        int8 = -128 <= c.qmin and c.qmax <= 127
        dtype, zero = ("int8", 0) if int8 else ("uint8", -c.qmin)  # int8 where it can be: TensorRT has no other
        low, high = np.iinfo(dtype).min - zero, np.iinfo(dtype).max - zero
        scale = self.constant(f"{name}.input_step", step.reshape(()))
        if lower is None and not c.odd and c.qmin <= 0 <= c.qmax:
            if offset is not None:
                x = self.add("Sub", [x, self.constant(f"{name}.input_offset", offset.reshape(()))], name)
            ends = [self.bound(name, "lowest", step, c.qmin) if c.qmin > low else ""]
            ends += [self.bound(name, "highest", step, c.qmax)] if c.qmax < high else []
            if any(ends):
                x = self.add("Clip", [x, *ends], name)
            point = self.number(zero, dtype)
            return Coded(self.add("QuantizeLinear", [x, scale, point], name), zero, dtype, scale)
        if lower is not None and width is not None:
            v = self.add("Abs", [x], name) if source.magnitude else x
            v = self.add("Sub", [v, self.constant(f"{name}.input_lower", lower.reshape(()))], name)
            v = self.add("Div", [v, self.constant(f"{name}.input_width", width.reshape(()))], name)
            v = self.add("Clip", [v, self.number(0), self.number(1)], name)
            v = self.add("Mul", [v, self.number(c.qmax if source.magnitude else c.qmax - c.qmin)], name)
            v, first = self.add("Round", [v], name), 0 if source.magnitude else c.qmin
            v = self.add("Mul", [v, self.add("Sign", [x], name)], name) if source.magnitude else v
        else:
            v = x if offset is None else self.add("Sub", [x, self.constant(f"{name}.input_offset", offset.reshape(()))], name)
            v, first = self.add("Div", [v, scale], name), 0
            if c.odd:
                ends = [self.number(2 * c.qmin + 1), self.number(2 * c.qmax + 1)]
                v = self.add("Sub", [self.add("Clip", [v, *ends], name), ends[0]], name)
                v, first = self.add("Mul", [v, self.number(0.5)], name), c.qmin
            else:
                v = self.add("Clip", [v, self.number(c.qmin), self.number(c.qmax)], name)
            v = self.add("Round", [v], name)
        v = self.add("Add", [v, self.number(first + zero)], name) if first + zero else v
        return Coded(self.add("QuantizeLinear", [v, self.number(1), self.number(0, dtype)], name), zero, dtype, scale)

    def bound(self, name: str, end: str, step: torch.Tensor, code: int) -> str:
        """What a code stands for, in float32. Divided by the step that is the code and at most an ulp, so that it rounds to it."""
        return self.constant(f"{name}.input_{end}", (step * code).reshape(()))

    def quantized(self, name: str, x: str, source: Source) -> str:
        """The numbers that the codes of ``x`` stand for."""
        coded, c = self.codes(name, x, source), source.codes
        step = self.value_of(source, "step")
        whole = np.iinfo(coded.dtype)
        point = coded.zero if whole.min <= coded.zero <= whole.max else 0
        scale = coded.step
        if c.odd:
            scale = self.constant(f"{name}.input_twice_step", np.float32(2 * step))
        y = self.add("DequantizeLinear", [coded.name, scale, self.number(point, coded.dtype)], name)
        rest = step * (c.factor * (point - coded.zero) + c.odd) + self.value_of(source, "offset")
        return self.add("Add", [y, self.constant(f"{name}.input_addend", np.float32(rest))], name) if rest else y

    def value_of(self, source: Source, name: str) -> float:
        t = source.tensors.get(f"input_{name}")
        return 0.0 if t is None else float(t)

    # ---- weights

    def dequantized(self, name: str, codes: Array, dtype: str, scale: Array, zero: Array, **axis: int) -> str:
        """``scale * (codes - zero)``."""
        parts = [self.constant(f"{name}.weight", codes, dtype), self.constant(f"{name}.weight_scale", scale)]
        parts.append(self.constant(f"{name}.weight_zero", zero, dtype))
        return self.add("DequantizeLinear", parts, f"{name}.weight", **axis)

    def stored(self, bits: int, signed: bool) -> str:
        """The type of a weight's codes."""
        return f"{'' if signed else 'u'}int{4 if bits <= 4 and self.int4 else 8}"

    def packed_weight(self, name: str, layer: Any, transposed: bool = True) -> str:
        """That of a plain layer, of a linear one ``(K, N)`` where it is ``transposed``, else ``(N, K)``."""
        w = layer.weight
        codes, scale = w.unpack().numpy(), w.scale.numpy()
        zero = np.zeros_like(scale, np.int64) if w.zero_point is None else w.zero_point.numpy()
        dtype = self.stored(w.bits, w.signed)
        linear = len(w.shape) == 2
        transposed = transposed and linear
        codes = codes.T if transposed else codes if linear else codes.reshape(kernel_shape(layer, w.shape))
        if w.group_size is not None:
            scale, zero = (scale.T, zero.T) if transposed else (scale, zero)
            return self.dequantized(name, codes, dtype, scale, zero, axis=0 if transposed else 1, block_size=w.group_size)
        if scale.size == 1:
            return self.dequantized(name, codes, dtype, scale.reshape(()), zero.reshape(()))
        return self.dequantized(name, codes, dtype, scale, zero, axis=1 if transposed else 0)

    def offset_weight(self, name: str, layer: Any) -> str:
        """That of an integer layer that is not plain, ``(N, K)`` of a linear one: its steps, and what is added to it, are the
        layer's products of those with the step of the input, divided by that."""
        w, step = layer.weight, float(layer.input_step)
        dtype = self.stored(w.bits, w.signed)
        codes, stored = w.unpack().numpy(), 0 if w.zero_point is None else int(w.zero_point)
        if layer.scale.dtype != torch.float32:
            raise Refused(f"its scale is {layer.scale.dtype}; export the network in float32")
        scale = layer.scale.double().numpy() / step
        # an integer is factor * (code - stored) + constant; a constant of that many factors moves the zero-point
        point, constant = stored - layer.weights.zero, float(layer.weights.odd)
        whole = (-8, 7) if dtype == "int4" else (0, 15) if dtype == "uint4" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        if not whole[0] <= point <= whole[1]:
            point, constant = stored, float(layer.weights.constant)
        rest = scale * constant
        if layer.weight_shift is not None:
            rest = rest + layer.weight_shift.double().numpy() / step
        scale, rest = (scale * layer.weights.factor).astype(np.float32), rest.astype(np.float32)
        zero, axis = np.full_like(scale, point, np.int64), {"axis": 0}
        group = getattr(layer, "group_size", None)
        if group:
            codes = codes.reshape(scale.shape[0], -1, group).transpose(1, 0, 2)
            codes, scale, zero, rest = codes.reshape(len(codes), -1), scale.T, zero.T, rest.T
            axis = {"axis": 1, "block_size": group}
        else:
            codes = codes if codes.ndim == 2 else codes.reshape(kernel_shape(layer, w.shape))
            if scale.size == 1:
                scale, zero, axis = scale.reshape(()), zero.reshape(()), {}
        y = self.dequantized(name, codes, dtype, scale, zero, **axis)
        if not rest.any():
            return y
        if group:
            y = self.add("Reshape", [y, self.number([len(codes), -1, group], "int64")], f"{name}.weight")
            y = self.add("Add", [y, self.constant(f"{name}.weight_addend", rest[..., None])], f"{name}.weight")
            return self.add("Reshape", [y, self.number(codes.shape, "int64")], f"{name}.weight")
        rest = rest if rest.size == 1 else rest.reshape(-1, *(1,) * (codes.ndim - 1))
        return self.add("Add", [y, self.constant(f"{name}.weight_addend", rest)], f"{name}.weight")

    def looked_up_weight(self, name: str, layer: LookupLayer) -> str:
        """``levels[codes]``, of the shape of the codes."""
        from onnx import TensorProto

        levels, codes = layer.levels.float(), layer.codes.numpy()
        rows = len(levels) if levels.dim() == 2 else 1
        if rows > 1:
            codes = codes.reshape(rows, -1)
        indices = self.constant(f"{name}.weight", codes, self.stored((levels.shape[-1] - 1).bit_length(), False))
        indices = self.add("Cast", [indices], f"{name}.weight", to=TensorProto.INT32)
        if rows == 1:
            return self.add("Gather", [self.constant(f"{name}.levels", levels.reshape(-1)), indices], f"{name}.weight")
        y = self.add("GatherElements", [self.constant(f"{name}.levels", levels), indices], f"{name}.weight", axis=1)
        return self.add("Reshape", [y, self.number(layer.codes.shape, "int64")], f"{name}.weight")

    def looked_up(self, name: str, x: str, layer: LookupLayer) -> str:
        """The input of a look-up layer: the very numbers that its quantizer gives."""
        from onnx import TensorProto

        if layer.inputs is None or layer.input_levels is None:
            return x
        coded = self.codes(name, x, Source.of(layer))
        index = self.add("Cast", [coded.name], name, to=TensorProto.INT32)
        if first := coded.zero + layer.inputs.qmin:
            index = self.add("Sub", [index, self.number(first, "int32")], name)
        return self.add("Gather", [self.constant(f"{name}.input_levels", layer.input_levels), index], name)


PAD_MODES = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}


class Source(NamedTuple):
    """The grid of an input: its codes, tensors by the names of :class:`fastq.deploy.CodedLayer`, and ``magnitude``."""

    codes: Codes
    tensors: dict[str, torch.Tensor | None]
    magnitude: bool

    @classmethod
    def of(cls, layer: Any) -> Source:
        return cls(layer.inputs, {name: getattr(layer, name) for name in CodedLayer.buffer_names}, layer.magnitude)


class Coded(NamedTuple):
    """Codes in the file: what is stored of a code is ``code + zero``, of ``dtype``. ``step``: the name of that of the grid."""

    name: str
    zero: int
    dtype: str
    step: str


class Alone(nn.Module):
    """A network of one layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, input: torch.Tensor) -> Any:
        return self.layer(input)


class Recording(torch.fx.Interpreter):
    """Runs a graph; ``seen``: what every node gave, ``changed``: the inputs that a node changed in place."""

    def __init__(self, network: nn.Module, graph: torch.fx.Graph) -> None:
        super().__init__(network, garbage_collect_values=False, graph=graph)
        self.extra_traceback = False  # the message says what does not fit, and names of nodes tell a user nothing
        self.seen: dict[Node, Any] = {}
        self.changed: dict[Node, list[Node]] = {}

    def run_node(self, n: Node) -> Any:
        given = [node for node in n.all_input_nodes if isinstance(self.seen[node], torch.Tensor)]
        versions = [self.seen[node]._version for node in given]
        self.seen[n] = super().run_node(n)
        self.changed[n] = [node for node, version in zip(given, versions, strict=True) if self.seen[node]._version != version]
        return self.seen[n]


def copied(model: nn.Module) -> nn.Module:
    """A copy of ``model`` on the CPU, in eval mode, with its own forward method."""
    network = unfuse(copy.deepcopy(model)).cpu().eval()
    network = Alone(network).eval() if isinstance(network, CodedLayer) else network
    ungroup(network)
    return network


def results(value: Any) -> list[tuple[str, Any]]:
    """What a network returns, by name."""
    if isinstance(value, dict):
        return [(str(name), part) for name, part in value.items()]
    if isinstance(value, (tuple, list)):
        return [(f"output_{i}", part) for i, part in enumerate(value)]
    return [("output", value)]


def kernel_shape(layer: Any, shape: Sequence[int]) -> tuple[int, ...]:
    """Of a convolution's weight, whose layer has that of an image."""
    return tuple(shape) if layer.dims == 2 else (*shape[:2], *shape[3:])


# ---- layers of fastq, and those that stayed in floating point


def integer_linear(n: Network, node: Node, x: Node, layer: Any) -> str:
    name = str(node.target)
    transposed = layer.plain and not layer.group_size
    codes = n.quantized(name, n.names[x] if transposed else n.rows(x, name), Source.of(layer))
    weight = n.packed_weight(name, layer, transposed) if layer.plain else n.offset_weight(name, layer)
    return n.product(node, codes, weight, name, layer.bias, transposed)


def integer_conv(n: Network, node: Node, x: Node, layer: Any) -> str:
    name = str(node.target)
    given, padding = n.names[x], layer.padding
    codes = n.quantized(name, given, Source.of(layer))
    weight = n.packed_weight(name, layer) if layer.plain else n.offset_weight(name, layer)
    return n.convolution(codes, x, weight, name, layer, padding)


def weight_only_linear(n: Network, node: Node, x: Node, layer: Any) -> str:
    name = str(node.target)
    return n.product(node, n.names[x], n.packed_weight(name, layer), name, layer.bias, True)


def weight_only_conv(n: Network, node: Node, x: Node, layer: Any) -> str:
    name = str(node.target)
    return n.convolution(n.names[x], x, n.packed_weight(name, layer), name, layer, layer.padding)


def lookup_linear(n: Network, node: Node, x: Node, layer: Any) -> str:
    name = str(node.target)
    return n.product(node, n.looked_up(name, n.rows(x, name), layer), n.looked_up_weight(name, layer), name, layer.bias, False)


def lookup_conv(n: Network, node: Node, x: Node, layer: Any) -> str:
    name = str(node.target)
    return n.convolution(n.looked_up(name, n.names[x], layer), x, n.looked_up_weight(name, layer), name, layer, layer.copied)


def floating(n: Network, node: Node, x: Node, layer: Any) -> str:
    """A layer that stayed what it was: with the numbers that its quantizers, if it has enabled ones, give."""
    name = str(node.target)
    source, quantizer = quantizer_of("input", layer), quantizer_of("weight", layer)
    given, weight = n.rows(x, name) if isinstance(layer, nn.Linear) else n.names[x], layer.weight
    if source is not None:
        grid, codes, tensors = input_coding(source)
        given = n.quantized(name, given, Source(codes, tensors, grid.magnitude))
    if quantizer is not None:
        weight = quantizer(weight)
    stored = n.constant(f"{name}.weight", weight)
    if isinstance(layer, nn.Linear):
        return n.product(node, given, stored, name, layer.bias, False)
    return n.convolution(given, x, stored, name, layer, padding_of(layer))


def affine_norm(n: Network, node: Node, x: Node, norm: Any) -> str:
    return n.affine(str(node.target), n.names[x], norm.multiplier, norm.addend, n.dim(x))


def batch_norm(n: Network, node: Node, x: Node, norm: Any) -> str:
    return n.affine(str(node.target), n.names[x], *affine_of(norm), n.dim(x))


MODULES: dict[type[nn.Module], Callable[..., str]] = TORCH_MODULES | {
    IntegerLinear: integer_linear, IntegerConv: integer_conv, WeightOnlyLinear: weight_only_linear,
    WeightOnlyConv: weight_only_conv, LookupLinear: lookup_linear, LookupConv: lookup_conv,
    **dict.fromkeys((nn.Linear, nn.Conv1d, nn.Conv2d, *QUANTIZED.values()), floating),
    AffineNorm1d: affine_norm, AffineNorm2d: affine_norm,
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, *AFFINE.values()), batch_norm),
}  # fmt: skip
