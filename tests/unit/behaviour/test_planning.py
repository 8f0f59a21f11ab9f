"""Bad input: each has one clear error, raised before anything is made. And how objects are named and found."""

from __future__ import annotations

from pathlib import Path

import pytest

from drupe.errors import AlreadyExists, DrupeError, InvalidArgument, NotFound, Unsupported
from drupe.runtime.names import new_id, new_name
from drupe.spec import (
    ContainerSpec,
    Device,
    Hook,
    Hooks,
    Mount,
    Namespaces,
    NetworkSpec,
    PodSpec,
    PortMapping,
    SecuritySpec,
    UserNamespace,
    decode,
)
from framework.bench import Bench

pytestmark = pytest.mark.usefixtures("planned")
C = ContainerSpec(image="busybox", argv=("sleep", "60"))


def pod(**fields: object) -> PodSpec:
    return PodSpec(**{"sandbox": "fake", "containers": (C,), **fields})


def with_container(**fields: object) -> PodSpec:
    return pod(containers=(ContainerSpec(**{"image": "busybox", "argv": ("sleep", "60"), **fields}),))


def with_mount(**fields: object) -> PodSpec:
    return with_container(mounts=(Mount(**fields),))


TWICE = (Mount(type="tmpfs", target="/a"), Mount(type="tmpfs", target="/b/../a/"))

BAD: list[tuple[PodSpec, type[DrupeError], str]] = [
    (pod(name="a/b"), InvalidArgument, "bad pod name 'a/b'"),
    (pod(name=""), InvalidArgument, "bad pod name ''"),
    (pod(name="-x"), InvalidArgument, "bad pod name '-x'"),
    (pod(name="x" * 129), InvalidArgument, "bad pod name"),
    (pod(id="../etc"), InvalidArgument, "bad pod id '../etc'"),
    (pod(id="a.b"), InvalidArgument, "bad pod id 'a.b'"),
    (pod(namespace="no/way"), InvalidArgument, "bad namespace name 'no/way'"),
    (with_container(id="x y"), InvalidArgument, "bad container id 'x y'"),
    (with_container(id="shm"), InvalidArgument, "container id 'shm' is taken by the runtime itself"),
    (with_container(name="no spaces"), InvalidArgument, "bad container name 'no spaces'"),
    (pod(hostname="under_score"), InvalidArgument, "bad hostname 'under_score'"),
    (pod(hostname="a" * 65), InvalidArgument, "bad hostname"),
    (pod(hostname="a..b"), InvalidArgument, "bad hostname 'a..b'"),
    (pod(hostname="bücher"), InvalidArgument, "bad hostname 'bücher'"),
    (pod(ports=(PortMapping(container_port=0),)), InvalidArgument, "bad port 0:0"),
    (pod(ports=(PortMapping(container_port=80, host_port=70000),)), InvalidArgument, "bad port 70000:80"),
    (pod(ports=(PortMapping(container_port=80, host_port=-1),)), InvalidArgument, "bad port -1:80"),
    (
        pod(ports=(PortMapping(container_port=80, host_port=8080), PortMapping(container_port=81, host_port=8080))),
        InvalidArgument,
        "host port 8080/tcp is published twice",
    ),
    (pod(sandbox="jail"), InvalidArgument, "unknown sandbox kind 'jail'"),
    (pod(sandbox="someday"), Unsupported, "sandbox kind 'someday' is not built in this version"),
    (with_container(image=""), InvalidArgument, "a container needs an image or a rootfs, and not both"),
    (with_container(rootfs="/"), InvalidArgument, "a container needs an image or a rootfs, and not both"),
    (with_container(image="", rootfs="/no/such"), NotFound, "rootfs '/no/such' is not a directory"),
    (with_container(image="nothere"), NotFound, "no image 'nothere'"),
    (with_container(stop_signal="SIGNOPE"), InvalidArgument, "no signal 'SIGNOPE'"),
    (pod(containers=(C, ContainerSpec(image="busybox", name="a"), ContainerSpec(image="busybox", name="a"))),
     AlreadyExists, "the pod has a container named 'a' already"),
    (pod(containers=(ContainerSpec(image="busybox", id="a"), ContainerSpec(image="busybox", id="a"))),
     AlreadyExists, "a pod or container with id a exists"),
    (with_mount(type="tmpfs", target="here"), InvalidArgument, "mount target 'here' is not an absolute path"),
    (with_mount(type="tmpfs", target="/"), InvalidArgument, "a mount may not cover the container's root"),
    (with_mount(type="tmpfs", target="/x/.."), InvalidArgument, "a mount may not cover the container's root"),
    (with_container(mounts=TWICE), InvalidArgument, "two mounts at '/a'"),
    (with_mount(type="volume", target="/v", source="../up"), InvalidArgument, "bad volume name '../up'"),
    (with_mount(type="image", target="/i"), InvalidArgument, "image mount at '/i' names no image"),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "kind", "message"), BAD, ids=lambda value: value if isinstance(value, str) else "")
