"""A stand-in for the gateway: a client key becomes the headers that the store service trusts; chat is scripted."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx

HOP = {"host", "content-length", "connection", "transfer-encoding", "authorization", "accept-encoding"}


class Front:
    """``keys`` maps client keys to client ids. ``prompts`` are the chat requests that came."""

    def __init__(self, stores: str, secret: str, keys: dict[str, str], answer: str) -> None:
        self.prompts: list[dict[str, Any]] = []
        self.answer = answer
        self._keys = keys
        self._secret = secret
        self._client = httpx.Client(base_url=stores, timeout=60)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._client.close()

    def forward(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, str, bytes]:
        client = self._keys.get(headers.get("authorization", "").removeprefix("Bearer "))
        if client is None:
            return 401, "application/json", b'{"error": {"message": "invalid key"}}'
        if path == "/v1/chat/completions":
            self.prompts.append(json.loads(body))
            events = [{"choices": [{"index": 0, "delta": {"content": word + " "}}]} for word in self.answer.split()]
            stream = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
            return 200, "text/event-stream", stream.encode()
        passed = {name: value for name, value in headers.items() if name not in HOP}
        passed |= {"x-lmtower-internal": self._secret, "x-lmtower-client": client}
        reply = self._client.request(method, path, headers=passed, content=body)
        return reply.status_code, reply.headers.get("content-type", "application/json"), reply.content

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        front = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                status, kind, data = front.forward(self.command, self.path, headers, body)
                self.send_response(status)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_DELETE = answer

            def log_message(self, *_: object) -> None:
                """Quiet."""

        return Handler
