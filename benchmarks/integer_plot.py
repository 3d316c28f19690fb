"""The integer suite's picture: on a GPU speed over rows under two roofs, on a CPU time over rows above two floors; convolutions."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .integer_report import IN_8_BITS, Cell, by_case, int8_roof, ours, tops, us
from .products import CPU_LAYERS, KINDS, LARGE, LLAMA, ROWS, Kind, Layer, layer

__all__ = ["plot"]

#: int8, dense, by the data sheets; in practice about 1400 to 1550 on an H200.
DATASHEET = {"H200": 1979e12, "H100": 1979e12, "A100": 624e12}
#: Of the peers; fastq is blue.
PALETTE = (
    "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:pink", "tab:gray", "tab:olive", "tab:cyan", "gold",
    "teal", "magenta", "tan", "lime",
)  # fmt: skip
#: Of our kinds on a CPU.
BLUES = {"W8A8": "navy", "W4A8": "royalblue", "W4A16": "deepskyblue"}


def arithmetic_roof(result: dict[str, Any], kind: Kind) -> tuple[float | None, str]:
    """Operations a second that bound a product on a GPU, and what that is."""
    gpu = result["environment"]["gpu"] or "" if kind.activation == 8 else ""
    for name, speed in DATASHEET.items():
        if name in gpu:
            return speed, f"int8 by the {name}'s data sheet, {speed / 1e12:.0f} TOPS"
    speed = result["matmul_per_s"]
    return speed, "" if speed is None else f"torch's bfloat16 matmul, {speed / 1e12:.3g} TFLOP/s (measured)"


def _drawn(result: dict[str, Any]) -> str:
    """The layer of the plot: the large square, or the one with most rows."""
    names = [row["layer"] for row in result["rows"] if row["status"] == "ok" and not KINDS[row["kind"]].conv]
    return next((one.name for one in (LARGE, LLAMA[0]) if one.name in names), max(names, key=names.count, default=""))


def _speeds(axis: Any, mine: dict[int, Cell], peers: list[str], colors: dict[str, str]) -> None:
    """TOPS over rows: a line for each peer, a thick one for fastq's choice with marks where the others are measured too."""
    for provider in peers:
        points = sorted((m, tops(cell[provider]) or 0.0) for m, cell in mine.items() if provider in cell)
        axis.plot(*zip(*points, strict=True), marker=".", linewidth=1, color=colors[provider], label=provider)
    points = sorted((m, tops(own) or 0.0) for m, cell in mine.items() if (own := ours(cell)) is not None)
    if points:
        axis.plot(*zip(*points, strict=True), linewidth=2.5, color="C0", label="fastq", zorder=5)
        axis.plot(*zip(*(p for p in points if p[0] in ROWS), strict=True), "o", markersize=5, color="C0", zorder=5)


def _roofs(axis: Any, result: dict[str, Any], kind: Kind, of: Layer, rows: list[int]) -> None:
    """What memory and arithmetic allow; the axis ends a little above what matters."""
    bandwidth, (arithmetic, what) = result["copy_bytes_per_s"], arithmetic_roof(result, kind)
    top = max([axis.get_ylim()[1], arithmetic / 1e12 if arithmetic else 0.0])
    if bandwidth:
        roof = [of.operations(m) / of.bytes_moved(m, kind) * bandwidth / 1e12 for m in rows]
        label = f"memory, {bandwidth / 1e9:.0f} GB/s (a copy, measured)"
        axis.plot(rows, roof, color="black", linestyle="--", linewidth=1, label=label)
    if arithmetic:
        axis.axhline(arithmetic / 1e12, color="black", linestyle=":", linewidth=1, label=what)
    axis.set_ylim(top=2 * top)


