"""Real machines whose agents lie: who waits is told what is wrong, in time, and nothing but that pod is harmed."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from framework import machines
from framework.daemon import COMMAND, Daemon
from framework.leaks import wait_until
from framework.machines import fails, pod_of
from framework.probes import only_full
from framework.residue import names, rss_kib

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]
FAILS_WITHIN_S = 90.0  # it takes about two seconds; machines of tests are busy
GROWS_KIB = 96 << 10  # a frame is 4 MiB at most, and there are few at a time
ANSWERS_WITHIN_S = 30.0
LOGGED_BYTES = 4 << 20  # more than is honest


@pytest.fixture(scope="module")
def with_other(lying_daemon: Daemon) -> Iterator[Daemon]:
    """Another pod lives beside those of the tests, and stays unharmed."""
    run(lying_daemon, "other")
    yield lying_daemon
    lying_daemon.delete_pods()


@pytest.fixture
def daemon(with_other: Daemon) -> Iterator[Daemon]:
    before = rss_kib(with_other.pid)
    yield with_other
    assert with_other.command("exec", "other", "echo", "unharmed", check=True).stdout == "unharmed\n"
    for name in with_other.command("pod", "ls", "-q", "--format", "{{.Name}}", check=True).stdout.split():
        if name != "other":
            with_other.command("pod", "rm", "-f", name, check=True)
    wait_until(lambda: len(names(with_other.run / "pods")) == 1, what="only the other is left")
    assert rss_kib(with_other.pid) - before < GROWS_KIB
    assert "Traceback" not in with_other.log.read_text()


def run(
    daemon: Daemon, name: str, *flags: str, program: Sequence[str] = ("sleep", "1000"), check: bool = True
) -> subprocess.CompletedProcess[str]:
    words = ("run", "-d", "--name", name, "--sandbox", "vm", "--network", "none", "--privileged", *flags)
    return daemon.command(*words, "busybox", *program, check=check, timeout_s=machines.BOOTS_WITHIN_S)


def lies(daemon: Daemon, how: str) -> None:
    """From now on. Who asked for that may already be lied to."""
    daemon.command("exec", "one", "sh", "-c", f"echo lie {how} >/proc/sys/kernel/core_pattern")


HANGS, BREAKS = "does not answer", "does not keep to its protocol"
LIES = {
    "wrong-ids": (BREAKS,),
    "ids-to-come": (BREAKS,),
    "ids-of-before": (HANGS,),
    "silent": (HANGS,),
    "rubbish": (BREAKS,),
    "empty": (BREAKS,),
    "garbage": (BREAKS, HANGS),
    "huge": (BREAKS, HANGS),
    "endless": (HANGS,),
    "large": (BREAKS, HANGS),
    "unknown": (BREAKS, HANGS),
}


@only_full("each lie of an agent")
@pytest.mark.parametrize("how", LIES)
def test_a_pod_whose_agent_lies_has_failed(daemon: Daemon, how: str) -> None:
    run(daemon, "one")
    waiting = subprocess.Popen(
        [COMMAND, "exec", "one", "sleep", "999"], env=daemon.environment(), stderr=subprocess.PIPE, text=True
    )
    wait_until(lambda: "sleep 999" in daemon.command("top", "one").stdout, what="it runs", timeout_s=ANSWERS_WITHIN_S)
    lies(daemon, how)
    _, said = waiting.communicate(timeout=FAILS_WITHIN_S)
    assert waiting.returncode and is_clean(said)
    assert any(words in fails(daemon, "one", within_s=FAILS_WITHIN_S) for words in LIES[how])
    for words in (("exec", "one", "true"), ("top", "one"), ("pause", "one")):
        done = daemon.command(*words)
        assert done.returncode and is_clean(done.stderr)


def is_clean(said: str) -> bool:
    return "Traceback" not in said and len(said) < 3000 and all(c.isprintable() or c in "\t\n" for c in said)


@only_full("agents that lie while their pod starts")
@pytest.mark.parametrize("how", ["silent", "wrong-ids", "rubbish", "errors", "endless"])
def test_an_agent_that_lies_from_the_start(daemon: Daemon, how: str) -> None:
    """Up to the pod's setup it is honest, as it knows of nothing; then each answer is a lie."""
    done = run(daemon, "one", "--hostname", f"lie-{how}", check=False)
    assert done.returncode == 125 and done.stderr and is_clean(done.stderr), done.stderr


def test_lies_that_harm_nobody(daemon: Daemon) -> None:
    """Answers after the caller has gone, errors that are long and move terminals, ends of others' containers."""
    run(daemon, "one")
    lies(daemon, "late")
    asking = subprocess.Popen([COMMAND, "exec", "one", "true"], env=daemon.environment(), stderr=subprocess.DEVNULL)
    with pytest.raises(subprocess.TimeoutExpired):
        asking.wait(1.0)
    asking.send_signal(signal.SIGINT)
    asking.wait(ANSWERS_WITHIN_S)
    lies(daemon, "errors")
    done = daemon.command("exec", "one", "true")
    assert done.returncode and "owned" in done.stderr and is_clean(done.stderr), done.stderr
    assert pod_of(daemon, "one")["state"] == "running"


@only_full("an agent that tells ends of containers that are not its own")
def test_ends_of_others(daemon: Daemon) -> None:
    """Told by an agent that has nothing to do with them."""
    run(daemon, "one")
    other = pod_of(daemon, "other")["containers"][0]
    lies(daemon, f"events {other['id']}")
    for _ in range(5):
        assert daemon.command("exec", "one", "echo", "here", check=True).stdout == "here\n"
    assert {pod_of(daemon, name)["state"] for name in ("one", "other")} == {"running"}


def size_of(log: Path) -> int:
    """Of a log and what was rotated away from it."""
    return sum(path.stat().st_size for path in log.parent.glob(f"{log.name}*"))


@only_full("an agent that never ends a process's output")
def test_output_without_an_end(daemon: Daemon) -> None:
    """It is logged within bounds, nobody else waits for it, and the pod goes when it is told to."""
    run(daemon, "one", program=("sh", "-c", "while sleep 0.1; do echo honest; done"))
    log = Path(pod_of(daemon, "one")["containers"][0]["log_path"])
    lies(daemon, "output")
    wait_until(lambda: size_of(log) > LOGGED_BYTES, what="what the agent says is logged", timeout_s=FAILS_WITHIN_S)
    for _ in range(10):
        assert daemon.command("exec", "other", "echo", "served", check=True).stdout == "served\n"
    assert size_of(log) < 64 << 20
    asking = [COMMAND, "exec", "one", "true"]
    subprocess.run(asking, env=daemon.environment(), capture_output=True, timeout=FAILS_WITHIN_S, check=False)
