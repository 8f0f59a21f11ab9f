//! Open files: collected while a kernel is saved, made again when it is restored.

use std::collections::HashMap;
use std::sync::Arc;

use drupe_appkernel_vfs::anonymous::{self, AnonymousInode};
use drupe_appkernel_vfs::directory::{DirectoryFile, PathFile};
use drupe_appkernel_vfs::event::{Epoll, EpollEvent, EventFd, SignalFd, TimerFd};
use drupe_appkernel_vfs::inode::NewNode;
use drupe_appkernel_vfs::inotify::Inotify;
use drupe_appkernel_vfs::pipe::{Pipe, PipeEnd};
use drupe_appkernel_vfs::saved::{SavedPipe, Watched};
use drupe_appkernel_vfs::socket::{LocalSocket, Numbers, SavedSocket};
use drupe_appkernel_vfs::tmpfs::{Leaf, Limits, TmpFile, Tmpfs};
use drupe_appkernel_vfs::{
    Backing, Context, Credentials, File, FileSystem, FileType, Mount, MountNamespace, OpenFile, OpenFlags, Path,
    Timestamp,
};

use super::queues::Queues;
use super::state::{Body, EpollItem, PipeFile, Place, Saved, SavedFile, SavedInotify};
use super::terminals::{Held, Terminals};
use super::{damaged, opened, Foreign, Pages, Refusal, Trees};
use crate::calls::pidfd::{Life, PidFd};
use crate::kernel::Kernel;
use crate::mqueue::MessageQueue;
use crate::task::Pid;

/// Open files while a kernel is saved, each with its number.
pub(super) struct Files<'a> {
    pub trees: &'a Trees<'a>,
    pub foreign: &'a dyn Foreign,
    pub(super) numbers: HashMap<u64, u32>,
    pub(super) found: Vec<Arc<OpenFile>>,
    pipe_numbers: HashMap<usize, u32>,
    pub pipes: Vec<SavedPipe>,
    leaf_numbers: HashMap<usize, u32>,
    pub leaves: Vec<Leaf>,
    socket_numbers: HashMap<usize, u32>,
    found_sockets: Vec<Arc<LocalSocket>>,
    pub sockets: Vec<(SavedSocket, Option<Place>)>,
    pub terminals: Terminals,
    pub queues: Queues,
}

impl Numbers for Files<'_> {
    fn socket(&mut self, socket: &Arc<LocalSocket>) -> u32 {
        *self.socket_numbers.entry(Arc::as_ptr(socket) as usize).or_insert_with(|| {
            self.found_sockets.push(Arc::clone(socket));
            self.found_sockets.len() as u32 - 1
        })
    }

    fn file(&mut self, file: &Arc<OpenFile>) -> u32 {
        self.number(file)
    }
}

