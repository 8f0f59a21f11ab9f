"""Profiles: their conditions are decided, and the program made is the one libseccomp makes."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any

import pytest

from drupe.errors import InvalidArgument, NotFound
from drupe.oci import seccomp
from drupe.oci.capabilities import ALL, DEFAULT

OLD, NEW = (4, 7), (6, 1)


def allowed(filter_: dict[str, Any]) -> set[str]:
    return {
        name
        for rule in filter_["syscalls"]
        if rule["action"] == "SCMP_ACT_ALLOW" and not rule.get("args")
        for name in rule["names"]
    }


def resolved(caps: tuple[str, ...] = DEFAULT, **host: Any) -> dict[str, Any]:
    profile = seccomp.parse_profile(Path(seccomp.__file__).with_name("seccomp_default.json").read_bytes(), where="d")
    return seccomp.resolve_profile(profile, frozenset(caps), **host)


def test_default_profile_denies_what_leaves_the_sandbox() -> None:
    names = allowed(resolved(machine="x86_64", kernel=NEW))
    assert {"read", "execve", "futex", "arch_prctl", "chroot", "landlock_create_ruleset"} <= names
    denied = {"unshare", "mount", "setns", "bpf", "keyctl", "add_key", "kexec_load", "userfaultfd", "io_uring_setup",
              "open_by_handle_at", "init_module", "reboot", "swapon", "pivot_root", "perf_event_open"}  # fmt: skip
    assert not denied & names


def test_conditions_on_capabilities() -> None:
    with_admin = allowed(resolved((*DEFAULT, "CAP_SYS_ADMIN"), machine="x86_64", kernel=NEW))
    assert {"unshare", "mount", "setns", "clone3"} <= with_admin
    assert "init_module" in allowed(resolved((*DEFAULT, "CAP_SYS_MODULE"), machine="x86_64", kernel=NEW))
    assert "chroot" not in allowed(resolved((), machine="x86_64", kernel=NEW))


def test_conditions_on_kernel_and_machine() -> None:
    assert "ptrace" not in allowed(resolved(machine="x86_64", kernel=OLD))
    assert "ptrace" in allowed(resolved(machine="x86_64", kernel=NEW))
    arm = resolved(machine="aarch64", kernel=NEW)
    assert arm["architectures"] == ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]
    assert "cacheflush" in allowed(arm)
    assert "arch_prctl" not in allowed(arm)


def test_clone_may_make_threads_but_no_namespaces() -> None:
    rules = [r for r in resolved(machine="x86_64", kernel=NEW)["syscalls"] if "clone" in r["names"]]
    mask = rules[0]["args"][0]
    assert (mask["op"], mask["value"]) == ("SCMP_CMP_MASKED_EQ", 0x7E020000)


def test_the_result_is_cached_and_cheap() -> None:
    first = seccomp.seccomp_for("default", DEFAULT)
    seccomp.compiled_for("default", DEFAULT)
    start = time.perf_counter()
    for _ in range(100):
        assert seccomp.seccomp_for("default", DEFAULT) is first
        seccomp.compiled_for("default", DEFAULT)
    assert (time.perf_counter() - start) / 100 < 0.0003


def test_unconfined_is_no_filter() -> None:
    assert seccomp.seccomp_for("unconfined", ALL) is None
    assert seccomp.compiled_for("unconfined", ALL) == ""


def test_compiled_program_is_sound_bpf() -> None:
    program = base64.b64decode(seccomp.compiled_for("default", DEFAULT))
    assert len(program) % 8 == 0
    assert len(program) // 8 <= 4096  # BPF_MAXINSNS
    assert seccomp.compiled_for("default", ALL) != seccomp.compiled_for("default", DEFAULT)


def test_profile_from_a_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    for names in (["read"], ["read", "write"]):
        rules = [{"names": names, "action": "SCMP_ACT_ALLOW"}]
        path.write_text(json.dumps({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules}))
        found = seccomp.seccomp_for(str(path), DEFAULT)
        assert found is not None
        assert allowed(found) == set(names)


@pytest.mark.parametrize(
    ("profile", "words"),
    [
        ("{", "JSON is malformed|truncated"),
        ("[]", r"at `\$`|got `array`"),
        ('{"syscalls": []}', "defaultAction"),
        ('{"defaultAction": "SCMP_ACT_FOO"}', r"SCMP_ACT_FOO.*\$\.defaultAction"),
        ('{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["read"]}]}', r"action.*\$\.syscalls\[0\]"),
        ('{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"action": "SCMP_ACT_ALLOW"}]}', "name or names"),
        ('{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": 3, "action": "SCMP_ACT_ALLOW"}]}',
         r"\$\.syscalls\[0\]\.names"),
        ('{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["a"], "action": "SCMP_ACT_ALLOW", '
         '"args": [{"index": 9, "value": 1, "op": "SCMP_CMP_EQ"}]}]}', "index 9"),
        ('{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["a"], "action": "SCMP_ACT_ALLOW", '
         '"includes": {"caps": ["CAP_FOO"]}}]}', "CAP_FOO"),
        ('{"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86"], '
         '"archMap": [{"architecture": "SCMP_ARCH_X86"}]}', "either architectures"),
    ],
)  # fmt: skip
def test_bad_profiles_say_where(tmp_path: Path, profile: str, words: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(profile)
    with pytest.raises(InvalidArgument, match=words) as caught:
        seccomp.seccomp_for(str(path), DEFAULT)
    assert "\n" not in str(caught.value)


def test_missing_profile() -> None:
    with pytest.raises(NotFound, match="/no/such"):
        seccomp.seccomp_for("/no/such", DEFAULT)
