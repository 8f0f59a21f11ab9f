"""state, list, ps, events, features, spec: what tells something."""

from __future__ import annotations

import contextlib
import json
import posixpath
import re
from pathlib import Path
from typing import Any

from drupe.errors import DrupeError, HelperFailed, InvalidArgument, InvalidState, NotFound
from drupe.oci.runtime_spec import SPEC_VERSION
from drupe.resources.cgroups import Cgroups, detect
from drupe.resources.cgroups.detect import cgroup_of
from drupe.sandboxers.bundles import BundleProgram
from drupe.services.oci import checkpoints, crun_state
from drupe.services.oci.asked import Asked
from drupe.services.oci.defaults import features_document, spec_document, without_uncarried
from drupe.spec.oci import OciAnswer, OciFile, OciRun
from drupe.spec.status import Stats

_ROOM = (("ID", 12), ("PID", 12), ("STATUS", 12), ("BUNDLE", 30), ("CREATED", 32), ("OWNER", 0))
_LISTED = ("ociVersion", "id", "pid", "status", "bundle", "rootfs", "created", "annotations", "owner")
_INTERVAL_S = 5.0
_DECIMAL = re.compile(r"[0-9]+(\.[0-9]+)?")


async def state(asked: Asked) -> OciAnswer:
    """The container's state, with the fields of the specification whatever the program leaves out."""
    program = asked.found()
    if program.stands:
        kept = asked.bundles.find(asked.root, asked.id)
        return OciAnswer(stdout=_pretty(_half_made(asked, program, asked.id) if kept is None else kept.state()))
    ran = asked.ran("state")
    if ran is None:
        return asked.first_run(program, state=asked.command(program, "state", asked.id, log=False))
    return OciAnswer(stdout=_pretty(_whole_state(asked, program, _parsed(ran, program))))


def _half_made(asked: Asked, program: BundleProgram, name: str) -> dict[str, Any]:
    """Of a container whose caller has made what stands for it, and not come back yet: it may have been killed."""
    found: dict[str, Any] = {}
    with contextlib.suppress(DrupeError, ValueError):
        found = dict(json.loads(asked.files.read(f"{asked.root}/{program.home}/{name}/status", "status")))
    pid = int(found.get("pid") or 0)
    alive = not found or Path(f"/proc/{pid}").exists()
    kept = {key: str(found.get(key) or "") for key in ("bundle", "rootfs", "created")}
    state = {"ociVersion": SPEC_VERSION, "id": name, "pid": pid if alive else 0, **kept, "owner": "root"}
    return state | {"status": "creating" if alive else "stopped"}


def _whole_state(asked: Asked, program: BundleProgram, found: dict[str, Any]) -> dict[str, Any]:
    bundle = str(found.get("bundle", ""))
    rootfs = str(found.get("rootfs", ""))
    kept: dict[str, Any] = {
        key: found[key] for key in ("id", "status", "pid", "bundle", "created", "owner") if key in found
    }
    kept |= {"ociVersion": SPEC_VERSION, "rootfs": rootfs if rootfs.startswith("/") else f"{bundle}/{rootfs}"}
    kept["annotations"] = found.get("annotations") or _annotations(asked, program, bundle)
    order = ("ociVersion", "id", "pid", "status", "bundle", "rootfs", "created", "annotations", "owner")
    return {key: kept[key] for key in order if key in kept}


def _annotations(asked: Asked, program: BundleProgram, bundle: str) -> dict[str, str]:
    """Of the program's own copy of the configuration, else of the bundle's."""
    for path in (f"{asked.root}/{program.home}/{asked.id}/config.json", f"{bundle}/config.json"):
        try:
            found = json.loads(asked.files.read(path, "config")).get("annotations")
        except (DrupeError, ValueError, AttributeError):
            continue
        return found or {}
    return {}


def _parsed(ran: OciRun, program: BundleProgram) -> Any:
    if ran.code != 0:
        raise HelperFailed(ran.stderr.strip() or f"{program.name} exited with {ran.code}")
    try:
        return json.loads(ran.stdout)
    except ValueError:
        raise HelperFailed(f"{program.name} did not answer JSON", cause=ran.stdout[:200]) from None


def _pretty(document: Any) -> str:
    return json.dumps(document, indent=2) + "\n"


