"""One request as a handler sees it, and the JSON reply that it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from starlette.responses import Response

from lmtower.stores.access import Caller, PageRequest
from lmtower.stores.faults import ApiError, invalid
from lmtower.stores.requests import page_request
from lmtower.stores.service import Service

Parsed = TypeVar("Parsed")
POLL_HEADER = "openai-poll-after-ms"


@dataclass(frozen=True, slots=True)
class Call:
    service: Service
    caller: Caller
    path: Mapping[str, Any]
    query: Mapping[str, str]
    body: bytes

    def parse(self, kind: type[Parsed]) -> Parsed:
        """The body as ``kind``; unknown fields are let through, as OpenAI's own new ones will come. Raises ApiError."""
        try:
            return msgspec.json.decode(self.body or b"{}", type=kind, strict=True)
        except msgspec.ValidationError as exc:
            what, _, where = str(exc).partition(" - at ")
            # msgspec says "`key` in `$.attributes`" of a key that will not do
            where, _, path = where.rpartition(" in ")
            param = path.strip("`").removeprefix("$").removeprefix(".") or None
            name = f"a key of {param}" if where else param
            raise invalid(f"{name}: {what}" if name else what, param) from exc
        except msgspec.DecodeError as exc:
            raise ApiError(400, f"The body is not JSON: {exc}", code="invalid_json") from exc

    @property
    def page(self) -> PageRequest:
        return page_request(self.query)


Handler = Callable[[Call], Response]


def reply(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), status, dict(headers or {}), "application/json")


def polled(value: Mapping[str, Any]) -> Response:
    """Something that a client may be waiting for: it is told when to ask again."""
    return reply(value, headers={POLL_HEADER: "250"} if value["status"] == "in_progress" else None)
