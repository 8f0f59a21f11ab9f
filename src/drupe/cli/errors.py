"""How the command line shows what went wrong, and with which exit code it ends."""

from __future__ import annotations

import os
import sys

import click

from drupe.errors import DrupeError, InternalError

REPORT = "this is a bug in drupe: please report it with the lines above and the output of `drupe version`"
_INSTEAD = {  # options of Docker that drupe does not have, and what does their work
    "--link": "pods of one network find each other by name (--network NAME); containers of one pod share localhost",
    "--volumes-from": "give both the same volume: -v NAME:DIR",
    "--gpus": "give it the devices: --device PATH",
    "--expose": "-p publishes a port; a pod's ports are open to its network without a word",
    "--sig-proxy": "signals are always passed on to the workload",
    "--attach": "output is attached unless -d is given, input with -i",
    "--domainname": "give the whole name: --hostname NAME.DOMAIN",
    "--cgroupns": "a container never sees the host's cgroups",
    "--size": "drupe system df shows sizes",
}
_RUN_VERBS = ("run", "exec", "enter", "create", "start")


def debug() -> bool:
    """Whether DRUPE_DEBUG asks for tracebacks."""
    return os.environ.get("DRUPE_DEBUG", "") not in ("", "0")


def one_line(text: str) -> str:
    """`text` with its line breaks folded, and without what would move a terminal: an error stays one line whatever a
    helper program or a guest has said."""
    line = "; ".join(part.strip() for part in text.splitlines() if part.strip())
    return "".join(char for char in line if char.isprintable() or char == "\t")


def say(message: str, *, hint: str = "") -> None:
    """Print `drupe: message` and, if there is one, `hint: hint` on standard error."""
    sys.stderr.write(f"drupe: {one_line(message)}\n")
    if hint:
        sys.stderr.write(f"hint: {one_line(hint)}\n")


def show_drupe_error(error: DrupeError) -> int:
    """Show an expected error in one line (with a traceback only for a bug, or when asked); return the exit code."""
    if isinstance(error, InternalError) or debug():
        show_traceback(error)
    say(str(error), hint=REPORT if isinstance(error, InternalError) and not error.hint else error.hint)
    return exit_code(error)


def show_usage_error(error: click.ClickException) -> int:
    """Show a mistake in the arguments; 125 for the verbs that pass a workload's exit code through, else 2."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    path = context.command_path if context else "drupe"
    instead = _INSTEAD.get(error.option_name, "") if isinstance(error, click.NoSuchOption) else ""
    message = f"there is no option {error.option_name}" if instead else error.format_message()  # type: ignore[attr-defined]
    say(message, hint=instead or f"see '{path} --help'")
    return 125 if path.split()[-1] in _RUN_VERBS and context and context.parent else 2


def show_bug(error: BaseException) -> int:
    """Show an exception nobody expected, with its traceback."""
    show_traceback(error)
    say(f"{type(error).__name__}: {error}", hint=REPORT)
    return InternalError.exit_code


def show_traceback(error: BaseException) -> None:
    import traceback

    traceback.print_exception(error, file=sys.stderr)


def exit_code(error: DrupeError) -> int:
    """The exit code of an error; a workload that could not start ends as in a shell: 127 not found, 126 refused."""
    if error.details.get("exit_code", "").isdigit():
        return int(error.details["exit_code"])
    if error.stage in _START_STAGES:
        text = f"{error.message} {error.cause}".lower()
        if any(words in text for words in _NOT_FOUND):
            return 127
        if any(words in text for words in _NOT_EXECUTABLE):
            return 126
    return error.exit_code


_START_STAGES = ("start", "exec", "container", "create", "process")
_NOT_FOUND = ("executable file not found", "executable file `", "no such file or directory: executable")
_NOT_EXECUTABLE = ("permission denied", "exec format error", "is a directory", "open executable")
