"""The table of verbs: where each lives and what it does. Nothing is imported until a verb is called."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Verb:
    """``target`` is ``module:attribute``; ``group`` is the heading under which the overview lists it."""

    target: str
    help: str
    group: str
    settings: dict[str, Any] = field(default_factory=dict)


GROUPS = ("Tower file", "Tower", "Clients", "Files and friends")

COMMANDS: dict[str, Verb] = {
    "init": Verb("lmtower.cli.init:init", "Write an annotated tower file and its prompts.", "Tower file"),
    "check": Verb("lmtower.cli.check:check", "Read the tower file and name everything wrong in it.", "Tower file"),
    "schema": Verb("lmtower.cli.schema:schema", "Print the JSON Schema of the tower file, for editors.", "Tower file"),
    "plan": Verb("lmtower.cli.plan:plan", "Does the tower fit? Memory, contexts, start order, warnings.", "Tower file"),
    "fit": Verb("lmtower.cli.fit:fit", "Does a model fit on a chip, without a tower file?", "Tower file"),
    "explain": Verb("lmtower.cli.explain:explain", "Show what a persona makes of a request.", "Tower file"),
    "up": Verb("lmtower.cli.up:up", "Plan, start what is missing, then serve.", "Tower"),
    "serve": Verb("lmtower.cli.serve:serve", "Serve the gateway alone, on engines as they are.", "Tower"),
    "key": Verb("lmtower.cli.key:app", "Make, list and revoke the keys of clients.", "Clients"),
    "usage": Verb("lmtower.cli.usage:usage", "Who used what: requests, tokens, images, money.", "Clients"),
    "connect": Verb("lmtower.cli.connect:connect", "The exact configuration that a client needs.", "Clients"),
    "store": Verb("lmtower.cli.store:app", "Put documents in vector stores, search them, ask them.", "Clients"),
    "status": Verb("lmtower.cli.status:status", "Engines, personas and the gateway at a glance.", "Tower"),
    "down": Verb("lmtower.cli.down:down", "Stop the tower and its engines.", "Tower"),
    "restart": Verb("lmtower.cli.restart:restart", "Stop and start one engine.", "Tower"),
    "logs": Verb("lmtower.cli.logs:logs", "What an engine wrote.", "Tower"),
    "diff": Verb("lmtower.cli.diff:diff", "What up would start, stop and replace.", "Tower"),
    "pull": Verb("lmtower.cli.pull:pull", "Fetch images and weights ahead.", "Tower"),
    "reload": Verb("lmtower.cli.reload:reload", "Make the running tower read its file again.", "Tower"),
    "render": Verb(
        "lmtower.cli.render:app", "Files for Prometheus, Grafana, compose, Kubernetes, ...", "Files and friends"
    ),
    "node-agent": Verb(
        "lmtower.cli.node_agent:node_agent", "Report and guard a GPU node; runs there.", "Files and friends"
    ),
    "import": Verb(
        "lmtower.cli.import_:app", "Read the configuration of another gateway (litellm).", "Files and friends"
    ),
    "console": Verb("lmtower.cli.console:console", "The web console, a process of its own.", "Tower"),
    "top": Verb("lmtower.cli.top:top", "The running tower, live: engines, personas, queues, memory.", "Tower"),
}


def nearest(name: str) -> str | None:
    """The known verb that looks most like this one."""
    from difflib import get_close_matches

    return next(iter(get_close_matches(name, COMMANDS, 1)), None)


def overview() -> str:
    """The text of ``lmtower --help``."""
    lines = ["lmtower: Model-as-a-Service on your own GPU boxes, from one YAML file.", "", "Usage: lmtower VERB [...]"]
    width = max(map(len, COMMANDS))
    for group in GROUPS:
        verbs = [(name, verb) for name, verb in COMMANDS.items() if verb.group == group]
        if verbs:
            lines += ["", f"{group}:", *(f"  {name:<{width}}  {verb.help}" for name, verb in verbs)]
    return "\n".join([*lines, "", *OPTIONS])


OPTIONS = (
    "Before or after the verb:",
    "  -c, --config FILE  Tower file. Default: ./tower.yaml, or LMTOWER_CONFIG.",
    "  --data-dir DIR     Keys, usage and state. Default: ./tower-data, or LMTOWER_DATA_DIR.",
    "  --json             Print JSON where a machine may read.",
    "  --version          Print the version.",
    "",
    "lmtower VERB --help says more. Exit codes: 0 done, 1 failed, 2 refused.",
)
