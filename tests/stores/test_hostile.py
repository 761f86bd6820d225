"""Hostile and broken files: refused with a reason, in bounded time and memory, and the next file is read as ever."""

from __future__ import annotations

import io
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmtower.stores.extract import Extractor, Limits, Unreadable
from tests.stores.conftest import Running
from tests.stores.documents import docx, pdf, pptx, xlsx

LIMITS = Limits(pages=20, seconds=15, memory_bytes=512 * 1024**2, characters=1_000_000)


@pytest.fixture(scope="module")
def extractor() -> Iterator[Extractor]:
    """One child for all, as in the service: what a file does to it must not harm the next."""
    extractor = Extractor(LIMITS)
    yield extractor
    extractor.close()


def archive(*parts: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file:
        for name, data in parts:
            file.writestr(name, data)
    return buffer.getvalue()


def bomb() -> bytes:
    """A .docx of a few hundred kilobytes whose text is 300 MB."""
    return archive(("[Content_Types].xml", b"<Types/>"), ("word/document.xml", b"\0" * 300_000_000))


def lying_bomb() -> bytes:
    """The same, but its directory says that it unpacks to 100 bytes."""
    data = bytearray(bomb())
    size = (300_000_000).to_bytes(4, "little")
    while (place := data.find(size)) >= 0:
        data[place : place + 4] = (100).to_bytes(4, "little")
    return bytes(data)


def pdf_bomb() -> bytes:
    """A PDF of a megabyte whose one page unpacks to a gigabyte."""
    stream = zlib.compress(b"BT (" + b"A" * 2**20 + b") Tj ET ", 9)
    deflate = zlib.compressobj(9)
    page = b"".join(deflate.compress(b"BT (" + b"A" * 2**20 + b") Tj ET ") for _ in range(1024)) + deflate.flush()
    assert len(stream) < len(page)
    return pdf([], raw=b"<< /Filter /FlateDecode /Length %d >>\nstream\n%s\nendstream" % (len(page), page))


CASES: dict[str, tuple[str, bytes, str]] = {
    "zip bomb": ("a.docx", bomb(), "zip bomb"),
    "zip bomb that lies": ("a.docx", lying_bomb(), "broken|memory|longer"),
    "zip of zips": ("a.zip", archive(("b.zip", archive(("c.txt", b"x")))), "Archives are not read"),
    "pdf named text": ("a.csv", pdf(["hello"]), "named .csv, but its content is pdf"),
    "text named pdf": ("a.pdf", b"just words", "named .pdf, but it is not one"),
    "docx named xlsx": ("a.xlsx", docx(["hello"]), "content is docx"),
    "executable": ("a.txt", b"\x7fELF\0\0\0\0", "Binary file"),
    "picture": ("a.md", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "Binary file"),
    "encrypted office": ("a.docx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600, "Encrypted or old"),
    "encrypted pdf": ("a.pdf", pdf(["secret"], password="x"), "encrypted"),
    "broken pdf": ("a.pdf", pdf(["hello"])[:200], "broken"),
    "broken docx": ("a.docx", docx(["hello"])[:1000], "broken"),
    "many pages": ("a.pdf", pdf(["x"] * 30), "30 pages; at most 20"),
    "scan": ("a.pdf", pdf([""]), "OCR"),
    "empty": ("a.txt", b" \n ", "no text"),
    "too much text": ("a.txt", b"word " * 300_000, "more than 1,000,000 characters"),
    "xml entities": ("a.docx", archive(
        ("[Content_Types].xml", b"<Types/>"),
        ("word/document.xml", b'<!DOCTYPE a [<!ENTITY b "x">' + b'<!ENTITY c "&b;&b;">' + b"]><a>&c;</a>"),
    ), "broken"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_hostile_file_is_refused_with_a_reason(case: str, tmp_path: Path, extractor: Extractor) -> None:
    """Each is refused in words, within its limits, and a good file is read right after."""
    name, data, words = CASES[case]
    path = tmp_path / "content"
    path.write_bytes(data)
    started = time.monotonic()
    with pytest.raises(Unreadable, match=words):
        extractor.extract(path, name, 200, 0)
    assert time.monotonic() - started < LIMITS.seconds + 10
    path.write_bytes(b"A good text.")
    assert extractor.extract(path, "good.txt", 200, 0)[0].text == "A good text."


def test_pdf_that_unpacks_to_a_gigabyte_does_no_harm(tmp_path: Path, extractor: Extractor) -> None:
    """Whether it is refused or read in part, the service lives and memory stays bounded."""
    path = tmp_path / "content"
    path.write_bytes(pdf_bomb())
    with pytest.raises(Unreadable):
        extractor.extract(path, "a.pdf", 200, 0)
    path.write_bytes(b"A good text.")
    assert extractor.extract(path, "good.txt", 200, 0)[0].text == "A good text."


def test_html_nested_without_end_is_read(tmp_path: Path, extractor: Extractor) -> None:
    """Depth costs nothing: the text inside is found."""
    path = tmp_path / "content"
    path.write_bytes(b"<div>" * 300_000 + b"inside" + b"</div>" * 300_000)
    assert extractor.extract(path, "a.html", 200, 0)[0].text == "inside"


def test_a_file_that_takes_too_long_is_killed(tmp_path: Path) -> None:
    """A child that does not answer in time is killed, and the next file gets a new one."""
    path = tmp_path / "content"
    path.write_bytes(b"word " * 3_000_000)
    slow = Extractor(Limits(seconds=1.0, characters=10**9))
    with pytest.raises(Unreadable, match="longer than 1 s"):
        slow.extract(path, "a.txt", 200, 0)
    slow.close()


@pytest.mark.parametrize(
    "name", ["../etc/passwd", "a/../../b", "/etc/passwd", "..", "", "a\x00b", "a\nb", "C:/x", "x" * 2000]
)
def test_names_that_leave_the_folder_are_refused(running: Running, name: str) -> None:
    """A name is checked before anything is kept."""
    with running.http("ada") as http:
        boundary = "xyz"
        body = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nassistants\r\n--{boundary}\r\n'
            f'Content-Disposition: form-data; name="file"; filename="{name}"\r\n\r\ndata\r\n--{boundary}--\r\n'
        )
        headers = {"content-type": f"multipart/form-data; boundary={boundary}"}
        reply = http.post("/v1/files", content=body.encode(), headers=headers)
        assert (reply.status_code, reply.json()["error"]["type"]) == (400, "invalid_request_error")
        assert http.get("/v1/files").json()["data"] == []


def test_too_large_upload_is_cut_off(running: Running) -> None:
    """413 both for a client that announces the length and for one that does not."""

    def endless() -> Iterator[bytes]:
        yield b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="a.pdf"\r\n\r\n%PDF-1.7'
        for _ in range(64):
            yield b"\0" * 65536

    with running.http("ada") as http:
        announced = http.post(
            "/v1/files", files={"file": ("a.pdf", b"\0" * 3 * 1024**2)}, data={"purpose": "assistants"}
        )
        assert (announced.status_code, announced.json()["error"]["code"]) == (413, "file_too_large")
        headers = {"content-type": "multipart/form-data; boundary=xyz"}
        streamed = http.post("/v1/files", content=endless(), headers=headers)
        assert (streamed.status_code, streamed.json()["error"]["code"]) == (413, "file_too_large")
        assert http.get("/v1/files").json()["data"] == []


def test_good_documents_of_every_kind_are_read(tmp_path: Path, extractor: Extractor) -> None:
    """PDF pages, Word headings, slides, sheets, CSV and HTML keep their text and where it stands."""
    files = {
        "a.pdf": (pdf(["First page about apples.", "Second page about pears."]), "pears", 2, ""),
        "a.docx": (docx(["# Fruit", "Plums are blue."]), "Plums", None, "Fruit"),
        "a.pptx": (pptx([("Budget", "We spend less.")]), "spend less", 1, "Budget"),
        "a.xlsx": (xlsx({"Prices": [["fruit", "price"], ["kiwi", "3"]]}), "fruit: kiwi; price: 3", None, "Prices"),
        "a.csv": (b"name;age\nAda;36\n", "name: Ada; age: 36", None, ""),
        "a.html": (b"<html><h2>Top</h2><p>Some <i>text</i></p><table><tr><td>x<td>y</table>", "Some text", None, "Top"),
        "latin.txt": ("Gr\xfc\xdfe".encode("cp1252"), "Gr\xfc\xdfe", None, ""),
        "utf16.txt": ("Gr\xfc\xdfe".encode("utf-16"), "Gr\xfc\xdfe", None, ""),
    }
    for name, (data, words, page, heading) in files.items():
        (tmp_path / "content").write_bytes(data)
        found = [chunk for chunk in extractor.extract(tmp_path / "content", name, 200, 0) if words in chunk.text]
        assert [(name, chunk.page, chunk.heading) for chunk in found] == [(name, page, heading)]
