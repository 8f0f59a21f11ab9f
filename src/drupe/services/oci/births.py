"""How a bundle becomes a pod with an owner, once a stand-in waits for it."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import posixpath
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from drupe.errors import DrupeError, InvalidArgument, NotFound, PermissionDenied
from drupe.images.files import remove_tree
from drupe.linux.openat2 import O_PATH
from drupe.linux.pidfd import open_same
from drupe.oci.limits import resources_of
from drupe.oci.mount_options import needs_copy, refused_copy
from drupe.oci.programs import check_process, is_empty
from drupe.oci.runtime_spec import SPEC_VERSION, Linux, LinuxResources, Namespace, RuntimeConfig
from drupe.oci.validate import parse_config
from drupe.runtime.bundled import ROOT_TREE, binds_of_config, is_bind
from drupe.runtime.names import new_id
from drupe.runtime.pod import Pod
from drupe.sandboxers.bundles import BundleProgram
from drupe.services.oci.adapting import pids_limit, workload_config
from drupe.services.oci.asked import NAMESPACE, Asked, features_of
from drupe.services.oci.kept import OWNER, Kept
from drupe.services.oci.pods import cgroup_path, namespaces_of, network_of
from drupe.services.oci.standing import BundleRecord, StandIn
from drupe.spec.container import Bundle, ContainerSpec, LogSpec, SecuritySpec
from drupe.spec.network import NetworkSpec
from drupe.spec.pod import PodSpec
from drupe.spec.resources import Resources

_SHM = "/dev/shm"  # noqa: S108 the container's
_SHM_BYTES = 64 << 20
_IN_ITS_NAMESPACES = ("wasm",)  # a module's process is one of the host's, beside the stand-in
_INSIDE = (
    "memory_bytes", "memory_reservation_bytes", "memory_swap_bytes", "oom_kill_disable", "pids", "unified",
)  # fmt: skip
_DIRECTORY = "oci"  # of a pod's own directory: where its workload's config.json is
_WORDS = {"127": "executable file not found in $PATH", "126": "permission denied"}


# -- what is asked for ------------------------------------------------------------------------------------------------


def absolute(bundle: str, path: str) -> str:
    """A path of a config.json, which may be relative to its bundle."""
    return posixpath.normpath(posixpath.join(bundle, path))


def trees_of(bundle: str, config: Mapping[str, Any]) -> dict[str, str]:
    """What the caller opens: the root, and the source of each bind mount, by the names of their places."""
    sources = [absolute(bundle, str(mount.get("source", ""))) for mount in config.get("mounts") or () if is_bind(mount)]
    return {ROOT_TREE: config["root"]["path"], **{f"bind-{number}": source for number, source in enumerate(sources)}}


def counts_itself(able: Mapping[str, str]) -> bool:
    """Whether only the sandbox's own kernel can count its processes."""
    return _cannot(able, "pids-limit")


def _cannot(able: Mapping[str, str], feature: str) -> bool:
    return able[feature].startswith("no")


def limits_of(config: RuntimeConfig, able: Mapping[str, str]) -> LinuxResources | None:
    """Those that the daemon sees to. No limit of processes is one, as Docker sends it."""
    resources = (config.linux or Linux()).resources
    if resources is None or resources.pids is None:
        return resources
    if counts_itself(able) or (resources.pids.limit or 0) <= 0:
        return msgspec.structs.replace(resources, pids=None)
    return resources


def divided(limits: Resources, able: Mapping[str, str]) -> tuple[Resources, Resources]:
    """Those of the pod's cgroup, and those that the sandbox's own kernel holds its workload to, where it can: memory
    that the sandbox needs for itself is not the workload's, and its processes no process of the host."""
    if able["container-limits"] != "yes":
        return limits, Resources()
    inside = Resources(**{name: getattr(limits, name) for name in _INSIDE})
    return msgspec.structs.replace(limits, pids=None, unified={}, oom_kill_disable=None), inside


def cgroup_of(asked: Asked, config: RuntimeConfig) -> str:
    """Of the pod, and of all that is made for it. Raises InvalidArgument where systemd is to make it, and it has not
    the form for that; without systemd a path is a path."""
    given = (config.linux and config.linux.cgroups_path) or ""
    if not asked.words.on("systemd-cgroup"):
        return f"/{given.strip('/') or asked.id}"  # as crun has it
    if given and given.count(":") != 2:
        raise InvalidArgument(
            f"config.json: {given!r} is not SLICE:PREFIX:NAME, as for --systemd-cgroup - at `$.linux.cgroupsPath`"
        )
    return cgroup_path(given or f":crun:{asked.id}")


