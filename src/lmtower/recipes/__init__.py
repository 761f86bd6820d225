"""Recipes: what lmtower knows about each model family, as data. One YAML file a family beside this module.

A recipe has two halves. The *request* half (thinking switch, fill-in-the-middle template, strict tools,
volatile lines, image tokens) is read by the data plane; the *engine* half (image, flags, parsers and
environment by runtime version) by the control plane. The first recipe whose pattern matches the model's
name, its recipe name or its architecture wins; ``generic`` matches everything.
"""

from lmtower.recipes.load import Recipe, all_recipes, find, get

__all__ = ["Recipe", "all_recipes", "find", "get"]
