"""Two configurations of one: the stand-in's, which crun gets, and the workload's, which its sandboxer gets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drupe.oci.capabilities import ALL
from drupe.oci.carried import DEFAULT_DEVICES

PROGRAM = "/proc/self/fd/5"  # native/client/src/oci/stand_in.rs lays it out there
WORD = "stand-in"
DESCRIPTORS = 3  # from number 3 on: its own end of a socket, ours, its program
_VERSION = "1.0.2"  # which every crun takes; what is newer in a config is refused by name
_PROC = {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]}
_CRUNS_OWN = ("run.oci.", "module.wasm.")  # annotations by which crun would run something else
_NOT_OF_A_PROCESS = ("apparmorProfile", "selinuxLabel", "consoleSize")
_DONE_OTHERWISE = ("sysctl", "rootfsPropagation", "mountLabel", "resources")
_OF_PROC_AND_SYS = ("maskedPaths", "readonlyPaths")
_NO_DEVICE = {"allow": False, "access": "rwm"}  # where nothing is said, as runc has it
_MEMORY = ("limit", "reservation", "swap", "disableOOMKiller")
_NPROC = "RLIMIT_NPROC"


def stand_in_config(
    config: Mapping[str, Any], able: Mapping[str, str], *, cgroup: str, terminal: bool
) -> dict[str, Any]:
    """The container whose only process waits in the workload's place: the bundle's own, without its program, its rights
    and its limits. The paths in it are the caller's. able: what the kind can do. Rules for devices are the workload's
    where that has any; in the same cgroup is then a program that needs others (/dev/kvm, /dev/net/tun)."""
    process, linux = config["process"], config.get("linux") or {}
    kept = {key: value for key, value in linux.items() if key not in ("resources", "seccomp", "mountLabel")}
    rules = (linux.get("resources") or {}).get("devices") if able["devices"].startswith("no") else None
    mounts = list(config.get("mounts") or ())
    if all(mount["destination"] != "/proc" for mount in mounts):
        mounts.insert(0, _PROC)
    waiting = {
        "terminal": terminal,
        "user": {"uid": 0, "gid": 0},
        "args": [PROGRAM, WORD],
        "cwd": process["cwd"],
        "capabilities": {},
        "noNewPrivileges": True,
    }
    if terminal and process.get("consoleSize"):
        waiting["consoleSize"] = process["consoleSize"]
    return {
        **config,
        "ociVersion": _VERSION,
        "process": waiting,
        "mounts": mounts,
        "annotations": _annotations(config),
        "linux": {**kept, "cgroupsPath": cgroup, "resources": {"devices": rules} if rules else {}},
    }


def workload_config(config: Mapping[str, Any], able: Mapping[str, str]) -> dict[str, Any]:
    """The container as its sandboxer is to see it. able: what the kind can do."""
    linux = config.get("linux") or {}
    kept = {key: value for key, value in linux.items() if key not in _DONE_OTHERWISE}
    if able["seccomp"].startswith("no"):
        kept.pop("seccomp", None)
    if devices := kept.get("devices"):
        numbers = ("path", "type", "major", "minor")
        kept["devices"] = [one for one in devices if tuple(one.get(name) for name in numbers) not in DEFAULT_DEVICES]
    for name in _OF_PROC_AND_SYS if able["masked-paths"].startswith("no") else ():
        kept.pop(name, None)
    kept["resources"] = _resources(linux.get("resources") or {}, able)
    limit = pids_limit(config) if able["pids-limit"].startswith("no") else 0
    process = workload_process(config["process"], limit)
    whole = {**config, "process": process, "linux": kept, "annotations": _annotations(config)}
    whole.pop("hooks", None)
    return whole


def _annotations(config: Mapping[str, Any]) -> dict[str, str]:
    """Without those by which whatever crun makes it would do other things than the configuration says."""
    return {key: value for key, value in (config.get("annotations") or {}).items() if not key.startswith(_CRUNS_OWN)}


def _resources(resources: Mapping[str, Any], able: Mapping[str, str]) -> dict[str, Any]:
    """What of the limits is for the sandbox's own kernel (births.divided), and the rules for devices that it has."""
    kept: dict[str, Any] = {}
    if not able["devices"].startswith("no"):
        kept["devices"] = resources.get("devices") or [_NO_DEVICE]
    if able["container-limits"] == "yes":
        memory = resources.get("memory") or {}
        kept["memory"] = {name: memory[name] for name in _MEMORY if memory.get(name)}
        kept["pids"] = {"limit": limit} if (limit := pids_limit({"linux": {"resources": resources}})) else None
        kept["unified"] = resources.get("unified")
    return {name: value for name, value in kept.items() if value}


def workload_process(process: Mapping[str, Any], pids_limit: int = 0) -> dict[str, Any]:
    """A process as its sandboxer is to see it. pids_limit: of processes, as the limit of each user that the sandbox's
    own kernel can count (getrlimit(2), RLIMIT_NPROC); 0: none."""
    kept = {key: value for key, value in process.items() if key not in _NOT_OF_A_PROCESS}
    if sets := kept.get("capabilities"):  # what nobody can grant is left out, as the specification says
        kept["capabilities"] = {name: [one for one in caps or () if one in ALL] for name, caps in sets.items()}
    if pids_limit:
        limits = {limit["type"]: limit for limit in kept.get("rlimits") or ()}
        own = limits.get(_NPROC, {"soft": pids_limit, "hard": pids_limit})
        limits[_NPROC] = {
            "type": _NPROC, "soft": min(own["soft"], pids_limit), "hard": min(own["hard"], pids_limit)
        }  # fmt: skip
        kept["rlimits"] = list(limits.values())
    return kept


def pids_limit(config: Mapping[str, Any]) -> int:
    """The container's limit of processes; 0: none."""
    resources = (config.get("linux") or {}).get("resources") or {}
    return max(0, (resources.get("pids") or {}).get("limit") or 0)
