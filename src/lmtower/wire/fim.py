"""Fill-in-the-middle: autocomplete requests of three protocols, rendered to a model family's own tokens.

Theory of operation. ``/v1/completions`` with ``suffix``, Mistral's ``/v1/fim/completions`` and llama.cpp's
``/infill`` all say the same: text before the cursor, text after it, perhaps other files. No engine understands
all three, and each model family marks them differently, so the gateway writes the prompt itself and sends it as a
plain completion. A prompt must fit the context: the text nearest to the cursor is worth most, so the prefix keeps
its end, the suffix its start, other files the most recent ones, always whole lines. Without a tokenizer at hand a
token counts as three bytes, which holds for code in every family here (their real mean is 3.2 to 4.5).
"""

from __future__ import annotations

import msgspec

from lmtower.recipes.load import FimTemplate

BYTES_PER_TOKEN = 3
DEFAULT_ANSWER_TOKENS = 128
_SUFFIX_SHARE = 0.25
_THIS_FILE = "current"
"""The name of the file with the hole: no client tells it."""


class File(msgspec.Struct, frozen=True):
    """Another file (or piece of one) that the editor sent along."""

    name: str
    text: str


class Hole(msgspec.Struct, frozen=True):
    """What is around the cursor. ``files`` are ordered: the last one is the most recent."""

    prefix: str
    suffix: str
    files: tuple[File, ...] = ()
    repository: str = ""


def tokens_in(text: str, template: FimTemplate) -> bool:
    """Whether a prompt already holds the family's own markup: such a prompt passes as it is."""
    marks = [mark.strip() for mark in (template.prefix, template.suffix, template.middle) if mark.strip()]
    return bool(marks) and all(mark in text for mark in marks)


def budget_tokens(context: int | None, answer: int | None) -> int | None:
    """Tokens that a prompt may have beside the answer; None when the context is not known."""
    if context is None:
        return None
    wanted = DEFAULT_ANSWER_TOKENS if answer is None else answer
    return max(16, context - min(wanted, context // 2) - 16)


def render(template: FimTemplate, hole: Hole, budget: int | None = None) -> str:
    """The prompt for this family, trimmed to ``budget`` tokens."""
    fitted = fit(hole, budget)
    before, path = _files(template, fitted) if fitted.files else ("", "")
    if template.order == "spm":
        return f"{template.suffix}{fitted.suffix}{template.prefix}{before}{path}{fitted.prefix}{template.middle}"
    if template.files_inside:
        opening = f"{template.prefix}{before}{path}"
    elif template.path_inside:
        opening = f"{before}{template.prefix}{path}"
    else:
        opening = f"{before}{path}{template.prefix}"
    return f"{opening}{fitted.prefix}{template.suffix}{fitted.suffix}{template.middle}"


def _files(template: FimTemplate, hole: Hole) -> tuple[str, str]:
    """The other files and the path of the one with the hole, in the family's repository form; families without one get
    the files as plain text with their names.
    """
    mark = template.file or ""
    parts = [f"{mark}{file.name or 'file'}\n{file.text.rstrip()}\n" for file in hole.files]
    if template.file is None:
        return "\n".join(parts) + "\n", ""
    head = ""
    if template.repository:
        head = f"{template.repository}{hole.repository or 'repository'}{template.repository_end}"
    before, path = head + "".join(parts), f"{_THIS_FILE}\n"
    return (before + template.file, path) if template.path_inside else (before, template.file + path)


def fit(hole: Hole, budget: int | None) -> Hole:
    """The hole cut to the budget, both sides on line boundaries; files get what the cursor leaves over."""
    if budget is None:
        return hole
    room = budget * BYTES_PER_TOKEN
    prefix_bytes, suffix_bytes = len(hole.prefix.encode()), len(hole.suffix.encode())
    if prefix_bytes + suffix_bytes > room:
        suffix_room = max(int(room * _SUFFIX_SHARE), room - prefix_bytes)
        suffix_room = min(suffix_room, suffix_bytes)
        prefix, suffix = keep_end(hole.prefix, room - suffix_room), keep_start(hole.suffix, suffix_room)
        return Hole(prefix, suffix, (), hole.repository)
    room -= prefix_bytes + suffix_bytes
    kept: list[File] = []
    for file in reversed(hole.files):
        cost = len(file.text.encode()) + len(file.name.encode()) + 24
        if cost > room:
            break
        kept.append(file)
        room -= cost
    return Hole(hole.prefix, hole.suffix, tuple(reversed(kept)), hole.repository)


def keep_end(text: str, room: int) -> str:
    """The last whole lines of the text within ``room`` bytes; the cursor's own line at least in part."""
    raw = text.encode()
    if len(raw) <= room:
        return text
    tail = raw[len(raw) - room :] if room > 0 else b""
    newline = tail.find(b"\n")
    if 0 <= newline < len(tail) - 1:
        tail = tail[newline + 1 :]
    return tail.decode(errors="ignore")


def keep_start(text: str, room: int) -> str:
    """The first whole lines of the text within ``room`` bytes."""
    raw = text.encode()
    if len(raw) <= room:
        return text
    head = raw[: max(room, 0)]
    newline = head.rfind(b"\n")
    if newline > 0:
        head = head[: newline + 1]
    return head.decode(errors="ignore")


def stops(template: FimTemplate, asked: tuple[str, ...]) -> tuple[str, ...]:
    """The client's stop strings and the family's, each once; the client's first."""
    return tuple(dict.fromkeys((*asked, *template.stop)))
