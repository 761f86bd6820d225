"""Word, PowerPoint and Excel documents, read as headings, paragraphs, slides and rows."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from docx import Document as open_docx
from docx.table import Table
from pptx import Presentation
from pptx.shapes.base import BaseShape
from python_calamine import CalamineWorkbook

from lmtower.stores.extract.document import Document, Section, Unreadable

# Office XML compresses 5 to 20 fold; a bomb does so a thousand fold. Only the sizes that the archive admits to
# are looked at here: the memory limit of the process holds those that lie.
MAX_UNPACKED_BYTES = 1024**3
MAX_RATIO = 200


def refuse_bomb(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
    unpacked = sum(part.file_size for part in parts)
    if unpacked > MAX_UNPACKED_BYTES or unpacked > MAX_RATIO * max(path.stat().st_size, 4096) or len(parts) > 20_000:
        raise Unreadable(
            f"The archive unpacks to {unpacked:,} bytes from {path.stat().st_size:,}: refused as a zip bomb."
        )
    if any(part.flag_bits & 1 for part in parts):
        raise Unreadable("The file is encrypted. Remove the password first.")


def read_docx(path: Path, document: Document) -> None:
    refuse_bomb(path)
    lines: list[str] = []
    for item in open_docx(str(path)).iter_inner_content():
        if isinstance(item, Table):
            lines += [" | ".join(_cells(row.cells)) for row in item.rows]
            lines.append("")
            continue
        style = item.style.name if item.style is not None and item.style.name else ""
        level = _heading_level(style)
        lines += [f"{'#' * level} {item.text}" if level else item.text, ""]
    document.add(Section("\n".join(lines), kind="markdown"))


def _heading_level(style: str) -> int:
    if style == "Title":
        return 1
    if style.startswith("Heading ") and style[8:].isdigit():
        return min(int(style[8:]), 6)
    return 0


def _cells(cells: tuple[object, ...]) -> Iterator[str]:
    """Texts of a row; Word repeats a merged cell for each column that it spans."""
    last: object = None
    for cell in cells:
        element = getattr(cell, "_tc", cell)
        if element is not last:
            yield str(getattr(cell, "text", "")).replace("\n", " ")
        last = element


def read_pptx(path: Path, document: Document) -> None:
    refuse_bomb(path)
    slides = Presentation(str(path)).slides
    if len(slides) > document.limits.pages:
        raise Unreadable(f"{len(slides)} slides; at most {document.limits.pages} are read.")
    for number, slide in enumerate(slides, start=1):
        title = slide.shapes.title.text_frame.text if slide.shapes.title is not None else ""
        texts = [text for shape in slide.shapes for text in _shape_texts(shape)]
        if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
            texts.append(slide.notes_slide.notes_text_frame.text)
        document.add(Section("\n\n".join(filter(None, texts)), page=number, heading=title.strip()))


def _shape_texts(shape: BaseShape) -> Iterator[str]:
    if shape.has_text_frame:
        yield shape.text_frame.text  # type: ignore[attr-defined]
    elif getattr(shape, "has_table", False):
        for row in shape.table.rows:  # type: ignore[attr-defined]
            yield " | ".join(cell.text for cell in row.cells)
    else:
        for inner in getattr(shape, "shapes", ()):
            yield from _shape_texts(inner)


def read_xlsx(path: Path, document: Document) -> None:
    refuse_bomb(path)
    with CalamineWorkbook.from_path(str(path)) as workbook:
        for name in workbook.sheet_names:
            rows = workbook.get_sheet_by_name(name).to_python()
            document.add(Section("\n".join(row_lines(rows)), kind="rows", heading=name))


def row_lines(rows: Sequence[Sequence[object]]) -> Iterator[str]:
    """One line a row, each value with the name of its column, so that a chunk from the middle makes sense."""
    header: list[str] | None = None
    for row in rows:
        values = [str(value).strip().replace("\n", " ") for value in row]
        if header is None:
            if any(values):
                header = values
            continue
        columns = header + [""] * (len(values) - len(header))
        pairs = zip(columns, values, strict=False)
        named = [f"{column}: {value}" if column else value for column, value in pairs if value]
        if named:
            yield "; ".join(named)
    # a sheet of one line is that line
    if header is not None and len(rows) == 1:
        yield "; ".join(filter(None, header))
