"""The suite of integer products, ``python -m benchmarks --suite integer``: each provider checked against the reference, then timed.

On a GPU a CUDA graph is replayed that goes over so many copies of the weights that each call reads them from memory; on the CPU
the providers take turns, call by call, on one copy. A row shows a time only where its result was right at that number of rows.

On the CPU there are besides, measured in the same run: the roofs, packing, whole networks (``networks.py``), and the products again
with the kernels held to other instruction sets, in processes of their own (``--isa``).
"""

from __future__ import annotations

import argparse
import functools
import math
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import fastq
from fastq.engine.call import Epilogue
from fastq.reference import int_gemm
from fastq.testing import same_bits

from . import forced, integer_plot, integer_report, measure, networks, peers, products, results
from .peers import X_SCALE, Built, Weights
from .products import Work

__all__ = ["Run", "plan", "run"]

#: Of the copies of a weight that a GPU goes over: several times its L2 cache.
ROTATED = 160e6
MOST_COPIES = 100
#: Seconds of a call that is not waited for, and of one after which it may come: torch's own int8 product takes minutes on a CPU
#: without VNNI.
SLOW, SLOWISH = 0.4, 0.1


class Reference:
    """What a product comes to, for any of the first rows of an input; computed once."""

    def __init__(self, weights: Weights, rows: int) -> None:
        self.weights, self.x = weights, weights.inputs(rows)
        packed, kind = weights.packed(), weights.kind
        scale = None if kind.activation == 16 else torch.full((1,), X_SCALE, device=weights.device)
        plain = Epilogue(scale, 0, None, None, None, None, 0, torch.float32, None, (0, 0, 0))
        if kind.conv:
            step = torch.full((1,), weights.out_scale, device=weights.device)
            coded = plain._replace(out_dtype=torch.int8, out_scale=step, out_codes=(-128, 127, 0))
            self.values = int_gemm.int_conv2d(self.x, packed.operand(), weights.layer.window, plain)
            self.rounded = int_gemm.finish(self.values, coded)
        else:
            self.values = int_gemm.int_linear(self.x, packed.operand(), plain)
            self.rounded = self.values.to(torch.bfloat16)
        self.size = float(self.values.square().mean().sqrt())

    def check(self, built: Built, got: torch.Tensor, rows: int, exact: bool) -> str:
        """Empty if ``got`` is right, else what differs.

        ``exact``: the bits of the reference. Others round weights or inputs to bfloat16 or add in another order: an element may
        be off by 1/20 of the outputs' root mean square (7 standard deviations of such roundings) beside a sixty-fourth of itself,
        which any product of other numbers exceeds.
        """
        want, rounded = self.values[:rows], self.rounded[:rows]
        if got.shape != want.shape:
            return f"shape {tuple(got.shape)}, expected {tuple(want.shape)}"
        if built.gives == "sums":
            if got.dtype != torch.int32:
                return f"dtype {got.dtype}, expected int32"
            return "" if torch.equal(got.float() * (X_SCALE * self.weights.scale), want) else "other sums than the reference"
        if exact:
            alike = same_bits if rounded.is_floating_point() else torch.equal
            return "" if got.dtype == rounded.dtype and alike(got, rounded) else "other bits than the reference"
        if built.own is not None:
            want = (self.weights.as_numbers(self.x[:rows], torch.float32).double() @ built.own.double().t()).float()
        if built.gives == "codes":  # a sum in another order may be on the other side of a tie
            off = (got.int() - rounded.int()).abs() > 1
            return f"differs from the reference in {int(off.sum())} of {off.numel()} codes" if bool(off.any()) else ""
        off = ~((got.float() - want).abs() <= self.size / 20 + want.abs() / 64)
        return f"differs from the reference in {int(off.sum())} of {off.numel()} elements" if bool(off.any()) else ""


@dataclass
class Provider:
    """Of a layer: its functions on copies of the weights, made on first use, or why there are none."""

    name: str
    ours: bool
    build: Callable[[], Built]
    copies: int
    absent: str = ""
    note: str = ""
    pool: str = peers.TORCH_POOL
    builts: list[Built] = field(default_factory=list)
    last: tuple[int, float] | None = None  # rows and seconds

    def why_not(self, rows: int) -> str:
        """Why it is not asked, though it may be able: it is not here, or not worth waiting for by the last number of rows."""
        if self.absent or self.last is None or self.last[1] < SLOWISH or self.last[1] * rows / self.last[0] <= SLOW:
            return self.absent
        return f"left out: {self.last[1]:.2g} s a call for {self.last[0]} rows"


def copies_of(weights: Weights, bits: int) -> int:
    """So many copies of a weight of so many bits an element that each is read from memory."""
    return max(2, min(MOST_COPIES, math.ceil(ROTATED / (weights.codes.numel() * bits / 8))))


