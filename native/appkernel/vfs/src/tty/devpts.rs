//! devpts: the slaves by number, and ptmx, whose opening makes a pair.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use drupe_appkernel_abi::{Errno, Result};

use super::pty::{Pty, Slave};
use super::{Jobs, SavedTerminal};
use crate::devices::Terminals;
use crate::file::{Context, File, Metadata};
use crate::inode::{Attachment, DirEntry, FileSystem, Inode, InodeRef};
use crate::kind::{make_device, FileType, SetAttributes, StatFs};
use crate::mount::anonymous_device;
use crate::open::OpenFlags;
use crate::sync::Mutex;

const MAGIC: u64 = 0x1cd1;
const MAX_TERMINALS: usize = 4096;
const ROOT_INODE: u64 = 1;
const PTMX_INODE: u64 = 2;

struct Shared {
    device: u64,
    jobs: Arc<dyn Jobs>,
    /// By number; what nobody has open is gone.
    terminals: Mutex<BTreeMap<u32, Weak<Pty>>>,
    console: Mutex<Weak<Pty>>,
}

impl Shared {
    fn terminal(&self, index: u32) -> Option<Arc<Pty>> {
        self.terminals.lock().get(&index).and_then(Weak::upgrade).filter(|pty| !pty.is_hung_up())
    }

    fn all(&self) -> Vec<Arc<Pty>> {
        let terminals = self.terminals.lock();
        let all: Vec<Arc<Pty>> = terminals.values().filter_map(Weak::upgrade).collect();
        drop(terminals);
        all
    }

    /// The next one, or that of a number. ENOSPC.
    fn new_terminal(&self, context: &Context, index: Option<u32>) -> Result<Arc<Pty>> {
        let mut terminals = self.terminals.lock();
        terminals.retain(|_, pty| pty.strong_count() > 0);
        let free = (0..).zip(terminals.keys().copied().chain([u32::MAX])).find(|(free, used)| free != used);
        let index = index.or(free.map(|(free, _)| free));
        let index = index.filter(|_| terminals.len() < MAX_TERMINALS).ok_or(Errno::NOSPC)?;
        let pty = Pty::new(context, index, self.device, Arc::clone(&self.jobs));
        terminals.insert(index, Arc::downgrade(&pty));
        Ok(pty)
    }

    fn of_session(&self, session: u32) -> Option<Arc<Pty>> {
        self.all().into_iter().find(|pty| session != 0 && pty.session() == session)
    }

    fn open_slave(&self, context: &Context, pty: &Arc<Pty>, flags: OpenFlags) -> Result<Arc<Slave>> {
        pty.open_slave(context, flags, self.of_session(context.session).is_none())
    }
}

/// The terminals of a container.
pub struct Devpts {
    shared: Arc<Shared>,
    root: Arc<Node>,
}

impl Devpts {
    pub fn new(jobs: Arc<dyn Jobs>) -> Arc<Self> {
        let (terminals, console) = (Mutex::default(), Mutex::default());
        let shared = Arc::new(Shared { device: anonymous_device(), jobs, terminals, console });
        let root = Node::new(&shared, What::Root);
        Arc::new(Self { shared, root })
    }

    /// Have /dev/console be this terminal's slave.
    pub fn set_console(&self, master: &super::Master) {
        *self.shared.console.lock() = Arc::downgrade(&master.pty);
    }

    /// All that somebody has open.
    pub fn terminals(&self) -> Vec<Arc<Pty>> {
        self.shared.all()
    }

    /// The terminal that was saved, be it that there is one of its number. ENOSPC, EINVAL.
    pub fn restore(&self, context: &Context, saved: &SavedTerminal) -> Result<Arc<Pty>> {
        let known = self.terminals().into_iter().find(|pty| pty.index == saved.index);
        let pty = known.map_or_else(|| self.shared.new_terminal(context, Some(saved.index)), Ok)?;
        pty.restore(context.now, saved)?;
        Ok(pty)
    }

    /// The leader of a session has ended: its terminal is free, and the jobs in front hear SIGHUP.
    pub fn leader_ended(&self, session: u32) {
        self.shared.of_session(session).iter().for_each(|pty| pty.release_session(session));
    }

    /// Device number and foreground group of a session's terminal, for /proc/PID/stat.
    pub fn of_session(&self, session: u32) -> Option<(u64, u32)> {
        let pty = self.shared.of_session(session)?;
        let foreground = pty.state.lock().foreground;
        Some((pty.metadata().rdev, foreground))
    }
}

