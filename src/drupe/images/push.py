"""Push: blobs the registry lacks (mounted from a sibling repository if it can be), then the manifest."""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

import httpx

from drupe.errors import DataLoss, InvalidArgument, Unavailable
from drupe.images import media
from drupe.images.media import decode_manifest
from drupe.images.progress import Meter, Report
from drupe.images.pull import PARALLEL
from drupe.images.reference import Reference, parse
from drupe.images.registry import TRIES, Call, Registry
from drupe.spec.control import ImageInfo, ImagePush, Progress

if TYPE_CHECKING:
    from drupe.images.store import ImageStore

_CHUNK_BYTES = 8 * 1024 * 1024


def push(store: ImageStore, request: ImagePush, progress: Report) -> ImageInfo:
    """See ImageStore.push. target: where to, if not where the name says."""
    info = store.resolve(request.ref)
    target = parse(request.target or request.ref)
    if target.digest and target.digest != info.digest:
        raise InvalidArgument(f"cannot push {info.digest} as {target}", hint="push to a tag")
    raw = store.blobs.read(info.digest)
    manifest = decode_manifest(raw, where=f"manifest {info.digest}")
    siblings = _siblings(store, info, target)
    with Registry(target.registry, auth=request.auth, insecure=request.insecure, ca_file=request.ca_file) as registry:
        transfer = _Push(store, registry, target, siblings, progress)
        with ThreadPoolExecutor(PARALLEL, thread_name_prefix="push") as pool:
            list(pool.map(transfer.blob, {layer.digest for layer in manifest.layers} | {manifest.config.digest}))
        transfer.manifest(raw, manifest.media_type or media.OCI_MANIFEST, info.digest)
    progress(Progress(id=info.digest, status="done"))
    return info


def _siblings(store: ImageStore, info: ImageInfo, target: Reference) -> list[str]:
    """Repositories of the same registry that hold this image under another name."""
    names = (parse(name) for name in store.index.read().names_of(info.digest))
    return sorted({n.repository for n in names if n.registry == target.registry and n.repository != target.repository})


class _Push:
    def __init__(
        self, store: ImageStore, registry: Registry, target: Reference, siblings: Collection[str], progress: Report
    ) -> None:
        self._store, self._registry, self._target, self._progress = store, registry, target, progress
        self._siblings = siblings
        pulls = "".join(f" repository:{name}:pull" for name in siblings)
        self._scope = f"repository:{target.repository}:pull,push{pulls}"
        self._root = f"/v2/{target.repository}"

    def blob(self, digest: str) -> None:
        size = self._store.blobs.size(digest)
        if self._exists(digest):
            self._progress(Progress(id=digest, status="exists", current=size, total=size))
            return
        meter = Meter(self._progress, digest, "pushing", size)
        for attempt in range(1, TRIES + 1):
            try:
                location = self._begin(digest)
                if location is None:
                    self._progress(Progress(id=digest, status="mounted", current=size, total=size))
                    return
                self._upload(digest, size, location, meter)
                return
            except Unavailable:
                if attempt == TRIES:
                    raise

    def _exists(self, digest: str) -> bool:
        path = f"{self._root}/blobs/{digest}"
        return self._registry.request(Call("HEAD", path, self._scope, ok=(200, 404))).status_code == 200

    def _begin(self, digest: str) -> str | None:
        """Where to upload to; None when the registry took the blob from a sibling repository."""
        path = f"{self._root}/blobs/uploads/"
        for sibling in self._siblings:
            query = f"?mount={quote(digest)}&from={quote(sibling)}"
            answer = self._registry.request(Call("POST", path + query, self._scope, ok=(201, 202)))
            return None if answer.status_code == 201 else self._location(answer)
        return self._location(self._registry.request(Call("POST", path, self._scope, ok=(202,))))

    def _upload(self, digest: str, size: int, location: str, meter: Meter) -> None:
        """In chunks (distribution spec, "Pushing a blob in chunks"). Unavailable when the registry lost its place."""
        with self._store.blobs.path(digest).open("rb") as file:
            at = 0
            while chunk := file.read(_CHUNK_BYTES):
                span = {"Content-Type": "application/octet-stream", "Content-Range": f"{at}-{at + len(chunk) - 1}"}
                call = Call("PATCH", location, self._scope, ok=(202, 404, 416), headers=span, content=chunk)
                answer = self._registry.request(call)
                if answer.status_code != 202:
                    raise Unavailable(f"registry {self._registry.host} lost an upload half-way")
                location = self._location(answer)
                at += len(chunk)
                meter(at)
        if at != size:
            raise DataLoss(f"blob {digest} has {at} bytes, not {size}")
        joint = "&" if urlsplit(location).query else "?"
        put = Call("PUT", f"{location}{joint}digest={quote(digest)}", self._scope, ok=(201,), content=b"")
        self._registry.request(put)

    def _location(self, answer: httpx.Response) -> str:
        location = answer.headers.get("location", "")
        if not location:
            raise Unavailable(f"registry {self._registry.host} gave no upload location")
        return str(answer.url.join(location))

    def manifest(self, raw: bytes, kind: str, digest: str) -> None:
        path = f"{self._root}/manifests/{self._target.tag or digest}"
        headers = {"Content-Type": kind}
        answer = self._registry.request(Call("PUT", path, self._scope, ok=(201, 202), headers=headers, content=raw))
        said = answer.headers.get("docker-content-digest", digest)
        if said != digest:
            raise media.digest_mismatch("manifest stored by the registry", wanted=digest, got=said)
