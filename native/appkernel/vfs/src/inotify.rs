//! inotify(7): watches on inodes, and the queue of their events.

use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};

use drupe_appkernel_abi::{Errno, Result};

use crate::dentry::Path;
use crate::file::{Context, File, Metadata};
use crate::inode::{Inode, InodeRef};
use crate::kind::FileType;
use crate::sync::Mutex;
use crate::wait::{self, when, Events, WaitQueue};

pub const IN_ACCESS: u32 = 0x1;
pub const IN_MODIFY: u32 = 0x2;
pub const IN_ATTRIB: u32 = 0x4;
pub const IN_CLOSE_WRITE: u32 = 0x8;
pub const IN_CLOSE_NOWRITE: u32 = 0x10;
pub const IN_OPEN: u32 = 0x20;
pub const IN_MOVED_FROM: u32 = 0x40;
pub const IN_MOVED_TO: u32 = 0x80;
pub const IN_CREATE: u32 = 0x100;
pub const IN_DELETE: u32 = 0x200;
pub const IN_DELETE_SELF: u32 = 0x400;
pub const IN_MOVE_SELF: u32 = 0x800;
pub const IN_Q_OVERFLOW: u32 = 0x4000;
pub const IN_IGNORED: u32 = 0x8000;
pub const IN_ONLYDIR: u32 = 0x100_0000;
pub const IN_DONT_FOLLOW: u32 = 0x200_0000;
pub const IN_EXCL_UNLINK: u32 = 0x400_0000;
pub const IN_MASK_CREATE: u32 = 0x1000_0000;
pub const IN_MASK_ADD: u32 = 0x2000_0000;
pub const IN_ISDIR: u32 = 0x4000_0000;
pub const IN_ONESHOT: u32 = 0x8000_0000;

const ALL_EVENTS: u32 = 0xfff;
const MAX_QUEUED: usize = 16_384;
const MAX_WATCHES: usize = 65_536;
const HEADER_BYTES: usize = 16;

struct Watch {
    instance: Weak<Inotify>,
    descriptor: i32,
    mask: AtomicU32,
}

/// The watches on one inode, in its attachment.
#[derive(Default)]
struct Watches(Mutex<Vec<Arc<Watch>>>);

