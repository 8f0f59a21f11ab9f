"""runc's own integration suite against `drupe-oci`: each test by runc first, then by ours (`make test-oci-suites`).

    python -m tests.conformance.oci_suites [--timeout-s N] [--out FILE] [--faces NAME,…] [FILE ...]

FILE: of the suite, without `.bats`; all by default. Faces: crun and runc (our runc kind by either program), and the
stand-ins gvisor, appkernel, vm. What fails or is skipped with runc is not counted. All run in mount and network
namespaces of their own, with a daemon of their own.
"""

from __future__ import annotations

import argparse
import os
import pty
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

from tests.conformance.oci_bats import Suite, results

from framework import machines
from framework.bundles import COMMAND
from framework.private_host import PrivateHost

FACES = ("crun", "runc", "gvisor", "appkernel", "vm")
PROGRAMS = ("crun", "runc")  # of our runc kind
USUAL = ",".join(PROGRAMS)


class Face:
    """A runtime in a host of its own."""

    def __init__(self, name: str, directory: Path, suite: Suite) -> None:
        """name: of FACES, or "oracle" for runc itself."""
        self._suite, self._directory, self.name = suite, directory, name
        directory.mkdir()
        config = directory / "config.toml"
        config.write_text(f'[kinds.runc]\nprogram = "{name}"\n' if name in PROGRAMS else "")
        self._program = "/usr/sbin/runc" if name == "oracle" else self._link()
        if name == "vm":  # with the guest that scripts/setup.sh --tests has built
            (directory / "drupe").mkdir()
            machines.make_root(directory / "drupe")
        self._host = PrivateHost(directory, config=config)

    def _link(self) -> str:
        """Our program by the name that says the kind."""
        path = self._directory / ("drupe-oci" if self.name in PROGRAMS else f"drupe-oci-{self.name}")
        path.symlink_to(COMMAND)
        return str(path)

    def close(self) -> None:
        self._host.close()

    def run(self, file: str, *, timeout_s: float) -> Mapping[str, str]:
        """One file of the suite; what it printed is kept beside."""
        command = self._suite.command(file, self._program)
        log = f"{file}.tap"
        with terminal() as stdin:
            started = self._host.serve("setsid", "--ctty", *command, log=log, stdin=stdin)
            with suppress(subprocess.TimeoutExpired):
                started.wait(timeout_s)
            # its session: what is left of a test that hangs
            self._host.inside("pkill", "--signal", "KILL", "--session", str(started.pid), check=False)
            started.wait()
        return results((self._directory / log).read_text(errors="replace"))


@contextmanager
def terminal() -> Iterator[int]:
    """A terminal where nobody types: containers with `terminal` open the one of whoever calls `run`."""
    master, slave = pty.openpty()
    reader = threading.Thread(target=_drain, args=(master,), daemon=True)
    reader.start()
    try:
        yield slave
    finally:
        os.close(slave)  # what a test has left behind may still have it: the reader ends when that does


def _drain(master: int) -> None:
    with open(master, "rb", buffering=0) as reader, suppress(OSError):  # EIO: the last who had it open has gone
        while reader.read(4096):
            pass


def rows(
    files: list[str], oracle: Face, faces: list[Face], *, timeout_s: float
) -> Iterator[tuple[str, str, list[str]]]:
    """Each file: its line of the table, and the tests that a face fails where runc passes them."""
    for file in files:
        passed = [test for test, word in oracle.run(file, timeout_s=timeout_s).items() if word == "passed"]
        counts, worse = [], []
        for face in faces:
            ours = face.run(file, timeout_s=timeout_s) if passed else {}
            missed = [test for test in passed if ours.get(test) != "passed"]
            counts.append(f"{len(passed) - len(missed)}")
            worse += [f"- {face.name}: {file}: {test}: {ours.get(test, 'no result')}" for test in missed]
        yield f"| {file} | {len(passed)} | {' | '.join(counts)} |", worse


def main() -> int:
    options = _options()
    with ExitStack() as stack:
        directory = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="oci-suites.")))
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o755)  # tests in user namespaces look from outside
        suite = Suite(directory)
        oracle, *faces = (
            stack.enter_context(closing(Face(name, directory / name, suite))) for name in ("oracle", *options.faces)
        )
        table = [f"| file | runc | {' | '.join(options.faces)} |", f"|---|---|{'---|' * len(faces)}"]
        details: list[str] = []
        files = options.files or suite.files()
        for line, worse in rows(files, oracle, faces, timeout_s=options.timeout_s):
            table.append(line)
            details += worse
            print(time.strftime("%H:%M:%S"), "\n".join([line, *worse]), flush=True)
            if options.out:
                options.out.write_text("\n".join([*table, "", *details, ""]))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="*")
    parser.add_argument("--timeout-s", type=float, default=900, help="for one file (%(default)s)")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--keep", type=Path, help="a new directory for what the tests print")
    parser.add_argument("--faces", default=USUAL, help=f"of {', '.join(FACES)} (%(default)s)")
    options = parser.parse_args()
    options.faces = options.faces.split(",")
    if unknown := [name for name in options.faces if name not in FACES]:
        parser.error(f"no face {unknown[0]!r}: one of {', '.join(FACES)}")
    return options


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RuntimeError as error:
        sys.exit(f"oci_suites: {error}")