async def test_bad_input(bench: Bench, spec: PodSpec, kind: type[DrupeError], message: str) -> None:
    with pytest.raises(kind) as caught:
        await bench.core.create_pod(spec)
    assert message in caught.value.message and "\n" not in str(caught.value)
    assert (bench.core.pods, bench.left(), bench.faults.calls, bench.events()) == ({}, {}, [], [])


REFUSED = {
    "host-network": {"network": NetworkSpec(mode="host")},
    "host-pid": {"namespaces": Namespaces(pid="host")},
    "shared-pid": {"namespaces": Namespaces(pid="pod")},
    "host-ipc": {"namespaces": Namespaces(ipc="host")},
    "user-namespace": {"namespaces": Namespaces(user=UserNamespace())},
    "sysctls": {"sysctls": {"net.ipv4.ip_forward": "1"}},
    "hooks": {"hooks": Hooks(prestart=(Hook(path="/bin/true"),))},
}
REFUSED_OF_CONTAINERS = {
    "bind-mounts": {"mounts": (Mount(target="/a", source="/"),)},
    "devices": {"devices": (Device(path="/dev/null"),)},
    "hooks": {"hooks": Hooks(poststop=(Hook(path="/bin/true"),))},
    "seccomp": {"security": SecuritySpec(seccomp="/p.json")},
    "privileged": {"security": SecuritySpec(privileged=True)},
}


@pytest.mark.parametrize("feature", REFUSED)
async def test_what_the_kind_cannot_do_is_refused_by_name(bench: Bench, feature: str) -> None:
    with pytest.raises(Unsupported) as caught:
        await bench.core.create_pod(pod(**REFUSED[feature]))
    assert caught.value.details == {"kind": "fake", "feature": feature}
    assert (bench.core.pods, bench.faults.calls) == ({}, [])


@pytest.mark.parametrize("feature", REFUSED_OF_CONTAINERS)
async def test_the_same_for_containers_made_later(bench: Bench, feature: str) -> None:
    made = await bench.start()
    fields = REFUSED_OF_CONTAINERS[feature]
    with pytest.raises(Unsupported) as caught:
        await bench.core.create_pod(with_container(**fields))
    assert caught.value.details == {"kind": "fake", "feature": feature}
    with pytest.raises(Unsupported) as caught:
        await bench.core.create_container(made, ContainerSpec(image="busybox", **fields))
    assert caught.value.details == {"kind": "fake", "feature": feature}
    assert made.containers == {}


