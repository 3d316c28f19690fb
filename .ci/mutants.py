"""The mutation gate: seeded faults in kernels, reference and package, each of which the tests must find.

A mutant is one place in one file, changed as a slip of the hand would, with the few tests that must fail. It is applied to a copy
of the tree in a temporary folder; the sources stay as they are. Native code is built there for x86-64-v2 alone, which every
machine runs (and which converts half precision by hand), with little optimisation, which does not change a result here (setup.py).
The CUDA kernels run as plain C++ (tests/cuda), the Triton kernels in its interpreter.

What was killed is written down beside this program, with a digest of the faulty file and of the tests that killed it. With
``--changed`` a mutant that was killed with these very files is not run again, but for one in twelve of them, others at each commit:
a kill also depends on files that no digest has.

Exit status: 0 all were killed; 1 some survived (a test is missing, or the mutant is no fault); 2 nothing was learned: the tests
fail without a mutant, the table does not fit the sources, a mutant does not compile.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import hashlib
import importlib.util
import json
import os
import queue
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
ISA = "v2"
#: By name, the digest of each mutant that was killed.
KILLED = ROOT / ".ci" / "killed.json"
#: Of those, one in so many is run again with --changed.
AGAIN = 12
#: What is built or cached, not written. Not asked of git: a checkout without its history is judged as well.
LEFT_OUT = (".git", ".venv*", ".*_cache", ".hypothesis", "__pycache__", "build", "dist", "lib", "*.so", "*.egg-info", "demo_output")

#: The methods whose loops some tests run, where that is not the one in their name: tests/ops/test_lsq.py runs lsq's. Those of
#: tests/native compile what they test. Any other may run anything.
LOOPS = {
    "oscillation": ("oscillation", "frozen_lsq", "dampening", "lsq"),
    "engine": ("gemm",),
    "functions": (),
    "packing": (),
    "philox": (),
}

# What kills: node ids, each a matter of seconds.
CHECKED = "tests/ops/test_lsq.py::test_equals_the_reference[lsq]"
SUMS = "tests/ops/test_lsq.py::test_sums_and_factors_are_the_formulas"
HALF_WAY = "tests/ops/test_lsq.py::test_results_half_way_between_16_bit_numbers_round_to_even"
DIVIDES = "tests/ops/test_lsq.py::test_the_step_divides"
THREADS = "tests/ops/test_lsq.py::test_sums_do_not_depend_on_threads"
PACKED = "tests/packing/test_packing.py"
FILES = "tests/packing/test_files.py"
FORMATS = "tests/packing/test_packed_formats.py"
STRIDES = "tests/ops/test_lsq.py::test_any_shape_and_stride"
REFERENCE = "tests/ops/test_lsq_reference.py"
PACT = "tests/ops/test_pact.py"
PACT_INF = "tests/ops/test_pact.py::test_not_finite_and_not_positive"
EWGS = "tests/ops/test_ewgs.py"
EWGS_HAND = "tests/ops/test_ewgs.py::test_the_formula_by_hand"
QIL = "tests/ops/test_qil.py"
QIL_HAND = "tests/ops/test_qil.py::test_weights_by_hand"
INTERVALS = "tests/nn/test_pact_ewgs_qil.py"
IN_TRITON = "::test_triton_equals_the_reference_in_its_interpreter"
TENSOR = "tests/ops/test_affine.py::test_per_tensor_is_cores"
CHANNEL = "tests/ops/test_affine.py::test_per_channel_is_cores_on_every_axis"
LEARNABLE = "tests/ops/test_affine.py::test_learnable_is_cores"
CUDA = "tests/cuda/test_emulation.py"
CUDA_LSQ = f"{CUDA}::test_same_bits_as_the_cpu"
CUDA_16_BITS = f"{CUDA}::test_a_16_bit_value_rounds_as_torch_rounds_it"
CUDA_STATE = f"{CUDA}::test_oscillations_have_the_bits_of_the_cpu"
TRITON = "tests/triton/test_interpreted.py::test_interpreted_kernels_equal_the_reference"
COMPILED_NAN = "tests/triton/test_compiled.py::test_nan_is_not_lost[80-skeleton]"
COMPILED = "tests/triton/test_compiled.py::test_division_is_rounded_to_nearest[80-skeleton]"
TRITON_FLOAT = "tests/triton/test_float_gemm.py::test_products_are_within_a_few_units_of_the_exact_ones"
TRITON_CONV = "tests/triton/test_int_conv.py::test_convolutions_have_the_bits_of_the_reference"
TRITON_CODES = "tests/triton/test_int_conv.py::test_codes_of_activations_have_the_bits_of_the_reference"
CUDA_MANY = f"{CUDA}::test_many_tensors_have_the_bits_of_the_cpu"
FOREACH = "tests/ops/test_foreach.py"
GROUPED = "tests/nn/test_weights.py"
INITIAL = "tests/nn/test_initializers.py"
CONVERTED = "tests/deploy/test_conversion.py"
TRAINED = "tests/nn/test_integer.py"
FUSION = "tests/deploy/test_fusion.py"
TRACE = "tests/ops/test_oscillation.py::test_a_trace_by_hand"
FIRST = "tests/ops/test_oscillation.py::test_the_first_switch_is_a_choice"
HALF_WAY_CODES = "tests/ops/test_oscillation.py::test_half_way_between_two_codes_the_even_one_is_frozen"
STEPS = "tests/ops/test_oscillation.py::test_the_cpu_has_the_bits_of_the_reference"
FREEZING = "tests/ops/test_oscillation.py::test_freezing_in_fixed_point_is_freezing_in_fp64"
FROZEN = "tests/ops/test_oscillation.py::test_a_frozen_weight_gets_no_gradient_and_its_share_goes_to_the_step"
DAMPENED = "tests/ops/test_oscillation.py::test_dampening_is_the_formula_by_autograd"
TRITON_GEMM = "tests/triton/test_int_gemm.py::test_interpreted_products_equal_int64_arithmetic_and_the_reference"
CONFIGURATIONS = "tests/triton/test_int_gemm.py::test_there_is_a_configuration_for_every_kind_and_number_of_rows"
TRITON_STEPS = "tests/ops/test_oscillation.py::test_triton_equals_the_reference_in_its_interpreter"
BORDERS = "tests/deploy/test_conversion.py::test_conv1d"
CHANNEL_ERROR = "tests/ops/test_channel_error.py"
DIRECT = "tests/ops/test_direct.py"
DIRECT_NN = "tests/nn/test_direct.py"
DSQ = "tests/ops/test_dsq.py"
SAT = "tests/ops/test_sat.py"
EVERY = "tests/deploy/test_every_quantizer.py"
GRIDS = "tests/deploy/test_grid.py"
TEMPERED = "tests/ops/test_tempered.py"
NOISE_QUANT = "tests/ops/test_noise_quant.py"
PHILOX = "tests/ops/test_philox.py"
NOISE_MODULES = "tests/nn/test_noise.py"
CUDA_DECODE = "tests/cuda/test_decode.py"
CUDA_NOISE = f"{CUDA}::test_noise_has_the_bits_of_the_cpu"
TRITON_NOISE = "tests/triton/test_noise.py::test_interpreted_kernels_equal_the_reference"
SWITCH = "tests/compat/test_torch_ao.py::test_every_way_to_turn_a_switch_is_seen"
TWICE = "tests/compat/test_torch_ao.py::test_a_module_called_twice_before_the_backward_pass_has_torch_s_gradients"
TORCHAO = "tests/compat/test_torchao.py::test_output_scale_and_zero_point_are_torchao_s"
TENSOR_QUANT = "tests/compat/test_brevitas.py::test_a_tensor_quant_returns_value_scale_zero_point_and_bit_width"
MAGNITUDE = "tests/compat/test_brevitas.py::test_the_largest_magnitude_and_its_gradient_are_those_of_brevitas"
WEIGHTS = "tests/compat/test_brevitas.py::test_weights_of_brevitas_layers"
TRAINING = "tests/recipes/test_training.py"
DIAGNOSE = "tests/diagnose/test_diagnose.py"
UNTOUCHED = f"{DIAGNOSE}::test_the_model_is_bit_for_bit_as_it_was[False]"
PAPERS = "tests/recipes/test_papers.py"
SIGNS = "tests/nn/test_signs_and_widths.py"
FIELDS = "tests/native/test_packing.py"
ENGINE = "tests/native/test_engine.py"
LSQ_NET = "tests/compat/test_lsq_net.py::test_output_and_gradients_are_the_formula_s"


@dataclass(frozen=True)
class Mutant:
    """``old`` stands once in ``file``; with ``new`` in its place one of ``tests`` must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    why: str

    @property
    def native(self) -> bool:
        """Whether the CPU library has to be built again."""
        return self.file.startswith("csrc/") and not self.file.startswith("csrc/cuda/")

    def concerns(self, name: str) -> bool:
        """Whether the tests look at the code of this object: the loops of a method, where they are a method's own tests; torch's
        side where that is what changed (of a method it takes the numbers of values, which no mutant touches)."""
        loop, _, isa = name.removesuffix(".o").rpartition("_")
        if isa != ISA:
            return self.file.startswith("csrc/torch/")
        stems = {Path(test.partition("::")[0]).stem.removeprefix("test_") for test in self.tests}
        methods = {method for stem in stems for method in LOOPS.get(stem, (stem,))}
        known = {path.stem for path in (ROOT / "csrc" / "cpu").glob("*.cpp")}
        return loop in methods or not methods <= known

    def applied(self, text: str) -> str:
        if (count := text.count(self.old)) != 1:
            raise Stale(f"{self.name}: {self.file} has the text of the mutant {count} times instead of once:\n    {self.old}")
        return text.replace(self.old, self.new)

    def digest(self) -> str:
        """Of the file with its fault, and of the tests."""
        files = {ROOT / test.partition("::")[0] for test in self.tests}
        parts = [self.applied((ROOT / self.file).read_text()), *self.tests, *(path.read_text() for path in sorted(files))]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]

    def diff(self) -> str:
        lines = difflib.unified_diff(self.old.splitlines(), self.new.splitlines(), lineterm="", n=0)
        return "\n".join(line for line in lines if not line.startswith(("---", "+++", "@@")))


class Stale(Exception):
    """Nothing can be learned: what stands in the table, or a build, does not fit. The message says what."""


def mutants(file: str, *rows: tuple[str, str, str, str | tuple[str, ...], str]) -> list[Mutant]:
    """Rows of ``(name, old, new, tests, why)`` for one file."""
    return [Mutant(name, file, old, new, (tests,) if isinstance(tests, str) else tests, why) for name, old, new, tests, why in rows]


