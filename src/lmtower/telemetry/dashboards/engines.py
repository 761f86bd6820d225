"""Engines and nodes: what happens inside vLLM and llama.cpp, and what the machine under them does."""

from __future__ import annotations

from lmtower.telemetry.dashboards.panels import (
    ENGINE,
    GREEN,
    HIGH_IS_BAD_RATIO,
    NODE,
    RATE,
    RED,
    YELLOW,
    Board,
    E,
    N,
    Panel,
    Query,
    Row,
    quantile,
)


def _count(metric: str) -> str:
    return f"sum by (engine) (rate({metric}{{{E}}}[{RATE}]))"


_SLOTS = Row(
    "At the gateway",
    (
        Panel(
            "Slots in use",
            "Requests that the gateway has at the engine, as share of its slots.",
            (Query(f"lmtower_engine_in_flight{{{E}}} / (lmtower_engine_slots{{{E}}} > 0)", "{{engine}}"),),
            "percentunit",
            width=6,
            thresholds=HIGH_IS_BAD_RATIO,
            maximum=1,
        ),
        Panel(
            "Waiting, by lane",
            "Requests that wait for a slot.",
            (Query(f"sum by (engine, lane) (lmtower_engine_queued{{{E}}})", "{{engine}} {{lane}}"),),
            "short",
            width=6,
        ),
        Panel(
            "Health and circuit",
            "1: the replica answers its health check. Circuit: 0 closed, 1 half open, 2 open.",
            (
                Query(f"lmtower_upstream_healthy{{{E}}}", "{{engine}} {{replica}} healthy"),
                Query(f"lmtower_upstream_circuit{{{E}}}", "{{engine}} {{replica}} circuit"),
            ),
            "short",
            width=6,
        ),
        Panel(
            "Ready since",
            "How long the engine has been answering.",
            (Query(f"lmtower_engine_ready_seconds{{{E}}}", "{{engine}}", instant=True),),
            "s",
            "bargauge",
            width=6,
        ),
    ),
)

_ENGINES = Row(
    "Inside the engines",
    (
        Panel(
            "Running and waiting",
            "As the engine sees it. Waiting should be 0: admission is the gateway's.",
            (
                Query(f"vllm:num_requests_running{{{E}}} or llamacpp:requests_processing{{{E}}}", "{{engine}} running"),
                Query(f"vllm:num_requests_waiting{{{E}}} or llamacpp:requests_deferred{{{E}}}", "{{engine}} waiting"),
            ),
            "short",
        ),
        Panel(
            "Tokens per second",
            "Prompt tokens computed, and tokens generated.",
            (
                Query(
                    f"({_count('vllm:prompt_tokens_total')} - {_count('vllm:prefix_cache_hits_total')})"
                    f" or {_count('llamacpp:prompt_tokens_total')}",
                    "{{engine}} prefill",
                ),
                Query(
                    f"{_count('vllm:generation_tokens_total')} or {_count('llamacpp:tokens_predicted_total')}",
                    "{{engine}} decode",
                ),
            ),
            "short",
        ),
        Panel(
            "KV cache use",
            "Above 95 % vLLM begins to preempt.",
            (Query(f"vllm:kv_cache_usage_perc{{{E}}}", "{{engine}}"),),
            "percentunit",
            thresholds=HIGH_IS_BAD_RATIO,
            maximum=1,
            empty="no vLLM engine",
        ),
        Panel(
            "Preemptions",
            "Requests that vLLM interrupted for lack of KV cache, per minute. Their prompts are computed again.",
            (Query(f"60 * {_count('vllm:num_preemptions_total')}", "{{engine}}"),),
            "short",
            width=6,
            empty="no vLLM engine",
        ),
        Panel(
            "Time to first token, p95",
            "Inside the engine: without the gateway's queue.",
            (Query(quantile(0.95, "vllm:time_to_first_token_seconds", E, "engine"), "{{engine}}"),),
            "s",
            width=6,
            empty="no vLLM engine",
        ),
        Panel(
            "Inter-token latency, p95",
            "Inside the engine.",
            (Query(quantile(0.95, "vllm:inter_token_latency_seconds", E, "engine"), "{{engine}}"),),
            "s",
            width=6,
            empty="no vLLM engine",
        ),
        Panel(
            "Ends of requests",
            "Finished requests by reason, as vLLM counts them. `abort`: the gateway cancelled.",
            (
                Query(
                    f"sum by (engine, finished_reason) (rate(vllm:request_success_total{{{E}}}[{RATE}]))",
                    "{{engine}} {{finished_reason}}",
                ),
            ),
            "reqps",
            width=6,
            stack=True,
            empty="no vLLM engine",
        ),
    ),
)

