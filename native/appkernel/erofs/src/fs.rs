//! The image as a file system of the VFS.

use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, Weak};

use drupe_appkernel_abi::{Errno, Result};
use drupe_appkernel_vfs::file::{Context, File, HostFile, Mapping, Metadata, Timestamp};
use drupe_appkernel_vfs::inode::{
    Attachment, DirEntry, FileSystem, Inode as VfsInode, InodeRef, LinkTarget, XattrMode, Xattrs,
};
use drupe_appkernel_vfs::kind::StatFs;
use drupe_appkernel_vfs::mount::anonymous_device;
use drupe_appkernel_vfs::sync::Mutex;
use drupe_appkernel_vfs::{FileType, OpenFlags};

use crate::directory::Directory;
use crate::image::Image;
use crate::inode::Inode;
use crate::xattr;

const MAGIC: u64 = 0xE0F5_E1E2;
const PAGE_BYTES: u64 = 4096;

struct Shared {
    image: Image,
    device: u64,
    host: Arc<dyn HostFile>,
    /// Nodes in use, so that one inode is one node.
    nodes: Mutex<HashMap<u64, Weak<Node>>>,
}

/// An image, to be mounted.
pub struct Erofs {
    shared: Arc<Shared>,
    root: Arc<Node>,
}

impl Erofs {
    /// `host`: the file whose bytes `image` is, for mappings. EUCLEAN when there is no root directory.
    pub fn new(image: Image, host: Arc<dyn HostFile>) -> Result<Arc<Self>> {
        let root_nid = image.root_nid;
        let shared = Arc::new(Shared { image, device: anonymous_device(), host, nodes: Mutex::default() });
        let root = shared.node(root_nid)?;
        if root.inode.kind != FileType::Directory {
            return Err(Errno::UCLEAN);
        }
        Ok(Arc::new(Self { shared, root }))
    }
}

impl FileSystem for Erofs {
    fn name(&self) -> &str {
        "erofs"
    }

    fn root(&self) -> InodeRef {
        self.root.clone()
    }

    fn statfs(&self) -> Result<StatFs> {
        let image = &self.shared.image;
        Ok(StatFs {
            magic: MAGIC,
            block_size_bytes: image.block_size(),
            blocks: image.blocks,
            files: image.inodes,
            name_max_bytes: 255,
            ..StatFs::default()
        })
    }

    fn is_read_only(&self) -> bool {
        true
    }
}

impl Shared {
    fn node(self: &Arc<Self>, nid: u64) -> Result<Arc<Node>> {
        let mut nodes = self.nodes.lock();
        if let Some(node) = nodes.get(&nid).and_then(Weak::upgrade) {
            return Ok(node);
        }
        let inode = Inode::read(&self.image, nid)?;
        let node = Arc::new_cyclic(|own: &Weak<Node>| Node {
            own: own.clone(),
            shared: Arc::clone(self),
            inode,
            attachment: Attachment::default(),
        });
        nodes.insert(nid, Arc::downgrade(&node));
        Ok(node)
    }
}

struct Node {
    own: Weak<Node>,
    shared: Arc<Shared>,
    inode: Inode,
    attachment: Attachment,
}

impl Drop for Node {
    fn drop(&mut self) {
        let mut nodes = self.shared.nodes.lock();
        if nodes.get(&self.inode.nid).is_some_and(|node| node.strong_count() == 0) {
            nodes.remove(&self.inode.nid);
        }
    }
}

impl Node {
    fn directory(&self) -> Result<Directory<'_>> {
        if self.inode.kind != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        Ok(Directory::new(&self.shared.image, &self.inode))
    }
}

impl VfsInode for Node {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn metadata(&self) -> Result<Metadata> {
        let inode = &self.inode;
        let seconds = i64::try_from(inode.modified_seconds).unwrap_or(i64::MAX);
        let modified = Timestamp::new(seconds, inode.modified_nanoseconds);
        let is_device = matches!(inode.kind, FileType::CharDevice | FileType::BlockDevice);
        Ok(Metadata {
            device: self.shared.device,
            inode: inode.nid,
            mode: inode.kind.mode_bits() | inode.permissions,
            links: inode.links,
            uid: inode.uid,
            gid: inode.gid,
            rdev: if is_device { u64::from(inode.device_number) } else { 0 },
            size_bytes: inode.size_bytes,
            block_size: self.shared.image.block_size() as u32,
            blocks: inode.size_bytes.div_ceil(512),
            accessed: modified,
            modified,
            changed: modified,
            born: modified,
        })
    }

