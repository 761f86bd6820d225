"""One client connection of the fake engine: HTTP/1.1 in, the bytes of scripted answers out.

Theory of operation: requests of a connection are answered one after the other by one task. A client that closes (or
resets) is seen by ``connection_lost`` at once, whatever the task waits for; the task is cancelled, and if an answer was
under way it is recorded as a disconnect with the number of tokens that had been written.
"""

from __future__ import annotations

import asyncio
import http
import socket
import struct
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import httptools

from tests.fakes.answering import answer
from tests.fakes.script import Disconnect, Request, Script
from tests.fakes.shapes import compact, error

if TYPE_CHECKING:
    from tests.fakes.engine import FakeEngine


class Died(Exception):
    """The script said: die here."""


class Connection(asyncio.Protocol):
    """See the module."""

    transport: asyncio.Transport
    number: int

    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.task: asyncio.Task[None] | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._queue: deque[Request] = deque()
        self._now: Request | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._dead = False

    # --- asyncio ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.engine.connections_made += 1
        self.number = self.engine.connections_made
        self.engine.note(lambda: self.engine.connections.add(self))

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            head = b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\nconnection: close\r\n\r\n"
            self.transport.write(head + b"Invalid HTTP request received.")
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._dead = True
        request = self._now

        def record() -> None:
            self.engine.connections.discard(self)
            if request is not None and not request.finished:
                self.engine.disconnects.append(Disconnect(request, time.monotonic(), request.tokens_sent))

        self.engine.note(record)
        if self.task:
            self.task.cancel()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # --- httptools ---

    def on_message_begin(self) -> None:
        self._url, self._headers, self._body = b"", dict[str, str](), bytearray()

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self._headers.get("expect", "").lower() == "100-continue":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        path, _, query = self._url.decode("latin-1").partition("?")
        method = self._parser.get_method().decode()
        now = time.monotonic()
        self._queue.append(Request(method, path, query, self._headers, bytes(self._body), now, self.number))
        if self.task is None or self.task.done():
            self.task = self.engine.loop.create_task(self._serve())

    # --- answers ---

    async def _serve(self) -> None:
        engine = self.engine
        while self._queue and not self._dead:
            request = self._now = self._queue.popleft()
            engine.note(lambda request=request: engine.requests.append(request))  # type: ignore[misc]
            try:
                await answer(self, request)
            except Died:
                return
            except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as exc:
                # a body that says something else than its protocol: vLLM's validation refuses it
                if request.status:
                    self.kill()
                    return
                await self.send(request, 400, error(f"1 validation error: {exc!r}"[:200], "Bad Request"))
            self._now = None
            engine.note(request.finish)

    async def send(self, request: Request, status: int, body: Any, script: Script | None = None) -> None:
        """A whole answer: a dict, list or string as JSON, bytes as they are."""
        data = body if isinstance(body, bytes) else compact(body)
        kind = "text/plain; version=0.0.4; charset=utf-8" if request.route == "/metrics" else "application/json"
        self.begin(request, status, kind, len(data), script)
        if script and script.die_after is not None:
            self.transport.write(data[: len(data) // 2])
            self.die(script)
        if request.method != "HEAD":
            self.transport.write(data)
        await self._writable.wait()

    def begin(self, request: Request, status: int, kind: str, length: int | None, script: Script | None) -> None:
        """Status line and headers; without a length the body is chunked."""
        request.status = status
        lines = [f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}", "server: uvicorn", f"content-type: {kind}"]
        lines.append("transfer-encoding: chunked" if length is None else f"content-length: {length}")
        lines += [f"{name}: {value}" for name, value in (script.headers if script else {}).items()]
        self.transport.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))

    async def chunk(self, data: bytes, split: int | None = None) -> None:
        """One chunk of a stream, or several of ``split`` bytes. Waits while the client does not read."""
        size = split or len(data)
        for start in range(0, len(data), size):
            part = data[start : start + size]
            self.transport.write(b"%x\r\n%b\r\n" % (len(part), part))
            if split:
                await asyncio.sleep(0)
        await self._writable.wait()

    def end(self) -> None:
        """The last chunk of a stream."""
        self.transport.write(b"0\r\n\r\n")

    # --- deaths ---

    def kill(self) -> None:
        """Reset the connection, so that the client sees no orderly end. Not counted as a disconnect of the client's."""
        if self._now:
            self._now.finished = True
        linger = struct.pack("ii", 1, 0)
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.transport.abort()

    def die(self, script: Script) -> None:
        """The death that the script asks for. Does not return."""
        if self._now:
            self._now.finished = True
        if script.die_how == "rst":
            self.kill()
        else:
            if script.die_how == "truncate":
                self.end()
            self.transport.close()
        raise Died
