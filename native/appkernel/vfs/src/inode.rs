//! What a file system gives: inodes, and itself.

use std::any::Any;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};

use drupe_appkernel_abi::{Errno, Result};

use crate::dentry::Path;
use crate::file::{Context, File, Metadata};
use crate::kind::{FileType, SetAttributes, StatFs};
use crate::locks::FileLocks;
use crate::open::OpenFlags;
use crate::sync::Mutex;

pub type InodeRef = Arc<dyn Inode>;

/// A node to be made: by mkdir(2), mknod(2), symlink(2), or open(2) with O_CREAT.
#[derive(Clone, Copy, Debug)]
pub struct NewNode<'a> {
    pub kind: FileType,
    /// After the umask.
    pub permissions: u32,
    pub uid: u32,
    pub gid: u32,
    /// For device nodes.
    pub device_number: u64,
    /// For symbolic links.
    pub target: &'a [u8],
}

impl NewNode<'_> {
    /// A node that is neither device nor symbolic link.
    pub const fn new(kind: FileType, permissions: u32, uid: u32, gid: u32) -> Self {
        Self { kind, permissions, uid, gid, device_number: 0, target: &[] }
    }
}

/// An entry of a directory, as `Inode::read_dir` gives it; without "." and "..".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirEntry<'a> {
    pub name: &'a [u8],
    pub inode: u64,
    pub kind: FileType,
    /// Where to go on after this entry; never 0.
    pub next_cookie: u64,
}

/// How a rename treats the target (renameat2(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameMode {
    Replace,
    NoReplace,
    Exchange,
}

/// How setxattr(2) treats what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XattrMode {
    Any,
    Create,
    Replace,
}

/// Where a link leads.
pub enum LinkTarget {
    /// A path to walk from the link's own directory.
    Text(Vec<u8>),
    /// Straight there, as the links of /proc/PID/fd do.
    Jump(Path),
}

/// How a regular file is used (execve(2), ETXTBSY).
#[derive(Default)]
pub(crate) struct Uses {
    writers: u32,
    running: u32,
}

/// As long as it is there a file may be written to, or not.
pub struct Use {
    path: Path,
    writes: bool,
}

impl Use {
    /// Somebody may write to the file. ETXTBSY while it runs.
    pub fn writing(path: &Path) -> Result<Use> {
        let mut uses = path.inode().attachment().uses.lock();
        if uses.running > 0 {
            return Err(Errno::TXTBSY);
        }
        uses.writers += 1;
        Ok(Use { path: path.clone(), writes: true })
    }

    /// A program runs from the file. ETXTBSY while somebody may write to it.
    pub fn running(path: &Path) -> Result<Use> {
        let mut uses = path.inode().attachment().uses.lock();
        if uses.writers > 0 {
            return Err(Errno::TXTBSY);
        }
        uses.running += 1;
        Ok(Use { path: path.clone(), writes: false })
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        let mut uses = self.path.inode().attachment().uses.lock();
        let count = if self.writes { &mut uses.writers } else { &mut uses.running };
        *count = count.saturating_sub(1);
    }
}

/// What the kernel keeps with an inode, whatever its file system: locks, the pipe of a FIFO, a bound socket, watches.
#[derive(Default)]
pub struct Attachment {
    pub locks: FileLocks,
    /// Set once, by whoever opens the FIFO or binds the socket first.
    pub object: Mutex<Option<Arc<dyn Any + Send + Sync>>>,
    /// Open files that may write, and programs that run from it: there are never both (ETXTBSY).
    pub(crate) uses: Mutex<Uses>,
    /// Of inotify; its own type, kept here.
    pub watches: OnceLock<Arc<dyn Any + Send + Sync>>,
    /// How long what is written will live, as a program has said (F_SET_RW_HINT).
    pub life_hint: AtomicU64,
}

/// Extended attributes of an inode (xattr(7)).
pub trait Xattrs {
    /// The value; ENODATA when there is none.
    fn get(&self, name: &[u8]) -> Result<Vec<u8>>;

    /// All names.
    fn list(&self) -> Result<Vec<Vec<u8>>>;

    fn set(&self, context: &Context, name: &[u8], value: &[u8], mode: XattrMode) -> Result<()>;

