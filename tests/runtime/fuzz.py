"""Broken files for ``fastq.runtime.load``: each is refused with FormatError, or loads and runs; anything else ends this.

    python tests/runtime/fuzz.py [--sanitize] [--files 100000] [--seed 0]

Files come from the fixtures: bytes changed, cut, put in and copied elsewhere; numbers of the headers replaced by hostile ones, keys
removed and swapped, tensors' places and contents changed, mostly with the checksum made right again, so that the checks behind it
are reached. What loads is run on a small input of the shape that it asks for, unless that takes more than 4 MB. ``--sanitize``
builds the native module with the address and undefined behaviour sanitizers and runs with that.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import multiprocessing
import os
import random
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MOST = 4 << 20
CHECKSUM = re.compile(rb'(\\"checksum\\":\s?\\")([0-9a-f]{64})(\\")')
NUMBERS = [
    0, 1, -1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 63, 64, 127, 128, 255, 256, 1000, 65535, 65536, 2**31 - 1, 2**31, 2**32, 2**62,
    2**63 - 1, 2**63, 2**64, 10**30, -128, -129, -(2**31), -(2**63), 0.5, 1e-300, 1e300, float("inf"), float("nan"),
]  # fmt: skip
OTHERS = [
    None, True, False, "", "input", "relu", "conv", "linear", "U8", "F32", "BF16", "I64", [], {}, [1], [0, 0], [1, 1, 1, 1],
    [2**40, 1], [[[[]]]], {"op": "input"},
]  # fmt: skip


def with_checksum(data: bytes) -> bytes:
    """``data`` with the checksum that it should have, where it has a place for one."""
    match = CHECKSUM.search(data)
    if match is None:
        return data
    zeroed = data[: match.start(2)] + b"0" * 64 + data[match.end(2) :]
    return data[: match.start(2)] + hashlib.sha256(zeroed).hexdigest().encode() + data[match.end(2) :]


class File:
    """An intact file in its parts; ``shape``: of an input."""

    def __init__(self, path: Path) -> None:
        self.data = path.read_bytes()
        self.shape = np.load(path.with_suffix(".npz"))["x"].shape
        size = int.from_bytes(self.data[:8], "little")
        self.entries = json.loads(self.data[8 : 8 + size])
        self.header = json.loads(self.entries.pop("__metadata__")["fastq"])
        self.body = self.data[8 + size :]

    def written(self, header: Any, entries: Any, body: bytes) -> bytes:
        """A file of these parts, with a checksum that is right."""
        said = {"__metadata__": {"fastq": json.dumps({**header, "checksum": "0" * 64} if isinstance(header, dict) else header)}}
        text = json.dumps({**said, **entries}).encode()
        return with_checksum((len(text)).to_bytes(8, "little") + text + body)


def somewhere(draw: random.Random, value: Any) -> tuple[Any, Any]:
    """A list or dict in ``value``, which is one that is not empty, and a key of it."""
    while True:
        key = draw.randrange(len(value)) if isinstance(value, list) else draw.choice(list(value))
        if not isinstance(value[key], (list, dict)) or not value[key] or draw.random() < 0.15:
            return value, key
        value = value[key]


def changed(draw: random.Random, value: Any, times: int) -> Any:
    """JSON with some of it replaced, removed, swapped or copied elsewhere."""
    value = json.loads(json.dumps(value))  # a copy, in a tenth of deepcopy's time
    for _ in range(times):
        if not value:
            break
        (holder, key), (other, of_other) = somewhere(draw, value), somewhere(draw, value)
        old, kind = holder[key], draw.randrange(8)
        if kind == 0:
            del holder[key]
        elif kind == 1:
            holder[key] = copy.deepcopy(other[of_other])
        elif kind == 2:
            holder[key] = copy.deepcopy(draw.choice(OTHERS))
        elif kind == 3 and isinstance(old, list) and old:
            holder[key] = old * 2 if draw.random() < 0.5 else old[:-1]
        elif type(old) is int and kind < 6:
            holder[key] = old + draw.choice((-16, -8, -2, -1, 1, 2, 8, 16))
        else:
            holder[key] = draw.choice(NUMBERS)
    return value


def broken_bytes(draw: random.Random, data: bytes) -> bytes:
    """Bits flipped, pieces cut out, put in, copied elsewhere."""
    out = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 4, 16))):
        if not out:
            break
        at, length, kind = draw.randrange(len(out)), draw.choice((1, 2, 4, 8, 64, 512)), draw.randrange(7)
        if kind == 0:
            out[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            out[at] = draw.randrange(256)
        elif kind == 2:
            del out[at:]
        elif kind == 3:
            del out[at : at + length]
        elif kind == 4:
            out[at:at] = draw.randbytes(length)
        elif kind == 5:
            source = draw.randrange(len(out))
            out[at : at + length] = out[source : source + length]
        else:
            out[:8] = draw.choice(
                (0, 1, 2, max(len(out) - 8, 0), max(len(out) - 7, 0), len(out), 2**31, 2**63, 2**64 - 1)
            ).to_bytes(8, "little")
    return bytes(out)


def broken(draw: random.Random, file: File) -> bytes:
    """``file``, broken in one way or another."""
    kind = draw.randrange(10)
    if kind == 0:
        return broken_bytes(draw, file.data)
    if kind == 1:
        return with_checksum(broken_bytes(draw, file.data))
    header, entries, body = file.header, file.entries, file.body
    times = draw.choice((1, 1, 1, 1, 2, 3, 8))
    if kind == 2:
        header = changed(draw, header, times)
    elif kind < 6:
        header = {**header, "program": changed(draw, header["program"], times)}
    elif kind == 6:
        header = {**header, "layers": changed(draw, header["layers"], times)}
    elif kind == 7:
        entries = changed(draw, entries, times)
    elif kind == 8:  # two tensors change places, or what is in them
        names = list(entries)
        a, b = draw.choice(names), draw.choice(names)
        entries = {**entries, a: entries[b], b: entries[a]}
    else:
        out = bytearray(body)
        for _ in range(times):
            at = draw.randrange(len(out)) // 4 * 4
            out[at : at + 4] = draw.choice(
                (b"\0\0\0\0", b"\0\0\x80\x7f", b"\0\0\xc0\x7f", b"\xff\xff\xff\xff", b"\1\0\0\0", draw.randbytes(4))
            )
        body = bytes(out[: len(body)])
    return file.written(header, entries, body)


def shape_for(network: Any, own: tuple[int, ...], draw: random.Random) -> tuple[int, ...]:
    """An input's: mostly the one that the intact file takes, else a small one that ``network`` may take."""
    if draw.random() < 0.8:
        return (draw.choice((1, 2)), *own[1:])
    return tuple(n or draw.choice((1, 2, 6, 9, 14)) for n in network.input_shape or (None,) * 4)


