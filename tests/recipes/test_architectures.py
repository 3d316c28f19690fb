"""``prepare``, two training steps, ``convert``: on the networks that the papers measure, with random weights."""

import pytest
import torch
import torch.nn.functional as F
from architectures import ARCHITECTURES, FINGERPRINTS, build, fingerprint
from device import DEVICE, drawn

import fastq
from fastq.deploy.layers import IntegerLayer
from fastq.nn import QUANTIZED

#: Pixels of a side; a batch has two images. With 32 the last stage of a ResNet would have one pixel, and the batch norms of two
#: numbers make gradients of 1e8 there, quantized or not.
SIZES = {"resnet18": 48, "resnet50": 48, "mobilenet_v2": 48, "mobilenet_v3_small": 64, "transformer": 32}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", FINGERPRINTS)
def test_the_definitions_have_the_names_and_shapes_of_torchvision(name):
    with torch.device("meta"):
        model = ARCHITECTURES[name]()
    assert fingerprint(model) == FINGERPRINTS[name]


def trained(name, recipe):
    """The prepared network after two steps of SGD, and what each step's loss was."""
    model = build(name, classes=10).to(DEVICE)
    plain = [n for n, m in model.named_modules() if type(m) in QUANTIZED]
    model = fastq.prepare(model, recipe).model
    images, labels = drawn((2, 3, SIZES[name], SIZES[name])), torch.tensor([3, 7], device=DEVICE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return model, plain, images, losses


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_two_steps_of_lsq_and_integers(name):
    model, plain, images, losses = trained(name, fastq.recipes.lsq(4, 4))
    assert all(loss == loss and abs(loss) < 100 for loss in losses), losses
    quantized = [n for n, m in model.named_modules() if type(m) in QUANTIZED.values()]
    assert quantized == plain, "every layer that can be quantized is"
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters()), "all are trained"
    integer = fastq.convert(model)
    assert [n for n, m in integer.named_modules() if isinstance(m, IntegerLayer)] == plain
    report = fastq.deploy.compare(model, integer, images)
    # Batch norms and activations between the layers see sums that the two networks round differently, by about 1e-7 of a value, and
    # of a million codes a few lie that close to a tie. In a deep network of random weights one code that flips carries others over,
    # so what counts is the first layer where any does.
    first = next((layer for layer in report.layers if layer.flips), None)
    assert first is None or first.flips <= max(2, first.codes // 1000), report
    # With fp64 in between nothing is left but a difference of 1e-16, and no code flips.
    exact = fastq.deploy.compare(model.double(), fastq.convert(model), images.double())
    assert (exact.flips, exact.predictions, exact.differing_predictions) == (0, 2, 0), exact
    assert exact.largest_logit_difference < 1e-10, exact
