"""The fake's capability table."""

from __future__ import annotations

from collections.abc import Iterable

from drupe.sandboxers.capabilities import FEATURES, refuse_unless_able

_NOTHING = "no: nothing real is there to do it with"
_UNACTED = {
    "host-network", "host-pid", "host-ipc", "host-uts", "shared-pid", "user-namespace", "sysctls", "hooks",
    "bind-mounts", "devices", "seccomp", "privileged", "checkpoint", "snapshot",
}  # fmt: skip


class Table:
    """Feature to what is said of it. without: features to deny on top, so that refusals can be tested."""

    def __init__(self, without: Iterable[str] = ()) -> None:
        denied = set(without)
        able = {feature: _NOTHING if feature in _UNACTED else "yes" for feature in FEATURES}
        self.able = able | dict.fromkeys(denied, "no: switched off by the test")

    def require(self, feature: str) -> None:
        """Raise Unsupported when the table denies `feature`."""
        refuse_unless_able("fake", self.able, {feature})