def cgroup_of_stand_in(asked: Asked, config: RuntimeConfig) -> str:
    """In the words of crun. A cgroup of version 2 that has others below it holds no processes (cgroups(7))."""
    path = cgroup_of(asked, config)
    if asked.words.on("systemd-cgroup"):
        return (config.linux and config.linux.cgroups_path) or ""
    return f"{path}/stand-in" if asked.node.cgroups.version == 2 else path


# -- the pod ----------------------------------------------------------------------------------------------------------


async def bear(asked: Asked, stand_in: StandIn, trees: Mapping[str, int]) -> Kept:
    """Make the pod that the bundle asks for; nothing runs yet. On failure nothing of it is left, and the stand-in is
    the caller's to remove."""
    core, pod_id = asked.bundles.core, new_id()
    directory = asked.node.paths.pod(pod_id)
    try:
        birth = _read(asked, pod_id, stand_in, trees)
        (directory / _DIRECTORY).mkdir(mode=0o700, parents=True)
        (directory / _DIRECTORY / "config.json").write_text(json.dumps(workload_config(birth.plain, birth.able)))
        if not asked.node.sandboxer(birth.record.kind).runs_modules:
            _check_program(stand_in, birth.plain["process"])
        _refuse_copies(stand_in, birth.config, birth.record.kind)
        with asked.bundles.making(asked.root, asked.id):
            pod = await core.create_pod(birth.pod(), trees=trees)
    except BaseException:
        stand_in.close()
        if pod_id not in core.pods:
            remove_tree(directory)
        raise
    kept = Kept(core, birth.record, pod, stand_in)
    asked.bundles.add(kept)
    return kept


def _read(asked: Asked, pod_id: str, stand_in: StandIn, trees: Mapping[str, int]) -> _Birth:
    bundle = asked.files.absolute(asked.words.text("bundle", "."))
    data = asked.files.read(f"{bundle}/config.json", "bundle's")
    config, plain = parse_config(data, where=f"{bundle}/config.json"), json.loads(data)
    kind = asked.kind_of(config)
    able = asked.node.sandboxer(kind).capabilities()
    record = BundleRecord(
        root=asked.root,
        id=asked.id,
        kind=kind,
        bundle=bundle,
        rootfs=absolute(bundle, plain["root"]["path"]),
        pod=pod_id,
        created=datetime.datetime.now(datetime.UTC).isoformat().replace("+00:00", "Z"),
        annotations=plain.get("annotations") or {},
        terminal=bool(plain["process"].get("terminal")),
        stand_in=stand_in.record(),
        pids_limit=pids_limit(plain) if counts_itself(able) else 0,
    )
    return _Birth(asked, config, plain, able, record, trees)


@dataclass(frozen=True)
class _Birth:
    """config, plain: config.json, typed and as it is. able: what the kind can do. trees: what came along."""

    asked: Asked
    config: RuntimeConfig
    plain: Mapping[str, Any]
    able: Mapping[str, str]
    record: BundleRecord
    trees: Mapping[str, int]

    @property
    def linux(self) -> Linux:
        return self.config.linux or Linux()

    def pod(self) -> PodSpec:
        record = self.record
        limits, inside = divided(resources_of(limits_of(self.config, self.able)), self.able)
        return PodSpec(
            id=record.pod,
            name=record.pod,
            owner=OWNER,
            namespace=NAMESPACE,
            sandbox=record.kind,
            hostname=self.config.hostname or None,
            labels={**record.annotations, "drupe.oci.id": record.id, "drupe.oci.root": record.root},
            annotations=record.annotations,
            cgroup=cgroup_of(self.asked, self.config),
            network=self._network(),
            namespaces=namespaces_of(self.linux),
            sysctls=self._sysctls(),
            resources=limits,
            containers=(self._container(inside),),
        )

    def _sysctls(self) -> dict[str, str]:
        """For a kernel of the pod's own; in the stand-in's namespaces crun has set them."""
        if _cannot(self.able, "sysctls") or self.record.kind in _IN_ITS_NAMESPACES:
            return {}
        return self.linux.sysctl or {}

    def _network(self) -> NetworkSpec:
        """A new one is the stand-in's, which its maker's hooks may fill."""
        network = network_of(self.linux)
        if network.mode != "none":
            return network
        return NetworkSpec(mode="path", netns_path=f"/proc/{self.record.stand_in.pid}/ns/net", attachments=())

    def _container(self, limits: Resources) -> ContainerSpec:
        directory = self.asked.node.paths.pod(self.record.pod) / _DIRECTORY
        filters = bool(self.linux.seccomp) and not _cannot(self.able, "seccomp")
        return ContainerSpec(
            id=new_id(),
            name="bundle",
            bundle=Bundle(path=str(directory), given=True, features=tuple(sorted(features_of(self.config)))),
            tty=self.record.terminal,
            stdin=True,
            resources=limits,
            mounts=binds_of_config(self.plain.get("mounts")),
            security=SecuritySpec(seccomp="bundle") if filters else SecuritySpec(),
            shm_size_bytes=_SHM_BYTES if _cannot(self.able, "shm-size") else _shm_bytes(self.plain, self.trees),
            log=LogSpec(driver="none"),
        )


