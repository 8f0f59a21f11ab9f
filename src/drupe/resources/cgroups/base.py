"""What cgroup v1 and v2 have in common: reading, writing with the kernel's refusals put in words, walking, removing."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from drupe.errors import (
    DeadlineExceeded,
    DrupeError,
    InvalidArgument,
    InvalidState,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unsupported,
)
from drupe.resources.cgroups.contract import Setting
from drupe.resources.cgroups.limits import Limits, limits_of, limits_to_oci, parse_cpu_list
from drupe.spec import Resources

_PAGE = os.sysconf("SC_PAGE_SIZE")
_GONE = (errno.ENOENT, errno.ENODEV)
_UNLIMITED_BYTES = 2**63 - _PAGE  # what "-1" reads back as in v1 (PAGE_COUNTER_MAX)


def check_path(path: str) -> str:
    """`path` without its leading slash. Raises InvalidArgument unless it is absolute, plain and not the root."""
    parts = path.split("/")
    if parts[0] != "" or len(parts) < 2 or any(part in ("", ".", "..") for part in parts[1:]) or "\0" in path:
        raise InvalidArgument(f"bad cgroup path {path!r}", hint="write it as /drupe/pod/container")
    return path[1:]


def read_text(path: str) -> str:
    """The content of a cgroup file; OSError as it comes. One open, one read: stats live on this."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.read(fd, 65536)
        if len(data) == 65536:
            while chunk := os.read(fd, 65536):
                data += chunk
        return data.decode()
    finally:
        os.close(fd)


def write_text(path: str, value: str) -> None:
    """Write a setting with one write(2), as the kernel wants it; OSError as it comes."""
    fd = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def read_number(path: str, default: int = 0) -> int:
    """A single number; `default` for "max" and for a file this kernel does not have."""
    try:
        return int(read_text(path))
    except (OSError, ValueError):
        return default


def read_pairs(path: str) -> dict[str, int]:
    """A file of "key number" lines; {} if this kernel does not have it."""
    with suppress(OSError):
        return {key: int(value) for key, value in (line.split() for line in read_text(path).splitlines())}
    return {}


def processors(directory: str, quota_of: Callable[[str], Sequence[str]]) -> int:
    """As many as time is allowed for, by the limits of a directory and of those above; 0 for no limit. quota_of: quota
    and period of one; nothing where there is no such file."""
    allowed = []
    while words := quota_of(directory):
        if len(words) == 2 and words[0].isdigit():
            allowed.append(int(words[0]) / int(words[1]))
        directory = directory.rpartition("/")[0]
    return int(max(1.0, min(allowed))) if allowed else 0


def below(directory: str) -> Iterator[str]:
    """`directory` and all cgroups below it, parents after children."""
    with suppress(FileNotFoundError):
        if os.stat(directory).st_nlink != 2:  # noqa: PTH116 - two links: no directory below, and most have none
            with os.scandir(directory) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        yield from below(entry.path)
    yield directory


def backoff(timeout_s: float) -> Iterator[None]:
    """Turns of a retry loop, waiting 0.2 ms to 20 ms between them, until the time is up."""
    end, pause = time.monotonic() + timeout_s, 0.0002
    while True:
        yield
        left = end - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(pause, left))
        pause = min(pause * 2, 0.02)


