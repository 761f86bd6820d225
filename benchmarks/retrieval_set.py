"""Questions with known answers, made from the standard library of the Python that runs this: no hand touches it.

A document is a function or method of the standard library (tests left out): its source without the first paragraph of
its docstring. That paragraph, which says in words what the function does, is a question; the function is the answer.
Questions are drawn with a fixed seed among paragraphs of six words or more that no other function has.
"""

from __future__ import annotations

import ast
import random
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MIN_CHARACTERS = 120
MIN_WORDS = 6
LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "lib2to3", "turtledemo", "__pycache__"}
SEED = 8


@dataclass(frozen=True)
class Document:
    name: str
    text: str
    summary: str


def documents(limit: int = 1_000_000) -> list[Document]:
    root = Path(sysconfig.get_path("stdlib"))
    found: list[Document] = []
    seen: set[str] = set()
    for path in sorted(root.rglob("*.py")):
        if not LEFT_OUT & set(path.relative_to(root).parts):
            for document in _of_file(path, path.relative_to(root).as_posix()):
                if document.text not in seen and len(found) < limit:
                    seen.add(document.text)
                    found.append(document)
    return found


def questions(corpus: list[Document], count: int) -> list[tuple[str, str]]:
    """``(question, name of the document that answers)``"""
    times = Counter(document.summary for document in corpus)
    fit = [
        (document.summary, document.name)
        for document in corpus
        if times[document.summary] == 1 and len(document.summary.split()) >= MIN_WORDS
    ]
    return random.Random(SEED).sample(fit, min(count, len(fit)))


def _of_file(path: Path, name: str) -> Iterator[Document]:
    try:
        source = path.read_text("utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, UnicodeDecodeError, ValueError):
        return
    lines = source.splitlines(keepends=True)
    for scope, node in _functions(tree, ""):
        text, summary = _without_summary(lines, node)
        if len(text) >= MIN_CHARACTERS:
            yield Document(f"{name.removesuffix('.py')}/{scope}.{node.lineno}.py", text, summary)


def _functions(tree: ast.AST, scope: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Functions and methods; what is nested in a function belongs to it."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{scope}{node.name}", node
        elif isinstance(node, ast.ClassDef):
            yield from _functions(node, f"{scope}{node.name}.")
        elif not isinstance(node, ast.expr):
            yield from _functions(node, scope)


def _without_summary(lines: list[str], node: ast.FunctionDef | ast.AsyncFunctionDef) -> tuple[str, str]:
    segment = "".join(lines[node.lineno - 1 : node.end_lineno])
    docstring = ast.get_docstring(node, clean=False)
    if not docstring:
        return segment, ""
    first = docstring.lstrip().split("\n\n")[0]
    # an escape in the docstring: what stands in the source is not what it means; leave such a function without question
    if first not in segment:
        return segment, ""
    return segment.replace(first, "", 1), " ".join(first.split())
