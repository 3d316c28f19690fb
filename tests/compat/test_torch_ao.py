"""fastq.compat.torch_ao against torch.ao.quantization: numbers, switches, checkpoints and converted models, in less time."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from compat_timing import times_faster
from device import drawn
from torch import nn
from torch.ao.quantization import FakeQuantize as TorchFakeQuantize
from torch.ao.quantization import (
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    QConfig,
    convert,
    default_fake_quant,
    disable_observer,
    prepare_qat,
)
from torch.ao.quantization._learnable_fake_quantize import _LearnableFakeQuantize as TorchLearnable

from fastq.compat import torch_ao
from fastq.compat.torch_ao import FakeQuantize, LearnableFakeQuantize

pytestmark = pytest.mark.usefixtures("one_thread")

ACTIVATION = {"observer": MovingAverageMinMaxObserver, "quant_min": 0, "quant_max": 255, "dtype": torch.quint8}
WEIGHT = {
    "observer": MovingAveragePerChannelMinMaxObserver, "quant_min": -128, "quant_max": 127, "dtype": torch.qint8,
    "qscheme": torch.per_channel_symmetric, "ch_axis": 0,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "tensor, affine": ACTIVATION,
    "tensor, symmetric": {**ACTIVATION, "observer": MinMaxObserver, "dtype": torch.qint8, "quant_min": -8, "quant_max": 7,
                          "qscheme": torch.per_tensor_symmetric},
    "tensor, histogram": {**ACTIVATION, "observer": HistogramObserver, "quant_max": 127},
    "channel, symmetric": WEIGHT,
    "channel, affine, last axis": {**WEIGHT, "qscheme": torch.per_channel_affine, "ch_axis": 3},
}  # fmt: skip


def passes(module: Any, x: torch.Tensor, g: torch.Tensor) -> list[torch.Tensor]:
    """Output and gradient of ``x``."""
    leaf = x.detach().clone().requires_grad_()
    y = module(leaf)
    return [y.detach(), *torch.autograd.grad(y, leaf, g)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_output_gradient_and_state_equal_torch_s(kind: str, dtype: torch.dtype) -> None:
    theirs, ours = TorchFakeQuantize(**KINDS[kind]), FakeQuantize(**KINDS[kind])
    for step in range(3):  # the observers' running estimates too
        x, g = (drawn((6, 5, 4, 6), seed=2 * step + i).to(dtype) * (step + 1) for i in range(2))
        assert all(torch.equal(a, b) for a, b in zip(passes(theirs, x, g), passes(ours, x, g), strict=True))
    state = theirs.state_dict()
    assert state.keys() == ours.state_dict().keys()
    assert all(torch.equal(value, ours.state_dict()[key]) for key, value in state.items())
    assert all(torch.equal(a, b) for a, b in zip(theirs.calculate_qparams(), ours.calculate_qparams(), strict=True))


@pytest.mark.parametrize(
    "name",
    ["default_fake_quant", "default_weight_fake_quant", "default_per_channel_weight_fake_quant", "default_fused_act_fake_quant",
     "default_fused_wt_fake_quant", "default_fused_per_channel_wt_fake_quant"],
)  # fmt: skip
def test_default_constructors_are_torch_s(name: str) -> None:
    theirs, ours = getattr(torch.ao.quantization.fake_quantize, name)(), getattr(torch_ao, name)()
    assert isinstance(ours, FakeQuantize) and not isinstance(theirs, FakeQuantize)
    for step in range(4):
        if step == 2:  # statistics alone; and then the other way about
            theirs.disable_fake_quant(), ours.disable_fake_quant()
        if step == 3:
            for module in (theirs, ours):
                module.enable_fake_quant()
                module.disable_observer()
        x, g = (drawn((6, 5, 4, 6), seed=2 * step + i) * (step + 1) for i in range(2))
        assert all(torch.equal(a, b) for a, b in zip(passes(theirs, x, g), passes(ours, x, g), strict=True))
        states = theirs.state_dict(), ours.state_dict()
        assert states[0].keys() == states[1].keys() and all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(theirs(x), ours(x))


@pytest.mark.parametrize("backend", ["x86", "qnnpack"])
def test_the_default_configuration_trains_as_torch_s(backend: str) -> None:
    curves = []
    for default in (torch.ao.quantization.get_default_qat_qconfig, torch_ao.get_default_qat_qconfig):
        model = network().train()
        model.qconfig = default(backend)
        prepare_qat(model, inplace=True)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        x, target, losses = drawn((8, 3, 8, 8)), torch.arange(8) % 5, []
        for _ in range(5):
            loss = nn.functional.cross_entropy(model(x), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        curves.append(losses)
    assert curves[0] == curves[1] and curves[1][-1] < curves[1][0]
    with pytest.raises(
        ValueError, match=r"fused: expected a QConfig or with_args\(\.\.\.\) of FakeQuantize, .*got .*HistogramObserver"
    ):
        torch_ao.fused(HistogramObserver.with_args(reduce_range=True))


def test_a_narrowed_constructor_is_translated_as_torch_would_call_it() -> None:
    torch_s = default_fake_quant.with_args(quant_max=127)  # a wrapper around a wrapper around the class
    ours, expected = torch_ao.fused(torch_s)(), torch_s()
    assert type(ours) is torch_ao.FakeQuantize
    for name in ("quant_min", "quant_max", "dtype", "qscheme"):
        assert getattr(ours, name) == getattr(expected, name)
    assert expected.quant_max < default_fake_quant().quant_max  # the keyword arrived

    kinds = {"inner": torch.quint8, "outer": torch.qint8}
    for inner in ({"dtype": kinds["inner"]}, {}):
        nested = TorchFakeQuantize.with_args(observer=MinMaxObserver, quant_min=0, quant_max=15, **inner)
        nested = nested.with_callable_args(dtype=lambda: kinds["outer"]).with_args(quant_max=7)
        ours, expected = torch_ao.fused(nested)(), nested()
        assert (ours.quant_min, ours.quant_max, ours.dtype) == (0, 7, expected.dtype) == (0, 7, kinds["outer"])
    overridden = nested.with_args(dtype=kinds["inner"])  # a keyword from further out wins over a callable
    assert torch_ao.fused(overridden)().dtype == overridden().dtype == kinds["inner"]
    with pytest.raises(ValueError, match="fused: expected a QConfig or"):
        torch_ao.fused(HistogramObserver.with_args(reduce_range=True).with_args(bins=4))


@pytest.mark.parametrize("name", ["default_fake_quant", "default_per_channel_weight_fake_quant", "default_fused_act_fake_quant"])
def test_a_module_called_twice_before_the_backward_pass_has_torch_s_gradients(name: str) -> None:
    results = []
    for library in (torch.ao.quantization.fake_quantize, torch_ao):
        module = getattr(library, name)()
        x = drawn((4, 6)).requires_grad_()
        y = module(x) + module(3 * x.detach().flip(0) + x)  # the second call moves scale and zero-point
        results.append([y.detach(), *torch.autograd.grad(y.sin().sum(), x)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("kind", ["tensor, affine", "channel, symmetric"])
def test_checkpoints_load_both_ways(kind: str) -> None:
    x = drawn((6, 7))
    for source, target in ((TorchFakeQuantize, FakeQuantize), (FakeQuantize, TorchFakeQuantize)):
        trained, loaded = source(**KINDS[kind]), target(**KINDS[kind])
        trained(x)
        trained.disable_observer()
        assert not torch.equal(loaded.scale, trained.scale)
        loaded.load_state_dict(trained.state_dict())
        assert torch.equal(loaded(2 * x), trained(2 * x))  # the observer's switch came along


def test_every_way_to_turn_a_switch_is_seen() -> None:
    x = drawn((4, 5))
    module = FakeQuantize(**ACTIVATION)
    quantized = module(x)
    assert not torch.equal(quantized, x)

    def off_by_index(m: FakeQuantize) -> None:
        m.fake_quant_enabled[0] = 0

    def off_by_replacing(m: FakeQuantize) -> None:
        m.fake_quant_enabled = torch.zeros(1, dtype=torch.uint8)

    def off_by_loading(m: FakeQuantize) -> None:
        m.load_state_dict({**m.state_dict(), "fake_quant_enabled": torch.zeros(1, dtype=torch.uint8)})

    ways: list[Callable[[FakeQuantize], Any]] = [
        FakeQuantize.disable_fake_quant, torch.ao.quantization.disable_fake_quant, off_by_index, off_by_replacing, off_by_loading,
    ]  # fmt: skip
    for off in ways:
        assert torch.equal(module(x), quantized)
        off(module)
        assert torch.equal(module(x), x), off
        assert torch.equal(copy.deepcopy(module)(x), x)
        module.enable_fake_quant()
    disable_observer(module)
    scale = module.scale.clone()
    module(100 * x)
    assert torch.equal(module.scale, scale)
    module.zero_point.fill_(3)  # what is kept of the zero-point is read again too
    assert torch.equal(module(x), torch.fake_quantize_per_tensor_affine(x, scale, module.zero_point, 0, 255))


def test_inference_mode_and_compile_see_the_switches() -> None:
    x = drawn((4, 5))
    with torch.inference_mode():
        module = FakeQuantize(**ACTIVATION)
        quantized = module(x)
        module.disable_fake_quant()
        assert torch.equal(module(x), x)
    module = FakeQuantize(**ACTIVATION)
    compiled = torch.compile(module, backend="eager")
    assert torch.equal(compiled(x), quantized)
    module.disable_fake_quant()
    assert torch.equal(compiled(x), x)
    torch._dynamo.reset()


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        torch.ao.quantization.QuantStub(), nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 5),
        torch.ao.quantization.DeQuantStub(),
    )  # fmt: skip


def trained(activation: Any, weight: Any) -> tuple[list[float], nn.Module, torch.Tensor]:
    """The losses of a few steps after ``prepare_qat``, the converted network, and its output."""
    model = network().train()
    model.qconfig = QConfig(activation=activation.with_args(**ACTIVATION), weight=weight.with_args(**WEIGHT))
    prepare_qat(model, inplace=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    x, target = drawn((16, 3, 8, 8)), torch.arange(16) % 5
    losses = []
    for step in range(12):
        if step == 8:
            model.apply(disable_observer)
        loss = nn.functional.cross_entropy(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    converted = convert(model.eval())
    return losses, converted, converted(x)


def test_a_network_trains_and_converts_as_with_torch_s() -> None:
    losses, converted, output = trained(TorchFakeQuantize, TorchFakeQuantize)
    ours, ours_converted, ours_output = trained(FakeQuantize, FakeQuantize)
    assert losses == ours and losses[-1] < 0.8 * losses[0]  # bit for bit, and it learns
    assert torch.equal(output, ours_output)
    assert [type(m) for m in converted.modules()] == [type(m) for m in ours_converted.modules()]


def learnable(kind: type, channels: int) -> Any:
    where: dict[str, Any] = {"observer": MovingAverageMinMaxObserver, "qscheme": torch.per_tensor_affine}
    if channels > 1:
        where = {"observer": MovingAveragePerChannelMinMaxObserver, "qscheme": torch.per_channel_symmetric, "ch_axis": 0}
    return kind(quant_min=-8, quant_max=7, scale=0.2, zero_point=0.0, channel_len=channels if channels > 1 else -1,
                use_grad_scaling=True, dtype=torch.qint8, **where)  # fmt: skip


@pytest.mark.parametrize("channels", [1, 8])
def test_the_learnable_one_learns_as_torch_s(channels: int) -> None:
    """Output and gradient of ``x`` by bits; the parameters' sums to fp32 rounding, which the loss curve inherits."""
    curves, states = [], []
    x, target = drawn((32, 12)), drawn((32, 8), seed=1)
    for kind in (TorchLearnable, LearnableFakeQuantize):
        torch.manual_seed(0)
        layer, quantizer = nn.Linear(12, 8), learnable(kind, channels)
        quantizer(layer.weight)  # static estimate
        quantizer.enable_param_learning()
        optimizer = torch.optim.Adam([*layer.parameters(), *quantizer.parameters()], lr=0.01)
        losses = []
        for _ in range(25):
            loss = nn.functional.mse_loss(nn.functional.linear(x, quantizer(layer.weight), layer.bias), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        curves.append(torch.tensor(losses))
        states.append(quantizer.state_dict())
    # Sums of 12 or 96 terms in another order: 96 * 2**-24 of the largest term; 25 steps add up. A flipped code would show as 1e-3.
    assert torch.allclose(curves[0], curves[1], rtol=1e-4, atol=0)
    assert curves[1][-1] < 0.95 * curves[1][0]
    assert states[0].keys() == states[1].keys()
    for source, target_kind in zip(states, (LearnableFakeQuantize, TorchLearnable), strict=True):
        loaded = learnable(target_kind, channels)
        loaded.load_state_dict(source)
        assert torch.equal(loaded.scale, source["scale"])


@pytest.mark.parametrize("channels", [1, 6])
def test_the_learnable_one_has_torch_s_gradients(channels: int) -> None:
    x, g = drawn((6, 40)), drawn((6, 40), seed=1)
    results = []
    for kind in (TorchLearnable, LearnableFakeQuantize):
        quantizer = learnable(kind, channels)
        quantizer.enable_param_learning()
        with torch.no_grad():
            quantizer.scale.copy_(torch.linspace(0.1, 0.3, channels))
        y, dx = passes(quantizer, x, g)
        results.append((y, dx, quantizer.scale.grad if quantizer.scale.grad is not None else torch.empty(0)))
        leaf = x.clone().requires_grad_()
        quantizer(leaf).backward(g)
        results[-1] = (*results[-1][:2], quantizer.scale.grad, quantizer.zero_point.grad)
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    for a, b in zip(results[0][2:], results[1][2:], strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)  # 240 terms of up to 8, summed in another order: 240 * 8 * 2**-24


def test_what_is_not_served_says_so() -> None:
    with pytest.raises(
        ValueError, match=r"FakeQuantize: qscheme torch\.per_channel_affine_float_qparams has fractional zero-points"
    ):
        FakeQuantize(**{**WEIGHT, "dtype": torch.quint8, "quant_min": 0, "qscheme": torch.per_channel_affine_float_qparams})
    with pytest.raises(ValueError, match=r"FakeQuantize: quant_min and quant_max must lie within ±65536, got .*2147483647"):
        FakeQuantize(observer=MinMaxObserver, dtype=torch.qint32, quant_min=-(2**31), quant_max=2**31 - 1)
    module = FakeQuantize(**{**WEIGHT, "ch_axis": 1})
    module.disable_observer()
    with pytest.raises(ValueError, match=r"FakeQuantize: ch_axis must be in \[-1, 0\] for x of 1 dimensions, got 1"):
        module(torch.ones(4))
    with pytest.raises(ValueError, match=r"fake_quantize_affine: scale must have shape \(5,\)"):
        module(torch.ones(4, 5))
    with pytest.raises(TypeError, match=r"FakeQuantize: x must be float32, bfloat16, float16 or float64, got torch\.int64"):
        module(torch.ones(4, 5, dtype=torch.int64))


def test_it_is_faster() -> None:
    """Measured 7x, of CPU time on one core; less than half of it is asked for, of the best of several."""
    x, g = torch.randn(512, 4096), torch.randn(512, 4096)
    modules = [
        TorchFakeQuantize(**ACTIVATION),
        FakeQuantize(**ACTIVATION),
        *(learnable(k, 1) for k in (TorchLearnable, LearnableFakeQuantize)),
    ]
    for module in modules:
        module(x)
        module.enable_param_learning() if hasattr(module, "enable_param_learning") else module.disable_observer()
    calls = [lambda m=m: passes(m, x, g) for m in modules]
    assert times_faster(calls[0], calls[1]) > 2
    assert times_faster(calls[2], calls[3]) > 2
