"""The result of ``fastq.diagnose``: numbers, two tables, JSON."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..tables import table

__all__ = ["Diagnosis", "LayerDiagnosis", "RuleOne", "TensorDiagnosis", "decibel", "percent"]

#: Rule I holds where the ratio is below this.
RULE_ONE = 0.1
#: "About 1", "of the same order": within this factor.
ORDER = 10.0


def decibel(error: float) -> float:
    """The signal-to-quantization-noise ratio in dB of an error relative to the variance; ``inf`` where there is no error."""
    return math.inf if error == 0 else -10 * math.log10(error)


@dataclass(frozen=True)
class TensorDiagnosis:
    """A layer's weight or its input, and what its quantizer does to it.

    Attributes:
        quantizer: the module's class.
        bits: its width as it was given.
        elements: how many were looked at, of all batches.
        error: mean squared error of the quantized values relative to the variance, NaN where there is none. A quantizer that
            gives values on a scale of its own (SAT; QIL and EWGS without a scale) is judged at the best common scale.
        channel_errors: the same for each channel, relative to the channel's own variance: of a weight its output channels,
            of an input what a convolution calls channels and a linear layer features.
        clipped_below, clipped_above: fractions of the elements outside the range of the grid; None where there is no grid.
        codes: how many the grid has; None where there is no grid.
        dead_codes: how many of them no element uses.
        nonfinite: how many elements are NaN or infinite; they are left out of all the rest.
    """

    quantizer: str
    bits: str
    elements: int
    error: float
    channel_errors: tuple[float, ...]
    clipped_below: float | None
    clipped_above: float | None
    codes: int | None
    dead_codes: int | None
    nonfinite: int

    @property
    def sqnr(self) -> float:
        """``10 log10(variance / mean squared error)`` in dB."""
        return decibel(self.error)

    @property
    def channel_sqnr(self) -> tuple[float, ...]:
        """The same for each channel."""
        return tuple(decibel(error) for error in self.channel_errors)

    @property
    def worst_channel(self) -> int | None:
        """The channel with the largest error; None where no channel has a variance."""
        known = [(error, -c) for c, error in enumerate(self.channel_errors) if not math.isnan(error)]
        return -max(known)[1] if known else None

    @property
    def clipped(self) -> float | None:
        """The fraction of the elements outside the range of the grid, on either side."""
        return None if self.clipped_below is None or self.clipped_above is None else self.clipped_below + self.clipped_above


@dataclass(frozen=True)
class LayerDiagnosis:
    """One layer. None where something does not apply, was not asked for, or is not known.

    Attributes:
        name, type: in the model, and the class.
        weight, input: what quantization does to them; ``input`` needs batches.
        oscillating: fraction of the weights with a tracked frequency above 0.005 that are not frozen; None where it is not tracked.
        frozen: fraction of the weights that are frozen.
        variance: of the effective weights, unbiased: of those that the layer computes with.
        neurons: ``n_out`` of SAT: out_features, or out_channels times the size of the kernel.
        batch_norm: whether a batch norm follows.
        called: how often the layer was called in all batches.
        gradient: root of the mean square of the loss's gradient by the effective weights, over elements and batches.
        trace: of the loss's Hessian with respect to the effective weights, Hutchinson's estimate; ``trace_error`` its standard
            error (NaN of a single probe).
        rounding_loss: ``trace / elements * sum((quantized - latent)^2) / 2``: how much the loss grows by rounding the weights, as
            the Hessian has it.
    """

    name: str
    type: str
    weight: TensorDiagnosis | None
    input: TensorDiagnosis | None
    oscillating: float | None
    frozen: float | None
    variance: float
    neurons: int
    batch_norm: bool
    called: int | None = None
    gradient: float | None = None
    trace: float | None = None
    trace_error: float | None = None
    rounding_loss: float | None = None

    @property
    def label(self) -> str:
        """The name, or ``(model)`` where the model is the layer."""
        return self.name or "(model)"

    @property
    def rule_two(self) -> bool:
        """SAT's rule II: a batch norm follows, or variance times neurons is about 1, within a factor of 10."""
        return self.batch_norm or 1 / ORDER <= self.variance * self.neurons <= ORDER


@dataclass(frozen=True)
class RuleOne:
    """SAT's rule I for the last layer: the variance of its effective weights is well below ``k_pool^2 / n_L``.

    Attributes:
        name: of the last layer.
        variance: of its effective weights, unbiased.
        pooled: ``k_pool^2``, how many positions the pooling before it averages over.
        inputs: ``n_L``, how many inputs each of its neurons has.
    """

    name: str
    variance: float
    pooled: int
    inputs: int

    @property
    def label(self) -> str:
        """The name, or ``(model)`` where the model is the layer."""
        return self.name or "(model)"

    @property
    def ratio(self) -> float:
        """``variance * n_L / k_pool^2``."""
        return self.variance * self.inputs / self.pooled

    @property
    def holds(self) -> bool:
        """Whether the ratio is under 0.1."""
        return self.ratio < RULE_ONE


