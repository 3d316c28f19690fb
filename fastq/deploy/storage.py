"""``fastq.save`` and ``fastq.load``: an integer network in a safetensors file.

The file's metadata has one key, ``"fastq"``, whose value is JSON: ``version``, ``checksum`` and ``tensors``, the number of tensors,
which every file of fastq has (``fastq/container.py``); ``disabled``, the names of quantizers that are left and not enabled; and
``layers``, which says per integer, weight-only or look-up layer its kind and numbers. Weights are stored in the canonical layout of
:mod:`fastq.packing`, look-up codes packed to their bits (2-bit codes take 2 bits); every other tensor of the network's
``state_dict`` is stored as it is. ``fused`` says whether the network is to be fused again, ``norms`` which batch norms compute
:func:`fastq.nn.batch_norm.affine_of`, whatever those of the architecture do. ``program`` is the network as ``fastq.runtime``
runs it, a list of steps (``program.py``), or null; then ``program_reason`` says why.

Version 3 had no program. Versions 1 and 2 had a layer's codes in one run of bits, without rows, and no steps of weights but their
products with those of the inputs; they are read as layers that are not plain. Version 1 is what fastq wrote when all grids had a
zero: ``"odd_inputs"``, ``"odd_weights"`` and ``"magnitude"`` are false.
"""

from __future__ import annotations

import copy
import json
import os
from typing import Any

import numpy as np
import torch
from torch import nn

from .. import container
from ..container import FormatError
from ..nn import Quantizer
from ..nn.batch_norm import AFFINE
from ..packing import BITS, PackedWeight
from .conversion import convolution, padding_of
from .fusion import Fusion, fuse, fused, is_affine, report, unfuse
from .layers import (
    Affine,
    CodedLayer,
    Codes,
    IntegerConv,
    IntegerLayer,
    IntegerLinear,
    LookupConv,
    LookupLayer,
    LookupLinear,
    PackedLayer,
    WeightOnlyConv,
    WeightOnlyLinear,
    by_group,
    packed,
    take_hooks,
)
from .program import NoProgram, program_of

__all__ = ["FormatError", "load", "save"]

VERSIONS = (1, 2, 3, 4)  # read; the last is written
PACKED = ("weight", "weight_scale", "weight_zero")
BUFFERS = {"codes", *PACKED, *IntegerLayer.buffer_names, *LookupLayer.buffer_names}
#: What a convolution is made with, by its kind.
CONV = ("dims", "stride", "padding", "dilation", "groups", "padding_mode")
KINDS = {
    "linear": IntegerLinear, "conv": IntegerConv, "lookup linear": LookupLinear, "lookup conv": LookupConv,
    "weight-only linear": WeightOnlyLinear, "weight-only conv": WeightOnlyConv,
}  # fmt: skip


def _bits(weight_range: tuple[int, int]) -> int:
    return (weight_range[1] - weight_range[0]).bit_length()


def _numbers(layer: PackedLayer | LookupLayer) -> dict[str, Any]:
    """What JSON says of a layer; :func:`_layer` makes it from that and its tensors."""
    numbers: dict[str, Any] = {"kind": next(kind for kind, made in KINDS.items() if isinstance(layer, made))}
    if isinstance(layer, PackedLayer):
        w = layer.weight
        numbers |= {"shape": list(w.shape), "bits": w.bits, "signed": w.signed, "weight_groups": w.group_size}
    else:
        numbers |= {"shape": list(layer.codes.shape), "weight_range": [0, layer.levels.shape[-1] - 1]}
    if layer.inputs is not None:
        numbers |= {"qmin": layer.inputs.qmin, "qmax": layer.inputs.qmax, "odd_inputs": layer.inputs.odd}
        numbers |= {"magnitude": layer.magnitude}
    if isinstance(layer, IntegerLayer):
        numbers |= {"weight_range": [layer.weights.qmin, layer.weights.qmax], "odd_weights": layer.weights.odd}
    own: tuple[str, ...] = CONV if isinstance(layer, (IntegerConv, WeightOnlyConv, LookupConv)) else ()
    own += ("copied",) if isinstance(layer, LookupConv) else ("group_size",) if isinstance(layer, IntegerLinear) else ()
    return numbers | {name: getattr(layer, name) for name in own}


