//! Signals: sets, actions, and what is delivered (signal(7)).

pub type Set = u64;

pub const SIGHUP: i32 = 1;
pub const SIGINT: i32 = 2;
pub const SIGILL: i32 = 4;
pub const SIGKILL: i32 = 9;
pub const SIGSEGV: i32 = 11;
pub const SIGPIPE: i32 = 13;
pub const SIGALRM: i32 = 14;
pub const SIGCHLD: i32 = 17;
pub const SIGCONT: i32 = 18;
pub const SIGSTOP: i32 = 19;
pub const SIGTSTP: i32 = 20;
pub const SIGTTIN: i32 = 21;
pub const SIGTTOU: i32 = 22;
pub const SIGURG: i32 = 23;
pub const SIGSYS: i32 = 31;
pub const SIGWINCH: i32 = 28;
pub const COUNT: i32 = 64;

/// Cannot be caught, blocked or ignored.
pub const UNBLOCKABLE: Set = bit(SIGKILL) | bit(SIGSTOP);
pub const STOPS: Set = bit(SIGSTOP) | bit(SIGTSTP) | bit(SIGTTIN) | bit(SIGTTOU);

pub const SI_USER: i32 = 0;
pub const SI_KERNEL: i32 = 0x80;
pub const SI_TKILL: i32 = -6;

pub const SA_NOCLDSTOP: u64 = 1;
pub const SA_NOCLDWAIT: u64 = 2;
pub const SA_ONSTACK: u64 = 0x0800_0000;
pub const SA_RESTART: u64 = 0x1000_0000;
pub const SA_NODEFER: u64 = 0x4000_0000;
pub const SA_RESETHAND: u64 = 0x8000_0000;

pub const SIG_DFL: u64 = 0;
pub const SIG_IGN: u64 = 1;

pub const fn bit(signal: i32) -> Set {
    1 << (signal - 1)
}

/// struct sigaction as the kernel's interface has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Action {
    pub handler: u64,
    pub flags: u64,
    pub restorer: u64,
    pub mask: Set,
}

#[derive(Clone)]
pub struct Actions([Action; COUNT as usize]);

impl Default for Actions {
    fn default() -> Self {
        Actions([Action::default(); COUNT as usize])
    }
}

impl Actions {
    pub fn get(&self, signal: i32) -> Action {
        self.0[signal as usize - 1]
    }

    pub fn set(&mut self, signal: i32, action: Action) {
        self.0[signal as usize - 1] = action;
    }

    /// execve(2): handlers are gone, what is ignored stays so.
    pub fn reset(&mut self) {
        for action in &mut self.0 {
            let handler = if action.handler == SIG_IGN { SIG_IGN } else { SIG_DFL };
            *action = Action { handler, ..Action::default() };
        }
    }

    /// Whether the signal, if delivered, does nothing.
    pub fn ignores(&self, signal: i32) -> bool {
        let handler = self.get(signal).handler;
        handler == SIG_IGN || (handler == SIG_DFL && default_of(signal) == Effect::Ignore)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    Ignore,
    Terminate,
    Stop,
    Continue,
}

/// What the signal does when nobody handles it.
pub fn default_of(signal: i32) -> Effect {
    match signal {
        SIGCHLD | SIGURG | SIGWINCH => Effect::Ignore,
        SIGCONT => Effect::Continue,
        SIGSTOP | SIGTSTP | SIGTTIN | SIGTTOU => Effect::Stop,
        _ => Effect::Terminate,
    }
}

/// siginfo_t, as far as it is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Info {
    pub signal: i32,
    pub code: i32,
    pub errno: i32,
    /// The union after si_code: (pid, uid), the address, or for SIGCHLD (pid, uid), status.
    pub fields: [u64; 2],
}

impl Info {
    pub fn new(signal: i32, code: i32) -> Info {
        Info { signal, code, ..Info::default() }
    }

    pub fn from_process(signal: i32, code: i32, pid: u32, uid: u32) -> Info {
        Info { signal, code, errno: 0, fields: [u64::from(crate::pids::seen(pid)) | u64::from(uid) << 32, 0] }
    }

    pub fn to_bytes(self) -> [u8; 128] {
        let mut bytes = [0; 128];
        bytes[0..4].copy_from_slice(&self.signal.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.errno.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.code.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.fields[0].to_le_bytes());
        bytes[24..32].copy_from_slice(&self.fields[1].to_le_bytes());
        bytes
    }
}

pub const SS_ONSTACK: u32 = 1;
pub const SS_DISABLE: u32 = 2;

/// sigaltstack(2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AltStack {
    pub address: u64,
    pub size: u64,
}

impl AltStack {
    pub fn contains(&self, sp: u64) -> bool {
        sp > self.address && sp - self.address <= self.size
    }
}

/// Take the first pending signal that `mask` lets through: faults of the processor first, then the lowest.
pub fn take_pending(list: &mut Vec<Info>, mask: Set) -> Option<Info> {
    let open = |info: &&Info| mask & bit(info.signal) == 0 || UNBLOCKABLE & bit(info.signal) != 0;
    let lowest = list.iter().filter(open).map(|info| info.signal).min()?;
    let at = list.iter().position(|info| info.signal == lowest)?;
    Some(list.remove(at))
}

pub fn set_of(list: &[Info]) -> Set {
    list.iter().fold(0, |set, info| set | bit(info.signal))
}
