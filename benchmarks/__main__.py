"""``python -m benchmarks``: measure here, print the table, write ``results/NAME.json`` and a plot.

Two suites, one after the other: the quantizers (``registry.py``) and the products of the integer engine (``products.py``), each in
a new process with glibc told to keep its pages (that cannot be said to a process that runs). The quantizers are measured under
pytest-benchmark, by ``benchmarks/test_benchmarks.py``; on a GPU, or with ``--plain``, without it.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from . import forced, results

SUITES = ("quantizers", "integer")
MARK = "FASTQ_BENCHMARK_STARTED"


def positive(text: str) -> int:
    """A number of elements: 65536, 64k, 1M."""
    found = re.fullmatch(r"(\d+)([kKmM]?)", text)
    if not found or int(found[1]) == 0:
        raise argparse.ArgumentTypeError(f"expected a number of elements such as 65536, 64k or 1M, got {text!r}")
    return int(found[1]) * {"": 1, "k": 2**10, "m": 2**20}[found[2].lower()]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--suite", choices=SUITES, help="only that one")
    parser.add_argument("--quick", action="store_true", help="tiny cases only, in seconds")
    parser.add_argument(
        "--filter", default="", metavar="TEXT", help="cases whose name contains TEXT, such as weight, /bf16/ or 8192x8192"
    )
    parser.add_argument("--method", default="", metavar="NAME", help="one method, such as lsq, or kind, such as W4A8")
    parser.add_argument("--sizes", type=positive, nargs="+", default=[], metavar="N", help="cases of N elements: 64k 1M")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--budget", type=float, default=1.5, metavar="SECONDS", help="of timing per case (default %(default)s)")
    parser.add_argument("--name", help="of the result file (default cpu or cuda, quick with --quick)")
    parser.add_argument("--out", type=Path, help="folder of the results (default benchmarks/results; a new one for a part)")
    parser.add_argument("--plain", action="store_true", help="without pytest-benchmark")
    parser.add_argument(
        "--isa",
        default="",
        choices=tuple(forced.FORCED),
        help="integer suite on the CPU: a few products with these kernels alone",
    )
    parser.add_argument("--rotate", action="store_true", help="integer suite on the CPU: time as on a GPU, to try that code")


def main(arguments: list[str] | None = None) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, formatter_class=raw)
    add_arguments(parser)
    args = parser.parse_args(arguments)
    from . import integer, session

    plans = {"quantizers": (lambda _: []) if args.isa else session.plan, "integer": integer.plan}
    suites = [name for name in SUITES if args.suite in (None, name) and plans[name](args)]
    given = sys.argv[1:] if arguments is None else arguments
    if not suites:
        parser.error("no case has such a name and size; `--filter` is a part of names like weight/4096x4096/fp32/tensor or "
                     "W4A8 4096x4096")  # fmt: skip
    if len(suites) > 1:
        if args.name:
            parser.error("--name is that of one result; --suite says of which")
        command = [sys.executable, "-m", "benchmarks", *given, "--suite"]
        return max(subprocess.run([*command, name], cwd=results.ROOT).returncode for name in suites)
    if MARK not in os.environ:
        env = {**os.environ, **results.MALLOC, MARK: "1", **forced.environment_of(args.isa)}
        if not args.quick:  # first calls pay what a new user pays
            cache = results.ROOT / "build" / "benchmark-compiled"
            shutil.rmtree(cache, ignore_errors=True)
            env["TORCHINDUCTOR_CACHE_DIR"] = str(cache)
        os.chdir(results.ROOT)
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks", *given, "--suite", suites[0]], env)
    if suites == ["integer"]:
        return integer.run(args)
    if args.plain or args.device == "cuda":
        return session.run_plain(args)
    import pytest

    tests = str(results.ROOT / "benchmarks" / "test_benchmarks.py")
    columns = "--benchmark-columns=median,iqr,min,rounds"
    options = ["-q", "--benchmark-only", columns, "--benchmark-sort=name", "-p", "no:cacheprovider"]
    return int(pytest.main([tests, *options], plugins=[session.Plugin(args)]))


if __name__ == "__main__":
    raise SystemExit(main())