async def list_all(asked: Asked) -> OciAnswer:
    """The containers of all programs below the root."""
    here = [program for program in asked.programs() if not program.stands]
    if here and asked.ask.runs is None:
        words = ("list", "--format", "json")
        runs = {program.home: asked.command(program, *words, log=False) for program in here}
        return asked.first_run(here[0], **runs)
    found = [
        _whole_entry(asked, program, entry)
        for program in here
        if (ran := asked.ran(program.home))
        for entry in _parsed(ran, program) or ()
    ]
    found += [kept.state() for kept in asked.bundles.of(asked.root)]
    known = {str(entry["id"]) for entry in found}
    for program in asked.programs():
        names = asked.files.names(f"{asked.root}/{program.home}") if program.stands else ()
        found += [_half_made(asked, program, name) for name in names if name not in known]
    return OciAnswer(stdout=_listing(asked, sorted(found, key=lambda entry: str(entry["id"]))))


def _whole_entry(asked: Asked, program: BundleProgram, entry: dict[str, Any]) -> dict[str, Any]:
    """With what crun leaves out."""
    if program.name != "crun":
        return {"ociVersion": SPEC_VERSION, **entry}
    rootfs = posixpath.join(
        str(entry.get("bundle", "")), str(crun_state.status(asked, program, entry["id"]).get("rootfs"))
    )
    return {"ociVersion": SPEC_VERSION, **entry, "rootfs": rootfs}


def _listing(asked: Asked, found: list[dict[str, Any]]) -> str:
    if asked.words.on("quiet"):
        return "".join(f"{entry['id']}\n" for entry in found)
    wanted = asked.words.text("format", "table")
    if wanted == "json":
        whole = [{name: entry[name] for name in _LISTED if name in entry} for entry in found]
        return json.dumps(whole, separators=(",", ":")) + "\n"  # as runc's
    if wanted != "table":
        raise InvalidArgument("invalid format option", hint="table or json")
    rows = [[name for name, _ in _ROOM]]
    rows += [[str(entry.get(name.lower(), "")) for name, _ in _ROOM] for entry in found]
    widths = [max(least, *(len(row[at]) + 2 for row in rows)) for at, (_, least) in enumerate(_ROOM)]
    return "".join(
        "".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() + "\n" for row in rows
    )


async def ps(asked: Asked) -> OciAnswer:
    """The lines of ps(1) that are the container's, or the pids as JSON."""
    program = asked.found()
    wanted = asked.words.text("format", "table")
    if wanted not in ("table", "json"):
        raise InvalidArgument("invalid format option", hint="table or json")
    if program.stands:
        return await _processes(asked, wanted)
    ran = asked.ran("pids")
    if program.name == "crun" and crun_state.has_ended(asked, program):
        ran = OciRun(code=0, stdout="[]")  # it has ended, and this crun would crash
    if ran is None or (wanted == "table" and asked.ran("ps") is None):
        runs = {"pids": asked.command(program, "ps", "--format", "json", asked.id, log=False)}
        if wanted == "table":
            runs["ps"] = ["ps", *(asked.words.arguments[1:] or ["-ef"])]
        return asked.first_run(program, **runs)
    pids = {int(pid) for pid in _parsed(ran, program) or ()}
    if wanted == "json":
        return OciAnswer(stdout=json.dumps(sorted(pids)) + "\n")
    return OciAnswer(stdout=_lines_of(asked, pids))


async def _processes(asked: Asked, wanted: str) -> OciAnswer:
    """As the kernel that runs them has them. JSON is for callers, who look the numbers up on the host: the stand-in's,
    and those that are the host's, too."""
    kept = asked.kept()
    found = await kept.container.processes() if kept.container.is_live else []
    if wanted == "json":
        pids = {one.pid for one in found if is_below(cgroup_of(one.pid), kept.pod.cgroup)}
        pids |= {kept.stand_in.pid} if kept.stand_in is not None else set()
        return OciAnswer(stdout=json.dumps(sorted(pids)) + "\n")
    rows = [f"{'PID':>8} {'PPID':>8} CMD\n", *(f"{one.pid:>8} {one.ppid:>8} {one.command}\n" for one in found)]
    return OciAnswer(stdout="".join(rows))


def is_below(path: str, parent: str) -> bool:
    """Whether a cgroup is this one, or in it."""
    return f"{path}/".startswith(f"{parent.rstrip('/')}/")


def _lines_of(asked: Asked, pids: set[int]) -> str:
    ran = asked.ran("ps")
    if ran is None or ran.code != 0:
        raise HelperFailed("ps failed", cause=ran.stderr.strip() if ran else "")
    head, *lines = ran.stdout.splitlines()
    if "PID" not in head.split():
        raise InvalidArgument("couldn't find PID field in ps output")
    at = head.split().index("PID")
    ours = [line for line in lines if len(line.split()) > at and line.split()[at] in {str(pid) for pid in pids}]
    return "".join(f"{line}\n" for line in (head, *ours))


