"""The tower file as frozen, typed values. Field descriptions are the documentation of the keys.

These types know nothing of YAML, files or the environment: ``config.load`` reads, resolves references
(``file:``, ``env:``) and turns what a person wrote (``200k``, ``12 GiB``, ``30s``) into these values.
Sizes are in bytes, durations in seconds, contexts and sequences are counts.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from lmtower.config.units import Count, Duration, Size

Lane = Literal["interactive", "agent", "default", "batch"]
LANES: tuple[Lane, ...] = ("interactive", "agent", "default", "batch")
Thinking = Literal["on", "off", "low", "auto"]
ToolMode = Literal["auto", "strict", "off"]
Runtime = Literal["vllm", "llamacpp", "external"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,62}$")]
ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$")]


class Section(BaseModel):
    """Base of every section: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), defer_build=True)


class Tls(Section):
    cert: str = Field(description="PEM file of the certificate chain. A renewed one is shown at once.")
    key: str = Field(description="PEM file of the private key, not encrypted.")


class Gateway(Section):
    listen: str = Field(default="0.0.0.0:8080", description="Address that clients talk to, as HOST:PORT.")
    admin: str = Field(
        default="127.0.0.1:8081", description="Address of the admin listener: metrics, admin API. Keep it private."
    )
    tls: Tls | None = Field(default=None, description="Serve HTTPS with this certificate.")
    cors: tuple[str, ...] = Field(
        default=(), description='Origins that browsers may call from; `["*"]` allows all, empty sends no CORS headers.'
    )
    max_body: Size = Field(default=64 * 1024**2, description="Largest request body; a larger one is answered 413.")
    first_token_timeout: Duration = Field(default=1200.0, description="Longest wait for an engine's first byte.")
    idle_timeout: Duration = Field(
        default=600.0, description="Longest silence of an engine in the middle of an answer."
    )
    keepalive: Duration = Field(
        default=15.0, description="Silence after which a streaming client is sent a keep-alive."
    )
    shutdown_grace: Duration = Field(
        default=30.0, description="How long running requests may take to finish when the tower stops."
    )
    image_urls: tuple[str, ...] = Field(
        default=(),
        description="Hosts (`host`, or `host:port` for another port than 80 and 443) from which the gateway may fetch "
        "`http(s)://` images. A private address must be named itself, beside the name that leads to it. Empty: only "
        "`data:` URLs.",
    )
    keep_responses: Duration = Field(
        default=86400.0,
        description="How long `/v1/responses` may be gone on from by `previous_response_id`. They are kept in memory, "
        "64 MiB of them at most, for the key that made them, unless the request says `store: false`. 0 keeps none.",
    )
    dangerous_fields: tuple[str, ...] = Field(
        default=(),
        description="Engine extras (`chat_template`, `priority`, `cache_salt`, ...) that clients may send; all "
        "others are dropped.",
    )
    hosts: tuple[str, ...] = Field(
        default=(), description="Host names that the admin listener answers to, besides its own address."
    )


class Node(Section):
    address: str = Field(
        default="local", description="`local`, or `ssh://user@host[:port]` for a node with a Docker engine."
    )
    hardware: str | None = Field(
        default=None,
        description="Name in the hardware catalogue (`dgx-spark`, `h100`, ...) or a size such as `24 GiB`; "
        "`lmtower fit --hardware list` prints it.",
    )
    reserve: Size | None = Field(
        default=None,
        description="Memory kept free for the operating system. Default: 12 GiB on unified memory, 1 GiB on a card.",
    )
    driver: Literal["docker", "process"] | None = Field(
        default=None,
        description="How engines run: containers, or child processes of the tower. Default: `process` for a "
        "`local` node without hardware, else `docker`.",
    )
    bind: str | None = Field(
        default=None,
        description="Private address that engines of this node listen on and the tower reaches them at. "
        "Default: the host of `address`.",
    )
    models: str | None = Field(
        default=None,
        description="Folder on the node for model weights and compile caches. Default: the node's Hugging Face cache.",
    )
    agent: str | None = Field(default=None, description="URL of the node agent, when it is not http://<bind>:9401.")


