"""The kinds of sandbox: one row for each, strongest first, and of equals the one that can do more. Whoever adds a kind
adds it here, and only here.

The assembly (services/build.py), the doctor, the choice of a kind, `drupe system capabilities` and the pages under docs
read this table. A row costs nothing: the code of a kind is imported when its table is asked for or its first pod made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from drupe.errors import InvalidArgument, Unsupported
from drupe.keeper.client import Keeper
from drupe.resources.cgroups import Cgroups
from drupe.sandboxers.contract import OnExit, Sandboxer
from drupe.spec.base import Spec
from drupe.spec.node import Level

if TYPE_CHECKING:
    from drupe.images.store import ImageStore

# How strong a boundary is, weakest first. What it takes to break out: nothing; a hole in the host's kernel, which
# serves every system call of the workload; one in the engine that compiled the module; one in a kernel written for
# this, in a process without rights; one in the processor or the monitor of a machine.
LEVELS: tuple[str, ...] = get_args(Level)


@dataclass(frozen=True, slots=True)
class Means:
    """What a sandboxer is built from. run, root: the runtime's directories for what is lost and what is kept at a
    reboot; a kind uses a directory of its own name below them. options: the struct of `Kind.options`. images: the
    node's image store."""

    keeper: Keeper
    cgroups: Cgroups
    on_exit: OnExit
    run: Path
    root: Path
    options: Spec
    images: ImageStore


class NoOptions(Spec):
    """Of a kind that has nothing to set."""


def _planned(means: Means) -> Sandboxer:
    raise Unsupported("this kind of sandbox is not built in this version")


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of sandbox.

    level: one of LEVELS. isolates: what stands between the workload and the host, in a sentence. needs: the doctor's
    checks that must pass (a tuple: one of these). wants: those that must be good where nobody named the kind: without
    them it runs, and is not what is meant by it. able: feature to "yes", "no: reason" or "limited: reason", the same
    on every host. options: the struct of its table `[kinds.NAME]` in the node's configuration. lacks: what is
    missing below a node's root directory with these options, so that only who names the kind gets it; "" for nothing.
    open: makes its sandboxer; raises DrupeError when something it needs is missing. A kind without `open` is planned.
    """

    name: str
    level: Level
    isolates: str
    needs: tuple[str | tuple[str, ...], ...] = ()
    wants: tuple[str, ...] = ()
    able: Callable[[], Mapping[str, str]] = dict
    options: Callable[[], type[Spec]] = lambda: NoOptions
    lacks: Callable[[Path, Spec], str] = lambda root, options: ""
    open: Callable[[Means], Sandboxer] = _planned

    @property
    def is_planned(self) -> bool:
        """Whether this version has no code for it."""
        return self.open is _planned


def _runc_able() -> Mapping[str, str]:
    from drupe.sandboxers.runc.able import ABLE

    return ABLE


def _runc_options() -> type[Spec]:
    from drupe.sandboxers.runc.options import RuncOptions

    return RuncOptions


def _runc_open(means: Means) -> Sandboxer:
    from drupe.sandboxers.runc.sandboxer import open_runc

    return open_runc(means)


def _gvisor_able() -> Mapping[str, str]:
    from drupe.sandboxers.gvisor.able import ABLE

    return ABLE


def _gvisor_options() -> type[Spec]:
    from drupe.sandboxers.gvisor.options import GvisorOptions

    return GvisorOptions


def _gvisor_open(means: Means) -> Sandboxer:
    from drupe.sandboxers.gvisor.sandboxer import open_gvisor

    return open_gvisor(means)


def _wasm_able() -> Mapping[str, str]:
    from drupe.sandboxers.wasm.able import ABLE

    return ABLE


def _wasm_options() -> type[Spec]:
    from drupe.sandboxers.wasm.options import WasmOptions

    return WasmOptions


def _wasm_open(means: Means) -> Sandboxer:
    from drupe.sandboxers.wasm.sandboxer import open_wasm

    return open_wasm(means)


def _vm_able() -> Mapping[str, str]:
    from drupe.sandboxers.vm.able import ABLE

    return ABLE


def _vm_options() -> type[Spec]:
    from drupe.sandboxers.vm.options import VmOptions

    return VmOptions


def _vm_lacks(root: Path, options: Spec) -> str:
    from drupe.sandboxers.vm.sandboxer import lacking

    return lacking(root, options)


def _vm_open(means: Means) -> Sandboxer:
    from drupe.sandboxers.vm.sandboxer import open_vm

    return open_vm(means)


def _appkernel_able() -> Mapping[str, str]:
    from drupe.sandboxers.appkernel.able import ABLE

    return ABLE


def _appkernel_options() -> type[Spec]:
    from drupe.sandboxers.appkernel.options import AppkernelOptions

    return AppkernelOptions


def _appkernel_open(means: Means) -> Sandboxer:
    from drupe.sandboxers.appkernel.sandboxer import open_appkernel

    return open_appkernel(means)


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            "vm",
            "machine",
            "a machine of its own, with its own kernel, whose monitor has no rights on the host",
            needs=("root", "keeper", "overlay", "cgroups", "QEMU", "virtiofsd"),
            wants=("KVM",),
            able=_vm_able,
            options=_vm_options,
            lacks=_vm_lacks,
            open=_vm_open,
        ),
        Kind(
            "gvisor",
            "kernel",
            "a kernel of its own, gVisor's, in a process without rights",
            needs=("root", "keeper", "overlay", "cgroups", "runsc"),
            able=_gvisor_able,
            options=_gvisor_options,
            open=_gvisor_open,
        ),
        Kind(
            "appkernel",
            "kernel",
            "a kernel of its own, drupe's, in a process without rights",
            needs=("root", "keeper", "overlay", "cgroups", "appkernel"),
            able=_appkernel_able,
            options=_appkernel_options,
            open=_appkernel_open,
        ),
        Kind(
            "wasm",
            "module",
            "a module that can only call what it is given, in a process of its own",
            needs=("root", "keeper", "cgroups", "wasm engine"),
            able=_wasm_able,
            options=_wasm_options,
            open=_wasm_open,
        ),
        Kind(
            "runc",
            "namespaces",
            "namespaces, cgroups, capabilities and a system call filter; the host's kernel is shared",
            needs=("root", "keeper", "overlay", "cgroups", ("crun", "runc")),
            able=_runc_able,
            options=_runc_options,
            open=_runc_open,
        ),
    )
}


def kind_of(name: str) -> Kind:
    """The row of a kind. Raises InvalidArgument for a name that is no kind, Unsupported for a planned one."""
    try:
        kind = KINDS[name]
    except KeyError:
        built = ", ".join(kind.name for kind in KINDS.values() if not kind.is_planned)
        raise InvalidArgument(f"unknown sandbox kind {name!r}", hint=f"one of: auto, {built}") from None
    if kind.is_planned:
        raise Unsupported(
            f"sandbox kind {name!r} is not built in this version",
            kind=name,
            hint="drupe doctor says which kinds can run here; an explicit kind is never weakened",
        )
    return kind
