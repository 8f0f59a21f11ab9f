"""The keeper, driven through its Python client: namespaces, mounts, helpers, and its own start and end."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import resource
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from drupe import errors
from drupe.keeper.client import Keeper
from drupe.keeper.connection import MAX_PACKET, open_socket
from drupe.keeper.records import Io, Mount
from drupe.keeper.start import ensure_keeper, find_binary, mounts_root
from drupe.linux.memfd import F_SEAL_WRITE
from framework.keeper_site import Pipe, Site, in_site, open_count, read_all
from framework.leaks import wait_until
from framework.probes import needs_keeper, needs_program

F_GET_SEALS = 1034  # linux/fcntl.h: F_LINUX_SPECIFIC_BASE + 10
pytestmark = pytest.mark.root


@pytest.fixture(autouse=True)
def needs() -> None:
    needs_keeper()
    needs_program("crun", "busybox", "nsenter")


# ── start and end ──


def test_one_keeper_per_directory(tmp_path: Path) -> None:
    async def scenario(here: Site) -> None:
        second = await here.keeper.run([str(find_binary()), "--run-dir", str(here.run_dir)])
        assert second.exit == 3 and "another keeper" in second.stderr
        assert (here.run_dir / "keeper.pid").read_text() == f"{here.keeper.pid}\n"
        again = await ensure_keeper(here.run_dir)
        assert again.pid == here.keeper.pid
        again.close()
        again.escrow.close()

    in_site(tmp_path, scenario)


def test_it_is_small(tmp_path: Path) -> None:
    async def scenario(here: Site) -> None:
        status = Path(f"/proc/{here.keeper.pid}/status").read_text()
        resident_kb = int(status.split("VmRSS:")[1].split()[0])
        assert resident_kb <= 1536
        assert find_binary().stat().st_size <= 2 * 1024 * 1024

    in_site(tmp_path, scenario)


def test_it_runs_from_a_sealed_copy(tmp_path: Path) -> None:
    """Its forks enter containers: none of them may reach a file of the host by /proc/PID/exe."""

    async def scenario(here: Site) -> None:
        program = Path(f"/proc/{here.keeper.pid}/exe")
        assert str(program.readlink()).startswith("/memfd:drupe-keeper")
        copy = program.open("rb")  # noqa: ASYNC230 a file in memory
        with copy:
            assert fcntl.fcntl(copy, F_GET_SEALS) & F_SEAL_WRITE

    in_site(tmp_path, scenario)


def test_it_inherits_and_hands_on_no_descriptors(tmp_path: Path) -> None:
    async def scenario(here: Site) -> None:
        result = await here.keeper.run(["ls", "/proc/self/fd"], check=True)
        assert result.stdout.split() == ["0", "1", "2", "3"]  # 3: the directory that ls reads

    with Pipe() as pipe:
        os.set_inheritable(pipe.write_end, True)
        in_site(tmp_path, scenario)


def test_unknown_protocol_is_refused(tmp_path: Path) -> None:
    async def scenario(here: Site) -> None:
        with pytest.raises(errors.Unavailable, match=r"protocol 9.*speaks 1"):
            await here.keeper.call("hello", protocol=9)

    in_site(tmp_path, scenario)


def test_a_long_directory_name_works(tmp_path: Path) -> None:
    long = tmp_path / ("d" * 120)
    long.mkdir()
    in_site(long, lambda here: here.keeper.list())


def test_a_caller_that_ignores_its_children(tmp_path: Path) -> None:
    async def scenario(here: Site) -> None:
        await here.plain("t", "exit 7")
        assert (await here.ended("t")).code == 7

    (tmp_path / "run").mkdir()
    start = 'trap "" CHLD; umask 077; exec "$0" --run-dir "$1"'
    subprocess.run(["bash", "-c", start, find_binary(), tmp_path / "run"], check=True)
    in_site(tmp_path, scenario)


def test_shutdown_waits_for_tasks(tmp_path: Path) -> None:
    async def scenario(here: Site) -> None:
        await here.plain("t", "exec sleep 60")
        with pytest.raises(errors.InvalidState, match="1 tasks are alive"):
            await here.keeper.shutdown()
        os.kill(here.keeper.pid, signal.SIGTERM)
        assert (await here.keeper.list())[0].running

    in_site(tmp_path, scenario)


def test_without_a_program_the_error_says_how_to_build_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRUPE_KEEPER", "/nonexistent/keeper")
    with pytest.raises(errors.NotFound, match="/nonexistent/keeper"):
        find_binary()


# ── bad clients ──

GARBAGE = [
    b"x",
    b"[]",
    b"{}",
    b'{"id": 1}',
    b'{"id": 1, "op": 5}',
    b'{"id": 1, "op": "nothing"}',
    b'{"id": 1, "op": "list", "extra": 1}',
    b'{"id": 1, "op": "kill", "task": "none", "signal": 9}',
    b'{"id": 1, "op": "run", "argv": []}',
    b'{"id": 1, "op": "run", "argv": ["a\\u0000b"]}',
    b'{"id": 1, "op": "create", "fds": ["stdin"], "task": "t"}',
    b'{"id": {"a": [' + b"[" * 5000,
    b"\xff" * 1000,
    b'{"id": 1, "op": "' + b"x" * MAX_PACKET,
]


@pytest.mark.parametrize("packet", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_is_answered_with_an_error(tmp_path: Path, packet: bytes) -> None:
    async def scenario(here: Site) -> None:
        with open_socket(here.run_dir) as sock:
            sock.setblocking(True)
            sock.settimeout(5)
            sock.send(packet)
            assert "error" in json.loads(sock.recv(MAX_PACKET))
        await here.keeper.list()

    in_site(tmp_path, scenario)


def test_clients_that_leave_in_the_middle(tmp_path: Path) -> None:
    async def scenario(here: Site) -> None:
        for _ in range(20):
            with open_socket(here.run_dir) as sock:
                sock.send(b'{"id": 1, "op": "run", "argv": ["sleep", "0.05"]}')
        before = open_count(here.keeper.pid)
        await here.keeper.run(["sleep", "0.3"])
        after = open_count(here.keeper.pid)
        assert after <= before

    in_site(tmp_path, scenario)


def test_it_outlives_a_lack_of_descriptors(tmp_path: Path) -> None:
    async def scenario(here: Site) -> None:
        count = open_count(here.keeper.pid)
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.prlimit(here.keeper.pid, resource.RLIMIT_NOFILE, (count + 4, hard))
        with pytest.raises(errors.ResourceExhausted, match="Too many open files"):
            await here.keeper.run(["true"])
        sockets = [open_socket(here.run_dir) for _ in range(8)]
        before = _cpu_ticks(here.keeper.pid)
        await asyncio.sleep(0.5)
        assert _cpu_ticks(here.keeper.pid) - before <= 5, "it spins"
        for sock in sockets:
            sock.close()
        resource.prlimit(here.keeper.pid, resource.RLIMIT_NOFILE, (1000, hard))
        await asyncio.sleep(0.3)
        await here.keeper.run(["true"], check=True)

    in_site(tmp_path, scenario)


def _cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


# ── namespaces ──


async def _inside(keeper: Keeper, path: Path, script: str, *kinds: str) -> str:
    entries = [f"--{kind}={path / kind}" for kind in kinds]
    return (await keeper.run(["nsenter", *entries, "sh", "-c", script], check=True)).stdout


def test_namespaces_are_made_and_released(tmp_path: Path) -> None:
    async def scenario(here: Site) -> None:
        ns = here.run_dir / "pod/ns"
        sysctls = {"net.ipv4.ip_forward": "1", "kernel.msgmax": "1234"}
        await here.keeper.create_namespaces(ns, ["net", "ipc", "uts"], hostname="alpha", sysctls=sysctls)
        script = "hostname; cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax; ip -o link show lo"
        words = (await _inside(here.keeper, ns, script, "net", "ipc", "uts")).split()
        assert words[:3] == ["alpha", "1", "1234"] and "LOOPBACK,UP" in " ".join(words)
        assert not (ns / "net").stat().st_size and str(ns) not in Path("/proc/self/mountinfo").read_text()
        with pytest.raises(errors.AlreadyExists):
            await here.keeper.create_namespaces(ns, ["net"])
        await here.keeper.release(ns)
        await here.keeper.release(ns)
        assert not ns.exists()
        assert str(ns) not in Path(f"/proc/{here.keeper.pid}/mountinfo").read_text()

    in_site(tmp_path, scenario)


def test_failed_namespaces_are_undone(tmp_path: Path) -> None:
    async def scenario(here: Site) -> None:
        ns = here.run_dir / "ns"
        with pytest.raises(errors.InvalidArgument, match=r"set sysctl net/ipv4/ip_default_ttl"):
            await here.keeper.create_namespaces(ns, ["net"], sysctls={"net.ipv4.ip_default_ttl": "words"})
        with pytest.raises(errors.InvalidArgument, match="not separate per namespace"):
            await here.keeper.create_namespaces(ns, ["net"], sysctls={"kernel.panic": "1"})
        with pytest.raises(errors.InvalidArgument, match="hostname needs"):
            await here.keeper.create_namespaces(ns, ["net"], hostname="x")
        with pytest.raises(errors.NotFound, match="open /nonexistent"):
            await here.keeper.create_namespaces(ns, ["net"], userns="/nonexistent")
        (here.run_dir / "file").write_text("")
        with pytest.raises(errors.DrupeError, match="cannot make"):
            await here.keeper.create_namespaces(here.run_dir / "file/ns", ["net", "pid"])
        assert not ns.exists()
        children = Path(f"/proc/{here.keeper.pid}/task/{here.keeper.pid}/children")
        await here.keeper.run(["sleep", "0.1"])
        assert children.read_text() == ""

    in_site(tmp_path, scenario)


def test_user_namespace_owns_the_others(tmp_path: Path) -> None:
    async def scenario(here: Site) -> None:
        first, second = here.run_dir / "a", here.run_dir / "b"
        ids = [(0, 100_000, 65_536)]
        await here.keeper.create_namespaces(first, ["user", "net"], uid_map=ids, gid_map=ids)
        await here.keeper.create_namespaces(second, ["net", "uts"], userns=first / "user", hostname="joined")
        script = "cat /proc/self/uid_map; id -u; ip link add dummy0 type bridge; ip link | grep -c dummy0"
        out = (await _inside(here.keeper, first, script, "user", "net")).split()
        assert out == ["0", "100000", "65536", "0", "1"]
        # Root of the first user namespace may change what the second call made: it owns that too.
        assert (
            await here.keeper.run(["nsenter", f"--user={first / 'user'}", f"--uts={second / 'uts'}", "hostname", "new"])
        ).exit == 0
        assert (await _inside(here.keeper, second, "hostname", "uts")) == "new\n"
        await here.keeper.release(second)
        await here.keeper.release(first)

    in_site(tmp_path, scenario)


def test_pid_namespace_has_a_first_process(tmp_path: Path) -> None:
    async def scenario(here: Site) -> None:
        ns = here.run_dir / "ns"
        first = await here.keeper.create_namespaces(ns, ["pid", "ipc"])
        assert first is not None
        wait_until(lambda: open_count(first) == 3, what="it has closed all but its standard streams")
        out = await here.keeper.run(
            ["nsenter", f"--pid={ns / 'pid'}", "sh", "-c", "(true &); sleep 0.1; echo $$"], check=True
        )
        assert int(out.stdout) > 1
        children = Path(f"/proc/{first}/task/{first}/children").read_text()
        assert children == "", "an orphan was not reaped"
        await here.keeper.release(ns)
        wait_until(lambda: not Path(f"/proc/{first}").exists(), what="the first process is gone")

    in_site(tmp_path, scenario)


def test_netns_socket(tmp_path: Path) -> None:
    async def scenario(here: Site) -> None:
        ns = here.run_dir / "ns"
        await here.keeper.create_namespaces(ns, ["net"])
        fd = await here.keeper.netns_socket(ns / "net", socket.AF_INET, socket.SOCK_STREAM)
        with socket.socket(fileno=fd) as inside:
            inside.bind(("127.0.0.1", 0))
            inside.listen()
            port = inside.getsockname()[1]
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), timeout=2)
        assert Path(f"/proc/{here.keeper.pid}/ns/net").readlink() == Path("/proc/self/ns/net").readlink()
        with pytest.raises(errors.NotFound):
            await here.keeper.netns_socket("/nonexistent", 2, 1)

    in_site(tmp_path, scenario)


def test_netns_open(tmp_path: Path) -> None:
    """A sysctl is the namespace's in which its file was opened; the keeper stays where it is."""

    async def scenario(here: Site) -> None:
        ns = here.run_dir / "ns"
        await here.keeper.create_namespaces(ns, ["net"])
        own = Path("/proc/sys/net/ipv4/ip_default_ttl")
        before = own.read_text()
        fd = await here.keeper.netns_open(ns / "net", str(own))
        with os.fdopen(fd, "r+") as inside:
            inside.write("77")
            inside.flush()
            inside.seek(0)
            assert inside.read() == "77\n"
        assert own.read_text() == before
        with pytest.raises(errors.NotFound):
            await here.keeper.netns_open(ns / "net", "/nonexistent")

    in_site(tmp_path, scenario)


