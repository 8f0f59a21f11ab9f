"""The store: what goes in comes out, with skopeo and GNU tar as witnesses; crashes and other processes do no harm."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import msgspec
import pytest

from drupe.errors import DataLoss, InvalidArgument, InvalidState, NotFound, Unavailable
from drupe.images import media
from drupe.images.exports import export_directory
from drupe.images.files import remove_tree
from drupe.images.progress import silent
from drupe.images.rootfs import plan_rootfs
from drupe.images.store import ImageStore
from drupe.spec.control import ImageBuild, ImageExport, ImageImport
from framework.imported import imported, in_mount_namespace
from framework.probes import needs_program
from framework.tars import archive, member

pytestmark = pytest.mark.root


def listing(root: Path) -> dict[str, tuple[object, ...]]:
    """Everything about a tree that an image must keep."""
    found: dict[str, tuple[object, ...]] = {}
    for path in [root, *sorted(root.rglob("*"))]:
        status = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        link = str(path.readlink()) if path.is_symlink() else ""
        attributes = {name: os.getxattr(path, name, follow_symlinks=False)
                      for name in os.listxattr(path, follow_symlinks=False) if "overlay" not in name}  # fmt: skip
        found[str(path.relative_to(root))] = (
            status.st_mode, status.st_uid, status.st_gid, status.st_rdev, int(status.st_mtime), content, link,
            status.st_nlink if path.is_file() else 0, attributes,
        )  # fmt: skip
    return found


def skopeo(*argv: str) -> str:
    needs_program("skopeo")
    done = subprocess.run(["skopeo", *argv], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# in and out


def test_a_tree_comes_back_as_it_was(store: ImageStore, tree: Path) -> None:
    """Owners, modes, times, links, nodes, holes, attributes, odd names."""
    info = imported(store, tree)
    assert listing(store.lower_dirs(info)[0]) == listing(tree)
    assert (store.lower_dirs(info)[0] / "sparse").stat().st_size == 5 << 20
    assert store.config(info).cmd == ("sh",)


def test_gnu_tar_agrees(store: ImageStore, tree: Path, tmp_path: Path) -> None:
    """A tar that GNU tar wrote unpacks here as GNU tar unpacks it; ours unpacks there as it does here."""
    for number, options in enumerate(
        (["--format=gnu", "-S"], ["--format=posix", "--xattrs", "--xattrs-include=*", "-S", "-z"])
    ):
        packed = tmp_path / f"{number}.tar"
        subprocess.run(["tar", "-C", tree, *options, "-cf", packed, "."], check=True)
        there = tmp_path / f"there{number}"
        there.mkdir()
        argv = ["tar", "-C", there, "--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf", packed]
        subprocess.run(argv, check=True)
        info = store.import_image(ImageImport(format="rootfs", path=str(packed), tag="gnu")).images[0]
        assert listing(store.lower_dirs(info)[0]) == listing(there)
    ours = imported(store, tree)
    back = tmp_path / "back"
    back.mkdir()
    blob = store.blobs.path(media.decode_manifest(store.blobs.read(ours.digest), where="x").layers[0].digest)
    subprocess.run(["tar", "-C", back, "--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf", blob], check=True)
    assert listing(back) == listing(tree)


@pytest.mark.parametrize("form", ["oci-archive", "docker-archive"])
def test_export_and_import(store: ImageStore, tree: Path, tmp_path: Path, form: str) -> None:
    """Through an archive to another store: same image, same names; twice the same bytes; skopeo reads it."""
    info = imported(store, tree)
    store.build(ImageBuild(tag="team/two:2", base="img:1", path=str(tree), target="/opt/tree", source_date_epoch=7))
    path = tmp_path / "archive.tar"
    for _ in range(2):
        data = io.BytesIO()
        store.export(ImageExport(refs=("img:1", "team/two:2"), format=form), data)
        assert path.write_bytes(data.getvalue()) and (not path.exists() or path.read_bytes() == data.getvalue())
    other = ImageStore(tmp_path / "other")
    for source in ("path", "stream"):
        request = ImageImport(path=str(path)) if source == "path" else ImageImport()
        with path.open("rb") as file:
            found = other.import_image(request, None if source == "path" else file).images
        assert [image.names for image in found] == [["img:1"], ["team/two:2"]]
        assert found[0].digest == info.digest and found[0].id == info.id
    assert listing(other.lower_dirs(found[1])[1]) == listing(tree)
    seen = json.loads(skopeo("inspect", "--config", f"{form}:{path}:img:1"))
    assert seen["rootfs"]["diff_ids"] == info.layers and seen["config"]["Cmd"] == ["sh"]


def test_skopeo_conversions(store: ImageStore, tree: Path, tmp_path: Path) -> None:
    """skopeo's own layouts, gzip and zstd, docker-archives: same configuration, same layers."""
    info = imported(store, tree)
    export_directory(store, ("img:1",), tmp_path / "layout", silent)
    source = f"oci:{tmp_path}/layout:img:1"
    skopeo("copy", source, f"dir:{tmp_path}/dir")
    assert json.loads((tmp_path / "dir/manifest.json").read_text())["config"]["digest"] == info.id
    for name, options in {
        f"oci:{tmp_path}/gz:tagged": ["--dest-compress-format", "gzip", "--dest-compress"],
        f"oci:{tmp_path}/zst:tagged": ["--dest-compress-format", "zstd", "--dest-compress"],
        f"oci-archive:{tmp_path}/oa.tar:some/name:1": [],
        f"docker-archive:{tmp_path}/da.tar:some/name:2": [],
    }.items():
        skopeo("copy", *options, source, name)
        other = ImageStore(tmp_path / name.partition(":")[0] / "s")
        path = name.split(":")[1]
        got = other.import_image(ImageImport(path=path)).images[0]
        assert got.id == info.id and got.layers == info.layers
        assert listing(other.lower_dirs(got)[0]) == listing(tree)
        expected = f"{Path(path).name}:tagged" if name.startswith("oci:") else name.split(":", 2)[2]
        assert got.names == [expected]


