"""Files to chunks: text with page, heading path and offsets, read in a process that may die."""

from lmtower.stores.extract.document import Limits, Unreadable
from lmtower.stores.extract.process import ChunkRow, Extractor

__all__ = ["ChunkRow", "Extractor", "Limits", "Unreadable"]
