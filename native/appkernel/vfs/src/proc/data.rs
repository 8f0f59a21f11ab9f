//! What procfs asks of the core: plain data.

use std::sync::Arc;
use std::time::Duration;

use drupe_appkernel_abi::Result;

use crate::dentry::Path;
use crate::mount::MountNamespace;
use crate::open::OpenFile;

/// A process, or one thread of it. Times are in ticks of 10 ms, sets of signals have bit n - 1 for signal n.
#[derive(Clone, Debug, Default)]
pub struct Process {
    pub tid: u32,
    pub pid: u32,
    pub parent: u32,
    pub group: u32,
    pub session: u32,
    /// Device number of the controlling terminal, 0: none; and its foreground group, -1: none.
    pub terminal: u64,
    pub terminal_group: i32,
    /// 'R', 'S', 'T', 'Z', …
    pub state: u8,
    /// At most 15 bytes.
    pub name: Vec<u8>,
    pub thread_count: u32,
    /// Real, effective, saved, of the file system.
    pub uids: [u32; 4],
    pub gids: [u32; 4],
    pub groups: Vec<u32>,
    pub size_bytes: u64,
    pub resident_bytes: u64,
    pub peak_bytes: u64,
    pub peak_resident_bytes: u64,
    pub locked_bytes: u64,
    /// Private and writable, but for the stack; the stack; private and executable.
    pub data_bytes: u64,
    pub stack_bytes: u64,
    pub code_bytes: u64,
    pub user_ticks: u64,
    pub system_ticks: u64,
    pub children_user_ticks: u64,
    pub children_system_ticks: u64,
    pub start_ticks: u64,
    /// Minor, of children, major, of children.
    pub faults: [u64; 4],
    pub umask: u32,
    pub nice: i32,
    pub exit_signal: i32,
    /// Pending for the thread, for the process; blocked, ignored, caught.
    pub signals: [u64; 5],
    /// Inheritable, permitted, effective, bounding, ambient.
    pub capabilities: [u64; 5],
    pub no_new_privileges: bool,
    pub seccomp: u32,
    /// Of seccomp(2).
    pub filters: u32,
    pub fd_slots: u32,
    pub oom_score_adj: i32,
    /// Signals that may wait for its user (RLIMIT_SIGPENDING).
    pub pending_max: u64,
    /// How many processors it may use: the first ones.
    pub processors: u32,
}

/// What /proc/PID/smaps counts of a range, in its order.
pub const COUNTS: [&str; 9] =
    ["Rss", "Pss", "Shared_Clean", "Shared_Dirty", "Private_Clean", "Private_Dirty", "Referenced", "Anonymous", "Swap"];

/// A mapped range.
#[derive(Clone, Debug, Default)]
pub struct Area {
    pub start: u64,
    pub end: u64,
    /// PROT_*.
    pub protection: u32,
    pub shared: bool,
    pub offset: u64,
    pub device: u64,
    pub inode: u64,
    /// The file's path, or "[heap]", "[stack]"; may be empty.
    pub name: Vec<u8>,
    /// By `COUNTS`, where that is known.
    pub counts_kib: [u64; COUNTS.len()],
}

/// Where a process is.
#[derive(Clone)]
pub struct Places {
    pub root: Path,
    pub working: Path,
    pub executable: Option<Path>,
}

/// The system as its processes see it. Ticks as in `Process`.
#[derive(Clone, Debug, Default)]
pub struct System {
    pub host_name: String,
    pub domain_name: String,
    /// As uname(2) has them.
    pub release: String,
    pub version: String,
    pub processors: u32,
    /// The processor's own words; "model name" and "flags" of /proc/cpuinfo.
    pub processor_model: String,
    pub processor_flags: String,
    pub processor_mhz: u32,
    /// The pod's limit.
    pub memory_bytes: u64,
    pub memory_free_bytes: u64,
    /// What tmpfs files hold.
    pub shared_bytes: u64,
    pub since_boot: Duration,
    pub idle: Duration,
    pub boot_seconds: i64,
    /// Over 1, 5 and 15 minutes, times 100.
    pub loads_percent: [u64; 3],
    pub running: u32,
    pub threads: u32,
    pub last_pid: u32,
    pub forks: u64,
    pub context_switches: u64,
    pub user_ticks: u64,
    pub system_ticks: u64,
    pub open_files: u64,
    /// A UUID that stays until the kernel ends.
    pub boot_id: String,
}

/// The processes that one procfs shows, by the numbers that its readers know; the core implements it. None, or nothing,
/// of a process that is gone.
pub trait Processes: Send + Sync {
    /// Process and thread that are asking.
    fn current(&self) -> (u32, u32);

    fn pids(&self) -> Vec<u32>;

    fn threads(&self, pid: u32) -> Vec<u32>;

    fn process(&self, pid: u32, tid: u32) -> Option<Process>;

    /// Each argument with a zero byte after it.
    fn command_line(&self, pid: u32) -> Option<Vec<u8>>;

    fn environment(&self, pid: u32) -> Option<Vec<u8>>;

    /// The auxiliary vector, as it lies on the stack.
    fn auxiliary(&self, pid: u32) -> Option<Vec<u8>>;

    fn areas(&self, pid: u32) -> Vec<Area>;

    /// Descriptors: number, whether close-on-exec, open file.
    fn files(&self, pid: u32) -> Vec<(i32, bool, Arc<OpenFile>)>;

    fn places(&self, pid: u32) -> Option<Places>;

    /// (soft, hard) by RLIMIT_* number; u64::MAX: none.
    fn limits(&self, pid: u32) -> Option<[(u64, u64); 16]>;

    fn namespace(&self, pid: u32) -> Option<Arc<MountNamespace>>;

    /// A thread's name, as prctl(2) PR_SET_NAME sets it. ESRCH.
    fn set_name(&self, pid: u32, tid: u32, name: &[u8]) -> Result<()>;

    /// What was written to /proc/PID/oom_score_adj.
    fn set_oom_score_adj(&self, pid: u32, score: i32) -> Result<()>;

    fn system(&self) -> System;

    /// What is not at its default below /proc/sys: paths there, and values.
    fn settings(&self) -> Vec<(String, String)> {
        Vec::new()
    }

    /// A file of the host's /proc/net for the pod's network; None: it has none beyond itself.
    fn network_file(&self, _name: &str) -> Option<Vec<u8>> {
        None
    }

    /// A random UUID.
    fn uuid(&self) -> String;
}