def test_build_is_reproducible(store: ImageStore, tree: Path, tmp_path: Path) -> None:
    """The same tree gives the same digest in another store, whenever it is built; without an epoch it need not."""
    request = ImageBuild(
        tag="a", path=str(tree), source_date_epoch=1_700_000_000, env=("X=1",), ports=("80",), cmd=("c",)
    )
    first = store.build(request)
    os.utime(tree / "sparse")
    second = ImageStore(tmp_path / "other").build(request)
    assert first.digest == second.digest and first.created == "2023-11-14T22:13:20Z"
    config = store.config(first)
    assert (config.env, config.exposed_ports, config.cmd) == (("X=1",), ("80/tcp",), ("c",))


def test_build_on_a_base(store: ImageStore, tree: Path, tmp_path: Path) -> None:
    """Layers and settings add up; parents keep the base's mode; a tarball may be moved below a target."""
    base = imported(store, tree)
    packed = archive(member("x/", b"5"), member("x/f", data=b"1"), member("x/h", b"1", link="x/f"))
    request = ImageBuild(
        tag="b", base="img:1", target="/tmp/deep/er", env=("A=c", "B=d"), entrypoint=("e",), labels={"k": "v"}
    )
    info = store.build(request, io.BytesIO(packed))
    assert info.layers[:1] == base.layers and len(info.layers) == 2
    config = store.config(info)
    assert (config.env, config.entrypoint, config.cmd) == (("A=c", "B=d"), ("e",), ())
    top = store.lower_dirs(info)[0]
    assert (top / "tmp").stat().st_mode & 0o7777 == 0o1777 and (top / "tmp").stat().st_uid == 12
    assert (top / "tmp/deep/er/x/h").stat().st_ino == (top / "tmp/deep/er/x/f").stat().st_ino
    for bad, error in {
        "relative": InvalidArgument, "/a/../b": InvalidArgument, "/bin/x/y": InvalidArgument,
    }.items():  # fmt: skip
        with pytest.raises(error):
            store.build(msgspec.structs.replace(request, target=bad), io.BytesIO(packed))
    with pytest.raises(NotFound):
        store.build(msgspec.structs.replace(request, base="nope"), io.BytesIO(packed))
    with pytest.raises(NotFound):
        store.build(msgspec.structs.replace(request, path=str(tmp_path / "nope")))


