"""``python -m fastq tune``: measure configurations of Triton's product kernels on the GPU at hand, and write the best as a table.

The table is read where the environment variable ``FASTQ_CONFIGURATIONS`` names it (``fastq/engine/configurations.py``). For every
kind of product and number of rows each candidate is first held against the reference, then timed: replays of a CUDA graph that
goes over copies of the weight, of a linear layer more than 150 MB, so that none is in the cache. What does not compile, does not
fit or is wrong drops out. A kind takes minutes, most of them the compiler's: ``--kinds`` names those that matter, and the table is
written as they are done, beside what it has.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from .engine import configurations
from .engine.call import Epilogue, Operand
from .engine.configurations import KINDS, Configuration
from .tables import table

__all__ = ["Bench", "add_arguments", "candidates", "run", "tune"]

#: N and K of the products that are timed.
SIZE = 8192
GROUP_SIZE = 128
#: Rows that a configuration is for (0: any number), and the numbers of rows that it is timed with; of a convolution, images.
Buckets = dict[int, tuple[int, ...]]
FEW_CODES: Buckets = {16: (1, 16), 32: (32,), 64: (64,), 0: (128, 256)}
MANY_CODES: Buckets = {0: (512, 2048, 8192)}
FEW_FLOATS: Buckets = {16: (1, 16), 32: (32,), 0: (64,)}
MANY_FLOATS: Buckets = {0: (128, 512, 1024)}
IMAGES: Buckets = {0: (1, 32)}
#: Channels, outputs, kernel, stride and image of the convolutions that are timed: ResNet-50's first, and two of its 3x3.
CONVOLUTIONS = {"conv_gathered": (3, 64, 7, 2, 224), "_narrow": (64, 64, 3, 1, 56), "_conv": (256, 256, 3, 1, 14)}
#: Bytes of weights that go by before one is met again: no cache holds them.
COLD = 150 * 2**20
#: Copies of a weight at most: a convolution's are small, and its images are what it reads.
COPIES = 32
ROUNDS = 5
#: Of a float32 sum of 8192 terms in the kernel's order, relative to the largest: some 90 of its roundings, which are random.
TOLERANCE = 2**-16

#: Seconds that a product of so many rows takes with a configuration; raises where it cannot be had.
Measure = Callable[[Configuration, int], float]
Run = Callable[[Configuration], torch.Tensor]


def rows_of(kind: str) -> Buckets:
    """What ``rows`` the configurations of a kind have, with the numbers of rows that each is timed with."""
    if "conv" in kind:
        return IMAGES
    if "a8" in kind:
        return FEW_CODES if kind.endswith("_few") else MANY_CODES
    return FEW_FLOATS if kind.endswith("_few") else MANY_FLOATS


def candidates(kind: str, architecture: int, rows: int, processors: int) -> Iterator[Configuration]:
    """What is worth trying, the shipped configuration first; ``processors``: of the GPU."""
    first = replace(configurations.find(kind, architecture, rows or 2**31 - 1), architecture=architecture, rows=rows)
    yield first
    stages: tuple[int, ...]
    flatten: tuple[bool, ...]
    parts, programs, flatten = (8 if architecture < 90 else 16), [0, 1], (False, True)
    if "conv" in kind or ("a8" not in kind and not kind.endswith("_few")):
        tiles = [(64, 64, 4), (64, 128, 4), (128, 64, 4), (128, 128, 4), (128, 128, 8), (256, 64, 8), (128, 256, 8)]
        blocks = [(m, n, k, warps) for m, n, warps in tiles for k in ((64, 128) if kind.startswith("w8a8_conv") else (64,))]
        stages, parts, programs, flatten = (2, 3, 4, 5), 1, [0], (False,)
    elif kind.endswith("_few"):
        most = rows or (128 if "a8" in kind else 64)
        blocks = [(most, n, 64, warps) for n, warps in ((64, 4), (128, 4), (128, 8))]
        stages = (4, 6, 8) if "a8" in kind else (3, 4, 5)
        parts, programs, flatten = 1, [processors * each for each in (1, 2, 4)], (False,)
    elif kind == "w8a8":
        blocks = [(128, 128, 128, 8), (128, 256, 64, 8), (128, 256, 128, 8), (256, 128, 128, 8), (64, 256, 128, 4)]
        stages = (3, 4, 5)
    else:
        blocks = [(64, 128, 64, 4), (64, 256, 64, 8), (128, 128, 64, 8), (128, 256, 64, 8), (256, 128, 64, 8)]
        stages = (3, 4, 6)
    for (m, n, k, warps), depth, count, flat in itertools.product(blocks, stages, programs, flatten):
        found = Configuration(kind, architecture, rows, m, n, k, warps, depth, min(parts, m // 4), count, flat)
        if found != first:
            yield found


def tune(
    kinds: Sequence[str], architecture: int, processors: int, measure: Measure, say: Callable[[str], None] = print,
    keep: Callable[[Configuration], None] = lambda chosen: None,
) -> list[Configuration]:  # fmt: skip
    """The best configuration of every kind and bucket of rows: the least geometric mean of its times, the first of equals.

    ``keep`` is given each as soon as it is known.
    """
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
        keep(chosen)
        shipped = next(iter(times.values()))
        block = f"{chosen.block_m}x{chosen.block_n}x{chosen.block_k}"
        us, gain = times[chosen] * 1e6, shipped / times[chosen]
        tried = f"{len(times)} of {len(times) + len(failures)}"
        rows_of_table.append([kind, rows or "any", block, chosen.warps, chosen.stages, f"{us:.1f}", f"{gain:.2f}", tried])
    if best:
        say(table(["kind", "rows", "block", "warps", "stages", "us", "against the first", "served"], rows_of_table))
    return best


class Bench:
    """The products of every kind on one device: run, held against the reference, and timed where it is a GPU."""

    def __init__(self, device: torch.device, size: int = SIZE) -> None:
        self.device, self.size = device, size
        self.kind = ""
        self.weights: list[Operand] = []

    def measure(self, c: Configuration, rows: int) -> float:
        """Seconds of one product. Raises ``ArithmeticError`` if a result is wrong."""
        runs = self.checked(c, rows)
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for run in runs:
                run(c)
        graph.replay()
        times = []
        for _ in range(ROUNDS):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / 1e3 / len(runs))
        return min(times)

    def checked(self, c: Configuration, rows: int) -> list[Run]:
        """The product with each copy of the weight. Raises ``ArithmeticError`` if the first one's result is wrong."""
        make = self.convolution if "conv" in c.kind else self.product
        runs, first, wanted, exact = make(c.kind, rows)
        # Without groups codes give the reference's bits; the sums of groups and of floats are added in another order
        error = (runs[0](c)[:first].to(torch.float64) - wanted).abs().max()
        if not float(error) <= (0.0 if exact else TOLERANCE * float(wanted.abs().max())):
            raise ArithmeticError("its result is not the reference's")
        return runs

    def product(self, kind: str, rows: int) -> tuple[list[Run], int, torch.Tensor, bool]:
        """Of a linear layer: one run for each copy of the weight, how many rows of the result to compare, with what, exactly."""
        from .reference.int_gemm import int_linear as reference
        from .triton_kernels import float_gemm, int_gemm

        group_size = GROUP_SIZE if "_group" in kind else None
        weights = self.copies(kind, (self.size, self.size), group_size)
        e, few = plain_epilogue(), kind.endswith("_few")
        if "a8" in kind:
            x = torch.randint(-128, 128, (rows, self.size), device=self.device, dtype=torch.int8)
            runs: list[Run] = [functools.partial(int_gemm.int_linear, few, x, w, e) for w in weights]
        else:
            x = torch.randn(rows, self.size, device=self.device).to(torch.float32 if kind.startswith("a32") else torch.bfloat16)
            runs = [functools.partial(float_gemm.linear, x, w, e) for w in weights]
        return runs, 64, reference(x[:64], weights[0], e), "a8" in kind and group_size is None

    def convolution(self, kind: str, rows: int) -> tuple[list[Run], int, torch.Tensor, bool]:
        """The same of a convolution, of so many images."""
        from .engine.call import Window
        from .reference.int_gemm import int_conv2d as reference
        from .triton_kernels.int_conv import conv2d

        channels, outputs, kernel, stride, image = next(of for name, of in CONVOLUTIONS.items() if kind.endswith(name))
        if self.size < SIZE:
            image = max(image * self.size // SIZE, kernel)
        weights = self.copies(kind, (outputs, channels, kernel, kernel), None)
        window = Window(channels, (kernel, kernel), (stride, stride), (kernel // 2,) * 4, (1, 1), 1)
        x = torch.randint(0, 256, (rows, channels, image, image), device=self.device, dtype=torch.uint8)
        x, e = x.contiguous(memory_format=torch.channels_last), plain_epilogue()
        return [functools.partial(conv2d, x, w, window, e) for w in weights], 1, reference(x[:1], weights[0], window, e), True

    def copies(self, kind: str, shape: tuple[int, ...], group_size: int | None) -> list[Operand]:
        """The weight of a kind, as often as it takes that none is in the cache when it is met again. Those of one kind are kept."""
        from .packing import pack

        if kind != self.kind:
            self.weights.clear()  # those of one kind fit beside one another
            bits = int(kind[1]) if kind[0] == "w" else 4 if "a32" in kind else 8
            generator = torch.Generator(self.device).manual_seed(0)
            half = 2 ** (bits - 1)
            codes = torch.randint(-half, half, shape, generator=generator, device=self.device, dtype=torch.int8)
            scales = (shape[0], -(-shape[1] // group_size)) if group_size else shape[:1]
            scale = torch.rand(scales, generator=generator, device=self.device) + 0.5
            weight = pack(codes, bits, scale=scale, group_size=group_size)
            first, number = weight.operand(), min(math.ceil(COLD / weight.nbytes) + 1, COPIES)
            self.weights = [first, *(first._replace(data=first.data.clone()) for _ in range(number - 1))]
            self.kind = kind
        return self.weights


def plain_epilogue() -> Epilogue:
    """The scales of the weight and nothing else, into float32."""
    return Epilogue(None, 0, None, None, None, None, 0, torch.float32, None, (0, 0, 0))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = "the table for FASTQ_CONFIGURATIONS, written after each kind and number of rows; one that is there is added to"
    parser.add_argument("--output", type=Path, required=True, help=what)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND", help=f"of {', '.join(KINDS)}")
    parser.add_argument("--device", type=int, default=0, metavar="N", help="the GPU to measure on")
    parser.add_argument("--dry", action="store_true", help="without a GPU: choose by a made-up clock, as for an H200")


def made_up(c: Configuration, rows: int) -> float:
    """A clock that likes large blocks for many rows, small ones for few."""
    return max(rows / c.block_m, 1.0) * c.block_m * 1e-6 + c.stages * 1e-9


def run(args: argparse.Namespace) -> int:
    found: dict[tuple[int, str, int], Configuration] = {}

    def keep(*chosen: Configuration) -> None:
        found.update({(c.architecture, c.kind, c.rows): c for c in chosen})

    def write(chosen: Configuration) -> None:
        keep(chosen)
        configurations.write(args.output, found.values())

    device = torch.device("cuda", args.device)
    if not args.dry and not torch.cuda.is_available():
        return failed("needs a GPU: it measures Triton's kernels there; --dry goes through the motions")
    if not args.dry and args.device >= torch.cuda.device_count():
        return failed(f"there is no GPU {args.device}, only {torch.cuda.device_count()}")
    try:
        if args.output.exists():
            keep(*configurations.load(args.output))
    except (OSError, ValueError) as error:
        return failed(f"cannot add to --output: {error}")
    try:
        if args.dry:
            best = tune(args.kinds, 90, 132, made_up, keep=write)
        else:
            processors = torch.cuda.get_device_properties(device).multi_processor_count
            with torch.cuda.device(device):  # events and replays are the current GPU's
                best = tune(args.kinds, configurations.architecture_of(device), processors, Bench(device).measure, keep=write)
    except OSError as error:
        return failed(f"cannot write to --output {args.output}: {error.strerror or error}")
    if not best:
        return failed("nothing was measured, so nothing is written")
    print(f"{len(best)} configurations chosen, {len(found)} in {args.output}; use them with FASTQ_CONFIGURATIONS={args.output}")
    return 0


def failed(why: str) -> int:
    print(f"tune: {why}", file=sys.stderr)
    return 1
