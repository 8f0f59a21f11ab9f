//! Mounts, and the namespace that they make up (mount_namespaces(7), without propagation).

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use drupe_appkernel_abi::{Errno, Result};

use crate::dentry::{Dentry, Path};
use crate::inode::FileSystem;
use crate::kind::make_device;
use crate::sync::Mutex;

pub const MS_RDONLY: u32 = 1;
pub const MS_NOSUID: u32 = 2;
pub const MS_NODEV: u32 = 4;
pub const MS_NOEXEC: u32 = 8;
pub const MS_NOSYMFOLLOW: u32 = 256;
pub const MS_NOATIME: u32 = 1024;
pub const MS_NODIRATIME: u32 = 2048;
pub const MS_RELATIME: u32 = 1 << 21;

const SHOWN: [(u32, &str); 6] = [
    (MS_NOSUID, ",nosuid"),
    (MS_NODEV, ",nodev"),
    (MS_NOEXEC, ",noexec"),
    (MS_NOATIME, ",noatime"),
    (MS_NODIRATIME, ",nodiratime"),
    (MS_RELATIME, ",relatime"),
];

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// A device number for a file system that lies on no device (0:1, 0:2, …).
pub fn anonymous_device() -> u64 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    make_device(0, NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A file system, or a part of one, at a place in the tree.
pub struct Mount {
    id: u64,
    file_system: Arc<dyn FileSystem>,
    root: Arc<Dentry>,
    source: Vec<u8>,
    flags: AtomicU32,
    covers: Mutex<Option<(Weak<Mount>, Arc<Dentry>)>>,
    internal: bool,
}

impl Mount {
    /// A mount of the whole of `file_system`, not yet anywhere. `flags`: MS_*; `source` as /proc/mounts shows it.
    pub fn new(file_system: Arc<dyn FileSystem>, source: &[u8], flags: u32) -> Arc<Self> {
        let root = Dentry::root(file_system.root());
        Self::of(file_system, root, source, flags, false)
    }

    /// A mount of the kernel's own, that is in no tree: of files without a name.
    pub(crate) fn internal(file_system: Arc<dyn FileSystem>) -> Arc<Self> {
        let root = Dentry::root(file_system.root());
        Self::of(file_system, root, b"none", 0, true)
    }

    /// Whether it holds files without a name.
    pub fn is_internal(&self) -> bool {
        self.internal
    }

    /// A second view of what is at `path` (mount(2) MS_BIND); a file may be bound too.
    pub fn bind(path: &Path, flags: u32) -> Arc<Self> {
        let mount = &path.mount;
        Self::of(Arc::clone(&mount.file_system), Arc::clone(&path.dentry), &mount.source, flags, mount.internal)
    }

    fn of(file_system: Arc<dyn FileSystem>, root: Arc<Dentry>, source: &[u8], flags: u32, internal: bool) -> Arc<Self> {
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let (source, flags) = (source.to_vec(), AtomicU32::new(flags));
        Arc::new(Self { id, file_system, root, source, flags, covers: Mutex::default(), internal })
    }

    pub fn id(&self) -> u64 {
        self.id
    }

    pub fn file_system(&self) -> &Arc<dyn FileSystem> {
        &self.file_system
    }

    /// What it was mounted from, as given.
    pub fn source(&self) -> &[u8] {
        &self.source
    }

    pub fn root(&self) -> &Arc<Dentry> {
        &self.root
    }

    pub fn root_path(self: &Arc<Self>) -> Path {
        Path::new(Arc::clone(self), Arc::clone(&self.root))
    }

    /// MS_* flags.
    pub fn flags(&self) -> u32 {
        self.flags.load(Ordering::Relaxed)
    }

    pub fn set_flags(&self, flags: u32) {
        self.flags.store(flags, Ordering::Relaxed);
    }

    pub fn has(&self, flag: u32) -> bool {
        self.flags() & flag != 0
    }

    /// EROFS if nothing may be written through this mount.
    pub fn check_writable(&self) -> Result<()> {
        if self.has(MS_RDONLY) || self.file_system.is_read_only() {
            return Err(Errno::ROFS);
        }
        Ok(())
    }

    /// The place that it lies on; None for the root of a namespace and for what was unmounted.
    pub fn covers(&self) -> Option<Path> {
        let covers = self.covers.lock();
        let (mount, dentry) = covers.as_ref()?;
        Some(Path::new(mount.upgrade()?, Arc::clone(dentry)))
    }

    /// "rw,nosuid,…": the options of this mount, then the file system's, as in /proc/PID/mounts.
    pub fn options(&self) -> String {
        self.own_options() + &self.file_system.options()
    }

    /// The options of this mount alone, as in /proc/PID/mountinfo.
    pub fn own_options(&self) -> String {
        let read_only = self.check_writable().is_err();
        let mut text = String::from(if read_only { "ro" } else { "rw" });
        SHOWN.iter().filter(|(flag, _)| self.has(*flag)).for_each(|(_, name)| text.push_str(name));
        text
    }

    /// The options of the file system alone.
    pub fn file_system_options(&self) -> String {
        let access = if self.file_system.is_read_only() { "ro" } else { "rw" };
        access.to_string() + &self.file_system.options()
    }
}

type Key = (u64, usize);

fn key(path: &Path) -> Key {
    (path.mount.id, Arc::as_ptr(&path.dentry) as usize)
}

#[derive(Default)]
struct Tree {
    /// In the order of mounting, as /proc/mounts shows them.
    all: Vec<Arc<Mount>>,
    by_place: HashMap<Key, Arc<Mount>>,
}

/// The mounts that a container sees.
pub struct MountNamespace {
    root: Mutex<Arc<Mount>>,
    tree: Mutex<Tree>,
}

impl MountNamespace {
    pub fn new(root: Arc<Mount>) -> Arc<Self> {
        let tree = Tree { all: vec![Arc::clone(&root)], by_place: HashMap::new() };
        Arc::new(Self { root: Mutex::new(root), tree: Mutex::new(tree) })
    }

    /// The top of the tree, seen through what may be mounted on it.
    pub fn root(&self) -> Path {
        let root = self.root.lock().root_path();
        self.descend(root)
    }

    /// All mounts, in the order of mounting.
    pub fn mounts(&self) -> Vec<Arc<Mount>> {
        self.tree.lock().all.clone()
    }

    /// What is seen at `path`: the root of the topmost mount there, or itself.
    pub fn descend(&self, path: Path) -> Path {
        let mut at = path;
        while at.dentry.mounts.load(Ordering::Relaxed) > 0 {
            match self.tree.lock().by_place.get(&key(&at)) {
                Some(mount) => at = mount.root_path(),
                None => break,
            }
        }
        at
    }

    /// Put `mount` on top of what is seen at `at`. ENOTDIR if one is a directory and the other is not.
    pub fn mount(&self, mount: Arc<Mount>, at: Path) -> Result<()> {
        let at = self.descend(at);
        let directories = (at.inode().metadata()?.is_directory(), mount.root.inode().metadata()?.is_directory());
        if directories.0 != directories.1 {
            return Err(Errno::NOTDIR);
        }
        *mount.covers.lock() = Some((Arc::downgrade(&at.mount), Arc::clone(&at.dentry)));
        let mut tree = self.tree.lock();
        at.dentry.mounts.fetch_add(1, Ordering::Relaxed);
        tree.by_place.insert(key(&at), Arc::clone(&mount));
        tree.all.push(mount);
        Ok(())
    }

    /// Take the mount away whose root `path` is. EINVAL if it is none, or the namespace's root; EBUSY while others lie on
    /// it, unless `detach` (MNT_DETACH), which takes these along.
    pub fn unmount(&self, path: &Path, detach: bool) -> Result<()> {
        let mount = &path.mount;
        if !Arc::ptr_eq(&path.dentry, &mount.root) || mount.covers().is_none() {
            return Err(Errno::INVAL);
        }
        let above = self.above(mount);
        if !above.is_empty() && !detach {
            return Err(Errno::BUSY);
        }
        above.iter().rev().chain([mount]).for_each(|mount| self.remove(mount));
        Ok(())
    }

    fn above(&self, mount: &Arc<Mount>) -> Vec<Arc<Mount>> {
        let mut found = vec![Arc::clone(mount)];
        for candidate in self.mounts() {
            let lies_on = candidate.covers().is_some_and(|at| found.iter().any(|m| m.id == at.mount.id));
            if lies_on {
                found.push(candidate);
            }
        }
        found.split_off(1)
    }

    fn remove(&self, mount: &Arc<Mount>) {
        let Some(at) = mount.covers() else { return };
        let mut tree = self.tree.lock();
        at.dentry.mounts.fetch_sub(1, Ordering::Relaxed);
        tree.by_place.remove(&key(&at));
        tree.all.retain(|other| other.id != mount.id);
        *mount.covers.lock() = None;
    }
}
