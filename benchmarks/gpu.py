"""``make gpu``: everything that needs a GPU, on a machine with one and no network, in parts that can be resumed.

    python -m benchmarks.gpu [environment|build|test|sanitize|bench|integer|training]...    (default: all, in this order)

A stage runs its parts one after another and writes ``results/gpu/STAGE.json`` after each. A part that has passed on these
sources is not run again, so after a time limit (``--limit``, 9.5 minutes) the same command continues; it exits
with 75 while something is left, with 1 if a part failed, with 0 when all is done. ``--dry`` runs every stage without a GPU:
CPU kernels in place of CUDA, Triton's interpreter, small sizes; its results go to ``build/gpu-dry`` and are checked for
their schema.

environment   GPU, driver, compilers, packages
build         the native libraries, for this GPU
test          each file of tests/ on each of the two backends, tensors on the GPU (FASTQ_BACKEND, FASTQ_TEST_DEVICE); integer
              products where CUDA comes first by whichever kernel the table chooses
sanitize      compute-sanitizer's four tools on benchmarks/sanitize.py, per backend
bench         the registry, one part per family of cases
integer       the products of the integer engine, by kinds and networks
training      a step in full precision, with fake quantizers and in integers, by networks

Needs the standard library, torch, triton and numpy; tests need pytest and what they import. ``--wheels FOLDER`` installs wheels
that were carried along into ``build/gpu-site``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import results

BACKENDS = ("cuda", "triton")
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
FAMILIES = ("weight", "activation", "resnet50", "size")
STAGES = ("environment", "build", "test", "sanitize", "bench", "integer", "training")
SPEEDS = ("copy_bytes_per_s", "matmul_per_s")
#: Stages whose parts give rows, with the kind of their result.
MEASURED = {"bench": "benchmark", "integer": "integer", "training": "training"}
#: Tests of the build, of this harness and of the other tests, those that choose a backend themselves and need no GPU, and those
#: against other libraries, which convert to CPU integer layers.
LEFT_OUT = ("benchmarks", "build", "compare", "compat", "contributing", "cuda", "mutants", "native", "testing", "triton")
#: How files of other folders are named that are about CPUs.
FOR_CPUS = "test_cpu"
#: What the dry run takes: a few tests of one file that obey FASTQ_BACKEND and are quick in Triton's interpreter.
DRY_TESTS = ("tests/ops/test_lsq.py", "-k", "accumulation or hooks or checkpointing or one_step")
UNFINISHED = 75  # EX_TEMPFAIL: run the same command again
ENOUGH = 0.25  # of a short limit: a part is started with 20 seconds, or this share of the limit, at hand
WHOLE = 0.9  # of the limit: what a part needs to have had to have failed by taking too long
FOUND = 86  # what compute-sanitizer exits with when it found something


@dataclass(frozen=True)
class Part:
    """A command with its name, and what is added to the environment."""

    name: str
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """Where and how parts run."""

    dry: bool
    folder: Path
    site: Path | None = None

    def backend(self, name: str) -> dict[str, str]:
        """The environment that puts ``name`` (or, dry, what stands for it) to work."""
        if not self.dry:
            return {"FASTQ_BACKEND": name, "FASTQ_TEST_DEVICE": "cuda"}
        return {"FASTQ_BACKEND": "cpu"} if name == "cuda" else {"FASTQ_BACKEND": "triton", "TRITON_INTERPRET": "1"}

    def tests(self, name: str) -> dict[str, str]:
        """That of tests. CUDA is what a GPU's tensors get first; by name it would be asked for every integer product too, and it
        has those of few rows: the others are Triton's."""
        found = self.backend(name)
        return found if self.dry or name != "cuda" else {**found, "FASTQ_BACKEND": ""}


def test_files() -> list[str]:
    """The test files that run on a GPU, one part each: a part that is stopped loses no more than a file."""
    found = (path.relative_to(results.ROOT) for path in (results.ROOT / "tests").glob("*/test_*.py"))
    kept = (path for path in found if path.parts[1] not in LEFT_OUT and not path.stem.startswith(FOR_CPUS))
    return sorted(path.as_posix() for path in kept)


