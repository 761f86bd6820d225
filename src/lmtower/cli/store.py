"""``lmtower store create | add | sync | search | ask | list | rm | rebuild``: folders in, answers out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lmtower.cli.globals import Globals, group
from lmtower.cli.output import print_json, table

app = group()

Url = Annotated[str | None, typer.Option(envvar="LMTOWER_URL", help="A gateway elsewhere. Default: this tower.")]
Key = Annotated[str | None, typer.Option(envvar="LMTOWER_KEY", help="Client key, for --url and for ask.")]


@app.command()
def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="What the store is called.")],
    share: Annotated[list[str] | None, typer.Option(help="Client that may read it; `*` for all. Repeat it.")] = None,
    expires_days: Annotated[int | None, typer.Option(help="Days without use after which it is emptied.")] = None,
    url: Url = None,
    key: Key = None,
) -> None:
    """Make an empty store."""
    from lmtower.cli.store_work import connect

    body: dict[str, object] = {"name": name, "shared_with": share or []}
    if expires_days is not None:
        body["expires_after"] = {"anchor": "last_active_at", "days": expires_days}
    with connect(ctx.obj, url, key) as client:
        store = client.call("POST", "/v1/vector_stores", json=body)
    if ctx.obj.json:
        print_json(store)
    else:
        print(store["id"])


@app.command()
def add(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="Name or id of the store.")],
    paths: Annotated[list[str], typer.Argument(help="Files, folders, and patterns such as 'docs/**/*.md'.")],
    url: Url = None,
    key: Key = None,
) -> None:
    """Put files in; what is in already is left as it is."""
    from lmtower.cli.store_work import connect, expand, ingest

    found = expand(paths)
    with connect(ctx.obj, url, key) as client:
        ingest(ctx.obj, client, client.find(name), found, remove=False)


@app.command()
def sync(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="Name or id of the store.")],
    folder: Annotated[Path, typer.Argument(help="Folder that the store shall mirror.", exists=True, file_okay=False)],
    url: Url = None,
    key: Key = None,
) -> None:
    """Make the store hold exactly what the folder holds: add, update, remove."""
    from lmtower.cli.store_work import connect, ingest

    with connect(ctx.obj, url, key) as client:
        ingest(ctx.obj, client, client.find(name), [folder], remove=True)


@app.command()
def search(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="Name or id of the store.")],
    question: Annotated[str, typer.Argument(help="Words or a question.")],
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=50, help="Hits to show.")] = 5,
    url: Url = None,
    key: Key = None,
) -> None:
    """Show the passages that fit best, with file, page and scores."""
    from lmtower.cli.store_work import connect, show_hits

    with connect(ctx.obj, url, key) as client:
        page = client.search(client.find(name)["id"], question, limit)
    if ctx.obj.json:
        print_json(page)
    else:
        show_hits(page["data"], question)


@app.command()
def ask(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="Name or id of the store.")],
    question: Annotated[str, typer.Argument(help="A question.")],
    persona: Annotated[str, typer.Option(help="Persona that answers.")],
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=50, help="Passages that it is shown.")] = 6,
    url: Url = None,
    key: Key = None,
) -> None:
    """Answer a question from the store, with numbered citations."""
    from lmtower.cli.store_work import answer, connect

    with connect(ctx.obj, url, key) as client:
        page = client.search(client.find(name)["id"], question, limit)
    answer(ctx.obj, page["data"], question, name, persona, url, key)


@app.command("list")
def list_stores(ctx: typer.Context, url: Url = None, key: Key = None) -> None:
    """Show the stores."""
    from lmtower.cli.store_work import connect

    options: Globals = ctx.obj
    with connect(options, url, key) as client:
        stores = client.stores()
    if options.json:
        print_json(stores)
        return
    rows = [
        (
            store["name"],
            store["id"],
            store["status"],
            store["file_counts"]["completed"],
            store["file_counts"]["in_progress"],
            store["file_counts"]["failed"],
            f"{store['usage_bytes'] / 1e6:.1f}",
        )
        for store in stores
    ]
    print(table(("NAME", "ID", "STATUS", "FILES", "WAITING", "FAILED", "MB"), rows))


@app.command("rm")
def remove(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="Name or id of the store.")],
    keep_files: Annotated[bool, typer.Option(help="Keep the uploaded files.")] = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Delete a store and the files that were put in."""
    from lmtower.cli.store_work import connect

    with connect(ctx.obj, url, key) as client:
        store = client.find(name)
        files = [] if keep_files else [entry["id"] for entry in client.pages(f"/v1/vector_stores/{store['id']}/files")]
        client.call("DELETE", f"/v1/vector_stores/{store['id']}")
        for file_id in files:
            client.call("DELETE", f"/v1/files/{file_id}")
    print(f"{store['name'] or store['id']}: deleted with {len(files)} files.")


@app.command()
def rebuild(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="Name or id of the store.")],
    url: Url = None,
    key: Key = None,
) -> None:
    """Read and embed everything again, after the embedding model was changed."""
    from lmtower.cli.store_work import connect, follow

    with connect(ctx.obj, url, key) as client:
        store = client.call("POST", f"/v1/vector_stores/{client.find(name)['id']}/rebuild")
        follow(ctx.obj, client, store)
