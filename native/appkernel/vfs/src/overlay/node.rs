//! Nodes of an overlay, and how they are found.

use std::any::Any;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use drupe_appkernel_abi::{Errno, Result};

use super::file::OverlayFile;
use super::{entry, is_opaque, is_whiteout, number_in, Shared, PRIVATE_XATTRS};
use crate::file::{Context, File, Metadata};
use crate::inode::{Attachment, DirEntry, Inode, InodeRef, LinkTarget, NewNode, RenameMode, XattrMode, Xattrs};
use crate::kind::{FileType, SetAttributes};
use crate::open::OpenFlags;
use crate::sync::Mutex;

/// A lower inode with the place of its layer.
pub(super) type Lower = (usize, InodeRef);
/// The directory that a node was found in, and the name.
pub(super) type Place = (Arc<OverlayNode>, Vec<u8>);

/// A file or directory as the layers together show it.
pub struct OverlayNode {
    pub(super) own: Weak<OverlayNode>,
    pub(super) shared: Arc<Shared>,
    pub(super) number: u64,
    kind: FileType,
    pub(super) upper: Mutex<Option<InodeRef>>,
    /// Of a directory all that are merged, of a file the one that is seen.
    pub(super) lowers: Vec<Lower>,
    pub(super) place: Mutex<Option<Place>>,
    pub(super) removed: AtomicBool,
    attachment: Attachment,
}

impl OverlayNode {
    /// The node of these layers: the one in use, or a new one.
    pub(super) fn get(
        shared: &Arc<Shared>,
        upper: Option<InodeRef>,
        lowers: Vec<Lower>,
        place: Option<Place>,
    ) -> Result<Arc<Self>> {
        let number = number_of(shared, upper.as_ref(), &lowers)?;
        let mut nodes = shared.nodes.lock();
        if let Some(node) = nodes.get(&number).and_then(Weak::upgrade) {
            *node.place.lock() = place;
            node.removed.store(false, Ordering::Relaxed);
            return Ok(node);
        }
        let top = upper.as_ref().or(lowers.first().map(|(_, inode)| inode)).ok_or(Errno::NOENT)?;
        let kind = top.kind();
        let node = Arc::new_cyclic(|own| Self {
            own: own.clone(),
            shared: Arc::clone(shared),
            number,
            kind,
            upper: Mutex::new(upper),
            lowers,
            place: Mutex::new(place),
            removed: AtomicBool::new(false),
            attachment: Attachment::default(),
        });
        remember(&mut nodes, number, &node);
        Ok(node)
    }

    pub(super) fn own(&self) -> Result<Arc<Self>> {
        self.own.upgrade().ok_or(Errno::NOENT)
    }

    pub(super) fn upper(&self) -> Option<InodeRef> {
        self.upper.lock().clone()
    }

    /// The inode that holds the attributes and the content now.
    pub(super) fn real(&self) -> Result<InodeRef> {
        self.upper().or_else(|| self.lowers.first().map(|(_, inode)| Arc::clone(inode))).ok_or(Errno::NOENT)
    }

    /// The child as the layers show it.
    pub(super) fn child(&self, name: &[u8]) -> Result<Arc<Self>> {
        if self.kind != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        let upper = self.upper().map_or(Ok(None), |upper| entry(&upper, name))?;
        let place = Some((self.own()?, name.to_vec()));
        match upper {
            Some(upper) if is_whiteout(&upper) => Err(Errno::NOENT),
            Some(upper) if upper.kind() != FileType::Directory || is_opaque(&upper) => {
                Self::get(&self.shared, Some(upper), Vec::new(), place)
            }
            Some(upper) => {
                let lowers = self.lower_entries(name)?;
                let merged = if is_directory(&lowers) { lowers } else { Vec::new() };
                Self::get(&self.shared, Some(upper), merged, place)
            }
            None => {
                let lowers = self.lower_entries(name)?;
                let copy = self.shared.copy_of(&lowers);
                Self::get(&self.shared, copy, lowers, place)
            }
        }
    }

    /// What the lower layers show under this name: one file, or directories that are merged; nothing.
    pub(super) fn lower_entries(&self, name: &[u8]) -> Result<Vec<Lower>> {
        let mut found: Vec<Lower> = Vec::new();
        for (layer, lower) in &self.lowers {
            let Some(inode) = entry(lower, name)? else { continue };
            let directory = inode.kind() == FileType::Directory;
            if is_whiteout(&inode) || (!directory && !found.is_empty()) {
                break;
            }
            let last = !directory || is_opaque(&inode);
            found.push((*layer, inode));
            if last {
                break;
            }
        }
        Ok(found)
    }
}

impl Shared {
    fn copy_of(&self, lowers: &[Lower]) -> Option<InodeRef> {
        let (layer, inode) = lowers.first()?;
        let copies = self.copies.lock();
        if copies.is_empty() {
            return None;
        }
        copies.get(&number_in(*layer, inode.metadata().ok()?.inode)).cloned()
    }
}

fn is_directory(lowers: &[Lower]) -> bool {
    lowers.first().is_some_and(|(_, inode)| inode.kind() == FileType::Directory)
}

