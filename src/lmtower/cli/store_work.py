"""What the ``store`` commands do: connect, upload with a progress bar, print hits, ask a persona."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from lmtower.cli.globals import Globals
from lmtower.cli.output import print_json
from lmtower.config import parse_listen
from lmtower.config.folder import INTERNAL_KEY
from lmtower.errors import Refused, StoreError
from lmtower.stores import citations
from lmtower.stores.client import Declined, StoreClient, told, verified
from lmtower.stores.folder import Local, compare, files_under, local
from lmtower.wire import citing

Json = dict[str, Any]
OPERATOR = "lmtower:operator"
BATCH_FILES = 500
POLL_SECONDS = 0.25
# chance brings a chunk this near to a question in about one of a thousand cases
RELEVANT = 3.0


def connect(options: Globals, url: str | None, key: str | None) -> StoreClient:
    """The service of this tower as its operator, or a gateway elsewhere as one of its clients."""
    if url:
        if not key:
            raise Refused("--url needs --key (or LMTOWER_KEY).")
        return StoreClient(url.rstrip("/").removesuffix("/v1"), {"authorization": f"Bearer {key}"})
    secret = options.data_dir / INTERNAL_KEY
    if not secret.exists():
        raise StoreError(f"no tower with stores runs on {options.data_dir}: start it with lmtower up.")
    headers = {"x-lmtower-internal": secret.read_text().strip(), "x-lmtower-client": OPERATOR}
    listen = _running(options).get("stores") or options.load().tower.stores.listen
    return StoreClient(_url(listen), headers)


def _running(options: Globals) -> Json:
    """Where this tower listens, if it runs: the command line may have moved it."""
    from lmtower.cli.running import running_tower

    return running_tower(options.data_dir) or {}


def _url(listen: str) -> str:
    host, port = parse_listen(listen)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


# -- adding


def expand(paths: Sequence[str]) -> list[Path]:
    """Files and folders; what does not exist as it is written is a pattern. Raises Refused when nothing is there."""
    found: list[Path] = []
    for path in paths:
        matched = [Path(path)] if os.path.lexists(path) else [Path(one) for one in sorted(glob(path, recursive=True))]
        if not matched:
            raise Refused(f"there is no file, no folder and nothing that matches {path!r}.")
        found += matched
    return found


def ingest(options: Globals, client: StoreClient, store: Json, paths: Sequence[Path], *, remove: bool) -> None:
    """Upload what is new or changed; with ``remove``, take out what is no longer there."""
    entries = list(client.pages(f"/v1/vector_stores/{store['id']}/files"))
    difference = compare(local(files_under(paths)), entries)
    uploaded = {file.name[:512] for file in difference.upload}
    paths_of = {entry["id"]: (entry.get("attributes") or {}).get("path") for entry in entries}
    # without `remove`, only an older version of a file that is uploaded now has to go
    stale = [one for one in difference.stale if remove or paths_of[one] in uploaded]
    declined = _upload(client, store, difference.upload, quiet=options.json)
    for file_id in stale:
        client.call("DELETE", f"/v1/files/{file_id}")
    old = set(paths_of.values())
    removed = sum(paths_of[one] not in uploaded for one in stale)
    follow(options, client, store, Outcome(uploaded - old, uploaded & old, difference.same, removed), declined)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a folder: paths that are new, paths with new content; how many files stay, and how many went."""

    added: Set[str]
    changed: Set[str]
    same: int
    removed: int

    def told(self, failed: Set[str]) -> str:
        """As a person reads it. A file that failed is tried again every time, and is neither new nor changed."""
        counts = [f"{len(self.added - failed)} added", f"{len(self.changed - failed)} changed"]
        counts += [f"{self.same} unchanged", f"{self.removed} removed"]
        tried = len((self.added | self.changed) & failed)
        return ", ".join([*counts, f"{tried} failed"] if tried else counts)


def _upload(client: StoreClient, store: Json, files: Sequence[Local], *, quiet: bool) -> list[Json]:
    """Upload and attach; what is declined fails alone, and is returned as the failed files of a store are shown."""
    declined: list[Json] = []
    with _bar(quiet) as bar, ThreadPoolExecutor(4) as pool:
        task = bar.add_task("upload", total=len(files), detail="")
        for start in range(0, len(files), BATCH_FILES):
            items: list[Json] = []
            for item in pool.map(lambda file: _upload_one(client, file), files[start : start + BATCH_FILES]):
                (items if "file_id" in item else declined).append(item)
                bar.advance(task)
            if items:
                client.attach(store["id"], items)
    return declined


def _upload_one(client: StoreClient, file: Local) -> Json:
    attributes = {"path": file.name[:512], "sha256": file.sha256}
    try:
        return {"file_id": client.upload(file.path, file.name)["id"], "attributes": attributes}
    except (Declined, OSError) as exc:
        return {"attributes": attributes, "last_error": {"code": "invalid_file", "message": str(exc)}}


