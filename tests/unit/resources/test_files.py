"""File operations stay inside the root and mean what `docker cp` means."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import socket
import stat
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drupe.errors import AlreadyExists, DrupeError, InvalidArgument, NotFound
from drupe.linux.openat2 import open_regular
from drupe.resources import files
from drupe.resources.inroot import explained


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "root/etc").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_text("host")
    (tmp_path / "root/etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    fd = os.open(tmp_path / "root", os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.fixture(autouse=True)
def no_descriptor_leak() -> Iterator[None]:
    before = len(list(Path("/proc/self/fd").iterdir()))
    yield
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1  # `root` may be closed later


def collect(work: Callable[[int], object]) -> bytes:
    """What `work` writes to the descriptor it is given."""
    read_end, write_end = os.pipe()
    got: list[bytes] = []

    def drain() -> None:
        with os.fdopen(read_end, "rb") as file:
            got.append(file.read())

    thread = threading.Thread(target=drain)
    thread.start()
    try:
        work(write_end)
    finally:
        thread.join()
    return got[0]


def feed(data: bytes, work: Callable[[int], object]) -> None:
    """Give `work` a descriptor that yields `data`."""
    read_end, write_end = os.pipe()

    def fill() -> None:
        with os.fdopen(write_end, "wb") as file:
            try:
                file.write(data)
                file.flush()
            except BrokenPipeError:
                os.set_inheritable(file.fileno(), False)

    thread = threading.Thread(target=fill)
    thread.start()
    try:
        work(read_end)
    finally:
        thread.join()


def tar(*members: tuple[str, object]) -> bytes:
    """A tar of (name, content): bytes, or a TarInfo filled in by the test."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in members:
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.name = name
            if isinstance(content, bytes):
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            else:
                archive.addfile(info)
    return out.getvalue()


def members(data: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return {info.name: info for info in archive.getmembers()}


def special(kind: bytes, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo("x")
    info.type = kind
    for name, value in fields.items():
        setattr(info, name, value)
    return info


def test_write_then_read_and_stat(root: int, tmp_path: Path) -> None:
    feed(b"hello world", lambda fd: files.write(root, "/a/b/c.txt", fd, mode=0o640))
    assert (tmp_path / "root/a/b/c.txt").read_bytes() == b"hello world"
    info = files.stat(root, "/a/b/c.txt")
    assert (info.type, info.size, info.mode) == ("file", 11, 0o640)
    assert collect(lambda fd: files.read(root, "/a/b/c.txt", fd)) == b"hello world"
    assert collect(lambda fd: files.read(root, "a/b/c.txt", fd, offset=6, length=3)) == b"wor"


def test_write_keeps_the_mode_and_owner_of_what_it_replaces(root: int, tmp_path: Path) -> None:
    (tmp_path / "root/etc/passwd").chmod(0o600)
    feed(b"new", lambda fd: files.write(root, "/etc/passwd", fd))
    assert stat.S_IMODE((tmp_path / "root/etc/passwd").stat().st_mode) == 0o600
    assert [p.name for p in (tmp_path / "root/etc").iterdir()] == ["passwd"]


def test_append_adds_to_the_end_and_creates(root: int, tmp_path: Path) -> None:
    for piece in (b"one\n", b"two\n"):
        feed(piece, lambda fd: files.write(root, "/log", fd, append=True))
    assert (tmp_path / "root/log").read_bytes() == b"one\ntwo\n"


def test_write_follows_links_inside_the_root_only(root: int, tmp_path: Path) -> None:
    (tmp_path / "root/abs").symlink_to("/etc/passwd")
    (tmp_path / "root/up").symlink_to("../../../../outside/secret")
    feed(b"via link", lambda fd: files.write(root, "/abs", fd))
    assert (tmp_path / "root/etc/passwd").read_bytes() == b"via link"
    assert (tmp_path / "root/abs").is_symlink()
    feed(b"caught", lambda fd: files.write(root, "/up", fd))
    assert (tmp_path / "outside/secret").read_text() == "host"
    assert (tmp_path / "root/outside/secret").read_bytes() == b"caught"


@pytest.mark.parametrize("path", ["/../outside/secret", "/link/secret", "/abs/secret", "/etc/../../outside/secret"])
def test_reading_never_leaves_the_root(root: int, tmp_path: Path, path: str) -> None:
    (tmp_path / "root/link").symlink_to("../outside")
    (tmp_path / "root/abs").symlink_to(tmp_path / "outside")
    with pytest.raises(NotFound):
        collect(lambda fd: files.read(root, path, fd))


def test_read_refuses_what_is_no_file(root: int, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "root/fifo")
    for path, kind in (("/fifo", "fifo"), ("/etc", "dir")):
        with pytest.raises(InvalidArgument, match=f"is a {kind}"):
            collect(lambda fd, path=path: files.read(root, path, fd))  # type: ignore[misc]


def test_list_describes_every_kind(root: int, tmp_path: Path) -> None:
    (tmp_path / "root/etc/link").symlink_to("passwd")
    os.mkfifo(tmp_path / "root/etc/pipe")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "root/etc/sock"))
    found = {f.path: (f.type, f.target) for f in files.list_dir(root, "/etc").files}
    assert found == {
        "/etc/link": ("symlink", "passwd"),
        "/etc/passwd": ("file", ""),
        "/etc/pipe": ("fifo", ""),
        "/etc/sock": ("socket", ""),
    }
    assert files.stat(root, "/").type == "dir"
    assert files.stat(root, "/etc/link").type == "symlink"


