"""Kernels for guests: Debian's packages, unpacked and never installed, or one that is given."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from drupe.errors import HelperFailed, InvalidArgument, NotFound
from drupe.guest import helpers

DEFAULT_PACKAGE = "linux-image-cloud-amd64"
_HEADER_BYTES = 0x210  # of a bzImage, up to the offset of its version
_NO_APT = "give a kernel by --kernel FILE --modules DIRECTORY"
_LIKE_IMAGE = re.compile(r"linux-image-[0-9][a-z0-9.+-]*")


@dataclass(frozen=True, slots=True)
class Kernel:
    """image: bzImage or vmlinux. modules: /lib/modules/RELEASE; None: it has all it needs in itself."""

    image: Path
    modules: Path | None
    release: str
    source: str


def given(image: Path, modules: Path | None) -> Kernel:
    """A kernel of the user's. modules: its directory, named by the release. Raises NotFound,
    InvalidArgument."""
    if not image.is_file():
        raise NotFound(f"there is no kernel {image}")
    if modules is not None and not modules.is_dir():
        raise NotFound(f"there is no directory {modules}")
    with image.open("rb") as file:
        begin = file.read(_HEADER_BYTES)
    if begin[0x202:0x206] != b"HdrS" and not begin.startswith(b"\x7fELF"):
        raise InvalidArgument(f"{image} is no kernel", hint="a bzImage or a vmlinux")
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
    try:
        said = helpers.run(["apt-cache", "depends", "--important", package], hint=_NO_APT).decode()
    except HelperFailed:
        said = ""
    names = [word for word in said.split() if _LIKE_IMAGE.fullmatch(word)]
    if not names:
        raise NotFound(f"no kernel package {package} is known", hint="apt-get update, or give one by --kernel FILE")
    return names[0]


def _unpack(name: str, scratch: Path) -> None:
    argv = ["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", name]
    helpers.run(argv, hint=_NO_APT, cwd=scratch)
    packages = list(scratch.glob("*.deb"))
    if not packages:
        raise HelperFailed(f"apt-get downloaded no package {name}", stage="download")
    helpers.run(["dpkg", "-x", str(packages[0]), "tree"], hint=_NO_APT, cwd=scratch)
