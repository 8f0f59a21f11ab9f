"""create, run, exec, update: what gives a program something to read."""

from __future__ import annotations

import json
import posixpath
from typing import Any

import msgspec

from drupe.errors import InvalidArgument, Unsupported
from drupe.oci import runtime_spec
from drupe.oci.honoured import for_older_crun, refuse_unhonoured, takes_spec_version
from drupe.oci.runtime_spec import Linux, LinuxResources, Process, RuntimeConfig
from drupe.oci.validate import parse_config
from drupe.sandboxers.bundles import BundleProgram
from drupe.services.oci import checkpoints, crun_state
from drupe.services.oci.asked import Asked
from drupe.services.oci.keeping import prepare
from drupe.services.oci.processes import file_of, limits_text, process_of, wants
from drupe.services.oci.saying import warned
from drupe.spec.oci import OciAnswer

_TEXT = "@text"
_MAKING_VALUES = ("console-socket", "pid-file", "preserve-fds")
_MAKING_SWITCHES = ("keep", "no-pivot", "no-new-keyring", "no-subreaper", "detach")
_PATHS = ("console-socket", "pid-file")
_EXEC_VALUES = ("console-socket", "pid-file", "preserve-fds")


async def make(asked: Asked) -> OciAnswer:
    """create, run, restore: the bundle's config.json is checked, then the program makes it as it is."""
    bundle = asked.files.absolute(asked.words.text("bundle", "."))
    where = f"{bundle}/config.json"
    data = asked.files.read(where, "bundle's")
    config = parse_config(data, where=where)
    program = asked.chosen(config)
    asked.check_free()
    _check_root(asked, config, bundle)
    warning = crun_state.check_new(asked, config) if program.name == "crun" else ""
    if program.stands:
        return await prepare(asked, program, config, data)
    version = await program.version()
    refuse_unhonoured(config, program.name, version)
    if asked.words.verb == "restore":
        return await checkpoints.become(asked, program, "restore", "--bundle", bundle)
    _refuse_flags(asked, program, version)
    words = [asked.words.verb, "--bundle", bundle, *_options(asked, _MAKING_VALUES, _MAKING_SWITCHES)]
    texts = {}
    if not takes_spec_version(program.name, version, config.oci_version):
        texts[_TEXT] = json.dumps(for_older_crun(json.loads(data)))
        words += ["--config", _TEXT]
    return warned(asked, _giving(program, asked.become(program, *words, asked.id, texts=texts)), warning)


def _check_root(asked: Asked, config: RuntimeConfig, bundle: str) -> None:
    """Raise NotFound, InvalidArgument where there is none, or it would have the kernel's own file systems elsewhere."""
    if config.root is None or not config.root.path:
        return
    root = posixpath.join(bundle, config.root.path)
    asked.files.check_directory(root, "root")
    for mount in config.mounts or ():
        place = posixpath.join(root, mount.destination.lstrip("/"))
        if mount.type in ("proc", "sysfs") and asked.files.is_link(place):
            raise InvalidArgument(f"filesystem {mount.destination} must be mounted on ordinary directory")


def _refuse_flags(asked: Asked, program: BundleProgram, version: tuple[int, ...]) -> None:
    if asked.words.on("keep") and program.name == "crun" and version < (1, 15):
        raise Unsupported("--keep is not carried out by this crun", feature="--keep", hint="crun 1.15 or later does")
    if asked.words.text("pidfd-socket"):
        raise Unsupported("--pidfd-socket is not carried out", feature="--pidfd-socket")


def _options(asked: Asked, values: tuple[str, ...], switches: tuple[str, ...] = ()) -> list[str]:
    """Those of these flags that were given. Paths become absolute: crun changes its directory first."""
    given = [(name, value) for name in values if (value := asked.words.text(name))]
    words = [
        word
        for name, value in given
        for word in (f"--{name}", asked.files.absolute(value) if name in _PATHS else value)
    ]
    return [*words, *(f"--{name}" for name in switches if asked.words.on(name))]


