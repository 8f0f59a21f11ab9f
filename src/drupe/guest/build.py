"""Building a guest image: what goes into its root, and how that is put together."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from drupe.errors import InvalidArgument, NotFound
from drupe.guest import erofs, helpers, modules, programs, store
from drupe.guest.kernel import Kernel
from drupe.guest.store import Form, GuestInfo
from drupe.guest.tree import Tree, archive

LAYOUT = 2  # goes up when the same inputs shall become another image
COMPRESSIONS = {"none": (), "lz4": ("lz4", "-l", "-9", "-c"), "zstd": ("zstd", "-19", "-q", "-c")}
_DIRECTORIES = ("proc", "sys", "dev", "run", "tmp", "etc", "root", "mnt", "var", "usr")
_SCRATCH = ".building."
_ABANDONED_S = 3600

Told = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """agent: the program that is PID 1. runtime: crun. extra_modules: beyond those that every guest gets."""

    kernel: Kernel
    agent: Path
    runtime: Path
    form: Form = "initramfs"
    compression: str = "none"
    extra_modules: Sequence[str] = ()


def find_agent() -> Path:
    """The agent's program, beside the package or on PATH. Raises NotFound."""
    built = Path(__file__).parents[1] / "_bin/drupe-agent"
    found = str(built) if built.exists() else shutil.which("drupe-agent")
    if found is None:
        raise NotFound("no program drupe-agent", hint="build it: scripts/build-native.sh agent")
    return Path(found)


def find_runtime() -> Path:
    """crun, which runs the containers of a guest. Raises NotFound."""
    return programs.find_program("crun", "apt-get install crun")


def build(root: Path, plan: Plan, name: str, told: Told = lambda _: None) -> GuestInfo:
    """Make the image, or find it made, and name it. told: is told each step. Raises InvalidArgument, NotFound,
    HelperFailed."""
    store.check_name(name)
    if plan.compression not in COMPRESSIONS:
        raise InvalidArgument(f"no compression {plan.compression!r}", hint=", ".join(COMPRESSIONS))
    told("collecting")
    tree, chosen = collect(plan)
    digest = digest_of(plan, tree)
    guests = root / "guests"
    guests.mkdir(mode=0o711, parents=True, exist_ok=True)
    if (guests / digest / "guest.json").exists():
        told("made before")
        store.name_it(root, digest, name)
        return store.inspect(root, digest)
    told("packing")
    _sweep(guests)
    with tempfile.TemporaryDirectory(dir=guests, prefix=_SCRATCH, ignore_cleanup_errors=True) as scratch:
        work = Path(scratch) / "image"
        work.mkdir(mode=0o755)
        file = _pack(plan, tree, work, digest)
        shutil.copyfile(plan.kernel.image, work / "kernel")
        return store.put(root, work, _describe(plan, chosen, digest, work / file), name)


def _sweep(guests: Path) -> None:
    """Remove what builds have left that were killed."""
    for path in guests.glob(f"{_SCRATCH}*"):
        if time.time() - path.stat().st_mtime > _ABANDONED_S:
            shutil.rmtree(path, ignore_errors=True)


def collect(plan: Plan) -> tuple[Tree, list[modules.Module]]:
    """The root's files, and the modules among them."""
    tree = _bare(plan)
    programs.add_program(tree, plan.runtime, "usr/bin/crun")
    tree.symlink("bin", "usr/bin")
    tree.symlink("etc/machine-id", "/run/drupe/etc/machine-id")
    for file, text in (("passwd", "root:x:0:0:root:/root:/sbin/nologin\n"), ("group", "root:x:0:\n"), ("hosts", "")):
        tree.file(f"etc/{file}", text.encode())
    return tree, _add_modules(tree, plan.kernel, (*modules.WANTED, *plan.extra_modules))


def _way_to_disk(plan: Plan) -> Tree:
    """An initramfs with what it takes to find the disk that has the root."""
    tree = _bare(plan)
    _add_modules(tree, plan.kernel, modules.WAY_TO_DISK)
    return tree


def _bare(plan: Plan) -> Tree:
    """The agent, and the directories that it mounts on."""
    tree = Tree()
    for directory in _DIRECTORIES:
        tree.directory(directory, 0o1777 if directory == "tmp" else 0o755)
    tree.device("dev/console", 5, 1)
    tree.device("dev/null", 1, 3)
    tree.copy(plan.agent, "sbin/drupe-agent", 0o755)
    for link in ("init", "sbin/init"):
        tree.symlink(link, "/sbin/drupe-agent")
    tree.symlink("sbin/modprobe", "drupe-agent")
    return tree


def _add_modules(tree: Tree, kernel: Kernel, wanted: Sequence[str]) -> list[modules.Module]:
    if kernel.modules is None:
        return []
    chosen = modules.choose(kernel.modules, wanted)
    top = f"lib/modules/{kernel.release}"
    for module in chosen:
        tree.copy(kernel.modules / module.path, f"{top}/{module.path}")
    tree.file(f"{top}/{modules.LIST}", modules.listing(chosen, modules.built_in(kernel.modules)))
    return chosen


def digest_of(plan: Plan, tree: Tree) -> str:
    """SHA-256 over everything that the image depends on."""
    whole = hashlib.sha256(f"{LAYOUT} {plan.form} {plan.compression}\0".encode())
    with plan.kernel.image.open("rb") as file:
        whole.update(hashlib.file_digest(file, "sha256").digest())
    whole.update(hashlib.sha256(archive(tree)).digest())
    return whole.hexdigest()


def _pack(plan: Plan, tree: Tree, work: Path, digest: str) -> str:
    """Write the root; the name of its file."""
    on_disk = plan.form == "erofs"
    if on_disk:
        erofs.write(tree, work / "rootfs.erofs", digest)
    first = _way_to_disk(plan) if on_disk else tree
    (work / "initrd").write_bytes(_compressed(archive(first), COMPRESSIONS[plan.compression]))
    return "rootfs.erofs" if on_disk else "initrd"


def _compressed(data: bytes, argv: Sequence[str]) -> bytes:
    return helpers.run(argv, stdin=data, hint=f"apt-get install {argv[0]}, or --compression none") if argv else data


def _describe(plan: Plan, chosen: Sequence[modules.Module], digest: str, file: Path) -> GuestInfo:
    kernel = plan.kernel
    return GuestInfo(
        digest=digest, form=plan.form, release=kernel.release, agent=_version(plan.agent), kernel_source=kernel.source,
        kernel_bytes=kernel.image.stat().st_size, root_bytes=file.stat().st_size,
        modules=tuple(module.name for module in chosen),
        built_in=tuple(modules.built_in(kernel.modules)) if kernel.modules else (),
        compression=plan.compression, created_at=time.time(),
    )  # fmt: skip


def _version(agent: Path) -> str:
    """What the agent says it is: "0.1.0 (protocol 1)"."""
    said = helpers.run([str(agent), "--version"], hint="give the agent's program").decode()
    return said.strip().removeprefix("drupe-agent ")
