"""Drop-ins: quantizers with the interfaces of other libraries, on fastq's kernels. One import changes; MIGRATING.md shows how.

===========================  ==========================================================================  ===================
``fastq.compat.torch_ao``    ``FakeQuantize``, ``LearnableFakeQuantize``                                  needs torch alone
``fastq.compat.torchao``     ``QATConfig``, ``IntxFakeQuantizer`` for torchao's ``quantize_``             needs torchao
``fastq.compat.brevitas``    ``RescalingIntQuant`` (tensor_quant), ``fused`` and the usual quantizers     needs brevitas
``fastq.compat.lsq_net``     ``LsqQuan``, as in the lsq-net repository                                    needs torch alone
===========================  ==========================================================================  ===================

No other library is imported before its submodule is. Each keeps the other library's state dict keys, so that checkpoints load both
ways, and refuses by message what the kernels cannot compute as that library does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import brevitas as brevitas
    from . import lsq_net as lsq_net
    from . import torch_ao as torch_ao
    from . import torchao as torchao

__all__ = ["brevitas", "lsq_net", "torch_ao", "torchao"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
