"""The LSQ quantizer of a weight that is watched for oscillations, and frozen where it oscillates too often."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
from torch import nn

from ..ops import dampening, foreach_oscillation_step_, frozen_lsq, oscillation_step_
from ..oscillation import OscillationState, check_range, momentum_in_fp32
from ..ranges import integer_range
from .base import Grid
from .quantizer import LSQ

__all__ = ["OscillationLSQ", "step_oscillations_"]


class OscillationLSQ(LSQ):
    """:class:`fastq.nn.LSQ` for a weight, with the state of :func:`fastq.oscillation_step_`.

    The first training batch makes the state. From then on the forward pass is :func:`fastq.frozen_lsq`, which is LSQ where nothing
    is frozen. ``step_``, called after the optimizer's step, tracks and freezes; in evaluation mode it does nothing, and the forward
    pass never changes a state::

        loss.backward()
        optimizer.step()
        threshold = fastq.schedules.freezing_threshold(t, T, first=0.04, last=0.01)
        layer.weight_quantizer.step_(layer.weight, threshold=threshold)      # or, for all: step_oscillations_(model, threshold)

    The step is a plain parameter: a zero or negative one acts as ``max(|step|, eps)``, as in :class:`fastq.nn.LSQ`.

    Args:
        bits: 1 to 8, or ``(qmin, qmax)`` of at most 256 codes.
        momentum: of frequency and average, above 0 and below 1; the authors' class has 0.01, their recipes 0.001.
        count_first: count the first switch of all, as the paper does; the authors' code does not.
        boundary: as in :func:`fastq.lsq`; ``"rounded"`` is what the authors' code has.
        keywords: the others of :class:`fastq.nn.LSQ`; ``offset`` excepted, which freezing does not know.

    Raises:
        TypeError, ValueError: an argument, or later an ``x``, does not fit; the message says what was expected.
        RuntimeError: ``step_`` or ``dampening`` before the first batch.

    Attributes:
        freeze, track: buffers, int32, the two planes of the state (:mod:`fastq.oscillation`); None before the first training batch.
        state: the two as a :class:`fastq.OscillationState`, or None.

    Paper: Nagel et al., Overcoming Oscillations in Quantization-Aware Training, ICML 2022, https://arxiv.org/abs/2203.11086.
    """

    freeze: torch.Tensor | None
    track: torch.Tensor | None

    def __init__(
        self, bits: int | tuple[int, int], *, momentum: float = 0.01, count_first: bool = False, boundary: str = "rounded",
        **keywords: Any,
    ) -> None:  # fmt: skip
        if keywords.get("offset"):
            raise ValueError("OscillationLSQ: offset must be False: what is frozen is an integer times the step")
        super().__init__(bits, boundary=boundary, **keywords)
        check_range("OscillationLSQ", *self._range())
        momentum_in_fp32("OscillationLSQ", momentum)
        self.momentum, self.count_first = momentum, count_first
        self.register_buffer("freeze", None)
        self.register_buffer("track", None)

    def _change_bits(self, bits: int | tuple[int, int]) -> None:
        check_range("OscillationLSQ", *integer_range("OscillationLSQ", bits, self._signed, self.narrow and self._signed))
        super()._change_bits(bits)
        self.freeze = self.track = None  # the history was one of other codes

    def _forget(self) -> None:
        super()._forget()
        self.freeze = self.track = None

    @property
    def state(self) -> OscillationState | None:
        if self.freeze is None or self.track is None:
            return None
        return OscillationState(self.freeze, self.track, self.qmin, self.qmax)

    def _where(self) -> dict[str, Any]:
        return {"bits": self._range(), "axis": self.axis, "group_size": self.group_size, "eps": self.eps}

    def _started(self, weight: torch.Tensor) -> OscillationState:
        """The state, made from ``weight`` if there is none yet."""
        state = self.state
        if state is None:
            state = oscillation_step_(weight, self._parameters_for(weight)[0], **self._where())
            self.freeze, self.track = state.freeze, state.track
        return state

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = self.state
        if state is None:
            y = super().forward(x)  # which sets the step, if this is the first batch
            if self.training and self._initialized:
                self._started(x)
            return y
        return frozen_lsq(x, self._parameters_for(x)[0], state, boundary=self.boundary, grad_scale=self.grad_scale, **self._where())

    def step_(self, weight: torch.Tensor, *, threshold: float = 0.0) -> OscillationState | None:
        """One :func:`fastq.oscillation_step_` on ``weight``, in place; in evaluation mode nothing. Gives the state.

        ``threshold``: freeze what oscillates more often than this; 0 freezes nothing.
        """
        if not self.training:
            return self.state
        self._require_step("step_")
        return oscillation_step_(
            weight, self._parameters_for(weight)[0], self._started(weight), momentum=self.momentum, threshold=threshold,
            count_first=self.count_first, **self._where(),
        )  # fmt: skip

    def dampening(self, weight: torch.Tensor, *, reduction: str = "kernel") -> torch.Tensor:
        """:func:`fastq.dampening` of ``weight`` with this quantizer's step: a term of the loss, to be multiplied by its weight."""
        self._require_step("dampening")
        return dampening(weight, self._parameters_for(weight)[0], reduction=reduction, **self._where())

    def _require_step(self, what: str) -> None:
        if not self._initialized and not bool(self.initialized):
            raise RuntimeError(f"OscillationLSQ: {what}() of a quantizer that has seen no batch, and so has no step yet")

    @torch.no_grad()
    def codes(self, x: torch.Tensor) -> torch.Tensor:
        """The integer codes of ``x`` as int32: those of the forward pass, so frozen ones where it is frozen."""
        codes, state = super().codes(x), self.state
        return codes if state is None else torch.where(state.frozen, state.frozen_codes, codes)

    def grid(self, x: torch.Tensor | None = None) -> Grid:
        """LSQ's; a frozen code is no function of the weight's value."""
        return replace(super().grid(), formula=self.state is None)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        # A state has the weight's shape, which a new module does not know; and one that was saved before its first batch has none.
        planes = [state_dict.get(f"{prefix}{name}") for name in ("freeze", "track")]
        saved = next((plane for plane in planes if plane is not None), None)
        for name in ("freeze", "track"):
            current = getattr(self, name)
            if saved is None:
                setattr(self, name, None)
            elif current is None or current.shape != saved.shape:
                setattr(self, name, torch.empty_like(saved, device=self.step.device))
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, momentum={self.momentum}, count_first={self.count_first}"


