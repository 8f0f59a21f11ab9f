"""The configs we build, run by crun and by runc: what the workload finds is what was asked for."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from drupe.oci import seccomp
from drupe.oci.build import MASKED_PATHS, BuildInputs, build_container
from drupe.oci.capabilities import ALL, DEFAULT, host_capabilities
from drupe.oci.exec import build_process
from drupe.oci.users import resolve_user
from drupe.oci.validate import parse_config
from drupe.resources.cgroups import Cgroups, detect
from drupe.resources.devices import resolve_devices
from drupe.spec import (
    ContainerSpec,
    Device,
    ExecSpec,
    Hook,
    Hooks,
    IdMap,
    Mount,
    Namespaces,
    NetworkSpec,
    PodSpec,
    Resources,
    Rlimit,
    SecuritySpec,
    UserNamespace,
)
from framework import probes
from framework.leaks import CGROUP_PARENT

pytestmark = pytest.mark.root
NUMBERS = itertools.count()
POD = PodSpec(network=NetworkSpec(mode="none"))
# crun refuses a hybrid cgroup tree: hide the v2 half from it, in a mount namespace of its own
HIDE = "umount /sys/fs/cgroup/unified 2>/dev/null && mount --bind /sys/fs/cgroup/systemd /sys/fs/cgroup/unified; "
OVERFLOW_PASSWD = "root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh\n"


@dataclass
class Image:
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ("PATH=/bin", "FROM=image")
    cwd: str = ""
    user: str = ""
    volumes: tuple[str, ...] = ()
    stop_signal: str = ""
    labels: dict[str, str] = field(default_factory=dict)


@pytest.fixture(scope="module")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    probes.needs_program("busybox")
    root = tmp_path_factory.mktemp("oci") / "rootfs"
    for name in ("bin", "etc", "proc", "dev", "sys", "tmp", "root", "home/alice", "work"):
        (root / name).mkdir(parents=True)
    shutil.copy(str(probes.program("busybox")), root / "bin/busybox")
    subprocess.run(["chroot", root, "/bin/busybox", "--install", "-s", "/bin"], check=True)
    (root / "etc/passwd").write_text(OVERFLOW_PASSWD)
    (root / "etc/group").write_text("root:x:0:\nalice:x:1000:\nwheel:x:10:alice\n")
    return root


class Runner:
    """Builds a config and runs it to its end."""

    def __init__(self, runtime: str, rootfs: Path, directory: Path) -> None:
        probes.needs_program(runtime)
        self.runtime, self.rootfs, self.directory = runtime, rootfs, directory
        self.root_fd = os.open(rootfs, os.O_PATH | os.O_DIRECTORY)
        self.notes: list[str] = []
        self.id = f"drupe-test-{os.getpid()}-{next(NUMBERS)}"
        self.cgroup = f"/{CGROUP_PARENT}/{self.id}"

    def config(self, script: str, *, pod: PodSpec = POD, inputs: dict[str, Any] | None = None, **spec: Any) -> Any:
        container = ContainerSpec(argv=("sh", "-c", script), **spec)
        built = build_container(
            pod=pod,
            container=container,
            image=Image(),
            user=resolve_user(self.root_fd, container.user, container.groups),
            inputs=BuildInputs(
                container_id=self.id,
                rootfs=str(self.rootfs),
                hostname="web",
                cgroups_path=self.cgroup,
                oci_runtime=self.runtime,
                **(inputs or {}),
            ),
        )
        self.notes = built.notes
        parse_config(built.config)  # what we build passes our own check of foreign configs
        return built.config

    def __call__(self, script: str, *, check: bool = True, **spec: Any) -> str:
        """Run a shell script in a container; its output, errors included."""
        done = self.run(self.config(script, **spec))
        if check:
            assert done.returncode == 0, done.stdout
        return done.stdout

    def run(self, config: Any) -> subprocess.CompletedProcess[str]:
        (self.directory / "config.json").write_text(json.dumps(config))
        return self.oci("run", "-b", str(self.directory), self.id)

    def start(self, config: Any, *verb: str) -> None:
        """`create` or `run --detach`: its output would be the workload's own, which holds it open."""
        (self.directory / "config.json").write_text(json.dumps(config))
        done = self.oci(*verb, "-b", str(self.directory), self.id, stdout=subprocess.DEVNULL)
        assert done.returncode == 0

    def oci(self, *args: str, stdout: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
        command = f'{HIDE}exec {self.runtime} --root {self.directory}/state "$@"'
        argv = ["unshare", "-m", "--propagation", "private", "sh", "-c", command, "sh", *args]
        out = {"stdout": stdout, "stderr": subprocess.STDOUT if stdout == subprocess.PIPE else stdout}
        return subprocess.run(argv, stdin=subprocess.DEVNULL, text=True, timeout=60, **out)  # type: ignore[call-overload,no-any-return]


@pytest.fixture(params=["crun", "runc"])
def run(request: pytest.FixtureRequest, rootfs: Path, tmp_path: Path) -> Iterator[Runner]:
    runner = Runner(request.param, rootfs, tmp_path)
    yield runner
    runner.oci("delete", "--force", runner.id)
    os.close(runner.root_fd)
    cgroups = detect()
    cgroups.kill_all(runner.cgroup)
    cgroups.delete(runner.cgroup)
    cgroups.delete(f"/{CGROUP_PARENT}")


def fields(status: str) -> dict[str, str]:
    return dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)


