"""From a spec to the config.json that crun or runc runs (OCI runtime-spec 1.0.2): a pure function.

What the runtime decided on the way (paths, namespaces, devices, limits) comes in as `BuildInputs`. Defaults are
Docker's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from drupe.errors import InvalidArgument
from drupe.oci import mounts, process
from drupe.oci.capabilities import parse_capability, resolve
from drupe.oci.host import HostLimits, host_limits
from drupe.oci.process import INIT_TARGET, ImageConfig
from drupe.oci.seccomp import compiled_for, seccomp_for
from drupe.oci.sysctls import check_sysctls
from drupe.oci.users import ResolvedUser
from drupe.spec import ContainerSpec, Hook, Hooks, IdMap, PodSpec

OCI_VERSION = "1.0.2"

MASKED_PATHS = (
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
)
READ_ONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

# Making any node is allowed, using it is not: the rule crun and runc apply themselves. Then null, zero, full, random,
# urandom, tty, console, ptmx and the pseudo terminals.
DEFAULT_RULES: tuple[dict[str, Any], ...] = (
    {"allow": False, "access": "rwm"},
    {"allow": True, "type": "c", "access": "m"},
    {"allow": True, "type": "b", "access": "m"},
    *(
        {"allow": True, "type": "c", "major": major, "minor": minor, "access": "rwm"}
        for major, minor in ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2))
    ),
    {"allow": True, "type": "c", "major": 136, "access": "rwm"},
)
_ALL_DEVICES: tuple[dict[str, Any], ...] = ({"allow": True, "access": "rwm"},)
_HOOK_PHASES = {
    "prestart": "prestart",
    "create_runtime": "createRuntime",
    "create_container": "createContainer",
    "start_container": "startContainer",
    "poststart": "poststart",
    "poststop": "poststop",
}


@dataclass(frozen=True, kw_only=True)
class BuildInputs:
    """What the runtime decided for this container.

    rootfs: absolute host path. cgroups_path: below the cgroup root, absolute. namespaces: OCI type ("network",
    "ipc", "uts", "pid", "user") to the path of an existing one; a missing or None entry is a new one, unless the
    pod spec says host. mounts: OCI mounts of the runtime's own (resolv.conf, hosts, secrets, a shared /dev/shm).
    sources: mount target to host path, for volumes and images. devices, device_rules: resolved OCI entries.
    resources: `linux.resources` without devices. init: host path of a static reaper, bound in and put before
    argv. sysctls_applied: whoever made the namespaces set them already. oci_runtime: "crun" gets its filter
    ready-made, which saves some 10 ms a start.
    """

    container_id: str
    rootfs: str
    hostname: str = ""
    cgroups_path: str = ""
    namespaces: Mapping[str, str | None] = field(default_factory=dict)
    mounts: tuple[dict[str, Any], ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)
    devices: tuple[dict[str, Any], ...] = ()
    device_rules: tuple[dict[str, Any], ...] = ()
    resources: Mapping[str, Any] = field(default_factory=dict)
    hooks: Hooks = field(default_factory=Hooks)
    init: str = ""
    uid_maps: tuple[IdMap, ...] = ()
    gid_maps: tuple[IdMap, ...] = ()
    annotations: Mapping[str, str] = field(default_factory=dict)
    sysctls_applied: bool = False
    oci_runtime: str = "crun"
    host: HostLimits = field(default_factory=host_limits)


class BuiltConfig(NamedTuple):
    """config: the config.json. notes: one line for each wish the host could only meet in part."""

    config: dict[str, Any]
    notes: list[str]


def build_container(
    *, pod: PodSpec, container: ContainerSpec, image: ImageConfig, user: ResolvedUser, inputs: BuildInputs
) -> BuiltConfig:
    """The OCI config of one container of a pod.

    Raises InvalidArgument or Unsupported with one clear line for whatever in the specs cannot be carried out.
    """
    _check_paths(inputs)
    caps = _capabilities(container, inputs.host)
    proc, notes = _process(container, image, user, inputs, caps)
    config: dict[str, Any] = {
        "ociVersion": OCI_VERSION,
        "process": proc,
        "root": {"path": inputs.rootfs, "readonly": container.read_only},
        "mounts": _mounts(pod, container, inputs),
        "annotations": _annotations(pod, container, inputs) | _compiled_seccomp(container, inputs, caps),
        "linux": _linux(pod, container, user, inputs, caps),
    }
    if hooks := _hooks((inputs.hooks, container.hooks)):
        config["hooks"] = hooks
    if inputs.hostname and pod.namespaces.uts == "pod" and not inputs.namespaces.get("uts"):
        config["hostname"] = inputs.hostname  # a namespace that was joined has its name already
    return BuiltConfig(config, notes)


def image_volumes(container: ContainerSpec, image: ImageConfig) -> list[str]:
    """Targets of the image's volumes that no mount of the container covers: each wants an anonymous volume."""
    covered = {mounts.clean_target(mount.target) for mount in container.mounts}
    targets = [mounts.clean_target(target) for target in image.volumes]
    return [target for target in dict.fromkeys(targets) if target not in covered]


