//! What the kernel's own process may ask of the host once it is confined, as a seccomp filter: data with reasons. Whatever
//! is not here kills the process: it is never needed, so whoever asks for it is not the kernel any more.

use crate::netoptions::{Table, READABLE, SETTABLE, SOL_SOCKET};
use crate::rules::{compile_all, jump, op, rule, Action, Rule, When, ARCH_X86_64, AT_ARCH, LD, RET};
use crate::{kvm, notify};

const ALLOW: Action = Action::Allow;
const ANY: When = When::Always;
/// As pthread_create(3) makes a thread.
const THREAD_FLAGS: u32 = 0x3d_0f00;
const PROT_EXEC: u32 = libc::PROT_EXEC as u32;
const S_IFMT: u32 = libc::S_IFMT;

/// The argument's low bits are one of these.
const fn one_of(argument: u8, values: &'static [u32]) -> When {
    When::OneOf { argument, mask: u32::MAX, values }
}

const NO_CODE: When = When::Masked { argument: 2, mask: PROT_EXEC, value: 0 };
const NO_DEVICE: When = When::OneOf {
    argument: 2,
    mask: S_IFMT,
    // 0 is a regular file; a character device needs a right that this process does not have, but for a whiteout (0:0)
    values: &[0, libc::S_IFREG, libc::S_IFIFO, libc::S_IFSOCK, libc::S_IFCHR],
};
const FCNTL: &[u32] = &[
    libc::F_GETFD as u32,
    libc::F_SETFD as u32,
    libc::F_GETFL as u32,
    libc::F_SETFL as u32,
    libc::F_DUPFD_CLOEXEC as u32,
    libc::F_ADD_SEALS as u32,
    libc::F_GET_SEALS as u32,
];
const REQUESTS: &[u32] = &[
    notify::RECV as u32,
    notify::SEND as u32,
    notify::ADDFD as u32,
    notify::SET_FLAGS as u32,
    0x541b, // FIONREAD
    0x5411, // TIOCOUTQ
    0x5401, // TCGETS
    0x5402, // TCSETS
    0x5403, // TCSETSW
    0x5413, // TIOCGWINSZ
    0x8905, // SIOCATMARK
];

