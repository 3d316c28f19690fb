"""What the integer suite's measurements say: fastq's choice beside the best peer, goals met or not, a table, a roofline plot."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .products import GOALS, KINDS, LARGE, LLAMA, ROWS, Goal, Kind, Layer, layer
from .report import Verdict, machine, print_report
from .results import DISTURBED

__all__ = ["block", "headers", "lines", "notes", "plot", "show", "verdicts"]

#: Of the numbers of rows: those with a column in the table.
COLUMNS = (1, 16, 64, 256, 1024, 8192)
#: int8, dense, by the data sheets; in practice about 1400 to 1550 on an H200.
DATASHEET = {"H200": 1979e12, "H100": 1979e12, "A100": 624e12}

#: Of the peers; fastq is blue.
PALETTE = (
    "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:pink", "tab:gray", "tab:olive", "tab:cyan", "gold",
    "teal", "black",
)  # fmt: skip

Cell = dict[str, dict[str, Any]]  # the rows of a case, by provider


def us(row: dict[str, Any]) -> float:
    """Microseconds of a row that has them."""
    return float(row["time"]["median_us"])


def by_case(rows: Iterable[dict[str, Any]]) -> dict[tuple[str, str, int], Cell]:
    """``{(kind, layer, rows): {provider: row}}`` of the rows with a time, in the order measured."""
    found: dict[tuple[str, str, int], Cell] = {}
    for row in rows:
        if row["status"] == "ok" and "time" in row:
            found.setdefault((row["kind"], row["layer"], row["rows"]), {})[row["provider"]] = row
    return found


def ours(cell: Cell) -> dict[str, Any] | None:
    """The kernel that a user gets."""
    return next((row for row in cell.values() if row["chosen"]), None)


def best_peer(cell: Cell) -> dict[str, Any] | None:
    """The fastest that is not fastq."""
    return min((row for name, row in cell.items() if not name.startswith("fastq-")), key=us, default=None)


def tops(row: dict[str, Any]) -> float | None:
    """10**12 operations a second."""
    of = layer(row["layer"])
    return None if of is None else of.operations(row["rows"]) / us(row) / 1e6


# Goals


def values(goal: Goal, cells: dict[tuple[str, str, int], Cell]) -> list[tuple[float, str]]:
    """What the goal looks at, with where."""
    found = []
    for (kind, of, rows), cell in cells.items():
        own = ours(cell)
        if own is None or not goal.fits(kind, of, rows):
            continue
        value: float | None = None
        if goal.measure == "tops":
            value = tops(own)
        elif goal.measure == "us":
            value = us(own)
        elif goal.measure == "best" and (peer := best_peer(cell)) is not None:
            value = us(peer) / us(own)
        elif goal.measure == "bf16" and "torch-bf16" in cell:
            value = us(cell["torch-bf16"]) / us(own)
        elif goal.measure == "W8A8" and (other := ours(cells.get(("W8A8", of, rows), {}))) is not None:
            value = us(other) / us(own)
        elif goal.measure == "jump" and (more := ours(cells.get((kind, of, rows + 1), {}))) is not None and rows < goal.rows[1]:
            value = us(more) / us(own)
        if value is not None:
            found.append((value, f"{kind} {of} M={rows}"))
    return found


def verdicts(result: dict[str, Any]) -> list[Verdict]:
    """The goals, which are an H200's; on other machines there are none."""
    if result["device"] != "cuda" or "H200" not in (result["environment"]["gpu"] or ""):
        return []
    cells, found = by_case(result["rows"]), []
    for goal in GOALS:
        seen = values(goal, cells)
        worst, where = (max if goal.at_most else min)(seen, default=(None, ""))
        met = None if worst is None else worst <= goal.bound if goal.at_most else worst >= goal.bound
        found.append(Verdict(goal.name, worst, where, goal.bound, met))
    return found


# Tables


def headers(cells: Iterable[tuple[str, str, int]]) -> list[str]:
    rows = {m for kind, _, m in cells if not KINDS[kind].conv}
    return ["kind, layer", *(f"M = {m}" for m in COLUMNS if m in rows)]


def cell_text(cell: Cell | None) -> str:
    """fastq's microseconds and how many times that the best peer takes."""
    own = ours(cell or {})
    if own is None:
        return "-"
    peer = best_peer(cell or {})
    time = f"{us(own):.0f}" if us(own) >= 100 else f"{us(own):.1f}"
    return time if peer is None else f"{time} ({us(peer) / us(own):.2f}x {peer['provider']})"


