"""A process that does what we say, by ptrace(2): what is left to whoever has taken it over."""

from __future__ import annotations

import ctypes
import os
import signal
import struct
from pathlib import Path
from types import TracebackType

_LIBC = ctypes.CDLL(None, use_errno=True)
_ATTACH, _DETACH, _STEP, _GETREGS, _SETREGS = 16, 17, 9, 12, 13
_NAMES = (
    *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi"),
    *("orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs"),
)
_SYSCALL = b"\x0f\x05"


class Killed(Exception):
    """The call ended the process: by this signal."""


class Captive:
    """The process stands still meanwhile; its own registers come back at the end. Root only."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def __enter__(self) -> Captive:
        self._ptrace(_ATTACH)
        os.waitpid(self.pid, 0x40000000)
        self._saved = self._registers()
        self._memory = os.open(f"/proc/{self.pid}/mem", os.O_RDWR)
        self._at = self._find()
        self._scratch = (self._saved["rsp"] - 65536) & ~4095
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._memory)
        if kind is not Killed:
            self._set(self._saved)
            self._ptrace(_DETACH)

    def call(self, number: int, *arguments: int | bytes) -> int:
        """What the system call returns; bytes are passed by their address. Killed: it was its last."""
        at, words = self._scratch, []
        for argument in arguments:
            if isinstance(argument, bytes):
                os.pwrite(self._memory, argument, at)
                words.append(at)
                at += (len(argument) + 15) & ~15
            else:
                words.append(argument)
        words += [0] * (6 - len(words))
        changed = dict(zip(("rdi", "rsi", "rdx", "r10", "r8", "r9"), words, strict=True))
        self._set(self._saved | changed | {"rax": number, "rip": self._at, "orig_rax": 2**64 - 1})
        self._ptrace(_STEP)
        _, status = os.waitpid(self.pid, 0x40000000)
        if not os.WIFSTOPPED(status):
            raise Killed(signal.Signals(os.WTERMSIG(status)).name)
        return struct.unpack("q", struct.pack("Q", self._registers()["rax"]))[0]

    def _find(self) -> int:
        """An instruction of its own that calls the host."""
        with Path(f"/proc/{self.pid}/maps").open() as maps:
            for line in maps:
                span, protection, *_ = line.split()
                start, end = (int(word, 16) for word in span.split("-"))
                if "x" in protection and start < 2**63:
                    found = os.pread(self._memory, end - start, start).find(_SYSCALL)
                    if found >= 0:
                        return start + found
        raise AssertionError("it makes no system call")

    def _ptrace(self, request: int, data: object = None) -> None:
        pointer = None if data is None else ctypes.byref(data)  # type: ignore[arg-type]
        if _LIBC.ptrace(request, self.pid, None, pointer) < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def _registers(self) -> dict[str, int]:
        raw = (ctypes.c_uint64 * len(_NAMES))()
        self._ptrace(_GETREGS, raw)
        return dict(zip(_NAMES, raw, strict=True))

    def _set(self, registers: dict[str, int]) -> None:
        self._ptrace(_SETREGS, (ctypes.c_uint64 * len(_NAMES))(*(registers[name] % 2**64 for name in _NAMES)))
