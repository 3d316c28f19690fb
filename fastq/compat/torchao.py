"""torchao's QAT on the fused kernels. Change ::

    from torchao.quantization.qat import QATConfig, IntxFakeQuantizeConfig         # before
    from fastq.compat.torchao import QATConfig, IntxFakeQuantizeConfig             # after

``quantize_(model, QATConfig(...))`` stays torchao's. In its prepare step the layers are torchao's ``FakeQuantizedLinear`` and
``FakeQuantizedEmbedding``, with :class:`IntxFakeQuantizer` of this module on weight and activation; the convert step is torchao's.

What is computed, with scale and zero-point of a group, row or token from torchao's own formulas (and, as there, without a gradient
unless ``range_learning``)::

    c  = round(x * (1 / scale)) + zero_point
    y  = (clip(c, qmin, qmax) - zero_point) * scale,     dx = g where qmin <= c <= qmax, else 0

``y`` has torchao's bits where it computes in float32, which it does for float32 layers, and for half-precision ones with
``scale_precision=torch.float32`` (the default of ``IntxFakeQuantizeConfig``). torchao's ``dx`` is ``(g * scale) * (1 / scale)``;
here it is ``g``. With a half-precision scale (what a base config infers for a half-precision layer) torchao rounds ``1 / scale``,
the quotient and the result to half precision; the kernels do that to the result alone: codes next to a tie may differ by one.

Asymmetric groups take the middle of their values, cut to an integer, for a zero-point, as torchao does: 0 for weights as they are.
Beyond the codes, where torchao gives a constant, the kernels clip it to the nearest code.

Refused by a ``ValueError`` when the layer is prepared: base configs without integer fake-quantizers (float8, mxfp4, nvfp4,
``Int4WeightOnlyConfig``), a ``zero_point_domain`` other than INT, learned ranges with a zero-point (torchao learns fractions of a
code, the kernels' zero-points are integers). Symmetric per-token quantization raises as in torchao.
"""

from __future__ import annotations

import torch

from ..granularity import check_input, compute_dtype
from ..ops.affine import FakeQuantizeAffine
from .missing import missing

try:
    from torchao.quantization import qat as _qat
    from torchao.quantization.granularity import PerAxis
    from torchao.quantization.qat import (
        FakeQuantizedEmbedding,
        FakeQuantizedLinear,
        FakeQuantizerBase,
        IntxFakeQuantizeConfig,
        initialize_fake_quantizers,
    )
    from torchao.quantization.quant_primitives import _DTYPE_TO_BIT_WIDTH, _DTYPE_TO_QVALUE_BOUNDS, ZeroPointDomain
    from torchao.quantization.transform_module import _QUANTIZE_CONFIG_HANDLER, register_quantize_module_handler
except ImportError as error:
    raise missing("torchao", "torchao", error) from error

__all__ = [
    "FakeQuantizedEmbedding",
    "FakeQuantizedLinear",
    "IntxFakeQuantizeConfig",
    "IntxFakeQuantizer",
    "QATConfig",
    "initialize_fake_quantizers",
]


