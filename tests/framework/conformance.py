"""What a workload sees of its bundle, by whichever runtime runs it: cases, each an observation that can be compared."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from framework.bundles import MOUNTS, Runtime, config, make_bundle

Seen = dict[str, str]
Observe = Callable[["Site"], Seen]
CASES: dict[str, Observe] = {}
# what only the workload sees: where the program that makes its kernel can be asked, too
INSIDE = (
    "mounts", "a read-only root", "masked and read-only paths", "usual device nodes", "capabilities of root",
    "capabilities of a user", "no capabilities named", "resource limits", "ids, environment, directory", "HOME",
    "no new privileges, OOM score", "seccomp", "host name", "ends of processes inside", "standard streams",
)  # fmt: skip
_FORGET = 10.0
REFUSED = "refused by name"  # the whole case, with the field


@dataclass(frozen=True)
class Site:
    """One runtime and a directory of this case's own."""

    runtime: Runtime
    directory: Path

    @property
    def id(self) -> str:
        return f"{self.directory.name[-8:]}-{self.runtime.name}"

    def bundle(self, *args: str, **changes: Any) -> Path:
        return make_bundle(self.directory / "bundle", config(*args, cgroup=self.id, **changes))

    def run(self, *args: str, **changes: Any) -> Seen:
        """Run a bundle; see its output line by line, "key: value", and its exit code."""
        done = self.runtime("run", "--bundle", self.bundle(*args, **changes), self.id, check=False)
        return {**lines(done.stdout), "exit code": str(done.returncode)}


def lines(text: str) -> Seen:
    """Lines "key: value"; what is no such line is a key without a value."""
    found = {}
    for line in text.splitlines():
        key, _, value = line.partition(": ")
        found[key.strip()] = " ".join(value.split())
    return found


def case(name: str) -> Callable[[Observe], Observe]:
    """Add a case."""

    def add(observe: Observe) -> Observe:
        CASES[name] = observe
        return observe

    return add


def script(*parts: str) -> tuple[str, str, str]:
    return ("sh", "-c", "\n".join(parts))


# -- what is mounted


def mounts_of(text: str) -> Seen:
    """Target of each mount of a mountinfo to its type, options and propagation (proc_pid_mountinfo(5))."""
    found = {}
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        fields, (kind, _, superblock) = left.split(), right.split(" ", 2)
        shared = " ".join(re.sub(r":\d+", "", tag) for tag in fields[6:])
        extra = "size" if "size=" in superblock else ""
        found[f"mount {fields[4]}"] = f"{kind} {fields[5]} {shared} {extra}".strip()
    return found


@case("mounts")
def mounts(site: Site) -> Seen:
    (site.directory / "shared").mkdir(exist_ok=True)
    shared = {"type": "bind", "source": str(site.directory / "shared")}
    more = [
        {"destination": "/mnt", **shared, "options": ["rbind", "ro"]},
        {"destination": "/made/by/mount", **shared, "options": ["bind", "nosuid", "nodev", "noexec"]},
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["size=64k", "mode=1770", "noexec"]},
    ]
    plain = [{"destination": t, "type": k, "source": s, "options": o} for t, k, s, o in MOUNTS]
    done = site.runtime("run", "--bundle", site.bundle("cat", "/proc/self/mountinfo", mounts=plain + more), site.id)
    return mounts_of(done.stdout)


@case("a mount that follows the host's")
def following(site: Site) -> Seen:
    shared = {"type": "bind", "source": str(site.directory), "destination": "/mnt", "options": ["bind", "rslave"]}
    plain = [{"destination": t, "type": k, "source": s, "options": o} for t, k, s, o in MOUNTS]
    return site.run("grep", "-c", "/mnt .*master:", "/proc/self/mountinfo", mounts=[*plain, shared])


