"""What drupe answers about pods and containers. Times are Unix seconds (float), sizes bytes, durations seconds."""

from __future__ import annotations

from typing import Any

from drupe.spec.base import Record

KILLED = 128 + 9  # the exit code of what SIGKILL ended
STATES = ("creating", "ready", "running", "paused", "stopped", "failed", "deleted")


class Endpoint(Record):
    """One interface of a pod."""

    network: str = ""
    interface: str = ""
    mac: str = ""
    ipv4: str = ""
    ipv6: str = ""
    gateway4: str = ""
    gateway6: str = ""
    host_interface: str = ""


class PublishedPort(Record):
    """A published port, with the host port that was really taken."""

    host_ip: str
    host_port: int
    container_port: int
    protocol: str


class ExitStatus(Record):
    """How a process ended. code: exit code, or 128 + signal. reason: "", "Error", "OOMKilled", "Lost",
    "StartError", "Timeout"."""

    code: int
    signal: int = 0
    at: float = 0.0
    reason: str = ""
    message: str = ""
    oom_kills: int = 0


class ContainerStatus(Record):
    id: str
    name: str
    pod: str
    state: str
    image: str = ""
    image_digest: str = ""
    argv: list[str] = []
    pid: int = 0
    created_at: float = 0.0
    started_at: float = 0.0
    finished_at: float = 0.0
    exit: ExitStatus | None = None
    health: str = ""
    restarts: int = 0
    tty: bool = False
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    log_path: str = ""
    mounts: list[dict[str, Any]] = []
    cause: str = ""
    phase: str = ""
    notes: list[str] = []  # what the last change of limits could not bring about


class PassedOver(Record):
    """A kind that was not chosen, and why."""

    kind: str
    reason: str


class Choice(Record):
    """How a pod's kind of sandbox was chosen.

    level: the isolation the pod gets: its kind's, or "none" where it shares a namespace with the host or is privileged.
    asked: what was asked for, a kind or "auto". by: who asked: "request", "annotation", "image", "node", "built-in".
    passed_over: stronger kinds that could not be used, strongest first. notes: what else had a say and was not
    followed. rules: names of the policy rules that hold for the pod.
    """

    kind: str
    level: str
    asked: str
    by: str
    passed_over: list[PassedOver] = []
    notes: list[str] = []
    rules: list[str] = []


class MachineInfo(Record):
    """A pod's machine. memory_max_bytes, processors_max: up to where it can grow. overhead_bytes, vmm_bytes: what the
    node's settings add to a pod's limit for the guest's own part, and to that for its monitor and helpers on the host.
    guest_bytes: memory that the guest's kernel and agent keep for themselves, measured; host_bytes: what monitor and
    helpers cost the host beside the machine's memory (PSS), measured. notes: what is not as usual, and why."""

    hypervisor: str
    machine_type: str
    accelerator: str
    processors: int
    processors_max: int
    memory_bytes: int
    memory_max_bytes: int
    overhead_bytes: int
    vmm_bytes: int
    guest_bytes: int = 0
    host_bytes: int = 0
    notes: list[str] = []


class PodStatus(Record):
    id: str
    name: str
    namespace: str
    state: str
    sandbox: str
    owner: str = ""
    created_at: float = 0.0
    finished_at: float = 0.0
    hostname: str = ""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    netns: str = ""
    endpoints: list[Endpoint] = []
    ports: list[PublishedPort] = []
    containers: list[ContainerStatus] = []
    cause: str = ""
    phase: str = ""
    timings_ms: dict[str, float] = {}
    choice: Choice | None = None
    notes: list[str] = []  # what the last change of limits could not bring about
    machine: MachineInfo | None = None


class ProcessInfo(Record):
    """One process of a container, ids as the host sees them."""

    pid: int
    ppid: int
    uid: int
    user: str
    state: str
    cpu_s: float
    rss_bytes: int
    started_at: float
    command: str


class Stats(Record):
    """Counters of a container or pod. Network counters belong to the pod. Zero limit means none."""

    at: float
    cpu_usage_ns: int = 0
    cpu_user_ns: int = 0
    cpu_system_ns: int = 0
    cpu_throttled_ns: int = 0
    cpu_throttled_periods: int = 0
    memory_usage_bytes: int = 0
    memory_working_set_bytes: int = 0
    memory_peak_bytes: int = 0
    memory_limit_bytes: int = 0
    memory_file_bytes: int = 0
    memory_anon_bytes: int = 0
    swap_usage_bytes: int = 0
    oom_kills: int = 0
    pids: int = 0
    pids_limit: int = 0
    io_read_bytes: int = 0
    io_write_bytes: int = 0
    io_reads: int = 0
    io_writes: int = 0
    net_rx_bytes: int = 0
    net_tx_bytes: int = 0
    net_rx_packets: int = 0
    net_tx_packets: int = 0
    pressure: dict[str, float] = {}


class Event(Record):
    """Something that happened. type: "pod", "container", "image", "network", "volume", "daemon". action: Docker's words
    (create, start, die, oom, kill, pause, unpause, stop, destroy, exec_create, exec_start, exec_die,
    health_status…)."""

    at: float
    type: str
    action: str
    id: str
    attributes: dict[str, str] = {}
