//! Devices that every container has (null(4), full(4), random(4)), by their numbers; and the /dev that names them.

use std::any::Any;
use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};

use crate::dentry::Path;
use crate::file::{Context, File, Metadata};
use crate::inode::{InodeRef, NewNode};
use crate::ioctl;
use crate::kind::{make_device, split_device, FileType};
use crate::open::OpenFlags;
use crate::ops::SpecialFiles;
use crate::pipe;

const RNDGETENTCNT: u32 = 0x8004_5200;
const ENTROPY_BITS: i32 = 256;

/// Random bytes; the core implements it.
pub trait Entropy: Send + Sync {
    fn fill(&self, out: &mut [u8]);
}

/// Terminals as devices: the caller's own, the container's console, new pairs.
pub trait Terminals: Send + Sync {
    /// /dev/tty. ENXIO without a controlling terminal.
    fn controlling(&self, context: &Context) -> Result<Arc<dyn File>>;

    /// /dev/console. ENXIO.
    fn console(&self) -> Result<Arc<dyn File>>;

    /// /dev/ptmx. ENOSPC.
    fn new_master(&self, context: &Context) -> Result<Arc<dyn File>>;
}

/// A container without terminals.
pub struct NoTerminals;

impl Terminals for NoTerminals {
    fn controlling(&self, _: &Context) -> Result<Arc<dyn File>> {
        Err(Errno::NXIO)
    }

    fn console(&self) -> Result<Arc<dyn File>> {
        Err(Errno::NXIO)
    }

    fn new_master(&self, _: &Context) -> Result<Arc<dyn File>> {
        Err(Errno::NXIO)
    }
}

/// Opens devices by number, and FIFOs.
pub struct Devices {
    pub entropy: Arc<dyn Entropy>,
    pub terminals: Arc<dyn Terminals>,
}

impl SpecialFiles for Devices {
    fn open(&self, context: &Context, path: &Path, flags: OpenFlags) -> Result<Arc<dyn File>> {
        let inode = path.inode();
        match inode.kind() {
            FileType::Fifo => pipe::open_fifo(inode, flags),
            FileType::CharDevice => self.open_device(context, inode),
            _ => Err(Errno::NXIO),
        }
    }
}

impl Devices {
    fn open_device(&self, context: &Context, inode: &InodeRef) -> Result<Arc<dyn File>> {
        let kind = match split_device(inode.metadata()?.rdev) {
            (1, 3) => Kind::Null,
            (1, 5) => Kind::Zero,
            (1, 7) => Kind::Full,
            (1, 8 | 9) => Kind::Random(Arc::clone(&self.entropy)),
            (5, 0) => return self.terminals.controlling(context),
            (5, 1) => return self.terminals.console(),
            (5, 2) => return self.terminals.new_master(context),
            _ => return Err(Errno::NXIO),
        };
        Ok(Arc::new(MemoryDevice { kind, inode: Arc::clone(inode) }))
    }
}

enum Kind {
    Null,
    Zero,
    Full,
    Random(Arc<dyn Entropy>),
}

/// An open /dev/null, zero, full, random or urandom.
pub struct MemoryDevice {
    kind: Kind,
    inode: InodeRef,
}

impl MemoryDevice {
    /// Whether mmap(2) of it is memory without a file (/dev/zero).
    pub fn maps_zeros(&self) -> bool {
        matches!(self.kind, Kind::Zero)
    }
}

impl File for MemoryDevice {
    fn read(&self, _: &Context, _: u64, out: &mut [u8]) -> Result<usize> {
        match &self.kind {
            Kind::Null => return Ok(0),
            Kind::Zero | Kind::Full => out.fill(0),
            Kind::Random(entropy) => entropy.fill(out),
        }
        Ok(out.len())
    }

    fn write(&self, _: &Context, _: u64, data: &[u8]) -> Result<usize> {
        match self.kind {
            Kind::Full if !data.is_empty() => Err(Errno::NOSPC),
            _ => Ok(data.len()),
        }
    }

    fn append(&self, context: &Context, data: &[u8]) -> Result<(usize, u64)> {
        Ok((self.write(context, 0, data)?, 0))
    }

    fn can_seek(&self) -> bool {
        true
    }

    fn stays_at_start(&self) -> bool {
        true
    }

    fn size_bytes(&self) -> Result<u64> {
        Ok(0)
    }

    fn metadata(&self) -> Result<Metadata> {
        self.inode.metadata()
    }

