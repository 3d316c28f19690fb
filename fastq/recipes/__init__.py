"""Recipes: a paper as data, and :func:`prepare`, which applies one to a model."""

from .prepare import Layer, Preparation, prepare
from .recipe import Recipe, lsq

__all__ = ["Layer", "Preparation", "Recipe", "lsq", "prepare"]
