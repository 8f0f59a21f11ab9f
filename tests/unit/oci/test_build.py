"""Specs become the config.json that Docker would have made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from drupe.errors import InvalidArgument, Unsupported
from drupe.oci.build import MASKED_PATHS, BuildInputs, BuiltConfig, build_container, image_volumes
from drupe.oci.capabilities import ALL, DEFAULT
from drupe.oci.exec import build_process
from drupe.oci.host import HostLimits
from drupe.oci.users import ROOT, ResolvedUser
from drupe.spec import (
    ContainerSpec,
    ExecSpec,
    Hook,
    Hooks,
    IdMap,
    Mount,
    Namespaces,
    NetworkSpec,
    PodSpec,
    Rlimit,
    SecuritySpec,
    UserNamespace,
)

HOST = HostLimits(capabilities=frozenset(ALL), hard_rlimits={"nofile": 1024})
POOR = HostLimits(
    capabilities=frozenset(ALL) - {"CAP_SYS_RESOURCE"}, hard_rlimits={"nofile": 1024, "core": -1}, min_oom_score_adj=5
)
ALICE = ResolvedUser(uid=1000, gid=1000, groups=(1000, 10), home="/home/alice", name="alice")


@dataclass
class Image:
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ("sh",)
    env: tuple[str, ...] = ()
    cwd: str = ""
    user: str = ""
    volumes: tuple[str, ...] = ()
    stop_signal: str = ""
    labels: dict[str, str] = field(default_factory=dict)


def build(
    container: ContainerSpec | None = None,
    *,
    pod: PodSpec | None = None,
    image: Image | None = None,
    user: ResolvedUser = ROOT,
    **inputs: Any,
) -> BuiltConfig:
    inputs = {"container_id": "c1", "rootfs": "/r", "hostname": "web", "host": HOST} | inputs
    return build_container(
        pod=pod or PodSpec(),
        container=container or ContainerSpec(),
        image=image or Image(),
        user=user,
        inputs=BuildInputs(**inputs),
    )


def mount_at(config: dict[str, Any], target: str) -> dict[str, Any]:
    (found,) = [mount for mount in config["mounts"] if mount["destination"] == target]
    return dict(found)


@pytest.mark.parametrize(
    ("entrypoint", "argv", "image", "expected"),
    [
        (None, (), Image(("/e",), ("c",)), ["/e", "c"]),
        (None, ("x", "y"), Image(("/e",), ("c",)), ["/e", "x", "y"]),
        (("/mine",), (), Image(("/e",), ("c",)), ["/mine"]),
        (("/mine",), ("x",), Image(("/e",), ("c",)), ["/mine", "x"]),
        ((), (), Image(("/e",), ("c",)), ["c"]),
        ((), ("x",), Image(("/e",), ("c",)), ["x"]),
    ],
)
def test_argv_follows_dockers_rule(
    entrypoint: tuple[str, ...] | None, argv: tuple[str, ...], image: Image, expected: list[str]
) -> None:
    config = build(ContainerSpec(entrypoint=entrypoint, argv=argv), image=image).config
    assert config["process"]["args"] == expected


def test_env_has_dockers_order() -> None:
    image = Image(env=("PATH=/bin", "LANG=C", "A=image"))
    container = ContainerSpec(env=("A=mine", "B=1", "GONE"), tty=True)
    assert build(container, image=image).config["process"]["env"] == [
        "PATH=/bin", "HOSTNAME=web", "TERM=xterm", "A=mine", "B=1", "LANG=C", "HOME=/root",
    ]  # fmt: skip
    unset = ContainerSpec(env=("LANG", "HOME=/h", "PATH"))
    assert build(unset, image=image).config["process"]["env"] == ["HOSTNAME=web", "HOME=/h", "A=image"]


def test_user_and_capabilities_of_root_and_others() -> None:
    root = build().config["process"]
    assert set(root["capabilities"]["effective"]) == set(DEFAULT)
    assert "inheritable" not in root["capabilities"]
    alice = build(ContainerSpec(security=SecuritySpec(cap_add=("net_admin",))), user=ALICE).config["process"]
    assert alice["user"] == {"uid": 1000, "gid": 1000, "additionalGids": [1000, 10]}
    assert alice["capabilities"]["ambient"] == alice["capabilities"]["effective"] == ["CAP_NET_ADMIN"]
    assert set(alice["capabilities"]["bounding"]) == {*DEFAULT, "CAP_NET_ADMIN"}
    assert "HOME=/home/alice" in alice["env"]
    assert alice["noNewPrivileges"] is True


def test_rlimits_are_clamped_where_the_host_must_and_said_so() -> None:
    wish = ContainerSpec(rlimits=(Rlimit(name="nofile", soft=4000, hard=5000), Rlimit(name="core", soft=0, hard=-1)))
    rich = build(wish)
    assert rich.notes == []
    assert rich.config["process"]["rlimits"][0] == {"type": "RLIMIT_NOFILE", "soft": 4000, "hard": 5000}
    poor = build(wish, host=POOR)
    assert poor.config["process"]["rlimits"] == [
        {"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 1024},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 2**64 - 1},
    ]
    assert len(poor.notes) == 1
    assert "nofile" in poor.notes[0]


def test_oom_score_is_clamped_and_said_so() -> None:
    assert build(ContainerSpec(oom_score_adj=-500)).config["process"]["oomScoreAdj"] == -500
    poor = build(ContainerSpec(oom_score_adj=-500), host=POOR)
    assert poor.config["process"]["oomScoreAdj"] == 5
    assert "oom_score_adj" in poor.notes[0]
    assert "oomScoreAdj" not in build().config["process"]


def test_default_mounts_and_hardening() -> None:
    config = build().config
    assert [m["destination"] for m in config["mounts"]] == [
        "/proc", "/dev", "/dev/pts", "/sys", "/sys/fs/cgroup", "/dev/mqueue", "/dev/shm",
    ]  # fmt: skip
    assert "ro" in mount_at(config, "/sys")["options"]
    assert "ro" in mount_at(config, "/sys/fs/cgroup")["options"]
    assert config["linux"]["maskedPaths"] == list(MASKED_PATHS)
    assert "/proc/sys" in config["linux"]["readonlyPaths"]
    assert config["linux"]["seccomp"]["defaultAction"] == "SCMP_ACT_ERRNO"
    assert config["annotations"]["run.oci.seccomp_bpf_data"]
    assert config["linux"]["resources"]["devices"][0] == {"allow": False, "access": "rwm"}


def test_runc_gets_no_ready_made_filter() -> None:
    assert build(oci_runtime="runc").config["annotations"] == {}


def test_privileged_lifts_everything() -> None:
    config = build(ContainerSpec(security=SecuritySpec(privileged=True))).config
    assert set(config["process"]["capabilities"]["effective"]) == set(ALL)
    assert not {"seccomp", "maskedPaths", "readonlyPaths"} & set(config["linux"])
    assert config["linux"]["resources"]["devices"] == [{"allow": True, "access": "rwm"}]
    assert "ro" not in mount_at(config, "/sys")["options"]


def test_user_mounts_replace_defaults_and_come_parents_first() -> None:
    container = ContainerSpec(
        mounts=(
            Mount(target="/data/sub/", source="/usr", read_only=True),
            Mount(target="/data", type="volume", source="v"),
            Mount(target="/dev/shm", type="tmpfs", size_bytes=1024, options=("exec",)),
        )
    )
    config = build(container, sources={"/data": "/volumes/v"}, mounts=({"destination": "/etc/hosts"},)).config
    places = [m["destination"] for m in config["mounts"]]
    assert places[-4:] == ["/data", "/data/sub", "/dev/shm", "/etc/hosts"] or places.index("/data") < places.index(
        "/data/sub"
    )
    assert places.count("/dev/shm") == 1
    assert mount_at(config, "/data")["source"] == "/volumes/v"
    assert {"rbind", "rprivate", "rro"} <= set(mount_at(config, "/data/sub")["options"])
    shm = mount_at(config, "/dev/shm")["options"]
    assert "exec" in shm
    assert "noexec" not in shm
    assert "size=1024" in shm


def test_propagation_reaches_the_root() -> None:
    shared = ContainerSpec(mounts=(Mount(target="/m", source="/s", propagation="rshared"),))
    assert build(shared).config["linux"]["rootfsPropagation"] == "shared"
    slave = ContainerSpec(mounts=(Mount(target="/m", source="/s", propagation="slave"),))
    assert build(slave).config["linux"]["rootfsPropagation"] == "rslave"
    assert "rootfsPropagation" not in build().config["linux"]


@pytest.mark.parametrize(
    ("mount", "words"),
    [
        (Mount(target="data", source="/s"), "not an absolute path"),
        (Mount(target="/", source="/s"), "cover the root"),
        (Mount(target="/a/../..", source="/s"), "cover the root"),
        (Mount(target="/proc/sys", source="/s"), "inside /proc"),
        (Mount(target="/x/../proc", source="/s"), "inside /proc"),
        (Mount(target="/m", source="relative"), "relative"),
        (Mount(target="/m", source="/s", options=("frob",)), "frob"),
        (Mount(target="/m", type="tmpfs", options=("source=/etc",)), "source=/etc"),
        (Mount(target="/m", source="/s", options=("size=1",)), "size=1"),
        (Mount(target="/m", type="volume", source="v"), "not an absolute path"),
    ],
)
def test_bad_mounts(mount: Mount, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        build(ContainerSpec(mounts=(mount,)))


def test_two_mounts_at_one_place() -> None:
    twice = (Mount(target="/m", source="/a"), Mount(target="/m/", source="/b"))
    with pytest.raises(InvalidArgument, match="two mounts at /m"):
        build(ContainerSpec(mounts=twice))


def kinds(config: dict[str, Any]) -> dict[str, str]:
    return {space["type"]: space.get("path", "") for space in config["linux"]["namespaces"]}


def test_namespaces_joined_made_or_shared() -> None:
    joined = build(namespaces={"network": "/n", "ipc": "/i", "uts": "/u", "pid": None}).config
    assert kinds(joined) == {"mount": "", "cgroup": "", "network": "/n", "ipc": "/i", "uts": "/u", "pid": ""}
    assert "hostname" not in joined
    assert build().config["hostname"] == "web"
    host = PodSpec(network=NetworkSpec(mode="host"), namespaces=Namespaces(ipc="host", uts="host", pid="host"))
    assert kinds(build(pod=host).config) == {"mount": "", "cgroup": ""}
    shared = PodSpec(namespaces=Namespaces(pid="pod"))
    assert kinds(build(pod=shared, namespaces={"pid": "/p"}).config)["pid"] == "/p"


def test_user_namespace_maps_ids_and_refuses_unmapped_ones() -> None:
    maps = (IdMap(inside=0, outside=100000, count=65536),)
    pod = PodSpec(namespaces=Namespaces(user=UserNamespace(uids=maps, gids=maps)))
    linux = build(pod=pod, uid_maps=maps, gid_maps=maps).config["linux"]
    assert linux["uidMappings"] == [{"containerID": 0, "hostID": 100000, "size": 65536}]
    far = ResolvedUser(uid=70000, gid=0, groups=(0,), home="/", name="")
    with pytest.raises(InvalidArgument, match="uid 70000"):
        build(pod=pod, uid_maps=maps, gid_maps=maps, user=far)
    few = (IdMap(inside=0, outside=100000, count=1),)
    config = build(pod=pod, uid_maps=few, gid_maps=few).config
    assert "gid=5" not in mount_at(config, "/dev/pts")["options"]


@pytest.mark.parametrize(
    ("sysctls", "pod", "words"),
    [
        ({"vm.swappiness": "1"}, PodSpec(), "vm.swappiness is not namespaced"),
        ({"kernel/shmmax": "1"}, PodSpec(namespaces=Namespaces(ipc="host")), "kernel.shmmax"),
        ({"net.ipv4.ip_forward": "1"}, PodSpec(network=NetworkSpec(mode="host")), "net.ipv4.ip_forward"),
        ({"kernel.hostname": "x"}, PodSpec(), "kernel.hostname"),
        ({"net..x": "1"}, PodSpec(), "bad sysctl"),
        ({"net/../kernel/x": "1"}, PodSpec(), "bad sysctl"),
    ],
)
def test_sysctls_that_are_refused(sysctls: dict[str, str], pod: PodSpec, words: str) -> None:
    import msgspec

    with pytest.raises(InvalidArgument, match=words):
        build(pod=msgspec.structs.replace(pod, sysctls=sysctls))


def test_sysctls_are_set_unless_somebody_did() -> None:
    pod = PodSpec(sysctls={"net/ipv4/ip_forward": "1", "fs.mqueue.msg_max": "20"})
    assert build(pod=pod).config["linux"]["sysctl"] == {"net.ipv4.ip_forward": "1", "fs.mqueue.msg_max": "20"}
    assert "sysctl" not in build(pod=pod, sysctls_applied=True).config["linux"]


def test_hooks_keep_their_order() -> None:
    first = Hooks(prestart=(Hook(path="/a"),))
    second = Hooks(prestart=(Hook(path="/b", args=("x",), timeout_s=3),), poststop=(Hook(path="/c", env=("K=V",)),))
    assert build(ContainerSpec(hooks=second), hooks=first).config["hooks"] == {
        "prestart": [
            {"path": "/a", "args": ["/a"], "env": []},
            {"path": "/b", "args": ["/b", "x"], "env": [], "timeout": 3},
        ],
        "poststop": [{"path": "/c", "args": ["/c"], "env": ["K=V"]}],
    }


def test_init_goes_before_argv() -> None:
    config = build(init="/usr/bin/tini").config
    assert config["process"]["args"] == ["/dev/init", "--", "sh"]
    assert mount_at(config, "/dev/init")["source"] == "/usr/bin/tini"


def test_image_volumes_not_covered() -> None:
    image = Image(volumes=("/data", "/logs/"))
    assert image_volumes(ContainerSpec(mounts=(Mount(target="/data", source="/x"),)), image) == ["/logs"]


@pytest.mark.parametrize(
    ("container", "error", "words"),
    [
        (ContainerSpec(entrypoint=(), argv=()), InvalidArgument, "no command"),
        (ContainerSpec(argv=("a\0b",)), InvalidArgument, "NUL"),
        (ContainerSpec(env=("=x",)), InvalidArgument, "no name"),
        (ContainerSpec(env=("A=\0",)), InvalidArgument, "NUL"),
        (ContainerSpec(cwd="tmp"), InvalidArgument, "'tmp' is not an absolute"),
        (ContainerSpec(oom_score_adj=1001), InvalidArgument, "1001"),
        (ContainerSpec(rlimits=(Rlimit(name="files", soft=1, hard=1),)), InvalidArgument, "files"),
        (ContainerSpec(rlimits=(Rlimit(name="nofile", soft=2, hard=1),)), InvalidArgument, "above"),
        (ContainerSpec(rlimits=(Rlimit(name="nofile", soft=-2, hard=1),)), InvalidArgument, "negative"),
        (ContainerSpec(security=SecuritySpec(cap_add=("FOO",))), InvalidArgument, "FOO"),
        (ContainerSpec(annotations={"run.oci.hooks.stdout": "/etc/x"}), InvalidArgument, "run.oci.hooks.stdout"),
        (ContainerSpec(hooks=Hooks(prestart=(Hook(path="x"),))), InvalidArgument, "hook 'x'"),
        (ContainerSpec(security=SecuritySpec(masked_paths=("etc",))), InvalidArgument, "etc"),
    ],
)
def test_bad_specs(container: ContainerSpec, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        build(container, image=Image(cmd=() if container.entrypoint == () else ("sh",)))


def test_missing_capability_is_unsupported() -> None:
    with pytest.raises(Unsupported, match="CAP_SYS_RESOURCE"):
        build(ContainerSpec(security=SecuritySpec(cap_add=("sys_resource",))), host=POOR)


def test_exec_takes_the_rest_from_the_container() -> None:
    base = build(ContainerSpec(env=("A=1",), cwd="/w", rlimits=(Rlimit(name="nofile", soft=1, hard=1),))).config
    made = build_process(
        base["process"], ExecSpec(argv=("id",), env=("B=2", "A"), user="alice", tty=True), ALICE, host=HOST
    )
    assert made["args"] == ["id"]
    assert made["cwd"] == "/w"
    assert made["rlimits"] == base["process"]["rlimits"]
    assert "A=1" not in made["env"]
    assert {"B=2", "TERM=xterm", "HOME=/home/alice"} <= set(made["env"])
    assert made["capabilities"]["effective"] == []
    assert base["process"]["args"] == ["sh"]


def test_privileged_exec_has_all() -> None:
    made = build_process(build().config["process"], ExecSpec(argv=("id",), privileged=True), ROOT, host=HOST)
    assert set(made["capabilities"]["effective"]) == set(ALL)
    assert made["noNewPrivileges"] is False


@pytest.mark.parametrize(
    "spec",
    [
        ExecSpec(argv=()),
        ExecSpec(argv=("x",), cwd="rel"),
        ExecSpec(argv=("x",), env=("=",)),
        ExecSpec(argv=("echo", "a\0b")),
    ],
)
def test_bad_execs(spec: ExecSpec) -> None:
    with pytest.raises(InvalidArgument):
        build_process(build().config["process"], spec, ROOT, host=HOST)
