//! What a stub process may ask of the host, as a seccomp filter: data with reasons.
//!
//! Guest code can jump into the stub's page, so that "called from the page" is no proof of anything: it only tells the
//! stub's own calls from the guest's, which trap. Every rule must be safe when the guest makes the call.

use crate::layout;
use crate::rules::{compile_all, jump, op, rule, Action, Rule, When, AND, ARCH_X86_64, AT_ARCH, AT_IP, LD, RET};

const MAP_ANONYMOUS: u32 = libc::MAP_ANONYMOUS as u32;
const MAP_HUGETLB: u32 = libc::MAP_HUGETLB as u32;
/// FUTEX_PRIVATE_FLAG and FUTEX_CLOCK_REALTIME may be set or not.
const FUTEX_COMMAND: u32 = !(128 | 256);

/// Calls from the stub's page.
pub const STUB: &[Rule] = &[
    rule(layout::CALL_DOORBELL as libc::c_long, When::Always, Action::Ask, "the hand-off to the kernel"),
    rule(layout::CALL_BORN as libc::c_long, When::Always, Action::Ask, "a forked process asks for its slots"),
    rule(libc::SYS_rt_sigreturn, When::Always, Action::Allow, "back to the guest; changes the caller's registers only"),
    rule(libc::SYS_clone, When::Always, Action::Ask, "a thread or process that the kernel ordered"),
    rule(
        libc::SYS_mmap,
        When::Masked { argument: 3, mask: MAP_ANONYMOUS | MAP_HUGETLB, value: MAP_ANONYMOUS },
        Action::Allow,
        "fresh memory of its own; its amount is the cgroup's business. Huge pages would come from a pool of the host's",
    ),
    rule(libc::SYS_mmap, When::Always, Action::Ask, "pages of a file that the kernel put there for this call"),
    rule(libc::SYS_munmap, When::Always, Action::Allow, "its own memory"),
    rule(
        libc::SYS_mprotect,
        When::Always,
        Action::Allow,
        "its own memory; a shared file's pages keep what open allowed",
    ),
    rule(libc::SYS_mremap, When::Always, Action::Allow, "its own memory"),
    rule(
        libc::SYS_membarrier,
        When::OneOf { argument: 0, mask: u32::MAX, values: &[8, 16, 32, 64] },
        Action::Allow,
        "its own threads see what others of them have written, code too",
    ),
    rule(libc::SYS_sigaltstack, When::Always, Action::Allow, "where its own handler runs"),
    rule(
        libc::SYS_arch_prctl,
        When::OneOf { argument: 0, mask: u32::MAX, values: &[0x1001, 0x1002, 0x1003, 0x1004] },
        Action::Allow,
        "its own segment bases, set and read",
    ),
    rule(libc::SYS_exit, When::Always, Action::Allow, "the end of the calling thread"),
    rule(libc::SYS_close_range, When::Always, Action::Allow, "letting go of descriptors, of which it can use none"),
];

/// Calls from anywhere: the host does them at once, because they concern nothing but the caller's own memory and time.
pub const GUEST: &[Rule] = &[
    rule(
        libc::SYS_futex,
        When::OneOf { argument: 1, mask: FUTEX_COMMAND, values: &[0, 1, 3, 4, 5, 9, 10] },
        Action::Allow,
        "wait, wake and requeue on memory that the caller has mapped",
    ),
    rule(libc::SYS_sched_yield, When::Always, Action::Allow, "gives time away"),
];

/// Of stubs whose private memory is all fresh: in a kernel that is restored, the pages of a snapshot would come back.
pub const GUEST_MEMORY: &[Rule] = &[rule(
    libc::SYS_madvise,
    When::OneOf { argument: 2, mask: u32::MAX, values: &[3, 4, 8] },
    Action::Allow,
    "WILLNEED, DONTNEED, FREE: its own memory",
)];

/// The filter as the host takes it (seccomp(2)). `restores`: of a kernel that goes on from a snapshot.
pub fn program(restores: bool) -> Vec<libc::sock_filter> {
    let (stub, mut guest) = (compile_all(STUB), compile_all(GUEST));
    if !restores {
        guest.extend(compile_all(GUEST_MEMORY));
    }
    let trap = op(RET, libc::SECCOMP_RET_TRAP);
    let mut all = vec![op(LD, AT_ARCH), jump(ARCH_X86_64, 1, 0), trap];
    // Called from the stub's page? Else skip its rules; they may be too many for a short jump.
    all.extend([op(LD, AT_IP + 4), jump((layout::CODE >> 32) as u32, 0, 3)]);
    all.extend([op(LD, AT_IP), op(AND, !(layout::CODE_SIZE as u32 - 1)), jump(layout::CODE as u32, 1, 0)]);
    all.push(op((libc::BPF_JMP | libc::BPF_JA) as u16, stub.len() as u32));
    all.extend(stub);
    all.extend(guest);
    all.push(trap);
    all
}
