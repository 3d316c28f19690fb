"""Checks for quantizers: one call that holds a fast implementation against its reference.

:func:`check_quantizer` is what the project's own tests are built on; point it at a quantizer of your own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

__all__ = ["Case", "CheckFailed", "Report", "Result", "bits", "check_quantizer", "same_bits"]

Quantizer = Callable[..., torch.Tensor]

#: Storage dtypes that are tried, and the dtype of the parameters that go with each.
DTYPES = {
    torch.float32: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
    torch.float64: torch.float64,
}
LAYOUTS = ("contiguous", "transposed", "channels_last", "strided", "misaligned")


@dataclass(frozen=True)
class Case:
    """One way to call a quantizer: ``fn(x, *parameters, **keywords)``.

    Args:
        name: what the report calls it.
        shape: of ``x``.
        parameters: the shape of each parameter tensor, such as ``((1,),)`` for one step per tensor.
        keywords: of the call, such as ``{"bits": 4, "axis": 0}``.
        unscaled: keywords added where gradients are compared with a derivative, to take a gradient scale out of them
            (``{"grad_scale": 1.0}``).
        values: of each parameter, about which it is drawn (within a fifth), and which it has where a round number is called for;
            0.25 where left out.
        kept: bytes an element that the call keeps for its backward pass beside ``x``, since they are there anyway (a state).
    """

    name: str
    shape: tuple[int, ...]
    parameters: tuple[tuple[int, ...], ...] = ((1,),)
    keywords: dict[str, Any] = field(default_factory=dict)
    unscaled: dict[str, Any] = field(default_factory=dict)
    values: tuple[float, ...] = ()
    kept: int = 0

    def value(self, i: int) -> float:
        """Of parameter ``i``."""
        return self.values[i] if i < len(self.values) else 0.25


@dataclass(frozen=True)
class Result:
    """One check on one case: whether it held, and what was seen if not."""

    check: str
    case: str
    passed: bool
    detail: str = ""


@dataclass(frozen=True)
class Report:
    """Every result. ``str(report)`` has one line per check and one per failure."""

    name: str
    results: tuple[Result, ...]

    @property
    def passed(self) -> bool:
        return all(result.passed for result in self.results)

    @property
    def failures(self) -> tuple[Result, ...]:
        return tuple(result for result in self.results if not result.passed)

    def __str__(self) -> str:
        checks = dict.fromkeys(result.check for result in self.results)
        width = max(map(len, checks), default=0)
        lines = [f"check_quantizer({self.name})"]
        for check in checks:
            of_check = [result for result in self.results if result.check == check]
            bad = [result for result in of_check if not result.passed]
            lines.append(f"  {check:<{width}}  {'failed ' + str(len(bad)) + ' of' if bad else 'passed'} {len(of_check)}")
            lines += [f"    {result.case}: {result.detail}" for result in bad[:5]]
            if len(bad) > 5:
                lines.append(f"    and {len(bad) - 5} more")
        return "\n".join(lines)


class CheckFailed(AssertionError):
    """A check did not hold. ``report`` has the results; the message is the report."""

    def __init__(self, report: Report) -> None:
        super().__init__(str(report))
        self.report = report


_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(t: torch.Tensor) -> torch.Tensor:
    """The bits of ``t`` as integers, every NaN made the same one. Unlike ``torch.equal`` it tells -0 from +0."""
    integers = t.detach().contiguous().view(_INTEGERS[t.element_size()])
    return torch.where(t.detach().isnan(), -1, integers)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Same dtype, shape and bits (every NaN counts as the same)."""
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b))


def _difference(a: torch.Tensor, b: torch.Tensor) -> str:
    if a.dtype != b.dtype or a.shape != b.shape:
        return f"{a.dtype} {tuple(a.shape)} where {b.dtype} {tuple(b.shape)} was expected"
    wrong = (bits(a) != bits(b)).nonzero()
    at = tuple(wrong[0].tolist())
    return f"{len(wrong)} of {a.numel()} elements differ, the first at {at}: {a[at].item()!r} where {b[at].item()!r} was expected"