def lines(result: dict[str, Any]) -> list[list[str]]:
    """A line for each linear layer at each kind."""
    cells = by_case(result["rows"])
    columns = [int(title.removeprefix("M = ")) for title in headers(cells)[1:]]
    names = dict.fromkeys((kind, of) for kind, of, _ in cells if not KINDS[kind].conv)
    return [[f"{kind} {of}", *(cell_text(cells.get((kind, of, m))) for m in columns)] for kind, of in names]


def conv_headers(cells: Iterable[tuple[str, str, int]]) -> list[str]:
    images = sorted({m for kind, _, m in cells if KINDS[kind].conv})
    return ["convolution", *(f"{kind.removeprefix('conv-')}, images: {m}" for kind in KINDS if KINDS[kind].conv for m in images)]


def conv_lines(result: dict[str, Any]) -> list[list[str]]:
    """A line for each convolution."""
    cells = by_case(result["rows"])
    images = sorted({m for kind, _, m in cells if KINDS[kind].conv})
    names = dict.fromkeys(of for kind, of, _ in cells if KINDS[kind].conv)
    kinds = [kind for kind in KINDS if KINDS[kind].conv]
    return [[of, *(cell_text(cells.get((kind, of, m))) for kind in kinds for m in images)] for of in names]


def notes(result: dict[str, Any]) -> list[str]:
    """What a reader must know to read the tables, and the rows without a time."""
    how = (
        "CUDA events around the replay of a graph over more than 150 MB of weights (or 100 copies)"
        if result["device"] == "cuda"
        else "medians, providers in turns within one run"
    )
    kernels = sorted({row["provider"] for row in result["rows"] if row.get("chosen")})
    found = [
        machine(result),
        f"Microseconds of fastq's choice; in brackets how many times that the fastest other takes, and who it is; {how}. Every "
        "time is of a result that was checked: fastq's against the reference, bit for bit where the input is codes. Outputs are "
        f"bfloat16, fastq's of convolutions int8 codes. Kernels chosen: {', '.join(kernels) or 'none'}.",
    ]
    speeds = []
    if result["copy_bytes_per_s"]:
        speeds.append(f"a copy moves {result['copy_bytes_per_s'] / 1e9:.0f} GB/s")
    if result["matmul_per_s"]:
        what = "bfloat16, 8192^3" if result["device"] == "cuda" else "fp32, 1024^3"
        speeds.append(f"torch's matmul ({what}) does {result['matmul_per_s'] / 1e12:.3g} TFLOP/s")
    if others := [version for version in result["packages"].values() if version]:
        found.append(f"Others: {', '.join(others)}.")
    if speeds:
        found.append(f"Measured beside it: {', '.join(speeds)}.")
    disturbed = {f"{row['kind']} {row['layer']} M={row['rows']}" for row in result["rows"] if row.get("waited", 0) > DISTURBED}
    if disturbed:
        found.append(
            f"Other programs took the processor from {len(disturbed)} cases, not to be trusted: {', '.join(sorted(disturbed)[:12])}"
            + (" and others." if len(disturbed) > 12 else ".")
        )
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in result["rows"]:
        reason = row.get("reason") or row.get("note")
        if reason:
            reason = "left out where a call takes seconds" if reason.startswith("left out") else reason
            reasons.setdefault((row["provider"], reason), []).append(f"{row['kind']} {row['layer']} M={row['rows']}")
    for (provider, reason), where in reasons.items():
        found.append(f"{provider}, {where[0] if len(where) == 1 else f'{len(where)} cases'}: {reason}.".replace("..", "."))
    return found


def _markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = ["| " + " | ".join(titles) + " |", "|---" + "|---:" * (len(titles) - 1) + "|"]
    return "\n".join([*head, *("| " + " | ".join(cells) + " |" for cells in rows)])