MUTANTS = [
    *mutants(
        "csrc/methods/numeric.h",
        (
            "cpu-round-half-up", "return (c + 12582912.0f) - 12582912.0f;",
            "const V q = (c + 12582912.0f) - 12582912.0f; return select(c - q >= splat<V>(0.5f), q + splat<V>(1.0f), q);",
            SUMS, "a tie goes to the even code",
        ),
        (
            "cpu-round-fp64", "return (c + 6755399441055744.0) - 6755399441055744.0;", "return (c + 12582912.0) - 12582912.0;",
            CHECKED, "fp32's magic number rounds nothing in fp64",
        ),
        (
            "cpu-clip-nan", "select(v < low, splat<V>(low), v)", "select(v >= low, v, splat<V>(low))",
            CHECKED, "NaN must stay NaN",
        ),
    ),
    *mutants(
        "csrc/methods/lsq.h",
        ("cpu-mask-closed", "both(v > r.lower,", "both(v >= r.lower,", SUMS, "< is not <="),
        ("cpu-edge-term", "select(v <= r.qmin,", "select(v < r.qmin,", SUMS, "the lower edge has qmin's gradient"),
        (
            "cpu-swapped-clip", "clip(position<V, F>(x, p), r.qmin, r.qmax)", "clip(position<V, F>(x, p), r.qmax, r.qmin)",
            SUMS, "the ends of the range in their order",
        ),
        (
            "cpu-reciprocal", "return x / p[0];", "return x * (splat<V>(F(1)) / p[0]);",
            DIVIDES, "a division, not a product with the reciprocal",
        ),
        (
            "cpu-sign-of-step", "return gradient == 0 && parameter[0] < F(0) ? -(sum * scale) : sum * scale;",
            "return gradient == 0 && parameter[0] > F(0) ? sum * scale : sum * scale;",
            CHECKED, "a negative step turns its gradient",
        ),
        (
            "cpu-mask-product", "    return select(inside, g, nan);", "    return g * select(inside, splat<V>(F(1)), nan);",
            CHECKED, "an infinite gradient outside is 0, not NaN",
        ),
        (
            "cpu-offset-inside", "terms[1] = select(inside, splat<V>(F(0)), g + nan);", "terms[1] = select(inside, g, nan);",
            SUMS, "the offset's gradient comes from outside the range",
        ),
    ),
    *mutants(
        "csrc/methods/oscillation.h",
        ("osc-first-switch", "last + uint32_t(r.constant[3]);", "last + 1u;", FIRST, "the first switch counts if asked to"),
        ("osc-half-way", "- 1) + odd)", "- 1) + 1u)", HALF_WAY_CODES, "the average rounds half to even"),
        (
            "osc-late-average", "select(often, rounded << kAverageBits, followed)", "select(often, followed, followed)",
            TRACE, "what freezes is the rounded average of before",
        ),
        ("osc-thaw", "select(held, one, select(often, one, zero))", "select(often, one, zero)", TRACE, "frozen stays frozen"),
    ),
    *mutants(
        "csrc/cpu/oscillation.cpp",
        ("osc-floor", "nearest > exact ? nearest - 1.0 : nearest", "nearest", STEPS, "the fixed point rounds a half up"),
    ),
    *mutants(
        "csrc/methods/frozen_lsq.h",
        (
            "frozen-gradient", "select(frozen, splat<V>(F(0)), select(inside, g, nan))", "select(inside, g, nan)",
            FROZEN, "a frozen weight has no gradient",
        ),
        (
            "frozen-share", "select(frozen, integer<V, W, F>(word, r), select(inside, q - v, outside))",
            "select(inside, q - v, outside)",
            FROZEN, "its share of the step's gradient is its integer",
        ),
    ),
    *mutants(
        "csrc/methods/dampening.h",
        ("dampening-edge", "p[2] = p[0] * r.qmax;", "p[2] = p[0] * (r.qmax + F(1));", DAMPENED, "nothing beyond the clip range"),
        ("dampening-scale", "p[3] = parameter[1] * r.constant[0];", "p[3] = r.constant[0];", DAMPENED, "the gradient of the loss"),
    ),
    *mutants(
        "csrc/torch/dampening.h",
        ("dampening-factor", "a.constants[0] = 2 * factor;", "a.constants[0] = factor;", DAMPENED, "the 2 of the square"),
    ),
    *mutants(
        "csrc/methods/affine.h",
        (
            "cpu-core-mask", "select(both(c >= r.qmin, c <= r.qmax), g,", "select(both(c >= r.qmin, c < r.qmax), g,",
            TENSOR, "core lets qmax itself pass",
        ),
        (
            "cpu-core-division", "clip(code(x, p[2], p[1], r),", "clip(code(x / p[0], splat<V>(F(1)), p[1], r),",
            TENSOR, "core multiplies by 1 / scale",
        ),
        ("cpu-core-fused", "Fused<V>::of(x, p[2], z)", "x * p[2] + z", LEARNABLE, "core's learnable backward pass rounds once"),
    ),
    *mutants(
        "csrc/methods/channel_error.h",
        (
            "cpu-channel-sums-fp32", "sums[1] = wide * wide;", "sums[1] = Wide<V>::of(x * x);",
            f"{CHANNEL_ERROR}::test_a_variance_far_below_the_mean_square_is_found", "a square that fp32 rounded cancels",
        ),
        (
            "cpu-channel-own-term", "terms[1] = select(p[1] == F(0), zero, -rest * q);",
            "terms[1] = select(p[1] == F(0), zero, rest * q);",
            f"{CHANNEL_ERROR}::test_gradients_are_derivatives_of_the_surrogates", "a larger code wants a smaller step",
        ),
        (
            "cpu-channel-unused-error", "rest = select(p[1] == F(0), zero, p[1] * (x - p[0] * q));",
            "rest = p[1] * (x - p[0] * q);",
            f"{CHANNEL_ERROR}::test_equals_the_reference", "an error that nobody asked for gives no NaN where x is infinite",
        ),
        (
            "cpu-channel-tail", "static constexpr bool kOwnTerms = true;", "static constexpr bool kOwnTerms = false;",
            f"{CHANNEL_ERROR}::test_gradients_are_derivatives_of_the_surrogates", "what pads a tail has a term of its own here",
        ),
    ),
    *mutants(
        "fastq/channels.py",
        (
            "channel-weights-by-spread", "return 1.0 / (max(stats.elements, 1) * (stats.var + eps))",
            "return 1.0 / (max(stats.elements, 1) * (stats.var * 0 + stats.var.mean() + eps))",
            f"{CHANNEL_ERROR}::test_a_few_channels_of_high_variance_do_not_decide_the_step_with_the_weighing_on_and_do_with_it_off",
            "each channel by its own variance",
        ),
    ),
    *mutants(
        "fastq/nn/channel_error.py",
        (
            "channel-step-in-use", "step.detach().clone() if", "step.detach() if",
            "tests/nn/test_channel_error.py::test_the_closed_form_moves_the_step_after_the_pass_that_used_it",
            "the backward pass needs the step of its forward pass",
        ),
    ),
    *mutants(
        "triton_kernels/channel_error.py",
        (
            "triton-channel-own-term", "own = tl.where(p[1] == 0, 0.0, -rest * q)", "own = tl.where(p[1] == 0, 0.0, -rest)",
            f"{CHANNEL_ERROR}::test_triton_equals_the_reference_in_its_interpreter", "the code belongs to the step's term",
        ),
    ),
    *mutants(
        "csrc/methods/direct.h",
        (
            "cpu-direct-tie", "select(above < 0.0f, -above, above) < select(", "select(above < 0.0f, -above, above) <= select(",
            f"{DIRECT}::test_updates_equal_the_reference", "half-way the lower level has it",
        ),
        (
            "cpu-direct-order", "return (w + r) - lr * g;", "return w + (r - lr * g);",
            f"{DIRECT}::test_updates_equal_the_reference", "the order of the roundings is part of the formula",
        ),
        (
            "cpu-direct-above-all", "select(above > 0.0f, high, select(high > 0, high - 1, high))",
            "select(high > 0, high - 1, high)",
            f"{DIRECT}::test_what_is_not_finite_shows_in_the_residual", "beyond the last level there is one neighbour",
        ),
    ),
    *mutants(
        "csrc/cpu/direct.cpp",
        (
            "cpu-direct-code-beyond", "sum[lane * levels + (codes[j] & (levels - 1))]",
            "sum[lane * levels + (codes[j] < levels ? codes[j] : levels - 1)]",
            f"{DIRECT}::test_weights_equal_the_reference", "a code beyond the levels counts modulo their number, backward as well",
        ),
    ),
    *mutants(
        "csrc/methods/packing.h",
        (
            "packing-byte-borrows", "((fields ^ (kSign | kHigh)) - kSign) ^ kHigh", "(fields ^ kSign) - kSign",
            f"{FIELDS}::test_four_neighbours_of_a_tile_by_one_mask", "a borrow must not reach the next byte",
        ),
        (
            "packing-across-bytes", "if (shift + bits > 8)", "if (shift + bits > 9)",
            f"{FIELDS}::test_each_element_is_the_one_that_unpack_gives", "a field of 3 bits may end in the next byte",
        ),
    ),
    *mutants(
        "csrc/methods/gemm.h",
        (
            "epilogue-scale-order", "return acc * (x_scale * scale);", "return (acc * x_scale) * scale;",
            f"{ENGINE}::test_epilogues_have_the_references_bits", "the scales are multiplied first",
        ),
        (
            "codes-nan", "return select(q == q, q, splat<V>(0.0f));", "return select(q == q, q, splat<V>(low));",
            f"{ENGINE}::test_codes_have_the_references_bits", "NaN has the code of the zero-point",
        ),
    ),
    *mutants(
        "csrc/cpu/gemm.cpp",
        (
            "cpu-image-border", "least((w.left + apart - 1) / apart, width);", "least((w.top + apart - 1) / apart, width);",
            f"{ENGINE}::test_images_that_are_read_as_they_lie", "the sides of an image have a border of their own",
        ),
        (
            "cpu-image-lines", "const int64_t line = i / x.width,", "const int64_t line = i / x.inside,",
            f"{ENGINE}::test_images_that_are_read_as_they_lie", "positions beyond a line are no outputs",
        ),
        (
            "cpu-image-phases", "return u * w.dh % w.sh * image.of_phase + u * w.dh / w.sh;", "return u * w.dh / w.sh;",
            f"{ENGINE}::test_images_that_are_read_as_they_lie", "lines between those of outputs lie elsewhere",
        ),
        (
            "cpu-gemm-steps", "b.rows, w, first, count, fresh,", "b.rows, w, first, count, true,",
            f"{ENGINE}::test_accumulators_of_several_blocks", "the steps along K add up",
        ),
        (
            "cpu-gemm-padding", "left = j * w.sw - w.left;", "left = j * w.sw - w.top;",
            f"{ENGINE}::test_convolutions_have_the_references_bits", "the sides have a padding of their own",
        ),
    ),
    *mutants(
        "csrc/cpu/epilogue.h",
        (
            "cpu-gemm-groups", "if (scale_group > 0) v", "if (scale_group > 1) v",
            f"{ENGINE}::test_groups_have_the_references_bits", "the groups add up",
        ),
        (
            "cpu-gemm-zero-group", "c.zero[n * c.scale_step + scale_group]", "c.zero[n * c.scale_step]",
            f"{ENGINE}::test_groups_have_the_references_bits", "each group has its zero-point",
        ),
        (
            "cpu-codes-close-to-half", "kClose = 0x3effe000", "kClose = 0x3f800000",
            f"{ENGINE}::test_codes_next_to_half_a_code_are_those_of_the_division", "an inverse rounds otherwise than a division",
        ),
    ),
    *mutants(
        "csrc/cpu/blocks.h",
        (
            "cpu-third-bit", "field |= ((third >> j) & in_bytes(1)) << 2;", "field |= ((third >> j) & in_bytes(1)) << 1;",
            f"{ENGINE}::test_accumulators_of_several_blocks", "the third bit of three has its place",
        ),
    ),
    *mutants(
        "csrc/torch/gemm.cpp",
        (
            "gemm-form-lies", "data.size(0) == rows && data.size(1) == c.row_bytes", "data.size(0) == rows",
            f"{ENGINE}::test_a_linear_call_that_lies_about_its_tensors_is_refused", "bytes that are not there must not be read",
        ),
        (
            "gemm-kernel-beyond", "h >= 0 && w >= 0", "h >= 0",
            f"{ENGINE}::test_a_convolution_that_lies_about_its_tensors_is_refused", "a window must fit the image",
        ),
    ),
    *mutants(
        "csrc/cuda/direct.cu",
        (
            "cuda-direct-last-chunks", "chunk < c.chunks(); chunk += kDirectFinish",
            "chunk < c.chunks() - 1; chunk += kDirectFinish",
            f"{CUDA}::test_direct_has_the_bits_of_the_cpu", "every chunk's sum counts",
        ),
        (
            "cuda-direct-unmasked-code", "shared.code[i] = codes[i] & uint8_t(levels - 1);", "shared.code[i] = codes[i];",
            f"{CUDA}::test_direct_has_the_bits_of_the_cpu", "modulo the number of levels",
        ),
    ),
    *mutants(
        "fastq/nn/direct.py",
        (
            "direct-sign-of-the-step", "lr=-1.0, rho=m.rho", "lr=1.0, rho=m.rho",
            f"{DIRECT_NN}::test_a_step_of_sgd_is_the_update_itself", "the delta is the step itself, not a gradient",
        ),
        (
            "direct-relabel", "renamed = place[self.order]", "renamed = place[order]",
            f"{DIRECT_NN}::test_levels_that_change_places_are_relabelled_and_no_weight_moves",
            "a code is renamed from what it stood for",
        ),
    ),
    *mutants(
        "triton_kernels/direct.py",
        (
            "triton-direct-tie", "tl.abs(above) < tl.abs(below)", "tl.abs(above) <= tl.abs(below)",
            f"{DIRECT}::test_triton_equals_the_reference_in_its_interpreter", "half-way the lower level has it",
        ),
    ),
    *mutants(
        "csrc/methods/dsq.h",
        (
            "cpu-dsq-floor", "(c - select(q > c, q - F(1), q))", "(c - q)",
            f"{DSQ}::test_equals_the_reference", "the step begins at the floor, not at the code",
        ),
        (
            "cpu-dsq-edge", "both(v > F(0), v < r.qmax)", "both(v >= F(0), v <= r.qmax)",
            f"{DSQ}::test_the_ends_by_hand", "at an end the bound has the gradient",
        ),
        (
            "cpu-dsq-alpha", "clip(alpha, r.constant[1], r.constant[2])", "alpha",
            f"{DSQ}::test_guards", "alpha is brought into its range",
        ),
        (
            "cpu-dsq-slope", "p[3] = half * p[2];", "p[3] = half;",
            f"{DSQ}::test_the_softest_staircase_is_the_straight_through_gradient", "the slope has the factor k",
        ),
    ),
    *mutants(
        "csrc/methods/sat.h",
        (
            "cpu-sat-top", "k = select(k > top, splat<V>(top), k);", "",
            f"{SAT}::test_levels_by_hand", "Wh = 1 has no code of its own",
        ),
        (
            "cpu-sat-center", "- 2 * center * sums.code[0] +", "- center * sums.code[0] +",
            f"{SAT}::test_effective_variance_is_one_over_the_neurons", "the square of a difference has two cross terms",
        ),
        (
            "cpu-sat-nan", "kappa + (m - m);", "kappa;",
            f"{SAT}::test_not_finite", "one NaN is everybody's",
        ),
    ),
    *mutants(
        "csrc/cpu/sat.cpp",
        (
            "cpu-sat-order", "c.order.index_of(place + j)", "place + j",
            f"{SAT}::test_of_several_maxima_the_first_in_row_major_order_gets_the_gradient", "row-major order, not memory's",
        ),
        (
            "cpu-sat-sign", "select(w[0] < F(0), splat<V>(-through), splat<V>(through))", "splat<V>(through)",
            f"{SAT}::test_every_layout_and_dtype_equals_the_reference", "the maximum of |t| may be negative",
        ),
    ),
    *mutants(
        "csrc/cuda/decode.cu",
        (
            "cuda-decode-pad", "c.from[row * c.bytes + byte] : uint8_t(0);",
            "c.from[row * c.bytes + byte] : uint8_t(1);",
            f"{CUDA_DECODE}::test_accumulators_equal_int64_arithmetic", "rows of x end in zeros",
        ),
        (
            "cuda-decode-unit", "grouped && g.integer() && g.x_zero != 0",
            "false",
            f"{CUDA_DECODE}::test_groups_of_integers", "a group's zero-point comes off once",
        ),
        (
            "cuda-decode-overflow", "std::max(std::min(wanted, most), least)",
            "std::max(std::min(wanted, most), std::min<int64_t>(least, 1))",
            f"{CUDA_DECODE}::test_extreme_codes_of_a_k_so_long_that_a_warps_sum_could_overflow", "sums of 64 f stay in int32",
        ),
    ),
    *mutants(
        "csrc/cuda/decode.cuh",
        (
            "cuda-decode-parts", "for (int split = 1; split < c.splits; ++split)",
            "for (int split = 1; split < c.splits - 1; ++split)",
            f"{CUDA_DECODE}::test_accumulators_over_several_tiles_of_a_warp_and_parts_of_k", "every part of K counts",
        ),
        (
            "cuda-decode-member", "member ? own.b[j][i] : 0u",
            "member || true ? own.b[j][i] : 0u",
            f"{CUDA_DECODE}::test_groups_of_integers", "x of another group does not count",
        ),
        (
            "cuda-decode-ahead", "if (tile + u + kAhead < end) load_tile",
            "if (tile + u + kAhead + 1 < end) load_tile",
            f"{CUDA_DECODE}::test_accumulators_over_several_tiles_of_a_warp_and_parts_of_k", "the last tile is loaded",
        ),
        (
            "cuda-decode-zero", "const float less = float(t + (1 << (kBits - 1)));",
            "const float less = float(0 * t + (1 << (kBits - 1)));",
            f"{CUDA_DECODE}::test_every_field_of_floating_point_products_is_exact", "fields less their zero",
        ),
    ),
    *mutants(
        "csrc/cuda/codes.cu",
        (
            "cuda-codes-nan", "const uint32_t bits = bits_as<uint32_t>(v) & 0x7fffffffu;",
            "const uint32_t bits = v == v ? bits_as<uint32_t>(v) & 0x7fffffffu : 0u;",
            f"{CUDA_DECODE}::test_codes_per_token_have_the_reference_s_bits", "a row's NaN shows in its scale",
        ),
    ),
    *mutants(
        "csrc/cuda/sat.cu",
        (
            "cuda-sat-first", "if (first[from] < first[to]) first[to] = first[from];", "",
            f"{CUDA}::test_sat_has_the_bits_of_the_cpu", "the lowest index of all lanes",
        ),
    ),
    *mutants(
        "triton_kernels/dsq.py",
        (
            "triton-dsq-floor", "(c - tl.where(q > c, q - 1, q))", "(c - q)",
            f"{DSQ}::test_triton_equals_the_reference_in_its_interpreter", "the step begins at the floor, not at the code",
        ),
    ),
    *mutants(
        "triton_kernels/sat.py",
        (
            "triton-sat-top", "k = tl.where(k > LEVELS - 1, LEVELS - 1, k)", "k = k",
            f"{SAT}::test_triton_equals_the_reference_in_its_interpreter", "Wh = 1 has no code of its own",
        ),
    ),
    *mutants(
        "csrc/cpu/elementwise.h",
        (
            "cpu-scaled-unrounded", "out = S::rounded(out) * p[", "out = out * p[",
            STEPS, "what is multiplied has been rounded to its type",
        ),
        (
            "cpu-lanes-of-a-tail", "for (int64_t j = 0; j < n; ++j) all[j] += some[j];",
            "for (int64_t j = 0; j < kLanes; ++j) all[j] += some[j];", STEPS, "a tail's sums are of its own lanes",
        ),
        (
            "cpu-tail", "std::memcpy(y, out, n * sizeof(T));", "std::memcpy(y, out, (n - 1) * sizeof(T));",
            SUMS, "the last element of a ragged run",
        ),
        (
            "cpu-tail-sums", "std::memcpy(g, gradient, n * sizeof(T));",
            "for (int64_t k = 0; k < kLanes; ++k) g[k] = gradient[k < n ? k : 0];",
            SUMS, "what pads a tail must add nothing",
        ),
        (
            "cpu-columns-channel", "prepared(c, w / c.geometry.inner, r,", "prepared(c, w % c.geometry.channels, r,",
            CHECKED, "wrong stride of the axis",
        ),
        (
            "cpu-16-bit-sums", "for (int i = 0; i < kGradients; ++i) sums[i][k] += terms[i];",
            "for (int i = 0; i < kGradients; ++i) {\n"
            "        T kept[kWidth]; S::store(kept, sums[i][k] + terms[i]); sums[i][k] = S::load(kept); }",
            SUMS, "sums of 16-bit inputs are kept in fp32",
        ),
        (
            "cpu-sums-by-thread", "static_cast<F*>(c.partial[i])[t] = sums[i];",
            "{ F* s = static_cast<F*>(c.partial[i]); const bool join = t > begin && c.geometry.channels == 1;\n"
            "          s[t] = join ? F(0) : sums[i]; if (join) s[begin] += sums[i]; }",
            THREADS, "a right sum, but its order hangs on the number of threads",
        ),
    ),
    *mutants(
        "csrc/cpu/vector.h",
        ("cpu-doubles", "{a.low + b.low, a.high + b.high}", "{a.low + b.low, a.high + b.low}", STEPS, "both halves are added"),
        (
            "cpu-aligned-loads", "  V v;\n  std::memcpy(&v, p, sizeof(V));\n  return v;",
            "  return *reinterpret_cast<const V*>(__builtin_assume_aligned(p, sizeof(V)));",
            CHECKED, "storage may lie at any address",
        ),
        (
            "cpu-bf16-truncates", "(bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16", "bits >> 16",
            HALF_WAY, "bf16 rounds to nearest",
        ),
        (
            "cpu-fp16-half-up", "(magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13",
            "(magnitude - 0x38000000u + 0x1000u) >> 13",
            HALF_WAY, "fp16 rounds a tie to even",
        ),
    ),
    *mutants(
        "csrc/torch/elementwise.cpp",
        (
            "cpu-group-layout", "if (logical ? !x.is_contiguous() : !is_dense(x)) {", "if (!is_dense(x)) {",
            CHECKED, "groups follow the last axis, not memory",
        ),
        (
            "cpu-rounded-edge", "upper_belongs = std::fmod(c.qmax, 2.0) == 0;", "upper_belongs = std::fmod(c.qmax, 2.0) != 0;",
            CHECKED, "at half a step out the tie belongs to the even code",
        ),
    ),
    *mutants(
        "csrc/torch/lsq.h",
        (
            "cpu-missing-g", "grad_scale * gradient_norm(grad_norm, x, step, qmax)", "grad_scale",
            SUMS, "1/sqrt(N*qmax) belongs to the step's gradient",
        ),
    ),
    *mutants(
        "csrc/methods/pact.h",
        ("pact-edge", "both(x > low, x < p[0])", "both(x > low, x <= p[0])", PACT + "::test_the_edges_by_hand", "at A, alpha"),
        (
            "pact-even-codes", "(c + splat<V>(r.qmax)) * splat<V>(F(0.5))", "c * splat<V>(F(0.5))",
            PACT + "::test_two_sided_codes_are_odd_and_have_no_zero", "two-sided codes are 2 k - L",
        ),
        (
            "pact-plain", "if constexpr (kCalibrated) middle", "if constexpr (kTwoSided) middle",
            PACT + "::test_both_gradients_by_hand", "plain PACT counts no rounding",
        ),
        ("pact-inf", "V below = nan,", "V below = g * splat<V>(F(0)) + nan,", PACT_INF, "inf * 0"),
    ),
    *mutants(
        "csrc/torch/pact.h",
        ("pact-levels", "1.0 / double(levels)", "1.0", PACT + "::test_calibrated_pact_is_lsq", "dalpha = ds / L"),
    ),
    *mutants(
        "csrc/methods/ewgs.h",
        (
            "ewgs-sign", "select(g < splat<V>(F(0)), -scaled, scaled)", "scaled",
            EWGS + "::test_it_is_straight_through_for_a_scaled_gradient", "the sign of the gradient",
        ),
        (
            "ewgs-crossed", "p[2] = difference < F(0) ? F(-1) : F(1);", "p[2] = F(1);",
            EWGS + "::test_bounds_that_are_no_interval", "a width that is turned turns its gradient",
        ),
        ("ewgs-upper", "gradient == 1 ? -(sum * scale)", "gradient == 0 ? -(sum * scale)", EWGS_HAND, "which is minus"),
    ),
    *mutants(
        "csrc/torch/ewgs.h",
        ("ewgs-boundary", "a.boundary = boundary;", "a.boundary = kOpen;", EWGS_HAND, "the ends may belong to it"),
    ),
    *mutants(
        "csrc/methods/qil.h",
        (
            "qil-below-zero", "if (kWeight && center < half) center = half;", "",
            QIL + "::test_guards_change_values_and_let_gradients_pass", "a weight's interval begins at 0 or above",
        ),
        ("qil-width", "splat<V>(F(2)) * u - one", "u", QIL_HAND, "(a - C) / D = 2 u - 1"),
        (
            "qil-sign-of-width", "return parameter[1] < F(0) ? total : -total;", "return -total;",
            QIL + "::test_guards_change_values_and_let_gradients_pass", "a negative width turns its gradient",
        ),
        ("qil-slope", "g * (p[2] * raised / u)", "g * (raised / u)", QIL_HAND, "gamma u^(gamma - 1)"),
        (
            "qil-sign", "if constexpr (kWeight) hat = select(x < zero, -hat, hat);", "",
            QIL_HAND, "a weight keeps its sign",
        ),
    ),
    *mutants(
        "csrc/methods/functions.h",
        (
            "power-low-bits", "const V low = (y - high) * e, whole", "const V low = (y - y) * e, whole",
            "tests/native/test_functions.py", "the exponent's last 12 bits",
        ),
    ),
    *mutants(
        "triton_kernels/ewgs.py",
        ("triton-ewgs-sign", "tl.where(g < 0.0, -scaled, scaled)", "scaled", EWGS + IN_TRITON, "the sign of the gradient"),
    ),
    *mutants(
        "triton_kernels/pact.py",
        ("triton-pact-odd", "* 0.5) * 2.0 - r[1]", "* 0.5) * 2.0 - r[1] + 1.0", PACT + IN_TRITON, "two-sided codes are odd"),
    ),
    *mutants(
        "triton_kernels/qil.py",
        ("triton-qil-gamma", "return tl.where(parameters[2] < 0, -total, total)", "return -total", QIL + IN_TRITON, "gamma's sign"),
    ),
    *mutants(
        "fastq/reference/ewgs.py",
        ("reference-ewgs-lower", "h * (sign * c - 1)", "h * (1 - sign * c)", EWGS_HAND, "(c - 1) / W"),
    ),
    *mutants(
        "fastq/reference/qil.py",
        ("reference-qil-slope", "slope = exponent * power / u", "slope = power / u", QIL_HAND, "gamma's own factor"),
    ),
    *mutants(
        "fastq/nn/qil.py",
        ("init-qil", "half = rows.abs().amax(1) / 2", "half = rows.amax(1) / 2", INTERVALS, "max |w| / 2"),
    ),
    *mutants(
        "fastq/nn/ewgs.py",
        ("hessian-mean", "ratio = mean / gradient.numel() / spread", "ratio = mean / spread", INTERVALS, "Tr(H) / N"),
        ("init-ewgs", "3 * rows.std(1,", "2 * rows.std(1,", INTERVALS, "three sigma"),
    ),
    *mutants(
        "csrc/cuda/elementwise.cuh",
        (
            "cuda-scaled-unrounded", "y = S::load(S::store(y)) * values", "y = y * values",
            CUDA_STATE, "what is multiplied has been rounded",
        ),
        (
            "cuda-last-piece", "return position + kVector <= rows * length;", "return position + kVector < rows * length;",
            CUDA_LSQ, "the last whole piece of a tile",
        ),
        (
            "cuda-row-channel", "channel = (first + j) % job.geometry.channels;", "channel = first % job.geometry.channels;",
            CUDA_LSQ, "a parameter for each row of a tile",
        ),
        (
            "cuda-order-of-sums", "for (int j = lane; j < length; j += int(kLanes)) sum += term[j];",
            "for (int j = lane + (length - 1 - lane) / 32 * 32; j >= lane; j -= int(kLanes)) sum += term[j];",
            CUDA_LSQ, "a right sum in another order than the CPU's",
        ),
        (
            "cuda-rows-that-are-not", "kWalk == Walk::columns ? rows * int(kLanes) : length;",
            "kWalk == Walk::columns ? int(kRowBlock * kLanes) : length;",
            CUDA_LSQ, "terms that nobody wrote",
        ),
        (
            "cuda-state", "job.state[0][offset] = word[0], job.state[1][offset] = word[1];", "job.state[0][offset] = word[0];",
            CUDA_STATE, "both planes of a state are written",
        ),
        (
            "cuda-barrier",
            "    for (int half = lanes / 2; half > 0; half /= 2)\n"
            "      team.each([&](int thread) {\n"
            "        if (thread % lanes < half) shared.sum[thread] += shared.sum[thread + half];\n"
            "      });\n",
            "    team.each([&](int thread) {\n"
            "      for (int half = lanes / 2; half > 0; half /= 2)\n"
            "        if (thread % lanes < half) shared.sum[thread] += shared.sum[thread + half];\n"
            "    });\n",
            CUDA_LSQ, "a barrier between the steps of the tree",
        ),
    ),
    *mutants(
        "csrc/cuda/elementwise.cuh",
        (
            "cuda-many-block", "jobs.first[middle] <= index", "jobs.first[middle] < index",
            CUDA_MANY, "the first block of a job is its own",
        ),
        (
            "cuda-many-place", "index - job.first[i]);\n  }\n};\n\n}", "index);\n  }\n};\n\n}",
            CUDA_MANY, "a job's blocks count from 0",
        ),
    ),
    *mutants(
        "csrc/torch/cpu.cpp",
        ("cpu-many-pieces", "first += step) {", "first += step + 1) {", FOREACH, "every task of every tensor"),
    ),
    *mutants(
        "csrc/torch/foreach.h",
        (
            "foreach-one-factor", "gradient_norm(grad_norm, x[i], step[i], qmax[i])",
            "gradient_norm(grad_norm, x[0], step[0], qmax[0])", FOREACH, "1/sqrt(N*qmax) is each tensor's own",
        ),
    ),
    *mutants(
        "fastq/ops/foreach.py",
        (
            "foreach-order", "result[i], result[n + i] = found[k]", "result[k], result[n + k] = found[k]",
            FOREACH, "whose gradient it is",
        ),
    ),
    *mutants(
        "fastq/nn/weights.py",
        ("weights-version", "id(weight), weight._version, weight", "id(weight), 0, weight", GROUPED, "a write within a pass"),
        ("weights-step-version", "id(step), step._version", "id(step), 0", GROUPED, "a write within a pass"),
        (
            "weights-checkpoint", "return torch.is_grad_enabled() and (", "return False and (",
            GROUPED, "checkpoints save the same twice",
        ),
        ("weights-unended", "_current.running = _current.running.outer", "pass", GROUPED, "nothing outlives a pass"),
    ),
    *mutants(
        "csrc/cuda/storage.cuh",
        (
            "cuda-fp16-half-up", "(magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13",
            "(magnitude - 0x38000000u + 0x1000u) >> 13",
            CUDA_16_BITS, "fp16 rounds a tie to even",
        ),
    ),
    *mutants(
        "triton_kernels/numeric.py",
        ("triton-division", "return tl.div_rn(a, b)", "return a / b", COMPILED, "/ compiles to an approximation"),
        ("triton-round-half-up", "return (c + magic) - magic", "return tl.floor(c + 0.5)", TRITON, "a tie goes to the even code"),
        ("triton-clip-nan", "tl.where(v < low, low, v)", "tl.where(v >= low, v, low)", TRITON, "NaN must stay NaN"),
        ("triton-maximum", "tl.where(v < low, low, v)", "tl.maximum(v, low)", COMPILED_NAN, "PTX's max loses NaN"),
    ),
    *mutants(
        "triton_kernels/int_gemm.py",
        ("triton-gemm-groups", "(k >= start) & (k < end)", "k < end", TRITON_GEMM, "groups that share a piece of K"),
        ("triton-gemm-zeros", "acc -= t * r", "acc += t * r", TRITON_GEMM, "the weight's zero is subtracted"),
        (
            "triton-gemm-unsigned", "e.x_zero_point - 128 * unsigned", "e.x_zero_point",
            TRITON_GEMM, "uint8 codes less 128 have a zero-point less 128",
        ),
        ("triton-gemm-flip", "left = left ^ -128", "left = left", TRITON_GEMM, "uint8 codes are taken less 128"),
        ("triton-gemm-shares", "for _ in range(1, bound(", "for _ in range(2, bound(", TRITON_GEMM, "every share is added"),
    ),
    *mutants(
        "triton_kernels/epilogue.py",
        (
            "triton-epilogue-scales", "acc.to(tl.float32) * (x_scale * scale)", "acc.to(tl.float32) * x_scale * scale",
            TRITON_GEMM, "the scales are multiplied first",
        ),
        ("triton-epilogue-nan", "tl.where(code == code, code, 0.0)", "code", TRITON_GEMM, "NaN is the code for 0"),
    ),
    *mutants(
        "fastq/engine/configurations.py",
        ("configuration-rows", "return min(fit,", "return max(fit,", CONFIGURATIONS, "the fewest rows that are enough"),
    ),
    *mutants(
        "triton_kernels/elementwise.py",
        (
            "triton-scaled-unrounded", "out = widen(narrow(out, y.dtype.element_ty, BY_BITS), F, BY_BITS) * p", "out = out * p",
            TRITON_STEPS, "what is multiplied has been rounded to its type",
        ),
        ("triton-tail", "(column < inner)[None, :]", "(column < inner - 1)[None, :]", TRITON, "the last element of a run"),
        ("triton-channel", "mask, row % channels,", "mask, (row + 1) % channels,", TRITON, "a row's own parameter"),
        (
            "triton-fp16-sums", "total = tl.sum(tl.where(mask, terms[i], 0.0), axis=0 if COLUMNS else 1)",
            "total = tl.sum(tl.where(mask, terms[i], 0.0).to(tl.float16), axis=0 if COLUMNS else 1).to(F)",
            TRITON, "sums are kept in fp32",
        ),
    ),
    *mutants(
        "triton_kernels/lsq.py",
        (
            "triton-factor", "n = x.numel() // max(step.numel(), 1) if norm == 1 else x.numel()", "n = x.numel()",
            TRITON, "N counts the elements of one step",
        ),
    ),
    *mutants(
        "triton_kernels/oscillation.py",
        ("triton-thaw", "held = held | often", "held = often", TRITON_STEPS, "frozen weights stay frozen"),
    ),
    *mutants(
        "triton_kernels/int_conv.py",
        ("triton-conv-padding", "right = tl.where(there, right, tl.full((), outside, tl.int8))", "right = right",
         TRITON_CONV, "beyond the image lies the zero-point"),
        ("triton-conv-column", "(element < k)[None, :], left_fields, 0)", "(element <= k)[None, :], left_fields, 0)",
         TRITON_CONV, "a window ends at K"),
        ("triton-depthwise-part", "part = (tap // 64) % (8 // BITS)", "part = 0", TRITON_CONV, "a byte has several fields"),
    ),
    *mutants(
        "triton_kernels/float_gemm.py",
        ("triton-float-tail", "m_there[:, None] & (element < k)[None, :]", "m_there[:, None] & (element <= k)[None, :]",
         TRITON_FLOAT, "a row ends at K"),
        ("triton-float-group", "g = (base + 64 * p) // group_size", "g = base // group_size",
         TRITON_FLOAT, "a part of a tile has a group of its own"),
    ),
    *mutants(
        "triton_kernels/quantize.py",
        ("triton-token-zero", "scale = tl.where(scale == 0.0, 1.0, scale)", "scale = scale", TRITON_CODES, "zeros have scale 1"),
    ),
    *mutants(
        "triton_kernels/affine.py",
        ("triton-core-division", "clip(x * p[2],", "clip(divide(x, p[0]),", TRITON, "core multiplies by 1 / scale"),
    ),
    *mutants(
        "fastq/reference/lsq.py",
        (
            "reference-round-half-up", "v.clamp(qmin, qmax).round() + 0.0", "(v.clamp(qmin, qmax) + 0.5).floor() + 0.0",
            REFERENCE, "a tie goes to the even code",
        ),
        ("reference-reciprocal", "v = v / s", "v = v * (1 / s)", DIVIDES, "a division, not a product with the reciprocal"),
        ("reference-mask", "m = (v > lower) & (v < upper)", "m = (v > lower) & (v <= upper)", REFERENCE, "< is not <="),
        ("reference-edge", "torch.where(v <= qmin,", "torch.where(v < qmin,", REFERENCE, "the lower edge has qmin's gradient"),
        (
            "reference-missing-g", "* gradient_scale(x, step, qmax, grad_scale) * sign", "* sign",
            REFERENCE, "1/sqrt(N*qmax) belongs to the step's gradient",
        ),
        ("reference-sign", "torch.where(step < 0, -1.0, 1.0)", "torch.where(step < 0, 1.0, 1.0)", REFERENCE, "a negative step"),
        (
            "reference-offset", "torch.where(m, 0.0, gf + nan)", "torch.where(m, gf, nan)",
            REFERENCE, "the offset's gradient comes from outside the range",
        ),
        ("reference-eps", "step.abs().clamp(min=eps)", "step.abs()", REFERENCE, "a step of 0 acts as eps"),
        ("reference-zero", ".round() + 0.0, s, b", ".round(), s, b", REFERENCE, "-0 comes out as +0"),
    ),
    *mutants(
        "fastq/reference/affine.py",
        (
            "reference-core-division", "u = x.to(compute_dtype(x)) * _inverse(scale, x, axis)",
            "u = x.to(compute_dtype(x)) / expand(scale, x, axis, 0)",
            TENSOR, "core multiplies by 1 / scale",
        ),
        (
            "reference-core-mask", "inside = (c >= qmin) & (c <= qmax)", "inside = (c > qmin) & (c <= qmax)",
            TENSOR, "core lets qmin itself pass",
        ),
    ),
    *mutants(
        "fastq/reference/oscillation.py",
        (
            "reference-osc-ema", "toward(average, k << AVERAGE_BITS, ema_momentum)", "toward(average, k << AVERAGE_BITS, momentum)",
            "tests/ops/test_oscillation.py::test_only_a_turn_counts", "without a threshold the average rests",
        ),
        ("reference-osc-thaw", "frozen = frozen | newly", "frozen = newly", TRACE, "frozen weights stay frozen"),
    ),
    *mutants(
        "fastq/reference/dampening.py",
        ("reference-dampening", "(g * (2 * factor))", "(g * factor)", DAMPENED, "the 2 of the square"),
    ),
    *mutants(
        "fastq/granularity.py",
        (
            "group-index", "p.unsqueeze(-1).expand(*p.shape, group_size)",
            "p.unsqueeze(-2).expand(*p.shape[:-1], group_size, p.shape[-1])",
            SUMS, "the elements of a group are neighbours",
        ),
        (
            "layout-of-y", "return t if t.stride() == like.stride() else like.copy_(t)", "return t",
            STRIDES, "y has the layout of x",
        ),
        ("count-per-step", "return max(x.numel() // max(p.numel(), 1), 1)", "return max(x.numel(), 1)", REFERENCE, "N of one step"),
    ),
    *mutants(
        "fastq/ranges.py",
        ("range-narrow", "qmin = -(qmax if narrow else qmax + 1)", "qmin = -(qmax + 1)", REFERENCE, "narrow drops a code"),
        ("range-rounded", "qmin % 2 == 0, qmax % 2 == 0", "qmin % 2 == 0, qmax % 2 == 1", REFERENCE, "the tie's even code"),
    ),
    *mutants(
        "fastq/ops/lsq.py",
        ("op-factors", '{"lsq": 1, "lsq-full": 2}', '{"lsq": 2, "lsq-full": 1}', SUMS, "the two meanings of N"),
        ("op-swapped", "return dx, dstep, doffset, None,", "return dx, doffset, dstep, None,", SUMS, "whose gradient it is"),
    ),
    *mutants(
        "fastq/ops/affine.py",
        (
            "op-axis", 'channel_axis(op, x, axis[0], "input")', 'channel_axis(op, x, -1 - axis[0], "input")',
            CHANNEL, "axes count from the front",
        ),
    ),
    *mutants(
        "fastq/diagnosis/measure.py",
        (
            "diagnosis-common-scale",
            'if isinstance(self.quantizer, SATWeight) or getattr(self.quantizer, "scale", 1) is None:', "if False:",
            f"{DIAGNOSE}::test_a_scale_of_its_own_is_no_error", "SAT's weights have another size, which is no error",
        ),
        (
            "diagnosis-variance", "variance = xx / n - (x / n).square()", "variance = xx / n",
            f"{DIAGNOSE}::test_error_clipping_and_dead_codes_are_those_counted_by_hand", "around the mean",
        ),
        ("diagnosis-buffers", "t.copy_(value)", "pass", UNTOUCHED, "a module of the user's may count its calls"),
        ("diagnosis-modes", "module.training = training", "module.train()", UNTOUCHED, "each module has its own"),
        ("diagnosis-generators", "with torch.random.fork_rng(devices), eager:", "with eager:", UNTOUCHED, "a loss may draw"),
        (
            "diagnosis-slope", "torch.zeros_like(g), g * slope)", "torch.zeros_like(g), g)",
            f"{DIAGNOSE}::test_gradients_are_those_of_training", "EWGS and QIL have others than 1",
        ),
        (
            "diagnosis-constant", "torch.ones_like(value).requires_grad_(probes > 0)", "torch.ones_like(value)",
            f"{DIAGNOSE}::test_a_loss_that_is_linear_has_no_curvature", "a gradient that is constant is no fault",
        ),
        (
            "diagnosis-order", "        if not seen:\n            order", "        if True:\n            order",
            f"{DIAGNOSE}::test_what_follows_is_judged_by_the_order_of_execution", "modules are listed in any order",
        ),
        (
            "diagnosis-seldom", "OSCILLATES = 0.005", "OSCILLATES = 0.0",
            f"{DIAGNOSE}::test_oscillating_and_frozen_fractions", "what turned once long ago",
        ),
    ),
    *mutants(
        "fastq/diagnosis/report.py",
        (
            "diagnosis-pooling", "self.variance * self.inputs / self.pooled", "self.variance * self.inputs",
            f"{DIAGNOSE}::test_rule_one_knows_the_pooling", "k_pool^2",
        ),
    ),
    *mutants(
        "fastq/recipes/training.py",
        (
            "recipe-narrows", "bits = own if width is None or width >= bits else bits", "bits = own if width is None else bits",
            TRAINING, "a phase widens layers, and narrows none",
        ),
        ("recipe-stale-gradient", "p.requires_grad, p.grad = False, None", "p.requires_grad = False", TRAINING, "it is stepped"),
        ("recipe-codes-twice", "for m in modules) and not _serves(optimizer)", "for m in modules)", TRAINING, "one step, one move"),
        ("recipe-dampening-weight", "return factor * total", "return total", TRAINING, "the schedule is a factor of the loss"),
        ("recipe-frozen-norms", "m.momentum = 0.0", "pass", TRAINING, "the statistics are the network's, which stands"),
    ),
    *mutants(
        "fastq/recipes/batch_norm.py",
        ("batch-norm-average", "norm.momentum = None", "norm.momentum = 0.1", TRAINING, "the plain average, not a moving one"),
        ("batch-norm-dropout", "        model.eval()\n", "", TRAINING, "the statistics of the network that is evaluated"),
    ),
    *mutants(
        "fastq/recipes/parameters.py",
        (
            "groups-decay-codes", 'rates.get(kind, (lr, 0.0))', 'rates.get(kind, (lr, weight_decay))',
            TRAINING, "norms, biases and codes do not decay",
        ),
    ),
    *mutants(
        "fastq/recipes/recipe.py",
        ("recipe-toml-none", "return None if bits == FLOAT else", "return", PAPERS, "TOML has no None"),
        ("recipe-room", "all(a < b for a, b in", "all(a <= b for a, b in", PAPERS, "the last one has a step"),
    ),
    *mutants(
        "fastq/nn/quantizer.py",
        ("widths-clip", "self.step.mul_(self.qmax / new[1])", "self.step.mul_(new[1] / self.qmax)", SIGNS, "the clip stays"),
    ),
    *mutants(
        "fastq/nn/base.py",
        ("first-batch-sign", "negative = (x.detach() < 0).any()", "negative = (x.detach() < 0).all()", SIGNS, "one is enough"),
    ),
    *mutants(
        "fastq/compat/reading.py",
        ("compat-read-once", "self.version == tensor._version", "self.version >= 0", SWITCH, "what was written is read again"),
    ),
    *mutants(
        "fastq/compat/torch_ao.py",
        (
            "compat-scale-kept", '["scale"].clone() if observes else', '["scale"] if observes else',
            TWICE, "the next call overwrites it",
        ),
    ),
    *mutants(
        "fastq/compat/torchao.py",
        ("compat-token-zero", "low.clamp_(max=0), high", "low, high", TORCHAO, "zero lies in a token's range"),
    ),
    *mutants(
        "fastq/compat/brevitas.py",
        ("compat-rounded", 'BOUNDARIES["rounded"], 1.0', 'BOUNDARIES["closed"], 1.0', TENSOR_QUANT, "what is clipped"),
        ("compat-block", "best * blocks.shape[2] + within", "best + within", MAGNITUDE, "where in the row the block lies"),
        ("compat-offset", "-zero_point * scale if", "zero_point * scale if", WEIGHTS, "the value of code 0"),
    ),
    *mutants(
        "fastq/compat/lsq_net.py",
        ("compat-numel", '"lsq-full", 1.0, EPS', '"lsq", 1.0, EPS', LSQ_NET, "N is the whole tensor's"),
    ),
    *mutants(
        "fastq/nn/initializers.py",
        ("init-lsq", "/ math.sqrt(qmax)", "/ qmax", INITIAL, "2 mean|x| / sqrt(qmax)"),
        ("init-sigma", "(mean - 3 * deviation).abs(), ", "(mean - deviation).abs(), ", INITIAL, "three sigma on both sides"),
        ("init-grid", "widest * (k / CANDIDATES)", "widest * ((k + 1) / CANDIDATES)", INITIAL, "the grid ends at the range"),
    ),
    *mutants(
        "fastq/deploy/layers.py",
        (
            "border-ones", "return self.products(ones), self.windows(ones)",
            "return self.along(self.weight.sums), self.windows(ones)", BORDERS, "what is padded is on no grid",
        ),
        (
            "border-count", "return self.products(ones), self.windows(ones)", "return self.products(ones), self.weight.k",
            EVERY, "an offset counts once per input that lies inside",
        ),
        (
            "odd-constant", "return self.factor * self.zero + self.odd", "return self.factor * self.zero",
            EVERY, "2 * code + 1, and not 2 * code",
        ),
        (
            "odd-input-sums", "acc.add_(self.windows(codes), alpha=self.weights.constant)", "acc.add_(self.weights.constant)",
            EVERY, "every input of a window counts",
        ),
        (
            "odd-overflow", "return self.factor * max(map(abs, self.stored)) + abs(self.constant)",
            "return max(map(abs, self.stored))",
            f"{EVERY}::test_an_accumulator_that_could_overflow_is_refused", "the integers are what is multiplied",
        ),
        (
            "interval-magnitude", "(v.abs() if self.magnitude else v) - self.input_lower", "v - self.input_lower",
            f"{EVERY}::test_inputs", "an interval of both signs",
        ),
        (
            "look-up-place", ".to(torch.int32) - self.inputs.stored[0]", ".to(torch.int32)",
            f"{EVERY}::test_look_up_gives_the_same_bits", "the first level is that of the lowest code",
        ),
        ("code-nan", "x.isnan().any(-1, keepdim=True)", "x.isinf().any(-1, keepdim=True)", CONVERTED, "NaN must show"),
    ),
    *mutants(
        "fastq/deploy/layers.py",
        (
            "handed-zero", '"out_zero_point": -next_.zero}', '"out_zero_point": 0}',
            f"{FUSION}::test_8_bits_without_a_sign_are_handed_on", "codes go on as the next layer stores them",
        ),
        (
            "norm-axis", "if multiplier is not None and codes.dim() != 2:", "if multiplier is not None and codes.dim() == 1:",
            f"{FUSION}::test_a_batch_norm_after_a_linear_layer", "a batch norm's channels are axis 1",
        ),
        (
            "packed-shift", "scale=scale, zero_point=-shift", "scale=scale, zero_point=shift",
            f"{CONVERTED}::test_any_range_of_weights", "the zero-point undoes the shift",
        ),
        (
            "state-layout", 'w = self.weight.to(self.weight.device, "rows")', "w = self.weight",
            f"{FUSION}::test_state_is_canonical_whatever_the_layout", "a state dict has one layout",
        ),
    ),
    *mutants(
        "fastq/nn/integer.py",
        (
            "train-zero", "Epilogue(s_x, -of_x.zero", "Epilogue(s_x, 0", f"{TRAINED}::test_any_range_of_256_codes",
            "codes are counted from what is stored as 0",
        ),
        (
            "train-empty", "            if not q._initialized:\n                return False\n", "",
            f"{TRAINED}::test_an_empty_first_batch_leaves_the_second_to_set_the_steps", "an empty batch sets no step",
        ),
        (
            "train-middle", "b_w.double() + s_w.double() * middle", "b_w.double()",
            f"{TRAINED}::test_the_converted_layers_numbers_and_the_fake_ones_gradients", "the offset is that of the middle",
        ),
        (
            "train-border", "if not any(window.padding):", "if window.padding:",
            f"{TRAINED}::test_the_converted_layers_numbers_and_the_fake_ones_gradients", "what is padded is on no grid",
        ),
        (
            "train-cut", "left : left + shape[3]", "right : right + shape[3]",
            f"{TRAINED}::test_the_converted_layers_numbers_and_the_fake_ones_gradients", "the odd element goes to the right",
        ),
        (
            "train-nan", "step=step + (nan[:, None] if step.dim() == 2 else nan)", "step=step",
            f"{TRAINED}::test_nan_reaches_the_output_or_a_gradient", "NaN must show",
        ),
        (
            "train-watched", 'getattr(q, "_watch", None) is not None', "q is None",
            f"{TRAINED}::test_curvature_is_looked_at_in_floating_point", "codes have no second derivative",
        ),
    ),
    *mutants(
        "fastq/nn/batch_norm.py",
        (
            "norm-training", "if self.training or self.running_mean is None", "if self.training or self.running_mean is not None",
            "tests/nn/test_batch_norm.py", "torch's batch norm is ulps away from the affine that is deployed",
        ),
    ),
    *mutants(
        "fastq/deploy/storage.py",
        (
            "saved-norms", "Affine.of(m)", "m.eval()",
            f"{FUSION}::test_what_trains_on_integers_is_deployed_with_its_bits", "an ulp moves a code",
        ),
        (
            "saved-norms-kept", "m.__class__ = m._float", "m.eval()",
            "tests/deploy/test_storage.py::test_batch_norms_are_those_of_the_saved_network", "nor those of the architecture",
        ),
    ),
    *mutants(
        "fastq/deploy/fusion.py",
        (
            "fused-too-late", "return any(n not in chain.nodes and", "return not chain.nodes and any(",
            f"{FUSION}::test_patterns", "what a layer reads may change before its sum",
        ),
        (
            "fused-hooks", "if not module.takes_codes or hooked(module)", "if not module.takes_codes",
            f"{FUSION}::test_what_has_hooks_stays_by_itself", "hooks want numbers",
        ),
        (
            "fused-grids", "if other.inputs != first.inputs or not torch.equal(other.input_step, first.input_step):", "if False:",
            f"{FUSION}::test_patterns", "one set of codes serves one grid",
        ),
        (
            "fused-strides", "if chain.moved or (source is not None and not chain.consumers):",
            "if source is not None and not chain.consumers:", f"{FUSION}::test_patterns", "a view needs the strides it had",
        ),
        (
            "fused-relu6", "float(6 / layer.input_step) >= layer.inputs.qmax", "float(6 / layer.input_step) >= 0",
            f"{FUSION}::test_relu6_where_codes_are_clipped_below_it", "the grid reaches beyond 6",
        ),
        (
            "fused-onto", "value is right and node.target not in IN_PLACE_ADDS", "value is right",
            f"{FUSION}::test_patterns", "what is added to in place is seen by others",
        ),
        (
            "fused-default", 'asked.append(f"{p.name} is _fastq_{p.name}")', "pass",
            f"{FUSION}::test_arguments_are_what_they_are", "a trace has the defaults of its arguments",
        ),
        (
            "fused-stored", "            value.clear()\n", "            continue\n",
            f"{FUSION}::test_what_forward_stores_is_stored_by_what_runs", "proxies must not stay",
        ),
        (
            "fused-replaced", "if child is not other:", "if False:",
            f"{FUSION}::test_modules_that_are_changed_later_are_run_as_they_are", "a module may be replaced later",
        ),
    ),
    *mutants(
        "fastq/deploy/conversion.py",
        (
            "weight-middle", "middle = (grid.qmin + grid.qmax + 1) // 2", "middle = (grid.qmin + grid.qmax) // 2",
            EVERY, "integers around 0",
        ),
        (
            "cross-term", "None if b_x is None or b_w is None else (b_x * b_w).contiguous()", "None",
            EVERY, "both have an offset",
        ),
        (
            "look-up-values", "levels.scatter_(1,", "levels.scatter(1,",
            f"{EVERY}::test_a_layer_whose_weight_alone_is_quantized_is_packed_or_looked_up",
            "QIL and EWGS round otherwise than the grid",
        ),
        (
            "input-levels", "values.index_copy(0, (evaluated.codes(x) - grid.qmin).long(), evaluated.forward(x))", "values",
            f"{EVERY}::test_look_up_gives_the_same_bits", "k / L is not k times 1 / L",
        ),
    ),
    *mutants(
        "fastq/nn/sat.py",
        ("sat-codes", "step == 0, 0.0, y / step).round()", "step == 0, 0.0, y / step)", GRIDS, "y / s is next to an integer"),
        ("sat-even", "2 * step if even else step", "step", GRIDS, "the codes of the floor scheme are two apart"),
    ),
    *mutants(
        "csrc/methods/tempered.h",
        (
            "cpu-noise-outside", "select(both(v > r.lower, v < r.upper), q - v, splat<V>(F(0)))", "q - v",
            f"{TEMPERED}::test_the_formula_by_hand", "what is clipped has no noise",
        ),
        (
            "cpu-noise-of-the-step", "inner = inner * (F(1) + xi * p[2]);", "inner = inner * xi * p[2];",
            f"{TEMPERED}::test_the_formula_by_hand", "the noise adds to the step's gradient",
        ),
        (
            "cpu-noise-of-the-gradient", "select(inner < F(0), -inner, inner)", "inner",
            f"{TEMPERED}::test_the_formula_by_hand", "the gradient's noise has the error's magnitude",
        ),
        (
            "cpu-scale-of-what-is-clipped", "select(inside, g * (x - p[0] * q), nan)", "g * (x - p[0] * q)",
            f"{TEMPERED}::test_the_formula_by_hand", "what is clipped has no gradient for a to scale",
        ),
    ),
    *mutants(
        "csrc/methods/noise_quant.h",
        (
            "cpu-noise-beyond-the-range", "return select(both(v > r.qmin, v < r.qmax), noisy, edge);",
            "return select(both(v >= r.qmin, v <= r.qmax), noisy, edge);",
            f"{NOISE_QUANT}::test_zeros_of_a_relu_stay_zeros_in_nipq", "the edge itself is clipped",
        ),
    ),
    *mutants(
        "csrc/methods/philox.h",
        ("cpu-philox-nine", "kPhiloxRounds = 10", "kPhiloxRounds = 9", f"{TEMPERED}::test_the_noise_is_philoxs", "ten rounds"),
        (
            "cpu-sine-for-cosine", "*even = r * same_size<V>(same_size<U>(cosine) ^ other);",
            "*even = r * same_size<V>(same_size<U>(cosine) ^ turned);",
            f"{TEMPERED}::test_the_noise_is_philoxs", "the cosine's own sign",
        ),
    ),
    *mutants(
        "csrc/cpu/philox.h",
        (
            "cpu-noise-misaligned", "return room + skip;", "return room;",
            f"{TEMPERED}::test_a_run_may_begin_within_a_counters_words", "a run may begin within a counter's words",
        ),
        (
            "cpu-counter-of-32-bits", "c1[i] = c0[i] >> 32;", "c1[i] = U64{};",
            "tests/native/test_philox.py", "a tensor of 2^34 elements uses the counter's second word",
        ),
    ),
    *mutants(
        "csrc/cpu/elementwise.h",
        (
            "cpu-noise-kept-too-long", "if (begin < first || begin + n > last) {", "if (begin < first || begin > last) {",
            f"{TEMPERED}::test_the_noise_is_philoxs", "noise that nobody made",
        ),
    ),
    *mutants(
        "csrc/cuda/elementwise.cuh",
        (
            "cuda-noise-of-one-counter", "noise_of(job.noise, job.noise_scale, uint64_t(offset + e) / 4, key, four);",
            "noise_of(job.noise, job.noise_scale, uint64_t(offset) / 4, key, four);",
            CUDA_NOISE, "a piece of eight has two counters",
        ),
    ),
    *mutants(
        "triton_kernels/philox.py",
        (
            "triton-words-in-order", "tl.join(tl.join(f0, f2), tl.join(f1, f3))", "tl.join(tl.join(f0, f1), tl.join(f2, f3))",
            TRITON_NOISE, "neighbours have neighbouring words",
        ),
        (
            "triton-other-half", "second, odd = (index & 2) != 0,", "second, odd = (index & 4) != 0,",
            TRITON_NOISE, "the word of the element",
        ),
    ),
    *mutants(
        "triton_kernels/elementwise.py",
        (
            "triton-quads-anywhere", "return self.block % 4 == 0 and step % 4 == 0", "return self.block % 4 == 0",
            TRITON_NOISE, "a run may begin within a counter's words",
        ),
    ),
    *mutants(
        "triton_kernels/tempered.py",
        (
            "triton-noise-of-the-gradient", "xi * p[2] * tl.abs(q - v)", "xi * p[2] * (q - v)",
            TRITON_NOISE, "the gradient's noise has the error's magnitude",
        ),
    ),
    *mutants(
        "fastq/reference/philox.py",
        ("reference-philox-key", "0x9E3779B9", "0x9E3779B1", PHILOX, "what the key grows by"),
        ("reference-uniform-whole", ".add(0.5).mul(2.0**-23)", ".mul(2.0**-23)", PHILOX, "noise has no bias"),
        ("reference-log", "h * (2 / 3 + h * (2 / 5", "h * (2 / 3 + h * (2 / 7", PHILOX, "the series of atanh"),
    ),
    *mutants(
        "fastq/reference/tempered.py",
        (
            "reference-scale-outside", "torch.where(m, gf * (x.to(v.dtype) - s * q), nan)", "gf * (x.to(v.dtype) - s * q) + nan",
            f"{TEMPERED}::test_the_formula_by_hand", "what is clipped has no gradient for a to scale",
        ),
        (
            "reference-noise-of-the-step", "inner = e * (1.0 + k)", "inner = e",
            f"{TEMPERED}::test_gradients_are_the_derivative_of_the_surrogate", "the noise adds to the step's gradient",
        ),
    ),
    *mutants(
        "fastq/nn/tempered.py",
        (
            "decay-not-copied", "decay=self.decay.clone() if", "decay=self.decay if",
            f"{NOISE_MODULES}::test_the_decay_of_a_call_is_that_of_its_time", "a backward pass has its forward's decay",
        ),
    ),
    *mutants(
        "fastq/packing.py",
        (
            "packing-neighbours", "for width in (8, 16, 32):  #", "for width in (8, 16):  #",
            f"{PACKED}::test_every_field_lies_where_the_layout_says", "three steps bring eight fields together",
        ),
        (
            "packing-third-bit", "joined_lines((words >> 2) & lanes(1, 8), 1)", "joined_lines((words >> 1) & lanes(1, 8), 1)",
            f"{PACKED}::test_every_field_lies_in_its_block", "the third bits have lines of their own",
        ),
        (
            "packing-widened-sign", "else sign_extended(codes.contiguous() ^ 2 ** (bits - 1), bits)",
            "else (codes.contiguous() ^ 2 ** (bits - 1)).view(torch.int8)",
            f"{PACKED}::test_packing_at_once_is_packing_and_moving", "a widened field keeps its sign",
        ),
        (
            "packing-last-group", ".clamp_(max=self.group_size)", ".fill_(self.group_size)",
            f"{PACKED}::test_sums_and_numbers_are_the_formulas", "the last group of a row may be shorter",
        ),
        (
            "packing-conv-channels", "fields = fields.movedim(1, -1)", "fields = fields",
            f"{PACKED}::test_a_convolution_has_its_channels_last", "a kernel meets the channels last",
        ),
        (
            "packing-file-padding", "if not torch.equal(packed.canonical().data, data):", "if packed.n != len(data):",
            f"{FILES}::test_a_header_that_lies", "a row that is said to be shorter than it is leaves bits",
        ),
    ),
    *mutants(
        "fastq/packed_formats.py",
        (
            "gptq-minus-one", "zero - int(minus_one)", "zero",
            f"{FORMATS}::test_gptq_words_are_those_of_its_definition", "zeros are stored less one",
        ),
        (
            "gptq-order", "not torch.equal(g_idx.to(torch.int64), trivial)", "False",
            f"{FORMATS}::test_bad_gptq", "columns in order of activation have other groups",
        ),
        (
            "int4pack-exact",
            "exact = (zeros_of(scale, zero) == z) & (zero >= 0) & (zero <= 15)", "exact = (zero >= 0) & (zero <= 15)",
            f"{FORMATS}::test_bad_int4pack", "a zero between two zero-points is refused, not rounded",
        ),
        (
            "int4pack-slab", "for height in (min(SLAB, n), n):", "for height in (min(SLAB, n),):",
            f"{FORMATS}::test_a_packing_in_larger_blocks_is_learned_whole", "blocks may be larger on a processor",
        ),
    ),
    *mutants(
        "fastq/container.py",
        (
            "container-checksum", "or _digest(data, *match.span(2)) != checksum:", "or len(data) < 8:",
            f"{FILES}::test_every_flipped_bit_is_found", "a flipped bit of a tensor leaves everything else valid",
        ),
        (
            "container-half-file", "part.write_bytes(data)\n", "Path(path).write_bytes(data[:8]), part.write_bytes(data)\n",
            f"{FILES}::test_a_failed_save_leaves_what_was_there", "the old file stays until the new one is whole",
        ),
        (
            "container-tensors", "if version not in uncounted and", "if version in uncounted and",
            f"{FILES}::test_a_tensor_that_could_be_done_without_is_missed", "a zero-point that is missing is not 0",
        ),
        (
            "container-overlap", "if first != end or last - first !=", "if last - first !=",
            f"{FILES}::test_what_safetensors_may_not_hold", "no two tensors share bytes",
        ),
        (
            "container-trailing", "if end != len(data) - start:", "if end > len(data) - start:",
            f"{FILES}::test_what_safetensors_may_not_hold", "nothing hides behind the tensors",
        ),
        (
            "container-twice", "object_pairs_hook=_once", "object_pairs_hook=dict",
            f"{FILES}::test_a_name_that_occurs_twice_and_other_json", "two readers may take one of two values each",
        ),
    ),
    *mutants(
        "fastq/runtime.py",
        (
            "runtime-grid", "if self.grids[given] != (low, high, x_scale.tobytes()):", "if False:",
            "tests/deploy/test_program.py::test_a_file_that_lies_is_refused", "codes are made for one grid",
        ),
        (
            "runtime-zero-point", "stored = (zero - middle).astype(np.int32)", "stored = zero",
            "tests/deploy/test_program.py::test_granularities_zero_points_and_layers_without_codes", "fields have their sign",
        ),
    ),
    *mutants(
        "fastq/deploy/program.py",
        (
            "program-in-place", "raise NoProgram(f\"{name} changes in place what others use too, or may\")", "return",
            "tests/deploy/test_program.py::test_what_has_no_program_says_why", "a sum of a value and what became of it",
        ),
    ),
    *mutants(
        "fastq/seeds.py",
        (
            "seed-not-copied", "taken = seed.clone()", "taken = seed",
            f"{NOISE_MODULES}::test_calls_before_one_backward_pass_keep_their_noise", "a backward pass has its forward's seed",
        ),
        (
            "seed-not-advanced", "        seed += 1\n", "",
            f"{NOISE_MODULES}::test_each_training_call_draws_new_noise_and_one_state_gives_one_sequence", "each step draws anew",
        ),
    ),
]  # fmt: skip

