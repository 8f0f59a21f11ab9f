//! A container's terminal as the host holds it: what is typed goes in, what is shown comes out, each only as fast as the
//! other side takes it.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};
use drupe_appkernel_hostsys::{files, poll};
use drupe_appkernel_vfs::kind::SetAttributes;
use drupe_appkernel_vfs::sync::Mutex;
use drupe_appkernel_vfs::tty::Master;
use drupe_appkernel_vfs::{
    wait, Context, Credentials, Events, FdTable, MountNamespace, OpenFile, OpenFlags, Path, Registration, SpecialFiles,
    Timestamp, View, WaitQueue, Wake,
};

use crate::streams::Watched;

/// What is moved at once; a host that says that it can be written takes this much.
const CHUNK_BYTES: usize = 4096;

/// A descriptor of the host at one side.
struct End {
    fd: OwnedFd,
    word: Option<u64>,
    watched: Arc<Watched>,
    _registration: Registration,
    /// Read, and not yet taken by the other side.
    rest: Vec<u8>,
}

impl End {
    fn new(fd: OwnedFd, watched: &Arc<Watched>) -> End {
        let queue = WaitQueue::new();
        let registration = queue.register(wait::READABLE | wait::WRITABLE, Arc::new(Due(Arc::clone(watched))));
        let word = watched.add(fd.as_raw_fd(), &queue);
        End { fd, word, watched: Arc::clone(watched), _registration: registration, rest: Vec::new() }
    }

    fn is_ready(&self, events: Events) -> bool {
        self.word.is_none() || poll::ready(self.fd.as_raw_fd(), events) != 0
    }
}

impl Drop for End {
    fn drop(&mut self) {
        if let Some(word) = self.word {
            self.watched.remove(self.fd.as_raw_fd(), word);
        }
    }
}

/// Has consoles looked at before the kernel sleeps.
struct Due(Arc<Watched>);

impl Wake for Due {
    fn wake(&self, _: Events) {
        self.0.set_due();
    }
}

#[derive(Default)]
struct Ends {
    input: Option<End>,
    output: Option<End>,
}

/// The host's side of a container's terminal. While nobody is attached what is shown waits, and then who shows it.
pub struct Console {
    terminal: Arc<OpenFile>,
    slave: Arc<OpenFile>,
    ends: Mutex<Ends>,
    watched: Arc<Watched>,
    _registration: Registration,
}

impl Console {
    /// A new terminal in the devpts of a container. ENOENT when it has none.
    pub fn open(
        namespace: &MountNamespace,
        root: &Path,
        specials: &dyn SpecialFiles,
        watched: &Arc<Watched>,
    ) -> Result<Arc<Console>> {
        let credentials = Credentials::root();
        let context = context(&credentials);
        let view = View { context: &context, namespace, root, umask: 0, specials };
        let terminal = view.open(root, b"/dev/pts/ptmx", OpenFlags(OpenFlags::RDWR), 0, 0)?;
        let master = terminal.downcast::<Master>().ok_or(Errno::NXIO)?;
        master.unlock();
        let name = format!("/dev/pts/{}", master.index());
        let slave = view.open(root, name.as_bytes(), OpenFlags(OpenFlags::RDWR | OpenFlags::NOCTTY), 0, 0)?;
        let queue = terminal.file().queue().ok_or(Errno::NXIO)?;
        let registration = queue.register(wait::READABLE | wait::WRITABLE, Arc::new(Due(Arc::clone(watched))));
        let watched = Arc::clone(watched);
        let console = Arc::new(Console {
            terminal,
            slave,
            ends: Mutex::default(),
            watched: Arc::clone(&watched),
            _registration: registration,
        });
        watched.add_console(&console);
        Ok(console)
    }

