"""The blocking API over a socket and embedded, against a handler that acts the runtime out."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import drupe
from drupe.rpc.client import Client
from drupe.rpc.inprocess import InProcessClient
from drupe.rpc.server import Handler
from drupe.spec.control import Ref
from framework.fake_runtime import FakeRuntime
from framework.serving import serving


@pytest.fixture
def fake(tmp_path: Path) -> FakeRuntime:
    (tmp_path / "pods").mkdir()
    return FakeRuntime(tmp_path / "pods")


@pytest.fixture(params=["socket", "embedded"])
def rt(request: pytest.FixtureRequest, tmp_path: Path, fake: FakeRuntime) -> Iterator[drupe.Runtime]:
    if request.param == "socket":
        with serving(tmp_path / "s", fake.handle) as path, drupe.Runtime.over(Client.connect(path)) as rt:
            yield rt
        return

    @asynccontextmanager
    async def hosted() -> AsyncIterator[Handler]:
        yield fake.handle

    with drupe.Runtime.over(InProcessClient.open(hosted)) as rt:
        yield rt


@pytest.fixture
def sb(rt: drupe.Runtime) -> Iterator[drupe.Sandbox]:
    with rt.sandbox("busybox", env={"A": "1"}) as sb:
        yield sb


def test_run_returns_output_code_and_timing(sb: drupe.Sandbox) -> None:
    done = sb.run(["echo", "hello", "there"])
    assert (done.exit_code, done.stdout, done.stderr, done.text, done.ok) == (
        0, b"hello there\n", b"", "hello there\n", True,
    )  # fmt: skip
    assert 0 < done.timing.started_s <= done.timing.total_s < 5
    failed = sb.run(["complain", "no"])
    assert (failed.exit_code, failed.stdout, failed.stderr) == (1, b"", b"no\n")
    seven = sb.run(["exit", "7"])
    assert seven.exit_code == seven.returncode == 7


def test_input_env_cwd_and_text(sb: drupe.Sandbox) -> None:
    assert sb.run(["cat"], input="über\n", text=True).stdout == "über\n"
    assert sb.run(["printenv", "A"]).stdout == b"1\n"
    assert sb.run(["printenv", "B"], env={"B": "x=y"}).stdout == b"x=y\n"
    assert sb.run(["pwd"], cwd="/srv").stdout == b"/srv\n"


def test_much_input_and_output_at_once(sb: drupe.Sandbox) -> None:
    """Far more than the pipes hold, both ways: nothing blocks, nothing is lost."""
    data = os.urandom(1 << 20)
    assert sb.run(["cat"], input=data).stdout == data


def test_input_that_nobody_reads_is_no_error(sb: drupe.Sandbox) -> None:
    assert sb.run(["true"], input=b"x" * 300_000).exit_code == 0


def test_check_raises_with_the_result(sb: drupe.Sandbox) -> None:
    with pytest.raises(drupe.CommandFailed, match="complain ended with 1: why") as caught:
        sb.run(["complain", "why"], check=True)
    assert caught.value.result.stderr == b"why\n" and caught.value.may_have_run


def test_a_timeout_kills_and_keeps_what_was_said(sb: drupe.Sandbox, fake: FakeRuntime) -> None:
    began = time.monotonic()
    with pytest.raises(drupe.CommandTimeout, match=r"linger ran longer than 0\.1 s") as caught:
        sb.run(["linger"], timeout=0.1)
    assert time.monotonic() - began < 3
    assert caught.value.result.stdout == b"so far\n" and caught.value.result.exit_code == 137
    assert isinstance(caught.value, drupe.DeadlineExceeded) and not caught.value.retryable
    assert [p.command for p in sb.processes()] == ["patient"]


def test_callbacks_see_pieces_in_order(sb: drupe.Sandbox) -> None:
    pieces: list[bytes] = []
    done = sb.run(["seq", "2000"], on_stdout=pieces.append)
    assert b"".join(pieces) == done.stdout and done.stdout.endswith(b"\n2000\n")
    words: list[str] = []
    sb.run(["complain", "ä"], text=True, on_stderr=words.append)
    assert "".join(words) == "ä\n"


def test_a_failing_callback_ends_the_command(sb: drupe.Sandbox) -> None:
    def refuse(_: bytes) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        sb.run(["seq", "100000"], on_stdout=refuse)
    assert [p.command for p in sb.processes()] == ["patient"]


def test_output_limit(sb: drupe.Sandbox) -> None:
    done = sb.run(["seq", "1000"], max_output_bytes=4)
    assert (done.stdout, done.truncated, done.exit_code) == (b"1\n2\n", True, 0)


def test_a_background_child_does_not_hold_up_run(sb: drupe.Sandbox) -> None:
    began = time.monotonic()
    assert sb.run(["holder"]).stdout == b"parent\nchild\n"
    assert 0.5 < time.monotonic() - began < 10  # the child never lets go


def test_bad_commands(sb: drupe.Sandbox) -> None:
    with pytest.raises(drupe.InvalidArgument, match="bad command 'ls -l'") as caught:
        sb.run("ls -l")
    assert "shell" in caught.value.hint
    with pytest.raises(drupe.NotFound, match="no program 'nope'"):
        sb.run(["nope"])
    with pytest.raises(drupe.InvalidArgument, match="no standard input"), sb.popen(["cat"], stdin=False) as process:
        process.communicate(b"x")


def test_popen_streams_both_ways(sb: drupe.Sandbox) -> None:
    with sb.popen(["cat"]) as process:
        assert process.pid > 0 and process.poll() is None and process.exit_code is None
        assert process.stdin and process.stdout
        process.stdin.write(b"one\ntwo\n")
        assert process.stdout.readline() == b"one\n"
        process.stdin.close()
        assert list(process.stdout) == [b"two\n"]
        assert process.wait() == 0 and process.status is not None
    assert sb.popen(["cat"]).communicate(b"abc") == (b"abc", b"")


def test_popen_wait_with_a_timeout_leaves_it_running(sb: drupe.Sandbox) -> None:
    with sb.popen(["patient"]) as process:
        with pytest.raises(drupe.DeadlineExceeded, match=r"patient has not ended within 0\.02 s"):
            process.wait(timeout=0.02)
        process.terminate()
        assert process.wait(timeout=5) == 0
        process.kill()  # no error: it has ended
    assert process.exit_code == 0


def test_leaving_popen_kills(sb: drupe.Sandbox) -> None:
    with sb.popen(["stubborn"]) as process:
        pass
    assert [p.command for p in sb.processes()] == ["patient"]
    assert process.exit_code == 137
    assert process.stdout is not None and process.stdout.fileno() == -1


def test_tty_and_resize(sb: drupe.Sandbox) -> None:
    with sb.popen(["size"], tty=True, rows=24, cols=80) as process:
        assert process.stderr is None and process.stdin and process.stdout
        process.resize(30, 100)
        process.stdin.write(b"\n")
        assert process.stdout.read() == b"30 100\r\n"


def test_threads_run_side_by_side(sb: drupe.Sandbox) -> None:
    seen: dict[int, str] = {}

    def work(number: int) -> None:
        seen[number] = sb.run(["echo", str(number)]).text

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {n: f"{n}\n" for n in range(8)}


def test_files(sb: drupe.Sandbox) -> None:
    info = sb.files.write("/data/deep/a.txt", "hällo", mode=0o600)
    assert (info.size, info.mode & 0o777, info.type) == (6, 0o600, "file")
    assert sb.files.read("/data/deep/a.txt") == "hällo".encode()
    assert sb.files.read_text("/data/deep/a.txt") == "hällo"
    assert sb.files.read("/data/deep/a.txt", offset=1, length=2) == "ä".encode()
    sb.files.write("/data/deep/a.txt", b"!", append=True)
    assert sb.files.stat("/data/deep/a.txt").size == 7
    sb.files.mkdir("/data/empty")
    sb.files.rename("/data/deep/a.txt", "/data/b.txt")
    assert [f.path for f in sb.files.list("/data")] == ["/data/b.txt", "/data/deep", "/data/empty"]
    assert sb.files.exists("/data/b.txt") and not sb.files.exists("/data/nope")
    sb.files.remove("/data", recursive=True)
    assert not sb.files.exists("/data")
    with pytest.raises(drupe.NotFound):
        sb.files.read("/gone")
    big = os.urandom(3 << 20)
    sb.files.write("/big", big)
    assert sb.files.read("/big") == big


def test_upload_and_download(sb: drupe.Sandbox, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub/file").write_bytes(b"x" * 200_000)
    (tree / "link").symlink_to("sub/file")
    sb.files.upload(tree, "/srv/copy")
    assert sb.files.stat("/srv/copy/sub/file").size == 200_000
    assert sb.files.stat("/srv/copy/link").type == "symlink"
    sb.files.download("/srv/copy", tmp_path / "back")
    assert (tmp_path / "back/sub/file").read_bytes() == b"x" * 200_000
    assert (tmp_path / "back/link").readlink() == Path("sub/file")
    sb.files.upload(tree / "sub/file", "/one")
    sb.files.download("/one", tmp_path / "one")
    assert (tmp_path / "one").stat().st_size == 200_000
    with pytest.raises(drupe.NotFound, match="no such file on this machine"):
        sb.files.upload(tmp_path / "none", "/x")
    with pytest.raises(drupe.InvalidArgument, match="bad target"):
        sb.files.upload(tree, "relative")
    with pytest.raises(drupe.NotFound):
        sb.files.download("/none", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_the_sandbox_is_made_on_enter_and_gone_after(rt: drupe.Runtime, fake: FakeRuntime) -> None:
    sandbox = rt.sandbox("busybox", memory="64M", cpus="50%", ports=[8080, "127.0.0.1:1:2/udp"])
    assert fake.calls == [] and sandbox.spec.containers[0].resources.memory_bytes == 64 << 20
    with pytest.raises(drupe.InvalidState, match="not started"):
        _ = sandbox.id
    with sandbox as sb:
        assert sb.status().state == "running" and sb.id in fake.pods
        assert sb.container.status().state == "running"
        assert fake.pods[sb.id].spec.containers[0].annotations == {"drupe.idle": "true"}
        assert [port.host_port for port in fake.pods[sb.id].spec.ports] == [0, 1]
        assert [pod.id for pod in drupe.Sandbox.list(runtime=rt)] == [sb.id]
    assert fake.pods == {}


def test_an_exception_in_the_block_deletes_too(rt: drupe.Runtime, fake: FakeRuntime) -> None:
    with pytest.raises(ZeroDivisionError), rt.sandbox("busybox"):
        _ = 1 / 0
    assert fake.pods == {}


def test_a_failing_delete_does_not_hide_the_first_error(rt: drupe.Runtime, fake: FakeRuntime) -> None:
    with pytest.raises(ZeroDivisionError) as caught, rt.sandbox("busybox"):
        fake.fail["pod.delete"] = drupe.Unavailable("no answer")
        _ = 1 / 0
    assert "no answer" in caught.value.__notes__[0]
    with pytest.raises(drupe.Unavailable, match="no answer"), rt.sandbox("busybox"):
        pass
    fake.fail.clear()
    for pod in rt.pods.list():
        rt.pods.get(pod.id).delete(force=True)


def test_a_start_that_was_cut_short_leaves_nothing(rt: drupe.Runtime, fake: FakeRuntime) -> None:
    """The runtime made the pod, but the answer was lost: it is deleted by the id that we chose."""
    original = fake.pod_run

    async def answer_lost(call: object) -> None:
        await original(call)  # type: ignore[arg-type]
        raise drupe.Unavailable("lost", may_have_run=True)

    fake.pod_run = answer_lost  # type: ignore[method-assign, assignment]
    with pytest.raises(drupe.Unavailable, match="lost"):
        rt.sandbox("busybox").start()
    assert fake.pods == {} and fake.calls == ["pod.run", "pod.delete"]


def test_a_refused_start_asks_for_no_clean_up(rt: drupe.Runtime, fake: FakeRuntime) -> None:
    fake.fail["pod.run"] = drupe.NotFound("no image 'x'")
    with pytest.raises(drupe.NotFound, match="no image"):
        rt.sandbox("x").start()
    assert fake.calls == ["pod.run"]


def test_detach_and_connect(rt: drupe.Runtime, fake: FakeRuntime) -> None:
    with rt.sandbox("busybox", name="kept") as sb:
        sb.detach()
    assert sb.id in fake.pods
    with drupe.Sandbox.connect("kept", runtime=rt) as again:
        assert again.id == sb.id and again.run(["echo", "x"]).text == "x\n"
    assert sb.id in fake.pods  # connecting does not own it
    again = drupe.Sandbox.connect(sb.id, runtime=rt)
    again.delete()
    again.delete()
    assert fake.pods == {}
    with pytest.raises(drupe.NotFound):
        drupe.Sandbox.connect("kept", runtime=rt)


def test_sandbox_controls(sb: drupe.Sandbox) -> None:
    assert sb.pause().state == "paused" and sb.resume().state == "running"
    sb.update(memory="32m", cpus=0.5, pids=9)
    assert sb.container.inspect()["resources"]["memory_bytes"] == 32 << 20
    assert sb.stats().pids == 1 and sb.container.stats().pids == 1
    assert [line.data for line in sb.logs()] == [b"line 0\n", b"line 1\n", b"line 2\n"]
    assert next(sb.container.stats_stream(interval=0.1)).pids == 1
    sb.kill("TERM")
    assert sb.wait(timeout=5) == 0
    assert sb.stop().state == "stopped"


def test_containers_and_pods(rt: drupe.Runtime) -> None:
    pod = rt.pods.create(
        drupe.PodSpec(name="two", containers=(drupe.ContainerSpec(image="i", argv=("cat",), stdin=True),))
    )
    assert pod.status().state == "ready" and pod.start().state == "running"
    first = pod.containers()[0]
    second = pod.create_container(drupe.ContainerSpec(name="second", image="i", argv=("exit", "4")))
    second.start()
    assert second.wait(timeout=5).code == 4
    assert pod.container("second").id == second.id
    with pytest.raises(drupe.NotFound, match="no container 'third'"):
        pod.container("third")
    with first.attach(stdin=True) as attached:
        assert attached.stdin and attached.stdout
        attached.stdin.write(b"over there\n")
        assert attached.stdout.readline() == b"over there\n"
        first.close_stdin()
        assert attached.wait(timeout=5) == 0
    assert first.pause().state == "paused" and first.resume().state == "running"
    assert [c.id for c in rt.containers.list()] == [first.id, second.id]
    assert rt.containers.get("second").id == second.id
    second.delete(force=True)
    with pytest.raises(drupe.InvalidState):
        pod.delete()
    pod.stop()
    pod.delete()
    assert rt.pods.list() == []


def test_main_processes_with_their_streams_from_the_first_byte(rt: drupe.Runtime) -> None:
    spec = drupe.ContainerSpec(image="i", argv=("echo", "first words"))
    pod, main = rt.pods.run_attached(drupe.PodSpec(containers=(spec,)))
    with main:
        assert main.communicate() == (b"first words\n", b"") and main.wait() == 0
    second = pod.create_container(drupe.ContainerSpec(name="second", image="i", argv=("cat",), stdin=True))
    with second.start_attached(stdin=True) as cat:
        assert cat.communicate(b"in and out") == (b"in and out", b"")
    pod.delete(force=True)
    with pytest.raises(drupe.InvalidArgument, match="run_attached needs"):
        rt.pods.run_attached(drupe.PodSpec(containers=(spec,), remove=True))


def test_images_networks_volumes_system(rt: drupe.Runtime, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"12345")
    steps: list[int] = []
    loaded = rt.images.load(tmp_path / "a.tar", tag="x", on_progress=lambda step: steps.append(step.current))
    assert (loaded[0].size_bytes, loaded[0].names, steps) == (5, ["x"], [5])
    rt.images.save(["a", "b"], tmp_path / "out.tar")
    assert (tmp_path / "out.tar").read_bytes() == b"archive of a,b"
    assert rt.images.build("t", tmp_path).config == {"path": str(tmp_path)}
    with pytest.raises(drupe.NotFound):
        rt.images.get("none")
    assert rt.networks.create("blue", subnet4="10.1.0.0/24").subnet4 == "10.1.0.0/24"
    assert [n.name for n in rt.networks.list()] == ["blue"] and rt.networks.get("blue").bridge == "br0"
    rt.networks.delete("blue")
    assert rt.volumes.create("v", labels={"a": "b"}).labels == {"a": "b"}
    assert [v.name for v in rt.volumes.list()] == ["v"]
    rt.volumes.delete("v")
    assert rt.system.info().sandboxes == ["fake"]


def test_events(rt: drupe.Runtime) -> None:
    with rt.sandbox("busybox") as sb:
        events = rt.events()
        assert next(events).id == sb.id
        events.close()
    assert [event.action for event in rt.events(follow=False)] == ["create", "destroy"]


def test_nothing_is_left_open(tmp_path: Path, fake: FakeRuntime) -> None:
    def count() -> int:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    before = count()
    with serving(tmp_path / "s", fake.handle) as path, drupe.Runtime.over(Client.connect(path)) as rt:
        with rt.sandbox("busybox") as sb:
            for _ in range(5):
                sb.run(["cat"], input=b"x")
                sb.files.write("/a", b"x")
                sb.files.read("/a")
                with sb.popen(["cat"]):
                    pass
                with pytest.raises(drupe.NotFound):
                    sb.run(["nope"])
                with pytest.raises(drupe.NotFound):
                    sb.files.read("/nope")
        rt.connection.call("pod.list", {})
    assert count() == before


def test_a_closed_runtime_says_so(tmp_path: Path, fake: FakeRuntime) -> None:
    with serving(tmp_path / "s", fake.handle) as path:
        rt = drupe.Runtime(path)
        rt.pods.list()
        rt.close()
        with pytest.raises(drupe.Unavailable, match="closed by this program"):
            rt.pods.list()
        with pytest.raises(drupe.Unavailable, match="closed by this program"):
            rt.connection.call("pod.status", Ref(ref="x"))
