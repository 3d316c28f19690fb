"""The measures on cases with a known answer, and what counts as shown."""

import copy
import math

import pytest
import torch
from torch import nn

import fastq
from fastq.compare import claims, measures, report, units
from fastq.compare.identities import Identity, oscillation_frequency, pact_gradient, sat_variance
from fastq.compare.networks import NETWORKS, batches
from fastq.demo import images

DATA = images(torch.device("cpu"))


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = NETWORKS[name]()
    model(DATA[0])  # batch norm has seen something
    return model


def test_the_identities_hold_and_would_not_for_a_number_that_is_none():
    for identity in (sat_variance(), pact_gradient(), oscillation_frequency()):
        assert identity.holds, identity
    assert not Identity("", math.nan, 1.0).holds and not Identity("", 2.0, 1.0).holds


def test_planting_leaves_the_function_as_it_is():
    model = network("residual").eval()
    before = model(DATA[2])
    planted = copy.deepcopy(model)
    claims.plant(planted)
    torch.testing.assert_close(planted(DATA[2]), before)  # powers of two: exact but for the order of sums
    a, b = (m.block1.bn1.weight for m in (model, planted))
    assert (a != b).nonzero().flatten().tolist() == list(claims.PLANTED)


def test_statistics_that_agree_have_no_divergence_and_others_that_of_two_gaussians():
    model = network("separable")
    fresh = copy.deepcopy(model)
    assert set(measures.normalization_divergence(model, fresh).values()) == {0.0}
    norm = fresh.features[1]
    norm.running_mean += 0.5
    norm.running_var *= 2.0
    old = torch.distributions.Normal(model.features[1].running_mean, (model.features[1].running_var + norm.eps).sqrt())
    new = torch.distributions.Normal(norm.running_mean, (norm.running_var + norm.eps).sqrt())
    wanted = float(torch.distributions.kl_divergence(old, new).sum())
    assert measures.normalization_divergence(model, fresh)["features.1"] == pytest.approx(wanted, rel=1e-5)  # fp32 beside fp64


def test_codes_have_one_digest_until_one_differs():
    model = fastq.prepare(network("residual"), fastq.recipes.lsq(2, 2)).model
    digest = measures.codes_digest(model)
    assert measures.codes_digest(copy.deepcopy(model)) == digest
    with torch.no_grad():
        model.block1.conv1.weight[0, 0, 0, 0] *= -1.0
        model.block1.conv1.weight[0, 0, 0, 0] -= model.block1.conv1.weight_quantizer.step[0]
    assert measures.codes_digest(model) != digest


def test_a_seed_decides_the_order_of_images():
    first = [y.tolist() for (_, y), _ in zip(batches(DATA, 3), range(30), strict=False)]
    assert first == [y.tolist() for (_, y), _ in zip(batches(DATA, 3), range(30), strict=False)]
    assert first != [y.tolist() for (_, y), _ in zip(batches(DATA, 4), range(30), strict=False)]
    assert {len(y) for y in first} == {64}


@pytest.mark.parametrize(
    ("ours", "theirs", "word"),
    [
        ([1, 1, 1, 1, 1], [2, 2, 2, 2, 2], "shows"),
        ([1, 1, 1, 1, 3], [2, 2, 2, 2, 2], "does not show"),
        ([3, 3, 3, 3, 3], [2, 2, 2, 2, 2], "does not show, the opposite does"),
        ([2, 2, 2, 2, 2], [2, 2, 2, 2, 2], "does not show"),
        ([1, 1, 1, 1, None], [2, 2, 2, 2, 2], "does not show"),
        ([1, 1, 1, 1, 1], [2, 2, 2, 2, None], "does not show"),
    ],
)
def test_a_claim_shows_where_every_seed_has_its_sign(ours, theirs, word):
    results = [
        {"arm": arm, "metrics": {"loss": value}} for arm, values in (("a", ours), ("b", theirs)) for value in values
    ]  # fmt: skip
    found = report._compared(claims.Contrast("", "loss", "a", "b"), results)
    assert found["verdict"] == word and found["lower"] == sum(
        a is not None and b is not None and a < b for a, b in zip(ours, theirs, strict=True)
    )
    assert report._compared(claims.Contrast("", "loss", "a", "b", claimed=False), results)["verdict"] == "not claimed"


def test_arms_of_a_claim_have_one_budget_and_every_name_is_known():
    plan = units.plan(units.FULL)
    assert len({unit.file for unit in plan}) == len(plan)
    assert {u.arm for u in plan if u.claim == "every recipe"} == set(fastq.recipes.RECIPES)
    for claim in claims.CLAIMS.values():
        assert claim.network in NETWORKS
        assert {name for c in claim.contrasts for name in (c.arm, c.other)} == set(claim.arms)
    marked = {name for name, claim in claims.CLAIMS.items() if claim.reconstruction}
    assert marked == {"QIL", "channel error", "noise tempering", "direct"}  # [R] in METHODS
    assert set(claims.RECONSTRUCTED) == {"qil", "direct", "noise_tempering", "dsq"}
