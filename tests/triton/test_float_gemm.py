"""Products of floating point inputs and packed weights in Triton: interpreted, beside the exact ones; and what they compile to."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from products import compiled, interpreted

#: Shared memory that a block can have, in bytes. sm_80 has 163 KB, but its configurations also serve sm_86 and sm_120, with 99.
SHARED = {80: 101376, 90: 232448}


def test_products_are_within_a_few_units_of_the_exact_ones() -> None:
    lines = interpreted("float")
    assert len([line for line in lines if line.startswith("float ")]) >= 15
    assert {line.split()[5] for line in lines if " w" in line} == {"w2", "w3", "w4", "w8"}
    # relative to the sum of |x * w|: a float32 sum of 200 terms, in any order, hardly leaves this
    assert float(next(line for line in lines if line.startswith("worst ")).split()[1]) < 1e-6


@pytest.fixture(
    scope="module",
    params=[(80, "few"), (90, "few"), *(pytest.param((gpu, "all"), marks=pytest.mark.cuda_compile) for gpu in (80, 90))],
    ids=["80-few", "90-few", "80", "90"],
)
def report(request: pytest.FixtureRequest) -> tuple[int, dict[str, dict[str, Any]]]:
    gpu, which = request.param
    return gpu, compiled("compiled_products.py", gpu, "float", which)


def test_half_precision_compiles_to_matrix_products_with_float32_sums(report: tuple[int, dict[str, dict[str, Any]]]) -> None:
    architecture, kernels = report
    halves = {name: facts for name, facts in kernels.items() if " bf16 " in name or " fp16 " in name}
    assert len(halves) >= 3
    for name, facts in halves.items():
        product = "m64n\\d+k16.f32" if architecture == 90 else "m16n8k16.row.col.f32"
        assert facts["products"], name
        for found in facts["products"]:
            storage = "bf16" if " bf16 " in name else "f16"
            assert re.search(product, found) and found.split(".f32")[1].startswith(f".{storage}.{storage}"), name
        assert "ragged" in name or max(facts["asynchronous bytes"]) == 16, name


def test_float32_is_not_rounded_to_tf32(report: tuple[int, dict[str, dict[str, Any]]]) -> None:
    products = [facts["products"] for name, facts in report[1].items() if " fp32 " in name]
    assert products and not any(products)


def test_nothing_spills_and_shared_memory_suffices(report: tuple[int, dict[str, dict[str, Any]]]) -> None:
    architecture, kernels = report
    assert {k: f for k, f in kernels.items() if f["STACK"] or f["LOCAL"] or f["local instructions"]} == {}
    assert {k: f["shared"] for k, f in kernels.items() if f["shared"] > SHARED[architecture]} == {}


def test_fields_become_numbers_without_conversions(report: tuple[int, dict[str, dict[str, Any]]]) -> None:
    """64 x 64 bytes of two fields among 128 threads: 64 each. A conversion is one of 16 instructions a clock, of 128."""
    facts = report[1]["float w4 bf16 rows 16 groups 0"]
    assert facts["conversions"] == 0