fn watches(inode: &InodeRef) -> Option<&Watches> {
    inode.attachment().watches.get().and_then(|watches| watches.downcast_ref())
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Event {
    descriptor: i32,
    mask: u32,
    cookie: u32,
    name: Vec<u8>,
}

impl Event {
    /// As read(2) gives it: struct inotify_event, the name padded with zeros.
    fn encode(&self) -> Vec<u8> {
        let padded = if self.name.is_empty() { 0 } else { (self.name.len() + 1).next_multiple_of(HEADER_BYTES) };
        let mut bytes = Vec::with_capacity(HEADER_BYTES + padded);
        bytes.extend_from_slice(&self.descriptor.to_ne_bytes());
        bytes.extend_from_slice(&self.mask.to_ne_bytes());
        bytes.extend_from_slice(&self.cookie.to_ne_bytes());
        bytes.extend_from_slice(&u32::try_from(padded).unwrap_or(0).to_ne_bytes());
        bytes.extend_from_slice(&self.name);
        bytes.resize(HEADER_BYTES + padded, 0);
        bytes
    }
}

/// An event as it is saved: descriptor, mask, cookie, name.
pub type SavedNotice = (i32, u32, u32, Vec<u8>);

#[derive(Default)]
struct Instance {
    next_descriptor: i32,
    /// With the place by which it was asked for.
    watched: BTreeMap<i32, (Path, Arc<Watch>)>,
    events: VecDeque<Event>,
}

/// An inotify instance (inotify_init1(2)).
pub struct Inotify {
    own: Weak<Inotify>,
    state: Mutex<Instance>,
    queue: WaitQueue,
}

impl Inotify {
    pub fn new() -> Arc<Self> {
        Arc::new_cyclic(|own| Self { own: own.clone(), state: Mutex::default(), queue: WaitQueue::new() })
    }

    /// inotify_add_watch(2). EINVAL, EEXIST, ENOTDIR, ENOSPC.
    pub fn add(&self, path: &Path, mask: u32) -> Result<i32> {
        let inode = path.inode();
        let both = IN_MASK_ADD | IN_MASK_CREATE;
        if mask & ALL_EVENTS == 0 || mask & both == both {
            return Err(Errno::INVAL);
        }
        if mask & IN_ONLYDIR != 0 && inode.kind() != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        let mut state = self.state.lock();
        let known =
            state.watched.values().find(|(other, _)| Arc::ptr_eq(other.inode(), inode)).map(|(_, w)| Arc::clone(w));
        match known {
            Some(_) if mask & IN_MASK_CREATE != 0 => Err(Errno::EXIST),
            Some(watch) => {
                let old = if mask & IN_MASK_ADD != 0 { watch.mask.load(Ordering::Relaxed) } else { 0 };
                watch.mask.store(old | mask, Ordering::Relaxed);
                Ok(watch.descriptor)
            }
            None => {
                let descriptor = state.next_descriptor + 1;
                self.watch(&mut state, path, mask, descriptor)
            }
        }
    }

    fn watch(&self, state: &mut Instance, path: &Path, mask: u32, descriptor: i32) -> Result<i32> {
        let inode = path.inode();
        if state.watched.len() >= MAX_WATCHES {
            return Err(Errno::NOSPC);
        }
        state.next_descriptor = descriptor;
        let watch = Arc::new(Watch { instance: self.own.clone(), descriptor, mask: AtomicU32::new(mask) });
        inode.attachment().watches.get_or_init(|| Arc::new(Watches::default()));
        if let Some(watches) = watches(inode) {
            watches.0.lock().push(Arc::clone(&watch));
        }
        state.watched.insert(descriptor, (path.clone(), watch));
        Ok(descriptor)
    }

    /// inotify_rm_watch(2). EINVAL.
    pub fn remove(&self, descriptor: i32) -> Result<()> {
        let (path, watch) = self.state.lock().watched.remove(&descriptor).ok_or(Errno::INVAL)?;
        detach(path.inode(), &watch);
        self.push(Event { descriptor, mask: IN_IGNORED, cookie: 0, name: Vec::new() });
        Ok(())
    }

    /// As it is: the descriptor given last, what is watched (descriptor, mask, place), what was not read yet.
    pub fn save(&self) -> (i32, Vec<(i32, u32, Path)>, Vec<SavedNotice>) {
        let state = self.state.lock();
        let watched =
            |(path, watch): &(Path, Arc<Watch>)| (watch.descriptor, watch.mask.load(Ordering::Relaxed), path.clone());
        let notice = |event: &Event| (event.descriptor, event.mask, event.cookie, event.name.clone());
        let events = state.events.iter().map(notice).collect();
        (state.next_descriptor, state.watched.values().map(watched).collect(), events)
    }

    /// The same again, of a fresh instance. EINVAL, ENOSPC.
    pub fn restore(&self, next: i32, watched: &[(i32, u32, Path)], events: &[SavedNotice]) -> Result<()> {
        let mut state = self.state.lock();
        for (descriptor, mask, path) in watched {
            let sound = (1..=next).contains(descriptor) && !state.watched.contains_key(descriptor);
            if !sound || mask & ALL_EVENTS == 0 {
                return Err(Errno::INVAL);
            }
            self.watch(&mut state, path, *mask, *descriptor)?;
        }
        if events.len() > MAX_QUEUED || next < 0 {
            return Err(Errno::INVAL);
        }
        let event = |(descriptor, mask, cookie, name): &SavedNotice| Event {
            descriptor: *descriptor,
            mask: *mask,
            cookie: *cookie,
            name: name.clone(),
        };
        state.events = events.iter().map(event).collect();
        state.next_descriptor = next;
        Ok(())
    }

    fn push(&self, event: Event) {
        let mut state = self.state.lock();
        match state.events.len() {
            MAX_QUEUED.. => return,
            len if len == MAX_QUEUED - 1 => {
                state.events.push_back(Event { descriptor: -1, mask: IN_Q_OVERFLOW, cookie: 0, name: Vec::new() });
            }
            _ if state.events.back() == Some(&event) => return, // as Linux: twice the same is once
            _ => state.events.push_back(event),
        }
        drop(state);
        self.queue.wake(wait::READABLE);
    }

    fn unread_bytes(&self) -> usize {
        self.state.lock().events.iter().map(|event| event.encode().len()).sum()
    }
}

fn detach(inode: &InodeRef, watch: &Arc<Watch>) {
    if let Some(watches) = watches(inode) {
        watches.0.lock().retain(|other| !Arc::ptr_eq(other, watch));
    }
}

impl Drop for Inotify {
    fn drop(&mut self) {
        let state = self.state.lock();
        state.watched.values().for_each(|(path, watch)| detach(path.inode(), watch));
    }
}

impl File for Inotify {
    fn read(&self, _: &Context, _: u64, out: &mut [u8]) -> Result<usize> {
        let mut state = self.state.lock();
        let mut filled = 0;
        while let Some(event) = state.events.front() {
            let bytes = event.encode();
            if filled + bytes.len() > out.len() {
                break;
            }
            out[filled..filled + bytes.len()].copy_from_slice(&bytes);
            filled += bytes.len();
            state.events.pop_front();
        }
        match (filled, state.events.is_empty()) {
            (0, true) => Err(Errno::AGAIN),
            (0, false) => Err(Errno::INVAL),
            _ => Ok(filled),
        }
    }

    fn write(&self, _: &Context, _: u64, _: &[u8]) -> Result<usize> {
        Err(Errno::BADF)
    }

    fn poll(&self, interest: Events) -> Events {
        interest & when(!self.state.lock().events.is_empty(), wait::READABLE)
    }

    fn queue(&self) -> Option<&WaitQueue> {
        Some(&self.queue)
    }

    fn metadata(&self) -> Result<Metadata> {
        Ok(Metadata::new(FileType::Regular, 0o600))
    }

    fn ioctl(&self, _: &Context, request: u32, _: u64, data: &mut Vec<u8>) -> Result<i64> {
        crate::ioctl::answer_readable(request, self.unread_bytes(), data)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn deliver(inode: &InodeRef, mask: u32, cookie: u32, name: &[u8]) {
    let Some(watches) = watches(inode) else { return };
    let list = watches.0.lock().clone();
    for watch in list {
        let wanted = watch.mask.load(Ordering::Relaxed);
        let Some(instance) = watch.instance.upgrade() else { continue };
        if wanted & mask & ALL_EVENTS != 0 {
            instance.push(Event { descriptor: watch.descriptor, mask, cookie, name: name.to_vec() });
        }
        if mask & IN_DELETE_SELF != 0 || (wanted & IN_ONESHOT != 0 && wanted & mask & ALL_EVENTS != 0) {
            let _ = instance.remove(watch.descriptor); // EINVAL: somebody else removed it
        }
    }
}

fn directory_bit(inode: &InodeRef) -> u32 {
    if inode.kind() == FileType::Directory {
        IN_ISDIR
    } else {
        0
    }
}

/// Something happened to the file at `path`: its own watchers hear of it, and with the name those of its directory.
pub fn tell(path: &Path, mask: u32) {
    let inode = path.inode();
    let of_directory_only = mask & (IN_CREATE | IN_DELETE) != 0;
    let is_watched = |inode: &dyn Inode| inode.attachment().watches.get().is_some();
    if let Some(parent) = path.dentry.parent().filter(|parent| is_watched(parent.inode().as_ref())) {
        deliver(parent.inode(), mask | directory_bit(inode), 0, &path.dentry.name());
    }
    if !of_directory_only {
        deliver(inode, mask | directory_bit(inode), 0, &[]);
    }
}

/// As `tell`, for the watchers of the inode only.
pub fn tell_inode(inode: &InodeRef, mask: u32) {
    deliver(inode, mask | if mask & IN_DELETE_SELF != 0 { 0 } else { directory_bit(inode) }, 0, &[]);
}

/// A name moved: IN_MOVED_FROM and IN_MOVED_TO with one cookie, and IN_MOVE_SELF.
pub fn tell_moved(from: (&Path, &[u8]), to: (&Path, &[u8]), moved: &Path) {
    static COOKIE: AtomicU32 = AtomicU32::new(1);
    let inode = moved.inode();
    let (kind, cookie) = (directory_bit(inode), COOKIE.fetch_add(1, Ordering::Relaxed));
    deliver(from.0.inode(), IN_MOVED_FROM | kind, cookie, from.1);
    deliver(to.0.inode(), IN_MOVED_TO | kind, cookie, to.1);
    deliver(inode, IN_MOVE_SELF, 0, &[]);
}
