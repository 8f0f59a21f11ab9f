//! epoll(7).

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use drupe_appkernel_abi::{Errno, Result};

use crate::file::{Context, File, Metadata};
use crate::kind::FileType;
use crate::open::OpenFile;
use crate::sync::Mutex;
use crate::wait::{self, answer, when, Events, Registration, WaitQueue, Wake};

pub const EPOLLEXCLUSIVE: u32 = 1 << 28;
pub const EPOLLWAKEUP: u32 = 1 << 29;
pub const EPOLLONESHOT: u32 = 1 << 30;
pub const EPOLLET: u32 = 1 << 31;

/// Bits that are no events.
const PRIVATE: u32 = EPOLLEXCLUSIVE | EPOLLWAKEUP | EPOLLONESHOT | EPOLLET;
/// What may come with EPOLLEXCLUSIVE.
const EXCLUSIVE_OK: u32 = wait::IN | wait::OUT | wait::ERR | wait::HUP | EPOLLWAKEUP | EPOLLET | EPOLLEXCLUSIVE;
/// How deep epoll instances may watch one another (epoll_ctl(2), ELOOP).
const MAX_NESTING: u32 = 5;
/// How many ways may lead from an instance up to those that nobody watches, by how many are on the way (EINVAL, as on Linux):
/// an event goes all of them.
const MAX_WAYS: [usize; 5] = [usize::MAX, 500, 100, 50, 10];
/// Files that one instance watches at most, closed ones that nobody has noticed yet included.
const MAX_WATCHED: usize = 65_536;

/// struct epoll_event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpollEvent {
    pub events: u32,
    pub data: u64,
}

/// The operation of epoll_ctl(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    Add,
    Delete,
    Modify,
}

/// A descriptor's number, and the open file that was behind it then.
pub(crate) type Key = (i32, u64);

pub(crate) struct Item {
    pub(crate) file: Weak<OpenFile>,
    pub(crate) wanted: EpollEvent,
    pub(crate) signal: Arc<Signal>,
    _registration: Option<Registration>,
}

/// What a watched file's queue wakes: it puts the item on the ready list, once.
pub(crate) struct Signal {
    key: Key,
    listed: AtomicBool,
    /// EPOLLONESHOT has fired.
    pub(crate) disarmed: AtomicBool,
    ready: Arc<Mutex<VecDeque<Arc<Signal>>>>,
    queue: WaitQueue,
    own: Weak<Signal>,
}

impl Wake for Signal {
    fn wake(&self, _: Events) {
        if !self.disarmed.load(Ordering::Relaxed) {
            self.list();
            self.queue.wake(wait::READABLE);
        }
    }
}

impl Signal {
    /// Put it on the ready list; false: it was there.
    fn list(&self) -> bool {
        match self.own.upgrade().filter(|own| !own.listed.swap(true, Ordering::Relaxed)) {
            Some(own) => {
                self.ready.lock().push_back(own);
                true
            }
            None => false,
        }
    }
}

/// An epoll instance (epoll_create1(2)).
pub struct Epoll {
    own: Weak<Epoll>,
    /// Those that watch it, each as often as it does.
    above: Mutex<Vec<Weak<Epoll>>>,
    pub(crate) items: Mutex<BTreeMap<Key, Item>>,
    ready: Arc<Mutex<VecDeque<Arc<Signal>>>>,
    queue: WaitQueue,
}

impl Epoll {
    pub fn new() -> Arc<Self> {
        Arc::new_cyclic(|own| Self {
            own: own.clone(),
            above: Mutex::default(),
            items: Mutex::default(),
            ready: Arc::default(),
            queue: WaitQueue::new(),
        })
    }

    /// epoll_ctl(2) for `file`, which `fd` names. EPERM for files that are always ready; EINVAL, EEXIST, ENOENT, ELOOP, ENOSPC.
    pub fn control(&self, control: Control, fd: i32, file: &Arc<OpenFile>, event: EpollEvent) -> Result<()> {
        let inner = file.downcast::<Self>();
        if file.file().queue().is_none() {
            return Err(Errno::PERM);
        }
        if inner.is_some_and(|inner| std::ptr::eq(inner, self)) {
            return Err(Errno::INVAL);
        }
        let exclusive = event.events & EPOLLEXCLUSIVE != 0 && control != Control::Delete;
        if exclusive && (control == Control::Modify || event.events & !EXCLUSIVE_OK != 0 || inner.is_some()) {
            return Err(Errno::INVAL);
        }
        match control {
            Control::Add => self.add(fd, file, event, inner),
            Control::Modify => self.modify((fd, file.id()), file, event),
            Control::Delete => {
                let removed = self.items.lock().remove(&(fd, file.id()));
                removed.map(drop).ok_or(Errno::NOENT)?;
                inner.into_iter().for_each(|inner| inner.leave(self));
                Ok(())
            }
        }
    }

