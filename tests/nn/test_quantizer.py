"""The quantizer module: first batch, state, and the function it calls, bit for bit."""

import copy
import io
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from device import DEVICE, drawn
from torch import nn

import fastq
from fastq.nn import LSQ, ChannelError
from fastq.nn.initializers import initial_values

GRAINS = {
    "tensor": {},
    "axis0": {"axis": 0, "shape": (4,)},
    "axis1": {"axis": 1, "shape": (6,)},
    "last": {"axis": -1, "shape": (8,)},
    "group": {"group_size": 4, "shape": (4, 6, 2)},
}
PLACE = ("axis", "group_size")


pytestmark = pytest.mark.usefixtures("one_thread")


def values(shape=(4, 6, 8), seed=0, scale=1.0):
    return drawn(shape, seed) * scale


def place(grain):
    return {name: value for name, value in GRAINS[grain].items() if name in PLACE}


def same_state(a, b):
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) and left[k].dtype == right[k].dtype for k in left)


@pytest.mark.parametrize("grain", GRAINS)
@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("init", ["lsq", "lsq+", "mse"])
def test_first_batch_sets_the_initial_values_once(init, offset, grain):
    q = LSQ(4, init=init, offset=offset, **GRAINS[grain])
    assert not q.initialized and q.extra_repr().endswith("initialized=False")
    x = values() + 0.3
    q(x)
    step, start = initial_values(x, init, -8, 7, offset=offset, **place(grain))
    assert torch.equal(q.step, step.view_as(q.step))
    assert (q.offset is not None) == offset and (not offset or torch.equal(q.offset, start.view_as(q.offset)))
    assert q.initialized and q.extra_repr().endswith("initialized=True")
    before = copy.deepcopy(q.state_dict())
    q(values(seed=1, scale=9.0))
    assert all(torch.equal(before[name], value) for name, value in q.state_dict().items())


@pytest.mark.parametrize("grain", GRAINS)
@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_output_and_gradients_are_those_of_the_function(dtype, offset, grain):
    options = {"boundary": "closed", "grad_scale": 0.5, "offset_grad_scale": 0.25, "eps": 1e-6}
    q = LSQ(3, offset=offset, **options, **GRAINS[grain])
    x = values().to(dtype)
    q(x)
    x = values(seed=1, scale=2.0).to(dtype)  # some of it clipped, so that the offset has a gradient
    arithmetic = torch.float64 if dtype == torch.float64 else torch.float32
    leaves = [t.detach().to(arithmetic).requires_grad_() for t in (q.step, q.offset) if t is not None]
    left, right = x.clone().requires_grad_(), x.clone().requires_grad_()
    y = q(left)
    expected = fastq.lsq(right, leaves[0], bits=3, offset=leaves[1] if offset else None, **options, **place(grain))
    assert y.dtype == dtype and torch.equal(y, expected)
    g = values(seed=2).to(dtype)
    y.backward(g)
    expected.backward(g)
    assert torch.equal(left.grad, right.grad)
    for parameter, leaf in zip(q.parameters(), leaves, strict=True):
        assert parameter.grad.dtype == torch.float32 and parameter.grad.any()
        assert torch.equal(parameter.grad, leaf.grad.float())


@pytest.mark.parametrize(
    ("arguments", "codes"),
    [
        ({"bits": 4, "signed": False}, (0, 15)),
        ({"bits": 3, "narrow": True}, (-3, 3)),
        ({"bits": (-5, 2)}, (-5, 2)),
        ({"bits": 1, "signed": False}, (0, 1)),
        ({"bits": 8}, (-128, 127)),
    ],
)
def test_ranges(arguments, codes):
    q = LSQ(**arguments)
    x = values()
    q(x)
    assert (q.qmin, q.qmax) == codes and str(list(codes)) in q.extra_repr()
    assert torch.equal(q.step, initial_values(x, "lsq", *codes)[0])
    assert torch.equal(q(x), fastq.lsq(x, q.step, **arguments))
    reached = q.codes(x * 1e6)
    assert (int(reached.min()), int(reached.max())) == codes


