"""What microVMs can do: Linux as the guest's kernel has it, and of the host what is shared with it."""

from __future__ import annotations

from collections.abc import Mapping

from drupe.sandboxers.features import FEATURES

_SAID: dict[str, str] = {
    "wasm-modules": "no: the guest runs Linux programs and has no engine for WebAssembly",
    "processes": "limited: pids are the guest's own",
    "files": "limited: what lies on a tmpfs is in the guest's memory and cannot be reached from outside",
    "checkpoint": "no: the machine is saved as a whole: `drupe snapshot create`, of a pod whose roots are by block",
    "snapshot": "limited: of pods whose roots are by block (annotation drupe.vm.rootfs=block)",
    "oom-score": "limited: it ranks processes of the guest among themselves",
    "mount-propagation": "no: mounts of the host and of the guest do not know of each other",
    "devices": "limited: block devices of the host, which are disks of the machine",
    "host-hardware": "limited: of containers that are there when the machine starts; whole IOMMU groups",
    "cgroup-files": "limited: those of the guest's kernel, which has cgroup v2",
    "huge-pages": "no: the guest's memory is not in huge pages",
    "cpu-sets": "limited: numbers are those of the guest's processors",
    "host-network": "no: the guest has a network stack of its own",
    "host-pid": "no: the guest has a process table of its own",
    "host-ipc": "no: System V and POSIX IPC are the guest's own",
    "host-uts": "no: the host name is the guest's own",
    "user-namespace": "no: the guest's root has no rights on the host; ids are as they are",
    "hooks": "no: programs of the host cannot run inside of the guest",
    "privileged": "limited: all rights within the guest, and no device of the host",
}
ABLE: Mapping[str, str] = {feature: _SAID.get(feature, "yes") for feature in FEATURES}