def _convolutions(axis: Any, cells: dict[tuple[str, str, int], Cell], peers: list[str], colors: dict[str, str]) -> None:
    """fastq's time over that of each other, at the most images."""
    convs = {key: (cell, own) for key, cell in cells.items() if KINDS[key[0]].conv and (own := ours(cell)) is not None}
    images = max((key[2] for key in convs), default=0)
    names, kinds = list(dict.fromkeys(key[1] for key in convs)), list(dict.fromkeys(key[0] for key in convs))
    if not names:
        axis.set_axis_off()
        return
    for i, kind in enumerate(kinds):
        for peer in peers:
            points = [
                (us(own) / us(cell[peer]), names.index(key[1]) + 0.3 * i - 0.15)
                for key, (cell, own) in convs.items()
                if (key[0], key[2]) == (kind, images) and peer in cell
            ]
            if points:
                label = f"fastq {kind.removeprefix('conv-')} over {peer}"
                axis.plot(
                    *zip(*points, strict=True), "os"[i % 2], color=colors[peer], fillstyle=("full", "none")[i % 2], label=label
                )
    axis.axvline(1.0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(left=0)
    axis.set(xlabel="fastq's time over that of the other", title=f"convolutions, images: {images}")
    axis.grid(alpha=0.3)


def _on_gpu(result: dict[str, Any], pyplot: Any, plain: Any) -> Any:
    """Speed over rows for each kind, and the convolutions."""
    cells, name = by_case(result["rows"]), _drawn(result)
    of = layer(name)
    if of is None:
        return None
    kinds = [kind for kind in KINDS.values() if not kind.conv and any(key[:2] == (kind.name, name) for key in cells)]
    figure, axes = pyplot.subplots(2, 3, figsize=(19, 11), layout="constrained")
    peers = sorted({p for cell in cells.values() for p in cell if not p.startswith("fastq-")})
    colors = dict(zip(peers, itertools.cycle(PALETTE), strict=False))
    for kind, axis in zip(kinds, axes.flat, strict=False):
        mine = {key[2]: cell for key, cell in cells.items() if key[:2] == (kind.name, name)}
        axis.set(xscale="log", yscale="log", xlabel="rows M", ylabel="TOPS", title=f"{kind.name}, {name}")
        _speeds(axis, mine, [p for p in peers if any(p in cell for cell in mine.values())], colors)
        _roofs(axis, result, kind, of, sorted(mine))
        axis.xaxis.set_major_formatter(plain)
        axis.yaxis.set_major_formatter(plain)
        axis.grid(alpha=0.3, which="major")
        axis.legend(fontsize=8, loc="lower right")
    for unused in list(axes.flat)[len(kinds) : 5]:
        unused.set_axis_off()
    _convolutions(axes.flat[5], cells, peers, colors)
    if axes.flat[5].get_legend_handles_labels()[1]:
        axes.flat[5].legend(fontsize=8)
    return figure


def _times(axis: Any, result: dict[str, Any], name: str, colors: dict[str, str]) -> None:
    """Of a layer: a thick line for each kind of ours, a thin one for each other."""
    cells = by_case(result["rows"])
    drawn: dict[str, dict[int, float]] = {}
    for (kind, of, m), cell in cells.items():
        if of != name or kind not in BLUES:
            continue
        if (own := ours(cell)) is not None:
            drawn.setdefault(f"fastq {kind}", {})[m] = us(own)
        for provider, row in cell.items():
            if not provider.startswith("fastq-"):
                seen = drawn.setdefault(_label(provider, kind), {})
                seen[m] = min(us(row), seen.get(m, us(row)))
    for label, points in drawn.items():
        mine = label.removeprefix("fastq ")
        style = {"linewidth": 2.5, "color": BLUES[mine], "zorder": 5} if mine in BLUES else {"linewidth": 1, "color": colors[label]}
        axis.plot(*zip(*sorted(points.items()), strict=True), marker="o" if mine in BLUES else ".", label=label, **style)


def _label(provider: str, kind: str) -> str:
    """The same product of a library is one line, whatever kinds it is held against: of its 4 bits two, by the groups of scales."""
    return f"{provider} {kind}" if provider.startswith(("onnxruntime", "openvino")) else provider


def _floors(axis: Any, result: dict[str, Any], of: Layer, rows: list[int]) -> None:
    """What reading the weights and the arithmetic take at least; of the latter no more than lies above everything else's least."""
    if "roofs" in result:
        for bits, style in ((8, "--"), (4, "-.")):
            for where, color in (("cache", "black"), ("memory", "gray")):
                speed = result["roofs"][where]
                times = [of.bytes_moved(m, KINDS[f"W{bits}A8"]) / speed * 1e6 for m in rows]
                label = f"{bits}-bit weights from {'the ' * (where == 'cache')}{where}, {speed / 1e9:.0f} GB/s"
                axis.plot(rows, times, color=color, linestyle=style, linewidth=1, label=label)
    least = min((float(time) for line in axis.get_lines() for time in line.get_ydata()), default=None)
    if least is not None:
        axis.set_ylim(bottom=least / 1.5)
    speed, _ = int8_roof(result)
    if speed:
        times = [of.operations(m) / speed * 1e6 for m in rows]
        axis.plot(rows, times, color="black", linestyle=":", linewidth=1.2, label=f"int8 arithmetic, {speed / 1e12:.3g} TOPS")


def _on_cpu(result: dict[str, Any], pyplot: Any, plain: Any) -> Any:
    """Time over rows for each layer, and the convolutions; one legend below, where no line is."""
    cells = by_case(result["rows"])
    names = [one.name for one in CPU_LAYERS if any(key[1] == one.name and key[0] in BLUES for key in cells)]
    if not names:
        names = list(dict.fromkeys(of for kind, of, _ in cells if kind in BLUES))[:1]
    figure, axes = pyplot.subplots(1, len(names) + 1, figsize=(7 * (len(names) + 1), 8), layout="constrained", squeeze=False)
    others = dict.fromkeys(_label(p, kind) for (kind, *_), cell in cells.items() if kind in BLUES for p in cell if p != IN_8_BITS)
    others = [label for label in others if not label.startswith("fastq-")]
    colors = dict(zip(others, itertools.cycle(PALETTE), strict=False))
    for name, axis in zip(names, axes.flat, strict=False):
        of = layer(name)
        axis.set(xscale="log", yscale="log", xlabel="rows M", ylabel="microseconds", title=f"{name}: less is better")
        _times(axis, result, name, colors)
        rows = sorted({m for _, at, m in cells if at == name})
        if of is not None:
            _floors(axis, result, of, rows)
        axis.set_xticks(rows, [f"{m}" for m in rows])
        axis.minorticks_off()
        axis.yaxis.set_major_formatter(plain)
        axis.grid(alpha=0.3, which="major")
    peers = sorted({p for (kind, *_), cell in cells.items() if KINDS[kind].conv for p in cell if not p.startswith("fastq-")})
    _convolutions(axes.flat[-1], cells, peers, {p: colors.get(p, PALETTE[i % len(PALETTE)]) for i, p in enumerate(peers)})
    labelled = {label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(labelled.values(), labelled, loc="outside lower center", ncols=6, fontsize=9)
    return figure


def plot(result: dict[str, Any], path: Path) -> bool:
    """A PNG; False without matplotlib or rows."""
    if not by_case(result["rows"]):
        return False
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter

    draw: Callable[..., Any] = _on_gpu if result["device"] == "cuda" else _on_cpu
    figure = draw(result, pyplot, FuncFormatter(lambda value, _: f"{value:g}"))
    if figure is None:
        return False
    where = result["environment"]["gpu"] if result["device"] == "cuda" else result["environment"]["cpu"]
    figure.suptitle(f"Integer products on {where}, torch {result['environment']['torch']}, {result['created'][:10]}", fontsize=11)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
    return True
