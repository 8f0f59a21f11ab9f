"""Images made of trees, and mounts of what they become."""

from __future__ import annotations

import subprocess
from pathlib import Path

from drupe.images.store import ImageStore
from drupe.spec.control import ImageImport, ImageInfo


def imported(store: ImageStore, tree: Path, tag: str = "img:1") -> ImageInfo:
    return store.import_image(ImageImport(path=str(tree), tag=tag, config={"Cmd": ["sh"], "Env": ["A=b"]})).images[0]


def in_mount_namespace(script: str, *argv: str) -> str:
    line = ["unshare", "-m", "sh", "-ec", script, "sh", *argv]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
