"""Weights that are stored as codes (direct quantization): the module, layers that have one, and the optimizer's side.

    weight = fastq.nn.DirectWeight(bits=2)                              codes, residual, learned levels
    layer = fastq.nn.DirectLinear.from_float(layer, weight)
    optimizer = fastq.DirectOptimizer(torch.optim.Adam(model.parameters()), model)      the training loop stays as it is

Reconstruction of direct quantization; its equations are not published in the sources we had. What it left open is an argument:
levels free or by a basis, how much of the rest of an update is kept (``rho``), and in which precision.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self

import torch
from torch import nn

from ..ops import direct_update_, direct_weight
from ..ops.direct import DTYPES
from ..reference.direct import nearest_level
from .base import Quantizer
from .layers import taken_over

__all__ = ["DIRECT", "DirectConv1d", "DirectConv2d", "DirectLinear", "DirectOptimizer", "DirectWeight", "open_deltas"]

LEVELS = ("free", "basis")
CANDIDATES = 100
SAMPLE = 8192


class _Through(torch.autograd.Function):
    """``weight`` as it is; its gradient goes on to ``delta`` as well, of whose values nothing is read."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        return g, g


class DirectWeight(nn.Module):
    """A weight tensor of codes and learned levels, without a latent full-precision weight: ``module()`` gives the weights.

    ::

        weights = levels()[codes]
        levels  = C @ basis        "basis": C in {-1, +1}^(2^b x b), every combination of signs
        levels  = free             "free": 2^b numbers

    :meth:`initialize` sets it from a tensor of weights: equidistant levels, the best of 100 ranges by squared error (both kinds of
    levels can be that). A reconstruction; the equations of the paper are not published in the sources we had.

    Training: the gradient of the weights arrives at ``delta``, a parameter of zeros with the shape of the weights that takes the
    memory of one number. :class:`fastq.DirectOptimizer` lets the optimizer step it and moves the codes by that step. Levels are
    stepped as any parameter. They stay in ascending order by relabelling: where a step has made two change places, the codes are
    renamed accordingly, and no weight jumps (a projection would move levels, a parametrisation would not let them pass each other).

    ``copy.deepcopy`` gives the copy's ``delta`` memory for each weight, as ``torch.optim.swa_utils.AveragedModel`` needs, which
    writes into its copy's parameters; :meth:`close_delta` takes it back.

    Args:
        bits: 1 to 8.
        levels: ``"free"`` or ``"basis"``.
        rho: the share of an update's rest that is kept, from 0 (projected descent, no residual) to 1 (as a latent weight).
        residual_dtype: float32, bfloat16 or float16. In bf16 steps below 1/256 of the residual are lost.
        dtype: of the weights: float32, bfloat16 or float16; ``.half()``, ``.to(dtype)`` and ``.double()`` of the model change it.

    Attributes:
        codes: buffer, uint8. residual: buffer, or None with ``rho = 0``.
        free or basis: parameter, float32 whatever the model is converted to.
        order: buffer; which row of C, or which free level, each code stands for.
        delta: parameter; not in the state dict.

    Raises:
        TypeError, ValueError: an argument does not fit. RuntimeError: called before :meth:`initialize` or a loaded state.
    """

    codes: torch.Tensor
    order: torch.Tensor
    signs: torch.Tensor
    residual: torch.Tensor | None

    def __init__(
        self, bits: int, levels: str = "free", *, rho: float = 1.0, residual_dtype: torch.dtype = torch.float32,
        dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        super().__init__()
        if isinstance(bits, bool) or not isinstance(bits, int):
            raise TypeError(f"DirectWeight: bits must be an int from 1 to 8, got {bits!r}")
        if not 1 <= bits <= 8:
            raise ValueError(f"DirectWeight: bits must be from 1 to 8, got {bits}")
        if levels not in LEVELS:
            raise ValueError(f"DirectWeight: levels must be one of {', '.join(LEVELS)}, got {levels!r}")
        if isinstance(rho, bool) or not isinstance(rho, (int, float)):
            raise TypeError(f"DirectWeight: rho must be a float, got {type(rho).__name__}")
        if not 0 <= rho <= 1:
            raise ValueError(f"DirectWeight: rho must be from 0 to 1, got {rho}")
        if residual_dtype not in DTYPES:
            raise TypeError(f"DirectWeight: residual_dtype must be float32, bfloat16 or float16, got {residual_dtype}")
        if dtype not in (*DTYPES, torch.float64):
            raise TypeError(f"DirectWeight: dtype must be a float dtype, got {dtype}")
        self.bits, self.kind, self.rho, self.residual_dtype, self.dtype = bits, levels, float(rho), residual_dtype, dtype
        uniform = torch.arange(2**bits, dtype=torch.float32) * 2 - (2**bits - 1)  # odd numbers, symmetric
        if levels == "free":
            self.free = nn.Parameter(uniform / (2**bits - 1))
        else:
            self.basis = nn.Parameter(2.0 ** torch.arange(bits - 1, -1, -1) / (2**bits - 1))
            places = torch.arange(2**bits)[:, None] >> torch.arange(bits - 1, -1, -1) & 1
            self.register_buffer("signs", places.float() * 2 - 1, persistent=False)
        self.register_buffer("order", torch.arange(2**bits))
        self._allocate(torch.Size([0]), torch.device("cpu"))

    def _allocate(self, shape: torch.Size, device: torch.device) -> None:
        self.register_buffer("codes", torch.zeros(shape, dtype=torch.uint8, device=device))
        kept = torch.zeros(shape, dtype=self.residual_dtype, device=device) if self.rho > 0 else None
        self.register_buffer("residual", kept)
        self.delta = nn.Parameter(torch.zeros((), device=device).expand(shape))

    def _rows(self) -> torch.Tensor:
        """The levels in the order of the rows of C."""
        return self.free if self.kind == "free" else (self.signs * self.basis).sum(1)

    def levels(self) -> torch.Tensor:
        """The levels in the order of the codes, ascending. Differentiable."""
        return self._rows()[self.order]

    @torch.no_grad()
    def initialize(self, weight: torch.Tensor) -> None:
        """Codes, levels and residual for ``weight``, a float tensor. With a residual of fp32, ``rho = 1`` loses nothing of it."""
        if not isinstance(weight, torch.Tensor) or not weight.is_floating_point():
            kind = weight.dtype if isinstance(weight, torch.Tensor) else type(weight).__name__
            raise TypeError(f"DirectWeight: weight must be a float tensor, got {kind}")
        w = weight.detach().float()
        flat = w.flatten()[:: max(w.numel() // SAMPLE, 1)]
        odd = torch.arange(2**self.bits, dtype=torch.float32, device=w.device) * 2 - (2**self.bits - 1)
        odd = odd / (2**self.bits - 1)
        widest = flat.abs().max() if flat.numel() else flat.new_ones(())
        widest = torch.where(widest.isfinite() & (widest > 0), widest, 1.0)
        reaches = widest * torch.arange(1, CANDIDATES + 1, device=w.device) / CANDIDATES
        errors = torch.stack([(flat - (odd * m)[nearest_level(flat, odd * m)]).square().sum() for m in reaches])
        reach = reaches[errors.nan_to_num(nan=torch.inf).argmin()]
        parameter = self.free if self.kind == "free" else self.basis
        grid = odd if self.kind == "free" else 2.0 ** torch.arange(self.bits - 1, -1, -1, device=w.device) / (2**self.bits - 1)
        parameter.data = grid * reach
        for name, buffer in self.named_buffers(recurse=False):
            setattr(self, name, buffer.to(w.device))
        self.order.copy_(self._rows().argsort(stable=True))
        self._allocate(w.shape, w.device)
        levels = self.levels()
        self.codes.copy_(nearest_level(w, levels))
        if self.residual is not None:
            self.residual.copy_(self.rho * (w - levels[self.codes.long()]))

    def forward(self) -> torch.Tensor:
        if self.codes.numel() == 0:
            raise RuntimeError("DirectWeight: it has no weights yet; call initialize(weight) or load a state dict")
        low = torch.float32 if self.dtype == torch.float64 else self.dtype
        return _Through.apply(direct_weight(self.codes, self.levels(), dtype=low), self.delta).to(self.dtype)

    @torch.no_grad()
    def relabel(self) -> bool:
        """Put levels that a step has made change places back into ascending order; the weights stay as they are.

        Returns whether there was anything to do. Looking waits for a GPU.
        """
        order = self._rows().argsort(stable=True)
        if bool((order == self.order).all()):
            return False
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device)
        renamed = place[self.order].to(torch.uint8)
        self.codes.copy_(renamed[self.codes.long()])  # rare, so the indices' memory for a moment is no matter
        self.order.copy_(order)
        return True

    def open_delta(self) -> None:
        """Give ``delta`` memory for an optimizer to write into: zeros."""
        self.delta.data = torch.zeros(self.delta.shape, device=self.delta.device)

    def close_delta(self) -> None:
        """One number again."""
        self.delta.data = torch.zeros((), device=self.delta.device).expand(self.delta.shape)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> nn.Module:
        def keep_dtype(t: torch.Tensor) -> torch.Tensor:
            new = fn(t)
            return new if new.dtype == t.dtype else t.to(new.device)

        super()._apply(keep_dtype, recurse)
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        self.close_delta()
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        del destination[prefix + "delta"]  # zeros, always

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        codes = state_dict.get(prefix + "codes")
        if isinstance(codes, torch.Tensor) and self.codes.numel() == 0 and codes.shape != self.codes.shape:
            self._allocate(codes.shape, self.codes.device)
        super()._load_from_state_dict(state_dict, prefix, *args)
        missing = args[2]
        if prefix + "delta" in missing:
            missing.remove(prefix + "delta")

    def extra_repr(self) -> str:
        kept = self.residual_dtype if self.residual is not None else None
        return f"bits={self.bits}, levels={self.kind!r}, shape={tuple(self.codes.shape)}, rho={self.rho}, residual={kept}"


@contextlib.contextmanager
def open_deltas(model: nn.Module) -> Iterator[None]:
    """Give the ``delta`` of every :class:`DirectWeight` in ``model`` memory of its own inside the block.

    For ``DistributedDataParallel``, which writes the first rank's parameters into those of the others while it is made, and cannot
    write into a tensor that has the memory of one number::

        with fastq.nn.open_deltas(model):
            model = DistributedDataParallel(model)
        optimizer = fastq.DirectOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model)

    Codes, residual and levels are then those of the first rank, and with the averaged gradient every rank makes the same step.
    """
    weights = [m for m in model.modules() if isinstance(m, DirectWeight)]
    for m in weights:
        m.open_delta()
    try:
        yield
    finally:
        for m in weights:
            m.close_delta()


class _Direct:
    """What the layers share: their weight is what a :class:`DirectWeight` gives, and no parameter."""

    _float: type[nn.Module]
    direct: DirectWeight
    input_quantizer: Quantizer | None

    def __init__(self, *_: Any, **__: Any) -> None:
        raise TypeError(f"{type(self).__name__}: it is made of a layer that has weights, by {type(self).__name__}.from_float")

    @property
    def weight(self) -> torch.Tensor:
        return self.direct()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        source = self.input_quantizer
        return super().forward(input if source is None or not source.enabled else source(input))  # type: ignore[misc]

    @classmethod
    def from_float(cls, module: Any, weight: DirectWeight, input_quantizer: Quantizer | None = None) -> Self:
        """``module`` with its weight as codes, which initializes ``weight``; bias, buffers, hooks, attributes and mode are its own.

        ``input_quantizer`` quantizes the input of the layer; None leaves it in floating point.

        Raises ``TypeError`` for another type of module or weight, ``ValueError`` for a weight or bias that a hook computes, or a
        forward that was replaced on the instance.
        """
        if not isinstance(weight, DirectWeight):
            raise TypeError(f"{cls.__name__}: weight must be a fastq.nn.DirectWeight, got {type(weight).__name__}")
        if not isinstance(input_quantizer, Quantizer | None):
            kind = type(input_quantizer).__name__
            raise TypeError(f"{cls.__name__}: input_quantizer must be a fastq.nn.Quantizer or None, got {kind}")
        layer: Any = taken_over(cls, module)
        given = layer._parameters.pop("weight")
        weight.initialize(given)
        weight.dtype = given.dtype
        if input_quantizer is not None:
            input_quantizer.to(given.device)
        layer._modules.update({"direct": weight, "input_quantizer": input_quantizer})
        return layer.train(module.training)


class DirectLinear(_Direct, nn.Linear):  # type: ignore[misc, override]
    """``torch.nn.Linear`` whose weight is stored as codes; made by ``from_float(linear, DirectWeight(bits))``."""

    _float = nn.Linear


class DirectConv1d(_Direct, nn.Conv1d):  # type: ignore[misc, override]
    """``torch.nn.Conv1d`` whose weight is stored as codes; made by ``from_float(conv, DirectWeight(bits))``."""

    _float = nn.Conv1d


class DirectConv2d(_Direct, nn.Conv2d):  # type: ignore[misc, override]
    """``torch.nn.Conv2d`` whose weight is stored as codes; made by ``from_float(conv, DirectWeight(bits))``."""

    _float = nn.Conv2d


#: The form of each layer type whose weight is stored as codes.
DIRECT: dict[type[nn.Module], Any] = {layer._float: layer for layer in (DirectLinear, DirectConv1d, DirectConv2d)}


class DirectOptimizer:
    """Has an optimizer train weights that are codes: whatever it makes of their gradient becomes the codes' update.

    ::

        optimizer = fastq.DirectOptimizer(torch.optim.Adam(model.parameters(), lr=1e-3), model)

    The optimizer sees a parameter ``delta`` for each :class:`fastq.nn.DirectWeight`, which is zero before its step and so holds
    the step afterwards, with momentum, preconditioning and learning rate in it. Then ``direct_update_(codes, residual, levels,
    delta, lr=-1, rho)`` takes it, with the levels that the gradient was computed for; levels that changed places are relabelled.
    For SGD with ``rho = 1`` and fixed levels that is straight-through training of a latent weight.

    It works by step hooks, so the optimizer itself may go on being used (by a learning-rate scheduler, a ``GradScaler``); where the
    scaler skips a step, no code moves. ``DistributedDataParallel`` is made inside of :func:`fastq.nn.open_deltas`. During
    the step there are fp32 deltas of the size of the weights, and nothing of that size but codes and residual between steps.

    Args:
        optimizer: any ``torch.optim.Optimizer`` over parameters that include the deltas (``model.parameters()`` does).
        modules: a module or several; every DirectWeight inside is served.

    Raises:
        TypeError: ``optimizer`` or ``modules`` is of another type.
        ValueError: no DirectWeight is there, the optimizer does not hold a delta, or it decays one (``weight_decay``, at any step):
            zeros cannot decay, and what was asked for would not happen.

    ``step``, ``zero_grad``, ``state_dict``, ``load_state_dict``, ``param_groups`` and all else are the optimizer's own.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, modules: nn.Module | Iterable[nn.Module]) -> None:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"DirectOptimizer: optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
        roots = [modules] if isinstance(modules, nn.Module) else list(modules)
        for root in roots:
            if not isinstance(root, nn.Module):
                raise TypeError(f"DirectOptimizer: modules must be torch.nn.Modules, got {type(root).__name__}")
        self.optimizer = optimizer
        self.weights = list(dict.fromkeys(m for root in roots for m in root.modules() if isinstance(m, DirectWeight)))
        if not self.weights:
            raise ValueError("DirectOptimizer: modules hold no fastq.nn.DirectWeight")
        self._check()
        self._levels: list[torch.Tensor] = []
        self._hooks = [optimizer.register_step_pre_hook(self._before), optimizer.register_step_post_hook(self._after)]

    def _check(self) -> None:
        groups = {id(p): group for group in self.optimizer.param_groups for p in group["params"]}
        absent = sum(id(m.delta) not in groups for m in self.weights)
        if absent:
            raise ValueError(
                f"DirectOptimizer: the optimizer does not hold the delta of {absent} of {len(self.weights)} DirectWeights; make it "
                "from model.parameters() once every weight is initialized"
            )
        for m in self.weights:
            if decay := groups[id(m.delta)].get("weight_decay", 0):
                raise ValueError(
                    f"DirectOptimizer: weight_decay must be 0 for the deltas of DirectWeights, got {decay}: a delta is zero "
                    "before each step, so nothing would decay; put them in a parameter group of their own"
                )

    @torch.no_grad()
    def _before(self, *_: Any) -> None:
        self._check()
        self._levels = [m.levels().clone() for m in self.weights]
        for m in self.weights:
            m.open_delta()

    @torch.no_grad()
    def _after(self, *_: Any) -> None:
        for m, levels in zip(self.weights, self._levels, strict=True):
            if m.delta.grad is not None:
                direct_update_(m.codes, m.residual, levels, m.delta, lr=-1.0, rho=m.rho)
            m.close_delta()
            m.relabel()

    def detach(self) -> torch.optim.Optimizer:
        """Take the hooks off again; returns the optimizer, which then refuses to step a delta."""
        for hook in self._hooks:
            hook.remove()
        return self.optimizer

    def __getattr__(self, name: str) -> Any:
        if name == "optimizer":  # while this is being unpickled
            raise AttributeError(name)
        return getattr(self.optimizer, name)

    def __iter__(self) -> Iterator[DirectWeight]:
        return iter(self.weights)

    def __repr__(self) -> str:
        return f"DirectOptimizer({len(self.weights)} weights, {self.optimizer!r})"
