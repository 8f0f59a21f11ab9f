//! What the core asks of every open file: regular files, directories, pipes, sockets, terminals, event objects.

use std::any::Any;
use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};

use crate::inode::DirEntry;
use crate::kind::FileType;
use crate::open::OpenFlags;
use crate::socket::Socket;
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
#[derive(Clone, Copy)]
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

/// What stat(2) and statx(2) answer; `mode` has the type bits, `blocks` are of 512 bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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

impl Metadata {
    /// Of this kind, with one link and everything else zero.
    pub fn new(kind: FileType, permissions: u32) -> Self {
        Self { mode: kind.mode_bits() | permissions, links: 1, block_size: 4096, ..Self::default() }
    }

    pub fn kind(&self) -> FileType {
        FileType::from_mode(self.mode).unwrap_or(FileType::Regular)
    }

    pub fn is_directory(&self) -> bool {
        self.kind() == FileType::Directory
    }
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
/// and the core waits in `queue()` and asks again. `OpenFile` keeps the position and passes it as `offset`; files that
/// have none ignore it.
pub trait File: Any + Send + Sync {
    /// Fill `out`; 0 at the end.
    fn read(&self, context: &Context, offset: u64, out: &mut [u8]) -> Result<usize>;

    /// EPIPE: the caller sends SIGPIPE.
    fn write(&self, context: &Context, offset: u64, data: &[u8]) -> Result<usize>;

    /// Write at the end: bytes written, and the end then (O_APPEND of what can seek).
    fn append(&self, _context: &Context, _data: &[u8]) -> Result<(usize, u64)> {
        Err(Errno::SPIPE)
    }

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

    /// Whether lseek(2) stays at 0, wherever it is to go.
    fn stays_at_start(&self) -> bool {
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

    /// Where SEEK_END starts.
    fn size_bytes(&self) -> Result<u64> {
        Ok(self.metadata()?.size_bytes)
    }

    /// SEEK_DATA and SEEK_HOLE, as if all were data unless the file knows better. ENXIO beyond the end.
    fn seek_hole(&self, offset: u64, hole: bool) -> Result<u64> {
        match self.size_bytes()? {
            size if offset >= size => Err(Errno::NXIO),
            size => Ok(if hole { size } else { offset }),
        }
    }

    /// Entries after `cookie` (0: from the start), with "." and "..", until `sink` returns false.
    fn read_dir(&self, _cookie: u64, _sink: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Result<()> {
        Err(Errno::NOTDIR)
    }

    fn truncate(&self, _context: &Context, _size_bytes: u64) -> Result<()> {
        Err(Errno::INVAL)
    }

    /// fallocate(2) with its FALLOC_FL_* mode.
    fn allocate(&self, _context: &Context, _mode: u32, _offset: u64, _length_bytes: u64) -> Result<()> {
        Err(Errno::NOTSUP)
    }

    /// fsync(2).
    fn sync(&self) -> Result<()> {
        Err(Errno::INVAL)
    }

    /// F_SETFL changed the open file's flags, for files that pass them on to the host.
    fn flags_changed(&self, _flags: OpenFlags) {}

    /// The file as a socket, if it is one.
    fn as_socket(&self) -> Option<&dyn Socket> {
        None
    }

    fn as_any(&self) -> &dyn Any;
}
