//! What a caller sees of the files: who it is, where it stands.

use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};
use drupe_appkernel_vfs::{
    ClockId, Context, Credentials, How, MountNamespace, OpenFile, OpenFlags, Path, SpecialFiles, Timestamp, View,
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
            credentials: process.acting(),
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

    /// The open file behind a descriptor. EBADF, also for one that is only a place (O_PATH).
    pub(crate) fn file(&self, tid: Tid, fd: u64) -> Result<Arc<OpenFile>> {
        let file = self.any_file(tid, fd)?;
        (!file.flags().has(OpenFlags::PATH)).then_some(file).ok_or(Errno::BADF)
    }

    /// The open file behind a descriptor, of whatever kind (open(2), O_PATH, says for which calls). EBADF.
    pub(crate) fn any_file(&self, tid: Tid, fd: u64) -> Result<Arc<OpenFile>> {
        let process = self.process(tid)?;
        let table = process.files.lock();
        table.get(fd as i32).map(Arc::clone)
    }

    /// Do something with a file as the task.
    pub(crate) fn with_context<T>(&self, tid: Tid, act: impl FnOnce(&Context<'_>) -> Result<T>) -> Result<T> {
        let process = self.process(tid)?;
        let now = self.host.now(ClockId::Realtime);
        let apart = process.ids.fs_uid.or(process.ids.fs_gid).map(|_| process.acting());
        let credentials = apart.as_ref().unwrap_or(&process.credentials);
        act(&Context { credentials, now, pid: process.pid, session: process.session })
    }

    /// Where a path relative to this descriptor starts.
    pub(crate) fn start(&self, tid: Tid, seat: &Seat, fd: u64, path: &[u8]) -> Result<Path> {
        if fd as i32 == AT_FDCWD || path.first() == Some(&b'/') {
            return Ok(seat.cwd.clone());
        }
        self.any_file(tid, fd)?.path().cloned().ok_or(Errno::NOTDIR)
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

/// Whether a call looks at procfs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Looks {
    No,
    /// It walks a path, which a link may lead there.
    Maybe,
    Surely,
}

/// Calls whose first argument is a descriptor, whose first two are a descriptor and a path, whose first is a path.
const BY_DESCRIPTOR: [u64; 9] = [0, 1, 5, 8, 17, 19, 78, 217, 295];
const BY_BOTH: [u64; 9] = [257, 262, 267, 269, 332, 437, 439, 322, 263];
const BY_PATH: [u64; 13] = [2, 4, 6, 21, 59, 76, 80, 82, 83, 84, 87, 89, 137];

impl Kernel {
    pub(crate) fn looks_at_proc(&self, tid: Tid, number: u64, args: &[u64; 6]) -> Looks {
        match number {
            n if BY_DESCRIPTOR.contains(&n) => self.is_of_proc(tid, args[0]),
            n if BY_BOTH.contains(&n) => self.may_lead_to_proc(tid, args[0], args[1]),
            n if BY_PATH.contains(&n) => self.may_lead_to_proc(tid, AT_FDCWD as u64, args[0]),
            _ => Looks::No,
        }
    }

    fn is_of_proc(&self, tid: Tid, fd: u64) -> Looks {
        let Ok(file) = self.any_file(tid, fd) else { return Looks::No };
        let shown = file.path().is_some_and(|path| path.mount.file_system().name() == "proc");
        if shown {
            Looks::Surely
        } else {
            Looks::No
        }
    }

    fn may_lead_to_proc(&self, tid: Tid, fd: u64, address: u64) -> Looks {
        let Ok(path) = self.path_text(tid, address) else { return Looks::No };
        let named = path.windows(5).any(|part| part == b"/proc") || path.starts_with(b"proc");
        let relative = path.first() != Some(&b'/');
        let from_there = relative && self.stands_in_proc(tid, fd);
        if named || from_there {
            Looks::Surely
        } else {
            Looks::Maybe
        }
    }

    fn stands_in_proc(&self, tid: Tid, fd: u64) -> bool {
        if fd as i32 != AT_FDCWD {
            return self.is_of_proc(tid, fd) == Looks::Surely;
        }
        self.process(tid).is_ok_and(|p| p.fs.lock().cwd.mount.file_system().name() == "proc")
    }
}
