"""``python -m benchmarks.training``: a training step in full precision, with fake quantizers and in integers, side by side.

Networks: the demo's, on handwritten digits, and a basic block of ResNet-18 (two 3x3 convolutions of 128 channels on 28x28 images,
with batch norm and a residual). Arms: ``full precision``; ``fake``, whose layers multiply the numbers that W4A4 quantizers give;
``integer``, whose layers multiply their codes (:mod:`fastq.nn.integer`). Forward and backward of all in turns, and the medians;
and the bytes that the forward pass keeps for the backward pass, parameters and the batch itself aside. The integer arm shows a time
only where its network, in evaluation, equals its converted form bit for bit.

On a GPU, and with ``--bf16``, steps run under bf16 autocast; ``--compile`` adds each arm under ``torch.compile``. Images are
channels_last. Writes ``results/training/DEVICE.json``; ``--quick`` measures small batches for a moment and writes nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import fastq
from fastq.demo import Block, Digits

from . import compat, measure, results

FOLDER = results.FOLDER / "training"
ARMS = ("full precision", "fake", "integer")
#: A network, the shape of a sample, and the batch on a CPU and on a GPU.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int, int]] = {
    "digits": (Digits, (1, 8, 8), 64, 1024),
    "resnet-18 block": (lambda: nn.Sequential(nn.Conv2d(128, 128, 1), Block(128, 128, 1)), (128, 28, 28), 8, 256),
}


def arm_of(make: Callable[[], nn.Module], arm: str, device: str) -> nn.Module:
    """The network of an arm, the same weights for all."""
    torch.manual_seed(0)
    model = make().to(device=device, memory_format=torch.channels_last)
    if arm == "full precision":
        return model
    recipe = fastq.recipes.lsq(weight_bits=4, activation_bits=4)
    return fastq.prepare(model, recipe, forward=arm).model.to(device)


def kept_bytes(model: nn.Module, run: Callable[[], Any], batch: torch.Tensor) -> int:
    """Of the storages that ``run`` keeps for its backward pass."""
    known = {t.untyped_storage().data_ptr() for t in (batch, *model.parameters(), *model.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def pack(t: torch.Tensor) -> torch.Tensor:
        kept.setdefault(t.untyped_storage().data_ptr(), t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        run()
    return sum(t.untyped_storage().nbytes() for address, t in kept.items() if address not in known)


def equals_converted(model: nn.Module, batch: torch.Tensor) -> str:
    """Empty if the network in evaluation gives what its converted form gives, else how far they are apart."""
    converted = fastq.convert(model)
    with torch.no_grad():
        off = (model.eval()(batch) - converted(batch)).abs().max()
    model.train()
    return "" if not off else f"differs from the converted network by {float(off):.3g}"


def run_network(name: str, device: str, batch: int, bf16: bool, compiled: bool, budget: float) -> list[dict[str, Any]]:
    """The rows of one network."""
    make, shape, _, _ = NETWORKS[name]
    x = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(1)).to(device, memory_format=torch.channels_last)
    case = f"batch {batch}{', bf16' if bf16 else ''}"
    rows: list[dict[str, Any]] = []
    calls: dict[str, Callable[[], tuple[int, int]]] = {}
    about: dict[str, dict[str, Any]] = {}
    for arm in ARMS:
        model = arm_of(make, arm, device).train()
        model(x)  # the first batch
        reason = equals_converted(model, x) if arm == "integer" else ""
        if reason:
            one = {"method": name, "case": case, "provider": arm, "device": device, "status": "failed", "reason": reason}
            rows.append(one)
            continue
        variants = {arm: model} | ({f"{arm}, compiled": torch.compile(model)} if compiled else {})
        for provider, network in variants.items():

            def forward(network: Any = network) -> torch.Tensor:
                with torch.autocast(device, torch.bfloat16, enabled=bf16):
                    y: torch.Tensor = network(x)
                return (
                    y.float().square().mean()
                    if y.dim() > 2
                    else F.cross_entropy(y.float(), torch.arange(batch, device=device) % 10)
                )

            def call(forward: Any = forward, model: nn.Module = model) -> tuple[int, int]:
                model.zero_grad()
                start = now(device)
                loss = forward()
                middle = now(device)
                loss.backward()
                return middle - start, now(device) - middle

            start = time.perf_counter()
            call()
            first = time.perf_counter() - start
            calls[provider], about[provider] = call, {"first": first, "saved": kept_bytes(model, forward, x)}
    before, start = measure.waited(), time.perf_counter()
    times = compat.turns(tuple(calls.values()), budget)
    after = measure.waited()
    share = None if before is None or after is None else (after - before) / (time.perf_counter() - start)
    for provider, seen in zip(calls, times, strict=True):
        one = compat.row(name, case, provider, seen, about[provider]["first"], x.nbytes, share)
        rows.append(one | {"device": device, "saved_bytes": about[provider]["saved"]})
    return rows


def now(device: str) -> int:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter_ns()


def table(result: dict[str, Any]) -> str:
    """Markdown: a line for each network and arm."""
    lines = [
        "| network | arm | forward ms | backward ms | step ms | of full precision | kept for backward, KB |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    plain = {(r["method"], r["case"]): r["passes"]["both"]["median_us"] for r in result["rows"] if r["provider"] == ARMS[0]}
    for r in result["rows"]:
        head = f"| {r['method']}, {r['case']} | {r['provider']} |"
        if r["status"] != "ok":
            lines.append(f"{head} {r['reason']} | | | | |")
            continue
        f, b, both = (r["passes"][which]["median_us"] for which in ("forward", "backward", "both"))
        lines.append(
            f"{head} {f / 1e3:.2f} | {b / 1e3:.2f} | {both / 1e3:.2f} | {both / plain[r['method'], r['case']]:.2f}x | "
            f"{r['saved_bytes'] / 1e3:.0f} |"
        )
    lines += ["", "Of full precision: the step's time over that of the network without quantizers; less is better."]
    waited = max((r.get("waited", 0.0) for r in result["rows"]), default=0.0)
    if waited > results.DISTURBED:
        lines += ["", f"Beside another program ({waited:.0%} of the time waiting for a core): the times are not to be trusted."]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--bf16", action="store_true", help="under bf16 autocast on a CPU as well")
    parser.add_argument("--compile", action="store_true", help="each arm under torch.compile, too")
    parser.add_argument("--quick", action="store_true", help="small batches, a moment each, nothing written")
    parser.add_argument("--filter", default="", metavar="TEXT", help="networks whose name contains TEXT; nothing written")
    parser.add_argument("--budget", type=float, default=20.0, metavar="SECONDS", help="of timing per network (default %(default)s)")
    parser.add_argument("--out", type=Path, help="folder of the result (default benchmarks/results/training)")
    args = parser.parse_args(arguments)
    names = [name for name in NETWORKS if args.filter in name]
    if not names:
        parser.error(f"no network has {args.filter!r} in its name; there are: {'; '.join(NETWORKS)}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda, and there is no GPU here")
    rows = []
    for name in names:
        on_cpu, on_gpu = NETWORKS[name][2:]
        batch = 2 if args.quick else on_gpu if args.device == "cuda" else on_cpu
        bf16 = args.bf16 or args.device == "cuda"
        rows += run_network(name, args.device, batch, bf16, args.compile, 0.0 if args.quick else args.budget)
        print(name, file=sys.stderr)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    more: dict[str, Any] = {"device": args.device, "quick": args.quick, "copy_bytes_per_s": None, "load": load, "rows": rows}
    result = results.new("benchmark", args.device, **more)
    print(table(results.validate(result)))
    if args.out or not (args.quick or args.filter):
        print(f"results: {results.write(result, args.out or FOLDER)}")
    return 1 if any(one["status"] == "failed" for one in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
