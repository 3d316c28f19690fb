"""``fastq.recipes.attach``: what a recipe does while a network is trained, hung on the loop that there is."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from ..nn import LSQ, ChannelError, DirectOptimizer, DirectWeight, Quantizer, Tempered, step_oscillations_
from ..nn.oscillation import OscillationLSQ
from ..ops.foreach import foreach_dampening
from ..schedules import dampening_weight, freezing_threshold, tempering_decay
from .batch_norm import _call, reestimate_batch_norm
from .recipe import Phase, Recipe

__all__ = ["Training", "attach"]

#: What is at work on a quantizer, or on weights that are codes.
_at_work: weakref.WeakKeyDictionary[nn.Module, weakref.ref[Training]] = weakref.WeakKeyDictionary()


def _quantized(modules: Iterable[nn.Module], which: str) -> list[tuple[nn.Module, Quantizer]]:
    """The layers that have a quantizer of weights, or of inputs, and this quantizer."""
    return [(m, q) for m in modules if isinstance(q := getattr(m, f"{which}_quantizer", None), Quantizer)]


def _width(q: Quantizer) -> Any:
    return q.bits if q.enabled else None


def _own(q: Quantizer) -> Any:
    """Its own width: the one it has, or had before a phase gave it that."""
    given, own = vars(q).get("_of_phase", (None, q.bits))
    return own if given == _width(q) else q.bits


class Training:
    """A recipe at work on a model; :func:`attach` makes it.

    Attributes:
        step: optimizer steps so far. steps: of the whole run.
        phase: the recipe's :class:`~fastq.recipes.Phase` that is on; one with each layer's own width if the recipe has none.
        trains: ``"all"``, ``"quantizers"`` or ``"network"``: what the phase trains, by which a loop may choose its data.
    """

    def __init__(self, recipe: Recipe, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
        self.recipe, self.model, self.steps, self.step = recipe, model, steps, 0
        self._ends = recipe.phase_ends(steps)
        self._phases = recipe.phases or (Phase(),)
        modules = list(model.modules())
        self._quantizers = {q: (which, _own(q)) for which in ("weight", "input") for _, q in _quantized(modules, which)}
        self._tempered = [m for m in modules if isinstance(m, Tempered)]
        self._oscillates = any(isinstance(q, OscillationLSQ) for q in self._quantizers)
        self._dampened = [m for m, q in _quantized(modules, "weight") if isinstance(q, LSQ)]
        self._widths = {q: _width(q) for q in self._quantizers}
        self._frozen: list[tuple[Any, str, Any]] = []
        self._number: int | None = None
        self._direct = None
        if isinstance(optimizer, DirectOptimizer):
            optimizer = optimizer.optimizer
        elif any(isinstance(m, DirectWeight) for m in modules) and not _serves(optimizer):
            self._direct = DirectOptimizer(optimizer, model)
        self._set()
        self._hook = optimizer.register_step_post_hook(self._after)  # after DirectOptimizer's: codes have moved
        self._own = [m for m in modules if isinstance(m, (Quantizer, DirectWeight))]
        _at_work.update(dict.fromkeys(self._own, weakref.ref(self)))

    @property
    def phase(self) -> Phase:
        return self._phases[self._number or 0]

    @property
    def trains(self) -> str:
        return self.phase.train

    def _after(self, *_: Any) -> None:
        if self._oscillates:
            step_oscillations_(self.model, self.threshold)
        self.step += 1
        self._set()

    @property
    def threshold(self) -> float:
        """The threshold above which an oscillating weight freezes at this step; 0: none does."""
        f = self.recipe.freezing
        if f is None:
            return 0.0
        return freezing_threshold(min(self.step, self.steps), self.steps, first=f.first, last=f.last, delay=f.delay)

    def _set(self) -> None:
        """Widths, what is trained, and the noise, as this step wants them."""
        number = next((i for i, end in enumerate(self._ends) if self.step < end), len(self._ends) - 1)
        if number != self._number:
            self._number = number
            for q, (which, own) in self._quantizers.items():
                self._set_width(q, own, self.phase.weight_bits if which == "weight" else self.phase.activation_bits)
            self._thaw()
            self._freeze(self.phase.train)
        t = self.recipe.tempering
        if t is not None:
            decay = tempering_decay(self.step, self.steps, initial=t.initial, rate=t.rate)
            for module in self._tempered:
                module.decay.fill_(decay)

    def _set_width(self, q: Quantizer, own: Any, bits: Any) -> None:
        if bits == "own":
            bits = own
        elif bits is not None:
            width = (own[1] - own[0]).bit_length() if isinstance(own, tuple) else own
            bits = own if width is None or width >= bits else bits
        if bits != self._widths[q]:
            q.set_bits(bits)
            self._widths[q] = bits
            vars(q)["_of_phase"] = (bits, own)

    def _freeze(self, train: str) -> None:
        if train == "all":
            return
        own = {id(p) for m in self.model.modules() if isinstance(m, (Quantizer, DirectWeight)) for p in m.parameters()}
        own -= {id(m.delta) for m in self.model.modules() if isinstance(m, DirectWeight)}
        for p in self.model.parameters():
            if (id(p) in own) != (train == "quantizers"):
                self._frozen.append((p, "requires_grad", p.requires_grad))
                p.requires_grad, p.grad = False, None  # a gradient left behind would be stepped
        if train == "network":
            for q in self._quantizers:
                if isinstance(q, ChannelError):  # no gradient moves its step
                    self._frozen.append((q, "moves", q.moves))
                    q.moves = False
        if train == "quantizers":
            for m in self.model.modules():
                if isinstance(m, nn.modules.batchnorm._BatchNorm):
                    self._frozen.append((m, "momentum", m.momentum))
                    m.momentum = 0.0

    def _thaw(self) -> None:
        for thing, name, value in self._frozen:
            setattr(thing, name, value)
        self._frozen = []

    def loss(self) -> torch.Tensor:
        """What the recipe adds to the loss at this step, 0-d: the dampening of all weights times its scheduled weight, or 0."""
        d = self.recipe.dampening
        factor = 0.0
        if d is not None:
            factor = dampening_weight(min(self.step, self.steps), self.steps, last=d.last, delay=d.delay)
        groups: dict[float, list[Any]] = {}
        for layer in self._dampened if factor else []:
            q: Any = layer.weight_quantizer
            if q.enabled and q._initialized:
                groups.setdefault(q.eps, []).append(layer)
        if d is None or not groups:
            return torch.zeros((), device=next((p.device for p in self.model.parameters()), None))
        total: Any = 0
        for eps, members in groups.items():
            quantizers = [layer.weight_quantizer for layer in members]
            total = total + foreach_dampening(
                [layer.weight for layer in members], [q.step for q in quantizers], bits=[q._range() for q in quantizers],
                axis=[q.axis for q in quantizers], group_size=[q.group_size for q in quantizers], reduction=d.reduction, eps=eps,
            )  # fmt: skip
        return factor * total

    def before_evaluation(self, batches: Iterable[Any], *, forward: Callable[[nn.Module, Any], Any] = _call) -> int:
        """Estimate batch norm's statistics anew from the first ``recipe.batch_norm`` training batches, if it asks for that.

        Args and errors: as :func:`fastq.recipes.reestimate_batch_norm`. Returns the number of batches used; 0: none was asked for.
        """
        if not self.recipe.batch_norm:
            return 0
        return reestimate_batch_norm(self.model, batches, count=self.recipe.batch_norm, forward=forward)

    def state_dict(self) -> dict[str, int]:
        """The step, and the length of the run; all else follows from them and the model's own state."""
        return {"step": self.step, "steps": self.steps}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on at the step of ``state``. Load the model's state after this: the width decides what a state means.

        Raises ``ValueError`` where the run of ``state`` had another length.
        """
        if state["steps"] != self.steps:
            raise ValueError(f"load_state_dict: the state is of a run of {state['steps']} steps, this one has {self.steps}")
        self.step = state["step"]
        self._set()

    def detach(self) -> None:
        """Take the hooks off the optimizer and give every parameter back what it was: whether it is trained. Widths stay."""
        self._hook.remove()
        for m in self._own:
            _at_work.pop(m, None)
        if self._direct is not None:
            self._direct.detach()
        self._thaw()

    def __repr__(self) -> str:
        return f"Training({self.recipe.name!r}, step {self.step} of {self.steps}, {self.phase})"


def _serves(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a DirectOptimizer is on it already."""
    hooks = optimizer._optimizer_step_post_hooks.values()
    return any(isinstance(getattr(hook, "__self__", None), DirectOptimizer) for hook in hooks)


