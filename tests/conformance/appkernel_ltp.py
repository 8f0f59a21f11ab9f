"""The system-call part of the Linux Test Project, where it has been built: `LTPROOT` or /opt/ltp."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

HOME = Path(os.environ.get("LTPROOT", "/opt/ltp"))
SKIPPED = re.compile(
    r"^(io_uring|bpf|add_key|keyctl|request_key|perf_event|fanotify|quotactl|swap|mount|umount|ptrace|move_pages|mbind|kcmp|userfaultfd|landlock|init_module|delete_module|finit|reboot|sethostname|setdomainname|clock_settime|settimeofday|adjtimex|clock_adjtime|acct|pivot_root|setns|unshare|fsopen|fsmount|fsconfig|fspick|open_tree|move_mount|ioperm|iopl|kexec|statmount|listmount)"
)


def programs() -> list[tuple[str, str]]:
    """Name and command of each case of runtest/syscalls that concerns what a pod may do."""
    listed = (HOME / "runtest/syscalls").read_text().splitlines() if (HOME / "runtest/syscalls").exists() else []
    cases = [line.split(None, 1) for line in listed if line.strip() and not line.startswith("#")]
    return [(case[0], case[-1]) for case in cases if not SKIPPED.match(case[0])]


def modules(wanted: str = "") -> Iterator[tuple[str, list[str]]]:
    """Cases in groups of fifty; nothing where LTP is not built."""
    cases = [case for case in programs() if not wanted or case[0].startswith(wanted)]
    for start in range(0, len(cases), 50):
        part = cases[start : start + 50]
        body = "".join(f'timeout 30 {command} >$d/log 2>&1; echo "RESULT {name} $?"\n' for name, command in part)
        script = f"d=$(mktemp -d); export TMPDIR=$d LTPROOT={HOME} PATH={HOME}/testcases/bin:$PATH; cd $d\n{body}"
        yield f"{part[0][0]} … {part[-1][0]}", ["/bin/sh", "-c", script]


def results(text: str) -> dict[str, str]:
    """Case to passed (0), skipped (32: not for this configuration) or failed."""
    found = re.findall(r"^RESULT (\S+) (\d+)$", text, re.MULTILINE)
    return {name: {"0": "passed", "32": "skipped"}.get(code, "failed") for name, code in found}
