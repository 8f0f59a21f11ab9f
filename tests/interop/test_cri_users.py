"""User namespaces of pods, as Kubernetes has them made for `hostUsers: false`. The oracle is containerd's own handler
with a runc that knows idmapped mounts (1.2 and later)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from drupe.rpc.cri import api_pb2 as api
from framework.containerds import SOCKET
from framework.cri_host import CriHost, needs_handler, opened
from framework.leaks import wait_until

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]
FOREVER = ("sleep", "100000")
FIRST, COUNT = 1_048_576, 65_536
IDS = [{"container_id": 0, "host_id": FIRST, "length": COUNT}]
FULL = bool(os.environ.get("DRUPE_TEST_INTEROP"))
HANDLERS = FULL * ["newer-runc"] + ["drupe-runc"] + FULL * ["drupe-by-shim"]


@contextlib.contextmanager
def open_directory() -> Iterator[Path]:
    """One that other ids than ours may walk: pytest's own are closed to them."""
    with tempfile.TemporaryDirectory(prefix="drupe-test-") as name:
        Path(name).chmod(0o711)
        yield Path(name)


@pytest.fixture(scope="module")
def host(generation: str, busybox: Path) -> Iterator[CriHost]:
    with open_directory() as directory:
        yield from opened(directory, generation, busybox)


@pytest.fixture
def own_host(generation: str, busybox: Path) -> Iterator[CriHost]:
    """For one test alone, which harms it."""
    with open_directory() as directory:
        yield from opened(directory, generation, busybox)


@pytest.fixture(params=HANDLERS)
def handler(request: pytest.FixtureRequest) -> str:
    """The oracle first."""
    return needs_handler(request.param)


def users(*, ids: Any = IDS, **options: int) -> dict[str, Any]:
    """`linux` of a pod, or of a container in it, with a user namespace. options: of its namespaces."""
    own = {"mode": api.POD, "uids": ids, "gids": ids}
    spaces = {"network": api.POD, "pid": api.CONTAINER, "ipc": api.POD, "userns_options": own, **options}
    return {"security_context": {"namespace_options": spaces}}


def volume(path: Path, target: str, *, ids: Any = IDS) -> dict[str, Any]:
    path.mkdir()
    path.chmod(0o777)
    (path / "before").touch()
    return {"container_path": target, "host_path": str(path), "uidMappings": ids, "gidMappings": ids}


@pytest.mark.parametrize("handler", HANDLERS + FULL * ["drupe-by-oci"], indirect=True)
def test_ids_of_a_pod(cri: CriHost, handler: str, tmp_path: Path) -> None:
    pod = cri.pod("ids", handler, linux=users())
    mapped, plain = tmp_path / "mapped", tmp_path / "plain"
    mounts = [volume(mapped, "/mapped"), volume(plain, "/plain", ids=[])]
    main = cri.run(pod, "main", *FOREVER, linux=users(), mounts=mounts)
    assert cri.cri.exec(main, "cat", "/proc/self/uid_map", "/proc/self/gid_map").split() == 2 * [
        "0",
        "1048576",
        "65536",
    ]
    assert _owners(cri, main, "/", "/etc/passwd", "/bin/busybox", "/etc/hosts") == {"0:0"}
    cri.cri.exec(
        main, "sh", "-c", "touch /new /etc/passwd /dev/shm/new /mapped/new /plain/new; chown 5:6 /mapped/new /new"
    )
    assert _owners(cri, main, "/new", "/mapped/new") == {"5:6"}
    assert _owners(cri, main, "/mapped/before", "/dev/shm/new", "/plain/new") == {"0:0"}
    assert _owners(cri, main, "/plain/before", "/sys/kernel") == {"65534:65534"}  # root of the host is nobody here
    assert [(_owner(mapped / name), _owner(plain / name)) for name in ("before", "new")] == [
        ((0, 0), (0, 0)), ((5, 6), (FIRST, FIRST)),
    ]  # fmt: skip
    assert "eth0" in cri.cri.exec(main, "ls", "/sys/class/net")
    pid = json.loads(cri.cri.ContainerStatus(container_id=main, verbose=True).info["info"])["pid"]
    assert _owner(Path(f"/proc/{pid}")) == (FIRST, FIRST)
    cri.cri.StopContainer(container_id=main, timeout=0)
    cri.cri.remove_pod(pod[0])
    assert not Path(f"/proc/{pid}").exists()


