"""What Wasm sandboxes can do."""

from __future__ import annotations

from collections.abc import Mapping

from drupe.sandboxers.features import FEATURES

_NO_PROCESSES = "no: a module has no view of processes"
_NO_RIGHTS = "no: a module has no use for the kernel's privileges, and its process has none"
_NO_SOCKETS = "the engine's Python package lets no guest open a socket"
_OWN_FILTER = "no: the engine's own filter always holds, and is narrower than any for programs"
_SAID = {
    "linux-programs": "no: only WebAssembly runs here",
    "init": "limited: a module starts no processes, so nothing is ever left to reap",
    "tty": "limited: WASI tells a module that it has a terminal, and not the terminal's size",
    "signals": "limited: WASI has no signals, so a module catches none: what would end a program ends it",
    "files": "limited: where the image has files beside its module, or something is mounted",
    "checkpoint": "no: the engines cannot write out a running module",
    "snapshot": "no: the engines cannot write out a running module",
    "cwd": "limited: WASI has no working directory; the variable PWD says it",
    "host-hardware": "no: WASI has no devices",
    "block-mounts": "no: a module's files are the host's",
    "mount-propagation": "no: a module's mounts are its own",
    "mount-options": "no: nosuid and nodev always hold, and WASI has no others",
    "shm-size": "no: WASI has no shared memory",
    "devices": "no: WASI has no devices",
    "cgroup-files": "limited: on hosts with cgroup v2",
    "hostname": "limited: WASI cannot ask for it; the variable HOSTNAME says it",
    "network": f"limited: the pod is on the network; {_NO_SOCKETS}",
    "host-network": f"limited: {_NO_SOCKETS}",
    "egress-policy": f"limited: the policy is the pod's; {_NO_SOCKETS}",
    "names": f"limited: for name lookups of components; {_NO_SOCKETS}",
    "ports": f"no: no guest can listen; {_NO_SOCKETS}",
    "host-pid": _NO_PROCESSES,
    "shared-pid": _NO_PROCESSES,
    "hooks": "no: there is no Linux container that a hook could prepare",
    "add-capabilities": _NO_RIGHTS,
    "privileged": _NO_RIGHTS,
    "new-privileges": _NO_RIGHTS,
    "seccomp": _OWN_FILTER,
    "seccomp-unconfined": _OWN_FILTER,
    "masked-paths": "no: there is no /proc and no /sys that could be masked",
}
ABLE: Mapping[str, str] = {feature: _SAID.get(feature, "yes") for feature in FEATURES}
