"""Personas: one loaded model offered as several. Persona + request body -> upstream body, and why.

``compile_persona`` turns a persona of the tower file and the recipe of its model into ready-made bytes, once per
snapshot. ``prepare`` applies them to one request. ``explain`` does the same with a trace of every field.
"""

from lmtower.personas.compile import CompiledPersona, compile_persona
from lmtower.personas.explain import Explanation, explain
from lmtower.personas.prepare import PREPARERS, prepare
from lmtower.personas.prepared import Prepared

__all__ = ["PREPARERS", "CompiledPersona", "Explanation", "Prepared", "compile_persona", "explain", "prepare"]
