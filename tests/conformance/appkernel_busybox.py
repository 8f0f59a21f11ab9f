"""Busybox's own test suite, from Debian's source package, against Debian's static busybox."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

CACHE = Path.home() / ".cache/drupe/suites/busybox"
SLOW = {"wget"}
# an apt of its own that knows the sources of the mirror that this host uses
FETCH = r"""
mirror=$(apt-get indextargets --format '$(SITE) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
    awk '$2 ~ /^(bookworm|stable|oldstable)$/ && $3 == "main" && !found { print $1; found = 1 }')
own=$(mktemp -d) && mkdir -p "$own/lists/partial" &&
echo "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror bookworm main" >"$own/sources.list"
apt=(apt-get -qq -o Dir::Etc::SourceList="$own/sources.list" -o Dir::Etc::SourceParts=/dev/null
    -o Dir::State::Lists="$own/lists" -o APT::Sandbox::User=root)
"${apt[@]}" update && "${apt[@]}" source --download-only busybox
"""


def source() -> Path:
    """The directory of the tests; fetched once (apt-get source).

    Raises:
        RuntimeError: the package manager has no sources of busybox.
    """
    found = sorted(CACHE.glob("busybox-*/testsuite"))
    if not found:
        CACHE.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(["bash", "-c", FETCH], cwd=CACHE, capture_output=True, text=True, check=False)
        archives = sorted(CACHE.glob("busybox_*.orig.tar.*"))
        if done.returncode or not archives:
            raise RuntimeError(f"no sources of busybox: {done.stderr.strip()[-200:]}")
        subprocess.run(["tar", "-xf", archives[0].name], cwd=CACHE, check=True)
        found = sorted(CACHE.glob("busybox-*/testsuite"))
    return found[0]


def modules(wanted: str = "") -> Iterator[tuple[str, list[str]]]:
    """Each applet's tests, with the command that runs them on a copy of the suite."""
    suite = source()
    names = sorted({path.name.removesuffix(".tests") for path in suite.iterdir() if "." in path.name or path.is_dir()})
    names = [n for n in names if (suite / f"{n}.tests").exists() or (suite / n).is_dir()]
    script = (
        f"d=$(mktemp -d) && cp -r {suite} $d/testsuite && cp -r {suite.parent}/scripts $d/scripts && "
        "cd $d/testsuite && cp /bin/busybox $d/busybox && export bindir=$d tsdir=$d/testsuite SHELL=/bin/sh && "
        "$d/busybox --list | tr a-z- A-Z_ | sed 's/.*/CONFIG_&=y/' >$d/.config; "
        'for n in "$@"; do echo "== $n"; timeout 60 ./runtest -v "$n" </dev/null 2>&1; done'
    )
    chosen = [wanted] if wanted else [name for name in names if name not in SLOW]
    for start in range(0, len(chosen), 20):
        part = chosen[start : start + 20]
        yield f"{part[0]} … {part[-1]}", ["/bin/sh", "-c", script, "sh", *part]


def results(text: str) -> dict[str, str]:
    """Test to passed, failed or skipped, from runtest's lines."""
    words = {"PASS": "passed", "FAIL": "failed", "SKIPPED": "skipped", "UNTESTED": "skipped"}
    found, applet = {}, ""
    for line in text.splitlines():
        if line.startswith("== "):
            applet = line[3:]
        elif match := re.match(r"(PASS|FAIL|SKIPPED|UNTESTED): (.*)", line):
            found[f"{applet}: {match[2]}"] = words[match[1]]
    return found
