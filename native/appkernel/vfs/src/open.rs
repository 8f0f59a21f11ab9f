//! Open file descriptions: what descriptors refer to, with their flags and position.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};

use crate::dentry::Path;
use crate::file::{Context, File, Metadata, SeekFrom};
use crate::inode::{DirEntry, Use};
use crate::inotify::{self, IN_ACCESS, IN_CLOSE_NOWRITE, IN_CLOSE_WRITE, IN_MODIFY};
use crate::sync::Mutex;
use crate::wait::Events;

/// O_* of open(2), as numbers of x86-64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenFlags(pub u32);

impl OpenFlags {
    pub const WRONLY: u32 = 0o1;
    pub const RDWR: u32 = 0o2;
    pub const CREAT: u32 = 0o100;
    pub const EXCL: u32 = 0o200;
    pub const NOCTTY: u32 = 0o400;
    pub const TRUNC: u32 = 0o1000;
    pub const APPEND: u32 = 0o2000;
    pub const NONBLOCK: u32 = 0o4000;
    pub const DSYNC: u32 = 0o10_000;
    pub const ASYNC: u32 = 0o20_000;
    pub const DIRECT: u32 = 0o40_000;
    pub const LARGEFILE: u32 = 0o100_000;
    pub const DIRECTORY: u32 = 0o200_000;
    pub const NOFOLLOW: u32 = 0o400_000;
    pub const NOATIME: u32 = 0o1_000_000;
    pub const CLOEXEC: u32 = 0o2_000_000;
    pub const SYNC: u32 = 0o4_010_000;
    pub const PATH: u32 = 0o10_000_000;
    pub const TMPFILE: u32 = 0o20_200_000;

    /// What fcntl(2) F_SETFL may change.
    pub const SETTABLE: u32 = Self::APPEND | Self::NONBLOCK | Self::ASYNC | Self::DIRECT | Self::NOATIME;

    pub fn has(self, flag: u32) -> bool {
        self.0 & flag == flag
    }

    pub fn reads(self) -> bool {
        self.0 & 3 != Self::WRONLY && !self.has(Self::PATH)
    }

    pub fn writes(self) -> bool {
        self.0 & 3 != 0 && !self.has(Self::PATH)
    }
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// An open file description (open(2)): what descriptors refer to, shared by dup and fork.
pub struct OpenFile {
    id: u64,
    file: Arc<dyn File>,
    path: Option<Path>,
    flags: AtomicU32,
    offset: Mutex<u64>,
    /// Of a regular file that was opened to be written to; held.
    _writing: Option<Use>,
    /// F_SETOWN and F_SETSIG, as given.
    pub owner: Mutex<(i32, i32)>,
}

impl OpenFile {
    /// `flags`: those of open(2); CREAT, EXCL, TRUNC, NOCTTY and CLOEXEC are not kept.
    pub fn new(file: Arc<dyn File>, path: Option<Path>, flags: OpenFlags) -> Arc<Self> {
        Self::made(file, path, flags, None)
    }

    pub(crate) fn writing(file: Arc<dyn File>, path: Path, flags: OpenFlags, writing: Option<Use>) -> Arc<Self> {
        Self::made(file, Some(path), flags, writing)
    }

    fn made(file: Arc<dyn File>, path: Option<Path>, flags: OpenFlags, writing: Option<Use>) -> Arc<Self> {
        let passing = OpenFlags::CREAT | OpenFlags::EXCL | OpenFlags::TRUNC | OpenFlags::NOCTTY | OpenFlags::CLOEXEC;
        Arc::new(Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            file,
            path,
            flags: AtomicU32::new(flags.0 & !passing),
            offset: Mutex::new(0),
            _writing: writing,
            owner: Mutex::new((0, 0)),
        })
    }

    /// One number for each open file, ever; owner of its flock and OFD locks.
    pub fn id(&self) -> u64 {
        self.id
    }

    pub fn file(&self) -> &Arc<dyn File> {
        &self.file
    }

