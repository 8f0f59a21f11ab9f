"""vfork(2) under the application kernel: a child on its parent's stack, who hears of no signal before it is gone."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from framework.appkernels import KERNEL, skip_without_platform
from framework.probes import needs_program

pytestmark = pytest.mark.root
TIMEOUT_S = 60

# Whoever comes back from vfork early finds the child's changes on its stack, and the child finds those of its handler.
SIGNALS = """
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>
static volatile int heard, children;
static void on(int number) { heard++; }
int main(int argc, char **argv) {
    struct sigaction action = {.sa_handler = on, .sa_flags = argc > 1 ? SA_RESTART : 0};
    volatile int early;
    int status = 0;
    sigaction(SIGUSR1, &action, 0);
    pid_t child = vfork();
    if (child == 0) { children++; kill(getppid(), SIGUSR1); usleep(50000); early = heard; _exit(7); }
    pid_t got = waitpid(child, &status, 0);
    printf("%d %d %d %d %d %d\\n", child > 0, early, heard, children, got == child, WEXITSTATUS(status));
    child = vfork();
    if (child == 0) { kill(getppid(), SIGSTOP); usleep(50000); kill(getppid(), SIGCONT); _exit(3); }
    got = waitpid(child, &status, 0);
    printf("%d %d\\n", got == child, WEXITSTATUS(status));
    if (fork() == 0) {
        if (vfork() == 0) { signal(SIGUSR2, SIG_IGN); kill(getppid(), SIGTERM); usleep(200000); _exit(0); }
        _exit(9);
    }
    wait(&status);
    printf("%d\\n", WIFSIGNALED(status) ? WTERMSIG(status) : -1);
    return 0;
}
"""

# One forks the next, each waits for its own: until no further one can be made, or so many are there.
CHAIN = """
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>
int main(void) {
    static volatile int made;
    for (;;) {
        register pid_t child = vfork();
        if (child < 0) _exit(1);
        if (child == 0) { if (++made < 500) continue; _exit(0); }
        waitpid(child, 0, 0);
        if (--made > 0) _exit(0);
        break;
    }
    puts("done");
    return 0;
}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the programs lie, built."""
    skip_without_platform()
    needs_program("gcc")
    place = tmp_path_factory.mktemp("vfork")
    for name, source in (("signals", SIGNALS), ("chain", CHAIN)):
        (place / f"{name}.c").write_text(source)
        argv = [
            "gcc",
            "-O1",
            "-Werror=implicit-function-declaration",
            "-static",
            "-o",
            str(place / name),
            str(place / f"{name}.c"),
        ]
        subprocess.run(argv, check=True, timeout=TIMEOUT_S)
    return place


def said(argv: list[str]) -> tuple[int, str]:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    return done.returncode, done.stdout


@pytest.mark.parametrize("words", [["signals"], ["signals", "restart"], ["chain"]], ids="-".join)
def test_vfork_is_left_when_the_child_is_gone(place: Path, words: list[str]) -> None:
    """By a signal with a handler no sooner, with and without SA_RESTART; by one that ends the parent at once."""
    expected = said([str(place / words[0]), *words[1:]])
    argv = [str(KERNEL), "run", "--root", "/", "--bind", f"{place}:/mnt", "--", f"/mnt/{words[0]}", *words[1:]]
    assert said(argv) == expected and expected[0] == 0
