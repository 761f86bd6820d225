"""Clients, usage, journal offsets."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_TEXTS = ("client_id", "client", "end_user", "session", "persona", "engine", "replica", "protocol")
_COUNTS = (
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


def upgrade() -> None:
    """Make the first tables."""
    op.create_table(
        "clients",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("key_sha256", sa.String(64), nullable=False, unique=True),
        sa.Column("prefix", sa.String(32), nullable=False),
        sa.Column("personas", sa.Text),
        sa.Column("limits", sa.Text),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("expires_at", sa.Double),
        sa.Column("revoked_at", sa.Double),
    )
    changes = op.create_table(
        "changes",
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("version", sa.BigInteger, nullable=False),
    )
    op.bulk_insert(changes, [{"name": "clients", "version": 0}])
    op.create_table(
        "journal_offsets",
        sa.Column("segment", sa.String(100), primary_key=True),
        sa.Column("offset", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "usage",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("request_id", sa.String(200), nullable=False),
        sa.Column("time", sa.Double, nullable=False),
        *(sa.Column(name, sa.Text, nullable=False) for name in _TEXTS),
        sa.Column("lane", sa.String(32), nullable=False),
        sa.Column("outcome", sa.String(32), nullable=False),
        sa.Column("status", sa.Integer, nullable=False),
        sa.Column("stream", sa.Boolean, nullable=False),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in _COUNTS),
        sa.Column("queue_seconds", sa.Double, nullable=False),
        sa.Column("ttft_seconds", sa.Double),
        sa.Column("duration_seconds", sa.Double, nullable=False),
        sa.Column("retry", sa.Boolean, nullable=False),
        sa.Column("cost", sa.Double, nullable=False),
    )
    op.create_index("usage_time", "usage", ["time"])
    op.create_index("usage_client_time", "usage", ["client_id", "time"])


def downgrade() -> None:
    """Drop everything: there is nothing before the first revision."""
    for table in ("usage", "journal_offsets", "changes", "clients"):
        op.drop_table(table)
