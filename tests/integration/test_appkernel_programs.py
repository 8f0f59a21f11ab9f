"""Programs that people run, in the application kernel: servers under load, databases, version control, Node.js, pip."""

from __future__ import annotations

import re
import shutil
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from tests.integration.test_appkernel import PYTHON, _platform, alike, here
from tests.integration.test_appkernel_network import Network, network, place

pytestmark = pytest.mark.root
__all__ = ["_platform", "network", "place"]


def need(*programs: str) -> None:
    """Skip where a program is not installed."""
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (scripts/setup.sh --tests)")


def test_redis_under_its_benchmark(network: Network) -> None:
    """Every kind of command of redis-benchmark, and a saved data set."""
    need("redis-server", "redis-benchmark")
    server = network.here("/usr/bin/redis-server", "--port", "7001", "--save", "", "--dir", "/tmp")
    with network.serving(server, 7001):
        load = ["redis-benchmark", "-p", "7001", "-n", "400", "-c", "8", "-P", "4", "--csv"]
        lines = network.output(network.linux(*load, "-t", "set,get,incr,lpush,lrange_100,mset")).splitlines()
        assert len(lines) == 8 and all(float(line.split(",")[1].strip('"')) > 0 for line in lines[1:])
        cli = ["redis-cli", "-p", "7001"]
        assert network.output(network.linux(*cli, "get", "key:__rand_int__")) == "VXK\n"
        network.output(network.linux(*cli, "bgsave"))
        for _ in range(100):
            if "rdb_bgsave_in_progress:0" in network.output(network.linux(*cli, "info", "persistence")):
                break
        assert "rdb_last_bgsave_status:ok" in network.output(network.linux(*cli, "info", "persistence"))


NGINX = """
daemon off; worker_processes 2; pid {0}/pid; error_log stderr;
events {{ worker_connections 64; }}
http {{ access_log off; client_body_temp_path {0}/b; proxy_temp_path {0}/p; fastcgi_temp_path {0}/f;
  uwsgi_temp_path {0}/u; scgi_temp_path {0}/s; sendfile on;
  server {{ listen 7002 reuseport; root {1}; }} }}
"""


def test_nginx_under_load(network: Network, place: Path) -> None:
    """Static files by sendfile, several workers, connections that stay and ones that do not."""
    need("nginx", "ab")
    (place / "file").write_bytes(b"nginx" * 20_000)
    place.chmod(0o755)
    (place / "conf").write_text(NGINX.format("/tmp", place))
    with network.serving(network.here("/usr/sbin/nginx", "-c", str(place / "conf")), 7002):
        for how in (["-k"], []):
            url = "http://127.0.0.1:7002/file"
            report = network.output(network.linux("ab", "-q", "-n", "100", "-c", "8", *how, url))
            assert re.search(r"Complete requests: +100\n", report) and re.search(r"Failed requests: +0\n", report)
            assert re.search(r"HTML transferred: +10000000 bytes", report)


# A database cluster of its own, whose clients wait for each other's locks: timers' signals, semaphores, shared memory.
POSTGRES = """set -e; d=$(mktemp -d); chown nobody $d; cd $d; PATH={0}:$PATH; export PGHOST=$d
own() {{ setpriv --reuid 65534 --regid 65534 --clear-groups -- "$@"; }}
trap 'own pg_ctl -D $d/data -m immediate stop >&2 || true; cd /; rm -rf $d' EXIT
own initdb -D data -U nobody -A trust --no-sync >init
own pg_ctl -D data -l $d/log -w -o "-k $d -c listen_addresses= -c fsync=off -c deadlock_timeout=20ms" start >start
ps -eo args | grep -c '[p]ostgres: checkpointer'
own pgbench -i -q postgres 2>init
own pgbench -c 6 -j 2 -t 20 postgres 2>errors | grep -E 'actually processed|failed'
own psql -U nobody -Atc 'select count(*), (select count(*) from pgbench_history) from pgbench_accounts' postgres
own pg_ctl -D data -m fast stop >stop; grep -c 'terminated by signal' log || true
"""


def test_postgres_under_pgbench() -> None:
    """Backends show their titles, and none of them ends by a signal."""
    need("ps", "setpriv", "pgbench")
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not programs:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    alike("/bin/sh", "-c", POSTGRES.format(programs[-1].parent), timeout_s=240)  # initdb alone starts a dozen servers


