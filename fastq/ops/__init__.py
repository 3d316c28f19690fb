"""The quantizer ops, one file per method: public function, autograd Function, operator schemas."""

from .lsq import lsq

__all__ = ["lsq"]
