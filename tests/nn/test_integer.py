"""``forward="integer"``: the numbers of the converted layer in training, the gradients of the fake-quantized one."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from device import drawn
from functorch.compile import make_boxed_func
from quantizers import CONVOLUTIONS, INPUTS, WEIGHTS, WHOLE, product, trained
from torch import nn
from torch._dynamo.backends.common import aot_autograd

import fastq
from fastq.nn import LSQ, QUANTIZED, NoiseQuant, QuantConv2d, Quantizer, QuantLinear, SATWeight, Tempered

pytestmark = pytest.mark.usefixtures("one_thread")

EPSILON = torch.finfo(torch.float32).eps
NOISY = ("tempered", "noise")
LAYERS = {
    "linear": (lambda: nn.Linear(20, 6), (2, 3, 20)),
    "per group": (lambda: nn.Linear(48, 6), (5, 48)),
    **CONVOLUTIONS,
}
#: Each quantizer with one of the other side, each kind of layer with several of them.
WITH = [(w, s) for w, s in zip(WEIGHTS, itertools.cycle(("lsq", "lsq+", "pact two-sided", "qil", "ewgs")), strict=False)]
WITH += [(w, s) for s, w in zip(INPUTS, itertools.cycle(("lsq", "dsq", "pact two-sided", "lsq+", "sat round")), strict=False)]
WITH = [pair for pair in WITH if not {*pair} & {*NOISY}]
WITH = [(*pair, [*LAYERS][(2 * i + j) % len(LAYERS)]) for i, pair in enumerate(WITH) for j in (0, 3, 7)]


def layers(kind, weight, source, bits):
    """The same layer with ``forward`` "fake" and "integer", and an input for it."""
    torch.manual_seed(0)
    make, shape = LAYERS[kind]
    layer, x = make(), drawn(shape) * 0.8 + 0.3  # most of it positive: one-sided quantizers have something to do
    channels, grain = layer.weight.shape[0], {}
    if weight not in WHOLE:
        grain = {"group_size": 16, "shape": (channels, 3)} if kind == "per group" else {"axis": 0, "shape": (channels,)}
    fake = QUANTIZED[type(layer)].from_float(
        layer, weight_quantizer=WEIGHTS[weight](bits, **grain), input_quantizer=INPUTS[source](bits)
    )
    trained(fake.weight_quantizer, fake.weight)
    trained(fake.input_quantizer, x)
    integer = copy.deepcopy(fake)
    integer.forward_kind = "integer"
    return fake, integer, x


def run(layer, x, g=None):
    """Output, and the gradients of the input and all parameters for that of the output."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    for p in layer.parameters():
        p.grad = None
    y = layer(x)
    y.backward(torch.ones_like(y) if g is None else g)
    return y.detach(), [x.grad, *(p.grad for p in layer.parameters())]