# ── mounts ──


def test_mounts_stay_out_of_the_hosts_table(tmp_path: Path) -> None:
    async def scenario(here: Site) -> None:
        base = here.run_dir / "m"
        for name in ("lower", "upper", "work", "merged", "bound"):
            (base / name).mkdir(parents=True)
        (base / "lower/file").write_text("below")
        merged, bound = base / "merged", base / "bound"
        data = "lowerdir=lower,upperdir=upper,workdir=work"
        await here.keeper.mount(
            [
                Mount(source="overlay", target=str(merged), fstype="overlay", data=data, cwd=str(base)),
                Mount(source=str(merged), target=str(bound), flags=("bind", "ro", "nodev")),
            ]
        )
        seen = mounts_root(here.keeper) / bound.relative_to("/")
        assert (seen / "file").read_text() == "below"
        with pytest.raises(OSError, match="Read-only"):
            (seen / "file").write_text("x")
        assert str(base) not in Path("/proc/self/mountinfo").read_text()
        await here.keeper.umount([bound, merged, merged, base / "missing"])
        assert str(base / "merged") not in Path(f"/proc/{here.keeper.pid}/mountinfo").read_text()

    in_site(tmp_path, scenario)


def test_a_failed_mount_undoes_those_before_it(tmp_path: Path) -> None:
    async def scenario(here: Site) -> None:
        target = here.run_dir / "t"
        target.mkdir()
        good = Mount(source="none", target=str(target), fstype="tmpfs", data="size=64k")
        for bad in (
            Mount(source="/nonexistent", target=str(target), flags=("bind",)),
            Mount(source="none", target=str(target), fstype="nofs"),
            Mount(source=str(target), target=str(target), flags=("bind", "sync")),
        ):
            with pytest.raises(errors.DrupeError):
                await here.keeper.mount([good, bad])
            assert str(target) not in Path(f"/proc/{here.keeper.pid}/mountinfo").read_text()
        with pytest.raises(errors.InvalidArgument, match="readonly"):
            await here.keeper.mount([Mount(target=str(target), flags=("readonly",))])

    in_site(tmp_path, scenario)


