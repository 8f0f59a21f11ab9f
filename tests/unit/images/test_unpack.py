"""Unpacking: what an honest layer becomes, and that no hostile one gets out of its directory."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zstandard

from drupe.errors import DataLoss, DrupeError, InvalidArgument, ResourceExhausted
from drupe.images.limits import Limits
from drupe.images.unpack import OPAQUE_XATTR, Unpacked, unpack_layer
from framework.tars import BLOCK, archive, member, pax, pax_records, stream

SMALL = Limits(
    max_entries=50, max_unpacked_bytes=1 << 20, max_metadata_bytes=8192, max_ratio=50, ratio_floor_bytes=1 << 16
)
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@contextmanager
def opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The directory to unpack into, with a bait beside it that must never change."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/bait").write_text("untouched")
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def unpack(root: Path, *members: bytes, limits: Limits = SMALL, flatten: bool = False) -> Unpacked:
    with opened(root) as fd:
        return unpack_layer(stream(*members), fd, limits=limits, flatten=flatten)


def bait_untouched(root: Path) -> bool:
    outside = root.parent / "outside"
    return [p.name for p in outside.iterdir()] == ["bait"] and (outside / "bait").read_text() == "untouched"


def names(root: Path) -> set[str]:
    return {str(p.relative_to(root)) for p in root.rglob("*")}


# honest layers


def test_files_directories_links(root: Path) -> None:
    """Contents, modes, times and links arrive."""
    result = unpack(
        root,
        member("./", b"5", mode=0o750),
        member("d/", b"5", mode=0o711, mtime=1_500_000_000),
        member("d/f", data=b"hello", mode=0o4755),
        member("d/s", b"2", link="../outside/bait"),
        member("d/h", b"1", link="d/f"),
        member("deep/er/still/f", data=b""),
    )
    assert result.entries == 6
    assert (root / "d/f").read_bytes() == b"hello"
    assert stat.S_IMODE((root / "d/f").stat().st_mode) == 0o4755
    assert (root / "d/f").stat().st_mtime == 1_600_000_000
    assert (root / "d/h").stat().st_ino == (root / "d/f").stat().st_ino
    assert str((root / "d/s").readlink()) == "../outside/bait"
    assert (root / "d").stat().st_mtime == 1_500_000_000, "set last, after its files were made"
    assert stat.S_IMODE(root.stat().st_mode) == 0o750
    assert stat.S_IMODE((root / "deep/er").stat().st_mode) == 0o755


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress], ids=["plain", "gzip", "zstd"])
def test_compressions_give_the_same_diff_id(root: Path, pack: object) -> None:
    """The diff id is that of the unpacked tar."""
    plain = archive(member("f", data=b"x" * 3000))
    with opened(root) as fd:
        result = unpack_layer(io.BytesIO(pack(plain)), fd)  # type: ignore[operator]
    assert result.diff_id == f"sha256:{hashlib.sha256(plain).hexdigest()}"
    assert result.size_bytes == len(plain)


def test_gzip_of_several_members_and_zero_padding(root: Path) -> None:
    """pigz and some registries write those."""
    plain = archive(member("f", data=b"abc"))
    packed = gzip.compress(plain[:700]) + gzip.compress(plain[700:]) + bytes(1000)
    with opened(root) as fd:
        unpack_layer(io.BytesIO(packed), fd)
    assert (root / "f").read_bytes() == b"abc"


def test_pax_long_names_times_and_xattrs(root: Path) -> None:
    """PAX records win over the header."""
    long = "/".join(["n" * 200] * 3)
    unpack(
        root,
        pax_records({"path": long, "mtime": "1234567890.5", "SCHILY.xattr.user.note": b"\x01\x00bin\xff"}),
        member("ignored", data=b"1"),
        pax(linkpath="t" * 150),
        member("s", b"2", link="short"),
    )
    assert (root / long).stat().st_mtime_ns == 1_234_567_890_500_000_000
    assert os.getxattr(root / long, "user.note") == b"\x01\x00bin\xff"
    assert str((root / "s").readlink()) == "t" * 150


def test_gnu_long_names(root: Path) -> None:
    """GNU's L and K members."""
    unpack(root, member("././@LongLink", b"L", b"a" * 120 + b"\0"), member("cut", data=b"1"))
    assert names(root) == {"a" * 120}


