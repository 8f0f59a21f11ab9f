"""Whatever bytes a stranger sends: a typed error or a result, never another exception, never a touch outside."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import tempfile
from pathlib import Path

import msgspec
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drupe.errors import DrupeError, InternalError, InvalidArgument
from drupe.images import media
from drupe.images.layout import read_layout
from drupe.images.limits import Limits
from drupe.images.platforms import parse_platform
from drupe.images.reference import parse
from drupe.images.store import ImageStore
from drupe.images.unpack import unpack_layer
from drupe.spec.control import ImageImport
from framework.fuzzing import rounds
from framework.tars import archive, member, pax_records

LIMITS = Limits(
    max_entries=100, max_unpacked_bytes=1 << 20, max_file_bytes=1 << 24, ratio_floor_bytes=1 << 16, max_ratio=100
)
FUZZ = settings(
    max_examples=rounds(300), deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
IS_ROOT = os.geteuid() == 0

LAYOUT = member("oci-layout", data=b'{"imageLayoutVersion":"1.0.0"}')
INDEX = member("index.json", data=b'{"schemaVersion":2,"manifests":[]}')
SAVED = member("manifest.json", data=b'[{"Config":"a","Layers":["b"],"RepoTags":["x"]}]')

# names made to collide, climb and loop
part = st.sampled_from(
    ["a", "b", "l", "..", ".", "", ".wh.a", ".wh.b", ".wh..wh..opq", ".wh...", "outside", "bait", "x" * 256]
)
name = st.lists(part, min_size=1, max_size=5).map("/".join)
target = st.one_of(
    name, name.map(lambda n: f"/{n}"), st.sampled_from(["/", "/etc/passwd", "../outside/bait", "/proc/self/root"])
)
kind = st.sampled_from([b"0", b"\0", b"1", b"2", b"5", b"6", b"7", b"S", b"g"] + ([b"3", b"4"] if IS_ROOT else []))


@st.composite
def members(draw: st.DrawFn) -> bytes:
    """One member, perhaps with an extended header that changes it."""
    raw = member(
        draw(name),
        draw(kind),
        draw(st.binary(max_size=600)),
        link=draw(target),
        mode=draw(st.integers(0, 0o7777)),
        major=draw(st.integers(0, 5)),
        minor=draw(st.integers(0, 5)),
    )
    if draw(st.booleans()):
        keys = [
            "path",
            "linkpath",
            "size",
            "mtime",
            "uid",
            "GNU.sparse.map",
            "GNU.sparse.size",
            "GNU.sparse.major",
            "GNU.sparse.realsize",
            "SCHILY.xattr.user.x",
            "SCHILY.xattr.trusted.overlay.opaque",
            "comment",
        ]
        value = st.one_of(name, st.integers(-5, 1 << 40).map(str), st.sampled_from(["0,5", "1", "0,1,2,3", "", "1.5"]))
        raw = pax_records(draw(st.dictionaries(st.sampled_from(keys), value, max_size=3))) + raw
    return raw


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def attempt(data: bytes, *, flatten: bool = False) -> None:
    """Unpack in a fresh directory beside a bait; only typed errors, the bait untouched, everything removable."""
    scratch = Path(tempfile.mkdtemp(prefix="drupe-fuzz."))
    try:
        (scratch / "outside").mkdir()
        (scratch / "outside/bait").write_text("untouched")
        before = (scratch / "outside/bait").stat()
        (scratch / "root").mkdir()
        fd = os.open(scratch / "root", os.O_RDONLY | os.O_DIRECTORY)
        try:
            unpack_layer(io.BytesIO(data), fd, limits=LIMITS, flatten=flatten)
        except InternalError:
            raise
        except DrupeError as error:
            assert "\n" not in error.message
        finally:
            os.close(fd)
        after = (scratch / "outside/bait").stat()
        assert (scratch / "outside/bait").read_text() == "untouched"
        assert (before.st_mode, before.st_mtime_ns, before.st_nlink, before.st_uid) == (
            after.st_mode,
            after.st_mtime_ns,
            after.st_nlink,
            after.st_uid,
        )
        assert names(scratch) == ["outside", "root"] and names(scratch / "outside") == ["bait"]
    finally:
        shutil.rmtree(scratch)


@FUZZ
@given(st.lists(members(), max_size=8), st.booleans())
def test_hostile_members(parts: list[bytes], flatten: bool) -> None:
    """Well-formed archives of malicious members."""
    attempt(archive(*parts), flatten=flatten)


@FUZZ
@given(st.lists(members(), min_size=1, max_size=4), st.data())
def test_mutated_archives(parts: list[bytes], data: st.DataObject) -> None:
    """Bytes flipped, cut and repeated."""
    raw = bytearray(archive(*parts))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at] = data.draw(st.integers(0, 255))
    attempt(bytes(raw[: data.draw(st.integers(0, len(raw)))]))


@FUZZ
@given(st.binary(max_size=3000), st.sampled_from([bytes, gzip.compress, zstandard.compress]))
def test_any_bytes(data: bytes, pack: object) -> None:
    """Noise, plain and packed."""
    attempt(pack(data))  # type: ignore[operator]


@FUZZ
@given(st.binary(min_size=1, max_size=400), st.sampled_from([gzip.compress, zstandard.compress]), st.data())
def test_mutated_compression(data: bytes, pack: object, draw: st.DataObject) -> None:
    """A packed stream with a wrong byte, or cut."""
    packed = bytearray(pack(archive(member("f", data=data))))  # type: ignore[operator]
    packed[draw.draw(st.integers(0, len(packed) - 1))] ^= draw.draw(st.integers(1, 255))
    attempt(bytes(packed[: draw.draw(st.integers(0, len(packed)))]))


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.sampled_from([media.OCI_LAYER, media.OCI_CONFIG, "sha256:" + "0" * 64]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    "schemaVersion",
                    "config",
                    "layers",
                    "mediaType",
                    "digest",
                    "size",
                    "manifests",
                    "platform",
                    "rootfs",
                    "diff_ids",
                    "os",
                    "architecture",
                    "Env",
                    "Cmd",
                    "Labels",
                    "Healthcheck",
                    "Test",
                    "annotations",
                ]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=20,
)


@FUZZ
@given(st.one_of(json_values.map(lambda v: msgspec.json.encode(v)), st.binary(max_size=200)))
def test_documents(raw: bytes) -> None:
    """Manifests, indexes and configurations."""
    for decode in (media.decode_manifest, media.decode_index):
        try:
            decode(raw, where="x")
        except InvalidArgument as error:  # Unsupported is one
            assert error.message.startswith("x") and "\n" not in error.message
    try:
        media.decode_config(raw, layer_count=1, where="x")
    except InvalidArgument as error:
        assert error.message.startswith("x") and "\n" not in error.message


class Files:
    """A layout of any documents."""

    def __init__(self, documents: dict[str, bytes]) -> None:
        self.documents = documents

    def has(self, name: str) -> bool:
        return name in self.documents

    def read(self, name: str) -> bytes:
        return self.documents.get(name, self.documents["any"])

    def store(self, name: str, *, digest: str = "", size: int | None = None) -> tuple[str, int]:
        return digest, size or 0


@FUZZ
@given(json_values, json_values)
def test_layouts(index: object, other: object) -> None:
    """A layout whose every document is anything."""
    files = Files(
        {
            "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
            "index.json": msgspec.json.encode(index),
            "any": msgspec.json.encode(other),
        }
    )
    try:
        read_layout(files, parse_platform("linux/amd64"), where="x")
    except InternalError:
        raise
    except DrupeError:
        pass


@FUZZ
@given(st.one_of(st.text(max_size=60), name, st.from_regex(r"[a-z0-9./:@_-]{1,40}", fullmatch=True)))
def test_references(text: str) -> None:
    """Refused, or stable under normalisation; and a name is never a path."""
    try:
        reference = parse(text)
    except InvalidArgument:
        return
    assert parse(reference.familiar) == reference
    assert ".." not in reference.repository.split("/") and not reference.repository.startswith("/")


@settings(FUZZ, max_examples=rounds(60))
@given(
    st.lists(
        members()
        | st.sampled_from(
            [
                LAYOUT,
                INDEX,
                SAVED,
                member("manifest.json", data=b"[]"),
            ]
        ),
        max_size=6,
    )
)
def test_imports(parts: list[bytes]) -> None:
    """The whole way in: an image or a typed error, and no scratch."""
    scratch = Path(tempfile.mkdtemp(prefix="drupe-fuzz."))
    store = ImageStore(scratch / "store", limits=LIMITS)
    try:
        try:
            store.import_image(ImageImport(tag="fuzz"), io.BytesIO(archive(*parts)))
        except InternalError:
            raise
        except DrupeError:
            assert store.list().images == []
        assert list((scratch / "store/tmp").iterdir()) == []
        assert names(scratch) == ["store"]
    finally:
        shutil.rmtree(scratch)
