"""A leash: runs a command in a process group of its own and ends the group when standard input closes.

``python -m lmtower.nodes.leash COMMAND [ARGUMENT...]``

For engines that know nothing of the tower (vLLM): whoever holds the other end of the pipe may be killed with -9,
and the engine still ends. SIGTERM and SIGINT are passed on; the exit status is the command's.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading

_GRACE_SECONDS = 15.0
_PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> int:
    """Run ``argv`` until it ends or standard input closes. Returns its exit status."""
    try:
        # preexec_fn is safe here: there is no other thread yet.
        child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, process_group=0, preexec_fn=_die_with_parent)
    except OSError as error:
        print(f"leash: cannot run {argv[0]!r}: {error.strerror}", file=sys.stderr)
        return 127

    def end(*_: object) -> None:
        _signal_group(child, signal.SIGTERM)
        threading.Timer(_GRACE_SECONDS, _signal_group, (child, signal.SIGKILL)).start()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    threading.Thread(target=_watch, args=(child,), daemon=True).start()
    status = child.wait()
    # Helpers of a dead engine (vLLM's EngineCore) must not keep the GPU.
    _signal_group(child, signal.SIGKILL)
    os._exit(status if status >= 0 else 128 - status)


def _die_with_parent() -> None:
    """Linux: the kernel kills the engine when even this watcher is killed with -9."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _watch(child: subprocess.Popen[bytes]) -> None:
    while os.read(0, 4096):
        pass
    _signal_group(child, signal.SIGTERM)
    try:
        child.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        _signal_group(child, signal.SIGKILL)


def _signal_group(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    try:
        os.killpg(child.pid, number)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