    /// The object itself, if it is a `T`.
    pub fn downcast<T: 'static>(&self) -> Option<&T> {
        self.file.as_any().downcast_ref()
    }

    pub fn path(&self) -> Option<&Path> {
        self.path.as_ref()
    }

    pub fn flags(&self) -> OpenFlags {
        OpenFlags(self.flags.load(Ordering::Relaxed))
    }

    pub fn is_nonblocking(&self) -> bool {
        self.flags().has(OpenFlags::NONBLOCK)
    }

    /// fcntl(2) F_SETFL: what may not be changed is ignored, as there.
    pub fn set_flags(&self, flags: u32) {
        let kept = self.flags().0 & !OpenFlags::SETTABLE;
        self.flags.store(kept | flags & OpenFlags::SETTABLE, Ordering::Relaxed);
        self.file.flags_changed(self.flags());
    }

    pub fn metadata(&self) -> Result<Metadata> {
        match &self.path {
            Some(path) => path.inode().metadata(),
            None => self.file.metadata(),
        }
    }

    /// The file position.
    pub fn position(&self) -> u64 {
        *self.offset.lock()
    }

    /// Set it, whatever the file.
    pub fn set_position(&self, position: u64) {
        *self.offset.lock() = position.min(MAX_POSITION);
    }

    fn check_readable(&self) -> Result<()> {
        self.flags().reads().then_some(()).ok_or(Errno::BADF)
    }

    fn check_writable(&self) -> Result<()> {
        self.flags().writes().then_some(()).ok_or(Errno::BADF)
    }

    fn check_seekable(&self) -> Result<()> {
        self.file.can_seek().then_some(()).ok_or(Errno::SPIPE)
    }

    fn tell(&self, mask: u32) {
        if let Some(path) = self.path.as_ref().filter(|path| !path.mount.is_internal()) {
            inotify::tell(path, mask);
        }
    }

    fn told(&self, result: Result<usize>, mask: u32) -> Result<usize> {
        if result.is_ok_and(|count| count > 0) {
            self.tell(mask);
        }
        result
    }

    /// read(2), at the file's offset. EAGAIN also for blocking files: the caller waits.
    pub fn read(&self, context: &Context, out: &mut [u8]) -> Result<usize> {
        self.check_readable()?;
        self.told(self.read_on(context, out), IN_ACCESS)
    }

    fn read_on(&self, context: &Context, out: &mut [u8]) -> Result<usize> {
        if !self.file.can_seek() {
            return self.file.read(context, 0, out);
        }
        let mut offset = self.offset.lock();
        let count = self.file.read(context, *offset, out)?;
        *offset = offset.saturating_add(count as u64).min(MAX_POSITION);
        Ok(count)
    }

    /// write(2), at the file's offset or with O_APPEND at the end.
    pub fn write(&self, context: &Context, data: &[u8]) -> Result<usize> {
        self.check_writable()?;
        self.told(self.write_on(context, data), IN_MODIFY)
    }

    fn write_on(&self, context: &Context, data: &[u8]) -> Result<usize> {
        if !self.file.can_seek() {
            return self.file.write(context, 0, data);
        }
        let mut offset = self.offset.lock();
        if self.flags().has(OpenFlags::APPEND) {
            let (count, end) = self.file.append(context, data)?;
            *offset = end;
            return Ok(count);
        }
        let count = self.file.write(context, *offset, data)?;
        *offset = offset.saturating_add(count as u64).min(MAX_POSITION);
        Ok(count)
    }

    /// pread64(2).
    pub fn pread(&self, context: &Context, offset: u64, out: &mut [u8]) -> Result<usize> {
        self.check_seekable()?;
        self.check_readable()?;
        check_position(offset)?;
        self.told(self.file.read(context, offset, out), IN_ACCESS)
    }

    /// pwrite64(2); with O_APPEND at the end, as Linux does (BUGS there).
    pub fn pwrite(&self, context: &Context, offset: u64, data: &[u8]) -> Result<usize> {
        self.check_seekable()?;
        self.check_writable()?;
        check_position(offset)?;
        if self.flags().has(OpenFlags::APPEND) {
            return self.told(self.file.append(context, data).map(|(count, _)| count), IN_MODIFY);
        }
        self.told(self.file.write(context, offset, data), IN_MODIFY)
    }

    /// lseek(2). ESPIPE; EINVAL for a result below zero; ENXIO.
    pub fn seek(&self, to: SeekFrom) -> Result<u64> {
        self.check_seekable()?;
        if self.file.stays_at_start() {
            return Ok(0);
        }
        let mut offset = self.offset.lock();
        let position = match to {
            SeekFrom::Start(position) => position,
            SeekFrom::Current(distance) => added(*offset, distance)?,
            SeekFrom::End(distance) => added(self.file.size_bytes()?, distance)?,
            SeekFrom::Data(start) => self.file.seek_hole(start, false)?,
            SeekFrom::Hole(start) => self.file.seek_hole(start, true)?,
        };
        check_position(position)?;
        *offset = position;
        Ok(position)
    }

    /// Entries of a directory from the offset on; `sink` returns false for one that has no room any more, which comes again.
    pub fn read_dir(&self, sink: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Result<()> {
        let mut offset = self.offset.lock();
        let mut next = *offset;
        self.file.read_dir(next, &mut |entry| {
            let taken = sink(entry);
            if taken {
                next = entry.next_cookie;
            }
            taken
        })?;
        *offset = next;
        drop(offset);
        self.tell(IN_ACCESS);
        Ok(())
    }

    /// ftruncate(2).
    pub fn truncate(&self, context: &Context, size_bytes: u64) -> Result<()> {
        if !self.flags().writes() {
            return Err(Errno::INVAL);
        }
        self.file.truncate(context, size_bytes)?;
        self.tell(IN_MODIFY);
        Ok(())
    }

    pub fn poll(&self, interest: Events) -> Events {
        self.file.poll(interest)
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            if !self.flags().has(OpenFlags::PATH) && !path.mount.is_internal() {
                inotify::tell(path, if self.flags().writes() { IN_CLOSE_WRITE } else { IN_CLOSE_NOWRITE });
            }
            path.inode().attachment().locks.release_file(self.id);
        }
    }
}

/// Files end here (loff_t).
const MAX_POSITION: u64 = i64::MAX as u64;

fn check_position(position: u64) -> Result<()> {
    (position <= MAX_POSITION).then_some(()).ok_or(Errno::INVAL)
}

fn added(base: u64, distance: i64) -> Result<u64> {
    let base = i64::try_from(base).map_err(|_| Errno::OVERFLOW)?;
    let sum = base.checked_add(distance).ok_or(Errno::OVERFLOW)?;
    u64::try_from(sum).map_err(|_| Errno::INVAL)
}
