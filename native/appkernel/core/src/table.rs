//! The table of system calls: what is there, what of it is missing, who does it. docs/syscalls.md is made from it.

use std::sync::OnceLock;

use crate::calls::files::Which::{Link, Open, Path};
use crate::calls::{
    descriptors as fd, events, files, identity as who, io, locked, locks, memory, messages, mq, msg, names, nothing,
    pidfd, poll, prctl, remote, schedule, seccomp, sem, shm, signalfd, signals, sockets, splice, system, time, timers,
};
use crate::deliver::sigreturn;
use crate::kernel::{Done, Kernel};
use crate::robust::get_robust_list;
use crate::task::Tid;
use crate::{clone, exec, exit};

pub type Handler = fn(&mut Kernel, Tid, &[u64; 6]) -> drupe_appkernel_abi::Result<Done>;

/// How much of a call there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Full,
    /// What is missing.
    Partial(&'static str),
    /// ENOSYS, and why.
    Missing(&'static str),
}

#[derive(Clone, Copy)]
pub struct Entry {
    pub name: &'static str,
    pub state: State,
    pub handler: Option<Handler>,
    /// Whether a handler with SA_RESTART starts it again (signal(7)).
    restarts: bool,
    /// Whether what it has done so far is its result when it is interrupted.
    counts: bool,
}

const SIZE: usize = 512;

struct Table([Option<Entry>; SIZE]);

impl Table {
    fn add(&mut self, number: usize, name: &'static str, state: State, handler: Option<Handler>) {
        self.0[number] = Some(Entry { name, state, handler, restarts: true, counts: false });
    }

    fn full(&mut self, number: usize, name: &'static str, handler: Handler) {
        self.add(number, name, State::Full, Some(handler));
    }

    fn part(&mut self, number: usize, name: &'static str, missing: &'static str, handler: Handler) {
        self.add(number, name, State::Partial(missing), Some(handler));
    }

    fn none(&mut self, number: usize, name: &'static str, why: &'static str) {
        self.add(number, name, State::Missing(why), None);
    }
}

/// Calls that a signal's handler always ends with EINTR.
const NEVER_RESTART: [u64; 19] = [65, 69, 70, 220, 7, 23, 34, 35, 128, 130, 230, 232, 270, 271, 281, 441, 43, 202, 240];
/// Calls that move bytes.
const COUNT_PROGRESS: [u64; 11] = [1, 18, 20, 40, 44, 45, 46, 47, 275, 296, 328];

/// Every call that is known, by its number.
pub fn table() -> &'static [Option<Entry>] {
    static TABLE: OnceLock<Table> = OnceLock::new();
    let table = TABLE.get_or_init(|| {
        let mut table = Table([None; SIZE]);
        add_io(&mut table);
        add_files(&mut table);
        add_attributes(&mut table);
        add_sockets(&mut table);
        add_sysv(&mut table);
        add_memory(&mut table);
        add_processes(&mut table);
        add_signals_and_time(&mut table);
        add_identity(&mut table);
        add_system(&mut table);
        for entry in NEVER_RESTART {
            if let Some(entry) = &mut table.0[entry as usize] {
                entry.restarts = entry.name == "accept" || entry.name == "futex";
            }
        }
        for number in COUNT_PROGRESS {
            if let Some(entry) = &mut table.0[number as usize] {
                entry.counts = true;
            }
        }
        table
    });
    &table.0
}

fn entry(number: u64) -> Option<&'static Entry> {
    table().get(usize::try_from(number).ok()?)?.as_ref()
}

pub(crate) fn restarts(number: u64) -> bool {
    entry(number).is_some_and(|entry| entry.restarts)
}

pub(crate) fn counts(number: u64) -> bool {
    entry(number).is_some_and(|entry| entry.counts)
}

