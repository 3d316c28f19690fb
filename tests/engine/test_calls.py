"""A call like an earlier one is not checked again: it gives the same, and what is wrong with it is still said."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import fastq
from fastq.ops import _calls


def codes(*shape: int) -> torch.Tensor:
    return torch.randint(-128, 128, shape, dtype=torch.int8)


WEIGHT = fastq.pack(codes(6, 10), 8, scale=torch.rand(6))
KERNELS = fastq.pack(codes(6, 5, 3, 3), 8, scale=torch.rand(6))


def linear(x: torch.Tensor | None = None, **keywords: Any) -> torch.Tensor:
    return fastq.int_linear(codes(4, 10) if x is None else x, WEIGHT, **{"x_scale": 0.5, "bias": torch.ones(6), **keywords})


def convolution(x: torch.Tensor | None = None, **keywords: Any) -> torch.Tensor:
    return fastq.int_conv2d(codes(2, 5, 7, 7) if x is None else x, KERNELS, **{"x_scale": 0.5, "bias": torch.ones(6), **keywords})


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_calls, "_kept", {})


@pytest.fixture(params=[linear, convolution])
def call(request: pytest.FixtureRequest) -> Callable[..., torch.Tensor]:
    found: Callable[..., torch.Tensor] = request.param
    return found


def shape_of(call: Callable[..., torch.Tensor]) -> tuple[int, ...]:
    return (4, 10) if call is linear else (2, 5, 7, 7)


def test_the_second_call_is_known_and_has_the_numbers_of_its_own_tensors(call: Callable[..., torch.Tensor]) -> None:
    for scale in (0.5, 0.25, torch.tensor(2.0), torch.tensor([3.0], dtype=torch.float64)):
        x, bias, residual = codes(*shape_of(call)), torch.randn(6), torch.randn(call().shape)
        given = {"x_scale": scale, "bias": bias, "residual": residual, "activation": "relu", "out_scale": torch.rand(1) + 1}
        y = call(x, **given)
        with fastq.use_backend("reference"):
            assert torch.equal(y, call(x, **given))
    assert len(_calls._kept) == 2


def test_what_a_tensor_must_be_is_asked_in_every_call(call: Callable[..., torch.Tensor]) -> None:
    residual = torch.zeros(call().shape)
    call(residual=residual)
    for wrong, error, message in (
        ({"bias": torch.ones(5)}, ValueError, r"bias must have shape \(6,\)"),
        ({"bias": torch.ones(6, dtype=torch.int32)}, TypeError, "bias must be a floating point tensor"),
        ({"x_scale": torch.ones(3)}, ValueError, "x_scale must have one element"),
        ({"x_scale": float("inf")}, ValueError, "x_scale must be finite"),
        ({"out_scale": torch.ones(3)}, ValueError, "out_scale must have one element"),
        ({"residual": residual[:1]}, ValueError, "residual must have the output's shape"),
        ({"residual": residual.double()}, TypeError, "residual must be float32"),
        ({"residual": residual.clone().requires_grad_()}, RuntimeError, "residual requires a gradient"),
        ({"kernel": "none"}, ValueError, "unknown kernel 'none'"),
        ({"x_zero_point": True}, TypeError, "x_zero_point must be an int"),
        ({"x_zero_point": 200}, ValueError, "x_zero_point must be a code of torch.int8"),
        ({"x": codes(*shape_of(call))[:, :3]}, ValueError, "x must be"),
        ({"x": torch.zeros(shape_of(call), requires_grad=True), "x_scale": None}, RuntimeError, "x requires a gradient"),
    ):
        given: dict[str, Any] = {"residual": residual, "x_zero_point": 1, **wrong}
        x = given.pop("x", None)
        call(**{name: t for name, t in given.items() if name not in wrong})
        with pytest.raises(error, match=message):
            call(x, **given)


def test_a_number_of_another_type_is_another_call() -> None:
    x = codes(2, 5, 7, 7)
    y = convolution(x, stride=1, padding=1)
    assert torch.equal(convolution(x, stride=[1, 1], padding=[1, 1]), y)
    with pytest.raises(TypeError, match="stride must be an int or two"):
        convolution(x, stride=True, padding=1)
    with pytest.raises(TypeError, match="groups must be an int"):
        convolution(x, padding=1, groups=True)


def test_the_checking_mode_looks_at_every_call(call: Callable[..., torch.Tensor]) -> None:
    wrong = {"bias": torch.full((6,), float("nan"))}
    call(**wrong)
    fastq.set_checks(True)
    try:
        with pytest.raises(ValueError, match="bias must be finite"):
            call(**wrong)
    finally:
        fastq.set_checks(False)


def test_the_backend_asked_for_serves(call: Callable[..., torch.Tensor]) -> None:
    x = codes(*shape_of(call))
    y = call(x)
    with fastq.use_backend("reference"):
        assert torch.equal(call(x), y)
    with fastq.use_backend("cuda"), pytest.raises(RuntimeError, match="cannot serve"):
        call(x)


def test_not_more_is_kept_than_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_calls, "LIMIT", 3)
    for rows in range(1, 9):
        linear(codes(rows, 10))
    assert len(_calls._kept) <= 3


def test_a_weight_that_moves_takes_nothing_along() -> None:
    linear()
    moved = WEIGHT.to("cpu", "rows")
    assert moved.form != WEIGHT.form and moved.kept_operand.data is moved.data
    with pytest.raises(ValueError, match="weight must be in the layout 'blocks'"):
        fastq.int_linear(codes(4, 10), moved, x_scale=0.5, bias=torch.ones(6))


def test_rows_of_several_dimensions_have_their_own_scales_again() -> None:
    for _ in range(2):
        x, scale, residual = codes(2, 3, 10), torch.rand(2, 3), torch.randn(2, 3, 6)
        y = linear(x, x_scale=scale, residual=residual)
        flat = linear(x.view(6, 10), x_scale=scale.view(6), residual=residual.view(6, 6), kernel="reference")
        assert torch.equal(y, flat.view(2, 3, 6))
    assert len(_calls._kept) == 2
