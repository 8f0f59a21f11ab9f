"""What a set-up is made of: files as they are to be, and checks of what they need. Nothing is written by planning."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
import stat
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

from drupe.errors import InvalidArgument, InvalidState, NotFound, PermissionDenied, from_os_error
from drupe.services.probing import Finding
from drupe.spec.base import Record
from drupe.spec.host import Probe

_MAX_BYTES = 4 << 20
_BEGIN, _END = "# >>> drupe setup", "# <<< drupe setup"
_BLOCK = re.compile(rf"\n?^{_BEGIN}.*?^{_END}\n", re.DOTALL | re.MULTILINE)


class File(Record):
    """One file. old: its content now, None when there is none. content: as it is to be. backup: where `write` put the
    old one."""

    path: str
    content: str
    old: str | None = None
    backup: str = ""

    @property
    def changed(self) -> bool:
        """Whether it is not yet as it is to be."""
        return self.content != self.old

    def diff(self) -> str:
        """The change, as `diff -u` shows it."""
        old = (self.old or "").splitlines(keepends=True)
        lines = difflib.unified_diff(old, self.content.splitlines(keepends=True), self.path, self.path)
        return "".join(lines)


class Setup(Record):
    """The set-up of one tool. version: "2.1.9". restart: what makes it read the files."""

    tool: str
    version: str
    files: list[File]
    checks: list[Probe]
    restart: str


def read(path: Path) -> str | None:
    """A configuration file's text, its line ends as they are; None when there is none. PermissionDenied,
    InvalidArgument."""
    try:
        data = _bytes(path)
    except FileNotFoundError:
        if path.is_symlink():
            raise InvalidArgument(f"{path} is a link to {path.readlink()}, which is not there") from None
        return None
    except OSError as error:
        error.filename = error.filename or str(path)
        raise from_os_error(error) from None
    if len(data) > _MAX_BYTES:
        raise InvalidArgument(f"{path} is longer than {_MAX_BYTES >> 20} MiB")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise InvalidArgument(f"{path} is not UTF-8") from None


def _bytes(path: Path) -> bytes:
    """What is in a file, as far as it is taken. Raises OSError, InvalidArgument."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO is not waited for
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InvalidArgument(f"{path} is no file")
    with os.fdopen(descriptor, "rb") as file:
        return file.read(_MAX_BYTES + 1)


def parse(path: Path, text: str, form: Literal["TOML", "JSON"]) -> Any:
    """What a file says. InvalidArgument says where it is wrong."""
    try:
        return tomllib.loads(text) if form == "TOML" else json.loads(text)
    except ValueError as error:
        raise InvalidArgument(f"{path} is not valid {form}: {error}") from None
    except RecursionError:
        raise InvalidArgument(f"{path} is not valid {form}: too deep") from None


def table(settings: Any, *names: str) -> dict[str, Any]:
    """What is below these names; an empty one where there is none, or something else."""
    for name in names:
        settings = settings.get(name) if isinstance(settings, dict) else None
    return settings if isinstance(settings, dict) else {}


def with_block(text: str, block: str) -> str:
    """The text with our part at its end, instead of the one that an earlier set-up wrote."""
    kept = _BLOCK.sub("", text).rstrip("\n")
    return (f"{kept}\n\n" if kept else "") + f"{_BEGIN}: what stands up to the mark is replaced\n{block}{_END}\n"


def without_block(text: str) -> str:
    """What others wrote."""
    return _BLOCK.sub("", text)


def write(file: File) -> File:
    """Put it in place, whole or not at all, the old one beside it; owner and mode stay. Answers with the backup's path.
    PermissionDenied, ResourceExhausted; InvalidState where somebody has changed it since it was looked at."""
    path = Path(file.path)
    if not file.changed:
        return file
    if read(path) != file.old:
        raise InvalidState(f"{path} has just been changed by somebody else", hint="call it again")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        backup = _keep(path) if file.old is not None else ""
        _replace(path, file.content)
    except PermissionError:
        raise PermissionDenied(f"{path} cannot be written", hint="call it as root") from None
    except OSError as error:
        raise from_os_error(error) from None
    return File(path=file.path, content=file.content, old=file.old, backup=backup)


def _keep(path: Path) -> str:
    """A copy that no later one replaces."""
    stem = f"{path}.{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
    names = (stem if not number else f"{stem}.{number}" for number in range(1000))
    data, mode = path.read_bytes(), path.stat().st_mode & 0o777
    for name in names:
        with contextlib.suppress(FileExistsError):
            with open(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:  # noqa: PTH123
                file.write(data)
            return name
    raise FileExistsError(f"{stem}: there are a thousand of this second")


def _replace(path: Path, content: str) -> None:
    target = path.resolve()  # a link stays one
    old = target.stat() if target.exists() else None
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(descriptor, "w", newline="") as file:
            file.write(content)
            os.fchmod(descriptor, old.st_mode & 0o777 if old else 0o644)
            if old:
                os.fchown(descriptor, old.st_uid, old.st_gid)
            file.flush()
            os.fsync(descriptor)
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def check(name: str, probe: Callable[[], str]) -> Probe:
    """What a probe finds: it answers with a detail, or raises a Finding."""
    try:
        return Probe(name=name, state="ok", cause=probe())
    except Finding as found:
        return Probe(name=name, state=found.state, cause=found.cause, mend=found.mend)


def version_of(text: str, *, tool: str) -> tuple[int, ...]:
    """The first version number in what a program says of itself. NotFound when there is none."""
    found = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
    if found is None:
        raise NotFound(f"{tool} does not say its version", cause=text.strip()[:200])
    return tuple(int(number) for number in found.groups() if number)


def dotted(version: Iterable[int]) -> str:
    return ".".join(map(str, version))