def attach(recipe: Recipe, model: nn.Module, optimizer: torch.optim.Optimizer, *, steps: int) -> Training:
    """Have ``recipe`` followed while ``model`` is trained by a loop of one's own. Three lines at most::

        run = fastq.recipes.attach(recipe, model, optimizer, steps=len(loader) * epochs)      # 1
        for x, y in loader:
            optimizer.zero_grad()
            loss = criterion(model(x), y) + run.loss()                                        # 2, for dampening alone
            loss.backward()
            optimizer.step()
        run.before_evaluation(x for x, y in loader)                                           # 3, for batch norm alone

    After each ``optimizer.step()`` the recipe counts it, tracks and freezes oscillations, lets the noise decay, and, where a phase
    ends, changes widths and what is trained; weights that are codes are moved by the optimizer's step. A step that a ``GradScaler``
    leaves out is not counted. When phases freeze parameters, make ``DistributedDataParallel`` with ``find_unused_parameters``.

    Args:
        recipe: what :func:`fastq.prepare` was given.
        model: the prepared model, also where it is wrapped or compiled.
        optimizer: over its parameters, any ``torch.optim.Optimizer``; with several, one that steps every time.
        steps: optimizer steps of the whole run; later ones keep the last values of all schedules.

    Returns:
        The :class:`Training`, whose ``state_dict`` belongs into a checkpoint.

    Raises:
        TypeError: an argument is of another type.
        ValueError: steps is below 1; the recipe's schedule is longer than the run; the model is not prepared; a recipe is at work
            on it, and was not detached; the recipe freezes, tempers or dampens, and the model has no quantizer that can.
    """
    if not isinstance(recipe, Recipe):
        raise TypeError(f"attach: recipe must be a fastq.recipes.Recipe, got {type(recipe).__name__}")
    if not isinstance(model, nn.Module):
        raise TypeError(f"attach: model must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(optimizer, (torch.optim.Optimizer, DirectOptimizer)):
        raise TypeError(f"attach: optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    if isinstance(steps, bool) or not isinstance(steps, int):
        raise TypeError(f"attach: steps must be an int, got {steps!r}")
    if steps < 1:
        raise ValueError(f"attach: steps must be at least 1, got {steps}")
    modules = list(model.modules())
    if not any(isinstance(m, (Quantizer, DirectWeight)) for m in modules):
        raise ValueError("attach: the model has no quantizer; call fastq.prepare(model, recipe) first")
    for part, kind in (("freezing", OscillationLSQ), ("tempering", Tempered)):
        if getattr(recipe, part) is not None and not any(isinstance(m, kind) for m in modules):
            raise ValueError(
                f"attach: recipe {recipe.name!r} has {part}, but the model has no {kind.__name__}; prepare it with this recipe"
            )
    if recipe.dampening is not None:
        dampened = [q for _, q in _quantized(modules, "weight") if isinstance(q, LSQ)]
        if not dampened:
            raise ValueError(
                f"attach: recipe {recipe.name!r} has dampening, but no weights of the model are quantized by LSQ, to whose grid it "
                "pulls; prepare it with this recipe"
            )
        if any(q.offset is not None for q in dampened):
            raise ValueError(
                f"attach: recipe {recipe.name!r} has dampening, which pulls to a grid without an offset, but the weights' "
                "quantizers learn one"
            )
    for m in modules:
        if m in _at_work and (running := _at_work[m]()) is not None:
            raise ValueError(f"attach: {running} is at work on this model; call its detach() first")
    return Training(recipe, model, optimizer, steps)
