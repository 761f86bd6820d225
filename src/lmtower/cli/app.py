"""``main``: finds the verb, imports only its module, and turns errors into text and exit codes.

A verb's module holds either one function with typer annotations or a ``typer.Typer`` with sub-commands.
Every verb takes a ``typer.Context``; ``ctx.obj`` is the ``Globals`` of this call. The global options are
taken out of the arguments first, so they work before and after the verb; no verb may define them itself.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from lmtower.cli.commands import COMMANDS, Verb, nearest, overview
from lmtower.cli.globals import Globals, group, take_globals
from lmtower.errors import Refused, TowerError

if TYPE_CHECKING:
    from typer.core import TyperCommand, TyperGroup


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 failed, 2 refused."""
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except TowerError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader (`| head`) has gone: nothing is wrong, and nothing more can be said on stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _FULL:
            print(f"lmtower cannot write: {error}. Free space where the data folder is (--data-dir).", file=sys.stderr)
            return 1
        # The outer edge: a bug is shown short, in full on request.
        if os.environ.get("LMTOWER_TRACEBACK"):
            raise
        print(f"lmtower: {type(error).__name__}: {error}\nSet LMTOWER_TRACEBACK=1 to see where.", file=sys.stderr)
        return 1


def _run(argv: list[str]) -> int:
    # pydantic looks for plugins in the metadata of every installed package, a tenth of a start; none is ours
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    options, rest = take_globals(argv, os.environ)
    if not rest or rest[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    name, *arguments = rest
    if name in ("-V", "--version", "version"):
        from lmtower import __version__

        print(f"lmtower {__version__}")
        return 0
    if name not in COMMANDS:
        hint = nearest(name)
        raise Refused(
            f"lmtower: no command {name!r}." + (f" Did you mean {hint!r}?" if hint else " See lmtower --help.")
        )
    return _invoke(name, build(name, COMMANDS[name]), arguments, options)


def build(name: str, verb: Verb) -> TyperCommand | TyperGroup:
    """The click command of a verb, from the function or ``Typer`` that its module defines."""
    import typer
    from typer.core import TyperCommand, TyperGroup

    module, attribute = verb.target.split(":")
    target = getattr(import_module(module), attribute)
    if isinstance(target, typer.Typer):
        app, target.info.help, target.info.epilog = target, verb.help, GLOBAL_HELP
    else:
        app = group()
        app.command(name, help=target.__doc__ or verb.help, epilog=GLOBAL_HELP, context_settings=verb.settings)(target)
    command = typer.main.get_command(app)
    assert isinstance(command, TyperCommand | TyperGroup)
    return command


def _invoke(name: str, command: TyperCommand | TyperGroup, arguments: list[str], options: Globals) -> int:
    from typer import Abort, Exit, TyperException

    try:
        result = command.main(arguments, prog_name=f"lmtower {name}", standalone_mode=False, obj=options)
    except Exit as stop:
        return stop.exit_code
    except Abort:
        return 130
    except TyperException as error:
        show = getattr(error, "show", None)  # usage errors know their own usage line
        show() if show else print(error, file=sys.stderr)
        return 2
    return result if isinstance(result, int) else 0


GLOBAL_HELP = "Everywhere, before or after the verb: -c/--config FILE, --data-dir DIR, --json."
