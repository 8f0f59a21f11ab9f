"""The command lines of the OCI runtime (crun by default, runc as well), in one place: both take the same words."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from drupe.sandboxers.runc.program import RuntimeProgram

CONSOLE = "{console}"  # the keeper puts the console socket's path here


@dataclass(frozen=True, slots=True)
class RuntimeCommand:
    """Builds argv for one runtime. root: where the runtime keeps its own state."""

    program: RuntimeProgram
    root: Path

    def _base(self, log: Path | None = None, *, in_cgroup: bool = False) -> list[str]:
        argv = [self.program.executable(), "--root", str(self.root)]
        if self.program.name == "crun":
            argv.append(f"--cgroup-manager={'disabled' if in_cgroup else 'cgroupfs'}")
        if log is not None:
            argv += ["--log", str(log), "--log-format", "json"]
        return argv

    def create(self, task_id: str, bundle: Path, *, tty: bool, in_cgroup: bool = False) -> list[str]:
        """in_cgroup: it is started in the container's cgroup, and leaves cgroups alone (crun only)."""
        argv = [*self._base(bundle / "create.log", in_cgroup=in_cgroup), "create", "--bundle", str(bundle)]
        argv += ["--pid-file", str(bundle / "pid")]
        if tty:
            argv += ["--console-socket", CONSOLE]
        return [*argv, task_id]

    def exec(self, task_id: str, base: Path, *, tty: bool) -> list[str]:
        """base: path without suffix; base.json is the process, base.pid and base.log are written."""
        argv = [*self._base(base.with_suffix(".log")), "exec", "--detach"]
        argv += ["--process", str(base.with_suffix(".json")), "--pid-file", str(base.with_suffix(".pid"))]
        if tty:
            argv += ["--console-socket", CONSOLE]
        return [*argv, task_id]

    def start(self, task_id: str) -> list[str]:
        return [*self._base(), "start", task_id]

    def delete(self, task_id: str) -> list[str]:
        return [*self._base(), "delete", "--force", task_id]

    def checkpoint(
        self, task_id: str, images: Path, work: Path, *, criu: Sequence[str], words: Sequence[str]
    ) -> list[str]:
        """runc only: its containers go on. criu: flags by which it is found. words: flags of the verb."""
        where = ["--leave-running", "--image-path", str(images), "--work-path", str(work)]
        return [*self._base(), *criu, "checkpoint", *where, *words, task_id]

    def restore(self, task_id: str, bundle: Path, images: Path, *, criu: Sequence[str]) -> list[str]:
        """runc only: `create` and `start` in one."""
        where = ["--bundle", str(bundle), "--image-path", str(images), "--work-path", str(images)]
        argv = [*self._base(bundle / "create.log"), *criu, "restore", "--detach", "--no-subreaper", *where]
        return [*argv, "--pid-file", str(bundle / "pid"), task_id]

    def state(self, task_id: str) -> list[str]:
        return [*self._base(), "state", task_id]

    def makes(self, task_ids: Set[str], argv: list[bytes]) -> bool:
        """Whether a process's arguments are those of `create` for one of the tasks, or of the init just made."""
        return b"create" in argv and str(self.root).encode() in argv and argv[-1].decode(errors="replace") in task_ids
