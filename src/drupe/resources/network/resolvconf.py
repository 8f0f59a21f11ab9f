"""The host's resolver configuration (resolv.conf(5))."""

from __future__ import annotations

from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple


class ResolvConf(NamedTuple):
    """servers: addresses, a link-local one with its %zone. searches, options: words."""

    servers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


def read_resolv_conf(path: Path) -> ResolvConf:
    """What the file says; empty when it is missing. Lines that are not understood are skipped, as the resolver does."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return ResolvConf()
    servers: list[str] = []
    found: dict[str, tuple[str, ...]] = {}
    for line in text.splitlines():
        match line.split("#", 1)[0].split(";", 1)[0].split():
            case ["nameserver", server, *_]:
                with suppress(ValueError):
                    ip_address(server.partition("%")[0])
                    servers.append(server)
            case ["search" | "domain", *words]:
                found["searches"] = tuple(words)
            case ["options", *words]:
                found["options"] = found.get("options", ()) + tuple(words)
    return ResolvConf(tuple(servers), found.get("searches", ()), found.get("options", ()))
