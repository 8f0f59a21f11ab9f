// What system calls cost: nanoseconds by name. With an argument, only the line of that name.
#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int file, scratch, ends[2], there[2], back[2], event, set, tcp;
static char bytes[64];
static const char *self;
static _Atomic int turn;

static void call_getpid(void) { syscall(SYS_getpid); }
static void call_clock(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); }
static void call_read(void) { pread(file, bytes, 64, 0); }
static void call_write(void) { pwrite(scratch, bytes, 64, 0); }
static void call_stat(void) { struct stat s; stat("/etc/passwd", &s); }
static void call_open(void) { struct stat s; int f = open("/etc/passwd", 0); fstat(f, &s); close(f); }
static void call_list(void) { DIR *d = opendir("/etc"); while (readdir(d)); closedir(d); }
static void call_futex(void) { syscall(SYS_futex, &turn, FUTEX_WAKE_PRIVATE, 1, 0, 0, 0); }
static void call_pipe(void) { write(ends[1], bytes, 1); read(ends[0], bytes, 1); }
static void call_event(void) { uint64_t n = 1; write(event, &n, 8); read(event, &n, 8); }
static void call_epoll(void) { struct epoll_event e; epoll_wait(set, &e, 1, 0); }
static void call_ping(void) { write(there[1], bytes, 1); read(back[0], bytes, 1); }
static void call_tcp(void) { send(tcp, bytes, 1, 0); recv(tcp, bytes, 1, 0); }
static void call_fork(void) { int pid = fork(); if (!pid) _exit(0); waitpid(pid, 0, 0); }
static void call_exec(void) {
    int pid = fork();
    if (!pid) { execl(self, self, "nothing", (char *)0); _exit(1); }
    waitpid(pid, 0, 0);
}

static void futex_wait(int value) { while (turn == value) syscall(SYS_futex, &turn, FUTEX_WAIT_PRIVATE, value, 0, 0, 0); }
static void futex_pass(int value) { turn = value; syscall(SYS_futex, &turn, FUTEX_WAKE_PRIVATE, 1, 0, 0, 0); }
static void *partner(void *unused) { for (;;) { futex_wait(0); futex_pass(0); } return unused; }
static void call_threads(void) { futex_pass(1); futex_wait(1); }

static void echo_pipe(void) {
    pipe(there); pipe(back);
    if (fork()) return;
    close(there[1]); close(back[0]);
    while (read(there[0], bytes, 1) == 1) write(back[1], bytes, 1);
    _exit(0);
}

static void echo_tcp(void) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof at;
    int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    bind(listener, (struct sockaddr *)&at, size); listen(listener, 1);
    getsockname(listener, (struct sockaddr *)&at, &size);
    if (!fork()) {
        int other = accept(listener, 0, 0);
        setsockopt(other, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        while (recv(other, bytes, 1, 0) == 1) send(other, bytes, 1, 0);
        _exit(0);
    }
    tcp = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(tcp, (struct sockaddr *)&at, size)) { perror("connect"); tcp = -1; }
    setsockopt(tcp, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    close(listener);
}

static const char *only;
static void measure(const char *name, void (*call)(void), int count) {
    struct timespec a, b;
    if (only && strcmp(only, name)) return;
    for (int i = 0; i < count / 10 + 1; i++) call();
    clock_gettime(CLOCK_MONOTONIC, &a);
    for (int i = 0; i < count; i++) call();
    clock_gettime(CLOCK_MONOTONIC, &b);
    printf("%s %.0f\n", name, ((b.tv_sec - a.tv_sec) * 1e9 + b.tv_nsec - a.tv_nsec) / count);
    fflush(stdout);
}

int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "nothing")) return 0;
    self = argv[0];
    only = argv[1];
    file = open("/etc/passwd", O_RDONLY);
    scratch = open("/tmp/drupe-calls", O_RDWR | O_CREAT | O_TRUNC, 0600);
    pipe(ends);
    event = eventfd(0, 0);
    set = epoll_create1(0);
    struct epoll_event interest = {.events = EPOLLIN};
    epoll_ctl(set, EPOLL_CTL_ADD, event, &interest);
    measure("getpid", call_getpid, 20000);
    measure("clock_gettime", call_clock, 20000);
    measure("pread", call_read, 20000);
    measure("pwrite", call_write, 20000);
    measure("stat", call_stat, 5000);
    measure("open+fstat+close", call_open, 3000);
    measure("opendir+readdir+closedir", call_list, 200);
    measure("futex_wake", call_futex, 20000);
    measure("pipe_write+read", call_pipe, 10000);
    measure("eventfd_write+read", call_event, 10000);
    measure("epoll_wait", call_epoll, 10000);
    measure("fork+wait", call_fork, 100);
    measure("fork+exec+wait", call_exec, 50);
    echo_pipe();
    measure("pipe_ping_pong", call_ping, 2000);
    echo_tcp();
    if (tcp >= 0) measure("tcp_round_trip", call_tcp, 2000);
    pthread_t thread;
    pthread_create(&thread, 0, partner, 0);
    measure("futex_ping_pong", call_threads, 2000);
    unlink("/tmp/drupe-calls");
    return 0;
}
