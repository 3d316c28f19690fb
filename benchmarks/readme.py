"""Writes what is generated from the result files: README's blocks of benchmarks and claims, ``results/PENDING.md``, and beside a
result of integer products on a CPU every time of it.

``python -m benchmarks.readme`` (``make bench`` and ``make compare`` do it). ``--check`` writes nothing and exits with 1 if a file
is not what would be written; ``--plots`` draws the plots again too.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from fastq.engine import table

from . import compare, gpu, integer_plot, integer_report, products, report, results, training
from .peers import candidates
from .registry import METHODS, PASSES, PROVIDERS

BEGIN, END = "<!-- benchmark:begin -->", "<!-- benchmark:end -->"
PRODUCTS_BEGIN, PRODUCTS_END = "<!-- integer:begin -->", "<!-- integer:end -->"
TRAINING_BEGIN, TRAINING_END = "<!-- training:begin -->", "<!-- training:end -->"
CLAIMS_BEGIN, CLAIMS_END = "<!-- compare:begin -->", "<!-- compare:end -->"
README = results.ROOT / "README.md"
PENDING = results.FOLDER / "PENDING.md"


def newest(folder: Path, kind: str = "benchmark") -> dict[str, Any] | None:
    """The last whole run in a folder."""
    found = [result for result in results.read_all(folder, kind) if not result["quick"] and not result["dry"]]
    return found[-1] if found else None


def shown(case: str) -> bool:
    """Whether the README has the case whatever it says; others where a goal depends on them. The result file has all."""
    return not case.startswith("resnet50/") and (not case.startswith("size/") or case.endswith("/fp32/tensor"))


def block(result: dict[str, Any], image: str = "") -> str:
    """One run as Markdown: what was measured and how, the table, the goals, the plot."""
    titles = report.headers()
    rows = ["| " + " | ".join(titles) + " |", "|---" + "|---:" * (len(titles) - 1) + "|"]
    decisive = {verdict.case for verdict in report.verdicts(result)}
    rows += ["| " + " | ".join(cells) + " |" for cells in report.lines(result) if shown(cells[0]) or cells[0] in decisive]
    words = {True: "met", False: "**not met**", None: "not measured"}
    goals = ["| goal | worst case | |", "|---|---|---|"]
    for v in report.verdicts(result):
        worst = "" if v.worst is None else f"{report.figure(v.worst)} (goal {report.figure(v.needed)}), {v.case}"
        goals.append(f"| {v.goal} | {worst} | {words[v.met]} |")
    plot = [f"![{result['name']}]({image})"] if image else []
    return "\n\n".join([*report.notes(result), "\n".join(rows), "\n".join(goals), *plot])


def image(result: dict[str, Any], folder: Path) -> str:
    """The plot beside a committed result, as the README links it; empty if there is none."""
    path = folder / f"{result['name']}.png"
    return path.relative_to(results.ROOT).as_posix() if path.exists() and path.is_relative_to(results.ROOT) else ""


def times_beside(run: dict[str, Any], folder: Path) -> Path | None:
    """The file with every time of a run of integer products on a CPU, of which the README has a part."""
    return folder / f"{run['name']}.md" if run["device"] == "cpu" else None


def products_block(run: dict[str, Any], folder: Path) -> str:
    """One run of the integer suite, with where all of it is."""
    path = times_beside(run, folder)
    every = path.relative_to(results.ROOT).as_posix() if path is not None and path.is_relative_to(results.ROOT) else ""
    return integer_report.block(run, image(run, folder), every)


def readme(text: str, folder: Path = results.FOLDER) -> str:
    """``text`` with its blocks generated: of the newest CPU and GPU run of each suite and of training steps, and of the comparison;
    markers are added if absent."""
    for kind, heading, begin, end, write, how in (
        ("benchmark", "Speed", BEGIN, END, lambda run, where: block(run, image(run, where)), "make bench"),
        ("integer", "Speed of the integer products", PRODUCTS_BEGIN, PRODUCTS_END, products_block, "make bench-integer"),
    ):
        runs = [(run, where) for where in (folder, folder / "gpu") if (run := newest(where, kind)) is not None]
        body = "\n\n".join(write(run, where) for run, where in runs) if runs else f"Not measured yet: `{how}`."
        text = _replaced(text, heading, begin, end, body)
    steps = [run for run in (newest(folder / "training"), newest(folder / "gpu", "training")) if run is not None]
    body = (
        "\n\n".join(f"{report.machine(run)}\n\n{training.table(run)}" for run in steps)
        or "Not measured yet: `make bench-training`."
    )
    text = _replaced(text, "Training steps", TRAINING_BEGIN, TRAINING_END, body)
    found = results.read_all(folder, "comparison")
    claims = compare.block(found[-1], image(found[-1], folder)) if found else "No comparison yet: `make compare`."
    return _replaced(text, "The papers' claims, on digits", CLAIMS_BEGIN, CLAIMS_END, claims)


def _replaced(text: str, heading: str, begin: str, end: str, body: str) -> str:
    """``text`` with ``body`` between its markers, which are added under ``heading`` if absent."""
    if begin not in text or end not in text:
        text = f"{text.rstrip()}\n\n## {heading}\n\n{begin}\n{end}\n"
    before, rest = text.split(begin, 1)
    return f"{before}{begin}\n{body}\n{end}{rest.split(end, 1)[1]}"


# What has never run

PREFACE = """# What has never run

