#!/usr/bin/env python3
"""Write SPECIFICATION.md from the lines of a benchmark run: each promise, what was measured, and whether it held.

    make bench && benchmarks/specification.py [benchmarks/results/<date>/<time>/lines.jsonl]

Without an argument the newest run is taken. A promise that was not met is written down as such.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parent / "SPECIFICATION.md"
Line = dict[str, Any]


@dataclass(frozen=True)
class Promise:
    """A ratio to a peer (or, in_ms, our own median) that should not be exceeded. what: in words."""

    name: str
    peer: str
    limit: float
    what: str
    in_ms: bool = False

    @property
    def promised(self) -> str:
        """The limit as it is read."""
        return f"≤ {self.limit:g} ms" if self.in_ms else f"≤ {self.limit}"

    def measured(self, line: Line) -> float:
        """What must not exceed the limit."""
        return float(line["p50_ms" if self.in_ms else "ratio"])


SHIM = "runc's shim"
KILLED = "a program that is killed"
PROMISES = (
    Promise("start", "crun run", 2.0, "library call for a new pod with one container, to its first byte"),
    Promise("start", "ctr run", 0.25, "the same"),
    Promise("start", "podman run", 0.15, "the same"),
    Promise("start-bridge", "podman run", 0.3, "the same on the built-in bridge, Podman on its bridge"),
    Promise("parallel-50", "podman run", 0.3, "50 pods at once"),
    Promise("exec", "crun exec", 1.5, "a process in a running container, to its first byte"),
    Promise("oci", "crun run", 1.5, "`drupe-oci run` of a bundle, as a command"),
    Promise("command", "podman run", 0.6, "`drupe run` as a command"),
    Promise("wasm-start", "crun run", 0.8, "`start` for a compiled module, crun with the native twin"),
    Promise("wasm-call", "crun exec", 2.0, "a call into a running Wasm sandbox, to its first byte", in_ms=True),
    Promise("gvisor-start", "runsc run", 1.15, "`start` for a gVisor pod"),
    Promise("gvisor-exec", "runsc exec", 1.2, "`exec` in a gVisor pod"),
    Promise("gvisor-delete", "runsc delete", 100.0, "a running gVisor pod deleted by force", in_ms=True),
    Promise("appkernel-start", "crun run", 1.0, "`start` for a pod under the application kernel"),
    Promise("appkernel-start", "runsc run", 0.15, "the same"),
    Promise("appkernel-exec", "runsc exec", 1.0, "`exec` in such a pod"),
    Promise("vm-template", "a cold boot", 0.2, "`start` for a machine from a template, virtio-fs, same accelerator"),
    Promise("vm-template-block", "a cold boot", 0.2, "the same with a root by block"),
    Promise(
        "vm-own-block",
        "the whole start",
        60.0,
        "of it, the host's own part: neither the monitor's nor the guest's",
        in_ms=True,
    ),
    Promise("vm-hang", KILLED, 2000.0, "a monitor or virtiofsd that is stopped, until its pod has failed", in_ms=True),
    Promise("cri-ready", SHIM, 0.45, "containerd 2.1, by its CRI: a pod with its network and one container, started"),
    Promise("cri-exec", SHIM, 0.5, "the same: ExecSync"),
    Promise("cri-parallel-50", SHIM, 0.5, "the same: 50 pods at once"),
    Promise("ctr-run", SHIM, 0.6, "`ctr run` by drupe's shim and by containerd's, to the first byte"),
    Promise("client-shim", "true", 2.0, "`containerd-shim-drupe-v2` as a program, doing nothing", in_ms=True),
    Promise("client-oci", "true", 2.0, "`drupe-oci --version`", in_ms=True),
)
BLOCK = "drupe vm, block, from a template"
MEMORY_MB = {
    ("memory", "drupe"): 0.1,
    ("wasm-memory", "drupe wasm"): 2.0,
    ("vm-daemon", BLOCK): 0.15,
}
MEMORY_RATIO = {
    ("cri-memory", "drupe-runc"): ("runc", 0.05),
    ("appkernel-memory", "drupe"): ("runsc", 0.2),
    ("vm-memory", BLOCK): ("drupe vm, virtiofs, cold boots", 0.25),
    ("vm-memory", "drupe vm, virtiofs, from a template"): ("drupe vm, virtiofs, cold boots", 0.25),
}  # to that of a peer in the same row

HEAD = """# Specification

What drupe promises, in figures, and what was measured. Written by `benchmarks/specification.py` from one run of
`make bench`; the [method](benchmarks/README.md) says what each row is. Ratios hold across hosts better than times do:
compare within one run only. `make bench-quick` gives the same rows with fewer samples, in a
minute or two; `--only NAME` one.