def _pack(codes: torch.Tensor, weight_range: tuple[int, int]) -> torch.Tensor:
    """Codes as consecutive ``bits``-bit numbers ``code - qmin``, lowest bit first; uint8, the last byte padded with zeros."""
    values = (codes.cpu().numpy().astype(np.int16).reshape(-1, 1) - weight_range[0]).astype(np.uint8)
    planes = (values >> np.arange(_bits(weight_range), dtype=np.uint8)) & 1
    return torch.from_numpy(np.packbits(planes.reshape(-1), bitorder="little"))


def _unpack(packed: torch.Tensor, shape: tuple[int, ...], weight_range: tuple[int, int]) -> torch.Tensor:
    """The inverse of :func:`_pack`: codes of ``shape``, int8, or uint8 where they begin at 0 and do not fit."""
    bits, count = _bits(weight_range), int(np.prod(shape))
    planes = np.unpackbits(packed.numpy(), count=count * bits, bitorder="little").reshape(count, bits)
    values = (planes.astype(np.int16) << np.arange(bits, dtype=np.int16)).sum(1)
    return torch.from_numpy((values + weight_range[0]).astype(np.int8 if weight_range[1] < 128 else np.uint8).reshape(shape))


def save(model: nn.Module, path: str | os.PathLike[str]) -> int:
    """Write the integer network ``model``, a result of :func:`fastq.convert`, to ``path``; returns the bytes written.

    The file is written beside ``path`` and then moved there, so that an interrupted save leaves no half file. Where all of the
    network is layers and functions that ``fastq.runtime`` has, the file says how they follow one another, and it runs there without
    torch and without ``model``; a call there with other axes than ``(B, C, H, W)`` or ``(B, F)``, or whose views would change the
    batch, is refused then. Raises
    ``TypeError`` if ``model`` is no ``torch.nn.Module``, ``ValueError`` if it has no integer layer, ``OSError`` if the file cannot
    be written.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"save: model must be a torch.nn.Module, a result of fastq.convert, got {type(model).__name__}")
    layers: dict[str, Any] = {}
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in model.state_dict().items()}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, (PackedLayer, LookupLayer)):
            layers[name] = _numbers(module)
        if isinstance(module, LookupLayer):
            tensors[f"{name}.codes" if name else "codes"] = _pack(module.codes, (0, module.levels.shape[-1] - 1))
    if not layers:
        raise ValueError("save: model has no integer layer; give the network that fastq.convert returns")
    disabled = [name for name, m in model.named_modules(remove_duplicate=False) if isinstance(m, Quantizer) and not m.enabled]
    norms = [name for name, m in model.named_modules(remove_duplicate=False) if is_affine(m)]
    header: dict[str, Any] = {"disabled": disabled, "fused": fused(model), "norms": norms, "layers": layers}
    try:
        header |= {"program": program_of(model), "program_reason": None}
    except NoProgram as why:
        header |= {"program": None, "program_reason": str(why)}
    return container.write(path, "fastq", VERSIONS[-1], header, tensors)


def _layer(numbers: dict[str, Any], tensors: dict[str, torch.Tensor], version: int) -> Any:
    kind: Any = KINDS[numbers["kind"]]
    inputs = None
    if "qmin" in numbers:
        inputs = Codes(int(numbers["qmin"]), int(numbers["qmax"]), bool(numbers.get("odd_inputs", False)))
        if not 0 < inputs.qmax - inputs.qmin < 256:
            raise ValueError(f"codes of the input in the range {(inputs.qmin, inputs.qmax)}")
    shape = tuple(int(n) for n in numbers["shape"])
    weights = None
    if "weight_range" in numbers:
        low, high = (int(n) for n in numbers["weight_range"])
        weights = Codes(low, high, bool(numbers.get("odd_weights", False)))
        if not low < high:
            raise ValueError(f"codes in the range {(low, high)}")
    parts: dict[str, Any] = {name: t for name, t in tensors.items() if name not in PACKED}
    keywords = {name: numbers[name] for name in (*CONV, "copied", "group_size") if name in numbers}
    keywords["magnitude"] = bool(numbers.get("magnitude", False))
    if issubclass(kind, LookupLayer):
        if weights is None or weights.qmin != 0 or tensors["levels"].shape[-1] != weights.qmax + 1:
            raise ValueError(
                f"{tensors['levels'].shape[-1]} levels for codes from {weights and weights.qmin} to {weights and weights.qmax}"
            )
        parts["codes"] = _checked_codes(tensors["codes"], shape, (0, weights.qmax)).to(torch.uint8)
        return kind(parts, inputs, **keywords)
    if version < 3:
        if weights is None or "scale" not in tensors:
            raise ValueError("no range of weights, or no scale")
        codes = _checked_codes(parts.pop("codes"), shape, weights.stored)
        codes = codes.unsqueeze(2) if len(shape) == 3 else codes
        codes = by_group(codes, int(keywords["group_size"])) if keywords.get("group_size") else codes
        weight = packed(codes, *weights.stored, 1.0)
    else:
        weight = _packed_weight(numbers, shape, tensors)
        by_groups = bool(numbers.get("group_size")) and "scale" in tensors
        if ("conv" in numbers["kind"] or by_groups) != (len(shape) == 4):
            raise ValueError(f"a weight of shape {shape} for a layer of the kind {numbers['kind']!r}")
    if issubclass(kind, IntegerLayer):
        return kind(weight, parts, inputs, weights, **keywords)
    return kind(weight, parts, inputs, **keywords)


def _fitting(layer: Any, old: nn.Module) -> Any:
    """``layer``; ``ValueError`` where its tensors, or the layer whose place it takes, contradict what it says of itself."""
    by_lookup, linear = isinstance(layer, LookupLayer), isinstance(layer, (IntegerLinear, WeightOnlyLinear, LookupLinear))
    shape = tuple(layer.codes.shape if by_lookup else layer.weight.shape)
    groups = 1
    expected: dict[str, Any] = {}
    if isinstance(old, (nn.Linear, nn.Conv1d, nn.Conv2d)) and isinstance(getattr(old, "weight", None), torch.Tensor):
        if isinstance(old, nn.Linear) != linear:
            raise ValueError(f"a {type(layer).__name__} in the place of a {type(old).__name__}")
        whole = tuple(old.weight.shape)
        if linear and len(shape) == 4:
            groups = whole[1] // layer.group_size
            whole = (groups * whole[0], layer.group_size, 1, 1)
        elif isinstance(old, nn.Conv1d) and not by_lookup:
            whole = (*whole[:2], 1, whole[2])
        if shape != whole:
            raise ValueError(f"a weight of shape {shape} in the place of {tuple(old.weight.shape)}")
        if (layer.bias is None) != (old.bias is None):
            raise ValueError(f"{'no' if layer.bias is None else 'a'} bias in the place of {'none' if old.bias is None else 'one'}")
        if not linear:
            where = {"padding": old.padding, "copied": padding_of(old)} if by_lookup else {"padding": padding_of(old)}
            expected = convolution(old) | where
    elif type(old) is type(layer) and not linear:
        expected = {name: getattr(old, name) for name in (*CONV, *(("copied",) if by_lookup else ()))}
    for name, value in expected.items():
        if json.dumps(own := getattr(layer, name)) != json.dumps(value):
            raise ValueError(f"{name} {own!r} in the place of {value!r}")
    outputs = shape[0] // groups
    sizes: dict[str, tuple[int, ...]] = dict.fromkeys(CodedLayer.buffer_names, (1,))
    sizes |= dict.fromkeys(("scale", "shift", "weight_shift", "cross"), (1, outputs, groups * outputs))
    for name, t in layer.named_buffers(recurse=False):
        fits = t.shape == (outputs,) if name == "bias" else t.numel() in sizes.get(name, (t.numel(),))
        if name != "codes" and not (t.is_floating_point() and fits):
            raise ValueError(f"{name} of {t.dtype} {tuple(t.shape)} for {outputs} outputs")
    return layer


def _checked_codes(packed_bits: torch.Tensor, shape: tuple[int, ...], range_: tuple[int, int]) -> torch.Tensor:
    if packed_bits.dtype != torch.uint8:
        raise ValueError(f"codes of {packed_bits.dtype} in the range {range_}")
    if min(shape) < 0 or packed_bits.numel() != -(-int(np.prod(shape)) * _bits(range_) // 8):
        raise ValueError(f"{packed_bits.numel()} bytes of codes for the shape {shape}")
    return _unpack(packed_bits, shape, range_)


def _packed_weight(numbers: dict[str, Any], shape: tuple[int, ...], tensors: dict[str, torch.Tensor]) -> PackedWeight:
    """What a layer's tensors hold; ``ValueError`` where header and tensors contradict each other."""
    data, scale, zero = (tensors.get(name) for name in PACKED)
    bits, signed, group = int(numbers["bits"]), bool(numbers["signed"]), numbers["weight_groups"]
    if data is None or scale is None or bits not in BITS or len(shape) not in (2, 4) or min(shape) < 0:
        raise ValueError(f"a weight of shape {shape} in {bits} bits")
    n, k = shape[0], int(np.prod(shape[1:]))
    if group is not None and (type(group) is not int or group < 16 or group % 16 or len(shape) != 2):
        raise ValueError(f"groups of {group} for the shape {shape}")
    if data.dtype != torch.uint8 or tuple(data.shape) != (n, -(-k * bits // 8)):
        raise ValueError(f"{data.numel()} bytes of codes for the shape {shape} in {bits} bits")
    shapes = [(1,), (n,)] if group is None else [(n, -(-k // group))]
    if scale.dtype != torch.float32 or tuple(scale.shape) not in shapes or not bool(scale.isfinite().all()):
        raise ValueError(f"a scale of {scale.dtype} {tuple(scale.shape)} for the shape {shape}, or one that is not finite")
    if zero is not None:
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        inside = zero.dtype == torch.int32 and bool(((zero >= low) & (zero <= high)).all())
        if not inside or zero.shape != scale.shape:
            raise ValueError(
                f"a zero-point of {zero.dtype} {tuple(zero.shape)} for a scale of {tuple(scale.shape)}, or one that is no code"
            )
    return PackedWeight(data, scale, zero, shape, bits, signed, group, "rows")


def load(source: str | os.PathLike[str] | bytes, model: nn.Module) -> nn.Module:
    """The integer network saved in ``source`` (a path, or the file's bytes), on the architecture of ``model``, in eval mode.

    ``model`` gives what a file of tensors cannot, the order in which the layers are called: the float network or the prepared one.
    A copy of it gets the file's integer layers in place of its own and all of the file's other tensors; ``model`` itself is not
    touched. Nothing is unpickled. The network is on the CPU; ``.to(device)`` moves it.

    Raises:
        FormatError: the file is truncated, corrupted, foreign, of another version, or does not fit ``model``. Nothing is loaded.
        OSError: the file cannot be read.
        TypeError: ``model`` is no ``torch.nn.Module``.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"load: model must be a torch.nn.Module, got {type(model).__name__}")
    name = container.name_of(source)
    header, tensors = container.read(source, "fastq", VERSIONS, "network", uncounted=(1, 2))
    network: nn.Module = unfuse(copy.deepcopy(model).cpu())
    made: dict[int, CodedLayer] = {}
    try:
        for path, numbers in header["layers"].items():
            prefix = f"{path}." if path else ""
            old = network.get_submodule(path)
            own = {key: tensors.pop(prefix + key) for key in BUFFERS if prefix + key in tensors}
            layer = made.setdefault(id(old), _fitting(_layer(numbers, own, header["version"]), old))
            take_hooks(layer, old)
            tensors |= layer.state_dict(prefix=prefix)
            if not path:
                network = layer
            else:
                parent, _, child = path.rpartition(".")
                setattr(network.get_submodule(parent), child, layer)
            layer.__dict__["replaced"] = old  # alive while its id is a key
        network.load_state_dict(tensors, strict=True)
        affine = {network.get_submodule(path) for path in header.get("norms", [])}
        for m in network.modules():
            if m in affine:
                Affine.of(m)
            elif type(m) in AFFINE.values():
                m.__class__ = m._float  # type: ignore[assignment]
        for m in network.modules():
            if isinstance(m, Quantizer):
                m.enabled = True
        for path in header.get("disabled", []):
            network.get_submodule(path).enabled = False  # type: ignore[assignment]
    except (ArithmeticError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise FormatError(f"load: {name} does not fit the model: {reason:.300}") from None
    for layer in made.values():
        layer.__dict__.pop("replaced", None)
    network.eval()
    return fuse(network) if header.get("fused") else report(network, Fusion(reason="saved so"))
