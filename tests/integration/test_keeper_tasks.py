"""The keeper's tasks: exit codes, logs, terminals, attachments, and what survives the death of daemon and keeper."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from drupe import errors
from drupe.keeper.records import Io, LogFile, Mount
from framework.keeper_site import Pipe, Site, in_site, open_count, read_all
from framework.leaks import wait_until
from framework.probes import FULL, needs_keeper, needs_program

pytestmark = pytest.mark.root
TTY = Io(mode="tty", rows=30, cols=100)


@pytest.fixture(autouse=True)
def needs() -> None:
    needs_keeper()
    needs_program("crun", "busybox")


# ── how tasks end ──


@pytest.mark.parametrize("code", [0, 7, 255])
def test_exit_codes(tmp_path: Path, code: int) -> None:
    async def scenario(here: Site) -> None:
        created = await here.container("t", f"exit {code}")
        record = await here.ended("t")
        assert (record.code, record.signal, record.pid) == (code, 0, created.pid)
        assert not record.unknown and abs(record.at - time.time()) < 10
        written = json.loads(here.exit_file("t").read_text())
        assert (written["task"], written["code"], written["at"]) == ("t", code, record.at)

    in_site(tmp_path, scenario)


def test_signals(tmp_path: Path) -> None:
    async def scenario(here: Site) -> None:
        await here.container("killed", "sleep 60")
        await here.keeper.kill("killed", signal.SIGKILL)
        record = await here.ended("killed")
        assert (record.code, record.signal, record.core) == (137, 9, False)
        with pytest.raises(errors.NotFound, match="has ended"):
            await here.keeper.kill("killed", 9)
        await here.container("trapped", "trap 'exit 3' USR1; echo ready; while :; do sleep 0.05; done")
        wait_until(lambda: here.output("trapped") == "ready\n", what="the trap is set")
        await here.keeper.kill("trapped", signal.SIGUSR1)
        assert (await here.ended("trapped")).code == 3
        await here.plain("p", "exec sleep 60")
        with pytest.raises(errors.InvalidArgument, match="cannot send signal 9999"):
            await here.keeper.kill("p", 9999)

    in_site(tmp_path, scenario)


def test_list_and_forget(tmp_path: Path) -> None:
    async def scenario(here: Site) -> None:
        await here.container("a", "exit 5")
        await here.container("b", "sleep 60")
        await here.ended("a")
        ended, living = await here.keeper.list()
        assert ended.task == "a" and not ended.running and ended.exit is not None and ended.exit.code == 5
        assert living.task == "b" and living.running and living.exit is None
        with pytest.raises(errors.AlreadyExists):
            await here.plain("a", "true")
        with pytest.raises(errors.InvalidState, match="has not ended"):
            await here.keeper.forget("b")
        await here.keeper.forget("a")
        assert [info.task for info in await here.keeper.list()] == ["b"]
        with pytest.raises(errors.NotFound, match='no task "a"'):
            await here.keeper.forget("a")
        assert list(here.keeper.escrow.held) == ["b"]

    in_site(tmp_path, scenario)


def test_exec_into_a_container(tmp_path: Path) -> None:
    async def scenario(here: Site) -> None:
        await here.container("c", "sleep 60")
        process = {"terminal": False, "args": ["sh", "-c", "echo inside; exit 9"], "env": ["PATH=/bin"], "cwd": "/"}
        (tmp_path / "process.json").write_text(json.dumps(process))
        pidfile = tmp_path / "exec.pid"
        words = ["exec", "--detach", "--pid-file", str(pidfile), "--process", str(tmp_path / "process.json"), "c"]
        with Pipe() as pipe:
            await here.keeper.create_task(
                "e",
                here.crun(*words),
                pidfile=pidfile,
                exit_file=here.exit_file("e"),
                io=Io(),
                attach={"stdout": pipe.write_end},
            )
            pipe.shut(pipe.write_end)
            assert (await here.ended("e")).code == 9
            assert await read_all(pipe.read_end) == b"inside\n"

    in_site(tmp_path, scenario)


QUICK = """
import os, sys, time
if (pid := os.fork()) == 0:
    os._exit(int(sys.argv[1]))
