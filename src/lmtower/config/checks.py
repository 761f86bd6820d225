"""What no single key can tell: references between sections, and rules about several keys at once.

The checks read the plain data, not the ``Tower``, so that they speak even when other keys are wrong; whatever
has the wrong shape is skipped here, because the types have already said so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from lmtower.config.address import parse_listen
from lmtower.config.source import Path, Source
from lmtower.config.units import parse_count
from lmtower.errors import Problem

Found = Iterator[tuple[Path, str]]
_STORE_SCHEMES = ("s3", "az", "gs", "file")
Named = Mapping[str, Mapping[str, Any]]


def check(source: Source, recipes: Callable[[], Mapping[str, bool]]) -> list[Problem]:
    """Every problem between the keys. ``recipes`` gives each recipe's name and whether it has a FIM template."""
    data = source.data
    engines, personas, nodes = (_named(data, key) for key in ("engines", "personas", "nodes"))
    found = [
        *_gateway(data),
        *_nodes(nodes),
        *_engines(engines, nodes),
        *_ports(engines, nodes),
        *_lanes(engines),
        *_personas(personas, engines),
        *_aliases(personas),
        *_recipes(personas, engines, recipes),
        *_stores(data, personas),
    ]
    if data.get("engines") == {} or data.get("personas") == {}:
        empty = "engines" if data.get("engines") == {} else "personas"
        found.append(((empty,), f"empty. A tower needs one of its {empty} at least."))
    return [source.problem(path, message) for path, message in found]


def _named(data: Mapping[str, Any], key: str) -> Named:
    section = data.get(key)
    if not isinstance(section, Mapping):
        return {}
    return {str(name): value for name, value in section.items() if isinstance(value, Mapping)}


def _no_such(what: str, name: object, known: Mapping[str, Any]) -> str:
    near = get_close_matches(str(name), known, 1)
    if near:
        return f"no {what} {name!r}. Did you mean {near[0]!r}?"
    return f"no {what} {name!r}. " + (
        f"There is {', '.join(map(repr, known))}." if known else f"Add it under {what}s:."
    )


def _count(value: object) -> int | None:
    try:
        return parse_count(value)
    except ValueError:
        return None


def _gateway(data: Mapping[str, Any]) -> Found:
    taken: dict[int, str] = {}
    for section, key in (("gateway", "listen"), ("gateway", "admin"), ("stores", "listen")):
        holder = data.get(section)
        text = holder.get(key) if isinstance(holder, Mapping) else None
        if not isinstance(text, str):
            continue
        try:
            port = parse_listen(text)[1]
        except ValueError as exc:
            yield (section, key), f"{exc}."
            continue
        if port and port in taken:
            yield (section, key), f"port {port} is taken by {taken[port]}. {port + 1} is free."
        taken.setdefault(port, f"{section}.{key}")


def _nodes(nodes: Named) -> Found:
    for name, node in nodes.items():
        address = node.get("address", "local")
        if isinstance(address, str) and address != "local" and not address.startswith("ssh://"):
            yield ("nodes", name, "address"), f"{address!r} is neither local nor ssh://user@host. Write ssh://{address}"


def _engines(engines: Named, nodes: Named) -> Found:
    for name, engine in engines.items():
        at = ("engines", name)
        external = [key for key in ("url", "urls") if engine.get(key)]
        placed = [key for key in ("node", "nodes") if engine.get(key)]
        if len(external) == 2:
            yield (*at, "urls"), "url and urls exclude each other. Put all addresses into urls."
        if len(placed) == 2:
            yield (*at, "nodes"), "node and nodes exclude each other. Put all names into nodes."
        if external and placed:
            yield (
                (*at, placed[0]),
                f"an engine with {external[0]}: is run by somebody else. Drop {placed[0]} or {external[0]}.",
            )
        if not external and not placed and len(nodes) > 1:
            yield (*at, "node"), f"missing, and there are {len(nodes)} nodes. Write node: {' or node: '.join(nodes)}"
        if not external and engine.get("runtime") == "external":
            yield (*at, "runtime"), "an external engine needs its address. Add url: http://HOST:PORT"
        yield from _addresses(at, engine, nodes)


def _addresses(at: Path, engine: Mapping[str, Any], nodes: Named) -> Found:
    for path, url in [((*at, "url"), engine.get("url")), *_items((*at, "urls"), engine.get("urls"))]:
        if isinstance(url, str) and not url.startswith(("http://", "https://")):
            yield path, f"{url!r} is not an address. Write http://{url.partition('://')[2] or url}"
    for path, node in [((*at, "node"), engine.get("node")), *_items((*at, "nodes"), engine.get("nodes"))]:
        if isinstance(node, str) and node not in nodes:
            yield path, _no_such("node", node, nodes)