/// Calls of every pod's kernel.
pub const KERNEL: &[Rule] = &[
    rule(
        libc::SYS_ioctl,
        one_of(1, REQUESTS),
        ALLOW,
        "calls of stubs are received and answered; what a pipe or terminal holds and how it is set, no TIOCSTI",
    ),
    rule(libc::SYS_futex, ANY, ALLOW, "wakes a stub that sleeps on its slot"),
    rule(libc::SYS_epoll_pwait2, ANY, ALLOW, "waits for stubs and descriptors"),
    rule(libc::SYS_epoll_ctl, ANY, ALLOW, "what is waited for"),
    rule(libc::SYS_poll, ANY, ALLOW, "whether one descriptor is ready"),
    rule(libc::SYS_ppoll, ANY, ALLOW, "the same"),
    rule(libc::SYS_process_vm_readv, ANY, ALLOW, "memory of stubs; of others the host lets nobody read it"),
    rule(libc::SYS_process_vm_writev, ANY, ALLOW, "the same, to write"),
    rule(libc::SYS_tgkill, ANY, ALLOW, "takes a stub out of guest code; others' processes have another user"),
    rule(libc::SYS_pidfd_open, ANY, ALLOW, "hears of a stub's end"),
    rule(libc::SYS_pidfd_send_signal, ANY, ALLOW, "ends a stub"),
    rule(libc::SYS_wait4, ANY, ALLOW, "reaps the first stub process"),
    rule(libc::SYS_brk, ANY, ALLOW, "its own memory"),
    rule(libc::SYS_mmap, NO_CODE, ALLOW, "its own memory, slots, images; no new code"),
    rule(libc::SYS_mprotect, NO_CODE, ALLOW, "its own memory; no new code"),
    rule(libc::SYS_munmap, ANY, ALLOW, "its own memory"),
    rule(libc::SYS_mremap, ANY, ALLOW, "its own memory"),
    rule(libc::SYS_madvise, ANY, ALLOW, "its own memory"),
    rule(libc::SYS_memfd_create, ANY, ALLOW, "slots, pages of files that are mapped"),
    rule(libc::SYS_ftruncate, ANY, ALLOW, "sizes of those, and of files of donated directories"),
    rule(libc::SYS_fallocate, ANY, ALLOW, "gives pages of those back, or reserves them"),
    rule(libc::SYS_read, ANY, ALLOW, "descriptors that it was given"),
    rule(libc::SYS_readv, ANY, ALLOW, "the same"),
    rule(libc::SYS_write, ANY, ALLOW, "the same, and the log"),
    rule(libc::SYS_writev, ANY, ALLOW, "the same"),
    rule(libc::SYS_pread64, ANY, ALLOW, "files of donated directories, memory files"),
    rule(libc::SYS_pwrite64, ANY, ALLOW, "the same"),
    rule(libc::SYS_preadv, ANY, ALLOW, "the same"),
    rule(libc::SYS_pwritev, ANY, ALLOW, "the same"),
    rule(libc::SYS_pwritev2, ANY, ALLOW, "the same, at the end"),
    rule(libc::SYS_lseek, ANY, ALLOW, "holes of files, places in directories"),
    rule(libc::SYS_close, ANY, ALLOW, "lets go of a descriptor"),
    rule(libc::SYS_fcntl, one_of(1, FCNTL), ALLOW, "copies and flags of descriptors; no owner, no signal, no lease"),
    rule(libc::SYS_fstat, ANY, ALLOW, "attributes by descriptor"),
    rule(libc::SYS_newfstatat, ANY, ALLOW, "attributes below donated directories: its own root is empty"),
    rule(libc::SYS_statx, ANY, ALLOW, "the same"),
    rule(libc::SYS_fstatfs, ANY, ALLOW, "room of a donated directory"),
    rule(libc::SYS_openat2, ANY, ALLOW, "below donated directories: Landlock and an empty root know no other path"),
    rule(libc::SYS_getdents64, ANY, ALLOW, "lists donated directories"),
    rule(libc::SYS_readlinkat, ANY, ALLOW, "text of links there, which the host never follows"),
    rule(libc::SYS_mkdirat, ANY, ALLOW, "changes below donated directories, if Landlock's rule says so"),
    rule(libc::SYS_mknodat, NO_DEVICE, ALLOW, "the same: files, FIFOs, sockets, whiteouts; no devices"),
    rule(libc::SYS_symlinkat, ANY, ALLOW, "the same"),
    rule(libc::SYS_linkat, ANY, ALLOW, "the same"),
    rule(libc::SYS_unlinkat, ANY, ALLOW, "the same"),
    rule(libc::SYS_renameat2, ANY, ALLOW, "the same"),
    rule(libc::SYS_fchmod, ANY, ALLOW, "the same"),
    rule(452, ANY, ALLOW, "the same (fchmodat2); fchmodat would follow a link"),
    rule(libc::SYS_fchownat, ANY, ALLOW, "the same, to ids that it may give"),
    rule(libc::SYS_utimensat, ANY, ALLOW, "the same"),
    rule(libc::SYS_fsync, ANY, ALLOW, "the same"),
    rule(libc::SYS_fdatasync, ANY, ALLOW, "the same"),
    rule(libc::SYS_fgetxattr, ANY, ALLOW, "the same"),
    rule(libc::SYS_fsetxattr, ANY, ALLOW, "the same"),
    rule(libc::SYS_flistxattr, ANY, ALLOW, "the same"),
    rule(libc::SYS_fremovexattr, ANY, ALLOW, "the same"),
    rule(libc::SYS_recvmsg, ANY, ALLOW, "orders on the control socket, with descriptors"),
    rule(libc::SYS_sendmsg, ANY, ALLOW, "answers there"),
    rule(libc::SYS_recvfrom, ANY, ALLOW, "the same"),
    rule(libc::SYS_sendto, ANY, ALLOW, "the same"),
    rule(libc::SYS_accept4, ANY, ALLOW, "a further connection to a socket that it was given"),
    rule(
        libc::SYS_getsockopt,
        When::Option { level: SOL_SOCKET, names: &[libc::SO_PEERCRED as u32] },
        ALLOW,
        "whose connection that is",
    ),
    rule(libc::SYS_shutdown, ANY, ALLOW, "the end of one"),
    rule(libc::SYS_signalfd4, ANY, ALLOW, "hears of a terminal's new size and of its own end"),
    rule(libc::SYS_clock_gettime, ANY, ALLOW, "processor time of stubs"),
    rule(libc::SYS_clock_nanosleep, ANY, ALLOW, "pauses"),
    rule(libc::SYS_getrandom, ANY, ALLOW, "randomness for guests"),
    rule(libc::SYS_sched_yield, ANY, ALLOW, "gives time away"),
    rule(libc::SYS_geteuid, ANY, ALLOW, "whether it is the same user's connection"),
    rule(libc::SYS_getpid, ANY, ALLOW, "abort(3)"),
    rule(libc::SYS_gettid, ANY, ALLOW, "abort(3)"),
    rule(libc::SYS_rt_sigprocmask, ANY, ALLOW, "abort(3)"),
    rule(libc::SYS_rt_sigaction, ANY, ALLOW, "abort(3)"),
    rule(libc::SYS_rt_sigreturn, ANY, ALLOW, "the end of a signal's handler"),
    rule(libc::SYS_restart_syscall, ANY, ALLOW, "a wait that was stopped goes on"),
    rule(libc::SYS_sigaltstack, ANY, ALLOW, "the end of the process"),
    rule(libc::SYS_exit, ANY, ALLOW, "the end of a thread"),
    rule(libc::SYS_exit_group, ANY, ALLOW, "the end of the process"),
];