open(sys.argv[2], "w").write(str(pid))
time.sleep(0.03)
"""


def test_a_task_that_ends_before_its_runtime(tmp_path: Path) -> None:
    async def scenario(here: Site) -> None:
        for number in range(1, 10):
            pidfile = tmp_path / "pid"
            argv = [sys.executable, "-I", "-S", "-c", QUICK, str(number), str(pidfile)]
            created = await here.keeper.create_task(
                f"t{number}", argv, pidfile=pidfile, exit_file=tmp_path / "exit", io=Io()
            )
            record = await here.ended(f"t{number}")
            assert record.code == number and record.pid == created.pid
            assert here.keeper.escrow.held == {}

    in_site(tmp_path, scenario)


def test_a_descendant_that_holds_the_pipe_does_not_hold_the_exit(tmp_path: Path) -> None:
    async def scenario(here: Site) -> None:
        begun = time.monotonic()
        await here.plain("t", "echo early; (sleep 1.5; echo late) & exit 4")
        record = await here.ended("t")
        assert record.code == 4 and 0.4 < time.monotonic() - begun < 1.2
        wait_until(lambda: here.output("t") == "early\nlate\n", what="the late line is logged too")

    in_site(tmp_path, scenario)


# ── logs ──


def test_nothing_is_lost_at_the_end(tmp_path: Path) -> None:
    async def scenario(here: Site) -> None:
        await here.container("t", "seq 1 200000; echo done >&2")
        await here.ended("t")
        assert here.output("t") == "".join(f"{n}\n" for n in range(1, 200_001))
        assert here.output("t", "stderr") == "done\n"

    in_site(tmp_path, scenario)


def test_json_file_log(tmp_path: Path) -> None:
    async def scenario(here: Site) -> None:
        await here.container("t", "echo one; printf two", log=LogFile(path=str(here.log("t")), format="json-file"))
        await here.ended("t")
        lines = [json.loads(line) for line in here.log("t").read_text().splitlines()]
        assert [(line["log"], line["stream"]) for line in lines] == [("one\n", "stdout"), ("two", "stdout")]

    in_site(tmp_path, scenario)


def test_rotation(tmp_path: Path) -> None:
    async def scenario(here: Site) -> None:
        log = LogFile(path=str(here.log("t")), max_bytes=100_000, max_files=3)
        await here.container("t", "seq 1 20000", log=log)
        await here.ended("t")
        files = [Path(f"{here.log('t')}{suffix}") for suffix in (".2", ".1", "")]
        assert all(0 < path.stat().st_size <= 100_000 for path in files)
        assert not Path(f"{here.log('t')}.3").exists()
        numbers = [int(line.rsplit(" ", 1)[1]) for path in files for line in path.read_text().splitlines()]
        assert numbers == list(range(numbers[0], 20_001))

    in_site(tmp_path, scenario)


def test_outside_rotation(tmp_path: Path) -> None:
    async def scenario(here: Site) -> None:
        await here.plain("t", "echo old; read line; echo new", io=Io(stdin=True))
        wait_until(lambda: here.output("t") == "old\n", what="first line")
        here.log("t").rename(tmp_path / "old.log")
        await here.keeper.reopen_log("t")
        await here.keeper.close_stdin("t")
        await here.ended("t")
        assert here.output("t") == "new\n"

    in_site(tmp_path, scenario)


def test_a_full_disk_loses_lines_and_nothing_else(tmp_path: Path) -> None:
    async def scenario(here: Site) -> None:
        small = here.run_dir / "small"
        small.mkdir()
        await here.keeper.mount([Mount(source="none", target=str(small), fstype="tmpfs", data="size=64k")])
        log = LogFile(path=f"{small}/log")
        await here.plain("t", "seq 1 100000; read line; echo after", io=Io(stdin=True), log=log)
        seen = Path(f"/proc/{here.keeper.pid}/root{small}")
        wait_until(lambda: (seen / "log").stat().st_size > 60_000, what="the disk is full")
        await asyncio.sleep(0.3)
        (info,) = await here.keeper.list()
        assert info.log_dropped > 90_000
        os.truncate(seen / "log", 1000)
        await here.keeper.close_stdin("t")
        record = await here.ended("t")
        assert record.code == 0 and record.log_dropped == info.log_dropped
        note, last = (seen / "log").read_text().splitlines()[-2:]
        assert f"{info.log_dropped} lines of this log were lost: No space left" in note
        assert last.endswith(" after")

    in_site(tmp_path, scenario)


def test_an_unwritable_log_is_an_error(tmp_path: Path) -> None:
    async def scenario(here: Site) -> None:
        with pytest.raises(errors.NotFound, match=r"cannot open log /nonexistent/log"):
            await here.plain("t", "true", log=LogFile(path="/nonexistent/log"))
        assert await here.keeper.list() == []

    in_site(tmp_path, scenario)


# ── attachments ──


def test_a_slow_reader_loses_nothing(tmp_path: Path) -> None:
    """20 MB go through a reader that pauses, and the log has them too."""

    async def scenario(here: Site) -> None:
        with Pipe() as pipe:
            await here.container("t", "yes $(seq 1 300) | head -c 20971520", attach={"stdout": pipe.write_end})
            pipe.shut(pipe.write_end)
            data = await read_all(pipe.read_end, pause_s=0.0005)
        assert len(data) == 20 * 1024 * 1024
        assert (await here.ended("t")).code == 0
        line = b" ".join(b"%d" % n for n in range(1, 301)) + b"\n"
        assert data == (line * (len(data) // len(line) + 1))[: len(data)]
        assert here.output("t").encode() == data + b"\n"

    in_site(tmp_path, scenario)


def test_a_reader_that_stops_slows_the_task_and_may_go(tmp_path: Path) -> None:
    async def scenario(here: Site) -> None:
        with Pipe() as pipe:
            await here.plain(
                "t", "yes $(seq 1 200) | head -c 5000000; echo; echo end", attach={"stdout": pipe.write_end}
            )
            await asyncio.sleep(0.3)
            size = here.log("t").stat().st_size
            await asyncio.sleep(0.3)
            assert here.log("t").stat().st_size == size < 5_000_000, "the task did not wait"
        await here.ended("t")
        output = here.output("t")
        assert output.endswith("\nend\n") and len(output) == 5_000_005

    in_site(tmp_path, scenario)


def test_the_exit_does_not_wait_for_a_slow_reader(tmp_path: Path) -> None:
    async def scenario(here: Site) -> None:
        with Pipe() as pipe:
            created = await here.plain("t", "yes | head -c 100000", attach={"stdout": pipe.write_end})
            pipe.shut(pipe.write_end)
            assert created.attachment is not None
            await here.ended("t", 3)
            await here.keeper.forget("t")
            assert len(await read_all(pipe.read_end)) == 100_000

    in_site(tmp_path, scenario)


def test_detached_comes_after_the_last_byte(tmp_path: Path) -> None:
    async def scenario(here: Site) -> None:
        seen: list[tuple[str, int, str]] = []
        here.keeper.on_detached(lambda *event: seen.append(event))
        out = tmp_path / "out"
        with out.open("wb") as file, Pipe() as pipe:
            created = await here.container("t", "echo to both; echo err >&2", attach={"stdout": file.fileno()})
            number = None
            with contextlib.suppress(errors.NotFound):  # it may have ended by now
                number = await here.keeper.attach("t", {"stdout": pipe.write_end})
            assert created.attachment is not None
            assert await here.keeper.wait_detached(created.attachment) == "exit"
            assert out.read_text() == "to both\n"
            assert ("t", created.attachment, "exit") in seen
            assert number is None or await here.keeper.wait_detached(number) == "exit"
        with pytest.raises(errors.NotFound):
            await here.keeper.wait_detached(created.attachment)

    in_site(tmp_path, scenario)


def test_detach_and_attach_again(tmp_path: Path) -> None:
    async def scenario(here: Site) -> None:
        with Pipe() as first, Pipe() as second, Pipe() as typed:
            await here.container("t", "while read x; do echo got $x; done", io=Io(stdin=True))
            one = await here.keeper.attach("t", {"stdin": typed.read_end, "stdout": first.write_end})
            os.write(typed.write_end, b"1\n")
            assert os.read(first.read_end, 100) == b"got 1\n"
            await here.keeper.detach("t", one)
            assert await here.keeper.wait_detached(one) == "detach"
            two = await here.keeper.attach("t", {"stdin": typed.read_end, "stdout": second.write_end})
            os.write(typed.write_end, b"2\n")
            assert os.read(second.read_end, 100) == b"got 2\n"
            os.set_blocking(first.read_end, False)
            with pytest.raises(BlockingIOError):
                os.read(first.read_end, 1)
            with pytest.raises(errors.NotFound):
                await here.keeper.detach("t", one)
            second.close()
            os.write(typed.write_end, b"3\n")
            wait_until(lambda: here.output("t").endswith("got 3\n"), what="the task goes on without its reader")
            await here.keeper.detach("t", two)
            await here.keeper.close_stdin("t")
            assert (await here.ended("t")).code == 0

    in_site(tmp_path, scenario)


def test_the_end_of_stdin_reaches_the_task(tmp_path: Path) -> None:
    """By `close_stdin` of the attachment; the duplicate in the escrow goes too."""

    async def scenario(here: Site) -> None:
        (tmp_path / "in").write_bytes(b"from a file\n" * 50_000)
        with (tmp_path / "in").open("rb") as file, Pipe() as pipe:
            fds = {"stdin": file.fileno(), "stdout": pipe.write_end}
            await here.container("t", "cat", io=Io(stdin=True), attach=fds, close_stdin=True)
            pipe.shut(pipe.write_end)
            assert await read_all(pipe.read_end) == b"from a file\n" * 50_000
            assert (await here.ended("t")).code == 0

    in_site(tmp_path, scenario)


def test_sockets_can_be_attached_and_stay_blocking(tmp_path: Path) -> None:
    async def scenario(here: Site) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            fds = {"stdin": theirs.fileno(), "stdout": theirs.fileno()}
            await here.plain("t", "cat", io=Io(stdin=True), attach=fds, close_stdin=True)
            ours.sendall(b"x" * 1000)
            ours.settimeout(10)
            assert await asyncio.to_thread(ours.recv, 2000) == b"x" * 1000
            assert os.get_blocking(theirs.fileno())
            ours.shutdown(socket.SHUT_WR)
            assert (await here.ended("t")).code == 0

    in_site(tmp_path, scenario)


def test_much_input_passes_a_slow_task(tmp_path: Path) -> None:
    async def scenario(here: Site) -> None:
        with Pipe() as typed:
            script = "n=0; while head -c 100000 >/dev/null && [ $n -lt 30 ]; do n=$((n+1)); done; cat | wc -c"
            await here.plain("t", script, io=Io(stdin=True), attach={"stdin": typed.read_end}, close_stdin=True)
            typed.shut(typed.read_end)
            data = memoryview(b"x" * 5_000_000)
            while data:
                sent = await asyncio.to_thread(os.write, typed.write_end, data[:65536])
                data = data[sent:]
            typed.close()
            await here.ended("t")
            assert int(here.output("t")) <= 5_000_000 - 30 * 100_000

    in_site(tmp_path, scenario)


# ── terminals ──


def test_terminal(tmp_path: Path) -> None:
    async def scenario(here: Site) -> None:
        with Pipe() as out, Pipe() as typed:
            fds = {"stdin": typed.read_end, "stdout": out.write_end}
            script = "stty size; read x; stty size; echo got $x; [ -t 0 ] && [ -t 2 ] && exit 6"
            await here.container("t", script, io=TTY, attach=fds)
            out.shut(out.write_end)
            wait_until(lambda: "30 100" in here.output("t"), what="first size")
            await here.keeper.resize("t", 40, 120)
            os.write(typed.write_end, b"word\n")
            text = await read_all(out.read_end)
            assert text == b"30 100\r\nword\r\n40 120\r\ngot word\r\n"
            assert (await here.ended("t")).code == 6
            with pytest.raises(errors.NotFound, match="has ended"):
                await here.keeper.attach("t", {"stdin": typed.read_end})
            with pytest.raises(errors.InvalidArgument, match="no descriptor to attach"):
                await here.keeper.attach("t", {})

    in_site(tmp_path, scenario)


def test_a_terminal_below_a_long_directory_name(tmp_path: Path) -> None:
    async def scenario(here: Site) -> None:
        await here.container("t", "stty size", io=TTY)
        await here.ended("t")
        assert here.output("t").strip() == "30 100"

    long = tmp_path / ("d" * 120)
    long.mkdir()
    in_site(long, scenario)


def test_end_of_input_on_a_terminal(tmp_path: Path) -> None:
    async def scenario(here: Site) -> None:
        await here.container("t", "cat; echo over", io=TTY)
        await here.keeper.close_stdin("t")
        assert (await here.ended("t")).code == 0
        assert "over" in here.output("t")

    in_site(tmp_path, scenario)


def test_a_terminal_without_users_for_a_while(tmp_path: Path) -> None:
    """All descriptors of the terminal are closed and one is opened again: its output still comes."""

    async def scenario(here: Site) -> None:
        script = "t=$(readlink /proc/self/fd/0); exec <&- >&- 2>&-; sleep 0.5; echo back > /dev/pts/0"
        await here.container("t", script, io=TTY)
        await here.ended("t")
        assert here.output("t").strip().endswith("back")

    in_site(tmp_path, scenario)


def test_resize_needs_a_terminal(tmp_path: Path) -> None:
    async def scenario(here: Site) -> None:
        await here.plain("t", "exec sleep 60")
        with pytest.raises(errors.InvalidState, match="has no terminal"):
            await here.keeper.resize("t", 1, 1)

    in_site(tmp_path, scenario)


def test_a_clients_terminal_is_not_changed(tmp_path: Path) -> None:
    async def scenario(here: Site) -> None:
        master, slave = pty.openpty()
        try:
            await here.plain("t", "echo to the terminal", attach={"stdout": slave})
            await here.ended("t")
            assert os.get_blocking(slave)
            assert b"to the terminal" in os.read(master, 1000)
        finally:
            os.close(master)
            os.close(slave)

    in_site(tmp_path, scenario)


# ── other io modes ──


def test_descriptors_given_and_null(tmp_path: Path) -> None:
    async def scenario(here: Site) -> None:
        with Pipe() as pipe:
            await here.container(
                "t", "echo direct; exit 3", io=Io(mode="fds"), fds={"stdout": pipe.write_end}, log=None
            )
            pipe.shut(pipe.write_end)
            assert await read_all(pipe.read_end) == b"direct\n"
            assert (await here.ended("t")).code == 3
            assert list(here.keeper.escrow.held.get("t", "")) == []
        await here.container("n", "echo nowhere; exit 2", io=Io(mode="null"), log=None)
        assert (await here.ended("n")).code == 2

    in_site(tmp_path, scenario)


# ── deaths ──

DAEMON = """
import asyncio, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from framework.keeper_site import Site
from drupe.keeper.records import Io

