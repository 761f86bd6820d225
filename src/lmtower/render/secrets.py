"""Names under which rendered files ask for secrets. The values themselves are never rendered."""

from __future__ import annotations

import re
from collections.abc import Iterable

from lmtower.engines.spec import LaunchSpec

_SHARED = ("HF_TOKEN",)


def variable(spec: LaunchSpec, name: str) -> str:
    """The environment variable that holds this secret of this engine: ``NEMOTRON_VLLM_API_KEY``, ``HF_TOKEN``."""
    if name in _SHARED:
        return name
    return f"{re.sub(r'[^A-Z0-9]', '_', spec.engine.upper())}_{name}"


def env_example(specs: Iterable[LaunchSpec]) -> str:
    """A file to be copied and filled in."""
    names = sorted({variable(spec, name) for spec in specs for name in spec.secrets})
    return "".join(f"{name}=\n" for name in names)
