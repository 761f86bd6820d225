"""The gateway: server, keys, admission, routing, upstream connections, relay."""

from lmtower.gateway.app import Configuration, Gateway, serve
from lmtower.gateway.memory import tune_allocator
from lmtower.gateway.upstreams import Upstream

__all__ = ["Configuration", "Gateway", "Upstream", "serve", "tune_allocator"]
