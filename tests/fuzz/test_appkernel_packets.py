"""Whatever is sent to a pod's kernel, it answers and lives on. What was sent last, and what the kernel said, is kept in
build/fuzz when it did not."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drupe.errors import NotFound
from drupe.keeper.connection import MAX_PACKET, open_socket
from drupe.keeper.programs import find_program
from drupe.linux.memfd import memory_file
from framework.fuzzing import KERNEL, Trail, evidence
from framework.probes import needs_root

pytestmark = [pytest.mark.root, pytest.mark.timeout(float(os.environ.get("DRUPE_FUZZ_MINUTES", "0")) * 120 + 120)]
TRAILS: list[Trail] = []  # of the kernel that is there

OPS = [
    "hello",
    "subscribe",
    "start",
    "exec",
    "kill",
    "resize",
    "end_input",
    "list",
    "processes",
    "forget",
    "delete",
    "hostname",
    "rest",
    "go_on",
    "limits",
]
FIELDS = ["id", "op", "protocol", "fds", "container", "exec", "signal", "reach", "rows", "cols", "after", "name",
          "tasks", "memory_bytes", "cpu_us"]  # fmt: skip
CONFIG = [
    "args", "env", "cwd", "uid", "gid", "groups", "effective", "permitted", "inheritable", "bounding", "rlimits",
    "terminal", "rows", "cols", "root", "read_only", "share_pid", "mounts", "no_new_privileges",
]  # fmt: skip
WORDS = st.text("ab\0\n{}é./", max_size=6)
LEAVES = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | WORDS
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3))
REQUESTS = st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=6) | st.builds(
    lambda op, fields: fields | {"op": op},
    st.sampled_from(OPS),
    st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=5),
)
MOUNTS = st.lists(
    st.fixed_dictionaries(
        {
            "target": st.just("/m") | WORDS,
            "type": st.sampled_from(["proc", "tmpfs", "bind", "devices", "devpts", "shm", "x"]),
        },
        optional={
            "source": WORDS,
            "size_bytes": LEAVES,
            "mode": LEAVES,
            "flags": st.lists(st.just("ro") | WORDS, max_size=2),
        },
    ),
    max_size=3,
)
CONFIGS = st.builds(
    lambda fields, mounts: fields | ({"mounts": mounts} if mounts else {}),
    st.dictionaries(st.sampled_from(CONFIG), VALUES, max_size=8),
    MOUNTS,
)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A kernel without a pod around it; the directory of its socket."""
    needs_root()
    try:
        find_program("drupe-appkernel")
    except NotFound as error:
        pytest.skip(str(error))
    directory = tmp_path_factory.mktemp("kernel")
    with evidence("packets", "target packets; `tried` is what was sent") as place:
        TRAILS[:] = [Trail(place / "tried")]
        pid = begun(directory, place)
        with open_socket(directory, "control.sock") as sock:  # it answers: all its own processes are there
            sock.settimeout(60.0)
            assert "ok" in asked(sock, b'{"id": 1, "op": "hello", "protocol": 1}')
        yield directory
        TRAILS.pop().close()
        end(directory, pid)
        said = (place / "stderr").read_text(errors="replace")
        assert "panicked" not in said and "a bug of the kernel" not in said, said[-2000:]


def begun(directory: Path, place: Path) -> int:
    """Start the kernel, what it says goes into a file of `place`. Its pid."""
    (directory / "share").mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener, (place / "stderr").open("wb") as said:
        listener.bind(str(directory / "control.sock"))
        listener.listen(8)
        inside = 'mount --bind share share && mount --make-shared share && exec "$@"'
        serve = [str(KERNEL), "serve", "--control", str(listener.fileno()), "--share", str(directory / "share")]
        serve += ["--uid", "1999999998", "--pidfile", str(directory / "pid")]
        subprocess.run(
            ["unshare", "--mount", "sh", "-ec", inside, "sh", *serve],
            cwd=directory, pass_fds=[listener.fileno()], check=True, timeout=30, stderr=said,
        )  # fmt: skip
    return int((directory / "pid").read_text())


def end(directory: Path, pid: int) -> None:
    """Have it end; it is waited for."""
    for _ in range(200):
        if not Path(f"/proc/{pid}").exists():
            return
        # again and again: while those who left are still counted, one caller more is sent away
        with suppress(OSError), open_socket(directory, "control.sock") as sock:
            sock.setblocking(True)
            sock.send(json.dumps({"id": 0, "op": "shutdown"}).encode())
            sock.recv(MAX_PACKET)
        time.sleep(0.05)
    raise AssertionError("the kernel did not end")


def asked(sock: socket.socket, data: bytes, fds: list[int] | None = None) -> dict[str, object]:
    """The answer to a packet."""
    for trail in TRAILS:
        trail.note(repr(data[:4000]).encode() + b"\n")
    socket.send_fds(sock, [data], fds or [])
    answer: dict[str, object] = json.loads(sock.recv(MAX_PACKET))
    return answer


@pytest.fixture
def line(kernel: Path) -> Iterator[socket.socket]:
    with open_socket(kernel, "control.sock") as sock:
        sock.settimeout(20.0)
        yield sock
        assert "ok" in asked(sock, json.dumps({"id": 1, "op": "hello", "protocol": 1}).encode())


FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(data=st.binary(min_size=1, max_size=400))
def test_bytes(line: socket.socket, data: bytes) -> None:
    assert "error" in asked(line, data)


@FUZZ
@given(request=REQUESTS)
def test_requests(line: socket.socket, request: dict[str, object]) -> None:
    answer = asked(line, json.dumps(request).encode())
    assert "ok" in answer or answer["error"]


@FUZZ
@given(config=CONFIGS, program=st.booleans())
def test_configs(line: socket.socket, config: dict[str, object], program: bool) -> None:
    """Nothing can run: there is no root. All that comes before is tried."""
    base = {"args": ["/none"], "uid": 0, "gid": 0} if program else {}
    file, null = memory_file("config", json.dumps(base | config).encode()), os.open(os.devnull, os.O_RDWR)
    try:
        for trail in TRAILS:
            trail.note(json.dumps(base | config).encode() + b"\n")
        request = {"id": 1, "op": "start", "container": "c", "fds": ["config", "root", "stdin", "stdout", "stderr"]}
        assert "error" in asked(line, json.dumps(request).encode(), [file, null, null, null, null])
    finally:
        os.close(file)
        os.close(null)


def test_what_is_too_long(line: socket.socket) -> None:
    line.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    assert "error" in asked(line, b"{" + b" " * (MAX_PACKET + 10))


def test_many_descriptors_and_callers_who_leave(kernel: Path, line: socket.socket) -> None:
    """Descriptors that nobody asked for are closed, and answers to nobody are dropped."""
    for _ in range(50):
        with open_socket(kernel, "control.sock") as sock:
            socket.send_fds(sock, [b'{"id": 1, "op": "list", "fds": []}'], [line.fileno()] * 50)
    assert "ok" in asked(line, b'{"id": 2, "op": "list"}')
