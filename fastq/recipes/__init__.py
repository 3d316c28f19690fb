"""Recipes: a paper as data, :func:`prepare`, which applies one to a model, and :func:`attach`, which follows it while training."""

from .batch_norm import reestimate_batch_norm
from .papers import (
    RECIPES,
    direct,
    dsq,
    ewgs,
    lsq,
    lsq_plus,
    noise_tempering,
    oscillation_dampen,
    oscillation_freeze,
    pact,
    qil,
    sat,
)
from .parameters import param_groups
from .prepare import Layer, Preparation, prepare
from .quantizers import ACTIVATIONS, WEIGHTS
from .recipe import Dampening, Freezing, LayerRecipe, Parameters, Phase, Recipe, Tempering
from .training import Training, attach

__all__ = [
    "ACTIVATIONS",
    "RECIPES",
    "WEIGHTS",
    "Dampening",
    "Freezing",
    "Layer",
    "LayerRecipe",
    "Parameters",
    "Phase",
    "Preparation",
    "Recipe",
    "Tempering",
    "Training",
    "attach",
    "direct",
    "dsq",
    "ewgs",
    "lsq",
    "lsq_plus",
    "noise_tempering",
    "oscillation_dampen",
    "oscillation_freeze",
    "pact",
    "param_groups",
    "prepare",
    "qil",
    "reestimate_batch_norm",
    "sat",
]
