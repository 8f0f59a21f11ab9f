"""How many tasks a pod of the application kernel may have."""

from __future__ import annotations

from pathlib import Path

import pytest

from drupe.sandboxers.appkernel.bounds import most_tasks


@pytest.mark.parametrize(("numbers", "threads", "most"), [(32768, 192731, 4915), (4194304, 100000, 15000)])
def test_no_pod_takes_what_the_host_can_number(tmp_path: Path, numbers: int, threads: int, most: int) -> None:
    (tmp_path / "pid_max").write_text(f"{numbers}\n")
    (tmp_path / "threads-max").write_text(f"{threads}\n")
    assert most_tasks(tmp_path) == most
