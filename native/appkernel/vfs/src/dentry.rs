//! The tree of names in use, and where one is in it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Weak};

use drupe_appkernel_abi::{Errno, Result};

use crate::inode::InodeRef;
use crate::mount::Mount;
use crate::sync::Mutex;

#[derive(Default)]
struct Place {
    name: Vec<u8>,
    parent: Option<Arc<Dentry>>,
}

/// A name in use: of an open file, a working directory, a mount point, or on the way to one. It holds its parents, not its
/// children: what nobody uses is forgotten, and found again in the file system.
pub struct Dentry {
    inode: InodeRef,
    place: Mutex<Place>,
    children: Mutex<HashMap<Vec<u8>, Weak<Dentry>>>,
    removed: AtomicBool,
    /// How many mounts there are on it, in all namespaces.
    pub(crate) mounts: AtomicU32,
}

impl Dentry {
    /// The root of a file system.
    pub fn root(inode: InodeRef) -> Arc<Self> {
        Self::new(inode, Vec::new(), None)
    }

    fn new(inode: InodeRef, name: Vec<u8>, parent: Option<Arc<Self>>) -> Arc<Self> {
        Arc::new(Self {
            inode,
            place: Mutex::new(Place { name, parent }),
            children: Mutex::default(),
            removed: AtomicBool::new(false),
            mounts: AtomicU32::new(0),
        })
    }

    /// A name that nobody can look up, as of an O_TMPFILE file in this directory.
    pub fn unnamed(self: &Arc<Self>, inode: InodeRef, name: &[u8]) -> Arc<Self> {
        let dentry = Self::new(inode, name.to_vec(), Some(Arc::clone(self)));
        dentry.removed.store(true, Ordering::Relaxed);
        dentry
    }

    pub fn inode(&self) -> &InodeRef {
        &self.inode
    }

    pub fn name(&self) -> Vec<u8> {
        self.place.lock().name.clone()
    }

    /// The directory that it is in; None for a root.
    pub fn parent(&self) -> Option<Arc<Self>> {
        self.place.lock().parent.clone()
    }

    /// Whether the name was removed while in use.
    pub fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Relaxed)
    }

    /// Whether `self` is `other` or lies below it.
    pub fn is_below(self: &Arc<Self>, other: &Arc<Self>) -> bool {
        let mut at = Some(Arc::clone(self));
        while let Some(dentry) = at {
            if Arc::ptr_eq(&dentry, other) {
                return true;
            }
            at = dentry.parent();
        }
        false
    }

    /// The entry `name`: the one in use, else from the file system. ENOENT; ENOTDIR.
    pub fn lookup(self: &Arc<Self>, name: &[u8]) -> Result<Arc<Self>> {
        if name.len() > 255 {
            return Err(Errno::NAMETOOLONG);
        }
        match self.cached(name) {
            Some(child) if !self.inode.is_volatile() => Ok(child),
            known => {
                let inode = self.inode.lookup(name)?;
                match known {
                    Some(child) if Arc::ptr_eq(&child.inode, &inode) => Ok(child),
                    _ => Ok(self.insert(name, inode)),
                }
            }
        }
    }

    fn cached(&self, name: &[u8]) -> Option<Arc<Self>> {
        self.children.lock().get(name)?.upgrade()
    }

    /// The dentry of an entry that was just found or made. Of two who come at the same time both get the same.
    pub fn insert(self: &Arc<Self>, name: &[u8], inode: InodeRef) -> Arc<Self> {
        let mut children = self.children.lock();
        if let Some(child) = children.get(name).and_then(Weak::upgrade) {
            if Arc::ptr_eq(&child.inode, &inode) {
                return child;
            }
        }
        if children.len() >= 64 && children.len().is_power_of_two() {
            children.retain(|_, child| child.strong_count() > 0);
        }
        let child = Self::new(inode, name.to_vec(), Some(Arc::clone(self)));
        children.insert(name.to_vec(), Arc::downgrade(&child));
        child
    }

    /// The entry `name` is gone.
    pub fn forget(&self, name: &[u8]) {
        let removed = self.children.lock().remove(name).and_then(|child| child.upgrade());
        if let Some(child) = removed {
            child.removed.store(true, Ordering::Relaxed);
        }
    }

    /// The entry `old` is now `new` of `directory`; what was there is gone, or with `exchange` is `old` here.
    pub fn moved(self: &Arc<Self>, old: &[u8], directory: &Arc<Self>, new: &[u8], exchange: bool) {
        let source = self.children.lock().remove(old).and_then(|child| child.upgrade());
        let target = directory.children.lock().remove(new).and_then(|child| child.upgrade());
        if let Some(source) = source {
            directory.adopt(source, new);
        }
        match target {
            Some(target) if exchange => self.adopt(target, old),
            Some(target) => target.removed.store(true, Ordering::Relaxed),
            None => {}
        }
    }

    fn adopt(self: &Arc<Self>, child: Arc<Self>, name: &[u8]) {
        *child.place.lock() = Place { name: name.to_vec(), parent: Some(Arc::clone(self)) };
        self.children.lock().insert(name.to_vec(), Arc::downgrade(&child));
    }
}