class Lanes(Section):
    reserve: dict[Lane, Count] = Field(
        default_factory=dict, description="Slots that only this lane (and more urgent ones) may use."
    )
    queue: Count = Field(default=64, description="Requests that may wait per lane; one more is answered 429.")
    deadline: Duration = Field(default=120.0, description="Longest wait in the queue.")
    ageing: Duration = Field(
        default=15.0, description="Waiting time that lifts a request by one lane, so that batch work always progresses."
    )


class Engine(Section):
    model: str = Field(
        description="Hugging Face model, a folder, a GGUF file, `bundled:smollm2`, or the served name of an "
        "external engine."
    )
    node: Name | None = Field(
        default=None, description="Node that runs it. May be left out when there is only one node."
    )
    nodes: tuple[Name, ...] = Field(
        default=(),
        description="Several nodes: one replica on each, or one engine over all of them with `tensor_parallel`.",
    )
    url: str | None = Field(default=None, description="Address of an engine that somebody else runs (`external`).")
    urls: tuple[str, ...] = Field(default=(), description="Addresses of several replicas of an external engine.")
    api_key: SecretStr | None = Field(
        default=None, description="Key that the engine asks for, as `env:NAME` or `file:PATH`."
    )
    runtime: Runtime | None = Field(
        default=None, description="`vllm`, `llamacpp` or `external`. Default: by model and url."
    )
    version: str | None = Field(
        default=None,
        description="Version of the runtime, such as `0.33.0`. Default: the one that the recipe was made for.",
    )
    image: str | None = Field(default=None, description="Container image. Default: by recipe and version.")
    recipe: str | None = Field(
        default=None, description="Model family whose recipe is used. Default: recognised from the model."
    )
    context: Count | Literal["max"] | None = Field(
        default=None,
        description="Tokens per request (`max_model_len`). `max`: the largest that fits. Default: what the "
        "model was trained for, as far as it fits.",
    )
    sequences: Count | None = Field(default=None, description="Requests that run at once (`max_num_seqs`).")
    batch_tokens: Count | None = Field(
        default=None, description="Tokens per scheduler step (`max_num_batched_tokens`)."
    )
    kv_cache_dtype: str | None = Field(
        default=None, description="`auto`, `bf16`, `fp8`, `nvfp4`, ... Default: by recipe and hardware."
    )
    kv_cache_memory: Size | None = Field(
        default=None, description="Fixed size of the KV cache. Default: derived by the planner."
    )
    quantization: str | None = Field(
        default=None, description="Override of the weight quantisation that the checkpoint declares."
    )
    speculative_tokens: Count = Field(
        default=0, description="Draft tokens per step (multi-token prediction); costs weights and KV cache."
    )
    tensor_parallel: Count = Field(default=1, description="GPUs that one copy of the model is split over.")
    prefix_caching: bool = Field(default=True, description="The golden rule. Switch off only to measure.")
    port: Count | None = Field(
        default=None, description="Port on the node. Default: counted up from 8100 in the order of the file."
    )
    args: dict[str, Any] = Field(
        default_factory=dict,
        description="Further flags of the runtime, as `flag-name: value`; they win over everything derived.",
    )
    env: dict[str, str] = Field(default_factory=dict, description="Further environment variables of the engine.")
    mounts: tuple[str, ...] = Field(
        default=(),
        description="Further folders of the node that a container sees (adapters, ...), as `/source:/target[:ro]`.",
    )
    slots: Count | None = Field(
        default=None, description="Requests that the gateway sends at once. Default: `sequences`."
    )
    lanes: Lanes = Field(
        default_factory=lambda: Lanes(),
        description="How waiting requests share the slots. vLLM is told the lane as a `priority` when `args` have "
        "`scheduling-policy: priority`, also those of an external one: the least urgent are preempted first.",
    )
    importance: Count = Field(
        default=50, description="The watchdog stops the least important engine first when a node runs out of memory."
    )


