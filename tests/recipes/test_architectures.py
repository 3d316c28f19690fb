"""``prepare``, two training steps, ``convert``: on the networks that the papers measure, with random weights, by every recipe."""

import math

import pytest
import torch
import torch.nn.functional as F
from architectures import ARCHITECTURES, FINGERPRINTS, build, fingerprint
from device import DEVICE, drawn

import fastq
from fastq.deploy.layers import CodedLayer
from fastq.nn import QUANTIZED, DirectConv1d, DirectConv2d, DirectLinear
from fastq.recipes import RECIPES

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
    """The prepared network after two steps of SGD (one for each phase, where there are more), and the images."""
    model = build(name, classes=10).to(DEVICE)
    plain = [n for n, m in model.named_modules() if type(m) in QUANTIZED]
    model = fastq.prepare(model, recipe).model
    images, labels = drawn((2, 3, SIZES[name], SIZES[name])), torch.tensor([3, 7], device=DEVICE)
    optimizer = torch.optim.SGD(fastq.param_groups(model, recipe, lr=0.01, weight_decay=1e-4), momentum=0.9)
    steps = max(2, len(recipe.phases))
    run = fastq.recipes.attach(recipe, model, optimizer, steps=steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels) + run.loss()
        loss.backward()
        assert math.isfinite(loss.detach()) and loss.detach() < 100, loss
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
        optimizer.step()
    run.before_evaluation([images])
    quantized = (*QUANTIZED.values(), DirectLinear, DirectConv1d, DirectConv2d)
    assert [n for n, m in model.named_modules() if isinstance(m, quantized)] == plain, "every layer that can be quantized is"
    return model, plain, images


def converts(model, plain, images):
    """The network of codes gives the predictions of the one that was trained."""
    integer = fastq.convert(model)
    assert [n for n, m in integer.named_modules() if isinstance(m, CodedLayer)] == plain, "and converted"
    report = fastq.deploy.compare(model, integer, images)
    assert (report.predictions, report.differing_predictions) == (2, 0), report
    # Batch norms and activations between the layers see sums that the two networks round differently, by about 1e-7 of a value, and
    # of a million codes a few lie that close to a tie. In a deep network of random weights one code that flips carries others over,
    # so what counts is the first layer where any does.
    first = next((layer for layer in report.layers if layer.flips), None)
    assert first is None or first.flips <= max(2, first.codes // 1000), report


def converts_exactly(model, images):
    """With fp64 between the layers nothing is left but a difference of 1e-16 of a value, and no code flips."""
    exact = fastq.deploy.compare(model.double(), fastq.convert(model), images.double())
    assert (exact.flips, exact.predictions, exact.differing_predictions) == (0, 2, 0), exact
    assert exact.largest_logit_difference < 1e-10, exact


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_two_steps_of_lsq_and_integers(name):
    model, plain, images = trained(name, fastq.recipes.lsq(4, 4))
    assert all(p.grad is not None for p in model.parameters()), "all are trained"
    converts(model, plain, images)
    converts_exactly(model, images)


# LSQ has been above; the levels of direct quantization are looked for among 100 ranges, a second for each large layer
@pytest.mark.parametrize("recipe", [name for name in RECIPES if name not in ("lsq", "direct")])
def test_two_steps_of_every_recipe_on_a_resnet(recipe):
    converts(*trained("resnet18", RECIPES[recipe](4, 4)))


@pytest.mark.parametrize("recipe", RECIPES)
def test_two_steps_of_every_recipe_on_a_transformer(recipe):
    model, plain, images = trained("transformer", RECIPES[recipe](4, 4))
    converts(model, plain, images)
    converts_exactly(model, images)
