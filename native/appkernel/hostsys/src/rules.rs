//! System-call filters as data with reasons, and their form that the host takes (seccomp(2), classic BPF).

/// What the filter answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// The host does it.
    Allow,
    /// The kernel is asked, and lets it pass only if it has ordered exactly this call.
    Ask,
    /// This error instead.
    Fail(u16),
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
    /// An option of a socket: argument 1 is its level, argument 2 one of these names.
    Option {
        level: u32,
        names: &'static [u32],
    },
}

#[derive(Clone, Copy, Debug)]
pub struct Rule {
    pub call: u32,
    pub when: When,
    pub action: Action,
    pub why: &'static str,
}

pub(crate) const fn rule(call: libc::c_long, when: When, action: Action, why: &'static str) -> Rule {
    Rule { call: call as u32, when, action, why }
}

pub(crate) const ARCH_X86_64: u32 = 0xc000_003e;
pub(crate) const LD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
pub(crate) const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
const JEQ: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
pub(crate) const RET: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
const AT_NR: u32 = 0;
pub(crate) const AT_ARCH: u32 = 4;
pub(crate) const AT_IP: u32 = 8;
const AT_ARGS: u32 = 16;

pub(crate) fn op(code: u16, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt: 0, jf: 0, k }
}

pub(crate) fn jump(k: u32, jt: usize, jf: usize) -> libc::sock_filter {
    let near = |n: usize| u8::try_from(n).expect("a jump of the filter is too far");
    libc::sock_filter { code: JEQ, jt: near(jt), jf: near(jf), k }
}

fn answer(action: Action) -> libc::sock_filter {
    op(
        RET,
        match action {
            Action::Allow => libc::SECCOMP_RET_ALLOW,
            Action::Ask => libc::SECCOMP_RET_USER_NOTIF,
            Action::Fail(errno) => libc::SECCOMP_RET_ERRNO | u32::from(errno),
        },
    )
}

/// All of them, one after the other; what none matches falls through.
pub(crate) fn compile_all(rules: &[Rule]) -> Vec<libc::sock_filter> {
    let mut all = Vec::new();
    rules.iter().for_each(|rule| compile(rule, &mut all));
    all
}

/// One rule; falls through when it does not match.
fn compile(rule: &Rule, out: &mut Vec<libc::sock_filter>) {
    let mut body = Vec::new();
    match rule.when {
        When::Always => body.push(answer(rule.action)),
        When::Masked { argument, mask, value } => check(argument, mask, &[value], rule.action, &mut body),
        When::OneOf { argument, mask, values } => check(argument, mask, values, rule.action, &mut body),
        When::Option { level, names } => {
            let mut named = Vec::new();
            check(2, u32::MAX, names, rule.action, &mut named);
            body.extend([op(LD, AT_ARGS + 8), jump(level, 0, named.len())]);
            body.extend(named);
        }
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