    /// /dev/console of a container leads to this terminal, where its /dev can be written.
    pub fn make_link(&self, namespace: &MountNamespace, root: &Path, specials: &dyn SpecialFiles) -> Result<()> {
        let credentials = Credentials::root();
        let context = context(&credentials);
        let view = View { context: &context, namespace, root, umask: 0, specials };
        let target = format!("pts/{}", self.master()?.index());
        match view.symlink(target.as_bytes(), root, b"/dev/console") {
            Ok(_) | Err(Errno::ROFS) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    fn master(&self) -> Result<&Master> {
        self.terminal.downcast::<Master>().ok_or(Errno::NXIO)
    }

    /// The terminal as all three standard streams.
    pub fn streams(&self) -> Result<FdTable> {
        let mut table = FdTable::new();
        for _ in 0..3 {
            table.insert(Arc::clone(&self.slave), false, 0, 3)?;
        }
        Ok(table)
    }

    /// It is this user's, as login(1) has it.
    pub fn give_to(&self, uid: u32) -> Result<()> {
        let inode = self.slave.path().ok_or(Errno::NXIO)?.inode();
        let changes = SetAttributes { uid: Some(uid), ..SetAttributes::default() };
        inode.set_attributes(&context(&Credentials::root()), &changes)
    }

    /// Become the controlling terminal of a process that leads its session and has not run yet.
    pub fn lead(&self, pid: u32) {
        self.master().into_iter().for_each(|master| master.set_session(pid));
    }

    pub fn resize(&self, rows: u16, columns: u16) {
        self.master().into_iter().for_each(|master| master.set_window_size(rows, columns));
    }

    /// From now on what is read from `input` is typed, and what is shown is written to `output`. Who was attached is not any more.
    pub fn attach(&self, input: Option<OwnedFd>, output: Option<OwnedFd>) {
        let end = |fd| End::new(fd, &self.watched);
        let old = std::mem::replace(&mut *self.ends.lock(), Ends { input: input.map(end), output: output.map(end) });
        drop(old);
        self.watched.set_due();
    }

    /// Type the end of input (termios(3) VEOF), after what was typed so far.
    pub fn end_input(&self) {
        const END_OF_TRANSMISSION: &[u8] = &[4];
        let credentials = Credentials::root();
        self.pump();
        let _full = self.terminal.write(&context(&credentials), END_OF_TRANSMISSION);
    }

    /// Whether everything that was shown has been written, or nobody is there to whom.
    pub fn is_drained(&self) -> bool {
        let ends = self.ends.lock();
        ends.output.as_ref().is_none_or(|end| end.rest.is_empty() && self.terminal.poll(wait::IN) & wait::IN == 0)
    }

    /// Move what can be moved now. True: something was.
    pub fn pump(&self) -> bool {
        let mut ends = self.ends.lock();
        let typed = ends.input.as_mut().map(|end| self.pump_in(end));
        let shown = ends.output.as_mut().map(|end| self.pump_out(end));
        let lost = [
            typed.is_some_and(|moved| moved.is_none()).then(|| ends.input.take()).flatten(),
            shown.is_some_and(|moved| moved.is_none()).then(|| ends.output.take()).flatten(),
        ];
        drop(ends);
        drop(lost);
        typed.flatten() == Some(true) || shown.flatten() == Some(true)
    }

    /// None: the end is gone.
    fn pump_in(&self, end: &mut End) -> Option<bool> {
        let credentials = Credentials::root();
        let context = context(&credentials);
        let mut moved = false;
        loop {
            if end.rest.is_empty() {
                let has_room = self.terminal.poll(wait::OUT) != 0;
                if !has_room || !end.is_ready(wait::IN | wait::HUP) {
                    return Some(moved);
                }
                end.rest = vec![0; CHUNK_BYTES];
                match files::read(end.fd.as_fd(), &mut end.rest) {
                    Ok(0) | Err(_) => return None,
                    Ok(count) => end.rest.truncate(count),
                }
            }
            match self.terminal.write(&context, &end.rest) {
                Ok(count) => drop(end.rest.drain(..count)),
                Err(_) => return Some(moved),
            }
            moved = true;
        }
    }

    fn pump_out(&self, end: &mut End) -> Option<bool> {
        let credentials = Credentials::root();
        let context = context(&credentials);
        let mut moved = false;
        while end.is_ready(wait::OUT | wait::ERR) {
            if end.rest.is_empty() {
                let mut chunk = vec![0; CHUNK_BYTES];
                let Ok(count) = self.terminal.read(&context, &mut chunk) else { break };
                chunk.truncate(count);
                end.rest = chunk;
            }
            match files::write(end.fd.as_fd(), &end.rest) {
                Ok(count) => drop(end.rest.drain(..count)),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(_) => return None,
            }
            moved = true;
        }
        Some(moved)
    }
}

fn context(credentials: &Credentials) -> Context<'_> {
    Context { credentials, now: Timestamp::ZERO, pid: 0, session: 0 }
}
