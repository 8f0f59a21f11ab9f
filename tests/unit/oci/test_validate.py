"""A foreign config.json is taken, or refused with one line that says where it is wrong."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drupe.errors import DrupeError, InvalidArgument, Unsupported
from drupe.oci.validate import parse_config

GOOD: dict[str, Any] = {
    "ociVersion": "1.0.2",
    "process": {
        "args": ["sh"],
        "cwd": "/",
        "env": ["PATH=/bin"],
        "user": {"uid": 0, "gid": 0},
        "capabilities": {"bounding": ["CAP_KILL"]},
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 2}],
    },
    "root": {"path": "rootfs", "readonly": True},
    "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
    "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}], "futureKey": {"x": 1}},
    "hooks": {"prestart": [{"path": "/bin/true"}]},
}


def changed(path: str, value: Any) -> dict[str, Any]:
    config = copy.deepcopy(GOOD)
    *way, last = path.split(".")
    at: Any = config
    for key in way:
        at = at[int(key)] if key.isdigit() else at[key]
    at[int(last) if last.isdigit() else last] = value
    return config


def test_a_good_config_is_typed() -> None:
    config = parse_config(json.dumps(GOOD))
    assert config.process is not None and config.root is not None and config.linux is not None
    assert config.process.args == ["sh"]
    assert config.root.readonly is True
    assert config.linux.namespaces is not None and config.linux.namespaces[1].type == "mount"


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("ociVersion", 1, r"\$\.ociVersion"),
        ("ociVersion", "2.0.0", r"2\.0\.0.*\$\.ociVersion"),
        ("process.args", "sh", r"\$\.process\.args"),
        ("process.args", [1], r"\$\.process\.args\[0\]|args\[\.\.\.\]"),
        ("process.args", [], r"nothing to run"),
        ("process.cwd", "tmp", r"\$\.process\.cwd"),
        ("process.env", ["A"], r"\$\.process\.env\[0\]"),
        ("process.user", "root", r"\$\.process\.user"),
        ("process.user.uid", -1, r"\$\.process\.user\.uid"),
        ("process.user.uid", "0", r"\$\.process\.user\.uid"),
        ("process.user.additionalGids", [-1], r"\$\.process\.user\.additionalGids"),
        ("process.user.umask", 0o1000, r"\$\.process\.user\.umask"),
        ("process.consoleSize", {"height": -1, "width": 80}, r"\$\.process\.consoleSize"),
        ("linux.cgroupsPath", "/a/../../b", r"\$\.linux\.cgroupsPath"),
        ("process.terminal", "yes", r"\$\.process\.terminal"),
        ("process.capabilities.bounding", "CAP_KILL", r"\$\.process\.capabilities\.bounding"),
        ("process.rlimits.0.type", "RLIMIT_FOO", r"RLIMIT_FOO"),
        ("process.rlimits.0.soft", 3, r"soft limit 3"),
        ("process.oomScoreAdj", 2000, r"oomScoreAdj"),
        ("root", {}, r"\$\.root"),
        ("mounts.0.destination", "proc", r"\$\.mounts\[0\]\.destination"),
        ("linux.namespaces.0.type", "pidd", r"pidd.*\$\.linux\.namespaces\[0\]"),
        ("linux.namespaces.0.type", "mount", r"mount is given twice"),
        ("linux.uidMappings", [{"containerID": 0, "hostID": 1, "size": 1}], r"user namespace"),
        ("linux.devices", [{"type": "x", "path": "/dev/x"}], r"'x'.*\$\.linux\.devices\[0\]"),
        ("linux.devices", [{"type": "c", "path": "/dev/x"}], r"major and minor"),
        ("linux.maskedPaths", ["x"], r"\$\.linux\.maskedPaths\[0\]"),
        ("linux.rootfsPropagation", "odd", r"odd"),
        ("linux.resources", {"memory": {"limit": "1g"}}, r"\$\.linux\.resources\.memory\.limit"),
        ("hooks.prestart.0.path", "true", r"prestart\[0\]"),
        ("hostname", "h", r"uts namespace"),
        ("annotations", {"a": 1}, r"\$\.annotations"),
    ],
)
def test_what_is_wrong_is_said_with_its_path(path: str, value: Any, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words) as caught:
        parse_config(changed(path, value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"{", b"null", b"[]", b"\xff", b'"x"', b"[" * 100_000])
def test_what_is_no_config_at_all(data: bytes) -> None:
    with pytest.raises(InvalidArgument):
        parse_config(data)


def test_a_config_for_another_system_is_refused() -> None:
    with pytest.raises(Unsupported, match="windows"):
        parse_config({"ociVersion": "1.0.2", "windows": {}})


def test_null_is_absent() -> None:
    """Go programs write it for what is empty."""
    for place in (
        "process.env",
        "process.rlimits",
        "process.capabilities",
        "mounts",
        "hooks",
        "linux.devices",
        "annotations",
    ):
        parse_config(changed(place, None))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
PLACES = ["process", "process.args", "process.user", "process.capabilities", "process.rlimits", "root", "mounts",
          "linux", "linux.namespaces", "linux.devices", "linux.resources", "linux.seccomp", "hooks", "hooks.prestart",
          "annotations"]  # fmt: skip


@given(st.sampled_from(PLACES), JSON)
def test_no_value_anywhere_breaks_the_validator(path: str, value: Any) -> None:
    try:
        parse_config(changed(path, value))
    except DrupeError as error:
        assert isinstance(error, InvalidArgument)
