"""Whole networks end to end: converted to integers, beside the same weights in torch, in float32 and bfloat16.

The demo's network on digits and one of ResNet-18's shape, with random weights: a step of LSQ is taken from one batch, nothing is
trained. torch runs them eagerly on channels_last images, batch norms folded into the convolutions, as ``fastq.convert`` folds them.
The 8-bit one is also run from its file by ``fastq.runtime``, whose threads are its own.
A converted network shows a time only where it gives, bit for bit, what its trainable form with ``forward="integer"`` gives; one of
torch's where it is within a few roundings of the unfolded network's outputs.
"""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx.experimental import optimization

import fastq
from fastq.demo import Block, Digits

from . import measure
from .training import equals_converted

__all__ = ["NETWORKS", "ResNet18", "rows"]


class ResNet18(nn.Module):
    """Of ResNet-18's convolutions; its shortcuts without batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        stages = [(64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)]
        blocks = [block for before, width, stride in stages for block in (Block(before, width, stride), Block(width, width, 1))]
        self.blocks, self.classifier = nn.Sequential(*blocks), nn.Linear(512, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.bn(self.stem(x))), 3, 2, 1)
        x = self.blocks(x)
        return self.classifier(x.mean((2, 3)))  # type: ignore[no-any-return]


#: What makes it, the shape of an image, and the batches.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[int, ...]]] = {
    "digits": (Digits, (1, 8, 8), (1, 64)),
    "resnet-18": (ResNet18, (3, 224, 224), (1, 8)),
}


def plain(make: Callable[[], nn.Module], x: torch.Tensor, dtype: torch.dtype) -> tuple[nn.Module, str]:
    """Folded, in ``dtype``; and why not, where its outputs are wrong."""
    model = network(make, x).eval()
    with torch.no_grad():
        want = model(x)
        folded = optimization.fuse(model).to(dtype=dtype, memory_format=torch.channels_last)
        off = (folded(x.to(dtype)).float() - want).abs().max() / want.abs().max()
    allowed = 32 * torch.finfo(dtype).eps  # some twenty layers, each rounded
    return folded, "" if off <= allowed else f"differs from the unfolded network by {float(off):.3g} of its largest output"


def network(make: Callable[[], nn.Module], x: torch.Tensor) -> nn.Module:
    """With the statistics of a batch in its batch norms."""
    torch.manual_seed(0)
    model = make().to(memory_format=torch.channels_last)
    with torch.no_grad():
        model.train()(x)
    return model


def integers(make: Callable[[], nn.Module], x: torch.Tensor, bits: int) -> tuple[nn.Module, str]:
    """Converted from weights of ``bits`` bits and activations of 8; and why not, where it differs."""
    recipe = fastq.recipes.lsq(weight_bits=bits, activation_bits=8)
    model = fastq.prepare(network(make, x), recipe, forward="integer").model
    with torch.no_grad():
        model.train()(x)  # sets the steps
    wrong = equals_converted(model, x)
    return fastq.convert(model.eval()), wrong


def without_torch(make: Callable[[], nn.Module], x: torch.Tensor, bits: int) -> tuple[Any, str]:
    """The same from its file, by ``fastq.runtime`` with as many threads; and why not, where an output differs."""
    model, wrong = integers(make, x, bits)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.safetensors"
        fastq.save(model, path)
        network = fastq.runtime.load(path, threads=torch.get_num_threads())

    def run(given: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(network(given.numpy()))

    with torch.no_grad():
        return run, wrong or ("" if torch.equal(run(x), model(x)) else "differs from the converted network")


ARMS: dict[str, Callable[[Callable[[], nn.Module], torch.Tensor], tuple[Any, str]]] = {
    "fastq-W8A8": functools.partial(integers, bits=8),
    "fastq-W4A8": functools.partial(integers, bits=4),
    "fastq-runtime-W8A8": functools.partial(without_torch, bits=8),
    "torch-fp32": functools.partial(plain, dtype=torch.float32),
    "torch-bf16": functools.partial(plain, dtype=torch.bfloat16),
}


def rows(name: str, budget: float, quick: bool = False) -> list[dict[str, Any]]:
    """A row for each batch and arm. ``quick``: small images, the smallest batch."""
    make, shape, batches = NETWORKS[name]
    shape = (shape[0], *(min(size, 32) for size in shape[1:])) if quick else shape
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(2, *shape, generator=generator).to(memory_format=torch.channels_last)
    made = {arm: build(make, sample) for arm, build in ARMS.items()}
    found = []
    for batch in batches[:1] if quick else batches:
        x = torch.randn(batch, *shape, generator=generator).to(memory_format=torch.channels_last)
        calls: dict[str, measure.Calls] = {}
        first: dict[str, float] = {}
        with torch.inference_mode():
            for arm, (model, wrong) in made.items():
                if not wrong:
                    given = x.to(torch.bfloat16) if arm == "torch-bf16" else x
                    start = time.perf_counter()
                    model(given)
                    first[arm] = time.perf_counter() - start
                    calls[arm] = [functools.partial(model, given)]
            times, share = measure.undisturbed(functools.partial(measure.called, calls, budget), patience=2 * budget)
        for arm, (_, wrong) in made.items():
            row: dict[str, Any] = {"network": name, "batch": batch, "provider": arm, "status": "failed" if wrong else "ok"}
            row |= {"reason": wrong} if wrong else {"first_call_s": first[arm], "time": measure.summary(times[arm])}
            found.append(row if share is None or wrong else {**row, "waited": share})
    return found