fn add_io(t: &mut Table) {
    t.full(0, "read", io::read);
    t.full(1, "write", io::write);
    t.full(3, "close", fd::close);
    t.full(8, "lseek", io::lseek);
    t.part(16, "ioctl", "requests of file systems and devices that are not there", fd::ioctl);
    t.full(17, "pread64", io::pread64);
    t.full(18, "pwrite64", io::pwrite64);
    t.full(19, "readv", io::readv);
    t.full(20, "writev", io::writev);
    t.full(22, "pipe", events::pipe);
    t.full(32, "dup", fd::dup);
    t.full(33, "dup2", fd::dup2);
    t.full(40, "sendfile", io::sendfile);
    t.part(72, "fcntl", "F_NOTIFY, leases, signals of O_ASYNC; hints of life time are kept, no effect", fd::fcntl);
    t.full(73, "flock", locks::flock);
    t.full(74, "fsync", fd::fsync);
    t.full(75, "fdatasync", fd::fsync);
    t.full(77, "ftruncate", fd::ftruncate);
    t.full(78, "getdents", fd::getdents);
    t.full(162, "sync", nothing);
    t.full(187, "readahead", fd::readahead);
    t.full(217, "getdents64", fd::getdents64);
    t.full(221, "fadvise64", fd::fadvise);
    t.part(275, "splice", "64 KiB at a time", splice::splice);
    t.part(276, "tee", "64 KiB at a time", splice::tee);
    t.part(278, "vmsplice", "copies, gives no pages", splice::vmsplice);
    t.part(277, "sync_file_range", "does not wait", fd::sync_file_range);
    t.full(285, "fallocate", fd::fallocate);
    t.full(292, "dup3", fd::dup3);
    t.part(293, "pipe2", "O_DIRECT is taken and has no effect", events::pipe2);
    t.full(295, "preadv", io::preadv);
    t.full(296, "pwritev", io::pwritev);
    t.full(306, "syncfs", fd::hint);
    t.full(326, "copy_file_range", io::copy_file_range);
    t.part(327, "preadv2", "RWF_NOWAIT", io::preadv2);
    t.part(328, "pwritev2", "RWF_NOWAIT, RWF_APPEND", io::pwritev2);
    t.full(436, "close_range", fd::close_range);
    t.part(319, "memfd_create", "MFD_HUGETLB", fd::memfd_create);
    t.full(7, "poll", poll::poll);
    t.full(23, "select", poll::select);
    t.full(270, "pselect6", poll::pselect6);
    t.full(271, "ppoll", poll::ppoll);
    t.full(213, "epoll_create", events::epoll_create);
    t.full(232, "epoll_wait", events::epoll_wait);
    t.full(233, "epoll_ctl", events::epoll_ctl);
    t.full(281, "epoll_pwait", events::epoll_pwait);
    t.full(291, "epoll_create1", events::epoll_create1);
    t.full(441, "epoll_pwait2", events::epoll_pwait2);
    t.part(282, "signalfd", "who inherits it polls what is pending for its maker", signalfd::signalfd);
    t.part(289, "signalfd4", "as signalfd", signalfd::signalfd4);
    t.full(284, "eventfd", events::eventfd);
    t.full(290, "eventfd2", events::eventfd2);
    t.part(283, "timerfd_create", "alarm clocks are the plain ones", events::timerfd_create);
    t.part(286, "timerfd_settime", "TFD_TIMER_CANCEL_ON_SET", events::timerfd_settime);
    t.full(287, "timerfd_gettime", events::timerfd_gettime);
    t.part(253, "inotify_init", "IN_UNMOUNT, IN_EXCL_UNLINK", events::inotify_init);
    t.part(254, "inotify_add_watch", "IN_UNMOUNT, IN_EXCL_UNLINK", events::inotify_add_watch);
    t.full(255, "inotify_rm_watch", events::inotify_rm_watch);
    t.part(294, "inotify_init1", "IN_UNMOUNT, IN_EXCL_UNLINK", events::inotify_init1);
}