def test_a_busy_mount_needs_lazy(tmp_path: Path) -> None:
    async def scenario(here: Site) -> None:
        target = here.run_dir / "t"
        target.mkdir()
        await here.keeper.mount([Mount(source="none", target=str(target), fstype="tmpfs")])
        await here.plain("busy", "exec sleep 60", cwd=target)
        with pytest.raises(errors.InvalidState):
            await here.keeper.umount([target])
        await here.keeper.umount([target], lazy=True)

    in_site(tmp_path, scenario)


# ── helpers ──


def test_run(tmp_path: Path) -> None:
    async def scenario(here: Site) -> None:
        run = here.keeper.run
        result = await run(
            ["sh", "-c", "cat; pwd; echo $WORD >&2; exit 3"], stdin="in ", cwd="/tmp", env={"WORD": "w", "PATH": "/bin"}
        )
        assert (result.exit, result.signal, result.stdout, result.stderr) == (3, 0, "in /tmp\n", "w\n")
        killed = await run(["sh", "-c", "kill -TERM $$"])
        assert (killed.exit, killed.signal) == (143, 15)
        with pytest.raises(errors.NotFound, match="cannot start nosuchprogram"):
            await run(["nosuchprogram"])
        with pytest.raises(errors.HelperFailed, match="sh exited with 4: why"):
            await run(["sh", "-c", "echo why >&2; exit 4"], check=True)
        big = await run(["sh", "-c", "cat | wc -c"], stdin="x" * 150_000)
        assert big.stdout.strip() == "150000"

    in_site(tmp_path, scenario)


