"""Chunks: sizes, offsets, headings, pages."""

from __future__ import annotations

import pytest

from lmtower.stores.extract.chunk import Chunk, Chunker
from lmtower.stores.extract.document import Document, Limits, Section, Unreadable

MARKDOWN = """# Install

Intro words here.

## Linux

Use the package manager of your system.

```sh
# not a heading
apt install thing
```

## Mac

Use brew, the package manager that many people on this system have installed already.
"""
PYTHON = '''import os


class Store:
    """A store."""

    def add(self, text):
        return text * 2

    def remove(self, text):
        return None


def main():
    store = Store()
    print("hello", store.add("some text"), store.remove("other text"))
'''


def chunks(*sections: Section, size: int = 100, overlap: int = 0, limits: Limits | None = None) -> list[Chunk]:
    document = Document(limits or Limits())
    for section in sections:
        document.add(section)
    return list(Chunker(size, overlap).chunks(document))


def test_offsets_point_to_the_text_of_the_document() -> None:
    """Each chunk without its lead stands in the document exactly where it says."""
    sections = [Section(MARKDOWN, kind="markdown"), Section("Page two. " * 80, page=2)]
    text = "\n\n".join(section.text for section in sections)
    found = chunks(*sections, size=30)
    assert len(found) > 5
    assert all(text[chunk.start : chunk.end] == chunk.text[chunk.lead :] for chunk in found)
    assert [chunk.number for chunk in found] == list(range(len(found)))


def test_heading_path_of_markdown_ignores_comments_in_code() -> None:
    """The path is that of the headings above; a comment in a code block is none."""
    found = chunks(Section(MARKDOWN, kind="markdown"), size=20)
    by_words = {
        word: chunk.heading for chunk in found for word in ("apt install", "brew", "Intro") if word in chunk.text
    }
    assert by_words == {"apt install": "Install > Linux", "brew": "Install > Mac", "Intro": "Install"}


def test_code_is_cut_at_definitions_and_knows_its_class() -> None:
    """A method's chunk carries the class and the method in its path."""
    found = chunks(Section(PYTHON, kind="code", language="python"), size=20)
    headings = {chunk.heading for chunk in found}
    assert {"Store > remove", "main"} <= headings


@pytest.mark.parametrize("language", ["python", "javascript", "typescript", "tsx", "go", "rust", "java", "c", "cpp"])
def test_every_language_has_a_grammar(language: str) -> None:
    """Each language that file names lead to can be cut."""
    assert chunks(Section("int main() { return 0; }\n", kind="code", language=language))


def test_lead_repeats_a_heading_only_when_it_is_not_there_already() -> None:
    """A chunk that begins with its heading gets no second one; the next chunk of that heading does."""
    found = chunks(Section("# Animals\n\n" + "Cats sleep a lot. " * 60, kind="markdown"), size=60)
    assert (found[0].lead, found[0].text.startswith("# Animals")) == (0, True)
    assert found[1].text.startswith("Animals\n\nCats sleep")


def test_page_and_sheet_are_kept() -> None:
    """A chunk knows the page or the sheet it comes from."""
    found = chunks(Section("Slide text", page=3, heading="Budget"))
    assert (found[0].page, found[0].heading) == (3, "Budget")


def test_same_text_has_the_same_hash_wherever_it_stands() -> None:
    """The hash is of what is embedded, so equal chunks are embedded once."""
    one, other = chunks(Section("Same words.", page=1), Section("Same words.", page=2))
    assert one.hash == other.hash


def test_too_many_chunks_are_refused() -> None:
    """A document that would become more chunks than allowed is refused as a whole."""
    with pytest.raises(Unreadable, match="More than 3 chunks"):
        chunks(Section("Words and words. " * 500), size=100, limits=Limits(chunks=3))