#: Runs pytest once for each line of JSON it reads, ``[output file, arguments...]``, in a fork that has torch loaded: that takes
#: longer than most of the tests. Answers with the fork's number, and with its exit status once it has ended.
SERVER = """
import json, os, sys
import pytest, torch, torch._dynamo

for line in sys.stdin:
    output, *arguments = json.loads(line)
    pid = os.fork()
    if pid == 0:
        os.setsid()
        to = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(to, 1), os.dup2(to, 2), os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        code = pytest.main(arguments)
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant: ``killed``, ``survived`` or ``error``, by what, and in how many seconds."""

    mutant: Mutant
    state: str
    detail: str
    seconds: float


class Tree:
    """A copy of the sources in which mutants live, with an environment whose ``fastq`` is this copy."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running: int | None = None
        self.server: subprocess.Popen[str] | None = None
        shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*LEFT_OUT), dirs_exist_ok=True)
        # An installed package has it here (pyproject.toml); in a bare copy of the sources a link does the same.
        (folder / "fastq" / "triton_kernels").symlink_to(folder / "triton_kernels")
        # An environment of its own: programs that tests start must find this copy, not what is installed for editing.
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / ".venv"], check=True)
        self.python = str(folder / ".venv" / "bin" / "python")
        (site,) = (folder / ".venv" / "lib").glob("python*/site-packages")
        packages = [path for path in sys.path if path.endswith("site-packages")]
        (site / "mutants.pth").write_text("\n".join([str(folder), *packages]) + "\n")
        self.native = folder / "build" / "native"
        self.library = folder / "fastq" / "lib" / "libfastq.so"

    def build(self) -> None:
        """The CPU library and the runtime module, once; setup.py says how. Then what runs the tests."""
        os.environ["FASTQ_CPU_LEVELS"] = ISA
        setup = load(self.folder / "setup.py")
        for flags in (setup.KERNEL_FLAGS, setup.TORCH_FLAGS):
            flags[:] = [{"-O3": "-O1", "-O2": "-O0"}.get(flag, flag) for flag in flags]
        ninja, products, _ = setup.plan()
        ninja.folder = self.native
        self.native.mkdir(parents=True)
        (self.native / "build.ninja").write_text("\n".join(ninja.lines) + "\n")
        self.ninja()
        self.library.parent.mkdir()
        for built, place in products:
            shutil.copy2(self.native / built, self.folder / "fastq" / place)
        self.objects = [line for line in self.ninja("-t", "inputs", "libfastq.so").split() if line.endswith(".o")]
        self.link = shlex.split(self.ninja("-t", "commands", "libfastq.so").splitlines()[-1])
        self.clean = self.folder / "build" / "clean"
        self.clean.mkdir()
        for name in self.objects:
            shutil.copy2(self.native / name, self.clean)
        shutil.copy2(self.library, self.clean)
        self.serve()

    def ninja(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "ninja", "-j1", "-C", str(self.native), *arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            raise Stale(f"the build failed:\n{tail(done.stdout)}")
        return done.stdout

    def build_mutant(self, mutant: Mutant) -> None:
        """Those objects that the tests look at, and the library. They come first when it is linked: of an inline function that
        several objects have, the first one is taken."""
        wanted = [name for name in self.objects if mutant.concerns(name)]
        self.ninja(*wanted)
        rest = [word for word in self.link if word not in wanted]
        place = rest.index("-shared") + 1
        subprocess.run([*rest[:place], *wanted, *rest[place:]], cwd=self.native, check=True)
        self.place(self.native / "libfastq.so")

    def undo(self) -> None:
        """The library and the objects as they were, with their times, so that nothing has to be made again."""
        for path in self.clean.iterdir():
            own = self.native / path.name
            if path.suffix == ".o" and (not own.exists() or own.stat().st_mtime_ns != path.stat().st_mtime_ns):
                shutil.copy2(path, own)
        self.place(self.clean / self.library.name)

    def place(self, library: Path) -> None:
        new = self.library.with_suffix(".new")
        shutil.copy2(library, new)
        new.replace(self.library)

    def serve(self) -> None:
        env = {**os.environ, "FASTQ_CPU_ISA": ISA, "FASTQ_TEST_QUICK": "1", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.server = subprocess.Popen([self.python, "-c", SERVER], cwd=self.folder, env=env, **pipes)

    def test(self, tests: tuple[str, ...], limit: float) -> tuple[int | None, str]:
        """pytest's exit status (None: ended after ``limit`` seconds) and output."""
        options = ("-x", "-q", "--tb=short", "-rfE", "-p", "no:cacheprovider", "--hypothesis-seed=0")
        output = self.folder / "output"
        self.ask(json.dumps([str(output), *options, *tests]))
        self.running = int(self.answer())
        timer = threading.Timer(limit, self.stop)
        timer.start()
        code = self.answer()
        hung = not timer.is_alive()
        timer.cancel()
        self.running = None
        return None if hung else int(code), output.read_text(errors="replace")

    def ask(self, line: str) -> None:
        if self.server is None or self.server.stdin is None:
            raise Stale("no server runs the tests")
        print(line, file=self.server.stdin, flush=True)

    def answer(self) -> str:
        line = self.server.stdout.readline() if self.server is not None and self.server.stdout is not None else ""
        if not line:
            raise Stale("the server that runs the tests ended")
        return line

    def stop(self) -> None:
        """End the tests that are running, and all that they started."""
        if (running := self.running) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running, signal.SIGKILL)

    def close(self) -> None:
        self.stop()
        if self.server is not None:
            self.server.kill()
            self.server.wait()

    def judge(self, mutant: Mutant, limit: float) -> Outcome:
        """Apply, build, test, undo."""
        start = time.monotonic()
        path = self.folder / mutant.file
        text, times = path.read_text(), path.stat()
        try:
            path.write_text(mutant.applied(text))
            if mutant.native:
                self.build_mutant(mutant)
            elif path.suffix == ".py":
                compile(path.read_text(), mutant.file, "exec")
            state, detail = verdict(*self.test(mutant.tests, limit))
        except (Stale, SyntaxError, subprocess.CalledProcessError) as error:
            state, detail = "error", str(error)
        finally:
            path.write_text(text)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
            if mutant.native:
                self.undo()
        return Outcome(mutant, state, detail, time.monotonic() - start)


