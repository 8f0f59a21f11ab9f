"""What every kind of sandbox must do: the Sandboxer contract as tests.

A test module brings a `Site` (how to make the kind, and what its programs are), derives a class from `SandboxerSuite`
and has a fixture `site`. The suite reads the capability table: what is declared must work, what is not must be refused
by name. Programs mean the same everywhere (drupe.sandboxers.fake.programs says what each does).
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from drupe.errors import AlreadyExists, DrupeError, InvalidState, NotFound, PermissionDenied, Unsupported
from drupe.sandboxers.capabilities import FEATURES, for_platform, needed, refuse_unless_able
from drupe.sandboxers.contract import ExecConfig, SandboxConfig, Sandboxer, SandboxInfo, TaskConfig, TaskExit
from drupe.spec import (
    ExitStatus,
    LogSpec,
    NetworkSpec,
    PodSpec,
    Resources,
)
from drupe.spec.base import decode
from framework.asks import CALLS, PLATFORMS, SPECS

ENDS_WITHIN_S = 10.0


class Site(ABC):
    """Where a kind is tried: makes it, gives it pods and containers, hears of ends, cleans up. many: pods that it has
    at once without trouble."""

    many = 10

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.exits: dict[tuple[str, str], asyncio.Future[ExitStatus]] = {}
        self.infos: dict[str, SandboxInfo] = {}
        self.sandboxer: Sandboxer
        self._count = 0

    @abstractmethod
    async def open(self) -> Sandboxer:
        """Make the sandboxer, with `self.ended` as its on_exit."""

    @abstractmethod
    async def reopen(self) -> Sandboxer:
        """What a daemon does after a restart: a new sandboxer over what is there."""

    @abstractmethod
    async def close(self) -> None:
        """Remove everything. What was not the site's own, but left by the sandboxer, is an AssertionError."""

    @abstractmethod
    def oci(self, task: str, process: dict[str, Any], info: SandboxInfo, cgroup: str) -> dict[str, Any]:
        """A complete OCI config around `process`."""

    def prepare(self, config: SandboxConfig) -> None:  # noqa: B027 most kinds need nothing
        """What the runtime makes before a sandbox (its cgroup)."""

    async def ready(self, task: TaskConfig) -> None:  # noqa: B027 most kinds need nothing
        """Wait until "patient" handles signals, where a program does not do so from its first moment."""

    def ended(self, exit_: TaskExit) -> None:
        future = self._exit(exit_.task, exit_.exec_id)
        assert not future.done(), f"the end of {exit_} was told twice"
        future.set_result(exit_.status)

    def _exit(self, task: str, exec_id: str) -> asyncio.Future[ExitStatus]:
        return self.exits.setdefault((task, exec_id), asyncio.get_running_loop().create_future())

    async def end_of(self, task: str, exec_id: str = "") -> ExitStatus:
        return await asyncio.wait_for(asyncio.shield(self._exit(task, exec_id)), ENDS_WITHIN_S)

    def has_ended(self, task: str, exec_id: str = "") -> bool:
        return self._exit(task, exec_id).done()

    # -- short words --------------------------------------------------------------------------------------------

    def needs(self, *features: str) -> None:
        """Skip, naming the capability, unless the kind has them all."""
        able = self.sandboxer.capabilities()
        for feature in features:
            if able.get(feature, "no").startswith("no"):
                pytest.skip(f"{self.sandboxer.kind} has no capability {feature!r} ({able.get(feature)})")

    def limited(self, feature: str) -> bool:
        """Whether the kind has it only in part."""
        return self.sandboxer.capabilities().get(feature, "").startswith("limited")

    def config(self, **spec: Any) -> SandboxConfig:
        self._count += 1
        id_ = f"pod{self._count}"
        made = PodSpec(network=NetworkSpec(mode="none"), **spec)
        directory = self.directory / id_
        directory.mkdir()
        return SandboxConfig(id=id_, spec=made, dir=directory, cgroup=f"{self.cgroup_parent}/{id_}", hostname="h")

    @property
    def cgroup_parent(self) -> str:
        return f"/drupe-test-{os.getpid()}"

    async def sandbox(self, **spec: Any) -> str:
        """A started sandbox."""
        config = self.config(**spec)
        self.prepare(config)
        self.infos[config.id] = await self.sandboxer.create(config)
        await self.sandboxer.start(config.id)
        return config.id

    def process(self, argv: tuple[str, ...], *, env: tuple[str, ...] = (), cwd: str = "/") -> dict[str, Any]:
        return {"args": list(argv), "env": ["PATH=/bin", *env], "cwd": cwd, "user": {"uid": 0, "gid": 0}}

    def task(
        self,
        sandbox: str,
        line: str,
        *,
        tty: bool = False,
        stdin: bool = False,
        env: tuple[str, ...] = (),
        fds: Mapping[str, int] | None = None,
    ) -> TaskConfig:
        self._count += 1
        id_ = f"task{self._count}"
        bundle = self.directory / sandbox / id_
        bundle.mkdir()
        cgroup = f"{self.cgroup_parent}/{sandbox}/{id_}"
        process = self.process(tuple(line.split()), env=env) | {"terminal": tty}
        oci = self.oci(id_, process, self.infos[sandbox], cgroup)
        return TaskConfig(
            id=id_, sandbox=sandbox, oci=oci, bundle=bundle, cgroup=cgroup, tty=tty,
            stdin=stdin, log=LogSpec(path=str(bundle / "log")), exit_file=bundle / "exit.json", fds=fds or {},
        )  # fmt: skip

    async def created(self, line: str, **fields: Any) -> TaskConfig:
        """A created task in a sandbox of its own."""
        task = self.task(await self.sandbox(), line, **fields)
        await self.sandboxer.tasks().create(task)
        return task

    async def running(self, line: str, **fields: Any) -> TaskConfig:
        task = await self.created(line, **fields)
        await self.sandboxer.tasks().start(task.id)
        return task

    async def exec(self, task: TaskConfig, line: str, *, fds: Mapping[str, int] | None = None, **fields: Any) -> str:
        self._count += 1
        id_ = f"exec{self._count}"
        argv, tty = tuple(line.split()), fields.pop("tty", False)
        process = self.process(argv, env=fields.pop("env", ())) | {"terminal": tty}
        null = os.open(os.devnull, os.O_RDWR)
        try:
            given = {"stdin": null, "stdout": null, "stderr": null} | dict(fds or {})
            config = ExecConfig(id=id_, task=task.id, process=process, dir=task.bundle, tty=tty, fds=given, **fields)
            await self.sandboxer.tasks().exec(config)
        finally:
            os.close(null)
        return id_


