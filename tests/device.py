"""The device and the backend under test."""

import os

import torch

DEVICE = os.environ.get("FASTQ_TEST_DEVICE", "cpu")
BACKEND = os.environ.get("FASTQ_BACKEND") or {"cpu": "cpu", "cuda": "cuda"}[DEVICE]
#: Of the integer engine; None: the table's choice. On a GPU CUDA has the products of few rows and Triton the others.
ENGINE = os.environ.get("FASTQ_BACKEND") or {"cpu": "cpu", "cuda": None}[DEVICE]


def drawn(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """Normal numbers on the device under test, the same ones on every device."""
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed), device="cpu").to(DEVICE)
