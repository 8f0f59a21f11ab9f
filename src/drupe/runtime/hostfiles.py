"""The files that name things: /etc/hosts, /etc/hostname and /etc/resolv.conf of a pod (hosts(5), resolv.conf(5))."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from drupe.spec.pod import PodSpec, root_ids
from drupe.spec.status import Endpoint


class Attached(Protocol):
    """What a network told about names (`resources.network`: PodNetwork)."""

    @property
    def endpoints(self) -> list[Endpoint]: ...
    @property
    def dns_servers(self) -> list[str]: ...
    @property
    def dns_searches(self) -> list[str]: ...


FILES = {"hosts": "/etc/hosts", "hostname": "/etc/hostname", "resolv.conf": "/etc/resolv.conf"}

_LOCAL = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"


def write(directory: Path, hostname: str, spec: PodSpec, attached: Attached) -> None:
    """Write the three files into the pod's directory. In place, since containers have them bind-mounted."""
    (directory / "hostname").write_text(hostname + "\n")
    (directory / "hosts").write_text(hosts(hostname, spec, attached))
    (directory / "resolv.conf").write_text(resolv_conf(spec, attached))
    for name in FILES:
        os.chown(directory / name, *root_ids(spec))


def hosts(hostname: str, spec: PodSpec, attached: Attached) -> str:
    if spec.network.mode == "host":
        text = _host_file("/etc/hosts")
    else:
        text = _LOCAL + "".join(_own_lines(hostname, attached.endpoints))
    return text + "".join(f"{address}\t{name}\n" for name, address in spec.hosts.items())


def resolv_conf(spec: PodSpec, attached: Attached) -> str:
    """A network that resolves names itself asks the pod's own servers onward; others use them directly, or (host
    network) the host's file."""
    dns = spec.dns
    if spec.network.mode == "host" and not (dns.servers or dns.searches or dns.options):
        return _host_file("/etc/resolv.conf")
    lines = [f"nameserver {server}" for server in attached.dns_servers or dns.servers]
    searches = dns.searches or tuple(attached.dns_searches)
    if searches:
        lines.append("search " + " ".join(searches))
    if dns.options:
        lines.append("options " + " ".join(dns.options))
    return "".join(line + "\n" for line in lines)


def _own_lines(hostname: str, endpoints: Iterable[Endpoint]) -> Iterable[str]:
    found = False
    for endpoint in endpoints:
        for address in (endpoint.ipv4, endpoint.ipv6):
            if address:
                found = True
                yield f"{address.partition('/')[0]}\t{hostname}\n"
    if not found:  # the own name must resolve without a network too
        yield f"127.0.1.1\t{hostname}\n"


def _host_file(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