impl Place {
    /// Take the name out of its directory, which is handed back.
    fn leave(self) -> Option<Arc<Dentry>> {
        let parent = self.parent?;
        let mut children = parent.children.lock();
        if children.get(&self.name).is_some_and(|child| child.strong_count() == 0) {
            children.remove(&self.name);
        }
        drop(children);
        Some(parent)
    }
}

/// One directory after the other up to one that somebody else holds: a deep path must not be a deep stack.
impl Drop for Dentry {
    fn drop(&mut self) {
        let mut parent = std::mem::take(self.place.get_mut()).leave();
        while let Some(mut last) = parent.and_then(Arc::into_inner) {
            parent = std::mem::take(last.place.get_mut()).leave();
        }
    }
}

/// A place in the tree of mounts: a name, and the mount through which it is seen.
#[derive(Clone)]
pub struct Path {
    pub mount: Arc<Mount>,
    pub dentry: Arc<Dentry>,
}

impl Path {
    pub fn new(mount: Arc<Mount>, dentry: Arc<Dentry>) -> Self {
        Self { mount, dentry }
    }

    pub fn inode(&self) -> &InodeRef {
        self.dentry.inode()
    }

    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.mount, &other.mount) && Arc::ptr_eq(&self.dentry, &other.dentry)
    }

    /// The place one directory up: through mount points, but not above `root`, where it stays.
    pub fn parent(&self, root: &Self) -> Self {
        let mut at = self.clone();
        loop {
            if at.is(root) {
                return at;
            }
            if !Arc::ptr_eq(&at.dentry, at.mount.root()) {
                let parent = at.dentry.parent().unwrap_or_else(|| Arc::clone(&at.dentry));
                return Self::new(at.mount, parent);
            }
            match at.mount.covers() {
                Some(below) => at = below,
                None => return at,
            }
        }
    }

    /// The path as a process with this root would write it, and whether it can be reached from there at all (d_path;
    /// getcwd(2) writes "(unreachable)" before one that cannot).
    pub fn text(&self, root: &Self) -> (Vec<u8>, bool) {
        let mut names: Vec<Vec<u8>> = Vec::new();
        let mut at = self.clone();
        let reachable = loop {
            if at.is(root) {
                break true;
            }
            if Arc::ptr_eq(&at.dentry, at.mount.root()) {
                match at.mount.covers() {
                    Some(below) => at = below,
                    None => break false,
                }
                continue;
            }
            names.push(at.dentry.name());
            match at.dentry.parent() {
                Some(parent) => at.dentry = parent,
                None => break false,
            }
        };
        (joined(&names), reachable)
    }

    /// What readlink(2) says of a link in /proc/PID/fd that leads here: "pipe:[7]" for what has no name, " (deleted)" after
    /// a name that was removed.
    pub fn link_text(&self, root: &Self) -> Vec<u8> {
        if self.mount.is_internal() {
            return self.dentry.name();
        }
        let (mut text, _) = self.text(root);
        if self.dentry.is_removed() {
            text.extend_from_slice(b" (deleted)");
        }
        text
    }
}

fn joined(names: &[Vec<u8>]) -> Vec<u8> {
    if names.is_empty() {
        return b"/".to_vec();
    }
    let mut text = Vec::new();
    for name in names.iter().rev() {
        text.push(b'/');
        text.extend_from_slice(name);
    }
    text
}