def test_run_keeps_head_and_tail_of_long_output(tmp_path: Path) -> None:
    async def scenario(here: Site) -> None:
        result = await here.keeper.run(
            ["sh", "-c", "echo first; head -c 10000000 /dev/zero | tr '\\0' x; echo last"], check=True
        )
        assert result.stdout.startswith("first\nxxx") and result.stdout.endswith("xxxlast\n")
        assert "bytes left out" in result.stdout and len(result.stdout) < 70_000
        binary = await here.keeper.run(["head", "-c", "300000", "/dev/zero"], check=True)
        assert binary.stdout.count("\0") > 10_000

    in_site(tmp_path, scenario)


def test_run_is_killed_as_a_group_at_its_deadline(tmp_path: Path) -> None:
    async def scenario(here: Site) -> None:
        result = await here.keeper.run(["sh", "-c", "echo begun; sleep 1234 & sleep 1234"], timeout_s=0.2)
        assert result.timed_out and result.stdout == "begun\n" and result.signal == 9
        with pytest.raises(errors.DeadlineExceeded, match=r"sleep took longer than 0\.1 s"):
            await here.keeper.run(["sleep", "1234"], timeout_s=0.1, check=True)

    in_site(tmp_path, scenario)


def test_run_does_not_wait_for_daemons_that_it_leaves(tmp_path: Path) -> None:
    async def scenario(here: Site) -> None:
        result = await asyncio.wait_for(here.keeper.run(["sh", "-c", "sleep 2 & echo done"]), 1)
        assert result.stdout == "done\n"
        await here.keeper.run(["sleep", "2"])

    in_site(tmp_path, scenario)


