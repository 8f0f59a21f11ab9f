"""Probes that look: user, keeper, cgroups, plug-ins, limits, disk."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from drupe.errors import DrupeError
from drupe.resources import kvm as kvm_probe
from drupe.resources.cgroups import detect
from drupe.runtime.paths import DEFAULT_ROOT
from drupe.services.probing import Inconclusive, Problem, run

_WANTED_CONTROLLERS = ("cpu", "cpuset", "memory", "pids")
_PLUGIN_DIRS = ("/opt/cni/bin", "/usr/lib/cni")
_PLUGINS = ("bridge", "host-local", "loopback", "portmap", "firewall")
_LOW_DISK_BYTES = 2 << 30
_NO_DISK_BYTES = 64 << 20
_FEW_DESCRIPTORS = 65536
_CAP_SYS_RESOURCE = 24  # capability.h
_INSTALL_CNI = "apt-get install containernetworking-plugins"


def root() -> str:
    """Pods need root."""
    if os.geteuid() != 0:
        raise Problem(f"running as user {os.geteuid()}", "run as root")
    return ""


def keeper_paths() -> list[str]:
    """The keeper's program, where one is found: cached findings depend on it."""
    from drupe.keeper.start import find_binary

    try:
        return [str(find_binary())]
    except DrupeError:
        return []


def keeper() -> str:
    """The keeper's program is there and runs. Answers its version."""
    from drupe.keeper.start import find_binary

    try:
        path = find_binary()
    except DrupeError as error:
        raise Problem(error.message, error.hint) from None
    done = run([str(path), "--version"])
    if done.code != 0:
        raise Problem(f"{path}: {done.last_line}", "build it again: bash scripts/build-native.sh")
    return done.stdout.strip()


def configuration() -> str:
    """The node's configuration can be read. Answers what it decides."""
    from drupe.services.nodeconfig import load_config

    try:
        config = load_config()
    except DrupeError as error:
        raise Problem(str(error), error.hint) from None
    default = config.sandbox or "runc, as Docker's users expect"
    rules = f"; policy: {', '.join(rule.name for rule in config.policy)}" if config.policy else ""
    return f"a pod for which nobody asks gets {default}{rules}"


def cgroups() -> str:
    """A cgroup tree is mounted and has the controllers that limits rest on. Answers the mode and the controllers."""
    try:
        tree = detect()
    except DrupeError as error:
        raise Problem(str(error), error.hint) from None
    missing = [name for name in _WANTED_CONTROLLERS if name not in tree.controllers]
    mode = f"v{tree.version}: {' '.join(sorted(n for n in tree.controllers if not n.startswith('name=')))}"
    if missing:
        raise Inconclusive(
            f"{mode}; without {', '.join(missing)}: these limits are refused",
            f"boot with cgroup_enable={missing[0]}, or delegate the controllers",
        )
    return mode


def cni_plugins() -> str:
    """The usual plug-ins are installed and one answers. Only the network mode cni needs them."""
    found = {name: path for name in _PLUGINS if (path := _plugin(name))}
    missing = [name for name in _PLUGINS if name not in found]
    if missing:
        raise Inconclusive(f"not installed: {', '.join(missing)}; the built-in bridge needs none", _INSTALL_CNI)
    done = run(["env", "CNI_COMMAND=VERSION", found["bridge"]])
    if done.code != 0 or "supportedVersions" not in done.stdout:
        raise Inconclusive(f"{found['bridge']}: {done.last_line}", _INSTALL_CNI)
    return str(Path(found["bridge"]).parent)


def _plugin(name: str) -> str | None:
    paths = (f"{directory}/{name}" for directory in _PLUGIN_DIRS)
    return next((path for path in paths if os.access(path, os.X_OK)), None)


def kvm() -> str:
    """Run a loop in a guest's ring 0. Never answered by the device's presence."""
    try:
        said = run(kvm_probe.PROBE, deadline_s=kvm_probe.DEADLINE_S).stdout
    except Problem:
        raise Inconclusive("of no use: a guest did not run to its end in a second") from None
    if fault := kvm_probe.read_fault(said):
        raise Inconclusive(f"of no use: {fault}")
    return "a guest's kernel runs on the processor"


def disk_space() -> str:
    """Free space where images and containers are kept. Answers how much."""
    path = Path(os.environ.get("DRUPE_ROOT") or DEFAULT_ROOT)
    while not path.exists():
        path = path.parent
    status = os.statvfs(path)
    free_bytes = status.f_bavail * status.f_frsize
    text = f"{free_bytes / (1 << 30):.1f} GiB free in {path}"
    if free_bytes < _NO_DISK_BYTES:
        raise Problem(text, "drupe system prune, or more disk")
    if free_bytes < _LOW_DISK_BYTES or status.f_ffree == 0 < status.f_files:
        raise Inconclusive(text if status.f_ffree else f"no inodes left in {path}", "drupe system prune, or more disk")
    return text


def descriptors() -> str:
    """The hard limit of open files: a pod costs the daemon a few. Answers the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < _FEW_DESCRIPTORS:
        raise Inconclusive(
            f"at most {hard} open files, enough for about {hard // 20} pods", f"ulimit -Hn {_FEW_DESCRIPTORS * 16}"
        )
    return "unlimited" if hard == resource.RLIM_INFINITY else str(hard)


def sys_resource() -> str:
    """Whether limits may be raised (capabilities(7))."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff:"))
    if not int(line.split()[1], 16) >> _CAP_SYS_RESOURCE & 1:
        raise Inconclusive(
            "missing: negative oom_score_adj and raised hard limits are not possible",
            "grant CAP_SYS_RESOURCE to the daemon",
        )
    return ""
