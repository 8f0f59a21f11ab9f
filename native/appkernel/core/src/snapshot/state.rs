//! What is written down of a kernel. The order of fields is the form: whoever changes it changes `VERSION`.

use drupe_appkernel_abi::coded;
use drupe_appkernel_vfs::saved::{SavedEnd, SavedEvent, SavedPipe, SavedTimer};
use drupe_appkernel_vfs::socket::SavedSocket;
use drupe_appkernel_vfs::tmpfs::Leaf;
use drupe_appkernel_vfs::tty::SavedTerminal;

pub use super::queues::SavedNamed;

/// Of this form; the kernel's own version is told apart from it.
pub const VERSION: u32 = 5;

coded! {
    /// A place in a tree of files: which namespace, which mount of it, and names from that mount's root on.
    pub struct Place {
        pub namespace: u32,
        pub mount: u32,
        pub names: Vec<Vec<u8>>,
    }
}

coded! {
    /// An end of a pipe, by the pipe's number. A FIFO has a place.
    pub struct PipeFile {
        pub pipe: u32,
        pub end: SavedEnd,
        pub place: Option<Place>,
    }
}

coded! {
    pub struct EpollItem {
        pub fd: i32,
        pub file: u32,
        pub events: u32,
        pub data: u64,
        pub disarmed: bool,
    }
}

coded! {
    /// The descriptor given last; descriptor, mask and place of each watch; what was not read: descriptor, mask, cookie, name.
    pub struct SavedInotify {
        pub next: i32,
        pub watches: Vec<(i32, u32, Place)>,
        pub events: Vec<(i32, u32, u32, Vec<u8>)>,
    }
}

coded! {
    /// An end of a terminal, by the terminal's number.
    pub struct TerminalFile {
        pub terminal: u32,
        pub is_master: bool,
        pub place: Option<Place>,
    }
}

coded! {
    pub enum Body {
        /// Opened again by its place.
        Named(Place) = 0,
        /// A file of whoever runs the kernel, in its own words.
        Foreign(Vec<u8>) = 1,
        Pipe(PipeFile) = 2,
        Event(SavedEvent) = 3,
        Timer(SavedTimer) = 4,
        Epoll(Vec<EpollItem>) = 5,
        /// A file in memory that has no name any more, or never had one: its number, and what it is called.
        Nameless((u32, Vec<u8>)) = 6,
        /// pidfd_open(2).
        Process(u32) = 7,
        /// signalfd(2): the mask, and whose signals.
        Signals((u64, u32)) = 8,
        /// A socket within the pod, by its number.
        Socket(u32) = 9,
        Inotify(SavedInotify) = 10,
        Terminal(TerminalFile) = 11,
        /// A POSIX message queue, by its number.
        Queue(u32) = 12,
    }
}

coded! {
    /// An open file description. lock: it holds a flock, exclusive or not.
    pub struct SavedFile {
        pub flags: u32,
        pub position: u64,
        pub owner: (i32, i32),
        pub ids: (u32, u32),
        pub lock: Option<bool>,
        pub body: Body,
    }
}

coded! {
    pub struct SavedFs {
        pub root: Place,
        pub cwd: Place,
        pub umask: u32,
    }
}

/// Pages: address or offset, bytes, where they lie in the file of pages.
pub type Piece = (u64, u64, u64);

/// Memory that is shared without a file: bytes, and its pages.
pub type SavedObject = (u64, Vec<Piece>);

coded! {
    /// file: its number, and the offset at the start. object: the same of memory that is shared without a file.
    pub struct SavedArea {
        pub start: u64,
        pub end: u64,
        pub protection: u32,
        pub shared: bool,
        pub file: Option<(u32, u64)>,
        pub object: Option<(u32, u64)>,
        pub name: String,
    }
}

coded! {
    /// texts: where arguments and environment are. growing: ends of what grows downwards. sites: rewritten places (place,
    /// trampoline, bytes moved).
    pub struct SavedMm {
        pub areas: Vec<SavedArea>,
        pub brk_start: u64,
        pub brk: u64,
        pub top: u64,
        pub auxiliary: Vec<u8>,
        pub texts: ((u64, u64), (u64, u64)),
        pub growing: Vec<u64>,
        pub pages: Vec<Piece>,
        pub sites: Vec<(u64, u64, u64)>,
        pub regions: Vec<(u64, Vec<bool>)>,
    }
}

/// Signal, code, errno, fields.
pub type SavedInfo = (i32, i32, i32, [u64; 2]);

coded! {
    /// A call that waits.
    pub struct SavedCall {
        pub number: u64,
        pub args: [u64; 6],
        pub deadline_ns: Option<u64>,
        pub progress: u64,
    }
}

coded! {
    pub struct SavedTask {
        pub tid: u32,
        pub pid: u32,
        pub registers: [u64; 18],
        pub extended: Vec<u8>,
        pub fs_base: u64,
        pub gs_base: Option<u64>,
        pub call: Option<SavedCall>,
        pub mask: u64,
        pub saved_mask: Option<u64>,
        pub pending: Vec<SavedInfo>,
        pub waits_for: u64,
        pub alt_stack: (u64, u64),
        pub clear_tid: u64,
        pub robust_list: u64,
        /// Of timers, as it is and as it was at first.
        pub slack_ns: (u64, u64),
        pub name: [u8; 16],
        /// Whether its calls are filtered strictly; the number of its newest filter.
        pub seccomp: (bool, Option<u32>),
    }
}

