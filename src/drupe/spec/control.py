"""The control API: every method of the daemon, its parameters and its result, in one place.

Served by `services/control`, called by `api` and `cli` over `rpc`. A call is a method name, one params struct and
descriptors (named); it yields zero or more items (`stream`), then a result or an error. `METHODS` is the table that
server, client and documentation derive from.
"""

from __future__ import annotations

from typing import Any

from drupe.spec.base import Record, Spec
from drupe.spec.changes import ChangeList, Commit, History, Rename
from drupe.spec.container import ContainerSpec, ExecSpec
from drupe.spec.containerd import ShimDelete, ShimDeleted, ShimStart, ShimStarted
from drupe.spec.host import CapabilityTable, Doctor, ProbeList
from drupe.spec.membership import NetworkConnect, NetworkDisconnect
from drupe.spec.oci import OciAnswer, OciAsk
from drupe.spec.pod import PodSpec
from drupe.spec.resources import Resources
from drupe.spec.snapshot import Fork, SnapshotCreate, SnapshotInfo, SnapshotList, SnapshotManifest, SnapshotRestore
from drupe.spec.status import Choice, ContainerStatus, Event, ExitStatus, PodStatus, ProcessInfo, Stats
from drupe.spec.template import TemplateCreate, TemplateInfo, TemplateList


class Empty(Spec):
    """No parameters, or nothing to say."""


class Ref(Spec):
    """An object by id, unique id prefix, or name."""

    ref: str


class RefList(Spec):
    refs: tuple[str, ...] = ()


class PodCreate(Spec):
    """auto_stop: the pod starts, ends and goes with its containers, as one made by run."""

    spec: PodSpec
    auto_stop: bool = False


class PodRun(Spec):
    """Create and start. Descriptors stdin, stdout, stderr are attached to the first container before it starts, for as
    long as the caller's connection lasts. The end of stdin is the end of the container's, if that is no terminal."""

    spec: PodSpec
    rows: int = 0
    cols: int = 0


class Stop(Spec):
    """timeout_s None: the container's own grace. force: SIGKILL at once."""

    ref: str
    timeout_s: float | None = None
    force: bool = False


class Delete(Spec):
    """force: stop first. volumes: remove anonymous volumes too."""

    ref: str
    force: bool = False
    volumes: bool = True


class ListFilter(Spec):
    """labels: "k" or "k=v", all must match. states: any may match. pod: containers of one pod. all_owners: also pods
    that belong to others (containerd), to be looked at."""

    labels: tuple[str, ...] = ()
    states: tuple[str, ...] = ()
    namespace: str | None = None
    pod: str | None = None
    all_owners: bool = False


class PodList(Record):
    pods: list[PodStatus]


class ContainerList(Record):
    containers: list[ContainerStatus]


class ContainerCreate(Spec):
    pod: str
    spec: ContainerSpec


class ContainerStart(Spec):
    """Descriptors stdin, stdout, stderr, when given, are attached as with PodRun, so that no byte is missed."""

    ref: str
    rows: int = 0
    cols: int = 0


class Wait(Spec):
    """Wait for the end. condition: "stopped" (now or next) or "removed". timeout_s None: for ever."""

    ref: str
    condition: str = "stopped"
    timeout_s: float | None = None


class Kill(Spec):
    """signal: name or number as text. all: every process of the container."""

    ref: str
    signal: str = "KILL"
    all: bool = False


class ExecStart(Spec):
    """Descriptors stdin, stdout, stderr become the process's own; with tty they are connected to a pty.
    detach: answer once it runs. Otherwise the first streamed item is ExecStarted and the result comes at its end."""

    ref: str
    spec: ExecSpec
    detach: bool = False


class ExecStarted(Record):
    """pid: as the host sees it. The OCI runtime answers just before it executes the program: for a moment the process
    list may show the runtime's own command line."""

    exec_id: str
    pid: int


class ExecRef(Spec):
    ref: str
    exec_id: str


class ExecKill(Spec):
    """tree: its descendants too, as far as they are still in its family."""

    ref: str
    exec_id: str
    signal: str = "KILL"
    tree: bool = False


class Resize(Spec):
    """exec_id "": the container's own terminal."""

    ref: str
    rows: int
    cols: int
    exec_id: str = ""


class Update(Spec):
    ref: str
    resources: Resources


class ProcessList(Record):
    processes: list[ProcessInfo]


class Logs(Spec):
    """Each streamed item is a LogLine. since/until: Unix seconds. tail None: all. follow: until the container ends."""

    ref: str
    follow: bool = False
    tail: int | None = None
    since: float | None = None
    until: float | None = None


