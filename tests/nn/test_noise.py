"""The modules that add noise while training: the function they call, their seed, and what they are in evaluation."""

import copy
import math

import pytest
import torch
from device import DEVICE, drawn

import fastq
from fastq.nn import LSQ, NoiseQuant, QuantLinear, Tempered
from fastq.testing import same_bits

pytestmark = pytest.mark.usefixtures("one_thread")
GRAINS = {
    "tensor": {},
    "axis": {"axis": 1, "shape": (6,)},
    "group": {"group_size": 4, "shape": (4, 6, 2)},
}
MODULES = {
    "tempered": lambda **how: Tempered(4, **how),
    "tempered, gradient, normal": lambda **how: Tempered(3, reading="gradient", noise="normal", decay=0.5, **how),
    "diffq": lambda **how: NoiseQuant(4, **how),
    "nipq": lambda **how: NoiseQuant(4, kind="nipq", **how),
}
EVERY = pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)


def place(grain):
    return {name: value for name, value in GRAINS[grain].items() if name != "shape"}


@pytest.mark.parametrize("grain", GRAINS)
def test_tempered_is_its_function(grain):
    q = Tempered(4, reading="noise", noise="rademacher", decay=0.25, seed=11, boundary="closed", grad_scale=0.5, **GRAINS[grain])
    q.to(DEVICE)
    x = drawn((4, 6, 8), 1).requires_grad_()
    y = q(x)
    y.square().sum().backward()
    assert torch.equal(q.seed, torch.tensor([12], device=DEVICE)) and bool(q.initialized)
    step, a = (p.detach().clone().requires_grad_() for p in (q.step, q.a))
    want = fastq.tempered(
        x, step, a, bits=4, noise="rademacher", decay=0.25, seed=torch.tensor(11), boundary="closed", grad_scale=0.5, **place(grain)
    )
    gradients = torch.autograd.grad(want.square().sum(), [x, step, a])
    assert same_bits(y, want)
    assert all(same_bits(p.grad, g) for p, g in zip((x, q.step, q.a), gradients, strict=True))


@pytest.mark.parametrize("grain", GRAINS)
@pytest.mark.parametrize("kind", ["diffq", "nipq", "uniform"])
def test_noise_quant_is_its_function(kind, grain):
    q = NoiseQuant(4, kind=kind, seed=11, **GRAINS[grain]).to(DEVICE)
    x = drawn((4, 6, 8), 1).requires_grad_()
    y = q(x)
    y.square().sum().backward()
    step = q.step.detach().clone().requires_grad_()
    want = fastq.noise_quant(x, step, bits=4, kind=kind, seed=torch.tensor(11), **place(grain))
    gradients = torch.autograd.grad(want.square().sum(), [x, step])
    assert same_bits(y, want)
    assert all(same_bits(p.grad, g) for p, g in zip((x, q.step), gradients, strict=True))


@EVERY
def test_evaluation_is_lsq_and_leaves_the_seed(make):
    q = make(seed=3).to(DEVICE).eval()
    x = drawn((5, 9), 1)
    y = q(x)
    assert q.seed.item() == 3
    assert same_bits(y, fastq.lsq(x, q.step, bits=q._range()))
    assert same_bits(y, q.effective_step() * q.codes(x)) and same_bits(y, q(x))
    plain = LSQ(q.bits).to(DEVICE)
    plain(x)
    assert torch.equal(plain.step, q.step)  # the same first batch


@EVERY
def test_each_training_call_draws_new_noise_and_one_state_gives_one_sequence(make):
    q = make().to(DEVICE)
    x = drawn((8, 50), 1)
    before = q.state_dict()["seed"].clone()
    q(x)
    twin = copy.deepcopy(q)
    loaded = make().to(DEVICE)
    loaded.load_state_dict(q.state_dict())
    g = [torch.autograd.grad(q(leaf).square().sum(), leaf)[0] for leaf in (x.clone().requires_grad_() for _ in range(3))]
    assert not torch.equal(g[0], g[1]) and not torch.equal(g[1], g[2])
    for other in (twin, loaded):
        for expected in g:
            leaf = x.clone().requires_grad_()
            assert same_bits(torch.autograd.grad(other(leaf).square().sum(), leaf)[0], expected)
    assert torch.equal(q.seed, before + 4)