Generated by `python -m benchmarks.readme`: the registry and the parts of `make gpu`, minus the results in `gpu/`.
A part that ran and failed is in its result file, not here.
"""
LEVELS = ("v2", "v3", "v4", "vnni", "amx")


def untried_levels(folder: Path) -> list[str]:
    """The instruction sets above the best one that any committed result comes from: compiled, and never run."""
    ran = {run["environment"]["isa"] for kind in results.MEASURED for run in results.read_all(folder, kind)}
    return list(LEVELS[max((i + 1 for i, level in enumerate(LEVELS) if level in ran), default=0) :])


def ran(folder: Path) -> tuple[dict[tuple[str, str, str], set[str]], dict[str, set[str]]]:
    """``{(method, case, provider): passes}`` and ``{stage: parts}`` with a result from a GPU, passed or not."""
    rows: dict[tuple[str, str, str], set[str]] = {}
    parts: dict[str, set[str]] = {}
    for kind in results.KINDS:
        for result in results.read_all(folder, kind):
            if result["dry"]:
                continue
            for row in result.get("rows", []) if kind == "benchmark" else []:
                if row["device"] == "cuda" and row["status"] in ("ok", "failed"):
                    rows.setdefault((row["method"], row["case"], row["provider"]), set()).update(PASSES)
            stage = "bench" if kind == "benchmark" else kind
            parts.setdefault(stage, set()).update(p["name"] for p in result.get("parts", []) if p["status"] != "timeout")
    return rows, parts


def pending(folder: Path = results.FOLDER / "gpu") -> str:
    """``PENDING.md``: the registry and the plan of ``make gpu`` minus the results in ``folder``."""
    rows, parts = ran(folder)
    out = [PREFACE]
    levels = [f"- {level}: compiled; no result here comes from a machine that runs it" for level in untried_levels(folder.parent)]
    out += [f"## CPU kernels: {len(levels)} of {len(LEVELS)} levels", "", *levels, ""]
    providers = [p for p in PROVIDERS if p.backend != "cpu"]
    lines, missing, total = [], 0, 0
    for method in METHODS:
        for case in method.cases("cuda"):
            found = []
            for provider in providers:
                lacking = [w for w in PASSES if w not in rows.get((method.name, case.name, provider.name), ())]
                total += len(PASSES)
                missing += len(lacking)
                if lacking:
                    found.append(provider.name if len(lacking) == len(PASSES) else f"{provider.name} ({', '.join(lacking)})")
            if found:
                who = "every provider" if found == [p.name for p in providers] else ", ".join(found)
                lines.append(f"- {method.name} {case.name}: {who}")
    names = ", ".join(p.name for p in providers)
    out += [f"## GPU benchmarks: {missing} of {total} measurements", "", f"Providers: {names}; passes: {', '.join(PASSES)}.", ""]
    out += [*lines, ""]
    out += pending_products(folder)
    for stage in ("test", "sanitize", "training"):
        expected = gpu.names(stage)
        left = [name for name in expected if name not in parts.get(stage, ())]
        out += [f"## GPU {stage}: {len(left)} of {len(expected)} parts", "", *(f"- {name}" for name in left), ""]
    return "\n".join(out).rstrip() + "\n"


def wanted_products(work: products.Work) -> dict[str, set[int]]:
    """The rows that each provider is measured at on a Hopper GPU: fastq's choice, its kernels for GPUs, the peers."""
    wanted = {"fastq": {*work.rows, *work.sweep}}
    for kernel in table.KERNELS.values():
        if kernel.backend in ("cuda", "triton") and (kernel.conv2d if work.kind.conv else kernel.linear) is not None:
            problems = {rows: products.problem(work.kind, work.layer, rows, "cuda", 90) for rows in work.rows}
            if served := {rows for rows, problem in problems.items() if kernel.refuses(problem) is None}:
                wanted[f"fastq-{kernel.name}"] = served
    return wanted | {peer.name: set(work.rows) for peer in candidates(work.kind, "cuda")}


