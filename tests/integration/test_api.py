"""The API against a real daemon, started on demand by the library itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from framework.daemon import make_netns
from framework.images import copy_store, make_busybox
from framework.leaks import wait_until
from framework.probes import needs_keeper, needs_program

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    needs_keeper()
    needs_program("crun", "busybox", "nsenter")
    return make_busybox(tmp_path_factory.mktemp("store"))


def run_program(code: str, directory: Path, store: Path) -> str:
    """Run Python `code` in a network namespace with the runtime's directories below `directory`; its output."""
    copy_store(store, directory / "root")
    netns = make_netns()
    places = {"DRUPE_ROOT": str(directory / "root"), "DRUPE_RUN": str(directory / "run")}
    try:
        done = subprocess.run(
            ["nsenter", f"--net=/proc/{os.getpid()}/fd/{netns}", sys.executable, "-c", textwrap.dedent(code)],
            env=os.environ | places, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    finally:
        os.close(netns)
        end_daemon(directory / "run")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def end_daemon(run: Path) -> None:
    """End the daemon (whose pid the program left in `daemon.pid`) and its keeper."""
    for name in ("daemon.pid", "keeper.pid"):
        if not (run / name).exists():
            continue
        pid = int((run / name).read_text())
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda pid=pid: not Path(f"/proc/{pid}").exists(), what=f"{name} has ended")  # type: ignore[misc]


PREPARE = """
import os, time
from pathlib import Path
import drupe
def note(runtime):
    info = runtime.system.info()
    Path(os.environ["DRUPE_RUN"], "daemon.pid").write_text(str(info.pid))
    return info
"""


def test_a_sandbox_without_a_daemon_running(tmp_path: Path, store: Path) -> None:
    """Five lines, no preparation: the daemon comes up by itself and lives on in a session of its own."""
    out = run_program(
        PREPARE
        + """
with drupe.Runtime() as runtime:
    info = note(runtime)
    assert os.getsid(info.pid) != os.getsid(0)
with drupe.Sandbox("busybox", network=drupe.Network.none()) as sb:
    print(sb.run(["echo", "hello"], check=True).text, end="")
with drupe.Runtime() as runtime:
    assert runtime.system.info().pid == info.pid and runtime.pods.list() == []
""",
        tmp_path,
        store,
    )
    assert out == "hello\n"


def test_interrupting_a_start_leaves_no_pod(tmp_path: Path, store: Path) -> None:
    """KeyboardInterrupt at many moments of `with Sandbox(...)`: nothing is left."""
    run_program(
        PREPARE
        + """
import signal
signal.signal(signal.SIGALRM, signal.default_int_handler)
with drupe.Runtime() as runtime:
    note(runtime)
    interrupted = 0
    for step in range(12):
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.0005 + 0.004 * step)
            with runtime.sandbox("busybox", network=drupe.Network.none()) as sb:
                time.sleep(0.2)
        except KeyboardInterrupt:
            interrupted += 1
    deadline = time.monotonic() + 5
    while runtime.pods.list() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert runtime.pods.list() == [], runtime.pods.list()
    assert interrupted == 12, interrupted
""",
        tmp_path,
        store,
    )


def test_the_daemon_dies_and_the_sandbox_goes_on(tmp_path: Path, store: Path) -> None:
    """kill -9 of the daemon: a call in flight says Unavailable, the next one finds a new daemon and the same pod."""
    run_program(
        PREPARE
        + """
import signal
with drupe.Runtime() as runtime:
    first = note(runtime).pid
    with runtime.sandbox("busybox", network=drupe.Network.none()) as sb:
        sb.files.write("/kept", "x")
        process = sb.popen(["sh", "-c", "echo up; exec sleep 1000"])
        assert process.stdout.readline() == b"up\\n"
        os.kill(first, signal.SIGKILL)
        try:
            process.wait(timeout=10)
        except drupe.Unavailable as error:
            assert error.may_have_run
        else:
            raise AssertionError("the call survived its daemon")
        process.close()
        again = drupe.Runtime()
        assert note(again).pid != first
        with drupe.Sandbox.connect(sb.id, runtime=again) as found:
            assert found.files.read_text("/kept") == "x"
            assert process.pid in [p.pid for p in found.processes()]
            assert found.run(["echo", "alive"]).text == "alive\\n"
    assert again.pods.list() == []
""",
        tmp_path,
        store,
    )


def test_run_is_as_quick_as_it_should_be(tmp_path: Path, store: Path) -> None:
    """A call's way through library, socket and daemon costs little beside the work: info() under 2 ms, n = 200."""
    out = run_program(
        PREPARE
        + """
with drupe.Runtime() as runtime:
    note(runtime)
    samples = []
    for _ in range(200):
        began = time.perf_counter()
        runtime.networks.list()
        samples.append(time.perf_counter() - began)
    print(sorted(samples)[100] * 1000)
""",
        tmp_path,
        store,
    )
    assert float(out) < 2.0


def test_nothing_starts_without_permission(tmp_path: Path, store: Path) -> None:
    """A plain user gets one clear line at once."""
    (tmp_path / "run").mkdir(mode=0o700)
    code = """
import os, drupe, drupe.api.daemon, drupe.rpc.client
drupe.Sandbox
os.setgid(65534)
os.setuid(65534)
drupe.Sandbox("busybox").start()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"DRUPE_RUN": str(tmp_path / "run/sub")},
        capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "PermissionDenied" in done.stderr.splitlines()[-1], done.stderr
