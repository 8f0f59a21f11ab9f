"""The probe of the gVisor kind: a sandbox that really runs a program, and a sentry that answers as it is asked here."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from drupe.errors import DrupeError
from drupe.sandboxers.gvisor.command import INSTALL, RunscCommand
from drupe.sandboxers.gvisor.records import ROOT_ID, PodRecord
from drupe.sandboxers.gvisor.sentry import Sentry
from drupe.sandboxers.kept.words import last_message
from drupe.services.probes_kernel import host_config, scratch
from drupe.services.probing import DEADLINE_S, Problem, program, run


def runsc() -> str:
    """Run a program that waits for its input to end, and ask the sentry about it. Answers the version and platform."""
    command = RunscCommand(Path(_program()))
    began = time.monotonic()
    with scratch() as directory:
        pod = _pod(directory)
        try:
            _start(command, pod, directory)
            answered = asyncio.run(Sentry(pod.socket).processes(ROOT_ID))
        except DrupeError as error:
            raise Problem(f"a sandbox runs and its sentry does not answer: {error}", INSTALL) from None
        finally:
            _kill(directory / "pid")
    if [process["cmd"] for process in answered] != ["sleep"]:
        raise Problem(f"the sentry lists other processes than the one that runs: {answered}", INSTALL)
    version = run([str(command.program), "--version"]).stdout.splitlines()[0]
    return f"{version}, platform {pod.platform}, {(time.monotonic() - began) * 1000:.0f} ms for a sandbox"


def _program() -> str:
    try:
        return program("runsc", package="runsc")
    except Problem as problem:
        raise Problem(problem.cause, INSTALL) from None


def _pod(directory: Path) -> PodRecord:
    pod = PodRecord(
        id="doctor",
        dir=str(directory),
        cgroup="",
        state=str(directory / "state"),
        sole=True,
        network="none",
        platform="systrap",
    )
    pod.logs.mkdir()
    Path(pod.state).mkdir()
    return pod


def _start(command: RunscCommand, pod: PodRecord, directory: Path) -> None:
    (directory / "rootfs").mkdir()
    (directory / "config.json").write_text(json.dumps(host_config("doctor", ["/usr/bin/sleep", "60"], {})))
    done = run(command.first(pod, directory), deadline_s=DEADLINE_S, quiet=True)
    if done.code != 0:
        log = directory / "create.log"
        said = last_message(log.read_text(errors="replace")) if log.exists() else f"exit code {done.code}"
        raise Problem(said, INSTALL)


def _kill(pidfile: Path) -> None:
    """The sentry; its gofer ends with it."""
    with suppress(OSError, ValueError):
        os.kill(int(pidfile.read_text()), signal.SIGKILL)
