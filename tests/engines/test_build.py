"""LaunchSpecs beside the presets: drivers, replicas, two nodes over Ray, overrides, keys, machines without a GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lmtower.config.types import Node
from lmtower.engines import Mount, Outside, build_specs, driver_of
from lmtower.engines.flags import as_argv, merged, version_in
from lmtower.engines.shapes import shape_requests
from lmtower.errors import PlanError
from lmtower.plan.types import NodeFacts
from tests.engines.plans import CPU, FAMILIES, SPARK, plan_of, row, tower_of

TWO = {
    "one": Node(address="ssh://ops@one.lan", hardware="dgx-spark", bind="10.0.0.1"),
    "two": Node(address="ssh://ops@two.lan", hardware="dgx-spark", bind="10.0.0.2"),
}
TWO_FACTS = (replace(SPARK, name="one"), replace(SPARK, name="two"))


def test_several_nodes_hold_a_replica_each() -> None:
    """The same engine on each node, at each node's address."""
    wide = row("coder", "Qwen/Qwen2.5-Coder-1.5B", nodes=("one", "two"))
    specs = build_specs(plan_of(wide, nodes=TWO_FACTS), tower_of(wide, nodes=TWO), Outside())
    assert [(spec.node, spec.url, spec.role) for spec in specs] == [
        ("one", "http://10.0.0.1:8100", ""),
        ("two", "http://10.0.0.2:8100", ""),
    ]


def test_tensor_parallel_over_two_nodes_is_a_ray_head_and_a_worker() -> None:
    """One copy over both: the head runs vLLM, the worker joins, both know their own address."""
    wide = row("nemotron", "nvidia/Llama-3.1-70B-Instruct-FP8", nodes=("one", "two"), tensor_parallel=2)
    tower = tower_of(wide, nodes=TWO, env={"NCCL_SOCKET_IFNAME": "enp1s0f1np1"})
    head, worker = build_specs(plan_of(wide, nodes=TWO_FACTS), tower, Outside("key"))
    assert head.argv[:2] == ("bash", "-c")
    assert head.argv[2] == (
        "ray start --head --node-ip-address=10.0.0.1 --port=6379 --num-gpus=1 && exec vllm serve "
        "nvidia/Llama-3.1-70B-Instruct-FP8 --host 10.0.0.1 --port 8100 "
        "--served-model-name nvidia/Llama-3.1-70B-Instruct-FP8 --uvicorn-log-level warning "
        "--max-model-len 32768 --max-num-seqs 4 "
        "--max-num-batched-tokens 8192 --gpu-memory-utilization 0.25 --tensor-parallel-size 2 "
        "--kv-cache-memory-bytes 6442450944 --kv-cache-dtype fp8 --enable-prefix-caching "
        "--enable-prompt-tokens-details --enable-auto-tool-choice --tool-call-parser llama3_json "
        "--distributed-executor-backend ray"
    )
    assert worker.argv == (
        "ray", "start", "--address=10.0.0.1:6379", "--node-ip-address=10.0.0.2", "--num-gpus=1", "--block",
    )  # fmt: skip
    assert (head.env["VLLM_HOST_IP"], worker.env["VLLM_HOST_IP"]) == ("10.0.0.1", "10.0.0.2")
    assert worker.env["NCCL_SOCKET_IFNAME"] == "enp1s0f1np1"
    assert (head.health_path, worker.health_path) == ("/health", None)
    assert (head.name, worker.name) == ("lmtower-nemotron", "lmtower-nemotron-worker")


def test_utilisation_in_a_shell_command_is_not_hashed_either() -> None:
    """The head's command is one string; its hash does not depend on the free memory of the moment."""
    wide = row("n", "a/b", nodes=("one", "two"), tensor_parallel=2)
    hashes = {
        build_specs(plan_of(each, nodes=TWO_FACTS), tower_of(each, nodes=TWO), Outside())[0].spec_hash
        for each in (wide, replace(wide, gpu_memory_utilization=0.5))
    }
    assert len(hashes) == 1


def test_bundled_model_on_this_machine_is_a_child_process() -> None:
    """The laptop: the embedded engine, on loopback, without a key."""
    small = row("smol", "bundled:smollm2", nodes=("local",), runtime="llamacpp", max_model_len=8192)
    (spec,) = build_specs(
        plan_of(small, nodes=(CPU,)), tower_of(small, nodes={}), Outside("key", python="/venv/python")
    )
    assert spec.argv == (
        "/venv/python", "-m", "lmtower.nodes.embedded", "--model", "bundled:smollm2", "--host", "127.0.0.1",
        "--port", "8100", "--context", "8192", "--sequences", "4",
    )  # fmt: skip
    assert (spec.image, spec.secrets, spec.restart) == (None, {}, "no")


