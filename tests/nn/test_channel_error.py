"""The quantizer whose one step every channel has its say in."""

import copy
from typing import Any

import pytest
import torch
from device import BACKEND, DEVICE, drawn

import fastq
from fastq.nn import LSQ, ChannelError
from fastq.testing import same_bits


@pytest.fixture(autouse=True)
def on_backend() -> Any:
    with fastq.use_backend(BACKEND):
        yield


def planted(seed: int = 0) -> torch.Tensor:
    """16 channels of which two have 30 times the spread of the others."""
    x = drawn((16, 16, 30), seed)
    x[:, 3] *= 30
    x[:, 9] *= 30
    return x


@pytest.mark.parametrize("update", ["closed", "gradient"])
def test_training_finds_the_step_of_most_channels_with_the_weighing_on_and_that_of_the_wildest_with_it_off(update: str) -> None:
    steps = {}
    for weighing in (True, False):
        module = ChannelError(4, update=update, weighing=weighing, momentum=0.7).to(DEVICE)
        module(planted())
        with torch.no_grad():
            module.step.fill_(2.0)
        # The plain objective's slope is the variance of the wildest times larger.
        optimizer = torch.optim.Adam(module.parameters(), lr=0.05) if update == "gradient" else None
        for i in range(150):
            y = module(planted(i))
            if optimizer is not None:
                optimizer.zero_grad()
                (0 * y.sum()).backward()
                optimizer.step()
        steps[weighing] = float(module.step.detach())
    assert 0.2 < steps[True] < 0.8 and steps[False] > 5 * steps[True]


def test_the_closed_form_moves_the_step_after_the_pass_that_used_it() -> None:
    module, x = ChannelError(4, momentum=0.9).to(DEVICE), planted().requires_grad_()
    module.initialize(x)
    step = module.step.detach().clone()
    y = module(x)
    assert same_bits(y, fastq.lsq(x, step, bits=4)) and not module.step.requires_grad
    stats = fastq.channel_stats(x, step, bits=4)
    want = fastq.update_step_(step.clone(), stats, fastq.channel_weights(stats), momentum=0.9)
    assert same_bits(module.step.detach(), want)
    (dx,) = torch.autograd.grad(y.square().sum(), x)  # though the step has changed since
    (other,) = torch.autograd.grad(fastq.lsq(x, step, bits=4).square().sum(), x)
    assert same_bits(dx, other)


def test_the_gradient_form_adds_the_objectives_gradient_to_lsqs() -> None:
    module, x = ChannelError(4, update="gradient", strength=0.5).to(DEVICE), planted()
    module.initialize(x)
    step = module.step.detach().clone().requires_grad_()
    module(x).sin().sum().backward()
    (plain,) = torch.autograd.grad(fastq.lsq(x, step, bits=4).sin().sum(), step)
    stats = fastq.channel_stats(x, step, bits=4)
    want = plain + 0.5 * fastq.step_gradient(step, stats, fastq.channel_weights(stats))
    torch.testing.assert_close(module.step.grad, want)


def test_in_evaluation_it_is_lsq_and_changes_nothing() -> None:
    module, x = ChannelError(3).to(DEVICE), planted()
    module(x)
    step = module.step.detach().clone()
    y = module.eval()(x)
    assert same_bits(y, fastq.lsq(x, step, bits=3)) and same_bits(module.step.detach(), step)
    assert module.train()(x[:0]).shape == (0, 16, 30) and same_bits(module.step.detach(), step)  # an empty batch says nothing


def test_state_copies_and_precision() -> None:
    module, x = ChannelError(4, signed=None).to(DEVICE), planted()
    module(x)
    fresh = ChannelError(4, signed=None).to(DEVICE)
    fresh.load_state_dict(module.state_dict())
    assert same_bits(fresh.eval()(x), module.eval()(x)) and same_bits(copy.deepcopy(module)(x), module(x))
    half = copy.deepcopy(module).train().bfloat16()
    assert half.step.dtype == torch.float32 and half(x.bfloat16()).dtype == torch.bfloat16
    assert isinstance(module, LSQ) and torch.equal(module.codes(x), (module(x) / module.effective_step()).round().int())
    text = "channels=1, update='closed', momentum=0.9, weighing=True"
    assert text in repr(module) and "update='gradient', strength=1.0" in repr(ChannelError(4, update="gradient"))


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, "axis must be an int, got None", {"axis": None}),
        (ValueError, "update must be one of closed, gradient, got 'both'", {"update": "both"}),
        (ValueError, r"momentum must be from 0 to below 1, got 1\.0", {"momentum": 1.0}),
        (ValueError, "strength must be at least 0 and finite, got -1", {"strength": -1}),
        (ValueError, "variance_eps must be positive and finite, got 0", {"variance_eps": 0}),
    ],
)
def test_bad_arguments_are_named(error: type[Exception], message: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(error, match=f"ChannelError: {message}"):
        ChannelError(4, **arguments)


def test_an_input_without_channels_is_named() -> None:
    with pytest.raises(ValueError, match=r"ChannelError: axis must be in \[-1, 0\] for x of 1 dimensions, got 1"):
        ChannelError(4)(torch.ones(5, device=DEVICE))
