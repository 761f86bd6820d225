"""``lmtower usage``: who used what, added up."""

from __future__ import annotations

import csv
import sys
import time
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lmtower.cli.globals import Globals
from lmtower.cli.ledger import ledger, moment, print_table
from lmtower.cli.output import print_json

if TYPE_CHECKING:
    from lmtower.ledger.report import Report, Row


def usage(
    ctx: typer.Context,
    by: Annotated[
        str,
        typer.Option(
            help="Comma-separated: client, client_id, persona, engine, replica, end_user, session, protocol, lane, "
            "outcome, status, hour, day, month (UTC)."
        ),
    ] = "client,persona",
    since: Annotated[str | None, typer.Option(help="From: 7d (ago), 12h, or a date such as 2026-11-01.")] = None,
    until: Annotated[str | None, typer.Option(help="Up to, in the same words.")] = None,
    format: Annotated[Literal["table", "json", "csv"], typer.Option(help="How to print it.")] = "table",
) -> None:
    """Add up requests, tokens, images and money. Records that are still in the journal are included."""
    options: Globals = ctx.obj
    now = time.time()
    begin = None if since is None else moment(since, now, past=True)
    end = None if until is None else moment(until, now, past=True)
    groups = [name.strip() for name in by.split(",") if name.strip()]
    with ledger(options) as (opened, _):
        report = opened.usage(groups, begin, end)
    if options.json or format == "json":
        print_json(report.as_dict())
    elif format == "csv":
        _print_csv(report)
    elif not report.rows:
        print("No requests in that time.")
    else:
        _print_report(report)


def _print_csv(report: Report) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    names = [name for name in report.total.as_dict() if name not in report.by]
    writer.writerow([*report.by, *names])
    for row in report.rows:
        values = row.as_dict()
        writer.writerow([*(_harmless(row.group[name]) for name in report.by), *(values[name] for name in names)])


def _harmless(text: str) -> str:
    """End users choose their names: a spreadsheet must not run one as a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _print_report(report: Report) -> None:
    columns = ["requests", "input", "cached", "hit rate", "output", "TTFT"]
    optional = {
        "reasoning": report.total.reasoning_tokens,
        "images": report.total.images,
        "image tokens": report.total.image_tokens,
        "retries": report.total.retries,
        "tool calls": _tool_calls(report.total),
        "cost": report.total.cost,
    }
    columns += [name for name, value in optional.items() if value]
    rows = [[*(row.group[name] or None for name in report.by), *_cells(row, columns)] for row in report.rows]
    footer = [*("total" if at == 0 else None for at in range(len(report.by))), *_cells(report.total, columns)]
    print_table([*report.by, *columns], rows, footer if report.by else None)


def _cells(row: Row, columns: list[str]) -> list[object]:
    hit_rate, ttft = row.hit_rate, row.ttft_mean
    cells: dict[str, object] = {
        "requests": f"{row.requests:,}",
        "input": f"{row.input_tokens:,}",
        "cached": f"{row.cached_tokens:,}",
        "hit rate": None if hit_rate is None else f"{hit_rate:.1%}",
        "output": f"{row.output_tokens:,}",
        "reasoning": f"{row.reasoning_tokens:,}",
        "TTFT": None if ttft is None else f"{ttft:.2f} s",
        "images": f"{row.images:,}",
        "image tokens": f"{row.image_tokens:,}",
        "retries": f"{row.retries:,}",
        "tool calls": f"{_tool_calls(row):,}",
        "cost": f"{row.cost:,.4f}",
    }
    return [cells[name] for name in columns]


def _tool_calls(row: Row) -> int:
    return row.tool_calls_valid + row.tool_calls_repaired + row.tool_calls_rejected
