"""What Triton makes of every kernel for Ampere and Hopper, without such a GPU: exact arithmetic, wide loads, no spills.

``FASTQ_TEST_QUICK=1`` compiles for fp32 tensors alone.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import triton

sys.path.insert(0, str(Path(__file__).parent))
from compiled import local_instructions, sass
from products import compiled

#: Writes an element of an array in local memory and reads another.
LOCAL_MEMORY = """
.version 8.0
.target sm_{gpu}
.address_size 64
.visible .entry kernel(.param .u64 argument)
{{
    .local .align 4 .b8 array[256];
    .reg .b64 %at, %first, %second;
    .reg .b32 %i, %j, %value;
    ld.param.u64 %at, [argument];
    ld.global.v2.u32 {{%i, %j}}, [%at];
    mov.u64 %first, array;
    mad.wide.u32 %second, %j, 4, %first;
    mad.wide.u32 %first, %i, 4, %first;
    ld.local.u32 %value, [%second];
    st.local.u32 [%first], %i;
    ld.local.u32 %i, [%second];
    add.u32 %value, %value, %i;
    st.global.u32 [%at], %value;
    ret;
}}
"""


@pytest.fixture(
    scope="module",
    params=[(80, "skeleton"), (90, "skeleton"), *(pytest.param((gpu, "all"), marks=pytest.mark.cuda_compile) for gpu in (80, 90))],
    ids=["80-skeleton", "90-skeleton", "80", "90"],
)
def report(request: pytest.FixtureRequest) -> dict[str, dict]:
    storages = ["fp32"] if os.environ.get("FASTQ_TEST_QUICK") == "1" else []
    return compiled("compiled.py", *request.param, *storages)


def test_every_method_dtype_and_tile_is_compiled(report: dict[str, dict], request: pytest.FixtureRequest) -> None:
    what = request.node.callspec.params["report"][1]
    assert len(report) >= 40
    assert {name.split()[1] for name in report} == {"fp32", "bf16", "fp16", "fp64"}
    if what == "all":
        assert {"lsq", "direct", "sat", "pact", "dsq", "tempered", "oscillation"} <= {name.split()[0] for name in report}


def test_division_is_rounded_to_nearest(report: dict[str, dict]) -> None:
    # The affine operators divide once a parameter, in `prepare`; every other kernel once an element.
    wrong = {name: facts["divisions"] for name, facts in report.items() if set(facts["divisions"]) - {"div.rn.f32", "div.rn.f64"}}
    assert wrong == {}
    # Levels are looked up, and noise without a range is added; SAT's largest element is divided by later.
    others = ("direct ", "noise_quant ")
    divides = [n for n in report if "finish" not in n and not n.startswith(others) and not n.endswith(" largest_kernel")]
    assert divides and all(report[name]["divisions"] for name in divides)


def test_nothing_is_contracted_or_flushed(report: dict[str, dict]) -> None:
    assert {name: facts["contracted"] for name, facts in report.items() if facts["contracted"]} == {}
    assert {name: facts["flushed"] for name, facts in report.items() if facts["flushed"]} == {}


def test_nan_is_not_lost(report: dict[str, dict]) -> None:
    """PTX's min and max give the other number where one is NaN; the interpreter's give NaN, and would not show it."""
    # SAT's kernels put 0 for NaN before they look for the largest, and add NaN again.
    lost = {name: facts["lose NaN"] for name, facts in report.items() if "largest_kernel" not in name and facts["lose NaN"]}
    assert lost == {}


@pytest.mark.parametrize("gpu", [80, 90])
def test_local_memory_is_seen(gpu: int, tmp_path: Path) -> None:
    source, cubin = tmp_path / "kernel.ptx", tmp_path / "kernel.cubin"
    source.write_text(LOCAL_MEMORY.format(gpu=gpu))
    ptxas = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    subprocess.run([ptxas, f"-arch=sm_{gpu}", source, "-o", cubin], check=True)
    found = local_instructions(cubin.read_bytes())
    assert found == len(re.findall(r"\b(?:STL|LDL)\b", sass(cubin.read_bytes()))) >= 2


def test_nothing_spills(report: dict[str, dict]) -> None:
    assert {name: facts for name, facts in report.items() if facts["STACK"] or facts["LOCAL"] or facts["local instructions"]} == {}
    # Two blocks of 256 threads share the 64 K registers of an SM, so that one computes while the other's loads are on their way.
    assert max(facts["REG"] for name, facts in report.items() if "fp64" not in name) <= 128


def test_loads_are_16_bytes(report: dict[str, dict]) -> None:
    kinds = ("tensor", "group", "columns")
    passes = ("update_kernel", " largest_kernel", "codes_kernel", " scale_kernel")
    wide = {name: facts for name, facts in report.items() if name.split()[2] in kinds or name.endswith(passes)}
    assert len(wide) >= 30 and {name for name, facts in wide.items() if facts["vector load bits"] < 128} == set()


def test_offsets_are_computed_in_64_bits(report: dict[str, dict]) -> None:
    # the kernels of direct quantization and of SAT have tiles of a power of two, and shift
    wide = "64-bit shifts", "64-bit products"
    assert {name for name, facts in report.items() if facts[wide[not name.startswith(("direct ", "sat "))]] == 0} == set()