@pytest.mark.parametrize("grain", GRAINS)
@pytest.mark.parametrize("offset", [False, True])
def test_codes_times_step_plus_offset_is_the_output(offset, grain):
    q = LSQ(4, offset=offset, **GRAINS[grain])
    x = values() + 0.3
    y = q(x).detach()
    with torch.no_grad():
        q.step.neg_()  # the step is |step|
    codes = q.codes(x)
    assert codes.dtype == torch.int32 and codes.shape == x.shape and not codes.requires_grad
    assert q.effective_step().shape == q.step.shape and bool((q.effective_step() > 0).all())

    def spread(t):
        if grain == "group":
            return t.repeat_interleave(4, -1)
        return t.movedim(0, -1) if grain == "last" else t.view(-1, 1, 1) if grain == "axis0" else t.view(-1, 1)

    product = spread(q.effective_step()) * codes
    assert torch.equal(product if q.offset is None else product + spread(q.offset.detach()), y)


def test_effective_step_is_at_least_eps():
    q = LSQ(4, eps=0.125)
    with torch.no_grad():
        q.step.zero_()
    assert q.effective_step().item() == 0.125


def test_codes_before_the_first_batch_are_refused():
    with pytest.raises(RuntimeError, match=r"LSQ: codes\(\) of a quantizer that has seen no batch"):
        LSQ(4).codes(values())


def test_codes_of_what_does_not_fit_are_refused():
    q = LSQ(4, axis=0, shape=(4,))
    q(values())
    with pytest.raises(ValueError, match=r"LSQ: step must have shape \(1,\).*got \(4,\)"):
        q.codes(values((1, 6, 8)))
    with pytest.raises(TypeError, match="LSQ: x must be float32"):
        q.codes(torch.ones(4, 6, 8, dtype=torch.int64))


# --- sign ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("narrow", [False, True])
def test_the_first_batch_decides_the_sign(narrow):
    positive, mixed = values().abs(), values()
    q = LSQ(4, signed=None, narrow=narrow)
    assert "by first batch" in q.extra_repr()
    q(positive)
    assert (q.qmin, q.qmax) == (0, 15) and not q.is_signed
    assert torch.equal(q.step, initial_values(positive, "lsq", 0, 15)[0])
    assert torch.equal(q(mixed), fastq.lsq(mixed, q.step, bits=4, signed=False)), "decided once"
    q = LSQ(4, signed=None, narrow=narrow)
    q(mixed)
    assert (q.qmin, q.qmax) == (-7 if narrow else -8, 7) and q.is_signed
    assert torch.equal(q.step, initial_values(mixed, "lsq", -7 if narrow else -8, 7)[0])


def test_zeros_of_either_sign_are_not_negative():
    q = LSQ(4, signed=None)
    q(torch.tensor([0.0, -0.0, 1.0]))
    assert q.qmin == 0


@pytest.mark.parametrize("signed", [True, False])
def test_a_sign_that_is_given_stays(signed):
    q = LSQ(4, signed=signed)
    q(values().abs() if signed else -values().abs())
    assert bool(q.is_signed) == signed and (q.qmin < 0) == signed


def test_one_bit_and_a_negative_first_batch():
    """One signed bit has no positive code: said at the batch that shows it, which leaves the quantizer as it was."""
    q = LSQ(1, signed=None)
    repr(q)
    with pytest.raises(ValueError, match="1 bit must be signed=False"):
        q(values())
    assert not q.initialized
    q(values().abs())
    assert (q.qmin, q.qmax) == (0, 1)


# --- state --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("strict", [False, True])
def test_state_dict_into_a_fresh_module(assign, strict):
    q = LSQ(4, signed=None, offset=True, axis=1, shape=(6,))
    x = values().abs()
    y = q(x)
    state = q.state_dict()
    assert set(state) == {"step", "offset", "initialized", "is_signed"}
    assert state["initialized"].dtype == state["is_signed"].dtype == torch.uint8
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    fresh = LSQ(4, signed=None, offset=True, axis=1, shape=(6,))
    fresh.load_state_dict(torch.load(file), strict=strict, assign=assign)
    assert (fresh.qmin, fresh.qmax) == (0, 15), "known before the first batch"
    fresh(values(seed=1, scale=9.0))
    assert same_state(q, fresh) and torch.equal(fresh(x), y)


def test_state_of_an_untouched_module_takes_the_values_back():
    q, fresh = LSQ(4), LSQ(4)
    q(values())
    q.load_state_dict(fresh.state_dict())
    x = values(seed=1, scale=3.0)
    q(x)
    assert torch.equal(q.step, initial_values(x, "lsq", -8, 7)[0])


