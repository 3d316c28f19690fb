"""The arithmetic that kernels unpack fields with, csrc/methods/packing.h, against ``PackedWeight.unpack()``, element by element."""

from __future__ import annotations

import ctypes
import os
import subprocess

import pytest
import torch
from sources import ROOT, module_of

import fastq
from fastq.packing import LAYOUTS, field_bits

pytestmark = pytest.mark.source

WIDTHS = (2, 3, 4, 8)
#: At and beside whole bytes, whole tiles of each width (64, 128 and 256 elements), and none.
LENGTHS = (1, 7, 8, 9, 63, 64, 65, 127, 128, 129, 255, 256, 257, 300)


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = tmp_path_factory.mktemp("packing") / "packing.so"
    flags = ["-std=c++20", "-O2", *module_of("setup.py").EXACT, "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror"]
    source = str(ROOT / "tests/native/packing.cpp")
    subprocess.run([os.environ.get("CXX", "g++"), *flags, source, "-o", str(library)], check=True)
    loaded = ctypes.CDLL(str(library))
    loaded.bytes_of_row.restype = ctypes.c_int64
    return loaded


def packed(bits: int, k: int, layout: str) -> fastq.PackedWeight:
    """Every code of the width, in turn, at both ends of the row."""
    codes = (torch.arange(3 * k).view(3, k) % 2**bits - 2 ** (bits - 1)).to(torch.int8)
    codes[1] = codes[1].flip(0)
    return fastq.pack(codes, bits, scale=1.0).to("cpu", layout)


def pointer(t: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(t.data_ptr())


@pytest.mark.parametrize("layout", ["rows", "tiles"])  # `blocks`: tests/native/engine.cpp
@pytest.mark.parametrize("bits", WIDTHS)
def test_each_element_is_the_one_that_unpack_gives(header: ctypes.CDLL, bits: int, layout: str) -> None:
    for k in LENGTHS:
        weight, number = packed(bits, k, layout), LAYOUTS.index(layout)
        assert header.bytes_of_row(number, bits, ctypes.c_int64(k)) == weight.data.shape[1]
        found = torch.full((3, k), 99, dtype=torch.int32)
        for row, to in zip(weight.data, found, strict=True):
            header.fields_one_by_one(pointer(row), number, bits, ctypes.c_int64(k), pointer(to))
        assert torch.equal(found, weight.unpack().int())


@pytest.mark.parametrize("bits", WIDTHS)
def test_runs_of_any_length_from_every_eighth_element(header: ctypes.CDLL, bits: int) -> None:
    weight = packed(bits, 61, "rows")
    want = weight.unpack()[2].to(torch.int16)
    for first in range(0, 61, 8):
        for count in range(1, 62 - first):
            found = torch.full((count + 1,), 99, dtype=torch.int16)
            header.run_of_fields(pointer(weight.data[2]), bits, ctypes.c_int64(first), ctypes.c_int64(count), 5, pointer(found))
            assert torch.equal(found[:count], want[first : first + count] - 5) and found[count] == 99


@pytest.mark.parametrize("bits", WIDTHS)
def test_four_neighbours_of_a_tile_by_one_mask(header: ctypes.CDLL, bits: int) -> None:
    width = field_bits(bits, "tiles")
    for k in LENGTHS:
        weight = packed(bits, k, "tiles")
        tiles = weight.data.shape[1] // 64
        want = torch.nn.functional.pad(weight.unpack(), (0, tiles * 64 * 8 // width - k))  # what is beyond the row is 0
        for row, wanted in zip(weight.data, want, strict=True):
            for scaled in (0, 1):
                found = torch.empty_like(wanted)
                header.tile_by_words(pointer(row), width, ctypes.c_int64(tiles), scaled, pointer(found))
                assert torch.equal(found, wanted << (8 - width) if scaled else wanted)
