"""Who computes the products of ``products.py``: fastq's kernels, and what else there is on this machine.

A provider is given a weight as codes with scales and builds a function of the input; it says why it cannot. What it computes is
checked by ``integer.py`` before it is timed. Those from packages that are not requirements are here for machines that have them.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.metadata
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy
import torch
import torch.nn.functional as F

import fastq
from fastq import dispatch
from fastq.engine import table

from .products import GROUP, Kind, Layer, problem

__all__ = ["PEERS", "Built", "Peer", "Weights", "candidates", "chosen", "fastq_kernel", "versions"]

#: A power of two: inputs as codes and as floating point numbers are the same numbers.
X_SCALE = 2.0**-6
#: The threads of torch, oneDNN and our kernels.
TORCH_POOL = "torch"


class Weights:
    """Codes over their whole width with scales such that outputs are of about 1; on ``device``."""

    def __init__(self, kind: Kind, layer: Layer, device: str, seed: int = 0) -> None:
        self.kind, self.layer, self.device = kind, layer, device
        generator = torch.Generator(device).manual_seed(seed)
        half = 2 ** (kind.bits - 1)
        self.codes = torch.randint(-half, half, layer.weight_shape, dtype=torch.int8, device=device, generator=generator)
        shape = (layer.n, math.ceil(layer.k / kind.group_size)) if kind.group_size else (layer.n,)
        self.scale = (torch.rand(shape, device=device, generator=generator) + 0.5) / (half * math.sqrt(layer.k))
        #: Of the output's codes, of a convolution.
        self.out_scale = 1 / 32

    def packed(self) -> fastq.PackedWeight:
        return fastq.pack(self.codes, self.kind.bits, scale=self.scale, group_size=self.kind.group_size)

    def values(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """``code * scale``, rounded once to ``dtype``."""
        if self.kind.group_size:
            scale = self.scale.repeat_interleave(self.kind.group_size, 1)[:, : self.layer.k]
        else:
            scale = self.scale.view(-1, *[1] * (self.codes.dim() - 1))
        return (self.codes * scale).to(dtype)

    def inputs(self, rows: int, seed: int = 1) -> torch.Tensor:
        """Codes, or bfloat16 numbers; of convolutions channels_last."""
        generator = torch.Generator(self.device).manual_seed(seed)
        shape = self.layer.input_shape(rows)
        if self.kind.activation == 16:
            return torch.randn(shape, device=self.device, generator=generator).to(torch.bfloat16)
        low, high, dtype = (0, 256, torch.uint8) if self.kind.conv else (-128, 128, torch.int8)
        x = torch.randint(low, high, shape, dtype=dtype, device=self.device, generator=generator)
        return x.to(memory_format=torch.channels_last) if self.kind.conv else x

    def as_numbers(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """What ``x`` stands for."""
        return x.to(dtype) if self.kind.activation == 16 else (x.to(torch.float32) * X_SCALE).to(dtype)

    def given(self, x: torch.Tensor, takes: torch.dtype | str) -> torch.Tensor:
        """``x`` as what :attr:`Built.takes` says."""
        if isinstance(takes, torch.dtype):
            return self.as_numbers(x, takes)
        if takes == "codes plus 128":
            return (x ^ -128).view(torch.uint8)
        return (x ^ 128).view(torch.int8) if takes == "codes less 128" else x


class Built(NamedTuple):
    """A function of the input; what it takes: ``"codes"`` (:meth:`Weights.inputs` as they are), ``"codes less 128"`` (int8 for
    uint8, as fastq's networks hand them on), ``"codes plus 128"`` (uint8 for int8), or a floating point dtype; and what it gives:
    ``"values"``, ``"sums"`` (int32 accumulators), ``"codes"`` (requantized to int8 around 0). ``own``: the weight that it really
    multiplies with, ``(N, K)``, where it quantizes on a grid of its own."""

    run: Callable[[torch.Tensor], torch.Tensor]
    takes: torch.dtype | str = "codes"
    gives: str = "values"
    own: torch.Tensor | None = None


@dataclass(frozen=True)
class Peer:
    """A provider that is not fastq. ``needs``: packages; ``note``: what a reader of its times must know; ``pool``: whose threads
    it runs on; ``forced``: whether it is measured
    where kernels are held to an instruction set: it can be held, too (``forced.py``)."""

    name: str
    kinds: tuple[str, ...]
    devices: tuple[str, ...]
    build: Callable[[Weights], Built]
    needs: str = ""
    note: str = ""
    pool: str = TORCH_POOL
    forced: bool = True

    def absent(self) -> str:
        """Why it is not there; empty if it is."""
        return next((why for package in self.needs.split() if (why := _absent(package))), "")


@functools.cache
def _absent(package: str) -> str:
    try:
        importlib.import_module(package)
    except Exception as error:  # a package may fail in any way where its GPU is not
        return f"{package} cannot be imported: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
    return ""


def versions(device: str) -> dict[str, str]:
    """Of the packages of peers on ``device`` that are here."""
    found, names = {}, importlib.metadata.packages_distributions()
    for package in sorted({package for peer in PEERS if device in peer.devices for package in peer.needs.split()}):
        if not _absent(package):
            found[package] = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in sorted(set(names.get(package, []))))
    return found


def candidates(kind: Kind, device: str, forced: bool = False) -> list[Peer]:
    """The peers of a kind on a device, there or not; ``forced``: of those that can be held to an instruction set."""
    return [peer for peer in PEERS if kind.name in peer.kinds and device in peer.devices and (peer.forced or not forced)]


# fastq


def fastq_kernel(weights: Weights, kernel: str) -> Built:
    """The public function with ``kernel=``."""
    packed, scale = weights.packed(), torch.full((1,), X_SCALE, device=weights.device)
    if weights.kind.conv:
        step, window = torch.full((1,), weights.out_scale, device=weights.device), weights.layer.window
        keywords: dict[str, Any] = {"stride": window.stride, "padding": (window.padding[2], window.padding[0]), "x_scale": scale}
        keywords |= {"x_zero_point": -128, "out_scale": step, "kernel": kernel}
        return Built(lambda x: fastq.int_conv2d(x, packed, **keywords), "codes less 128", "codes")
    keywords = {} if weights.kind.activation == 16 else {"x_scale": scale}
    return Built(lambda x: fastq.int_linear(x, packed, **keywords, out_dtype=torch.bfloat16, kernel=kernel))


def fastq_8bit(weights: Weights) -> Built:
    """fastq's choice for the same codes held in 8 bits: what fewer bits are compared with, in turns with them."""
    packed, scale = fastq.pack(weights.codes, 8, scale=weights.scale), torch.full((1,), X_SCALE, device=weights.device)
    return Built(lambda x: fastq.int_linear(x, packed, x_scale=scale, out_dtype=torch.bfloat16))


def architecture(device: str) -> int:
    if device != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


def chosen(kind: Kind, layer: Layer, rows: int, device: str) -> str:
    """The kernel that a user gets."""
    return table.choose(problem(kind, layer, rows, device, architecture(device))).name


def kernels(kind: Kind, layer: Layer, rows: int, device: str, first: str) -> dict[str, str]:
    """Kernels with why they cannot serve (empty if they can), without those that have no such product. The reference only where it
    is the choice (``first``): it is the specification, and slow."""
    asked = problem(kind, layer, rows, device, architecture(device))
    found = {}
    for kernel in table.KERNELS.values():
        if kernel.name == "reference" and first != "reference":
            continue
        if (kernel.linear if asked.op == "linear" else kernel.conv2d) is None:
            continue
        able, why = dispatch.supports(kernel.backend, device)
        if able:
            refused = kernel.refuses(asked)
            if refused is None:
                found[kernel.name] = ""
        elif kernel.backend == device or (kernel.backend == "triton" and device == "cuda"):
            found[kernel.name] = why
    return found


# torch


def _matmul(dtype: torch.dtype, weights: Weights) -> Built:
    w = weights.values(dtype).t()
    return Built(lambda x: x @ w, dtype)


def _conv(dtype: torch.dtype, weights: Weights) -> Built:
    w, window = weights.values(dtype).to(memory_format=torch.channels_last), weights.layer.window
    return Built(lambda x: F.conv2d(x, w, None, window.stride, (window.padding[2], window.padding[0])), dtype)


def _int_mm(weights: Weights) -> Built:
    w = weights.codes.t()
    return Built(lambda x: torch._int_mm(x, w), gives="sums")


def _int4pack(weights: Weights) -> Built:
    """torch's int4 product of bfloat16 inputs: codes from 0 to 15 around 8."""
    codes, layer = weights.codes + 8, weights.layer
    scales = weights.scale.t().contiguous()
    scale_and_zero = torch.stack([scales, torch.zeros_like(scales)], 2).to(torch.bfloat16)
    if weights.device == "cpu":
        data = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.to(torch.int32), 1)
        return Built(lambda x: torch.ops.aten._weight_int4pack_mm_for_cpu(x, data, GROUP, scale_and_zero), torch.bfloat16)
    pairs = codes.view(torch.uint8).view(layer.n, layer.k // 2, 2)
    packed = (pairs[..., 0] << 4 | pairs[..., 1]).contiguous()
    data = torch.ops.aten._convert_weight_to_int4pack(packed, 8)
    return Built(lambda x: torch.ops.aten._weight_int4pack_mm(x, data, GROUP, scale_and_zero), torch.bfloat16)


def _int8pack(weights: Weights) -> Built:
    codes, scale = weights.codes, weights.scale.to(torch.bfloat16)
    return Built(lambda x: torch.ops.aten._weight_int8pack_mm(x, codes, scale), torch.bfloat16)


def _onednn_linear(weights: Weights, unsigned: bool = False) -> Built:
    """``unsigned``: of codes around 128 and to float32, for which it has a fast product on every instruction set."""
    zeros = torch.zeros(weights.layer.n, dtype=torch.int32)
    data, scale = torch.ops.onednn.qlinear_prepack(weights.codes, None), weights.scale
    zero, out = (128, torch.float32) if unsigned else (0, torch.bfloat16)

    def run(x: torch.Tensor) -> Any:
        return torch.ops.onednn.qlinear_pointwise(x, X_SCALE, zero, data, scale, zeros, None, 1.0, 0, out, "none", [], "")

    return Built(run, "codes plus 128" if unsigned else "codes")


def _onednn_conv(weights: Weights) -> Built:
    window, zeros, scale = weights.layer.window, torch.zeros(weights.layer.n, dtype=torch.int32), weights.scale
    where = [list(window.stride), [window.padding[2], window.padding[0]], list(window.dilation), 1]
    data, step = torch.ops.onednn.qconv_prepack(weights.codes, scale, X_SCALE, 0, *where, None), weights.out_scale

    def run(x: torch.Tensor) -> Any:
        return torch.ops.onednn.qconv2d_pointwise(
            x, X_SCALE, 0, data, scale, zeros, None, *where, step, 0, torch.int8, "none", [], ""
        )  # fmt: skip

    return Built(run, gives="codes")


# Packages with a pool of threads of their own, as many as torch's


def _in_blocks(weights: Weights, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Fields of 4 bits from 0 to 15 around 8, ``(N, blocks, block / 2)`` bytes with the first one low, and scales ``(N, blocks)``:
    of a channel the same in all of its blocks."""
    n, k = weights.layer.n, weights.layer.k
    blocks = math.ceil(k / block)
    fields = F.pad((weights.codes + 8).view(torch.uint8), (0, blocks * block - k), value=8).view(n, blocks, block // 2, 2)
    scale = weights.scale.view(n, -1)
    return fields[..., 0] | fields[..., 1] << 4, scale.expand(n, blocks).contiguous() if scale.shape[1] == 1 else scale


def _onnxruntime(level: int, weights: Weights) -> Built:
    """MatMulNBits on float32, its input and output bound where they lie; ``level``: 4 multiplies codes of its input, 1 float32."""
    helper, onnxruntime = importlib.import_module("onnx.helper"), importlib.import_module("onnxruntime")
    real = importlib.import_module("onnx").TensorProto

    n, k = weights.layer.n, weights.layer.k
    block = weights.kind.group_size or 256  # the largest, which is the fastest
    data, scale = _in_blocks(weights, block)
    settings = {"K": k, "N": n, "bits": 4, "block_size": block, "accuracy_level": level}
    node = helper.make_node("MatMulNBits", ["x", "data", "scale"], ["y"], domain="com.microsoft", **settings)
    takes, gives = (helper.make_tensor_value_info(name, real.FLOAT, ["m", size]) for name, size in (("x", k), ("y", n)))
    graph = helper.make_graph(
        [node], "product", [takes], [gives],
        [helper.make_tensor("data", real.UINT8, data.shape, data.numpy().tobytes(), raw=True),
         helper.make_tensor("scale", real.FLOAT, (scale.numel(),), scale.numpy().tobytes(), raw=True)],
    )  # fmt: skip
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=domains, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    # Its threads wait for work by spinning, after a run too unless they are told, and for longer than measure.settle waits.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    @functools.cache
    def bound(address: int, rows: int) -> tuple[Any, torch.Tensor]:
        y, binding = torch.empty(rows, n), session.io_binding()
        binding.bind_input("x", "cpu", 0, real.FLOAT, (rows, k), address)
        binding.bind_output("y", "cpu", 0, real.FLOAT, (rows, n), y.data_ptr())
        return binding, y

    def run(x: torch.Tensor) -> torch.Tensor:
        binding, y = bound(x.data_ptr(), len(x))
        session.run_with_iobinding(binding)
        return y

    return Built(run, torch.float32)


def _openvino(precision: str, weights: Weights) -> Built:
    """A MatMul of float32 inputs with a compressed constant; ``precision``: what it may compute in where it does not in int8."""
    openvino, opset13 = importlib.import_module("openvino"), importlib.import_module("openvino.opset13")
    n, k = weights.layer.n, weights.layer.k
    group = weights.kind.group_size or k
    data, scale = _in_blocks(weights, group)
    grouped = (n, scale.shape[1], group) if scale.shape[1] > 1 else (n, k)
    bytes_ = numpy.ascontiguousarray(data.numpy().reshape(-1))  # the constant reads it, and the function below keeps it
    fields = openvino.op.Constant(openvino.Tensor(bytes_, openvino.Shape(grouped), openvino.Type.u4))
    steps = scale.numpy().astype(numpy.float16).reshape(*grouped[:-1], 1)
    half = numpy.float16
    values = opset13.subtract(opset13.convert(fields, half), opset13.convert(opset13.constant(numpy.uint8(8)), half))
    values = opset13.multiply(values, opset13.constant(steps))
    if len(grouped) == 3:
        values = opset13.reshape(values, opset13.constant(numpy.array([n, k])), False)
    x = opset13.parameter([-1, k], numpy.float32, name="x")
    model = openvino.Model([opset13.matmul(x, opset13.convert(values, numpy.float32), False, True)], [x], "product")
    compiled = openvino.Core().compile_model(model, "CPU", {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(), "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": precision,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": GROUP,
    })  # fmt: skip

    @functools.cache
    def bound(address: int, rows: int) -> tuple[Any, torch.Tensor, Any]:
        y, request = torch.empty(rows, n), compiled.create_infer_request()
        given = numpy.ctypeslib.as_array((ctypes.c_float * (rows * k)).from_address(address)).reshape(rows, k)
        request.set_input_tensor(openvino.Tensor(given, shared_memory=True))
        request.set_output_tensor(openvino.Tensor(y.numpy(), shared_memory=True))
        return request, y, bytes_

    def run(x: torch.Tensor) -> torch.Tensor:
        request, y, _ = bound(x.data_ptr(), len(x))
        request.infer()
        return y

    return Built(run, torch.float32)


# Packages that a GPU machine may have


def _of_rows(more: tuple[int, ...], value: float, dtype: torch.dtype, device: str) -> Callable[[int], torch.Tensor]:
    """A scale for each row, made once for a number of rows: nothing is filled within the time."""
    return functools.cache(lambda rows: torch.full((rows, *more), value, dtype=dtype, device=device))


def _humming(weights: Weights) -> Built:
    from humming.layer import HummingLayer, HummingMethod  # type: ignore[import-not-found]

    kind, layer = weights.kind, weights.layer
    grid = {"dtype": f"int{kind.bits}", **({"group_size": kind.group_size} if kind.group_size else {})}
    inputs = {"dtype": "int8"} if kind.activation == 8 else None
    made = HummingLayer(
        shape_n=layer.n, shape_k=layer.k, weight_config=grid, input_config=inputs, torch_dtype=torch.bfloat16
    ).cuda()  # fmt: skip
    schema = made.weight_schema
    tensors = type(schema).quant_tensor(weights.values(torch.bfloat16), schema, torch.bfloat16)
    own = schema.dequant_tensors(tensors)
    made.load_from_tensors(tensors)
    made.transform()
    if kind.activation == 16:
        return Built(lambda x: made(x), torch.bfloat16, own=own)
    scale = _of_rows((1,), X_SCALE, torch.float32, weights.device)
    return Built(lambda x: HummingMethod.forward_layer(made, inputs=x, input_scale=scale(len(x))), own=own)


def _gemlite(weights: Weights) -> Built:
    from gemlite import helper  # type: ignore[import-not-found]

    kind, scale = weights.kind, weights.scale
    if kind.name == "W4A16":
        zeros = torch.full_like(scale, 8.0)
        codes = (weights.codes + 8).view(torch.uint8)
        made = helper.A16W4_HQQ_INT(device=weights.device, dtype=torch.bfloat16).from_weights(codes, scale, zeros)
    else:
        of = helper.A16W8_INT8 if kind.name == "W8A16" else helper.A8W8_int8_dynamic
        made = of(device=weights.device, dtype=torch.bfloat16).from_weights(weights.codes, scales=scale.view(-1, 1))
    return Built(lambda x: made(x), torch.bfloat16)


def _torchao(weights: Weights) -> Built:
    """What its int8 linear layers call, ``int_scaled_matmul``, does: itself it prints its input at each call, which waits for the
    GPU and cannot be captured."""
    w, column, scale = weights.codes.t(), weights.scale.to(torch.bfloat16), _of_rows((1,), X_SCALE, torch.bfloat16, weights.device)
    return Built(lambda x: torch._int_mm(x, w) * scale(len(x)) * column)


def _bitsandbytes_int8(weights: Weights) -> Built:
    from bitsandbytes import functional as bnb  # type: ignore[import-not-found]

    codes, column, scale = weights.codes, weights.scale * 127, _of_rows((), X_SCALE * 127, torch.float32, weights.device)
    return Built(lambda x: bnb.int8_mm_dequant(bnb.int8_linear_matmul(x, codes), scale(len(x)), column))


def _bitsandbytes_nf4(weights: Weights) -> Built:
    import bitsandbytes as bnb  # type: ignore[import-not-found]

    data, state = bnb.functional.quantize_4bit(weights.values(torch.bfloat16), blocksize=128, quant_type="nf4")
    own = bnb.functional.dequantize_4bit(data, state)
    return Built(lambda x: bnb.matmul_4bit(x, data, state), torch.bfloat16, own=own)


_LINEAR, _CONV = ("W8A8", "W4A8", "W2A8", "W4A16", "W8A16"), ("conv-W8A8", "conv-W4A8")
_BOTH = ("cpu", "cuda")
_DYNAMIC = "quantizes its input within the time"
_HELD = "the same codes, held in 8 bits"
_ORT: Any = {"needs": "onnxruntime onnx", "pool": "onnxruntime", "forced": False}
_OPENVINO: Any = {"needs": "openvino", "pool": "openvino", "forced": False}
PEERS = (
    Peer("torch-bf16", _LINEAR, _BOTH, functools.partial(_matmul, torch.bfloat16)),
    Peer("torch-fp16", _LINEAR, ("cuda",), functools.partial(_matmul, torch.float16)),
    Peer("torch-fp32", _LINEAR, ("cpu",), functools.partial(_matmul, torch.float32)),
    Peer("torch-int_mm", ("W8A8",), _BOTH, _int_mm, note="int32 sums, nothing scaled or rounded"),
    # Signed inputs have its reference alone, seconds a call, where AMX is not used.
    Peer("onednn-int8", ("W8A8",), ("cpu",), _onednn_linear, forced=False),
    Peer("onednn-int8", ("W4A8", "W2A8"), ("cpu",), _onednn_linear, note=_HELD, forced=False),
    Peer("onednn-uint8", ("W8A8",), ("cpu",), functools.partial(_onednn_linear, unsigned=True)),
    Peer("onednn-uint8", ("W4A8", "W2A8"), ("cpu",), functools.partial(_onednn_linear, unsigned=True), note=_HELD),
    Peer("torch-int4pack", ("W4A16",), _BOTH, _int4pack),
    Peer("torch-int8pack", ("W8A16",), _BOTH, _int8pack),
    Peer("torch-bf16", _CONV, _BOTH, functools.partial(_conv, torch.bfloat16), note="cuDNN or oneDNN, channels_last"),
    Peer("torch-fp32", _CONV, ("cpu",), functools.partial(_conv, torch.float32), note="oneDNN, channels_last"),
    Peer("onednn-int8", ("conv-W8A8",), ("cpu",), _onednn_conv),
    Peer("onednn-int8", ("conv-W4A8",), ("cpu",), _onednn_conv, note=_HELD),
    Peer("onnxruntime", ("W4A8", "W4A16"), ("cpu",), functools.partial(_onnxruntime, 4), **_ORT, note=_DYNAMIC),
    Peer("onnxruntime-fp32", ("W4A16",), ("cpu",), functools.partial(_onnxruntime, 1), **_ORT),
    Peer("openvino", ("W4A8", "W4A16"), ("cpu",), functools.partial(_openvino, "f32"), **_OPENVINO, note=_DYNAMIC),
    Peer("openvino-bf16", ("W4A8", "W4A16"), ("cpu",), functools.partial(_openvino, "bf16"), **_OPENVINO, note=_DYNAMIC),
    Peer("humming", ("W8A8", "W4A8", "W4A16", "W8A16"), ("cuda",), _humming, needs="humming", note="on a grid of its own"),
    Peer("gemlite", ("W4A16", "W8A16"), ("cuda",), _gemlite, needs="gemlite"),
    Peer("gemlite", ("W8A8",), ("cuda",), _gemlite, needs="gemlite", note=_DYNAMIC),
    Peer("torchao-steps", ("W8A8",), ("cuda",), _torchao, note="torchao's int8 product, operator by operator"),
    Peer("bitsandbytes", ("W8A8",), ("cuda",), _bitsandbytes_int8, needs="bitsandbytes"),
    Peer("bitsandbytes-nf4", ("W4A16",), ("cuda",), _bitsandbytes_nf4, needs="bitsandbytes", note="on a grid of its own"),
)
