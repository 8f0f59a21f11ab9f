"""What the appkernel kind makes of a runtime-spec `process` that runc would have changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from drupe.sandboxers.appkernel.config import process_config
from drupe.sandboxers.appkernel.homes import with_home

KILL, BIND = 1 << 5, 1 << 10


def masks(uid: int, **sets: list[str]) -> dict[str, Any]:
    made = process_config({"args": ["x"], "cwd": "/", "user": {"uid": uid, "gid": 0}, "capabilities": sets})
    return {name: made[name] for name in ("effective", "permitted", "bounding")}


def test_a_user_keeps_the_ambient_capabilities_alone() -> None:
    both = ["CAP_KILL", "CAP_NET_BIND_SERVICE"]
    sets = {name: both for name in ("bounding", "effective", "permitted", "inheritable")}
    assert masks(1000, **sets) == {"effective": 0, "permitted": 0, "bounding": KILL | BIND}
    assert masks(1000, **sets, ambient=["CAP_KILL"])["effective"] == KILL
    assert masks(1000, effective=both, permitted=both, ambient=both)["permitted"] == 0  # ambient is in inheritable, too
    assert masks(0, **sets)["effective"] == KILL | BIND


@pytest.mark.parametrize(
    ("uid", "passwd", "home"),
    [
        (0, "root:x:0:0:root:/root:/bin/sh\n", "/root"),
        (7, "root:x:0:0:root:/root:/bin/sh\n", "/"),
        (7, "seven:x:7:7::/home/seven:/bin/sh\n", "/home/seven"),
        (0, None, "/"),
        (2**32 - 1, "root:x:0:0:root:/root:/bin/sh\n", "/"),
    ],
)
def test_home(tmp_path: Path, uid: int, passwd: str | None, home: str) -> None:
    (tmp_path / "etc").mkdir()
    if passwd is not None:
        (tmp_path / "etc/passwd").write_text(passwd)
    assert with_home(["A=b"], uid, tmp_path) == ["A=b", f"HOME={home}"]
    assert with_home(["HOME=/own"], uid, tmp_path) == ["HOME=/own"]
    assert with_home([], uid, tmp_path / "gone") == ["HOME=/"]