    fn kind(&self) -> FileType {
        self.inode.kind
    }

    fn attachment(&self) -> &Attachment {
        &self.attachment
    }

    fn lookup(&self, name: &[u8]) -> Result<InodeRef> {
        Ok(self.shared.node(self.directory()?.find(name)?)?)
    }

    fn read_dir(&self, cookie: u64, sink: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Result<()> {
        self.directory()?.read(cookie, &mut |entry, next_cookie| {
            if entry.name == b"." || entry.name == b".." {
                return Ok(true);
            }
            let kind =
                entry.kind.map_or_else(|| Inode::read(&self.shared.image, entry.nid).map(|inode| inode.kind), Ok)?;
            Ok(sink(DirEntry { name: entry.name, inode: entry.nid, kind, next_cookie }))
        })
    }

    fn read_link(&self) -> Result<LinkTarget> {
        if self.inode.kind != FileType::Symlink {
            return Err(Errno::INVAL);
        }
        self.inode.link_target(&self.shared.image).map(LinkTarget::Text)
    }

    fn set_attributes(&self, _: &Context, _: &drupe_appkernel_vfs::kind::SetAttributes) -> Result<()> {
        Err(Errno::ROFS)
    }

    fn xattrs(&self) -> Result<&dyn Xattrs> {
        Ok(self)
    }

    fn open(&self, _: &Context, _: OpenFlags) -> Result<Arc<dyn File>> {
        match (self.inode.kind, self.own.upgrade()) {
            (FileType::Regular, Some(node)) => Ok(Arc::new(ImageFile { node })),
            _ => Err(Errno::NXIO),
        }
    }
}

impl Xattrs for Node {
    fn get(&self, name: &[u8]) -> Result<Vec<u8>> {
        let all = xattr::all(&self.shared.image, &self.inode)?;
        all.into_iter().find(|(other, _)| other == name).map(|(_, value)| value).ok_or(Errno::NODATA)
    }

    fn list(&self) -> Result<Vec<Vec<u8>>> {
        Ok(xattr::all(&self.shared.image, &self.inode)?.into_iter().map(|(name, _)| name).collect())
    }

    fn set(&self, _: &Context, _: &[u8], _: &[u8], _: XattrMode) -> Result<()> {
        Err(Errno::ROFS)
    }

    fn remove(&self, _: &Context, _: &[u8]) -> Result<()> {
        Err(Errno::ROFS)
    }
}

/// An open regular file of an image.
pub struct ImageFile {
    node: Arc<Node>,
}

impl File for ImageFile {
    fn read(&self, _: &Context, offset: u64, out: &mut [u8]) -> Result<usize> {
        self.node.inode.content(&self.node.shared.image, offset, out)
    }

    fn write(&self, _: &Context, _: u64, _: &[u8]) -> Result<usize> {
        Err(Errno::ROFS)
    }

    fn metadata(&self) -> Result<Metadata> {
        self.node.metadata()
    }

    fn can_seek(&self) -> bool {
        true
    }

    /// The image itself, where the range lies in it in one piece and on page borders; EOPNOTSUPP: the core copies instead (a
    /// file's tail that follows its inode, chunks that are apart).
    fn mapping(&self, offset: u64, size_bytes: u64, shared_write: bool) -> Result<Mapping> {
        if shared_write {
            return Err(Errno::ACCES);
        }
        let inode = &self.node.inode;
        let wanted = inode.size_bytes.saturating_sub(offset).min(size_bytes);
        let (start, length) = inode.extent(&self.node.shared.image, offset)?;
        match start {
            Some(start) if start % PAGE_BYTES == 0 && length >= wanted => {
                Ok(Mapping { host: Arc::clone(&self.node.shared.host), offset: start })
            }
            _ => Err(Errno::NOTSUP),
        }
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
