"""Runs the checks of the quantizers that add noise on Triton's interpreter. A program of its own, as ``interpreted.py`` is."""

from __future__ import annotations

from typing import Any

import torch
from noise_cases import (
    SEED,
    drawn_noise,
    noise_quant,
    noise_quant_cases,
    noise_quant_reference,
    tempered,
    tempered_cases,
    tempered_reference,
)

import fastq
from fastq.reference.philox import NOISES, UNIT_VARIANCE, noise
from fastq.testing import check_quantizer, same_bits


def main() -> None:
    few: dict[str, Any] = {"threads": (1,), "large": 3000, "exact_sums": False, "layouts": ("transposed",)}
    with fastq.use_backend("triton"):
        # rows and columns that begin at multiples of four elements and that do not; every reading, noise and kind
        for name, fn, reference, cases, some in (
            ("tempered", tempered, tempered_reference, tempered_cases(), (1, 4, 9, 11)),
            ("noise_quant", noise_quant, noise_quant_reference, noise_quant_cases(), (1, 8, 10)),
        ):
            report = check_quantizer(fn, reference, [cases[i] for i in some], dtypes=(torch.float32,), **few, name=f"triton {name}")
            print(report)
            print(len(report.results), "results")
        x, step = torch.randn(70, 36), torch.full((36,), 0.3)  # columns that begin at multiples of four elements
        if not same_bits(noise_quant(x, step, axis=1), noise_quant_reference(x, step, axis=1)):
            raise SystemExit("columns of quads")
        for kind, number in NOISES.items():
            for shape in ((4096 + 8,), (33, 5), (3, 4, 130), (1,)):
                want = noise(torch.tensor(SEED), shape, number, UNIT_VARIANCE[number]).double()
                if not torch.equal(drawn_noise(shape, kind), want):
                    raise SystemExit(f"{kind} noise of shape {shape} is not Philox's")


if __name__ == "__main__":
    main()
