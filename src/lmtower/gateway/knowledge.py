"""The door to the store service: its API forwarded under the gateway's keys, ``file_search`` run for personas.

The service is a process of its own on a private address. It trusts whoever knows the tower's internal secret and
names the client, so the gateway checks the key and says who asks. The other way round, the service embeds through the
gateway with a key of its own, and the same secret lets it say for whom: usage, limits and lane are then that client's.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import msgspec

from lmtower.config.folder import INTERNAL_KEY
from lmtower.config.types import LANES, Lane
from lmtower.gateway.exchange import Exchange, Header
from lmtower.gateway.flow import Flow
from lmtower.gateway.pool import Pool
from lmtower.gateway.upstream import UpstreamLost
from lmtower.ledger import Client
from lmtower.personas import CompiledPersona
from lmtower.wire import citing
from lmtower.wire.citing import CitingReply, Found
from lmtower.wire.faults import Fault
from lmtower.wire.reply import Reply
from lmtower.wire.top import Top, value

_FIELDS = {"chat": "messages", "responses": "input"}
_SENT = (b"content-type", b"accept", b"x-stainless-poll-helper")
_RETURNED = (b"content-type", b"content-disposition", b"openai-poll-after-ms", b"retry-after")


class Behalf(NamedTuple):
    """For whom the store service asks, and in which lane."""

    client: str
    lane: Lane | None


class Knowledge:
    """Talks to the store service at ``listen``; the secret is read when it is first needed."""

    def __init__(self, listen: str, data_dir: Path) -> None:
        self._pool = Pool(f"http://{listen}", None, content_type=None)
        self._secret_file = data_dir / INTERNAL_KEY
        self._secret = b""

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()

    def behalf(self, headers: Mapping[bytes, bytes]) -> Behalf | None:
        """Whose work this request is, when the store service sends it. A client cannot say so: it lacks the secret.

        None for everybody else, and for what the service does for the tower itself.
        """
        proof = headers.get(b"x-lmtower-internal")
        name = headers.get(b"x-lmtower-on-behalf-of")
        if proof is None or name is None or not hmac.compare_digest(proof, self._key()):
            return None
        lane = headers.get(b"x-lmtower-lane", b"").decode("latin-1")
        return Behalf(unquote(name.decode("latin-1")), next((one for one in LANES if one == lane), None))

    async def forward(self, exchange: Exchange, client: Client, path: str, headers: list[Header]) -> None:
        """Pass a files or vector-stores request on and its answer back. Raises Fault."""
        request = exchange.request
        target = quote(path) + (f"?{request.query.decode('latin-1')}" if request.query else "")
        sent = [(name, request.headers[name]) for name in _SENT if name in request.headers]
        call = await self._call(request.method, target, client, sent, request.body)
        try:
            await call.head()
            body = await call.body()
        except UpstreamLost:
            raise _unavailable() from None
        finally:
            call.close()
        told = [(name, call.headers[name]) for name in _RETURNED if name in call.headers]
        exchange.respond(call.status, [*told, *headers], body)

    async def search(self, flow: Flow, top: Top, persona: CompiledPersona) -> Found | None:
        """Run ``file_search`` for a request: by the persona's stores and by the tool. The passages go into the body."""
        field = _FIELDS.get(flow.protocol)
        if field is None:
            return None
        wanted = citing.take_tool(top)
        if wanted is None and not persona.stores:
            return None
        query = citing.question(top, field)
        client = flow.client
        if not query or client is None:
            return None
        ask: dict[str, Any] = {
            **(wanted.options if wanted else {}),
            "client": client.name,
            "key": client.id,
            "query": query[:8000],
            "stores": list(persona.stores),
            "vector_store_ids": list(wanted.store_ids) if wanted else [],
        }
        page = await self._ask(client, msgspec.json.encode(ask))
        citing.add_passages(top, field, page["passages"])
        include = value(top, "include")
        wants = isinstance(include, list) and any("file_search_call.results" in str(one) for one in include)
        return Found(query, page["data"], wants)

    def cite(self, reply: Reply, found: Found | None) -> Reply:
        """The reply with citations, if anything was searched."""
        return reply if found is None else CitingReply(reply, found)

    async def _ask(self, client: Client, body: bytes) -> dict[str, Any]:
        call = await self._call("POST", "/internal/search", client, [(b"content-type", b"application/json")], body)
        try:
            await call.head()
            answer = await call.body()
        except UpstreamLost:
            raise _unavailable() from None
        finally:
            call.close()
        page: dict[str, Any] = msgspec.json.decode(answer)
        if call.status != 200:
            error = page.get("error") or {}
            code, message = str(error.get("code") or "invalid_request"), str(error.get("message") or "")
            wait = call.headers.get(b"retry-after", b"")
            raise Fault(call.status, code, message, retry_after=int(wait) if wait.isdigit() else None)
        return page

    async def _call(self, method: str, target: str, client: Client, headers: list[Header], body: bytes) -> Any:
        who = [
            (b"x-lmtower-internal", self._key()),
            (b"x-lmtower-client", client.id.encode()),
            (b"x-lmtower-client-name", quote(client.name, safe="").encode()),
        ]
        try:
            return await self._pool.call(target, [body], method=method, headers=[*who, *headers])
        except UpstreamLost:
            raise _unavailable() from None

    def _key(self) -> bytes:
        if not self._secret:
            try:
                self._secret = self._secret_file.read_bytes().strip()
            except OSError:
                raise _unavailable() from None
        return self._secret


def _unavailable() -> Fault:
    return Fault(503, "stores_unavailable", "Vector stores are not running in this tower.", retry_after=5)
