"""What the application kernel is told of profiles, sysctls, limits, hooks, and what is refused before it is asked."""

from __future__ import annotations

import base64
import struct
from typing import Any

import pytest

from drupe.errors import InvalidArgument, Unsupported
from drupe.oci.seccomp import compiled_for, seccomp_for
from drupe.sandboxers.appkernel.bounds import check_of_one, memory_of, on_host, tasks_of, time_of
from drupe.sandboxers.appkernel.filters import instructions
from drupe.sandboxers.appkernel.sysctls import checked, of_the_network
from drupe.sandboxers.kept.hooks import refuse_inside
from drupe.spec.resources import Resources

_ALLOW = 0x7FFF0000


def _oci(profile: dict[str, Any] | None, **annotations: str) -> dict[str, Any]:
    return {"linux": {"seccomp": profile}, "annotations": annotations}


def _last(program: list[int]) -> tuple[int, ...]:
    return struct.unpack("<HBBI", struct.pack("<Q", program[-1]))


def test_a_profile_becomes_a_program_that_ends() -> None:
    rule = {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 7}
    program = instructions(_oci({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
    code, _, _, value = _last(program)
    assert code == 6 and value in (0, _ALLOW, 0x50007)  # BPF_RET
    assert any(struct.unpack("<HBBI", struct.pack("<Q", one))[3] == 0x50007 for one in program)
    assert instructions(_oci(None)) == instructions({}) == []


def test_one_that_is_compiled_already_is_taken() -> None:
    ready = compiled_for("default", ())
    given = _oci(seccomp_for("default", ()), **{"run.oci.seccomp_bpf_data": ready})
    assert len(instructions(given)) == len(base64.b64decode(ready)) // 8


def test_what_cannot_be_filtered_is_refused() -> None:
    with pytest.raises(Unsupported, match="SCMP_ACT_NOTIFY"):
        instructions(_oci({"defaultAction": "SCMP_ACT_NOTIFY"}))
    with pytest.raises(InvalidArgument, match="no filter"):
        instructions(_oci({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_NONE"]}))


def test_sysctls_are_the_kernels_or_the_networks() -> None:
    given = checked({"net/ipv4/ip_default_ttl": "77", "kernel.shmmax": "4096"})
    assert given == {"net.ipv4.ip_default_ttl": "77", "kernel.shmmax": "4096"}
    network = of_the_network(given | {"net.ipv4.ip_unprivileged_port_start": "80"})
    assert network["net.ipv4.ip_default_ttl"] == "77" and "kernel.shmmax" not in network
    assert network["net.ipv4.ip_unprivileged_port_start"] == "0"  # the kernel's to judge
    for name, value in (("vm.swappiness", "1"), ("kernel.shm_rmid_forced", "1"), ("fs.mqueue.none", "1")):
        with pytest.raises(Unsupported, match=name):
            checked({name: value})


def test_limits_of_one_of_several() -> None:
    check_of_one(Resources(memory_bytes=1 << 20, pids=5, cpus=0.5))
    for limits in (Resources(cpu_shares=512), Resources(cpuset_cpus="0"), Resources(unified={"memory.high": "1"})):
        with pytest.raises(Unsupported, match="one container among several"):
            check_of_one(limits)
    assert on_host(Resources(pids=5, cpus=1.0)) == Resources(cpus=1.0)
    assert (tasks_of(Resources(pids=-1)), tasks_of(Resources()), memory_of(Resources(memory_bytes=-1))) == (0, 0, 0)


def test_time_of_one_of_several() -> None:
    """As cpu.max has it; what is not said stays as it was."""
    assert time_of(Resources(cpus=1.5), []) == [150_000, 100_000]
    assert time_of(Resources(cpu_quota_us=20_000, cpu_period_us=50_000), []) == [20_000, 50_000]
    assert time_of(Resources(memory_bytes=5), [20_000, 50_000]) == [20_000, 50_000]
    assert time_of(Resources(cpu_period_us=100_000), [20_000, 50_000]) == [40_000, 100_000]
    assert time_of(Resources(cpu_quota_us=-1), [20_000, 50_000]) == time_of(Resources(), []) == []


def test_hooks_that_have_nowhere_to_run() -> None:
    refuse_inside({"hooks": {"startContainer": [{"path": "/x"}]}}, "appkernel", but=("startContainer",))
    refuse_inside({"hooks": {"poststart": [{"path": "/bin/x", "args": ["x", "y"]}], "prestart": None}}, "appkernel")
    for hooks in ({"startContainer": [{"path": "/x"}]}, {"poststop": [{"path": "/bin/busybox", "args": ["sh"]}]}):
        with pytest.raises(Unsupported):
            refuse_inside({"hooks": hooks}, "appkernel")
