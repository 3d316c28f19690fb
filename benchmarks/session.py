"""One run: the cases that were asked for, measured one after another; then table, file and plot."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

from . import measure, report, results
from .registry import Case, Method, select


def plan(args: argparse.Namespace) -> list[tuple[Method, Case]]:
    """What will be measured."""
    return select(args.filter, args.sizes, args.quick, args.device, args.method)


class Session:
    """Collects rows; ``finish`` prints and writes them."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.rows: list[dict[str, Any]] = []
        self.plan = plan(args)
        self.load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0  # what others do, before this run adds to it
        self.copy = measure.copy_bandwidth("cuda") if args.device == "cuda" else None
        self.folder = self.choose_folder()
        self.budget = min(args.budget, 0.2) if args.quick else args.budget

    def measure(self, method: Method, case: Case) -> tuple[list[dict[str, Any]], dict[str, dict[str, list[float]]]]:
        rows, times = measure.run_case(method, case, self.args.device, self.budget, self.copy)
        self.rows += rows
        return rows, times

    def result(self) -> dict[str, Any]:
        args = self.args
        name = args.name or ("quick" if args.quick else args.device)
        more = {"device": args.device, "quick": args.quick, "copy_bytes_per_s": self.copy, "load": self.load, "rows": self.rows}
        return results.validate(results.new("benchmark", name, **more))

    def choose_folder(self) -> Path:
        """Only whole runs replace the committed results."""
        args = self.args
        if args.out:
            return args.out
        return (
            Path(tempfile.mkdtemp(prefix="fastq-results-"))
            if args.quick or args.filter or args.sizes or args.method
            else results.FOLDER
        )

    def finish(self) -> int:
        result = self.result()
        report.show(result)
        path = results.write(result, self.folder)
        print(f"results: {path}")
        if report.plot(result, path.with_suffix(".png")):
            print(f"plot:    {path.with_suffix('.png')}")
        return 1 if any(row["status"] == "failed" and row["provider"].startswith("fastq") for row in self.rows) else 0


def run_plain(args: argparse.Namespace) -> int:
    """Without pytest: for GPUs and machines that lack it."""
    session = Session(args)
    for i, (method, case) in enumerate(session.plan, 1):
        print(f"[{i}/{len(session.plan)}] {method.name} {case.name}", flush=True)
        session.measure(method, case)
        if args.out:  # what is measured is kept if time runs out
            results.write(session.result(), session.folder)
    return session.finish()


class Plugin:
    """Gives the run's session to benchmarks/test_benchmarks.py and finishes it after pytest-benchmark's own table."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.session = Session(args)
        self.code = 0

    def pytest_configure(self, config: Any) -> None:
        config.fastq_session = self.session

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self.session.rows:
            self.code = self.session.finish()

    def pytest_sessionfinish(self, session: Any, exitstatus: int) -> None:
        if exitstatus == 0 and any(r["status"] == "failed" and r["provider"].startswith("fastq") for r in self.session.rows):
            session.exitstatus = 1
