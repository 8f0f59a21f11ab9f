"""Pull and push against a real registry: authentication, TLS, platforms, lost connections, bytes that lie."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import pytest

from drupe.errors import DataLoss, InvalidArgument, NotFound, PermissionDenied, Unavailable
from drupe.images import media
from drupe.images.exports import export_directory
from drupe.images.progress import silent
from drupe.images.store import ImageStore
from drupe.spec.control import ImageBuild, ImageImport, ImageInfo, ImagePull, ImagePush, Progress
from framework.probes import needs_program
from framework.registry import (
    CuttingProxy,
    DockerRegistry,
    TokenRegistry,
    closing_registry,
    make_certificate,
    random_tree,
)

pytestmark = pytest.mark.root
LAYER_BYTES = 300_000


@pytest.fixture(autouse=True)
def no_logins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The logins of whoever runs the tests are none of their business."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "no-docker"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[DockerRegistry]:
    with closing_registry(tmp_path / "registry") as running:
        yield running


def make_image(store: ImageStore, scratch: Path, tag: str, *, layers: int = 4) -> ImageInfo:
    """An image of random bytes, one file a layer."""
    base = ""
    for number in range(layers):
        tree = random_tree(scratch / f"{tag.partition(':')[0]}{number}", size=LAYER_BYTES)
        info = store.build(ImageBuild(tag=tag, base=base, path=str(tree), source_date_epoch=1, cmd=("x",)))
        base = tag
    return info


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "ours")


@pytest.fixture
def other(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "theirs")


def skopeo(*argv: str) -> str:
    needs_program("skopeo")
    done = subprocess.run(["skopeo", *argv], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_push_then_pull(registry: DockerRegistry, store: ImageStore, other: ImageStore, tmp_path: Path) -> None:
    """What one store pushes another pulls, digest for digest; skopeo sees the same."""
    info = make_image(store, tmp_path, "app:v1")
    store.push(ImagePush(ref="app:v1", target=f"{registry.host}/team/app:v1"))
    pulled = other.pull(ImagePull(ref=f"{registry.host}/team/app:v1"))
    assert (pulled.digest, pulled.id, pulled.layers) == (info.digest, info.id, info.layers)
    assert pulled.names == [f"{registry.host}/team/app:v1"]
    for mine, theirs in zip(store.lower_dirs(info), other.lower_dirs(pulled), strict=True):
        assert subprocess.run(["diff", "-r", mine, theirs], check=False).returncode == 0
    seen = json.loads(skopeo("inspect", "--tls-verify=false", f"docker://{registry.host}/team/app:v1"))
    assert seen["Digest"] == info.digest
    by_digest = other.pull(ImagePull(ref=f"{registry.host}/team/app@{info.digest}"))
    assert by_digest.digest == info.digest


def test_second_push_and_pull_move_no_blobs(
    registry: DockerRegistry, store: ImageStore, other: ImageStore, tmp_path: Path
) -> None:
    """What is there is not sent again; a sibling repository's blobs are mounted."""
    make_image(store, tmp_path, "app:v1")
    store.push(ImagePush(ref="app:v1", target=f"{registry.host}/a/app:1"))
    said: list[Progress] = []
    store.push(ImagePush(ref="app:v1", target=f"{registry.host}/a/app:2"), said.append)
    assert {p.status for p in said} == {"exists", "done"}
    store.tag("app:v1", f"{registry.host}/a/app:1")
    said.clear()
    store.push(ImagePush(ref="app:v1", target=f"{registry.host}/b/app:1"), said.append)
    assert {p.status for p in said if p.current} == {"mounted"}
    other.pull(ImagePull(ref=f"{registry.host}/b/app:1"))
    said.clear()
    other.pull(ImagePull(ref=f"{registry.host}/b/app:1"), said.append)
    assert "downloading" not in {p.status for p in said}


def test_pull_what_skopeo_pushed(
    registry: DockerRegistry, store: ImageStore, other: ImageStore, tmp_path: Path
) -> None:
    """Docker's schema 2 and gzip layers, as most registries hold."""
    info = make_image(store, tmp_path, "app:v1")
    export_directory(store, ("app:v1",), tmp_path / "layout", silent)
    for kind in ("v2s2", "oci"):
        target = f"{registry.host}/{kind}:1"
        skopeo(
            "copy", "--dest-tls-verify=false", f"--format={kind}", f"oci:{tmp_path}/layout:app:v1", f"docker://{target}"
        )
        pulled = other.pull(ImagePull(ref=target))
        assert pulled.layers == info.layers
        assert pulled.digest == json.loads(skopeo("inspect", "--tls-verify=false", f"docker://{target}"))["Digest"]


