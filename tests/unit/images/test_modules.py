"""Images that are WebAssembly modules: their documents, their platform, the choice among several."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

import pytest

from drupe.errors import DrupeError, InvalidArgument, NotFound, Unsupported
from drupe.images import media
from drupe.images.bare import bare_module
from drupe.images.media import Descriptor, Platform
from drupe.images.platforms import choose, matches, parse_platform
from drupe.images.store import ImageStore
from drupe.spec.control import ImageImport

MODULE, COMPONENT = b"\0asm\1\0\0\0", b"\0asm\x0d\0\1\0"
DIGEST = "sha256:" + "a" * 64


def manifest(*layers: str) -> bytes:
    listed = [{"mediaType": kind, "digest": DIGEST, "size": 8} for kind in layers]
    config = {"mediaType": media.WASM_CONFIG, "digest": DIGEST, "size": 2}
    return json.dumps({"schemaVersion": 2, "config": config, "layers": listed}).encode()


@pytest.mark.parametrize("kind", sorted(media.WASM_LAYERS))
def test_a_module_as_the_one_layer(kind: str) -> None:
    decoded = media.decode_manifest(manifest(kind), where="x")
    assert decoded.module is not None
    document = media.decode_config_of(decoded, b"{}", where="x")
    assert (document.os, document.architecture, document.rootfs.diff_ids) == ("wasip1", "wasm", [DIGEST])
    assert document.config is not None and document.config.entrypoint == ["module.wasm"]


def test_more_than_one_module_is_refused() -> None:
    with pytest.raises(Unsupported, match="one module only"):
        media.decode_manifest(manifest(media.WASM_LAYER, media.WASM_LAYER), where="x")


def test_platforms() -> None:
    assert matches(Platform(os="wasip1", architecture="wasm"), parse_platform("wasi/wasm"))
    assert matches(Platform(os="wasip2", architecture="wasm"), parse_platform("wasip2/wasm"))
    assert not matches(Platform(os="wasip2", architecture="wasm"), parse_platform("wasip1/wasm"))
    assert not matches(Platform(os="linux", architecture="amd64"), parse_platform("wasi/wasm"))


def test_choosing_among_platforms() -> None:
    wasm = Descriptor("m", DIGEST, 1, platform=Platform(os="wasip1", architecture="wasm"))
    s390 = Descriptor("m", DIGEST, 2, platform=Platform(os="linux", architecture="s390x"))
    host = Descriptor("m", DIGEST, 3, platform=parse_platform(""))
    assert choose([wasm, s390, host], parse_platform(""), where="x") is host
    assert choose([s390, wasm], parse_platform(""), where="x") is wasm  # nothing else could run here
    assert choose([host, wasm], parse_platform("wasi/wasm"), where="x") is wasm
    with pytest.raises(NotFound):
        choose([s390, wasm], parse_platform("linux/riscv64"), where="x")


@pytest.mark.parametrize(("data", "os"), [(MODULE, "wasip1"), (COMPONENT, "wasip2")])
def test_import_of_a_module(tmp_path: Path, data: bytes, os: str) -> None:
    store = ImageStore(tmp_path)
    info = store.import_image(ImageImport(tag="m", title="tool.wasm"), BytesIO(data)).images[0]
    assert (info.os, info.architecture, info.layers) == (os, "wasm", [])
    assert store.module_path(info).read_bytes() == data
    assert store.config(info).entrypoint == ("tool.wasm",)
    again = store.import_image(ImageImport(title="tool.wasm"), BytesIO(data)).images[0]
    assert again.digest == info.digest
    assert store.list().images[0].size_bytes == len(data)
    assert store.delete("m").reclaimed_bytes > 0


def test_what_is_no_module_is_not_imported_as_one(tmp_path: Path) -> None:
    for data in (b"#!/bin/sh", b"\0asm\7\7\7\7", b""):
        with pytest.raises(InvalidArgument):
            ImageStore(tmp_path).import_image(ImageImport(format="wasm"), BytesIO(data))


def test_bare_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.wasm").write_bytes(MODULE)
    (tmp_path / "b").write_bytes(MODULE)
    (tmp_path / "text.wasm").write_text("no")
    assert bare_module("a.wasm") and bare_module("./b") and bare_module(str(tmp_path / "b"))
    assert not bare_module("b") and not bare_module("text.wasm") and not bare_module("none.wasm")
    assert not bare_module("busybox")
    (tmp_path / "other").write_bytes(b"\x7fELF")
    for path, why in (("./other", "no WebAssembly module"), ("./none", "No such file"), ("/", "directory")):
        with pytest.raises(DrupeError, match=why):
            bare_module(path)
