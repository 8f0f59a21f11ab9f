//! Nodes of a tmpfs.

use std::any::Any;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};

use drupe_appkernel_abi::{Errno, Result};

use super::content::{Content, PAGE_BYTES};
use super::directory::Entries;
use super::file::{TmpFile, F_SEAL_GROW, F_SEAL_SEAL, F_SEAL_SHRINK};
use super::xattrs::Attached;
use super::Shared;
use crate::file::{Context, File, Metadata, Timestamp};
use crate::inode::{Attachment, DirEntry, Inode, InodeRef, LinkTarget, NewNode, RenameMode, Xattrs};
use crate::kind::{FileType, SetAttributes};
use crate::open::OpenFlags;
use crate::sync::Mutex;

const READ_AHEAD: usize = 64;

pub(super) struct Attributes {
    pub(super) permissions: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) links: u32,
    pub(super) accessed: Timestamp,
    pub(super) modified: Timestamp,
    pub(super) changed: Timestamp,
}

pub(super) enum Body {
    Directory(Mutex<Entries>),
    Regular(Mutex<Content>),
    Symlink(Vec<u8>),
    Other,
}

/// A file, directory, link, or device.
pub struct Node {
    pub(super) own: Weak<Node>,
    pub(super) shared: Arc<Shared>,
    pub(super) inode: u64,
    pub(super) kind: FileType,
    pub(super) device_number: u64,
    pub(super) born: Timestamp,
    pub(super) attributes: Mutex<Attributes>,
    pub(super) body: Body,
    pub(super) xattrs: Mutex<Attached>,
    pub(super) seals: AtomicU32,
    attachment: Attachment,
}

impl Node {
    pub(super) fn new(shared: &Arc<Shared>, node: &NewNode<'_>, now: Timestamp) -> Result<Arc<Self>> {
        let inode = shared.new_inode()?;
        Ok(Self::of_number(shared, node, now, inode))
    }

    /// With the number that it had in another kernel; ENOSPC.
    pub(super) fn numbered(shared: &Arc<Shared>, node: &NewNode<'_>, now: Timestamp, inode: u64) -> Result<Arc<Self>> {
        shared.new_inode()?;
        shared.next_inode.fetch_max(inode.saturating_add(1), Ordering::Relaxed);
        Ok(Self::of_number(shared, node, now, inode))
    }

    fn of_number(shared: &Arc<Shared>, node: &NewNode<'_>, now: Timestamp, inode: u64) -> Arc<Self> {
        let body = match node.kind {
            FileType::Directory => Body::Directory(Mutex::default()),
            FileType::Regular => Body::Regular(Mutex::new(Content::new())),
            FileType::Symlink => Body::Symlink(node.target.to_vec()),
            _ => Body::Other,
        };
        let attributes = Attributes {
            permissions: node.permissions,
            uid: node.uid,
            gid: node.gid,
            links: 1,
            accessed: now,
            modified: now,
            changed: now,
        };
        Arc::new_cyclic(|own| Self {
            own: own.clone(),
            shared: Arc::clone(shared),
            inode,
            kind: node.kind,
            device_number: node.device_number,
            born: now,
            attributes: Mutex::new(attributes),
            body,
            xattrs: Mutex::default(),
            seals: AtomicU32::new(F_SEAL_SEAL),
            attachment: Attachment::default(),
        })
    }

    pub(super) fn set_links(&self, links: u32) {
        self.attributes.lock().links = links;
    }

    pub(super) fn allow_seals(&self) {
        self.seals.store(0, Ordering::Relaxed);
    }

    fn add_links(&self, difference: i32, now: Timestamp) {
        let mut attributes = self.attributes.lock();
        attributes.links = attributes.links.saturating_add_signed(difference);
        attributes.changed = now;
    }

    /// The content or the entries changed.
    pub(super) fn touch(&self, now: Timestamp) {
        let mut attributes = self.attributes.lock();
        attributes.modified = now;
        attributes.changed = now;
    }

    /// It was read: the time of access moves only when it tells something (relatime).
    pub(super) fn accessed(&self, now: Timestamp) {
        let mut attributes = self.attributes.lock();
        let stale = now.seconds.saturating_sub(attributes.accessed.seconds) >= 86_400;
        if stale || attributes.accessed <= attributes.modified.max(attributes.changed) {
            attributes.accessed = now;
        }
    }

    /// Whoever writes takes the set-id bits away, unless permitted to keep them.
    pub(super) fn drop_set_ids(&self, context: &Context) {
        let mut attributes = self.attributes.lock();
        if attributes.permissions & 0o6000 != 0 && !context.credentials.capable(crate::cred::CAP_FSETID) {
            let group = if attributes.permissions & 0o010 != 0 { 0o2000 } else { 0 };
            attributes.permissions &= !(0o4000 | group);
        }
    }

