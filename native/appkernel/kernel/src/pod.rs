//! A pod put together: the platform, the kernel, a container's tree of files.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use drupe_appkernel_abi::{Errno, Result};
use drupe_appkernel_core::jobs::Board;
use drupe_appkernel_core::platform::Platform;
use drupe_appkernel_core::{Host, Kernel};
use drupe_appkernel_erofs::{Erofs, Image};
use drupe_appkernel_hostsys::files;
use drupe_appkernel_hostsys::identity::Identity;
use drupe_appkernel_vfs::devices::{self, Devices};
use drupe_appkernel_vfs::inode::{FileSystem, NewNode};
use drupe_appkernel_vfs::mount::{MS_NODEV, MS_NOSUID};
use drupe_appkernel_vfs::overlay::Overlay;
use drupe_appkernel_vfs::proc::{procfs, sysfs, Processes};
use drupe_appkernel_vfs::tmpfs::{Limits, Tmpfs};
use drupe_appkernel_vfs::{
    ClockId, Context, Credentials, FdTable, FileType, How, Mount, MountNamespace, Path, SpecialFiles, Timestamp, View,
};

use crate::choice::Choice;
use crate::hostfs::{HostDirectory, Sharing};
use crate::machine::{errno, HostEntropy, Machine, Owned};
use crate::streams::Stream;
use crate::terminal::Console;

const RDONLY: u32 = 0;
const WRONLY: u32 = 1;
/// As Linux counts a tmpfs's inodes: one for each page of memory that it may have.
const BYTES_PER_INODE: u64 = 4096;
/// Directories that get a tmpfs of their own, if they are there: mode.
const SCRATCH: [(&[u8], u32); 4] = [(b"/tmp", 0o1777), (b"/var/tmp", 0o1777), (b"/run", 0o755), (b"/dev/shm", 0o1777)];

/// Place, source, what is mounted, its flags.
type PseudoMount<'a> = (&'a [u8], &'a [u8], Arc<dyn FileSystem>, u32);

/// A kernel and what it stands on.
pub struct Pod {
    pub kernel: Kernel,
    pub machine: Arc<Machine>,
    /// What of the host containers may be given lies below.
    pub share: Option<OwnedFd>,
    specials: Arc<dyn SpecialFiles>,
    terminals: Arc<Board>,
    shared_memory: OnceLock<Arc<dyn FileSystem>>,
}

impl Pod {
    /// Start the platform and an empty kernel. `identity`: who the stubs are (None: this process's user).
    pub fn start(machine: Machine, choice: &Choice, identity: Option<&Identity>) -> io::Result<Pod> {
        let platform = choice.start(&machine, identity)?;
        Ok(Pod::on(platform, machine))
    }

    /// As `start`, on a platform that is there.
    pub fn on(platform: Box<dyn Platform>, machine: Machine) -> Pod {
        let machine = Arc::new(machine);
        let entropy = Arc::new(HostEntropy);
        let terminals = Board::new();
        let specials: Arc<dyn SpecialFiles> = Arc::new(Devices { entropy, terminals: terminals.clone() });
        let host: Arc<dyn Host> = machine.clone();
        let mut kernel = Kernel::new(platform, host, Arc::clone(&specials));
        kernel.set_terminals(Arc::clone(&terminals));
        Pod { kernel, machine, share: None, specials, terminals, shared_memory: OnceLock::new() }
    }

    /// A container's files: its root, with fresh /dev and scratch directories.
    pub fn mount(&self, image: Arc<dyn FileSystem>) -> Result<(Arc<MountNamespace>, Path)> {
        let root_user = Credentials::root();
        let root = self.over(image)?;
        let namespace = MountNamespace::new(Mount::new(root, b"root", 0));
        let root = namespace.root();
        let context = self.context(&root_user);
        let view =
            View { context: &context, namespace: &namespace, root: &root, umask: 0, specials: self.specials.as_ref() };
        if let Ok(place) = view.walk(&root, b"/dev", How::FOLLOW) {
            let dev = self.tmpfs(&context, 0o755, None)?;
            devices::populate(&context, &dev.root())?;
            namespace.mount(Mount::new(dev, b"dev", MS_NOSUID), place)?;
        }
        let source: Arc<dyn Processes> = self.kernel.census();
        let pseudo: [PseudoMount<'_>; 3] = [
            (b"/proc", b"proc", procfs(Arc::clone(&source), context.now), MS_NODEV),
            (b"/sys", b"sysfs", sysfs(&source, context.now), MS_NODEV),
            (b"/dev/pts", b"devpts", self.terminals.new_devpts(), 0),
        ];
        for (path, name, file_system, flags) in pseudo {
            if let Ok(place) = view.walk(&root, path, How::FOLLOW) {
                namespace.mount(Mount::new(file_system, name, MS_NOSUID | flags), place)?;
            }
        }
        for (path, mode) in SCRATCH {
            if let Ok(place) = view.walk(&root, path, How::FOLLOW) {
                let scratch = self.tmpfs(&context, mode, None)?;
                namespace.mount(Mount::new(scratch, b"tmpfs", MS_NOSUID | MS_NODEV), place)?;
            }
        }
        Ok((namespace, root))
    }

    /// A terminal for a container, which nobody is attached to; `is_main`: its /dev/console.
    pub fn console(&self, namespace: &MountNamespace, root: &Path, is_main: bool) -> Result<Arc<Console>> {
        let console = Console::open(namespace, root, self.specials.as_ref(), &self.machine.watched)?;
        if is_main {
            console.make_link(namespace, root, self.specials.as_ref())?;
        }
        Ok(console)
    }