def follow(
    options: Globals, client: StoreClient, store: Json, outcome: Outcome | None = None, declined: Sequence[Json] = ()
) -> None:
    """Show the work until it is done, then what came of it."""
    path = f"/v1/vector_stores/{store['id']}"
    with _bar(options.json) as bar:
        task = bar.add_task("embed", total=None, detail="")
        started = time.monotonic()
        while True:
            now = client.call("GET", f"{path}/progress")
            speed = now["tokens"] * now["chunks_done"] / max(1, now["chunks"]) / (time.monotonic() - started + 0.01)
            detail = f"{now['chunks_done']}/{now['chunks']} chunks  {speed:,.0f} tokens/s  {now['trouble']}"
            bar.update(task, total=now["files"], completed=now["files_done"], detail=detail)
            if now["files_done"] == now["files"]:
                break
            time.sleep(POLL_SECONDS)
    failed = [*client.pages(f"{path}/files", filter="failed"), *declined]
    _report(options, client.call("GET", path), outcome, failed)


def _report(options: Globals, store: Json, outcome: Outcome | None, failed: Sequence[Json]) -> None:
    if options.json:
        print_json({"store": store, "failed": failed, "removed": outcome.removed if outcome else 0})
        return
    names = [str((entry.get("attributes") or {}).get("path") or entry["id"]) for entry in failed]
    text = f"{store['name'] or store['id']}: {store['file_counts']['completed']} files, {_size(store['usage_bytes'])}"
    print(f"{text}; {outcome.told(set(names))}." if outcome else f"{text}.")
    for name, entry in zip(names, failed, strict=True):
        name = name if name.isprintable() else repr(name)
        print(f"  failed: {name}: {entry['last_error']['message']}", file=sys.stderr)


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 100_000 else f"{count / 1e3:.1f} kB"


def _bar(quiet: bool) -> Progress:
    columns = (TextColumn("{task.description:8}"), BarColumn(), MofNCompleteColumn(), TextColumn("files"))
    console = Console(stderr=True)
    hidden = quiet or not console.is_terminal
    return Progress(*columns, TimeElapsedColumn(), TextColumn("{task.fields[detail]}"), console=console, disable=hidden)


# -- asking


def show_hits(hits: Sequence[Json], question: str) -> None:
    console = Console(highlight=False)
    words = [re.escape(word) for word in re.findall(r"\w{3,}", question)]
    for number, hit in enumerate(hits, start=1):
        scores = hit["scores"]
        line = f"score {hit['score']:.3f}  similarity {scores['similarity']:.3f}  words {scores['words']:.2f}"
        console.print(Text.assemble((f"{number}. {citations.source(hit)}", "bold"), f"  {line}"))
        text = Text(hit["content"][0]["text"][:600])
        if words:
            text.highlight_regex(re.compile(rf"(?i)\b(?:{'|'.join(words)})\w*").pattern, "bold yellow")
        console.print(text, "")
    if not hits:
        console.print("Nothing found.")


def relevant(hits: Sequence[Json]) -> list[Json]:
    """Hits that stand out from what any question brings up in this store."""
    return [hit for hit in hits if (standout := hit["scores"].get("standout")) is None or standout >= RELEVANT]


def answer(
    options: Globals, hits: Sequence[Json], question: str, store: str, persona: str, url: str | None, key: str | None
) -> None:
    """Stream the persona's answer from the passages, then list the passages that it cited."""
    shown = relevant(hits)
    if not shown:
        if options.json:
            print_json({"answer": None, "citations": []})
        else:
            print(f"Nothing about this was found in store {store!r}.")
        return
    base = (url or _gateway(options)).rstrip("/").removesuffix("/v1")
    token = key or _own_key(options)
    text = ""
    for piece in _stream(base, token, persona, f"{citations.passages(shown)}\n\nQuestion: {question}"):
        text += piece
        if not options.json:
            print(piece, end="", flush=True)
    cited = sorted({hit for hit, _, _ in citing.marks(text, shown)})
    if options.json:
        print_json({"answer": text, "citations": [shown[hit] | {"number": hit + 1} for hit in cited]})
        return
    print("\n")
    for hit in cited or range(len(shown)):
        print(f"[{hit + 1}] {citations.source(shown[hit])}")


def _gateway(options: Globals) -> str:
    settings = options.load().tower.gateway
    url = _url(_running(options).get("listen") or settings.listen)
    return url.replace("http://", "https://", 1) if settings.tls is not None else url


def _own_key(options: Globals) -> str:
    """The key that the tower made for its store service, when the person has none at hand."""
    path = options.data_dir / "stores.key"
    if not path.exists():
        raise Refused("ask needs a client key: --key, or LMTOWER_KEY.")
    return path.read_text().strip()


def _stream(base: str, token: str, persona: str, prompt: str) -> Iterator[str]:
    body = {"model": persona, "stream": True, "messages": [{"role": "user", "content": prompt}]}
    headers = {"authorization": f"Bearer {token}"}
    try:
        with (
            httpx.Client(timeout=httpx.Timeout(1200, connect=5), trust_env=False, verify=verified(base)) as client,
            client.stream("POST", f"{base}/v1/chat/completions", json=body, headers=headers) as response,
        ):
            if not response.is_success:
                response.read()
                raise StoreError(f"persona {persona!r}: HTTP {response.status_code}: {told(response)}")
            yield from _deltas(response.iter_lines())
    except httpx.HTTPError as exc:
        raise StoreError(f"no gateway answers at {base}: is the tower running?") from exc


def _deltas(lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        data = line.removeprefix("data:").strip()
        if not line.startswith("data:") or data == "[DONE]":
            continue
        event = json.loads(data)
        if "error" in event:
            raise StoreError(str(event["error"].get("message", event["error"])))
        for choice in event.get("choices", ()):
            yield choice.get("delta", {}).get("content") or ""
