"""The programs that the fake can act. A name means the same as in a real container that has it (most are busybox's)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from drupe.sandboxers.fake.process import FakeProcess

SIGTERM = 15
FOREVER_S = float("inf")


class Exit(Exception):
    """End the program with `code`."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@dataclass(frozen=True, slots=True)
class Program:
    """act: its work, answers the exit code. handles: signal to exit code. busy: it uses a processor while it runs."""

    act: Callable[[FakeProcess, list[str]], Awaitable[int]]
    handles: Mapping[int, int] = field(default_factory=dict)
    ignores: frozenset[int] = frozenset()
    busy: bool = False


async def _true(_process: FakeProcess, _args: list[str]) -> int:
    return 0


async def _false(_process: FakeProcess, _args: list[str]) -> int:
    return 1


async def _exit(_process: FakeProcess, args: list[str]) -> int:
    raise Exit(int(args[0]))


async def _echo(process: FakeProcess, args: list[str]) -> int:
    await process.print(" ".join(args) + "\n")
    return 0


async def _complain(process: FakeProcess, args: list[str]) -> int:
    await process.print(" ".join(args) + "\n", stream="stderr")
    return 1


async def _seq(process: FakeProcess, args: list[str]) -> int:
    for number in range(1, int(args[0]) + 1):
        await process.print(f"{number}\n")
    return 0


async def _cat(process: FakeProcess, _args: list[str]) -> int:
    while data := await process.streams.read():
        await process.pace()
        await process.streams.write("stdout", data)
    return 0


async def _sleep(process: FakeProcess, args: list[str]) -> int:
    await process.sleep(float(args[0]))
    return 0


async def _for_ever(process: FakeProcess, _args: list[str]) -> int:
    await process.sleep(FOREVER_S)
    return 0


async def _printenv(process: FakeProcess, args: list[str]) -> int:
    if args[0] not in process.env:
        return 1
    await process.print(process.env[args[0]] + "\n")
    return 0


async def _pwd(process: FakeProcess, _args: list[str]) -> int:
    await process.print(process.cwd + "\n")
    return 0


async def _tty(process: FakeProcess, _args: list[str]) -> int:
    await process.print("/dev/pts/0\n" if process.streams.tty else "not a tty\n")
    return 0 if process.streams.tty else 1


async def _size(process: FakeProcess, _args: list[str]) -> int:
    """Rows and columns of the terminal, read when a byte of input says so."""
    await process.streams.read()
    rows, cols = process.size
    await process.print(f"{rows} {cols}\n")
    return 0


PROGRAMS: dict[str, Program] = {
    "true": Program(_true),
    "false": Program(_false),
    "exit": Program(_exit),  # exit N
    "echo": Program(_echo),
    "complain": Program(_complain),  # echo to standard error, then exit 1
    "seq": Program(_seq),  # seq N: 1 to N, a line each
    "cat": Program(_cat),
    "sleep": Program(_sleep),
    "patient": Program(_for_ever, handles={SIGTERM: 0}),  # waits for SIGTERM and then ends well
    "stubborn": Program(_for_ever, ignores=frozenset({SIGTERM})),
    "spin": Program(_for_ever, busy=True),
    "printenv": Program(_printenv),
    "pwd": Program(_pwd),
    "tty": Program(_tty),
    "size": Program(_size),
}
NOT_EXECUTABLE = "plain-file"  # there is a file of this name that may not be executed
