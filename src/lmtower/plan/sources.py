"""Finds a model's small files: a folder, a config.json, a GGUF, the Hugging Face cache, the bundled catalogue, the hub.

The only file of this room that reads disk and network, and only when called. From the hub it takes config.json,
the quantisation file, the safetensors index and headers: kilobytes, never weights.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lmtower.config.types import Tower
from lmtower.errors import PlanError
from lmtower.plan.catalogue import bundled
from lmtower.plan.gguf_read import read_gguf
from lmtower.plan.model import ModelFiles
from lmtower.plan.wants import runtime_of
from lmtower.plan.weights import CheckpointTensor

_CONFIG, _QUANT, _INDEX = "config.json", "hf_quant_config.json", "model.safetensors.index.json"
_LARGEST_JSON = 256 * 1024**2
_TIMEOUT_SECONDS = 10.0


def collect(tower: Tower, base: Path, environ: Mapping[str, str], *, offline: bool = False) -> dict[str, ModelFiles]:
    """Files of every engine's model, by engine name; relative paths are relative to ``base``. Raises PlanError."""
    found = {}
    for name, engine in tower.engines.items():
        if runtime_of(engine) != "external":
            try:
                found[name] = find_model(engine.model, base=base, environ=environ, offline=offline)
            except PlanError as error:
                raise PlanError(f"engines.{name}.model: {error}", field=error.field) from error
    return found


def find_model(
    reference: str, *, base: Path = Path(), environ: Mapping[str, str] | None = None, offline: bool = False
) -> ModelFiles:
    """The files of a model: a path if it exists, else the cache, the bundled catalogue, the hub. Raises PlanError."""
    environ = os.environ if environ is None else environ
    path = base / Path(reference).expanduser()
    if _exists(path):
        return read_path(path)
    if reference.endswith((".json", ".gguf")) or reference.startswith((".", "/", "~")):
        raise PlanError(f"{reference}: no such file or folder", field="model")
    snapshot = _cached(reference, environ)
    if snapshot is not None:
        return _renamed(read_path(snapshot), reference, "the Hugging Face cache")
    found = bundled(reference)
    if found is not None:
        return found
    if reference.count("/") != 1:
        raise PlanError(
            f"{reference!r} is neither a file, nor a folder, nor ORGANISATION/NAME of a model", field="model"
        )
    if offline or environ.get("HF_HUB_OFFLINE") in ("1", "true", "yes"):
        raise PlanError(
            f"{reference!r} is neither bundled nor in the Hugging Face cache, and the hub is not asked (offline)",
            field="model",
        )
    return _from_hub(reference, environ)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def read_path(path: Path) -> ModelFiles:
    """A folder, a config.json (or a renamed one with its siblings) or a GGUF file. Raises PlanError."""
    if path.is_dir():
        return _read_folder(path)
    if path.suffix == ".gguf":
        return ModelFiles(name=path.stem, gguf=read_gguf(path), origin=str(path))
    config = _read_json(path)
    stem = path.name.removesuffix(".json")
    quant = _first_json(path.parent / f"{stem}.{_QUANT}", *((path.parent / _QUANT,) if path.name == _CONFIG else ()))
    name = path.parent.resolve().name if path.name == _CONFIG else stem.replace("__", "/", 1)
    if path.name == _CONFIG:
        tensors, total = _sizes(path.parent)
        return ModelFiles(name, config, quant, tensors, total, origin=str(path))
    return ModelFiles(name, config, quant, origin=str(path))


def _read_folder(folder: Path) -> ModelFiles:
    if (folder / _CONFIG).is_file():
        tensors, total = _sizes(folder)
        return ModelFiles(
            folder.resolve().name,
            _read_json(folder / _CONFIG),
            _first_json(folder / _QUANT),
            tensors,
            total,
            origin=str(folder),
        )
    ggufs = sorted(folder.glob("*.gguf"))
    if ggufs:
        return ModelFiles(name=ggufs[0].stem, gguf=read_gguf(ggufs[0]), origin=str(ggufs[0]))
    raise PlanError(f"{folder}: there is no config.json and no .gguf in this folder", field="model")


def _sizes(folder: Path) -> tuple[tuple[CheckpointTensor, ...] | None, int | None]:
    """Headers where the weights are there, else the index's total."""
    shards = sorted(path for path in folder.glob("*.safetensors") if path.is_file())
    index = _first_json(folder / _INDEX)
    listed = _index_files(index)
    if listed:
        shards = [shard for shard in shards if shard.name in listed]
    if shards and (not listed or len(shards) == len(listed)):
        return tuple(tensor for shard in shards for tensor in read_header(shard)), None
    return None, index_total(index)


def _index_files(index: Mapping[str, Any] | None) -> frozenset[str]:
    mapping = index.get("weight_map") if index else None
    return frozenset(str(value) for value in mapping.values()) if isinstance(mapping, Mapping) else frozenset()


