"""EROFS files of images and layers: what is in them, and how long the store keeps one."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from drupe.images import erofs
from drupe.images.store import ImageStore
from drupe.spec.control import ImageBuild, ImageExport, ImageImport
from framework.imported import imported, in_mount_namespace
from framework.probes import needs_filesystem, needs_program
from framework.tars import archive, member

pytestmark = pytest.mark.root


def test_erofs(store: ImageStore, tree: Path, tmp_path: Path) -> None:
    """The file system holds the merged image, and the same image gives the same bytes elsewhere."""
    needs_program("mkfs.erofs")
    needs_filesystem("erofs")
    imported(store, tree)
    gone = archive(member(".wh.sparse"), member("added", data=b"1"))
    info = store.build(ImageBuild(tag="two", base="img:1", source_date_epoch=5), io.BytesIO(gone))
    first = erofs.image_erofs(store, info, tmp_path / "one.erofs")
    data = io.BytesIO()
    store.export(ImageExport(refs=("two",)), data)
    other = ImageStore(tmp_path / "other")
    data.seek(0)
    again = other.import_image(ImageImport(), data).images[0]
    second = erofs.image_erofs(other, again, tmp_path / "two.erofs")
    assert first.read_bytes() == second.read_bytes()
    (tmp_path / "mnt").mkdir()
    script = 'mount -t erofs -o loop,ro "$1" "$2"; ls "$2"; stat -c "%a %u %g" "$2/tmp"; cmp "$2/usr/bin/tool" "$3"'
    out = in_mount_namespace(script, str(first), str(tmp_path / "mnt"), str(tree / "usr/bin/tool"))
    assert "added" in out and "sparse" not in out and "1777 12 34" in out
    layer = erofs.layer_erofs(store, info.layers[1], tmp_path / "layer.erofs")
    out = in_mount_namespace(
        'mount -t erofs -o loop,ro "$1" "$2"; stat -c %F "$2/sparse"', str(layer), str(tmp_path / "mnt")
    )
    assert out.strip() == "character special file"


def test_an_image_has_one_erofs_file_as_long_as_it_is_needed(store: ImageStore, tree: Path) -> None:
    """Made once, also by several at the same time; counted; gone with what needs it."""
    needs_program("mkfs.erofs")
    info = imported(store, tree)
    before = store.disk_usage().size_bytes
    with ThreadPoolExecutor(4) as pool:
        files = list(pool.map(lambda _: erofs.erofs_of(ImageStore(store.root), info), range(4)))
    assert len({(path, path.stat().st_ino) for path in files}) == 1
    assert store.disk_usage().size_bytes - before == files[0].stat().st_blocks * 512 > 0
    assert not any(store.blobs.scratch.iterdir())
    store.prune()
    assert files[0].exists()  # asked for just now
    os.utime(files[0], (0, 0))
    store.prune(in_use=[info.digest])
    assert files[0].exists()
    assert store.prune().reclaimed_bytes > 0
    assert not files[0].exists()
    made = erofs.erofs_of(store, info)
    store.delete("img:1")
    assert not made.exists()


def test_an_erofs_file_that_was_broken_off_is_made_again(store: ImageStore, tree: Path) -> None:
    """A maker that was killed leaves work in progress and no file; the next one does not trip over it."""
    needs_program("mkfs.erofs")
    info = imported(store, tree)
    script = """import os, sys
from drupe.images import erofs, store
erofs._publish = lambda *_: os.kill(os.getpid(), 9)
erofs.erofs_of(images := store.ImageStore(sys.argv[1]), images.resolve("img:1"))"""
    done = subprocess.run([sys.executable, "-c", script, store.root], check=False)
    assert done.returncode == -9
    assert any(store.blobs.scratch.iterdir()) and not any(store.erofs.iterdir())
    assert erofs.erofs_of(store, info).stat().st_size > 0
    assert not any(store.blobs.scratch.iterdir())
