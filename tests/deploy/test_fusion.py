"""A fused network has the bits of the same network layer by layer, whatever its forward method does, and says what was fused."""

import copy
import inspect
import pickle
import re
from abc import ABC

import pytest
import torch
import torch.nn.functional as F
from device import DEVICE, drawn
from torch import nn

import fastq
from fastq.demo import Digits
from fastq.deploy import AffineNorm2d, FusedLayer, IntegerLayer, WeightOnlyLayer, compare, convert, fusion_of, load, save
from fastq.deploy.fusion import fuse, fused, unfuse
from fastq.nn import LSQ, QUANTIZED

pytestmark = pytest.mark.usefixtures("one_thread")


def quantized(model, x, w_bits=4, x_bits=4, **keywords):
    """``model`` with LSQ in all its layers, batch norms that have seen something, and steps that are all different."""
    torch.manual_seed(0)
    for name, layer in list(model.named_modules()):
        if type(layer) not in QUANTIZED:
            continue
        source = None if x_bits is None else LSQ(x_bits, **({"signed": None} | keywords))
        weight = LSQ(w_bits, axis=0, shape=(len(layer.weight),))
        new = QUANTIZED[type(layer)].from_float(layer, weight_quantizer=weight, input_quantizer=source)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, new)
    model.to(DEVICE).train()
    with torch.no_grad():
        for seed in range(2):
            model(x + 0.1 * seed)
        for layer in model.modules():  # what the case does not call
            if (source := getattr(layer, "input_quantizer", None)) is not None and not source._initialized:
                layer.input_quantizer = layer.weight_quantizer = None
        for name, p in model.named_parameters():
            if "quantizer" in name or ("bn" in name and "weight" in name):
                p.mul_(torch.empty_like(p).uniform_(0.8, 1.2))
    return model.eval()


def seen(network, x):
    """The output, and what the integer layers are called with: dtypes, and the codes by layer."""
    dtypes, codes = {}, {}

    def hook(name):
        def note(module, arguments, keywords):
            dtypes[name] = arguments[0].dtype
            codes.setdefault(name, []).append(module.quantize(arguments[0]))

        return note

    layers = {name: m for name, m in network.named_modules() if isinstance(m, IntegerLayer)}
    handles = [m.register_forward_pre_hook(hook(name), with_kwargs=True) for name, m in layers.items()]
    with torch.no_grad():
        y = network(x)
    for handle in handles:
        handle.remove()
    return y, dtypes, codes


def same(model, x, is_fused=True):
    """Convert; the fused network and its own forward method give the same codes, numbers, dtypes and strides. Returns the calls."""
    network = convert(model)
    assert fused(network) == is_fused and isinstance(network, type(model))
    plain = unfuse(copy.deepcopy(network))
    assert type(plain) is type(model) and not fused(plain)
    y, dtypes, codes = seen(network, x)
    expected, floats, expected_codes = seen(plain, x)
    assert not any(dtype == torch.int8 for dtype in floats.values())
    for name, found in codes.items():
        assert len(found) == len(expected_codes[name])
        assert all(torch.equal(a, b) for a, b in zip(found, expected_codes[name], strict=True)), name
    assert y.dtype == expected.dtype and y.stride() == expected.stride() and torch.equal(y, expected)
    assert not y.isnan().any() and y.abs().max() > 0
    taken = {name for name, dtype in dtypes.items() if dtype == torch.int8}
    assert taken == {layer.name for layer in network.fusion.layers if layer.codes_from is not None}
    return network.fusion.layers


IMAGES = drawn((6, 1, 8, 8), 3).abs()


def digits(w_bits=4, x_bits=4):
    return quantized(Digits(), IMAGES, w_bits, x_bits)


@pytest.mark.parametrize(("w_bits", "x_bits"), [(8, 8), (4, 8), (4, 4), (3, 3), (2, 2)])
def test_the_digits_network(w_bits, x_bits):
    model = digits(w_bits, x_bits)
    calls = same(model, IMAGES)
    assert calls == (
        FusedLayer("stem", "bn", False, "relu", None, ()),
        FusedLayer("block1.conv1", "block1.bn1", False, "relu", None, ("block1.conv2",)),
        FusedLayer("block1.conv2", "block1.bn2", True, "relu", "block1.conv1", ()),
        FusedLayer("block2.conv1", "block2.bn1", False, "relu", None, ("block2.conv2",)),
        FusedLayer("block2.conv2", "block2.bn2", False, None, "block2.conv1", ()),
        FusedLayer("block2.shortcut", None, True, "relu", None, ()),
    )
    same(model, IMAGES.repeat(1, 1, 2, 2).contiguous(memory_format=torch.channels_last))
    network, apart = convert(model), convert(model, fuse=False)
    assert list(network.state_dict()) == list(apart.state_dict())
    assert type(apart) is Digits and apart.fusion.reason == "fuse=False" and type(apart.bn) is nn.BatchNorm2d
    assert network.stem.weight.bits == w_bits
    # batch norms in torch's order of operations, on values of order 1, may flip a code
    report = compare(model, network, IMAGES)
    assert report.differing_predictions == 0 and report.layers[0].flips == 0


