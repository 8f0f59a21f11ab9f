//! A directory tree on either side: the host's in a temporary directory, ours in a tmpfs or an overlay.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;

use drupe_appkernel_abi::Errno;
use drupe_appkernel_vfs::inode::{NewNode, RenameMode};
use drupe_appkernel_vfs::overlay::Overlay;
use drupe_appkernel_vfs::tmpfs::{Limits, Tmpfs};
use drupe_appkernel_vfs::walk::How;
use drupe_appkernel_vfs::{
    Backing, Backings, Context, Credentials, File, FileSystem, FileType, Mount, MountNamespace, OpenFlags, Path,
    SpecialFiles, Timestamp, View,
};

use crate::world::Answer;

/// What is done to a tree. Paths are relative to its root.
pub trait Tree {
    fn mkdir(&self, path: &str) -> Answer<()>;
    /// Open with O_CREAT, and with O_TRUNC if `cut`; write at `offset`.
    fn write(&self, path: &str, offset: u64, data: &[u8], cut: bool) -> Answer<()>;
    fn read(&self, path: &str) -> Answer<Vec<u8>>;
    fn unlink(&self, path: &str) -> Answer<()>;
    fn rmdir(&self, path: &str) -> Answer<()>;
    fn rename(&self, old: &str, new: &str) -> Answer<()>;
    fn symlink(&self, target: &str, path: &str) -> Answer<()>;
    fn link(&self, old: &str, new: &str) -> Answer<()>;
    fn chmod(&self, path: &str, mode: u32) -> Answer<()>;
    fn read_link(&self, path: &str) -> Answer<Vec<u8>>;
    /// Names of a directory, sorted, without dots.
    fn list(&self, path: &str) -> Answer<Vec<String>>;
    /// Mode, size of what is no directory; not through a link.
    fn stat(&self, path: &str) -> Answer<(u32, u64)>;
}

/// Every path with what is there.
pub fn snapshot(tree: &dyn Tree, path: &str, out: &mut Vec<String>) {
    for name in tree.list(path).unwrap() {
        let child = if path == "." { name } else { format!("{path}/{name}") };
        let stat = tree.stat(&child).unwrap();
        match stat.0 & 0o170_000 {
            0o040_000 => snapshot(tree, &child, out),
            0o120_000 => out.push(format!("{child} -> {:?}", tree.read_link(&child))),
            _ => out.push(format!("{child} {stat:?} {:?}", tree.read(&child))),
        }
        out.push(format!("{child} {:o}", stat.0));
    }
}

pub struct HostTree(pub PathBuf);

impl HostTree {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("vfs-{name}-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022)); // as in `with`, below
        Self(path)
    }

    fn at(&self, path: &str) -> PathBuf {
        self.0.join(path)
    }
}

impl Drop for HostTree {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn plain<T>(result: std::io::Result<T>) -> Answer<T> {
    result.map_err(|error| error.raw_os_error().unwrap_or(0))
}

impl Tree for HostTree {
    fn mkdir(&self, path: &str) -> Answer<()> {
        plain(fs::create_dir(self.at(path)))
    }

    fn write(&self, path: &str, offset: u64, data: &[u8], cut: bool) -> Answer<()> {
        let mut file = plain(fs::OpenOptions::new().write(true).create(true).truncate(cut).open(self.at(path)))?;
        plain(file.seek(SeekFrom::Start(offset)))?;
        plain(file.write_all(data))
    }

    fn read(&self, path: &str) -> Answer<Vec<u8>> {
        let mut bytes = Vec::new();
        plain(plain(fs::File::open(self.at(path)))?.read_to_end(&mut bytes))?;
        Ok(bytes)
    }

    fn unlink(&self, path: &str) -> Answer<()> {
        plain(fs::remove_file(self.at(path)))
    }

    fn rmdir(&self, path: &str) -> Answer<()> {
        plain(fs::remove_dir(self.at(path)))
    }

    fn rename(&self, old: &str, new: &str) -> Answer<()> {
        plain(fs::rename(self.at(old), self.at(new)))
    }

    fn symlink(&self, target: &str, path: &str) -> Answer<()> {
        plain(std::os::unix::fs::symlink(target, self.at(path)))
    }

    fn link(&self, old: &str, new: &str) -> Answer<()> {
        plain(fs::hard_link(self.at(old), self.at(new)))
    }

    fn chmod(&self, path: &str, mode: u32) -> Answer<()> {
        plain(fs::set_permissions(self.at(path), fs::Permissions::from_mode(mode)))
    }

    fn read_link(&self, path: &str) -> Answer<Vec<u8>> {
        Ok(plain(fs::read_link(self.at(path)))?.as_os_str().as_bytes().to_vec())
    }

    fn list(&self, path: &str) -> Answer<Vec<String>> {
        let entries = plain(fs::read_dir(self.at(path)))?;
        let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().to_string_lossy().into_owned();
        let mut names: Vec<String> = entries.map(name).collect();
        names.sort();
        Ok(names)
    }

