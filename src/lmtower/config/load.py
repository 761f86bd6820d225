"""``load``: the tower file, read, resolved and checked, as one immutable value; or every problem in it at once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError

from lmtower.config.checks import check
from lmtower.config.names import warnings
from lmtower.config.references import resolve
from lmtower.config.source import Path, Place, Source, read
from lmtower.config.translate import translate
from lmtower.config.types import Tower
from lmtower.config.watched import Stamp, stamp
from lmtower.errors import ConfigError, Problem


@dataclass(frozen=True, slots=True)
class Loaded:
    """A tower file that can be used. ``watched_files`` are all files whose change calls for a reload, as they were
    before they were read."""

    tower: Tower
    path: FilePath
    warnings: tuple[Problem, ...]
    watched_files: Mapping[FilePath, Stamp]
    _places: Mapping[Path, Place]

    def problem(self, path: Path, message: str) -> Problem:
        """What somebody else found wrong at a key such as ``("engines", "eyes")``, with its line and column."""
        return Source(_shown(self.path), places=dict(self._places)).problem(path, message)


def load(
    path: FilePath, overrides: Mapping[str, Any] | None = None, *, environ: Mapping[str, str] | None = None
) -> Loaded:
    """Read the tower file. ``overrides`` such as ``{"engines.eyes.context": "200k"}`` win over it.

    Raises ConfigError with every problem, in the order of the file.
    """
    path = FilePath(path)
    watched = {path: stamp(path)}
    source = read(_text(path), _shown(path))
    if source.problems and not source.data:
        raise ConfigError(source.problems, watched)
    for key, value in (overrides or {}).items():
        _override(source, key, value)
    watched |= resolve(source, path.parent, os.environ if environ is None else environ)
    tower = _tower(source)
    problems = [*source.problems, *check(source, _recipe_names)]
    if problems or tower is None:
        raise ConfigError(_sorted(problems), watched)
    return Loaded(tower, path, tuple(_sorted(warnings(source))), watched, source.places)


def _text(path: FilePath) -> str:
    try:
        return path.read_text("utf-8-sig")
    except FileNotFoundError as exc:
        raise ConfigError(
            [Problem("", "no such file. Write one with lmtower init, or name yours with -c FILE.", str(path))]
        ) from exc
    except UnicodeDecodeError as exc:
        raise ConfigError([Problem("", f"not UTF-8 text (byte {exc.start}).", str(path))]) from exc
    except OSError as exc:
        raise ConfigError([Problem("", f"cannot be read: {(exc.strerror or str(exc)).lower()}.", str(path))]) from exc


def _shown(path: FilePath) -> str:
    """The file as a person in this folder would write it."""
    absolute = path.absolute()
    here = FilePath.cwd()
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(absolute)


def _override(source: Source, key: str, value: Any) -> None:
    """Set one dotted key. Names may hold dots themselves, so the longest known name is taken at each step."""
    parts, holder = key.split("."), source.data
    path: Path = ()
    while parts:
        size = next((n for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in holder), 1)
        name, parts = ".".join(parts[:size]), parts[size:]
        path = (*path, name)
        if not parts:
            holder[name] = value
            source.places[path] = (0, 0)
        elif isinstance(holder.setdefault(name, {}), dict):
            holder = holder[name]
        else:
            source.problems.append(Problem(key, f"{'.'.join(map(str, path))} holds no keys to set.", source.file))
            return


def _tower(source: Source) -> Tower | None:
    try:
        return Tower.model_validate(source.data)
    except ValidationError as exc:
        seen = {problem.path for problem in source.problems}
        source.problems += [problem for problem in translate(exc, source) if problem.path not in seen]
        return None


def _sorted(problems: list[Problem]) -> list[Problem]:
    return sorted(dict.fromkeys(problems), key=lambda problem: (problem.line, problem.column))


def _recipe_names() -> dict[str, bool]:
    # Only asked for when the file names a recipe: reading all of them costs more than the rest of the load.
    from lmtower import recipes

    return {recipe.name: recipe.fim is not None for recipe in recipes.all_recipes()}
