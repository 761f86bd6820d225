"""The embedded engine: the llama.cpp server of ``xllamacpp`` as a process of its own, for a laptop or a fresh machine.

``python -m lmtower.nodes.embedded --model bundled:smollm2 --port 8100``

It binds to 127.0.0.1 unless told otherwise, prints one line when it answers, and lives as long as its standard
input: the tower holds the other end of that pipe, so not even a ``kill -9`` of the tower leaves an orphan.
``--stay`` ignores standard input (a container, a service manager).
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from typing import Any

from lmtower.errors import EngineError
from lmtower.nodes import words
from lmtower.nodes.bundled import chat_template, model_path

# Prompts that left their slot wait here, in memory, to be found again; the default of llama.cpp is 8 GiB.
_PROMPT_CACHE_MIB = 256


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line, parsed. Exits with 2 on a flag that does not exist, as every engine does."""
    parser = argparse.ArgumentParser(prog="lmtower.nodes.embedded", description=__doc__, allow_abbrev=False)
    parser.add_argument("--model", required=True, help="bundled:smollm2, or the path of a GGUF file")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--alias", help="served model name; default: --model as written")
    parser.add_argument("--context", type=int, default=4096, help="tokens per request")
    parser.add_argument("--sequences", type=int, default=4, help="requests that run at once")
    parser.add_argument("--batch-tokens", type=int, default=512, help="tokens per step")
    parser.add_argument("--threads", type=int, default=0, help="0: one per core")
    parser.add_argument("--embedding", action="store_true", help="serve embeddings (and nothing else)")
    parser.add_argument("--api-key-env", help="name of the environment variable that holds the engine key")
    parser.add_argument("--stay", action="store_true", help="keep running when standard input closes")
    return parser.parse_args(argv)


def parameters(options: argparse.Namespace) -> Any:
    """The options as llama.cpp's own parameters. Raises EngineError when model or key is missing."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(model_path(options.model))
    params.model_alias = {options.alias or options.model}
    params.hostnames = [options.host]
    params.port = options.port
    params.n_parallel = options.sequences
    params.n_ctx = options.context * options.sequences
    # A small model that never stops would hold its sequence for minutes; no answer can be longer than its context.
    params.n_predict = options.context
    params.n_batch = params.n_ubatch = options.batch_tokens
    params.endpoint_metrics = True
    params.use_jinja = True
    params.chat_template = chat_template(options.model) or ""
    params.cache_prompt = True
    params.cache_ram_mib = _PROMPT_CACHE_MIB
    params.ui = False
    params.fit_params = False
    params.verbosity = 2
    if options.threads:
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
    if options.embedding:
        params.embedding = True
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    if options.api_key_env:
        key = os.environ.get(options.api_key_env)
        if not key:
            raise EngineError(f"environment variable {options.api_key_env!r} (engine key) is empty")
        params.api_keys = [key]
    return params


def main(argv: list[str] | None = None) -> int:
    """Serves until standard input closes (or, with ``--stay``, until a signal). Returns the exit status."""
    options = arguments(argv)
    try:
        server: Any = None  # held until the process ends
        if options.model == words.MODEL:
            address = words.start(options.host, options.port, options.alias or options.model, options.api_key_env)
        else:
            import xllamacpp

            server = xllamacpp.Server(parameters(options))
            address = server.listening_address
    except ImportError:
        print("the embedded engine needs 'xllamacpp': pip install 'lmtower[demo]'", file=sys.stderr)
        return 1
    except (EngineError, RuntimeError) as error:
        print(f"embedded engine: {error}", file=sys.stderr)
        return 1
    print(f"ready {address}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN if not options.stay else lambda *_: os._exit(0))
    if options.stay:
        signal.pause()
    else:
        while sys.stdin.buffer.read(4096):
            pass
    # The server has no stop that ends running requests; the process is its unit of isolation, so it ends as a whole.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
