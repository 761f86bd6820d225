"""One file on disk to a Document. Runs only in the extraction process, never in the service."""

from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path, PurePosixPath
from xml.parsers.expat import ExpatError

from docx.opc.exceptions import PackageNotFoundError as DocxNotFound
from lxml.etree import LxmlError
from pptx.exc import PackageNotFoundError as PptxNotFound
from python_calamine import CalamineError

from lmtower.stores.extract.document import Document, Limits, Section, Unreadable
from lmtower.stores.extract.office import read_docx, read_pptx, read_xlsx, row_lines
from lmtower.stores.extract.page import read_html, read_pdf
from lmtower.stores.extract.sniff import CODE, sniff

_BROKEN = (
    zipfile.BadZipFile,
    DocxNotFound,
    PptxNotFound,
    LxmlError,
    ExpatError,
    CalamineError,
    KeyError,
    ValueError,
    AttributeError,
    IndexError,
    TypeError,
    NotImplementedError,
    RecursionError,
    OSError,
)


def read(path: Path, filename: str, limits: Limits) -> Document:
    """Raises Unreadable with a reason, MemoryError when the process is at its limit."""
    document = Document(limits)
    kind = sniff(path, filename)
    try:
        _read(kind, path, filename, document)
    except _BROKEN as exc:
        # what the format libraries raise on damaged input is not documented; the list is what fuzzing showed
        raise Unreadable(f"The {kind} file is broken: {type(exc).__name__}.") from exc
    if not document.sections:
        raise Unreadable("There is no text in the file.")
    return document


def _read(kind: str, path: Path, filename: str, document: Document) -> None:
    if kind == "pdf":
        read_pdf(path, document)
    elif kind == "docx":
        read_docx(path, document)
    elif kind == "pptx":
        read_pptx(path, document)
    elif kind == "xlsx":
        read_xlsx(path, document)
    elif path.stat().st_size > 4 * document.limits.characters:
        raise Unreadable(f"The file holds more than {document.limits.characters:,} characters of text.")
    else:
        _read_text(kind, decode(path.read_bytes()), filename, document)


def _read_text(kind: str, text: str, filename: str, document: Document) -> None:
    suffix = PurePosixPath(filename).suffix.lower()
    if kind == "html":
        read_html(text, document)
    elif kind == "csv":
        rows = csv.reader(io.StringIO(text), delimiter="\t" if suffix == ".tsv" else _delimiter(text))
        document.add(Section("\n".join(row_lines([list(row) for row in rows])), kind="rows"))
    elif kind == "markdown":
        document.add(Section(text, kind="markdown"))
    elif kind == "code":
        document.add(Section(text, kind="code", language=CODE[suffix]))
    else:
        document.add(Section(text))


def _delimiter(text: str) -> str:
    first = text.partition("\n")[0]
    return max(",;\t|", key=first.count)


def decode(data: bytes) -> str:
    """UTF-8, UTF-16 with its mark, else Windows-1252, where every byte is a character. Newlines become ``\\n``."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = data.decode("utf-16", errors="replace")
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = data.decode("cp1252", errors="replace")
    if "\0" in text:
        raise Unreadable("Binary file of a kind that is not read.", "unsupported_file")
    return text.replace("\r\n", "\n").replace("\r", "\n")
