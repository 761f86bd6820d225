"""YAML text -> plain data and the place of every key. YAML 1.2, positions kept, all syntax traps named.

The text is composed into nodes, not constructed: nodes carry positions, and resolving the few scalar
types here keeps `on`, `off`, `yes` and `no` the words that YAML 1.2 says they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from lmtower.errors import Problem

Path = tuple[str | int, ...]
Place = tuple[int, int]

_TAG = "tag:yaml.org,2002:"
_BASES = {"0x": 16, "0o": 8, "0b": 2}


@dataclass(slots=True)
class Source:
    """What one YAML text says: ``data`` as dicts, lists and scalars, and where each path begins (from 1)."""

    file: str
    data: dict[str, Any] = field(default_factory=dict)
    places: dict[Path, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def origin(self, path: Path) -> Place:
        """The place of a path, or of the nearest parent that is written down; (0, 0) when nothing is."""
        while path not in self.places and path:
            path = path[:-1]
        return self.places.get(path, (0, 0))

    def problem(self, path: Path, message: str) -> Problem:
        """A problem at the place of ``path``."""
        return Problem(dotted(path), message, self.file, *self.origin(path))


def dotted(path: Path) -> str:
    """``("engines", "eyes", "context")`` -> ``engines.eyes.context``; list positions as ``[0]``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def read(text: str, file: str) -> Source:
    """Parse the text. What cannot be parsed is in ``problems``; the rest is in ``data`` all the same."""
    source = Source(file)
    try:
        root = YAML(typ="safe", pure=True).compose(text)
    except MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        place = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        source.problems.append(Problem("", _syntax(exc), file, *place))
        return source
    except YAMLError as exc:
        source.problems.append(Problem("", f"not YAML: {exc}", file, 1, 1))
        return source
    if root is None:
        source.problems.append(Problem("", "the file is empty. lmtower init writes one to start from.", file, 1, 1))
    elif not isinstance(root, MappingNode):
        source.problems.append(Problem("", "expected keys such as engines: and personas: at the top.", file, 1, 1))
    else:
        source.data = _mapping(root, (), source)
    return source


def _syntax(exc: MarkedYAMLError) -> str:
    if exc.problem and "\\t" in exc.problem:
        return "YAML is indented with spaces; there is a tab here."
    return "not YAML: " + ", ".join(part for part in (exc.context, exc.problem) if part) + "."


def _value(node: Node, path: Path, source: Source) -> Any:
    if isinstance(node, MappingNode):
        return _mapping(node, path, source)
    if isinstance(node, SequenceNode):
        items = []
        for at, item in enumerate(node.value):
            source.places[*path, at] = _place(item)
            items.append(_value(item, (*path, at), source))
        return items
    return _scalar(node)


def _mapping(node: MappingNode, path: Path, source: Source) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, key_node, value in _pairs(node, path, source):
        place = _place(key_node)
        if key in result:
            line = source.places[*path, key][0]
            problem = Problem(
                dotted((*path, key)), f"duplicate key; it is already on line {line}. Keep one.", source.file, *place
            )
            source.problems.append(problem)
            continue
        source.places[*path, key] = place
        result[key] = _value(value, (*path, key), source)
    for merged in _merges(node):
        for key, key_node, value in _pairs(merged, path, source):
            if key not in result:
                source.places[*path, key] = _place(key_node)
                result[key] = _value(value, (*path, key), source)
    return result


def _pairs(node: MappingNode, path: Path, source: Source) -> Iterator[tuple[str, Node, Node]]:
    for key_node, value in node.value:
        if str(key_node.tag) == _TAG + "merge":
            continue
        if isinstance(key_node, ScalarNode):
            yield str(key_node.value), key_node, value
        else:
            message = "a key must be a word, not a list or a mapping."
            source.problems.append(Problem(dotted(path), message, source.file, *_place(key_node)))


def _merges(node: MappingNode) -> Iterator[MappingNode]:
    for key_node, value in node.value:
        if str(key_node.tag) == _TAG + "merge":
            candidates = value.value if isinstance(value, SequenceNode) else [value]
            yield from (candidate for candidate in candidates if isinstance(candidate, MappingNode))


def _scalar(node: Node) -> Any:
    text, kind = str(node.value), str(node.tag).removeprefix(_TAG)
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        return int(text, _BASES.get(text.lstrip("+-")[:2].lower(), 10))
    if kind == "float":
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


def _place(node: Node) -> Place:
    return node.start_mark.line + 1, node.start_mark.column + 1
