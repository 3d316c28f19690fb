"""Every quantizer in plain PyTorch, one file per method. Tests and benchmarks compare everything else with these."""

from .lsq import lsq, lsq_surrogate

__all__ = ["lsq", "lsq_surrogate"]
