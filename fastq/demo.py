"""``python -m fastq demo``: handwritten digits in full precision, in 4 and 2 bits, and in integers."""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .commands import can_write, has_packages, positive_integer

__all__ = ["add_arguments", "run"]

BATCH = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--recipe", default="lsq", metavar="NAME", help="which of fastq.recipes.RECIPES trains them (default lsq)")
    parser.add_argument(
        "--forward", default="integer", choices=("integer", "fake"),
        help="whether training multiplies integer codes or the numbers they stand for (default integer, where there are codes)",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, default=Path("demo_output"), metavar="DIR", help="for results (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights and the order of the images (default 0)")
    parser.add_argument("--epochs", type=positive_integer, default=12, help="passes over the images per network (default 12)")
    parser.add_argument("--device", default=None, help="such as cpu or cuda (default: the GPU where there is one)")
    parser.add_argument("--quick", action="store_true", help="one epoch and no torch.compile: to see that it runs")


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm and a residual."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        same = channels == out and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels, out, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class Digits(nn.Module):
    """A small residual network for 8x8 images of ten digits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.block1, self.block2 = Block(16, 16, 1), Block(16, 32, 2)
        self.classifier = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn(self.stem(x)))
        return self.classifier(self.block2(self.block1(x)).mean((2, 3)))


def images(device: torch.device) -> tuple[torch.Tensor, ...]:
    """Training and test images and labels of scikit-learn's digits: 1347 and 450, always the same ones."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
    x = (torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16)[order].to(device)
    y = torch.tensor(digits.target)[order].to(device)
    return x[:1347], y[:1347], x[1347:], y[1347:]


