"""What a finished command left: exit code, output, timing."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from typing import Any, AnyStr, Generic

import msgspec

from drupe.errors import CommandFailed
from drupe.spec.status import ExitStatus


class Timing(msgspec.Struct, frozen=True):
    """Seconds from the call: until the process ran, and until it had ended and its output was complete."""

    started_s: float
    total_s: float


class Result(msgspec.Struct, Generic[AnyStr], frozen=True, kw_only=True):
    """A finished command. stdout, stderr: bytes, or text with `text=True`. truncated: output went over its limit.

    exit_code: the process's own, or 128 + signal; signal 0 means that it ended by itself. reason: "" or, for example,
    "OOMKilled" or "Timeout".
    """

    argv: tuple[str, ...]
    exit_code: int
    stdout: AnyStr
    stderr: AnyStr
    timing: Timing
    signal: int = 0
    reason: str = ""
    truncated: bool = False

    @property
    def returncode(self) -> int:
        """The exit code, under the name that subprocess gives it; 128 + signal, where subprocess has -signal."""
        return self.exit_code

    @property
    def ok(self) -> bool:
        """Whether the exit code is 0."""
        return self.exit_code == 0

    @property
    def text(self) -> str:
        """stdout as text (UTF-8; bytes that are none become U+FFFD)."""
        return _as_text(self.stdout)

    @property
    def stderr_text(self) -> str:
        """stderr as text."""
        return _as_text(self.stderr)

    def check(self) -> Result[AnyStr]:
        """This result; raises CommandFailed when the exit code is not 0."""
        if self.exit_code == 0:
            return self
        how = f"was killed by signal {self.signal}" if self.signal else f"ended with {self.exit_code}"
        lines = self.stderr_text.strip().splitlines()
        raise CommandFailed(
            f"{self.argv[0]} {how}" + (f" ({self.reason})" if self.reason not in ("", "Error") else ""),
            result=self,
            cause=lines[-1] if lines else "",
        )


class Output:
    """Collects one stream of a running command: at most `limit_bytes` are kept, all is shown to `callback`."""

    def __init__(
        self, *, callback: Callable[[Any], object] | None = None, text: bool = False, limit_bytes: int | None = None
    ) -> None:
        self.data = bytearray()
        self.seen_bytes = 0
        self._callback = callback
        self._limit = limit_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace") if text else None

    @property
    def truncated(self) -> bool:
        """Whether more came than was kept."""
        return self.seen_bytes > len(self.data)

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        self.seen_bytes += len(data)
        room = len(data) if self._limit is None else max(0, self._limit - len(self.data))
        self.data += data[:room]
        self._show(data, final=False)

    def finish(self) -> None:
        """No more will come: show what an incomplete character left."""
        self._show(b"", final=True)

    def _show(self, data: bytes, *, final: bool) -> None:
        if self._callback is None:
            return
        piece = data if self._decoder is None else self._decoder.decode(data, final)
        if piece:
            self._callback(piece)


def make_result(
    argv: tuple[str, ...], status: ExitStatus, stdout: Output, stderr: Output, *, timing: Timing, text: bool
) -> Result[Any]:
    """The Result of a command that ended with `status`."""
    out, err = bytes(stdout.data), bytes(stderr.data)
    return Result(
        argv=argv,
        exit_code=status.code,
        stdout=_as_text(out) if text else out,
        stderr=_as_text(err) if text else err,
        timing=timing,
        signal=status.signal,
        reason=status.reason,
        truncated=stdout.truncated or stderr.truncated,
    )


def _as_text(data: str | bytes) -> str:
    return data if isinstance(data, str) else data.decode("utf-8", "replace")
