"""The papers' recipes: what they say, that TOML keeps it, and what is refused."""

import dataclasses
import re

import pytest
import torch

import fastq
from fastq.recipes import ACTIVATIONS, RECIPES, WEIGHTS, Dampening, Freezing, LayerRecipe, Parameters, Phase, Recipe, Tempering

FLOATING = LayerRecipe(None, None)


@pytest.mark.parametrize("name", RECIPES)
def test_toml_keeps_a_recipe(name):
    for bits in ((2, 2), (4, 8), (3, None)):
        recipe = RECIPES[name](*bits, overrides={"fc": {"weight_bits": None}, "conv*": {"activation_bits": 5}}, skip=["head"])
        text = recipe.to_toml()
        assert Recipe.from_toml(text) == recipe and str(recipe) == text
        assert recipe.name == name and f"name = {name!r}".replace("'", '"') in text
    assert RECIPES[name]().default.weight_bits == (2 if name == "direct" else 4)


def test_toml_keeps_ranges_and_the_lack_of_widths():
    recipe = fastq.recipes.lsq((-3, 3), None, first_last_bits=None, overrides={"fc": {"activation_bits": (0, 10)}})
    assert Recipe.from_toml(recipe.to_toml()) == recipe
    assert 'first_last_bits = "float"' in recipe.to_toml() and 'activation_bits = "float"' in recipe.to_toml()


def test_toml_keeps_dtypes_by_their_names():
    recipe = fastq.recipes.direct(
        weight_options={"residual_dtype": torch.bfloat16}, overrides={"fc": {"weight_options": {"residual_dtype": torch.float16}}}
    )
    assert Recipe.from_toml(str(recipe)) == recipe and 'residual_dtype = "bfloat16"' in str(recipe)
    assert recipe.default.weight_options["residual_dtype"] == "bfloat16"
    model = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(3)))
    fastq.prepare(model, Recipe("mine", recipe.default, first_last_bits=None))
    assert all(layer.direct.residual.dtype == torch.bfloat16 for layer in model)


def test_toml_keeps_what_a_layer_leaves_to_the_quantizer():
    """None in an override is not what the default says."""
    settings = {"per_channel": None, "signed_activations": None}
    default = LayerRecipe(per_channel=False, signed_activations=True)
    recipe = Recipe("mine", default, overrides={"fc": settings}, first=settings, last=settings)
    again = Recipe.from_toml(str(recipe))
    assert again == recipe and again.overrides["fc"] == again.first == again.last == settings
    assert str(recipe).count('per_channel = "auto"') == str(recipe).count('signed_activations = "auto"') == 3
    assert LayerRecipe(per_channel="auto", signed_activations="auto") == LayerRecipe()


def test_toml_of_everything():
    recipe = Recipe(
        "mine", LayerRecipe(3, 4, "oscillation", "pact", False, True, {"momentum": 0.01}, {"calibrated": False}), 6,
        {"a": {"weight": "sat", "weight_options": {"scheme": "floor"}}}, ("b",), {"weight_bits": 7}, {"activation": "lsq"},
        (Phase(10, None, 5, "network"), Phase(0.25, 4, "own", "quantizers"), Phase()),
        Freezing(0.1, 0.02, 0.5), Dampening(0.5, 0.1, "sum"), Tempering(0.5, 3.0), 20, Parameters("dense", 0.1, 0.5),
    )  # fmt: skip
    assert Recipe.from_toml(recipe.to_toml()) == recipe
    changed = [f.name for f in dataclasses.fields(Recipe) if getattr(recipe, f.name) == getattr(Recipe("x"), f.name)]
    assert changed == [], "every attribute differs from its default, so every one went through TOML"


def test_making_a_recipe_draws_no_random_numbers():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    for make in RECIPES.values():
        make()
    assert torch.equal(torch.get_rng_state(), state)


