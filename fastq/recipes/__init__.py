"""Recipes: a paper as data, and :func:`prepare`, which applies one to a model."""

from .prepare import Layer, Preparation, prepare
from .recipe import LayerRecipe, Recipe, lsq

__all__ = ["Layer", "LayerRecipe", "Preparation", "Recipe", "lsq", "prepare"]