def _extrema(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Least and largest of each row: ``aminmax``, in one pass, is not vectorized on CPUs and takes five times as long."""
    rows = rows.detach()
    return rows.amin(-1), rows.amax(-1)


def _symmetric(rows: torch.Tensor, qmin: int, qmax: int, eps: float) -> torch.Tensor:
    """The scale of each row: the largest magnitude over half the range, at least ``eps``."""
    low, high = _extrema(rows)
    return (torch.maximum(low.neg_(), high).clamp_(min=0) / ((qmax - qmin) / 2)).clamp_(min=eps)


def _asymmetric(rows: torch.Tensor, qmin: int, qmax: int, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero-point of each row, from its extrema and 0."""
    low, high = _extrema(rows)
    low, high = low.clamp_(max=0), high.clamp_(min=0)
    scale = ((high - low) / (qmax - qmin)).clamp_(min=eps)
    return scale, (qmin - torch.round(low / scale)).clamp_(qmin, qmax)


def _midpoint(rows: torch.Tensor, qmin: int, qmax: int, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero-point as torchao has them for asymmetric groups: the middle of the row's range, in units of ``rows``."""
    low, high = _extrema(rows)
    scale = ((high - low) / (qmax - qmin)).clamp_(min=eps)
    return scale, low + scale * ((qmax + qmin + 1) / 2)


class IntxFakeQuantizer(_qat.IntxFakeQuantizer):
    """torchao's ``IntxFakeQuantizer`` with a fused forward and backward pass; made from an ``IntxFakeQuantizeConfig``.

    Per token (``x`` of any shape ``(..., K)``, asymmetric), per channel (``PerAxis(0)``) and per group of a matrix ``(N, K)``.
    ``enabled``, ``scale`` (``(N, K / group_size)``, per token ``x.shape[:-1]``; units of ``x``), ``zero_point`` and the parameter
    of ``range_learning`` (``scale``, in the state dict) are torchao's. For learned ranges ::

        dscale = sum g * ((y - x) / scale inside; qmin below; qmax above)

    Raises:
        ValueError: a config that cannot be served as torchao serves it (see the module), an ``x`` that it does not fit.
        TypeError: ``x`` is not a float tensor.
    """

    def __init__(self, config: IntxFakeQuantizeConfig) -> None:
        if not isinstance(config, IntxFakeQuantizeConfig):
            raise TypeError(f"IntxFakeQuantizer: config must be an IntxFakeQuantizeConfig, got {type(config).__name__}")
        if config.zero_point_domain is not ZeroPointDomain.INT:
            raise ValueError(
                "IntxFakeQuantizer: zero_point_domain must be ZeroPointDomain.INT, as the kernels' zero-points are integer codes, "
                f"got {config.zero_point_domain}; keep torchao's class for it"
            )
        if config.range_learning and not config.is_symmetric:
            raise ValueError(
                "IntxFakeQuantizer: range_learning=True needs is_symmetric=True, as torchao learns a fractional zero-point and the "
                "kernels' are integers; keep torchao's class for it, or use fastq.lsq with an offset"
            )
        super().__init__(config)
        self._bounds = _DTYPE_TO_QVALUE_BOUNDS[config.dtype]
        # Groups' formulas go by the bit width, and not by the bounds, which for uint4 and the like are those of unsigned codes.
        self._bits = _DTYPE_TO_BIT_WIDTH[config.dtype]

    def _per_token_forward(self, x: torch.Tensor) -> torch.Tensor:
        config = self.config
        if config.is_symmetric:
            return super()._per_token_forward(x)  # raises
        self._check(x)
        rows = x.reshape(-1, x.shape[-1])
        zero_point = None
        if self._should_compute_qparams():
            eps = torch.finfo(x.dtype).smallest_normal if config.eps is None else config.eps
            scale, zero_point = _asymmetric(rows, self._bounds[0], self._bounds[1], eps)
            self.scale = scale.to(config.scale_precision or x.dtype).view(x.shape[:-1])
            self.zero_point = zero_point.to(config.zero_point_precision or torch.int32).view(x.shape[:-1])
        return self._quantize(x, rows, zero_point)

    def _per_channel_or_group_forward(self, x: torch.Tensor) -> torch.Tensor:
        config = self.config
        self._check(x)
        group = x.shape[-1] if isinstance(config.granularity, PerAxis) else config.granularity.group_size
        if x.dim() != 2 or group < 2 or x.shape[1] % group:
            raise ValueError(
                f"IntxFakeQuantizer: x must be a matrix whose rows hold groups of {group} (at least 2), got {tuple(x.shape)}"
            )
        rows = x.reshape(-1, group)
        zero_point = None
        if self._should_compute_qparams():
            shape = (x.shape[0], x.shape[1] // group)
            if config.is_symmetric:
                eps = torch.finfo(x.dtype).smallest_normal if config.eps is None else config.eps
                scale = _symmetric(rows, -(2 ** (self._bits - 1)), 2 ** (self._bits - 1) - 1, eps)
                zero_point = torch.zeros_like(scale)
            else:
                scale, zero_point = _midpoint(rows, 0, 2**self._bits - 1, 1e-6 if config.eps is None else config.eps)
            precision = config.scale_precision or x.dtype
            self.scale = scale.to(precision).view(shape)
            zero_point = zero_point.to(precision).to(config.zero_point_precision or torch.int32)
            self.zero_point = zero_point.view(shape)
            self._maybe_update_qparams_for_range_learning()
        return self._quantize(x, rows, zero_point)

    def _check(self, x: torch.Tensor) -> None:
        check_input("IntxFakeQuantizer", x)
        if x.dim() == 0 or x.dtype == torch.float64:
            raise ValueError(
                f"IntxFakeQuantizer: x must be float32, bfloat16 or float16 with an axis, got {x.dtype} {tuple(x.shape)}"
            )

    def _quantize(self, x: torch.Tensor, rows: torch.Tensor, zero_point: torch.Tensor | None) -> torch.Tensor:
        scale, dtype = self.scale.reshape(-1), compute_dtype(x)
        zero_point = (self.zero_point if zero_point is None else zero_point).reshape(-1)
        if scale.numel() != rows.shape[0]:
            raise ValueError(
                f"IntxFakeQuantizer: scale of shape {tuple(self.scale.shape)} was fixed by the first input; x of shape "
                f"{tuple(x.shape)} needs {rows.shape[0]}"
            )
        learns = self.config.range_learning
        y = FakeQuantizeAffine.apply(rows, scale.to(dtype), zero_point.to(dtype), *self._bounds, 0, learns, 1.0)
        return y.view(x.shape)


class QATConfig(_qat.QATConfig):
    """torchao's ``QATConfig``, whose prepare step puts :class:`IntxFakeQuantizer` of this module into the layers.

    Arguments as torchao's: ``base_config`` (``Int8DynamicActivationIntxWeightConfig``, ``IntxWeightOnlyConfig``) or
    ``activation_config`` and ``weight_config``, and ``step``, ``"prepare"`` or ``"convert"``. ``ValueError`` for a config that the
    kernels cannot serve, before anything is changed.
    """


def _fused(quantizer: FakeQuantizerBase | None, module: torch.nn.Module) -> IntxFakeQuantizer | None:
    if quantizer is None:
        return None
    if type(quantizer) is not _qat.IntxFakeQuantizer:
        raise ValueError(
            f"QATConfig: torchao trains {type(module).__name__} with {type(quantizer).__name__} here, which the kernels do not "
            "serve; use IntxFakeQuantizeConfig (integer weights and activations), or torchao's own QATConfig for this layer"
        )
    return IntxFakeQuantizer(quantizer.config)


@register_quantize_module_handler(QATConfig)
def _transform(module: torch.nn.Module, config: QATConfig) -> torch.nn.Module:
    layer = _QUANTIZE_CONFIG_HANDLER[_qat.QATConfig](module, config)
    if config.step == "prepare":
        if not isinstance(layer, (FakeQuantizedLinear, FakeQuantizedEmbedding)):
            raise ValueError(
                f"QATConfig: torchao prepares {type(module).__name__} as {type(layer).__name__}, which the kernels do not serve"
            )
        layer.weight_fake_quantizer = _fused(layer.weight_fake_quantizer, module)
        if isinstance(layer, FakeQuantizedLinear):
            layer.activation_fake_quantizer = _fused(layer.activation_fake_quantizer, module)
    return layer
