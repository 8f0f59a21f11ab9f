//! A container's tree of files: its root, and what is mounted in it, in the order given.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use drupe_appkernel_abi::Errno;
use drupe_appkernel_core::Kernel;
use drupe_appkernel_vfs::devices;
use drupe_appkernel_vfs::inode::{FileSystem, LinkTarget, NewNode};
use drupe_appkernel_vfs::mount::MS_RDONLY;
use drupe_appkernel_vfs::proc::{procfs, sysfs, Processes};
use drupe_appkernel_vfs::tmpfs::Tmpfs;
use drupe_appkernel_vfs::{Context, Credentials, FileType, How, Mount, MountNamespace, Path, View};
use drupe_packets::{errno_name, Failure, Outcome};

use crate::covers;
use crate::hostfs::Sharing;
use crate::pod::Pod;
use crate::settings::{DeviceOrder, MountOrder, What};

/// S_IFREG with the permissions of a new place for a file.
const EMPTY_FILE: u32 = 0o100_644;
/// As many links as one path may lead over (path_resolution(7)).
const LINKS_MAX: usize = 40;
/// S_IFCHR.
const CHARACTERS: u32 = 0o020_000;

/// What was asked for could not be made, and it was not the program's fault.
pub fn failed(what: &str, errno: Errno) -> Failure {
    Failure::new("EHELPER", format!("{what}: {}", errno_name(errno.0)))
}

/// What a container's files are at first: at a place below the shared directory, or an EROFS image.
pub enum Root {
    Shared(Vec<u8>),
    Image(OwnedFd),
}

/// Builds a tree, as root.
pub struct Builder<'a> {
    pod: &'a Pod,
    credentials: Credentials,
    namespace: Arc<MountNamespace>,
    root: Path,
    /// Of a snapshot: what lay in memory, by the number of the mount.
    saved: HashMap<usize, Arc<Tmpfs>>,
}

impl<'a> Builder<'a> {
    /// A tree of nothing but the root: a directory of the host, or an image that is kept as it is.
    pub fn new(pod: &'a Pod, root: Root) -> Outcome<Builder<'a>> {
        Builder::with(pod, root, HashMap::new())
    }

    /// The same, with what of a snapshot lay in memory.
    pub fn with(pod: &'a Pod, root: Root, mut saved: HashMap<usize, Arc<Tmpfs>>) -> Outcome<Builder<'a>> {
        let file_system = match (root, saved.remove(&0)) {
            (Root::Shared(place), _) => pod.of_host(&place, Sharing::Change),
            (Root::Image(fd), None) => pod.writable(fd),
            (Root::Image(fd), Some(upper)) => pod.written(fd, upper),
        };
        let namespace =
            MountNamespace::new(Mount::new(file_system.map_err(|errno| failed("root", errno))?, b"root", 0));
        let root = namespace.root();
        Ok(Builder { pod, credentials: Credentials::root(), namespace, root, saved })
    }

    /// Mount all of these; their places are made where they are missing.
    pub fn mount_all(&self, orders: Vec<MountOrder>) -> Outcome<()> {
        for (number, order) in (1..).zip(orders) {
            let name = String::from_utf8_lossy(&order.target).into_owned();
            let file_system = self.file_system(&order, number)?;
            let directory = file_system.root().kind() == FileType::Directory;
            let place = self.place(&order.target, directory);
            let place = place.map_err(|errno| failed(&format!("the place of the mount {name}"), errno))?;
            let mount = Mount::new(file_system, source(&order.what), order.flags);
            self.namespace.mount(mount, place).map_err(|errno| failed(&format!("mount {name}"), errno))?;
        }
        Ok(())
    }

    /// Make nodes of devices. EEXIST where something else is.
    pub fn make_devices(&self, devices: &[DeviceOrder]) -> Outcome<()> {
        for order in devices {
            let made = self.make_device(order);
            made.map_err(|errno| failed(&format!("device {}", String::from_utf8_lossy(&order.path)), errno))?;
        }
        Ok(())
    }

    fn make_device(&self, order: &DeviceOrder) -> drupe_appkernel_abi::Result<()> {
        let context = self.pod.context(&self.credentials);
        let view = self.view(&context);
        match view.walk(&self.root, &order.path, How::NO_FOLLOW) {
            Err(Errno::NOENT) => {}
            Ok(there) if there.inode().metadata()?.rdev == order.number => return Ok(()),
            Ok(_) => return Err(Errno::EXIST),
            Err(errno) => return Err(errno),
        }
        self.place_of(&view, way_to(&order.path), true, LINKS_MAX)?;
        let node = view.mknod(&self.root, &order.path, CHARACTERS | order.mode, order.number)?;
        view.chown(&node, Some(order.owner.0), Some(order.owner.1))
    }

    /// Hide the one, and keep the other from being changed.
    pub fn cover(&self, masked: &[Vec<u8>], protected: &[Vec<u8>]) -> Outcome<()> {
        let context = self.pod.context(&self.credentials);
        let view = self.view(&context);
        covers::protect(&view, protected).map_err(|errno| failed("a read-only path", errno))?;
        covers::mask(self.pod, &view, masked).map_err(|errno| failed("a masked path", errno))
    }

    fn view<'b>(&'b self, context: &'b Context<'b>) -> View<'b> {
        let (namespace, root, specials) = (&self.namespace, &self.root, self.pod.specials());
        View { context, namespace, root, umask: 0, specials }
    }