# bad input leaves nothing behind


@pytest.mark.parametrize(
    ("request_", "data", "error"),
    [
        (ImageImport(tag="x"), b"", InvalidArgument),
        (ImageImport(tag="x"), b"garbage" * 1000, DataLoss),
        (ImageImport(tag="BAD"), archive(member("f")), InvalidArgument),
        (ImageImport(tag="x", format="zip"), archive(member("f")), InvalidArgument),
        (ImageImport(tag="x", format="oci-archive"), archive(member("f")), InvalidArgument),
        (ImageImport(tag="x", config={"Cmd": "sh"}), archive(member("f")), InvalidArgument),
        (ImageImport(tag="x"), archive(member("f"), member("../f")), InvalidArgument),
        (ImageImport(tag="x"), archive(member("oci-layout", data=b"{}")), InvalidArgument),
        (ImageImport(tag="x"), archive(member("manifest.json", data=b"[]")), InvalidArgument),
        (ImageImport(tag="x"), archive(member("manifest.json", data=b'[{"Config":1}]')), InvalidArgument),
        (ImageImport(tag="x"), archive(member("manifest.json", data=b'[{"Config":"c","Layers":[]}]')), NotFound),
        (ImageImport(tag="x"), archive(member("oci-layout", b"2", link="/etc/shadow")), InvalidArgument),
        (ImageImport(tag="x", path="/nonexistent"), None, NotFound),
        (ImageImport(tag="x"), None, InvalidArgument),
    ],
)  # fmt: skip
def test_bad_imports(store: ImageStore, request_: ImageImport, data: bytes | None, error: type[Exception]) -> None:
    """One clear line each; no image, no layer, no scratch."""
    with pytest.raises(error) as raised:
        store.import_image(request_, None if data is None else io.BytesIO(data))
    assert "\n" not in str(raised.value)
    assert store.list().images == []
    store.prune()
    left = [p for p in store.root.rglob("*") if p.is_file() and p.suffix not in (".lock", ".json")]
    assert left == [] and not any((store.root / "layers").glob("*"))


def test_a_layer_that_lies_about_its_diff_id(store: ImageStore, tree: Path, tmp_path: Path) -> None:
    """The configuration's diff id is checked against what was unpacked."""
    info = imported(store, tree)
    config = msgspec.json.decode(store.blobs.read(info.id))
    config["rootfs"]["diff_ids"] = ["sha256:" + "1" * 64]
    manifest = media.decode_manifest(store.blobs.read(info.digest), where="x")
    raw = media.encode(config)
    manifest.config.digest, manifest.config.size = store.blobs.put(raw), len(raw)
    with pytest.raises(DataLoss, match="digest does not match"):
        store.install(store.blobs.put(media.encode(manifest)), names=["docker.io/library/liar:latest"])
    assert not (store.root / "layers" / ("1" * 64)).exists() and list((store.root / "tmp").iterdir()) == []


def test_endless_depth_is_removed_again(tmp_path: Path) -> None:
    """Links make trees deeper than PATH_MAX; they must still be removable."""
    root = tmp_path / "deep"
    root.mkdir()
    fd = os.open(root, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=fd)
        following = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = following
    os.close(fd)
    remove_tree(root)
    assert not root.exists()
    remove_tree(root)


# names, deletion, pruning


def test_names_and_deletion(store: ImageStore, tree: Path) -> None:
    """A name is a name; the last one takes the image along; what containers use stays."""
    info = imported(store, tree)
    store.tag("img:1", "img:2")
    store.tag(info.id, "localhost:5000/x")
    assert store.resolve(info.digest[:20]).names == ["img:1", "img:2", "localhost:5000/x:latest"]
    with pytest.raises(InvalidState, match="3 names"):
        store.delete(info.id)
    assert store.delete("img:2").removed == ["img:2"]
    assert store.delete("localhost:5000/x").reclaimed_bytes == 0
    with pytest.raises(InvalidState, match="used by a container"):
        store.delete("img:1", in_use={info.digest})
    assert store.prune(all=True, in_use={info.id}).removed == []
    gone = store.delete("img:1")
    assert gone.removed == ["img:1", info.digest] and gone.reclaimed_bytes > 10_000
    assert not any((store.root / "layers").iterdir()) and not any((store.root / "blobs/sha256").iterdir())
    assert not any((store.root / "l").iterdir())
    with pytest.raises(NotFound) as raised:
        store.delete("img:1")
    assert "drupe image pull" in raised.value.hint


