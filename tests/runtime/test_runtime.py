"""``fastq.runtime`` where there may be no torch: outputs that torch gave, whatever the threads and callers; errors; the shell."""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import fastq
from fastq import runtime

FIXTURES = Path(__file__).parent / "fixtures"
NAMES = sorted(path.stem for path in FIXTURES.glob("*.safetensors"))
CONVOLUTIONS = FIXTURES / "convolutions.safetensors"
TORCH = importlib.util.find_spec("torch") is not None


def fixture(name):
    arrays = np.load(FIXTURES / f"{name}.npz")
    return FIXTURES / f"{name}.safetensors", arrays["x"], arrays["y"]


@pytest.mark.parametrize("threads", [1, 2, 3, None])
@pytest.mark.parametrize("name", NAMES)
def test_the_outputs_are_those_of_torch(name, threads):
    path, x, y = fixture(name)
    for source in (path, str(path), path.read_bytes()):
        network = runtime.load(source, threads=threads)
    assert network(x).tobytes() == y.tobytes() and network.threads == (threads or len(os.sched_getaffinity(0)))
    assert network(np.tile(x, (40,) + (1,) * (x.ndim - 1))).tobytes() == np.tile(y, (40, 1)).tobytes()
    assert network(x[:0]).shape == (0, y.shape[1]) == network.output_shape(x[:0].shape)


def test_any_strides():
    path, x, y = fixture("convolutions")
    network = runtime.load(path)
    misaligned = np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(np.float32).reshape(x.shape)
    assert not misaligned.flags.aligned
    for given in (
        np.asfortranarray(x),
        x[::-1][::-1],
        np.repeat(x, 2, 2)[:, :, ::2],
        misaligned,
        np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2),
    ):
        before = given.tobytes()
        assert network(given).tobytes() == y.tobytes() and given.tobytes() == before
    with_nan = x.copy()
    with_nan[0, 0, 0, 0] = np.nan
    assert network(with_nan)[1:].tobytes() == y[1:].tobytes()


def test_what_a_network_says():
    network = runtime.load(CONVOLUTIONS, threads=2)
    assert network.layers == ("stem.0", "wide", "grouped", "depthwise.0", "dilated", "last")
    assert network.input_shape == (None, 3, None, None)
    assert repr(network) == "fastq.runtime.Network(6 layers, takes (None, 3, None, None), 2 thread(s))"
    one, two = (network.memory((batch, 3, 14, 17)) for batch in (1, 2))
    assert 0 < one < two
    for shape in (network.input_shape, (1, 3, 14.0, 17), (2**63, 3, 14, 17), None):
        for question in (network.output_shape, network.memory):
            with pytest.raises(ValueError, match="Network: shape must have a number for each axis"):
                question(shape)
    with pytest.raises(ValueError, match="Network: the input: takes"):
        network.output_shape((1, 3, 14))


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ([[1.0]], TypeError, "Network: x must be a NumPy array, got list"),
        (np.zeros((1, 3, 14, 17)), TypeError, "Network: x must be of float32, got float64; x.astype(numpy.float32) makes one"),
        (np.zeros((1, 3, 14, 17), np.float16), TypeError, "Network: x must be of float32, got float16"),
        (np.zeros((1, 3, 14, 17), ">f4"), TypeError, "Network: x must be of float32, got >f4"),
        (np.zeros((1, 3, 14, 17), np.uint8), TypeError, "Network: x must be of float32, got uint8"),
        (np.zeros((3, 14, 17), np.float32), ValueError, "Network: x must have shape (B, 3, H, W), got (3, 14, 17)"),
        (np.zeros((1, 4, 14, 17), np.float32), ValueError, "Network: x must have shape (B, 3, H, W), got (1, 4, 14, 17)"),
        (np.zeros((1, 3, 0, 17), np.float32), ValueError, "Network: the input: an axis must be from 1 to 2147483647, got 0"),
        (np.zeros((1, 3, 24, 17), np.float32), ValueError, "Network: last: takes (B, 40), got (1, 100)"),
        (np.zeros((1, 3, 2, 2), np.float32), ValueError, "Network: wide: a kernel that reaches over 9 does not fit the padded"),
    ],
)  # fmt: skip
def test_inputs_that_do_not_fit(x, error, message):
    with pytest.raises(error) as caught:
        runtime.load(CONVOLUTIONS)(x)
    assert str(caught.value).startswith(message)


def test_files_that_are_none(tmp_path):
    data = CONVOLUTIONS.read_bytes()
    for broken in (b"", data[:-1], data + b"\0", data.replace(b"stem", b"stam", 1), b"PK\3\4" * 40):
        with pytest.raises(runtime.FormatError, match=r"^load: the data is "):
            runtime.load(broken)
    assert issubclass(runtime.FormatError, ValueError)
    with pytest.raises(FileNotFoundError):
        runtime.load(tmp_path / "absent")
    for threads, error in ((0, ValueError), (1025, ValueError), ("2", TypeError), (True, TypeError)):
        with pytest.raises(error, match="load: threads must be"):
            runtime.load(data, threads=threads)