def test_buffers_written_by_others_are_read():
    """DDP and averaging copy into parameters and buffers without telling the module."""
    q, other = LSQ(4, signed=None), LSQ(4, signed=None)
    q(values().abs())
    with torch.no_grad():
        for a, b in zip([*other.parameters(), *other.buffers()], [*q.parameters(), *q.buffers()], strict=True):
            a.copy_(b)
    other(values(seed=1, scale=9.0))
    assert same_state(q, other) and other.qmin == 0


def by_pickle(module):
    return pickle.loads(pickle.dumps(module))


def by_torch_save(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("through", [copy.deepcopy, by_pickle, by_torch_save])
@pytest.mark.parametrize("seen", [False, True])
def test_copies(through, seen):
    q = LSQ(4, signed=None, offset=True, group_size=4, shape=(4, 6, 2), init="mse", boundary="rounded", grad_scale="lsq-full")
    x = values().abs()
    if seen:
        q(x)
    new = through(q)
    assert new.step is not q.step and same_state(q, new) and repr(new) == repr(q)
    for module in (q, new):
        module(x).square().sum().backward()
    assert torch.equal(new(x), q(x)) and torch.equal(new.step.grad, q.step.grad) and torch.equal(new.offset.grad, q.offset.grad)
    # and the copy's state is its own
    new.load_state_dict(LSQ(4, signed=None, offset=True, group_size=4, shape=(4, 6, 2)).state_dict())
    assert q.initialized and not new.initialized
    new(values(seed=1))
    assert not torch.equal(new.step, q.step)


HALVES = {
    "half": lambda m: m.half(),
    "bfloat16": lambda m: m.bfloat16(),
    "to half": lambda m: m.to(torch.float16),
    "to bfloat16": lambda m: m.to(dtype=torch.bfloat16),
    "float8": lambda m: m.to(torch.float8_e4m3fn),
    "double and back": lambda m: m.double().half(),
}


@pytest.mark.parametrize("conversion", HALVES)
@pytest.mark.parametrize("seen", [False, True])
def test_half_precision_keeps_the_step_in_fp32(seen, conversion):
    q = LSQ(4, offset=True)
    x = values() + 0.3
    if seen:
        q(x).sum().backward()
    before, gradient = copy.deepcopy(q), q.step.grad
    HALVES[conversion](q)
    assert same_state(q, before) and q.step.dtype == torch.float32
    assert not seen or torch.equal(q.step.grad, gradient)
    for dtype in (torch.float16, torch.bfloat16):
        assert torch.equal(q(x.to(dtype)), before(x.to(dtype)))


def test_double_makes_the_step_fp64():
    q = LSQ(4, offset=True)
    x = values() + 0.3
    q(x)
    step, offset = q.step.detach().clone(), q.offset.detach().clone()
    for module in (copy.deepcopy(q).double(), copy.deepcopy(q).to(torch.float64)):
        assert module.step.dtype == module.offset.dtype == torch.float64 and module.initialized.dtype == torch.uint8
        assert torch.equal(module.step, step.double())
        y = module(x.double())
        assert torch.equal(y, fastq.lsq(x.double(), step.double(), bits=4, offset=offset.double()))
        y.sum().backward()
        assert module.step.grad.dtype == torch.float64
        assert torch.equal(module(x), q(x)), "fp32 values in fp64 are the fp32 values"
        assert torch.equal(module.float().step, step)


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float16, torch.float64])
def test_the_default_dtype_does_not_reach_the_step(default):
    before = torch.get_default_dtype()
    x = values()
    expected = LSQ(4, offset=True)
    expected(x)
    torch.set_default_dtype(default)
    try:
        q, empty = LSQ(4, offset=True), LSQ(4)
        q(x)
        empty(x[:0])
    finally:
        torch.set_default_dtype(before)
    assert q.step.dtype == q.offset.dtype == empty.step.dtype == torch.float32 and same_state(q, expected)


def test_meta_has_no_values_and_takes_them_later():
    q = LSQ(4, axis=0, shape=(4,)).to("meta")
    assert q(torch.empty(4, 6, device="meta")).is_meta and not q._initialized
    source = LSQ(4, axis=0, shape=(4,))
    source(values())
    q = q.to_empty(device=DEVICE)
    q.load_state_dict(source.state_dict())
    assert torch.equal(q(values(seed=1)), source(values(seed=1)))
    with torch.device("meta"):
        q = LSQ(4, axis=0, shape=(4,))
    q.load_state_dict(source.state_dict(), assign=True)
    assert torch.equal(q(values(seed=1)), source(values(seed=1)))


