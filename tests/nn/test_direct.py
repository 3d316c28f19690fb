"""Weights as codes: the module, the layers and the optimizer's side."""

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from device import BACKEND, DEVICE, drawn
from torch import nn

import fastq
from fastq.nn import ChannelError, DirectConv1d, DirectConv2d, DirectLinear, DirectWeight
from fastq.reference.direct import nearest_level
from fastq.testing import same_bits


@pytest.fixture(autouse=True)
def on_backend() -> Any:
    with fastq.use_backend(BACKEND):
        yield


def made(bits: int = 2, levels: str = "free", shape: tuple[int, ...] = (30, 7), **keywords: Any) -> DirectWeight:
    weight = DirectWeight(bits, levels, **keywords)
    weight.initialize(drawn(shape))
    return weight


@pytest.mark.parametrize("levels", ["free", "basis"])
@pytest.mark.parametrize("bits", [1, 2, 3, 8])
def test_the_first_weights_are_the_nearest_of_equidistant_levels(bits: int, levels: str) -> None:
    module, w = made(bits, levels), drawn((30, 7))
    grid = module.levels().detach()
    assert grid.shape == (2**bits,) and bool((grid.diff() > 0).all())
    torch.testing.assert_close(grid.diff(), grid.diff().mean().expand(len(grid) - 1), rtol=1e-4, atol=1e-5)  # roundings of fp32
    y = module()
    assert same_bits(y, grid[nearest_level(w, grid)]) and y.requires_grad
    # rho = 1 with an fp32 residual keeps what there was, to the rounding of one addition
    assert module.residual is not None
    torch.testing.assert_close(y.detach() + module.residual, w, rtol=0, atol=1e-6)
    coarse = ((w - grid.mean()).square()).mean()
    assert (y.detach() - w).square().mean() < coarse * {1: 0.5, 2: 0.2, 3: 0.06, 8: 1e-3}[bits]


def test_the_gradient_of_a_basis_is_that_of_its_levels_through_the_signs() -> None:
    module = made(3, "basis")
    g = drawn((30, 7), 1)
    (dv,) = torch.autograd.grad(module(), module.basis, g)
    dl = torch.stack([g[module.codes == k].sum() for k in range(8)])
    signs = torch.tensor([[1.0 if k >> (2 - j) & 1 else -1.0 for j in range(3)] for k in range(8)], device=DEVICE)
    torch.testing.assert_close(dv, signs.T @ dl, rtol=1e-5, atol=1e-4)  # sums of 210 numbers near 1 in fp32
    torch.testing.assert_close(module.levels(), signs @ module.basis)


@pytest.mark.parametrize(("bits", "levels"), [(2, "free"), (2, "basis"), (3, "basis")])
def test_levels_that_change_places_are_relabelled_and_no_weight_moves(bits: int, levels: str) -> None:
    module = made(bits, levels)
    parameter = module.free if levels == "free" else module.basis
    assert not module.relabel()
    with torch.no_grad():
        before = module._rows()[module.order[module.codes.long()]]  # by row, whatever the order
        rows = module.order[module.codes.long()]
        parameter.copy_(parameter.flip(0) * torch.tensor([1.0, -1.0] * 4, device=DEVICE)[: len(parameter)])
        moved = module._rows()[rows]
    assert module.relabel() and not module.relabel()
    assert bool((module.levels().diff() >= 0).all())
    assert same_bits(module(), moved) and not torch.equal(moved, before)


# The optimizer's side


class Latent(nn.Module):
    """The same with a latent fp32 weight: straight-through, the optimizer on the weight itself."""

    def __init__(self, weight: torch.Tensor, levels: torch.Tensor) -> None:
        super().__init__()
        self.latent, self.fixed = nn.Parameter(weight.clone()), levels

    def forward(self) -> torch.Tensor:
        return _Straight.apply(self.fixed[nearest_level(self.latent.detach(), self.fixed)], self.latent)


class _Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
        return q.clone()

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> Any:
        return None, g


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.0625),
    "SGD, momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.02),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.0),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_with_fixed_levels_it_is_training_of_a_latent_weight(name: str) -> None:
    module, x, target = made(3), drawn((40, 7), 5), drawn((40, 30), 6)
    module.free.requires_grad_(False)
    assert module.residual is not None
    latent = Latent(module().detach() + module.residual, module.levels().detach())
    ours = fastq.DirectOptimizer(OPTIMIZERS[name]([module.delta]), module)
    theirs = OPTIMIZERS[name](latent.parameters())
    losses = []
    for _ in range(20):
        pair = []
        for model, optimizer in ((module, ours), (latent, theirs)):
            optimizer.zero_grad()
            loss = (x @ model().t() - target).square().mean()
            loss.backward()
            optimizer.step()
            pair.append(float(loss.detach()))
        losses.append(pair)
    start, end = losses[0][0], losses[-1][0]
    assert end < 0.97 * start, "it learns"
    # A rounding of the residual may decide a code that lies half-way: the curves agree but for such.
    assert max(abs(a - b) / b for a, b in losses) < 0.01
    same = (module.codes.long() == nearest_level(latent.latent.detach(), latent.fixed)).float().mean()
    assert same > 0.99
    kept = (module().detach() + module.residual - latent.latent.detach()).abs()
    assert kept.median() < 1e-5


