"""``fastq.save`` and ``fastq.load``: an integer network in a safetensors file.

The file's metadata has one key, ``"fastq"``, whose value is JSON: ``version``, ``checksum``, ``disabled``, the names of quantizers
that are left and not enabled, and ``layers``, which says per integer or look-up layer its kind and numbers. Weight codes are packed
to the bits of their range (2-bit codes take 2 bits); every other tensor of the network's ``state_dict`` is stored as it is.
Version 1 is what fastq wrote when all grids had a zero; it is read as version 2 with ``"odd_inputs"``, ``"odd_weights"`` and
``"magnitude"`` false.

``checksum`` is the SHA-256 of the whole file with the checksum's digits as zeros, so that no damaged byte passes.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import nn

from ..nn import Quantizer
from .layers import CodedLayer, Codes, IntegerConv, IntegerLayer, IntegerLinear, LookupConv, LookupLayer, LookupLinear, take_hooks

__all__ = ["FormatError", "load", "save"]

VERSIONS = (1, 2)  # read; the last is written
BUFFERS = {*IntegerLayer.buffer_names, *LookupLayer.buffer_names}
#: What a convolution is made with, by its kind.
CONV = ("dims", "stride", "padding", "dilation", "groups", "padding_mode")
KINDS = {"linear": IntegerLinear, "conv": IntegerConv, "lookup linear": LookupLinear, "lookup conv": LookupConv}
_CHECKSUM = re.compile(rb'(\\"checksum\\":\s?\\")([0-9a-f]{64})(\\")')


class FormatError(ValueError):
    """A file that is not an intact integer network of a version this fastq reads, or not one for the model given."""


def _bits(weight_range: tuple[int, int]) -> int:
    return (weight_range[1] - weight_range[0]).bit_length()


def _numbers(layer: IntegerLayer | LookupLayer) -> dict[str, Any]:
    """What JSON says of a layer; :func:`_layer` makes it from that and its tensors."""
    numbers: dict[str, Any] = {
        "shape": list(layer.codes.shape),
        "kind": next(kind for kind, made in KINDS.items() if isinstance(layer, made)),
    }
    if layer.inputs is not None:
        numbers |= {"qmin": layer.inputs.qmin, "qmax": layer.inputs.qmax, "odd_inputs": layer.inputs.odd}
        numbers |= {"magnitude": layer.magnitude}
    if isinstance(layer, IntegerLayer):
        numbers |= {"weight_range": [layer.weights.qmin, layer.weights.qmax], "odd_weights": layer.weights.odd}
    else:
        numbers |= {"weight_range": [0, layer.levels.shape[-1] - 1]}
    for name in {"linear": ("group_size",), "lookup linear": (), "conv": CONV, "lookup conv": (*CONV, "copied")}[numbers["kind"]]:
        numbers[name] = getattr(layer, name)
    return numbers


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

    The file is written beside ``path`` and then moved there, so that an interrupted save leaves no half file. Raises
    ``ValueError`` if ``model`` has no integer layer, ``OSError`` if the file cannot be written.
    """
    layers: dict[str, Any] = {}
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in model.state_dict().items()}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, (IntegerLayer, LookupLayer)):
            layers[name] = _numbers(module)
            stored = module.weights.stored if isinstance(module, IntegerLayer) else (0, module.levels.shape[-1] - 1)
            tensors[f"{name}.codes" if name else "codes"] = _pack(module.codes, stored)
    if not layers:
        raise ValueError("save: model has no integer layer; give the network that fastq.convert returns")
    disabled = [name for name, m in model.named_modules(remove_duplicate=False) if isinstance(m, Quantizer) and not m.enabled]
    header = {"version": VERSIONS[-1], "checksum": "0" * 64, "disabled": disabled, "layers": layers}
    data = safetensors.torch.save(tensors, {"fastq": json.dumps(header, separators=(",", ":"))})
    digest = hashlib.sha256(data).hexdigest().encode()
    data = _CHECKSUM.sub(lambda match: match[1] + digest + match[3], data, count=1)
    part = Path(f"{os.fspath(path)}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return len(data)


def _read(data: bytes, name: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The header and the tensors of an intact file; ``FormatError`` otherwise."""
    if len(data) < 8 or not 2 <= (size := struct.unpack("<Q", data[:8])[0]) <= len(data) - 8:
        raise FormatError(f"load: {name} is truncated or no safetensors file")
    try:
        text = json.loads(data[8 : 8 + size])["__metadata__"]["fastq"]
        header = json.loads(text)
        version, checksum = header["version"], header["checksum"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise FormatError(f"load: {name} is no fastq network (or its header is corrupted)") from None
    if version not in VERSIONS:
        known = " and ".join(map(str, VERSIONS))
        raise FormatError(f"load: {name} has format version {version!r:.20}; this fastq reads versions {known}")
    match = _CHECKSUM.search(data, 8, 8 + size)
    zeroed = b"" if match is None else data[: match.start(2)] + b"0" * 64 + data[match.end(2) :]
    if match is None or match[2].decode() != checksum or hashlib.sha256(zeroed).hexdigest() != checksum:
        raise FormatError(f"load: {name} is truncated or corrupted: its checksum does not match")
    try:
        return header, safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise FormatError(f"load: {name} is no valid safetensors file: {error}") from None


def _layer(numbers: dict[str, Any], tensors: dict[str, torch.Tensor]) -> CodedLayer:
    kind = KINDS[numbers["kind"]]
    weights = Codes(int(numbers["weight_range"][0]), int(numbers["weight_range"][1]), bool(numbers.get("odd_weights", False)))
    inputs = None
    if "qmin" in numbers:
        inputs = Codes(int(numbers["qmin"]), int(numbers["qmax"]), bool(numbers.get("odd_inputs", False)))
    by_lookup = issubclass(kind, LookupLayer)
    stored = (0, weights.qmax) if by_lookup else weights.stored
    shape, packed = tuple(int(n) for n in numbers["shape"]), tensors["codes"]
    if not weights.qmin < weights.qmax or packed.dtype != torch.uint8:
        raise ValueError(f"codes of {packed.dtype} in the range {(weights.qmin, weights.qmax)}")
    if by_lookup and (weights.qmin != 0 or tensors["levels"].shape[-1] != weights.qmax + 1):
        raise ValueError(f"{tensors['levels'].shape[-1]} levels for codes from {weights.qmin} to {weights.qmax}")
    if packed.numel() != -(-int(np.prod(shape)) * _bits(stored) // 8):
        raise ValueError(f"{packed.numel()} bytes of codes for the shape {shape}")
    codes = _unpack(packed, shape, stored)
    parts: dict[str, torch.Tensor | None] = {**tensors, "codes": codes.to(torch.uint8) if by_lookup else codes}
    keywords = {name: numbers[name] for name in (*CONV, "copied", "group_size") if name in numbers}
    keywords["magnitude"] = bool(numbers.get("magnitude", False))
    return kind(parts, inputs, **keywords) if by_lookup else kind(parts, inputs, weights, **keywords)


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
    name = "the data" if isinstance(source, bytes) else os.fspath(source)
    header, tensors = _read(source if isinstance(source, bytes) else Path(source).read_bytes(), name)
    network: nn.Module = copy.deepcopy(model).cpu()
    made: dict[int, CodedLayer] = {}
    try:
        for path, numbers in header["layers"].items():
            prefix = f"{path}." if path else ""
            old = network.get_submodule(path)
            own = {key: tensors.pop(prefix + key) for key in BUFFERS if prefix + key in tensors}
            layer = made.setdefault(id(old), _layer(numbers, own))
            take_hooks(layer, old)
            tensors |= {f"{prefix}{key}": buffer for key, buffer in layer.named_buffers()}
            if not path:
                network = layer
            else:
                parent, _, child = path.rpartition(".")
                setattr(network.get_submodule(parent), child, layer)
            layer.__dict__["replaced"] = old  # alive while its id is a key
        network.load_state_dict(tensors, strict=True)
        for m in network.modules():
            if isinstance(m, Quantizer):
                m.enabled = True
        for path in header.get("disabled", []):
            network.get_submodule(path).enabled = False  # type: ignore[assignment]
    except (AttributeError, KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise FormatError(f"load: {name} does not fit the model: {reason:.300}") from None
    for layer in made.values():
        layer.__dict__.pop("replaced", None)
    return network.eval()