def test_what_the_papers_say():
    r = RECIPES
    assert r["sat"]().phases == (Phase(0.5, None, None), Phase()) and r["sat"]().parameters.decay == "dense"
    assert r["sat"]().first == {"activation_bits": None} and r["sat"](raw_input=False, pretraining=None).phases == ()
    assert [p.weight_bits for p in r["qil"](2, 2).phases] == [None, 5, 4, 3, "own"]
    assert [p.length for p in r["qil"](2, 2).phases] == [0.2, 0.2, 0.2, 0.2, None]
    assert [p.weight_bits for p in r["qil"](4, 4).phases] == [None, 5, "own"] and r["qil"](progressive=False).phases == ()
    assert [p.train for p in r["qil"](3, 3, progressive=False, quantizers_alone=0.5).phases] == ["quantizers", "all"]
    assert r["oscillation_freeze"]().freezing == Freezing(0.04, 0.01, 0.25) and r["oscillation_freeze"]().batch_norm == 50
    assert r["oscillation_dampen"]().dampening == Dampening(0.1, 0.25, "kernel")
    assert r["noise_tempering"]().tempering == Tempering(1.0, 5.0)
    assert r["pact"](calibrated=False).default.activation_options == {"calibrated": False}
    assert r["lsq_plus"]().default.activation_options == {"init": "lsq+", "offset": True}
    assert (r["qil"]().parameters.quantizer_lr, r["ewgs"]().parameters.quantizer_lr) == (0.001, 0.01)
    assert r["direct"]().first == r["direct"]().last == {"weight": "lsq"}
    assert r["direct"]().default.changed(r["direct"]().first).activation == "channel_error"
    for name, make in r.items():
        text = " ".join((make.__doc__ or "").split())
        assert "arxiv.org" in text or "reconstruction" in text, f"{name} names its paper, or says that it is a reconstruction"


WRONG = [
    ({"skips": []}, "the recipe has no key 'skips'; did you mean 'skip'?"),
    ({"default": {"weight_bit": 4}}, "default has no key 'weight_bit'; did you mean 'weight_bits'? known are weight_bits,"),
    ({"freezing": {"frist": 0.1}}, "freezing has no key 'frist'; did you mean 'first'?"),
    ({"phases": [{"length": 0.5}, {"trian": "all"}]}, "phases has no key 'trian'; did you mean 'train'?"),
    ({"phases": [{"train": "quantizer"}]}, "phases: train has no 'quantizer'; did you mean 'quantizers'?"),
    ({"parameters": {"decay": "dens"}}, "parameters: decay has no 'dens'; did you mean 'dense'?"),
]


