"""``lmtower schema``: the JSON Schema of the tower file."""

from __future__ import annotations

import json

from lmtower.config.types import Tower


def schema() -> None:
    """Print the JSON Schema of the tower file, for editors.

    With the YAML extension of VS Code, put this line first in your tower file:

    # yaml-language-server: $schema=tower.schema.json
    """
    print(json.dumps(Tower.model_json_schema(mode="validation"), indent=2))
