"""Which settings of a kernel a pod may be given (sysctl(8)), and whose they are."""

from __future__ import annotations

from collections.abc import Mapping

from drupe.errors import Unsupported

# The kernel's process opens sockets for its pod, without a right to any: whether a program may is the kernel's say.
_FOR_ANY_USER = {"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"}
_IPC = ("shmmax", "shmall", "shmmni", "msgmax", "msgmnb", "msgmni", "sem", "shm_rmid_forced")
_OWN = {f"kernel.{name}" for name in (*_IPC, "domainname")} | {
    f"fs.mqueue.{name}" for name in ("queues_max", "msg_max", "msgsize_max", "msg_default", "msgsize_default")
}


def checked(sysctls: Mapping[str, str]) -> dict[str, str]:
    """By dotted name. Raises Unsupported for one that neither the kernel nor the pod's network namespace has."""
    dotted = {name.replace("/", "."): value for name, value in sysctls.items()}
    for name, value in dotted.items():
        forced = name == "kernel.shm_rmid_forced" and value.strip() != "0"
        if forced or not (name in _OWN or name.startswith("net.")):
            raise Unsupported(
                f"the application kernel has no sysctl {name}={value}",
                kind="appkernel", feature="sysctls",
                hint="it has net.*, fs.mqueue.*, kernel.domainname, kernel.sem, kernel.msg* and kernel.shm*",
            )  # fmt: skip
    return dotted


def of_the_network(sysctls: Mapping[str, str]) -> dict[str, str]:
    """What is set in the pod's network namespace on the host."""
    return {name: value for name, value in sysctls.items() if name.startswith("net.")} | _FOR_ANY_USER
