"""The build's decisions: what it finds, what it refuses and how it says so. The build itself is what made the tests run."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from sources import module_of

import fastq

pytestmark = pytest.mark.source


@pytest.fixture
def setup() -> ModuleType:
    return module_of("setup.py")


def test_torch_is_found_without_importing_it(setup: ModuleType) -> None:
    found = setup.Torch.of(sys.executable)
    assert found.version == torch.__version__
    assert found.folder == Path(torch.__file__).parent
    assert found.cuda == torch.version.cuda


def test_no_compiler_is_a_clear_message(setup: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(SystemExit, match=r"no C\+\+ compiler found.*FASTQ_BUILD_NATIVE=0"):
        setup.plan()


def test_an_old_torch_is_refused(setup: ModuleType) -> None:
    with pytest.raises(SystemExit, match=r"torch 2\.9\.1 is too old.*2\.10"):
        setup.Torch(Path("."), "2.9.1", None).require()
    setup.Torch(Path("."), "2.10.0", None).require()


def test_without_torch_the_runtime_alone_is_built(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup.Torch, "of", staticmethod(lambda python: None))
    ninja, made, record = setup.plan()
    assert [place.partition(".")[0] for _, place in made] == ["_runtime"]
    assert record["torch"] is None and record["cuda"] == {"built": False, "reason": "torch is not installed"}
    built = [line.split()[1].removesuffix(":") for line in ninja.lines if line.startswith("build ")]
    kernels = [f"gemm_{isa}.o" for isa in (*setup.ISAS, *(setup.BEYOND_V4 if "v4" in setup.ISAS else ()))]
    assert sorted(built) == sorted([*kernels, "dispatch.o", "product.o", "module.o", "network.o", "threads.o", made[0][0]])


def test_another_processor_gets_code_for_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    ninja, _, record = module_of("setup.py").plan()
    text = "\n".join(ninja.lines)
    assert record["cpu"] == ["generic"] and "gemm_generic.o" in text and "gemm_v2.o" not in text
    assert "-march" not in text and "-mavx" not in text and "-mamx" not in text


def test_architectures(setup: ModuleType) -> None:
    assert setup.architectures("8.0;9.0a+PTX") == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_90,code=compute_90",
    ]
    assert len(setup.architectures(setup.DEFAULT_ARCHITECTURES)) == 5
    with pytest.raises(SystemExit, match="'hopper' is not an architecture"):
        setup.architectures("8.0 hopper")


def test_cuda_is_left_out_with_a_reason_and_refused_when_it_is_a_must(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = setup.Torch(Path("."), "2.13.0+cpu", None)
    monkeypatch.delenv("FASTQ_CUDA_PYTHON", raising=False)
    monkeypatch.setenv("FASTQ_BUILD_CUDA", "0")
    assert setup.plan_cuda(setup.Ninja(Path(".")), cpu, "") == {"built": False, "reason": "FASTQ_BUILD_CUDA=0"}
    monkeypatch.delenv("FASTQ_BUILD_CUDA")
    assert setup.plan_cuda(setup.Ninja(Path(".")), cpu, "")["built"] is False
    monkeypatch.setenv("FASTQ_BUILD_CUDA", "1")
    with pytest.raises(SystemExit, match=r"FASTQ_BUILD_CUDA=1, but (torch .* is built without CUDA|no nvcc)"):
        setup.plan_cuda(setup.Ninja(Path(".")), cpu, "")


def test_no_flag_lets_a_compiler_change_a_formula(setup: ModuleType) -> None:
    flags = " ".join([*setup.CXX_FLAGS, *setup.KERNEL_FLAGS, *setup.NVCC_FLAGS])
    assert "-ffp-contract=off" in flags and "-fmad=false" in flags and "-prec-div=true" in flags and "-ftz=false" in flags
    assert "fast" not in flags and "-Ofast" not in flags


def test_the_build_left_its_record() -> None:
    record = json.loads((Path(fastq.__file__).parent / "lib" / "build.json").read_text())
    assert record["cpu"] == ["v2", "v3", "v4"]
    assert record["torch_abi"] == "2.10"
    assert record["cuda"]["built"] or record["cuda"]["reason"]
