"""Benchmarks of fastq: registries of cases and providers, measured interleaved, checked first, written as JSON.

``python -m benchmarks --help`` measures here (``make bench``); ``python -m benchmarks.gpu --help`` is ``make gpu``.

============  ====================================================================================================
registry.py   what is measured of the quantizers: methods x cases x providers x passes, and the goals
products.py   what is measured of the integer engine: kinds x layers x rows, and the goals
peers.py      who computes the products: fastq's kernels, torch's, other packages'
measure.py    how: checked against the reference, interleaved rounds, saved and peak bytes, first call
session.py    a run of the quantizers; integer.py: of the products; forced.py: of those with an instruction set forced;
networks.py   of whole networks; training.py: of training steps
results.py    the files under results/: their schema, the machine, the commit
report.py     ratios, goals, table, plot; integer_report.py, integer_plot.py: the products'
readme.py     README's blocks and results/PENDING.md, generated from the files
gpu.py        one entry for a machine with a GPU and no network: environment, build, tests, sanitizers, benchmarks
============  ====================================================================================================

Nothing here but torch, triton and numpy is needed to measure; rich and matplotlib make the output nicer.
"""