def bits(caps: tuple[str, ...] | frozenset[str]) -> int:
    return sum(1 << number for number, name in enumerate(ALL) if name in caps)


def test_root_gets_the_default_capabilities_and_filter(run: Runner) -> None:
    status = fields(run("cat /proc/self/status"))
    for kind in ("CapPrm", "CapEff", "CapBnd"):
        assert int(status[kind], 16) == bits(DEFAULT)
    assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


def test_a_user_has_only_what_was_named(run: Runner) -> None:
    out = run("id; cat /proc/self/status", user="alice", security=SecuritySpec(cap_add=("NET_ADMIN",)))
    assert out.splitlines()[0] == "uid=1000(alice) gid=1000(alice) groups=10(wheel),1000(alice)"
    status = fields(out)
    assert int(status["CapEff"], 16) == int(status["CapAmb"], 16) == bits(("CAP_NET_ADMIN",))
    assert int(status["CapBnd"], 16) == bits((*DEFAULT, "CAP_NET_ADMIN"))
    assert fields(run("cat /proc/self/status", user="alice"))["CapEff"] == "0" * 16


def test_environment_arguments_and_directory(run: Runner) -> None:
    config = run.config("", env=("A=1", "B=two words"), cwd="/work", user="alice")
    config["process"]["args"] = ["env"]  # no shell: it would sort and add
    assert run.run(config).stdout.splitlines() == [
        "PATH=/bin", "HOSTNAME=web", "A=1", "B=two words", "FROM=image", "HOME=/home/alice",
    ]  # fmt: skip
    assert run("pwd; hostname", cwd="/work") == "/work\nweb\n"


def test_seccomp_denies_new_namespaces_and_mounts(run: Runner) -> None:
    out = run("unshare -U true; echo $?; unshare -n true; echo $?; mount -t tmpfs x /tmp; echo $?", check=False)
    assert out.count("Operation not permitted") + out.count("permission denied") >= 2
    assert out.splitlines()[-1] != "0"
    free = run("unshare -U true; echo $?", security=SecuritySpec(seccomp="unconfined"))
    assert free == "0\n"


def test_custom_profile(run: Runner, tmp_path: Path) -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}],
    }
    (tmp_path / "profile.json").write_text(json.dumps(profile))
    out = run("mkdir /tmp/x; echo $?", security=SecuritySpec(seccomp=str(tmp_path / "profile.json")))
    assert "not supported" in out
    assert "1" in out.splitlines()


def test_crun_takes_the_same_program_that_it_would_compile(rootfs: Path, tmp_path: Path) -> None:
    runner = Runner("crun", rootfs, tmp_path)
    try:
        config = runner.config("sleep 60")
        config["annotations"] = {}  # so that crun compiles for itself
        runner.start(config, "create")
        its = (tmp_path / "state" / runner.id / "seccomp.bpf").read_bytes()
        assert its == seccomp.compile_oci(config["linux"]["seccomp"])
    finally:
        runner.oci("delete", "--force", runner.id)
        os.close(runner.root_fd)
        detect().delete(f"/{CGROUP_PARENT}")


