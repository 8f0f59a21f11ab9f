"""An OCI config.json that somebody else wrote, checked before anything runs (runtime-spec 1.x, config.md).

Wrong types and values become one line with the JSON path. Unknown keys are allowed, as the specification demands.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from drupe.errors import InvalidArgument, NotFound, Unsupported
from drupe.oci.capabilities import ALL
from drupe.oci.host import RLIMITS

_MAX_BYTES = 8 << 20
_VERSION = re.compile(r"^1\.\d+\.\d+(-[0-9A-Za-z.+-]+)?$")
_NAMESPACES = frozenset(("pid", "network", "mount", "ipc", "uts", "user", "cgroup", "time"))
_PROPAGATIONS = frozenset(("shared", "slave", "private", "unbindable", "rshared", "rslave", "rprivate", "runbindable"))


class _Oci(msgspec.Struct, rename="camel", omit_defaults=True):
    """Base: the specification's spelling; unknown keys are ignored."""


class User(_Oci):
    uid: int = 0
    gid: int = 0
    umask: int | None = None
    additional_gids: list[int] = []


class Capabilities(_Oci):
    bounding: list[str] = []
    effective: list[str] = []
    inheritable: list[str] = []
    permitted: list[str] = []
    ambient: list[str] = []


class OciRlimit(_Oci):
    type: str
    soft: int
    hard: int


class Process(_Oci):
    cwd: str
    args: list[str] = []
    env: list[str] = []
    terminal: bool = False
    user: User = msgspec.field(default_factory=User)
    capabilities: Capabilities | None = None
    rlimits: list[OciRlimit] = []
    no_new_privileges: bool = False
    oom_score_adj: int | None = None


class Root(_Oci):
    path: str
    readonly: bool = False


class OciMountEntry(_Oci):
    destination: str
    type: str = ""
    source: str = ""
    options: list[str] = []


class OciHook(_Oci):
    path: str
    args: list[str] = []
    env: list[str] = []
    timeout: int | None = None


class OciHooks(_Oci):
    prestart: list[OciHook] = []
    create_runtime: list[OciHook] = []
    create_container: list[OciHook] = []
    start_container: list[OciHook] = []
    poststart: list[OciHook] = []
    poststop: list[OciHook] = []


class Namespace(_Oci):
    type: str
    path: str = ""


class IdMapping(_Oci):
    container_id: int = msgspec.field(name="containerID")
    host_id: int = msgspec.field(name="hostID")
    size: int


class OciDevice(_Oci):
    type: str
    path: str
    major: int | None = None
    minor: int | None = None
    file_mode: int | None = None
    uid: int | None = None
    gid: int | None = None


class DeviceRule(_Oci):
    allow: bool
    type: str = ""
    major: int | None = None
    minor: int | None = None
    access: str = ""


class CpuSection(_Oci):
    shares: int | None = None
    quota: int | None = None
    period: int | None = None
    cpus: str = ""
    mems: str = ""


class MemorySection(_Oci):
    limit: int | None = None
    reservation: int | None = None
    swap: int | None = None
    swappiness: int | None = None
    disable_oom_killer: bool | None = msgspec.field(default=None, name="disableOOMKiller")


class PidsSection(_Oci):
    limit: int


class OciResources(_Oci):
    devices: list[DeviceRule] = []
    cpu: CpuSection | None = None
    memory: MemorySection | None = None
    pids: PidsSection | None = None
    block_io: dict[str, Any] | None = msgspec.field(default=None, name="blockIO")
    hugepage_limits: list[dict[str, Any]] = []
    unified: dict[str, str] = {}


class Linux(_Oci):
    namespaces: list[Namespace] = []
    uid_mappings: list[IdMapping] = []
    gid_mappings: list[IdMapping] = []
    devices: list[OciDevice] = []
    cgroups_path: str = ""
    resources: OciResources | None = None
    rootfs_propagation: str = ""
    seccomp: dict[str, Any] | None = None
    sysctl: dict[str, str] = {}
    masked_paths: list[str] = []
    readonly_paths: list[str] = []


class OciConfig(_Oci):
    """A checked config.json. `root` and `process` are what a container of Linux cannot do without."""

    oci_version: str
    root: Root
    process: Process
    hostname: str = ""
    mounts: list[OciMountEntry] = []
    hooks: OciHooks = msgspec.field(default_factory=OciHooks)
    annotations: dict[str, str] = {}
    linux: Linux = msgspec.field(default_factory=Linux)


