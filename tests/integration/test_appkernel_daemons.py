"""Programs that users bring next, in the application kernel: a database server, Java, Go, Perl, packages, cron, SSH.

Each runs in a network namespace with loopback alone, first on Linux, then here; what it says must be the same.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.integration.test_appkernel import _platform
from tests.integration.test_appkernel_network import Network, network, place

from framework.probes import needs_full, needs_program

pytestmark = [pytest.mark.root, pytest.mark.timeout(900)]
__all__ = ["_platform", "network", "place"]
PROGRAM_S = 400  # a machine that has other work


def said(command: list[str]) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=PROGRAM_S, check=False, stdin=subprocess.DEVNULL
    )
    return f"{done.stdout}{done.returncode}"


def alike(network: Network, script: str) -> None:
    """A bash script says here what it says on Linux, and ends well."""
    command = ["/bin/bash", "-c", "set -e; d=$(mktemp -d); chmod 755 $d; cd $d; export LC_ALL=C\n" + script]
    expected = said(network.linux(*command))
    assert expected.endswith("\n0"), expected
    assert said(network.here(*command)) == expected


PERL = r"""perl -Mthreads -MSocket -MPOSIX -e '
my @all = map { my $n = $_; threads->create(sub { $n * 2 }) } 1..4; print join(",", map { $_->join } @all), "\n";
open(my $child, "-|", "echo child") or die; print <$child>; close $child; print $? >> 8, "\n";
local $SIG{ALRM} = sub { print "alarm\n" }; alarm 1; POSIX::pause();
socketpair(my $a, my $b, AF_UNIX, SOCK_STREAM, PF_UNSPEC); syswrite $a, "through\n"; print scalar <$b>;
my $pid = fork; if (!$pid) { exec "/bin/sh", "-c", "exit 5" } waitpid $pid, 0;
print $? >> 8, " ", (stat "/etc/passwd")[2], "\n"'
"""

SSH = r"""
ssh-keygen -q -t ed25519 -N '' -f host; ssh-keygen -q -t ed25519 -N '' -f key; mkdir -p /run/sshd
printf 'Port 7120\nListenAddress 127.0.0.1\nHostKey %s/host\nPidFile none\nAuthorizedKeysFile %s/key.pub\n' $d $d >conf
printf 'StrictModes no\nUsePAM no\nPermitRootLogin yes\nSubsystem sftp internal-sftp\n' >>conf
$(command -v sshd) -D -e -f conf 2>log & server=$!
until grep -q listening log; do kill -0 $server; sleep 0.1; done
options="-q -F none -i key -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
ssh="ssh -p 7120 $options root@127.0.0.1"
$ssh 'echo "$(id -un), $(echo $SSH_CONNECTION | cut -d" " -f3-)"; exit 7' || echo "ended with $?"
head -c 1000000 /dev/urandom >data; $ssh cat <data | cmp - data; $ssh -tt tty </dev/null | grep -c /dev/pts/
echo "put data copy" | sftp -P 7120 $options root@127.0.0.1:$d >/dev/null; cmp data copy; echo copied
kill $server; wait $server || echo "sshd: $?"
"""

PACKAGES = r"""
mkdir -p pkg/DEBIAN pkg/usr/bin repo state/lists/partial cache/archives/partial etc/preferences.d
mkdir -p root/var/lib/dpkg/{updates,info}
cat >pkg/DEBIAN/control <<X
Package: greeting
Version: 1.0
Architecture: all
Maintainer: m <m@example.org>
Description: hello
X
printf '#!/bin/sh\necho configured "$1"\n' >pkg/DEBIAN/postinst; printf '#!/bin/sh\necho hello\n' >pkg/usr/bin/greeting
chmod 755 pkg/DEBIAN/postinst pkg/usr/bin/greeting; dpkg-deb --root-owner-group -b pkg repo/greeting.deb >/dev/null
cat >repo/Packages <<X
$(cat pkg/DEBIAN/control)
Filename: ./greeting.deb
Size: $(stat -c %s repo/greeting.deb)
SHA256: $(sha256sum repo/greeting.deb | cut -d' ' -f1)
X
/usr/bin/python3 -m http.server --bind 127.0.0.1 --directory repo 7110 >log 2>&1 & server=$!
until (: </dev/tcp/127.0.0.1/7110) 2>/dev/null; do kill -0 $server; sleep 0.1; done
echo "deb [trusted=yes] http://127.0.0.1:7110 ./" >etc/sources.list; : >root/var/lib/dpkg/status
apt() { apt-get -q -o Dir::Etc=$d/etc -o Dir::State=$d/state -o Dir::State::status=$d/root/var/lib/dpkg/status \
  -o Dir::Cache=$d/cache -o Acquire::Languages=none -o Acquire::http::Proxy=DIRECT -o Dpkg::Use-Pty=0 \
  -o Dpkg::Options::=--root=$d/root -o Dpkg::Options::=--force-script-chrootless "$@"; }