async def main():
    here = Site(Path(sys.argv[1]))
    await here.start()
    await here.container("t", "while read x; do echo got $x; done; seq 1 5; exit 8", io=Io(stdin=True))
    await here.container("u", "echo gone before; exit 9")
    os.kill(os.getpid(), 9)

asyncio.run(main())
"""


def test_a_daemon_may_die(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", DAEMON, str(tmp_path), str(Path(__file__).parents[1])], check=False)
    assert done.returncode == -9

    async def scenario(here: Site) -> None:
        here._containers += ["t", "u"]
        wait_until(here.exit_file("u").exists, what="the exit is written without a daemon")
        by_name = {info.task: info for info in await here.keeper.list()}
        assert by_name["t"].running
        assert by_name["u"].exit is not None and by_name["u"].exit.code == 9
        await here.keeper.take_escrow("t")
        assert sorted(here.keeper.escrow.held["t"].fds) == ["pidfd", "stderr", "stdin", "stdout"]
        os.write(here.keeper.escrow.held["t"].fds["stdin"], b"word\n")
        wait_until(lambda: here.output("t") == "got word\n", what="the output goes on")
        await here.keeper.close_stdin("t")
        assert (await here.ended("t")).code == 8
        assert here.output("t") == "got word\n1\n2\n3\n4\n5\n"

    in_site(tmp_path, scenario)


def test_a_keeper_may_die(tmp_path: Path) -> None:
    """kill -9: no workload notices, mounts and namespaces stay, a new keeper goes on and learns the exit codes."""

    async def scenario(here: Site) -> None:
        lost = asyncio.Event()
        here.keeper.on_lost(lost.set)
        ns = here.run_dir / "ns"
        await here.keeper.create_namespaces(ns, ["net"], hostname=None)
        script = "trap '' HUP; while read x; do echo got $x; done; exit 8"
        await here.container("pipes", script, io=Io(stdin=True))
        await here.container("tty", "read x; exit 5", io=TTY)
        await here.container("busy", "while sleep 0.05; do echo tick || exit 99; done")
        old_pid = here.keeper.pid
        os.kill(old_pid, signal.SIGKILL)
        await asyncio.wait_for(lost.wait(), 5)
        await asyncio.sleep(0.3)
        await here.start(previous=here.keeper)
        assert here.keeper.pid != old_pid
        assert {info.task: info.running for info in await here.keeper.list()} == dict.fromkeys(
            ("pipes", "tty", "busy"), True
        )
        await here.keeper.run(["nsenter", f"--net={ns / 'net'}", "true"], check=True)
        os.write(here.keeper.escrow.held["pipes"].fds["stdin"], b"word\n")
        wait_until(lambda: here.output("pipes") == "got word\n", what="the output goes on")
        os.write(here.keeper.escrow.held["tty"].fds["tty"], b"\n")
        await here.keeper.close_stdin("pipes")
        wait_until(lambda: len(here.output("busy").splitlines()) > 5, what="it ticks on")
        await here.keeper.kill("busy", signal.SIGKILL)
        codes = [(await here.ended(task)).code for task in ("pipes", "tty", "busy")]
        assert codes == [8, 5, 137]
        assert not any(here.exit_of(task).result().unknown for task in ("pipes", "tty", "busy"))
        ticks = here.output("busy").splitlines()
        assert set(ticks) == {"tick"}

    in_site(tmp_path, scenario)


@pytest.mark.slow
def test_many_tasks(tmp_path: Path) -> None:
    async def scenario(here: Site) -> None:
        def memory_kb() -> int:
            return int(Path(f"/proc/{here.keeper.pid}/status").read_text().split("RssAnon:")[1].split()[0])

        async def sleeper(name: str) -> None:
            pidfile = tmp_path / f"{name}.pid"
            argv = ["/bin/busybox", "sh", "-c", 'sleep 600 & echo $! > "$0"', str(pidfile)]
            log, exit_file = LogFile(path=str(here.log(name))), here.exit_file(name)
            await here.keeper.create_task(name, argv, pidfile=pidfile, exit_file=exit_file, io=Io(stdin=True), log=log)

        before = memory_kb()
        count = 2000 if FULL else 500
        for start in range(0, count, 20):
            await asyncio.gather(*(sleeper(f"t{n}") for n in range(start, start + 20)))
        grown = memory_kb() - before
        assert grown / count <= 8
        tasks = await here.keeper.list()
        assert len(tasks) == count and all(info.running for info in tasks)
        for info in tasks:
            await here.keeper.kill(info.task, signal.SIGKILL)
        for info in tasks:
            assert (await here.ended(info.task)).signal == 9
            await here.keeper.forget(info.task)
        assert await here.keeper.list() == []
        assert open_count(here.keeper.pid) < 20

    in_site(tmp_path, scenario)
