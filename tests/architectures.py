"""The networks that the papers measure, by their published structure and with torchvision's parameter names; random weights.

torchvision's wheel for the pinned torch is built against CUDA and does not import beside a CPU build of torch, so it is no
requirement here. Names, shapes and outputs of these definitions were compared with torchvision 0.28.0, whose models run without its
operators: the logits had the same bits for the same weights. ``FINGERPRINTS`` keeps its names and shapes.
"""

import hashlib
import math

import torch
import torch.nn.functional as F
from torch import nn

#: Number of parameters and SHA-256 of "name shape" lines of torchvision 0.28.0's state dict.
FINGERPRINTS = {
    "resnet18": (11_689_512, "84fb10d9c6905a1cbb020b284537dc97c4f4ec55fb2a780a41152a23a2dd0e9d"),
    "resnet50": (25_557_032, "d7e4f8bb0a5363446a59c81c3887ccf66900a11651a0ae2dec96d1bb1eb6ea81"),
    "mobilenet_v2": (3_504_872, "37bbbce8932fd0c49fe8e941719a7aa7b25b60c17b428749b72562f754135844"),
    "mobilenet_v3_small": (2_542_856, "5f0efaf3ff4ac979485c311e28eca4adf197652c72ce1fc09348dea8557bac96"),
}


def fingerprint(model):
    """``(parameters, digest)`` of a model, as in ``FINGERPRINTS``."""
    lines = "\n".join(f"{name} {tuple(t.shape)}" for name, t in model.state_dict().items())
    return sum(p.numel() for p in model.parameters()), hashlib.sha256(lines.encode()).hexdigest()


# --- ResNet (He et al., https://arxiv.org/abs/1512.03385; the stride of a bottleneck lies in its 3x3 convolution) ------------


