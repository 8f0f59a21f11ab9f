"""What flags or files say of a further process, and of new limits."""

from __future__ import annotations

from typing import Any

import msgspec

from drupe.errors import InvalidArgument, Unsupported
from drupe.oci.signals import parse_signal
from drupe.services.oci.asked import Asked
from drupe.services.oci.flags import Words
from drupe.spec.units import parse_size

# flag to (part, key) of linux.resources, and how its value is read
_LIMITS = {
    "blkio-weight": ("blockIO", "weight", int),
    "cpu-period": ("cpu", "period", int),
    "cpu-quota": ("cpu", "quota", int),
    "cpu-burst": ("cpu", "burst", int),
    "cpu-share": ("cpu", "shares", int),
    "cpu-rt-period": ("cpu", "realtimePeriod", int),
    "cpu-rt-runtime": ("cpu", "realtimeRuntime", int),
    "cpuset-cpus": ("cpu", "cpus", str),
    "cpuset-mems": ("cpu", "mems", str),
    "cpu-idle": ("cpu", "idle", int),
    "memory": ("memory", "limit", "size"),
    "memory-reservation": ("memory", "reservation", "size"),
    "memory-swap": ("memory", "swap", "size"),
    "pids-limit": ("pids", "limit", int),
}


def process_of(words: Words, base: dict[str, Any]) -> dict[str, Any]:
    """The process that the flags of exec ask for, on top of the container's first. Raises InvalidArgument."""
    if not words.arguments[1:]:
        raise InvalidArgument("exec: the command is missing")
    process = base | {"args": words.arguments[1:], "terminal": words.on("tty")}
    process["env"] = [*(base.get("env") or ()), *words.options.get("env", ())]
    for flag, key in (("cwd", "cwd"), ("apparmor", "apparmorProfile"), ("process-label", "selinuxLabel")):
        if text := words.text(flag):
            process[key] = text
    process["user"] = _user(words, base.get("user") or {})
    if words.on("no-new-privs"):
        process["noNewPrivileges"] = True
    if added := words.options.get("cap"):
        sets = process.get("capabilities") or {}
        names = ("bounding", "effective", "permitted")
        process["capabilities"] = sets | {name: sorted({*(sets.get(name) or ()), *added}) for name in names}
    return process


def _user(words: Words, base: dict[str, Any]) -> dict[str, Any]:
    uid, _, gid = words.text("user").partition(":")
    numbers = [uid or "0", gid or "0", *words.options.get("additional-gids", ())]
    if not all(number.isascii() and number.isdigit() for number in numbers):
        raise InvalidArgument(f"exec: {numbers} are not all numbers", hint="--user UID[:GID], --additional-gids GID")
    user = base | ({"uid": int(uid)} if uid else {}) | ({"gid": int(gid)} if gid else {})
    if more := words.options.get("additional-gids"):
        user["additionalGids"] = [*(base.get("additionalGids") or ()), *map(int, more)]
    return user


def kill_signal(words: Words) -> int:
    """The signal that `kill` names; 0, which is none, asks whether there is somebody. Raises InvalidArgument."""
    text = (words.arguments[1:] or ["TERM"])[0]
    return 0 if text == "0" else parse_signal(text)


_CALLERS = ("/dev/fd/", "/dev/stdin", "/proc/self/")  # what only the caller can open


def wants(asked: Asked, flag: str) -> str:
    """The file of that flag, where the caller is to send what it holds, and has not yet; "-": its standard input."""
    path = asked.words.text(flag)
    return path if asked.ask.text is None and _is_callers(flag, path) else ""


def file_of(asked: Asked, flag: str, what: str) -> bytes:
    """What the file of that flag holds. Raises as `CallerFiles.read`."""
    path = asked.words.text(flag)
    return (asked.ask.text or "").encode() if _is_callers(flag, path) else asked.files.read(path, what)


def _is_callers(flag: str, path: str) -> bool:
    return path.startswith(_CALLERS) or (path == "-" and flag == "resources")


def limits_text(asked: Asked) -> bytes:
    """New limits as JSON, from flags or from a file ("-": standard input). Raises InvalidArgument, Unsupported."""
    for name in ("l3-cache-schema", "mem-bw-schema"):
        if asked.words.text(name):
            raise Unsupported(f"update --{name} is not carried out", feature=f"--{name}")
    if asked.words.text("resources"):
        return file_of(asked, "resources", "resources")
    return msgspec.json.encode(_limits(asked))


def _limits(asked: Asked) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for flag, (part, key, read) in _LIMITS.items():
        if text := asked.words.text(flag):
            found.setdefault(part, {})[key] = _value(flag, text, read)
    if not found:
        raise InvalidArgument("update: there is nothing to change")
    return found


def _value(flag: str, text: str, read: Any) -> int | str:
    if read is str:
        return text
    try:
        return int(text) if read is int or text == "-1" else parse_size(text)
    except ValueError:
        raise InvalidArgument(f"update --{flag}: {text!r} is not a number") from None
