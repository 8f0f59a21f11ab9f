"""Whoever calls the shim may do it in any way: it answers, or says in a line why not, within bounded time; nothing is
started and nothing is left for a task that is none."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drupe.rpc.containerd.task_v2_pb2 import DeleteResponse
from framework.bundles import COMMAND
from framework.daemon import Daemon
from framework.leaks import wait_until
from framework.taskcaller import pods

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

SHIM = COMMAND.with_name("containerd-shim-drupe-v2")
WITHIN_S = 60.0
START = ("-namespace", "n", "-address", "/nonexistent/c.sock", "-id", "t", "start")
DELETE = (*START[:-1], "delete")
TTRPC = "/nonexistent/c.sock.ttrpc"
Call = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def shim(daemon: Daemon, address: str, tmp_path: Path) -> Call:
    """Called in an empty bundle, where the relay runs already; what it says of a failure is a line."""

    def call(*words: str | bytes, cwd: Path = tmp_path, **options: Any) -> subprocess.CompletedProcess[bytes]:
        env = daemon.environment() | {"TTRPC_ADDRESS": TTRPC} | options.pop("env", {})
        given = {"input": b"", **options} if "stdin" not in options else options
        argv = [str(SHIM), *words]
        done = subprocess.run(argv, cwd=cwd, env=env, capture_output=True, timeout=WITHIN_S, check=False, **given)
        assert done.returncode in (0, 1), done
        assert done.returncode == 0 or (done.stderr.count(b"\n") <= 2 and b"Traceback" not in done.stderr), done.stderr
        return done

    return call


STDIN = {
    "nothing": b"",
    "nonsense": b"\xff" * 4096,
    "too much": bytes(8 << 20),
    "another's id": b"\x0a\x05other",
    "a length without an end": b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7fx",
    "no text": b"\x0a\x01\xff",
}


def test_a_start_with_any_input(shim: Call, daemon: Daemon, tmp_path: Path) -> None:
    """It is asked for an address, whatever stands there, and answers in the plain form that all versions take."""
    for name, data in STDIN.items():
        done = shim(*START, input=data)
        assert done.returncode == 0 and done.stdout.startswith(b"unix:///"), (name, done)
        assert (tmp_path / "address").read_bytes() == done.stdout and not pods(daemon)


WORDS: dict[str, tuple[str | bytes, ...]] = {
    "nothing": (),
    "no action": START[:-1],
    "another action": (*START[:-1], "stop"),
    "a flag without its value": ("start", "-id"),
    "no id": ("-namespace", "n", "-address", "/nonexistent/c.sock", "start"),
    "no address": ("-namespace", "n", "-id", "t", "start"),
    "no namespace": ("-address", "/nonexistent/c.sock", "-id", "t", "start"),
    "bytes": (b"-id", b"\xff\xfe", "-namespace", "n", "-address", "/nonexistent/c.sock", "start"),
    "a long id": ("-id", "x" * 100_000, *START[:4], "start"),
    "a path for an id": ("-id", "../../x", *START[:4], "start"),
    "a path for a namespace": ("-id", "t", "-namespace", "../../x", "-address", "/nonexistent/c.sock", "start"),
}


def test_any_words(shim: Call, daemon: Daemon, tmp_path: Path) -> None:
    wait_until((daemon.run / "cli.sock").exists, what="the daemon has all that it makes by itself")
    before = sorted(daemon.run.rglob("*"))
    for name, words in WORDS.items():
        (tmp_path / "address").unlink(missing_ok=True)
        done = shim(*words)
        assert (done.returncode == 0) is bool(done.stdout), (name, done)
        assert not pods(daemon) and len(done.stderr) < 10_000
        assert done.returncode == 0 or not (tmp_path / "address").exists()
    outside = [path for path in sorted(daemon.run.rglob("*")) if path not in before]
    assert all(path.parent == daemon.run / "containerd" for path in outside), outside


def test_a_delete_of_what_was_never_there(shim: Call) -> None:
    """containerd calls it after every task, and takes 137 for what nobody knows."""
    where = ("-namespace", "n", "-address", "/nonexistent/c.sock", "-bundle", "/nonexistent")
    for id_ in ("t", "", "../../x", "x" * 5000, "a\nb"):
        done = shim(*where, "-id", id_, "delete")
        assert done.returncode == 1 or DeleteResponse.FromString(done.stdout).exit_status == 137, (id_[:20], done)


def test_a_bundle_that_cannot_be_written(shim: Call, tmp_path: Path) -> None:
    (tmp_path / "address").mkdir()
    done = shim(*START)
    assert done.returncode == 1 and b"address" in done.stderr and not done.stdout


def test_a_caller_that_does_not_listen(shim: Call) -> None:
    """Of whom nobody reads the answer any more."""
    reader, writer = os.pipe()
    os.close(reader)
    env = {"TTRPC_ADDRESS": TTRPC}
    argv = [str(SHIM), "-info"]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=writer, stderr=subprocess.PIPE, env=env, timeout=WITHIN_S, check=False)  # fmt: skip  # noqa: E501
    os.close(writer)
    assert done.returncode == 1 and b"standard output" in done.stderr
    assert shim("-info").stdout and shim("-v").stdout
