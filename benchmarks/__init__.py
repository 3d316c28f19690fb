"""Benchmarks of fastq: one registry of cases and providers, measured interleaved, checked first, written as JSON.

``python -m benchmarks --help`` measures here (``make bench``); ``python -m benchmarks.gpu --help`` is ``make gpu``.

=============  =====================================================================================
registry.py    what is measured: methods x cases x providers x passes, and the goals
measure.py     how: checked against the reference, interleaved rounds, saved and peak bytes, first call
results.py     the files under results/: their schema, the machine, the commit
report.py      ratios, goals, table, plot
readme.py      README's block and results/PENDING.md, generated from the files
gpu.py         one entry for a machine with a GPU and no network: environment, build, tests, sanitizers, benchmarks
=============  =====================================================================================

Nothing here but torch, triton and numpy is needed to measure; rich and matplotlib make the output nicer.
"""