# --- modes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_eval_mode_quantizes_as_training_mode_does(mode):
    """Whatever comes first is the first batch: a model that is only evaluated is a quantized model too."""
    x = values()
    q, trained = LSQ(4).eval(), LSQ(4)
    with mode():
        y = q(x)
    assert q.initialized and torch.equal(y, trained(x)) and same_state(q, trained)
    q.train()(x).sum().backward()
    assert q.step.grad is not None


def test_autocast_leaves_the_quantizer_alone():
    x = values()
    q = LSQ(4)
    expected = q(x)
    with torch.autocast(x.device.type, torch.bfloat16):
        assert torch.equal(q(x), expected)
        fresh = LSQ(4)
        assert torch.equal(fresh(x), expected) and fresh.step.dtype == torch.float32


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_whole_after_one_batch(dynamic):
    q = LSQ(4, signed=None, axis=1, shape=(6,), offset=True)
    x = values()
    q(x).square().sum().backward()
    gradients = [p.grad.clone() for p in q.parameters()]
    q.zero_grad()
    y = torch.compile(q, fullgraph=True, dynamic=dynamic, backend="aot_eager")(x)
    y.square().sum().backward()
    assert torch.equal(y, q(x)) and all(torch.equal(p.grad, g) for p, g in zip(q.parameters(), gradients, strict=True))


@pytest.mark.parametrize("x", [torch.zeros(3, 4), torch.full((3, 4), float("nan")), torch.full((3, 4), float("inf"))])
def test_a_first_batch_that_says_nothing_gives_a_step_of_one(x):
    q = LSQ(4, offset=True)
    q(x)
    assert q.step.item() == 1 and q.offset.item() == 0


@pytest.mark.parametrize("shape", [(0,), (0, 8), (3, 0)])
def test_an_empty_batch_is_no_first_batch(shape):
    q = LSQ(4, signed=None, offset=True)
    fresh = copy.deepcopy(q)
    assert q(torch.empty(shape)).shape == shape and same_state(q, fresh)
    x = values()
    q(x)
    assert torch.equal(q.step, initial_values(x, "lsq", -8, 7, offset=True)[0])
    channels = LSQ(4, axis=-1, shape=(shape[-1],))
    channels(torch.empty(shape))
    assert not channels.initialized


def test_a_training_step_moves_step_and_offset():
    """Gradient descent on the quantization error alone finds a better step and offset than it started from."""
    x = values((4096,)) + 0.5
    q = LSQ(2, offset=True, grad_scale=1e-3, offset_grad_scale=1e-3)
    optimizer = torch.optim.SGD(q.parameters(), lr=0.05)
    errors = []
    for _ in range(60):
        loss = (q(x) - x).square().sum()
        optimizer.zero_grad()
        loss.backward()
        assert q.step.grad.isfinite().all() and q.offset.grad.isfinite().all()
        optimizer.step()
        errors.append(float(loss.detach()))
    assert errors[-1] < 0.8 * errors[0]


# --- what it says -------------------------------------------------------------------------------------------------------