def test_masked_and_read_only_paths(run: Runner) -> None:
    masked = [path for path in MASKED_PATHS if Path(path).exists()]
    assert masked
    script = "".join(f"if [ -d {p} ]; then ls -A {p}; else cat {p}; fi; " for p in masked)
    assert run(script) == ""
    for path in filter(os.path.exists, ("/proc/sys/kernel/domainname", "/proc/sysrq-trigger")):
        assert "Read-only file system" in run(f"echo x > {path}", check=False)
    assert run("head -c1 /proc/interrupts | wc -c", security=SecuritySpec(masked_paths=())) == "1\n"
    shown = run("echo web > /proc/sys/kernel/domainname; cat /proc/sys/kernel/domainname",
                security=SecuritySpec(read_only_paths=(), cap_add=("SYS_ADMIN",)))  # fmt: skip
    assert shown == "web\n"


def test_rlimits_and_oom_score(run: Runner) -> None:
    hard = 20000 if "CAP_SYS_RESOURCE" not in host_capabilities() else 1_000_000
    out = run(
        "ulimit -Sn; ulimit -Hn; cat /proc/self/oom_score_adj",
        rlimits=(Rlimit(name="nofile", soft=100, hard=1_000_000),), oom_score_adj=300,
    )  # fmt: skip
    soft, limit, score = out.split()
    assert (soft, score) == ("100", "300")
    if "CAP_SYS_RESOURCE" in host_capabilities():
        assert (int(limit), run.notes) == (hard, [])
    else:
        assert int(limit) < 1_000_000
        assert "nofile" in run.notes[0]


def test_read_only_root_with_writable_mounts(run: Runner, tmp_path: Path) -> None:
    (tmp_path / "bind").mkdir()
    (tmp_path / "ro").mkdir()
    scratch = f"/scratch-{run.runtime}"  # runc gives a tmpfs the mode of a directory that is there already
    mounts = (
        Mount(target=scratch, type="tmpfs", size_bytes=1 << 20, mode=0o700),
        Mount(target="/b", source=str(tmp_path / "bind")),
        Mount(target="/r", source=str(tmp_path / "ro"), read_only=True),
    )
    out = run(
        f"touch /x; touch /r/x; echo hi > /b/f; touch {scratch}/f; stat -c %a {scratch}; grep {scratch} /proc/mounts",
        read_only=True, mounts=mounts, check=False,
    )  # fmt: skip
    assert out.count("Read-only file system") == 2
    assert (tmp_path / "bind/f").read_text() == "hi\n"
    assert "700\n" in out
    assert "nosuid,nodev,noexec" in out
    assert "size=1024k" in out


def test_default_devices_and_one_more(run: Runner) -> None:
    out = run("cd /dev; ls -d null zero full random urandom tty pts ptmx shm mqueue fd stdin stdout stderr; cat null")
    assert len(out.split()) == 14
    # the node can be made, but not opened: the device cgroup decides
    control = Path("/dev/loop-control")
    if not control.exists():
        pytest.skip("no /dev/loop-control to hand on")
    major, minor = os.major(control.stat().st_rdev), os.minor(control.stat().st_rdev)
    denied = run(f"mknod /tmp/k c {major} {minor} && cat < /tmp/k; rm -f /tmp/k", check=False)
    assert "Operation not permitted" in denied
    found = resolve_devices([Device(path=str(control), target="/dev/mine", permissions="r")])
    given = {"devices": found.devices, "device_rules": found.rules}
    # one stream for both: two are drained side by side, in whatever order
    out = run("{ true < /dev/mine && echo read; true > /dev/mine; } 2>&1", inputs=given, check=False)
    assert out.startswith("read\n")
    assert "Operation not permitted" in out