def oci_namespaces(pod: PodSpec, inputs: BuildInputs) -> list[dict[str, str]]:
    """`linux.namespaces`: joined by path, made anew, or left out because the pod shares the host's."""
    kinds = ["mount", "cgroup"]
    kinds += ["network"] if pod.network.mode != "host" else []
    kinds += ["ipc"] if pod.namespaces.ipc != "host" else []
    kinds += ["uts"] if pod.namespaces.uts != "host" else []
    kinds += ["pid"] if pod.namespaces.pid != "host" else []
    kinds += ["user"] if pod.namespaces.user is not None else []
    found = []
    for kind in kinds:
        path = inputs.namespaces.get(kind)
        found.append({"type": kind, "path": path} if path else {"type": kind})
    return found


def _check_paths(inputs: BuildInputs) -> None:
    for what, path in (("rootfs", inputs.rootfs), ("init program", inputs.init or "/")):
        if not path.startswith("/"):
            raise InvalidArgument(f"{what} {path!r} is not an absolute path")


def _capabilities(container: ContainerSpec, host: HostLimits) -> tuple[str, ...]:
    wanted = container.security
    return resolve(wanted.cap_add, wanted.cap_drop, privileged=wanted.privileged, host=host.capabilities)


def _process(
    container: ContainerSpec,
    image: ImageConfig,
    user: ResolvedUser,
    inputs: BuildInputs,
    caps: tuple[str, ...],
) -> tuple[dict[str, Any], list[str]]:
    argv = process.container_argv(container, image)
    named = {parse_capability(name) for name in container.security.cap_add if name.upper() != "ALL"}
    rlimits, notes = process.oci_rlimits(container.rlimits, inputs.host)
    oom, oom_notes = process.oci_oom_score_adj(container.oom_score_adj, inputs.host)
    proc: dict[str, Any] = {
        "terminal": container.tty,
        "user": process.oci_user(user),
        "args": [INIT_TARGET, "--", *argv] if inputs.init else argv,
        "env": process.container_env(container, image, hostname=inputs.hostname, user=user),
        "cwd": process.container_cwd(container, image),
        "capabilities": process.oci_capabilities(caps, uid=user.uid, explicit=named),
        "noNewPrivileges": container.security.no_new_privileges,
    }
    if rlimits:
        proc["rlimits"] = rlimits
    if oom is not None:
        proc["oomScoreAdj"] = oom
    return proc, notes + oom_notes


def _mounts(pod: PodSpec, container: ContainerSpec, inputs: BuildInputs) -> list[dict[str, Any]]:
    userns = pod.namespaces.user is not None
    defaults = mounts.default_mounts(
        shm_size_bytes=container.shm_size_bytes,
        privileged=container.security.privileged,
        tty_gid=not userns or _mapped(5, inputs.gid_maps),
        bind_sys=userns and pod.network.mode == "host",
    )
    own = list(inputs.mounts)
    if inputs.init:
        own.append(mounts.bind_mount(inputs.init, INIT_TARGET, read_only=True))
    return mounts.merge(defaults, own, mounts.user_mounts(container.mounts, inputs.sources))