def test_mkdir(root: int, tmp_path: Path) -> None:
    assert files.mkdir(root, "/a/b/c", mode=0o711).mode == 0o711
    assert files.mkdir(root, "/a/b/c").type == "dir"
    with pytest.raises(AlreadyExists):
        files.mkdir(root, "/a", parents=False)
    with pytest.raises(NotFound):
        files.mkdir(root, "/x/y", parents=False)
    with pytest.raises(InvalidArgument):
        files.mkdir(root, "/etc/passwd/x")


def test_remove(root: int, tmp_path: Path) -> None:
    (tmp_path / "root/tree/sub").mkdir(parents=True)
    (tmp_path / "root/tree/sub/file").touch()
    (tmp_path / "root/tree/out").symlink_to(tmp_path / "outside")
    with pytest.raises(InvalidArgument, match="not empty"):
        files.remove(root, "/tree")
    files.remove(root, "/tree", recursive=True)
    assert not (tmp_path / "root/tree").exists()
    assert (tmp_path / "outside/secret").exists()
    with pytest.raises(NotFound):
        files.remove(root, "/tree")
    for path in ("/", "", "/.", "/.."):
        with pytest.raises(InvalidArgument):
            files.remove(root, path, recursive=True)


def test_rename_replaces_and_stays_inside(root: int, tmp_path: Path) -> None:
    (tmp_path / "root/new").write_text("n")
    assert files.rename(root, "/new", "/etc/passwd").path == "/etc/passwd"
    assert (tmp_path / "root/etc/passwd").read_text() == "n"
    with pytest.raises(NotFound, match="/gone"):
        files.rename(root, "/gone", "/x")


def test_archive_round_trip_keeps_everything(root: int, tmp_path: Path) -> None:
    source = tmp_path / "root/src"
    source.mkdir(mode=0o750)
    (source / "file").write_bytes(b"x" * 100_000)
    os.link(source / "file", source / "hard")
    (source / "link").symlink_to("/etc/passwd")
    os.mkfifo(source / "pipe", 0o600)
    (source / "file").chmod(0o4755)
    os.utime(source / "file", (1_000_000_000, 1_000_000_000))
    data = collect(lambda fd: files.get_archive(root, "/src", fd))
    assert list(members(data)) == ["src", "src/file", "src/hard", "src/link", "src/pipe"]
    (tmp_path / "root/dst").mkdir()
    feed(data, lambda fd: files.put_archive(root, "/dst", fd, keep_ids=True))
    made = tmp_path / "root/dst/src"
    assert (made / "file").read_bytes() == b"x" * 100_000
    assert (made / "file").stat().st_ino == (made / "hard").stat().st_ino
    assert stat.S_IMODE((made / "file").stat().st_mode) == 0o4755
    assert (made / "file").stat().st_mtime == 1_000_000_000
    assert str((made / "link").readlink()) == "/etc/passwd"
    assert stat.S_ISFIFO((made / "pipe").stat().st_mode)
    assert stat.S_IMODE(made.stat().st_mode) == 0o750


def test_archive_of_a_link_follows_only_when_asked(root: int, tmp_path: Path) -> None:
    (tmp_path / "root/link").symlink_to("/etc/passwd")
    assert members(collect(lambda fd: files.get_archive(root, "/link", fd)))["link"].issym()
    assert members(collect(lambda fd: files.get_archive(root, "/link", fd, follow=True)))["link"].isreg()
    with pytest.raises(NotFound):
        collect(lambda fd: files.get_archive(root, "/none", fd))


def test_archive_of_the_root(root: int) -> None:
    data = collect(lambda fd: files.get_archive(root, "/", fd))
    assert list(members(data)) == [".", "./etc", "./etc/passwd"]


@pytest.mark.parametrize("packer", ["gz", "bz2", "xz"])
def test_put_archive_takes_compressed_tars(root: int, tmp_path: Path, packer: str) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=f"w:{packer}") as archive:
        info = tarfile.TarInfo("f")
        info.size = 2
        archive.addfile(info, io.BytesIO(b"ok"))
    feed(out.getvalue(), lambda fd: files.put_archive(root, "/etc", fd))
    assert (tmp_path / "root/etc/f").read_bytes() == b"ok"


