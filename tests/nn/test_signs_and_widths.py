"""What the quantizers share beyond their formulas: the sign that the first batch decides, and widths that change while training."""

import pytest
import torch
from device import drawn

import fastq
from fastq.nn import DSQ, EWGS, LSQ, PACT, QIL, OscillationLSQ, SATWeight

pytestmark = pytest.mark.usefixtures("one_thread")

POSITIVE = drawn((8, 16), 1).abs()
BOTH = drawn((8, 16), 2)


@pytest.mark.parametrize("make", [lambda: PACT(3, two_sided=None, init=1.5), lambda: QIL(3, weight=False, signed=None)])
def test_the_first_batch_decides_the_sign(make):
    one, two = make(), make()
    assert one(POSITIVE).min() >= 0 and not one._signed
    assert two(BOTH).min() < 0 < two(BOTH).max() and two._signed
    assert (one(BOTH) >= 0).all(), "the first batch alone decides"
    again = make()
    again.load_state_dict(two.state_dict())
    assert torch.equal(again(BOTH), two(BOTH)), "the sign is part of the state"


def test_pact_that_decided_is_the_two_sided_one():
    q, alpha = PACT(3, two_sided=None, init=1.5), torch.tensor([1.5])
    assert torch.equal(q(BOTH), fastq.pact(BOTH, alpha, bits=3, two_sided=True)) and q.two_sided
    assert q.alpha.tolist() == [1.5], "the batch decides the sign, init the clip"


def test_qil_that_decided_is_a_weight_without_exponent():
    q = QIL(3, weight=False, signed=None)
    assert torch.equal(q(BOTH), fastq.qil(BOTH, q.center, q.width, bits=3, weight=True)) and q.gamma is None


def test_qil_of_one_bit_refuses_a_signed_first_batch():
    with pytest.raises(ValueError, match=r"QIL: .*1 bit"):
        QIL(1, weight=False, signed=None)(BOTH)
    with pytest.raises(TypeError, match="QIL: signed must be True, False or None, got 'no'"):
        QIL(3, weight=False, signed="no")


@pytest.mark.parametrize("axis", [None, 0])
def test_qil_learns_a_scale_that_keeps_the_mean_magnitude(axis):
    q = QIL(4, weight=True, learn_scale=True, axis=axis, shape=(1,) if axis is None else (8,))
    w = BOTH.clone().requires_grad_()
    y = q(w)
    dims = () if axis is None else (1,)
    # bound: fp32 means of 16 to 128 elements
    torch.testing.assert_close(y.abs().mean(dims), BOTH.abs().mean(dims), rtol=1e-5, atol=0)
    plain = fastq.qil(BOTH, q.center, q.width, q.gamma, bits=4, weight=True, axis=axis)
    assert torch.equal(y, plain * q.scale.view(-1, *(1,) * (axis is not None)))
    y.sum().backward()
    torch.testing.assert_close(q.scale.grad, plain.sum(dims).reshape(q.scale.shape), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="QIL: group_size needs learn_scale=False"):
        QIL(4, weight=True, learn_scale=True, group_size=4, shape=(8, 4))


CHANGES = {
    "lsq": (lambda bits: LSQ(bits), lambda q: q.effective_step() * q.qmax),
    "lsq per channel": (lambda bits: LSQ(bits, axis=0, shape=(8,)), lambda q: q.effective_step() * q.qmax),
    "lsq unsigned": (lambda bits: LSQ(bits, signed=False), lambda q: q.effective_step() * q.qmax),
    "oscillation": (lambda bits: OscillationLSQ(bits), lambda q: q.effective_step() * q.qmax),
    "pact": (lambda bits: PACT(bits), lambda q: q.effective_alpha()),
    "qil": (lambda bits: QIL(bits, weight=True), lambda q: q.interval()[1]),
    "ewgs": (lambda bits: EWGS(bits, weight=True), lambda q: q.upper.detach()),
    "dsq": (lambda bits: DSQ(bits), lambda q: q.upper.detach()),
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_width_keeps_what_is_clipped(name):
    make, clip = CHANGES[name]
    q = make(5)
    q(BOTH)
    before, levels = clip(q).clone(), len(q(BOTH).unique())
    q.set_bits(2)
    assert q.bits == 2 and len(q(BOTH).unique()) < levels
    torch.testing.assert_close(clip(q), before, rtol=1e-6, atol=0)  # one rounding of the step
    q.set_bits(2)
    torch.testing.assert_close(clip(q), before, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", CHANGES)
def test_full_precision_for_a_while_begins_anew(name):
    make = CHANGES[name][0]
    layer = torch.nn.Linear(16, 8, bias=False)
    layer.weight.data.copy_(BOTH)
    layer = fastq.nn.QuantLinear.from_float(layer, weight_quantizer=make(3), input_quantizer=None)
    x, quantized = drawn((4, 16), 5), layer(drawn((4, 16), 5))
    layer.weight_quantizer.set_bits(None)
    assert torch.equal(layer(x), torch.nn.functional.linear(x, layer.weight)) and not torch.equal(layer(x), quantized)
    layer.weight.data.mul_(3)
    layer.weight_quantizer.set_bits(4)
    fresh = make(4)
    assert torch.equal(layer(x), torch.nn.functional.linear(x, fresh(layer.weight))), "the parameters are those of a first batch"


def test_oscillations_of_another_width_are_another_history():
    q, w = OscillationLSQ(4), BOTH.clone()
    q.train()(w)
    q.step_(w)
    assert q.state is not None
    q.set_bits(3)
    assert q.state is None
    q(w)
    assert (q.state.qmin, q.state.qmax) == (-4, 3) and not q.state.frozen.any()


def test_sat_without_bits_is_the_clamped_pretraining():
    q = SATWeight(3, rescale="constant")
    q.set_bits(None)
    assert torch.equal(q(BOTH), fastq.sat_weight(BOTH, bits=None)) and q.enabled
    q.set_bits(2)
    assert torch.equal(q(BOTH), fastq.sat_weight(BOTH, bits=2))
    with pytest.raises(ValueError, match="SATWeight: "):
        q.set_bits(9)


@pytest.mark.parametrize("name", CHANGES)
def test_a_width_that_is_none_is_refused_and_changes_nothing(name):
    q = CHANGES[name][0](3)
    q(BOTH)
    before = q(BOTH)
    for wrong in (0, 9, "4"):
        with pytest.raises((TypeError, ValueError), match="bits must be"):
            q.set_bits(wrong)
    assert torch.equal(q(BOTH), before) and q.bits == 3
