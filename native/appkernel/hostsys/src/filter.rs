//! What a stub process may ask of the host, as a seccomp filter: data with reasons.
//!
//! Guest code can jump into the stub's page, so that "called from the page" is no proof of anything: it only tells the
//! stub's own calls from the guest's, which trap. Every rule must be safe when the guest makes the call.

use crate::layout;

/// What the filter answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// The host does it.
    Allow,
    /// The kernel is asked, and lets it pass only if it has ordered exactly this call.
    Ask,
}

/// A condition on an argument's low 32 bits.
#[derive(Clone, Copy, Debug)]
pub enum When {
    Always,
    /// (argument & mask) == value
    Masked {
        argument: u8,
        mask: u32,
        value: u32,
    },
    /// argument & mask is one of these
    OneOf {
        argument: u8,
        mask: u32,
        values: &'static [u32],
    },
}

#[derive(Clone, Copy, Debug)]
pub struct Rule {
    pub call: u32,
    pub when: When,
    pub action: Action,
    pub why: &'static str,
}

const fn rule(call: libc::c_long, when: When, action: Action, why: &'static str) -> Rule {
    Rule { call: call as u32, when, action, why }
}

const MAP_ANONYMOUS: u32 = libc::MAP_ANONYMOUS as u32;
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
        When::Masked { argument: 3, mask: MAP_ANONYMOUS, value: MAP_ANONYMOUS },
        Action::Allow,
        "fresh memory of its own; its amount is the cgroup's business",
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
    rule(
        libc::SYS_madvise,
        When::OneOf { argument: 2, mask: u32::MAX, values: &[3, 4, 8] },
        Action::Allow,
        "WILLNEED, DONTNEED, FREE: its own memory",
    ),
];

const ARCH_X86_64: u32 = 0xc000_003e;
const LD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
const JEQ: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const RET: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
const AT_NR: u32 = 0;
const AT_ARCH: u32 = 4;
const AT_IP: u32 = 8;
const AT_ARGS: u32 = 16;

fn op(code: u16, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt: 0, jf: 0, k }
}

fn jump(k: u32, jt: usize, jf: usize) -> libc::sock_filter {
    let near = |n: usize| u8::try_from(n).expect("a jump of the filter is too far");
    libc::sock_filter { code: JEQ, jt: near(jt), jf: near(jf), k }
}

fn answer(action: Action) -> libc::sock_filter {
    op(RET, if action == Action::Allow { libc::SECCOMP_RET_ALLOW } else { libc::SECCOMP_RET_USER_NOTIF })
}

/// One rule; falls through when it does not match.
fn compile(rule: &Rule, out: &mut Vec<libc::sock_filter>) {
    let mut body = Vec::new();
    match rule.when {
        When::Always => body.push(answer(rule.action)),
        When::Masked { argument, mask, value } => check(argument, mask, &[value], rule.action, &mut body),
        When::OneOf { argument, mask, values } => check(argument, mask, values, rule.action, &mut body),
    }
    out.push(op(LD, AT_NR));
    out.push(jump(rule.call, 0, body.len()));
    out.extend(body);
}

fn check(argument: u8, mask: u32, values: &[u32], action: Action, body: &mut Vec<libc::sock_filter>) {
    body.push(op(LD, AT_ARGS + 8 * u32::from(argument)));
    body.push(op(AND, mask));
    for (i, value) in values.iter().enumerate() {
        let rest = values.len() - 1 - i;
        body.push(jump(*value, rest, usize::from(rest == 0)));
    }
    body.push(answer(action));
}

/// The filter as the host takes it (seccomp(2)).
pub fn program() -> Vec<libc::sock_filter> {
    let mut stub = Vec::new();
    STUB.iter().for_each(|rule| compile(rule, &mut stub));
    let mut guest = Vec::new();
    GUEST.iter().for_each(|rule| compile(rule, &mut guest));
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
