"""Where drupe-oci differs from runc when the workload is in a sandbox of another kind, and why. Beside these, what is
inside of a gVisor sandbox is as runsc has it."""

from __future__ import annotations

from framework.conformance import REFUSED
from framework.differences import Difference

_FEWER = "the sandbox's kernel shows fewer options; nosuid and nodev hold always"
_UNAWARE = "mounts of the host and of the sandbox do not know of each other"
_NO_LINE = "the sentry's /proc/PID/status has no line for it"
_OWN_KERNEL = "a sandbox has a kernel, and a process table, of its own"
_CRUN = "the stand-in's, which crun makes: as for the runc kind"
_ON_THE_HOST = "a program of the container's would run on the host's kernel"
_MADE = "(prestart|createRuntime|createContainer|poststart)"
_OF_THE_STAND_IN = (
    ("hooks", "(prestart|createRuntime|createContainer|poststart|poststop) fields", _CRUN),
    ("hooks", f"{_MADE} status", _CRUN),
    ("hooks", "createContainer pid", _CRUN),
    ("hooks inside", REFUSED, _ON_THE_HOST),
    ("hooks that fail", "(createRuntime|createContainer): order", _CRUN),
    ("hooks that fail", "poststart: exit code is 0", _CRUN),
)  # fmt: skip
_GVISOR = (
    ("mounts", "mount .*", _FEWER),
    ("a mount that follows the host's", REFUSED, _UNAWARE),
    ("rootfs propagation", REFUSED, _UNAWARE),
    ("masked and read-only paths", "(sys|sysrq|timer_list).*", "the sandbox's own /proc, which has neither"),
    ("usual device nodes", "(fuse|mqueue|net|pts|core)", "the sentry's own /dev"),
    ("device nodes", REFUSED, "no device of the host can be shown"),
    ("device rules", REFUSED, "no device of the host can be shown"),
    ("capabilities of root", "CapAmb.*", _NO_LINE),
    ("capabilities of a user", "Cap.*", "the sentry has no ambient set: what it would add is not there"),
    ("no capabilities named", "CapAmb.*", _NO_LINE),
    ("umask", REFUSED, "runsc takes none; the usual 022 is what there is"),
    ("no new privileges, OOM score", "(NoNewPrivs.*|oom)", "the score is the sandbox's on the host, not seen inside"),
    ("seccomp", "mkdir", "the filter holds; a denied call fails with EPERM, whatever `errnoRet` says"),
    ("sysctls", REFUSED, "the sandbox has its own, which cannot be set"),
    ("new namespaces", REFUSED, _OWN_KERNEL),
    ("a user namespace", REFUSED, "every sandbox runs in one of its own already"),
    ("limits of the cgroup", "cgroup pids.max", "each user inside has the limit (RLIMIT_NPROC): the host cannot count"),
    ("exit codes", REFUSED, _OWN_KERNEL),
    ("mistakes at the command line", "(pause before start|resume)", "refused: nothing runs yet that could be paused"),
    *_OF_THE_STAND_IN,
    ("exec", "(plain|flags) CapAmb.*", _NO_LINE),
    ("exec by a file", "CapAmb.*", _NO_LINE),
)  # fmt: skip
_APPKERNEL = (
    ("mounts", "mount .*", "the kernel's own file systems: no relatime, and mqueue has none"),
    ("a mount that follows the host's", REFUSED, _UNAWARE),
    ("rootfs propagation", REFUSED, _UNAWARE),
    ("masked and read-only paths", "(sysrq|timer_list).*", "the kernel's own /proc, which has neither"),
    ("device nodes", REFUSED, "no device of the host can be shown"),
    ("device rules", REFUSED, "no device of the host can be shown"),
    ("new namespaces", REFUSED, _OWN_KERNEL),
    ("a user namespace", REFUSED, "no kind with a stand-in has it yet"),
    ("limits of the cgroup", "cgroup pids.max", "the pod's kernel counts and holds the limit, not the host's cgroup"),
    ("exit codes", REFUSED, _OWN_KERNEL),
    ("mistakes at the command line", "(pause before start|resume)", "refused: nothing runs yet that could be paused"),
    *_OF_THE_STAND_IN,
)  # fmt: skip
_VM = (
    ("mounts", "mount (/|/mnt|/made/by/mount)", "what is shared with the guest is virtio-fs there"),
    ("a mount that follows the host's", REFUSED, _UNAWARE),
    ("rootfs propagation", REFUSED, _UNAWARE),
    ("masked and read-only paths", "(kcore|sysrq).*", "the guest's kernel has both, and they are hidden"),
    ("usual device nodes", "core", "crun in the guest links it, as for the runc kind"),
    ("device nodes", REFUSED, "the guest has no driver for what a character device of the host stands for"),
    ("new namespaces", REFUSED, _OWN_KERNEL),
    ("a user namespace", REFUSED, "no kind with a stand-in has it yet"),
    ("limits of the cgroup", "cgroup (memory|pids).*", "the guest's kernel holds the workload, the host's the machine"),
    ("exit codes", REFUSED, _OWN_KERNEL),
    ("mistakes at the command line", "(pause before start|resume)", "refused: nothing runs yet that could be paused"),
    *_OF_THE_STAND_IN,
)  # fmt: skip
_WASM = (
    ("a user namespace", REFUSED, "no kind with a stand-in has it yet"),
    ("hooks inside", REFUSED, _ON_THE_HOST),
)


def _listed(rows: tuple[tuple[str, str, str], ...]) -> tuple[Difference, ...]:
    return tuple(Difference(case, keys, "runc", why) for case, keys, why in rows)


OF_KIND = {"gvisor": _listed(_GVISOR), "appkernel": _listed(_APPKERNEL), "vm": _listed(_VM), "wasm": _listed(_WASM)}