def close(fake, integer):
    """Gradients alike: QIL and EWGS give their numbers to an ulp or two, and products of them differ by that."""
    for a, b in zip(fake, integer, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.dtype == b.dtype and a.shape == b.shape
        if a is not None and a.numel():
            assert float((a - b).abs().max()) <= 64 * EPSILON * max(float(a.abs().max()), 1.0)


@pytest.mark.parametrize(("weight", "source", "kind"), WITH)
def test_the_converted_layers_numbers_and_the_fake_ones_gradients(weight, source, kind):
    if kind == "per group" and {weight, source} & {*WHOLE, "lsq+", "dsq", "pact two-sided", "pact by first batch", "ewgs"}:
        kind = "linear"
    for bits in (2, 8):
        fake, integer, x = layers(kind, weight, source, bits)
        y, expected = integer(x), fake(x)
        assert torch.equal(y, fastq.convert(integer)(x)) and torch.equal(y, fastq.convert(fake)(x))
        assert y.shape == expected.shape and y.stride() == expected.stride() and y.dtype == expected.dtype
        # the fake layer rounds each product and sum, the integer one a handful of terms: both on these magnitudes
        with torch.no_grad():
            x_hat, w_hat = fake.input_quantizer(x), fake.weight_quantizer(fake.weight)
            ends = [0.0 if o is None else float(o.abs().max()) for o in (fake.input_quantizer.grid().offset,)]
            ends += [0.0 if (o := fake.weight_quantizer.grid(fake.weight).offset) is None else float(o.abs().max())]
            magnitude = product(fake, x_hat.abs() + ends[0], w_hat.abs() + ends[1], None if fake.bias is None else fake.bias.abs())
        assert bool(((y - expected).abs() <= (fake.weight[0].numel() + 24) * EPSILON * magnitude).all())
        g = drawn(y.shape, 3)
        (_, of_fake), (again, of_integer) = run(fake, x, g), run(integer, x, g)
        assert torch.equal(again, y)
        close(of_fake, of_integer)
        # in training mode as well: there a channel error's step moves, and so it does in both
        fake.train(), integer.train()
        (_, of_fake), (in_training, of_integer) = run(fake, x, g), run(integer, x, g)
        assert torch.equal(in_training, y)
        close(of_fake, of_integer)
        assert all(torch.equal(a, b) for a, b in zip(fake.buffers(), integer.buffers(), strict=True))


@pytest.mark.parametrize("range_", [(-200, 50), (-128, 127), (0, 255), (-1, 254)])
@pytest.mark.parametrize("kind", ["linear", "padded"])
def test_any_range_of_256_codes(kind, range_):
    torch.manual_seed(0)
    make, shape = LAYERS[kind]
    layer, x = make(), drawn(shape)
    how = {"weight_quantizer": LSQ(range_), "input_quantizer": LSQ(range_)}
    fake = QUANTIZED[type(layer)].from_float(layer, **how)
    fake(x)
    with torch.no_grad():
        for q in (fake.weight_quantizer, fake.input_quantizer):
            q.step.div_(20)  # so that the ends are reached
    integer = copy.deepcopy(fake)
    integer.forward_kind = "integer"
    assert torch.equal(integer(x), fastq.convert(fake)(x))
    close(run(fake, x)[1], run(integer, x)[1])
    torch.testing.assert_close(integer(x), fake(x), rtol=1e-4, atol=1e-4)


# --- as part of a network ---------------------------------------------------------------------------------------------------


class Network(nn.Module):
    """A residual block with batch norm on images, a convolution over sequences of them and a classifier."""

    def __init__(self):
        super().__init__()
        self.first, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.second, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False), nn.BatchNorm2d(8, affine=False)
        self.third = nn.Conv1d(8, 6, 3, stride=2)
        self.fourth, self.bn4, self.fifth = nn.Linear(6, 16, bias=False), nn.BatchNorm1d(16), nn.Linear(16, 5)

    def forward(self, x):
        x = F.relu(self.bn1(self.first(x)))
        x = F.relu(self.bn2(self.second(x)) + x)
        x = F.relu(self.third(x.flatten(2)))
        return self.fifth(F.gelu(self.bn4(self.fourth(x.mean(2)))))


def network(recipe, forward="integer", seed=0, **keywords):
    torch.manual_seed(seed)
    model = Network()
    prepared = fastq.prepare(model, recipe, forward=forward, **keywords)
    return prepared


def train(model, steps=3):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for seed in range(steps):
        optimizer.zero_grad()
        y = model.train()(images(seed))
        F.cross_entropy(y, torch.arange(6, device=y.device) % 5).backward()
        optimizer.step()
    return model


def images(seed=0, batch=6):
    return drawn((batch, 3, 6, 5), seed)


def recorded(model, x):
    """The output, and what goes into each layer."""
    kept = {}
    hooks = [
        m.register_forward_pre_hook(lambda m, given, name=name: kept.__setitem__(name, given[0].detach().clone()))
        for name, m in model.named_modules()
        if name in ("first", "second", "third", "fourth", "fifth")
    ]
    with torch.no_grad():
        y = model(x)
    for hook in hooks:
        hook.remove()
    return y, kept


