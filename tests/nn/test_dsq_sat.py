"""DSQ and SATWeight as modules: the first batch, what is learned, precision, state, bad input."""

import copy
from typing import Any

import pytest
import torch
from device import DEVICE, drawn

import fastq
from fastq.nn import DSQ, SATWeight
from fastq.testing import same_bits


@pytest.mark.parametrize(
    "keywords", [{}, {"axis": 1, "shape": (6,)}, {"group_size": 3, "shape": (8, 2)}, {"learn_alpha": False}], ids=str
)
def test_the_first_batch_sets_the_bounds(keywords: dict[str, Any]) -> None:
    q, x = DSQ(3, **keywords).to(DEVICE), drawn((8, 6))
    y = q(x)
    rows = {(): x.reshape(1, -1), (6,): x.T, (8, 2): x.reshape(16, 3)}[keywords.get("shape", ())]
    assert torch.equal(q.lower.flatten(), rows.amin(1)) and torch.equal(q.upper.flatten(), rows.amax(1))
    assert bool(q.initialized) and (q.alpha is None) == (keywords.get("learn_alpha") is False)
    soft = 0.2 if q.alpha is None else q.alpha
    where = {k: v for k, v in keywords.items() if k in ("axis", "group_size")}
    assert same_bits(y, fastq.dsq(x, q.lower, q.upper, bits=3, alpha=soft, **where))
    before = q.lower.detach().clone()
    q(2 * x)
    assert torch.equal(q.lower, before)  # one batch is the first


def test_a_batch_of_one_value_gives_bounds_that_are_apart() -> None:
    q = DSQ(2).to(DEVICE)
    assert bool(q(torch.full((5,), 0.3, device=DEVICE)).isfinite().all())
    assert q.lower.tolist() == [-1.0] and q.upper.tolist() == [1.0]


def test_it_learns_bounds_and_alpha() -> None:
    torch.manual_seed(0)
    q, x = DSQ(2, alpha=0.5).to(DEVICE), drawn((4000,))
    error = [float((q(x) - x).square().mean().detach())]
    optimizer = torch.optim.SGD(q.parameters(), lr=0.5)
    for _ in range(60):
        optimizer.zero_grad()
        (q(x) - x).square().mean().backward()
        assert all(p.grad is not None and bool(p.grad.any()) for p in q.parameters())
        optimizer.step()
    error.append(float((q(x) - x).square().mean().detach()))
    # 4 levels between the extremes of 4000 normal numbers, 7 apart, have an error of about 0.4; the best 4 of them have 0.12
    assert error[0] > 0.25 and error[1] < 0.16


def test_precision_state_and_repr() -> None:
    q, x = DSQ(4), drawn((5, 8)).cpu()
    q(x)
    again = DSQ(4)
    again.load_state_dict(copy.deepcopy(q.state_dict()))
    assert same_bits(again(x * 3), q(x * 3)) and "initialized=True" in repr(again)
    half = copy.deepcopy(q).half()
    assert half.lower.dtype == torch.float32 and half(x.half()).dtype == torch.float16
    assert copy.deepcopy(q).double()(x.double()).dtype == torch.float64
    assert repr(DSQ(2, learn_alpha=False)) == ("DSQ(bits=2, per tensor, bounds=1, alpha=0.2, learn_alpha=False, initialized=False)")


@pytest.mark.parametrize(
    ("error", "message", "keywords"),
    [
        (ValueError, "DSQ: bits must be from 1 to 8, got 9", {"bits": 9}),
        (TypeError, "DSQ: bits must be an int from 1 to 8, got '4'", {"bits": "4"}),
        (ValueError, r"DSQ: alpha must lie between 0 and 1 \(both excluded\), got 1", {"alpha": 1}),
        (TypeError, "DSQ: alpha must be a float between 0 and 1, got Tensor", {"alpha": torch.ones(1)}),
        (TypeError, "DSQ: learn_alpha must be True or False, got 1", {"learn_alpha": 1}),
        (ValueError, "DSQ: axis=0 and group_size=2 exclude each other", {"axis": 0, "group_size": 2}),
        (ValueError, "DSQ: shape must be of one element without axis and group_size", {"shape": (3,)}),
    ],
)
def test_bad_input_is_named(error: type[Exception], message: str, keywords: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        DSQ(**({"bits": 4} | keywords))
    with pytest.raises(ValueError, match=r"DSQ: lower must have shape \(4,\) for x of shape \(3, 4\), got \(3,\)"):
        DSQ(4, axis=1, shape=(3,))(torch.ones(3, 4))


def test_sat_goes_from_pretraining_to_bits() -> None:
    w = drawn((10, 40)).requires_grad_()
    q = SATWeight(None)
    assert same_bits(q(w), fastq.sat_weight(w, bits=None)) and not list(q.parameters()) and not q.state_dict()
    q.bits = 4
    assert same_bits(q(w), fastq.sat_weight(w, bits=4))
    # unbiased in fp64, of numbers that were rounded to fp32
    torch.testing.assert_close(q.effective_variance(w).cpu() * 10, torch.tensor(1.0).double(), rtol=1e-6, atol=0)
    q(w).square().sum().backward()
    assert w.grad is not None and bool(w.grad.any())
    assert repr(q) == "SATWeight(bits=4, scheme='round', rescale='constant', grad_through_max=True, n_out=None)"
    other = SATWeight(2, scheme="centered", rescale="std", grad_through_max=False, n_out=3)
    want = fastq.sat_weight(w, bits=2, scheme="centered", rescale="std", grad_through_max=False, n_out=3)
    assert same_bits(other(w), want)


def test_sat_names_bad_input() -> None:
    for keywords, message in (
        ({"bits": 0}, "SATWeight: bits must be from 1 to 8, or None for weights that are not quantized, got 0"),
        ({"scheme": "ceil"}, "SATWeight: scheme must be one of round, floor, centered, got 'ceil'"),
        ({"scheme": "centered"}, "SATWeight: scheme 'centered' is for 2 bits, got bits=4"),
        ({"rescale": 1}, "SATWeight: rescale must be one of none, constant, std, got 1"),
        ({"n_out": -1}, "SATWeight: n_out must be at least 1, got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            SATWeight(**({"bits": 4} | keywords))
