"""Whether Wasm sandboxes can run here, found by running one: `python -m drupe.sandboxers.wasm.probe ENGINE`.

A zygote, a child that compiles a module of ours, and another that runs it, confined as any guest. Prints what the guest
printed. The doctor starts it.
"""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec

from drupe.linux.unix_sockets import recv_fds, send_fds
from drupe.sandboxers.wasm.cache import CODE
from drupe.sandboxers.wasm.job import PACKET_BYTES, Job, Report
from drupe.sandboxers.wasm.streams import NAMES

# a module that writes "ok" to descriptor 1 (WASI preview 1, fd_write)
WASM = bytes.fromhex(
    "0061736d01000000010c0260047f7f7f7f017f60000002230116776173695f736e617073686f745f70726576696577310866645f"
    "77726974650000030201010503010001071302066d656d6f72790200065f737461727400010a0f010d0041014100410141141000"
    "1a0b0b11010041000b0b08000000030000006f6b0a000b046e616d65010401000177"
)


def main(engine: str) -> int:
    """Exit code 0 when it ran; else the reason on standard error."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    argv = [sys.executable, "-P", "-m", "drupe.sandboxers.wasm.zygote", engine, str(theirs.fileno())]
    done = subprocess.run(argv, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE, text=True, check=False)
    theirs.close()
    if done.returncode != 0:
        return _fail(done.stderr.strip().rpartition("\n")[2])
    ours.recv(64)
    with tempfile.TemporaryDirectory(prefix="drupe-wasm-") as directory:
        (Path(directory) / "wasm").write_bytes(WASM)
        with (Path(directory) / "wasm").open("rb") as module, (Path(directory) / CODE).open("wb") as code:
            compile_ = Job(kind="compile", fds=(*NAMES, "module", "output"))
            compiled = _tell(ours, compile_, (module.fileno(), code.fileno()))
        if compiled.error:
            return _fail(compiled.error)
        ran = _tell(ours, Job(kind="run", fds=NAMES, code=directory, form=compiled.form, argv=("probe",)), ())
    return _fail(ran.error) if ran.error else 0


def _tell(control: socket.socket, job: Job, more: tuple[int, ...]) -> Report:
    """Have a child do a job to its end."""
    control.send(b"f")
    _, (pidfd, fd) = recv_fds(control, 64)
    with socket.socket(fileno=fd) as sock:
        send_fds(sock, msgspec.json.encode(job), (0, 1, 2, *more))
        data = sock.recv(PACKET_BYTES)
        select.select([pidfd], [], [])
    os.close(pidfd)
    return msgspec.json.decode(data, type=Report) if data else Report(error="the child ended")


def _fail(reason: str) -> int:
    sys.stderr.write(f"{reason}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
