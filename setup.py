"""Builds fastq: the Python package, the native libraries with ninja, and a record of what was built.

What is built follows what is there:

* ``fastq/lib/libfastq.so``: the CPU kernels, one object per instruction set. Needs a C++20 compiler and torch's headers.
* ``fastq/lib/libfastq_cuda.so``: the CUDA kernels. Needs nvcc and a CUDA build of torch.
* ``fastq/_runtime``: the pybind11 module of ``fastq.runtime``. Needs a C++20 compiler; where there is no torch it is all that is
  built.

Both libraries use torch's stable C++ ABI (2.10), so they load in any later torch. Environment variables:

==========================  ====================================================================================
``FASTQ_BUILD_NATIVE=0``    build nothing native: Triton and the reference remain
``FASTQ_BUILD_CUDA``        ``1`` the CUDA library is a must; ``0`` leave it out; unset: if nvcc and a CUDA torch are there
``FASTQ_CUDA_PYTHON``       a Python whose CUDA torch the CUDA library is linked against; unset: this one
``TORCH_CUDA_ARCH_LIST``    such as ``8.0;9.0a+PTX``; unset: ``8.0;8.6;8.9;9.0a+PTX``
``CUDA_HOME, CXX``          where nvcc is, and which C++ compiler to use
``FASTQ_CPU_LEVELS``        such as ``v3``: fewer x86-64 levels in a build for development; unset: ``v2 v3 v4``
                            (another processor has one, ``generic``)
``MAX_JOBS``                how many compilers at once
==========================  ====================================================================================
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
X86 = platform.machine().lower() in ("x86_64", "amd64")
ISAS = tuple(os.environ.get("FASTQ_CPU_LEVELS", "v2 v3 v4").split()) if X86 else ("generic",)

# One list of flags for every build, and for the tests that look at what it makes. The formulas give the same bits
# everywhere because nothing here lets a compiler contract, reorder or approximate.
EXACT = ["-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
CXX_FLAGS = ["-std=c++20", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
TORCH_FLAGS = ["-O2", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
KERNEL_FLAGS = ["-O3", *EXACT, "-Wno-psabi"]  # wide vectors are passed inside inline functions alone
NVCC_FLAGS = ["-std=c++20", "-O3", "-fmad=false", "-ftz=false", "-prec-div=true", "-prec-sqrt=true",
              "-Xcompiler", "-fPIC,-fvisibility=hidden", "-Xptxas", "-warn-spills"]  # fmt: skip
DEFAULT_ARCHITECTURES = "8.0;8.6;8.9;9.0a+PTX"
#: What the integer products have beyond x86-64-v4.
BEYOND_V4 = {"vnni": ["-mavx512vnni"], "amx": ["-mavx512vnni", "-mamx-tile", "-mamx-int8", "-mamx-bf16"]}


def machine(isa: str) -> list[str]:
    """The compiler's flags for an instruction set."""
    if isa == "generic":  # any processor's; on x86-64, for the tests alone
        return ["-DFASTQ_PORTABLE", "-DFASTQ_ISA=generic"]
    level = "v4" if isa in BEYOND_V4 else isa
    return [f"-march=x86-64-{level}", *BEYOND_V4.get(isa, []), f"-DFASTQ_ISA={isa}"]


class BuildError(SystemExit):
    """Ends the build with a message that says what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(f"\nfastq: {message}\n")


@dataclass(frozen=True)
class Torch:
    """An installed torch: found without importing it, which would take seconds and may start a GPU."""

    folder: Path
    version: str
    cuda: str | None

    @staticmethod
    def of(python: str) -> Torch | None:
        # pip's isolated builds hide the environment behind PYTHONPATH; -I sees it.
        script = "import importlib.util as u; s = u.find_spec('torch'); print(s.origin if s else '')"
        found = subprocess.run([python, "-I", "-c", script], capture_output=True, text=True).stdout.strip()
        if not found:
            return None
        values: dict[str, object] = {}
        exec((Path(found).parent / "version.py").read_text(), values)
        return Torch(Path(found).parent, str(values["__version__"]), values.get("cuda"))  # type: ignore[arg-type]

    def require(self) -> None:
        major, minor = (int(part) for part in self.version.split(".")[:2])
        if (major, minor) < (2, 10):
            raise BuildError(f"torch {self.version} is too old: the native code is built on the stable ABI of torch 2.10")


def nvcc_path() -> str | None:
    home = os.environ.get("CUDA_HOME")
    return (shutil.which("nvcc", path=f"{home}/bin") if home else None) or shutil.which("nvcc")


def architectures(text: str) -> list[str]:
    """``"8.0;9.0a+PTX"`` as nvcc's ``-gencode`` flags."""
    flags = []
    for name in text.replace(" ", ";").split(";"):
        if not name:
            continue
        number, ptx = name.removesuffix("+PTX").replace(".", ""), name.endswith("+PTX")
        if not number.rstrip("af").isdigit():
            raise BuildError(f"TORCH_CUDA_ARCH_LIST: {name!r} is not an architecture such as 8.0, 9.0a or 9.0+PTX")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if ptx:  # plain PTX runs on later GPUs; that of 90a would not
            plain = number.rstrip("af")
            flags.append(f"-gencode=arch=compute_{plain},code=compute_{plain}")
    return flags


