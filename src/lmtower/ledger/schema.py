"""The SQL tables as the migrations leave them: clients, usage, and how far each journal segment was read.

For Alembic, and for readers of the statements in ``keys``, ``drain`` and ``report``. A tower does not import
it: SQLAlchemy costs 0.4 s and 16 MB (measured).
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Double, Index, Integer, MetaData, String, Table, Text

metadata = MetaData()

clients = Table(
    "clients",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String(200), nullable=False),
    Column("key_sha256", String(64), nullable=False, unique=True),
    Column("prefix", String(32), nullable=False),
    Column("personas", Text),
    Column("limits", Text),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
    Column("revoked_at", Double),
)

# One row per kind of thing that other processes cache; the number grows with every change to it.
changes = Table(
    "changes",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("version", BigInteger, nullable=False),
)

# Written in the transaction that writes the rows of that part of the segment: a replay starts behind them.
journal_offsets = Table(
    "journal_offsets",
    metadata,
    Column("segment", String(100), primary_key=True),
    Column("offset", BigInteger, nullable=False),
)

usage = Table(
    "usage",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("request_id", String(200), nullable=False),
    Column("time", Double, nullable=False),
    *(
        Column(name, Text, nullable=False)
        for name in ("client_id", "client", "end_user", "session", "persona", "engine", "replica", "protocol")
    ),
    Column("lane", String(32), nullable=False),
    Column("outcome", String(32), nullable=False),
    Column("status", Integer, nullable=False),
    Column("stream", Boolean, nullable=False),
    *(
        Column(name, BigInteger, nullable=False)
        for name in (
            "input_tokens",
            "cached_tokens",
            "image_tokens",
            "output_tokens",
            "reasoning_tokens",
            "images",
            "tool_calls_valid",
            "tool_calls_repaired",
            "tool_calls_retried",
            "tool_calls_rejected",
        )
    ),
    Column("queue_seconds", Double, nullable=False),
    Column("ttft_seconds", Double),
    Column("duration_seconds", Double, nullable=False),
    Column("retry", Boolean, nullable=False),
    Column("cost", Double, nullable=False),
    Index("usage_time", "time"),
    Index("usage_client_time", "client_id", "time"),
)
