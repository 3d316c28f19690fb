"""fastq.compat.torchao against torchao: the same numbers under ``quantize_``, checkpoints and converted models, in less time."""

from typing import Any

import pytest
import torch
from compat_timing import times_faster
from device import drawn
from torch import nn
from torchao.quantization import (
    Float8DynamicActivationFloat8WeightConfig,
    Int4WeightOnlyConfig,
    Int8DynamicActivationIntxWeightConfig,
    PerGroup,
    quantize_,
)
from torchao.quantization.qat import IntxFakeQuantizeConfig, initialize_fake_quantizers
from torchao.quantization.qat import IntxFakeQuantizer as TorchaoFakeQuantizer
from torchao.quantization.qat import QATConfig as TorchaoConfig
from torchao.quantization.quant_primitives import ZeroPointDomain

from fastq.compat.torchao import IntxFakeQuantizer, QATConfig

pytestmark = pytest.mark.usefixtures("one_thread")

WEIGHT = IntxFakeQuantizeConfig(torch.int4, group_size=32)
ACTIVATION = IntxFakeQuantizeConfig(torch.int8, "per_token", is_symmetric=False)
CONFIGS = {
    "group, symmetric": WEIGHT,
    "group, asymmetric": IntxFakeQuantizeConfig(torch.int4, group_size=16, is_symmetric=False),
    "token": ACTIVATION,
    "channel, symmetric": IntxFakeQuantizeConfig(torch.int8, "per_channel"),
    "channel, asymmetric": IntxFakeQuantizeConfig(torch.int3, "per_channel", is_symmetric=False),
    "channel, unsigned": IntxFakeQuantizeConfig(torch.uint4, "per_channel"),
    "group, static": IntxFakeQuantizeConfig(torch.int2, group_size=8, is_dynamic=False),
    "token, eps": IntxFakeQuantizeConfig(torch.int8, "per_token", is_symmetric=False, eps=0.05),
}


def passes(quantizer: Any, x: torch.Tensor, g: torch.Tensor) -> tuple[torch.Tensor, ...]:
    leaf = x.detach().clone().requires_grad_()
    y = quantizer(leaf)
    return y.detach(), *torch.autograd.grad(y, leaf, g), quantizer.scale, quantizer.zero_point


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", CONFIGS)
def test_output_scale_and_zero_point_are_torchao_s(kind: str, dtype: torch.dtype) -> None:
    theirs, ours = TorchaoFakeQuantizer(CONFIGS[kind]), IntxFakeQuantizer(CONFIGS[kind])
    for step in range(2):  # a static one keeps the first scale
        x, g = ((drawn((12, 64), seed=2 * step + i) * (step + 1)).to(dtype) for i in range(2))
        x[3] = 0  # a row of zeros
        if "asymmetric" not in kind:  # those take the middle of a group for a zero-point, which is none far from 0
            x[5], x[6] = x[5] + 9, x[6] - 9
        (y, dx, scale, zero), (our_y, our_dx, our_scale, our_zero) = passes(theirs, x, g), passes(ours, x, g)
        assert torch.equal(y, our_y) and torch.equal(scale, our_scale) and torch.equal(zero, our_zero)
        assert our_scale.dtype == scale.dtype and our_zero.dtype == zero.dtype
        # torchao's dx is (g * scale) * (1 / scale): two roundings in its dtype and one of 1 / scale; here it is g. A row of zeros
        # has the smallest scale there is, whose product with g underflows there.
        seen = [r for r in range(12) if r != 3]
        assert torch.allclose(dx[seen].float(), our_dx[seen].float(), rtol=3 * torch.finfo(dtype).eps, atol=1e-5)
        assert torch.equal(our_dx != 0, (our_dx == g) & (g != 0))


def test_tokens_of_any_shape() -> None:
    x, g = drawn((2, 3, 5, 16)), drawn((2, 3, 5, 16), seed=1)
    (y, _, scale, zero), (our_y, _, our_scale, our_zero) = (
        passes(k(ACTIVATION), x, g) for k in (TorchaoFakeQuantizer, IntxFakeQuantizer)
    )
    assert torch.equal(y, our_y) and torch.equal(scale, our_scale) and torch.equal(zero, our_zero)
    strided = x.transpose(1, 2)  # torchao views, and refuses
    assert torch.equal(IntxFakeQuantizer(ACTIVATION)(strided), IntxFakeQuantizer(ACTIVATION)(strided.contiguous()))


