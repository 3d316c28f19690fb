"""Initialisers against their formulas, computed a second time and one parameter at a time, in fp64."""

import math

import pytest
import torch
from device import DEVICE

import fastq
from fastq.nn.initializers import CANDIDATES, SAMPLE, initial_values

RANGES = {"signed4": (-8, 7), "signed2": (-2, 1), "unsigned4": (0, 15), "narrow3": (-3, 3), "unsigned1": (0, 1)}
GRAINS = {
    "tensor": ({}, lambda x: [x.reshape(-1)]),
    "axis0": ({"axis": 0}, lambda x: [x[i].reshape(-1) for i in range(x.shape[0])]),
    "axis1": ({"axis": 1}, lambda x: [x[:, i].reshape(-1) for i in range(x.shape[1])]),
    "last": ({"axis": -1}, lambda x: [x[..., i].reshape(-1) for i in range(x.shape[-1])]),
    "group": ({"group_size": 4}, lambda x: [x[i, j, k : k + 4] for i in range(4) for j in range(3) for k in (0, 4)]),
}
# fp32 sums of at most 96 terms against fp64: a few ulp of 6e-8
CLOSE = {"rtol": 1e-6, "atol": 0.0}


def values(shape=(4, 3, 8), seed=0):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), device="cpu").to(DEVICE)
    return x * torch.linspace(0.5, 2, shape[0]).reshape(-1, *(1,) * (len(shape) - 1)) + 0.2


def errors(row, steps, offsets, qmin, qmax):
    """``||y - x||^2`` of the public quantizer for each pair of step and offset, in fp64."""
    steps, offsets = torch.as_tensor(steps).double().reshape(-1), torch.as_tensor(offsets).double().reshape(-1)
    x = row.double().expand(len(steps), -1)
    y = fastq.reference.lsq(x, steps, bits=(qmin, qmax), offset=offsets.expand(len(steps)), axis=0)
    return (y - x).square().sum(1)


@pytest.mark.parametrize("grain", GRAINS)
@pytest.mark.parametrize("codes", RANGES)
def test_lsq_is_its_formula(codes, grain):
    keywords, rows = GRAINS[grain]
    (qmin, qmax), x = RANGES[codes], values()
    step, offset = initial_values(x, "lsq", qmin, qmax, **keywords)
    expected = [2 * row.double().abs().mean() / math.sqrt(qmax) for row in rows(x)]
    torch.testing.assert_close(step, torch.stack(expected).float(), **CLOSE)
    assert step.dtype == torch.float32 and not offset.any()


@pytest.mark.parametrize("grain", GRAINS)
@pytest.mark.parametrize(("bits", "codes"), [(4, (-8, 7)), (4, (0, 15)), (2, (-2, 1))])
def test_lsq_plus_without_offset_is_its_formula(bits, codes, grain):
    keywords, rows = GRAINS[grain]
    x = values()
    step, offset = initial_values(x, "lsq+", *codes, **keywords)
    expected = []
    for row in rows(x):
        mean = row.double().mean()
        sigma = (row.double() - mean).square().mean().sqrt()
        expected.append(torch.maximum((mean - 3 * sigma).abs(), (mean + 3 * sigma).abs()) / 2 ** (bits - 1))
    torch.testing.assert_close(step, torch.stack(expected).float(), **CLOSE)
    assert not offset.any()


@pytest.mark.parametrize("grain", GRAINS)
@pytest.mark.parametrize("codes", RANGES)
def test_mse_is_the_best_candidate_of_the_grid(codes, grain):
    keywords, rows = GRAINS[grain]
    (qmin, qmax), x = RANGES[codes], values()
    steps, offset = initial_values(x, "mse", qmin, qmax, **keywords)
    assert not offset.any()
    parts = rows(x)
    assert len(steps) == len(parts)
    for step, row in zip(steps, parts, strict=True):
        widest = max(float(row.max()) / qmax, float(row.min()) / qmin if qmin else 0.0)
        if widest <= 0:  # nothing that an unsigned range could hold
            assert step == 1
            continue
        grid = widest * torch.arange(1, CANDIDATES + 1, dtype=torch.float64) / CANDIDATES
        assert (step - grid).abs().min() < 1e-6 * widest, "not of the grid"
        # Two candidates may differ by less than the fp32 rounding of the error they are chosen by, 1e-5 of it here.
        best = errors(row, grid, 0.0, qmin, qmax).min()
        assert errors(row, step, 0.0, qmin, qmax) <= best * (1 + 1e-5) + 1e-12


@pytest.mark.parametrize("grain", GRAINS)
@pytest.mark.parametrize("codes", RANGES)
def test_lsq_plus_with_offset_beats_min_max_and_the_grid(codes, grain):
    keywords, rows = GRAINS[grain]
    (qmin, qmax), x = RANGES[codes], values() + 3
    steps, offsets = initial_values(x, "lsq+", qmin, qmax, offset=True, **keywords)
    better = 0
    for step, offset, row in zip(steps, offsets, rows(x), strict=True):
        got = float(errors(row, step, offset, qmin, qmax))
        low, high = float(row.min()), float(row.max())
        s = (high - low) / (qmax - qmin) * torch.arange(1, CANDIDATES + 1, dtype=torch.float64) / CANDIDATES
        candidates = errors(row, s, (low + high) / 2 - (qmin + qmax) / 2 * s, qmin, qmax)
        assert got <= candidates.min() * (1 + 1e-5) + 1e-10  # fp32 rounding of the error that decided
        better += got < 0.999 * float(candidates[-1])  # the last one is min/max
    # min/max is best only by chance; four points on sixteen levels of a group may lie so
    assert better >= 0.8 * len(steps)


