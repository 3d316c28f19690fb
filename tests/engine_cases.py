"""Products of the integer engine that its tests go through on every backend, and what they should come to, by int64 arithmetic."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from device import DEVICE

import fastq

#: Rows at and beside the sizes of tiles.
ROWS = (1, 15, 16, 17, 33, 65)
EXTREMES = {torch.int8: (-128, 127), torch.uint8: (0, 255)}


def drawn_codes(shape: tuple[int, ...], bits: int, dtype: torch.dtype, seed: int = 0, extreme: bool = False) -> torch.Tensor:
    """Codes of ``bits`` bits on the device under test, the same ones on every device; ``extreme``: the lowest and highest alone."""
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if dtype == torch.int8 else (0, 2**bits - 1)
    generator = torch.Generator("cpu").manual_seed(seed)
    if extreme:
        drawn = torch.randint(0, 2, shape, generator=generator, device="cpu") * (high - low) + low
    else:
        drawn = torch.randint(low, high + 1, shape, generator=generator, device="cpu")
    return drawn.to(DEVICE, dtype)


@dataclass(frozen=True)
class Product:
    """A linear product of codes; its weight, its input and its exact accumulators."""

    m: int
    n: int
    k: int
    bits: int = 8
    weight_dtype: torch.dtype = torch.int8
    x_dtype: torch.dtype = torch.int8
    zeros: bool = False
    granularity: str = "channel"
    group_size: int | None = None
    x_zero_point: int = 0
    extreme: bool = False

    def scales(self) -> tuple[int, ...]:
        """The shape of the weight's scale."""
        return {"tensor": (1,), "channel": (self.n,), "group": (self.n, -(-self.k // (self.group_size or 1)))}[self.granularity]

    def weight(self) -> tuple[fastq.PackedWeight, torch.Tensor]:
        """Packed, and ``code - zero_point`` as int64 ``(N, K)``."""
        codes = drawn_codes((self.n, self.k), self.bits, self.weight_dtype, 1, self.extreme)
        scale = torch.rand(self.scales(), generator=torch.Generator("cpu").manual_seed(2), device="cpu").add(0.01).to(DEVICE)
        zero = drawn_codes(self.scales(), self.bits, self.weight_dtype, 3, self.extreme) if self.zeros else None
        packed = fastq.pack(codes, self.bits, scale=scale, zero_point=zero, group_size=self.group_size)
        exact = codes.long()
        if zero is not None:
            each = zero.long()
            exact -= each.repeat_interleave(self.group_size, 1)[:, : self.k] if self.group_size else each.view(-1, 1)
        return packed, exact

    def x(self) -> torch.Tensor:
        return drawn_codes((self.m, self.k), 8, self.x_dtype, 4, self.extreme)

    def accumulators(self) -> torch.Tensor:
        """``(M, N)`` int64."""
        left, right = self.x().long() - self.x_zero_point, self.weight()[1]
        return (left.double() @ right.double().t()).long()  # exact below 2**53, and int64 has no product on GPUs


def products(bits: tuple[int, ...] = (2, 3, 4, 8), rows: tuple[int, ...] = ROWS) -> Iterator[Product]:
    """Every width at every number of rows, on ragged N and K; zero-points, codes and extremes take turns."""
    for i, m in enumerate(rows):
        for j, width in enumerate(bits):
            turn = i + j
            common: dict[str, Any] = {
                "bits": width,
                "weight_dtype": (torch.int8, torch.uint8)[turn % 2],
                "x_dtype": (torch.int8, torch.uint8)[(turn // 2) % 2],
                "zeros": turn % 3 == 1,
                "granularity": ("channel", "tensor")[turn % 5 == 4],
                "extreme": turn % 4 == 3,
            }
            n, k = (37, 65, 7, 130)[turn % 4], (45, 129, 200, 31, 257)[turn % 5]
            yield Product(m, n, k, **common, x_zero_point=(0, 3, 127, 0, 5)[turn % 5])
