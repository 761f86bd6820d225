"""What a body goes through around its persona's rules: replayed calls mended, images checked, tool calls guarded.

Everything here is a pure function of another room; this module only decides which of them a request needs. Scaling
images is the one slow step, so it runs in a thread; images behind URLs are fetched first.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import msgspec

from lmtower import guard
from lmtower.gateway import fetching
from lmtower.gateway.beginnings import Beginnings, Opened
from lmtower.gateway.flow import Flow
from lmtower.guard import Rules, Strict, ToolCache
from lmtower.personas import CompiledPersona, Prepared
from lmtower.personas.busters import Busters, Conversation, Seen, look
from lmtower.telemetry.families import CACHE_BUSTERS
from lmtower.telemetry.metrics import Metrics
from lmtower.wire import images
from lmtower.wire import top as tops
from lmtower.wire.chat import ChatReply
from lmtower.wire.conversation import Read
from lmtower.wire.faults import Dialect
from lmtower.wire.items import Items, Text, read, read_chat, read_messages, read_responses
from lmtower.wire.reply import Reply
from lmtower.wire.responses import ResponsesReply
from lmtower.wire.stops import Stopping


class _Kind(NamedTuple):
    """A conversation of some protocol."""

    field: str
    """Where it is."""
    read: Read
    clean: Callable[[Text, Items | None], Text]
    """How its replayed tool calls are mended."""


_MESSAGES = _Kind("messages", read_messages, guard.clean_messages)
_KINDS: Mapping[str, _Kind] = MappingProxyType(
    {
        "chat": _Kind("messages", read_chat, guard.clean_chat),
        "messages": _MESSAGES,
        "count_tokens": _MESSAGES,
        "responses": _Kind("input", read_responses, guard.clean_responses),
    }
)
_NO_CONVERSATION = _Kind("", read, lambda text, _: text)
_items = msgspec.json.Decoder(list[msgspec.Raw])


class Intake:
    """Shared by all requests; keeps compiled tool schemas and the bodies of conversations, bounded."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics
        self.busters = Busters()
        self.tools = ToolCache()
        self.beginnings = Beginnings()
        self._pixels = asyncio.Semaphore(2)
        """Decoded images are large: two requests' at a time."""

    def open(self, client: str, protocol: str, body: bytes) -> Opened:
        """Read a body at its top level. Raises Fault(400) when it is not one JSON object."""
        kind = _KINDS.get(protocol, _NO_CONVERSATION)
        return self.beginnings.open(client, kind.field, body, kind.read)

    async def take(self, flow: Flow, opened: Opened, persona: CompiledPersona) -> Rules | None:
        """Mend and check the body in place. Returns what strict tool calling must hold to, if the persona is strict.

        Raises Fault for images that may not be sent.
        """
        abridged = opened.abridged
        top = abridged.top
        kind = _KINDS.get(flow.protocol)
        if kind is None or not tops.given(top, kind.field):
            return None
        field = kind.field
        plain = 0
        came = opened._replace(abridged=abridged.copy()) if flow.session or opened.large else opened
        if not opened.plain:
            short = abridged.short(field)
            items = abridged.items(field)
            if items is None:
                items = kind.read(short)
            mended = kind.clean(short, items)
            checked = await self._images(flow, opened, mended, persona, items if mended is short else None)
            if checked is not short:
                top[field] = msgspec.Raw(abridged.whole(checked))
            elif items is not None and not flow.images:
                plain = len(items)
        if came is not opened:
            # the engine need not wait for it
            asyncio.get_running_loop().call_soon(self._remember, flow, came, persona.name, plain)
        return guard.rules_of(top, self.tools) if persona.tools == "strict" else None

    def _remember(self, flow: Flow, came: Opened, persona: str, plain: int) -> None:
        """Take down what the next request of the conversation is compared with. ``plain``: its items, if it is that."""
        seen = self._see(flow, came, persona) if flow.session else None
        if plain:
            self.beginnings.keep(came, plain, seen)

    def _see(self, flow: Flow, came: Opened, persona: str) -> Seen | None:
        """Look for what breaks the prefix cache of the session."""
        abridged, known, field = came.abridged, came.known, came.field
        try:
            raws = _items.decode(abridged.short(field))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raws = []  # a text
        new = [abridged.stamped(raw) for raw in raws]
        conversation = Conversation(new)
        if known is not None and abridged.begins(field):
            if known.seen is not None:
                conversation = Conversation(new[1:], known.seen, came.said)
            else:
                conversation = Conversation([(raw, len(raw)) for raw in _items.decode(abridged.top[field])])
        seen = look(flow.protocol, abridged.top, conversation)
        change = self.busters.see(flow.session, persona, seen, flow.request_id) if seen is not None else None
        if change is not None:
            self.metrics.count(CACHE_BUSTERS, persona, change.span)
        return seen

    async def _images(
        self, flow: Flow, opened: Opened, raw: Text, persona: CompiledPersona, items: Items | None
    ) -> Text:
        found = images.find(raw, items, opened.abridged.rest)
        if found is None:
            return raw
        images.check(found, persona.images, persona.image_hosts)
        fetched = await fetching.inline(found, persona.image_hosts, persona.images.max_bytes)
        flow.images = len(found.pictures)
        # Base64 is no text: the estimate of tokens by bytes must not see it.
        flow.body_bytes -= sum(picture.size for picture in found.pictures)
        side = persona.images.max_side
        changed = 0
        if side:
            async with self._pixels:
                changed = await asyncio.to_thread(images.shrink, found, side)
        flow.image_tokens = images.tokens(found, persona.recipe.image_tokens)
        return found.join() if changed or fetched else raw

    def guard(self, flow: Flow, prepared: Prepared, rules: Rules | None) -> None:
        """Put the strict reply of the protocol in place of the plain one."""
        if rules is None:
            return
        runtime = flow.persona.runtime if flow.persona is not None else "vllm"
        strict = Strict(rules, prepared.path, prepared.pieces, flow.dialect, _new_id(flow.dialect), runtime)
        flow.tool_calls = strict.tally
        plain = prepared.reply
        if isinstance(plain, Stopping):
            plain.inner = _strict_reply(plain.inner, flow, strict)
            plain.follow()
        else:
            prepared.reply = _strict_reply(plain, flow, strict)


def _strict_reply(plain: Reply, flow: Flow, strict: Strict) -> Reply:
    names = plain.served, plain.asked, plain.request_id
    if flow.protocol == "messages":
        return guard.StrictMessagesReply(*names, strict)
    if isinstance(plain, ResponsesReply):
        return guard.StrictResponsesReply(*names, plain.own, strict)
    if flow.protocol == "chat" and isinstance(plain, ChatReply):
        return guard.StrictChatReply(*names, plain.wants_usage, strict)
    return plain


def _new_id(dialect: Dialect) -> Callable[[], str]:
    prefix = "toolu_" if dialect == "anthropic" else "call_"
    return lambda: prefix + secrets.token_hex(12)
