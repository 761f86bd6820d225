"""Text completions: raw prompts, so no persona prompt and no reasoning; usage and names as in chat."""

from __future__ import annotations

from typing import Any

from lmtower.wire import usage
from lmtower.wire.chat import ChatReply


class CompletionReply(ChatReply):
    """``/v1/completions``, streamed or not."""

    __slots__ = ()

    _marker = b'"text":"'

    def nothing(self, head: dict[str, Any]) -> dict[str, Any]:
        """A chunk of this protocol without text."""
        choice = {"index": 0, "text": "", "logprobs": None, "finish_reason": None}
        return {**head, "object": "text_completion", "choices": [choice]}

    def body(self, data: bytes) -> bytes:
        """The answer with the name that the client asked for."""
        usage.read(data, self.usage)
        self.complete = True
        return self.rename(data, 1) if self._from in data else super().body(data)
