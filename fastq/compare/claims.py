"""The papers' claims: for each a network, recipes that differ in one thing, what is measured, and what should come out lower."""

from __future__ import annotations

import copy
import itertools
import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from .. import recipes
from ..nn import PACT, OscillationLSQ, Tempered
from ..recipes import Recipe
from . import measures
from .networks import Data, batches

__all__ = ["CLAIMS", "EVERY_RECIPE", "RECONSTRUCTED", "Claim", "Contrast", "Trained"]


@dataclass(frozen=True)
class Trained:
    """An arm after its training: what measures look at."""

    model: Any
    data: Data
    seed: int


@dataclass(frozen=True)
class Contrast:
    """``metric`` of ``arm`` should be lower than ``other_metric`` (default: the same) of ``other``, seed by seed.

    ``claimed`` is False for what the paper does not promise: the price, reported beside it.
    """

    text: str
    metric: str
    arm: str
    other: str
    other_metric: str = ""
    claimed: bool = True

    @property
    def reference(self) -> str:
        """What it is compared with, of the other arm."""
        return self.other_metric or self.metric


@dataclass(frozen=True)
class Claim:
    """One claim of a paper, and the experiment that could fail to show it.

    ``arms``: one recipe each; ``measure``: what is looked at beside loss and accuracy; ``change``: of the pretrained network.
    ``reconstruction``: what of the method METHODS.md has as a reconstruction; empty: nothing.
    """

    name: str
    statement: str
    paper: str
    network: str
    arms: Mapping[str, Recipe]
    contrasts: tuple[Contrast, ...]
    measure: Callable[[Trained], dict[str, float]] = field(default=lambda _: {})
    change: Callable[[Any], None] | None = None
    rate: float = 0.02
    reconstruction: str = ""


def clips(t: Trained) -> dict[str, float]:
    calibrated = next(m.calibrated for m in t.model.modules() if isinstance(m, PACT))
    return {
        "gradient error": measures.clip_gradient_error(t.model, t.data, calibrated),
        "activation error": measures.activation_error(t.model, t.data[2], PACT),
    }


def scales(t: Trained) -> dict[str, float]:
    found = measures.diagnosed(t.model, t.data, t.seed)
    gradients = [math.log(layer.gradient) for layer in found.layers if layer.gradient]
    return {"rule I": found.rule_one.ratio, "gradient spread": statistics.stdev(gradients)}


def oscillations(t: Trained) -> dict[str, float]:
    states = [m.state for m in t.model.modules() if isinstance(m, OscillationLSQ)]
    moving = torch.cat([((s.frequency > 0.005) & ~s.frozen).flatten() for s in states if s is not None])
    frozen = torch.cat([s.frozen.flatten() for s in states if s is not None])
    fresh = copy.deepcopy(t.model)
    recipes.reestimate_batch_norm(fresh, itertools.islice(batches(t.data, t.seed + 1), 50))
    divergence = measures.normalization_divergence(t.model, fresh)
    loss, accuracy = measures.evaluate(fresh, t.data)
    return {
        "oscillating": float(moving.double().mean()), "frozen": float(frozen.double().mean()),
        "KL": sum(divergence.values()), "worst layer's KL": max(divergence.values()),
        "test loss re-estimated": loss, "accuracy re-estimated": accuracy,
    }  # fmt: skip


#: What is multiplied, and by how much, between the two convolutions of each block.
PLANTED, FACTOR = (1, 6), 16.0


@torch.no_grad()
def plant(model: Any) -> None:
    """Give some channels a high variance and divide the weights that read them: the same function in full precision."""
    for block in (model.block1, model.block2):
        block.bn1.weight[list(PLANTED)] *= FACTOR
        block.bn1.bias[list(PLANTED)] *= FACTOR
        block.conv2.weight[:, PLANTED] /= FACTOR


def channels(t: Trained) -> dict[str, float]:
    found = {layer.name: layer.input for layer in measures.diagnosed(t.model, t.data, t.seed).layers}
    errors = [found[name].channel_errors for name in ("block1.conv2", "block2.conv2")]  # type: ignore[union-attr]
    planted = [error[i] for error in errors for i in PLANTED]
    others = [e for error in errors for i, e in enumerate(error) if i not in PLANTED and not math.isnan(e)]  # NaN: a dead channel
    return {"error of most channels": statistics.median(others), "error of the planted": statistics.median(planted)}


def flatness(t: Trained) -> dict[str, float]:
    scale = torch.cat([m.a.detach().abs().flatten() for m in t.model.modules() if isinstance(m, Tempered)] or [torch.ones(1)])
    # in units of each layer's own weights: a layer before a batch norm may have any scale
    trace = sum(
        layer.trace * layer.variance for layer in measures.diagnosed(t.model, t.data, t.seed, probes=16).layers if layer.trace
    )
    return {"trace": trace, "gradient scale": float(scale.mean())}


def mismatch(t: Trained) -> dict[str, float]:
    return {"mismatch": measures.weight_error(t.model)}


def _oscillating(recipe: Recipe) -> Recipe:
    return replace(recipe, batch_norm=0)  # estimated anew where that is measured


def _freeze(**more: Any) -> Recipe:
    return _oscillating(recipes.oscillation_freeze(3, None, momentum=0.01, **more))


def _tempered(initial: float, learned: float) -> Recipe:
    options = {"a_grad_scale": learned, "seed": 0}
    return recipes.noise_tempering(2, 2, initial=initial, weight_options=options, activation_options=options)


def _weighed(weighing: bool) -> Recipe:
    return recipes.lsq(4, 4, activation="channel_error", activation_options={"weighing": weighing})


