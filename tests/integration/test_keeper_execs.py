"""What the keeper starts in cgroups and in containers: helpers that join cgroups, and execs without an OCI runtime."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drupe import errors
from drupe.keeper.records import Created, Io
from drupe.resources.cgroups import detect
from drupe.spec import Resources
from framework.keeper_site import Pipe, Site, in_site, read_all
from framework.leaks import CGROUP_PARENT, wait_until
from framework.probes import needs_keeper, needs_program
from framework.residue import children

pytestmark = pytest.mark.root


@pytest.fixture(autouse=True)
def needs() -> None:
    needs_keeper()
    needs_program("crun", "busybox")


def test_a_helper_joins_cgroups_before_it_starts(tmp_path: Path, cgroup: str) -> None:
    files = detect().join_files(cgroup)
    if not files:
        pytest.skip("cgroup v2: the OCI runtime moves its children itself")

    async def scenario(here: Site) -> None:
        detect().create(cgroup, Resources())
        await here.plain("t", "cat /proc/self/cgroup", join=files)
        assert (await here.ended("t")).code == 0
        assert here.output("t").count(f":{cgroup}\n") == len(files)
        with pytest.raises(errors.HelperFailed, match="exited with 127") as failed:
            await here.plain("lost", "true", join=[files[0].replace("tasks", "no-such-file")])
        assert "cannot join cgroup" in failed.value.cause

    in_site(tmp_path, scenario)


@pytest.fixture
def cgroup() -> Iterator[str]:
    path = f"/{CGROUP_PARENT}/joined"
    yield path
    detect().kill_all(path)
    detect().delete(f"/{CGROUP_PARENT}")


# ── execs ──

ROOT = {
    "argv": ["sh", "-c", "echo $$; exit 3"],
    "env": ["PATH=/bin"],
    "cwd": "/",
    "uid": 0,
    "gid": 0,
    "groups": [],
    "capabilities": {},
    "no_new_privileges": True,
}


async def started(here: Site, name: str, **options: Any) -> Created:
    """An exec in the container "t"; options: fields of the process, and `seccomp`, `fds`, `container`."""
    own = {key: options.pop(key) for key in ("seccomp", "fds", "timeout_s") if key in options}
    container = options.pop("container", "t")
    exit_file, io = here.exit_file(name), Io(mode="fds")
    return await here.keeper.exec_task(name, container, ROOT | options, exit_file=exit_file, io=io, join=[], **own)


def test_an_exec_is_a_task(tmp_path: Path) -> None:
    async def scenario(here: Site) -> None:
        await here.container("t", "sleep 60")
        with Pipe() as pipe:
            created = await started(here, "e", fds={"stdout": pipe.write_end})
            pipe.shut(pipe.write_end)
            assert (await read_all(pipe.read_end)).strip().isdigit()
        record = await here.ended("e")
        assert (record.code, record.pid) == (3, created.pid)
        assert json.loads(here.exit_file("e").read_text())["code"] == 3
        assert [task.task for task in await here.keeper.list()] == ["e", "t"]

    in_site(tmp_path, scenario)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no such program": ({"argv": ["nothing"]}, "executable file `nothing` not found"),
    "no program": ({"argv": ["/proc"]}, "open executable `/proc`: Permission denied"),
    "no such directory": ({"cwd": "/nowhere"}, "chdir to `/nowhere`: No such file"),
    "a limit above the hard one": ({"rlimits": [[7, 20, 10]]}, "cannot set resource limit 7"),
    "an empty filter": ({"seccomp": Path("/dev/null")}, "is empty"),
    "no filter": ({"seccomp": Path("/no/filter")}, "cannot read filter"),
    "nobody there": ({"container": "x"}, "the container is not running"),
    "no argv": ({"argv": []}, "argv"),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_exec_that_cannot_be(tmp_path: Path, name: str) -> None:
    wrong, words = WRONG[name]

    async def scenario(here: Site) -> None:
        await here.container("t", "sleep 60")
        with pytest.raises(errors.DrupeError) as failed:
            await started(here, "e", **wrong)
        assert words in f"{failed.value} {failed.value.cause}"
        assert [task.task for task in await here.keeper.list()] == ["t"]
        wait_until(lambda: len(children(here.keeper.pid)) == 1, what="nobody is left of the exec")

    in_site(tmp_path, scenario)


def test_an_exec_in_a_frozen_container_is_given_up(tmp_path: Path, cgroup: str) -> None:
    """It stands still at the cgroup's door; the deadline ends it."""
    tree = detect()
    if not tree.join_files(cgroup):
        pytest.skip("cgroup v2: crun starts every exec")

    async def scenario(here: Site) -> None:
        tree.create(cgroup, Resources())
        await here.container("t", "sleep 60")
        tree.freeze(cgroup)
        with pytest.raises(errors.DeadlineExceeded):
            await here.keeper.exec_task(
                "e",
                "t",
                ROOT,
                exit_file=here.exit_file("e"),
                io=Io(mode="fds"),
                join=tree.join_files(cgroup),
                timeout_s=0.3,
            )
        tree.thaw(cgroup)
        wait_until(lambda: tree.pids(cgroup) == [], what="the process is gone")

    in_site(tmp_path, scenario)