def test_weights_alone():
    model = digits(4, None)
    network = convert(model)
    layers = [m for m in network.modules() if isinstance(m, WeightOnlyLayer)]
    assert len(layers) == 7 and all(layer.weight.bits == 4 for layer in layers) and not fused(network)
    # sums of at most 288 products of order 1, through seven layers
    torch.testing.assert_close(network(IMAGES), model(IMAGES).detach(), rtol=1e-4, atol=1e-5)


def test_copies_and_files(tmp_path):
    network = convert(digits())
    y = network(IMAGES)
    save(network, tmp_path / "net")
    loaded = [load(tmp_path / "net", architecture).to(DEVICE) for architecture in (Digits(), digits(), network)]
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network)), *loaded):
        assert other is not network and fused(other) and other.fusion == network.fusion
        assert torch.equal(other(IMAGES), y)
        assert isinstance(other.bn, AffineNorm2d) and other.bn is not network.bn
    save(convert(digits(), fuse=False), tmp_path / "apart")
    apart = load(tmp_path / "apart", Digits())
    assert not fused(apart) and fusion_of(apart).reason == "saved so" and type(apart.bn) is nn.BatchNorm2d


@pytest.mark.parametrize("fuse", [True, False])
def test_what_trains_on_integers_is_deployed_with_its_bits(fuse, tmp_path):
    model = fastq.prepare(Digits(), fastq.recipes.lsq(4, 4), forward="integer").model.to(DEVICE)
    for seed in range(3):
        model(drawn((8, 1, 8, 8), seed).abs())
    y, values = model.eval()(IMAGES).detach(), drawn((2, 16, 32, 32))
    network = convert(model, fuse=fuse)
    save(network, tmp_path / "net")
    for other in (network, load(tmp_path / "net", Digits()).to(DEVICE)):  # whose batch norms are torch's
        assert fused(other) == fuse and torch.equal(other(IMAGES), y)
        assert torch.equal(other.bn(values), model.bn(values))  # codes may hide an ulp


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_file_has_the_size_that_its_bits_say(bits, tmp_path):
    network, sizes = convert(digits(bits, 4)), {}
    size = save(network, tmp_path / "net")
    for name, t in network.state_dict().items():
        sizes[name] = t.numel() * t.element_size()
    for name, layer in network.named_modules():
        if isinstance(layer, IntegerLayer):
            assert sizes[f"{name}.weight"] == layer.weight.n * -(-layer.weight.k * bits // 8)
    weights = 16 * 9 + 2 * 16 * 16 * 9 + 32 * 16 * 9 + 32 * 32 * 9 + 32 * 16 + 10 * 32
    packed = sum(size for name, size in sizes.items() if name.endswith(".weight") and ".bn" not in name and name != "bn.weight")
    assert weights * bits / 8 <= packed <= weights * bits / 8 + 16 + 2 * 16 + 2 * 32 + 32 + 10  # rows end with whole bytes
    headers = size - sum(sizes.values())
    assert 0 < headers < 11000  # a name, a shape and a place for each of 60 tensors, JSON for seven layers


class Net(nn.Module):
    """Two convolutions and what ``forward`` does with them."""

    def __init__(self, forward, **modules):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.bn, self.relu = nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        for name, module in modules.items():
            setattr(self, name, module)
        self.does = forward

    def forward(self, x):
        return self.does(self, x)


def call(name, norm=None, residual=False, activation=None, codes_from=None, codes_to=()):
    return FusedLayer(name, norm, residual, activation, codes_from, codes_to)


def after_in_place(s, x):
    y = s.b(h := s.a(x))
    h.mul_(2)  # after b has read it
    return F.relu(y + h)


def onto_the_residual(s, x):
    h = s.a(x).sigmoid()
    k = h + 0
    k += s.b(h)
    return k


def assigned(s, x):
    h = s.a(x).tanh()
    h[:, 0] = 0.5
    return s.relu(s.b(h) + h)


def held_by_two(s, x):
    k = h = s.a(x).tanh()
    h += s.b(h)
    return h * k


def both(s, x):
    h = s.a(x)
    return torch.relu(s.b(h) + s.b(h))


def through_view(s, x):
    y = s.drop(s.relu(s.a(x)))
    return s.fc(y.view(y.size(0), -1))


CASES = {
    "a batch norm and a module in place": (
        lambda s, x: s.b(s.relu(s.bn(s.a(x)))), {}, [call("a", "bn", activation="relu", codes_to=("b",)), call("b", codes_from="a")]
    ),
    "functions": (lambda s, x: F.relu(s.b(F.relu(s.a(x), True))), {}, [
        call("a", activation="relu", codes_to=("b",)), call("b", activation="relu", codes_from="a")
    ]),
    "methods": (lambda s, x: s.b(s.bn(s.a(x)).relu_()).relu(), {}, [
        call("a", "bn", activation="relu", codes_to=("b",)), call("b", activation="relu", codes_from="a")
    ]),
    "nothing between": (lambda s, x: s.b(s.a(x)), {}, [call("a", codes_to=("b",)), call("b", codes_from="a")]),
    "a value that is returned too stays a number": (
        lambda s, x: (h := s.relu(s.a(x))) + s.b(h) * 0, {}, [call("a", activation="relu")]
    ),
    "a residual on the right": (lambda s, x: F.relu((h := s.a(x)) + s.b(h)), {}, [call("b", None, True, "relu")]),
    "a residual in place": (lambda s, x: s.relu(s.b(h := s.a(x).tanh()).add_(h)), {}, [call("b", None, True, "relu")]),
    "adding onto the residual in place is left alone": (onto_the_residual, {}, None),
    "a residual that broadcasts": (
        lambda s, x: F.relu(s.bn(s.a(x)) + x.mean((1, 2, 3), keepdim=True)), {}, [call("a", "bn", True, "relu")]
    ),
    "a residual that is larger": (
        lambda s, x: F.relu(s.a(x) + x.mean(1, keepdim=True).unsqueeze(0)), {}, [call("a", None, True, "relu")]
    ),
    "a residual before a batch norm": (lambda s, x: s.bn(s.a(x) + x.sum(1, keepdim=True)), {}, [call("a", None, True)]),
    "a sum that changes what others hold": (held_by_two, {}, None),
    "elements that are set": (assigned, {}, [call("b", None, True, "relu")]),
    "a number is no residual": (lambda s, x: F.relu(s.a(x) + 1), {}, None),
    "a scaled addition is none": (lambda s, x: torch.add(s.a(x), x.sum(1, keepdim=True), alpha=2), {}, None),
    "itself is no residual": (lambda s, x: (h := s.a(x)) + h, {}, None),
    "an input that changes before the sum": (after_in_place, {}, None),
    "a layer called twice": (both, {}, [
        call("a", codes_to=("b", "b")), call("b", codes_from="a"), call("b", None, True, "relu", codes_from="a")
    ]),
    "two calls of a layer keep their order": (lambda s, x: s.b(h := s.a(x)) + s.b(h).tanh(), {}, [
        call("a", codes_to=("b", "b")), call("b", codes_from="a"), call("b", codes_from="a")
    ]),
    "view, dropout and size": (through_view, {"drop": nn.Dropout(0.5), "fc": nn.Linear(4 * 30, 3)}, [
        call("a", activation="relu", codes_to=("fc",)), call("fc", codes_from="a")
    ]),
    "codes through view and then numbers": (
        lambda s, x: s.fc(torch.flatten(s.b(s.a(x)), 1)) * 2, {"fc": nn.Linear(4 * 30, 3)},
        [call("a", codes_to=("b",)), call("b", codes_from="a", codes_to=("fc",)), call("fc", codes_from="b")],
    ),
    "max pooling takes numbers": (lambda s, x: s.b(F.max_pool2d(s.relu(s.a(x)), 2)), {}, [call("a", activation="relu")]),
    "identities and dropout between": (
        lambda s, x: s.b(F.dropout(s.relu(s.i(s.bn(s.a(x)))), training=s.training)), {"i": nn.Identity()},
        [call("a", "bn", activation="relu", codes_to=("b",)), call("b", codes_from="a")],
    ),
    "a copying padding takes numbers": (
        lambda s, x: s.c(s.relu(s.a(x))), {"c": nn.Conv2d(4, 2, 3, padding=1, padding_mode="reflect")},
        [call("a", activation="relu")],
    ),
    "two that differ in their step take numbers": (
        lambda s, x: s.b(h := s.a(x).relu()) + s.c(h), {"c": nn.Conv2d(4, 4, 1)},
        [call("a", activation="relu"), call("c", None, True)],
    ),
    "a view of another dtype takes numbers": (
        lambda s, x: s.b(s.a(x).relu().view(dtype=torch.float32)), {}, [call("a", activation="relu")]
    ),
    "gelu is torch's": (lambda s, x: s.b(F.gelu(s.bn(s.a(x)))), {}, [call("a", "bn")]),
    "a batch norm without statistics": (lambda s, x: s.n(s.a(x)), {"n": nn.BatchNorm2d(4, track_running_stats=False)}, None),
    "a batch norm without weights": (lambda s, x: s.n(s.a(x)), {"n": nn.BatchNorm2d(4, affine=False)}, [call("a", "n")]),
}  # fmt: skip


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
@pytest.mark.parametrize("case", CASES)
def test_patterns(case, signed):
    forward, modules, expected = CASES[case]
    x = drawn((2, 3, 5, 6)).abs()
    model = quantized(Net(forward, **copy.deepcopy(modules)), x, x_bits=8 if signed else 4, signed=signed)
    for images in (x, x.contiguous(memory_format=torch.channels_last)):
        if "view" in case and images is not x:
            continue  # torch has no view of them either
        calls = same(model, images, is_fused=expected is not None)
        assert list(calls) == (expected or [])


def test_a_layer_that_is_no_single_product_takes_codes_and_gives_numbers():
    x = drawn((2, 3, 5, 6))
    model = quantized(Net(lambda s, x: s.c(s.relu(s.b(s.relu(s.a(x))))), c=nn.Conv2d(4, 2, 3)), x)
    model.b.weight_quantizer = LSQ(4, axis=0, shape=(4,), offset=True).to(DEVICE)
    with torch.no_grad():
        model.b.weight_quantizer.initialize(model.b.weight)
        model.b.weight_quantizer.offset.fill_(0.03)
    calls = same(model, x)
    assert calls == (call("a", activation="relu", codes_to=("b",)), call("b", codes_from="a")) and not convert(model).b.plain


def test_8_bits_without_a_sign_are_handed_on():
    """0 to 255, stored from -128: a ReLU of such codes would be another one."""
    x = drawn((2, 3, 5, 6))
    model = quantized(Net(lambda s, x: s.b(s.relu(s.a(x)))), x, x_bits=8, signed=False)
    assert same(model, x)[0].codes_to == ("b",) and convert(model).b.zero == 128


@pytest.mark.parametrize("dims", [2, 3])
def test_a_batch_norm_after_a_linear_layer(dims):
    x = drawn((5, 8) if dims == 2 else (5, 6, 8))
    model = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    model = quantized(model, x)
    assert same(model, x) == (call("0", "1", activation="relu", codes_to=("3",)), call("3", codes_from="0"))


def test_conv1d_and_single_samples():
    x = drawn((3, 4, 9))
    net = nn.Sequential(nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6), nn.ReLU(), nn.Conv1d(6, 6, 3, padding=1), nn.ReLU())
    model = quantized(net, x)
    assert len(same(model, x)) == 2
    alone = quantized(nn.Sequential(nn.Conv1d(4, 6, 3), nn.ReLU(), nn.Conv1d(6, 6, 3, padding=1)), x)
    assert len(same(alone, x)) == 2 and len(same(alone, x[0])) == 2


