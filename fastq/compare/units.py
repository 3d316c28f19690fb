"""One arm with one seed is a unit: a file in the output folder as soon as it is done, so that an interrupted run goes on."""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import platform
import signal
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from .. import prepare
from ..demo import images
from . import measures
from .claims import CLAIMS, EVERY_RECIPE, Trained
from .networks import NETWORKS, Data, batches, pretrain, train

__all__ = ["FULL", "QUICK", "Budget", "Unit", "plan", "run_all"]


@dataclass(frozen=True)
class Budget:
    """The same for every arm: optimizer steps before and after quantization, images (0: all), seeds."""

    pretraining: int
    steps: int
    images: int
    seeds: int


FULL = Budget(pretraining=400, steps=600, images=0, seeds=5)
QUICK = Budget(pretraining=10, steps=10, images=96, seeds=2)


@dataclass(frozen=True)
class Unit:
    """A claim's arm with a seed; ``repeat``: the same once more, to see that nothing else decides."""

    claim: str
    arm: str
    seed: int
    repeat: bool = False

    @property
    def file(self) -> str:
        """Of its result."""
        return f"{self.claim} {self.arm} {self.seed}{' again' * self.repeat}.json".replace(" ", "-").lower()


#: With noise, with frozen codes, with weights that are codes: whatever could differ between two runs.
REPEATED = (("noise tempering", "both"), ("oscillations", "freezing"), ("direct", "rho 1"))


def plan(budget: Budget) -> list[Unit]:
    """All that a run does."""
    units = [Unit(c.name, arm, seed) for c in CLAIMS.values() for seed in range(budget.seeds) for arm in c.arms]
    units += [Unit(EVERY_RECIPE.name, arm, 0) for arm in EVERY_RECIPE.arms]
    return units + [Unit(claim, arm, 0, repeat=True) for claim, arm in REPEATED]


def source_digest() -> str:
    """A hash of the package's code and library, less what only presents results: another code, other results."""
    root = Path(__file__).parents[1]
    shown = {Path(__file__).parent / "__init__.py", Path(__file__).parent / "report.py"}
    digest = hashlib.sha256()
    for path in sorted([*root.rglob("*.py"), *root.glob("lib/*.so")]):
        if path not in shown:
            digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def key_of(budget: Budget) -> dict[str, Any]:
    """What a result depends on beside its unit. Not the number of seeds, which may grow."""
    given = {k: v for k, v in asdict(budget).items() if k != "seeds"}
    return {**given, "source": source_digest(), "torch": torch.__version__, "machine": platform.machine()}


def read(path: Path, key: dict[str, Any]) -> dict[str, Any] | None:
    """The result in ``path``; None where there is none, it is damaged, or it was made under another key."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("key") == key and "metrics" in found else None


def write(path: Path, content: dict[str, Any]) -> None:
    """Whole or not at all."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.new")
    beside.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    beside.replace(path)


def _data(budget: Budget) -> Data:
    data = images(torch.device("cpu"))
    return tuple(t[: budget.images] for t in data) if budget.images else data


def _start(network: str, seed: int, budget: Budget, key: dict[str, Any], folder: Path) -> Path:
    """The file with the pretrained network, made if it is not there; where it was made for another key it has another name."""
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:8]
    path = folder / f"{network}-{seed}-{name}.pt"
    if not path.exists():
        model = pretrain(network, _data(budget), budget.pretraining, seed)
        beside = path.with_suffix(f".{os.getpid()}.new")
        torch.save(model.state_dict(), beside)
        beside.replace(path)
    return path


def _run(unit: Unit, budget: Budget, key: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train one arm, measure, write."""
    began = time.process_time()
    claim = CLAIMS.get(unit.claim, EVERY_RECIPE)
    data, recipe = _data(budget), claim.arms[unit.arm]
    model = NETWORKS[claim.network]()
    model.load_state_dict(torch.load(_start(claim.network, unit.seed, budget, key, folder), weights_only=True))
    torch.manual_seed(unit.seed)
    if claim.change:
        claim.change(model)
    model = prepare(model, recipe).model
    run, loss = train(model, recipe, data, budget.steps, unit.seed, claim.rate)
    run.before_evaluation(batches(data, unit.seed + 1))
    test, accuracy = measures.evaluate(model, data)
    metrics = {"training loss": loss, "test loss": test, "accuracy": accuracy, **claim.measure(Trained(model, data, unit.seed))}
    result = {
        **asdict(unit), "key": key, "codes": measures.codes_digest(model), "seconds": round(time.process_time() - began, 1),
        "metrics": {name: value if math.isfinite(value) else None for name, value in metrics.items()},
    }  # fmt: skip
    write(folder / unit.file, result)
    return result


def _begin() -> None:
    """Of a worker: one thread, by which the bits depend on nothing else; an interrupt is the parent's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def run_all(budget: Budget, folder: Path, workers: int, progress: Callable[[int, int, str], None]) -> list[dict[str, Any]]:
    """The results of :func:`plan`, in its order; those in ``folder`` under the same key are taken as they are.

    ``progress(done, total, what)`` is called whenever a unit is there.
    """
    units, key = plan(budget), key_of(budget)
    results = {unit: read(folder / unit.file, key) for unit in units}
    missing = [unit for unit in units if results[unit] is None]
    progress(len(units) - len(missing), len(units), "")
    if missing:
        pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin)
        try:
            starts = sorted({(CLAIMS.get(u.claim, EVERY_RECIPE).network, u.seed) for u in missing})
            for begun in as_completed([pool.submit(_start, *start, budget, key, folder) for start in starts]):
                begun.result()
            futures = {pool.submit(_run, unit, budget, key, folder): unit for unit in missing}
            for number, future in enumerate(as_completed(futures), len(units) - len(missing) + 1):
                results[futures[future]] = future.result()
                progress(number, len(units), f"{futures[future].claim}, {futures[future].arm}")
            pool.shutdown()
        except BaseException:
            for child in multiprocessing.active_children():
                child.terminate()
            pool.shutdown(cancel_futures=True)
            raise
    return [result for unit in units if (result := results[unit]) is not None]
