"""The integer engine: what its kernels are given (``call``), and which of them serves a product (``table``)."""

from .call import Epilogue, Operand, Problem, Window

__all__ = ["Epilogue", "Operand", "Problem", "Window"]
