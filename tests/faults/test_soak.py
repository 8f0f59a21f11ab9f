"""Random kills: clients of every sort at work while daemon, keeper, warm process, OCI runtime and clients are killed.

`DRUPE_SOAK_S` is how long (a few seconds by default), `DRUPE_SOAK_SEED` repeats a course of events as far as chance
lets. What must hold: a command tells the right exit code, or fails as drupe's own failure; pods that nobody ends go
on without missing a line; at the end nothing is left.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from framework.daemon import Daemon
from framework.leaks import describe_process
from framework.probes import FULL
from framework.residue import is_alive, residue
from framework.soak import SEED, Soak, seconds, victims

pytestmark = [pytest.mark.root, pytest.mark.slow]

SECONDS = seconds("8" if FULL else "5")
WORKERS = 3
TICKS = "trap 'exit 7' TERM; i=0; while :; do echo $i; i=$((i+1)); sleep 0.1; done"


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
    soak = Soak(daemon, SECONDS)
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
