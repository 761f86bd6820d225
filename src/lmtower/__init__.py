"""lmtower: Model-as-a-Service on your own GPU boxes, from one YAML file."""

__version__ = "0.1.0"
