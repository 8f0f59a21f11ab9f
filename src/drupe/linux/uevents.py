"""Events of devices in a network namespace (Documentation/core-api/kobject.rst; netlink family 15)."""

from __future__ import annotations

import os
import socket
import time

NETLINK_KOBJECT_UEVENT = 15
_FROM_THE_KERNEL = 1
_MOST_BYTES = 65536


class UeventSocket:
    """Takes over a socket of that family, made in the namespace; what happens from now on can be read."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_KOBJECT_UEVENT, fileno=fd)
        self._socket.bind((0, _FROM_THE_KERNEL))

    def __enter__(self) -> UeventSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def device_number(self, name: str, *, timeout_s: float) -> int | None:
        """The number (makedev(3)) of a device of that name that is added, or None when that is not told in time."""
        deadline = time.monotonic() + timeout_s
        while (left_s := deadline - time.monotonic()) > 0:
            self._socket.settimeout(left_s)
            try:
                data, (sender, _) = self._socket.recvfrom(_MOST_BYTES)
            except TimeoutError:
                break
            words = dict(w.split("=", 1) for w in data.decode(errors="replace").split("\0") if "=" in w)
            if sender == 0 and words.get("ACTION") == "add" and words.get("DEVNAME") == name:
                return os.makedev(int(words["MAJOR"]), int(words["MINOR"]))
        return None