def step_oscillations_(model: nn.Module, threshold: float = 0.0) -> int:
    """``step_`` of every layer of ``model`` whose ``weight_quantizer`` is an :class:`OscillationLSQ`, in one pass over all weights.

    Call it after the optimizer's step. A layer that is in evaluation mode, or trains in full precision, is left as it is. Gives
    the number of such quantizers. Raises ``RuntimeError`` where one that trains has seen no batch.
    """
    layers = [layer for layer in model.modules() if isinstance(getattr(layer, "weight_quantizer", None), OscillationLSQ)]
    alike: dict[Any, list[tuple[torch.Tensor, OscillationLSQ, OscillationState]]] = {}
    for layer in layers:
        q, weight = cast(OscillationLSQ, layer.weight_quantizer), cast(torch.Tensor, layer.weight)
        if q.training and q.enabled:
            q._require_step("step_")
            key = (weight.device, q.momentum, q.count_first, q.eps)
            alike.setdefault(key, []).append((weight, q, q._started(weight)))
    for (_, momentum, count_first, eps), members in alike.items():
        foreach_oscillation_step_(
            [weight for weight, _, _ in members], [q._parameters_for(weight)[0] for weight, q, _ in members],
            [state for _, _, state in members], bits=[q._range() for _, q, _ in members], axis=[q.axis for _, q, _ in members],
            group_size=[q.group_size for _, q, _ in members], momentum=momentum, threshold=threshold, count_first=count_first,
            eps=eps,
        )  # fmt: skip
    return len(layers)
