"""A host within the host: mount and network namespaces of its own, an empty /run, and our daemon in it.

What finds its files by fixed paths (conmon, containerd) runs there beside others, and harms nobody.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from framework.bundles import COMMAND
from framework.daemon import as_systemd
from framework.leaks import wait_until

TIMEOUT_S = 120.0
_MAKE = "mount --make-rprivate / && mount -t tmpfs tmpfs /run && ip link set lo up && echo ready && read end"


class PrivateHost:
    """The namespaces live until `close`. The daemon is there from the start, at its default run directory: conmon waits
    for every child that it gets, and gives its runtime no environment. kept: whoever ends it starts it again, as
    systemd does; else its relay may."""

    kept = True
    program: tuple[str, ...] = ("-m", "drupe")  # what Python is given to be the daemon

    def __init__(self, directory: Path, *, config: Path | None = None) -> None:
        self.directory = directory
        self.env = {**os.environ, "DRUPE_ROOT": str(directory / "drupe"), "HOME": str(directory)}
        if config is not None:
            self.env["DRUPE_CONFIG"] = str(config)
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--net", "sh", "-c", _MAKE], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._holder.stdout is not None and self._holder.stdout.readline() == b"ready\n"
        self._services: list[subprocess.Popen[bytes]] = []
        self.start_daemon()

    def start_daemon(self) -> None:
        """Start our daemon, and do not wait for it."""
        where = ["--root", str(self.directory / "drupe"), "--run", "/run/drupe"]
        argv = [sys.executable, *self.program, *where, "serve"]
        self._daemon = self.serve(*(as_systemd(argv) if self.kept else argv), log="daemon.log")
        self._services.insert(0, self._daemon)

    def end_daemon(self, number: signal.Signals) -> None:
        """End our daemon by a signal, and nothing else."""
        self._daemon.send_signal(number)
        self._daemon.wait(TIMEOUT_S)
        self._services.remove(self._daemon)

    def serve(self, *argv: str, log: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        """Start a daemon in there, or a program that takes long."""
        with (self.directory / log).open("ab") as output:
            return subprocess.Popen([*self._nsenter(), *argv], env=self.env, stdin=stdin, stdout=output, stderr=output)

    def serve_too(self, *argv: str, log: str) -> None:
        """Start a daemon in there that ends with the host."""
        self._services.append(self.serve(*argv, log=log))

    def wait_for(self, socket: str) -> None:
        """Until there is a socket of that name in there."""
        wait_until(
            lambda: self.inside("test", "-S", socket, check=False).returncode == 0, what=socket, timeout_s=TIMEOUT_S
        )

    def inside(self, *argv: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a program in there, its output captured. check: a failure is an AssertionError with what it said."""
        given: dict[str, Any] = {} if "input" in options else {"stdin": subprocess.DEVNULL}
        done = subprocess.run(
            [*self._nsenter(), *argv], env=self.env, check=False,
            capture_output=True, text=True, timeout=TIMEOUT_S, **given, **options,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{argv}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def drupe(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Our own command line, in there."""
        return self.inside(str(COMMAND.with_name("drupe")), *words, check=False)

    def close(self) -> None:
        """End the daemons, the last first, and let go of the namespaces. Ours is the last of all, as whoever calls it
        when there is none has another one started."""
        for service in reversed(self._services):
            if (
                service is self._daemon and service.poll() is not None
            ):  # one that was started so was quicker than a test
                self.drupe("system", "shutdown")
            service.terminate()
            service.wait(TIMEOUT_S)
        self._holder.communicate(b"end\n", timeout=TIMEOUT_S)

    def _nsenter(self) -> list[str]:
        return ["nsenter", "--target", str(self._holder.pid), "--mount", "--net"]
