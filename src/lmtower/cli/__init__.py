"""The front door: ``lmtower VERB``. Builds and connects everything; the rooms do the work."""

from lmtower.cli.app import main

__all__ = ["main"]