def test_a_half_precision_scale_moves_codes_next_to_a_tie_by_one() -> None:
    config = IntxFakeQuantizeConfig(torch.int4, group_size=32, scale_precision=None)  # what base configs infer
    x = drawn((64, 128)).bfloat16()
    theirs, ours = TorchaoFakeQuantizer(config), IntxFakeQuantizer(config)
    y, our_y = theirs(x), ours(x)
    assert torch.equal(theirs.scale, ours.scale) and ours.scale.dtype == torch.bfloat16
    codes, our_codes = ((t.float().view(64, 4, 32) / ours.scale.float().unsqueeze(-1)).round() for t in (y, our_y))
    # The quotient, up to 8, rounded to 8 bits, and so 1/scale: 8 * 2**-8 of a code, of which a tie is within for about 1 in 30.
    assert (codes - our_codes).abs().max() <= 1 and (codes != our_codes).float().mean() < 1 / 30


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 5))


def train(model: nn.Module, steps: int = 20) -> torch.Tensor:
    x, target = drawn((40, 64)), torch.arange(40) % 5
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses)


class Rounded(torch.autograd.Function):
    """torchao's roundings of a gradient that fastq passes on as it is: multiplied by scale, and by 1 / scale."""

    @staticmethod
    def forward(ctx: Any, y: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(scale)
        return y.clone()

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> Any:
        scale = ctx.saved_tensors[0].reshape(-1, 1)
        return ((g.reshape(scale.shape[0], -1) * scale) * (1.0 / scale)).view(g.shape), None


BASE = Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4, weight_granularity=PerGroup(32))


def curve(config: type, ulps: int = 0, rounded: bool = False) -> tuple[torch.Tensor, nn.Module]:
    model = network()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + ulps * 2**-23)
    quantize_(model, config(BASE, step="prepare"))
    quantizers = [m for m in model.modules() if isinstance(m, TorchaoFakeQuantizer)]
    assert len(quantizers) == 4 and all(isinstance(q, IntxFakeQuantizer) == (config is QATConfig) for q in quantizers)
    if rounded:
        for quantizer in quantizers:
            quantizer.register_forward_hook(lambda module, _, y: Rounded.apply(y, module.scale))
    return train(model), model


def test_but_for_two_roundings_of_the_gradient_the_loss_curve_is_torchao_s_bit_for_bit() -> None:
    assert torch.equal(curve(TorchaoConfig)[0], curve(QATConfig, rounded=True)[0])


def test_the_loss_curve_is_as_near_to_torchao_s_as_that_is_to_itself_from_weights_an_ulp_away() -> None:
    """Symmetric groups have scale = max|w| / 7.5: the largest weight of each lies on a tie, and an ulp turns its code or its mask;
    what tells two runs apart is chance, and its size is that of torchao's own runs from weights 1, 2 and 3 ulp away."""
    theirs, ours = curve(TorchaoConfig)[0], curve(QATConfig)[0]
    chance = max(float((curve(TorchaoConfig, ulps=n)[0] - theirs).abs().max()) for n in (1, 2, 3))
    assert 1e-5 < chance < 0.01 * float(theirs[0])  # a percent of the loss at most, and not nothing
    assert theirs[0] == ours[0] and float((ours - theirs).abs().max()) < 3 * chance
    assert ours[-1] < 0.8 * ours[0]


def test_a_trained_network_converts_to_what_was_trained() -> None:
    _, model = curve(QATConfig)
    x = drawn((16, 64), seed=3)
    trained = model(x)
    quantize_(model, QATConfig(BASE, step="convert"))
    assert type(model[0]) is nn.Linear and type(model[0].weight) is not nn.Parameter
    assert torch.allclose(model(x), trained, rtol=1e-4, atol=1e-5)  # float32 products in another order


def test_embeddings_and_explicit_configs() -> None:
    results = []
    for config in (TorchaoConfig, QATConfig):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(11, 32), nn.Linear(32, 4))
        quantize_(model, config(weight_config=WEIGHT), filter_fn=lambda m, _: isinstance(m, nn.Embedding))
        quantize_(model, config(activation_config=ACTIVATION, weight_config=WEIGHT))
        y = model(torch.arange(10).view(2, 5))
        y.square().mean().backward()
        results.append((y.detach(), model[0].weight.grad))
    assert torch.allclose(results[0][0], results[1][0], rtol=1e-6, atol=1e-7)  # the same bits go into the same product
    assert torch.allclose(results[0][1], results[1][1], rtol=1e-5, atol=1e-8)


