"""The verbs, for containers in sandboxes that the daemon keeps. What changes something is done in `oci.act`, to which
the caller comes back with what it was told to make and open."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from drupe.errors import HelperFailed, InvalidArgument, InvalidState, Unsupported
from drupe.oci import runtime_spec
from drupe.oci.carried import refuse_uncarried
from drupe.oci.honoured import refuse_unhonoured
from drupe.oci.limits import resources_of
from drupe.oci.runtime_spec import LinuxResources, Process, RuntimeConfig
from drupe.sandboxers.bundles import BundleProgram
from drupe.services.oci import births, checkpoints, crun_state
from drupe.services.oci.adapting import DESCRIPTORS, stand_in_config, workload_process
from drupe.services.oci.asked import Asked
from drupe.services.oci.kept import Kept
from drupe.services.oci.processes import file_of, kill_signal, limits_text, process_of, wants
from drupe.services.oci.standing import StandIn
from drupe.spec.oci import OciAnswer, OciStandIn
from drupe.spec.resources import Resources

_TEXT = "@text"
_WHOLE = ("status", "config.json")  # of crun's own: it deletes nothing that lacks one
_TRY_S, _TRIES = 0.05, 100  # crun makes a container in some ten milliseconds


# -- create, run, restore ---------------------------------------------------------------------------------------------


async def prepare(asked: Asked, program: BundleProgram, config: RuntimeConfig, data: bytes) -> OciAnswer:
    """What the caller makes and opens before there can be a sandbox."""
    if asked.words.verb == "restore":
        checkpoints.check_images(asked, program.kind)
    able = asked.node.sandboxer(program.kind).capabilities()
    refuse_uncarried(config, program.kind, able)
    resources_of(births.limits_of(config, able))
    refuse_unhonoured(config, program.name, await program.version())
    terminal = bool(config.process and config.process.terminal)
    _check_flags(asked, program.kind, terminal=terminal)
    bundle, console = asked.files.absolute(asked.words.text("bundle", ".")), asked.words.text("console-socket")
    plain: dict[str, Any] = json.loads(data)
    plain["root"] = {**plain["root"], "path": births.absolute(bundle, plain["root"]["path"])}
    words = ["create", "--bundle", bundle, "--preserve-fds", str(DESCRIPTORS), "--config", _TEXT]
    words += ["--console-socket", asked.files.absolute(console)] if console else []
    words += [f"--{name}" for name in ("no-pivot", "no-new-keyring") if asked.words.on(name)]
    cgroup = births.cgroup_of_stand_in(asked, config)
    text = stand_in_config(plain, able, cgroup=cgroup, terminal=terminal and bool(console))
    return OciAnswer(
        stand_in=OciStandIn(
            make=asked.command(program, *words, asked.id),
            undo=[program.path, "--root", f"{asked.root}/{program.home}", "delete", "--force", asked.id],
            status=f"{asked.root}/{program.home}/{asked.id}/status",
            trees=births.trees_of(bundle, plain),
            raw=terminal and not console,
            reap=_waits(asked),
            pid_file=_absolute(asked, "pid-file"),
        ),
        texts={_TEXT: json.dumps(text)},
        fallback=program.path,
        hide_cgroup=True,
        act=True,
        state="made",
    )


def _waits(asked: Asked) -> bool:
    return asked.words.verb in ("run", "restore") and not asked.words.on("detach")


def _check_flags(asked: Asked, kind: str, *, terminal: bool) -> None:
    words = asked.words
    for name in ("pidfd-socket", "preserve-fds", "keep"):
        if words.text(name) not in ("", "0", "false"):
            raise Unsupported(f"--{name} is not carried out by {kind} sandboxes", feature=f"--{name}")
    console = words.text("console-socket")
    if console and not terminal:
        raise InvalidArgument("cannot use console socket if the container has no terminal")
    if terminal and not console and not _waits(asked):
        raise InvalidArgument("cannot allocate tty if drupe-oci will detach without setting console socket")


async def _made(asked: Asked, fds: dict[str, int]) -> OciAnswer:
    """create, run, restore: the stand-in is there."""
    kept = await births.bear(asked, StandIn(fds.pop("stand_in")), fds)
    if asked.words.verb == "restore":
        await checkpoints.go_on(asked, kept)
    answer = OciAnswer(standing=True, pid_file=_absolute(asked, "pid-file"))
    return answer if asked.words.verb == "create" else await _run_on(asked, kept, answer)


def _absolute(asked: Asked, flag: str) -> str:
    path = asked.words.text(flag)
    return asked.files.absolute(path) if path else ""


async def _run_on(asked: Asked, kept: Kept, answer: OciAnswer) -> OciAnswer:
    try:
        await kept.start()
    except BaseException:
        await kept.delete()
        asked.bundles.remove(kept)
        raise
    return _then_start(asked, answer)


def _then_start(asked: Asked, answer: OciAnswer) -> OciAnswer:
    """The workload runs; the stand-in is started after it, and after that come the poststart hooks."""
    program = asked.found()
    answer.runs = {"start": asked.command(program, "start", asked.id, log=False)}
    answer.fallback, answer.hide_cgroup, answer.act, answer.state = program.path, True, True, "started"
    return answer


async def _started(asked: Asked, fds: dict[str, int]) -> OciAnswer:
    kept = asked.kept()
    ran = asked.ran("start")
    if ran is not None and ran.code != 0 and kept.stand_in is not None:
        await kept.container.stop(force=True)
        raise HelperFailed(ran.stderr.strip() or "the stand-in did not start")
    await kept.begun()
    return OciAnswer(wait=True, act=True, state="ended") if _waits(asked) else OciAnswer()


async def _ended(asked: Asked, fds: dict[str, int]) -> OciAnswer:
    """run: what it made goes, and its code is the caller's."""
    program = asked.found()
    kept = asked.kept()
    await kept.delete()
    asked.bundles.remove(kept)
    answer = asked.first_run(program, delete=asked.command(program, "delete", "--force", asked.id, log=False))
    answer.act, answer.state = True, "gone"
    return answer


