"""/proc and /sys as programs read them: what they find here is what they find on Linux."""

from __future__ import annotations

import shutil

import pytest
from tests.integration.test_appkernel import PYTHON, _platform, alike
from tests.integration.test_appkernel_errors import START

pytestmark = pytest.mark.root
__all__ = ["_platform"]

PROGRAMS = {
    "who ends first": """
def get(name): return int(open("/proc/self/" + name).read())
def put(name, value):
    with open("/proc/self/" + name, "w", buffering=1) as file: file.write(f"{value}\\n")
print([oct(os.stat("/proc/self/" + name).st_mode) for name in ("oom_score", "oom_score_adj", "oom_adj")])
def older():
    got = []
    for value in (8, 15): put("oom_adj", value); got.append((get("oom_adj"), get("oom_score_adj")))
    return got
put("oom_score_adj", 0); print(child(older))
base = get("oom_score"); print(600 < base < 1000)
for value in (500, 999, 1000): put("oom_score_adj", value); print(get("oom_adj"),
    abs(get("oom_score") - base - value * 2 // 3) < 9)
print([error(put, "oom_adj", value) for value in (16, -18, "x", "")])
def user():
    os.setresuid(1000, 1000, 1000)
    return error(put, "oom_adj", 3), error(put, "oom_score_adj", -1), error(open, "/proc/self/oom_score", "w")
print(child(user), get("oom_score_adj"))
def kept(): return child(lambda: get("oom_score_adj"))
put("oom_score_adj", 300); print(kept(), os.popen("cat /proc/self/oom_score_adj").read())
""",
    "children": """
def of(pid): return open(f"/proc/{pid}/task/{pid}/children").read()
print(repr(of(os.getpid())))
mine = [os.spawnlp(os.P_NOWAIT, "sleep", "sleep", "60") for _ in range(3)]
print(of(os.getpid()) == "".join(f"{pid} " for pid in sorted(mine)), of(mine[0]))
for pid in mine: os.kill(pid, 9)
for pid in mine: os.waitpid(pid, 0)
print(repr(of(os.getpid())))
""",
    "network": """
print(os.readlink("/proc/net"), os.path.isdir("/proc/net/"))
names = "arp dev if_inet6 raw raw6 route snmp snmp6 sockstat sockstat6 tcp tcp6 udp udp6 udplite unix protocols".split()
print([name for name in names if open(f"/proc/{os.getpid()}/net/{name}").read() is None])
print(set(names) <= set(os.listdir("/proc/self/net")), error(os.listdir, "/proc/self/net/nothing"))
""",
    "processor time": """
def total(): return [int(word) for word in open("/proc/stat").readline().split()[1:]]
def idle(): return float(open("/proc/uptime").read().split()[1])
first, rested = total(), idle(); end = time.process_time() + 0.5
while time.process_time() < end: pass
second = total()
print(sum(second[:3]) - sum(first[:3]) >= 45, second[3] >= first[3], idle() >= rested - 1)
each = [line.split()[1:] for line in open("/proc/stat") if line.startswith("cpu") and line[3] != " "]
print(len(each) == len(os.sched_getaffinity(0)))
""",
    "settings": """
base = "/proc/sys/"
for name in ("vm/overcommit_memory", "vm/overcommit_kbytes", "vm/nr_hugepages", "fs/overflowuid", "kernel/arch",
             "kernel/overflowgid", "kernel/ngroups_max", "net/ipv6/bindv6only", "net/ipv4/tcp_keepalive_probes",
             "net/ipv4/tcp_keepalive_intvl", "net/ipv4/ip_default_ttl", "vm/panic_on_oom", "kernel/sched_rt_period_us"):
    print(name, open(base + name).read().split())
for name in ("cpu/online", "cpu/possible", "cpu/offline", "cpu/cpu0/topology/core_id", "node/online",
             "cpu/cpu0/topology/physical_package_id", "cpu/cpu0/topology/thread_siblings_list"):
    print(name, open("/sys/devices/system/" + name).read())
print([os.path.isdir("/sys/" + name) for name in ("block", "dev/block", "dev/char", "class/block", "class/net", "bus")])
""",
    "namespaces": """
names = sorted(os.listdir("/proc/self/ns")); print(names)
print([os.readlink(f"/proc/self/ns/{name}").split(":")[0] for name in names])
""",
    "memory": """
rows = dict(line.split(":") for line in open("/proc/meminfo"))
wanted = "MemTotal MemFree MemAvailable Buffers Cached SwapCached Active Inactive SwapTotal SwapFree Dirty AnonPages"
wanted += " Mapped Shmem Slab SReclaimable CommitLimit Committed_AS Hugepagesize"
print([name for name in wanted.split() if name not in rows])
print(rows["Hugepagesize"], [open("/proc/vmstat").read().count(name) for name in ("nr_free_pages ", "pswpin ",
    "pswpout ")])
""",
}

# Each says nothing of the machine itself.
COMMANDS = {
    "vmstat": "vmstat -n | head -2; vmstat -s | grep -c -E 'memory|swap'",
    "lscpu": "lscpu -p=CPU,CORE,SOCKET | grep -v '^#'; "
    "lscpu | grep -E '^(Architecture|CPU.s.|Socket|Model name)' | tr -s ' '",
    "free": "free -w | head -1; free | cut -c 1-5",
    "ps": "sleep 50 & ps -o pid=,ppid=,stat=,comm=,nlwp=,ni= --ppid $$ | wc -l; ps -o comm=,ni=,stat= $!; kill $!",
    "pstree": "sleep 50 & pstree -A $$ | tr -s -; kill $!",
    "choom": "choom -n 100 -- choom -p $$ | sed 's/[0-9]*.s /x /'; "
    "choom -n 300 -p $$ | sed 's/^[^ ]* [0-9]*//'; choom -p $$ | tail -1 | cut -d: -f2",
    "pgrep": "sleep 51 & pgrep -P $$ sleep | wc -l; pkill -P $$ sleep; wait $!; echo $?",
    "sysctl": "sysctl -n vm.overcommit_memory kernel.ostype fs.overflowuid; "
    "sysctl -a 2>&1 | grep -c -E '^(vm.nr_hugepages|kernel.arch) '",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_as_on_linux(name: str) -> None:
    """What is to be read, who may write it, and what it does."""
    alike(PYTHON, "-I", "-c", START + PROGRAMS[name])


@pytest.mark.parametrize("name", COMMANDS)
def test_commands(name: str) -> None:
    """Of procps, psmisc and util-linux."""
    if not shutil.which(name):
        pytest.skip(f"{name} is not installed")
    alike("/bin/bash", "-c", COMMANDS[name])
