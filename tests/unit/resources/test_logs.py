"""Logs come back whole: rotated, torn, in pieces, followed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from drupe.errors import InvalidArgument, NotFound
from drupe.resources.logs import parse_cri, parse_json_file, read_logs
from drupe.spec.control import LogLine, Logs

BASE = 1_700_000_000


def cri(number: int, text: str, *, stream: str = "stdout", tag: str = "F") -> str:
    seconds = BASE + number
    minute, second = divmod(seconds - BASE + 20, 60)
    return f"2023-11-14T22:{13 + minute:02}:{second:02}.000000000Z {stream} {tag} {text}\n"


def read(path: Path, driver: str = "cri", **wanted: Any) -> list[LogLine]:
    async def all_lines() -> list[LogLine]:
        return [line async for line in read_logs(str(path), driver, Logs(ref="x", **wanted))]

    return asyncio.run(all_lines())


def texts(lines: list[LogLine]) -> list[bytes]:
    return [line.data for line in lines]


def test_lines_of_both_streams_with_their_times(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(cri(0, "one") + cri(1, "two", stream="stderr"))
    assert read(tmp_path / "log") == [
        LogLine(at=BASE, stream="stdout", data=b"one\n"),
        LogLine(at=BASE + 1, stream="stderr", data=b"two\n"),
    ]


def test_pieces_are_joined_per_stream(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(
        cri(0, "aa", tag="P") + cri(1, "EE", stream="stderr", tag="P") + cri(2, "bb") + cri(3, "FF", stream="stderr")
    )
    assert texts(read(tmp_path / "log")) == [b"aabb\n", b"EEFF\n"]


def test_rotated_files_come_first_oldest_first(tmp_path: Path) -> None:
    for name, text in (("log.2", "1"), ("log.1", "2"), ("log", "3")):
        (tmp_path / name).write_text(cri(int(text), text))
    assert texts(read(tmp_path / "log")) == [b"1\n", b"2\n", b"3\n"]


@pytest.mark.parametrize("count", [0, 1, 3, 7, 100])
def test_tail_reaches_into_rotated_files(tmp_path: Path, count: int) -> None:
    (tmp_path / "log.1").write_text("".join(cri(n, str(n)) for n in range(5)))
    (tmp_path / "log").write_text("".join(cri(n, str(n)) for n in range(5, 10)))
    expected = [f"{n}\n".encode() for n in range(10)]
    assert texts(read(tmp_path / "log", tail=count)) == (expected[-count:] if count else [])


def test_tail_counts_joined_lines(tmp_path: Path) -> None:
    pieces = "".join(cri(n, "p", tag="P") for n in range(10))
    (tmp_path / "log").write_text(cri(0, "first") + pieces + cri(11, "end") + cri(12, "last"))
    assert texts(read(tmp_path / "log", tail=2)) == [b"p" * 10 + b"end\n", b"last\n"]
    assert texts(read(tmp_path / "log", tail=3))[0] == b"first\n"


def test_since_and_until_are_inclusive(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("".join(cri(n, str(n)) for n in range(6)))
    assert texts(read(tmp_path / "log", since=BASE + 2, until=BASE + 4)) == [b"2\n", b"3\n", b"4\n"]


@pytest.mark.parametrize("torn", ["2023-11-14T22:13:20.0", "2023-11-14T22:13:20.000000000Z stdou", "\0\0\0\0", "{"])
def test_a_line_torn_by_a_crash_is_tolerated(tmp_path: Path, torn: str) -> None:
    (tmp_path / "log").write_text(cri(0, "good") + torn)
    assert texts(read(tmp_path / "log")) == [b"good\n"]


def test_the_readable_part_of_a_torn_line_is_kept(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(cri(0, "good") + cri(1, "half a li")[:-1])
    assert texts(read(tmp_path / "log")) == [b"good\n", b"half a li"]


def test_json_file(tmp_path: Path) -> None:
    entries = [
        {"log": "par", "stream": "stdout", "time": "2023-11-14T22:13:20.5Z"},
        {"log": "tial\n", "stream": "stdout", "time": "2023-11-14T22:13:21Z"},
        {"log": "tz\n", "stream": "stderr", "time": "2023-11-15T00:13:22.25+02:00"},
    ]
    (tmp_path / "log").write_text("".join(json.dumps(e) + "\n" for e in entries))
    assert read(tmp_path / "log", "json-file") == [
        LogLine(at=BASE + 0.5, stream="stdout", data=b"partial\n"),
        LogLine(at=BASE + 2.25, stream="stderr", data=b"tz\n"),
    ]


def test_no_log_yet_is_no_lines_and_no_driver_is_an_error(tmp_path: Path) -> None:
    assert read(tmp_path / "absent") == []
    with pytest.raises(InvalidArgument, match="none"):
        read(tmp_path / "absent", "none")


@pytest.mark.parametrize("raw", [b"", b" ", b"x y z", b"2023-11-14T22:13:20Z", b"{}", b'{"log":1}', b"[]", b"\xff\xfe"])
def test_rubbish_is_no_line(raw: bytes) -> None:
    assert parse_cri(raw) is None
    assert parse_json_file(raw) is None


async def until(lines: AsyncIterator[LogLine], count: int) -> list[bytes]:
    return [(await asyncio.wait_for(anext(lines), 5)).data for _ in range(count)]


def test_follow_survives_rotation_and_ends_with_the_container(tmp_path: Path) -> None:
    log = tmp_path / "log"

    def write(number: int) -> None:
        with log.open("a") as file:
            file.write(cri(number, str(number)))

    async def story() -> list[bytes]:
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        lines = read_logs(str(log), "cri", Logs(ref="x", follow=True), ended=ended)
        write(0)
        got = await until(lines, 1)
        write(1)
        got += await until(lines, 1)
        write(2)  # still unread when the file is rotated, twice
        log.rename(tmp_path / "log.1")
        write(3)
        (tmp_path / "log.1").rename(tmp_path / "log.2")
        log.rename(tmp_path / "log.1")
        write(4)
        got += await until(lines, 3)
        write(5)
        ended.set_result(None)
        return got + [line.data async for line in lines]

    assert asyncio.run(asyncio.wait_for(story(), 20)) == [f"{n}\n".encode() for n in range(6)]


def test_follow_waits_for_a_log_that_does_not_exist_yet(tmp_path: Path) -> None:
    async def story() -> list[bytes]:
        lines = read_logs(str(tmp_path / "log"), "cri", Logs(ref="x", follow=True))
        first = asyncio.ensure_future(until(lines, 1))
        await asyncio.sleep(0)
        (tmp_path / "log").write_text(cri(0, "born"))
        got = await first
        await lines.aclose()  # type: ignore[attr-defined]
        return got

    assert asyncio.run(story()) == [b"born\n"]


def test_follow_with_tail_starts_late_and_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("".join(cri(n, str(n)) for n in range(10)))

    async def story() -> list[bytes]:
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        lines = read_logs(str(log), "cri", Logs(ref="x", follow=True, tail=2), ended=ended)
        got = await until(lines, 2)
        with log.open("a") as file:
            file.write(cri(10, "10"))
        ended.set_result(None)
        return got + [line.data async for line in lines]

    assert asyncio.run(story()) == [b"8\n", b"9\n", b"10\n"]


def test_a_log_whose_directory_is_gone_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="gone"):
        read(tmp_path / "removed/log", follow=True)
