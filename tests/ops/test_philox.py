"""The reference's random numbers against what others publish and compute, and the noise made of them against true functions."""

import math

import pytest
import torch

from fastq.reference import philox
from fastq.reference.philox import HALF_STEP, NOISES, UNIT_VARIANCE, noise, philox4x32, words

pytestmark = pytest.mark.usefixtures("one_thread")

# kat_vectors of Random123, the library of Philox's authors: counter, key, result of "philox4x32 10".
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_philox_gives_its_authors_numbers(counter, key, result):
    got = philox4x32(tuple(map(torch.tensor, counter)), tuple(map(torch.tensor, key)))
    assert tuple(map(int, got)) == result


def _by_integers(index: int, seed: int) -> int:
    """Philox by Python's integers, which do not wrap."""
    c, k = [index // 4 & 0xFFFFFFFF, index // 4 >> 32, 0, 0], [seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF]
    for _ in range(10):
        a, b = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(b >> 32) ^ c[1] ^ k[0], b & 0xFFFFFFFF, (a >> 32) ^ c[3] ^ k[1], a & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c[index % 4]


@pytest.mark.parametrize("seed", [0, 1, -1, 2**32, -(2**63), 2**63 - 1, 0x0123456789ABCDEF])
def test_the_seed_is_the_key_and_the_index_the_counter(seed):
    assert words(torch.tensor(seed), 11).tolist() == [_by_integers(i, seed) for i in range(11)]


def test_uniform_is_exact_and_never_zero():
    word = words(torch.tensor([3]), 40_000)
    u = noise(torch.tensor([3]), (40_000,), NOISES["uniform"], 1.0)
    exact = ((word >> 9).double() + 0.5) * 2.0**-23 - 0.5
    assert torch.equal(u.double(), exact) and bool((u != 0).all()) and float(u.abs().max()) < 0.5
    scaled = noise(torch.tensor([3]), (40_000,), NOISES["uniform"], UNIT_VARIANCE[0])
    assert torch.equal(scaled, (exact * float(torch.tensor(2 * math.sqrt(3.0)))).float())  # one rounding


def test_rademacher_is_the_top_bit():
    word = words(torch.tensor(3), 1000)
    assert torch.equal(noise(torch.tensor(3), (1000,), NOISES["rademacher"], 1.0), torch.where(word >= 2**31, -1.0, 1.0))


def test_normal_is_box_muller_to_a_few_ulp():
    """Its polynomials against fp64's logarithm, sine and cosine, at 200,000 points."""
    n = 200_000
    word = words(torch.tensor(5), n)
    z = noise(torch.tensor(5), (n,), NOISES["normal"], 1.0).double()
    a, b = word.view(-1, 2).unbind(-1)
    r = (-2 * (((a >> 9).double() + 0.5) * 2.0**-23).log()).sqrt()
    in_quadrant = ((b << 2 & 0xFFFFFFFF) >> 9).double().add(0.5) * 2.0**-23 - 0.5
    angle = ((b >> 30).double() + in_quadrant) * (math.pi / 2)
    true = torch.stack((r * angle.cos(), r * angle.sin()), -1).reshape(-1)
    # The logarithm is 2 ulp off at most, which the root halves; sine and cosine 2 each; three roundings: 5 of 2^-23 or fewer.
    assert float(((z - true) / true).abs().max()) < 5 * 2.0**-23
    assert float(z.abs().max()) < math.sqrt(-2 * math.log(2.0**-24))


@pytest.mark.parametrize("kind", NOISES)
def test_moments_and_distribution(kind):
    """The noise is one draw, fixed by its seed; bounds are 5 standard deviations of each statistic for true random numbers."""
    n = 400_000
    z = noise(torch.tensor(7), (n,), NOISES[kind], UNIT_VARIANCE[NOISES[kind]]).double()
    kurtosis = {"uniform": 1.8, "rademacher": 1.0, "normal": 3.0}[kind]
    assert abs(float(z.mean())) < 5 / math.sqrt(n)
    assert abs(float(z.square().mean()) - 1) < 5 * math.sqrt((kurtosis - 1) / n) + 1e-6
    for lag in (1, 2, 3, 4, 8, 128):  # words of one block, and blocks of consecutive counters
        assert abs(float((z[lag:] * z[:-lag]).mean())) < 5 / math.sqrt(n)
    if kind != "rademacher":  # the distance from the distribution function: Kolmogorov-Smirnov, 1e-7 of all draws are beyond 2.9
        at = z.sort().values
        cdf = at / math.sqrt(12) + 0.5 if kind == "uniform" else torch.special.ndtr(at)
        assert float((cdf - torch.arange(n) / n).abs().max()) < 2.9 / math.sqrt(n)
    half = noise(torch.tensor(7), (n,), NOISES[kind], HALF_STEP[NOISES[kind]]).double()
    assert float((half - z * (HALF_STEP[NOISES[kind]] / UNIT_VARIANCE[NOISES[kind]])).abs().max()) < 1e-6


def test_seeds_give_unrelated_noise():
    n = 100_000
    draws = torch.stack([noise(torch.tensor(s), (n,), 0, UNIT_VARIANCE[0]) for s in (0, 1, 2, -1, 2**32)]).double()
    correlation = draws @ draws.T / n
    assert float((correlation - torch.eye(5)).abs().triu(1).max()) < 5 / math.sqrt(n)


@pytest.mark.parametrize("kind", NOISES)
def test_an_element_keeps_its_noise_in_any_shape(kind):
    long = noise(torch.tensor(9), (120,), NOISES[kind], 1.0)
    for shape in ((7,), (3, 4, 5), (119,), (1,), (), (0, 3)):
        n = math.prod(shape)
        assert torch.equal(noise(torch.tensor(9), shape, NOISES[kind], 1.0), long[:n].view(shape))


@pytest.mark.parametrize("kind", NOISES)
def test_pieces_are_parts_of_one_sequence(kind, monkeypatch):
    whole = noise(torch.tensor(2), (1003,), NOISES[kind], 1.0)
    monkeypatch.setattr(philox, "PIECE", 64)
    assert torch.equal(noise(torch.tensor(2), (1003,), NOISES[kind], 1.0), whole)