@pytest.mark.parametrize("threads", [1, 3])
def test_many_callers_at_once(threads):
    path, x, y = fixture("pools")
    network, wrong = runtime.load(path, threads=threads), []

    def call(i):
        for batch in (x, x[i % 5 :], np.tile(x, (i + 1, 1, 1, 1))) * 4:
            expected = np.tile(y, (len(batch) // 5, 1)) if len(batch) >= 5 else y[i % 5 :]
            if network(batch).tobytes() != expected.tobytes():
                wrong.append(i)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(call, range(6)))
    assert wrong == []


def test_the_interpreter_runs_meanwhile():
    """Something else happens well within a long call: it does not hold the lock."""
    path, x, _ = fixture("convolutions")
    network, span = runtime.load(path, threads=1), []
    batch = np.tile(x, (20, 1, 1, 1))
    start = time.perf_counter()
    network(batch)
    batch = np.tile(batch, (int(0.2 / (time.perf_counter() - start)) + 2, 1, 1, 1))

    def call():
        span.append(time.perf_counter())
        network(batch)
        span.append(time.perf_counter())

    caller = threading.Thread(target=call)
    caller.start()
    seen = []
    while len(span) < 2:
        seen.append(time.perf_counter())
        time.sleep(0.001)
    caller.join()
    begin, end = span
    assert any(begin + 0.25 * (end - begin) < t < begin + 0.75 * (end - begin) for t in seen)


def test_a_forked_process_has_threads_of_its_own():
    script = f"""
import os, numpy as np
from fastq import runtime
arrays = np.load({str(FIXTURES / "convolutions.npz")!r})
network = runtime.load({str(CONVOLUTIONS)!r}, threads=2)
x = np.tile(arrays["x"], (40, 1, 1, 1))
y = network(x)
child = os.fork()
if child == 0:
    os._exit(0 if network(x).tobytes() == y.tobytes() else 3)
assert os.waitpid(child, 0)[1] == 0 and network(x).tobytes() == y.tobytes()
"""
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", script], timeout=60).returncode == 0


def test_threads_that_the_system_does_not_start_are_done_without():
    script = f"""
import resource, numpy as np
from fastq import runtime
arrays = np.load({str(FIXTURES / "convolutions.npz")!r})
x, y = (np.tile(arrays[name], (40,) + (1,) * (arrays[name].ndim - 1)) for name in "xy")
network = runtime.load({str(CONVOLUTIONS)!r}, threads=1024)
runtime.load({str(CONVOLUTIONS)!r}, threads=1)(x)  # so that there is memory for a call
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 256 * 2**20, resource.getrlimit(resource.RLIMIT_AS)[1]))
assert network(x).tobytes() == y.tobytes() == network(x).tobytes()
started = len(__import__("os").listdir("/proc/self/task"))
assert 1 < started < 1024, started
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def with_header(change):
    """The file of convolutions with another header."""
    data = CONVOLUTIONS.read_bytes()
    size = int.from_bytes(data[:8], "little")
    entries = json.loads(data[8 : 8 + size])
    header = json.loads(entries["__metadata__"]["fastq"])
    change(header)
    header["checksum"] = "0" * 64

    def written():
        entries["__metadata__"]["fastq"] = json.dumps(header)
        text = json.dumps(entries).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + size :]

    header["checksum"] = hashlib.sha256(written()).hexdigest()
    return written()


def test_a_layer_that_runs_many_times_is_packed_once(monkeypatch):
    names = []

    class Counting(runtime.Builder):
        def weight(self, name, *arguments):
            names.append(name)
            return super().weight(name, *arguments)

    def repeat(header):
        steps = header["program"]["steps"]
        steps += [next(step for step in steps if step.get("layer") == "wide")] * 3

    monkeypatch.setattr(runtime, "Builder", Counting)
    network, (_, x, y) = runtime.load(with_header(repeat)), fixture("convolutions")
    assert network.layers.count("wide") == 4 and names == list(network.layers[:-3])
    assert network(x).tobytes() == y.tobytes()


def test_it_imports_no_torch():
    script = "import sys; sys.modules['safetensors'] = None; import fastq.runtime; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_without_torch_the_rest_says_what_to_install():
    script = "import sys; sys.modules['torch'] = None; import fastq; fastq.runtime.load; fastq.lsq"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == (
        "ImportError: fastq.lsq needs the package torch, which is not installed: pip install 'fastq[torch]', and build fastq "
        "again. fastq.runtime runs saved networks without it"
    )


def test_without_torch_what_is_listed_is_there():
    script = "import sys; sys.modules['torch'] = None\nfrom fastq import *\nimport fastq, pydoc\npydoc.render_doc(fastq)\n"
    script += "assert all(hasattr(fastq, name) for name in dir(fastq)) and fastq.__all__ and not hasattr(fastq, 'nonsense')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(TORCH, reason="torch is installed")
def test_info_and_the_commands_that_need_torch():
    done = subprocess.run([sys.executable, "-m", "fastq", "info"], capture_output=True, text=True)
    assert done.returncode == 0 and "torch is not installed; pip install 'fastq[torch]'" in done.stdout
    assert "saved networks run on NumPy arrays" in done.stdout and done.stdout.count("not without torch") == 2
    assert "Error" not in done.stdout
    done = subprocess.run([sys.executable, "-m", "fastq", "demo"], capture_output=True, text=True)
    advice = "demo: needs the package torch; install it with: pip install 'fastq[torch]', and build fastq again\n"
    assert (done.returncode, done.stderr) == (2, advice)
    with pytest.raises(ImportError, match=r"fastq\.lsq needs the package torch"):
        fastq.lsq  # noqa: B018
