//! A tmpfs written down: names and attributes as a list of nodes, what files hold as pages in a file of the caller's.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::Arc;

use drupe_appkernel_abi::{coded, Errno, Result};

use super::content::{Content, MAX_RESERVED_PAGES, PAGE_BYTES};
use super::node::{Body, Node};
use super::{Limits, Tmpfs};
use crate::backing::Backing;
use crate::file::Timestamp;
use crate::inode::NewNode;
use crate::kind::FileType;

/// Seconds and nanoseconds.
type Time = (i64, u32);

/// Pages of a file, from one on, so many; where they lie, None: they are reserved, and zero.
type Pages = (u64, u64, Option<u64>);

coded! {
    /// A node without its place.
    pub struct Leaf {
        mode: u32,
        uid: u32,
        gid: u32,
        links: u32,
        rdev: u64,
        inode: u64,
        times: [Time; 4],
        target: Vec<u8>,
        xattrs: Vec<(Vec<u8>, Vec<u8>)>,
        seals: u32,
        size_bytes: u64,
        pages: Vec<Pages>,
    }
}

coded! {
    /// A node with the names in it, by places in the list.
    pub struct SavedNode {
        leaf: Leaf,
        entries: Vec<(Vec<u8>, u32)>,
    }
}

coded! {
    /// All that a path leads to; the root first.
    pub struct SavedTree {
        nodes: Vec<SavedNode>,
        limits: (u64, u64),
    }
}

/// Where pages go: the bytes are put behind what is there; where that is.
pub type Sink<'a> = dyn FnMut(&[u8]) -> Result<u64> + 'a;

fn time(time: Timestamp) -> Time {
    (time.seconds, time.nanoseconds)
}

fn timestamp((seconds, part): Time) -> Timestamp {
    Timestamp::new(seconds, part)
}

impl Content {
    fn save(&self, sink: &mut Sink<'_>) -> Result<Vec<Pages>> {
        let mut saved: Vec<Pages> = Vec::new();
        for page in self.page_numbers() {
            let mut bytes = [0; PAGE_BYTES];
            self.read(page * PAGE_BYTES as u64, &mut bytes)?;
            let is_zero = bytes.iter().all(|byte| *byte == 0);
            let place = if is_zero { None } else { Some(sink(&bytes)?) };
            let grown = |(first, count, at): &Pages| match (at, place) {
                (None, None) => first + count == page,
                (Some(at), Some(place)) => first + count == page && at + count * PAGE_BYTES as u64 == place,
                _ => false,
            };
            match saved.last_mut() {
                Some(last) if grown(last) => last.1 += 1,
                _ => saved.push((page, 1, place)),
            }
        }
        Ok(saved)
    }
}

impl Node {
    /// The node by itself, without names.
    pub fn save(&self, sink: &mut Sink<'_>) -> Result<Leaf> {
        let (size_bytes, pages) = match &self.body {
            Body::Regular(content) => {
                let content = content.lock();
                (content.size_bytes(), content.save(sink)?)
            }
            _ => (0, Vec::new()),
        };
        let target = if let Body::Symlink(target) = &self.body { target.clone() } else { Vec::new() };
        let attributes = self.attributes.lock();
        Ok(Leaf {
            mode: self.kind.mode_bits() | attributes.permissions,
            uid: attributes.uid,
            gid: attributes.gid,
            links: attributes.links,
            rdev: self.device_number,
            inode: self.inode,
            times: [attributes.accessed, attributes.modified, attributes.changed, self.born].map(time),
            target,
            xattrs: self.xattrs.lock().iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
            seals: self.seals.load(Ordering::Relaxed),
            size_bytes,
            pages,
        })
    }
}

impl Tmpfs {
    pub fn save(&self, sink: &mut Sink<'_>) -> Result<SavedTree> {
        let limits = (self.shared.limits.size_bytes, self.shared.limits.inodes);
        let mut order = vec![Arc::clone(&self.root)];
        let mut known = HashMap::from([(Arc::as_ptr(&self.root) as usize, 0)]);
        let mut nodes = Vec::new();
        while let Some(node) = order.get(nodes.len()).cloned() {
            let leaf = node.save(sink)?;
            let mut entries = Vec::new();
            if let Body::Directory(names) = &node.body {
                for (_, name, child) in names.lock().after(0, usize::MAX) {
                    let index = *known.entry(Arc::as_ptr(&child) as usize).or_insert_with(|| {
                        order.push(Arc::clone(&child));
                        order.len() as u32 - 1
                    });
                    entries.push((name, index));
                }
            }
            nodes.push(SavedNode { leaf, entries });
        }
        Ok(SavedTree { nodes, limits })
    }