@pytest.mark.parametrize(("scale", "handed"), [(0.1, True), (10.0, False)])
def test_relu6_where_codes_are_clipped_below_it(scale, handed):
    x = drawn((2, 3, 5, 6)) * 20
    model = quantized(Net(lambda s, x: s.b(s.six(s.a(x))), six=nn.ReLU6()), x, signed=False)
    model.b.input_quantizer.step.data.fill_(6 / 15 * scale)
    assert (model.a(x) > 6).any()
    calls = same(model, x, is_fused=handed)
    assert not handed or calls[0] == call("a", activation="relu6", codes_to=("b",))


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda m: m.a.register_forward_hook(lambda *_: None), None),
        (lambda m: m.bn.register_forward_hook(lambda *_: None), []),
        (lambda m: m.b.register_forward_pre_hook(lambda *_: None), [call("a", "bn", activation="relu")]),
        (lambda m: m.relu.register_forward_hook(lambda *_: None), [call("a", "bn")]),
    ],
    ids=["layer", "batch norm", "next layer", "relu"],
)
def test_what_has_hooks_stays_by_itself(spoil, expected):
    x = drawn((2, 3, 5, 6))
    model = quantized(Net(lambda s, x: s.b(s.relu(s.bn(s.a(x))))), x)
    before = [] if expected is None else expected
    spoil(model)
    assert list(same(model, x, is_fused=bool(before))) == before


