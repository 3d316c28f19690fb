"""The two networks of the comparison, and their training: SGD with a cosine, the same for every arm."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..demo import Digits
from ..recipes import Recipe, Training, attach, param_groups

__all__ = ["BATCH", "NETWORKS", "Separable", "batches", "pretrain", "train"]

BATCH = 64
Data = tuple[torch.Tensor, ...]


class Separable(nn.Module):
    """A small network of depthwise separable layers, as in MobileNet, for 8x8 images of ten digits."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
        for channels, out, stride in ((16, 32, 1), (32, 32, 2), (32, 64, 1)):
            layers += [
                nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(),
            ]
            layers += [nn.Conv2d(channels, out, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        self.features, self.classifier = nn.Sequential(*layers), nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


NETWORKS: dict[str, type[nn.Module]] = {"residual": Digits, "separable": Separable}


def batches(data: Data, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Whole batches without end, in an order that the seed alone decides."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for batch in torch.randperm(len(data[0]), generator=generator).split(BATCH):
            if len(batch) == BATCH or len(data[0]) < BATCH:
                yield data[0][batch], data[1][batch]


def pretrain(name: str, data: Data, steps: int, seed: int) -> nn.Module:
    """A network in full precision, from weights that the seed decides."""
    torch.manual_seed(seed)
    model = NETWORKS[name]()
    _run(model, data, steps, seed, _sgd(model.parameters(), 0.1))
    return model


def train(model: nn.Module, recipe: Recipe, data: Data, steps: int, seed: int, rate: float) -> tuple[Training, float]:
    """Follow ``recipe``, with a cosine for each of its phases; the mean training loss of the last tenth beside the run."""
    optimizer = _sgd(param_groups(model, recipe, lr=rate), rate)
    run = attach(recipe, model, optimizer, steps=steps)
    return run, _run(model, data, steps, seed, optimizer, run, max(1, len(recipe.phases)))


def _sgd(parameters: Any, rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, rate, momentum=0.9, nesterov=True)


def _run(
    model: nn.Module, data: Data, steps: int, seed: int, optimizer: torch.optim.Optimizer, run: Training | None = None,
    cosines: int = 1,
) -> float:  # fmt: skip
    schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, -(-steps // cosines))
    losses = []
    for _, (x, y) in zip(range(steps), batches(data, seed), strict=False):
        model.train()
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        losses.append(loss.detach())
        (loss if run is None else loss + run.loss()).backward()
        optimizer.step()
        schedule.step()
    return float(torch.stack(losses[-max(1, steps // 10) :]).mean())
