"""Where the tests run: on the CPU kernels, or where ``make gpu-test`` says (FASTQ_TEST_DEVICE, FASTQ_BACKEND)."""

import os
from collections.abc import Iterator

import pytest
import torch
from device import DEVICE

if DEVICE != "cpu":  # here and not in a fixture: test files make tensors as they are imported
    torch.set_default_device(DEVICE)
    # fp32 products are compared with exact ones; TF32 keeps 10 bits of a factor.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False

if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    # Processes that test side by side share the cores; what is about threads says how many itself.
    torch.set_num_threads(max(torch.get_num_threads() // int(workers), 1))

#: Folders of files with few tests that take long each: first, so that no worker ends with one.
LONG = ("triton", "cuda", "contributing")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(name) if (name := item.path.parent.name) in LONG else len(LONG))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For small tensors: on a busy machine two threads wait for each other longer than one works."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
