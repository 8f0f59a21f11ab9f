"""Takes a call of `drupe-oci` to the function of its verb, and errors to where runc would say them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from drupe import __version__
from drupe.errors import DrupeError, InvalidArgument, NotFound
from drupe.oci.runtime_spec import SPEC_VERSION
from drupe.services.oci import checkpoints, crun_state, helping, keeping, making, telling
from drupe.services.oci.asked import Asked
from drupe.services.oci.flags import Words, parse
from drupe.services.oci.host import CallerFiles
from drupe.services.oci.kept import Bundles
from drupe.services.oci.processes import kill_signal
from drupe.services.oci.saying import refusal
from drupe.spec.oci import OciAnswer, OciAsk

_EXEC_FAILED = 255  # runc's exit code of an exec that did not start


async def answer(
    ask: OciAsk, *, root_fd: int, pid: int, bundles: Bundles, fds: dict[str, int] | None = None
) -> OciAnswer:
    """What the caller of `drupe-oci` (process `pid`) is to do. fds: it has done what it was told, and this came along;
    None: nothing is changed yet. Never raises what is the caller's mistake: that is an answer too."""
    words = Words()
    files = CallerFiles(root_fd, ask.cwd)
    try:
        words = parse(ask.argv)
        _check_arguments(words)
        asked = Asked(ask, sees_our_processes(pid), words, files, bundles.core.node, bundles)
        if words.verb not in _WITHOUT_ID:
            asked.check_id()
        if fds is not None:
            return await keeping.act(asked, fds)
        if words.verb in keeping.ASKED and (program := asked.standing()) is not None:
            return await keeping.ASKED[words.verb](asked, program)
        return await _VERBS[words.verb](asked)
    except DrupeError as error:
        return refusal(error, ask.argv, files, code=_EXEC_FAILED if words.verb == "exec" else 1)


def sees_our_processes(pid: int) -> bool:
    """Whether a process is in our PID namespace. In another one our /proc/PID is some other process's."""
    try:
        return Path(f"/proc/{pid}/ns/pid").readlink() == Path("/proc/self/ns/pid").readlink()
    except OSError:
        return False


_WITHOUT_ID = ("features", "help", "list", "spec", "version")
_TAKES = {"exec": None, "kill": 2, "ps": None, "list": 0, "features": 0, "spec": 0, "help": None, "version": None}


def _check_arguments(words: Words) -> None:
    most = _TAKES.get(words.verb, 1)
    if most is not None and len(words.arguments) > most:
        raise InvalidArgument(f"{words.verb}: unexpected argument {words.arguments[most]!r}")


async def _plain(asked: Asked) -> OciAnswer:
    """start, pause, resume: the program's own."""
    return asked.become(asked.found(), asked.words.verb, asked.id)


async def _kill(asked: Asked) -> OciAnswer:
    signal, program = kill_signal(asked.words), asked.found()
    every = ["--all"] if asked.words.on("all") else []
    if every and program.name == "crun" and crun_state.has_ended(asked, program):
        return OciAnswer()  # as with runc, there is nobody whom it does not reach
    return asked.become(program, "kill", *every, asked.id, str(signal))


async def _delete(asked: Asked) -> OciAnswer:
    """What is not there is deleted, if told so by force."""
    force = asked.words.on("force")
    try:
        program = asked.found()
    except NotFound:
        if force:
            return OciAnswer()
        raise
    return asked.become(program, "delete", *(["--force"] if force else []), asked.id)


async def _version(asked: Asked) -> OciAnswer:
    return OciAnswer(stdout=f"drupe-oci version {__version__}\nspec: {SPEC_VERSION}\n")


_VERBS: dict[str, Callable[[Asked], Awaitable[OciAnswer]]] = {
    "checkpoint": checkpoints.checkpoint,
    "create": making.make,
    "delete": _delete,
    "events": telling.events,
    "exec": making.execute,
    "features": telling.features,
    "help": helping.tell,
    "kill": _kill,
    "list": telling.list_all,
    "pause": _plain,
    "ps": telling.ps,
    "restore": making.make,
    "resume": _plain,
    "run": making.make,
    "spec": telling.spec,
    "start": _plain,
    "state": telling.state,
    "update": making.update,
    "version": _version,
}
