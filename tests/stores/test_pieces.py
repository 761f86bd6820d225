"""The smaller parts on their own: folders, launching, the lease, contents on disk."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from lmtower.config.types import Engine, Persona, Stores, Tower
from lmtower.stores import internal, launch
from lmtower.stores.blobs import Blobs
from lmtower.stores.faults import ApiError
from lmtower.stores.folder import Local, compare, files_under, local
from lmtower.stores.lease import Lease
from lmtower.stores.requests import file_name, page_request
from lmtower.stores.schema import connect


def tower(stores: Stores | None = None, **personas: dict[str, Any]) -> Tower:
    engine = Engine(model="nomic", url="http://x")
    made = {name: Persona(engine="e", **fields) for name, fields in personas.items()}
    return Tower(engines={"e": engine}, personas=made, stores=stores or Stores())


@pytest.mark.parametrize(
    ("personas", "stores", "expected"),
    [
        ({"chat": {}}, Stores(), None),
        ({"chat": {}, "embed": {}}, Stores(), ("embed", "embed")),
        (
            {"nomic-embed-query": {}, "nomic-embed-document": {}},
            Stores(),
            ("nomic-embed-document", "nomic-embed-query"),
        ),
        ({"q": {"prefix": "query: "}, "p": {"prefix": "passage: "}}, Stores(), ("p", "q")),
        ({"a": {}, "b": {}}, Stores(document_persona="a", query_persona="b"), ("a", "b")),
    ],
)
def test_embedding_personas_are_found_by_name_or_prefix(
    personas: dict[str, dict[str, Any]], stores: Stores, expected: tuple[str, str] | None
) -> None:
    """What ``stores:`` names wins, then names and prefixes; without any there is no service."""
    found = launch.choose_personas(tower(stores, **personas))
    assert (found and (found.document, found.query)) == expected


def test_launching_imports_nothing_heavy() -> None:
    """Asking whether the service is wanted costs the start of a tower nothing: no LanceDB, no SQL, no HTTP client."""
    code = "import sys, lmtower.stores.launch, lmtower.stores.internal; print(sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"lancedb", "pyarrow", "numpy", "sqlalchemy", "httpx", "starlette"} & set(eval(loaded))


def test_internal_key_is_made_once_and_private(tmp_path: Path) -> None:
    """The secret is made at first use, is the same ever after, and only its owner can read it."""
    secret = internal.read_or_create(tmp_path)
    assert internal.read_or_create(tmp_path) == secret
    assert len(secret) > 40
    assert os.stat(tmp_path / "internal.key").st_mode & 0o777 == 0o600


def entry(identity: str, path: str, sha256: str, status: str = "completed") -> dict[str, Any]:
    return {"id": identity, "status": status, "attributes": {"path": path, "sha256": sha256}}


def test_folder_against_store_finds_new_changed_gone_and_failed() -> None:
    """New and changed files are uploaded, old versions and gone files are stale, failed ones get another try."""
    files = [
        Local(Path(name), name, digest)
        for name, digest in (("same", "1"), ("new", "2"), ("changed", "3"), ("bad", "4"))
    ]
    entries = [
        entry("f-same", "same", "1"),
        entry("f-old", "changed", "0"),
        entry("f-gone", "gone", "9"),
        entry("f-bad", "bad", "4", "failed"),
        {"id": "foreign", "status": "completed", "attributes": {}},
    ]
    difference = compare(files, entries)
    assert [file.name for file in difference.upload] == ["new", "changed", "bad"]
    assert set(difference.stale) == {"f-old", "f-gone", "f-bad"}
    assert difference.same == 1


def test_files_of_a_folder_leave_out_hidden_links_and_empty(tmp_path: Path) -> None:
    """Hidden files, links out of the folder, caches and empty files are not documents."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.md").write_text("x")
    (tmp_path / "empty.md").write_text("")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("x")
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules" / "y.js").write_text("y")
    (tmp_path / "link.md").symlink_to("/etc/hostname")
    assert [file.name for file in local(files_under([tmp_path]))] == ["a/x.md"]


def test_lease_goes_to_the_next_when_its_holder_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two services on one folder one ingests; the other takes over when the first is gone."""
    monkeypatch.setattr("lmtower.stores.lease.RETRY_SECONDS", 0.02)
    engine = connect(f"sqlite:///{tmp_path / 'c.db'}")
    first, second = Lease(engine, tmp_path / "lock"), Lease(engine, tmp_path / "lock")
    started = [threading.Event(), threading.Event()]
    first.when_held(started[0].set)
    second.when_held(started[1].set)
    assert (started[0].is_set(), started[1].wait(0.1)) == (True, False)
    first.release()
    assert started[1].wait(10)
    second.release()
    engine.dispose()


def test_contents_are_kept_once_and_leave_no_halves(tmp_path: Path) -> None:
    """The same bytes are one file; what was on its way when the process died is cleaned up at start."""
    blobs = Blobs(str(tmp_path / "files"), tmp_path / "spool")
    with blobs.put(io.BytesIO(b"content")) as (one, size), blobs.put(io.BytesIO(b"content")) as (other, _):
        assert (one, size) == (other, 7)
    (tmp_path / "spool" / "half").write_bytes(b"half")
    again = Blobs(str(tmp_path / "files"), tmp_path / "spool")
    assert list((tmp_path / "spool").iterdir()) == []
    assert b"".join(again.parts(one)) == b"content"
    for _ in range(2):
        again.delete(one, lambda _: False)
    assert [path for path in (tmp_path / "files").rglob("*") if path.is_file()] == []


def test_a_content_that_is_needed_or_arrives_is_not_deleted(tmp_path: Path) -> None:
    """Somebody deletes the last file of a content while another one with the same content is uploaded."""
    blobs = Blobs(str(tmp_path / "files"), tmp_path / "spool")
    needed: set[str] = set()
    with blobs.put(io.BytesIO(b"content")) as (one, _):
        blobs.delete(one, needed.__contains__)
        assert b"".join(blobs.parts(one)) == b"content"
        needed.add(one)
    blobs.delete(one, needed.__contains__)
    assert b"".join(blobs.parts(one)) == b"content"
    needed.clear()
    blobs.delete(one, needed.__contains__)
    with pytest.raises(FileNotFoundError):
        list(blobs.parts(one))


@pytest.mark.parametrize("name", ["a.txt", "sub/folder/a.txt", "ä ö.md", "..a", "a..b/c"])
def test_ordinary_names_are_kept(name: str) -> None:
    """A name that only looks strange is fine."""
    assert file_name(name) == name


@pytest.mark.parametrize("query", [{"limit": "0"}, {"limit": "x"}, {"order": "up"}, {"after": "a", "before": "b"}])
def test_bad_page_parameters_are_refused(query: dict[str, str]) -> None:
    """The parameter at fault is named."""
    with pytest.raises(ApiError) as caught:
        page_request(query)
    assert caught.value.param in (*query, "before")