    fn entries(&self) -> Result<&Mutex<Entries>> {
        match &self.body {
            Body::Directory(entries) => Ok(entries),
            _ => Err(Errno::NOTDIR),
        }
    }

    pub(super) fn content(&self) -> Result<&Mutex<Content>> {
        match &self.body {
            Body::Regular(content) => Ok(content),
            Body::Directory(_) => Err(Errno::ISDIR),
            _ => Err(Errno::INVAL),
        }
    }

    pub(super) fn set_size(&self, now: Timestamp, size_bytes: u64) -> Result<()> {
        let mut content = self.content()?.lock();
        let seals = self.seals.load(Ordering::Relaxed);
        let shrinks = size_bytes < content.size_bytes() && seals & F_SEAL_SHRINK != 0;
        if shrinks || (size_bytes > content.size_bytes() && seals & F_SEAL_GROW != 0) {
            return Err(Errno::PERM);
        }
        content.set_size(&self.shared, size_bytes)?;
        drop(content);
        self.touch(now);
        Ok(())
    }

    /// (size, blocks of 512 bytes).
    fn extent(&self) -> (u64, u64) {
        match &self.body {
            Body::Regular(content) => {
                let content = content.lock();
                (content.size_bytes(), content.pages() * (PAGE_BYTES as u64 / 512))
            }
            Body::Symlink(target) => (target.len() as u64, 0),
            _ => (0, 0),
        }
    }

    fn insert(&self, name: &[u8], node: &Arc<Node>, now: Timestamp) -> Result<()> {
        let mut entries = self.entries()?.lock();
        if entries.get(name).is_some() {
            return Err(Errno::EXIST);
        }
        entries.insert(name, Arc::clone(node));
        drop(entries);
        self.touch(now);
        if node.kind == FileType::Directory {
            self.add_links(1, now);
        }
        Ok(())
    }

    fn take(&self, name: &[u8], now: Timestamp) -> Result<()> {
        let removed = self.entries()?.lock().remove(name).ok_or(Errno::NOENT)?;
        self.touch(now);
        let is_directory = removed.kind == FileType::Directory;
        removed.add_links(if is_directory { -2 } else { -1 }, now);
        if is_directory {
            self.add_links(-1, now);
        }
        Ok(())
    }

    fn is_empty(&self) -> bool {
        self.entries().is_ok_and(|entries| entries.lock().is_empty())
    }

    fn child(&self, name: &[u8]) -> Result<Arc<Node>> {
        self.entries()?.lock().get(name).cloned().ok_or(Errno::NOENT)
    }

    fn exchange(&self, old: &[u8], other: &Node, new: &[u8], now: Timestamp) -> Result<()> {
        let (source, target) = (self.child(old)?, other.child(new)?);
        self.entries()?.lock().insert(old, Arc::clone(&target));
        other.entries()?.lock().insert(new, Arc::clone(&source));
        let directories = |node: &Node| i32::from(node.kind == FileType::Directory);
        let difference = directories(&target) - directories(&source);
        self.add_links(difference, now);
        other.add_links(-difference, now);
        source.attributes.lock().changed = now;
        target.attributes.lock().changed = now;
        Ok(())
    }

    fn move_entry(&self, old: &[u8], other: &Node, new: &[u8], now: Timestamp) -> Result<()> {
        let source = self.child(old)?;
        match other.child(new) {
            Ok(over) if over.kind == FileType::Directory && !over.is_empty() => return Err(Errno::NOTEMPTY),
            Ok(_) => other.take(new, now)?,
            Err(_) => {}
        }
        self.entries()?.lock().remove(old);
        other.entries()?.lock().insert(new, Arc::clone(&source));
        if source.kind == FileType::Directory {
            self.add_links(-1, now);
            other.add_links(1, now);
        }
        source.attributes.lock().changed = now;
        Ok(())
    }
}

impl Node {
    fn take_children(&mut self) -> Vec<Arc<Node>> {
        match &mut self.body {
            Body::Directory(entries) => std::mem::take(entries.get_mut()).into_nodes(),
            _ => Vec::new(),
        }
    }
}