fn add_files(t: &mut Table) {
    t.full(2, "open", files::open);
    t.full(4, "stat", files::stat);
    t.full(5, "fstat", files::fstat);
    t.full(6, "lstat", files::lstat);
    t.full(21, "access", files::access);
    t.full(76, "truncate", files::truncate);
    t.full(79, "getcwd", names::getcwd);
    t.full(80, "chdir", names::chdir);
    t.full(81, "fchdir", names::fchdir);
    t.full(82, "rename", names::rename);
    t.full(83, "mkdir", names::mkdir);
    t.full(84, "rmdir", names::rmdir);
    t.full(85, "creat", files::creat);
    t.full(86, "link", names::link);
    t.full(87, "unlink", names::unlink);
    t.full(88, "symlink", names::symlink);
    t.full(89, "readlink", files::readlink);
    t.full(90, "chmod", files::chmod);
    t.full(91, "fchmod", files::fchmod);
    t.full(92, "chown", files::chown);
    t.full(93, "fchown", files::fchown);
    t.full(94, "lchown", files::lchown);
    t.full(95, "umask", names::umask);
    t.full(132, "utime", files::utime);
    t.full(133, "mknod", names::mknod);
    t.full(137, "statfs", files::statfs);
    t.full(138, "fstatfs", files::fstatfs);
    t.full(161, "chroot", names::chroot);
    t.full(235, "utimes", files::utimes);
    t.full(257, "openat", files::openat);
    t.full(258, "mkdirat", names::mkdirat);
    t.full(259, "mknodat", names::mknodat);
    t.full(260, "fchownat", files::fchownat);
    t.full(261, "futimesat", files::futimesat);
    t.full(262, "newfstatat", files::newfstatat);
    t.full(263, "unlinkat", names::unlinkat);
    t.full(264, "renameat", names::renameat);
    t.full(265, "linkat", names::linkat);
    t.full(266, "symlinkat", names::symlinkat);
    t.full(267, "readlinkat", files::readlinkat);
    t.full(268, "fchmodat", files::fchmodat);
    t.full(452, "fchmodat2", files::fchmodat2);
    t.full(269, "faccessat", files::faccessat);
    t.full(280, "utimensat", files::utimensat);
    t.part(316, "renameat2", "RENAME_WHITEOUT", names::renameat2);
    t.part(332, "statx", "attributes (compressed, immutable, …)", files::statx);
    t.part(437, "openat2", "RESOLVE_CACHED", files::openat2);
    t.full(439, "faccessat2", files::faccessat2);
}

fn add_attributes(t: &mut Table) {
    t.full(188, "setxattr", |k, tid, a| files::set_attribute(k, tid, a, Path));
    t.full(189, "lsetxattr", |k, tid, a| files::set_attribute(k, tid, a, Link));
    t.full(190, "fsetxattr", |k, tid, a| files::set_attribute(k, tid, a, Open));
    t.full(191, "getxattr", |k, tid, a| files::get_attribute(k, tid, a, Path));
    t.full(192, "lgetxattr", |k, tid, a| files::get_attribute(k, tid, a, Link));
    t.full(193, "fgetxattr", |k, tid, a| files::get_attribute(k, tid, a, Open));
    t.full(194, "listxattr", |k, tid, a| files::list_attributes(k, tid, a, Path));
    t.full(195, "llistxattr", |k, tid, a| files::list_attributes(k, tid, a, Link));
    t.full(196, "flistxattr", |k, tid, a| files::list_attributes(k, tid, a, Open));
    t.full(197, "removexattr", |k, tid, a| files::remove_attribute(k, tid, a, Path));
    t.full(198, "lremovexattr", |k, tid, a| files::remove_attribute(k, tid, a, Link));
    t.full(199, "fremovexattr", |k, tid, a| files::remove_attribute(k, tid, a, Open));
}

fn add_sockets(t: &mut Table) {
    const REACH: &str = "unix, TCP, UDP, UDP-Lite, ICMP echo, and questions to NETLINK_ROUTE; no raw, no packets";
    t.part(41, "socket", REACH, sockets::socket);
    t.full(42, "connect", sockets::connect);
    t.full(43, "accept", sockets::accept);
    t.part(44, "sendto", "MSG_ZEROCOPY; to unix sockets MSG_OOB", sockets::sendto);
    t.part(45, "recvfrom", "of unix sockets MSG_OOB", sockets::recvfrom);
    t.part(46, "sendmsg", "MSG_ZEROCOPY; to unix sockets MSG_OOB", sockets::sendmsg);
    t.part(47, "recvmsg", "of unix sockets MSG_OOB", sockets::recvmsg);
    t.full(48, "shutdown", sockets::shutdown);
    t.full(49, "bind", sockets::bind);
    t.full(50, "listen", sockets::listen);
    t.full(51, "getsockname", sockets::getsockname);
    t.full(52, "getpeername", sockets::getpeername);
    t.full(53, "socketpair", sockets::socketpair);
    t.part(54, "setsockopt", "filters, marks, devices, TLS, IPsec and zero copies are refused", sockets::setsockopt);
    t.part(55, "getsockopt", "as setsockopt", sockets::getsockopt);
    t.full(307, "sendmmsg", messages::sendmmsg);
    t.part(299, "recvmmsg", "waits for the first message alone", messages::recvmmsg);
    t.full(288, "accept4", sockets::accept4);
}

