"""The gVisor kind without runsc: configuration, words of failures, process lists, records."""

from __future__ import annotations

import asyncio
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from drupe.errors import DrupeError, HelperFailed, InvalidState, NotFound, PermissionDenied
from drupe.linux.hostname_program import hostname_program
from drupe.resources.kvm import read_fault
from drupe.runtime.digests import changed, digests
from drupe.sandboxers.gvisor.config import adapted
from drupe.sandboxers.gvisor.ends import from_wait_status
from drupe.sandboxers.gvisor.failures import explain, gone
from drupe.sandboxers.gvisor.processes import family, process_infos
from drupe.sandboxers.gvisor.pumps import Pumps
from drupe.sandboxers.gvisor.records import PodRecord, TaskRecord, record_path
from drupe.sandboxers.gvisor.sentry import _capabilities


def pod(**fields: Any) -> PodRecord:
    given = {"id": "p", "dir": "/run/p", "cgroup": "/c/p", "state": "/run/g/p", "sole": True}
    return PodRecord(**(given | {"network": "none", "platform": "systrap"} | fields))


def oci(*mounts: dict[str, Any], **linux: Any) -> dict[str, Any]:
    return {"root": {"path": "/r", "readonly": True}, "mounts": list(mounts), "linux": linux, "process": {}}


def test_what_runsc_would_leave_out_or_misread_is_not_in_its_config() -> None:
    given = oci(
        {"destination": "/a", "type": "bind", "source": "/x", "options": ["rbind", "rro"]},
        {"destination": "/dev/shm", "type": "bind", "source": "/y", "options": ["rbind"]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup"},
        seccomp={}, cgroupsPath="/c", resources={}, maskedPaths=[], sysctl={},
    )  # fmt: skip
    made = adapted(given, pod(shm_bytes=4096), first=True, pid_space="", own_tmp=True)
    places = {mount["destination"]: mount for mount in made["mounts"]}
    assert places["/a"]["options"] == ["rbind", "ro"]
    assert places["/dev/shm"]["type"] == "tmpfs" and "size=4096" in places["/dev/shm"]["options"]
    assert places["/tmp"]["source"] == "/r/tmp" and "ro" in places["/tmp"]["options"]
    assert made["mounts"][0] == places["/tmp"], "one that came later would hide what is mounted below it"
    assert "/sys/fs/cgroup" not in places and list(made["linux"]) == ["namespaces"]
    several = adapted(given, pod(sole=False, netns="/n", seccomp=True), first=False, pid_space="pod")
    spaces = {space["type"]: space.get("path") for space in several["linux"]["namespaces"]}
    assert spaces["network"] == "/n" and spaces["pid"] and "seccomp" in several["linux"]
    assert {mount["destination"]: mount for mount in several["mounts"]}["/dev/shm"]["type"] == "bind"


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ('error finding executable "x" in PATH [/bin]: no such file or directory', NotFound),
        ("failed to load /x: no such file or directory", NotFound),
        ("failed to load /x: exec format error", PermissionDenied),
        ("failed to stat mount: no such file or directory", HelperFailed),
        ('container "x" not found', InvalidState),
    ],
)
def test_words_of_runsc(said: str, error: type[DrupeError]) -> None:
    cause = f'{{"msg":"first"}}\n{{"msg":{said!r}}}'.replace("'", '"') if '"' not in said else said
    assert type(explain(HelperFailed("x", cause=cause), {"args": ["x"]})) is error


def test_words_of_several_processes_on_one_line() -> None:
    said = '{"msg":"first","time":"t"}{"msg":"no place","time":"t"}'
    assert "no place" in explain(HelperFailed("x", cause=said), {"args": ["x"]}).cause


def test_a_signal_to_nobody() -> None:
    assert isinstance(gone(HelperFailed("x", cause="no such process")), NotFound)
    assert isinstance(gone(HelperFailed("x", cause="another matter")), HelperFailed)


