"""The quantizer that tracks and freezes: when its state is made, changed, left alone, saved and loaded."""

import copy
import io

import pytest
import torch
from device import drawn
from torch import nn

import fastq
from fastq.nn import LSQ, OscillationLSQ, QuantConv2d, QuantLinear, step_oscillations_
from fastq.testing import same_bits

pytestmark = pytest.mark.usefixtures("one_thread")
GRAINS = {"tensor": {}, "axis0": {"axis": 0, "shape": (4,)}, "group": {"group_size": 4, "shape": (4, 6, 2)}}


def oscillating(q, w, steps=8, threshold=0.3):
    """Weights that jump between two codes at every step."""
    for t in range(steps):
        with torch.no_grad():
            w.add_(q.effective_step().max() * (1 if t % 2 == 0 else -1))
        q.step_(w, threshold=threshold)


@pytest.mark.parametrize("grain", GRAINS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_until_something_freezes_it_is_lsq(grain, dtype):
    q, plain = OscillationLSQ(3, **GRAINS[grain]), LSQ(3, boundary="rounded", **GRAINS[grain])
    w = drawn((4, 6, 8)).to(dtype)
    for _ in range(3):
        results = []
        for module in (q, plain):
            x = w.clone().requires_grad_()
            y = module(x)
            results.append((y, *torch.autograd.grad(y.sin().sum(), [x, module.step])))
        assert all(same_bits(a, b) for a, b in zip(*results, strict=True))
    assert q.state is not None and not q.state.frozen.any() and torch.equal(q.state.codes, plain.codes(w))
    assert torch.equal(q.codes(w), plain.codes(w))


@pytest.mark.parametrize("grain", GRAINS)
def test_step_tracks_and_freezes(grain):
    q, w = OscillationLSQ(3, momentum=0.2, **GRAINS[grain]), drawn((4, 6, 8)) * 0.3
    q(w)
    other, state = w.clone(), fastq.oscillation_step_(w, q.step, **q._where())
    oscillating(q, w)
    for t in range(8):
        other += q.effective_step().max() * (1 if t % 2 == 0 else -1)
        fastq.oscillation_step_(other, q.step, state, momentum=0.2, threshold=0.3, **q._where())
    assert torch.equal(q.freeze, state.freeze) and torch.equal(q.track, state.track) and torch.equal(w, other)
    assert 0.5 < float(q.state.frozen.float().mean()) <= 1
    frozen = q.state.frozen
    with torch.no_grad():
        q.step.mul_(1.5)
    x = w.clone().requires_grad_()
    y = q(x)
    assert same_bits(y, fastq.frozen_lsq(w, q.step, state, boundary="rounded", **q._where()))
    assert not torch.autograd.grad(y.sum(), x)[0][frozen].any()
    assert torch.equal(q.codes(w)[frozen], state.frozen_codes[frozen])


def test_evaluation_touches_no_state():
    q, w = OscillationLSQ(3, momentum=0.2), drawn((4, 8)) * 0.3
    q.eval()
    q(w)
    assert q.state is None and q.step_(w) is None
    q.train()
    q(w)
    oscillating(q, w, steps=3)
    before, weight = q.state.clone(), w.clone()
    q.eval()
    q(w)
    oscillating(q, w, steps=2)
    assert torch.equal(q.freeze, before.freeze) and torch.equal(q.track, before.track) and not torch.equal(q.track, before.codes)
    assert torch.allclose(w, weight)  # up and down again, and not pulled back


def test_training_goes_on_where_it_was_saved():
    q, w = OscillationLSQ(3, momentum=0.2), drawn((4, 8)) * 0.3
    q(w)
    oscillating(q, w, steps=3)
    buffer = io.BytesIO()
    torch.save(q.state_dict(), buffer)
    buffer.seek(0)
    other = OscillationLSQ(3, momentum=0.2)
    other.load_state_dict(torch.load(buffer))
    copied, before, weight = copy.deepcopy(q), q.state.clone(), w.clone()
    oscillating(q, w)
    assert q.state.frozen.any() and not torch.equal(q.freeze, before.freeze)
    for module in (other, copied):
        v = weight.clone()
        assert torch.equal(module.freeze, before.freeze) and torch.equal(module.track, before.track)  # nothing is shared
        oscillating(module, v)
        assert torch.equal(module.freeze, q.freeze) and torch.equal(module.track, q.track) and torch.equal(v, w)
    fresh = OscillationLSQ(3)
    assert set(fresh.state_dict()) == set(LSQ(3).state_dict())
    other.load_state_dict(fresh.state_dict())
    assert other.state is None
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "track"'):
        fresh.load_state_dict({k: v for k, v in q.state_dict().items() if k != "track"})


def test_precision_and_place_of_the_state():
    q, w = OscillationLSQ(4), drawn((4, 8))
    q(w)
    planes = q.freeze.clone(), q.track.clone()
    for to in (q.half, q.double, lambda: q.to(torch.bfloat16), q.float):
        to()
        assert q.freeze.dtype == torch.int32 and torch.equal(q.freeze, planes[0]) and torch.equal(q.track, planes[1])
    assert q.to("meta").state.device.type == "meta"


def test_layers_train_with_it():
    torch.manual_seed(0)
    model = nn.Sequential(
        QuantConv2d(1, 4, 3, weight_quantizer=OscillationLSQ(2, axis=0, shape=(4,), momentum=0.1)),
        nn.Flatten(),
        QuantLinear(64, 3, weight_quantizer=OscillationLSQ(2, momentum=0.1)),
        nn.Linear(3, 1),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    x, target = torch.randn(8, 1, 6, 6), torch.randn(8, 1)
    for t in range(30):
        loss = (model(x) - target).square().mean()
        loss = loss + 0.01 * sum(m.weight_quantizer.dampening(m.weight) for m in (model[0], model[2]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert step_oscillations_(model, fastq.schedules.freezing_threshold(t, 30, first=0.15, last=0.05)) == 2
    for layer in (model[0], model[2]):
        q, frozen = layer.weight_quantizer, layer.weight_quantizer.state.frozen
        assert frozen.any() and bool(q.state.frequency.any())
        assert torch.equal(q(layer.weight), layer.weight.where(frozen, q(layer.weight)))  # pulled back to the grid
    model.eval()
    before = [m.weight_quantizer.freeze.clone() for m in (model[0], model[2])]
    model(x)
    step_oscillations_(model, 0.001)
    assert all(torch.equal(a, m.weight_quantizer.freeze) for a, m in zip(before, (model[0], model[2]), strict=True))


def test_it_says_what_it_is():
    assert OscillationLSQ(4, momentum=0.001, count_first=True).extra_repr().endswith("momentum=0.001, count_first=True")


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (ValueError, "OscillationLSQ: offset must be False", {"bits": 4, "offset": True}),
        (ValueError, "OscillationLSQ: momentum must lie between 0 and 1, got 1.5", {"bits": 4, "momentum": 1.5}),
        (TypeError, "OscillationLSQ: momentum must be a float, got str", {"bits": 4, "momentum": "0.1"}),
        (ValueError, "OscillationLSQ: bits must give at most 256 codes", {"bits": (-300, 300)}),
        (ValueError, "bits must be from 1 to 8", {"bits": 9}),
        (ValueError, "boundary must be one of open, closed, rounded", {"bits": 4, "boundary": "half"}),
    ],
)
def test_bad_arguments_are_named(error, message, arguments):
    with pytest.raises(error, match=message):
        OscillationLSQ(**arguments)


def test_bad_use_is_named():
    q = OscillationLSQ(4)
    with pytest.raises(RuntimeError, match=r"OscillationLSQ: step_\(\) of a quantizer that has seen no batch"):
        q.step_(drawn((4, 8)))
    with pytest.raises(RuntimeError, match=r"OscillationLSQ: dampening\(\) of a quantizer that has seen no batch"):
        q.dampening(drawn((4, 8)))
    q(drawn((4, 8)))
    with pytest.raises(ValueError, match=r"oscillation_step_: state must have the shape of weight, \(8, 4\), got \(4, 8\)"):
        q.step_(drawn((8, 4)))
    with pytest.raises(ValueError, match=r"frozen_lsq: state must have the shape of x"):
        q(drawn((8, 4)))
    with pytest.raises(ValueError, match="oscillation_step_: threshold must be 0"):
        q.step_(drawn((4, 8)), threshold=-1.0)


@pytest.mark.parametrize(
    ("t", "threshold", "weight"),
    [(0, 0.0, 0.0), (24.9, 0.0, 0.0), (25, 0.04, 0.0), (62.5, 0.025, 1.0), (100, 0.01, 2.0)],
)
def test_schedules_wait_and_follow_a_cosine(t, threshold, weight):
    assert fastq.schedules.freezing_threshold(t, 100, first=0.04, last=0.01) == pytest.approx(threshold, abs=1e-12)
    assert fastq.schedules.dampening_weight(t, 100, last=2.0) == pytest.approx(weight, abs=1e-12)


def test_schedules_name_bad_input():
    with pytest.raises(ValueError, match=r"freezing_threshold: step must lie in \[0, total_steps\] = \[0, 100\], got 101"):
        fastq.schedules.freezing_threshold(101, 100, first=0.1, last=0.1)
    with pytest.raises(ValueError, match="dampening_weight: total_steps must be positive, got 0"):
        fastq.schedules.dampening_weight(0, 0, last=1.0)
    with pytest.raises(ValueError, match=r"freezing_threshold: delay must lie in \[0, 1\), a fraction of the run, got 1"):
        fastq.schedules.freezing_threshold(1, 100, first=0.1, last=0.1, delay=1)
    with pytest.raises(ValueError, match=r"freezing_threshold: last must be finite and not negative, got -0\.1"):
        fastq.schedules.freezing_threshold(1, 100, first=0.1, last=-0.1)
