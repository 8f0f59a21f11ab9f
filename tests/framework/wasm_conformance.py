"""What a module sees of its bundle. The oracle runs programs of the same names that busybox has, by runc."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
from pathlib import Path
from typing import Any

from framework import guests
from framework.bundles import config, make_bundle
from framework.conformance import Observe, Seen, Site, created, hook_script, hooks_of, told, until

CASES: dict[str, Observe] = {}


def case(name: str) -> Any:
    """Add a case."""

    def add(observe: Observe) -> Observe:
        CASES[name] = observe
        return observe

    return add


def bundle(site: Site, *args: str, **changes: Any) -> Path:
    """A bundle with the suite's programs as modules, or with busybox's."""
    place = site.directory / "bundle"
    if site.runtime.name == "wasm" and not place.exists():
        guests.make_rootfs(place / "rootfs")
        (place / "rootfs/etc").mkdir()
        (place / "rootfs/etc/passwd").write_text("no program\n")
    return make_bundle(place, config(*args, cgroup=site.id, **changes))


def run(site: Site, *args: str, input: str = "", **changes: Any) -> Seen:
    """Its output, and its exit code."""
    done = site.runtime("run", "--bundle", bundle(site, *args, **changes), site.id, check=False, input=input)
    return {"output": done.stdout, "errors": done.stderr, "exit code": str(done.returncode)}


def variable(site: Site, name: str) -> list[str]:
    """A command that prints it; busybox has no printenv here."""
    if site.runtime.name == "wasm":
        return ["printenv", name]
    return ["sh", "-c", f'[ -n "${{{name}+set}}" ] && echo "${name}"']


def end(site: Site, *args: str, **changes: Any) -> str:
    return run(site, *args, **changes)["exit code"]


@case("arguments and output")
def output(site: Site) -> Seen:
    return run(site, "echo", "a", "b c", "")


@case("exit codes")
def exit_codes(site: Site) -> Seen:
    return {"true": end(site, "true"), "false": end(site, "false")}


@case("standard input")
def standard_input(site: Site) -> Seen:
    return run(site, "cat", input="piped in\n")


@case("environment")
def environment(site: Site) -> Seen:
    process = {"env": ["PATH=/bin", "A=1", "EMPTY="]}
    return {
        name: run(site, process={**process, "args": variable(site, name)})["output"] for name in ("A", "EMPTY", "NO")
    }


@case("a bind mount")
def bind_mount(site: Site) -> Seen:
    (site.directory / "shared").mkdir()
    (site.directory / "shared/file").write_text("shared\n")
    shared = {
        "destination": "/mnt",
        "type": "bind",
        "source": str(site.directory / "shared"),
        "options": ["bind", "ro"],
    }
    return {"output": run(site, "cat", "/mnt/file", mounts=[shared])["output"]}


@case("umask")
def umask(site: Site) -> Seen:
    shared = site.directory / "shared"
    shared.mkdir()
    write = ["sh", "-c", "echo x >/mnt/new"]
    if site.runtime.name == "wasm":
        write = ["/bin/suite.wasm", "put", "/mnt/new", "x"]
    mount = {"destination": "/mnt", "type": "bind", "source": str(shared), "options": ["bind"]}
    seen = run(
        site,
        process={"args": write, "user": {"uid": 0, "gid": 0, "umask": 0o27}},
        mounts=[*config(cgroup="")["mounts"], mount],
    )
    assert seen["exit code"] == "0", seen
    return {"exit code": seen["exit code"], "mode": oct((shared / "new").stat().st_mode)}


@case("what cannot start")
def cannot_start(site: Site) -> Seen:
    cases: dict[str, dict[str, Any]] = {
        "no such program": {"args": ["/nope"]},
        "not in PATH": {"args": ["nope"]},
        "no program": {"args": ["/etc/passwd"]},
        "no arguments": {"args": []},
        "a limit that is none": {"args": ["true"], "rlimits": [{"type": "RLIMIT_NONSENSE", "soft": 1, "hard": 1}]},
    }
    return {name: end(site, process=process) for name, process in cases.items()}


@case("hooks")
def hooks(site: Site) -> Seen:
    log, script = site.directory / "hooks.log", hook_script(site.directory)
    code = end(site, "true", hooks=hooks_of(script, log), annotations={"note": "kept"})
    seen = told(log)
    return {key: seen[key] for key in seen if key == "order" or key.endswith("annotations")} | {"exit code": code}


@case("exec")
def executing(site: Site) -> Seen:
    with created(site, bundle(site, "sleep", "1000")):
        site.runtime("start", site.id)
        said = site.runtime("exec", "--env", "MORE=2", site.id, *variable(site, "MORE")).stdout
        codes = [site.runtime("exec", site.id, name, check=False).returncode for name in ("true", "false")]
        piped = site.runtime("exec", site.id, "cat", input="to exec").stdout
    return {"output": said, "codes": str(codes), "input": piped}


@case("state")
def states(site: Site) -> Seen:
    with created(site, bundle(site, "sleep", "1000", annotations={"note": "kept"})):
        seen = [site.runtime.state(site.id)]
        for words in (("start",), ("pause",), ("resume",), ("kill",)):
            more = (str(int(signal.SIGKILL)),) if words == ("kill",) else ()
            site.runtime(*words, site.id, *more)
            if words == ("kill",):
                until(lambda: site.runtime.state(site.id)["status"] == "stopped")
            seen.append(site.runtime.state(site.id))
    return {"states": " ".join(one["status"] for one in seen), "annotations": json.dumps(seen[0].get("annotations"))}


@case("standard streams")
def streams(site: Site) -> Seen:
    """To the last byte, in two files."""
    out, err = site.directory / "out", site.directory / "err"
    argv = [*site.runtime.argv, "run", "--bundle", str(bundle(site, "seq", "20000")), site.id]
    with out.open("wb") as file, err.open("wb") as errors:
        subprocess.run(argv, env=site.runtime.env, stdin=subprocess.DEVNULL, stdout=file, stderr=errors, check=True)
    return {"output": hashlib.sha256(out.read_bytes()).hexdigest(), "errors": err.read_text()}


@case("a user namespace")
def user_namespace(site: Site) -> Seen:
    mapping = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    spaces = [{"type": name} for name in ("pid", "ipc", "uts", "mount", "network", "user")]
    return {
        "exit code": end(site, "true", linux={"namespaces": spaces, "uidMappings": mapping, "gidMappings": mapping})
    }


@case("hooks inside")
def hooks_inside(site: Site) -> Seen:
    inside = {"path": "/bin/true", "args": ["true"], "env": ["PATH=/bin"]}
    return {"exit code": end(site, "true", hooks={"startContainer": [inside]})}