impl<'a> Files<'a> {
    pub fn new(kernel: &Kernel, trees: &'a Trees<'a>, foreign: &'a dyn Foreign) -> Files<'a> {
        Files {
            trees,
            foreign,
            numbers: HashMap::new(),
            found: Vec::new(),
            pipe_numbers: HashMap::new(),
            pipes: Vec::new(),
            leaf_numbers: HashMap::new(),
            leaves: Vec::new(),
            socket_numbers: HashMap::new(),
            found_sockets: Vec::new(),
            sockets: Vec::new(),
            terminals: Terminals::of(trees),
            queues: Queues::named(kernel),
        }
    }

    pub fn number(&mut self, file: &Arc<OpenFile>) -> u32 {
        *self.numbers.entry(file.id()).or_insert_with(|| {
            self.found.push(Arc::clone(file));
            self.found.len() as u32 - 1
        })
    }

    /// All that were numbered, and those that these lead to.
    pub fn save(&mut self, kernel: &Kernel, pages: &mut Pages<'_>) -> Result<Vec<SavedFile>, Refusal> {
        let mut saved = Vec::new();
        loop {
            if let Some(file) = self.found.get(saved.len()).cloned() {
                saved.push(self.save_file(kernel, &file, pages)?);
            } else if let Some(socket) = self.found_sockets.get(self.sockets.len()).cloned() {
                let place = socket.bound().and_then(|path| self.trees.place(&path));
                let one = (socket.save(self), place);
                self.sockets.push(one);
            } else {
                return Ok(saved);
            }
        }
    }

    fn save_file(&mut self, kernel: &Kernel, file: &OpenFile, pages: &mut Pages<'_>) -> Result<SavedFile, Refusal> {
        let body = self.body(kernel, file, pages)?;
        let ids = file.metadata().map_or((0, 0), |metadata| (metadata.uid, metadata.gid));
        let (position, owner) = (file.position(), *file.owner.lock());
        Ok(SavedFile { flags: file.flags().0, position, owner, ids, lock: lock_of(file), body })
    }

    fn body(&mut self, kernel: &Kernel, file: &OpenFile, pages: &mut Pages<'_>) -> Result<Body, Refusal> {
        if let Some(saved) = self.foreign.save(file)? {
            return Ok(Body::Foreign(saved));
        }
        if let Some(end) = file.downcast::<PipeEnd>() {
            return self.pipe(file, end).map(Body::Pipe);
        }
        if let Some(event) = file.downcast::<EventFd>() {
            return Ok(Body::Event(event.save()));
        }
        if let Some(timer) = file.downcast::<TimerFd>() {
            return Ok(Body::Timer(timer.save()));
        }
        if let Some(epoll) = file.downcast::<Epoll>() {
            let item = |watched: Watched| EpollItem {
                fd: watched.fd,
                file: self.number(&watched.file),
                events: watched.wanted.events,
                data: watched.wanted.data,
                disarmed: watched.disarmed,
            };
            return Ok(Body::Epoll(epoll.save().into_iter().map(item).collect()));
        }
        if let Some(inotify) = file.downcast::<Inotify>() {
            return self.notices(inotify).map(Body::Inotify);
        }
        if let Some(process) = file.downcast::<PidFd>() {
            return Ok(Body::Process(process.pid));
        }
        if let Some(signals) = file.downcast::<SignalFd>() {
            let pid = kernel.owner_of_signals(signals).ok_or("a signalfd whose maker has ended")?;
            return Ok(Body::Signals((signals.mask(), pid)));
        }
        if let Some(socket) = file.downcast::<LocalSocket>() {
            let shared = socket.shared().map_err(|_| "a socket that is gone")?;
            return Ok(Body::Socket(self.socket(&shared)));
        }
        if let Some(queue) = file.downcast::<MessageQueue>() {
            return Ok(Body::Queue(self.queues.number(queue)));
        }
        if let Some(end) = self.terminals.end(self.trees, file)? {
            return Ok(Body::Terminal(end));
        }
        self.with_path(file, pages)
    }

    fn notices(&self, inotify: &Inotify) -> Result<SavedInotify, Refusal> {
        let (next, watched, events) = inotify.save();
        let place = |path: &Path| {
            let name = || String::from_utf8_lossy(&path.dentry.name()).into_owned();
            self.trees.place(path).ok_or_else(|| format!("a watch (inotify) on {}, which was removed", name()))
        };
        let watches = watched.iter().map(|(descriptor, mask, path)| Ok((*descriptor, *mask, place(path)?)));
        Ok(SavedInotify { next, watches: watches.collect::<Result<_, Refusal>>()?, events })
    }

    fn with_path(&mut self, file: &OpenFile, pages: &mut Pages<'_>) -> Result<Body, Refusal> {
        let path = file.path().ok_or("an open file without a place")?;
        let name = path.dentry.name();
        let text = String::from_utf8_lossy(&name).into_owned();
        if path.mount.is_internal() {
            return Err(format!("an open file of the kind {text}"));
        }
        if let Some(place) = self.trees.place(path) {
            return Ok(Body::Named(place));
        }
        let Some(memory) = file.downcast::<TmpFile>() else {
            return Err(format!("the open file {text}, which was removed"));
        };
        let node = memory.node();
        let key = Arc::as_ptr(node) as usize;
        if !self.leaf_numbers.contains_key(&key) {
            let leaf = node.save(&mut |bytes| pages.append(bytes));
            self.leaves.push(leaf.map_err(|errno| format!("the file {text}: {errno}"))?);
            self.leaf_numbers.insert(key, self.leaves.len() as u32 - 1);
        }
        Ok(Body::Nameless((self.leaf_numbers[&key], name)))
    }

    fn pipe(&mut self, file: &OpenFile, end: &PipeEnd) -> Result<PipeFile, Refusal> {
        let pipes = &mut self.pipes;
        let pipe = *self.pipe_numbers.entry(Arc::as_ptr(end.pipe()) as usize).or_insert_with(|| {
            pipes.push(end.pipe().save());
            pipes.len() as u32 - 1
        });
        let path = file.path().filter(|path| !path.mount.is_internal());
        let place = match path {
            None => None,
            Some(path) => Some(self.trees.place(path).ok_or("a FIFO that was removed while it is open")?),
        };
        Ok(PipeFile { pipe, end: end.save(), place })
    }
}

/// Its flock.
fn lock_of(file: &OpenFile) -> Option<bool> {
    let (_, whole) = file.path()?.inode().attachment().locks.held();
    whole.iter().find(|(id, _)| *id == file.id()).map(|(_, exclusive)| *exclusive)
}

/// What files are made again from.
pub(super) struct Maker<'a> {
    pub trees: &'a Trees<'a>,
    pub foreign: &'a dyn Foreign,
    pipes: Vec<(Arc<Pipe>, Option<Path>)>,
    leaves: Vec<Path>,
    sockets: Vec<Arc<LocalSocket>>,
    terminals: Held,
    queues: Vec<Arc<MessageQueue>>,
}