/// A tree that goes as a whole goes node by node: a deep one must not be a deep stack.
impl Drop for Node {
    fn drop(&mut self) {
        let mut going = self.take_children();
        while let Some(node) = going.pop() {
            going.extend(Arc::into_inner(node).map(|mut last| last.take_children()).unwrap_or_default());
        }
        if let Body::Regular(content) = &self.body {
            self.shared.uncharge(content.lock().pages());
        }
        self.release_xattrs();
        self.shared.inodes.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Inode for Node {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn metadata(&self) -> Result<Metadata> {
        let (size_bytes, blocks) = self.extent();
        let attributes = self.attributes.lock();
        Ok(Metadata {
            device: self.shared.device,
            inode: self.inode,
            mode: self.kind.mode_bits() | attributes.permissions,
            links: attributes.links,
            uid: attributes.uid,
            gid: attributes.gid,
            rdev: self.device_number,
            size_bytes,
            block_size: PAGE_BYTES as u32,
            blocks,
            accessed: attributes.accessed,
            modified: attributes.modified,
            changed: attributes.changed,
            born: self.born,
        })
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

    fn read_dir(&self, mut cookie: u64, sink: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Result<()> {
        loop {
            let batch = self.entries()?.lock().after(cookie, READ_AHEAD);
            for (at, name, node) in &batch {
                let entry = DirEntry { name, inode: node.inode, kind: node.kind, next_cookie: *at };
                if !sink(entry) {
                    return Ok(());
                }
                cookie = *at;
            }
            if batch.len() < READ_AHEAD {
                return Ok(());
            }
        }
    }

    fn create(&self, context: &Context, name: &[u8], node: &NewNode<'_>) -> Result<InodeRef> {
        let _names = self.shared.names.lock();
        let node = Self::new(&self.shared, node, context.now)?;
        if node.kind == FileType::Directory {
            node.set_links(2);
        }
        self.insert(name, &node, context.now)?;
        Ok(node)
    }

    fn create_unnamed(&self, context: &Context, node: &NewNode<'_>) -> Result<InodeRef> {
        let node = Self::new(&self.shared, node, context.now)?;
        node.set_links(0);
        Ok(node)
    }

    fn link(&self, context: &Context, name: &[u8], target: &InodeRef) -> Result<()> {
        let target = target.as_any().downcast_ref::<Self>().and_then(|node| node.own.upgrade()).ok_or(Errno::XDEV)?;
        let _names = self.shared.names.lock();
        self.insert(name, &target, context.now)?;
        target.add_links(1, context.now);
        Ok(())
    }

    fn unlink(&self, context: &Context, name: &[u8]) -> Result<()> {
        let _names = self.shared.names.lock();
        self.take(name, context.now)
    }

    fn rmdir(&self, context: &Context, name: &[u8]) -> Result<()> {
        let _names = self.shared.names.lock();
        if !self.child(name)?.is_empty() {
            return Err(Errno::NOTEMPTY);
        }
        self.take(name, context.now)
    }

    fn rename(&self, context: &Context, old: &[u8], to: &InodeRef, new: &[u8], mode: RenameMode) -> Result<()> {
        let other = to.as_any().downcast_ref::<Self>().ok_or(Errno::XDEV)?;
        let _names = self.shared.names.lock();
        match mode {
            RenameMode::Exchange => self.exchange(old, other, new, context.now)?,
            RenameMode::NoReplace if other.child(new).is_ok() => return Err(Errno::EXIST),
            _ => self.move_entry(old, other, new, context.now)?,
        }
        self.touch(context.now);
        other.touch(context.now);
        Ok(())
    }

    fn read_link(&self) -> Result<LinkTarget> {
        match &self.body {
            Body::Symlink(target) => Ok(LinkTarget::Text(target.clone())),
            _ => Err(Errno::INVAL),
        }
    }

    fn set_attributes(&self, context: &Context, changes: &SetAttributes) -> Result<()> {
        if let Some(size_bytes) = changes.size_bytes {
            self.set_size(context.now, size_bytes)?;
            self.drop_set_ids(context);
        }
        let mut attributes = self.attributes.lock();
        attributes.permissions = changes.permissions.unwrap_or(attributes.permissions);
        attributes.uid = changes.uid.unwrap_or(attributes.uid);
        attributes.gid = changes.gid.unwrap_or(attributes.gid);
        attributes.accessed = changes.accessed.unwrap_or(attributes.accessed);
        attributes.modified = changes.modified.unwrap_or(attributes.modified);
        attributes.changed = context.now;
        Ok(())
    }

    fn xattrs(&self) -> Result<&dyn Xattrs> {
        Ok(self)
    }

    fn open(&self, _: &Context, _: OpenFlags) -> Result<Arc<dyn File>> {
        match (&self.body, self.own.upgrade()) {
            (Body::Regular(_), Some(node)) => Ok(Arc::new(TmpFile::new(node))),
            _ => Err(Errno::NXIO),
        }
    }
}
