"""Random kills: clients of every sort at work while daemon, keeper, warm process, OCI runtime and clients are killed.

`DRUPE_SOAK_S` is how long (a few seconds by default), `DRUPE_SOAK_SEED` repeats a course of events as far as chance
lets. What must hold: a command tells the right exit code, or fails as drupe's own failure; pods that nobody ends go
on without missing a line; at the end nothing is left.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from framework.daemon import CALL_TIMEOUT_S, COMMAND, Daemon
from framework.leaks import describe_process, wait_until
from framework.residue import is_alive, residue

pytestmark = [pytest.mark.root, pytest.mark.slow]

SECONDS = float(os.environ.get("DRUPE_SOAK_S", "8"))
SEED = int(os.environ.get("DRUPE_SOAK_SEED", "0")) or random.randrange(1, 1 << 30)
WORKERS = 3
SLOW_S = 5.0
OWN_FAILURES = (125, 124, 1)  # drupe's, of a verb that passes codes on; 1: of one that does not
KILLED_CLIENT = -signal.SIGKILL
TICKS = "trap 'exit 7' TERM; i=0; while :; do echo $i; i=$((i+1)); sleep 0.1; done"


class Soak:
    """The bystanders, the clients and the killer. `wrong` collects what must not happen."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.ends_at = time.monotonic() + SECONDS
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
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
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


# -- what clients do ------------------------------------------------------------------------------------------------


def short_run(soak: Soak, name: str, rng: random.Random) -> None:
    code = rng.randrange(2, 100)
    network = rng.choice(["none", "none", "bridge"])
    script = f"echo {name}; exit {code}"
    soak.expect(code, f"{name}\n", "run", "--rm", "--network", network, "busybox", "sh", "-c", script)


def exec_in_bystander(soak: Soak, name: str, rng: random.Random) -> None:
    code = rng.randrange(2, 100)
    soak.expect(code, f"{name}\n", "exec", f"bystander{rng.randrange(2)}", "sh", "-c", f"echo {name}; exit {code}")


def whole_life(soak: Soak, name: str, rng: random.Random) -> None:
    verbs = [("pause", name), ("resume", name), ("restart", "-t", "0", name), ("stop", "-t", "0", name),
             ("start", name), ("update", "--memory", "32m", name), ("kill", name), ("inspect", name)]  # fmt: skip
    soak.drupe("run", "-d", "--name", name, "--network", rng.choice(["none", "bridge"]), "busybox", "sleep", "1000")
    for verb in rng.sample(verbs, 3):
        soak.drupe(*verb)
    soak.drupe("rm", "-f", name)


def looks(soak: Soak, name: str, rng: random.Random) -> None:
    verbs = [("ps", "-a"), ("logs", "--tail", "3", "bystander0"), ("stats", "--no-stream"),
             ("cp", "bystander0:/etc/hostname", "-"), ("events", "--since", "1s", "--no-follow")]  # fmt: skip
    soak.drupe(*rng.choice(verbs))


WORK: list[Callable[[Soak, str, random.Random], None]] = [short_run, short_run, exec_in_bystander, whole_life, looks]


def worker(soak: Soak, number: int) -> None:
    rng = random.Random(SEED + number)
    count = 0
    while not soak.over():
        count += 1
        rng.choice(WORK)(soak, f"w{number}-{count}", rng)


# -- the killer -----------------------------------------------------------------------------------------------------


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
                if b"\0serve" in command and str(daemon.run).encode() in command + (entry / "environ").read_bytes():
                    return int(entry.name)
    return 0


def killer(soak: Soak) -> None:
    """One at a time, and daemon and keeper only while the other is well: each holds what the other would lose."""
    rng = random.Random(SEED)
    while not soak.over():
        time.sleep(rng.uniform(0.05, 0.6))
        kind = rng.choice(["daemon", "keeper", "helper", "helper", "warm", "client", "client"])
        for pid in filter(None, victims(soak)[kind][:1]):
            with suppress(ProcessLookupError):
                what = describe_process(pid)
                os.kill(pid, signal.SIGKILL)
                soak.killed.append(f"{time.strftime('%X')} {kind} {what}")
        if kind in ("daemon", "keeper"):
            soak.wait_well()


# -- the test -------------------------------------------------------------------------------------------------------


def test_random_kills(fresh_daemon: Daemon) -> None:
    daemon = fresh_daemon
    bystanders = [daemon.run_pod("sh", "-c", TICKS, name=f"bystander{n}") for n in range(2)]
    soak = Soak(daemon)
    print(f"seed {SEED}")
    threads = [threading.Thread(target=worker, args=(soak, n)) for n in range(WORKERS)]
    threads.append(threading.Thread(target=killer, args=(soak,)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(soak.done, *soak.killed, sep="\n")
    try:
        assert not soak.wrong, "\n".join(soak.wrong)
        print(soak.drupe("info").stdout)
        for pod in bystanders:
            assert is_alive(pod.containers[0].pid), soak.drupe("ps", "-a", "--json").stdout
            check_end(soak, pod.containers[0].name)
    finally:
        removed = soak.drupe("rm", "-f", "--all")
        left = residue(daemon)
        soak.drupe("system", "shutdown")
    assert not removed.stderr and not left, removed.stderr


def check_end(soak: Soak, name: str) -> None:
    """Not a line is missing, none came twice, and its end is heard of."""
    ticks = [int(line) for line in soak.drupe("logs", name).stdout.split()]
    assert ticks == list(range(len(ticks))) and ticks, ticks
    assert soak.drupe("stop", name).returncode == 0
    assert soak.drupe("wait", name).stdout == "7\n"
