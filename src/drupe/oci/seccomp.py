"""System-call filters: the well-known default profile, and profiles from files, as OCI `linux.seccomp`.

The default is Docker's (`seccomp_default.json`, from moby 26.1.5, Apache-2.0, unchanged). Its form has conditions on
capabilities, architecture and kernel; they are decided here, because crun and runc only know the plain OCI form
(runtime-spec, config-linux.md, Seccomp). Results are cached: a start costs a dictionary look-up.
"""

from __future__ import annotations

import base64
import errno
import platform
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from drupe.errors import InvalidArgument, NotFound
from drupe.linux.libseccomp import OPERATORS, FilterRule, action, compile_filter
from drupe.oci.capabilities import ALL

_DEFAULT_FILE = Path(__file__).with_name("seccomp_default.json")
_MAX_PROFILE_BYTES = 4 << 20
# uname -m to the words of the profiles: libseccomp's architecture, Go's architecture.
_ARCH = {
    "x86_64": ("SCMP_ARCH_X86_64", "amd64"),
    "aarch64": ("SCMP_ARCH_AARCH64", "arm64"),
    "riscv64": ("SCMP_ARCH_RISCV64", "riscv64"),
    "s390x": ("SCMP_ARCH_S390X", "s390x"),
    "ppc64le": ("SCMP_ARCH_PPC64LE", "ppc64le"),
}
_ACTIONS = frozenset(
    f"SCMP_ACT_{name}"
    for name in ("KILL", "KILL_PROCESS", "KILL_THREAD", "TRAP", "ERRNO", "TRACE", "ALLOW", "LOG", "NOTIFY")
)
_OPERATORS = frozenset(f"SCMP_CMP_{name}" for name in ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"))


class Arg(msgspec.Struct, rename="camel", omit_defaults=True):
    index: int
    value: int
    value_two: int = 0
    op: str = ""


class Condition(msgspec.Struct, rename="camel"):
    caps: list[str] | None = None
    arches: list[str] | None = None
    min_kernel: str = ""


class Rule(msgspec.Struct, rename="camel"):
    action: str
    names: list[str] | None = None
    name: str = ""
    args: list[Arg] | None = None
    errno_ret: int | None = None
    includes: Condition | None = None
    excludes: Condition | None = None


class ArchMap(msgspec.Struct, rename="camel"):
    architecture: str
    sub_architectures: list[str] | None = None


class Profile(msgspec.Struct, rename="camel"):
    """A profile in Docker's form, of which the OCI form is a part."""

    default_action: str
    default_errno_ret: int | None = None
    architectures: list[str] | None = None
    arch_map: list[ArchMap] | None = None
    flags: list[str] | None = None
    listener_path: str = ""
    listener_metadata: str = ""
    syscalls: list[Rule] = []


def seccomp_for(profile: str, capabilities: Iterable[str]) -> dict[str, Any] | None:
    """The OCI filter of a profile for a workload with `capabilities`; None for "unconfined". Do not change the result.

    profile: "default", "unconfined" or the path of a JSON file. Raises NotFound, InvalidArgument (bad profile).
    """
    if profile == "unconfined":
        return None
    caps = frozenset(capabilities)
    if profile in ("default", ""):
        return _default(caps)
    path = Path(profile)
    try:
        info = path.stat()
    except OSError as error:
        raise NotFound(f"no seccomp profile {profile!r}", cause=error.strerror or "") from None
    return _from_file(profile, info.st_mtime_ns, info.st_size, caps)


def compiled_for(profile: str, capabilities: Iterable[str]) -> str:
    """The filter of `seccomp_for` as the BPF program crun takes ready-made, in base64; "" where that can't be done.

    Compiling costs some 10 ms at each start if crun does it (annotation run.oci.seccomp_bpf_data); here it is done
    once per profile and capability set. runc ignores the annotation and compiles the same filter itself.
    """
    filter_ = seccomp_for(profile, capabilities)
    if filter_ is None:
        return ""
    key = id(filter_)
    if key not in _programs:
        # Kept together: a filter that lives cannot lend its id to another one.
        _programs[key] = (filter_, _compile(filter_))
        while len(_programs) > _MAX_PROGRAMS:
            del _programs[next(iter(_programs))]
    return _programs[key][1]


_MAX_PROGRAMS = 128
_programs: dict[int, tuple[dict[str, Any], str]] = {}


def _compile(filter_: dict[str, Any]) -> str:
    if filter_.get("flags") or filter_.get("listenerPath"):
        return ""  # a ready-made program cannot carry them
    try:
        return base64.b64encode(compile_oci(filter_, tree=True)).decode()
    except (OSError, KeyError):
        return ""  # no library, or an action it does not know: the runtime compiles, and says what is wrong


def compile_oci(filter_: dict[str, Any], *, tree: bool = False) -> bytes:
    """The BPF program of a plain OCI filter; tree: as `compile_filter` has it. The kernel tries a filter out on every
    system call when it is installed, which takes a tree a third of the time (some 0.5 ms less a start).

    Raises OSError from libseccomp, KeyError for an action it lacks.
    """
    default = action(filter_["defaultAction"], filter_.get("defaultErrnoRet", errno.EPERM))
    names = [name.removeprefix("SCMP_ARCH_").lower() for name in filter_["architectures"]]
    rules = [rule for entry in filter_["syscalls"] for rule in _filter_rules(entry)]
    return compile_filter(default, names, rules, tree=tree)


def _filter_rules(entry: dict[str, Any]) -> list[FilterRule]:
    number = action(entry["action"], entry.get("errnoRet", errno.EPERM))
    args = [(a["index"], OPERATORS[a["op"]], a["value"], a.get("valueTwo", 0)) for a in entry.get("args") or ()]
    if len({arg[0] for arg in args}) == len(args):
        return [FilterRule(number, entry["names"], tuple(args))]
    # Two conditions on one argument are alternatives (runtime-spec): libseccomp wants a rule for each.
    return [FilterRule(number, entry["names"], (arg,)) for arg in args]


def parse_profile(data: bytes, *, where: str) -> Profile:
    """A profile in Docker's or OCI's form, checked. Raises InvalidArgument with the path of the bad key."""
    try:
        profile = msgspec.json.decode(data, type=Profile)
    except msgspec.DecodeError as error:
        raise InvalidArgument(f"seccomp profile {where}: {error}") from None
    for problem in _problems(profile):
        raise InvalidArgument(f"seccomp profile {where}: {problem}")
    return profile


def resolve_profile(
    profile: Profile, capabilities: frozenset[str], *, machine: str = "", kernel: tuple[int, int] | None = None
) -> dict[str, Any]:
    """Decide the conditions of `profile` and return the plain OCI form. machine, kernel: this host's unless given."""
    machine = machine or platform.machine()
    kernel = kernel or host_kernel()
    arch = _ARCH.get(machine, ("", machine))
    rules = [r for r in profile.syscalls if _applies(r, capabilities, arch[1], kernel)]
    filter_: dict[str, Any] = {"defaultAction": profile.default_action}
    if profile.default_errno_ret is not None:
        filter_["defaultErrnoRet"] = profile.default_errno_ret
    filter_["architectures"] = _architectures(profile, arch[0])
    if profile.flags:
        filter_["flags"] = profile.flags
    if profile.listener_path:
        filter_ |= {"listenerPath": profile.listener_path, "listenerMetadata": profile.listener_metadata}
    filter_["syscalls"] = _merged(rules)
    return filter_


@lru_cache(maxsize=1)
def host_kernel() -> tuple[int, int]:
    """Major and minor number of the running kernel."""
    major, minor = platform.release().split(".")[:2]
    return int(major), int("".join(c for c in minor if c.isdigit()) or 0)


@lru_cache(maxsize=128)
def _default(capabilities: frozenset[str]) -> dict[str, Any]:
    return resolve_profile(_default_profile(), capabilities)


@lru_cache(maxsize=1)
def _default_profile() -> Profile:
    return parse_profile(_DEFAULT_FILE.read_bytes(), where="default")


@lru_cache(maxsize=32)
def _from_file(path: str, mtime_ns: int, size_bytes: int, capabilities: frozenset[str]) -> dict[str, Any]:
    # mtime and size are part of the key: an edited profile is read again.
    if size_bytes > _MAX_PROFILE_BYTES:
        raise InvalidArgument(f"seccomp profile {path} is larger than {_MAX_PROFILE_BYTES} bytes")
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InvalidArgument(f"cannot read seccomp profile {path}", cause=error.strerror or "") from None
    return resolve_profile(parse_profile(data, where=path), capabilities)


def _applies(rule: Rule, caps: frozenset[str], arch: str, kernel: tuple[int, int]) -> bool:
    """Moby's rule: every include must hold, no exclude may; an empty condition always holds."""
    if (need := rule.includes) is not None:
        wanted_kernel = not need.min_kernel or kernel >= _version(need.min_kernel)
        if not (caps.issuperset(need.caps or ()) and arch in (need.arches or (arch,)) and wanted_kernel):
            return False
    if (bar := rule.excludes) is not None:
        barred_kernel = bool(bar.min_kernel) and kernel >= _version(bar.min_kernel)
        return not (caps.intersection(bar.caps or ()) or arch in (bar.arches or ()) or barred_kernel)
    return True


def _version(text: str) -> tuple[int, int]:
    major, minor = text.split(".")[:2]
    return int(major), int(minor)


def _architectures(profile: Profile, native: str) -> list[str]:
    if profile.architectures:
        return profile.architectures
    for entry in profile.arch_map or ():
        if entry.architecture == native:
            return [native, *(entry.sub_architectures or ())]
    return [native] if native else []


def _merged(rules: list[Rule]) -> list[dict[str, Any]]:
    """OCI rules; those without arguments are joined by action, so that the runtime parses fewer of them."""
    joined: dict[tuple[str, int | None], set[str]] = {}
    rest: list[dict[str, Any]] = []
    for rule in rules:
        names = rule.names or [rule.name]
        if not rule.args:
            joined.setdefault((rule.action, rule.errno_ret), set()).update(names)
            continue
        rest.append(_rule(names, rule.action, rule.errno_ret) | {"args": msgspec.to_builtins(rule.args)})
    return [_rule(sorted(names), *key) for key, names in joined.items()] + rest


def _rule(names: list[str], action: str, errno_ret: int | None) -> dict[str, Any]:
    rule: dict[str, Any] = {"names": names, "action": action}
    if errno_ret is not None:
        rule["errnoRet"] = errno_ret
    return rule


def _problems(profile: Profile) -> Iterable[str]:
    if profile.default_action not in _ACTIONS:
        yield f"unknown action {profile.default_action!r} at $.defaultAction"
    if profile.architectures and profile.arch_map:
        yield "give either architectures or archMap"
    for number, rule in enumerate(profile.syscalls):
        at = f"at $.syscalls[{number}]"
        if rule.action not in _ACTIONS:
            yield f"unknown action {rule.action!r} {at}"
        if bool(rule.name) == bool(rule.names):
            yield f"give either name or names {at}"
        for arg in rule.args or ():
            if arg.op not in _OPERATORS:
                yield f"unknown operator {arg.op!r} {at}"
            if not 0 <= arg.index <= 5:
                yield f"argument index {arg.index} is not 0..5 {at}"
        yield from (f"{problem} {at}" for c in (rule.includes, rule.excludes) if c for problem in _condition(c))


def _condition(condition: Condition) -> Iterable[str]:
    for cap in condition.caps or ():
        if cap not in ALL:
            yield f"unknown capability {cap!r}"
    parts = condition.min_kernel.split(".") if condition.min_kernel else ["0", "0"]
    if len(parts) < 2 or not all(part.isdigit() for part in parts):
        yield f"bad kernel version {condition.min_kernel!r}"
