"""The store service as a child of the tower: started when the tower can embed, restarted when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

from lmtower.ledger import Ledger
from lmtower.logs import get_logger

log = get_logger(__name__)
KEY_NAME = "stores"
RESTART_SECONDS = (1.0, 30.0)
STOP_SECONDS = 10.0


class StoreService:
    """One child process. ``run`` keeps it alive until it is cancelled, then ends it."""

    def __init__(self, argv: list[str], key: str, log_file: Path) -> None:
        self._argv = argv
        self._key = key
        self._log_file = log_file

    async def run(self) -> None:
        """Start, wait, start again with growing pauses; cancelling stops the child."""
        pause = RESTART_SECONDS[0]
        self._log_file.parent.mkdir(parents=True, exist_ok=True)
        while True:
            started = asyncio.get_running_loop().time()
            code = await self._once()
            log.warning("store service ended", code=code, log=str(self._log_file))
            if asyncio.get_running_loop().time() - started > RESTART_SECONDS[1]:
                pause = RESTART_SECONDS[0]
            await asyncio.sleep(pause)
            pause = min(RESTART_SECONDS[1], pause * 2)

    async def _once(self) -> int:
        environment = {**os.environ, "LMTOWER_STORES_KEY": self._key}
        with self._log_file.open("ab") as output:
            child = await asyncio.create_subprocess_exec(
                *self._argv,
                stdin=asyncio.subprocess.PIPE,  # its end is the child's sign to end
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
            )
        try:
            return await child.wait()
        except asyncio.CancelledError:
            if child.stdin is not None:
                child.stdin.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_SECONDS):
                    await child.wait()
            if child.returncode is None:
                child.kill()
                await child.wait()
            raise


def store_key(ledger: Ledger, data_dir: Path) -> str:
    """The client key that the service embeds with: made once, kept in ``stores.key``. Blocks. Raises LedgerError."""
    path = data_dir / "stores.key"
    if path.exists():
        secret = path.read_text("utf-8").strip()
        if ledger.find(secret) is not None:
            return secret
    secret = ledger.create_key(KEY_NAME).secret
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(secret + "\n")
    return secret
