"""Pull: manifest, then configuration, then layers three at a time, each resumed where an earlier try broke off."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import TYPE_CHECKING

from drupe.errors import DataLoss, InvalidArgument, NotFound, Unavailable
from drupe.images import media
from drupe.images.media import Descriptor, Manifest, Platform, decode_index, decode_manifest
from drupe.images.platforms import choose, matches, parse_platform
from drupe.images.progress import Meter, Report
from drupe.images.reference import Reference, parse
from drupe.images.registry import TRIES, Call, Registry, backoff_s
from drupe.images.streams import CHUNK_BYTES
from drupe.spec.control import ImageInfo, ImagePull, Progress

if TYPE_CHECKING:
    from drupe.images.store import ImageStore

PARALLEL = 3
_MAX_NESTING = 4


def pull(store: ImageStore, request: ImagePull, progress: Report) -> ImageInfo:
    """See ImageStore.pull. force: blobs that are here already are hashed again and fetched anew if corrupt."""
    reference = parse(request.ref)
    wanted = parse_platform(request.platform)
    with (
        store.ingesting(),
        Registry(reference.registry, auth=request.auth, insecure=request.insecure, ca_file=request.ca_file) as registry,
    ):
        transfer = _Pull(store, registry, reference, progress, force=request.force)
        raw, above = transfer.find_manifest(wanted)
        digest = store.blobs.put(raw)
        manifest = decode_manifest(raw, where=f"manifest {digest}")
        transfer.fetch(manifest, check_platform=wanted if request.platform else None)
        names = [reference.canonical] if reference.tag else []
        return store.install(digest, names=names, aliases=above, progress=progress)


class _Pull:
    def __init__(
        self, store: ImageStore, registry: Registry, reference: Reference, progress: Report, *, force: bool
    ) -> None:
        self._store, self._registry, self._reference, self._progress = store, registry, reference, progress
        self._force = force
        self._scope = f"repository:{reference.repository}:pull"
        self._stop = threading.Event()

    def find_manifest(self, wanted: Platform) -> tuple[bytes, list[str]]:
        """(manifest for the platform, digests of the indexes above it)."""
        target = self._reference.digest or self._reference.tag
        above: list[str] = []
        self._progress(Progress(id=str(self._reference), status="resolving"))
        for _ in range(_MAX_NESTING):
            raw, kind, digest = self._registry.manifest(self._reference.repository, target, scope=self._scope)
            if kind not in media.INDEXES:
                return raw, above
            above.append(digest)
            index = decode_index(raw, where=f"index {digest}")
            target = choose(index.manifests, wanted, where=str(self._reference)).digest
        raise InvalidArgument(f"{self._reference}: indexes are nested more than {_MAX_NESTING} deep")

    def fetch(self, manifest: Manifest, *, check_platform: Platform | None) -> None:
        """Configuration first: it is small, and says which layers are unpacked already."""
        self._blob(manifest.config)
        raw = self._store.blobs.read(manifest.config.digest)
        document = media.decode_config_of(manifest, raw, where="image configuration")
        offered = Platform(os=document.os, architecture=document.architecture, variant=document.variant or "")
        if check_platform is not None and not matches(offered, check_platform):
            raise NotFound(f"{self._reference} is for {offered}, not for {check_platform}")
        unique = {
            layer.digest: (layer, id_) for layer, id_ in zip(manifest.layers, document.rootfs.diff_ids, strict=True)
        }
        self._parallel(list(unique.values()))

    def _parallel(self, layers: Sequence[tuple[Descriptor, str]]) -> None:
        with ThreadPoolExecutor(PARALLEL, thread_name_prefix="pull") as pool:
            futures = [pool.submit(self._layer, layer, diff_id) for layer, diff_id in layers]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:  # a failure, or an interrupt of the wait: the others need not go on
                if not all(_succeeded(future) for future in futures):
                    self._stop.set()
                    pool.shutdown(wait=False, cancel_futures=True)
        _raise_cause(futures)

    def _layer(self, layer: Descriptor, diff_id: str) -> None:
        self._blob(layer)
        if layer.media_type not in media.WASM_LAYERS and not self._store.layers.has(diff_id):
            meter = Meter(self._progress, layer.digest, "unpacking", layer.size)
            self._store.layers.ensure(diff_id, self._store.blobs.path(layer.digest), on_bytes=meter)

    def _blob(self, blob: Descriptor) -> None:
        store = self._store.blobs
        if self._force and store.has(blob.digest):
            store.drop_if_corrupt(blob.digest)
        with store.partial(blob.digest) as fd:
            if fd is None:
                self._progress(Progress(id=blob.digest, status="exists", current=blob.size, total=blob.size))
                return
            path = f"/v2/{self._reference.repository}/blobs/{blob.digest}"
            download = _Download(self._registry, Call("GET", path, self._scope), blob, fd=fd, stop=self._stop)
            download.run(self._progress)
            store.finish_partial(fd, blob.digest)


class _Download:
    """One blob into one partial file. A lost connection goes on from the last byte; a mismatch starts from nothing."""

    def __init__(self, registry: Registry, call: Call, blob: Descriptor, *, fd: int, stop: threading.Event) -> None:
        self._registry, self._call, self._blob, self._fd, self._stop = registry, call, blob, fd, stop
        self._hash = hashlib.sha256()
        self._at = 0

    def run(self, progress: Report) -> None:
        meter = Meter(progress, self._blob.digest, "downloading", self._blob.size)
        self._take_up()
        fruitless = 0
        while self._at < self._blob.size or not self._blob.size:
            before = self._at
            try:
                self._some(meter)
                if not self._blob.size:
                    break
            except Unavailable:
                fruitless = 0 if self._at > before else fruitless + 1
                if fruitless >= TRIES:
                    raise
                self._stop.wait(backoff_s(fruitless + 1))
            if self._stop.is_set():
                raise _Stopped("download stopped because another layer failed")
        got = f"sha256:{self._hash.hexdigest()}"
        if got != self._blob.digest:
            self._restart()
            raise media.digest_mismatch("downloaded blob", wanted=self._blob.digest, got=got)

    def _take_up(self) -> None:
        """Hash what an earlier download left; too much of it is no use."""
        if os.fstat(self._fd).st_size > self._blob.size:
            os.ftruncate(self._fd, 0)
        while data := os.pread(self._fd, CHUNK_BYTES, self._at):
            self._hash.update(data)
            self._at += len(data)

    def _restart(self) -> None:
        os.ftruncate(self._fd, 0)
        self._hash, self._at = hashlib.sha256(), 0

    def _some(self, meter: Meter) -> None:
        """One request, from where we are to the end or to the loss of the connection."""
        headers = {"Range": f"bytes={self._at}-"} if self._at else {}
        call = replace(self._call, ok=(200, 206, 416), headers=headers)
        with self._registry.stream(call) as response:
            if response.status_code == 416 or not self._continues(response.headers.get("content-range", "")):
                self._restart()
            if response.status_code == 416:
                raise Unavailable("registry refused to continue a download")
            for chunk in response.iter_raw():  # as they come: a chunk size would lose bytes with the connection
                self._append(chunk)
                meter(self._at)
                if self._stop.is_set():
                    return
        if self._at < self._blob.size:
            raise Unavailable(f"registry ended blob {self._blob.digest} after {self._at} of {self._blob.size} bytes")

    def _continues(self, content_range: str) -> bool:
        return self._at == 0 or content_range.startswith(f"bytes {self._at}-")

    def _append(self, chunk: bytes) -> None:
        if self._at + len(chunk) > self._blob.size:
            self._restart()
            raise DataLoss(f"blob {self._blob.digest} is larger than the {self._blob.size} bytes promised")
        view = memoryview(chunk)
        while view:
            written = os.pwrite(self._fd, view, self._at)
            self._hash.update(view[:written])
            view = view[written:]
            self._at += written


class _Stopped(Unavailable):
    """A download given up because another one failed: the consequence, not the cause."""


def _succeeded(future: Future[None]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def _raise_cause(futures: Sequence[Future[None]]) -> None:
    errors = [future.exception() for future in futures if not future.cancelled()]
    for error in sorted(filter(None, errors), key=lambda error: isinstance(error, _Stopped)):
        raise error
