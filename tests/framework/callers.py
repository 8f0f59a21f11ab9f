"""How callers of an OCI runtime do it: conmon's waiting, console sockets, a person's terminal."""

from __future__ import annotations

import array
import contextlib
import os
import socket
import subprocess
import termios

CONMON = """
    import ctypes, os, subprocess, sys
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER, as conmon and containerd's shims do
    pid_file, *argv = sys.argv[1:]
    command, name = argv[:3], argv[-1]
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)
    pid = int(open(pid_file).read())
    subprocess.run([*command, "start", name], check=True, stdin=subprocess.DEVNULL)
    print("code", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


def receive_terminal(listener: socket.socket) -> int:
    """The terminal's master, as a console socket gets it."""
    listener.settimeout(20)
    connection, _ = listener.accept()
    with connection:
        _, ancillary, _, _ = connection.recvmsg(4096, socket.CMSG_LEN(4))
    return array.array("i", ancillary[0][2])[0]


def on_terminal(
    argv: list[str], env: dict[str, str], text: bytes, *, size: tuple[int, int] = (0, 0)
) -> tuple[int, bytes]:
    """Exit code and output of a program on a terminal of that many rows and columns, where `text` was typed."""
    master, slave = os.openpty()
    try:
        termios.tcsetwinsize(slave, size)
        process = subprocess.Popen(argv, env=env, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
        os.close(slave)
        os.write(master, text)
        said = b""
        with contextlib.suppress(OSError):  # EIO: the last one has closed it
            while chunk := os.read(master, 4096):
                said += chunk
        return process.wait(20), said.replace(b"\r", b"")
    finally:
        os.close(master)


def first_and_last(said: bytes) -> tuple[bytes, bytes]:
    """The first line that names a terminal, and the last one."""
    lines = [line for line in said.split(b"\n") if line]
    return next(line for line in lines if line.startswith(b"/dev")), lines[-1]
