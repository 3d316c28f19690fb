"""``torch.ao.quantization``'s fake-quantize modules on the fused kernels. Change ::

    from torch.ao.quantization import FakeQuantize                                                          # before
    from fastq.compat.torch_ao import FakeQuantize                                                          # after

    from torch.ao.quantization._learnable_fake_quantize import _LearnableFakeQuantize                       # before
    from fastq.compat.torch_ao import LearnableFakeQuantize as _LearnableFakeQuantize                       # after

So are ``get_default_qat_qconfig``, ``default_fake_quant`` and the like; ``fused(qconfig)`` translates any other configuration.
They are subclasses of torch's: constructors, ``with_args``, observers, ``calculate_qparams``, the switches, state dict keys and
``convert`` are torch's own, and checkpoints load both ways. ``forward`` is ours: output and gradient of ``x`` have torch's bits
(float64 is computed in float64, where torch rounds through float32), the gradients of a learned scale and zero-point agree to
the rounding of a sum. A switch is read from its buffer only when the buffer was written, so that no call waits for a GPU.

Not served: ``torch.per_channel_affine_float_qparams``, whose zero-points are fractions (``ValueError``), and ``torch.jit.script``.
Newer torch moves quantization to torchao; for that see :mod:`fastq.compat.torchao`.
"""

from __future__ import annotations

from typing import Any

import torch

from ..granularity import check_input, compute_dtype
from ..ops.affine import FakeQuantizeAffine
from ..ranges import LARGEST_CODE
from .missing import missing
from .reading import Reading

try:
    from torch.ao.quantization import FakeQuantize as _TorchFakeQuantize
    from torch.ao.quantization import FusedMovingAvgObsFakeQuantize as _TorchFused
    from torch.ao.quantization import QConfig, fake_quantize
    from torch.ao.quantization import get_default_qat_qconfig as _torch_default_qat_qconfig
    from torch.ao.quantization._learnable_fake_quantize import _LearnableFakeQuantize as _TorchLearnable
except ImportError as error:
    raise missing("torch_ao", "a torch that still has torch.ao.quantization (2.10 to 2.13 do)", error) from error

__all__ = [
    "FakeQuantize",
    "FusedMovingAvgObsFakeQuantize",
    "LearnableFakeQuantize",
    "default_fake_quant",
    "default_fused_act_fake_quant",
    "default_fused_per_channel_wt_fake_quant",
    "default_fused_wt_fake_quant",
    "default_per_channel_weight_fake_quant",
    "default_weight_fake_quant",
    "fused",
    "get_default_qat_qconfig",
]


def _is_on(switch: torch.Tensor) -> bool:
    return bool(switch[0] == 1)


def _as_float(t: torch.Tensor) -> torch.Tensor:
    return t.detach().to(torch.float32)


def _refuse(name: str, quant_min: int, quant_max: int, qscheme: Any) -> None:
    if qscheme == torch.per_channel_affine_float_qparams:
        raise ValueError(
            f"{name}: qscheme torch.per_channel_affine_float_qparams has fractional zero-points, and the kernels round them to "
            "integers; keep torch's own class for it, or use torch.per_channel_affine"
        )
    if max(-quant_min, quant_max) > LARGEST_CODE:
        raise ValueError(f"{name}: quant_min and quant_max must lie within ±{LARGEST_CODE}, got {quant_min} and {quant_max}")


def _channel_axis(name: str, x: torch.Tensor, axis: int) -> int:
    if not -x.dim() <= axis < x.dim():
        raise ValueError(f"{name}: ch_axis must be in [{-x.dim()}, {x.dim() - 1}] for x of {x.dim()} dimensions, got {axis}")
    return axis % x.dim()


