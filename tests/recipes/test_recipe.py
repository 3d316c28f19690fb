"""Recipes are data: what they hold, what they refuse, and that they compare and print."""

import copy
import dataclasses
import pickle
import re

import pytest

import fastq
from fastq.recipes import LayerRecipe, Recipe, lsq


def test_lsq_is_the_paper():
    recipe = lsq()
    assert recipe == Recipe("lsq", LayerRecipe(), 8, {}, ())
    default = recipe.default
    assert (default.weight_bits, default.activation_bits, default.weight_init, default.activation_init) == (4, 4, "lsq", "lsq")
    assert (default.boundary, default.grad_scale, default.activation_offset) == ("open", "lsq", False)
    assert recipe is not lsq() and fastq.recipes.lsq is lsq


def test_lsq_passes_everything_on():
    recipe = lsq(
        2, None, first_last_bits=None, overrides={"fc": {"weight_bits": 3}}, skip=["head"],
        per_channel=False, signed_activations=True, activation_offset=True, weight_init="mse", activation_init="lsq+",
        boundary="rounded", grad_scale=0.5,
    )  # fmt: skip
    assert recipe.default == LayerRecipe(2, None, False, True, True, "mse", "lsq+", "rounded", 0.5)
    assert recipe.first_last_bits is None and recipe.overrides == {"fc": {"weight_bits": 3}} and recipe.skip == ("head",)


@pytest.mark.parametrize(
    "change",
    [
        {"weight_bits": 3}, {"activation_bits": 3}, {"first_last_bits": 4}, {"first_last_bits": None}, {"skip": ("a",)},
        {"overrides": {"a": {"weight_bits": 2}}}, {"per_channel": False}, {"grad_scale": 1.0}, {"boundary": "closed"},
    ],
)  # fmt: skip
def test_equal_is_every_setting(change):
    assert lsq(**change) == lsq(**change) and lsq(**change) != lsq()
    assert str(next(iter(change))) in repr(lsq(**change))


def test_repr_makes_the_recipe_again():
    recipe = lsq(2, 3, overrides={"conv*": {"weight_bits": 8}}, skip=("head",), grad_scale=0.25)
    assert eval(repr(recipe)) == recipe
    assert pickle.loads(pickle.dumps(recipe)) == recipe == copy.deepcopy(recipe)


def test_a_recipe_does_not_change():
    overrides, values, skip = {}, {"weight_bits": 2}, ["head"]
    overrides["fc"] = values
    recipes = [lsq(overrides=overrides, skip=skip), Recipe("mine", overrides=overrides, skip=skip)]
    values["weight_bits"] = 3
    overrides["other"] = {}
    skip.append("body")
    for recipe in recipes:
        assert recipe.overrides == {"fc": {"weight_bits": 2}} and recipe.skip == ("head",)
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.name = "other"


def test_bits_may_be_a_range():
    recipe = lsq((-3, 3), (0, 10))
    assert recipe.default.weight_bits == (-3, 3) and recipe.default.activation_bits == (0, 10)


WRONG = [
    ({"weight_bits": 9}, ValueError, "recipe: weight_bits: bits must be from 1 to 8 .*got 9"),
    ({"weight_bits": 0}, ValueError, "recipe: weight_bits: bits must be from 1 to 8 .*got 0"),
    ({"weight_bits": 1}, ValueError, "recipe: weight_bits: the range .* has no positive code.*1 bit"),
    ({"weight_bits": "4"}, TypeError, "recipe: weight_bits: bits must be an int from 1 to 8.*got '4'"),
    ({"weight_bits": (4, 4)}, ValueError, "recipe: weight_bits: .*needs qmin < qmax"),
    ({"activation_bits": 16}, ValueError, "recipe: activation_bits: bits must be from 1 to 8 .*got 16"),
    ({"activation_bits": 4.0}, TypeError, "recipe: activation_bits: bits must be an int from 1 to 8.*got 4.0"),
    ({"activation_bits": True}, TypeError, "recipe: activation_bits: bits must be an int from 1 to 8.*got True"),
    ({"activation_bits": 1, "signed_activations": True}, ValueError, "recipe: activation_bits: .*1 bit must be signed=False"),
    ({"per_channel": 1}, TypeError, "recipe: per_channel must be True or False, got 1"),
    ({"activation_offset": None}, TypeError, "recipe: activation_offset must be True or False, got None"),
    ({"signed_activations": "yes"}, TypeError, "recipe: signed_activations must be True, False or None, got 'yes'"),
    ({"weight_init": "max"}, ValueError, "recipe: weight_init must be one of lsq, lsq+, mse, got 'max'"),
    ({"activation_init": "max"}, ValueError, "recipe: activation_init must be one of lsq, lsq+, mse, got 'max'"),
    ({"boundary": "shut"}, ValueError, "recipe: boundary must be one of open, closed, rounded, got 'shut'"),
    ({"grad_scale": "lqs"}, ValueError, "recipe: grad_scale must be a float, 'lsq' or 'lsq-full', got 'lqs'"),
    ({"grad_scale": None}, TypeError, "recipe: grad_scale must be a float, 'lsq' or 'lsq-full', got NoneType"),
]


def pattern(message):
    return ".*".join(re.escape(part) for part in message.split(".*"))


@pytest.mark.parametrize(("settings", "error", "message"), WRONG)
def test_wrong_settings(settings, error, message):
    for make in (lsq, LayerRecipe, lambda **s: dataclasses.replace(LayerRecipe(), **s)):
        with pytest.raises(error, match=pattern(message)):
            make(**settings)
    with pytest.raises(error, match=pattern("recipe: overrides['fc']: " + message.removeprefix("recipe: "))):
        lsq(overrides={"fc": settings})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"first_last_bits": 9}, ValueError, "recipe: first_last_bits: bits must be from 1 to 8 .*got 9"),
        ({"first_last_bits": "8"}, TypeError, "recipe: first_last_bits must be an int from 1 to 8 or None, got '8'"),
        ({"first_last_bits": (0, 7)}, TypeError, "recipe: first_last_bits must be an int from 1 to 8 or None, got (0, 7)"),
        ({"first_last_bits": 1, "signed_activations": True}, ValueError, "recipe: first_last_bits: .*1 bit must be signed=False"),
        ({"skip": "head"}, TypeError, "recipe: skip must be a sequence of patterns, got one str, 'head'"),
        ({"skip": ("head", 3)}, TypeError, "recipe: skip must be a sequence of patterns, each a str, got 3"),
        ({"skip": 3}, TypeError, "recipe: skip must be a sequence of patterns, got int"),
        ({"overrides": ["fc"]}, TypeError, "recipe: overrides must map patterns to settings, got list"),
        ({"overrides": {"fc": 4}}, TypeError, "recipe: overrides['fc'] must map settings to values, got int"),
        ({"overrides": {4: {}}}, TypeError, "recipe: overrides must map patterns to settings, got the pattern 4"),
        (
            {"overrides": {"fc": {"bits": 4}}}, ValueError,
            "recipe: overrides['fc'] has no setting 'bits'; known are activation_bits, activation_init.*weight_init",
        ),
    ],
)  # fmt: skip
def test_wrong_recipes(arguments, error, message):
    with pytest.raises(error, match=pattern(message)):
        lsq(**arguments)


def test_settings_that_do_not_exist():
    with pytest.raises(TypeError, match=r"lsq: no setting 'weight_bit'; known are activation_bits.*weight_init"):
        lsq(weight_bit=4)
    with pytest.raises(TypeError, match="recipe: default must be a LayerRecipe, got dict"):
        Recipe("mine", {"weight_bits": 4})
