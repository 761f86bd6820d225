"""Recipes: every file loads, and models of the presets find the right one."""

from __future__ import annotations

import re

import pytest

from lmtower import recipes
from lmtower.recipes import load


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-NVFP4", "nemotron"),
        ("Qwen/Qwen3-VL-8B-Instruct-FP8", "qwen3-vl"),
        ("Qwen/Qwen2.5-Coder-1.5B", "qwen2.5-coder"),
        ("nomic-ai/nomic-embed-text-v1.5", "nomic"),
        ("openai/gpt-oss-120b", "gpt-oss"),
        ("somebody/unheard-of", "generic"),
    ],
)
def test_models_find_their_family(model: str, name: str) -> None:
    """A model's name leads to the recipe of its family, an unknown one to the generic recipe."""
    assert recipes.find(model).name.startswith(name)


@pytest.mark.parametrize("name", load._patterns())
def test_patterns_read_from_the_text_are_those_of_the_yaml(name: str) -> None:
    """A recipe's file has its name, and its ``match`` stands in one line."""
    assert load.get(name).name == name
    assert load.get(name).match == load._patterns()[name]


@pytest.mark.parametrize("recipe", recipes.all_recipes(), ids=lambda recipe: recipe.name)
def test_every_recipe_is_complete(recipe: recipes.Recipe) -> None:
    """Recipes say where they come from, their patterns compile, FIM templates have three different tokens."""
    assert recipe.source
    assert recipes.get(recipe.name) is recipe
    for pattern in recipe.volatile:
        re.compile(pattern)
    if recipe.fim is not None:
        assert len({recipe.fim.prefix, recipe.fim.suffix, recipe.fim.middle}) == 3


def test_unknown_recipe_is_a_key_error() -> None:
    """Asking for a recipe that is not there is a mistake of the caller."""
    with pytest.raises(KeyError):
        recipes.get("nothing")
