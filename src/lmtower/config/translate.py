"""pydantic's errors, said as STYLE asks: what is wrong, where, and what to write instead."""

from __future__ import annotations

from difflib import get_close_matches
from functools import cache
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from lmtower.config.source import Path, Source
from lmtower.config.types import Section, Tower
from lmtower.errors import Problem


def translate(error: ValidationError, source: Source) -> list[Problem]:
    """One problem per path; a union's several complaints about one value become one."""
    found: dict[Path, Problem] = {}
    for detail in error.errors(include_url=False, include_context=True):
        path = _written(detail["loc"], source.data, detail["type"])
        message = _message(detail, path)
        if path not in found or detail["type"] == "value_error":
            found[path] = source.problem(path, message)
    return list(found.values())


def _written(loc: tuple[str | int, ...], data: Any, kind: str) -> Path:
    """``loc`` without the names of validators and union branches, which pydantic puts between the keys."""
    path: list[str | int] = []
    for part in loc:
        if part in data if isinstance(data, dict) else isinstance(data, list) and part in range(len(data)):
            data = data[part]
        elif not (kind == "missing" and part == loc[-1]):
            continue
        path.append(part)
    return tuple(path)


def _message(detail: ErrorDetails, path: Path) -> str:
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown_key(path)
    if kind == "missing":
        return f"missing. {_advice_for_missing(path)}"
    if kind == "value_error":
        return f"{context['error']}." if not str(context["error"]).endswith(".") else str(context["error"])
    if kind == "literal_error":
        return _not_one_of(value, _choices(path) or [str(context["expected"])])
    if kind == "string_pattern_mismatch":
        return f"{value!r} is not a name. Use letters, digits, '.', '_', ':' and '-', beginning with a letter or digit."
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        return f"expected keys below it, got {_kind_of(value)}."
    if kind == "tuple_type":
        return f"expected a list, got {_kind_of(value)}. Write [{'...' if value is None else value}]."
    if kind == "string_type" and path[-1] in ("listen", "admin") and isinstance(value, int):
        return f"{value} is not HOST:PORT. Write it as 0.0.0.0:{value}"
    if kind == "string_type":
        return f"expected text, got {_kind_of(value)}." + ("" if value is None else f' Write "{value}" in quotes.')
    if kind.startswith("bool"):
        return f"{value!r} is neither on nor off."
    if kind in _BOUNDS:
        return f"{value!r} is out of range: {_BOUNDS[kind]} {next(iter(context.values()))}."
    return f"{detail['msg'][0].lower()}{detail['msg'][1:]}."


_BOUNDS = {
    "greater_than": "it must be more than",
    "greater_than_equal": "it must be at least",
    "less_than": "it must be less than",
    "less_than_equal": "it must be at most",
}


def _kind_of(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    return "keys" if isinstance(value, dict) else "a list" if isinstance(value, list) else repr(value)


def _advice_for_missing(path: Path) -> str:
    if path == ("engines",):
        return "Write engines: {NAME: {model: ...}}; lmtower init writes a whole file."
    if path == ("personas",):
        return "Write personas: {NAME: {engine: ...}}."
    return f"Write {path[-1]}: ..."


def _unknown_key(path: Path) -> str:
    key, model = str(path[-1]), section_at(path[:-1])
    known = list(model.model_fields) if model else []
    if near := get_close_matches(key, known, 1):
        return f"unknown key. Did you mean {near[0]!r}?"
    homes = [place for place, section in sections() if key in section.model_fields and section is not model]
    if homes:
        return f"unknown key here; it belongs to {' or '.join(homes)}."
    return f"unknown key. Known here: {', '.join(known)}."


def _not_one_of(value: Any, choices: list[str]) -> str:
    near = get_close_matches(str(value), choices, 1)
    if isinstance(value, bool) and "on" in choices:
        near = ["on" if value else "off"]
    shown = {True: "true", False: "false"}.get(value, repr(value)) if isinstance(value, bool) else repr(value)
    return f"{shown} is not one of {', '.join(choices)}." + (f" Did you mean {near[0]!r}?" if near else "")


def _choices(path: Path) -> list[str]:
    """The words that a key takes, read from its type."""
    model = section_at(path[:-1])
    if model is None or path[-1] not in model.model_fields:
        return []
    return [word for word in _words(model.model_fields[str(path[-1])].annotation) if isinstance(word, str)]


def _words(annotation: Any) -> list[Any]:
    return [word for part in get_args(annotation) for word in ([part] if isinstance(part, str) else _words(part))]


def section_at(path: Path) -> type[Section] | None:
    """The section that holds the keys below ``path``; None where keys are free or there is no section."""
    current: Any = Tower
    for part in path:
        if isinstance(current, type) and issubclass(current, BaseModel):
            field = current.model_fields.get(str(part))
            current = _inner(field.annotation) if field else None
        elif isinstance(current, tuple):
            current = current[0]
        else:
            return None
    return current if isinstance(current, type) and issubclass(current, Section) else None


def _inner(annotation: Any) -> Any:
    """A section, or ``(section,)`` for names that lead to sections, or None."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    arguments = get_args(annotation)
    found = next((section for section in map(_inner, arguments) if isinstance(section, type)), None)
    return (found,) if found and getattr(annotation, "__origin__", None) is dict else found


@cache
def sections() -> tuple[tuple[str, type[Section]], ...]:
    """Every section with the way to it, such as ``engines.NAME.lanes``."""
    found: list[tuple[str, type[Section]]] = [("the top level", Tower)]
    pending: list[tuple[str, type[Section]]] = [("", Tower)]
    for prefix, model in pending:
        for name, field in model.model_fields.items():
            inner = _inner(field.annotation)
            named = isinstance(inner, tuple)
            section = inner[0] if isinstance(inner, tuple) else inner
            if section is not None:
                place = f"{prefix}{name}.NAME" if named else f"{prefix}{name}"
                found.append((place, section))
                pending.append((f"{place}.", section))
    return tuple(found)