def capability() -> str | None:
    """The GPU's architecture as TORCH_CUDA_ARCH_LIST has it, such as 9.0a; None without nvidia-smi or a GPU."""
    try:
        query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
        text = subprocess.run(query, capture_output=True, text=True, timeout=30).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return None
    number = text.splitlines()[0].strip() if text else ""
    return (f"{number}a" if number == "9.0" else number) if re.fullmatch(r"\d+\.\d+", number) else None


def parts(stage: str, setting: Setting) -> list[Part]:
    """What a stage consists of. Pure planning: nothing is started but a question for the GPU's architecture."""
    python = sys.executable
    if stage == "environment":
        report = Part("python -m fastq info", [python, "-m", "fastq", "info"])
        tools = [Part(" ".join(c), c) for c in (["nvidia-smi"], ["nvcc", "--version"], ["compute-sanitizer", "--version"])]
        packages = Part("pip list", [python, "-m", "pip", "list", "--disable-pip-version-check"])
        return [report, packages] if setting.dry else [*tools, report, packages]
    if stage == "build":
        arch = os.environ.get("TORCH_CUDA_ARCH_LIST") or capability()
        must = {} if setting.dry else {"FASTQ_BUILD_CUDA": "1", **({"TORCH_CUDA_ARCH_LIST": arch} if arch else {})}
        if setting.dry:
            command = [python, "setup.py", "-q", "build_ext", "--build-lib", str(setting.folder / "lib")]
        else:  # in place, for this Python: what is not there cannot be fetched, and all that the build needs is said by name
            pip = [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-index"]
            command = [*pip, "--no-build-isolation", "--no-deps", "-v", "-e", "."]
            must["PIP_BREAK_SYSTEM_PACKAGES"] = "1"
        return [Part("native libraries", command, must)]
    if stage == "test":
        pytest = [python, "-m", "pytest", "-q", "-m", "not cuda_compile"]
        if setting.dry:
            return [Part(f"{backend} {DRY_TESTS[0]}", [*pytest, *DRY_TESTS], setting.backend(backend)) for backend in BACKENDS]
        return [Part(f"{backend} {name}", [*pytest, name], setting.tests(backend)) for backend in BACKENDS for name in test_files()]
    if stage == "sanitize":
        found = []
        for backend in BACKENDS:
            there = setting.backend(backend)
            module = ["-m", "benchmarks.sanitize", "--backend", there["FASTQ_BACKEND"]]
            for tool in TOOLS[:1] if setting.dry else TOOLS:
                if setting.dry:
                    command = [python, *module, "--device", "cpu", "--small"]
                else:
                    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", str(FOUND), python, *module]
                # memcheck sees the bounds of a tensor only where each is an allocation of its own
                alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
                found.append(Part(f"{backend} {tool}", command, {**there, **alone, "FASTQ_BACKEND": ""}))
        return found
    if stage == "bench":
        options = ["--quick", "--device", "cpu"] if setting.dry else ["--device", "cuda"]
        found = []
        from .registry import METHODS  # torch may be missing on a machine that looks at the other stages

        work = [(family, ["--method", "lsq", "--filter", f"{family}/"]) for family in FAMILIES]
        work += [(method.name, ["--method", method.name]) for method in METHODS if method.name != "lsq"]
        for family, chosen in work:
            name = f"bench-{family}"
            text = [] if setting.dry else chosen
            out = [
                python,
                "-m",
                "benchmarks",
                "--suite",
                "quantizers",
                *options,
                *text,
                "--plain",
                "--name",
                name,
                "--out",
                str(setting.folder / "parts"),
            ]
            found.append(Part(family, out, {"TRITON_INTERPRET": "1"} if setting.dry else {}))
        return found[:1] if setting.dry else found
    if stage == "integer":
        from .products import KINDS, LARGE

        options = ["--quick", "--device", "cpu", "--rotate"] if setting.dry else ["--device", "cuda"]
        there = {"TRITON_INTERPRET": "1"} if setting.dry else {}
        command = [python, "-m", "benchmarks", "--suite", "integer", *options, "--out", str(setting.folder / "parts")]
        # The large square, which the goals are about, and the others apart: a part that is stopped loses no more than it has to.
        work = [(f"{kind} {LARGE.name}", ["--method", kind, "--filter", LARGE.name]) for kind in KINDS if not KINDS[kind].conv]
        work += [(f"{kind} Llama-8B", ["--method", kind, "--filter", "4096"]) for kind in KINDS if not KINDS[kind].conv]
        work += [(kind, ["--method", kind]) for kind in KINDS if KINDS[kind].conv]
        if setting.dry:
            work = [("every kind", [])]
        return [Part(name, [*command, *chosen, "--name", f"integer-{name}"], there) for name, chosen in work]
    if stage == "training":
        from .training import NETWORKS

        options = ["--quick", "--device", "cpu"] if setting.dry else ["--device", "cuda", "--compile"]
        command = [python, "-m", "benchmarks.training", *options, "--out", str(setting.folder / "parts"), "--filter"]
        return [Part(name, [*command, name]) for name in NETWORKS]
    raise ValueError(f"unknown stage {stage!r}; choose one of {', '.join(STAGES)}")


def names(stage: str) -> list[str]:
    """The names of a stage's parts on a machine with a GPU."""
    return [part.name for part in parts(stage, Setting(False, results.FOLDER / "gpu"))]


# Running


def run(part: Part, setting: Setting, seconds: float) -> dict[str, Any]:
    """One part's record; stopped, with everything it started, after ``seconds``."""
    env = {**os.environ, **part.environment, "PYTHONUNBUFFERED": "1"}
    path = [str(setting.site)] if setting.site else []
    env["PYTHONPATH"] = os.pathsep.join([*path, *filter(None, [os.environ.get("PYTHONPATH", "")])])
    start = time.monotonic()
    try:
        process = subprocess.Popen(
            part.command, cwd=results.ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        return {"name": part.name, "status": "failed", "seconds": 0.0, "detail": f"{part.command[0]}: {error.strerror}"}
    try:
        output, _ = process.communicate(timeout=seconds)
        status = "passed" if process.returncode == 0 else "failed"
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        status = "timeout"
    detail = "\n".join(line.rstrip() for line in output.replace(str(results.ROOT), ".").splitlines()[-40:])
    return {"name": part.name, "status": status, "seconds": round(time.monotonic() - start, 2), "detail": detail[-6000:]}


def earlier(stage: str, setting: Setting) -> dict[str, Any]:
    """The stage's result so far, its own environment replaced by today's; a new one if there is none or it is broken."""
    more: dict[str, Any] = {"parts": []}
    if stage in MEASURED:
        more |= {"device": "cpu" if setting.dry else "cuda", "quick": setting.dry, "rows": []}
        more |= {**dict.fromkeys(SPEEDS), "load": 0.0, "packages": {}}
    result = results.new(MEASURED.get(stage, stage), stage, setting.dry, **more)
    path = setting.folder / f"{stage}.json"
    if path.exists():
        try:
            before = results.read(path)
        except results.BrokenResult as error:
            print(f"{error}; starting that stage anew")
        else:
            result |= {key: before[key] for key in ("parts", "rows", *SPEEDS, "load", "packages") if key in before}
    return result


def run_stage(stage: str, setting: Setting, limit: float, again: bool) -> int:
    """Run what has not passed on these sources yet, within ``limit`` seconds. 0 all done, 1 something failed, 75 time ran out."""
    end = time.monotonic() + limit
    result = earlier(stage, setting)
    source = result["environment"]["source"]
    plan = parts(stage, setting)
    tried = {p["name"]: p for p in result["parts"] if p.get("source") == source and not again}
    done = {name for name, p in tried.items() if p["status"] == "passed" and stage != "environment"}
    # What has not run at all goes first: a part that fails or takes too long must not keep it waiting for ever.
    todo = sorted((part for part in plan if part.name not in done), key=lambda part: part.name in tried)
    print(f"{stage}: {len(plan)} parts, {len(plan) - len(todo)} done before", flush=True)
    failed, remain = [], len(todo)
    for part in todo:
        left = end - time.monotonic()
        if left < min(20.0, ENOUGH * limit):
            break
        shutil.rmtree(setting.folder / "parts", ignore_errors=True)  # of a run that was killed
        record = {**run(part, setting, left), "source": source}
        print(f"  {record['status']:<8} {record['seconds']:7.1f} s  {part.name}", flush=True)
        if record["status"] != "passed":
            print("\n".join(f"    {line}" for line in record["detail"].splitlines()[-12:]), flush=True)
        # A part that was stopped because others had taken the time is not done; one that had it all to itself has failed.
        if record["status"] != "timeout" or left > WHOLE * limit:
            remain -= 1
            if record["status"] != "passed":
                failed.append(part.name)
        result["parts"] = [p for p in result["parts"] if p["name"] != part.name] + [record]
        if stage in MEASURED:
            take_rows(result, setting, source)
        results.write(result, setting.folder)
    if remain:
        print(f"  {remain} parts are left: run the same command again")
    return UNFINISHED if remain else 1 if failed else 0


def take_rows(result: dict[str, Any], setting: Setting, source: str) -> None:
    """Move the rows of the one file that a benchmark part wrote into the stage's result, in the place of earlier ones."""
    path = next((setting.folder / "parts").glob("*.json"), None)
    if path is None:
        return
    part = results.read(path)
    new = {results.identity(row) for row in part["rows"]}
    kept = [row for row in result["rows"] if results.identity(row) not in new]
    result["rows"] = kept + [{**row, "source": source} for row in part["rows"]]
    result["load"] = max(result["load"], part["load"])
    for speed in SPEEDS:
        result[speed] = part.get(speed) or result.get(speed)
    result["packages"] = {**result.get("packages", {}), **part.get("packages", {})}
    shutil.rmtree(setting.folder / "parts")


def install(wheels: Path) -> Path:
    """The wheels of a folder, installed into build/gpu-site without a network or their dependencies."""
    site = results.ROOT / "build" / "gpu-site"
    files = sorted(map(str, wheels.glob("*.whl")))
    if not files:
        raise SystemExit(f"--wheels: no .whl files in {wheels}")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--upgrade", "--target", str(site), *files], check=True)
    return site


def main(arguments: list[str] | None = None) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__, formatter_class=raw)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=", ".join(STAGES))
    parser.add_argument("--dry", action="store_true", help="every stage without a GPU; nothing is committed")
    parser.add_argument("--limit", type=float, default=570.0, metavar="SECONDS",
                        help="of the stages named, together; of each, if none is (default %(default)s)")  # fmt: skip
    parser.add_argument("--again", action="store_true", help="also what has passed before")
    parser.add_argument("--wheels", type=Path, metavar="FOLDER", help="wheels to install first (no network is used)")
    parser.add_argument("--plan", action="store_true", help="print the parts as JSON and run none")
    args = parser.parse_args(arguments)
    stages = args.stages or list(STAGES)
    if unknown := [name for name in stages if name not in STAGES]:
        parser.error(f"unknown stage {unknown[0]!r}; choose from {', '.join(STAGES)}")
    folder = results.ROOT / "build" / "gpu-dry" if args.dry else results.FOLDER / "gpu"
    if args.plan:
        setting = Setting(args.dry, folder)
        print(json.dumps({s: [{"name": p.name, "command": p.command, "environment": p.environment} for p in parts(s, setting)]
                          for s in stages}, indent=1))  # fmt: skip
        return 0
    if not args.dry and capability() is None:
        print("no NVIDIA GPU answers nvidia-smi here; `make gpu DRY=1` runs every stage without one", file=sys.stderr)
        return 1
    setting = Setting(args.dry, folder, install(args.wheels) if args.wheels else None)
    codes: dict[str, int] = {}
    start = time.monotonic()
    for stage in stages:
        limit = args.limit - (time.monotonic() - start if args.stages else 0.0)
        codes[stage] = run_stage(stage, setting, limit, args.again or args.dry)
    for stage in stages:
        path = folder / f"{stage}.json"
        if path.exists():
            results.read(path)
            print(f"valid: {path.relative_to(results.ROOT)}")
    if not args.dry:
        subprocess.run([sys.executable, "-m", "benchmarks.readme"], cwd=results.ROOT)
    return max(codes.values(), key=lambda code: (code == UNFINISHED, code), default=0)


if __name__ == "__main__":
    raise SystemExit(main())
