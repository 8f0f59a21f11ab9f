"""Options of mounts where the sandbox has file systems of its own: which it carries out, which mean nothing there, and
that all others are refused by name. In machines crun makes the mounts, as for the runc kind, so that all hold.

Words are those of mount(8) and config.md ("Linux mount options"); a leading r is for what is mounted below, too.
"""

from __future__ import annotations

from collections.abc import Mapping

from drupe.errors import Unsupported
from drupe.oci.runtime_spec import Mount, RuntimeConfig

# Linux ignores these for bind mounts and in memory, or they say what is so anyway; times of access are a kernel's own.
_MOOT = frozenset(
    (  # noqa: SIM905 - words read best as words
        "defaults rw rrw bind rbind private rprivate unbindable runbindable async atime ratime diratime rdiratime suid "
        "rsuid dev rdev exec rexec symfollow rsymfollow loud silent sync dirsync mand nomand relatime rrelatime "
        "norelatime rnorelatime strictatime rstrictatime nostrictatime rnostrictatime nodiratime rnodiratime lazytime "
        "nolazytime iversion noiversion shared rshared slave rslave idmap ridmap"  # the last by rules of their own
    ).split()
)
_FLAGS = frozenset("ro noexec noatime nosuid nodev".split())  # noqa: SIM905
_BELOW = frozenset(f"r{word}" for word in _FLAGS)
_OWNED = frozenset(("size", "mode", "uid", "gid"))
_DATA: Mapping[str, Mapping[str, frozenset[str]]] = {
    "gvisor": {"tmpfs": _OWNED},
    "appkernel": {"tmpfs": _OWNED},
    "wasm": {"tmpfs": _OWNED | {"nr_inodes"}},
}
# What a kernel of its own does by itself: terminals of a container's own, with root's permissions as these say them.
_OF_TERMINALS = frozenset(("newinstance", "ptmxmode", "mode", "gid", "uid"))
COPY = "tmpcopyup"  # looked at when there is a root to look into


def refuse_options(config: RuntimeConfig, kind: str) -> None:
    """Raise Unsupported naming the first option of a mount that this kind does not carry out."""
    for mount in config.mounts or () if kind in _DATA else ():
        for option in mount.options or ():
            if not _carried(option, mount, kind):
                raise Unsupported(
                    f"config.json: mounts[].options {option} of {mount.destination} is not carried out by {kind} "
                    "sandboxes", kind=kind, feature=f"mounts[].options {option}",
                    cause="its file systems are the sandbox's own, and have no such option",
                )  # fmt: skip


def _carried(option: str, mount: Mount, kind: str) -> bool:
    if option in _MOOT or option in _FLAGS or option in _BELOW:
        return True
    if mount.type == "devpts" or mount.destination == "/dev":
        return option.partition("=")[0] in _OF_TERMINALS | _OWNED
    if mount.type == "tmpfs":
        return option == COPY or option.partition("=")[0] in _DATA[kind]["tmpfs"]
    return mount.destination == "/dev/shm" and option.partition("=")[0] in _OWNED  # noqa: S108 - the container's


def flag_of(option: str) -> str:
    """The flag itself: where a mount is one whole, what is for all below it is for it."""
    return option[1:] if option in _BELOW else option


def needs_copy(mount: Mount, kind: str) -> bool:
    """Whether its memory is to begin with what the root has there, which the kind does not do."""
    return kind in _DATA and mount.type == "tmpfs" and COPY in (mount.options or ())


def refused_copy(path: str, kind: str) -> Unsupported:
    """What is said where there is something to copy."""
    return Unsupported(
        f"config.json: mounts[].options {COPY} of {path} is not carried out by {kind} sandboxes",
        kind=kind, feature=f"mounts[].options {COPY}",
        cause="the root has files there, and memory of the sandbox's own begins empty",
        hint=f"leave {path} as it is in the image, or have it empty (Podman: --tmpfs {path}:notmpcopyup)",
    )  # fmt: skip