class LogLine(Record):
    """data keeps its newline when the line had one."""

    at: float
    stream: str
    data: bytes


class StatsRequest(Spec):
    """stream: one StatsItem per container each `interval_s`. refs (): all running containers."""

    refs: tuple[str, ...] = ()
    stream: bool = False
    interval_s: float = 1.0


class StatsItem(Record):
    id: str
    name: str
    pod: str
    stats: Stats
    error: str = ""  # among all that run: why this one could not be counted; `stats` says nothing then


class StatsList(Record):
    items: list[StatsItem]


class Events(Spec):
    """Streamed items are Event. since: replay from the journal. until: end by then. follow False: only what was."""

    since: float | None = None
    until: float | None = None
    follow: bool = True
    types: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()


class EventList(Record):
    events: list[Event]


class FileRef(Spec):
    """A path inside a container's root (running or stopped), symlinks resolved inside that root."""

    ref: str
    path: str


class FileRead(Spec):
    """The bytes are written to descriptor `data`; the result is the FileInfo."""

    ref: str
    path: str
    offset: int = 0
    length: int | None = None


class FileWrite(Spec):
    """The bytes are read from descriptor `data` up to its end; parents are made when asked; atomic by rename."""

    ref: str
    path: str
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    append: bool = False
    parents: bool = True


class FileMake(Spec):
    ref: str
    path: str
    parents: bool = True
    mode: int = 0o755


class FileRemove(Spec):
    ref: str
    path: str
    recursive: bool = False


class FileRename(Spec):
    ref: str
    path: str
    target: str


class FileInfo(Record):
    """type: "file", "dir", "symlink", "device", "fifo", "socket"."""

    path: str
    type: str
    size: int
    mode: int
    uid: int
    gid: int
    mtime: float
    target: str = ""


class FileList(Record):
    files: list[FileInfo]


class ArchiveGet(Spec):
    """`docker cp` out: a tar of `path` (file or tree) is written to descriptor `data`."""

    ref: str
    path: str
    follow: bool = False


class ArchivePut(Spec):
    """`docker cp` in: a tar read from descriptor `data` is unpacked below directory `path`."""

    ref: str
    path: str
    keep_ids: bool = False


class ImagePull(Spec):
    """Streams Progress. platform "os/arch[/variant]". auth "user:password" or None (then the usual config files)."""

    ref: str
    platform: str = ""
    auth: str | None = None
    insecure: bool = False
    ca_file: str = ""
    force: bool = False


class ImagePush(Spec):
    ref: str
    target: str = ""
    auth: str | None = None
    insecure: bool = False
    ca_file: str = ""


class ImageImport(Spec):
    """From descriptor `data` (a docker-archive, an OCI archive, a WebAssembly module, or with format "rootfs" a plain
    tar of a root tree) or host `path` (the same, an OCI layout directory, or a root tree). tag: name to give. title:
    what a module is called, as its argv[0]."""

    format: str = "auto"
    path: str = ""
    tag: str = ""
    title: str = ""
    config: dict[str, Any] = {}


class ImageExport(Spec):
    """To descriptor `data` as a tar. format: "oci-archive" or "docker-archive"."""

    refs: tuple[str, ...]
    format: str = "oci-archive"


class ImageBuild(Spec):
    """An image from a directory or tarball: base image (or none) plus one layer. Tar from descriptor `data` or
    `path`."""

    tag: str
    base: str = ""
    path: str = ""
    target: str = "/"
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    env: tuple[str, ...] = ()
    cwd: str | None = None
    user: str | None = None
    labels: dict[str, str] = {}
    ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    stop_signal: str | None = None
    source_date_epoch: int | None = None


class ImageTag(Spec):
    source: str
    target: str


class ImageDelete(Spec):
    ref: str
    force: bool = False


class Prune(Spec):
    """all: also images that have a name but no container."""

    all: bool = False
    labels: tuple[str, ...] = ()


class Pruned(Record):
    removed: list[str]
    reclaimed_bytes: int = 0


class ImageInfo(Record):
    """digest: manifest digest. id: config digest. size_bytes: unpacked layers' compressed sum. module: digest of the
    WebAssembly module that the image is, "" for one with a root tree."""

    id: str
    digest: str
    names: list[str]
    os: str = ""
    architecture: str = ""
    created: str = ""
    size_bytes: int = 0
    layers: list[str] = []
    config: dict[str, Any] = {}
    labels: dict[str, str] = {}
    module: str = ""