/// The number that stays: a lower node's, else the upper one's.
fn number_of(shared: &Shared, upper: Option<&InodeRef>, lowers: &[Lower]) -> Result<u64> {
    if let Some((layer, inode)) = lowers.first() {
        return Ok(number_in(*layer, inode.metadata()?.inode));
    }
    let number = number_in(0, upper.ok_or(Errno::NOENT)?.metadata()?.inode);
    Ok(shared.origins.lock().get(&number).copied().unwrap_or(number))
}

fn remember(nodes: &mut HashMap<u64, Weak<OverlayNode>>, number: u64, node: &Arc<OverlayNode>) {
    if nodes.len() >= 64 && nodes.len().is_power_of_two() {
        nodes.retain(|_, node| node.strong_count() > 0);
    }
    nodes.insert(number, Arc::downgrade(node));
}

impl Inode for OverlayNode {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn metadata(&self) -> Result<Metadata> {
        let real = self.real()?.metadata()?;
        let merged = self.kind == FileType::Directory && !self.lowers.is_empty();
        let links = if merged { 1 } else { real.links };
        Ok(Metadata { device: self.shared.device, inode: self.number, links, ..real })
    }

    fn kind(&self) -> FileType {
        self.kind
    }

    fn attachment(&self) -> &Attachment {
        &self.attachment
    }

    fn lookup(&self, name: &[u8]) -> Result<InodeRef> {
        Ok(self.child(name)?)
    }

    fn is_volatile(&self) -> bool {
        self.lowers.iter().any(|(_, lower)| lower.is_volatile())
    }

    fn read_dir(&self, cookie: u64, sink: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Result<()> {
        self.merged_entries(cookie, sink)
    }

    fn create(&self, context: &Context, name: &[u8], node: &NewNode<'_>) -> Result<InodeRef> {
        let _changes = self.shared.changes.lock();
        Ok(self.create_child(context, name, node)?)
    }

    fn create_unnamed(&self, context: &Context, node: &NewNode<'_>) -> Result<InodeRef> {
        let _changes = self.shared.changes.lock();
        let upper = self.copy_up(context, true)?.create_unnamed(context, node)?;
        Ok(Self::get(&self.shared, Some(upper), Vec::new(), None)?)
    }

    fn link(&self, context: &Context, name: &[u8], target: &InodeRef) -> Result<()> {
        let _changes = self.shared.changes.lock();
        self.link_child(context, name, of(target)?)
    }

    fn unlink(&self, context: &Context, name: &[u8]) -> Result<()> {
        let _changes = self.shared.changes.lock();
        self.remove_child(context, name, false)
    }

    fn rmdir(&self, context: &Context, name: &[u8]) -> Result<()> {
        let _changes = self.shared.changes.lock();
        self.remove_child(context, name, true)
    }

    fn rename(&self, context: &Context, old: &[u8], to: &InodeRef, new: &[u8], mode: RenameMode) -> Result<()> {
        let _changes = self.shared.changes.lock();
        self.rename_child(context, old, of(to)?, new, mode)
    }

    fn read_link(&self) -> Result<LinkTarget> {
        self.real()?.read_link()
    }

    fn set_attributes(&self, context: &Context, changes: &SetAttributes) -> Result<()> {
        let _changes = self.shared.changes.lock();
        self.copy_up(context, changes.size_bytes != Some(0))?.set_attributes(context, changes)
    }

    fn xattrs(&self) -> Result<&dyn Xattrs> {
        Ok(self)
    }

    fn open(&self, context: &Context, flags: OpenFlags) -> Result<Arc<dyn File>> {
        if self.kind != FileType::Regular {
            return Err(Errno::NXIO);
        }
        if flags.writes() {
            let _changes = self.shared.changes.lock();
            return self.copy_up(context, !flags.has(OpenFlags::TRUNC))?.open(context, flags);
        }
        match self.upper() {
            Some(upper) => upper.open(context, flags),
            None => OverlayFile::open(context, self.own()?, flags),
        }
    }
}

/// One directory after the other: a deep path must not be a deep stack.
impl Drop for OverlayNode {
    fn drop(&mut self) {
        let mut place = self.place.get_mut().take();
        while let Some(mut last) = place.and_then(|(parent, _)| Arc::into_inner(parent)) {
            place = last.place.get_mut().take();
        }
    }
}

pub(super) fn of(inode: &InodeRef) -> Result<&OverlayNode> {
    inode.as_any().downcast_ref().ok_or(Errno::XDEV)
}

impl Xattrs for OverlayNode {
    fn get(&self, name: &[u8]) -> Result<Vec<u8>> {
        if name.starts_with(PRIVATE_XATTRS) {
            return Err(Errno::NODATA);
        }
        self.real()?.xattrs()?.get(name)
    }

    fn list(&self) -> Result<Vec<Vec<u8>>> {
        let names = self.real()?.xattrs()?.list()?;
        Ok(names.into_iter().filter(|name| !name.starts_with(PRIVATE_XATTRS)).collect())
    }

    fn set(&self, context: &Context, name: &[u8], value: &[u8], mode: XattrMode) -> Result<()> {
        if name.starts_with(PRIVATE_XATTRS) {
            return Err(Errno::NOTSUP);
        }
        let _changes = self.shared.changes.lock();
        self.copy_up(context, true)?.xattrs()?.set(context, name, value, mode)
    }

    fn remove(&self, context: &Context, name: &[u8]) -> Result<()> {
        self.get(name)?;
        let _changes = self.shared.changes.lock();
        self.copy_up(context, true)?.xattrs()?.remove(context, name)
    }
}