@case("a read-only root")
def read_only(site: Site) -> Seen:
    commands = script("touch /x 2>&1 || echo refused", "touch /dev/shm/y && echo shm: writable")
    return site.run(*commands, root={"path": "rootfs", "readonly": True})


@case("rootfs propagation")
def propagation(site: Site) -> Seen:
    return site.run(*script("grep ' / / ' /proc/self/mountinfo | wc -l"), linux={"rootfsPropagation": "rslave"})


@case("masked and read-only paths")
def hidden(site: Site) -> Seen:
    parts = (
        "echo kcore: $(wc -c </proc/kcore 2>&1)",
        "echo timer_list: $(wc -c </proc/timer_list 2>&1)",
        "echo firmware: $(ls /sys/firmware | wc -l)",
        "echo sysrq: $( (echo h >/proc/sysrq-trigger) 2>&1 | sed 's/.*: //' )",
        "echo sys: $( (echo 1 >/proc/sys/kernel/panic) 2>&1 | grep -o 'Read-only.*' )",
    )
    paths = {"maskedPaths": ["/proc/kcore", "/proc/timer_list", "/sys/firmware", "/proc/not-there"]}
    return site.run(*script(*parts), linux={**paths, "readonlyPaths": ["/proc/sys", "/proc/sysrq-trigger"]})


@case("usual device nodes")
def usual_devices(site: Site) -> Seen:
    listing = "cd /dev; for f in *; do echo $f: $(stat -c '%F %a %u %g %t:%T' $f); done; readlink fd ptmx stdin"
    return site.run(*script(listing))