async def _over(asked: Asked, fds: dict[str, int]) -> OciAnswer:
    return OciAnswer(code=asked.ask.code)


# -- its life ---------------------------------------------------------------------------------------------------------


async def _then_act(asked: Asked, program: BundleProgram) -> OciAnswer:
    return OciAnswer(act=True)


async def _start(asked: Asked, fds: dict[str, int]) -> OciAnswer:
    await asked.kept().start()
    return _then_start(asked, OciAnswer())


async def _kill(asked: Asked, fds: dict[str, int]) -> OciAnswer:
    kept, number, everything = asked.kept(), kill_signal(asked.words), asked.words.on("all")
    if number:
        await kept.kill(number, everything=everything)
    elif not (everything or kept.container.is_live):
        raise InvalidState(f"container {asked.id} is not running: {kept.status}")
    return OciAnswer()


async def _delete(asked: Asked, fds: dict[str, int]) -> OciAnswer:
    program, kept = asked.found(), asked.bundles.find(asked.root, asked.id)
    if kept is None and (waits := _until_made(asked, program)) is not None:
        return waits
    if kept is not None:
        if kept.container.is_live and not asked.words.on("force"):
            raise InvalidState(f"cannot delete container {asked.id} that is not stopped: {kept.status}")
        await kept.delete()
        asked.bundles.remove(kept)
        if _is_half_made(asked, program):
            births.remove_half_made(asked, program)
            return OciAnswer()
    return asked.become(program, "delete", "--force", asked.id)


def _until_made(asked: Asked, program: BundleProgram) -> OciAnswer | None:
    """Whoever made it may have been killed, and what that began goes on for a moment: the program that makes what
    stands for it, which knows nothing of it before its end, or we. None: there is nothing to wait for any more."""
    half, tries = _is_half_made(asked, program), asked.ask.state
    tries = tries if isinstance(tries, int) else 0
    if not (half or asked.bundles.is_being_made(asked.root, asked.id)):
        return None
    if tries < _TRIES:
        return OciAnswer(again_s=_TRY_S, state=tries + 1)
    births.remove_half_made(asked, program)
    return OciAnswer()


def _is_half_made(asked: Asked, program: BundleProgram) -> bool:
    home = f"{asked.root}/{program.home}/{asked.id}"
    return asked.files.exists(home) and not all(asked.files.exists(f"{home}/{name}") for name in _WHOLE)


async def _pause(asked: Asked, fds: dict[str, int]) -> OciAnswer:
    kept = asked.kept()
    async with kept.pod.lock:
        await kept.container.pause()
    return OciAnswer()


async def _resume(asked: Asked, fds: dict[str, int]) -> OciAnswer:
    kept = asked.kept()
    async with kept.pod.lock:
        await kept.container.resume()
    return OciAnswer()


async def _update(asked: Asked, program: BundleProgram) -> OciAnswer:
    """Limits by flags, or by a file or standard input."""
    path = wants(asked, "resources")
    return OciAnswer(want_text=path) if path else OciAnswer(act=True)