def test_run_passes_descriptors_in_order(tmp_path: Path) -> None:
    async def scenario(here: Site) -> None:
        with Pipe() as one, Pipe() as two:
            fds = {"b": one.write_end, "a": two.write_end}
            await here.keeper.run(["sh", "-c", "echo three >&3; echo four >&4"], fds=fds, check=True)
            assert os.read(one.read_end, 100) == b"three\n"
            assert os.read(two.read_end, 100) == b"four\n"

    in_site(tmp_path, scenario)


def test_many_helpers_at_once(tmp_path: Path) -> None:
    async def scenario(here: Site) -> None:
        results = await asyncio.gather(*(here.keeper.run(["sh", "-c", f"sleep 0.1; echo {n}"]) for n in range(100)))
        assert [result.stdout for result in results] == [f"{n}\n" for n in range(100)]

    in_site(tmp_path, scenario)


def test_the_limit_of_open_files_is_not_handed_on(tmp_path: Path) -> None:
    async def scenario(here: Site) -> None:
        soft = (await here.keeper.run(["sh", "-c", "ulimit -Sn"], check=True)).stdout.strip()
        assert soft == str(resource.getrlimit(resource.RLIMIT_NOFILE)[0])

    in_site(tmp_path, scenario)


def test_a_failed_create_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    async def scenario(here: Site) -> None:
        here.write_bundle("true", terminal=False)
        words = here.crun("create", "--bundle", "/nonexistent", "--pid-file", str(tmp_path / "pid"), "bad")
        for io, argv in ((Io(), words), (Io(mode="tty"), [*words[:-1], "--console-socket", "{console}", "bad"])):
            with pytest.raises(errors.HelperFailed, match=r"crun exited with 1.*/nonexistent"):
                await here.keeper.create_task("bad", argv, pidfile=tmp_path / "pid", exit_file=tmp_path / "exit", io=io)
        with pytest.raises(errors.DeadlineExceeded, match="sh took longer than 100 ms: hold on"):
            argv = ["sh", "-c", "echo hold on; sleep 1234"]
            await here.keeper.create_task(
                "bad", argv, pidfile=tmp_path / "pid", exit_file=tmp_path / "exit", io=Io(), timeout_s=0.1
            )
        with pytest.raises(errors.NotFound, match="pidfile"):
            await here.keeper.create_task(
                "bad", ["true"], pidfile=tmp_path / "pid", exit_file=tmp_path / "exit", io=Io()
            )
        assert await here.keeper.list() == []
        assert [entry.name for entry in here.run_dir.iterdir() if "console" in entry.name] == []

    in_site(tmp_path, scenario)