def test_vllm_without_a_gpu_computes_in_float32_on_the_cpu() -> None:
    """The integration tests' engine: no utilisation, no kernels that only GPUs have."""
    nodes = {"local": Node(driver="process", hardware="cpu")}
    small = row("smol", "/models/smollm2", nodes=("local",), recipe="smollm2", gpu_memory_utilization=0.5)
    (spec,) = build_specs(plan_of(small), tower_of(small, nodes=nodes), Outside(python="/venv/python"))
    assert spec.argv[:5] == ("/venv/python", "-m", "vllm.entrypoints.openai.api_server", "--model", "/models/smollm2")
    assert "--enforce-eager" in spec.argv
    assert "--gpu-memory-utilization" not in spec.argv
    assert spec.env["VLLM_CPU_KVCACHE_SPACE"] == "6"


def test_llama_cpp_in_a_container_shares_its_context() -> None:
    """llama-server divides its context by its sequences, so it is given the product."""
    gguf = row("q", "Qwen/Qwen3-8B-GGUF", runtime="llamacpp", max_model_len=8192)
    (spec,) = build_specs(plan_of(gguf), tower_of(gguf), Outside("key"))
    assert spec.argv == (
        "/app/llama-server", "--hf-repo", "Qwen/Qwen3-8B-GGUF", "--alias", "Qwen/Qwen3-8B-GGUF", "--host", "10.0.0.5",
        "--port", "8100", "--ctx-size", "32768", "--parallel", "4", "--metrics", "--jinja",
    )  # fmt: skip
    assert spec.api_key == "key"


def test_args_of_the_tower_file_win() -> None:
    """What a person writes replaces what is derived; null takes a flag away; the rest is appended."""
    one = FAMILIES["qwen3"]
    args = {"max-num-seqs": 2, "reasoning-parser": None, "--seed": 1, "enable-prefix-caching": False}
    (spec,) = build_specs(plan_of(one), tower_of(one, args=args), Outside())
    text = " ".join(spec.argv)
    assert "--max-num-seqs 2" in text
    assert "--reasoning-parser" not in text
    assert "--seed 1" in text
    assert "--no-enable-prefix-caching" in text


def test_models_folder_and_further_mounts_are_seen_by_the_container() -> None:
    """`models` replaces the volumes; `mounts` adds folders."""
    one = row("local", "/data/model", recipe="generic")
    node = {"spark": Node(address="local", hardware="dgx-spark", models="/srv/models")}
    (spec,) = build_specs(plan_of(one), tower_of(one, nodes=node, mounts=("/etc/ssl:/etc/ssl:ro",)), Outside())
    assert spec.mounts == (
        Mount("/srv/models", "/models"),
        Mount("/srv/models/caches", "/caches"),
        Mount("/data/model", "/data/model", read_only=True),
        Mount("/etc/ssl", "/etc/ssl", read_only=True),
    )


def test_bad_mount_says_how_to_write_it() -> None:
    """A mount is source and target."""
    one = FAMILIES["qwen3"]
    with pytest.raises(PlanError, match="/source:/target:ro"):
        build_specs(plan_of(one), tower_of(one, mounts=("/only",)), Outside())


def test_aligned_cache_with_a_small_batch_is_refused_for_old_versions() -> None:
    """vLLM before 0.27 asserts after the load, which takes a quarter of an hour: better said before."""
    small = replace(FAMILIES["nemotron3-super"], max_num_batched_tokens=8192, version="0.20.2")
    with pytest.raises(PlanError, match="batch_tokens: 8320 or more"):
        build_specs(plan_of(small), tower_of(small), Outside())


def test_external_engines_are_not_started() -> None:
    """Somebody else runs them."""
    other = row("mine", "served", runtime="external", port=None)
    assert build_specs(plan_of(other), tower_of(other), Outside()) == ()


def test_specs_come_in_start_order() -> None:
    """Largest first, as the plan says."""
    rows = (row("small", "a/b", start_order=2, port=8101), row("big", "a/c", start_order=1))
    assert [spec.engine for spec in build_specs(plan_of(*rows), tower_of(*rows), Outside())] == ["big", "small"]


@pytest.mark.parametrize(
    ("node", "driver"),
    [
        (Node(), "process"),
        (Node(hardware="dgx-spark"), "docker"),
        (Node(address="ssh://ops@spark"), "docker"),
        (Node(driver="docker"), "docker"),
    ],
)
def test_driver_follows_from_the_node(node: Node, driver: str) -> None:
    """This machine without a GPU runs child processes; every other node runs containers."""
    assert driver_of(node) == driver


