"""``lmtower fit``: does this model fit, and what would the engine's log say? Needs no tower file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lmtower.cli.globals import Globals
from lmtower.cli.output import print_json, table

if TYPE_CHECKING:
    from lmtower.plan.fit import Fit, Question

_GIB = 1024**3
_HARDWARE = "Chip of the catalogue (dgx-spark, h100, 2x h100, ...), or its memory (24GiB). `list` prints the catalogue."


def fit(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="Model of the hub, folder, config.json or .gguf file.")] = "",
    hardware: Annotated[str | None, typer.Option(help=_HARDWARE)] = None,
    context: Annotated[str | None, typer.Option(help="Tokens of one request, or `max`: the longest that fits.")] = None,
    max_model_len: Annotated[str | None, typer.Option(help="The same, as vLLM spells it.")] = None,
    kv_cache_dtype: Annotated[str, typer.Option(help="auto, bf16, fp8, nvfp4, ...")] = "auto",
    kv_cache_memory_bytes: Annotated[
        str | None, typer.Option(help="KV pool of known size: 6442450944 or 6GiB.")
    ] = None,
    max_num_seqs: Annotated[str | None, typer.Option(help="Requests that run at once.")] = None,
    max_num_batched_tokens: Annotated[str | None, typer.Option(help="Tokens of one step.")] = None,
    num_speculative_tokens: Annotated[str, typer.Option(help="Draft tokens (multi-token prediction).")] = "0",
    tensor_parallel_size: Annotated[str, typer.Option(help="GPUs that one copy is split over.")] = "1",
    prefix_caching: Annotated[
        bool, typer.Option("--prefix-caching/--no-prefix-caching", help="Prefix caching.")
    ] = True,
    vllm_version: Annotated[str | None, typer.Option(help="Version of vLLM that will run it.")] = None,
    gpu_memory_utilization: Annotated[
        float | None, typer.Option(help="Size the pool as vLLM's profiling would.")
    ] = None,
    mamba_cache_mode: Annotated[str | None, typer.Option(help="align or all, on hybrid models.")] = None,
    quantization: Annotated[str | None, typer.Option(help="Quantise while loading: fp8, int8, ...")] = None,
    language_model_only: Annotated[
        bool, typer.Option(help="A vision-language model without its vision tower.")
    ] = False,
    enforce_eager: Annotated[bool, typer.Option(help="No torch.compile, no CUDA graphs.")] = False,
    reserve: Annotated[
        str | None, typer.Option(help="Memory kept free: 12GiB on unified memory, 1GiB on a card.")
    ] = None,
    explain: Annotated[bool, typer.Option(help="Print the arithmetic line by line.")] = False,
    offline: Annotated[bool, typer.Option(help="Do not ask the hub.")] = False,
) -> None:
    """Say whether a model fits, and what vLLM's log would say of it. Exit code 2 when it does not fit."""
    options: Globals = ctx.obj
    if hardware == "list":
        _print_catalogue(options.json)
        return
    from lmtower.errors import PlanError
    from lmtower.plan.estimate import Options
    from lmtower.plan.fit import Question, default_sequences
    from lmtower.plan.fit import fit as answer
    from lmtower.plan.hardware import facts as facts_of
    from lmtower.plan.sources import find_model

    if not model:
        raise PlanError("model: missing. Write lmtower fit MODEL, or lmtower fit --hardware list", field="model")
    facts = facts_of(hardware, reserve_bytes=_size("reserve", reserve)) if hardware else None
    sequences = _count("max-num-seqs", max_num_seqs)
    question = Question(
        files=find_model(model, environ=options.environ, offline=offline),
        options=Options(
            kv_cache_dtype=kv_cache_dtype,
            max_num_seqs=sequences or default_sequences(facts),
            max_num_batched_tokens=_count("max-num-batched-tokens", max_num_batched_tokens),
            speculative_tokens=_count("num-speculative-tokens", num_speculative_tokens, least=0) or 0,
            tensor_parallel=_count("tensor-parallel-size", tensor_parallel_size) or 1,
            prefix_caching=prefix_caching,
            version=vllm_version,
            mamba_cache_mode=mamba_cache_mode,
            eager=enforce_eager,
            text_only=language_model_only,
            quantization=quantization,
        ),
        facts=facts,
        context=_context(max_model_len if context is None else context),
        pool_bytes=_size("kv-cache-memory-bytes", kv_cache_memory_bytes),
        utilisation=gpu_memory_utilization,
        sequences_given=sequences is not None,
    )
    found = answer(question)
    _print(found, question, as_json=options.json, explained=explain)
    if not found.fits:
        raise typer.Exit(PlanError.exit_code)


