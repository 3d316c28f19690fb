"""The integer products are exact: against int64, at the extremes, and where torch's own int8 product saturates."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from device import DEVICE
from hypothesis import given, settings
from hypothesis import strategies as st

from fastq.deploy import integer


def int8(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-128, 128, shape, dtype=torch.int8, generator=generator, device="cpu").to(DEVICE)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 40), st.integers(0, 70), st.integers(1, 40), st.integers(0, 9))
def test_matmul_equals_int64(m, k, n, seed):
    a, w = int8(m, k, seed=seed), int8(n, k, seed=seed + 100)
    got = integer.matmul(a, w)
    assert got.dtype == torch.int32 and torch.equal(got.long(), a.long() @ w.long().t())


@pytest.mark.parametrize("k", [1024, 1025, 131071])  # the last fp32 length, the first fp64 one, the longest there is
@pytest.mark.parametrize("value", [127, -128])
def test_matmul_at_the_extremes(k, value):
    if value == -128 and k == 131071:
        assert k * 2**14 <= integer.INT32_MAX < (k + 1) * 2**14
    got = integer.matmul(torch.full((2, k), value, dtype=torch.int8), torch.full((3, k), -128, dtype=torch.int8))
    assert (got == -128 * value * k).all()


def test_long_sums_of_odd_products_are_exact():
    """127 * 127 is odd: from 1041 of them on the sum needs more than fp32's 24 bits."""
    for k in (1041, 5000, 131071):
        a = torch.full((2, k), 127, dtype=torch.int8)
        assert (integer.matmul(a, a) == 127 * 127 * k).all()


def test_what_could_overflow_is_refused():
    with pytest.raises(ValueError, match="131072 products of up to 16384 do not fit int32; at most 131071"):
        integer.matmul(torch.zeros(1, 131072, dtype=torch.int8), torch.zeros(1, 131072, dtype=torch.int8))
    with pytest.raises(TypeError, match=r"torch\.int8, got torch\.int32"):
        integer.matmul(torch.zeros(1, 2, dtype=torch.int32), int8(1, 2))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)), st.tuples(*[st.integers(0, 2)] * 4),
    st.tuples(st.integers(1, 2), st.integers(1, 2)), st.integers(-128, 127),
)  # fmt: skip
def test_conv_equals_float64(n, groups, channels, outs, kernel, stride, padding, dilation, fill):
    x, w = int8(n, groups * channels, 7, 8), int8(groups * outs, channels, *kernel, seed=1)
    got = integer.conv2d(x, w, stride, padding, dilation, groups, fill)
    # fp64 holds these sums exactly: at most 27 * 2^14
    ref = F.conv2d(F.pad(x.double(), padding, value=fill), w.double(), stride=stride, dilation=dilation, groups=groups)
    assert got.dtype == torch.int32 and torch.equal(got.double(), ref)


def test_conv_in_pieces(monkeypatch):
    x, w = int8(5, 3, 6, 6), int8(4, 3, 3, 3, seed=1)
    whole = integer.conv2d(x, w)
    monkeypatch.setattr(integer, "PATCH_ELEMENTS", 1000)
    assert torch.equal(integer.conv2d(x, w), whole)


def test_a_saturating_product_is_found_out(monkeypatch):
    def saturating(a, b):
        pairs = (a.long()[:, :, None] * b.long()[None]).clamp(-(2**13), 2**13)
        return pairs.sum(1).int()

    monkeypatch.setattr(torch, "_int_mm", saturating)
    assert not integer.probe()


def test_exact_without_vnni():
    code = (
        "import torch; from fastq.deploy import integer;"
        "a = torch.full((64, 64), 127, dtype=torch.int8); assert (integer.matmul(a, a) == 127 * 127 * 64).all();"
        "print(integer.int_mm_is_exact('cpu'))"
    )
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