def test_multi_platform(registry: DockerRegistry, store: ImageStore, other: ImageStore, tmp_path: Path) -> None:
    """The host's platform by default, another on demand, and a clear word when there is none."""
    amd = make_image(store, tmp_path, "amd:1", layers=1)
    config = msgspec.json.decode(store.blobs.read(amd.id)) | {"architecture": "arm64", "variant": "v8"}
    manifest = media.decode_manifest(store.blobs.read(amd.digest), where="test")
    raw = media.encode(config)
    manifest.config.digest, manifest.config.size = store.blobs.put(raw), len(raw)
    arm_digest = store.blobs.put(media.encode(manifest))
    arm = store.install(arm_digest, names=["docker.io/library/arm:1"])
    for name in ("amd:1", "arm:1"):
        store.push(ImagePush(ref=name, target=f"{registry.host}/multi:{name[:3]}"))
    entries = [
        media.Descriptor(media.OCI_MANIFEST, i.digest, store.blobs.size(i.digest),
                         platform=media.Platform("linux", arch, variant))
        for i, arch, variant in ((arm, "arm64", "v8"), (amd, "amd64", ""))
    ]  # fmt: skip
    index = media.encode(media.Index(2, entries, media.OCI_INDEX))
    url = f"http://{registry.host}/v2/multi/manifests/all"
    assert httpx.put(url, content=index, headers={"Content-Type": media.OCI_INDEX}).status_code == 201
    ref = f"{registry.host}/multi:all"
    assert other.pull(ImagePull(ref=ref, platform="linux/amd64")).digest == amd.digest
    pulled = other.pull(ImagePull(ref=ref, platform="linux/arm64"))
    assert pulled.digest == arm.digest and pulled.architecture == "arm64"
    index_digest = f"sha256:{hashlib.sha256(index).hexdigest()}"
    assert other.resolve(f"{registry.host}/multi@{index_digest}").digest == arm.digest, "the one pulled last"
    with pytest.raises(NotFound, match="linux/s390x") as raised:
        other.pull(ImagePull(ref=ref, platform="linux/s390x"))
    assert "linux/amd64" in raised.value.hint
    with pytest.raises(NotFound, match="is for linux/amd64"):
        other.pull(ImagePull(ref=f"{registry.host}/multi:amd", platform="linux/arm64"))


# lost connections


@pytest.mark.parametrize("cuts", [1, 6])
def test_lost_connections_are_resumed(
    registry: DockerRegistry, store: ImageStore, other: ImageStore, tmp_path: Path, cuts: int
) -> None:
    """Each download goes on where it broke off: the whole costs little more than its size."""
    info = make_image(store, tmp_path, "app:v1", layers=2)
    store.push(ImagePush(ref="app:v1", target=f"{registry.host}/app:1"))
    proxy = CuttingProxy(registry.port, after_bytes=100_000, cuts=cuts)
    try:
        pulled = other.pull(ImagePull(ref=f"{proxy.host}/app:1"))
    finally:
        proxy.close()
    assert pulled.digest == info.digest
    assert proxy.cut == cuts
    assert registry.requests().count('HTTP/1.1" 206 ') >= cuts, "each cut is followed by a request for the rest"


def test_a_killed_download_is_taken_up(
    registry: DockerRegistry, store: ImageStore, other: ImageStore, tmp_path: Path
) -> None:
    """The partial file of a process that died is continued by the next one, and only the rest is fetched."""
    info = make_image(store, tmp_path, "app:v1", layers=1)
    store.push(ImagePush(ref="app:v1", target=f"{registry.host}/app:1"))
    layer = media.decode_manifest(store.blobs.read(info.digest), where="test").layers[0]
    other._prepare()
    partial = other.blobs.directory / f"{media.hex_of(layer.digest)}.partial"
    partial.write_bytes(store.blobs.path(layer.digest).read_bytes()[:200_000])
    said: list[Progress] = []
    assert other.pull(ImagePull(ref=f"{registry.host}/app:1"), said.append).digest == info.digest
    assert not partial.exists()
    rest = layer.size - 200_000
    assert f'HTTP/1.1" 206 {rest} ' in registry.requests(), "only the rest is sent"


