"""What proves each feature that Linux programs can see: one function a feature, named after it.

A proof runs on every kind that declares its feature (`yes`, or `limited`, if the proof is within the limits), through
the whole of drupe. Features of calls on what runs (exec, pause…) are proved by the sandboxer suite.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from stage import Stage

from drupe.spec import ContainerSpec, Hook, Hooks, Namespaces, Resources, SecuritySpec
from drupe.spec.container import IDLE, Mount
from framework.leaks import wait_until

EAT = "x=a; while :; do x=$x$x; done"
Proof = Callable[[Stage], None]
PROOFS: dict[str, Proof] = {}


def proves(feature: str) -> Callable[[Proof], Proof]:
    """Take a function as the proof of a feature."""

    def take(proof: Proof) -> Proof:
        PROOFS[feature] = proof
        return proof

    return take


# -- what it runs -----------------------------------------------------------------------------------------------------


@proves("linux-programs")
def _(on: Stage) -> None:
    assert on.sh("uname; echo $((6 * 7))") == "Linux\n42"


@proves("rootfs")
def _(on: Stage) -> None:
    root = on.tmp / "root"
    (root / "bin").mkdir(parents=True)
    busybox = Path("/bin/busybox")
    (root / "bin/busybox").write_bytes(busybox.read_bytes())
    (root / "bin/busybox").chmod(0o755)
    argv = ("/bin/busybox", "echo", "from a directory")
    assert on.output(on.pod(ContainerSpec(rootfs=str(root), argv=argv))) == "from a directory"


@proves("multi-container")
def _(on: Stage) -> None:
    server = on.script("echo over localhost >/tmp/index.html; httpd -f -p 80 -h /tmp")
    client = on.script("for n in $(seq 50); do wget -qO- http://127.0.0.1 2>/dev/null && exit; sleep 0.1; done")
    assert on.output(on.pod(server, client), 1) == "over localhost"


@proves("idle")
def _(on: Stage) -> None:
    pod = on.pod(ContainerSpec(image="busybox", annotations={IDLE: "true"}))
    assert on.command("exec", pod.containers[0].id, "echo", "hello") == "hello"


@proves("init")
def _(on: Stage) -> None:
    """The program is not the first process, and an orphan is reaped."""
    script = "test $$ != 1 && (sleep 0.05 & ) ; sleep 0.3; ps -o stat,comm | grep -c '^Z' "
    assert on.sh(script, "--init", code=1) == "0"


# -- the process ------------------------------------------------------------------------------------------------------


@proves("cwd")
def _(on: Stage) -> None:
    assert on.sh("pwd", "-w", "/usr") == "/usr"


@proves("user")
def _(on: Stage) -> None:
    assert on.sh("id -u; id -g; id -G", "-u", "1234:2345", "--group-add", "99") == "1234\n2345\n2345 99"


@proves("rlimits")
def _(on: Stage) -> None:
    assert on.sh("ulimit -Sn; ulimit -Hn", "--ulimit", "nofile=100:200") == "100\n200"


@proves("oom-score")
def _(on: Stage) -> None:
    on.background("scored", "sleep 100", "--oom-score-adj", "500")
    pid = on.inspect("scored")["status"]["pid"]
    assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "500\n"


@proves("tty")
def _(on: Stage) -> None:
    pod = on.pod(on.script("test -t 0 && test -t 1 && echo a terminal", tty=True))
    assert on.output(pod) == "a terminal"


@proves("signals")
def _(on: Stage) -> None:
    on.background("caught", "trap 'exit 42' USR1; while :; do sleep 0.05; done", "--stop-signal", "USR1")
    on.command("stop", "-t", "20", "caught")
    assert on.inspect("caught")["status"]["exit"]["code"] == 42


# -- files ------------------------------------------------------------------------------------------------------------


@proves("read-only-root")
def _(on: Stage) -> None:
    assert "Read-only file system" in on.sh("touch /x", "--read-only", code=1)
    assert on.sh("touch /x && ls /x") == "/x"


def _shared(on: Stage) -> Path:
    shared = on.tmp / "shared"
    shared.mkdir()
    (shared / "in").write_text("from the host\n")
    return shared


@proves("bind-mounts")
def _(on: Stage) -> None:
    shared = _shared(on)
    assert on.sh("cat /m/in; echo from inside >/m/out", "-v", f"{shared}:/m") == "from the host"
    assert (shared / "out").read_text() == "from inside\n"


@proves("read-only-mounts")
def _(on: Stage) -> None:
    shared = _shared(on)
    assert "Read-only file system" in on.sh("cat /m/in >/dev/null && touch /m/in", "-v", f"{shared}:/m:ro", code=1)


@proves("mount-options")
def _(on: Stage) -> None:
    said = on.sh("cp /bin/busybox /m/busybox; /m/busybox true", "--tmpfs", "/m:noexec", code=126)
    assert "Permission denied" in said


@proves("volumes")
def _(on: Stage) -> None:
    on.sh("echo kept >/v/file", "-v", "proof:/v")
    assert on.sh("cat /v/file", "-v", "proof:/v") == "kept"
    on.command("volume", "rm", "proof")


@proves("tmpfs")
def _(on: Stage) -> None:
    script = "stat -c %a /t; df -k /t | awk 'END { print $2 }'; dd if=/dev/zero of=/t/x bs=64k count=40"
    said = on.sh(script, "--tmpfs", "/t:size=1m,mode=1770", code=1)
    assert said.startswith("1770\n1024\n") and "No space left" in said


@proves("image-mounts")
def _(on: Stage) -> None:
    flag = "type=image,source=busybox,target=/i"
    assert on.sh("/i/bin/busybox echo found; touch /i/x 2>/dev/null || echo read-only", "--mount", flag) == (
        "found\nread-only"
    )


@proves("secrets")
def _(on: Stage) -> None:
    (on.tmp / "token").write_text("s3cret")
    flag = f"id=token,src={on.tmp}/token,mode=0440"
    assert on.sh("cat /run/secrets/token; stat -c ' %a' /run/secrets/token", "--secret", flag) == "s3cret 440"


@proves("shm-size")
def _(on: Stage) -> None:
    assert on.sh("df -k /dev/shm | awk 'END { print $2 }'", "--shm-size", "2m") == "2048"


@proves("devices")
def _(on: Stage) -> None:
    assert on.sh("echo x >/dev/sink && test -c /dev/sink && echo there", "--device", "/dev/null:/dev/sink") == "there"


# -- limits -----------------------------------------------------------------------------------------------------------


@proves("cpu-limits")
def _(on: Stage) -> None:
    on.background("slow", "while :; do :; done", "--cpus", "0.2")

    def throttled() -> bool:
        found = json.loads(on.command("stats", "--no-stream", "--json", "slow"))
        stats = (found[0] if isinstance(found, list) else found)["stats"]
        return bool(stats["cpu_throttled_periods"])

    wait_until(throttled, what="it is held back")


@proves("cpu-sets")
def _(on: Stage) -> None:
    on.background("pinned", "sleep 100", "--cpuset-cpus", "0")
    pid = on.inspect("pinned")["status"]["pid"]
    assert os.sched_getaffinity(pid) == {0}


@proves("memory-limit")
def _(on: Stage) -> None:
    flags = ("run", "--rm", "--sandbox", on.kind, "--network", "none", "--memory", "64m")
    done = on.daemon.command(*flags, "busybox", "sh", "-c", EAT)
    assert done.returncode == 137 and "out of memory (limit 64 MiB)" in done.stderr, done.stderr


@proves("memory-tuning")
def _(on: Stage) -> None:
    on.background("tuned", "sleep 100", "--memory", "96m", "--memory-reservation", "48m")
    assert 48 << 20 in _cgroup_values(on, "tuned", "memory.soft_limit_in_bytes", "memory.low")


@proves("pids-limit")
def _(on: Stage) -> None:
    said = on.sh("for n in $(seq 40); do sleep 5 & done; echo all", "--pids-limit", "20", code=2)
    assert "can't fork" in said


@proves("container-limits")
def _(on: Stage) -> None:
    """One container is killed at its limit; its neighbour, which has none, is not."""
    eater = on.script(EAT, resources=Resources(memory_bytes=64 << 20))
    free = on.script("sleep 1; dd if=/dev/zero of=/dev/shm/x bs=1M count=60 2>/dev/null && echo enough")
    pod = on.pod(eater, free)
    assert on.output(pod, 1) == "enough"
    assert on.inspect(pod.containers[0].id)["status"]["exit"]["reason"] == "OOMKilled"


def _cgroup_values(on: Stage, ref: str, *files: str) -> set[int]:
    """The values of the first of `files` that is there, in the cgroups of the container's first process."""
    pid = on.inspect(ref)["status"]["pid"]
    found = set()
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for base in (Path("/sys/fs/cgroup") / controllers, Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory")):
            for file in files:
                if (base / path.lstrip("/") / file).exists():
                    found.add(int((base / path.lstrip("/") / file).read_text().replace("max", "-1")))
    return found


# -- the network and names --------------------------------------------------------------------------------------------


@proves("network")
def _(on: Stage) -> None:
    said = on.sh("ip -4 addr show eth0 | grep -o 'inet [0-9.]*'", network="")
    assert said.startswith("inet 10.") or said.startswith("inet 172."), said


@proves("host-network")
def _(on: Stage) -> None:
    """What listens in the pod is reached at the host's own loopback."""
    script = "echo the host >/tmp/index.html; httpd -f -p 127.0.0.1:8123 -h /tmp"
    on.background("hosted", script, network="host")
    _fetched(on, "http://127.0.0.1:8123", "the host")


@proves("ports")
def _(on: Stage) -> None:
    script = "echo a port >/tmp/index.html; httpd -f -p 80 -h /tmp"
    on.background("served", script, "-p", "8124:80", network="")
    _fetched(on, "http://127.0.0.1:8124", "a port")


def _fetched(on: Stage, url: str, text: str) -> None:
    def fetched() -> bool:
        return text in on.daemon.on_host("busybox", "wget", "-qO-", url).stdout

    wait_until(fetched, what=f"{url} answers")


@proves("egress-policy")
def _(on: Stage) -> None:
    """The same fetch with and without a rule that allows it."""
    on.background("target", "echo reached >/tmp/index.html; httpd -f -p 80 -h /tmp", network="")
    status = json.loads(on.command("inspect", "--type", "pod", "target"))[0]
    address = status["endpoints"][0]["ipv4"].partition("/")[0]
    get = "printf 'GET / HTTP/1.0\\r\\n\\r\\n'"
    fetch = f"for n in 1 2 3 4 5; do {get} | nc -w 2 {address} 80 | grep reached && exit; sleep 0.2; done; exit 9"
    assert on.sh(fetch, "--egress-allow", f"{address}/32", network="").strip() == "reached"
    assert "reached" not in on.sh(
        f"{get} | nc -w 1 {address} 80 | grep reached || exit 9", "--egress-default", "deny", network="", code=9
    )


@proves("names")
def _(on: Stage) -> None:
    flags = ("--dns", "10.9.8.7", "--dns-search", "example.org", "--add-host", "friend:10.1.2.3")
    said = on.sh("cat /etc/resolv.conf /etc/hosts", *flags, network="")
    assert "nameserver " in said and "search example.org" in said and "10.1.2.3\tfriend" in said


@proves("hostname")
def _(on: Stage) -> None:
    assert on.sh("hostname; cat /etc/hostname", "--hostname", "chosen") == "chosen\nchosen"


# -- what is shared ---------------------------------------------------------------------------------------------------


def _namespace(kind: str) -> str:
    return str(Path(f"/proc/self/ns/{kind}").readlink())


@proves("host-pid")
def _(on: Stage) -> None:
    assert on.sh("readlink /proc/self/ns/pid", "--pid", "host") == _namespace("pid")


@proves("host-ipc")
def _(on: Stage) -> None:
    assert on.sh("readlink /proc/self/ns/ipc", "--ipc", "host") == _namespace("ipc")


@proves("host-uts")
def _(on: Stage) -> None:
    assert on.sh("readlink /proc/self/ns/uts", "--uts", "host") == _namespace("uts")


@proves("shared-pid")
def _(on: Stage) -> None:
    seen = on.script("for n in $(seq 50); do ps | grep -q '[s]leep 123' && echo seen && exit; sleep 0.1; done")
    pod = on.pod(on.script("sleep 123"), seen, namespaces=Namespaces(pid="pod"))
    assert on.output(pod, 1) == "seen"


@proves("user-namespace")
def _(on: Stage) -> None:
    inside, outside, count = on.sh("cat /proc/self/uid_map", "--userns", "auto").split()
    assert inside == "0" and int(outside) >= 1_000_000 and int(count) == 65536


@proves("sysctls")
def _(on: Stage) -> None:
    name = "net.ipv4.ip_default_ttl"
    assert on.sh(f"cat /proc/sys/{name.replace('.', '/')}", "--sysctl", f"{name}=77") == "77"


@proves("hooks")
def _(on: Stage) -> None:
    proof = on.tmp / "hooked"
    hook = Hook(path="/bin/sh", args=("-c", f"cat >{proof}"))
    pod = on.pod(on.script("true", hooks=Hooks(create_runtime=(hook,))))
    on.output(pod)
    assert json.loads(proof.read_text())["id"] == pod.containers[0].id


# -- rights -----------------------------------------------------------------------------------------------------------


def _status(on: Stage, key: str, *flags: str) -> int:
    return int(on.sh(f"awk '/^{key}:/ {{ print $2 }}' /proc/self/status", *flags), 16)


@proves("add-capabilities")
def _(on: Stage) -> None:
    net_admin = 1 << 12  # capability.h
    assert not _status(on, "CapEff") & net_admin
    assert _status(on, "CapEff", "--cap-add", "NET_ADMIN") & net_admin


@proves("drop-capabilities")
def _(on: Stage) -> None:
    assert _status(on, "CapEff", "--cap-drop", "ALL") == 0


@proves("seccomp")
def _(on: Stage) -> None:
    rule = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}
    profile = on.tmp / "profile.json"
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
    assert "not permitted" in on.sh("mkdir /x", "--security-opt", f"seccomp={profile}", code=1)


