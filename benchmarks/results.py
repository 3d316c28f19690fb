"""The files under ``results/``: one schema for all of them, the machine they come from, and where they lie.

``{"schema": 1, "kind": ..., "name": ..., "created": ..., "dry": ..., "environment": {...}, "rows" or "parts": [...]}``

``rows`` has one entry per case and provider (kind ``benchmark``: of the quantizers; ``integer``: of the integer products;
``training``: of training steps); ``parts`` (``environment``, ``build``, ``test``, ``sanitize``) one entry per thing that ran; kind
``comparison`` has what ``python -m fastq compare`` wrote. Needs the standard library alone; what is missing on a machine is
recorded as null.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "benchmarks" / "results"
SCHEMA = 1
#: Share of the time for which threads that could run waited for a core: 0.01 on a machine of our own, 0.5 beside one other
#: program. Times of a row above it say more about the other program.
DISTURBED = 0.05
#: How the reason ends of a provider that does not have a method.
NO_SUCH_OP = "no such op"
KINDS = ("benchmark", "integer", "training", "environment", "build", "test", "sanitize", "comparison")
MEASURED = ("benchmark", "integer", "training")
#: glibc keeps freed pages with these. Without them a large result is new pages every time, and their faults are all one sees.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**36), "MALLOC_TOP_PAD_": str(2**28)}

_TEXT, _NUMBER, _FLAG, _MAYBE, _SPEED = (str,), (int, float), (bool,), (str, type(None)), (int, float, type(None))
_ENVIRONMENT: dict[str, tuple[type, ...]] = {
    "fastq": _MAYBE, "torch": _MAYBE, "triton": _MAYBE, "numpy": _MAYBE, "python": _TEXT, "system": _TEXT, "cpu": _TEXT,
    "cores": (int,), "isa": _MAYBE, "threads": (int, type(None)), "gpu": _MAYBE, "cuda": _MAYBE, "commit": _MAYBE,
    "dirty": (bool, type(None)), "source": _TEXT, "malloc": (dict,),
}  # fmt: skip
_TOP: dict[str, tuple[type, ...]] = {
    "schema": (int,), "kind": _TEXT, "name": _TEXT, "created": _TEXT, "dry": _FLAG, "environment": (dict,),
}  # fmt: skip
_READINGS: dict[str, tuple[type, ...]] = {
    "median_us": _NUMBER, "min_us": _NUMBER, "q1_us": _NUMBER, "q3_us": _NUMBER, "rounds": (int,),
}  # fmt: skip
_PASS: dict[str, tuple[type, ...]] = {**_READINGS, "bytes_per_s": _NUMBER}
_PRODUCT: dict[str, tuple[type, ...]] = {
    "kind": _TEXT, "layer": _TEXT, "rows": (int,), "provider": _TEXT, "device": _TEXT, "status": _TEXT,
}  # fmt: skip
_ROW: dict[str, tuple[type, ...]] = {"method": _TEXT, "case": _TEXT, "provider": _TEXT, "device": _TEXT, "status": _TEXT}
_PART: dict[str, tuple[type, ...]] = {"name": _TEXT, "status": _TEXT, "seconds": _NUMBER, "detail": _TEXT}
ROW_STATUS = ("ok", "failed", "unavailable")
PART_STATUS = ("passed", "failed", "timeout")


class BrokenResult(ValueError):
    """A result file that is not what it should be; the message names the place."""


def _fields(where: str, value: Any, fields: dict[str, tuple[type, ...]]) -> None:
    if not isinstance(value, dict):
        raise BrokenResult(f"{where}: expected an object, got {type(value).__name__}")
    for name, types in fields.items():
        if name not in value:
            raise BrokenResult(f"{where}: {name} is missing")
        got = value[name]
        if not isinstance(got, types) or (isinstance(got, bool) and bool not in types):
            raise BrokenResult(f"{where}: {name} must be {' or '.join(t.__name__ for t in types)}, got {got!r}")


def _one_of(where: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise BrokenResult(f"{where} must be one of {', '.join(allowed)}, got {value!r}")


def validate(result: Any) -> dict[str, Any]:
    """``result`` itself if it follows the schema; :class:`BrokenResult` if not."""
    _fields("result", result, _TOP)
    if result["schema"] != SCHEMA:
        raise BrokenResult(f"result: schema must be {SCHEMA}, got {result['schema']}")
    _one_of("result: kind", result["kind"], KINDS)
    try:
        datetime.datetime.fromisoformat(result["created"])
    except ValueError:
        raise BrokenResult(f"result: created must be an ISO date, got {result['created']!r}") from None
    _fields("environment", result["environment"], _ENVIRONMENT)
    if result["kind"] == "comparison":
        _comparison(result)
        return result
    if result["kind"] not in MEASURED or "parts" in result:
        _fields("result", result, {"parts": (list,)})
        for i, part in enumerate(result["parts"]):
            _fields(f"parts[{i}]", part, _PART)
            _one_of(f"parts[{i}]: status", part["status"], PART_STATUS)
    if result["kind"] not in MEASURED:
        return result
    _fields("result", result, {"rows": (list,), "device": _TEXT, "quick": _FLAG, "copy_bytes_per_s": _SPEED, "load": _NUMBER})
    if result["kind"] == "integer":
        _fields("result", result, {"matmul_per_s": _SPEED, "packages": (dict,)})
        _beside(result)
    for i, row in enumerate(result["rows"]):
        (_product if result["kind"] == "integer" else _row)(f"rows[{i}]", row)
    return result


def identity(row: dict[str, Any]) -> tuple[Any, ...]:
    """What a row is of; of two with the same one the later replaces the earlier."""
    return tuple(row.get(name) for name in ("method", "case", "kind", "layer", "rows", "provider"))


def _beside(result: dict[str, Any]) -> None:
    """What a whole run of integer products on a CPU has besides."""
    if "roofs" in result:
        _fields("roofs", result["roofs"], dict.fromkeys(("cache", "memory", "int8"), _NUMBER))
    for i, row in enumerate(result.get("packing", [])):
        where = f"packing[{i}]"
        if _measured(where, row, {"layer": _TEXT, "bits": (int,), "status": _TEXT}, {"pack": (dict,), "first row": (dict,)}):
            _times(f"{where}: pack", row["pack"], _READINGS)
            _times(f"{where}: first row", row["first row"], _READINGS)
    for i, row in enumerate(result.get("networks", [])):
        where = f"networks[{i}]"
        fields = {"network": _TEXT, "batch": (int,), "provider": _TEXT, "status": _TEXT}
        if _measured(where, row, fields, {"first_call_s": _NUMBER, "time": (dict,)}):
            _times(f"{where}: time", row["time"], _READINGS)
    for i, one in enumerate(result.get("forced", [])):
        _fields(f"forced[{i}]", one, {"isa": _TEXT, "settings": (dict,), "rows": (list,), "reason": _TEXT})
        for j, row in enumerate(one["rows"]):
            _product(f"forced[{i}]: rows[{j}]", row)


def _product(where: str, row: Any) -> None:
    if _measured(where, row, _PRODUCT, {"first_call_s": _NUMBER, "chosen": _FLAG, "time": (dict,), "copies": (int,)}):
        _times(f"{where}: time", row["time"], _READINGS)


def _row(where: str, row: Any) -> None:
    if not _measured(where, row, _ROW, {"first_call_s": _NUMBER, "saved_bytes": (int,), "peak_bytes": (int,), "passes": (dict,)}):
        return
    if set(row["passes"]) != {"forward", "backward", "both"}:
        raise BrokenResult(f"{where}: passes must be forward, backward, both, got {', '.join(row['passes'])}")
    for name, one in row["passes"].items():
        _times(f"{where}: {name}", one, _PASS)


def _measured(where: str, row: Any, fields: dict[str, tuple[type, ...]], readings: dict[str, tuple[type, ...]]) -> bool:
    """Whether the row has times; ``readings``: what it has with them."""
    _fields(where, row, fields)
    _one_of(f"{where}: status", row["status"], ROW_STATUS)
    if row["status"] != "ok":
        _fields(where, row, {"reason": _TEXT})
        if "time" in row or "passes" in row:
            raise BrokenResult(f"{where}: a row that is not ok has no times")
        return False
    _fields(where, row, readings)
    if "waited" in row:  # where the system tells
        _fields(where, row, {"waited": _NUMBER})
    return True


def _times(where: str, value: Any, fields: dict[str, tuple[type, ...]]) -> None:
    _fields(where, value, fields)
    if not 0 < value["min_us"] <= value["median_us"]:
        raise BrokenResult(f"{where}: times must be positive and the median no less than the least")


_CONTRAST: dict[str, tuple[type, ...]] = {
    "text": _TEXT, "arm": _TEXT, "metric": _TEXT, "other": _TEXT, "other metric": _TEXT, "values": (list,), "other values": (list,),
    "lower": (int,), "verdict": _TEXT, "difference": _SPEED, "spread": _SPEED,
}  # fmt: skip
_CLAIM: dict[str, tuple[type, ...]] = {
    "name": _TEXT, "statement": _TEXT, "paper": _TEXT, "network": _TEXT, "reconstruction": _TEXT, "arms": (dict,),
    "contrasts": (list,),
}  # fmt: skip
VERDICTS = ("shows", "does not show", "does not show, the opposite does", "not claimed")


def _comparison(result: dict[str, Any]) -> None:
    _fields("result", result, {"comparison": (dict,)})
    found = result["comparison"]
    _fields("comparison", found, {
        "schema": (int,), "quick": _FLAG, "seeds": (int,), "steps": (int,), "pretraining": (int,), "cpu seconds": _NUMBER,
        "claims": (list,), "recipes": (dict,), "reconstructions": (dict,), "identities": (list,),
    })  # fmt: skip
    for i, claim in enumerate(found["claims"]):
        _fields(f"claims[{i}]", claim, _CLAIM)
        for j, contrast in enumerate(claim["contrasts"]):
            where = f"claims[{i}]: contrasts[{j}]"
            _fields(where, contrast, _CONTRAST)
            _one_of(f"{where}: verdict", contrast["verdict"], VERDICTS)
            if len(contrast["values"]) != found["seeds"] or len(contrast["other values"]) != found["seeds"]:
                raise BrokenResult(f"{where}: values must be {found['seeds']}, one for each seed")
    for i, identity in enumerate(found["identities"]):
        _fields(f"identities[{i}]", identity, {"name": _TEXT, "error": _SPEED, "tolerance": _NUMBER, "holds": _FLAG})


# Where a result comes from


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def source_digest() -> str:
    """A hash of the sources that results depend on: also where there is no git, it says whether two results are of one state."""
    digest = hashlib.sha256()
    folders = ("csrc", "fastq", "triton_kernels", "benchmarks", "tests")
    found = (path for folder in folders for path in sorted((ROOT / folder).rglob("*")))
    for path in (ROOT / "setup.py", ROOT / "pyproject.toml", *found):  # with the compilers' flags
        if path.suffix in (".py", ".toml", ".h", ".cpp", ".cu", ".cuh") and path.is_file():
            digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _isa() -> str | None:
    """What the CPU kernels use, where the runtime module is built."""
    try:
        from fastq import _runtime  # type: ignore[attr-defined]

        return str(_runtime.isa())
    except Exception:
        return None


def environment() -> dict[str, Any]:
    """The machine, the versions and the commit. A part that cannot be had is null; it never raises."""
    found: dict[str, Any] = dict.fromkeys(_ENVIRONMENT)
    found.update(
        torch=_version("torch"), triton=_version("triton"), numpy=_version("numpy"), python=platform.python_version(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}", cpu=_cpu_name(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        isa=_isa(), source=source_digest(), malloc={name: os.environ[name] for name in MALLOC if name in os.environ},
    )  # fmt: skip
    # A result that was written a moment ago, and its table in the README, change nothing of the next one.
    status = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results", ":!README.md")
    found.update(commit=_git("rev-parse", "HEAD"), dirty=None if status is None else bool(status))
    try:
        import fastq

        found["fastq"] = fastq.__version__
        import torch

        found.update(torch=torch.__version__, threads=torch.get_num_threads(), cuda=torch.version.cuda)
        if torch.cuda.is_available():
            p = torch.cuda.get_device_properties(0)
            found["gpu"] = f"{p.name}, sm_{p.major}{p.minor}, {p.multi_processor_count} SMs, {p.total_memory / 2**30:.0f} GiB"
    except Exception:  # the report of a broken installation is a report
        pass
    return found


def new(kind: str, name: str, dry: bool = False, **more: Any) -> dict[str, Any]:
    """A result of this machine, now, without rows or parts if none are given."""
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"schema": SCHEMA, "kind": kind, "name": name, "created": created, "dry": dry, "environment": environment(), **more}


def write(result: dict[str, Any], folder: Path = FOLDER) -> Path:
    """Validate and write ``folder/name.json``, whole or not at all."""
    validate(result)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result['name']}.json"
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps(result, indent=1) + "\n")
    beside.replace(path)
    return path


def read(path: Path) -> dict[str, Any]:
    """The valid result in ``path``; :class:`BrokenResult`, naming the file, otherwise."""
    try:
        return validate(json.loads(path.read_text()))
    except (BrokenResult, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BrokenResult(f"{path.name}: {error}") from None


def read_all(folder: Path = FOLDER, kind: str = "benchmark") -> list[dict[str, Any]]:
    """All results of a kind in a folder, the oldest first."""
    found = [read(path) for path in sorted(folder.glob("*.json"))] if folder.exists() else []
    return sorted((r for r in found if r["kind"] == kind), key=lambda r: r["created"])