def load_config(path: Path) -> OciConfig:
    """Read and check a config.json. Raises NotFound, InvalidArgument (what, where)."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        raise NotFound(f"no OCI config {path}", hint="a bundle has config.json beside its root file system") from None
    except OSError as error:
        raise InvalidArgument(f"cannot read OCI config {path}", cause=error.strerror or "") from None
    if len(data) > _MAX_BYTES:
        raise InvalidArgument(f"OCI config {path} is larger than {_MAX_BYTES} bytes")
    return parse_config(data, where=str(path))


def parse_config(data: bytes | str | dict[str, Any], *, where: str = "config.json") -> OciConfig:
    """Check a config, given as JSON text or as plain data. Raises InvalidArgument, Unsupported (not for Linux)."""
    plain = _plain(data, where)
    if foreign := [name for name in ("windows", "solaris", "vm", "zos") if name in plain and "linux" not in plain]:
        raise Unsupported(f"{where} is a config for {foreign[0]}, not Linux", feature=foreign[0])
    try:
        config = msgspec.convert(plain, OciConfig)
    except msgspec.ValidationError as error:
        raise InvalidArgument(f"{where}: {error}") from None
    for problem in _problems(config):
        raise InvalidArgument(f"{where}: {problem}")
    return config


def _plain(data: bytes | str | dict[str, Any], where: str) -> dict[str, Any]:
    if isinstance(data, dict):
        return data
    try:
        plain = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{where}: not JSON", cause=str(error)) from None
    if not isinstance(plain, dict):
        raise InvalidArgument(f"{where}: Expected `object`, got `{type(plain).__name__}` - at `$`")
    return plain


def _problems(config: OciConfig) -> Iterator[str]:
    if not _VERSION.match(config.oci_version):
        yield f"version {config.oci_version!r} is not 1.x - at `$.ociVersion`"
    if not config.root.path:
        yield "no path - at `$.root.path`"
    yield from _process_problems(config.process)
    for number, mount in enumerate(config.mounts):
        yield from _absolute(mount.destination, f"$.mounts[{number}].destination")
    for phase in config.hooks.__struct_fields__:
        for number, hook in enumerate(getattr(config.hooks, phase)):
            yield from _absolute(hook.path, f"$.hooks.{phase}[{number}].path")
    yield from _linux_problems(config.linux)
    if config.hostname and not any(space.type == "uts" for space in config.linux.namespaces):
        yield "a hostname needs a uts namespace - at `$.hostname`"


def _process_problems(process: Process) -> Iterator[str]:
    if not process.args or not process.args[0]:
        yield "nothing to run - at `$.process.args`"
    yield from _absolute(process.cwd, "$.process.cwd")
    for number, entry in enumerate(process.env):
        if entry.partition("=")[0] == "" or "=" not in entry:
            yield f"{entry!r} is not NAME=value - at `$.process.env[{number}]`"
    for name in ("uid", "gid"):
        if not 0 <= getattr(process.user, name) < 2**32:
            yield f"id out of range - at `$.process.user.{name}`"
    for kind in Capabilities.__struct_fields__ if process.capabilities else ():
        for number, cap in enumerate(getattr(process.capabilities, kind)):
            if cap not in ALL:
                yield f"no capability {cap!r} - at `$.process.capabilities.{kind}[{number}]`"
    yield from _rlimit_problems(process.rlimits)
    if process.oom_score_adj is not None and not -1000 <= process.oom_score_adj <= 1000:
        yield f"{process.oom_score_adj} is not in -1000..1000 - at `$.process.oomScoreAdj`"
    for number, text in enumerate([*process.args, *process.env]):
        if "\0" in text:
            yield f"string {number} of args and env holds a NUL - at `$.process`"


def _rlimit_problems(rlimits: Iterable[OciRlimit]) -> Iterator[str]:
    seen: set[str] = set()
    for number, rlimit in enumerate(rlimits):
        at = f"at `$.process.rlimits[{number}]`"
        if rlimit.type.removeprefix("RLIMIT_").lower() not in RLIMITS or not rlimit.type.startswith("RLIMIT_"):
            yield f"no rlimit {rlimit.type!r} - {at}"
        if rlimit.type in seen:
            yield f"{rlimit.type} is given twice - {at}"
        if not 0 <= rlimit.soft <= rlimit.hard < 2**64:
            yield f"soft limit {rlimit.soft} and hard limit {rlimit.hard} are not in order - {at}"
        seen.add(rlimit.type)


def _linux_problems(linux: Linux) -> Iterator[str]:
    seen: set[str] = set()
    for number, space in enumerate(linux.namespaces):
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
    for number, device in enumerate(linux.devices):
        yield from _device_problems(device, f"$.linux.devices[{number}]")
    for name, paths in (("maskedPaths", linux.masked_paths), ("readonlyPaths", linux.readonly_paths)):
        for number, path in enumerate(paths):
            yield from _absolute(path, f"$.linux.{name}[{number}]")
    if linux.rootfs_propagation and linux.rootfs_propagation not in _PROPAGATIONS:
        yield f"no propagation {linux.rootfs_propagation!r} - at `$.linux.rootfsPropagation`"


def _device_problems(device: OciDevice, at: str) -> Iterator[str]:
    yield from _absolute(device.path, f"{at}.path")
    if device.type not in ("c", "b", "u", "p"):
        yield f"no device type {device.type!r} - at `{at}.type`"
    elif device.type != "p" and (device.major is None or device.minor is None):
        yield f"a device needs major and minor - at `{at}`"


def _absolute(path: str, at: str) -> Iterator[str]:
    if not path.startswith("/"):
        yield f"{path!r} is not an absolute path - at `{at}`"