def test_a_module_with_hooks_is_run_as_it_is():
    model = digits()
    calls = []
    model.block1.register_forward_hook(lambda *_: calls.append(1))
    network = convert(model)
    assert network.fusion.apart == ("block1.conv1", "block1.conv2") and "forward hooks" in str(network.fusion)
    assert torch.equal(network(IMAGES), unfuse(copy.deepcopy(network))(IMAGES)) and len(calls) == 2


def test_parts_called_by_themselves_compute_as_they_did():
    network = convert(digits())
    x = drawn((2, 16, 4, 4)).abs()
    assert torch.equal(network.block1(x), unfuse(copy.deepcopy(network)).block1(x))
    assert network.block1.conv1(x).dtype == torch.float32


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        return self.b(self.a(x).relu()) if x.sum() > 0 else self.b(x)


class Constant(Branching):
    def forward(self, x):
        return self.b(self.a(x).relu()) + torch.ones(6)


class Asking(Branching):
    def forward(self, x):
        return self.b(self.a(x).relu()) if isinstance(x, torch.Tensor) else x[0]


class Taken(Branching):
    """Has a ``fusion`` of its own."""

    def __init__(self):
        super().__init__()
        self.fusion = nn.Linear(6, 6)

    def forward(self, x):
        return self.fusion(self.a(x).relu())


