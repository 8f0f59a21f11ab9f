"""What comes out of a container is hostile: paths, archives, passwd files and logs of any content are survived."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from drupe.errors import DrupeError
from drupe.oci.users import resolve_user, user_names
from drupe.resources import files
from drupe.resources.logs import read_logs
from drupe.spec.control import LogLine, Logs

SECRET = "only on the host"
PARTS = st.sampled_from(["..", ".", "", "a", "b", "link", "up", "abs", "secret", "outside", "\0", "x" * 300])
PATHS = st.builds(
    lambda root, parts: ("/" if root else "") + "/".join(parts), st.booleans(), st.lists(PARTS, max_size=8)
)


@contextlib.contextmanager
def box() -> Iterator[tuple[int, Path]]:
    """A root full of links that lead out of it, and a secret outside."""
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        (top / "outside").mkdir()
        (top / "outside/secret").write_text(SECRET)
        (top / "root/a/b").mkdir(parents=True)
        (top / "root/link").symlink_to("../outside")
        (top / "root/a/up").symlink_to("../../../../../../../../" + name.lstrip("/") + "/outside")
        (top / "root/abs").symlink_to(top / "outside")
        (top / "root/a/loop").symlink_to("loop")
        fd = os.open(top / "root", os.O_PATH | os.O_DIRECTORY)
        try:
            yield fd, top
        finally:
            os.close(fd)


def untouched(top: Path) -> None:
    assert [p.name for p in (top / "outside").iterdir()] == ["secret"]
    assert (top / "outside/secret").read_text() == SECRET
    assert sorted(p.name for p in top.iterdir()) == ["outside", "root"]


def pipe_with(data: bytes) -> tuple[int, threading.Thread]:
    read_end, write_end = os.pipe()

    def fill() -> None:
        with contextlib.suppress(BrokenPipeError), os.fdopen(write_end, "wb", buffering=0) as file:
            file.write(data)

    thread = threading.Thread(target=fill)
    thread.start()
    return read_end, thread


@settings(max_examples=150, deadline=None)
@given(PATHS, PATHS)
def test_no_path_reaches_out_of_the_root(one: str, two: str) -> None:
    with box() as (fd, top):
        read_end, write_end = os.pipe()
        os.set_blocking(read_end, False)
        with contextlib.suppress(DrupeError):
            files.read(fd, one, write_end)
        assert SECRET.encode() not in (os.read(read_end, 100) if os.get_blocking(read_end) is False else b"")
        os.close(read_end)
        for work in (
            lambda: files.mkdir(fd, one),
            lambda: files.rename(fd, one, two),
            lambda: files.remove(fd, two, recursive=True),
            lambda: files.list_dir(fd, one),
            lambda: files.stat(fd, two),
        ):
            with contextlib.suppress(DrupeError):
                work()
        source, thread = pipe_with(b"data")
        with contextlib.suppress(DrupeError):
            files.write(fd, one, source)
        thread.join()
        untouched(top)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=2048), st.booleans())
def test_no_bytes_break_unpacking(data: bytes, framed: bool) -> None:
    if framed:  # a header that is nearly right gets further
        data = (data + b"\0" * 512)[:257] + b"ustar\x0000" + (data[257:] + b"\0" * 512)[:400]
    with box() as (fd, top):
        source, thread = pipe_with(data)
        with contextlib.suppress(DrupeError):
            files.put_archive(fd, "/a", source)
        thread.join()
        untouched(top)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=400), st.binary(max_size=400), st.text(max_size=12))
def test_no_passwd_breaks_the_lookup(passwd: bytes, group: bytes, user: str) -> None:
    with box() as (fd, top):
        (top / "root/etc").mkdir()
        (top / "root/etc/passwd").write_bytes(passwd)
        (top / "root/etc/group").write_bytes(group)
        with contextlib.suppress(DrupeError):
            found = resolve_user(fd, user, (user,))
            assert 0 <= found.uid < 2**31
        user_names(fd)


async def collected(path: Path, driver: str, tail: int | None) -> list[LogLine]:
    return [line async for line in read_logs(str(path), driver, Logs(ref="x", tail=tail))]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.binary(max_size=80) | st.just(b"2023-11-14T22:13:20.5Z stdout F x\n"), max_size=12),
    st.sampled_from(["cri", "json-file"]),
    st.none() | st.integers(0, 20),
)
def test_no_log_breaks_its_reader(pieces: list[bytes], driver: str, tail: int | None) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "log"
        path.write_bytes(b"".join(pieces))
        whole = asyncio.run(collected(path, driver, None))
        lines = asyncio.run(collected(path, driver, tail))
        assert lines == (whole if tail is None else whole[len(whole) - min(tail, len(whole)) :])
