"""Image references: `[registry/]repository[:tag][@digest]`, normalised as Docker does (distribution/reference)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NoReturn

from drupe.errors import InvalidArgument

DEFAULT_REGISTRY = "docker.io"
DEFAULT_TAG = "latest"
MAX_NAME_CHARS = 255

_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_PART}(?:/{_PART})*")
_HOST_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_REGISTRY = re.compile(rf"(?:{_HOST_LABEL}(?:\.{_HOST_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]{{1,5}})?")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[a-f0-9]{64}")
_ID = re.compile(r"(?:sha256:)?([a-f0-9]{1,64})")
_HINT = "write [registry/]name[:tag][@sha256:…], the name in lower case"


@dataclass(frozen=True, slots=True)
class Reference:
    """A normalised reference. tag "" only beside a digest."""

    registry: str
    repository: str
    tag: str = ""
    digest: str = ""

    @property
    def name(self) -> str:
        """Registry and repository: what a tag belongs to."""
        return f"{self.registry}/{self.repository}"

    @property
    def canonical(self) -> str:
        """The key under which a tag is stored, always with registry and tag: `docker.io/library/busybox:latest`."""
        return f"{self.name}:{self.tag or DEFAULT_TAG}"

    @property
    def familiar(self) -> str:
        """What people write: `busybox:latest`."""
        text = self.name.removeprefix(f"{DEFAULT_REGISTRY}/").removeprefix("library/")
        text = text if self.registry == DEFAULT_REGISTRY else self.name
        text += f":{self.tag}" if self.tag else ""
        return text + (f"@{self.digest}" if self.digest else "")

    def __str__(self) -> str:
        return self.familiar


def parse(text: str) -> Reference:
    """Parse and normalise a reference. Raises InvalidArgument with what is wrong in one line."""
    if not text or text != text.strip():
        _bad(text, "is empty or has blanks around it")
    rest, _, digest = text.partition("@")
    if "@" in text and not _DIGEST.fullmatch(digest):
        _bad(text, f"has a bad digest {digest!r}")
    rest, tag = _split_tag(rest)
    if tag is not None and not _TAG.fullmatch(tag):
        _bad(text, f"has a bad tag {tag!r}")
    registry, repository = _split_registry(rest)
    if not _REGISTRY.fullmatch(registry):
        _bad(text, f"has a bad registry {registry!r}")
    if not _REPOSITORY.fullmatch(repository):
        _bad(text, f"has a bad name {repository!r}")
    if len(registry) + 1 + len(repository) > MAX_NAME_CHARS:
        _bad(text, f"has a name longer than {MAX_NAME_CHARS} characters")
    return Reference(registry, repository, tag or ("" if digest else DEFAULT_TAG), digest)


def as_id_prefix(text: str) -> str:
    """The hexadecimal part when `text` could be an image id, digest or a prefix of one, else ""."""
    match = _ID.fullmatch(text)
    return match.group(1) if match else ""


def _split_tag(text: str) -> tuple[str, str | None]:
    head, colon, tail = text.rpartition(":")
    if not colon or "/" in tail:  # the colon is a port's
        return text, None
    return head, tail


def _split_registry(text: str) -> tuple[str, str]:
    """Docker's rule: the first part is a registry if it has a dot or a port, or is localhost."""
    first, slash, rest = text.partition("/")
    if slash and (any(c in first for c in ".:[") or first == "localhost"):
        if first == "index.docker.io":
            first = DEFAULT_REGISTRY
    else:
        first, rest = DEFAULT_REGISTRY, text
    if first == DEFAULT_REGISTRY and "/" not in rest:
        rest = f"library/{rest}"
    return first, rest


def _bad(text: str, why: str) -> NoReturn:
    shown = text if len(text) <= 120 else text[:117] + "…"
    raise InvalidArgument(f"image reference {shown!r} {why}", hint=_HINT)