    /// The terminals of one more container.
    pub fn new_devpts(&self) -> Arc<dyn FileSystem> {
        self.terminals.new_devpts()
    }

    /// A file system of its own; without a size it has half of the memory, as Linux makes one.
    pub fn tmpfs(&self, context: &Context<'_>, mode: u32, size_bytes: Option<u64>) -> Result<Arc<Tmpfs>> {
        self.tmpfs_of(context, NewNode::new(FileType::Directory, mode, 0, 0), size_bytes)
    }

    /// The same with this directory as its root.
    pub fn tmpfs_of(&self, context: &Context<'_>, root: NewNode<'_>, size_bytes: Option<u64>) -> Result<Arc<Tmpfs>> {
        let half = self.machine.memory_bytes().0 / 2;
        let limits = Limits { size_bytes: size_bytes.unwrap_or(half), inodes: half / BYTES_PER_INODE };
        Tmpfs::new(limits, self.machine.backings(), &root, context.now)
    }

    /// The /dev/shm that all containers have in common.
    pub fn shared_memory(&self, context: &Context<'_>, size_bytes: u64) -> Result<Arc<dyn FileSystem>> {
        if let Some(known) = self.shared_memory.get() {
            return Ok(Arc::clone(known));
        }
        let made: Arc<dyn FileSystem> = self.tmpfs(context, 0o1777, Some(size_bytes))?;
        Ok(Arc::clone(self.shared_memory.get_or_init(|| made)))
    }

    /// A directory or file of the host, at this place below the shared directory.
    pub fn of_host(&self, place: &[u8], sharing: Sharing) -> Result<Arc<dyn FileSystem>> {
        let share = self.share.as_ref().ok_or(Errno::NOENT)?.as_fd();
        let kind = files::below(share, place, libc::O_PATH).and_then(|fd| files::stat(fd.as_fd(), b""));
        let kind = FileType::from_mode(kind.map_err(errno)?.mode);
        let flags = match (kind, sharing) {
            (Some(FileType::Directory), _) => libc::O_DIRECTORY,
            (Some(FileType::Regular), Sharing::Change) => libc::O_RDWR,
            (Some(FileType::Regular), _) => libc::O_RDONLY,
            _ => return Err(Errno::NOTSUP),
        };
        Ok(HostDirectory::new(files::below(share, place, flags).map_err(errno)?, sharing)?)
    }

    /// The root of a container: what is written to it stays in this kernel's memory.
    pub fn writable(&self, root: OwnedFd) -> Result<Arc<dyn FileSystem>> {
        self.over(file_system_of(root)?)
    }

    /// The same, with what had been written to it.
    pub fn written(&self, root: OwnedFd, upper: Arc<Tmpfs>) -> Result<Arc<dyn FileSystem>> {
        let root_user = Credentials::root();
        let image = file_system_of(root)?;
        Ok(Overlay::new(&self.context(&root_user), upper, vec![image.root()])?)
    }

    /// Have containers share this /dev/shm.
    pub fn share_memory(&self, made: Arc<Tmpfs>) -> Arc<dyn FileSystem> {
        Arc::clone(self.shared_memory.get_or_init(|| made))
    }

    fn over(&self, image: Arc<dyn FileSystem>) -> Result<Arc<dyn FileSystem>> {
        let root = Credentials::root();
        let context = self.context(&root);
        let upper = self.tmpfs(&context, 0o755, None)?;
        Ok(Overlay::new(&context, upper, vec![image.root()])?)
    }

    pub fn specials(&self) -> &dyn SpecialFiles {
        self.specials.as_ref()
    }

    pub fn now(&self, clock: ClockId) -> Timestamp {
        self.machine.now(clock)
    }

    /// What is at a path of a container's, as root.
    pub fn walk(&self, namespace: &MountNamespace, root: &Path, path: &[u8]) -> Result<Path> {
        let credentials = Credentials::root();
        let context = self.context(&credentials);
        View { context: &context, namespace, root, umask: 0, specials: self.specials() }.walk(root, path, How::FOLLOW)
    }

    pub fn context<'a>(&self, credentials: &'a Credentials) -> Context<'a> {
        Context { credentials, now: self.machine.now(ClockId::Realtime), pid: 0, session: 0 }
    }

    /// Standard streams from descriptors of this process.
    pub fn streams(&self, streams: [OwnedFd; 3]) -> Result<FdTable> {
        let credentials = Credentials::root();
        let context = self.context(&credentials);
        let mut table = FdTable::new();
        for (fd, access) in streams.into_iter().zip([RDONLY, WRONLY, WRONLY]) {
            let file = Stream::open(&context, fd, access, &self.machine.watched)?;
            table.insert(file, false, 0, 3)?;
        }
        Ok(table)
    }
}

/// The file system at a path of the host: a directory, or an EROFS image.
pub fn root_at(path: &[u8]) -> Result<Arc<dyn FileSystem>> {
    file_system_of(files::open_path(path, 0).map_err(errno)?)
}

fn file_system_of(fd: OwnedFd) -> Result<Arc<dyn FileSystem>> {
    let stat = files::stat(fd.as_fd(), b"").map_err(errno)?;
    match FileType::from_mode(stat.mode) {
        Some(FileType::Directory) => Ok(HostDirectory::new(fd, Sharing::Image)?),
        Some(FileType::Regular) => {
            let size = usize::try_from(stat.size_bytes).map_err(|_| Errno::FBIG)?;
            let bytes = files::map(fd.as_fd(), size).map_err(errno)?;
            Ok(Erofs::new(Image::open(Arc::new(bytes))?, Arc::new(Owned(fd)))?)
        }
        _ => Err(Errno::NOTDIR),
    }
}
