"""The doctor on this host: what it says must be true, and nothing may be left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from drupe.services.doctor import can_run_runc, probe_all
from framework import probes


@pytest.mark.root
def test_a_host_that_can_run_pods(tmp_path: Path) -> None:
    probes.needs_program("crun", "runc", "unshare", "mkfs.erofs")
    probes.needs_keeper()
    found = {probe.name: probe for probe in probe_all(fresh=True, cache=tmp_path / "doctor.json")}
    assert can_run_runc(list(found.values()))
    for name in (
        "root",
        "keeper",
        "crun",
        "runc",
        "overlay",
        "user namespaces",
        "seccomp",
        "nftables",
        "bridge",
        "EROFS",
    ):
        assert found[name].state == "ok", found[name]
    assert found["crun"].cause.startswith("crun version")
    assert found["KVM"].state == "warn"


@pytest.mark.root
def test_without_programs_each_says_what_to_install(tmp_path: Path) -> None:
    environment = os.environ | {"PATH": str(tmp_path), "DRUPE_RUN": str(tmp_path), "DRUPE_KEEPER": "/no/keeper"}
    command = [sys.executable, "-m", "drupe", "doctor", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    found = {probe["name"]: probe for probe in json.loads(done.stdout)}
    assert found["crun"]["mend"] == "apt-get install crun"
    assert found["runc"]["mend"] == "apt-get install runc"
    assert found["keeper"]["cause"] == "no program /no/keeper"
    assert found["kind runc"]["state"] == "fail"


@pytest.mark.root
def test_without_root_it_says_so(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    code = (
        "import os, drupe.keeper.start; from drupe.services.doctor import probe_all; from pathlib import Path;"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534);"  # after the imports: they may lie below /root
        f"found = {{p.name: p for p in probe_all(fresh=True, cache=Path({str(tmp_path)!r}) / 'd.json')}};"
        "assert found['root'].mend == 'run as root', found['root'];"
        "assert found['kind runc'].state == 'fail'; assert found['overlay'].state == 'fail', found['overlay']"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
