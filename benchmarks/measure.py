"""How it is measured: every provider checked against the reference first, then all of them in turns within one run.

Only times from one run are compared: a round calls each provider once, in an order that rotates, so that what the machine
does meanwhile (clock, neighbours, page faults) falls on all alike. The median over the rounds is reported.

Another program on the same cores is more than noise: whichever provider uses threads waits at every barrier for the one that was
put aside, so one is hit and the next is not. The kernel counts how long our threads were ready and waited for a core;
a case in which they did is measured again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import glob
import math
import statistics
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

import fastq
from fastq.granularity import sum_to_parameter
from fastq.testing import same_bits

from .registry import PASSES, PROVIDERS, Call, Case, Method, Provider, traffic
from .results import DISTURBED, NO_SUCH_OP

Times = TypeVar("Times")
Tensors = tuple[tuple[torch.Tensor, ...], Any]  # x and the parameters, which require gradients; and g, or None for an op without


@dataclass(frozen=True)
class Bound:
    """A callable and the backend it runs on; the backend is entered around a batch of calls, not within the timed ones."""

    fn: Call
    provider: Provider

    def backend(self) -> contextlib.AbstractContextManager[Any]:
        return fastq.use_backend(self.provider.backend) if self.provider.backend else contextlib.nullcontext()


def step(fn: Call, tensors: Tensors) -> tuple[torch.Tensor, ...]:
    """Forward and backward once: ``y`` (or several), ``dx`` and the gradients of the parameters."""
    inputs, g = tensors
    y = fn(*inputs)
    results = y if isinstance(y, tuple) else (y,)
    return (*results, *gradients(y, inputs, g))


def gradients(y: Any, inputs: tuple[torch.Tensor, ...], g: Any) -> tuple[torch.Tensor, ...]:
    """The backward pass, where there is one."""
    return () if g is None else torch.autograd.grad(y, [t for t in inputs if t.requires_grad], g)


# Is it right?


def check_alike(got: tuple[torch.Tensor, ...], want: tuple[torch.Tensor, ...]) -> str:
    """Empty if the results of an op with inputs of its own agree with the reference's, else what differs.

    Among them are sums in another order and, after an exp or tanh, values next to a tie: 1e-4 of the largest number (two
    roundings of 16-bit storage), and one element in 10,000.
    """
    if any(a.shape != b.shape or a.dtype != b.dtype for a, b in zip(got, want, strict=True)):
        return f"shapes or dtypes {[(tuple(t.shape), str(t.dtype)) for t in got]}"
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        af, bf = a.detach().double(), b.detach().double()
        near = max(1e-4, 2 * torch.finfo(b.dtype).eps if b.is_floating_point() else 0.0)
        off = int(((af - bf).abs() > near * bf.abs().amax().clamp(min=1e-30) if bf.numel() else bf != bf).sum())
        if off > max(a.numel() // 10_000, 1 if a.numel() > 1 else 0):
            return f"result {i} differs from the reference in {off} of {a.numel()} elements"
    return ""


def check(case: Case, got: tuple[torch.Tensor, ...], want: tuple[torch.Tensor, ...], g: torch.Tensor, exact: bool) -> str:
    """Empty if ``y``, ``dx`` and the parameters' gradients agree with the reference's, else what differs.

    ``exact`` wants the bits of ``y`` and ``dx``. The others may round ``x / s`` in another way (core multiplies by 1/s),
    which moves elements next to a tie or a clip edge by one code: at most one in 10,000. The rest agrees to 4 roundings.
    """
    if any(a.shape != b.shape or a.dtype != b.dtype for a, b in zip(got, want, strict=True)):
        return f"shapes or dtypes {[(tuple(t.shape), str(t.dtype)) for t in got]}"
    moved = 0
    for name, a, b in zip(("y", "dx"), got, want, strict=False):
        if exact:
            if not same_bits(a, b):
                return f"{name} has other bits than the reference"
            continue
        eps = torch.finfo(a.dtype).eps
        off = int(((a - b).abs() > 4 * eps * b.abs() + 1e-30).sum())
        if off > max(case.elements // 10_000, 1) or not bool(a.isfinite().all()):
            return f"{name} differs from the reference in {off} of {case.elements} elements"
        moved += off
    # Two sums of n terms of at most |g| * 8, 128 in a row and a tree over the rest; a moved element changes its term by
    # no more than |g| * 8 too.
    axis, group = case.keywords.get("axis", -1), case.keywords.get("group_size", 0)
    for i, (a, b) in enumerate(zip(got[2:], want[2:], strict=True)):
        magnitude = sum_to_parameter(g.abs().float() * 8, b, axis, group)
        roundings = 2 * (128 + math.log2(case.elements // b.numel()))
        bound = roundings * torch.finfo(torch.float32).eps * magnitude + moved * 8 * g.abs().max().float()
        if not bool(((a - b).abs() <= bound).all()):
            return f"gradient of parameter {i} is off by {float((a - b).abs().max()):.3g}, more than {float(bound.min()):.3g}"
    return ""


# What does it keep?


def saved_bytes(fn: Call, tensors: Tensors) -> int:
    """Bytes of all storages kept for the backward pass, the inputs among them."""
    kept: dict[int, int] = {}
    alive = []

    def pack(t: torch.Tensor) -> torch.Tensor:
        storage = t.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        alive.append(t)  # or an address might be given out twice
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        fn(*tensors[0])
    return sum(kept.values())


def peak_bytes(fn: Call, tensors: Tensors) -> int:
    """The most bytes allocated at once by forward and backward, results included, beyond the inputs."""
    if tensors[0][0].is_cuda:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step(fn, tensors)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step(fn, tensors)
    now = most = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


# How long does it take?


def cpu_rounds(functions: dict[str, Bound], tensors: Tensors, budget: float, most: int = 200) -> dict[str, dict[str, list[float]]]:
    """Seconds of each pass, per provider and round. One loop gives all three: the clock is read before, between and after."""
    inputs, g = tensors
    clock, wanted = time.perf_counter_ns, [t for t in inputs if t.requires_grad]
    grad = torch.autograd.grad if g is not None else lambda *_: None

    def calls(bound: Bound, count: int) -> tuple[float, float]:
        forward, backward, fn = 0, 0, bound.fn
        with bound.backend():
            for _ in range(count):
                start = clock()
                y = fn(*inputs)
                middle = clock()
                grad(y, wanted, g)
                end = clock()
                forward += middle - start
                backward += end - middle
        return forward / count / 1e9, backward / count / 1e9

    if not functions:
        return {}
    once = {name: sum(calls(fn, 1)) for name, fn in functions.items()}  # warm already: each was checked
    count = max(1, min(100, int(1e-3 / max(min(once.values()), 1e-6))))  # about a millisecond for a fast provider
    rounds = max(3, min(most, int(budget / (sum(once.values()) * count))))
    times: dict[str, dict[str, list[float]]] = {name: {which: [] for which in PASSES} for name in functions}
    names = list(functions)
    enabled = gc.isenabled()
    gc.disable()
    try:
        for i in range(rounds + 1):
            for name in names[i % len(names) :] + names[: i % len(names)]:
                forward, backward = calls(functions[name], count)
                if i:  # the first round warms up
                    for which, value in zip(PASSES, (forward, backward, forward + backward), strict=True):
                        times[name][which].append(value)
    finally:
        if enabled:
            gc.enable()
    return times


#: A case that was disturbed is measured so many times at most.
ATTEMPTS = 3


def waited() -> float | None:
    """Seconds that the threads of this process have waited for a core so far; None where the system does not say."""
    total = 0
    try:
        for task in Path("/proc/self/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread may end meanwhile
                total += int((task / "schedstat").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return total / 1e9 if total else None


def undisturbed_rounds(
    functions: dict[str, Bound], tensors: Tensors, budget: float
) -> tuple[dict[str, dict[str, list[float]]], float | None]:
    """:func:`cpu_rounds`, undisturbed."""
    return undisturbed(lambda: cpu_rounds(functions, tensors, budget))


def undisturbed(measure: Callable[[], Times], attempts: int = ATTEMPTS, patience: float = math.inf) -> tuple[Times, float | None]:
    """What ``measure`` gives with the share of the time spent waiting for a core: the best of ``attempts``, or the first good one;
    none is started after ``patience`` seconds."""
    best: tuple[Any, float | None] = ({}, None)
    began = time.perf_counter()
    for attempt in range(attempts):
        before, start = waited(), time.perf_counter()
        times = measure()
        after, seconds = waited(), time.perf_counter() - start
        share = None if before is None or after is None else (after - before) / seconds
        if attempt == 0 or (share is not None and best[1] is not None and share < best[1]):
            best = times, share
        if share is None or share <= DISTURBED or time.perf_counter() - began > patience:
            break
    return best


Launch = tuple[Callable[[], Any], Callable[[Any], Any]]  # what comes before the clock starts, and what is timed


def captured(bound: Bound, tensors: Tensors) -> dict[str, Launch]:
    """The three passes of a provider as replays of CUDA graphs on static tensors; raises where it cannot be captured."""
    inputs, g = tensors
    side, fn = torch.cuda.Stream(), bound.fn
    side.wait_stream(torch.cuda.current_stream())
    with bound.backend():
        with torch.cuda.stream(side):  # everything lazy happens before a capture, on the stream of the capture
            for _ in range(3):
                step(fn, tensors)
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graphs = {which: torch.cuda.CUDAGraph() for which in PASSES}
        with torch.cuda.graph(graphs["forward"], stream=side):
            y = fn(*inputs)
        # What forward saved stays in its graph's own memory pool, so this one can be replayed any number of times.
        with torch.cuda.graph(graphs["backward"], stream=side):
            found = gradients(y, inputs, g)
        with torch.cuda.graph(graphs["both"], stream=side):
            results = step(fn, tensors)
    alive = (y, found, results)
    return {which: (lambda: alive, lambda _, graph=graph: graph.replay()) for which, graph in graphs.items()}  # type: ignore[misc]


def launched(bound: Bound, tensors: Tensors) -> dict[str, Launch]:
    """The three passes as plain calls, for a provider that synchronises and so cannot be captured."""
    inputs, g = tensors
    fn = bound.fn
    return {
        "forward": (lambda: None, lambda _: fn(*inputs)),
        "backward": (lambda: fn(*inputs), lambda y: gradients(y, inputs, g)),
        "both": (lambda: None, lambda _: step(fn, tensors)),
    }


class ColdCache:
    """Writes a buffer of several times the L2 cache: what follows reads from memory."""

    def __init__(self) -> None:
        size = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 0) or 2**26
        self.buffer = torch.empty(4 * size, dtype=torch.int8, device="cuda")

    def __call__(self) -> None:
        self.buffer.zero_()


def _seconds(launch: Launch, cold: ColdCache) -> float:
    """One launch between two device events, after the L2 cache was written over."""
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    prepared = launch[0]()
    cold()
    before.record()
    launch[1](prepared)
    after.record()
    after.synchronize()
    return before.elapsed_time(after) / 1e3


def gpu_rounds(
    functions: dict[str, Bound], tensors: Tensors, budget: float, most: int = 100
) -> tuple[dict[str, dict[str, list[float]]], set[str]]:
    """As :func:`cpu_rounds`, by device events around the replay of a CUDA graph, the L2 cache cold; and the names of the
    providers that could not be captured and were launched plainly."""
    cold, plain = ColdCache(), set()
    launches: dict[str, dict[str, Launch]] = {}
    for name, bound in sorted(functions.items(), key=lambda item: item[0] == "core"):  # core last: it may spoil a capture
        try:
            launches[name] = captured(bound, tensors)
        except RuntimeError:
            torch.cuda.synchronize()
            plain.add(name)
            launches[name] = launched(bound, tensors)

    def turn(name: str) -> dict[str, float]:
        with functions[name].backend():
            return {which: _seconds(launches[name][which], cold) for which in PASSES}

    names = list(functions)
    for name in names:
        turn(name)
    start = time.perf_counter()
    for name in names:
        turn(name)
    rounds = max(10, min(most, int(budget / (time.perf_counter() - start))))
    times: dict[str, dict[str, list[float]]] = {name: {which: [] for which in PASSES} for name in functions}
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            for which, value in turn(name).items():
                times[name][which].append(value)
    return times, plain


# Functions without a backward pass, such as a product


Calls = Sequence[Callable[[], Any]]  # one function on as many copies of its weights: each call finds its own cold


def _in_turns(
    reading: Callable[[str], float], names: Sequence[str], budget: float, least: int, most: int
) -> dict[str, list[float]]:
    """Readings of each by rounds, in an order that rotates, after one that warms up."""
    start = time.perf_counter()
    for name in names:
        reading(name)
    rounds = max(least, min(most, int(budget / max(time.perf_counter() - start, 1e-9))))
    times: dict[str, list[float]] = {name: [] for name in names}
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:  # type: ignore[operator]
            times[name].append(reading(name))
    return times


#: Seconds of the fastest first call below which a case is called before the clock starts.
SHORT = 5e-3
#: Seconds after which threads that still run are taken for work, not for a pool that waits for some.
SETTLED = 0.1


def settle() -> None:
    """Waits until no other thread of this process runs: those of a pool spin for milliseconds after their work (libgomp's 6), on
    the cores that the next pool is measured on. At once where the system does not tell."""
    own, end = f"/{threading.get_native_id()}/", time.perf_counter() + SETTLED
    while time.perf_counter() < end:
        running = False
        for path in glob.glob("/proc/self/task/*/stat"):
            with contextlib.suppress(OSError):  # a thread may end meanwhile
                state = Path(path).read_text().rpartition(")")[2].split()[0]
                running |= state == "R" and own not in path
        if not running:
            return
        time.sleep(5e-4)


def called(calls: dict[str, Calls], budget: float, pools: dict[str, str] | None = None) -> dict[str, list[float]]:
    """Seconds of a plain call, per function and round; of many calls together where they are short.

    Where one of them is short all are called before the clock starts, too: their weights are as warm as those of one that is used
    again and again. Where ``pools`` says whose threads functions run on, those of one pool follow each other, and the next waits
    until they are still.
    """
    pools = pools or {}
    once, running = {}, ""
    for name, copies in calls.items():
        start = time.perf_counter()
        copies[0]()
        once[name] = time.perf_counter() - start
    counts = {name: max(1, min(100, int(1e-3 / max(seconds, 1e-6)))) for name, seconds in once.items()}
    short = min(once.values(), default=0.0) < SHORT

    def reading(name: str) -> float:
        nonlocal running
        if pools.get(name, "") != running:
            settle()
            running = pools.get(name, "")
        copies, count = calls[name], counts[name]
        if short:
            copies[-1]()
        start = time.perf_counter()
        for i in range(count):
            copies[i % len(copies)]()
        return (time.perf_counter() - start) / count

    enabled = gc.isenabled()
    gc.disable()
    try:
        return _in_turns(reading, sorted(calls, key=lambda name: pools.get(name, "")), budget, 3, 200)
    finally:
        if enabled:
            gc.enable()


class Replay:
    """All of ``copies``, ten calls or so at least, as one CUDA graph between two device events; dry, without a GPU, as plain calls
    by the clock."""

    def __init__(self, copies: Calls) -> None:
        self.copies, self.graph = copies, None
        if torch.cuda.is_available():
            self.copies = list(copies) * max(1, 10 // len(copies))
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):  # everything lazy happens before a capture, on the stream of the capture
                for _ in range(2):
                    copies[0]()
            torch.cuda.current_stream().wait_stream(side)
            torch.cuda.synchronize()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, stream=side):
                for call in self.copies:
                    call()

    def __call__(self) -> float:
        """Seconds of one call."""
        if self.graph is None:
            start = time.perf_counter()
            for call in self.copies:
                call()
            return (time.perf_counter() - start) / len(self.copies)
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        self.graph.replay()
        after.record()
        after.synchronize()
        return before.elapsed_time(after) / 1e3 / len(self.copies)


def replayed(calls: dict[str, Calls], budget: float) -> tuple[dict[str, list[float]], dict[str, str]]:
    """As :func:`called`, by replays of CUDA graphs that go over all copies of the weights; and why some could not be captured."""
    replays: dict[str, Replay] = {}
    failed: dict[str, str] = {}
    for name, copies in calls.items():
        try:
            replays[name] = Replay(copies)
        except RuntimeError as error:
            failed[name] = f"cannot be captured in a CUDA graph: {str(error).splitlines()[0]}"
            if torch.cuda.is_available():
                torch.cuda.synchronize()
    least = 5 if torch.cuda.is_available() else 1
    return (_in_turns(lambda name: replays[name](), list(replays), budget, least, 50) if replays else {}), failed


def matmul_speed(device: str) -> float:
    """Operations per second of torch's square product, in bfloat16 on a GPU, in fp32 on the CPU."""
    size, dtype = (8192, torch.bfloat16) if device == "cuda" else (1024, torch.float32)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    times = replayed({"": [lambda: a @ b] * 3}, 0.3)[0] if device == "cuda" else called({"": [lambda: a @ b]}, 0.3)
    return 2 * size**3 / statistics.median(times[""])


def copy_bandwidth(device: str, elements: int = 2**28) -> float:
    """Bytes per second of copying a large fp32 tensor on ``device``, read and written bytes counted: the ceiling."""
    a = torch.randn(elements, device=device)
    b = torch.empty_like(a)
    if device == "cuda":
        cold, copy = ColdCache(), (lambda: None, lambda _: b.copy_(a))
        seconds = statistics.median([_seconds(copy, cold) for _ in range(23)][3:])
    else:
        samples = []
        for _ in range(5):
            start = time.perf_counter()
            b.copy_(a)
            samples.append(time.perf_counter() - start)
        seconds = statistics.median(samples)
    return 2 * a.nbytes / seconds


def read_bandwidth(nbytes: int) -> float:
    """Bytes per second that torch's threads read of a buffer of so many, again and again: of two sums and a product with a vector
    the fastest reading, as a roof is what can be reached."""
    data = torch.ones(nbytes // 8, dtype=torch.float64)
    matrix, vector = data.view(torch.float32).zero_().view(-1, 4096), torch.ones(4096)
    readers = {"sum": data.sum, "integers": data.view(torch.int64).sum, "product": lambda: matrix @ vector}
    times = called({name: [reader] for name, reader in readers.items()}, 0.3)
    return nbytes / min(min(samples) for samples in times.values())


def int8_speed(size: int = 1024) -> float:
    """Operations per second of oneDNN's int8 product of square matrices that stay in the cache: the fastest reading."""
    codes = torch.randint(-128, 128, (size, size), dtype=torch.int8)
    data, scale, zeros = torch.ops.onednn.qlinear_prepack(codes, None), torch.ones(size), torch.zeros(size, dtype=torch.int32)
    x = codes.view(torch.uint8)  # a fast product on every instruction set

    def product() -> torch.Tensor:
        found: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            x, 1.0, 0, data, scale, zeros, None, 1.0, 0, torch.int8, "none", [], ""
        )
        return found

    return 2 * size**3 / min(called({"": [product]}, 0.3)[""])


# One case


def summary(samples: list[float]) -> dict[str, Any]:
    """Median, smallest and quartiles of some seconds, in microseconds."""
    ordered = sorted(samples)
    low, high = (ordered[round(q * (len(ordered) - 1))] for q in (0.25, 0.75))
    median = statistics.median(ordered)
    return {"median_us": median * 1e6, "min_us": ordered[0] * 1e6, "q1_us": low * 1e6, "q3_us": high * 1e6, "rounds": len(ordered)}


def run_case(
    method: Method, case: Case, device: str, budget: float = 2.0, copy: float | None = None
) -> tuple[list[dict[str, Any]], dict[str, dict[str, list[float]]]]:
    """The result rows of one case, one per provider, and the samples behind them.

    A provider that cannot serve, raises, or gives another result than the reference has a row with the reason and no time.
    """
    torch._dynamo.reset()
    rows: list[dict[str, Any]] = []
    tensors: Tensors = method.tensors(case, device)
    g = tensors[1]
    want = {b: step(method.reference(case, b), tensors) for b in {provider.boundary for provider in PROVIDERS}}
    functions: dict[str, Bound] = {}
    for provider in PROVIDERS:
        row: dict[str, Any] = {"method": method.name, "case": case.name, "provider": provider.name, "device": device}
        rows.append(row)
        able, reason = provider.available(device)
        fn = provider.build(method, case) if able else None
        if fn is None:
            row.update(status="unavailable", reason=reason or f"{method.name}: {NO_SUCH_OP}")
            continue
        bound = Bound(fn, provider)
        try:
            with warnings.catch_warnings(), bound.backend():
                warnings.simplefilter("ignore")
                start = time.perf_counter()
                got = step(fn, tensors)
                if device == "cuda":
                    torch.cuda.synchronize()
                row["first_call_s"] = time.perf_counter() - start
                if method.inputs is None:
                    wrong = check(case, got, want[provider.boundary], g, provider.exact and method.exact)
                else:
                    wrong = check_alike(got, want[provider.boundary])
                del got
                if not wrong and provider.name in ("eager", "compiled") and method.timed is not None:
                    timed = provider.build(dataclasses.replace(method, baseline=method.timed), case)
                    fn = timed if timed is not None else fn
                    bound = Bound(fn, provider)
                    step(fn, tensors)
                if not wrong:
                    row["saved_bytes"], row["peak_bytes"] = saved_bytes(fn, tensors), peak_bytes(fn, tensors)
                    step(fn, tensors)  # the hooks may have made the compiler look again
        except Exception as error:  # a provider that raises is a result, and no reason to lose the others
            row.update(status="failed", reason=f"raised {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
            continue
        if provider.name == "core" and method.core_note:
            row["note"] = method.core_note
        if wrong:
            row.update(status="failed", reason=wrong)
        else:
            row["status"] = "ok"
            functions[provider.name] = bound
    want.clear()
    plain: set[str] = set()
    share = None
    if device == "cuda":
        times, plain = gpu_rounds(functions, tensors, budget)
    else:
        times, share = undisturbed_rounds(functions, tensors, budget)
    for row in rows:
        if row["provider"] in times:
            if share is not None:
                row["waited"] = share
            if row["provider"] in plain:
                row["note"] = "synchronises, so it is launched without a CUDA graph"
            row["passes"] = {which: summary(times[row["provider"]][which]) for which in PASSES}
            for which, one in row["passes"].items():
                one["bytes_per_s"] = traffic(case, which) / one["median_us"] * 1e6
                if copy:
                    one["of_copy"] = one["bytes_per_s"] / copy
    return rows, times
