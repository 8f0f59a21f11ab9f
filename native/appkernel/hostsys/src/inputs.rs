//! Which calls read a small piece of the caller's memory, and where: the stub brings it along, so that the kernel need not
//! fetch it. What is not here, or larger, or cannot be read there, is fetched by process_vm_readv(2) as ever.

use crate::layout;

/// Registers that hold arguments, as their places in a signal frame (Registers::to_words).
const ARGUMENTS: [u16; 6] = [8, 9, 12, 2, 0, 1];
const TEXT: u16 = 1 << 15;
const FIXED: u16 = 1 << 14;
const SIZED: u16 = 1 << 13;
pub const COUNT: usize = 512;

/// A string at this argument.
const fn text(argument: usize) -> u16 {
    TEXT | ARGUMENTS[argument]
}

/// 2^`shift` bytes.
const fn fixed(argument: usize, shift: u16) -> u16 {
    FIXED | shift << 10 | ARGUMENTS[argument]
}

/// As many times 2^`shift` bytes as the argument `count` says.
const fn sized(argument: usize, count: usize, shift: u16) -> u16 {
    SIZED | shift << 10 | ARGUMENTS[count] << 5 | ARGUMENTS[argument]
}

/// By the numbers of calls.
const INPUTS: &[(u16, u16)] = &[
    // open, stat, lstat, access, chdir, rename, mkdir, rmdir, creat, link, unlink, readlink, chmod, chown, lchown, statfs
    (2, text(0)),
    (4, text(0)),
    (6, text(0)),
    (21, text(0)),
    (80, text(0)),
    (82, text(0)),
    (83, text(0)),
    (84, text(0)),
    (85, text(0)),
    (86, text(0)),
    (87, text(0)),
    (89, text(0)),
    (90, text(0)),
    (92, text(0)),
    (94, text(0)),
    (137, text(0)),
    // execve, openat, mkdirat, newfstatat, unlinkat, readlinkat, fchmodat, faccessat, utimensat, statx, openat2, faccessat2
    (59, text(0)),
    (257, text(1)),
    (258, text(1)),
    (262, text(1)),
    (263, text(1)),
    (267, text(1)),
    (268, text(1)),
    (269, text(1)),
    (280, text(1)),
    (332, text(1)),
    (437, text(1)),
    (439, text(1)),
    // write, pwrite64, sendto, connect, bind
    (1, sized(1, 2, 0)),
    (18, sized(1, 2, 0)),
    (44, sized(1, 2, 0)),
    (42, sized(1, 2, 0)),
    (49, sized(1, 2, 0)),
    // readv, writev, preadv, pwritev
    (19, sized(1, 2, 4)),
    (20, sized(1, 2, 4)),
    (295, sized(1, 2, 4)),
    (296, sized(1, 2, 4)),
    // poll, ppoll
    (7, sized(0, 1, 3)),
    (271, sized(0, 1, 3)),
    // rt_sigaction, rt_sigprocmask, sendmsg, recvmsg, nanosleep, clock_nanosleep, timerfd_settime, epoll_ctl
    (13, fixed(1, 5)),
    (14, fixed(1, 3)),
    (46, fixed(1, 6)),
    (47, fixed(1, 6)),
    (35, fixed(0, 4)),
    (230, fixed(2, 4)),
    (286, fixed(2, 5)),
    (233, fixed(3, 4)),
];

/// The table as the stub reads it.
pub fn table() -> [u16; COUNT] {
    let mut table = [0; COUNT];
    INPUTS.iter().for_each(|(number, input)| table[usize::from(*number)] = *input);
    table
}

const _: () = assert!(layout::INPUTS + 2 * COUNT == layout::CODE_SIZE as usize);
const _: () = assert!(layout::IN_DATA + layout::IN_MAX == layout::OUT_DATA);
const _: () = assert!(layout::OUT_DATA + layout::OUT_MAX == layout::STACK);
