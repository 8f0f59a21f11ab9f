"""What is looked at before a container is made, and what hooks are told of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drupe.errors import Unsupported
from drupe.sandboxers.appkernel.bounds import check_of_one
from drupe.sandboxers.appkernel.pods import KernelPod
from drupe.sandboxers.appkernel.records import TaskRecord
from drupe.sandboxers.contract import TaskConfig


def check_room(pod: KernelPod, task: TaskConfig) -> None:
    """Raise Unsupported where a pod takes no further container, or not with these limits."""
    if pod.record.only not in ("", task.id):
        raise Unsupported(
            "a pod that was made for one container takes no further one",
            kind="appkernel", feature="multi-container", cause="its kernel ends with that container",
            hint="name all containers when the pod is made, or make it empty",
        )  # fmt: skip
    if not pod.record.sole:
        check_of_one(task.resources)


def state_of(record: TaskRecord, oci: Mapping[str, Any], status: str, pid: int) -> dict[str, Any]:
    """What hooks are told (runtime-spec, State). pid: of the pod's kernel; 0: there is none."""
    state: dict[str, Any] = {"ociVersion": oci["ociVersion"], "id": record.id, "status": status}
    state |= {"pid": pid} if pid else {}
    return state | {"bundle": record.bundle, "annotations": oci.get("annotations") or {}}
