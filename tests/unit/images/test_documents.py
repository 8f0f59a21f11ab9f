"""Manifests, configurations and indexes of strangers: what is read from them, and what is refused in one line."""

from __future__ import annotations

import io
import json
import tarfile
from typing import Any, BinaryIO, cast

import pytest

from drupe.errors import DrupeError, InvalidArgument, NotFound, Unsupported
from drupe.images import media
from drupe.images.config import image_config
from drupe.images.exports import TarSink
from drupe.images.media import Descriptor, Platform
from drupe.images.platforms import choose, matches, parse_platform

DIGEST = "sha256:" + "0" * 64
LAYER = {"mediaType": media.OCI_LAYER, "digest": DIGEST, "size": 1}
CONFIG = {"mediaType": media.OCI_CONFIG, "digest": DIGEST, "size": 1}
MANIFEST = {"schemaVersion": 2, "config": CONFIG, "layers": [LAYER]}
DOCUMENT: dict[str, Any] = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [DIGEST]}}


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"schemaVersion": 1}, Unsupported),
        ({"mediaType": media.OCI_INDEX}, Unsupported),
        ({"layers": [LAYER] * 128}, InvalidArgument),
        ({"layers": "x"}, InvalidArgument),
        ({"layers": None}, InvalidArgument),
        ({"config": None}, InvalidArgument),
        ({"layers": [{**LAYER, "digest": "sha256:../../../etc/passwd"}]}, InvalidArgument),
        ({"layers": [{**LAYER, "digest": "sha512:" + "0" * 128}]}, InvalidArgument),
        ({"layers": [{**LAYER, "digest": 7}]}, InvalidArgument),
        ({"layers": [{**LAYER, "size": -1}]}, InvalidArgument),
        ({"layers": [{**LAYER, "size": "1"}]}, InvalidArgument),
        ({"layers": [{**LAYER, "size": 1 << 80}]}, InvalidArgument),
        ({"layers": [{**LAYER, "mediaType": "application/vnd.cncf.helm.chart"}]}, Unsupported),
        ({"annotations": {"a": 1}}, InvalidArgument),
    ],
)
def test_bad_manifests(change: dict[str, Any], wanted: type[DrupeError]) -> None:
    """One line that says where."""
    with pytest.raises(wanted) as raised:
        media.decode_manifest(json.dumps(MANIFEST | change).encode(), where="manifest of x")
    assert raised.value.message.startswith("manifest of x") and "\n" not in raised.value.message


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b" " * (5 << 20)])
def test_not_even_json(raw: bytes) -> None:
    """Whatever the bytes."""
    with pytest.raises(InvalidArgument):
        media.decode_manifest(raw, where="manifest of x")


@pytest.mark.parametrize(
    "change",
    [
        {"config": {"Env": "PATH=/"}}, {"config": {"Env": [1]}}, {"config": {"Cmd": "sh"}}, {"config": {"Volumes": []}},
        {"config": {"Labels": {"a": 1}}}, {"config": []}, {"rootfs": {}}, {"rootfs": {"diff_ids": ["x"]}},
        {"rootfs": {"diff_ids": [DIGEST, DIGEST]}}, {"os": 7}, {"config": {"Healthcheck": {"Interval": "1s"}}},
    ],
)  # fmt: skip
def test_wrong_types_in_a_configuration(change: dict[str, Any]) -> None:
    """The key that is wrong is named."""
    with pytest.raises(InvalidArgument) as raised:
        media.decode_config(json.dumps(DOCUMENT | change).encode(), layer_count=1, where="config of x")
    assert raised.value.message.startswith("config of x") and "\n" not in raised.value.message


def test_configuration_in_our_words() -> None:
    """Everything an image may say, and null for what it does not."""
    section = {
        "Entrypoint": ["/e"], "Cmd": ["c"], "Env": ["A=1"], "WorkingDir": "/w", "User": "u:g", "Volumes": {"/v": {}},
        "ExposedPorts": {"80/tcp": {}}, "StopSignal": "SIGINT", "Labels": {"k": "v"}, "Unknown": 1,
        "Healthcheck": {"Test": ["CMD-SHELL", "true"], "Interval": 5_000_000_000, "Retries": 2},
    }  # fmt: skip
    raw = json.dumps(DOCUMENT | {"config": section}).encode()
    config = image_config(media.decode_config(raw, layer_count=1, where="x"))
    assert (config.entrypoint, config.cmd, config.env) == (("/e",), ("c",), ("A=1",))
    assert (config.cwd, config.user, config.volumes) == ("/w", "u:g", ("/v",))
    assert (config.exposed_ports, config.stop_signal, config.labels) == (("80/tcp",), "SIGINT", {"k": "v"})
    assert config.healthcheck is not None
    assert config.healthcheck.argv == ("/bin/sh", "-c", "true")
    assert (config.healthcheck.interval_s, config.healthcheck.timeout_s, config.healthcheck.retries) == (5, 30, 2)
    empty = json.dumps(DOCUMENT | {"config": dict.fromkeys(section)}).encode()
    config = image_config(media.decode_config(empty, layer_count=1, where="x"))
    assert (config.cmd, config.cwd, config.healthcheck, config.architecture) == ((), "/", None, "amd64")
    for test in (["NONE"], [], ["CMD"], ["CMD-SHELL"]):
        raw = json.dumps(DOCUMENT | {"config": {"Healthcheck": {"Test": test}}}).encode()
        assert image_config(media.decode_config(raw, layer_count=1, where="x")).healthcheck is None


def test_platforms() -> None:
    """The usual variant need not be named; another one is another platform."""
    assert parse_platform("linux/aarch64") == Platform("linux", "arm64")
    assert matches(Platform("linux", "arm64", "v8"), Platform("linux", "arm64"))
    assert matches(Platform("linux", "arm64"), Platform("linux", "arm64", "v8"))
    assert not matches(Platform("linux", "arm", "v6"), Platform("linux", "arm"))
    assert not matches(Platform("windows", "amd64"), Platform("linux", "amd64"))
    for bad in ("linux", "linux/", "/amd64", "a/b/c/d"):
        with pytest.raises(InvalidArgument):
            parse_platform(bad)
    alone = [Descriptor(media.OCI_MANIFEST, DIGEST, 1)]
    assert choose(alone, Platform("linux", "arm64"), where="x") is alone[0]
    with pytest.raises(NotFound, match="no image for linux/arm64"):
        choose([*alone, *alone], Platform("linux", "arm64"), where="x")


class Reluctant(io.RawIOBase):
    """A pipe that takes seven bytes at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.got = b""

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        self.got += bytes(data[:7])
        return min(7, len(data))


def test_an_export_into_a_slow_pipe_is_whole() -> None:
    """Short writes are continued."""
    pipe = Reluctant()
    sink = TarSink(cast("BinaryIO", pipe))
    sink.add("a", io.BytesIO(b"x" * 5000), 5000)
    sink.add("a", io.BytesIO(b"left out: the name is there"), 27)
    sink.close()
    with tarfile.open(fileobj=io.BytesIO(pipe.got)) as tar:
        assert [(entry.name, entry.size) for entry in tar] == [("a", 5000)]
