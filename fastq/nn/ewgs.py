"""The EWGS quantizer as a module, and its delta from the trace of the Hessian."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from ..granularity import compute_dtype, divided, normalize_axis
from ..ops import ewgs
from ..ops.ewgs import check, check_boundary, check_delta
from ..ranges import check_eps, level_count
from ..reference.ewgs import codes, ewgs_surrogate
from ..reference.lsq import effective_step
from .base import FirstBatch, Grid

__all__ = ["EWGS", "hessian_delta", "set_hessian_deltas"]


class EWGS(FirstBatch):
    """Quantize with gradients scaled by the rounding error: :func:`fastq.ewgs` with its state and a learned scale.

    For a weight the output is ``scale * 2 * (y - 0.5)``, for an activation ``scale * y``, where ``y`` is the normalised output
    of :func:`fastq.ewgs`. The first batch sets the interval as the authors do: weights ``[-3 std, 3 std]``, activations
    ``[min, 3 std / sqrt(1 - 2/pi)]`` (std of a half-normal distribution); and the scale so that ``mean|x|`` is kept. The authors
    have one scale for the output of a layer; with one scale per tensor that is the product of the two here.

    The interval stays one by parametrisation: the kernel uses a width of ``max(|upper - lower|, eps)``, with the sign of
    ``upper - lower`` on the gradient that comes through it. Likewise ``|scale|``.

    Args:
        bits: 1 to 8.
        weight: whether a weight is quantized (symmetric output) or an activation (from 0 up).
        delta: how much the rounding error scales a gradient, >= 0. 0 is the straight-through estimator; a good one comes from
            :func:`set_hessian_deltas`, which changes the attribute.
        learn_scale: whether there is a scale; False leaves the output between -1 and 1 (0 and 1), for a batch norm to scale.
        axis: one interval (and scale) per index of this axis.
        group_size: one interval per so many consecutive elements of the last axis; needs ``learn_scale=False``.
        shape: of each parameter: ``(C,)`` with ``axis``, ``x.shape[:-1] + (K // group_size,)`` with ``group_size``; else ``(1,)``.
        boundary, eps: as in :func:`fastq.ewgs`.

    Input: ``x`` as :func:`fastq.ewgs` takes it. Output: of its shape, dtype and layout.

    Raises:
        TypeError, ValueError: an argument, or later an ``x``, does not fit; the message says what was expected.

    Attributes:
        lower, upper, scale: parameters, float32 whatever ``.to()`` or ``.half()`` the model gets (float64 after ``.double()``);
            ``scale`` is None where there is none.
        delta: the float given, or set since; part of no state dict.
        initialized: buffer, uint8, 0 or 1.

    Paper: Lee et al., CVPR 2021, https://arxiv.org/abs/2104.00903.
    """

    lower: nn.Parameter
    upper: nn.Parameter
    scale: nn.Parameter | None
    learned = ("lower", "upper", "scale")

    def __init__(
        self, bits: int, *, weight: bool, delta: float = 0.0, learn_scale: bool = True, axis: int | None = None,
        group_size: int | None = None, shape: tuple[int, ...] = (1,), boundary: str = "open", eps: float = 1e-8,
    ) -> None:  # fmt: skip
        for name, value in (("weight", weight), ("learn_scale", learn_scale)):
            if not isinstance(value, bool):
                raise TypeError(f"EWGS: {name} must be True or False, got {value!r}")
        level_count("EWGS", bits)
        check_delta(delta, "EWGS")
        check_boundary(boundary, "EWGS")
        check_eps("EWGS", eps)
        if learn_scale and group_size is not None:
            raise ValueError("EWGS: group_size needs learn_scale=False; a scale is one per tensor or per index of an axis")
        super().__init__(
            axis, group_size, shape, {"lower": -1.0 if weight else 0.0, "upper": 1.0, "scale": 1.0 if learn_scale else None}
        )
        self.bits, self.weight, self.delta, self.boundary, self.eps = bits, weight, delta, boundary, eps
        self._watch: Callable[[torch.Tensor], None] | None = None

    def _first_values(self, rows: torch.Tensor) -> list[torch.Tensor]:
        spread = 3 * rows.std(1, correction=1 if rows.shape[1] > 1 else 0)
        lower, upper = (-spread, spread) if self.weight else (rows.amin(1), spread / math.sqrt(1 - 2 / math.pi))
        good = (upper > lower) & lower.isfinite() & upper.isfinite()  # else nothing to go by: one unit to either side, or up
        lower, upper = torch.where(good, lower, -1.0 if self.weight else 0.0), torch.where(good, upper, 1.0)
        if self.scale is None:
            return [lower, upper]
        y = self._mapped(ewgs_surrogate(rows, lower, upper, bits=self.bits, axis=0))
        scale = rows.abs().mean(1) / y.abs().mean(1)
        return [lower, upper, torch.where((scale > 0) & scale.isfinite(), scale, 1.0)]

    def _mapped(self, y: torch.Tensor) -> torch.Tensor:
        return 2 * (y - 0.5) if self.weight else y

    def _change_bits(self, bits: int) -> None:
        level_count("EWGS", bits)
        self.bits = bits

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._ready(x)
        lower, upper, scale = self._parameters_for(x)
        where: dict[str, Any] = {"axis": self.axis, "group_size": self.group_size}
        dtype, x = x.dtype, x.to(compute_dtype(x))  # near 1/2, bf16 cannot tell 256 levels from another
        if self._watch is None:
            y = ewgs(x, lower, upper, bits=self.bits, delta=self.delta, boundary=self.boundary, eps=self.eps, **where)
        else:
            y = ewgs_surrogate(x, lower, upper, bits=self.bits, **where)
            self._watch(y)
        y = self._mapped(y)
        return (y if scale is None else self._scaled(y, scale)).to(dtype)

    @torch.no_grad()
    def codes(self, x: torch.Tensor) -> torch.Tensor:
        """The integer codes of ``x`` as int32, from 0, for weights from ``-2**(bits-1)``; NaN has an arbitrary one.

        Raises ``RuntimeError`` before the first batch, ``TypeError`` or ``ValueError`` where ``x`` does not fit the quantizer.
        """
        self._require_first_batch("codes")
        lower, upper, _ = self._parameters_for(x)
        where = normalize_axis("EWGS", x, self.axis, self.group_size)
        check(x, lower, upper, *where)
        return codes(x, lower, upper, level_count("EWGS", self.bits), *where, self.eps) + self._lowest()

    def _lowest(self) -> int:
        return -(2 ** (self.bits - 1)) if self.weight else 0

    def grid(self, x: torch.Tensor | None = None) -> Grid:
        """``y = |scale|/L * k``, ``k`` from 0 to L; weights ``|scale|/L * (2*k + 1)``, ``k`` from ``-2**(bits-1)``.

        Raises ``RuntimeError`` before the first batch.
        """
        self._require_first_batch("grid")
        levels, low = level_count("EWGS", self.bits), self._lowest()
        scale = self.lower.new_ones(1) if self.scale is None else self.scale.detach().abs()
        lower = self.lower.detach()
        interval = (lower, effective_step(self.upper.detach() - lower, self.eps))
        return Grid(low, low + levels, divided(scale, levels), odd=self.weight, interval=interval)

    def extra_repr(self) -> str:
        return (
            f"bits={self.bits}, weight={self.weight}, {self._grain()}, intervals={self.lower.numel()}, delta={self.delta:.4g}, "
            f"scale={self.scale is not None}, boundary={self.boundary!r}, initialized={self._initialized}"
        )


def hessian_delta(
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]], *, probes: int = 50, tolerance: float = 1e-3,
    generator: torch.Generator | None = None,
) -> float:  # fmt: skip
    """EWGS's ``delta`` for one quantizer, from the curvature of the loss: ``max(0, mean of (Tr(H) / N) / (3 * std(g)))``.

    ``g`` is the gradient of a batch's loss by the quantized values (``N`` of them), ``H`` its Hessian, whose trace is
    Hutchinson's: the mean of ``v . H v`` over random signs ``v``. The mean is over the batches; the authors take 3.

    Args:
        batches: pairs ``(loss, quantized)``, one per batch: a scalar, and the tensor in its graph. The graph from one to the
            other has to be twice differentiable, so it may hold no other quantizer of fastq (:func:`set_hessian_deltas`
            takes care of that). A generator is asked for one pair at a time, so one graph lives at a time.
        probes: random vectors per batch, at most.
        tolerance: fewer are drawn once the mean moves by less than this, relatively, with one more.
        generator: of the random signs, on the device of ``quantized``.

    Returns:
        ``delta``, a float >= 0. A batch whose gradient is 0 everywhere, or not finite, says nothing and counts as 0.

    Raises:
        TypeError: a pair is not one of tensors.
        ValueError: there is no batch; a loss is not a scalar; probes is below 1, or tolerance negative.
        RuntimeError: the loss does not depend on ``quantized``, or not twice differentiably.

    Paper: Lee et al., CVPR 2021, https://arxiv.org/abs/2104.00903, section 3.3.
    """
    if isinstance(probes, bool) or not isinstance(probes, int) or probes < 1:
        raise ValueError(f"hessian_delta: probes must be an int of at least 1, got {probes!r}")
    if not tolerance >= 0:
        raise ValueError(f"hessian_delta: tolerance must be at least 0, got {tolerance}")
    ratios = []
    for pair in batches:
        if not (isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(t, torch.Tensor) for t in pair)):
            raise TypeError(f"hessian_delta: batches must give pairs (loss, quantized) of tensors, got {type(pair).__name__}")
        loss, quantized = pair
        if loss.numel() != 1:
            raise ValueError(f"hessian_delta: loss must be a scalar, got shape {tuple(loss.shape)}")
        (gradient,) = torch.autograd.grad(loss, quantized, create_graph=True)
        ratios.append(_ratio(gradient, quantized, probes, tolerance, generator))
    if not ratios:
        raise ValueError("hessian_delta: batches must give at least one pair (loss, quantized)")
    return max(0.0, sum(ratios) / len(ratios))


def _ratio(
    gradient: torch.Tensor, quantized: torch.Tensor, probes: int, tolerance: float, generator: torch.Generator | None
) -> float:
    """``(Tr(H) / N) / (3 * std(g))`` of one batch."""
    spread = 3 * float(gradient.detach().double().std()) if gradient.numel() > 1 else 0.0
    if not (spread > 0 and math.isfinite(spread)):
        return 0.0
    total, mean = 0.0, 0.0
    for count in range(1, probes + 1):
        v = torch.randint(0, 2, gradient.shape, generator=generator, device=gradient.device).to(gradient.dtype) * 2 - 1
        # Linear in what was quantized: no second derivative, and a gradient that has no graph
        product = None
        if gradient.requires_grad:
            (product,) = torch.autograd.grad(gradient, quantized, v, retain_graph=True, allow_unused=True)
        total += 0.0 if product is None else float((product.double() * v).sum())
        before, mean = mean, total / count
        if count > 1 and abs(mean - before) <= tolerance * abs(before):
            break
    ratio = mean / gradient.numel() / spread
    return ratio if math.isfinite(ratio) else 0.0


def set_hessian_deltas(
    model: nn.Module, batches: Iterable[Any], loss: Callable[[nn.Module, Any], torch.Tensor], *, count: int = 3,
    probes: int = 50, tolerance: float = 1e-3, generator: torch.Generator | None = None,
) -> dict[str, float]:  # fmt: skip
    """Set ``delta`` of every :class:`EWGS` in ``model`` as :func:`hessian_delta` says, from ``count`` batches.

    While it looks, the quantizers quantize by :func:`fastq.reference.ewgs_surrogate`, which can be differentiated twice (and
    passes gradients straight through); other quantizers of fastq in the model cannot, and raise. Parameters and their
    ``.grad`` stay as they are; batch norm and the like see ``count`` more batches in training mode. A quantizer that is
    called several times in one batch is judged by its last call, one that is not called keeps its delta.

    Args:
        model: on its device, in the mode in which it should be judged.
        batches: what ``loss`` takes; the first ``count`` are used.
        loss: ``loss(model, batch)`` gives a scalar.
        count: how many batches.
        probes, tolerance, generator: as in :func:`hessian_delta`.

    Returns:
        The deltas set, by the quantizers' names in ``model``.

    Raises:
        ValueError: ``model`` has no EWGS, ``batches`` nothing in it, count is below 1, or as :func:`hessian_delta`.
        RuntimeError: another quantizer cannot be differentiated twice.
    """
    quantizers = {name: module for name, module in model.named_modules() if isinstance(module, EWGS)}
    if not quantizers:
        raise ValueError("set_hessian_deltas: model has no fastq.nn.EWGS quantizer")
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"set_hessian_deltas: count must be an int of at least 1, got {count!r}")
    if isinstance(probes, bool) or not isinstance(probes, int) or probes < 1:
        raise ValueError(f"set_hessian_deltas: probes must be an int of at least 1, got {probes!r}")
    ratios: dict[str, list[float]] = {}
    looked = 0
    for batch in itertools.islice(batches, count):
        looked += 1
        with torch.enable_grad(), _watched(quantizers) as outputs:
            value = loss(model, batch)
            names = [name for name, y in outputs.items() if y.requires_grad]
            gradients = torch.autograd.grad(value, [outputs[name] for name in names], create_graph=True, allow_unused=True)
            for name, gradient in zip(names, gradients, strict=True):
                if gradient is not None:
                    found = _ratio(gradient, outputs[name], probes, tolerance, generator)
                    ratios.setdefault(name, []).append(found)
    if not looked:
        raise ValueError("set_hessian_deltas: batches must hold at least one batch")
    deltas = {name: max(0.0, sum(found) / len(found)) for name, found in ratios.items()}
    for name, delta in deltas.items():
        quantizers[name].delta = delta
    return deltas


@contextlib.contextmanager
def _watched(quantizers: dict[str, EWGS]) -> Iterator[dict[str, torch.Tensor]]:
    """Within the block the quantizers leave their outputs, and can be differentiated twice."""
    outputs: dict[str, torch.Tensor] = {}
    try:
        for name, quantizer in quantizers.items():
            quantizer._watch = lambda y, name=name: outputs.__setitem__(name, y)  # type: ignore[misc]
        yield outputs
    finally:
        for quantizer in quantizers.values():
            quantizer._watch = None
