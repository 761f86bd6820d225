"""The HTTP edge on raw sockets: pipelining, limits, smuggling, slow and vanishing clients."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmtower.gateway import connection, routes
from lmtower.gateway.exchange import Exchange, Head, Request
from lmtower.gateway.head import Heads, RequestRepeat
from lmtower.gateway.server import Server
from lmtower.wire.faults import Fault
from tests.gateway.support import until


class Echo:
    """A handler that answers with what it got, or misbehaves when the path says so."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, bytes, int]] = []
        self.cancelled = asyncio.Event()
        self.paused = asyncio.Event()
        self.door = asyncio.Event()

    async def __call__(self, exchange: Exchange) -> None:
        request = exchange.request
        self.seen.append((request.method, request.path, request.query, len(request.body)))
        try:
            if request.path == "/wait":
                await self.door.wait()
            if request.path == "/fail":
                raise RuntimeError("boom")
            if request.path == "/silent":
                return
            if request.path == "/headers":
                exchange.respond(200, [], b" ".join(request.headers))
                return
            if request.path in ("/stream", "/cut", "/flood"):
                await self._stream(exchange)
                return
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        exchange.respond(200, [(b"content-type", b"text/plain")], request.path.encode() + b" " + request.body)

    async def _stream(self, exchange: Exchange) -> None:
        exchange.on_pause = self.paused.set
        exchange.start(200, [])
        if exchange.request.path == "/flood":
            while not self.paused.is_set():
                exchange.send(b"x" * 65536)
                await asyncio.sleep(0)
            await self.door.wait()
            exchange.abort()
            return
        exchange.send(b"one")
        exchange.send(b"two")
        if exchange.request.path == "/cut":
            exchange.abort()
        else:
            exchange.finish()


@asynccontextmanager
async def serving(max_body: int = 10_000, **parts: Any) -> AsyncIterator[tuple[Server, Echo, int]]:
    echo = Echo()
    found = Server(echo, routes.dialect_of, max_body=max_body, **parts)
    _, port = await found.listen("127.0.0.1", 0)
    try:
        yield found, echo, port
    finally:
        echo.door.set()
        await found.close(1)


