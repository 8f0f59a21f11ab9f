//! What the core asks of every open file: regular files, directories, pipes, sockets, terminals, event objects.

use std::any::Any;
use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};

use crate::wait::{self, Events, WaitQueue};

/// Seconds and nanoseconds since the epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp {
    pub seconds: i64,
    pub nanoseconds: u32,
}

/// Who asks (credentials(7)); `capabilities` is the effective set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    pub uid: u32,
    pub gid: u32,
    pub groups: Arc<[u32]>,
    pub capabilities: u64,
}

/// The asker and the moment of one call.
pub struct Context<'a> {
    pub credentials: &'a Credentials,
    pub now: Timestamp,
    /// Thread-group id and session of the caller, for terminals, locks and /proc/self.
    pub pid: u32,
    pub session: u32,
}

/// A file of the host that pages are mapped from (an image, a memfd): its descriptor in the kernel's process.
pub trait HostFile: Send + Sync {
    fn raw_fd(&self) -> i32;
}

/// Where pages of a file lie for mmap(2): `host` from `offset` on, page-aligned.
#[derive(Clone)]
pub struct Mapping {
    pub host: Arc<dyn HostFile>,
    pub offset: u64,
}

/// What stat(2) and statx(2) answer; `mode` has the type bits.
#[derive(Clone, Debug, Default)]
pub struct Metadata {
    pub device: u64,
    pub inode: u64,
    pub mode: u32,
    pub links: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u64,
    pub size_bytes: u64,
    pub block_size: u32,
    pub blocks: u64,
    pub accessed: Timestamp,
    pub modified: Timestamp,
    pub changed: Timestamp,
    pub born: Timestamp,
}

/// lseek(2).
#[derive(Clone, Copy, Debug)]
pub enum SeekFrom {
    Start(u64),
    Current(i64),
    End(i64),
    Data(u64),
    Hole(u64),
}

/// An open file description's object. Nothing here ever blocks: what would, answers EAGAIN, whatever O_NONBLOCK says,
/// and the core waits in `queue()` and asks again. `offset` is None for the position of read(2), which
/// files that have none ignore; the core keeps the position and passes Some for what can seek.
pub trait File: Any + Send + Sync {
    /// Fill `out`; 0 at the end.
    fn read(&self, context: &Context, offset: u64, out: &mut [u8]) -> Result<usize>;

    fn write(&self, context: &Context, offset: u64, data: &[u8]) -> Result<usize>;

    /// What it is ready for now.
    fn poll(&self, interest: Events) -> Events {
        interest & (wait::IN | wait::OUT)
    }

    /// Where to wait for a change of `poll`; None: always ready.
    fn queue(&self) -> Option<&WaitQueue> {
        None
    }

    fn metadata(&self) -> Result<Metadata>;

    /// Whether it has a position (lseek(2), pread(2)).
    fn can_seek(&self) -> bool {
        false
    }

    /// Pages for mmap(2). `shared_write`: the mapping may change the file.
    fn mapping(&self, _offset: u64, _size_bytes: u64, _shared_write: bool) -> Result<Mapping> {
        Err(Errno::NODEV)
    }

    /// ioctl(2) whose argument is a number or a structure: `data` holds what lies at `argument` (up to the size
    /// the request needs, see `ioctl_size`), and is written back when the answer says so.
    fn ioctl(&self, _context: &Context, _request: u32, _argument: u64, _data: &mut Vec<u8>) -> Result<i64> {
        Err(Errno::NOTTY)
    }

    fn as_any(&self) -> &dyn Any;
}