coded! {
    /// What a living process has, by numbers.
    pub struct SavedLife {
        pub mm: u32,
        pub table: u32,
        pub fs: u32,
        pub actions: u32,
    }
}

/// The clock of timers that count processor time.
pub const PROCESSOR_CLOCK: u8 = 255;

coded! {
    /// clock, how, signal, value, thread; interval, due, overrun.
    pub struct SavedPosixTimer {
        pub id: i32,
        pub clock: u8,
        pub how: u32,
        pub signal: i32,
        pub value: u64,
        pub thread: u32,
        pub interval_ns: u64,
        pub due_ns: Option<u64>,
        pub overrun: u32,
    }
}

coded! {
    pub struct SavedProcess {
        pub pid: u32,
        pub parent: u32,
        pub group: u32,
        pub session: u32,
        pub container: u32,
        pub namespace: u32,
        pub life: Option<SavedLife>,
        /// Code, or minus the signal.
        pub exit: Option<i32>,
        pub pending: Vec<SavedInfo>,
        pub ids: [u32; 6],
        pub fs_ids: (Option<u32>, Option<u32>),
        pub groups: Vec<u32>,
        /// Effective, permitted, inheritable, bounding, ambient.
        pub capabilities: [u64; 5],
        pub securebits: u32,
        pub exit_signal: i32,
        /// A signal that has stopped it, or 0: it goes on.
        pub report: Option<i32>,
        pub timers: Vec<SavedPosixTimer>,
        pub schedule: (u32, i32, Vec<u8>),
        pub vfork_waiter: Option<u32>,
        pub limits: [(u64, u64); 16],
        pub executable: Option<Place>,
        pub has_execed: bool,
        pub started_ns: u64,
        pub alarm: Option<(u64, u64)>,
        /// Which, what is left of its time, interval.
        pub processor_alarms: Vec<(u8, u64, u64)>,
        pub stopped: bool,
        pub death_signal: i32,
        pub no_new_privileges: bool,
        pub subreaper: bool,
        pub dumpable: bool,
        pub without_huge_pages: bool,
        pub oom_score_adj: i32,
        pub personality: u32,
        pub io_priority: u32,
        pub name: [u8; 16],
        /// Of processor time, of memory at once, faults: its own if it has ended, and its children's.
        pub used: [u64; 4],
        pub children_used: [u64; 4],
    }
}

coded! {
    /// A record lock (fcntl(2)): a file of its inode; whose it is: a table's, and what its process is called, or (None) that
    /// open file's.
    pub struct SavedLock {
        pub file: u32,
        pub table: Option<(u32, i32)>,
        pub exclusive: bool,
        pub start: u64,
        pub end: u64,
    }
}

/// Key, user, group, the creator's user and group, mode.
pub type SavedPermissions = [u32; 6];

/// Identifier, permissions, object.
pub type SavedIpc<T> = (i32, SavedPermissions, T);

coded! {
    /// file: its number. processes: who made it, who used it last. times: of the last attach, detach, change.
    pub struct SavedSegment {
        pub file: u32,
        pub size_bytes: u64,
        pub processes: (u32, u32),
        pub times: [u64; 3],
        pub is_removed: bool,
    }
}

coded! {
    /// values: each with who changed it last. undo: process, index, what to add. times: of the last operation and change.
    pub struct SavedSemaphores {
        pub values: Vec<(u16, u32)>,
        pub undo: Vec<(u32, u16, i64)>,
        pub times: (u64, u64),
    }
}

coded! {
    /// times: of the last send, receive, change. last: who sent and received last.
    pub struct SavedQueue {
        pub messages: Vec<(i64, Vec<u8>)>,
        pub limit_bytes: u64,
        pub times: [u64; 3],
        pub last: [u32; 2],
    }
}

coded! {
    /// System V IPC. next: identifiers given last.
    pub struct SavedSysV {
        pub next: [i32; 3],
        pub segments: Vec<SavedIpc<SavedSegment>>,
        pub semaphores: Vec<SavedIpc<SavedSemaphores>>,
        pub queues: Vec<SavedIpc<SavedQueue>>,
    }
}

coded! {
    /// All of it but pages and file systems.
    pub struct Saved {
        /// Of the host's monotonic clock, which programs read by themselves.
        pub monotonic_ns: u64,
        pub vdso: u64,
        pub last_numbers: Vec<(u32, u32)>,
        pub pipes: Vec<SavedPipe>,
        pub leaves: Vec<Leaf>,
        /// With the place of the socket file that each is bound to.
        pub sockets: Vec<(SavedSocket, Option<Place>)>,
        pub objects: Vec<SavedObject>,
        pub files: Vec<SavedFile>,
        /// Descriptor, close-on-exec, file.
        pub tables: Vec<Vec<(i32, bool, u32)>>,
        pub fs: Vec<SavedFs>,
        /// Handler, flags, restorer, mask of each signal.
        pub actions: Vec<Vec<[u64; 4]>>,
        pub mms: Vec<SavedMm>,
        pub processes: Vec<SavedProcess>,
        /// Filters of system calls: the program, and the number of the one before, which is lower.
        pub filters: Vec<(Vec<u8>, Option<u32>)>,
        pub tasks: Vec<SavedTask>,
        pub first: Vec<u32>,
        pub joined: Vec<u32>,
        pub locks: Vec<SavedLock>,
        pub sysv: SavedSysV,
        /// Namespace and mount of the file system that names it.
        pub terminals: Vec<(u32, u32, SavedTerminal)>,
        pub queues: Vec<SavedNamed>,
    }
}