@dataclass
class Ninja:
    """The lines of a build.ninja: rules once, then one edge per file."""

    folder: Path
    lines: list[str] = field(default_factory=list)

    def rule(self, name: str, command: str, depfile: bool = True) -> None:
        self.lines += [f"rule {name}", f"  command = {command}", f"  description = {name} $out"]
        if depfile:
            self.lines += ["  depfile = $out.d", "  deps = gcc"]

    def edge(self, out: str, rule: str, inputs: list[str], **variables: str) -> str:
        self.lines.append(f"build {self.escape(out)}: {rule} {' '.join(self.escape(i) for i in inputs)}")
        self.lines += [f"  {key} = {value}" for key, value in variables.items()]
        return out

    @staticmethod
    def escape(path: str) -> str:
        return path.replace("$", "$$").replace(" ", "$ ").replace(":", "$:")

    def run(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "build.ninja").write_text("\n".join(self.lines) + "\n")
        program = shutil.which("ninja") or [sys.executable, "-m", "ninja"]
        command = [program] if isinstance(program, str) else program
        jobs = os.environ.get("MAX_JOBS")
        if subprocess.run([*command, "-C", str(self.folder), *(["-j", jobs] if jobs else [])]).returncode != 0:
            raise BuildError("the native build failed; the compiler's message is above. FASTQ_BUILD_NATIVE=0 installs "
                             "a package without it, on Triton and the reference.")  # fmt: skip