apt update 2>&1 | grep -E '^(W:|E:)' || true; apt install -y greeting 2>&1 | grep -E '^(Unpacking|Setting|conf|E:)'
sh root/usr/bin/greeting; grep Status root/var/lib/dpkg/status; kill $server; wait $server || true
"""

POSTGRES = r"""
export PATH=$(echo /usr/lib/postgresql/*/bin):$PATH; chmod 777 $d
as() { setpriv --reuid=65534 --regid=65534 --clear-groups "$@"; }
as initdb -D $d/data -A trust -U me >init.log 2>&1
settings="-p 7100 -k $d -c listen_addresses=127.0.0.1 -c max_connections=20"
as pg_ctl -D $d/data -o "$settings" -l $d/log -w -t 300 start >/dev/null
sql() { psql -q -h "$1" -p 7100 -U me -At bench -c "$2"; }
createdb -h 127.0.0.1 -p 7100 -U me bench; pgbench -q -h 127.0.0.1 -p 7100 -U me -i bench >/dev/null 2>&1
pgbench -h $d -p 7100 -U me -c 4 -j 2 -t 25 bench 2>/dev/null | grep -E 'actually|failed'
sql 127.0.0.1 "select count(*), sum(delta) = (select sum(bbalance) from pgbench_branches) from pgbench_history"
sql $d "vacuum analyze"; sql $d "select count(*) from pgbench_accounts where aid % 7 = 0"
as pg_ctl -D $d/data -m fast -w -t 300 stop >/dev/null; grep -E "PANIC|FATAL" log || echo "without a word"
"""

JAVA = r"""
cat >T.java <<'X'
import java.io.*; import java.net.*; import java.nio.file.*; import java.util.concurrent.*; import java.util.stream.*;
public class T { public static void main(String[] a) throws Exception {
  ExecutorService pool = Executors.newFixedThreadPool(8); long sum = 0;
  for (Future<Integer> f :
    IntStream.range(0, 50).mapToObj(n -> pool.submit(() -> n * n)).collect(Collectors.toList())) sum += f.get();
  pool.shutdown(); System.out.println(sum);
  ServerSocket server = new ServerSocket(0, 5, InetAddress.getLoopbackAddress());
  Thread thread = new Thread(() -> { try (Socket s = server.accept()) {
    s.getOutputStream().write("served\n".getBytes()); }
    catch (IOException e) { e.printStackTrace(); } }); thread.start();
  try (Socket s = new Socket(server.getInetAddress(), server.getLocalPort())) {
    System.out.println(new BufferedReader(new InputStreamReader(s.getInputStream())).readLine()); }
  Process child = new ProcessBuilder("echo", "child").start();
  System.out.println(new String(child.getInputStream().readAllBytes()) + child.waitFor());
  Path file = Files.createTempFile("x", ""); Files.writeString(file, "text");
  System.out.println(Files.readString(file));
  byte[][] kept = new byte[32][]; for (int i = 0; i < 600; i++) kept[i % 32] = new byte[1 << 18]; System.gc();
  System.out.println(kept[3].length); } }
X
java -Xmx200m T.java
"""

GO = r"""package main
import ("fmt"; "net"; "net/http"; "io"; "os/exec"; "os/signal"; "os"; "sync"; "syscall"; "time")
func main() {
  l, err := net.Listen("tcp", "127.0.0.1:0"); if err != nil { panic(err) }
  go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
    fmt.Fprintf(w, "served %s", r.URL.Path) }))
  var group sync.WaitGroup; counts := make(chan int, 100)
  for i := 0; i < 100; i++ { group.Add(1); go func() { defer group.Done()
    r, err := http.Get("http://" + l.Addr().String() + "/x"); if err != nil { panic(err) }
    b, _ := io.ReadAll(r.Body); r.Body.Close(); counts <- len(b) }() }
  group.Wait(); close(counts); sum := 0; for n := range counts { sum += n }; fmt.Println(sum)
  out, err := exec.Command("echo", "child").Output(); fmt.Println(string(out), err)
  c := make(chan os.Signal, 1); signal.Notify(c, syscall.SIGUSR1)
  syscall.Kill(os.Getpid(), syscall.SIGUSR1); fmt.Println(<-c)
  select { case <-time.After(10 * time.Millisecond): fmt.Println("after") }
}
"""

LONG = {
    "postgres": (("initdb", "pgbench"), POSTGRES),
    "java": (("java",), JAVA),
    "sshd": (("sshd", "sftp"), SSH),
    "apt": (("apt-get", "dpkg-deb"), PACKAGES),
}


def test_perl(network: Network) -> None:
    """Threads, children, signals, sockets."""
    needs_program("perl")
    alike(network, PERL)


@pytest.mark.parametrize("name", LONG)
def test_long(network: Network, name: str) -> None:
    """PostgreSQL under its benchmark, a JVM, a session of SSH, a package of a repository."""
    needs_full(name)
    programs, script = LONG[name]
    if name != "postgres":
        needs_program(*programs)
    elif not list(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or shutil.which("psql") is None:
        pytest.skip("PostgreSQL is not installed")
    alike(network, script)


def test_go(network: Network, place: Path) -> None:
    """A static program with hundreds of goroutines, HTTP, children and signals, by a runtime without a C library."""
    needs_full("go")
    needs_program("go")
    (place / "main.go").write_text(GO)
    (place / "go.mod").write_text("module m\ngo 1.19\n")
    own = {
        "CGO_ENABLED": "0",
        "GOTOOLCHAIN": "local",
        "GOPROXY": "off",
        "GOCACHE": f"{place}/cache",
        "HOME": str(place),
    }
    build = ["go", "build", "-o", "static", "."]
    subprocess.run(build, cwd=place, env=os.environ | own, check=True, timeout=PROGRAM_S)
    alike(network, f"{place}/static")


def test_cron(network: Network) -> None:
    """A daemon that watches the clock ends when it is told."""
    needs_program("cron")
    alike(network, "cron -f & sleep 0.5; kill $!; wait $! || echo $?")


def test_a_static_program_in_go(network: Network) -> None:
    """Whose runtime asks for signals, threads and memory without a C library."""
    needs_program("docker-registry")
    alike(network, "docker-registry --version | sed 's/ .*//'")