def test_namespaces_are_its_own(run: Runner) -> None:
    out = run("for n in mnt net ipc uts pid cgroup; do readlink /proc/self/ns/$n; done; ls /sys/class/net; ps | wc -l")
    inside = out.splitlines()
    for name, seen in zip(("mnt", "net", "ipc", "uts", "pid", "cgroup"), inside, strict=False):
        assert seen.startswith(f"{name}:[")
        assert seen != str(Path(f"/proc/self/ns/{name}").readlink())
    assert inside[6] == "lo"


def test_shared_and_joined_namespaces(run: Runner) -> None:
    host = PodSpec(network=NetworkSpec(mode="host"), namespaces=Namespaces(ipc="host", uts="host", pid="host"))
    out = run("for n in net ipc uts pid; do readlink /proc/self/ns/$n; done", pod=host)
    assert out.split() == [str(Path(f"/proc/self/ns/{n}").readlink()) for n in ("net", "ipc", "uts", "pid")]
    holder = subprocess.Popen(["unshare", "-n", "-u", "sleep", "60"])
    try:
        while Path(f"/proc/{holder.pid}/ns/net").readlink() == Path("/proc/self/ns/net").readlink():
            pass
        paths = {"network": f"/proc/{holder.pid}/ns/net", "uts": f"/proc/{holder.pid}/ns/uts"}
        out = run("readlink /proc/self/ns/net; readlink /proc/self/ns/uts", inputs={"namespaces": paths})
        assert out.split() == [str(Path(p).readlink()) for p in paths.values()]
    finally:
        holder.kill()
        holder.wait()


def test_user_namespace(run: Runner, tmp_path: Path) -> None:
    for parent in (run.rootfs, *run.rootfs.parents, tmp_path, *tmp_path.parents):
        if parent != Path("/") and "pytest" in str(parent):
            parent.chmod(0o755)
    maps = (IdMap(inside=0, outside=200_000, count=65536),)
    pod = PodSpec(network=NetworkSpec(mode="none"), namespaces=Namespaces(user=UserNamespace(uids=maps, gids=maps)))
    out = run("id -u; cat /proc/self/uid_map; cat /proc/self/status", pod=pod,
              inputs={"uid_maps": maps, "gid_maps": maps})  # fmt: skip
    lines = out.splitlines()
    assert lines[0] == "0"
    assert lines[1].split() == ["0", "200000", "65536"]
    assert int(fields(out)["CapEff"], 16) == bits(DEFAULT)


def test_privileged_has_all_the_host_has(run: Runner) -> None:
    out = run("cat /proc/self/status; mount -t tmpfs x /tmp && echo mounted",
              security=SecuritySpec(privileged=True, no_new_privileges=False))  # fmt: skip
    status = fields(out)
    assert int(status["CapEff"], 16) == bits(host_capabilities())
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("0", "0")
    assert out.endswith("mounted\n")


def test_sysctls(run: Runner) -> None:
    pod = PodSpec(network=NetworkSpec(mode="none"), sysctls={"net.ipv4.ip_forward": "1", "kernel.msgmax": "12345"})
    assert run("cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax", pod=pod) == "1\n12345\n"


def test_hooks_run_in_order_with_the_state(run: Runner, tmp_path: Path) -> None:
    log = tmp_path / "hooks"
    hook = tmp_path / "hook.sh"
    hook.write_text(f'#!/bin/sh\nprintf "%s " "$1" >> {log}; cat > {tmp_path}/state-$1.json; chmod 666 {log}\n')
    hook.chmod(0o755)
    named = {p: (Hook(path=str(hook), args=(p,)),) for p in ("prestart", "create_runtime", "poststart", "poststop")}
    run("true", hooks=Hooks(**named))
    run.oci("delete", "--force", run.id)
    order = log.read_text().split()
    assert order[:3] == ["prestart", "create_runtime", "poststart"]
    assert "poststop" in order
    assert json.loads((tmp_path / "state-prestart.json").read_text())["id"] == run.id