def test_global_pax_header_and_its_end(root: Path) -> None:
    """A global record holds until an entry's own; `git archive` writes one with a comment."""
    body = b"11 uid=%5d\n" % os.getuid() if os.getuid() else b"8 uid=0\n"
    unpack(root, member("g", b"g", body), member("f", data=b"1"))
    assert names(root) == {"f"}


def test_old_style_directory(root: Path) -> None:
    """Archives from before POSIX mark a directory by a slash only."""
    unpack(root, member("d/", b"\0"), member("d/f", b"\0", b"1"))
    assert (root / "d/f").read_bytes() == b"1"


def test_odd_names_are_kept(root: Path) -> None:
    """Newlines, blanks, bytes that are no UTF-8, shell characters: names are bytes."""
    odd = [b"new\nline", b"\xff\xfe", b"-rf", b"a b", b"$(id)", b"\x1b[31m", b".", "ü".encode()]
    unpack(root, *(member(b"d/" + name, data=b"1") for name in odd if name != b"."))
    assert {os.fsencode(p.name) for p in (root / "d").iterdir()} == set(odd) - {b"."}


def test_duplicates_the_last_one_wins(root: Path) -> None:
    """Whatever an entry's earlier kind was."""
    unpack(
        root,
        member("a", data=b"1"), member("a", data=b"2"),
        member("b/", b"5"), member("b/x", data=b"1"), member("b", data=b"file"),
        member("c", b"2", link="a"), member("c", data=b"own"),
        member("d", data=b"1"), member("d/", b"5"), member("d/y", data=b"1"),
        member("e/", b"5"), member("e/kept", data=b"1"), member("e/", b"5", mode=0o700),
    )  # fmt: skip
    assert (root / "a").read_bytes() == b"2"
    assert (root / "b").read_bytes() == b"file"
    assert (root / "c").read_bytes() == b"own" and not (root / "c").is_symlink()
    assert (root / "d/y").exists()
    assert (root / "e/kept").exists() and stat.S_IMODE((root / "e").stat().st_mode) == 0o700


def test_parents_through_links_stay_inside(root: Path) -> None:
    """usr-merged images: `lib` is a link, also an absolute one."""
    unpack(
        root,
        member("usr/lib/", b"5"), member("lib", b"2", link="usr/lib"), member("lib/f", data=b"1"),
        member("abs", b"2", link="/usr/lib"), member("abs/g", data=b"2"),
    )  # fmt: skip
    assert names(root / "usr/lib") == {"f", "g"}


# sparse files: GNU tar's four encodings

MAP = [(0, 3), (8192, 4)]


@pytest.mark.parametrize("version", ["old", "0.0", "0.1", "1.0"])
def test_sparse(root: Path, version: str) -> None:
    """Holes stay holes, data lands where it belongs."""
    data, size = b"abcdefg", 20000
    if version == "old":
        raw = bytearray(member("f", b"S", data))
        for i, (offset, length) in enumerate([*MAP, (size, 0)]):
            raw[386 + 24 * i : 410 + 24 * i] = b"%011o\0%011o\0" % (offset, length)
        raw[483:495] = b"%011o\0" % size
        raw[345:386] = bytes(41)
        raw[257:265] = b"ustar  \0"
        raw[148:156] = b" " * 8
        raw[148:156] = b"%06o\0 " % sum(raw[:BLOCK])
        parts = [bytes(raw)]
    elif version == "0.0":
        body = {"GNU.sparse.size": str(size), "GNU.sparse.numblocks": "2"}
        pairs = b"".join(pax_records({k: str(v)})[BLOCK:].rstrip(b"\0") for o, n in MAP
                         for k, v in (("GNU.sparse.offset", o), ("GNU.sparse.numbytes", n)))  # fmt: skip
        first = pax_records(body)[BLOCK:].rstrip(b"\0")
        parts = [member("pax", b"x", first + pairs), member("f", data=data)]
    elif version == "0.1":
        text = ",".join(f"{o},{n}" for o, n in MAP)
        parts = [pax_records({"GNU.sparse.size": str(size), "GNU.sparse.map": text, "GNU.sparse.name": "f"}),
                 member("x", data=data)]  # fmt: skip
    else:
        text = "\n".join(str(n) for n in [len(MAP), *(x for pair in MAP for x in pair)]) + "\n"
        records = {
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.name": "f",
            "GNU.sparse.realsize": str(size),
        }
        parts = [pax_records(records), member("x", data=text.encode().ljust(BLOCK, b"\0") + data)]
    unpack(root, *parts)
    wanted = bytearray(size)
    wanted[0:3], wanted[8192:8196] = b"abc", b"defg"
    assert (root / "f").read_bytes() == bytes(wanted)