SQL = """create table t(a primary key, b); insert into t select value, value * 2 from generate_series(1, 2000);
pragma journal_mode = wal; begin; delete from t where a % 2; rollback; delete from t where a % 3 = 0;
select count(*), sum(b) from t; pragma integrity_check;"""

SOURCE = """#include <stdio.h>
#include <pthread.h>
static void *same(void *p) { return p; }
int main(void) { pthread_t t; pthread_create(&t, 0, same, 0); pthread_join(t, 0); puts("joined"); return 4; }
"""

SCRIPTS = {
    "sqlite3": f"cd $(mktemp -d) && sqlite3 x.db '{SQL}' && sqlite3 x.db 'vacuum; select count(*) from t'",
    "git": "cd $(mktemp -d) && export HOME=$PWD && git init -q r && cd r && git config user.email a@b && git config "
    "user.name n && for i in 1 2 3; do echo $i >f; git add f; git commit -qm m$i; done && git gc -q && cd .. && git "
    "clone -q file://$PWD/r s && git -C s log --format=%s && git -C s fsck && cat s/f",
    "gcc": f"cd $(mktemp -d) && cat >a.c <<'X' && gcc -g -O2 -Wall a.c -o a -pthread && ./a\n{SOURCE}X",
    "node": "exec node -e \"const s = require('http').createServer((q, r) => r.end('served')).listen(0, () => "
    "require('http').get({port: s.address().port}, r => r.on('data', d => console.log(String(d))).on('end', () => "
    "{ console.log(require('child_process').execSync('echo child').toString(), require('fs').readdirSync('/').length); "
    "const w = new (require('worker_threads').Worker)('require(\\'worker_threads\\').parentPort.postMessage(6 * 7)', "
    "{eval: true}); w.on('message', m => { console.log(m); process.exit(9) }) })))\"",
}


@pytest.mark.parametrize("program", SCRIPTS)
def test_as_on_linux(program: str) -> None:
    """A database, version control, a compiler with threads, Node.js."""
    need(program)
    alike("/bin/bash", "-c", SCRIPTS[program])


WORKERS = """
import multiprocessing, concurrent.futures as f
def work(n): return n * n
if __name__ == "__main__":
    for method in ("fork", "spawn", "forkserver"):
        with multiprocessing.get_context(method).Pool(2) as pool: print(pool.map(work, range(5)))
    with multiprocessing.Manager() as manager:
        shared = manager.dict(a=1); print(dict(shared))
    queue = multiprocessing.Queue(); p = multiprocessing.Process(target=queue.put, args=(work(9),)); p.start()
    print(queue.get(), p.join(), p.exitcode)
    value = multiprocessing.Value("i", 5); lock = multiprocessing.Semaphore(2)
    with lock, f.ThreadPoolExecutor(4) as pool: print(sum(pool.map(work, range(9))), value.value)
"""


def test_multiprocessing(place: Path) -> None:
    """All ways to start, with queues, managers and semaphores."""
    (place / "workers.py").write_text(WORKERS)
    alike(PYTHON, str(place / "workers.py"))


def test_pip_installs_a_wheel(place: Path) -> None:
    """A package from a local wheel."""
    wheel = place / "greeting-1.0-py3-none-any.whl"
    metadata = {
        "METADATA": "Metadata-Version: 2.1\nName: greeting\nVersion: 1.0\n",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("greeting.py", "print('hello from a wheel')\n")
        for name, text in metadata.items():
            archive.writestr(f"greeting-1.0.dist-info/{name}", text)
    found = Path(str(getattr(find_spec("pip"), "origin", "")))
    # the clone may lie below /tmp, which is the pod's own there: pip is brought along as files
    shutil.copytree(found.parent, place / "lib/pip")
    install = f"PYTHONPATH={place}/lib {PYTHON} -m pip install -q --no-index --target /tmp/t {wheel}"
    script = f"{install} && PYTHONPATH=/tmp/t {PYTHON} -m greeting"
    done = here("/bin/sh", "-c", script)
    assert (done.stdout, done.returncode) == ("hello from a wheel\n", 0), done.stderr
