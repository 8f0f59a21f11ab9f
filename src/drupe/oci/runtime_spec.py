"""The OCI runtime specification 1.2 for Linux, as types: what a config.json that somebody else made may hold.

Names, types and meaning are those of config.md and config-linux.md of
https://github.com/opencontainers/runtime-spec/tree/v1.2.0; properties that it does not know are ignored, as it demands.
null counts as absent, as in Go. Fields of later versions are here where they must be refused by name.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from drupe.errors import InvalidArgument

SPEC_VERSION = "1.2.0"
T = TypeVar("T")


class _Part(msgspec.Struct, kw_only=True, rename="camel"):
    """An object of config.json."""


class Box(_Part):
    height: int
    width: int


class User(_Part):
    uid: int = 0
    gid: int = 0
    umask: int | None = None
    additional_gids: list[int] | None = None
    username: str | None = None


class Capabilities(_Part):
    bounding: list[str] | None = None
    effective: list[str] | None = None
    inheritable: list[str] | None = None
    permitted: list[str] | None = None
    ambient: list[str] | None = None


class Rlimit(_Part):
    type: str
    hard: int
    soft: int


class Scheduler(_Part):
    policy: str
    nice: int | None = None
    priority: int | None = None
    flags: list[str] | None = None
    runtime: int | None = None
    deadline: int | None = None
    period: int | None = None


class IoPriority(_Part):
    priority: int
    class_: str = msgspec.field(name="class")


class Process(_Part):
    cwd: str
    terminal: bool | None = None
    console_size: Box | None = None
    user: User | None = None
    args: list[str] | None = None
    command_line: str | None = None
    env: list[str] | None = None
    capabilities: Capabilities | None = None
    rlimits: list[Rlimit] | None = None
    no_new_privileges: bool | None = None
    apparmor_profile: str | None = None
    oom_score_adj: int | None = None
    scheduler: Scheduler | None = None
    selinux_label: str | None = None
    io_priority: IoPriority | None = None
    exec_cpu_affinity: dict[str, Any] | None = msgspec.field(name="execCPUAffinity", default=None)


class Root(_Part):
    path: str
    readonly: bool | None = None


class IdMapping(_Part):
    size: int
    container_id: int = msgspec.field(name="containerID")
    host_id: int = msgspec.field(name="hostID")


class Mount(_Part):
    destination: str
    type: str | None = None
    source: str | None = None
    options: list[str] | None = None
    uid_mappings: list[IdMapping] | None = None
    gid_mappings: list[IdMapping] | None = None


class Hook(_Part):
    path: str
    args: list[str] | None = None
    env: list[str] | None = None
    timeout: int | None = None


class Hooks(_Part):
    prestart: list[Hook] | None = None
    create_runtime: list[Hook] | None = None
    create_container: list[Hook] | None = None
    start_container: list[Hook] | None = None
    poststart: list[Hook] | None = None
    poststop: list[Hook] | None = None


class Namespace(_Part):
    type: str
    path: str | None = None


class Device(_Part):
    type: str
    path: str
    major: int | None = None
    minor: int | None = None
    file_mode: int | None = None
    uid: int | None = None
    gid: int | None = None


class DeviceRule(_Part):
    allow: bool
    type: str | None = None
    major: int | None = None
    minor: int | None = None
    access: str | None = None


class Memory(_Part):
    limit: int | None = None
    reservation: int | None = None
    swap: int | None = None
    kernel: int | None = None
    kernel_tcp: int | None = msgspec.field(name="kernelTCP", default=None)
    swappiness: int | None = None
    disable_oom_killer: bool | None = msgspec.field(name="disableOOMKiller", default=None)
    use_hierarchy: bool | None = None
    check_before_update: bool | None = None


class Cpu(_Part):
    shares: int | None = None
    quota: int | None = None
    burst: int | None = None
    period: int | None = None
    realtime_runtime: int | None = None
    realtime_period: int | None = None
    cpus: str | None = None
    mems: str | None = None
    idle: int | None = None


class Pids(_Part):
    limit: int | None = None


class BlockDevice(_Part):
    major: int
    minor: int
    weight: int | None = None
    leaf_weight: int | None = None
    rate: int | None = None


class BlockIo(_Part):
    weight: int | None = None
    leaf_weight: int | None = None
    weight_device: list[BlockDevice] | None = None
    throttle_read_bps_device: list[BlockDevice] | None = None
    throttle_write_bps_device: list[BlockDevice] | None = None
    throttle_read_iops_device: list[BlockDevice] | None = msgspec.field(name="throttleReadIOPSDevice", default=None)
    throttle_write_iops_device: list[BlockDevice] | None = msgspec.field(name="throttleWriteIOPSDevice", default=None)


class HugepageLimit(_Part):
    page_size: str
    limit: int


class InterfacePriority(_Part):
    name: str
    priority: int


class NetworkClass(_Part):
    class_id: int | None = msgspec.field(name="classID", default=None)
    priorities: list[InterfacePriority] | None = None


class Rdma(_Part):
    hca_handles: int | None = None
    hca_objects: int | None = None


class LinuxResources(_Part):
    devices: list[DeviceRule] | None = None
    memory: Memory | None = None
    cpu: Cpu | None = None
    pids: Pids | None = None
    block_io: BlockIo | None = msgspec.field(name="blockIO", default=None)
    hugepage_limits: list[HugepageLimit] | None = None
    network: NetworkClass | None = None
    rdma: dict[str, Rdma] | None = None
    unified: dict[str, str] | None = None


class SeccompArg(_Part):
    index: int
    value: int
    op: str
    value_two: int | None = None


class SeccompRule(_Part):
    names: list[str]
    action: str
    errno_ret: int | None = None
    args: list[SeccompArg] | None = None


class Seccomp(_Part):
    default_action: str
    default_errno_ret: int | None = None
    architectures: list[str] | None = None
    flags: list[str] | None = None
    listener_path: str | None = None
    listener_metadata: str | None = None
    syscalls: list[SeccompRule] | None = None


class IntelRdt(_Part):
    clos_id: str | None = msgspec.field(name="closID", default=None)
    l3_cache_schema: str | None = None
    mem_bw_schema: str | None = None
    enable_cmt: bool | None = msgspec.field(name="enableCMT", default=None)
    enable_mbm: bool | None = msgspec.field(name="enableMBM", default=None)
    schemata: list[str] | None = None
    enable_monitoring: bool | None = None


class Personality(_Part):
    domain: str
    flags: list[str] | None = None


class TimeOffset(_Part):
    secs: int | None = None
    nanosecs: int | None = None


class Linux(_Part):
    uid_mappings: list[IdMapping] | None = None
    gid_mappings: list[IdMapping] | None = None
    sysctl: dict[str, str] | None = None
    resources: LinuxResources | None = None
    cgroups_path: str | None = None
    namespaces: list[Namespace] | None = None
    devices: list[Device] | None = None
    seccomp: Seccomp | None = None
    rootfs_propagation: str | None = None
    masked_paths: list[str] | None = None
    readonly_paths: list[str] | None = None
    mount_label: str | None = None
    intel_rdt: IntelRdt | None = None
    personality: Personality | None = None
    time_offsets: dict[str, TimeOffset] | None = None
    net_devices: dict[str, Any] | None = None
    memory_policy: dict[str, Any] | None = None


class RuntimeConfig(_Part):
    """A config.json."""

    oci_version: str
    process: Process | None = None
    root: Root | None = None
    hostname: str | None = None
    domainname: str | None = None
    mounts: list[Mount] | None = None
    hooks: Hooks | None = None
    annotations: dict[str, str] | None = None
    linux: Linux | None = None
    vm: dict[str, Any] | None = None
    windows: dict[str, Any] | None = None
    solaris: dict[str, Any] | None = None
    zos: dict[str, Any] | None = None


def parse(kind: type[T], data: bytes | str | dict[str, Any], *, where: str) -> T:
    """A part of the specification, given as JSON text or as plain data. Raises InvalidArgument naming `where` and the
    key that is wrong."""
    try:
        return msgspec.convert(data, kind) if isinstance(data, dict) else msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise InvalidArgument(f"{where}: {error}") from None