async def _update_now(asked: Asked, fds: dict[str, int]) -> OciAnswer:
    kept = asked.kept()
    resources = runtime_spec.parse(LinuxResources, limits_text(asked), where="update")
    able = kept.pod.sandboxer.capabilities()
    if resources.pids and births.counts_itself(able):
        raise Unsupported("the limit of processes cannot be changed by this kind of sandbox", feature="pids-limit")
    limits, inside = births.divided(resources_of(resources), able)
    async with kept.pod.lock:
        await kept.pod.update(limits)
        if inside != Resources():
            await kept.container.update(inside)
    return OciAnswer()


# -- exec -------------------------------------------------------------------------------------------------------------


def _process(asked: Asked, kept: Kept) -> dict[str, Any]:
    """The process that is asked for, as the specification has it."""
    path = asked.words.text("process")
    if path:
        data = file_of(asked, "process", "process")
        runtime_spec.parse(Process, data, where=path)
        process: dict[str, Any] = json.loads(data)
    else:
        process = process_of(asked.words, births.config_of(kept.pod)["process"])
    if not process.get("args"):
        raise InvalidArgument("exec: the process has nothing to run - at `$.args`")
    config = RuntimeConfig(oci_version=runtime_spec.SPEC_VERSION, process=msgspec.convert(process, Process))
    refuse_uncarried(births.with_namespaces(config), kept.pod.kind, kept.pod.sandboxer.capabilities())
    process["terminal"] = bool(process.get("terminal") or asked.words.on("tty"))
    return process


async def _execute(asked: Asked, program: BundleProgram) -> OciAnswer:
    kept = asked.kept()
    for name in ("cgroup", "preserve-fds", "ignore-paused"):
        if asked.words.text(name) not in ("", "0", "false"):
            raise Unsupported(f"exec --{name} is not carried out by {kept.pod.kind} sandboxes", feature=f"--{name}")
    if kept.status == "paused":
        raise InvalidState(crun_state.PAUSED)
    if missing := wants(asked, "process"):
        return OciAnswer(want_text=missing)
    terminal, console = _process(asked, kept)["terminal"], _absolute(asked, "console-socket")
    if terminal and not console and asked.words.on("detach"):
        raise InvalidArgument("cannot allocate tty if drupe-oci will detach without setting console socket")
    return OciAnswer(
        stand_in=OciStandIn(
            console=console if terminal else "",
            raw=terminal and not console,
            pid_file=_absolute(asked, "pid-file"),
        ),
        act=True,
        state="exec",
    )


async def _execute_now(asked: Asked, fds: dict[str, int]) -> OciAnswer:
    kept = asked.kept()
    stand_in = StandIn(fds.pop("stand_in"))
    try:
        process = _process(asked, kept)
        births.check_program(kept, process)
    except BaseException:
        stand_in.close()
        raise
    size, plain = process.get("consoleSize"), workload_process(process, kept.record.pids_limit)
    await kept.execute(plain, stand_in, terminal=process["terminal"], size=size)
    detached = asked.words.on("detach")
    return OciAnswer(standing=True, pid_file=_absolute(asked, "pid-file"), wait=not detached)


# -- tables -----------------------------------------------------------------------------------------------------------

ASKED: Mapping[str, Callable[[Asked, BundleProgram], Awaitable[OciAnswer]]] = {
    "checkpoint": checkpoints.ask,
    "delete": _then_act,
    "exec": _execute,
    "kill": _then_act,
    "pause": _then_act,
    "resume": _then_act,
    "start": _then_act,
    "update": _update,
}
# by what the caller has done, or else by the verb
_ACTS: Mapping[str, Callable[[Asked, dict[str, int]], Awaitable[OciAnswer]]] = {
    "made": _made,
    "started": _started,
    "ended": _ended,
    "gone": _over,
    "exec": _execute_now,
    "checkpoint": checkpoints.act,
    "delete": _delete,
    "kill": _kill,
    "pause": _pause,
    "resume": _resume,
    "start": _start,
    "update": _update_now,
}


async def act(asked: Asked, fds: dict[str, int]) -> OciAnswer:
    """Do what a verb is for. fds: what came along; those that are taken are taken out."""
    step = asked.ask.state if isinstance(asked.ask.state, str) else asked.words.verb
    if step not in _ACTS:
        raise InvalidArgument(f"{asked.words.verb} changes nothing")
    return await _ACTS[step](asked, fds)
