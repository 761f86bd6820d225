"""Who asks, what they may see, and how lists are handed out page by page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Engine, Row, Select, Table

from lmtower.stores.faults import ApiError, invalid

OPERATOR = "lmtower:operator"
Record = Row[Any]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: a client by its name, which outlives its keys. The operator (CLI and console) sees everything.

    ``key`` is the id of the key that it asks with: a store may be shared with a single key, too.
    """

    client: str
    key: str = ""

    @property
    def operator(self) -> bool:
        return self.client == OPERATOR


def client_of_gateway(name: str, key: str) -> Caller:
    """Whom the gateway speaks for. Raises ApiError for a key that somebody called like the operator."""
    if name == OPERATOR:
        raise ApiError(403, f"A client cannot be called {OPERATOR!r}.", code="invalid_name")
    return Caller(name, key)


@dataclass(frozen=True, slots=True)
class PageRequest:
    """A cursor page as clients ask for it: ``limit`` things after (or before) the one named."""

    limit: int = 20
    descending: bool = True
    after: str | None = None
    before: str | None = None


@dataclass(slots=True)
class Page:
    rows: list[Record]
    has_more: bool


def read_page(
    engine: Engine, query: Select[Any], table: Table, identity: ColumnElement[str], page: PageRequest
) -> Page:
    """The rows of ``query`` that the page asks for, in the order of ``table.seq``. Raises ApiError."""
    with engine.connect() as connection:
        forward = page.before is None
        for cursor, is_after in ((page.after, True), (page.before, False)):
            if cursor is not None:
                found = query.where(identity == cursor).with_only_columns(table.c.seq).limit(1)
                seq = connection.scalar(found)
                if seq is None:
                    raise invalid(f"No object with id {cursor!r} in this list.", "after" if is_after else "before")
                older = is_after is page.descending
                query = query.where(table.c.seq < seq if older else table.c.seq > seq)
        # before a cursor, the nearest ones are wanted: read backwards, then turn round
        descending = page.descending is forward
        query = query.order_by(table.c.seq.desc() if descending else table.c.seq.asc()).limit(page.limit + 1)
        rows = list(connection.execute(query).all())
    more = len(rows) > page.limit
    rows = rows[: page.limit]
    return Page(rows if forward else rows[::-1], more)


def may_read(caller: Caller, store: Record) -> bool:
    if caller.operator or store.client == caller.client:
        return True
    return any(name in ("*", caller.client, caller.key) for name in store.shared_with if name)


def expires_at(store: Record) -> int | None:
    return None if store.expires_days is None else int(store.last_active_at) + 86400 * int(store.expires_days)