def _linux(
    pod: PodSpec, container: ContainerSpec, user: ResolvedUser, inputs: BuildInputs, caps: tuple[str, ...]
) -> dict[str, Any]:
    wanted = container.security
    linux: dict[str, Any] = {"namespaces": oci_namespaces(pod, inputs)}
    linux["resources"] = {**inputs.resources, "devices": _device_rules(container, inputs)}
    if inputs.cgroups_path:
        linux["cgroupsPath"] = inputs.cgroups_path
    if inputs.devices:
        linux["devices"] = list(inputs.devices)
    if propagation := mounts.rootfs_propagation(container.mounts):
        linux["rootfsPropagation"] = propagation
    if (sysctls := check_sysctls(pod)) and not inputs.sysctls_applied:
        linux["sysctl"] = sysctls
    if not wanted.privileged:
        linux["maskedPaths"] = _paths(wanted.masked_paths, MASKED_PATHS)
        linux["readonlyPaths"] = _paths(wanted.read_only_paths, READ_ONLY_PATHS)
        if filter_ := seccomp_for(wanted.seccomp, caps):
            linux["seccomp"] = filter_
    if pod.namespaces.user is not None:
        linux |= _id_maps(user, inputs)
    return linux


def _device_rules(container: ContainerSpec, inputs: BuildInputs) -> list[dict[str, Any]]:
    if container.security.privileged:
        return list(_ALL_DEVICES)
    return [*DEFAULT_RULES, *inputs.device_rules]


def _paths(given: tuple[str, ...] | None, default: tuple[str, ...]) -> list[str]:
    for path in given or ():
        if not path.startswith("/"):
            raise InvalidArgument(f"masked or read-only path {path!r} is not an absolute path")
    return list(default if given is None else given)


def _id_maps(user: ResolvedUser, inputs: BuildInputs) -> dict[str, Any]:
    for what, number, maps in (("uid", user.uid, inputs.uid_maps), ("gid", user.gid, inputs.gid_maps)):
        if not _mapped(number, maps):
            raise InvalidArgument(
                f"{what} {number} of the user is not mapped in the pod's user namespace",
                hint="widen the mapping or choose another user",
            )
    return {"uidMappings": _oci_maps(inputs.uid_maps), "gidMappings": _oci_maps(inputs.gid_maps)}


def _mapped(number: int, maps: Iterable[IdMap]) -> bool:
    return any(m.inside <= number < m.inside + m.count for m in maps)


def _oci_maps(maps: Iterable[IdMap]) -> list[dict[str, int]]:
    return [{"containerID": m.inside, "hostID": m.outside, "size": m.count} for m in maps]


def _annotations(pod: PodSpec, container: ContainerSpec, inputs: BuildInputs) -> dict[str, str]:
    merged = {**pod.annotations, **container.annotations}
    for name in merged:
        if name.startswith("run.oci."):
            raise InvalidArgument(
                f"annotation {name} would steer crun itself on the host",
                hint="annotations under run.oci. are not passed on; use the spec's own settings",
            )
    return {**merged, **inputs.annotations}


def _compiled_seccomp(container: ContainerSpec, inputs: BuildInputs, caps: tuple[str, ...]) -> dict[str, str]:
    if inputs.oci_runtime != "crun" or container.security.privileged:
        return {}
    program = compiled_for(container.security.seccomp, caps)
    return {"run.oci.seccomp_bpf_data": program} if program else {}


def _hooks(sets: Iterable[Hooks]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for hooks in sets:
        for phase, key in _HOOK_PHASES.items():
            if listed := getattr(hooks, phase):
                found.setdefault(key, []).extend(_hook(hook) for hook in listed)
    return found


def _hook(hook: Hook) -> dict[str, Any]:
    if not hook.path.startswith("/"):
        raise InvalidArgument(f"hook {hook.path!r} is not an absolute path")
    entry: dict[str, Any] = {"path": hook.path, "args": [hook.path, *hook.args], "env": list(hook.env)}
    if hook.timeout_s is not None:
        entry["timeout"] = hook.timeout_s
    return entry
