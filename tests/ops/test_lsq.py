"""LSQ on the CPU kernels: held against the reference by ``check_quantizer``, and what that call cannot ask."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from device import BACKEND, DEVICE
from hypothesis import given, settings
from hypothesis import strategies as st
from lsq_cases import check_division, check_sums, lsq, lsq_cases, reference, surrogate

import fastq
from fastq.autograd import LSQ
from fastq.testing import check_quantizer, same_bits

forward_op = torch.ops.fastq.lsq_forward.default
backward_op = torch.ops.fastq.lsq_backward.default


X, S = torch.randn(4, 6), torch.ones(1)


def operators() -> list[tuple[Any, tuple[Any, ...]]]:
    x, g, group = torch.randn(4, 6, 8), torch.randn(4, 6, 8), torch.rand(4, 6, 2) + 0.1
    step, channel = torch.tensor([0.2]), torch.rand(6) + 0.1
    samples: list[tuple[Any, tuple[Any, ...]]] = []
    for p, axis, size in ((step, -1, 0), (channel, 1, 0), (group, -1, 4)):
        for offset in (None, p * 0.1):
            samples.append((forward_op, (x, p, offset, -8, 7, axis, size, 1e-8)))
            samples.append((backward_op, (g, x, p, offset, -8, 7, axis, size, 1e-8, 1, 1.0, 1, 1.0)))
    return samples


@pytest.mark.parametrize("offset", [False, True], ids=["lsq", "lsq+"])
def test_equals_the_reference(offset: bool) -> None:
    assert fastq.supports(BACKEND, DEVICE)[0]
    with fastq.use_backend(BACKEND):
        report = check_quantizer(lsq, reference, lsq_cases(offset), operators=operators(), device=DEVICE)
    assert len(report.results) > 600


@pytest.mark.parametrize("offset", [False, True], ids=["lsq", "lsq+"])
def test_gradients_are_the_derivative_of_the_surrogate(offset: bool) -> None:
    # "rounded" passes the gradient half a step beyond the clip range, where the surrogate is flat: no derivative of it.
    cases = [case for case in lsq_cases(offset) if case.keywords.get("boundary") != "rounded"]
    report = check_quantizer(
        lsq, reference, cases, surrogate=surrogate, dtypes=[torch.float64], layouts=["contiguous"],
        device=DEVICE,
    )  # fmt: skip
    assert sum(result.check == "finite differences" for result in report.results) > 50


@pytest.mark.parametrize("backend", [BACKEND, "reference"])
def test_sums_and_factors_are_the_formulas(backend: str) -> None:
    with fastq.use_backend(backend):
        check_sums(lsq)


@pytest.mark.parametrize("backend", [BACKEND, "reference"])
def test_the_step_divides(backend: str) -> None:
    with fastq.use_backend(backend):
        check_division(lsq)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_results_half_way_between_16_bit_numbers_round_to_even(dtype: torch.dtype) -> None:
    """Steps that are midpoints of neighbours of the dtype, and the fp32 numbers next to them; the code is 1 nearly everywhere."""
    first, last = (1, 0x7BFF) if dtype == torch.float16 else (0x3400, 0x7E00)  # bf16: beyond eps, and finite when added
    numbers = torch.arange(first, last, dtype=torch.int16).view(dtype).float()
    middle = (numbers[1:] + numbers[:-1]) / 2
    steps = torch.cat([middle, middle.nextafter(numbers[1:]), middle.nextafter(numbers[:-1])])
    x = steps.to(dtype)
    q = (x.float() / steps).round().clamp(-8, 7)
    assert (q == 1).float().mean() > 0.9
    with fastq.use_backend(BACKEND):
        y = fastq.lsq(x, steps, bits=4, axis=0)
    assert same_bits(y.cpu(), (q * steps).to(dtype).cpu())


shapes = st.lists(st.integers(0, 9), min_size=1, max_size=4)


@settings(max_examples=150, deadline=None)
@given(shape=shapes, data=st.data())
def test_any_shape_and_stride(shape: list[int], data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(shape))))
    x = torch.randn([shape[d] for d in order]).permute([order.index(d) for d in range(len(shape))])
    if data.draw(st.booleans()):
        x = torch.stack([x, x], -1)[..., 1]
    axis = data.draw(st.sampled_from([None, *range(-len(shape), len(shape))]))
    parameter = (1,) if axis is None else (x.shape[axis],)
    keywords = {"bits": data.draw(st.integers(2, 8)), "axis": axis, "boundary": data.draw(st.sampled_from(["open", "closed"]))}
    g, step, offset = torch.randn(x.shape), torch.rand(parameter) * 0.3 + 0.01, torch.randn(parameter) * 0.1
    results = []
    for fn in (lsq, reference):
        leaves = [t.detach().requires_grad_() for t in (x, step.clone(), offset.clone())]
        y = fn(*leaves, **keywords)
        results.append((y, *torch.autograd.grad(y, leaves, g)))
    (y, dx, *_), (want, dwant, *_) = results
    assert same_bits(y, want) and y.stride() == want.stride() == torch.empty_like(x).stride()
    assert same_bits(dx, dwant) and dx.stride() == dwant.stride()
    for a, b in zip(results[0][2:], results[1][2:], strict=True):
        # At most 9^4 terms of magnitude |g| * 255: two roundings of fp32 for each step of the sum's tree.
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-3 if keywords["bits"] > 4 else 1e-4)


# House rules that need more than one call of check_quantizer


def test_nothing_falls_back_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    x, step = torch.randn(4, device="cpu"), torch.tensor(0.1, device="cpu")
    able, reason = fastq.supports("cuda", "cpu")
    assert not able and reason
    with fastq.use_backend("cuda"), pytest.raises(RuntimeError, match="backend 'cuda' cannot serve this call: "):
        fastq.lsq(x, step, bits=4)
    unknown = "unknown backend 'gpu'; choose one of reference, cpu, cuda, triton"
    with pytest.raises(ValueError, match=unknown), fastq.use_backend("gpu"):
        pass


def test_the_missing_library_is_a_warning_and_the_reference(tmp_path: Path) -> None:
    import shutil

    package = Path(fastq.__file__).parent
    shutil.copytree(package, tmp_path / "fastq", ignore=shutil.ignore_patterns("*.so", "lib", "__pycache__"))
    script = (
        "import warnings, torch, fastq\n"
        "with warnings.catch_warnings(record=True) as seen:\n"
        "    warnings.simplefilter('always')\n"
        "    y = [fastq.lsq(torch.ones(3), torch.tensor(0.5), bits=4) for _ in range(3)]\n"
        "print(fastq.__file__, y[0].tolist(), len(seen), seen[0].message)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "FASTQ_BACKEND": ""}
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, cwd=tmp_path)
    assert out.returncode == 0, out.stderr
    assert str(tmp_path) in out.stdout and "[1.0, 1.0, 1.0] 1 fastq has no kernel for cpu tensors here" in out.stdout
    assert "libfastq.so is not installed" in out.stdout


@pytest.mark.parametrize(
    ("backend", "said"),
    [
        ("reference", "LSQBackward"),
        ("cuda", "RuntimeError: backend 'cuda' cannot serve this call: "),
        ("gpu", "ValueError: FASTQ_BACKEND=gpu: unknown backend; choose one of reference, cpu, cuda, triton"),
    ],
)
def test_the_environment_asks_for_a_backend(backend: str, said: str) -> None:
    script = (
        "import torch, fastq\n"
        "y = fastq.lsq(torch.ones(3, requires_grad=True), torch.tensor(0.5), bits=4)\n"
        "print(type(y.grad_fn).__name__, fastq.dispatch.select(y))\n"
    )
    env = {**os.environ, "FASTQ_BACKEND": backend}
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env)
    assert said in out.stdout + out.stderr
    if backend == "reference":
        assert out.stdout.split()[1] == "reference"


def test_without_triton_the_rest_works() -> None:
    script = (
        "import sys\n"
        "sys.modules['triton'] = None\n"
        "import torch, fastq\n"
        "fastq.lsq(torch.ones(3, requires_grad=True), torch.tensor(0.5), bits=4).sum().backward()\n"
        "print(fastq.backends()['triton'].reason)\n"
        "with fastq.use_backend('triton'):\n"
        "    fastq.lsq(torch.ones(3), torch.tensor(0.5), bits=4)\n"
    )
    env = {name: value for name, value in os.environ.items() if name != "FASTQ_BACKEND"}
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env)
    assert "triton is not installed" in out.stdout
    assert out.returncode == 1
    assert "RuntimeError: backend 'triton' cannot serve this call: the package triton is not installed" in out.stderr


DIGEST = """
import hashlib
from fastq.testing import _Checker, DTYPES, bits
from lsq_cases import lsq, lsq_cases