    /// Have a directory for the program to start in.
    pub fn make_directory(&self, path: &[u8]) -> Outcome<()> {
        let name = String::from_utf8_lossy(path).into_owned();
        let place = self.place(path, true).and_then(|place| match place.inode().kind() {
            FileType::Directory => Ok(()),
            _ => Err(Errno::NOTDIR),
        });
        place.map_err(|errno| failed(&format!("working directory {name}"), errno))
    }

    /// The tree; `read_only`: its root from now on.
    pub fn finish(self, read_only: bool) -> (Arc<MountNamespace>, Path) {
        if read_only {
            self.root.mount.set_flags(self.root.mount.flags() | MS_RDONLY);
        }
        (self.namespace, self.root)
    }

    fn file_system(&self, order: &MountOrder, number: usize) -> Outcome<Arc<dyn FileSystem>> {
        match (self.saved.get(&number), &order.what) {
            (Some(saved), What::Shared { .. }) => return Ok(self.pod.share_memory(Arc::clone(saved))),
            (Some(saved), What::Tmpfs { .. } | What::Devices) => return Ok(Arc::clone(saved) as Arc<dyn FileSystem>),
            _ => {}
        }
        let context = self.pod.context(&self.credentials);
        let made = |errno| failed("a file system", errno);
        let kernel: &Kernel = &self.pod.kernel;
        let source: Arc<dyn Processes> = kernel.census();
        Ok(match &order.what {
            What::Proc => procfs(source, context.now),
            What::Sysfs => sysfs(&source, context.now),
            What::Tmpfs { size_bytes, mode, owner } => {
                let root = NewNode::new(FileType::Directory, *mode, owner.0, owner.1);
                self.pod.tmpfs_of(&context, root, *size_bytes).map_err(made)?
            }
            What::Shared { size_bytes } => self.pod.shared_memory(&context, *size_bytes).map_err(made)?,
            What::Devices => {
                let dev = self.pod.tmpfs(&context, 0o755, None).map_err(made)?;
                devices::populate(&context, &dev.root()).map_err(made)?;
                dev
            }
            What::Terminals => self.pod.new_devpts(),
            What::Bind(place) => {
                let sharing = if order.flags & MS_RDONLY == 0 { Sharing::Change } else { Sharing::Read };
                let found = self.pod.of_host(place, sharing);
                found.map_err(|errno| failed(&format!("{} of the host", String::from_utf8_lossy(place)), errno))?
            }
        })
    }

    /// What is at a path; made, with what leads there, where nothing is: also where a link leads that leads nowhere yet, as
    /// the `/etc/resolv.conf` of many an image does.
    fn place(&self, path: &[u8], directory: bool) -> drupe_appkernel_abi::Result<Path> {
        let context = self.pod.context(&self.credentials);
        self.place_of(&self.view(&context), path, directory, LINKS_MAX)
    }

    fn place_of(
        &self,
        view: &View<'_>,
        path: &[u8],
        directory: bool,
        links: usize,
    ) -> drupe_appkernel_abi::Result<Path> {
        match view.walk(&self.root, path, How::FOLLOW) {
            Err(Errno::NOENT) => {}
            found => return found,
        }
        let way = way_to(path);
        if !way.is_empty() {
            self.place_of(view, way, true, links)?;
        }
        match view.walk(&self.root, path, How::NO_FOLLOW) {
            Ok(link) => {
                let links = links.checked_sub(1).ok_or(Errno::LOOP)?;
                let LinkTarget::Text(target) = link.inode().read_link()? else { return Err(Errno::NOENT) };
                self.place_of(view, &joined(way, &target), directory, links)
            }
            Err(Errno::NOENT) if directory => view.mkdir(&self.root, path, 0o755),
            Err(Errno::NOENT) => view.mknod(&self.root, path, EMPTY_FILE, 0),
            Err(errno) => Err(errno),
        }
    }
}

/// A path without its last name: that of the directory which holds it, empty for the root's.
fn way_to(path: &[u8]) -> &[u8] {
    let trimmed = path.iter().rposition(|byte| *byte != b'/').map_or(&path[..0], |last| &path[..=last]);
    trimmed.iter().rposition(|byte| *byte == b'/').map_or(&path[..0], |slash| &trimmed[..slash])
}

/// Where a link in the directory `way` leads.
fn joined(way: &[u8], target: &[u8]) -> Vec<u8> {
    match target.first() {
        Some(b'/') => target.to_vec(),
        _ => [way, b"/", target].concat(),
    }
}

fn source(what: &What) -> &'static [u8] {
    match what {
        What::Proc => b"proc",
        What::Sysfs => b"sysfs",
        What::Devices | What::Tmpfs { .. } => b"tmpfs",
        What::Shared { .. } => b"shm",
        What::Terminals => b"devpts",
        What::Bind(_) => b"host",
    }
}
