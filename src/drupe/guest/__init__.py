"""Guest images: a kernel, and an initramfs or an EROFS root with the agent as its first process.

`build` makes one from a kernel and programs of the host: the same inputs give the same bytes. They are kept by their
digest below `<root>/guests`; `find` answers which files a machine boots.
"""

from drupe.guest.store import ROOT_SERIAL, Guest, GuestInfo, find, inspect, listed, remove

__all__ = ["ROOT_SERIAL", "Guest", "GuestInfo", "find", "inspect", "listed", "remove"]
