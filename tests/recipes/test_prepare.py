"""``fastq.prepare``: what becomes quantized, what it says about it, and that the model stays an ordinary module."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from device import drawn
from torch import nn
from torch.nn.utils import prune
from torch.optim import swa_utils

import fastq
from fastq.nn import LSQ, QuantConv1d, QuantConv2d, QuantLinear
from fastq.recipes import LayerRecipe, Recipe, lsq

QUANTIZED = (QuantLinear, QuantConv1d, QuantConv2d)


pytestmark = pytest.mark.usefixtures("one_thread")


class Net(nn.Module):
    """Two convolutions, a block with two more layers, a head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.conv = nn.Conv2d(4, 6, 3, stride=2)
        self.block = nn.ModuleDict({"up": nn.Linear(6, 8), "down": nn.Linear(8, 6)})
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        x = F.relu(self.conv(F.relu(self.norm(self.stem(x))))).mean((2, 3))
        return self.head(x + self.block["down"](F.relu(self.block["up"](x))))


NAMES = ["stem", "conv", "block.up", "block.down", "head"]


def net():
    torch.manual_seed(0)
    return Net()


def bits(model):
    """Name to (weight bits, activation bits) of every layer that could be quantized."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
            pair = (getattr(module, "weight_quantizer", None), getattr(module, "input_quantizer", None))
            found[name] = tuple(None if q is None else q.bits for q in pair)
    return found


def said(preparation):
    """The same of what ``prepare`` says it did."""
    return {
        layer.name: (None, None) if layer.recipe is None else (layer.recipe.weight_bits, layer.recipe.activation_bits)
        for layer in preparation.layers
    }


def prepared(model, *arguments, **keywords):
    preparation = fastq.prepare(model, lsq(*arguments, **keywords))
    assert bits(preparation.model) == said(preparation), "it does what it says"
    text = str(preparation)
    assert all(layer.name in text for layer in preparation.layers) and all(layer.note in text for layer in preparation.layers)
    return preparation


# --- which layers get what ----------------------------------------------------------------------------------------------


def test_first_and_last_at_eight_bits():
    model = net()
    preparation = prepared(model, 4, 3)
    assert preparation.model is model
    assert bits(model) == {"stem": (8, 8), "conv": (4, 3), "block.up": (4, 3), "block.down": (4, 3), "head": (8, 8)}
    assert [layer.note for layer in preparation.layers] == ["first layer", "", "", "", "last layer"]
    assert [layer.type for layer in preparation.layers] == ["Conv2d", "Conv2d", "Linear", "Linear", "Linear"]
    assert type(model.stem) is QuantConv2d and type(model.block["up"]) is QuantLinear and type(model.norm) is nn.BatchNorm2d


def blocks(up, down):
    return {"block.up": up, "block.down": down}


FLOAT = (None, None)
UP, DOWN = {"block.up": {"weight_bits": 3}}, {"block.*": {"weight_bits": 2}}
CASES = {
    "all alike": ({"first_last_bits": None}, {}),
    "another width": ({"first_last_bits": 6}, {"stem": (6, 6), "head": (6, 6)}),
    "one bit": ({"first_last_bits": 1, "weight": "ewgs"}, {"stem": (1, 1), "head": (1, 1)}),
    "weights only": ({"activation_bits": None}, dict.fromkeys(NAMES, (4, None)) | {"stem": (8, None), "head": (8, None)}),
    "activations only": ({"weight_bits": None}, dict.fromkeys(NAMES, (None, 4)) | {"stem": (None, 8), "head": (None, 8)}),
    "name": ({"overrides": {"block.up": {"weight_bits": 2}}}, {"block.up": (2, 4)}),
    "glob": ({"overrides": {"block.*": {"activation_bits": 2}}}, blocks((4, 2), (4, 2))),
    "type": ({"overrides": {"Conv2d": {"weight_bits": 3}}}, {"stem": (3, 8), "conv": (3, 4)}),
    "over first": ({"overrides": {"stem": {"weight_bits": 5}}}, {"stem": (5, 8)}),
    "all": ({"overrides": {"*": {"weight_bits": 5}}}, dict.fromkeys(NAMES, (5, 4)) | {"stem": (5, 8), "head": (5, 8)}),
    "later wins": ({"overrides": DOWN | UP}, blocks((3, 4), (2, 4))),
    "later wins, wider": ({"overrides": UP | DOWN}, blocks((2, 4), (2, 4))),
    "both add up": ({"overrides": {"conv": {"weight_bits": 2}, "c*": {"activation_bits": 3}}}, {"conv": (2, 3)}),
    "to float": ({"overrides": {"conv": {"weight_bits": None, "activation_bits": None}}}, {"conv": FLOAT}),
    "range": ({"overrides": {"conv": {"weight_bits": (-1, 1)}}}, {"conv": ((-1, 1), 4)}),
    "skip name": ({"skip": ("conv",)}, {"conv": FLOAT}),
    "skip glob": ({"skip": ["block.*"]}, blocks(FLOAT, FLOAT)),
    "skip type": ({"skip": ("Linear",)}, blocks(FLOAT, FLOAT) | {"head": FLOAT, "conv": (8, 8)}),
    "skip the first": ({"skip": ("stem",)}, {"stem": FLOAT, "conv": (8, 8)}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_recipes(case):
    arguments, difference = CASES[case]
    model = net()
    prepared(model, **arguments)
    default = dict.fromkeys(NAMES, (4, 4))
    if arguments.get("first_last_bits", 8) is not None:
        default |= {"stem": (8, 8), "head": (8, 8)}
    assert bits(model) == default | difference
    if case != "one bit":  # which the negative values of the first batch refuse
        assert model(drawn((2, 3, 8, 8))).shape == (2, 5)


def test_settings_reach_the_quantizers():
    common = {"boundary": "closed", "grad_scale": 0.5}
    settings = {"weight_options": common | {"init": "mse"}, "activation_options": common | {"init": "lsq+", "offset": True}}
    model = net()
    prepared(model, signed_activations=True, overrides={"conv": {"per_channel": False, "signed_activations": None}}, **settings)
    for name, layer in model.named_modules():
        if isinstance(layer, QUANTIZED):
            weight, source = layer.weight_quantizer, layer.input_quantizer
            assert (weight.init, source.init, source.offset is None, weight.offset) == ("mse", "lsq+", False, None)
            assert {q.boundary for q in (weight, source)} == {"closed"} and {q.grad_scale for q in (weight, source)} == {0.5}
            assert weight.axis == (None if name == "conv" else 0)
            assert weight.step.shape == ((1,) if name == "conv" else (layer.weight.shape[0],))
            assert source.decides_sign == (name == "conv") and source.axis is None and weight.initialized


def test_weight_steps_are_set_at_once_and_activations_by_the_first_batch():
    model = net()
    prepared(model)
    q = model.conv.weight_quantizer
    assert torch.equal(q.step, fastq.nn.initializers.initial_values(model.conv.weight, "lsq", -8, 7, axis=0)[0])
    assert not any(layer.input_quantizer.initialized for layer in model.modules() if isinstance(layer, QUANTIZED))
    model(drawn((2, 3, 8, 8)))
    assert all(layer.input_quantizer.initialized for layer in model.modules() if isinstance(layer, QUANTIZED))
    assert model.stem.input_quantizer.qmin < 0 and model.conv.input_quantizer.qmin == 0, "after a ReLU: unsigned"


def test_what_it_computes():
    model = net().eval()
    plain = copy.deepcopy(model)
    prepared(model, 2, 2)
    x = drawn((2, 3, 8, 8))
    model(x)
    for name in NAMES:
        layer, old = model.get_submodule(name), plain.get_submodule(name)
        old.weight = nn.Parameter(layer.weight_quantizer(old.weight).detach())
        old.register_forward_pre_hook(lambda m, a, q=layer.input_quantizer: (q(a[0]),))
    assert torch.equal(model(x), plain(x))


# --- the table ----------------------------------------------------------------------------------------------------------


def test_the_table():
    lines = str(prepared(net(), 4, 3, skip=("block.down",), overrides={"conv": {"per_channel": False}})).strip().splitlines()
    assert lines[0].split() == ["layer", "type", "weight", "granularity", "activation", "note"]
    rows = {line.split()[0]: line.split()[1:] for line in lines[2:]}
    assert rows == {
        "stem": "Conv2d 8 bit lsq per channel 8 bit lsq first layer".split(),
        "conv": "Conv2d 4 bit lsq per tensor 3 bit lsq override 'conv'".split(),
        "block.up": "Linear 4 bit lsq per channel 3 bit lsq".split(),
        "block.down": "Linear float float skipped".split(),
        "head": "Linear 8 bit lsq per channel 8 bit lsq last layer".split(),
    }


def test_the_table_names_layers_of_any_length():
    long = "a_module_of_a_generated_network_with_a_very_long_name_" * 4
    model = nn.Sequential()
    model.add_module(long, nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    model.add_module("block[0]", nn.Linear(2, 2))
    text = str(prepared(model))
    assert long + ".0" in text and long + ".1" in text and "block[0]" in text and "…" not in text


def test_ranges_in_the_table():
    assert "-1..1" in str(prepared(net(), (-1, 1), (0, 10))) and "0..10" in str(prepared(net(), (-1, 1), (0, 10)))


# --- errors, after which nothing has changed ----------------------------------------------------------------------------


def lazy():
    return nn.Sequential(nn.Linear(4, 4), nn.LazyLinear(4))


def weight_normed():
    return nn.Sequential(nn.Linear(4, 4), nn.utils.spectral_norm(nn.Linear(4, 4)))


def pruned():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    prune.random_unstructured(model[1], "weight", 0.5)
    return model


ERRORS = [
    (net, lsq(skip=("stem", "nothing*")), "skip pattern 'nothing\\*' matches no Linear, Conv1d or Conv2d layer"),
    (net, lsq(overrides={"stem": {}, "had": {"weight_bits": 2}}), "overrides pattern 'had' matches no Linear"),
    (net, lsq(overrides={"norm": {"weight_bits": 2}}), "overrides pattern 'norm' matches no Linear"),
    (net, lsq(skip=("block",)), "skip pattern 'block' matches no Linear"),
    (net, lsq(skip=("*",)), "has no Linear, Conv1d or Conv2d layer to quantize"),
    (lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm1d(3)), lsq(), "has no Linear, Conv1d or Conv2d layer to quantize"),
    (lazy, lsq(), "layer '1' is lazy and not initialised; run a batch"),
    (weight_normed, lsq(), "layer '1': QuantLinear: weight must be a parameter, but a hook computes it"),
    (pruned, lsq(), "layer '1': QuantLinear: weight must be a parameter, but a hook computes it"),
    (
        net, lsq(overrides={"block.*": {"activation_bits": 1}, "block.up": {"signed_activations": True}}),
        "prepare: layer 'block.up': .*activation_bits.*1 bit must be signed=False",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("make", "recipe", "message"), ERRORS)
def test_errors_leave_the_model_alone(make, recipe, message):
    model = make()
    before = list(model.named_modules())
    with pytest.raises(ValueError, match="prepare: .*" + message.removeprefix("prepare: ")):
        fastq.prepare(model, recipe)
    after = list(model.named_modules())
    assert [name for name, _ in before] == [name for name, _ in after]
    assert all(a is b for (_, a), (_, b) in zip(before, after, strict=True))


def test_prepared_already():
    model = net()
    prepared(model)
    with pytest.raises(ValueError, match=r"prepare: the model is prepared already \(stem\.\w+_quantizer is a quantizer\)"):
        fastq.prepare(model, lsq())
    with pytest.raises(ValueError, match=r"prepare: the model is prepared already \(it is a quantizer\)"):
        fastq.prepare(LSQ(4), lsq())


@pytest.mark.parametrize(
    ("model", "recipe", "message"),
    [
        (lambda x: x, lsq(), "model must be a torch.nn.Module, got function"),
        (nn.Linear, lsq(), "model must be a torch.nn.Module, got type"),
        (nn.Linear(2, 2), "lsq", "recipe must be a fastq.recipes.Recipe such as fastq.recipes.lsq.., got str"),
        (nn.Linear(2, 2), lsq, "recipe must be a fastq.recipes.Recipe such as fastq.recipes.lsq.., got function"),
        (nn.Linear(2, 2), LayerRecipe(), "recipe must be a fastq.recipes.Recipe .*got LayerRecipe"),
    ],
)
def test_wrong_types(model, recipe, message):
    with pytest.raises(TypeError, match="prepare: " + message):
        fastq.prepare(model, recipe)


# --- odd models ---------------------------------------------------------------------------------------------------------


def test_a_model_that_is_a_layer():
    layer = nn.Linear(4, 3)
    preparation = fastq.prepare(layer, lsq(4, 4))
    assert type(preparation.model) is QuantLinear and preparation.model.weight is layer.weight and type(layer) is nn.Linear
    assert bits(preparation.model) == {"": (8, 8)} and "(model)" in str(preparation)
    assert preparation.model(drawn((2, 4))).shape == (2, 3)


def test_lazy_modules_after_a_batch():
    model = nn.Sequential(nn.LazyConv1d(4, 3), nn.Flatten(), nn.LazyLinear(2))
    model(drawn((2, 3, 8)))
    prepared(model)
    assert bits(model) == {"0": (8, 8), "2": (8, 8)}


def test_names_that_look_like_globs():
    model = nn.Sequential()
    for i in range(3):
        model.add_module(f"block[{i}]", nn.Linear(2, 2))
    prepared(model, first_last_bits=None, overrides={"block[1]": {"weight_bits": 2}}, skip=("block[2]",))
    assert bits(model) == {"block[0]": (4, 4), "block[1]": (2, 4), "block[2]": (None, None)}


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.body = nn.Sequential(self.first, nn.ReLU(), nn.Linear(4, 4))
        self.again = self.body
        self.alias = self.first

    def forward(self, x):
        return self.again(self.alias(x))


def test_a_shared_layer_appears_once_and_stays_shared():
    model = Shared()
    preparation = fastq.prepare(model, lsq())
    assert [layer.name for layer in preparation.layers] == ["first", "body.2"]
    assert type(model.first) is QuantLinear and model.first is model.alias is model.body[0] and model.again is model.body
    model(drawn((3, 4))).sum().backward()
    assert len({id(m) for m in model.modules() if isinstance(m, LSQ)}) == 4
    # it answers to each of its names
    for name in ("first", "body.0", "again.0", "alias"):
        model = Shared()
        fastq.prepare(model, lsq(overrides={name: {"weight_bits": 3}}))
        assert model.first.weight_quantizer.bits == 3 and model.body[2].weight_quantizer.bits == 8
        model = Shared()
        fastq.prepare(model, lsq(skip=(name,)))
        assert type(model.body[0]) is nn.Linear and model.body[0] is model.first


def test_a_shared_parameter_stays_shared():
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7, bias=False))
    model[2].weight = model[0].weight
    prepared(model)
    assert model[2].weight is model[0].weight and "0.weight" in dict(model.named_parameters())
    model(torch.arange(7)).square().sum().backward()
    assert model[0].weight.grad.any()


class MyLinear(nn.Linear):
    pass


def test_subclasses_are_left_and_said_so():
    model = nn.Sequential(nn.Linear(4, 4), MyLinear(4, 4), nn.Linear(4, 4))
    model.attention = nn.MultiheadAttention(4, 2)
    before = dict(model.named_modules())
    preparation = fastq.prepare(model, lsq())
    assert model[1] is before["1"] and model.attention.out_proj is before["attention.out_proj"]
    notes = {layer.name: layer.note for layer in preparation.layers}
    assert notes["1"] == notes["attention.out_proj"] == "a subclass, left as it is"
    assert notes["2"] == "last layer", "of those that are quantized"
    assert "MyLinear" in str(preparation) and "NonDynamicallyQuantizableLinear" in str(preparation)


def test_only_subclasses():
    with pytest.raises(ValueError, match="no Linear, Conv1d or Conv2d layer to quantize"):
        fastq.prepare(nn.Sequential(MyLinear(4, 4)), lsq())


def test_a_layer_inside_a_layer():
    """As adapters are often attached: both are quantized, and the outer one still finds the inner."""
    outer = nn.Linear(4, 4)
    outer.adapter = nn.Linear(4, 4)
    outer.register_forward_hook(lambda m, a, y: y + m.adapter(a[0]))
    model = nn.Sequential(outer, nn.Linear(4, 2))
    prepared(model, first_last_bits=None)
    assert type(model[0]) is QuantLinear and type(model[0].adapter) is QuantLinear
    model(drawn((2, 4))).sum().backward()
    assert model[0].adapter.weight_quantizer.step.grad is not None


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("norm_first", [False, True])
def test_transformers_quantize_in_eval_mode(norm_first, activation):
    """Torch's fast path would pass the quantizers by, without a word."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, activation=activation, batch_first=True, norm_first=norm_first)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first)
    x = drawn((3, 5, 16))
    plain = copy.deepcopy(model).eval()
    fastq.prepare(model, lsq(2, 2, first_last_bits=None))
    trained = model.train()(x)
    mask = torch.zeros(3, 5, dtype=torch.bool)
    mask[1, 3:] = True
    for other in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        calls = []
        other.eval()
        with torch.no_grad():
            y = other(x)  # before there are hooks, which close the fast path as well
            for module in other.modules():
                if isinstance(module, LSQ):
                    module.register_forward_hook(lambda *a, calls=calls: calls.append(1))
            assert torch.equal(other(x), y) and len(calls) == 8, "two linear layers in each of two layers, two quantizers in each"
            torch.testing.assert_close(y, trained, rtol=1e-4, atol=1e-4)  # attention in another order of its sums
            assert (y - plain(x)).abs().max() > 0.05
            assert other(x, src_key_padding_mask=mask).shape == x.shape and len(calls) == 16


