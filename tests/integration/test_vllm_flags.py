"""The real vLLM says whether it knows our flags: its own argument parser, and its own lists of parsers by name."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from lmtower.engines import Outside, build_specs
from tests.engines.plans import FAMILIES, plan_of, tower_of

pytestmark = pytest.mark.vllm
VERSION = "0.32.0"

_PROGRAM = """
import json, sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.reasoning import ReasoningParserManager as reasoning
from vllm.tool_parsers import ToolParserManager as tools
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = make_arg_parser(FlexibleArgumentParser())
answers = {}
for name, argv in json.load(sys.stdin).items():
    try:
        parsed = vars(parser.parse_args(argv))
        answers[name] = {key: parsed[key] for key in (
            "max_num_seqs", "enable_prefix_caching", "kv_cache_memory_bytes", "tool_call_parser", "reasoning_parser")}
    except SystemExit:
        answers[name] = None
known = {"tools": sorted({*tools.tool_parsers, *tools.lazy_parsers}),
         "reasoning": sorted({*reasoning.reasoning_parsers, *reasoning.lazy_parsers})}
print("ANSWER" + json.dumps([answers, known]))
"""


@cache
def _ask(python: Path) -> Any:
    commands = {}
    for family, row in FAMILIES.items():
        (spec,) = build_specs(plan_of(replace(row, version=VERSION)), tower_of(row), Outside())
        commands[family] = list(spec.argv[2:])
    done = subprocess.run(
        [str(python), "-c", _PROGRAM],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("ANSWER")]
    assert lines, done.stderr[-3000:]
    return json.loads(lines[0].removeprefix("ANSWER"))


@pytest.mark.parametrize("family", FAMILIES)
def test_real_parser_accepts_every_preset(vllm_python: Path, family: str) -> None:
    """No flag is unknown, no value refused, and they arrive as meant."""
    answers, _ = _ask(vllm_python)
    row, parsed = FAMILIES[family], answers[family]
    assert parsed is not None
    assert parsed["max_num_seqs"] == row.max_num_seqs
    assert parsed["kv_cache_memory_bytes"] == row.kv_cache_memory_bytes
    assert parsed["enable_prefix_caching"] is (None if row.pooling else True)


@pytest.mark.parametrize("family", FAMILIES)
def test_parsers_of_recipes_exist(vllm_python: Path, family: str) -> None:
    """A misspelt parser would fail only after the load."""
    answers, known = _ask(vllm_python)
    assert answers[family]["tool_call_parser"] in (None, *known["tools"])
    assert answers[family]["reasoning_parser"] in (None, "", *known["reasoning"])
