"""The ONNX file of a converted network computes in onnxruntime what the network computes, with its optimizations and without."""

import copy
import itertools
import math
import sys

import pytest
import torch
import torch.nn.functional as F
from device import DEVICE, drawn
from quantizers import CONVOLUTIONS, INPUTS, WEIGHTS, WHOLE, trained
from torch import nn

import fastq
from fastq.demo import Digits, images
from fastq.deploy import IntegerLayer, LookupLayer, WeightOnlyLayer, convert
from fastq.deploy.fusion import fused, unfuse
from fastq.nn import LSQ, QUANTIZED, DirectLinear, DirectWeight

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

pytestmark = pytest.mark.usefixtures("one_thread")
LEVELS = {False: ort.GraphOptimizationLevel.ORT_DISABLE_ALL, True: ort.GraphOptimizationLevel.ORT_ENABLE_ALL}


def session(source, optimized=True):
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    options.graph_optimization_level = LEVELS[optimized]
    # else it rounds the input of a product with a weight of 4 or 8 bits to int8, block by block
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    source = source.SerializeToString() if isinstance(source, onnx.ModelProto) else str(source)
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run(source, optimized, *inputs, names=None):
    made = session(source, optimized)
    found = made.run(names, {i.name: x.cpu().numpy() for i, x in zip(made.get_inputs(), inputs, strict=True)})
    return [torch.from_numpy(t).to(DEVICE) for t in found]


def agrees(network, path, *inputs, example=None, **keywords):
    """Export ``network`` and compare what it gives for ``inputs`` with the file; returns the file.

    Both multiply the same numbers where the codes are equal, in int32 and in float32 sums of at most a few hundred products, a
    few ulp of the largest of them; so that codes are equal, ``inputs`` of a network of several layers are few.
    """
    size = fastq.export_onnx(network, path, [x[:2] for x in inputs] if example is None else example, **keywords)
    assert size == path.stat().st_size
    expected = network(*inputs)
    expected = list(expected) if isinstance(expected, tuple) else [expected]
    for optimized in LEVELS:
        for y, e in zip(run(path, optimized, *inputs), expected, strict=True):
            assert y.shape == e.shape and float(e.detach().abs().max()) > 0
            torch.testing.assert_close(y, e.detach(), rtol=0, atol=4e-6 * float(e.detach().abs().max()))
    return onnx.load(path)


def quantized(layer, weight, source, x):
    """``layer`` with these quantizers, after a first batch."""
    source = None if source is None else trained(source, x)
    with_both = QUANTIZED[type(layer)].from_float(layer, weight_quantizer=trained(weight, layer.weight), input_quantizer=source)
    return with_both.to(DEVICE).eval()


def operators(made):
    return [node.op_type for node in made.graph.node]


def initializers(made):
    return {t.name: t for t in made.graph.initializer}


@pytest.fixture(scope="module")
def digits():
    """Trained for a moment: what flips a code depends on how the sums lie about the steps."""
    torch.manual_seed(0)
    x, labels, test, _ = images(torch.device(DEVICE))

    def make(w_bits, x_bits):
        model = fastq.prepare(Digits().to(DEVICE), fastq.recipes.lsq(w_bits, x_bits)).model.train()
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        for i in range(20):
            batch = slice(64 * i, 64 * (i + 1))
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), labels[batch]).backward()
            optimizer.step()
        return model.eval(), test

    return make