def _print(found: Fit, question: Question, *, as_json: bool, explained: bool) -> None:
    from lmtower.plan.explain import explain
    from lmtower.plan.fit import as_json as object_of

    if as_json:
        value: dict[str, Any] = object_of(found, question)
        if explained:
            value["explained"] = explain(found.estimate, found.context, found.pool_bytes, question.facts)
        print_json(value)
        return
    print("\n".join(_lines(found, question)))
    if explained:
        print("\n" + "\n".join(explain(found.estimate, found.context, found.pool_bytes, question.facts)))


def _lines(found: Fit, question: Question) -> list[str]:
    made = found.estimate
    shape = made.shape
    where = f" on {question.facts.hardware}" if question.facts else ""
    rows = [
        ("weights", f"{made.weights.bytes / _GIB:.2f} GiB", made.weights.basis),
        (
            "KV cache",
            f"{found.pool_bytes / _GIB:.2f} GiB",
            f"{made.kv_cache_dtype}, {found.num_blocks:,} blocks of {made.cache.block_size:,} tokens",
        ),
        ("one request", f"{found.bytes_per_request / _GIB:.2f} GiB", f"{found.context:,} tokens"),
        (
            "log line",
            f"{found.kv_cache_tokens:,} tokens",
            f"{found.max_concurrency:.2f} × {found.context:,} tokens at once",
        ),
        (
            "overhead",
            f"{made.overhead.total_bytes / _GIB:.2f} GiB",
            f"{made.options.max_num_seqs} seqs, {made.max_num_batched_tokens} batch tokens",
        ),
        (
            "sum",
            f"{found.total_bytes / _GIB:.2f} GiB",
            f"{found.budget_bytes / _GIB:.2f} GiB may be used" if found.budget_bytes is not None else "",
        ),
    ]
    if not made.has_cache:
        rows = [row for row in rows if row[0] in ("weights", "overhead", "sum")]
    if question.facts and question.facts.bandwidth_bytes_per_second and made.has_cache:
        speed = question.facts.bandwidth_bytes_per_second / max(1, made.weights.active_bytes)
        rows.append(("decode", f"{speed:.0f} tokens/s", "about, one stream: bandwidth / bytes read for a token"))
    if made.has_cache and question.context is None and found.longest_context != found.context:
        rows.append(("longest", f"{found.longest_context:,} tokens", "the longest request that fits"))
    title = (
        f"{made.files.name} ({shape.family if shape else 'GGUF'}; {made.files.origin}){where}: "
        f"{'fits' if found.fits else 'does not fit'}"
    )
    notes = [f"  {reason}" for reason in found.reasons] + [f"  warning: {warning}" for warning in found.warnings]
    return [title, table(("", "", ""), rows), *notes]


def _print_catalogue(as_json: bool) -> None:
    from lmtower.plan.hardware import catalogue

    if as_json:
        print_json([{name: getattr(chip, name) for name in chip.__struct_fields__} for chip in catalogue()])
        return
    rows = [
        (
            chip.name,
            chip.title,
            f"{chip.memory_gib:.1f}",
            f"{chip.bandwidth:.0f}",
            "yes" if chip.unified else "no",
            " ".join(chip.supports),
        )
        for chip in catalogue()
    ]
    print(table(("name", "chip", "GiB", "GB/s", "unified", "computes in"), rows))


def _context(text: str | None) -> int | Literal["max"] | None:
    if text is None:
        return None
    if text.strip().lower() == "max":
        return "max"
    return _count("max-model-len", text)


def _count(name: str, text: str | None, least: int = 1) -> int | None:
    from lmtower.config.units import parse_count
    from lmtower.errors import PlanError

    if text is None:
        return None
    try:
        count = int(parse_count(text))
    except (ValueError, OverflowError) as error:
        raise PlanError(f"--{name}: {error}", field=name) from error
    if not least <= count <= 2**40:
        raise PlanError(f"--{name}: {text!r} is out of range ({least} or more)", field=name)
    return count


def _size(name: str, text: str | None) -> int | None:
    """Bytes. A negative number is taken as said: vLLM logs such pools when nothing is left, and nothing fits then."""
    from lmtower.config.units import parse_size
    from lmtower.errors import PlanError

    if text is None:
        return None
    try:
        return -int(parse_size(text[1:])) if text.startswith("-") else int(parse_size(text))
    except (ValueError, OverflowError) as error:
        raise PlanError(f"--{name}: {error}", field=name) from error