impl Terminals for Devpts {
    fn controlling(&self, context: &Context) -> Result<Arc<dyn File>> {
        let pty = self.shared.of_session(context.session).ok_or(Errno::NXIO)?;
        Ok(pty.open_slave(context, OpenFlags(OpenFlags::NOCTTY), false)?)
    }

    fn console(&self) -> Result<Arc<dyn File>> {
        let pty = self.shared.console.lock().upgrade().ok_or(Errno::NXIO)?;
        let credentials = crate::Credentials::default();
        let context = Context { credentials: &credentials, now: crate::Timestamp::ZERO, pid: 0, session: 0 };
        Ok(pty.open_slave(&context, OpenFlags(OpenFlags::NOCTTY), false)?)
    }

    fn new_master(&self, context: &Context) -> Result<Arc<dyn File>> {
        Ok(self.shared.new_terminal(context, None)?.open_master())
    }
}

impl FileSystem for Devpts {
    fn name(&self) -> &str {
        "devpts"
    }

    fn as_any(&self) -> Option<&dyn Any> {
        Some(self)
    }

    fn root(&self) -> InodeRef {
        self.root.clone()
    }

    fn statfs(&self) -> Result<StatFs> {
        Ok(StatFs { magic: MAGIC, block_size_bytes: 4096, name_max_bytes: 255, ..StatFs::default() })
    }

    fn options(&self) -> String {
        ",gid=5,mode=620,ptmxmode=666".into()
    }
}

enum What {
    Root,
    Ptmx,
    Slave(Arc<Pty>),
}

struct Node {
    shared: Arc<Shared>,
    what: What,
    attachment: Attachment,
}

impl Node {
    fn new(shared: &Arc<Shared>, what: What) -> Arc<Self> {
        Arc::new(Self { shared: Arc::clone(shared), what, attachment: Attachment::default() })
    }
}

impl Inode for Node {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn metadata(&self) -> Result<Metadata> {
        let device = self.shared.device;
        Ok(match &self.what {
            What::Root => Metadata { device, inode: ROOT_INODE, links: 2, ..Metadata::new(FileType::Directory, 0o755) },
            What::Ptmx => {
                let rdev = make_device(5, 2);
                Metadata { device, inode: PTMX_INODE, rdev, ..Metadata::new(FileType::CharDevice, 0o666) }
            }
            What::Slave(pty) => pty.metadata(),
        })
    }

    fn kind(&self) -> FileType {
        match self.what {
            What::Root => FileType::Directory,
            _ => FileType::CharDevice,
        }
    }

    fn attachment(&self) -> &Attachment {
        &self.attachment
    }

    fn lookup(&self, name: &[u8]) -> Result<InodeRef> {
        if !matches!(self.what, What::Root) {
            return Err(Errno::NOTDIR);
        }
        if name == b"ptmx" {
            return Ok(Self::new(&self.shared, What::Ptmx));
        }
        let text = std::str::from_utf8(name).map_err(|_| Errno::NOENT)?;
        let index: u32 = text.parse().map_err(|_| Errno::NOENT)?;
        let pty = self.shared.terminal(index).filter(|pty| pty.index.to_string() == text).ok_or(Errno::NOENT)?;
        Ok(Self::new(&self.shared, What::Slave(pty)))
    }

    fn is_volatile(&self) -> bool {
        true
    }

    fn read_dir(&self, cookie: u64, sink: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Result<()> {
        let kind = FileType::CharDevice;
        if cookie < 1 && !sink(DirEntry { name: b"ptmx", inode: PTMX_INODE, kind, next_cookie: 1 }) {
            return Ok(());
        }
        for pty in self.shared.all().iter().filter(|pty| !pty.is_hung_up()) {
            let (name, next_cookie) = (pty.index.to_string(), u64::from(pty.index) + 2);
            let entry = DirEntry { name: name.as_bytes(), inode: pty.metadata().inode, kind, next_cookie };
            if next_cookie > cookie && !sink(entry) {
                break;
            }
        }
        Ok(())
    }

    fn set_attributes(&self, context: &Context, changes: &SetAttributes) -> Result<()> {
        let What::Slave(pty) = &self.what else { return Err(Errno::PERM) };
        pty.set_attributes(context.now, changes);
        Ok(())
    }

    fn open(&self, context: &Context, flags: OpenFlags) -> Result<Arc<dyn File>> {
        match &self.what {
            What::Root => Err(Errno::NXIO),
            What::Ptmx => Ok(self.shared.new_terminal(context, None)?.open_master()),
            What::Slave(pty) => Ok(self.shared.open_slave(context, pty, flags)?),
        }
    }
}
