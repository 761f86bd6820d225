"""Reads and finds recipes. A file is parsed when its recipe is wanted, once per process; files never change."""

from __future__ import annotations

import fnmatch
import re
from functools import cache
from importlib.resources import files
from typing import Any

import msgspec
from ruamel.yaml import YAML

_MATCH = re.compile(r"^match: \[(.*)\]$", re.MULTILINE)
_WORD = re.compile(r'[^",\s]+')


class FimTemplate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Fill-in-the-middle markup of a model family, as its model card gives it."""

    prefix: str
    suffix: str
    middle: str
    order: str = "psm"
    """``psm``: prefix, suffix, middle. ``spm``: suffix first."""
    stop: tuple[str, ...] = ()
    repository: str | None = None
    """Token before the repository's name in the repo-level form; None: the family has no such form."""
    repository_end: str = "\n"
    """What follows the repository's name."""
    file: str | None = None
    """Token before each file's path in the repo-level form."""
    path_inside: bool = False
    """The path of the file with the hole follows the prefix token instead of preceding it."""
    files_inside: bool = False
    """All files follow the prefix token: the family was trained with the hole cut into the joined text."""


class ImageTokens(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Tokens of one image: its cells of ``cell`` pixels, scaled to between ``least`` and ``most``, and ``extra``."""

    cell: int
    extra: int = 0
    least: int = 1
    most: int = 16384


class EngineRules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Flags of one runtime in a range of versions. ``versions`` is a specifier such as ``>=0.27,<0.33``."""

    runtime: str
    versions: str = ""
    image: str | None = None
    flags: dict[str, Any] = {}
    env: dict[str, str] = {}
    note: str = ""


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything known about one model family."""

    name: str
    match: tuple[str, ...] = ()
    """Glob patterns, compared without case against the model's name and its architectures."""
    source: str = ""
    thinking: dict[str, dict[str, Any]] = {}
    """Persona's thinking mode -> fields merged into the request body."""
    sampling: dict[str, Any] = {}
    """Sampling that the model's makers advise; used for new tower files, never sent on its own."""
    fim: FimTemplate | None = None
    strict_tools: str = "strict"
    """``strict``: mark each tool strict; ``schema``: force by response schema; ``none``: only check afterwards."""
    volatile: tuple[str, ...] = ()
    """Patterns of prompt lines that change between requests and are dropped (prefix caching)."""
    image_tokens: ImageTokens | None = None
    version: str | None = None
    """Runtime version that the recipe was made for."""
    engine: tuple[EngineRules, ...] = ()


@cache
def all_recipes() -> tuple[Recipe, ...]:
    """Every bundled recipe; specific ones before ``generic``. Slow: ``get`` and ``find`` read what they need."""
    return tuple(map(get, _patterns()))


@cache
def get(name: str) -> Recipe:
    """The recipe of that name. Raises KeyError."""
    if name not in _patterns():
        raise KeyError(name)
    text = (files("lmtower.recipes") / f"{name}.yaml").read_text("utf-8")
    return msgspec.convert(YAML(typ="safe").load(text), Recipe)


def find(model: str, architectures: tuple[str, ...] = ()) -> Recipe:
    """The first recipe with a pattern that matches the model's name or one of its architectures, else ``generic``."""
    names = [model.lower(), *(architecture.lower() for architecture in architectures)]
    for recipe, patterns in _patterns().items():
        if any(fnmatch.fnmatchcase(name, pattern.lower()) for name in names for pattern in patterns):
            return get(recipe)
    return get("generic")


@cache
def _patterns() -> dict[str, tuple[str, ...]]:
    """Name -> patterns of every recipe, ``generic`` last.

    Taken from the files' text, because parsing them all as YAML is a tenth of a tower's start. A test holds that it
    finds what the YAML says.
    """
    found = {}
    for file in files("lmtower.recipes").iterdir():
        if file.name.endswith(".yaml"):
            line = _MATCH.search(file.read_text("utf-8"))
            found[file.name.removesuffix(".yaml")] = tuple(_WORD.findall(line[1])) if line else ()
    return dict(sorted(found.items(), key=lambda entry: (entry[0] == "generic", entry[0])))
