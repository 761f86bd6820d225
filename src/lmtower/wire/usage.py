"""What a request used, as the engines report it in their own shapes."""

from __future__ import annotations

import msgspec


class Usage(msgspec.Struct):
    """Tokens of one request in lmtower's words. ``known`` is False until an engine has said a number."""

    input_tokens: int = 0
    cached_tokens: int = 0
    image_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    known: bool = False


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None
    image_tokens: int | None = None


class _CompletionDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class EngineUsage(msgspec.Struct):
    """The ``usage`` object of chat, completions, embeddings and rerank; unknown fields are skipped."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None

    def into(self, usage: Usage) -> None:
        """Take these numbers over."""
        usage.known = True
        usage.input_tokens = self.prompt_tokens or 0
        usage.output_tokens = self.completion_tokens or 0
        if self.prompt_tokens is None and self.total_tokens:
            usage.input_tokens = self.total_tokens - usage.output_tokens
        if self.prompt_tokens_details is not None:
            usage.cached_tokens = self.prompt_tokens_details.cached_tokens or 0
            usage.image_tokens = self.prompt_tokens_details.image_tokens or 0
        if self.completion_tokens_details is not None:
            usage.reasoning_tokens = self.completion_tokens_details.reasoning_tokens or 0


class WithUsage(msgspec.Struct):
    """Any reply or chunk, read for its usage alone."""

    usage: EngineUsage | None = None


_decoder = msgspec.json.Decoder(WithUsage)


def read(data: bytes | memoryview, usage: Usage) -> bool:
    """Take usage from a JSON reply or chunk. Returns whether there was any; broken JSON counts as none."""
    try:
        found = _decoder.decode(data).usage
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    if found is None:
        return False
    found.into(usage)
    return True
