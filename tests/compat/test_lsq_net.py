"""fastq.compat.lsq_net against LSQ written by hand in that repository's style (it is on no registry), from the paper's formula."""

from typing import Any

import pytest
import torch
from compat_timing import times_faster
from device import drawn
from hand_written_lsq import HandWritten
from torch import nn

from fastq.compat.lsq_net import IdentityQuan, LsqQuan

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = [
    {"bit": 4, "per_channel": False},
    {"bit": 3, "per_channel": True},
    {"bit": 2, "per_channel": True, "symmetric": True},
    {"bit": 3, "per_channel": False, "all_positive": True},
]


class QuantizedConv(nn.Conv2d):
    """How that repository's layers use a quantizer: made for the weight, and for the activations from the first batch on."""

    def __init__(self, kind: type, *args: Any) -> None:
        super().__init__(*args)
        self.weight_quantizer, self.activation_quantizer = (
            kind(bit=3, per_channel=True),
            kind(bit=4, all_positive=True, per_channel=False),
        )
        self.weight_quantizer.init_from(self.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(self.activation_quantizer(x), self.weight_quantizer(self.weight), self.bias)


def curve(kind: type) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(QuantizedConv(kind, 3, 8, 3), nn.ReLU(), QuantizedConv(kind, 8, 4, 3), nn.Flatten(), nn.Linear(64, 5))
    x, target = drawn((24, 3, 8, 8)).relu(), torch.arange(24) % 5
    for layer in (model[0], model[2]):
        layer.activation_quantizer.init_from(x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(30):
        loss = nn.functional.cross_entropy(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses), model.state_dict()


@pytest.mark.parametrize("options", KINDS)
def test_output_and_gradients_are_the_formula_s(options: dict[str, Any]) -> None:
    x, g = drawn((6, 5, 4, 3)), drawn((6, 5, 4, 3), seed=1)
    results = []
    for kind in (HandWritten, LsqQuan):
        quantizer = kind(**options)
        quantizer.init_from(x)
        leaf = x.clone().requires_grad_()
        y = quantizer(leaf)
        y.backward(g)
        results.append((y.detach(), leaf.grad, quantizer.s.grad, quantizer.s.detach()))
    (y0, dx0, ds0, s0), (y1, dx1, ds1, s1) = results
    assert torch.equal(s0, s1) and ds0.shape == ds1.shape
    # By hand s and round(v) come out of a subtraction and an addition each: two roundings, of codes up to 8. No code differs here.
    assert torch.allclose(y0, y1, rtol=0, atol=4 * 8 * float(s0.max()) * 2**-24)
    assert torch.allclose(dx0, dx1, rtol=2**-22, atol=0)  # (g * s) / s by hand, g here; the same elements are 0
    assert torch.allclose(ds0, ds1, rtol=1e-5, atol=1e-6)  # a sum of up to 360 terms in another order


def test_a_network_s_loss_curve_stays_with_the_hand_written_one_s() -> None:
    (by_hand, state), (ours, our_state) = curve(HandWritten), curve(LsqQuan)
    # Equal up to the roundings above, a few 1e-7 a step; momentum lets 30 steps add up. A single flipped code shows as about 1e-3.
    assert torch.allclose(by_hand[:5], ours[:5], rtol=1e-5, atol=0)
    assert torch.allclose(by_hand, ours, rtol=2e-3, atol=0) and ours[-1] < 0.5 * ours[0]
    assert state.keys() == our_state.keys()
    assert all(state[key].shape == our_state[key].shape for key in state)


def test_checkpoints_load_both_ways() -> None:
    x = drawn((5, 4, 3, 3))
    for source, target in ((HandWritten, LsqQuan), (LsqQuan, HandWritten)):
        a, b = source(bit=4), target(bit=4)
        a.init_from(x)
        b.init_from(2 * x)
        assert list(a.state_dict()) == ["s"] and a.s.shape == (5, 1, 1, 1)
        b.load_state_dict(a.state_dict())
        assert torch.allclose(a(x), b(x), rtol=0, atol=1e-6)


def test_half_precision_keeps_its_dtype_and_a_linear_weight_its_rows() -> None:
    x = drawn((6, 16)).bfloat16()
    quantizer = LsqQuan(bit=4)
    quantizer.init_from(x.float())
    y = quantizer(x)
    assert y.dtype == torch.bfloat16 and quantizer.s.shape == (6, 1)
    codes = (y.float() / quantizer.s).round()
    assert torch.allclose(codes * quantizer.s, y.float(), rtol=2**-8) and len(codes.unique()) > 8
    assert torch.equal(IdentityQuan()(x), x)


def test_it_compiles_into_one_graph() -> None:
    quantizer, x, g = LsqQuan(bit=4), drawn((6, 16)).requires_grad_(), drawn((6, 16), seed=1)
    quantizer.init_from(x)
    results = []
    for forward in (quantizer, torch.compile(quantizer, backend="aot_eager", fullgraph=True)):
        y = forward(x)
        results.append((y.detach(), *torch.autograd.grad(y, [x, quantizer.s], g)))
    torch._dynamo.reset()
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_what_is_not_served_says_so() -> None:
    with pytest.raises(ValueError, match="LsqQuan: all_positive=True and symmetric=True exclude each other"):
        LsqQuan(4, all_positive=True, symmetric=True)
    with pytest.raises(ValueError, match="LsqQuan: bits must be from 1 to 8"):
        LsqQuan(12)
    with pytest.raises(ValueError, match=r"LsqQuan: the range \(-1, 0\) has no positive code"):
        LsqQuan(1)
    with pytest.raises(ValueError, match="IdentityQuan: bit must be None, as nothing is quantized, got 4"):
        IdentityQuan(4)
    quantizer = LsqQuan(4)
    quantizer.init_from(torch.ones(5, 3))
    with pytest.raises(
        ValueError, match=r"LsqQuan: s must be one element or of shape \(4, 1, \.\.\.\) for x of shape \(4, 3\), got \(5, 1\)"
    ):
        quantizer(torch.ones(4, 3))
    with pytest.raises(TypeError, match=r"LsqQuan: x must be float32, bfloat16, float16 or float64, got torch\.int64"):
        quantizer(torch.ones(5, 3, dtype=torch.int64))


def test_it_is_faster() -> None:
    """Measured 8x, of CPU time on one core."""
    x, g = torch.randn(512, 4096, requires_grad=True), torch.randn(512, 4096)
    quantizers = [HandWritten(4), LsqQuan(4)]
    for quantizer in quantizers:
        quantizer.init_from(x)
    calls = [lambda q=q: torch.autograd.grad(q(x), [x, q.s], g) for q in quantizers]
    assert times_faster(*calls) > 2
