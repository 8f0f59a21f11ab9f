"""What gVisor sandboxes can do: Linux as the sentry has it, without what would take the host's kernel."""

from __future__ import annotations

from collections.abc import Mapping

from drupe.sandboxers.features import FEATURES

_ONE_KERNEL = "the containers of a pod share one kernel, which the host sees as one program"
_SAID: dict[str, str] = {
    "wasm-modules": "no: the sentry is a Linux kernel and runs no WebAssembly",
    "multi-container": "limited: all are named when the pod is made, or it is made empty; a pod of one stays one",
    "tty": "limited: a terminal has no name in the container, ttyname(3) finds none",
    "pause": f"limited: several containers of a pod only together; {_ONE_KERNEL}",
    "update": f"limited: of a pod, or of its only container; {_ONE_KERNEL}",
    "stats": "limited: memory and I/O are those of the whole sandbox",
    "processes": "limited: pids are the sandbox's own, and memory of single processes is not known",
    "files": "limited: what lies on a tmpfs is in the sandbox's memory and cannot be reached from outside",
    "checkpoint": "limited: of a pod's only container, by drupe-oci or containerd; else see snapshot",
    "snapshot": "limited: of pods whose containers all run, from images, without secrets",
    "rlimits": "limited: those that the sentry enforces (nofile, nproc, fsize, as, data, stack, cpu)",
    "host-hardware": "no: the sentry has no drivers",
    "block-mounts": "no: the sentry has no file systems for disks",
    "mount-propagation": "no: mounts of the host and of the sandbox do not know of each other",
    "mount-options": "limited: ro, noexec, noatime, size and mode; nosuid and nodev hold always",
    "devices": "no: the sentry has no drivers, and shows no device of the host",
    "pids-limit": "no: the host cannot count the sandbox's processes; ulimit nproc does for each user",
    "huge-pages": "no: memory of the sandbox is the sentry's, huge pages of the host are not handed on",
    "cgroup-files": "limited: on hosts with cgroup v2",
    "container-limits": f"no: {_ONE_KERNEL}; limit the pod",
    "network-change": "no: the sentry takes the interfaces over when it starts",
    "host-network": "limited: sockets are the host's, addresses and routes can only be read",
    "host-pid": "no: the sandbox has a process table of its own",
    "host-ipc": "no: System V and POSIX IPC are the sentry's own",
    "host-uts": "no: the host name is the sentry's own",
    "user-namespace": "no: every sandbox runs in a user namespace of its own already, with ids as they are",
    "sysctls": "no: the sentry has its own, which cannot be set",
    "hooks": "no: those inside the container cannot run, and runsc leaves them out without a word",
    "new-privileges": "no: the sentry runs no program with more rights than its caller's, setuid or not",
    "masked-paths": "no: the sentry's /proc and /sys show nothing of the host that would need it",
    "privileged": "no: there are no devices to give, and no way to turn the sentry off",
}
ABLE: Mapping[str, str] = {feature: _SAID.get(feature, "yes") for feature in FEATURES}
