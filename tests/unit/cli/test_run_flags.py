"""Flags of `drupe run` to the exact PodSpec that is asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from drupe.cli.main import main
from drupe.errors import NotFound
from drupe.spec import (
    Attachment,
    ContainerSpec,
    Device,
    DnsSpec,
    EgressPolicy,
    EgressRule,
    ExitStatus,
    HealthCheck,
    IdMap,
    IoLimit,
    LogSpec,
    Mount,
    Namespaces,
    NetworkSpec,
    PodSpec,
    PortMapping,
    Resources,
    RestartPolicy,
    Rlimit,
    Secret,
    SecuritySpec,
    UserNamespace,
)
from drupe.spec.control import ContainerCreate, ContainerStart, Delete, Empty, ImageInfo, ImagePull, Wait
from framework.scripted import Scripted, container, pod

Use = Callable[..., Scripted]
DONE = {"pod.run": pod(container()), "container.wait": ExitStatus(code=0)}


def asked(daemon: Use, *flags: str) -> PodSpec:
    """The spec that `drupe run FLAGS busybox true` sends."""
    client = daemon(DONE)
    assert main(["run", *flags, "busybox", "true"]) == 0
    spec: PodSpec = client.params("pod.run").spec
    return spec


def one(daemon: Use, *flags: str) -> ContainerSpec:
    """The container of it."""
    return asked(daemon, *flags).containers[0]


def test_plain_run(daemon: Use) -> None:
    assert asked(daemon) == PodSpec(containers=(ContainerSpec(image="busybox", argv=("true",)),))


def test_names_labels_and_annotations_are_the_pods_too(daemon: Use) -> None:
    spec = asked(daemon, "--name", "web", "-l", "a=1", "--label", "b", "--annotation", "x=y", "--rm")
    assert (spec.name, spec.labels, spec.annotations, spec.remove) == (
        "web",
        {"a": "1", "b": ""},
        {"x": "y"},
        True,
    )
    assert spec.containers[0].name == "web"
    assert spec.containers[0].labels == {"a": "1", "b": ""}


def test_arguments_after_the_image_belong_to_the_command(daemon: Use) -> None:
    client = daemon(DONE)
    assert main(["run", "--rm", "busybox", "ls", "--rm", "-x", "--", "-m"]) == 0
    assert client.params("pod.run").spec.containers[0].argv == ("ls", "--rm", "-x", "--", "-m")


def test_process(daemon: Use, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "env").write_text("# comment\n\nFROM_FILE=1\nHERE\n")
    monkeypatch.setenv("HERE", "yes")
    monkeypatch.delenv("NOT_HERE", raising=False)
    spec = one(
        daemon, "-e", "A=1=2", "-e", "NOT_HERE", "--env-file", str(tmp_path / "env"), "-w", "/w", "-u", "app:wheel",
        "--group-add", "tape", "--entrypoint", "/bin/x", "--init", "--read-only", "--stop-signal", "QUIT",
        "--stop-timeout", "3", "--shm-size", "1m", "--oom-score-adj", "5",
    )  # fmt: skip
    assert spec.env == ("FROM_FILE=1", "HERE=yes", "A=1=2", "NOT_HERE")
    assert (spec.cwd, spec.user, spec.groups, spec.entrypoint) == ("/w", "app:wheel", ("tape",), ("/bin/x",))
    assert (spec.init, spec.read_only, spec.stop_signal, spec.stop_grace_s) == (True, True, "QUIT", 3.0)
    assert (spec.shm_size_bytes, spec.oom_score_adj) == (1 << 20, 5)


@pytest.mark.parametrize(
    ("text", "argv"), [("", ()), ("/bin/a b", ("/bin/a b",)), ('["/bin/a", "b"]', ("/bin/a", "b"))]
)
def test_entrypoint(daemon: Use, text: str, argv: tuple[str, ...]) -> None:
    assert one(daemon, "--entrypoint", text).entrypoint == argv


def test_mounts(daemon: Use, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spec = one(
        daemon, "-v", "/src:/a", "-v", "./rel:/b:ro,rslave", "-v", "data:/c", "-v", "/anon",
        "--mount", "type=bind,src=/s,dst=/d,readonly", "--mount", "type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=700",
        "--mount", "source=vol,target=/v", "--mount", "type=image,src=alpine,dst=/i",
        "--tmpfs", "/tmp:size=2m,mode=1777,noexec,ro", "--tmpfs", "/plain",
    )  # fmt: skip
    assert spec.mounts == (
        Mount(target="/a", source="/src", create=True),
        Mount(target="/b", source=f"{tmp_path}/rel", create=True, read_only=True, propagation="rslave"),
        Mount(type="volume", target="/c", source="data"),
        Mount(type="volume", target="/anon"),
        Mount(target="/d", source="/s", read_only=True),
        Mount(type="tmpfs", target="/t", size_bytes=1 << 20, mode=0o700),
        Mount(type="volume", target="/v", source="vol"),
        Mount(type="image", target="/i", source="alpine"),
        Mount(type="tmpfs", target="/tmp", size_bytes=2 << 20, mode=0o1777, read_only=True, options=("noexec",)),
        Mount(type="tmpfs", target="/plain"),
    )


def test_limits(daemon: Use) -> None:
    spec = one(
        daemon, "-m", "32m", "--memory-swap", "-1", "--memory-reservation", "16m", "--cpus", "1.5",
        "--cpu-shares", "512",
        "--cpuset-cpus", "0-1", "--cpuset-mems", "0", "--pids-limit", "64", "--blkio-weight", "100",
        "--device-read-bps", "/dev/vda:1m", "--device-write-iops", "/dev/vda:100", "--device-write-bps", "/dev/vdb:2m",
        "--hugepages", "2MB=64m", "--ulimit", "nofile=1024:4096", "--ulimit", "core=0", "--ulimit", "memlock=-1",
    )  # fmt: skip
    assert spec.resources == Resources(
        memory_bytes=32 << 20, memory_swap_bytes=-1, memory_reservation_bytes=16 << 20, cpus=1.5, cpu_shares=512,
        cpuset_cpus="0-1", cpuset_mems="0", pids=64, io_weight=100, hugepages={"2MB": 64 << 20},
        io=(
            IoLimit(path="/dev/vda", read_bps=1 << 20, write_iops=100),
            IoLimit(path="/dev/vdb", write_bps=2 << 20),
        ),
    )  # fmt: skip
    assert spec.rlimits == (
        Rlimit(name="nofile", soft=1024, hard=4096),
        Rlimit(name="core", soft=0, hard=0),
        Rlimit(name="memlock", soft=-1, hard=-1),
    )


def test_security(daemon: Use, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "token").write_bytes(b"\x00s3cret\n")
    monkeypatch.setenv("TOKEN", "abc")
    spec = one(
        daemon, "--cap-add", "NET_ADMIN", "--cap-drop", "ALL", "--security-opt", "seccomp=my.json",
        "--security-opt", "no-new-privileges:false", "--security-opt", "apparmor=unconfined", "--device", "/dev/fuse",
        "--device", "/dev/a:/dev/b:rw", "--device", "/dev/c:r",
        "--secret", "id=t,src=token", "--secret", "id=e,env=TOKEN,target=/e,uid=7,gid=8,mode=0440",
    )  # fmt: skip
    assert spec.security == SecuritySpec(
        cap_add=("NET_ADMIN",), cap_drop=("ALL",), seccomp=f"{tmp_path}/my.json", no_new_privileges=False
    )
    assert spec.devices == (
        Device(path="/dev/fuse"), Device(path="/dev/a", target="/dev/b", permissions="rw"),
        Device(path="/dev/c", permissions="r"),
    )  # fmt: skip
    assert spec.secrets == (
        Secret(name="t", value=b"\x00s3cret\n"),
        Secret(name="e", value=b"abc", target="/e", uid=7, gid=8, mode=0o440),
    )
    assert one(daemon, "--privileged", "--security-opt", "no-new-privileges").security == SecuritySpec(privileged=True)
    assert one(daemon, "--security-opt", "systempaths=unconfined").security == SecuritySpec(
        masked_paths=(), read_only_paths=()
    )


def test_restart_health_and_log(daemon: Use) -> None:
    spec = one(
        daemon, "--restart", "on-failure:3", "--health-cmd", "test -f /ok", "--health-interval", "1m30s",
        "--health-retries", "2", "--log-driver", "json-file", "--log-opt", "max-size=1m", "--log-opt", "max-file=2",
    )  # fmt: skip
    assert spec.restart == RestartPolicy(name="on-failure", max_retries=3)
    assert spec.health == HealthCheck(argv=("/bin/sh", "-c", "test -f /ok"), interval_s=90.0, retries=2)
    assert spec.log == LogSpec(driver="json-file", max_bytes=1 << 20, max_files=2)


def test_pod_settings(daemon: Use) -> None:
    spec = asked(
        daemon, "--hostname", "h", "--dns", "1.1.1.1", "--dns-search", "x.org", "--dns-option", "ndots:2",
        "--add-host", "db:10.0.0.5", "--add-host", "six=::1", "--sysctl", "net.core.somaxconn=99", "--runtime", "runc",
        "--userns", "0:100000:65536", "--ipc", "host", "--uts", "host", "--pid", "pod", "--cgroup-parent", "/x",
        "--timeout", "5m",
    )  # fmt: skip
    ids = (IdMap(inside=0, outside=100000, count=65536),)
    assert spec.hostname == "h"
    assert spec.sandbox == "runc"
    assert spec.dns == DnsSpec(servers=("1.1.1.1",), searches=("x.org",), options=("ndots:2",))
    assert spec.hosts == {"db": "10.0.0.5", "six": "::1"}
    assert spec.sysctls == {"net.core.somaxconn": "99"}
    assert spec.namespaces == Namespaces(ipc="host", uts="host", pid="pod", user=UserNamespace(uids=ids, gids=ids))
    assert (spec.cgroup_parent, spec.timeout_s) == ("/x", 300.0)


@pytest.mark.parametrize(
    ("flags", "network"),
    [
        (["--network", "none"], NetworkSpec(mode="none", attachments=())),
        (["--network", "host"], NetworkSpec(mode="host", attachments=())),
        (["--net=bridge"], NetworkSpec()),
        (["--network", "blue"], NetworkSpec(attachments=(Attachment(network="blue"),))),
        (["--network", "cni:podnet"], NetworkSpec(mode="cni", attachments=(), cni_config="podnet")),
        (["--network", "ns:/run/netns/x"], NetworkSpec(mode="path", attachments=(), netns_path="/run/netns/x")),
        (
            ["--network", "blue", "--network", "red", "--ip", "10.9.0.3", "--ip6", "fd00::3", "--mac-address",
             "02:00:00:00:00:01", "--network-alias", "a", "--network-alias", "b"],
            NetworkSpec(attachments=(
                Attachment(network="blue", ipv4="10.9.0.3", ipv6="fd00::3", mac="02:00:00:00:00:01",
                           aliases=("a", "b")),
                Attachment(network="red"),
            )),
        ),
        (
            ["--egress-allow", "10.0.0.0/8,port=443,proto=tcp", "--egress-deny", "10.1.0.0/16"],
            NetworkSpec(policy=EgressPolicy(default="deny", rules=(
                EgressRule(action="deny", cidr="10.1.0.0/16"),
                EgressRule(action="allow", cidr="10.0.0.0/8", ports=("443",), protocol="tcp"),
            ))),
        ),
    ],
)  # fmt: skip
def test_networks(daemon: Use, flags: list[str], network: NetworkSpec) -> None:
    assert asked(daemon, *flags).network == network


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        ("80", [(80, 0, "tcp", "")]),
        ("8080:80", [(80, 8080, "tcp", "")]),
        ("53:53/udp", [(53, 53, "udp", "")]),
        ("127.0.0.1:8080:80", [(80, 8080, "tcp", "127.0.0.1")]),
        ("127.0.0.1::80", [(80, 0, "tcp", "127.0.0.1")]),
        ("[::1]:8080:80", [(80, 8080, "tcp", "::1")]),
        ("9000-9001:80-81", [(80, 9000, "tcp", ""), (81, 9001, "tcp", "")]),
    ],
)
def test_ports(daemon: Use, text: str, ports: list[tuple[int, int, str, str]]) -> None:
    found = asked(daemon, "-p", text).ports
    assert [(p.container_port, p.host_port, p.protocol, p.host_ip) for p in found] == ports


def test_publish_all_takes_the_ports_that_the_image_exposes(daemon: Use) -> None:
    info = ImageInfo(id="sha256:1", digest="sha256:2", names=[], config={"ExposedPorts": {"80/tcp": {}, "53/udp": {}}})
    client = daemon(DONE | {"image.inspect": info})
    assert main(["run", "-P", "-p", "8080:80", "busybox"]) == 0
    assert client.params("pod.run").spec.ports == (
        PortMapping(container_port=80, host_port=8080),
        PortMapping(container_port=53, protocol="udp"),
    )


def test_descriptors(daemon: Use) -> None:
    client = daemon(DONE)
    main(["run", "busybox"])
    assert client.fds["pod.run"] == {"stdout": 1, "stderr": 2}
    main(["run", "-i", "busybox"])
    assert client.fds["pod.run"] == {"stdin": 0, "stdout": 1, "stderr": 2}
    main(["run", "-t", "busybox"])
    assert client.fds["pod.run"] == {"stdout": 1}
    main(["run", "-d", "-i", "busybox"])
    assert client.fds["pod.run"] == {}
    assert client.calls[-1][1].spec.containers[0].stdin is True


def test_detached_prints_the_id_and_writes_the_cidfile(
    daemon: Use, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    daemon(DONE)
    assert main(["run", "-d", "--cidfile", str(tmp_path / "id"), "busybox"]) == 0
    assert capsys.readouterr().out == "c0" * 16 + "\n"
    assert (tmp_path / "id").read_text() == "c0" * 16
    assert main(["run", "-d", "--cidfile", str(tmp_path / "id"), "busybox"]) == 125
    assert "exists" in capsys.readouterr().err


def test_exit_code_passes_through(daemon: Use) -> None:
    client = daemon(DONE | {"container.wait": ExitStatus(code=7)})
    assert main(["run", "busybox"]) == 7
    assert client.params("container.wait") == Wait(ref="c0" * 16)


def test_rm_waits_for_the_removal(daemon: Use) -> None:
    client = daemon(DONE | {"container.wait": ExitStatus(code=7)})
    assert main(["run", "--rm", "busybox"]) == 7
    assert client.params("container.wait") == Wait(ref="c0" * 16, condition="removed")


def test_out_of_memory_is_said(daemon: Use, capsys: pytest.CaptureFixture[str]) -> None:
    daemon(DONE | {"container.wait": ExitStatus(code=137, signal=9, reason="OOMKilled")})
    assert main(["run", "--rm", "-m", "32m", "busybox"]) == 137
    assert capsys.readouterr().err == (
        "drupe: container web was killed: out of memory (limit 32 MiB)\nhint: give it more with --memory\n"
    )


def missing_once() -> Callable[[object], object]:
    """An answer that lacks the image at the first call only."""
    answers = iter([NotFound("no image busybox"), pod(container())])
    return lambda params: next(answers)


def test_a_missing_image_is_pulled(daemon: Use) -> None:
    info = ImageInfo(id="sha256:1", digest="sha256:2", names=["busybox"])
    script = DONE | {"pod.run": missing_once(), "image.inspect": NotFound("no image"), "image.pull": info}
    client = daemon(script)
    assert main(["run", "--platform", "linux/arm64", "busybox"]) == 0
    assert client.params("image.pull") == ImagePull(ref="busybox", platform="linux/arm64")


def test_pull_never_and_another_missing_thing_do_not_pull(daemon: Use, capsys: pytest.CaptureFixture[str]) -> None:
    client = daemon(DONE | {"pod.run": NotFound("no image busybox")})
    assert main(["run", "--pull", "never", "busybox"]) == 125
    info = ImageInfo(id="sha256:1", digest="sha256:2", names=["busybox"])
    client = daemon(DONE | {"pod.run": NotFound("no network blue", hint="make it"), "image.inspect": info})
    assert main(["run", "busybox"]) == 125
    assert [method for method, _ in client.calls] == ["pod.run", "image.inspect"]
    assert capsys.readouterr().err.endswith("drupe: no network blue\nhint: make it\n")


@pytest.mark.parametrize("state", ["ready", "running"])
def test_joining_a_pod_creates_and_starts_a_container(daemon: Use, state: str) -> None:
    client = daemon(
        {
            "pod.status": pod(state=state),
            "pod.start": pod(),
            "container.create": container(),
            "container.start": container(),
            "container.wait": ExitStatus(code=3),
            "container.delete": Empty(),
        }
    )
    assert main(["run", "--rm", "--pod", "web", "busybox", "true"]) == 3
    spec = ContainerSpec(image="busybox", argv=("true",))
    assert client.params("container.create") == ContainerCreate(pod="web", spec=spec)
    assert client.params("container.start") == ContainerStart(ref="c0" * 16)
    assert client.params("container.delete") == Delete(ref="c0" * 16)
    assert ("pod.start" in [method for method, _ in client.calls]) == (state == "ready")


def test_a_joining_container_that_cannot_start_is_removed(daemon: Use, capsys: pytest.CaptureFixture[str]) -> None:
    info = ImageInfo(id="sha256:1", digest="sha256:2", names=["busybox"])
    client = daemon(
        {
            "pod.status": pod(state="running"),
            "container.create": container(),
            "container.start": NotFound("program 'x' is not in the container", stage="start", exit_code="127"),
            "container.delete": Empty(),
            "image.inspect": info,
        }
    )
    assert main(["run", "--pod", "web", "busybox", "x"]) == 127
    assert client.params("container.delete") == Delete(ref="c0" * 16, force=True)
    assert main(["run", "-d", "--rm", "--pod", "web", "busybox", "x"]) == 125
    assert "leave out --rm or -d" in capsys.readouterr().err


def test_pod_flags_with_a_joined_pod_are_refused(daemon: Use, capsys: pytest.CaptureFixture[str]) -> None:
    daemon({})
    assert main(["run", "--pod", "web", "-p", "80", "--dns", "1.1.1.1", "-P", "busybox"]) == 125
    assert "--publish, --dns, --publish-all can't be given with --pod web" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["-m", "3q"], "bad size '3q'"),
        (["-v", "a:b:c:d"], "bad volume 'a:b:c:d'"),
        (["-v", "/a:b"], "target 'b' is not an absolute path"),
        (["-v", "/a:/b:zz"], "unknown option 'zz'"),
        (["-v", "/a:/b:z"], "SELinux"),
        (["--mount", "type=nfs,target=/x"], "unknown type 'nfs'"),
        (["--mount", "type=bind,target=/x"], "no source"),
        (["--mount", "type=tmpfs,target=/x,size=3"], "unknown key 'size'"),
        (["-p", "70000:80"], "not within 1-65535"),
        (["-p", "1-3:1-2"], "differ in length"),
        (["-p", "80/icmp"], "unknown protocol 'icmp'"),
        (["--egress-allow", "10.0.0.0/99"], "bad CIDR '10.0.0.0/99'"),
        (["--network", "container:web"], "--pod NAME"),
        (["--network", "none", "--ip", "10.0.0.2"], "network none takes no ipv4"),
        (["--network", "host", "--network", "blue"], "can't be combined"),
        (["--ip", "::1"], "not an IPv4 address"),
        (["--ulimit", "nofile=9:3"], "soft limit is above"),
        (["--restart", "sometimes"], "unknown restart policy 'sometimes'"),
        (["--device", "fuse"], "bad device 'fuse'"),
        (["--security-opt", "label=level:s0"], "unknown security option"),
        (["--secret", "src=x"], "has no id"),
        (["--secret", "id=x,src=/nonexistent"], "cannot read /nonexistent"),
        (["--userns", "x"], "bad userns"),
        (["--health-retries", "3"], "without --health-cmd"),
        (["-e", "=x"], "bad environment variable"),
        (["--env-file", "/nonexistent"], "cannot read env file"),
        (["--add-host", "db:nowhere"], "bad address 'nowhere'"),
        (["--sysctl", "x"], "KEY=VALUE"),
        (["--log-opt", "colour=red"], "unknown key 'colour'"),
        (["--detach-keys", "ctrl-"], "bad detach keys"),
        (["--timeout", "soon"], "bad duration 'soon'"),
        (["--no-such-flag"], "--no-such-flag"),
        (["-it"], "terminal"),
    ],
)
def test_bad_flags_are_one_line_and_125(
    daemon: Use, capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    client = daemon({})
    assert main(["run", *flags, "busybox", "true"]) == 125
    out, err = capsys.readouterr()
    assert out == ""
    first, *hints = err.splitlines()
    assert first.startswith("drupe: ")
    assert words in err
    assert all(line.startswith("hint: ") for line in hints)
    assert len(hints) <= 1
    assert client.calls == []
