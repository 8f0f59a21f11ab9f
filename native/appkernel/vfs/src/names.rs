//! Making, removing and moving names.

use std::sync::atomic::Ordering;
use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};

use crate::cred::{CAP_DAC_READ_SEARCH, CAP_MKNOD, MAY_WRITE};
use crate::dentry::Path;
use crate::inode::RenameMode;
use crate::inotify::{self, IN_ATTRIB, IN_CREATE, IN_DELETE, IN_DELETE_SELF};
use crate::kind::FileType;
use crate::open::OpenFlags;
use crate::walk::{Found, How, Last, View};

/// A name of this file is gone: its watchers hear of fewer links, and of its end with the last.
fn tell_lost(target: &Path) {
    let Ok(metadata) = target.inode().metadata() else { return };
    if !metadata.is_directory() {
        inotify::tell_inode(target.inode(), IN_ATTRIB);
    }
    if metadata.links == 0 || metadata.is_directory() {
        inotify::tell_inode(target.inode(), IN_DELETE_SELF);
    }
}

struct Entry {
    directory: Path,
    name: Vec<u8>,
    target: Option<Path>,
    slash: bool,
}

impl Entry {
    fn kind(&self) -> Option<FileType> {
        self.target.as_ref().map(|target| target.inode().kind())
    }

    fn is_directory(&self) -> bool {
        self.kind() == Some(FileType::Directory)
    }
}

