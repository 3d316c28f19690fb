"""What is computed on a GPU in plain PyTorch has the bits of the kernels: no tensor is divided by a number of Python, for which
torch multiplies by the reciprocal there, rounded twice. Powers of two lose nothing by that."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

import fastq
from fastq import nn


class Divisors(TorchFunctionMode):
    """The numbers by which tensors are divided."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[float] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        names = ("div", "div_", "true_divide", "__truediv__", "__itruediv__")
        if getattr(func, "__name__", "") in names and isinstance(args[1], (int, float)) and math.frexp(args[1])[0] != 0.5:
            self.found.append(args[1])
        return func(*args, **(kwargs or {}))


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).requires_grad_()


def quantizer(made: torch.nn.Module) -> Callable[[], Any]:
    """What follows the first batch, whose estimates need no bits."""

    def run() -> Any:
        made(drawn(8, 16)).sum().backward()
        return made.grid()

    made(drawn(8, 16))
    return run


CASES: dict[str, Callable[[], Callable[[], Any]]] = {
    "per token": lambda: lambda: fastq.quantize_per_token(drawn(4, 16).detach()),
    "PACT": lambda: quantizer(nn.PACT(4)),
    "EWGS": lambda: quantizer(nn.EWGS(4, weight=True)),
    "QIL": lambda: quantizer(nn.QIL(4, weight=True)),
    "SATWeight": lambda: lambda: nn.SATWeight(4).codes(drawn(8, 16)),
}


def test_what_is_looked_for_is_seen() -> None:
    with Divisors() as divisors:
        _ = drawn(3) / 15, drawn(3) / 4, drawn(3).div(7.0), 1 / drawn(3), drawn(3) / torch.full((), 15.0)
    assert divisors.found == [15, 7.0]


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_divided_by_a_number(name: str) -> None:
    with fastq.use_backend("reference"):
        watched = CASES[name]()
        with Divisors() as divisors:
            watched()
    assert divisors.found == []
