"""Threads that map and unmap memory at once: what one of them gives back, another may have at once, and keeps."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from framework.appkernels import KERNEL, skip_without_platform
from framework.probes import needs_program

pytestmark = pytest.mark.root
TIMEOUT_S = 100

MAPS = """
#define _GNU_SOURCE  /* else mremap is an int, and what is unmapped lies elsewhere, now and then in the heap */
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
static void *work(void *seconds) {
    time_t end = time(0) + (long)seconds;
    for (long n = 0; time(0) < end; n++) {
        char *at = mmap(0, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (at == MAP_FAILED) return "no memory";
        memset(at, (int)n, 65536);
        if (n % 3 == 0) at = mremap(at, 65536, 32768, 0), munmap(at, 32768);
        else munmap(at, 65536);
    }
    return 0;
}
int main(void) {
    pthread_t threads[6];
    for (int i = 0; i < 6; i++) pthread_create(&threads[i], 0, work, (void *)3L);
    for (int i = 0; i < 6; i++) {
        void *failed;
        pthread_join(threads[i], &failed);
        if (failed) puts(failed);
    }
    puts("done");
    return 0;
}
"""


def test_memory_that_a_thread_was_given_stays_its_own(tmp_path: Path) -> None:
    """The host lets threads run when it likes: an address that is free again must be free there, too."""
    skip_without_platform()
    needs_program("gcc")
    (tmp_path / "maps.c").write_text(MAPS)
    argv = ["gcc", "-O1", "-Werror", "-static", "-pthread", "-o", str(tmp_path / "maps"), str(tmp_path / "maps.c")]
    subprocess.run(argv, check=True, timeout=TIMEOUT_S)
    here = [str(KERNEL), "run", "--root", "/", "--bind", f"{tmp_path}:/mnt", "--", "/mnt/maps"]
    for command in ([str(tmp_path / "maps")], here):
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        assert (done.returncode, done.stdout) == (0, "done\n"), (command, done.stderr)
