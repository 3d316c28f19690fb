"""Every quantizer of ``fastq.nn`` that has integer codes, by name: one for a weight, one for an input. And layers for them."""

import torch
import torch.nn.functional as F
from torch import nn

from fastq.nn import DSQ, EWGS, LSQ, PACT, QIL, ChannelError, NoiseQuant, OscillationLSQ, SATWeight, Tempered

#: ``make(bits, **grain)``; the grain is per tensor where there is none.
WEIGHTS = {
    "lsq": lambda bits, **grain: LSQ(bits, **grain),
    "lsq+": lambda bits, **grain: LSQ(bits, offset=True, **grain),
    "oscillation": lambda bits, **grain: OscillationLSQ(bits, **grain),
    "tempered": lambda bits, **grain: Tempered(bits, **grain),
    "noise": lambda bits, **grain: NoiseQuant(bits, **grain),
    "pact two-sided": lambda bits, **grain: PACT(bits, two_sided=True, init=0.9, **grain),
    "qil": lambda bits, **grain: QIL(bits, weight=True, **grain),
    "qil without gamma": lambda bits, **grain: QIL(bits, weight=True, learn_gamma=False, **grain),
    "qil scaled": lambda bits, **grain: QIL(bits, weight=True, learn_scale="group_size" not in grain, **grain),
    "ewgs": lambda bits, **grain: EWGS(bits, weight=True, learn_scale="group_size" not in grain, **grain),
    "dsq": lambda bits, **grain: DSQ(bits, **grain),
    "sat round": lambda bits: SATWeight(bits),
    "sat floor": lambda bits: SATWeight(bits, scheme="floor", rescale="std"),
    "sat centered": lambda bits: SATWeight(2, scheme="centered", rescale="none"),
}
INPUTS = {
    "lsq": lambda bits, **grain: LSQ(bits, signed=False, **grain),
    "lsq+": lambda bits, **grain: LSQ(bits, signed=False, offset=True, **grain),
    "channel error": lambda bits: ChannelError(bits, axis=0),
    "tempered": lambda bits, **grain: Tempered(bits, signed=None, **grain),
    "noise": lambda bits, **grain: NoiseQuant(bits, **grain),
    "pact": lambda bits, **grain: PACT(bits, init=1.5, **grain),
    "pact by first batch": lambda bits, **grain: PACT(bits, two_sided=None, init=1.5, **grain),
    "pact two-sided": lambda bits, **grain: PACT(bits, two_sided=True, init=1.5, **grain),
    "qil": lambda bits, **grain: QIL(bits, weight=False, **grain),
    "qil signed": lambda bits, **grain: QIL(bits, weight=False, signed=None, learn_scale="group_size" not in grain, **grain),
    "ewgs": lambda bits, **grain: EWGS(bits, weight=False, learn_scale="group_size" not in grain, **grain),
    "dsq": lambda bits, **grain: DSQ(bits, **grain),
}
#: ``(make, input shape)`` of every kind of convolution.
CONVOLUTIONS = {
    "conv2d": (lambda: nn.Conv2d(3, 6, 3), (2, 3, 6, 5)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4), (2, 4, 5, 4)),
    "grouped": (lambda: nn.Conv2d(4, 6, (3, 2), stride=2, dilation=(1, 2), groups=2, bias=False), (2, 4, 7, 6)),
    "padded": (lambda: nn.Conv2d(3, 4, 3, stride=2, padding=(2, 1)), (2, 3, 5, 6)),
    "reflected": (lambda: nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"), (1, 2, 5, 4)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 4, padding="same", groups=2), (2, 4, 9)),
    "one sample": (lambda: nn.Conv2d(3, 4, 3, padding=1), (3, 5, 5)),
}
#: Without a granularity.
WHOLE = ("sat round", "sat floor", "sat centered", "channel error")


def trained(quantizer, x):
    """``quantizer`` after its first batch ``x``, with parameters that are no round numbers and clip some of ``x``; in eval mode."""
    with torch.no_grad():
        quantizer.train()(x)
        for name, p in quantizer.named_parameters():
            if name == "offset":
                p.copy_(torch.linspace(0.13, 0.37, p.numel(), device=p.device).view_as(p))
            elif name != "a":  # of the gradient alone
                p.mul_(torch.linspace(0.93, 0.71, p.numel(), device=p.device).view_as(p))
    return quantizer.eval()


def product(layer, x, w, bias=None):
    """``layer``'s product or convolution, with other factors."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, w, bias)
    x = x if layer.padding_mode == "zeros" else F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
    padding = layer.padding if layer.padding_mode == "zeros" else 0
    convolve = F.conv1d if isinstance(layer, nn.Conv1d) else F.conv2d
    return convolve(x, w, bias, layer.stride, padding, layer.dilation, layer.groups)
