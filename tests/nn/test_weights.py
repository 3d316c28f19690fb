"""The weights of a prepared model are quantized in one call, and nothing else changes by it."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import fastq
from fastq.nn import weights
from fastq.testing import same_bits


class Network(nn.Module):
    """A layer used twice, a block that may be checkpointed, and room for something between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.ReLU(), nn.Conv2d(4, 4, 1))
        self.head = nn.Linear(4, 3)
        self.checkpointed = False

    def between(self, x: torch.Tensor) -> None:
        """What a test does in the middle of a pass."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        self.between(x)
        for _ in range(2):
            x = checkpoint(self.block, x, use_reentrant=False) if self.checkpointed else self.block(x)
        return self.head(x.mean((2, 3)))


def prepared(group_weights: bool = True) -> Any:
    torch.manual_seed(3)
    model = Network()
    fastq.prepare(model, fastq.recipes.lsq(weight_bits=3, activation_bits=4), group_weights=group_weights)
    model(torch.randn(4, 1, 6, 6))
    return model


X = torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many weights each call of foreach_lsq got."""
    found: list[int] = []

    def counted(w: Any, s: Any, **keywords: Any) -> Any:
        found.append(len(w))
        return fastq.foreach_lsq(w, s, **keywords)

    monkeypatch.setattr(weights, "foreach_lsq", counted)
    return found


def gradients(model: nn.Module, x: torch.Tensor = X) -> list[Any]:
    model.zero_grad()
    model(x).square().sum().backward()
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


def same(a: list[Any], b: list[Any]) -> bool:
    return all(x is y is None or same_bits(x, y) for x, y in zip(a, b, strict=True))


def test_training_gives_the_bits_of_separate_calls(calls: list[int]) -> None:
    results = []
    for group in (True, False):
        model = prepared(group)
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        for _ in range(3):
            optimizer.zero_grad()
            model(X).square().sum().backward()
            optimizer.step()
        results.append([p.detach() for p in model.parameters()])
    assert same(*results)
    assert calls == [4] * 4, "one call a pass: the first batch and three steps"


def test_a_pass_keeps_nothing_for_the_next() -> None:
    model, other = prepared(), prepared(False)
    with torch.no_grad():
        for m in (model, other):
            m(X)
            m.block[0].weight.data.mul_(-1.5)  # no version counter sees this
        assert same_bits(model(X), other(X))
    assert weights._current.running is None


@pytest.mark.parametrize("what", ["weight", "step"])
def test_a_write_within_a_pass_is_seen(what: str) -> None:
    results = []
    for group in (True, False):
        model = prepared(group)
        written = model.head.weight if what == "weight" else model.head.weight_quantizer.step
        with torch.no_grad():
            before = model(X)
            model.between = lambda x, written=written: written.mul_(3)
            results.append(model(X))
        assert not same_bits(before, results[-1]), "the write matters"
    assert same_bits(*results)


def test_a_replaced_weight_is_seen() -> None:
    results = []
    for group in (True, False):
        model = prepared(group)

        def replace(x: Any, head: Any = model.head) -> None:
            head.weight = nn.Parameter(head.weight.detach() * 2)

        before = model(X).detach()
        model.between = replace
        results.append(model(X).detach())
        assert not same_bits(before, results[-1]), "the weight matters"
    assert same_bits(*results)


def test_gradient_accumulation_and_two_passes_before_a_backward() -> None:
    results = []
    for group in (True, False):
        model = prepared(group)
        model.zero_grad()
        first, second = model(X).sum(), model(2 * X).sum()
        first.backward()
        second.backward()
        model(X).sum().backward()
        results.append([p.grad for p in model.parameters()])
    assert same(*results)


def test_checkpointing() -> None:
    results = []
    for group, checkpointed in ((True, True), (False, False)):
        model = prepared(group)
        model.checkpointed = checkpointed
        results.append(gradients(model))
    assert same(*results)


def test_a_hook_on_a_quantizer_runs(calls: list[int]) -> None:
    model = prepared()
    calls.clear()
    seen = []
    model.block[0].weight_quantizer.register_forward_hook(lambda m, a, y: seen.append(y.detach()))
    want = gradients(prepared(False))
    assert same(gradients(model), want) and len(seen) == 2 and calls == [3]


def test_copies_and_pickles_group_their_own(calls: list[int]) -> None:
    model = prepared()
    want = gradients(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(copy.deepcopy(model).requires_grad_()))):
        calls.clear()
        assert same(gradients(other), want) and calls == [4]
        assert all(p.grad is not None and q is not p for p, q in zip(other.parameters(), model.parameters(), strict=True))


def test_an_error_ends_the_pass() -> None:
    model = prepared()
    model.between = lambda x: 1 / 0
    with pytest.raises(ZeroDivisionError):
        model(X)
    assert weights._current.running is None


def test_a_part_called_alone_quantizes_alone(calls: list[int]) -> None:
    model, other = prepared(), prepared(False)
    calls.clear()
    assert same_bits(model.block(torch.ones(1, 4, 3, 3)), other.block(torch.ones(1, 4, 3, 3))) and calls == []


def test_it_compiles_whole() -> None:
    model = prepared()
    want = gradients(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    model.zero_grad()
    compiled(X).square().sum().backward()
    assert same([p.grad for p in model.parameters()], want)


def test_preparing_by_hand_does_not_group_twice(calls: list[int]) -> None:
    model = prepared()
    weights.group_weights(model)
    calls.clear()
    gradients(model)
    assert calls == [4]
