"""The noise-tempering quantizer as a module."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..granularity import compute_dtype
from ..ops import tempered
from ..ops.tempered import check_decay
from ..reference.philox import NOISES
from ..reference.tempered import READINGS
from ..seeds import new_seed, take_seed
from .quantizer import LSQ, check_factor

__all__ = ["Tempered"]


class Tempered(LSQ):
    """Fake-quantize with decaying, error-aware noise and a learned scale of the gradient: :func:`fastq.tempered` with its state.

    A reconstruction of noise tempering: the equations were not published in the sources we had.

    In evaluation mode there is no noise: ``y = s * q``, the codes of a :class:`fastq.nn.LSQ` with this step, and so it is
    converted. In training mode each call draws new noise: it takes the seed and adds one to it, on its device, so that two runs
    from one state give the same numbers, and a captured CUDA graph draws anew each time it runs. (Activation checkpointing calls
    the module twice, and so gets other noise the second time.)

    ``decay`` is set from outside, once a training step: ``q.decay = fastq.tempering_decay(t, T)`` fills the tensor that it is, so
    that a compiled module is not compiled anew and a captured graph sees the new value; each call takes the one of its time.

    Step and ``a`` stay positive by parametrisation: the step as in :class:`fastq.nn.LSQ`, and of ``a`` the magnitude is used. A
    projection would change parameters behind the optimizer's back, and a negative ``a`` would turn the gradient round.

    Args:
        bits, signed, narrow, axis, group_size, shape, init, boundary, grad_scale, eps: as in :class:`fastq.nn.LSQ`.
        reading, noise, a_grad_scale: as in :func:`fastq.tempered`.
        decay: the first one, a float from 0 to 1.
        seed: the first one, any int that 64 bits hold; None draws one from torch's generator, so ``torch.manual_seed`` settles it.

    Input: ``x`` as :func:`fastq.tempered` takes it. Output: of its shape, dtype and layout.

    Raises:
        TypeError, ValueError: an argument, or later an ``x``, does not fit; the message says what was expected.

    Attributes:
        step, a: parameters of one shape, float32 whatever ``.to()`` or ``.half()`` the model gets (float64 after ``.double()``).
        seed: buffer, one int64 element: of the next training call.
        decay: buffer, one element, float32 as the step is: the factor of the noise. A number or a tensor of one element assigned to
            it is written into it.
        initialized, is_signed: buffers, as in :class:`fastq.nn.LSQ`.
    """

    on_grid = False
    a: nn.Parameter
    seed: torch.Tensor
    decay: torch.Tensor

    def __init__(
        self, bits: int | tuple[int, int], *, signed: bool | None = True, narrow: bool = False, axis: int | None = None,
        group_size: int | None = None, shape: tuple[int, ...] = (1,), init: str = "lsq", boundary: str = "open",
        grad_scale: float | str = "lsq", a_grad_scale: float = 1.0, eps: float = 1e-8, reading: str = "noise",
        noise: str = "uniform", decay: float = 1.0, seed: int | None = None,
    ) -> None:  # fmt: skip
        grain: dict[str, Any] = {"axis": axis, "group_size": group_size, "shape": shape}
        super().__init__(
            bits, signed=signed, narrow=narrow, init=init, boundary=boundary, grad_scale=grad_scale, eps=eps, **grain
        )  # fmt: skip
        for name, value, known in (("reading", reading, READINGS), ("noise", noise, NOISES)):
            if value not in known:
                raise ValueError(f"Tempered: {name} must be one of {', '.join(known)}, got {value!r}")
        if isinstance(decay, torch.Tensor):
            raise TypeError("Tempered: decay must be a float from 0 to 1, got Tensor; assign a tensor later, to be copied")
        check_decay("Tempered", decay)
        check_factor("Tempered", "a_grad_scale", a_grad_scale)
        self.reading, self.noise, self.a_grad_scale = reading, noise, a_grad_scale
        self.a = nn.Parameter(torch.ones_like(self.step))
        self.register_buffer("seed", new_seed("Tempered", seed).to(self.step.device))
        self.register_buffer("decay", torch.full((1,), float(decay), dtype=torch.float32, device=self.step.device))

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "decay" or "decay" not in self.__dict__.get("_buffers", {}):
            return super().__setattr__(name, value)
        check_decay("Tempered", value)
        with torch.no_grad():
            self.decay.copy_(value) if isinstance(value, torch.Tensor) else self.decay.fill_(value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._ready(x)
        step, _ = self._parameters_for(x)
        # A copy, for the backward pass: what it was, whatever is written into it by then.
        return tempered(
            x, step, self.a.to(compute_dtype(x)).abs(), bits=self._range(), decay=self.decay.clone() if self.training else 0.0,
            seed=take_seed(self.seed) if self.training else None, reading=self.reading, noise=self.noise, training=self.training,
            axis=self.axis, group_size=self.group_size, boundary=self.boundary, grad_scale=self.grad_scale,
            a_grad_scale=self.a_grad_scale, eps=self.eps,
        )  # fmt: skip

    def extra_repr(self) -> str:
        decay = "none yet" if self.decay.is_meta else f"{float(self.decay):.4g}"
        return f"{super().extra_repr()}, reading={self.reading!r}, noise={self.noise!r}, decay={decay}"