# whiteouts


def is_whiteout(path: Path) -> bool:
    status = path.lstat()
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


@root_only
def test_whiteouts_become_overlay_form(root: Path) -> None:
    """`.wh.x` is a 0:0 device, `.wh..wh..opq` an attribute, whatever the order."""
    unpack(
        root,
        member("d/.wh.gone", data=b""),
        member("o/", b"5"), member("o/.wh..wh..opq"), member("o/new", data=b"1"),
        member("p/.wh..wh..opq"),
        member(".wh.again"), member("again/", b"5"), member("again/f", data=b"1"),
        member("here/", b"5"), member(".wh.here"),
        member(".wh.implied"), member("implied/f", data=b"1"),
        member(".wh.file"), member("file", data=b"new"), member("kept", data=b"1"), member(".wh.kept"),
        member(".wh..wh.plnk", b"5"), member(".wh..wh.aufs"),
    )  # fmt: skip
    assert is_whiteout(root / "d/gone")
    for opaque in ("o", "p", "again", "here", "implied"):
        assert os.getxattr(root / opaque, OPAQUE_XATTR) == b"y", opaque
    assert (root / "file").read_bytes() == b"new" and (root / "kept").read_bytes() == b"1"
    assert not [name for name in names(root) if ".wh." in name]


@root_only
def test_flatten_applies_whiteouts(root: Path) -> None:
    """For a single merged tree they remove what lower layers brought."""
    (root / "a").mkdir()
    (root / "a/old").write_text("x")
    (root / "b").write_text("x")
    unpack(
        root, member("a/.wh..wh..opq"), member("a/new", data=b"1"), member(".wh.b"), member(".wh.never"), flatten=True
    )
    assert names(root) == {"a", "a/new"}


@root_only
def test_devices_and_fifos(root: Path) -> None:
    """Nodes are made, never opened."""
    unpack(
        root, member("null", b"3", major=1, minor=3, mode=0o666), member("loop", b"4", major=7), member("pipe", b"6")
    )
    assert stat.S_ISCHR((root / "null").stat().st_mode) and (root / "null").stat().st_rdev == os.makedev(1, 3)
    assert stat.S_IMODE((root / "null").stat().st_mode) == 0o666
    assert stat.S_ISBLK((root / "loop").stat().st_mode) and stat.S_ISFIFO((root / "pipe").stat().st_mode)


# hostile archives: each is refused with the entry's name, or harmless; nothing outside ever changes