def test_a_step_of_sgd_is_the_update_itself() -> None:
    module = made(4, rho=0.5)
    optimizer = fastq.DirectOptimizer(torch.optim.SGD([module.delta], lr=0.25), module)
    codes, levels, g = module.codes.clone(), module.levels().detach().clone(), drawn((30, 7), 3)
    assert module.residual is not None
    residual = module.residual.clone()
    module().backward(g)
    optimizer.step()
    fastq.reference.direct_update_(codes, residual, levels, g, lr=0.25, rho=0.5)  # a power of two: -lr * g rounds nothing
    assert torch.equal(module.codes, codes) and same_bits(module.residual, residual)


@pytest.mark.parametrize("which", ["ours", "the optimizer's own"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_grad_scaler_scales_and_a_step_that_it_skips_moves_no_code(name: str, which: str) -> None:
    """A power of two rounds nothing, so the steps are those without a scaler; after gradients of inf nothing has moved."""
    plain, scaled, x, target = made(3), made(3), drawn((40, 7), 5), drawn((40, 30), 6)
    optimizers = [fastq.DirectOptimizer(OPTIMIZERS[name](m.parameters()), m) for m in (plain, scaled)]
    scaler = torch.amp.GradScaler(DEVICE, init_scale=2.0**10, growth_interval=100)
    stepped = optimizers[1] if which == "ours" else optimizers[1].optimizer
    for t in range(6):
        for module, optimizer in zip((plain, scaled), optimizers, strict=True):
            optimizer.zero_grad()
            loss = (x @ module().t() - target).square().mean()
            if module is plain:
                loss.backward()
                optimizer.step()
                continue
            if t == 3:  # once more, with a gradient that overflows
                before = {key: value.clone() for key, value in module.state_dict().items()}
                scaler.scale(loss * math.inf).backward()
                scaler.step(stepped)
                scaler.update()
                assert scaler.get_scale() == 2.0**9
                assert all(same_bits_or_equal(value, before[key]) for key, value in module.state_dict().items())
                optimizer.zero_grad()
                loss = (x @ module().t() - target).square().mean()
            scaler.scale(loss).backward()
            scaler.step(stepped)
            scaler.update()
    moved = scaled.state_dict()
    assert all(same_bits_or_equal(value, moved[key]) for key, value in plain.state_dict().items())
    assert not torch.equal(scaled.codes, made(3).codes)


def same_bits_or_equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return same_bits(a, b) if a.is_floating_point() else torch.equal(a, b)


@pytest.mark.parametrize("levels", ["free", "basis"])
@pytest.mark.parametrize("rho", [1.0, 0.0])
def test_a_network_of_codes_learns(levels: str, rho: float) -> None:
    model = nn.Sequential(nn.Linear(7, 64), nn.ReLU(), nn.Linear(64, 1)).to(DEVICE)
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(drawn(tuple(p.shape), i) * 0.3)
    model[0] = DirectLinear.from_float(model[0], DirectWeight(3, levels, rho=rho))
    lr = 0.01 if rho else 0.05  # without a residual a step must reach half a level
    optimizer = fastq.DirectOptimizer(torch.optim.Adam(model.parameters(), lr=lr), model)
    x = drawn((256, 7), 9)
    target = (x[:, :1] * x[:, 1:2]).tanh()
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = (model(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]
    values = model[0].weight.unique()
    assert len(values) <= 8, "its weights are levels, nothing else"
    assert bool((model[0].direct.levels().diff() >= 0).all())


def test_a_closure_and_a_scheduler() -> None:
    module = made()
    inner = torch.optim.SGD([module.delta], lr=0.5)
    optimizer = fastq.DirectOptimizer(inner, module)
    schedule = torch.optim.lr_scheduler.StepLR(inner, 1, gamma=0.5)
    before = module.codes.clone()

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (module() - 0.2).square().sum()  # a step of 1/2 goes to the bottom
        loss.backward()
        return loss

    losses = [float(optimizer.step(closure).detach())]
    schedule.step()
    losses.append(float(inner.step(closure).detach()))  # the hooks are on the optimizer itself
    assert losses[1] < 0.5 * losses[0] and not torch.equal(module.codes, before)
    assert optimizer.param_groups[0]["lr"] == 0.25 and "DirectOptimizer(1 weights, SGD" in repr(optimizer)
    now = module.codes.clone()
    assert optimizer.detach() is inner
    with pytest.raises(RuntimeError, match="more than one element of the written-to tensor"):  # loud, not lost
        inner.step(closure)
    assert torch.equal(module.codes, now)


def test_between_steps_nothing_of_the_size_of_the_weights_is_kept_but_codes_and_residual() -> None:
    module = made(2, shape=(100, 100), residual_dtype=torch.bfloat16)
    optimizer = fastq.DirectOptimizer(torch.optim.SGD(module.parameters(), lr=0.1), module)
    module().square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    tensors = [*module.parameters(), *module.buffers()]
    assert sum(t.untyped_storage().nbytes() for t in tensors) < 100 * 100 * 3 + 200
    bare = made(2, shape=(100, 100), rho=0.0)
    assert bare.residual is None and sum(t.untyped_storage().nbytes() for t in [*bare.parameters(), *bare.buffers()]) < 10_200


def test_a_copy_can_be_averaged_into_and_closed() -> None:
    """A ``delta`` with the memory of one number could not be written to, which averaging does with every parameter."""
    module = made(2, shape=(100, 100))
    averaged = torch.optim.swa_utils.AveragedModel(module, use_buffers=True)
    for _ in range(2):
        averaged.update_parameters(module)
    assert isinstance(averaged.module, DirectWeight) and same_bits(averaged.module(), module())
    averaged.module.close_delta()
    assert averaged.module.delta.untyped_storage().nbytes() == 4 == module.delta.untyped_storage().nbytes()


def test_a_weight_without_a_gradient_stays() -> None:
    module, other = made(), made()
    optimizer = fastq.DirectOptimizer(torch.optim.Adam([*module.parameters(), *other.parameters()], lr=0.1), [module, other])
    codes = other.codes.clone()
    module().sum().backward()
    optimizer.step()
    assert torch.equal(other.codes, codes) and other.delta.untyped_storage().nbytes() == 4


# The module as others see it


def test_state_dict_round_trip_and_copies() -> None:
    module = made(3, "basis", residual_dtype=torch.float16)
    state = module.state_dict()
    assert set(state) == {"basis", "codes", "order", "residual"}
    fresh = DirectWeight(3, "basis", residual_dtype=torch.float16).to(DEVICE)
    fresh.load_state_dict(state)
    assert same_bits(fresh(), module()) and same_bits(copy.deepcopy(module)(), module())
    assert same_bits(pickle.loads(pickle.dumps(module))(), module())
    assert list(fresh.load_state_dict(state)) == [[], []]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_converting_the_model_changes_the_weights_dtype_and_nothing_that_it_learns(dtype: torch.dtype) -> None:
    layer = DirectLinear.from_float(nn.Linear(7, 5).to(DEVICE), DirectWeight(3)).to(dtype)
    assert layer.weight.dtype == dtype and layer.direct.free.dtype == torch.float32
    assert layer.direct.residual is not None and layer.direct.residual.dtype == torch.float32
    assert layer.direct.delta.untyped_storage().nbytes() == 4
    layer(drawn((3, 7)).to(dtype)).sum().backward()
    assert layer.direct.delta.grad is not None and layer.direct.delta.grad.dtype == torch.float32
    assert same_bits(layer.weight, layer.direct.levels()[layer.direct.codes.long()].to(dtype))


@pytest.mark.parametrize(
    ("kind", "layer", "shape"),
    [
        (DirectLinear, nn.Linear(6, 4), (3, 6)),
        (DirectConv1d, nn.Conv1d(4, 6, 3, groups=2), (2, 4, 9)),
        (DirectConv2d, nn.Conv2d(4, 6, 3, padding=1, bias=False), (2, 4, 5, 5)),
    ],
)
def test_a_layer_computes_what_its_float_form_does_with_the_weights_of_the_codes(kind: Any, layer: Any, shape: Any) -> None:
    layer, x = copy.deepcopy(layer).to(DEVICE), drawn(shape)
    direct = kind.from_float(layer, DirectWeight(8))
    y = direct(x)
    assert isinstance(layer.weight, nn.Parameter) and "weight" not in dict(direct.named_parameters())
    assert (direct.bias is None) == (layer.bias is None)
    with torch.no_grad():
        layer.weight.copy_(direct.weight)
    assert same_bits(y, layer(x))
    assert "DirectWeight(bits=8, levels='free'" in repr(direct)


def test_compiled() -> None:
    layer = DirectLinear.from_float(nn.Linear(7, 5).to(DEVICE), DirectWeight(2, "basis"))
    x, gradients = drawn((3, 7)), []
    for fn in (layer, torch.compile(layer, backend="aot_eager", fullgraph=True)):
        layer.zero_grad()
        fn(x).square().sum().backward()
        gradients.append([p.grad.clone() for p in layer.parameters() if p.grad is not None])
    assert len(gradients[0]) == 3
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


# Bad input


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, "bits must be an int from 1 to 8, got 2.0", {"bits": 2.0}),
        (ValueError, "bits must be from 1 to 8, got 9", {"bits": 9}),
        (ValueError, "levels must be one of free, basis, got 'log'", {"bits": 2, "levels": "log"}),
        (TypeError, "rho must be a float, got str", {"bits": 2, "rho": "1"}),
        (ValueError, "rho must be from 0 to 1, got 2", {"bits": 2, "rho": 2}),
        (ValueError, "rho must be from 0 to 1, got nan", {"bits": 2, "rho": math.nan}),
        (
            TypeError,
            "residual_dtype must be float32, bfloat16 or float16, got torch.int8",
            {"bits": 2, "residual_dtype": torch.int8},
        ),
        (TypeError, "dtype must be a float dtype, got torch.int64", {"bits": 2, "dtype": torch.int64}),
    ],
)
def test_bad_arguments_are_named(error: type[Exception], message: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(error, match=f"DirectWeight: {message}"):
        DirectWeight(**arguments)


def test_bad_use_is_named() -> None:
    with pytest.raises(RuntimeError, match="DirectWeight: it has no weights yet; call initialize"):
        DirectWeight(2)()
    with pytest.raises(TypeError, match=r"DirectWeight: weight must be a float tensor, got torch\.int64"):
        DirectWeight(2).initialize(torch.arange(4))
    with pytest.raises(TypeError, match=r"DirectLinear: module must be a torch.nn.Linear, got Conv1d"):
        DirectLinear.from_float(nn.Conv1d(1, 1, 1), DirectWeight(2))
    with pytest.raises(TypeError, match=r"DirectLinear: weight must be a fastq.nn.DirectWeight, got int"):
        DirectLinear.from_float(nn.Linear(1, 1), 2)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"DirectLinear: it is made of a layer that has weights, by DirectLinear.from_float"):
        DirectLinear(3, 4)


