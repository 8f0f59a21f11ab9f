"""`drupe doctor`: what can run here, found by doing it, each finding with its cause and the command that mends it.

Every probe really uses the facility, in namespaces of its own, within a deadline of one second; all run at once in
threads. Good findings are cached by boot, program versions and user; bad ones are always probed again. No daemon is
needed, so this is the one service that starts helper programs by itself.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from drupe.sandboxers.kinds import KINDS, Kind
from drupe.services import probes_appkernel, probes_gvisor, probes_host, probes_kernel, probes_vm, probes_wasm
from drupe.services.probing import DEADLINE_S, Finding, Inconclusive, Problem
from drupe.spec.host import Probe

_PROGRAMS = ("crun", "runc", "unshare", "mkfs.erofs", "qemu-system-x86_64")
_WATCHED = (
    "/usr/lib/cni",
    "/opt/cni/bin",
    "/usr/lib/x86_64-linux-gnu/libnftables.so.1",
    "/usr/lib/aarch64-linux-gnu/libnftables.so.1",
)


class Check(NamedTuple):
    """One probe. quick: reads a figure that may change any time, and is never cached."""

    name: str
    probe: Callable[[], str]
    quick: bool = False


CHECKS: tuple[Check, ...] = (
    Check("root", probes_host.root, quick=True),
    Check("keeper", probes_host.keeper),
    Check("crun", lambda: probes_kernel.oci_runtime("crun")),
    Check("runc", lambda: probes_kernel.oci_runtime("runc")),
    Check("runsc", probes_gvisor.runsc),
    Check("appkernel", probes_appkernel.appkernel),
    Check("QEMU", probes_vm.qemu),
    Check("virtiofsd", probes_vm.virtiofsd),
    Check("wasm engine", probes_wasm.engine),
    Check("overlay", probes_kernel.overlay),
    Check("user namespaces", probes_kernel.user_namespaces),
    Check("seccomp", probes_kernel.seccomp),
    Check("cgroups", probes_host.cgroups, quick=True),
    Check("nftables", lambda: probes_kernel.in_private_network("nftables")),
    Check("bridge", lambda: probes_kernel.in_private_network("bridge")),
    Check("IPv6", lambda: probes_kernel.in_private_network("ipv6")),
    Check("CNI plug-ins", probes_host.cni_plugins),
    Check("EROFS", probes_kernel.erofs),
    Check("configuration", probes_host.configuration, quick=True),
    Check("KVM", probes_host.kvm),
    Check("disk space", probes_host.disk_space, quick=True),
    Check("file descriptors", probes_host.descriptors, quick=True),
    Check("CAP_SYS_RESOURCE", probes_host.sys_resource, quick=True),
)


class _Cache(msgspec.Struct):
    key: str
    probes: dict[str, Probe]


def probe_all(*, fresh: bool, cache: Path) -> list[Probe]:
    """All findings, in the order of the table. fresh: probe everything again. cache: the file to keep good ones in.

    Never raises: a probe that breaks is itself a finding. Takes about a second at most.
    """
    found = _find(CHECKS, fresh=fresh, cache=cache)
    probes = [found[check.name] for check in CHECKS]
    return [*_kinds(found), *probes]


def why_not(kind: Kind, *, cache: Path, named: bool = False) -> str:
    """Why pods of a kind cannot run here, or, unless somebody named the kind, should not; "" when they can. Asks the
    probes that it rests on, and no others."""
    wants = () if named else kind.wants
    needs = {name for need in kind.needs for name in _either(need)} | {*wants}
    found = _find([check for check in CHECKS if check.name in needs], fresh=False, cache=cache)
    broken = _broken(kind, found)
    names = [name for either in broken for name in either]
    names += [name for name in wants if found[name].state != "ok"]
    return "; ".join(f"{name}: {found[name].cause}" for name in names)


def _find(checks: Sequence[Check], *, fresh: bool, cache: Path) -> dict[str, Probe]:
    key = cache_key()
    known = {} if fresh else _read(cache, key)
    todo = [check for check in checks if check.quick or check.name not in known]
    if todo:
        with ThreadPoolExecutor(max_workers=len(todo)) as pool:
            found = {probe.name: probe for probe in pool.map(_run, todo)}
        known |= found
        lasting = {check.name for check in CHECKS if not check.quick}
        _write(cache, key, {name: probe for name, probe in known.items() if name in lasting})
    return known


def can_run_runc(probes: list[Probe]) -> bool:
    """Whether pods of the kind runc can run here."""
    return any(probe.name == "kind runc" and probe.state == "ok" for probe in probes)


def _run(check: Check) -> Probe:
    began = time.monotonic()
    state, cause, mend = "ok", "", ""
    try:
        cause = check.probe()
    except Finding as finding:
        state, cause, mend = finding.state, finding.cause, finding.mend
    except Exception as error:
        state, cause = "fail", f"the probe itself broke: {type(error).__name__}: {error}"
    return Probe(
        name=check.name, state=state, cause=cause, mend=mend, took_ms=round((time.monotonic() - began) * 1e3, 1)
    )


def _kinds(found: dict[str, Probe]) -> list[Probe]:
    """The verdict for each kind of sandbox, from the findings it rests on; what can run comes first."""
    verdicts = [_verdict(kind, found) for kind in KINDS.values()]
    return sorted(verdicts, key=lambda probe: probe.state != "ok")


def _verdict(kind: Kind, found: dict[str, Probe]) -> Probe:
    name = f"kind {kind.name}"
    if kind.is_planned:
        return Probe(name=name, state="warn", cause="not built in this version")
    broken = _broken(kind, found)
    if broken:
        needs = ", ".join(" or ".join(either) for either in broken)
        return Probe(name=name, state="fail", cause=f"needs: {needs}", mend="mend these, see below")
    return Probe(name=name, state="ok", cause=kind.isolates)


def _broken(kind: Kind, found: dict[str, Probe]) -> list[tuple[str, ...]]:
    """What it needs and has not; each is a choice of checks of which one would do."""
    return [either for either in map(_either, kind.needs) if all(found[need].state == "fail" for need in either)]


def _either(need: str | tuple[str, ...]) -> tuple[str, ...]:
    return (need,) if isinstance(need, str) else need


def cache_key() -> str:
    """What a cached finding depends on: this boot, this user, the versions of drupe and of the programs."""
    import drupe

    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    paths = [*(shutil.which(name) or name for name in _PROGRAMS), *_WATCHED, *probes_host.keeper_paths()]
    times = [_mtime(path) for path in paths]
    return f"{getattr(drupe, '__version__', '')} {boot} {os.geteuid()} {times}"


def _mtime(path: str) -> int:
    with suppress(OSError):
        return Path(path).stat().st_mtime_ns
    return 0


def _read(cache: Path, key: str) -> dict[str, Probe]:
    try:
        data = msgspec.json.decode(cache.read_bytes(), type=_Cache)
    except (OSError, msgspec.MsgspecError):
        return {}  # none yet, or another version's: probing again costs a second
    return {name: probe for name, probe in data.probes.items() if data.key == key and probe.state == "ok"}


def _write(cache: Path, key: str, probes: dict[str, Probe]) -> None:
    partial = cache.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
    with suppress(OSError):  # a cache that can't be kept only costs time
        partial.write_bytes(msgspec.json.encode(_Cache(key, probes)))
        partial.replace(cache)


__all__ = [
    "CHECKS",
    "DEADLINE_S",
    "Check",
    "Inconclusive",
    "Problem",
    "cache_key",
    "can_run_runc",
    "probe_all",
    "why_not",
]