def verdict(code: int | None, output: str) -> tuple[str, str]:
    """From pytest's exit status and output to what became of the mutant."""
    if code is None:
        return "killed", "it hung: the time limit ended it"
    if code == 0:
        return "survived", ""
    if code < 0:
        return "killed", f"it crashed: {signal.Signals(-code).name}"
    # Not a fault found but one that cannot run: a compiler's message, or Triton's, or a name that is not there.
    broken = re.search(r"^.*(?:\b(?:error|warning): |CompilationError|NameError|SyntaxError|ImportError).*$", output, re.MULTILINE)
    if code != 1 or broken:
        return "error", (broken.group(0).strip() if broken else f"pytest ended with {code}:\n{tail(output)}")
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
    return "killed", failed.group(1).removeprefix("tests/") if failed else tail(output, 1)


def tail(output: str, lines: int = 25) -> str:
    return "\n".join(output.rstrip().splitlines()[-lines:])


def load(path: Path) -> ModuleType:
    name = f"fastq_setup_{abs(hash(path))}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise Stale(f"{path} is not there")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def in_parallel(trees: list[Tree], jobs: list[Any], work: Callable[[Tree, Any], Any], done: Callable[[Any], None]) -> None:
    """``done(work(tree, job))`` for every job, each tree busy with one at a time. The first exception ends it."""
    todo: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for job in jobs:
        todo.put(job)
    raised: list[BaseException] = []

    def worker(tree: Tree) -> None:
        try:
            while not raised:
                done(work(tree, todo.get_nowait()))
        except queue.Empty:
            pass
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=worker, args=(tree,), daemon=True) for tree in trees]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            while thread.is_alive():
                thread.join(0.2)
    finally:
        for tree in trees if raised or any(thread.is_alive() for thread in threads) else ():
            tree.stop()
    if raised:
        raise raised[0]


