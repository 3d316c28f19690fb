"""The papers as recipes. Each function gives a :class:`Recipe`, which prints as TOML, and may be changed: it is data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .quantizers import nearest
from .recipe import SETTINGS, Dampening, Freezing, LayerRecipe, Parameters, Phase, Recipe, Tempering

__all__ = [
    "RECIPES",
    "direct",
    "dsq",
    "ewgs",
    "lsq",
    "lsq_plus",
    "noise_tempering",
    "oscillation_dampen",
    "oscillation_freeze",
    "pact",
    "qil",
    "sat",
]

Bits = int | tuple[int, int] | None
Overrides = Mapping[str, Mapping[str, Any]]


def _recipe(
    name: str, weight_bits: Bits, activation_bits: Bits, first_last_bits: int | None, overrides: Overrides | None,
    skip: Iterable[str], settings: Mapping[str, Any], layer: dict[str, Any], **rest: Any,
) -> Recipe:  # fmt: skip
    """``layer`` is the paper's; ``settings`` are the caller's."""
    if unknown := [key for key in settings if key not in SETTINGS]:
        raise TypeError(f"{name}: no setting {unknown[0]!r}{nearest(unknown[0], SETTINGS)}")
    default = LayerRecipe(weight_bits=weight_bits, activation_bits=activation_bits, **layer).changed(settings)
    return Recipe(name, default, first_last_bits, {} if overrides is None else overrides, skip, **rest)  # type: ignore[arg-type]


def lsq(
    weight_bits: Bits = 4, activation_bits: Bits = 4, *, first_last_bits: int | None = 8, overrides: Overrides | None = None,
    skip: Iterable[str] = (), **settings: Any,
) -> Recipe:  # fmt: skip
    """Learned step size: one step for each output channel of a weight, one for a layer's input; first and last layer in 8 bits.

    Args:
        weight_bits, activation_bits: 1 to 8, a range ``(qmin, qmax)``, or None for floating point.
        first_last_bits, overrides, skip: as in :class:`Recipe`.
        settings: the other attributes of :class:`LayerRecipe`; ``weight_options`` and ``activation_options`` are added to those of
            the recipe.

    Raises:
        TypeError, ValueError: a setting is unknown or wrong; the message names it, and the nearest that there is.

    Paper: Esser et al., Learned Step Size Quantization, ICLR 2020, https://arxiv.org/abs/1902.08153.
    """
    return _recipe("lsq", weight_bits, activation_bits, first_last_bits, overrides, skip, settings, {})


def lsq_plus(
    weight_bits: Bits = 4, activation_bits: Bits = 4, *, first_last_bits: int | None = 8, overrides: Overrides | None = None,
    skip: Iterable[str] = (), **settings: Any,
) -> Recipe:  # fmt: skip
    """LSQ+: activations with a learned offset, started at the least squared error; weights started at three standard deviations.

    Args and errors: as :func:`lsq`.

    Paper: Bhalgat et al., LSQ+, CVPR Workshops 2020, https://arxiv.org/abs/2004.09576.
    """
    layer = {"weight_options": {"init": "lsq+"}, "activation_options": {"init": "lsq+", "offset": True}}
    return _recipe("lsq_plus", weight_bits, activation_bits, first_last_bits, overrides, skip, settings, layer)


def pact(
    weight_bits: int | None = 4, activation_bits: int | None = 4, *, calibrated: bool = True, first_last_bits: int | None = 8,
    overrides: Overrides | None = None, skip: Iterable[str] = (), **settings: Any,
) -> Recipe:  # fmt: skip
    """PACT: activations clipped to a learned range, without weight decay on it; weights as DoReFa's, at SAT's scale.

    Args and errors: as :func:`lsq`. ``calibrated``: the gradient that counts the rounding error (SAT's paper); False is PACT's.

    Papers: Choi et al., PACT, 2018, https://arxiv.org/abs/1805.06085; Jin et al., https://arxiv.org/abs/1912.10207.
    """
    layer = {"weight": "sat", "activation": "pact", "activation_options": {"calibrated": calibrated}}
    return _recipe("pact", weight_bits, activation_bits, first_last_bits, overrides, skip, settings, layer)


def sat(
    weight_bits: int | None = 4, activation_bits: int | None = 4, *, pretraining: int | float | None = 0.5,
    raw_input: bool = True, first_last_bits: int | None = 8, overrides: Overrides | None = None, skip: Iterable[str] = (),
    **settings: Any,
) -> Recipe:  # fmt: skip
    """Scale-adjusted training: clamped full-precision pretraining, then weights at a scale that trains, and calibrated PACT.

    Weights are rescaled in layers without a batch norm behind them (the last linear one); the first layer takes its input as it
    comes. Weight decay spares biases, norms and depthwise convolutions.

    Args:
        pretraining: how long weights are clamped but not quantized: steps (int), a fraction of the run (float), or None.
        raw_input: leave the input of the first layer in floating point.
        others, and errors: as :func:`lsq`.

    Paper: Jin et al., Towards Efficient Training for Neural Network Quantization, https://arxiv.org/abs/1912.10207.
    """
    layer = {"weight": "sat", "activation": "pact", "activation_options": {"calibrated": True}}
    phases = () if pretraining is None else (Phase(pretraining, None, None), Phase())
    return _recipe(
        "sat", weight_bits, activation_bits, first_last_bits, overrides, skip, settings, layer, phases=phases,
        first={"activation_bits": None} if raw_input else {}, parameters=Parameters(decay="dense"),
    )  # fmt: skip


def qil(
    weight_bits: int | None = 4, activation_bits: int | None = 4, *, progressive: bool = True, quantizers_alone: int | float = 0,
    first_last_bits: int | None = 8, overrides: Overrides | None = None, skip: Iterable[str] = (), **settings: Any,
) -> Recipe:  # fmt: skip
    """Learned intervals: values are pruned below, clipped above, and quantized between. Widths go fp -> 5 -> 4 -> 3 -> 2.

    Args:
        progressive: train in full precision and at each wider width first, for equal parts of the run.
        quantizers_alone: at the beginning of the last phase the quantizers alone are trained, on whatever data the loop takes
            (``run.trains == "quantizers"`` tells it): steps (int) or a fraction of the run (float); 0: not.
        others, and errors: as :func:`lsq`. Layers without a batch norm behind them learn a scale.

    The intervals learn at 0.001 of the network's rate: their gradients are sums over all elements, and under SGD they ran away at
    a larger one (ours, seen on digits; ``parameters.quantizer_lr``).

    Paper: Jung et al., Learning to Quantize Deep Networks by Optimizing Quantization Intervals, CVPR 2019,
    https://arxiv.org/abs/1808.05779. It leaves the first and the last layer in full precision: ``overrides`` say so.
    """
    layer = {"weight": "qil", "activation": "qil"}
    lowest = min((b for b in (weight_bits, activation_bits) if isinstance(b, int)), default=8)
    steps: list[int | None] = [None, *(b for b in (5, 4, 3) if b > lowest)] if progressive else []
    part = (1 - (quantizers_alone if isinstance(quantizers_alone, float) else 0)) / (len(steps) + 1)
    phases = [Phase(part, bits, bits) for bits in steps]
    if quantizers_alone:
        phases.append(Phase(quantizers_alone, train="quantizers"))
    return _recipe(
        "qil", weight_bits, activation_bits, first_last_bits, overrides, skip, settings, layer,
        phases=(*phases, Phase()) if phases else (), parameters=Parameters(quantizer_lr=0.001),
    )  # fmt: skip


def direct(
    weight_bits: int | None = 2, activation_bits: int | None = 4, *, levels: str = "free", rho: float = 1.0,
    first_last_bits: int | None = 8, overrides: Overrides | None = None, skip: Iterable[str] = (), **settings: Any,
) -> Recipe:  # fmt: skip
    """Direct quantization: weights are codes with learned levels; the step of activations hears every channel.

    A reconstruction; the equations are not published in the sources we had. The weights of the first and the last layer are
    LSQ's; their inputs are quantized as the others'.

    Args:
        levels: ``"free"`` or ``"basis"``. rho: the share of an update's rest that is kept, from 0 to 1.
        others, and errors: as :func:`lsq`.
    """
    layer = {"weight": "direct", "activation": "channel_error", "weight_options": {"levels": levels, "rho": rho}}
    ends = {"weight": "lsq"}
    return _recipe("direct", weight_bits, activation_bits, first_last_bits, overrides, skip, settings, layer, first=ends, last=ends)


def noise_tempering(
    weight_bits: Bits = 4, activation_bits: Bits = 4, *, initial: float = 1.0, rate: float = 5.0, reading: str = "noise",
    first_last_bits: int | None = 8, overrides: Overrides | None = None, skip: Iterable[str] = (), **settings: Any,
) -> Recipe:  # fmt: skip
    """Noise tempering: noise in proportion to the rounding error, which decays while training, and a learned gradient scale.

    A reconstruction; the equations are not published in the sources we had.

    Args:
        initial, rate: of the decay ``initial * exp(-rate * t / T)``. reading: as in :func:`fastq.tempered`.
        others, and errors: as :func:`lsq`.
    """
    options = {"reading": reading}
    layer = {"weight": "tempered", "activation": "tempered", "weight_options": options, "activation_options": options}
    return _recipe(
        "noise_tempering", weight_bits, activation_bits, first_last_bits, overrides, skip, settings, layer,
        tempering=Tempering(initial, rate),
    )  # fmt: skip


def oscillation_freeze(
    weight_bits: Bits = 4, activation_bits: Bits = 4, *, first: float = 0.04, last: float = 0.01, delay: float = 0.25,
    momentum: float = 0.001, batch_norm: int = 50, first_last_bits: int | None = 8, overrides: Overrides | None = None,
    skip: Iterable[str] = (), **settings: Any,
) -> Recipe:  # fmt: skip
    """LSQ whose oscillating weights are frozen, below a threshold that falls along a cosine; batch norm is estimated anew.

    Args:
        first, last, delay: of :func:`fastq.schedules.freezing_threshold`. momentum: of the frequency; the authors' recipes have
            0.001, which a run of a few hundred steps wants larger: 0.01.
        batch_norm: training batches for the statistics before an evaluation.
        others, and errors: as :func:`lsq`.

    Paper: Nagel et al., Overcoming Oscillations in Quantization-Aware Training, ICML 2022, https://arxiv.org/abs/2203.11086.
    """
    layer = {"weight": "oscillation", "weight_options": {"momentum": momentum}}
    return _recipe(
        "oscillation_freeze", weight_bits, activation_bits, first_last_bits, overrides, skip, settings, layer,
        freezing=Freezing(first, last, delay), batch_norm=batch_norm,
    )  # fmt: skip


def oscillation_dampen(
    weight_bits: Bits = 4, activation_bits: Bits = 4, *, weight: float = 0.1, delay: float = 0.25, reduction: str = "kernel",
    momentum: float = 0.001, batch_norm: int = 50, first_last_bits: int | None = 8, overrides: Overrides | None = None,
    skip: Iterable[str] = (), **settings: Any,
) -> Recipe:  # fmt: skip
    """LSQ with a loss that pulls weights to their grid points, rising along a cosine; batch norm is estimated anew.

    Args:
        weight, delay: of :func:`fastq.schedules.dampening_weight` (``last`` there). reduction: as in :func:`fastq.dampening`.
        momentum: of the frequency, which is tracked for :func:`fastq.diagnose`.
        others: as :func:`oscillation_freeze`; errors: as :func:`lsq`.

    Paper: Nagel et al., Overcoming Oscillations in Quantization-Aware Training, ICML 2022, https://arxiv.org/abs/2203.11086.
    """
    layer = {"weight": "oscillation", "weight_options": {"momentum": momentum}}
    return _recipe(
        "oscillation_dampen", weight_bits, activation_bits, first_last_bits, overrides, skip, settings, layer,
        dampening=Dampening(weight, delay, reduction), batch_norm=batch_norm,
    )  # fmt: skip


def ewgs(
    weight_bits: int | None = 4, activation_bits: int | None = 4, *, delta: float = 1e-3, first_last_bits: int | None = 8,
    overrides: Overrides | None = None, skip: Iterable[str] = (), **settings: Any,
) -> Recipe:  # fmt: skip
    """Element-wise gradient scaling by the rounding error, with learned intervals and output scales.

    Args:
        delta: of all quantizers; :func:`fastq.nn.set_hessian_deltas` sets each from the curvature of the loss.
        others, and errors: as :func:`lsq`.

    Intervals and scales learn at 0.01 of the network's rate, for the reason given under :func:`qil`.

    Paper: Lee et al., Network Quantization with Element-wise Gradient Scaling, CVPR 2021, https://arxiv.org/abs/2104.00903.
    """
    options = {"delta": delta}
    layer = {"weight": "ewgs", "activation": "ewgs", "weight_options": options, "activation_options": options}
    return _recipe(
        "ewgs", weight_bits, activation_bits, first_last_bits, overrides, skip, settings, layer,
        parameters=Parameters(quantizer_lr=0.01),
    )  # fmt: skip


def dsq(
    weight_bits: int | None = 4, activation_bits: int | None = 4, *, alpha: float = 0.2, first_last_bits: int | None = 8,
    overrides: Overrides | None = None, skip: Iterable[str] = (), **settings: Any,
) -> Recipe:  # fmt: skip
    """Differentiable soft quantization: the staircase's gradient is that of a soft one, whose softness is learned.

    The gradients of its parameters are a reconstruction; the equations are not published in the sources we had.

    Args:
        alpha: the first softness, between 0 and 1.
        others, and errors: as :func:`lsq`.

    Paper: Gong et al., Differentiable Soft Quantization, ICCV 2019, https://arxiv.org/abs/1908.05033.
    """
    options = {"alpha": alpha}
    layer = {"weight": "dsq", "activation": "dsq", "weight_options": options, "activation_options": options}
    return _recipe("dsq", weight_bits, activation_bits, first_last_bits, overrides, skip, settings, layer)


#: Every recipe by its name.
RECIPES: dict[str, Callable[..., Recipe]] = {
    f.__name__: f
    for f in (
        lsq, lsq_plus, pact, sat, qil, direct, noise_tempering, oscillation_freeze, oscillation_dampen, ewgs, dsq,
    )
}  # fmt: skip
