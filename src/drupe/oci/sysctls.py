"""Kernel parameters a pod may set: only those that belong to one of its own namespaces (namespaces(7), sysctl(8))."""

from __future__ import annotations

from drupe.errors import InvalidArgument
from drupe.spec import PodSpec

_IPC = frozenset(
    f"kernel.{name}" for name in ("msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced")
)


def check_sysctls(pod: PodSpec) -> dict[str, str]:
    """The pod's sysctls by dotted name, once each is known to be namespaced and the namespace to be the pod's own.

    Raises InvalidArgument naming the sysctl.
    """
    checked: dict[str, str] = {}
    for given, value in pod.sysctls.items():
        name = given.replace("/", ".")
        _check(name, pod)
        if "\n" in value or "\0" in value:
            raise InvalidArgument(f"sysctl {name} has a line break or NUL in its value")
        checked[name] = value
    return checked


def _check(name: str, pod: PodSpec) -> None:
    if ".." in name or not all(c.isalnum() or c in "._-" for c in name):
        raise InvalidArgument(f"bad sysctl name {name!r}", hint="write it as net.ipv4.ip_forward")
    if name in _IPC or name.startswith("fs.mqueue."):
        shared = pod.namespaces.ipc == "host"
    elif name.startswith("net."):
        shared = pod.network.mode == "host"
    elif name == "kernel.domainname":
        shared = pod.namespaces.uts == "host"
    elif name == "kernel.hostname":
        raise InvalidArgument("sysctl kernel.hostname is set by the pod's hostname", hint="use `hostname`")
    else:
        raise InvalidArgument(
            f"sysctl {name} is not namespaced: setting it would change the host",
            hint="a pod may set net.*, fs.mqueue.*, kernel.domainname and the kernel.msg*, sem and shm* parameters",
        )
    if shared:
        raise InvalidArgument(
            f"sysctl {name} belongs to a namespace that the pod shares with the host",
            hint="give the pod its own network, IPC or UTS namespace",
        )