def block(result: dict[str, Any], image: str = "") -> str:
    """One run as Markdown: what was measured and how, the tables, the goals, the plot."""
    cells = by_case(result["rows"])
    parts = notes(result)
    for titles, rows in ((headers(cells), lines(result)), (conv_headers(cells), conv_lines(result))):
        if rows:
            parts.append(_markdown(titles, rows))
    words = {True: "met", False: "**not met**", None: "not measured"}
    if found := verdicts(result):
        worst = [["" if v.worst is None else f"{v.worst:.2f} (goal {v.needed:g}), {v.case}", words[v.met]] for v in found]
        parts.append(_markdown(["goal", "worst case", ""], [[v.goal, *rest] for v, rest in zip(found, worst, strict=True)]))
    if image:
        parts.append(f"![{result['name']}]({image})")
    return "\n\n".join(parts)


def show(result: dict[str, Any]) -> None:
    """Print tables, notes and goals."""
    cells, name = by_case(result["rows"]), result["name"]
    tables = {f"{name}: microseconds": [headers(cells), *lines(result)]}
    if convolutions := conv_lines(result):
        tables[f"{name}: convolutions, microseconds"] = [conv_headers(cells), *convolutions]
    print_report(tables, notes(result), verdicts(result), width=160)


# The roofline


def arithmetic_roof(result: dict[str, Any], kind: Kind) -> tuple[float | None, str]:
    """Operations a second that bound a product here, and what that is."""
    gpu = result["environment"]["gpu"] or "" if result["device"] == "cuda" and kind.activation == 8 else ""
    for name, speed in DATASHEET.items():
        if name in gpu:
            return speed, f"int8 by the {name}'s data sheet, {speed / 1e12:.0f} TOPS"
    what = "bfloat16 matmul" if result["device"] == "cuda" else "fp32 matmul"
    speed = result["matmul_per_s"]
    return speed, "" if speed is None else f"torch's {what}, {speed / 1e12:.3g} TFLOP/s (measured)"


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
    """How many times fastq's time the others take, at the most images."""
    convs = {key: (cell, own) for key, cell in cells.items() if KINDS[key[0]].conv and (own := ours(cell)) is not None}
    images = max((key[2] for key in convs), default=0)
    names, kinds = list(dict.fromkeys(key[1] for key in convs)), list(dict.fromkeys(key[0] for key in convs))
    if not names:
        axis.set_axis_off()
        return
    for i, kind in enumerate(kinds):
        for peer in peers:
            points = [
                (us(cell[peer]) / us(own), names.index(key[1]) + 0.3 * i - 0.15)
                for key, (cell, own) in convs.items()
                if (key[0], key[2]) == (kind, images) and peer in cell
            ]
            if points:
                label = f"{peer}, fastq {kind.removeprefix('conv-')}"
                axis.plot(
                    *zip(*points, strict=True), "os"[i % 2], color=colors[peer], fillstyle=("full", "none")[i % 2], label=label
                )
    axis.axvline(1.0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(left=0)
    axis.set(xlabel="times fastq's time", title=f"ResNet-50's convolutions, images: {images}")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)


def plot(result: dict[str, Any], path: Path) -> bool:
    """Speed over rows for each kind under the two roofs, and the convolutions, as a PNG; False without matplotlib or rows."""
    cells, name = by_case(result["rows"]), _drawn(result)
    of = layer(name)
    if of is None or not cells:
        return False
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter

    kinds = [kind for kind in KINDS.values() if not kind.conv and any(key[:2] == (kind.name, name) for key in cells)]
    figure, axes = pyplot.subplots(2, 3, figsize=(19, 11), layout="constrained")
    peers = sorted({p for cell in cells.values() for p in cell if not p.startswith("fastq-")})
    colors = dict(zip(peers, PALETTE, strict=False))
    for kind, axis in zip(kinds, axes.flat, strict=False):
        mine = {key[2]: cell for key, cell in cells.items() if key[:2] == (kind.name, name)}
        axis.set(xscale="log", yscale="log", xlabel="rows M", ylabel="TOPS", title=f"{kind.name}, {name}")
        _speeds(axis, mine, [p for p in peers if any(p in cell for cell in mine.values())], colors)
        _roofs(axis, result, kind, of, sorted(mine))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.grid(alpha=0.3, which="major")
        axis.legend(fontsize=8, loc="lower right")
    for unused in list(axes.flat)[len(kinds) : 5]:
        unused.set_axis_off()
    _convolutions(axes.flat[5], cells, peers, colors)
    where = result["environment"]["gpu"] if result["device"] == "cuda" else result["environment"]["cpu"]
    figure.suptitle(f"Integer products on {where}, torch {result['environment']['torch']}, {result['created'][:10]}", fontsize=11)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
    return True