def test_a_corrupt_partial_is_refused_then_fetched_anew(
    registry: DockerRegistry, store: ImageStore, other: ImageStore, tmp_path: Path
) -> None:
    """Bytes are trusted by digest only; the second try starts from nothing."""
    info = make_image(store, tmp_path, "app:v1", layers=1)
    store.push(ImagePush(ref="app:v1", target=f"{registry.host}/app:1"))
    layer = media.decode_manifest(store.blobs.read(info.digest), where="test").layers[0]
    other._prepare()
    (other.blobs.directory / f"{media.hex_of(layer.digest)}.partial").write_bytes(b"x" * 1000)
    with pytest.raises(DataLoss, match="digest"):
        other.pull(ImagePull(ref=f"{registry.host}/app:1"))
    assert other.pull(ImagePull(ref=f"{registry.host}/app:1")).digest == info.digest


def test_parallel_pulls_of_one_image(registry: DockerRegistry, store: ImageStore, tmp_path: Path) -> None:
    """Two processes that pull the same image into the same store do not disturb each other."""
    info = make_image(store, tmp_path, "app:v1")
    store.push(ImagePush(ref="app:v1", target=f"{registry.host}/app:1"))
    code = (
        "import sys; from pathlib import Path; from drupe.images.store import ImageStore;"
        "from drupe.spec.control import ImagePull;"
        "print(ImageStore(Path(sys.argv[1])).pull(ImagePull(ref=sys.argv[2])).digest)"
    )
    argv = [sys.executable, "-c", code, str(tmp_path / "shared"), f"{registry.host}/app:1"]
    running = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    answers = [process.communicate(timeout=60)[0].strip() for process in running]
    assert answers == [info.digest] * 3
    shared = ImageStore(tmp_path / "shared")
    assert shared.resolve(f"{registry.host}/app:1").layers == info.layers
    assert list((tmp_path / "shared/tmp").iterdir()) == []


def test_force_mends_a_corrupt_blob(
    registry: DockerRegistry, store: ImageStore, other: ImageStore, tmp_path: Path
) -> None:
    """`force` hashes what is here again."""
    info = make_image(store, tmp_path, "app:v1", layers=1)
    store.push(ImagePush(ref="app:v1", target=f"{registry.host}/app:1"))
    request = ImagePull(ref=f"{registry.host}/app:1")
    other.pull(request)
    layer = media.decode_manifest(store.blobs.read(info.digest), where="test").layers[0]
    other.blobs.path(layer.digest).write_bytes(b"rotten")
    other.pull(msgspec.structs.replace(request, force=True))
    assert other.blobs.path(layer.digest).read_bytes() == store.blobs.path(layer.digest).read_bytes()


# authentication and TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("tls") / "certs")


@pytest.fixture
def locked(tmp_path: Path, certificate: Path) -> Iterator[DockerRegistry]:
    with closing_registry(tmp_path / "locked", auth=("ann", "s3:cret"), tls=certificate) as running:
        yield running


def test_tls_and_password(
    locked: DockerRegistry, store: ImageStore, other: ImageStore, tmp_path: Path, certificate: Path
) -> None:
    """The right authority and password work; every wrong one is told apart."""
    make_image(store, tmp_path, "app:v1", layers=1)
    target, ca = f"{locked.host}/app:1", str(certificate / "cert.pem")
    push = ImagePush(ref="app:v1", target=target, ca_file=ca, auth="ann:s3:cret")
    info = store.push(push)
    assert other.pull(ImagePull(ref=target, ca_file=ca, auth="ann:s3:cret")).digest == info.digest
    assert other.pull(ImagePull(ref=target, insecure=True, auth="ann:s3:cret")).digest == info.digest
    for auth in (None, "ann:wrong", "bob:s3:cret"):
        with pytest.raises(PermissionDenied) as raised:
            other.pull(ImagePull(ref=target, ca_file=ca, auth=auth))
        assert "cret" not in str(raised.value) and raised.value.hint
    with pytest.raises(InvalidArgument, match="credentials"):
        other.pull(ImagePull(ref=target, ca_file=ca, auth="no-colon"))
    wrong = make_certificate(tmp_path / "else") / "cert.pem"
    with pytest.raises(PermissionDenied, match="untrusted certificate"):
        other.pull(ImagePull(ref=target, ca_file=str(wrong), auth="ann:s3:cret"))
    with pytest.raises(InvalidArgument, match="certificate authority"):
        other.pull(ImagePull(ref=target, ca_file="/nonexistent", auth="ann:s3:cret"))