def test_limits_of_the_config_hold(run: Runner) -> None:
    cgroups = detect()
    wanted = Resources(memory_bytes=64 << 20, cpus=0.5, cpu_shares=200, pids=50, cpuset_cpus="0")
    config = run.config("sleep 60", inputs={"resources": cgroups.resources_to_oci(wanted)})
    run.start(config, "create")
    assert cgroups.verify(run.cgroup, wanted) == []
    assert len(cgroups.pids(run.cgroup)) == 1
    assert_updates(cgroups, run.cgroup)


def assert_updates(cgroups: Cgroups, path: str) -> None:
    update = Resources(memory_bytes=32 << 20, cpus=1.0, pids=20)
    cgroups.apply(path, update)
    assert cgroups.verify(path, update) == []


def test_exec_process_file(run: Runner, tmp_path: Path) -> None:
    config = run.config("sleep 60", env=("A=1",))
    run.start(config, "run", "--detach")
    spec = ExecSpec(argv=("sh", "-c", "id -u; pwd; echo $A $B $HOME; cat /proc/self/status"), user="alice", cwd="/work",
                    env=("B=2",))  # fmt: skip
    process = build_process(config["process"], spec, resolve_user(run.root_fd, "alice"))
    (tmp_path / "process.json").write_text(json.dumps(process))
    done = run.oci("exec", "--process", str(tmp_path / "process.json"), run.id)
    lines = done.stdout.splitlines()
    assert lines[:3] == ["1000", "/work", "1 2 /home/alice"], done.stdout
    status = fields(done.stdout)
    assert int(status["CapEff"], 16) == 0
    assert int(status["CapBnd"], 16) == bits(DEFAULT)
    assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1")


def test_bind_propagation(run: Runner, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for wanted, expected in (("rslave", "master:"), ("rprivate", "")):
        mount = Mount(target="/m", source=str(source), propagation=wanted)  # type: ignore[arg-type]
        config = run.config("grep ' /m ' /proc/self/mountinfo", mounts=(mount,))
        (run.directory / "config.json").write_text(json.dumps(config))
        script = (f"{HIDE}mount --bind {source} {source} && mount --make-shared {source} && "
                  f"{run.runtime} --root {run.directory}/state run -b {run.directory} {run.id}")  # fmt: skip
        done = subprocess.run(["unshare", "-m", "--propagation", "private", "sh", "-c", script],
                              capture_output=True, text=True, stdin=subprocess.DEVNULL)  # fmt: skip
        assert done.returncode == 0, done.stderr
        options = done.stdout.split(" - ")[0].split()[6:]
        assert "".join(options).startswith(expected), done.stdout
        assert bool(options) == bool(expected)


def test_podman_would_give_the_same(rootfs: Path, tmp_path: Path) -> None:
    """Podman's own defaults, where it gives any: the same masked paths, and no capability that we do not give."""
    probes.needs_program("podman")
    short = Path(tempfile.mkdtemp(prefix="dp", dir="/tmp"))  # podman wants a run root of under 50 characters
    argv = [
        "podman", "--root", str(short / "p"), "--runroot", str(short / "r"), "--cgroup-manager", "cgroupfs",
        "--events-backend", "none", "--runtime", "crun", "run", "--rm", "--network", "none", "--cgroups", "disabled",
        "--ulimit", "nofile=1000:1000", "--ulimit", "nproc=1000:1000", "--rootfs", str(rootfs),
        "cat", "/proc/self/status", "/proc/self/mountinfo",
    ]  # fmt: skip
    try:
        done = subprocess.run(
            ["unshare", "-m", "--propagation", "private", "sh", "-c", f'{HIDE}exec "$@"', "sh", *argv],
            capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60,
        )  # fmt: skip
    finally:
        subprocess.run(["rm", "-rf", short], check=True)
    if done.returncode != 0:
        pytest.skip(f"podman does not run here: {done.stderr.strip().splitlines()[-1][:200]}")
    status = fields(done.stdout)
    theirs = int(status["CapEff"], 16)
    assert theirs & ~bits(DEFAULT) == 0
    assert status["Seccomp"] == "2"
    masked = {
        line.split()[4] for line in done.stdout.splitlines() if " - " in line and line.split()[4].startswith("/proc/")
    }
    writable = {"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
    assert masked - writable <= set(MASKED_PATHS)
