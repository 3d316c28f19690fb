"""``attach``: what happens after each step of an ordinary loop, and what a checkpoint needs; ``param_groups``; batch norm anew."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from device import drawn
from torch import nn

import fastq
from fastq.recipes import RECIPES, Parameters, Phase, Recipe, attach, param_groups, reestimate_batch_norm

pytestmark = pytest.mark.usefixtures("one_thread")

X, Y = drawn((16, 3, 8, 8), 1), torch.arange(16) % 5


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(512, 5),
    )  # fmt: skip


def prepared(name, **given):
    return fastq.prepare(net(), RECIPES[name](**given)).model


def begin(recipe, steps=20, lr=0.01):
    model = fastq.prepare(net(), recipe).model
    optimizer = torch.optim.SGD(param_groups(model, recipe, lr=lr), momentum=0.9)
    return model, optimizer, attach(recipe, model, optimizer, steps=steps)


def step(model, optimizer, run):
    optimizer.zero_grad()
    loss = F.cross_entropy(model(X), Y) + run.loss()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains_and_goes_on_from_a_checkpoint(name):
    recipe = RECIPES[name](3, 3)
    model, optimizer, run = begin(recipe)
    losses = [step(model, optimizer, run) for _ in range(8)]
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), run.state_dict()))
    losses += [step(model, optimizer, run) for _ in range(12)]
    assert run.step == run.steps == 20 and min(losses[-4:]) < losses[0] and all(map(math.isfinite, losses))

    model, optimizer, run = begin(recipe)
    run.load_state_dict(saved[2])
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    assert [step(model, optimizer, run) for _ in range(12)] == losses[8:]


def widths(model):
    return [
        m.weight_quantizer.bits if m.weight_quantizer.enabled else None for m in model.modules() if hasattr(m, "weight_quantizer")
    ]


def test_widths_follow_the_phases_and_wide_layers_stay_wide():
    model, optimizer, run = begin(RECIPES["qil"](2, 2), steps=10)
    seen = []
    for _ in range(10):
        seen.append(widths(model))
        step(model, optimizer, run)
    inner = [w[1] for w in seen]
    assert inner == [None, None, 5, 5, 4, 4, 3, 3, 2, 2]
    assert [w[0] for w in seen] == [None, None] + [8] * 8, "the first layer has 8 bits in the end, and never fewer before"
    assert widths(model) == [8, 2, 2, 8]


def test_sat_is_clamped_first_then_quantized():
    model, optimizer, run = begin(RECIPES["sat"](2, 2, pretraining=3), steps=6)
    q = model[3].weight_quantizer
    assert q.enabled and q.bits is None and not model[3].input_quantizer.enabled
    levels = []
    for _ in range(6):
        with torch.no_grad():
            levels.append(len(q(model[3].weight).unique()))
        step(model, optimizer, run)
    assert levels[:3] == [72, 72, 72] and levels[3:] == [4, 4, 4]
    assert model[0].input_quantizer is None and model[3].input_quantizer.enabled
    # rescaled where no batch norm takes the output
    rescale = [m.weight_quantizer.rescale for m in (model[0], model[3], model[6], model[8])]
    assert rescale == ["none", "none", "constant", "constant"]


def test_quantizers_alone_move_while_the_network_stands():
    recipe = RECIPES["qil"](3, 3, progressive=False, quantizers_alone=3)
    model, optimizer, run = begin(recipe, steps=6)
    model[1](drawn((4, 8, 4, 4), 9))
    own = {n: p for n, p in model.named_parameters() if "quantizer" in n}
    rest = {n: p for n, p in model.state_dict().items() if "quantizer" not in n and "num_batches" not in n}
    model(X)
    assert run.trains == "quantizers"
    before = {n: p.detach().clone() for n, p in own.items()}
    rest = {n: p.clone() for n, p in rest.items()}
    for _ in range(3):
        step(model, optimizer, run)
    state = model.state_dict()
    assert all(torch.equal(state[n], p) for n, p in rest.items()), "weights, batch norm and its statistics"
    assert any(not torch.equal(p, before[n]) for n, p in own.items())
    assert run.trains == "all" and all(p.requires_grad for p in model.parameters())
    step(model, optimizer, run)
    assert all(not torch.equal(model.state_dict()[n], p) for n, p in rest.items())


def test_what_is_frozen_keeps_no_gradient_that_would_be_stepped():
    recipe = Recipe("mine", RECIPES["lsq"](3, 3).default, phases=(Phase(2), Phase(2, train="quantizers"), Phase()))
    model, optimizer, run = begin(recipe, steps=6)
    for _ in range(2):
        step(model, optimizer, run)
    weight = model[3].weight.detach().clone()
    optimizer.step()  # a loop that has not cleared the gradients yet
    assert torch.equal(model[3].weight, weight) and model[3].weight.grad is None


def test_the_network_alone():
    recipe = Recipe("mine", RECIPES["lsq"](3, 3).default, phases=(Phase(2, train="network"), Phase()))
    model, optimizer, run = begin(recipe, steps=4)
    model(X)
    steps = [p.detach().clone() for n, p in model.named_parameters() if "quantizer" in n]
    for _ in range(2):
        step(model, optimizer, run)
    assert all(torch.equal(p, s) for p, s in zip([p for n, p in model.named_parameters() if "quantizer" in n], steps, strict=True))
    run.detach()
    assert all(p.requires_grad for p in model.parameters())


def test_the_network_alone_leaves_steps_in_closed_form_as_well():
    recipe = Recipe("mine", RECIPES["direct"](3, 3).default, phases=(Phase(2, train="network"), Phase()))
    model, optimizer, run = begin(recipe, steps=6)
    model(X)
    q = model[3].input_quantizer
    seen = [float(q.step)]
    for _ in range(4):
        step(model, optimizer, run)
        seen.append(float(q.step))
    assert seen[0] == seen[1] == seen[2] != seen[3] != seen[4]


@pytest.mark.parametrize(("name", "given"), [("qil", {}), ("sat", {"pretraining": 5})])
def test_a_recipe_that_is_attached_again_knows_the_widths_that_its_phases_changed(name, given):
    recipe = RECIPES[name](2, 2, **given)
    model, optimizer, run = begin(recipe, steps=20)
    for _ in range(3):
        step(model, optimizer, run)
    with pytest.raises(ValueError, match=r"attach: Training\('\w+', step 3 of 20.* is at work on this model; call its detach"):
        attach(recipe, model, optimizer, steps=20)
    run.detach()
    run = attach(recipe, model, optimizer, steps=20)
    assert len(optimizer._optimizer_step_post_hooks) == 1
    for _ in range(20):
        step(model, optimizer, run)
    assert widths(model) == [8, 2, 2, 8]
    run.detach()
    model[3].weight_quantizer.set_bits(3)
    run = attach(recipe, model, optimizer, steps=20)
    for _ in range(20):
        step(model, optimizer, run)
    assert widths(model) == [8, 3, 2, 8], "the width that was given last is its own"


def test_noise_decays_with_the_steps():
    model, optimizer, run = begin(RECIPES["noise_tempering"](3, 3), steps=10)
    decays = []
    for _ in range(10):
        decays.append(float(model[3].weight_quantizer.decay))
        step(model, optimizer, run)
    assert decays == pytest.approx([math.exp(-5 * t / 10) for t in range(10)], rel=1e-6)
    for _ in range(2):
        step(model, optimizer, run)
    assert run.step == 12 and float(model[3].weight_quantizer.decay) == pytest.approx(math.exp(-5), rel=1e-6), (
        "the last value stays"
    )


def test_oscillations_are_tracked_and_frozen_after_the_delay():
    recipe = RECIPES["oscillation_freeze"](2, 4, first=1e-3, last=1e-4, momentum=0.1, delay=0.5)
    model, optimizer, run = begin(recipe, steps=20, lr=0.2)
    frozen = []
    for _ in range(20):
        assert (run.threshold == 0) == (run.step < 10)
        step(model, optimizer, run)
        frozen.append(sum(int(m.weight_quantizer.state.frozen.sum()) for m in model.modules() if hasattr(m, "weight_quantizer")))
    assert frozen[9] == 0 < frozen[-1] and frozen == sorted(frozen)


def test_dampening_is_a_loss_that_rises():
    recipe = RECIPES["oscillation_dampen"](3, 3, weight=2.0, delay=0.0)
    model, optimizer, run = begin(recipe, steps=4)
    step(model, optimizer, run)
    values = []
    for t in range(1, 4):
        layers = [m for m in model.modules() if hasattr(m, "weight_quantizer")]
        factor = fastq.schedules.dampening_weight(t, 4, last=2.0, delay=0.0)
        expected = factor * sum(m.weight_quantizer.dampening(m.weight) for m in layers)
        torch.testing.assert_close(run.loss(), expected, rtol=1e-5, atol=0)  # the order of a sum of four
        values.append(float(run.loss().detach() / factor))
        step(model, optimizer, run)
    assert values[-1] < values[0], "weights come closer to their grid points"
    plain = begin(RECIPES["lsq"]())[2]
    assert plain.loss().shape == () and float(plain.loss()) == 0


def test_weights_that_are_codes_move_by_the_optimizer_without_another_line():
    model, optimizer, run = begin(RECIPES["direct"](2, 4), lr=0.5)
    codes = model[3].direct.codes.clone()
    for _ in range(3):
        step(model, optimizer, run)
    assert not torch.equal(model[3].direct.codes, codes)
    run.detach()
    assert not optimizer._optimizer_step_post_hooks
    fastq.DirectOptimizer(optimizer, model)
    before = len(optimizer._optimizer_step_post_hooks)
    attach(run.recipe, model, optimizer, steps=5)
    assert len(optimizer._optimizer_step_post_hooks) == before + 1, "codes are not moved twice"


def test_a_step_that_was_left_out_does_not_count():
    _model, _optimizer, run = begin(RECIPES["lsq"]())
    assert run.step == 0 and repr(run).startswith("Training('lsq', step 0 of 20, Phase(")
    run.detach()
    step(*begin(RECIPES["lsq"]())[:2], run)
    assert run.step == 0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"recipe": "lsq"}, TypeError, "attach: recipe must be a fastq.recipes.Recipe, got str"),
        ({"model": None}, TypeError, "attach: model must be a torch.nn.Module, got NoneType"),
        ({"optimizer": 3}, TypeError, "attach: optimizer must be a torch.optim.Optimizer, got int"),
        ({"steps": 10.0}, TypeError, "attach: steps must be an int, got 10.0"),
        ({"steps": 0}, ValueError, "attach: steps must be at least 1, got 0"),
        ({"model": nn.Linear(2, 2)}, ValueError, "attach: the model has no quantizer; call fastq.prepare"),
        ({"recipe": RECIPES["oscillation_freeze"]()}, ValueError, "has freezing, but the model has no OscillationLSQ; prepare"),
        (
            {"recipe": RECIPES["noise_tempering"]()},
            ValueError,
            "has tempering, but the model has no Tempered; prepare",
        ),
        ({"recipe": RECIPES["oscillation_dampen"](), "model": prepared("sat")}, ValueError, "no weights .* are quantized by LSQ"),
        (
            {"recipe": RECIPES["oscillation_dampen"](), "model": prepared("lsq", weight_options={"offset": True})},
            ValueError,
            "dampening, which pulls to a grid without an offset",
        ),
        ({"recipe": RECIPES["sat"](pretraining=20)}, ValueError, "recipe 'sat': the schedule is longer than the run: .* 20 of 20"),
    ],
)
def test_what_attach_refuses(change, error, message):
    recipe = RECIPES["lsq"]()
    model = fastq.prepare(net(), recipe).model
    given = {"recipe": recipe, "model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1), "steps": 20} | change
    with pytest.raises(error, match=message):
        attach(**given)


def test_a_checkpoint_of_a_run_of_another_length():
    run = begin(RECIPES["lsq"]())[2]
    with pytest.raises(ValueError, match="the state is of a run of 30 steps, this one has 20"):
        run.load_state_dict({"step": 3, "steps": 30})


# --- parameter groups -----------------------------------------------------------------------------------------------------


def names(model, groups):
    by_id = {id(p): n for n, p in model.named_parameters()}
    return {g["name"]: [by_id[id(p)] for p in g["params"]] for g in groups}


def test_groups_split_as_the_papers_ask():
    recipe = RECIPES["sat"]()
    model = fastq.prepare(net(), recipe).model
    groups = param_groups(model, recipe, lr=0.1, weight_decay=1e-4)
    assert names(model, groups) == {
        "decayed": ["0.weight", "6.weight", "8.weight"],
        "plain": ["1.weight", "1.bias", "3.weight", "4.weight", "4.bias", "6.bias", "8.bias"],
        "quantizers": ["3.input_quantizer.alpha", "6.input_quantizer.alpha", "8.input_quantizer.alpha"],
    }
    assert [(g["lr"], g["weight_decay"]) for g in groups] == [(0.1, 1e-4), (0.1, 0.0), (0.1, 0.0)]
    usual = names(model, param_groups(model, lr=0.1))
    assert "3.weight" in usual["decayed"], "the depthwise convolution is SAT's to spare"
    assert "plain" not in names(model, param_groups(model, Parameters(decay="all"), lr=0.1))


def test_groups_hold_every_parameter_once_and_scale_what_is_asked():
    recipe = Recipe("mine", parameters=Parameters(quantizer_lr=0.1, quantizer_decay=0.5))
    model = fastq.prepare(net(), recipe).model
    model[6].bias = model[1].bias  # shared
    groups = param_groups(model, recipe, lr=0.2, weight_decay=0.01)
    given = [p for g in groups for p in g["params"]]
    assert len(given) == len({id(p) for p in given}) and {id(p) for p in given} == {id(p) for p in model.parameters()}
    assert {g["name"]: (g["lr"], g["weight_decay"]) for g in groups}["quantizers"] == pytest.approx((0.02, 0.005))


def test_deltas_of_codes_never_decay():
    recipe = RECIPES["direct"]()
    model = fastq.prepare(net(), recipe).model
    groups = {g["name"]: g for g in param_groups(model, recipe, lr=0.1, weight_decay=0.1)}
    assert {id(m.direct.delta) for m in model.modules() if hasattr(m, "direct")} == {id(p) for p in groups["codes"]["params"]}
    assert groups["codes"]["weight_decay"] == 0 and any(p is model[3].direct.free for p in groups["quantizers"]["params"])


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"model": 3}, TypeError, "param_groups: model must be a torch.nn.Module, got int"),
        ({"recipe": "lsq"}, TypeError, "param_groups: recipe must be a Recipe, its Parameters or None, got str"),
        ({"lr": -1.0}, ValueError, "param_groups: lr must be at least 0 and finite, got -1.0"),
        ({"weight_decay": math.nan}, ValueError, "param_groups: weight_decay must be at least 0 and finite, got nan"),
    ],
)
def test_what_param_groups_refuses(given, error, message):
    with pytest.raises(error, match=message):
        param_groups(**({"model": net(), "recipe": None, "lr": 0.1} | given))


# --- batch norm -----------------------------------------------------------------------------------------------------------


def test_batch_norm_anew_is_the_plain_average():
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(3, momentum=0.3), nn.Dropout(0.5), nn.BatchNorm2d(3, affine=False)).train()
    model[0].running_mean += 7
    batches = [drawn((4, 3, 5, 5), s) * s for s in range(1, 5)]
    assert reestimate_batch_norm(model, iter(batches), count=3) == 3
    means = torch.stack([b.mean((0, 2, 3)) for b in batches[:3]]).mean(0)
    variances = torch.stack([b.var((0, 2, 3)) for b in batches[:3]]).mean(0)
    # a mean of three fp32 means
    torch.testing.assert_close(model[0].running_mean, means, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model[0].running_var, variances, rtol=1e-5, atol=1e-6)
    assert model.training and all(m.training for m in model) and model[0].momentum == 0.3
    # no dropout: the second norm sees the normalized first
    torch.testing.assert_close(model[1 + 1].running_var, torch.full((3,), 100 / 99), rtol=1e-3, atol=0)


def test_batch_norm_anew_leaves_quantizers_alone_and_takes_tuples():
    model, optimizer, run = begin(RECIPES["oscillation_freeze"](2, 2, batch_norm=2))
    step(model, optimizer, run)
    before = {n: t.clone() for n, t in model.state_dict().items() if "running" not in n and "num_batches" not in n}
    means = model[1].running_mean.clone()
    assert run.before_evaluation((x, y) for x, y in [(X, Y)] * 5) == 2
    assert all(torch.equal(model.state_dict()[n], t) for n, t in before.items())
    assert not torch.equal(model[1].running_mean, means)
    assert begin(RECIPES["lsq"]())[2].before_evaluation([]) == 0, "this recipe asks for none"


def test_batch_norm_anew_refuses():
    model = net()
    mean = model[1].running_mean.clone()
    with pytest.raises(ValueError, match="reestimate_batch_norm: batches must hold at least one batch"):
        reestimate_batch_norm(model, [])
    assert torch.equal(model[1].running_mean, mean) and model[1].momentum == 0.1 and model.training
    with pytest.raises(ValueError, match="reestimate_batch_norm: count must be at least 1, got 0"):
        reestimate_batch_norm(model, [X], count=0)
    with pytest.raises(TypeError, match=r"reestimate_batch_norm: count must be an int, got 2\.0"):
        reestimate_batch_norm(model, [X], count=2.0)
    with pytest.raises(TypeError, match=r"reestimate_batch_norm: model must be a torch\.nn.Module, got int"):
        reestimate_batch_norm(3, [X])
    assert reestimate_batch_norm(nn.Linear(2, 2), [X]) == 0
