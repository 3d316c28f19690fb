"""How long ``import fastq.runtime`` takes in a fresh process, NumPy included; fails where that is 150 ms, or torch comes with it.

What is limited is the least of several runs in time of the processor: other processes on the machine only add to it. The clock's
median is printed beside it.
"""

import statistics
import subprocess
import sys

LIMIT, RUNS = 150, 12
SCRIPT = """
import sys, time
times = [(time.perf_counter(), time.process_time())]
import numpy
times.append((time.perf_counter(), time.process_time()))
import fastq.runtime
times.append((time.perf_counter(), time.process_time()))
print(*(1000 * (times[-1][i] - times[j][i]) for i, j in ((0, 0), (1, 0), (1, 1))))
assert "torch" not in sys.modules
"""


def main() -> int:
    runs = [subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True) for _ in range(RUNS)]
    clock, processor, own = zip(*(map(float, run.stdout.split()) for run in runs), strict=True)
    print(
        f"import fastq.runtime: {statistics.median(clock):.0f} ms on the clock (median of {RUNS}), of the processor "
        f"{min(processor):.0f} ms (the least), {min(own):.0f} of them without NumPy; the limit is {LIMIT}"
    )
    return int(min(processor) >= LIMIT)


if __name__ == "__main__":
    sys.exit(main())
