"""``fastq.diagnose``: what is measured, and how a model is looked at without a trace."""

from __future__ import annotations

import contextlib
import itertools
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ..granularity import expand, normalize_axis
from ..nn import EWGS, QUANTIZED, DirectConv1d, DirectConv2d, DirectLinear, OscillationLSQ, Quantizer, SATWeight
from ..nn.base import Grid
from ..reference.sat import default_n_out
from .report import Diagnosis, LayerDiagnosis, RuleOne, TensorDiagnosis

__all__ = ["diagnose"]

#: A weight oscillates where the tracked frequency is above this (Nagel et al., https://arxiv.org/abs/2203.11086).
OSCILLATES = 0.005
ONCE = "diagnose: the loss is not twice differentiable; probes=0 leaves out sharpness"
LAYERS: tuple[type[nn.Module], ...] = (*QUANTIZED.values(), DirectLinear, DirectConv1d, DirectConv2d)
WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

Loss = Callable[[Any, Any], torch.Tensor]


def diagnose(
    model: nn.Module, batches: Iterable[Any] | None = None, loss: Loss | None = None, *, count: int = 4, probes: int = 8,
    pooled: int | None = None, seed: int = 0,
) -> Diagnosis:  # fmt: skip
    """What quantization does to each layer of ``model``, and what stands out.

    From the model alone: quantization error of the weights per layer and channel, what is clipped, codes that nothing uses,
    oscillating and frozen weights (:class:`fastq.nn.OscillationLSQ`), SAT's two rules. With ``batches`` also the same of the
    layers' inputs. With ``loss`` also gradients and sharpness.

    Formulas, of latent values ``x`` and quantized ones ``y``, per layer and per channel::

        SQNR = 10 log10(var(x) / mean((y - x)^2))
        rule I   VAR[last layer's weights] * n_L / k_pool^2 < 0.1        n_L: inputs of a neuron, k_pool^2: positions averaged
        rule II  a batch norm follows, or 0.1 <= VAR[weights] * n_out <= 10
        sharpness = trace of d^2 loss / dw^2 = mean over random signs v of v . H v          w: a layer's quantized weights

    The loss as a function of the quantized weights is not twice differentiable while inputs are quantized: these quantizers are
    steps. So each is replaced, where it is, by its value plus its own straight-through slope times what the input moves, a linear
    function whose second derivative is zero; the value of the loss and its gradient stay what they are. Products with the Hessian
    are then exact (twice through autograd). The Hessian is the one by the latent weights where a quantizer passes gradients
    straight through. One product per probe serves all layers; it includes the curvature between layers, which has the mean zero, so
    look at the standard error. (EWGS's scaling of a gradient by its sign is left out of the slopes.)

    The model is run in evaluation mode without autocast being changed: batch norms use their running statistics, no quantizer draws
    noise. Parameters, buffers, ``.grad``, modes and random number generators are afterwards as they were.

    Args:
        model: with layers of :mod:`fastq.nn`, as :func:`fastq.prepare` makes them, on any device.
        batches: what ``loss`` takes. Without ``loss``: a tensor, ``model(batch)``; a tuple or list, ``model(batch[0])``; a mapping,
            ``model(**batch)``. The first ``count`` are used.
        loss: ``loss(model, batch)`` gives a scalar, a mean over the batch. Needs batches.
        count: how many batches.
        probes: products with the Hessian per batch; 0 leaves out sharpness.
        pooled: ``k_pool^2``, the positions that are averaged before the last layer, such as 49. None: with batches the size of the
            map before a last linear layer with as many inputs as the map has channels, else 1.
        seed: of the random signs.

    Returns:
        A :class:`Diagnosis`: ``print`` it, ``.findings``, ``.layers``, ``.to_dict()``, ``.to_json()``, ``.picture(path)``.

    Raises:
        TypeError: an argument is of another type, or the loss gives no tensor.
        ValueError: no layer is quantized, a quantizer has seen no batch, there is no batch, a number is out of range, or the loss
            is not one differentiable number.
        RuntimeError: the loss is not twice differentiable; ``probes=0`` leaves that out.

    Papers: SAT, https://arxiv.org/abs/1912.10207 (rules); https://arxiv.org/abs/2203.11086 (oscillations).

    Example:
        >>> print(fastq.diagnose(model, loader, lambda model, batch: F.cross_entropy(model(batch[0]), batch[1])))
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"diagnose: model must be a torch.nn.Module, got {type(model).__name__}")
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LAYERS)}
    if not layers:
        raise ValueError("diagnose: model has no quantized layer; give one that fastq.prepare returned (before fastq.convert)")
    _check_arguments(batches, loss, count, probes, pooled, seed)
    for name, layer in layers.items():
        _check_layer(name, layer, batches is not None)
    with _untouched(model):
        subject = _Subject(model, layers)
        seen = 0
        if batches is not None:
            for batch in _first(batches, count):
                seen += 1
                subject.look(batch, loss, probes, seed + seen, first=seen == 1)
            if not seen:
                raise ValueError("diagnose: batches must hold at least one batch")
        return subject.diagnosis(seen, loss is not None, probes, pooled)


def _check_arguments(batches: Any, loss: Any, count: Any, probes: Any, pooled: Any, seed: Any) -> None:
    if loss is not None and not callable(loss):
        raise TypeError(f"diagnose: loss must be a function of (model, batch), got {type(loss).__name__}")
    if loss is not None and batches is None:
        raise ValueError("diagnose: loss needs batches, diagnose(model, batches, loss)")
    if isinstance(batches, torch.Tensor):
        raise TypeError("diagnose: batches must be an iterable of batches, got a tensor; give [x]")
    if batches is not None and not isinstance(batches, Iterable):
        raise TypeError(f"diagnose: batches must be an iterable of batches, got {type(batches).__name__}")
    for what, value, least in (("count", count, 1), ("probes", probes, 0), ("pooled", pooled, 1), ("seed", seed, 0)):
        if what == "pooled" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"diagnose: {what} must be an int of at least {least}, got {value!r}")
        if value < least:
            raise ValueError(f"diagnose: {what} must be an int of at least {least}, got {value}")


def _check_layer(name: str, layer: Any, inputs: bool) -> None:
    if any(t.is_meta for t in (*layer.parameters(), *layer.buffers())):
        raise ValueError(f"diagnose: layer {name!r} is on the meta device and has no values")
    direct = getattr(layer, "direct", None)
    if direct is not None and direct.codes.numel() == 0:
        raise ValueError(f"diagnose: layer {name!r}: its weight has no values yet; load a state dict, or make it by from_float")
    asked = [("weight", getattr(layer, "weight_quantizer", None)), ("input", layer.input_quantizer if inputs else None)]
    for which, quantizer in asked:
        initialized = getattr(quantizer, "initialized", None)
        if _active(quantizer) and initialized is not None and not bool(initialized):
            raise ValueError(
                f"diagnose: layer {name!r}: its {which} quantizer is not initialised; run a batch through the model first"
            )


def _sources(layer: Any) -> tuple[Any, Any]:
    """``(direct, weight quantizer)``: where the weights come from; either may be None."""
    return getattr(layer, "direct", None), getattr(layer, "weight_quantizer", None)


def _active(quantizer: Quantizer | None) -> bool:
    return quantizer is not None and quantizer.enabled


def _first(batches: Iterable[Any], count: int) -> Iterator[Any]:
    """The first ``count``; the next is not asked for."""
    iterator = iter(batches)
    for _ in range(count):
        try:
            yield next(iterator)
        except StopIteration:
            return


@contextlib.contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Evaluation mode within; afterwards modes, parameters, buffers, gradients and generators are as they were."""
    modes = {module: module.training for module in model.modules()}
    tensors = [*model.parameters(), *model.buffers()]
    kept = [(t, t._version, t.detach().clone()) for t in model.buffers()]
    gradients = [(p, p.grad) for p in model.parameters()]
    devices = sorted({t.device.index for t in tensors if t.device.type == "cuda"})
    # where torch's compiler has not been imported (which takes a second) nothing is compiled
    eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else contextlib.nullcontext()
    try:
        with torch.random.fork_rng(devices), eager:
            model.eval()
            yield
    finally:
        for module, training in modes.items():
            module.training = training
        with torch.no_grad():
            for t, version, value in kept:
                if t._version != version:  # by a module of the user's
                    t.copy_(value)
        for p, gradient in gradients:
            p.grad = gradient


