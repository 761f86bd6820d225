"""Sections to chunks: cut by tokens along the structure of the text, each with where it came from.

Tokens are counted with the o200k vocabulary that ``semantic-text-splitter`` carries inside (nothing is downloaded).
An embedding model counts a little differently; the service leaves it room (``settings.chunk_tokens``).
"""

from __future__ import annotations

import hashlib
import importlib
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from semantic_text_splitter import CodeSplitter, MarkdownSplitter, TextSplitter

from lmtower.stores.extract.document import Document, Section, Unreadable

COUNTER = "gpt-4o"
_HEADING = re.compile(r"^(#{1,6})[ \t]+(.+?)[ \t#]*$")
_FENCE = re.compile(r"^[ \t]*(```|~~~)")
_DEFINITION = re.compile(
    r"^([ \t]*)"
    r"(?:(?:export|default|public|private|protected|static|abstract|final|async|pub(?:\([a-z]+\))?|unsafe)\s+)*"
    r"(?:def|class|fn|func|function|struct|enum|trait|impl|interface|type|namespace)\s+"
    r"(?:\([^)]*\)\s*)?([A-Za-z_$][\w$]*(?:::\w+)*)"
)
_GRAMMARS = {
    "tsx": ("tree_sitter_typescript", "language_tsx"),
    "typescript": ("tree_sitter_typescript", "language_typescript"),
}


@dataclass(frozen=True, slots=True)
class Chunk:
    """``text[lead:]`` stands in the document at characters ``start`` to ``end``; before it stands its heading path."""

    number: int
    text: str
    lead: int
    page: int | None
    heading: str
    start: int
    end: int
    tokens: int
    hash: str


class Chunker:
    """Keeps the splitters of one chunk size, because building one costs 0.3 s (the vocabulary)."""

    def __init__(self, chunk_tokens: int, overlap_tokens: int) -> None:
        self._size = size = (chunk_tokens, overlap_tokens)
        self._text = TextSplitter.from_tiktoken_model(COUNTER, *size)
        self._markdown = MarkdownSplitter.from_tiktoken_model(COUNTER, *size)
        self._code: dict[str, CodeSplitter] = {}

    def chunks(self, document: Document) -> Iterator[Chunk]:
        number = 0
        base = 0
        for section in document.sections:
            outline = outline_of(section)
            for offset, text in self._split(section):
                if number >= document.limits.chunks:
                    raise Unreadable(f"More than {document.limits.chunks:,} chunks.")
                heading = heading_at(outline, offset, section.heading)
                yield _chunk(number, text, section.page, heading, base + offset)
                number += 1
            base += len(section.text) + 2

    def _split(self, section: Section) -> list[tuple[int, str]]:
        if section.kind == "markdown":
            return self._markdown.chunk_indices(section.text)
        if section.kind == "code":
            return self._code_splitter(section.language).chunk_indices(section.text)
        return self._text.chunk_indices(section.text)

    def _code_splitter(self, language: str) -> CodeSplitter:
        if language not in self._code:
            module, function = _GRAMMARS.get(language, (f"tree_sitter_{language}", "language"))
            grammar: Callable[[], object] = getattr(importlib.import_module(module), function)
            self._code[language] = CodeSplitter.from_tiktoken_model(grammar(), COUNTER, *self._size)
        return self._code[language]


def _chunk(number: int, text: str, page: int | None, heading: str, start: int) -> Chunk:
    own_words = heading and not text.lstrip("# \t").startswith(heading.rpartition(" > ")[2])
    lead = f"{heading}\n\n" if own_words else ""
    body = lead + text
    digest = hashlib.sha256(body.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    # four characters a token is close enough for usage; the gateway counts what the engine really read
    return Chunk(number, body, len(lead), page, heading, start, start + len(text), max(1, len(body) // 4), digest)


def outline_of(section: Section) -> list[tuple[int, str]]:
    """Where the heading path changes and the path from there on: ``[(0, ''), (12, 'Install > Linux')]``."""
    if section.kind == "markdown":
        return _outline(section.text, _markdown_level)
    if section.kind == "code":
        return _outline(section.text, _definition_level)
    return [(0, "")]


def heading_at(outline: list[tuple[int, str]], offset: int, section_heading: str) -> str:
    path = outline[bisect_right(outline, offset, key=lambda item: item[0]) - 1][1]
    return " > ".join(filter(None, (section_heading, path)))[:512]


def _markdown_level(line: str) -> tuple[int, str] | None:
    match = _HEADING.match(line)
    return (len(match[1]), match[2].strip()) if match else None


def _definition_level(line: str) -> tuple[int, str] | None:
    match = _DEFINITION.match(line)
    return (len(match[1].expandtabs(4)), match[2]) if match else None


def _outline(text: str, level_of: Callable[[str], tuple[int, str] | None]) -> list[tuple[int, str]]:
    outline = [(0, "")]
    stack: list[tuple[int, str]] = []
    offset = 0
    fenced = False
    for line in text.splitlines(keepends=True):
        if level_of is _markdown_level and _FENCE.match(line):
            fenced = not fenced
        found = None if fenced else level_of(line.rstrip("\n"))
        if found:
            while stack and stack[-1][0] >= found[0]:
                stack.pop()
            stack.append(found)
            outline.append((offset, " > ".join(title for _, title in stack)))
        offset += len(line)
    return outline