h = hashlib.sha256()
for offset in (False, True):
    for case in lsq_cases(offset):
        for dtype, kind in DTYPES.items():
            c = _Checker(lsq, lsq, None, 1.0, 7)
            for make in (c.normal, c.grid, c.extremes):
                x, g = make(case.shape, dtype), c.normal(case.shape, dtype)
                for t in c.call(lsq, x, c.parameters(case, kind, 0.25), g, case.keywords):
                    h.update(bits(t).numpy().tobytes())
print(h.hexdigest())
"""


def digest(isa: str) -> "subprocess.CompletedProcess[str]":
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "FASTQ_CPU_ISA": isa, "FASTQ_BACKEND": "cpu"}
    return subprocess.run([sys.executable, "-c", DIGEST], capture_output=True, text=True, env=env)


def test_every_instruction_set_gives_the_same_bits() -> None:
    from fastq import _runtime  # type: ignore[attr-defined]

    best = digest("")
    assert best.returncode == 0, best.stderr
    for isa in ("v2", "v3", "v4"):
        if int(isa[1]) < _runtime.best_isa():  # the best one is what ran
            assert digest(isa).stdout == best.stdout
        elif int(isa[1]) > _runtime.best_isa():  # this processor cannot run it: asking is refused with the reason
            assert "FASTQ_CPU_ISA asks for an instruction set that this processor does not have" in digest(isa).stderr


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("keywords", [{}, {"axis": 0}, {"axis": 1}, {"group_size": 64}], ids=str)
def test_sums_do_not_depend_on_threads(threads: int, keywords: dict[str, Any]) -> None:
    x = torch.randn(700, 640)
    shape = {0: (700,), 1: (640,)}.get(keywords.get("axis", -1), (700, 10) if keywords else (1,))
    before = torch.get_num_threads()
    results = []
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            step = torch.full(shape, 0.1, requires_grad=True)
            fastq.lsq(x, step, bits=4, **keywords).square().sum().backward()
            results.append(step.grad)
    finally:
        torch.set_num_threads(before)
    assert results[0] is not None and results[1] is not None
    assert same_bits(results[0], results[1])


def test_uninitialised_memory_never_shows() -> None:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # torch then fills fresh memory with NaN
    try:
        for case in lsq_cases(True):
            x = torch.randn(case.shape, requires_grad=True)
            parameters = [torch.full(shape, 0.25, requires_grad=True) for shape in case.parameters]
            y = lsq(x, *parameters, **case.keywords)
            gradients = torch.autograd.grad(y, [x, *parameters], torch.ones_like(y))
            assert all(bool(t.isfinite().all()) for t in (y, *gradients)), case.name
    finally:
        torch.use_deterministic_algorithms(before)


@pytest.mark.huge
def test_more_elements_than_32_bits_count() -> None:
    # Zeros that are only read take no memory on a CPU; what is written takes 4 GiB at a time.
    x, g = (torch.zeros(2, 2**30 + 8, dtype=torch.bfloat16) for _ in range(2))
    x[1, -4:] = torch.tensor([0.3, -0.8, 9.0, 0.1])
    g[1, -4:] = torch.tensor([1.0, 2.0, 4.0, 8.0])
    step = torch.tensor([0.5, 0.25])
    leaves = [t.requires_grad_() for t in (x, step)]
    with fastq.use_backend(BACKEND):
        y = fastq.lsq(*leaves, bits=3, axis=0, grad_scale=1.0)
    assert y[1, -5:].tolist() == [0.0, 0.25, -0.75, 0.75, 0.0] and not y[0, -4:].any()
    dx, dstep = torch.autograd.grad(y, leaves, g)
    assert dx[1, -5:].tolist() == [0.0, 1.0, 2.0, 0.0, 8.0]
    v = x.detach()[1, -4:].float() / 0.25
    terms = torch.where(v < 3, v.round() - v, 3.0) * g[1, -4:].float()
    assert dstep.tolist() == [0.0, float(terms.sum())]


def test_no_op_looks_at_a_value() -> None:
    # A fake tensor has none to look at: .item(), .tolist() or a branch on a value would raise.
    scale, zero = torch.tensor([0.1]), torch.tensor([1.0])
    with torch._subclasses.FakeTensorMode() as mode:
        for make in (
            lambda x, s, z: fastq.lsq(x, s, bits=4, offset=z),
            lambda x, s, z: fastq.lsq(x, s.expand(6), bits=4, axis=1, grad_scale="lsq-full"),
            lambda x, s, z: fastq.fake_quantize_per_tensor_affine(x, s, z.int(), -8, 7),
            lambda x, s, z: fastq.fake_quantize_per_channel_affine(x, s.expand(6), z.expand(6).int(), 1, -8, 7),
            lambda x, s, z: fastq._fake_quantize_learnable_per_tensor_affine(x, s, z, -8, 7, 0.5),
            lambda x, s, z: fastq._fake_quantize_learnable_per_channel_affine(x, s.expand(6), z.expand(6), 1, -8, 7, 0.5),
        ):
            leaves = [mode.from_tensor(t).detach().requires_grad_() for t in (X, scale, zero)]
            y = make(*leaves)
            y.backward(torch.empty_like(y))
            assert leaves[0].grad is not None and leaves[0].grad.shape == X.shape


# The compiler


def _gradients(f: Any, x: torch.Tensor, *parameters: torch.Tensor) -> list[torch.Tensor]:
    leaves = [t.detach().clone().requires_grad_() for t in (x, *parameters)]
    y = f(*leaves)
    return [y.detach(), *torch.autograd.grad(y.sin().sum(), leaves)]


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiles_as_one_graph_with_gradients(dynamic: bool) -> None:
    torch._dynamo.reset()

    def f(x: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        return fastq.lsq(x * 1.5, step, bits=4, axis=1) + 1

    compiled = torch.compile(f, fullgraph=True, dynamic=dynamic)
    step = torch.rand(5) + 0.1
    with torch._dynamo.config.patch(error_on_recompile=True):
        for rows in (3, 8, 21) if dynamic else (3, 3):
            x = torch.randn(rows, 5)
            for a, b in zip(_gradients(compiled, x, step), _gradients(f, x, step), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)  # sin and the sum round otherwise when compiled


def test_exports() -> None:
    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.step = torch.nn.Parameter(torch.tensor([0.1]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return fastq.lsq(x, self.step, bits=3)

    x = torch.randn(4, 6)
    program = torch.export.export(Layer(), (x,))
    with torch.no_grad():
        assert same_bits(program.module()(x), Layer()(x))
    assert "lsq_forward" in str(program.graph)
    with pytest.raises(RuntimeError, match="private operator without an autograd formula, and an input requires a gradient"):
        program.module()(x)  # the step would get no gradient
    frozen = torch.export.export(Layer().requires_grad_(False), (x,)).module()
    assert same_bits(frozen(x), Layer()(x).detach())  # as it is, without no_grad


# What cannot work raises


def test_a_private_operator_refuses_to_lose_a_gradient() -> None:
    x, step = torch.randn(4, requires_grad=True), torch.tensor([0.1])
    with pytest.raises(RuntimeError, match="private operator without an autograd formula"):
        forward_op(x, step, None, -8, 7, -1, 0, 1e-8)
    for grad in (x, x.detach()):
        with pytest.raises(RuntimeError, match="private operator without an autograd formula"):
            backward_op(grad, x, step, None, -8, 7, -1, 0, 1e-8, 0, 1.0, 1, 1.0)
    with pytest.raises(RuntimeError, match="private operator without an autograd formula"):
        forward_op(x.detach(), step.requires_grad_(), None, -8, 7, -1, 0, 1e-8)
    # where no gradient is asked for, none is lost
    assert not forward_op(x.detach(), step.detach(), None, -8, 7, -1, 0, 1e-8).requires_grad


@pytest.mark.parametrize(
    ("message", "change"),
    [
        (r"x must be float32, bfloat16, float16 or float64, got Int", {"x": X.int()}),
        (r"step must be float32 \(float64 for float64 x\), got Double", {"step": S.double()}),
        (r"step must have one element per tensor, got shape \(2,\)", {"step": torch.ones(2)}),
        (r"step must have shape \(4,\), got \(1,\)", {"axis": 0}),
        (r"step must have shape \(4, 3\), got \(4, 2\)", {"step": torch.ones(4, 2), "group_size": 2}),
        (r"offset must have one element per tensor, got shape \(3,\)", {"offset": torch.ones(3)}),
        (r"axis must be -1 \(none\) or below the 2 dimensions of x, got 2", {"axis": 2}),
        (r"axis must be -1 \(none\) or below the 2 dimensions of x, got -2", {"axis": -2}),
        (r"group_size=4 must divide the last axis of x, got shape \(4, 6\)", {"group_size": 4}),
        (r"group_size must be at least 0 \(none\), got -1", {"group_size": -1}),
        (r"axis=0 and group_size=3 exclude each other", {"axis": 0, "group_size": 3}),
        (r"qmin must be below qmax, got 7 and 7", {"qmin": 7}),
        (r"boundary must be 0, 1 or 2, got 3", {"boundary": 3}),
        (r"grad must have the shape of x, \(4, 6\), got \(6, 4\)", {"grad": X.T}),
        (r"grad must have the dtype of x, Float, got Double", {"grad": X.double()}),
    ],
)
def test_a_private_operator_guards_its_memory(message: str, change: dict[str, Any]) -> None:
    # The Python checks come first wherever the public functions are used; these are for callers of the operator itself.
    names = "grad x step offset qmin qmax axis group_size eps boundary grad_scale grad_norm offset_grad_scale".split()
    values = dict(zip(names, (X, X, S, None, -8, 7, -1, 0, 1e-8, 0, 1.0, 1, 1.0), strict=True)) | change
    with torch.no_grad(), pytest.raises(RuntimeError, match=f"fastq::lsq_backward: {message}"):
        backward_op(*values.values())
    if not {"grad", "boundary"} & set(change):
        with torch.no_grad(), pytest.raises(RuntimeError, match=f"fastq::lsq_forward: {message}"):
            forward_op(*list(values.values())[1:9])


def test_the_fake_kernel_refuses_what_the_real_one_refuses() -> None:
    def f(x: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        return forward_op(x, step, None, -8, 7, 0, 0, 1e-8)

    with torch.no_grad(), torch._subclasses.FakeTensorMode() as mode:
        x, step = mode.from_tensor(X), mode.from_tensor(S)
        with pytest.raises(ValueError, match=r"lsq: step must have shape \(4,\).*got \(1,\)"):
            f(x, step)
        with pytest.raises(TypeError, match=r"lsq: x must be float32.*got torch\.int32"):
            f(x.int(), step)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (ValueError, r"axis must be in \[0, 1\] for x of 2 dimensions, or -1 for none, got 9", (None, -8, 7, 9)),
        (ValueError, r"axis must be in \[0, 1\] for x of 2 dimensions, or -1 for none, got -2", (None, -8, 7, -2)),
        (ValueError, r"group_size=5 must divide the last axis of x, got shape \(4, 6\)", (None, -8, 7, -1, 5)),
        (ValueError, r"grad_scale must be a float, 'lsq' or 'lsq-full', got 'bad'", (None, -8, 7, -1, 0, 0, "bad")),
        (TypeError, r"grad_scale must be a float, 'lsq' or 'lsq-full', got NoneType", (None, -8, 7, -1, 0, 0, None)),
    ],
)
def test_the_function_checks_its_own_arguments(backend: str, error: type[Exception], message: str, arguments: Any) -> None:
    with fastq.use_backend(backend), pytest.raises(error, match=f"lsq: {message}"):
        LSQ.apply(X, S, *arguments)


BAD_EPS: list[tuple[Any, type[Exception], str]] = [
    (0, ValueError, "eps must be positive"),
    (-1.0, ValueError, "eps must be positive"),
    (float("nan"), ValueError, "eps must be positive and finite in float32"),
    (float("inf"), ValueError, "eps must be positive and finite in float32"),
    (1e39, ValueError, "eps must be positive and finite in float32"),
    (1e-46, ValueError, r"eps must be .*at least 2\*\*-126, got 1e-46"),  # 0 in fp32: a step of 0 would give NaN
    (None, TypeError, "eps must be a float, got NoneType"),
    ("a", TypeError, "eps must be a float, got str"),
    (True, TypeError, "eps must be a float, got bool"),
]


@pytest.mark.parametrize(("eps", "error", "message"), BAD_EPS, ids=str)
def test_eps_keeps_a_zero_step_away_from_nan_in_every_op(eps: Any, error: type[Exception], message: str) -> None:
    state, drawn = fastq.oscillation_step_(X.clone(), S, bits=4), {"seed": torch.tensor(0, device=DEVICE)}
    calls: dict[str, Callable[[], Any]] = {
        "lsq": lambda: fastq.lsq(X, S, bits=4, eps=eps),
        "pact": lambda: fastq.pact(X, S, bits=4, eps=eps),
        "qil": lambda: fastq.qil(X, S, S, bits=4, weight=True, eps=eps),
        "ewgs": lambda: fastq.ewgs(X, -S, S, bits=4, delta=0.1, eps=eps),
        "dampening": lambda: fastq.dampening(X, S, bits=4, eps=eps),
        "channel_error": lambda: fastq.channel_error(X, S, bits=4, eps=eps),
        "channel_stats": lambda: fastq.channel_stats(X, S, bits=4, eps=eps),
        "frozen_lsq": lambda: fastq.frozen_lsq(X, S, state, bits=4, eps=eps),
        "oscillation_step_": lambda: fastq.oscillation_step_(X, S, bits=4, eps=eps),
        "foreach_lsq": lambda: fastq.foreach_lsq([X], [S], bits=4, eps=eps),
        "foreach_dampening": lambda: fastq.foreach_dampening([X], [S], bits=4, eps=eps),
        "foreach_oscillation_step_": lambda: fastq.foreach_oscillation_step_([X], [S], bits=4, eps=eps),
        "noise_quant": lambda: fastq.noise_quant(X, S, eps=eps, **drawn),
        "tempered": lambda: fastq.tempered(X, S, S, bits=4, decay=0.5, eps=eps, **drawn),
    }
    for name, call in calls.items():
        with pytest.raises(error, match=f"^{name}: {message}"):
            call()


def test_the_smallest_and_the_largest_eps_serve() -> None:
    for eps in (2.0**-126, 1, torch.finfo(torch.float32).max):
        for space in (fastq, fastq.reference):
            assert not bool(space.lsq(torch.zeros(3, device=DEVICE), torch.zeros(1, device=DEVICE), bits=4, eps=eps).any())


@pytest.mark.parametrize("space", [fastq, fastq.reference], ids=["op", "reference"])
@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("offset_grad_scale must be a float, got str", {"offset_grad_scale": "lsq"}),
        ("offset_grad_scale must be a float, got NoneType", {"offset_grad_scale": None}),
        ("offset_grad_scale must be a float, got bool", {"offset_grad_scale": True}),
        ("offset_grad_scale must be a float, got Tensor", {"offset_grad_scale": torch.ones(1)}),
        ("signed must be True or False, got 'no'", {"signed": "no"}),
        ("narrow must be True or False, got 'no'", {"narrow": "no"}),
        ("signed must be True or False, got None", {"signed": None, "bits": (-8, 7)}),
        (r"bits must be an int from 1 to 8 or a pair \(qmin, qmax\) of ints, got \(True, 3\)", {"bits": (True, 3)}),
        (r"bits must be an int from 1 to 8 or a pair \(qmin, qmax\) of ints, got \(-3, True\)", {"bits": (-3, True)}),
    ],
)
def test_an_argument_of_a_wrong_type_is_named_at_the_call(space: Any, message: str, change: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=f"lsq: {message}"):
        space.lsq(X, S, **({"bits": 4, "offset": torch.zeros_like(S)} | change))


def test_double_backward_raises() -> None:
    x, step = torch.randn(4, requires_grad=True), torch.tensor([0.1], requires_grad=True)
    (dx,) = torch.autograd.grad(fastq.lsq(x, step, bits=4).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="lsq: double backward is not defined"):
        dx.sum().backward()


@pytest.mark.parametrize("transform", ["vmap", "grad", "jvp"])
def test_functorch_transforms_raise(transform: str) -> None:
    x, step = torch.randn(3, 4), torch.tensor([0.1])

    def f(x: torch.Tensor) -> torch.Tensor:
        return fastq.lsq(x, step, bits=4).sum()

    with pytest.raises(RuntimeError) as raised:
        if transform == "vmap":
            torch.func.vmap(f)(x)
        elif transform == "grad":
            torch.func.grad(f)(x)
        else:
            torch.func.jvp(f, (x,), (torch.ones_like(x),))
    assert "setup_context" in str(raised.value) or "functorch" in str(raised.value) or "forward AD" in str(raised.value)


def test_forward_mode_raises() -> None:
    import torch.autograd.forward_ad as forward_ad

    with forward_ad.dual_level(), pytest.raises(RuntimeError, match=r"forward|jvp"):
        fastq.lsq(forward_ad.make_dual(torch.randn(3), torch.ones(3)), torch.tensor([0.1]), bits=4)


# Training as it is done


def test_sum_backward_and_accumulation() -> None:
    x, step = torch.randn(8, 8, requires_grad=True), torch.tensor([0.3], requires_grad=True)
    for _ in range(2):
        fastq.lsq(x, step, bits=2).sum().backward()
    once = torch.autograd.grad(fastq.lsq(x, step, bits=2), [x, step], torch.ones(8, 8))
    torch.testing.assert_close(x.grad, 2 * once[0], rtol=0, atol=0)
    torch.testing.assert_close(step.grad, 2 * once[1], rtol=0, atol=0)


def test_autocast_keeps_the_dtype_of_x() -> None:
    x, step = torch.randn(8, 8, requires_grad=True), torch.tensor([0.1], requires_grad=True)
    w = torch.randn(8, 8, requires_grad=True)
    with torch.autocast(DEVICE, torch.bfloat16):
        y = fastq.lsq(x @ w, step, bits=4)
        assert y.dtype == torch.bfloat16
        y.float().sum().backward()
    assert step.grad is not None and step.grad.dtype == torch.float32 and x.grad is not None and bool(x.grad.any())


def test_checkpointing_gives_the_same_gradients() -> None:
    from torch.utils.checkpoint import checkpoint

    x, step = torch.randn(50, requires_grad=True), torch.tensor([0.2], requires_grad=True)
    plain = torch.autograd.grad(fastq.lsq(x, step, bits=3).square().sum(), [x, step])
    again = torch.autograd.grad(checkpoint(lambda x: fastq.lsq(x, step, bits=3).square(), x, use_reentrant=False).sum(), [x, step])
    assert all(same_bits(a, b) for a, b in zip(plain, again, strict=True))


def test_hooks_and_tensors_that_are_no_leaves() -> None:
    seen: list[torch.Tensor] = []
    base, raw = torch.randn(8, 8, requires_grad=True), torch.tensor([0.3], requires_grad=True)
    x, step = base.tanh(), raw.exp()  # what a parametrised step is
    y = fastq.lsq(x, step, bits=3)
    y.register_hook(seen.append)
    y.register_hook(lambda g: 2 * g)
    x.retain_grad()
    step.register_hook(seen.append)
    y.sum().backward()
    leaves = [t.detach().requires_grad_() for t in (x, step)]
    dx, dstep = torch.autograd.grad(fastq.lsq(*leaves, bits=3), leaves, torch.full((8, 8), 2.0))
    assert len(seen) == 2 and same_bits(seen[0], torch.ones(8, 8)) and same_bits(seen[1], dstep)
    assert x.grad is not None and same_bits(x.grad, dx)
    assert base.grad is not None and raw.grad is not None
    torch.testing.assert_close(raw.grad, dstep * raw.exp())


def test_one_step_for_two_tensors_gets_both_gradients() -> None:
    a, b, step = torch.randn(5), torch.randn(3, 4), torch.tensor([0.2], requires_grad=True)
    (fastq.lsq(a, step, bits=3).sum() + fastq.lsq(b, step, bits=3).sum()).backward()
    alone = [torch.autograd.grad(fastq.lsq(x, step, bits=3).sum(), step)[0] for x in (a, b)]
    torch.testing.assert_close(step.grad, alone[0] + alone[1], rtol=0, atol=0)


def test_in_place_changes_of_what_was_saved_are_noticed() -> None:
    x, step = torch.randn(6), torch.tensor([0.2], requires_grad=True)
    y = fastq.lsq(x, step, bits=3)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_only_the_gradients_that_are_asked_for() -> None:
    x, step = torch.randn(6), torch.tensor([0.2], requires_grad=True)
    fastq.lsq(x, step, bits=3).sum().backward()
    assert x.grad is None and step.grad is not None
    y = fastq.lsq(x.requires_grad_(), step.detach(), bits=3)
    y.sum().backward()
    assert x.grad is not None


def test_a_backward_pass_runs_on_the_backend_of_its_forward_pass() -> None:
    x, step = torch.randn(6, requires_grad=True), torch.tensor([0.2], requires_grad=True)
    with fastq.use_backend("reference"):
        y = fastq.lsq(x, step, bits=3)
    assert "LSQ" in type(y.grad_fn).__name__
    y.sum().backward()
    assert x.grad is not None


def test_the_function_is_public() -> None:
    x, step = torch.randn(6), torch.tensor([0.2])
    assert same_bits(LSQ.apply(x, step, None, -4, 3), fastq.lsq(x, step, bits=3))
    assert "apply(x, step, offset, qmin, qmax" in str(LSQ.__doc__)