def baseline(trees: list[Tree], chosen: list[Mutant], limit: float) -> None:
    """The tests pass where nothing is changed; ``Stale`` otherwise. One run for each file of tests."""
    files: dict[str, set[str]] = {}
    for test in {test for mutant in chosen for test in mutant.tests}:
        files.setdefault(test.partition("::")[0], set()).add(test)
    slow_first = sorted((tuple(sorted(tests)) for tests in files.values()), key=lambda tests: "triton" not in tests[0])

    def check(result: tuple[int | None, str]) -> None:
        if result[0] != 0:
            raise Stale(f"the tests fail without any mutant:\n{tail(result[1])}")

    in_parallel(trees, slow_first, lambda tree, tests: tree.test(tests, 4 * limit), check)


def killed_before() -> dict[str, str]:
    known: dict[str, str] = json.loads(KILLED.read_text()) if KILLED.exists() else {}
    return known


def due(chosen: list[Mutant], killed: dict[str, str], commit: str) -> list[Mutant]:
    """Of ``chosen`` those that were not killed as they are, and one in ``AGAIN`` of the others, which ``commit`` decides."""

    def again(mutant: Mutant) -> bool:
        return int(hashlib.sha256(f"{commit} {mutant.name}".encode()).hexdigest(), 16) % AGAIN == 0

    return [mutant for mutant in chosen if killed.get(mutant.name) != mutant.digest() or again(mutant)]


