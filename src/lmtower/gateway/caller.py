"""Who asks, where and how: everything that a request's headers tell by themselves.

A client on a kept connection sends the same headers again and again, so what follows from them is found out once and
kept with the head (``Head.known``). It holds for one snapshot and one state of the keys: after a reload or a change
of any key it is found out anew.
"""

from __future__ import annotations

from collections.abc import Sequence

from lmtower.config.types import Lane
from lmtower.gateway import identity, routes
from lmtower.gateway.coding import coding_of
from lmtower.gateway.engine import Engine
from lmtower.gateway.exchange import Header, Request
from lmtower.gateway.routes import Route
from lmtower.gateway.snapshot import Snapshot
from lmtower.ledger import Client
from lmtower.personas import CompiledPersona
from lmtower.wire.faults import Dialect

_MOST_WAYS = 64


class Way:
    """Where a model's name leads for one caller."""

    __slots__ = ("asked", "engine", "fim", "free", "persona")

    def __init__(self, asked: str, persona: CompiledPersona, engine: Engine, *, fim: bool, free: bool) -> None:
        self.asked = asked
        self.persona = persona
        self.engine = engine
        self.fim = fim
        """Only the newest request of an editor counts."""
        self.free = free
        """Nothing is limited, nothing costs, nothing may be a repeat: the usual request."""


class Caller:
    """See above. ``keys`` is what ``Ledger.keys`` was."""

    __slots__ = (
        "asks_model",
        "client",
        "coding",
        "cors",
        "dialect",
        "end_user",
        "keys",
        "lane",
        "patience",
        "repeats",
        "request_id",
        "route",
        "session",
        "snapshot",
        "tail",
        "traced",
        "ways",
    )

    def __init__(self, request: Request, snapshot: Snapshot, keys: object) -> None:
        headers = request.headers
        self.snapshot = snapshot
        self.keys = keys
        route, self.tail = routes.find(request.path)
        self.route: Route | None = route
        self.asks_model = route is not None and route.kind == "model" and request.method == "POST"
        self.dialect: Dialect = route.dialect if route else routes.dialect_of(request.path)
        self.request_id = identity.request_id(headers)
        """The client's own, if it gave one."""
        self.client: Client | None = None
        """Set once the key was looked up."""
        self.lane: Lane | None = None
        """Another lane than the persona's, set with the client."""
        self.coding = coding_of(headers)
        """How the body is compressed."""
        self.end_user = identity.end_user(headers)
        self.session = identity.session(headers)
        self.patience = identity.patience(headers)
        self.repeats = b"x-stainless-retry-count" in headers or b"idempotency-key" in headers
        """The client says whether a request is a repeat of an earlier one."""
        self.traced = b"traceparent" in headers
        self.cors = cors(request, snapshot.tower.gateway.cors)
        self.ways: dict[bytes, Way] = {}
        """By the JSON text of ``model``."""

    def remember(self, model: bytes, way: Way) -> None:
        """Keep a way; whoever tries many names gets no more memory for it."""
        if len(self.ways) >= _MOST_WAYS:
            self.ways.clear()
        self.ways[model] = way


def cors(request: Request, allowed: Sequence[str]) -> list[Header]:
    """The headers that let a web page of an allowed origin read the answer."""
    origin = request.headers.get(b"origin")
    if not allowed or origin is None or ("*" not in allowed and origin.decode("latin-1") not in allowed):
        return []
    return [
        (b"access-control-allow-origin", origin),
        (b"access-control-expose-headers", b"*"),
        (b"vary", b"origin"),
    ]