def pending_products(folder: Path) -> list[str]:
    """The integer products without a result from a GPU, as lines: of each layer at each kind the providers that lack some rows."""
    done: dict[tuple[str, str, str], set[int]] = {}
    for result in results.read_all(folder, "integer"):
        for row in [] if result["dry"] else result["rows"]:
            if row["device"] == "cuda" and row["status"] in ("ok", "failed"):
                for name in (row["provider"], *(["fastq"] if row.get("chosen") else [])):
                    done.setdefault((row["kind"], row["layer"], name), set()).add(row["rows"])
    lines, missing, total = [], 0, 0
    for work in products.plan("cuda"):
        found = []
        for provider, wanted in wanted_products(work).items():
            lacking = wanted - done.get((work.kind.name, work.layer.name, provider), set())
            total += len(wanted)
            missing += len(lacking)
            if lacking:
                found.append(provider if lacking == wanted else f"{provider} ({len(lacking)} of {len(wanted)})")
        if found:
            lines.append(f"- {work.name}: {', '.join(found)}")
    rows = ", ".join(map(str, products.ROWS))
    return [
        f"## GPU integer products: {missing} of {total} measurements",
        "",
        f"Rows: {rows}; fastq's choice on {products.LARGE.name} every number to {products.SWEEP[-1]}; images: "
        f"{', '.join(map(str, products.IMAGES))}. Open until then are the goals, which are an H200's:",
        "",
        *(f"- {goal.name}" for goal in products.GOALS if missing and goal.device == "cuda"),
        "",
        *lines,
        "",
    ]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file is out of date")
    parser.add_argument("--plots", action="store_true", help="draw the plots of all results again")
    args = parser.parse_args(arguments)
    wanted = {README: readme(README.read_text()), PENDING: pending()}
    run = newest(results.FOLDER, "integer")
    if run is not None and (path := times_beside(run, results.FOLDER)) is not None:
        wanted[path] = integer_report.every_time(run)
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    for path in stale:
        name = path.relative_to(results.ROOT)
        if args.check:
            print(f"{name} is out of date: python -m benchmarks.readme", file=sys.stderr)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(wanted[path])
            print(f"wrote {name}")
    if args.plots and not args.check:
        for folder in (results.FOLDER, results.FOLDER / "gpu"):
            for path in sorted(folder.glob("*.json")):
                result = results.read(path)
                draw = {"benchmark": report.plot, "integer": integer_plot.plot}.get(result["kind"])
                if draw is not None and draw(result, path.with_suffix(".png")):
                    print(f"drew {path.with_suffix('.png').relative_to(results.ROOT)}")
    return 1 if args.check and stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
