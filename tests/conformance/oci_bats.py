"""runc's own integration suite (tests/integration/*.bats), ready to be run against any OCI runtime.

Its source is a checkout of runc (`RUNC_SOURCE`), else it is cloned once. Its images, which it would fetch, are this
host's static busybox and the Debian that `make demo` makes; nothing else in it is changed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
VERSION = "v1.1.5"  # of Debian 12's runc, which is the oracle
CACHE = Path.home() / ".cache/drupe/suites/runc"
DEBIAN = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "drupe/images/debian-bookworm.tar"
HELPERS = ("recvtty", "sd-helper", "seccompagent")
NEEDED = {"bats": "bats", "jq": "jq", "gawk": "gawk", "go": "golang-go", "runc": "runc", "gcc": "gcc"}


class Suite:
    """A copy of the suite in a directory of ours, whose helpers are built and whose images are made."""

    def __init__(self, directory: Path) -> None:
        """Raises RuntimeError naming what is missing."""
        self._directory = directory
        self._tests = directory / "suite/tests/integration"
        for program, package in NEEDED.items():
            if shutil.which(program) is None:
                raise RuntimeError(f"no program {program}: apt-get install --no-install-recommends {package}")
        shutil.copytree(source(), directory / "suite", symlinks=True, ignore=shutil.ignore_patterns(".git"))
        self._build_helpers()
        self._make_images()

    def files(self) -> list[str]:
        """Names of the suite's files, without their ending."""
        return sorted(path.stem for path in self._tests.glob("*.bats"))

    def command(self, name: str, program: str) -> list[str]:
        """What runs one file against a program; it prints TAP. BATS_TEST_TIMEOUT would hang tests that call `wait`."""
        settings = {"RUNC": program, "TMPDIR": str(self._directory)}
        words = [f"{key}={value}" for key, value in settings.items()]
        return ["env", "--chdir", str(self._tests), *words, "bats", "--formatter", "tap", f"{name}.bats"]

    def _build_helpers(self) -> None:
        for helper in HELPERS:
            directory = self._directory / "suite/contrib/cmd" / helper
            if (directory / helper).exists():  # of a checkout where `make all` was run
                continue
            build = ["go", "build", "-mod=vendor", "-buildvcs=false", "-tags", "seccomp", "-o", directory / helper]
            where = self._directory / "suite"
            built = subprocess.run([*build, directory], cwd=where, capture_output=True, text=True, check=False)
            if built.returncode:
                said = built.stderr.strip()[-300:]
                raise RuntimeError(f"cannot build runc's {helper} (libseccomp-dev and pkg-config are needed): {said}")

    def _make_images(self) -> None:
        scripts, busybox = ROOT / "scripts", self._directory / "busybox.tar"
        make = [sys.executable, scripts / "make-busybox-image.py", "--tar", busybox]
        subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
        store = self._directory / "images"
        subprocess.run([scripts / "make-debian-image.sh", "--root", store], check=True, stdout=subprocess.DEVNULL)
        answer = f"#!/bin/sh\necho BUSYBOX_IMAGE={busybox}\necho DEBIAN_IMAGE={DEBIAN}\n"
        (self._tests / "get-images.sh").write_text(answer)


def source() -> Path:
    """A checkout of runc. Raises RuntimeError where there is none and none can be cloned."""
    given = os.environ.get("RUNC_SOURCE", "")
    found = Path(given) if given else CACHE
    if not given and not found.exists():
        found.parent.mkdir(parents=True, exist_ok=True)
        clone = ["git", "clone", "--quiet", "--depth=1", f"--branch={VERSION}"]
        subprocess.run([*clone, "https://github.com/opencontainers/runc", found], check=False)
    if not (found / "tests/integration/helpers.bash").exists():
        raise RuntimeError(f"no source of runc {VERSION} at {found}: RUNC_SOURCE=DIRECTORY names a checkout of it")
    return found


def results(tap: str) -> Mapping[str, str]:
    """Test to passed, skipped or failed, from a file's TAP."""
    found = {}
    for line in tap.splitlines():
        if match := re.fullmatch(r"(not ok|ok) \d+ (.*?)( # skip.*| # timeout.*)?( in \d+ms)?", line):
            word = "failed" if match[1] == "not ok" else "skipped" if " # skip" in (match[3] or "") else "passed"
            found[match[2]] = word
    return found
