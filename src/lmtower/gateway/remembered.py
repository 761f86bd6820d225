"""Finished responses by id, in memory: clients go on from one by ``previous_response_id``, read or delete it.

Bounded in bytes and time; the one that was not used for longest leaves first. Each belongs to the key that made it, and
to nobody else it exists. A conversation is a chain of turns; every turn keeps only what it added. Nothing outlives the
process, and several towers do not share it: clients get ``previous_response_not_found`` and send everything again, as
they do when OpenAI has deleted a response.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs

import msgspec

from lmtower.gateway.exchange import Request
from lmtower.wire import keeping
from lmtower.wire import top as tops
from lmtower.wire.faults import Fault
from lmtower.wire.keeping import KeepingReply
from lmtower.wire.reply import Reply
from lmtower.wire.responses import ResponsesReply
from lmtower.wire.top import Top

MOST_BYTES = 64 * 1024**2
Json = dict[str, Any]


class Turn(msgspec.Struct, frozen=True):
    """One finished response: what was asked, what came, and the turn before it."""

    previous: str
    asked: bytes
    answered: bytes
    body: bytes
    until: float

    @property
    def size(self) -> int:
        return len(self.asked) + len(self.answered) + len(self.body) + 500


class Opening(msgspec.Struct, frozen=True):
    """What is known of a turn before its answer comes."""

    client: str
    previous: str
    asked: bytes
    until: float


class Remembered:
    """The turns of all clients."""

    def __init__(self, clock: Callable[[], float], most_bytes: int = MOST_BYTES) -> None:
        self._clock = clock
        self._most = most_bytes
        self._turns: OrderedDict[tuple[str, str], Turn] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._turns)

    def open(self, client: str, top: Top, seconds: float) -> Opening | None:
        """Put the earlier turns before the request's own input. None when its answer is not to be kept.

        Raises Fault(400) when the response to go on from is not here.
        """
        previous = tops.text(top, "previous_response_id") or ""
        given = top.get("input")
        if given is None:
            return None
        asked = keeping.items_of(bytes(memoryview(given)))
        if previous:
            chain = self._chain(client, previous)
            parts = [part for turn in chain for part in (turn.asked, turn.answered)]
            top["input"] = msgspec.Raw(keeping.joined([*parts, asked]))
            del top["previous_response_id"]
        if seconds <= 0 or ("store" in top and tops.given(top, "store") and not tops.flag(top, "store")):
            return None
        return Opening(client, previous, asked, self._clock() + seconds)

    def keep(self, opening: Opening, reply: Reply) -> Reply:
        """The reply, which will be kept when it is finished."""

        def finished(response: Json) -> None:
            if not isinstance(response.get("id"), str):
                return  # no client can ask for it
            answered = keeping.output_of(response)
            body = msgspec.json.encode(response)
            self._put(
                (opening.client, response["id"]),
                Turn(opening.previous, opening.asked, answered, body, opening.until),
            )

        return KeepingReply(reply, finished)

    def _chain(self, client: str, last: str) -> list[Turn]:
        """The turns up to this one, the first one first. Raises Fault(400)."""
        chain: list[Turn] = []
        at = last
        while at:
            turn = self._find(client, at)
            if turn is None:
                message = f"Previous response with id {last[:100]!r} not found: send the whole conversation in 'input'."
                raise Fault(400, "previous_response_not_found", message, param="previous_response_id")
            chain.append(turn)
            at = turn.previous
        return chain[::-1]

    def _find(self, client: str, response_id: str) -> Turn | None:
        key = (client, response_id)
        turn = self._turns.get(key)
        if turn is not None and turn.until <= self._clock():
            self._drop(key)
            return None
        if turn is not None:
            self._turns.move_to_end(key)
        return turn

    def _put(self, key: tuple[str, str], turn: Turn) -> None:
        self._drop(key)
        if turn.size > self._most:
            return
        self._turns[key] = turn
        self._bytes += turn.size
        now = self._clock()
        while self._bytes > self._most or next(iter(self._turns.values())).until <= now:
            self._drop(next(iter(self._turns)))

    def _drop(self, key: tuple[str, str]) -> None:
        turn = self._turns.pop(key, None)
        if turn is not None:
            self._bytes -= turn.size

    # -- /v1/responses/{id} ----------------------------------------------------------------------------------

    def answer(self, request: Request, client: str, tail: str) -> bytes:
        """``GET`` and ``DELETE`` of a response, its ``input_items``, ``cancel``. Raises Fault(400, 404, 405)."""
        response_id, _, part = tail.partition("/")
        turn = self._find(client, response_id)
        methods = {"": ("GET", "HEAD", "DELETE"), "input_items": ("GET", "HEAD"), "cancel": ("POST",)}.get(part)
        if methods is None:
            raise Fault(404, "unknown_route", f"There is no {request.method} {request.path[:200]} here.")
        if request.method not in methods:
            allow = (b"allow", ", ".join(methods).encode())
            raise Fault(405, "method_not_allowed", f"Use {' or '.join(methods)}.", headers=(allow,))
        if turn is None:
            raise Fault(404, "response_not_found", f"Response with id {response_id[:100]!r} not found.", param="id")
        if part == "cancel":
            message = "Only background responses can be cancelled, and this tower runs none."
            raise Fault(400, "not_supported", message, param="id")
        if request.method == "DELETE":
            self._drop((client, response_id))
            return msgspec.json.encode({"id": response_id, "object": "response", "deleted": True})
        query = parse_qs(request.query.decode("latin-1"))
        if part == "input_items":
            return msgspec.json.encode(self._input_items(client, response_id, query))
        if query.get("stream", ["false"])[-1] == "true":
            raise Fault(400, "not_supported", "A finished response cannot be streamed again.", param="stream")
        return turn.body

    def _input_items(self, client: str, response_id: str, query: dict[str, list[str]]) -> Json:
        chain = self._chain(client, response_id)
        parts = [part for turn in chain for part in (turn.asked, turn.answered)][:-1]
        items = keeping.listed(keeping.joined(parts), response_id)
        wanted = query.get("limit", ["20"])[-1]
        if not wanted.isascii() or not wanted.isdigit() or not 1 <= int(wanted) <= 100:
            raise Fault(400, "invalid_type", "The parameter 'limit' must be between 1 and 100.", param="limit")
        newest_first = query.get("order", ["desc"])[-1] != "asc"
        return keeping.page(items, limit=int(wanted), after=query.get("after", [""])[-1], newest_first=newest_first)


def echo(reply: Reply, opening: Opening | None) -> None:
    """Let the response say of the store what is true here, whatever its engine says."""
    if isinstance(reply, ResponsesReply):
        reply.own["store"] = opening is not None
        if opening is not None and opening.previous:
            reply.own["previous_response_id"] = opening.previous
