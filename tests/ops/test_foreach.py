"""LSQ of many tensors at once: the bits of one call for each, whatever is mixed, on every backend that runs here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from device import BACKEND, DEVICE, drawn

import fastq
from fastq.autograd import ForeachLSQ
from fastq.ops.foreach import resolve
from fastq.testing import same_bits

#: shape, dtype, axis, group_size, bits, signed: every walk of the loops, both ways to pass a mixed list.
MIX: list[tuple[tuple[int, ...], torch.dtype, int | None, int | None, Any, bool]] = [
    ((64, 3, 7, 7), torch.float32, 0, None, 8, True),
    ((5000,), torch.float32, None, None, 4, True),
    ((16, 33), torch.bfloat16, 1, None, 2, True),
    ((300, 9), torch.float32, 1, None, (-3, 5), True),
    ((8, 64), torch.float16, None, 32, 4, False),
    ((0, 4), torch.float32, 0, None, 4, True),
    ((3, 5), torch.float64, None, None, 4, True),
    ((), torch.float32, None, None, 3, True),
]


def tensors(mix: Any = MIX) -> tuple[list[Any], list[Any], list[Any], dict[str, list[Any]]]:
    """Weights, steps, gradients, and the keywords that go with them."""
    weights, steps, gradients = [], [], []
    for shape, dtype, axis, group, _, _ in mix:
        kind = torch.float64 if dtype == torch.float64 else torch.float32
        parameter = (*shape[:-1], shape[-1] // group) if group else (1,) if axis is None else (shape[axis],)
        weights.append(drawn(shape, 2 * len(weights)).to(dtype).requires_grad_())
        steps.append((torch.rand(parameter, device=DEVICE) * 0.3 + 0.1).to(kind).requires_grad_())
        gradients.append(drawn(shape, 2 * len(gradients) + 1).to(dtype))
    _, _, axes, groups, bits, signed = zip(*mix, strict=True)
    return weights, steps, gradients, {"bits": [*bits], "signed": [*signed], "axis": [*axes], "group_size": [*groups]}


def one_by_one(weights: Any, steps: Any, keywords: dict[str, list[Any]], **more: Any) -> list[torch.Tensor]:
    each = [dict(zip(keywords, values, strict=True)) for values in zip(*keywords.values(), strict=True)]
    return [fastq.lsq(w, s, **own, **more) for w, s, own in zip(weights, steps, each, strict=True)]


@pytest.mark.parametrize("backend", [BACKEND, "reference"])
@pytest.mark.parametrize("how", [{}, {"boundary": "rounded", "grad_scale": 0.5}, {"grad_scale": "lsq-full"}], ids=str)
def test_the_bits_are_those_of_one_call_each(backend: str, how: dict[str, Any]) -> None:
    weights, steps, gradients, keywords = tensors()
    weights[2].data = weights[2].data.t().contiguous().t()
    weights[0].data = weights[0].data.to(memory_format=torch.channels_last)
    with fastq.use_backend(backend):
        together = fastq.foreach_lsq(weights, steps, **keywords, **how)
        apart = one_by_one(weights, steps, keywords, **how)
        got = torch.autograd.grad(together, [*weights, *steps], gradients)
        want = torch.autograd.grad(apart, [*weights, *steps], gradients)
    for a, b in zip([*together, *got], [*apart, *want], strict=True):
        assert same_bits(a, b) and a.stride() == b.stride()


def test_equals_the_reference() -> None:
    weights, steps, gradients, keywords = tensors()
    ours = fastq.foreach_lsq(weights, steps, **keywords)
    theirs = fastq.reference.foreach_lsq(weights, steps, **keywords)
    n = len(weights)
    got = torch.autograd.grad(ours, [*weights, *steps], gradients)
    want = torch.autograd.grad(theirs, [*weights, *steps], gradients)
    assert all(same_bits(a, b) for a, b in zip([*ours, *got[:n]], [*theirs, *want[:n]], strict=True))
    for a, b in zip(got[n:], want[n:], strict=True):  # sums: of 5000 terms at most, each below 8, in another order
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_no_sum_depends_on_threads(one_thread: None) -> None:
    weights, steps, gradients, keywords = tensors([((600, 700), torch.float32, None, None, 4, True), *MIX])
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(torch.autograd.grad(fastq.foreach_lsq(weights, steps, **keywords), [*weights, *steps], gradients))
    assert all(same_bits(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("threads", [1, 3])
def test_every_piece_of_every_tensor_is_done(one_thread: None, threads: int) -> None:
    """Tensors that are cut into several pieces, by elements and (20001 of them) by channels. Outputs hold NaN before the kernels
    write them: left alone, memory that was free has the right numbers of the call before."""
    big: list[Any] = [
        ((600, 200), torch.float32, None, None, 4, True),
        ((20001, 3), torch.float32, 0, None, 4, True),
        ((300, 301), torch.float32, 1, None, 4, True),
        ((40, 2048), torch.bfloat16, None, 32, 4, True),
    ]
    weights, steps, gradients, keywords = tensors([*big, *MIX, big[0]])
    torch.set_num_threads(threads)
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        assert bool(torch.empty(3, device=DEVICE).isnan().all())
        results = []
        for quantized in (fastq.foreach_lsq(weights, steps, **keywords), one_by_one(weights, steps, keywords)):
            results.append([*quantized, *torch.autograd.grad(quantized, [*weights, *steps], gradients)])
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = filled
        torch.set_num_threads(1)
    assert all(same_bits(a, b) for a, b in zip(*results, strict=True))
    assert not any(bool(t.isnan().any()) for t in results[0])


def test_an_output_nobody_uses_gets_no_gradient() -> None:
    weights, steps, gradients, keywords = tensors()
    quantized = fastq.foreach_lsq(weights, steps, **keywords)
    some = [0, 3, 4]
    (quantized[0].sum() + (quantized[3] * gradients[3]).sum() + quantized[4].float().sum()).backward()
    assert (
        [i for i, w in enumerate(weights) if w.grad is not None] == some == [i for i, s in enumerate(steps) if s.grad is not None]
    )
    (alone,) = torch.autograd.grad(one_by_one(weights, steps, keywords)[3], steps[3], gradients[3])
    assert same_bits(steps[3].grad, alone)


def test_nothing_is_kept_beside_the_inputs() -> None:
    weights, steps, _, keywords = tensors()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        fastq.foreach_lsq(weights, steps, **keywords)
    assert {t.data_ptr() for t in kept} <= {t.data_ptr() for t in (*weights, *steps)}


def test_a_second_backward_raises() -> None:
    weights, steps, _, keywords = tensors(MIX[:2])
    quantized = fastq.foreach_lsq(weights, steps, **keywords)
    (dw,) = torch.autograd.grad(sum(q.square().sum() for q in quantized), weights[0], create_graph=True)
    with pytest.raises(RuntimeError, match="foreach_lsq: double backward is not defined"):
        torch.autograd.grad(dw.sum(), weights[1])


def test_no_tensors_give_none() -> None:
    assert fastq.foreach_lsq([], [], bits=4) == ()


def test_it_compiles_whole() -> None:
    weights, steps, gradients, keywords = tensors(MIX[:5])
    compiled = torch.compile(lambda w, s: fastq.foreach_lsq(w, s, **keywords), fullgraph=True, backend="aot_eager")
    want, got = fastq.foreach_lsq(weights, steps, **keywords), compiled(weights, steps)
    assert all(same_bits(a, b) for a, b in zip(got, want, strict=True))
    dgot = torch.autograd.grad(got, [*weights, *steps], gradients[:5])
    dwant = torch.autograd.grad(want, [*weights, *steps], gradients[:5])
    assert all(same_bits(a, b) for a, b in zip(dgot, dwant, strict=True))


@torch.no_grad()
def test_the_operators_keep_to_their_schemas() -> None:
    weights, steps, gradients, keywords = tensors(MIX[:4])
    a = resolve(weights, steps, **keywords)
    each = (a.qmin, a.qmax, a.axis, a.group_size, a.eps)
    utilities = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    plain = [[t.detach() for t in ts] for ts in (gradients, weights, steps)]
    torch.library.opcheck(torch.ops.fastq.foreach_lsq_forward.default, (*plain[1:], *each), test_utils=utilities)
    torch.library.opcheck(torch.ops.fastq.foreach_lsq_backward.default, (*plain, *each, 0, 1.0, 1), test_utils=utilities)


def test_the_operators_refuse_gradients_and_ragged_lists() -> None:
    weights, steps, _, _ = tensors(MIX[:2])
    each = ([-8] * 2, [7] * 2, [0, -1], [0, 0], 1e-8)
    with pytest.raises(RuntimeError, match="private operator without an autograd formula"):
        torch.ops.fastq.foreach_lsq_forward(weights, steps, *each)
    with torch.no_grad(), pytest.raises(RuntimeError, match="must be lists of one length, got 2, 1"):
        torch.ops.fastq.foreach_lsq_forward(weights, steps[:1], *each)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weights": torch.ones(3)}, TypeError, "weights must be a list or tuple of tensors, got Tensor"),
        ({"steps": []}, ValueError, "a step for each weight, got 2 weights and 0 steps"),
        ({"bits": [4]}, ValueError, "bits must be one value or a list of 2, one for each weight, got 1"),
        ({"bits": 9}, ValueError, "bits must be from 1 to 8"),
        ({"axis": [0, 5]}, ValueError, r"axis must be in \[-1, 0\] for weights of 1 dimensions, got 5 \(tensor 1\)"),
        ({"bits": [4, 9]}, ValueError, r"bits must be from 1 to 8 .*got 9 \(tensor 1\)"),
        ({"group_size": [None, 3], "axis": None}, ValueError, r"group_size=3 must divide the last axis of weights.*\(tensor 1\)"),
        ({"boundary": "half"}, ValueError, "boundary must be one of"),
        ({"eps": 0.0}, ValueError, "eps must be positive"),
        ({"grad_scale": None}, TypeError, "grad_scale must be a float"),
        ({"steps": [torch.ones(2), torch.ones(1)]}, ValueError, r"steps must have shape \(64,\) for weights of.*\(tensor 0\)"),
        ({"steps": [torch.ones(64), 0.1]}, TypeError, r"steps must be a torch\.Tensor, got float \(tensor 1\)"),
        (
            {"weights": [torch.ones(64, 2), torch.ones(4, dtype=torch.int32)]},
            TypeError,
            r"weights must be float32.*got torch\.int32 \(tensor 1\)",
        ),
    ],
    ids=str,
)
def test_bad_input_is_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    weights, steps, _, keywords = tensors(MIX[:2])
    with pytest.raises(error, match="foreach_lsq: .*" + message):
        fastq.foreach_lsq(**({"weights": weights, "steps": steps, **keywords} | change))


def test_checks_look_at_the_steps() -> None:
    fastq.set_checks(True)
    try:
        with pytest.raises(ValueError, match=r"foreach_lsq: steps must be positive.*\(tensor 0\)"):
            fastq.foreach_lsq([torch.ones(3)], [torch.zeros(1)], bits=4)
    finally:
        fastq.set_checks(False)


def test_the_function_is_public() -> None:
    w, s = torch.randn(4), torch.ones(1)
    (y,) = ForeachLSQ.apply(resolve([w], [s], bits=4), w, s)
    assert same_bits(y, fastq.lsq(w, s, bits=4))


# The dampening loss and the oscillation step of many weights


@pytest.mark.parametrize("backend", [BACKEND, "reference"])
@pytest.mark.parametrize("reduction", ["sum", "mean", "kernel"])
def test_dampening_is_the_sum_of_the_losses(backend: str, reduction: str) -> None:
    weights, steps, _, keywords = tensors([case for case in MIX if case[1] != torch.float64])
    with fastq.use_backend(backend):
        together = fastq.foreach_dampening(weights, steps, reduction=reduction, **keywords)
        apart = [
            fastq.dampening(w, s, reduction=reduction, **dict(zip(keywords, values, strict=True)))
            for w, s, values in zip(weights, steps, zip(*keywords.values(), strict=True), strict=True)
        ]
        got = torch.autograd.grad(2.5 * together, weights)
        want = torch.autograd.grad([2.5 * loss for loss in apart], weights)
    assert all(same_bits(a, b) and a.stride() == b.stride() for a, b in zip(got, want, strict=True))
    # The losses are added in fp64 here, and rounded one by one there.
    torch.testing.assert_close(together, torch.stack([*apart]).double().sum().float(), rtol=1e-6, atol=0)
    assert together.dtype == torch.float32 and all(s.grad is None for s in steps)


def test_dampening_gives_gradients_to_those_that_want_them() -> None:
    weights, steps, _, keywords = tensors(MIX[:3])
    weights[1].requires_grad_(False)
    fastq.foreach_dampening(weights, steps, **keywords).backward()
    assert [w.grad is not None for w in weights] == [True, False, True]
    (dw,) = torch.autograd.grad(fastq.foreach_dampening(weights, steps, **keywords), weights[0], create_graph=True)
    with pytest.raises(RuntimeError, match="foreach_dampening: double backward is not defined"):
        torch.autograd.grad(dw.sum(), weights[0])


@pytest.mark.parametrize("backend", [BACKEND, "reference"])
def test_the_oscillation_step_is_that_of_each(backend: str) -> None:
    weights, steps, _, keywords = tensors()
    weights, steps = [w.detach() for w in weights], [s.detach() for s in steps]
    weights[2] = weights[2].t().contiguous().t()
    each = [dict(zip(keywords, values, strict=True)) for values in zip(*keywords.values(), strict=True)]
    apart = [w.clone(memory_format=torch.preserve_format) for w in weights]
    with fastq.use_backend(backend):
        states = fastq.foreach_oscillation_step_(weights, steps, **keywords)
        alone = [fastq.oscillation_step_(w, s, **own) for w, s, own in zip(apart, steps, each, strict=True)]
        how: dict[str, Any] = {"momentum": 0.1, "threshold": 0.05, "count_first": True}
        for sign in (1, -1, 1, -1, 1):
            for w, s in zip([*weights, *apart], [*steps, *steps], strict=True):
                w.add_(sign * s.flatten()[:1].mean().item() if s.numel() else 0.0)
            again = fastq.foreach_oscillation_step_(weights, steps, states, **keywords, **how)
            assert all(a is b for a, b in zip(again, states, strict=True))
            for w, s, state, own in zip(apart, steps, alone, each, strict=True):
                fastq.oscillation_step_(w, s, state, **own, **how)
    assert any(bool(state.frozen.any()) for state in states)
    for a, b, one, other in zip(weights, apart, states, alone, strict=True):
        assert same_bits(a, b) and torch.equal(one.freeze, other.freeze) and torch.equal(one.track, other.track)


def test_a_write_by_the_oscillation_step_is_counted_and_a_missing_state_is_made() -> None:
    weights, steps, _, keywords = tensors(MIX[:2])
    (first,) = fastq.foreach_oscillation_step_(weights[:1], steps[:1], bits=8, axis=0)
    before = weights[0]._version
    states = fastq.foreach_oscillation_step_(weights, steps, [first, None], **keywords)
    assert weights[0]._version > before and states[0] is first and states[1].shape == weights[1].shape


@torch.no_grad()
def test_the_other_operators_keep_to_their_schemas() -> None:
    weights, steps, _, keywords = tensors(MIX[:4])
    a = resolve(weights, steps, **keywords)
    w, s = [t.detach() for t in weights], [t.detach() for t in steps]
    each = (a.qmin, a.qmax, a.axis, a.group_size, a.eps)
    utilities = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.fastq.foreach_dampening_forward.default, (w, s, *each), test_utils=utilities)
    g = [torch.tensor(0.5, dtype=t.dtype) for t in s]
    backward = torch.ops.fastq.foreach_dampening_backward.default
    torch.library.opcheck(backward, (g, w, s, *each, [0.25] * len(w)), test_utils=utilities)
    with pytest.raises(RuntimeError, match="grad and factor must have as many entries as w, 4, got 3 and 4"):
        backward(g[:3], w, s, *each, [0.25] * 4)
    planes = [[torch.zeros_like(t, dtype=torch.int32) for t in w] for _ in range(2)]
    stepped = torch.ops.fastq.foreach_oscillation_step.default
    torch.library.opcheck(stepped, (w, s, *planes, *each, 0.125, 0.0, 2**24, False), test_utils=utilities)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda w, s: fastq.foreach_dampening(w, s[:1], bits=4), ValueError, "foreach_dampening: there must be a step for each"),
        (lambda w, s: fastq.foreach_dampening(w, s, bits=4, reduction="max"), ValueError, "foreach_dampening: reduction must be"),
        (lambda w, s: fastq.foreach_oscillation_step_(w, s, [None], bits=4), ValueError, "for each of the 2 weights, got 1"),
        (lambda w, s: fastq.foreach_oscillation_step_(w, s, bits=4, momentum=2.0), ValueError, "momentum"),
        (lambda w, s: fastq.foreach_oscillation_step_(w, s, bits=4, threshold=-1.0), ValueError, "threshold must be 0"),
        (lambda w, s: fastq.foreach_oscillation_step_([w[0].expand(2, 3), w[1]], s, bits=4), ValueError, "must not overlap itself"),
        (lambda w, s: fastq.foreach_dampening(w, [s[0], 0.1], bits=4), TypeError, r"steps must be .*got float \(tensor 1\)"),
        (lambda w, s: fastq.foreach_oscillation_step_(None, s, bits=4), TypeError, "weights must be a list .*got NoneType"),
        (lambda w, s: fastq.foreach_oscillation_step_(iter(w), s, bits=4), TypeError, "weights must be a list .*got list_iterator"),
        (lambda w, s: fastq.foreach_oscillation_step_(w, s, 3, bits=4), TypeError, "states must be None or a list .*got int"),
        (
            lambda w, s: fastq.foreach_oscillation_step_(w, s, [None, {}], bits=4),
            TypeError,
            r"state must be a fastq\.OscillationState, got dict \(tensor 1\)",
        ),
        (lambda w, s: fastq.foreach_oscillation_step_(w, s, bits=4, count_first="no"), TypeError, "count_first must be True or"),
        (
            lambda w, s: fastq.foreach_oscillation_step_([w[0], w[1].int()], s, bits=4),
            TypeError,
            r"foreach_oscillation_step_: weights must be float32.*\(tensor 1\)",
        ),
    ],
)
def test_bad_input_of_the_others_is_named(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call([torch.ones(3), torch.ones(4)], [torch.ones(1), torch.ones(1)])


def test_no_weights_are_no_loss_and_no_states() -> None:
    assert fastq.foreach_dampening([], [], bits=4) == 0 and fastq.foreach_oscillation_step_([], [], bits=4) == []
