"""checkpoint and restore: by the program that made the container, with CRIU; or by the kind of sandbox, where the
daemon keeps the container."""

from __future__ import annotations

from collections.abc import Iterable

from drupe.errors import InvalidState, Unsupported
from drupe.sandboxers.bundles import BundleProgram
from drupe.sandboxers.capabilities import refuse_unless_able
from drupe.services.oci.asked import Asked
from drupe.services.oci.kept import Kept
from drupe.spec.oci import OciAnswer

_IMAGES = "checkpoint"  # runc's default, in the caller's directory
_WHAT = "image directory"
_WHOLE = "inventory.img"  # CRIU's, without which Podman takes a checkpoint for half made
# what crun knows of runc's flags; both take the rest
_OF_BOTH = (
    "image-path", "work-path", "tcp-established", "ext-unix-sk", "shell-job", "file-locks", "manage-cgroups-mode",
    "parent-path", "leave-running", "pre-dump", "bundle", "console-socket", "detach", "pid-file", "lsm-profile",
    "lsm-mount-context",
)  # fmt: skip
# what concerns processes of the host's kernel means nothing where the whole of a sandbox's kernel is written down
_MOOT = (
    "ext-unix-sk", "shell-job", "file-locks", "manage-cgroups-mode", "work-path", "image-path", "leave-running",
    "bundle", "console-socket", "detach", "pid-file", "no-pivot", "no-subreaper",
)  # fmt: skip


# -- by the program ---------------------------------------------------------------------------------------------------


async def checkpoint(asked: Asked) -> OciAnswer:
    """The caller becomes the program that made the container."""
    return await become(asked, asked.found(), "checkpoint")


async def become(asked: Asked, program: BundleProgram, *words: str) -> OciAnswer:
    """The caller becomes the program, with the flags that it has given. words: the verb, and which bundle. Raises
    Unsupported where CRIU does not work, or for a flag that the program does not know."""
    criu = await asked.bundles.criu.flags(program, asked.words.text("criu"))
    if program.name != "runc":
        _refuse_flags(asked, _OF_BOTH, program.name)
    options = asked.words.options.items()
    given = [f"--{name}={value}" for name, values in options if name != "bundle" for value in values]
    return asked.become(program, *criu, *words, *given, asked.id)


async def are_there(asked: Asked, program: BundleProgram) -> bool:
    """Whether containers of this program can be checkpointed."""
    if program.stands:
        return not asked.node.sandboxer(program.kind).capabilities()["checkpoint"].startswith("no")
    try:
        await asked.bundles.criu.flags(program, asked.words.text("criu"))
    except Unsupported:
        return False
    return True


def _refuse_flags(asked: Asked, known: Iterable[str], who: str) -> None:
    for name, values in asked.words.options.items():
        if name not in known and values[-1] not in ("", "false"):
            raise Unsupported(f"{asked.words.verb} --{name} is not carried out by {who}", feature=f"--{name}")


# -- by the kind ------------------------------------------------------------------------------------------------------


async def ask(asked: Asked, program: BundleProgram) -> OciAnswer:
    """checkpoint of a container that the daemon keeps."""
    check(asked, program.kind)
    return OciAnswer(act=True)


def check(asked: Asked, kind: str) -> None:
    """Raise Unsupported where the kind cannot, or for a flag that has no meaning there."""
    refuse_unless_able(kind, asked.node.sandboxer(kind).capabilities(), {"checkpoint"})
    _refuse_flags(asked, _MOOT, f"{kind} sandboxes")


def check_images(asked: Asked, kind: str) -> None:
    """restore: the same, and NotFound where there is nothing to go on from."""
    check(asked, kind)
    with asked.files.directory(asked.words.text("image-path", _IMAGES), _WHAT):
        pass


async def act(asked: Asked, fds: dict[str, int]) -> OciAnswer:
    """Write it down. As with runc, it is gone then unless it is to be left running."""
    kept, leave = asked.kept(), asked.words.on("leave-running")
    if not kept.container.is_live:
        raise InvalidState(f"container {asked.id} is not running: {kept.status}")
    with asked.files.directory(asked.words.text("image-path", _IMAGES), _WHAT, made=True) as images:
        await kept.checkpoint(images, ends=not leave)
        (images / _WHOLE).touch()
    if leave:
        return OciAnswer()
    program = asked.found()
    await kept.delete()
    asked.bundles.remove(kept)
    return asked.become(program, "delete", "--force", asked.id)


async def go_on(asked: Asked, kept: Kept) -> None:
    """restore: have what was made go on from the images, at its start. On failure it is gone."""
    try:
        with asked.files.directory(asked.words.text("image-path", _IMAGES), _WHAT) as images:
            await kept.container.tasks.go_on_from(kept.container.id, images)
    except BaseException:
        await kept.delete()
        asked.bundles.remove(kept)
        raise
