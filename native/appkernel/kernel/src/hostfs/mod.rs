//! Directories of the host as file systems: what a container's image unpacked into a directory is seen through, and what is shared with
//! the host. Every step is one component below a descriptor that is held; links are read, never followed, by the host.
//!
//! Owners and permissions are the host's own numbers. Who may do what is decided by the kernel, as for every file system: its
//! process has the right to do it all, below these directories and nowhere else (`confine`).

mod change;
mod file;

use std::any::Any;
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};

use drupe_appkernel_abi::{Errno, Result};
use drupe_appkernel_hostsys::changes;
use drupe_appkernel_hostsys::files::{self, Entry, Stat};
use drupe_appkernel_vfs::inode::{
    Attachment, DirEntry, FileSystem, Inode, InodeRef, LinkTarget, NewNode, RenameMode, Xattrs,
};
use drupe_appkernel_vfs::kind::{SetAttributes, StatFs};
use drupe_appkernel_vfs::mount::anonymous_device;
use drupe_appkernel_vfs::sync::Mutex;
use drupe_appkernel_vfs::{Context, File, FileType, Metadata, OpenFlags, Timestamp};

use crate::machine::{errno, Owned};
use file::HostRegular;

/// How a directory is held with the host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sharing {
    /// Never changed by anybody, as an image's layers.
    Image,
    /// The host may change it meanwhile.
    Read,
    /// Both may.
    Change,
}

struct Shared {
    device: u64,
    sharing: Sharing,
    /// Nodes in use, so that one inode is one node.
    nodes: Mutex<HashMap<(u64, u64), Weak<Node>>>,
}

/// The directory (or file), to be mounted.
pub struct HostDirectory {
    root: Arc<Node>,
}

/// Where a file that is not opened to be written yet can be opened again: its directory, and the name there.
type Place = (Arc<Node>, Vec<u8>);

struct Node {
    own: Weak<Node>,
    shared: Arc<Shared>,
    key: (u64, u64),
    kind: FileType,
    attachment: Attachment,
    /// Of a directory that is being listed.
    entries: Mutex<Option<Arc<Vec<Entry>>>>,
    /// Opened to be read, or with O_PATH for what is no file or directory, or may not be read.
    host: Arc<Owned>,
    /// Opened to be read and written, once somebody wants that.
    writer: Mutex<Option<Arc<Owned>>>,
    place: Mutex<Option<Place>>,
}

impl HostDirectory {
    /// `root`: a directory opened to be read; or a file, opened to be written too if it shall be.
    pub fn new(root: OwnedFd, sharing: Sharing) -> Result<Arc<HostDirectory>> {
        let stat = files::stat(root.as_fd(), b"").map_err(errno)?;
        let shared = Arc::new(Shared { device: anonymous_device(), sharing, nodes: Mutex::default() });
        let writes = sharing == Sharing::Change && files::is_writable(root.as_fd()).map_err(errno)?;
        let root = shared.node(&stat, root, None)?;
        if writes {
            *root.writer.lock() = Some(Arc::clone(&root.host));
        }
        Ok(Arc::new(HostDirectory { root }))
    }
}

impl Shared {
    fn known(&self, stat: &Stat) -> Option<Arc<Node>> {
        self.nodes.lock().get(&(stat.device, stat.inode)).and_then(Weak::upgrade)
    }

    fn node(self: &Arc<Self>, stat: &Stat, fd: OwnedFd, place: Option<Place>) -> Result<Arc<Node>> {
        if let Some(known) = self.known(stat) {
            return Ok(known);
        }
        let key = (stat.device, stat.inode);
        let kind = FileType::from_mode(stat.mode).ok_or(Errno::IO)?;
        let node = Arc::new_cyclic(|own| Node {
            own: own.clone(),
            shared: Arc::clone(self),
            key,
            kind,
            attachment: Attachment::default(),
            entries: Mutex::default(),
            host: Arc::new(Owned(fd)),
            writer: Mutex::default(),
            place: Mutex::new(place.filter(|_| kind == FileType::Regular)),
        });
        self.nodes.lock().insert(key, Arc::downgrade(&node));
        Ok(node)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let mut nodes = self.shared.nodes.lock();
        if nodes.get(&self.key).is_some_and(|node| node.strong_count() == 0) {
            nodes.remove(&self.key);
        }
    }
}

impl Node {
    fn stat(&self) -> Result<Stat> {
        files::stat(self.host.0.as_fd(), b"").map_err(errno)
    }

    /// All entries but the dots; read again from the host if `fresh`.
    fn entries(&self, fresh: bool) -> Result<Arc<Vec<Entry>>> {
        let mut known = self.entries.lock();
        if let (false, Some(entries)) = (fresh, known.as_ref()) {
            return Ok(Arc::clone(entries));
        }
        let mut all: Vec<Entry> = Vec::new();
        loop {
            let from = all.last().map_or(0, |entry| entry.3);
            let more = files::entries(self.host.0.as_fd(), from).map_err(errno)?;
            if more.is_empty() {
                break;
            }
            all.extend(more);
        }
        all.retain(|(name, ..)| name != b"." && name != b"..");
        let all = Arc::new(all);
        *known = Some(Arc::clone(&all));
        Ok(all)
    }

    /// The node of an entry as it is on the host now.
    fn child(&self, name: &[u8]) -> Result<Arc<Node>> {
        const READ: i32 = 0o4000; // O_RDONLY | O_NONBLOCK
        const PATH: i32 = OpenFlags::PATH as i32;
        if self.kind != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        let directory = self.host.0.as_fd();
        let stat = files::stat(directory, name).map_err(errno)?;
        if let Some(known) = self.shared.known(&stat) {
            self.remember(&known, name);
            return Ok(known);
        }
        let readable = matches!(FileType::from_mode(stat.mode), Some(FileType::Regular | FileType::Directory));
        let opened = files::open(directory, name, if readable { READ } else { PATH });
        let fd = opened.or_else(|_| files::open(directory, name, PATH)).map_err(errno)?;
        let stat = files::stat(fd.as_fd(), b"").map_err(errno)?;
        self.shared.node(&stat, fd, self.place_of(name))
    }

