"""What a node's operator decides: the kind of sandbox where nobody asks, and the least isolation for whom."""

from __future__ import annotations

from typing import Any, Literal

from drupe.spec.base import Spec

Level = Literal["none", "namespaces", "module", "kernel", "machine"]  # how strong a boundary is, weakest first


class PolicyRule(Spec):
    """Holds for pods whose namespace matches the pattern `namespace` ("tenant-*") and that have all of `labels`.

    minimum: the least level of isolation. deny: features (of `drupe system capabilities`) that such pods may not use.
    """

    name: str
    namespace: str = "*"
    labels: dict[str, str] = {}
    minimum: Level = "none"
    deny: tuple[str, ...] = ()


class ContainerdConfig(Spec):
    """sandboxer: serve containerd's Sandbox Controller. socket: where; "" is `sandboxer.sock` in the run directory.
    address, events: of that containerd's sockets for gRPC and ttrpc; "" for events is the other one with ".ttrpc"."""

    sandboxer: bool = False
    socket: str = ""
    address: str = "/run/containerd/containerd.sock"
    events: str = ""


class NodeConfig(Spec):
    """sandbox: the kind where nobody asks, or "auto"; "" is the built-in one. kinds: settings by kind. policy: all
    rules that match a pod hold for it. containerd: what is served to it."""

    sandbox: str = ""
    kinds: dict[str, dict[str, Any]] = {}
    policy: tuple[PolicyRule, ...] = ()
    containerd: ContainerdConfig = ContainerdConfig()
