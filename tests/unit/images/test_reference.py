"""References are read as Docker reads them."""

from __future__ import annotations

import pytest

from drupe.errors import InvalidArgument
from drupe.images.reference import as_id_prefix, parse

DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("text", "canonical", "familiar"),
    [
        ("busybox", "docker.io/library/busybox:latest", "busybox:latest"),
        ("busybox:1.36", "docker.io/library/busybox:1.36", "busybox:1.36"),
        ("docker.io/library/busybox:latest", "docker.io/library/busybox:latest", "busybox:latest"),
        ("docker.io/busybox", "docker.io/library/busybox:latest", "busybox:latest"),
        ("index.docker.io/library/busybox", "docker.io/library/busybox:latest", "busybox:latest"),
        ("me/app", "docker.io/me/app:latest", "me/app:latest"),
        ("localhost/app", "localhost/app:latest", "localhost/app:latest"),
        ("localhost:5000/app", "localhost:5000/app:latest", "localhost:5000/app:latest"),
        ("127.0.0.1:5000/a/b:T", "127.0.0.1:5000/a/b:T", "127.0.0.1:5000/a/b:T"),
        ("[::1]:5000/app:x", "[::1]:5000/app:x", "[::1]:5000/app:x"),
        ("registry.example/a__b/c-d.e:v1.0-x_y", "registry.example/a__b/c-d.e:v1.0-x_y",
         "registry.example/a__b/c-d.e:v1.0-x_y"),
        (f"busybox@{DIGEST}", "docker.io/library/busybox:latest", f"busybox@{DIGEST}"),
        (f"busybox:1@{DIGEST}", "docker.io/library/busybox:1", f"busybox:1@{DIGEST}"),
    ],
)  # fmt: skip
def test_normalised(text: str, canonical: str, familiar: str) -> None:
    """Short and long forms mean the same image."""
    reference = parse(text)
    assert (reference.canonical, reference.familiar) == (canonical, familiar)
    assert parse(familiar).canonical == canonical


@pytest.mark.parametrize(
    "text",
    ["", " busybox", "busybox ", "BUSYBOX", "busy box", "a//b", "/a", "a/", "a:", "a:b:c", ":x", "a:-x",
     "a:" + "x" * 129,
     "a@sha256:12", "a@", "a@md5:" + "0" * 32, "a@sha256:" + "A" * 64, "-a", "a-", "a..b", "../etc/passwd", "a/../b",
     "x" * 256, "http://example.org/a", "ex_ample.org/a", "a\0b", "a\nb", "é"],
)  # fmt: skip
def test_refused(text: str) -> None:
    """A bad reference is one clear line with the way to write it."""
    with pytest.raises(InvalidArgument) as raised:
        parse(text)
    assert "\n" not in raised.value.message and raised.value.hint
    assert len(raised.value.message) < 400


def test_id_prefixes() -> None:
    """Only hexadecimal can be an id."""
    assert as_id_prefix(DIGEST) == "ab" * 32
    assert as_id_prefix("sha256:abc") == as_id_prefix("abc") == "abc"
    assert as_id_prefix("busybox") == as_id_prefix("sha256:") == as_id_prefix("ab" * 33) == ""