def test_output_that_is_held_reaches_all_who_come_before_it_flows(tmp_path: Path) -> None:
    """Though the task has ended by then."""

    async def scenario(here: Site) -> None:
        await here.plain("t", "seq 20000", hold=True)
        await asyncio.sleep(0.2)
        assert here.output("t") == ""
        with Pipe() as one, Pipe() as other:
            readers = []
            for pipe in (one, other):
                await here.keeper.attach("t", {"stdout": pipe.write_end})
                pipe.shut(pipe.write_end)
                readers.append(asyncio.ensure_future(read_all(pipe.read_end)))
            await here.keeper.flow("t")
            wanted = b"".join(b"%d\n" % n for n in range(1, 20001))
            assert await asyncio.gather(*readers) == [wanted, wanted]
            assert (await here.ended("t")).code == 0

    in_site(tmp_path, scenario)


def test_a_network_is_joined_and_kept(tmp_path: Path) -> None:
    async def scenario(here: Site) -> None:
        given, own = here.run_dir / "given", here.run_dir / "own"
        await here.keeper.create_namespaces(given, ["net"])
        first = await here.keeper.create_namespaces(own, ["uts", "pid"], netns=given / "net", hostname="joined")
        assert first is not None
        out = await here.keeper.run(
            ["stat", "-Lc", "%i", str(given / "net"), str(own / "net"), f"/proc/{first}/ns/net"]
        )
        assert len(set(out.stdout.split())) == 1
        with pytest.raises(errors.InvalidArgument, match="netns joins"):
            await here.keeper.create_namespaces(here.run_dir / "c", ["net"], netns=given / "net")
        with pytest.raises(errors.NotFound, match="open /nonexistent"):
            await here.keeper.create_namespaces(here.run_dir / "c", ["uts"], netns="/nonexistent")
        await here.keeper.release(own)
        await here.keeper.release(given)
        wait_until(lambda: not Path(f"/proc/{first}").exists(), what="its process ends")

    in_site(tmp_path, scenario)
