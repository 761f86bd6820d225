"""Typed reading of config.json: every wrong or missing value is a PlanError that names the field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lmtower.errors import PlanError

LIMIT = 2**40
"""No dimension of a real model is larger; a larger number is a mistake that would only make nonsense of the sums."""


@dataclass(frozen=True, slots=True)
class Fields:
    """A JSON object and where it sits (``text_config.``), so that errors can say which field is wrong."""

    values: Mapping[str, Any]
    where: str = ""

    def name(self, key: str) -> str:
        """The field as a person finds it in the file."""
        return f"{self.where}{key}"

    def has(self, *keys: str) -> bool:
        """True when one of the keys is present and not null."""
        return any(self.values.get(key) is not None for key in keys)

    def whole(self, *keys: str, default: int | None = None, least: int = 1, most: int = LIMIT) -> int:
        """The first of ``keys`` that is set, as a whole number in [least, most]. Without a default it must be there."""
        for key in keys:
            value = self.values.get(key)
            if value is not None:
                return self._checked(key, value, least, most)
        if default is None:
            raise PlanError(
                f"{self.name(keys[0])}: missing, and the model cannot be planned without it", field=self.name(keys[0])
            )
        return default

    def _checked(self, key: str, value: Any, least: int, most: int) -> int:
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or value != value
            or value in (float("inf"), float("-inf"))
        ):
            raise PlanError(f"{self.name(key)}: {value!r} is not a whole number", field=self.name(key))
        if value != int(value):
            raise PlanError(f"{self.name(key)}: {value!r} is not a whole number", field=self.name(key))
        if not least <= value <= most:
            raise PlanError(
                f"{self.name(key)}: {value!r} is out of range (expected {least} to {most})", field=self.name(key)
            )
        return int(value)

    def number(self, key: str, default: float) -> float:
        """A finite number > 0, or the default when the key is missing or null."""
        value = self.values.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e18:
            raise PlanError(f"{self.name(key)}: {value!r} is not a number above 0", field=self.name(key))
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        """A JSON boolean."""
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise PlanError(f"{self.name(key)}: {value!r} is not true or false", field=self.name(key))
        return value

    def text(self, *keys: str, default: str = "") -> str:
        """The first of ``keys`` that is set, as a string."""
        for key in keys:
            value = self.values.get(key)
            if value is not None:
                if not isinstance(value, str):
                    raise PlanError(f"{self.name(key)}: {value!r} is not text", field=self.name(key))
                return value
        return default

    def words(self, key: str) -> tuple[str, ...] | None:
        """A list of strings, or None when missing."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise PlanError(f"{self.name(key)}: not a list of names", field=self.name(key))
        return tuple(value)

    def numbers(self, key: str) -> tuple[int, ...]:
        """A list of whole numbers >= 0; empty when missing."""
        value = self.values.get(key)
        if value is None:
            return ()
        if not isinstance(value, list | tuple):
            raise PlanError(f"{self.name(key)}: not a list of numbers", field=self.name(key))
        return tuple(self._checked(f"{key}[{index}]", item, 0, LIMIT) for index, item in enumerate(value))

    def section(self, *keys: str) -> Fields | None:
        """A nested object, or None when missing."""
        for key in keys:
            value = self.values.get(key)
            if value is not None:
                if not isinstance(value, Mapping):
                    raise PlanError(
                        f"{self.name(key)}: {type(value).__name__} where an object is expected", field=self.name(key)
                    )
                return Fields(value, f"{self.where}{key}.")
        return None
