"""Stubs that were taken over: programs that write their slots while the kernel reads them, leave what was ordered
undone, and block the signal that calls them. What comes of it is theirs alone: the kernel neither waits for them nor
lets them have more than others."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from framework.appkernels import KERNEL, leaves_nothing, skip_without_platform
from framework.daemon import Daemon
from framework.leaks import wait_until
from framework.probes import needs_program

pytestmark = pytest.mark.root
TIMEOUT_S = 100

# Words of a thread's slot (native/appkernel/hostsys/src/layout.rs), and a system call of the stub's page.
STUB = """
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
static volatile unsigned long *slot(long index) { return (void *)(0x7e0010000000UL + 0x10000 * index); }
enum { FRAME = 1, SIGNAL, INFO, COUNT, FAILED, TURN = 9, ANSWER, IN_ADDRESS, IN_SIZE, OPS = 32, RESULT = OPS + 7 };
static const char *stub_call(void) { return memmem((void *)0x7e0000000000UL, 4096, "\\x0f\\x05", 2); }
static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + t.tv_nsec / 1e9; }
"""

LIARS = {
    # It says that it has forked, and has not: the kernel must not wait for a child that never comes.
    "fork": """
static void *lie(void *_) { for (;;) { slot(0)[COUNT] = 0; slot(0)[RESULT] = 77; } }
int main(void) {
    pthread_t liar;
    int refused = 0;
    pthread_create(&liar, 0, lie, 0);
    usleep(20000);
    double begun = now();
    for (int i = 0; i < 20; i++) {
        pid_t child = fork();
        if (child == 0) _exit(0);
        refused += child < 0;
    }
    fprintf(stderr, "%d refused in %f s\\n", refused, now() - begun);
    _exit(now() - begun < 40 ? 0 : 1);
}
""",
    # All that the kernel reads more than once changes between the two.
    "words": """
static const int words[] = {FRAME, SIGNAL, INFO, COUNT, FAILED, TURN, ANSWER, IN_ADDRESS, IN_SIZE};
static void *lie(void *number) {
    volatile unsigned long *word = &slot(0)[words[(long)number]];
    unsigned long good = *word, lies[] = {0, ~0UL, good + 8, (unsigned long)slot(0) + 0xfff8, (unsigned long)slot(1)};
    for (int i = 0;; i++) { *word = lies[i % 5]; *word = good; }
}
int main(void) {
    for (long n = 0; n < sizeof words / sizeof *words; n++) {
        pid_t child = fork();
        if (child == 0) {
            pthread_t liar;
            pthread_create(&liar, 0, lie, (void *)n);
            for (;;) {
                char text[64];
                int ends[2];
                if (!pipe(ends)) { write(ends[1], text, 64); read(ends[0], text, 64); close(ends[0]); close(ends[1]); }
                munmap(mmap(0, 8192, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), 8192);
            }
        }
        usleep(500000);
        kill(child, SIGKILL);
        wait(0);
    }
    _exit(0);
}
""",
}

# A frame of its own, whose mask blocks the call (SIGURG), and the stub's sigreturn.
DEAF = """
static char stack[65536];
static void spin(void) { for (;;) ; }
int main(void) {
    static unsigned long frame[64];
    frame[0] = 6;
    frame[5 + 15] = (unsigned long)stack + sizeof stack - 128;
    frame[5 + 16] = (unsigned long)spin;
    frame[5 + 17] = 0x202;
    frame[5 + 18] = 0x002b000000000033UL;
    frame[37] = 1UL << 22;
    puts("spins");
    fflush(stdout);
    asm volatile("mov %0, %%rsp; mov $15, %%eax; jmp *%1" ::"r"(frame), "r"(stub_call()));
}
"""


def build(directory: Path, name: str, source: str) -> Path:
    """A static program."""
    needs_program("gcc")
    directory.mkdir(exist_ok=True)
    (directory / f"{name}.c").write_text("#define _GNU_SOURCE\n" + STUB + source)
    argv = [
        "gcc",
        "-O1",
        "-Werror=implicit-function-declaration",
        "-static",
        "-pthread",
        "-o",
        str(directory / name),
        str(directory / f"{name}.c"),
    ]
    subprocess.run(argv, check=True, timeout=TIMEOUT_S)
    return directory / name


@pytest.mark.parametrize("name", LIARS)
def test_who_lies_in_its_slot_is_refused_or_ended_and_the_others_go_on(name: str, tmp_path: Path) -> None:
    """And at once: not when the kernel has lost its patience with each of its lies."""
    skip_without_platform()
    build(tmp_path / "programs", name, LIARS[name])
    script = f"/mnt/{name}; echo $?; (echo alive) | cat"
    argv = [str(KERNEL), "run", "--root", "/", "--bind", f"{tmp_path}/programs:/mnt", "--", "/bin/sh", "-c", script]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    code, alive = done.stdout.split()
    assert alive == "alive" and code in ("0", "137", "139"), done.stderr
    assert "a bug of the kernel" not in done.stderr and "panicked" not in done.stderr, done.stderr


def said(daemon: Daemon, *argv: str) -> str:
    return daemon.command(*argv, check=True).stdout


@pytest.fixture
def pods(daemon: Daemon, tmp_path: Path) -> Iterator[Daemon]:
    with leaves_nothing(daemon, tmp_path):
        yield daemon


def test_who_cannot_be_called_does_not_get_more_than_its_quota(pods: Daemon, tmp_path: Path) -> None:
    """A program that blocks the kernel's call runs on beyond its share: it is ended, and its neighbour is not."""
    build(tmp_path / "programs", "deaf", DEAF)
    given = [{"type": "bind", "source": str(tmp_path / "programs"), "target": "/p", "read_only": True}]
    containers = [
        {"name": name, "image": "busybox", "argv": argv, "mounts": given}
        for name, argv in (("deaf", ["/p/deaf"]), ("other", ["sh", "-c", "while :; do sleep 1; done"]))
    ]
    spec = {"name": "p", "sandbox": "appkernel", "network": {"mode": "none"}, "containers": containers}
    (tmp_path / "pod.json").write_text(json.dumps(spec))
    pods.command("pod", "run", "--file", str(tmp_path / "pod.json"), check=True)
    wait_until(lambda: "spins" in pods.command("logs", "deaf").stdout, what="it spins")
    pods.command("update", "--cpu-quota", "1000", "--cpu-period", "100000", "deaf", check=True)

    def state(name: str) -> str:
        return said(pods, "ps", "-a", "--filter", f"name={name}", "--format", "{{.State}}").strip()

    wait_until(lambda: state("deaf") != "running", what="it is ended", timeout_s=TIMEOUT_S)
    assert state("other") == "running"
    assert "cannot be called" in pods.command("logs", "--sandbox", "p", check=True).stdout