_CLAIMS = (
    Claim(
        "PACT", "the calibrated gradient of the clip is the surrogate's; PACT's own leaves the rounding error out", "1912.10207",
        "residual", {"calibrated": recipes.pact(4, 2), "plain": recipes.pact(4, 2, calibrated=False)},
        (
            Contrast("gradient of the clips, relative error", "gradient error", "calibrated", "plain"),
            Contrast("activations, relative squared error", "activation error", "calibrated", "plain"),
            Contrast("training loss", "training loss", "calibrated", "plain"),
            Contrast("test loss", "test loss", "calibrated", "plain"),
        ),
        clips,
    ),
    Claim(
        "SAT", "weights without a batch norm behind them train better at the scale 1/sqrt(n VAR[Q])", "1912.10207", "residual",
        {"rescaled": recipes.sat(4, 4), "not": recipes.sat(4, 4, weight_options={"rescale": "none"})},
        (
            Contrast("rule I: VAR n / k^2 of the last layer", "rule I", "rescaled", "not"),
            Contrast("rule II: spread of ln(gradient) of layers", "gradient spread", "rescaled", "not"),
            Contrast("training loss", "training loss", "rescaled", "not"),
            Contrast("test loss", "test loss", "rescaled", "not"),
        ),
        scales,
    ),
    Claim(
        "QIL", "at 2/2 bits widths that narrow step by step end better than 2 bits from the start", "1808.05779", "residual",
        {"progressive": recipes.qil(2, 2), "direct": recipes.qil(2, 2, progressive=False)},
        (
            Contrast("training loss", "training loss", "progressive", "direct"),
            Contrast("test loss", "test loss", "progressive", "direct"),
        ),
        rate=0.05, reconstruction="first values a reconstruction",
    ),
    Claim(
        "oscillations", "weights oscillate and spoil batch norm's statistics; freezing, dampening and re-estimation mend it",
        "2203.11086", "separable",
        {
            "LSQ": replace(_freeze(), freezing=None), "freezing": _freeze(),
            "dampening": _oscillating(recipes.oscillation_dampen(3, None, momentum=0.01)),
        },
        (
            Contrast("freezing: oscillating fraction", "oscillating", "freezing", "LSQ"),
            Contrast("dampening: oscillating fraction", "oscillating", "dampening", "LSQ"),
            Contrast("freezing: KL of batch norm's statistics", "KL", "freezing", "LSQ"),
            Contrast("dampening: KL of batch norm's statistics", "KL", "dampening", "LSQ"),
            Contrast("re-estimation: test loss (gap)", "test loss re-estimated", "LSQ", "LSQ", "test loss"),
            Contrast("freezing: test loss", "test loss", "freezing", "LSQ"),
            Contrast("dampening: test loss", "test loss", "dampening", "LSQ"),
        ),
        oscillations,
    ),
    Claim(
        "channel error", "a step that hears every channel serves most of them; otherwise the few of high variance decide it", "",
        "residual", {"weighed": _weighed(True), "plain": _weighed(False)},
        (
            Contrast("most channels: error / variance", "error of most channels", "weighed", "plain"),
            Contrast("planted channels: error / variance", "error of the planted", "weighed", "plain", claimed=False),
            Contrast("test loss", "test loss", "weighed", "plain"),
        ),
        channels, plant, reconstruction="a reconstruction",
    ),
    Claim(
        "noise tempering", "decaying noise and a learned gradient scale beat straight through, and find flatter minima", "",
        "residual",
        {"STE": recipes.lsq(2, 2), "noise": _tempered(1.0, 0.0), "scale": _tempered(0.0, 1.0), "both": _tempered(1.0, 1.0)},
        (
            Contrast("both: training loss", "training loss", "both", "STE"),
            Contrast("both: test loss", "test loss", "both", "STE"),
            Contrast("both: trace of the Hessian", "trace", "both", "STE"),
            Contrast("noise alone: trace of the Hessian", "trace", "noise", "STE"),
            Contrast("noise alone: test loss", "test loss", "noise", "STE"),
            Contrast("scale alone: test loss", "test loss", "scale", "STE"),
        ),
        flatness, reconstruction="a reconstruction",
    ),
    Claim(
        "direct", "codes that are updated themselves, with learned levels, do without the mismatch of latent weights", "",
        "residual",
        {
            "latent": recipes.lsq(2, 4, per_channel=False), "rho 1": recipes.direct(2, 4, activation="lsq"),
            "rho 0": recipes.direct(2, 4, rho=0.0, activation="lsq"),
        },
        (
            Contrast("rho 1: |W - Q(W)| / |W|", "mismatch", "rho 1", "latent"),
            Contrast("rho 0: |W - Q(W)| / |W|", "mismatch", "rho 0", "latent"),
            Contrast("rho 1: training loss", "training loss", "rho 1", "latent"),
            Contrast("rho 1: test loss", "test loss", "rho 1", "latent"),
            Contrast("rho 0: test loss", "test loss", "rho 0", "latent"),
        ),
        mismatch, reconstruction="a reconstruction",
    ),
)  # fmt: skip
CLAIMS = {claim.name: claim for claim in _CLAIMS}


def _short(name: str) -> Recipe:
    """A recipe at W2A2, for a run of a few hundred steps."""
    momentum = {"momentum": 0.01} if name.startswith("oscillation") else {}
    return recipes.RECIPES[name](2, 2, **momentum)


#: The recipes of methods whose equations were not published in the sources we had.
RECONSTRUCTED = {
    "direct": "a reconstruction", "noise_tempering": "a reconstruction", "qil": "first values a reconstruction",
    "dsq": "gradients of its bounds a reconstruction",
}  # fmt: skip
#: All recipes once: no claim, a table.
EVERY_RECIPE = Claim("every recipe", "all recipes at W2A2", "", "residual", {name: _short(name) for name in recipes.RECIPES}, ())
