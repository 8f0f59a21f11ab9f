"""The command line over a real daemon: what the README promises, and bad input that leaves nothing behind."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drupe.spec.control import Ref
from framework.daemon import COMMAND, Daemon
from framework.leaks import wait_until

pytestmark = pytest.mark.root

Drupe = Callable[..., "subprocess.CompletedProcess[str]"]
LOOP = "trap 'exit 3' TERM; while true; do sleep 0.05; done"


@pytest.fixture(autouse=True)
def no_pods_left(daemon: Daemon) -> Iterator[None]:
    """Each test starts and ends without pods."""
    yield
    daemon.delete_pods()


@pytest.fixture
def web(drupe: Drupe) -> str:
    """A running container called web, without network."""
    drupe("run", "-d", "--name", "web", "--network", "none", "busybox", "sh", "-c", LOOP, check=True)
    return "web"


def test_run_shows_output_and_leaves_nothing(drupe: Drupe) -> None:
    done = drupe("run", "--rm", "busybox", "echo", "hello")
    assert (done.returncode, done.stdout, done.stderr) == (0, "hello\n", "")
    assert drupe("ps", "-aq").stdout == ""
    assert drupe("pod", "ls", "-q").stdout == ""


def test_exit_codes_pass_through(drupe: Drupe) -> None:
    assert drupe("run", "--rm", "busybox", "sh", "-c", "exit 7").returncode == 7
    assert drupe("run", "--rm", "--init", "busybox", "sh", "-c", "kill -9 $$").returncode == 137


def test_both_streams_stay_apart(drupe: Drupe) -> None:
    done = drupe("run", "--rm", "busybox", "sh", "-c", "echo out; echo err >&2")
    assert (done.stdout, done.stderr) == ("out\n", "err\n")


def test_input_reaches_the_workload(drupe: Drupe) -> None:
    done = drupe("run", "-i", "--rm", "busybox", "cat", input="x\n")
    assert (done.returncode, done.stdout) == (0, "x\n")


def test_a_large_stream_arrives_whole(daemon: Daemon) -> None:
    data = os.urandom(1 << 20) * 8
    done = subprocess.run(
        [COMMAND, "run", "-i", "--rm", "--network", "none", "busybox", "sha256sum"],
        env=daemon.environment(), input=data, capture_output=True, timeout=60, check=True,
    )  # fmt: skip
    import hashlib

    assert done.stdout.split()[0].decode() == hashlib.sha256(data).hexdigest()


def test_the_memory_limit_kills_and_says_so(drupe: Drupe) -> None:
    done = drupe(
        "run", "--rm", "--network", "none", "--memory", "32m", "busybox", "sh", "-c", "x=a; while :; do x=$x$x; done"
    )
    assert done.returncode == 137
    assert "was killed: out of memory (limit 32 MiB)" in done.stderr


def test_a_time_limit(drupe: Drupe) -> None:
    done = drupe("run", "--rm", "--network", "none", "--timeout", "300ms", "busybox", "sleep", "60")
    assert done.returncode == 137
    assert "its time was up" in done.stderr


def test_a_published_port_answers_from_the_host(drupe: Drupe, daemon: Daemon) -> None:
    server = "while true; do echo pong | nc -l -p 80 >/dev/null; done"
    drupe("run", "-d", "--name", "srv", "-p", "8080:80", "busybox", "sh", "-c", server, check=True)
    assert "8080->80/tcp" in drupe("ps").stdout
    assert drupe("ps", "--format", "{{.Names}} {{.Image}} {{.State}}").stdout == "srv busybox running\n"
    assert drupe("port", "srv").stdout == "80/tcp -> 0.0.0.0:8080\n"
    assert drupe("port", "srv", "80").stdout == "0.0.0.0:8080\n"
    assert drupe("port", "srv", "81").returncode == 125
    where = '{{(index (index .NetworkSettings.Ports "80/tcp") 0).HostPort}}'
    assert drupe("inspect", "-f", where, "srv").stdout == "8080\n"
    assert drupe("start", "srv", check=True).stdout == "srv\n"  # it runs already

    def answers() -> bool:
        done = daemon.on_host("sh", "-c", "exec 3<>/dev/tcp/127.0.0.1/8080; head -n1 <&3", timeout_s=5)
        if done.returncode:
            done = daemon.on_host("bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/8080; head -n1 <&3", timeout_s=5)
        return done.stdout == "pong\n"

    wait_until(answers, what="the port answers")


def test_two_containers_of_a_pod_talk_over_localhost(drupe: Drupe) -> None:
    drupe("pod", "create", "duo", "--network", "none", check=True)
    drupe("pod", "start", "duo", check=True)
    server = "while true; do echo pong | nc -l -p 7 >/dev/null; done"
    drupe("run", "-d", "--pod", "duo", "--name", "a", "busybox", "sh", "-c", server, check=True)
    client = "until nc 127.0.0.1 7 </dev/null | grep pong; do sleep 0.05; done"
    done = drupe("run", "--rm", "--pod", "duo", "--name", "b", "busybox", "sh", "-c", client)
    assert (done.returncode, done.stdout) == (0, "pong\n"), done.stderr
    (pod,) = json.loads(drupe("pod", "ls", "--json").stdout)
    assert [container["name"] for container in pod["containers"]] == ["a"]


def test_run_starts_the_pod_that_it_joins(drupe: Drupe) -> None:
    """As with Podman: a pod that was only created needs no start of its own."""
    drupe("pod", "create", "--network", "none", "made", check=True)
    assert drupe("run", "--rm", "--pod", "made", "busybox", "echo", "in").stdout == "in\n"
    drupe("run", "-d", "--pod", "made", "--name", "stays", "busybox", "sleep", "60", check=True)
    (pod,) = json.loads(drupe("pod", "ls", "--json").stdout)
    assert (pod["state"], len(pod["containers"])) == ("running", 1)
    drupe("pod", "rm", "-f", "made", check=True)


def test_exec(drupe: Drupe, web: str) -> None:
    assert drupe("exec", web, "echo", "hi").stdout == "hi\n"
    assert drupe("exec", "-i", web, "cat", input="in").stdout == "in"
    assert drupe("exec", web, "sh", "-c", "exit 9").returncode == 9
    assert drupe("exec", "-e", "A=1", "-w", "/bin", web, "sh", "-c", "echo $A; pwd").stdout == "1\n/bin\n"
    assert drupe("exec", "--timeout", "200ms", web, "sleep", "60").returncode != 0


@pytest.mark.parametrize(
    ("argv", "words", "code"),
    [
        (("no-such-program",), "no-such-program", 127),
        (("/no/such/program",), "/no/such/program", 127),
        (("/etc",), "directory", 126),
        (("-w", "/nowhere", "true"), "/nowhere", 125),
    ],
)
def test_what_cannot_be_executed_is_one_line(
    drupe: Drupe, web: str, argv: tuple[str, ...], words: str, code: int
) -> None:
    """The OCI runtime's own words never reach the user's terminal."""
    options = argv[:-1]
    done = drupe("exec", *options, web, argv[-1])
    assert (done.returncode, done.stdout) == (code, "")
    assert_one_line(done.stderr, words)
    if not options:
        done = drupe("run", "--rm", "--network", "none", "busybox", *argv)
        assert done.returncode == code
        assert_one_line(done.stderr, argv[0])


def test_logs_follow_until_the_end(drupe: Drupe, daemon: Daemon) -> None:
    script = "echo one; echo two >&2; until [ -e /go ]; do sleep 0.05; done; echo three"
    drupe("run", "-d", "--name", "log", "--network", "none", "busybox", "sh", "-c", script, check=True)
    with subprocess.Popen(
        [COMMAND, "logs", "-f", "log"],
        env=daemon.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as follower:
        assert follower.stdout is not None
        assert follower.stdout.readline() == "one\n"
        drupe("exec", "log", "touch", "/go")  # which may be killed with its container before it has ended itself
        out, err = follower.communicate(timeout=20)
    assert (out, err, follower.returncode) == ("three\n", "two\n", 0)
    assert drupe("logs", "--tail", "1", "log").stdout == "three\n"
    stamped = drupe("logs", "-t", "log").stdout.splitlines()[0]
    assert stamped[4] == stamped[7] == "-"
    assert stamped.endswith("Z one")


def test_logs_end_quietly_when_the_reader_goes(daemon: Daemon, drupe: Drupe) -> None:
    drupe("run", "--name", "noisy", "--network", "none", "busybox", "seq", "20000", check=True)
    done = subprocess.run(
        ["sh", "-c", f"{COMMAND} logs noisy | head -n1"],
        env=daemon.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("1\n", "")


def test_attach(daemon: Daemon, drupe: Drupe) -> None:
    """Input goes in, output comes out; the end of an attachment's input is not the end of the container's."""
    script = "read a; echo $a; read b && exit 9; exit 5"
    drupe("run", "-d", "-i", "--name", "read", "--network", "none", "busybox", "sh", "-c", script, check=True)
    with subprocess.Popen(
        [COMMAND, "attach", "read"], env=daemon.environment(),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write("through\n")
        process.stdin.close()
        assert process.stdout.readline() == "through\n"
        assert "Up" in drupe("ps").stdout
        with daemon.client() as client:
            client.call("container.close_stdin", Ref(ref="read"))
        assert process.wait(20) == 5


def test_cp_both_ways(drupe: Drupe, web: str, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "file").write_bytes(b"\x00data\xff" * 1000)
    (tree / "link").symlink_to("sub/file")
    (tree / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (tree / "run.sh").chmod(0o755)
    drupe("cp", str(tree), f"{web}:/new", check=True)
    assert drupe("exec", web, "/new/run.sh").stdout == "ran\n"
    drupe("cp", f"{tree}/.", f"{web}:/tmp", check=True)
    drupe("cp", str(tree / "run.sh"), f"{web}:/tmp/other.sh", check=True)
    assert set(drupe("exec", web, "ls", "/tmp").stdout.split()) == {"sub", "link", "run.sh", "other.sh"}
    drupe("cp", f"{web}:/new", str(tmp_path / "back"), check=True)
    assert (tmp_path / "back" / "sub" / "file").read_bytes() == b"\x00data\xff" * 1000
    assert (tmp_path / "back" / "link").readlink() == Path("sub/file")
    assert (tmp_path / "back" / "run.sh").stat().st_mode & 0o777 == 0o755
    (tmp_path / "dir").mkdir()
    drupe("cp", f"{web}:/new/sub/file", str(tmp_path / "dir"), check=True)
    assert (tmp_path / "dir" / "file").stat().st_size == 6000


def test_cp_as_a_tar_stream(daemon: Daemon, drupe: Drupe, web: str) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        member = tarfile.TarInfo("inside")
        member.size = 3
        tar.addfile(member, io.BytesIO(b"abc"))
    command = [COMMAND, "cp", "-", f"{web}:/tmp"]
    subprocess.run(command, env=daemon.environment(), input=archive.getvalue(), timeout=30, check=True)
    assert drupe("exec", web, "cat", "/tmp/inside").stdout == "abc"
    command = [COMMAND, "cp", f"{web}:/tmp/inside", "-"]
    done = subprocess.run(command, env=daemon.environment(), capture_output=True, timeout=30, check=True)
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as tar:
        assert tar.getnames() == ["inside"]


def test_stats_top_and_update(drupe: Drupe, web: str) -> None:
    drupe("update", "--memory", "64m", "--pids-limit", "50", web, check=True)
    (line,) = drupe("stats", "--no-stream", "--json", web).stdout.splitlines()
    stats = json.loads(line)["stats"]
    assert stats["memory_limit_bytes"] == 64 << 20
    assert stats["pids_limit"] == 50
    assert "64 MiB" in drupe("stats", "--no-stream").stdout
    assert any("sh -c" in row for row in drupe("top", web).stdout.splitlines())
    assert json.loads(drupe("top", "--json", web).stdout)[0]["pid"] > 0


def test_pause_and_resume(drupe: Drupe, web: str) -> None:
    drupe("pause", web, check=True)
    assert "(paused)" in drupe("ps").stdout
    drupe("resume", web, check=True)
    assert "(paused)" not in drupe("ps").stdout


def test_stop_start_wait_and_rm(drupe: Drupe, web: str) -> None:
    assert drupe("rm", web).returncode == 1
    drupe("stop", "-t", "10", web, check=True)
    assert drupe("wait", web).stdout == "3\n"
    assert "Exited (3)" in drupe("ps", "-a").stdout
    drupe("start", web, check=True)
    assert "Up" in drupe("ps").stdout
    drupe("restart", "-t", "0", web, check=True)
    drupe("kill", "-s", "TERM", web, check=True)
    assert drupe("wait", web).stdout == "3\n"
    assert drupe("rm", web).stdout == "web\n"
    assert drupe("ps", "-a", "-q").stdout == ""


def test_create_and_start_attached(drupe: Drupe) -> None:
    drupe("create", "--name", "later", "--network", "none", "busybox", "sh", "-c", "echo now; exit 4", check=True)
    done = drupe("start", "-a", "later")
    assert (done.returncode, done.stdout) == (4, "now\n")


def test_events(drupe: Drupe) -> None:
    drupe("run", "--rm", "--name", "seen", "--network", "none", "busybox", "true", check=True)
    lines = drupe("events", "--json", "--no-follow", "--since", "1m").stdout.splitlines()
    found = [json.loads(line) for line in lines]
    actions = [(e["type"], e["action"]) for e in found if e["attributes"].get("name") == "seen"]
    for wanted in (("container", "create"), ("container", "start"), ("container", "die")):
        assert wanted in actions


def test_what_a_removed_pod_used_is_free_at_once(drupe: Drupe) -> None:
    """Its volume, its name and its published port, as soon as `run --rm` has come back, with its output and code."""
    for _ in range(3):
        used = ("--name", "brief", "-v", "brief:/x", "-p", "127.0.0.1:8099:80")
        done = drupe("run", "--rm", *used, "busybox", "sh", "-c", "echo said; exit 5")
        assert (done.returncode, done.stdout) == (5, "said\n")
        assert drupe("pod", "ls", "-q").stdout == ""
        drupe("volume", "rm", "brief", check=True)


def test_a_bind_mount_and_a_volume(drupe: Drupe, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("from host")
    mounted = ("-v", f"{tmp_path}:/mnt:ro", "-v", "data:/data", "--network", "none")
    script = "cat /mnt/f; echo kept >/data/f; touch /mnt/x 2>/dev/null && exit 9; exit 0"
    done = drupe("run", "--rm", *mounted, "busybox", "sh", "-c", script)
    assert (done.returncode, done.stdout) == (0, "from host")
    done = drupe("run", "--rm", "-v", "data:/d", "--network", "none", "busybox", "cat", "/d/f")
    assert done.stdout == "kept\n"
    assert "data" in drupe("volume", "ls", "-q").stdout.split()
    drupe("volume", "rm", "data", check=True)


def test_images_go_out_and_come_back(drupe: Drupe, tmp_path: Path) -> None:
    drupe("tag", "busybox", "copy:1", check=True)
    drupe("save", "-o", str(tmp_path / "image.tar"), "copy:1", check=True)
    drupe("rmi", "copy:1", check=True)
    assert "copy" not in drupe("images").stdout
    assert "copy:1" in drupe("load", "-i", str(tmp_path / "image.tar"), check=True).stdout
    drupe("rmi", "copy:1", check=True)


def test_build_from_a_directory(drupe: Drupe, tmp_path: Path) -> None:
    (tmp_path / "hello").write_text("#!/bin/sh\necho built\n")
    (tmp_path / "hello").chmod(0o755)
    drupe(
        "build",
        "-t",
        "built",
        "--base",
        "busybox",
        "--target",
        "/opt",
        "--cmd",
        '["/opt/hello"]',
        str(tmp_path),
        check=True,
    )
    assert drupe("run", "--rm", "--network", "none", "built").stdout == "built\n"
    drupe("rmi", "built", check=True)


def test_networks(drupe: Drupe) -> None:
    drupe("network", "create", "blue", "--subnet", "10.77.0.0/24", check=True)
    try:
        shown = drupe("run", "--rm", "--network", "blue", "--ip", "10.77.0.9", "busybox", "ip", "addr").stdout
        assert "10.77.0.9" in shown
        assert json.loads(drupe("network", "inspect", "blue").stdout)[0]["subnet4"] == "10.77.0.0/24"
    finally:
        drupe("network", "rm", "blue", check=True)


def test_an_interactive_terminal(daemon: Daemon) -> None:
    """A real shell on a real terminal: prompt, input, size, exit code."""
    import fcntl
    import pty
    import struct
    import termios

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 99, 0, 0))
    before = termios.tcgetattr(slave)
    argv = [COMMAND, "run", "-it", "--rm", "--network", "none", "busybox", "sh"]
    process = subprocess.Popen(
        argv, env=daemon.environment(), stdin=slave, stdout=slave, stderr=slave, start_new_session=True
    )
    try:
        os.write(master, b"stty size; tty; exit 6\r")
        shown = b""
        import select

        while select.select([master], [], [], 1.0 if process.poll() is None else 0.1)[0]:
            shown += os.read(master, 4096)
        assert process.wait(20) == 6
        assert b"33 99" in shown, shown
        assert b"/dev/pts/" in shown or b"/dev/console" in shown, shown
        assert termios.tcgetattr(slave) == before
    finally:
        process.kill()
        process.wait()
        os.close(master)
        os.close(slave)


def test_ctrl_c_reaches_the_workload(daemon: Daemon, drupe: Drupe) -> None:
    import signal

    script = "trap 'echo caught; exit 8' INT; echo ready; while true; do sleep 0.05; done"
    with subprocess.Popen(
        [COMMAND, "run", "--rm", "--network", "none", "busybox", "sh", "-c", script],
        env=daemon.environment(), stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=20)[0] == "caught\n"
        assert process.returncode == 8


def hostile_tar(path: Path, name: str, *, kind: bytes = tarfile.REGTYPE, link: str = "") -> Path:
    """A root file system archive with one member that must not be unpacked as asked."""
    with tarfile.open(path, "w") as tar:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, link
        tar.addfile(member)
    return path


@pytest.mark.parametrize(
    ("argv", "words", "code"),
    [
        (("run", "--rm", "--pull", "never", "nosuch", "true"), "nosuch", 125),
        (("run", "--rm", "UPPER:case:twice", "true"), "UPPER:case:twice", 125),
        (("run", "--rm", "-v", "rel:path:x:y", "busybox"), "bad volume", 125),
        (("run", "--rm", "--mount", "type=bind,src=/no/such/place,dst=/x", "busybox", "true"), "/no/such/place", 125),
        (("network", "create", "bad", "--subnet", "10.0.0.0/99"), "10.0.0.0/99", 125),
        (("run", "--rm", "--egress-allow", "300.1.2.3/8", "busybox", "true"), "300.1.2.3/8", 125),
        (("kill", "-s", "NOSUCH", "web"), "no such signal", 2),
        (("exec", "nobody", "true"), "nobody", 125),
        (("logs", "nobody"), "nobody", 125),
        (("run", "--rm", "--sandbox", "quantum", "busybox", "true"), "quantum", 125),
        (("run", "--rm", "--sandbox", "vm", "busybox", "true"), "no guest image", 125),
        (("run", "--rm", "--cap-add", "CAP_FLY", "busybox", "true"), "FLY", 125),
        (("run", "--rm", "--user", "nobodyhere", "busybox", "true"), "nobodyhere", 125),
        (("run", "--rm", "--network", "nosuchnet", "busybox", "true"), "nosuchnet", 125),
        (("run", "--rm", "--network", "ns:/no/such/ns", "busybox", "true"), "/no/such/ns", 125),
        (("run", "--rm", "--security-opt", "seccomp=/no/profile", "busybox", "true"), "/no/profile", 125),
        (("run", "--rm", "--device", "/dev/nosuch", "busybox", "true"), "/dev/nosuch", 125),
        (("run", "--rm", "--memory", "1", "busybox", "true"), "memory", 125),
        (("run", "--rm", "--name", "bad name", "busybox", "true"), "bad name", 125),
        (("run", "--rm", "--ulimit", "nosuch=1", "busybox", "true"), "nosuch", 125),
        (("run", "--rm", "--sysctl", "kernel.panic=1", "busybox", "true"), "kernel.panic", 125),
        (("run", "--rm", "--restart", "always", "busybox", "true"), "--restart", 125),
    ],
)
def test_bad_input_is_one_clear_line(drupe: Drupe, argv: tuple[str, ...], words: str, code: int) -> None:
    done = drupe(*argv)
    assert done.returncode == code, done.stderr
    assert_one_line(done.stderr, words)
    assert drupe("ps", "-aq").stdout == ""
    assert drupe("pod", "ls", "-q").stdout == ""


def assert_one_line(text: str, words: str) -> None:
    """One `drupe:` line with `words` in it, at most one hint after it, no traceback; before it only progress."""
    lines = text.splitlines()
    at = next((n for n, line in enumerate(lines) if line.startswith("drupe: ")), None)
    assert at is not None, text
    assert words in lines[at], text
    assert all(line.startswith("hint: ") for line in lines[at + 1 :]), text
    assert len(lines[at + 1 :]) <= 1, text
    assert all(line.startswith(("archive: ", "sha256:")) for line in lines[:at]), text


def test_a_duplicate_name(drupe: Drupe, web: str) -> None:
    done = drupe("run", "-d", "--name", web, "--network", "none", "busybox", "true")
    assert done.returncode == 125
    assert_one_line(done.stderr, "web")
    assert len(drupe("ps", "-aq").stdout.split()) == 1


def test_a_port_in_use(drupe: Drupe) -> None:
    drupe("run", "-d", "-p", "8081:80", "busybox", "sleep", "60", check=True)
    done = drupe("run", "-d", "-p", "8081:80", "busybox", "sleep", "60")
    assert done.returncode == 125
    assert_one_line(done.stderr, "8081")
    assert len(drupe("ps", "-aq").stdout.split()) == 1


def test_an_exec_in_a_stopped_container(drupe: Drupe, web: str) -> None:
    drupe("stop", "-t", "5", web, check=True)
    done = drupe("exec", web, "true")
    assert done.returncode == 125
    assert_one_line(done.stderr, "stopped")


def test_unknown_keys_and_wrong_types_in_a_pod_file(drupe: Drupe, tmp_path: Path) -> None:
    for number, (text, words) in enumerate(
        [
            ('{"hostnam": "x"}', "hostnam"),
            ('{"containers": [{"image": 5}]}', "str"),
            ('{"ports": "80"}', "array"),
            ("[", "JSON"),
        ]
    ):
        path = tmp_path / f"{number}.json"
        path.write_text(text)
        done = drupe("pod", "create", "-f", str(path))
        assert done.returncode == 125
        assert_one_line(done.stderr, words)


@pytest.mark.parametrize(
    ("name", "kind", "link"),
    [
        ("../escape", tarfile.REGTYPE, ""),
        ("/../escape", tarfile.REGTYPE, ""),
        ("a/../../escape", tarfile.REGTYPE, ""),
    ],
)
def test_hostile_tars_are_refused(
    drupe: Drupe, tmp_path: Path, daemon: Daemon, name: str, kind: bytes, link: str
) -> None:
    before = drupe("images", "--json").stdout
    archive = hostile_tar(tmp_path / "evil.tar", name, kind=kind, link=link)
    done = drupe("import", str(archive), "evil:1")
    assert done.returncode == 125, done.stdout
    assert_one_line(done.stderr, "escape")
    assert drupe("images", "--json").stdout == before
    assert not list(daemon.root.rglob("escape"))


def test_a_layer_that_writes_through_a_link_stays_inside(drupe: Drupe, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        for name, kind, link in (
            ("door", tarfile.SYMTYPE, str(tmp_path / "outside")),
            ("door/escape", tarfile.REGTYPE, ""),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, link
            tar.addfile(member)
    done = drupe("import", str(tmp_path / "evil.tar"), "evil:2")
    assert list((tmp_path / "outside").iterdir()) == []
    if done.returncode == 0:
        drupe("rmi", "evil:2", check=True)
    else:
        assert_one_line(done.stderr, "door")


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("../../escape", tarfile.REGTYPE, "escape"),
        ("disk", tarfile.BLKTYPE, "disk"),
        ("/../escape", tarfile.DIRTYPE, "escape"),
    ],
)
def test_hostile_tars_are_refused_by_cp(
    daemon: Daemon, web: str, tmp_path: Path, name: str, kind: bytes, words: str
) -> None:
    archive = hostile_tar(tmp_path / "evil.tar", name, kind=kind).read_bytes()
    command = [COMMAND, "cp", "-", f"{web}:/tmp"]
    done = subprocess.run(
        command, env=daemon.environment(), input=archive, capture_output=True, timeout=30, check=False
    )
    assert done.returncode == 125
    assert_one_line(done.stderr.decode(), words)


def test_wrong_types_in_oci_json(drupe: Drupe, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    (layout / "blobs" / "sha256").mkdir(parents=True)
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (layout / "index.json").write_text('{"schemaVersion": 2, "manifests": "none"}')
    done = drupe("load", "-i", str(layout))
    assert done.returncode == 125
    assert_one_line(done.stderr, "manifests")
    (layout / "index.json").write_text("[")
    done = drupe("load", "-i", str(layout))
    assert done.returncode == 125
    assert_one_line(done.stderr, "index.json")


def test_a_cp_target_that_escapes_through_a_link_stays_inside(drupe: Drupe, web: str, tmp_path: Path) -> None:
    """A link in the container that points to the host's root must be read as the container's."""
    drupe("exec", web, "ln", "-s", "/etc", "/trap", check=True)
    (tmp_path / "drupe-canary").write_text("x")
    drupe("cp", str(tmp_path / "drupe-canary"), f"{web}:/trap/", check=True)
    assert drupe("exec", web, "cat", "/etc/drupe-canary").stdout == "x"
    assert not Path("/etc/drupe-canary").exists()


def test_what_comes_out_of_a_container_cannot_leave_its_place(drupe: Drupe, web: str, tmp_path: Path) -> None:
    drupe("exec", web, "sh", "-c", f"mkdir /d; ln -s {tmp_path} /d/link; echo x >/d/file", check=True)
    (tmp_path / "out").mkdir()
    drupe("cp", f"{web}:/d", str(tmp_path / "out"), check=True)
    assert (tmp_path / "out" / "d" / "link").is_symlink()
    done = drupe("cp", f"{web}:/nothing", str(tmp_path / "out"))
    assert done.returncode == 125
    assert_one_line(done.stderr, "/nothing")


def test_python_m_drupe_is_the_same_command(daemon: Daemon) -> None:
    command = [sys.executable, "-m", "drupe", "info", "--json"]
    done = subprocess.run(command, env=daemon.environment(), capture_output=True, text=True, timeout=30, check=True)
    assert json.loads(done.stdout)["pid"] == daemon.pid


def test_another_root_than_the_daemons_is_refused(daemon: Daemon) -> None:
    """Images and pods of another state directory are not what is asked for."""
    for words in (("ps",), ("info",), ("run", "--rm", "busybox", "true"), ("version",), ("system", "shutdown")):
        done = daemon.command("--root", "/elsewhere", *words)
        assert (done.returncode, done.stdout) == (125, ""), words
        assert f"has its state in {daemon.root}, not in /elsewhere" in done.stderr and "--run" in done.stderr
    assert daemon.command("--root", f"{daemon.root}/../root", "ps", "-q").returncode == 0
