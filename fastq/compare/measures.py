"""What the claims are about, measured, where :func:`fastq.diagnose` does not: gradients of clips, batch norm statistics, codes."""

from __future__ import annotations

import copy
import hashlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..diagnosis import Diagnosis, diagnose
from ..nn import LSQ, PACT, DirectWeight, Quantizer
from ..reference.lsq import lsq_surrogate

__all__ = [
    "activation_error", "clip_gradient_error", "codes_digest", "diagnosed", "evaluate", "normalization_divergence",
    "quantized_layers", "weight_codes", "weight_error",
]  # fmt: skip

Data = tuple[torch.Tensor, ...]


def quantized_layers(model: nn.Module) -> list[tuple[str, Any]]:
    """The layers with a quantized weight, by name."""
    return [
        (name, m) for name, m in model.named_modules()
        if isinstance(getattr(m, "weight_quantizer", None), Quantizer) or isinstance(getattr(m, "direct", None), DirectWeight)
    ]  # fmt: skip


@torch.no_grad()
def evaluate(model: nn.Module, data: Data) -> tuple[float, float]:
    """Loss and accuracy on the test images."""
    logits = model.eval()(data[2])
    return float(F.cross_entropy(logits, data[3])), float((logits.argmax(1) == data[3]).double().mean())


def diagnosed(model: nn.Module, data: Data, seed: int, probes: int = 0) -> Diagnosis:
    """:func:`fastq.diagnose` on four batches of training images; ``probes``: for the trace of the Hessian."""
    given = zip(data[0].split(128), data[1].split(128), strict=True)
    return diagnose(model, given, lambda net, batch: F.cross_entropy(net(batch[0]), batch[1]), probes=probes, seed=seed)


@torch.no_grad()
def weight_codes(model: nn.Module) -> dict[str, torch.Tensor]:
    """The integers of every layer."""
    found = {}
    for name, layer in quantized_layers(model):
        if isinstance(getattr(layer, "direct", None), DirectWeight):
            found[name] = layer.direct.codes.int()
        else:
            found[name] = layer.weight_quantizer.codes(layer.weight)
    return found


def codes_digest(model: nn.Module) -> str:
    """A hash of all weights' integers: equal only where every code is."""
    digest = hashlib.sha256()
    for name, codes in weight_codes(model.eval()).items():
        digest.update(name.encode() + codes.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


@torch.no_grad()
def weight_error(model: nn.Module) -> float:
    """``|W - Q(W)| / |W|`` over the layers below 8 bits: what is updated against what the network computes with."""
    difference = total = 0.0
    for _, layer in quantized_layers(model):
        direct = getattr(layer, "direct", None)
        if (direct or layer.weight_quantizer).bits == 8:
            continue
        used = layer.weight if direct is not None else layer.weight_quantizer(layer.weight)
        if direct is not None:
            latent = used if direct.residual is None else used + direct.residual.float()
        else:
            latent = layer.weight
        difference += float((latent - used).double().square().sum())
        total += float(latent.double().square().sum())
    return (difference / total) ** 0.5


@torch.no_grad()
def activation_error(model: nn.Module, x: torch.Tensor, kind: type[Quantizer]) -> float:
    """The mean over quantizers of a type of ``|x - Q(x)|^2 / |x|^2`` on their inputs."""
    errors: list[float] = []

    def look(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        errors.append(float((inputs[0] - output).double().square().sum() / inputs[0].double().square().sum()))

    hooks = [m.register_forward_hook(look) for m in model.modules() if isinstance(m, kind)]
    model.eval()(x)
    for hook in hooks:
        hook.remove()
    return sum(errors) / len(errors)


def clip_gradient_error(model: nn.Module, data: Data, calibrated: bool) -> float:
    """``|g - f| / |f|``: the gradient of all PACT clips against finite differences of the surrogate loss.

    The surrogate holds every rounding residual constant, so that the loss is smooth in the clips: ``s * (clip(v) + r)``. In fp64,
    on one batch in training mode, by central differences of one millionth of each clip (error about 1e-8 of the gradient, unless
    an element lies that close to a kink).
    """
    net = copy.deepcopy(model).double().train()
    x, y = data[0][:64].double(), data[1][:64]
    clips = [m for m in net.modules() if isinstance(m, PACT)]
    for m in clips:
        m.calibrated = calibrated
    gradient = torch.stack(torch.autograd.grad(F.cross_entropy(net(x), y), [m.alpha for m in clips])).flatten()
    held: dict[Any, torch.Tensor] = {}

    def smooth(m: Any) -> Any:
        def forward(t: torch.Tensor) -> torch.Tensor:
            low, high = (m.qmin, m.qmax) if isinstance(m, LSQ) else (0, 2**m.bits - 1)
            step = m.step if isinstance(m, LSQ) else m.alpha / high
            if m not in held:
                v = (t / step).clamp(low, high)
                held[m] = v.round() - v
            return lsq_surrogate(t, step, qmin=low, qmax=high, residual=held[m])

        return forward

    for layer in [layer for layer in net.modules() if isinstance(getattr(layer, "input_quantizer", None), (PACT, LSQ))]:
        layer.input_quantizer.forward = smooth(layer.input_quantizer)  # type: ignore[union-attr, method-assign]
    slopes = []
    with torch.no_grad():
        net(x)
        for m in clips:
            value, losses = float(m.alpha), []
            for move in (1e-6, -1e-6):
                m.alpha.fill_(value * (1 + move))
                losses.append(float(F.cross_entropy(net(x), y)))
            m.alpha.fill_(value)
            slopes.append((losses[0] - losses[1]) / (2e-6 * value))
    wanted = torch.tensor(slopes, dtype=torch.float64)
    return float((gradient - wanted).norm() / wanted.norm())


def normalization_divergence(model: nn.Module, fresh: nn.Module) -> dict[str, float]:
    """By layer: KL of the running statistics from those estimated anew, as Gaussians, summed over channels."""
    anew = dict(fresh.named_modules())
    found = {}
    for name, m in model.named_modules():
        if isinstance(m, nn.BatchNorm2d):
            other: Any = anew[name]
            old, new = m.running_var.double() + m.eps, other.running_var.double() + m.eps  # type: ignore[union-attr]
            shift = (m.running_mean - other.running_mean).double().square()  # type: ignore[operator]
            found[name] = float((0.5 * ((new / old).log() + (old + shift) / new - 1)).sum())
    return found
