"""``python -m lmtower``: the same as the command ``lmtower``."""

from lmtower.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
