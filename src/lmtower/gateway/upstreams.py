"""Where the gateway may send requests: the table that the CLI hands it. Plain values, no connections."""

from __future__ import annotations

import msgspec

from lmtower.config.types import Lanes, Runtime


class Upstream(msgspec.Struct, frozen=True, kw_only=True):
    """One replica of one engine, as the gateway needs to know it."""

    engine: str
    replica: str
    """Unique in the tower: the engine's name, or engine@node for one of several."""
    url: str
    """``http://host:port`` without a path."""
    model: str
    """The name that the engine serves the model under."""
    api_key: str | None = None
    slots: int = 4
    """Requests that run at once."""
    runtime: Runtime = "vllm"
    recipe: str = "generic"
    max_model_len: int | None = None
    node: str = ""
    priorities: bool = False
    """The engine's scheduler takes a ``priority`` (vLLM with ``--scheduling-policy priority``)."""
    lanes: Lanes = Lanes()
    health_path: str = "/health"

    def __repr__(self) -> str:
        return f"Upstream({self.replica!r}, {self.url!r}, model={self.model!r}, slots={self.slots})"
