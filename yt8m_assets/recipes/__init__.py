"""Recipes: what is trained on what. `load_recipe` finds one by name or in a file."""

from yt8m_assets.recipes.loading import KNOWN_RECIPES, load_recipe

__all__ = ["KNOWN_RECIPES", "load_recipe"]
