"""Suites by others on the application kernel: each test on Linux first, then here (`make test-appkernel-suites`).

    python -m tests.conformance.appkernel_suites [--timeout-s N] [--out FILE] [--linux runc|host] [SUITE[:MODULE] ...]

Suites: python (CPython's regression tests, Debian's libpython3.11-testsuite), busybox (from its source package, where
the package manager has it), ltp (where it was built). What fails on Linux, too, is not counted. Linux is a container of
runc's over the same files; `--linux host` is the host itself. Both sides have the rights of a container.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from tests.conformance import appkernel_busybox, appkernel_ltp, appkernel_oracle

from drupe.oci.capabilities import DEFAULT

ROOT = Path(__file__).parents[2]
KERNEL = ROOT / "src/drupe/_bin/drupe-appkernel"
PYTHON = "/usr/bin/python3"
MODULES = [
    "test_os",
    "test_posix",
    "test_threading",
    "test_socket",
    "test_subprocess",
    "test_signal",
    "test_asyncio",
    "test_mmap",
    "test_tempfile",
    "test_shutil",
    "test_select",
    "test_epoll",
    "test_poll",
    "test_pty",
    "test_fcntl",
    "test_ioctl",
    "test_eintr",
    "test_selectors",
    "test_pathlib",
    "test_multiprocessing_fork",
    "test_timeout",
    "test_wait3",
    "test_wait4",
    "test_resource",
    "test_time",
]
# a network of its own with loopback alone, for both
NETWORK = [
    "unshare",
    "--net",
    "/bin/sh",
    "-c",
    'ip link set lo up && echo 0 >/proc/sys/net/ipv4/ip_unprivileged_port_start && exec "$@"',
    "sh",
]


@dataclass
class Outcome:
    """Results of one module in one place: name of the test to passed, failed or skipped."""

    tests: dict[str, str] = field(default_factory=dict)
    note: str = ""


# Gives the command line that runs a command in some place, for as long as it is used.
Place = Callable[[list[str]], AbstractContextManager[list[str]]]


def limited(command: list[str]) -> list[str]:
    """With the rights of a container, as `drupe run` has it."""
    rights = ["-all", *(f"+{name.removeprefix('CAP_').lower()}" for name in DEFAULT)]
    return ["setpriv", "--bounding-set", ",".join(rights), *command]


def here(command: list[str]) -> AbstractContextManager[list[str]]:
    """The application kernel, over the host's files."""
    start = [str(KERNEL), "run", "--network", "--root", "/", "--env", "HOME=/root", "--"]
    return nullcontext([*start, *limited(command)])


def host(command: list[str]) -> AbstractContextManager[list[str]]:
    """The host itself."""
    return nullcontext(limited(command))


def run(place: Place, command: list[str], timeout_s: float) -> tuple[str, str]:
    """Output of a command in a network of its own, and a word about how it ended if not well."""
    with place(command) as argv:
        return finish(argv, timeout_s)


def finish(command: list[str], timeout_s: float) -> tuple[str, str]:
    started = subprocess.Popen(
        [*NETWORK, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        output, _ = started.communicate(timeout=timeout_s)
        return output.decode(errors="replace"), ""
    except subprocess.TimeoutExpired:
        os.killpg(started.pid, signal.SIGKILL)
        output, _ = started.communicate()
        return output.decode(errors="replace"), f"not ended after {timeout_s:.0f} s"


def python_module(module: str, timeout_s: float, place: Place) -> Outcome:
    """One module of CPython's regression tests, by its JUnit report."""
    script = (
        f"cd $(mktemp -d) && {PYTHON} -m test --timeout {timeout_s / 3:.0f} --junit-xml r.xml {module} >log 2>&1; "
        "tail -n 40 log; echo '<!-- RESULTS -->'; cat r.xml"
    )
    command = ["/bin/sh", "-c", script]
    output, note = run(place, command, timeout_s)
    log, _, report = output.partition("<!-- RESULTS -->\n")
    try:
        tree = ElementTree.fromstring(report)
    except ElementTree.ParseError:
        return Outcome(note=note or (log.strip().splitlines() or ["no report"])[-1][:120])
    return Outcome({case.get("name", "?"): state(case) for case in tree.iter("testcase")}, note)


def state(case: ElementTree.Element) -> str:
    """What a test case of a JUnit report came to."""
    if case.find("skipped") is not None:
        return "skipped"
    failed = case.find("failure") is not None or case.find("error") is not None
    return "failed" if failed else "passed"


@dataclass
class Row:
    """One module in both places."""

    suite: str
    module: str
    linux: Outcome
    ours: Outcome

    def worse(self) -> list[str]:
        """Tests that pass on Linux and not here."""
        passed = [name for name, result in self.linux.tests.items() if result == "passed"]
        return [name for name in passed if self.ours.tests.get(name) != "passed"]

    def line(self) -> str:
        passed = sum(result == "passed" for result in self.linux.tests.values())
        note = "; ".join(word for word in (self.linux.note, self.ours.note) if word)
        return f"| {self.suite} | {self.module} | {passed} | {passed - len(self.worse())} | {note} |"


def rows(wanted: list[str], timeout_s: float, linux: Place) -> Iterator[Row]:
    """The suites that were asked for, one module after the other."""
    chosen = [(name.partition(":")[0], name.partition(":")[2]) for name in wanted]
    for suite, module in chosen:
        if suite == "python":
            for name in [module] if module else MODULES:
                outcomes = [python_module(name, timeout_s, place) for place in (linux, here)]
                yield Row(suite, name, *outcomes)
        else:
            runner = {"busybox": appkernel_busybox, "ltp": appkernel_ltp}[suite]
            for name, command in runner.modules(module):
                results = [run(place, command, timeout_s) for place in (linux, here)]
                yield Row(suite, name, *(Outcome(runner.results(text), note) for text, note in results))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("suites", nargs="*", default=["python", "busybox", "ltp"])
    parser.add_argument("--timeout-s", type=float, default=600)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--linux", choices=["runc", "host"], default="runc")
    options = parser.parse_args()
    if options.linux == "runc" and not appkernel_oracle.is_there():
        parser.error("runc runs no container here: install it, or compare with the host itself (--linux host)")
    linux: Place = appkernel_oracle.container if options.linux == "runc" else host
    table = ["| suite | module | pass on Linux | of these here | note |", "|---|---|---|---|---|"]
    details = []
    for row in rows(options.suites or ["python", "busybox", "ltp"], options.timeout_s, linux):
        table.append(row.line())
        print(time.strftime("%H:%M:%S"), row.line(), flush=True)
        details += [f"- {row.module}: `{name}`: {row.ours.tests.get(name, 'no result')}" for name in row.worse()]
    if options.out:
        options.out.write_text("\n".join([*table, "", *details, ""]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