@dataclass(frozen=True)
class Diagnosis:
    """The result of :func:`diagnose`; ``str()`` is two tables and the findings in words.

    Attributes:
        layers: in the order of execution, or of the modules where there were no batches.
        rule_one: SAT's rule I.
        loss: its mean over the batches, or None.
        batches: how many were looked at.
    """

    layers: tuple[LayerDiagnosis, ...]
    rule_one: RuleOne
    loss: float | None
    batches: int

    @property
    def findings(self) -> tuple[str, ...]:
        """What stands out, in words."""
        from .findings import findings

        return tuple(findings(self))

    def layer(self, name: str) -> LayerDiagnosis:
        """The layer of that name; ``KeyError`` where there is none."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(f"Diagnosis: no layer {name!r}; there are {', '.join(layer.name for layer in self.layers)}")

    def __str__(self) -> str:
        numbers = [_numbers(layer, self.batches > 0) for layer in self.layers]
        columns = ["layer", "bits", "weights dB", "worst channel", "clipped", "dead codes"]
        if self.batches:
            columns += ["inputs dB", "worst channel", "clipped", "dead codes"]
        parts = [table(columns, numbers, "Quantization")]
        columns = ["layer", "oscillating", "frozen", "variance x neurons", "batch norm", "rule II"]
        if self.loss is not None:
            columns += ["gradient", "trace", "±", "rounding costs"]
        rows = []
        for x in self.layers:
            row = [x.label, percent(x.oscillating), percent(x.frozen), f"{x.variance * x.neurons:.3g}"]
            row += ["yes" if x.batch_norm else "no", "holds" if x.rule_two else "broken"]
            if self.loss is not None:
                row += [short(value) for value in (x.gradient, x.trace, x.trace_error, x.rounding_loss)]
            rows.append(row)
        one = self.rule_one
        parts += [
            table(columns, rows, "Training"),
            f"Rule I {'holds' if one.holds else 'is broken'}: {one.label} has weights of variance {one.variance:.3g}, "
            f"{one.ratio:.3g} of k_pool^2 / n_L = {one.pooled} / {one.inputs}; below {RULE_ONE} is well."
            + ("" if self.loss is None else f" Loss {self.loss:.4g}, of {self.batches} batches."),
            "\n".join(f"* {finding}" for finding in self.findings) or "* Nothing stands out.",
        ]
        return "\n\n".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, numbers and text. NaN and infinity, which JSON lacks, are None."""
        layers = []
        for layer in self.layers:
            plain = asdict(layer)
            for which in ("weight", "input"):
                if (tensor := getattr(layer, which)) is not None:
                    plain[which] |= {"sqnr": tensor.sqnr, "worst_channel": tensor.worst_channel, "clipped": tensor.clipped}
            layers.append(plain | {"rule_two": layer.rule_two})
        rule = asdict(self.rule_one) | {"ratio": self.rule_one.ratio, "holds": self.rule_one.holds}
        found = {"layers": layers, "rule_one": rule, "loss": self.loss, "batches": self.batches, "findings": self.findings}
        plain_again: dict[str, Any] = _finite(found)
        return plain_again

    def to_json(self, *, indent: int | None = 2) -> str:
        """:meth:`to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    def picture(self, path: str | Path) -> Path:
        """Draw SQNR, oscillating weights, rule II and the channels of the worst layer into ``path``, of any type that matplotlib
        writes (.png, .pdf, .svg). Gives the path. ``ImportError`` without matplotlib."""
        from .picture import draw

        return draw(self, Path(path))


def percent(value: float | None) -> str:
    """``12 %``; a dash for None."""
    if value is None:
        return "-"
    return "0 %" if value == 0 else f"{100 * value:.2g} %" if value < 0.0995 else f"{100 * value:.0f} %"


def short(value: float | None) -> str:
    """Three digits; a dash for None and NaN."""
    return "-" if value is None or math.isnan(value) else f"{value:.3g}"


def _db(error: float) -> str:
    return "-" if math.isnan(error) else "exact" if error == 0 else f"{decibel(error):.1f}"


def _worst(t: TensorDiagnosis) -> str:
    worst = t.worst_channel
    return "-" if worst is None else f"{_db(t.channel_errors[worst])} ({worst})"


def _tensor_numbers(t: TensorDiagnosis | None) -> list[str]:
    if t is None:
        return ["-"] * 4
    return [_db(t.error), _worst(t), percent(t.clipped), "-" if t.codes is None else f"{t.dead_codes} of {t.codes}"]


def _numbers(layer: LayerDiagnosis, inputs: bool) -> list[str]:
    bits = "float" if layer.weight is None else layer.weight.bits
    if inputs:
        bits += " / " + ("float" if layer.input is None else layer.input.bits)
    return [layer.label, bits, *_tensor_numbers(layer.weight), *(_tensor_numbers(layer.input) if inputs else [])]


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value
