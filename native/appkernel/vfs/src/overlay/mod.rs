//! A writable layer over read-only ones (Linux, Documentation/filesystems/overlayfs.rst): what is changed is copied up first,
//! what is removed is hidden by a whiteout (a character device 0:0), a new directory in the place of an old one is opaque.
//!
//! A directory that a lower layer has cannot be renamed (EXDEV), as on Linux without redirect_dir; hard links of lower
//! files stay together, as there with index=on.

mod change;
mod copy_up;
mod file;
mod merge;
mod node;

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use drupe_appkernel_abi::{Errno, Result};

use crate::file::Context;
use crate::inode::{FileSystem, Inode, InodeRef, NewNode, XattrMode};
use crate::kind::{FileType, StatFs};
use crate::mount::anonymous_device;
use crate::sync::Mutex;

pub use node::OverlayNode;

const MAGIC: u64 = 0x794c_7630;
const OPAQUE: &[u8] = b"trusted.overlay.opaque";
const PRIVATE_XATTRS: &[u8] = b"trusted.overlay.";
/// Layers are told apart by the low bits of inode numbers and cookies.
const LAYER_BITS: u32 = 6;
const MAX_LOWER: usize = 62;

/// What all nodes of one overlay share.
struct Shared {
    device: u64,
    /// One whiteout; others are further names of it, so that removing needs no room.
    whiteout: InodeRef,
    /// Held while names change and files are copied up.
    changes: Mutex<()>,
    nodes: Mutex<HashMap<u64, Weak<OverlayNode>>>,
    /// Number of an upper node -> the number that it had before it was copied up, which it keeps.
    origins: Mutex<HashMap<u64, u64>>,
    /// Number of a lower file with several names -> its copy, which all of these names lead to.
    copies: Mutex<HashMap<u64, InodeRef>>,
}

/// Place of a layer: 0 is the upper one, the lower ones follow from 1 on.
fn number_in(layer: usize, inode: u64) -> u64 {
    inode << LAYER_BITS | layer as u64
}

fn is_whiteout(inode: &InodeRef) -> bool {
    inode.kind() == FileType::CharDevice && inode.metadata().is_ok_and(|metadata| metadata.rdev == 0)
}

fn is_opaque(inode: &InodeRef) -> bool {
    inode.xattrs().and_then(|xattrs| xattrs.get(OPAQUE)).is_ok_and(|value| value == b"y")
}

fn set_opaque(context: &Context, inode: &InodeRef) -> Result<()> {
    inode.xattrs()?.set(context, OPAQUE, b"y", XattrMode::Any)
}

/// What `directory` has under this name, whiteouts too; None: nothing.
fn entry(directory: &InodeRef, name: &[u8]) -> Result<Option<InodeRef>> {
    match directory.lookup(name) {
        Ok(inode) => Ok(Some(inode)),
        Err(Errno::NOENT | Errno::NAMETOOLONG) => Ok(None),
        Err(error) => Err(error),
    }
}

/// An overlay.
pub struct Overlay {
    upper: Arc<dyn FileSystem>,
    root: Arc<OverlayNode>,
}

impl Overlay {
    /// `upper` is written to and must have nameless files, device nodes and trusted xattrs, as a tmpfs has; `lowers` are
    /// directories, the topmost first, and never change. EINVAL for too many, or for what is no directory.
    pub fn new(context: &Context, upper: Arc<dyn FileSystem>, lowers: Vec<InodeRef>) -> Result<Arc<Self>> {
        let all_directories = lowers.iter().all(|lower| lower.kind() == FileType::Directory);
        if lowers.len() > MAX_LOWER || !all_directories {
            return Err(Errno::INVAL);
        }
        let whiteout = upper.root().create_unnamed(context, &NewNode::new(FileType::CharDevice, 0, 0, 0))?;
        let shared = Arc::new(Shared {
            device: anonymous_device(),
            whiteout,
            changes: Mutex::default(),
            nodes: Mutex::default(),
            origins: Mutex::default(),
            copies: Mutex::default(),
        });
        let lowers = lowers.into_iter().enumerate().map(|(index, inode)| (index + 1, inode)).collect();
        let root = OverlayNode::get(&shared, Some(upper.root()), lowers, None)?;
        Ok(Arc::new(Self { upper, root }))
    }
}

impl Overlay {
    /// The layer that is written to.
    pub fn upper(&self) -> &Arc<dyn FileSystem> {
        &self.upper
    }
}

impl FileSystem for Overlay {
    fn name(&self) -> &str {
        "overlay"
    }

    fn root(&self) -> InodeRef {
        self.root.clone() as Arc<dyn Inode>
    }

    fn as_any(&self) -> Option<&dyn std::any::Any> {
        Some(self)
    }

    fn statfs(&self) -> Result<StatFs> {
        Ok(StatFs { magic: MAGIC, ..self.upper.statfs()? })
    }
}

#[cfg(test)]
mod tests;
