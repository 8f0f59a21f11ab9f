"""Programs that nobody here wrote, as Debian has them, under gVisor: one image, one sandbox."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from framework import images, probes
from framework.daemon import Daemon

pytestmark = [pytest.mark.root, pytest.mark.slow]
PACKAGES = "python3-minimal,redis-server,redis-tools,nginx-light,apache2-utils,tcc,libc6-dev"
IMAGE = "debian:work"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, busybox: Path) -> Iterator[Daemon]:
    """A daemon with a container that sleeps, in an image with all the programs."""
    probes.needs_root()
    probes.needs_keeper()
    probes.needs_program("runsc", "mmdebstrap", "unshare", "nsenter", "ip")
    daemon = Daemon(tmp_path_factory.mktemp("d"))
    images.copy_store(busybox, daemon.root)
    script = images.SCRIPTS / "make-debian-image.sh"
    argv = [script, "--root", daemon.root / "images", "--tag", IMAGE, "--include", PACKAGES]
    subprocess.run(argv, check=True, capture_output=True, timeout=600)
    try:
        daemon.start()
        daemon.command("run", "-d", "--name", "work", "--sandbox", "gvisor", IMAGE, "sleep", "1000", check=True)
        yield daemon
    finally:
        daemon.close()


def sh(daemon: Daemon, script: str) -> str:
    return daemon.command("exec", "work", "sh", "-ec", script, check=True, timeout_s=60).stdout


PYTHON = """
import hashlib, threading
adding = threading.Thread(target=lambda: print(sum(range(10**6))))
adding.start(); adding.join()
print(hashlib.sha256(b"x").hexdigest()[:8])
"""
SOURCE = """
#include <stdio.h>
int main(void) { printf("%d", 6 * 7); return 0; }
"""
MANY = """
import os
os.makedirs("/srv/s")
for n in range(1000):
    open(f"/srv/s/{n}", "w").write(str(n))
"""
START_REDIS = "cd /tmp; redis-server --daemonize yes --dir /tmp >&2; until redis-cli ping >&2; do sleep 0.05; done; "


def test_python(daemon: Daemon) -> None:
    assert sh(daemon, f"python3 - <<'END'\n{PYTHON}\nEND") == "499999500000\n2d711642\n"


def test_redis_with_its_benchmark(daemon: Daemon) -> None:
    """A server that others of the pod speak to; what it saves is found again."""
    out = sh(daemon, START_REDIS + "redis-benchmark -n 2000 -c 10 -t set,get --csv")
    rates = {line.split(",")[0].strip('"'): float(line.split(",")[1].strip('"')) for line in out.splitlines()[1:]}
    assert set(rates) == {"SET", "GET"} and min(rates.values()) > 100
    sh(daemon, "redis-cli set kept yes; redis-cli shutdown save")
    assert sh(daemon, START_REDIS + "redis-cli get kept") == "yes\n"


def test_nginx_under_load(daemon: Daemon) -> None:
    out = sh(daemon, "nginx; sleep 0.2; ab -q -k -n 300 -c 4 http://127.0.0.1/")
    assert "Complete requests:      300" in out and "Failed requests:        0" in out


def test_a_compiler_builds_a_program_that_runs(daemon: Daemon) -> None:
    assert sh(daemon, f"cd /root; cat >a.c <<'END'\n{SOURCE}\nEND\ntcc -o a a.c; ./a") == "42"


def test_many_small_files(daemon: Daemon) -> None:
    """Written, packed, unpacked and compared; and true in the container's layer."""
    sh(daemon, f"python3 - <<'END'\n{MANY}\nEND")
    sh(daemon, "mkdir /srv/d; tar c -C /srv/s . | tar x -C /srv/d; diff -r /srv/s /srv/d")
    layer = next((daemon.root / "containers").glob("*/upper"))
    assert len(list((layer / "srv/d").iterdir())) == 1000 and (layer / "srv/d/999").read_text() == "999"
