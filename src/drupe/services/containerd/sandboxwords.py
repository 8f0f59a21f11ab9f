"""What containerd reads of a sandbox, whichever of its two services it asks: the words that both have."""

from __future__ import annotations

import json
import platform
import time
from typing import Any

from google.protobuf import json_format
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError

from drupe.errors import InvalidArgument
from drupe.rpc.containerd.metrics_pb2 import Metric
from drupe.rpc.containerd.platform_pb2 import Platform
from drupe.rpc.cri import api_pb2 as cri
from drupe.runtime.pod import Pod
from drupe.services.containerd import shares
from drupe.services.containerd.events import stamp
from drupe.services.containerd.metrics import metrics
from drupe.services.containerd.sandboxes import Sandboxes
from drupe.spec.base import plain
from drupe.state.machine import State

_CONFIG = ("type.googleapis.com/runtime.v1.PodSandboxConfig", "runtime.v1.PodSandboxConfig")
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


def config_of(options: AnyMessage) -> cri.PodSandboxConfig:
    """The pod that the CRI asks for; an empty one when somebody else asks. Raises InvalidArgument."""
    if not options.type_url:
        return cri.PodSandboxConfig()
    if options.type_url not in _CONFIG:
        raise InvalidArgument(f"options of type {options.type_url!r} are not those of a pod")
    try:
        return cri.PodSandboxConfig.FromString(options.value)
    except DecodeError:
        raise InvalidArgument("the pod's configuration cannot be read") from None


def platform_of_all() -> Platform:
    """What containerd writes config.json for: Linux, also where a module is run."""
    machine = platform.machine()
    return Platform(os="linux", architecture=_MACHINES.get(machine, machine))


def status_of(sandboxes: Sandboxes, pod: Pod, *, verbose: bool) -> dict[str, Any]:
    """Fields of the answer to Status. Asked several times for each of the CRI's calls: nothing is done but looking."""
    live = pod.state in (State.RUNNING, State.PAUSED)
    return {
        "sandbox_id": pod.id,
        "pid": pod.info.pid if live else 0,
        "state": "SANDBOX_READY" if live else "SANDBOX_NOTREADY",
        "info": _info(sandboxes, pod) if verbose else {},
        "created_at": stamp(pod.status.created_at),
        "exited_at": None if live else stamp(pod.status.finished_at),
    }


def _info(sandboxes: Sandboxes, pod: Pod) -> dict[str, str]:
    """What `crictl inspectp` shows: JSON as containerd's own, and the pod as drupe has it."""
    config, handler = sandboxes.asked(pod.id)
    info = {
        "pid": pod.info.pid,
        "processStatus": str(pod.state),
        "runtimeHandler": handler,
        "runtimeType": f"drupe-{pod.kind}",
        "config": json_format.MessageToDict(config, preserving_proto_field_name=True),
        "drupe": {**plain(pod.record()), "cgroup": pod.cgroup, "namespaces": pod.info.namespaces, **_limits_of(pod)},
    }
    return {"info": json.dumps(info)}


def _limits_of(pod: Pod) -> dict[str, Any]:
    """What the pod as a whole is held to, and whether that is the sum of what its containers have."""
    return {"resources": plain(pod.spec.resources), "limits": "pod" if shares.are_shared(pod) else "container"}


def end_of(pod: Pod) -> dict[str, Any]:
    """Fields of the answer to Wait."""
    code = 255 if pod.state is State.FAILED else 0
    return {"exit_status": code, "exited_at": stamp(pod.status.finished_at or time.time())}


async def metric_of(sandboxes: Sandboxes, id_: str) -> Metric:
    """Counters of a sandbox as a whole. NotFound."""
    stats = await sandboxes.stats(id_)
    return Metric(timestamp=stamp(stats.at), id=id_, data=metrics(stats, version=sandboxes.cgroup_version))
