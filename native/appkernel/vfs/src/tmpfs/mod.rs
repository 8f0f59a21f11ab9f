//! A file system in memory, with limits (tmpfs(5)); and memfd_create(2), which is a nameless file of one.

mod content;
mod directory;
mod file;
mod node;
mod save;
mod xattrs;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};

use crate::backing::Backings;
use crate::file::Timestamp;
use crate::inode::{FileSystem, InodeRef, NewNode};
use crate::kind::{FileType, StatFs};
use crate::mount::anonymous_device;
use crate::sync::Mutex;

pub use content::PAGE_BYTES;
pub use file::{TmpFile, F_SEAL_FUTURE_WRITE, F_SEAL_GROW, F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_WRITE};
pub use node::Node;
pub use save::{Leaf, SavedNode, SavedTree};

const MAGIC: u64 = 0x0102_1994;

/// How much a tmpfs may hold. 0: no limit of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    pub size_bytes: u64,
    pub inodes: u64,
}

/// What all nodes of one file system share.
pub(crate) struct Shared {
    device: u64,
    limits: Limits,
    pages: AtomicU64,
    inodes: AtomicU64,
    next_inode: AtomicU64,
    backings: Arc<dyn Backings>,
    /// Held while names change, so that a rename sees two directories at one moment.
    names: Mutex<()>,
}

impl Shared {
    /// Count `pages` more. ENOSPC.
    fn charge(&self, pages: u64) -> Result<()> {
        add_up_to(&self.pages, pages, self.limits.size_bytes.div_ceil(PAGE_BYTES as u64))?;
        self.backings.reserve(pages.saturating_mul(PAGE_BYTES as u64)).inspect_err(|_| {
            self.pages.fetch_sub(pages, Ordering::Relaxed);
        })
    }

    fn uncharge(&self, pages: u64) {
        self.pages.fetch_sub(pages, Ordering::Relaxed);
        self.backings.release(pages.saturating_mul(PAGE_BYTES as u64));
    }

    fn new_inode(&self) -> Result<u64> {
        add_up_to(&self.inodes, 1, self.limits.inodes)?;
        Ok(self.next_inode.fetch_add(1, Ordering::Relaxed))
    }
}

fn add_up_to(counter: &AtomicU64, more: u64, limit: u64) -> Result<()> {
    let fits = |now: u64| now.checked_add(more).filter(|&sum| limit == 0 || sum <= limit);
    counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).map_err(|_| Errno::NOSPC)?;
    Ok(())
}

/// A tmpfs.
pub struct Tmpfs {
    shared: Arc<Shared>,
    root: Arc<Node>,
}

impl Tmpfs {
    /// An empty one whose root directory is `root` (kind and target of it are not looked at).
    pub fn new(limits: Limits, backings: Arc<dyn Backings>, root: &NewNode<'_>, now: Timestamp) -> Result<Arc<Self>> {
        let shared = Arc::new(Shared {
            device: anonymous_device(),
            limits,
            pages: AtomicU64::new(0),
            inodes: AtomicU64::new(0),
            next_inode: AtomicU64::new(1),
            backings,
            names: Mutex::default(),
        });
        let root = Node::new(&shared, &NewNode { kind: FileType::Directory, ..*root }, now)?;
        root.set_links(2);
        Ok(Arc::new(Self { shared, root }))
    }

    /// Bytes and inodes in use.
    pub fn usage(&self) -> (u64, u64) {
        let pages = self.shared.pages.load(Ordering::Relaxed);
        (pages * PAGE_BYTES as u64, self.shared.inodes.load(Ordering::Relaxed))
    }

    /// memfd_create(2): a nameless file; `sealable`: MFD_ALLOW_SEALING.
    pub fn memfd(&self, node: &NewNode<'_>, sealable: bool, now: Timestamp) -> Result<Arc<Node>> {
        let node = Node::new(&self.shared, &NewNode { kind: FileType::Regular, ..*node }, now)?;
        node.set_links(0);
        if sealable {
            node.allow_seals();
        }
        Ok(node)
    }
}

impl FileSystem for Tmpfs {
    fn name(&self) -> &str {
        "tmpfs"
    }

    fn root(&self) -> InodeRef {
        self.root.clone()
    }

    fn as_any(&self) -> Option<&dyn std::any::Any> {
        Some(self)
    }

    fn statfs(&self) -> Result<StatFs> {
        let limits = self.shared.limits;
        let blocks = limits.size_bytes.div_ceil(PAGE_BYTES as u64);
        Ok(StatFs {
            magic: MAGIC,
            block_size_bytes: PAGE_BYTES as u64,
            blocks,
            blocks_free: blocks.saturating_sub(self.shared.pages.load(Ordering::Relaxed)),
            files: limits.inodes,
            files_free: limits.inodes.saturating_sub(self.shared.inodes.load(Ordering::Relaxed)),
            name_max_bytes: 255,
        })
    }

    fn options(&self) -> String {
        match self.shared.limits.size_bytes {
            0 => String::new(),
            size => format!(",size={}k", size / 1024),
        }
    }
}

#[cfg(test)]
mod tests;
