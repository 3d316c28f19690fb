"""``python -m fastq tune``: measure configurations of Triton's integer kernels on the GPU at hand, and write the best as a table.

The table is read where the environment variable ``FASTQ_CONFIGURATIONS`` names it (``fastq/engine/configurations.py``). For every
kind of product and number of rows each candidate is first held against the exact product, then timed: replays of a CUDA graph
that goes over weights of more than 150 MB, so that none is in the cache. What does not compile, does not fit or is wrong drops out.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from .engine import configurations
from .engine.configurations import KINDS, Configuration
from .tables import table

__all__ = ["add_arguments", "candidates", "run", "tune"]

#: N and K of what is timed.
SIZE = 8192
GROUP_SIZE = 128
#: Rows that a configuration is for (0: any number), and the numbers of rows that it is timed with.
FEW_ROWS: dict[int, tuple[int, ...]] = {16: (1, 16), 32: (32,), 64: (64,), 0: (128, 256)}
MANY_ROWS: dict[int, tuple[int, ...]] = {0: (512, 2048, 8192)}
#: Bytes of weights that go by before one is met again: no cache holds them.
COLD = 150 * 2**20
ROUNDS = 5

#: Seconds that a product of so many rows takes with a configuration; raises where it cannot be had.
Measure = Callable[[Configuration, int], float]


def rows_of(kind: str) -> dict[int, tuple[int, ...]]:
    """What ``rows`` the configurations of a kind have, with the numbers of rows that each is timed with."""
    return FEW_ROWS if kind.endswith("_few") else MANY_ROWS


def candidates(kind: str, architecture: int, rows: int, processors: int) -> Iterator[Configuration]:
    """What is worth trying, the shipped configuration first; ``processors``: of the GPU."""
    first = replace(configurations.find(kind, architecture, rows or 2**31 - 1), architecture=architecture, rows=rows)
    yield first
    large = 8 if architecture < 90 else 16
    if kind.endswith("_few"):
        blocks = [(rows or 128, n, 64, warps) for n, warps in ((64, 4), (128, 4), (128, 8))]
        choices = itertools.product(blocks, (4, 6, 8), (1,), [processors * each for each in (1, 2, 4)], (False,))
    elif kind == "w8a8":
        blocks = [(128, 128, 128, 8), (128, 256, 64, 8), (128, 256, 128, 8), (256, 128, 128, 8), (64, 256, 128, 4)]
        choices = itertools.product(blocks, (3, 4, 5), (large,), (0, 1), (False, True))
    else:
        blocks = [(64, 128, 64, 4), (64, 256, 64, 8), (128, 128, 64, 8), (128, 256, 64, 8), (256, 128, 64, 8)]
        choices = itertools.product(blocks, (3, 4, 6), (large,), (0, 1), (False, True))
    for (m, n, k, warps), stages, parts, programs, flatten in choices:
        found = Configuration(kind, architecture, rows, m, n, k, warps, stages, min(parts, m // 4), programs, flatten)
        if found != first:
            yield found


def tune(
    kinds: Sequence[str], architecture: int, processors: int, measure: Measure, say: Callable[[str], None] = print
) -> list[Configuration]:
    """The best configuration of every kind and bucket of rows: the least geometric mean of its times, the first of equals."""
    best, rows_of_table = [], []
    for kind, rows in [(each, rows) for each in kinds for rows in rows_of(each)]:
        times: dict[Configuration, float] = {}
        failures: list[str] = []
        for each in candidates(kind, architecture, rows, processors):
            try:
                logs = [math.log(measure(each, m)) for m in rows_of(kind)[rows]]
            except Exception as error:  # a candidate that does not compile, fit or come out right is no choice
                failures.append(f"{type(error).__name__}: {error}")
                continue
            times[each] = math.exp(sum(logs) / len(logs))
        if not times:
            say(f"{kind}, rows {rows or 'any'}: none of {len(failures)} candidates served, the first because of {failures[0]:.300}")
            continue
        chosen = min(times, key=lambda c: times[c])
        best.append(chosen)
        shipped = next(iter(times.values()))
        block = f"{chosen.block_m}x{chosen.block_n}x{chosen.block_k}"
        us, gain = times[chosen] * 1e6, shipped / times[chosen]
        tried = f"{len(times)} of {len(times) + len(failures)}"
        rows_of_table.append([kind, rows or "any", block, chosen.warps, chosen.stages, f"{us:.1f}", f"{gain:.2f}", tried])
    if best:
        say(table(["kind", "rows", "block", "warps", "stages", "us", "against the first", "served"], rows_of_table))
    return best


def gpu_measure(device: torch.device) -> Measure:
    """Seconds of one product on ``device``. Raises ``ArithmeticError`` if a result is not exact."""
    from .engine.call import Epilogue, Operand
    from .packing import pack
    from .triton_kernels.int_gemm import int_linear

    made: dict[str, list[Operand]] = {}

    def operands(kind: str) -> list[Operand]:
        if kind not in made:
            made.clear()  # those of one kind fit beside one another
            bits = int(kind[1])
            generator = torch.Generator(device).manual_seed(0)
            half = 2 ** (bits - 1)
            codes = torch.randint(-half, half, (SIZE, SIZE), generator=generator, device=device, dtype=torch.int8)
            shape = (SIZE, SIZE // GROUP_SIZE) if "_group" in kind else (SIZE,)
            scale = torch.rand(shape, generator=generator, device=device) + 0.5
            weight = pack(codes, bits, scale=scale, group_size=GROUP_SIZE if "_group" in kind else None)
            first = weight.operand()
            copies = math.ceil(COLD / weight.nbytes) + 1
            made[kind] = [first, *(first._replace(data=first.data.clone()) for _ in range(copies - 1))]
        return made[kind]

    def measure(c: Configuration, rows: int) -> float:
        weights = operands(c.kind)
        few = c.kind.endswith("_few")
        x = torch.randint(-128, 128, (rows, SIZE), device=device, dtype=torch.int8)
        e = Epilogue(None, 0, None, None, None, None, 0, torch.float32, None, (0, 0, 0))
        y = int_linear(few, x, weights[0], e, c)
        wanted = exact(x[:64], weights[0])
        # without groups the reference's bits; sums of groups are added in another order
        tolerance = 0.0 if not weights[0].group_size else 2**-18 * float(wanted.abs().max())
        if not float((y[:64] - wanted).abs().max()) <= tolerance:
            raise ArithmeticError("its result is not exact")
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for w in weights:
                int_linear(few, x, w, e, c)
        graph.replay()
        times = []
        for _ in range(ROUNDS):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / 1e3 / len(weights))
        return min(times)

    def exact(x: torch.Tensor, w: Operand) -> torch.Tensor:
        from .reference.int_gemm import int_linear as reference

        return reference(x, w, Epilogue(None, 0, None, None, None, None, 0, torch.float32, None, (0, 0, 0)))

    return measure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, required=True, help="the table to write, for FASTQ_CONFIGURATIONS")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND", help=f"of {', '.join(KINDS)}")
    parser.add_argument("--device", type=int, default=0, metavar="N", help="the GPU to measure on")
    parser.add_argument("--dry", action="store_true", help="without a GPU: choose by a made-up clock, as for an H200")


def run(args: argparse.Namespace) -> int:
    if args.dry:
        # A clock that likes large blocks for many rows, small ones for few.
        best = tune(args.kinds, 90, 132, lambda c, rows: max(rows / c.block_m, 1.0) * c.block_m * 1e-6 + c.stages * 1e-9)
    else:
        if not torch.cuda.is_available():
            print("tune: needs a GPU: it measures Triton's kernels there; --dry goes through the motions", file=sys.stderr)
            return 1
        if args.device >= torch.cuda.device_count():
            print(f"tune: there is no GPU {args.device}, only {torch.cuda.device_count()}", file=sys.stderr)
            return 1
        device = torch.device("cuda", args.device)
        processors = torch.cuda.get_device_properties(device).multi_processor_count
        with torch.cuda.device(device):  # events and replays are the current GPU's
            best = tune(args.kinds, configurations.architecture_of(device), processors, gpu_measure(device))
    if not best:
        print("tune: nothing was measured, so nothing is written", file=sys.stderr)
        return 1
    try:
        configurations.write(args.output, best)
    except OSError as error:
        print(f"tune: cannot write to --output {args.output}: {error.strerror or error}", file=sys.stderr)
        return 1
    print(f"{len(best)} configurations in {args.output}; use them with FASTQ_CONFIGURATIONS={args.output}")
    return 0