@pytest.mark.parametrize(("data", "message"), WRONG)
def test_an_unknown_key_is_told_its_nearest(data, message):
    import tomli_w

    with pytest.raises(ValueError, match=re.escape(message)):
        Recipe.from_toml(tomli_w.dumps({"name": "mine", **data}))


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("name = ", ValueError, "recipe: this is no TOML: "),
        ("batch_norm = 1", ValueError, "recipe: the key 'name' is missing"),
        ("name = 'a'\ndefault = 4", TypeError, "recipe: default must be a table, got int"),
        ("name = 'a'\nbatch_norm = 1.5", TypeError, "recipe: batch_norm must be a number of batches, an int, got 1.5"),
        ("name = 'a'\nbatch_norm = -1", ValueError, "recipe: batch_norm must be from 0 on, and finite, got -1"),
        ("name = 'a'\nphases = 3", TypeError, "recipe: phases must be an array of tables, got int"),
        ("name = 'a'\nphases = [3]", TypeError, "recipe: phases must be a table, got int"),
        ("name = 3", TypeError, "recipe: name must be a str, got 3"),
        ("name = 'a'\n[freezing]\nfirst = 2", ValueError, "recipe: freezing: first must be from 0 to 1, got 2"),
        (
            "name = 'a'\n[freezing]\ndelay = 1.0",
            ValueError,
            "freezing: delay must be below 1.* the schedule is longer than the run",
        ),
        ("name = 'a'\n[tempering]\nrate = inf", ValueError, "recipe: tempering: rate must be from 0 on, and finite, got inf"),
        ("name = 'a'\n[dampening]\nreduction = 'men'", ValueError, "dampening: reduction has no 'men'; did you mean 'mean'"),
        (
            "name = 'a'\n[parameters]\nquantizer_lr = -1",
            ValueError,
            "parameters: quantizer_lr must be from 0 on, and finite, got -1",
        ),
        ("name = 'a'\n[[phases]]\nlength = 0", ValueError, "recipe: phases: length must be from 1 on, and finite, got 0"),
        ("name = 'a'\n[[phases]]\nlength = 1.5", ValueError, "recipe: phases: length must be above 0 to 1, got 1.5"),
        ("name = 'a'\n[[phases]]\nlength = 0.5", ValueError, "the last one must have the length None: it goes on to the end"),
        ("name = 'a'\nphases = [{}, {}]", ValueError, "length may be None in the last phase alone"),
        (
            "name = 'a'\nphases = [{length = 0.6}, {length = 0.4}, {}]",
            ValueError,
            "the schedule is longer than the run: .* up to 1",
        ),
        ("name = 'a'\n[[phases]]\nweight_bits = 9", ValueError, "recipe: phases: weight_bits: bits must be from 1 to 8"),
        (
            "name = 'a'\n[[phases]]\nweight_bits = 'four'",
            TypeError,
            "phases: weight_bits must be an int from 1 to 8, None or 'own'",
        ),
        ("name = 'a'\nphases = [{length = 3, weight_bits = 4}, {}]\n[default]\nweight = 'direct'", ValueError, "codes ('direct')"),
        ("name = 'a'\nfirst = {weight_bits = 99}", ValueError, "recipe: first: weight_bits: bits must be from 1 to 8"),
        (
            "name = 'a'\nlast = {weight_bit = 4}",
            ValueError,
            "recipe: last has no setting 'weight_bit'; did you mean 'weight_bits'?",
        ),
    ],
)
def test_wrong_toml(text, error, message):
    expected = ".*".join(re.escape(part) for part in message.split(".*"))
    with pytest.raises(error, match=expected):
        Recipe.from_toml(text)


def test_a_phase_that_the_run_has_no_room_for():
    recipe = Recipe("mine", phases=(Phase(30), Phase(0.5), Phase()))
    assert recipe.phase_ends(100) == [30, 80, 100] and Recipe("plain").phase_ends(7) == [7]
    with pytest.raises(
        ValueError,
        match=r"recipe 'mine': the schedule is longer than the run: its phases before the last take 60 of 60 .* at least 61 steps",
    ):
        recipe.phase_ends(60)


@pytest.mark.parametrize(
    ("recipe", "steps", "phase", "least"),
    [
        (RECIPES["sat"](), 1, 1, 2),
        (RECIPES["qil"](2, 2), 4, 3, 5),
        (Recipe("mine", phases=(Phase(1), Phase(0.1), Phase())), 4, 2, 5),
        (Recipe("mine", phases=(Phase(1e-3), Phase())), 500, 1, 501),
    ],
)
def test_a_phase_without_a_step(recipe, steps, phase, least):
    message = (
        f"recipe {recipe.name!r}: the schedule is longer than the run: its phase {phase} has none of {steps} steps; "
        f"it needs at least {least} steps"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        recipe.phase_ends(steps)
    for enough in range(least, 3 * least):
        ends = recipe.phase_ends(enough)
        assert all(a < b for a, b in zip([0, *ends], ends, strict=False)) and ends[-1] == enough


def test_settings_are_added_and_a_new_quantizer_starts_afresh():
    base = LayerRecipe(weight_options={"init": "mse", "eps": 1e-6}, per_channel=True, signed_activations=True)
    assert base.changed({"weight_options": {"eps": 1e-5}}).weight_options == {"init": "mse", "eps": 1e-5}
    other = base.changed({"weight": "sat", "activation": "dsq"})
    assert (other.weight_options, other.per_channel, other.signed_activations) == ({}, None, None)
    assert base.changed({}) == base


def test_every_quantizer_by_name():
    for name in WEIGHTS:
        assert LayerRecipe(3, None, weight=name).weight_per_channel == bool(WEIGHTS[name].per_channel)
    for name in ACTIVATIONS:
        assert LayerRecipe(None, 3, activation=name).activation == name
