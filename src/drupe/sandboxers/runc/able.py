"""What runc sandboxes can do."""

from __future__ import annotations

from collections.abc import Mapping

from drupe.sandboxers.features import FEATURES

_SAID = {
    "wasm-modules": "no: the host's kernel runs no WebAssembly",
    "host-hardware": "no: it is the host's kernel that has the hardware",
    "block-mounts": "no: the host's kernel would read a file system that nobody vouches for; mount it, and bind it",
    "checkpoint": "limited: by drupe-oci or containerd, where the node uses runc and CRIU works; not by crun",
    "snapshot": "no: a process of the host's kernel cannot be snapshot without CRIU",
    "cgroup-files": "limited: on hosts with cgroup v2",
}
ABLE: Mapping[str, str] = {feature: _SAID.get(feature, "yes") for feature in FEATURES}