class Images(Section):
    max_count: Count | None = Field(default=None, description="Images allowed in one request.")
    max_side: Count | None = Field(default=None, description="Longer side in pixels; larger images are scaled down.")
    max_bytes: Size | None = Field(default=None, description="Largest single image, encoded.")


class Limits(Section):
    requests_per_minute: Count | None = Field(default=None, description="Requests in any 60 seconds.")
    tokens_per_minute: Count | None = Field(default=None, description="Input and output tokens in any 60 seconds.")
    tokens_per_day: Count | None = Field(default=None, description="Input and output tokens in any 24 hours.")
    images_per_day: Count | None = Field(default=None, description="Images in any 24 hours.")
    money_per_month: float | None = Field(
        default=None, ge=0, allow_inf_nan=False, description="Spend in a calendar month, by the personas' `price`."
    )
    parallel: Count | None = Field(default=None, description="Requests at the same time.")


class Price(Section):
    input: float = Field(default=0.0, ge=0, description="Per million input tokens.")
    cached: float | None = Field(
        default=None, ge=0, description="Per million input tokens that came from the prefix cache. Default: as `input`."
    )
    output: float = Field(default=0.0, ge=0, description="Per million output tokens.")
    image: float = Field(default=0.0, ge=0, description="Per image.")

    def of(self, input_tokens: int, cached_tokens: int, output_tokens: int, images: int) -> float:
        """Money for what was used; ``cached_tokens`` are part of ``input_tokens``."""
        cached = self.input if self.cached is None else self.cached
        fresh = input_tokens - cached_tokens
        return (fresh * self.input + cached_tokens * cached + output_tokens * self.output) / 1e6 + images * self.image


class Sampling(Section):
    temperature: float | None = Field(default=None, ge=0, le=2, description="Sampling temperature.")
    top_p: float | None = Field(default=None, gt=0, le=1, description="Nucleus sampling.")
    top_k: int | None = Field(default=None, ge=-1, description="Tokens considered at each step.")
    min_p: float | None = Field(
        default=None, ge=0, le=1, description="Smallest probability relative to the best token."
    )
    max_tokens: Count | None = Field(default=None, description="Longest answer in tokens.")
    presence_penalty: float | None = Field(default=None, ge=-2, le=2, description="Penalty for tokens already used.")
    frequency_penalty: float | None = Field(
        default=None, ge=-2, le=2, description="Penalty that grows with each use of a token."
    )
    repetition_penalty: float | None = Field(default=None, gt=0, description="Multiplicative repetition penalty.")
    seed: int | None = Field(default=None, description="Seed of the sampler.")
    stop: tuple[str, ...] | None = Field(default=None, description="Strings that end the answer.")
    reasoning_effort: str | None = Field(default=None, description="Effort for models that take it (gpt-oss).")


