"""Whatever a client sends, the keeper answers it and lives on."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drupe.keeper.connection import MAX_PACKET, open_socket
from framework.fuzzing import rounds
from framework.probes import keeper_binary, needs_keeper, needs_root

pytestmark = pytest.mark.root

OPS = [
    "hello",
    "subscribe",
    "namespaces",
    "release",
    "netns_socket",
    "netns_open",
    "mount",
    "umount",
    "run",
    "create",
    "exec",
    "attach",
    "flow",
    "streams",
    "take_streams",
    "ended",
    "detach",
    "close_stdin",
    "resize",
    "kill",
    "reopen_log",
    "list",
    "escrow",
    "adopt",
    "forget",
]
FIELDS = [
    "id",
    "op",
    "protocol",
    "dir",
    "types",
    "hostname",
    "sysctls",
    "uid_map",
    "gid_map",
    "userns",
    "netns",
    "family",
    "type",
    "mounts",
    "targets",
    "lazy",
    "argv",
    "env",
    "cwd",
    "stdin",
    "timeout_ms",
    "pass",
    "task",
    "pidfile",
    "io",
    "log",
    "exit_file",
    "extra_fds",
    "attach",
    "attachment",
    "rows",
    "cols",
    "signal",
    "after",
    "pid",
    "fds",
    "container",
    "seccomp",
    "join",
    "hold",
]
# No path and no program of the host can be spelled with these.
WORDS = st.text("ab\0\n{}é", max_size=6)
LEAVES = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | WORDS
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3))
REQUESTS = st.builds(
    lambda op, fields: json.dumps(fields | {"op": op}).encode(),
    st.sampled_from(OPS),
    st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=8),
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A request with some bytes changed and its end perhaps cut off."""
    packet = bytearray(draw(REQUESTS))
    for _ in range(draw(st.integers(0, 4))):
        packet[draw(st.integers(0, len(packet) - 1))] = draw(st.integers(0, 255))
    return bytes(packet[: draw(st.integers(1, len(packet)))])


@pytest.fixture(scope="module")
def keeper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[socket.socket]:
    """A connection to a keeper of its own."""
    needs_root()
    needs_keeper()
    directory = tmp_path_factory.mktemp("keeper")
    subprocess.run([keeper_binary(), "--run-dir", directory], check=True)
    pid = int((directory / "keeper.pid").read_text())
    pidfd = os.pidfd_open(pid)
    sock = open_socket(directory)
    sock.settimeout(10)
    yield sock
    assert Path(f"/proc/{pid}").exists(), "the keeper died"
    sock.send(b'{"id": 0, "op": "shutdown", "force": true}')
    with sock:
        while b'"id":0' not in sock.recv(MAX_PACKET):
            pass
    os.close(pidfd)


@pytest.mark.parametrize(
    "packets", [REQUESTS, damaged(), st.binary(min_size=1, max_size=200)], ids=["json", "cut", "raw"]
)
def test_every_packet_is_answered(keeper: socket.socket, packets: st.SearchStrategy[bytes]) -> None:
    @settings(max_examples=rounds(300), deadline=None, suppress_health_check=list(HealthCheck))
    @given(packets)
    def check(packet: bytes) -> None:
        if b"shutdown" in packet:
            return
        keeper.send(packet)
        answer = json.loads(keeper.recv(MAX_PACKET))
        assert ("ok" in answer) != ("error" in answer)
        if "error" in answer:
            assert answer["error"]["errno"].startswith("E") and answer["error"]["message"]

    check()
