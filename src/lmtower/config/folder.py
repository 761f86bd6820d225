"""Files of the data folder that more than one room reads."""

INTERNAL_KEY = "internal.key"
"""The secret by which the processes of one tower know each other."""