async def execute(asked: Asked) -> OciAnswer:
    """exec: a process by flags, or as a file says. Programs read the flags differently, and files alike: so a process
    is written out from the container's own, as runc would."""
    program = asked.found()
    words = ["exec", *_options(asked, _EXEC_VALUES, ("detach",))]
    if pid_file := asked.words.text("pid-file"):
        asked.files.check_directory(posixpath.dirname(asked.files.absolute(pid_file)), "the pid file's directory")
    cgroups = asked.words.options.get("cgroup", [])
    if program.name == "crun":
        crun_state.check_below(asked, program, cgroups)
    words += [word for path in cgroups for word in ("--cgroup", path)]
    if asked.words.on("ignore-paused"):
        if program.name == "crun":
            raise Unsupported("exec --ignore-paused is not carried out by crun", feature="--ignore-paused")
        words.append("--ignore-paused")
    elif program.name == "crun":
        crun_state.check_running(asked, program)
    if missing := wants(asked, "process"):
        return OciAnswer(want_text=missing)
    if path := asked.words.text("process"):
        data = file_of(asked, "process", "process")
    else:
        data = msgspec.json.encode(process_of(asked.words, _own_process(asked, program)))
    process = runtime_spec.parse(Process, data, where=path or "exec")
    refuse_unhonoured(_only(process=process), program.name, await program.version())
    if process.terminal or asked.words.on("tty"):
        words.append("--tty")
    return _giving(program, asked.become(program, *words, "--process", _TEXT, asked.id, texts={_TEXT: data.decode()}))


def _giving(program: BundleProgram, become: OciAnswer) -> OciAnswer:
    """crun gives its streams to an exec's user, and to the root of a container's user namespace: also /dev/null."""
    return msgspec.structs.replace(become, own_nulls=program.name == "crun")


def _own_process(asked: Asked, program: BundleProgram) -> dict[str, Any]:
    """What the container's first process was asked to be."""
    place = f"{asked.root}/{program.home}/{asked.id}"
    if program.name != "crun":  # it keeps no config.json of its own, but labels
        state = json.loads(asked.files.read(f"{place}/state.json", "state"))
        labels = dict(label.partition("=")[::2] for label in state["config"]["labels"])
        place = labels["bundle"]
    process: dict[str, Any] = json.loads(asked.files.read(f"{place}/config.json", "configuration"))["process"]
    return process


def _only(*, process: Process | None = None, resources: LinuxResources | None = None) -> RuntimeConfig:
    linux = Linux(resources=resources) if resources else None
    return RuntimeConfig(oci_version=runtime_spec.SPEC_VERSION, process=process, linux=linux)


_ZERO_IS_NONE = {
    "memory": ("limit", "reservation", "swap", "kernel", "kernelTCP"),
    "cpu": ("shares", "quota", "period", "realtimeRuntime", "realtimePeriod", "cpus", "mems"),
    "pids": ("limit",),
    "blockIO": ("weight",),
}


async def update(asked: Asked) -> OciAnswer:
    """New limits, from flags or from a file ("-": standard input)."""
    program = asked.found()
    if missing := wants(asked, "resources"):
        return OciAnswer(want_text=missing)
    data = limits_text(asked)
    resources = runtime_spec.parse(LinuxResources, data, where=asked.words.text("resources") or "update")
    refuse_unhonoured(_only(resources=resources), program.name, await program.version())
    left = without_zeros(json.loads(data))
    if program.name == "crun" and not crun_state.take_limits_off(asked, program, left):
        return OciAnswer()
    text = json.dumps(left)
    return asked.become(program, "update", "--resources", _TEXT, asked.id, texts={_TEXT: text})


def without_zeros(resources: dict[str, Any]) -> dict[str, Any]:
    """runc leaves a limit of 0 as it is, and Docker sends all that it does not change so; crun would set it. Without a
    limit of memory there is none of swap either."""
    kept = dict(resources)
    for part, names in _ZERO_IS_NONE.items():
        if section := kept.get(part):
            kept[part] = {name: value for name, value in section.items() if value or name not in names}
    memory = kept.get("memory") or {}
    if memory.get("limit") == -1 and "swap" not in memory:  # memory and swap together cannot be less than memory
        kept["memory"] = memory | {"swap": -1}
    return kept