DEFAULT_CASES = (Case("per tensor", (6, 50)), Case("per tensor, long", (3, 9001)))


class _Checker:
    """The state of one run: the two functions, the random numbers, the results so far."""

    def __init__(
        self, fn: Quantizer, reference: Quantizer, surrogate: Any, term_bound: float, seed: int,
        device: str = "cpu", exact_sums: bool = True, ulps: float = 0.0, position: Any = None,
    ) -> None:  # fmt: skip
        self.exact_sums, self.ulps, self.position = exact_sums, ulps, position
        self.fn, self.reference, self.surrogate, self.term_bound = fn, reference, surrogate, term_bound
        self.device = torch.device(device)
        self.generator = torch.Generator("cpu").manual_seed(seed)
        self.results: list[Result] = []

    def record(self, check: str, case: str, detail: str) -> None:
        self.results.append(Result(check, case, not detail, detail))

    def attempt(self, check: str, case: Case, run: Callable[[Case], None]) -> None:
        """``run(case)``; what it raises is a result, and no reason to lose the others."""
        try:
            run(case)
        except Exception as error:
            self.record(check, case.name, f"raised {type(error).__name__}: {error}")

    # Inputs: drawn on the CPU, so that they are the same on every device

    def parameters(self, case: Case, dtype: torch.dtype, exact: bool = False, first: float | None = None) -> list[torch.Tensor]:
        """About the case's values: about a quarter puts the ties of a 2 to 4 bit range among multiples of 1/8. ``exact``: the
        values themselves; ``first``: of the first parameter."""
        made = []
        for i, shape in enumerate(case.parameters):
            p = case.value(i) * (torch.rand(shape, generator=self.generator, dtype=torch.float64, device="cpu") * 0.4 + 0.8)
            number = first if first is not None and i == 0 else case.value(i) if exact else None
            made.append((p if number is None else torch.full_like(p, number)).to(self.device, dtype))
        return made

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64, device="cpu").to(self.device, dtype)

    def grid(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Multiples of 1/8 from -5 to 5: codes, ties and clip edges for a step of 1/4."""
        return (torch.randint(-40, 41, shape, generator=self.generator, device="cpu") / 8).to(self.device, dtype)

    def whole(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Integers from 1 to 4: with :meth:`grid` and parameters of 1/4, sums below 2**24 that no order rounds."""
        return torch.randint(1, 5, shape, generator=self.generator, device="cpu").to(self.device, dtype)

    def extremes(self, shape: tuple[int, ...], dtype: torch.dtype, largest: bool = True) -> torch.Tensor:
        """Zeros of both signs, denormals, the largest numbers, infinities, NaN, and the neighbours of ties.

        As gradients the largest numbers are left out: whether their sum overflows depends on its order.
        """
        info = torch.finfo(dtype)
        tie = torch.tensor([0.125, 0.375, -0.125, -2.0, 1.75], dtype=dtype, device="cpu")
        near = torch.cat([tie, tie * (1 + info.eps), tie * (1 - info.eps)])
        special = [0.0, -0.0, info.tiny, -info.tiny, info.tiny / 4, math.inf, -math.inf, math.nan]
        special += [info.max, -info.max] if largest else []
        pool = torch.cat([torch.tensor(special, dtype=torch.float64, device="cpu").to(dtype), near])
        return pool[torch.randint(0, len(pool), shape, generator=self.generator, device="cpu")].to(self.device)

    @staticmethod
    def laid_out(x: torch.Tensor, layout: str) -> torch.Tensor | None:
        """``x`` with other strides and the same values; None where ``layout`` does not apply."""
        if layout == "contiguous":
            return x.contiguous()
        if layout == "channels_last":
            return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else None
        if layout == "misaligned":
            return torch.empty(x.numel() + 1, dtype=x.dtype, device=x.device)[1:].view(x.shape).copy_(x)
        if x.dim() < 2:
            return None
        if layout == "transposed":
            return x.transpose(0, -1).contiguous().transpose(0, -1)
        return torch.stack([x, x], dim=-1)[..., 0]

    # One call, forward and backward

    @staticmethod
    def call(fn: Quantizer, x: torch.Tensor, parameters: Sequence[torch.Tensor], g: torch.Tensor, keywords: dict[str, Any]) -> Any:
        """``y, dx, parameter gradients``; the inputs themselves are passed, as leaves that require a gradient."""
        leaf = x.detach().requires_grad_()
        leaves = [p.detach().requires_grad_() for p in parameters]
        y = fn(leaf, *leaves, **keywords)
        return (y.detach(), *torch.autograd.grad(y, [leaf, *leaves], g))

    def agree(self, what: str, a: torch.Tensor, b: torch.Tensor, case: Case, x: torch.Tensor, p: Sequence[torch.Tensor]) -> bool:
        """The same bits; or with ``ulps`` as many roundings apart, and ``y`` anything where ``position`` is as near to a tie."""
        if same_bits(a, b) or self.ulps == 0 or a.dtype != b.dtype or a.shape != b.shape:
            return same_bits(a, b)
        if not torch.equal(a.isnan(), b.isnan()):
            return False
        eps = torch.finfo(torch.float64 if a.dtype == torch.float64 else torch.float32).eps
        # Beside the roundings of the arithmetic, one of the storage.
        stored = torch.finfo(a.dtype).eps if a.element_size() < 4 else 0.0
        near = (a - b).abs() <= (self.ulps * eps + stored) * b.abs() + self.ulps * torch.finfo(a.dtype).tiny
        near |= (a == b) | a.isnan()
        if what == "y" and self.position is not None:
            v = self.position(x.detach().cpu(), *(t.detach().cpu() for t in p), **case.keywords)
            tie = v.floor() + 0.5
            near |= (v - tie).abs() <= self.ulps * torch.finfo(v.dtype).eps * v.abs().clamp(min=1.0)
        return bool(near.all())

    def compare(
        self, check: str, name: str, case: Case, x: torch.Tensor, p: Sequence[torch.Tensor], g: torch.Tensor, exact: bool = False
    ) -> None:
        """``y`` and ``dx`` by their bits and strides; parameter gradients within what the order of summation can change.

        ``exact``: every term is a small multiple of a power of two, so that no order rounds, and what remains is the
        rounding of the scale that multiplies the sum.
        """
        before = [bits(t).clone() for t in (x, *p, g)]
        try:
            got = self.call(self.fn, x, p, g, case.keywords)
        except Exception as error:
            return self.record(check, name, f"raised {type(error).__name__}: {error}")
        want = self.call(self.reference, x.cpu(), [t.cpu() for t in p], g.cpu(), case.keywords)
        detail = ""
        for what, a, b in zip(("y", "dx"), got, want, strict=False):
            if not self.agree(what, a.cpu(), b, case, x, p):
                detail = detail or f"{what}: {_difference(a.cpu(), b)}"
            elif a.stride() != (strides := torch.empty_like(x).stride()):
                detail = detail or f"{what}: strides {a.stride()} where torch.empty_like(x) has {strides}"
        # n additions in any order, 128 in a row at most and a tree over the rest: an error of (128 + log2 n) roundings of
        # the sum of the magnitudes, on each side.
        n = max(x.numel(), 1)
        magnitude = float(g.detach().double().nan_to_num().abs().sum()) * self.term_bound
        bound = 2 * (128 + math.log2(n)) * torch.finfo(p[0].dtype if p else torch.float32).eps * magnitude + 1e-30
        for i, (a, b) in enumerate(zip((t.cpu() for t in got[2:]), want[2:], strict=True)):
            if a.shape != b.shape or not torch.equal(a.isnan(), b.isnan()):
                detail = detail or f"gradient of parameter {i}: {a} where {b} was expected"
            elif a.numel():
                finite = b.isfinite()
                if not torch.equal(a[~finite].nan_to_num(), b[~finite].nan_to_num()):
                    detail = detail or f"gradient of parameter {i}: other infinities"
                apart = (a - b)[finite].abs()
                if exact:
                    relative = 8 * torch.finfo(a.dtype).eps * b[finite].abs()
                    if bool((apart > relative).any()):
                        seen, expected = a.flatten()[:4].tolist(), b.flatten()[:4].tolist()
                        detail = detail or f"gradient of parameter {i}, an exact sum: {seen} where {expected} was expected"
                off = apart.max().item() if bool(finite.any()) else 0.0
                if off > bound:
                    detail = detail or f"gradient of parameter {i} is off by {off:.3g}, more than {bound:.3g}"
        if any(not torch.equal(b, bits(t)) for b, t in zip(before, (x, *p, g), strict=True)):
            detail = detail or "an input was changed"
        self.record(check, name, detail)

    # The checks

    def check_bits(self, cases: Iterable[Case], dtypes: Iterable[torch.dtype], layouts: Sequence[str]) -> None:
        for case in cases:
            for dtype in dtypes:
                kind = DTYPES[dtype]
                name = f"{case.name}, {dtype}"
                g = self.normal(case.shape, dtype)
                for layout in layouts:
                    x = self.laid_out(self.normal(case.shape, dtype), layout)
                    if x is not None:
                        self.compare("layouts", f"{name}, {layout}", case, x, self.parameters(case, kind), g)
                quarter = self.parameters(case, kind, exact=True)
                on_grid = self.grid(case.shape, dtype)
                self.compare("ties and edges", name, case, on_grid, quarter, g)
                for layout in layouts if self.exact_sums else ():
                    whole = self.laid_out(self.whole(case.shape, dtype), layout)
                    if whole is not None:
                        self.compare("exact sums", f"{name}, {layout}", case, on_grid, quarter, whole, exact=True)
                self.compare("extreme inputs", name, case, self.extremes(case.shape, dtype), quarter, g)
                with_extremes = self.extremes(case.shape, dtype, largest=False)
                self.compare("extreme gradients", name, case, self.normal(case.shape, dtype), quarter, with_extremes)
            x, g = self.normal(case.shape, torch.float32), self.normal(case.shape, torch.float32)
            for value in (0.0, -0.0, -0.25, 1e-42, math.inf, -math.inf, math.nan):
                p = self.parameters(case, torch.float32, first=value)
                self.compare("extreme parameters", f"{case.name}, {value}", case, x, p, g)
            if self.exact_sums:
                p = self.parameters(case, torch.float32, exact=True, first=-case.value(0))
                x, g = self.grid(case.shape, torch.float32), self.whole(case.shape, torch.float32)
                self.compare("exact sums", f"{case.name}, first parameter {-case.value(0)}", case, x, p, g, exact=True)

    def check_gradient_layouts(self, case: Case) -> None:
        x, p = self.normal(case.shape, torch.float32), self.parameters(case, torch.float32)
        self.compare("expanded gradient", case.name, case, x, p, torch.ones((), device=self.device).expand(case.shape))
        turned = self.laid_out(self.normal(case.shape, torch.float32), "transposed")
        if turned is not None:
            self.compare("transposed gradient", case.name, case, x, p, turned)

    def check_partial_gradients(self, case: Case) -> None:
        """The gradient of one input alone is the one that all inputs get together."""
        x, g = self.normal(case.shape, torch.float32), self.normal(case.shape, torch.float32)
        p = self.parameters(case, torch.float32)
        everything = self.call(self.fn, x, p, g, case.keywords)[1:]
        for i in range(len(p) + 1):
            inputs = [t.detach().clone().requires_grad_(i == j) for j, t in enumerate((x, *p))]
            (alone,) = torch.autograd.grad(self.fn(*inputs, **case.keywords), inputs[i], g)
            detail = "" if same_bits(alone, everything[i]) else _difference(alone, everything[i])
            self.record("one gradient alone", f"{case.name}, input {i}", detail)
        with torch.no_grad():
            y = self.fn(x, *p, **case.keywords)
        self.record("no gradient at all", case.name, "y requires a gradient under no_grad" if y.requires_grad else "")

    def check_surrogate(self, case: Case) -> None:
        """Gradients against central differences of the surrogate, in fp64, its rounding residual held constant."""
        x, g = self.normal(case.shape, torch.float64).cpu(), self.normal(case.shape, torch.float64).cpu()
        p = [t.cpu() for t in self.parameters(case, torch.float64)]
        for label, fn, device in (("fn", self.fn, self.device), ("reference", self.reference, torch.device("cpu"))):
            on_device = (x.to(device), [t.to(device) for t in p], g.to(device))
            _, dx, *dp = (t.cpu() for t in self.call(fn, *on_device, case.keywords | case.unscaled))
            f = self.surrogate(x, *p, **case.keywords)
            # The surrogate is piecewise smooth: a step this small crosses an edge of the clip range for hardly any element,
            # and where it does the one-sided differences disagree and the element is left out.
            h = 1e-6
            low, here, high = f(x - h, *p), f(x, *p), f(x + h, *p)
            left, right = (here - low) / h * g, (high - here) / h * g
            smooth = (left - right).abs() <= 1e-4 * (1 + g.abs())
            error = (dx - (left + right) / 2)[smooth].abs().max().item() if bool(smooth.any()) else 0.0
            detail = "" if error <= 1e-6 and smooth.double().mean() > 0.9 else f"dx is off by {error:.3g} of its central difference"
            self.record("finite differences", f"{case.name}, {label}, x", detail)
            for i, parameter in enumerate(p):
                flat = parameter.flatten()
                for j in range(0, flat.numel(), max(flat.numel() // 4, 1)):
                    steps = []
                    for sign in (-1, 1):
                        moved = flat.clone()
                        moved[j] += sign * h
                        steps.append((f(x, *p[:i], moved.view_as(parameter), *p[i + 1 :]) * g).sum())
                    slope = ((steps[1] - steps[0]) / (2 * h)).item()
                    got = dp[i].flatten()[j].item()
                    bound = 1e-5 * (1 + g.abs().sum().item())
                    detail = "" if abs(slope - got) <= bound else f"gradient {got:.9g}, central difference {slope:.9g}"
                    self.record("finite differences", f"{case.name}, {label}, parameter {i} element {j}", detail)

    def check_determinism(self, case: Case, threads: Sequence[int]) -> None:
        x, g = self.normal(case.shape, torch.float32), self.normal(case.shape, torch.float32)
        p = self.parameters(case, torch.float32)
        before = torch.get_num_threads()
        try:
            first = None
            for count in (*threads, *threads):
                torch.set_num_threads(count)
                now = self.call(self.fn, x, p, g, case.keywords)
                first = first or now
                wrong = [i for i, (a, b) in enumerate(zip(now, first, strict=True)) if not same_bits(a, b)]
                detail = f"result {wrong[0]}: {_difference(now[wrong[0]], first[wrong[0]])}" if wrong else ""
                self.record("determinism", f"{case.name}, {count} threads", detail)
        finally:
            torch.set_num_threads(before)

    def check_memory(self, case: Case) -> None:
        """Nothing of the size of x is kept for the backward pass beside x itself."""
        x, p = self.normal(case.shape, torch.float32).requires_grad_(), self.parameters(case, torch.float32)
        kept: dict[int, int] = {}

        def pack(t: torch.Tensor) -> torch.Tensor:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            y = self.fn(x, *(t.requires_grad_() for t in p), **case.keywords)
        # Beside x: the parameters, as many values again that a function may derive from them (a zero-point's), and a seed.
        limit = x.numel() * (x.element_size() + case.kept) + 2 * sum(t.numel() * t.element_size() for t in p) + 8
        total = sum(kept.values())
        self.record("saved memory", case.name, f"{total} bytes kept, {limit} allowed" if total > limit else "")
        del y

    def check_empty(self, case: Case) -> None:
        shape = (0, *case.shape[1:])
        parameters = tuple((0, *p[1:]) if _follows_first_axis(case, p) else p for p in case.parameters)
        empty = replace(case, shape=shape, parameters=parameters)
        zero = torch.zeros(shape, device=self.device)
        self.compare("empty input", case.name, empty, zero, self.parameters(empty, torch.float32), zero)

    def check_second_backward(self, case: Case) -> None:
        """A second differentiation raises: its silent zeros would be wrong."""
        x, p = self.normal(case.shape, torch.float32).requires_grad_(), self.parameters(case, torch.float32)
        y = self.fn(x, *(t.requires_grad_() for t in p), **case.keywords)
        try:
            (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
            torch.autograd.grad(dx.square().sum(), x)
        except RuntimeError:
            return self.record("second backward raises", case.name, "")
        return self.record("second backward raises", case.name, "it returned numbers")

    def check_operators(self, operators: Iterable[tuple[Any, tuple[Any, ...]]]) -> None:
        for operator, args in operators:
            detail = ""
            try:
                with torch.no_grad():
                    utilities = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
                    torch.library.opcheck(operator, args, test_utils=utilities)
            except Exception as error:
                detail = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            self.record("opcheck", str(operator), detail)


def check_quantizer(
    fn: Quantizer,
    reference: Quantizer,
    cases: Sequence[Case] = DEFAULT_CASES,
    *,
    surrogate: Callable[..., Quantizer] | None = None,
    operators: Iterable[tuple[Any, tuple[Any, ...]]] = (),
    term_bound: float = 256.0,
    exact_sums: bool = True,
    ulps: float = 0.0,
    position: Callable[..., torch.Tensor] | None = None,
    dtypes: Iterable[torch.dtype] = tuple(DTYPES),
    layouts: Sequence[str] = LAYOUTS,
    threads: Sequence[int] = (1, 2),
    large: int = 300_000,
    seed: int = 0,
    device: str = "cpu",
    name: str | None = None,
) -> Report:
    """Hold a quantizer against its reference, everywhere quantizers go wrong, and raise with a report if they differ.

    For each case, with ``y = fn(x, *parameters, **keywords)`` and a gradient ``g`` of ``y``:

    ======================  ==========================================================================================
    layouts                 bits and strides of ``y`` and ``dx``; contiguous, transposed, channels_last, strided, misaligned
    ties and edges          ``x`` on multiples of half a step: rounding ties, clip edges, exact zeros
    exact sums              integer gradients on that grid: parameter gradients to 8 roundings, as nothing else rounds
    extreme inputs          +-0, denormals, the largest numbers, +-inf, NaN, neighbours of ties; in ``x``, then in ``g``
    extreme parameters      the first parameter 0, -0, negative, denormal, +-inf, NaN
    expanded gradient       ``g`` with strides of 0 (what ``y.sum().backward()`` sends), and transposed
    one gradient alone      asking for one input's gradient changes none
    finite differences      gradients in fp64 against central differences of ``surrogate`` (if given), and the reference's too
    determinism             the same bits on every run and with every number of ``threads``, on ``large`` elements
    saved memory            no more bytes kept for the backward pass than ``x``, twice the parameters and a seed have
    empty input             a first axis of length 0
    second backward raises  rather than returning zeros
    opcheck                 ``torch.library.opcheck`` of each operator, under ``no_grad``
    ======================  ==========================================================================================

    Bits are compared as integers with every NaN made the same. Parameter gradients are sums, and may differ by
    ``2 * (128 + log2 n) * eps * sum|g| * term_bound``: the rounding of two sums that add at most 128 numbers in a row.

    Args:
        fn: the quantizer, ``fn(x, *parameters, **keywords) -> y``.
        reference: its specification, called the same way.
        cases: shapes, parameters and keywords to try (:class:`Case`).
        surrogate: ``surrogate(x, *parameters, **keywords)`` gives a function of the same ``(x, *parameters)`` whose ordinary
            derivative the quantizer's gradient is: the forward pass with the rounding residual frozen at the given point
            (for LSQ ``s * (clip(x/s) + r)``).
        operators: ``(operator, arguments)`` pairs for opcheck.
        term_bound: the largest magnitude of one element's derivative by a parameter (the largest code, for a step).
        exact_sums: set it to False for a formula whose terms are not multiples of a power of two on that grid (tanh, exp).
        ulps: 0 where ``y`` and ``dx`` must have the reference's bits. A formula with tanh, exp or log in it may be so many
            roundings of its arithmetic off.
        position: then, ``position(x, *parameters, **keywords)`` is what the quantizer rounds, in codes: where it is so near to a
            tie, ``y`` may be the neighbouring code's.
        dtypes, layouts, threads: what to try of each.
        large: elements of the determinism check.
        seed: of the inputs.
        device: where ``fn`` runs. The reference always runs on the CPU.
        name: of the quantizer in the report; ``fn``'s own by default.

    Returns:
        The report, if everything held.

    Raises:
        CheckFailed: an ``AssertionError`` whose message is the report.

    Example:
        >>> def mine(x, step):
        ...     return fastq.lsq(x, step, bits=4, grad_scale=1.0)
        >>> def specification(x, step):
        ...     return fastq.reference.lsq(x, step, bits=4, grad_scale=1.0)
        >>> print(fastq.testing.check_quantizer(mine, specification, term_bound=8))
    """
    checker = _Checker(fn, reference, surrogate, term_bound, seed, device, exact_sums, ulps, position)
    checker.check_bits(cases, dtypes, layouts)
    for case in cases:
        checker.attempt("gradient layouts", case, checker.check_gradient_layouts)
        checker.attempt("one gradient alone", case, checker.check_partial_gradients)
        checker.attempt("saved memory", case, checker.check_memory)
        checker.attempt("empty input", case, checker.check_empty)
        checker.attempt("second backward raises", case, checker.check_second_backward)
        if surrogate is not None:
            checker.attempt("finite differences", case, checker.check_surrogate)
        checker.attempt("determinism", _enlarged(case, large), lambda case: checker.check_determinism(case, threads))
    checker.check_operators(operators)
    report = Report(name or str(getattr(fn, "__name__", fn)), tuple(checker.results))
    if not report.passed:
        raise CheckFailed(report)
    return report


def _follows_first_axis(case: Case, parameter: tuple[int, ...]) -> bool:
    """Whether a parameter of this shape has an element for each index of the first axis of ``x``, or for each group of its last
    one; not one that is shared, which has one element whatever the granularity."""
    if case.keywords.get("axis") in (0, -len(case.shape)):
        return parameter == case.shape[:1]
    return len(parameter) == len(case.shape) > 1


def _enlarged(case: Case, elements: int) -> Case:
    """The case with about so many elements: a longer first axis, or last where each index of the first has a parameter."""
    if not case.shape or 0 in case.shape:
        return case
    per_index = case.keywords.get("axis") in (0, -len(case.shape))
    if per_index and len(case.shape) > 1:
        shape = (*case.shape[:-1], max(elements // math.prod(case.shape[:-1]), 1))
        return replace(case, shape=shape)
    first = max(elements // math.prod(case.shape[1:]), 1)
    parameters = tuple((first, *p[1:]) if _follows_first_axis(case, p) else p for p in case.parameters)
    return replace(case, shape=(first, *case.shape[1:]), parameters=parameters)
