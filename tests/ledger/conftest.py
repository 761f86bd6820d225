"""Databases for the ledger's contract tests: SQLite, and a private PostgreSQL on a unix socket."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmtower.ledger import shared
from lmtower.ledger.database import Database
from tests.ledger.redis_server import Server

_numbers = itertools.count()


def _postgres_programs() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    return found[-1].parent if found else None


@pytest.fixture(scope="session")
def postgres_socket() -> Iterator[Path]:
    """The socket folder of a PostgreSQL that lives as long as the test session."""
    programs = _postgres_programs()
    if programs is None:
        pytest.skip("no PostgreSQL on this machine")
    folder = Path(tempfile.mkdtemp(prefix="lmtower-pg-"))
    as_user: list[str] = []
    if os.geteuid() == 0:
        user = pwd.getpwnam("postgres")
        os.chown(folder, user.pw_uid, user.pw_gid)
        as_user = ["runuser", "-u", "postgres", "--"]
    data = folder / "data"
    subprocess.run(
        [*as_user, programs / "initdb", "-D", data, "-A", "trust", "-U", "postgres", "-E", "UTF8", "--no-sync"],
        check=True, capture_output=True, cwd="/",
    )  # fmt: skip
    options = f"-k {folder} -c listen_addresses='' -c fsync=off"
    control = [*as_user, programs / "pg_ctl", "-D", data, "-w", "-l", folder / "log"]
    subprocess.run([*control, "-o", options, "start"], check=True, capture_output=True, cwd="/")
    try:
        yield folder
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], check=True, capture_output=True, cwd="/")
        shutil.rmtree(folder)


@pytest.fixture
def postgres_url(postgres_socket: Path) -> str:
    """The URL of an empty PostgreSQL database."""
    import psycopg

    name = f"test_{os.getpid()}_{next(_numbers)}"
    with psycopg.connect(host=str(postgres_socket), user="postgres", dbname="postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")  # type: ignore[call-overload]
    return f"postgresql://postgres@/{name}?host={postgres_socket}"


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A Redis of our own."""
    if shutil.which("redis-server") is None:
        pytest.skip("no Redis on this machine")
    with tempfile.TemporaryDirectory(prefix="lmtower-redis-") as folder:
        found = Server(Path(folder))
        found.start()
        yield found
        found.stop()


@pytest.fixture
def clean(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """Redis, empty; on a busy machine its answers may take longer than a tower would wait."""
    monkeypatch.setattr(shared, "_ANSWER_SECONDS", 20)
    server.command("FLUSHALL")
    return server


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.tools)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.db"
    found: str = request.getfixturevalue("postgres_url")
    return found


@pytest.fixture
def database(database_url: str, tmp_path: Path) -> Iterator[Database]:
    """A database with the current schema."""
    found = Database(database_url, tmp_path)
    found.prepare()
    yield found
    found.close()
