"""The system-call filter of Wasm guests, tried on a process that is under it: what an escaped guest could not do."""

from __future__ import annotations

import subprocess
import sys

import pytest

# each line is tried in a process of its own; "denied" is what it must say
ATTEMPTS = {
    "a new process": "os.fork()",
    "a program": "os.execv('/bin/true', ['true'])",
    "a signal to another": "os.kill(os.getppid(), 0)",
    "a signal to itself but SIGABRT": "os.kill(os.getpid(), 0)",
    "a signal by a descriptor": "os.pidfd_open(os.getppid())",
    "a signal by way of input": "fcntl.fcntl(0, fcntl.F_SETOWN, os.getppid())",
    "limits of another": "resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE)",
    "a namespace": "processes.unshare(processes.CLONE_NEWUSER)",
    "a mount": "mounts.mount('none', '/', '', mounts.MS_REC | mounts.MS_PRIVATE)",
    "a socket of the host's": "socket.socket(socket.AF_UNIX)",
    "a packet socket": "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    "another user": "os.setuid(0)",
    "the owner of a file": "os.chown('/dev/null', 0, 0)",
    "its terminal": "fcntl.ioctl(0, 0x5412, b'x')",
}
PROGRAM = """
import fcntl, os, resource, socket, sys
from drupe.linux import mounts, processes
from drupe.sandboxers.wasm import filter
processes.no_new_privileges()
processes.load_filter(filter.own(filter.compiled(sockets=True)))
try:
    {attempt}
    print("done")
except PermissionError:
    print("denied")
"""


def tried(attempt: str) -> str:
    argv = [sys.executable, "-c", PROGRAM.format(attempt=attempt)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False).stdout.strip()


@pytest.mark.parametrize("what", ATTEMPTS)
def test_denied(what: str) -> None:
    assert tried(ATTEMPTS[what]) == "denied", what


@pytest.mark.parametrize(
    "attempt",
    [
        "import threading; t = threading.Thread(target=print); t.start(); t.join()",
        "socket.socket(socket.AF_INET).close()",
        "open('/dev/null', 'w').write('x')",
        "resource.getrlimit(resource.RLIMIT_NOFILE)",
    ],
)
def test_allowed(attempt: str) -> None:
    assert tried(attempt).endswith("done"), attempt
