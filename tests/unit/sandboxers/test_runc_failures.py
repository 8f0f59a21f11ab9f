"""What crun and the keeper say when a container cannot be made, in words that one can act on."""

from __future__ import annotations

import pytest

from drupe.errors import DrupeError, HelperFailed, NotFound, PermissionDenied, ResourceExhausted
from drupe.sandboxers.runc.tasks import explain

PROCESS = {"args": ["prog"], "cwd": "/work"}


@pytest.mark.parametrize(
    ("cause", "kind", "words"),
    [
        ('{"msg": "executable file `prog` not found in $PATH"}', NotFound, "'prog'"),
        ("open executable: Permission denied", PermissionDenied, "'prog'"),
        ("chdir to `/work`: No such file", NotFound, "'/work'"),
        ("cannot join cgroup /x/tasks: Too many open files (os error 24)", ResourceExhausted, "no room"),
        ("something else", HelperFailed, "something else"),
        ("", HelperFailed, "crun exited with 1"),
    ],
)
def test_failures(cause: str, kind: type[DrupeError], words: str) -> None:
    found = explain(HelperFailed("crun exited with 1", cause=cause), PROCESS)
    assert type(found) is kind and words in str(found), found
