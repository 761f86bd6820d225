"""The web console: a process of its own over the admin API. Server-rendered pages, one small script, no outside asset.

Reading order: ``settings`` (what the CLI hands in), ``tower`` (the admin API), ``samples`` (its numbers over time),
``charts`` and ``words`` (numbers as pictures and text), ``pages`` (what a person sees), ``app`` (all of it together).
"""
