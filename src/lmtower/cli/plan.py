"""``lmtower plan``: does the tower fit, and what exactly will be started? Touches nothing."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lmtower.cli.globals import Globals
from lmtower.cli.measured import Known
from lmtower.cli.output import print_json, table

if TYPE_CHECKING:
    from lmtower.config import Loaded
    from lmtower.config.types import Tower
    from lmtower.plan.model import ModelFiles
    from lmtower.plan.types import NodeFacts, Plan

OBSERVATIONS = ".observed.json"
"""Suffix of the file beside the tower file that keeps what was learned from logs."""

_MEMORY = ("weights", "KV cache", "overhead", "sum GiB", "util")


def plan(
    ctx: typer.Context,
    what_if: Annotated[
        list[str] | None, typer.Option("--what-if", help="engines.eyes.context=200k; may be repeated.")
    ] = None,
    explain: Annotated[str | None, typer.Option(help="Print the arithmetic of one engine line by line.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the same as a page to this file.")] = None,
    observe: Annotated[
        Path | None, typer.Option(help="Log of a started engine: planned against observed. `-`: stdin.")
    ] = None,
    engine: Annotated[str | None, typer.Option(help="The engine that --observe's log belongs to.")] = None,
    save: Annotated[bool, typer.Option(help="Keep the observation; it corrects the next plan.")] = False,
    offline: Annotated[bool, typer.Option(help="Do not ask the hub.")] = False,
) -> None:
    """Compute memory, contexts, start order and warnings. Exit code 2 when the set does not fit."""
    from lmtower.errors import PlanError

    options: Globals = ctx.obj
    loaded = options.load(_overrides(what_if or []))
    made, models = planned(loaded, options.environ, offline=offline, known=Known.read(options.data_dir))
    if observe is not None:
        _observe(options, loaded, made, observe, engine, save=save)
        return
    if html is not None:
        _write_page(html, made, loaded.path)
    if explain is not None:
        _explain(options, loaded, made, models, explain)
    elif options.json:
        print_json(as_json(made))
    else:
        print("\n".join(_lines(made)))
    if not made.fits:
        raise typer.Exit(PlanError.exit_code)


def planned(
    loaded: Loaded, environ: Mapping[str, str], *, offline: bool = False, known: Known | None = None
) -> tuple[Plan, Mapping[str, ModelFiles]]:
    """The plan of a loaded tower file, from what its nodes and engines said before, and its model files."""
    from lmtower.plan.sources import collect

    known = known or Known()
    tower = known.engines(loaded.tower)
    models = collect(tower, loaded.path.parent, environ, offline=offline)
    facts = {**_local_facts(loaded), **known.facts(tower)[0]}
    return learned(tower, facts, models, loaded.path), models


def learned(tower: Tower, facts: Mapping[str, NodeFacts], models: Mapping[str, ModelFiles], path: Path) -> Plan:
    """A plan with the corrections that ``--observe --save`` keeps beside the tower file."""
    from lmtower.plan.observe import correction_for
    from lmtower.plan.planner import plan as solve

    made = solve(tower, facts, models)
    saved = _saved(path)
    corrections = {each.name: correction_for(each, saved) for each in made.engines}
    return solve(tower, facts, models, corrections) if any(corrections.values()) else made


def as_json(made: Plan) -> dict[str, Any]:
    """The plan as one object."""
    nodes = []
    for node in made.nodes:
        value = asdict(node)
        value["facts"] = {
            **value["facts"],
            "supports": sorted(node.facts.supports),
            "runtimes": sorted(node.facts.runtimes),
        }
        nodes.append({"name": node.facts.name, **value})
    return {
        "fits": made.fits,
        "reasons": list(made.reasons),
        "warnings": list(made.warnings),
        "engines": [{**asdict(each), "total_bytes": each.total_bytes} for each in made.engines],
        "nodes": nodes,
    }


def _overrides(changes: list[str]) -> dict[str, Any]:
    from lmtower.errors import PlanError

    found = {}
    for change in changes:
        path, equals, value = change.partition("=")
        if not equals or not path:
            raise PlanError(f"--what-if {change!r}: write it as engines.NAME.context=200k", field="what-if")
        found[path.strip()] = value.strip()
    return found


def _local_facts(loaded: Loaded) -> dict[str, NodeFacts]:
    """This machine, where the tower file says nothing of its hardware: llama.cpp on a laptop or a fresh box."""
    from lmtower.plan.local import this_machine
    from lmtower.plan.planner import CPU
    from lmtower.plan.wants import LOCAL, runtime_of

    nodes = loaded.tower.nodes
    names = [name for name, node in nodes.items() if node.address == "local" and node.hardware in (None, CPU)]
    if not nodes and any(runtime_of(each) != "external" for each in loaded.tower.engines.values()):
        names = [LOCAL]
    return {name: this_machine(name, nodes[name].reserve if name in nodes else None) for name in names}


def _table(columns: tuple[str, ...], rows: list[tuple[object, ...]]) -> str:
    """One table; on a terminal that is too narrow for it, two: what an engine does, and what it takes."""
    import shutil
    import sys

    whole = table(columns, rows)
    if not sys.stdout.isatty() or len(max(whole.splitlines(), key=len)) <= shutil.get_terminal_size().columns:
        return whole
    memory = [0, *(at for at, name in enumerate(columns) if name in _MEMORY)]
    rest = [at for at, name in enumerate(columns) if name not in _MEMORY]
    parts = (table([columns[at] for at in part], [[row[at] for at in part] for row in rows]) for part in (rest, memory))
    return "\n\n".join(parts)


def _lines(made: Plan) -> list[str]:
    from lmtower.plan.picture import COLUMNS, engine_row, legend, node_lines, notes

    lines = [line for node in made.nodes for line in node_lines(node, made)]
    verdict = "It fits." if made.fits else "It does not fit."
    return [
        *lines,
        f"  {legend()}",
        "",
        _table(COLUMNS, [engine_row(each) for each in made.engines]),
        "",
        verdict,
        *notes(made),
    ]


def _write_page(path: Path, made: Plan, source: Path) -> None:
    from lmtower.errors import PlanError
    from lmtower.plan.page import page

    try:
        path.write_text(page(made, f"lmtower plan: {source.name}"), "utf-8")
    except OSError as error:
        raise PlanError(f"--html: {path} cannot be written ({error.strerror})", field="html") from error
    print(f"wrote {path}", file=sys.stderr)


def _explain(options: Globals, loaded: Loaded, made: Plan, models: Mapping[str, ModelFiles], name: str) -> None:
    from lmtower.errors import PlanError
    from lmtower.plan.explain import explain
    from lmtower.plan.planner import tower_facts
    from lmtower.plan.wants import want

    if name not in models:
        raise PlanError(
            f"--explain: there is no engine {name!r} to plan. There are: {', '.join(models)}", field="explain"
        )
    each = made.engine(name)
    known = Known.read(options.data_dir)
    tower = known.engines(loaded.tower)
    facts = tower_facts(tower, {**_local_facts(loaded), **known.facts(tower)[0]})
    wanted = want(name, tower, models[name], facts, each.overhead.correction_bytes)
    lines = explain(wanted.estimate, each.max_model_len, each.kv_cache_bytes, facts[wanted.nodes[0]])
    print_json({"engine": name, "lines": lines}) if options.json else print("\n".join(lines))


def _observe(options: Globals, loaded: Loaded, made: Plan, log: Path, name: str | None, *, save: bool) -> None:
    from lmtower.errors import PlanError
    from lmtower.plan.observe import compare, entry, read_log, rows

    own = [each for each in made.engines if each.runtime == "vllm"]
    if name is None and len(own) != 1:
        raise PlanError(f"--engine: say whose log it is ({', '.join(each.name for each in own)})", field="engine")
    chosen = next((each for each in own if name in (None, each.name)), None)
    if chosen is None:
        raise PlanError(f"--engine: there is no engine {name!r} of vLLM", field="engine")
    seen = read_log(_read_log(log))
    found = entry(chosen, seen)
    if save:
        _save(loaded.path, chosen.name, found)
    if options.json:
        print_json(
            {
                "engine": chosen.name,
                "refusal": seen.refusal,
                **found,
                "compared": [asdict(item) for item in compare(chosen, seen)],
            }
        )
        return
    print(table((chosen.name, "planned", "observed", "error"), rows(compare(chosen, seen))))
    if seen.refusal:
        print(f"the engine refused: {seen.refusal}")
    where = f" Saved in {_observations(loaded.path)}." if save else " With --save the next plan uses it."
    print(f"correction of the overhead: {int(str(found['correction_bytes'])) / 1024**3:+.2f} GiB.{where}")


def _read_log(log: Path) -> str:
    from lmtower.errors import PlanError

    if str(log) == "-":
        return sys.stdin.read()
    try:
        return log.read_text("utf-8", errors="replace")
    except OSError as error:
        raise PlanError(f"--observe: {log} cannot be read ({error.strerror})", field="observe") from error


def _observations(path: Path) -> Path:
    return path.with_suffix(OBSERVATIONS)


def _saved(path: Path) -> dict[str, dict[str, object]]:
    from lmtower.plan.observe import read_corrections

    file = _observations(path)
    return read_corrections(file.read_text("utf-8")) if file.is_file() else {}


def _save(path: Path, name: str, found: dict[str, object]) -> None:
    import json

    saved = _saved(path)
    saved[name] = found
    file = _observations(path)
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(saved, indent=2) + "\n", "utf-8")
    temporary.replace(file)
