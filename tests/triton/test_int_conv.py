"""Convolutions and quantization of the engine in Triton: the reference's bits when interpreted, and what they compile to."""

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from products import compiled, interpreted

#: Shared memory that a block can have, in bytes. sm_80 has 163 KB, but its configurations also serve sm_86 and sm_120, with 99.
SHARED = {80: 101376, 90: 232448}


def test_convolutions_have_the_bits_of_the_reference() -> None:
    lines = interpreted("conv")
    assert len(lines) == 18
    assert {line.split()[-1] for line in lines} == {"w2", "w3", "w4", "w8"}


def test_codes_of_activations_have_the_bits_of_the_reference() -> None:
    lines = interpreted("quantize")
    assert len([line for line in lines if line.startswith("quantize ")]) == 12
    assert len([line for line in lines if line.startswith("per token ")]) == 36


@pytest.fixture(
    scope="module",
    params=[(80, "few"), (90, "few"), *(pytest.param((gpu, "all"), marks=pytest.mark.cuda_compile) for gpu in (80, 90))],
    ids=["80-few", "90-few", "80", "90"],
)
def report(request: pytest.FixtureRequest) -> tuple[int, dict[str, dict[str, Any]]]:
    gpu, which = request.param
    return gpu, compiled("compiled_products.py", gpu, "conv", which)


def test_convolutions_compile_to_int8_matrix_products(report: tuple[int, dict[str, dict[str, Any]]]) -> None:
    architecture, kernels = report
    name = "wgmma.mma_async.sync.aligned.m64" if architecture == 90 else "mma.sync.aligned.m16n8k32"
    convolutions = {kernel: facts for kernel, facts in kernels.items() if kernel.startswith("conv ")}
    assert len(convolutions) >= 3
    for kernel, facts in convolutions.items():
        assert facts["products"] and all(p.startswith(name) and ".s32.s8.s8" in p for p in facts["products"]), kernel
        # 16 bytes at a time from memory to where the product reads them; 3 channels lie at odd addresses
        assert max(facts["asynchronous bytes"], default=0) == 16 or kernel == "conv w8 3 channels", kernel


def test_nothing_spills_and_shared_memory_suffices(report: tuple[int, dict[str, dict[str, Any]]]) -> None:
    architecture, kernels = report
    assert {k: f for k, f in kernels.items() if f["STACK"] or f["LOCAL"] or f["local instructions"]} == {}
    assert {k: f["shared"] for k, f in kernels.items() if f["shared"] > SHARED[architecture]} == {}


def test_arithmetic_is_the_references(report: tuple[int, dict[str, dict[str, Any]]]) -> None:
    kernels = report[1]
    assert {k: f["contracted"] for k, f in kernels.items() if f["contracted"]} == {}
    assert {division for facts in kernels.values() for division in facts["divisions"]} == {"div.rn.f32"}