@pytest.mark.parametrize(("w_bits", "x_bits"), [(8, 8), (4, 8), (4, 4), (2, 2)])
def test_the_digits_network(digits, tmp_path, w_bits, x_bits):
    model, x = digits(w_bits, x_bits)
    network = convert(model)
    assert fused(network)
    fastq.export_onnx(network, tmp_path / "net.onnx", x[:2])
    fastq.export_onnx(unfuse(copy.deepcopy(network)), tmp_path / "apart.onnx", x[:2])
    assert (tmp_path / "net.onnx").read_bytes() == (tmp_path / "apart.onnx").read_bytes()

    codes = {}
    for name, layer in unfuse(copy.deepcopy(network)).named_modules():
        if isinstance(layer, IntegerLayer):
            codes[name] = layer.quantize  # bound to the layer, whose input is noted below
    apart, given = unfuse(copy.deepcopy(network)), {}
    for name in codes:
        apart.get_submodule(name).register_forward_pre_hook(lambda m, a, name=name: given.__setitem__(name, m.quantize(a[0])))
    y = apart(x)
    assert torch.equal(y, network(x))

    made = onnx.load(tmp_path / "net.onnx")
    for name in codes:
        made.graph.output.append(onnx.helper.make_empty_tensor_value_info(f"{name}/QuantizeLinear"))
    for optimized in LEVELS:
        logits, *found = run(made, optimized, x)
        flips = 0
        for (name, c), stored in zip(given.items(), found, strict=True):
            # uint8 from the lowest code on, int8 as the code is; a layer stores it less its zero
            zero = apart.get_submodule(name).zero
            flips += int((stored.int() != c.int() + zero).sum())
        # A sum in float32 is a few times 2**-24 of its largest part off, so that one in some 100 000 lies at the tie between two
        # codes of 8 bits. None of 2.1 million did, in each of these; another machine sums in another order.
        assert flips <= 5, flips
        # the last layer's sums have 32 products; a code that flipped moves a logit by a step or so
        torch.testing.assert_close(logits, y, rtol=0, atol=1e-5 if not flips else 0.05 * float(y.abs().max()))
        assert torch.equal(logits.argmax(1), y.argmax(1))
    kinds = {initializers(made)[f"{name}.weight"].data_type for name in codes}
    # the first and the last layer have 8 bits
    assert kinds == {onnx.TensorProto.INT8} | ({onnx.TensorProto.INT4} if w_bits < 8 else set())
    assert made.ir_version == 10 and [(o.domain, o.version) for o in made.opset_import] == [("", 21)]


def grids(name):
    """Grains of a weight, each with a quantizer of the input."""
    tensor, channel, group = {}, {"axis": 0, "shape": (12,)}, {"group_size": 16, "shape": (12, 2)}
    if name in WHOLE:
        return [(tensor, "lsq"), (tensor, "lsq+"), (tensor, None)]
    return [(tensor, "lsq+"), (channel, "lsq"), (channel, None), (group, "lsq"), (group, "lsq+"), (group, None)]


@pytest.mark.parametrize("name", WEIGHTS)
def test_every_grid_of_weights(tmp_path, name):
    x, kinds = drawn((8, 32), 1).abs(), set()
    for grain, source in grids(name):
        torch.manual_seed(0)
        source = None if source is None else INPUTS[source](8)
        layer = quantized(nn.Linear(32, 12), WEIGHTS[name](4, **grain), source, x)
        if source is None and "group_size" in grain and not is_plain(layer):
            continue  # has no form, and as the only layer is no network
        network = convert(nn.Sequential(layer))
        made = agrees(network, tmp_path / "net.onnx", x)
        assert initializers(made)["0.weight"].data_type in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4)
        kinds.add(type(network[0]))
    assert fastq.deploy.IntegerLinear in kinds and len(kinds) == 2


def is_plain(layer):
    grid = layer.weight_quantizer.grid(layer.weight.detach())
    return grid.offset is None and not grid.odd


@pytest.mark.parametrize("name", INPUTS)
def test_every_grid_of_inputs(tmp_path, name):
    x = drawn((8, 32), 1) - (0.7 if "signed" in name else 0)
    for bits in (2, 8):
        torch.manual_seed(0)
        layer = quantized(nn.Linear(32, 12), LSQ(4, axis=0, shape=(12,)), INPUTS[name](bits), x)
        made = agrees(convert(nn.Sequential(layer)), tmp_path / "net.onnx", x)
        assert operators(made).count("QuantizeLinear") == 1
    layer = quantized(nn.Linear(32, 12), WEIGHTS["qil"](3), INPUTS[name](3), x)
    network = convert(nn.Sequential(layer))
    agrees(network, tmp_path / "net.onnx", x)


@pytest.mark.parametrize("codes", [(0, 200), (-3, 200)])
@pytest.mark.parametrize("source", ["lsq", "lsq+"])
def test_weights_beyond_int8(tmp_path, codes, source):
    """A layer that is not plain stores them less 128 or so, which is the zero-point in the file."""
    torch.manual_seed(0)
    x, layer = drawn((8, 16), 1).abs(), nn.Linear(16, 6)
    network = convert(nn.Sequential(quantized(layer, LSQ(codes), INPUTS[source](8), x)))
    assert network[0].plain == (source == "lsq") and (network[0].plain or network[0].weights.zero > 0)
    agrees(network, tmp_path / "net.onnx", x)