@pytest.mark.parametrize(
    ("kind", "why"),
    [(Branching, "torch.fx cannot trace it: TraceError"), (Constant, "makes tensors"), (Asking, "asks for the type")],
)
def test_what_cannot_be_traced_keeps_its_layers_apart(kind, why, tmp_path):
    x = drawn((4, 6)).abs()
    model = quantized(kind(), x)
    network = convert(model)
    assert type(network) is kind and why in network.fusion.reason and why in str(network.fusion)
    assert set(vars(network)) - set(vars(model)) == {"_fastq_fusion", "fusion"}
    assert torch.equal(network(x), convert(model, fuse=False)(x))
    save(network, tmp_path / "net")
    assert torch.equal(load(tmp_path / "net", kind()).to(DEVICE)(x), network(x))


def test_a_network_with_an_attribute_of_that_name_keeps_it():
    x = drawn((4, 6))
    network = convert(quantized(Taken(), x))
    assert isinstance(network.fusion, IntegerLayer) and fusion_of(network).layers[0].codes_to == ("fusion",)
    assert fusion_of(nn.Linear(2, 2)).reason == "no network of fastq.convert"


class Three(nn.Module):
    """Three layers for what a case's ``forward`` does with them."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        return self.c(self.b(self.a(x).relu()).relu())


class Residual(Three):
    def forward(self, x, res=None):
        y = self.a(x).relu()
        if res is None:
            res = x
        return self.c(self.b(y) + res)


class Masked(Three):
    def forward(self, x, mask=None):
        if mask is not None:
            x = x * mask
        return super().forward(x)


class Keywords(Three):
    def forward(self, x, /, factor=2.0, *, shift, flag=False):
        y = self.a(x).relu() + shift
        return y if flag else self.c(self.b(y).relu()) * factor


class Required(Three):
    def forward(self, x, res):
        if res is None:
            res = x
        return self.c(self.b(self.a(x).relu()) + res)


class Batch(Three):
    def forward(self, batch):
        return super().forward(batch["x"])


class Having(Three):
    def forward(self, x):
        return super().forward(x["x"] if hasattr(x, "keys") else x)


X = drawn((4, 6)).abs()
ARGUMENTS = {
    "an optional residual": (Residual, [((X,), {}), ((X, None), {}), ((X, X * 2), {}), ((X,), {"res": X * 3})]),
    "an optional mask": (Masked, [((X,), {}), ((), {"x": X}), ((X, X > 0.5), {}), ((), {"mask": X > 0.5, "x": X})]),
    "keywords": (
        Keywords,
        [((X,), {"shift": X}), ((X, 3.0), {"shift": X}), ((X,), {"shift": X, "flag": True}), ((X,), {"shift": 1})],
    ),
    "a residual that may be None": (Required, [((X, X), {}), ((X, None), {}), ((X, 1.0), {}), ((X, True), {})]),
    "a dict": (Batch, [(({"x": X},), {}), (({"x": X, "mask": None},), {}), (({"x": X, "more": {}},), {})]),
    "a tensor or a dict": (Having, [((X,), {}), (({"x": X},), {})]),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_arguments_are_what_they_are(case):
    """The first call of a case runs the fused program; all give what the network gives that is not fused."""
    kind, calls = ARGUMENTS[case]
    model = kind()
    model.forward = lambda x: Three.forward(model, x)
    model = quantized(model, X)
    del model.forward
    network, apart = convert(model), convert(model, fuse=False)
    names = [list(inspect.signature(each.forward).parameters) for each in (network, apart)]
    assert fused(network) and names[0] == names[1]
    for number, (given, named) in enumerate(calls):
        dtypes = []
        handle = network.b.register_forward_pre_hook(lambda _, args, dtypes=dtypes: dtypes.append(args[0].dtype))
        y = network(*given, **named)
        handle.remove()
        assert torch.equal(y, apart(*given, **named)), number
        assert number or case == "keywords" or dtypes == [torch.int8]
    with pytest.raises(TypeError, match="unexpected keyword argument 'other'"):
        network(X, other=1)


@pytest.mark.parametrize(
    ("forward", "why"),
    [
        (lambda s, *xs: s.c(s.b(xs[0])), r"any number of arguments, \*xs"),
        (lambda s, x, **kw: s.c(s.b(x)), r"any number of arguments, \*\*kw"),
        (lambda s, x, found=[]: s.c(s.b(x)), "the default of its argument 'found' is a list"),
        (lambda s, x: s.c(s.b(x.get("x"))), "taken for a tensor, which has no attribute 'get'"),
        (lambda s, x: s.c(s.b(x["x"])) if "x" in x else s.b(x), "TraceError"),
    ],
    ids=["args", "kwargs", "a default that changes", "a look-up", "membership"],
)
def test_arguments_that_a_trace_cannot_tell(forward, why):
    network = convert(quantized(Three(), X), fuse=False)
    network.__class__ = type("Own", (Three,), {"forward": forward})
    assert not fused(fuse(network)) and re.search(why, network.fusion.reason)


def test_a_hooked_container_is_in_place_where_a_part_of_it_is():
    def forward(s, x):
        h = s.a(x).tanh()
        return F.relu(s.b(h) + s.short(h))

    x = drawn((2, 3, 5, 6))
    model = quantized(Net(forward, short=nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1))), x)
    model.short.register_forward_hook(lambda *_: None)
    same(model, x, is_fused=False)


@pytest.mark.parametrize("inplace", [False, True])
def test_a_part_that_was_prepared_by_itself_is_fused(inplace):
    """Where fastq's own hooks, for weights that are quantized together, made a leaf of it."""
    x = drawn((2, 3, 5, 6))
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace), nn.Conv2d(4, 4, 1), nn.ReLU(inplace))
    model = nn.Sequential(backbone, nn.Flatten(), nn.Linear(48, 3)).to(DEVICE)
    fastq.prepare(backbone, fastq.recipes.lsq(4, 4))
    model(x)
    model.eval()
    assert same(model, x) == (
        call("0.0", "0.1", activation="relu", codes_to=("0.3",)), call("0.3", activation="relu", codes_from="0.0")
    )  # fmt: skip
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in convert(model).modules())
    backbone.register_forward_hook(lambda *_: None)
    fusion = convert(model).fusion
    assert fusion.reason == "no layer has anything to fuse" and fusion.apart == ("0.0", "0.3") and "0.0, 0.3" in str(fusion)