impl View<'_> {
    /// mkdirat(2).
    pub fn mkdir(&self, start: &Path, path: &[u8], permissions: u32) -> Result<Path> {
        let found = self.find(start, path, How::NAME)?;
        self.make(&found, FileType::Directory, permissions & 0o1777, 0, &[])
    }

    /// mknodat(2): a regular file, FIFO, socket, or with CAP_MKNOD a device.
    pub fn mknod(&self, start: &Path, path: &[u8], mode: u32, device_number: u64) -> Result<Path> {
        let found = self.find(start, path, How::NAME)?;
        let kind =
            if mode & 0o170_000 == 0 { FileType::Regular } else { FileType::from_mode(mode).ok_or(Errno::INVAL)? };
        match kind {
            FileType::Directory => return Err(Errno::PERM),
            FileType::Symlink => return Err(Errno::INVAL),
            FileType::CharDevice | FileType::BlockDevice if !self.context.credentials.capable(CAP_MKNOD) => {
                return Err(Errno::PERM);
            }
            _ => {}
        }
        self.make(&found, kind, mode, device_number, &[])
    }

    /// symlinkat(2).
    pub fn symlink(&self, target: &[u8], start: &Path, path: &[u8]) -> Result<Path> {
        if target.is_empty() {
            return Err(Errno::NOENT);
        }
        let found = self.find(start, path, How::NAME)?;
        self.make(&found, FileType::Symlink, 0o777, 0, target)
    }

    /// linkat(2): a further name for `old`. EXDEV, EPERM, EEXIST.
    pub fn link(&self, old: &Path, start: &Path, path: &[u8]) -> Result<()> {
        let found = self.find(start, path, How::NAME)?;
        let name = match (&found.target, &found.last) {
            (None, Last::Name(name)) => name,
            _ => return Err(Errno::EXIST),
        };
        if found.slash {
            return Err(Errno::NOENT); // it would have to be a directory
        }
        let directory = &found.parent;
        if old.mount.id() != directory.mount.id() {
            return Err(Errno::XDEV);
        }
        self.check_changeable(directory)?;
        self.check_linkable(old)?;
        directory.inode().link(self.context, name, old.inode())?;
        inotify::tell_inode(old.inode(), IN_ATTRIB);
        let dentry = directory.dentry.insert(name, Arc::clone(old.inode()));
        inotify::tell(&Path::new(directory.mount.clone(), dentry), IN_CREATE);
        Ok(())
    }

    fn check_linkable(&self, old: &Path) -> Result<()> {
        if old.inode().kind() == FileType::Directory {
            return Err(Errno::PERM);
        }
        self.context.credentials.check_hard_link(&old.inode().metadata()?)
    }

    /// Whether linkat(2) with AT_EMPTY_PATH is permitted: CAP_DAC_READ_SEARCH, else ENOENT.
    pub fn check_empty_path_link(&self) -> Result<()> {
        self.context.credentials.capable(CAP_DAC_READ_SEARCH).then_some(()).ok_or(Errno::NOENT)
    }

    /// unlinkat(2) without AT_REMOVEDIR.
    pub fn unlink(&self, start: &Path, path: &[u8]) -> Result<()> {
        let entry = self.entry(self.find(start, path, How::NAME)?, Errno::ISDIR, Errno::ISDIR)?;
        let target = self.removable(&entry)?;
        match () {
            () if entry.is_directory() => return Err(Errno::ISDIR),
            () if entry.slash => return Err(Errno::NOTDIR),
            () => {}
        }
        entry.directory.inode().unlink(self.context, &entry.name)?;
        self.removed(&entry, target);
        Ok(())
    }

    /// rmdir(2).
    pub fn rmdir(&self, start: &Path, path: &[u8]) -> Result<()> {
        let entry = self.entry(self.find(start, path, How::NAME)?, Errno::INVAL, Errno::NOTEMPTY)?;
        let target = self.removable(&entry)?;
        if !entry.is_directory() {
            return Err(Errno::NOTDIR);
        }
        entry.directory.inode().rmdir(self.context, &entry.name)?;
        self.removed(&entry, target);
        Ok(())
    }

    fn entry(&self, found: Found, dot: Errno, dot_dot: Errno) -> Result<Entry> {
        match found.last {
            Last::Name(name) => Ok(Entry { directory: found.parent, name, target: found.target, slash: found.slash }),
            Last::Dot => Err(dot),
            Last::DotDot => Err(dot_dot),
            Last::Root => Err(Errno::BUSY),
        }
    }

    /// EACCES, EPERM, EBUSY (something is mounted there), ENOENT.
    fn removable<'e>(&self, entry: &'e Entry) -> Result<&'e Path> {
        let target = entry.target.as_ref().ok_or(Errno::NOENT)?;
        self.check_changeable(&entry.directory)?;
        self.check_sticky(&entry.directory, target)?;
        let mounted = !Arc::ptr_eq(&target.mount, &entry.directory.mount);
        if mounted || target.dentry.mounts.load(Ordering::Relaxed) > 0 {
            return Err(Errno::BUSY);
        }
        Ok(target)
    }

    fn check_sticky(&self, directory: &Path, target: &Path) -> Result<()> {
        let (directory, target) = (directory.inode().metadata()?, target.inode().metadata()?);
        self.context.credentials.check_sticky(&directory, &target)
    }

    fn removed(&self, entry: &Entry, target: &Path) {
        entry.directory.dentry.forget(&entry.name);
        tell_lost(target);
        inotify::tell(target, IN_DELETE);
    }

    /// renameat2(2).
    pub fn rename(&self, old: (&Path, &[u8]), new: (&Path, &[u8]), mode: RenameMode) -> Result<()> {
        let source = self.entry(self.find(old.0, old.1, How::NAME)?, Errno::BUSY, Errno::BUSY)?;
        let target = self.entry(self.find(new.0, new.1, How::NAME)?, Errno::BUSY, Errno::BUSY)?;
        if source.directory.mount.id() != target.directory.mount.id() {
            return Err(Errno::XDEV);
        }
        let moved = self.removable(&source)?.clone();
        self.check_rename(&source, &target, &moved, mode)?;
        if target.target.as_ref().is_some_and(|at| Arc::ptr_eq(at.inode(), moved.inode())) {
            return Ok(()); // two names of one file
        }
        let directory = target.directory.inode();
        source.directory.inode().rename(self.context, &source.name, directory, &target.name, mode)?;
        let exchange = mode == RenameMode::Exchange;
        source.directory.dentry.moved(&source.name, &target.directory.dentry, &target.name, exchange);
        let from = (&source.directory, source.name.as_slice());
        inotify::tell_moved(from, (&target.directory, &target.name), &moved);
        target.target.iter().filter(|_| !exchange).for_each(tell_lost);
        Ok(())
    }

    fn check_rename(&self, source: &Entry, target: &Entry, moved: &Path, mode: RenameMode) -> Result<()> {
        if target.target.is_some() {
            self.removable(target)?;
        }
        self.check_changeable(&target.directory)?;
        match (&target.target, mode) {
            (Some(_), RenameMode::NoReplace) => return Err(Errno::EXIST),
            (None, RenameMode::Exchange) => return Err(Errno::NOENT),
            _ => {}
        }
        self.check_no_loop(source, target, moved, mode)?;
        let both_directories = (source.is_directory(), target.is_directory());
        match both_directories {
            _ if mode == RenameMode::Exchange => {}
            (false, true) => return Err(Errno::ISDIR),
            (true, false) if target.target.is_some() => return Err(Errno::NOTDIR),
            (false, false) if source.slash || target.slash => return Err(Errno::NOTDIR),
            _ => {}
        }
        if source.is_directory() && !Arc::ptr_eq(&source.directory.dentry, &target.directory.dentry) {
            self.context.credentials.check(&moved.inode().metadata()?, MAY_WRITE)?;
        }
        Ok(())
    }

    fn check_no_loop(&self, source: &Entry, target: &Entry, moved: &Path, mode: RenameMode) -> Result<()> {
        if target.directory.dentry.is_below(&moved.dentry) {
            return Err(Errno::INVAL);
        }
        let Some(over) = &target.target else { return Ok(()) };
        if source.directory.dentry.is_below(&over.dentry) {
            return Err(if mode == RenameMode::Exchange { Errno::INVAL } else { Errno::NOTEMPTY });
        }
        Ok(())
    }

    /// Open flags that only make sense together. EINVAL.
    pub fn check_flags(flags: OpenFlags) -> Result<()> {
        let directory_and_create = flags.has(OpenFlags::DIRECTORY | OpenFlags::CREAT);
        let tmpfile = flags.has(OpenFlags::TMPFILE) && !flags.has(OpenFlags::PATH);
        (!(directory_and_create || tmpfile && !flags.writes())).then_some(()).ok_or(Errno::INVAL)
    }
}
