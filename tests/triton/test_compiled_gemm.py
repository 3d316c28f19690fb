"""What Triton makes of the integer products for Ampere and Hopper, without such a GPU."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from products import compiled

#: Bytes of shared memory that a program may have: sm_80 has 163 KB, but its configurations also serve sm_86 and sm_120, with 99.
SHARED = {80: 99 * 1024, 90: 227 * 1024}


@pytest.fixture(
    scope="module",
    params=[(80, "some"), (90, "some"), *(pytest.param((gpu, "all"), marks=pytest.mark.cuda_compile) for gpu in (80, 90))],
    ids=["80", "90", "80-all", "90-all"],
)
def built(request: pytest.FixtureRequest) -> tuple[int, dict[str, dict]]:
    return request.param[0], compiled("compiled_gemm.py", *request.param)


def products(report: dict[str, dict]) -> dict[str, dict]:
    return {name: facts for name, facts in report.items() if name.startswith("w")}


def test_products_are_of_the_int8_tensor_cores(built: tuple[int, dict[str, dict]]) -> None:
    gpu, report = built
    assert ({"w8a8 any bare 0", "w4a8 any bare 0"} if gpu == 90 else {"w4a8 any bare 0"}) <= set(products(report))
    start, end = {80: ("mma.sync.aligned.m16n8k32", ".s32.s8.s8.s32"), 90: ("wgmma.mma_async.sync.aligned.m64n", "k32.s32.s8.s8")}[
        gpu
    ]
    for name, facts in products(report).items():
        assert facts["matrix"], name
        assert all(each.startswith(start) and each.endswith(end) for each in facts["matrix"]), (name, facts["matrix"])


def test_blocks_are_copied_ahead_of_their_use(built: tuple[int, dict[str, dict]]) -> None:
    gpu, report = built
    want = ["cp.async"] if gpu == 80 else ["cp.async.bulk.tensor"]
    assert {name: facts["copies"] for name, facts in products(report).items() if facts["copies"] != want} == {}


def test_hopper_takes_packed_weights_from_registers(built: tuple[int, dict[str, dict]]) -> None:
    gpu, report = built
    from_registers = {name for name, facts in products(report).items() if facts["left in registers"]}
    # eight bits are masked there where groups share a piece, and uint8 inputs are made int8
    packed = {name for name in products(report) if not name.startswith("w8") or name.endswith((" 3", " uint8"))}
    assert from_registers == (packed if gpu == 90 else set())


def test_nothing_spills_and_shared_memory_suffices(built: tuple[int, dict[str, dict]]) -> None:
    gpu, report = built
    assert {name: facts for name, facts in report.items() if facts["STACK"] or facts["LOCAL"] or facts["local instructions"]} == {}
    assert {name: facts["shared"] for name, facts in report.items() if facts["shared"] > SHARED[gpu]} == {}


def test_the_epilogue_is_not_contracted_and_divides_truly(built: tuple[int, dict[str, dict]]) -> None:
    _, report = built
    assert {name: facts["contracted"] for name, facts in report.items() if facts["contracted"]} == {}
    assert {name for name, facts in report.items() if facts["divisions"]} == {name for name in report if " full " in name}
    assert {division for facts in report.values() for division in facts["divisions"]} == {"div.rn.f32"}


def test_unpacking_costs_a_mask_and_a_shift_for_four_fields(built: tuple[int, dict[str, dict]]) -> None:
    """Of 64 bytes a thread: 16 words, each masked once for each field, all but one field shifted. By bytes it is thrice that."""
    _, report = built
    for bits, words in ((4, 32), (2, 64)):
        if f"unpack {bits}" in report:
            ours, by_bytes = report[f"unpack {bits}"]["instructions"], report[f"unpack {bits} by bytes"]["instructions"]
            assert words <= ours["LOP3"] <= words + 4 and ours.get("PRMT", 0) == 0
            assert 3 * sum(ours.values()) <= sum(by_bytes.values())
