"""The tables of the catalogue: files, stores, which file is in which store, and the work still to be done.

Theory of operation. Vectors live in LanceDB, everything else here. ``entries`` is one file in one store; its
``seq`` is the number by which the vector table knows it. An entry moves through stages, each left in one transaction:

    queued -> chunked -> embedded -> indexing -> done          (or failed / cancelled from any of them)

``queued``: nothing done yet. ``chunked``: its rows are in ``chunks``, vectors arrive there batch by batch.
``embedded``: every chunk has its vector. ``indexing``: rows are being written to LanceDB, maybe already are.
``done``: they are, and ``chunks`` is empty again. After a crash only ``indexing`` is uncertain: its rows are deleted
from LanceDB and written again from ``chunks``, so nothing is embedded twice, nothing is missing, nothing is double.
``graves`` are rows to delete from LanceDB; what has a grave, or is not ``done``, is never shown by a search.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Engine,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    create_engine,
    event,
)
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry

METADATA = MetaData()
Sequence = BigInteger().with_variant(Integer, "sqlite")

FILES = Table(
    "store_files",
    METADATA,
    Column("seq", Sequence, primary_key=True, autoincrement=True),
    Column("id", String(64), unique=True, nullable=False),
    Column("client", String(200), index=True, nullable=False),
    Column("filename", Text, nullable=False),
    Column("purpose", String(32), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", String(64), index=True, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
)

STORES = Table(
    "stores",
    METADATA,
    Column("seq", Sequence, primary_key=True, autoincrement=True),
    Column("id", String(64), unique=True, nullable=False),
    Column("client", String(200), index=True, nullable=False),
    Column("name", Text, nullable=False),
    Column("description", Text, nullable=False, default=""),
    Column("metadata", JSON, nullable=False),
    Column("shared_with", JSON, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("last_active_at", BigInteger, nullable=False),
    Column("expires_days", Integer),
    Column("generation", Integer, nullable=False, default=1),
    Column("model", Text),
    Column("probe", LargeBinary),
)

BATCHES = Table(
    "store_batches",
    METADATA,
    Column("seq", Sequence, primary_key=True, autoincrement=True),
    Column("id", String(64), unique=True, nullable=False),
    Column("store_id", String(64), index=True, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("cancelled", Boolean, nullable=False, default=False),
)

ENTRIES = Table(
    "store_entries",
    METADATA,
    Column("seq", Sequence, primary_key=True, autoincrement=True),
    Column("store_id", String(64), nullable=False),
    Column("file_id", String(64), index=True, nullable=False),
    Column("batch_id", String(64), index=True),
    Column("created_at", BigInteger, nullable=False),
    Column("status", String(16), nullable=False),
    Column("stage", String(16), nullable=False),
    Column("error_code", String(32)),
    Column("error_message", Text),
    Column("usage_bytes", BigInteger, nullable=False, default=0),
    Column("chunks", Integer, nullable=False, default=0),
    Column("tokens", BigInteger, nullable=False, default=0),
    Column("embedded", Integer, nullable=False, default=0),
    Column("attributes", JSON, nullable=False),
    Column("chunk_tokens", Integer, nullable=False),
    Column("overlap_tokens", Integer, nullable=False),
    UniqueConstraint("store_id", "file_id"),
    Index("store_entries_by_stage", "stage", "seq"),
    Index("store_entries_by_status", "store_id", "status"),
    sqlite_autoincrement=True,
)

CHUNKS = Table(
    "store_chunks",
    METADATA,
    Column("entry", BigInteger, primary_key=True, autoincrement=False),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("store_id", String(64), nullable=False),
    Column("text", Text, nullable=False),
    Column("lead", Integer, nullable=False),
    Column("page", Integer),
    Column("heading", Text, nullable=False),
    Column("start", BigInteger, nullable=False),
    Column("end", BigInteger, nullable=False),
    Column("tokens", Integer, nullable=False),
    Column("hash", String(32), nullable=False),
    Column("vector", LargeBinary),
    Index("store_chunks_by_hash", "store_id", "hash"),
)

GRAVES = Table(
    "store_graves",
    METADATA,
    Column("seq", Sequence, primary_key=True, autoincrement=True),
    Column("vectors", String(80), nullable=False),
    Column("entry", BigInteger),
)


def connect(url: str) -> Engine:
    """Open the catalogue and create what is missing. SQLite runs in WAL, so that searches never wait for a writer."""
    engine = create_engine(url, pool_pre_ping=not url.startswith("sqlite"))
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
    METADATA.create_all(engine)
    return engine


def _prepare_sqlite(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "busy_timeout=60000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