RECIPES = {
    "lsq W8A8": lambda: fastq.recipes.lsq(weight_bits=8, activation_bits=8),
    "lsq W4A4": lambda: fastq.recipes.lsq(weight_bits=4, activation_bits=4),
    "lsq W2A2 per tensor": lambda: fastq.recipes.lsq(weight_bits=2, activation_bits=2, per_channel=False),
    "lsq+ W3A3": lambda: fastq.recipes.lsq_plus(weight_bits=3, activation_bits=3),
    "pact": lambda: fastq.recipes.pact(weight_bits=4, activation_bits=4),
    "qil": lambda: fastq.recipes.qil(weight_bits=3, activation_bits=3),
    "ewgs": lambda: fastq.recipes.ewgs(weight_bits=4, activation_bits=4),
    "dsq": lambda: fastq.recipes.dsq(weight_bits=4, activation_bits=4),
    "oscillation": lambda: fastq.recipes.oscillation_freeze(weight_bits=3, activation_bits=3),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_trained_network_and_its_converted_form_agree_to_the_last_bit(name):
    """Codes that flip between the two, which the rounding of fp32 products otherwise causes, there are none."""
    model = train(network(RECIPES[name]()).model).eval()
    converted, x = fastq.convert(model), images(9, 11)
    y, inputs = recorded(model, x)
    report = fastq.deploy.compare(model, converted, x)
    assert report.flips == 0 and report.codes > 0 and report.largest_logit_difference == 0
    with torch.no_grad():
        assert torch.equal(y, converted(x))
    for layer, given in recorded(converted, x)[1].items():  # of the layers that are called on floating point there as well
        if given.is_floating_point():
            assert torch.equal(given, inputs[layer])


def test_training_takes_the_course_of_fake_quantization():
    """Outputs differ in their last bits, so losses and parameters do: by no more than fp32 explains over a few steps."""
    recipe = RECIPES["lsq W8A8"]
    models = [train(network(recipe(), forward).model, steps=4) for forward in ("fake", "integer")]
    for (name, a), b in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert float((a - b).detach().abs().max()) < 1e-3 * max(float(a.detach().abs().max()), 0.1), name


def test_weights_in_one_call_are_the_weights_one_by_one():
    recipe = RECIPES["lsq W4A4"]
    together, apart = (train(network(recipe(), group_weights=g).model) for g in (True, False))
    for a, b in zip(together.parameters(), apart.parameters(), strict=True):
        assert torch.equal(a, b)


def test_checkpointing_gives_the_same_gradients():
    model = train(network(RECIPES["lsq+ W3A3"]()).model)
    x = images(4)

    def gradients(call):
        copied = copy.deepcopy(model)
        call(copied).square().sum().backward()
        return [p.grad for p in copied.parameters()]

    plain = gradients(lambda m: m(x))
    again = gradients(lambda m: torch.utils.checkpoint.checkpoint(m, x, use_reentrant=False))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_one_graph_for_every_size_of_a_batch():
    """Traced whole, forward and backward, with the number of images open; the tracer's graph gives the same bits."""
    torch.manual_seed(0)
    made = {"weight_quantizer": LSQ(4, axis=0, shape=(6,)), "input_quantizer": LSQ(4), "forward": "integer"}
    model = nn.Sequential(
        QuantConv2d(3, 6, 3, padding=1, **made), nn.Flatten(),
        QuantLinear(180, 5, weight_quantizer=LSQ(3), input_quantizer=LSQ(4, offset=True), forward="integer"),
    )  # fmt: skip
    model(images())
    traced, graphs = copy.deepcopy(model), []

    def backend(graph, inputs):
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    torch._dynamo.reset()
    compiled = torch.compile(traced, fullgraph=True, dynamic=True, backend=aot_autograd(fw_compiler=backend, bw_compiler=backend))
    for batch in (7, 4, 9):
        for m, call in ((model, model), (traced, compiled)):
            m.zero_grad()
            call(images(batch, batch)).square().sum().backward()
        assert all(torch.equal(a.grad, b.grad) for a, b in zip(model.parameters(), traced.parameters(), strict=True))
    assert len(graphs) == 2


def test_curvature_is_looked_at_in_floating_point():
    """EWGS's deltas come of second derivatives, which a product of integers does not have."""
    fake = network(RECIPES["ewgs"](), "fake").model
    fake(images())
    integer = copy.deepcopy(fake).eval()
    for layer in (integer.first, integer.second, integer.third, integer.fourth, integer.fifth):
        layer.forward_kind = "integer"
    found = []
    for model in (fake.eval(), integer):
        generator = torch.Generator(images().device).manual_seed(0)
        given = {"probes": 3, "generator": generator}
        found.append(fastq.nn.set_hessian_deltas(model, [images(1)], lambda m, x: m(x).square().sum(), **given))
    assert found[0] == found[1] and any(found[0].values())
    assert not torch.equal(fake(images(1)), integer(images(1)))


@pytest.mark.parametrize("kind", ["linear", "conv2d", "conv1d"])
def test_autocast(kind):
    """The output is the float32 one rounded once; gradients are computed in bfloat16, as a fake-quantized layer's are."""
    fake, integer, x = layers(kind, "lsq", "lsq", 4)
    y = integer(x)
    with torch.autocast(x.device.type, torch.bfloat16):
        low, of_integer = run(integer, x)
        expected, of_fake = run(fake, x)
    assert low.dtype == expected.dtype == torch.bfloat16
    assert torch.equal(low, y.to(torch.bfloat16))
    for a, b in zip(of_fake, of_integer, strict=True):
        assert a.dtype == b.dtype
        assert float((a - b).abs().max()) <= 2**-6 * max(float(a.abs().max()), 1.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_model(dtype):
    fake, integer, x = layers("conv2d", "lsq", "lsq+", 8)
    fake, integer, x = fake.to(dtype), integer.to(dtype), x.to(dtype)
    (y, of_integer), (expected, of_fake) = run(integer, x), run(fake, x)
    assert y.dtype == dtype and torch.equal(y, fastq.convert(integer)(x))
    assert float((y - expected).abs().max()) <= 2**-6 * float(expected.abs().max())
    assert [a.dtype for a in of_integer] == [a.dtype for a in of_fake]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_network_has_the_bits_of_its_layers_apart(dtype):
    """Fused, a layer makes the next one's codes of its float32 number, which training rounds to ``dtype`` first."""
    model, x = network(RECIPES["pact"]()).model.to(dtype).eval(), images(5).to(dtype)
    model(x)  # the first batch
    apart = fastq.convert(model, fuse=False)
    with torch.no_grad():
        y = model(x)
        assert y.dtype == dtype and torch.equal(y, apart(x))
    assert fastq.deploy.compare(model, apart, x).flips == 0


def test_channels_last_stays():
    fake, integer, x = layers("padded", "lsq", "lsq", 4)
    x = x.contiguous(memory_format=torch.channels_last)
    y = integer(x)
    assert y.is_contiguous(memory_format=torch.channels_last) and torch.equal(y, integer(x.contiguous()))
    assert y.stride() == fake(x).stride()


def saved(layer, x):
    """Bytes of what a layer keeps for the backward pass, once each, parameters and its input aside."""
    known = {t.untyped_storage().data_ptr() for t in (x, *layer.parameters(), *layer.buffers())}
    kept = {}

    def pack(t):
        if t.untyped_storage().data_ptr() not in known:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes(), t
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = layer(x)
    return sum(n for n, _ in kept.values()), y


def test_a_byte_is_kept_for_each_activation_and_weight():
    x = drawn((16, 64, 9, 9)).requires_grad_()
    torch.manual_seed(0)
    fake = QuantConv2d(64, 64, 3, weight_quantizer=LSQ(4, axis=0, shape=(64,)), input_quantizer=LSQ(4))
    fake(x)
    integer = copy.deepcopy(fake)
    integer.forward_kind = "integer"
    small = 4 * 1024  # steps and the like
    elements = x.numel() + fake.weight.numel()
    assert 4 * elements <= saved(fake, x)[0] <= 4 * elements + small
    assert elements <= saved(integer, x)[0] <= elements + small


def test_hooks_of_quantizers_see_what_they_see_in_the_fake_layer():
    fake, integer, x = layers("linear", "lsq", "lsq+", 4)
    seen = []
    for layer in (fake, integer):
        for q in (layer.input_quantizer, layer.weight_quantizer):
            q.register_forward_hook(lambda module, given, y: seen.append(y.detach().clone()))
    fake(x), integer(x)
    assert len(seen) == 4 and torch.equal(seen[0], seen[2]) and torch.equal(seen[1], seen[3])


def test_a_frozen_weight_gets_no_gradient():
    fake, integer, x = layers("conv2d", "lsq", "lsq", 4)
    for layer in (fake, integer):
        layer.weight.requires_grad_(False)
    (_, a), (_, b) = run(fake, x), run(integer, x)
    assert b[1] is None
    close(a, b)
    with torch.no_grad():
        assert not integer(x).requires_grad


def test_nan_reaches_the_output_or_a_gradient():
    """Integers have no NaN: that of a weight is its row's, that of an input is found in the gradient of the step."""
    _, integer, x = layers("linear", "lsq", "lsq", 4)
    broken = copy.deepcopy(integer)
    with torch.no_grad():
        broken.weight[2, 3] = float("nan")
    y = broken(x)
    assert bool(y[..., 2].isnan().all()) and not bool(y[..., :2].isnan().any())
    x = x.clone()
    x[0, 0, 0] = float("nan")
    run(integer, x)
    assert bool(integer.input_quantizer.step.grad.isnan().all())


def test_a_phase_of_full_precision_is_that_of_the_fake_layer():
    fake, integer, x = layers("conv2d", "lsq", "lsq", 4)
    for layer in (fake, integer):
        layer.input_quantizer.enabled = False
    assert torch.equal(integer(x), fake(x))
    pretrained = QuantLinear(20, 6, weight_quantizer=SATWeight(None), input_quantizer=INPUTS["pact"](4), forward="integer")
    x = drawn((5, 20))
    floating = F.linear(pretrained.input_quantizer(x), pretrained.weight_quantizer(pretrained.weight), pretrained.bias)
    assert torch.equal(pretrained(x), floating)
    pretrained.weight_quantizer.set_bits(4)
    assert not torch.equal(pretrained(x), floating)


def test_a_second_backward_pass_is_refused():
    _, integer, x = layers("linear", "lsq", "lsq", 4)
    x.requires_grad_()
    (g,) = torch.autograd.grad(integer(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not defined"):
        g.sum().backward()


@pytest.mark.parametrize("rows", [0, 1])
def test_empty_and_single_batches(rows):
    for kind in ("linear", "conv2d", "conv1d"):
        fake, integer, x = layers(kind, "lsq", "lsq+", 4)
        (a, of_fake), (b, of_integer) = run(fake, x[:rows]), run(integer, x[:rows])
        assert a.shape == b.shape
        close(of_fake, of_integer)


@pytest.mark.parametrize("source", ["lsq", "qil"])
@pytest.mark.parametrize("x", [torch.zeros(0, 5), torch.zeros(0, 3, 4, 4)], ids=["linear", "conv2d"])
def test_an_empty_first_batch_leaves_the_second_to_set_the_steps(x, source):
    def layer(forward):
        torch.manual_seed(0)
        quantizers = {"weight_quantizer": LSQ(4), "input_quantizer": INPUTS[source](4), "forward": forward}
        return QuantLinear(5, 4, **quantizers) if x.dim() == 2 else QuantConv2d(3, 4, 3, **quantizers)

    integer, fake = layer("integer"), layer("fake")
    y = integer(x)
    assert y.shape == fake(x).shape and not integer.input_quantizer.initialized
    y.sum().backward()
    full = drawn((6, *x.shape[1:]))
    assert torch.allclose(integer(full), fake(full), atol=1e-5) and integer.input_quantizer.initialized


def test_layers_without_elements():
    for inputs, outputs in ((5, 0), (0, 3)):
        layer = QuantLinear(inputs, outputs, weight_quantizer=LSQ(4), input_quantizer=LSQ(4), forward="integer")
        assert layer(drawn((2, inputs))).shape == (2, outputs)


def test_meta_tensors_have_shapes():
    layer, _, x = layers("linear", "lsq", "lsq", 4)
    layer.forward_kind = "integer"
    assert layer.to("meta")(x.to("meta")).shape == (2, 3, 6)


# --- what cannot be ---------------------------------------------------------------------------------------------------------


class Plain(Quantizer):
    """A quantizer without codes."""

    bits = 4

    def forward(self, x):
        return x


def test_refusals_at_construction():
    weight, source = LSQ(4, axis=0, shape=(6,)), LSQ(4)
    with pytest.raises(ValueError, match="QuantLinear: forward must be 'fake' or 'integer', got 'int8'"):
        QuantLinear(8, 6, weight_quantizer=weight, input_quantizer=source, forward="int8")
    with pytest.raises(ValueError, match="forward='integer' multiplies codes, and input_quantizer is None; use forward='fake'"):
        QuantLinear(8, 6, weight_quantizer=weight, forward="integer")
    for noisy in (NoiseQuant(4), Tempered(4)):
        with pytest.raises(ValueError, match=f"input_quantizer, {type(noisy).__name__}, adds noise in training"):
            QuantLinear(8, 6, weight_quantizer=weight, input_quantizer=noisy, forward="integer")
    with pytest.raises(ValueError, match="forward='integer' needs codes, and weight_quantizer, Plain, has none"):
        QuantLinear(8, 6, weight_quantizer=Plain(), input_quantizer=source, forward="integer")


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (lambda **q: QuantLinear(8, 6, weight_quantizer=LSQ(4), input_quantizer=LSQ(4, axis=1, shape=(8,)), **q), "one step per t"),
        (lambda **q: QuantLinear(8, 6, weight_quantizer=LSQ(4, axis=1, shape=(8,)), input_quantizer=LSQ(4), **q), "needs axis 0"),
        (
            lambda **q: QuantLinear(8, 6, weight_quantizer=LSQ(4, group_size=4, shape=(6, 2)), input_quantizer=LSQ(4), **q),
            "groups of multiples of 16 in linear layers alone, got group_size=4",
        ),
        (
            lambda **q: QuantLinear(
                8, 6, weight_quantizer=LSQ(4), input_quantizer=LSQ((-300, 300)), **q
            ),
            "codes from -300 to 300 do not fit",
        ),
        (
            lambda **q: QuantLinear(
                32, 6, weight_quantizer=LSQ(4, group_size=16, shape=(6, 2)), input_quantizer=LSQ(4, offset=True), **q
            ),
            "no groups where an input or weight has an offset",
        ),
    ],
)  # fmt: skip
def test_refusals_at_the_first_batch(layer, message):
    layer = layer(forward="integer")
    with pytest.raises(ValueError, match=message):
        layer(drawn((3, layer.in_features)))


def test_bad_inputs_are_named():
    _, linear, _ = layers("linear", "lsq", "lsq", 4)
    _, conv, _ = layers("conv2d", "lsq", "lsq", 4)
    with pytest.raises(ValueError, match=r"QuantLinear: input must be \(..., 20\), got \(3, 21\)"):
        linear(drawn((3, 21)))
    with pytest.raises(ValueError, match=r"QuantConv2d: input must be \(B, C, H, W\) with C = 3"):
        conv(drawn((2, 4, 5, 5)))
    with pytest.raises(ValueError, match=r"the kernel \(3, 3\) at dilation \(1, 1\) exceeds the padded \(1, 3, 2, 5\)"):
        conv(drawn((1, 3, 2, 5)))
    with pytest.raises(TypeError, match=r"forward='integer' takes float32, bfloat16 or float16, got torch\.float64"):
        linear(drawn((3, 20)).double())
    long = QuantLinear(140000, 1, weight_quantizer=LSQ(8), input_quantizer=LSQ(8), forward="integer")
    with pytest.raises(ValueError, match="140000 products of up to 16384 could overflow the int32 accumulator"):
        long(drawn((1, 140000)))


# --- prepare and batch norm -------------------------------------------------------------------------------------------------


def test_prepare_says_which_layers_multiply_integers():
    recipe = fastq.recipes.lsq(weight_bits=4, activation_bits=4, overrides={"third": {"activation_bits": None}})
    prepared = network(recipe)
    notes = {layer.name: layer.note for layer in prepared.layers}
    assert notes["second"] == "integer" and notes["first"] == "first layer, integer" and notes["third"].endswith("fake")
    assert prepared.model.second.forward_kind == "integer" and prepared.model.third.forward_kind == "fake"
    assert "forward='integer'" in repr(prepared.model.second) and "forward" not in repr(prepared.model.third)
    assert [type(m).__name__ for m in (prepared.model.bn1, prepared.model.bn4)] == ["BatchNorm2d", "BatchNorm1d"]
    assert all(type(m).__module__ == "fastq.nn.batch_norm" for m in (prepared.model.bn1, prepared.model.bn2, prepared.model.bn4))
    fake = network(recipe, "fake")
    assert type(fake.model.bn1) is nn.BatchNorm2d and "integer" not in str(fake)
    assert list(fake.model.state_dict()) == list(prepared.model.state_dict())


def test_prepare_refuses():
    with pytest.raises(ValueError, match="prepare: forward must be 'fake' or 'integer', got 1"):
        network(RECIPES["lsq W4A4"](), 1)
    with pytest.raises(ValueError, match=r"prepare: layer '[a-z]+': .*adds noise in training"):
        network(fastq.recipes.noise_tempering(weight_bits=4, activation_bits=4))
    with pytest.raises(ValueError, match=r"prepare: layer '[a-z]+': forward='integer' needs evenly spaced levels"):
        network(fastq.recipes.direct(weight_bits=4, activation_bits=4))