def test_lsq_plus_with_offset_is_near_the_argmin():
    """No (step, offset) of a fine grid around the answer is better by more than 1 %: it is a minimum, not just a good start."""
    row = values((1, 1, 512)).reshape(-1) + 3
    (step,), (offset,) = initial_values(row, "lsq+", -2, 1, offset=True)
    around = torch.arange(-20, 21)
    steps, offsets = torch.meshgrid(step * (1 + around / 100), offset + around / 50 * step, indexing="ij")
    assert errors(row, steps, offsets, -2, 1).min() >= 0.99 * errors(row, step, offset, -2, 1)


@pytest.mark.parametrize("how", ["mse", "lsq+"])
def test_exact_grids_are_found(how):
    """Values on a grid with an offset, all codes in use: least squares finds a step and an offset that return them."""
    x = torch.arange(-8, 8).repeat(5) * 0.25 + 1.5
    step, offset = initial_values(x, how, -8, 7, offset=True)
    torch.testing.assert_close(fastq.lsq(x, step, bits=4, offset=offset), x, rtol=1e-6, atol=1e-6)


DEGENERATE = {
    "zeros": (torch.zeros(2, 8), True),
    "empty rows": (torch.empty(2, 0), True),
    "nan": (torch.tensor([[math.nan, 1.0], [2.0, math.nan]]), True),
    "inf": (torch.tensor([[math.inf, 1.0], [-1.0, -math.inf]]), False),
    "both inf": (torch.tensor([[math.inf, -math.inf]] * 2), True),
}


@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("how", ["lsq", "lsq+", "mse"])
@pytest.mark.parametrize("codes", [(-8, 7), (0, 15), (0, 1)])
@pytest.mark.parametrize("kind", DEGENERATE)
def test_nothing_to_go_by(kind, codes, how, offset):
    x, for_every_range = DEGENERATE[kind]
    for keywords, count in (({}, 1), ({"axis": 0}, 2)):
        step, start = initial_values(x, how, *codes, offset=offset, **keywords)
        assert step.shape == start.shape == (count,)
        if for_every_range or how != "mse" or codes[0] < 0:
            assert step.tolist() == [1.0] * count and start.tolist() == [0.0] * count
        else:  # -inf is clipped to 0 by an unsigned range, so it is no reason against the others
            assert bool((step > 0).all()) and bool(step.isfinite().all())


def test_no_parameters_at_all():
    for how in ("lsq", "lsq+", "mse"):
        for offset in (False, True):
            assert initial_values(torch.empty(0, 4), how, -8, 7, axis=0, offset=offset)[0].shape == (0,)
            assert initial_values(torch.empty(0, 4), how, -8, 7, group_size=2, offset=offset)[0].shape == (0,)


@pytest.mark.parametrize("how", ["lsq+", "mse"])
@pytest.mark.parametrize("value", [3.0, -3.0, 1e-3])
def test_a_constant_is_kept_by_the_offset(how, value):
    step, offset = initial_values(torch.full((8,), value), how, 0, 15, offset=True)
    assert step.tolist() == [1.0]
    assert torch.equal(fastq.lsq(torch.full((8,), value), step, bits=4, signed=False, offset=offset), torch.full((8,), value))


def test_a_bad_channel_leaves_the_others_alone():
    x = values()
    x[1] = 0
    x[2, 0, 0] = math.nan
    for how in ("lsq", "lsq+", "mse"):
        for offset in (False, True):
            step, start = initial_values(x, how, -8, 7, axis=0, offset=offset)
            assert step[1:3].tolist() == [1, 1] and start[1:3].tolist() == [0, 0]
            for i in (0, 3):
                alone = initial_values(x[i : i + 1], how, -8, 7, axis=0, offset=offset)
                torch.testing.assert_close((step[i], start[i]), (alone[0][0], alone[1][0]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_give_fp32_values_of_the_same_numbers(dtype):
    x = values().to(dtype)
    for how in ("lsq", "lsq+", "mse"):
        got = initial_values(x, how, -8, 7, axis=0)
        assert got[0].dtype == torch.float32
        assert torch.equal(got[0], initial_values(x.float(), how, -8, 7, axis=0)[0])


def test_searches_look_at_a_sample():
    """Every third element of a long row stands for it; were all seen, the outliers between would stretch the range."""
    x = values((1, 1, 3 * SAMPLE)).reshape(-1)
    x[1::3] = 1e6
    short = initial_values(x[::3], "mse", -8, 7)[0]
    assert torch.equal(initial_values(x, "mse", -8, 7)[0], short)


def test_no_gradient_is_recorded_and_names_are_checked():
    x = values().requires_grad_()
    assert not any(t.requires_grad for t in initial_values(x, "mse", -8, 7, offset=True))
    with pytest.raises(ValueError, match="init must be one of lsq, lsq\\+, mse, got 'minmax'"):
        initial_values(x, "minmax", -8, 7)