class Run:
    """A layer at a kind, over all numbers of rows. ``rotate``: time as on a GPU (dry where there is none); ``forced``: the kernels
    and torch are held to an instruction set."""

    def __init__(self, work: Work, device: str, budget: float, rotate: bool, quick: bool = False, forced: bool = False) -> None:
        self.work, self.device, self.budget, self.rotate, self.quick, self.forced = work, device, budget, rotate, quick, forced
        self.weights = Weights(work.kind, work.layer, device)
        self.reference = Reference(self.weights, max((*work.rows, *work.sweep)))
        self.known: dict[str, Provider] = {}

    def copies(self, bits: int) -> int:
        return 1 if not self.rotate else 2 if self.quick else copies_of(self.weights, bits)

    def providers(self, rows: int, first: str) -> list[Provider]:
        """Those to ask at ``rows``: fastq's choice alone where only a jump is looked for."""
        kind, layer, swept = self.work.kind, self.work.layer, rows not in self.work.rows
        found = []
        for kernel, why in peers.kernels(kind, layer, rows, self.device, first).items():
            if not swept or kernel == first:
                build = functools.partial(peers.fastq_kernel, self.weights, kernel)
                found.append(Provider(f"fastq-{kernel}", True, build, self.copies(kind.bits), why))
        if self.device == "cpu" and not (swept or kind.conv) and kind.activation == 8 and kind.bits < 8:
            found.append(Provider(integer_report.IN_8_BITS, True, lambda: peers.fastq_8bit(self.weights), self.copies(8)))
        for peer in () if swept else peers.candidates(kind, self.device, self.forced):
            copies, build = self.copies(kind.bits if "16" not in peer.name else 16), functools.partial(peer.build, self.weights)
            found.append(Provider(peer.name, False, build, copies, peer.absent(), peer.note, peer.pool))
        return [self.known.setdefault(one.name, one) for one in found]

    def rows(self) -> Iterator[dict[str, Any]]:
        """The fewest first."""
        for rows in sorted({*self.work.rows, *self.work.sweep}):
            yield from self.at(rows)

    def at(self, rows: int) -> list[dict[str, Any]]:
        """A row for each provider; of one that is not here once for a layer."""
        kind, layer = self.work.kind, self.work.layer
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the reference serves is in the row
            first = peers.chosen(kind, layer, rows, self.device)
        found, calls, inputs = [], {}, {}
        for provider in self.providers(rows, first):
            row: dict[str, Any] = {"kind": kind.name, "layer": layer.name, "rows": rows, "provider": provider.name,
                                   "device": self.device}  # fmt: skip
            why = provider.why_not(rows)
            if why:
                if why != provider.absent or rows == min(self.work.rows):
                    found.append({**row, "status": "unavailable", "reason": why})
                continue
            found.append(row)
            try:
                with warnings.catch_warnings(), torch.no_grad():
                    warnings.simplefilter("ignore")
                    provider.builts = provider.builts or [provider.build() for _ in range(provider.copies)]
                    built = provider.builts[0]
                    if built.takes not in inputs:
                        x = self.reference.x[:rows]
                        inputs[built.takes] = self.weights.given(x, built.takes)
                    x = inputs[built.takes]
                    start = time.perf_counter()
                    got = built.run(x)
                    if self.device == "cuda":
                        torch.cuda.synchronize()
                    row["first_call_s"] = seconds = time.perf_counter() - start
                    if self.device == "cpu" and seconds > SLOW:  # or was that what a first call has to do besides?
                        start = time.perf_counter()
                        got = built.run(x)
                        seconds = time.perf_counter() - start
                        provider.last = rows, seconds
                    wrong = self.reference.check(built, got, rows, provider.ours and kind.activation == 8)
                    del got
            except Exception as error:  # a provider that raises is a result, and no reason to lose the others
                wrong = f"raised {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            if wrong:
                row.update(status="failed", reason=wrong)
                continue
            if why := provider.why_not(rows):
                row.update(status="unavailable", reason=why)
                continue
            row.update(status="ok", chosen=provider.name == f"fastq-{first}", copies=provider.copies)
            if provider.note:
                row["note"] = provider.note
            calls[provider.name] = [functools.partial(one.run, x) for one in provider.builts]
        self.time(found, calls, self.budget if rows in self.work.rows else self.budget / 4)
        return found

    def time(self, found: list[dict[str, Any]], calls: dict[str, Any], budget: float) -> None:
        """Times for those rows that have functions to call."""
        if not calls:
            return
        failed: dict[str, str] = {}
        share = None
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            if self.rotate:
                times, failed = measure.replayed(calls, budget)
            else:
                pools = {name: self.known[name].pool for name in calls}
                attempts = 1 if self.quick else measure.ATTEMPTS
                times, share = measure.undisturbed(lambda: measure.called(calls, budget, pools), attempts, 3 * budget)
        for row in found:
            name = row["provider"]
            if name in times:
                row["time"] = measure.summary(times[name])
                self.known[name].last = row["rows"], statistics.median(times[name])
                if share is not None:
                    row["waited"] = share
            elif name in failed:
                row.update(status="failed", reason=failed[name])


