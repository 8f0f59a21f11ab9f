"""Which kernel modules a guest gets, with all that they need, and the list by which the agent loads them
(native/agent/src/modules.rs)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from drupe.errors import InvalidArgument
from drupe.guest.elf import module_info

# What a machine may have or be given, and the file systems of its containers. One that the kernel has built in, or that
# it does not have at all, is no error: `inspect` tells what is there.
WANTED = (
    "virtio_pci", "virtio_mmio", "virtio_blk", "virtio_net", "virtio_console", "virtio_rng", "virtio_balloon",
    "virtio_mem", "virtiofs", "9pnet_virtio", "9p", "overlay", "erofs", "ext4", "vmw_vsock_virtio_transport",
    "pvpanic_pci", "pvpanic_mmio", "ptp_kvm", "tun", "af_packet", "tcp_diag", "udp_diag",
)  # fmt: skip
# Of an initramfs whose only work is to find a disk.
WAY_TO_DISK = ("virtio_pci", "virtio_mmio", "virtio_blk", "erofs")
# Loaded whether or not a device asks for them; all others when a device or file system does.
BOOT: tuple[str, ...] = ()
LIST = "drupe.list"
_KEPT_ALIASES = ("virtio:", "pci:", "acpi*:", "fs-", "net-pf-", "char-major-", "devname:", "of:", "platform:")


@dataclass(frozen=True, slots=True)
class Module:
    """path: below the modules' directory. needs: modules that are loaded first."""

    name: str
    path: str
    needs: tuple[str, ...]
    aliases: tuple[str, ...]


def choose(directory: Path, wanted: Iterable[str] = WANTED) -> list[Module]:
    """Modules of a kernel's directory (/lib/modules/RELEASE), each after what it needs. Raises InvalidArgument for one
    that is neither there nor built in, nor of the usual ones."""
    paths = {_name(path): path for path in sorted(directory.rglob("*.ko"))}
    if not paths and next(directory.rglob("*.ko.*"), None) is not None:
        raise InvalidArgument(f"the modules of {directory} are compressed", hint="give it unpacked ones")
    chosen: dict[str, Module] = {}
    for name in wanted:
        if _plain(name) in paths:
            _add(_plain(name), paths, directory, chosen)
        elif name not in WANTED and name not in built_in(directory, [name]):
            raise InvalidArgument(f"there is no module {name} below {directory}")
    return list(chosen.values())


def _add(name: str, paths: dict[str, Path], directory: Path, chosen: dict[str, Module]) -> None:
    if name in chosen or name not in paths:
        return
    info = module_info(paths[name])
    needs = [_plain(need) for word in info.get("depends", []) for need in word.split(",") if need]
    needs += [_plain(need) for word in info.get("softdep", []) for need in _before(word)]
    for need in needs:
        _add(need, paths, directory, chosen)
    known = tuple(need for need in dict.fromkeys(needs) if need in chosen)
    aliases = tuple(alias for alias in info.get("alias", []) if alias.startswith(_KEPT_ALIASES) and " " not in alias)
    chosen[name] = Module(name, str(paths[name].relative_to(directory)), known, aliases)


def _before(softdep: str) -> Iterator[str]:
    """The modules after "pre:"."""
    mode = ""
    for word in softdep.split():
        if word.endswith(":"):
            mode = word
        elif mode == "pre:":
            yield word


def listing(modules: Iterable[Module], builtin: Iterable[str]) -> bytes:
    """The agent's list."""
    chosen = list(modules)
    lines = [" ".join(("module", module.name, module.path, *module.needs)) for module in chosen]
    lines += [f"alias {alias} {module.name}" for module in chosen for alias in module.aliases]
    lines += [f"boot {name}" for name in BOOT if name in {module.name for module in chosen}]
    lines += [f"builtin {name}" for name in builtin]
    return ("\n".join(lines) + "\n").encode()


def built_in(directory: Path, wanted: Iterable[str] = WANTED) -> list[str]:
    """Those of the wanted modules that the kernel has in itself."""
    try:
        names = {_name(Path(line)) for line in (directory / "modules.builtin").read_text().splitlines()}
    except OSError:
        return []
    return [name for name in wanted if _plain(name) in names]


def _name(path: Path) -> str:
    return _plain(path.name.partition(".")[0])


def _plain(name: str) -> str:
    return name.replace("-", "_")