impl<'a> Maker<'a> {
    pub fn new(
        kernel: &mut Kernel,
        trees: &'a Trees<'a>,
        foreign: &'a dyn Foreign,
        memory: &'a dyn Backing,
        saved: &Saved,
    ) -> Result<Maker<'a>, Refusal> {
        let begun = |(socket, _): &(SavedSocket, _)| LocalSocket::begin(&kernel.network, socket);
        let sockets = saved.sockets.iter().map(begun).collect::<drupe_appkernel_abi::Result<Vec<_>>>();
        let sockets = sockets.map_err(|_| damaged("a socket"))?;
        let pipes =
            saved.pipes.iter().cloned().map(|pipe| Ok((Pipe::restore(pipe).map_err(|_| damaged("a pipe"))?, None)));
        let pipes = pipes.collect::<Result<Vec<_>, Refusal>>()?;
        let leaves = saved.leaves.iter().map(|leaf| nameless(kernel, leaf, memory)).collect::<Result<Vec<_>, _>>()?;
        let (terminals, queues) =
            (Held::restore(kernel, trees, &saved.terminals)?, kernel.restore_queues(&saved.queues)?);
        Ok(Maker { trees, foreign, pipes, leaves, sockets, terminals, queues })
    }

    /// All but what epoll instances watch, which may be any of them.
    pub fn make(&mut self, kernel: &mut Kernel, saved: &SavedFile) -> Result<Arc<OpenFile>, Refusal> {
        let credentials = Credentials::new(saved.ids.0, saved.ids.1, Credentials::root().capabilities);
        let now = kernel.host.now(drupe_appkernel_vfs::ClockId::Realtime);
        let context = Context { credentials: &credentials, now, pid: 0, session: 0 };
        let flags = OpenFlags(saved.flags);
        let event = |file: Arc<dyn File>, label: &str| anonymous::open(&context, file, label, flags);
        let made = match &saved.body {
            Body::Foreign(words) => {
                let made = self.foreign.restore(words)?;
                made.set_flags(saved.flags);
                made
            }
            Body::Named(place) => {
                kernel.show_processes(self.trees.get(place.namespace)?, place.mount);
                let path = self.trees.find(place)?;
                let file = open_again(kernel, &context, &path, flags);
                opened(file.map_err(|errno| format!("{}: {errno}", super::shown(place)))?, Some(path), saved.flags)
            }
            Body::Pipe(pipe) => self.pipe(&context, pipe, saved.flags)?,
            Body::Event(state) => event(EventFd::restore(state), "eventfd"),
            Body::Timer(state) => {
                let timer = TimerFd::restore(state, kernel.timers.clone()).map_err(|_| damaged("a timer"))?;
                event(timer, "timerfd")
            }
            Body::Epoll(_) => event(Epoll::new(), "eventpoll"),
            Body::Inotify(saved) => event(self.notices(saved)?, "inotify"),
            Body::Process(pid) => event(kernel.pidfd_again(*pid), "pidfd"),
            Body::Signals((mask, pid)) => event(kernel.signalfd_again(*mask, *pid)?, "signalfd"),
            Body::Socket(number) => {
                let socket = self.sockets.get(*number as usize).ok_or_else(|| damaged("a socket that is not there"))?;
                Arc::clone(socket).open(&context, flags)
            }
            Body::Queue(number) => {
                let queue = self.queues.get(*number as usize).ok_or_else(|| damaged("a queue that is not there"))?;
                event(Arc::clone(queue) as _, "mqueue")
            }
            Body::Terminal(end) => self.terminals.end(self.trees, end, saved.flags)?,
            Body::Nameless((number, name)) => self.nameless(&context, *number, name, flags)?,
        };
        made.set_position(saved.position);
        *made.owner.lock() = saved.owner;
        if let (Some(exclusive), Some(path)) = (saved.lock, made.path()) {
            let locked = path.inode().attachment().locks.flock(made.id(), exclusive);
            locked.map_err(|_| damaged("locks that exclude one another"))?;
        }
        Ok(made)
    }

    fn notices(&self, saved: &SavedInotify) -> Result<Arc<dyn File>, Refusal> {
        let inotify = Inotify::new();
        let place = |(descriptor, mask, place): &(i32, u32, Place)| Ok((*descriptor, *mask, self.trees.find(place)?));
        let watched = saved.watches.iter().map(place).collect::<Result<Vec<_>, Refusal>>()?;
        let done = inotify.restore(saved.next, &watched, &saved.events);
        done.map_err(|errno| damaged(&format!("watches of files: {errno}")))?;
        Ok(inotify)
    }

    /// What sockets hold, and what they are to one another, once all files are made.
    pub fn settle_sockets(&self, saved: &Saved, files: &[Arc<OpenFile>]) -> Result<(), Refusal> {
        for (socket, (saved, place)) in self.sockets.iter().zip(&saved.sockets) {
            let bound = place.as_ref().map(|place| self.trees.find(place)).transpose()?;
            let done = socket.restore(saved, &self.sockets, files, bound);
            done.map_err(|errno| damaged(&format!("a socket: {errno}")))?;
        }
        Ok(())
    }

    fn pipe(&mut self, context: &Context, saved: &PipeFile, flags: u32) -> Result<Arc<OpenFile>, Refusal> {
        let (pipe, known) =
            self.pipes.get_mut(saved.pipe as usize).ok_or_else(|| damaged("a pipe that is not there"))?;
        let path = match (&saved.place, &known) {
            (_, Some(path)) => path.clone(),
            (Some(place), None) => {
                let path = self.trees.find(place)?;
                if path.inode().kind() != FileType::Fifo {
                    return Err(format!("{} is no FIFO any more", super::shown(place)));
                }
                *path.inode().attachment().object.lock() = Some(Arc::clone(pipe) as _);
                path
            }
            (None, None) => {
                let inode = AnonymousInode::new(context, FileType::Fifo, 0o600);
                let path = inode.path(&format!("pipe:[{}]", inode.number()));
                *path.inode().attachment().object.lock() = Some(Arc::clone(pipe) as _);
                path
            }
        };
        *known = Some(path.clone());
        let end = PipeEnd::restore(pipe, path.inode(), &saved.end).map_err(|_| damaged("an end of a pipe"))?;
        Ok(opened(end, Some(path), flags))
    }

    fn nameless(
        &self,
        context: &Context,
        number: u32,
        name: &[u8],
        flags: OpenFlags,
    ) -> Result<Arc<OpenFile>, Refusal> {
        let path = self.leaves.get(number as usize).ok_or_else(|| damaged("a file that is not there"))?;
        let file = path.inode().open(context, flags).map_err(|_| damaged("a file without a name"))?;
        let dentry = path.mount.root().unnamed(Arc::clone(path.inode()), name);
        Ok(opened(file, Some(Path::new(Arc::clone(&path.mount), dentry)), flags.0))
    }
}