def test_a_bad_optimizer_is_named() -> None:
    module, sgd = made(), torch.optim.SGD
    with pytest.raises(TypeError, match=r"DirectOptimizer: optimizer must be a torch.optim.Optimizer, got Adam|got list"):
        fastq.DirectOptimizer([], module)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"DirectOptimizer: modules must be torch.nn.Modules, got int"):
        fastq.DirectOptimizer(sgd(module.parameters(), lr=0.1), [3])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"DirectOptimizer: modules hold no fastq.nn.DirectWeight"):
        fastq.DirectOptimizer(sgd(module.parameters(), lr=0.1), nn.Linear(1, 1))
    with pytest.raises(ValueError, match="DirectOptimizer: the optimizer does not hold the delta of 1 of 1 DirectWeights"):
        fastq.DirectOptimizer(sgd([module.free], lr=0.1), module)
    with pytest.raises(ValueError, match=r"DirectOptimizer: weight_decay must be 0 for the deltas of DirectWeights, got 0\.1"):
        fastq.DirectOptimizer(sgd(module.parameters(), lr=0.1, weight_decay=0.1), module)
    optimizer = fastq.DirectOptimizer(sgd(module.parameters(), lr=0.1), module)
    optimizer.param_groups[0]["weight_decay"] = 0.1
    with pytest.raises(ValueError, match="weight_decay must be 0"):
        optimizer.step()


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_a_layer_that_hooks_compute_or_whose_forward_was_replaced_is_refused_and_the_mode_is_kept() -> None:
    with pytest.raises(ValueError, match="DirectLinear: weight must be a parameter, but a hook computes it"):
        DirectLinear.from_float(nn.utils.weight_norm(nn.Linear(4, 4)), DirectWeight(2))
    linear = nn.Linear(4, 4)
    linear.forward = lambda x: x  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="DirectLinear: forward was replaced on this layer itself"):
        DirectLinear.from_float(linear, DirectWeight(2))
    layer = DirectLinear.from_float(nn.Linear(4, 4).eval(), DirectWeight(2), ChannelError(4, axis=-1))
    assert layer.input_quantizer is not None and not layer.training and not layer.input_quantizer.training
    x = torch.randn(8, 4)
    layer(x)
    step = layer.input_quantizer.step.detach().clone()  # type: ignore[operator]
    layer(2 * x)
    assert torch.equal(layer.input_quantizer.step, step)