async def test_one_container_only(tmp_path: Path) -> None:
    bench = Bench(tmp_path, without=["multi-container"])
    with pytest.raises(Unsupported, match="cannot hold several containers in one pod"):
        await bench.create("true", "true")
    made = await bench.create("true")
    with pytest.raises(Unsupported):
        await bench.core.create_container(made, C)
    await bench.close()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"nmae": "x"}, "unknown field `nmae`"),
        ({"name": 5}, "Expected `str | null`, got `int` - at `$.name`"),
        ({"containers": [{"argv": "sh"}]}, "Expected `array`, got `str` - at `$.containers[0].argv`"),
        ({"network": {"mode": "magic"}}, "Invalid enum value 'magic' - at `$.network.mode`"),
        ({"namespaces": {"pid": "mine"}}, "Invalid enum value 'mine' - at `$.namespaces.pid`"),
        ({"timeout_s": "soon"}, "at `$.timeout_s`"),
    ],
)
def test_wrong_keys_and_types_are_one_line(data: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        decode(PodSpec, data, where="pod.json")
    assert str(caught.value).startswith("pod.json: ") and words in str(caught.value) and "\n" not in str(caught.value)


async def test_a_container_id_is_unique_on_the_node(bench: Bench) -> None:
    await bench.core.create_pod(with_container(id="c1"))
    with pytest.raises(AlreadyExists, match="a pod or container with id c1 exists"):
        await bench.core.create_pod(with_container(id="c1"))
    other = await bench.create()
    with pytest.raises(AlreadyExists, match="a pod or container with id c1 exists"):
        await bench.core.create_container(other, ContainerSpec(image="busybox", id="c1"))
    assert len(bench.core.pods) == 2


# -- names and references -----------------------------------------------------------------------------------------


def test_ids_and_names() -> None:
    ids = {new_id() for _ in range(1000)}
    assert len(ids) == 1000 and all(len(i) == 32 and int(i, 16) >= 0 for i in ids)
    assert len({new_name() for _ in range(200)}) > 100


async def test_names_are_given_where_none_was(bench: Bench) -> None:
    made = await bench.create("true", "true")
    first, second = made.containers.values()
    assert made.name and first.name != second.name
    alone = await bench.create("true", name="alone")
    assert next(iter(alone.containers.values())).name == "alone"


async def test_a_name_is_unique_in_its_namespace_only(bench: Bench) -> None:
    one = await bench.create("true", name="web")
    two = await bench.create("true", name="web", namespace="other")
    with pytest.raises(AlreadyExists, match="a pod named 'web' exists") as caught:
        await bench.create("true", name="web")
    assert caught.value.hint
    assert (bench.core.pod("web"), bench.core.pod("default/web"), bench.core.pod("other/web")) == (one, one, two)


async def test_pods_by_id_prefix_and_name(bench: Bench) -> None:
    one = await bench.create(id="aabb01", name="one")
    two = await bench.create(id="aabb02", name="aabb01x")
    assert bench.core.pod("aabb01") is one, "an id comes before a prefix"
    assert bench.core.pod("aabb01x") is two, "a name comes before a prefix"
    assert bench.core.pod("aabb02") is two
    with pytest.raises(InvalidArgument, match="pod id 'aabb' is ambiguous: 2 match"):
        bench.core.pod("aabb")
    for missing in ("zz", "", "other/one", "one/", "/"):
        with pytest.raises(NotFound):
            bench.core.pod(missing)


async def test_containers_by_every_kind_of_reference(bench: Bench) -> None:
    web = await bench.core.create_pod(
        pod(name="web", containers=(ContainerSpec(image="busybox", name="app", id="c001"),))
    )
    db = await bench.core.create_pod(
        pod(
            name="db",
            containers=(
                ContainerSpec(image="busybox", name="app", id="c002"),
                ContainerSpec(image="busybox", name="log", id="d003"),
            ),
        )
    )
    find = bench.core.container
    app, db_app, log = web.containers["c001"], db.containers["c002"], db.containers["d003"]
    assert (find("c001"), find("web/app"), find("web/c001"), find("web")) == (app, app, app, app)
    assert (find("db/app"), find("log"), find("d00"), find("d")) == (db_app, log, log, log)
    with pytest.raises(InvalidArgument, match="several containers are named 'app'") as caught:
        find("app")
    assert caught.value.hint == "say which: web/app, db/app"
    with pytest.raises(InvalidArgument, match="container id 'c00' is ambiguous"):
        find("c00")
    for missing in ("nope", "db", "db/nope", "nope/app", ""):
        with pytest.raises(NotFound):
            find(missing)
