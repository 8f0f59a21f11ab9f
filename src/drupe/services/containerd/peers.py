"""The containerds that use this daemon: how each is reached, known again after a restart."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import msgspec

from drupe.spec.node import ContainerdConfig
from drupe.state.journal import Journal

RECORDS = "containerd-peer"
OWNER = "containerd"


class Door(msgspec.Struct, frozen=True, kw_only=True):
    """What a socket stands for: tasks of one of containerd's namespaces, of a kind of sandbox. kind "": what their
    bundle or the node says."""

    namespace: str
    kind: str = ""


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """grpc, ttrpc: addresses of its sockets, which together tell it from others. publish: the program that takes events
    where there is no ttrpc. doors: those that it has asked for."""

    grpc: str
    ttrpc: str = ""
    publish: str = ""
    doors: tuple[Door, ...] = ()

    @property
    def key(self) -> str:
        return hashlib.sha256(f"{self.grpc}\0{self.ttrpc}".encode()).hexdigest()[:12]

    @property
    def owner(self) -> str:
        """Of its pods, in a word that a person may read."""
        return f"{OWNER}-{self.key}"


def configured(config: ContainerdConfig) -> Peer:
    """The one that the node's configuration names."""
    return Peer(grpc=config.address, ttrpc=config.events or f"{config.address}.ttrpc")


class Peers:
    """In the journal, by key."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        found = (msgspec.convert(data, Peer) for data in journal.records(RECORDS).values())
        self._known = {peer.key: peer for peer in found}

    def __iter__(self) -> Iterator[Peer]:
        return iter(list(self._known.values()))

    def meet(self, seen: Peer) -> Peer:
        """Remember a containerd; its `doors` add to what is known."""
        known = self._known.get(seen.key)
        doors = tuple(dict.fromkeys((*(known.doors if known else ()), *seen.doors)))
        peer = msgspec.structs.replace(seen, doors=doors)
        if peer != known:
            self._journal.put_record(RECORDS, peer.key, msgspec.to_builtins(peer))
            self._known[peer.key] = peer
        return peer
