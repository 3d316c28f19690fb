"""A diagnosis as a figure, by matplotlib."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .findings import LOW_SQNR
from .report import ORDER, Diagnosis, TensorDiagnosis

__all__ = ["draw"]


def draw(d: Diagnosis, path: Path) -> Path:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("diagnose: a picture needs matplotlib; pip install matplotlib") from None
    blue, orange, red, grey = "#4878a8", "#e0913c", "#c0443c", "#b8bcc4"
    names = [x.label for x in d.layers]
    places = range(len(names))
    strips = [(which, t) for which, t in _strips(d)]
    rows, strip_rows = max(len(names), 4), max(len(strips), 1)
    figure = Figure(figsize=(13, 2.6 + 0.26 * rows + 0.55 * strip_rows), layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=(1.2 + 0.26 * rows, 0.9 + 0.55 * strip_rows))
    top, bottom = halves
    quality, motion, rule = top.subplots(1, 3, sharey=True, width_ratios=(5, 3, 4))

    def height(t: TensorDiagnosis | None) -> float:
        return math.nan if t is None or not math.isfinite(t.sqnr) else t.sqnr

    quality.barh([i - 0.2 for i in places], [height(x.weight) for x in d.layers], 0.38, color=blue)
    if d.batches:
        quality.barh([i + 0.2 for i in places], [height(x.input) for x in d.layers], 0.38, color=orange)
    quality.axvline(LOW_SQNR[0], color=grey, linewidth=1, linestyle="--")
    quality.set(
        title="Signal to quantization noise: weights blue, inputs orange" if d.batches else "Signal to quantization noise: weights",
        xlabel="dB (more is better)",
        yticks=list(places),
        yticklabels=names,
    )
    quality.set_ylim(len(names) - 0.4, -0.6)

    moving = [math.nan if x.oscillating is None else 100 * x.oscillating for x in d.layers]
    motion.barh(list(places), moving, 0.6, color=red)
    motion.set(title="Oscillating weights", xlabel="%", xlim=(0, max([1.0, *(1.1 * m for m in moving if not math.isnan(m))])))
    if all(math.isnan(m) for m in moving):
        motion.text(
            0.5, 0.5, "not tracked\n(fastq.nn.OscillationLSQ)", ha="center", va="center", transform=motion.transAxes, color="grey"
        )

    sizes = [max(x.variance * x.neurons, 1e-9) for x in d.layers]
    colors = [grey if x.batch_norm else blue if x.rule_two else red for x in d.layers]
    rule.axvspan(1 / ORDER, ORDER, color="#e6efe0", zorder=0)
    rule.scatter(sizes, list(places), color=colors, zorder=2)
    rule.set(title="Rule II: variance x neurons", xlabel="green: about 1. Grey: batch norm follows. Red: broken", xscale="log")
    rule.set_xlim(min([0.03, *(s / 2 for s in sizes)]), max([30, *(2 * s for s in sizes)]))
    for axes in (quality, motion, rule):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(axis="y", length=0)

    panels = bottom.subplots(strip_rows, 1, squeeze=False)[:, 0]
    for panel, (title, t) in zip(panels, strips, strict=False):
        values = [value if math.isfinite(value) else math.nan for value in t.channel_sqnr]
        known = [value for value in values if not math.isnan(value)] or [0.0]
        low = min(*known, max(known) - 3)  # what differs by less is no matter
        image = panel.imshow([values], aspect="auto", cmap="viridis", vmin=low, vmax=max(known))
        panel.set(yticks=[])
        panel.locator_params(axis="x", integer=True)
        panel.set_title(f"{title}, dB by channel", fontsize=10, loc="left")
        bottom.colorbar(image, ax=panel, pad=0.01, aspect=5)
    if not strips:
        panels[0].set_axis_off()
    figure.savefig(path, dpi=110)
    return path


def _strips(d: Diagnosis) -> Iterator[tuple[str, TensorDiagnosis]]:
    """The weight and the input that suffer most."""
    for which in ("weight", "input"):
        known = [(t.error, x.label, t) for x in d.layers if (t := getattr(x, which)) is not None and not math.isnan(t.error)]
        if known:
            _, name, t = max(known, key=lambda item: item[0])
            yield f"Worst {which}: {name}", t
