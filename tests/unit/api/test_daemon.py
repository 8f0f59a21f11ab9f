"""Starting the daemon on demand: the right command, once, with its own words when it fails."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import pytest

from drupe.api.daemon import default_root, default_run, ensure_daemon, socket_path
from drupe.errors import PermissionDenied, Unavailable
from drupe.rpc.client import Client
from framework.leaks import wait_until

# a daemon in few words: serves the control socket until its run directory's file "stop" appears
DAEMON = """
import asyncio, os, sys
from pathlib import Path
from drupe.rpc.server import Server

async def handle(call):
    return {"argv": sys.argv[1:]}

async def main(path):
    server = Server(path, handle)
    await server.start()
    with Path(path).with_name("starts").open("a") as note:
        note.write("x")
    os.write(int(os.environ["DRUPE_READY_FD"]), b"ready\\n")
    while not Path(path).with_name("stop").exists():
        await asyncio.sleep(0.02)
    await server.close()

asyncio.run(main(sys.argv[-1]))
"""


def pretend(monkeypatch: pytest.MonkeyPatch, directory: Path, script: str) -> None:
    """Let `script` (sh) be what starts as the interpreter."""
    program = directory / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))


def test_it_is_started_once_with_its_directories(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root, run = tmp_path / "root", tmp_path / "run"
    (tmp_path / "daemon.py").write_text(DAEMON)
    pretend(monkeypatch, tmp_path, f'exec {sys.executable} {tmp_path}/daemon.py "$@"')
    paths: list[str] = []
    threads = [threading.Thread(target=lambda: paths.append(ensure_daemon(root=root, run=run))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        assert paths == [str(run / "drupe.sock")] * 6
        assert (run / "starts").read_text() == "x"
        with Client.connect(paths[0]) as client:
            argv = client.call("container.inspect", {"ref": "x"})["argv"]
        assert argv == ["-m", "drupe", "--root", str(root), "--run", str(run), "serve", "--socket", paths[0]]
        assert ensure_daemon(paths[0]) == paths[0]
    finally:
        (run / "stop").touch()
        wait_until(lambda: not (run / "drupe.sock").exists(), what="the daemon has ended")


def test_its_error_is_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretend(monkeypatch, tmp_path, "echo error: no keeper here > /proc/self/fd/$DRUPE_READY_FD")
    with pytest.raises(Unavailable, match="daemon: the daemon did not start: no keeper here"):
        ensure_daemon(root=tmp_path, run=tmp_path)


def test_its_last_words_are_told_when_it_dies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretend(monkeypatch, tmp_path, "echo ImportError: no module named x >&2; exit 3")
    with pytest.raises(Unavailable, match=r"did not start: .*ImportError: no module named x") as caught:
        ensure_daemon(root=tmp_path, run=tmp_path)
    assert "daemon.log" in caught.value.hint


def test_a_hanging_one_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretend(monkeypatch, tmp_path, "echo thinking >&2; exec sleep 1")
    began = time.monotonic()
    with pytest.raises(Unavailable, match=r"did not come up within 0\.3 s: .*thinking"):
        ensure_daemon(root=tmp_path, run=tmp_path, timeout_s=0.3)
    assert time.monotonic() - began < 0.9


def test_a_run_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable, match=r"cannot connect to .*Not a directory"):
        ensure_daemon(root=tmp_path, run=tmp_path / "file")
    with pytest.raises(Unavailable, match="cannot use the run directory"):
        ensure_daemon(str(tmp_path / "s"), root=tmp_path, run=tmp_path / "file")


def test_a_socket_that_is_not_ours_to_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import socket

    def refused(self: socket.socket, path: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket, "socket", type("Refusing", (socket.socket,), {"connect": refused}))
    with pytest.raises(PermissionDenied, match="may not connect"):
        ensure_daemon(root=tmp_path, run=tmp_path)


def test_places_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DRUPE_ROOT", "DRUPE_RUN", "DRUPE_SOCKET"):
        monkeypatch.delenv(name, raising=False)
    assert (default_root(), default_run(), socket_path()) == (
        Path("/var/lib/drupe"), Path("/run/drupe"), "/run/drupe/drupe.sock",
    )  # fmt: skip
    monkeypatch.setenv("DRUPE_ROOT", "/a")
    monkeypatch.setenv("DRUPE_RUN", "/b")
    assert (default_root(), default_run(), socket_path()) == (Path("/a"), Path("/b"), "/b/drupe.sock")
    monkeypatch.setenv("DRUPE_SOCKET", "/c/s")
    assert socket_path() == "/c/s" and socket_path(Path("/d")) == "/d/drupe.sock"
