"""Drivers: what starts, stops and observes engines on one node. One seam, several kinds."""

from lmtower.nodes.drivers.base import Driver, Observed, Progress

__all__ = ["Driver", "Observed", "Progress"]