def test_learned_ranges_train_load_and_convert_as_torchao_s() -> None:
    config = IntxFakeQuantizeConfig(torch.int4, group_size=32, is_dynamic=False, range_learning=True)
    curves, models = [], []
    for kind in (TorchaoConfig, QATConfig):
        model = network()
        quantize_(model, kind(weight_config=config), filter_fn=lambda m, name: name == "0")
        initialize_fake_quantizers(model, (drawn((2, 64)),))
        curves.append(train(model))
        models.append(model)
    theirs, ours = models
    assert ours.state_dict().keys() == theirs.state_dict().keys() and "0.weight_fake_quantizer.scale" in ours.state_dict()
    start = IntxFakeQuantizer(config)
    start._initialized = True
    start(network()[0].weight)
    assert not torch.allclose(start.scale, ours[0].weight_fake_quantizer.scale, rtol=1e-3)  # it learned
    # The gradient of a scale is a sum of 32 terms, which torchao takes as two sums of larger ones; flipped codes show as 1e-3.
    assert torch.allclose(curves[0], curves[1], rtol=5e-3, atol=0)
    state = theirs.state_dict()
    ours.load_state_dict(state)
    x = drawn((3, 64))
    assert torch.allclose(ours(x), theirs(x), rtol=1e-5, atol=1e-6)
    theirs.load_state_dict(ours.state_dict())


def test_a_prepared_network_compiles_into_one_graph() -> None:
    model, x = network(), drawn((5, 64))
    quantize_(model, QATConfig(activation_config=ACTIVATION, weight_config=WEIGHT))
    results = []
    for forward in (model, torch.compile(model, backend="aot_eager", fullgraph=True)):
        y = forward(x)
        results.append((y.detach(), *torch.autograd.grad(y.sin().sum(), list(model.parameters()))))
    torch._dynamo.reset()
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_disabled_it_passes_its_input() -> None:
    quantizer, x = IntxFakeQuantizer(WEIGHT), drawn((4, 32))
    quantizer.enabled = False
    assert quantizer(x) is x


def test_what_is_not_served_says_so() -> None:
    model = nn.Sequential(nn.Linear(128, 128))
    with pytest.raises(
        ValueError, match="QATConfig: torchao trains Linear with Float8FakeQuantizer here, which the kernels do not serve"
    ):
        quantize_(model, QATConfig(Float8DynamicActivationFloat8WeightConfig(version=2)))
    with pytest.raises(ValueError, match="QATConfig: torchao trains Linear with Int4WeightFakeQuantizer here"):
        quantize_(model, QATConfig(Int4WeightOnlyConfig(group_size=128)))
    assert type(model[0]) is nn.Linear
    with pytest.raises(ValueError, match=r"IntxFakeQuantizer: zero_point_domain must be ZeroPointDomain\.INT"):
        IntxFakeQuantizer(IntxFakeQuantizeConfig(torch.int4, group_size=32, zero_point_domain=ZeroPointDomain.FLOAT))
    with pytest.raises(ValueError, match="IntxFakeQuantizer: range_learning=True needs is_symmetric=True"):
        IntxFakeQuantizer(
            IntxFakeQuantizeConfig(torch.int8, "per_channel", is_symmetric=False, is_dynamic=False, range_learning=True)
        )
    with pytest.raises(TypeError, match="IntxFakeQuantizer: config must be an IntxFakeQuantizeConfig, got int"):
        IntxFakeQuantizer(4)
    with pytest.raises(ValueError, match=r"x must be a matrix whose rows hold groups of 32 .*, got \(4, 40\)"):
        IntxFakeQuantizer(WEIGHT)(torch.ones(4, 40))
    with pytest.raises(TypeError, match=r"IntxFakeQuantizer: x must be float32, bfloat16, float16 or float64, got torch\.int64"):
        IntxFakeQuantizer(ACTIVATION)(torch.ones(4, 40, dtype=torch.int64))
    with pytest.raises(ValueError, match="IntxFakeQuantizer: x must be float32, bfloat16 or float16"):
        IntxFakeQuantizer(ACTIVATION)(torch.ones(4, 40, dtype=torch.float64))
    static = IntxFakeQuantizer(IntxFakeQuantizeConfig(torch.int4, group_size=8, is_dynamic=False))
    static(torch.ones(4, 16))
    with pytest.raises(ValueError, match=r"scale of shape \(4, 2\) was fixed by the first input; x of shape \(5, 16\) needs 10"):
        static(torch.ones(5, 16))


@pytest.mark.parametrize("config", [WEIGHT, ACTIVATION], ids=["group", "token"])
def test_it_is_faster(config: IntxFakeQuantizeConfig) -> None:
    """Measured 4x, of CPU time on one core."""
    x, g = torch.randn(512, 4096), torch.randn(512, 4096)
    theirs, ours = TorchaoFakeQuantizer(config), IntxFakeQuantizer(config)
    assert times_faster(lambda: passes(theirs, x, g), lambda: passes(ours, x, g)) > 2
