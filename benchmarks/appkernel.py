"""What system calls cost: natively, under runsc (systrap), in the application kernel; one program, one run, medians.

python benchmarks/appkernel.py
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import tempfile
from pathlib import Path

KERNEL = Path(__file__).parents[1] / "src/drupe/_bin/drupe-appkernel"
ROUNDS = 5
TIMEOUT_S = 120

SOURCE = r"""
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
static int fd, ends[2];
static char bytes[64];
static void call_getppid(void) { syscall(SYS_getppid); }
static void call_read(void) { pread(fd, bytes, 64, 0); }
static void call_stat(void) { struct stat s; int f = open("/etc/passwd", 0); fstat(f, &s); close(f); }
static void call_pipe(void) { write(ends[1], bytes, 1); read(ends[0], bytes, 1); }
static void call_fork(void) { int pid = fork(); if (!pid) _exit(0); waitpid(pid, 0, 0); }
static void measure(const char *name, void (*call)(void), int count) {
    struct timespec a, b;
    for (int i = 0; i < count / 10 + 1; i++) call();
    clock_gettime(CLOCK_MONOTONIC, &a);
    for (int i = 0; i < count; i++) call();
    clock_gettime(CLOCK_MONOTONIC, &b);
    printf("%s %.0f\n", name, ((b.tv_sec - a.tv_sec) * 1e9 + b.tv_nsec - a.tv_nsec) / count);
}
int main(void) {
    fd = open("/etc/passwd", O_RDONLY); pipe(ends);
    measure("getppid", call_getppid, 20000); measure("pread", call_read, 20000);
    measure("open+fstat+close", call_stat, 3000); measure("write+read", call_pipe, 10000);
    measure("fork+wait", call_fork, 100);
    return 0;
}
"""


def measure(argv: list[str]) -> dict[str, list[float]]:
    """Nanoseconds by name, over some runs."""
    found: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        done = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
        for line in done.stdout.splitlines():
            name, value = line.split()
            found.setdefault(name, []).append(float(value))
    return found


def main() -> None:
    """Build the program, measure, print a table in Markdown."""
    with tempfile.TemporaryDirectory(dir="/var/lib") as work:
        program = Path(work) / "calls"
        subprocess.run(
            ["gcc", "-O1", "-static", "-w", "-x", "c", "-", "-o", program], input=SOURCE.encode(), check=True
        )
        ways = {"native": [str(program)], "drupe-appkernel": [str(KERNEL), "run", "--root", "/", "--", str(program)]}
        if shutil.which("runsc"):
            ways["runsc"] = ["runsc", "--network=none", "--platform=systrap", "--ignore-cgroups", "do", str(program)]
        figures = {way: measure(argv) for way, argv in ways.items()}
    print("| ns | " + " | ".join(figures) + " |\n|---|" + "---|" * len(figures))
    for name in figures["native"]:
        cells = [f"{statistics.median(found[name]):.0f}" for found in figures.values()]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
