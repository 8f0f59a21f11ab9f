"""Random kills: clients at work beside a killer, what must hold whoever is killed, and whom there is to kill."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

from framework.daemon import CALL_TIMEOUT_S, COMMAND, Daemon
from framework.leaks import wait_until
from framework.residue import is_alive

SEED = int(os.environ.get("DRUPE_SOAK_SEED", "0")) or random.randrange(1, 1 << 30)
SLOW_S = 5.0
OWN_FAILURES = (125, 124, 1)  # drupe's, of a verb that passes codes on; 1: of one that does not
KILLED_CLIENT = -signal.SIGKILL


def seconds(default: str) -> float:
    """How long to go on: DRUPE_SOAK_S, or `default`."""
    return float(os.environ.get("DRUPE_SOAK_S", default))


class Soak:
    """The bystanders, the clients and the killer. `wrong` collects what must not happen."""

    def __init__(self, daemon: Daemon, duration_s: float) -> None:
        self.daemon = daemon
        self.ends_at = time.monotonic() + duration_s
        self.wrong: list[str] = []
        self.done: dict[str, int] = {}
        self.clients: set[int] = set()
        self.killed: list[str] = []
        self.lock = threading.Lock()

    def over(self) -> bool:
        return time.monotonic() > self.ends_at or len(self.wrong) > 5

    def wait_well(self) -> None:
        """A daemon serves, and a keeper serves it."""

        def well() -> bool:
            info = self.drupe("info", "--json")
            return info.returncode == 0 and is_alive(json.loads(info.stdout)["keeper_pid"])

        wait_until(well, what="daemon and keeper are back", timeout_s=CALL_TIMEOUT_S)

    def drupe(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run the command, which starts the daemon when there is none; the killer knows of it."""
        process = subprocess.Popen(
            self.daemon._inside([COMMAND, *argv]), env=self.daemon.environment(), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
        )  # fmt: skip
        began = time.monotonic()
        with self.lock:
            self.clients.add(process.pid)
        try:
            out, err = process.communicate(timeout=CALL_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            self.wrong.append(f"{argv} hung: {out}{err}")
        with self.lock:
            self.clients.discard(process.pid)
            self.done[argv[0]] = self.done.get(argv[0], 0) + 1
        if (took := time.monotonic() - began) > SLOW_S:
            print(f"{took:.1f} s: {argv}: {process.returncode} {out} {err}")
        if "Traceback" in err or "bug in drupe" in err:
            self.wrong.append(f"{argv}: {err}")
        return subprocess.CompletedProcess(argv, process.returncode, out, err)

    def expect(self, code: int, out: str, *argv: str) -> None:
        """It ends with `code` and prints `out`; or fails, saying so; or its workload was killed while crun made it."""
        done = self.drupe(*argv)
        if done.returncode == KILLED_CLIENT:
            return
        said = done.stderr.startswith("drupe: ") or "\ndrupe: " in done.stderr
        right = (done.returncode, done.stdout) in ((code, out), (137, ""))
        if not right and not (said and done.returncode in OWN_FAILURES):
            self.wrong.append(f"{argv}: {done.returncode} {done.stdout!r} {done.stderr!r}")


def children(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def victims(soak: Soak) -> dict[str, list[int]]:
    keeper = soak.daemon.keeper_pid
    with soak.lock:
        clients = list(soak.clients)
    server = serving(soak.daemon)
    return {
        "daemon": [server],
        "keeper": [keeper],
        "helper": [pid for pid in children(keeper) if is_runtime(pid)],
        "warm": children(server),
        "client": clients,
    }


def is_runtime(pid: int) -> bool:
    """Whether it is crun at work, or an init that it has just made; its name is that of a sealed copy."""
    with suppress(OSError):
        return b"--cgroup-manager" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def serving(daemon: Daemon) -> int:
    """The daemon's pid, whoever started it."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                command = (entry / "cmdline").read_bytes()
                whose = command + (entry / "environ").read_bytes()
                if b"\0drupe\0" in command and b"\0serve" in command and str(daemon.run).encode() in whose:
                    return int(entry.name)
    return 0