@proves("seccomp-unconfined")
def _(on: Stage) -> None:
    """Whether there is a filter by default is the kind's affair: a kernel of its own may need none."""
    assert _status(on, "Seccomp", "--security-opt", "seccomp=unconfined") == 0


@proves("new-privileges")
def _(on: Stage) -> None:
    assert _status(on, "NoNewPrivs") == 1
    assert _status(on, "NoNewPrivs", "--security-opt", "no-new-privileges=false") == 0


@proves("masked-paths")
def _(on: Stage) -> None:
    """Files are empty, directories too, and what is read-only keeps others out; with what is mounted below it."""
    show = "cat /proc/version | wc -c; ls /etc | wc -l; touch /tmp/x; echo y >/proc/sys/kernel/domainname; ls /usr/in"
    chosen = SecuritySpec(
        masked_paths=("/proc/version", "/etc", "/no/such"), read_only_paths=("/tmp", "/proc/sys", "/usr")
    )
    mount = Mount(target="/usr/in", type="tmpfs", size_bytes=1 << 20)
    said = on.output(on.pod(on.script(f"mkdir -p /usr/in; {show}; touch /usr/in/x", security=chosen, mounts=(mount,))))
    first, second, *rest = said.splitlines()
    assert (first, second) == ("0", "0") and " ".join(rest).count("Read-only file system") >= 2, said
    free = SecuritySpec(masked_paths=(), read_only_paths=())
    seen = on.output(on.pod(on.script("cat /proc/version | wc -c; touch /tmp/x && ls /tmp", security=free))).split()
    assert int(seen[0]) > 0 and seen[1:] == ["x"]


@proves("privileged")
def _(on: Stage) -> None:
    assert _status(on, "CapEff", "--privileged") == int(_own_bounding_set(), 16)
    assert on.sh("test -e /dev/loop-control && echo there", "--privileged") == "there"


def _own_bounding_set() -> str:
    status = Path("/proc/self/status").read_text()
    return next(line.split()[1] for line in status.splitlines() if line.startswith("CapBnd"))
