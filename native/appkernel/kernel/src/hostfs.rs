//! A directory of the host as a read-only file system: what a container's image unpacked into a directory is seen through.
//! Every step is one component below a descriptor that is held; links are read, never followed, by the host.

use std::any::Any;
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};

use drupe_appkernel_abi::{Errno, Result};
use drupe_appkernel_hostsys::files::{self, Entry, Stat};
use drupe_appkernel_vfs::inode::{Attachment, DirEntry, FileSystem, Inode, InodeRef, LinkTarget};
use drupe_appkernel_vfs::kind::StatFs;
use drupe_appkernel_vfs::mount::anonymous_device;
use drupe_appkernel_vfs::sync::Mutex;
use drupe_appkernel_vfs::{Context, File, FileType, HostFile, Mapping, Metadata, OpenFlags, Timestamp};

use crate::machine::{errno, Owned};

struct Shared {
    device: u64,
    /// Nodes in use, so that one inode is one node.
    nodes: Mutex<HashMap<(u64, u64), Weak<Node>>>,
}

/// The directory (or file), to be mounted.
pub struct HostDirectory {
    root: Arc<Node>,
}

struct Node {
    shared: Arc<Shared>,
    key: (u64, u64),
    kind: FileType,
    attachment: Attachment,
    /// Of a directory that is being listed.
    entries: Mutex<Option<Arc<Vec<Entry>>>>,
    /// Opened to be read, or with O_PATH for what is no file or directory, or may not be read.
    host: Arc<Owned>,
}

impl HostDirectory {
    pub fn new(root: OwnedFd) -> Result<Arc<HostDirectory>> {
        let stat = files::stat(root.as_fd(), b"").map_err(errno)?;
        let shared = Arc::new(Shared { device: anonymous_device(), nodes: Mutex::default() });
        let root = shared.node(&stat, root)?;
        Ok(Arc::new(HostDirectory { root }))
    }
}

impl Shared {
    fn node(self: &Arc<Self>, stat: &Stat, fd: OwnedFd) -> Result<Arc<Node>> {
        let key = (stat.device, stat.inode);
        let mut nodes = self.nodes.lock();
        if let Some(known) = nodes.get(&key).and_then(Weak::upgrade) {
            return Ok(known);
        }
        let kind = FileType::from_mode(stat.mode).ok_or(Errno::IO)?;
        let host = Arc::new(Owned(fd));
        let node = Arc::new(Node {
            shared: Arc::clone(self),
            key,
            kind,
            attachment: Attachment::default(),
            entries: Mutex::default(),
            host,
        });
        nodes.insert(key, Arc::downgrade(&node));
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
}

impl FileSystem for HostDirectory {
    fn name(&self) -> &str {
        "hostfs"
    }

    fn root(&self) -> InodeRef {
        self.root.clone()
    }

    fn statfs(&self) -> Result<StatFs> {
        Ok(StatFs { magic: 0x0102_1997, block_size_bytes: 4096, name_max_bytes: 255, ..StatFs::default() })
    }

    fn is_read_only(&self) -> bool {
        true
    }
}

impl Inode for Node {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn metadata(&self) -> Result<Metadata> {
        let stat = files::stat(self.host.0.as_fd(), b"").map_err(errno)?;
        let [accessed, modified, changed] = stat.times.map(|(seconds, part)| Timestamp::new(seconds, part));
        Ok(Metadata {
            device: self.shared.device,
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
        })
    }

    fn kind(&self) -> FileType {
        self.kind
    }

    fn attachment(&self) -> &Attachment {
        &self.attachment
    }

    fn lookup(&self, name: &[u8]) -> Result<InodeRef> {
        const READ: i32 = 0o4000; // O_RDONLY | O_NONBLOCK
        const PATH: i32 = OpenFlags::PATH as i32;
        if self.kind != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        let directory = self.host.0.as_fd();
        let kind = FileType::from_mode(files::stat(directory, name).map_err(errno)?.mode);
        let readable = matches!(kind, Some(FileType::Regular | FileType::Directory));
        let opened = files::open(directory, name, if readable { READ } else { PATH });
        let fd = opened.or_else(|_| files::open(directory, name, PATH)).map_err(errno)?;
        let stat = files::stat(fd.as_fd(), b"").map_err(errno)?;
        Ok(self.shared.node(&stat, fd)?)
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

    fn read_link(&self) -> Result<LinkTarget> {
        if self.kind != FileType::Symlink {
            return Err(Errno::INVAL);
        }
        files::read_link(self.host.0.as_fd()).map(LinkTarget::Text).map_err(errno)
    }

    fn open(&self, _: &Context, _: OpenFlags) -> Result<Arc<dyn File>> {
        match self.kind {
            FileType::Regular => Ok(Arc::new(HostRegular { host: Arc::clone(&self.host), device: self.shared.device })),
            _ => Err(Errno::NXIO),
        }
    }
}

/// An open regular file of the host, to be read.
struct HostRegular {
    host: Arc<Owned>,
    device: u64,
}

impl File for HostRegular {
    fn read(&self, _: &Context, offset: u64, out: &mut [u8]) -> Result<usize> {
        files::read_at(self.host.0.as_fd(), offset, out).map_err(errno)
    }

    fn write(&self, _: &Context, _: u64, _: &[u8]) -> Result<usize> {
        Err(Errno::BADF)
    }

    fn can_seek(&self) -> bool {
        true
    }

    fn size_bytes(&self) -> Result<u64> {
        Ok(files::stat(self.host.0.as_fd(), b"").map_err(errno)?.size_bytes)
    }

    fn metadata(&self) -> Result<Metadata> {
        let stat = files::stat(self.host.0.as_fd(), b"").map_err(errno)?;
        Ok(Metadata {
            device: self.device,
            size_bytes: stat.size_bytes,
            ..Metadata::new(FileType::Regular, stat.mode & 0o7777)
        })
    }

    fn mapping(&self, offset: u64, _: u64, shared_write: bool) -> Result<Mapping> {
        if shared_write {
            return Err(Errno::ACCES);
        }
        Ok(Mapping { host: Arc::clone(&self.host) as Arc<dyn HostFile>, offset })
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