def test_ends_and_processes() -> None:
    assert (from_wait_status(3 << 8, at=1).code, from_wait_status(15, at=1).signal) == (3, 15)
    listed = [
        {"pid": pid, "ppid": ppid, "uid": 0, "cmd": "sh", "time": "1m2.5s", "stime": "00:00"}
        for pid, ppid in ((4, 2), (2, 1), (5, 9), (3, 4))
    ]
    assert sorted(family(listed, 2)) == [3, 4]
    assert [info.pid for info in process_infos(listed)] == [2, 3, 4, 5]
    assert process_infos(listed)[0].cpu_s == 62.5


def test_capabilities_as_masks() -> None:
    assert _capabilities(None) is None
    sets = _capabilities({"effective": ["CAP_KILL"], "bounding": ["CAP_CHOWN", "CAP_KILL"]})
    assert sets is not None and (sets["EffectiveCaps"], sets["BoundingCaps"], sets["AmbientCaps"]) == (32, 33, 0)


def test_records_are_whole_or_not_there(tmp_path: Path) -> None:
    record = TaskRecord(
        id="t", sandbox="p", cgroup="/c", bundle=str(tmp_path), tty=False, stdin=False, log=None,
        exit_file="/e", guest="s",
    )  # fmt: skip
    record.save()
    assert TaskRecord.read(record_path(tmp_path)) == record
    record_path(tmp_path).write_text('{"id": "t"')
    assert TaskRecord.read(record_path(tmp_path)) is None


def test_files_become_pipes_and_keep_what_is_in_them(tmp_path: Path) -> None:
    out, source = tmp_path / "out", tmp_path / "in"
    out.write_bytes(b"before\n")
    source.write_bytes(b"given")
    with out.open("ab") as written, source.open("rb") as read, Path(os.devnull).open("wb") as null:
        pumps = Pumps({"stdin": read.fileno(), "stdout": written.fileno(), "stderr": null.fileno()})
        assert pumps.fds[2] == null.fileno()
        reading, writing = os.dup(pumps.fds[0]), os.dup(pumps.fds[1])  # what the sentry would have
        pumps.sent()
    assert os.read(reading, 100) == b"given" and os.read(reading, 100) == b""
    os.write(writing, b"after\n")
    os.close(writing)
    os.close(reading)
    asyncio.run(pumps.drained())
    assert out.read_bytes() == b"before\nafter\n"


def test_the_hostname_program_is_an_elf_that_nobody_can_write() -> None:
    descriptor = hostname_program()
    if descriptor is None:
        pytest.skip("not written for this machine")
    data = os.pread(descriptor, 1000, 0)
    assert data[:4] == b"\x7fELF" and len(data) < 200
    (entry,) = struct.unpack_from("<Q", data, 24)
    assert data[entry - 0x400000 :].startswith(b"\x48\x8b\x7c\x24\x10")
    with pytest.raises(OSError):
        os.write(descriptor, b"x")
    os.close(descriptor)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ('{"ns": 0.4, "own_ns": 0.3}', ""),
        ('{"ns": 300, "own_ns": 0.3}', "takes 300 ns, and 0.3 of our own"),
        ('{"error": "Permission denied"}', "Permission"),
        ("", "without a word"),
    ],
)
def test_what_the_kvm_probe_says(said: str, words: str) -> None:
    assert words in read_fault(said) if words else read_fault(said) == ""


def test_digests_tell_every_change(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/file").write_text("one")
    (tmp_path / "link").symlink_to("d/file")
    known = digests(tmp_path)
    assert [file.path for file in known] == ["link", "d/file"] and changed(tmp_path, known) == ""
    (tmp_path / "d/file").write_text("two")
    assert changed(tmp_path, known) == "d/file was changed"
    (tmp_path / "d/file").unlink()
    assert changed(tmp_path, known) == "d/file is missing"
    (tmp_path / "d/file").write_text("one")
    (tmp_path / "more").touch()
    assert changed(tmp_path, known) == "more was added"