    fn ioctl(&self, _: &Context, request: u32, _: u64, data: &mut Vec<u8>) -> Result<i64> {
        if request != RNDGETENTCNT || !matches!(self.kind, Kind::Random(_)) {
            return Err(Errno::NOTTY);
        }
        ioctl::put_i32(data, ENTROPY_BITS);
        Ok(0)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

const NODES: [(&[u8], u32, u32); 6] =
    [(b"null", 1, 3), (b"zero", 1, 5), (b"full", 1, 7), (b"random", 1, 8), (b"urandom", 1, 9), (b"tty", 5, 0)];

const LINKS: [(&[u8], &[u8]); 5] = [
    (b"fd", b"/proc/self/fd"),
    (b"stdin", b"/proc/self/fd/0"),
    (b"stdout", b"/proc/self/fd/1"),
    (b"stderr", b"/proc/self/fd/2"),
    (b"ptmx", b"pts/ptmx"),
];

const DIRECTORIES: [(&[u8], u32); 3] = [(b"pts", 0o755), (b"shm", 0o1777), (b"mqueue", 0o1777)];

/// Whether this is a device that is the same for everybody, and harms nobody: null, zero, full, random, urandom.
pub fn is_plain(number: u64) -> bool {
    [3, 5, 7, 8, 9].iter().any(|minor| make_device(1, *minor) == number)
}

/// Make the entries of a container's /dev in `root`, an empty directory that can hold devices (OCI runtime
/// specification, default devices and /dev symbolic links).
pub fn populate(context: &Context, root: &InodeRef) -> Result<()> {
    for (name, major, minor) in NODES {
        let node = NewNode::new(FileType::CharDevice, 0o666, 0, 0);
        root.create(context, name, &NewNode { device_number: make_device(major, minor), ..node })?;
    }
    for (name, target) in LINKS {
        root.create(context, name, &NewNode { target, ..NewNode::new(FileType::Symlink, 0o777, 0, 0) })?;
    }
    for (name, permissions) in DIRECTORIES {
        root.create(context, name, &NewNode::new(FileType::Directory, permissions, 0, 0))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipe::PipeEnd;
    use crate::testing::{Asker, Tree};
    use crate::walk::View;

    struct Sevens;

    impl Entropy for Sevens {
        fn fill(&self, out: &mut [u8]) {
            out.fill(7);
        }
    }

    fn with_devices(run: impl Fn(&View<'_>, &Tree)) {
        let (tree, asker) = (Tree::new(), Asker::root());
        let context = asker.context();
        populate(&context, tree.root.inode()).unwrap();
        let devices = Devices { entropy: Arc::new(Sevens), terminals: Arc::new(NoTerminals) };
        run(&View { specials: &devices, ..tree.view(&context) }, &tree);
    }

    #[test]
    fn devices_are_found_by_their_numbers() {
        with_devices(|view, tree| {
            let cases: [(&[u8], _, _); 4] = [
                (b"null", Ok(0), Ok(5)),
                (b"zero", Ok(9), Ok(5)),
                (b"full", Ok(9), Err(Errno::NOSPC)),
                (b"urandom", Ok(9), Ok(5)),
            ];
            for (name, read, write) in cases {
                let file = view.open(&tree.root, name, OpenFlags(OpenFlags::RDWR), 0, 0).unwrap();
                let mut out = [1; 9];
                assert_eq!(file.read(view.context, &mut out), read);
                assert_eq!(file.write(view.context, b"bytes"), write);
                assert_eq!(out[0], [1, 0, 0, 7][cases.iter().position(|case| case.0 == name).unwrap()]);
            }
            assert_eq!(view.open(&tree.root, b"tty", OpenFlags(0), 0, 0).err(), Some(Errno::NXIO));
        });
    }

    #[test]
    fn a_fifo_is_open_once_both_sides_were_there() {
        with_devices(|view, tree| {
            view.mknod(&tree.root, b"fifo", FileType::Fifo.mode_bits() | 0o644, 0).unwrap();
            let open = |flags| view.open(&tree.root, b"fifo", OpenFlags(flags), 0, 0);
            let is_open = |file: &crate::open::OpenFile| file.downcast::<PipeEnd>().unwrap().is_open();
            assert_eq!(open(OpenFlags::WRONLY | OpenFlags::NONBLOCK).err(), Some(Errno::NXIO));
            let reader = open(0).unwrap();
            assert!(!is_open(&reader));
            let writer = open(OpenFlags::WRONLY).unwrap();
            assert!(is_open(&reader) && is_open(&writer));
            writer.write(view.context, b"through").unwrap();
            drop(writer);
            let mut out = [0; 9];
            assert!(is_open(&reader));
            assert_eq!(reader.read(view.context, &mut out), Ok(7));
            assert_eq!(reader.read(view.context, &mut out), Ok(0));
        });
    }
}
