"""What a `--format` sees of an object: its own fields, a listing's cells, and both under Docker's names."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from drupe.cli.output import iso, show_table
from drupe.cli.template import Template

_ALIASES = {
    "NAME": ("Names",),
    "CONTAINER ID": ("ID", "Container"),
    "IMAGE ID": ("ID",),
    "POD ID": ("ID",),
    "CREATED": ("RunningFor", "CreatedSince"),
    "CPU %": ("CPUPerc",),
    "MEM %": ("MemPerc",),
    "MEMORY / LIMIT": ("MemUsage",),
    "NET IN / OUT": ("NetIO",),
    "BLOCK READ / WRITE": ("BlockIO",),
    "PIDS": ("PIDs",),
}
_ANY = "0.0.0.0"  # noqa: S104 - Docker's word for every address
_STATES = {"ready": "created", "stopped": "exited", "failed": "dead"}


def read(text: str) -> Template:
    """The template of a listing; `json` alone prints each object as JSON."""
    return Template("{{json .}}" if text == "json" else text)


def show(
    template: Template, records: Sequence[Any], *, headers: Sequence[str], row: Callable[[Any], Sequence[object]]
) -> None:
    """Fill the template once for each record."""
    lines = [template.fill(_facts(record, headers, row(record))) for record in records]
    if template.is_table:
        show_table(template.heads(), [line.split("\t") for line in lines])
    else:
        sys.stdout.writelines(f"{line}\n" for line in lines)


def _facts(record: Any, headers: Sequence[str], cells: Sequence[object]) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for header, cell in zip(headers, cells, strict=True):
        camel = "".join(filter(str.isalnum, header.title()))
        for name in (camel, *_ALIASES.get(header, ())):
            facts[name] = str(cell)
    own = msgspec.to_builtins(record[-1] if isinstance(record, tuple) else record)
    taken = {name.lower() for name in facts}
    return facts | {_camel(key): _readable(key, value) for key, value in own.items() if key not in taken}


def _camel(key: str) -> str:
    return "".join(part.title() for part in key.split("_"))


def _readable(key: str, value: Any) -> Any:
    return (iso(value) if value else "") if key.endswith("_at") and isinstance(value, float) else value


def inspected(value: Any) -> dict[str, Any]:
    """An inspected object as a template sees it."""
    plain: dict[str, Any] = msgspec.to_builtins(value)
    if "status" in plain and "oci" in plain:
        return plain | _container(plain["status"], plain["spec"], plain["oci"] or {}, plain["pod"] or {})
    if "layers" in plain:
        return plain | {"RepoTags": plain["names"], "Size": plain["size_bytes"], "RootFS": {"Layers": plain["layers"]}}
    return plain


Plain = dict[str, Any]


def _container(status: Plain, spec: Plain, oci: Plain, pod: Plain) -> Plain:
    argv, process = status["argv"] or [""], oci.get("process", {})
    user = process.get("user", {})
    return {
        "Id": status["id"],
        "Name": status["name"],
        "Created": iso(status["created_at"]),
        "Path": argv[0],
        "Args": argv[1:],
        "Image": status["image_digest"],
        "RestartCount": status["restarts"],
        "LogPath": status["log_path"],
        "State": _state(status),
        "Config": {
            "Hostname": pod.get("hostname", ""),
            "User": f"{user.get('uid', 0)}:{user.get('gid', 0)}",
            "Env": process.get("env", []),
            "Cmd": status["argv"],
            "Image": status["image"],
            "WorkingDir": process.get("cwd", ""),
            "Labels": status["labels"],
            "Tty": status["tty"],
            "StopSignal": spec.get("stop_signal") or "SIGTERM",
        },
        "HostConfig": _host_config(spec, pod),
        "NetworkSettings": _network(pod),
        "Mounts": [_mount(mount) for mount in status["mounts"]],
    }


def _host_config(spec: Plain, pod: Plain) -> Plain:
    limits, security, restart = (spec.get(key) or {} for key in ("resources", "security", "restart"))
    return {
        "Memory": limits.get("memory_bytes") or 0,
        "NanoCpus": round((limits.get("cpus") or 0) * 1e9),
        "PidsLimit": limits.get("pids") or 0,
        "Privileged": security.get("privileged", False),
        "ReadonlyRootfs": spec.get("read_only", False),
        "RestartPolicy": {"Name": restart.get("name", "no"), "MaximumRetryCount": restart.get("max_retries", 0)},
        "NetworkMode": next((e["network"] for e in pod.get("endpoints", [])), "none"),
    }


def _state(status: dict[str, Any]) -> dict[str, Any]:
    exit_ = status["exit"] or {"code": 0, "reason": "", "message": ""}
    return {
        "Status": _STATES.get(status["state"], status["state"]),
        "Running": status["state"] in ("running", "paused"),
        "Paused": status["state"] == "paused",
        "OOMKilled": exit_["reason"] == "OOMKilled",
        "Pid": status["pid"],
        "ExitCode": exit_["code"],
        "Error": status["cause"] or exit_["message"],
        "StartedAt": _readable("_at", status["started_at"]),
        "FinishedAt": _readable("_at", status["finished_at"]),
        "Health": {"Status": status["health"]} if status["health"] else None,
    }


def _network(pod: dict[str, Any]) -> dict[str, Any]:
    networks = {
        e["network"]: {
            "IPAddress": e["ipv4"],
            "Gateway": e["gateway4"],
            "GlobalIPv6Address": e["ipv6"],
            "IPv6Gateway": e["gateway6"],
            "MacAddress": e["mac"],
        }
        for e in pod.get("endpoints", [])
    }
    ports: dict[str, list[dict[str, str]]] = {}
    for port in pod.get("ports", []):
        bound = {"HostIp": port["host_ip"] or _ANY, "HostPort": str(port["host_port"])}
        ports.setdefault(f"{port['container_port']}/{port['protocol']}", []).append(bound)
    first = next(iter(networks.values()), {"IPAddress": "", "Gateway": "", "MacAddress": "", "GlobalIPv6Address": ""})
    return {**first, "Networks": networks, "Ports": ports}


def _mount(mount: dict[str, Any]) -> dict[str, Any]:
    return {
        "Type": mount["type"],
        "Source": mount["source"],
        "Destination": mount["target"],
        "RW": not mount.get("read_only", False),
    }
