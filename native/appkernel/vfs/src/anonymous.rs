//! Files without a name: pipes, sockets, event objects. Each has an inode in a file system that nobody can mount, so that
//! stat(2) and the links of /proc/PID/fd work for them as for every other file.

use std::any::Any;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use drupe_appkernel_abi::{Errno, Result};

use crate::dentry::Path;
use crate::file::{Context, File, Metadata};
use crate::inode::{Attachment, FileSystem, Inode, InodeRef};
use crate::kind::{FileType, SetAttributes, StatFs};
use crate::mount::{anonymous_device, Mount};
use crate::open::{OpenFile, OpenFlags};
use crate::sync::Mutex;

const MAGIC: u64 = 0x0904_1934; // ANON_INODE_FS_MAGIC

/// The inode of a file without a name.
pub struct AnonymousInode {
    kind: FileType,
    metadata: Mutex<Metadata>,
    attachment: Attachment,
    reopens: OnceLock<Weak<dyn File>>,
}

impl AnonymousInode {
    /// An inode of the caller's, with a number of its own.
    pub fn new(context: &Context, kind: FileType, permissions: u32) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(2);
        let metadata = Metadata {
            device: place().inode().metadata().map_or(0, |root| root.device),
            inode: NEXT.fetch_add(1, Ordering::Relaxed),
            uid: context.credentials.uid,
            gid: context.credentials.gid,
            accessed: context.now,
            modified: context.now,
            changed: context.now,
            ..Metadata::new(kind, permissions)
        };
        Self::with(kind, metadata)
    }

    fn with(kind: FileType, metadata: Metadata) -> Arc<Self> {
        let (metadata, attachment) = (Mutex::new(metadata), Attachment::default());
        Arc::new(Self { kind, metadata, attachment, reopens: OnceLock::new() })
    }

    /// Let who opens it by a link of /proc/PID/fd have `file` again; without this that is ENXIO.
    pub fn allow_reopen(&self, file: &Arc<dyn File>) {
        let _ = self.reopens.set(Arc::downgrade(file)); // set before: stays
    }

    pub fn number(&self) -> u64 {
        self.metadata.lock().inode
    }

    /// Where it is: a path that no walk leads to, with this text in the links of /proc/PID/fd.
    pub fn path(self: &Arc<Self>, text: &str) -> Path {
        let dentry = place().dentry.unnamed(Arc::clone(self) as InodeRef, text.as_bytes());
        Path::new(Arc::clone(&place().mount), dentry)
    }
}

/// Open `file` as an object of the kernel's own, as eventfd(2) does: `label` as in "anon_inode:[eventfd]".
pub fn open(context: &Context, file: Arc<dyn File>, label: &str, flags: OpenFlags) -> Arc<OpenFile> {
    let inode = AnonymousInode::new(context, FileType::Regular, 0o600);
    OpenFile::new(file, Some(inode.path(&format!("anon_inode:[{label}]"))), flags)
}

/// The top of the file system of nameless files.
fn place() -> &'static Path {
    static PLACE: OnceLock<Path> = OnceLock::new();
    PLACE.get_or_init(|| {
        let metadata = Metadata { device: anonymous_device(), inode: 1, ..Metadata::new(FileType::Directory, 0o555) };
        let root = AnonymousInode::with(FileType::Directory, metadata);
        Mount::internal(Arc::new(AnonymousFiles { root })).root_path()
    })
}

impl Inode for AnonymousInode {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn metadata(&self) -> Result<Metadata> {
        Ok(self.metadata.lock().clone())
    }

    fn kind(&self) -> FileType {
        self.kind
    }

    fn attachment(&self) -> &Attachment {
        &self.attachment
    }

    fn set_attributes(&self, context: &Context, changes: &SetAttributes) -> Result<()> {
        let mut metadata = self.metadata.lock();
        let permissions = changes.permissions.unwrap_or(metadata.mode & 0o7777);
        metadata.mode = self.kind.mode_bits() | permissions;
        metadata.uid = changes.uid.unwrap_or(metadata.uid);
        metadata.gid = changes.gid.unwrap_or(metadata.gid);
        metadata.accessed = changes.accessed.unwrap_or(metadata.accessed);
        metadata.modified = changes.modified.unwrap_or(metadata.modified);
        metadata.changed = context.now;
        Ok(())
    }

    fn open(&self, _: &Context, _: OpenFlags) -> Result<Arc<dyn File>> {
        self.reopens.get().and_then(Weak::upgrade).ok_or(Errno::NXIO)
    }
}

struct AnonymousFiles {
    root: Arc<AnonymousInode>,
}

impl FileSystem for AnonymousFiles {
    fn name(&self) -> &str {
        "anon_inodefs"
    }

    fn root(&self) -> InodeRef {
        self.root.clone()
    }

    fn statfs(&self) -> Result<StatFs> {
        Ok(StatFs { magic: MAGIC, block_size_bytes: 4096, name_max_bytes: 255, ..StatFs::default() })
    }
}
