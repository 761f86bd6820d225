"""What every format is turned into: sections of text with the page and the heading they stand under."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["text", "markdown", "rows", "code"]


class Unreadable(Exception):
    """The file cannot be used, and why, in words for the person who uploaded it.

    ``code`` is OpenAI's: ``unsupported_file`` (we do not read this kind) or ``invalid_file`` (this one is broken).
    """

    def __init__(self, message: str, code: str = "invalid_file") -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Limits:
    """What one document may cost. Seconds are enforced by the parent, memory by the kernel, the rest here."""

    pages: int = 5000
    seconds: float = 300.0
    memory_bytes: int = 2 * 1024**3
    characters: int = 64 * 1024**2
    chunks: int = 100_000


@dataclass(frozen=True, slots=True)
class Section:
    """A run of text that chunks do not cross: a PDF page, a slide, a sheet, or a whole text file."""

    text: str
    kind: Kind = "text"
    page: int | None = None
    heading: str = ""
    language: str = ""


@dataclass(slots=True)
class Document:
    """Sections in reading order. ``add`` keeps count, so that a bomb is refused while it goes off, not after."""

    limits: Limits
    sections: list[Section] = field(default_factory=list)
    characters: int = 0

    def add(self, section: Section) -> None:
        self.characters += len(section.text)
        if self.characters > self.limits.characters:
            raise Unreadable(f"The file holds more than {self.limits.characters:,} characters of text.")
        if section.text.strip():
            self.sections.append(section)