async def events(asked: Asked) -> OciAnswer:
    """Statistics as JSON lines, once (`--stats`) or again and again, and a line when the kernel killed for memory."""
    program = asked.found()
    ran = asked.ran("state")
    if ran is None and not program.stands:
        return asked.first_run(program, state=asked.command(program, "state", asked.id, log=False))
    found = asked.kept().state() if program.stands or ran is None else _parsed(ran, program)
    if found.get("status") == "stopped":
        if asked.ask.state is None:
            raise InvalidState(f"container with id {asked.id} is not running")
        return OciAnswer(stdout=_last_words(asked))
    try:
        stats = _stats_of(asked.kept().pod.cgroup if program.stands else _cgroup_of(int(found["pid"])))
    except (InvalidState, NotFound):
        if asked.ask.state is None:
            raise
        return OciAnswer(stdout=_last_words(asked))  # it has just ended
    lines = [_event(asked, "stats", _stats_document(stats))]
    if asked.ask.state is not None and stats.oom_kills > int(asked.ask.state):
        lines.insert(0, _event(asked, "oom", None))
    once = asked.words.on("stats")
    return OciAnswer(stdout="".join(lines), again_s=None if once else _interval_s(asked), state=stats.oom_kills)


def _last_words(asked: Asked) -> str:
    """A kill for memory that nobody has been told of: it has ended the sandbox, and with it what could be counted."""
    kept = asked.bundles.find(asked.root, asked.id)
    exit_ = kept.container.status.exit if kept is not None else None
    told = asked.ask.state if isinstance(asked.ask.state, int) else 0
    return _event(asked, "oom", None) if exit_ is not None and exit_.oom_kills > told else ""


def _cgroup_of(pid: int) -> str:
    path = cgroup_of(pid)
    if path in ("", "/"):  # one that is ending is taken out of its own first
        raise InvalidState(f"process {pid} has ended")
    return path


def _stats_of(path: str) -> Stats:
    cgroups: Cgroups = detect()
    stats = cgroups.stats(path)
    stats.oom_kills = cgroups.oom_kills(path)
    return stats


def _event(asked: Asked, kind: str, data: Any) -> str:
    body = {"type": kind, "id": asked.id} | ({} if data is None else {"data": data})
    return json.dumps(body, separators=(",", ":")) + "\n"


def _interval_s(asked: Asked) -> float:
    text = asked.words.text("interval", f"{_INTERVAL_S}s")
    for unit, factor in (("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3600.0)):
        number = text.removesuffix(unit)
        if number != text and _DECIMAL.fullmatch(number) and float(number) > 0:
            return float(number) * factor
    raise InvalidArgument(f"--interval {text!r} is not a duration", hint="such as 5s or 500ms")


def _stats_document(stats: Stats) -> dict[str, Any]:
    """As `runc events` has it, for what we count."""
    return {
        "cpu": {
            "usage": {
                "total": stats.cpu_usage_ns,
                "kernel": stats.cpu_system_ns,
                "user": stats.cpu_user_ns,
            },
            "throttling": {
                "throttledPeriods": stats.cpu_throttled_periods,
                "throttledTime": stats.cpu_throttled_ns,
            },
        },
        "memory": {
            "usage": {
                "usage": stats.memory_usage_bytes,
                "max": stats.memory_peak_bytes,
                "limit": stats.memory_limit_bytes,
            },
            "cache": stats.memory_file_bytes,
        },
        "pids": {"current": stats.pids, "limit": stats.pids_limit},
    }


async def features(asked: Asked) -> OciAnswer:
    """What bundles may ask for (the specification's features.md)."""
    program = asked.chosen()
    able = await checkpoints.are_there(asked, program)
    document = features_document(program.name, await program.version(), checkpoints=able)
    if program.stands:
        document = without_uncarried(document, asked.node.sandboxer(program.kind).capabilities())
    return OciAnswer(stdout=_pretty(document))


async def spec(asked: Asked) -> OciAnswer:
    """A config.json to start from."""
    path = asked.files.absolute(f"{asked.words.text('bundle', '.')}/config.json")
    if asked.files.exists(path):
        raise InvalidArgument(f"File {path} exists. Remove it first")
    document = spec_document(rootless=asked.words.on("rootless"), cgroup_version=asked.node.cgroups.version)
    return OciAnswer(write=[OciFile(path=path, text=json.dumps(document, indent="\t") + "\n", mode=0o666)])
