"""Be told when interfaces, addresses or routes of a network namespace change (rtnetlink(7), multicast groups)."""

from __future__ import annotations

import contextlib
import errno
import socket

_RTMGRP = 0x1 | 0x10 | 0x40 | 0x100 | 0x400  # LINK, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE


class LinkEvents:
    """Takes over a netlink socket that was made in the namespace. Readable when something has changed."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE, fileno=fd)
        self._socket.setblocking(False)
        self._socket.bind((0, _RTMGRP))

    def fileno(self) -> int:
        return self._socket.fileno()

    def drain(self) -> None:
        """Forget what has been told. Events that were too many are one more change."""
        with contextlib.suppress(BlockingIOError):
            while True:
                try:
                    self._socket.recv(65536)
                except OSError as error:
                    if error.errno != errno.ENOBUFS:
                        raise

    def close(self) -> None:
        self._socket.close()