def some(first: int, last: int, seed: int) -> Counter[str]:
    """What became of files [first, last)."""
    from fastq import runtime

    files = [File(path) for path in sorted((HERE / "fixtures").glob("*.safetensors"))]
    became: Counter[str] = Counter()
    for number in range(first, last):
        draw = random.Random(f"{seed}/{number}")
        file = draw.choice(files)
        data = broken(draw, file)
        try:
            try:
                network = runtime.load(data, threads=1)
            except runtime.FormatError as error:
                became["refused"] += 1
                if "\n" in str(error):
                    raise AssertionError("a message of several lines") from error
                continue
            became["loaded"] += 1
            shape = shape_for(network, file.shape, draw)
            try:
                if max(shape) > 4096 or network.memory(shape) > MOST:
                    became["large"] += 1
                    continue
                network(np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape))
                became["run"] += 1
            except ValueError:  # an input that does not fit, as the shape is guessed
                became["unfit"] += 1
        except BaseException as error:
            path = Path(f"fuzz-failure-{number}.safetensors")
            path.write_bytes(data)
            print(f"fuzz: seed {seed}, file {number}: {type(error).__name__}: {error}; it is in {path}", flush=True)
            raise
    return became


def fuzz(count: int, seed: int) -> int:
    """By as many processes as there are processors; what a file becomes depends on its number alone."""
    start, step = time.perf_counter(), 1000
    became: Counter[str] = Counter()
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        for part in pool.map(some, *zip(*((i, min(i + step, count), seed) for i in range(0, count, step)), strict=True)):
            became += part
    print(
        f"fuzz: {count} files, {became['refused']} refused, {became['loaded']} loaded and {became['run']} of these run "
        f"({became['unfit']} did not take the input, {became['large']} were too large), 0 other errors "
        f"(seed {seed}, {time.perf_counter() - start:.0f} s)"
    )
    return 0 if became["refused"] and became["run"] else 1


def sanitized(arguments: list[str]) -> int:
    """The same in a process whose native module has the sanitizers, and whose memory is theirs."""
    sys.path.insert(0, str(HERE.parent))
    from sources import module_of

    setup = module_of("setup.py")
    setup.Torch.of = staticmethod(lambda python: None)
    for flags in (setup.KERNEL_FLAGS, setup.CXX_FLAGS):
        flags[:] = [flag for flag in flags if flag != "-O3"]
    setup.CXX_FLAGS += ["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
    setup.ISAS = ("v3",)
    ninja, made, _ = setup.plan()
    ninja.folder = ROOT / "build" / "sanitized"
    ninja.lines = [
        line.replace(" -O3 ", " -O1 ").replace("-shared ", "-shared -fsanitize=address,undefined ") for line in ninja.lines
    ]
    ninja.lines = [line.replace("flags = -s ", "flags = ") for line in ninja.lines]
    ninja.run()
    compiler = os.environ.get("CXX") or shutil.which("g++") or "clang++"
    libraries = [
        subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "fastq", Path(folder) / "fastq", ignore=shutil.ignore_patterns("*.so", "lib", "__pycache__"))
        shutil.copy2(ninja.folder / made[0][0], Path(folder) / "fastq" / f"_runtime{sysconfig.get_config_var('EXT_SUFFIX')}")
        environment = {
            **os.environ, "LD_PRELOAD": " ".join(libraries), "PYTHONPATH": folder, "FASTQ_CPU_ISA": "v3",
            "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=2048:quarantine_size_mb=16"
        }  # fmt: skip
        return subprocess.run([sys.executable, str(Path(__file__).resolve()), *arguments], env=environment).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sanitize", action="store_true", help="with the address and undefined behaviour sanitizers")
    parser.add_argument("--files", type=int, default=100_000, metavar="N", help="how many (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of what is broken (default %(default)s)")
    args = parser.parse_args()
    if args.sanitize:
        return sanitized(["--files", str(args.files), "--seed", str(args.seed)])
    return fuzz(args.files, args.seed)


if __name__ == "__main__":
    sys.exit(main())
