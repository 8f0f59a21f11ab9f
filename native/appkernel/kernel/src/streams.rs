//! Descriptors that the pod was given (its standard streams) as files, and who is told when they are ready.

use std::any::Any;
use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use drupe_appkernel_abi::{Errno, Result};
use drupe_appkernel_hostsys::files;
use drupe_appkernel_hostsys::poll::{self, Poller, EDGE};
use drupe_appkernel_vfs::anonymous::AnonymousInode;
use drupe_appkernel_vfs::sync::Mutex;
use drupe_appkernel_vfs::{wait, Context, Events, File, FileType, Metadata, OpenFile, OpenFlags, WaitQueue};

use crate::machine::errno;
use crate::terminal::Console;

/// What a pipe takes at once without waiting, if it says that it can be written (pipe(7), PIPE_BUF).
const CHUNK_BYTES: usize = 4096;

/// Descriptors in the platform's poller, by their words.
pub struct Watched {
    poller: Arc<Poller>,
    next: AtomicU64,
    queues: Mutex<HashMap<u64, WaitQueue>>,
    consoles: Mutex<Vec<Weak<Console>>>,
    /// Consoles may have something to move.
    is_due: AtomicBool,
}

impl Watched {
    pub fn new(poller: Arc<Poller>) -> Arc<Watched> {
        let (queues, consoles) = (Mutex::default(), Mutex::default());
        Arc::new(Watched { poller, next: AtomicU64::new(1), queues, consoles, is_due: AtomicBool::new(false) })
    }

    pub fn set_due(&self) {
        self.is_due.store(true, Ordering::Relaxed);
    }

    pub fn add_console(&self, console: &Arc<Console>) {
        let mut consoles = self.consoles.lock();
        consoles.retain(|console| console.strong_count() > 0);
        consoles.push(Arc::downgrade(console));
    }

    /// Move what lies between terminals and the host. True: something was moved.
    pub fn pump(&self) -> bool {
        if !self.is_due.swap(false, Ordering::Relaxed) {
            return false;
        }
        let consoles: Vec<_> = self.consoles.lock().iter().filter_map(Weak::upgrade).collect();
        consoles.iter().filter(|console| console.pump()).count() > 0
    }

    pub fn poller(&self) -> Arc<Poller> {
        Arc::clone(&self.poller)
    }

    pub fn ready(&self, word: u64, events: Events) {
        let queue = self.queues.lock().get(&word).cloned();
        queue.into_iter().for_each(|queue| queue.wake(events));
    }

    /// Watch a descriptor; None: it is always ready, as regular files are.
    pub fn add(&self, fd: i32, queue: &WaitQueue) -> Option<u64> {
        let word = self.next.fetch_add(1, Ordering::Relaxed);
        self.queues.lock().insert(word, queue.clone());
        let wanted = wait::IN | wait::OUT | wait::RDHUP;
        match self.poller.add(fd, wanted | EDGE, word) {
            Ok(()) => Some(word),
            Err(_) => {
                self.queues.lock().remove(&word);
                None
            }
        }
    }

    /// Watch it no longer.
    pub fn remove(&self, fd: i32, word: u64) {
        self.queues.lock().remove(&word);
        let _gone = self.poller.remove(fd);
    }
}

/// A descriptor of the host as a file of ours.
pub struct Stream {
    fd: OwnedFd,
    queue: WaitQueue,
    watched: Arc<Watched>,
    word: Option<u64>,
    inode: Arc<AnonymousInode>,
}

impl Stream {
    /// `fd`, opened with this access (O_RDONLY, O_WRONLY, O_RDWR).
    pub fn open(context: &Context, fd: OwnedFd, access: u32, watched: &Arc<Watched>) -> Result<Arc<OpenFile>> {
        let stat = files::stat(fd.as_fd(), b"").map_err(errno)?;
        let kind = FileType::from_mode(stat.mode).unwrap_or(FileType::Fifo);
        let inode = AnonymousInode::new(context, kind, 0o620);
        let queue = WaitQueue::new();
        let word = watched.add(fd.as_raw_fd(), &queue);
        let watched = Arc::clone(watched);
        let file: Arc<dyn File> = Arc::new(Stream { fd, queue, watched, word, inode: Arc::clone(&inode) });
        inode.allow_reopen(&file);
        let path = inode.path(&format!("pipe:[{}]", inode.number()));
        Ok(OpenFile::new(file, Some(path), OpenFlags(access)))
    }

    fn is_ready(&self, events: Events) -> bool {
        self.word.is_none() || poll::ready(self.fd.as_raw_fd(), events) != 0
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Some(word) = self.word {
            self.watched.remove(self.fd.as_raw_fd(), word);
        }
    }
}

impl File for Stream {
    fn read(&self, _: &Context, _: u64, out: &mut [u8]) -> Result<usize> {
        if !self.is_ready(wait::IN | wait::HUP) {
            return Err(Errno::AGAIN);
        }
        files::read(self.fd.as_fd(), out).map_err(errno)
    }

    fn write(&self, _: &Context, _: u64, data: &[u8]) -> Result<usize> {
        if self.word.is_none() {
            return files::write(self.fd.as_fd(), data).map_err(errno);
        }
        let mut done = 0;
        while done < data.len() {
            if !self.is_ready(wait::OUT | wait::ERR) {
                break;
            }
            let end = data.len().min(done + CHUNK_BYTES);
            match files::write(self.fd.as_fd(), &data[done..end]).map_err(errno) {
                Ok(count) => done += count,
                Err(errno) if done == 0 => return Err(errno),
                Err(_) => break,
            }
        }
        if done == 0 && !data.is_empty() {
            return Err(Errno::AGAIN);
        }
        Ok(done)
    }

    fn poll(&self, interest: Events) -> Events {
        if self.word.is_none() {
            return interest & (wait::READABLE | wait::WRITABLE);
        }
        poll::ready(self.fd.as_raw_fd(), interest)
    }

    fn queue(&self) -> Option<&WaitQueue> {
        self.word.map(|_| &self.queue)
    }

    fn metadata(&self) -> Result<Metadata> {
        drupe_appkernel_vfs::Inode::metadata(&*self.inode)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