class FakeQuantize(_TorchFakeQuantize):
    """``torch.ao.quantization.FakeQuantize`` with a fused forward and backward pass.

    Arguments, attributes, observers and state dict (``fake_quant_enabled``, ``observer_enabled``, ``scale``, ``zero_point`` and the
    observer's) are torch's. With the observer on, it sees ``x`` and sets scale (units of ``x``) and zero_point (an integer code);
    with fake quantization on, ::

        c  = round(x * (1 / scale)) + zero_point
        y  = (clip(c, quant_min, quant_max) - zero_point) * scale,   dx = g where quant_min <= c <= quant_max, else 0

    ``y`` and ``dx`` are ``torch.equal`` to torch's for float32, bfloat16 and float16; see
    :func:`fastq.fake_quantize_per_tensor_affine` for NaN and float64.

    Raises:
        ValueError: a qscheme or range that the kernels do not serve, or a scale that does not fit ``x``.
        TypeError: a dtype of ``x`` that they do not.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        observer = self.activation_post_process
        _refuse("FakeQuantize", observer.quant_min, observer.quant_max, self.qscheme)
        self._observes, self._quantizes, self._zero = Reading(), Reading(), Reading()

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        buffers: dict[str, Any] = self._buffers  # self.scale costs a microsecond
        observer: Any = self._modules["activation_post_process"]
        observes = self._observes.of(buffers["observer_enabled"], _is_on)
        if observes:
            observer(X.detach())
            scale, zero_point = self.calculate_qparams()
            if buffers["scale"].shape != scale.shape:
                buffers["scale"].resize_(scale.shape)
                buffers["zero_point"].resize_(zero_point.shape)
            buffers["scale"].copy_(scale)
            buffers["zero_point"].copy_(zero_point)
        if not self._quantizes.of(buffers["fake_quant_enabled"], _is_on):
            return X
        # The next call writes into scale, which this call's backward pass needs.
        scale = buffers["scale"].clone() if observes else buffers["scale"]
        return self._fake_quantize(X, observer, scale, self._zero.of(buffers["zero_point"], _as_float))

    def _fake_quantize(self, X: torch.Tensor, observer: Any, scale: torch.Tensor, zero_point: torch.Tensor) -> torch.Tensor:
        check_input("FakeQuantize", X)
        if scale.dtype != (dtype := compute_dtype(X)):
            scale, zero_point = scale.to(dtype), zero_point.to(dtype)
        axis = _channel_axis("FakeQuantize", X, self.ch_axis) if self.is_per_channel else -1
        return FakeQuantizeAffine.apply(X, scale, zero_point, observer.quant_min, observer.quant_max, axis)


class FusedMovingAvgObsFakeQuantize(_TorchFused, FakeQuantize):  # type: ignore[misc]
    """``torch.ao.quantization.FusedMovingAvgObsFakeQuantize``, which torch's default QAT configurations have.

    Arguments and state dict are torch's, and so are the bits of output, gradient, scale and zero-point: torch's operator is shown
    the extrema of ``x`` (of each channel) instead of ``x``, and updates its running estimates with them; the rest is
    :class:`FakeQuantize`. Errors as there.
    """

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        buffers: dict[str, Any] = self._buffers
        observer: Any = self._modules["activation_post_process"]
        quantizes = self._quantizes.of(buffers["fake_quant_enabled"], _is_on)
        observes = self._observes.of(buffers["observer_enabled"], _is_on) and X.numel() > 0
        if not quantizes and not observes:
            return X
        # Without the observer torch's operator still takes scale and zero-point from the running extrema.
        switch = buffers["observer_enabled"]
        torch.fused_moving_avg_obs_fake_quant(
            self._extrema(X.detach(), observes), switch if observes else torch.zeros_like(switch), buffers["fake_quant_enabled"],
            observer.min_val, observer.max_val, buffers["scale"], buffers["zero_point"], observer.averaging_constant,
            observer.quant_min, observer.quant_max, 0 if self.is_per_channel else -1, self.is_per_channel, self.is_symmetric_quant,
        )  # fmt: skip
        if not quantizes:
            return X
        # The operator writes into its buffers unseen by their version: what the backward pass needs is a copy.
        return self._fake_quantize(X, observer, buffers["scale"].clone(), _as_float(buffers["zero_point"]))

    def _extrema(self, x: torch.Tensor, observes: bool) -> torch.Tensor:
        """Least and largest, of each channel or of all; zeros where nobody looks."""
        if not self.is_per_channel:
            return torch.stack(torch.aminmax(x)).to(torch.float32) if observes else x.new_zeros(2, dtype=torch.float32)
        axis = _channel_axis("FakeQuantize", x, self.ch_axis)
        if not observes:
            return x.new_zeros((x.shape[axis], 2), dtype=torch.float32)
        rows = x.movedim(axis, 0).reshape(x.shape[axis], -1)
        return torch.stack([rows.amin(1), rows.amax(1)], 1).to(torch.float32)


class LearnableFakeQuantize(_TorchLearnable):
    """``torch.ao.quantization._learnable_fake_quantize._LearnableFakeQuantize`` with a fused forward and backward pass.

    Arguments, switches (``enable_param_learning``, ``enable_static_estimate``, ``toggle_*``) and state dict (parameters ``scale``,
    ``zero_point``; buffers ``fake_quant_enabled``, ``observer_enabled``, ``static_enabled``, ``learning_enabled``, ``eps`` and the
    observer's) are torch's. Forward and gradients as ``fastq._fake_quantize_learnable_per_tensor_affine``, whose sums agree with
    torch's to fp32 rounding; with ``use_grad_scaling`` they are multiplied by ``1 / sqrt(x.numel() * quant_max)``. No buffers of
    the size of ``x`` for the sums, no synchronisation.

    Raises:
        ValueError, TypeError: as :class:`FakeQuantize`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _refuse("LearnableFakeQuantize", self.quant_min, self.quant_max, self.qscheme)
        self._observes, self._quantizes = Reading(), Reading()
        self._smallest = torch.finfo(torch.float32).eps
        self._symmetric = self.qscheme in (torch.per_channel_symmetric, torch.per_tensor_symmetric)
        self._per_channel = self.qscheme in (torch.per_channel_symmetric, torch.per_channel_affine)

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        # .data as in torch: a module that is called twice before a backward pass must not trip over its own saved scale
        scale: torch.Tensor = self.scale
        zero_point: torch.Tensor = self.zero_point
        if self._observes.of(self._buffers["static_enabled"], _is_on):
            self.activation_post_process(X.detach())
            estimate = self.activation_post_process.calculate_qparams()
            scale.data.copy_(estimate[0])
            zero_point.data.copy_(estimate[1])
        else:
            scale.data.clamp_(min=self._smallest)
        if not self._quantizes.of(self._buffers["fake_quant_enabled"], _is_on):
            return X
        if self._symmetric:
            zero_point.data.zero_()
        check_input("LearnableFakeQuantize", X)
        factor = 1.0 / (X.numel() * self.quant_max) ** 0.5 if self.use_grad_scaling else 1.0
        if scale.dtype != (dtype := compute_dtype(X)):
            scale, zero_point = scale.to(dtype), zero_point.to(dtype)
        axis = _channel_axis("LearnableFakeQuantize", X, self.ch_axis) if self._per_channel else -1
        return FakeQuantizeAffine.apply(X, scale, zero_point, self.quant_min, self.quant_max, axis, True, factor)


_OURS: dict[Any, Any] = {
    _TorchFakeQuantize: FakeQuantize,
    _TorchFused: FusedMovingAvgObsFakeQuantize,
    _TorchLearnable: LearnableFakeQuantize,
}


def fused(configuration: Any) -> Any:
    """A ``QConfig``, or a constructor made by ``with_args``, with torch's fake-quantize classes replaced by those of this module.

    A constructor may be made from another one: ``fused(default_fake_quant.with_args(quant_max=127))``. ``ValueError`` where there
    is nothing to replace: what was given is no fake-quantize constructor of torch's that has one here.
    """
    if isinstance(configuration, QConfig):
        return QConfig(activation=fused(configuration.activation), weight=fused(configuration.weight))
    made = getattr(configuration, "p", None)
    func = getattr(made, "func", None)
    if made is None or not (func in _OURS or hasattr(func, "p")):
        names = ", ".join(kind.__name__ for kind in _OURS)
        raise ValueError(f"fused: expected a QConfig or with_args(...) of {names}, got {configuration!r}")
    inner = _OURS[func] if func in _OURS else fused(func)
    return inner.with_args(**made.keywords).with_callable_args(**configuration.callable_args)


def get_default_qat_qconfig(backend: str = "x86", version: int | None = 1) -> QConfig:
    """``torch.ao.quantization.get_default_qat_qconfig`` with the classes of this module. Arguments and errors are torch's."""
    return fused(_torch_default_qat_qconfig(backend, version))


default_fake_quant = fused(fake_quantize.default_fake_quant)
default_fused_act_fake_quant = fused(fake_quantize.default_fused_act_fake_quant)
default_fused_per_channel_wt_fake_quant = fused(fake_quantize.default_fused_per_channel_wt_fake_quant)
default_fused_wt_fake_quant = fused(fake_quantize.default_fused_wt_fake_quant)
default_per_channel_weight_fake_quant = fused(fake_quantize.default_per_channel_weight_fake_quant)
default_weight_fake_quant = fused(fake_quantize.default_weight_fake_quant)