def test_repr():
    assert repr(LSQ(4, axis=1, shape=(6,), offset=True, init="mse", boundary="closed")) == (
        "LSQ(bits=4, range=[-8, 7], axis=1, steps=6, offset=True, init='mse', boundary='closed', initialized=False)"
    )
    assert "group_size=4, steps=48" in repr(LSQ(4, group_size=4, shape=(4, 6, 2)))
    assert "bits=(-5, 2), range=[-5, 2], per tensor, steps=1, offset=False, init='lsq'" in repr(LSQ((-5, 2)))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"bits": 9}, ValueError, "LSQ: bits must be from 1 to 8.*got 9"),
        ({"bits": 0}, ValueError, "LSQ: bits must be from 1 to 8.*got 0"),
        ({"bits": 2.0}, TypeError, "LSQ: bits must be an int from 1 to 8 or a pair.*got 2.0"),
        ({"bits": 1}, ValueError, "LSQ: the range .*1 bit must be signed=False"),
        ({"bits": (3, 3)}, ValueError, r"LSQ: bits=\(qmin, qmax\) needs qmin < qmax, got \(3, 3\)"),
        ({"bits": 4, "signed": False, "narrow": True}, ValueError, "LSQ: narrow=True is for signed ranges"),
        ({"bits": 4, "init": "minmax"}, ValueError, r"LSQ: init must be one of lsq, lsq\+, mse, got 'minmax'"),
        ({"bits": 4, "boundary": "shut"}, ValueError, "LSQ: boundary must be one of open, closed, rounded, got 'shut'"),
        ({"bits": 4, "axis": 0, "group_size": 4}, ValueError, "LSQ: axis=0 and group_size=4 exclude each other"),
        ({"bits": 4, "axis": 0.5}, TypeError, "LSQ: axis must be an int or None, got 0.5"),
        ({"bits": 4, "group_size": True}, TypeError, "LSQ: group_size must be an int or None, got True"),
        ({"bits": 4, "group_size": 0}, ValueError, "LSQ: group_size must be at least 1, got 0"),
        ({"bits": 4, "grad_scale": "lqs"}, ValueError, "LSQ: grad_scale must be a float, 'lsq' or 'lsq-full', got 'lqs'"),
        ({"bits": 4, "grad_scale": None}, TypeError, "LSQ: grad_scale must be a float, 'lsq' or 'lsq-full', got NoneType"),
        ({"bits": 4, "eps": 0.0}, ValueError, "LSQ: eps must be positive and finite in float32, at least .*, got 0.0"),
        ({"bits": 4, "eps": float("nan")}, ValueError, "LSQ: eps must be positive and finite in float32, at least .*, got nan"),
        ({"bits": 4, "eps": float("inf")}, ValueError, "LSQ: eps must be positive and finite in float32, at least .*, got inf"),
        ({"bits": 4, "grad_scale": float("nan")}, ValueError, "LSQ: grad_scale must be finite, got nan"),
        ({"bits": 4, "offset_grad_scale": float("nan")}, ValueError, "LSQ: offset_grad_scale must be finite, got nan"),
        ({"bits": 4, "offset_grad_scale": "lsq"}, TypeError, "LSQ: offset_grad_scale must be a float, got str"),
        ({"bits": 4, "shape": (2,)}, ValueError, r"LSQ: shape must be of one element without axis and group_size, got \(2,\)"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        LSQ(**arguments)


@pytest.mark.parametrize(
    ("arguments", "x", "error", "message"),
    [
        ({}, torch.ones(3, dtype=torch.int64), TypeError, "x must be float32, bfloat16, float16 or float64, got torch.int64"),
        ({}, torch.ones(3).to_sparse(), TypeError, "x must be a dense"),
        ({}, [1.0], TypeError, "x must be a torch.Tensor, got list"),
        ({"axis": 2, "shape": (3,)}, torch.ones(3, 3), ValueError, r"axis must be in \[-2, 1\]"),
        ({"axis": 0}, torch.ones(3, 4), ValueError, r"step must have shape \(3,\) for x of shape \(3, 4\).*got \(1,\)"),
        ({"group_size": 3, "shape": (3, 1)}, torch.ones(3, 4), ValueError, "group_size=3 must divide the last axis"),
        ({"group_size": 2, "shape": (3, 1)}, torch.ones(3, 4), ValueError, r"step must have shape \(3, 2\)"),
    ],
)
@pytest.mark.parametrize("seen", [False, True])
def test_bad_input(seen, arguments, x, error, message):
    """The same messages before and after the first batch; the quantizer stays as it was."""
    q = LSQ(4, **arguments)
    if seen:
        q._initialized = True
        q.initialized.fill_(True)
    before = copy.deepcopy(q.state_dict())
    with pytest.raises(error, match=message):
        q(x)
    assert all(torch.equal(before[name], value) for name, value in q.state_dict().items())


# --- several processes --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What two processes of a gloo group report that see different batches; see ``ranks.py``."""
    folder = tmp_path_factory.mktemp("ranks")
    path = os.pathsep.join([str(Path(fastq.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "FASTQ_BACKEND": ""}
    command = [sys.executable, str(Path(__file__).with_name("ranks.py")), str(folder)]
    both = [subprocess.Popen([*command, str(rank)], env=environment, stderr=subprocess.PIPE, text=True) for rank in range(2)]
    try:
        errors = [process.communicate(timeout=120)[1] for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], "\n".join(errors)
    return [torch.load(folder / f"{rank}.pt", map_location="cpu") for rank in range(2)]


@pytest.mark.parametrize("case", ["tensor", "axis", "offset"])
def test_every_rank_starts_from_the_mean(ranks, case):
    left, right = (rank[case] for rank in ranks)
    assert all(torch.equal(left["state"][name], right["state"][name]) for name in left["state"])
    assert not torch.equal(left["x"], right["x"]) and left["state"]["initialized"]
    for index, name in enumerate(("step", "offset") if case == "offset" else ("step",)):
        alone = [initial_values(r["x"].cpu(), "lsq+", -8, 7, **r["where"])[index] for r in (left, right)]
        assert torch.equal(left["state"][name].cpu(), (alone[0] + alone[1]).view_as(left["state"][name].cpu()) / 2)


def test_one_rank_with_negative_values_makes_all_signed(ranks):
    assert bool((ranks[0]["sign"]["x"] >= 0).all()) and bool((ranks[1]["sign"]["x"] < 0).any())
    for rank in ranks:
        assert rank["sign"]["range"] == (-8, 7) and bool(rank["sign"]["state"]["is_signed"])
    assert torch.equal(ranks[0]["sign"]["state"]["step"], ranks[1]["sign"]["state"]["step"])


def test_the_closed_form_of_a_step_is_that_of_all_ranks_batches(ranks):
    left, right = (rank["channels"] for rank in ranks)
    assert all(torch.equal(a, b) for a, b in zip(left["steps"], right["steps"], strict=True))
    q = ChannelError(4, momentum=0.5)
    firsts = [initial_values(r["batches"][0].cpu(), "lsq", -8, 7)[0] for r in (left, right)]
    with torch.no_grad():
        q.step.copy_((firsts[0] + firsts[1]) / 2)
    q._initialized = True
    q.initialized.fill_(True)
    for a, b, step in zip(left["batches"], right["batches"], left["steps"], strict=True):
        q(torch.cat([a, b]).cpu())
        assert torch.allclose(q.step, step.cpu(), rtol=1e-6)  # the sums are added in another order


def test_a_rank_with_an_empty_batch_has_no_say(ranks):
    assert [rank["empty"]["x"].numel() > 0 for rank in ranks] == [False, True]
    step, _ = initial_values(ranks[1]["empty"]["x"].cpu(), "lsq", -8, 7)
    for rank in ranks:
        assert torch.equal(rank["empty"]["state"]["step"].cpu(), step) and rank["empty"]["state"]["initialized"]
        assert not rank["none"]["initialized"], "no rank had anything"


def test_data_parallel_training_keeps_the_ranks_equal(ranks):
    left, right = (rank["ddp"] for rank in ranks)
    assert left["loss"] != right["loss"], "different batches"
    assert left["before"].keys() == left["after"].keys() == right["after"].keys()
    for name, value in left["after"].items():
        assert torch.equal(value, right["after"][name]), name
    steps = [name for name in left["after"] if name.endswith("step")]
    assert len(steps) == 6 and all(not torch.equal(left["after"][name], left["before"][name]) for name in steps)
    assert all(bool(value) for name, value in left["after"].items() if name.endswith("initialized"))


def test_data_parallel_training_of_codes_keeps_the_ranks_equal(ranks):
    left, right = (rank["codes"] for rank in ranks)
    assert not torch.equal(left["first"], right["first"]) and left["loss"] != right["loss"]
    for name, value in left["after"].items():
        assert torch.equal(value, right["after"][name]) and torch.equal(left["start"][name], right["start"][name]), name
    codes = [name for name in left["after"] if name.endswith("codes")]
    assert len(codes) == 2 and all(not torch.equal(left["after"][name], left["start"][name]) for name in codes)


def test_weight_steps_wait_for_no_other_rank(ranks):
    """Each rank prepares its own weights by itself; DDP then makes weights and steps equal."""
    left, right = (rank["ddp"]["prepared"] for rank in ranks)
    assert not torch.equal(left["weight"], right["weight"])
    for own in (left, right):
        assert torch.equal(own["step"], initial_values(own["weight"], "lsq", -8, 7, axis=0)[0])


def test_the_module_is_ordinary():
    """Registered once: two parameters, two buffers, nothing else; found by an optimizer, by ``named_modules``."""
    model = nn.Sequential(LSQ(4, offset=True), LSQ(4))
    assert [name for name, _ in model.named_parameters()] == ["0.step", "0.offset", "1.step"]
    assert [name for name, _ in model.named_buffers()] == [f"{i}.{name}" for i in "01" for name in ("initialized", "is_signed")]
