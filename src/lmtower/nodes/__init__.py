"""Nodes: drivers that run engines, facts, apply one at a time, warm-up, watchdog, node agent."""
