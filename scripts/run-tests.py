#!/usr/bin/env python3
"""Run the tests in two lanes side by side: one without root or with its own kernels, and one for all others.

    scripts/run-tests.py [PYTEST ARGUMENT …]

A guest's boot keeps one processor busy and the tests of containers mostly wait, so that together they take little more
than the longer of the two. Each lane has its own pytest, network namespace, mounts and cache; the second one's output
follows when it is through, and the last line counts both. Arguments go to both lanes; paths, and `-k` and the like,
leave one lane, which is all of pytest.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
CACHE = ROOT / ".pytest_cache"

# what the lane "guests" runs, as patterns; the lane "host" has all the rest
GUESTS = (
    "tests/style",
    "tests/unit",
    "tests/fuzz",
    "tests/contract/test_*vm*.py",
    "tests/contract/test_*hypervisor*.py",
    "tests/contract/test_appkernel.py",
    "tests/faults/test_*vm*.py",
    "tests/faults/test_appkernel.py",
    "tests/integration/test_vm*.py",
    "tests/integration/test_*guest*.py",
    "tests/integration/test_agent_service.py",
    "tests/integration/test_appkernel*.py",
    # no guests, but long: so that both lanes take about the same time
    "tests/faults/test_death_at_each_write.py",
    "tests/faults/test_task_deaths.py",
    "tests/integration/test_native.py",
)
# options that go to both lanes and choose nothing
COMMON = ("--durations", "--last-failed", "--lf", "-x", "-v", "-q", "--maxfail", "--timeout", "-p", "--color")
# in namespaces of its own a lane sees no interface, mount or named network namespace of the other
APART = 'mkdir -p /run/netns && mount -t tmpfs drupe-test /run/netns && ip link set lo up && exec "$@"'
FAILED, NO_TESTS = 1, 5  # of pytest's exit codes
BROKE_OFF = "BROKE OFF"  # .ci/run looks for it


def main() -> int:
    """The exit code is pytest's; where the lanes' differ, the worse one."""
    arguments = sys.argv[1:]
    os.chdir(ROOT)
    if any(not argument.startswith(COMMON) for argument in arguments):
        return subprocess.run(pytest("one", arguments), check=False).returncode
    if {"--last-failed", "--lf"} & set(arguments):
        return one_by_one(arguments)
    return side_by_side(arguments)


def one_by_one(arguments: Sequence[str]) -> int:
    """What failed the last time, in the lanes where something did."""
    began, worst, said = time.monotonic(), 0, []
    for name, argv in LANES.items():
        if (CACHE / name / "v/cache/lastfailed").exists():
            code, text = followed([*argv, *arguments, "--lfnf=none"])
            worst = max(worst, 0 if code == NO_TESTS else code)
            said.append(text)
    sum_up(said, began)
    return worst


def side_by_side(arguments: Sequence[str]) -> int:
    """Both lanes at once, the first one's output as it comes."""
    began = time.monotonic()
    os.environ["DRUPE_TEST_LANES"] = str(len(LANES))
    with tempfile.TemporaryFile("w+") as kept:
        second = subprocess.Popen([*LANES["guests"], *arguments], stdout=kept, stderr=subprocess.STDOUT)
        try:
            first, said = followed([*LANES["host"], *arguments])
            codes = [first, second.wait()]
        finally:
            second.terminate()
        kept.seek(0)
        print(text := kept.read())
    if not set(codes) <= {0, FAILED}:
        print(f"{BROKE_OFF}: the lanes ended with {codes}: some tests never ran")
    sum_up([said, text], began)
    return max(map(abs, codes))


def sum_up(outputs: Sequence[str], began: float) -> None:
    """A closing line as pytest has it, of all lanes together."""
    counts = Counter[str]()
    for closing in map(closing_line, outputs):
        counts.update({word: int(number) for number, word in re.findall(r"(\d+) (\w+)", closing.partition(" in ")[0])})
    words = ", ".join(f"{number} {word}" for word, number in sorted(counts.items()))
    print(f"===== {words or 'no test ran'} in {time.monotonic() - began:.2f}s =====")


def followed(argv: Sequence[str]) -> tuple[int, str]:
    """Run a program and pass on what it says: its exit code, and that."""
    said = []
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as program:
        assert program.stdout is not None
        for line in program.stdout:
            print(line, end="", flush=True)
            said.append(line)
    return program.returncode, "".join(said)


def closing_line(text: str) -> str:
    """pytest's last line, which counts; "" where it never came so far."""
    lines = re.findall(r"^(?:=+ )?(\d+ (?:passed|failed|error|skipped|deselected).* in [\d.]+s.*)$", text, re.MULTILINE)
    return lines[-1] if lines else ""


def pytest(cache: str, arguments: Sequence[str]) -> list[str]:
    """pytest with a cache of its own, which `--last-failed` reads."""
    return [sys.executable, "-m", "pytest", "-o", f"cache_dir={CACHE / cache}", *arguments]


def apart(argv: Sequence[str]) -> list[str]:
    """A program in mount and network namespaces of its own, if we may."""
    if os.geteuid() != 0:
        return list(argv)
    return ["unshare", "--mount", "--net", "--propagation", "private", "sh", "-c", APART, "lane", *argv]


PATHS = [str(path.relative_to(ROOT)) for pattern in GUESTS for path in sorted(ROOT.glob(pattern))]
LANES = {
    "host": pytest("host", [f"--ignore={path}" for path in PATHS]),
    "guests": apart(pytest("guests", PATHS)),
}

if __name__ == "__main__":
    sys.exit(main())
