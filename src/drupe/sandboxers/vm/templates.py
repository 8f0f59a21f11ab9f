"""Templates: machines that were booted up to their waiting agent and saved, from which others start.

A pod without shared directories maps a template's memory copy-on-write, so that such pods share what they do not
change. virtiofsd has to see a machine's memory, which a private mapping is not: a pod with a shared directory gets a
copy, made in its own cgroup. What nobody but the machine's processors reads, the instructions of its kernel, is mapped
copy-on-write there, too, where the monitor can be told to (native/trim).
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from drupe.hypervisors.qemu.machine import SAVED_MEMORY
from drupe.sandboxers.vm import filling
from drupe.sandboxers.vm.records import PodRecord
from drupe.spec.template import TemplateInfo

SPARE_DISKS = 2  # roots that a machine has at once; more are plugged in
_LAYOUT = 5  # goes up when saved machines of before shall not be used any more
_ABOUT = "template.json"
_CODE = "code"  # where the kernel's instructions are: BEGIN-END
_CODE_ENDS_BY = 2 << 30  # above that memory may lie elsewhere than in its file


class Templates:
    """Below one directory, by their keys."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def key_of(self, record: PodRecord, program: str) -> str:
        """What a machine must have in common with another to go on from what that was."""
        size = (record.memory_bytes, record.memory_max_bytes, record.processors, record.processors_max)
        return _hash(self.basis_of(record, program), *size)

    def basis_of(self, record: PodRecord, program: str) -> str:
        """The same without its size."""
        binary = Path(program).stat()
        return _hash(
            _LAYOUT, record.kernel, record.initrd, record.append, record.accelerator, record.machine_type, program,
            binary.st_size, binary.st_mtime_ns, _processor() if record.accelerator == "kvm" else "",
        )  # fmt: skip

    def find(self, record: PodRecord, program: str) -> Path | None:
        """The saved machine for a pod. One whose files are not what was saved is none: see `damaged`."""
        directory = self.directory / self.key_of(record, program)
        return directory if _is_whole(directory) else None

    def damaged(self, record: PodRecord, program: str) -> str:
        """What is to be said of a template for a pod that cannot be used; "" when there is none."""
        key = self.key_of(record, program)
        if not (self.directory / key).exists() or _is_whole(self.directory / key):
            return ""
        return f"template {key[:12]} is damaged, the machine was booted: drupe template rm {key[:12]}, and make another"

    def keep(self, scratch: Path, record: PodRecord, program: str) -> TemplateInfo:
        """Take what was saved in `scratch`, a directory of the same file system."""
        key = self.key_of(record, program)
        about = TemplateInfo(
            id=key, kind="vm", memory_bytes=record.memory_bytes, processors=record.processors,
            guest=Path(record.kernel).parent.name, accelerator=record.accelerator, created_at=time.time(),
            size_bytes=sum(path.stat().st_blocks * 512 for path in scratch.iterdir()),
            basis=self.basis_of(record, program), files=_print_of(scratch),
        )  # fmt: skip
        (scratch / _ABOUT).write_bytes(msgspec.json.encode(about))
        target = self.directory / key
        shutil.rmtree(target, ignore_errors=True)
        scratch.rename(target)
        return about

    def __iter__(self) -> Iterator[TemplateInfo]:
        for path in sorted(self.directory.glob(f"*/{_ABOUT}")):
            with suppress(OSError, msgspec.DecodeError):
                yield msgspec.json.decode(path.read_bytes(), type=TemplateInfo)

    def remove(self, key: str) -> None:
        """Idempotent; machines that started from it go on, their memory is an open file."""
        shutil.rmtree(self.directory / key, ignore_errors=True)


def _is_whole(directory: Path) -> bool:
    """Whether a template is there, and its files are what was saved. What goes on from others fails without a word
    that anybody understands, and so would each pod of its size."""
    try:
        about = msgspec.json.decode((directory / _ABOUT).read_bytes(), type=TemplateInfo)
        return about.files in ("", _print_of(directory))  # "": made by a version of before
    except (OSError, msgspec.DecodeError):
        return False


def _print_of(directory: Path) -> str:
    """Names and sizes of its files, and checksums of all but the memory, which is large and read by those who need it
    only."""
    found = [path for path in sorted(directory.iterdir()) if path.name != _ABOUT]
    sums = [0 if path.name == SAVED_MEMORY else zlib.crc32(path.read_bytes()) for path in found]
    return " ".join(f"{path.name}:{path.stat().st_size}:{sum_:08x}" for path, sum_ in zip(found, sums, strict=True))


def _hash(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def note_code(directory: Path, begin: int, end: int) -> None:
    """Write down where the kernel's instructions are in a machine that is saved there. 0, 0: it is not known."""
    if begin < end <= _CODE_ENDS_BY:
        (directory / _CODE).write_text(f"{begin}-{end}")


def code_of(saved: Path) -> range:
    """Where they are, in bytes of its memory; empty where that is not known."""
    try:
        begin, end = map(int, (saved / _CODE).read_text().split("-"))
    except (OSError, ValueError):
        return range(0)
    return range(begin, end)


def filled(saved: Path, memory: int, told: int, left_out: range = range(0)) -> list[str]:
    """The words before a command line that has memory, an open file, filled with a template's meanwhile, but for bytes
    that are left out. told: the end of a pipe that has `filling.DONE` then, and ends without it when that failed."""
    files = [saved / SAVED_MEMORY, memory, told, left_out.start, left_out.stop]
    fill = [sys.executable, "-I", "-S", filling.__file__, *map(str, files)]
    script = f'("$1" "$2" "$3" "$4" "$5" "$6" "$7" "$8" "$9" &); exec {told}>&-; shift 9; exec "$@"'
    return ["/bin/sh", "-c", script, "sh", *fill]


def _processor() -> str:
    """A machine that used a processor's features goes on with the same ones only."""
    lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    return "\n".join(line for line in lines if line.startswith(("model name", "flags", "microcode", "Features")))


__all__ = ["SAVED_MEMORY", "SPARE_DISKS", "Templates", "code_of", "filled", "note_code"]
