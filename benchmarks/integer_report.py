"""What the integer suite's measurements say: fastq's choice beside the best peer, and goals met or not, as tables.

Every ratio is fastq's time as a share of another's: below 1 fastq is the faster, and less is better.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from .products import FORCED_GOALS, GOALS, KINDS, PACKED, PACKED_BITS, Goal, layer, plan
from .report import Verdict, figure, machine, print_report
from .results import DISTURBED

__all__ = ["IN_8_BITS", "block", "every_time", "int8_roof", "notes", "show", "tables", "verdicts"]

#: Of the numbers of rows: those with a column in the table.
COLUMNS = (1, 16, 64, 256, 1024, 8192)
#: What :attr:`Goal.measure` has of fastq alone, which is measured at more numbers of rows than others are.
OWN = ("tops", "us", "jump", "W8A8")
#: The kernels that a CPU's goals are of.
AMX = "amx"
#: The provider that is fastq with the codes of fewer bits held in 8.
IN_8_BITS = "fastq-8bit"
#: Columns of a CPU's tables beside the kinds: a kind's time as a share of another's (as :attr:`Goal.measure`).
SHARES = {"W4A8": (("W8A8", "of our W8A8"), ("onnxruntime", "of onnxruntime"))}

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


def share(own: dict[str, Any] | None, other: dict[str, Any] | None) -> float | None:
    """The time of ``own`` over that of ``other``."""
    return None if own is None or other is None else us(own) / us(other)


def against(measure: str, key: tuple[str, str, int], cells: dict[tuple[str, str, int], Cell]) -> dict[str, Any] | None:
    """The row that :attr:`Goal.measure` compares with: ``best``, ``W8A8`` (in turns with it, where that was measured), peers."""
    cell = cells.get(key, {})
    if measure == "best":
        return best_peer(cell)
    if measure == "W8A8":
        return cell.get(IN_8_BITS) or ours(cells.get(("W8A8", *key[1:]), {}))
    return min((row for name, row in cell.items() if name.startswith(measure)), key=us, default=None)


def where(kind: str, of: str, rows: int) -> str:
    """A case, in words."""
    return f"{kind} {of} {'images' if KINDS[kind].conv else 'M'}={rows}"


def planned(goal: Goal, isa: str = "") -> list[str]:
    """The cases that a whole run has of the goal; ``isa``: with an instruction set forced."""
    if goal.measure == "packing":
        return [of_packed(PACKED.name, bits) for bits in PACKED_BITS]
    found = []
    for work in plan(goal.device, isa=isa):
        rows = {*work.rows, *(work.sweep if goal.measure in OWN else ())}
        if goal.measure == "jump":
            rows = {m for m in rows if m + 1 in rows and m < goal.rows[1]}
        found += [where(work.kind.name, work.layer.name, m) for m in sorted(rows) if goal.fits(work.kind.name, work.layer.name, m)]
    return found


def of_packed(of: str, bits: int) -> str:
    return f"{of}, {bits} bits, ms with its first row"


def values(goal: Goal, result: dict[str, Any]) -> list[tuple[float, str]]:
    """What the goal looks at, with where."""
    if goal.measure == "packing":
        packed = [row for row in result.get("packing", []) if row["status"] == "ok"]
        return [(row["first row"]["median_us"] / 1e3, of_packed(row["layer"], row["bits"])) for row in packed]
    found, cells = [], by_case([] if result["quick"] else result["rows"])
    for (kind, of, rows), cell in cells.items():
        own = ours(cell)
        if own is None or not goal.fits(kind, of, rows):
            continue
        value: float | None
        if goal.measure == "tops":
            value = tops(own)
        elif goal.measure == "us":
            value = us(own)
        elif goal.measure == "jump":
            more = ours(cells.get((kind, of, rows + 1), {}))
            value = None if more is None or rows >= goal.rows[1] else us(more) / us(own)
        else:
            value = share(own, against(goal.measure, (kind, of, rows), cells))
        if value is not None:
            found.append((value, where(kind, of, rows)))
    return found


def without_time(goal: Goal, result: dict[str, Any]) -> list[str]:
    """The cases of the goal of which fastq has rows and no time: a goal is not met there, whatever the others say."""
    cells, found = by_case(result["rows"]), {}
    for row in result["rows"]:
        key = (row["kind"], row["layer"], row["rows"])
        if goal.fits(*key) and row["status"] != "ok" and row["provider"].startswith("fastq-") and ours(cells.get(key, {})) is None:
            found[f"{row['kind']} {row['layer']} {row['rows']}"] = None
    return list(found)


def verdicts(result: dict[str, Any]) -> list[Verdict]:
    """The goals: of a GPU those of an H200, on others none; of a CPU those of two cores with AMX, whatever it is."""
    if result["device"] == "cuda" and "H200" not in (result["environment"]["gpu"] or ""):
        return []
    found = [verdict(goal, result) for goal in GOALS if goal.device == result["device"]]
    for one in result.get("forced", []):
        for goal in FORCED_GOALS:
            v = verdict(goal, {**result, "rows": one["rows"]}, one["isa"])
            found.append(dataclasses.replace(v, goal=f"kernels of {one['isa']}: {goal.name}"))
    return found


def verdict(goal: Goal, result: dict[str, Any], isa: str = "") -> Verdict:
    """The worst case. Met only where every case that is planned is there; where ours has failed in one it is not."""
    there = values(goal, result)
    worst, case = (max if goal.at_most else min)(there, default=(None, ""))
    if worst is None:
        return Verdict(goal.name, None, "", goal.bound, None, goal.at_most)
    met: bool | None = worst <= goal.bound if goal.at_most else worst >= goal.bound
    measured = [name for _, name in there]
    lacking = [name for name in planned(goal, isa) if name not in measured]
    if lacking:
        met = None if met else False
        case += f"; {len(measured)} of {len(measured) + len(lacking)} cases, without {listed(lacking)}"
    if left := without_time(goal, result):
        met, case = False, f"{case}; no time of ours in {listed(left)}"
    return Verdict(goal.name, worst, case, goal.bound, met, goal.at_most)


def listed(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (" and others" if len(names) > 12 else "")


# Tables


def headers(cells: Iterable[tuple[str, str, int]]) -> list[str]:
    rows = {m for kind, _, m in cells if not KINDS[kind].conv}
    return ["kind, layer", *(f"M = {m}" for m in COLUMNS if m in rows)]


def time_text(microseconds: float) -> str:
    return f"{microseconds:.0f}" if microseconds >= 100 else f"{microseconds:.1f}"


def cell_text(cell: Cell | None) -> str:
    """fastq's microseconds and their share of the best peer's."""
    own = ours(cell or {})
    if own is None:
        return "-"
    peer, time = best_peer(cell or {}), time_text(us(own))
    return time if peer is None else f"{time} ({us(own) / us(peer):.2f} {peer['provider']})"


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


def by_rows(rows: list[dict[str, Any]], of: str) -> list[list[str]]:
    """Of one linear layer on a CPU: headers, and a line for each number of rows."""
    cells = {key: cell for key, cell in by_case(rows).items() if key[1] == of}
    kinds = [kind for kind in KINDS if any(key[0] == kind for key in cells)]
    head, found = [f"{of}, M ="], [[f"{m}"] for m in sorted({key[2] for key in cells})]
    for kind in kinds:
        head += [kind, *(f"{kind} {title}" for _, title in SHARES.get(kind, ()))]
        for line in found:
            key = (kind, of, int(line[0]))
            shares = [share(ours(cells.get(key, {})), against(measure, key, cells)) for measure, _ in SHARES.get(kind, ())]
            line[len(line) :] = [cell_text(cells.get(key)), *("-" if value is None else f"{value:.2f}" for value in shares)]
    return [head, *found]


def of_forced(one: dict[str, Any]) -> list[list[str]]:
    """With an instruction set forced: a line for each layer and number of rows, convolutions under the kind of their widths."""
    cells = by_case(one["rows"])
    kinds = list(dict.fromkeys(kind.removeprefix("conv-") for kind, _, _ in cells))
    found = [[f"kernels of {one['isa']}", *kinds]]
    for of, rows in dict.fromkeys(key[1:] for key in cells):
        mine = {kind.removeprefix("conv-"): cell for (kind, *at), cell in cells.items() if tuple(at) == (of, rows)}
        found.append([f"{of}, {rows}", *(cell_text(mine.get(kind)) for kind in kinds)])
    return found


def of_packing(result: dict[str, Any]) -> list[list[str]]:
    """Milliseconds."""
    rows = [row for row in result.get("packing", []) if row["status"] == "ok"]
    if not rows:
        return []
    found = [[f"packing {rows[0]['layer']}, ms", *(f"{row['bits']} bits" for row in rows)]]
    for which, title in (("pack", "fastq.pack"), ("first row", "and a first row multiplied")):
        found.append([title, *(f"{row[which]['median_us'] / 1e3:.1f}" for row in rows)])
    return found


def of_networks(result: dict[str, Any]) -> list[list[str]]:
    """Milliseconds; of ours with their share of the time of torch's fastest."""
    grouped: dict[tuple[str, int], Cell] = {}
    for row in result.get("networks", []):
        if row["status"] == "ok":
            grouped.setdefault((row["network"], row["batch"]), {})[row["provider"]] = row
    providers = list(dict.fromkeys(name for cell in grouped.values() for name in cell))
    found = [["network, batch: ms", *(name.removeprefix("fastq-") for name in providers)]] if grouped else []
    for (name, batch), cell in grouped.items():
        line, peer = [f"{name}, {batch}"], best_peer(cell)
        for provider in providers:
            text = f"{us(cell[provider]) / 1e3:.3g}" if provider in cell else "-"
            if provider in cell and peer is not None and provider.startswith("fastq-"):
                text += f" ({us(cell[provider]) / us(peer):.2f} {peer['provider']})"
            line.append(text)
        found.append(line)
    return found