/// A file in memory that nothing leads to, in a file system of its own.
fn nameless(kernel: &Kernel, leaf: &Leaf, memory: &dyn Backing) -> Result<Path, Refusal> {
    let root = NewNode::new(FileType::Directory, 0o755, 0, 0);
    let home = Tmpfs::new(Limits::default(), kernel.host.backings(), &root, Timestamp::ZERO);
    let made = home.and_then(|home| Ok((home.restore_leaf(leaf, memory)?, home)));
    let (node, home) = made.map_err(|errno| format!("a file in memory: {errno}"))?;
    let mount = Mount::new(home as Arc<dyn FileSystem>, b"memfd", 0);
    let dentry = mount.root().unnamed(node, b"");
    Ok(Path::new(mount, dentry))
}

/// Open a place with the flags that a file had, as who had the right to.
fn open_again(
    kernel: &Kernel,
    context: &Context,
    path: &Path,
    flags: OpenFlags,
) -> drupe_appkernel_abi::Result<Arc<dyn File>> {
    let inode = path.inode();
    match inode.kind() {
        _ if flags.has(OpenFlags::PATH) => Ok(PathFile::open(path.clone())),
        FileType::Directory => Ok(DirectoryFile::open(path.clone())),
        FileType::CharDevice => kernel.specials.open(context, path, flags),
        _ => inode.open(context, flags),
    }
}

