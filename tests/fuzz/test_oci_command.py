"""drupe-oci's words and bundles as anybody may write them: one clear error, never another exception."""

from __future__ import annotations

import contextlib
import json

from hypothesis import given, settings
from hypothesis import strategies as st

from drupe.errors import DrupeError
from drupe.oci.honoured import parse_version, refuse_unhonoured
from drupe.oci.runtime_spec import RuntimeConfig
from drupe.oci.runtime_spec import parse as parse_part
from drupe.services.oci.flags import VERBS, parse

flags = st.sampled_from(
    ["--root", "--log=x", "-b", "--bundle", "--detach", "-d", "--force=true", "--", "-", "---", "-=", "--=x"]
)
words = st.lists(st.sampled_from(VERBS) | flags | st.text(max_size=8), max_size=8)
keys = st.sampled_from(
    ["ociVersion", "process", "root", "mounts", "hooks", "linux", "annotations", "cwd", "args", "user", "uid", "path",
     "namespaces", "type", "resources", "memory", "limit", "cpu", "seccomp", "vm", "options", "uidMappings"]
)  # fmt: skip
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=400, deadline=None)
@given(words)
def test_any_words_are_understood_or_refused(argv: list[str]) -> None:
    with contextlib.suppress(DrupeError):
        parsed = parse(argv)
        assert parsed.verb in (*VERBS, "help", "version")


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(keys, values, max_size=5))
def test_any_document_is_understood_or_refused(document: dict[str, object]) -> None:
    with contextlib.suppress(DrupeError):
        given = {"ociVersion": "1.0.2", "root": {"path": "r"}} | document
        config = parse_part(RuntimeConfig, json.dumps(given).encode(), where="config.json")
        refuse_unhonoured(config, "crun", (1, 8, 1))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_bytes_that_are_no_document_are_refused(data: bytes) -> None:
    with contextlib.suppress(DrupeError):
        parse_part(RuntimeConfig, data, where="config.json")


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30))
def test_any_version_line_is_understood_or_refused(line: str) -> None:
    with contextlib.suppress(DrupeError):
        assert all(isinstance(number, int) for number in parse_version(line))
