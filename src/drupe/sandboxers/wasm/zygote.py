"""The zygote: a process that has an engine ready, runs no guest, and forks a child for each process of a container.

    python -m drupe.sandboxers.wasm.zygote ENGINE DESCRIPTOR

It serves a packet socket: a byte asks for a child; the answer is the child's pid, with its pidfd and its own socket,
on which the child waits for what it shall become (`job.Job`). When the other end closes, zygote and waiting children
end. Children are born as the zygote's siblings, so that their parent is the keeper.
"""

from __future__ import annotations

import gc
import importlib
import os
import socket
import sys
import tempfile
from typing import NoReturn

from drupe.linux.processes import CommandLine, fork_sibling, set_name
from drupe.linux.unix_sockets import send_fds
from drupe.sandboxers.wasm import filter as system_calls
from drupe.sandboxers.wasm.child import World, quiet_signals, serve
from drupe.sandboxers.wasm.view import make_empty


def main(engine: str, descriptor: int) -> None:
    """Get ready, go into the background, serve. Whoever started it sees it end with 0 as soon as it can serve."""
    quiet_signals()
    made = importlib.import_module(f"drupe.sandboxers.wasm.engines.{engine}").make()
    filters = (system_calls.compiled(sockets=True), system_calls.compiled(sockets=False))
    world = World(made, _empty_namespace(), filters, CommandLine())
    control = socket.socket(fileno=descriptor)
    if os.fork():
        os._exit(0)
    os.setsid()
    _let_go_of_streams()
    set_name("drupe-zygote")
    gc.collect()
    gc.freeze()
    gc.disable()
    _serve(control, world)


def _serve(control: socket.socket, world: World) -> NoReturn:
    control.send(str(os.getpid()).encode())
    while control.recv(1):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid, pidfd = fork_sibling()
        if pid == 0:
            control.close()
            ours.close()
            world.engine.warm_up()
            serve(theirs, world)
        send_fds(control, str(pid).encode(), (pidfd, ours.fileno()))
        os.close(pidfd)
        ours.close()
        theirs.close()
    os._exit(0)


def _empty_namespace() -> int:
    """A child makes it and ends; what is left is our descriptor."""
    scratch = tempfile.mkdtemp(prefix="drupe-wasm-")
    ready, told = os.pipe()
    hold, release = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(release)
        make_empty(scratch)
        os.write(told, b"1")
        os.read(hold, 1)
        os._exit(0)
    os.close(told)
    os.close(hold)
    try:
        if not os.read(ready, 1):
            raise OSError("the empty mount namespace cannot be made")
        return os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(release)
        os.close(ready)
        os.waitpid(pid, 0)
        os.rmdir(scratch)  # noqa: PTH106 - the zygote imports as little as it can


def _let_go_of_streams() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    os.close(null)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