@pytest.mark.parametrize(
    ("versions", "expected"),
    [("", True), (">=0.27", True), ("<0.27", False), (">=0.27,<0.33", True), ("==0.27.1", True), ("!=0.27.1", False)],
)
def test_version_ranges(versions: str, expected: bool) -> None:
    """Every clause must hold; an empty range always does."""
    assert version_in((0, 27, 1), versions) is expected


def test_wrong_version_clause_is_an_error() -> None:
    """A typo in a recipe is found by its tests, not by silence."""
    with pytest.raises(ValueError, match="is not a version clause"):
        version_in((0, 27, 1), "~0.27")


def test_flags_become_words() -> None:
    """Booleans, lists and mappings are written as vLLM reads them."""
    flags = merged({"a": 1, "b": True, "c": False}, {"--a": 2, "b": None, "d": [1, 2], "e": {"x": 1}})
    assert as_argv(flags) == ("--a", "2", "--no-c", "--d", "1", "2", "--e", '{"x":1}')


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("nemotron3-super", ["short prompt", "long prompt", "grammar"]),
        ("qwen3-vl", ["short prompt", "long prompt", "grammar", "image"]),
        ("nomic-embed", ["embedding"]),
    ],
)
def test_warm_up_has_a_request_per_shape_class(family: str, expected: list[str]) -> None:
    """What is compiled separately is asked for separately."""
    assert [request.what for request in shape_requests(FAMILIES[family])] == expected


def test_llama_cpp_needs_no_shapes() -> None:
    """It compiles nothing."""
    assert shape_requests(row("smol", "bundled:smollm2", runtime="llamacpp")) == ()


@pytest.mark.parametrize(("bind", "host"), [("10.0.0.7", "10.0.0.7"), (None, "0.0.0.0")])
def test_engine_listens_on_the_private_address(bind: str | None, host: str) -> None:
    """A written address is used; a name may mean loopback on its own machine, so then all addresses, with a key."""
    one = FAMILIES["qwen3"]
    nodes = {"spark": Node(address="ssh://ops@spark.lan", hardware="dgx-spark", bind=bind)}
    (spec,) = build_specs(plan_of(one), tower_of(one, nodes=nodes), Outside("key"))
    assert spec.argv[spec.argv.index("--host") + 1] == host
    assert spec.url == f"http://{bind or 'spark.lan'}:8100"
    assert spec.api_key == "key"


def test_ray_over_names_is_refused() -> None:
    """Ray's nodes must know each other by IP address."""
    wide = row("n", "a/b", nodes=("one", "two"), tensor_parallel=2)
    nodes = {name: Node(address=f"ssh://ops@{name}.lan", hardware="dgx-spark") for name in ("one", "two")}
    with pytest.raises(PlanError, match=r"nodes\.one\.bind: Ray needs IP addresses"):
        build_specs(plan_of(wide, nodes=TWO_FACTS), tower_of(wide, nodes=nodes), Outside())


def test_nodes_of_several_gpus_give_all_of_them_to_ray() -> None:
    """Four GPUs on two nodes: each brings two into the cluster."""
    wide = row("big", "nvidia/Llama-3.1-70B-Instruct-FP8", nodes=("one", "two"), tensor_parallel=4)
    facts = tuple(replace(each, gpus=2) for each in TWO_FACTS)
    head, worker = build_specs(plan_of(wide, nodes=facts), tower_of(wide, nodes=TWO), Outside())
    assert "--num-gpus=2 && exec vllm serve" in head.argv[2]
    assert "--num-gpus=2" in worker.argv


def test_process_is_told_which_gpus_are_its_own() -> None:
    """A container is given devices; a child process sees all GPUs unless its environment names some."""
    second = row("b", "Qwen/Qwen3-8B", nodes=("gpu",), devices={"gpu": (1,)})
    nodes = {"gpu": Node(hardware="2x h100", driver="process")}
    facts = (NodeFacts("gpu", 80 * 2**30, 80 * 2**30, gpus=2, capability=9.0),)
    tower = tower_of(second, nodes=nodes, image="/opt/vllm/bin/python", args={"load-format": "dummy"})
    (spec,) = build_specs(plan_of(second, nodes=facts), tower, Outside())
    assert spec.env["CUDA_VISIBLE_DEVICES"] == "1"
    assert spec.argv[:3] == ("/opt/vllm/bin/python", "-m", "vllm.entrypoints.openai.api_server")
    assert spec.argv[-2:] == ("--load-format", "dummy")
