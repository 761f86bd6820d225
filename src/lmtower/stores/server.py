"""The store service as a process: ``python -m lmtower.stores.server --config tower.yaml``.

A process of its own, so that the gateway's memory and event loop know nothing of documents. It ends when its standard
input closes: a tower that was killed leaves no orphan behind.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import signal
import sys
import threading
from pathlib import Path

import uvicorn

from lmtower.config import load
from lmtower.errors import ConfigError, Problem
from lmtower.stores import internal
from lmtower.stores.app import application
from lmtower.stores.launch import choose_personas
from lmtower.stores.service import Settings, build, settings_of


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m lmtower.stores.server", description=__doc__)
    parser.add_argument("--config", type=Path, default=Path("tower.yaml"), help="the tower file")
    parser.add_argument("--data-dir", type=Path, required=True, help="where catalogue, files and vectors lie")
    parser.add_argument("--gateway", default=None, help="URL of the gateway (default: gateway.listen)")
    parser.add_argument("--listen", default=None, help="HOST:PORT (default: stores.listen of the tower file)")
    parser.add_argument("--stay", action="store_true", help="do not end when standard input closes")
    return parser.parse_args(argv)


def settings_from(options: argparse.Namespace) -> tuple[Settings, str]:
    """Settings and the address to listen on. The gateway's key is LMTOWER_STORES_KEY, else the secret."""
    tower = load(options.config).tower
    personas = choose_personas(tower)
    if personas is None:
        message = "there is no persona to embed with. Name one in stores.document_persona."
        raise ConfigError([Problem("stores", message, str(options.config))])
    secret = internal.read_or_create(options.data_dir)
    key = os.environ.get("LMTOWER_STORES_KEY") or secret
    gateway = options.gateway or _local_url(tower.gateway.listen, tls=tower.gateway.tls is not None)
    return settings_of(tower, options.data_dir, gateway, key, secret, personas), options.listen or tower.stores.listen


def _local_url(listen: str, *, tls: bool) -> str:
    host, _, port = listen.rpartition(":")
    return f"{'https' if tls else 'http'}://{'127.0.0.1' if host in ('', '0.0.0.0', '[::]') else host}:{port}"


def end_with_parent() -> None:
    def watch() -> None:
        while sys.stdin.buffer.read(4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="lmtower-stdin", daemon=True).start()


def main(argv: list[str] | None = None) -> None:
    # LanceDB logs a deprecation of its own Python layer at every search
    os.environ.setdefault("RUST_LOG", "error")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    options = arguments(argv)
    settings, listen = settings_from(options)
    if not options.stay:
        end_with_parent()
    host, _, port = listen.rpartition(":")
    service = build(settings)
    # what was imported stays: a tenth of a search went into looking at it again
    gc.freeze()
    uvicorn.run(application(service), host=host, port=int(port), access_log=False, log_level="warning")


if __name__ == "__main__":
    main()
