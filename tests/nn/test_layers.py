"""Quantized layers: torch's own functions of the quantized tensors, and everything else of the layer they came from."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from device import drawn
from torch import nn
from torch.nn.utils import prune

import fastq
from fastq.nn import LSQ, QUANTIZED, QuantConv1d, QuantConv2d, QuantLinear

LAYERS = {
    "linear": (lambda **k: nn.Linear(8, 6, **k), (5, 8)),
    "conv1d": (lambda **k: nn.Conv1d(4, 6, 3, **k), (2, 4, 9)),
    "conv2d": (lambda **k: nn.Conv2d(4, 6, 3, **k), (2, 4, 9, 7)),
}


pytestmark = pytest.mark.usefixtures("one_thread")


def quantizers(layer, weight=True, input=True):
    return {
        "weight_quantizer": LSQ(3, axis=0, shape=(layer.weight.shape[0],)) if weight else None,
        "input_quantizer": LSQ(2, signed=None, offset=True) if input else None,
    }


def quantized(layer, **which):
    return QUANTIZED[type(layer)].from_float(layer, **quantizers(layer, **which))


def made(kind, **keywords):
    torch.manual_seed(0)
    make, shape = LAYERS[kind]
    return make(**keywords), drawn(shape)


# --- what they compute --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("weight", [True, False])
@pytest.mark.parametrize("input", [True, False])
@pytest.mark.parametrize("kind", LAYERS)
def test_output_is_torchs_of_the_quantized_tensors(kind, input, weight, bias):
    layer, x = made(kind, bias=bias)
    new = quantized(layer, weight=weight, input=input)
    function = {"linear": F.linear, "conv1d": F.conv1d, "conv2d": F.conv2d}[kind]
    y = new(x)
    s = new.input_quantizer
    q_x = fastq.lsq(x, s.step, bits=2, offset=s.offset) if input else x
    q_w = fastq.lsq(layer.weight, new.weight_quantizer.step, bits=3, axis=0) if weight else layer.weight
    assert torch.equal(y, function(q_x, q_w, layer.bias))
    assert torch.equal(y, layer(x)) == (not weight and not input)
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in new.parameters())
    # a None quantizer is no module and no parameter
    assert len(list(new.children())) == weight + input
    assert len(list(new.parameters())) == 1 + bias + weight + 2 * input


GEOMETRY = [
    {"padding": 1},
    {"padding": 2, "stride": 2},
    {"padding": "same", "dilation": 2},
    {"padding": "valid", "stride": 3},
    {"padding": "same", "padding_mode": "reflect"},
    {"padding": 1, "padding_mode": "circular", "stride": 2},
    {"padding": 2, "padding_mode": "replicate", "groups": 2},
    {"groups": 2, "dilation": 2, "padding": 1},
    {"padding": 1, "groups": 2, "bias": False, "stride": 2},
]
ONLY_2D = [
    {"kernel_size": (3, 1), "stride": (2, 1), "padding": (1, 0)},
    {"kernel_size": (2, 3), "padding": "same", "dilation": (1, 2)},
    {"kernel_size": 1},
    {"kernel_size": (1, 3), "padding": (0, 1), "padding_mode": "circular", "groups": 4, "out_channels": 8},
]


@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("cls", [nn.Conv1d, nn.Conv2d])
@pytest.mark.parametrize("geometry", [*GEOMETRY, *ONLY_2D], ids=str)
def test_every_convolution(geometry, cls, offset):
    if cls is nn.Conv1d and geometry in ONLY_2D:
        geometry = {k: v[-1] if isinstance(v, tuple) else v for k, v in geometry.items()}
    torch.manual_seed(1)
    layer = cls(**{"in_channels": 4, "out_channels": 6, "kernel_size": 3, **geometry})
    x = drawn((2, 4, 9) if cls is nn.Conv1d else (2, 4, 9, 7))
    new = quantized(layer)
    y = new(x)
    # the layer itself, given quantized tensors
    plain = copy.deepcopy(layer)
    with torch.no_grad():
        plain.weight.copy_(new.weight_quantizer(layer.weight))
        assert torch.equal(y, plain(new.input_quantizer(x)))
    # and the same convolution without the module's help
    padded, padding = new.input_quantizer(x), layer.padding
    if layer.padding_mode != "zeros":
        padded, padding = F.pad(padded, layer._reversed_padding_repeated_twice, mode=layer.padding_mode), 0
    function = F.conv1d if cls is nn.Conv1d else F.conv2d
    expected = function(padded, plain.weight, layer.bias, layer.stride, padding, layer.dilation, layer.groups)
    assert torch.equal(y, expected)
    y.sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.any()


def test_zeros_that_pad_are_zeros_and_not_codes():
    """Padding comes after quantization: a padded 0 stays 0 where the offset makes it no value of the grid."""
    layer = nn.Conv1d(1, 1, 3, padding=1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(1)
    new = QuantConv1d.from_float(layer, weight_quantizer=None, input_quantizer=LSQ(2, offset=True, init="lsq+"))
    x = torch.tensor([[[5.0, 6.0, 7.0, 8.0]]])
    torch.testing.assert_close(new(x), torch.tensor([[[11.0, 18.0, 21.0, 15.0]]]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", LAYERS)
def test_made_by_hand(kind):
    """The constructors are torch's with two more arguments; without them they are torch's layers."""
    cls = {"linear": QuantLinear, "conv1d": QuantConv1d, "conv2d": QuantConv2d}[kind]
    arguments = (8, 6) if kind == "linear" else (4, 6, 3)
    torch.manual_seed(0)
    plain = cls._float(*arguments, bias=False)
    torch.manual_seed(0)
    new = cls(*arguments, bias=False)
    x = drawn(LAYERS[kind][1])
    assert torch.equal(new(x), plain(x)) and new.weight_quantizer is None and new.input_quantizer is None
    torch.manual_seed(0)
    new = cls(*arguments, bias=False, weight_quantizer=LSQ(4), input_quantizer=LSQ(8))
    assert new.weight_quantizer.initialized and not new.input_quantizer.initialized
    assert torch.equal(new.weight, plain.weight)
    new(x)
    # a quantizer can also be given, or taken away, later
    new.weight_quantizer = new.input_quantizer = None
    assert torch.equal(new(x), plain(x)) and list(new.children()) == []


@pytest.mark.parametrize("kind", LAYERS)
def test_unbatched_input(kind):
    layer, x = made(kind)
    new = quantized(layer)
    assert torch.equal(new(x)[0], new(x[0])) or torch.allclose(new(x)[0], new(x[0]), rtol=1e-5, atol=1e-5)  # blas blocks rows


# --- from_float ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", LAYERS)
def test_from_float_keeps_the_layer(kind, bias, training):
    layer, x = made(kind, bias=bias)
    layer.train(training)
    layer.weight.requires_grad_(False)
    random = torch.get_rng_state()
    new = quantized(layer)
    assert torch.equal(torch.get_rng_state(), random)
    assert new.weight is layer.weight and new.bias is layer.bias and not new.weight.requires_grad
    assert all(module.training == training for module in new.modules())
    assert new.weight_quantizer.initialized and not new.input_quantizer.initialized
    assert type(layer) in (nn.Linear, nn.Conv1d, nn.Conv2d) and not list(layer.children()), "the one given is as it was"
    assert repr(new).startswith(type(new).__name__ + "(") and layer.extra_repr() in repr(new)
    new(x)
    assert set(layer.state_dict()) == {"weight", "bias"} - set(() if bias else ["bias"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", LAYERS)
def test_dtypes(kind, dtype):
    layer, x = made(kind)
    new = quantized(layer.to(dtype))
    y = new(x.to(dtype))
    assert y.dtype == dtype and new.weight.dtype == dtype and new.weight_quantizer.step.dtype == torch.float32
    y.sum().backward()
    assert new.weight.grad.dtype == dtype and new.weight_quantizer.step.grad.dtype == torch.float32


def test_hooks_stay_and_can_be_removed():
    layer, x = made("linear")
    calls = []
    handles = [
        layer.register_forward_pre_hook(lambda m, a: calls.append(("pre", m))),
        layer.register_forward_pre_hook(lambda m, a, k: calls.append(("pre keywords", m)), with_kwargs=True),
        layer.register_forward_hook(lambda m, a, y: calls.append(("forward", m))),
        layer.register_forward_hook(lambda m, a, k, y: calls.append(("forward keywords", m)), with_kwargs=True),
        layer.register_full_backward_pre_hook(lambda m, g: calls.append(("backward pre", m))),
        layer.register_full_backward_hook(lambda m, i, o: calls.append(("backward", m))),
        layer.register_state_dict_pre_hook(lambda m, prefix, keep: calls.append(("state pre", m))),
        layer.register_state_dict_post_hook(lambda m, state, prefix, local: calls.append(("state", m))),
        layer.register_load_state_dict_pre_hook(lambda m, *a: calls.append(("load pre", m))),
        layer.register_load_state_dict_post_hook(lambda m, keys: calls.append(("load", m))),
    ]
    new = quantized(layer)
    del layer

    def use():
        calls.clear()
        new(x.requires_grad_()).sum().backward()
        new.load_state_dict(new.state_dict())
        return list(calls)

    expected = ["pre", "pre keywords", "forward", "forward keywords", "backward pre", "backward"]
    expected += ["state pre", "state", "load pre", "load"]
    assert [name for name, _ in use()] == expected and all(module is new for _, module in use())
    for handle in handles:
        handle.remove()
    assert [name for name, _ in use()] == ["load pre"], "torch ties this one to the layer it was registered on"


def test_what_users_attached_stays():
    """A hook finds on its layer what it found there before."""
    layer, x = made("linear")
    layer.note = "mine"
    layer.register_buffer("gain", torch.tensor(2.0))
    layer.register_buffer("passing", torch.tensor(3.0), persistent=False)
    layer.register_parameter("extra", nn.Parameter(torch.ones(6)))
    layer.adapter = nn.Linear(8, 6, bias=False)
    layer.register_forward_hook(lambda m, a, y: y * m.gain * m.passing + m.adapter(a[0]) + m.extra)
    new = quantized(layer)
    q = F.linear(new.input_quantizer(x), new.weight_quantizer(new.weight), new.bias)
    assert torch.equal(new(x), q * 2 * 3 + layer.adapter(x) + layer.extra)
    assert new.note == "mine" and new.adapter is layer.adapter and new.extra is layer.extra
    own = {"weight", "bias", "gain", "extra", "adapter.weight"}
    assert own <= set(new.state_dict()) and "passing" not in new.state_dict()
    assert set(layer.state_dict()) == own, "the one given is as it was"


def pruned(layer):
    prune.random_unstructured(layer, "weight", 0.5)


def pruned_bias(layer):
    prune.random_unstructured(layer, "bias", 0.5)


HOOKED = {
    "weight_norm": nn.utils.parametrizations.weight_norm,
    "spectral_norm": nn.utils.parametrizations.spectral_norm,
    "old weight_norm": nn.utils.weight_norm,
    "old spectral_norm": nn.utils.spectral_norm,
    "prune": pruned,
    "prune bias": pruned_bias,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("hook", HOOKED)
@pytest.mark.parametrize("kind", LAYERS)
def test_computed_weights_are_refused(kind, hook):
    layer, _ = made(kind)
    cls = QUANTIZED[type(layer)]
    HOOKED[hook](layer)
    name = "bias" if "bias" in hook else "weight"
    with pytest.raises(ValueError, match=rf"{cls.__name__}: {name} must be a parameter.*weight norm.*make it permanent"):
        cls.from_float(layer, **quantizers(layer))


def test_pruning_made_permanent_is_taken():
    layer, x = made("linear")
    pruned(layer)
    prune.remove(layer, "weight")
    new = quantized(layer)
    new(x)
    assert bool((new.weight_quantizer(new.weight)[layer.weight == 0] == 0).all())


def test_a_replaced_forward_is_refused():
    """Kept, it would pass the quantizers by; dropped, it would no longer compute what the user wants."""
    layer, _ = made("linear")
    layer.forward = lambda x: x
    with pytest.raises(ValueError, match="QuantLinear: forward was replaced on this layer"):
        quantized(layer)


def test_a_compiled_layer_is_quantized():
    layer, x = made("linear")
    layer.compile(backend="eager")
    layer(x)
    new = quantized(layer)
    assert not torch.equal(new(x), layer(x))


@pytest.mark.parametrize("cls", [QuantLinear, QuantConv1d, QuantConv2d])
def test_another_layer_is_refused(cls):
    other = nn.Linear(3, 3) if cls is not QuantLinear else nn.Conv1d(3, 3, 3)
    with pytest.raises(
        TypeError, match=rf"{cls.__name__}: module must be a torch.nn.{cls.__name__[5:]}, got {type(other).__name__}"
    ):
        cls.from_float(other, weight_quantizer=None, input_quantizer=None)


def test_a_weight_quantizer_that_does_not_fit_is_refused():
    layer, _ = made("linear")
    with pytest.raises(ValueError, match=r"LSQ: step must have shape \(6,\) for x of shape \(6, 8\), got \(8,\)"):
        QuantLinear.from_float(layer, weight_quantizer=LSQ(4, axis=0, shape=(8,)), input_quantizer=None)
    with pytest.raises(TypeError, match=r"QuantLinear: input_quantizer must be a fastq\.nn\.Quantizer or None, got int"):
        QuantLinear.from_float(layer, weight_quantizer=None, input_quantizer=4)


def test_a_quantizer_that_has_its_values_keeps_them():
    layer, _ = made("linear")
    q = LSQ(4)
    q(drawn((100,), seed=3))
    step = q.step.detach().clone()
    assert torch.equal(QuantLinear.from_float(layer, weight_quantizer=q, input_quantizer=None).weight_quantizer.step, step)


# --- modes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LAYERS)
def test_compiles_whole_after_one_batch(kind):
    layer, x = made(kind)
    new = quantized(layer)
    expected = new(x)
    expected.square().sum().backward()
    gradients = {name: p.grad.clone() for name, p in new.named_parameters()}
    new.zero_grad()
    y = torch.compile(new, fullgraph=True, backend="aot_eager")(x)
    y.square().sum().backward()
    assert torch.equal(y, expected)
    for name, p in new.named_parameters():
        torch.testing.assert_close(p.grad, gradients[name], rtol=1e-5, atol=1e-5)  # traced sums may be grouped otherwise


@pytest.mark.parametrize("kind", LAYERS)
def test_autocast(kind):
    """Quantized in fp32, multiplied in bf16: what autocast does to the function of the quantized tensors."""
    layer, x = made(kind)
    new = quantized(layer)
    function = {"linear": F.linear, "conv1d": F.conv1d, "conv2d": F.conv2d}[kind]
    with torch.autocast(x.device.type, torch.bfloat16):
        y = new(x)
        assert torch.equal(y, function(new.input_quantizer(x), new.weight_quantizer(layer.weight), layer.bias))
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in new.parameters())


@pytest.mark.parametrize("through", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("kind", LAYERS)
def test_copies(kind, through):
    layer, x = made(kind)
    new = quantized(layer)
    y = new(x)
    other = through(new)
    assert torch.equal(other(x), y) and other.weight is not new.weight
    other.load_state_dict(quantized(made(kind)[0]).state_dict())
    assert new.input_quantizer.initialized and not other.input_quantizer.initialized


def test_channels_last_stays():
    layer, x = made("conv2d", padding=1)
    new = quantized(layer.to(memory_format=torch.channels_last))
    y = new(x.contiguous(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, new(x), rtol=1e-5, atol=1e-5)  # another order of the convolution's sums