class BaseCgroups:
    """The shared half of both implementations; a subclass says where files are and what they are called."""

    version: int
    controllers: frozenset[str]

    def settings(self, limits: Limits) -> list[Setting]:
        """The files that hold `limits`, in the order to write them."""
        raise NotImplementedError

    def swap_accounted(self) -> bool:
        raise NotImplementedError

    def file(self, setting: Setting, path: str) -> str:
        raise NotImplementedError

    def main_dir(self, path: str) -> str:
        """The directory whose cgroup.procs lists the processes."""
        raise NotImplementedError

    def controller_dir(self, controller: str, path: str) -> str:
        """The directory of the hierarchy that has this controller."""
        return self.main_dir(path)

    def all_dirs(self, path: str) -> list[str]:
        raise NotImplementedError

    # -- limits

    def check(self, resources: Resources) -> None:
        self._planned(resources)

    def resources_to_oci(self, resources: Resources) -> dict[str, Any]:
        limits, _ = self._planned(resources)
        return limits_to_oci(limits)

    def apply(self, path: str, resources: Resources) -> None:
        _, settings = self._planned(resources)
        self.write_all(path, settings)

    def verify(self, path: str, resources: Resources) -> list[str]:
        _, settings = self._planned(resources)
        self.require(path)
        problems = (self._difference(setting, path) for setting in settings)
        return [problem for problem in problems if problem]

    def write_all(self, path: str, settings: Iterable[Setting]) -> None:
        """Write in order; what is refused is tried again after the rest, since some settings bound each other."""
        self.require(path)
        waiting = list(settings)
        while waiting:
            refused: list[tuple[Setting, OSError]] = []
            for setting in waiting:
                try:
                    write_text(self.file(setting, path), setting.value)
                except OSError as error:
                    refused.append((setting, error))
            if len(refused) == len(waiting):
                raise self._refusal(*refused[0], path)
            waiting = [setting for setting, _ in refused]

    def require(self, path: str) -> None:
        if not self.exists(path):
            raise NotFound(f"no cgroup {path}")

    def exists(self, path: str) -> bool:
        return os.path.isdir(self.main_dir(path))  # noqa: PTH112 - one stat, on the hot path

    def children(self, path: str) -> list[str]:
        found: set[str] = set()
        for directory in self.all_dirs(path):
            with suppress(FileNotFoundError), os.scandir(directory) as entries:
                found.update(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
        return sorted(found)

    # -- processes

    def procs_file(self, path: str, controller: str = "") -> str:
        return f"{self.controller_dir(controller, path) if controller else self.main_dir(path)}/cgroup.procs"

    def attach(self, path: str, pid: int) -> None:
        for directory in self.all_dirs(path):
            try:
                write_text(f"{directory}/cgroup.procs", str(pid))
            except OSError as error:
                if error.errno == errno.ESRCH:
                    raise NotFound(f"no process {pid}") from None
                raise self.explain(error, path) from None

    def pids(self, path: str) -> list[int]:
        found: list[int] = []
        for directory in below(self.main_dir(path)):
            with suppress(OSError):
                found += map(int, read_text(f"{directory}/cgroup.procs").split())
        return found

    def signal_pids(self, path: str, signum: int) -> int:
        """Signal what is in the cgroup now; frozen, so that no pid can be somebody else's by the time of the kill."""
        sent = 0
        for pid in self.pids(path):
            if pid <= 0:  # 0: a process outside our pid namespace
                continue
            with suppress(ProcessLookupError):
                os.kill(pid, signum)
                sent += 1
        return sent

    # -- life

    def delete(self, path: str, *, timeout_s: float = 2.0) -> None:
        remaining = self.all_dirs(path)
        for _ in backoff(timeout_s):
            remaining = [directory for directory in remaining if not self._remove(directory, path)]
            if not remaining:
                return
        raise InvalidState(
            f"cgroup {path} is still in use",
            cause=f"processes {', '.join(map(str, self.pids(path))) or 'ending'} after {timeout_s:g} s",
            hint="kill its processes first",
        )

    def make(self, directory: str, path: str) -> None:
        """One mkdir(2) where the parent is there already, as it is for all pods but the first."""
        try:
            with suppress(FileExistsError):
                try:
                    os.mkdir(directory)  # noqa: PTH102 - strings all the way, on the hot path
                except FileNotFoundError:
                    os.makedirs(directory)  # noqa: PTH103 - as above
        except OSError as error:
            raise self.explain(error, path) from None

    def explain(self, error: OSError, path: str, what: str = "") -> DrupeError:
        """An OSError of the cgroup file system in the project's words."""
        about = f"cgroup {path}: {what}" if what else f"cgroup {path}"
        cause = error.strerror or ""
        if error.errno in _GONE:
            return NotFound(f"no cgroup {path}", cause=cause)
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return PermissionDenied(
                f"{about}: not allowed", cause=cause, hint="run as root with a writable cgroup file system"
            )
        if error.errno in (errno.ENOMEM, errno.ENOSPC, errno.EAGAIN):
            return ResourceExhausted(f"{about}: the kernel has no room for it", cause=cause)
        return InvalidArgument(f"{about}: the kernel refused it", cause=cause)

    def late(self, path: str, what: str, timeout_s: float) -> DeadlineExceeded:
        return DeadlineExceeded(f"cgroup {path} did not {what} within {timeout_s:g} s", may_have_run=True)

    def missing(self, controller: str, name: str) -> Unsupported:
        have = ", ".join(sorted(self.controllers))
        return Unsupported(
            f"{name} cannot be limited: this host's cgroup v{self.version} has no {controller} controller",
            feature=name,
            hint=f"controllers here: {have}",
        )

    # -- private

    def _planned(self, resources: Resources) -> tuple[Limits, list[Setting]]:
        limits = limits_of(resources)
        if limits.swap_bytes is not None and not limits.swap_asked and not self.swap_accounted():
            limits = replace(limits, swap_bytes=None)  # only Docker's default, not the caller's wish
        settings = self.settings(limits)
        for setting in settings:
            if setting.controller not in self.controllers and setting.controller != "cgroup":
                raise self.missing(setting.controller, setting.name)
        return limits, settings

    def _difference(self, setting: Setting, path: str) -> str:
        try:
            found = read_text(self.file(setting, path)).strip()
        except OSError as error:
            return f"{setting.name}: cannot read {setting.file}: {error.strerror}"
        if _same(setting, found):
            return ""
        return f"{setting.name}: asked for {setting.value!r}, {setting.file} says {found!r}"

    def _refusal(self, setting: Setting, error: OSError, path: str) -> DrupeError:
        what = f"{setting.name} = {setting.value}"
        if error.errno == errno.ENOENT:
            return Unsupported(
                f"{setting.name} cannot be limited: this kernel's {setting.controller} controller has no "
                f"{setting.file}",
                feature=setting.name,
            )
        if error.errno == errno.EBUSY and setting.controller == "memory":
            return ResourceExhausted(f"cgroup {path}: more memory is in use than {what}", cause="EBUSY")
        return self.explain(error, path, what)

    def _remove(self, directory: str, path: str) -> bool:
        for each in below(directory):
            try:
                os.rmdir(each)  # noqa: PTH106 - strings all the way, on the hot path
            except OSError as error:
                if error.errno == errno.ENOENT:
                    continue
                if error.errno in (errno.EBUSY, errno.ENOTEMPTY):
                    return False
                raise self.explain(error, path) from None
        return True


def _same(setting: Setting, found: str) -> bool:
    if setting.like == "list":
        return parse_cpu_list(found) == parse_cpu_list(setting.value)
    if setting.like == "line":
        return _line_in(found, setting.value)
    if setting.like == "oom":
        return f"oom_kill_disable {setting.value}" in found.splitlines()
    if setting.like == "raw":
        return found == setting.value or _bytes(setting.value) == found or _line_in(found, setting.value)
    if setting.like == "bytes" and setting.value == "-1":
        return int(found) >= _UNLIMITED_BYTES
    return found == (_bytes(setting.value) if setting.like == "bytes" else setting.value)


def _bytes(value: str) -> str:
    """The kernel counts whole pages."""
    return str(int(value) // _PAGE * _PAGE) if value.isdigit() else value


def _line_in(found: str, wanted: str) -> bool:
    return any(_line_holds(line, wanted) for line in found.splitlines())


def _line_holds(line: str, wanted: str) -> bool:
    """Whether a "8:0 rbps=1 wbps=max" or "8:0 1000" line says all that `wanted` does."""
    have, want = line.split(), wanted.split()
    return have[:1] == want[:1] and set(want[1:]) <= set(have[1:])