class Stores(Three):
    """Keeps what flows in attributes and containers, of itself and of a part."""

    def __init__(self, where):
        super().__init__()
        self.where, self.seen, self.calls = where, {"all": [], "first": ()}, 0
        self.part, self.part.last = nn.ReLU(), None
        self.register_buffer("count", torch.zeros(3))

    def forward(self, x):
        y = self.part(self.a(x))
        if self.where == "attribute":
            self.last = y
        elif self.where == "part":
            self.part.last = y
        elif self.where == "list":
            self.seen["all"].append(y)
        elif self.where == "number":
            self.calls += 1
        elif self.where == "buffer":
            self.count += 1
        elif self.where == "the same":
            self.calls = 0
        return self.c(self.b(y))


@pytest.mark.parametrize("where", ["attribute", "part", "list", "number", "buffer"])
def test_what_forward_stores_is_stored_by_what_runs(where):
    model = quantized(Stores(None), X)
    model.where = where
    network = convert(model)
    assert not fused(network) and "changes what a module holds" in network.fusion.reason
    assert set(vars(network)) - set(vars(model)) == {"_fastq_fusion", "fusion"}
    assert network.part.last is None and network.seen == {"all": [], "first": ()} and network.calls == 0
    assert torch.equal(network.count, torch.zeros(3, device=DEVICE))
    assert torch.equal(pickle.loads(pickle.dumps(network))(X), convert(model, fuse=False)(X))
    network(X)
    kept = {
        "attribute": lambda: network.last.dtype, "part": lambda: network.part.last.dtype,
        "list": lambda: network.seen["all"][0].dtype, "number": lambda: network.calls, "buffer": lambda: float(network.count[0]),
    }  # fmt: skip
    assert kept[where]() in (torch.float32, 1)