@case("device nodes")
def devices(site: Site) -> Seen:
    fuse = {"path": "/dev/x/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o640, "uid": 3, "gid": 4}
    listing = "cd /dev; for f in * x/*; do echo $f: $(stat -c '%F %a %u %g %t:%T' $f); done; readlink fd ptmx stdin"
    rule = {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "rw"}
    resources = {"devices": [{"allow": False, "access": "rwm"}, rule]}
    return site.run(*script(listing), linux={"devices": [fuse], "resources": resources})


@case("device rules")
def device_rules(site: Site) -> Seen:
    parts = ("echo zero: $(dd if=/dev/zero bs=1 count=1 2>/dev/null | wc -c)", "dd if=/dev/kmsg count=0 2>&1")
    kmsg = {"path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11}
    return site.run(*script(*parts), linux={"devices": [kmsg]})


# -- what the process is


@case("capabilities of root")
def root_capabilities(site: Site) -> Seen:
    return site.run("grep", "Cap", "/proc/self/status")


@case("capabilities of a user")
def user_capabilities(site: Site) -> Seen:
    sets = {
        name: ["CAP_KILL", "CAP_NET_BIND_SERVICE"] for name in ("bounding", "permitted", "inheritable", "effective")
    }
    changes = {"user": {"uid": 1000, "gid": 1000}, "capabilities": {**sets, "ambient": ["CAP_NET_BIND_SERVICE"]}}
    command = ("grep", "Cap", "/proc/self/status")
    return site.run(*command, process={**changes, "args": list(command)})


@case("no capabilities named")
def no_capabilities(site: Site) -> Seen:
    command = ["grep", "Cap", "/proc/self/status"]
    return site.run(process={"args": command, "capabilities": None})


@case("resource limits")
def rlimits(site: Site) -> Seen:
    limits = [
        {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
        {"type": "RLIMIT_STACK", "soft": 4194304, "hard": 8388608},
        {"type": "RLIMIT_FSIZE", "soft": 1 << 20, "hard": 2 << 20},
    ]
    letters = {"nofile": "n", "core": "c", "stack": "s", "fsize": "f", "cpu": "t"}
    parts = [f"echo {name}: $(ulimit -S{letter}) $(ulimit -H{letter})" for name, letter in letters.items()]
    return site.run(process={"args": list(script(*parts)), "rlimits": limits})


@case("umask")
def umask(site: Site) -> Seen:
    return site.run(process={"args": ["sh", "-c", "echo umask: $(umask)"], "user": {"uid": 0, "gid": 0, "umask": 0o27}})


@case("ids, environment, directory")
def identity(site: Site) -> Seen:
    user = {"uid": 1000, "gid": 1001, "additionalGids": [5, 7]}
    args = script("echo id: $(id -u) $(id -g) $(id -G)", "echo umask: $(umask)", "echo pwd: $(pwd)", "env | sort")
    environment = ["PATH=/bin", "A=1", "A=2", "EMPTY=", "SPACE=a b"]
    return site.run(process={"args": list(args), "user": user, "env": environment, "cwd": "/tmp"})


@case("HOME")
def home(site: Site) -> Seen:
    user = {"uid": 1000, "gid": 1000}
    return site.run(process={"args": ["sh", "-c", "echo HOME: $HOME"], "env": ["PATH=/bin"], "user": user})


@case("no new privileges, OOM score")
def process_settings(site: Site) -> Seen:
    parts = script("grep NoNewPrivs /proc/self/status", "echo oom: $(cat /proc/self/oom_score_adj)")
    return site.run(process={"args": list(parts), "oomScoreAdj": 500, "noNewPrivileges": False})


@case("seccomp")
def seccomp(site: Site) -> Seen:
    rule = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 111}
    other = {"names": ["chmod", "fchmodat", "fchmodat2"], "action": "SCMP_ACT_ERRNO"}
    filter_ = {"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": [rule, other]}
    parts = ("mkdir /tmp/x 2>&1", "chmod 1 /tmp 2>&1", "grep -w Seccomp /proc/self/status")
    return site.run(*script(*parts), linux={"seccomp": filter_})


# -- namespaces, cgroups, sysctls


@case("host name")
def uts(site: Site) -> Seen:
    return site.run(*script("echo name: $(hostname)"), hostname="named-here")


@case("sysctls")
def sysctls(site: Site) -> Seen:
    wanted = {"net.ipv4.ip_forward": "1", "kernel.msgmax": "9000", "net.ipv4.ip_unprivileged_port_start": "80"}
    reading = [f"echo {name}: $(cat /proc/sys/{name.replace('.', '/')})" for name in wanted]
    return site.run(*script(*reading), linux={"sysctl": wanted})


@case("new namespaces")
def namespaces(site: Site) -> Seen:
    host = {
        kind: str(Path(f"/proc/self/ns/{kind}").readlink())
        for kind in ("net", "ipc", "uts", "pid", "mnt", "user", "cgroup")
    }
    checks = [
        f'[ "$(readlink /proc/self/ns/{k})" = "{v}" ] && echo {k}: host || echo {k}: own' for k, v in host.items()
    ]
    names = [{"type": name} for name in ("pid", "mount", "ipc", "cgroup")]
    return site.run(*script(*checks), linux={"namespaces": names}, hostname=None)


@case("a user namespace")
def user_namespace(site: Site) -> Seen:
    mapping = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    names = [{"type": name} for name in ("pid", "ipc", "uts", "mount", "network", "user")]
    parts = ("echo uid_map: $(cat /proc/self/uid_map)", "echo id: $(id -u)", "echo owner: $(stat -c %u /bin)")
    linux = {"namespaces": names, "uidMappings": mapping, "gidMappings": mapping}
    return site.run(*script(*parts), linux=linux)


@case("limits of the cgroup")
def cgroup(site: Site) -> Seen:
    resources = {
        "devices": [{"allow": False, "access": "rwm"}],
        "memory": {"limit": 64 << 20, "reservation": 32 << 20, "swap": 64 << 20},
        "cpu": {"shares": 512, "quota": 50000, "period": 100000, "cpus": "0"},
        "pids": {"limit": 33},
    }
    made = site.bundle("sleep", "1000", linux={"resources": resources})
    with created(site, made) as pid:
        return {f"cgroup {name}": limit_of(pid, name) for name in LIMITS}


LIMITS = {
    "memory.limit_in_bytes": "memory", "memory.soft_limit_in_bytes": "memory", "memory.memsw.limit_in_bytes": "memory",
    "cpu.shares": "cpu", "cpu.cfs_quota_us": "cpu", "cpuset.cpus": "cpuset", "pids.max": "pids",
}  # fmt: skip


def limit_of(pid: int, name: str) -> str:
    """The value of a v1 cgroup file of the process; "" where the host has none."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if LIMITS[name] in names.split(","):
            file = Path(f"/sys/fs/cgroup/{LIMITS[name]}{path}/{name}")
            return file.read_text().strip() if file.exists() else ""
    return ""


class created:
    """A container that was created and not started; deleted at the end."""

    def __init__(self, site: Site, bundle: Path) -> None:
        self._site = site
        self._bundle = bundle

    def __enter__(self) -> int:
        return self._site.runtime.create(self._bundle, self._site.id, self._site.directory / "out")

    def __exit__(self, *_: object) -> None:
        self._site.runtime("delete", "--force", self._site.id)


# -- ends


@case("exit codes")
def exit_codes(site: Site) -> Seen:
    """Without a PID namespace: the first process of one is spared the signals that it sends itself."""
    scripts = {"0": "true", "3": "exit 3", "killed": "kill -9 $$", "terminated": "kill -15 $$", "of a child": "false"}
    names = [{"type": name} for name in ("mount", "ipc", "uts", "network")]
    linux = {"namespaces": names}
    return {name: site.run("sh", "-c", text, linux=linux)["exit code"] for name, text in scripts.items()}


@case("ends of processes inside")
def ends_inside(site: Site) -> Seen:
    """What a shell sees of its children, in a process table of its own."""
    ends = {"killed": "kill -9 $$", "exit": "exit 3", "terminated": "kill -15 $$"}
    parts = [f"sh -c '{text}'; echo {name}: $?" for name, text in ends.items()]
    return site.run(*script(*parts, "exit 7"))


@case("what cannot start")
def cannot_start(site: Site) -> Seen:
    cases: dict[str, dict[str, Any]] = {
        "no such program": {"args": ["/nope"]},
        "not in PATH": {"args": ["nope"]},
        "not executable": {"args": ["/etc/passwd"]},
        "a directory": {"args": ["/etc"]},
        "no arguments": {"args": []},
        "a directory that is missing": {"args": ["pwd"], "cwd": "/not/there"},
        "a capability that is none": {"args": ["true"], "capabilities": {"bounding": ["CAP_NONSENSE"]}},
        "a limit that is none": {"args": ["true"], "rlimits": [{"type": "RLIMIT_NONSENSE", "soft": 1, "hard": 1}]},
    }
    return {name: site.run(process=process)["exit code"] for name, process in cases.items()}


@case("mistakes at the command line")
def mistakes(site: Site) -> Seen:
    runtime, made = site.runtime, site.bundle("sleep", "1000")
    with created(site, made):
        again = runtime("create", "--bundle", made, site.id, check=False).returncode
        paused = runtime("pause", site.id, check=False).returncode
        resumed = runtime("resume", site.id, check=False).returncode
        runtime("start", site.id)
        calls = {
            "start twice": ("start", site.id), "delete while it runs": ("delete", site.id),
            "a signal that is none": ("kill", site.id, "NOSUCH"), "state of nobody": ("state", "nobody"),
            "delete of nobody": ("delete", "nobody"), "forced delete of nobody": ("delete", "--force", "nobody"),
            "kill of nobody": ("kill", "nobody", "9"), "exec in nobody": ("exec", "nobody", "true"),
            "an unknown verb": ("dance",), "an unknown flag": ("state", "--wings", site.id),
        }  # fmt: skip
        seen = {name: str(runtime(*words, check=False).returncode != 0) for name, words in calls.items()}
        runtime("kill", site.id, "KILL")
        until(lambda: runtime.state(site.id)["status"] == "stopped")
        seen["kill when it has ended"] = str(runtime("kill", site.id, "TERM", check=False).returncode != 0)
        seen["exec when it has ended"] = str(runtime("exec", site.id, "true", check=False).returncode != 0)
    return seen | {"create twice": str(again != 0), "pause before start": str(paused), "resume": str(resumed)}


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _FORGET
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# -- hooks

HOOKS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")


def hook_script(directory: Path) -> Path:
    """Writes its name, its environment and the state that it was given to a file."""
    path = directory / "hook"
    said = "$1 $(env | grep -c ^HOOK=set) $(cat | tr -d '\\n')"
    path.write_text(f'#!/bin/sh\necho "{said}" >> {directory}/hooks.log\nexit $2\n')
    path.chmod(0o755)
    return path


def hooks_of(script: Path, log: Path, *, failing: str = "") -> dict[str, list[dict[str, Any]]]:
    log.unlink(missing_ok=True)
    return {
        name: [
            {
                "path": str(script),
                "args": ["hook", name, str(int(name == failing))],
                "env": ["HOOK=set", "PATH=/bin:/usr/bin"],
            }
        ]
        for name in HOOKS
        if name != "startContainer"  # it runs inside, where our script is not
    }


def told(log: Path) -> Seen:
    """The order of the hooks, and what each was told."""
    seen: Seen = {"order": ""}
    for line in log.read_text().splitlines() if log.exists() else []:
        name, environment, text = line.split(" ", 2)
        state = json.loads(text)
        seen["order"] += f" {name}"
        seen[f"{name} status"] = state["status"]
        seen[f"{name} fields"] = " ".join(sorted(state))
        seen[f"{name} environment"] = environment
        seen[f"{name} pid"] = str(state.get("pid", 0) > 0)
        seen[f"{name} annotations"] = json.dumps(state.get("annotations", {}))
    return seen


@case("hooks")
def hooks(site: Site) -> Seen:
    log, script_ = site.directory / "hooks.log", hook_script(site.directory)
    done = site.run("true", hooks=hooks_of(script_, log), annotations={"note": "kept"})
    return told(log) | {"exit code": done["exit code"]}


@case("hooks inside")
def hooks_inside(site: Site) -> Seen:
    """startContainer runs in the container, before the program."""
    inside = {
        "path": "/bin/sh",
        "args": ["sh", "-c", 'echo hook > /tmp/log; cat | grep -o \'"status": *"[a-z]*"\' >> /tmp/log'],
    }
    return site.run(
        *script("echo program >> /tmp/log; cat /tmp/log"), hooks={"startContainer": [inside | {"env": ["PATH=/bin"]}]}
    )


@case("hooks that fail")
def failing_hooks(site: Site) -> Seen:
    log, script_ = site.directory / "hooks.log", hook_script(site.directory)
    seen = {}
    for name in ("createRuntime", "createContainer", "poststart", "poststop"):
        done = site.run("true", hooks=hooks_of(script_, log, failing=name))
        seen[f"{name}: exit code is 0"] = str(done["exit code"] == "0")
        seen[f"{name}: order"] = told(log)["order"]
        site.runtime("delete", "--force", site.id, check=False)
    return seen


@case("a hook that takes too long")
def slow_hook(site: Site) -> Seen:
    slow = {"path": "/bin/sleep", "args": ["sleep", "60"], "timeout": 1}
    done = site.runtime("run", "--bundle", site.bundle("true", hooks={"createRuntime": [slow]}), site.id, check=False)
    site.runtime("delete", "--force", site.id, check=False)
    return {"not made": str(done.returncode != 0)}


# -- exec, state

ENVIRONMENT = "env | grep -v '^_\\|SHLVL' | sort"


@case("exec")
def executing(site: Site) -> Seen:
    made = site.bundle(
        "sleep", "1000", process={"args": ["sleep", "1000"], "env": ["PATH=/bin", "OWN=1"], "cwd": "/mnt"}
    )
    with created(site, made):
        site.runtime("start", site.id)
        parts = (
            "echo id: $(id -u) $(id -g)",
            "echo pwd: $(pwd)",
            ENVIRONMENT,
            "grep Cap /proc/self/status",
        )
        plain = site.runtime("exec", site.id, *script(*parts), check=False).stdout
        flags = ("--env", "MORE=2", "--cwd", "/tmp", "--user", "1000:1000")
        flagged = site.runtime("exec", *flags, site.id, *script(*parts), check=False).stdout
        codes = {
            text: site.runtime("exec", site.id, "sh", "-c", text, check=False).returncode
            for text in ("exit 5", "kill -9 $$")
        }
    seen = {f"plain {key}": value for key, value in lines(plain).items()}
    seen |= {f"flags {key}": value for key, value in lines(flagged).items()}
    return seen | {f"code of {text}": str(code) for text, code in codes.items()}


@case("exec by a file")
def executing_file(site: Site) -> Seen:
    process = {
        "args": list(script("echo id: $(id -u) $(id -g) $(id -G)", ENVIRONMENT, "grep Cap /proc/self/status")),
        "user": {"uid": 1000, "gid": 1000, "additionalGids": [9]}, "cwd": "/", "env": ["PATH=/bin", "X=y"],
        "capabilities": {"bounding": ["CAP_KILL"]},
    }  # fmt: skip
    (site.directory / "process.json").write_text(json.dumps(process))
    with created(site, site.bundle("sleep", "1000")):
        site.runtime("start", site.id)
        return lines(site.runtime("exec", "--process", site.directory / "process.json", site.id).stdout)


@case("state")
def states(site: Site) -> Seen:
    with created(site, site.bundle("sleep", "1000", annotations={"note": "kept"})):
        before = site.runtime.state(site.id)
        site.runtime("start", site.id)
        after = site.runtime.state(site.id)
        site.runtime("pause", site.id)
        paused = site.runtime.state(site.id)
        site.runtime("resume", site.id)
        site.runtime("kill", site.id, str(int(signal.SIGKILL)))
        until(lambda: site.runtime.state(site.id)["status"] == "stopped")
        ended = site.runtime.state(site.id)
    return {
        "states": " ".join(state["status"] for state in (before, after, paused, ended)),
        "same pid": str(before["pid"] == after["pid"]),
        "pid at the end": str(ended.get("pid", 0) > 0),
        "bundle": str(before["bundle"] == str(site.directory / "bundle")),
        "absolute rootfs": str(before["rootfs"].startswith("/")),
        "annotations": json.dumps(before.get("annotations")),
    }


@case("standard streams")
def streams(site: Site) -> Seen:
    """Whether they are the caller's own files, or pipes of the runtime's."""
    out, err = site.directory / "out", site.directory / "err"
    made = site.bundle(*script("echo text; readlink /proc/self/fd/2 >&2"))
    argv = [*site.runtime.argv, "run", "--bundle", str(made), site.id]
    with out.open("wb") as file, err.open("wb") as errors:
        subprocess.run(argv, env=site.runtime.env, stdin=subprocess.DEVNULL, stdout=file, stderr=errors, check=True)
    return {"output": out.read_text().strip(), "own file": str(str(err) in err.read_text())}


def compare(ours: Mapping[str, str], theirs: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Key to what each side saw, where they differ. What is refused was not seen at all."""
    if REFUSED in ours:
        return {REFUSED: (ours[REFUSED], "-")}
    return {
        key: (ours.get(key, "-"), theirs.get(key, "-")) for key in {*ours, *theirs} if ours.get(key) != theirs.get(key)
    }
