"""Every field of the published schema is typed, and has a rule; what a kind does not carry out is refused by name."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from drupe.errors import Unsupported
from drupe.oci.carried import RULES, Carried, Lacked, Moot, Needs, Refused, refuse_uncarried, refuses, rule_of
from drupe.oci.limits import resources_of
from drupe.oci.runtime_spec import RuntimeConfig, parse
from drupe.sandboxers.appkernel.able import ABLE as APPKERNEL
from drupe.sandboxers.features import FEATURES
from drupe.sandboxers.gvisor.able import ABLE as GVISOR
from drupe.sandboxers.vm.able import ABLE as VM
from drupe.sandboxers.wasm.able import ABLE as WASM
from framework.uncarried import ALL_SPACES, LIMITS, LINUX, OPTIONS, PROCESS, USES, asked_of, linux

SCHEMA = [line for line in (Path(__file__).parent / "schema_fields.txt").read_text().splitlines() if line[0] != "#"]
ABLE = {"gvisor": GVISOR, "wasm": WASM, "vm": VM, "appkernel": APPKERNEL}
# typed, and newer than the schema: they must be refused, not overlooked
NEWER = (
    "process.execCPUAffinity", "linux.netDevices", "linux.memoryPolicy", "linux.intelRdt.schemata",
    "linux.intelRdt.enableMonitoring",
)  # fmt: skip


def config(part: Mapping[str, Any]) -> RuntimeConfig:
    return parse(RuntimeConfig, {"ociVersion": "1.2.0", "process": PROCESS, "linux": LINUX, **part}, where="config")


def typed(kind: Any, path: str = "") -> Iterator[str]:
    """The paths of a struct's fields, as the schema's list has them."""
    for field in msgspec.structs.fields(kind):
        yield from _typed(field.type, f"{path}.{field.encode_name}".lstrip("."))


def _typed(type_: Any, path: str) -> Iterator[str]:
    if isinstance(type_, types.UnionType):
        type_ = next(one for one in typing.get_args(type_) if one is not type(None))
    args = typing.get_args(type_)
    if typing.get_origin(type_) is list and issubclass(args[0], msgspec.Struct):
        yield from typed(args[0], f"{path}[]")
    elif isinstance(type_, type) and issubclass(type_, msgspec.Struct):
        yield from typed(type_, path)
    else:
        yield path


def test_every_field_of_the_schema_is_typed_and_nothing_else_is() -> None:
    ours = set(typed(RuntimeConfig)) | {"linux.timeOffsets"}
    known = {"linux.timeOffsets" if path.startswith("linux.timeOffsets.") else path for path in SCHEMA}
    # one struct serves all lists of block devices
    extra = {path for path in ours - known if path.startswith("linux.resources.blockIO.")}
    assert ours - known - extra == set(NEWER)
    assert known - ours == set()


@pytest.mark.parametrize("path", [*SCHEMA, *NEWER])
def test_every_field_has_a_rule(path: str) -> None:
    rule = rule_of(path)
    assert rule is not None, "overlooked"
    if isinstance(rule, Carried | Moot):
        assert rule.by if isinstance(rule, Carried) else rule.why


def test_no_rule_is_for_a_field_that_there_is_not() -> None:
    fields = [path.partition(" ")[0].rstrip("*") for path in RULES]
    assert [one for one in fields if not any(path.startswith(one) for path in (*SCHEMA, *NEWER))] == []
    assert {rule.feature for rule in RULES.values() if isinstance(rule, Needs)} <= set(FEATURES)


def test_each_refusal_has_a_bundle_that_asks_for_it() -> None:
    assert {path for path, rule in RULES.items() if isinstance(rule, Needs | Lacked | Refused)} == set(USES)


@pytest.mark.parametrize("kind", ABLE)
@pytest.mark.parametrize("path", USES)
def test_what_a_kind_does_not_carry_out_is_refused_by_name(kind: str, path: str) -> None:
    able = ABLE[kind]
    if not refuses(path, kind, able):
        refuse_uncarried(config(USES[path]), kind, able)
        return
    with pytest.raises(Unsupported) as refused:
        refuse_uncarried(config(USES[path]), kind, able)
    assert refused.value.details["feature"] == asked_of(path)
    assert asked_of(path) in str(refused.value) and kind in str(refused.value)


@pytest.mark.parametrize("kind", ABLE)
@pytest.mark.parametrize(("mount", "option", "kinds"), OPTIONS, ids=[option for _, option, _ in OPTIONS])
def test_options_of_mounts_are_carried_out_or_refused(
    kind: str, mount: dict[str, Any], option: str, kinds: tuple[str, ...]
) -> None:
    asked = config({"mounts": [mount]})
    if kind in kinds:
        with pytest.raises(Unsupported, match=option):
            refuse_uncarried(asked, kind, ABLE[kind])
    else:
        refuse_uncarried(asked, kind, ABLE[kind])


@pytest.mark.parametrize("name", LIMITS)
def test_limits_that_nothing_sets_are_refused_by_name(name: str) -> None:
    resources = config(linux(resources=LIMITS[name])).linux
    assert resources is not None
    with pytest.raises(Unsupported, match=name):
        resources_of(resources.resources)


# what Docker 20.10 and Podman 4.3 say of a container for which nobody said anything
_CAPS = ["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW", "CAP_MKNOD", "CAP_AUDIT_WRITE"]
_MASKED = ["/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/sys/firmware", "/sys/fs/selinux"]
_SECCOMP = {"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": []}
USUAL: dict[str, dict[str, Any]] = {
    "docker": {
        "process": PROCESS | {
            "user": {"uid": 0, "gid": 0, "additionalGids": [0, 10]}, "oomScoreAdj": 0,
            "apparmorProfile": "docker-default", "capabilities": {"bounding": _CAPS, "effective": _CAPS},
        },
        "hostname": "c",
        "hooks": {"prestart": [{"path": "/proc/1/exe", "args": ["libnetwork-setkey"]}]},
        "mounts": [
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "nosuid"]},
            {"destination": "/etc/hosts", "type": "bind", "source": "/h", "options": ["rbind", "rprivate"]},
            {"destination": "/dev/shm", "type": "bind", "source": "/s", "options": ["rbind", "rprivate"]},
        ],
        "linux": {
            "namespaces": [*ALL_SPACES, {"type": "cgroup"}], "cgroupsPath": "/docker/c", "devices": [],
            "sysctl": {"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"},
            "resources": {
                "devices": [{"allow": False, "access": "rwm"}], "memory": {"disableOOMKiller": False},
                "cpu": {"shares": 0}, "pids": {"limit": 0}, "blockIO": {"weight": 0},
            },
            "seccomp": _SECCOMP, "maskedPaths": _MASKED, "readonlyPaths": ["/proc/bus", "/proc/sys"],
        },
    },
    "podman": {
        "process": PROCESS | {
            "user": {"uid": 0, "gid": 0, "umask": 18}, "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 9, "hard": 9}],
            "capabilities": {"bounding": _CAPS},
        },
        "mounts": [
            {"destination": "/run/.containerenv", "type": "bind", "source": "/e", "options": ["bind", "rprivate"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["rprivate", "ro"]},
        ],
        "annotations": {"io.container.manager": "libpod"},
        "linux": {
            "namespaces": [*ALL_SPACES[:3], {"type": "network", "path": "/run/netns/x"}, {"type": "mount"}],
            "sysctl": {"net.ipv4.ping_group_range": "0 0"}, "seccomp": _SECCOMP, "maskedPaths": _MASKED,
            "resources": {"devices": [{"allow": False, "access": "rwm"}], "pids": {"limit": 2048}},
        },
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", ABLE)
@pytest.mark.parametrize("engine", USUAL)
def test_what_engines_say_always_is_taken(engine: str, kind: str) -> None:
    made = config(json.loads(json.dumps(USUAL[engine])))
    refuse_uncarried(made, kind, ABLE[kind])
    assert made.linux is not None
    resources_of(made.linux.resources)