def tables(result: dict[str, Any]) -> dict[str, list[list[str]]]:
    """By title: headers and lines."""
    cells, found = by_case(result["rows"]), {}
    if result["device"] == "cuda":
        found["microseconds"] = [headers(cells), *lines(result)]
    else:
        names = dict.fromkeys(of for kind, of, _ in cells if not KINDS[kind].conv)
        found |= {f"{of}, microseconds": by_rows(result["rows"], of) for of in names}
    found["convolutions, microseconds"] = [conv_headers(cells), *conv_lines(result)]
    for one in result.get("forced", []):
        found[f"kernels of {one['isa']}, microseconds"] = of_forced(one)
    found |= {"packing": of_packing(result), "networks": of_networks(result)}
    return {title: table for title, table in found.items() if len(table) > 1}


def every_time(result: dict[str, Any]) -> str:
    """All of a run as Markdown: of each kind and layer the median of every provider, in microseconds."""
    parts = ["# Every time of a run", "Generated by `python -m benchmarks.readme`. Medians in microseconds.", machine(result)]
    runs = [("", result["rows"]), *((f"Kernels of {one['isa']}: ", one["rows"]) for one in result.get("forced", []))]
    for title, rows in runs:
        cells = by_case(rows)
        for kind, of in dict.fromkeys(key[:2] for key in cells):
            mine = {m: cell for (*at, m), cell in cells.items() if tuple(at) == (kind, of)}
            providers = dict.fromkeys(name for cell in mine.values() for name in cell)
            lines = [[name, *(time_text(us(cell[name])) if name in cell else "-" for cell in mine.values())] for name in providers]
            parts.append(f"## {title}{kind} {of}")
            parts.append(_markdown([f"{'images' if KINDS[kind].conv else 'M'} =", *map(str, mine)], lines))
    return "\n\n".join(parts) + "\n"


