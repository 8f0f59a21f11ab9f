/* The programs that the contract suite runs (drupe.sandboxers.fake.programs says what each does), and some that do
 * harm, as one WASI command: the name it is called by says which. Built by tests/framework/guests.py. */

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static int words(FILE *to, int argc, char **argv) {
    for (int i = 1; i < argc; i++) fprintf(to, i > 1 ? " %s" : "%s", argv[i]);
    fputc('\n', to);
    return 0;
}

static int copy(int from) {
    char buffer[4096];
    ssize_t count;
    while ((count = read(from, buffer, sizeof buffer)) > 0)
        for (ssize_t done = 0; done < count;) {
            ssize_t wrote = write(1, buffer + done, count - done);
            if (wrote < 0) return 1;
            done += wrote;
        }
    return count < 0;
}

static int fail(const char *what) {
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    return 1;
}

static int cat(int argc, char **argv) {
    if (argc < 2) return copy(0);
    int file = open(argv[1], O_RDONLY);
    return file < 0 ? fail(argv[1]) : copy(file);
}

static int put(char **argv) {
    int file = open(argv[1], O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (file < 0 || write(file, argv[2], strlen(argv[2])) < 0) return fail(argv[1]);
    return close(file) ? fail(argv[1]) : 0;
}

static int list(const char *path) {
    DIR *directory = opendir(path);
    if (!directory) return fail(path);
    for (struct dirent *entry; (entry = readdir(directory));)
        if (entry->d_name[0] != '.') puts(entry->d_name);
    return 0;
}

static int nap(const char *seconds) {
    double wanted = atof(seconds);
    struct timespec time = {(time_t)wanted, (long)((wanted - (time_t)wanted) * 1e9)};
    nanosleep(&time, NULL);
    return 0;
}

static int for_ever(void) {
    for (;;) nap("0.02");
}

/* Grows until it is refused, and says how far it got. */
static int grow(void) {
    size_t pages = 0;
    while (__builtin_wasm_memory_grow(0, 16) != (size_t)-1) pages += 16;
    printf("grew by %zu pages\n", pages);
    return 0;
}

static int eat(void) {
    for (;;) {
        volatile char *piece = malloc(1 << 20);
        if (!piece) return fail("eat");
        for (int i = 0; i < 1 << 20; i += 4096) piece[i] = 1;
    }
}

__attribute__((noinline)) static int deep(volatile int n) { return n ? deep(n + 1) + n : 0; }

static int run(const char *name, int argc, char **argv) {
    const char *first = argc > 1 ? argv[1] : "";
    if (!strcmp(name, "true")) return 0;
    if (!strcmp(name, "false")) return 1;
    if (!strcmp(name, "exit")) return atoi(first);
    if (!strcmp(name, "echo")) return words(stdout, argc, argv);
    if (!strcmp(name, "complain")) return words(stderr, argc, argv), 1;
    if (!strcmp(name, "seq")) {
        for (int i = 1; i <= atoi(first); i++) printf("%d\n", i);
        return 0;
    }
    if (!strcmp(name, "cat")) return cat(argc, argv);
    if (!strcmp(name, "sleep")) return nap(first);
    if (!strcmp(name, "patient") || !strcmp(name, "stubborn")) return for_ever();
    if (!strcmp(name, "spin")) for (volatile uint64_t n = 0;; n++);
    if (!strcmp(name, "printenv")) return getenv(first) ? puts(getenv(first)), 0 : 1;
    if (!strcmp(name, "pwd")) return puts(getenv("PWD") ? getenv("PWD") : "/"), 0;
    if (!strcmp(name, "tty")) return puts(isatty(0) ? "a terminal without a name" : "not a tty"), 1;
    if (!strcmp(name, "size")) return getchar(), puts("no size"), 0;
    if (!strcmp(name, "put")) return put(argv);
    if (!strcmp(name, "ls")) return list(first);
    if (!strcmp(name, "grow")) return grow();
    if (!strcmp(name, "eat")) return eat();
    if (!strcmp(name, "trap")) __builtin_trap();
    if (!strcmp(name, "deep")) return deep(1);
    if (!strcmp(name, "now")) return printf("%lld\n", (long long)time(NULL)), 0;
    if (!strcmp(name, "random")) {
        unsigned char bytes[8];
        if (getentropy(bytes, sizeof bytes)) return fail("random");
        for (size_t i = 0; i < sizeof bytes; i++) printf("%02x", bytes[i]);
        return puts(""), 0;
    }
    fprintf(stderr, "no program %s\n", name);
    return 127;
}

int main(int argc, char **argv) {
    const char *name = strrchr(argv[0], '/') ? strrchr(argv[0], '/') + 1 : argv[0];
    setvbuf(stdout, NULL, _IOLBF, BUFSIZ);
    if (!strncmp(name, "suite", 5) && argc > 1) return run(argv[1], argc - 1, argv + 1);
    return run(name, argc, argv);
}
