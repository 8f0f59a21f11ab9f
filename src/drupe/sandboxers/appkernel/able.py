"""What the application kernel's sandboxes can do: Linux as that kernel has it."""

from __future__ import annotations

from collections.abc import Mapping

from drupe.sandboxers.features import FEATURES

_ONE_KERNEL = "the containers of a pod share one kernel, which the host sees as one program"
_SAID: dict[str, str] = {
    "wasm-modules": "no: the kernel runs Linux programs and has no engine for WebAssembly",
    "update": f"limited: of one container among several memory, time and the number of tasks; {_ONE_KERNEL}",
    "processes": "limited: pids are the kernel's own",
    "files": "limited: what lies on a tmpfs is in the kernel's memory and cannot be reached from outside",
    "checkpoint": "limited: of a pod's only container, by drupe-oci or containerd; else see snapshot",
    "snapshot": "limited: not with open files of the host that were removed, nor FIFOs that are being opened",
    "rlimits": "limited: all are enforced but for rtprio and rttime (no real-time priorities) and core (no core files)",
    "oom-score": "no: the host's killer of processes sees the kernel's own only",
    "host-hardware": "no: the kernel has no drivers",
    "block-mounts": "no: the kernel has no file systems for disks",
    "mount-propagation": "no: mounts of the host and of the kernel do not know of each other",
    "mount-options": "limited: ro, noexec, nosuid, nodev, noatime, size and mode",
    "devices": "limited: null, zero, full, random and urandom, which are the kernel's own, by any name",
    "huge-pages": "no: guests have pages of the ordinary size",
    "cgroup-files": "limited: on hosts with cgroup v2",
    "container-limits": f"limited: memory, time (a quota) and the number of tasks; {_ONE_KERNEL}",
    "host-network": "no: the kernel opens sockets in the network namespace of its pod",
    "host-pid": "no: the kernel has a process table of its own",
    "host-ipc": "no: IPC is the kernel's own",
    "host-uts": "no: the host name is the kernel's own",
    "user-namespace": "no: ids in the pod are no ids of the host; they are as they are",
    "hooks": "limited: all but createContainer; programs of the host cannot run in the pod",
    "privileged": "no: there are no devices to give, and no way to turn the kernel off",
}
ABLE: Mapping[str, str] = {feature: _SAID.get(feature, "yes") for feature in FEATURES}