class Basic(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    widening = 1

    def __init__(self, inputs, width, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.downsample = projection(inputs, width, stride)

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut."""

    widening = 4

    def __init__(self, inputs, width, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.downsample = projection(inputs, 4 * width, stride)

    def forward(self, x):
        y = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return F.relu(self.bn3(self.conv3(y)) + (x if self.downsample is None else self.downsample(x)))


def projection(inputs, outputs, stride):
    if inputs == outputs and stride == 1:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    def __init__(self, block, depths, classes=1000):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        inputs = 64
        for stage, depth in enumerate(depths):
            blocks = []
            for i in range(depth):
                blocks.append(block(inputs, 64 << stage, 2 if stage and not i else 1))
                inputs = (64 << stage) * block.widening
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


def resnet18(classes=1000):
    return ResNet(Basic, (2, 2, 2, 2), classes)


def resnet50(classes=1000):
    return ResNet(Bottleneck, (3, 4, 6, 3), classes)


# --- MobileNetV2 (https://arxiv.org/abs/1801.04381) and V3 (https://arxiv.org/abs/1905.02244) ---------------------------------


def convolution(inputs, outputs, size, stride=1, groups=1, act=nn.ReLU6, **norm):
    """Convolution, batch norm and, unless ``act`` is None, an activation."""
    parts = [nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs, **norm)]
    return nn.Sequential(*parts, *([act()] if act else []))


class Inverted(nn.Module):
    """Expansion, depthwise convolution, projection without an activation."""

    def __init__(self, inputs, outputs, stride, factor):
        super().__init__()
        wide = inputs * factor
        first = [convolution(inputs, wide, 1)] if factor > 1 else []
        self.conv = nn.Sequential(
            *first, convolution(wide, wide, 3, stride, wide), nn.Conv2d(wide, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x):
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    #: Expansion factor, channels, blocks, stride of the first.
    stages = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )

    def __init__(self, classes=1000):
        super().__init__()
        parts, inputs = [convolution(3, 32, 3, 2)], 32
        for factor, outputs, depth, stride in self.stages:
            for i in range(depth):
                parts.append(Inverted(inputs, outputs, 1 if i else stride, factor))
                inputs = outputs
        self.features = nn.Sequential(*parts, convolution(inputs, 1280, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, classes))

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


class SqueezeExcitation(nn.Module):
    """Channels scaled by what their means say: ``x * hardsigmoid(fc2(relu(fc1(mean x))))``."""

    def __init__(self, channels, squeezed):
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)

    def forward(self, x):
        return x * F.hardsigmoid(self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True)))))


def eighths(channels):
    """The multiple of 8 next to ``channels``, never more than a tenth below."""
    near = max(8, int(channels + 4) // 8 * 8)
    return near + 8 if near < 0.9 * channels else near


class InvertedV3(nn.Module):
    """As :class:`Inverted`, with a kernel size, an activation and squeeze-and-excitation of its own."""

    def __init__(self, inputs, size, wide, outputs, squeeze, act, stride):
        super().__init__()
        how = {"eps": 0.001, "momentum": 0.01}
        parts = [convolution(inputs, wide, 1, act=act, **how)] if wide != inputs else []
        parts.append(convolution(wide, wide, size, stride, wide, act, **how))
        if squeeze:
            parts.append(SqueezeExcitation(wide, eighths(wide // 4)))
        self.block = nn.Sequential(*parts, convolution(wide, outputs, 1, act=None, **how))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x):
        return x + self.block(x) if self.residual else self.block(x)


class MobileNetV3Small(nn.Module):
    #: Kernel size, expanded channels, channels, squeeze-and-excitation, activation, stride.
    blocks = (
        (3, 16, 16, True, nn.ReLU, 2),
        (3, 72, 24, False, nn.ReLU, 2),
        (3, 88, 24, False, nn.ReLU, 1),
        (5, 96, 40, True, nn.Hardswish, 2),
        (5, 240, 40, True, nn.Hardswish, 1),
        (5, 240, 40, True, nn.Hardswish, 1),
        (5, 120, 48, True, nn.Hardswish, 1),
        (5, 144, 48, True, nn.Hardswish, 1),
        (5, 288, 96, True, nn.Hardswish, 2),
        (5, 576, 96, True, nn.Hardswish, 1),
        (5, 576, 96, True, nn.Hardswish, 1),
    )

    def __init__(self, classes=1000):
        super().__init__()
        how = {"act": nn.Hardswish, "eps": 0.001, "momentum": 0.01}
        parts, inputs = [convolution(3, 16, 3, 2, **how)], 16
        for size, wide, outputs, squeeze, act, stride in self.blocks:
            parts.append(InvertedV3(inputs, size, wide, outputs, squeeze, act, stride))
            inputs = outputs
        self.features = nn.Sequential(*parts, convolution(inputs, 6 * inputs, 1, **how))
        self.classifier = nn.Sequential(nn.Linear(6 * inputs, 1024), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(1024, classes))

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


# --- A small transformer -----------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Self-attention of which every projection is a Linear layer (torch's own holds a bare parameter for three of them)."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x):
        n, length, width = x.shape
        q, k, v = (f(x).view(n, length, self.heads, -1).transpose(1, 2) for f in (self.query, self.key, self.value))
        mixed = (q @ k.transpose(-1, -2) / math.sqrt(width // self.heads)).softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).reshape(n, length, width))


class Transformer(nn.Module):
    """Patches of an image, a torch.nn.TransformerEncoderLayer, then an attention of Linear layers, and a head."""

    def __init__(self, classes=1000, width=32, patch=8):
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.encoder = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True)
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, 4)
        self.norm2, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        x = self.encoder(self.patches(x).flatten(2).transpose(1, 2))
        x = x + self.attention(self.norm1(x))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(x.mean(1))


ARCHITECTURES = {
    "resnet18": resnet18,
    "resnet50": resnet50,
    "mobilenet_v2": MobileNetV2,
    "mobilenet_v3_small": MobileNetV3Small,
    "transformer": Transformer,
}


def build(name, classes=1000, seed=0):
    """The network with random weights, the same ones each time; torch's generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ARCHITECTURES[name](classes)
