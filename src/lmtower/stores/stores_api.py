"""``/v1/vector_stores``: stores, the files in them, and batches of files."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import Row
from starlette.responses import Response

from lmtower.stores import shapes
from lmtower.stores.call import Call, Handler, polled, reply
from lmtower.stores.faults import invalid
from lmtower.stores.requests import AttachFile, CreateBatch, CreateStore, UpdateFile, UpdateStore
from lmtower.stores.schema import ENTRIES
from lmtower.stores.vectors import table_name


def _shape(call: Call, row: Row[Any]) -> dict[str, Any]:
    catalogue = call.service.catalogue
    counts, usage_bytes = catalogue.counts(ENTRIES.c.store_id == row.id)
    own = call.caller.operator or row.client == call.caller.client
    return shapes.store(row, counts, usage_bytes, expired=catalogue.expired(row), own=own)


def create(call: Call) -> Response:
    body = call.parse(CreateStore)
    items = [AttachFile(one, None, body.chunking_strategy).values() for one in body.file_ids]
    for item in items:
        call.service.catalogue.file(call.caller, item["file_id"])
    values = {
        "name": body.name,
        "description": body.description,
        "metadata": body.metadata or {},
        "shared_with": body.shared_with,
        "expires_days": body.expires_after.days if body.expires_after else None,
    }
    row = call.service.catalogue.create_store(call.caller, values)
    if items:
        call.service.catalogue.attach(call.caller, row.id, items, batch=False)
        call.service.pipeline.poke()
    return reply(_shape(call, row))


def listing(call: Call) -> Response:
    page = call.service.catalogue.stores(call.caller, call.page)
    return reply(shapes.page(page, [_shape(call, row) for row in page.rows]))


def get(call: Call) -> Response:
    return polled(_shape(call, call.service.catalogue.store(call.caller, call.path["store_id"])))


def change(call: Call) -> Response:
    body = call.parse(UpdateStore)
    values: dict[str, Any] = {}
    if body.name is not msgspec.UNSET:
        values["name"] = body.name or ""
    if body.metadata is not msgspec.UNSET:
        values["metadata"] = body.metadata or {}
    if body.shared_with is not msgspec.UNSET:
        values["shared_with"] = body.shared_with
    if body.expires_after is not msgspec.UNSET:
        values["expires_days"] = body.expires_after.days if body.expires_after else None
    return reply(_shape(call, call.service.catalogue.update_store(call.caller, call.path["store_id"], values)))


def remove(call: Call) -> Response:
    call.service.catalogue.delete_store(call.caller, call.path["store_id"])
    call.service.pipeline.poke()
    return reply(shapes.deleted(call.path["store_id"], "vector_store"))


def rebuild(call: Call) -> Response:
    """Not OpenAI's: what ``lmtower store rebuild`` calls after the embedding model was changed."""
    row = call.service.catalogue.rebuild(call.caller, call.path["store_id"])
    call.service.pipeline.poke()
    return reply(_shape(call, row))


def progress(call: Call) -> Response:
    """Not OpenAI's: what the progress bars of the CLI and the console show."""
    catalogue = call.service.catalogue
    store = catalogue.store(call.caller, call.path["store_id"])
    row = catalogue.progress(store.id)
    values = {name: int(value or 0) for name, value in row._mapping.items()}
    return reply(values | {"trouble": call.service.pipeline.trouble_of(store.client)})


# -- files in a store


def attach(call: Call) -> Response:
    item = call.parse(AttachFile).values()
    call.service.catalogue.attach(call.caller, call.path["store_id"], [item], batch=False)
    call.service.pipeline.poke()
    row = call.service.catalogue.entry(call.caller, call.path["store_id"], item["file_id"])
    return reply(shapes.store_file(row))


def entries(call: Call) -> Response:
    status = call.query.get("filter")
    if status is not None and status not in shapes.STATUSES:
        raise invalid(f"filter: must be one of {', '.join(shapes.STATUSES)}.", "filter")
    batch_id = call.path.get("batch_id")
    if batch_id is not None:
        call.service.catalogue.batch(call.caller, call.path["store_id"], batch_id)
    page = call.service.catalogue.entries(call.caller, call.path["store_id"], call.page, status, batch_id)
    return reply(shapes.page(page, [shapes.store_file(row) for row in page.rows]))


def entry(call: Call) -> Response:
    row = call.service.catalogue.entry(call.caller, call.path["store_id"], call.path["file_id"])
    return polled(shapes.store_file(row))


def change_entry(call: Call) -> Response:
    attributes = call.parse(UpdateFile).attributes or {}
    path = call.path
    row = call.service.catalogue.update_entry(call.caller, path["store_id"], path["file_id"], attributes)
    return reply(shapes.store_file(row))


def detach(call: Call) -> Response:
    call.service.catalogue.detach(call.caller, call.path["store_id"], call.path["file_id"])
    call.service.pipeline.poke()
    return reply(shapes.deleted(call.path["file_id"], "vector_store.file"))


def entry_content(call: Call) -> Response:
    """The text as it was read and cut."""
    catalogue = call.service.catalogue
    store = catalogue.store(call.caller, call.path["store_id"])
    row = catalogue.entry(call.caller, store.id, call.path["file_id"])
    texts = call.service.vectors.texts(table_name(store.id, store.generation), row.seq)
    data = [{"type": "text", "text": text} for text in texts]
    return reply({"object": "vector_store.file_content.page", "data": data, "has_more": False, "next_page": None})


# -- batches


def create_batch(call: Call) -> Response:
    items = call.parse(CreateBatch).items()
    row = call.service.catalogue.attach(call.caller, call.path["store_id"], items, batch=True)
    assert row is not None
    call.service.pipeline.poke()
    return reply(_batch(call, row))


def get_batch(call: Call) -> Response:
    row = call.service.catalogue.batch(call.caller, call.path["store_id"], call.path["batch_id"])
    return polled(_batch(call, row))


def cancel_batch(call: Call) -> Response:
    row = call.service.catalogue.cancel_batch(call.caller, call.path["store_id"], call.path["batch_id"])
    return reply(_batch(call, row))


def _batch(call: Call, row: Row[Any]) -> dict[str, Any]:
    return shapes.batch(row, call.service.catalogue.counts(ENTRIES.c.batch_id == row.id)[0])


_STORE = "/vector_stores/{store_id}"
ROUTES: list[tuple[str, str, Handler]] = [
    ("POST", "/vector_stores", create),
    ("GET", "/vector_stores", listing),
    ("GET", _STORE, get),
    ("POST", _STORE, change),
    ("DELETE", _STORE, remove),
    ("POST", f"{_STORE}/rebuild", rebuild),
    ("GET", f"{_STORE}/progress", progress),
    ("POST", f"{_STORE}/files", attach),
    ("GET", f"{_STORE}/files", entries),
    ("GET", f"{_STORE}/files/{{file_id}}", entry),
    ("POST", f"{_STORE}/files/{{file_id}}", change_entry),
    ("DELETE", f"{_STORE}/files/{{file_id}}", detach),
    ("GET", f"{_STORE}/files/{{file_id}}/content", entry_content),
    ("POST", f"{_STORE}/file_batches", create_batch),
    ("GET", f"{_STORE}/file_batches/{{batch_id}}", get_batch),
    ("POST", f"{_STORE}/file_batches/{{batch_id}}/cancel", cancel_batch),
    ("GET", f"{_STORE}/file_batches/{{batch_id}}/files", entries),
]
