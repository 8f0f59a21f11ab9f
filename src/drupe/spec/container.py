"""What a container is asked to be. Fields left at None or empty take the image's value, then Docker's default."""

from __future__ import annotations

from typing import Literal

from drupe.spec.base import Spec
from drupe.spec.resources import Resources

IDLE = "drupe.idle"  # a container's annotation: its main process is the runtime's own idle init
Propagation = Literal["private", "rprivate", "slave", "rslave", "shared", "rshared"]


class Mount(Spec):
    """A mount in the container.

    bind: host path `source`. volume: named volume `source` ("" is anonymous). tmpfs: memory, `size_bytes`, `mode`.
    image: another image, read-only. block: host file or block device `source` with a file system of kind `filesystem`
    ("" is ext4), which the sandbox's own kernel mounts. Relative targets are refused. `create` makes a missing bind
    source a directory. `ids` of a bind in a pod with a user namespace: "mapped" shows files with the owners that they
    have on the host as the same ids of inside, and makes files so; "mapped-all" also what is mounted below.
    """

    target: str
    type: Literal["bind", "volume", "tmpfs", "image", "block"] = "bind"
    source: str = ""
    read_only: bool = False
    propagation: Propagation = "rprivate"
    options: tuple[str, ...] = ()
    size_bytes: int | None = None
    mode: int | None = None
    create: bool = False
    filesystem: str = ""
    ids: Literal["host", "mapped", "mapped-all"] = "host"


class Secret(Spec):
    """A file that lives in memory only, at /run/secrets/<name> unless `target` says otherwise. Never in the journal."""

    name: str
    value: bytes
    target: str | None = None
    uid: int = 0
    gid: int = 0
    mode: int = 0o400


VFIO = "vfio="  # what a Device's path begins with when it is hardware on PCI: "vfio=0000:3b:00.1"


class Device(Spec):
    """A device node of the host, or (`VFIO`) hardware for the pod's own machine. permissions: any of r, w, m."""

    path: str
    target: str | None = None
    permissions: str = "rwm"


class Rlimit(Spec):
    """name: "nofile", "nproc"… (setrlimit(2) without RLIMIT_). -1 is unlimited."""

    name: str
    soft: int
    hard: int


class Hook(Spec):
    """An OCI hook: a program of the host, given the OCI state on stdin."""

    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout_s: int | None = None


class Hooks(Spec):
    """Hooks by OCI phase, in the order in which they run (runtime-spec, config.md, POSIX-platform Hooks)."""

    prestart: tuple[Hook, ...] = ()
    create_runtime: tuple[Hook, ...] = ()
    create_container: tuple[Hook, ...] = ()
    start_container: tuple[Hook, ...] = ()
    poststart: tuple[Hook, ...] = ()
    poststop: tuple[Hook, ...] = ()


class RestartPolicy(Spec):
    """When to start a container again after it ended; waits double from `delay_s` to 60 s, reset after 10 s of
    running."""

    name: Literal["no", "on-failure", "always", "unless-stopped"] = "no"
    max_retries: int = 0
    delay_s: float = 0.1


class HealthCheck(Spec):
    """A command run inside the container; exit 0 is healthy. Durations in seconds, Docker's meaning and defaults.
    Without argv nothing is checked, whatever the image says."""

    argv: tuple[str, ...]
    interval_s: float = 30.0
    timeout_s: float = 30.0
    start_period_s: float = 0.0
    retries: int = 3


class LogSpec(Spec):
    """Where output goes. cri: kubelet's line format. json-file: Docker's. none: kept nowhere (attach still works)."""

    driver: Literal["cri", "json-file", "none"] = "cri"
    path: str = ""
    max_bytes: int = 10 * 1024 * 1024
    max_files: int = 5


class SecuritySpec(Spec):
    """What the workload may do to its kernel.

    capabilities: added to / dropped from Docker's default set, names with or without CAP_, "ALL". seccomp: "default",
    "unconfined", or the path of an OCI/Docker profile. `masked_paths`/`read_only_paths` None: the usual lists; () none.
    privileged: all capabilities, all devices, no seccomp, nothing masked; not a sandbox (docs say so).
    """

    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    seccomp: str = "default"
    no_new_privileges: bool = True
    masked_paths: tuple[str, ...] | None = None
    read_only_paths: tuple[str, ...] | None = None
    privileged: bool = False


class RootMount(Spec):
    """One layer of a container's root, mounted over those before it. target: below the root. options: mount(8)'s words
    and the file system's own."""

    type: str
    source: str
    target: str = ""
    options: tuple[str, ...] = ()


class Bundle(Spec):
    """An OCI bundle by which somebody else (containerd, Docker) describes the container: what its config.json says
    counts, and not what the spec or an image would.

    path: the bundle's directory. root: what the container's root is mounted from; none: config.json names a directory.
    given: root and bind mounts come along as descriptors (open_tree(2)), for only their owner can name them.
    cgroup: the container's. features: what config.json asks for, in the words of `drupe system capabilities`.
    checkpoint: directory of the memory that it goes on from.
    """

    path: str
    root: tuple[RootMount, ...] = ()
    given: bool = False
    cgroup: str = ""
    features: tuple[str, ...] = ()
    checkpoint: str = ""


class ContainerSpec(Spec):
    """One container of a pod.

    image: reference in the store; or rootfs: a directory of the host (used as it is); or bundle. argv: replaces its CMD
    (Docker: the arguments after the image); entrypoint None keeps the image's, () clears it. env: "K=V" or "K" (unset).
    user: "name", "uid", "name:group", resolved in the image. stdin: keep standard input open for attach.
    init: a tiny reaper as PID 1. stop_signal None: the image's, else SIGTERM. shm_size_bytes: /dev/shm.
    """

    name: str | None = None
    id: str | None = None
    image: str = ""
    rootfs: str = ""
    bundle: Bundle | None = None
    entrypoint: tuple[str, ...] | None = None
    argv: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    cwd: str | None = None
    user: str | None = None
    groups: tuple[str, ...] = ()
    tty: bool = False
    stdin: bool = False
    read_only: bool = False
    init: bool = False
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    mounts: tuple[Mount, ...] = ()
    secrets: tuple[Secret, ...] = ()
    devices: tuple[Device, ...] = ()
    rlimits: tuple[Rlimit, ...] = ()
    hooks: Hooks = Hooks()
    resources: Resources = Resources()
    security: SecuritySpec = SecuritySpec()
    restart: RestartPolicy = RestartPolicy()
    health: HealthCheck | None = None
    log: LogSpec = LogSpec()
    stop_signal: str | None = None
    stop_grace_s: float = 10.0
    shm_size_bytes: int = 64 * 1024 * 1024
    oom_score_adj: int | None = None


class ExecSpec(Spec):
    """A further process in a running container (virtcontainers: enter). env adds to the container's."""

    argv: tuple[str, ...]
    env: tuple[str, ...] = ()
    cwd: str | None = None
    user: str | None = None
    tty: bool = False
    rows: int = 0
    cols: int = 0
    privileged: bool = False
    cap_add: tuple[str, ...] = ()
    no_new_privileges: bool = True
    timeout_s: float | None = None