class ImageList(Record):
    images: list[ImageInfo]


class Progress(Record):
    """One step of long work. id: what (a digest), status: "downloading", "unpacking", "done"…; total 0 is unknown."""

    id: str
    status: str
    current: int = 0
    total: int = 0


class NetworkCreate(Spec):
    """A built-in bridge network. Empty subnets: free ones are chosen. internal: no way out. isolated from other
    networks."""

    name: str
    subnet4: str = ""
    subnet6: str = ""
    gateway4: str = ""
    ipv6: bool = True
    internal: bool = False
    mtu: int = 1500
    dns: bool = True
    labels: dict[str, str] = {}


class NetworkInfo(Record):
    name: str
    bridge: str
    subnet4: str
    gateway4: str
    subnet6: str = ""
    gateway6: str = ""
    internal: bool = False
    mtu: int = 1500
    dns: bool = True
    created_at: float = 0.0
    labels: dict[str, str] = {}
    pods: list[str] = []


class NetworkList(Record):
    networks: list[NetworkInfo]


class VolumeCreate(Spec):
    name: str = ""
    labels: dict[str, str] = {}


class VolumeInfo(Record):
    name: str
    path: str
    created_at: float = 0.0
    labels: dict[str, str] = {}
    anonymous: bool = False
    used_by: list[str] = []


class VolumeList(Record):
    volumes: list[VolumeInfo]


class SystemInfo(Record):
    version: str
    pid: int
    root: str
    run: str
    keeper_pid: int
    started_at: float
    kernel: str
    cgroup: str
    sandboxes: list[str]
    pods: int
    containers: int
    images: int
    recovery: list[str] = []


class DiskUsage(Record):
    """type: "images", "containers", "volumes", "compiled modules"."""

    type: str
    total: int
    active: int
    size_bytes: int
    reclaimable_bytes: int


class DiskUsageList(Record):
    items: list[DiskUsage]


class Method(Spec):
    """params, result: struct types. item: type of streamed items, or None. fds: names of descriptors it may take,
    "x-*" for any that begins so."""

    name: str
    params: Any
    result: Any
    item: Any = None
    fds: tuple[str, ...] = ()


STDIO = ("stdin", "stdout", "stderr")

