#!/usr/bin/env python3
"""Many sandboxes at once with asyncio, without a daemon: sudo .venv/bin/python examples/async_sandbox.py

Needs root, crun and the package busybox-static. Ends with 0 only if all that it shows is true.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path

import drupe

APPLETS = ("sh", "cat", "echo", "sleep")


async def main() -> None:
    with tempfile.TemporaryDirectory(prefix="drupe-example-") as name:
        directory = Path(name)
        async with drupe.AsyncRuntime.embedded(root=directory / "root", run=directory / "run") as runtime:
            await make_image(runtime, directory / "busybox")
            await side_by_side(runtime)
            await streams(runtime)
            await events(runtime)
            await cancelled(runtime)
            await outlive(runtime)
            assert await runtime.pods.list() == []
            print("nothing is left")


async def make_image(runtime: drupe.AsyncRuntime, tree: Path) -> None:
    """An image from a directory."""
    (tree / "bin").mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "/bin/busybox", tree / "bin/busybox")
    for applet in APPLETS:
        (tree / "bin" / applet).symlink_to("busybox")
    image = await runtime.images.build("busybox", tree, cmd=["sh"], env=["PATH=/bin"])
    print("image", image.names, image.digest[:19])


def sandbox(runtime: drupe.AsyncRuntime, **options: object) -> drupe.AsyncSandbox:
    return runtime.sandbox("busybox", network=drupe.Network.none(), memory="64M", **options)


async def side_by_side(runtime: drupe.AsyncRuntime) -> None:
    """Five sandboxes, each its own machine, all at once."""

    async def work(number: int) -> str:
        async with sandbox(runtime) as sb:
            await sb.files.write("/number", str(number))
            return (await sb.shell("echo $(( $(cat /number) * 2 ))", check=True, text=True)).stdout

    said = await asyncio.gather(*(work(n) for n in range(5)))
    assert said == ["0\n", "2\n", "4\n", "6\n", "8\n"]
    print("five at once said", *map(str.strip, said))


async def streams(runtime: drupe.AsyncRuntime) -> None:
    """Output as it comes, input when it is wanted, logs and counters."""
    async with sandbox(runtime) as sb:
        async with await sb.popen(["sh", "-c", "while read line; do echo got $line; done"]) as shell:
            assert shell.stdin and shell.stdout
            for word in (b"one", b"two"):
                await shell.stdin.write(word + b"\n")
                assert await shell.stdout.readline() == b"got " + word + b"\n"
            await shell.stdin.close()
            assert await shell.wait(timeout=5) == 0
        used = (await sb.stats()).memory_usage_bytes
        assert used > 0
        print(f"a shell answered line by line, in {used >> 10} KiB")
    async with runtime.sandbox(
        "busybox", ["sh", "-c", "echo a; sleep 0.2; echo b"], network=drupe.Network.none()
    ) as sb:
        logged = [line.data async for line in sb.logs(follow=True)]
        assert logged == [b"a\n", b"b\n"]
        print("logs as they came:", *logged)


async def events(runtime: drupe.AsyncRuntime) -> None:
    """What the runtime says about a pod's life."""
    async with sandbox(runtime) as sb:
        pod = sb.id
    seen = [event.action async for event in runtime.events(since=0, follow=False, ids=[pod])]
    assert seen[0] == "create" and seen[-1] == "destroy" and "start" in seen, seen
    print("events:", *seen)


async def cancelled(runtime: drupe.AsyncRuntime) -> None:
    """Cancelling the task that runs a command ends the command."""
    async with sandbox(runtime) as sb:
        running = asyncio.Event()
        task = asyncio.create_task(sb.shell("echo running; exec sleep 1000", on_stdout=lambda _: running.set()))
        await running.wait()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert "sleep 1000" not in [process.command for process in await sb.processes()]
        print("a cancelled task has ended its command")


async def outlive(runtime: drupe.AsyncRuntime) -> None:
    """An id is good beyond the object that made it."""
    async with sandbox(runtime) as sb:
        await sb.files.write("/kept", "still here")
        sb.detach()
    async with await drupe.AsyncSandbox.connect(sb.id, runtime=runtime) as again:
        kept = await again.files.read_text("/kept")
        assert kept == "still here"
        print("found again by its id:", kept)
        await again.delete()


if __name__ == "__main__":
    asyncio.run(main())