def test_what_is_stored_as_it_was_changes_nothing():
    model = quantized(Stores("the same"), X)
    assert len(same(model, X)) == 3


def sequential():
    x = drawn((5, 6))
    return quantized(
        nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)), x
    ), x


CHANGES = {
    "appended": lambda net: net.append(nn.Softmax(-1)),
    "inserted": lambda net: net.insert(3, nn.Tanh()),
    "last replaced": lambda net: net.__setitem__(5, nn.Identity()),
    "ReLU replaced": lambda net: net.__setitem__(2, nn.Tanh()),
    "batch norm replaced": lambda net: setattr(net, "1", nn.Identity()),
    "deleted": lambda net: net.__delitem__(1),
    "popped": lambda net: net.pop(5),
    "turned": lambda net: net._modules.update({"5": net._modules.pop("5"), "4": net._modules.pop("4")}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_modules_that_are_changed_later_are_run_as_they_are(change):
    model, x = sequential()
    network, other = convert(model), unfuse(convert(model))
    before = other(x)
    for each in (network, other):
        CHANGES[change](each)
    y = other(x)
    assert y.shape != before.shape or not torch.equal(y, before) or change == "turned"
    for each in (network, copy.deepcopy(network), pickle.loads(pickle.dumps(network)), copy.copy(network)):
        assert torch.equal(each(x), y)


def test_a_part_that_is_replaced_in_a_part_is_run():
    network = convert(digits())
    apart = unfuse(copy.deepcopy(network))
    for each in (network, apart):
        each.block1.bn2 = nn.Identity()
        each.block2.add_module("more", nn.Identity())
    assert torch.equal(network(IMAGES), apart(IMAGES))


def test_a_slice_is_a_network_of_its_own():
    model, x = sequential()
    network = convert(model)
    apart = unfuse(copy.deepcopy(network))
    for part in (slice(None, 2), slice(3, None), slice(1, 5)):
        assert type(network[part]) is nn.Sequential and not fused(network[part])
        assert torch.equal(network[part](x), apart[part](x))
    assert len(network) == 6 and network[0] is next(network.children()) and torch.equal(network(x), apart(x))
    assert torch.equal((network + nn.Sequential(nn.Tanh()))(x), apart(x).tanh())


def test_dropout_that_is_turned_on_drops():
    model = quantized(nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3)), X)
    network, apart = convert(model), convert(model, fuse=False)
    assert fused(network)
    for each in (network, apart):
        each[2].train()
    torch.manual_seed(1)
    y = network(X)
    torch.manual_seed(1)
    assert torch.equal(y, apart(X)) and not torch.equal(y, convert(model)(X))
    network.load_state_dict(network.state_dict())  # fuses anew
    assert network[2].training
    assert fused(network.eval()) and torch.equal(network(X), convert(model)(X))


def test_a_fused_networks_class_is_for_it_alone():
    network = convert(quantized(Three(), X))
    new = type(network)()
    assert type(new) is Three and type(new.a) is nn.Linear and new(X.cpu()).shape == (4, 6)
    with pytest.raises(TypeError, match="a fused network's class has no subclasses"):
        type("Mine", (type(network),), {})


REGISTERED = {}


class Registers(Three):
    def __init_subclass__(cls, *, tag, **keywords):
        REGISTERED[cls.__name__] = cls


class Tagged(Registers, tag="x"):
    pass


class Abstract(Three, ABC):
    pass


class Refusing(type):
    def __new__(cls, name, bases, body):
        if bases != (Three,):
            raise TypeError("no more of them")
        return super().__new__(cls, name, bases, body)


class Refused(Three, metaclass=Refusing):
    pass


class Final(Three):
    def __setattr__(self, name, value):
        if name == "__class__":
            raise TypeError("not again")
        super().__setattr__(name, value)


def test_classes_that_watch_their_subclasses():
    for kind in (Tagged, Abstract, Final):
        assert len(same(quantized(kind(), X), X)) == 3
    assert REGISTERED == {"Tagged": Tagged}
    assert isinstance(convert(quantized(Abstract(), X)), Abstract) and not isinstance(
        Abstract(), type(convert(quantized(Abstract(), X)))
    )
    model = quantized(nn.Sequential(Refused()), X)[0]
    network = convert(model)
    assert type(network) is Refused and network.fusion.reason == "its class has a metaclass, Refusing"
    assert torch.equal(network(X), convert(model, fuse=False)(X))