DEEP = "a/" * 40
REFUSED: dict[str, tuple[type[DrupeError], list[bytes]]] = {
    "climbs out": (InvalidArgument, [member("../outside/x", data=b"!")]),
    "climbs out later": (InvalidArgument, [member("a/b/../../../outside/x", data=b"!")]),
    "climbs out absolutely": (InvalidArgument, [member("/../outside/x", data=b"!")]),
    "directory climbs out": (InvalidArgument, [member("../outside/", b"5", mode=0o777)]),
    "symlink name climbs out": (InvalidArgument, [member("../x", b"2", link="y")]),
    "hard link to outside": (InvalidArgument, [member("h", b"1", link="../outside/bait")]),
    "hard link to absolute outside": (DataLoss, [member("h", b"1", link="/etc/passwd")]),
    "hard link to nothing": (DataLoss, [member("h", b"1", link="nope")]),
    "hard link to nowhere": (DataLoss, [member("h", b"1", link="no/such/dir/x")]),
    "hard link to itself": (InvalidArgument, [member("h", data=b"1"), member("h", b"1", link="./h")]),
    "hard link to a directory": (InvalidArgument, [member("d/", b"5"), member("h", b"1", link="d")]),
    "hard link to the root": (InvalidArgument, [member("h", b"1", link="/")]),
    "hard link without target": (InvalidArgument, [member("h", b"1")]),
    "hard link through a link to outside": (
        DataLoss, [member("up", b"2", link="../outside"), member("h", b"1", link="up/bait")]),
    "dangling parent": (InvalidArgument, [member("p", b"2", link="/nowhere"), member("p/x", data=b"!")]),
    "looping parent": (InvalidArgument, [member("p", b"2", link="p"), member("p/x", data=b"!")]),
    "file as parent": (InvalidArgument, [member("f", data=b"1"), member("f/x", data=b"!")]),
    "root is a file": (InvalidArgument, [member("./", data=b"!")]),
    "root is a symlink": (InvalidArgument, [member(".", b"2", link="/etc")]),
    "symlink to nothing": (InvalidArgument, [member("s", b"2")]),
    "NUL in a PAX name": (InvalidArgument, [pax_records({"path": b"a\0b"}), member("x")]),
    "NUL in a PAX link": (InvalidArgument, [pax_records({"linkpath": b"a\0b"}), member("x", b"2")]),
    "no name": (InvalidArgument, [member("")]),
    "name too long": (InvalidArgument, [pax_records({"path": "d/" * 1500 + "x" * 1200}), member("x")]),
    "component too long": (InvalidArgument, [pax_records({"path": "x" * 256}), member("x")]),
    "whiteout of ..": (InvalidArgument, [member(".wh...")]),
    "whiteout of .": (InvalidArgument, [member("d/.wh..")]),
    "whiteout of nothing": (InvalidArgument, [member(".wh.")]),
    "whiteout outside": (InvalidArgument, [member("../outside/.wh.bait")]),
    "overlay attribute": (InvalidArgument, [
        pax_records({"SCHILY.xattr.trusted.overlay.redirect": "/etc"}), member("d/", b"5")]),
    "unprivileged overlay attribute": (InvalidArgument, [
        pax_records({"SCHILY.xattr.user.overlay.opaque": "y"}), member("d/", b"5")]),
    "unknown type": (InvalidArgument, [member("x", b"Z")]),
    "multi-volume": (InvalidArgument, [member("x", b"M")]),
    "owner out of range": (InvalidArgument, [pax(uid="4294967295"), member("x")]),
    "device out of range": (InvalidArgument, [member("x", b"3", major=0o177777, minor=1)]),
    "too many entries": (ResourceExhausted, [member(f"f{i}") for i in range(51)]),
    "too many bytes": (ResourceExhausted, [member("f", data=bytes(3 << 19))]),
    "huge sparse file": (ResourceExhausted, [
        pax_records({"GNU.sparse.size": str(1 << 60), "GNU.sparse.map": "0,0"}), member("f")]),
    "huge extended header": (ResourceExhausted, [member("x", b"x", bytes(9000)), member("f")]),
    "endless extended headers": (ResourceExhausted, [pax(comment="x" * 400)] * 30),
    "huge long name": (ResourceExhausted, [member("x", b"L", b"a" * 9000), member("f")]),
    "claims more than it has": (DataLoss, [member("f", data=b"x", size=1 << 30)]),
    "negative size": (DataLoss, [member("f").replace(b"00000000000\0", b"\xff" * 12, 1)]),
    "garbage": (DataLoss, [b"this is not a tar at all" * 100]),
    "bad checksum": (DataLoss, [member("a").replace(b"a", b"b", 1)]),
    "bad number": (DataLoss, [member("a")[:100] + b"9999999\0" + member("a")[108:]]),
    "lone zero block": (DataLoss, [member("a"), bytes(BLOCK), member("b")]),
    "broken PAX length": (DataLoss, [member("x", b"x", b"99 path=a\n"), member("f")]),
    "PAX without newline": (DataLoss, [member("x", b"x", b"9 path=ab"), member("f")]),
    "PAX zero length": (DataLoss, [member("x", b"x", b"0 path=a\n"), member("f")]),
    "PAX without equals": (DataLoss, [member("x", b"x", b"7 path\n"), member("f")]),
    "PAX bad size": (DataLoss, [pax(size="-1"), member("f")]),
    "PAX bad time": (DataLoss, [pax(mtime="soon"), member("f")]),
    "sparse map overlaps": (DataLoss, [
        pax_records({"GNU.sparse.size": "10", "GNU.sparse.map": "5,2,0,2"}), member("f", data=b"abcd")]),
    "sparse map beyond the file": (DataLoss, [
        pax_records({"GNU.sparse.size": "3", "GNU.sparse.map": "0,4"}), member("f", data=b"abcd")]),
    "sparse map longer than data": (DataLoss, [
        pax_records({"GNU.sparse.size": "99", "GNU.sparse.map": "0,50"}), member("f", data=b"abcd")]),
    "sparse 1.0 without map": (DataLoss, [
        pax_records({"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9"}), member("f")]),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_hostile_is_refused(root: Path, case: str) -> None:
    """One typed error in one line; the bait outside is as it was."""
    wanted, members = REFUSED[case]
    with pytest.raises(wanted) as raised:
        unpack(root, *members)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 600
    assert bait_untouched(root)


@pytest.mark.parametrize(
    "members",
    [
        [member("/etc/passwd", data=b"!")],
        [member("s", b"2", link="../outside"), member("s2", b"2", link="/")],
        [member("up", b"2", link="../../../../../../.."), member("up/x", data=b"!")],
        [member("abs", b"2", link="/"), member("abs/x/y", data=b"!")],
        [member("out", b"2", link="../outside/bait"), member("out", data=b"overwrites the link")],
        [member("d/", b"5"), member("d/l", b"2", link=".."), member("d/l/x", data=b"!")],
        [member("fd", b"2", link="/proc/self/root"), member("proc/self/root/", b"5"), member("fd/x", data=b"!")],
        [member("hl", b"2", link="../outside/bait"), member("hl2", b"1", link="hl"), member("hl2", data=b"!")],
        [member("a/b/", b"5"), member("a", b"2", link="../outside"), member("a", b"5"), member("a/bait", data=b"!")],
    ],
    ids=["absolute name", "links out", "write through ..", "write through /", "overwrite a link", "up and down",
         "magic link", "hard link to a symlink", "swap directory and link"],
)  # fmt: skip
def test_hostile_is_contained(root: Path, members: list[bytes]) -> None:
    """What is legal in an image, but would leave it if paths were followed naively."""
    unpack(root, *members)
    assert bait_untouched(root)
    assert not Path("/x").exists() and "!" not in Path("/etc/passwd").read_text()


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress], ids=["gzip", "zstd"])
def test_bomb(root: Path, pack: object) -> None:
    """A file of zeros packs a thousand times; it is stopped long before it is written out."""
    limits = Limits(max_unpacked_bytes=1 << 40, max_ratio=50, ratio_floor_bytes=1 << 20)
    bomb = pack(archive(member("zeros", data=bytes(32 << 20))))  # type: ignore[operator]
    with opened(root) as fd, pytest.raises(ResourceExhausted, match="bomb"):
        unpack_layer(io.BytesIO(bomb), fd, limits=limits)
    assert (root / "zeros").stat().st_size <= 4 << 20


@pytest.mark.parametrize("cut", [1, 300, 600, 1200, 1600])
def test_truncated(root: Path, cut: int) -> None:
    """A plain archive that ends in the middle."""
    data = b"".join([member("a", data=b"x" * 700), member("b", data=b"y" * 10)])
    with opened(root) as fd, pytest.raises(DataLoss, match="archive ends"):
        unpack_layer(io.BytesIO(data[:cut]), fd)


def test_truncated_gzip(root: Path) -> None:
    """Even when the tar in it happens to be whole, the end of the gzip stream must be there."""
    packed = gzip.compress(archive(member("a", data=os.urandom(2000))))
    with opened(root) as fd, pytest.raises(DataLoss):
        unpack_layer(io.BytesIO(packed[:-6]), fd)


@pytest.mark.parametrize(("magic", "name"), [(b"\xfd7zXZ\0", "xz"), (b"BZh9", "bzip2"), (b"PK\3\4", "zip")])
def test_other_compressions_are_named(root: Path, magic: bytes, name: str) -> None:
    """The error says what it is."""
    with opened(root) as fd, pytest.raises(InvalidArgument, match=name):
        unpack_layer(io.BytesIO(magic + bytes(1000)), fd)
