"""Every quantizer of ``fastq.nn`` that has integer codes, by name: one for a weight, one for an input."""

import torch

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
