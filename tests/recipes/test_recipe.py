"""Recipes are data: what they hold, what they refuse, and that they compare and print."""

import copy
import dataclasses
import pickle
import re

import pytest

import fastq
from fastq.recipes import LayerRecipe, Parameters, Recipe, lsq


def test_lsq_is_the_paper():
    recipe = lsq()
    assert recipe == Recipe("lsq", LayerRecipe(), 8, {}, ())
    default = recipe.default
    assert (default.weight_bits, default.activation_bits, default.weight, default.activation) == (4, 4, "lsq", "lsq")
    assert (default.weight_options, default.activation_options, default.weight_per_channel) == ({}, {}, True)
    assert recipe is not lsq() and fastq.recipes.lsq is lsq


def test_lsq_passes_everything_on():
    recipe = lsq(
        2, None, first_last_bits=None, overrides={"fc": {"weight_bits": 3}}, skip=["head"],
        per_channel=False, signed_activations=True, weight_options={"init": "mse"}, activation_options={"offset": True},
    )  # fmt: skip
    assert recipe.default == LayerRecipe(2, None, "lsq", "lsq", False, True, {"init": "mse"}, {"offset": True})
    assert recipe.first_last_bits is None and recipe.overrides == {"fc": {"weight_bits": 3}} and recipe.skip == ("head",)


@pytest.mark.parametrize(
    "change",
    [
        {"weight_bits": 3}, {"activation_bits": 3}, {"first_last_bits": 4}, {"first_last_bits": None}, {"skip": ("a",)},
        {"overrides": {"a": {"weight_bits": 2}}}, {"per_channel": False}, {"weight_options": {"grad_scale": 1.0}},
        {"activation_options": {"boundary": "closed"}}, {"signed_activations": False},
    ],
)  # fmt: skip
def test_equal_is_every_setting(change):
    assert lsq(**change) == lsq(**change) and lsq(**change) != lsq()
    assert str(next(iter(change))) in repr(lsq(**change))