def test_a_skipped_transformer_keeps_its_fast_path():
    model = nn.Sequential(nn.Linear(16, 16), nn.TransformerEncoderLayer(16, 2, 32, batch_first=True))
    fastq.prepare(model, lsq(skip=("1.*",)))
    assert model[1].activation_relu_or_gelu == 1


# --- an ordinary module -------------------------------------------------------------------------------------------------


def ready():
    model = net()
    prepared(model, 4, 4)
    model(drawn((4, 3, 8, 8)))
    return model


def test_state_dict_into_another_prepared_copy():
    model, x = ready().eval(), drawn((4, 3, 8, 8), seed=1)
    torch.manual_seed(5)
    other = Net()
    fastq.prepare(other, lsq(4, 4))
    assert other.load_state_dict(model.state_dict(), strict=True).missing_keys == []
    assert torch.equal(other.eval()(x), model(x))
    assert set(net().state_dict()) <= set(model.state_dict()), "the layers' own names are what they were"


@pytest.mark.parametrize("through", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies(through):
    model, x = ready().eval(), drawn((4, 3, 8, 8), seed=1)
    other = through(model)
    assert torch.equal(other(x), model(x)) and repr(other) == repr(model)
    assert not {id(p) for p in model.parameters()} & {id(p) for p in other.parameters()}
    other(x).sum().backward()
    assert all(p.grad is None for p in model.parameters())


def test_to_float64():
    model, x = ready().eval(), drawn((4, 3, 8, 8), seed=1)
    y = model(x).detach()
    model.to(torch.float64)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    double = model(x.double())
    # fp64 moves each sum by some ulp; a code at a tie may flip with it, so most, not all, stand as close as fp32 is
    close = (double - y).abs() < 1e-5
    assert double.dtype == torch.float64 and close.float().mean() > 0.8
    double.sum().backward()
    assert all(p.grad.dtype == torch.float64 for p in model.parameters())


def test_to_bfloat16():
    model = ready().to(torch.bfloat16)
    y = model(drawn((4, 3, 8, 8)).bfloat16())
    y.sum().backward()
    assert y.dtype == torch.bfloat16 and model.conv.weight.dtype == torch.bfloat16
    assert {q.step.dtype for q in model.modules() if isinstance(q, LSQ)} == {torch.float32}


def test_train_and_eval_reach_everything():
    model = net().eval()
    prepared(model)
    assert not any(m.training for m in model.modules())
    assert all(m.training for m in model.train().modules())
    model.requires_grad_(False)
    assert not any(p.requires_grad for p in model.parameters())


def test_hooks_stay_on_their_layers():
    model, calls = net(), []
    handle = model.conv.register_forward_hook(lambda m, a, y: calls.append(m))
    prepared(model)
    model(drawn((2, 3, 8, 8)))
    assert calls == [model.conv] and type(model.conv) is QuantConv2d
    handle.remove()
    model(drawn((2, 3, 8, 8)))
    assert len(calls) == 1


def test_compiles_whole_after_one_batch():
    model, x = ready().eval(), drawn((4, 3, 8, 8), seed=1)
    y = torch.compile(model, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(y, model(x), rtol=1e-5, atol=1e-5)


def test_an_optimizer_made_before_still_holds_the_weights():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(drawn((4, 3, 8, 8))).square().sum().backward()
    optimizer.step()
    state = {id(p): s["momentum_buffer"] for p, s in optimizer.state.items()}
    before = dict(model.named_parameters())
    prepared(model)
    after = dict(model.named_parameters())
    assert all(after[name] is before[name] for name in before)
    steps = [p for name, p in after.items() if name not in before]
    assert len(steps) == 10 and all(isinstance(p, nn.Parameter) and p.requires_grad for p in steps)
    optimizer.add_param_group({"params": steps})
    weight, step = model.conv.weight.detach().clone(), model.conv.weight_quantizer.step.detach().clone()
    optimizer.zero_grad()
    model(drawn((4, 3, 8, 8))).square().sum().backward()
    optimizer.step()
    assert not torch.equal(model.conv.weight, weight) and not torch.equal(model.conv.weight_quantizer.step, step)
    assert all(id(p) in state and optimizer.state[p]["momentum_buffer"] is state[id(p)] for p in before.values())


@pytest.mark.parametrize("seen", [False, True])
@pytest.mark.parametrize("average", [{}, {"multi_avg_fn": swa_utils.get_ema_multi_avg_fn(0.5)}])
def test_averaging_takes_the_buffers_too(average, seen):
    """Torch averages buffers by subtraction, which bool ones do not know."""
    model, x = net(), drawn((4, 3, 8, 8))
    prepared(model)
    if seen:
        model(x)
    averaged = swa_utils.AveragedModel(model, use_buffers=True, **average)
    for _ in range(3):
        model(x)
        model.eval()  # batch norm's own statistics stand still
        averaged.update_parameters(model)
    state = model.state_dict()
    for name, value in averaged.module.state_dict().items():
        if "quantizer" in name:
            assert torch.equal(value, state[name]), name  # the mean of equal numbers
    averaged.eval()(x)
    assert averaged.module.conv.input_quantizer.qmin == model.conv.input_quantizer.qmin == 0


@pytest.mark.parametrize("width", [4, 2])
def test_training_lowers_the_loss(width):
    """Ten classes of noisy points around their centres: chance is 2.3, and a quantized network learns them."""
    torch.manual_seed(0)
    centres = drawn((10, 16), seed=3)
    target = torch.arange(200) % 10
    x = centres[target] + 0.3 * drawn((200, 16), seed=4)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))
    prepared(model, width, width)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss = F.cross_entropy(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] > 1.5 and losses[-1] < 0.2, losses
    assert all(p.isfinite().all() for p in model.parameters())


def test_a_recipe_by_hand():
    model = net()
    preparation = fastq.prepare(model, Recipe("mine", LayerRecipe(2, None), first_last_bits=None, skip=["head"]))
    assert bits(model) == dict.fromkeys(NAMES[:-1], (2, None)) | {"head": (None, None)} == said(preparation)
