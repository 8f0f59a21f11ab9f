//! Copying a node of a lower layer to the upper one, before it is changed.

use std::sync::atomic::Ordering;

use drupe_appkernel_abi::{Errno, Result};

use super::node::OverlayNode;
use super::{number_in, PRIVATE_XATTRS};
use crate::file::{Context, Metadata};
use crate::inode::{Inode, InodeRef, LinkTarget, NewNode, XattrMode};
use crate::kind::{FileType, SetAttributes};
use crate::open::OpenFlags;

const CHUNK_BYTES: usize = 1 << 17;

impl OverlayNode {
    /// The upper inode; made now if there is none, with the directories above it. `content`: whether a file's bytes are
    /// wanted too. ENOSPC: nothing has changed.
    pub(super) fn copy_up(&self, context: &Context, content: bool) -> Result<InodeRef> {
        if let Some(upper) = self.upper() {
            return Ok(upper);
        }
        let (layer, lower) = self.lowers.first().ok_or(Errno::NOENT)?;
        let metadata = lower.metadata()?;
        let upper = self.make_copy(context, lower, &metadata)?;
        if let Err(error) = fill(context, lower, &upper, &metadata, content) {
            self.discard_copy(context);
            return Err(error);
        }
        self.shared.origins.lock().insert(number_in(0, upper.metadata()?.inode), self.number);
        if metadata.links > 1 && self.kind() != FileType::Directory {
            self.shared.copies.lock().insert(number_in(*layer, metadata.inode), upper.clone());
        }
        *self.upper.lock() = Some(upper.clone());
        Ok(upper)
    }

    fn make_copy(&self, context: &Context, lower: &InodeRef, metadata: &Metadata) -> Result<InodeRef> {
        let target = match lower.read_link() {
            Ok(LinkTarget::Text(text)) => text,
            _ => Vec::new(),
        };
        let node = NewNode::new(self.kind(), metadata.mode & 0o7777, metadata.uid, metadata.gid);
        let node = NewNode { device_number: metadata.rdev, target: &target, ..node };
        let (parent, name) = self.place.lock().clone().ok_or(Errno::NOENT)?;
        let directory = parent.copy_up(context, true)?;
        if self.removed.load(Ordering::Relaxed) {
            return directory.create_unnamed(context, &node);
        }
        let before = directory.metadata()?;
        let made = directory.create(context, &name, &node)?;
        set_times(context, &directory, &before)?; // nothing that the directory's time should tell of
        Ok(made)
    }

    fn discard_copy(&self, context: &Context) {
        let Some((parent, name)) = self.place.lock().clone() else { return };
        let Some(directory) = parent.upper().filter(|_| !self.removed.load(Ordering::Relaxed)) else { return };
        let remove = if self.kind() == FileType::Directory { Inode::rmdir } else { Inode::unlink };
        let _ = remove(directory.as_ref(), context, &name); // the error that led here is the one to tell
    }
}

fn fill(context: &Context, lower: &InodeRef, upper: &InodeRef, metadata: &Metadata, content: bool) -> Result<()> {
    if content && metadata.kind() == FileType::Regular {
        copy_content(context, lower, upper)?;
    }
    copy_xattrs(context, lower, upper)?;
    let permissions = Some(metadata.mode & 0o7777); // writing may have taken set-id bits away
    let changes = SetAttributes { permissions, ..SetAttributes::default() };
    if metadata.kind() != FileType::Symlink {
        upper.set_attributes(context, &changes)?;
    }
    set_times(context, upper, metadata)
}

fn set_times(context: &Context, inode: &InodeRef, from: &Metadata) -> Result<()> {
    let (accessed, modified) = (Some(from.accessed), Some(from.modified));
    inode.set_attributes(context, &SetAttributes { accessed, modified, ..SetAttributes::default() })
}

fn copy_content(context: &Context, lower: &InodeRef, upper: &InodeRef) -> Result<()> {
    let from = lower.open(context, OpenFlags::default())?;
    let to = upper.open(context, OpenFlags(OpenFlags::WRONLY))?;
    let (mut chunk, mut offset) = (vec![0; CHUNK_BYTES], 0);
    loop {
        let count = from.read(context, offset, &mut chunk)?;
        if count == 0 {
            return Ok(());
        }
        let mut done = 0;
        while done < count {
            done += to.write(context, offset + done as u64, &chunk[done..count])?;
        }
        offset += count as u64;
    }
}

fn copy_xattrs(context: &Context, lower: &InodeRef, upper: &InodeRef) -> Result<()> {
    let Ok(from) = lower.xattrs() else { return Ok(()) };
    for name in from.list()?.iter().filter(|name| !name.starts_with(PRIVATE_XATTRS)) {
        upper.xattrs()?.set(context, name, &from.get(name)?, XattrMode::Any)?;
    }
    Ok(())
}
