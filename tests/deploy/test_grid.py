"""``codes`` and ``grid`` of every quantizer: what they decode to is what its forward pass gives, and back."""

import math

import pytest
import torch
from device import drawn
from quantizers import INPUTS, WEIGHTS, WHOLE, trained

from fastq.nn import DSQ, EWGS, LSQ, PACT, QIL, DirectWeight, OscillationLSQ, Quantizer, SATWeight

pytestmark = pytest.mark.usefixtures("one_thread")

GRAINS = {
    "tensor": {},
    "axis": {"axis": 0, "shape": (6,)},
    "axis 1": {"axis": 1, "shape": (5,)},
    "group": {"group_size": 4, "shape": (6, 5, 2)},
}
SHAPE = (6, 5, 8)
KINDS = [("weight", name) for name in WEIGHTS] + [("input", name) for name in INPUTS]


def make(role, name, bits, grain="tensor"):
    return (WEIGHTS if role == "weight" else INPUTS)[name](bits, **GRAINS[grain])


def check(q, x):
    y, codes, grid = q(x).detach(), q.codes(x), q.grid(x)
    assert codes.dtype == torch.int32 and codes.shape == x.shape and codes.device == x.device
    assert int(codes.min()) >= grid.qmin and int(codes.max()) <= grid.qmax
    where = (getattr(q, "axis", None), getattr(q, "group_size", None))
    decoded = grid.decode(codes, *where)
    exact = x.dtype in (torch.float32, torch.float64)
    if not isinstance(q, (QIL, EWGS)):  # the forward pass computes this very product and sum
        assert torch.equal(decoded.to(x.dtype), y)
    elif exact:
        # k / L is rounded by both and step * k once more: 2 ulp of the largest value; 2 * (y - 1/2) doubles what y has lost
        bound = 4 * torch.finfo(x.dtype).eps * float(decoded.abs().max())
        assert float((decoded - y).abs().max()) <= bound
    else:  # the same, and rounded to the half precision
        torch.testing.assert_close(y.float(), decoded, rtol=torch.finfo(x.dtype).eps, atol=1e-6)
    # the code of the nearest value is the code: one half of a step lies between
    others = torch.arange(grid.qmin, grid.qmax + 1, dtype=torch.int32, device=x.device)
    values = torch.stack([grid.decode(torch.full_like(codes, int(k)), *where) for k in others])
    if exact:
        assert torch.equal(others[(values - y).abs().argmin(0)], codes)
    # the formula that the grid states
    if grid.formula and x.dtype != torch.float64:
        assert torch.equal(by_formula(grid, x, *where), codes)


def by_formula(grid, x, axis, group_size):
    def spread(t):
        if t.numel() == 1:
            return t.reshape(())
        return t.repeat_interleave(group_size, -1) if group_size else t.view([-1 if d == axis else 1 for d in range(x.dim())])

    v, count = x.float(), grid.qmax - grid.qmin
    if grid.interval is not None:
        lower, width = (spread(t) for t in grid.interval)
        if grid.magnitude:
            return (((v.abs() - lower) / width).clamp(0, 1) * grid.qmax).round().int() * v.sign().int()
        return (((v - lower) / width).clamp(0, 1) * count).round().int() + grid.qmin
    v = (v if grid.offset is None else v - spread(grid.offset)) / spread(grid.step)
    if grid.odd:
        low = 2 * grid.qmin + 1
        return ((v.clamp(low, 2 * grid.qmax + 1) - low) / 2).round().int() + grid.qmin
    return v.clamp(grid.qmin, grid.qmax).round().int()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_codes_are_those_of_the_forward_pass(kind, bits, dtype):
    q = trained(make(*kind, bits), drawn(SHAPE, 1).to(dtype))
    x = drawn(SHAPE, 1 if kind[1] == "oscillation" else 2).to(dtype)
    far = 1e4 if kind[1] == "sat floor" else math.inf  # "std" is that of the weight
    x[0, 0, :3] = torch.tensor([0.0, far, -far])
    check(q, x)


@pytest.mark.parametrize("grain", ["axis", "axis 1", "group"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind[1] not in WHOLE], ids="-".join)
def test_codes_per_channel_and_group(kind, grain):
    q = trained(make(*kind, 3, grain), drawn(SHAPE, 1))
    check(q, drawn(SHAPE, 2))


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_double_precision(kind):
    q = trained(make(*kind, 4), drawn(SHAPE, 1)).double()
    assert q.grid(drawn(SHAPE, 2).double()).step.dtype == torch.float64
    check(q, drawn(SHAPE, 2).double())