def int8_roof(result: dict[str, Any]) -> tuple[float | None, str]:
    """The most int8 operations a second of anything in a CPU's run, and what did them."""
    speed: float | None = result["roofs"]["int8"] if "roofs" in result else None
    what = "oneDNN's int8 product of 1024^3"
    for row in result["rows"]:
        codes = KINDS[row["kind"]].activation == 8 and not row["provider"].endswith(("16", "32"))  # bfloat16 and float32
        if row["status"] == "ok" and codes and (reached := (tops(row) or 0.0) * 1e12) > (speed or 0.0):
            speed, what = reached, f"{row['provider']}, {row['kind']} {row['layer']} with {row['rows']}"
    return speed, what


def notes(result: dict[str, Any]) -> list[str]:
    """What a reader must know to read the tables, and the rows without a time."""
    how = (
        "CUDA events around the replay of a graph over more than 150 MB of weights (or 100 copies)"
        if result["device"] == "cuda"
        else "medians, providers in turns within one run, each with as many threads; the weight is one that is used again and "
        "again, as warm as the caches keep it; before a library with threads of its own is measured the others' have come to rest; "
        "onnxruntime's are told to stop spinning after a call (session.force_spinning_stop), so a call also wakes them: "
        "in a loop at M = 1 it may be faster"
    )
    kernels = sorted({row["provider"] for row in result["rows"] if row.get("chosen")})
    found = [
        machine(result),
        "Microseconds of fastq's choice; in brackets **fastq's time over that of the fastest other**, and who that is: below 1.00 "
        "fastq is the faster, as in the goals and in every table (columns `of our W8A8` and `of onnxruntime`: W4A8's time over "
        f"theirs; networks: ours over torch's fastest); {how}. Every "
        "time is of a result that was checked: fastq's against the reference, bit for bit where the input is codes. Outputs are "
        f"bfloat16, of convolutions int8 codes. Kernels chosen: {', '.join(kernels) or 'none'}.",
    ]
    for one in result.get("forced", []):
        settings = " ".join(f"{name}={value}" for name, value in one["settings"].items())
        said = "; libraries that it does not hold to it are left out"
        if one["reason"]:
            said = f"{': ended early: ' if one['rows'] else ': not measured: '}{one['reason']}"
        found.append(f"Kernels of {one['isa']}: {settings}{said}.".replace("..", "."))
    for row in (*result.get("packing", []), *result.get("networks", [])):
        if row["status"] != "ok":
            found.append(f"{row.get('network', 'packing')}, {row.get('provider', row.get('bits'))}: {row['reason']}.")
    if result["device"] == "cpu" and result["environment"]["isa"] != AMX:
        found.append(f"The goals are AMX's; the kernels here are of {result['environment']['isa']}.")
    speeds = []
    if "roofs" in result:
        cache, memory = result["roofs"]["cache"] / 1e9, result["roofs"]["memory"] / 1e9
        speed, what = int8_roof(result)
        speeds.append(f"16 MB are read again and again at {cache:.0f} GB/s, 512 MB at {memory:.0f} GB/s")
        speeds.append(f"the fastest int8 product does {(speed or 0) / 1e12:.3g} TOPS ({what})")
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
            f"Other programs took the processor from {len(disturbed)} cases, not to be trusted: {listed(sorted(disturbed))}."
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


def block(result: dict[str, Any], image: str = "", every: str = "") -> str:
    """One run as Markdown: what was measured and how, the goals, the tables, the plot; ``every``: where all its times are."""
    words = {True: "met", False: "**not met**", None: "not measured"}
    parts = notes(result)
    if found := verdicts(result):
        bounds = [f"{'at most ' if v.at_most else ''}{figure(v.needed)}" for v in found]
        worst = ["" if v.worst is None else f"{figure(v.worst)} (goal {b}), {v.case}" for v, b in zip(found, bounds, strict=True)]
        lines = [[v.goal, case, words[v.met]] for v, case in zip(found, worst, strict=True)]
        parts.append(_markdown(["goal", "worst case", ""], lines))
    parts += [_markdown(head, rows) for head, *rows in tables(result).values()]
    if every:
        parts.append(f"[Every provider's times]({every}).")
    if image:
        parts.append(f"![{result['name']}]({image})")
    return "\n\n".join(parts)


def show(result: dict[str, Any]) -> None:
    """Print tables, notes and goals."""
    found = {f"{result['name']}: {title}": table for title, table in tables(result).items()}
    print_report(found, notes(result), verdicts(result), width=200)