def index_total(index: Mapping[str, Any] | None) -> int | None:
    """``metadata.total_size`` of a safetensors index; None when it is not there. Raises PlanError on nonsense."""
    metadata = index.get("metadata") if index else None
    total = metadata.get("total_size") if isinstance(metadata, Mapping) else None
    if total is None:
        return None
    if isinstance(total, bool) or not isinstance(total, int | float) or not 0 < total < 2**60:
        raise PlanError(f"metadata.total_size: {total!r} in {_INDEX} is not a size", field="metadata.total_size")
    return int(total)


def read_header(path: Path) -> list[CheckpointTensor]:
    """Tensors of one safetensors file, from its JSON header. Raises PlanError."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(_LARGEST_JSON, path.stat().st_size):
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(file.read(length))
        return list(_header_tensors(header))
    except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PlanError(f"{path.name}: not a readable safetensors file ({error})", field=path.name) from error


def _header_tensors(header: Mapping[str, Any]) -> Iterable[CheckpointTensor]:
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, end = entry["data_offsets"]
        if not 0 <= start <= end:
            raise ValueError(f"offsets of {name}")
        shape = tuple(int(size) for size in entry.get("shape", ()))
        yield CheckpointTensor(name, int(end) - int(start), shape, str(entry.get("dtype", "")))


def _first_json(*paths: Path) -> Mapping[str, Any] | None:
    return next((_read_json(path) for path in paths if path.is_file()), None)


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise PlanError(f"{path.name}: too large for a configuration", field=path.name)
        value = json.loads(path.read_bytes().decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise PlanError(
            f"{path.name}: line {error.lineno}, column {error.colno}: not JSON ({error.msg})", field=path.name
        ) from error
    except (OSError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise PlanError(f"{path.name}: cannot be read ({error})", field=path.name) from error
    if not isinstance(value, dict):
        raise PlanError(f"{path.name}: {type(value).__name__} where a JSON object is expected", field=path.name)
    return value


def _cached(reference: str, environ: Mapping[str, str]) -> Path | None:
    """Newest snapshot of a model in the Hugging Face cache that has a config.json."""
    home = environ.get("HF_HOME") or str(Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface")
    hub = Path(environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE") or Path(home) / "hub")
    folder = hub / f"models--{reference.replace('/', '--')}" / "snapshots"
    if not _exists(folder):
        return None
    snapshots = [entry for entry in folder.iterdir() if (entry / _CONFIG).is_file()]
    return max(snapshots, key=lambda entry: entry.stat().st_mtime, default=None)


def _renamed(files: ModelFiles, name: str, origin: str) -> ModelFiles:
    return ModelFiles(name, files.config, files.quant_file, files.tensors, files.total_size, files.gguf, origin)


def _from_hub(reference: str, environ: Mapping[str, str]) -> ModelFiles:
    """Only the small files. Foreign errors are translated here."""
    import httpx
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, NotASafetensorsRepoError

    _reach(environ.get("HF_ENDPOINT") or "https://huggingface.co", reference)
    api = HfApi(token=environ.get("HF_TOKEN") or None)
    try:
        config = _read_json(Path(hf_hub_download(reference, _CONFIG, token=api.token, etag_timeout=_TIMEOUT_SECONDS)))
        quant, index = (
            _optional(hf_hub_download, reference, name, api.token, EntryNotFoundError) for name in (_QUANT, _INDEX)
        )
        try:
            metadata = api.get_safetensors_metadata(reference)
            tensors = tuple(
                CheckpointTensor(
                    name, tensor.data_offsets[1] - tensor.data_offsets[0], tuple(tensor.shape), tensor.dtype
                )
                for part in metadata.files_metadata.values()
                for name, tensor in part.tensors.items()
            )
        except NotASafetensorsRepoError:
            tensors = ()
    except (HfHubHTTPError, HFValidationError, httpx.HTTPError, OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise PlanError(
            f"{reference!r} is neither a folder, nor in the Hugging Face cache, nor bundled, and the "
            f"hub does not give it: {first}",
            field="model",
        ) from error
    return ModelFiles(reference, config, quant, tensors or None, index_total(index), origin="the hub")


def _reach(endpoint: str, reference: str) -> None:
    """One quick look whether there is a network at all: the hub's own client retries for half a minute."""
    import httpx

    try:
        httpx.head(endpoint, timeout=_TIMEOUT_SECONDS)
    except httpx.HTTPError as error:
        raise PlanError(
            f"{reference!r} is neither a folder, nor in the Hugging Face cache, nor bundled, "
            f"and the hub cannot be reached ({error})",
            field="model",
        ) from error


def _optional(
    download: Any, reference: str, name: str, token: Any, missing: type[Exception]
) -> Mapping[str, Any] | None:
    try:
        return _read_json(Path(download(reference, name, token=token, etag_timeout=_TIMEOUT_SECONDS)))
    except missing:
        return None