/// Have epoll instances watch what they watched.
pub(super) fn watch_again(saved: &[SavedFile], made: &[Arc<OpenFile>]) -> Result<(), Refusal> {
    for (saved, file) in saved.iter().zip(made) {
        let (Body::Epoll(items), Some(epoll)) = (&saved.body, file.downcast::<Epoll>()) else { continue };
        for item in items {
            let watched = made.get(item.file as usize).ok_or_else(|| damaged("a watched file that is not there"))?;
            let wanted = EpollEvent { events: item.events, data: item.data };
            let item = Watched { fd: item.fd, file: Arc::clone(watched), wanted, disarmed: item.disarmed };
            epoll.restore(&item).map_err(|errno| damaged(&format!("what epoll watches: {errno}")))?;
        }
    }
    Ok(())
}

impl Kernel {
    /// If the mount is a procfs: have it show processes as one who sees this tree would see them.
    fn show_processes(&mut self, tree: &Arc<MountNamespace>, mount: u32) {
        let mounts = tree.mounts();
        let is_proc = mounts.get(mount as usize).is_some_and(|mount| mount.file_system().name() == "proc");
        let mut all = self.tasks.processes.values();
        let who = all.find(|process| process.exit.is_none() && Arc::ptr_eq(&process.namespace, tree));
        if let (true, Some(pid)) = (is_proc, who.map(|process| process.pid)) {
            self.take_census(pid, true);
        }
    }

    /// Who has made a signalfd.
    fn owner_of_signals(&self, file: &SignalFd) -> Option<Pid> {
        let mut all = self.tasks.processes.values();
        all.find(|process| process.pending_set.as_ref().is_some_and(|set| file.is_of(set))).map(|process| process.pid)
    }

    fn pidfd_again(&self, pid: Pid) -> Arc<dyn File> {
        let life = self.tasks.processes.get(&pid).map(|process| Arc::clone(&process.life));
        let over = || {
            let life = Arc::new(Life::default());
            life.end();
            life
        };
        Arc::new(PidFd::new(pid, life.unwrap_or_else(over)))
    }

    fn signalfd_again(&mut self, mask: u64, pid: Pid) -> Result<Arc<dyn File>, Refusal> {
        let process = self.tasks.processes.get_mut(&pid).ok_or_else(|| damaged("a signalfd of no process"))?;
        let set = Arc::clone(process.pending_set.get_or_insert_with(Arc::default));
        Ok(SignalFd::new(mask, set, process.signals.clone()))
    }
}