def read_to_end(fd: int) -> Awaitable[bytes]:
    """All bytes of a pipe, in a thread; closes it."""

    def read() -> bytes:
        with os.fdopen(fd, "rb") as file:
            return file.read()

    return asyncio.to_thread(read)


def logged(task: TaskConfig) -> list[str]:
    """What its log holds, without stamps."""
    assert task.log is not None
    return [line.split(" ", 3)[3] for line in Path(task.log.path).read_text().splitlines()]


async def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + ENDS_WITHIN_S
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.01)


class SandboxerSuite:
    """Derive, and give a fixture `site`."""

    # -- the table ----------------------------------------------------------------------------------------------

    async def test_the_table_names_every_feature_and_no_other(self, site: Site) -> None:
        able = site.sandboxer.capabilities()
        assert set(able) == set(FEATURES)
        for feature, said in able.items():
            word, _, reason = said.partition(": ")
            assert word == "yes" or (word in ("no", "limited") and reason), (feature, said)

    async def test_each_feature_can_be_asked_for(self, site: Site) -> None:
        """What nothing asks for would be a promise that nobody can take up, or a gap that nobody is told of."""
        assert {*SPECS, *CALLS, *PLATFORMS} == set(FEATURES)
        for feature, os_ in PLATFORMS.items():
            assert for_platform(os_) == feature

    async def test_what_is_not_declared_is_refused_while_planning(self, site: Site) -> None:
        able = site.sandboxer.capabilities()
        for feature, spec in SPECS.items():
            assert feature in needed(PodSpec(**spec))
            if not able[feature].startswith("no"):
                refuse_unless_able(site.sandboxer.kind, able, {feature})
                continue
            with pytest.raises(Unsupported) as caught:
                refuse_unless_able(site.sandboxer.kind, able, {feature})
            assert caught.value.details == {"kind": site.sandboxer.kind, "feature": feature}
            assert caught.value.cause and caught.value.hint, feature

    @pytest.mark.parametrize(
        "feature", ["exec", "attach", "pause", "update", "stats", "signals", "checkpoint", "tty", "snapshot"]
    )
    async def test_what_is_not_declared_is_refused_by_the_call(self, site: Site, feature: str, tmp_path: Path) -> None:
        if not site.sandboxer.capabilities()[feature].startswith("no"):
            pytest.skip(f"{site.sandboxer.kind} declares {feature!r}: other tests prove it")
        task = await site.running("stubborn")
        tasks = site.sandboxer.tasks()
        calls: dict[str, Callable[[], Awaitable[Any]]] = {
            "exec": lambda: site.exec(task, "true"),
            "attach": lambda: tasks.attach(task.id, {"stdout": 1}),
            "pause": lambda: tasks.pause(task.id),
            "update": lambda: tasks.update(task.id, Resources(pids=5)),
            "stats": lambda: tasks.stats(task.id),
            "signals": lambda: tasks.kill(task.id, 10),
            "checkpoint": lambda: tasks.checkpoint(task.id, tmp_path),
            "tty": lambda: tasks.resize(task.id, 1, 1),
            "snapshot": lambda: site.sandboxer.snapshot(task.sandbox, tmp_path, meanwhile=_nothing),
        }
        with pytest.raises(Unsupported) as caught:
            await calls[feature]()
        assert caught.value.details["feature"] == feature
        assert not site.has_ended(task.id)

    # -- sandboxes ----------------------------------------------------------------------------------------------

    async def test_a_sandbox_comes_and_goes(self, site: Site) -> None:
        sandbox = await site.sandbox()
        await site.sandboxer.stop(sandbox, deadline_s=1)
        await site.sandboxer.delete(sandbox)

    async def test_stop_and_delete_are_idempotent_and_know_strangers(self, site: Site) -> None:
        sandbox = await site.sandbox()
        for _ in range(2):
            await site.sandboxer.stop(sandbox, deadline_s=1)
        for _ in range(2):
            await site.sandboxer.delete(sandbox)
        await site.sandboxer.stop("stranger", deadline_s=1)
        await site.sandboxer.delete("stranger")

    async def test_a_deleted_sandbox_can_be_made_again(self, site: Site) -> None:
        config = site.config()
        site.prepare(config)
        for _ in range(2):
            await site.sandboxer.create(config)
            await site.sandboxer.start(config.id)
            await site.sandboxer.delete(config.id)

    async def test_sandboxes_are_apart(self, site: Site) -> None:
        one, other = await site.running("sleep 60"), await site.running("sleep 60")
        await site.sandboxer.tasks().kill(one.id, 9)
        await site.end_of(one.id)
        assert not site.has_ended(other.id)

    async def test_many_at_once(self, site: Site) -> None:
        tasks = await asyncio.gather(*(site.running(f"exit {n}") for n in range(site.many)))
        ends = await asyncio.gather(*(site.end_of(task.id) for task in tasks))
        assert [end.code for end in ends] == list(range(site.many))

    async def test_pause_and_resume_of_a_sandbox(self, site: Site) -> None:
        site.needs("pause", "multi-container")
        sandbox = await site.sandbox()
        tasks = [site.task(sandbox, "sleep 2") for _ in range(2)]
        for task in tasks:
            await site.sandboxer.tasks().create(task)
        for task in tasks:
            await site.sandboxer.tasks().start(task.id)
        await site.sandboxer.pause(sandbox)
        await asyncio.sleep(2.2)
        assert not any(site.has_ended(task.id) for task in tasks)
        await site.sandboxer.resume(sandbox)
        assert [(await site.end_of(task.id)).code for task in tasks] == [0, 0]

    async def test_stats_of_a_sandbox(self, site: Site) -> None:
        site.needs("stats")
        task = await site.running("spin")
        await asyncio.sleep(0.05)
        stats = await site.sandboxer.stats(task.sandbox)
        assert stats.pids >= 1 and stats.cpu_usage_ns > 0 and abs(stats.at - time.time()) < 5

    async def test_a_sandbox_goes_on_from_a_snapshot(self, site: Site, tmp_path: Path) -> None:
        site.needs("snapshot")
        task = await site.running("sleep 2")
        called: list[bool] = []

        async def meanwhile() -> None:
            called.append(True)

        await asyncio.sleep(0.5)
        assert await site.sandboxer.snapshot(task.sandbox, tmp_path, meanwhile=meanwhile)
        assert called == [True] and not site.has_ended(task.id)
        config = site.config()
        site.prepare(config)
        site.infos[config.id] = await site.sandboxer.create(config)
        twin = site.task(config.id, "sleep 2")
        await site.sandboxer.tasks().create(twin)
        await site.sandboxer.restore(config.id, tmp_path, {twin.id: task.id})
        await site.sandboxer.tasks().start(twin.id)
        assert [(await site.end_of(one.id)).code for one in (task, twin)] == [0, 0]

    async def test_calls_about_a_sandbox_that_is_not_there(self, site: Site) -> None:
        site.needs("pause", "stats")
        for call in (site.sandboxer.pause, site.sandboxer.resume, site.sandboxer.stats):
            with pytest.raises(NotFound):
                await call("stranger")

    # -- tasks --------------------------------------------------------------------------------------------------

    async def test_a_created_task_does_not_run(self, site: Site) -> None:
        task = await site.created("exit 3")
        await asyncio.sleep(0.05)
        assert not site.has_ended(task.id)
        await site.sandboxer.tasks().start(task.id)
        assert (await site.end_of(task.id)).code == 3

    @pytest.mark.parametrize("code", [0, 1, 3, 127, 255])
    async def test_exit_codes(self, site: Site, code: int) -> None:
        task = await site.running(f"exit {code}")
        end = await site.end_of(task.id)
        assert (end.code, end.signal) == (code, 0)
        assert abs(end.at - time.time()) < 5

    async def test_the_exit_file_says_the_same(self, site: Site) -> None:
        task = await site.running("exit 9")
        end = await site.end_of(task.id)
        record = json.loads(task.exit_file.read_text())
        assert (record["task"], record["code"], record["signal"], record["at"]) == (task.id, 9, 0, end.at)

    async def test_a_task_id_is_taken_once(self, site: Site) -> None:
        task = await site.created("sleep 60")
        with pytest.raises(DrupeError) as caught:
            await site.sandboxer.tasks().create(task)
        assert isinstance(caught.value, AlreadyExists) or "exist" in str(caught.value)
        await site.sandboxer.tasks().start(task.id)
        assert not site.has_ended(task.id)

    async def test_a_missing_program(self, site: Site) -> None:
        with pytest.raises(NotFound, match="no-such-program") as caught:
            await site.running("no-such-program")
        assert caught.value.details["exit_code"] == "127"

    async def test_a_program_that_is_not_executable(self, site: Site) -> None:
        with pytest.raises(PermissionDenied, match="plain-file") as caught:
            await site.running("/bin/plain-file")
        assert caught.value.details["exit_code"] == "126"

    async def test_environment(self, site: Site) -> None:
        task = await site.running("printenv COLOUR", env=("COLOUR=deep blue",))
        await site.end_of(task.id)
        assert logged(task) == ["deep blue"]

    async def test_start_of_what_is_not_there_or_started(self, site: Site) -> None:
        with pytest.raises(DrupeError):
            await site.sandboxer.tasks().start("stranger")
        task = await site.running("sleep 60")
        with pytest.raises(DrupeError):
            await site.sandboxer.tasks().start(task.id)
        assert not site.has_ended(task.id)

    async def test_delete_is_idempotent_and_ends_what_lives(self, site: Site) -> None:
        task = await site.running("stubborn")
        for _ in range(2):
            await site.sandboxer.tasks().delete(task.id)
        await site.sandboxer.tasks().delete("stranger")
        with pytest.raises(NotFound):
            await site.sandboxer.tasks().kill(task.id, 9)

    async def test_a_deleted_task_can_be_made_again(self, site: Site) -> None:
        task = await site.running("exit 4")
        assert (await site.end_of(task.id)).code == 4
        await site.sandboxer.tasks().delete(task.id)
        site.exits.clear()
        await site.sandboxer.tasks().create(task)
        await site.sandboxer.tasks().start(task.id)
        assert (await site.end_of(task.id)).code == 4

    async def test_delete_of_one_that_was_never_started(self, site: Site) -> None:
        task = await site.created("sleep 60")
        await site.sandboxer.tasks().delete(task.id)

    async def test_several_containers_in_one_sandbox(self, site: Site) -> None:
        site.needs("multi-container")
        sandbox = await site.sandbox()
        tasks = [site.task(sandbox, f"exit {n}") for n in (1, 2, 3)]
        for task in tasks:
            await site.sandboxer.tasks().create(task)
        for task in reversed(tasks):
            await site.sandboxer.tasks().start(task.id)
        assert [(await site.end_of(task.id)).code for task in tasks] == [1, 2, 3]

    async def test_one_that_cannot_be_started_leaves_nothing_to_its_neighbours(self, site: Site) -> None:
        site.needs("multi-container")
        sandbox = await site.sandbox()
        wrong, other = site.task(sandbox, "no-such-program"), site.task(sandbox, "sleep 60")
        with pytest.raises(NotFound):
            await site.sandboxer.tasks().create(wrong)
            await site.sandboxer.tasks().start(wrong.id)
        await site.sandboxer.tasks().delete(wrong.id)
        await site.sandboxer.tasks().create(other)
        await site.sandboxer.tasks().start(other.id)
        await site.sandboxer.tasks().kill(other.id, 9)
        assert (await site.end_of(other.id)).code == 137

    # -- output and input ---------------------------------------------------------------------------------------

    async def test_the_log_is_complete_when_the_end_is_told(self, site: Site) -> None:
        task = await site.running("seq 2000")
        await site.end_of(task.id)
        assert logged(task) == [str(n) for n in range(1, 2001)]

    async def test_streams_are_told_apart_in_the_log(self, site: Site) -> None:
        task = await site.running("complain about it")
        assert (await site.end_of(task.id)).code == 1
        assert task.log is not None and " stderr F about it\n" in Path(task.log.path).read_text()

    async def test_attached_before_the_start_no_byte_is_missed(self, site: Site) -> None:
        site.needs("attach")
        task = await site.created("seq 5000")
        out, out_w = os.pipe()
        detached = await site.sandboxer.tasks().attach(task.id, {"stdout": out_w})
        os.close(out_w)
        await site.sandboxer.tasks().start(task.id)
        assert await read_to_end(out) == b"".join(b"%d\n" % n for n in range(1, 5001))
        await site.end_of(task.id)
        await asyncio.wait_for(_awaited(detached), ENDS_WITHIN_S)

    async def test_told_of_at_creation_they_are_attached_once(self, site: Site) -> None:
        site.needs("attach")
        (out, out_w), (other, other_w) = os.pipe(), os.pipe()
        fds = {"stdout": out_w}
        task = await site.created("seq 5000", fds=fds)
        tasks = site.sandboxer.tasks()
        await tasks.attach(task.id, {"stdout": other_w})  # somebody else, who is quicker
        detached = await tasks.attach(task.id, fds)
        os.close(out_w)
        os.close(other_w)
        await tasks.start(task.id)
        lines = b"".join(b"%d\n" % n for n in range(1, 5001))
        assert await asyncio.gather(read_to_end(out), read_to_end(other)) == [lines, lines]
        await site.end_of(task.id)
        await asyncio.wait_for(_awaited(detached), ENDS_WITHIN_S)

    async def test_input_and_its_end(self, site: Site) -> None:
        site.needs("attach")
        task = await site.created("cat", stdin=True)
        (to, to_w), (out, out_w) = os.pipe(), os.pipe()
        await site.sandboxer.tasks().attach(task.id, {"stdin": to, "stdout": out_w})
        os.close(to)
        os.close(out_w)
        await site.sandboxer.tasks().start(task.id)
        os.write(to_w, b"hello\n")
        os.close(to_w)
        assert await read_to_end(out) == b"hello\n"
        assert (await site.end_of(task.id)).code == 0

    async def test_input_that_nobody_feeds_is_closed_on_request(self, site: Site) -> None:
        site.needs("attach")
        task = await site.running("cat", stdin=True)
        await asyncio.sleep(0.05)
        assert not site.has_ended(task.id)
        await site.sandboxer.tasks().close_stdin(task.id)
        assert (await site.end_of(task.id)).code == 0

    async def test_without_stdin_input_is_at_its_end(self, site: Site) -> None:
        task = await site.running("cat")
        assert (await site.end_of(task.id)).code == 0

    async def test_a_reader_that_goes_away_harms_nobody(self, site: Site) -> None:
        site.needs("attach")
        task = await site.created("seq 3000")
        out, out_w = os.pipe()
        await site.sandboxer.tasks().attach(task.id, {"stdout": out_w})
        os.close(out_w)
        os.close(out)
        await site.sandboxer.tasks().start(task.id)
        assert (await site.end_of(task.id)).code == 0
        assert logged(task)[-1] == "3000"

    async def test_two_readers_get_the_same(self, site: Site) -> None:
        site.needs("attach")
        task = await site.created("seq 500")
        readers = []
        for _ in range(2):
            out, out_w = os.pipe()
            await site.sandboxer.tasks().attach(task.id, {"stdout": out_w})
            os.close(out_w)
            readers.append(asyncio.ensure_future(_awaited(read_to_end(out))))
        await site.sandboxer.tasks().start(task.id)
        first, second = await asyncio.gather(*readers)
        assert first == second and first.endswith(b"500\n")

    async def test_a_terminal_and_its_size(self, site: Site) -> None:
        site.needs("tty", "attach")
        task = await site.created("size", tty=True)
        (to, to_w), (out, out_w) = os.pipe(), os.pipe()
        await site.sandboxer.tasks().attach(task.id, {"stdin": to, "stdout": out_w})
        os.close(to)
        os.close(out_w)
        await site.sandboxer.tasks().start(task.id)
        await site.sandboxer.tasks().resize(task.id, 33, 111)
        os.write(to_w, b"\n")
        said = await read_to_end(out)
        assert (b"\r\n" if site.limited("tty") else b"33 111\r\n") in said  # a terminal that has no size ends lines too
        assert (await site.end_of(task.id)).code == 0
        os.close(to_w)

    # -- signals, pause, limits ---------------------------------------------------------------------------------

    async def test_sigkill(self, site: Site) -> None:
        task = await site.running("stubborn")
        await site.sandboxer.tasks().kill(task.id, 9)
        end = await site.end_of(task.id)
        assert (end.code, end.signal) == (137, 9)

    async def test_sigterm_to_one_that_waits_for_it(self, site: Site) -> None:
        task = await site.running("patient")
        await site.ready(task)

        async def term() -> None:
            while not site.has_ended(task.id):
                try:
                    await site.sandboxer.tasks().kill(task.id, 15)
                except NotFound:
                    return
                await asyncio.sleep(0.02)

        await asyncio.wait_for(term(), ENDS_WITHIN_S)
        assert (await site.end_of(task.id)).code == (143 if site.limited("signals") else 0)  # 143: it cannot catch it

    async def test_a_signal_to_what_has_ended(self, site: Site) -> None:
        task = await site.running("true")
        await site.end_of(task.id)
        with pytest.raises(NotFound):
            await site.sandboxer.tasks().kill(task.id, 9)
        with pytest.raises(NotFound):
            await site.sandboxer.tasks().kill("stranger", 9)

    async def test_kill_of_one_that_was_never_started(self, site: Site) -> None:
        task = await site.created("sleep 60")
        await site.sandboxer.tasks().kill(task.id, 9)
        assert (await site.end_of(task.id)).code == 137

    async def test_everything_reaches_execs_too(self, site: Site) -> None:
        site.needs("exec")
        task = await site.running("stubborn")
        exec_id = await site.exec(task, "sleep 60")
        await site.sandboxer.tasks().kill(task.id, 9, everything=True)
        assert (await site.end_of(task.id, exec_id)).code == 137
        assert (await site.end_of(task.id)).code == 137

    async def test_pause_and_resume_of_a_task(self, site: Site) -> None:
        site.needs("pause")
        task = await site.running("sleep 2")
        await site.sandboxer.tasks().pause(task.id)
        await asyncio.sleep(2.2)
        assert not site.has_ended(task.id)
        await site.sandboxer.tasks().resume(task.id)
        assert (await site.end_of(task.id)).code == 0

    async def test_a_paused_task_uses_no_processor(self, site: Site) -> None:
        site.needs("pause", "stats")
        task = await site.running("spin")
        await site.sandboxer.tasks().pause(task.id)
        before = (await site.sandboxer.tasks().stats(task.id)).cpu_usage_ns
        await asyncio.sleep(0.1)
        assert (await site.sandboxer.tasks().stats(task.id)).cpu_usage_ns - before < 5_000_000
        await site.sandboxer.tasks().resume(task.id)
        await asyncio.sleep(0.1)
        assert (await site.sandboxer.tasks().stats(task.id)).cpu_usage_ns - before > 5_000_000

    async def test_a_paused_task_can_be_deleted(self, site: Site) -> None:
        site.needs("pause")
        task = await site.running("sleep 60")
        await site.sandboxer.tasks().pause(task.id)
        await site.sandboxer.tasks().delete(task.id)

    async def test_update_is_seen_in_stats(self, site: Site) -> None:
        site.needs("update", "stats")
        task = await site.running("sleep 60")
        await site.sandboxer.tasks().update(task.id, Resources(memory_bytes=64 << 20, pids=50))
        stats = await site.sandboxer.tasks().stats(task.id)
        assert (stats.memory_limit_bytes, stats.pids_limit) == (64 << 20, 50)

    async def test_pids(self, site: Site) -> None:
        task = await site.created("sleep 60")
        await site.sandboxer.tasks().start(task.id)
        assert len(await site.sandboxer.tasks().pids(task.id)) == 1

    # -- exec ---------------------------------------------------------------------------------------------------

    async def test_exec_runs_with_the_descriptors_given(self, site: Site) -> None:
        site.needs("exec")
        task = await site.running("sleep 60")
        (to, to_w), (out, out_w) = os.pipe(), os.pipe()
        exec_id = await site.exec(task, "cat", fds={"stdin": to, "stdout": out_w})
        os.close(to)
        os.close(out_w)
        os.write(to_w, b"through")
        os.close(to_w)
        assert await read_to_end(out) == b"through"
        assert (await site.end_of(task.id, exec_id)).code == 0
        assert not site.has_ended(task.id)

    @pytest.mark.parametrize("code", [0, 5])
    async def test_exec_exit_codes(self, site: Site, code: int) -> None:
        site.needs("exec")
        task = await site.running("sleep 60")
        exec_id = await site.exec(task, f"exit {code}")
        assert (await site.end_of(task.id, exec_id)).code == code

    async def test_exec_of_a_missing_program(self, site: Site) -> None:
        site.needs("exec")
        task = await site.running("sleep 60")
        with pytest.raises(NotFound):
            await site.exec(task, "no-such-program")
        await site.sandboxer.tasks().kill(task.id, 9)
        assert (await site.end_of(task.id)).code == 137

    async def test_exec_is_killed_alone(self, site: Site) -> None:
        site.needs("exec")
        task = await site.running("sleep 60")
        exec_id = await site.exec(task, "sleep 60")
        await site.sandboxer.tasks().kill(task.id, 9, exec_id=exec_id)
        assert (await site.end_of(task.id, exec_id)).code == 137
        assert not site.has_ended(task.id)

    async def test_exec_with_a_terminal(self, site: Site) -> None:
        site.needs("exec", "tty")
        task = await site.running("sleep 60")
        out, out_w = os.pipe()
        exec_id = await site.exec(task, "tty", fds={"stdout": out_w}, tty=True, rows=24, cols=80)
        os.close(out_w)
        said = await read_to_end(out)
        named = said.startswith(b"/dev/")  # one without a name is no terminal to tty(1), and ends lines as one
        assert named or (site.limited("tty") and said.endswith(b"\r\n"))
        assert (await site.end_of(task.id, exec_id)).code == (0 if named else 1)

    async def test_the_end_of_a_task_ends_its_execs(self, site: Site) -> None:
        site.needs("exec")
        task = await site.running("stubborn")
        exec_id = await site.exec(task, "sleep 60")
        await site.sandboxer.tasks().kill(task.id, 9)
        assert (await site.end_of(task.id)).code == 137
        assert (await site.end_of(task.id, exec_id)).code == 137

    async def test_exec_in_what_does_not_run(self, site: Site) -> None:
        site.needs("exec")
        task = await site.running("true")
        await site.end_of(task.id)
        with pytest.raises((InvalidState, DrupeError)):
            await site.exec(task, "true")

    # -- recovery -----------------------------------------------------------------------------------------------

    async def test_recover_finds_what_lives_and_what_ended(self, site: Site) -> None:
        living, created = await site.running("sleep 60"), await site.created("sleep 60")
        ended = await site.running("exit 6")
        await site.end_of(ended.id)
        sandboxer = await site.reopen()
        for task in (living, created, ended):
            sandboxer.tasks().know(task.id, cgroup=task.cgroup, bundle=task.bundle)
        configs = {task.sandbox: self._config(site, task) for task in (living, created, ended)}
        found = await sandboxer.recover(configs)
        assert (found[living.id].started, found[living.id].exit) == (True, None)
        assert (found[created.id].started, found[created.id].exit) == (False, None)
        assert found[ended.id].exit is not None and found[ended.id].exit.code == 6
        await sandboxer.tasks().start(created.id)
        site.exits.clear()
        for task in (living, created):
            await sandboxer.tasks().kill(task.id, 9)
            assert (await site.end_of(task.id)).code == 137

    async def test_recovered_tasks_can_be_served_on(self, site: Site) -> None:
        site.needs("exec", "pause", "stats")
        task = await site.running("sleep 60")
        sandboxer = await site.reopen()
        sandboxer.tasks().know(task.id, cgroup=task.cgroup, bundle=task.bundle)
        await sandboxer.recover({task.sandbox: self._config(site, task)})
        await sandboxer.tasks().pause(task.id)
        await sandboxer.tasks().resume(task.id)
        assert (await sandboxer.tasks().stats(task.id)).pids >= 1  # threads count
        exec_id = await site.exec(task, "exit 8")
        assert (await site.end_of(task.id, exec_id)).code == 8
        await sandboxer.tasks().delete(task.id)

    @staticmethod
    def _config(site: Site, task: TaskConfig) -> SandboxConfig:
        directory = site.directory / task.sandbox
        spec = decode(PodSpec, {"network": {"mode": "none"}}, where="test")
        cgroup = f"{site.cgroup_parent}/{task.sandbox}"
        return SandboxConfig(id=task.sandbox, spec=spec, dir=directory, cgroup=cgroup, hostname="h")


async def _nothing() -> None:
    """For a snapshot without files."""


async def _awaited(awaitable: Awaitable[Any]) -> Any:
    return await awaitable
