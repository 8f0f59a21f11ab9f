"""An OCI config.json that somebody else wrote, checked before anything runs (runtime-spec 1.x, config.md).

Wrong types and values become one line with the JSON path. Unknown keys are allowed, and capabilities that nobody can
grant, as the specification demands.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from drupe.errors import InvalidArgument, Unsupported
from drupe.oci.host import RLIMITS
from drupe.oci.runtime_spec import Device, Linux, Process, Rlimit, RuntimeConfig, User, parse

_VERSION = re.compile(r"^1\.\d+\.\d+(-[0-9A-Za-z.+-]+)?$")
_NAMESPACES = frozenset(("pid", "network", "mount", "ipc", "uts", "user", "cgroup", "time"))
_PROPAGATIONS = frozenset(("shared", "slave", "private", "unbindable", "rshared", "rslave", "rprivate", "runbindable"))
_FOREIGN = ("windows", "solaris", "vm", "zos")


def parse_config(data: bytes | str | dict[str, Any], *, where: str = "config.json") -> RuntimeConfig:
    """Check a config, given as JSON text or as plain data. Raises InvalidArgument, Unsupported (not for Linux)."""
    config = parse(RuntimeConfig, data, where=where)
    if config.linux is None:
        for name in _FOREIGN:
            if getattr(config, name) is not None:
                raise Unsupported(f"{where} is a config for {name}, not Linux", feature=name)
    for problem in _problems(config):
        raise InvalidArgument(f"{where}: {problem}")
    return config


def check_process(process: Process, *, where: str) -> None:
    """The same for a further process of a container. Raises InvalidArgument."""
    for problem in _process_problems(process, "$"):
        raise InvalidArgument(f"{where}: {problem}")


def _problems(config: RuntimeConfig) -> Iterator[str]:
    if not _VERSION.match(config.oci_version):
        yield f"version {config.oci_version!r} is not 1.x - at `$.ociVersion`"
    if config.root is None or not config.root.path:
        yield "no path - at `$.root.path`"
    if config.process is None:
        yield "nothing to run - at `$.process`"
    else:
        yield from _process_problems(config.process)
    for number, mount in enumerate(config.mounts or ()):
        yield from _absolute(mount.destination, f"$.mounts[{number}].destination")
    for phase in config.hooks.__struct_fields__ if config.hooks else ():
        for number, hook in enumerate(getattr(config.hooks, phase) or ()):
            yield from _absolute(hook.path, f"$.hooks.{phase}[{number}].path")
    linux = config.linux or Linux()
    yield from _linux_problems(linux)
    if config.hostname and not any(space.type == "uts" for space in linux.namespaces or ()):
        yield "a hostname needs a uts namespace - at `$.hostname`"


def _process_problems(process: Process, at: str = "$.process") -> Iterator[str]:
    if not process.args or not process.args[0]:
        yield f"nothing to run - at `{at}.args`"
    yield from _absolute(process.cwd, f"{at}.cwd")
    for number, entry in enumerate(process.env or ()):
        if entry.partition("=")[0] == "" or "=" not in entry:
            yield f"{entry!r} is not NAME=value - at `{at}.env[{number}]`"
    yield from _user_problems(process.user or User(), f"{at}.user")
    size = process.console_size
    if size and not (0 <= size.height < 2**16 and 0 <= size.width < 2**16):
        yield f"no terminal has {size.height} rows and {size.width} columns - at `{at}.consoleSize`"
    yield from _rlimit_problems(process.rlimits or (), at)
    if process.oom_score_adj is not None and not -1000 <= process.oom_score_adj <= 1000:
        yield f"{process.oom_score_adj} is not in -1000..1000 - at `{at}.oomScoreAdj`"
    for number, text in enumerate([*(process.args or ()), *(process.env or ())]):
        if "\0" in text:
            yield f"string {number} of args and env holds a NUL - at `{at}`"


def _user_problems(user: User, at: str) -> Iterator[str]:
    for name in ("uid", "gid"):
        if not 0 <= getattr(user, name) < 2**32:
            yield f"id out of range - at `{at}.{name}`"
    if any(not 0 <= gid < 2**32 for gid in user.additional_gids or ()):
        yield f"id out of range - at `{at}.additionalGids`"
    if user.umask is not None and not 0 <= user.umask <= 0o777:
        yield f"{user.umask} is no mask of permissions - at `{at}.umask`"


def _rlimit_problems(rlimits: Iterable[Rlimit], process: str) -> Iterator[str]:
    seen: set[str] = set()
    for number, rlimit in enumerate(rlimits):
        at = f"at `{process}.rlimits[{number}]`"
        if rlimit.type.removeprefix("RLIMIT_").lower() not in RLIMITS or not rlimit.type.startswith("RLIMIT_"):
            yield f"no rlimit {rlimit.type!r} - {at}"
        if rlimit.type in seen:
            yield f"{rlimit.type} is given twice - {at}"
        if not 0 <= rlimit.soft <= rlimit.hard < 2**64:
            yield f"soft limit {rlimit.soft} and hard limit {rlimit.hard} are not in order - {at}"
        seen.add(rlimit.type)


def _linux_problems(linux: Linux) -> Iterator[str]:
    seen: set[str] = set()
    for number, space in enumerate(linux.namespaces or ()):
        at = f"$.linux.namespaces[{number}]"
        if space.type not in _NAMESPACES:
            yield f"no namespace type {space.type!r} - at `{at}.type`"
        if space.type in seen:
            yield f"namespace {space.type} is given twice - at `{at}`"
        if space.path:
            yield from _absolute(space.path, f"{at}.path")
        seen.add(space.type)
    for kind in ("uid_mappings", "gid_mappings"):
        if getattr(linux, kind) and "user" not in seen:
            yield f"mappings need a user namespace - at `$.linux.{'uidMappings' if kind[0] == 'u' else 'gidMappings'}`"
    for number, device in enumerate(linux.devices or ()):
        yield from _device_problems(device, f"$.linux.devices[{number}]")
    for name, paths in (("maskedPaths", linux.masked_paths), ("readonlyPaths", linux.readonly_paths)):
        for number, path in enumerate(paths or ()):
            yield from _absolute(path, f"$.linux.{name}[{number}]")
    if ".." in (linux.cgroups_path or "").split("/"):
        yield f"{linux.cgroups_path!r} leads out of where it is - at `$.linux.cgroupsPath`"
    if linux.rootfs_propagation and linux.rootfs_propagation not in _PROPAGATIONS:
        yield f"no propagation {linux.rootfs_propagation!r} - at `$.linux.rootfsPropagation`"


def _device_problems(device: Device, at: str) -> Iterator[str]:
    yield from _absolute(device.path, f"{at}.path")
    if device.type not in ("c", "b", "u", "p"):
        yield f"no device type {device.type!r} - at `{at}.type`"
    elif device.type != "p" and (device.major is None or device.minor is None):
        yield f"a device needs major and minor - at `{at}`"


def _absolute(path: str, at: str) -> Iterator[str]:
    if not path.startswith("/"):
        yield f"{path!r} is not an absolute path - at `{at}`"
