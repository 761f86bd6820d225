"""Who a request says that it is."""

from __future__ import annotations

import pytest

from lmtower.gateway import identity
from lmtower.wire import top


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"user": "eve"}', "eve"),
        (b'{"user": "%b"}' % (b"e" * 200), "e" * 128),
        (b'{"user": "e\\u0000ve"}', "eve"),
        (b'{"user": 5}', ""),
        (b'{"user": null}', ""),
        (b"{}", ""),
    ],
)
def test_field_of_the_body_is_short_text_that_sql_stores(body: bytes, expected: str) -> None:
    """Anything else is nothing. PostgreSQL takes no NUL, and a record that it refuses would hold up all behind it."""
    assert identity.field(top.split(body), "user") == expected