def test_logins_from_files_and_helpers(
    locked: DockerRegistry, store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """~/.docker/config.json with a stored login, then with a credential helper."""
    make_image(store, tmp_path, "app:v1", layers=1)
    directory = tmp_path / "docker"
    directory.mkdir()
    monkeypatch.setenv("DOCKER_CONFIG", str(directory))
    config = directory / "config.json"
    push = ImagePush(ref="app:v1", target=f"{locked.host}/app:1")
    config.write_text(json.dumps({"auths": {locked.host: {"auth": base64.b64encode(b"ann:s3:cret").decode()}}}))
    store.push(push)
    helper = directory / "docker-credential-test"
    helper.write_text(f"#!/bin/sh\nread server\n[ $server = {locked.host} ] || exit 1\n"
                      'echo \'{"Username":"ann","Secret":"s3:cret"}\'\n')  # fmt: skip
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")
    config.write_text(json.dumps({"credHelpers": {locked.host: "test"}}))
    store.push(push)
    config.write_text(json.dumps({"credHelpers": {locked.host: "absent"}}))
    with pytest.raises(NotFound, match="docker-credential-absent"):
        store.push(push)
    config.write_text("[]")
    with pytest.raises(InvalidArgument, match="login file"):
        store.push(push)


def test_bearer_tokens_and_busy_servers(store: ImageStore, other: ImageStore, tmp_path: Path) -> None:
    """The token is fetched once and used for all; 429 and 503 are waited out; a lying registry is found out."""
    info = make_image(store, tmp_path, "app:v1", layers=2)
    raw = store.blobs.read(info.digest)
    manifest = media.decode_manifest(raw, where="test")
    blobs = {d.digest: store.blobs.path(d.digest).read_bytes() for d in (manifest.config, *manifest.layers)}
    server = TokenRegistry(raw, media.OCI_MANIFEST, blobs)
    try:
        server.faults = {"1": [503, 429], manifest.layers[0].digest: [500]}
        assert other.pull(ImagePull(ref=f"{server.host}/app:1", auth="ann:pw")).digest == info.digest
        assert server.tokens_given == ["Basic " + base64.b64encode(b"ann:pw").decode()]
        liar = ImageStore(tmp_path / "liar")
        blobs[manifest.layers[1].digest] = bytes(len(blobs[manifest.layers[1].digest]))
        with pytest.raises(DataLoss, match="digest"):
            liar.pull(ImagePull(ref=f"{server.host}/app:1"))
        blobs[manifest.layers[1].digest] += b"more"
        with pytest.raises(DataLoss, match="larger"):
            liar.pull(ImagePull(ref=f"{server.host}/app:1"))
        del blobs[manifest.layers[1].digest]
        with pytest.raises(NotFound, match="BLOB_UNKNOWN"):
            liar.pull(ImagePull(ref=f"{server.host}/app:1"))
        assert liar.list().images == [] and list((tmp_path / "liar/tmp").iterdir()) == []
    finally:
        server.close()


def test_what_is_not_there(registry: DockerRegistry, other: ImageStore) -> None:
    """Unknown image, unknown registry, push of an unknown image."""
    with pytest.raises(NotFound, match="MANIFEST_UNKNOWN"):
        other.pull(ImagePull(ref=f"{registry.host}/nope:1"))
    with pytest.raises(Unavailable, match="cannot be reached"):
        other.pull(ImagePull(ref="127.0.0.1:1/nope:1"))
    with pytest.raises(NotFound, match="nope"):
        other.push(ImagePush(ref="nope", target=f"{registry.host}/nope"))


def test_a_module_goes_there_and_back(store: ImageStore, other: ImageStore, registry: DockerRegistry) -> None:
    """A WebAssembly artifact: the same digest, and the same bytes of the module, whoever asks for which platform."""
    module = b"\0asm\1\0\0\0"
    ours = store.import_image(ImageImport(tag="tool", title="tool.wasm"), io.BytesIO(module)).images[0]
    target = f"{registry.host}/tool:1"
    store.push(ImagePush(ref="tool", target=target, insecure=True), silent)
    theirs = other.pull(ImagePull(ref=target, platform="wasi/wasm", insecure=True), silent)
    assert (theirs.digest, theirs.os, theirs.module) == (ours.digest, "wasip1", ours.module)
    assert other.module_path(theirs).read_bytes() == module
    with pytest.raises(NotFound, match="is for wasip1/wasm, not for linux/amd64"):
        other.pull(ImagePull(ref=target, platform="linux/amd64", insecure=True), silent)