@pytest.mark.parametrize("codes", [4, (0, 200), (-3, 200)])
def test_learned_levels_and_those_of_the_input(tmp_path, codes):
    """Codes of the input that begin below 0, and at it, of either type: all are numbers of levels."""
    torch.manual_seed(0)
    x = drawn((8, 16), 1)
    layer = DirectLinear.from_float(nn.Linear(16, 6), DirectWeight(3), input_quantizer=trained(LSQ(codes), x)).to(DEVICE).eval()
    network = convert(nn.Sequential(layer))
    assert isinstance(network[0], LookupLayer) and network[0].input_levels is not None
    made = agrees(network, tmp_path / "net.onnx", x)
    assert operators(made).count("Gather") == 2 and initializers(made)["0.weight"].data_type == onnx.TensorProto.UINT4


@pytest.mark.parametrize("name", [name for name in CONVOLUTIONS if name != "one sample"])
def test_every_kind_of_convolution(tmp_path, name):
    make, shape = CONVOLUTIONS[name]
    x, kinds = drawn((3, *shape[1:]), 2).abs(), set()
    for weight, source in itertools.product(("lsq", "lsq+", "sat centered"), ("lsq", "lsq+", None)):
        torch.manual_seed(0)
        layer = make()
        grain = {} if weight in WHOLE else {"axis": 0, "shape": (len(layer.weight),)}
        layer = quantized(layer, WEIGHTS[weight](8, **grain), None if source is None else INPUTS[source](8), x)
        network = convert(nn.Sequential(layer))
        agrees(network, tmp_path / "net.onnx", x)
        kinds.add(next(kind for kind in (IntegerLayer, WeightOnlyLayer, LookupLayer) if isinstance(network[0], kind)))
    assert kinds == {IntegerLayer, WeightOnlyLayer, LookupLayer}


@pytest.mark.parametrize(
    ("codes", "stored", "clipped"),
    [
        (8, "INT8", 0),
        (4, "INT8", 2),
        ((-127, 127), "INT8", 1),
        ((0, 255), "UINT8", 0),
        ((0, 15), "INT8", 2),
        ((-3, 200), "UINT8", 1),
    ],
)
def test_how_codes_of_an_input_are_stored(tmp_path, codes, stored, clipped):
    """int8 where the range fits; Clip has the ends that the type does not have."""
    x = drawn((64, 16), 3)
    layer = quantized(nn.Linear(16, 4), LSQ(8), LSQ(codes), x)
    network = convert(nn.Sequential(layer))
    made = agrees(network, tmp_path / "net.onnx", x)
    point = next(node.input[2] for node in made.graph.node if node.op_type == "QuantizeLinear")
    assert onnx.TensorProto.DataType.Name(initializers(made)[point].data_type) == stored
    ends = [sum(map(bool, node.input[1:])) for node in made.graph.node if node.op_type == "Clip"]
    assert ends == ([clipped] if clipped else [])
    # at and around every tie between two codes, and beyond both ends: the same code
    step, c = network[0].input_step, network[0].inputs
    ties = (torch.arange(c.qmin - 2, c.qmax + 3, device=DEVICE) + 0.5) * step
    edges = torch.stack([torch.nextafter(ties, ties - 1), ties, torch.nextafter(ties, ties + 1)])
    rows = edges.reshape(-1, 1).expand(-1, 16).contiguous()
    made.graph.output.append(onnx.helper.make_empty_tensor_value_info("0/QuantizeLinear"))
    for optimized in LEVELS:
        found = run(made, optimized, rows, names=["0/QuantizeLinear"])[0]
        zero = -c.qmin if stored == "UINT8" else 0
        assert torch.equal(found.int() - zero, network[0].quantize(rows).int() + network[0].zero)


