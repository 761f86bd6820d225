"""PDF pages and HTML pages."""

from __future__ import annotations

import html.parser
import re
from pathlib import Path

import pypdfium2

from lmtower.stores.extract.document import Document, Section, Unreadable

_HYPHEN = re.compile("\ufffe\\s*|\u00ad")
_BLANKS = re.compile(r"[ \t\r\f\v]+")


def read_pdf(path: Path, document: Document) -> None:
    try:
        pdf = pypdfium2.PdfDocument(path)
    except pypdfium2.PdfiumError as exc:
        if "password" in str(exc).lower():
            raise Unreadable("The PDF is encrypted. Remove the password first.") from exc
        raise Unreadable("The PDF is broken and cannot be opened.") from exc
    if len(pdf) > document.limits.pages:
        raise Unreadable(f"{len(pdf)} pages; at most {document.limits.pages} are read.")
    for index in range(len(pdf)):
        try:
            page = pdf[index]
            text = page.get_textpage().get_text_range()
        except pypdfium2.PdfiumError as exc:
            raise Unreadable(f"Page {index + 1} of the PDF is broken.") from exc
        # PDFium marks a hyphen at a line end with U+FFFE: the word goes on in the next line
        document.add(Section(_HYPHEN.sub("", text).replace("\r\n", "\n"), page=index + 1))
        page.close()
    if len(pdf) and not document.sections:
        raise Unreadable("The PDF holds pictures of text only (a scan). Run OCR over it first.")


class _Reader(html.parser.HTMLParser):
    """HTML as Markdown of headings, paragraphs, list items, table rows and preformatted text.

    The parser of the standard library keeps no tree and does not recurse: nesting costs it nothing, however deep.
    """

    BLOCKS = frozenset(
        (
            "p",
            "div",
            "section",
            "article",
            "main",
            "header",
            "footer",
            "ul",
            "ol",
            "table",
            "tr",
            "br",
            "hr",
            "dl",
            "dt",
        )
    ) | {"dd", "blockquote", "figure", "figcaption", "form", "address"}
    SILENT = frozenset(("script", "style", "noscript", "template", "svg", "head", "nav", "iframe"))

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.silent: list[str] = []
        self.pre = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self.silent or tag in self.SILENT:
            # only what can be closed again may open a silent part: an unclosed <nav> must not eat the page
            if tag in self.SILENT and len(self.silent) < 64:
                self.silent.append(tag)
            return
        if len(tag) == 2 and tag[0] == "h" and tag[1] in "123456":
            self.parts.append(f"\n\n{'#' * int(tag[1])} ")
        elif tag == "pre":
            self.pre += 1
            self.parts.append("\n\n```\n")
        elif tag == "li":
            self.parts.append("\n- ")
        elif tag in ("td", "th"):
            self.parts.append(" | ")
        elif tag in self.BLOCKS:
            self.parts.append("\n" if tag in ("tr", "br", "dt", "dd") else "\n\n")

    def handle_endtag(self, tag: str) -> None:
        if self.silent:
            if tag in self.silent:
                del self.silent[self.silent.index(tag) :]
            elif tag in ("body", "html", "main", "article"):
                self.silent.clear()
            return
        if tag == "pre" and self.pre:
            self.pre -= 1
            self.parts.append("\n```\n\n")
        elif tag in self.BLOCKS or (len(tag) == 2 and tag[0] == "h" and tag[1] in "123456"):
            self.parts.append("\n\n")

    def handle_data(self, data: str) -> None:
        if not self.silent:
            self.parts.append(data if self.pre else _BLANKS.sub(" ", data.replace("\n", " ")))


def read_html(text: str, document: Document) -> None:
    reader = _Reader()
    reader.feed(text)
    reader.close()
    joined = re.sub(r"[ \t]+\n", "\n", "".join(reader.parts))
    document.add(Section(re.sub(r"\n{3,}", "\n\n", joined).strip(), kind="markdown"))
