"""The registry under pytest-benchmark: one group per case and pass, one entry per provider.

pytest-benchmark times one test to its end before it starts the next; providers that are compared must take turns instead. So
the first test of a case measures all of its providers in turns (measure.py), and each test then hands its share of the
clock readings to pytest-benchmark through the timer, which gives statistics, grouping and storage of exactly these rounds.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest

from benchmarks.registry import PASSES, PROVIDERS, select


class Readings:
    """A timer that gives back what was read from the clock before: start and end of every round."""

    def __init__(self) -> None:
        self.pending: deque[float] = deque()

    def load(self, durations: list[float]) -> None:
        self.pending = deque(value for duration in durations for value in (0.0, duration))

    def __call__(self) -> float:
        return self.pending.popleft()


READINGS = Readings()


def pytest_generate_tests(metafunc: Any) -> None:
    session = getattr(metafunc.config, "fastq_session", None)
    work = session.plan if session else select(quick=True)
    found = [(m, c, p, which) for m, c in work for which in PASSES for p in PROVIDERS if p.available("cpu")[0]]
    metafunc.parametrize("entry", found, ids=[f"{m.name}-{c.name}-{which}-{p.name}" for m, c, p, which in found])


@pytest.fixture(scope="session")
def measured(request: Any) -> Any:
    """``measured(method, case)``: the rows by provider and the samples, measured on the first call for a case."""
    done: dict[str, Any] = {}
    session = getattr(request.config, "fastq_session", None)

    def get(method: Any, case: Any) -> Any:
        from benchmarks.measure import run_case

        name = f"{method.name} {case.name}"
        if name not in done:
            done.clear()  # the entries of a case follow each other
            rows, times = session.measure(method, case) if session else run_case(method, case, "cpu", budget=0.2)
            done[name] = {row["provider"]: row for row in rows}, times
        return done[name]

    return get


@pytest.mark.benchmark(timer=READINGS)
def test_benchmark(entry: Any, measured: Any, benchmark: Any) -> None:
    method, case, provider, which = entry
    rows, times = measured(method, case)
    row = rows[provider.name]
    benchmark.group = f"{method.name} {case.name} {which}"
    benchmark.name = provider.name
    if row["status"] != "ok":  # the row says why; fastq's own must not fail
        READINGS.load([0.0])
        benchmark.pedantic(lambda: None, rounds=1, iterations=1)
        benchmark.extra_info["reason"] = row["reason"]
        assert provider.backend is None, f"{provider.name}: {row['reason']}"
        return
    samples = times[provider.name][which]
    benchmark.extra_info.update({name: row[name] for name in ("saved_bytes", "peak_bytes", "first_call_s")})
    READINGS.load(samples)
    benchmark.pedantic(lambda: None, rounds=len(samples), iterations=1)
