"""The other verbs: what they ask and what they print."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drupe.cli import output
from drupe.cli.main import main
from drupe.errors import InvalidState, NotFound
from drupe.spec import ContainerSpec, Event, ExecSpec, ExitStatus, PodSpec, ProcessInfo, PublishedPort, Resources, Stats
from drupe.spec.control import (
    ContainerList,
    Delete,
    Empty,
    EventList,
    Events,
    ExecStart,
    ExecStarted,
    ImageInfo,
    ImageList,
    Kill,
    LogLine,
    Logs,
    PodCreate,
    PodList,
    Progress,
    Pruned,
    StatsItem,
    StatsList,
    Stop,
    SystemInfo,
    Update,
    Wait,
)
from framework.scripted import Scripted, container, pod

Use = Callable[..., Scripted]
Capture = pytest.CaptureFixture[str]
ID = "c0" * 16


def test_ps(daemon: Use, capsys: Capture) -> None:
    ended = container(
        id="e" * 32, name="old", state="stopped", exit=ExitStatus(code=1), finished_at=1.0, labels={"a": "1"}
    )
    port = PublishedPort(host_ip="", host_port=8080, container_port=80, protocol="tcp")
    answers = {"pod.list": PodList(pods=[pod(container(), ports=[port]), pod(ended, name="older")])}
    daemon(answers)
    assert main(["ps"]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["CONTAINER", "ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "POD", "NAME"]
    assert row.startswith("c0c0c0c0c0c0  busybox:latest  sleep 60  ")
    assert row.endswith("  *:8080->80/tcp  web  web")
    main(["ps", "-aq"])
    assert capsys.readouterr().out.split() == ["c0" * 6, "e" * 12]
    main(["ps", "--json", "-f", "status=exited", "-f", "label=a=1"])
    assert [c["name"] for c in json.loads(capsys.readouterr().out)] == ["old"]
    main(["ps", "-a", "--filter", "name=eb", "-q"])
    assert capsys.readouterr().out.split() == ["c0" * 6]
    assert main(["ps", "-f", "colour=red"]) == 125
    assert main(["ps", "-f", "status=dancing"]) == 125


def test_exec(daemon: Use) -> None:
    started = ExecStarted(exec_id="e1", pid=5)
    client = daemon({"exec.start": ExitStatus(code=9)}, {"exec.start": [started]})
    assert main(["exec", "-i", "-e", "A=1", "-w", "/", "-u", "root", "--timeout", "2s", "web", "ls", "-l"]) == 9
    spec = ExecSpec(argv=("ls", "-l"), env=("A=1",), cwd="/", user="root", timeout_s=2.0)
    assert client.params("exec.start") == ExecStart(ref="web", spec=spec)
    assert client.fds["exec.start"] == {"stdin": 0, "stdout": 1, "stderr": 2}


def test_exec_detached_and_usage(daemon: Use, capsys: Capture) -> None:
    client = daemon({"exec.start": ExitStatus(code=0)})
    assert main(["container", "enter", "-d", "web", "true"]) == 0
    assert client.params("exec.start").detach is True
    assert main(["exec", "web"]) == 125
    assert capsys.readouterr().err.startswith("drupe: Missing argument 'COMMAND...'")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidState("container web is stopped, not running"), 125),
        (NotFound("no container web"), 125),
        (NotFound("executable file not found in $PATH: lsx", stage="exec"), 127),
        (NotFound("x", exit_code="127"), 127),
        (InvalidState("exec /bin: permission denied", stage="start"), 126),
    ],
)
def test_exit_codes_of_what_could_not_start(daemon: Use, error: Exception, code: int) -> None:
    daemon({"exec.start": error})
    assert main(["exec", "web", "ls"]) == code


def test_logs(daemon: Use, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    lines = [LogLine(at=1.5, stream="stdout", data=b"a\xff\n"), LogLine(at=2.0, stream="stderr", data=b"no newline")]
    client = daemon({"container.logs": Empty()}, {"container.logs": lines})
    assert main(["logs", "-n", "5", "--since", "1700000000", "web"]) == 0
    assert client.params("container.logs") == Logs(ref="web", tail=5, since=1700000000.0)
    assert tuple(capfdbinary.readouterr()) == (b"a\xff\n", b"no newline")
    main(["logs", "-t", "web"])
    assert capfdbinary.readouterr().out == b"1970-01-01T00:00:01.500000000Z a\xff\n"
    main(["logs", "--json", "web"])
    assert json.loads(capfdbinary.readouterr().out.splitlines()[1]) == {
        "at": 2.0,
        "stream": "stderr",
        "data": "no newline",
    }


def test_lifecycle(daemon: Use, capsys: Capture) -> None:
    status = container()
    client = daemon(
        {
            "container.status": status, "container.stop": status, "container.delete": Empty(),
            "container.kill": Empty(), "container.pause": status, "container.resume": status,
            "container.wait": ExitStatus(code=4),
        }
    )  # fmt: skip
    orders = (["stop", "-t", "0"], ["rm", "-f"], ["kill", "-s", "sigusr1"], ["pause"], ["unpause"])
    for argv in ([*order, "web"] for order in orders):
        assert main(argv) == 0
    assert client.params("container.stop") == Stop(ref="web", timeout_s=0.0, force=True)
    assert client.params("container.delete") == Delete(ref="web", force=True)
    assert client.params("container.kill") == Kill(ref="web", signal="USR1")
    capsys.readouterr()
    assert main(["wait", "--timeout", "1m", "web"]) == 0
    assert capsys.readouterr().out == "4\n"
    assert client.params("container.wait") == Wait(ref="web", timeout_s=60.0)


def test_each_failure_is_told_and_the_others_go_on(daemon: Use, capsys: Capture) -> None:
    def delete(params: Delete) -> Any:
        return NotFound(f"no container {params.ref}") if params.ref == "b" else Empty()

    daemon({"container.delete": delete})
    assert main(["rm", "a", "b", "c"]) == 1
    assert tuple(capsys.readouterr()) == ("a\nc\n", "drupe: no container b\n")
    assert main(["rm", "-f", "b"]) == 0


def test_a_signal_that_does_not_exist(daemon: Use, capsys: Capture) -> None:
    daemon({})
    for name in ("FOO", "0", "65", ""):
        assert main(["kill", "-s", name, "web"]) == 2
        assert f"no such signal {name!r}" in capsys.readouterr().err


def test_rm_all_or_names(daemon: Use) -> None:
    client = daemon({"container.list": ContainerList(containers=[container()]), "container.delete": Empty()})
    assert main(["rm", "--all"]) == 0
    assert client.params("container.list").states == ("ready", "stopped", "failed")
    assert main(["rm"]) == 2
    assert main(["rm", "-a", "web"]) == 2


def test_inspect_looks_everywhere(daemon: Use, capsys: Capture) -> None:
    info = ImageInfo(id="sha256:1", digest="sha256:2", names=["busybox"])
    nothing = NotFound("nothing")
    client = daemon({"container.inspect": nothing, "pod.status": nothing, "image.inspect": info})
    assert main(["inspect", "busybox"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["names"] == ["busybox"]
    client.answers |= dict.fromkeys((f"{kind}.inspect" for kind in ("image", "network", "volume", "snapshot")), nothing)
    assert main(["inspect", "busybox"]) == 125
    assert "no container, pod, image, network, volume or snapshot is called 'busybox'" in capsys.readouterr().err
    assert main(["pod", "inspect", "busybox"]) == 125
    assert "no pod is called 'busybox'" in capsys.readouterr().err


def test_update(daemon: Use, capsys: Capture) -> None:
    client = daemon({"container.update": container()})
    assert main(["update", "-m", "64m", "--cpus", "50%", "web"]) == 0
    assert client.params("container.update") == Update(ref="web", resources=Resources(memory_bytes=64 << 20, cpus=0.5))
    assert main(["update", "web"]) == 125


def test_top_and_stats(daemon: Use, capsys: Capture) -> None:
    from drupe.spec.control import ProcessList

    process = ProcessInfo(
        pid=9, ppid=1, uid=0, user="", state="S", cpu_s=3.0, rss_bytes=1 << 20, started_at=1.0, command="sleep\x1b[31m"
    )
    first = StatsItem(id=ID, name="web", pod="p", stats=Stats(at=1.0, cpu_usage_ns=0))
    second = StatsItem(
        id=ID, name="web", pod="p",
        stats=Stats(at=2.0, cpu_usage_ns=5 * 10**8, memory_working_set_bytes=1 << 20, memory_limit_bytes=4 << 20,
                    pids=2),
    )  # fmt: skip
    samples = iter([StatsList(items=[first]), StatsList(items=[second])] * 2)
    daemon(
        {
            "container.status": container(), "container.processes": ProcessList(processes=[process]),
            "container.stats": lambda params: StatsList(items=[]) if params.stream else next(samples),
        },
        {"container.stats": []},
    )  # fmt: skip
    assert main(["top", "web"]) == 0
    row = capsys.readouterr().out.splitlines()[1]
    assert row.split() == ["0", "9", "1", "S", "3", "seconds", "1", "MiB", "sleep\\x1b[31m"]
    assert main(["stats", "--no-stream"]) == 0
    row = capsys.readouterr().out.splitlines()[1]
    assert "  web   50.00  1 MiB / 4 MiB   25.0%  " in row
    assert main(["stats", "--no-stream", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "web"


def test_stats_leave_out_what_cannot_be_counted(daemon: Use, capsys: Capture) -> None:
    whole = StatsItem(id=ID, name="web", pod="p", stats=Stats(at=1.0))
    lost = StatsItem(id="lost", name="db", pod="q", stats=Stats(at=0.0), error="the machine of the pod is lost")
    daemon({"container.stats": StatsList(items=[lost, whole])}, {"container.stats": [lost, whole, lost, whole]})
    for flags, rows in ((["--no-stream"], 2), (["--no-stream", "--json"], 1), ([], 4), (["--json"], 2)):
        assert main(["stats", *flags]) == 0
        out, err = capsys.readouterr()
        assert "web" in out and "db" not in out and len(out.splitlines()) == rows
        assert err == "drupe: container db is left out: the machine of the pod is lost\n"


def test_stats_streams_one_json_object_a_line(daemon: Use, capsys: Capture) -> None:
    item = StatsItem(id=ID, name="web", pod="p", stats=Stats(at=1.0))
    daemon({"container.stats": StatsList(items=[])}, {"container.stats": [item, item]})
    assert main(["stats", "--json"]) == 0
    assert [json.loads(line)["id"] for line in capsys.readouterr().out.splitlines()] == [ID, ID]


def test_events(daemon: Use, capsys: Capture) -> None:
    first = Event(at=1.0, type="container", action="start", id="abc", attributes={"name": "web", "label": "x"})
    second = Event(at=2.0, type="pod", action="create", id="def")
    client = daemon({"system.events": EventList(events=[])}, {"system.events": [first, second]})
    assert main(["events", "--json", "--no-follow", "--since", "1700000000"]) == 0
    assert [json.loads(line)["type"] for line in capsys.readouterr().out.splitlines()] == ["container", "pod"]
    assert client.params("system.events") == Events(since=1700000000.0, follow=False)
    main(["events", "-f", "container=web", "-f", "event=start"])
    assert capsys.readouterr().out == "1970-01-01T00:00:01.000000000Z container start abc (label=x, name=web)\n"
    assert main(["events", "-f", "nonsense"]) == 125


def test_pod_verbs(daemon: Use, capsys: Capture, tmp_path: Path) -> None:
    both = pod(container(), container(id="d" * 32, name="side"))
    client = daemon(
        {
            "pod.create": both, "pod.run": both, "pod.start": both, "pod.stop": both, "pod.pause": both,
            "pod.resume": both, "pod.status": both, "pod.delete": Empty(), "pod.list": PodList(pods=[both]),
            "pod.stats": Stats(at=1.0), "pod.wait": ExitStatus(code=2), "pod.update": both, "container.kill": Empty(),
        }
    )  # fmt: skip
    assert main(["pod", "create", "web", "-p", "8080:80", "--sandbox", "runc", "-m", "1g", "-l", "a=b"]) == 0
    spec = client.params("pod.create").spec
    assert (spec.name, spec.sandbox, spec.resources.memory_bytes, spec.labels) == ("web", "runc", 1 << 30, {"a": "b"})
    for verb in ("start", "stop", "pause", "resume", "wait", "stats", "inspect", "kill", "rm"):
        assert main(["pod", verb, "web"]) == 0, verb
    assert [p.ref for method, p in client.calls if method == "container.kill"] == [ID, "d" * 32]
    assert main(["pod", "update", "--cpus", "1", "web"]) == 0
    capsys.readouterr()
    assert main(["pod", "ps"]) == 0
    assert "2/2" in capsys.readouterr().out
    assert main(["pod", "ls", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)[0]["containers"]) == 2


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("spec.json", '{"hostname": "h", "containers": [{"image": "busybox", "argv": ["true"]}]}'),
        ("spec.toml", 'hostname = "h"\n[[containers]]\nimage = "busybox"\nargv = ["true"]\n'),
    ],
)
def test_pod_from_a_file(daemon: Use, tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    client = daemon({"pod.create": pod()})
    assert main(["pod", "create", "-f", str(tmp_path / name), "--name", "n"]) == 0
    wanted = PodSpec(name="n", hostname="h", containers=(ContainerSpec(image="busybox", argv=("true",)),))
    assert client.params("pod.create") == PodCreate(spec=wanted)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"hostnam": "h"}', "unknown field `hostnam`"),
        ('{"containers": [{"image": 3}]}', "Expected `str`, got `int` - at `$.containers[0].image`"),
        ("{", "is not valid JSON"),
    ],
)
def test_a_bad_pod_file_is_one_clear_line(daemon: Use, capsys: Capture, tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "spec.json").write_text(text)
    daemon({})
    assert main(["pod", "run", "-f", str(tmp_path / "spec.json")]) == 125
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1
    assert main(["pod", "run", "-f", str(tmp_path / "none.json")]) == 125
    assert main(["pod", "run", "-f", str(tmp_path / "spec.json"), "--dns", "::1"]) == 125


def test_images(daemon: Use, capsys: Capture, tmp_path: Path) -> None:
    info = ImageInfo(
        id="sha256:" + "a" * 64,
        digest="sha256:" + "b" * 64,
        names=["docker.io/library/busybox:latest"],
        size_bytes=1 << 20,
    )
    step = Progress(id="sha256:" + "c" * 64, status="unpacking")
    client = daemon(
        {
            "image.list": ImageList(images=[info]), "image.pull": info, "image.push": info, "image.tag": info,
            "image.build": info, "image.import": ImageList(images=[info]), "image.export": Empty(),
            "image.delete": Pruned(removed=["busybox:latest", info.id]),
            "image.prune": Pruned(removed=[], reclaimed_bytes=0),
        },
        {"image.pull": [step, step]},
    )  # fmt: skip
    assert main(["images"]) == 0
    row = capsys.readouterr().out.splitlines()[1]
    assert row.split() == ["docker.io/library/busybox", "latest", "a" * 12, "1", "MiB"]
    assert main(["pull", "--creds", "u:p", "busybox"]) == 0
    assert tuple(capsys.readouterr()) == (f"{info.digest}\n", f"{step.id}: unpacking\n")
    assert client.params("image.pull").auth == "u:p"
    assert main(["build", "-t", "x", "--cmd", '["a", "b"]', "--entrypoint", "/bin/sh -c", str(tmp_path)]) == 0
    assert (client.params("image.build").cmd, client.params("image.build").entrypoint) == (
        ("a", "b"),
        ("/bin/sh", "-c"),
    )
    (tmp_path / "image.tar").write_bytes(b"x")
    assert main(["load", "-i", str(tmp_path / "image.tar")]) == 0
    assert list(client.fds["image.import"]) == ["data"]
    assert (
        main(["import", "-c", 'CMD ["sh"]', "-c", "ENV A=1", "-c", "ENV B=2", str(tmp_path / "image.tar"), "new:1"])
        == 0
    )
    asked = client.calls[-1][1]
    assert (asked.format, asked.tag, asked.config) == ("rootfs", "new:1", {"Cmd": ["sh"], "Env": ["A=1", "B=2"]})
    assert main(["save", "-o", str(tmp_path / "out.tar"), "busybox"]) == 0
    assert (tmp_path / "out.tar").exists()
    assert main(["tag", "busybox", "b:2"]) == 0
    assert main(["push", "busybox", "localhost:5000/b"]) == 0
    assert main(["rmi", "busybox"]) == 0
    assert main(["image", "prune"]) == 125
    assert main(["image", "prune", "-f"]) == 0


def test_a_failed_save_leaves_no_file(daemon: Use, tmp_path: Path) -> None:
    daemon({"image.export": NotFound("no image x")})
    assert main(["save", "-o", str(tmp_path / "out.tar"), "x"]) == 125
    assert list(tmp_path.iterdir()) == []


def test_every_listing_of_the_other_groups(daemon: Use, capsys: Capture) -> None:
    from drupe.spec.control import (
        DiskUsage,
        DiskUsageList,
        NetworkInfo,
        NetworkList,
        VolumeInfo,
        VolumeList,
    )
    from drupe.spec.host import CapabilityTable

    able = CapabilityTable(kinds={"runc": {"pause": "no: it is so"}}, features={"pause": "pause it"})
    network = NetworkInfo(name="blue", bridge="dr0", subnet4="10.1.0.0/24", gateway4="10.1.0.1")
    volume = VolumeInfo(name="data", path="/v")
    info = SystemInfo(
        version="1", pid=1, root="/r", run="/u", keeper_pid=2, started_at=1.0, kernel="6", cgroup="v1",
        sandboxes=["runc"],
        pods=0, containers=0, images=0, recovery=["pod x was half made: removed"],
    )  # fmt: skip
    disk = DiskUsage(type="images", total=1, active=1, size_bytes=5, reclaimable_bytes=0)
    daemon(
        {
            "network.list": NetworkList(networks=[network]), "network.create": network, "network.delete": Empty(),
            "volume.list": VolumeList(volumes=[volume]), "volume.create": volume, "volume.delete": Empty(),
            "system.info": info, "system.capabilities": able,
            "system.df": DiskUsageList(items=[disk]),
            "system.prune": Pruned(removed=["a"], reclaimed_bytes=2048), "system.shutdown": Empty(),
        }
    )  # fmt: skip
    for argv, words in {
        ("network", "ls"): "10.1.0.0/24", ("network", "create", "--subnet", "10.1.0.0/24", "blue"): "blue",
        ("network", "rm", "blue"): "blue", ("volume", "ls", "-q"): "data", ("volume", "create", "data"): "data",
        ("volume", "rm", "data"): "data", ("info",): "recovery: pod x was half made",
        ("system", "capabilities"): "runc: pause: no: it is so",
        ("system", "df"): "images", ("system", "prune", "-f"): "Reclaimed: 2 KiB", ("system", "shutdown"): "",
    }.items():  # fmt: skip
        assert main(list(argv)) == 0, argv
        assert words in capsys.readouterr().out, argv
    for argv in (["network", "ls"], ["volume", "ls"], ["info"], ["system", "capabilities"], ["system", "df"]):
        assert main([*argv, "--json"]) == 0
        json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("size_bytes", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (32 << 20, "32 MiB"), (1 << 40, "1 TiB")]
)
def test_human_sizes(size_bytes: int, text: str) -> None:
    assert output.human_size(size_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "less than a second"), (1, "1 second"), (90, "90 seconds"), (180, "3 minutes"), (86400 * 3, "3 days")],
)
def test_human_durations(seconds: float, text: str) -> None:
    assert output.human_duration(seconds) == text