# A run


def plan(args: argparse.Namespace) -> list[Work]:
    """What will be measured."""
    return [] if args.sizes else products.plan(args.device, args.quick, args.method, args.filter, args.isa)


def packing(bits: int, budget: float) -> dict[str, Any]:
    """Seconds to pack a weight, and until it has served a first row: a layout may be made by the first product."""
    layer, half = products.PACKED, 2 ** (bits - 1)
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-half, half, layer.weight_shape, dtype=torch.int8, generator=generator)
    scale, x, one = torch.ones(layer.n), torch.ones(1, layer.k, dtype=torch.int8), torch.ones(1)

    def first_row() -> torch.Tensor:
        packed = fastq.pack(codes, bits, scale=scale)
        return fastq.int_linear(x, packed, x_scale=one, out_dtype=torch.bfloat16)

    wrong = "" if torch.equal(first_row(), codes.sum(1, dtype=torch.int32).to(torch.bfloat16)[None]) else "another product"
    row: dict[str, Any] = {"layer": layer.name, "bits": bits, "status": "failed" if wrong else "ok"}
    if wrong:
        return {**row, "reason": wrong}
    calls: dict[str, measure.Calls] = {"pack": [lambda: fastq.pack(codes, bits, scale=scale)], "first row": [first_row]}
    times, share = measure.undisturbed(lambda: measure.called(calls, budget), patience=3 * budget)
    row |= {"pack": measure.summary(times["pack"]), "first row": measure.summary(times["first row"])}
    return row if share is None else {**row, "waited": share}


def beside(args: argparse.Namespace, budget: float) -> dict[str, Any]:
    """What a whole run measures of a CPU besides the products of its plan."""
    found: dict[str, Any] = {"packing": [], "networks": [], "forced": []}
    for bits in products.PACKED_BITS:
        print(f"packing {products.PACKED.name}, {bits} bits", flush=True)
        found["packing"].append(packing(bits, budget))
    for name in networks.NETWORKS:
        print(f"network {name}", flush=True)
        found["networks"] += networks.rows(name, 3 * budget, args.quick)
    for isa in forced.FORCED:
        print(f"kernels of {isa}", flush=True)
        found["forced"].append(forced.measured(isa, args.budget, args.quick))
    return found


def roofs() -> dict[str, Any]:
    """Bytes per second from the cache and from memory, and int8 operations per second."""
    return {"cache": measure.read_bandwidth(2**24), "memory": measure.read_bandwidth(2**29), "int8": measure.int8_speed()}


def run(args: argparse.Namespace) -> int:
    """Measure, print, write the result and draw it."""
    if args.isa and (why := forced.refusal(args.isa)):
        print(f"{args.isa}: {why}", file=sys.stderr)
        return 2
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0  # what others do, before this run adds to it
    rotate = args.device == "cuda" or args.rotate
    selected = args.filter or args.method or args.isa
    whole = not (args.quick or selected)
    folder = args.out or (results.FOLDER if whole else Path(tempfile.mkdtemp(prefix="fastq-results-")))
    name = args.name or f"integer-{'quick' if args.quick else args.isa or args.device}"
    budget = min(args.budget, 0.02) if args.quick else args.budget / 3
    copy = None if args.quick else measure.copy_bandwidth(args.device, 2**28 if args.device == "cuda" else 2**25)
    matmul = None if args.quick else measure.matmul_speed(args.device)
    more: dict[str, Any] = {
        "device": args.device,
        "quick": args.quick,
        "load": load,
        "copy_bytes_per_s": copy,
        "matmul_per_s": matmul,
    }
    more["packages"] = peers.versions(args.device)
    if args.device == "cpu" and not args.quick and not args.isa:
        more["roofs"] = roofs()
    rows: list[dict[str, Any]] = []

    def result() -> dict[str, Any]:
        return results.validate(results.new("integer", name, **more, rows=rows))

    todo = plan(args)
    for i, work in enumerate(todo, 1):
        print(f"[{i}/{len(todo)}] {work.name}", flush=True)
        rows += Run(work, args.device, budget, rotate, args.quick, bool(args.isa)).rows()
        if args.out:  # what is measured is kept if time runs out
            results.write(result(), folder)
    if not (rotate or selected):
        more |= beside(args, budget)
    final = result()
    integer_report.show(final)
    path = results.write(final, folder)
    print(f"results: {path}")
    if integer_plot.plot(final, path.with_suffix(".png")):
        print(f"plot:    {path.with_suffix('.png')}")
    every = [
        *rows,
        *final.get("networks", []),
        *final.get("packing", []),
        *(row for one in final.get("forced", []) for row in one["rows"]),
    ]
    ours = [row for row in every if row.get("provider", "fastq-").startswith("fastq-")]
    return 1 if any(row["status"] == "failed" for row in ours) else 0