    fn stat(&self, path: &str) -> Answer<(u32, u64)> {
        let metadata = plain(fs::symlink_metadata(self.at(path)))?;
        Ok((metadata.mode(), if metadata.is_dir() { 0 } else { metadata.size() }))
    }
}

struct NoBackings;

impl Backings for NoBackings {
    fn create(&self) -> drupe_appkernel_abi::Result<Arc<dyn Backing>> {
        Err(Errno::NOMEM)
    }
}

struct NoSpecials;

impl SpecialFiles for NoSpecials {
    fn open(&self, _: &Context, _: &Path, _: OpenFlags) -> drupe_appkernel_abi::Result<Arc<dyn File>> {
        Err(Errno::NXIO)
    }
}

pub fn tmpfs() -> Arc<Tmpfs> {
    let root = NewNode::new(FileType::Directory, 0o755, 0, 0);
    Tmpfs::new(Limits::default(), Arc::new(NoBackings), &root, Timestamp::ZERO).unwrap()
}

/// A file system of ours as the whole tree.
pub struct OurTree {
    namespace: Arc<MountNamespace>,
    root: Path,
}

impl OurTree {
    pub fn new(fs: Arc<dyn FileSystem>) -> Self {
        let namespace = MountNamespace::new(Mount::new(fs, b"test", 0));
        let root = namespace.root();
        Self { namespace, root }
    }

    /// An overlay of an empty layer over these, the topmost first.
    pub fn overlay(lowers: &[&Arc<Tmpfs>]) -> Self {
        let credentials = Credentials::root();
        let context = Context { credentials: &credentials, now: Timestamp::ZERO, pid: 1, session: 1 };
        let lowers = lowers.iter().map(|lower| lower.root()).collect();
        Self::new(Overlay::new(&context, tmpfs(), lowers).unwrap())
    }

    pub fn with<T>(&self, run: impl FnOnce(&View<'_>, &Path) -> drupe_appkernel_abi::Result<T>) -> Answer<T> {
        let credentials = Credentials::root();
        let context = Context { credentials: &credentials, now: Timestamp::ZERO, pid: 1, session: 1 };
        let namespace = &self.namespace;
        let view = View { context: &context, namespace, root: &self.root, umask: 0o022, specials: &NoSpecials };
        run(&view, &self.root).map_err(|error| error.0)
    }

    fn path(&self, path: &str, how: How) -> Answer<Path> {
        self.with(|view, root| view.walk(root, path.as_bytes(), how))
    }
}

impl Tree for OurTree {
    fn mkdir(&self, path: &str) -> Answer<()> {
        self.with(|view, root| view.mkdir(root, path.as_bytes(), 0o777).map(drop))
    }

    fn write(&self, path: &str, offset: u64, data: &[u8], cut: bool) -> Answer<()> {
        let flags = OpenFlags::WRONLY | OpenFlags::CREAT | if cut { OpenFlags::TRUNC } else { 0 };
        self.with(|view, root| {
            let file = view.open(root, path.as_bytes(), OpenFlags(flags), 0o666, 0)?;
            file.pwrite(view.context, offset, data).map(drop)
        })
    }

    fn read(&self, path: &str) -> Answer<Vec<u8>> {
        self.with(|view, root| {
            let file = view.open(root, path.as_bytes(), OpenFlags(0), 0, 0)?;
            let mut out = vec![0; 1 << 16];
            let count = file.read(view.context, &mut out)?;
            out.truncate(count);
            Ok(out)
        })
    }

    fn unlink(&self, path: &str) -> Answer<()> {
        self.with(|view, root| view.unlink(root, path.as_bytes()))
    }

    fn rmdir(&self, path: &str) -> Answer<()> {
        self.with(|view, root| view.rmdir(root, path.as_bytes()))
    }

    fn rename(&self, old: &str, new: &str) -> Answer<()> {
        let (old, new) = (old.as_bytes(), new.as_bytes());
        self.with(|view, root| view.rename((root, old), (root, new), RenameMode::Replace))
    }

    fn symlink(&self, target: &str, path: &str) -> Answer<()> {
        self.with(|view, root| view.symlink(target.as_bytes(), root, path.as_bytes()).map(drop))
    }

    fn link(&self, old: &str, new: &str) -> Answer<()> {
        let old = self.path(old, How::NO_FOLLOW)?;
        self.with(|view, root| view.link(&old, root, new.as_bytes()))
    }

    fn chmod(&self, path: &str, mode: u32) -> Answer<()> {
        let path = self.path(path, How::FOLLOW)?;
        self.with(|view, _| view.chmod(&path, mode))
    }

    fn read_link(&self, path: &str) -> Answer<Vec<u8>> {
        let path = self.path(path, How::NO_FOLLOW)?;
        self.with(|view, _| view.read_link(&path))
    }

    fn list(&self, path: &str) -> Answer<Vec<String>> {
        let flags = OpenFlags(OpenFlags::DIRECTORY);
        self.with(|view, root| {
            let directory = view.open(root, path.as_bytes(), flags, 0, 0)?;
            let mut names = Vec::new();
            loop {
                let before = names.len();
                directory.read_dir(&mut |entry| {
                    let room = names.len() < before + 3; // in small pieces, so that going on is tested too
                    if room {
                        names.push(String::from_utf8_lossy(entry.name).into_owned());
                    }
                    room
                })?;
                if names.len() == before {
                    break;
                }
            }
            names.retain(|name| name != "." && name != "..");
            names.sort();
            Ok(names)
        })
    }

    fn stat(&self, path: &str) -> Answer<(u32, u64)> {
        let metadata = self.path(path, How::NO_FOLLOW)?.inode().metadata().map_err(|error| error.0)?;
        let directory = metadata.is_directory();
        Ok((metadata.mode, if directory { 0 } else { metadata.size_bytes }))
    }
}
