"""Signals, capabilities and users, as people write them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drupe.errors import InvalidArgument, Unsupported
from drupe.oci.capabilities import ALL, DEFAULT, parse_capability, resolve
from drupe.oci.signals import parse_signal, signal_name
from drupe.oci.users import ResolvedUser, resolve_user, user_names

EVERY = frozenset(ALL)


@pytest.mark.parametrize(
    ("text", "number"),
    [("TERM", 15), ("SIGTERM", 15), ("term", 15), (" sigkill ", 9), ("15", 15), ("RTMIN", 34), ("RTMIN+3", 37),
     ("SIGRTMAX-1", 63), ("RTMAX", 64), ("64", 64), ("1", 1), ("IOT", 6), ("CLD", 17)],
)  # fmt: skip
def test_signals_that_exist(text: str, number: int) -> None:
    assert parse_signal(text) == number


@pytest.mark.parametrize(
    "text",
    ["", "0", "65", "-1", "TREM", "SIG", "RTMIN+31", "RTMIN-1", "RTMAX+1", "RTMIN+", "9x", "\uff19", "9" * 5000, "1e1"],
)
def test_signals_that_do_not(text: str) -> None:
    with pytest.raises(InvalidArgument, match="no signal"):
        parse_signal(text)


def test_a_near_miss_is_answered_with_the_name_meant() -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_signal("SIGTREM")
    assert "TERM" in caught.value.hint


@given(st.integers(1, 64))
def test_each_number_has_a_name_that_parses_back(number: int) -> None:
    assert parse_signal(signal_name(number)) == number


@given(st.text(max_size=20))
def test_no_text_breaks_the_parser(text: str) -> None:
    try:
        assert 1 <= parse_signal(text) <= 64
    except InvalidArgument as error:
        assert "\n" not in error.message or "\\n" in repr(text)


def test_default_capabilities_are_dockers_fourteen() -> None:
    assert len(DEFAULT) == 14
    assert resolve(host=EVERY) == tuple(cap for cap in ALL if cap in DEFAULT)


def test_capabilities_are_added_and_dropped() -> None:
    assert set(resolve(["net_admin"], ["CAP_KILL"], host=EVERY)) == set(DEFAULT) - {"CAP_KILL"} | {"CAP_NET_ADMIN"}
    assert resolve(drop=["ALL"], host=EVERY) == ()
    assert resolve(["chown"], ["ALL"], host=EVERY) == ("CAP_CHOWN",)
    assert set(resolve(["ALL"], ["SYS_ADMIN"], host=EVERY)) == EVERY - {"CAP_SYS_ADMIN"}
    assert set(resolve(privileged=True, host=EVERY)) == EVERY


def test_what_the_host_lacks_is_refused_by_name_and_left_out_of_all() -> None:
    host = EVERY - {"CAP_SYS_RESOURCE"}
    assert "CAP_SYS_RESOURCE" not in resolve(["ALL"], host=host)
    with pytest.raises(Unsupported, match="CAP_SYS_RESOURCE"):
        resolve(["SYS_RESOURCE"], host=host)
    with pytest.raises(InvalidArgument, match="NET_ADMINN") as caught:
        parse_capability("NET_ADMINN")
    assert "CAP_NET_ADMIN" in caught.value.hint


PASSWD = """root:x:0:0:root:/root:/bin/sh
# a comment: x

alice:x:1000:1000::/home/alice:/bin/sh
app:x:1001:2000::/app:
0numeric:x:1002:1002::/n:/bin/sh
broken:x:notanumber:1::/:/bin/sh
short:x
1234:x:77:78::/odd:/bin/sh
"""
GROUP = """root:x:0:
wheel:x:10:alice,root
alice:x:1000:
docker:x:999:alice,app
bad:x:y:alice
"""


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text(PASSWD)
    (tmp_path / "etc/group").write_text(GROUP)
    fd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, ResolvedUser(0, 0, (0, 10), "/root", "root")),
        ("", ResolvedUser(0, 0, (0, 10), "/root", "root")),
        ("alice", ResolvedUser(1000, 1000, (1000, 10, 999), "/home/alice", "alice")),
        ("1000", ResolvedUser(1000, 1000, (1000, 10, 999), "/home/alice", "alice")),
        ("alice:wheel", ResolvedUser(1000, 10, (10,), "/home/alice", "alice")),
        ("alice:5", ResolvedUser(1000, 5, (5,), "/home/alice", "alice")),
        ("app", ResolvedUser(1001, 2000, (2000, 999), "/app", "app")),
        ("4242", ResolvedUser(4242, 0, (0,), "/", "")),
        ("4242:docker", ResolvedUser(4242, 999, (999,), "/", "")),
        (":wheel", ResolvedUser(0, 10, (10,), "/root", "root")),
        ("0numeric", ResolvedUser(1002, 1002, (1002,), "/n", "0numeric")),
        ("1234", ResolvedUser(77, 78, (78,), "/odd", "1234")),
    ],
)
def test_users_as_docker_resolves_them(root: int, text: str | None, expected: ResolvedUser) -> None:
    assert resolve_user(root, text) == expected


def test_extra_groups_by_name_and_number(root: int) -> None:
    assert resolve_user(root, "app", ("wheel", "77", "docker")).groups == (2000, 999, 10, 77)


@pytest.mark.parametrize(
    "text", ["bob", "broken", "short", "alice:nogroup", "-1", "2147483648", "99999999999999999999"]
)
def test_unknown_users_are_named(root: int, text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        resolve_user(root, text)
    assert text.split(":")[-1] in caught.value.message


def test_passwd_that_is_a_link_out_a_fifo_or_missing(tmp_path: Path) -> None:
    image = tmp_path / "image"
    (image / "etc").mkdir(parents=True)
    (tmp_path / "passwd").write_text("evil:x:666:666::/:/bin/sh\n")
    (image / "etc/passwd").symlink_to("../../passwd")
    os.mkfifo(image / "etc/group")
    fd = os.open(image, os.O_PATH | os.O_DIRECTORY)
    try:
        with pytest.raises(InvalidArgument, match="evil"):
            resolve_user(fd, "evil")
        assert resolve_user(fd, "5:6") == ResolvedUser(5, 6, (6,), "/", "")
    finally:
        os.close(fd)


def test_names_of_uids(root: int) -> None:
    assert user_names(root)[1000] == "alice"
    assert 1 not in user_names(root)