    fn add(&self, fd: i32, file: &Arc<OpenFile>, event: EpollEvent, inner: Option<&Self>) -> Result<()> {
        let key = (fd, file.id());
        if self.items.lock().contains_key(&key) {
            return Err(Errno::EXIST);
        }
        if let Some(inner) = inner {
            inner.check_nesting(self, 1)?;
            inner.join(self)?;
        }
        let signal = self.signal(key);
        let events = event.events & !PRIVATE;
        let queue = file.file().queue().ok_or(Errno::PERM)?;
        let register =
            if event.events & EPOLLEXCLUSIVE != 0 { WaitQueue::register_exclusive } else { WaitQueue::register };
        let registration = Some(register(queue, events, signal.clone()));
        let (file_weak, own) = (Arc::downgrade(file), signal.clone());
        let item = Item { file: file_weak, wanted: event, signal: own, _registration: registration };
        if let Err(errno) = self.insert(key, item) {
            inner.into_iter().for_each(|inner| inner.leave(self));
            return Err(errno);
        }
        self.list_if_ready(file, events, &signal);
        Ok(())
    }

    fn insert(&self, key: Key, item: Item) -> Result<()> {
        let mut items = self.items.lock();
        let mut closed = BTreeMap::new();
        if items.len() >= 64 && items.len().is_power_of_two() || items.len() >= MAX_WATCHED {
            let all = std::mem::take(&mut *items);
            (*items, closed) = all.into_iter().partition(|(_, item)| item.file.strong_count() > 0);
        }
        let full = items.len() >= MAX_WATCHED;
        if !full {
            items.insert(key, item);
        }
        drop(items);
        drop(closed);
        (!full).then_some(()).ok_or(Errno::NOSPC)
    }

    fn signal(&self, key: Key) -> Arc<Signal> {
        let (ready, queue) = (Arc::clone(&self.ready), self.queue.clone());
        let (listed, disarmed) = (AtomicBool::new(false), AtomicBool::new(false));
        Arc::new_cyclic(|own| Signal { key, listed, disarmed, ready, queue, own: own.clone() })
    }

    fn modify(&self, key: Key, file: &Arc<OpenFile>, event: EpollEvent) -> Result<()> {
        let events = event.events & !PRIVATE;
        let signal = self.items.lock().get(&key).map(|item| item.signal.clone()).ok_or(Errno::NOENT)?;
        let queue = file.file().queue().ok_or(Errno::PERM)?;
        let registration = Some(queue.register(events, signal.clone()));
        let mut items = self.items.lock();
        let item = items.get_mut(&key).ok_or(Errno::NOENT)?;
        if item.wanted.events & EPOLLEXCLUSIVE != 0 {
            return Err(Errno::INVAL);
        }
        item.wanted = event;
        signal.disarmed.store(false, Ordering::Relaxed);
        let replaced = std::mem::replace(&mut item._registration, registration);
        drop(items);
        drop(replaced);
        self.list_if_ready(file, events, &signal);
        Ok(())
    }

    fn list_if_ready(&self, file: &Arc<OpenFile>, events: Events, signal: &Signal) {
        if file.poll(events) != 0 && signal.list() {
            self.queue.wake(wait::READABLE);
        }
    }

    /// ELOOP if `outer` is among what this instance watches, or the chain gets too long.
    fn check_nesting(&self, outer: &Self, depth: u32) -> Result<()> {
        if std::ptr::eq(self, outer) || depth >= MAX_NESTING {
            return Err(Errno::LOOP);
        }
        let watched: Vec<_> = self.items.lock().values().filter_map(|item| item.file.upgrade()).collect();
        let mut nested = watched.iter().filter_map(|file| file.downcast::<Self>());
        nested.try_for_each(|inner| inner.check_nesting(outer, depth + 1))
    }

    /// `outer` is to watch it. EINVAL if there would be too many ways.
    fn join(&self, outer: &Self) -> Result<()> {
        self.above.lock().push(outer.own.clone());
        let checked = self.check_ways(&mut BTreeSet::new());
        if checked.is_err() {
            self.leave(outer);
        }
        checked
    }

