"""Kernels for guests: Debian's packages, unpacked and never installed, or one that is given."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from drupe.errors import HelperFailed, InvalidArgument, NotFound

DEFAULT_PACKAGE = "linux-image-cloud-amd64"
_DOWNLOAD_S = 600
_LIKE_IMAGE = re.compile(r"linux-image-[0-9][a-z0-9.+-]*")


@dataclass(frozen=True, slots=True)
class Kernel:
    """image: bzImage or vmlinux. modules: /lib/modules/RELEASE; None: it has all it needs in itself."""

    image: Path
    modules: Path | None
    release: str
    source: str


def given(image: Path, modules: Path | None) -> Kernel:
    """A kernel of the user's. modules: its directory, named by the release. Raises NotFound."""
    if not image.is_file():
        raise NotFound(f"there is no kernel {image}")
    if modules is not None and not modules.is_dir():
        raise NotFound(f"there is no directory {modules}")
    release = modules.name if modules is not None else _release_of(image)
    return Kernel(image, modules, release, str(image))


def _release_of(image: Path) -> str:
    """From a bzImage's header (boot protocol, kernel_version), or the banner of a vmlinux; "" when it does not say."""
    data = image.read_bytes()
    if data[0x202:0x206] == b"HdrS":
        begin = int.from_bytes(data[0x20E:0x210], "little") + 0x200
        return data[begin : begin + 128].split(b"\0")[0].split(b" ")[0].decode(errors="replace")
    found = re.search(rb"Linux version ([^ \0]{1,64}) ", data)
    return found[1].decode(errors="replace") if found else ""


def from_debian(package: str, cache: Path) -> Kernel:
    """The kernel of a Debian package, or of the newest that a package like linux-image-cloud-amd64 depends on; taken
    from `cache` when it was unpacked before. Raises NotFound, HelperFailed."""
    name = _concrete(package)
    directory = cache / name
    if not directory.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".unpacking.") as scratch:
            _unpack(name, Path(scratch))
            (Path(scratch) / "tree").rename(directory)
    release = _only(directory / "lib/modules", "modules")
    image = next(iter(sorted((directory / "boot").glob("vmlinu?-*"))), None)
    if image is None:
        raise NotFound(f"package {name} has no kernel below /boot", hint="is it one of linux-image-…?")
    return Kernel(image, release, release.name, name)


def _only(directory: Path, what: str) -> Path:
    found = sorted(directory.iterdir()) if directory.is_dir() else []
    if len(found) != 1:
        raise NotFound(f"{directory} has {len(found)} trees of {what}, not one")
    return found[0]


def _concrete(package: str) -> str:
    """A package may only name the newest kernel: it depends on the real one."""
    if _LIKE_IMAGE.fullmatch(package):
        return package
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]+", package):
        raise InvalidArgument(f"{package!r} is no name of a package")
    said = _run(["apt-cache", "depends", "--important", package], cwd=Path("/"))
    names = [word for word in said.split() if _LIKE_IMAGE.fullmatch(word)]
    if not names:
        raise NotFound(f"no kernel package {package} is known", hint="apt-get update, or give one by --kernel FILE")
    return names[0]


def _unpack(name: str, scratch: Path) -> None:
    _run(["apt-get", "download", "-qq", name], cwd=scratch)
    packages = list(scratch.glob("*.deb"))
    if not packages:
        raise HelperFailed(f"apt-get downloaded no package {name}", stage="download")
    _run(["dpkg", "-x", str(packages[0]), "tree"], cwd=scratch)


def _run(argv: list[str], *, cwd: Path) -> str:
    """What a program of Debian's says. Raises HelperFailed, NotFound."""
    if shutil.which(argv[0]) is None:
        raise NotFound(f"no program {argv[0]}", hint="give a kernel by --kernel FILE --modules DIR")
    env = os.environ | {"LC_ALL": "C"}
    try:
        done = subprocess.run(
            argv,
            cwd=cwd,
            env=env,
            capture_output=True,
            text=True,
            timeout=_DOWNLOAD_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise HelperFailed(f"{' '.join(argv[:2])} took longer than {_DOWNLOAD_S} s", stage="download") from None
    if done.returncode != 0:
        words = done.stderr.strip().splitlines()
        raise HelperFailed(
            f"{' '.join(argv)} failed", cause=words[-1] if words else "", stage="download", hint="apt-get update"
        )
    return done.stdout