def write_down(outcomes: list[Outcome], digests: dict[str, str]) -> None:
    """What was killed, beside what is known of other mutants."""
    known = killed_before()
    for outcome in outcomes:
        known.pop(outcome.mutant.name, None)
    known |= {outcome.mutant.name: digests[outcome.mutant.name] for outcome in outcomes if outcome.state == "killed"}
    names = {mutant.name for mutant in MUTANTS}
    KILLED.write_text(json.dumps({name: known[name] for name in sorted(names & known.keys())}, indent=0) + "\n")


def head() -> str:
    """The commit, or nothing where there is no git."""
    with contextlib.suppress(OSError):
        return subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return ""


def report(console: Console, outcomes: list[Outcome]) -> None:
    table = Table(title="mutants", title_justify="left")
    for column in ("mutant", "file", "fault", "seconds", "result", "by"):
        table.add_column(column, overflow="fold", justify="right" if column == "seconds" else "left")
    colours = {"killed": "green", "survived": "bold red", "error": "bold magenta"}
    for outcome in sorted(outcomes, key=lambda outcome: MUTANTS.index(outcome.mutant)):
        mutant, by = outcome.mutant, outcome.detail if outcome.state == "killed" else ""
        result = f"[{colours[outcome.state]}]{outcome.state}[/]"
        table.add_row(mutant.name, mutant.file, mutant.why, f"{outcome.seconds:.0f}", result, by.replace("[", "\\["))
    console.print(table)
    for outcome in outcomes:
        if outcome.state != "killed":
            console.rule(f"{outcome.mutant.name}: {outcome.state}", align="left")
            console.print(f"{outcome.mutant.file}\n{outcome.mutant.diff()}\n{outcome.detail}", markup=False)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="mutants.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print the mutants and stop")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these mutants alone")
    parser.add_argument("--changed", action="store_true", help="those not killed yet with these files, and some of the others")
    parser.add_argument("--jobs", type=int, default=min(os.cpu_count() or 1, 2), help="mutants at once (default: %(default)s)")
    parser.add_argument("--limit", type=float, default=180, help="seconds that a mutant's tests may take (default: %(default)s)")
    parser.add_argument("--no-baseline", action="store_true", help="trust that the tests pass without a mutant")
    options = parser.parse_args()
    known = {mutant.name for mutant in MUTANTS}
    if unknown := set(options.only or ()) - known:
        parser.error(f"no mutant is called {', '.join(sorted(unknown))}; --list prints the names")
    if options.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {options.jobs}")
    return options


