"""What the tests of the store begin with."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from drupe.images.store import ImageStore


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "store")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A root tree with everything a layer may hold."""
    root = tmp_path / "tree"
    (root / "usr/bin").mkdir(parents=True)
    (root / "bin").symlink_to("usr/bin")
    (root / "usr/bin/tool").write_bytes(b"#!tool\n" * 1000)
    (root / "usr/bin/tool").chmod(0o4755)
    os.link(root / "usr/bin/tool", root / "usr/bin/again")
    os.mknod(root / "null", 0o20666, os.makedev(1, 3))
    os.mkfifo(root / "pipe", 0o600)
    with (root / "sparse").open("wb") as file:
        file.write(b"begin")
        file.truncate(5 << 20)
    (root / "tmp").mkdir()
    (root / "tmp").chmod(0o1777)
    os.chown(root / "tmp", 12, 34)
    os.setxattr(root / "usr/bin/tool", "user.note", b"\x00\xff bytes")
    os.setxattr(root / "usr/bin/tool", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
    (root / ("n" * 200)).mkdir()
    (root / ("n" * 200) / ("m" * 200)).write_text("long")
    (root / "new\nline ü").write_text("odd")
    os.utime(root / "usr/bin/tool", ns=(1_234_567_890_123_456_789,) * 2)
    return root
