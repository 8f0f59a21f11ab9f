#!/usr/bin/env python3
"""Everything a program does with sandboxes, without a daemon: sudo .venv/bin/python examples/embedded.py

Makes a busybox image of Debian's static busybox in a temporary directory, so it needs nothing but root, crun and the
package busybox-static. Each step checks what it shows: the program ends with 0 only if all of it is true.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import drupe

APPLETS = ("sh", "cat", "echo", "env", "httpd", "id", "ls", "nc", "sleep", "stty")


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="drupe-example-") as name:
        directory = Path(name)
        with drupe.Runtime.embedded(root=directory / "root", run=directory / "run") as runtime:
            make_image(runtime, directory / "busybox")
            commands(runtime)
            processes(runtime)
            files(runtime, directory)
            limits_and_logs(runtime)
            network_policy(runtime)
            errors(runtime)
            several_containers(runtime)
            assert runtime.pods.list() == [], "every block has cleaned up after itself"


def make_image(runtime: drupe.Runtime, tree: Path) -> None:
    """An image from a directory: one static program under many names."""
    (tree / "bin").mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "/bin/busybox", tree / "bin/busybox")
    for applet in APPLETS:
        (tree / "bin" / applet).symlink_to("busybox")
    (tree / "etc").mkdir()
    (tree / "etc/passwd").write_text("root:x:0:0:root:/:/bin/sh\nalice:x:1000:1000::/:/bin/sh\n")
    (tree / "etc/group").write_text("root:x:0:\nalice:x:1000:\n")
    image = runtime.images.build("busybox", tree, cmd=["sh"], env=["PATH=/bin"])
    print("image", image.names, image.digest[:19])


def commands(runtime: drupe.Runtime) -> None:
    """Run commands: output, exit code, input, user, text, callbacks."""
    with runtime.sandbox("busybox", network=drupe.Network.none(), env={"GREETING": "hello"}) as sb:
        done = sb.shell('echo "$GREETING from $(id -un)"', user="alice", check=True)
        assert done.text == "hello from alice\n" and done.exit_code == 0
        assert sb.run(["cat"], input="piped in", text=True).stdout == "piped in"
        assert sb.shell("echo oops >&2; exit 7").exit_code == 7
        lines: list[str] = []
        sb.shell("for i in 1 2 3; do echo $i; done", text=True, on_stdout=lines.append)
        assert "".join(lines) == "1\n2\n3\n"
        print("ran in", sb.status().sandbox, f"in {done.timing.total_s * 1000:.0f} ms")


def processes(runtime: drupe.Runtime) -> None:
    """Talk to a process; give one a terminal; end one."""
    with runtime.sandbox("busybox", network=drupe.Network.none()) as sb:
        with sb.popen(["cat"]) as cat:
            assert cat.stdin and cat.stdout
            cat.stdin.write(b"one\n")
            assert cat.stdout.readline() == b"one\n"
            cat.stdin.close()
            assert cat.wait(timeout=5) == 0
        with sb.popen(["sh", "-c", "read word; stty size"], tty=True) as terminal:
            assert terminal.stdin and terminal.stdout
            terminal.resize(rows=30, cols=90)
            terminal.stdin.write(b"go\n")
            assert terminal.stdout.read() == b"go\r\n30 90\r\n", "what was typed, and what was said"
        with sb.popen(["sh", "-c", "echo up; exec sleep 1000"]) as sleeper:
            assert sleeper.stdout and sleeper.stdout.readline() == b"up\n"
            assert sleeper.pid in [process.pid for process in sb.processes()]
        assert sleeper.exit_code == 137, "leaving the block ended it"


def files(runtime: drupe.Runtime, directory: Path) -> None:
    """Files in and out, mounts, secrets that never touch a disk."""
    shared = directory / "shared"
    shared.mkdir()
    (shared / "in.txt").write_text("from the host")
    options = {
        "network": drupe.Network.none(),
        "mounts": [drupe.Mount.bind(shared, "/shared"), drupe.Mount.tmpfs("/scratch", size="1m")],
        "secrets": [drupe.Secret("token", "s3cret")],
    }
    with runtime.sandbox("busybox", **options) as sb:
        sb.files.write("/data/a.csv", "1,2\n")
        assert sb.files.read_text("/data/a.csv") == "1,2\n"
        assert [entry.path for entry in sb.files.list("/data")] == ["/data/a.csv"]
        assert sb.files.stat("/data/a.csv").size == 4 and not sb.files.exists("/data/b.csv")
        sb.files.upload(shared, "/data/copy")
        sb.files.download("/data", directory / "back")
        assert (directory / "back/copy/in.txt").read_text() == "from the host"
        assert sb.shell("cat /run/secrets/token", text=True).stdout == "s3cret"
        sb.shell("echo from inside > /shared/out.txt", check=True)
    assert (shared / "out.txt").read_text() == "from inside\n"


def limits_and_logs(runtime: drupe.Runtime) -> None:
    """Limits and counters; a main process of one's own, and what it said."""
    network = drupe.Network.none()
    with runtime.sandbox("busybox", network=network, memory="64M", cpus=0.5, pids=50) as sb:
        container = sb.container.stats()
        assert container.memory_limit_bytes == 64 << 20 and container.pids >= 1
        sb.update(memory="32M")
        assert sb.container.stats().memory_limit_bytes == 32 << 20
        assert sb.pause().state == "paused" and sb.resume().state == "running"
        hog = sb.shell("x=x; while :; do x=$x$x; done")
        assert hog.exit_code == 137, "it met its memory limit"
    with runtime.sandbox("busybox", ["sh", "-c", "echo first; echo second >&2; exit 3"], network=network) as sb:
        assert sb.wait(timeout=10) == 3
        said = {(line.stream, line.data) for line in sb.logs()}
        assert said == {("stdout", b"first\n"), ("stderr", b"second\n")}