@EVERY
def test_the_seed_comes_from_torchs_generator_unless_given(make):
    torch.manual_seed(5)
    first, second = make(), make()
    torch.manual_seed(5)
    again = make()
    assert torch.equal(first.seed, again.seed) and not torch.equal(first.seed, second.seed)
    assert make(seed=-(2**63)).seed.tolist() == [-(2**63)]


def test_calls_before_one_backward_pass_keep_their_noise():
    q = Tempered(4, reading="gradient", seed=1).to(DEVICE)
    x = drawn((6, 7), 1)
    q.eval()(x)  # the first batch sets the step
    q.train()
    one, other = (x.clone().requires_grad_() for _ in range(2))
    (q(one).sum() + q(other).sum()).backward()
    alone = x.clone().requires_grad_()
    fastq.tempered(alone, q.step, q.a, bits=4, decay=1.0, reading="gradient", seed=torch.tensor(1)).sum().backward()
    assert same_bits(one.grad, alone.grad) and not torch.equal(one.grad, other.grad)


def test_a_negative_scale_acts_as_its_magnitude():
    q = Tempered(4, decay=0.0).to(DEVICE)
    x = drawn((6, 7), 1).requires_grad_()
    q(x).sum().backward()
    dx, da = x.grad.clone(), q.a.grad.clone()
    x.grad = q.a.grad = None
    with torch.no_grad():
        q.a.neg_()
    q(x).sum().backward()
    assert same_bits(x.grad, dx) and same_bits(q.a.grad, -da)


@EVERY
def test_half_precision_and_fp64_models(make):
    for dtype, kind in ((torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64, torch.float64)):
        q = make().to(DEVICE).to(dtype)
        y = q(drawn((4, 8), 1).to(dtype))
        assert y.dtype == dtype and all(p.dtype == kind for p in q.parameters()) and q.seed.dtype == torch.int64