@torch.no_grad()
def predictions(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The class of every image, in eval mode."""
    return model.eval()(x).argmax(1)


def recipe_for(name: str, bits: int) -> Any:
    """The recipe ``name`` for a run of a few hundred steps."""
    from fastq.recipes import RECIPES

    # a frequency that looks back on 1000 steps would see nothing of so short a run
    short = {"momentum": 0.01} if name.startswith("oscillation") else {}
    return RECIPES[name](weight_bits=bits, activation_bits=bits, **short)


def train(
    model: nn.Module, data: tuple[torch.Tensor, ...], epochs: int, rate: float, seed: int, advance: Callable[[], None],
    recipe: Any = None,
) -> list[float]:  # fmt: skip
    """Adam with a cosine; returns the test accuracy after every epoch."""
    import fastq

    x, y, test_x, test_y = data
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(fastq.param_groups(model, recipe, lr=rate))
    steps = epochs * -(-len(x) // BATCH)
    run = None if recipe is None else fastq.recipes.attach(recipe, model, optimizer, steps=steps)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    curve = []
    for _ in range(epochs):
        model.train()
        for batch in torch.randperm(len(x), generator=generator).to(x.device).split(BATCH):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x[batch]), y[batch])
            (loss if run is None else loss + run.loss()).backward()
            optimizer.step()
            schedule.step()
            advance()
        if run is not None:
            run.before_evaluation(x.split(BATCH))
        curve.append(float((predictions(model, test_x) == test_y).float().mean()))
    return curve


def prepared(start: nn.Module, recipe: Any, forward: str) -> tuple[nn.Module, str, str]:
    """A copy of ``start`` with quantizers, its forward pass, and why that is not the one asked for."""
    import fastq

    try:
        return fastq.prepare(copy.deepcopy(start), recipe, forward=forward).model, forward, ""
    except ValueError as error:
        if forward == "fake":
            raise
        return fastq.prepare(copy.deepcopy(start), recipe).model, "fake", str(error)


def step_times(
    start: nn.Module, model: nn.Module, data: tuple[torch.Tensor, ...], compiled: bool, rounds: int, recipe: str
) -> dict[str, float | str]:
    """Milliseconds of a training step without and with each kind of quantizer: interleaved medians, or why there is none.

    Eager and compiled are LSQ as it is written in plain PyTorch; for another recipe eager is the package's reference. The last one
    multiplies integer codes, the others the numbers that they stand for.
    """
    import fastq
    from fastq.reference.lsq import lsq_surrogate

    x, y = data[0][:BATCH], data[1][:BATCH]
    layers = tuple(fastq.nn.QUANTIZED.values())

    def variant(function: Callable[..., Any] | None) -> nn.Module:
        network = copy.deepcopy(model).train()
        for q in network.modules():
            if isinstance(q, layers):
                q.forward_kind = "fake"  # type: ignore[assignment]
            if function is not None and isinstance(q, fastq.nn.LSQ):
                q.forward = lambda t, q=q: function(t, q.step, qmin=q.qmin, qmax=q.qmax, offset=q.offset, axis=q.axis)  # type: ignore
        return network

    def step(network: nn.Module, backend: str | None = None) -> float:
        with contextlib.nullcontext() if backend is None else fastq.use_backend(backend):
            return timed(network)

    def timed(network: nn.Module) -> float:
        network.zero_grad()
        if x.is_cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        F.cross_entropy(network(x), y).backward()
        if x.is_cuda:
            torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - start)

    own = recipe == "lsq"
    networks = {
        "none (fp32)": copy.deepcopy(start).train(),
        "eager": variant(lsq_surrogate if own else None),
        "fastq": variant(None),
    }
    if any(getattr(m, "forward_kind", "fake") == "integer" for m in model.modules()):
        networks["fastq, integers"] = copy.deepcopy(model).train()
    result: dict[str, float | str] = {}
    if not own:
        result["compiled"] = "measured for lsq alone"
    elif not compiled:
        result["compiled"] = "not measured (--quick)"
    else:
        try:
            torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
            candidate = variant(torch.compile(lsq_surrogate, dynamic=True))
            step(candidate)
            networks["compiled"] = candidate
        except Exception as error:  # whatever a missing or broken compiler raises: the cell says it
            result["compiled"] = f"torch.compile failed: {type(error).__name__}"
    times: dict[str, list[float]] = {name: [] for name in networks}
    for number in range(rounds + 2):
        for name, network in networks.items():
            taken = step(network, "reference" if name == "eager" and not own else None)
            if number >= 2:
                times[name].append(taken)
    result |= {name: statistics.median(values) for name, values in times.items()}
    return {name: result[name] for name in ("none (fp32)", "eager", "compiled", "fastq", "fastq, integers") if name in result}


def picture(
    path: Path, curves: dict[str, list[float]], networks: dict[str, nn.Module], times: dict[str, float | str], recipe: str
) -> None:
    """Learning curves, the weights of one layer on their grid, and the time of a step."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(12, 8), layout="constrained")
    for name, curve in curves.items():
        axes[0, 0].plot(range(1, len(curve) + 1), [100 * a for a in curve], marker="o", markersize=3, label=name)
    axes[0, 0].set(title="Learning curves", xlabel="epoch", ylabel="test accuracy, %")
    axes[0, 0].legend()
    for axis, name in zip((axes[1, 0], axes[1, 1]), ("W4A4", "W2A2"), strict=True):
        layer: Any = networks[name].get_submodule("block2.conv2")
        q: Any = getattr(layer, "weight_quantizer", None)
        if recipe != "lsq":
            with torch.no_grad():
                levels, counts = (layer.weight if q is None else q(layer.weight)).flatten().cpu().unique(return_counts=True)
            axis.vlines(levels, 0, counts, color="tab:blue", linewidth=3 if len(levels) < 32 else 0.8)
            axis.set(title=f"{name}: quantized weights of block2.conv2", xlabel="value", ylabel="weights", ylim=(0, None))
            continue
        v = (layer.weight.detach() / q.effective_step().view(-1, 1, 1, 1)).flatten().cpu()
        axis.hist(v.clamp(q.qmin - 1, q.qmax + 1).numpy(), bins=120, color="tab:blue", alpha=0.8)
        for code in range(q.qmin, q.qmax + 1):
            axis.axvline(code, color="tab:red", linewidth=0.8, alpha=0.7)
        axis.set(
            title=f"{name}: weights of block2.conv2 on their grid", xlabel="weight / step (red: integer codes)", ylabel="weights"
        )
        axis.set_xticks(range(q.qmin, q.qmax + 1))
    bars = {name: value for name, value in times.items() if isinstance(value, float)}
    colors = ["tab:orange" if name.startswith("fastq") else "tab:gray" for name in bars]
    drawn = axes[0, 1].bar(list(bars), list(bars.values()), color=colors)
    axes[0, 1].bar_label(drawn, fmt="%.1f ms")
    axes[0, 1].set(title=f"One W4A4 training step, batch {BATCH}", xlabel="quantizers", ylabel="milliseconds, median")
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def without_integers(model: nn.Module) -> list[str]:
    """A line for the layers that have no integer product, and why."""
    import fastq

    named = list(model.named_modules())
    raw = [n for n, m in named if getattr(m, "weight_quantizer", None) is not None and getattr(m, "input_quantizer", None) is None]
    looked_up = [n for n, m in named if isinstance(getattr(m, "direct", None), fastq.nn.DirectWeight)]
    lines = []
    if raw:
        lines.append(f"In floating point: {', '.join(raw)}; the recipe leaves the input as it comes.")
    if looked_up:
        lines.append(f"By look-up: {', '.join(looked_up)}; learned levels are not evenly spaced, so there is no integer product.")
    return lines


def run(args: argparse.Namespace) -> int:
    """The command: 0; 2 for a folder, device or package that cannot be used."""
    if not has_packages("demo"):
        return 2
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    import fastq
    from fastq.recipes.quantizers import nearest

    if args.recipe not in fastq.recipes.RECIPES:
        print(f"demo: there is no recipe {args.recipe!r}{nearest(args.recipe, fastq.recipes.RECIPES)}", file=sys.stderr)
        return 2
    if not can_write("demo", args.output, args.output):
        return 2
    try:
        device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        print(f"demo: cannot use --device {args.device}: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    epochs = 1 if args.quick else args.epochs
    torch.manual_seed(args.seed)
    torch.backends.cudnn.deterministic = True  # the same seed, the same numbers
    torch.backends.cudnn.allow_tf32 = False  # the integer network is exact, and compared with products that round as fp32
    data = images(device)
    start = Digits().to(device)
    networks: dict[str, nn.Module] = {"full precision": start}
    curves: dict[str, list[float]] = {}
    forward, refused = args.forward, ""
    per_epoch = -(-len(data[0]) // BATCH)
    with Progress() as progress:
        for bits, rate in ((0, 3e-3), (4, 2e-3), (2, 2e-3)):
            name = f"W{bits}A{bits}" if bits else "full precision"
            task = progress.add_task(name, total=epochs * per_epoch)
            recipe = recipe_for(args.recipe, bits) if bits else None
            if recipe is not None:
                networks[name], forward, refused = prepared(start, recipe, args.forward)
            advance = functools.partial(progress.advance, task)
            curves[name] = train(networks[name], data, epochs, rate, args.seed, advance, recipe)

    test_x, test_y = data[2:]
    fp32_bytes = sum(t.numel() * t.element_size() for t in start.state_dict().values())
    rows: dict[str, dict[str, Any]] = {"full precision": {"accuracy": curves["full precision"][-1], "bytes": fp32_bytes}}
    for name in ("W4A4", "W2A2"):
        integers = fastq.convert(networks[name])
        report = fastq.deploy.compare(networks[name], integers, test_x)
        size = fastq.save(integers, args.output / f"digits-{name.lower()}.safetensors")
        rows[name] = {
            "accuracy": curves[name][-1], "integer accuracy": float((predictions(integers, test_x) == test_y).float().mean()),
            "differing predictions": report.differing_predictions, "flips": report.flips, "codes": report.codes,
            "largest logit difference": report.largest_logit_difference, "bytes": size,
        }  # fmt: skip
    times = step_times(start, networks["W4A4"], data, not args.quick, 3 if args.quick else 20, args.recipe)

    console = Console()
    console = Console(width=max(console.width, 110))  # piped, rich takes 80 columns and breaks the headings
    table = Table(title=f"Handwritten digits, recipe {args.recipe}, forward {forward}: {len(test_y)} test images")
    for column in ("", "accuracy", "integers", "differing predictions", "flipped codes", "largest logit difference", "bytes"):
        table.add_column(column, justify="right" if column else "left", no_wrap=bool(not column))
    for name, row in rows.items():
        cells = [name, f"{row['accuracy']:.2%}", "", "", "", "", f"{row['bytes']:,}"]
        if "flips" in row:
            cells[2:6] = [
                f"{row['integer accuracy']:.2%}", str(row["differing predictions"]), f"{row['flips']} of {row['codes']:,}",
                f"{row['largest logit difference']:.2g}",
            ]  # fmt: skip
        table.add_row(*cells)
    console.print(table)
    speed = Table(title=f"One training step, batch {BATCH}, forward and backward, {device.type}", min_width=62)
    speed.add_column("W4A4 quantizers")
    speed.add_column("median", justify="right")
    for name, value in times.items():
        speed.add_row(name, f"{value:.1f} ms" if isinstance(value, float) else value)
    console.print(speed)
    picture(args.output / "demo.png", curves, networks, times, args.recipe)
    (args.output / "demo.json").write_text(
        json.dumps({"recipe": args.recipe, "forward": forward, "networks": rows, "curves": curves, "step_ms": times}, indent=2)
        + "\n"
    )
    if refused:
        console.print(f"Trained with forward='fake': {refused}")
    for why in without_integers(networks["W4A4"]):
        console.print(why)
    console.print(f"Picture, numbers and the saved networks: {args.output}")
    return 0