_TABLE: tuple[Method, ...] = (
    Method(name="pod.create", params=PodCreate, result=PodStatus),
    Method(name="pod.start", params=Ref, result=PodStatus),
    Method(name="pod.run", params=PodRun, result=PodStatus, fds=STDIO),
    Method(name="pod.stop", params=Stop, result=PodStatus),
    Method(name="pod.pause", params=Ref, result=PodStatus),
    Method(name="pod.resume", params=Ref, result=PodStatus),
    Method(name="pod.status", params=Ref, result=PodStatus),
    Method(name="pod.list", params=ListFilter, result=PodList),
    Method(name="pod.delete", params=Delete, result=Empty),
    Method(name="pod.wait", params=Wait, result=ExitStatus),
    Method(name="pod.update", params=Update, result=PodStatus),
    Method(name="pod.stats", params=Ref, result=Stats),
    Method(name="pod.logs", params=Ref, result=Empty, item=LogLine),
    Method(name="pod.fork", params=Fork, result=PodStatus),
    Method(name="snapshot.create", params=SnapshotCreate, result=SnapshotInfo),
    Method(name="snapshot.list", params=Empty, result=SnapshotList),
    Method(name="snapshot.inspect", params=Ref, result=SnapshotManifest),
    Method(name="snapshot.restore", params=SnapshotRestore, result=PodStatus),
    Method(name="snapshot.delete", params=Ref, result=Empty),
    Method(name="template.create", params=TemplateCreate, result=TemplateInfo),
    Method(name="template.list", params=Empty, result=TemplateList),
    Method(name="template.delete", params=Ref, result=Empty),
    Method(name="template.prune", params=Prune, result=Pruned),
    Method(name="container.create", params=ContainerCreate, result=ContainerStatus),
    Method(name="container.start", params=ContainerStart, result=ContainerStatus, fds=STDIO),
    Method(name="container.stop", params=Stop, result=ContainerStatus),
    Method(name="container.kill", params=Kill, result=Empty),
    Method(name="container.pause", params=Ref, result=ContainerStatus),
    Method(name="container.resume", params=Ref, result=ContainerStatus),
    Method(name="container.status", params=Ref, result=ContainerStatus),
    Method(name="container.list", params=ListFilter, result=ContainerList),
    Method(name="container.delete", params=Delete, result=Empty),
    Method(name="container.wait", params=Wait, result=ExitStatus),
    Method(name="container.update", params=Update, result=ContainerStatus),
    Method(name="container.processes", params=Ref, result=ProcessList),
    Method(name="container.attach", params=Ref, result=ExitStatus, fds=STDIO),
    Method(name="container.rename", params=Rename, result=ContainerStatus),
    Method(name="container.diff", params=Ref, result=ChangeList),
    Method(name="container.commit", params=Commit, result=ImageInfo, item=Progress),
    Method(name="container.resize", params=Resize, result=Empty),
    Method(name="container.close_stdin", params=Ref, result=Empty),
    Method(name="container.logs", params=Logs, result=Empty, item=LogLine),
    Method(name="container.stats", params=StatsRequest, result=StatsList, item=StatsItem),
    Method(name="container.inspect", params=Ref, result=Any),
    Method(name="exec.start", params=ExecStart, result=ExitStatus, item=ExecStarted, fds=STDIO),
    Method(name="exec.wait", params=ExecRef, result=ExitStatus),
    Method(name="exec.kill", params=ExecKill, result=Empty),
    Method(name="file.read", params=FileRead, result=FileInfo, fds=("data",)),
    Method(name="file.write", params=FileWrite, result=FileInfo, fds=("data",)),
    Method(name="file.stat", params=FileRef, result=FileInfo),
    Method(name="file.list", params=FileRef, result=FileList),
    Method(name="file.mkdir", params=FileMake, result=FileInfo),
    Method(name="file.remove", params=FileRemove, result=Empty),
    Method(name="file.rename", params=FileRename, result=FileInfo),
    Method(name="file.get_archive", params=ArchiveGet, result=FileInfo, fds=("data",)),
    Method(name="file.put_archive", params=ArchivePut, result=Empty, fds=("data",)),
    Method(name="image.pull", params=ImagePull, result=ImageInfo, item=Progress),
    Method(name="image.push", params=ImagePush, result=ImageInfo, item=Progress),
    Method(name="image.import", params=ImageImport, result=ImageList, item=Progress, fds=("data",)),
    Method(name="image.export", params=ImageExport, result=Empty, item=Progress, fds=("data",)),
    Method(name="image.build", params=ImageBuild, result=ImageInfo, item=Progress, fds=("data",)),
    Method(name="image.list", params=ListFilter, result=ImageList),
    Method(name="image.inspect", params=Ref, result=ImageInfo),
    Method(name="image.history", params=Ref, result=History),
    Method(name="image.tag", params=ImageTag, result=ImageInfo),
    Method(name="image.delete", params=ImageDelete, result=Pruned),
    Method(name="image.prune", params=Prune, result=Pruned),
    Method(name="network.create", params=NetworkCreate, result=NetworkInfo),
    Method(name="network.inspect", params=Ref, result=NetworkInfo),
    Method(name="network.list", params=ListFilter, result=NetworkList),
    Method(name="network.delete", params=Ref, result=Empty),
    Method(name="network.connect", params=NetworkConnect, result=PodStatus),
    Method(name="network.disconnect", params=NetworkDisconnect, result=PodStatus),
    Method(name="network.prune", params=Prune, result=Pruned),
    Method(name="volume.create", params=VolumeCreate, result=VolumeInfo),
    Method(name="volume.inspect", params=Ref, result=VolumeInfo),
    Method(name="volume.list", params=ListFilter, result=VolumeList),
    Method(name="volume.delete", params=Delete, result=Empty),
    Method(name="volume.prune", params=Prune, result=Pruned),
    Method(name="oci.ask", params=OciAsk, result=OciAnswer, fds=("root",)),
    Method(name="oci.act", params=OciAsk, result=OciAnswer, fds=("root", "stand_in", "tree-*", "bind-*")),
    Method(name="containerd.start", params=ShimStart, result=ShimStarted),
    Method(name="containerd.delete", params=ShimDelete, result=ShimDeleted),
    Method(name="system.info", params=Empty, result=SystemInfo),
    Method(name="system.df", params=Empty, result=DiskUsageList),
    Method(name="system.capabilities", params=Empty, result=CapabilityTable),
    Method(name="system.choose", params=PodCreate, result=Choice),
    Method(name="system.doctor", params=Doctor, result=ProbeList),
    Method(name="system.events", params=Events, result=EventList, item=Event),
    Method(name="system.prune", params=Prune, result=Pruned),
    Method(name="system.shutdown", params=Empty, result=Empty),
)

METHODS: dict[str, Method] = {method.name: method for method in _TABLE}
