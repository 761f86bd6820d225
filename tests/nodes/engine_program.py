"""A tiny engine for tests of drivers and supervision: answers /health, and misbehaves on request.

``--crash TEXT`` prints TEXT and exits 1 before it listens; ``--deaf`` listens to nothing; ``--stubborn`` ignores
SIGTERM; ``--child FILE`` starts a helper of its own and writes its pid there; ``--serves MODEL`` lists that model.
GET /die ends it with status 3.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    """200 to everything; /die ends the process."""

    serves = ""

    def do_GET(self) -> None:
        if self.path == "/die":
            os._exit(3)
        body = b"ok"
        if self.path == "/v1/models" and self.serves:
            body = json.dumps({"object": "list", "data": [{"id": self.serves}]}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        print(format % args, flush=True)


def main() -> None:
    """Parse the misbehaviour, then serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--crash")
    parser.add_argument("--deaf", action="store_true")
    parser.add_argument("--stubborn", action="store_true")
    parser.add_argument("--child")
    parser.add_argument("--fill", help="write a mebibyte there before listening")
    parser.add_argument("--serves", default="", help="the one model at /v1/models")
    options = parser.parse_args()
    Handler.serves = options.serves
    print("engine program starts", flush=True)
    if options.crash:
        sys.exit(options.crash)
    if options.stubborn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if options.child:
        helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        with open(options.child, "w", encoding="utf-8") as file:
            file.write(str(helper.pid))
    if options.fill:
        with open(options.fill, "wb") as file:
            file.write(b"x" * 1024**2)
    while options.deaf:
        time.sleep(1)
    ThreadingHTTPServer(("127.0.0.1", options.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