def test_repr_makes_the_recipe_again():
    recipe = lsq(2, 3, overrides={"conv*": {"weight_bits": 8}}, skip=("head",), weight_options={"grad_scale": 0.25})
    assert eval(repr(recipe), {"Recipe": Recipe, "LayerRecipe": LayerRecipe, "Parameters": Parameters}) == recipe
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
    ({"activation_bits": 16}, ValueError, "recipe: activation_bits: bits must be from 1 to 8 .*got 16; None is full precision"),
    ({"activation_bits": 4.0}, TypeError, "recipe: activation_bits: bits must be an int from 1 to 8.*got 4.0"),
    ({"activation_bits": True}, TypeError, "recipe: activation_bits: bits must be an int from 1 to 8.*got True"),
    ({"activation_bits": 1, "signed_activations": True}, ValueError, "recipe: activation_bits: .*1 bit must be signed=False"),
    ({"per_channel": 1}, TypeError, "recipe: per_channel must be True, False or None, got 1"),
    ({"weight": "lsqq"}, ValueError, "recipe: weight has no quantizer 'lsqq'; did you mean 'lsq'? known are lsq, oscillation"),
    ({"weight": ["lsq"]}, TypeError, "recipe: weight must be the name of a quantizer, got ['lsq']"),
    ({"activation": None}, TypeError, "recipe: activation must be the name of a quantizer, got None"),
    (
        {"weight_options": {"eps": None}}, TypeError,
        "recipe: weight_options: eps must be a bool, int, float, str or torch.dtype, got None; leave it out",
    ),
    ({"activation_options": {"eps": [1]}}, TypeError, "recipe: activation_options: eps must be a bool, int, float, str .*got [1]"),
    ({"activation": "sat"}, ValueError, "recipe: activation has no quantizer 'sat'.*known are lsq, pact, qil"),
    ({"weight": "sat", "per_channel": True}, ValueError, "recipe: per_channel must be False or None for the quantizer 'sat'"),
    (
        {"activation": "dsq", "signed_activations": True}, ValueError,
        "recipe: signed_activations must be None for the quantizer 'dsq', which fits its range",
    ),
    ({"weight_options": ["init"]}, TypeError, "recipe: weight_options must map options of the quantizer to values, got list"),
    (
        {"weight_options": {"boundry": "open"}}, ValueError,
        "recipe: weight_options: the quantizer 'lsq' has no option 'boundry'; did you mean 'boundary'? known are boundary, eps",
    ),
    ({"weight_options": {"axis": 1}}, ValueError, "recipe: weight_options: the quantizer 'lsq' has no option 'axis'"),
    ({"activation": "pact", "activation_options": {"init": -1.0}}, ValueError, "recipe: activation_options: PACT: init must be"),
    ({"weight": "direct", "weight_options": {"rho": 2}}, ValueError, "recipe: weight_options: DirectWeight: rho must be from 0"),
    ({"weight": "ewgs", "weight_bits": (-3, 3)}, TypeError, "recipe: weight 'ewgs': "),
    ({"signed_activations": "yes"}, TypeError, "recipe: signed_activations must be True, False or None, got 'yes'"),
    (
        {"weight_options": {"init": "max"}}, ValueError,
        "recipe: weight_options: LSQ: init must be one of lsq, lsq+, mse, got 'max'",
    ),
    (
        {"activation_options": {"boundary": "shut"}}, ValueError,
        "recipe: activation_options: LSQ: boundary must be one of open, closed, rounded, got 'shut'",
    ),
    (
        {"activation_options": {"grad_scale": "lqs"}}, ValueError,
        "recipe: activation_options: LSQ: grad_scale must be a float, 'lsq' or 'lsq-full', got 'lqs'",
    ),
]  # fmt: skip


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
        ({"first_last_bits": 1}, ValueError, "recipe: first_last_bits: weight_bits: the range .* has no positive code.*1 bit"),
        ({"first_last_bits": 1, "weight": "qil"}, ValueError, "recipe: first_last_bits: weight.*1 bit"),
        ({"skip": "head"}, TypeError, "recipe: skip must be a sequence of patterns, got one str, 'head'"),
        ({"skip": ("head", 3)}, TypeError, "recipe: skip must be a sequence of patterns, each a str, got 3"),
        ({"skip": 3}, TypeError, "recipe: skip must be a sequence of patterns, got int"),
        ({"overrides": ["fc"]}, TypeError, "recipe: overrides must map patterns to settings, got list"),
        ({"overrides": {"fc": 4}}, TypeError, "recipe: overrides['fc'] must map settings to values, got int"),
        ({"overrides": {4: {}}}, TypeError, "recipe: overrides must map patterns to settings, got the pattern 4"),
        (
            {"overrides": {"fc": {"bits": 4}}}, ValueError,
            "recipe: overrides['fc'] has no setting 'bits'.*known are activation, activation_bits.*weight_options",
        ),
    ],
)  # fmt: skip
def test_wrong_recipes(arguments, error, message):
    with pytest.raises(error, match=pattern(message)):
        lsq(**arguments)


def test_one_bit_at_the_ends_for_weights_that_have_levels_from_0_up():
    assert fastq.recipes.sat(first_last_bits=1).first_last_bits == 1
    with pytest.raises(ValueError, match=r"recipe: first_last_bits with first: weight_bits: the range .* has no positive code"):
        fastq.recipes.direct(first_last_bits=1)


def test_settings_that_do_not_exist():
    with pytest.raises(TypeError, match=r"lsq: no setting 'weight_bit'; did you mean 'weight_bits'\? known are activation"):
        lsq(weight_bit=4)
    with pytest.raises(TypeError, match="recipe: default must be a LayerRecipe, got dict"):
        Recipe("mine", {"weight_bits": 4})
