"""Tasks that containerd has written down and that go on: by runc with CRIU, by gVisor, by the application kernel. What
containerd's own shim does with runc is the oracle."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from framework.containerds import IMAGE, VERSIONS, Containerd, serving
from framework.cri_host import DRUPE_CONFIG, CriHost, opened
from framework.criu import working_criu
from framework.leaks import wait_until
from framework.probes import needs_program, only_interop

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

ORACLE = "io.containerd.runc.v2"
KINDS = {"runc": "drupe-runc", "gvisor": "drupe-gvisor", "appkernel": "drupe-appkernel"}
ALL = bool(os.environ.get("DRUPE_TEST_INTEROP"))
EVERY = tuple(VERSIONS) if ALL else ("2.1",)
AGAIN = ("again", "more")[: 1 + ALL]  # as often as one likes
ASKING = ("task", "exec", "--exec-id", "e")
# what it drew when it began is in its memory alone
# it rests long enough to be written down between two rounds: files that are open then must be there afterwards, too
DRAWS = "read drawn </proc/sys/kernel/random/uuid; while :; do echo $drawn >/new; mv /new /drawn; sleep 0.5; done"
HAS_DRAWN = "until test -e /drawn; do sleep 0.1; done"


@pytest.fixture(scope="module", params=EVERY)
def containerd(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, busybox: Path
) -> Iterator[Containerd]:
    """On a node that was told to use runc, with a CRIU that works here, where there is one."""
    directory = tmp_path_factory.mktemp("c")
    (directory / "drupe.toml").write_text('[kinds.runc]\nprogram = "runc"\n')
    criu, _ = working_criu()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{criu and criu.parent}:{os.environ['PATH']}")
        yield from serving(directory, request.param, busybox, drupe_config=directory / "drupe.toml")


@pytest.fixture(params=[*KINDS, "oracle"])
def runtime(request: pytest.FixtureRequest) -> str:
    """What can write down what it runs."""
    if request.param == "gvisor":
        needs_program("runsc")
    if request.param in ("runc", "oracle") and (why := working_criu()[1]):
        pytest.skip(why)
    return ORACLE if request.param == "oracle" else f"io.containerd.{KINDS[request.param]}.v2"


def test_it_goes_on_from_there(containerd: Containerd, runtime: str) -> None:
    """A second container is where the first one was, with its files, and the first goes on."""
    ctr = containerd.ctr
    ctr("run", "-d", "--runtime", runtime, IMAGE, "c", "sh", "-c", DRAWS)
    wait_until(lambda: containerd.try_ctr(*ASKING, "c", "cat", "/drawn").returncode == 0, what="it has drawn")
    drawn = ctr(*ASKING, "c", "cat", "/drawn")
    ctr("containers", "checkpoint", "--task", "--rw", "--image", "c", "checkpoint:1")
    assert _tells(containerd, "c") == drawn, "it goes on"
    ctr("task", "kill", "--signal", "SIGKILL", "c")
    for name in AGAIN:
        ctr("containers", "restore", "--live", "--rw", name, "checkpoint:1", check=False)
        assert _tells(containerd, name) == drawn
        ctr("task", "kill", "--signal", "SIGKILL", name)
        wait_until(lambda: "RUNNING" not in ctr("task", "ls"), what="its end")
    for name in ("c", *AGAIN):
        ctr("task", "rm", "--force", name, check=False)
        ctr("container", "rm", name)
    ctr("images", "rm", "checkpoint:1")


@pytest.fixture
def checkpointing(tmp_path_factory: pytest.TempPathFactory, busybox: Path) -> Iterator[CriHost]:
    """A host whose containerd serves the CRI, on a node that was told to use runc."""
    criu, why = working_criu()
    if criu is None:
        pytest.skip(why)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{criu.parent}:{os.environ['PATH']}")
        patch.setattr("framework.cri_host.DRUPE_CONFIG", f'{DRUPE_CONFIG}[kinds.runc]\nprogram = "runc"\n')
        yield from opened(tmp_path_factory.mktemp("c"), "2.1", busybox)


@only_interop("has a host of its own")
def test_a_container_of_the_cri(checkpointing: CriHost, tmp_path: Path) -> None:
    """What is in the archive, beside what only one of them leaves there, is the same; the container goes on."""
    cri = checkpointing
    names = {}
    for handler in ("runc", "drupe-runc"):
        container = cri.run(cri.pod(f"of-{handler}", handler), "main", "sh", "-c", DRAWS)
        cri.cri.exec(container, "sh", "-c", HAS_DRAWN)
        archive = tmp_path / f"{handler}.tar"
        cri.cri.CheckpointContainer(container_id=container, location=str(archive), timeout=100)
        with tarfile.open(archive) as files:
            names[handler] = {name for name in files.getnames() if not any(map(str.isdigit, name))}
        assert cri.cri.exec(container, "cat", "/drawn") and cri.cri.state(container) == "RUNNING"
    assert names["runc"] == names["drupe-runc"]
    shared = cri.run(cri.pod("kernel", "drupe-appkernel"), "main", "sleep", "1000")
    with pytest.raises(grpc.RpcError, match="shares its kernel with others"):
        cri.cri.CheckpointContainer(container_id=shared, location=str(tmp_path / "k.tar"), timeout=100)


@only_interop("has a host of its own")
def test_a_container_from_an_archive(checkpointing: CriHost, tmp_path: Path) -> None:
    """As `kubelet` restores one: an archive is the new container's image. containerd pulls the old one's image by its
    digest, without what it is told of registries. With a sandboxer of another program's it looks for a shim."""
    cri = checkpointing
    image = f"{cri.serve_registry()}/busybox:latest"
    assert cri.drupe("image", "tag", "busybox", image).returncode == 0
    cri.push(image)
    cri.cri.PullImage(image={"image": image})
    for handler in ("runc", "drupe-by-oci", "drupe-by-shim", "drupe-runc"):
        container = cri.run(cri.pod(f"of-{handler}", handler), "main", "sh", "-c", DRAWS, image=image)
        cri.cri.exec(container, "sh", "-c", HAS_DRAWN)
        drawn, archive = cri.cri.exec(container, "cat", "/drawn"), str(tmp_path / f"{handler}.tar")
        cri.cri.CheckpointContainer(container_id=container, location=archive, timeout=100)
        cri.cri.StopContainer(container_id=container, timeout=0)
        again = cri.pod(f"again-{handler}", handler)
        if handler == "drupe-runc":
            with pytest.raises(grpc.RpcError, match="can't find shim for sandbox"):
                cri.run(again, "main", "sleep", "1000", image=archive)
        else:
            assert cri.cri.exec(cri.run(again, "main", "sleep", "1000", image=archive), "cat", "/drawn") == drawn


def _tells(containerd: Containerd, name: str) -> str:
    """What a task writes from now on."""
    gone = lambda: containerd.try_ctr(*ASKING, name, "rm", "/drawn").returncode == 0  # noqa: E731
    wait_until(gone, what="it runs", timeout_s=60)
    there = lambda: containerd.try_ctr(*ASKING, name, "cat", "/drawn").returncode == 0  # noqa: E731
    wait_until(there, what="it goes on", timeout_s=60)
    return containerd.ctr(*ASKING, name, "cat", "/drawn")
