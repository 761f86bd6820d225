"""``lmtower check``: is this tower file right?"""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from lmtower.cli.globals import Globals
from lmtower.cli.output import print_json
from lmtower.errors import ConfigError, Problem

if TYPE_CHECKING:
    from lmtower.config import Loaded


def check(ctx: typer.Context) -> None:
    """Read the tower file and name everything wrong in it.

    Errors go to stderr and end with exit code 2; warnings are printed and change nothing.
    """
    options: Globals = ctx.obj
    try:
        loaded = options.load()
        if problems := _hardware(loaded):
            raise ConfigError(problems)
    except ConfigError as error:
        if not options.json:
            raise
        print_json({"ok": False, "problems": [asdict(problem) for problem in error.problems], "warnings": []})
        raise typer.Exit(error.exit_code) from error
    if options.json:
        print_json({"ok": True, "problems": [], "warnings": [asdict(warning) for warning in loaded.warnings]})
        return
    for warning in loaded.warnings:
        print(f"{warning} (warning)", file=sys.stderr)
    tower = loaded.tower
    print(
        f"{loaded.path} is right: {_many(len(tower.engines), 'engine')}, {_many(len(tower.personas), 'persona')}"
        + (f", {_many(len(loaded.warnings), 'warning')}." if loaded.warnings else ".")
    )


def _hardware(loaded: Loaded) -> list[Problem]:
    """Chips that the catalogue does not know. It belongs to the planner, so ``load`` cannot ask it."""
    from lmtower.errors import PlanError
    from lmtower.plan.hardware import facts
    from lmtower.plan.planner import CPU

    problems = []
    for name, node in loaded.tower.nodes.items():
        if node.hardware in (None, CPU):
            continue
        try:
            facts(node.hardware)
        except PlanError as error:
            problems.append(loaded.problem(("nodes", name, "hardware"), str(error).removeprefix("hardware: ")))
    return problems


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")