async def talk(port: int, data: bytes) -> bytes:
    """Send bytes, read until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return answer


def statuses(answer: bytes) -> list[int]:
    return [int(number) for number in re.findall(rb"HTTP/1\.1 (\d+) ", answer)]


def post(path: bytes, body: bytes, *headers: bytes) -> bytes:
    lines = [b"POST %b HTTP/1.1" % path, b"host: x", b"content-length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


async def test_head_that_was_parsed_is_known_on_other_connections() -> None:
    """Clients that connect anew each time repeat themselves; any other byte is parsed, and so is what is refused."""
    async with serving() as (server, echo, port):
        parsed: list[bytes] = []
        keep = server.heads.keep

        def counted(head: Head, data: bytes) -> RequestRepeat | None:
            parsed.append(head.headers.get(b"x-who", b""))
            return keep(head, data)

        server.heads.keep = counted  # type: ignore[method-assign]
        answers = []
        for who, body in ((b"a", b"1"), (b"a", b"22"), (b"b", b"3"), (b"a", b"4" * 10), (b"a", b"5" * 20_000)):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(post(b"/" + who, body, b"x-who: " + who))
            answers.append(await reader.readuntil(b"\r\n\r\n"))
            writer.close()
        assert parsed == [b"a", b"b"]
    assert [statuses(answer)[0] for answer in answers] == [200, 200, 200, 200, 413]
    assert [body for *_, body in echo.seen] == [1, 2, 1, 10]


async def test_known_heads_are_bounded() -> None:
    """Clients with a head of their own for every request, and with enormous ones, take no more memory."""
    heads = Heads()

    def keep(data: bytes) -> None:
        assert heads.keep(Head("POST", "/"), data) is not None

    first = post(b"/", b"1", b"x-id: first")
    keep(first)
    for number in range(255):
        keep(post(b"/", b"1", b"x-id: %d" % number))
        assert heads.find(first) is not None
    keep(post(b"/", b"1", b"x-id: last"))
    assert heads.find(post(b"/", b"1", b"x-id: 0")) is None
    assert heads.find(post(b"/", b"another", b"x-id: first")) is not None
    keep(post(b"/", b"1", b"x-id: " + b"x" * 5000))
    assert heads.find(post(b"/", b"1", b"x-id: " + b"x" * 5000)) is None


async def test_pipelined_requests_are_answered_in_order() -> None:
    """Three requests in one packet, the first one slow: three answers in the order of the requests."""
    async with serving() as (_, echo, port):
        data = post(b"/wait", b"1") + post(b"/two", b"2") + post(b"/three", b"3", b"connection: close")
        task = asyncio.create_task(talk(port, data))
        await until(lambda: echo.seen)
        echo.door.set()
        answer = await task
    assert statuses(answer) == [200, 200, 200]
    assert [answer.find(text) > 0 for text in (b"/wait 1", b"/two 2", b"/three 3")] == [True] * 3
    assert answer.find(b"/wait 1") < answer.find(b"/two 2") < answer.find(b"/three 3")


async def test_hundred_pipelined_requests_pause_reading_and_all_arrive() -> None:
    """More requests than may wait on one connection still all get their answer."""
    async with serving() as (_, echo, port):
        data = b"".join(post(b"/%d" % n, b"") for n in range(99)) + post(b"/last", b"", b"connection: close")
        answer = await talk(port, data)
    assert statuses(answer) == [200] * 100
    assert [path for _, path, _, _ in echo.seen][-1] == "/last"


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        (b"GET / HTTP/1.1\r\nhost : x\r\n\r\n", [200, 200, 400]),
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 99999\r\n\r\n", [200, 200, 413]),
        (b"GET /three HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\nstray bytes", [200, 200, 200]),
    ],
)
async def test_refused_request_waits_for_the_answers_before_it(last: bytes, expected: list[int]) -> None:
    """A broken or too large request behind good ones takes nothing from them, and is answered after them."""
    async with serving() as (_, echo, port):
        task = asyncio.create_task(talk(port, post(b"/wait", b"1") + post(b"/two", b"2") + last))
        await until(lambda: echo.seen)
        echo.door.set()
        answer = await task
    assert statuses(answer) == expected
    assert answer.find(b"/wait 1") < answer.find(b"/two 2")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd", 400),
        (b"POST /a HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST /a HTTP/1.1\r\nhost: x\r\ntransfer-encoding: identity\r\n\r\n", 400),
        (b"POST /a HTTP/1.0\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: +3\r\n\r\nabc", 400),
        (b"POST /a HTTP/1.1\r\nhost: x\r\nhost: y\r\ncontent-length: 0\r\n\r\n", 400),
        (b"POST /a HTTP/1.1\r\nhost: x\r\nx : y\r\ncontent-length: 0\r\n\r\n", 400),
        (b"POST /a HTTP/1.1\nhost: x\n\n", 400),
        (b"nonsense\r\n\r\n", 400),
        (b"CONNECT x:443 HTTP/1.1\r\nhost: x\r\n\r\n", 405),
        (b"GET / HTTP/1.1\r\nhost: x\r\n" + b"x-a: " + b"y" * 70_000 + b"\r\n\r\n", 431),
    ],
)
async def test_ambiguous_or_broken_http_is_refused_and_the_connection_closed(data: bytes, status: int) -> None:
    """What could smuggle a request is answered once with the OpenAI error object; nothing reaches the handler."""
    async with serving() as (_, echo, port):
        answer = await talk(port, data)
        assert not echo.seen
    assert statuses(answer) == [status]
    assert b'{"error":{"message":' in answer


@pytest.mark.parametrize(
    ("path", "marker"), [(b"/v1/messages", b'"request_too_large"'), (b"/v1/x", b'"code":"request_too_large"')]
)
async def test_body_over_the_limit_is_413_in_the_dialect_of_its_path(path: bytes, marker: bytes) -> None:
    """The refusal comes before the body is read, and arrives although the client is still sending."""
    async with serving(max_body=1000) as (_, echo, port):
        announced = await talk(
            port, b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: 9000000\r\n\r\n" % path + b"x" * 500_000
        )
        chunk = b"1f4\r\n" + b"y" * 500 + b"\r\n"
        streamed = await talk(
            port, b"POST %b HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n" % path + chunk * 3
        )
        assert not echo.seen
    for answer in (announced, streamed):
        assert statuses(answer) == [413]
        assert marker in answer


@pytest.mark.parametrize("anew", [False, True])
async def test_door_is_asked_under_a_known_head_too(anew: bool) -> None:
    """A head is known when it was in order, not when its key was: a small request first must not open the door."""

    def door(request: Request) -> None:
        raise Fault(401, "invalid_api_key", "No.")

    async with serving(max_body=1_000_000, door=door) as (server, echo, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(post(b"/a", b"small"))
        await reader.readuntil(b"/a small")
        if anew:
            writer.close()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(post(b"/a", b"x" * 500_000)[:1000])
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
    assert server.heads.find(post(b"/a", b"")) is not None
    assert statuses(answer) == [401]
    assert [body for *_, body in echo.seen] == [5]


async def test_chunked_body_and_expect_continue() -> None:
    """A chunked body arrives whole; a client that asks first is told to go on."""
    async with serving() as (_, _echo, port):
        body = b"3\r\nabc\r\n4;ext=1\r\ndefg\r\n0\r\n\r\n"
        head = b"POST /a HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
        assert b"/a abcdefg" in await talk(port, head + body)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            b"POST /b HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 2\r\nconnection: close\r\n\r\n"
        )
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"ok")
        assert b"/b ok" in await reader.read()
        writer.close()


async def test_spaces_behind_a_header_and_trailers_change_nothing() -> None:
    """A length with a space behind it is one; what stands behind a chunked body is not read as a header."""
    async with serving() as (_, _echo, port):
        spaced = await talk(port, b"POST /a HTTP/1.1\r\nconnection: close \r\ncontent-length: 2 \t\r\n\r\nok")
        head = b"POST /headers HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
        trailed = await talk(port, head + b"1\r\na\r\n0\r\nauthorization: Bearer b\r\nhost: z\r\n\r\n")
    assert b"/a ok" in spaced
    assert trailed.endswith(b"\r\n\r\nhost connection transfer-encoding")


@pytest.mark.parametrize(
    "rest", [b"content-length: 5\r\n\r\nhello", b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"]
)
async def test_upgrade_is_ignored_and_the_body_arrives(rest: bytes) -> None:
    """Java's client asks for h2c with every request of a connection: the body is no other protocol."""
    ask = b"POST /a HTTP/1.1\r\nconnection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AA\r\n"
    async with serving() as (_, echo, port):
        answer = await talk(port, (ask + rest) * 3 + b"GET /last HTTP/1.1\r\nconnection: close\r\n\r\n")
    assert statuses(answer) == [200] * 4
    assert echo.seen == [("POST", "/a", b"", 5)] * 3 + [("GET", "/last", b"", 0)]


