"""``python -m fastq compare``: the papers' claims held against each other on handwritten digits, pair by pair."""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

from ..commands import can_write, has_packages, positive_integer

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "--output", type=Path, default=Path("compare_output"), metavar="DIR",
        help="for results, and for what is done so far: an interrupted run goes on (default %(default)s)",
    )  # fmt: skip
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument(
        "--workers", type=positive_integer, default=max(1, min(cores, 8)), metavar="N",
        help="processes of one thread; results do not depend on their number (default %(default)s)",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="a few steps and two seeds: to see that it runs")


def run(args: argparse.Namespace) -> int:
    """The command: 0; 1 where an identity does not hold; 2 for a folder or package that cannot be used."""
    if not has_packages("compare"):
        return 2
    units_folder = args.output / ("quick-units" if args.quick else "units")
    if not can_write("compare", args.output, units_folder):
        return 2
    from rich.console import Console
    from rich.progress import Progress

    from . import report, units
    from .identities import identities

    budget = units.QUICK if args.quick else units.FULL
    began = time.monotonic()
    checked = identities()
    console = Console()
    with Progress(console=console) as bar:
        task = bar.add_task("compare", total=None)

        def progress(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=what or "compare")
            if not what and done:
                console.print(f"{done} of {total} parts were there already: {units_folder}")

        results = units.run_all(budget, units_folder, args.workers, progress)
    result = report.summary(results, budget, checked, args.quick)
    console = Console(width=max(console.width, 150))  # piped, rich takes 80 columns and breaks the lines
    for table in report.tables(result):
        console.print(table)
    console.print(
        f"{report.shown(result)}: all {budget.seeds} seeds have the sign (by chance 1 in {2**budget.seeds}). Digits are easy: what "
        "does not show here may show on harder data."
    )
    (args.output / "compare.json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    report.picture(result, args.output / "compare.png")
    console.print(f"Picture and numbers: {args.output}  ({time.monotonic() - began:.0f} s)")
    return 0 if all(i["holds"] for i in result["identities"]) else 1
