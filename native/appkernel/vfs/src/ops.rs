//! Opening files by path, and asking and changing what a path leads to.

use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};

use crate::cred::{CAP_CHOWN, CAP_FOWNER, CAP_FSETID, MAY_EXEC, MAY_READ, MAY_WRITE};
use crate::dentry::Path;
use crate::directory::{DirectoryFile, PathFile};
use crate::file::{Context, File, Metadata, Timestamp};
use crate::inode::{LinkTarget, NewNode, Use};
use crate::inotify::{self, IN_ATTRIB, IN_CREATE, IN_MODIFY, IN_OPEN};
use crate::kind::{FileType, SetAttributes, S_ISGID, S_ISUID};
use crate::mount::MS_NODEV;
use crate::open::{OpenFile, OpenFlags};
use crate::walk::{Found, How, Last, View};

/// Opens what a file system leaves to the kernel: devices by number, FIFOs. ENXIO.
pub trait SpecialFiles: Send + Sync {
    fn open(&self, context: &Context, path: &Path, flags: OpenFlags) -> Result<Arc<dyn File>>;
}

/// A time to set (utimensat(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeChange {
    Omit,
    Now,
    To(Timestamp),
}

impl View<'_> {
    /// openat2(2): `permissions` before the umask, `resolve` RESOLVE_*. A FIFO is opened at once: see `Fifo::is_open`.
    pub fn open(
        &self,
        start: &Path,
        path: &[u8],
        flags: OpenFlags,
        permissions: u32,
        resolve: u64,
    ) -> Result<Arc<OpenFile>> {
        let exclusive = flags.has(OpenFlags::CREAT | OpenFlags::EXCL);
        let creates = flags.has(OpenFlags::CREAT) && !flags.has(OpenFlags::PATH);
        let makes_directory = creates && path.ends_with(b"/"); // EISDIR, wherever a link there leads
        let follow = !flags.has(OpenFlags::NOFOLLOW) && !exclusive && !makes_directory;
        let found = self.find(start, path, How { follow, follow_slash: !creates, resolve })?;
        if flags.has(OpenFlags::TMPFILE) && !flags.has(OpenFlags::PATH) {
            return self.open_unnamed(&found, flags, permissions);
        }
        match (&found.target, creates) {
            (_, true) if found.slash && matches!(found.last, Last::Name(_)) => Err(Errno::ISDIR),
            (None, true) => self.open_new(&found, flags, permissions),
            (None, false) => Err(Errno::NOENT),
            (Some(_), true) if flags.has(OpenFlags::EXCL) => Err(Errno::EXIST),
            (Some(target), true) if target.inode().kind() == FileType::Directory => Err(Errno::ISDIR),
            (Some(target), _) if found.slash && target.inode().kind() != FileType::Directory => Err(Errno::NOTDIR),
            (Some(target), _) => self.open_path(target, flags),
        }
    }

    fn open_new(&self, found: &Found, flags: OpenFlags, permissions: u32) -> Result<Arc<OpenFile>> {
        let path = self.make(found, FileType::Regular, permissions, 0, &[])?;
        self.opened(&path, flags)
    }

    fn open_unnamed(&self, found: &Found, flags: OpenFlags, permissions: u32) -> Result<Arc<OpenFile>> {
        let directory = found.target.as_ref().ok_or(Errno::NOENT)?;
        if !flags.writes() {
            return Err(Errno::INVAL);
        }
        self.check_changeable(directory)?;
        let node = self.new_node(&directory.inode().metadata()?, FileType::Regular, permissions);
        let inode = directory.inode().create_unnamed(self.context, &node)?;
        let name = format!("#{}", inode.metadata()?.inode);
        let dentry = directory.dentry.unnamed(inode, name.as_bytes());
        self.opened(&Path::new(directory.mount.clone(), dentry), flags)
    }

    /// Open what is at this place; for links of /proc too. Checks all permissions.
    pub fn open_path(&self, path: &Path, flags: OpenFlags) -> Result<Arc<OpenFile>> {
        let metadata = path.inode().metadata()?;
        if flags.has(OpenFlags::DIRECTORY) && !metadata.is_directory() {
            return Err(Errno::NOTDIR);
        }
        if flags.has(OpenFlags::PATH) {
            return Ok(OpenFile::new(PathFile::open(path.clone()), Some(path.clone()), flags));
        }
        self.check_openable(path, &metadata, flags)?;
        let file = self.opened(path, flags)?;
        if flags.has(OpenFlags::TRUNC) && metadata.kind() == FileType::Regular {
            let changes = SetAttributes { size_bytes: Some(0), ..SetAttributes::default() };
            path.inode().set_attributes(self.context, &changes)?;
            if metadata.size_bytes > 0 {
                inotify::tell(path, IN_MODIFY);
            }
        }
        Ok(file)
    }

    fn check_openable(&self, path: &Path, metadata: &Metadata, flags: OpenFlags) -> Result<()> {
        let writes = flags.writes() || flags.has(OpenFlags::TRUNC);
        match metadata.kind() {
            FileType::Symlink => return Err(Errno::LOOP),
            FileType::Directory if writes => return Err(Errno::ISDIR),
            FileType::Regular | FileType::Directory if writes => path.mount.check_writable()?,
            FileType::CharDevice | FileType::BlockDevice if path.mount.has(MS_NODEV) => return Err(Errno::ACCES),
            FileType::Socket => return Err(Errno::NXIO),
            _ => {}
        }
        if flags.has(OpenFlags::NOATIME) && !self.context.credentials.owns(metadata) {
            return Err(Errno::PERM);
        }
        let reading = if flags.reads() { MAY_READ } else { 0 };
        let writing = if writes { MAY_WRITE } else { 0 };
        self.context.credentials.check(metadata, reading | writing)
    }

    fn opened(&self, path: &Path, flags: OpenFlags) -> Result<Arc<OpenFile>> {
        let writes = flags.writes() && path.inode().kind() == FileType::Regular;
        let writing = if writes { Some(Use::writing(path)?) } else { None };
        let file = match path.inode().kind() {
            FileType::Directory => DirectoryFile::open(path.clone()),
            _ => match path.inode().open(self.context, flags) {
                Err(Errno::NXIO) => self.specials.open(self.context, path, flags)?,
                other => other?,
            },
        };
        inotify::tell(path, IN_OPEN);
        Ok(OpenFile::writing(file, path.clone(), flags, writing))
    }

    /// Make the entry that `found` says is missing. EEXIST, ENOENT, EROFS, EACCES.
    pub(crate) fn make(
        &self,
        found: &Found,
        kind: FileType,
        permissions: u32,
        device_number: u64,
        target: &[u8],
    ) -> Result<Path> {
        let name = match (&found.target, &found.last) {
            (None, Last::Name(name)) => name,
            _ => return Err(Errno::EXIST),
        };
        if found.slash && kind != FileType::Directory {
            return Err(Errno::NOENT);
        }
        self.check_changeable(&found.parent)?;
        let directory = found.parent.inode();
        let node = NewNode { device_number, target, ..self.new_node(&directory.metadata()?, kind, permissions) };
        let inode = directory.create(self.context, name, &node)?;
        let path = Path::new(found.parent.mount.clone(), found.parent.dentry.insert(name, inode));
        inotify::tell(&path, IN_CREATE);
        Ok(path)
    }

    fn new_node(&self, directory: &Metadata, kind: FileType, permissions: u32) -> NewNode<'static> {
        let credentials = self.context.credentials;
        let inherits = directory.mode & S_ISGID != 0;
        let gid = if inherits { directory.gid } else { credentials.gid };
        let permissions = if kind == FileType::Symlink { 0o777 } else { permissions & 0o7777 & !self.umask };
        let sticky_group = if inherits && kind == FileType::Directory { S_ISGID } else { 0 };
        NewNode::new(kind, permissions | sticky_group, credentials.uid, gid)
    }

    /// EROFS, ENOENT, EACCES unless entries of the directory may be made and removed.
    pub(crate) fn check_changeable(&self, directory: &Path) -> Result<()> {
        let metadata = directory.inode().metadata()?;
        if !metadata.is_directory() {
            return Err(Errno::NOTDIR);
        }
        directory.mount.check_writable()?;
        if directory.dentry.is_removed() {
            return Err(Errno::NOENT);
        }
        self.context.credentials.check(&metadata, MAY_WRITE | MAY_EXEC)
    }

    /// faccessat2(2): `access` of MAY_*; the context's credentials decide, real or effective.
    pub fn access(&self, path: &Path, access: u32) -> Result<()> {
        let metadata = path.inode().metadata()?;
        if access & MAY_WRITE != 0 && matches!(metadata.kind(), FileType::Regular | FileType::Directory) {
            path.mount.check_writable()?;
        }
        self.context.credentials.check(&metadata, access)
    }

    /// The text of the symbolic link at `path`; for links that jump, the path of where they lead. EINVAL.
    pub fn read_link(&self, path: &Path) -> Result<Vec<u8>> {
        path.inode().check_follow(self.context)?;
        match path.inode().read_link()? {
            LinkTarget::Text(text) => Ok(text),
            LinkTarget::Jump(to) => Ok(to.link_text(self.root)),
        }
    }

    fn change(&self, path: &Path, changes: &SetAttributes) -> Result<()> {
        path.mount.check_writable()?;
        path.inode().set_attributes(self.context, changes)?;
        inotify::tell(path, if changes.size_bytes.is_some() { IN_MODIFY } else { IN_ATTRIB });
        Ok(())
    }

    /// fchmodat2(2). EPERM unless the owner; EOPNOTSUPP for a symbolic link.
    pub fn chmod(&self, path: &Path, permissions: u32) -> Result<()> {
        let metadata = path.inode().metadata()?;
        path.mount.check_writable()?;
        if metadata.kind() == FileType::Symlink {
            return Err(Errno::NOTSUP);
        }
        let credentials = self.context.credentials;
        if !credentials.owns(&metadata) {
            return Err(Errno::PERM);
        }
        let keeps_group = credentials.in_group(metadata.gid) || credentials.capable(CAP_FSETID);
        let permissions = permissions & 0o7777 & if keeps_group { !0 } else { !S_ISGID };
        self.change(path, &SetAttributes { permissions: Some(permissions), ..SetAttributes::default() })
    }

    /// fchownat(2); None leaves an id as it is. EPERM. Set-id bits of files are lost.
    pub fn chown(&self, path: &Path, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
        let metadata = path.inode().metadata()?;
        path.mount.check_writable()?;
        let credentials = self.context.credentials;
        let owner = credentials.uid == metadata.uid;
        let may_uid = uid.is_none_or(|uid| owner && uid == metadata.uid);
        let may_gid = gid.is_none_or(|gid| owner && (gid == metadata.gid || credentials.in_group(gid)));
        if !(credentials.capable(CAP_CHOWN) || may_uid && may_gid) {
            return Err(Errno::PERM);
        }
        let permissions = Some(without_set_ids(&metadata)).filter(|_| !metadata.is_directory());
        self.change(path, &SetAttributes { uid, gid, permissions, ..SetAttributes::default() })
    }

    /// utimensat(2). EPERM, EACCES.
    pub fn set_times(&self, path: &Path, accessed: TimeChange, modified: TimeChange) -> Result<()> {
        let metadata = path.inode().metadata()?;
        path.mount.check_writable()?;
        let credentials = self.context.credentials;
        match (accessed, modified) {
            (TimeChange::Omit, TimeChange::Omit) => return Ok(()),
            _ if credentials.owns(&metadata) || credentials.capable(CAP_FOWNER) => {}
            (TimeChange::Now, TimeChange::Now) => credentials.check(&metadata, MAY_WRITE)?,
            _ => return Err(Errno::PERM),
        }
        let time = |change| match change {
            TimeChange::Omit => None,
            TimeChange::Now => Some(self.context.now),
            TimeChange::To(time) => Some(time),
        };
        let (accessed, modified) = (time(accessed), time(modified));
        self.change(path, &SetAttributes { accessed, modified, ..SetAttributes::default() })
    }

    /// truncate(2). EISDIR; EINVAL for what is no regular file.
    pub fn truncate(&self, path: &Path, size_bytes: u64) -> Result<()> {
        let metadata = path.inode().metadata()?;
        match metadata.kind() {
            FileType::Directory => return Err(Errno::ISDIR),
            FileType::Regular => {}
            _ => return Err(Errno::INVAL),
        }
        self.context.credentials.check(&metadata, MAY_WRITE)?;
        let _writing = Use::writing(path)?;
        self.change(path, &SetAttributes { size_bytes: Some(size_bytes), ..SetAttributes::default() })
    }
}

fn without_set_ids(metadata: &Metadata) -> u32 {
    let group = if metadata.mode & 0o010 != 0 { S_ISGID } else { 0 };
    metadata.mode & 0o7777 & !(S_ISUID | group)
}