# --- What is measured -----------------------------------------------------------------------------------------------------


class _Tally:
    """Sums over a tensor and its quantized form, per channel, of all batches; on their device, in fp64."""

    def __init__(self, quantizer: Any, axis: int) -> None:
        self.quantizer, self.axis = quantizer, axis
        self.elements = 0
        self.nonfinite: Any = 0
        self.below: Any = 0
        self.above: Any = 0
        self.sums: torch.Tensor | None = None  # of 1, x, x^2, (y - x)^2, x*y, y^2; each per channel
        self.counts: torch.Tensor | None = None  # of codes

    def add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        finite = x.isfinite() & y.isfinite()
        wide = torch.promote_types(x.dtype, torch.float32)
        x, y = (torch.where(finite, t.to(wide), 0.0) for t in (x, y))
        others = [d for d in range(x.dim()) if d != self.axis % x.dim()] if x.dim() else []

        def total(t: torch.Tensor) -> torch.Tensor:
            t = t.to(torch.float64)
            return t.sum(others) if others else t.reshape(-1)

        sums = torch.stack([total(t) for t in (finite, x, x.square(), (y - x).square(), x * y, y.square())])
        self.sums = sums if self.sums is None else self.sums + sums
        self.elements += x.numel()
        self.nonfinite = self.nonfinite + (~finite).sum()

    def add_codes(self, codes: torch.Tensor, lowest: int, number: int) -> None:
        counts = torch.bincount((codes.flatten().long() - lowest).clamp(0, number - 1), minlength=number)
        self.counts = counts if self.counts is None else self.counts + counts

    def add_clipped(self, x: torch.Tensor, grid: Grid) -> None:
        """Elements that the formula of the grid clips; with the magnitude's interval, below it are zeros that nothing clips."""
        axis, group = getattr(self.quantizer, "axis", None), getattr(self.quantizer, "group_size", None)

        def spread(p: torch.Tensor) -> torch.Tensor:
            return expand(p, x, *(normalize_axis("diagnose", x, axis, group) if p.numel() > 1 else (-1, 0)))

        v = torch.where(x.isfinite(), x, math.nan).to(grid.step.dtype)
        if grid.interval is not None:
            lower, width = grid.interval
            v = ((v.abs() if grid.magnitude else v) - spread(lower)) / spread(width)
            low, high = -math.inf if grid.magnitude else 0.0, 1.0
        elif isinstance(self.quantizer, SATWeight):  # tanh clips nothing
            low, high = -math.inf, math.inf
        else:
            v = (v if grid.offset is None else v - spread(grid.offset)) / spread(grid.step)
            low, high = (2 * grid.qmin + 1, 2 * grid.qmax + 1) if grid.odd else (grid.qmin, grid.qmax)
        self.below, self.above = self.below + (v < low).sum(), self.above + (v > high).sum()

    def errors(self) -> tuple[float, tuple[float, ...], float]:
        """``(error, its channels, sum of squares)``: the first two relative to the variance."""
        if self.sums is None:
            return math.nan, (), math.nan
        one, x, xx, ee, xy, yy = self.sums
        if isinstance(self.quantizer, SATWeight) or getattr(self.quantizer, "scale", 1) is None:
            scale = xy.sum() / yy.sum()
            scale = torch.where(scale.isfinite(), scale, 0.0)
            ee = (xx - 2 * scale * xy + scale.square() * yy).clamp(min=0)

        def relative(n: torch.Tensor, x: torch.Tensor, xx: torch.Tensor, ee: torch.Tensor) -> torch.Tensor:
            variance = xx / n - (x / n).square()
            return torch.where(variance > 1e-12 * xx / n, ee / n / variance, math.nan)  # a constant has none but rounding errors

        channels = relative(one, x, xx, ee)
        return float(relative(one.sum(), x.sum(), xx.sum(), ee.sum())), tuple(channels.tolist()), float(ee.sum())

    def diagnosis(self) -> TensorDiagnosis | None:
        if self.sums is None:
            return None
        error, channels, _ = self.errors()
        known = self.counts is not None
        clipped = known and hasattr(self.quantizer, "grid")
        return TensorDiagnosis(
            type(self.quantizer).__name__, str(self.quantizer.bits), self.elements, error, channels,
            int(self.below) / max(self.elements, 1) if clipped else None,
            int(self.above) / max(self.elements, 1) if clipped else None,
            self.counts.numel() if self.counts is not None else None,
            int((self.counts == 0).sum()) if self.counts is not None else None,
            int(self.nonfinite),
        )  # fmt: skip