@EVERY
def test_a_layer_with_it_trains_and_is_converted(make):
    torch.manual_seed(0)
    layer = QuantLinear(8, 3, weight_quantizer=make(), input_quantizer=make()).to(DEVICE)
    x, target = drawn((64, 8), 1), drawn((64, 3), 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.02)
    losses = []
    for t in range(30):
        for q in (layer.weight_quantizer, layer.input_quantizer):
            if isinstance(q, Tempered):
                q.decay = fastq.tempering_decay(t, 30)
        loss = (layer(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < sum(losses[:5])
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in layer.parameters())


def test_compiles_whole_after_one_batch():
    torch._dynamo.reset()
    q = Tempered(4, decay=0.5, seed=1).to(DEVICE)
    x = drawn((6, 8), 1)
    q.eval()(x)
    q.train()
    twin = copy.deepcopy(q)
    compiled = torch.compile(q, fullgraph=True)
    for _ in range(2):
        assert same_bits(compiled(x), twin(x))
    assert torch.equal(q.seed, twin.seed)


def test_a_schedule_fills_the_decay_and_nothing_is_compiled_anew():
    torch._dynamo.reset()
    q = Tempered(4, seed=1).to(DEVICE)
    x, held, compiled = drawn((6, 8), 1), q.decay, []
    q.eval()(x)
    q.train()
    twin = copy.deepcopy(q)

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    fast = torch.compile(q, fullgraph=True, backend=backend)
    for t in range(4):
        q.decay = fastq.tempering_decay(t, 4)
        twin.decay = torch.tensor(fastq.tempering_decay(t, 4))
        assert same_bits(fast(x), twin(x))
    assert len(compiled) == 1 and q.decay is held and held.tolist() == twin.decay.tolist() == [pytest.approx(math.exp(-15 / 4))]


def test_the_decay_moves_with_the_module_and_is_saved_with_it():
    q = Tempered(4, decay=0.3).to(DEVICE).half()
    assert q.decay.dtype == torch.float32 and q.decay.tolist() == torch.tensor([0.3]).tolist() and not q.decay.requires_grad
    other = Tempered(4)
    other.load_state_dict(q.state_dict())
    assert same_bits(other.decay, q.decay.cpu()) and Tempered(4).to("meta").decay.is_meta


def test_the_decay_of_a_call_is_that_of_its_time():
    q = Tempered(4, seed=1).to(DEVICE)
    x = drawn((6, 8), 1)
    q.eval()(x)
    q.train()
    twin = copy.deepcopy(q)
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    y = q(leaves[0])
    q.decay = 0.25
    (got,) = torch.autograd.grad(y.square().sum(), q.step)
    (want,) = torch.autograd.grad(twin(leaves[1]).square().sum(), twin.step)
    assert same_bits(got, want)


def test_repr():
    assert "decay=none yet" in repr(Tempered(4).to("meta"))
    assert repr(Tempered(4, seed=1, decay=0.125)).endswith("initialized=False, reading='noise', noise='uniform', decay=0.125)")
    assert repr(NoiseQuant(4)).endswith("initialized=False, kind='diffq', noise='normal')")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Tempered(9), ValueError, "Tempered: bits must be from 1 to 8"),
        (lambda: Tempered(4, init="best"), ValueError, "Tempered: init must be one of lsq, lsq"),
        (lambda: Tempered(4, axis=0, group_size=2), ValueError, "Tempered: axis=0 and group_size=2 exclude each other"),
        (lambda: Tempered(4, reading="both"), ValueError, "Tempered: reading must be one of noise, gradient, got 'both'"),
        (lambda: Tempered(4, noise="cauchy"), ValueError, "Tempered: noise must be one of uniform, rademacher, normal"),
        (lambda: Tempered(4, decay=1.5), ValueError, "Tempered: decay must be from 0 to 1, got 1.5"),
        (lambda: setattr(Tempered(4), "decay", math.nan), ValueError, "Tempered: decay must be from 0 to 1, got nan"),
        (lambda: Tempered(4, decay="fast"), TypeError, "Tempered: decay must be a float from 0 to 1 or a tensor .*, got str"),
        (lambda: Tempered(4, decay=torch.ones(1)), TypeError, "Tempered: decay must be a float from 0 to 1, got Tensor"),
        (
            lambda: setattr(Tempered(4), "decay", torch.ones(2)),
            ValueError,
            r"Tempered: decay must have one element, got shape \(2,",
        ),
        (lambda: Tempered(4, seed=1.5), TypeError, "Tempered: seed must be an int or None, got float"),
        (lambda: Tempered(4, seed=2**63), ValueError, "Tempered: seed must fit in 64 bits with its sign, got 9223372036854775808"),
        (lambda: NoiseQuant(4, seed=True), TypeError, "NoiseQuant: seed must be an int or None, got bool"),
        (lambda: NoiseQuant(4, kind="pqn"), ValueError, "NoiseQuant: kind must be one of diffq, nipq, uniform, got 'pqn'"),
        (lambda: NoiseQuant(4, kind="uniform", noise="normal"), ValueError, "NoiseQuant: kind='uniform' has uniform noise"),
        (lambda: NoiseQuant(4, eps=0), ValueError, "NoiseQuant: eps must be positive and finite in float32, at least .*, got 0"),
        (lambda: Tempered(4, a_grad_scale="x"), TypeError, "Tempered: a_grad_scale must be a float, got str"),
        (lambda: Tempered(4, a_grad_scale=math.inf), ValueError, "Tempered: a_grad_scale must be finite, got inf"),
        (lambda: NoiseQuant(4, grad_scale=math.nan), ValueError, "NoiseQuant: grad_scale must be finite, got nan"),
        (lambda: NoiseQuant(4)(torch.arange(4)), TypeError, "NoiseQuant: x must be float32"),
        (lambda: Tempered(4, axis=0, shape=(3,))(torch.ones(4)), ValueError, r"Tempered: step must have shape \(4,\)"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()
