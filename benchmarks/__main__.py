"""``python -m benchmarks``: measure here, print the table, write ``results/NAME.json`` and a plot.

It starts pytest-benchmark on ``benchmarks/test_benchmarks.py`` in a new process with glibc told to keep its pages (that
cannot be said to a process that runs). On a GPU, or with ``--plain``, the same measurement runs without pytest.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from pathlib import Path

from . import results

MARK = "FASTQ_BENCHMARK_STARTED"


def positive(text: str) -> int:
    """A number of elements: 65536, 64k, 1M."""
    found = re.fullmatch(r"(\d+)([kKmM]?)", text)
    if not found or int(found[1]) == 0:
        raise argparse.ArgumentTypeError(f"expected a number of elements such as 65536, 64k or 1M, got {text!r}")
    return int(found[1]) * {"": 1, "k": 2**10, "m": 2**20}[found[2].lower()]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="tiny cases only, in seconds")
    parser.add_argument("--filter", default="", metavar="TEXT", help="cases whose name contains TEXT, such as weight or /bf16/")
    parser.add_argument("--method", default="", metavar="NAME", help="one method, such as lsq")
    parser.add_argument("--sizes", type=positive, nargs="+", default=[], metavar="N", help="cases of N elements: 64k 1M")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--budget", type=float, default=1.5, metavar="SECONDS", help="of timing per case (default %(default)s)")
    parser.add_argument("--name", help="of the result file (default cpu or cuda, quick with --quick)")
    parser.add_argument("--out", type=Path, help="folder of the results (default benchmarks/results; a new one for a part)")
    parser.add_argument("--plain", action="store_true", help="without pytest-benchmark")


def main(arguments: list[str] | None = None) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, formatter_class=raw)
    add_arguments(parser)
    args = parser.parse_args(arguments)
    from .session import plan

    if not plan(args):
        parser.error("no case has such a name and size; `--filter` is a part of names like weight/4096x4096/fp32/tensor")
    if MARK not in os.environ:
        given = sys.argv[1:] if arguments is None else arguments
        env = {**os.environ, **results.MALLOC, MARK: "1"}
        if not args.quick:  # first calls pay what a new user pays
            cache = results.ROOT / "build" / "benchmark-compiled"
            shutil.rmtree(cache, ignore_errors=True)
            env["TORCHINDUCTOR_CACHE_DIR"] = str(cache)
        os.chdir(results.ROOT)
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks", *given], env)
    if args.plain or args.device == "cuda":
        from .session import run_plain

        return run_plain(args)
    import pytest

    from .session import Plugin

    tests = str(results.ROOT / "benchmarks" / "test_benchmarks.py")
    columns = "--benchmark-columns=median,iqr,min,rounds"
    options = ["-q", "--benchmark-only", columns, "--benchmark-sort=name", "-p", "no:cacheprovider"]
    return int(pytest.main([tests, *options], plugins=[Plugin(args)]))


if __name__ == "__main__":
    raise SystemExit(main())
