"""How long ``import fastq.runtime`` takes in a fresh process, NumPy included; fails where that is 150 ms, or torch comes with it.

What is limited is the least of several runs, for other processes on the machine only add to it. Where NumPy alone leaves no room
for it, on a slow machine, what is limited is fastq's own part. The clock's median is printed beside them.
"""

import statistics
import subprocess
import sys

LIMIT, OWN_LIMIT, RUNS = 150, 40, 12
SCRIPT = """
import sys, time
start = time.perf_counter()
import numpy
middle = time.perf_counter()
import fastq.runtime
end = time.perf_counter()
print(1000 * (end - start), 1000 * (end - middle))
assert "torch" not in sys.modules
"""


def main() -> int:
    runs = [subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True) for _ in range(RUNS)]
    whole, own = zip(*(map(float, run.stdout.split()) for run in runs), strict=True)
    print(
        f"import fastq.runtime: {min(whole):.0f} ms (the least of {RUNS}; median {statistics.median(whole):.0f}), {min(own):.0f} "
        f"of them without NumPy; the limit is {LIMIT}, and {OWN_LIMIT} without"
    )
    room = min(all_ - part for all_, part in zip(whole, own, strict=True)) < LIMIT - OWN_LIMIT
    return int(min(own) >= OWN_LIMIT or (room and min(whole) >= LIMIT))


if __name__ == "__main__":
    sys.exit(main())