def _owners(cri: CriHost, container: str, *paths: str) -> set[str]:
    return set(cri.cri.exec(container, "stat", "-c", "%u:%g", *paths).split())


def _owner(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_uid, found.st_gid


@pytest.mark.parametrize("handler", HANDLERS + FULL * ["drupe-by-oci"], indirect=True)
def test_what_containers_of_a_pod_share(cri: CriHost, handler: str) -> None:
    """The namespace itself, and with it the rights in the network and over one another's processes."""
    shared = users(pid=api.POD)
    pod = cri.pod("shared", handler, linux=shared | {"sysctls": {"net.ipv4.ip_unprivileged_port_start": "80"}})
    first = cri.run(pod, "first", *FOREVER, linux=shared)
    user = {"security_context": shared["security_context"] | {"run_as_user": {"value": 1000}, "readonly_rootfs": True}}
    second = cri.run(pod, "second", "sleep", "99999", linux=user)
    space = ("sh", "-c", "cd /proc/self/ns; for each in user net ipc; do readlink $each; done")
    assert cri.cri.exec(first, *space) == cri.cri.exec(second, *space)
    assert cri.cri.exec(second, "id", "-u") == "1000\n"
    assert cri.cri.ExecSync(container_id=second, cmd=["touch", "/x"], timeout=20).exit_code == 1
    assert cri.cri.exec(first, "cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start") == "80\n"
    seen = cri.wait_seen(first, "sleep 99999")
    other = next(line.split()[0] for line in seen.splitlines() if "sleep 99999" in line)
    cri.cri.exec(first, "kill", other)
    assert cri.cri.wait_exited(second).exit_code == 143
    assert cri.cri.state(first) == "RUNNING"


def test_handlers_tell_that_they_can(cri: CriHost) -> None:
    """Kubernetes gives such pods to no handler that does not. containerd asks runtimes of runc's type alone."""
    told = {one.name: one.features.user_namespaces for one in cri.cri.Status().runtime_handlers}
    assert told["drupe-runc"] and not told["drupe-gvisor"]


def test_what_is_refused(cri: CriHost, tmp_path: Path) -> None:
    """By name, and nothing is left."""

    def refusal(handler: str, **linux: Any) -> str:
        with pytest.raises(grpc.RpcError) as failure:
            cri.pod("refused", handler, linux=linux)
        return str(failure.value.details())  # type: ignore[attr-defined]

    for kind in ("gvisor", "appkernel", "vm"):
        assert "user namespace" in refusal(needs_handler(f"drupe-{kind}"), **users()), kind
    assert not cri.pods_of_drupe()
    pod = cri.pod("other", "drupe-runc", linux=users())
    others = [{"container_id": 0, "host_id": 3 * FIRST, "length": COUNT}]
    with pytest.raises(grpc.RpcError) as failure:
        cri.run(pod, "main", *FOREVER, linux=users(), mounts=[volume(tmp_path / "v", "/v", ids=others)])
    assert "uidMappings differ from those of the pod" in failure.value.details()  # type: ignore[attr-defined]
    assert cri.cri.exec(cri.run(pod, "fine", *FOREVER, linux=users()), "id", "-u") == "0\n"


@pytest.mark.skipif(not FULL, reason="has a host of its own: make test-interop")
def test_they_outlive_restarts_of_both(own_host: CriHost) -> None:
    cri = own_host
    pod = cri.pod("outlives", "drupe-runc", linux=users())
    lives = cri.run(pod, "lives", *FOREVER, linux=users())
    cri.kill()
    cri.inside("rm", SOCKET)  # it would look as if somebody answered
    cri.start()
    wait_until(cri.ready, what="the CRI is ready", timeout_s=30.0)
    cri.end_daemon(signal.SIGKILL)
    cri.start_daemon()
    wait_until(lambda: _is_ready(cri, pod[0]), what="the pod is known again", timeout_s=30.0)
    later = cri.run(pod, "later", *FOREVER, linux=users())
    space = ("readlink", "/proc/self/ns/user")
    assert cri.cri.exec(lives, *space) == cri.cri.exec(later, *space)
    assert _owners(cri, later, "/", "/etc/hosts", "/bin/busybox") == {"0:0"}


def _is_ready(cri: CriHost, pod: str) -> bool:
    with contextlib.suppress(grpc.RpcError):
        return bool(cri.cri.pod_state(pod) == "READY")
    return False
