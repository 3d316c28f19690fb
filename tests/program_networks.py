"""Networks whose programs are tested, and the files of tests/runtime/fixtures, which this writes::

    python tests/program_networks.py

Each fixture is a network as ``fastq.save`` wrote it and, in an ``.npz`` file, inputs ``x`` with the outputs ``y`` of torch's path.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import fastq
from fastq.nn import LSQ, QuantConv2d, QuantLinear

FIXTURES = Path(__file__).parent / "runtime" / "fixtures"


def drawn(*shape, seed=1):
    return torch.rand(shape, generator=torch.Generator("cpu").manual_seed(seed), device="cpu").mul_(2).sub_(0.5)


def integers(model, x, weight_bits=4, recipe=None):
    """``model`` with quantizers whose steps come from ``x`` and norms that are no identity, converted."""
    prepared = fastq.prepare(model.cpu(), recipe or fastq.recipes.lsq(weight_bits, 4), forward="integer").model
    for i, norm in enumerate(m for m in prepared.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))):
        norm.weight.data.copy_(drawn(norm.num_features, seed=i) + 1)
        norm.bias.data.copy_(drawn(norm.num_features, seed=i + 50))
    prepared(x)
    prepared(x)
    return fastq.convert(prepared.eval())


class Convolutions(nn.Module):
    """Strides, paddings, dilations, groups, with and without bias."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.wide = nn.Conv2d(8, 8, (1, 5), (1, 2), (0, 2), dilation=(1, 2), bias=False)
        self.grouped = nn.Conv2d(8, 12, 3, padding="same", groups=2)
        self.depthwise = nn.Sequential(nn.Conv2d(12, 24, 3, padding=1, groups=12, bias=False), nn.BatchNorm2d(24), nn.ReLU6())
        self.dilated = nn.Conv2d(24, 20, 2, dilation=(2, 1))
        self.last = nn.Linear(20 * 2, 5)

    def forward(self, x):
        x = self.dilated(self.depthwise(self.grouped(F.relu(self.wide(self.stem(x))))))
        return self.last(F.max_pool2d(x, 2).flatten(1))


class Pools(nn.Module):
    """Every pool and what stands by itself between layers."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(2, 33, 3), nn.Conv2d(33, 9, 1), nn.Conv2d(9, 7, 3, padding=1)
        self.norm, self.drop, self.last = nn.BatchNorm2d(33), nn.Dropout(0.3), nn.Linear(7 * 6, 3)
        self.max = nn.MaxPool2d((3, 2), (1, 2), (1, 0), dilation=(2, 1), ceil_mode=True)
        self.mean = nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False)

    def forward(self, x):
        x = self.norm(self.max(self.a(x)))
        x = self.b(F.avg_pool2d(torch.relu(x), 2, 1, 1))
        x = self.c(self.mean(F.relu6(x)) + F.avg_pool2d(x, (3, 3), 2, (1, 1), True, True, 5))
        x = F.relu(F.adaptive_avg_pool2d(x, (3, 2)), inplace=True)
        return self.last(self.drop(x.reshape(x.size(0), -1)))


class Means(nn.Module):
    """Global pools in their spellings; ends with an image."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 37, 1), nn.Conv2d(37, 6, 1), nn.Conv2d(37, 6, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x):
        x = self.a(x)
        return self.c(self.pool(x)) + self.b(x.mean((-1, -2), keepdim=True) + torch.mean(x, [2, 3], True))


def perceptron():
    return nn.Sequential(nn.Linear(45, 33), nn.BatchNorm1d(33), nn.ReLU(), nn.Linear(33, 20), nn.ReLU(), nn.Linear(20, 7))


def quantized_layers():
    """Weights per tensor, channel and group, and one whose input is not quantized."""
    torch.manual_seed(0)
    tensor = QuantConv2d(2, 4, 3, padding=1, weight_quantizer=LSQ(4), input_quantizer=LSQ(8, signed=False))
    channel = QuantConv2d(4, 6, 3, weight_quantizer=LSQ(3, axis=0, shape=(6,)), input_quantizer=LSQ(4, signed=False))
    alone = QuantConv2d(6, 8, 3, groups=2, weight_quantizer=LSQ(3, axis=0, shape=(8,)))
    grouped = QuantLinear(32, 5, weight_quantizer=LSQ(4, group_size=16, shape=(5, 2)), input_quantizer=LSQ(4))
    last = QuantLinear(5, 3, weight_quantizer=LSQ(2))
    return nn.Sequential(tensor, nn.ReLU(), channel, nn.ReLU(), alone, nn.ReLU(), nn.Flatten(), grouped, last)


#: The networks of the fixtures: how they are made, the shape of a sample, the bits of the weights (None: quantized already).
NETWORKS = {
    "perceptron": (perceptron, (45,), 3),
    "convolutions": (Convolutions, (3, 14, 17), 4),
    "pools": (Pools, (2, 9, 10), 2),
    "layers": (quantized_layers, (2, 6, 6), None),
}


def network_of(name):
    """``(float model, integer network, x)`` of a fixture."""
    make, shape, bits = NETWORKS[name]
    torch.manual_seed(0)
    model, x = make(), drawn(5, *shape)
    if bits is not None:
        return model, integers(model, x, bits), x
    model(x)
    return model, fastq.convert(model.eval().cpu()), x


def write(folder):
    """All of them; returns their names."""
    folder.mkdir(exist_ok=True)
    for name in NETWORKS:
        _, network, x = network_of(name)
        fastq.save(network, folder / f"{name}.safetensors")
        np.savez_compressed(folder / f"{name}.npz", x=x.numpy(), y=network(x).numpy())
    return list(NETWORKS)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(*write(FIXTURES))
