"""From containerd's request to a pod of ours: what the bundle asks for, in the words of our own specs."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from drupe.errors import InvalidArgument, Unsupported
from drupe.oci.carried import hides_elsewhere
from drupe.oci.honoured import MAPPED_MOUNTS, refuse_unhonoured
from drupe.oci.limits import resources_of
from drupe.oci.runtime_spec import Linux, RuntimeConfig
from drupe.oci.validate import parse_config
from drupe.rpc.containerd.mount_pb2 import Mount
from drupe.rpc.containerd.task_v2_pb2 import CreateTaskRequest
from drupe.runtime.bundled import binds_of_config, read_config
from drupe.runtime.names import new_id
from drupe.sandboxers.contract import Sandboxer
from drupe.services.oci.asked import features_of
from drupe.services.oci.pods import cgroup_path, ids_of, namespaces_of, network_of
from drupe.spec.container import IDLE, Bundle, ContainerSpec, LogSpec, RootMount
from drupe.spec.pod import PodSpec, UserNamespace

SANDBOX_ID = "io.kubernetes.cri.sandbox-id"
CONTAINER_TYPE = "io.kubernetes.cri.container-type"


@dataclass(frozen=True)
class Asked:
    """A Create request, read. config: config.json, checked."""

    request: CreateTaskRequest
    config: RuntimeConfig

    @property
    def sandbox(self) -> str:
        """containerd's id of the pod that it joins; "": it makes its own."""
        annotations = self.config.annotations or {}
        joins = annotations.get(CONTAINER_TYPE) == "container"
        return annotations.get(SANDBOX_ID, "") if joins else ""

    @property
    def makes_pod(self) -> bool:
        """Whether further containers will join the pod that it makes."""
        return (self.config.annotations or {}).get(CONTAINER_TYPE) == "sandbox"

    def container(self, cgroup: str, pod: PodSpec | None = None, *, idle: bool = False) -> ContainerSpec:
        """cgroup: of the container; "" is below its pod's. pod: that it joins, and what was asked of that. idle: its
        own program is not run."""
        request, config, linux = self.request, self.config, self.config.linux or Linux()
        root = tuple(
            RootMount(type=one.type, source=one.source, target=one.target, options=tuple(one.options))
            for one in request.rootfs
        )
        bundle = Bundle(
            path=request.bundle,
            root=root,
            cgroup=cgroup,
            features=tuple(sorted(_features(config, request) - _of_pod(pod))),
            checkpoint=request.checkpoint,
        )
        mounts = [msgspec.to_builtins(mount) for mount in config.mounts or ()]
        return ContainerSpec(
            id=new_id(),
            name=request.id,
            bundle=bundle,
            annotations={IDLE: "true"} if idle else {},
            tty=request.terminal,
            stdin=bool(request.stdin),
            mounts=binds_of_config(mounts),
            resources=resources_of(linux.resources),
            log=LogSpec(driver="none"),
        )


def read_request(request: CreateTaskRequest) -> Asked:
    """Raises InvalidArgument, NotFound, Unsupported naming what is wrong."""
    if not request.bundle.startswith("/"):
        raise InvalidArgument(f"bundle {request.bundle!r} is not an absolute path")
    for mount in request.rootfs:
        _check_root(mount)
    return Asked(request, parse_config(read_config(request.bundle), where=f"{request.bundle}/config.json"))


def _check_root(mount: Mount) -> None:
    texts = (mount.type, mount.source, mount.target, *mount.options)
    if not mount.type or ".." in mount.target.split("/") or any("\0" in text for text in texts):
        raise InvalidArgument(f"the root cannot be mounted from {mount.source!r} of type {mount.type!r}")


def pod_of(asked: Asked, *, owner: str, namespace: str, kind: str) -> PodSpec:
    """The pod of a task that joins none."""
    config, linux = asked.config, asked.config.linux or Linux()
    cgroup = cgroup_path(linux.cgroups_path or "") or None
    shared = asked.makes_pod
    return PodSpec(
        id=new_id(),
        name=asked.request.id,
        owner=owner,
        namespace=namespace,
        sandbox=kind,
        hostname=config.hostname or None,
        annotations=config.annotations or {},
        cgroup=cgroup,
        network=network_of(linux),
        namespaces=namespaces_of(linux),
        sysctls=linux.sysctl or {},
        containers=() if shared else (asked.container(""),),
    )


def check_target(pod: PodSpec, sandboxer: Sandboxer, config: RuntimeConfig) -> None:
    """Refuse the process table of one other container (`kubectl debug --target`) where only the sandbox's own kernel
    has it: what it is called by, a pid of the host, means nothing there."""
    spaces = (config.linux or Linux()).namespaces or ()
    joins = pod.namespaces.pid != "pod" and any(space.type == "pid" and space.path for space in spaces)
    if joins and not sandboxer.tasks().joins_by_pid:
        raise Unsupported(
            f"{sandboxer.kind} sandboxes cannot share one container's process table with another",
            kind=sandboxer.kind,
            feature="pid TARGET",
            hint="share one among all containers of the pod (shareProcessNamespace)",
        )


async def check_program(sandboxer: Sandboxer, config: RuntimeConfig) -> None:
    """Refuse by name what the kind's OCI program would overlook, where it has one."""
    try:
        program = sandboxer.bundle_program()
    except Unsupported:
        return
    refuse_unhonoured(config, program.name, await program.version(), ours=MAPPED_MOUNTS)


def check_ids(pod: PodSpec, config: RuntimeConfig) -> None:
    """Refuse what is to be shown with other ids than those of the pod's user namespace."""
    user = pod.namespaces.user or UserNamespace()
    for number, mount in enumerate(config.mounts or ()):
        for name, asked, own in (("uid", mount.uid_mappings, user.uids), ("gid", mount.gid_mappings, user.gids)):
            if asked and ids_of(asked) != own:
                where = f"config.json: mounts[{number}].{name}Mappings"
                raise Unsupported(f"{where} differ from those of the pod", feature=f"{name}Mappings of a mount")


def _features(config: RuntimeConfig, request: CreateTaskRequest) -> set[str]:
    """What the capability table has a word for, beside what the spec's own fields say."""
    features = features_of(config)
    if request.checkpoint:
        features.add("checkpoint")
    linux = config.linux or Linux()
    if hides_elsewhere(linux.masked_paths) or hides_elsewhere(linux.readonly_paths):
        features.add("masked-paths")
    if config.hooks and any(getattr(config.hooks, phase) for phase in config.hooks.__struct_fields__):
        features.add("hooks")
    for space in linux.namespaces or ():
        if space.path and space.type in ("pid", "ipc", "uts") and not _is_of_pod(config):
            features.add(f"host-{space.type}")  # another's: outside of the pod, as the host's would be
    return features


def _of_pod(pod: PodSpec | None) -> set[str]:
    """What a container has because its pod has it."""
    return {"host-network", "host-uts"} if pod is not None and pod.network.mode == "host" else set()


def _is_of_pod(config: RuntimeConfig) -> bool:
    return (config.annotations or {}).get(CONTAINER_TYPE) == "container"
