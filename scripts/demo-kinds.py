#!/usr/bin/env python3
"""The demo's table: one list of images, run in every kind of sandbox that this host can run, with what each costs.

start: from the call to the first byte that the workload writes, the median of a few. memory: the PSS of all that one
further pod adds, helpers and its share of daemon and keeper included (of a machine also its guest's memory). A kind
that cannot run is a row with the reason; so is what `auto` has against one that runs when it is named.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module as import_installed
from pathlib import Path

from drupe.api.daemon import ensure_daemon
from drupe.errors import DrupeError, NotFound, Unsupported
from drupe.rpc.client import Client
from drupe.spec import ContainerSpec, NetworkSpec, PodSpec
from drupe.spec.control import Delete, Empty, ImageImport, PodCreate, PodRun, Ref, SystemInfo
from drupe.spec.host import CapabilityTable, KindInfo

STARTS = int(os.environ.get("DEMO_STARTS", "5"))  # of each kind; a test of the demo needs no median
PODS = int(os.environ.get("DEMO_PODS", "3"))
SETTLE_S = 0.5  # what a kind makes ready for the next pod is made by then
CALL_TIMEOUT_S = 60.0
SAY_HELLO = ("sh", "-c", "echo hello; exec cat")
IMAGES = {"busybox": SAY_HELLO, "hello-wasm": ()}  # image → argv; both say hello, then read their input to its end
MODULE = Path(__file__).with_name("hello.wat")
ROOM = 34  # columns of the last one


def main() -> int:
    """Print the table; 1 when a kind whose probe passed could not run."""
    with Client.connect(ensure_daemon()) as client:
        import_module(client)
        table: CapabilityTable = client.call("system.capabilities", Empty(), timeout_s=CALL_TIMEOUT_S)
        rows, failed = [], False
        for kind in table.about:
            try:
                rows.append(measured(client, kind))
            except DrupeError as error:
                failed |= kind.state == "ok"
                rows.append((kind.name, "-", "-", "-", str(error)))
    show(rows)
    return int(failed)


def import_module(client: Client) -> None:
    """The image `hello-wasm`, of a module that is compiled from its text where wasmtime is there."""
    try:
        client.call("image.inspect", Ref(ref="hello-wasm"))
    except NotFound:
        try:
            wasmtime = import_installed("wasmtime")
        except ImportError:
            return
        with tempfile.NamedTemporaryFile(suffix=".wasm") as module:
            module.write(wasmtime.wat2wasm(MODULE.read_text()))
            module.flush()
            client.call("image.import", ImageImport(path=module.name, tag="hello-wasm"), timeout_s=CALL_TIMEOUT_S)


def measured(client: Client, kind: KindInfo) -> tuple[str, ...]:
    """The row of one kind."""
    if kind.state != "ok":
        raise Unsupported(kind.cause)
    spec = fitting(client, kind.name)
    starts = []
    for _ in range(STARTS):
        with running(client, spec) as took_ms:
            starts.append(took_ms)
    size_mb = memory_bytes(client, spec) / 1e6
    about = f"{kind.isolates} (only when it is named: {kind.cause})" if kind.cause else kind.isolates
    return (kind.name, spec.containers[0].image, f"{statistics.median(starts):.0f}", f"{size_mb:.2f}", about)


def fitting(client: Client, kind: str) -> PodSpec:
    """A pod of the first image that the kind can run. Raises the refusal of the last one."""
    refusal: DrupeError = Unsupported("no image of the list is here")
    for image, argv in IMAGES.items():
        container = ContainerSpec(image=image, argv=argv, stdin=True)
        spec = PodSpec(sandbox=kind, network=NetworkSpec(mode="none"), containers=(container,), remove=True)
        try:
            client.call("system.choose", PodCreate(spec=spec))
        except (Unsupported, NotFound) as error:
            refusal = error
        else:
            return spec
    raise refusal


@contextmanager
def running(client: Client, spec: PodSpec) -> Iterator[float]:
    """Run it and wait for its first byte: the milliseconds that took. It goes when the block is left."""
    stdout, stdout_theirs = os.pipe()
    stdin_theirs, stdin = os.pipe()
    fds = {"stdout": stdout_theirs, "stdin": stdin_theirs}
    pod = ""
    try:
        began = time.perf_counter()
        with client.stream("pod.run", PodRun(spec=spec), fds=fds) as call:
            os.close(stdout_theirs)
            os.close(stdin_theirs)
            seen = os.read(stdout, 1)
            took_ms = (time.perf_counter() - began) * 1e3
            pod = call.wait().id
            if seen != b"h":
                raise Unsupported(f"the workload said {seen!r}")
            yield took_ms
    finally:
        os.close(stdin)
        os.close(stdout)
        if pod:
            with suppress(NotFound):  # it may have gone by itself
                client.call("pod.delete", Delete(ref=pod, force=True), timeout_s=CALL_TIMEOUT_S)


def memory_bytes(client: Client, spec: PodSpec) -> float:
    """What a further pod adds, after a first one."""
    info: SystemInfo = client.call("system.info", Empty())
    with ExitStack() as stack:
        stack.enter_context(running(client, spec))
        time.sleep(SETTLE_S)
        before = pss_bytes(family({info.pid, info.keeper_pid}))
        for _ in range(PODS):
            stack.enter_context(running(client, spec))
        time.sleep(SETTLE_S)
        return (pss_bytes(family({info.pid, info.keeper_pid})) - before) / PODS


def family(roots: set[int]) -> set[int]:
    """Processes with their descendants."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found, more = set(roots), set(roots)
    while more:
        more = {pid for pid, parent in parents.items() if parent in more} - found
        found |= more
    return found


def pss_bytes(pids: set[int]) -> int:
    """Proportional set size of processes together (proc(5), smaps_rollup); one that has ended counts nothing."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def show(rows: list[tuple[str, ...]]) -> None:
    """The table, its last column wrapped."""
    headers = ("kind", "image", "start (ms)", "memory (MB)", "what it isolates, or why it cannot run here")
    widths = [max(len(row[i]) for row in [headers, *rows]) for i in range(4)]
    room = max(ROOM, shutil.get_terminal_size().columns - sum(widths) - 8)
    for row in [headers, *rows]:
        cells = "  ".join(cell.ljust(width) for cell, width in zip(row[:4], widths, strict=True))
        first, *rest = textwrap.wrap(row[4], room) or [""]
        sys.stdout.write(f"{cells}  {first}\n")
        sys.stdout.writelines(f"{' ' * len(cells)}  {line}\n" for line in rest)


if __name__ == "__main__":
    sys.exit(main())
