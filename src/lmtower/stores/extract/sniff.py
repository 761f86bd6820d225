"""What a file is: decided by its first bytes, checked against its name. A file whose name lies is refused."""

from __future__ import annotations

import zipfile
from pathlib import Path, PurePosixPath

from lmtower.stores.extract.document import Unreadable

OFFICE = {"word/": "docx", "ppt/": "pptx", "xl/": "xlsx"}
CODE = {
    ".py": "python",
    ".js": "javascript",
    ".mjs": "javascript",
    ".jsx": "javascript",
    ".ts": "typescript",
    ".tsx": "tsx",
    ".go": "go",
    ".rs": "rust",
    ".java": "java",
    ".c": "c",
    ".h": "c",
    ".cc": "cpp",
    ".cpp": "cpp",
    ".cxx": "cpp",
    ".hpp": "cpp",
}
_BY_NAME = {
    ".pdf": "pdf",
    ".docx": "docx",
    ".pptx": "pptx",
    ".xlsx": "xlsx",
    ".md": "markdown",
    ".markdown": "markdown",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".csv": "csv",
    ".tsv": "csv",
} | dict.fromkeys(CODE, "code")
_BINARY = ("pdf", "docx", "pptx", "xlsx")
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def sniff(path: Path, filename: str) -> str:
    """``pdf``, ``docx``, ``pptx``, ``xlsx``, ``html``, ``markdown``, ``csv``, ``code``, ``text``. Raises Unreadable."""
    with path.open("rb") as file:
        head = file.read(8192)
    named = _BY_NAME.get(PurePosixPath(filename).suffix.lower())
    found = _by_content(path, head)
    if found is None:
        if named in _BINARY:
            raise Unreadable(f"The file is named .{named}, but it is not one.")
        if named is None and head[:512].lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
            return "html"
        return named or "text"
    if named is not None and named != found:
        raise Unreadable(f"The file is named {PurePosixPath(filename).suffix}, but its content is {found}.")
    return found


def _by_content(path: Path, head: bytes) -> str | None:
    """A binary format, or None for text."""
    if head.startswith(b"%PDF-"):
        return "pdf"
    if head.startswith(_OLE):
        raise Unreadable(
            "Encrypted or old (before 2007) Office file. Save it as .docx, .pptx or .xlsx without a password."
        )
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _office(path)
    if not head.startswith(_UTF16) and b"\0" in head:
        raise Unreadable("Binary file of a kind that is not read.", "unsupported_file")
    return None


def _office(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError) as exc:
        raise Unreadable("The file is a broken archive.") from exc
    if "[Content_Types].xml" in names:
        for folder, kind in OFFICE.items():
            if any(name.startswith(folder) for name in names):
                return kind
    raise Unreadable("Archives are not read; add the files in it one by one.", "unsupported_file")
