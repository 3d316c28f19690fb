"""``python -m fastq tune`` on the kernels that it times, in Triton's interpreter."""

import sys
from pathlib import Path

import pytest

from fastq.engine.configurations import KINDS
from fastq.tune import rows_of

sys.path.insert(0, str(Path(__file__).parent))
from products import interpreted

pytest.importorskip("triton")


def test_every_kind_is_held_against_the_reference_before_it_is_timed() -> None:
    lines = interpreted("tune")
    assert lines == [f"tune {kind} {rows}: 32 copies" for kind in KINDS for rows in rows_of(kind)]