def plan() -> tuple[Ninja, list[tuple[str, str]], dict[str, object]]:
    """The build, its products as (file in the build folder, place in the package), and its record."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise BuildError("no C++ compiler found (g++ or clang++, C++20). Install one (Debian: apt install g++), or set "
                         "FASTQ_BUILD_NATIVE=0 to install a package that runs on Triton and the reference.")  # fmt: skip
    torch = Torch.of(sys.executable)
    if torch is not None:
        torch.require()
    import pybind11

    tag = f"{sysconfig.get_config_var('SOABI')}-torch{torch.version if torch else 'less'}"
    ninja = Ninja(ROOT / "build" / "native" / tag.replace("+", "-"))
    here = f"-fmacro-prefix-map={ninja.escape(str(ROOT))}/="  # a message names csrc/..., not where it was built
    ninja.rule("cxx", f"{compiler} {' '.join(CXX_FLAGS)} {here} $flags -MD -MF $out.d -c $in -o $out")
    ninja.rule("link", f"{compiler} -shared $in -o $out $flags", depfile=False)

    def compile(out: str, source: str, flags: list[str], **more: str) -> str:
        return ninja.edge(out, "cxx", [str(ROOT / "csrc" / source)], flags=" ".join(flags), **more)

    common = ("dispatch", "product")
    flags = [*KERNEL_FLAGS, "-Wno-maybe-uninitialized"]
    levels = (*ISAS, *(BEYOND_V4 if "v4" in ISAS else ()))
    engine = [compile(f"gemm_{isa}.o", "cpu/gemm.cpp", [*flags, *machine(isa)]) for isa in levels]
    engine += [compile(f"{name}.o", f"cpu/{name}.cpp", ["-O2"]) for name in common]

    runtime = "_runtime" + str(sysconfig.get_config_var("EXT_SUFFIX"))
    python = [f"-isystem {sysconfig.get_paths()['include']}", f"-isystem {pybind11.get_include()}", "-O2"]
    steps = [compile(f"{name}.o", f"python/{name}.cpp", ["-O3", *EXACT]) for name in ("network", "threads")]
    module = compile("module.o", "python/module.cpp", python)
    ninja.edge(runtime, "link", [module, *steps, *engine], flags="-s -pthread")
    made = [(runtime, runtime)]

    record: dict[str, object] = {"torch": None, "torch_abi": None, "cpu": list(ISAS), "python": sys.version.split()[0]}
    record["compiler"] = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout.splitlines()[0]
    if torch is None:
        record["cuda"] = {"built": False, "reason": "torch is not installed"}
        return ninja, made, record

    loops = sorted(path.stem for path in (ROOT / "csrc" / "cpu").glob("*.cpp") if path.stem not in (*common, "gemm"))
    kernels = [compile(f"{name}_{isa}.o", f"cpu/{name}.cpp", [*flags, *machine(isa)]) for name in loops for isa in ISAS]
    include = f"-isystem {ninja.escape(str(torch.folder / 'include'))}"
    names = ("direct", "elementwise", "gemm", "cpu", "register_cpu")
    bridge = [compile(f"{name}.o", f"torch/{name}.cpp", [*TORCH_FLAGS, include]) for name in names]
    lib = f"-L{ninja.escape(str(torch.folder / 'lib'))}"
    ninja.edge("libfastq.so", "link", [*bridge, *engine, *kernels], flags=f"{lib} -ltorch -ltorch_cpu -lc10")
    made.append(("libfastq.so", "lib/libfastq.so"))
    record |= {"torch": torch.version, "torch_abi": "2.10", "cuda": plan_cuda(ninja, torch, include)}
    if record["cuda"].get("built"):  # type: ignore[attr-defined]
        made.append(("libfastq_cuda.so", "lib/libfastq_cuda.so"))
    return ninja, made, record


def plan_cuda(ninja: Ninja, torch: Torch, include: str) -> dict[str, object]:
    """Add the CUDA library to the build if it can be; what was decided and why."""
    wanted = os.environ.get("FASTQ_BUILD_CUDA")
    if wanted == "0":
        return {"built": False, "reason": "FASTQ_BUILD_CUDA=0"}
    linked = torch
    if python := os.environ.get("FASTQ_CUDA_PYTHON"):
        other = Torch.of(python)
        if other is None:
            raise BuildError(f"FASTQ_CUDA_PYTHON={python} has no torch")
        linked = other
    nvcc, reason = nvcc_path(), None
    if nvcc is None:
        reason = "no nvcc on PATH or under CUDA_HOME"
    elif linked.cuda is None:
        reason = f"torch {linked.version} is built without CUDA"
    elif not any((ROOT / "csrc" / "cuda").glob("*.cu")):
        reason = "csrc/cuda holds no kernels"
    if reason or nvcc is None:
        if wanted == "1":
            raise BuildError(f"FASTQ_BUILD_CUDA=1, but {reason}")
        return {"built": False, "reason": reason}
    names = os.environ.get("TORCH_CUDA_ARCH_LIST") or DEFAULT_ARCHITECTURES
    toolkit = ninja.escape(str(Path(nvcc).resolve().parents[1]))
    ninja.rule("nvcc", f"{ninja.escape(nvcc)} {' '.join(NVCC_FLAGS)} $flags -MD -MF $out.d -c $in -o $out")
    ninja.rule("nvlink", f"{ninja.escape(nvcc)} -shared -cudart static $in -o $out $flags", depfile=False)
    objects = [
        ninja.edge(f"{source.stem}.cu.o", "nvcc", [str(source)], flags=" ".join(architectures(names)))
        for source in sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
    ]
    flags = " ".join([*TORCH_FLAGS, "-DUSE_CUDA", include, f"-isystem {toolkit}/include"])
    for name in ("decode", "direct", "elementwise", "gemm", "cuda", "register_cuda"):
        objects.append(ninja.edge(f"{name}.cuda.o", "cxx", [str(ROOT / "csrc" / "torch" / f"{name}.cpp")], flags=flags))
    lib = f"-L{ninja.escape(str(linked.folder / 'lib'))}"
    ninja.edge("libfastq_cuda.so", "nvlink", objects, flags=f"{lib} -ltorch -ltorch_cpu -ltorch_cuda -lc10")
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout.split("release ")[-1].split(",")[0]
    return {"built": True, "nvcc": version, "torch": linked.version, "architectures": names}


class BuildNative(build_ext):
    """``build_ext`` by ninja: into the wheel's folder, or beside the sources for an editable install."""

    def run(self) -> None:
        ninja, products, record = plan()
        ninja.run()
        inplace = self.inplace or getattr(self, "editable_mode", False)
        package = (ROOT if inplace else Path(self.build_lib)) / "fastq"
        (package / "lib").mkdir(parents=True, exist_ok=True)
        for stale in {*(package / "lib").iterdir()} - {package / place for _, place in products}:
            stale.unlink()
        for built, place in products:
            new = package / f"{place}.new"
            shutil.copy2(ninja.folder / built, new)
            new.replace(package / place)  # a process that has the old file open keeps it
        (package / "lib" / "build.json").write_text(json.dumps(record, indent=2) + "\n")
        cuda = record["cuda"]
        if record["torch"] is None:
            print("fastq: torch is not installed: built fastq.runtime alone. Install torch >= 2.10 first for all of fastq")
            return
        print(
            f"fastq: built libfastq.so ({platform.machine()}: {', '.join(ISAS)}) against torch {record['torch']}, stable ABI 2.10"
        )
        if cuda["built"]:  # type: ignore[index]
            print(f"fastq: built libfastq_cuda.so for {cuda['architectures']} with nvcc {cuda['nvcc']}")  # type: ignore[index]
        else:
            print(f"fastq: no CUDA library: {cuda['reason']}")  # type: ignore[index]

    def get_outputs(self) -> list[str]:
        return []

    def get_output_mapping(self) -> dict[str, str]:
        return {}


if __name__ == "__main__":
    if os.environ.get("FASTQ_BUILD_NATIVE") == "0":
        print("fastq: FASTQ_BUILD_NATIVE=0, nothing native is built")
        if "editable_wheel" in sys.argv:  # the sources are the installation: what an earlier build left would still load
            shutil.rmtree(ROOT / "fastq" / "lib", ignore_errors=True)
        setup()
    else:
        setup(ext_modules=[Extension("fastq._runtime", ["csrc/python/module.cpp"])], cmdclass={"build_ext": BuildNative})
