"""Kubernetes' CRI validation suite on containerd with drupe: each test with runc first (`make test-critest`).

    python -m tests.conformance.critest [--containerd 2.1] [--focus REGEX] [--benchmark] [--out FILE] [HANDLER ...]

What does not pass with runc is not counted. Each handler has a host of its own (private mount and network namespaces),
with containerd, drupe's daemon and a registry that has the images; no traffic leaves it.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import signal
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.conformance import critest_images, critest_program

from framework import machines
from framework.containerds import NEWER_RUNC, SOCKET, VERSIONS, Version
from framework.cri_host import CriHost
from framework.images import make_busybox

KINDS = ("runc", "gvisor", "appkernel", "vm")
HANDLERS = [f"drupe-{kind}" for kind in KINDS]
_REGISTRIES = {
    2: """
[plugins."io.containerd.grpc.v1.cri".registry]
  config_path = "{path}"
""",
    3: """
[plugins.'io.containerd.cri.v1.images'.registry]
  config_path = "{path}"
""",
}
_BY_SHIM = """
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.drupe-{kind}-by-shim]
  runtime_type = "io.containerd.drupe-{kind}.v2"
  sandboxer = "shim"
"""
_NAME = re.compile(r"^\[It\] (\[k8s\.io\] )?")
# Result of each test: "passed", "skipped", or why it failed.
Results = dict[str, str]


def oracle(version: Version) -> str:
    """The handler that says what can be passed: of runc's that are here the newest."""
    return "newer-runc" if version.config == 3 and NEWER_RUNC.exists() else "runc"


@contextmanager
def opened(version: Version, store: Path) -> Iterator[CriHost]:
    """A host whose containerd gets every image that critest asks for."""
    extra = _REGISTRIES[version.config].format(path=critest_images.CERTIFICATES)
    extra += "".join(_BY_SHIM.format(kind=kind) for kind in KINDS) if version.config == 3 else ""
    directory = Path(tempfile.mkdtemp(prefix="critest."))
    directory.chmod(0o711)  # ids of user namespaces walk through it
    host = CriHost(directory, version, store, extra=extra)
    try:
        if machines.built().exists():
            machines.make_root(directory / "drupe")
        host.open()
        critest_images.serve(host)
        yield host
    finally:
        host.close()
        shutil.rmtree(directory)


def run(host: CriHost, handler: str, log: Path, *words: str) -> Results:
    """critest with a handler; its output goes to `log`."""
    report = host.directory / "junit.xml"
    argv = [
        str(critest_program.build()), f"--runtime-endpoint=unix://{SOCKET}", f"--runtime-handler={handler}",
        f"--ginkgo.junit-report={report}", "--ginkgo.timeout=4h", "--ginkgo.no-color", *words,
    ]  # fmt: skip
    running = host.serve(*argv, log=log.name)
    try:
        running.wait()
    finally:
        running.kill()
        running.wait()
    for each in (log.name, "daemon.log", "containerd.log"):
        shutil.copy(host.directory / each, log.with_name(f"{log.stem}-{each}" if each != log.name else each))
    found = results(report) if report.exists() else {}
    log.with_suffix(".json").write_text(json.dumps(found, indent=1))
    return found


def results(report: Path) -> Results:
    """What a report of JUnit's form says."""
    cases = ElementTree.parse(report).iter("testcase")
    return {_NAME.sub("", case.get("name", "?")): _state(case) for case in cases if "[It]" in case.get("name", "")}


def _state(case: ElementTree.Element) -> str:
    for bad in ("failure", "error"):
        if (found := case.find(bad)) is not None:
            return " ".join((found.get("message") or found.get("type") or "failed").split())
    return "skipped" if case.find("skipped") is not None else "passed"


def table(reference: Results, found: dict[str, Results]) -> Iterator[str]:
    """A row for each handler, and below each test that passes with runc alone, with its reason."""
    passed = [name for name, result in reference.items() if result == "passed"]
    yield "| handler | pass with runc | of these here |"
    yield "|---|---|---|"
    for handler, all_of_it in found.items():
        yield f"| {handler} | {len(passed)} | {sum(all_of_it.get(name) == 'passed' for name in passed)} |"
    yield ""
    for handler, all_of_it in found.items():
        for name in passed:
            if (result := all_of_it.get(name, "no result")) != "passed":
                yield f"- {handler}: {name}: {result[:300]}"


def measured(version: Version, store: Path, handler: str, log: Path, words: list[str]) -> Results:
    """One handler on a host of its own; says how long it took."""
    begun = time.monotonic()
    with opened(version, store) as host:
        found = run(host, handler, log, *words)
    states = [result if result in ("passed", "skipped") else "failed" for result in found.values()]
    counts = ", ".join(f"{states.count(state)} {state}" for state in ("passed", "failed", "skipped"))
    print(f"{time.strftime('%H:%M:%S')} {handler}: {counts} in {time.monotonic() - begun:.0f} s", flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("handlers", nargs="*", default=HANDLERS)
    parser.add_argument("--containerd", choices=["1.7", "2.1"], default="2.1")
    parser.add_argument("--focus", default="", help="a regular expression that tests' names must match")
    parser.add_argument("--benchmark", action="store_true", help="critest's own benchmarks instead of its tests")
    parser.add_argument("--logs", type=Path, default=Path("/tmp/drupe-critest"), help="where output goes (%(default)s)")
    parser.add_argument("--out", type=Path, help="a file for the table")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # with nothing left behind
    try:
        critest_program.build()
    except RuntimeError as error:
        parser.error(str(error))
    return compare(options)


def compare(options: argparse.Namespace) -> int:
    """The oracle, then each handler."""
    version = VERSIONS[options.containerd]
    words = [f"--ginkgo.focus={options.focus}"] if options.focus else []
    words += ["--benchmark", f"--benchmarking-output-dir={options.logs}"] if options.benchmark else []
    options.logs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        store = make_busybox(Path(scratch))
        found = {
            handler: measured(version, store, handler, options.logs / f"{handler}.log", words)
            for handler in dict.fromkeys([oracle(version), *(options.handlers or HANDLERS)])
        }
    lines = "\n".join(table(found.pop(oracle(version)), found))
    print(lines)
    if options.out:
        options.out.write_text(lines + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
