"""The command lines of runsc, in one place."""

from __future__ import annotations

import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

from drupe.errors import NotFound
from drupe.sandboxers.gvisor.records import ROOT_ID, PodRecord, TaskRecord

CONSOLE = "{console}"  # the keeper puts the console socket's path here
# Ends with the pid of the container's gofer in $1. A container beside the first gets its streams at its start.
_MAKE_AND_START = r"""
pidfile=$1 state=$2 make=$3 start=$4
eval "$make" && eval "$start" || exit
sed -n 's/.*"goferPid":\([0-9]*\).*/\1/p' "$state" >"$pidfile"
"""
# runsc takes a network namespace for the host's when this file is there; since Linux 6.17 it is there in all of them.
ROOT_ONLY = "/proc/sys/net/core/rmem_default"
_VEIL = 'mount -t tmpfs -o size=4k,mode=555 veil /proc/sys/net && exec "$@"'
_ENTER = 'echo $$ >"$1" || exit; shift; exec "$@"'


def find_runsc(name: str = "runsc") -> Path:
    """The program, by name or path. NotFound says how to install it."""
    found = shutil.which(name)
    if found is None:
        raise NotFound(f"gVisor's program {name!r} is not installed", hint=INSTALL)
    return Path(found)


INSTALL = "run scripts/setup.sh, or apt-get install -t bookworm-backports runsc"


@dataclass(frozen=True, slots=True)
class RunscCommand:
    """Builds argv. program: runsc."""

    program: Path

    def base(self, pod: PodRecord, log: Path) -> list[str]:
        """What all commands about one sandbox share. log: where this call says what went wrong."""
        argv = [str(self.program), "--root", pod.state, "--log", str(log), "--log-format", "json"]
        argv += ["--platform", pod.platform, "--network", pod.network]
        # The daemon sets limits and moves processes itself; files are the host's, so that others see what is written.
        argv += ["--ignore-cgroups", "--overlay2=none", "--file-access=shared"]
        argv += ["--debug-log", f"{pod.logs}/%COMMAND%.log", "--panic-log", f"{pod.logs}/panic.log"]
        argv += ["--debug"] if pod.debug else []
        argv += ["--oci-seccomp"] if pod.seccomp else []
        return argv

    def first(self, pod: PodRecord, bundle: Path, *, tty: bool = False, image: Path | None = None) -> list[str]:
        """Make the sandbox and run its first container, or have it go on from a checkpoint; the sentry's pid goes to
        ``bundle/pid``."""
        verb = ["run", "--detach"] if image is None else ["restore", "--detach", "--image-path", str(image)]
        argv = [*self.base(pod, bundle / "create.log"), *verb, "--bundle", str(bundle)]
        argv += ["--pid-file", str(bundle / "pid")]
        argv += ["--console-socket", CONSOLE] if tty else []
        return [*argv, ROOT_ID]

    def add(self, pod: PodRecord, task: TaskRecord, *, image: Path | None = None) -> list[str]:
        """Run one more container in the sandbox; the pid of its gofer goes to ``bundle/pid``."""
        bundle = Path(task.bundle)
        base = self.base(pod, bundle / "create.log")
        create = [*base, "create", "--bundle", str(bundle)]
        create += ["--console-socket", CONSOLE] if task.tty else []
        start = [*base, "start"] if image is None else [*base, "restore", "--detach", "--image-path", str(image)]
        state = f"{pod.state}/{task.guest}_sandbox:{ROOT_ID}.state"
        make = shlex.join([*create, task.guest])
        return ["/bin/sh", "-c", _MAKE_AND_START, "sh", f"{bundle}/pid", state, make, shlex.join([*start, task.guest])]

    def exec(self, pod: PodRecord, guest: str, base: Path) -> list[str]:
        """Start a process with a terminal. base: path without suffix; base.json is the process; base.pid (of the client
        on the host), base.inner (in the sandbox) and base.log are written."""
        argv = [*self.base(pod, base.with_suffix(".log")), "exec", "--detach", "--console-socket", CONSOLE]
        argv += ["--process", str(base.with_suffix(".json")), "--pid-file", str(base.with_suffix(".pid"))]
        return [*argv, "--internal-pid-file", str(base.with_suffix(".inner")), guest]

    def checkpoint(self, pod: PodRecord, image: Path, log: Path) -> list[str]:
        """Write the state of all containers; they go on."""
        argv = [*self.base(pod, log), "checkpoint", "--leave-running", "--image-path", str(image)]
        return [*argv, ROOT_ID]


def entering(procs_file: str, argv: list[str]) -> list[str]:
    """argv in a cgroup, given its cgroup.procs."""
    return ["/bin/sh", "-c", _ENTER, "sh", procs_file, *argv]


def scored(score: int, argv: list[str]) -> list[str]:
    """argv, and all that it starts, with this preference for the out-of-memory killer."""
    return ["/bin/sh", "-c", 'echo "$1" >/proc/self/oom_score_adj || exit; shift; exec "$@"', "sh", str(score), *argv]


def veiled(argv: list[str]) -> list[str]:
    """argv in a mount namespace of its own in which `ROOT_ONLY` is not to be seen."""
    return ["unshare", "--mount", "--propagation", "slave", "/bin/sh", "-c", _VEIL, "sh", *argv]