const DOMAINS: When = one_of(0, &[libc::AF_INET as u32, libc::AF_INET6 as u32, libc::AF_NETLINK as u32]);
/// SIOCGIFNAME to SIOCGIFINDEX, SIOCGIFTXQLEN, SIOCGIFMAP: they read.
const ABOUT_INTERFACES: &[u32] =
    &[0x8910, 0x8912, 0x8913, 0x8915, 0x8917, 0x8919, 0x891b, 0x891d, 0x8921, 0x8927, 0x8933, 0x8942, 0x8970];

/// Calls of a kernel whose pod has a network: sockets in the pod's namespace, under its egress policy.
pub const NETWORK: &[Rule] = &[
    rule(
        libc::SYS_socket,
        DOMAINS,
        ALLOW,
        "TCP, UDP, UDP-Lite, ICMP; questions about interfaces and routes. No raw, packet, vsock, unix",
    ),
    rule(libc::SYS_ioctl, one_of(1, ABOUT_INTERFACES), ALLOW, "questions about interfaces"),
    rule(libc::SYS_bind, ANY, ALLOW, "in the pod's network namespace"),
    rule(libc::SYS_connect, ANY, ALLOW, "the same"),
    rule(libc::SYS_listen, ANY, ALLOW, "the same"),
    rule(libc::SYS_getsockname, ANY, ALLOW, "the same"),
    rule(libc::SYS_getpeername, ANY, ALLOW, "the same"),
];

/// Options of the pod's sockets.
fn options() -> impl Iterator<Item = Rule> {
    let of = |call, table: &'static Table, why| {
        table.iter().map(move |&(level, names)| rule(call, When::Option { level, names }, ALLOW, why))
    };
    of(libc::SYS_setsockopt, SETTABLE, "of no effect beyond the socket")
        .chain(of(libc::SYS_getsockopt, SETTABLE, "what may be set may be asked"))
        .chain(of(libc::SYS_getsockopt, READABLE, "what a socket is, and how it is"))
}

/// Further calls of a kernel that runs a machine: guest code runs in threads of its own process then, in no stub.
pub const MACHINE: &[Rule] = &[
    rule(
        libc::SYS_ioctl,
        one_of(1, kvm::REQUESTS),
        ALLOW,
        "runs processors of its machine, gives it memory; makes none",
    ),
    rule(libc::SYS_clone, one_of(0, &[THREAD_FLAGS]), ALLOW, "a thread for each processor; no process, no namespace"),
    rule(
        libc::SYS_clone3,
        ANY,
        Action::Fail(libc::ENOSYS as u16),
        "its flags cannot be seen; the library uses clone then",
    ),
    rule(libc::SYS_set_robust_list, ANY, ALLOW, "a thread begins"),
    rule(libc::SYS_rseq, ANY, ALLOW, "the same"),
    rule(libc::SYS_sched_getaffinity, ANY, ALLOW, "the same"),
];

/// The filter's instructions as bytes, 8 for each (struct sock_filter).
pub fn program(network: bool, machine: bool) -> Vec<u8> {
    let kill = op(RET, libc::SECCOMP_RET_KILL_PROCESS);
    let mut all = vec![op(LD, AT_ARCH), jump(ARCH_X86_64, 1, 0), kill];
    all.extend(compile_all(KERNEL));
    if machine {
        all.extend(compile_all(MACHINE));
    }
    if network {
        all.extend(compile_all(NETWORK));
        all.extend(compile_all(&options().collect::<Vec<_>>()));
    }
    all.push(kill);
    let word = |one: libc::sock_filter| {
        let (code, k) = (one.code.to_ne_bytes(), one.k.to_ne_bytes());
        [code[0], code[1], one.jt, one.jf, k[0], k[1], k[2], k[3]]
    };
    all.into_iter().flat_map(word).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_has_its_reason_and_stands_once() {
        let all: Vec<_> = KERNEL.iter().chain(MACHINE).chain(NETWORK).collect();
        for (at, rule) in all.iter().enumerate() {
            assert!(!rule.why.is_empty());
            let always = matches!(rule.when, When::Always);
            let again = all[at + 1..].iter().any(|other| other.call == rule.call);
            assert!(!(always && again), "{}: a rule that is never reached", rule.call);
        }
    }

    #[test]
    fn what_makes_programs_processes_or_mounts_is_not_there() {
        let dangerous = [
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_fork,
            libc::SYS_clone,
            libc::SYS_clone3,
            libc::SYS_ptrace,
            libc::SYS_mount,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_openat,
            libc::SYS_open_by_handle_at,
            libc::SYS_bpf,
            libc::SYS_io_uring_setup,
            libc::SYS_userfaultfd,
            libc::SYS_pidfd_getfd,
            libc::SYS_kill,
            libc::SYS_prctl,
            libc::SYS_setuid,
        ];
        for call in dangerous {
            assert!(KERNEL.iter().chain(NETWORK).all(|rule| rule.call != call as u32), "{call}");
        }
    }
}
