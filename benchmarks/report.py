"""What the measurements say: ratios within one run, goals met or not, a table and a plot."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .registry import BANDWIDTH_GOAL, CPU_GOALS, GPU_GOALS, METHODS, Case, Goal, cases, few_cases, quick_cases
from .results import DISTURBED, NO_SUCH_OP

CASES = {case.name: case for case in (*cases(), *few_cases("cuda"), *quick_cases(), *(c for m in METHODS for c in m.own_cases))}


def median(row: dict[str, Any], which: str = "both") -> float | None:
    """Microseconds, or None for a row without times."""
    return row["passes"][which]["median_us"] if row["status"] == "ok" else None


def label(row: dict[str, Any]) -> str:
    """``METHOD CASE``; LSQ's cases, which are most, by the case alone."""
    return row["case"] if row["method"] == "lsq" else f"{row['method']} {row['case']}"


def split(name: str) -> tuple[str, Case | None]:
    """The method and the case of a label; None for a case that the registry no longer has."""
    method, _, case = name.rpartition(" ")
    return method or "lsq", CASES.get(case)


def by_case(rows: Iterable[dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """``{label: {provider: row}}``, in the order measured."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(label(row), {})[row["provider"]] = row
    return found


def fastest(providers: dict[str, dict[str, Any]], device: str) -> dict[str, Any] | None:
    """fastq's row that a user gets on ``device``: the native backend, or Triton where that is not there."""
    names = ("fastq-cpu",) if device == "cpu" else ("fastq-cuda", "fastq-triton")
    return next((providers[name] for name in names if name in providers and providers[name]["status"] == "ok"), None)


def ratio(providers: dict[str, dict[str, Any]], baseline: str, device: str, which: str = "both") -> float | None:
    """How many times faster than ``baseline`` fastq is; None where one of them has no time."""
    ours, other = fastest(providers, device), providers.get(baseline)
    if ours is None or other is None or other["status"] != "ok":
        return None
    return median(other, which) / median(ours, which)  # type: ignore[operator]


@dataclass(frozen=True)
class Verdict:
    """A goal on one run: the worst of its cases; ``met`` is None where nothing was measured. ``at_most``: less is better."""

    goal: str
    worst: float | None
    case: str
    needed: float
    met: bool | None
    at_most: bool = False


def judge(goal: Goal, rows: Sequence[dict[str, Any]], device: str) -> Verdict:
    """The smallest ratio over the cases that the goal applies to."""
    ratios = []
    for name, providers in by_case(rows).items():
        method, known = split(name)
        if known is not None and goal.applies(method, known):
            value = ratio(providers, goal.baseline, device)
            if value is not None:
                ratios.append((value, name))
    worst, case = min(ratios, default=(None, ""))
    return Verdict(goal.name, worst, case, goal.at_least, None if worst is None else worst >= goal.at_least)


def verdicts(result: dict[str, Any]) -> list[Verdict]:
    """Every goal of the run's device."""
    device, rows = result["device"], result["rows"]
    found = [judge(goal, rows, device) for goal in (CPU_GOALS if device == "cpu" else GPU_GOALS)]
    saved: list[tuple[float, str]] = []
    shares: list[tuple[float, str]] = []
    for name, providers in by_case(rows).items():
        ours, (method, case) = fastest(providers, device), split(name)
        if ours is None or case is None:
            continue
        if method == "lsq":
            saved.append((ours["saved_bytes"] / _input_bytes(case), name))
        if device == "cuda" and case.elements >= 2**26:
            for which in ("forward", "backward"):
                if "of_copy" in ours["passes"][which]:
                    shares.append((ours["passes"][which]["of_copy"], f"{name} {which}"))
    most, where = max(saved, default=(None, ""))
    title = "LSQ, saved memory: no more than the inputs"
    found.append(Verdict(title, most, where, 1.0, None if most is None else most <= 1.0))
    if device == "cuda":
        least, where = min(shares, default=(None, ""))
        title = f"64 M: forward and backward at {BANDWIDTH_GOAL:.0%} of the copy bandwidth"
        found.append(Verdict(title, least, where, BANDWIDTH_GOAL, None if least is None else least >= BANDWIDTH_GOAL))
    return found


def _input_bytes(case: Case) -> int:
    """``x`` and the step: what has to be kept."""
    steps = 1
    for n in case.step_shape:
        steps *= n
    return case.nbytes + 4 * steps


def headers() -> list[str]:
    return ["case", "fastq us", "eager", "compiled", "core", "saved", "peak", "first call s (compiled)"]


def lines(result: dict[str, Any]) -> list[list[str]]:
    """The table's rows: fastq's time for forward and backward, and how many times that the others take."""
    device, table = result["device"], []
    for name, providers in by_case(result["rows"]).items():
        ours, (_, case) = fastest(providers, device), split(name)
        cells = [name, f"{median(ours):.1f}" if ours else "-"]
        for baseline in ("eager", "compiled", "core"):
            value = ratio(providers, baseline, device)
            cells.append(f"{value:.2f}x" if value else _why(providers.get(baseline)))
        if ours and case:
            cells += [f"{ours['saved_bytes'] / case.nbytes:.2f}", f"{ours['peak_bytes'] / case.nbytes:.2f}"]
        else:
            cells += ["-", "-"]
        compiled = providers.get("compiled", {})
        first = (row.get("first_call_s") for row in (ours or {}, compiled))
        cells.append(" / ".join("-" if value is None else f"{value:.3f}" for value in first))
        table.append(cells)
    return table


def _why(row: dict[str, Any] | None) -> str:
    return "-" if row is None or row["status"] in ("ok", "unavailable") else row["status"]


def machine(result: dict[str, Any]) -> str:
    """Where, with what and when."""
    e = result["environment"]
    state = {True: " and uncommitted changes", False: "", None: ""}[e["dirty"]]
    where = e["gpu"] if result["device"] == "cuda" else f"{e['cpu']}, {e['threads']} threads, kernels {e['isa']}"
    commit = f"commit {e['commit'][:12]}{state}" if e["commit"] else f"source {e['source']}"
    return f"{where}; torch {e['torch']}, triton {e['triton']}, Python {e['python']}; {commit}; {result['created'][:10]}."


def notes(result: dict[str, Any]) -> list[str]:
    """What a reader must know to read the table, and the rows without a time."""
    e = result["environment"]
    kept = "kept" if len(e["malloc"]) == 3 else "not kept: page faults are in the times"
    how = "CUDA events, cold L2 cache, graph replay" if result["device"] == "cuda" else f"glibc's freed pages {kept} (MALLOC_*)"
    found = [
        machine(result),
        f"Medians of forward + backward, providers in turns within one run; {how}. Columns eager, compiled, core: how many times "
        "fastq's time they take, above 1 fastq is the faster; saved, peak: bytes as multiples of the input's.",
    ]
    measured = {row["method"] for row in result["rows"]}
    if made := [f"{m.name} ({m.reconstruction})" for m in METHODS if m.reconstruction and m.name in measured]:
        found.append(f"Reconstructions, whose equations were not published in the sources we had: {', '.join(made)}.")
    shares = {label(row): row["waited"] for row in result["rows"] if "waited" in row}
    if disturbed := [case for case, share in shares.items() if share > DISTURBED]:
        found.append(f"Other programs took the processor from these, which are not to be trusted: {', '.join(disturbed)}.")
    elif not shares and result["load"] > 0.5:
        found.append(f"The machine was busy (load average {result['load']:.1f} at the start): small sizes are not to be trusted.")
    if result.get("copy_bytes_per_s"):
        found.append(f"Copy bandwidth measured: {result['copy_bytes_per_s'] / 1e9:.0f} GB/s.")
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in result["rows"]:
        reason = row.get("reason") or row.get("note")
        if reason and not reason.endswith(NO_SUCH_OP):  # the table's "-" says it
            reasons.setdefault((row["provider"], reason), []).append(label(row))
    for (provider, reason), where_ in reasons.items():
        cases_ = where_[0] if len(where_) == 1 else f"{len(where_)} cases"
        found.append(f"{provider}, {cases_}: {reason}")
    return found


def figure(value: float) -> str:
    """Three digits: two after the point hide whether 1.004 is at most 1, and what a 17th is."""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def verdict_line(v: Verdict) -> str:
    word = {True: "met", False: "not met", None: "not measured"}[v.met]
    goal = f"{'at most ' if v.at_most else ''}{figure(v.needed)}"
    value = "" if v.worst is None else f": {figure(v.worst)} (goal {goal}) in {v.case}"
    return f"{word:<12} {v.goal}{value}"


def show(result: dict[str, Any]) -> None:
    """Print table, notes and goals."""
    tables = {f"{result['name']}: forward + backward": [headers(), *lines(result)]}
    print_report(tables, notes(result), verdicts(result), width=140)


def print_report(tables: dict[str, list[list[str]]], notes: Sequence[str], goals: Sequence[Verdict], width: int) -> None:
    """``tables``: rows by title, the first of which are headers. With rich where it is installed, ``width`` wide into a file."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        for rows in tables.values():
            widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
            for row in rows:
                print("  ".join(cell.ljust(size) for cell, size in zip(row, widths, strict=True)).rstrip())
        print("\n".join([*notes, *map(verdict_line, goals)]))
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=width)
    for title, (head, *rows) in tables.items():
        table = Table(title=title)
        for i, name in enumerate(head):
            table.add_column(name, justify="left" if i == 0 else "right", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for note in notes:
        console.print(note, highlight=False)
    colors = {True: "green", False: "red", None: "yellow"}
    for goal in goals:
        console.print(verdict_line(goal), style=colors[goal.met], highlight=False)


def plot(result: dict[str, Any], path: Path) -> bool:
    """Time over size, and the speed-up on weights and activations, as a PNG; False without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    grouped = by_case(result["rows"])
    figure, (left, right, other) = pyplot.subplots(1, 3, figsize=(19, 5.5), layout="constrained")
    known = [(CASES[n], p) for n, p in grouped.items() if n in CASES]  # LSQ's
    sizes = [(c.elements, p) for c, p in known if c.family == "size" and c.name.endswith("fp32/tensor")]
    providers = list(dict.fromkeys(row["provider"] for row in result["rows"] if row["status"] == "ok"))
    for provider in providers:
        points = sorted((n, median(p[provider])) for n, p in sizes if p.get(provider, {}).get("status") == "ok")
        if points:
            left.plot(*zip(*points, strict=True), marker="o", label=provider)
    left.set(xscale="log", yscale="log", xlabel="elements", ylabel="microseconds", title="LSQ forward + backward, fp32, per tensor")
    if left.lines:
        left.legend()
    left.grid(alpha=0.3)
    bars = [(c.name, p) for c, p in known if c.family in ("weight", "activation")] or list(grouped.items())
    baselines = ("eager", "compiled", "core")
    for i, baseline in enumerate(baselines):
        heights = [ratio(p, baseline, result["device"]) or 0.0 for _, p in bars]
        right.barh([y + (i - 1) * 0.27 for y in range(len(bars))], heights, height=0.25, label=baseline)
    right.axvline(1.0, color="black", linewidth=0.8)
    right.set_yticks(range(len(bars)), [n for n, _ in bars])
    right.invert_yaxis()
    right.set(xlabel="times fastq's time", title="What the others take")
    right.legend()
    others = {n: p for n, p in grouped.items() if split(n)[0] != "lsq"}
    methods = list(dict.fromkeys(split(n)[0] for n in others))
    for i, (size, mark) in enumerate((("small", lambda c: c.elements < 2**16), ("large", lambda c: c.elements >= 2**22))):
        for j, method in enumerate(methods):
            values = [
                value for n, p in others.items()
                if split(n)[0] == method and (case := split(n)[1]) is not None and mark(case)
                and (value := ratio(p, "compiled", result["device"])) is not None
            ]  # fmt: skip
            other.plot(values, [j + 0.2 * i] * len(values), "os"[i], color=f"C{i}", label=size if j == 0 else None)
    other.axvline(1.0, color="black", linewidth=0.8)
    reconstructed = {m.name for m in METHODS if m.reconstruction}
    other.set_yticks(range(len(methods)), [f"{name}*" if name in reconstructed else name for name in methods])
    other.invert_yaxis()
    other.set(xlabel="times fastq's time (*: a reconstruction, or in part)", title="The other methods: what torch.compile takes")
    if methods:
        other.legend()
    where = result["environment"]["gpu"] if result["device"] == "cuda" else result["environment"]["cpu"]
    figure.suptitle(f"{where}, torch {result['environment']['torch']}, {result['created'][:10]}", fontsize=10)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return True
