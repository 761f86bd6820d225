"""From a plan to what is started: LaunchSpecs for vLLM and llama.cpp. Pure."""

from lmtower.engines.build import Outside, bind_of, build_specs, driver_of
from lmtower.engines.spec import LaunchSpec, Mount

__all__ = ["LaunchSpec", "Mount", "Outside", "bind_of", "build_specs", "driver_of"]
