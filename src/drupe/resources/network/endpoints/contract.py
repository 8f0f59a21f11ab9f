"""Endpoints: what is found in a pod's namespace, and how each is joined to the machine that takes it over.

The addresses stay on the found interface: who made the namespace (CNI, Docker) finds it as it was, and a daemon that
comes back finds everything anew. Whatever we add is in the link group MACHINE_LINKS, so that undoing needs no memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from drupe.linux.rtnetlink import Link

Kind = Literal[
    "veth", "physical", "tap", "tuntap", "macvlan", "macvtap", "ipvlan", "vlan", "vhost-user", "other", "layer 3"
]
Model = Literal["tc-filter", "macvtap", "bridged", "none"]
Join = Literal["tc-filter", "macvtap", "bridged", "none", "direct", "vfio", "vhost-user", "left out"]


@dataclass(frozen=True, slots=True)
class GuestRoute:
    """A route for the guest. destination "" is everywhere, gateway "" is on the link. scope: RT_SCOPE_*."""

    destination: str
    gateway: str
    interface: str
    source: str = ""
    scope: int = 0
    metric: int = 0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An interface that a guest takes over. kind "other": an Ethernet interface whose kind `detail` names; "layer 3":
    one that carries no frames. pci: address of the hardware of kind "physical". socket: of kind "vhost-user"."""

    kind: Kind
    link: Link
    addresses: tuple[str, ...] = ()  # CIDR, both families, without link-local ones
    routes: tuple[GuestRoute, ...] = ()
    detail: str = ""
    pci: str = ""
    socket: Path | None = None

    @property
    def name(self) -> str:
        return self.link.name


@dataclass(frozen=True, slots=True)
class Joined:
    """What the VMM opens for an endpoint. how: by which way they are joined; tap: a device of the pod's namespace;
    node: a macvtap's character device, opened once for each queue; pci: for vfio; socket: for vhost-user. note: why it
    is another way than was asked for. The guest's interface has the MAC, MTU and addresses of `endpoint`."""

    endpoint: Endpoint
    how: Join
    tap: str = ""
    node: Path | None = None
    pci: str = ""
    socket: Path | None = None
    queues: int = 1
    note: str = ""


@dataclass(frozen=True, slots=True)
class Wanted:
    """How endpoints are to be joined. owner: uid of the VMM, which needs no capability then. dir: private directory for
    device nodes. vhost_user: directory with a socket `<address>/vhu.sock` for each interface whose frames a process of
    the host takes."""

    model: Model = "tc-filter"
    queues: int = 1
    owner: int = 0
    dir: Path = field(default_factory=Path)
    vhost_user: Path | None = None
    vfio: bool = True
