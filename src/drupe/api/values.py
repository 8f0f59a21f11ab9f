"""The words of the spec with the constructors that Python users expect. Each is a spec object, and travels as one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from drupe import spec
from drupe.errors import InvalidArgument
from drupe.spec.egress import parse_policy
from drupe.spec.network import Protocol
from drupe.spec.units import parse_size

Default = Literal["allow", "deny"]
_PORT_HINT = "write [[IP:]HOST:]CONTAINER[/tcp|udp|sctp], like 8080:80"


class Network(spec.NetworkSpec):
    """How a sandbox meets the network; see `drupe.spec.NetworkSpec`."""

    @classmethod
    def parse(cls, text: str) -> Network:
        """As the command line's --network: "none", "host", "bridge", NAME of a bridge network, "cni:NAME", "ns:/PATH".

        Raises InvalidArgument.
        """
        kind, colon, rest = text.partition(":")
        if text in ("none", "host", "cnm"):
            return cls(mode=text, attachments=())  # type: ignore[arg-type]
        if kind == "cni" and rest:
            return cls.cni(rest)
        if kind == "ns" and rest.startswith("/"):
            return cls.join(rest)
        if colon or not text:
            raise InvalidArgument(f"bad network {text!r}", hint="none, host, bridge, NAME, cni:NAME or ns:/PATH")
        return cls.bridge("default" if text == "bridge" else text)

    @classmethod
    def none(cls) -> Network:
        """Loopback only."""
        return cls(mode="none", attachments=())

    @classmethod
    def host(cls) -> Network:
        """The host's own network: not isolated."""
        return cls(mode="host", attachments=())

    @classmethod
    def bridge(
        cls,
        name: str = "default",
        *,
        allow: Sequence[str] = (),
        deny: Sequence[str] = (),
        default: Default | None = None,
        ipv4: str | None = None,
        ipv6: str | None = None,
        aliases: Sequence[str] = (),
    ) -> Network:
        """A built-in bridge network. allow, deny: egress rules such as "10.0.0.0/8" or "example.org,port=443".

        `deny` is tried before `allow`; what neither names is denied when something is allowed, else allowed, unless
        `default` says otherwise. Raises InvalidArgument.
        """
        attachment = spec.Attachment(network=name, ipv4=ipv4, ipv6=ipv6, aliases=tuple(aliases))
        return cls(mode="bridge", attachments=(attachment,), policy=parse_policy(allow, deny, default=default))

    @classmethod
    def cni(
        cls,
        config: str,
        *,
        config_dir: str = "/etc/cni/net.d",
        bin_dirs: Sequence[str] = ("/opt/cni/bin", "/usr/lib/cni"),
    ) -> Network:
        """A chain of CNI plug-ins: a network name in `config_dir`, or the path of a conflist."""
        return cls(
            mode="cni",
            attachments=(),
            cni_config=config,
            cni_config_dir=config_dir,
            cni_bin_dirs=tuple(bin_dirs),
        )

    @classmethod
    def join(cls, path: str | Path) -> Network:
        """An existing network namespace, such as /run/netns/blue; it stays the caller's."""
        return cls(mode="path", attachments=(), netns_path=str(path))


class Mount(spec.Mount):
    """A mount in the container; see `drupe.spec.Mount`."""

    @classmethod
    def bind(
        cls,
        source: str | Path,
        target: str,
        *,
        read_only: bool = False,
        propagation: spec.container.Propagation = "rprivate",
        create: bool = False,
    ) -> Mount:
        """A file or directory of the host. A relative `source` is relative to the current directory."""
        path = str(Path(source).absolute())
        return cls(target=target, source=path, read_only=read_only, propagation=propagation, create=create, type="bind")

    @classmethod
    def volume(cls, name: str, target: str, *, read_only: bool = False) -> Mount:
        """A named volume, made when it does not exist; the empty name is an anonymous one."""
        return cls(target=target, source=name, read_only=read_only, type="volume")

    @classmethod
    def tmpfs(cls, target: str, *, size: str | int | None = None, mode: int | None = None) -> Mount:
        """Memory. size: bytes or text such as "64m"."""
        size_bytes = None if size is None else parse_size(size)
        return cls(target=target, size_bytes=size_bytes, mode=mode, type="tmpfs")

    @classmethod
    def block(cls, source: str | Path, target: str, *, filesystem: str = "", read_only: bool = False) -> Mount:
        """A block device, or a file, with a file system ("" is ext4) that the sandbox's own kernel mounts."""
        path = str(Path(source).absolute())
        return cls(target=target, source=path, filesystem=filesystem, read_only=read_only, type="block")

    @classmethod
    def image(cls, reference: str, target: str) -> Mount:
        """Another image, read-only."""
        return cls(target=target, source=reference, read_only=True, type="image")


class Secret(spec.Secret, kw_only=False):
    """A file in memory, at /run/secrets/<name>; see `drupe.spec.Secret`. Text is taken as UTF-8."""

    name: str
    value: bytes

    def __post_init__(self) -> None:
        if isinstance(self.value, str):
            msgspec.structs.force_setattr(self, "value", self.value.encode())

    def __repr__(self) -> str:
        return f"Secret(name={self.name!r}, value=<{len(self.value)} bytes>)"


class Port(spec.PortMapping, kw_only=False):
    """Publish `container_port` at `host_port` (0: a free one); see `drupe.spec.PortMapping`."""

    container_port: int
    host_port: int = 0
    protocol: Protocol = "tcp"
    host_ip: str = ""

    @classmethod
    def parse(cls, text: str) -> Port:
        """The port of "8080:80", "127.0.0.1:8080:80/udp", "80". Raises InvalidArgument."""
        address, slash, protocol = text.rpartition("/")
        rest = address if slash else text
        host, _, inside = rest.rpartition(":")
        host_ip, _, outside = host.rpartition(":")
        if not inside.isdigit() or not (outside.isdigit() or not outside):
            raise InvalidArgument(f"bad port {text!r}", hint=_PORT_HINT)
        if slash and protocol not in ("tcp", "udp", "sctp"):
            raise InvalidArgument(f"port {text!r} has an unknown protocol {protocol!r}", hint=_PORT_HINT)
        kind: Protocol = protocol if slash else "tcp"  # type: ignore[assignment]
        return cls(int(inside), int(outside or 0), kind, host_ip.strip("[]"))
