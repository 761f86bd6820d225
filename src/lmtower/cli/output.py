"""What commands print: aligned tables for people, JSON for machines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Aligned text; numbers to the right, ``None`` as a dash. No colours, so it survives pipes and tickets."""
    body = [["-" if cell is None else str(cell) for cell in row] for row in rows]
    widths = [max(len(column), *(len(row[at]) for row in body), 0) for at, column in enumerate(columns)]
    right = [bool(body) and all(_is_number(row[at]) for row in body) for at in range(len(columns))]
    lines = [list(columns), *body]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    )


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).replace(",", "").removesuffix("%").strip().isdigit() or text == "-"


def print_json(value: object) -> None:
    """One JSON document on stdout, readable by people too."""
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))