class _Linear(torch.autograd.Function):
    """``value``, as a linear function of ``x`` with the slopes ``slope``: it can be differentiated twice."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, value: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(slope)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> Any:  # type: ignore[override]
        (slope,) = ctx.saved_tensors
        return torch.where(slope == 0, torch.zeros_like(g), g * slope), None, None


class _Subject:
    """A model in evaluation mode that is being looked at."""

    def __init__(self, model: nn.Module, layers: Mapping[str, Any]) -> None:
        self.model, self.layers = model, layers
        self.weights: dict[str, torch.Tensor] = {}  # those that the layers compute with
        self.tallies: dict[tuple[str, str], _Tally] = {}
        self.calls = dict.fromkeys(layers, 0)
        self.events: list[tuple[str, torch.Size]] = []  # what ran in the first batch, with the shape of its output
        self.losses: list[float] = []
        self.squares: dict[str, list[float]] = {name: [] for name in layers}
        self.traces: dict[str, list[float]] = {name: [] for name in layers}
        with torch.no_grad():
            for name, layer in layers.items():
                self._weigh(name, layer)

    def _weigh(self, name: str, layer: Any) -> None:
        direct, quantizer = _sources(layer)
        if direct is not None:
            self.weights[name] = y = layer.weight.detach()
            tally = self.tallies[name, "weight"] = _Tally(direct, 0)
            if direct.residual is None:
                tally.add(y, torch.full_like(y, math.nan))  # what it was before rounding is not kept
                tally.nonfinite = (~y.isfinite()).sum()
            else:
                tally.add(y.float() + direct.residual.float(), y)
            tally.add_codes(direct.codes, 0, 2**direct.bits)
            return
        weight = layer.weight.detach()
        self.weights[name] = weight
        if _active(quantizer):
            self.weights[name] = quantizer(weight).detach()
            tally = self.tallies[name, "weight"] = _Tally(quantizer, 0)
            self._tell(tally, weight, self.weights[name])

    def _tell(self, tally: _Tally, x: torch.Tensor, y: torch.Tensor) -> None:
        tally.add(x, y)
        try:
            codes, grid = tally.quantizer.codes(x), tally.quantizer.grid(x)
        except TypeError:  # it has none
            return
        finite = x.isfinite()
        tally.add_codes(codes if bool(finite.all()) else codes[finite], grid.qmin, grid.qmax - grid.qmin + 1)
        tally.add_clipped(x, grid)

    # --- batches

    @torch.no_grad()
    def _input(self, name: str, layer: Any, x: Any) -> None:
        self.calls[name] += 1
        if not isinstance(x, torch.Tensor) or not _active(layer.input_quantizer):
            return
        axis = {nn.Conv1d: -2, nn.Conv2d: -3}
        where = next((a for kind, a in axis.items() if isinstance(layer, kind)), -1)
        tally = self.tallies.setdefault((name, "input"), _Tally(layer.input_quantizer, where))
        x = x.detach()
        self._tell(tally, x, type(layer.input_quantizer).forward(layer.input_quantizer, x))

    def look(self, batch: Any, loss: Loss | None, probes: int, seed: int, first: bool) -> None:
        handles = []
        for name, module in self.model.named_modules():
            if isinstance(module, LAYERS):

                def before(m: Any, args: Any, keywords: Any, name: str = name) -> None:
                    self._input(name, m, args[0] if args else keywords.get("input"))

                handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            if first and isinstance(module, (*WEIGHTED, *NORMS)):

                def after(m: Any, args: Any, output: Any, name: str = name) -> None:
                    self.events.append((name, getattr(output, "shape", torch.Size())))

                handles.append(module.register_forward_hook(after))
        try:
            if loss is None:
                with torch.no_grad():
                    _run(self.model, batch)
            else:
                self._differentiate(batch, loss, probes, seed)
        finally:
            for handle in handles:
                handle.remove()

    def _differentiate(self, batch: Any, loss: Loss, probes: int, seed: int) -> None:
        leaves = {name: weight.clone().requires_grad_() for name, weight in self.weights.items()}
        with torch.enable_grad(), self._replaced(leaves), _math_attention():
            value = loss(self.model, batch)
            if not isinstance(value, torch.Tensor):
                raise TypeError(f"diagnose: loss must give a tensor of one element, got {type(value).__name__}")
            if value.numel() != 1 or not value.requires_grad:
                kind = f"shape {tuple(value.shape)}" if value.numel() != 1 else "one without a gradient"
                raise ValueError(f"diagnose: loss must give a tensor of one element with a gradient, got {kind}")
            self.losses.append(float(value.detach()))
            # linear in one, so that what has no graph in it comes from a function that is differentiable once
            one = torch.ones_like(value).requires_grad_(probes > 0)
            gradients = torch.autograd.grad(value, list(leaves.values()), one, create_graph=probes > 0, allow_unused=True)
            used = {name: g for name, g in zip(leaves, gradients, strict=True) if g is not None}
            for name, g in used.items():
                self.squares[name].append(float(g.detach().double().square().mean()))
            if probes:
                if any(not g.requires_grad for g in used.values()) or _ends_early(used.values()):
                    raise RuntimeError(f"{ONCE} (a function in it is differentiable once, and says so)")
                try:
                    self._probe(leaves, used, probes, seed)
                except RuntimeError as error:
                    if not any(known in str(error) for known in ("derivative", "differentiable", "double backward")):
                        raise
                    raise RuntimeError(f"{ONCE} ({error})") from None

    def _probe(self, leaves: dict[str, torch.Tensor], gradients: dict[str, torch.Tensor], probes: int, seed: int) -> None:
        generator = torch.Generator("cpu").manual_seed(seed)  # the same signs on every device
        for _ in range(probes):
            signs = {
                name: (torch.randint(0, 2, g.shape, generator=generator, device="cpu") * 2 - 1).to(g.device, g.dtype)
                for name, g in gradients.items()
            }
            products = torch.autograd.grad(
                list(gradients.values()), [leaves[name] for name in gradients], list(signs.values()),
                retain_graph=True, allow_unused=True,
            )  # fmt: skip
            for (name, v), product in zip(signs.items(), products, strict=True):
                self.traces[name].append(0.0 if product is None else float((product.double() * v).sum()))

    @contextlib.contextmanager
    def _replaced(self, leaves: dict[str, torch.Tensor]) -> Iterator[None]:
        """Within, layers compute with ``leaves`` for weights, and all other quantizers are linear where they are."""
        with contextlib.ExitStack() as stack:
            weighing: dict[nn.Module, dict[int, torch.Tensor]] = {}  # by the weight: a quantizer may have several, and a weight too
            for name, layer in self.layers.items():
                direct, quantizer = _sources(layer)
                if direct is not None:
                    stack.enter_context(_forward(direct, lambda name=name: leaves[name]))
                elif _active(quantizer):
                    leaves[name] = weighing.setdefault(quantizer, {}).setdefault(id(layer.weight), leaves[name])
                else:
                    parameters = layer._parameters
                    stack.callback(parameters.__setitem__, "weight", parameters["weight"])
                    parameters["weight"] = leaves[name]
            for quantizer, by_weight in weighing.items():
                stack.enter_context(_forward(quantizer, lambda w, by_weight=by_weight: by_weight[id(w)]))
            for module in self.model.modules():
                if isinstance(module, Quantizer) and module not in weighing:
                    stack.enter_context(_forward(module, _linearised(module)))
            yield

    # --- the result

    def diagnosis(self, seen: int, differentiated: bool, probes: int, pooled: int | None) -> Diagnosis:
        modules = dict(self.model.named_modules())
        order = [name for name, _ in self.events]
        if not seen:
            order = [name for name, module in modules.items() if isinstance(module, (*WEIGHTED, *NORMS))]
        normed = set()
        for name, following in itertools.pairwise(order):
            norm: Any = modules[following]
            if name in self.layers and isinstance(norm, NORMS) and norm.num_features == self.weights[name].shape[0]:
                normed.add(name)
        names = list(dict.fromkeys([*(name for name in order if name in self.layers), *self.layers]))
        found = tuple(self._layer(name, name in normed, seen, differentiated, probes) for name in names)
        loss = sum(self.losses) / len(self.losses) if self.losses else None
        return Diagnosis(found, self._rule_one(order, modules, pooled), loss, seen)

    def _layer(self, name: str, normed: bool, seen: int, differentiated: bool, probes: int) -> LayerDiagnosis:
        layer, weight = self.layers[name], self.weights[name]
        tallies = [self.tallies.get((name, which)) for which in ("weight", "input")]
        quantizer = getattr(layer, "weight_quantizer", None)
        state = quantizer.state if isinstance(quantizer, OscillationLSQ) and quantizer.enabled else None
        oscillating = frozen = None
        if state is not None:
            oscillating = float(((state.frequency > OSCILLATES) & ~state.frozen).double().mean())
            frozen = float(state.frozen.double().mean())
        gradient = trace = spread = cost = None
        if differentiated and self.squares[name]:
            gradient = math.sqrt(sum(self.squares[name]) / len(self.squares[name]))
        if differentiated and probes and self.traces[name]:
            values = torch.tensor(self.traces[name], dtype=torch.float64, device="cpu")
            trace = float(values.mean())
            spread = float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan
            if tallies[0] is not None and not isinstance(quantizer, SATWeight) and getattr(quantizer, "scale", 1) is not None:
                cost = trace / max(weight.numel(), 1) * tallies[0].errors()[2] / 2
        weighed, fed = (None if tally is None else tally.diagnosis() for tally in tallies)
        return LayerDiagnosis(
            name, type(layer).__name__, weighed, fed, oscillating, frozen,
            _variance(weight), default_n_out(weight), normed, self.calls[name] if seen else None, gradient, trace, spread, cost,
        )  # fmt: skip

    def _rule_one(self, order: list[str], modules: dict[str, Any], pooled: int | None) -> RuleOne:
        weighted = [name for name in order if isinstance(modules[name], WEIGHTED)] or list(self.layers)
        last = weighted[-1]
        weight = self.weights[last] if last in self.weights else modules[last].weight.detach()
        inputs = math.prod(weight.shape[1:])
        if pooled is None:
            pooled = 1
            before = order.index(last) - 1 if last in order else -1
            if self.events and before >= 0 and isinstance(modules[last], nn.Linear):
                shape = self.events[before][1]
                if not isinstance(modules[order[before]], nn.Linear) and len(shape) > 2 and shape[1] == inputs:
                    pooled = max(math.prod(shape[2:]), 1)
        return RuleOne(last, _variance(weight), pooled, inputs)


def _variance(weight: torch.Tensor) -> float:
    return float(weight.double().var()) if weight.numel() > 1 else 0.0


def _run(model: nn.Module, batch: Any) -> None:
    if isinstance(batch, Mapping):
        model(**batch)
    elif isinstance(batch, (tuple, list)):
        if not batch:
            raise ValueError("diagnose: a batch must be a tensor, a mapping, or a sequence that begins with one, got an empty one")
        model(batch[0])
    else:
        model(batch)


def _linearised(quantizer: Quantizer) -> Callable[[torch.Tensor], torch.Tensor]:
    forward = quantizer.forward

    def linear(x: torch.Tensor) -> torch.Tensor:
        at = x.detach().requires_grad_()
        with _unscaled(quantizer):
            value = forward(at)
        (slope,) = torch.autograd.grad(value, at, torch.ones_like(value))
        return _Linear.apply(x, value.detach(), slope.detach())

    return linear


@contextlib.contextmanager
def _unscaled(quantizer: Quantizer) -> Iterator[None]:
    """EWGS scales a gradient by its sign, which a slope does not know; what it computes does not depend on ``delta``."""
    if not isinstance(quantizer, EWGS):
        yield
        return
    delta, quantizer.delta = quantizer.delta, 0.0
    try:
        yield
    finally:
        quantizer.delta = delta


@contextlib.contextmanager
def _forward(module: nn.Module, forward: Callable[..., torch.Tensor]) -> Iterator[None]:
    """``module`` has another forward within."""
    own = vars(module)
    had, before = "forward" in own, own.get("forward")
    own["forward"] = forward
    try:
        yield
    finally:
        del own["forward"]
        if had:
            own["forward"] = before


def _ends_early(gradients: Iterable[torch.Tensor]) -> bool:
    """Whether their graph holds a function that cannot be differentiated: autograd would step round it in silence."""
    ahead: list[Any] = [gradient.grad_fn for gradient in gradients]
    seen: set[Any] = set()
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name().split("::")[-1] in ("DelayedError", "Error", "NotImplemented"):
            return True
        ahead += [following for following, _ in node.next_functions]
    return False


def _math_attention() -> Any:
    """Scaled dot-product attention from products and a softmax: torch's fused ones can be differentiated once."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel(SDPBackend.MATH)