def test_shared_layers_stay(store: ImageStore, tree: Path) -> None:
    """What another image stands on is not removed with this one."""
    imported(store, tree)
    store.build(ImageBuild(tag="child", base="img:1", path=str(tree), target="/x"))
    store.delete("img:1")
    child = store.resolve("child")
    assert all(path.is_dir() for path in store.lower_dirs(child))
    assert store.disk_usage().total == 1


def test_prune(store: ImageStore, tree: Path) -> None:
    """Nameless images go; with `all`, unused ones; labels choose."""
    imported(store, tree)
    (tree / "more").write_text("x")
    second = imported(store, tree)
    assert len(store.list().images) == 2, "the first lost its name to the second"
    assert len(store.prune().removed) == 1
    labelled = store.build(ImageBuild(tag="l", path=str(tree), labels={"team": "a"}))
    assert store.prune(all=True, labels=["team=b"]).removed == []
    assert store.list(["team"]).images[0].digest == labelled.digest
    assert store.prune(all=True, labels=["team=a"]).removed == [labelled.digest]
    assert [image.digest for image in store.list().images] == [second.digest]


# other processes, crashes, the disk

CHILD = """
import sys
from pathlib import Path
from drupe.images.store import ImageStore
from drupe.spec.control import *
s = ImageStore(Path(sys.argv[1]))
"""


