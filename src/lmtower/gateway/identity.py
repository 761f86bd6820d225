"""Who calls: the key, the end user behind it, the session; read from what real clients send."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from lmtower.gateway.exchange import Request
from lmtower.wire import top as tops
from lmtower.wire.faults import Fault
from lmtower.wire.top import Top

_KEY_HEADERS = (b"x-api-key", b"api-key", b"x-litellm-api-key")
_END_USER_HEADERS = (b"x-openwebui-user-email", b"x-openwebui-user-id", b"x-openwebui-user-name")
_SESSION_HEADERS = (
    b"x-claude-code-session-id",
    b"x-openwebui-chat-id",
    b"session_id",
    b"session-id",
    b"conversation_id",
    b"x-litellm-session-id",
    b"x-session-id",
)
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


def tokens(headers: Mapping[bytes, bytes]) -> list[str]:
    """The keys that a request carries. Clients send several, some of them dummies: any valid one counts."""
    found = []
    bearer = headers.get(b"authorization", b"")
    if bearer[:7].lower() == b"bearer ":
        found.append(bearer[7:].strip().decode("latin-1"))
    for name in _KEY_HEADERS:
        value = headers.get(name)
        if value:
            found.append(value.removeprefix(b"Bearer ").strip().decode("latin-1"))
    return [token for token in found if token]


def end_user(headers: Mapping[bytes, bytes]) -> str:
    """The person behind a shared key, by Open WebUI's headers; the body's ``user`` may tell, too."""
    return _told(headers, _END_USER_HEADERS)


def session(headers: Mapping[bytes, bytes]) -> str:
    """The conversation, for affinity and reports; the body's ``prompt_cache_key`` may tell, too."""
    return _told(headers, _SESSION_HEADERS)


def _told(headers: Mapping[bytes, bytes], names: Sequence[bytes]) -> str:
    """The first of these headers that says something, else nothing."""
    return next((_short(headers[name].decode("latin-1")) for name in names if headers.get(name)), "")


def field(top: Top, name: str) -> str:
    """A text field of the body that says who asks; nothing when it is missing or something else."""
    if name not in top:
        return ""
    try:
        found = tops.value(top, name)
    except Fault:
        return ""
    return _short(found) if isinstance(found, str) else ""


def request_id(headers: Mapping[bytes, bytes]) -> str | None:
    """The client's own request id, if it is harmless."""
    value = headers.get(b"x-request-id")
    return value.decode() if value is not None and _REQUEST_ID.fullmatch(value) else None


def editor(request: Request, told: str) -> tuple[str, bytes | None, bytes | None]:
    """What tells one person's editor from another's behind a shared key: what the client says (``told``), else the
    address, also the one that a proxy before the tower saw, and the program.
    """
    headers = request.headers
    return told or request.peer, headers.get(b"x-forwarded-for"), headers.get(b"user-agent")


def is_retry(headers: Mapping[bytes, bytes]) -> bool:
    """Whether the SDK says that it sent this request before."""
    value = headers.get(b"x-stainless-retry-count")
    return value is not None and value != b"0"


def patience(headers: Mapping[bytes, bytes]) -> float | None:
    """Seconds until the client gives up, if it says so."""
    value = headers.get(b"x-stainless-read-timeout")
    try:
        return max(0.1, float(value)) if value else None
    except ValueError:
        return None


def _short(text: str) -> str:
    return text[:128].replace("\0", "")  # which PostgreSQL does not store
