"""Where drupe-oci in a sandbox of another kind differs from runc, and from the program that makes its kernel, and why."""

from __future__ import annotations

from framework.differences import Difference

_CAPS = "each file system of the sandbox's kernel shows fewer options; nosuid and nodev hold always"
_NO_AMBIENT = "the sentry's /proc/PID/status has no line for it"
_OWN_KERNEL = "a sandbox has a kernel, and a process table, of its own"
_STAND_IN = "a stand-in's, which crun makes: as for the runc kind"

GVISOR: tuple[Difference, ...] = (
    Difference("mounts", "mount .*", "runc", _CAPS),
    Difference("a mount that follows the host's", "refused by name", "runc", "mounts of the host and of the sandbox do not know of each other"),
    Difference("rootfs propagation", "refused by name", "runc", "for the same reason"),
    Difference("masked and read-only paths", "(sys|sysrq|timer_list).*", "runc", "the sandbox's own /proc, which has neither"),
    Difference("usual device nodes", "(fuse|mqueue|net|pts|core)", "runc", "the sentry's own /dev"),
    Difference("device nodes", "refused by name", "runc", "no device of the host can be shown"),
    Difference("device rules", "refused by name", "runc", "the same"),
    Difference("capabilities of root", "CapAmb.*", "runc", _NO_AMBIENT),
    Difference("capabilities of a user", "Cap.*", "runc", "the sentry has no ambient set: what it would add is not there"),
    Difference("no capabilities named", "CapAmb.*", "runc", _NO_AMBIENT),
    Difference("umask", "refused by name", "runc", "but for 022"),
    Difference("no new privileges, OOM score", "(NoNewPrivs.*|oom)", "runc", "the score is the sandbox's on the host; inside it is not to be seen"),
    Difference("seccomp", "mkdir", "runc", "the filter holds; a denied call fails with EPERM, whatever `errnoRet` says"),
    Difference("sysctls", "refused by name", "runc", "the sandbox has its own, which cannot be set"),
    Difference("new namespaces", "refused by name", "runc", _OWN_KERNEL),
    Difference("a user namespace", "refused by name", "runc", "every sandbox runs in one of its own already"),
    Difference("limits of the cgroup", "cgroup pids.max", "runc", "the host cannot count the sandbox's processes: it is a limit of each user inside (RLIMIT_NPROC)"),
    Difference("exit codes", "refused by name", "runc", _OWN_KERNEL),
    Difference("mistakes at the command line", "(pause before start|resume)", "runc", "refused: nothing runs yet that could be paused"),
    Difference("hooks", "(prestart|createRuntime|createContainer|poststart|poststop) fields", "runc", _STAND_IN),
    Difference("hooks", "(prestart|createRuntime|createContainer|poststart) status", "runc", _STAND_IN),
    Difference("hooks", "createContainer pid", "runc", _STAND_IN),
    Difference("hooks inside", "refused by name", "runc", "a program of the container's would run on the host's kernel"),
    Difference("hooks that fail", "(createRuntime|createContainer): order", "runc", _STAND_IN),
    Difference("hooks that fail", "poststart: exit code is 0", "runc", _STAND_IN),
    Difference("exec", "(plain|flags) CapAmb.*", "runc", _NO_AMBIENT),
    Difference("exec by a file", "CapAmb.*", "runc", _NO_AMBIENT),
)  # fmt: skip
