"""Runs the checks of every method on Triton's interpreter and prints the reports.

A program of its own: the interpreter must be chosen before Triton is imported. ``FASTQ_TEST_QUICK=1`` takes a few of the cases.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from affine_cases import AFFINE_CASES, affine, affine_reference
from lsq_cases import check_division, check_sums, lsq, lsq_cases, reference

import fastq
from fastq.testing import LAYOUTS, check_quantizer, same_bits


def operators() -> list[tuple[Any, tuple[Any, ...]]]:
    fastq.triton_kernels.methods()
    x, g, step = torch.randn(4, 6), torch.randn(4, 6), torch.rand(6) + 0.1
    forward, backward = torch.ops.fastq_triton.lsq_forward.default, torch.ops.fastq_triton.lsq_backward.default
    return [(forward, (x, step, step, -8, 7, 1, 0, 1e-8)), (backward, (g, x, step, step, -8, 7, 1, 0, 1e-8, 1, 1.0, 1, 1.0))]


def main() -> None:
    import fastq.triton_kernels

    quick = os.environ.get("FASTQ_TEST_QUICK") == "1"
    few: dict[str, Any] = {"threads": (1,), "large": 9000}
    # Layouts are the launcher's affair and dtypes the kernels': all of each, and not each of one with each of the other. Of the two
    # cases for a granularity one is without offset, one with.
    every: list[dict[str, Any]] = [{"dtypes": (torch.float32,)}, {"layouts": LAYOUTS[:2]}]
    if quick:
        few |= {"dtypes": (torch.float32, torch.bfloat16), "layouts": ("contiguous",)}
    with fastq.use_backend("triton"):
        for offset in (False, True):
            cases = lsq_cases(offset)
            # quick: one step, and groups; columns come with check_sums
            chosen = (1, 12) if quick else range(offset, len(cases), 2)
            report = check_quantizer(
                lsq, reference, [cases[i] for i in chosen], **few | ({} if quick else every[offset]),
                operators=operators() if offset and not quick else (), name=f"triton lsq, offset={offset}",
            )  # fmt: skip
            print(report)
            print(len(report.results), "results")
        some = AFFINE_CASES[:1] if quick else AFFINE_CASES
        report = check_quantizer(affine, affine_reference, some, **few | ({} if quick else every[1]), name="triton affine")
        print(report)
        print(len(report.results), "results")
        weights = [torch.randn(4, 33, requires_grad=True), torch.randn(70, requires_grad=True)]
        steps = [torch.rand(4).add(0.1).requires_grad_(), torch.rand(1).add(0.1).requires_grad_()]
        many = fastq.foreach_lsq(weights, steps, bits=4, axis=[0, None])
        each = [fastq.lsq(w, s, bits=4, axis=a) for w, s, a in zip(weights, steps, (0, None), strict=True)]
        found, wanted = (torch.autograd.grad(sum(y.sin().sum() for y in q), [*weights, *steps]) for q in (many, each))
        if not all(same_bits(a, b) for a, b in zip([*many, *found], [*each, *wanted], strict=True)):
            raise SystemExit("foreach_lsq differs from lsq")
        check_sums(lsq)
        check_division(lsq)
        x = torch.tensor([float("nan"), 30.0, -30.0, 0.31], requires_grad=True)
        ours = fastq.fake_quantize_per_tensor_affine(x, 0.1, 2, -8, 7)
        (dx,) = torch.autograd.grad(ours, x, torch.ones(4))
        with fastq.use_backend("reference"):
            want = fastq.fake_quantize_per_tensor_affine(x, 0.1, 2, -8, 7)
            (dwant,) = torch.autograd.grad(want, x, torch.ones(4))
        if not same_bits(ours, want) or not same_bits(dx, dwant):
            raise SystemExit(f"fixed affine: {ours} {dx} where {want} {dwant} was expected")


if __name__ == "__main__":
    main()