HOSTILE = {
    "dotdot": tar(("../evil", b"x")),
    "inner dotdot": tar(("a/../../evil", b"x")),
    "device": tar(("null", special(tarfile.CHRTYPE, devmajor=1, devminor=3))),
    "block": tar(("sda", special(tarfile.BLKTYPE, devmajor=8, devminor=0))),
    "hard link out": tar(("h", special(tarfile.LNKTYPE, linkname="../../outside/secret"))),
    "hard link to nothing": tar(("h", special(tarfile.LNKTYPE, linkname="/outside/secret"))),
    "not a tar": b"\x00\x01garbage" * 200,
    "torn": tar(("big", b"y" * 5000))[:2000],
    "file over directory": tar(("d", special(tarfile.DIRTYPE)), ("d", b"x")),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_tars_are_refused_and_touch_nothing_outside(root: int, tmp_path: Path, name: str) -> None:
    (tmp_path / "root/dst").mkdir()
    with pytest.raises(DrupeError) as caught:
        feed(HOSTILE[name], lambda fd: files.put_archive(root, "/dst", fd))
    assert isinstance(caught.value, InvalidArgument | NotFound)
    assert "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["outside", "root"]
    assert (tmp_path / "outside/secret").read_text() == "host"
    assert (tmp_path / "outside/secret").stat().st_nlink == 1


def test_a_link_in_the_tar_leads_nowhere_outside(root: int, tmp_path: Path) -> None:
    data = tar(
        ("out", special(tarfile.SYMTYPE, linkname=str(tmp_path / "outside"))),
        ("out/new", b"x"),
        ("abs", special(tarfile.SYMTYPE, linkname="/etc")),
        ("abs/made", b"y"),
    )
    with contextlib.suppress(DrupeError):
        feed(data, lambda fd: files.put_archive(root, "/", fd))
    assert [p.name for p in (tmp_path / "outside").iterdir()] == ["secret"]


def test_a_huge_extended_header_is_not_read_into_memory(root: int) -> None:
    info = special(tarfile.XHDTYPE, size=8 << 30)
    info.name = "bomb"
    data = info.tobuf(tarfile.GNU_FORMAT) + b"\0" * 4096
    with pytest.raises(InvalidArgument, match="not a sound tar"):
        feed(data, lambda fd: files.put_archive(root, "/", fd))


def test_absolute_names_land_below_the_directory(root: int, tmp_path: Path) -> None:
    (tmp_path / "root/dst").mkdir()
    feed(tar(("/etc/passwd", b"mine")), lambda fd: files.put_archive(root, "/dst", fd))
    assert (tmp_path / "root/dst/etc/passwd").read_bytes() == b"mine"
    assert (tmp_path / "root/etc/passwd").read_text().startswith("root:")


def test_copy_tree_fills_a_new_volume(root: int, tmp_path: Path) -> None:
    (tmp_path / "root/data/sub").mkdir(parents=True)
    (tmp_path / "root/data/sub/f").write_text("v")
    (tmp_path / "root/data/l").symlink_to("sub/f")
    (tmp_path / "root/data").chmod(0o711)
    volume = tmp_path / "volume"
    volume.mkdir()
    files.copy_tree(root, "/data", volume)
    assert (volume / "sub/f").read_text() == "v"
    assert str((volume / "l").readlink()) == "sub/f"
    assert stat.S_IMODE(volume.stat().st_mode) == 0o711
    files.copy_tree(root, "/absent", volume)


def test_a_tree_too_deep_is_refused_in_words(root: int, tmp_path: Path) -> None:
    fd = os.open(tmp_path / "root", os.O_RDONLY)
    for _ in range(450):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    with pytest.raises(InvalidArgument, match="deeper than"):
        collect(lambda out: files.get_archive(root, "/d", out))
    with pytest.raises(InvalidArgument, match="deeper than"):
        files.remove(root, "/d", recursive=True)


@pytest.mark.parametrize("kind", ["fifo", "socket", "link", "dir"])
def test_only_a_regular_file_is_opened(root: int, tmp_path: Path, kind: str) -> None:
    place = tmp_path / "root/odd"
    make: dict[str, Callable[[], object]] = {
        "fifo": lambda: os.mkfifo(place),
        "socket": lambda: os.mknod(place, stat.S_IFSOCK | 0o600),
        "link": lambda: place.symlink_to("/etc/passwd"),
        "dir": place.mkdir,
    }
    make[kind]()
    with pytest.raises(OSError, match="regular"):
        open_regular(root, "odd", os.O_RDONLY | os.O_NOFOLLOW)


def test_refusals_are_said_once() -> None:
    """In words; the error's name is a detail."""
    with pytest.raises(NotFound) as raised, explained("/a"):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "/a")
    assert str(raised.value) == "/a: no such file or directory"
    assert raised.value.details == {"errno": "ENOENT"}