def network_policy(runtime: drupe.Runtime) -> None:
    """A server, and two clients of which only one may reach it."""
    web = ["httpd", "-f", "-p", "80", "-h", "/etc"]
    with runtime.sandbox("busybox", web, name="web") as server:
        address = server.status().endpoints[0].ipv4.partition("/")[0]
        fetch = f"printf 'GET /passwd HTTP/1.0\\r\\n\\r\\n' | nc -w 2 {address} 80"
        with runtime.sandbox("busybox", network=drupe.Network.bridge(allow=[f"{address},port=80"])) as friend:
            assert "alice" in friend.shell(fetch, check=True, timeout=10).text
        with runtime.sandbox("busybox", network=drupe.Network.bridge(deny=[address])) as stranger:
            assert stranger.shell(fetch, timeout=10).exit_code != 0


def errors(runtime: drupe.Runtime) -> None:
    """Errors are types; they say what, where and how to mend it, and keep what was said before."""
    with runtime.sandbox("busybox", network=drupe.Network.none()) as sb:
        try:
            sb.shell("echo so far; sleep 1000", timeout=0.5)
        except drupe.CommandTimeout as error:
            assert error.result.stdout == b"so far\n" and error.may_have_run
        else:
            raise AssertionError("the timeout did not strike")
        try:
            sb.shell("echo why >&2; exit 4", check=True)
        except drupe.CommandFailed as error:
            assert error.result.exit_code == 4 and "why" in str(error)
        else:
            raise AssertionError("check=True did not raise")
        try:
            sb.run(["no-such-program"])
        except drupe.NotFound as error:
            assert error.hint and not error.may_have_run
        else:
            raise AssertionError("a program that does not exist ran")
        try:
            sb.snapshot()
        except drupe.Unsupported as error:
            assert error.details == {"kind": "runc", "feature": "snapshot"} and error.cause
        else:
            raise AssertionError("processes of the host's kernel cannot be snapshot yet")
    try:
        runtime.sandbox("no-such-image").start()
    except drupe.NotFound as error:
        print("as it should be:", error, "| hint:", error.hint)
    else:
        raise AssertionError("an image that does not exist ran")


def several_containers(runtime: drupe.Runtime) -> None:
    """The complete way: a pod of two containers that talk over localhost."""
    pod = runtime.pods.run(
        drupe.PodSpec(
            name="two",
            network=drupe.Network.none(),
            containers=(
                drupe.ContainerSpec(
                    name="server", image="busybox", argv=("httpd", "-f", "-p", "127.0.0.1:80", "-h", "/etc")
                ),
                drupe.ContainerSpec(name="client", image="busybox", argv=("sleep", "1000"), init=True),
            ),
        )
    )
    try:
        client = pod.container("client")
        client.run(["sh", "-c", "until nc 127.0.0.1 80 </dev/null 2>&1; do sleep 0.05; done"], check=True, timeout=30)
        got = client.run(["nc", "127.0.0.1", "80"], input="GET /passwd HTTP/1.0\r\n\r\n", check=True, timeout=10)
        assert "alice" in got.text
        assert [container.state for container in pod.status().containers] == ["running", "running"]
    finally:
        pod.delete(force=True)


if __name__ == "__main__":
    main()
