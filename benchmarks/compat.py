"""``python -m benchmarks.compat``: the drop-ins of fastq.compat against the libraries they stand in for; MIGRATING.md's table.

Each pair is a module of the library and ours, made alike. Their outputs are compared first; a pair that disagrees shows no time.
Then forward and backward of both in turns, and the median of each. Writes ``results/compat/cpu.json`` and MIGRATING.md's
table; ``--quick`` measures small tensors for a moment and writes nothing.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import measure, results

MARK = "FASTQ_BENCHMARK_STARTED"
BEGIN, END = "<!-- compat:begin -->", "<!-- compat:end -->"
GUIDE = results.ROOT / "MIGRATING.md"
FOLDER = results.FOLDER / "compat"
SIZES, QUICK = ((64, 1024), (1024, 4096)), ((8, 64),)

Quantizer = Callable[[torch.Tensor], torch.Tensor]
Maker = Callable[[torch.Tensor], tuple[Quantizer, Quantizer]]  # theirs and ours, for such an x


def _torch_ao(observing: bool, per_channel: bool) -> Maker:
    def make(x: torch.Tensor) -> tuple[Quantizer, Quantizer]:
        from torch.ao.quantization import FakeQuantize, MovingAverageMinMaxObserver, MovingAveragePerChannelMinMaxObserver

        from fastq.compat import torch_ao

        options: dict[str, Any] = {"observer": MovingAverageMinMaxObserver, "dtype": torch.quint8, "quant_min": 0, "quant_max": 255}
        if per_channel:
            options = {"observer": MovingAveragePerChannelMinMaxObserver, "dtype": torch.qint8, "quant_min": -128, "quant_max": 127,
                       "qscheme": torch.per_channel_symmetric, "ch_axis": 0}  # fmt: skip
        both = FakeQuantize(**options), torch_ao.FakeQuantize(**options)
        for module in both:
            module(x)
            module.enable_observer(observing)
        return both

    return make


def _torch_ao_default(name: str) -> Maker:
    def make(x: torch.Tensor) -> tuple[Quantizer, Quantizer]:
        from torch.ao.quantization import fake_quantize

        from fastq.compat import torch_ao

        return getattr(fake_quantize, name)(), getattr(torch_ao, name)()

    return make


def _learnable(per_channel: bool) -> Maker:
    def make(x: torch.Tensor) -> tuple[Quantizer, Quantizer]:
        from torch.ao.quantization import MovingAverageMinMaxObserver, MovingAveragePerChannelMinMaxObserver
        from torch.ao.quantization._learnable_fake_quantize import _LearnableFakeQuantize

        from fastq.compat import torch_ao

        where: dict[str, Any] = {"observer": MovingAverageMinMaxObserver, "qscheme": torch.per_tensor_symmetric}
        if per_channel:
            where = {"observer": MovingAveragePerChannelMinMaxObserver, "qscheme": torch.per_channel_symmetric, "ch_axis": 0,
                     "channel_len": x.shape[0]}  # fmt: skip
        both = tuple(
            kind(quant_min=-8, quant_max=7, scale=0.3, zero_point=0.0, dtype=torch.qint8, use_grad_scaling=True, **where)
            for kind in (_LearnableFakeQuantize, torch_ao.LearnableFakeQuantize)
        )
        for module in both:
            module.enable_param_learning()
        return both  # type: ignore[return-value]

    return make


def _torchao(*arguments: Any, **options: Any) -> Maker:
    def make(x: torch.Tensor) -> tuple[Quantizer, Quantizer]:
        from torchao.quantization.qat import IntxFakeQuantizeConfig, IntxFakeQuantizer

        from fastq.compat import torchao

        config = IntxFakeQuantizeConfig(*arguments, **options)
        return IntxFakeQuantizer(config), torchao.IntxFakeQuantizer(config)

    return make


def _brevitas_weight(name: str) -> Maker:
    def make(x: torch.Tensor) -> tuple[Quantizer, Quantizer]:
        import brevitas.nn as qnn
        import brevitas.quant as theirs

        from fastq.compat import brevitas as ours

        def one(library: Any) -> Quantizer:
            layer = qnn.QuantLinear(x.shape[1], x.shape[0], bias=False, weight_quant=getattr(library, name), weight_bit_width=4)
            return lambda w: layer.weight_quant(w).value

        return one(theirs), one(ours)

    return make


def _brevitas_activation(name: str) -> Maker:
    def make(x: torch.Tensor) -> tuple[Quantizer, Quantizer]:
        import brevitas.nn as qnn
        import brevitas.quant as theirs

        from fastq.compat import brevitas as ours

        both = [
            qnn.QuantIdentity(act_quant=getattr(library, name), bit_width=4, collect_stats_steps=1) for library in (theirs, ours)
        ]
        for act in both:  # one batch of statistics, then the scale learns
            act(x)
            act(x)
        return both[0], both[1]

    return make


def _lsq_net(**options: Any) -> Maker:
    def make(x: torch.Tensor) -> tuple[Quantizer, Quantizer]:
        sys.path.insert(0, str(results.ROOT / "tests"))
        try:
            from hand_written_lsq import HandWritten
        finally:
            sys.path.pop(0)
        from fastq.compat.lsq_net import LsqQuan

        both = HandWritten(**options), LsqQuan(**options)
        for module in both:
            module.init_from(x)
        return both

    return make


PAIRS: dict[str, Maker] = {
    "torch.ao FakeQuantize, per tensor, observing": _torch_ao(observing=True, per_channel=False),
    "torch.ao FakeQuantize, per tensor, frozen": _torch_ao(observing=False, per_channel=False),
    "torch.ao FakeQuantize, per channel, observing": _torch_ao(observing=True, per_channel=True),
    "torch.ao fused, per tensor": _torch_ao_default("default_fused_act_fake_quant"),
    "torch.ao fused, per channel": _torch_ao_default("default_fused_per_channel_wt_fake_quant"),
    "torch.ao learnable, per tensor": _learnable(per_channel=False),
    "torch.ao learnable, per channel": _learnable(per_channel=True),
    "torchao int4, groups of 32": _torchao(torch.int4, group_size=32),
    "torchao int4, groups of 32, asymmetric": _torchao(torch.int4, group_size=32, is_symmetric=False),
    "torchao int8, per token": _torchao(torch.int8, "per_token", is_symmetric=False),
    "Brevitas weight, per tensor": _brevitas_weight("Int8WeightPerTensorFloat"),
    "Brevitas weight, per channel": _brevitas_weight("Int8WeightPerChannelFloat"),
    "Brevitas activation": _brevitas_activation("Int8ActPerTensorFloat"),
    "lsq-net weight, per channel": _lsq_net(bit=4, per_channel=True),
    "lsq-net activation": _lsq_net(bit=4, per_channel=False),
}


def agree(theirs: torch.Tensor, ours: torch.Tensor) -> str:
    """Empty if the outputs agree but for one element in 1000 (a code next to a tie), else what differs."""
    off = int(((theirs - ours).abs() > 1e-5 * theirs.abs() + 1e-6).sum())
    return "" if off <= max(theirs.numel() // 1000, 1) else f"differs in {off} of {theirs.numel()} elements"


def turns(calls: tuple[Callable[[], tuple[int, int]], ...], budget: float) -> list[list[tuple[int, int]]]:
    """Nanoseconds forward and backward of each, by rounds in which each runs once; the first ones warm up."""
    times: list[list[tuple[int, int]]] = [[] for _ in calls]
    end = time.perf_counter() + budget
    while len(times[0]) < 12 or time.perf_counter() < end:
        for call, seen in zip(calls, times, strict=True):
            seen.append(call())
    return [seen[3:] for seen in times]


def row(
    pair: str, case: str, provider: str, seen: list[tuple[int, int]], first: float, nbytes: int, waited: float | None
) -> dict[str, Any]:
    passes = {}
    for which, micro in (
        ("forward", [f / 1e3 for f, _ in seen]),
        ("backward", [b / 1e3 for _, b in seen]),
        ("both", [(f + b) / 1e3 for f, b in seen]),
    ):
        q1, median, q3 = statistics.quantiles(micro, n=4)
        passes[which] = {
            "median_us": median, "min_us": min(micro), "q1_us": q1, "q3_us": q3, "rounds": len(micro),
            "bytes_per_s": nbytes * {"forward": 2, "backward": 3, "both": 5}[which] / median * 1e6,
        }  # fmt: skip
    more = {} if waited is None else {"waited": waited}
    return {"method": pair, "case": case, "provider": provider, "device": "cpu", "status": "ok", "saved_bytes": 0, "peak_bytes": 0,
            "first_call_s": first, "passes": passes, **more}  # fmt: skip


def run_pair(pair: str, shape: tuple[int, int], budget: float) -> list[dict[str, Any]]:
    """The rows of one pair at one size."""
    generator = torch.Generator().manual_seed(0)
    x, g = (torch.randn(shape, generator=generator) for _ in range(2))
    torch.manual_seed(0)
    both, case = PAIRS[pair](x), f"{shape[0]}x{shape[1]}"
    leaf = nn.Parameter(x)
    started = [time.perf_counter()]
    outputs = []
    for module in both:
        outputs.append(module(leaf))
        outputs[-1].backward(g)
        started.append(time.perf_counter())
    reason = agree(*(y.detach() for y in outputs))
    names = ("library", "fastq-cpu")
    if reason:
        return [{"method": pair, "case": case, "provider": n, "device": "cpu", "status": "failed", "reason": reason} for n in names]

    def call(module: Quantizer) -> tuple[int, int]:
        leaf.grad = None
        start = time.perf_counter_ns()
        y = module(leaf)
        middle = time.perf_counter_ns()
        y.backward(g)
        return middle - start, time.perf_counter_ns() - middle

    before, start = measure.waited(), time.perf_counter()
    times = turns((lambda: call(both[0]), lambda: call(both[1])), budget)
    after = measure.waited()
    share = None if before is None or after is None else (after - before) / (time.perf_counter() - start)
    return [
        row(pair, case, name, seen, started[i + 1] - started[i], x.nbytes, share)
        for i, (name, seen) in enumerate(zip(names, times, strict=True))
    ]


def table(result: dict[str, Any]) -> str:
    """Markdown: a line for each pair, for each size the times of both and their ratio."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for one in result["rows"]:
        found.setdefault(one["method"], {}).setdefault(one["case"], {})[one["provider"]] = one
    cases = list(dict.fromkeys(one["case"] for one in result["rows"]))
    head = "".join(f" {case}: library us | fastq us | times |" for case in cases)
    lines = [f"| quantizer |{head}", "|---|" + "---:|---:|---:|" * len(cases)]
    for pair, by_case in found.items():
        cells = []
        for case in cases:
            theirs, ours = by_case[case]["library"], by_case[case]["fastq-cpu"]
            if ours["status"] != "ok":
                cells.append(f" {ours['reason']} | | |")
                continue
            a, b = (one["passes"]["both"]["median_us"] for one in (theirs, ours))
            cells.append(f" {a:.0f} | {b:.0f} | {a / b:.1f}x |")
        lines.append(f"| {pair} |{''.join(cells)}")
    e = result["environment"]
    disturbed = sorted({f"{one['method']} {one['case']}" for one in result["rows"] if one.get("waited", 0) > results.DISTURBED})
    notes = [
        f"{e['cpu']}, {e['threads']} threads, kernels {e['isa']}; torch {e['torch']}; commit {(e['commit'] or 'none')[:12]}; "
        f"{result['created'][:10]}. float32, medians of forward + backward, in turns within one run."
    ]
    if disturbed:
        notes.append(f"Beside another program, not to be trusted: {', '.join(disturbed)}.")
    return "\n\n".join([*notes, "\n".join(lines)])