def test_a_layer_with_two_names_is_itself_under_both():
    model = quantized(Three(), X)
    model.again = model.a
    network = convert(model)
    assert network.a is network.again and len(same(model, X)) == 3 and network.fusion.apart == ()


def test_autocast_that_forward_switches_is_kept():
    class Switches(Three):
        def forward(self, x):
            with torch.autocast(DEVICE, torch.bfloat16):
                x = x @ x.t() @ x
            return super().forward(x.float())

    network = convert(model := quantized(Switches(), X))
    assert not fused(network) and "switches autocast" in network.fusion.reason
    assert torch.equal(network(X), convert(model, fuse=False)(X))


def test_a_single_layer_and_bad_input():
    x = drawn((4, 6))
    assert convert(quantized(nn.Sequential(nn.Linear(6, 6)), x)[0]).fusion.reason == "it is a single layer"
    with pytest.raises(TypeError, match="fuse must be a bool, got 'yes'"):
        convert(nn.Linear(2, 2), fuse="yes")


def test_steps_that_are_equal_are_shared_until_they_differ():
    x = drawn((2, 3, 5, 6))
    model = quantized(Net(lambda s, x: s.b(h := s.a(x).relu()) + s.c(h), c=nn.Conv2d(4, 4, 1)), x)
    with torch.no_grad():
        model.c.input_quantizer.step.copy_(model.b.input_quantizer.step)
    assert same(model, x)[0].codes_to == ("b", "c")
    network, state = convert(model), convert(model).state_dict()
    state["c.input_step"] = state["c.input_step"] * 1.5
    network.load_state_dict(state)
    assert network.fusion.layers[0].codes_to == ()
    model.c.input_quantizer.step.data.mul_(1.5)
    assert torch.equal(network(x), convert(model)(x))


def test_state_is_canonical_whatever_the_layout():
    layer = convert(digits(3)).block1.conv1
    before = layer.state_dict()
    y = layer(x := drawn((2, 16, 4, 4)))
    layer.weight = layer.weight.to(DEVICE, "tiles")
    assert all(torch.equal(t, before[name]) for name, t in layer.state_dict().items())
    layer.weight = layer.weight.to(DEVICE)
    changed = {name: t.clone() for name, t in before.items()}
    changed["weight"] ^= 255
    layer.load_state_dict(changed)
    assert torch.equal(layer.state_dict()["weight"], changed["weight"]) and not torch.equal(layer(x), y)
    layer.load_state_dict(before)
    assert torch.equal(layer(x), y)
    with pytest.raises(RuntimeError, match=r"weight must be torch\.uint8"):
        layer.load_state_dict(before | {"weight": before["weight"][:, 1:]})
    with pytest.raises(RuntimeError, match=r"Missing key.*weight_scale"):
        layer.load_state_dict({name: t for name, t in before.items() if name != "weight_scale"})
    half = copy.deepcopy(layer).half()
    assert half.weight.scale.dtype == half.input_step.dtype == torch.float32 and half.codes.dtype == torch.int8
    assert torch.equal(half(x), y)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_rounds_once(dtype):
    network = convert(digits(8, 8))
    y = network(IMAGES)
    half = copy.deepcopy(network).to(dtype)
    assert half.bn.multiplier.dtype == half.bn.weight.dtype == torch.float32
    got = half(IMAGES.to(dtype))
    # what lies between layers is rounded to 8 or 11 bits, which moves a few codes of 8-bit grids by one
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), y, rtol=0, atol=0.1 * float(y.abs().max()))
    assert set(seen(half, IMAGES.to(dtype))[1].values()) == {torch.int8, dtype}


def test_compiled_without_a_graph_break():
    torch._dynamo.reset()
    x = drawn((5, 3, 5, 6))
    network = convert(quantized(Net(lambda s, x: F.relu(s.b(s.relu(s.bn(s.a(x)))) + x.sum(1, keepdim=True))), x))
    compiled = torch.compile(network, fullgraph=True, dynamic=True, backend="eager")
    for count in (2, 5):
        assert torch.equal(compiled(x[:count]), network(x[:count]))
    network.relu = nn.Tanh()
    assert torch.equal(compiled(x), unfuse(copy.deepcopy(network))(x))


def test_nan_shows_but_not_between_layers():
    x = drawn((3, 6))
    model = quantized(nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)), x)
    network, apart = convert(model), convert(model, fuse=False)
    x[1, 2] = float("nan")
    assert apart(x).isnan().all(1).tolist() == [False, True, False]
    assert torch.equal(network(x)[[0, 2]], apart(x)[[0, 2]])
    fastq.set_checks(True)
    try:
        with pytest.raises(ValueError, match="x holds NaN"):
            network(x)
    finally:
        fastq.set_checks(False)