def _shm_bytes(plain: Mapping[str, Any], trees: Mapping[str, int]) -> int:
    """How large /dev/shm is to be: engines make it, and mount it, or have it made."""
    binds = [mount for mount in plain.get("mounts") or () if is_bind(mount)]
    for mount in plain.get("mounts") or ():
        if mount["destination"] == _SHM and is_bind(mount):
            found = os.fstatvfs(trees[f"bind-{binds.index(mount)}"])
            return found.f_blocks * found.f_frsize
        if mount["destination"] == _SHM:
            sizes = [word[5:] for word in mount.get("options") or () if word.startswith("size=")]
            return _bytes(sizes[-1]) if sizes else _SHM_BYTES
    return _SHM_BYTES


def _bytes(text: str) -> int:
    units = {"k": 10, "m": 20, "g": 30}
    number, shift = (text[:-1], units[text[-1].lower()]) if text[-1:].lower() in units else (text, 0)
    return int(number) << shift if number.isascii() and number.isdigit() else _SHM_BYTES


# -- what is there ----------------------------------------------------------------------------------------------------


def check_program(kept: Kept, process: dict[str, Any]) -> None:
    """Raise NotFound, PermissionDenied for a program that its files do not have. What cannot be told is left to the
    sandbox."""
    if not kept.container.runs_modules and kept.stand_in is not None:
        _check_program(kept.stand_in, process)


def _check_program(stand_in: StandIn, process: dict[str, Any]) -> None:
    """Callers read what is missing in the text, as runc words it."""
    try:
        root = os.open(f"/proc/{stand_in.pid}/root", O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        check_process(root, process)
    except (NotFound, PermissionDenied) as error:
        words = _WORDS.get(error.details.get("exit_code") or "", "")
        raise (DrupeError(f"{error}: {words}") if words else error) from None
    finally:
        os.close(root)


def _refuse_copies(stand_in: StandIn, config: RuntimeConfig, kind: str) -> None:
    """Raise Unsupported where memory is to begin with files that the kind does not copy there: the stand-in has them,
    since crun has made its mounts."""
    wanted = [mount.destination for mount in config.mounts or () if needs_copy(mount, kind)]
    with contextlib.suppress(OSError):
        root = os.open(f"/proc/{stand_in.pid}/root", O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            found = next((path for path in wanted if not is_empty(root, path)), "")
        finally:
            os.close(root)
        if found:
            raise refused_copy(found, kind)


def remove_half_made(asked: Asked, program: BundleProgram) -> None:
    """What its program cannot delete, since it has not written all that it knows, or was deleting it already."""
    home = f"{asked.root}/{program.home}/{asked.id}"
    with contextlib.suppress(DrupeError, ValueError, LookupError, TypeError, OSError):
        status = json.loads(asked.files.read(f"{home}/status", "status"))
        with contextlib.suppress(ProcessLookupError):
            pidfd = open_same(int(status["pid"]), int(status["process-start-time"]))
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)
        asked.node.cgroups.delete(str(status["cgroup-path"]), timeout_s=0.2)
    asked.files.remove(home)


def config_of(pod: Pod) -> dict[str, Any]:
    """The config.json that its workload was made of."""
    container = next(iter(pod.containers.values()))
    bundle = container.spec.bundle
    with contextlib.suppress(OSError, ValueError):
        if bundle is not None:
            found: dict[str, Any] = json.loads((Path(bundle.path) / "config.json").read_text())
            return found
    raise InvalidArgument(f"the configuration of {container.what} is lost")


def with_namespaces(config: RuntimeConfig) -> RuntimeConfig:
    """A process in a container that has them all."""
    spaces = [Namespace(type=name) for name in ("pid", "ipc", "uts", "network", "mount")]
    return msgspec.structs.replace(config, oci_version=SPEC_VERSION, linux=Linux(namespaces=spaces))