    fn place_of(&self, name: &[u8]) -> Option<Place> {
        Some((self.own.upgrade()?, name.to_vec()))
    }

    fn remember(&self, child: &Node, name: &[u8]) {
        if child.kind == FileType::Regular {
            *child.place.lock() = self.place_of(name);
        }
    }

    /// The descriptor that writes: ESTALE where the file is no longer under the name that it was found by.
    fn writer(&self) -> Result<Arc<Owned>> {
        const READ_WRITE: i32 = 0o4002; // O_RDWR | O_NONBLOCK
        if self.shared.sharing != Sharing::Change {
            return Err(Errno::ROFS);
        }
        let mut writer = self.writer.lock();
        if let Some(known) = writer.as_ref() {
            return Ok(Arc::clone(known));
        }
        let (directory, name) = self.place.lock().clone().ok_or(Errno::STALE)?;
        let fd = files::open(directory.host.0.as_fd(), &name, READ_WRITE).map_err(errno)?;
        let stat = files::stat(fd.as_fd(), b"").map_err(errno)?;
        if (stat.device, stat.inode) != self.key {
            return Err(Errno::STALE);
        }
        let fd = Arc::new(Owned(fd));
        *writer = Some(Arc::clone(&fd));
        Ok(fd)
    }

    fn check_writable(&self) -> Result<()> {
        (self.shared.sharing == Sharing::Change).then_some(()).ok_or(Errno::ROFS)
    }
}

impl FileSystem for HostDirectory {
    fn name(&self) -> &str {
        "hostfs"
    }

    fn root(&self) -> InodeRef {
        self.root.clone()
    }

    fn statfs(&self) -> Result<StatFs> {
        let [block_size_bytes, blocks, blocks_free, files, files_free, name_max_bytes, _] =
            changes::file_system(self.root.host.0.as_fd()).map_err(errno)?;
        let magic = 0x0102_1997;
        Ok(StatFs { magic, block_size_bytes, blocks, blocks_free, files, files_free, name_max_bytes })
    }

    fn is_read_only(&self) -> bool {
        self.root.shared.sharing != Sharing::Change
    }
}

fn metadata(device: u64, stat: &Stat) -> Metadata {
    let [accessed, modified, changed] = stat.times.map(|(seconds, part)| Timestamp::new(seconds, part));
    Metadata {
        device,
        inode: stat.inode,
        mode: stat.mode,
        links: stat.links,
        uid: stat.uid,
        gid: stat.gid,
        rdev: stat.rdev,
        size_bytes: stat.size_bytes,
        block_size: 4096,
        blocks: stat.blocks,
        accessed,
        modified,
        changed,
        born: changed,
    }
}

impl Inode for Node {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn metadata(&self) -> Result<Metadata> {
        Ok(metadata(self.shared.device, &self.stat()?))
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
        self.shared.sharing != Sharing::Image
    }

    /// Cookies are places in the list: the host's own may be of 63 bits, which an overlay has no room for.
    fn read_dir(&self, cookie: u64, sink: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Result<()> {
        let entries = self.entries(cookie == 0)?;
        for (at, (name, inode, kind, _)) in entries.iter().enumerate().skip(cookie as usize) {
            let kind = FileType::from_mode(u32::from(*kind) << 12).unwrap_or(FileType::Regular);
            if !sink(DirEntry { name, inode: *inode, kind, next_cookie: at as u64 + 1 }) {
                break;
            }
        }
        Ok(())
    }

    fn create(&self, _: &Context, name: &[u8], node: &NewNode<'_>) -> Result<InodeRef> {
        Ok(self.make(name, node)?)
    }

    fn create_unnamed(&self, _: &Context, node: &NewNode<'_>) -> Result<InodeRef> {
        Ok(self.make_unnamed(node)?)
    }

    fn link(&self, _: &Context, name: &[u8], target: &InodeRef) -> Result<()> {
        self.link_to(name, of(target)?)
    }

    fn unlink(&self, _: &Context, name: &[u8]) -> Result<()> {
        self.remove(name, false)
    }

    fn rmdir(&self, _: &Context, name: &[u8]) -> Result<()> {
        self.remove(name, true)
    }

    fn rename(&self, _: &Context, old: &[u8], to: &InodeRef, new: &[u8], mode: RenameMode) -> Result<()> {
        self.move_to(old, of(to)?, new, mode)
    }

    fn read_link(&self) -> Result<LinkTarget> {
        if self.kind != FileType::Symlink {
            return Err(Errno::INVAL);
        }
        files::read_link(self.host.0.as_fd()).map(LinkTarget::Text).map_err(errno)
    }

    fn set_attributes(&self, context: &Context, changes: &SetAttributes) -> Result<()> {
        self.set(context, changes)
    }

    fn xattrs(&self) -> Result<&dyn Xattrs> {
        Ok(self)
    }

    fn open(&self, _: &Context, flags: OpenFlags) -> Result<Arc<dyn File>> {
        if self.kind != FileType::Regular {
            return Err(Errno::NXIO);
        }
        let node = self.own.upgrade().ok_or(Errno::STALE)?;
        let writer = if flags.writes() { Some(self.writer()?) } else { None };
        Ok(Arc::new(HostRegular { node, writer }))
    }
}

fn of(inode: &InodeRef) -> Result<&Node> {
    inode.as_any().downcast_ref().ok_or(Errno::XDEV)
}
