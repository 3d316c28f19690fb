"""How long ``import fastq.runtime`` takes in a fresh process, NumPy included. Fails where the processor works on it for 150 ms or
more, or where torch is imported; the time on the clock, which other processes lengthen, is printed beside it."""

import statistics
import subprocess
import sys

LIMIT, RUNS = 150, 9
SCRIPT = """
import sys, time
start = time.perf_counter(), time.process_time()
import fastq.runtime
print(*(1000 * (end - begin) for begin, end in zip(start, (time.perf_counter(), time.process_time()))))
assert "torch" not in sys.modules
"""


def main() -> int:
    runs = [subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True) for _ in range(RUNS)]
    times = [tuple(map(float, run.stdout.split())) for run in runs[1:]]  # the first one reads the files
    clock, processor = (statistics.median(column) for column in zip(*times, strict=True))
    print(
        f"import fastq.runtime: {clock:.0f} ms, {processor:.0f} ms of the processor; medians of {len(times)}, the limit is {LIMIT}"
    )
    return int(processor >= LIMIT)


if __name__ == "__main__":
    sys.exit(main())