fn add_sysv(t: &mut Table) {
    t.part(29, "shmget", "huge pages", shm::shmget);
    t.full(30, "shmat", shm::shmat);
    t.full(31, "shmctl", shm::shmctl);
    t.full(67, "shmdt", shm::shmdt);
    t.full(64, "semget", sem::semget);
    t.full(65, "semop", sem::semop);
    t.full(66, "semctl", sem::semctl);
    t.full(220, "semtimedop", sem::semtimedop);
    t.full(68, "msgget", msg::msgget);
    t.full(69, "msgsnd", msg::msgsnd);
    t.full(70, "msgrcv", msg::msgrcv);
    t.full(71, "msgctl", msg::msgctl);
    t.full(240, "mq_open", mq::mq_open);
    t.full(241, "mq_unlink", mq::mq_unlink);
    t.full(242, "mq_timedsend", mq::mq_timedsend);
    t.full(243, "mq_timedreceive", mq::mq_timedreceive);
    t.part(244, "mq_notify", "SIGEV_THREAD, which a thread of the C library does elsewhere", mq::mq_notify);
    t.full(245, "mq_getsetattr", mq::mq_getsetattr);
}

fn add_memory(t: &mut Table) {
    t.part(9, "mmap", "huge pages", memory::mmap);
    t.full(10, "mprotect", memory::mprotect);
    t.full(11, "munmap", memory::munmap);
    t.full(12, "brk", memory::brk);
    t.part(25, "mremap", "MREMAP_DONTUNMAP", memory::mremap);
    t.part(26, "msync", "does not wait: files are memory", memory::msync);
    t.part(27, "mincore", "pages of files count as resident", locked::mincore);
    t.part(
        28,
        "madvise",
        "WILLNEED, DONTNEED and FREE are the host's; other advice is taken and ignored",
        memory::madvise,
    );
    const COUNTED: &str = "counted and limited; the host may swap all the same";
    t.part(149, "mlock", COUNTED, locked::mlock);
    t.part(150, "munlock", COUNTED, locked::munlock);
    t.part(151, "mlockall", COUNTED, locked::mlockall);
    t.part(152, "munlockall", COUNTED, locked::munlockall);
    t.part(325, "mlock2", COUNTED, locked::mlock2);
    t.none(239, "get_mempolicy", "there are no memory nodes to choose from");
    t.none(330, "pkey_alloc", "there are no protection keys");
    t.none(216, "remap_file_pages", "mmap(2) does it");
    t.none(451, "cachestat", "files are memory, there is no cache to ask about");
    t.none(453, "map_shadow_stack", "there are no shadow stacks");
    t.none(462, "mseal", "programs do without");
    t.full(158, "arch_prctl", memory::arch_prctl);
}

