"""How a pod meets the network: mode, attachments, published ports, names, and what it may reach."""

from __future__ import annotations

from typing import Literal

from drupe.spec.base import Spec

Protocol = Literal["tcp", "udp", "sctp"]
Mode = Literal["none", "host", "bridge", "cni", "path", "cnm"]


class PortMapping(Spec):
    """Publish a pod port on the host. host_port 0 picks a free one. host_ip "" is all addresses, both families."""

    container_port: int
    host_port: int = 0
    protocol: Protocol = "tcp"
    host_ip: str = ""


class Attachment(Spec):
    """Membership in one built-in network: wanted addresses, MAC, interface name, names others may look up."""

    network: str = "default"
    ipv4: str | None = None
    ipv6: str | None = None
    mac: str | None = None
    interface: str | None = None
    aliases: tuple[str, ...] = ()


class EgressRule(Spec):
    """One rule. cidr ("10.0.0.0/8", "::/0") or dns ("example.org", "*.example.org"); ports "443" or "8000-8100";
    none is any."""

    action: Literal["allow", "deny"] = "allow"
    cidr: str | None = None
    dns: str | None = None
    ports: tuple[str, ...] = ()
    protocol: Protocol | None = None


class EgressPolicy(Spec):
    """What a pod may reach. Rules are tried in order; `default` decides the rest. Replies to published ports pass."""

    default: Literal["allow", "deny"] = "allow"
    rules: tuple[EgressRule, ...] = ()


class NetworkSpec(Spec):
    """The network of a pod.

    none: loopback only. host: the host's own namespace. bridge: built-in bridge networks, `attachments` in order.
    cni: a chain of CNI plug-ins, from the conflist in `cni_config` (path or name in `cni_config_dir`).
    path: join the existing network namespace `netns_path`, which stays the caller's. cnm: drupe makes the namespace and
    runs the pod's prestart hooks inside it, which fill it (Docker's libnetwork way); what they made is then found
    by a scan.
    """

    mode: Mode = "bridge"
    attachments: tuple[Attachment, ...] = (Attachment(),)
    cni_config: str = ""
    cni_config_dir: str = "/etc/cni/net.d"
    cni_bin_dirs: tuple[str, ...] = ("/opt/cni/bin", "/usr/lib/cni")
    netns_path: str = ""
    policy: EgressPolicy | None = None


class DnsSpec(Spec):
    """resolv.conf of the pod; empty fields take the network's own."""

    servers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
