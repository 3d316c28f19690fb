"""A small result of each kind, as the harness writes them, to be changed and broken by the tests."""

from typing import Any

ENVIRONMENT: dict[str, Any] = {
    "fastq": "0.1.0", "torch": "2.13.0", "triton": None, "numpy": "2", "python": "3.12.1", "system": "Linux", "cpu": "a CPU",
    "cores": 2, "isa": "v3", "threads": 2, "gpu": None, "cuda": None, "commit": "0123456789abcdef", "dirty": False, "source": "abc",
    "malloc": {"MALLOC_MMAP_THRESHOLD_": "1", "MALLOC_TRIM_THRESHOLD_": "1", "MALLOC_TOP_PAD_": "1"},
}  # fmt: skip


def row(case: str, provider: str, both_us: float, device: str = "cpu", **more: Any) -> dict[str, Any]:
    def one(us: float) -> dict[str, Any]:
        return {"median_us": us, "min_us": us / 2, "q1_us": us, "q3_us": us, "rounds": 5, "bytes_per_s": 1e9}

    passes = {"forward": one(both_us / 3), "backward": one(both_us * 2 / 3), "both": one(both_us)}
    return {
        "method": "lsq", "case": case, "provider": provider, "device": device, "status": "ok", "first_call_s": 0.1,
        "saved_bytes": 4100, "peak_bytes": 9000, "passes": passes, **more,
    }  # fmt: skip


def unavailable(case: str, provider: str, device: str = "cpu") -> dict[str, Any]:
    why = {"status": "unavailable", "reason": "no such thing here"}
    return {"method": "lsq", "case": case, "provider": provider, "device": device, **why}


def benchmark(rows: list[dict[str, Any]], device: str = "cpu", **more: Any) -> dict[str, Any]:
    return {
        "schema": 1, "kind": "benchmark", "name": "sample", "created": "2026-01-02T03:04:05+00:00", "dry": False, "quick": False,
        "environment": dict(ENVIRONMENT), "device": device, "copy_bytes_per_s": None, "load": 0.0, "rows": rows, **more,
    }  # fmt: skip


def stage(kind: str, parts: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {
        "schema": 1, "kind": kind, "name": kind, "created": "2026-01-02T03:04:05+00:00", "dry": False,
        "environment": dict(ENVIRONMENT), "parts": parts, **more,
    }  # fmt: skip


def part(name: str, status: str = "passed") -> dict[str, Any]:
    return {"name": name, "status": status, "seconds": 1.5, "detail": "fine"}


def product(kind: str, layer: str, rows: int, provider: str, us: float, device: str = "cpu", **more: Any) -> dict[str, Any]:
    """A row of the integer suite with a time; of fastq the choice."""
    time = {"median_us": us, "min_us": us / 2, "q1_us": us, "q3_us": us, "rounds": 5}
    return {
        "kind": kind, "layer": layer, "rows": rows, "provider": provider, "device": device, "status": "ok",
        "chosen": provider.startswith("fastq-"), "copies": 1, "first_call_s": 0.1, "time": time, **more,
    }  # fmt: skip


def integer(rows: list[dict[str, Any]], device: str = "cpu", gpu: str | None = None, **more: Any) -> dict[str, Any]:
    made = benchmark(rows, device, kind="integer", matmul_per_s=7e11, packages={}, **more)
    made["environment"]["gpu"] = gpu
    return made