@pytest.mark.parametrize("bits", [1, 8])
def test_pact_two_sided_has_odd_codes_and_no_zero(bits):
    grid, x = PACT(bits, two_sided=True, init=1.0).grid(), torch.tensor([-2.0, -1e-3, 1e-3, 2.0])
    assert grid.odd and (grid.qmin, grid.qmax) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    assert PACT(bits, two_sided=True, init=1.0).codes(x).tolist() == [grid.qmin, -1, 0, grid.qmax]


def test_sat_schemes_by_hand():
    w = torch.tensor([-1.0, -0.2, 0.3, 1.0])
    t = torch.tanh(w) / math.tanh(1.0)  # -1, -0.259, 0.383, 1
    for scheme, codes, values in (
        ("round", [-2, -1, 0, 1], [-1, -1 / 3, 1 / 3, 1]),  # 3 * (t + 1) / 2 = 0, 1.11, 2.07, 3
        ("floor", [-2, -1, 0, 1], [-1, -0.5, 0, 0.5]),  # 4 * (t + 1) / 2 = 0, 1.48, 2.77, 4
        ("centered", [-2, -1, 0, 1], [-0.75, -0.25, 0.25, 0.75]),
    ):
        q = SATWeight(2, scheme=scheme, rescale="none")
        assert q.codes(w).tolist() == codes, (scheme, t)
        torch.testing.assert_close(q.grid(w).decode(q.codes(w)), torch.tensor(values))


def test_weights_of_sat_without_variance_have_a_step_of_zero():
    w = torch.full((4, 4), 0.5)
    q = SATWeight(4)
    assert not q(w).any() and not q.grid(w).decode(q.codes(w)).any()


def test_frozen_codes_are_the_frozen_ones():
    q, w = OscillationLSQ(4, momentum=0.5), drawn((8, 8))
    assert trained(q, w).grid().formula is False  # it has a state
    q.train()
    for t in range(6):  # every weight goes up and down by a step
        q.step_(w + q.effective_step() * (t % 2), threshold=0.1)
    state, other = q.eval().state, w + 3 * q.effective_step()
    assert state.frozen.any()
    codes = q.codes(other)
    assert torch.equal(codes[state.frozen], state.frozen_codes[state.frozen])
    assert torch.equal(q.grid().decode(codes), q(other))


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (RuntimeError, r"LSQ: grid\(\) of a quantizer that has seen no batch", lambda: LSQ(4).grid()),
        (RuntimeError, r"QIL: codes\(\) of a quantizer that has seen no batch", lambda: QIL(4, weight=True).codes(torch.ones(3))),
        (RuntimeError, r"EWGS: grid\(\) of a quantizer that has seen no batch", lambda: EWGS(4, weight=True).grid()),
        (RuntimeError, r"DSQ: codes\(\) of a quantizer that has seen no batch", lambda: DSQ(4).codes(torch.ones(3))),
        (TypeError, "SATWeight: grid needs the weight", lambda: SATWeight(4).grid()),
        (TypeError, "no integer codes with bits=None", lambda: SATWeight(None).codes(torch.ones(3))),
        (TypeError, "no integer codes with bits=None", lambda: SATWeight(None).grid(torch.ones(3))),
        (TypeError, "SATWeight: x must be a torch.Tensor, got int", lambda: SATWeight(4).codes(3)),
        (TypeError, "Quantizer has no integer codes", lambda: Quantizer().grid()),
        (TypeError, r"PACT: x must be float32, .* got torch\.int64", lambda: PACT(4).codes(torch.ones(3, dtype=torch.int64))),
        (
            ValueError, r"pact: alpha must have shape \(5,\)",
            lambda: PACT(4, axis=1, shape=(4,)).codes(torch.ones(4, 5)),
        ),
    ],
)  # fmt: skip
def test_what_has_no_codes_says_why(error, message, call):
    with pytest.raises(error, match=message):
        call()


def test_direct_weights_are_no_quantizer():
    """Their levels may lie anywhere; :func:`fastq.convert` makes a look-up layer of them."""
    assert not isinstance(DirectWeight(4), Quantizer)
