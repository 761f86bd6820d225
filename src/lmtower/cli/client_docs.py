"""``python -m lmtower.cli.client_docs DIRECTORY``: writes docs/clients from the pages of ``lmtower connect``."""

from __future__ import annotations

import sys
from pathlib import Path

from lmtower.cli.connect import document, pages


def main(directory: str) -> None:
    """One page for each client."""
    for page in pages().values():
        (Path(directory) / f"{page.name}.md").write_text(document(page), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
