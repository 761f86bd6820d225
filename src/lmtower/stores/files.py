"""``/v1/files``: what clients uploaded, kept once per content."""

from __future__ import annotations

from typing import IO

import anyio.to_thread
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Receive

from lmtower.stores import shapes
from lmtower.stores.access import Caller, Record
from lmtower.stores.call import Call, Handler, reply
from lmtower.stores.faults import ApiError, invalid
from lmtower.stores.requests import Purpose, file_name
from lmtower.stores.service import Service

_OVERHEAD_BYTES = 64 * 1024
_PURPOSES = Purpose.__args__  # type: ignore[attr-defined]


async def upload(service: Service, caller: Caller, request: Request) -> Response:
    limit = service.settings.max_file_bytes
    announced = request.headers.get("content-length", "0")
    if announced.isdigit() and int(announced) > limit + _OVERHEAD_BYTES:
        raise _too_large(limit)
    bounded = Request(request.scope, _bounded(request.receive, limit))
    try:
        async with bounded.form(max_files=1, max_fields=20) as form:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise invalid("file: is missing. Send it as multipart/form-data.", "file")
            name = file_name(file.filename)
            purpose = str(form.get("purpose", ""))
            if purpose not in _PURPOSES:
                raise invalid(f"purpose: must be one of {', '.join(_PURPOSES)}.", "purpose")
            ttl = _ttl(str(form.get("expires_after[seconds]", "")))
            if (file.size or 0) > limit:
                raise _too_large(limit)
            row = await anyio.to_thread.run_sync(_keep, service, caller, file.file, name, purpose, ttl)
    except (MultiPartException, HTTPException) as exc:
        raise invalid(
            f"The form cannot be read: {exc.detail if isinstance(exc, HTTPException) else exc.message}"
        ) from exc
    return reply(shapes.file(row))


def _keep(service: Service, caller: Caller, file: IO[bytes], name: str, purpose: str, ttl: int | None) -> Record:
    with service.blobs.put(file) as (sha256, size):
        return service.catalogue.add_file(caller, name, purpose, size, sha256, ttl)


def _bounded(receive: Receive, limit: int) -> Receive:
    """A client that announces no length, or lies about it, is cut off as well."""
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > limit + _OVERHEAD_BYTES:
            raise _too_large(limit)
        return message

    return counted


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"The file is larger than {limit:,} bytes.", code="file_too_large", param="file")


def _ttl(seconds: str) -> int | None:
    if not seconds:
        return None
    if not seconds.isdigit() or not 3600 <= int(seconds) <= 2_592_000:
        raise invalid("expires_after[seconds]: must be from 3600 to 2592000.", "expires_after")
    return int(seconds)


def list_files(call: Call) -> Response:
    page = call.service.catalogue.files(call.caller, call.page, call.query.get("purpose"))
    return reply(shapes.page(page, [shapes.file(row) for row in page.rows]))


def get_file(call: Call) -> Response:
    return reply(shapes.file(call.service.catalogue.file(call.caller, call.path["file_id"])))


def content(call: Call) -> Response:
    row = call.service.catalogue.file(call.caller, call.path["file_id"])
    # never shown by a browser as what it claims to be
    headers = {
        "content-length": str(row.bytes),
        "content-disposition": "attachment",
        "x-content-type-options": "nosniff",
    }
    return StreamingResponse(call.service.blobs.parts(row.sha256), 200, headers, "application/octet-stream")


def delete_file(call: Call) -> Response:
    file_id = call.path["file_id"]
    content = call.service.catalogue.delete_file(call.caller, file_id)
    call.service.blobs.delete(content, call.service.catalogue.needs)
    call.service.pipeline.poke()
    return reply(shapes.deleted(file_id, "file"))


ROUTES: list[tuple[str, str, Handler]] = [
    ("GET", "/files", list_files),
    ("GET", "/files/{file_id}", get_file),
    ("GET", "/files/{file_id}/content", content),
    ("DELETE", "/files/{file_id}", delete_file),
]