class Persona(Sampling):
    engine: Name = Field(description="Engine that answers.")
    description: str = Field(default="", description="One line for people; shown by `/v1/models` and the console.")
    system: str | None = Field(
        default=None,
        repr=False,
        description="System prompt, or `file:PATH`. Goes first, byte-stable, and never leaves the tower.",
    )
    thinking: Thinking | None = Field(
        default=None,
        description="`on`, `off`, `low`, or `auto` (the client decides). Mapped to the model's own switch by "
        "the recipe.",
    )
    enforce: Sampling = Field(
        default_factory=lambda: Sampling(), description="Sampling keys in which the persona wins over the client."
    )
    extra: dict[str, Any] = Field(
        default_factory=dict, description="Further engine parameters, sent as defaults (`chat_template_kwargs`, ...)."
    )
    tools: ToolMode = Field(
        default="auto", description="`strict`: tool calls are constrained, checked, repaired. `off`: tools are refused."
    )
    lane: Lane = Field(default="default", description="interactive > agent > default > batch.")
    fim: str | None = Field(
        default=None, description="Fill-in-the-middle template of this model family (`qwen2.5-coder`, ...)."
    )
    prefix: str | None = Field(default=None, description="Text put before every input of an embedding request.")
    images: Images = Field(default_factory=lambda: Images(), description="Limits on images.")
    context: Count | None = Field(
        default=None, description="`max_model_len` that is advertised. Default: the engine's."
    )
    aliases: tuple[str, ...] = Field(
        default=(), description="Other model names that lead here; `*` matches anything (`claude-*`, `*haiku*`)."
    )
    limits: Limits = Field(default_factory=lambda: Limits(), description="Limits over all clients of this persona.")
    price: Price | None = Field(default=None, description="What tokens cost, for budgets and reports.")
    stores: tuple[Name, ...] = Field(default=(), description="Vector stores that `file_search` looks into.")
    ttft_target: Duration | None = Field(default=None, description="Time to first token that counts as good (goodput).")
    canonical_tools: bool = Field(
        default=False,
        description="Sort tools by name, so that a client's changing order does not break the prefix cache.",
    )
    hidden: bool = Field(default=False, description="Usable, but not listed by `/v1/models`.")


class Observability(Section):
    prometheus: str | None = Field(
        default=None, description="`managed` (started by `lmtower up`), or the URL of a Prometheus."
    )
    grafana: str | None = Field(
        default=None, description="`managed` (started by `lmtower up`), or the URL of a Grafana."
    )
    tracing: str | None = Field(default=None, description="OTLP/HTTP endpoint for traces.")
    cloud_price: Price | None = Field(
        default=None, description="Price of a comparable cloud model, for the money-saved panel."
    )
    max_clients: Count = Field(
        default=100, description="Clients with series of their own; the rest is counted as `other`."
    )


class Stores(Section):
    uri: str | None = Field(
        default=None,
        description="Where vectors live: a folder or `s3://bucket/path`. Default: `stores/` in the data folder.",
    )
    document_persona: ModelName | None = Field(default=None, description="Embedding persona for documents.")
    query_persona: ModelName | None = Field(default=None, description="Embedding persona for queries.")
    rerank_persona: ModelName | None = Field(default=None, description="Rerank persona; none: no reranking.")
    vector_weight: float | None = Field(
        default=None,
        ge=0,
        description="Weight of the search by meaning beside that by words (1). Default: 1; 0.5 for word vectors.",
    )
    listen: str = Field(default="127.0.0.1:8082", description="Private address of the store process.")
    max_file: Size = Field(default=256 * 1024**2, description="Largest file.")
    max_pages: Count = Field(default=5000, description="Most pages of one document.")
    max_seconds: Duration = Field(default=300.0, description="Longest extraction of one document.")


class Tower(Section):
    gateway: Gateway = Field(
        default_factory=lambda: Gateway(), description="The address that clients talk to and how it behaves."
    )
    nodes: dict[Name, Node] = Field(
        default_factory=dict, description="Machines with GPUs. None: everything runs on this machine."
    )
    engines: dict[Name, Engine] = Field(description="Running inference servers, one model each.")
    personas: dict[ModelName, Persona] = Field(description="Models as clients see them.")
    limits: Limits = Field(
        default_factory=lambda: Limits(), description="Limits of every key that has none of its own."
    )
    observability: Observability = Field(
        default_factory=lambda: Observability(), description="Prometheus, Grafana, traces."
    )
    stores: Stores = Field(default_factory=lambda: Stores(), description="Vector stores.")
    database: str | None = Field(
        default=None, repr=False, description="SQLAlchemy URL for keys and usage. Default: SQLite in the data folder."
    )
    redis: str | None = Field(default=None, repr=False, description="Redis URL for limits shared by several towers.")
