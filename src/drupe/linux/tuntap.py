"""TUN/TAP devices (Documentation/networking/tuntap.rst): made through a file of /dev/net/tun, where it was opened."""

from __future__ import annotations

import fcntl
import os
import struct

DEVICE = "/dev/net/tun"
_TUNSETIFF, _TUNSETPERSIST, _TUNSETOWNER = 0x400454CA, 0x400454CB, 0x400454CC
_IFF_TAP, _IFF_MULTI_QUEUE, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x0100, 0x1000, 0x4000
_IFREQ = struct.Struct("=16sH22x")


def attach_tap(fd: int, name: str, *, queues: int = 1, offload: bool = True) -> str:
    """Joins a file of /dev/net/tun to the tap `name`, which is made when it is missing; the name (given "x%d", one that
    is free). queues > 1: of a device with several, one of which this file is. offload: frames begin with a
    virtio_net_hdr. Raises OSError: EBUSY when another holds it, EINVAL when the device has another kind of queues."""
    flags = _IFF_TAP | _IFF_NO_PI | (_IFF_MULTI_QUEUE if queues > 1 else 0) | (_IFF_VNET_HDR if offload else 0)
    answer = fcntl.ioctl(fd, _TUNSETIFF, _IFREQ.pack(name.encode(), flags))
    return str(_IFREQ.unpack(answer)[0].rstrip(b"\0").decode())


def make_lasting(fd: int, *, owner: int) -> None:
    """The tap of this file outlives it, and user `owner` may open it without a capability."""
    fcntl.ioctl(fd, _TUNSETOWNER, owner)
    fcntl.ioctl(fd, _TUNSETPERSIST, 1)


def open_tap(name: str, *, queues: int = 1, offload: bool = True) -> int:
    """A descriptor of the tap `name` of this thread's network namespace; raises OSError as `attach_tap`."""
    fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        attach_tap(fd, name, queues=queues, offload=offload)
    except BaseException:
        os.close(fd)
        raise
    return fd
