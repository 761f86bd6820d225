"""Numbers as people write them: ``200k`` tokens, ``12 GiB``, ``30s``. Parsed to counts, bytes and seconds."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

_INFINITY = float("inf")
_NUMBER = re.compile(r"^\s*(\d+(?:[._]\d+)*)\s*([A-Za-z]*)\s*$")
_COUNT = {"": 1, "k": 1000, "m": 1_000_000, "ki": 1024, "mi": 1024**2}
_SIZE = {"": 1, "b": 1} | {
    unit: factor**power
    for power, letter in enumerate("kmgt", start=1)
    for unit, factor in ((letter + "b", 1000), (letter + "ib", 1024), (letter + "i", 1024), (letter, 1024))
}
_DURATION = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def _parse(value: Any, units: dict[str, Any], what: str, example: str) -> Any:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"not {what}. Write it as {example}")
    if not isinstance(value, str):
        if value != value or value in (_INFINITY, -_INFINITY):
            raise ValueError(f"{value!r} is not {what}. Write it as {example}")
        return value
    match = _NUMBER.match(value)
    if match is None or match[2].lower() not in units:
        raise ValueError(f"{value!r} is not {what}. Write it as {example}")
    number = match[1].replace("_", "")
    if number.count(".") > 1:
        raise ValueError(f"{value!r} is not {what}. Write it as {example}")
    return float(number) * units[match[2].lower()]


def _whole(value: Any) -> Any:
    if isinstance(value, float) and value != int(value):
        raise ValueError(f"{value!r} is not a whole number")
    return int(value)


def parse_count(value: Any) -> int:
    """``200k`` -> 200000, ``128Ki`` -> 131072. Raises ValueError."""
    result: int = _whole(_parse(value, _COUNT, "a count", "4096, 32k or 128Ki"))
    return result


def parse_size(value: Any) -> int:
    """``12 GiB`` -> 12884901888, ``1.5GB`` -> 1500000000; ``12G`` means GiB. Bytes. Raises ValueError."""
    return int(_parse(value, _SIZE, "a size", "12 GiB or 512 MiB"))


def parse_duration(value: Any) -> float:
    """``30s`` -> 30.0, ``20min`` -> 1200.0, ``90d`` -> 7776000.0. Seconds. Raises ValueError."""
    return float(_parse(value, _DURATION, "a duration", "30s, 20min, 12h or 90d"))


def _schema(kind: str, example: str) -> WithJsonSchema:
    """What editors are told: a number, or text such as the example (the types themselves only know numbers)."""
    return WithJsonSchema({"anyOf": [{"type": kind, "minimum": 0}, {"type": "string"}], "examples": [example]})


Count = Annotated[int, BeforeValidator(parse_count), Field(ge=0), _schema("integer", "32k")]
Size = Annotated[int, BeforeValidator(parse_size), Field(ge=0), _schema("integer", "12 GiB")]
Duration = Annotated[float, BeforeValidator(parse_duration), Field(ge=0), _schema("number", "30s")]
