//! An open directory, of whatever file system.

use std::any::Any;
use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};

use crate::dentry::Path;
use crate::file::{Context, File, Metadata};
use crate::inode::DirEntry;
use crate::kind::FileType;

const FIRST_COOKIE: u64 = 2;

/// The entries of a directory, "." and ".." first (cookies 1 and 2; the file system's own follow, moved by two).
pub struct DirectoryFile {
    path: Path,
}

impl DirectoryFile {
    pub fn open(path: Path) -> Arc<dyn File> {
        Arc::new(Self { path })
    }

    fn dots(&self, cookie: u64, sink: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Result<bool> {
        let own = self.path.inode();
        let parent = self.path.dentry.parent().map_or_else(|| Arc::clone(own), |parent| Arc::clone(parent.inode()));
        for (at, name, inode) in [(0, &b"."[..], own), (1, b"..", &parent)] {
            if cookie <= at {
                let inode = inode.metadata()?.inode;
                let entry = DirEntry { name, inode, kind: FileType::Directory, next_cookie: at + 1 };
                if !sink(entry) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}

impl File for DirectoryFile {
    fn read(&self, _: &Context, _: u64, _: &mut [u8]) -> Result<usize> {
        Err(Errno::ISDIR)
    }

    fn write(&self, _: &Context, _: u64, _: &[u8]) -> Result<usize> {
        Err(Errno::ISDIR)
    }

    fn can_seek(&self) -> bool {
        true
    }

    fn metadata(&self) -> Result<Metadata> {
        self.path.inode().metadata()
    }

    fn read_dir(&self, cookie: u64, sink: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Result<()> {
        if self.path.dentry.is_removed() {
            return Err(Errno::NOENT);
        }
        if !self.dots(cookie, sink)? {
            return Ok(());
        }
        self.path.inode().read_dir(cookie.saturating_sub(FIRST_COOKIE), &mut |entry| {
            sink(DirEntry { next_cookie: entry.next_cookie + FIRST_COOKIE, ..entry })
        })
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A descriptor opened with O_PATH: it says where, and does nothing.
pub struct PathFile {
    path: Path,
}

impl PathFile {
    pub fn open(path: Path) -> Arc<dyn File> {
        Arc::new(Self { path })
    }
}

impl File for PathFile {
    fn read(&self, _: &Context, _: u64, _: &mut [u8]) -> Result<usize> {
        Err(Errno::BADF)
    }

    fn write(&self, _: &Context, _: u64, _: &[u8]) -> Result<usize> {
        Err(Errno::BADF)
    }

    fn metadata(&self) -> Result<Metadata> {
        self.path.inode().metadata()
    }

    fn read_dir(&self, _: u64, _: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Result<()> {
        Err(Errno::BADF)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
