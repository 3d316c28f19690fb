"""What stands out in a diagnosis, in words."""

from __future__ import annotations

import math
from collections.abc import Iterator

from .report import ORDER, RULE_ONE, Diagnosis, LayerDiagnosis, TensorDiagnosis, decibel, percent

__all__ = ["findings"]

# Where a number becomes a finding.
OSCILLATING = 0.01
CLIPPED = 0.05
UNUSED = 0.75
#: dB, from 3 bits on and below.
LOW_SQNR = (10.0, 5.0)
#: The quantizers with a learned step, whose first value has several ways to be found.
STEPS = ("LSQ", "OscillationLSQ", "NoiseQuant", "Tempered", "ChannelError")
#: Of the loss, what rounding a layer's weights costs.
COST = 0.01
#: dB between a layer and its worst channel.
CHANNEL_GAP = 10.0
RECALIBRATE = "re-estimate batch norm (fastq.recipes.reestimate_batch_norm)"


def findings(d: Diagnosis) -> Iterator[str]:
    """Sentences, the gravest kinds first; of one kind the worst three layers."""

    def worst(kind: list[tuple[float, str]]) -> Iterator[str]:
        kind.sort(key=lambda pair: -pair[0])
        yield from (text for _, text in kind[:3])
        if len(kind) > 3:
            yield f"... and {len(kind) - 3} more of this kind"

    if d.loss is not None and not math.isfinite(d.loss):
        yield f"the loss is {d.loss}: gradients and sharpness say nothing"
    both = [(x, which, t) for x in d.layers for which, t in (("weights", x.weight), ("inputs", x.input)) if t is not None]
    yield from worst([
        (t.nonfinite, f"{x.label}: {t.nonfinite:,} of its {which} are NaN or infinite, and left out here")
        for x, which, t in both if t.nonfinite
    ])  # fmt: skip
    idle = [x.label for x in d.layers if x.called == 0]
    if idle:
        yield f"{', '.join(idle[:3])}{' and others' * (len(idle) > 3)}: not called by these batches"
    yield from worst([
        (x.oscillating, f"{x.label}: {percent(x.oscillating)} of weights oscillate: freeze (fastq.recipes.oscillation_freeze) "
         f"or {RECALIBRATE}")
        for x in d.layers if x.oscillating is not None and x.oscillating > OSCILLATING
    ])  # fmt: skip
    yield from worst([(t.error, text) for x, which, t in both if (text := _about_error(x, which, t))])
    gaps = [(decibel(t.error) - decibel(t.channel_errors[c]), c, x, which) for x, which, t in both
            if t.error > 0 and (c := t.worst_channel) is not None]  # fmt: skip
    yield from worst([
        (gap, f"{x.label}: channel {c} of its {which} has {gap:.0f} dB less than the layer: "
         + ("a step for each channel, if there is one for all" if which == "weights" else "fastq.nn.ChannelError weighs channels"))
        for gap, c, x, which in gaps if gap > CHANNEL_GAP
    ])  # fmt: skip
    yield from worst([(t.clipped or 0, text) for x, which, t in both if (text := _about_clipping(x, which, t))])
    yield from worst([
        (t.dead_codes / t.codes, f"{x.label}: its {which} use {t.codes - t.dead_codes} of {t.codes} codes: {_smaller(t)}, "
         "or fewer bits")
        for x, which, t in both
        if t.codes is not None and t.dead_codes is not None and t.dead_codes > UNUSED * t.codes and t.elements > 8 * t.codes
    ])  # fmt: skip
    if not d.rule_one.holds:
        one = d.rule_one
        yield (
            f"{one.label}: logits are large (SAT's rule I, {one.ratio:.2g} where below {RULE_ONE} is well): smaller weights in the "
            "last layer (SAT's rescaling brings them to a variance of 1 / n_out)"
            + ("" if d.batches or one.pooled > 1 else "; unless it is pooled before (pooled=)")
        )  # fmt: skip
    broken = [x for x in d.layers if not x.rule_two]
    yield from worst([
        (abs(math.log(max(x.variance * x.neurons, 1e-300))), f"{x.label}: its weights' variance times neurons is "
         f"{x.variance * x.neurons:.2g}, not about 1, and no batch norm follows (SAT's rule II): gradients change their size here; "
         "fastq.nn.SATWeight(rescale=\"constant\")")
        for x in broken
    ])  # fmt: skip
    sizes = {x.label: x.gradient for x in d.layers if x.gradient is not None and 0 < x.gradient < math.inf}
    if len(sizes) > 1:
        middle = math.exp(sum(math.log(size) for size in sizes.values()) / len(sizes))
        yield from worst([
            (abs(math.log(size / middle)), f"{name}: its weights' gradient, {size:.2g}, is {'above' if size > middle else 'below'} "
             f"those of the other layers ({middle:.2g}) by more than a factor of {ORDER:.0f} (SAT's rule II)")
            for name, size in sizes.items() if not 1 / ORDER <= size / middle <= ORDER
        ])  # fmt: skip
    costs = {x.label: x.rounding_loss for x in d.layers if x.rounding_loss is not None and _certain(x)}
    if len(costs) > 1 and d.loss is not None:
        name = max(costs, key=lambda name: costs[name])
        share = costs[name] / sum(costs.values())
        if share > 0.5 and costs[name] > COST * abs(d.loss):
            yield f"{name}: {percent(share)} of what rounding the weights costs the loss, by its curvature: give it more bits"


def _certain(x: LayerDiagnosis) -> bool:
    """Whether the trace is a number well away from zero."""
    return x.trace is not None and x.trace_error is not None and 2 * x.trace_error < x.trace < math.inf


def _better(t: TensorDiagnosis) -> str:
    return 'a better first step (init="mse")' if t.quantizer in STEPS else "a range that fits better"


def _smaller(t: TensorDiagnosis) -> str:
    return 'a smaller step (init="mse")' if t.quantizer in STEPS else "a smaller range"


def _about_error(x: LayerDiagnosis, which: str, t: TensorDiagnosis) -> str | None:
    bits = int(t.bits) if t.bits.isdigit() else 8
    if math.isnan(t.error) or decibel(t.error) >= LOW_SQNR[bits < 3]:
        return None
    error = f"{percent(t.error)} of their variance ({t.sqnr:.1f} dB at {t.bits} bits)"
    return f"{x.label}: the error of its {which} is {error}: more bits, or {_better(t)}"


def _about_clipping(x: LayerDiagnosis, which: str, t: TensorDiagnosis) -> str | None:
    if t.clipped is None or t.clipped_below is None or t.clipped_above is None or t.clipped <= CLIPPED:
        return None
    if t.clipped_below > 4 * t.clipped_above:
        return f"{x.label}: {percent(t.clipped_below)} of its {which} are clipped from below: a signed range, or an offset"
    return f"{x.label}: {percent(t.clipped)} of its {which} are clipped: its range is too small, or its learning rate"
