//! What a caller sees of the files: who it is, where it stands.

use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};
use drupe_appkernel_vfs::{
    ClockId, Context, Credentials, How, MountNamespace, OpenFile, Path, SpecialFiles, Timestamp, View,
};

use crate::kernel::Kernel;
use crate::task::Tid;

pub const AT_FDCWD: i32 = -100;
pub const AT_SYMLINK_NOFOLLOW: u64 = 0x100;
pub const AT_EMPTY_PATH: u64 = 0x1000;

/// One task's view for one call; holds what it needs, so that the kernel stays free.
pub(crate) struct Seat {
    pub credentials: Credentials,
    pub now: Timestamp,
    pub pid: u32,
    pub session: u32,
    pub namespace: Arc<MountNamespace>,
    pub root: Path,
    pub cwd: Path,
    pub umask: u32,
    pub specials: Arc<dyn SpecialFiles>,
}

impl Seat {
    pub fn context(&self) -> Context<'_> {
        Context { credentials: &self.credentials, now: self.now, pid: self.pid, session: self.session }
    }

    pub fn view<'a>(&'a self, context: &'a Context<'a>) -> View<'a> {
        View {
            context,
            namespace: &self.namespace,
            root: &self.root,
            umask: self.umask,
            specials: self.specials.as_ref(),
        }
    }
}

impl Kernel {
    pub(crate) fn seat(&self, tid: Tid) -> Result<Seat> {
        let process = self.process(tid)?;
        let fs = process.fs.lock();
        Ok(Seat {
            credentials: process.credentials.clone(),
            now: self.host.now(ClockId::Realtime),
            pid: process.pid,
            session: process.session,
            namespace: Arc::clone(&process.namespace),
            root: fs.root.clone(),
            cwd: fs.cwd.clone(),
            umask: fs.umask,
            specials: Arc::clone(&self.specials),
        })
    }

    /// The open file behind a descriptor. EBADF.
    pub(crate) fn file(&self, tid: Tid, fd: u64) -> Result<Arc<OpenFile>> {
        let process = self.process(tid)?;
        let table = process.files.lock();
        table.get(fd as i32).map(Arc::clone)
    }

    /// Do something with a file as the task.
    pub(crate) fn with_context<T>(&self, tid: Tid, act: impl FnOnce(&Context<'_>) -> Result<T>) -> Result<T> {
        let process = self.process(tid)?;
        let now = self.host.now(ClockId::Realtime);
        act(&Context { credentials: &process.credentials, now, pid: process.pid, session: process.session })
    }

    /// Where a path relative to this descriptor starts.
    pub(crate) fn start(&self, tid: Tid, seat: &Seat, fd: u64, path: &[u8]) -> Result<Path> {
        if fd as i32 == AT_FDCWD || path.first() == Some(&b'/') {
            return Ok(seat.cwd.clone());
        }
        self.file(tid, fd)?.path().cloned().ok_or(Errno::NOTDIR)
    }

    /// The file at a path of the guest's; `flags`: AT_EMPTY_PATH, AT_SYMLINK_NOFOLLOW.
    pub(crate) fn at(&self, tid: Tid, seat: &Seat, fd: u64, address: u64, flags: u64) -> Result<Path> {
        let path = self.path_text(tid, address)?;
        let start = self.start(tid, seat, fd, &path)?;
        if path.is_empty() && flags & AT_EMPTY_PATH != 0 {
            return Ok(start);
        }
        let how = if flags & AT_SYMLINK_NOFOLLOW != 0 { How::NO_FOLLOW } else { How::FOLLOW };
        let context = seat.context();
        seat.view(&context).walk(&start, &path, how)
    }
}
