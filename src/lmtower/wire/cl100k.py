"""Token ids of OpenAI's cl100k_base turned back into text; only for embedding requests that carry ids.

LangChain's and LlamaIndex's clients cut texts into these tokens by themselves and send the ids. Another model's
vocabulary reads them as garbage, without any error. ``cl100k.xz`` beside this module is the vocabulary that
OpenAI publishes with tiktoken (MIT), as (length, bytes) in the order of the ids.
"""

from __future__ import annotations

import lzma
from array import array
from functools import cache
from importlib.resources import files

from lmtower.wire.faults import Fault

TOKENS = 100256


@cache
def _vocabulary() -> tuple[bytes, array[int]]:
    """All tokens' bytes and where each begins; 1.2 MB, read when the first such request comes."""
    packed = lzma.decompress(files("lmtower.wire").joinpath("cl100k.xz").read_bytes())
    starts, at = array("I"), 0
    while at < len(packed):
        starts.append(at + 1)
        at += packed[at] + 1
    return packed, starts


def decode(ids: list[int]) -> str:
    """The text of these tokens; special tokens are left out. Raises Fault(400) for an id that does not exist."""
    packed, starts = _vocabulary()
    parts: list[bytes] = []
    for token in ids:
        if token >= TOKENS:
            if token > TOKENS + 20:
                raise Fault(
                    400,
                    "invalid_input",
                    f"The input holds the token id {token}, which cl100k_base does not have. Send texts instead.",
                    param="input",
                )
            continue
        start = starts[token]
        parts.append(packed[start : start + packed[start - 1]])
    return b"".join(parts).decode("utf-8", errors="replace")
