"""Where the tests run: on the CPU kernels, or where ``make gpu-test`` says (FASTQ_TEST_DEVICE, FASTQ_BACKEND)."""

import pytest
import torch
from device import DEVICE


@pytest.fixture(autouse=True, scope="session")
def default_device() -> None:
    """Tensors that a test makes are on the device under test; random ones with a generator are drawn on the CPU."""
    if DEVICE != "cpu":
        torch.set_default_device(DEVICE)