_MEMORY = Row(
    "Memory of the nodes",
    (
        Panel(
            "Memory available",
            "MemAvailable. On unified memory this is GPU memory too. Under the reserve the watchdog acts.",
            (
                Query(f"lmtower_node_memory_available_bytes{{{N}}}", "{{node}} available"),
                Query(f"lmtower_node_memory_reserve_bytes{{{N}}}", "{{node}} reserve"),
                Query(f"lmtower_node_memory_total_bytes{{{N}}}", "{{node}} total"),
            ),
            "bytes",
        ),
        Panel(
            "GPU memory by process",
            "What each engine really holds.",
            (Query(f"sum by (node, process) (lmtower_node_gpu_process_memory_bytes{{{N}}})", "{{node}} {{process}}"),),
            "bytes",
            stack=True,
            empty="no GPU",
        ),
        Panel(
            "Pressure",
            "Share of time in which tasks waited for memory or I/O (PSI, 60 s average).",
            (
                Query(
                    f'lmtower_node_pressure_ratio{{{N},window="avg60",kind="some"}}',
                    "{{node}} {{resource}}",
                ),
            ),
            "percentunit",
        ),
        Panel(
            "Swap used",
            "On a node with unified memory any use is a warning.",
            (Query(f"lmtower_node_swap_total_bytes{{{N}}} - lmtower_node_swap_free_bytes{{{N}}}", "{{node}}"),),
            "bytes",
            width=12,
        ),
        Panel(
            "Watchdog",
            "0 calm, 1 holds batch work, 2 holds default work too, 3 stops an engine.",
            (Query(f"lmtower_node_watchdog_level{{{N}}}", "{{node}}"),),
            "short",
            width=12,
            thresholds=((None, GREEN), (1, YELLOW), (3, RED)),
            empty="no watchdog",
        ),
    ),
)

_GPU = Row(
    "GPUs",
    (
        Panel(
            "Utilisation",
            "Share of time in which a kernel ran.",
            (Query(f"lmtower_node_gpu_utilization_ratio{{{N}}}", "{{node}} GPU {{gpu}}"),),
            "percentunit",
            width=6,
            maximum=1,
            empty="no GPU",
        ),
        Panel(
            "Power",
            "Electrical power of the GPU.",
            (Query(f"lmtower_node_gpu_power_watts{{{N}}}", "{{node}} GPU {{gpu}}"),),
            "watt",
            width=6,
            empty="no GPU",
        ),
        Panel(
            "Temperature",
            "Of the GPU's core.",
            (Query(f"lmtower_node_gpu_temperature_celsius{{{N}}}", "{{node}} GPU {{gpu}}"),),
            "celsius",
            width=6,
            thresholds=((None, GREEN), (80, YELLOW), (90, RED)),
            empty="no GPU",
        ),
        Panel(
            "SM clock",
            "A DGX Spark that stays far under 1 GHz under load has a power fault: unplug its brick for a minute.",
            (Query(f"lmtower_node_gpu_sm_clock_hertz{{{N}}}", "{{node}} GPU {{gpu}}"),),
            "hertz",
            width=6,
            empty="no GPU",
        ),
    ),
)

ENGINES = Board(
    "lmtower-engines",
    "lmtower / Engines & nodes",
    "Inside the engines, and the memory, pressure and GPUs of the machines under them.",
    (ENGINE, NODE),
    (_SLOTS, _ENGINES, _MEMORY, _GPU),
)
