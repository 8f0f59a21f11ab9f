"""Guest images: the same inputs give the same bytes, with all that is needed; they are found, named and removed."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import time
from pathlib import Path

import pytest

from drupe.errors import DataLoss, DrupeError, InvalidArgument, InvalidState, NotFound
from drupe.guest import build, elf, kernel, modules, store
from drupe.guest.build import Plan
from drupe.guest.tree import Tree, archive

AGENT = "#!/bin/sh\necho 'drupe-agent 9.9 (protocol 1)'\n"


def module(path: Path, **info: str | list[str]) -> Path:
    """A file that says of itself what a kernel module says, and nothing else."""
    words = ["license=GPL"]
    for key, values in info.items():
        words += [f"{key}={value}" for value in ([values] if isinstance(values, str) else values)]
    content = "\0".join(words).encode() + b"\0"
    names = b"\0.modinfo\0.shstrtab\0"
    begin = 64
    table = begin + len(content) + len(names)
    header = (
        b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, table, 0, 64, 0, 0, 64, 3, 2)
    )
    sections = [(0, 0, 0, 0), (1, 1, begin, len(content)), (10, 3, begin + len(content), len(names))]
    rows = b"".join(
        struct.pack("<IIQQQQIIQQ", name, kind, 0, 0, at, size, 0, 0, 1, 0) for name, kind, at, size in sections
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + content + names + rows)
    return path


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """A kernel with a few modules, an agent and a runtime, none of which would boot."""
    image = tmp_path / "bzImage"
    version = 0x400
    header = bytearray(0x600)
    header[0x202:0x206] = b"HdrS"
    header[0x20E:0x210] = (version - 0x200).to_bytes(2, "little")
    header[version : version + 16] = b"6.1.0-test (me)\0"
    image.write_bytes(header)
    home = tmp_path / "lib/modules/6.1.0-test"
    module(home / "kernel/virtio.ko", alias="virtio:x")
    module(home / "kernel/virtio_ring.ko")
    module(home / "kernel/virtio_blk.ko", depends="virtio,virtio-ring", alias=["virtio:d2v*", "dmi:no"])
    module(home / "kernel/erofs.ko", alias="fs-erofs", softdep="pre: crc32c post: other")
    module(home / "kernel/crc32c.ko")
    module(home / "kernel/extra-one.ko")
    module(home / "kernel/never.ko")
    (home / "modules.builtin").write_text("kernel/fs/ext4/ext4.ko\nkernel/other.ko\n")
    agent = tmp_path / "drupe-agent"
    agent.write_text(AGENT)
    agent.chmod(0o755)
    runtime = shutil.which("true")
    assert runtime
    return Plan(kernel.given(image, home), agent, Path(runtime))


def other(plan: Plan, **changes: object) -> Plan:
    fields = {name: getattr(plan, name) for name in Plan.__slots__}
    return Plan(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["initramfs", "erofs"])
def test_two_builds_give_the_same_bytes(plan: Plan, tmp_path: Path, form: store.Form) -> None:
    if form == "erofs" and shutil.which("mkfs.erofs") is None:
        pytest.skip("no mkfs.erofs (erofs-utils)")
    plan = other(plan, form=form)
    roots = [tmp_path / "one", tmp_path / "two"]
    infos = []
    for root in roots:
        infos.append(build.build(root, plan, "default"))
        os.utime(plan.agent, (time.time() - 99999, 1))  # what is not in the image must not matter
    assert infos[0].digest == infos[1].digest
    for name in ("kernel", "initrd", *(["rootfs.erofs"] if form == "erofs" else [])):
        first, second = ((root / "guests/default" / name).read_bytes() for root in roots)
        assert first == second, name


def test_what_an_image_depends_on_changes_its_digest(plan: Plan, tmp_path: Path) -> None:
    seen = {build.build(tmp_path, plan, "default").digest}
    for changed in (
        other(plan, compression="lz4") if shutil.which("lz4") else other(plan, extra_modules=("never",)),
        other(plan, extra_modules=("extra-one",)),
        other(plan, runtime=Path("/bin/false").resolve()),
    ):
        digest = build.build(tmp_path, changed, "default").digest
        assert digest not in seen
        seen.add(digest)
    assert len(store.listed(tmp_path)) == len(seen)
    assert [info.names for info in store.listed(tmp_path) if info.names] == [("default",)]


def test_a_second_build_finds_the_first(plan: Plan, tmp_path: Path) -> None:
    steps: list[str] = []
    first = build.build(tmp_path, plan, "default", steps.append)
    again = build.build(tmp_path, plan, "also", steps.append)
    assert steps == ["collecting", "packing", "collecting", "made before"]
    assert (again.digest, again.names, again.created_at) == (first.digest, ("also", "default"), first.created_at)
    assert not list((tmp_path / "guests").glob(".building*"))


def test_the_archive_holds_agent_runtime_libraries_and_modules(plan: Plan, tmp_path: Path) -> None:
    if shutil.which("cpio") is None:
        pytest.skip("no cpio")
    info = build.build(tmp_path, plan, "default")
    initrd = store.find(tmp_path).initrd
    listed = subprocess.run(
        ["cpio", "-itv", "--quiet"], stdin=initrd.open(), capture_output=True, text=True, check=True
    )
    names = {line.split()[-1] if "->" not in line else line.split()[-3] for line in listed.stdout.splitlines()}
    assert {"init", "sbin/drupe-agent", "usr/bin/crun", "etc/machine-id", "sbin/modprobe"} <= names
    assert {f"lib/modules/6.1.0-test/kernel/{name}.ko" for name in ("virtio_blk", "crc32c", "erofs")} <= names
    assert not any("never" in name or "extra" in name for name in names)
    libraries = elf.needed(plan.runtime)
    assert libraries
    assert all(any(name.endswith(library.rpartition("/")[2]) for name in names) for library in libraries)
    assert (info.release, info.agent) == ("6.1.0-test", "9.9 (protocol 1)")
    assert info.built_in == ("ext4",)


def test_modules_come_after_what_they_need(plan: Plan) -> None:
    assert plan.kernel.modules is not None
    chosen = modules.choose(plan.kernel.modules)
    assert [one.name for one in chosen] == ["virtio", "virtio_ring", "virtio_blk", "crc32c", "erofs"]
    listing = modules.listing(chosen, ["ext4"]).decode().splitlines()
    assert "module virtio_blk kernel/virtio_blk.ko virtio virtio_ring" in listing
    assert "module erofs kernel/erofs.ko crc32c" in listing
    assert "alias virtio:d2v* virtio_blk" in listing
    assert "builtin ext4" in listing
    assert not any("dmi:" in line for line in listing)
    with pytest.raises(InvalidArgument, match="no module nothing"):
        modules.choose(plan.kernel.modules, ["nothing"])
    assert modules.choose(plan.kernel.modules, ["other"]) == [], "one that is built in is no error"


def test_an_archive_is_padded_and_sorted_however_it_was_filled() -> None:
    one, two = Tree(), Tree()
    one.file("a/b", b"12345")
    one.symlink("z", "a/b")
    two.symlink("z", "a/b")
    two.file("a/b", b"12345")
    assert archive(one) == archive(two)
    assert len(archive(one)) % 512 == 0


def test_files_that_are_not_what_they_should_be(tmp_path: Path, plan: Plan) -> None:
    text = tmp_path / "text"
    text.write_text("no kernel at all")
    cut = tmp_path / "cut"
    cut.write_bytes(plan.runtime.read_bytes()[:2000])
    for error, words, work in (
        (InvalidArgument, "is no kernel", lambda: kernel.given(text, None)),
        (NotFound, "there is no kernel", lambda: kernel.given(tmp_path / "no", None)),
        (NotFound, "there is no directory", lambda: kernel.given(plan.kernel.image, tmp_path / "no")),
        (InvalidArgument, "is no 64-bit ELF file", lambda: elf.needed(text)),
        (InvalidArgument, "is broken", lambda: elf.needed(cut)),
        (InvalidArgument, "is broken", lambda: elf.module_info(cut)),
        (InvalidArgument, "no name of a guest image", lambda: build.build(tmp_path, plan, "../x")),
        (InvalidArgument, "no compression", lambda: build.build(tmp_path, other(plan, compression="best"), "x")),
        (InvalidArgument, "no name of a package", lambda: kernel.from_debian("; rm", tmp_path)),
        (NotFound, "no guest image", lambda: store.find(tmp_path)),
    ):
        with pytest.raises(error, match=words):
            work()
    assert kernel.given(plan.kernel.image, None).release == "6.1.0-test"


def test_an_agent_that_does_not_run_makes_no_image(tmp_path: Path, plan: Plan) -> None:
    plan.agent.write_text("#!/bin/sh\necho broken >&2; exit 1\n")
    with pytest.raises(DrupeError, match="drupe-agent --version failed: broken"):
        build.build(tmp_path, plan, "default")
    assert not list((tmp_path / "guests").iterdir())


def test_names_and_removal(tmp_path: Path, plan: Plan) -> None:
    info = build.build(tmp_path, plan, "default")
    build.build(tmp_path, plan, "also")
    assert store.find(tmp_path, info.digest[:8]).digest == info.digest
    with pytest.raises(InvalidState, match="has the names also, default"):
        store.remove(tmp_path, info.digest[:12])
    store.remove(tmp_path, "also")
    assert store.inspect(tmp_path, "default").names == ("default",)
    store.remove(tmp_path, "default")
    assert store.listed(tmp_path) == []
    assert not list((tmp_path / "guests").iterdir())
    with pytest.raises(NotFound):
        store.remove(tmp_path, "default")
    store.remove(tmp_path, "default", force=True)


def test_an_image_that_was_damaged_says_how_to_mend_it(tmp_path: Path, plan: Plan) -> None:
    build.build(tmp_path, plan, "mine")
    (tmp_path / "guests/mine/initrd").unlink()
    with pytest.raises(DataLoss) as raised:
        store.find(tmp_path, "mine")
    assert raised.value.hint == "drupe guest build --name mine"
    (tmp_path / "guests/mine/guest.json").write_text("{")
    with pytest.raises(DataLoss, match=r"no readable guest\.json"):
        store.inspect(tmp_path, "mine")
    assert store.listed(tmp_path) == []
