"""fastq: fused quantizers for quantization-aware training, and the integer network that comes out of it.

The public functions, each with a manual page (``help(fastq.lsq)``), their specification in plain PyTorch under
``fastq.reference``, modules under ``fastq.nn``, and ``python -m fastq --help`` for the shell. Everything is imported on
first use, so that ``import fastq`` is quick, needs no GPU and no compiler, ``python -m fastq info`` can tell what is wrong where
torch itself does not import, and ``fastq.runtime`` runs saved networks where there is none.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import autograd as autograd
    from . import compat as compat
    from . import deploy as deploy
    from . import diagnosis as diagnosis
    from . import nn as nn
    from . import packed_formats as packed_formats
    from . import recipes as recipes
    from . import reference as reference
    from . import runtime as runtime
    from . import schedules as schedules
    from . import testing as testing
    from .channels import channel_objective as channel_objective
    from .channels import channel_weights as channel_weights
    from .channels import step_gradient as step_gradient
    from .channels import update_step_ as update_step_
    from .checks import set_checks as set_checks
    from .deploy import convert as convert
    from .deploy import export_onnx as export_onnx
    from .deploy import load as load
    from .deploy import save as save
    from .diagnosis import diagnose as diagnose
    from .dispatch import backends as backends
    from .dispatch import supports as supports
    from .dispatch import use_backend as use_backend
    from .engine.table import kernels as kernels
    from .nn.direct import DirectOptimizer as DirectOptimizer
    from .ops.affine import _fake_quantize_learnable_per_channel_affine as _fake_quantize_learnable_per_channel_affine
    from .ops.affine import _fake_quantize_learnable_per_tensor_affine as _fake_quantize_learnable_per_tensor_affine
    from .ops.affine import fake_quantize_per_channel_affine as fake_quantize_per_channel_affine
    from .ops.affine import fake_quantize_per_tensor_affine as fake_quantize_per_tensor_affine
    from .ops.channel_error import channel_error as channel_error
    from .ops.channel_error import channel_stats as channel_stats
    from .ops.dampening import dampening as dampening
    from .ops.direct import direct_update_ as direct_update_
    from .ops.direct import direct_weight as direct_weight
    from .ops.dsq import dsq as dsq
    from .ops.ewgs import ewgs as ewgs
    from .ops.foreach import foreach_dampening as foreach_dampening
    from .ops.foreach import foreach_lsq as foreach_lsq
    from .ops.foreach import foreach_oscillation_step_ as foreach_oscillation_step_
    from .ops.frozen_lsq import frozen_lsq as frozen_lsq
    from .ops.int_conv2d import int_conv2d as int_conv2d
    from .ops.int_linear import int_linear as int_linear
    from .ops.lsq import lsq as lsq
    from .ops.noise_quant import noise_quant as noise_quant
    from .ops.oscillation import oscillation_step_ as oscillation_step_
    from .ops.pact import pact as pact
    from .ops.qil import qil as qil
    from .ops.quantize import quantize as quantize
    from .ops.quantize import quantize_per_token as quantize_per_token
    from .ops.sat import sat_weight as sat_weight
    from .ops.tempered import tempered as tempered
    from .oscillation import OscillationState as OscillationState
    from .packing import PackedWeight as PackedWeight
    from .packing import pack as pack
    from .recipes.parameters import param_groups as param_groups
    from .recipes.prepare import prepare as prepare
    from .schedules import tempering_decay as tempering_decay

__version__ = "0.1.0"

#: What is public, and the submodule it comes from; the submodules themselves stand below.
_FUNCTIONS = {
    "DirectOptimizer": "nn",
    "PackedWeight": "packing",
    "OscillationState": "oscillation",
    "_fake_quantize_learnable_per_channel_affine": "ops",
    "_fake_quantize_learnable_per_tensor_affine": "ops",
    "backends": "dispatch",
    "channel_error": "ops",
    "channel_objective": "channels",
    "channel_stats": "ops",
    "channel_weights": "channels",
    "convert": "deploy",
    "diagnose": "diagnosis",
    "direct_update_": "ops",
    "direct_weight": "ops",
    "dampening": "ops",
    "dsq": "ops",
    "fake_quantize_per_channel_affine": "ops",
    "fake_quantize_per_tensor_affine": "ops",
    "foreach_dampening": "ops",
    "foreach_lsq": "ops",
    "foreach_oscillation_step_": "ops",
    "frozen_lsq": "ops",
    "int_conv2d": "ops",
    "int_linear": "ops",
    "kernels": "engine.table",
    "load": "deploy",
    "lsq": "ops",
    "oscillation_step_": "ops",
    "ewgs": "ops",
    "export_onnx": "deploy",
    "qil": "ops",
    "pact": "ops",
    "noise_quant": "ops",
    "pack": "packing",
    "param_groups": "recipes",
    "prepare": "recipes",
    "quantize": "ops",
    "quantize_per_token": "ops",
    "sat_weight": "ops",
    "save": "deploy",
    "set_checks": "checks",
    "step_gradient": "channels",
    "supports": "dispatch",
    "update_step_": "channels",
    "tempered": "ops",
    "tempering_decay": "schedules",
    "use_backend": "dispatch",
}
_MODULES = (
    "autograd",
    "compat",
    "deploy",
    "diagnosis",
    "nn",
    "packed_formats",
    "recipes",
    "reference",
    "runtime",
    "schedules",
    "testing",
)
_WITHOUT_TORCH = ("runtime", "schedules", "tempering_decay")

#: What there is: all, or what needs no torch where that is not installed.
__all__ = sorted([*_FUNCTIONS, *_MODULES]) if importlib.util.find_spec("torch") is not None else [*_WITHOUT_TORCH]


def _advice(package: str | None) -> str:
    """How a package that is not installed comes to be there, and what is built against it."""
    return "pip install 'fastq[torch]'" + (", and build fastq again" if package == "torch" else "")


def __getattr__(name: str) -> Any:
    if name not in _FUNCTIONS and name not in _MODULES:
        raise AttributeError(f"module 'fastq' has no attribute {name!r}")
    try:
        module = importlib.import_module(f"fastq.{_FUNCTIONS.get(name, name)}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "fastq":
            raise
        raise ImportError(
            f"fastq.{name} needs the package {error.name}, which is not installed: {_advice(error.name)}. "
            "fastq.runtime runs saved networks without it",
            name=error.name,
        ) from None
    value = getattr(module, name) if name in _FUNCTIONS else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
