"""Instructions and places by which a program might get round its kernel: other ways to call, the stub's own pages,
segment bases, flags. What Linux makes of them is made of them here; what would reach the host ends in an error, or with
the program."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from framework.appkernels import KERNEL, skip_without_platform
from framework.probes import needs_program

pytestmark = pytest.mark.root
TIMEOUT_S = 100

START = r"""
#define _GNU_SOURCE
#include <asm/prctl.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#define STUB 0x7e0000000000UL
#define SLOTS 0x7e0010000000UL
#define ASM(code) asm volatile(code)
static long victim;
#define LOW ((unsigned char *)0x30000000)
static void low(const void *code, size_t size, const void *after, size_t more) {
    mmap(LOW, 8192, 7, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    memcpy(LOW, code, size);
    memcpy(LOW + 256, after, more);
}
static void far_jump(void) {
    struct { unsigned at; unsigned short segment; } __attribute__((packed)) to = { 0x30000000, 0x23 };
    asm volatile("ljmp *%0" ::"m"(to));
}
/* In 32-bit code: int 0x80; back in 64-bit code: exit_group with what it gave. */
static void call_32(unsigned number, unsigned first, unsigned second) {
    unsigned char code[] = { 0xb8, 0, 0, 0, 0, 0xbb, 0, 0, 0, 0, 0xb9, 0, 0, 0, 0, 0xcd, 0x80, 0xea, 0, 1, 0, 0x30,
        0x33, 0 };
    unsigned char back[] = { 0x89, 0xc7, 0xb8, 231, 0, 0, 0, 0x0f, 0x05 };
    memcpy(code + 1, &number, 4);
    memcpy(code + 6, &first, 4);
    memcpy(code + 11, &second, 4);
    low(code, sizeof code, back, sizeof back);
    far_jump();
}
static long int80(long number, long first, long second) {
    long got;
    asm volatile("int $0x80" : "=a"(got) : "0"(number), "b"(first), "c"(second) : "memory", "r8", "r9", "r10", "r11");
    return got;
}
static void ends(const char *what, void (*act)(void)) {
    int how;
    fflush(stdout);
    pid_t pid = fork();
    if (!pid) {
        alarm(3);
        act();
        fflush(stdout);
        _exit(0);
    }
    waitpid(pid, &how, 0);
    if (WIFSIGNALED(how)) printf("%s: signal %d\n", what, WTERMSIG(how));
    else printf("%s: exit %d\n", what, WEXITSTATUS(how));
}
static const char *error(long got) { return got == -1 ? strerrorname_np(errno) : "done"; }
"""

# By name; each runs in a process of its own.
ALIKE = {
    "sysenter": 'ASM("mov $39, %eax; sysenter");',
    "a 32-bit loop": "unsigned char loop[] = { 0xeb, 0xfe }; low(loop, 2, loop, 2); far_jump();",
    "vsyscall": "long (*now)(long *) = (void *)0xffffffffff600400; _exit(now(0) > 1000000000);",
    "the vsyscall page": "_exit(*(volatile char *)0xffffffffff600000);",
    "gs in the kernel": "_exit(syscall(SYS_arch_prctl, ARCH_SET_GS, 0xffff800000000000UL) == -1 && errno == EPERM);",
    "wrgsbase": 'ASM("mov $0x1234000, %eax; wrgsbase %rax"); _exit(getpid() > 0);',
    "fs where nothing is": "syscall(SYS_arch_prctl, ARCH_SET_FS, 0x7f0000000000UL); *(volatile char *)0 = 1;",
    "no stack": 'ASM("mov $0x10, %rsp; mov $39, %eax; syscall; push %rax");',
    "a stack in the kernel": 'ASM("mov $0xffffffff81000000, %rsp; mov $39, %eax; syscall; push %rax");',
    "trap flag": 'ASM("pushf; orl $0x100, (%rsp); popf; nop; mov $39, %eax; syscall; nop");',
    "alignment flag": 'ASM("pushf; orl $0x40000, (%rsp); popf; mov 1(%rsp), %rax");',
    "direction flag": 'ASM("std; mov $39, %eax; syscall; cld");',
    "hlt": 'ASM("hlt");',
    "ud2": 'ASM("ud2");',
    "int3": 'ASM("int3");',
    "int 0x2e": 'ASM("int $0x2e");',
    "ports": 'ASM("inb $0x70, %al");',
    "control registers": 'ASM("mov %cr0, %rax");',
    "model registers": 'ASM("mov $0xc0000082, %ecx; rdmsr");',
    "descriptor tables": 'ASM("push $0; push $0; lgdt (%rsp)");',
    "swapgs": 'ASM("swapgs");',
    "iret to nowhere": 'ASM("push $0x2b; push $0; push $0x3202; push $0x33; push $0; iretq");',
    "iret to the kernel": 'ASM("push $0x10; push $0; push $0x3202; push $0x8; push $0; iretq");',
    "rdtsc": 'ASM("rdtsc; test %eax, %eax; jnz 1f; ud2; 1:");',
    "a jump to the kernel": "((void (*)(void))0xffffffff81000000UL)();",
    "a jump to no address": "((void (*)(void))0x8000000000000000UL)();",
    "a handler in the kernel": "signal(SIGUSR1, (void *)0xffffffff81000000UL); raise(SIGUSR1);",
    "a frame of nonsense": 'ASM("mov $15, %eax; syscall");',
}

# And those that are not as on Linux, with what may come of them.
CALLS = {
    "getpid by int 0x80": ("_exit(int80(20, 0, 0) == -ENOSYS);", {"exit 1"}),
    "kill by int 0x80": ("_exit(int80(37, victim, 9) == -ENOSYS);", {"exit 1"}),
    "open by int 0x80": (
        'low("/etc/passwd", 12, "", 1); _exit(int80(5, (long)LOW, 0) == -ENOSYS);',
        {"exit 1"},
    ),
    "getpid in 32-bit code": ("call_32(20, 0, 0);", {"exit 218"}),  # ENOSYS
    "kill in 32-bit code": ("call_32(37, victim, 9);", {"exit 218"}),
    "mmap in 32-bit code": ("call_32(192, 0, 4096);", {"exit 218"}),
    "dispatch": ('_exit(prctl(59, 1, 0, 0, "") == -1 && errno == EINVAL && getpid() > 0);', {"exit 1"}),
    "no reading of the clock": ("_exit(prctl(PR_SET_TSC, PR_TSC_SIGSEGV) == -1);", {"exit 1"}),
    "the stub's code": ("*(volatile char *)STUB = 0x90;", {"signal 11"}),
    "its own slot": ("memset((void *)SLOTS, 0xff, 4096); getppid();", {"exit 0", "signal 9", "signal 11"}),
    "nothing in its slot": ("memset((void *)SLOTS, 0, 65536); getppid();", {"exit 0", "signal 9", "signal 11"}),
    "another slot": ("memset((void *)(SLOTS + 0x10000), 0xff, 256); fork();", {"exit 0", "signal 9", "signal 11"}),
    "gs in a slot": ("syscall(SYS_arch_prctl, ARCH_SET_GS, SLOTS); _exit(getpid() > 0);", {"exit 1", "signal 11"}),
    "a stack in a slot": (
        'asm volatile("mov %0, %%rsp; mov $39, %%eax; syscall; push %%rax" ::"r"(SLOTS + 0x8000));',
        {"signal 9", "signal 11"},
    ),
    "a handler in the stub": (
        "signal(SIGUSR1, (void *)STUB); raise(SIGUSR1);",
        {"exit 0", "signal 9", "signal 11", "signal 14"},
    ),
    "into the stub": ("((void (*)(void))(STUB + 1))();", {"exit 0", "signal 4", "signal 9", "signal 11", "signal 14"}),
    "none of the stub": ("madvise((void *)STUB, 4096, MADV_DONTNEED); getppid();", {"exit 0", "signal 9", "signal 11"}),
    "none of the slots": (
        "madvise((void *)SLOTS, 65536, MADV_DONTNEED); getppid();",
        {"exit 0", "signal 9", "signal 11"},
    ),
}

PLACES = """
int main(void) {
    unsigned long places[] = { STUB, SLOTS, SLOTS + 0x10000, 0x7dff00000000UL, 0x7ffffffff000UL, 0xffffffff81000000UL };
    void *own = mmap(0, 8192, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int i = 0; i < 6; i++) {
        void *at = (void *)places[i];
        printf("%s ", error((long)mmap(at, 4096, 7, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)));
        printf("%s ", error((long)mmap(at, 4096, 7, MAP_FIXED_NOREPLACE | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)));
        printf("%s %s %s ", error(mprotect(at, 4096, 7)), error(munmap(at, 4096)), error(mlock(at, 4096)));
        printf("%s ", error((long)mremap(at, 4096, 8192, MREMAP_MAYMOVE)));
        printf("%s\\n", error((long)mremap(own, 4096, 4096, MREMAP_MAYMOVE | MREMAP_FIXED, at)));
    }
    long between = munmap((void *)0x7dfefffff000UL, STUB - 0x7dfefffff000UL + 4096);
    printf("%s %s\\n", between ? "refused" : "done", error((long)mmap(0, 1UL << 47, 3, MAP_PRIVATE | MAP_ANONYMOUS,
        -1, 0)));
}
"""


@pytest.fixture(scope="module", autouse=True)
def _platform() -> None:
    skip_without_platform()


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "1000"]) as running:
        yield running
        running.kill()


def build(directory: Path, source: str) -> Path:
    needs_program("gcc")
    directory.mkdir()
    (directory / "program.c").write_text(START + source)
    argv = [
        "gcc",
        "-O1",
        "-Werror=implicit-function-declaration",
        "-static",
        "-o",
        str(directory / "program"),
        str(directory / "program.c"),
    ]
    subprocess.run(argv, check=True, timeout=TIMEOUT_S)
    return directory / "program"


def acts(bodies: dict[str, str]) -> str:
    made = "".join(f"static void act_{at}(void) {{ {body} }}\n" for at, body in enumerate(bodies.values()))
    run = "".join(f'    ends("{name}", act_{at});\n' for at, name in enumerate(bodies))
    begin = "int main(int count, char **words) {\n    victim = count > 1 ? atol(words[1]) : 0;\n"
    return f"{made}{begin}{run}    return 0;\n}}"


def here(program: Path, *words: str) -> list[str]:
    """What a program says in the kernel, which goes on beside it and after it."""
    script = f'/mnt/{program.name} "$@"; (echo alive) | cat'
    argv = [str(KERNEL), "run", "--root", "/", "--bind", f"{program.parent}:/mnt", "--", "/bin/sh", "-c", script, "sh"]
    done = subprocess.run([*argv, *words], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    lines = done.stdout.splitlines()
    assert lines and lines[-1] == "alive", done.stderr
    assert "a bug of the kernel" not in done.stderr and "panicked" not in done.stderr, done.stderr
    return lines[:-1]


def test_instructions_do_what_they_do_on_linux(tmp_path: Path) -> None:
    """Segment bases, flags, privileged instructions, returns and jumps to places that are the kernel's."""
    program = build(tmp_path / "c", acts(ALIKE))
    linux = subprocess.run([program], capture_output=True, text=True, timeout=TIMEOUT_S, check=True).stdout.splitlines()
    assert len(linux) == len(ALIKE) and here(program) == linux


def test_other_ways_to_call_reach_nobody(tmp_path: Path, victim: subprocess.Popen[bytes]) -> None:
    """Interrupts, 32-bit code, the stub's pages: an error, or the program's end; the host's process lives."""
    program = build(tmp_path / "c", acts({name: body for name, (body, _) in CALLS.items()}))
    said = dict(line.split(": ") for line in here(program, str(victim.pid)))
    wrong = {name: said.get(name) for name, (_, may) in CALLS.items() if said.get(name) not in may}
    assert wrong == {} and victim.poll() is None


def test_the_stubs_addresses_cannot_be_had(tmp_path: Path) -> None:
    """Neither mapped over nor protected otherwise, moved, locked or taken away: errors, as of no address."""
    *places, last = here(build(tmp_path / "c", PLACES))
    assert places == ["ENOMEM ENOMEM ENOMEM EINVAL ENOMEM ENOMEM ENOMEM"] * 6 and last == "refused ENOMEM"