def child(store: ImageStore, code: str, *argv: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", CHILD + code, str(store.root), *argv])


def run_unshared(code: str, *argv: str) -> None:
    """The code with a store `s`, in a mount namespace of its own."""
    line = ["unshare", "-m", sys.executable, "-c", CHILD + code, *argv]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def test_another_process_is_seen_at_once(store: ImageStore, tree: Path) -> None:
    """Lookups are from memory, and right."""
    imported(store, tree)
    assert store.resolve("img:1").names == ["img:1"]
    assert child(store, "s.tag('img:1', 'img:2'); s.delete('img:1')").wait() == 0
    assert store.resolve("img:2").names == ["img:2"]
    with pytest.raises(NotFound):
        store.resolve("img:1")


def test_lookups_are_quick(store: ImageStore, tree: Path) -> None:
    """At most 0.2 ms for all that a start needs."""
    imported(store, tree)
    times = []
    for _ in range(300):
        begin = time.perf_counter()
        info = store.resolve("img:1")
        store.config(info)
        store.lower_links(info)
        times.append(time.perf_counter() - begin)
    assert sorted(times)[150] < 0.0002


def test_many_writers(store: ImageStore, tree: Path) -> None:
    """Tags of six processes at once: none is lost."""
    imported(store, tree)
    code = "[s.tag('img:1', f'p{sys.argv[2]}:{i}') for i in range(10)]"
    running = [child(store, code, str(number)) for number in range(6)]
    assert [process.wait(60) for process in running] == [0] * 6
    assert len(store.resolve("img:1").names) == 61


def test_killed_import_is_cleaned_up(store: ImageStore, tree: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle: no half layer is ever visible, and the next work removes the rest."""
    (tree / "big").write_bytes(os.urandom(48 << 20))
    process = child(store, "s.import_image(ImageImport(path=sys.argv[2], tag='big'))", str(tree))
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not list(store.root.glob("tmp/layer.*/diff/big")):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list((store.root / "tmp").iterdir()), "killed in time"
    assert store.list().images == [] and not any((store.root / "layers").iterdir())
    (tree / "big").unlink()
    imported(store, tree)
    assert list((store.root / "tmp").iterdir()) == []
    store.prune()
    total = sum(p.stat().st_size for p in (store.root / "blobs/sha256").iterdir())
    assert total < 20 << 20, "the blob that nobody named is gone"


def test_delete_while_importing(store: ImageStore, tree: Path) -> None:
    """Imports and deletions of the same layers at once end with a whole image or none."""
    failures: list[BaseException] = []

    def churn() -> None:
        for _ in range(5):
            try:
                imported(store, tree)
            except Unavailable:
                continue
            except BaseException as error:
                failures.append(error)

    threads = [threading.Thread(target=churn) for _ in range(2)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        try:
            store.delete("img:1")
        except NotFound:
            time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert failures == []
    info = imported(store, tree)
    assert listing(store.lower_dirs(info)[0]) == listing(tree)


def test_a_lost_layer_is_unpacked_again(store: ImageStore, tree: Path) -> None:
    """Somebody cleaned up by hand."""
    info = imported(store, tree)
    remove_tree(store.lower_dirs(info)[0].parent)
    fresh = ImageStore(store.root)
    assert listing(fresh.lower_dirs(fresh.resolve("img:1"))[0]) == listing(tree)


def test_corrupt_files_are_named(store: ImageStore, tree: Path) -> None:
    """Index and configuration: DataLoss with the file's name and what to do."""
    info = imported(store, tree)
    store.blobs.path(info.id).write_text("{}")
    with pytest.raises(DataLoss, match="digest does not match"):
        ImageStore(store.root).resolve("img:1")
    (store.root / "index.json").write_text("{broken")
    with pytest.raises(DataLoss, match=r"index\.json is corrupt") as raised:
        store.list()
    assert raised.value.hint


def test_a_full_disk(tmp_path: Path, tree: Path) -> None:
    """ResourceExhausted with a hint; nothing half-made remains, and the store goes on working."""
    (tree / "big").write_bytes(os.urandom(6 << 20))
    code = (
        "from drupe.errors import ResourceExhausted\n"
        "import subprocess\n"
        "root = Path(sys.argv[1])\n"
        "root.mkdir()\n"
        "subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=8m', 'none', root], check=True)\n"
        "s = ImageStore(root)\n"
        "try:\n"
        "    s.import_image(ImageImport(path=sys.argv[2], tag='x'))\n"
        "except ResourceExhausted as error:\n"
        "    assert 'prune' in error.hint, error.hint\n"
        "else:\n"
        "    raise SystemExit('no error')\n"
        "assert list((root / 'tmp').iterdir()) == []\n"
        "s.prune()\n"
        "(Path(sys.argv[2]) / 'big').unlink()\n"
        "(Path(sys.argv[2]) / 'sparse').unlink()\n"
        "s.import_image(ImageImport(path=sys.argv[2], tag='x'))\n"
    )
    run_unshared(code, str(tmp_path / "small"), str(tree))


def test_a_read_only_store(store: ImageStore, tree: Path) -> None:
    """Lookups work, changes say PermissionDenied."""
    imported(store, tree)
    code = (
        "from drupe.errors import PermissionDenied\n"
        "import subprocess\n"
        "subprocess.run(['mount', '--bind', '-o', 'ro', sys.argv[1], sys.argv[1]], check=True)\n"
        "assert s.resolve('img:1').names == ['img:1'] and s.lower_dirs(s.resolve('img:1'))\n"
        "for call in (lambda: s.tag('img:1', 'x'), lambda: s.delete('img:1'),\n"
        "             lambda: s.import_image(ImageImport(path=sys.argv[2], tag='y'))):\n"
        "    try:\n"
        "        call()\n"
        "    except PermissionDenied:\n"
        "        continue\n"
        "    raise SystemExit('no error')\n"
    )
    run_unshared(code, str(store.root), str(tree))


# mounting


def test_overlay_of_127_layers_shows_the_image(store: ImageStore, tmp_path: Path) -> None:
    """Whiteouts and opaque directories do what the layers say; every layer counts; the upper one takes the writes."""
    top = member("./", b"5", mode=0o711)
    layers = [[top, member("d/", b"5"), member("d/old", data=b"1"), member("gone", data=b"1")]]
    layers += [[member(f"n{number}", data=b"1")] for number in range(124)]
    layers += [[member("d/", b"5"), member("d/.wh..wh..opq"), member("d/new", data=b"1"), member(".wh.gone")]]
    layers += [[top]]
    descriptors, diff_ids = [], []
    with store.ingesting():
        for members in layers:
            digest, size = store.blobs.ingest(io.BytesIO(archive(*members)))
            descriptors.append(media.Descriptor(media.OCI_LAYER, digest, size))
            diff_ids.append(digest)
        raw = media.encode(media.ConfigDocument("amd64", "linux", media.Rootfs(diff_ids)))
        config = media.Descriptor(media.OCI_CONFIG, store.blobs.put(raw), len(raw))
        manifest = store.blobs.put(media.encode(media.Manifest(2, config, descriptors)))
        info = store.install(manifest, names=["docker.io/library/many:latest"])
    assert len(info.layers) == 127
    plan = plan_rootfs(store, info, tmp_path / "c", volatile=True)
    plan.prepare()
    script = 'cd "$1"; mount -t overlay overlay -o "$2" "$3"; ls "$3" "$3/d"; stat -c %a "$3"; echo hi >"$3/written"'
    out = in_mount_namespace(script, str(plan.cwd), plan.options, str(plan.target))
    seen = out.split()
    assert {f"n{number}" for number in range(124)} <= set(seen)
    assert "new" in seen and "old" not in seen and "gone" not in seen and "711" in seen
    assert (tmp_path / "c/upper/written").read_text() == "hi\n"
    plan.prepare()
    in_mount_namespace(script, str(plan.cwd), plan.options, str(plan.target))
    plan.remove()
    assert not any((tmp_path / "c").iterdir())


def test_tarfile_reads_our_layers(store: ImageStore, tree: Path) -> None:
    """A second reader of what we write."""
    info = imported(store, tree)
    blob = store.blobs.path(media.decode_manifest(store.blobs.read(info.digest), where="x").layers[0].digest)
    with tarfile.open(blob) as tar:
        names = {entry.name.removeprefix("./") for entry in tar}
    assert {"usr/bin/tool", "usr/bin/again", "null", "pipe", "new\nline ü"} <= names


def test_a_tree_that_changes_while_it_is_read(store: ImageStore, tree: Path) -> None:
    """A file that shrinks or vanishes under the reader is the tree's fault, and said so."""
    (tree / "fifo-like").symlink_to("/proc/self/mem")
    (tree / "zz-growing").write_bytes(bytes(1000))
    real, grown = Path.open, []

    def shrinking(path: Path, *argv: object, **options: object) -> object:
        if path.name == "zz-growing" and not grown:
            grown.append(path)
            os.truncate(path, 10)
        return real(path, *argv, **options)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", shrinking)
        with pytest.raises(Unavailable, match="zz-growing"):
            imported(store, tree)
    assert store.list().images == [] and list((store.root / "tmp").iterdir()) == []
    imported(store, tree)


def test_an_image_without_layers(store: ImageStore, tmp_path: Path) -> None:
    """`FROM scratch` and nothing more: mountable all the same."""
    with store.ingesting():
        raw = media.encode(media.ConfigDocument("amd64", "linux", media.Rootfs([])))
        config = media.Descriptor(media.OCI_CONFIG, store.blobs.put(raw), len(raw))
        info = store.install(store.blobs.put(media.encode(media.Manifest(2, config, []))))
    plan = plan_rootfs(store, info, tmp_path / "c")
    plan.prepare()
    script = 'cd "$1"; mount -t overlay overlay -o "$2" "$3"; ls -A "$3" | wc -l'
    assert in_mount_namespace(script, str(plan.cwd), plan.options, str(plan.target)).strip() == "0"


def test_the_reader_of_an_export_goes_away(store: ImageStore, tree: Path) -> None:
    """A closed pipe is Unavailable, not a traceback of tarfile's."""
    imported(store, tree)
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb", buffering=0) as file, pytest.raises(Unavailable, match="reader"):
        store.export(ImageExport(refs=("img:1",)), file)
