"""drupe-oci's command line: runc's flags as Go takes them, and what each call is answered."""

from __future__ import annotations

import pytest

from drupe.errors import InvalidArgument
from drupe.services.oci.flags import Words, parse


@pytest.mark.parametrize(
    ("line", "verb", "common", "options", "arguments"),
    [
        ("state c1", "state", {}, {}, ["c1"]),
        ("--root /r --log=/l state c1", "state", {"root": "/r", "log": "/l"}, {}, ["c1"]),
        ("-systemd-cgroup create -b /b c1", "create", {"systemd-cgroup": "true"}, {"bundle": "/b"}, ["c1"]),
        ("create -pid-file=/p c1", "create", {}, {"pid-file": "/p"}, ["c1"]),
        ("delete c1 --force", "delete", {}, {"force": "true"}, ["c1"]),
        ("delete -f=false c1", "delete", {}, {"force": "false"}, ["c1"]),
        ("kill --all c1 15", "kill", {}, {"all": "true"}, ["c1", "15"]),
        ("exec -t --cwd /x c1 ls --force -l", "exec", {}, {"tty": "true", "cwd": "/x"}, ["c1", "ls", "--force", "-l"]),
        ("exec c1 -- x", "exec", {}, {}, ["c1", "--", "x"]),
        ("update -r - c1", "update", {}, {"resources": "-"}, ["c1"]),
        ("run --detach -- c1", "run", {}, {"detach": "true"}, ["c1"]),
        ("list", "list", {}, {}, []),
        ("--version", "version", {"version": "true"}, {}, []),
        ("", "help", {}, {}, []),
        ("create --help", "help", {}, {"help": "true"}, ["create"]),
        ("checkpoint --image-path /x c1", "checkpoint", {}, {"image-path": "/x"}, ["c1"]),
        ("restore -d --bundle=/b c1", "restore", {}, {"detach": "true", "bundle": "/b"}, ["c1"]),
    ],
)  # fmt: skip
def test_lines(line: str, verb: str, common: dict[str, str], options: dict[str, str], arguments: list[str]) -> None:
    words = parse(line.split())
    assert words.verb == verb
    assert {name: value[-1] for name, value in words.common.items()} == common
    assert {name: value[-1] for name, value in words.options.items()} == options
    assert words.arguments == arguments


def test_some_flags_come_often_and_of_others_the_last_counts() -> None:
    words = parse(["exec", "-e", "A=1", "--env=B=2", "--cwd", "/a", "--cwd", "/b", "c1", "x"])
    assert words.options["env"] == ["A=1", "B=2"]
    assert words.text("cwd") == "/b"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("fly", "No help topic for 'fly'"),
        ("state --wings c1", "flag provided but not defined: --wings"),
        ("--wings state c1", "--wings"),
        ("state ---root c1", "---root"),
        ("create --bundle", "flag needs an argument: --bundle"),
        ("delete --force=perhaps c1", "true or false"),
    ],
)
def test_wrong_lines_are_refused(line: str, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        parse(line.split())


def test_a_missing_id_is_said() -> None:
    with pytest.raises(InvalidArgument, match="create: the container id is missing"):
        _ = Words(verb="create").id
