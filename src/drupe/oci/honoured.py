"""What the OCI programs carry out of the runtime specification. What one of them would overlook is refused by name.

A program that does not know a property ignores it without a word: a container would run with less than was asked for.
Versions are the first release that honours a field, by the programs' release notes; None is none yet.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from drupe.errors import InvalidArgument, Unsupported
from drupe.oci.runtime_spec import Linux, LinuxResources, Process, RuntimeConfig

Version = tuple[int, ...]


class Field(NamedTuple):
    """uses: whether a config has it."""

    path: str
    uses: Callable[[RuntimeConfig], object]
    crun: Version | None
    runc: Version | None


_NOTHING = Linux()
_NO_PROCESS = Process(cwd="/")


def _linux(config: RuntimeConfig) -> Linux:
    return config.linux or _NOTHING


def _process(config: RuntimeConfig) -> Process:
    return config.process or _NO_PROCESS


def _resources(config: RuntimeConfig) -> LinuxResources:
    return _linux(config).resources or LinuxResources()


def _has_namespace(config: RuntimeConfig, name: str) -> bool:
    return any(namespace.type == name for namespace in _linux(config).namespaces or ())


def _mapped_mount(config: RuntimeConfig) -> bool:
    return any(mount.uid_mappings or mount.gid_mappings for mount in config.mounts or ())


def _idmap_option(config: RuntimeConfig) -> bool:
    return any({"idmap", "ridmap"} & set(mount.options or ()) for mount in config.mounts or ())


def _cpu(config: RuntimeConfig, name: str) -> object:
    return getattr(_resources(config).cpu, name, None)


def _rdt(config: RuntimeConfig, *names: str) -> bool:
    return any(getattr(_linux(config).intel_rdt, name, None) for name in names)


FIELDS: tuple[Field, ...] = (
    Field("domainname", lambda c: c.domainname, (1, 7), (1, 2)),
    Field("process.scheduler", lambda c: _process(c).scheduler, (1, 8, 5), (1, 2)),
    Field("process.ioPriority", lambda c: _process(c).io_priority, (1, 8, 6), (1, 2)),
    Field("process.execCPUAffinity", lambda c: _process(c).exec_cpu_affinity, None, (1, 3)),
    Field("process.user.umask", lambda c: getattr(_process(c).user, "umask", None), (0, 18), (1, 0)),
    Field("mounts[].uidMappings", _mapped_mount, (1, 8, 1), (1, 2)),
    Field("mounts[].options idmap", _idmap_option, (1, 9), (1, 2)),
    Field("linux.namespaces time", lambda c: _has_namespace(c, "time"), (1, 8, 4), (1, 2)),
    Field("linux.timeOffsets", lambda c: _linux(c).time_offsets, (1, 8, 4), (1, 2)),
    Field("linux.personality", lambda c: _linux(c).personality, (1, 0), (1, 2)),
    Field("linux.resources.cpu.idle", lambda c: _cpu(c, "idle"), (1, 5), (1, 2)),
    Field("linux.resources.cpu.burst", lambda c: _cpu(c, "burst"), (1, 11), (1, 2)),
    Field("linux.resources.rdma", lambda c: _resources(c).rdma, (0, 20), (1, 1)),
    Field("linux.intelRdt", lambda c: _linux(c).intel_rdt, (1, 10), (1, 0)),
    Field("linux.intelRdt.enableCMT, enableMBM", lambda c: _rdt(c, "enable_cmt", "enable_mbm"), None, None),
    Field("linux.intelRdt.schemata", lambda c: _rdt(c, "schemata"), None, (1, 4)),
    Field("linux.intelRdt.enableMonitoring", lambda c: _rdt(c, "enable_monitoring"), None, (1, 4)),
    Field("linux.netDevices", lambda c: _linux(c).net_devices, None, (1, 4)),
    Field("linux.memoryPolicy", lambda c: _linux(c).memory_policy, None, (1, 4)),
    Field("linux.seccomp.listenerPath", lambda c: getattr(_linux(c).seccomp, "listener_path", None), (0, 19), (1, 1)),
    Field("process.commandLine", lambda c: _process(c).command_line, None, None),
    Field("process.user.username", lambda c: getattr(_process(c).user, "username", None), None, None),
    Field("vm", lambda c: c.vm, None, None),
    Field("windows", lambda c: c.windows, None, None),
    Field("solaris", lambda c: c.solaris, None, None),
    Field("zos", lambda c: c.zos, None, None),
)


MAPPED_MOUNTS = frozenset({"mounts[].uidMappings", "mounts[].options idmap"})


def refuse_unhonoured(
    config: RuntimeConfig, program: str, version: Version, *, ours: frozenset[str] = frozenset()
) -> None:
    """Raise Unsupported naming the first field of `config` that this program would overlook. ours: paths of the fields
    that are carried out before it starts."""
    for field in FIELDS:
        since = first_version(field, program)
        if (since is None or version < since) and field.path not in ours and field.uses(config):
            raise Unsupported(
                f"config.json: {field.path} is not carried out by {program} {dotted(version)}",
                feature=field.path,
                hint=f"{program} {dotted(since)} or later does" if since else "",
            )


def first_version(field: Field, program: str) -> Version | None:
    """The first release of `program` that honours a field; None when there is none."""
    found: Version | None = getattr(field, program, None)
    return found


def takes_spec_version(program: str, version: Version, spec: str) -> bool:
    """Whether the program takes this ociVersion: crun before 1.14.2 wants its own, whatever the fields."""
    return program != "crun" or version >= (1, 14, 2) or spec.startswith("1.0")


def for_older_crun(document: dict[str, Any]) -> dict[str, Any]:
    """A config.json in the words of a crun that takes no other ociVersion than its own. Of a user namespace that is
    joined it is not told the maps, which that has already: where a process table is joined, too, crun 1.8.1 looks for
    the namespace at a process that is not in it yet, and mounts with mapped ids fail (mount_setattr(2), EPERM)."""
    linux = dict(document.get("linux") or {})
    if any(space.get("type") == "user" and space.get("path") for space in linux.get("namespaces") or ()):
        linux.pop("uidMappings", None)
        linux.pop("gidMappings", None)
    return document | {"ociVersion": "1.0.2"} | ({"linux": linux} if "linux" in document else {})


def dotted(version: Version) -> str:
    """As people write it."""
    return ".".join(map(str, version))


def parse_version(text: str) -> Version:
    """From the first line of `PROGRAM --version`, such as "runc version 1.1.5+ds1". Raises InvalidArgument."""
    word = text.partition("\n")[0].rpartition(" ")[2]
    numbers = word.partition("+")[0].partition("-")[0].split(".")
    if not all(number.isascii() and number.isdigit() for number in numbers):
        raise InvalidArgument(f"{text[:80]!r} names no version")
    return tuple(int(number) for number in numbers)