def main() -> int:
    options = arguments()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    chosen = [mutant for mutant in MUTANTS if not options.only or mutant.name in options.only]
    if options.list:
        for mutant in chosen:
            console.print(f"{mutant.name:<26} {mutant.file:<32} {mutant.why}", markup=False, soft_wrap=True)
        return 0
    os.environ["FASTQ_BUILD_CUDA"] = "0"
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the copies are removed then too
    start = time.monotonic()
    outcomes: list[Outcome] = []
    digests: dict[str, str] = {}
    try:
        if len({mutant.name for mutant in MUTANTS}) != len(MUTANTS):
            raise Stale("two mutants have the same name")
        for mutant in MUTANTS:
            mutant.applied((ROOT / mutant.file).read_text())
        before = len(chosen)
        if options.changed:
            chosen = due(chosen, killed_before(), head())
        digests = {mutant.name: mutant.digest() for mutant in chosen}
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="fastq-mutants-"))
            bar = stack.enter_context(progress(console))
            task = bar.add_task("copy and build", total=None)
            trees: list[Tree] = []
            for number in range(min(options.jobs, len(chosen))):
                (place := Path(folder).resolve() / str(number)).mkdir()
                trees.append(Tree(place))
                stack.callback(trees[-1].close)
            in_parallel(trees, trees, lambda _, tree: tree.build(), lambda _: None)
            if not options.no_baseline:
                bar.update(task, description="without a mutant")
                baseline(trees, chosen, options.limit)
            passed = "" if options.no_baseline else ", and the tests pass without a mutant"
            bar.console.print(f"built{passed} ({time.monotonic() - start:.0f} s)")
            bar.update(task, description="mutants", total=len(chosen))

            def done(outcome: Outcome) -> None:
                outcomes.append(outcome)
                bar.advance(task)
                bar.console.print(f"{outcome.state:<8} {outcome.mutant.name} ({outcome.seconds:.0f} s)", markup=False)

            # The long ones first, so that no worker ends with one
            chosen.sort(key=lambda mutant: (not mutant.tests[0].startswith((COMPILED.partition("::")[0], CUDA)), not mutant.native))
            in_parallel(trees, chosen, lambda tree, mutant: tree.judge(mutant, options.limit), done)
    except Stale as error:
        console.print(f"mutants: {error}", markup=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        console.print("mutants: interrupted")
        return 130
    finally:
        write_down(outcomes, digests)
    report(console, outcomes)
    count = {state: sum(outcome.state == state for outcome in outcomes) for state in ("killed", "survived", "error")}
    summary = ", ".join(f"{number} {state}" for state, number in count.items())
    others = f"; {before - len(outcomes)} were killed before with the files as they are" if options.changed else ""
    console.print(f"{len(outcomes)} mutants in {time.monotonic() - start:.0f} s: {summary}{others}")
    return 2 if count["error"] else 1 if count["survived"] else 0


def progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True)


if __name__ == "__main__":
    sys.exit(main())