fn add_processes(t: &mut Table) {
    t.part(56, "clone", "new namespaces, ptrace", clone::clone);
    t.full(57, "fork", clone::fork);
    t.full(58, "vfork", clone::vfork);
    t.full(59, "execve", exec::execve);
    t.full(60, "exit", exit::exit);
    t.part(61, "wait4", "rusage: of processor time no part is system time, and no switches", exit::wait4);
    t.full(231, "exit_group", exit::exit_group);
    t.part(247, "waitid", "rusage: of processor time no part is system time, and no switches", exit::waitid);
    t.full(322, "execveat", exec::execveat);
    t.part(435, "clone3", "new namespaces, set_tid, cgroup", clone::clone3);
    t.full(24, "sched_yield", nothing);
    t.part(202, "futex", "priority inheritance", |_, _, _| Err(drupe_appkernel_abi::Errno::NOSYS));
    t.full(218, "set_tid_address", who::set_tid_address);
    t.full(273, "set_robust_list", who::set_robust_list);
    t.none(449, "futex_waitv", "programs wait for one at a time");
    t.none(101, "ptrace", "no debugger in the pod");
    t.none(334, "rseq", "the C library does without");
    t.part(434, "pidfd_open", "what is polled must be a whole process", pidfd::pidfd_open);
    t.full(424, "pidfd_send_signal", pidfd::pidfd_send_signal);
    t.part(310, "process_vm_readv", "1 MiB at a time", remote::process_vm_readv);
    t.part(
        311,
        "process_vm_writev",
        "1 MiB at a time; not what is mapped without PROT_WRITE",
        remote::process_vm_writev,
    );
    t.full(274, "get_robust_list", get_robust_list);
    t.full(438, "pidfd_getfd", pidfd::pidfd_getfd);
}

fn add_signals_and_time(t: &mut Table) {
    t.full(13, "rt_sigaction", signals::rt_sigaction);
    t.full(14, "rt_sigprocmask", signals::rt_sigprocmask);
    t.full(15, "rt_sigreturn", sigreturn);
    t.full(34, "pause", signals::pause);
    t.full(62, "kill", signals::kill);
    t.full(127, "rt_sigpending", signals::rt_sigpending);
    t.full(128, "rt_sigtimedwait", signals::rt_sigtimedwait);
    t.full(129, "rt_sigqueueinfo", signals::rt_sigqueueinfo);
    t.full(130, "rt_sigsuspend", signals::rt_sigsuspend);
    t.full(131, "sigaltstack", signals::sigaltstack);
    t.full(200, "tkill", signals::tkill);
    t.full(234, "tgkill", signals::tgkill);
    t.full(297, "rt_tgsigqueueinfo", signals::rt_tgsigqueueinfo);
    t.full(35, "nanosleep", time::nanosleep);
    t.full(36, "getitimer", time::getitimer);
    t.full(37, "alarm", time::alarm);
    t.part(38, "setitimer", "ITIMER_VIRTUAL counts what ITIMER_PROF does", time::setitimer);
    t.full(96, "gettimeofday", time::gettimeofday);
    t.part(
        98,
        "getrusage",
        "none of the time is system time; switches, signals, blocks; of a thread no faults",
        time::getrusage,
    );
    t.part(100, "times", "none of it as system time", time::times);
    t.full(201, "time", time::time);
    t.part(228, "clock_gettime", "processor clocks of other processes", time::clock_gettime);
    t.full(229, "clock_getres", time::clock_getres);
    t.part(159, "adjtimex", "EPERM for changes: not for containers", time::adjtimex);
    t.part(305, "clock_adjtime", "as adjtimex", time::clock_adjtime);
    t.part(230, "clock_nanosleep", "processor clocks", time::clock_nanosleep);
    t.part(222, "timer_create", "processor clocks of other processes", timers::timer_create);
    t.full(223, "timer_settime", timers::timer_settime);
    t.full(224, "timer_gettime", timers::timer_gettime);
    t.full(225, "timer_getoverrun", timers::timer_getoverrun);
    t.full(226, "timer_delete", timers::timer_delete);
}

fn add_identity(t: &mut Table) {
    t.full(39, "getpid", who::getpid);
    t.full(102, "getuid", who::getuid);
    t.full(104, "getgid", who::getgid);
    t.full(105, "setuid", who::setuid);
    t.full(106, "setgid", who::setgid);
    t.full(107, "geteuid", who::geteuid);
    t.full(108, "getegid", who::getegid);
    t.full(109, "setpgid", who::setpgid);
    t.full(110, "getppid", who::getppid);
    t.full(111, "getpgrp", who::getpgrp);
    t.full(112, "setsid", who::setsid);
    t.full(113, "setreuid", who::setreuid);
    t.full(114, "setregid", who::setregid);
    t.full(115, "getgroups", who::getgroups);
    t.full(116, "setgroups", who::setgroups);
    t.full(117, "setresuid", who::setresuid);
    t.full(118, "getresuid", who::getresuid);
    t.full(119, "setresgid", who::setresgid);
    t.full(120, "getresgid", who::getresgid);
    t.full(121, "getpgid", who::getpgid);
    t.full(122, "setfsuid", who::setfsuid);
    t.full(123, "setfsgid", who::setfsgid);
    t.full(124, "getsid", who::getsid);
    t.full(125, "capget", who::capget);
    t.full(126, "capset", who::capset);
    t.part(
        157,
        "prctl",
        "of memory maps but where arguments and environment are, what concerns other processors",
        prctl::prctl,
    );
    t.full(186, "gettid", who::gettid);
}

