"""Flags of one container with a language of their own: mounts, devices, limits, security, restart, log, secrets."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, get_args

from drupe.cli.parse import fields, flag, integer, pair, refuse_rest, take
from drupe.errors import InvalidArgument
from drupe.spec import Device, IoLimit, LogSpec, Mount, RestartPolicy, Rlimit, Secret
from drupe.spec.container import VFIO, Propagation
from drupe.spec.units import parse_size

_PROPAGATIONS = get_args(Propagation)
_MOUNT_FLAGS = ("nosuid", "suid", "nodev", "dev", "noexec", "exec", "noatime", "atime", "relatime", "sync", "nocopy")


def volume(text: str) -> Mount:
    """-v SOURCE:TARGET[:OPTIONS]: a path as source is a bind mount, a name a volume; TARGET alone is anonymous."""
    parts = text.split(":")
    if len(parts) > 3 or not all(parts):
        raise InvalidArgument(f"bad volume {text!r}", hint="write SOURCE:TARGET[:ro] or TARGET")
    if len(parts) == 1:
        return Mount(type="volume", target=_absolute(parts[0], text))
    source, target = parts[0], _absolute(parts[1], text)
    options = _mount_options(parts[2] if len(parts) == 3 else "", text)
    if source.startswith(("/", "./", "../", "~")) or source in (".", ".."):
        path = os.path.abspath(Path(source).expanduser())  # noqa: PTH100 (resolve() would follow the link)
        return Mount(type="bind", source=path, target=target, create=True, **options)
    return Mount(type="volume", source=source, target=target, **options)


_TYPES = ("bind", "volume", "tmpfs", "image", "block")


def mount(text: str) -> Mount:
    """--mount type=bind|volume|tmpfs|image|block,source=…,target=…[,readonly][,bind-propagation=…][,tmpfs-size=…]."""
    found = fields(text, what="mount")
    kind = take(found, "type") or "volume"
    if kind not in _TYPES:
        raise InvalidArgument(f"mount {text!r} has an unknown type {kind!r}", hint=f"types: {', '.join(_TYPES)}")
    source = take(found, "source", "src") or ""
    target = take(found, "target", "destination", "dst")
    if not target:
        raise InvalidArgument(f"mount {text!r} has no target", hint="add target=/path")
    if kind in ("bind", "image", "block") and not source:
        raise InvalidArgument(f"mount {text!r} has no source", hint="add source=…")
    options: dict[str, Any] = {"read_only": flag(take(found, "readonly", "ro"), what="readonly")}
    if (propagation := take(found, "bind-propagation")) is not None:
        options |= _mount_options(propagation, text)
    if (tmpfs_size := take(found, "tmpfs-size")) is not None:
        options["size_bytes"] = parse_size(tmpfs_size)
    if (mode := take(found, "tmpfs-mode")) is not None:
        options["mode"] = octal(mode, text)
    if flag(take(found, "volume-nocopy"), what="volume-nocopy"):
        options["options"] = ("nocopy",)
    if (filesystem := take(found, "fstype")) is not None:
        options["filesystem"] = filesystem
    known = "type, source, target, readonly, bind-propagation, tmpfs-size, tmpfs-mode, volume-nocopy, fstype"
    refuse_rest(found, what="mount", text=text, known=known)
    if kind in ("bind", "block"):
        source = os.path.abspath(source)  # noqa: PTH100
    return Mount(type=kind, source=source, target=_absolute(target, text), **options)  # type: ignore[arg-type]


def tmpfs(text: str) -> Mount:
    """--tmpfs TARGET[:size=…,mode=…,ro,noexec…]."""
    target, _, rest = text.partition(":")
    found = fields(rest, what="tmpfs")
    options: dict[str, Any] = {}
    if (limit := take(found, "size")) is not None:
        options["size_bytes"] = parse_size(limit)
    if (mode := take(found, "mode")) is not None:
        options["mode"] = octal(mode, text)
    return Mount(type="tmpfs", target=_absolute(target, text), **options, **_mount_options(",".join(found), text))


def _absolute(target: str, text: str) -> str:
    if not target.startswith("/"):
        raise InvalidArgument(f"mount {text!r}: target {target!r} is not an absolute path")
    return target


def _mount_options(text: str, whole: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    rest: list[str] = []
    for word in filter(None, text.split(",")):
        if word in ("ro", "readonly", "rw"):
            found["read_only"] = word != "rw"
        elif word in _PROPAGATIONS:
            found["propagation"] = word
        elif word in _MOUNT_FLAGS:
            rest.append(word)
        elif word in ("z", "Z"):
            raise InvalidArgument(
                f"mount {whole!r}: SELinux relabelling ({word}) is not done", hint=f"leave out {word}"
            )
        else:
            known = ", ".join(("ro", "rw", *_PROPAGATIONS, *_MOUNT_FLAGS))
            raise InvalidArgument(f"mount {whole!r} has an unknown option {word!r}", hint=f"known options: {known}")
    return found | ({"options": tuple(rest)} if rest else {})


def octal(text: str, whole: str) -> int:
    """A file mode such as 0755 or 1777."""
    try:
        return int(text, 8)
    except ValueError:
        raise InvalidArgument(f"bad mode {text!r} in {whole!r}", hint="write it in octal, like 1777") from None


def device(text: str) -> Device:
    """--device PATH[:TARGET][:rwm], or vfio=PCI-ADDRESS."""
    if text.startswith(VFIO):
        return Device(path=text)
    path, *rest = text.split(":")
    permissions = rest.pop() if rest and set(rest[-1]) <= set("rwm") and rest[-1] else "rwm"
    if not path.startswith("/") or len(rest) > 1 or (rest and not rest[0].startswith("/")):
        raise InvalidArgument(f"bad device {text!r}", hint="write /dev/NAME[:/dev/TARGET][:rwm]")
    return Device(path=path, target=rest[0] if rest else None, permissions=permissions)


def ulimit(text: str) -> Rlimit:
    """--ulimit NAME=SOFT[:HARD]; -1 or unlimited for none."""
    name, limits = pair(text, what="ulimit")
    values = [-1 if v in ("-1", "unlimited") else integer(v, what=f"ulimit {name}") for v in limits.split(":")]
    if len(values) > 2:
        raise InvalidArgument(f"bad ulimit {text!r}", hint="write NAME=SOFT[:HARD], like nofile=1024:4096")
    soft, hard = values[0], values[-1]
    if hard != -1 and (soft == -1 or soft > hard):
        raise InvalidArgument(f"ulimit {text!r}: the soft limit is above the hard one")
    return Rlimit(name=name, soft=soft, hard=hard)


def restart(text: str) -> RestartPolicy:
    """--restart no|on-failure[:MAX]|always|unless-stopped."""
    name, colon, retries = text.partition(":")
    if name not in ("no", "on-failure", "always", "unless-stopped"):
        raise InvalidArgument(
            f"unknown restart policy {text!r}", hint="policies: no, on-failure[:MAX], always, unless-stopped"
        )
    if colon and name != "on-failure":
        raise InvalidArgument(f"restart policy {text!r}: only on-failure takes a number of retries")
    tries = integer(retries, what="number of retries") if colon else 0
    return RestartPolicy(name=name, max_retries=tries)  # type: ignore[arg-type]


def log(driver: str | None, options: tuple[str, ...]) -> LogSpec:
    """--log-driver and --log-opt max-size=…, max-file=…, path=…."""
    found = dict(pair(option, what="log option") for option in options)
    spec: dict[str, Any] = {"driver": driver} if driver else {}
    if (limit := take(found, "max-size")) is not None:
        spec["max_bytes"] = parse_size(limit)
    if (count := take(found, "max-file")) is not None:
        spec["max_files"] = integer(count, what="max-file")
    if (path := take(found, "path")) is not None:
        spec["path"] = path
    refuse_rest(found, what="log options", text=",".join(options), known="max-size, max-file, path")
    return LogSpec(**spec)


def io_rate(text: str) -> tuple[str, int]:
    """--device-read-bps and its kin: PATH:RATE, the rate a size or a number."""
    path, colon, rate = text.rpartition(":")
    if not colon or not path.startswith("/"):
        raise InvalidArgument(f"bad device rate {text!r}", hint="write /dev/NAME:RATE, like /dev/vda:10m")
    return path, parse_size(rate)


def io_limits(**rates: tuple[tuple[str, int], ...]) -> tuple[IoLimit, ...]:
    """One IoLimit a device from the four flags (read_bps=, write_bps=, read_iops=, write_iops=)."""
    devices: dict[str, dict[str, int]] = {}
    for what, values in rates.items():
        for path, rate in values:
            devices.setdefault(path, {})[what] = rate
    return tuple(IoLimit(path=path, **limits) for path, limits in devices.items())


def secret(text: str) -> Secret:
    """--secret id=NAME,src=FILE|env=VARIABLE[,target=PATH][,uid=N][,gid=N][,mode=0400]."""
    found = fields(text, what="secret")
    name = take(found, "id", "name") or ""
    if not name:
        raise InvalidArgument(f"secret {text!r} has no id", hint="write id=NAME,src=FILE")
    value = _secret_value(name, take(found, "src", "source", "file"), take(found, "env"))
    options: dict[str, Any] = {"target": take(found, "target", "dst")}
    for key in ("uid", "gid"):
        if (number := take(found, key)) is not None:
            options[key] = integer(number, what=key)
    if (mode := take(found, "mode")) is not None:
        options["mode"] = octal(mode, f"secret {name}")
    refuse_rest(found, what="secret", text=name, known="id, src, env, target, uid, gid, mode")
    return Secret(name=name, value=value, **options)


def _secret_value(name: str, path: str | None, variable: str | None) -> bytes:
    # The text of a secret must never show up in an error.
    if (path is None) == (variable is None):
        raise InvalidArgument(f"secret {name!r} needs a file or a variable", hint="add src=FILE or env=VARIABLE")
    if variable is not None:
        if variable not in os.environ:
            raise InvalidArgument(f"secret {name!r}: variable {variable} is not set")
        return os.environb[os.fsencode(variable)]
    try:
        return Path(str(path)).read_bytes()
    except OSError as error:
        raise InvalidArgument(f"secret {name!r}: cannot read {path}", cause=error.strerror or str(error)) from None


def security(options: tuple[str, ...]) -> dict[str, Any]:
    """Fields of SecuritySpec from --security-opt values (Docker's words; LSM labels only as "off")."""
    found: dict[str, Any] = {}
    for option in options:
        key, value = re.fullmatch(r"([^:=]*)[:=]?(.*)", option, re.DOTALL).groups()  # type: ignore[union-attr]
        if key == "seccomp" and value:
            found["seccomp"] = value if value in ("default", "unconfined") else os.path.abspath(value)  # noqa: PTH100
        elif key == "no-new-privileges":
            found["no_new_privileges"] = flag(value, what=key)
        elif option == "systempaths=unconfined":
            found |= {"masked_paths": (), "read_only_paths": ()}
        elif option in ("apparmor=unconfined", "label=disable", "label=type:unconfined_t"):
            continue  # already so: drupe sets no LSM label
        else:
            raise InvalidArgument(
                f"unknown security option {option!r}",
                hint="known: seccomp=FILE|unconfined|default, no-new-privileges[=false], systempaths=unconfined",
            )
    return found