    fn leave(&self, outer: &Self) {
        let mut above = self.above.lock();
        if let Some(at) = above.iter().position(|known| known.ptr_eq(&outer.own)) {
            above.swap_remove(at);
        }
        above.retain(|known| known.strong_count() > 0);
    }

    /// Of this instance and of all that it watches, each once.
    fn check_ways(&self, seen: &mut BTreeSet<u64>) -> Result<()> {
        self.count_ways(0, &mut [0; MAX_WAYS.len()])?;
        let watched: Vec<_> = self.items.lock().values().filter_map(|item| item.file.upgrade()).collect();
        for file in watched {
            if let Some(inner) = file.downcast::<Self>().filter(|_| seen.insert(file.id())) {
                inner.check_ways(seen)?;
            }
        }
        Ok(())
    }

    fn count_ways(&self, length: usize, ways: &mut [usize; MAX_WAYS.len()]) -> Result<()> {
        let above: Vec<Arc<Self>> = self.above.lock().iter().filter_map(Weak::upgrade).collect();
        if above.is_empty() {
            let count = ways.get_mut(length).ok_or(Errno::LOOP)?;
            *count += 1;
            return (*count <= MAX_WAYS[length]).then_some(()).ok_or(Errno::INVAL);
        }
        above.iter().try_for_each(|outer| outer.count_ways(length + 1, ways))
    }

    /// epoll_wait(2): up to `count` events, none if there is nothing now.
    pub fn wait(&self, count: usize) -> Vec<EpollEvent> {
        let mut found = Vec::new();
        let mut again = Vec::new();
        let listed = self.ready.lock().len();
        for _ in 0..listed {
            if found.len() == count {
                break;
            }
            let Some(signal) = self.ready.lock().pop_front() else { break };
            signal.listed.store(false, Ordering::Relaxed);
            if let Some((event, level)) = self.take(&signal) {
                found.push(event);
                again.extend(level.then_some(signal));
            }
        }
        for signal in again {
            signal.list();
        }
        found
    }

    /// What is to be told of an item now, and whether it is to be looked at again next time (level-triggered).
    fn take(&self, signal: &Arc<Signal>) -> Option<(EpollEvent, bool)> {
        let (file, wanted) = self.look(signal)?;
        let events = file.poll(wanted.events & !PRIVATE);
        if events == 0 {
            return None;
        }
        let oneshot = wanted.events & EPOLLONESHOT != 0;
        if oneshot {
            signal.disarmed.store(true, Ordering::Relaxed);
        }
        let level = !oneshot && wanted.events & EPOLLET == 0;
        Some((EpollEvent { events, data: wanted.data }, level))
    }

    /// The item's file and what is wanted of it, unless it was deleted; what was closed is forgotten.
    fn look(&self, signal: &Arc<Signal>) -> Option<(Arc<OpenFile>, EpollEvent)> {
        let mut items = self.items.lock();
        let item = items.get(&signal.key).filter(|item| Arc::ptr_eq(&item.signal, signal))?;
        if let Some(file) = item.file.upgrade() {
            return (!signal.disarmed.load(Ordering::Relaxed)).then_some((file, item.wanted));
        }
        let closed = items.remove(&signal.key);
        drop(items);
        drop(closed);
        None
    }

    /// Whether a wait would give something; keeps the order of the list.
    fn is_ready(&self) -> bool {
        let listed: Vec<Arc<Signal>> = self.ready.lock().iter().cloned().collect();
        listed.iter().any(|signal| {
            let looked = self.look(signal);
            looked.is_some_and(|(file, wanted)| file.poll(wanted.events & !PRIVATE) != 0)
        })
    }
}

impl File for Epoll {
    fn read(&self, _: &Context, _: u64, _: &mut [u8]) -> Result<usize> {
        Err(Errno::INVAL)
    }

    fn write(&self, _: &Context, _: u64, _: &[u8]) -> Result<usize> {
        Err(Errno::INVAL)
    }

    fn poll(&self, interest: Events) -> Events {
        answer(interest, when(self.is_ready(), wait::READABLE))
    }

    fn queue(&self) -> Option<&WaitQueue> {
        Some(&self.queue)
    }

    fn metadata(&self) -> Result<Metadata> {
        Ok(Metadata::new(FileType::Regular, 0o600))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