/// What wants a right that no container has here. Not ENOSYS: programs take EPERM for what it is.
const NOT_PERMITTED: [(usize, &str); 20] = [
    (103, "syslog"),
    (153, "vhangup"),
    (155, "pivot_root"),
    (163, "acct"),
    (164, "settimeofday"),
    (165, "mount"),
    (166, "umount2"),
    (167, "swapon"),
    (168, "swapoff"),
    (169, "reboot"),
    (171, "setdomainname"),
    (172, "iopl"),
    (173, "ioperm"),
    (175, "init_module"),
    (176, "delete_module"),
    (227, "clock_settime"),
    (246, "kexec_load"),
    (300, "fanotify_init"),
    (308, "setns"),
    (313, "finit_module"),
];

fn add_system(t: &mut Table) {
    t.full(63, "uname", system::uname);
    t.part(99, "sysinfo", "load and swap are zero", system::sysinfo);
    t.full(97, "getrlimit", system::getrlimit);
    t.full(160, "setrlimit", system::setrlimit);
    t.part(
        302,
        "prlimit64",
        "STACK below what was there at execve(2), RTPRIO and RTTIME, CORE: no real time, no core files",
        system::prlimit64,
    );
    t.full(170, "sethostname", system::sethostname);
    t.full(318, "getrandom", system::getrandom);
    t.part(203, "sched_setaffinity", "kept, no effect; of whole processes", schedule::sched_setaffinity);
    t.full(204, "sched_getaffinity", schedule::sched_getaffinity);
    t.part(309, "getcpu", "always the first", system::getcpu);
    t.full(140, "getpriority", schedule::getpriority);
    t.part(141, "setpriority", "kept, no effect", schedule::setpriority);
    t.part(142, "sched_setparam", "without real time always 0", schedule::sched_setparam);
    t.full(143, "sched_getparam", schedule::sched_getparam);
    t.part(144, "sched_setscheduler", "kept, no effect; no real time", schedule::sched_setscheduler);
    t.full(145, "sched_getscheduler", schedule::sched_getscheduler);
    t.part(314, "sched_setattr", "kept, no effect; no real time", schedule::sched_setattr);
    t.part(315, "sched_getattr", "no utilization clamps", schedule::sched_getattr);
    t.full(148, "sched_rr_get_interval", schedule::sched_rr_get_interval);
    t.full(146, "sched_get_priority_max", |k, tid, a| system::sched_priority(k, tid, a, true));
    t.full(147, "sched_get_priority_min", |k, tid, a| system::sched_priority(k, tid, a, false));
    t.part(324, "membarrier", "of the caller's own process alone: no GLOBAL, no RSEQ", system::membarrier);
    t.part(135, "personality", "kept, no effect", system::personality);
    t.part(272, "unshare", "new namespaces", system::unshare);
    t.part(251, "ioprio_set", "kept, no effect; no real time", schedule::ioprio_set);
    t.full(252, "ioprio_get", schedule::ioprio_get);
    for (number, name) in NOT_PERMITTED {
        t.part(number, name, "EPERM: not for containers", system::not_permitted);
    }
    t.none(425, "io_uring_setup", "programs do without");
    t.part(
        317,
        "seccomp",
        "nobody is notified; futex, sched_yield and madvise are done by the host, which filters do not see",
        seccomp::seccomp,
    );
    t.none(321, "bpf", "no BPF in the pod");
    t.none(298, "perf_event_open", "no counters in the pod");
}