    /// A file system with what was saved in it. EINVAL for what is none, ENOSPC where it has no room.
    pub fn restore(
        saved: &SavedTree,
        backings: Arc<dyn crate::backing::Backings>,
        memory: &dyn Backing,
    ) -> Result<Arc<Self>> {
        let root = NewNode::new(FileType::Directory, 0, 0, 0);
        let limits = Limits { size_bytes: saved.limits.0, inodes: saved.limits.1 };
        let made = Tmpfs::new(limits, backings, &root, Timestamp::ZERO)?;
        let first = saved.nodes.first().ok_or(Errno::INVAL)?;
        let mut nodes = vec![Arc::clone(&made.root)];
        made.root.take_attributes(&first.leaf)?;
        for node in &saved.nodes[1..] {
            nodes.push(made.restore_leaf(&node.leaf, memory)?);
        }
        let mut is_named = vec![false; nodes.len()];
        is_named[0] = true;
        for (node, saved) in nodes.iter().zip(&saved.nodes) {
            for (name, index) in &saved.entries {
                node.restore_entry(
                    name,
                    nodes.get(*index as usize).ok_or(Errno::INVAL)?,
                    &mut is_named[*index as usize],
                )?;
            }
        }
        Ok(made)
    }

    /// A node that nothing leads to yet.
    pub fn restore_leaf(&self, leaf: &Leaf, memory: &dyn Backing) -> Result<Arc<Node>> {
        let kind = FileType::from_mode(leaf.mode).ok_or(Errno::INVAL)?;
        let new = NewNode { device_number: leaf.rdev, target: &leaf.target, ..NewNode::new(kind, 0, 0, 0) };
        let node = Node::numbered(&self.shared, &new, timestamp(leaf.times[3]), leaf.inode)?;
        if let Body::Regular(content) = &node.body {
            content.lock().restore(&self.shared, leaf, memory)?;
        }
        node.take_attributes(leaf)?;
        Ok(node)
    }
}

impl Node {
    fn take_attributes(&self, leaf: &Leaf) -> Result<()> {
        let mut attributes = self.attributes.lock();
        attributes.permissions = leaf.mode & 0o7777;
        (attributes.uid, attributes.gid, attributes.links) = (leaf.uid, leaf.gid, leaf.links);
        let [accessed, modified, changed, _] = leaf.times.map(timestamp);
        (attributes.accessed, attributes.modified, attributes.changed) = (accessed, modified, changed);
        drop(attributes);
        self.seals.store(leaf.seals, Ordering::Relaxed);
        self.attach(leaf.xattrs.iter().cloned().collect())
    }

    /// A directory has one name, so that no tree is a circle.
    fn restore_entry(&self, name: &[u8], child: &Arc<Node>, is_named: &mut bool) -> Result<()> {
        let sound = !name.is_empty() && name.len() <= 255 && !name.contains(&b'/') && name != b"." && name != b"..";
        let again = std::mem::replace(is_named, true) && child.kind == FileType::Directory;
        match &self.body {
            Body::Directory(entries) if sound && !again => {
                let before = entries.lock().insert(name, Arc::clone(child));
                before.is_none().then_some(()).ok_or(Errno::INVAL)
            }
            _ => Err(Errno::INVAL),
        }
    }
}

impl Content {
    fn restore(&mut self, shared: &super::Shared, leaf: &Leaf, memory: &dyn Backing) -> Result<()> {
        for (first, count, place) in &leaf.pages {
            // Others are bounded by the file that they lie in.
            if place.is_none() && *count > MAX_RESERVED_PAGES {
                return Err(Errno::INVAL);
            }
            for step in 0..*count {
                let page = first.checked_add(step).ok_or(Errno::INVAL)?;
                let at = page.checked_mul(PAGE_BYTES as u64).ok_or(Errno::INVAL)?;
                let mut bytes = [0; PAGE_BYTES];
                match place {
                    None => self.reserve_range(shared, at, PAGE_BYTES as u64, true)?,
                    Some(place) => {
                        memory.read_at(place.checked_add(step * PAGE_BYTES as u64).ok_or(Errno::INVAL)?, &mut bytes)?;
                        if self.write(shared, at, &bytes)? < PAGE_BYTES {
                            return Err(Errno::NOSPC);
                        }
                    }
                }
            }
        }
        self.set_size(shared, leaf.size_bytes)
    }
}