def _items(path: Path, values: object) -> list[tuple[Path, object]]:
    return [((*path, at), value) for at, value in enumerate(values)] if isinstance(values, list) else []


def _ports(engines: Named, nodes: Named) -> Found:
    taken: dict[tuple[str, int], str] = {}
    only = next(iter(nodes), "") if len(nodes) <= 1 else ""
    for name, engine in engines.items():
        port = _count(engine.get("port"))
        if port is None:
            continue
        written = engine.get("nodes")
        places = [str(each) for each in written] if isinstance(written, list) and written else []
        places = places or [str(engine.get("node") or only)]
        holder = next((taken[place, port] for place in places if (place, port) in taken), None)
        if not 1 <= port <= 65535:
            yield ("engines", name, "port"), f"{port} is not a port. Choose one between 1 and 65535, or leave it out."
        elif holder is not None:
            yield (
                ("engines", name, "port"),
                f"port {port} is taken by engine {holder!r}. {port + 1}, or leave it out.",
            )
        for place in places:
            taken.setdefault((place, port), name)


def _lanes(engines: Named) -> Found:
    for name, engine in engines.items():
        lanes, slots = engine.get("lanes"), _count(engine.get("slots") or engine.get("sequences"))
        reserve = lanes.get("reserve") if isinstance(lanes, Mapping) else None
        if not isinstance(reserve, Mapping) or slots is None:
            continue
        total = sum(_count(value) or 0 for value in reserve.values())
        if total > slots:
            yield ("engines", name, "lanes", "reserve"), f"{total} slots are reserved of {slots}. {slots} is the most."


def _personas(personas: Named, engines: Named) -> Found:
    for name, persona in personas.items():
        engine = persona.get("engine")
        if not isinstance(engine, str):
            continue
        if engine not in engines:
            yield ("personas", name, "engine"), _no_such("engine", engine, engines)
            continue
        context, most = _count(persona.get("context")), _count(engines[engine].get("context"))
        if context and most and context > most:
            yield ("personas", name, "context"), f"engine {engine!r} takes {most} tokens. {most} is the most."
        answer, room = _count(persona.get("max_tokens")), context or most
        if answer and room and answer >= room:
            path = ("personas", name, "max_tokens")
            yield path, f"{answer} tokens leave no room for a prompt in a context of {room}. {room // 2} would."


def _aliases(personas: Named) -> Found:
    taken: dict[str, str] = {}
    for name, persona in personas.items():
        for path, alias in _items(("personas", name, "aliases"), persona.get("aliases")):
            if not isinstance(alias, str):
                continue
            if alias in personas:
                yield path, f"{alias!r} is the name of a persona already. Drop the alias."
            elif alias in taken:
                yield path, f"{alias!r} leads to persona {taken[alias]!r} already. Keep one."
            taken.setdefault(alias, name)


def _recipes(personas: Named, engines: Named, recipes: Callable[[], Mapping[str, bool]]) -> Found:
    asked = [("engines", name, "recipe", engine.get("recipe")) for name, engine in engines.items()]
    asked += [("personas", name, "fim", persona.get("fim")) for name, persona in personas.items()]
    asked = [row for row in asked if isinstance(row[3], str)]
    known = recipes() if asked else {}
    for section, name, key, recipe in asked:
        choices = {which: has for which, has in known.items() if has or key == "recipe"}
        if recipe not in choices:
            what = "recipe" if key == "recipe" else "fill-in-the-middle template"
            near = get_close_matches(str(recipe), choices, 1)
            yield (
                (section, name, key),
                f"no {what} {recipe!r}. "
                + (f"Did you mean {near[0]!r}?" if near else f"There is {', '.join(sorted(choices)) or 'none'}."),
            )


def _stores(data: Mapping[str, Any], personas: Named) -> Found:
    stores = data.get("stores")
    for key in ("document_persona", "query_persona", "rerank_persona"):
        persona = stores.get(key) if isinstance(stores, Mapping) else None
        if isinstance(persona, str) and persona not in personas:
            yield ("stores", key), _no_such("persona", persona, personas)
    uri = stores.get("uri") if isinstance(stores, Mapping) else None
    if isinstance(uri, str) and "://" in uri:
        scheme, _, rest = uri.partition("://")
        if scheme not in _STORE_SCHEMES:
            where = "Write a folder, or s3://bucket/path (az://, gs:// and file:// work, too)."
            yield ("stores", "uri"), f"{uri!r} is no place for vectors. {where}"
        elif scheme != "file" and not rest.split("/")[0]:
            yield ("stores", "uri"), f"{uri!r} names no bucket. Write {scheme}://bucket/path."