"""


def newest() -> Path:
    """The lines of the newest run."""
    found = sorted(HERE.glob("results/*/*/lines.jsonl"))
    if not found:
        sys.exit("no results: run make bench first")
    return found[-1]


def host(path: Path) -> str:
    """Where and when it was measured."""
    day = datetime.datetime.fromtimestamp(path.stat().st_mtime, tz=datetime.UTC).date()
    kernel = platform.release().split("-")[0]
    return f"{day}, Linux {kernel}, {os.cpu_count()} processors, Python {platform.python_version()}"


def promises(lines: list[Line]) -> Iterator[str]:
    """A row for each promise."""
    for promise in PROMISES:
        found = [line for line in lines if (line["name"], line.get("peer")) == (promise.name, promise.peer)]
        if not found or "ratio" not in found[-1]:
            reason = found[-1]["skipped"] if found else "not in this run"
            yield f"| `{promise.name}` | {promise.what} | {promise.peer} | {promise.promised} | none: {reason} | | |"
            continue
        line = found[-1]
        verdict = "yes" if promise.measured(line) <= promise.limit else "**no**"
        yield (
            f"| `{promise.name}` | {promise.what} | {promise.peer} | {promise.promised} | {promise.measured(line)} "
            f"| {line['p50_ms']} / {line['peer_p50_ms']} ms, n = {line['n']} | {verdict} |"
        )


def memory(lines: list[Line]) -> Iterator[str]:
    """A row for each runtime's memory per pod."""
    for line in lines:
        if "pss_mb_per_pod" in line:
            limit = memory_limit(line, lines)
            held = "" if limit is None else "yes" if line["pss_mb_per_pod"] <= limit else "**no**"
            promised = "" if limit is None else f"≤ {limit}"
            measured = f"{line['pss_mb_per_pod']} | {line['helper_processes_per_pod']}"
            yield f"| `{line['name']}` | {line['peer']} | {promised} | {measured} | up to {line['n']} | {held} |"


def memory_limit(line: Line, lines: list[Line]) -> float | None:
    """MB a pod that were promised; None: nothing was."""
    row = (line["name"], line["peer"])
    if row not in MEMORY_RATIO:
        return MEMORY_MB.get(row)
    peer, ratio = MEMORY_RATIO[row]
    of_peer = [other["pss_mb_per_pod"] for other in lines if (other["name"], other.get("peer")) == (line["name"], peer)]
    return round(ratio * float(of_peer[-1]), 4) if of_peer else None


def leftovers(lines: list[Line]) -> Iterator[str]:
    """A row for each count of what was left after many cycles."""
    for line in lines:
        if "left" in line:
            left = ", ".join(f"{count} {name}" for name, count in line["left"].items()) or "nothing"
            held = "**no**" if line["left"] else "yes"
            yield f"| `{line['name']}` | {line['n']} | nothing | {left} | {line['grown_kb']} | {held} |"


def phases(lines: list[Line]) -> Iterator[str]:
    """A row for the parts of each kind of start."""
    for line in lines:
        if "phases_p50_ms" in line:
            parts = ", ".join(f"{part} {took}" for part, took in line["phases_p50_ms"].items())
            yield f"| `{line['name']}` | {line['peer']} | {line['n']} | {parts} |"


def tables(lines: list[Line]) -> Iterator[str]:
    """A table for each line of many figures."""
    for line in lines:
        if "rows" in line:
            ways = list(dict.fromkeys(way for row in line["rows"].values() for way in row))
            yield f"`{line['name']}`, {line['unit']}, n = {line['n']}\n"
            yield f"| | {' | '.join(ways)} |\n|---|{'---|' * len(ways)}"
            for name, row in line["rows"].items():
                yield f"| {name} | {' | '.join(f'{row[way]:.5g}' if way in row else '' for way in ways)} |"
            yield ""


def everything(lines: list[Line]) -> Iterator[str]:
    """A row for each comparison of times."""
    for line in lines:
        if "ratio" in line:
            ours = f"{line['p50_ms']} | {line['p95_ms']} | {line['p99_ms']}"
            peer = f"{line['peer']} | {line['peer_p50_ms']} | {line['ratio']}"
            yield f"| `{line['name']}` | {line['n']} | {ours} | {peer} |"


def page(path: Path, note: str) -> str:
    """The whole page. note: what a reader must know about this run."""
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    return HEAD + "\n".join(
        [
            f"Measured {host(path)}. {note}".rstrip() + "\n",
            "## Promises\n",
            "| row | what | peer | promised | measured | p50, ours / peer | held |\n|---|---|---|---|---|---|---|",
            *promises(lines),
            "\n## Memory\n",
            "PSS of all but the workloads, as a slope over the number of pods; processes beside the workloads.\n"
            "Where the workload is a process of ours (a Wasm guest, a sentry), that process is counted too.\n",
            "| row | runtime | MB a pod promised | measured | processes a pod | pods | held |",
            "|---|---|---|---|---|---|---|",
            *memory(lines),
            "\n## What is left\n",
            "Open files, processes, mounts, cgroups, network namespaces, files of state: more than before the pods.\n",
            "| row | pods made and removed | promised | left | memory grown by KiB | held |\n|---|---|---|---|---|---|",
            *leftovers(lines),
            "\n## Parts of a machine's start\n",
            "p50, in ms. own: all that is neither the monitor's nor the guest's.\n",
            "| row | start | n | parts |\n|---|---|---|---|",
            *phases(lines),
            "\n## The application kernel beside Linux and gVisor\n",
            *tables(lines),
            "## All times\n",
            "| row | n | p50 ms | p95 ms | p99 ms | peer | its p50 ms | ratio |\n|---|---|---|---|---|---|---|---|",
            *everything(lines),
            "",
        ]
    )


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lines", type=Path, nargs="?", help="lines.jsonl of a run (the newest)")
    parser.add_argument("--note", default="", help="a sentence about the circumstances")
    options = parser.parse_args()
    PAGE.write_text(page(options.lines or newest(), options.note))


if __name__ == "__main__":
    main()
