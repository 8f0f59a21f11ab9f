"""Published ports: checked, picked, and held by bound sockets, so that no other program of the host can take them."""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import IPv6Address, ip_address
from pathlib import Path

from drupe.errors import AlreadyExists, InvalidArgument, NotFound, PermissionDenied, ResourceExhausted
from drupe.spec.network import PortMapping
from drupe.spec.status import PublishedPort

_TRIES = 64
_TYPES = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


class Ports:
    """The published ports of all pods. A port is held as long as its pod is attached."""

    def __init__(self) -> None:
        self._held: dict[str, list[socket.socket]] = {}
        self._owners: dict[tuple[str, int], list[tuple[str, str, str]]] = {}  # → (host_ip, pod id, pod name)

    def reserve(self, pod_id: str, pod_name: str, mappings: Sequence[PortMapping]) -> list[PublishedPort]:
        """Takes all ports or none. Raises AlreadyExists naming port and owner, InvalidArgument, ResourceExhausted."""
        try:
            return [self._reserve(pod_id, pod_name, check(mapping)) for mapping in mappings]
        except BaseException:
            self.release(pod_id)
            raise

    def hold(self, pod_id: str, pod_name: str, ports: Sequence[PublishedPort]) -> None:
        """Takes again, after a restart, what a live pod has. Raises AlreadyExists when it was lost meanwhile."""
        for port in ports:
            mapping = PortMapping(
                container_port=port.container_port,
                host_port=port.host_port,
                protocol=port.protocol,  # type: ignore[arg-type]
                host_ip=port.host_ip,
            )
            self._reserve(pod_id, pod_name, mapping)

    def release(self, pod_id: str) -> None:
        """Lets go of all ports of a pod; idempotent."""
        for held in self._held.pop(pod_id, ()):
            held.close()
        for key, owners in list(self._owners.items()):
            owners[:] = [owner for owner in owners if owner[1] != pod_id]
            if not owners:
                del self._owners[key]

    def close(self) -> None:
        for pod_id in list(self._held):
            self.release(pod_id)

    def _reserve(self, pod_id: str, pod_name: str, mapping: PortMapping) -> PublishedPort:
        if mapping.protocol not in _TYPES and (mapping.protocol, mapping.host_port) in self._owners:
            raise self._refusal(mapping, OSError(errno.EADDRINUSE, ""))
        sockets, host_port = self._bind(mapping)
        self._held.setdefault(pod_id, []).extend(sockets)
        owners = self._owners.setdefault((mapping.protocol, host_port), [])
        owners.append((mapping.host_ip, pod_id, pod_name))
        return PublishedPort(
            host_ip=mapping.host_ip,
            host_port=host_port,
            container_port=mapping.container_port,
            protocol=mapping.protocol,
        )

    def _bind(self, mapping: PortMapping) -> tuple[list[socket.socket], int]:
        """Sockets on every address of the mapping, all with one port number."""
        for _ in range(1 if mapping.host_port else _TRIES):
            sockets: list[socket.socket] = []
            port = mapping.host_port
            try:
                for address in _addresses(mapping.host_ip):
                    sockets += _bound(mapping.protocol, address, port)
                    port = port or sockets[0].getsockname()[1]
                return sockets, port
            except OSError as error:
                for held in sockets:
                    held.close()
                if mapping.host_port or error.errno != errno.EADDRINUSE:
                    raise self._refusal(mapping, error) from None
        raise ResourceExhausted(f"no free {mapping.protocol} port", stage="network")

    def _refusal(self, mapping: PortMapping, error: OSError) -> Exception:
        name = f"port {mapping.host_ip or '*'}:{mapping.host_port}/{mapping.protocol}"
        if error.errno == errno.EADDRINUSE:
            owner = self._owner(mapping)
            hint = "choose another host port, or 0 for a free one (of a snapshot: --other-ports)"
            return AlreadyExists(f"{name} is in use by {owner}", stage="network", hint=hint)
        if error.errno == errno.EADDRNOTAVAIL:
            return NotFound(f"the host has no address {mapping.host_ip}", stage="network")
        return PermissionDenied(f"cannot publish {name}", stage="network", cause=error.strerror or "")

    def _owner(self, mapping: PortMapping) -> str:
        for _, _, pod_name in self._owners.get((mapping.protocol, mapping.host_port), ()):
            return f"pod {pod_name}"
        return program_on(mapping.protocol, mapping.host_port) or "another program"


def check(mapping: PortMapping) -> PortMapping:
    """Raises InvalidArgument for a port or address that cannot be."""
    if not 1 <= mapping.container_port <= 65535:
        raise InvalidArgument(f"bad container port {mapping.container_port}", hint="use 1 to 65535")
    if not 0 <= mapping.host_port <= 65535:
        raise InvalidArgument(f"bad host port {mapping.host_port}", hint="use 1 to 65535, or 0 for a free one")
    if mapping.protocol not in _TYPES and not mapping.host_port:
        raise InvalidArgument(f"a {mapping.protocol} port needs an explicit host port")
    if mapping.host_ip:
        try:
            ip_address(mapping.host_ip)
        except ValueError:
            raise InvalidArgument(f"bad host address {mapping.host_ip!r} of a published port") from None
    return mapping


def program_on(protocol: str, port: int, proc: Path = Path("/proc")) -> str:
    """The program that has a socket on the port, as "name (pid 1)", or "" when none can be seen (proc(5))."""
    inodes = {f"socket:[{inode}]" for inode in _inodes(protocol, port, proc)}
    for process in proc.glob("[0-9]*") if inodes else ():
        with suppress(OSError):
            if any(str(fd.readlink()) in inodes for fd in (process / "fd").iterdir()):
                return f"{(process / 'comm').read_text().strip()} (pid {process.name})"
    return ""


def _inodes(protocol: str, port: int, proc: Path) -> list[str]:
    found = []
    for table in (f"{protocol}", f"{protocol}6"):
        with suppress(OSError):
            rows = (proc / "self" / "net" / table).read_text().splitlines()[1:]
            fields = (row.split() for row in rows)
            found += [row[9] for row in fields if int(row[1].rsplit(":", 1)[1], 16) == port]
    return found


def _addresses(host_ip: str) -> list[str]:
    return [host_ip] if host_ip else ["0.0.0.0", "::"]  # noqa: S104  all addresses is what was asked for


def _bound(protocol: str, address: str, port: int) -> list[socket.socket]:
    """A socket bound without SO_REUSEADDR: nobody else can bind the port. [] where the host lacks the family."""
    if protocol not in _TYPES:
        return []  # SCTP: the kernel may not have it; the port is only forwarded
    v6 = isinstance(ip_address(address), IPv6Address)
    try:
        held = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, _TYPES[protocol])
    except OSError as error:
        if v6 and error.errno == errno.EAFNOSUPPORT:
            return []
        raise
    try:
        if v6:
            held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        held.bind((address, port))
    except OSError:
        held.close()
        raise
    return [held]