@pytest.mark.parametrize(
    "ask",
    [b"content-length: 65537", b"transfer-encoding: chunked", b"content-length: 5\r\nexpect: 100-continue"],
)
async def test_door_is_asked_before_a_large_body_comes(ask: bytes) -> None:
    """Who may not send is told so at once, and what a web page needs to read the answer goes with it."""

    def door(request: Request) -> None:
        if b"x-key" not in request.headers:
            raise Fault(401, "missing_api_key", "Who?")

    parts: dict[str, Any] = {"door": door, "cors": lambda _: [(b"vary", b"origin")]}
    async with serving(max_body=100_000, **parts) as (_, echo, port):
        answer = await talk(port, b"POST /a HTTP/1.1\r\nhost: x\r\n" + ask + b"\r\n\r\n")
        assert statuses(answer) == [401]
        assert b"\r\nvary: origin\r\n" in answer
        assert statuses(await talk(port, post(b"/small", b"x" * 100, b"connection: close"))) == [200]
        large = post(b"/large", b"x" * 70_000, b"x-key: 1", b"connection: close")
        assert statuses(await talk(port, large)) == [200]
        assert [length for *_, length in echo.seen] == [100, 70_000]


async def test_head_http10_absolute_targets_and_upgrades() -> None:
    """HEAD has no body, HTTP/1.0 closes unless it is asked not to, an absolute target is understood."""
    async with serving() as (_, echo, port):
        head = await talk(port, b"HEAD /h HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        old = await talk(port, b"GET /old HTTP/1.0\r\n\r\n")
        stream = await talk(port, b"GET /stream HTTP/1.0\r\n\r\n")
        absolute = await talk(port, b"GET http://x/abs?q=1 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        kept = await talk(port, b"GET /a HTTP/1.0\r\nconnection: keep-alive\r\n\r\nGET /b HTTP/1.0\r\n\r\n")
    assert head.endswith(b"\r\n\r\n")
    assert old.endswith(b"/old ")
    assert stream.endswith(b"\r\n\r\nonetwo")
    assert absolute.endswith(b"/abs ")
    assert ("GET", "/abs", b"q=1", 0) in echo.seen
    assert statuses(kept) == [200, 200]
    assert kept.count(b"connection: keep-alive\r\n") == 1


async def test_stream_is_chunked_and_a_cut_has_no_last_chunk() -> None:
    """A finished stream ends with the last chunk, a cut one does not."""
    async with serving() as (_, _echo, port):
        whole = await talk(port, b"GET /stream HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        cut = await talk(port, b"GET /cut HTTP/1.1\r\nhost: x\r\n\r\n")
    assert whole.endswith(b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")
    assert cut.endswith(b"3\r\none\r\n3\r\ntwo\r\n")


async def test_failing_handler_is_500_and_a_silent_one_is_cut() -> None:
    """An exception becomes an error object; a handler that forgets to answer does not leave the client waiting."""
    async with serving() as (_, _echo, port):
        failed = await talk(port, b"GET /fail HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        silent = await talk(port, b"GET /silent HTTP/1.1\r\nhost: x\r\n\r\n")
    assert statuses(failed) == [500]
    assert b'"internal_error"' in failed
    assert b"boom" not in failed
    assert silent == b""


async def test_client_that_leaves_cancels_its_handler() -> None:
    """The handler's coroutine is cancelled when its client closes."""
    async with serving() as (found, echo, port):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /wait HTTP/1.1\r\nhost: x\r\n\r\n")
        await until(lambda: echo.seen)
        writer.close()
        await asyncio.wait_for(echo.cancelled.wait(), 5)
        await until(lambda: not found.connections)


async def test_stalled_reader_pauses_the_sender() -> None:
    """A client that does not read makes the server say stop before memory grows."""
    async with serving() as (found, echo, port):
        _reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(b"GET /flood HTTP/1.1\r\nhost: x\r\n\r\n")
        await asyncio.wait_for(echo.paused.wait(), 10)
        buffered = [one.transport.get_write_buffer_size() for one in found.connections]
        assert buffered[0] <= connection.WRITE_BUFFER + 65536 + 16
        writer.transport.abort()


async def test_deadlines_close_slow_and_idle_connections() -> None:
    """A client that sends its headers too slowly gets 408, an idle one is closed; both by the tick."""
    async with serving() as (found, _echo, port):
        slow_reader, slow = await asyncio.open_connection("127.0.0.1", port)
        slow.write(b"POST /a HTTP/1.1\r\nhost:")
        idle_reader, idle = await asyncio.open_connection("127.0.0.1", port)
        await until(lambda: len(found.connections) == 2 and any(c._in_message for c in found.connections))
        later = connection.monotonic() + connection.IDLE_SECONDS + connection.HEADER_SECONDS
        found.tick(later)
        assert statuses(await slow_reader.read()) == [408]
        assert await idle_reader.read() == b""
        slow.close()
        idle.close()


@pytest.mark.parametrize("known", [False, True])
async def test_body_that_trickles_in_is_408_and_a_slow_one_is_not(known: bool) -> None:
    """Each byte wins only the time that it may take at the slowest: under a new head, and under a known one."""
    async with serving(max_body=1_000_000) as (found, _echo, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = b"POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: "
        if known:
            writer.write(head + b"2\r\n\r\nok")
            assert b" 200 " in await reader.readuntil(b"\r\n")
        await until(lambda: found.connections)
        [client] = found.connections
        writer.write(head + b"900000\r\n\r\n" + b"a" * 100_000)
        await until(lambda: sum(map(len, client._body)) == 100_000)
        began = client._deadline
        client._deadline = connection.monotonic() + 1.0  # of its minute nearly all has passed
        writer.write(b"b" * 100_000)
        await until(lambda: sum(map(len, client._body)) == 200_000)
        assert client._deadline > connection.monotonic() + 20
        assert client._deadline <= connection.monotonic() + connection.BODY_SECONDS
        client._deadline = connection.monotonic() + 1.0
        writer.write(b"c")
        await until(lambda: sum(map(len, client._body)) == 200_001)
        found.tick(began)
        assert 408 in statuses(await reader.read())
        writer.close()


async def test_slow_reader_gets_all_of_an_answer_that_took_long() -> None:
    """The time to read begins when the answer is there, not when the request came; then it ends, too."""
    async with serving() as (found, echo, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(b"GET /flood HTTP/1.1\r\nhost: x\r\n\r\n")
        await asyncio.wait_for(echo.paused.wait(), 10)
        [client] = found.connections
        client._deadline = 0.0  # the request came long ago
        echo.door.set()
        await until(lambda: client.transport.is_closing())
        found.tick(connection.monotonic())
        assert client.transport.get_write_buffer_size()
        found.tick(connection.monotonic() + connection.IDLE_SECONDS)
        await until(lambda: not found.connections)
        await reader.read()
        writer.close()


async def test_shutdown_finishes_running_requests_and_answers_until_then() -> None:
    """Closing waits for the answer that is on its way; whoever comes meanwhile gets one, too, on kept connections and
    on new ones. Then nobody listens, and connections on which nothing happens are closed."""
    async with serving() as (found, echo, port):
        reader, kept = await asyncio.open_connection("127.0.0.1", port)
        task = asyncio.create_task(talk(port, b"GET /wait HTTP/1.1\r\nhost: x\r\n\r\n"))
        await until(lambda: echo.seen)
        closing = asyncio.create_task(found.close(10))
        await until(lambda: found.closing)
        silent_reader, silent = await asyncio.open_connection("127.0.0.1", port)
        kept.write(b"GET /kept HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b"connection: close" in await reader.read()
        assert b"connection: close" in await talk(port, b"GET /new HTTP/1.1\r\nhost: x\r\n\r\n")
        echo.door.set()
        answer = await task
        await closing
        assert await silent_reader.read() == b""
        kept.close()
        silent.close()
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", port)
    assert statuses(answer) == [200]
    assert b"connection: close" in answer


async def test_shutdown_in_a_hurry_cuts_what_runs() -> None:
    """Whoever asks twice does not wait for the grace."""
    async with serving() as (found, echo, port):
        task = asyncio.create_task(talk(port, b"GET /wait HTTP/1.1\r\nhost: x\r\n\r\n"))
        await until(lambda: echo.seen)
        closing = asyncio.create_task(found.close(1000))
        await until(lambda: found.closing)
        found.hurry()
        await asyncio.wait_for(closing, 5)
        assert await task == b""
        assert echo.cancelled.is_set()


@given(cuts=st.lists(st.integers(1, 200), max_size=8), body=st.binary(max_size=60))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_request_cut_anywhere_is_the_same_request(cuts: list[int], body: bytes) -> None:
    """However the network cuts the bytes, the handler sees the same request."""

    async def scenario() -> None:
        async with serving() as (_, echo, port):
            data = post(b"/a?b=c", body, b"connection: close")
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            at = 0
            for cut in [*cuts, len(data)]:
                writer.write(data[at : at + cut])
                await writer.drain()
                at += cut
            assert b"/a " + body in await asyncio.wait_for(reader.read(), 5)
            assert echo.seen == [("POST", "/a", b"b=c", len(body))]
            writer.close()

    asyncio.run(scenario())


@given(data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_known_heads_are_the_same_requests_as_parsed_ones(data: st.DataObject) -> None:
    """Heads that repeat, change a little or lie about the length, cut anywhere: what the handler sees and what is
    refused is what a connection of its own per request makes of it."""
    paths = data.draw(st.lists(st.sampled_from([b"/a", b"/a?b", b"/other"]), min_size=1, max_size=5))
    # bodies come back, where they must not look like another answer
    bodies = [data.draw(st.binary(max_size=300).filter(lambda body: b"HTTP/" not in body)) for _ in paths]
    odd = data.draw(st.sampled_from([b"", b"x-more: 1", b"expect: 100-continue", b"x: content-length: 7"]))
    requests = [
        post(path, body, *([odd] if odd and number % 2 else []))
        for number, (path, body) in enumerate(zip(paths, bodies, strict=True))
    ]
    stream = b"".join(requests)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    last = data.draw(
        st.sampled_from(
            [
                b"POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 99999\r\n\r\n",
                b"POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: +1\r\n\r\n",
                b"POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\n",
                b"GET /a HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
            ]
        )
    )

    async def scenario() -> None:
        async with serving() as (_, echo, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            at = 0
            for cut in [*cuts, len(stream)]:
                writer.write(stream[at:cut])
                await writer.drain()
                await asyncio.sleep(0)
                at = cut
            await until(lambda: len(echo.seen) == len(requests))
            writer.write(last)
            answer = await asyncio.wait_for(reader.read(), 5)
            writer.close()
        expected = [
            ("POST", p.partition(b"?")[0].decode(), p.partition(b"?")[2], len(b))
            for p, b in zip(paths, bodies, strict=True)
        ]
        assert echo.seen[: len(requests)] == expected
        for path, body in zip(paths, bodies, strict=True):
            assert path.partition(b"?")[0] + b" " + body in answer
        final = 413 if b"99999" in last else 200 if last.startswith(b"GET") else 400
        assert [s for s in statuses(answer) if s != 100][len(requests) :] == [final]

    asyncio.run(scenario())


async def test_every_early_error_has_a_request_id_of_its_own_or_the_clients() -> None:
    """Also of what never reached the handler: the id in the answer is the one to ask the operator about."""
    async with serving() as (_, _, port):
        large = [
            await talk(port, b"POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-length: 99999\r\n\r\n") for _ in "ab"
        ]
        named = await talk(port, post(b"/fail", b"", b"x-request-id: mine-7", b"connection: close"))
    ids = [
        re.findall(rb'x-request-id: (req_\w{20})\r.*"request_id":"(req_\w+)"', answer, re.DOTALL)[0] for answer in large
    ]
    assert all(header == body for header, body in ids)
    assert ids[0] != ids[1]
    assert b"HTTP/1.1 500" in named
    assert b"x-request-id: mine-7\r" in named