@pytest.mark.parametrize(("bits", "group_size"), [(2, None), (3, 16), (4, None), (4, 32), (8, None), (8, 16)])
def test_weights_are_the_very_numbers(tmp_path, bits, group_size):
    """DequantizeLinear of the codes: of int4 in 2 to 4 bits, blocked per group."""
    grain = {"axis": 0, "shape": (6,)} if group_size is None else {"group_size": group_size, "shape": (6, 64 // group_size)}
    x = drawn((4, 64), 4)
    for source in (None, LSQ(8)):
        network = convert(nn.Sequential(quantized(nn.Linear(64, 6, bias=False), LSQ(bits, **grain), source, x)))
        made = agrees(network, tmp_path / "net.onnx", x)
        t = initializers(made)["0.weight"]
        assert t.data_type == (onnx.TensorProto.INT8 if bits == 8 else onnx.TensorProto.INT4)
        assert len(t.raw_data) == 64 * 6 // (1 if bits == 8 else 2)
        node = next(n for n in made.graph.node if n.op_type == "DequantizeLinear" and n.input[0] == "0.weight")
        attributes = {a.name: a.i for a in node.attribute}
        transposed = group_size is None or source is None
        blocked = {} if group_size is None else {"block_size": group_size}
        assert attributes == {"axis": int(transposed == (group_size is None))} | blocked
        made.graph.output.append(onnx.helper.make_empty_tensor_value_info(node.output[0]))
        found = run(made, False, x, names=[node.output[0]])[0]
        assert torch.equal(found.t() if transposed else found, network[0].weight.dequantize())
        wide = initializers(agrees(network, tmp_path / "wide.onnx", x, int4=False))["0.weight"]
        assert wide.data_type == onnx.TensorProto.INT8 and len(wide.raw_data) == 64 * 6


@pytest.mark.parametrize("kind", ["integer", "floating", "look-up"])
def test_rows_of_words_into_a_gemm(tmp_path, kind):
    """onnxruntime's optimizations refuse a Reshape of what DequantizeLinear gives."""
    torch.manual_seed(0)
    x, layer = drawn((3, 5, 32), 1), nn.Linear(32, 12)
    if kind == "look-up":
        layer = DirectLinear.from_float(layer, DirectWeight(3), input_quantizer=trained(LSQ(8), x)).to(DEVICE).eval()
    else:
        layer = quantized(layer, LSQ(4, group_size=16, shape=(12, 2)), LSQ(8), x)
    network = [layer]
    if kind == "floating":
        layer.weight_quantizer = None
        network.append(quantized(nn.Linear(12, 4), LSQ(4), LSQ(8), layer(x).detach()))
    made = agrees(convert(nn.Sequential(*network)), tmp_path / "net.onnx", x)
    assert operators(made).count("Gemm") == 1


class Everything(nn.Module):
    """Functions, methods, modules, operators in place and shapes, around two layers."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.pool, self.squash, self.drop = nn.MaxPool2d(3, 2, 1), nn.Hardswish(inplace=True), nn.Dropout(0.5)
        self.query, self.key, self.out, self.norm1 = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 6), nn.LayerNorm(8)
        self.embedding, self.prelu = nn.Embedding(5, 8), nn.LeakyReLU(0.1, inplace=True)
        self.register_buffer("scale", torch.linspace(0.5, 1.5, 8))

    def forward(self, x, *, ids):
        y = self.norm(self.conv(x))
        y = self.squash(y)
        y += 0.25
        y = F.relu6(y).clamp(max=3) * 0.5 - y.mean((2, 3), keepdim=True)
        a, b = y.chunk(2, 1)
        y = torch.cat([b.sigmoid(), F.silu(a)], dim=1)
        y = self.drop(F.avg_pool2d(self.pool(y), 2, 1, padding=1) + F.adaptive_avg_pool2d(y, (1, 1)))
        n, c, h, w = y.shape
        tokens = y.view(n, c, h * w).transpose(1, 2) + self.embedding(ids).unsqueeze(1)
        q, k = (f(self.norm1(tokens)).reshape(n, -1, 2, c // 2).permute(0, 2, 1, 3) for f in (self.query, self.key))
        mixed = (q @ k.transpose(-1, -2) / math.sqrt(c // 2)).softmax(-1) @ k
        tokens = tokens + mixed.transpose(1, 2).flatten(2) * self.scale
        first = self.prelu(F.gelu(tokens[:, 0]) - tokens[..., -1, :].tanh())
        return self.out(first), first.squeeze(-1), tokens[:, 1:-1:2].sum(1)


@pytest.mark.parametrize("fuse", [True, False])
def test_what_lies_between_layers(tmp_path, fuse):
    torch.manual_seed(0)
    x, ids = drawn((3, 4, 6, 6), 5), torch.tensor([4, 0, 2], device=DEVICE)
    model = Everything().to(DEVICE)
    model(x, ids=ids)  # the running statistics
    model.eval()
    model.query = quantized(model.query, LSQ(4), LSQ(8), drawn((40, 8), 6))
    model.conv = quantized(model.conv, LSQ(8), LSQ(8), x)
    network = convert(model, fuse=fuse)
    assert network.fusion.reason is None or not fuse
    path = tmp_path / "net.onnx"
    fastq.export_onnx(network, path, (x[:2], ids[:2]))
    expected = network(x, ids=ids)
    for optimized in LEVELS:
        for found, e in zip(run(path, optimized, x, ids), expected, strict=True):
            assert found.shape == e.shape
            # a code of 8 bits may flip behind floating point that two programs round apart: a hundredth of the largest number
            torch.testing.assert_close(found, e.detach(), rtol=0, atol=1e-2 * float(e.detach().abs().max()))
    made = session(path)
    assert [i.name for i in made.get_inputs()] == ["x", "ids"] and made.get_inputs()[0].shape == ["batch", 4, 6, 6]
    assert [o.name for o in made.get_outputs()] == ["output_0", "output_1", "output_2"]


def small():
    torch.manual_seed(0)
    x = drawn((6, 8), 7)
    return nn.Sequential(quantized(nn.Linear(8, 4), LSQ(4), LSQ(4), x)), x


def test_any_batch_or_one(tmp_path):
    model, x = small()
    network = convert(model)
    agrees(network, tmp_path / "any.onnx", x, example=x[:1])
    made = session(tmp_path / "any.onnx")
    for rows in (1, 2, 5):
        assert made.run(None, {"input": x[:rows].cpu().numpy()})[0].shape == (rows, 4)
    agrees(network, tmp_path / "one.onnx", x, example=x, dynamic_batch=False)
    assert session(tmp_path / "one.onnx").get_inputs()[0].shape == [6, 8]
    agrees(convert(model[0]), tmp_path / "layer.onnx", x)  # a network that is one layer
    agrees(network, tmp_path / "words.onnx", drawn((3, 5, 8), 8))  # rows of words


class Tied(nn.Module):
    def __init__(self, layer, head):
        super().__init__()
        self.layer, self.head = layer, head

    def forward(self, x):
        return self.head(self.layer(x)) @ self.head.weight


def test_a_weight_that_is_used_as_it_is_too(tmp_path):
    """Two tensors of one name: what the layer's quantizer gives, and the parameter."""
    torch.manual_seed(0)
    x = drawn((6, 8), 1)
    layer, head = quantized(nn.Linear(8, 8), LSQ(8), LSQ(8), x), quantized(nn.Linear(8, 8), LSQ(2), None, None)
    head.weight_quantizer = trained(LSQ(2, group_size=8, shape=(8, 1)), head.weight).to(DEVICE)
    made = agrees(convert(Tied(layer, head)), tmp_path / "net.onnx", x)
    assert {"head.weight", "head.weight_1"} <= set(initializers(made))


class Returns(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return {"logits": self.layer(x), "input": x}


def test_outputs_of_a_dict_have_its_names(tmp_path):
    model, x = small()
    network = convert(Returns(model[0]))
    fastq.export_onnx(network, tmp_path / "net.onnx", x)
    logits, same = run(tmp_path / "net.onnx", True, x, names=["logits", "input"])
    assert torch.equal(same, x) and torch.allclose(logits, network(x)["logits"], atol=1e-5)  # sums of 8 products of order 1


@pytest.mark.parametrize(("names", "taken"), [(("logits", "x"), "x"), (("1", 1), "1")])
def test_outputs_of_one_name_are_refused(tmp_path, names, taken):
    model, x = small()
    network = convert(Calls(model[0], lambda y: dict.fromkeys(names, y)), fuse=False)
    with pytest.raises(ValueError, match=f"export_onnx: the output '{taken}' has the name of an input or of another output"):
        fastq.export_onnx(network, tmp_path / "net.onnx", x)


TAKEN = {
    "clamped": lambda y: y.clamp(y.mean(0) - 0.1, y.mean(0) + 0.2),
    "from below": lambda y: y.clamp(min=y.mean(0)),
    "chunks": lambda y: torch.chunk(input=y, chunks=2, dim=1)[1] * torch.split(tensor=y, split_size_or_sections=2, dim=-1)[-2],
    "slices": lambda y: (y @ y.transpose(0, 1))[:, :-1],
}


@pytest.mark.parametrize("name", TAKEN)
def test_forms_of_functions(tmp_path, name):
    """``slices``: of a tensor with two sizes that follow the batch, one of which is not it."""
    model, x = small()
    made = agrees(convert(Calls(model[0], TAKEN[name]), fuse=False), tmp_path / "net.onnx", x)
    sizes = [size.dim_param or size.dim_value for size in made.graph.output[0].type.tensor_type.shape.dim]
    assert sizes == ["batch", {"chunks": 2, "slices": "output_axis_1"}.get(name, 4)]
    assert "Reshape" not in operators(made)


def test_in_inference_mode(tmp_path):
    model, x = small()
    with torch.inference_mode():
        agrees(convert(model), tmp_path / "net.onnx", x * 1)


def test_layers_that_stayed_as_they_were(tmp_path):
    """In floating point, with a quantized input alone, with weights per group of 8."""
    torch.manual_seed(0)
    x = drawn((6, 1, 6, 6), 9).abs()
    inner = quantized(nn.Linear(32, 8), LSQ(4), None, None)
    inner.weight_quantizer, inner.input_quantizer = None, trained(LSQ(8), drawn((9, 32), 1).abs())
    grouped = quantized(nn.Linear(8, 8), LSQ(4, group_size=8, shape=(8, 1)), None, None)
    convolutions = nn.Conv2d(1, 4, 3, stride=2, padding=1, padding_mode="circular"), nn.Conv2d(4, 4, 2, padding="same")
    first = quantized(nn.Conv2d(4, 8, 3, stride=2, padding=1), LSQ(4), LSQ(4), drawn((4, 4, 3, 3), 2).abs())
    model = nn.Sequential(*convolutions, nn.ReLU(), first, nn.Flatten(), inner.to(DEVICE), grouped.to(DEVICE)).to(DEVICE)
    network = convert(model)
    assert not isinstance(network[5], IntegerLayer) and not isinstance(network[6], IntegerLayer)
    made = agrees(network, tmp_path / "net.onnx", x)
    assert initializers(made)["6.weight"].data_type == onnx.TensorProto.FLOAT


class InPlace(nn.Module):
    def __init__(self, layer, late):
        super().__init__()
        self.layer, self.late = layer, late

    def forward(self, x):
        y = self.layer(x)
        same, part = y.contiguous(), y.view(-1, 2, 2)
        y.relu_()
        return y + same + (part.flatten(1) if self.late else 0)


def test_operators_in_place(tmp_path):
    model, x = small()
    agrees(convert(InPlace(model[0], False), fuse=False), tmp_path / "net.onnx", x)
    with pytest.raises(ValueError, match="relu_: it changes in place what view, which is used later, is another view of"):
        fastq.export_onnx(convert(InPlace(model[0], True), fuse=False), tmp_path / "late.onnx", x)
    assert not (tmp_path / "late.onnx").exists()


class Calls(nn.Module):
    """One layer, and ``function`` of what it gives."""

    def __init__(self, layer, function):
        super().__init__()
        self.layer, self.function = layer, function

    def forward(self, x):
        return self.function(self.layer(x))


REFUSED = {
    "erfinv": (lambda y: y.erfinv(), "erfinv, a call of erfinv: it has no form in ONNX here"),
    "the batch": (lambda y: y * y.size(0), "mul, a call of mul: it computes with the size of the batch"),
    "a mask": (lambda y: y.masked_fill(y > 0, 0.0), "gt, a call of gt: it gives torch.bool; export the network in float32"),
    "dropout": (lambda y: F.dropout(y), "dropout, a call of dropout: it drops numbers at random"),
    "alpha": (lambda y: torch.add(y, y, alpha=2), "add, a call of add: alpha is 2"),
    "an index": (lambda y: y[:, [0, 1]], r"getitem, a call of getitem: an index is \(0, 1\)"),
    "set": (lambda y: y.__setitem__(0, 1.0) or y, "setitem, a call of setitem: it changes a tensor in place and gives none"),
    "windows inside": (lambda y: F.max_pool2d(y.view(-1, 1, 2, 2), 2, 2, 1, ceil_mode=True), None),
    "a window more": (lambda y: F.max_pool1d(y.view(-1, 1, 4), 2, 3, ceil_mode=True), "its ceil_mode adds a window that does not"),
    "no tensor": (lambda y: (y, y.shape[1]), "the network returns getitem, which is no tensor"),
    "half": (lambda y: y.half(), "it gives torch.float16; export the network in float32"),
    "to the batch": (lambda y: y.view(6, 4), "the network does not run on"),
    "python": (lambda y: y if y.sum() > 0 else -y, "torch.fx cannot trace it"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_form_is_named(tmp_path, name):
    function, message = REFUSED[name]
    model, x = small()
    network = convert(Calls(model[0], function), fuse=False)
    if message is None:
        agrees(network, tmp_path / "net.onnx", x)
        return
    with pytest.raises(ValueError, match=f"export_onnx: .*{message}"):
        fastq.export_onnx(network, tmp_path / "net.onnx", x)
    assert list(tmp_path.iterdir()) == []


def test_layers_that_have_no_form_are_named(tmp_path):
    model, x = small()
    path = tmp_path / "net.onnx"
    network = convert(nn.Sequential(model[0], nn.PReLU()))
    with pytest.raises(ValueError, match="export_onnx: layer 1: a PReLU has no form in ONNX here"):
        fastq.export_onnx(network, path, x)
    network = convert(model)
    network[0].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="layer 0: it has forward hooks, which a file does not run"):
        fastq.export_onnx(network, path, x)
    network = convert(model)
    network.register_forward_pre_hook(lambda *_: None)
    with pytest.raises(ValueError, match="export_onnx: the model itself has forward hooks, which a file does not run"):
        fastq.export_onnx(network, path, x)
    images_, layer = drawn((2, 3, 6, 6), 1), nn.Conv2d(3, 4, 3)
    network = convert(quantized(layer, LSQ(4), LSQ(4), images_))
    with pytest.raises(ValueError, match=r"layer \(the model itself\): it takes a single sample of 3 dimensions"):
        fastq.export_onnx(network, path, images_[0], dynamic_batch=False)
    double = convert(copy.deepcopy(model).double())
    with pytest.raises(ValueError, match=r"layer 0: .*torch.float64; export the network in float32"):
        fastq.export_onnx(double, path, x)
    half = convert(nn.Sequential(copy.deepcopy(model[0]), nn.Linear(4, 2).to(DEVICE))).bfloat16()
    with pytest.raises(ValueError, match=r"torch\.bfloat16; export the network in float32|does not run on"):
        fastq.export_onnx(half, path, x)


def test_arguments(tmp_path, monkeypatch):
    model, x = small()
    network, path = convert(model), tmp_path / "net.onnx"
    for arguments, message in [
        (("net", path, x), r"model must be a torch.nn.Module, a result of fastq.convert, got str"),
        ((network, path, None), "example must be a tensor or a sequence of tensors, got None"),
        ((network, path, [1]), r"example 0 must be a tensor of float32 \(or int64\), got int"),
        ((network, path, x.double()), r"example 0 must be a tensor of float32 \(or int64\), got torch.float64"),
    ]:
        with pytest.raises(TypeError, match=f"export_onnx: {message}"):
            fastq.export_onnx(*arguments)
    with pytest.raises(TypeError, match="export_onnx: dynamic_batch must be a bool, got 1"):
        fastq.export_onnx(network, path, x, dynamic_batch=1)
    with pytest.raises(TypeError, match="export_onnx: int4 must be a bool, got None"):
        fastq.export_onnx(network, path, x, int4=None)
    with pytest.raises(ValueError, match="export_onnx: model has no integer layer"):
        fastq.export_onnx(model, path, x)
    with pytest.raises(ValueError, match=r"export_onnx: the network takes 1 arguments \(input\), got 2 examples"):
        fastq.export_onnx(network, path, (x, x))
    with pytest.raises(ValueError, match=r"a dynamic batch needs examples of one size along axis 0, got \(0, 8\)"):
        fastq.export_onnx(network, path, x[:0])
    with pytest.raises(FileNotFoundError):
        fastq.export_onnx(network, tmp_path / "absent" / "net.onnx", x)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"export_onnx: needs the package onnx .*pip install onnx"):
        fastq.export_onnx(network, path, x)
    assert list(tmp_path.iterdir()) == []
