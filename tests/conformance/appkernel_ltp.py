"""The system-call part of the Linux Test Project.

It is in no Debian suite. It was installed at `LTPROOT` (by default in the cache), or is built from the sources at
`LTP_SOURCE`, a clone of https://github.com/linux-test-project/ltp: with autoconf, automake, m4, make, gcc and
libcap-dev.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

HOME = Path(os.environ.get("LTPROOT", Path.home() / ".cache/drupe/suites/ltp"))
SOURCE = os.environ.get("LTP_SOURCE", "")
GROUP = 20
# What concerns the whole host, or is another's: modules, mounts, clocks, keys, quotas, tracing.
SKIPPED = re.compile(
    r"^(io_uring|bpf|add_key|keyctl|request_key|perf_event|fanotify|quotactl|swap|mount|umount|ptrace|move_pages|mbind"
    r"|kcmp|userfaultfd|landlock|init_module|delete_module|finit|reboot|sethostname|setdomainname|clock_settime"
    r"|settimeofday|adjtimex|clock_adjtime|acct|pivot_root|setns|unshare|fsopen|fsmount|fsconfig|fspick|open_tree"
    r"|move_mount|ioperm|iopl|kexec|statmount|listmount|io_submit|io_setup|io_destroy|io_cancel|io_getevents"
    r"|io_pgetevents|migrate_pages|get_mempolicy|set_mempolicy|cma|lsm|cacheflush)"
)
BUILD = """
cd "$1" && { [ -e configure ] || make autotools; } && { [ -e include/mk/config.mk ] || ./configure; } &&
make -C lib CFLAGS_EXTRA=-w && make -k -C testcases/kernel/syscalls
"""


def built() -> Path:
    """Where the programs are (testcases/bin) and the list (runtest/syscalls); made of the sources once.

    Raises:
        RuntimeError: there are neither, or nothing could be built.
    """
    if not (HOME / "runtest/syscalls").exists():
        if not SOURCE:
            raise RuntimeError("LTP is not built: set LTP_SOURCE to a clone of it, or LTPROOT to where it is installed")
        subprocess.run(["bash", "-c", BUILD, "build", SOURCE], capture_output=True, check=False)
        gather(Path(SOURCE))
    return HOME


def gather(source: Path) -> None:
    """Copy what was built and the list. RuntimeError: nothing was."""
    found = [path for path in (source / "testcases/kernel/syscalls").rglob("*") if is_program(path)]
    if not found:
        raise RuntimeError(f"LTP: nothing could be built in {source}")
    (HOME / "testcases/bin").mkdir(parents=True, exist_ok=True)
    for path in found:
        shutil.copy(path, HOME / "testcases/bin" / path.name)
    (HOME / "runtest").mkdir(exist_ok=True)
    shutil.copy(source / "runtest/syscalls", HOME / "runtest/syscalls")


def is_program(path: Path) -> bool:
    return path.is_file() and not path.suffix and os.access(path, os.X_OK)


def cases(wanted: str) -> list[tuple[str, str]]:
    """Name and command of each case that is built and concerns what a pod may do."""
    home = built()
    lines = [line.split(None, 1) for line in (home / "runtest/syscalls").read_text().splitlines()]
    listed = [(line[0], line[-1]) for line in lines if line and not line[0].startswith("#")]
    there = [(name, command) for name, command in listed if (home / "testcases/bin" / command.split()[0]).exists()]
    return [(name, command) for name, command in there if name.startswith(wanted) and not SKIPPED.match(name)]


def modules(wanted: str = "") -> Iterator[tuple[str, list[str]]]:
    """Cases in groups, each group with the command that runs it."""
    found = cases(wanted)
    for start in range(0, len(found), GROUP):
        part = found[start : start + GROUP]
        body = "".join(
            f'timeout -k 2 60 {command} >$d/log 2>&1 </dev/null; echo "RESULT {name} $?"\n' for name, command in part
        )
        script = (
            f"d=$(mktemp -d); chmod 777 $d; cd $d; export TMPDIR=$d LTPROOT={HOME} PATH={HOME}/testcases/bin:$PATH\n"
            f"export LTP_TIMEOUT_MUL=3 KCONFIG_SKIP_CHECK=1\n{body}"
        )
        yield f"{part[0][0]} … {part[-1][0]}", ["/bin/sh", "-c", script]


WARNED, SKIP = 4, 32


def results(text: str) -> dict[str, str]:
    """Case to passed, skipped (not for this configuration) or failed, from its exit code's bits."""
    found = re.findall(r"^RESULT (\S+) (\d+)$", text, re.MULTILINE)
    states = {0: "passed", SKIP: "skipped"}
    return {name: states.get(int(code) & ~WARNED, "failed") for name, code in found}
