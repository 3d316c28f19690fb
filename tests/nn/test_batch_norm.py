"""Batch norms of integer networks: torch's in training, in evaluation one multiplication and one addition."""

import copy

import pytest
import torch
from device import drawn
from torch import nn

from fastq.nn import BatchNorm1d, BatchNorm2d
from fastq.nn.batch_norm import affine_of

pytestmark = pytest.mark.usefixtures("one_thread")

CASES = [
    (nn.BatchNorm1d, BatchNorm1d, (7, 5)),
    (nn.BatchNorm1d, BatchNorm1d, (7, 5, 4)),
    (nn.BatchNorm2d, BatchNorm2d, (3, 5, 4, 2)),
]
EPSILON = torch.finfo(torch.float32).eps


def pair(plain, cls, **keywords):
    torch.manual_seed(0)
    norm = plain(5, **keywords)
    with torch.no_grad():
        if norm.affine:
            norm.weight.copy_(drawn((5,), 1))
            norm.bias.copy_(drawn((5,), 2))
        if norm.running_mean is not None:
            norm.running_mean.copy_(drawn((5,), 3))
            norm.running_var.copy_(drawn((5,), 4).square() + 0.1)
    return norm, cls.from_float(copy.deepcopy(norm))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(("plain", "cls", "shape"), CASES)
def test_evaluation_is_the_affine_and_within_ulps_of_torchs(plain, cls, shape, affine):
    norm, ours = pair(plain, cls, affine=affine)
    norm.eval(), ours.eval()
    x = drawn(shape)
    multiplier, addend = (t.view(-1, *(1,) * (len(shape) - 2)) for t in affine_of(norm))
    y = ours(x)
    assert torch.equal(y, x * multiplier + addend) and multiplier.dtype == torch.float32
    size = (x * multiplier).abs() + addend.abs() + (norm.running_mean.view_as(addend) * multiplier).abs()
    assert bool(((y - norm(x)).abs() <= 4 * EPSILON * size).all())
    # the two numbers, in exact arithmetic, rounded once
    deviation = (norm.running_var.double() + norm.eps).sqrt()
    exact = (norm.weight.double() if affine else 1.0) / deviation
    assert torch.equal(affine_of(norm)[0], exact.float())
    assert torch.equal(affine_of(norm)[1], ((norm.bias.double() if affine else 0.0) - norm.running_mean.double() * exact).float())


@pytest.mark.parametrize(("plain", "cls", "shape"), CASES)
def test_training_is_torchs(plain, cls, shape):
    norm, ours = pair(plain, cls)
    x = drawn(shape)
    assert torch.equal(norm(x), ours(x))
    assert all(torch.equal(a, b) for a, b in zip(norm.state_dict().values(), ours.state_dict().values(), strict=True))
    assert isinstance(ours, plain) and list(norm.state_dict()) == list(ours.state_dict())


def test_frozen_statistics_give_torchs_gradients():
    """A batch norm in evaluation mode whose weight and bias go on being trained."""
    norm, ours = pair(nn.BatchNorm2d, BatchNorm2d)
    inputs = [drawn((3, 5, 4, 2)).requires_grad_() for _ in range(2)]
    g = drawn((3, 5, 4, 2), 5)
    for module, x in zip((norm, ours), inputs, strict=True):
        module.eval()(x).backward(g)
    for a, b in ((inputs[0].grad, inputs[1].grad), (norm.weight.grad, ours.weight.grad), (norm.bias.grad, ours.bias.grad)):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_dtypes_and_statistics_of_the_batch():
    norm, ours = pair(nn.BatchNorm2d, BatchNorm2d)
    x = drawn((3, 5, 4, 2))
    ours.eval()
    assert torch.equal(ours(x.bfloat16()), ours(x.bfloat16().float()).bfloat16())
    assert ours(x.contiguous(memory_format=torch.channels_last)).is_contiguous(memory_format=torch.channels_last)
    norm, ours = pair(nn.BatchNorm2d, BatchNorm2d, track_running_stats=False)
    assert torch.equal(norm.eval()(x), ours.eval()(x))


def test_refusals():
    _, ours = pair(nn.BatchNorm2d, BatchNorm2d)
    with pytest.raises(ValueError, match="expected 4D input"):
        ours.eval()(drawn((3, 5)))
    with pytest.raises(TypeError, match=r"BatchNorm2d: module must be a torch\.nn\.BatchNorm2d, got Linear"):
        BatchNorm2d.from_float(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="BatchNorm2d without running statistics is no affine"):
        affine_of(nn.BatchNorm2d(3, track_running_stats=False))
