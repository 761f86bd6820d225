"""Keys over the admin API: what ``POST /admin/keys`` and ``PATCH /admin/keys/ID`` may say. Pure.

A PATCH is a merge patch (RFC 7396): what it names is set, ``null`` takes it away, the rest stays. A key whose last own
limit is taken away has those of the tower again, as a key that never had any.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import msgspec
from pydantic import ValidationError

from lmtower.config.types import Limits
from lmtower.ledger import Client
from lmtower.wire.faults import Fault

_FIELDS = frozenset(("name", "personas", "limits", "expires_at"))


def new_key(body: dict[str, Any], personas: Collection[str]) -> dict[str, Any]:
    """Arguments of ``Ledger.create_key``. Raises Fault(400)."""
    if body.get("name") is None:
        raise Fault(400, "missing_field", "The field 'name' is missing.", param="name")
    return _fields(body, Client(id="", name=""), personas)


def edit(body: dict[str, Any], personas: Collection[str]) -> Callable[[Client], Client]:
    """What ``Ledger.change_key`` does to the key. Raises Fault(400), now or when it is applied."""
    _fields(body, Client(id="", name=""), personas)  # what is wrong by itself is said before the database is asked
    return lambda client: msgspec.structs.replace(client, **_fields(body, client, personas))


def _fields(body: dict[str, Any], client: Client, personas: Collection[str]) -> dict[str, Any]:
    unknown = sorted(set(body) - _FIELDS)
    if unknown:
        known = ", ".join(sorted(_FIELDS))
        raise Fault(400, "unknown_field", f"Unknown field {unknown[0]!r}. Known: {known}.", param=unknown[0])
    found: dict[str, Any] = {}
    if "name" in body:
        found["name"] = _checked("name", body["name"], isinstance(body["name"], str) and body["name"], "a name")
    if "personas" in body:
        found["personas"] = _personas(body["personas"], personas)
    if "limits" in body:
        found["limits"] = merged(client.limits, body["limits"])
    if "expires_at" in body:
        given = body["expires_at"]
        number = given is None or (isinstance(given, int | float) and not isinstance(given, bool))
        found["expires_at"] = _checked("expires_at", given, number, "seconds since the epoch, or null")
    return found


def _checked(field: str, value: Any, good: object, wanted: str) -> Any:
    if not good:
        raise Fault(400, "invalid_field", f"The field {field!r} must be {wanted}.", param=field)
    return value


def _personas(given: Any, known: Collection[str]) -> frozenset[str] | None:
    if given is None:
        return None
    strings = isinstance(given, list) and all(isinstance(name, str) for name in given)
    names: list[str] = _checked("personas", given, strings, "a list of persona names, or null for all")
    for name in names:
        if name not in known:
            text = f"The tower file has no persona {name[:100]!r}. Known: {', '.join(sorted(known))}."
            raise Fault(400, "unknown_persona", text, param="personas")
    return frozenset(names)


def merged(before: Limits | None, given: Any) -> Limits | None:
    """Limits after a merge patch; None when nothing is left. Raises Fault(400)."""
    if given is None:
        return None
    if not isinstance(given, dict):
        raise Fault(400, "invalid_limits", "The field 'limits' must be an object, or null.", param="limits")
    had = {} if before is None else before.model_dump(exclude_none=True)
    wanted = {name: value for name, value in {**had, **given}.items() if value is not None}
    try:
        return Limits.model_validate(wanted) if wanted else None
    except ValidationError as exc:
        first = exc.errors()[0]
        text = f"limits.{first['loc'][0]}: {first['msg'].removeprefix('Value error, ')}"
        raise Fault(400, "invalid_limits", text, param="limits") from None