def guide(text: str, result: dict[str, Any] | None) -> str:
    """MIGRATING.md's ``text`` with its table from ``result``."""
    before, rest = text.split(BEGIN, 1)
    body = "Not measured yet: `make bench-compat`." if result is None else table(result)
    return f"{before}{BEGIN}\n{body}\n{END}{rest.split(END, 1)[1]}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compat", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small tensors, a moment each, nothing written")
    parser.add_argument("--filter", default="", metavar="TEXT", help="pairs whose name contains TEXT; nothing written")
    parser.add_argument(
        "--budget", type=float, default=2.0, metavar="SECONDS", help="of timing per pair and size (default %(default)s)"
    )
    parser.add_argument("--out", type=Path, help="folder of the result (default benchmarks/results/compat)")
    args = parser.parse_args(arguments)
    pairs = [name for name in PAIRS if args.filter in name]
    if not pairs:
        parser.error(f"no pair has {args.filter!r} in its name; there are: {'; '.join(PAIRS)}")
    if MARK not in os.environ and not args.quick:  # glibc's settings must precede the process
        given = sys.argv[1:] if arguments is None else arguments
        os.chdir(results.ROOT)
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks.compat", *given], {**os.environ, **results.MALLOC, MARK: "1"})
    rows = []
    for name in pairs:
        for shape in QUICK if args.quick else SIZES:
            rows += run_pair(name, shape, 0.02 if args.quick else args.budget)
            print(f"{name}, {shape[0]}x{shape[1]}", file=sys.stderr)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    result = results.new("benchmark", "cpu", device="cpu", quick=args.quick, copy_bytes_per_s=None, load=load, rows=rows)
    print(table(results.validate(result)))
    if args.out or not (args.quick or args.filter):
        print(f"results: {results.write(result, args.out or FOLDER)}")
    if not (args.out or args.quick or args.filter):
        GUIDE.write_text(guide(GUIDE.read_text(), result))
    return 1 if any(one["status"] == "failed" for one in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
