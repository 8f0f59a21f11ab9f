#!/usr/bin/env python3
"""Make the image `busybox:latest` of this host's static busybox, straight into an image store (no daemon needed).

The same busybox gives the same digest. Does nothing when the store has that image, unless --force.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from drupe.errors import DrupeError, NotFound
from drupe.images.build import image_from_tree
from drupe.images.progress import silent
from drupe.images.store import ImageStore

CREATED_S = 1_672_531_200  # 2023-01-01: all files bear one time, so that the digest depends on busybox alone
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CONFIG = {"Env": [f"PATH={PATH}"], "Cmd": ["sh"]}
PASSWD = """root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
"""
GROUP = """root:x:0:
daemon:x:1:
tty:x:5:
www-data:x:33:
nogroup:x:65534:
"""
DIRECTORIES = {
    "bin": 0o755, "dev": 0o755, "etc": 0o755, "home": 0o755, "lib": 0o755, "mnt": 0o755, "proc": 0o555, "root": 0o700,
    "run": 0o755, "sbin": 0o755, "sys": 0o555, "tmp": 0o1777, "usr/bin": 0o755, "usr/sbin": 0o755, "var/log": 0o755,
    "var/tmp": 0o1777, "var/www": 0o755,
}  # fmt: skip


def busybox_binary(given: str) -> Path:
    """The busybox to use; it must be static, because the image has no libraries."""
    found = given or shutil.which("busybox")
    if not found or not Path(found).exists():
        sys.exit("make-busybox-image: no busybox found\nhint: apt-get install busybox-static")
    path = Path(found).resolve()
    if b"/ld-linux" in path.read_bytes()[:4096]:
        sys.exit(f"make-busybox-image: {path} is not static\nhint: apt-get install busybox-static")
    return path


def make_tree(root: Path, busybox: Path) -> None:
    """A root tree: busybox under all its names, the usual directories and accounts."""
    for name, mode in DIRECTORIES.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name).chmod(mode)
    shutil.copyfile(busybox, root / "bin/busybox")
    (root / "bin/busybox").chmod(0o755)
    listing = subprocess.run([busybox, "--list-full"], capture_output=True, text=True, check=True, timeout=10).stdout
    for applet in listing.split():
        link = root / applet
        if not link.exists() and applet != "bin/busybox":
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to("/bin/busybox")
    for name, text in {"passwd": PASSWD, "group": GROUP, "hostname": "busybox\n"}.items():
        (root / "etc" / name).write_text(text)
        (root / "etc" / name).chmod(0o644)
    root.chmod(0o755)


def make_tar(path: Path, busybox: Path) -> None:
    """The tree alone, for those who unpack roots themselves; without what runtimes make to mount on."""
    with tempfile.TemporaryDirectory(prefix="busybox-image.") as scratch, tarfile.open(path, "w") as archive:
        make_tree(Path(scratch), busybox)
        for name in ("proc", "sys"):
            (Path(scratch) / name).rmdir()
        archive.add(scratch, ".")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="/var/lib/drupe/images", help="the image store (%(default)s)")
    parser.add_argument("--tag", default="busybox:latest")
    parser.add_argument("--busybox", default="", help="the binary to use (default: the one on PATH)")
    parser.add_argument("--tar", default="", help="write the tree to this archive instead")
    parser.add_argument("--force", action="store_true", help="make it again even if the store has it")
    options = parser.parse_args()
    if options.tar:
        make_tar(Path(options.tar), busybox_binary(options.busybox))
        return
    store = ImageStore(Path(options.root))
    try:
        info = None if options.force else _existing(store, options.tag)
        if info is None:
            with tempfile.TemporaryDirectory(prefix="busybox-image.") as scratch:
                tree = Path(scratch) / "root"
                tree.mkdir()
                make_tree(tree, busybox_binary(options.busybox))
                info = image_from_tree(
                    store, tree, tag=options.tag, config=CONFIG, created_s=CREATED_S, progress=silent
                ).digest
    except DrupeError as error:
        sys.exit(f"make-busybox-image: {error}\nhint: {error.hint}")
    print(f"{options.tag} {info}")


def _existing(store: ImageStore, tag: str) -> str | None:
    try:
        return store.resolve(tag).digest
    except NotFound:
        return None


if __name__ == "__main__":
    main()