    fn remove(&self, context: &Context, name: &[u8]) -> Result<()>;
}

/// A file, directory, link or device of a file system. Permissions are checked by the path walk, not here. A name is one
/// component: not empty, no slash, not "." or "..", at most 255 bytes.
///
/// One node is one object as long as somebody holds it: two lookups give the same `Arc`.
pub trait Inode: Send + Sync {
    fn as_any(&self) -> &dyn Any;

    fn metadata(&self) -> Result<Metadata>;

    /// The kind, which never changes.
    fn kind(&self) -> FileType;

    fn attachment(&self) -> &Attachment;

    /// The entry `name` of this directory. ENOENT; ENOTDIR.
    fn lookup(&self, _name: &[u8]) -> Result<InodeRef> {
        Err(Errno::NOTDIR)
    }

    /// Whether entries come and go by themselves (processes, a host's directory), so that each walk must look again.
    fn is_volatile(&self) -> bool {
        false
    }

    /// Call `sink` with the entries after `cookie` (0: from the start) until it returns false.
    fn read_dir(&self, _cookie: u64, _sink: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Result<()> {
        Err(Errno::NOTDIR)
    }

    /// Make an entry. EEXIST; ENOSPC.
    fn create(&self, _context: &Context, _name: &[u8], _node: &NewNode<'_>) -> Result<InodeRef> {
        Err(Errno::PERM)
    }

    /// A nameless regular file (O_TMPFILE), to be linked later or never.
    fn create_unnamed(&self, _context: &Context, _node: &NewNode<'_>) -> Result<InodeRef> {
        Err(Errno::NOTSUP)
    }

    /// A further name for `target`, a node of this file system.
    fn link(&self, _context: &Context, _name: &[u8], _target: &InodeRef) -> Result<()> {
        Err(Errno::PERM)
    }

    /// Remove the name of something other than a directory.
    fn unlink(&self, _context: &Context, _name: &[u8]) -> Result<()> {
        Err(Errno::PERM)
    }

    /// Remove an empty directory. ENOTEMPTY.
    fn rmdir(&self, _context: &Context, _name: &[u8]) -> Result<()> {
        Err(Errno::PERM)
    }

    /// Move the entry `old` to `new` of `directory`, a directory of this file system. The caller has checked kinds and
    /// loops; ENOTEMPTY and ENOENT are told here.
    fn rename(
        &self,
        _context: &Context,
        _old: &[u8],
        _directory: &InodeRef,
        _new: &[u8],
        _mode: RenameMode,
    ) -> Result<()> {
        Err(Errno::PERM)
    }

    /// Whether the caller may know where this symbolic link leads. EACCES.
    fn check_follow(&self, _context: &Context) -> Result<()> {
        Ok(())
    }

    /// Where this symbolic link leads.
    fn read_link(&self) -> Result<LinkTarget> {
        Err(Errno::INVAL)
    }

    fn set_attributes(&self, _context: &Context, _changes: &SetAttributes) -> Result<()> {
        Err(Errno::PERM)
    }

    /// EOPNOTSUPP where there are none.
    fn xattrs(&self) -> Result<&dyn Xattrs> {
        Err(Errno::NOTSUP)
    }

    /// Open a regular file, or a device that this file system itself serves. ENXIO leaves FIFOs, sockets and other devices
    /// to the caller. Directories are opened by the caller too.
    fn open(&self, _context: &Context, _flags: OpenFlags) -> Result<Arc<dyn File>> {
        Err(Errno::NXIO)
    }
}

/// A file system that can be mounted.
pub trait FileSystem: Send + Sync {
    /// As in /proc/filesystems.
    fn name(&self) -> &str;

    fn root(&self) -> InodeRef;

    fn statfs(&self) -> Result<StatFs>;

    /// Whether nothing can ever be written, whatever the mount's flags.
    fn is_read_only(&self) -> bool {
        false
    }

    /// Itself, for whoever has to know what it is.
    fn as_any(&self) -> Option<&dyn Any> {
        None
    }

    /// Options for /proc/mounts beyond the mount's own flags, starting with a comma; may be empty.
    fn options(&self) -> String {
        String::new()
    }
}
